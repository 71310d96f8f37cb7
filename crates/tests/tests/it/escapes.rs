//! The published escapes of builders and runtimes through steps and mounts: each is tried, and must reach nothing of
//! the host. Those through files and archives are in [`escapes_files`](crate::escapes_files).

use kiln_tests::{Kiln, Outside, SECRET, Setting, in_each_setting};

in_each_setting! {
    working_folders_lead_nowhere
    removed_mount_points_lead_nowhere
    mount_sources_stay_in_their_tree
    names_of_caches_are_no_paths
    mount_points_are_raced
    rights_do_not_come_with_an_image
    proc_and_sys_are_no_way_out
    nothing_is_handed_down
    own_binary_is_not_written
}

/// Reads the secret by way of each folder above the working folder.
fn climb(outside: &Outside) -> String {
    let path = outside.path();
    format!(
        "up=.; for i in 1 2 3 4 5 6 7 8; do cat $up/secret $up{path}/secret; ls $up/keep $up{path}; \
         touch $up{path}/written; up=$up/..; done 2>/dev/null; true"
    )
}

/// CVE-2024-21626: a working folder that is an open folder of the host.
fn working_folders_lead_nowhere(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let outside = Outside::new(kiln);
    let climb = climb(&outside);
    let mut folders: Vec<_> = (3..14).map(|fd| format!("/proc/self/fd/{fd}")).collect();
    folders.extend(["/proc/self/cwd", "/proc/1/root", "/proc/thread-self/fd/7"].map(str::to_owned));
    for folder in folders {
        let plain = format!("FROM busybox\nWORKDIR {folder}\nRUN {climb}\n");
        let link = format!("FROM busybox\nRUN ln -s {folder} /w\nWORKDIR /w\nRUN {climb}\n");
        for dockerfile in [plain, link] {
            let context = kiln.context(&[("Dockerfile", &dockerfile)]);
            let build = kiln.build(&[&context]);
            build.silent_about(&[SECRET, "stub", "panicked"]);
        }
        let run = kiln.run(&["run", "--rm", "-w", &folder, "busybox", "sh", "-c", &climb]);
        run.silent_about(&[SECRET, "stub", "panicked"]);
    }
    outside.untouched();
}

/// CVE-2024-23652: the folder with a mount point becomes a link, and what was made for the mount is removed through it.
fn removed_mount_points_lead_nowhere(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let outside = Outside::new(kiln);
    let path = outside.path();
    let dockerfile = format!(
        "FROM busybox\n\
         RUN --mount=type=tmpfs,target=/a/keep/d mv /a /b && ln -s {path} /a\n\
         RUN --mount=type=bind,from=busybox,source=/etc/passwd,target=/c/secret mv /c /d && ln -s {path} /c\n\
         RUN --mount=type=tmpfs,target=/e/keep --mount=type=tmpfs,target=/e/keep/d mv /e /f && ln -s ../../../../../../../..{path} /e\n\
         RUN for link in /a /c /e; do test -h $link && echo link $link; done\n"
    );
    let context = kiln.context(&[("Dockerfile", &dockerfile)]);
    kiln.build(&[&context])
        .ok()
        .says(&["link /a", "link /c", "link /e"]);
    outside.untouched();
}

/// CVE-2024-1753, and the `source` of CVE-2024-9675: links and `..` in the tree that a mount comes from.
fn mount_sources_stay_in_their_tree(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let outside = Outside::new(kiln);
    let path = outside.path();
    let up = "../../../../../../../..";
    let evil = format!(
        "FROM busybox AS evil\nRUN ln -s / /top; ln -s {path} /out; ln -s {up}{path} /rel; ln -s /proc/self/root{path} /magic\n"
    );
    let sources = [
        "/out".to_owned(),
        "/rel".to_owned(),
        "/magic".to_owned(),
        format!("/top{path}"),
        format!("{up}{path}"),
        path.to_owned(),
    ];
    for source in &sources {
        for mount in ["type=bind,rw", "type=cache", "type=cache,id=x"] {
            let dockerfile = format!(
                "{evil}FROM busybox\nRUN --mount={mount},from=evil,source={source},target=/m \
                 cat /m/secret /m/keep/stub; touch /m/written; true\n"
            );
            let context = kiln.context(&[("Dockerfile", &dockerfile)]);
            let build = kiln.build(&[&context]);
            build.silent_about(&[SECRET, "kept", "panicked"]);
        }
    }
    for source in ["out", "rel", &format!("top{path}"), &format!("{up}{path}")] {
        let dockerfile = format!(
            "FROM busybox\nRUN --mount=type=bind,rw,source={source},target=/m cat /m/secret /m; touch /m/written; true\n"
        );
        let context = kiln.context(&[("Dockerfile", &dockerfile)]);
        for (link, to) in [("out", path), ("rel", &format!("{up}{path}")), ("top", "/")] {
            std::os::unix::fs::symlink(to, format!("{context}/{link}")).expect("own folder");
        }
        let build = kiln.build(&[&context]);
        build.silent_about(&[SECRET, "panicked"]);
    }
    outside.untouched();
}

