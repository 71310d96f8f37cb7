//! What is damaged, or left by those who were killed: found, named, dropped and made again, never passed on.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use kiln_tests::{Kiln, Setting, in_each_setting};

in_each_setting! { damaged_layers_are_made_again kill_9_fifty_times leftovers_are_swept }

const DOCKERFILE: &str =
    "FROM busybox\nRUN echo one > /one; head -c 5000 /dev/zero > /zeros\nRUN cat /one > /two\n";

/// The folder of the layer that a step made.
fn layer_of(kiln: &Kiln, step: &str) -> PathBuf {
    let said = kiln.run(&["builder", "du", "--format", "json"]).ok();
    let line = said
        .stdout
        .lines()
        .find(|line| line.contains(step))
        .unwrap_or_else(|| panic!("no {step}: {said}"));
    let id = line
        .split("\"ID\":\"")
        .nth(1)
        .and_then(|rest| rest.split('"').next());
    kiln.store().join("layers").join(id.expect("an id"))
}

/// Runs a shell script where the store is, as who builds.
fn shell(kiln: &Kiln, script: &str) {
    let status = kiln
        .wrapped(&["sh", "-ec", &format!("{script}\nexit 0")], &[])
        .status()
        .expect("sh starts");
    assert!(status.success(), "{script}");
}

fn damaged_layers_are_made_again(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", DOCKERFILE)]);
    let change = |text: &str| {
        let dockerfile = format!("{DOCKERFILE}RUN cat /one /two; echo {text}\n");
        fs::write(Path::new(&context).join("Dockerfile"), dockerfile).expect("own folder");
    };
    change("first");
    kiln.build(&["-t", "whole", &context]).ok();
    for (number, harm) in [
        "truncate -s 20 $1/index",
        "mv $1/index $1/elsewhere",
        "mv $1 $1.away",
    ]
    .into_iter()
    .enumerate()
    {
        let layer = layer_of(&kiln, ": RUN echo one");
        shell(
            &kiln,
            &harm.replace("$1", layer.to_str().expect("a plain name")),
        );
        kiln.run(&["system", "check"])
            .failed()
            .says(&["damaged: layer"]);
        change(&format!("after {number}"));
        let build = kiln.build(&["-t", "whole", &context]).ok();
        build.says(&[
            "is damaged: its index",
            "dropped with",
            "one\n",
            "] RUN echo one",
            "] RUN cat /one > /two",
        ]);
        kiln.run(&["run", "--rm", "whole", "cat", "/one", "/two"])
            .ok()
            .says(&["one\none"]);
        shell(&kiln, &format!("rm -rf {}.away", layer.display()));
        kiln.run(&["system", "check", "--deep"]).ok();
    }
    // A file's content is looked at by the deep check, which drops the layer if it may.
    if setting == Setting::Root {
        let layer = layer_of(&kiln, ": RUN echo one");
        shell(&kiln, &format!("echo uno > {}/fs/one", layer.display()));
        kiln.run(&["system", "check"]).ok();
        kiln.run(&["system", "check", "--deep"]).failed().says(&[
            "one: its content is another",
            "kiln system check --deep --repair",
        ]);
        kiln.run(&["system", "check", "--deep", "--repair"])
            .ok()
            .says(&["dropped: layer", "whole"]);
        kiln.run(&["system", "check", "--deep"]).ok();
        assert_eq!(
            kiln.build(&["-t", "whole", &context]).ok().executed().len(),
            3
        );
    }
}

#[test]
fn damaged_blobs_are_not_passed_on() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let blobs = kiln.store().join("blobs/sha256");
    let found: Vec<_> = fs::read_dir(&blobs).expect("there").flatten().collect();
    assert_eq!(found.len(), 1, "the archive's layer is kept as it came");
    let file = fs::OpenOptions::new()
        .write(true)
        .open(found[0].path())
        .expect("own file");
    file.write_all_at(b"?", 2000).expect("own file");
    kiln.run(&["system", "check"]).ok();
    kiln.run(&["system", "check", "--deep"])
        .failed()
        .says(&["damaged: blob sha256:"]);
    let out = kiln.file("out.tar");
    kiln.run(&["save", "-o", out.to_str().expect("a plain name"), "busybox"])
        .failed()
        .says(&[
            "is damaged (the blob with its tar)",
            "dropped with",
            "busybox:latest",
            "build, pull or load the image again",
        ]);
    assert!(!out.exists());
    assert!(!found[0].path().exists());
    kiln.run(&["system", "check", "--deep"]).ok();
    kiln.run(&[
        "load",
        "-i",
        kiln.base_archive("busybox").to_str().expect("a plain name"),
    ])
    .ok();
    kiln.run(&["save", "-o", out.to_str().expect("a plain name"), "busybox"])
        .ok();
}

