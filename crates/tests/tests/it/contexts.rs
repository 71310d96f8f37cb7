//! Build contexts that are no folders, and files that a context does not have.

use std::collections::BTreeMap;
use std::fs::File;
use std::process::Command;

use kiln_tests::server::Server;
use kiln_tests::{Kiln, Outcome, Setting, in_each_setting, skipped};

use crate::sources::repository;

in_each_setting! { archives repositories }

const DOCKERFILE: &str = "FROM scratch\nCOPY . /c/\n";

fn archives(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &[]) else {
        return;
    };
    let folder = kiln.context(&[
        ("Dockerfile", DOCKERFILE),
        (".dockerignore", "*.log\n"),
        ("a", "a"),
        ("b.log", "b"),
    ]);
    let archive = kiln.file("context.tar.gz");
    let made = Command::new("tar")
        .arg("-czf")
        .arg(&archive)
        .args(["-C", &folder, "."])
        .status();
    assert!(made.is_ok_and(|it| it.success()));
    let from_stdin = |args: &[&str]| {
        let mut command = kiln.command(&[&["build", "--progress", "plain"], args].concat());
        command.stdin(File::open(&archive).unwrap());
        Outcome::new(
            "kiln build - < archive".to_owned(),
            &command.output().unwrap(),
        )
    };
    from_stdin(&["-t", "one", "-"]).ok();
    // The files of an archive were chosen when it was made: its ignore file has no say, as under docker.
    assert!(kiln.save("one").files.get(b"c/b.log").is_some());
    let second = from_stdin(&["-t", "one", "-"]).ok();
    assert!(second.executed().is_empty(), "{second}");
    let bytes = std::fs::read(&archive).unwrap();
    let server = Server::start(BTreeMap::from([
        ("/context.tar.gz".to_owned(), bytes),
        (
            "/Dockerfile".to_owned(),
            b"FROM scratch\nLABEL a=b\n".to_vec(),
        ),
    ]));
    let address = server.address();
    // The same files are the same, wherever they come from.
    let third = kiln.build(&[&format!("{address}/context.tar.gz")]).ok();
    assert!(third.executed().is_empty(), "{third}");
    kiln.build(&[&format!("{address}/Dockerfile")]).ok();
    kiln.build(&["-f", &format!("{address}/Dockerfile"), &folder])
        .ok();
    let missing = kiln.context(&[("Dockerfile", "FROM scratch\nCOPY --from=n b.log /\n")]);
    kiln.build(&[
        "--build-context",
        &format!("n={address}/context.tar.gz"),
        "--build-context",
        "unused=http://127.0.0.1:1/x",
        &missing,
    ])
    .ok();
    kiln.leaves_nothing();
}

/// Without -f the small spelling will do, where there is no other.
#[test]
fn a_dockerfile_in_small_letters() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let small = kiln.context(&[("dockerfile", "FROM scratch\nLABEL a=small\n")]);
    let both = kiln.context(&[
        ("dockerfile", "FROM scratch\nLABEL a=small\n"),
        ("Dockerfile", "FROM scratch\nLABEL a=large\n"),
    ]);
    let built = |args: &[&str]| {
        kiln.build(&[&["-t", "x"], args].concat()).ok();
        kiln.save("x").config["config"]["Labels"]["a"].to_string()
    };
    assert_eq!(built(&[&small]), "\"small\"");
    assert_eq!(built(&[&both]), "\"large\"");
    let archive = Command::new("tar")
        .args(["-cf", "-", "-C", &small, "."])
        .output()
        .expect("tar starts");
    let server = Server::start(BTreeMap::from([("/c.tar".to_owned(), archive.stdout)]));
    let address = format!("{}/c.tar", server.address());
    assert_eq!(built(&[&address]), "\"small\"");
    kiln.leaves_nothing();
}

fn repositories(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &[]) else {
        return;
    };
    let files = repository(
        &kiln.file("work"),
        &[&[("app/Dockerfile", DOCKERFILE), ("app/a", "a"), ("b", "b")]],
    );
    let server = Server::start(files);
    let context = format!("{}/repo.git#main:app", server.address());
    kiln.build(&[&context]).ok();
    let second = kiln.build(&[&context]).ok();
    assert!(second.executed().is_empty(), "{second}");
    let named = kiln.context(&[(
        "Dockerfile",
        "FROM n AS base\nFROM scratch\nCOPY --from=base /b /\n",
    )]);
    let repository = format!("n={}/repo.git", server.address());
    kiln.build(&["--build-context", &repository, &named]).ok();
    kiln.leaves_nothing();
}

#[test]
fn a_missing_file_is_explained() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let build = |source: &str| {
        let context = kiln.context(&[
            ("Dockerfile", &format!("FROM scratch\nCOPY {source} /\n")),
            (".dockerignore", "# comment\n*.log\n"),
            ("server.go", ""),
            ("x.log", ""),
        ]);
        kiln.build(&[&context]).failed()
    };
    build("x.log").says(&[
        "not found in build context /",
        "line 2 of .dockerignore: *.log",
    ]);
    build("sever.go")
        .says(&["\"sever.go\": not found in build context", "did you mean"])
        .silent_about(&[".dockerignore: "]);
}

#[test]
fn what_is_ignored_is_not_entered_and_what_is_not_copied_is_not_opened() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    if xtask::process::find("strace").is_none() {
        return skipped("strace is not installed");
    }
    let context = kiln.context(&[
        (
            "Dockerfile",
            "FROM scratch\nCOPY src /src\nCOPY some /some\n",
        ),
        (
            ".dockerignore",
            "**/node_modules\nsome/*\n!some/taken/back\n",
        ),
        ("src/a", "a"),
        ("src/node_modules/deep/b", "b"),
        ("some/other/c", "c"),
        ("some/taken/back", "d"),
        ("some/taken/not", "e"),
        ("unused/f", "f"),
    ]);
    let trace = kiln.file("trace");
    let file = trace.to_str().expect("a plain name");
    let strace = [
        "strace",
        "-f",
        "-y",
        "-qq",
        "-s",
        "4096",
        "-e",
        "trace=open,openat,openat2",
        "-o",
        file,
    ];
    let build = kiln
        .wrapped(&strace, &["build", "-t", "part", &context])
        .output();
    Outcome::new(
        "strace kiln build".to_owned(),
        &build.expect("strace starts"),
    )
    .ok();
    let trace = std::fs::read_to_string(&trace).expect("strace wrote it");
    let opened = |path: &str| trace.lines().any(|line| line.contains(path));
    assert!(opened("src") && opened("some/taken"), "{trace}");
    for left in ["node_modules", "some/other", "some/taken/not", "unused/f"] {
        assert!(!opened(left), "{left} was opened:\n{trace}");
    }
    let files = kiln.save("part").files;
    assert!(files.get(b"some/taken/back").is_some() && files.get(b"some/taken/not").is_none());
}
