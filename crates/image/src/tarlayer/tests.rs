use std::collections::BTreeMap;
use std::io::{Cursor, Read};

use proptest::prelude::*;

use super::*;
use crate::LayerIndex;
use crate::tar::Reader;

fn header(path: &str, kind: EntryKind, link: &str) -> Header {
    Header {
        path: path.into(),
        kind,
        link: link.into(),
        mode: 0o644,
        ..Header::default()
    }
}

fn file(path: &str) -> Header {
    header(path, EntryKind::File, "")
}

fn dir(path: &str) -> Header {
    header(path, EntryKind::Dir, "")
}

fn symlink(path: &str, target: &str) -> Header {
    header(path, EntryKind::Symlink, target)
}

fn hard(path: &str, target: &str) -> Header {
    header(path, EntryKind::HardLink, target)
}

fn build(headers: &[Header]) -> Result<LayerIndex, TarLayerError> {
    let mut builder = LayerBuilder::new();
    for header in headers {
        builder.take(header)?;
    }
    Ok(builder.finish())
}

/// `path` with a letter for its kind and marks: `o`paque, `i`mplied, a hard link's number.
fn shown(headers: &[Header]) -> String {
    let index = build(headers).unwrap();
    let entry = |entry: &Entry| {
        let kind = match &entry.kind {
            Kind::Dir { opaque, implied } => {
                format!(
                    "d{}{}",
                    if *opaque { "o" } else { "" },
                    if *implied { "i" } else { "" }
                )
            }
            Kind::File { .. } => "f".to_owned(),
            Kind::Symlink(_) => "l".to_owned(),
            Kind::Whiteout => "w".to_owned(),
            other => format!("{other:?}"),
        };
        format!(
            "{}:{kind}{}",
            entry.path,
            entry
                .hardlink
                .map(|group| group.to_string())
                .unwrap_or_default()
        )
    };
    index
        .entries()
        .iter()
        .map(entry)
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn archives_become_layers() {
    let cases = [
        (
            vec![dir("./"), dir("./a/"), file("./a/b")],
            "/:d /a:d /a/b:f",
        ),
        (vec![file("/a//b/../c")], "/a:di /a/c:f"),
        (vec![file("a/b/c"), dir("a")], "/a:d /a/b:di /a/b/c:f"),
        (vec![file("a"), file("a")], "/a:f"),
        (vec![file("a"), dir("a"), file("a/b")], "/a:d /a/b:f"),
        (
            vec![dir("a"), file("a/b"), file("a-b"), file("a")],
            "/a:f /a-b:f",
        ),
        // Whiteouts.
        (vec![file("a/.wh.b")], "/a:di /a/b:w"),
        (
            vec![dir("a"), file("a/.wh..wh..opq"), file("a/b")],
            "/a:do /a/b:f",
        ),
        (
            vec![file("a/b"), file("a/.wh..wh..opq"), dir("a")],
            "/a:do /a/b:f",
        ),
        (vec![file(".wh..wh..opq")], "/:doi"),
        (vec![file(".wh.a"), file("a")], "/a:f"),
        (vec![file("a"), file(".wh.a")], "/a:f"),
        (vec![file(".wh.a"), dir("a")], "/a:do"),
        (vec![dir("a"), file("a/b"), file(".wh.a")], "/a:do /a/b:f"),
        (vec![file(".wh.a"), file("a/b")], "/a:do /a/b:f"),
        (
            vec![file(".wh..wh.plnk/1"), file(".wh..wh.aufs"), file("a")],
            "/a:f",
        ),
        // Hard links.
        (
            vec![file("a"), hard("d/b", "a"), hard("c", "./d/../d/b")],
            "/a:f0 /c:f0 /d:di /d/b:f0",
        ),
        (vec![file("a"), hard("b", "/a"), file("a")], "/a:f /b:f"),
        (vec![file("a"), hard("a", "a")], "/a:f"),
        (vec![symlink("a", "x"), hard("b", "a")], "/a:l0 /b:l0"),
        // Links among the parents stay inside the root.
        (
            vec![dir("usr/bin"), symlink("bin", "usr/bin"), file("bin/sh")],
            "/bin:l /usr:di /usr/bin:d /usr/bin/sh:f",
        ),
        (vec![symlink("up", "../../.."), file("up/a")], "/a:f /up:l"),
        (
            vec![
                symlink("d/abs", "/e"),
                file("d/abs/a"),
                hard("b", "d/abs/a"),
            ],
            "/b:f0 /d:di /d/abs:l /e:di /e/a:f0",
        ),
        (
            vec![symlink("a", "x"), dir("a"), file("a/b")],
            "/a:d /a/b:f",
        ),
        (
            vec![dir("d"), file("d/x"), symlink("d", "e"), file("d/x")],
            "/d:l /e:di /e/x:f",
        ),
    ];
    for (headers, expected) in cases {
        assert_eq!(shown(&headers), expected, "{headers:?}");
    }
}

#[test]
fn hostile_archives_are_refused() {
    let uid = |uid| Header { uid, ..file("a") };
    let cases = [
        (vec![file("../a")], "leads out"),
        (vec![file("a/../../b")], "leads out"),
        (vec![file("a"), hard("b", "../a")], "leads out"),
        (vec![file("a/.wh.")], "must name"),
        (vec![file("a/.wh...")], "must name"),
        (vec![file(".wh..")], "must name"),
        (vec![file("./")], "root"),
        (vec![symlink(".", "x")], "root"),
        (vec![header("a", EntryKind::Other(b'V'), "")], "'V'"),
        (vec![uid(-1)], "owner"),
        (vec![uid(u32::MAX.into())], "owner"),
        (vec![file("a"), file("a/b")], "/a is not a directory"),
        (
            vec![symlink("a", "b"), symlink("b", "a"), file("a/c")],
            "not a directory",
        ),
        (vec![hard("a", "b")], "hard link to /b"),
        (vec![dir("b"), hard("a", "b")], "hard link to /b"),
        (vec![file(".wh.b"), hard("a", "b")], "hard link to /b"),
        (
            vec![dir("a"), file("a/b"), hard("a", "a/b")],
            "hard link to /a/b",
        ),
    ];
    for (headers, expected) in cases {
        let error = build(&headers)
            .expect_err(&format!("{headers:?}"))
            .to_string();
        assert!(error.contains(expected), "{error}");
    }
    let literal = header_to_entry(&file("a/.wh.b"), Whiteouts::Literal).unwrap();
    assert!(
        matches!(literal, Member::Entry(entry) if entry.is_file() && entry.path.as_bytes() == b"a/.wh.b")
    );
}

#[test]
fn steps_come_in_order() {
    let mut builder = LayerBuilder::new();
    let paths = |steps: Vec<Step>| {
        let path = |step: Step| match step {
            Step::Put(entry) => entry.path.to_string(),
            Step::Link { entry, first } => format!("{} -> {first}", entry.path),
            Step::Change(entry) => format!("={}", entry.path),
        };
        steps.into_iter().map(path).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(
        paths(builder.take(&file("a/b/c")).unwrap()),
        "/a /a/b /a/b/c"
    );
    builder.set_digest(&LayerPath::clean("a/b/c"), FileDigest::new([7; 32]));
    assert_eq!(paths(builder.take(&file("a/b/d")).unwrap()), "/a/b/d");
    assert_eq!(
        paths(builder.take(&hard("e/f", "a/b/c")).unwrap()),
        "/e /e/f -> /a/b/c"
    );
    assert_eq!(paths(builder.take(&file("a/.wh..wh..opq")).unwrap()), "/a");
    let index = builder.finish();
    let linked = index.get(&LayerPath::clean("e/f")).unwrap();
    assert_eq!(
        linked.kind,
        Kind::File {
            size: 0,
            digest: FileDigest::new([7; 32])
        }
    );
}

fn written(index: &LayerIndex, clamp: Option<i64>) -> Vec<u8> {
    let content = |entry: &Entry| match &entry.kind {
        Kind::File { size, digest } => Ok(Cursor::new(vec![digest.as_bytes()[0]; *size as usize])),
        _ => unreachable!("only files have content"),
    };
    write_layer(index, clamp, Vec::new(), content).unwrap().0
}

fn unpacked(bytes: &[u8]) -> LayerIndex {
    let mut builder = LayerBuilder::new();
    let mut reader = Reader::new(bytes);
    while let Some(mut entry) = reader.next_entry().unwrap() {
        builder.take(&entry.header).unwrap();
        let mut content = Vec::new();
        entry.content.read_to_end(&mut content).unwrap();
        let digest = FileDigest::new([content.first().copied().unwrap_or_default(); 32]);
        if entry.header.kind == EntryKind::File {
            builder.set_digest(&LayerPath::clean(&entry.header.path), digest);
        }
    }
    builder.finish()
}

#[test]
fn what_is_written() {
    let path = LayerPath::clean;
    let digest = FileDigest::new([1; 32]);
    let some_file = Entry {
        hardlink: Some(9),
        mtime: (100, 5),
        ..bare(path("d/a"), Kind::File { size: 3, digest })
    };
    let index = LayerIndex::new(vec![
        bare(
            LayerPath::root(),
            Kind::Dir {
                opaque: false,
                implied: false,
            },
        ),
        bare(
            path("d"),
            Kind::Dir {
                opaque: true,
                implied: true,
            },
        ),
        some_file.clone(),
        Entry {
            path: path("e"),
            ..some_file
        },
        bare(path("gone"), Kind::Whiteout),
        bare(path("socket"), Kind::Socket),
    ]);
    let pieces: Vec<_> = pieces(&index, Some(50)).map(Result::unwrap).collect();
    let line = |piece: &Piece<'_>| {
        let header = &piece.header;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        format!(
            "{}>{} {} {:?} {}",
            text(&header.path),
            text(&header.link),
            header.size,
            header.mtime,
            piece.content.is_some()
        )
    };
    assert_eq!(
        pieces.iter().map(line).collect::<Vec<_>>(),
        [
            "./> 0 (0, 0) false",
            "d/> 0 (0, 0) false",
            "d/.wh..wh..opq> 0 (0, 0) false",
            "d/a> 3 (50, 0) true",
            "e>d/a 0 (50, 0) false",
            ".wh.gone> 0 (0, 0) false",
        ]
    );
    let reserved = LayerIndex::new(vec![bare(path("a/.wh.b"), Kind::Fifo)]);
    assert!(matches!(
        super::pieces(&reserved, None).next(),
        Some(Err(TarLayerError::Reserved(_)))
    ));
}

/// Any layer as a build makes it: every parent an entry, not implied, hard links whole.
fn any_index() -> impl Strategy<Value = LayerIndex> {
    let kind = prop_oneof![
        any::<bool>().prop_map(|opaque| Kind::Dir {
            opaque,
            implied: false
        }),
        (1..600_u64, any::<u8>()).prop_map(|(size, fill)| Kind::File {
            size,
            digest: FileDigest::new([fill; 32])
        }),
        "[a-z./]{1,120}".prop_map(|target| Kind::Symlink(target.into())),
        (0..300_u32).prop_map(|minor| Kind::Char(1, minor)),
        Just(Kind::Fifo),
        Just(Kind::Whiteout),
    ];
    let numbers = (
        0..0o10000_u16,
        0..5_000_000_u32,
        (0..1_i64 << 33, 0..1_000_000_000_u32),
    );
    let entry = (
        "[ab](-|é|)(/[ab]{1,90}){0,3}",
        kind,
        numbers,
        proptest::option::of(0..4_usize),
    );
    proptest::collection::vec(entry, 0..12).prop_map(|list| {
        let mut tree: BTreeMap<LayerPath, Entry> = BTreeMap::new();
        for (number, (path, kind, (mode, id, mtime), same_as)) in list.into_iter().enumerate() {
            let mut entry = Entry {
                kind,
                ..Entry::dir(LayerPath::clean(path), mode, id, id / 2, mtime)
            };
            if entry.kind == Kind::Whiteout {
                entry = bare(entry.path, Kind::Whiteout);
            }
            if let Some((_, first)) = same_as.and_then(|at| tree.iter_mut().nth(at))
                && !first.is_dir()
                && first.kind != Kind::Whiteout
            {
                first.hardlink = first.hardlink.or(Some(number as u32));
                entry = Entry {
                    path: entry.path,
                    ..first.clone()
                };
            }
            let parents: Vec<_> =
                std::iter::successors(entry.path.parent(), LayerPath::parent).collect();
            let blocked = parents
                .iter()
                .any(|parent| tree.get(parent).is_some_and(|known| !known.is_dir()));
            if blocked || tree.keys().any(|known| known.below(&entry.path).is_some()) {
                continue;
            }
            for parent in parents.into_iter().filter(|parent| !parent.is_root()) {
                tree.entry(parent.clone())
                    .or_insert(Entry::dir(parent, 0o700, 1, 2, (3, 4)));
            }
            tree.insert(entry.path.clone(), entry);
        }
        LayerIndex::new(tree.into_values().collect())
    })
}

/// Numbers hard-link groups by first appearance and drops those with one name.
fn renumbered(index: &LayerIndex) -> LayerIndex {
    let mut seen = Vec::new();
    let count = |group| {
        index
            .entries()
            .iter()
            .filter(|entry| entry.hardlink == Some(group))
            .count()
    };
    let number = |entry: &Entry| {
        let hardlink = entry
            .hardlink
            .filter(|&group| count(group) > 1)
            .map(|group| {
                if !seen.contains(&group) {
                    seen.push(group);
                }
                seen.iter()
                    .position(|&known| known == group)
                    .unwrap_or_default() as u32
            });
        Entry {
            hardlink,
            ..entry.clone()
        }
    };
    LayerIndex::new(index.entries().iter().map(number).collect())
}

proptest! {
    #[test]
    fn index_to_tar_and_back(index in any_index()) {
        let bytes = written(&index, None);
        let back = unpacked(&bytes);
        prop_assert_eq!(&renumbered(&back), &renumbered(&index));
        prop_assert_eq!(written(&back, None), bytes);
        prop_assert_eq!(back.content_id(), renumbered(&index).content_id());
    }

    /// Whatever an archive says, the index is well formed: parents are folders, groups are whole.
    #[test]
    fn well_formed_whatever_comes(list in proptest::collection::vec((0..5_u8, "[ab]{1,2}(/(\\.wh\\.|)[ab.]{1,2}){0,3}", "(/|)[ab]{1,2}(/[ab.]{1,2}){0,2}"), 0..12)) {
        let mut builder = LayerBuilder::new();
        for (kind, path, link) in &list {
            let header = match kind {
                0 => dir(path),
                1 => symlink(path, link),
                2 => hard(path, link),
                3 => file(&format!("{path}/.wh..wh..opq")),
                _ => file(path),
            };
            let Ok(steps) = builder.take(&header) else { continue };
            for step in steps {
                let (Step::Put(entry) | Step::Link { entry, .. } | Step::Change(entry)) = step;
                prop_assert_eq!(builder.get(&entry.path).map(|entry| &entry.path), Some(&entry.path));
            }
        }
        let index = builder.finish();
        for entry in index.entries() {
            if let Some(parent) = entry.path.parent().filter(|parent| !parent.is_root()) {
                prop_assert!(index.get(&parent).is_some_and(Entry::is_dir), "{:?} {:?}", entry.path, list);
            }
        }
    }
}
