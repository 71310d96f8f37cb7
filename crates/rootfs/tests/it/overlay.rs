//! Both providers, program by program: which entries the change leaves.

use kiln_image::{InodeOwners, LayerPath};
use kiln_rootfs::{Provider, Rootfs, RootfsError, probe};
use kiln_store::layer_fs::Ids;

use crate::lab::{
    Inside, Lab, MTIME, but_root_time, dir, file, implied, link, remove_old, timeless_dirs, view,
    visible, whiteout, words,
};

type Program = fn(&Inside);

/// Name, program, mount points made beforehand, and the layer that is expected.
const PROGRAMS: &[(&str, Program, &[&str], &[&str])] = &[
    ("nothing", |_| {}, &[], &[]),
    (
        "new file",
        |fs| fs.write("etc/new", "x"),
        &[],
        &["(/etc)", "/etc/new=file"],
    ),
    (
        "changed file",
        |fs| fs.write("etc/passwd", "x"),
        &[],
        &["(/etc)", "/etc/passwd=file"],
    ),
    (
        "changed mode",
        |fs| fs.chmod("etc/passwd", 0o600),
        &[],
        &["(/etc)", "/etc/passwd=file"],
    ),
    (
        "changed owner",
        |fs| fs.chown("etc/passwd", 7, 8),
        &[],
        &["(/etc)", "/etc/passwd=file"],
    ),
    (
        "changed owner of a link",
        |fs| fs.chown("bin", 7, 8),
        &[],
        &["/bin=link"],
    ),
    (
        "touched file",
        |fs| fs.set_mtime("etc/passwd", (5, 0)),
        &[],
        &["(/etc)", "/etc/passwd=file"],
    ),
    ("touched folder", |fs| fs.set_mtime("etc", (5, 0)), &[], &[]),
    (
        "new attribute",
        |fs| fs.set_xattr("etc/passwd", "user.x", b"y"),
        &[],
        &["(/etc)", "/etc/passwd=file"],
    ),
    (
        "attribute of a folder",
        |fs| fs.set_xattr("etc", "user.x", b"y"),
        &[],
        &["/etc=dir"],
    ),
    (
        "there and back",
        |fs| {
            fs.chmod("etc/passwd", 0o600);
            fs.chmod("etc/passwd", 0o644);
            fs.chmod("usr", 0o700);
            fs.chmod("usr", 0o755);
            fs.write("etc/passwd", "root");
            fs.set_mtime("etc/passwd", MTIME);
            fs.write("etc/new", "");
            fs.remove("etc/new");
        },
        &[],
        &[],
    ),
    (
        "removed file",
        |fs| fs.remove("etc/passwd"),
        &[],
        &["(/etc)", "-/etc/passwd"],
    ),
    (
        "removed folder",
        |fs| fs.remove("usr/share"),
        &[],
        &["(/usr)", "-/usr/share"],
    ),
    (
        "removed empty folder",
        |fs| fs.remove("srv"),
        &[],
        &["-/srv"],
    ),
    (
        "folder mode",
        |fs| fs.chmod("usr", 0o700),
        &[],
        &["/usr=dir"],
    ),
    ("root mode", |fs| fs.chmod("", 0o700), &[], &["/=dir"]),
    (
        "folder made again",
        |fs| {
            fs.remove("usr/share");
            fs.mkdir("usr/share");
            fs.write("usr/share/new", "");
        },
        &[],
        &[
            "(/usr)",
            "(/usr/share)",
            "-/usr/share/doc",
            "-/usr/share/man",
            "/usr/share/new=file",
        ],
    ),
    (
        "folder made again with what it held",
        |fs| {
            fs.remove("srv");
            fs.mkdir("srv");
            fs.remove("usr/share");
            fs.mkdir("usr/share");
            fs.mkdir("usr/share/man");
            fs.write("usr/share/man/page", "text");
            fs.set_mtime("usr/share/man/page", MTIME);
        },
        &[],
        &["(/usr)", "(/usr/share)", "-/usr/share/doc"],
    ),
    (
        "folder made again with a folder in it",
        |fs| {
            fs.remove("usr");
            fs.mkdir("usr");
            fs.mkdir("usr/share");
        },
        &[],
        &[
            "(/usr)",
            "(/usr/share)",
            "-/usr/share/doc",
            "-/usr/share/man",
        ],
    ),
    (
        "folder in place of a file",
        |fs| {
            fs.remove("etc/passwd");
            fs.mkdir("etc/passwd");
            fs.write("etc/passwd/x", "");
        },
        &[],
        &["(/etc)", "/etc/passwd=dir", "/etc/passwd/x=file"],
    ),
    (
        "file in place of a folder",
        |fs| {
            fs.remove("usr");
            fs.write("usr", "");
        },
        &[],
        &["/usr=file"],
    ),
    (
        "link in place of a file, file in place of a link",
        |fs| {
            fs.remove("etc/passwd");
            std::os::unix::fs::symlink("x", fs.path("etc/passwd")).unwrap();
            fs.remove("bin");
            fs.write("bin", "");
        },
        &[],
        &["/bin=file", "(/etc)", "/etc/passwd=link"],
    ),
    (
        "hard links",
        |fs| {
            fs.write("etc/one", "1");
            std::fs::hard_link(fs.path("etc/one"), fs.path("srv/two")).unwrap();
            std::fs::hard_link(fs.path("etc/passwd"), fs.path("srv/passwd")).unwrap();
        },
        &[],
        &[
            "(/etc)",
            "/etc/one=file#0",
            "/etc/passwd=file#1",
            "(/srv)",
            "/srv/passwd=file#1",
            "/srv/two=file#0",
        ],
    ),
    (
        "one of two hard links removed",
        |fs| {
            fs.write("etc/one", "1");
            std::fs::hard_link(fs.path("etc/one"), fs.path("etc/two")).unwrap();
            fs.remove("etc/one");
        },
        &[],
        &["(/etc)", "/etc/two=file"],
    ),
    (
        "file moved",
        |fs| std::fs::rename(fs.path("etc/passwd"), fs.path("srv/passwd")).unwrap(),
        &[],
        &["(/etc)", "-/etc/passwd", "(/srv)", "/srv/passwd=file"],
    ),
    (
        "sockets",
        |fs| {
            drop(std::os::unix::net::UnixListener::bind(fs.path("srv/socket")).unwrap());
            fs.remove("etc/passwd");
            drop(std::os::unix::net::UnixListener::bind(fs.path("etc/passwd")).unwrap());
        },
        &[],
        &["(/etc)", "-/etc/passwd"],
    ),
    (
        "fifo",
        |fs| {
            rustix::fs::mknodat(
                fs.root(),
                "srv/fifo",
                rustix::fs::FileType::Fifo,
                rustix::fs::Mode::RUSR,
                0,
            )
            .unwrap();
        },
        &[],
        &["(/srv)", "/srv/fifo=fifo"],
    ),
    (
        "mount points left as they were",
        |fs| {
            fs.mkdir("proc");
            fs.mkdir("run");
            fs.mkdir("run/secrets");
            fs.write("run/secrets/key", "");
            fs.write("etc/resolv.conf", "");
        },
        &[
            "proc",
            "run",
            "run/secrets",
            "run/secrets/key",
            "etc/resolv.conf",
            "etc/passwd",
            "srv",
        ],
        &[],
    ),
    (
        "mount points that were used",
        |fs| {
            fs.mkdir("run");
            fs.mkdir("run/lock");
            fs.mkdir("run/lock/deep");
            fs.write("run/pid", "1");
            fs.write("etc/resolv.conf", "nameserver");
        },
        &["run", "run/lock", "etc/resolv.conf"],
        &[
            "(/etc)",
            "/etc/resolv.conf=file",
            "/run=dir",
            "/run/lock=dir",
            "/run/lock/deep=dir",
            "/run/pid=file",
        ],
    ),
];

