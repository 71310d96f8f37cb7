//! What is mounted, and the network.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use kiln_sandbox::{Cancel, Exit, MountSource, Network, RootSource, SandboxMount, spawn};

use super::{Privilege, Root, chain, output, run};

/// Everything that a container has mounted, and nothing of the worker's.
const MOUNTS: &str = "/ /dev /dev/full /dev/mqueue /dev/null /dev/pts /dev/random /dev/shm /dev/tty /dev/urandom \
                      /dev/zero /proc /sys";

pub(super) fn proc_and_sys(privilege: Privilege) {
    let root = Root::new();
    let mounts = output(
        root.sh("cut -d' ' -f5 /proc/self/mountinfo | sort | grep -v '/proc/' | grep -v '/sys/'"),
    );
    assert_eq!(
        mounts.split_whitespace().collect::<Vec<_>>().join(" "),
        MOUNTS.replace("  ", "")
    );
    if privilege == Privilege::Root {
        assert_eq!(output(root.sh("grep -c sysfs /proc/self/mountinfo")), "1\n");
    }
    let processes = output(root.sh("ls /proc | grep -E '^[0-9]+$' | wc -l"));
    assert!(processes.trim().parse::<u32>().unwrap() <= 4, "{processes}");
    // What is hidden is empty, what must not be written is read-only.
    let hidden = "cat /proc/kcore /proc/timer_list /proc/keys /proc/interrupts 2>/dev/null | wc -c; \
                  ls -A /sys/firmware | wc -l; ls -A /proc/acpi 2>/dev/null | wc -l";
    assert_eq!(output(root.sh(hidden)), "0\n0\n0\n");
    for (place, command) in [
        ("/proc/sys/kernel/panic", "echo 1 > /proc/sys/kernel/panic"),
        // Not every kernel has it.
        ("/proc/sysrq-trigger", "echo h > /proc/sysrq-trigger"),
        ("/sys", "mkdir /sys/x"),
    ] {
        if !Path::new(place).exists() {
            continue;
        }
        let (exit, text) = run(root.sh(command)).unwrap();
        assert!(
            !exit.success() && text.contains("Read-only file system"),
            "{command}: {text}"
        );
    }
    assert!(!output(root.sh("ls /sys/class")).is_empty());
}

pub(super) fn devices(privilege: Privilege) {
    let root = Root::new();
    let text = output(root.sh(
        "ls /dev | tr '\\n' ' '; echo; for d in null zero full random urandom tty; do stat -c '%n %F %t:%T %a' /dev/$d; done; \
         echo x > /dev/null && cat /dev/null && dd if=/dev/zero bs=4 count=1 2>/dev/null | wc -c; \
         dd if=/dev/urandom bs=4 count=1 2>/dev/null | wc -c; echo y > /dev/full || echo full; \
         stat -c '%a' /dev/shm /dev /dev/pts/ptmx; mount | grep -E ' /dev' | cut -d' ' -f3,5 | sort | tr '\\n' ' '; \
         touch /dev/shm/f && ls -d /dev/mqueue; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2",
    ));
    assert!(
        text.contains(
            "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero"
        ),
        "{text}"
    );
    assert!(
        text.contains("/dev/null character special file 1:3 666"),
        "{text}"
    );
    assert!(
        text.contains("/dev/tty character special file 5:0 666"),
        "{text}"
    );
    assert!(text.contains("\n4\n4\n"), "{text}");
    assert!(text.contains("full\n1777\n755\n666\n"), "{text}");
    for mount in [
        "/dev tmpfs",
        "/dev/mqueue mqueue",
        "/dev/pts devpts",
        "/dev/shm tmpfs",
    ] {
        assert!(text.contains(mount), "{text}");
    }
    assert!(text.ends_with("/dev/mqueue\n65536\n"), "{text}");
    if privilege == Privilege::Root {
        // Nodes can be made, but nowhere be opened: the image must not reach the host's disks.
        let (_, text) = run(root.sh(
            "for d in /tmp /dev /dev/shm; do mknod $d/disk c 1 5 && head -c1 $d/disk; echo $?; done; chmod 600 /dev/null",
        )).unwrap();
        assert_eq!(text.matches("Permission denied").count(), 3, "{text}");
        let mode = fs::metadata("/dev/null").unwrap();
        assert_eq!(mode.mode() & 0o777, 0o666, "the host's device was changed");
    }
}

