//! Layers from and to archives: what comes back, and what hostile archives try.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use EntryKind::{Dir, File, HardLink, Symlink};
use common::{dir, entry, file, is_root, path};
use kiln_image::tar::{EntryKind, Header, Writer};
use kiln_image::{DiffId, Entry, Kind, LayerIndex, LayerPath};
use kiln_store::{
    Content, LayerFs, LayerSummary, UnpackError, Unpacked, layer_fs, unpack_tar, write_tar,
};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

type Member<'a> = (Header, &'a [u8]);

/// An archive of headers and contents.
fn archive(members: &[Member<'_>]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (header, content) in members {
        let header = Header {
            size: content.len() as u64,
            ..header.clone()
        };
        writer.append(&header, &mut &content[..]).unwrap();
    }
    writer.finish().unwrap().0
}

fn header(path: &str, kind: EntryKind) -> Header {
    Header {
        path: path.into(),
        kind,
        mode: 0o644,
        ..Header::default()
    }
}

fn link(path: &str, kind: EntryKind, target: &str) -> Header {
    Header {
        link: target.into(),
        ..header(path, kind)
    }
}

struct Layer {
    dir: tempfile::TempDir,
    result: Result<Unpacked, UnpackError>,
}

fn unpack(tar: &[u8]) -> Layer {
    let dir = tempfile::tempdir().unwrap();
    let result = unpack_tar(dir.path(), common::ids(), tar);
    Layer { dir, result }
}

impl Layer {
    fn index(&self) -> LayerIndex {
        layer_fs::read_index(self.dir.path()).unwrap()
    }

    fn tar(&self, clamp: Option<i64>) -> Vec<u8> {
        let mut tar = Vec::new();
        let size = write_tar(self.dir.path(), &self.index(), clamp, &mut tar).unwrap();
        assert_eq!(size, tar.len() as u64);
        tar
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.dir.path().join("fs").join(name)).unwrap()
    }
}

fn paths(index: &LayerIndex) -> Vec<String> {
    index
        .entries()
        .iter()
        .map(|entry| entry.path.to_string())
        .collect()
}

