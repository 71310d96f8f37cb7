//! Every example is built and run, in every setting; its second build executes nothing.

use std::collections::BTreeMap;
use std::process::Command;

use kiln_tests::server::Server;
use kiln_tests::{Kiln, Setting, in_each_setting};

in_each_setting! { go_one_stage_and_many go_from_scratch go_target java download stages_by_number scripts }

/// Builds, builds again with nothing executed, and returns what the image prints.
#[track_caller]
fn build_twice_and_run(kiln: &Kiln, tag: &str, args: &[&str]) -> String {
    let args = [&["-t", tag], args].concat();
    kiln.build(&args).ok();
    let again = kiln.build(&args).ok();
    assert_eq!(again.executed(), Vec::<String>::new(), "{again}");
    assert!(again.cached() > 0, "{again}");
    kiln.run(&["run", "--rm", tag]).ok().stdout
}

/// Sizes as `kiln images NAME` shows them, by tag, in bytes.
fn sizes(kiln: &Kiln, name: &str) -> BTreeMap<String, f64> {
    let shown = kiln.run(&["images", name]).ok();
    let mut lines = shown.stdout.lines();
    let head = lines.next().unwrap_or_default();
    assert!(
        head.starts_with("REPOSITORY") && head.ends_with("SIZE"),
        "{shown}"
    );
    let size = |text: &str| {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "B" => 1.0,
            "kB" => 1e3,
            "MB" => 1e6,
            "GB" => 1e9,
            other => panic!("unit {other:?} in {shown}"),
        };
        digits.parse::<f64>().expect("a number") * unit
    };
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(words[0], name, "{shown}");
        (words[1].to_owned(), size(words[words.len() - 1]))
    };
    lines.map(row).collect()
}

fn go_one_stage_and_many(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox", "golang"]) else {
        return;
    };
    let context = kiln.example("go-hello");
    let hello = build_twice_and_run(kiln, "user/hellogo:0.0.1", &[&context]);
    assert_eq!(hello, "Hello, root! (uid 0)\n");
    let file = format!("{context}/Dockerfile.ms");
    let hello = build_twice_and_run(kiln, "user/hellogo:0.0.2", &["-f", &file, &context]);
    assert_eq!(hello, "Hello, nobody! (uid 65534)\n");

    let sizes = sizes(kiln, "user/hellogo");
    let tags: Vec<&str> = sizes.keys().map(String::as_str).collect();
    assert_eq!(tags, ["0.0.1", "0.0.2"]);
    assert!(sizes["0.0.1"] > 10.0 * sizes["0.0.2"], "{sizes:?}");
    assert!(
        (3e6..8e6).contains(&sizes["0.0.2"]),
        "busybox and one Go program: {sizes:?}"
    );
}

fn go_from_scratch(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["golang"]) else {
        return;
    };
    let context = kiln.example("go-hello");
    let file = format!("{context}/Dockerfile.scratch");
    let hello = build_twice_and_run(kiln, "hellogo-scratch", &["-f", &file, &context]);
    assert_eq!(hello, "Hello, gopher! (uid 1000)\n");

    let saved = kiln.save("hellogo-scratch");
    let paths: Vec<_> = saved
        .files
        .iter()
        .map(|(path, _)| String::from_utf8_lossy(path))
        .collect();
    assert_eq!(paths, ["etc", "etc/passwd", "hello"]);
    kiln.run(&["run", "--rm", "--entrypoint", "/nothing", "hellogo-scratch"])
        .failed();
}

fn go_target(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox", "golang"]) else {
        return;
    };
    let context = kiln.example("go-hello");
    let file = format!("{context}/Dockerfile.ms");
    kiln.build(&[
        "-f",
        &file,
        "--target",
        "build",
        "-t",
        "hellogo-build",
        &context,
    ])
    .ok();
    kiln.run(&["run", "--rm", "hellogo-build", "/out/hello"])
        .ok()
        .says(&["Hello, root!"]);
    kiln.run(&["run", "--rm", "hellogo-build", "pwd"])
        .ok()
        .says(&["/src"]);
    let missing = kiln
        .build(&["-f", &file, "--target", "nowhere", &context])
        .failed();
    missing.says(&["nowhere"]);
}

fn java(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["jre", "jdk"]) else {
        return;
    };
    let context = kiln.example("java-hello");
    let hello = build_twice_and_run(kiln, "hellojava", &[&context]);
    assert_eq!(hello, "Hello, container, from Java 17!\n");
    kiln.run(&["run", "--rm", "hellojava", "you", "me"])
        .ok()
        .says(&["Hello, you and me,"]);
    kiln.run(&[
        "run",
        "--rm",
        "--entrypoint",
        "javac",
        "hellojava",
        "-version",
    ])
    .failed();
}

/// A server with `x.tar`, which holds a file in a folder.
fn archive_server(kiln: &Kiln) -> Server {
    let folder = kiln.context(&[("sub/inside.txt", "from the archive\n")]);
    let tar = Command::new("tar")
        .args(["-C", &folder, "-cf", "-", "sub"])
        .output()
        .expect("tar starts")
        .stdout;
    Server::start(BTreeMap::from([("/x.tar".to_owned(), tar)]))
}

fn download(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let server = archive_server(kiln);
    let argument = format!("SERVER={}", server.address());
    let context = kiln.example("download");
    let list = build_twice_and_run(
        kiln,
        "download",
        &["--network", "host", "--build-arg", &argument, &context],
    );
    let mut files: Vec<&str> = list.lines().collect();
    files.sort_unstable();
    assert_eq!(
        files,
        [
            "/opt/archive/x.tar",
            "/opt/left.txt",
            "/opt/right.txt",
            "/opt/sub/inside.txt"
        ]
    );
    assert_eq!(server.asked(), ["/x.tar"], "fetched once");
    let shown = kiln
        .run(&["run", "--rm", "download", "cat", "/opt/sub/inside.txt"])
        .ok();
    assert_eq!(shown.stdout, "from the archive\n");

    kiln.build(&["--target", "broken", &context])
        .failed()
        .says(&["this must never run", "exit code: 1"]);
}

fn stages_by_number(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let server = archive_server(kiln);
    let argument = format!("SERVER={}", server.address());
    let context = kiln.example("download");
    let file = format!("{context}/Dockerfile.numbers");
    let args = [
        "-f",
        &file,
        "--network",
        "host",
        "--build-arg",
        &argument,
        &context,
    ];
    assert_eq!(
        build_twice_and_run(kiln, "download-numbers", &args),
        "/opt/sub/inside.txt\n"
    );
}

fn scripts(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["debian"]) else {
        return;
    };
    let script = std::fs::read(xtask::workspace().join("examples/scripts/greet.sh"))
        .expect("in the checkout");
    let server = Server::start(BTreeMap::from([("/greet.sh".to_owned(), script)]));
    let argument = format!("SERVER={}", server.address());
    let context = kiln.example("scripts");
    let said = build_twice_and_run(kiln, "scripts", &["--build-arg", &argument, &context]);
    assert_eq!(
        said,
        "hello from a script\none\ntwo\nthree\nas it is: $SERVER\nfilled in: yes\n"
    );
}
