//! The merged view and the changes held against the kernel's overlay, on random stacks and random programs.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd};

use kiln_image::view::{MergedView, ResolveError};
use kiln_image::{Entry, Kind, LayerIndex, LayerPath};
use kiln_rootfs::{Lower, Provider};
use proptest::prelude::*;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;

use crate::lab::{
    Inside, Item, Lab, but_root_time, entry, file_kind, timeless_dirs, view, visible,
};

/// What a random layer has at a path; what does not fit with what came before is left out.
#[derive(Debug, Clone)]
enum Raw {
    Dir {
        opaque: bool,
        implied: bool,
    },
    File(u8),
    Symlink(&'static str),
    Fifo,
    Whiteout,
    /// One more name of the last file.
    SameFile,
}

#[derive(Debug, Clone, Copy)]
struct Meta {
    mode: u16,
    owner: u32,
    seconds: i64,
    xattr: Option<u8>,
}

fn any_meta() -> impl Strategy<Value = Meta> {
    let mode = prop::sample::select(vec![0o755, 0o644, 0o700, 0o4755, 0o1777, 0o000]);
    let owner = prop::sample::select(vec![0, 0, 1, 1000]);
    let xattr = prop::option::weighted(0.2, 0..2_u8);
    (mode, owner, 0..3_i64, xattr).prop_map(|(mode, owner, seconds, xattr)| Meta {
        mode,
        owner,
        seconds,
        xattr,
    })
}

fn any_target() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec![
        "a",
        "b",
        "../a",
        "/a/b",
        ".",
        "..",
        "a-/b",
        "/",
        "../../b/a",
        "none",
    ])
}

/// Names that sort differently by byte and by component.
fn any_path() -> impl Strategy<Value = String> {
    "(a|b|a-)(/(a|b|a-)){0,3}"
}

fn any_raw() -> impl Strategy<Value = Raw> {
    prop_oneof![
        4 => (any::<bool>(), any::<bool>()).prop_map(|(opaque, implied)| Raw::Dir { opaque, implied }),
        3 => (0..4_u8).prop_map(Raw::File),
        2 => any_target().prop_map(Raw::Symlink),
        1 => Just(Raw::Fifo),
        3 => Just(Raw::Whiteout),
        1 => Just(Raw::SameFile),
    ]
}

type RawLayer = Vec<(String, Raw, Meta)>;

fn any_stack() -> impl Strategy<Value = Vec<RawLayer>> {
    let path = prop_oneof![15 => any_path(), 1 => Just(String::new())];
    prop::collection::vec(
        prop::collection::vec((path, any_raw(), any_meta()), 0..16),
        0..5,
    )
}

fn with_meta(mut entry: Entry, meta: Meta) -> Entry {
    entry.mode = if matches!(entry.kind, Kind::Symlink(_)) {
        0o777
    } else {
        meta.mode
    };
    (entry.uid, entry.gid) = (meta.owner, meta.owner / 2);
    entry.mtime = (meta.seconds, 7);
    if let Some(value) = meta.xattr
        && (entry.is_dir() || entry.is_file())
    {
        entry.xattrs = [(b"user.x".to_vec(), vec![value])].into();
    }
    entry
}

/// What the names of one file have in common.
type Group = (u32, Vec<u8>, u16, u32, (i64, u32));