#[test]
fn programs() {
    for provider in [Provider::Overlay, Provider::PlainTree] {
        let Some(lab) = Lab::new() else { return };
        let lowers = [
            lab.layer(vec![
                dir("etc"),
                file("etc/passwd", "root"),
                file("etc/gone", ""),
                link("bin", "usr/bin"),
                dir("usr"),
                dir("usr/share"),
                dir("usr/share/doc"),
                file("usr/share/doc/old", "old"),
                dir("usr/share/man"),
                file("usr/share/man/page", "text"),
                dir("opt"),
            ]),
            lab.layer(vec![
                implied("etc"),
                whiteout("etc/gone"),
                whiteout("opt"),
                dir("srv"),
            ]),
        ];
        for (name, program, ignore, expected) in PROGRAMS {
            let mut after = Vec::new();
            let layer = lab.run(provider, &lowers, ignore, |fs| {
                program(fs);
                after = fs.listing();
            });
            assert_eq!(words(&layer.index), *expected, "{provider:?}: {name}");
            let stack = [&lowers[..], &[layer]].concat();
            let shown = lab.shown(&stack);
            assert_eq!(
                but_root_time(shown.clone()),
                but_root_time(visible(&view(&stack))),
                "{provider:?}: {name}: view and mount"
            );
            if ignore.is_empty() {
                assert_eq!(
                    timeless_dirs(shown),
                    timeless_dirs(after),
                    "{provider:?}: {name}: before and after"
                );
            }
        }
    }
}

