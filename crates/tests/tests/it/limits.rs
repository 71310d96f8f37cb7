//! Limits of memory and processors, and what is said when memory runs out.

use std::path::PathBuf;

use kiln_tests::{Kiln, Setting, skipped};
use xtask::machine::{PLAIN_USER, is_root};

/// Takes memory until there is none.
const GREEDY: &str = "FROM busybox\nRUN tail /dev/zero; echo code $?; exit 3\n";

/// A group that the plain user may use, in whichever version of control groups limits memory here.
struct Delegated(PathBuf);

impl Delegated {
    const NAME: &str = "kiln-test-delegated";

    fn new() -> Option<Self> {
        let top = PathBuf::from("/sys/fs/cgroup");
        let memory = top.join("memory");
        let top = if memory.is_dir() { memory } else { top };
        let group = top.join(Self::NAME);
        std::fs::create_dir_all(&group).ok()?;
        let owner = format!("{PLAIN_USER}:");
        let given = std::process::Command::new("chown")
            .args(["-R", &owner])
            .arg(&group)
            .status();
        given
            .is_ok_and(|status| status.success())
            .then_some(Self(group))
    }

    fn is_empty(&self) -> bool {
        let entries = std::fs::read_dir(&self.0).expect("it is there").flatten();
        !entries
            .into_iter()
            .any(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn memory_as_root() {
    let Some(kiln) = Kiln::shared(Setting::Root, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", GREEDY)]);
    for option in [["--memory", "48m"], ["--resource", "memory=48m"]] {
        kiln.build(&[option[0], option[1], "--memory-swap", "48m", &context])
            .failed()
            .says(&[
                "code 137",
                "exit code: 3: out of memory",
                "hint: give the step more with --memory",
            ]);
    }
    // Killed by somebody else is not out of memory, and there is room for others.
    let context = kiln.context(&[(
        "Dockerfile",
        "FROM busybox\nRUN sh -c 'kill -9 $$'; exit $?\n",
    )]);
    kiln.build(&["-m", "48m", &context])
        .failed()
        .says(&["exit code: 137"])
        .silent_about(&["memory: the kernel"]);
}

#[test]
fn memory_as_a_plain_user() {
    let Some(kiln) = Kiln::shared(Setting::User, &["busybox"]) else {
        return;
    };
    // Where nothing is delegated a note is all.
    let context = kiln.context(&[("Dockerfile", "FROM busybox\nRUN echo ran\n")]);
    let build = kiln.build(&[
        "--memory",
        "48m",
        "--cgroup-parent",
        "/nobody-gave-this",
        &context,
    ]);
    build.ok().says(&[
        "ran",
        "no limit of memory could be set",
        "Permission denied",
    ]);
    if !is_root() {
        return skipped("only root can delegate a control group");
    }
    let Some(delegated) = Delegated::new() else {
        return skipped("no control group can be made here");
    };
    let context = kiln.context(&[("Dockerfile", GREEDY)]);
    kiln.build(&[
        "-m",
        "48m",
        "--memory-swap",
        "48m",
        "--cgroup-parent",
        Delegated::NAME,
        &context,
    ])
    .failed()
    .says(&["code 137", "exit code: 3: out of memory"])
    .silent_about(&["no limit"]);
    assert!(delegated.is_empty(), "the groups of steps are removed");
}

#[test]
fn processors_as_root() {
    let Some(kiln) = Kiln::shared(Setting::Root, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[(
        "Dockerfile",
        "FROM busybox\nRUN grep Cpus_allowed_list /proc/self/status | tr '\\t' '='\n",
    )]);
    kiln.build(&[
        "--cpuset-cpus",
        "0",
        "-c",
        "512",
        "--cpu-period",
        "50000",
        "--cpu-quota",
        "25000",
        &context,
    ])
    .ok()
    .says(&["Cpus_allowed_list:=0\n"])
    .silent_about(&["no limit"]);
    kiln.build(&["--no-cache", "--cpuset-cpus", "4000", &context])
        .failed()
        .says(&["cpuset.cpus=4000"]);
    // No part of a key.
    let again = kiln.build(&["--cpu-shares", "100", &context]).ok();
    assert_eq!(again.executed(), Vec::<String>::new(), "{again}");
}
