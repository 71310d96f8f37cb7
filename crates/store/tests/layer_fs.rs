//! Files of a layer, as root and as a plain user, and what hostile entries try.

mod common;

use std::fs;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Instant;

use common::{child, child_argument, dir, entry, file, is_root, path};
use kiln_image::{Entry, Kind, LayerIndex, LayerPath};
use kiln_store::{Content, Ids, LayerFs, delete_layer, layer_fs};

struct Layer {
    dir: tempfile::TempDir,
    fs: LayerFs,
}

fn new(ids: Ids) -> Layer {
    let dir = tempfile::tempdir().unwrap();
    let fs = LayerFs::create(dir.path(), ids).unwrap();
    Layer { dir, fs }
}

impl Layer {
    fn real(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("fs").join(name)
    }

    fn stat(&self, name: &str) -> fs::Metadata {
        fs::symlink_metadata(self.real(name)).unwrap()
    }

    fn put(&self, entry: &Entry) {
        self.fs.put(entry, Content::None).unwrap();
    }

    fn write(&self, name: &str, content: &[u8]) {
        self.fs
            .put(&file(name, content), Content::Bytes(content))
            .unwrap();
    }
}

fn xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 1024];
    let size = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(size);
    Some(value)
}

/// `cap_net_raw+ep` in the kernel's version 2 (`linux/capability.h`).
const NET_RAW: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

#[test]
fn metadata_arrive_whole() {
    if !is_root() {
        return;
    }
    let layer = new(Ids::Real);
    let mut folder = entry(
        "d",
        Kind::Dir {
            opaque: false,
            implied: false,
        },
        0o2511,
    );
    (folder.uid, folder.gid) = (7, 8);
    let mut program = file("d/program", b"x");
    (program.mode, program.uid, program.gid) = (0o4755, 33, 34);
    program.xattrs = [
        (b"security.capability".to_vec(), NET_RAW.to_vec()),
        (b"trusted.secret".to_vec(), b"1".to_vec()),
        (b"user.name".to_vec(), b"value".to_vec()),
        (b"user.overlay.opaque".to_vec(), b"y".to_vec()),
    ]
    .into();
    let mut link = entry("d/link", Kind::Symlink(b"/etc/passwd".to_vec()), 0o777);
    (link.uid, link.gid) = (5, 6);
    let mut fifo = entry("d/fifo", Kind::Fifo, 0o622);
    (fifo.uid, fifo.gid) = (1, 2);
    layer.put(&folder);
    layer.put(&fifo);
    layer.put(&link);
    layer.fs.put(&program, Content::Bytes(b"x")).unwrap();
    let index = LayerIndex::new(vec![folder, fifo, link, program]);
    let Layer { dir, fs } = layer;
    fs.finish(&index).unwrap();

    assert_eq!(layer_fs::read_index(dir.path()).unwrap(), index);
    let checks: [(&str, u32, u32, u32); 4] = [
        ("d", 0o42511, 7, 8),
        ("d/program", 0o104_755, 33, 34),
        ("d/link", 0o120_777, 5, 6),
        ("d/fifo", 0o10622, 1, 2),
    ];
    for (name, mode, uid, gid) in checks {
        let stat = fs::symlink_metadata(dir.path().join("fs").join(name)).unwrap();
        assert_eq!(
            (stat.mode(), stat.uid(), stat.gid()),
            (mode, uid, gid),
            "{name}"
        );
        assert_eq!(
            (stat.mtime(), stat.mtime_nsec()),
            (1_000_000_000, 5),
            "{name}"
        );
    }
    let program = dir.path().join("fs/d/program");
    assert_eq!(xattr(&program, "security.capability").unwrap(), NET_RAW);
    assert_eq!(xattr(&program, "user.name").unwrap(), b"value");
    assert_eq!(xattr(&program, "trusted.secret"), None);
    assert_eq!(xattr(&program, "user.overlay.opaque"), None);
}

