//! Users, owners and capabilities.

use std::fs;

use kiln_sandbox::{Exit, UserSpec};

use super::confinement::i386;
use super::{Privilege, Root, output, run};

pub(super) fn users(privilege: Privilege) {
    let root = Root::new();
    assert_eq!(output(root.sh("id -u; id -g; id -G")), "0\n0\n0\n");
    let other = UserSpec {
        uid: 1000,
        gid: 50,
        groups: vec![50, 7, 8],
        home: "/".into(),
    };
    let mut process = root.sh("id -u; id -g; id -G; grep -E 'Cap(Prm|Eff)' /proc/self/status; echo x > /dev/stdout; echo y > /dev/null");
    process.user = other;
    let text = output(process);
    let rights = if privilege == Privilege::Single {
        "00000000a80425fb"
    } else {
        "0000000000000000"
    };
    assert_eq!(
        text,
        format!("1000\n50\n50 7 8\nCapPrm:\t{rights}\nCapEff:\t{rights}\nx\n")
    );
}

/// What is said and shown of ids, the same for every privilege.
pub(super) fn owners(privilege: Privilege) {
    let root = Root::new();
    fs::write(
        root.path().join("etc/passwd"),
        "root:x:0:0::/:/bin/sh\nann:x:1000:50::/tmp:/bin/sh\n",
    )
    .unwrap();
    fs::write(
        root.path().join("etc/group"),
        "root:x:0:\nstaff:x:50:\nextra:x:7:ann\n",
    )
    .unwrap();
    fs::write(
        root.path().join("etc/shadow"),
        "root::1::::::\nann::1::::::\n",
    )
    .unwrap();
    let mut failed = false;
    for (script, expected) in OWNERS {
        // A user namespace makes no devices; where they are only written down it does.
        if privilege == Privilege::Mapped && script.contains("mknod") {
            continue;
        }
        let prefix = "set -e; cd /tmp; rm -rf /tmp/* 2>/dev/null; s() { stat -c '%u:%g:%a:%F' \"$@\"; }; chmod 1777 /tmp\n";
        let (exit, text) = run(root.sh(&format!("{prefix}{script}"))).unwrap();
        if (text.as_str(), exit) != (*expected, Exit::Code(0)) {
            eprintln!("{script}\n{exit:?}\n{text}expected:\n{expected}");
            failed = true;
        }
    }
    assert!(!failed);
}

