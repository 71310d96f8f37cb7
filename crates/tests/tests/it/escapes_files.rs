//! The published escapes through files: links in contexts, stages, archives and layers that point out of the root.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_tests::{Kiln, Outside, SECRET, Setting, in_each_setting};
use tar::{EntryType, Header};

in_each_setting! {
    links_in_copies_stay_inside
    archives_and_layers_stay_inside
    contexts_are_raced
    devices_and_set_id_programs_do_no_harm
}

const UP: &str = "../../../../../../../../../..";

/// Links as sources and as destinations.
fn links_in_copies_stay_inside(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let outside = Outside::new(kiln);
    let path = outside.path();
    let links = format!(
        "ln -s {path} /out; ln -s {UP}{path} /rel; ln -s /proc/self/root{path} /magic; ln -s / /top"
    );
    let evil = format!("FROM busybox AS evil\nRUN {links}\n");
    let names = [
        "out".to_owned(),
        "rel".to_owned(),
        "magic".to_owned(),
        format!("top{path}"),
    ];
    for name in &names {
        for source in [
            format!("/{name}/secret"),
            format!("/{name}/keep/"),
            format!("/{name}/*"),
            format!("/{name}"),
        ] {
            let stage = format!(
                "{evil}FROM busybox\nCOPY --from=evil {source} /x/\nRUN find /x; cat /x/* /x/secret; true\n"
            );
            let main =
                format!("FROM busybox\nCOPY {source} /x/\nRUN find /x; cat /x/* /x/secret; true\n");
            for dockerfile in [stage, main] {
                let context = kiln.context(&[("Dockerfile", &dockerfile)]);
                for (link, to) in [
                    ("out", path),
                    ("rel", &format!("{UP}{path}")),
                    ("magic", &format!("/proc/self/root{path}")),
                    ("top", "/"),
                ] {
                    std::os::unix::fs::symlink(to, format!("{context}/{link}"))
                        .expect("own folder");
                }
                kiln.build(&[&context])
                    .silent_about(&[SECRET, "stub", "panicked"]);
            }
        }
        // As a destination it leads to the same path within the image.
        let dockerfile = format!(
            "{evil}FROM evil\nCOPY new /{name}/\nCOPY new /{name}/keep/stub\nADD new /{name}/a/b/c\nCOPY <<a /{name}/secret\n\na\n\
             WORKDIR /{name}/made\nRUN find /{} -type f | wc -l | sed 's/^/files: /'\n",
            path.trim_start_matches('/')
        );
        let context = kiln.context(&[("Dockerfile", &dockerfile), ("new", "")]);
        let build = kiln.build(&[&context]);
        if name == "magic" {
            build.silent_about(&["panicked"]);
        } else {
            build.ok().says(&["files: 4"]);
        }
        outside.untouched();
    }
}

