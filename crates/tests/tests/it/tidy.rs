//! What steps need beside their files is removed, sooner or later.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kiln_tests::{Kiln, Setting};

/// The settings whose stores can be looked into from here: the one on an overlay is in another mount namespace.
macro_rules! where_files_are_seen {
    ($($name:ident)*) => {$(
        mod $name {
            use super::Setting;

            #[test]
            fn as_root() {
                super::$name(Setting::Root);
            }

            #[test]
            fn as_plain_user() {
                super::$name(Setting::User);
            }

            #[test]
            fn with_one_id() {
                super::$name(Setting::OneId);
            }
        }
    )*};
}

where_files_are_seen! { nothing_is_left killed_workers_leftovers }

/// As on kernels before 6.5, which take all folders of an overlay in one text.
#[test]
fn mounted_as_by_old_kernels() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", DOCKERFILE)]);
    let id = |rootfs: &str| {
        let args = [
            "build",
            "-q",
            "--no-cache",
            "--build-arg",
            "SOURCE_DATE_EPOCH=0",
        ];
        kiln.run(&[&["--rootfs", rootfs][..], &args, &[&context]].concat())
            .ok()
            .stdout
    };
    assert_eq!(id("overlay-mount"), id("overlay"));
    kiln.run(&["--rootfs", "overlay-mount", "info"])
        .ok()
        .says(&["mount(2)"]);
    assert_eq!(scratch(&kiln), [] as [PathBuf; 0]);
}

/// What was found out of overlays is used by later processes with the same rights, and by no others.
#[test]
fn overlays_are_tried_once() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", DOCKERFILE)]);
    let known = kiln.store().join("overlays-work");
    let build = || kiln.build(&["--no-cache", &context]).ok();
    build();
    let found = fs::read(&known).expect("remembered");
    let time = || fs::metadata(&known).expect("remembered").modified().ok();
    let before = time();
    build();
    assert_eq!(time(), before, "tried again");
    fs::write(&known, "of a machine that was started earlier").expect("own file");
    build();
    assert_eq!(fs::read(&known).expect("remembered"), found);
    let before = time();
    kiln.run(&["info"]).ok().says(&["overlay mounts work"]);
    assert_ne!(time(), before, "told without a try");
}

const DOCKERFILE: &str = "FROM busybox\nRUN mkdir /a && touch /a/b\nRUN rm -r /a\nRUN true\n";

/// What stays in the store's folder for short-lived things: a worker tidies up when its front has ended.
fn scratch(kiln: &Kiln) -> Vec<PathBuf> {
    let there = || -> Vec<PathBuf> {
        let entries = fs::read_dir(kiln.store().join("tmp")).expect("a store has it");
        entries.map(|it| it.expect("readable").path()).collect()
    };
    let until = Instant::now() + Duration::from_mins(1);
    while !there().is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    there()
}

fn nothing_is_left(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", DOCKERFILE)]);
    kiln.build(&["-t", "tidy", &context]).ok();
    kiln.run(&["run", "--rm", "tidy", "touch", "/x"]).ok();
    assert_eq!(scratch(&kiln), [] as [PathBuf; 0]);
    for layer in fs::read_dir(kiln.store().join("layers")).expect("layers") {
        let layer = layer.expect("readable").path();
        let mut names: Vec<_> = fs::read_dir(&layer)
            .expect("own folder")
            .map(|it| it.expect("readable").file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["fs", "index"], "{}", layer.display());
    }
    kiln.run(&["system", "check"]).ok();
}

fn killed_workers_leftovers(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    // As a worker leaves it that is killed after a step: the kernel closes its own folder to everybody.
    let own = kiln
        .store()
        .join("tmp/old-0123456789abcdef0123456789abcdef");
    fs::create_dir_all(own.join("work/incompat/volatile")).expect("a store has it");
    let owner = fs::metadata(kiln.store()).expect("it is there");
    for path in ["", "work", "work/incompat", "work/incompat/volatile"] {
        use std::os::unix::fs::MetadataExt as _;
        std::os::unix::fs::chown(own.join(path), Some(owner.uid()), Some(owner.gid()))
            .expect("tests run as root");
    }
    fs::set_permissions(own.join("work"), fs::Permissions::from_mode(0o000)).expect("own folder");
    kiln.run(&["system", "df"]).ok();
    let context = kiln.context(&[("Dockerfile", DOCKERFILE)]);
    kiln.build(&[&context]).ok();
    assert_eq!(scratch(&kiln), [] as [PathBuf; 0]);
}