#[test]
fn overlay_marks() {
    if !is_root() {
        return;
    }
    let layer = new(Ids::Real);
    layer.put(&entry(
        "opaque",
        Kind::Dir {
            opaque: true,
            implied: false,
        },
        0o755,
    ));
    layer.put(&entry("opaque/gone", Kind::Whiteout, 0));
    assert_eq!(
        xattr(&layer.real("opaque"), "user.overlay.opaque").unwrap(),
        b"y"
    );
    let gone = layer.stat("opaque/gone");
    assert!(gone.file_type().is_char_device());
    assert_eq!(gone.rdev(), 0);
}

#[test]
fn devices_and_sockets_are_in_the_index_only() {
    let layer = new(common::ids());
    for kind in [Kind::Char(1, 3), Kind::Block(8, 0), Kind::Socket] {
        layer.write("node", b"was here before");
        layer.put(&entry("node", kind, 0o666));
        assert!(!layer.real("node").exists());
    }
    let second = entry("second", Kind::Char(1, 3), 0o666);
    layer.fs.link(&second, &path("node")).unwrap();
}

#[test]
fn default_acls_do_not_reach_the_files() {
    if !is_root() {
        return;
    }
    // Version 2; user::rwx, group::r-x, other::--- (`linux/posix_acl_xattr.h`).
    let mut acl = vec![2, 0, 0, 0];
    for (tag, allowed) in [(1u16, 7u16), (4, 5), (0x20, 0)] {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&allowed.to_le_bytes());
        acl.extend_from_slice(&[0xff; 4]);
    }
    let mut folder = dir("d");
    folder.xattrs = [(b"system.posix_acl_default".to_vec(), acl.clone())].into();
    let layer = new(Ids::Real);
    layer.put(&folder);
    layer.put(&dir("d/inner"));
    let real = layer.real("d");
    let inner = dir("d/inner");
    layer
        .fs
        .finish(&LayerIndex::new(vec![folder, inner]))
        .unwrap();
    match xattr(&real, "system.posix_acl_default") {
        Some(found) => assert_eq!(found, acl),
        None => return,
    }
    assert_eq!(xattr(&real.join("inner"), "system.posix_acl_default"), None);
}

#[test]
fn content_from_everywhere() {
    let layer = new(common::ids());
    let big: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
    let other = tempfile::tempdir().unwrap();
    let source = other.path().join("source");
    fs::write(&source, &big).unwrap();

    let opened = fs::File::open(&source).unwrap();
    layer
        .fs
        .put(&file("copied", &big), Content::Copy(opened.as_fd()))
        .unwrap();
    layer
        .fs
        .put(&file("read", &big), Content::Reader(&mut &big[..]))
        .unwrap();
    layer
        .fs
        .put(&file("moved", &big), Content::Move(&source))
        .unwrap();
    layer.fs.put(&file("empty", b""), Content::None).unwrap();
    let mut hashed = dir("hashed");
    layer.fs.put_hashed(&mut hashed, &mut &big[..]).unwrap();
    assert_eq!(hashed.kind, file("hashed", &big).kind);

    assert!(!source.exists());
    for name in ["copied", "read", "moved", "hashed"] {
        assert!(fs::read(layer.real(name)).unwrap() == big, "{name}");
    }
    assert_eq!(fs::read(layer.real("empty")).unwrap(), b"");
    // Files that say they are empty and are not.
    let proc = fs::File::open("/proc/self/cmdline").unwrap();
    let content = fs::read("/proc/self/cmdline").unwrap();
    layer
        .fs
        .put(&file("proc", &content), Content::Copy(proc.as_fd()))
        .unwrap();
    assert_eq!(fs::read(layer.real("proc")).unwrap(), content);
    // From another file system, where there is one.
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        let source = tempfile::NamedTempFile::new_in(memory).unwrap();
        fs::write(source.path(), &big).unwrap();
        layer
            .fs
            .put(
                &file("copied", &big),
                Content::Copy(source.as_file().as_fd()),
            )
            .unwrap();
        layer
            .fs
            .put(&file("moved", &big), Content::Move(source.path()))
            .unwrap();
        assert!(!source.path().exists());
        assert!(fs::read(layer.real("moved")).unwrap() == big);
    }
}

