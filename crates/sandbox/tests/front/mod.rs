//! Who runs the cases: four kinds of privilege, each in a process of its own.
#![allow(clippy::print_stderr, reason = "a test's report")]

use std::ffi::OsString;
use std::io::Read;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, exit};
use std::sync::atomic::Ordering;

use kiln_sandbox::{
    CONTROL_FD, IdTools, Isolation, User, Wanted, choose, enter_worker, spawn_worker,
};

use crate::cases::{CASES, ONE_ID, Privilege};

/// Starts one process for each kind and adds up.
pub(crate) fn all(filter: &[String]) {
    if filter.iter().any(|argument| argument == "--list") {
        return;
    }
    let filter: Vec<&String> = filter
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if !rustix::process::geteuid().is_root() || !std::path::Path::new("/bin/busybox").exists() {
        eprintln!("skipped: the sandbox tests need root and /bin/busybox");
        return;
    }
    let exe = std::env::current_exe().unwrap();
    let user = Command::new("id")
        .args(["-u", "kilntest"])
        .output()
        .is_ok_and(|output| output.status.success());
    let mut ok = true;
    for mode in ["direct", "root", "mapped", "single"] {
        let mut command = if matches!(mode, "mapped" | "single") {
            if !user {
                eprintln!("skipped: {mode} needs the user kilntest");
                continue;
            }
            let mut command = Command::new("setpriv");
            command
                .args([
                    "--reuid=kilntest",
                    "--regid=kilntest",
                    "--init-groups",
                    "--",
                ])
                .arg(&exe);
            command
        } else {
            Command::new(&exe)
        };
        command.arg("front").arg(mode).args(&filter);
        ok &= command.status().unwrap().success();
    }
    exit(i32::from(!ok));
}

/// Runs the cases with one kind of privilege.
pub(crate) fn run(mode: &str, filter: &[String]) {
    let isolation = match mode {
        "direct" => exit(run_cases(Privilege::Root, mode, filter)),
        "root" => Isolation::Root,
        _ => {
            let (uid, gid) = (
                rustix::process::getuid().as_raw(),
                rustix::process::getgid().as_raw(),
            );
            let read = |path| std::fs::read_to_string(path).unwrap_or_default();
            let tools = IdTools::find("/usr/bin:/bin".as_ref()).filter(|_| mode == "mapped");
            let (subuid, subgid) = (read("/etc/subuid"), read("/etc/subgid"));
            let user = User {
                uid,
                gid,
                name: "kilntest",
                subuid: &subuid,
                subgid: &subgid,
            };
            let (isolation, why) = choose(Wanted::Auto, user, tools).unwrap();
            eprintln!("{mode}: {why}");
            assert_eq!(
                matches!(isolation, Isolation::MappedIds { .. }),
                mode == "mapped",
                "{isolation:?}"
            );
            isolation
        }
    };
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    let mut args: Vec<OsString> = vec!["worker".into(), mode.into()];
    args.extend(filter.iter().map(OsString::from));
    let mut child = spawn_worker(
        &isolation,
        &std::env::current_exe().unwrap(),
        &args,
        theirs.into(),
    )
    .unwrap();
    let mut word = String::new();
    ours.read_to_string(&mut word).unwrap();
    assert_eq!(word, "hello", "the control descriptor leads here");
    exit(child.wait().unwrap().code().unwrap_or(1));
}

/// The worker.
#[allow(unsafe_code, reason = "the control descriptor is known by number")]
pub(crate) fn worker(args: &[String]) {
    enter_worker().unwrap();
    // SAFETY: the number is ours by contract with `spawn_worker`.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    rustix::io::write(&control, b"hello").unwrap();
    drop(control);
    let privilege = match args[0].as_str() {
        "root" => Privilege::Root,
        "mapped" => Privilege::Mapped,
        _ => Privilege::Single,
    };
    exit(run_cases(privilege, &args[0], &args[1..]));
}

fn run_cases(privilege: Privilege, mode: &str, filter: &[String]) -> i32 {
    ONE_ID.store(privilege == Privilege::Single, Ordering::Relaxed);
    let mut failed = 0;
    for (name, case) in CASES {
        if !filter.is_empty() && !filter.iter().any(|part| name.contains(part.as_str())) {
            continue;
        }
        let started = std::time::Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(|| case(privilege)));
        let verdict = if outcome.is_ok() { "ok" } else { "FAILED" };
        failed += i32::from(outcome.is_err());
        eprintln!(
            "test {mode}::{name} ... {verdict} ({:?})",
            started.elapsed()
        );
    }
    i32::from(failed > 0)
}
