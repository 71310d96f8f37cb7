//! Who runs the cases: four kinds of privilege, each in a process of its own; and a system that grants none.
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
    for mode in ["direct", "root", "mapped", "single", "denied"] {
        let mut command = if matches!(mode, "mapped" | "single" | "denied") {
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
        "denied" => {
            denied();
            exit(0)
        }
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
                admin: false,
                uid_map: "",
                gid_map: "",
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

/// A system that forbids user namespaces, and one that lets them be made and then denies the mounts: a filter refuses
/// what `AppArmor` would.
fn denied() {
    let isolation = Isolation::SingleId {
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
    };
    let refused = [
        (libc::SYS_unshare, libc::EPERM, "taking new namespaces"),
        (libc::SYS_mount, libc::EACCES, "making mounts private"),
    ];
    for (call, error, what) in refused {
        let isolation = isolation.clone();
        // Filters are of threads, and of what these start.
        let start = move || {
            deny(call, error);
            let (_ours, theirs) = UnixStream::pair().unwrap();
            let args = ["worker".into(), "denied".into()];
            spawn_worker(
                &isolation,
                &std::env::current_exe().unwrap(),
                &args,
                theirs.into(),
            )
            .unwrap_err()
        };
        let error = std::thread::spawn(start).join().unwrap();
        assert!(error.to_string().contains(what), "{error}");
        let hint = error.hint().unwrap_or_default();
        assert!(
            hint.contains("apparmor_restrict_unprivileged_userns"),
            "{hint}"
        );
        eprintln!("test denied::{what} ... ok");
    }
}

#[allow(unsafe_code, reason = "seccomp")]
fn deny(call: libc::c_long, error: i32) {
    let code = |code: u32, jf: u8, k: u32| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let filter = [
        code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 1, call as u32),
        code(libc::BPF_RET, 0, libc::SECCOMP_RET_ERRNO | error as u32),
        code(libc::BPF_RET, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    rustix::thread::set_no_new_privs(true).unwrap();
    // SAFETY: the kernel copies the program, which it does not write to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const program,
        )
    };
    assert_eq!(result, 0);
}

/// The worker.
#[allow(unsafe_code, reason = "the control descriptor is known by number")]
pub(crate) fn worker(args: &[String]) {
    if let Err(error) = enter_worker() {
        assert_eq!(args[0], "denied", "{error}");
        exit(1);
    }
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