#[test]
fn empty_root() {
    for provider in [Provider::Overlay, Provider::PlainTree] {
        let Some(lab) = Lab::new() else { return };
        let layer = lab.run(provider, &[], &[], |fs| {
            fs.mkdir("a");
            fs.write("a/b", "c");
        });
        assert_eq!(words(&layer.index), ["/a=dir", "/a/b=file"]);
        assert_eq!(
            lab.shown(std::slice::from_ref(&layer))[2].kind,
            crate::lab::file_kind(b"c")
        );
    }
}

#[test]
fn root_folder_has_the_metadata_of_the_layers() {
    for provider in [Provider::Overlay, Provider::PlainTree] {
        let Some(lab) = Lab::new() else { return };
        let mut root = dir("");
        (root.0.mode, root.0.uid, root.0.gid) = (0o1571, 3, 4);
        root.0.xattrs = [(b"user.a".to_vec(), b"b".to_vec())].into();
        let lowers = [
            lab.layer(vec![root.clone()]),
            lab.layer(vec![implied(""), file("x", "")]),
        ];
        let layer = lab.run(provider, &lowers, &[], |fs| {
            assert_eq!(fs.listing()[0].clone(), root.0, "{provider:?}");
        });
        assert_eq!(words(&layer.index), [""; 0]);
    }
}

#[test]
fn many_layers() {
    let Some(lab) = Lab::new() else { return };
    let layer = |number: u32| {
        lab.layer(vec![
            file(&format!("file-{number:03}"), ""),
            file("top", &number.to_string()),
        ])
    };
    let lowers: Vec<_> = (0..500).map(layer).collect();
    let run = lab.run(Provider::Overlay, &lowers, &[], |fs| {
        assert_eq!(std::fs::read_to_string(fs.path("top")).unwrap(), "499");
        assert_eq!(crate::lab::names(&fs.path("")).len(), 501);
        fs.remove("file-000");
    });
    assert_eq!(words(&run.index), ["-/file-000"]);
    let too_many = [&lowers[..], &[run]].concat();
    let result = Rootfs::prepare(Provider::Overlay, &too_many, &lab.layer_dir(), Ids::Real);
    assert!(
        matches!(
            result,
            Err(RootfsError::TooManyLayers {
                layers: 501,
                most: 500
            })
        ),
        "{result:?}"
    );
}

#[test]
fn names_that_are_no_text_and_deep_folders() {
    for provider in [Provider::Overlay, Provider::PlainTree] {
        let Some(lab) = Lab::new() else { return };
        let layer = lab.run(provider, &[lab.layer(vec![dir("a")])], &[], |fs| {
            let mut at = rustix::fs::openat(
                fs.root(),
                "a",
                rustix::fs::OFlags::RDONLY,
                rustix::fs::Mode::empty(),
            )
            .unwrap();
            for _ in 0..35 {
                let name = [b'\xff'; 100];
                rustix::fs::mkdirat(&at, &name[..], rustix::fs::Mode::RWXU).unwrap();
                at = rustix::fs::openat(
                    &at,
                    &name[..],
                    rustix::fs::OFlags::RDONLY,
                    rustix::fs::Mode::empty(),
                )
                .unwrap();
            }
            let flags = rustix::fs::OFlags::CREATE | rustix::fs::OFlags::WRONLY;
            let file = rustix::fs::openat(&at, "file", flags, rustix::fs::Mode::RUSR).unwrap();
            rustix::io::write(file, b"deep").unwrap();
        });
        let last = layer.index.entries().last().unwrap();
        assert_eq!(last.path.components().count(), 37, "{provider:?}");
        assert_eq!(last.kind, crate::lab::file_kind(b"deep"), "{provider:?}");
    }
}