/// A valid layer on `lowers` from random pieces: parents are there, implied folders carry the metadata of the folder
/// that they stand for, whiteouts hide something (the kernel lists those that do not), as in every layer that Kiln
/// writes.
fn build(lab: &Lab, raw: RawLayer, lowers: &[Lower]) -> Lower {
    let below = view(lowers);
    let mut tree: BTreeMap<LayerPath, Item> = BTreeMap::new();
    let mut last_file: Option<LayerPath> = None;
    for (path, raw, meta) in raw {
        let path = LayerPath::clean(path);
        let parents: Vec<_> = std::iter::successors(path.parent(), LayerPath::parent).collect();
        let blocked =
            |parent: &LayerPath| tree.get(parent).is_some_and(|(entry, _)| !entry.is_dir());
        let leads_on = path.is_root()
            || tree
                .keys()
                .any(|known| known != &path && known.below(&path).is_some());
        let is_dir = matches!(raw, Raw::Dir { .. });
        if parents.iter().any(blocked) || leads_on && !is_dir || tree.contains_key(&path) {
            continue;
        }
        let text = path.as_path().to_str().unwrap();
        let mut content = Vec::new();
        let made = match raw {
            Raw::Dir { opaque, implied } => {
                let opaque = opaque && !path.is_root();
                with_meta(entry(text, Kind::Dir { opaque, implied }, 0), meta)
            }
            Raw::File(fill) => {
                content = vec![b'0' + fill; usize::from(fill)];
                last_file = Some(path.clone());
                with_meta(entry(text, file_kind(&content), 0), meta)
            }
            Raw::Symlink(target) => with_meta(entry(text, Kind::Symlink(target.into()), 0), meta),
            Raw::Fifo => with_meta(entry(text, Kind::Fifo, 0), meta),
            Raw::Whiteout => Entry {
                mtime: (0, 0),
                ..entry(text, Kind::Whiteout, 0)
            },
            Raw::SameFile => {
                let Some((first, bytes)) = last_file.as_ref().and_then(|first| tree.get_mut(first))
                else {
                    continue;
                };
                first
                    .hardlink
                    .get_or_insert(bytes.len() as u32 * 1000 + first.path.as_bytes().len() as u32);
                content.clone_from(bytes);
                Entry {
                    path: path.clone(),
                    ..first.clone()
                }
            }
        };
        for parent in parents.into_iter().filter(|parent| !parent.is_root()) {
            let text = parent.as_path().to_str().unwrap().to_owned();
            let kind = Kind::Dir {
                opaque: false,
                implied: true,
            };
            tree.entry(parent)
                .or_insert_with(|| (with_meta(entry(&text, kind, 0), meta), Vec::new()));
        }
        tree.insert(path, (made, content));
    }
    // Group numbers above can meet: give each file its own.
    let mut groups: HashMap<Group, u32> = HashMap::new();
    let opaque: Vec<_> = tree
        .values()
        .filter(|(entry, _)| matches!(entry.kind, Kind::Dir { opaque: true, .. }))
        .map(|(entry, _)| entry.path.clone())
        .collect();
    let hidden = |path: &LayerPath| {
        opaque
            .iter()
            .any(|dir| dir != path && path.below(dir).is_some())
    };
    tree.retain(|path, (entry, _)| {
        entry.kind != Kind::Whiteout || below.get(path).is_some() && !hidden(path)
    });
    for (path, (entry, content)) in &mut tree {
        if let Some(group) = &mut entry.hardlink {
            let next = groups.len() as u32;
            let key = (*group, content.clone(), entry.mode, entry.uid, entry.mtime);
            *group = *groups.entry(key).or_insert(next);
        }
        if let Kind::Dir { implied: true, .. } = entry.kind
            && let Some(base) = below
                .get(path)
                .filter(|node| node.entry.is_dir() && !hidden(path))
        {
            *entry = Entry {
                kind: entry.kind.clone(),
                ..base.entry.clone()
            };
        }
    }
    lab.layer(tree.into_values().collect())
}

fn stack(lab: &Lab, raw: Vec<RawLayer>) -> Vec<Lower> {
    let mut lowers = Vec::new();
    for raw in raw {
        lowers.push(build(lab, raw, &lowers));
    }
    lowers
}