pub(super) fn mounts(privilege: Privilege) {
    let root = Root::new();
    let host = tempfile::tempdir().unwrap();
    fs::create_dir(host.path().join("sub")).unwrap();
    fs::write(host.path().join("sub/file"), "from the host").unwrap();
    let bind = |path: &str, dest: &str, read_only| SandboxMount {
        dest: dest.into(),
        source: MountSource::Bind {
            root: RootSource::Folder(host.path()),
            path: path.into(),
        },
        read_only,
    };
    let mut process = root.sh(
        "cat /etc/hosts /b/file /one; echo new > /b/made; stat -c %a:%u /run/secret /t; \
         echo no > /etc/hosts; echo no > /ro/sub/file; df -k /t | tail -1 | tr -s ' ' | cut -d' ' -f2; touch /t/x && ls /t; mount | grep -c /t",
    );
    let secret = MountSource::File {
        content: b"s".to_vec(),
        mode: 0o400,
        uid: 0,
        gid: 0,
    };
    process.mounts = vec![
        SandboxMount::file("/etc/hosts", "hosts\n"),
        bind("sub", "/b", false),
        bind("/sub/file", "/one", true),
        bind("", "/ro", true),
        SandboxMount {
            dest: "/run/secret".into(),
            source: secret,
            read_only: true,
        },
        SandboxMount {
            dest: "/t".into(),
            source: MountSource::Tmpfs {
                size: Some(1 << 20),
                mode: 0o1777,
            },
            read_only: false,
        },
        // In a mount that was made before.
        SandboxMount::file("/t/in/file", "x"),
    ];
    let (_, text) = run(process).unwrap();
    assert!(
        text.starts_with("hosts\nfrom the hostfrom the host400:0\n1777:0\n"),
        "{text}"
    );
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    assert!(text.contains("1024\nin\nx\n"), "{text}");
    assert_eq!(fs::read(host.path().join("sub/made")).unwrap(), b"new\n");
    // Nothing is mounted for anybody else, and only empty mount points are left.
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(root.path().to_str().unwrap()), "{mounts}");
    assert_eq!(fs::read(root.path().join("etc/hosts")).unwrap(), b"");
    assert_eq!(fs::read_dir(root.path().join("t")).unwrap().count(), 0);

    let mut process = root.sh("true");
    process.mounts = vec![bind("none", "/x", true)];
    let text = chain(&run(process).unwrap_err());
    assert_eq!(
        text,
        "cannot mount /x: bind of none: No such file or directory (os error 2)"
    );
    let mut process = root.sh("true");
    process.mounts = vec![bind("sub", "/etc/hosts", true)];
    let text = chain(&run(process).unwrap_err());
    assert!(
        text.contains("a folder cannot be mounted on a file"),
        "{text}"
    );
    // A source cannot be reached through a link that leads out of its tree.
    symlink("/etc/passwd", host.path().join("out")).unwrap();
    let mut process = root.sh("true");
    process.mounts = vec![bind("out", "/x", true)];
    assert!(run(process).is_err());
    let _ = privilege;
}

pub(super) fn stubs(_: Privilege) {
    let root = Root::new();
    fs::create_dir_all(root.path().join("var")).unwrap();
    fs::create_dir_all(root.path().join("run")).unwrap();
    symlink("/run", root.path().join("var/run")).unwrap();
    symlink(
        "../run/resolvconf/resolv.conf",
        root.path().join("etc/resolv.conf"),
    )
    .unwrap();
    let mut process = root.sh("cat /etc/resolv.conf");
    process.cwd = "/made/for/cwd".into();
    process.mounts = vec![
        SandboxMount::file("/etc/resolv.conf", "nameserver"),
        SandboxMount {
            dest: "/var/run/a/b".into(),
            source: MountSource::Tmpfs {
                size: None,
                mode: 0o755,
            },
            read_only: false,
        },
        SandboxMount::file("/var/run/a/b/c", ""),
    ];
    let cancel = Cancel::new().unwrap();
    let running = spawn(&process).unwrap();
    assert_eq!(running.wait(&cancel).unwrap(), Exit::Code(0));
    let made: Vec<String> = running.stubs().iter().map(ToString::to_string).collect();
    assert_eq!(
        made,
        [
            "/proc",
            "/sys",
            "/dev",
            "/run/resolvconf",
            "/run/resolvconf/resolv.conf",
            "/run/a",
            "/run/a/b"
        ]
    );
    assert!(root.path().join("made/for/cwd").is_dir());
    drop(running);
    assert!(spawn(&process).unwrap().stubs().is_empty());
}

