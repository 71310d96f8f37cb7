//! Small trees and actions in a line each, and listings of what comes out.

use std::fmt::Write as _;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_fileop::{Applied, FileOpError, Tree, apply};
use kiln_graph::{CopyAction, FileAction, FileActionKind, FileInput, FileOp, Owner, UserRef};
use kiln_image::{Entry, FileDigest, KeyHasher, Kind, LayerIndex, LayerPath, MergedView, Xattrs};
use kiln_store::layer_fs::read_index;
use kiln_store::layer_fs::{Content, Ids, LayerDirs, LayerFs};

/// The time of everything in the trees; "now" is 2000.
pub(crate) const THEN: (i64, u32) = (1000, 5);
pub(crate) const NOW: (i64, u32) = (2000, 0);

pub(crate) fn digest(content: &[u8]) -> FileDigest {
    FileDigest::new(*blake3::hash(content).as_bytes())
}

/// An entry from a line: `d 755 0:0 path`, `f 644 5:6 path content`, `l path target`, `p path`, `c path`, `h path name`
/// (all with the same name are one file), `w path`, `i path` (implied folder), `o path` (opaque folder).
fn entry(line: &str) -> (Entry, Vec<u8>) {
    let words: Vec<&str> = line.split_whitespace().collect();
    let plain = |path: &str, kind: Kind, mode: u16| Entry {
        kind,
        ..Entry::dir(LayerPath::clean(path), mode, 0, 0, THEN)
    };
    let owned = |kind: Kind| {
        let (uid, gid) = words[2].split_once(':').unwrap();
        let mode = u16::from_str_radix(words[1], 8).unwrap();
        Entry {
            uid: uid.parse().unwrap(),
            gid: gid.parse().unwrap(),
            ..plain(words[3], kind, mode)
        }
    };
    let file = |content: &str| Kind::File {
        size: content.len() as u64,
        digest: digest(content.as_bytes()),
    };
    let dir = |opaque, implied| Kind::Dir { opaque, implied };
    match words[0] {
        "d" => (owned(dir(false, false)), Vec::new()),
        "f" => {
            let content = words
                .get(4)
                .copied()
                .unwrap_or_default()
                .replace("\\n", "\n");
            (owned(file(&content)), content.into_bytes())
        }
        "l" => (
            plain(words[1], Kind::Symlink(words[2].as_bytes().to_vec()), 0o777),
            Vec::new(),
        ),
        "p" => (plain(words[1], Kind::Fifo, 0o600), Vec::new()),
        "c" => (plain(words[1], Kind::Char(1, 3), 0o666), Vec::new()),
        "h" => {
            let group = u32::from(words[2].as_bytes()[0]);
            let entry = plain(words[1], file(words[2]), 0o644);
            (
                Entry {
                    hardlink: Some(group),
                    ..entry
                },
                words[2].as_bytes().to_vec(),
            )
        }
        "w" => (
            Entry {
                mtime: (0, 0),
                ..plain(words[1], Kind::Whiteout, 0)
            },
            Vec::new(),
        ),
        "i" => (plain(words[1], dir(false, true), 0o755), Vec::new()),
        "o" => (plain(words[1], dir(true, false), 0o755), Vec::new()),
        other => panic!("what is {other}?"),
    }
}

/// A tree in a folder of its own.
pub(crate) struct Made {
    pub(crate) view: MergedView,
    pub(crate) dirs: Vec<LayerDirs>,
    home: tempfile::TempDir,
}

impl Made {
    pub(crate) fn tree(&self) -> Tree<'_> {
        Tree {
            view: &self.view,
            dirs: self.dirs.clone(),
            stamps: None,
        }
    }

    /// Stacks a layer that was applied in this tree's home.
    pub(crate) fn push(&mut self, index: LayerIndex, layer_dir: &Path) {
        self.view.push(Arc::new(index));
        self.dirs.push(layer_dir.join("fs").into());
    }

    pub(crate) fn layer_dir(&self) -> PathBuf {
        let taken = std::fs::read_dir(self.home.path()).unwrap().count();
        let dir = self.home.path().join(taken.to_string());
        std::fs::create_dir(&dir).unwrap();
        dir
    }
}

