//! Two processes, one store.

use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kiln_tests::{Kiln, Outcome, Setting, in_each_setting};

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

const OVERLAPPING: &str = "FROM busybox AS common\nRUN sleep 3; cat /proc/sys/kernel/random/uuid > /id\n\
    FROM common AS group\nCOPY group /\nRUN cat /proc/sys/kernel/random/uuid > /group-id\n\
    FROM group\nCOPY own /\nRUN cat /own >> /all\nCMD cat /id /group-id /all\n";

#[test]
fn twenty_builds_share_what_they_have_in_common() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let builds: Vec<(String, String)> = (0..20)
        .map(|number| {
            let files = [
                ("Dockerfile", OVERLAPPING),
                ("group", &format!("{}\n", number % 4)),
                ("own", &format!("{number}\n")),
            ];
            (format!("build-{number}"), kiln.context(&files))
        })
        .collect();
    let outcomes: Vec<Outcome> = std::thread::scope(|scope| {
        let build = |(tag, context): &(String, String)| kiln.build(&["-t", tag, context]);
        let threads: Vec<_> = builds
            .iter()
            .map(|it| scope.spawn(move || build(it)))
            .collect();
        threads
            .into_iter()
            .map(|it| it.join().expect("no panic").ok())
            .collect()
    });
    let waiting = outcomes
        .iter()
        .filter(|it| {
            it.stderr
                .contains("waiting for the same step in another build (process ")
        })
        .count();
    assert!(waiting >= 10, "only {waiting} say for whom they waited");
    assert!(
        outcomes.iter().any(|it| it
            .stderr
            .contains(": kiln build --progress plain -t build-")),
        "what the other build is, is not said"
    );
    let mut ids = Vec::new();
    let mut groups = Vec::new();
    for (number, (tag, _)) in builds.iter().enumerate() {
        let said = kiln.run(&["run", "--rm", tag]).ok().stdout;
        let lines: Vec<String> = said.lines().map(str::to_owned).collect();
        let [id, group, own] = &lines[..] else {
            panic!("{tag} says {said}");
        };
        assert_eq!(own, &number.to_string());
        ids.push(id.clone());
        groups.push(group.clone());
    }
    ids.dedup();
    groups.sort_unstable();
    groups.dedup();
    assert_eq!(
        (ids.len(), groups.len()),
        (1, 4),
        "equal work was done more than once"
    );
    for (tag, context) in &builds {
        let again = kiln.build(&["-t", tag, context]).ok();
        assert!(again.executed().is_empty(), "{again}");
    }
    kiln.leaves_nothing();
}
