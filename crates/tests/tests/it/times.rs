//! Times of files in images, and `SOURCE_DATE_EPOCH`. Tried with docker 28 on the same files.

use std::collections::BTreeMap;
use std::process::Command;

use kiln_tests::server::Server;
use kiln_tests::{Kiln, Setting, in_each_setting};

use crate::sources::repository;

in_each_setting! { times_of_sources_are_kept }

/// 1000000000 and 2000000000 seconds since 1970.
const EARLY: &str = "2001-09-09 01:46:40";
const LATE: &str = "2033-05-18 03:33:20";

fn times_of_sources_are_kept(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let commits: [&[(&str, &str)]; 1] = [&[("in-git", "x")]];
    let mut files = repository(&kiln.file("work"), &commits);
    files.insert("/from-web".to_owned(), b"x".to_vec());
    let server = Server::start(files);
    let address = server.address();
    let context = kiln.context(&[
        ("f", "x"),
        ("d/g", "x"),
        (
            "Dockerfile",
            &format!(
                "FROM busybox\nCOPY f /new/f\nCOPY d /d\nADD {address}/from-web /\n\
                 ADD {address}/repo.git?mtime=commit /git\n\
                 ADD {address}/repo.git?mtime=checkout /now\n\
                 RUN stat -c '%n=%Y' /new/f /d /d/g /from-web /git/in-git; \
                 test $(($(date +%s) - $(stat -c %Y /now/in-git))) -lt 60 && \
                 test $(stat -c %Y /new) -gt 1500000000\n"
            ),
        ),
    ]);
    date(&context, "1000000000", &["f", "d/g", "d"]);
    kiln.build(&[&context]).ok().says(&[
        "/new/f=1000000000",
        "/d=1000000000",
        "/d/g=1000000000",
        "/from-web=1000000000",
        "/git/in-git=1700000000",
    ]);
    let refused = kiln.context(&[(
        "Dockerfile",
        &format!("FROM scratch\nADD {address}/repo.git?mtime=tomorrow /\n"),
    )]);
    kiln.build(&[&refused])
        .failed()
        .says(&["\"tomorrow\" for mtime", "expected checkout or commit"]);
    kiln.leaves_nothing();
}

#[test]
fn nothing_in_the_image_is_later_than_the_epoch() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let server = Server::start(BTreeMap::from([("/from-web".to_owned(), b"x".to_vec())]));
    let context = kiln.context(&[
        ("early", "x"),
        ("late", "x"),
        (
            "Dockerfile",
            &format!(
                "FROM scratch\nCOPY early late /new/\nWORKDIR /w/x\nADD {}/from-web /\nCOPY <<E /doc\ntext\nE\n",
                server.address()
            ),
        ),
    ]);
    date(&context, "1000000000", &["early"]);
    date(&context, "2100000000", &["late"]);
    let build = |name: &str| {
        let epoch = "SOURCE_DATE_EPOCH=2000000000";
        kiln.build(&["--no-cache", "--build-arg", epoch, "-t", name, &context])
            .ok();
        kiln.run(&["inspect", name]).ok()
    };
    let first = build("one");
    let listed = listed(&kiln, "one");
    // Folders are made, and this file written, before 2033: they keep the time of the build, or have the epoch's.
    for (path, time) in [
        ("new/early", EARLY),
        ("new/late", LATE),
        ("from-web", EARLY),
        ("w/x/", LATE),
        ("doc", LATE),
    ] {
        let line = listed
            .lines()
            .find(|line| line.ends_with(&format!(" {path}")));
        assert!(
            line.is_some_and(|line| line.contains(time)),
            "{path}: {listed}"
        );
    }
    first.says(&["\"Created\": \"2033-05-18T03:33:20Z\""]);

    // An epoch in the past makes the same image of the same files whenever it is built.
    let again = |name: &str| {
        let epoch = "SOURCE_DATE_EPOCH=1100000000";
        kiln.build(&["--no-cache", "--build-arg", epoch, "-t", name, &context])
            .ok();
        kiln.save(name).config.to_string()
    };
    assert_eq!(again("two"), again("three"));
    kiln.leaves_nothing();
}

/// Gives files of a context a time, in seconds since 1970.
fn date(context: &str, seconds: &str, names: &[&str]) {
    let touched = Command::new("touch")
        .current_dir(context)
        .args(["-d", &format!("@{seconds}")])
        .args(names)
        .status();
    assert!(touched.is_ok_and(|status| status.success()));
}

/// What `tar` lists of all layers of an image, with times.
fn listed(kiln: &Kiln, image: &str) -> String {
    let archive = kiln.file("listed.tar");
    let archive = archive.to_str().unwrap();
    kiln.run(&["save", "-o", archive, image]).ok();
    let script = r#"cd "$(dirname "$1")" && mkdir listed && tar -xf "$1" -C listed && cd listed &&
        for file in $(find . -type f); do TZ=UTC tar --full-time -tvf "$file" 2>/dev/null; done; rm -rf ../listed"#;
    let output = Command::new("sh")
        .args(["-c", script, "sh", archive])
        .output()
        .expect("sh starts");
    String::from_utf8_lossy(&output.stdout).into_owned()
}
