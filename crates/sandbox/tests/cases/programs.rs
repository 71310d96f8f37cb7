//! Programs: how they start, what they find, how they end.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use kiln_sandbox::{Cancel, Exit, SandboxError, Stdio, Ulimit, UlimitKind, UserSpec, spawn};

use super::{Privilege, Root, chain, children, output, run};

pub(super) fn exit_codes(_: Privilege) {
    let root = Root::new();
    for code in [0, 3, 255] {
        assert_eq!(
            run(root.sh(&format!("exit {code}"))).unwrap().0,
            Exit::Code(code)
        );
    }
    assert_eq!(
        run(root.sh("echo hi; echo there >&2")).unwrap().1,
        "hi\nthere\n"
    );
    // As process 1 it cannot kill itself by a signal, but one of its children can.
    assert_eq!(
        run(root.sh("sh -c 'kill -9 $$'; exit $?")).unwrap().0,
        Exit::Code(137)
    );
    assert_eq!(
        run(root.sh("cat; ls -l /proc/self/fd/0 | grep -q /dev/null")).unwrap(),
        (Exit::Code(0), String::new())
    );
}

pub(super) fn exec_errors(_: Privilege) {
    let root = Root::new();
    fs::write(root.path().join("work/plain"), "text").unwrap();
    root.program("script", b"#!/no/interpreter\n", 0o755);
    root.program("garbage", b"\x01\x02", 0o755);
    let cases = [
        (
            "nope",
            127,
            "exec: \"nope\": executable file not found in $PATH",
        ),
        (
            "/bin/nope",
            127,
            "exec: \"/bin/nope\": stat /bin/nope: no such file or directory",
        ),
        (
            "/bin/sh/x",
            127,
            "exec: \"/bin/sh/x\": stat /bin/sh/x: no such file or directory",
        ),
        (
            "/work/plain",
            126,
            "exec: \"/work/plain\": permission denied",
        ),
        ("/work", 126, "exec: \"/work\": permission denied"),
        (
            "script",
            255,
            "exec /bin/script: no such file or directory (its interpreter is missing)",
        ),
        ("garbage", 255, "exec /bin/garbage: exec format error"),
    ];
    for (program, want, text) in cases {
        match run(root.process(&[program])) {
            Err(SandboxError::Exec { message, code }) => {
                assert_eq!((message.as_str(), code), (text, want));
            }
            other => panic!("{program}: {other:?}"),
        }
    }
    assert_eq!(output(root.process(&["sh", "-c", "echo found"])), "found\n");
    let mut process = root.process(&["sh"]);
    process.env.clear();
    assert!(matches!(
        run(process),
        Err(SandboxError::Exec { code: 127, .. })
    ));
    assert!(matches!(
        run(root.process(&[])),
        Err(SandboxError::Invalid(_))
    ));
    assert!(matches!(
        run(root.process(&["a\0b"])),
        Err(SandboxError::Invalid(_))
    ));
}

pub(super) fn surroundings(_: Privilege) {
    let root = Root::new();
    let mut process =
        root.sh("pwd; hostname; umask; echo $A; echo $$; cat /proc/1/comm; env | grep -c .");
    process.env.push("A=b c".into());
    process.cwd = "/work/new/sub".into();
    process.hostname = "box".into();
    // PATH and A, and what the shell adds (PWD, SHLVL).
    assert_eq!(output(process), "/work/new/sub\nbox\n0022\nb c\n1\nsh\n4\n");
    assert_ne!(rustix::system::uname().nodename().to_bytes(), b"box");
    {
        let mut process = root.sh("stat -c %u:%g:%a /work/mine /work/mine/deep; touch f");
        process.cwd = "/work/mine/deep".into();
        process.user = UserSpec {
            uid: 33,
            gid: 34,
            groups: vec![34],
            home: "/".into(),
        };
        assert_eq!(output(process), "33:34:755\n33:34:755\n");
    }
    let mut process = root.sh("true");
    process.cwd = "/bin/sh".into();
    assert!(chain(&run(process).unwrap_err()).contains("working folder /bin/sh"));
    // A working folder through a link of /proc would lead to whatever is open.
    let mut process = root.sh("ls");
    process.cwd = "/proc/self/fd/3".into();
    assert!(chain(&run(process).unwrap_err()).contains("working folder"));
    // Signals that this process ignores (Rust ignores SIGPIPE) are not ignored in there.
    assert_eq!(
        output(root.process(&["grep", "SigIgn", "/proc/self/status"])),
        "SigIgn:\t0000000000000000\n"
    );
}

pub(super) fn background_dies(_: Privilege) {
    let root = Root::new();
    let started = Instant::now();
    // The pipe closes only when the background process is dead too.
    let (exit, text) = run(root.sh("sleep 1000 & (sleep 1000; echo never) & echo done")).unwrap();
    assert_eq!((exit, text.as_str()), (Exit::Code(0), "done\n"));
    assert!(started.elapsed() < Duration::from_secs(5));
}