#[test]
fn a_file_that_changed_is_refused() {
    let layer = new(common::ids());
    let source = tempfile::NamedTempFile::new().unwrap();
    fs::write(source.path(), b"longer than before").unwrap();
    let expected = file("f", b"before");
    let copied = layer
        .fs
        .put(&expected, Content::Copy(source.as_file().as_fd()))
        .unwrap_err();
    assert_eq!(copied.kind(), io::ErrorKind::InvalidData);
    assert!(
        copied
            .to_string()
            .starts_with("f: expected 6 bytes, got 18"),
        "{copied}"
    );
    let read = layer
        .fs
        .put(&expected, Content::Bytes(b"short"))
        .unwrap_err();
    assert_eq!(read.kind(), io::ErrorKind::InvalidData);
    let moved = layer
        .fs
        .put(&expected, Content::Move(Path::new("/dev/null")))
        .unwrap_err();
    assert_eq!(moved.kind(), io::ErrorKind::InvalidInput);
}

#[test]
fn the_later_entry_replaces() {
    let layer = new(common::ids());
    layer.put(&dir("a"));
    layer.put(&dir("a/b"));
    layer.write("a/b/f", b"1");
    // A folder that stays one keeps what it has.
    layer.put(&dir("a"));
    assert_eq!(fs::read(layer.real("a/b/f")).unwrap(), b"1");
    layer.write("a/b/f", b"22");
    assert_eq!(fs::read(layer.real("a/b/f")).unwrap(), b"22");
    // A file for a folder, and back, through the folder last used.
    layer.write("a/b", b"333");
    assert_eq!(fs::read(layer.real("a/b")).unwrap(), b"333");
    layer.put(&dir("a/b"));
    layer.write("a/b/f", b"4444");
    layer.put(&entry("a", Kind::Symlink(b"elsewhere".to_vec()), 0o777));
    assert!(
        layer
            .fs
            .put(&file("a/b/f", b"5"), Content::Bytes(b"5"))
            .is_err()
    );
    layer.fs.remove(&path("a")).unwrap();
    layer.fs.remove(&path("a")).unwrap();
    layer.fs.remove(&path("a/b/c")).unwrap();
    assert!(fs::symlink_metadata(layer.real("a")).is_err());
    assert_eq!(
        layer.fs.remove(&LayerPath::root()).unwrap_err().kind(),
        io::ErrorKind::InvalidInput
    );
}

#[test]
fn hard_links() {
    let layer = new(common::ids());
    layer.put(&dir("d"));
    layer.write("d/first", b"1");
    layer.write("second", b"is replaced");
    let second = file("second", b"1");
    layer.fs.link(&second, &path("d/first")).unwrap();
    layer.fs.link(&second, &path("d/first")).unwrap();
    assert_eq!(layer.stat("second").ino(), layer.stat("d/first").ino());
    assert_eq!(layer.stat("second").nlink(), 2);
    assert!(layer.fs.link(&second, &path("second")).is_err());
    assert!(layer.fs.link(&second, &path("d")).is_err());
    assert!(
        layer
            .fs
            .link(&file("third", b""), &path("missing"))
            .is_err()
    );
}

