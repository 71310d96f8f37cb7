//! Builds that are stopped from outside: by Ctrl-C, by kill -9, by a full disk.

use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use kiln_tests::{Kiln, Setting, in_each_setting};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

in_each_setting! { ctrl_c kill_9 kill_9_at_any_time }

/// Starts a build in a process group of its own and waits until it prints `text`.
fn start_until(kiln: &Kiln, text: &str, context: &str) -> Child {
    let mut build = kiln.command(&["build", "--progress", "plain", "-t", "interrupted", context]);
    let mut child = build
        .process_group(0)
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("kiln starts");
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines();
    let mut said = Vec::new();
    loop {
        let line = lines
            .next()
            .unwrap_or_else(|| panic!("ended without {text:?}:\n{}", said.join("\n")));
        said.push(line.expect("readable"));
        // The step's header repeats the command: its output has a time before it.
        if said
            .last()
            .is_some_and(|line| line.ends_with(text) && !line.contains("RUN"))
        {
            break;
        }
    }
    std::thread::spawn(move || lines.for_each(drop));
    child
}

fn pid(child: &Child) -> Pid {
    Pid::from_child(child)
}

const SLOW: &str = "FROM busybox\nRUN echo first > /first\nRUN echo un''derway; (sleep 300 &) ; sleep 300; echo late\n";

fn is_repaired(kiln: &Kiln, context: &str) {
    std::fs::write(
        format!("{context}/Dockerfile"),
        SLOW.replace("sleep 300", "true"),
    )
    .expect("own file");
    let build = kiln.build(&["-t", "interrupted", context]).ok();
    assert_eq!(
        build.executed().len(),
        1,
        "the first step was done before: {build}"
    );
    kiln.run(&["run", "--rm", "interrupted", "cat", "/first"])
        .ok()
        .says(&["first"]);
}

fn ctrl_c(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", SLOW)]);
    let mut child = start_until(&kiln, "underway", &context);
    let start = Instant::now();
    // A terminal sends it to the whole group.
    kill_process_group(pid(&child), Signal::INT).expect("it runs");
    let status = child.wait().expect("own child");
    assert!(!status.success());
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "took {:?} to stop",
        start.elapsed()
    );
    kiln.leaves_nothing();
    kiln.run(&["run", "--rm", "interrupted"]).failed();
    is_repaired(&kiln, &context);
}

fn kill_9(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", SLOW)]);
    let mut child = start_until(&kiln, "underway", &context);
    kill_process(pid(&child), Signal::KILL).expect("it runs");
    child.wait().expect("own child");
    kiln.leaves_nothing();
    is_repaired(&kiln, &context);
}

fn kill_9_at_any_time(setting: Setting) {
    let (Some(kiln), Some(calm)) = (
        Kiln::fresh(setting, &["busybox"]),
        Kiln::fresh(setting, &["busybox"]),
    ) else {
        return;
    };
    let dockerfile = "FROM busybox AS a\nCOPY . /a/\nRUN for i in 1 2 3 4 5 6 7 8; do echo $i > /a/$i; done; rm /a/x\n\
                      RUN mkdir -p /b/c && ln /a/1 /b/c/one && chown 7:8 /b/c\nFROM busybox\nCOPY --from=a /a /b /all/\n\
                      RUN rm -rf /var/www && mkdir /var/www && touch /var/www/new\n";
    let files = [("Dockerfile", dockerfile), ("x", "x"), ("y/z", "z")];
    let context = kiln.context(&files);
    let build = ["build", "--progress", "plain", "-t", "killed", &context];
    for delay in [0, 5, 10, 20, 30, 45, 60, 80, 110, 150, 200, 300] {
        let mut command = kiln.command(&build);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("kiln starts");
        std::thread::sleep(Duration::from_millis(delay));
        let _ = child.kill();
        child.wait().expect("own child");
        kiln.leaves_nothing();
    }
    kiln.run(&build).ok();
    calm.run(&["build", "-t", "killed", &calm.context(&files)])
        .ok();
    let differences = xtask::compare::image_differences(&kiln.save("killed"), &calm.save("killed"));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[test]
fn no_space_left() {
    let Some(kiln) = Kiln::on_small_disk("40m", &["busybox"]) else {
        return;
    };
    let no_space = |args: &[&str]| {
        let failed = kiln.build(args).failed();
        let said = format!("{}{}", failed.stdout, failed.stderr).to_lowercase();
        assert!(said.contains("no space left"), "{failed}");
        kiln.leaves_nothing();
    };
    let in_a_step = kiln.context(&[(
        "Dockerfile",
        "FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=80\n",
    )]);
    no_space(&[&in_a_step]);

    // Incompressible and not to be shared with the file of the context.
    let in_a_copy = kiln.context(&[
        ("Dockerfile", "FROM busybox\nCOPY big /\n"),
        ("big", &"0123456789abcdef".repeat(5 << 20)),
    ]);
    no_space(&[&in_a_copy]);

    let small = kiln.context(&[(
        "Dockerfile",
        "FROM busybox\nRUN echo still whole > /x\nCMD [\"cat\", \"/x\"]\n",
    )]);
    kiln.build(&["-t", "small", &small]).ok();
    kiln.run(&["run", "--rm", "small"])
        .ok()
        .says(&["still whole"]);
    kiln.run(&["images"]).ok().says(&["busybox", "small"]);
}