/// Every kind of entry.
fn everything() -> (LayerIndex, Vec<(LayerPath, Vec<u8>)>) {
    let mut program = file("bin/su", b"program");
    (program.mode, program.gid) = (0o6755, 42);
    let capability = vec![
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    program.xattrs = [
        (b"security.capability".to_vec(), capability),
        (b"trusted.only.index".to_vec(), vec![0, 255]),
        (b"user.x".to_vec(), vec![b'v']),
    ]
    .into();
    let mut first = file("data/first", b"linked");
    first.hardlink = Some(0);
    let second = Entry {
        path: path("data/second"),
        ..first.clone()
    };
    let mut owned = file("data/owned", &vec![7; 100_000]);
    (owned.uid, owned.gid, owned.mtime) = (4_000_000_000, 3_000_000, (-5, 0));
    let mut root = dir("");
    root.mode = 0o711;
    let mut implied = entry(
        "implied",
        Kind::Dir {
            opaque: false,
            implied: false,
        },
        0o755,
    );
    implied.mtime = (0, 0);
    let whiteout = |name: &str| {
        let mut entry = entry(name, Kind::Whiteout, 0);
        entry.mtime = (0, 0);
        entry
    };
    let long = format!("data/{}", "long".repeat(60));
    let index = LayerIndex::new(vec![
        root,
        dir("bin"),
        program,
        dir("data"),
        first,
        second,
        owned,
        file("data/empty", b""),
        file(&long, b"x"),
        entry("data/gone", Kind::Whiteout, 0),
        entry("data/link", Kind::Symlink(b"../bin/su".to_vec()), 0o777),
        entry("data/null", Kind::Char(1, 3), 0o666),
        entry("data/disk", Kind::Block(259, 70_000), 0o660),
        entry("data/pipe", Kind::Fifo, 0o600),
        entry(
            "opaque",
            Kind::Dir {
                opaque: true,
                implied: false,
            },
            0o1777,
        ),
        file("opaque/new", b"new"),
        implied,
        whiteout("implied/gone"),
    ]);
    let index = LayerIndex::new(
        index
            .entries()
            .iter()
            .cloned()
            .map(|mut entry| {
                if entry.kind == Kind::Whiteout {
                    entry.mtime = (0, 0);
                }
                entry
            })
            .collect(),
    );
    let contents = vec![
        (path("bin/su"), b"program".to_vec()),
        (path("data/first"), b"linked".to_vec()),
        (path("data/owned"), vec![7; 100_000]),
        (path("data/empty"), vec![]),
        (path(&long), b"x".to_vec()),
        (path("opaque/new"), b"new".to_vec()),
    ];
    (index, contents)
}

/// Makes a layer's folder the way a step does.
fn make(index: &LayerIndex, contents: &[(LayerPath, Vec<u8>)]) -> tempfile::TempDir {
    let place = tempfile::tempdir().unwrap();
    let fs = LayerFs::create(place.path(), common::ids()).unwrap();
    let mut first: HashMap<u32, &LayerPath> = HashMap::new();
    for entry in index.entries() {
        let content = contents.iter().find(|(path, _)| *path == entry.path);
        match entry
            .hardlink
            .map(|group| *first.entry(group).or_insert(&entry.path))
        {
            Some(first) if *first != entry.path => fs.link(entry, first).unwrap(),
            _ => fs
                .put(
                    entry,
                    content.map_or(Content::None, |(_, bytes)| Content::Bytes(bytes)),
                )
                .unwrap(),
        }
    }
    fs.finish(index).unwrap();
    place
}

#[test]
fn an_archive_of_ours_comes_back_whole() {
    if !is_root() {
        return;
    }
    let (index, contents) = everything();
    let made = make(&index, &contents);
    let mut tar = Vec::new();
    write_tar(made.path(), &index, None, &mut tar).unwrap();

    let layer = unpack(&tar);
    let unpacked = layer.result.as_ref().unwrap();
    assert_eq!(layer.index(), index);
    let space = kiln_store::space_of(layer.dir.path()).unwrap();
    let summary = LayerSummary::of(&index);
    assert_eq!(unpacked.summary, LayerSummary { space, ..summary });
    assert_eq!(unpacked.tar_size, tar.len() as u64);
    assert_eq!(unpacked.diff_id, DiffId::new(Sha256::digest(&tar).into()));
    assert!(unpacked.reproducible);
    assert!(layer.tar(None) == tar);
    let program = fs::metadata(layer.dir.path().join("fs/bin/su")).unwrap();
    assert_eq!((program.mode() & 0o7777, program.gid()), (0o6755, 42));
    let mut value = [0; 64];
    let size = rustix::fs::getxattr(
        layer.dir.path().join("fs/bin/su"),
        "security.capability",
        &mut value,
    )
    .unwrap();
    assert_eq!(size, 20);
    let first = fs::metadata(layer.dir.path().join("fs/data/first")).unwrap();
    let second = fs::metadata(layer.dir.path().join("fs/data/second")).unwrap();
    assert_eq!((first.ino(), first.nlink()), (second.ino(), 2));
    assert_eq!(layer.read("data/owned"), vec![7; 100_000]);
    assert!(layer.dir.path().join("fs/opaque").exists());
    assert!(!layer.dir.path().join("fs/data/null").exists());

    // With a clamp: the same files, no time later, and the same bytes each time.
    let clamped = layer.tar(Some(1000));
    assert_eq!(clamped, layer.tar(Some(1000)));
    assert_ne!(clamped, tar);
    let layer = unpack(&clamped);
    let latest = layer
        .index()
        .entries()
        .iter()
        .map(|entry| entry.mtime)
        .max();
    assert_eq!(latest, Some((1000, 0)));
    assert_eq!(layer.index().content_id(), index.content_id());
    assert_eq!(
        layer.index().get(&path("data/owned")).unwrap().mtime,
        (-5, 0)
    );
}

#[test]
fn what_is_not_reproducible_is_told() {
    let plain = archive(&[(header("a", File), b"x"), (header("b", File), b"")]);
    assert!(unpack(&plain).result.unwrap().reproducible);
    let cases: [(&str, Vec<u8>); 6] = [
        ("rest behind the end", [&plain[..], &[0; 512]].concat()),
        ("no end", plain[..plain.len() - 1024].to_vec()),
        ("another order", {
            archive(&[(header("b", File), b""), (header("a", File), b"x")])
        }),
        (
            "names",
            archive(&[(
                Header {
                    user: b"root".into(),
                    ..header("a", File)
                },
                b"x",
            )]),
        ),
        (
            "twice",
            archive(&[(header("a", File), b"y"), (header("a", File), b"x")]),
        ),
        ("an implied parent", archive(&[(header("d/a", File), b"x")])),
    ];
    for (what, tar) in cases {
        let unpacked = unpack(&tar).result.unwrap();
        assert!(!unpacked.reproducible, "{what}");
        assert_eq!(
            unpacked.diff_id,
            DiffId::new(Sha256::digest(&tar).into()),
            "{what}"
        );
        assert_eq!(unpacked.tar_size, tar.len() as u64, "{what}");
    }
}

#[test]
fn the_later_entry_counts_and_parents_are_implied() {
    let layer = unpack(&archive(&[
        (header("a/b/c", File), b"1"),
        (header("a/b/c", File), b"22"),
        (header("d", File), b"file"),
        (header("d/e", Dir), b""),
    ]));
    let err = layer.result.unwrap_err();
    assert!(err.to_string().contains("/d is not a directory"), "{err}");

    let layer = unpack(&archive(&[
        (header("a/b/c", File), b"1"),
        (header("a/b/c", File), b"22"),
        (header("d/e/f", File), b"gone"),
        (header("d", File), b"file"),
        (header("a", Dir), b""),
    ]));
    layer.result.as_ref().unwrap();
    let index = layer.index();
    assert_eq!(paths(&index), ["/a", "/a/b", "/a/b/c", "/d"]);
    assert_eq!(layer.read("a/b/c"), b"22");
    assert_eq!(layer.read("d"), b"file");
    let kind = |name: &str| index.get(&path(name)).unwrap().kind.clone();
    assert_eq!(
        kind("a"),
        Kind::Dir {
            opaque: false,
            implied: false
        }
    );
    assert_eq!(
        kind("a/b"),
        Kind::Dir {
            opaque: false,
            implied: true
        }
    );
    assert_eq!(kind("a/b/c"), file("", b"22").kind);
    assert_eq!(index.get(&path("a/b")).unwrap().mode, 0o755);
}

#[test]
fn hard_links_to_other_layers_are_refused_by_name() {
    let layer = unpack(&archive(&[(link("new", HardLink, "usr/lower"), b"")]));
    let err = layer.result.unwrap_err();
    assert!(
        err.to_string()
            .contains("/new is a hard link to /usr/lower"),
        "{err}"
    );
}

/// Every way out that archives have tried.
#[test]
fn hostile_archives_stay_inside() {
    let outside = tempfile::tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, b"whole").unwrap();
    let out = outside.path().to_str().unwrap();
    let absolute = victim.to_str().unwrap();
    let deep_up = format!("{}{}", "../".repeat(40), &absolute[1..]);
    let cases: [(&str, Vec<Member<'_>>, bool); 12] = [
        ("parent", vec![(header("../escaped", File), b"x")], true),
        ("deep parent", vec![(header(&deep_up, File), b"x")], true),
        (
            "parent in the middle",
            vec![(header("a/../../escaped", File), b"x")],
            true,
        ),
        ("absolute", vec![(header(absolute, File), b"x")], false),
        (
            "link, then through it",
            vec![
                (link("l", Symlink, out), b""),
                (header("l/victim", File), b"x"),
                (header("l/new", File), b"x"),
            ],
            false,
        ),
        (
            "relative link, then through it",
            vec![
                (link("l", Symlink, &"../".repeat(40)), b""),
                (header("l/tmp/kiln-escaped", File), b"x"),
            ],
            false,
        ),
        (
            "links in a row",
            vec![
                (link("a", Symlink, ".."), b""),
                (link("a/b", Symlink, ".."), b""),
                (header("a/b/index", File), b"x"),
            ],
            false,
        ),
        (
            "a folder replaced by a link",
            vec![
                (header("d", Dir), b""),
                (link("d", Symlink, out), b""),
                (header("d/victim", File), b"x"),
            ],
            false,
        ),
        (
            "hard link out",
            vec![(link("h", HardLink, "../../etc/passwd"), b"")],
            true,
        ),
        (
            "hard link absolute",
            vec![(link("h", HardLink, absolute), b"")],
            true,
        ),
        (
            "hard link through a link",
            vec![
                (link("l", Symlink, out), b""),
                (link("h", HardLink, "l/victim"), b""),
                (header("h", File), b"x"),
            ],
            true,
        ),
        (
            "written through a hard link to a link",
            vec![
                (link("l", Symlink, absolute), b""),
                (link("h", HardLink, "l"), b""),
                (header("h", File), b"x"),
                (header("l", File), b"x"),
            ],
            false,
        ),
    ];
    for (what, members, refused) in cases {
        let layer = unpack(&archive(&members));
        assert_eq!(layer.result.is_err(), refused, "{what}: {:?}", layer.result);
        assert_eq!(fs::read(&victim).unwrap(), b"whole", "{what}");
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1, "{what}");
        let above: Vec<_> = fs::read_dir(layer.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        assert!(
            above.iter().all(|name| name == "fs" || name == "index"),
            "{what}: {above:?}"
        );
        assert!(!Path::new("/tmp/kiln-escaped").exists(), "{what}");
        if !refused {
            // Folder and index agree.
            write_tar(layer.dir.path(), &layer.index(), None, &mut io::sink()).unwrap();
        }
    }
    // NUL and endless names.
    let nul = Header {
        path: b"a\0b".to_vec(),
        ..header("", File)
    };
    let mut writer = Writer::new(Vec::new());
    assert!(writer.append(&nul, &mut io::empty()).is_err());
    let endless = header(&"d/".repeat(3000), Dir);
    let err = unpack(&archive(&[(endless, b"")])).result.unwrap_err();
    assert!(matches!(err, UnpackError::Files(_)), "{err}");
}

#[test]
fn streams_that_fail() {
    struct Broken(Vec<u8>);
    impl Read for Broken {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if self.0.is_empty() {
                return Err(io::Error::other("the network is gone"));
            }
            let count = buffer.len().min(self.0.len());
            buffer[..count].copy_from_slice(&self.0[..count]);
            self.0.drain(..count);
            Ok(count)
        }
    }
    let tar = archive(&[(header("a", File), &[1; 5000]), (header("b", File), b"x")]);
    let expect = |result: Result<Unpacked, UnpackError>, part: &str| {
        let mut err: &dyn std::error::Error = &result.unwrap_err();
        let mut text = err.to_string();
        while let Some(source) = err.source() {
            text = format!("{text}: {source}");
            err = source;
        }
        assert!(text.contains(part), "{text}");
    };
    for cut in [100, 600, 3000, 6000] {
        expect(unpack(&tar[..cut]).result, "cut off");
        let place = tempfile::tempdir().unwrap();
        let broken = Broken(tar[..cut].to_vec());
        expect(
            unpack_tar(place.path(), common::ids(), broken),
            "the network is gone",
        );
    }
    let place = tempfile::tempdir().unwrap();
    expect(
        unpack_tar(place.path(), common::ids(), Broken(tar)),
        "the network is gone",
    );
    expect(
        unpack(
            b"this is no archive, but long enough to be one"
                .repeat(20)
                .as_slice(),
        )
        .result,
        "invalid tar archive",
    );
    let empty = unpack(b"");
    assert_eq!(empty.result.unwrap().summary.entries, 0);
}