/// Scripts in an empty folder, and what they print. `s` shows owner, group, mode and type.
#[rustfmt::skip]
const OWNERS: &[(&str, &str)] = &[
    ("touch f; s f; chown 33:44 f; s f; chown 5 f; s f; chgrp 6 f; s f; chown 0:0 f; s f",
     "0:0:644:regular empty file\n33:44:644:regular empty file\n5:44:644:regular empty file\n\
      5:6:644:regular empty file\n0:0:644:regular empty file\n"),
    ("mkdir d; chown 5:6 d; mv d e; touch e/g; s e e/g; cd e; s . ../e; cd ..; chmod 0 e; s e",
     "5:6:755:directory\n0:0:644:regular empty file\n5:6:755:directory\n5:6:755:directory\n5:6:0:directory\n"),
    ("touch f; chown 5 f; ln f g; mv f h; s g h; rm g; echo > g; s g; cp -p h i; s i",
     "5:0:644:regular empty file\n5:0:644:regular empty file\n0:0:644:regular file\n5:0:644:regular empty file\n"),
    ("touch f; ln -s f l; chown -h 5:6 l; s l f; stat -L -c %u l; mv l m; s m; chown 7 m; s m f; rm m; ln -s f m; s m",
     "5:6:777:symbolic link\n0:0:644:regular empty file\n0\n5:6:777:symbolic link\n5:6:777:symbolic link\n\
      7:6:644:regular empty file\n0:0:777:symbolic link\n"),
    ("mkfifo p; chown 5:6 p; s p; mv p q; s q", "5:6:644:fifo\n5:6:644:fifo\n"),
    ("mknod n c 1 3; stat -c '%F %t:%T %u' n; chown 9 n; chmod 600 n; mv n o; stat -c '%F %t:%T %u %a' o; test -c o && echo is",
     "character special file 1:3 0\ncharacter special file 1:3 9 600\nis\n"),
    ("touch f; chmod 6755 f; chown 5:6 f; s f; mkdir d; chmod 2755 d; chown 5:6 d; s d; chmod 4711 f; s f",
     "5:6:755:regular empty file\n5:6:2755:directory\n5:6:4711:regular empty file\n"),
    ("mkdir d; chown 0:50 d; chmod 2775 d; touch d/f; mkdir d/d; ln -s f d/l; echo x > d/g; s d/f d/d d/l d/g",
     "0:50:644:regular empty file\n0:50:2755:directory\n0:50:777:symbolic link\n0:50:644:regular file\n"),
    ("su ann -c 'id -u; id -g; id -G; cd /tmp; touch f; mkdir -m 750 d; ln -s f l; mkfifo p; echo x > w; echo y >> w; s() { stat -c %u:%g:%a \"$@\"; }; s f d l p w; cat w'",
     "1000\n50\n50 7\n1000:50:644\n1000:50:750\n1000:50:777\n1000:50:644\n1000:50:644\nx\ny\n"),
    ("touch f; su ann -c 'cd /tmp; touch g; chown 5 g; chgrp 7 g; chown 5 f; umask 077; touch h' 2>&1 | grep -c permitted; s f g h",
     "2\n0:0:644:regular empty file\n1000:7:644:regular empty file\n1000:50:600:regular empty file\n"),
    ("su ann -c 'su -c id root </dev/null' >/dev/null 2>&1 && echo root; su ann -c '(sh -c \"id -u; sh -c \\\"id -u\\\"\") &  wait'; id -u",
     "1000\n1000\n0\n"),
    ("cp /bin/busybox su; chmod 4755 su; su ann -c '/tmp/su root -c \"id -u\"; /tmp/su -c \"id -u; id -ru\" ann'",
     "0\n1000\n1000\n"),
    ("touch f; chown 5:6 f; tar cf a.tar f; tar tvf a.tar | cut -d' ' -f2; rm f; tar xf a.tar; s f; rm f; tar xof a.tar; s f",
     "5/6\n5:6:644:regular empty file\n0:0:644:regular empty file\n"),
    ("chown 5 /dev/stdout /proc/self/fd/1 /dev/shm; s /dev/shm; find / -xdev -user 5; find /dev/shm -user 5; chown 0 /dev/shm",
     "5:0:1777:directory\n/dev/shm\n"),
    ("mkdir -p r/bin r/tmp; cp /bin/busybox r/bin/busybox; touch r/f; chown 5 r/f; ln -s /f r/l; \
      chroot r /bin/busybox sh -c 'busybox stat -c %u /f; cd tmp; busybox stat -c %u ../f; busybox stat -Lc %u /l; busybox chown 6 /f'; s r/f",
     "5\n5\n5\n6:0:644:regular empty file\n"),
];

pub(super) fn capabilities(_: Privilege) {
    let root = Root::new();
    let status = "grep -E '^(Cap|NoNew|Seccomp:)' /proc/self/status";
    let docker = "00000000a80425fb";
    let want = |no_new: u8| {
        format!(
            "CapInh:\t0000000000000000\nCapPrm:\t{docker}\nCapEff:\t{docker}\nCapBnd:\t{docker}\n\
             CapAmb:\t0000000000000000\nNoNewPrivs:\t{no_new}\nSeccomp:\t2\n"
        )
    };
    assert_eq!(output(root.sh(status)), want(0));
    let mut process = root.sh(status);
    process.no_new_privs = true;
    assert_eq!(output(process), want(1));
    if cfg!(target_arch = "x86_64") {
        // A set-user-id program works, as under `docker build`: geteuid is the exit code.
        #[rustfmt::skip]
        let code: &[u8] = &[
            0xb8, 49, 0, 0, 0, 0xcd, 0x80, // mov eax, 49 (geteuid); int 0x80
            0x89, 0xc3,                    // mov ebx, eax
            0xb8, 1, 0, 0, 0, 0xcd, 0x80,  // mov eax, 1 (exit); int 0x80
        ];
        root.program("euid", &i386(code), 0o4755);
        for (no_new_privs, euid) in [(false, 0), (true, 9)] {
            let mut process = root.process(&["euid"]);
            process.no_new_privs = no_new_privs;
            process.user = UserSpec {
                uid: 9,
                gid: 9,
                groups: vec![9],
                home: "/".into(),
            };
            assert_eq!(run(process).unwrap().0, Exit::Code(euid));
        }
    }
}