pub(super) fn hostile_roots(_: Privilege) {
    let outside = tempfile::tempdir().unwrap();
    let out = outside.path().join("out");
    let root = Root::new();
    symlink(&out, root.path().join("etc/resolv.conf")).unwrap();
    symlink(outside.path(), root.path().join("mnt")).unwrap();
    symlink("../../../../../../..", root.path().join("up")).unwrap();
    symlink(outside.path(), root.path().join("dev")).unwrap();
    symlink(outside.path(), root.path().join("proc")).unwrap();
    let mut process =
        root.sh("cat /etc/resolv.conf; mount | grep -c ' /proc '; ls /dev | grep null");
    process.cwd = "/mnt/cwd".into();
    process.mounts = vec![
        SandboxMount::file("/etc/resolv.conf", "inside\n"),
        SandboxMount::file("/mnt/x/y", "z"),
        SandboxMount::file("/up/up/file", "z"),
        SandboxMount::file("../../../climb", "z"),
    ];
    let text = run(process);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0, "{text:?}");
    assert!(root.path().join("file").exists() && root.path().join("climb").exists());
    // The links lead to places inside; a root like this one works, or is refused, but nothing gets out.
    if let Ok((_, text)) = text {
        assert!(text.starts_with("inside\n"), "{text}");
    }
}

pub(super) fn read_only_binds(privilege: Privilege) {
    // Mounts below a bind are read-only too.
    let host = tempfile::tempdir().unwrap();
    let sub = host.path().join("sub");
    fs::create_dir(&sub).unwrap();
    if privilege == Privilege::Root
        && rustix::mount::mount(
            "tmpfs",
            &sub,
            "tmpfs",
            rustix::mount::MountFlags::empty(),
            None,
        )
        .is_err()
    {
        eprintln!("skipped: cannot mount a tmpfs");
        return;
    }
    let root = Root::new();
    let mut process = root.sh("touch /b/x; touch /b/sub/x; mount | grep -c ' /b'");
    process.mounts = vec![SandboxMount {
        dest: "/b".into(),
        source: MountSource::Bind {
            root: RootSource::Folder(host.path()),
            path: PathBuf::new(),
        },
        read_only: true,
    }];
    let (_, text) = run(process).unwrap();
    if privilege == Privilege::Root {
        rustix::mount::unmount(&sub, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(text.ends_with("2\n"), "{text}");
    }
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
}

pub(super) fn read_only_root(_: Privilege) {
    let root = Root::new();
    let mut process = root.sh("touch /f /tmp/f /dev/shm/f; ls /dev/shm");
    process.read_only_root = true;
    let (_, text) = run(process).unwrap();
    assert_eq!(text.matches("Read-only file system").count(), 2, "{text}");
    assert!(text.ends_with("f\n"), "{text}");
}

pub(super) fn network(_: Privilege) {
    let root = Root::new();
    let mut process = root.sh("ls /proc/sys/net/ipv4/conf | tr '\\n' ' '; ip addr show lo | grep -c 127.0.0.1; ping -c1 127.0.0.1 | grep -c '1 packets received'");
    process.network = Network::None;
    let (_, text) = run(process).unwrap();
    assert!(text.starts_with("all default lo "), "{text}");
    assert!(text.contains("1\n"), "{text}");
    let host = fs::read_dir("/sys/class/net").unwrap().count();
    assert_eq!(
        output(root.sh("ls /sys/class/net | grep -c .")),
        format!("{host}\n")
    );
}

pub(super) fn detached_root(_: Privilege) {
    use rustix::mount::{OpenTreeFlags, open_tree};
    let root = Root::new();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let detached = |path: &Path| open_tree(rustix::fs::CWD, path, flags).unwrap();
    let (top, other) = (detached(root.path()), detached(root.path()));
    let mut process = root.sh("ls /other; echo x > /tmp/made");
    process.root = RootSource::Mount(top.as_fd());
    process.mounts = vec![SandboxMount {
        dest: "/other".into(),
        source: MountSource::Bind {
            root: RootSource::Mount(other.as_fd()),
            path: "bin/../etc".into(),
        },
        read_only: true,
    }];
    fs::write(root.path().join("etc/marker"), "").unwrap();
    assert_eq!(output(process), "marker\n");
    assert!(root.path().join("tmp/made").exists());
    let passwd =
        kiln_sandbox::read_in_root(RootSource::Mount(top.as_fd()), Path::new("/etc/marker"), 10)
            .unwrap();
    assert_eq!(passwd, Some(Vec::new()));
}