/// What the kernel finds at `path` inside the root, by identity.
fn kernel_finds(inside: &Inside, path: &str, follow: bool) -> Result<(u64, u64), Errno> {
    let last = if follow {
        OFlags::empty()
    } else {
        OFlags::NOFOLLOW
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC | last;
    let fd = rustix::fs::openat2(
        inside.root(),
        path,
        flags,
        Mode::empty(),
        ResolveFlags::IN_ROOT,
    )?;
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn check_resolution(
    inside: &Inside,
    view: &MergedView,
    paths: &[String],
) -> Result<(), TestCaseError> {
    for path in paths {
        for follow in [false, true] {
            let ours = view.resolve(path.as_bytes(), follow);
            match kernel_finds(inside, path, follow) {
                Ok(found) => {
                    let ours = ours.map_err(|error| {
                        TestCaseError::fail(format!("{path} {follow}: {error}"))
                    })?;
                    let literal = if ours.is_root() {
                        "."
                    } else {
                        ours.as_path().to_str().unwrap()
                    };
                    let here = kernel_finds(inside, literal, false);
                    prop_assert_eq!(here, Ok(found), "{} {} -> {}", path, follow, ours);
                }
                Err(Errno::NOTDIR) => {
                    prop_assert!(
                        matches!(ours, Err(ResolveError::NotADirectory(_))),
                        "{} {}: {:?}",
                        path,
                        follow,
                        ours
                    );
                }
                // The view gives the path that it would be, and takes `..` behind it lexically.
                Err(Errno::NOENT) if !path.contains("..") => {
                    let ours = ours.map_err(|error| {
                        TestCaseError::fail(format!("{path} {follow}: {error}"))
                    })?;
                    prop_assert!(view.get(&ours).is_none(), "{} {} -> {}", path, follow, ours);
                }
                // The view follows more links than the kernel.
                Err(_) => {}
            }
        }
    }
    Ok(())
}

/// Where an operation happens: at one of the paths that there are, or at a new name in a folder.
#[derive(Debug, Clone)]
enum Place {
    Known(u16),
    New(u16, &'static str),
}

#[derive(Debug, Clone)]
enum Op {
    Write(Place, u8),
    Append(Place),
    Mkdir(Place),
    Remove(Place),
    Again(Place),
    Chmod(Place, u32),
    Chown(Place, u32),
    Time(Place, i64),
    Symlink(Place, &'static str),
    Link(Place, Place),
    Rename(Place, Place),
    Xattr(Place, u8),
    NoXattr(Place),
    Fifo(Place),
    Socket(Place),
}

fn any_op() -> impl Strategy<Value = Op> {
    let place = || {
        prop_oneof![
            3 => any::<u16>().prop_map(Place::Known),
            2 => (any::<u16>(), prop::sample::select(vec!["a", "b", "a-", "c"])).prop_map(|(dir, name)| Place::New(dir, name)),
        ]
    };
    let mode = prop::sample::select(vec![0o755, 0o644, 0o700, 0o2755]);
    prop_oneof![
        3 => (place(), 0..4_u8).prop_map(|(at, fill)| Op::Write(at, fill)),
        1 => place().prop_map(Op::Append),
        3 => place().prop_map(Op::Mkdir),
        4 => place().prop_map(Op::Remove),
        2 => place().prop_map(Op::Again),
        2 => (place(), mode).prop_map(|(at, mode)| Op::Chmod(at, mode)),
        1 => (place(), 0..3_u32).prop_map(|(at, owner)| Op::Chown(at, owner)),
        2 => (place(), 0..3_i64).prop_map(|(at, seconds)| Op::Time(at, seconds)),
        1 => (place(), any_target()).prop_map(|(at, target)| Op::Symlink(at, target)),
        2 => (place(), place()).prop_map(|(from, to)| Op::Link(from, to)),
        2 => (place(), place()).prop_map(|(from, to)| Op::Rename(from, to)),
        1 => (place(), 0..2_u8).prop_map(|(at, value)| Op::Xattr(at, value)),
        1 => place().prop_map(Op::NoXattr),
        1 => place().prop_map(Op::Fifo),
        1 => place().prop_map(Op::Socket),
    ]
}

struct Program<'a> {
    inside: &'a Inside,
    /// Folders are not renamed: an overlay cannot, a plain tree can.
    portable: bool,
}

impl Program<'_> {
    fn place(&self, place: &Place) -> LayerPath {
        let listing = self.inside.listing();
        match place {
            Place::Known(number) => listing[usize::from(*number) % listing.len()].path.clone(),
            Place::New(number, name) => {
                let dirs: Vec<_> = listing.iter().filter(|entry| entry.is_dir()).collect();
                dirs[usize::from(*number) % dirs.len()].path.child(name)
            }
        }
    }

    /// Does one thing; what is impossible is left.
    fn run(&self, op: &Op) {
        let _ = self.try_to(op);
    }

    fn try_to(&self, op: &Op) -> rustix::io::Result<()> {
        let (Op::Write(place, _)
        | Op::Append(place)
        | Op::Mkdir(place)
        | Op::Remove(place)
        | Op::Again(place)
        | Op::Chmod(place, _)
        | Op::Chown(place, _)
        | Op::Time(place, _)
        | Op::Symlink(place, _)
        | Op::Link(place, _)
        | Op::Rename(place, _)
        | Op::Xattr(place, _)
        | Op::NoXattr(place)
        | Op::Fifo(place)
        | Op::Socket(place)) = op;
        let path = self.place(place);
        let (dir, name) = if path.is_root() {
            (
                self.inside.root().try_clone_to_owned().unwrap(),
                b".".to_vec(),
            )
        } else {
            self.inside.parent(&path)?
        };
        let name = &name[..];
        let kind = || {
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            Ok::<_, Errno>(FileType::from_raw_mode(stat.st_mode))
        };
        let by_path = || {
            let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
            path.extend_from_slice(name);
            path
        };
        let node = |kind| rustix::fs::mknodat(&dir, name, kind, Mode::from_raw_mode(0o644), 0);
        let regular = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        match op {
            Op::Write(_, fill) => {
                let mode = Mode::from_raw_mode(0o644);
                let flags = regular | OFlags::CREATE | OFlags::TRUNC;
                let file = rustix::fs::openat(&dir, name, flags, mode)?;
                rustix::io::write(file, &vec![b'0' + fill; usize::from(*fill)]).map(drop)
            }
            Op::Append(_) => {
                let file = rustix::fs::openat(&dir, name, regular | OFlags::APPEND, Mode::empty())?;
                rustix::io::write(file, b"more").map(drop)
            }
            Op::Mkdir(_) => rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)),
            Op::Remove(_) => remove(&dir, name),
            Op::Again(_) => {
                remove(&dir, name)?;
                rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))
            }
            Op::Chmod(_, mode) if kind()? != FileType::Symlink => {
                rustix::fs::chmodat(&dir, name, Mode::from_raw_mode(*mode), AtFlags::empty())
            }
            Op::Chmod(..) => Ok(()),
            Op::Chown(_, owner) => rustix::fs::chownat(
                &dir,
                name,
                Some(Uid::from_raw(*owner)),
                Some(Gid::from_raw(owner / 2)),
                AtFlags::SYMLINK_NOFOLLOW,
            ),
            Op::Time(_, seconds) => {
                let at = rustix::fs::Timespec {
                    tv_sec: *seconds,
                    tv_nsec: 7,
                };
                let times = rustix::fs::Timestamps {
                    last_access: at,
                    last_modification: at,
                };
                rustix::fs::utimensat(&dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
            }
            Op::Symlink(_, target) => rustix::fs::symlinkat(*target, &dir, name),
            Op::Link(_, to) | Op::Rename(_, to) => {
                let to = self.place(to);
                let (to_dir, to_name) = self.inside.parent(&to)?;
                if matches!(op, Op::Link(..)) {
                    return rustix::fs::linkat(&dir, name, &to_dir, &to_name[..], AtFlags::empty());
                }
                if self.portable && kind()? == FileType::Directory {
                    return Ok(());
                }
                rustix::fs::renameat(&dir, name, &to_dir, &to_name[..])
            }
            Op::Xattr(_, value) => {
                let flags = rustix::fs::XattrFlags::empty();
                rustix::fs::lsetxattr(&by_path()[..], "user.x", &[*value], flags)
            }
            Op::NoXattr(_) => rustix::fs::lremovexattr(&by_path()[..], "user.x"),
            Op::Fifo(_) => node(FileType::Fifo),
            Op::Socket(_) => node(FileType::Socket),
        }
    }
}

