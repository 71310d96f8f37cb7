//! Repositories that hold others, and repositories that want to know who asks.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use kiln_tests::server::Server;
use kiln_tests::{Kiln, Setting};
use xtask::compare::Kind;

use crate::sources::repository;

const DOCKERFILE: &str = "FROM scratch\nCOPY . /c/\n";

fn git(folder: &Path, args: &[&str]) -> String {
    let mut command = Command::new("git");
    command.arg("-C").arg(folder).args(args);
    for (name, value) in [
        ("NAME", "t"),
        ("EMAIL", "t@example"),
        ("DATE", "1700000000 +0000"),
    ] {
        command.env(format!("GIT_AUTHOR_{name}"), value);
        command.env(format!("GIT_COMMITTER_{name}"), value);
    }
    let output = command.output().expect("git starts");
    assert!(output.status.success(), "git {args:?}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn submodules_come_with_the_repository() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let inner = repository(&kiln.file("inner"), &[&[("deep/file", "inner\n")]]);
    // Its address must be known before the outer repository can name it.
    let server = Server::start(BTreeMap::new());
    for (path, content) in inner {
        server.put(&path.replace("/repo.git", "/inner.git"), &content);
    }
    let address = server.address();
    let work = kiln.file("outer");
    fs::create_dir(&work).unwrap();
    git(&work, &["init", "-q", "-b", "main"]);
    git(
        &work,
        &[
            "submodule",
            "add",
            "-q",
            &format!("{address}/inner.git"),
            "sub",
        ],
    );
    fs::write(work.join("Dockerfile"), DOCKERFILE).unwrap();
    git(&work, &["add", "-A"]);
    git(&work, &["commit", "-qm", "x"]);
    // As the server's copy the outer repository may keep its own folder for the inner one's objects.
    git(&work, &["update-server-info"]);
    let bare = kiln.file("outer.git");
    let cloned = Command::new("git")
        .args(["clone", "-q", "--bare"])
        .args([&work, &bare])
        .status();
    assert!(cloned.is_ok_and(|status| status.success()));
    git(&bare, &["update-server-info"]);
    for (path, content) in files(&bare) {
        server.put(&format!("/outer.git/{path}"), &content);
    }
    let context = format!("{address}/outer.git#main");
    kiln.build(&["-t", "outer", &context]).ok();
    let saved = kiln.save("outer");
    assert!(saved.files.get(b"c/sub/deep/file").is_some());
    assert!(saved.files.get(b"c/sub/.git").is_none());

    let alone = format!("{address}/outer.git?ref=main&submodules=false");
    kiln.build(&["-t", "alone", &alone]).ok();
    let saved = kiln.save("alone");
    let folder = saved.files.get(b"c/sub").map(|entry| &entry.kind);
    assert_eq!(folder, Some(&Kind::Dir));
    assert!(saved.files.get(b"c/sub/deep").is_none());
    kiln.leaves_nothing();
}

/// The files below a folder, by path.
fn files(folder: &Path) -> Vec<(String, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            let below = files(&path).into_iter();
            found.extend(below.map(|(path, content)| (format!("{name}/{path}"), content)));
        } else {
            found.push((name, fs::read(path).unwrap()));
        }
    }
    found
}

#[test]
fn tokens_and_headers_open_private_repositories() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let commits: [&[(&str, &str)]; 1] = [&[("Dockerfile", DOCKERFILE), ("a", "a")]];
    let server = Server::start(repository(&kiln.file("work"), &commits));
    let repository = format!("{}/repo.git", server.address());
    let host = server.address().trim_start_matches("http://").to_owned();
    // base64 of x-access-token:secret
    let token = "basic eC1hY2Nlc3MtdG9rZW46c2VjcmV0";
    server.want(token);
    let context = format!("{repository}#main");
    let refused = kiln.build(&[&context]).failed();
    refused.says(&["repo.git"]).silent_about(&["secret"]);
    let value = kiln.file("value");
    let build = |id: &str, text: &str, context: &str| {
        fs::write(&value, text).unwrap();
        let secret = format!("id={id},src={}", value.display());
        kiln.build(&["--no-cache", "--secret", &secret, context])
    };
    build("GIT_AUTH_TOKEN", "secret\n", &context).ok();
    // The same for ADD, from a store that has not seen the repository.
    let Some(other) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let text = format!("FROM scratch\nADD {repository}#main /\n");
    let adding = other.context(&[("Dockerfile", &text)]);
    fs::write(&value, token).unwrap();
    let secret = format!("id=GIT_AUTH_HEADER.{host},src={}", value.display());
    let wrong = format!("id=GIT_AUTH_TOKEN,src={}", value.display());
    other
        .build(&["--secret", &secret, "--secret", &wrong, &adding])
        .ok();
    server.want("another");
    build("GIT_AUTH_TOKEN", "secret", &context)
        .failed()
        .says(&["repo.git"])
        .silent_about(&["eC1hY2Nlc3M"]);
    kiln.leaves_nothing();
}

#[test]
fn repositories_come_by_ssh() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let work = kiln.file("work");
    fs::create_dir(&work).unwrap();
    git(&work, &["init", "-q", "-b", "main"]);
    fs::write(work.join("Dockerfile"), DOCKERFILE).unwrap();
    git(&work, &["add", "-A"]);
    git(&work, &["commit", "-qm", "x"]);
    // What ssh would do on the other machine is done on this one; and it tells which agent it was given.
    let ssh = kiln.file("ssh");
    let told = kiln.file("told");
    let script = format!(
        "#!/bin/sh\necho \"$SSH_AUTH_SOCK $1\" >>{}\nwhile [ $# -gt 1 ]; do shift; done\nexec sh -c \"$1\"\n",
        told.display()
    );
    fs::write(&ssh, script).unwrap();
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755)).unwrap();
    let context = format!("git@host.example:{}#main", work.display());
    let mut build = kiln.command(&[
        "build",
        "--progress",
        "plain",
        "--ssh",
        "default=/agent.sock",
        &context,
    ]);
    let output = build
        .env("GIT_SSH_COMMAND", ssh.display().to_string())
        .output()
        .expect("kiln starts");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let told = fs::read_to_string(told).unwrap();
    assert!(told.starts_with("/agent.sock "), "{told}");
    kiln.leaves_nothing();
}
