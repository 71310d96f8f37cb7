//! ADD of archives. What BuildKit does was found out by trying 0.25 (Docker 28.5) with the same archives.

use std::io::Write;

use crate::common::{NOW, chain, check, copy, ids, listing, run, tree};
use kiln_fileop::{Tree, apply};
use kiln_image::compress::{Compression, Encoder};
use kiln_image::tar::{EntryKind, Header, Writer};
use kiln_image::{Entry, Kind, LayerIndex, LayerPath, MergedView};
use kiln_store::layer_fs::read_index;

/// An archive of `d name`, `f name`, `l name target`, `h name target`, `p name`.
fn archive(entries: &[&str]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for line in entries {
        let words: Vec<&str> = line.split(' ').collect();
        let (kind, mode) = match words[0] {
            "d" => (EntryKind::Dir, 0o2750),
            "f" => (EntryKind::File, 0o4640),
            "l" => (EntryKind::Symlink, 0o777),
            "h" => (EntryKind::HardLink, 0o4640),
            "p" => (EntryKind::Fifo, 0o600),
            other => panic!("what is {other}?"),
        };
        let content: &[u8] = if kind == EntryKind::File { b"T\n" } else { b"" };
        let header = Header {
            path: words[1].into(),
            kind,
            link: words.get(2).copied().unwrap_or_default().into(),
            size: content.len() as u64,
            mode,
            uid: 5,
            gid: 6,
            mtime: crate::common::THEN,
            ..Header::default()
        };
        writer.append(&header, &mut &*content).unwrap();
    }
    writer.finish().unwrap().0
}

fn compressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
    let mut encoder =
        Encoder::new(compression, compression.default_level(), 1, Vec::new()).unwrap();
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Runs an ADD of a file with these bytes.
fn add(base: &crate::common::Made, bytes: &[u8], line: &str) -> String {
    let context = tempfile::tempdir().unwrap();
    std::fs::write(context.path().join("it"), bytes).unwrap();
    let kind = Kind::File {
        size: bytes.len() as u64,
        digest: crate::common::digest(bytes),
    };
    let entry = Entry {
        kind,
        ..Entry::dir(LayerPath::clean("it"), 0o644, 0, 0, crate::common::THEN)
    };
    let view = MergedView::new([LayerIndex::new(vec![entry]).into()]);
    let from = Tree {
        view: &view,
        dirs: vec![context.path().to_owned().into()],
        stamps: None,
    };
    let dir = base.layer_dir();
    match apply(
        &chain(&[line]),
        &[Some(base.tree()), Some(from)],
        &[dir.clone().into()],
        ids(),
        NOW,
    ) {
        Ok(_) => {
            check(&read_index(&dir).unwrap(), &dir);
            listing(&read_index(&dir).unwrap())
        }
        Err(error) => format!("error: {error}\n"),
    }
}

#[test]
fn unpacked() {
    let empty = tree(&[]);
    let tar = archive(&["d ./", "d ./sub/", "f ./sub/f", "l ./lnk sub", "p pipe"]);
    let contents = |folder: &str, owner: &str| {
        format!(
            "l 777 {owner} = {folder}/lnk -> sub\np 600 {owner} = {folder}/pipe\nd 2750 {owner} = {folder}/sub\nf 4640 {owner} = {folder}/sub/f 2\n"
        )
    };
    assert_eq!(add(&empty, &tar, "add it /"), contents("", "5:6"));
    // The archive's own `./` leaves the destination as it is.
    assert_eq!(
        add(&empty, &tar, "add it /n"),
        format!("d 755 0:0 now /n\n{}", contents("/n", "5:6"))
    );
    let owned = format!("d 755 7:8 now /n\n{}", contents("/n", "7:8"));
    assert_eq!(add(&empty, &tar, "add chown=7:8 chmod=600 it /n/"), owned);
    for compression in [Compression::Gzip, Compression::Zstd] {
        assert_eq!(
            add(&empty, &compressed(compression, &tar), "add it /"),
            contents("", "5:6"),
            "{compression:?}"
        );
    }
    // Parents that the archive does not have.
    let leaf = archive(&["f a/b/f"]);
    assert_eq!(
        add(&empty, &leaf, "add chown=7:8 it /"),
        "d 755 0:0 now /a\nd 755 0:0 now /a/b\nf 4640 7:8 = /a/b/f 2\n"
    );
    // Whiteout names mean nothing here.
    assert_eq!(
        add(&empty, &archive(&["f .wh.x"]), "add it /"),
        "f 4640 5:6 = /.wh.x 2\n"
    );
    assert_eq!(
        add(&empty, &archive(&["f /abs"]), "add it /n/"),
        "d 755 0:0 now /n\nf 4640 5:6 = /n/abs 2\n"
    );
}

