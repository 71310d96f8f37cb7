//! `kiln cache`: cache mounts seen, removed, and carried from one store to another, as a job of a CI does.

use std::process::Stdio;
use std::time::{Duration, Instant};

use kiln_tests::{Kiln, Setting, in_each_setting};

in_each_setting! { carried_to_another_store a_locked_one_is_waited_for }

const FILLS: &str = "FROM busybox\nUSER 33:44\n\
    RUN --mount=type=cache,target=/c,id=deps,sharing=locked if [ -e /c/d/file ]; then echo hit $(stat -c '%u:%g %a' /c /c/d/file) $(cat /c/d/link); \
    else mkdir /c/d; echo content > /c/d/file; chmod 640 /c/d/file; ln /c/d/file /c/d/name; ln -s file /c/d/link; echo filled; fi\n";

fn carried_to_another_store(setting: Setting) {
    let (Some(kiln), Some(other)) = (
        Kiln::fresh(setting, &["busybox"]),
        Kiln::fresh(setting, &["busybox"]),
    ) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", FILLS)]);
    kiln.build(&["--no-cache", &context]).ok().says(&["filled"]);
    kiln.run(&["cache", "ls"]).ok().says(&[
        "ID        SIZE",
        "LAST USED",
        "deps",
        "locked",
        "33:44",
    ]);
    for name in ["caches.tar", "caches.tar.gz", "caches.tar.zst"] {
        let file = kiln.file(name);
        let file = file.to_str().expect("a plain name");
        kiln.run(&["cache", "export", "-o", file, "deps"]).ok();
        kiln.run(&["cache", "rm", "deps"]).ok();
        kiln.run(&["cache", "ls"]).ok().silent_about(&["deps"]);
        kiln.run(&["cache", "import", file])
            .ok()
            .says(&["Imported: deps"]);
        kiln.build(&["--no-cache", &context])
            .ok()
            .says(&["hit 33:44 755 33:44 640 content"]);
    }
    // Through pipes, into a store that never had it.
    let packed = kiln
        .command(&["cache", "export"])
        .output()
        .expect("kiln starts");
    assert!(packed.status.success());
    let file = other.file("packed");
    std::fs::write(&file, packed.stdout).expect("own folder");
    let import = other
        .command(&["cache", "import"])
        .stdin(std::fs::File::open(&file).expect("just written"))
        .output()
        .expect("kiln starts");
    assert!(
        import.status.success(),
        "{}",
        String::from_utf8_lossy(&import.stderr)
    );
    let there = other.context(&[("Dockerfile", FILLS)]);
    other
        .build(&["--no-cache", &there])
        .ok()
        .says(&["hit 33:44 755 33:44 640 content"]);
    other.run(&["system", "check", "--deep"]).ok();
    // No archive of cache mounts, and none of this name.
    let archive = kiln.base_archive("busybox");
    kiln.run(&["cache", "import", archive.to_str().expect("a plain name")])
        .failed()
        .says(&["the archive has no file kiln-cache.json"]);
    kiln.run(&["cache", "rm", "nothing"])
        .failed()
        .says(&["no such cache mount: nothing", "kiln cache ls"]);
    kiln.leaves_nothing();
}

fn a_locked_one_is_waited_for(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    for sharing in ["locked", "shared"] {
        let dockerfile = format!(
            "FROM busybox\nRUN --mount=type=cache,target=/c,id=busy-{sharing},sharing={sharing} : {sharing}; echo begun > /c/x; sleep 3; echo ended > /c/x\n"
        );
        let context = kiln.context(&[("Dockerfile", &dockerfile)]);
        let mut build = kiln
            .command(&["build", "-q", &context])
            .stdout(Stdio::null())
            .spawn()
            .expect("kiln starts");
        let id = format!("busy-{sharing}");
        let started = Instant::now();
        while !kiln.run(&["cache", "ls"]).ok().stdout.contains("in use") {
            assert!(started.elapsed() < Duration::from_secs(10), "never in use");
        }
        let file = kiln.file("waited.tar");
        kiln.run(&[
            "cache",
            "export",
            "-o",
            file.to_str().expect("a plain name"),
            &id,
        ])
        .ok()
        .says(&[&format!("waiting for the cache mount {id}: a build")]);
        assert!(build.wait().expect("own child").success());
        let packed = std::fs::read(&file).expect("written");
        let has = |text: &[u8]| packed.windows(text.len()).any(|part| part == text);
        assert!(
            has(b"ended") && !has(b"begun"),
            "packed before the step had ended"
        );
    }
}
