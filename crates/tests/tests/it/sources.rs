//! ADD from web servers and git repositories.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use kiln_tests::server::Server;
use kiln_tests::{Kiln, Setting, in_each_setting};

in_each_setting! { files_from_the_web git_repositories }

/// A repository as a simple web server serves it, at `/repo.git`. Each commit is a list of files; the last one is the
/// branch `main`, the first one the tag `first`.
pub(crate) fn repository(folder: &Path, commits: &[&[(&str, &str)]]) -> BTreeMap<String, Vec<u8>> {
    let git = |args: &[&str]| {
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
        assert!(
            command.status().is_ok_and(|it| it.success()),
            "git {args:?}"
        );
    };
    fs::create_dir_all(folder).unwrap();
    git(&["init", "-q", "-b", "main"]);
    for (at, files) in commits.iter().enumerate() {
        for (name, content) in *files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        git(&["add", "-A"]);
        git(&["commit", "-qm", "x"]);
        if at == 0 {
            git(&["tag", "-a", "-m", "x", "first"]);
        }
    }
    git(&["update-server-info"]);
    let mut served = BTreeMap::new();
    collect(&folder.join(".git"), "/repo.git", &mut served);
    fs::remove_dir_all(folder).unwrap();
    served
}

fn collect(folder: &Path, name: &str, served: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{name}/{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            collect(&path, &name, served);
        } else {
            served.insert(name, fs::read(path).unwrap());
        }
    }
}

fn files_from_the_web(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let server = Server::start(BTreeMap::from([
        ("/a/tool.sh".to_owned(), b"echo one\n".to_vec()),
        ("/b".to_owned(), b"b\n".to_vec()),
    ]));
    let address = server.address();
    let context = kiln.context(&[(
        "Dockerfile",
        &format!(
            "FROM busybox\nADD {address}/a/tool.sh?x=1 /bin/\nADD --chmod=755 --chown=7:8 {address}/b /c\n\
             RUN stat -c '%a %u:%g %n' /bin/tool.sh /c && sh /bin/tool.sh\n"
        ),
    )]);
    kiln.build(&[&context])
        .ok()
        .says(&["600 0:0 /bin/tool.sh", "755 7:8 /c", "one"]);
    let second = kiln.build(&[&context]).ok();
    assert!(second.executed().is_empty(), "{second}");
    let asked = server.asked();
    assert!(
        asked.contains(&"/a/tool.sh unchanged".to_owned()),
        "{asked:?}"
    );
    server.put("/b", b"other\n");
    let third = kiln.build(&[&context]).ok();
    let executed = third.executed();
    assert_eq!(executed.len(), 2, "{third}");
    assert!(executed[0].contains("/b /c"), "{third}");
    kiln.leaves_nothing();
}

fn git_repositories(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let commits: [&[(&str, &str)]; 2] =
        [&[("file", "one\n"), ("sub/x", "x\n")], &[("file", "two\n")]];
    let files = repository(&kiln.file("work"), &commits);
    let server = Server::start(files);
    let address = server.address();
    let context = kiln.context(&[(
        "Dockerfile",
        &format!(
            "FROM busybox\nADD {address}/repo.git /main\nADD {address}/repo.git#first:sub /sub\n\
             ADD --keep-git-dir {address}/repo.git?ref=first /kept\n\
             RUN cat /main/file /kept/file && ls -A /main /sub && test -d /kept/.git && stat -c '%a %u' /main/file\n"
        ),
    )]);
    kiln.build(&[&context])
        .ok()
        .says(&["one", "two", "644 0"])
        .silent_about(&["tool"]);
    let second = kiln.build(&[&context]).ok();
    assert!(second.executed().is_empty(), "{second}");
    kiln.leaves_nothing();
}

#[test]
fn failures_say_what_failed() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let mut files = repository(&kiln.file("work"), &[&[("file", "one\n")]]);
    files.insert("/a".to_owned(), b"a\n".to_vec());
    let server = Server::start(files);
    let address = server.address();
    let wrong = format!("sha256:{}", "0".repeat(64));
    for (line, told) in [
        (format!("ADD {address}/nope /"), "404 Not Found"),
        ("ADD http://127.0.0.1:1/x /".to_owned(), "cannot be reached"),
        (
            format!("ADD --checksum={wrong} {address}/a /"),
            "checksum mismatch: expected sha256:000000",
        ),
        (
            format!("ADD {address}/repo.git#nope /"),
            "no branch, tag or commit \"nope\"",
        ),
        (
            format!("ADD {address}/repo.git#main:no /"),
            "no folder \"no\"",
        ),
        (
            format!("ADD --checksum=abc {address}/repo.git#main /"),
            "checksum mismatch: expected abc",
        ),
    ] {
        let text = format!("FROM scratch\n{line}\n");
        let context = kiln.context(&[("Dockerfile", &text)]);
        let marked = format!(">>> {line}");
        kiln.build(&[&context])
            .failed()
            .says(&[told, &marked, "hint: "]);
    }
}