fn remove(dir: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return other,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let inner = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
    for child in rustix::fs::Dir::read_from(&inner)? {
        let child = child?.file_name().to_bytes().to_vec();
        if child != b"." && child != b".." {
            remove(&inner, &child)?;
        }
    }
    rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR)
}

/// What holds for every layer that comes from changes.
fn check_index(index: &LayerIndex, below: &MergedView) -> Result<(), TestCaseError> {
    let mut leads_on: std::collections::HashSet<LayerPath> = std::collections::HashSet::default();
    for entry in index.entries() {
        if let Some(parent) = entry.path.parent().filter(|parent| !parent.is_root()) {
            prop_assert!(
                index.get(&parent).is_some_and(Entry::is_dir),
                "{} has no parent",
                entry.path
            );
            leads_on.insert(parent);
        }
    }
    for entry in index.entries() {
        let base = below.get(&entry.path);
        match entry.kind {
            Kind::Dir { opaque, .. } if opaque => prop_assert!(false, "{} is opaque", entry.path),
            Kind::Dir { implied: true, .. } => {
                prop_assert!(
                    leads_on.contains(&entry.path),
                    "{} leads nowhere",
                    entry.path
                );
                prop_assert!(
                    base.is_some_and(|node| node.entry.is_dir()),
                    "{} is new",
                    entry.path
                );
            }
            Kind::Whiteout => prop_assert!(base.is_some(), "{} hides nothing", entry.path),
            Kind::Socket => prop_assert!(false, "{} is a socket", entry.path),
            _ if entry.hardlink.is_none() => {
                let same = base.is_some_and(|node| {
                    Entry {
                        hardlink: None,
                        ..node.entry.clone()
                    } == *entry
                });
                prop_assert!(!same, "{} is no change", entry.path);
            }
            _ => {}
        }
    }
    Ok(())
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config(200))]
    #[test]
    fn view_and_changes_agree_with_the_kernel(
        layers in any_stack(),
        paths in prop::collection::vec("/?(a|b|a-|\\.\\.)(/(a|b|a-|\\.\\.|c)){0,5}", 12),
        ops in prop::collection::vec(any_op(), 0..14),
    ) {
        let Some(lab) = Lab::new() else { return Ok(()) };
        let lowers = stack(&lab, layers);
        let below = view(&lowers);
        let mut seen = None;
        let mut resolution = Ok(());
        let layer = lab.run(Provider::Overlay, &lowers, &[], |inside| {
            let before = inside.listing();
            resolution = check_resolution(inside, &below, &paths);
            let program = Program { inside, portable: false };
            for op in &ops {
                program.run(op);
            }
            seen = Some((before, inside.listing()));
        });
        let (before, after) = seen.unwrap();
        prop_assert_eq!(but_root_time(before), but_root_time(visible(&below)), "before");
        resolution?;
        check_index(&layer.index, &below)?;
        let all = [&lowers[..], &[layer]].concat();
        let above = visible(&view(&all));
        prop_assert_eq!(timeless_dirs(after), timeless_dirs(above.clone()), "after");
        prop_assert_eq!(but_root_time(lab.shown(&all)), but_root_time(above), "mounted again");
    }
}