pub(super) fn cancel_and_kill(_: Privilege) {
    let root = Root::new();
    let process = root.sh("trap '' TERM INT; sleep 1000 & sleep 1000");
    let cancel = Cancel::new().unwrap();
    let running = spawn(&process).unwrap();
    let started = Instant::now();
    let other = cancel.clone();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(50));
        other.cancel();
    });
    assert_eq!(running.wait(&cancel).unwrap(), Exit::Signal(9));
    assert_eq!(running.wait(&cancel).unwrap().code(), 137);
    assert!(started.elapsed() < Duration::from_secs(5));
    thread.join().unwrap();
    assert_eq!(children(), 0, "processes are left");

    let running = spawn(&process).unwrap();
    assert_eq!(children(), 1);
    drop(running);
    assert_eq!(children(), 0);

    // A signal that the program handles; started by another thread, which ends before.
    let script = "trap 'exit 7' TERM; while :; do sleep 0.02; done";
    let running = std::thread::scope(|scope| {
        scope
            .spawn(|| spawn(&root.sh(script)).unwrap())
            .join()
            .unwrap()
    });
    std::thread::sleep(Duration::from_millis(100));
    running.signal(15).unwrap();
    assert_eq!(
        running.wait(&Cancel::new().unwrap()).unwrap(),
        Exit::Code(7)
    );
}

pub(super) fn limits(_: Privilege) {
    let root = Root::new();
    let mut process = root.sh("ulimit -n; ulimit -Hn; ulimit -c; cat /proc/self/oom_score_adj");
    process.ulimits = vec![
        Ulimit {
            kind: UlimitKind::from_name("nofile").unwrap(),
            soft: 100,
            hard: 200,
        },
        Ulimit {
            kind: UlimitKind::from_name("core").unwrap(),
            soft: 0,
            hard: 0,
        },
    ];
    process.oom_score_adj = Some(500);
    process.shm_size = 1 << 20;
    assert_eq!(output(process), "100\n200\n0\n500\n");
    assert!(UlimitKind::from_name("nothing").is_none());
}

pub(super) fn terminal(_: Privilege) {
    let root = Root::new();
    let mut process = root.sh("stty size; tty; echo to-tty > /dev/tty; read line; echo \"got $line\"; stty size; ls -l /dev/console; mount | grep -c console");
    process.stdio = Stdio::Terminal {
        rows: 30,
        cols: 100,
    };
    let running = spawn(&process).unwrap();
    let outer: OwnedFd = running.terminal().unwrap().try_clone_to_owned().unwrap();
    running
        .resize(40, 120)
        .unwrap_or_else(|error| panic!("{error}"));
    rustix::io::write(&outer, b"input\n").unwrap();
    let mut text = Vec::new();
    // Reading ends with EIO when the inner end is closed.
    let _ = fs::File::from(outer).read_to_end(&mut text);
    let text = String::from_utf8(text).unwrap().replace('\r', "");
    assert_eq!(
        running.wait(&Cancel::new().unwrap()).unwrap(),
        Exit::Code(0)
    );
    for part in [
        "/dev/pts/0\n",
        "to-tty\n",
        "got input\n",
        "40 120\n",
        " /dev/console\n",
    ] {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
}

pub(super) fn with_init(_: Privilege) {
    let root = Root::new();
    // What process 1 is made of is nobody's business, and an orphan is collected.
    let script = "echo $$ $(cat /proc/1/comm); (sleep 0.1 &); sleep 0.3; \
                  cat /proc/1/environ >/dev/null 2>&1 || echo closed; ls -l /proc/1/exe 2>&1 | grep -c denied; \
                  grep -l '(sleep) Z' /proc/[0-9]*/stat; exit 7";
    let mut process = root.sh(script);
    process.init = true;
    let (exit, text) = run(process).unwrap();
    assert_eq!((exit, &*text), (Exit::Code(7), "2 init\nclosed\n1\n"));
    let mut missing = root.process(&["/no/such"]);
    missing.init = true;
    assert!(matches!(
        run(missing),
        Err(SandboxError::Exec { code: 127, .. })
    ));
    // A shell does not handle SIGTERM: as process 1 it would not even get it.
    for (script, expected) in [
        ("echo up; sleep 9", Exit::Code(143)),
        (
            "trap 'exit 9' TERM; echo up; while :; do sleep 0.02; done",
            Exit::Code(9),
        ),
    ] {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let mut process = root.sh(script);
        process.init = true;
        process.stdio = Stdio::Files {
            stdin: None,
            stdout: Some(write.as_fd()),
            stderr: None,
        };
        let running = spawn(&process).unwrap();
        fs::File::from(read).read_exact(&mut [0; 3]).unwrap();
        running.signal(15).unwrap();
        let exit = running.wait(&Cancel::new().unwrap()).unwrap();
        assert_eq!(exit, expected, "{script}");
    }
}