#[test]
fn a_full_destination_is_an_error() {
    struct Full;
    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let layer = unpack(&archive(&[(header("a", File), b"x")]));
    let err = write_tar(layer.dir.path(), &layer.index(), None, &mut Full).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::StorageFull);
    fs::write(layer.dir.path().join("fs/a"), b"").unwrap();
    let err = write_tar(layer.dir.path(), &layer.index(), None, &mut io::sink()).unwrap_err();
    assert_eq!(err.kind(), io::ErrorKind::UnexpectedEof);
}

/// The old GNU format and PAX 1.0, as GNU tar writes them.
#[test]
fn sparse_files() {
    // A map of one piece, 4 bytes at 1 MiB, then the end at 2 MiB; padded to a block.
    let mut content = b"2\n1048576\n4\n2097152\n0\n".to_vec();
    content.resize(512, 0);
    content.extend_from_slice(b"data");
    let record = |key: &str, value: &str| {
        let body = format!(" {key}={value}\n");
        let mut length = body.len();
        while length != body.len() + length.to_string().len() {
            length = body.len() + length.to_string().len();
        }
        format!("{length}{body}")
    };
    let records = [
        record("GNU.sparse.major", "1"),
        record("GNU.sparse.minor", "0"),
        record("GNU.sparse.name", "sparse"),
        record("GNU.sparse.realsize", "2097152"),
    ]
    .concat();
    let mut extended = kiln_image::tar::plain_file_header("pax", records.len() as u64);
    extended[156] = b'x';
    fix_checksum(&mut extended);
    let mut tar = extended;
    tar.extend_from_slice(records.as_bytes());
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar.extend(kiln_image::tar::plain_file_header(
        "GNUSparseFile.0/sparse",
        content.len() as u64,
    ));
    tar.extend_from_slice(&content);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);

    let layer = unpack(&tar);
    let unpacked = layer.result.as_ref().unwrap();
    assert!(!unpacked.reproducible);
    assert_eq!(unpacked.diff_id, DiffId::new(Sha256::digest(&tar).into()));
    let mut expected = vec![0; 2 << 20];
    expected[1 << 20..][..4].copy_from_slice(b"data");
    assert!(layer.read("sparse") == expected);
    assert_eq!(
        layer.index(),
        LayerIndex::new(vec![{
            let mut entry = file("sparse", &expected);
            entry.mtime = (0, 0);
            entry
        }])
    );
    let stat = fs::metadata(layer.dir.path().join("fs/sparse")).unwrap();
    assert!(
        stat.blocks() * 512 < 1 << 20,
        "holes stay holes: {} blocks",
        stat.blocks()
    );
}