#[test]
fn a_damaged_database_is_told() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", DOCKERFILE)]);
    kiln.build(&["-t", "x", &context]).ok();
    kiln.leaves_nothing();
    // All pages but the first, in the file and in its log.
    for name in ["kiln.db", "kiln.db-wal"] {
        let path = kiln.store().join(name);
        let Ok(file) = fs::OpenOptions::new().write(true).open(&path) else {
            continue;
        };
        let length = file.metadata().expect("own file").len();
        if name.ends_with("wal") {
            file.set_len(0).expect("own file");
        } else {
            assert!(length > 8192);
            let noise = vec![0xa5; length as usize - 4096];
            file.write_all_at(&noise, 4096).expect("own file");
        }
    }
    for args in [&["images"][..], &["build", &context], &["system", "df"]] {
        kiln.run(args).failed().says(&[
            "database of the store: ",
            "hint: kiln system check tells what is damaged",
        ]);
    }
    kiln.run(&["system", "check"]).failed().says(&["database"]);
}

fn kill_9_fifty_times(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[]);
    let seed = SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(1, |time| u64::from(time.subsec_nanos()));
    xtask::soak::kills::torture(&|args| kiln.command(args), Path::new(&context), 50, seed)
        .unwrap_or_else(|error| panic!("{error:#}"));
    kiln.leaves_nothing();
}

fn leftovers_are_swept(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let store = kiln.store().to_str().expect("a plain name").to_owned();
    let left = [
        "claims/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
        "leases/0123456789abcdef0123456789abcdef",
        "layers/0123456789abcdef0123456789abcdef/fs/file",
        "sources/new-4711-3/tree/file",
        "cache-mounts/x-012345678901.4711-0.new/fs/file",
        "cache-mounts/0123456789abcdef.gone/file",
        "tmp/probe-4711-0/file",
        "blobs/sha256/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    ];
    for path in left {
        shell(
            &kiln,
            &format!("mkdir -p $(dirname {store}/{path}); echo left > {store}/{path}"),
        );
    }
    let context = kiln.context(&[("Dockerfile", DOCKERFILE)]);
    kiln.build(&[&context]).ok();
    kiln.leaves_nothing();
    for path in left {
        // A blob's file without a row is left alone for some minutes: its writer may be waiting for the database.
        let there = if path.starts_with("blobs") {
            "test -e"
        } else {
            "test ! -e"
        };
        let top: Vec<_> = path
            .split('/')
            .take(if path.starts_with("blobs") { 3 } else { 2 })
            .collect();
        shell(&kiln, &format!("{there} {store}/{}", top.join("/")));
    }
    kiln.run(&["system", "check", "--deep"]).ok();
}

#[test]
fn power_is_lost() {
    let Some(kiln) = Kiln::on_powered_disk(&["busybox"]) else {
        return;
    };
    let context = kiln.context(&[]);
    let dockerfile = |round: usize| {
        let text = format!(
            "FROM busybox\nRUN head -c 100000 /dev/urandom > /a; echo {round} > /b\nRUN sha256sum /a > /c\n\
             RUN --mount=type=cache,target=/cache for file in $(ls -d /cache/?*); do test -s $file || echo em''pty: $file; done; \
             head -c 100000 /dev/urandom > /cache/{round}; echo {round} > /cache/1\nCMD [\"sh\", \"-c\", \"sha256sum -c /c && cat /b\"]\n"
        );
        fs::write(Path::new(&context).join("Dockerfile"), text).expect("own folder");
    };
    dockerfile(0);
    kiln.build(&["-t", "old", &context]).ok();
    // What runs on after a build brings it to the disk.
    kiln.leaves_nothing();
    let mut survived = 0;
    for (round, wait) in [0, 0, 20, 50, 100, 200, 500, 1000, 3000]
        .into_iter()
        .enumerate()
    {
        dockerfile(round + 1);
        let build = kiln.build(&["-t", "new", &context]).ok();
        build.silent_about(&["empty: /cache/"]);
        std::thread::sleep(Duration::from_millis(wait));
        kiln.cut_power();
        kiln.run(&["system", "check", "--deep"]).ok();
        // What was on the disk before is there; what was just built is whole, or gone.
        kiln.run(&["run", "--rm", "old"]).ok().says(&["/a: OK\n0"]);
        let images = kiln.run(&["images", "-q", "new"]).ok();
        if !images.stdout.trim().is_empty() {
            kiln.run(&["run", "--rm", "new"]).ok().says(&["/a: OK"]);
            survived += 1;
        }
        kiln.build(&["-t", "new", &context]).ok();
        kiln.run(&["run", "--rm", "new"])
            .ok()
            .says(&[&format!("/a: OK\n{}", round + 1)]);
    }
    assert!(survived > 0, "three seconds are enough for the disk");
}
