//! Containers: made, started, looked into, copied out of and into, removed.

use std::path::Path;
use std::process::{Command, Stdio};

use kiln_tests::{Kiln, OWN_TERMINAL, Outside, SECRET, Setting, Terminal, in_each_setting};

in_each_setting! {
    builder_pattern
    kept_between_runs
    files_go_both_ways
    hostile_containers
    run_options
    rights
    labels_and_images_of_containers
    ended_from_elsewhere
    exit_codes
    signals
    removed_while_it_runs
    process_one
    terminals
}

fn fresh(setting: Setting) -> Option<Kiln> {
    Kiln::fresh(setting, &["busybox"])
}

/// A script as it was written before there were stages: build, copy the result out of a container, build with it.
fn builder_pattern(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    let context = kiln.context(&[
        (
            "Dockerfile.build",
            "FROM busybox\nWORKDIR /src\nRUN echo compiled > app && chmod 750 app\n",
        ),
        (
            "Dockerfile",
            "FROM busybox\nCOPY app /app\nCMD [\"cat\", \"/app\"]\n",
        ),
    ]);
    kiln.build(&[
        "-t",
        "old:build",
        &context,
        "-f",
        &format!("{context}/Dockerfile.build"),
    ])
    .ok();
    let id = kiln
        .run(&["container", "create", "--name", "extract", "old:build"])
        .ok()
        .stdout;
    assert!(
        id.len() == 65 && id.trim().bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{id}"
    );
    kiln.run(&[
        "container",
        "cp",
        "extract:/src/app",
        &format!("{context}/app"),
    ])
    .ok();
    let mode = std::fs::metadata(format!("{context}/app"))
        .expect("copied")
        .permissions();
    assert_eq!(
        std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
        0o750
    );
    assert_eq!(
        kiln.run(&["container", "rm", "-f", "extract"]).ok().stdout,
        "extract\n"
    );
    kiln.run(&["rmi", "old:build"]).ok();
    kiln.build(&["-t", "old:latest", &context]).ok();
    assert_eq!(
        kiln.run(&["run", "--rm", "old:latest"]).ok().stdout,
        "compiled\n"
    );
    assert_eq!(kiln.run(&["ps", "-aq"]).ok().stdout, "");
    kiln.leaves_nothing();
}

fn kept_between_runs(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    let script = "echo run >> /runs; wc -l < /runs; mkdir -p /d; chown 33:44 /d; rm -f /etc/group; echo x > /d/f; exit 3";
    let run = kiln.run(&["run", "--name", "kept", "busybox", "sh", "-c", script]);
    assert_eq!(
        (run.status.code(), run.stdout.trim()),
        (Some(3), "1"),
        "{run}"
    );
    let again = kiln.run(&["start", "-a", "kept"]);
    assert_eq!(
        (again.status.code(), again.stdout.trim()),
        (Some(3), "2"),
        "{again}"
    );
    let listed = kiln.run(&["ps", "-a"]).ok();
    let row = listed.stdout.lines().nth(1).unwrap_or_default();
    for part in ["busybox", "\"sh -c 'echo run >> …\"", "Exited (3)", "kept"] {
        assert!(row.contains(part), "{part}: {listed}");
    }
    assert_eq!(kiln.run(&["ps", "-q"]).ok().stdout, "", "it does not run");
    let json = kiln
        .run(&["container", "ls", "-a", "--format", "json"])
        .ok()
        .stdout;
    let json: serde_json::Value = serde_json::from_str(&json).expect("one line");
    assert_eq!(
        (&json["Names"], &json["State"]),
        (&"kept".into(), &"exited".into())
    );
    assert_eq!(
        kiln.run(&["diff", "kept"]).ok().stdout,
        "A /d\nA /d/f\nC /etc\nD /etc/group\nA /runs\n"
    );
    // By the beginning of its id; and its image can go.
    let id = kiln.run(&["ps", "-aq"]).ok().stdout;
    kiln.run(&["rmi", "busybox"]).ok();
    kiln.run(&["start", "-a", id.trim()]).says(&["3"]);
    kiln.run(&["create", "--name", "kept", "busybox"]).failed();
    kiln.run(&["start", "kept"])
        .failed()
        .says(&["foreground", "-a"]);
    assert_eq!(kiln.run(&["rm", "kept"]).ok().stdout, "kept\n");
    kiln.run(&["rm", "kept"])
        .failed()
        .says(&["no such container: kept"]);
    kiln.run(&["rm", "-f", "kept"]).ok();
    kiln.leaves_nothing();
}