/// Makes a tree of layers, each a list of entries; missing parents are made.
pub(crate) fn tree(layers: &[&[&str]]) -> Made {
    let home = tempfile::tempdir().unwrap();
    let mut made = Made {
        view: MergedView::default(),
        dirs: Vec::new(),
        home,
    };
    for lines in layers {
        let mut entries: Vec<(Entry, Vec<u8>)> = Vec::new();
        for line in *lines {
            let (entry, content) = entry(line);
            let mut parents = Vec::new();
            let mut at = entry.path.parent();
            while let Some(path) = at.filter(|path| !path.is_root()) {
                at = path.parent();
                if !entries.iter().any(|(known, _)| known.path == path) {
                    parents.push((Entry::dir(path, 0o755, 0, 0, THEN), Vec::new()));
                }
            }
            entries.extend(parents.into_iter().rev());
            entries.push((entry, content));
        }
        let dir = made.layer_dir();
        let fs = LayerFs::create(&dir, ids()).unwrap();
        entries.sort_by(|a, b| a.0.path.cmp(&b.0.path));
        for (entry, content) in &entries {
            let content = if entry.is_file() {
                Content::Bytes(content)
            } else {
                Content::None
            };
            fs.put(entry, content).unwrap();
        }
        let index = LayerIndex::new(entries.into_iter().map(|(entry, _)| entry).collect());
        fs.finish(&index).unwrap();
        made.push(index, &dir);
    }
    made
}

pub(crate) fn ids() -> Ids {
    if rustix::process::geteuid().is_root() {
        Ids::Real
    } else {
        Ids::Recorded
    }
}

/// A COPY as the frontend plans it: `[flags] source dest`; input 1 is read, input 0 changed. Flags: `add`,
/// `chown=u:g`, `chmod=m`, `exclude=p`, `parents` (source is then `pivot|pattern`), `time=n`, `one` (no wildcards,
/// no following).
pub(crate) fn copy(line: &str) -> CopyAction {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [flags @ .., src, dest] = &*words else {
        panic!("{line}")
    };
    let mut action = CopyAction {
        from: Some(FileInput::Input(1)),
        src: format!("/{}", src.trim_start_matches('/')),
        dest: (*dest).to_owned(),
        follow_symlinks: true,
        dir_copy_contents: true,
        create_dest_path: true,
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..CopyAction::default()
    };
    for flag in flags {
        match flag.split_once('=').unwrap_or((flag, "")) {
            ("add", _) => action.attempt_unpack = true,
            ("chown", owner) => {
                let part = |text: &str| match text.parse() {
                    Ok(id) => UserRef::Id(id),
                    Err(_) => UserRef::Name {
                        name: text.to_owned(),
                        input: FileInput::Input(0),
                    },
                };
                let (user, group) = owner
                    .split_once(':')
                    .map_or((owner, None), |(user, group)| (user, Some(group)));
                action.owner = Some(Owner {
                    user: Some(part(user)),
                    group: group.map(part),
                });
            }
            ("chmod", mode) => action.mode = Some(mode.to_owned()),
            ("exclude", pattern) => action.exclude_patterns.push(pattern.to_owned()),
            ("time", seconds) => action.timestamp = Some(seconds.parse().unwrap()),
            ("parents", _) => {
                let (pivot, pattern) = src.split_once('|').unwrap();
                action.src = format!("/{pivot}");
                action.include_patterns = vec![pattern.to_owned()];
                action.parents_pivot = Some(pivot.to_owned());
            }
            ("one", _) => {
                action.follow_symlinks = false;
                action.allow_wildcard = false;
                action.dir_copy_contents = false;
            }
            (other, _) => panic!("what is {other}?"),
        }
    }
    action
}

/// Copies one after the other.
pub(crate) fn chain(copies: &[&str]) -> FileOp {
    let kinds = copies
        .iter()
        .map(|line| FileActionKind::Copy(Box::new(copy(line))));
    chain_of(kinds.collect())
}

pub(crate) fn chain_of(kinds: Vec<FileActionKind>) -> FileOp {
    let last = kinds.len() - 1;
    let action = |(at, kind): (usize, FileActionKind)| FileAction {
        on: at
            .checked_sub(1)
            .map_or(FileInput::Input(0), FileInput::Action),
        output: (at == last).then_some(0),
        kind,
    };
    FileOp {
        actions: kinds.into_iter().enumerate().map(action).collect(),
    }
}

pub(crate) fn try_run(
    base: &Made,
    from: &Made,
    op: &FileOp,
) -> Result<(Applied, PathBuf), FileOpError> {
    let dir = base.layer_dir();
    let applied = apply(
        op,
        &[Some(base.tree()), Some(from.tree())],
        &[dir.clone().into()],
        ids(),
        NOW,
    )?;
    Ok((applied, dir))
}

/// Runs the actions and lists the new layer.
pub(crate) fn run(base: &Made, from: &Made, op: &FileOp) -> String {
    match try_run(base, from, op) {
        Ok((applied, dir)) => {
            let index = read_index(&dir).unwrap();
            assert_eq!(applied.layers, [index.totals()]);
            check(&index, &dir);
            let notes = applied.unknown.iter().map(|name| format!("note: {name}\n"));
            listing(&index) + &notes.collect::<String>()
        }
        Err(error) => {
            let hint = error
                .hint()
                .map(|hint| format!("\nhint: {hint}"))
                .unwrap_or_default();
            format!("error: {error}{hint}\n")
        }
    }
}

