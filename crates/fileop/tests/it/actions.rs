//! The other actions, chains of actions, and files that change.

use std::fs;
use std::sync::Arc;

use crate::common::{NOW, chain, chain_of, copy, ids, listing, run, tree};
use kiln_fileop::{FileOpError, NewLayer, Tree, apply};
use kiln_graph::{FileAction, FileActionKind, FileInput, FileOp, Owner, UserRef};
use kiln_image::MergedView;
use kiln_source::{StatCache, Wanted, scan};
use kiln_store::layer_fs::read_index;

fn mkdir(path: &str, make_parents: bool) -> FileActionKind {
    let owner = Some(Owner {
        user: Some(UserRef::Id(7)),
        group: None,
    });
    FileActionKind::MkDir {
        path: path.to_owned(),
        mode: 0o750,
        make_parents,
        owner,
        timestamp: None,
    }
}

fn mkfile(path: &str, data: &str) -> FileActionKind {
    FileActionKind::MkFile {
        path: path.to_owned(),
        mode: 0o600,
        data: data.into(),
        owner: None,
        timestamp: Some(9),
    }
}

fn rm(path: &str) -> FileActionKind {
    FileActionKind::Rm {
        path: path.to_owned(),
        allow_not_found: false,
        allow_wildcard: true,
    }
}

fn base() -> crate::common::Made {
    tree(&[&[
        "d 700 1:2 d",
        "f 644 0:0 d/a a",
        "f 644 0:0 d/b bb",
        "d 755 0:0 d/sub",
        "f 644 0:0 d/sub/c c",
        "l l d",
        "l to d/a",
        "f 644 0:0 f f",
    ]])
}

#[test]
fn single_actions() {
    let cases: Vec<(Vec<FileActionKind>, &str)> = vec![
        (vec![mkdir("/d", true)], ""),
        (vec![mkdir("/", true)], ""),
        (
            vec![mkdir("/n/m", true)],
            "d 750 7:7 now /n\nd 750 7:7 now /n/m\n",
        ),
        (
            vec![mkdir("/l/n", true)],
            "i 700 1:2 = /d\nd 750 7:7 now /d/n\n",
        ),
        (vec![mkdir("/n/m", false)], "error: /n: no such directory\n"),
        (
            vec![mkdir("/f/m", true)],
            "error: mkdir /f: not a directory\n",
        ),
        (
            vec![mkdir("/f", true)],
            "error: mkdir /f: not a directory\n",
        ),
        (vec![mkfile("/new", "xyz")], "f 600 0:0 9 /new 3\n"),
        (vec![mkfile("/f", "xyz")], "f 644 0:0 9 /f 3\n"),
        (
            vec![mkfile("/to", "xyz")],
            "i 700 1:2 = /d\nf 644 0:0 9 /d/a 3\n",
        ),
        (
            vec![mkfile("/d", "x")],
            "error: cannot replace directory /d with a file\n",
        ),
        (vec![mkfile("/n/f", "x")], "error: /n: no such directory\n"),
        (vec![rm("/d")], "w /d\n"),
        (vec![rm("/l")], "w /l\n"),
        (vec![rm("/l/a")], "i 700 1:2 = /d\nw /d/a\n"),
        (vec![rm("/d/?")], "i 700 1:2 = /d\nw /d/a\nw /d/b\n"),
        (vec![rm("/*/sub")], "i 700 1:2 = /d\nw /d/sub\n"),
        (vec![rm("/none")], "error: \"/none\": not found\n"),
        (vec![rm("/none*")], ""),
    ];
    for (kinds, expected) in cases {
        assert_eq!(
            run(&base(), &tree(&[]), &chain_of(kinds.clone())),
            expected,
            "{kinds:?}"
        );
    }
}

#[test]
fn chains() {
    let cases: Vec<(Vec<FileActionKind>, &str)> = vec![
        (vec![rm("/d"), mkdir("/d", true)], "o 750 7:7 now /d\n"),
        (
            vec![rm("/d"), mkdir("/d", true), mkfile("/d/x", "x")],
            "o 750 7:7 now /d\nf 600 0:0 9 /d/x 1\n",
        ),
        (vec![rm("/d"), mkdir("/d", true), rm("/d")], "w /d\n"),
        (
            vec![rm("/d"), mkfile("/d", "now a file")],
            "f 600 0:0 9 /d 10\n",
        ),
        (
            vec![rm("/d/sub"), mkdir("/d/sub/c", true)],
            "i 700 1:2 = /d\no 750 7:7 now /d/sub\nd 750 7:7 now /d/sub/c\n",
        ),
        (vec![mkdir("/n", true), mkfile("/n/f", "x"), rm("/n")], ""),
        (
            vec![mkdir("/n", true), mkfile("/n/f", "x"), rm("/n/f")],
            "d 750 7:7 now /n\n",
        ),
        (vec![mkfile("/d/x", "x"), rm("/d")], "w /d\n"),
        (vec![mkfile("/x1", "x"), mkfile("/x2", "x"), rm("/x*")], ""),
    ];
    for (kinds, expected) in cases {
        assert_eq!(
            run(&base(), &tree(&[]), &chain_of(kinds.clone())),
            expected,
            "{kinds:?}"
        );
    }
}