#[test]
fn an_overlay_can_be_taken_up_again() {
    let Some(lab) = Lab::new() else { return };
    let lowers = [lab.layer(vec![file("a", ""), file("b", "")])];
    let layer_dir = lab.layer_dir();
    let prepare = || Rootfs::prepare(Provider::Overlay, &lowers, &layer_dir, Ids::Real).unwrap();
    let first = prepare();
    let inside = Inside::new(&first);
    inside.chmod("", 0o700);
    inside.remove("a");
    drop((inside, first));
    let second = prepare();
    Inside::new(&second).write("c", "");
    let index = second
        .changes(
            &view(&lowers),
            &[LayerPath::clean("d")],
            &InodeOwners::new(),
        )
        .unwrap();
    assert_eq!(words(&index), ["/=dir", "-/a", "/c=file"]);
}

#[test]
fn marks_that_tie_layers_together_are_refused() {
    let Some(lab) = Lab::new() else { return };
    let layer_dir = lab.layer_dir();
    let rootfs = Rootfs::prepare(Provider::Overlay, &[], &layer_dir, Ids::Real).unwrap();
    Inside::new(&rootfs).mkdir("moved");
    let path = layer_dir.join("fs/moved");
    rustix::fs::setxattr(
        path,
        "user.overlay.redirect",
        b"/x",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let error = rootfs
        .changes(&view(&[]), &[], &InodeOwners::new())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "/moved has the overlay mark user.overlay.redirect: its content lies in another layer"
    );
}

#[test]
fn probing() {
    let Some(lab) = Lab::new() else { return };
    let (provider, why) = probe(lab.path(), remove_old);
    assert_eq!(provider, Provider::Overlay, "{why}");
    assert!(crate::lab::names(&lab.path().join("tmp")).is_empty());
    // An overlay cannot be the upper folder of another one.
    let rootfs = Rootfs::prepare(Provider::Overlay, &[], &lab.layer_dir(), Ids::Real).unwrap();
    let inside = Inside::new(&rootfs);
    inside.mkdir("store");
    let (provider, why) = probe(&inside.path("store"), remove_old);
    assert_eq!(provider, Provider::PlainTree, "{why}");
    assert!(why.contains("cannot mount an overlay"), "{why}");
    assert!(crate::lab::names(&inside.path("store/tmp")).is_empty());
}

/// A step that touches one file of a large base must not cost what the base costs. The margin is for loaded machines
/// and builds without optimisation: it takes about a millisecond.
#[test]
fn cost_of_a_small_change() {
    let Some(lab) = Lab::new() else { return };
    let mut items = Vec::new();
    for folder in 0..100 {
        items.push(dir(&format!("d{folder}")));
        items.extend((0..100).map(|number| file(&format!("d{folder}/file-{number}"), "")));
    }
    let lowers = [lab.layer(items)];
    let below = view(&lowers);
    let mut times: Vec<_> = (0..15)
        .map(|_| {
            let layer_dir = lab.layer_dir();
            let start = std::time::Instant::now();
            let rootfs =
                Rootfs::prepare(Provider::Overlay, &lowers, &layer_dir, Ids::Real).unwrap();
            let prepared = start.elapsed();
            Inside::new(&rootfs).write("d7/file-7", "changed");
            let start = std::time::Instant::now();
            let index = rootfs.changes(&below, &[], &InodeOwners::new()).unwrap();
            assert_eq!(index.entries().len(), 2);
            prepared + start.elapsed()
        })
        .collect();
    times.sort();
    assert!(times[7].as_millis() < 50, "{times:?}");
}