#[test]
fn not_unpacked() {
    let empty = tree(&[]);
    let tar = archive(&["f f"]);
    assert!(
        add(&empty, &tar, "it /n").starts_with("f 644 0:0 = /n "),
        "COPY"
    );
    for (what, bytes) in [
        ("empty", Vec::new()),
        ("zeros", vec![0; 1024]),
        ("text", b"just text".repeat(200)),
        (
            "compressed text",
            compressed(Compression::Gzip, b"just text"),
        ),
        ("only a magic number", vec![0x1f, 0x8b]),
        ("cut off", tar[..300].to_vec()),
    ] {
        assert_eq!(
            add(&empty, &bytes, "add it /n"),
            format!("f 644 0:0 = /n {}\n", bytes.len()),
            "{what}"
        );
    }
    // An archive inside a folder stays one.
    let context = tree(&[&["f 644 0:0 d/it not-read"]]);
    assert_eq!(
        run(&empty, &context, &chain(&["add d /d"])),
        "d 755 0:0 = /d\nf 644 0:0 = /d/it 8\n"
    );
    assert!(copy("add d /d").attempt_unpack);
    let damaged = [tar.strip_suffix(&[0; 1024]).unwrap(), &[1; 2000]].concat();
    let error = add(&empty, &damaged, "add it /n");
    assert!(error.starts_with("error: cannot unpack /it: "), "{error}");
}

#[test]
fn into_what_is_there() {
    let base = tree(&[&[
        "d 700 1:1 n",
        "f 644 1:1 n/f old",
        "d 755 1:1 n/d",
        "f 644 1:1 n/d/old old",
        "l n/lnk d",
        "l n/up ..",
        "l n/out /d",
        "l gone missing/x",
    ]]);
    let cases: &[(&[&str], &str)] = &[
        (&["f d"], "i 700 1:1 = /n\nf 4640 5:6 = /n/d 2\n"),
        (
            &["d f", "f f/g"],
            "i 700 1:1 = /n\nd 2750 5:6 = /n/f\nf 4640 5:6 = /n/f/g 2\n",
        ),
        (&["d d"], "i 700 1:1 = /n\nd 2750 5:6 = /n/d\n"),
        (
            &["d lnk", "f lnk/g"],
            "i 700 1:1 = /n\nd 2750 5:6 = /n/lnk\nf 4640 5:6 = /n/lnk/g 2\n",
        ),
        (
            &["f lnk/g"],
            "i 700 1:1 = /n\ni 755 1:1 = /n/d\nf 4640 5:6 = /n/d/g 2\n",
        ),
        (&["f f", "l f x"], "i 700 1:1 = /n\nl 777 5:6 = /n/f -> x\n"),
        (
            &["d d", "f d/new", "f d"],
            "i 700 1:1 = /n\nf 4640 5:6 = /n/d 2\n",
        ),
        (&["f d", "d d"], "i 700 1:1 = /n\no 2750 5:6 = /n/d\n"),
        // The destination is the root of the archive's links.
        (&["f up/g"], "i 700 1:1 = /n\nf 4640 5:6 = /n/g 2\n"),
        (
            &["f out/g"],
            "i 700 1:1 = /n\ni 755 1:1 = /n/d\nf 4640 5:6 = /n/d/g 2\n",
        ),
        (
            &["l abs /etc", "f abs/g"],
            "i 700 1:1 = /n\nl 777 5:6 = /n/abs -> /etc\nd 755 0:0 now /n/etc\nf 4640 5:6 = /n/etc/g 2\n",
        ),
        (
            &["l far ../../../up"],
            "i 700 1:1 = /n\nl 777 5:6 = /n/far -> ../../../up\n",
        ),
        // Hard links, also to what lies below.
        (
            &["f a", "h b a", "h c ./a"],
            "i 700 1:1 = /n\nf 4640 5:6 = /n/a 2 #1\nf 4640 5:6 = /n/b 2 #1\nf 4640 5:6 = /n/c 2 #1\n",
        ),
        (
            &["h b f"],
            "i 700 1:1 = /n\nf 4640 5:6 = /n/b 3 #1\nf 4640 5:6 = /n/f 3 #1\n",
        ),
        (
            &["f a", "h b a", "f b"],
            "i 700 1:1 = /n\nf 4640 5:6 = /n/a 2\nf 4640 5:6 = /n/b 2\n",
        ),
        // Hostile.
        (
            &["f ../x"],
            "error: cannot unpack /it: invalid entry name \"../x\"\n",
        ),
        (
            &["f a/../../x"],
            "error: cannot unpack /it: invalid entry name \"a/../../x\"\n",
        ),
        (
            &["f a", "h b ../../f"],
            "error: cannot unpack /it: invalid hardlink target \"../../f\"\n",
        ),
        (
            &["h b nothing"],
            "error: cannot unpack /it: hard link to \"nothing\", which is not there or is a folder\n",
        ),
        (
            &["h b d"],
            "error: cannot unpack /it: hard link to \"d\", which is not there or is a folder\n",
        ),
        (
            &["l l l", "f l/f"],
            "error: /l: too many levels of symbolic links\n",
        ),
        (&["f a", "f a/b"], "error: mkdir /n/a: not a directory\n"),
    ];
    for (entries, expected) in cases {
        assert_eq!(
            add(&base, &archive(entries), "add it /n/"),
            *expected,
            "{entries:?}"
        );
    }
    assert_eq!(
        add(&base, &archive(&["f g"]), "add it /n/f"),
        "error: mkdir /n/f: not a directory\n"
    );
    assert_eq!(
        add(&base, &archive(&["f g"]), "add it /gone"),
        "d 755 0:0 now /missing\nd 755 0:0 now /missing/x\nf 4640 5:6 = /missing/x/g 2\n"
    );
    assert_eq!(
        add(&base, &archive(&["f g"]), "add it /n/lnk/../"),
        "i 700 1:1 = /n\nf 4640 5:6 = /n/g 2\n"
    );
}