/// An archive of one's own making, with names that no honest program writes.
fn archive(entries: &[(&str, EntryType, &str, u32)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, kind, link, mode) in entries {
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name.as_bytes());
        old.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(*mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        if matches!(kind, EntryType::Block | EntryType::Char) {
            // The numbers of a disk, and of the memory.
            let number = if *kind == EntryType::Block {
                (254, 0)
            } else {
                (1, 1)
            };
            header.set_device_major(number.0).expect("gnu has them");
            header.set_device_minor(number.1).expect("gnu has them");
        }
        let content: &[u8] = if *kind == EntryType::Regular {
            b"overwritten"
        } else {
            b""
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        tar.append(&header, content).expect("memory");
    }
    tar.into_inner().expect("memory")
}

/// Each as an archive for ADD, as the whole of an image, and as a context.
fn archives_and_layers_stay_inside(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let outside = Outside::new(kiln);
    let path = outside.path();
    let (file, link, hard) = (EntryType::Regular, EntryType::Symlink, EntryType::Link);
    let (up, rel) = (format!("{UP}{path}/written"), format!("{UP}{path}"));
    let secret = format!("{path}/secret");
    let (up_secret, magic) = (format!("{UP}{secret}"), format!("/proc/self/root{path}"));
    let archives: [&[(&str, EntryType, &str, u32)]; 16] = [
        &[(&up, file, "", 0o644)],
        &[(&secret, file, "", 0o644)],
        &[("l", link, path, 0o777), ("l/written", file, "", 0o644)],
        &[("l", link, path, 0o777), ("l/keep/stub", file, "", 0o644)],
        &[
            ("l", link, path, 0o777),
            ("l/secret", file, "", 0o644),
            ("l", file, "", 0o644),
        ],
        &[("l", link, &rel, 0o777), ("l/written", file, "", 0o644)],
        &[("l", link, &magic, 0o777), ("l/written", file, "", 0o644)],
        &[
            ("a/l", link, "..", 0o777),
            ("a/l/l", link, path, 0o777),
            ("a/l/l/written", file, "", 0o644),
        ],
        &[("h", hard, &secret, 0o644), ("h", file, "", 0o644)],
        &[("h", hard, &up_secret, 0o4777)],
        &[("l", link, path, 0o777), ("h", hard, "l/secret", 0o644)],
        &[
            ("l", link, &secret, 0o777),
            ("h", hard, "l", 0o600),
            ("h", file, "", 0o644),
        ],
        &[
            ("l", link, path, 0o777),
            (".wh.l", file, "", 0o644),
            ("l/.wh.secret", file, "", 0o644),
        ],
        &[
            (".wh..", file, "", 0o644),
            ("d/.wh...", file, "", 0o644),
            ("d/.wh.", file, "", 0o644),
        ],
        &[
            ("l", link, path, 0o777),
            ("l/.wh..wh..opq", file, "", 0o644),
        ],
        &[
            ("l", link, path, 0o777),
            ("l", EntryType::Directory, "", 0o700),
            ("l/written", file, "", 0o644),
        ],
    ];
    let read = "cat /x/h /h /x/l/secret /l/secret /h/secret; true";
    for (number, entries) in archives.iter().enumerate() {
        let bytes = archive(entries);
        let context = kiln.context(&[
            (
                "Dockerfile",
                &format!("FROM busybox\nADD evil.tar /x/\nRUN {read}\n"),
            ),
            (
                "copied/Dockerfile",
                &format!("FROM busybox\nCOPY . /x/\nRUN {read}\n"),
            ),
        ]);
        std::fs::write(format!("{context}/evil.tar"), &bytes).expect("own folder");
        kiln.build(&[&context]).silent_about(&[SECRET, "panicked"]);
        let name = format!("evil-{number}");
        let import = kiln.run(&["import", &format!("{context}/evil.tar"), &name]);
        if import.silent_about(&[SECRET, "panicked"]).status.success() {
            let dockerfile =
                format!("FROM {name} AS evil\nFROM busybox\nCOPY --from=evil / /x/\nRUN {read}\n");
            let above = kiln.context(&[("Dockerfile", &dockerfile)]);
            kiln.build(&[&above]).silent_about(&[SECRET, "panicked"]);
            let run = kiln.run(&["run", "--rm", &name, "/h"]);
            run.silent_about(&[SECRET, "panicked"]);
        }
        let mut build = kiln.command(&[
            "build",
            "--progress",
            "plain",
            "-f",
            &format!("{context}/copied/Dockerfile"),
            "-",
        ]);
        let archive = std::fs::File::open(format!("{context}/evil.tar")).expect("own file");
        let output = build.stdin(archive).output().expect("kiln starts");
        kiln_tests::Outcome::new(format!("build - < evil-{number}.tar"), &output)
            .silent_about(&[SECRET, "panicked"]);
        outside.untouched();
    }
}

/// A folder of the context is a link every other moment while it is read.
fn contexts_are_raced(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let outside = Outside::new(kiln);
    let context = kiln.context(&[
        ("Dockerfile", "FROM busybox\nCOPY d /x/\nCOPY d/secret d/keep/stub /y/\nRUN cat /x/secret /x/keep/stub /y/*; true\n"),
        ("d/secret", "inno''cent"),
        ("d/keep/stub", "inno''cent"),
    ]);
    let (folder, link) = (format!("{context}/d"), format!("{context}/l"));
    std::os::unix::fs::symlink(outside.path(), &link).expect("own folder");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    &folder,
                    rustix::fs::CWD,
                    &link,
                    rustix::fs::RenameFlags::EXCHANGE,
                )
                .expect("the file system can exchange");
            }
        });
        for _ in 0..25 {
            let build = kiln.build(&["--no-cache", &context]);
            if build.stdout.contains(SECRET)
                || build.stderr.contains(SECRET)
                || build.stderr.contains("kept")
            {
                over.store(true, Ordering::Relaxed);
                panic!("{build}");
            }
        }
        over.store(true, Ordering::Relaxed);
    });
    outside.untouched();
}

/// Nodes and set-id programs that an image brings: of no use in a step, and out of reach for other users of the host.
fn devices_and_set_id_programs_do_no_harm(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let bytes = archive(&[
        ("disk", EntryType::Block, "", 0o666),
        ("mem", EntryType::Char, "", 0o666),
        ("dev/mem", EntryType::Char, "", 0o666),
        ("set-id", EntryType::Regular, "", 0o6755),
    ]);
    let dockerfile = "FROM busybox\nADD evil.tar /\nRUN ls -l /disk /mem /set-id; \
                      mknod /own-disk b 254 0; mknod /own-zero c 1 5; \
                      for node in /disk /mem /dev/mem /own-disk /own-zero; do dd if=$node count=1 | wc -c | grep -qx 0 || echo OPEN''ED $node; done; cp /bin/busybox /su && chmod 4755 /su\n";
    let context = kiln.context(&[("Dockerfile", dockerfile)]);
    std::fs::write(format!("{context}/evil.tar"), bytes).expect("own folder");
    kiln.build(&["-t", "nodes", &context])
        .ok()
        .says(&["-rwsr-sr-x"])
        .silent_about(&["OPENED"]);
    kiln.run(&["run", "--rm", "nodes", "dd", "if=/disk", "count=1"])
        .failed();
    if setting == Setting::Overlay {
        return;
    }
    let mode = std::fs::metadata(kiln.store()).expect("the store").mode();
    assert_eq!(mode & 0o077, 0, "others must not enter the store");
    let mut folders = vec![kiln.store().to_owned()];
    let mut set_id = 0;
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else {
            continue;
        };
        for entry in entries.flatten() {
            let Ok(stat) = entry.metadata() else { continue };
            if stat.is_dir() {
                folders.push(entry.path());
            }
            let node = stat.file_type().is_block_device() || stat.file_type().is_char_device();
            assert!(
                !node || stat.rdev() == 0,
                "{} is a device",
                entry.path().display()
            );
            set_id += u32::from(stat.is_file() && stat.mode() & 0o6000 != 0);
            let roots = stat.uid() == 0 && stat.mode() & 0o4000 != 0;
            assert!(
                !roots || setting == Setting::Root,
                "{} is root's",
                entry.path().display()
            );
        }
    }
    assert!(set_id > 0, "the files were looked at");
}