/// Without what makes two runs differ, times, and what makes the providers differ: writing to one name of a file that
/// has several in a lower layer.
fn without_links(layers: Vec<RawLayer>) -> Vec<RawLayer> {
    let keep = |layer: RawLayer| {
        layer
            .into_iter()
            .filter(|(_, raw, _)| !matches!(raw, Raw::SameFile))
            .collect()
    };
    layers.into_iter().map(keep).collect()
}

fn timeless(index: &LayerIndex) -> Vec<Entry> {
    index
        .entries()
        .iter()
        .map(|entry| Entry {
            mtime: (0, 0),
            ..entry.clone()
        })
        .collect()
}

proptest! {
    #![proptest_config(config(100))]
    #[test]
    fn providers_agree(layers in any_stack(), ops in prop::collection::vec(any_op(), 0..14)) {
        let Some(lab) = Lab::new() else { return Ok(()) };
        let lowers = stack(&lab, without_links(layers));
        let run = |provider| {
            let mut after = Vec::new();
            let layer = lab.run(provider, &lowers, &[], |inside| {
                let program = Program { inside, portable: true };
                for op in &ops {
                    program.run(op);
                }
                after = inside.listing();
            });
            (layer, after)
        };
        let (overlay, shown) = run(Provider::Overlay);
        let (plain, copied) = run(Provider::PlainTree);
        let timeless_all = |entries: &[Entry]| -> Vec<Entry> {
            entries.iter().map(|entry| Entry { mtime: (0, 0), ..entry.clone() }).collect()
        };
        prop_assert_eq!(timeless_all(&shown), timeless_all(&copied), "the program did the same");
        prop_assert_eq!(timeless(&overlay.index), timeless(&plain.index));
        prop_assert_eq!(overlay.index.content_id(), plain.index.content_id());
        let all = [&lowers[..], &[plain]].concat();
        prop_assert_eq!(but_root_time(lab.shown(&all)), but_root_time(visible(&view(&all))), "files moved");
    }
}