/// A line an entry: kind, mode, owner, time (`=` for the source's, `now`), path, and what there is to say.
pub(crate) fn listing(index: &LayerIndex) -> String {
    let mut text = String::new();
    for entry in index.entries() {
        let (kind, more) = match &entry.kind {
            Kind::Dir { opaque: true, .. } => ("o", String::new()),
            Kind::Dir { implied: true, .. } => ("i", String::new()),
            Kind::Dir { .. } => ("d", String::new()),
            Kind::File { size, .. } => ("f", format!(" {size}")),
            Kind::Symlink(target) => ("l", format!(" -> {}", String::from_utf8_lossy(target))),
            Kind::Char(major, minor) => ("c", format!(" {major},{minor}")),
            Kind::Block(major, minor) => ("b", format!(" {major},{minor}")),
            Kind::Fifo => ("p", String::new()),
            Kind::Socket => ("s", String::new()),
            Kind::Whiteout => {
                writeln!(text, "w {}", entry.path).unwrap();
                continue;
            }
        };
        let time = match entry.mtime {
            THEN => "=".to_owned(),
            NOW => "now".to_owned(),
            (seconds, _) => seconds.to_string(),
        };
        write!(
            text,
            "{kind} {:o} {}:{} {time} {}{more}",
            entry.mode, entry.uid, entry.gid, entry.path
        )
        .unwrap();
        if let Some(group) = entry.hardlink {
            write!(text, " #{group}").unwrap();
        }
        for (name, value) in &entry.xattrs {
            write!(
                text,
                " {}={}",
                String::from_utf8_lossy(name),
                String::from_utf8_lossy(value)
            )
            .unwrap();
        }
        text.push('\n');
    }
    text
}

/// What is on disk is what the index says.
pub(crate) fn check(index: &LayerIndex, layer_dir: &Path) {
    use std::os::unix::fs::MetadataExt;
    let fs = LayerFs::create(layer_dir, ids()).unwrap();
    for entry in index.entries() {
        let path = layer_dir.join("fs").join(entry.path.as_path());
        if let Kind::File {
            size,
            digest: expected,
        } = entry.kind
        {
            let mut content = Vec::new();
            fs.open(&entry.path)
                .unwrap()
                .read_to_end(&mut content)
                .unwrap();
            assert_eq!(
                (content.len() as u64, digest(&content)),
                (size, expected),
                "{}",
                entry.path
            );
        }
        if matches!(
            entry.kind,
            Kind::Whiteout | Kind::Char(..) | Kind::Block(..) | Kind::Socket
        ) {
            continue;
        }
        let real = path
            .symlink_metadata()
            .unwrap_or_else(|error| panic!("{}: {error}", entry.path));
        assert_eq!(real.is_dir(), entry.is_dir(), "{}", entry.path);
        assert_eq!(
            (real.mtime(), real.mtime_nsec() as u32),
            entry.mtime,
            "{}",
            entry.path
        );
        if ids() == Ids::Real {
            let found = (real.mode() as u16 & 0o7777, real.uid(), real.gid());
            assert_eq!(found, (entry.mode, entry.uid, entry.gid), "{}", entry.path);
        }
    }
    let listed: usize = walk(&layer_dir.join("fs"));
    let on_disk = index.entries().iter().filter(|entry| {
        !matches!(
            entry.kind,
            Kind::Char(..) | Kind::Block(..) | Kind::Whiteout
        )
    });
    let whiteouts = index
        .entries()
        .iter()
        .filter(|entry| entry.kind == Kind::Whiteout)
        .count();
    assert!(
        (on_disk.clone().count()..=on_disk.count() + whiteouts).contains(&listed),
        "something is left over on disk"
    );
}

fn walk(dir: &Path) -> usize {
    let items = std::fs::read_dir(dir).unwrap().map(|item| item.unwrap());
    items
        .map(|item| {
            1 + if item.file_type().unwrap().is_dir() {
                walk(&item.path())
            } else {
                0
            }
        })
        .sum()
}

/// The key of what a copy reads.
pub(crate) fn key(action: &CopyAction, from: &Made) -> Result<String, FileOpError> {
    let mut hasher = KeyHasher::new("test", 1);
    kiln_fileop::selection_key(action, &from.view, &mut hasher)?;
    Ok(hasher.finish().to_string())
}

/// With an attribute on one of its paths.
pub(crate) fn with_xattr(mut made: Made, path: &str, name: &str, value: &[u8]) -> Made {
    let layers = made.view.layers().to_vec();
    let change = |index: &LayerIndex| {
        let mut entries = index.entries().to_vec();
        for entry in entries
            .iter_mut()
            .filter(|entry| entry.path == LayerPath::clean(path))
        {
            entry.xattrs = Xattrs::from([(name.as_bytes().to_vec(), value.to_vec())]);
        }
        Arc::new(LayerIndex::new(entries))
    };
    made.view = MergedView::new(layers.iter().map(|index| change(index)));
    made
}