fn fix_checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..512].iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Random layers whose parents are all there.
fn layers() -> impl Strategy<Value = Vec<(Entry, Vec<u8>)>> {
    let kind = prop_oneof![
        Just(Kind::Dir {
            opaque: false,
            implied: false
        }),
        Just(Kind::Dir {
            opaque: true,
            implied: false
        }),
        Just(file("", b"").kind),
        "[a-c./]{1,6}".prop_map(|target| Kind::Symlink(target.into_bytes())),
        Just(Kind::Fifo),
        Just(Kind::Char(5, 1)),
        Just(Kind::Whiteout),
    ];
    let content = prop::collection::vec(any::<u8>(), 0..1500);
    let metadata = (0..0o10000u16, 0..3u32, 0..3_000_000u32, 0..2_000_000_000i64);
    let one = (
        "[a-c](/[a-c]){0,3}",
        kind,
        content,
        metadata,
        prop::option::of(0..3u32),
    );
    prop::collection::vec(one, 1..30).prop_map(|all| {
        let mut kept: BTreeMap<LayerPath, (Entry, Vec<u8>)> = BTreeMap::new();
        for (name, kind, content, (mode, uid, gid, mtime), _group) in all {
            let at = path(&name);
            let mut parent = at.parent();
            let mut blocked = false;
            while let Some(folder) = parent.filter(|folder| !folder.is_root()) {
                let there = kept.entry(folder.clone()).or_insert_with(|| {
                    let mut made = dir("");
                    made.path = folder.clone();
                    (made, vec![])
                });
                blocked |= !there.0.is_dir();
                parent = folder.parent();
            }
            if blocked || kept.contains_key(&at) {
                continue;
            }
            let mut made = entry(&name, kind, mode);
            (made.uid, made.gid, made.mtime) = (uid, gid, (mtime, 0));
            match &mut made.kind {
                Kind::File { .. } => made.kind = file("", &content).kind,
                Kind::Whiteout => {
                    made = Entry {
                        kind: Kind::Whiteout,
                        ..Entry::dir(at.clone(), 0, 0, 0, (0, 0))
                    }
                }
                _ => {}
            }
            kept.insert(at, (made, content));
        }
        // A folder made for its children below something that is none.
        let mut whole: Vec<(Entry, Vec<u8>)> = Vec::new();
        for (at, pair) in kept {
            let parent = at.parent().unwrap_or_default();
            if parent.is_root()
                || whole
                    .iter()
                    .any(|(known, _)| known.path == parent && known.is_dir())
            {
                whole.push(pair);
            }
        }
        whole
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// write, unpack, write: the same bytes, the same index.
    #[test]
    fn any_layer_survives(layer in layers()) {
        let contents: Vec<_> = layer.iter()
            .filter(|(entry, _)| entry.is_file())
            .map(|(entry, content)| (entry.path.clone(), content.clone()))
            .collect();
        let index = LayerIndex::new(layer.into_iter().map(|(entry, _)| entry).collect());
        let made = make(&index, &contents);
        let mut tar = Vec::new();
        write_tar(made.path(), &index, None, &mut tar).unwrap();
        let back = unpack(&tar);
        prop_assert!(back.result.as_ref().unwrap().reproducible);
        prop_assert_eq!(back.index(), index);
        prop_assert!(back.tar(None) == tar);
    }

    /// Any bytes end in a layer or in an error.
    #[test]
    fn damaged_archives_do_not_panic(at in 0usize..4096, byte in any::<u8>(), cut in 0usize..6000) {
        let mut tar = archive(&[
            (header("d", Dir), b""),
            (header("d/a", File), &[1; 700]),
            (link("d/h", HardLink, "d/a"), b""),
            (header(&"n".repeat(150), File), b"x"),
        ]);
        tar.truncate(cut.max(512));
        let at = at % tar.len();
        tar[at] = byte;
        let header = at / 512 * 512;
        if byte % 2 == 0 && header + 512 <= tar.len() {
            fix_checksum(&mut tar[header..]);
        }
        let layer = unpack(&tar);
        if layer.result.is_ok() {
            write_tar(layer.dir.path(), &layer.index(), None, &mut io::sink()).unwrap();
        }
    }
}