/// Nothing gets out of `fs/`: not through links, not through `..`, not through absolute names.
#[test]
fn hostile_paths_stay_inside() {
    let layer = new(common::ids());
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().as_os_str().as_encoded_bytes().to_vec();
    fs::write(outside.path().join("victim"), b"whole").unwrap();
    fs::set_permissions(
        outside.path().join("victim"),
        fs::Permissions::from_mode(0o640),
    )
    .unwrap();
    layer.put(&entry("out", Kind::Symlink(target.clone()), 0o777));
    layer.put(&entry("up", Kind::Symlink(b"..".to_vec()), 0o777));
    layer.put(&entry(
        "root",
        Kind::Symlink(b"/proc/self/root".to_vec()),
        0o777,
    ));
    layer.put(&dir("d"));
    layer.put(&entry("d/out", Kind::Symlink(b"../out".to_vec()), 0o777));

    for bytes in ["..", "../x", "d/../../x", ".", "d/.", "/x", "d//x"] {
        // A damaged or forged index cannot hold what `LayerPath` does not let arise.
        let forged = postcard::to_stdvec(bytes).unwrap();
        assert!(
            postcard::from_bytes::<LayerPath>(&forged).is_err(),
            "{bytes}"
        );
    }
    let mut odd: Vec<Entry> = Vec::new();
    for name in [
        "out/new",
        "out/victim",
        "up/new",
        "up/index",
        "root/tmp/kiln-was-here",
        "d/out/victim",
    ] {
        odd.push(file(name, b""));
    }
    let kinds = [
        Kind::Dir {
            opaque: true,
            implied: false,
        },
        file("x", b"").kind,
        Kind::Symlink(b"x".to_vec()),
        Kind::Fifo,
        Kind::Whiteout,
        Kind::Char(1, 3),
    ];
    for mut entry in odd {
        for kind in &kinds {
            entry.kind = kind.clone();
            assert!(
                layer.fs.put(&entry, Content::None).is_err(),
                "{:?} {kind:?}",
                entry.path
            );
        }
        assert!(layer.fs.link(&entry, &path("d/none")).is_err());
        assert!(layer.fs.open(&entry.path).is_err(), "{:?}", entry.path);
        let gone = layer.fs.remove(&entry.path);
        assert!(
            gone.is_err() || !entry.path.as_bytes().contains(&b'.'),
            "{:?}",
            entry.path
        );
    }
    // A file put over a link replaces the link, and a link is never opened or linked through.
    layer.put(&entry(
        "victim",
        Kind::Symlink([&target[..], b"/victim"].concat()),
        0o777,
    ));
    assert!(layer.fs.open(&path("victim")).is_err());
    layer
        .fs
        .link(&file("linked", b""), &path("victim"))
        .unwrap();
    assert!(layer.stat("linked").is_symlink());
    layer.write("victim", b"mine");
    let finished = layer.fs.finish(&LayerIndex::new(vec![dir("out")]));
    assert!(finished.is_err(), "a link in place of a folder");

    assert_eq!(fs::read(outside.path().join("victim")).unwrap(), b"whole");
    assert_eq!(
        fs::metadata(outside.path().join("victim")).unwrap().mode() & 0o7777,
        0o640
    );
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
    assert!(!Path::new("/tmp/kiln-was-here").exists());
}

#[test]
fn opening_does_not_wait_for_fifos() {
    let layer = new(common::ids());
    layer.put(&entry("fifo", Kind::Fifo, 0o600));
    assert!(layer.fs.open(&path("fifo")).is_err());
    assert!(layer.fs.open(&path("none")).is_err());
    layer.write("f", b"content");
    let mut content = String::new();
    layer
        .fs
        .open(&path("f"))
        .unwrap()
        .read_to_string(&mut content)
        .unwrap();
    assert_eq!(content, "content");
}