fn files_go_both_ways(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    let here = kiln.context(&[("file", "in\n"), ("d/e/f", "deep\n"), ("d/.hidden", "")]);
    std::os::unix::fs::symlink("e/f", format!("{here}/d/link")).expect("own folder");
    let script = "mkdir -p /made/sub; echo 1 > /made/sub/a; ln -s sub/a /made/l; ln /made/sub/a /made/hard; chown 33:44 /made/sub/a; ln -s /made /there";
    kiln.run(&["run", "--name", "from", "busybox", "sh", "-c", script])
        .ok();
    let cp = |from: &str, to: &str| kiln.run(&["cp", from, to]);
    let at = |path: &str| format!("{here}/{path}");
    let read = |path: &str| std::fs::read_to_string(at(path)).expect(path);

    // Out: into a folder, under a new name, only what is in it, through a link, as a tar.
    cp("from:/made", &here).ok();
    assert_eq!(read("made/l"), "1\n");
    assert_eq!(read("made/hard"), "1\n");
    cp("from:/made", &at("new")).ok();
    assert_eq!(read("new/sub/a"), "1\n");
    cp("from:/made/.", &at("d")).ok();
    assert_eq!(read("d/sub/a"), "1\n");
    cp("from:/there/sub/a", &at("renamed")).ok();
    assert_eq!(read("renamed"), "1\n");
    cp("from:/there", &at("linked")).ok();
    assert!(Path::new(&at("linked")).is_symlink());
    kiln.run(&["cp", "-L", "from:/there", &at("followed")]).ok();
    assert_eq!(read("followed/sub/a"), "1\n");
    let mut tar = kiln.command(&["cp", "from:/made", "-"]);
    let tar = tar.output().expect("kiln starts").stdout;
    let mut names = Vec::new();
    for entry in tar::Archive::new(&*tar).entries().expect("a tar") {
        let entry = entry.expect("a tar");
        let path = entry.path().expect("plain").display().to_string();
        if path == "made/sub/a" {
            assert_eq!(
                (entry.header().uid().ok(), entry.header().gid().ok()),
                (Some(33), Some(44))
            );
        }
        names.push(path);
    }
    assert_eq!(
        names,
        ["made/", "made/hard", "made/l", "made/sub/", "made/sub/a"]
    );
    cp("from:/no/such", &here)
        .failed()
        .says(&["could not find the file /no/such in container from"]);
    cp("from:/made/sub/a", &at("none/")).failed();
    cp("from:/made", &at("file"))
        .failed()
        .says(&["cannot copy a folder to the file"]);

    // In: the same, and a tar.
    kiln.run(&["create", "--name", "in", "busybox", "sh", "-c", "cd /in; stat -c '%n %u:%g' d d/e d/link; cat d/e/f n; cat /etc/motd file; ls -A c; stat -c %u:%g t/own"]).ok();
    cp(&at("d"), "in:/no/such").failed().says(&["/no"]);
    let empty = kiln.context(&[("x/.keep", "")]);
    cp(&format!("{empty}/x"), "in:/in").ok();
    cp(&at("d"), "in:/in").ok();
    cp(&at("file"), "in:/in/").ok();
    cp(&at("file"), "in:/in/n").ok();
    cp(&at("file"), "in:/etc/motd").ok();
    cp(&format!("{}/.", at("d/e")), "in:/in/c").ok();
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(7);
    header.set_gid(8);
    header.set_size(0);
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_data(&mut header, "t/own", &b""[..])
        .expect("memory");
    let mut unpack = kiln
        .command(&["cp", "-", "in:/in"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("kiln starts");
    let mut stdin = unpack.stdin.take().expect("piped");
    std::io::Write::write_all(&mut stdin, &tar.into_inner().expect("memory")).expect("it reads");
    drop(stdin);
    assert!(unpack.wait().expect("it ends").success());
    assert_eq!(
        kiln.run(&["start", "-a", "in"]).ok().stdout,
        "d 0:0\nd/e 0:0\nd/link 0:0\ndeep\nin\nin\nin\nf\n7:8\n"
    );
    cp(&at("d"), "in:/etc/motd").failed();
    cp("in:/a", "from:/b").failed();
    cp(&at("d"), &at("e"))
        .failed()
        .says(&["at least one container"]);
    kiln.run(&["rm", "from", "in"]).ok();
    kiln.leaves_nothing();
}

/// Links of the container must lead nowhere on the machine, on the way out or in.
fn hostile_containers(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    let outside = Outside::new(&kiln);
    let path = outside.path();
    let script = format!(
        "ln -s {path} /out; mkdir -p /a /b/l/keep /b/secret; ln -s {path} /a/l; echo x > /b/l/written; echo x > /b/l/keep/stub; \
         ln -s {path}/secret /a/f; ln -s {path}/secret /c"
    );
    kiln.run(&["run", "--name", "evil", "busybox", "sh", "-c", &script])
        .ok();
    let here = kiln.context(&[("new", "overwritten")]);
    for name in ["/out/secret", "/out/", "/out/.", "/a/l/keep", "/a/f"] {
        let target = format!("{here}/{}", name.replace('/', "_"));
        let outcome = kiln.run(&["cp", &format!("evil:{name}"), &target]);
        outcome.silent_about(&[SECRET, "panicked"]);
        kiln.run(&["cp", "-L", &format!("evil:{name}"), &target])
            .silent_about(&[SECRET, "panicked"]);
        let found = std::fs::symlink_metadata(&target);
        assert!(
            found.map_or(true, |found| found.is_symlink()),
            "{name} was copied"
        );
    }
    // A folder where an earlier copy has put a link.
    kiln.run(&["cp", "evil:/a/.", &here]).ok();
    kiln.run(&["cp", "evil:/b/.", &here]);
    kiln.run(&["cp", "evil:/b/l/written", &format!("{here}/f")])
        .ok();
    outside.untouched();
    // In: through the link it is a path of the container.
    kiln.run(&["cp", &format!("{here}/new"), "evil:/c"]);
    kiln.run(&["cp", &format!("{here}/new"), "evil:/out/secret"]);
    kiln.run(&["cp", &format!("{here}/new"), "evil:/a/l/written"]);
    outside.untouched();
}

fn run_options(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    let here = kiln.context(&[
        ("env", "# no comment\nA=from file\nB=2\n\nHOST_ONLY\n"),
        ("shared/f", "mounted\n"),
    ]);
    let run = |args: &[&str]| kiln.run(&[&["run", "--rm"], args].concat());
    let env_file = format!("{here}/env");
    let env = run(&[
        "--env-file",
        &env_file,
        "-e",
        "B=3",
        "busybox",
        "sh",
        "-c",
        "echo $A $B ${HOST_ONLY-unset}",
    ]);
    assert_eq!(env.ok().stdout, "from file 3 unset\n");
    let bind = format!("type=bind,source={here}/shared,target=/s,readonly");
    let mounted = run(&[
        "--mount",
        &bind,
        "--tmpfs",
        "/t:size=1m,noexec",
        "busybox",
        "sh",
        "-c",
        "cat /s/f; touch /s/x 2>&1 | grep -o Read-only; touch /t/x; df -k /t | tail -1",
    ]);
    let mounted = mounted.ok();
    assert!(
        mounted.stdout.starts_with("mounted\nRead-only\ntmpfs")
            && mounted.stdout.contains(" 1024 "),
        "{mounted}"
    );
    run(&["--read-only", "busybox", "touch", "/x"])
        .failed()
        .says(&["Read-only file system"]);
    run(&[
        "--read-only",
        "--tmpfs",
        "/tmp",
        "busybox",
        "touch",
        "/tmp/x",
    ])
    .ok();
    let limited = run(&[
        "--ulimit",
        "nofile=99",
        "--shm-size",
        "2m",
        "busybox",
        "sh",
        "-c",
        "ulimit -n; df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2",
    ]);
    assert_eq!(limited.ok().stdout, "99\n2048\n");
    run(&[
        "-p",
        "8080:8080",
        "--hostname",
        "box",
        "busybox",
        "hostname",
    ])
    .ok()
    .says(&["box"]);
    run(&["-p", "80:8080", "busybox", "true"])
        .failed()
        .says(&["--publish 80:8080", "write 8080:8080"]);
    kiln.run(&["run", "-d", "busybox", "true"])
        .failed()
        .says(&["foreground", "podman load"]);
    run(&["-v", "data:/x", "busybox", "true"])
        .failed()
        .says(&["kiln keeps no volumes", "./data"]);
    run(&["--pull", "never", "nothing:here", "true"])
        .failed()
        .says(&["no such image: nothing:here"]);
    assert_eq!(kiln.run(&["ps", "-aq"]).ok().stdout, "", "all were removed");
    kiln.leaves_nothing();
}

fn rights(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    let run = |args: &[&str]| kiln.run(&[&["run", "--rm"], args].concat()).ok().stdout;
    let capabilities = |args: &[&str]| {
        let show = ["busybox", "grep", "CapBnd", "/proc/self/status"];
        let said = run(&[args, &show].concat());
        let digits = said.trim().trim_start_matches("CapBnd:").trim();
        u64::from_str_radix(digits, 16).expect("hexadecimal digits")
    };
    assert_eq!(capabilities(&[]), 0xa804_25fb);
    assert_eq!(capabilities(&["--cap-drop", "ALL"]), 0);
    assert_eq!(
        capabilities(&["--cap-drop=all", "--cap-add", "CAP_CHOWN"]),
        1
    );
    assert_eq!(capabilities(&["--cap-add=NET_ADMIN"]), 0xa804_35fb);
    assert_eq!(capabilities(&["--cap-drop=NET_RAW"]), 0xa804_05fb);
    assert!(capabilities(&["--privileged"]).count_ones() > 35);
    let status = |args: &[&str], line: &str| {
        let show = ["busybox", "grep", line, "/proc/self/status"];
        run(&[args, &show].concat())
    };
    let unconfined = ["--security-opt", "seccomp=unconfined"];
    assert_ne!(
        status(&unconfined, "Seccomp_filters:"),
        status(&[], "Seccomp_filters:"),
        "one filter less"
    );
    assert_eq!(
        status(&["--security-opt=no-new-privileges"], "NoNewPrivs"),
        "NoNewPrivs:\t1\n"
    );
    let resolver = [
        "--dns",
        "192.0.2.1",
        "--dns-search",
        "a.example",
        "--dns-option",
        "ndots:3",
        "busybox",
        "cat",
        "/etc/resolv.conf",
    ];
    let resolver = run(&resolver);
    let server = |line: &&str| line.starts_with("nameserver");
    assert_eq!(
        resolver.lines().filter(server).collect::<Vec<_>>(),
        ["nameserver 192.0.2.1"]
    );
    assert!(
        resolver.contains("search a.example\n") && resolver.contains("options ndots:3\n"),
        "{resolver}"
    );
    let zeros = [
        "--device",
        "/dev/zero:/dev/mine",
        "busybox",
        "sh",
        "-c",
        "head -c4 /dev/mine | wc -c",
    ];
    assert_eq!(run(&zeros).trim(), "4");
    // Where there is one id only there are no other groups to be in.
    if !matches!(setting, Setting::OneId) {
        let groups = run(&["--group-add=daemon", "--group-add=7", "busybox", "id", "-G"]);
        assert_eq!(groups, "0 1 7\n");
    }
    kiln.leaves_nothing();
}

fn labels_and_images_of_containers(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    let context = kiln.context(&[
        (
            "Dockerfile",
            "FROM busybox\nLABEL from=image\nENTRYPOINT [\"sh\", \"-c\"]\nCMD [\"true\"]\n",
        ),
        ("labels", "# none\nfile=1\n\n"),
    ]);
    kiln.build(&["-t", "base:1", &context]).ok();
    let file = format!("{context}/labels");
    let create = [
        "create",
        "--name=lab",
        "-l",
        "own=2",
        "--label-file",
        &file,
        "--expose",
        "80-81",
        "--stop-signal",
        "SIGINT",
        "--stop-timeout=3",
        "-e",
        "A=b",
        "base:1",
        "echo made > /made",
    ];
    kiln.run(&create).ok();
    let inspect = |format: &str| kiln.run(&["inspect", "-f", format, "lab"]).ok().stdout;
    assert_eq!(
        inspect("{{json .Config.Labels}}"),
        "{\"file\":\"1\",\"from\":\"image\",\"own\":\"2\"}\n"
    );
    assert_eq!(
        inspect("{{.Config.Entrypoint}}{{.Config.Cmd}}{{.Config.StopSignal}}"),
        "[sh -c][echo made > /made]SIGINT\n"
    );
    assert_eq!(
        inspect("{{.Config.ExposedPorts}}{{.Config.StopTimeout}}"),
        "map[80/tcp:{} 81/tcp:{}]3\n"
    );
    let found = |filter: &str| kiln.run(&["ps", "-aq", "--filter", filter]).ok().stdout;
    assert_eq!(found("label=own=2"), found("label=from"));
    assert_eq!(found("label=own=3"), "");
    kiln.run(&["start", "-a", "lab"]).ok();
    let commit = [
        "commit",
        "-m",
        "what for",
        "-a",
        "who",
        "-c",
        "CMD [\"cat /made; echo $A\"]",
        "lab",
        "made:1",
    ];
    let id = kiln.run(&commit).ok().stdout;
    assert_eq!(
        kiln.run(&["images", "-q", "--no-trunc", "made:1"])
            .ok()
            .stdout,
        id
    );
    assert_eq!(
        kiln.run(&["run", "--rm", "made:1"]).ok().stdout,
        "made\nb\n"
    );
    let history = [
        "history",
        "--format",
        "{{.CreatedBy}}|{{.Comment}}",
        "made:1",
    ];
    let history = kiln.run(&history).ok().stdout;
    assert_eq!(
        history.lines().next(),
        Some("sh -c echo made > /made|what for"),
        "{history}"
    );
    let layers = "{{len .RootFS.Layers}} {{.Author}} {{.Config.Labels.own}}";
    assert_eq!(
        kiln.run(&["inspect", "-f", layers, "made:1"]).ok().stdout,
        "2 who 2\n"
    );
    // The image stays when the container goes, and can be built on.
    kiln.run(&["rm", "lab"]).ok();
    let on = kiln.context(&[("Dockerfile", "FROM made:1\nRUN cat /made\n")]);
    kiln.build(&[&on]).ok().says(&["made"]);
    kiln.leaves_nothing();
}

fn ended_from_elsewhere(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    let name = marker(&kiln);
    let named = format!("--name={name}");
    let polite = "trap 'echo bye; exit 4' TERM; echo ready; while :; do sleep 0.05; done";
    let deaf = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    for (script, args, code) in [
        (polite, vec!["stop"], 4),
        (deaf, vec!["stop", "-t", "0"], 137),
        (deaf, vec!["kill"], 137),
        (polite, vec!["kill", "-s", "15"], 4),
    ] {
        let run = ["run", &named, "busybox", "sh", "-c", script];
        let mut terminal = Terminal::start(kiln.wrapped(&OWN_TERMINAL, &run));
        terminal.shows("ready");
        let ended = kiln.run(&[&args[..], &[name.as_str()]].concat()).ok();
        assert_eq!(ended.stdout, format!("{name}\n"));
        let waited = kiln.run(&["wait", &name]).ok();
        assert_eq!(waited.stdout, format!("{code}\n"), "{args:?}");
        assert_eq!(terminal.ends().code(), Some(code), "{}", terminal.shown);
        kiln.run(&["stop", &name]).ok();
        kiln.run(&["kill", &name])
            .failed()
            .says(&["it does not run"]);
        kiln.run(&["rm", &name]).ok();
    }
    kiln.run(&["stop", "nobody"])
        .failed()
        .says(&["no such container: nobody"]);
    kiln.leaves_nothing();
}

fn exit_codes(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    for (args, code) in [
        (["sh", "-c", "exit 42"], 42),
        (["sh", "-c", "sh -c 'kill -KILL $$'; exit $?"], 137),
        (["no-such-program", "", ""], 127),
        (["/no/such/program", "", ""], 127),
        (["/etc/passwd", "", ""], 126),
    ] {
        let run = kiln.run(&[&["run", "--rm", "busybox"], args.as_slice()].concat());
        assert_eq!(run.status.code(), Some(code), "{run}");
    }
    for args in [
        ["run", "--no-such-option", "busybox"],
        ["run", "--pull=never", "no-such-image"],
        ["run", "--publish=1:2", "busybox"],
    ] {
        let run = kiln.run(&args);
        assert_eq!(run.status.code(), Some(125), "{run}");
    }
    kiln.leaves_nothing();
}

fn signal(kiln: &Kiln, number: &str) {
    // The front, by its argument that nobody else has; in a container's namespace too.
    let needle = format!("name={}", marker(kiln));
    let status = Command::new("pkill").args([number, "-f", &needle]).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "pkill {number} {needle}"
    );
}

/// A name that no other test's container has.
fn marker(kiln: &Kiln) -> String {
    let store = kiln
        .store()
        .file_name()
        .expect("has a name")
        .to_string_lossy()
        .into_owned();
    format!("signalled-{store}")
}

fn signals(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    let name = format!("--name={}", marker(&kiln));
    let script = "trap 'echo got USR1' USR1; trap 'echo got TERM; exit 9' TERM; trap 'echo got INT' INT; echo ready; while :; do sleep 0.05; done";
    let mut terminal = Terminal::start(kiln.wrapped(
        &OWN_TERMINAL,
        &["run", &name, "busybox", "sh", "-c", script],
    ));
    terminal.shows("ready");
    signal(&kiln, "-USR1");
    terminal.shows("got USR1");
    kiln.run(&["ps"]).ok().says(&["Up", &marker(&kiln)]);
    kiln.run(&["rm", &marker(&kiln)])
        .failed()
        .says(&["is running"]);
    kiln.run(&["cp", &format!("{}:/etc", marker(&kiln)), "/tmp"])
        .failed()
        .says(&["is running"]);
    // The terminal's key reaches the front, which passes it on.
    terminal.send("\u{3}");
    terminal.shows("got INT");
    signal(&kiln, "-TERM");
    terminal.shows("got TERM");
    assert_eq!(terminal.ends().code(), Some(9), "{}", terminal.shown);
    kiln.run(&["rm", &marker(&kiln)]).ok();
    // What hears nothing is killed by the third.
    let mut deaf = Terminal::start(kiln.wrapped(
        &OWN_TERMINAL,
        &[
            "run",
            "--rm",
            &name,
            "busybox",
            "sh",
            "-c",
            "trap '' INT; echo ready; while :; do sleep 0.05; done",
        ],
    ));
    deaf.shows("ready");
    for _ in 0..3 {
        deaf.send("\u{3}");
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    assert_eq!(deaf.ends().code(), Some(137), "{}", deaf.shown);
    kiln.leaves_nothing();
}

fn terminals(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    let args = [
        "run",
        "-it",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "tty; stty size; trap 'stty size' WINCH; echo ready; until read line; do :; done; echo \"line: $line\"; exec sh",
    ];
    let mut terminal = Terminal::start(kiln.wrapped(&OWN_TERMINAL, &args));
    terminal.shows("/dev/pts/0\r\n24 80\r\nready");
    terminal.resize(50, 132);
    terminal.shows("50 132");
    terminal.send("typed\r");
    terminal.shows("line: typed");
    // Keys act on what is in the container.
    terminal.send("sleep 100\r");
    std::thread::sleep(std::time::Duration::from_millis(300));
    terminal.send("\u{3}");
    terminal.send("echo code=$?\r");
    terminal.shows("code=130");
    terminal.send("exit 7\r");
    assert_eq!(terminal.ends().code(), Some(7), "{}", terminal.shown);
    kiln.run(&["run", "-it", "--rm", "busybox", "true"])
        .failed()
        .says(&["not a TTY"]);
    kiln.leaves_nothing();
}

/// `rm -f` of a container that runs: the program is killed, and whoever ran it is told so.
fn removed_while_it_runs(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    let name = format!("--name={}", marker(&kiln));
    let script = "trap '' TERM; echo ready; while :; do sleep 0.05; done";
    for options in [&[][..], &["--rm"]] {
        let args = [&["run", &name], options, &["busybox", "sh", "-c", script]].concat();
        let mut terminal = Terminal::start(kiln.wrapped(&OWN_TERMINAL, &args));
        terminal.shows("ready");
        assert_eq!(
            kiln.run(&["rm", "-f", &marker(&kiln)]).ok().stdout,
            format!("{}\n", marker(&kiln))
        );
        assert_eq!(terminal.ends().code(), Some(137), "{}", terminal.shown);
        kiln.run(&["ps", "-a"]).ok().silent_about(&[&marker(&kiln)]);
        kiln.leaves_nothing();
    }
}

fn process_one(setting: Setting) {
    let Some(kiln) = fresh(setting) else { return };
    let script = "echo I am $$; exit 5";
    let without = kiln.run(&["run", "--rm", "busybox", "sh", "-c", script]);
    assert_eq!(without.failed().stdout, "I am 1\n");
    let with = kiln.run(&["run", "--rm", "--init", "busybox", "sh", "-c", script]);
    assert_eq!(
        (with.status.code(), &*with.stdout),
        (Some(5), "I am 2\n"),
        "{with}"
    );
    // The terminal's keys go to the program, which has a group of its own.
    let mut terminal = Terminal::start(kiln.wrapped(
        &OWN_TERMINAL,
        &[
            "run",
            "--rm",
            "-it",
            "--init",
            "busybox",
            "sh",
            "-c",
            "trap 'echo got INT; exit 3' INT; echo ready; while :; do sleep 0.05; done",
        ],
    ));
    terminal.shows("ready");
    terminal.send("\u{3}");
    terminal.shows("got INT");
    assert_eq!(terminal.ends().code(), Some(3), "{}", terminal.shown);
    kiln.leaves_nothing();
}
