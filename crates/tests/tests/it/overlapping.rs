//! Two processes, one store.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kiln_tests::{Kiln, Setting, in_each_setting};

in_each_setting! { equal_builds_do_the_work_once different_builds_run_at_once independent_stages_run_at_once }

fn start(kiln: &Kiln, tag: &str, context: &str) -> Child {
    let mut build = kiln.command(&["build", "--progress", "plain", "-t", tag, context]);
    build
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("kiln starts")
}

/// Runs the builds at once; all succeed, in less than `limit`.
#[track_caller]
fn together(kiln: &Kiln, builds: &[(&str, &str)], limit: Duration) {
    let start_time = Instant::now();
    let children: Vec<Child> = builds
        .iter()
        .map(|(tag, context)| start(kiln, tag, context))
        .collect();
    for mut child in children {
        assert!(child.wait().expect("own child").success());
    }
    assert!(
        start_time.elapsed() < limit,
        "took {:?}",
        start_time.elapsed()
    );
}

fn equal_builds_do_the_work_once(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let dockerfile = "FROM busybox\nRUN sleep 4; cat /proc/sys/kernel/random/uuid > /id\nCMD [\"cat\", \"/id\"]\n";
    let context = kiln.context(&[("Dockerfile", dockerfile)]);
    together(
        &kiln,
        &[("one", &context), ("two", &context)],
        Duration::from_millis(7500),
    );
    let id = |tag: &str| kiln.run(&["run", "--rm", tag]).ok().stdout;
    assert_eq!(id("one"), id("two"), "the step ran twice");
    kiln.leaves_nothing();
}

fn different_builds_run_at_once(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = |name: &str| {
        kiln.context(&[(
            "Dockerfile",
            &format!("FROM busybox\nRUN sleep 4; echo {name}\n"),
        )])
    };
    together(
        &kiln,
        &[("a", &context("a")), ("b", &context("b"))],
        Duration::from_millis(7500),
    );
}

fn independent_stages_run_at_once(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let stage =
        |name: &str| format!("FROM busybox AS {name}\nRUN sleep 2; echo {name} > /{name}\n");
    let dockerfile = format!(
        "{}{}{}FROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\nCOPY --from=c /c /\n",
        stage("a"),
        stage("b"),
        stage("c")
    );
    let context = kiln.context(&[("Dockerfile", &dockerfile)]);
    together(&kiln, &[("abc", &context)], Duration::from_millis(4500));
}