/// CVE-2024-9675: the name of a cache as a path.
fn names_of_caches_are_no_paths(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let outside = Outside::new(kiln);
    let path = outside.path();
    for id in [
        "..".to_owned(),
        "/".to_owned(),
        path.to_owned(),
        format!("../../../../../../../..{path}"),
        format!("a/../../../../../../../../..{path}"),
    ] {
        let dockerfile = format!(
            "FROM busybox\nRUN --mount=type=cache,id={id},target=/c ls -A /c; cat /c/secret; touch /c/written; test -e /c/written && echo made\n"
        );
        let context = kiln.context(&[("Dockerfile", &dockerfile)]);
        let build = kiln.build(&["--no-cache", &context]).ok().says(&["made"]);
        build.silent_about(&[SECRET, "stub", "layers"]);
    }
    outside.untouched();
}

/// CVE-2024-23651: one build swaps a folder of a shared cache for a link, while others make mount points below it.
fn mount_points_are_raced(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let outside = Outside::new(kiln);
    let path = outside.path();
    let swapping = kiln.context(&[(
        "Dockerfile",
        &format!(
            "FROM busybox\nRUN --mount=type=cache,id=raced,target=/c cd /c; rm -rf *; \
             while test ! -e /c/over; do mkdir x; mv x y; ln -s {path} x; mv y z; rm x; rm -rf z; done; true\n"
        ),
    )]);
    let mounting = kiln.context(&[(
        "Dockerfile",
        "FROM busybox\nARG N\nRUN --mount=type=cache,id=raced,target=/c --mount=type=tmpfs,target=/c/x/new/d \
         --mount=type=bind,from=busybox,source=/etc/passwd,target=/c/x/keep/file cat /c/x/secret; true\n",
    )]);
    // Judged afterwards: a failure must not leave the swapping build running.
    let builds = std::thread::scope(|scope| {
        let swapper = scope.spawn(|| kiln.build(&["--no-cache", &swapping]));
        let builds: Vec<_> = (0..12)
            .map(|number| kiln.build(&["--build-arg", &format!("N={number}"), &mounting]))
            .collect();
        let end = "FROM busybox\nRUN --mount=type=cache,id=raced,target=/c touch /c/over\n";
        kiln.build(&["--no-cache", &kiln.context(&[("Dockerfile", end)])]);
        swapper.join().expect("it ends").ok();
        builds
    });
    for build in builds {
        build.silent_about(&[SECRET, "panicked"]);
    }
    outside.untouched();
}

/// CVE-2024-23653: what runs with more rights must be allowed by who builds, also when the image asks for it.
fn rights_do_not_come_with_an_image(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[(
        "Dockerfile",
        "FROM busybox\nONBUILD RUN --security=insecure mkdir -p /m && mount -t tmpfs x /m && echo moun''ted\n",
    )]);
    let name = format!("onbuild-{setting:?}").to_lowercase();
    kiln.build(&["-t", &name, &context]).ok();
    let context = kiln.context(&[("Dockerfile", &format!("FROM {name}\n"))]);
    kiln.build(&[&context])
        .failed()
        .says(&["security.insecure is not allowed"])
        .silent_about(&["mounted"]);
    kiln.build(&["--allow", "security.insecure", &context])
        .ok()
        .says(&["mounted"]);
}

/// What must fail in a step, each with the thing that it would do to the host. Nothing here would do harm if it worked.
const ATTEMPTS: [&str; 24] = [
    "echo core > /proc/sys/kernel/core_pattern",
    "echo 1 > /proc/sys/kernel/sysrq",
    "echo h > /proc/sysrq-trigger",
    "echo /x > /proc/sys/kernel/modprobe",
    "echo 0 > /proc/irq/default_smp_affinity",
    "echo /x > /sys/kernel/uevent_helper",
    "mkdir /sys/fs/cgroup/escape",
    "mkdir /sys/fs/cgroup/memory/escape",
    "mount -t tmpfs x /mnt",
    "mount -t proc x /mnt",
    "mount --bind / /mnt",
    "mount -o remount,rw,bind /proc/sys",
    "umount /proc/sys",
    "umount /sys",
    "unshare -m true",
    "unshare -U true",
    "nsenter -t 1 -m true",
    "test -s /proc/kcore",
    "test -s /proc/keys",
    "dmesg",
    "! date -s @$(date +%s) 2>&1 | grep -q permitted",
    "hostname escaped",
    "ip link set lo mtu 65535",
    "mknod /tmp/disk b $(awk 'NR > 2 { print $1, $2; exit }' /proc/partitions) && dd if=/tmp/disk count=1 | grep -q .",
];