#[test]
fn several_outputs_and_intermediate_trees() {
    let action = |on, output, kind| FileAction { on, output, kind };
    let mut from_first = copy("/in/x /copied/");
    from_first.from = Some(FileInput::Action(1));
    let op = FileOp {
        actions: vec![
            action(FileInput::Scratch, None, mkdir("/in", true)),
            action(FileInput::Action(0), Some(1), mkfile("/in/x", "hello")),
            action(
                FileInput::Input(0),
                Some(0),
                FileActionKind::Copy(Box::new(from_first)),
            ),
        ],
    };
    let base = base();
    let home = tempfile::tempdir().unwrap();
    let dirs = ["0", "1"].map(|name| home.path().join(name));
    for dir in &dirs {
        fs::create_dir(dir).unwrap();
    }
    let applied = apply(
        &op,
        &[Some(base.tree())],
        &dirs.clone().map(NewLayer::from),
        ids(),
        NOW,
    )
    .unwrap();
    assert_eq!(
        listing(&read_index(&dirs[0]).unwrap()),
        "d 755 0:0 now /copied\nf 600 0:0 9 /copied/x 5\n"
    );
    assert_eq!(
        listing(&read_index(&dirs[1]).unwrap()),
        "d 750 7:7 now /in\nf 600 0:0 9 /in/x 5\n"
    );
    let mut left: Vec<_> = fs::read_dir(&dirs[0])
        .unwrap()
        .map(|item| item.unwrap().file_name())
        .collect();
    left.sort();
    assert_eq!(left, ["fs", "index"], "intermediate trees are gone");
    let stored = read_index(&dirs[0]).unwrap();
    assert_eq!(stored.totals(), applied.layers[0]);

    for (on, output) in [
        (FileInput::Action(3), 0),
        (FileInput::Input(4), 0),
        (FileInput::Scratch, 5),
    ] {
        let op = FileOp {
            actions: vec![action(on, Some(output), mkdir("/x", true))],
        };
        let broken = apply(&op, &[], &[dirs[0].clone().into()], ids(), NOW);
        assert!(
            matches!(broken, Err(FileOpError::Broken(_))),
            "{on:?} {output}"
        );
    }
}

#[test]
fn files_of_a_context_that_changed() {
    let context = tempfile::tempdir().unwrap();
    let path = |name: &str| context.path().join(name);
    for name in ["same", "longer", "rewritten", "unhashed"] {
        fs::write(path(name), name).unwrap();
    }
    let mut cache = StatCache::empty();
    let mut found = scan(context.path(), None, &mut cache, &Wanted::All).unwrap();
    let index = found
        .index(|path| path.as_bytes() != b"unhashed", &mut cache)
        .unwrap();
    let stamps = found.stamps();
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs::write(path("longer"), "longer than before").unwrap();
    fs::write(path("rewritten"), "REWRITTEN").unwrap();
    let view = MergedView::new([Arc::clone(&index)]);
    let home = tempfile::tempdir().unwrap();
    let from = Tree {
        view: &view,
        dirs: vec![context.path().to_owned().into()],
        stamps: Some((&index, &stamps)),
    };
    let applied = apply(
        &chain(&["/ /"]),
        &[None, Some(from)],
        &[home.path().to_owned().into()],
        ids(),
        NOW,
    )
    .unwrap();
    crate::common::check(&read_index(home.path()).unwrap(), home.path());
    let changed: Vec<String> = applied.changed.iter().map(ToString::to_string).collect();
    assert_eq!(changed, ["/longer", "/rewritten", "/unhashed"]);

    fs::remove_file(path("same")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", path("same")).unwrap();
    let from = Tree {
        view: &view,
        dirs: vec![context.path().to_owned().into()],
        stamps: Some((&index, &stamps)),
    };
    let swapped = apply(
        &chain(&["/same /"]),
        &[None, Some(from)],
        &[home.path().to_owned().into()],
        ids(),
        NOW,
    );
    assert!(
        matches!(swapped, Err(FileOpError::Read { .. })),
        "{swapped:?}"
    );
}

#[test]
fn many_files() {
    let lines: Vec<String> = (0..500)
        .map(|at| format!("f 644 0:0 d{}/f{at} content{at}", at % 9))
        .collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let listed = run(
        &tree(&[]),
        &tree(&[&lines]),
        &chain(&["/ /all", "d? /flat/"]),
    );
    assert_eq!(
        listed.lines().filter(|line| line.starts_with('f')).count(),
        1_000
    );
}