/// The owner of a recorded layer can write and delete it, whatever the modes say, and it tells whose its files are.
#[test]
fn recorded_as_a_plain_user() {
    let Some(place) = child_argument() else {
        if !is_root() {
            return;
        }
        let place = tempfile::tempdir().unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = child("recorded_as_a_plain_user", place.path());
        if common::as_plain_user(&mut command) {
            assert!(command.status().unwrap().success());
            assert!(!place.path().join("layer").exists());
        }
        return;
    };
    let folder = place.join("layer");
    fs::create_dir(&folder).unwrap();
    let layer = LayerFs::create(&folder, Ids::Recorded).unwrap();
    let mut locked = entry(
        "locked",
        Kind::Dir {
            opaque: false,
            implied: false,
        },
        0o000,
    );
    (locked.uid, locked.gid) = (33, 33);
    let mut secret = file("locked/secret", b"x");
    (secret.mode, secret.uid) = (0o000, 33);
    secret.xattrs = [(b"security.capability".to_vec(), NET_RAW.to_vec())].into();
    let mut program = file("locked/program", b"x");
    program.mode = 0o4111;
    let gone = entry("locked/gone", Kind::Whiteout, 0);
    layer.put(&locked, Content::None).unwrap();
    layer.put(&secret, Content::Bytes(b"x")).unwrap();
    layer.put(&program, Content::Bytes(b"x")).unwrap();
    layer.put(&gone, Content::None).unwrap();
    let index = LayerIndex::new(vec![locked, secret, program, gone]);
    layer.finish(&index).unwrap();
    let mode = |name: &str| fs::metadata(folder.join("fs").join(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("locked"), 0o000);
    let locked = folder.join("fs/locked");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o700)).unwrap();
    assert_eq!(mode("locked/secret"), 0o000);
    assert_eq!(mode("locked/program"), 0o4111);
    // Who may not read a file may not read its attributes either; root of a user namespace may.
    let secret = locked.join("secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o400)).unwrap();
    let owner = |path: &Path| {
        let mut value = [0; 64];
        let length = rustix::fs::lgetxattr(path, kiln_image::OWNER_XATTR, &mut value[..]).ok()?;
        kiln_image::OwnerRecord::decode(&value[..length]).map(|owner| (owner.uid, owner.gid))
    };
    assert_eq!(owner(&locked), Some((33, 33)));
    assert_eq!(owner(&secret), Some((33, 0)));
    assert_eq!(owner(&locked.join("program")), None);
    assert_eq!(layer_fs::read_index(&folder).unwrap(), index);
    // What a RUN leaves behind.
    fs::create_dir(folder.join("fs/locked/shut")).unwrap();
    fs::write(folder.join("fs/locked/shut/f"), b"x").unwrap();
    for (name, mode) in [("locked/shut", 0o000), ("locked", 0o555)] {
        fs::set_permissions(
            folder.join("fs").join(name),
            fs::Permissions::from_mode(mode),
        )
        .unwrap();
    }
    delete_layer(&folder).unwrap();
}

/// Deeper than the longest path and than a process may have files open.
#[test]
fn very_deep_trees_are_deleted() {
    let place = tempfile::tempdir().unwrap();
    let folder = place.path().join("layer");
    fs::create_dir(&folder).unwrap();
    let mut at: std::os::fd::OwnedFd = fs::File::open(&folder).unwrap().into();
    let (mode, flags) = (rustix::fs::Mode::RWXU, rustix::fs::OFlags::DIRECTORY);
    for _ in 0..2100 {
        rustix::fs::mkdirat(&at, "d", mode).unwrap();
        at = rustix::fs::openat(&at, "d", flags, mode).unwrap();
    }
    delete_layer(&folder).unwrap();
    assert!(!folder.exists());
    delete_layer(&folder).unwrap();
}

/// Not a test: how long 20,000 files take. `cargo test --release -p kiln-store -- --ignored --nocapture many_files`.
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stderr, reason = "a measurement")]
fn many_files() {
    let layer = new(common::ids());
    let mut entries = Vec::new();
    for folder in 0..1000 {
        entries.push(dir(&format!("d{folder}")));
        for name in 0..20 {
            entries.push(file(&format!("d{folder}/f{name}"), &[b'x'; 2000]));
        }
    }
    let index = LayerIndex::new(entries);
    let start = Instant::now();
    for entry in index.entries() {
        let content = if entry.is_file() {
            Content::Bytes(&[b'x'; 2000])
        } else {
            Content::None
        };
        layer.fs.put(entry, content).unwrap();
    }
    eprintln!("put: {:?}", start.elapsed());
    let start = Instant::now();
    layer.fs.finish(&index).unwrap();
    eprintln!("finish: {:?}", start.elapsed());
    let start = Instant::now();
    delete_layer(layer.dir.path()).unwrap();
    eprintln!("delete: {:?}", start.elapsed());
}