/// Masked and read-only paths, and the calls that would undo them.
fn proc_and_sys_are_no_way_out(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let outside = Outside::new(kiln);
    let attempts = ATTEMPTS.map(|it| format!("({it}) >/dev/null 2>&1 && echo \"WORKED: {it}\"; "));
    let path = outside.path();
    let script = format!(
        "mkdir -p /mnt; {} \
         for p in /proc/[0-9]* /proc/self/task/*; do for d in root cwd fd/0 fd/1 fd/2 fd/3 fd/4; do \
         cat $p/$d{path}/secret $p/$d/secret; done; done 2>/dev/null; \
         ls /proc | grep -c '^[0-9]' | sed 's/^/processes: /'",
        attempts.concat()
    );
    let context = kiln.context(&[
        ("Dockerfile", "FROM busybox\nCOPY try /\nRUN sh /try\n"),
        ("try", &script),
    ]);
    let build = kiln.build(&[&context]).ok();
    let processes = build
        .stderr
        .split("processes: ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    assert!(
        processes.is_some_and(|it| it.parse::<u32>().is_ok_and(|it| it < 6)),
        "{build}"
    );
    build.silent_about(&["WORKED", SECRET]);
    let volume = format!("{context}/try:/try:ro");
    kiln.run(&["run", "--rm", "-v", &volume, "busybox", "sh", "/try"])
        .ok()
        .silent_about(&["WORKED", SECRET]);
    outside.untouched();
}

/// Open files and the environment of who builds.
fn nothing_is_handed_down(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    // Nothing that forks comes before the shell has looked at itself: it holds pipes while it starts their ends.
    let dockerfile = "FROM busybox\nRUN [\"env\"]\nRUN for fd in /proc/$$/fd/*; do [ -e $fd ] && echo open: ${fd##*/}; done; \
                      readlink /proc/self/fd/0; wc -c < /proc/self/fd/0; cat /proc/1/environ | tr '\\0' '\\n'; umask\n";
    let context = kiln.context(&[("Dockerfile", dockerfile)]);
    let args = ["build", "--progress", "plain", "--no-cache", &context];
    // A file that is open here without close-on-exec, and a variable.
    let line = "exec 9< \"$1\"; shift; exec \"$@\"";
    let secret = format!("{context}/Dockerfile");
    let mut command = kiln.wrapped(&["sh", "-c", line, "sh", &secret], &args);
    let output = command
        .env("OF_THE_HOST", SECRET)
        .output()
        .expect("kiln starts");
    let build = kiln_tests::Outcome::new("build with an open file".to_owned(), &output).ok();
    let build = build.says(&["/dev/null", "0022"]);
    let open = build.stderr.lines().filter_map(|line| {
        let (_, number) = line.split_once(" open: ")?;
        number.parse::<u32>().ok()
    });
    assert_eq!(open.collect::<Vec<_>>(), [0, 1, 2], "{build}");
    let build = build.silent_about(&[SECRET, "OF_THE_HOST", "KILN_ROOT"]);
    let lines = build
        .stderr
        .lines()
        .filter_map(|line| line.split(' ').nth(2));
    let env: Vec<_> = lines.filter(|word| word.contains("=/")).take(2).collect();
    let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    assert_eq!(env, [path, "HOME=/root"], "{build}");
}

/// CVE-2019-5736: a program of the image starts the binary that started it, and a child of that one writes to it.
fn own_binary_is_not_written(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["slim"]) else {
        return;
    };
    let before = std::fs::read(kiln.binary()).expect("own file");
    // Kiln starts git for such a context.
    let git = "#!/bin/sh\n{ ls -l /proc/1/exe; echo x > /proc/1/exe; dd of=/proc/1/exe conv=notrunc < /etc/passwd; exec 8< /proc/1/exe; \
               kill -9 1; echo x > /proc/self/fd/8; mount -o remount,rw /proc/1/exe; } >&2; exit 1\n";
    for start in [
        "[\"/proc/self/exe\", \"build\", \"https://localhost:1/x.git\"]",
        "[\"/script\", \"https://localhost:1/x.git\"]",
    ] {
        let dockerfile = format!(
            "FROM slim:bookworm\nCOPY --chmod=755 git /usr/local/bin/\nCOPY --chmod=755 script /\nRUN {start}\n"
        );
        let context = kiln.context(&[
            ("Dockerfile", &dockerfile),
            ("git", git),
            ("script", "#!/proc/self/exe build\n"),
        ]);
        let build = kiln.build(&["--no-cache", &context]);
        assert_eq!(
            std::fs::read(kiln.binary()).expect("own file"),
            before,
            "{build}"
        );
        if start.starts_with("[\"/proc") {
            build.failed().says(&["Read-only file system"]);
        }
    }
}
