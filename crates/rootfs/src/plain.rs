//! The plain tree: a copy of the merged layers that the program works in.
//!
//! What changed is found by a table of (inode, change time, size), as it was after the copy; only what differs from it
//! is read. Afterwards the changed files move into the layer and the rest of the tree is removed.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use kiln_image::view::MergedView;
use kiln_image::{Entry, InodeOwners, Kind, LayerIndex, LayerPath};
use kiln_store::layer_fs::{Content, Ids, LayerFs, delete_layer};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::diff::diff;
use crate::files::{Folder, by_descriptor, put_aside, times};
use crate::walk::{Found, Stamp, walk};
use crate::{Lower, RootfsError, digest};

/// The copy, and what it looked like at first.
#[derive(Debug)]
pub(crate) struct Tree {
    /// `layer_dir/tree`: laid out like a layer, its `fs/` is the root.
    dir: PathBuf,
    root: PathBuf,
    table: HashMap<LayerPath, Stamp>,
    /// What could not be made: devices without the right to, sockets.
    unmade: Vec<Entry>,
}

impl Tree {
    pub(crate) fn prepare(
        lowers: &[Lower],
        layer_dir: &Path,
        ids: Ids,
    ) -> Result<Self, RootfsError> {
        let dir = layer_dir.join("tree");
        delete_layer(&dir).map_err(RootfsError::io("remove", &dir))?;
        rustix::fs::mkdir(&dir, Mode::RWXU).map_err(RootfsError::io("make the folder", &dir))?;
        let view = MergedView::new(lowers.iter().map(|lower| Arc::clone(&lower.index)));
        let unmade = copy(&view, lowers, &dir, ids)?;
        let root = dir.join("fs");
        let found = walk(&Folder::open(&root)?, None, |_, _| true)?;
        let table: HashMap<_, _> = found
            .into_iter()
            .map(|found| (found.entry.path, found.stamp))
            .collect();
        outlast(
            &dir,
            table
                .values()
                .map(|stamp| stamp.ctime)
                .max()
                .unwrap_or_default(),
        )?;
        Ok(Self {
            dir,
            root,
            table,
            unmade,
        })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn remove(self, aside: Option<&Path>) -> Result<(), RootfsError> {
        put_aside(&self.dir, aside)
    }

    /// Moves what differs from `view` into `layer_dir/fs` and writes the index. What is left of the tree comes back.
    pub(crate) fn changes(
        self,
        layer_dir: &Path,
        view: &MergedView,
        ignore: &[LayerPath],
        ids: Ids,
        recorded: Option<&InodeOwners>,
    ) -> Result<(LayerIndex, Self), RootfsError> {
        let root = Folder::open(&self.root)?;
        let mut found = walk(&root, recorded, |path, stamp| {
            self.table.get(path) == Some(stamp)
        })?;
        self.add_unmade(&mut found);
        for found in &mut found {
            found.complete = true;
        }
        digest::fill(&root, &mut found)?;
        let index = LayerIndex::new(diff(&found, view, ignore).entries);
        let fs = LayerFs::create(layer_dir, ids).map_err(RootfsError::io("open", layer_dir))?;
        take(&root, &fs, &index)?;
        fs.finish(&index)
            .map_err(RootfsError::io("finish the layer in", layer_dir))?;
        Ok((index, self))
    }

    /// What could not be made is still there if the folder it belongs in is.
    fn add_unmade(&self, found: &mut Vec<Found>) {
        if self.unmade.is_empty() {
            return;
        }
        let known = |found: &&Found| {
            self.table
                .get(&found.entry.path)
                .is_some_and(|stamp| stamp.inode == found.stamp.inode)
        };
        let kept: HashSet<LayerPath> = found
            .iter()
            .filter(known)
            .map(|found| found.entry.path.clone())
            .collect();
        let taken: HashSet<LayerPath> =
            found.iter().map(|found| found.entry.path.clone()).collect();
        for entry in &self.unmade {
            let in_place = entry
                .path
                .parent()
                .is_some_and(|parent| kept.contains(&parent));
            if in_place && !taken.contains(&entry.path) {
                let stamp = Stamp::default();
                let entry = entry.clone();
                found.push(Found {
                    entry,
                    same: true,
                    complete: false,
                    opaque: false,
                    stamp,
                });
            }
        }
        found.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
    }
}

/// Copies the merged layers to `dir/fs`; gives what could not be made.
fn copy(
    view: &MergedView,
    lowers: &[Lower],
    dir: &Path,
    ids: Ids,
) -> Result<Vec<Entry>, RootfsError> {
    let sources = lowers
        .iter()
        .map(|lower| Folder::of(&lower.dirs))
        .collect::<Result<Vec<_>, _>>()?;
    let fs = LayerFs::create(dir, ids).map_err(RootfsError::io("open", dir))?;
    let target = Folder::open(&dir.join("fs"))?;
    let mut first_names: HashMap<(usize, u32), LayerPath> = HashMap::new();
    let mut folders = Vec::new();
    let mut unmade = Vec::new();
    for (path, node) in view.walk(&LayerPath::root()) {
        let mut entry = node.entry.clone();
        if let Some(group) = entry.hardlink {
            if let Some(first) = first_names.get(&(node.layer, group)) {
                fs.link(&entry, first)
                    .map_err(target.error("link", &path))?;
                continue;
            }
            first_names.insert((node.layer, group), path.clone());
        }
        let put = |content: Content<'_>| {
            fs.put(&entry, content)
                .map_err(target.error("copy to", &path))
        };
        match entry.kind {
            Kind::Dir { .. } => {
                entry.kind = Kind::Dir {
                    opaque: false,
                    implied: false,
                };
                fs.put(&entry, Content::None)
                    .map_err(target.error("make", &path))?;
                folders.push(entry);
            }
            Kind::File { .. } => {
                let source =
                    sources[node.layer].open_at(&path, OFlags::RDONLY | OFlags::NONBLOCK)?;
                put(Content::Copy(source.as_fd()))?;
            }
            Kind::Char(..) | Kind::Block(..) => {
                if !make_device(&target, &entry, ids)? {
                    unmade.push(entry);
                }
            }
            Kind::Socket => unmade.push(entry),
            Kind::Symlink(_) | Kind::Fifo => put(Content::None)?,
            Kind::Whiteout => {}
        }
    }
    fs.finish(&LayerIndex::new(folders))
        .map_err(RootfsError::io("finish the tree in", dir))?;
    Ok(unmade)
}

/// Makes a device where that is permitted; says whether it was.
fn make_device(target: &Folder, entry: &Entry, ids: Ids) -> Result<bool, RootfsError> {
    use rustix::fs::{Gid, Uid, chmodat, chownat, makedev, mknodat, utimensat};
    let (kind, number) = match entry.kind {
        Kind::Char(major, minor) => (FileType::CharacterDevice, makedev(major, minor)),
        Kind::Block(major, minor) => (FileType::BlockDevice, makedev(major, minor)),
        _ => return Ok(false),
    };
    let Some(parent) = entry.path.parent().filter(|_| ids == Ids::Real) else {
        return Ok(false);
    };
    let (dir, name) = (target.open_dir(&parent)?, entry.path.name());
    match mknodat(&dir, name, kind, Mode::RUSR, number) {
        // A user namespace, or a sandbox around this one.
        Err(Errno::PERM) => return Ok(false),
        other => other.map_err(target.error("make the device", &entry.path))?,
    }
    let (uid, gid) = (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid));
    chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
        .and_then(|()| {
            chmodat(
                &dir,
                name,
                Mode::from_raw_mode(entry.mode.into()),
                AtFlags::empty(),
            )
        })
        .and_then(|()| utimensat(&dir, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW))
        .map_err(target.error("set the metadata of", &entry.path))?;
    Ok(true)
}

/// Moves what the index names from the tree into the layer.
fn take(root: &Folder, fs: &LayerFs, index: &LayerIndex) -> Result<(), RootfsError> {
    let mut first_names: HashMap<u32, &LayerPath> = HashMap::new();
    let mut folder: Option<(LayerPath, OwnedFd)> = None;
    for entry in index.entries() {
        let path = &entry.path;
        let fail = |error: io::Error| root.error("move", path)(error);
        if let Some(group) = entry.hardlink {
            if let Some(first) = first_names.get(&group) {
                fs.link(entry, first).map_err(fail)?;
                continue;
            }
            first_names.insert(group, path);
        }
        let parent = path.parent().filter(|_| entry.is_file());
        let Some(parent) = parent else {
            fs.put(entry, Content::None).map_err(fail)?;
            continue;
        };
        if folder.as_ref().is_none_or(|(known, _)| *known != parent) {
            folder = Some((parent.clone(), root.open_dir(&parent)?));
        }
        if let Some((_, fd)) = &folder {
            let from = by_descriptor(fd.as_fd(), path.name());
            fs.put(entry, Content::Move(Path::new(OsStr::from_bytes(&from))))
                .map_err(fail)?;
        }
    }
    Ok(())
}

/// Waits until a change in `dir` gets a later change time than `newest`: file systems stamp by a coarse clock, and what
/// is written within the tick of the copy would look like the copy.
fn outlast(dir: &Path, newest: (i64, u32)) -> Result<(), RootfsError> {
    let path = dir.join("clock");
    let wait = || -> io::Result<()> {
        let file = std::fs::File::create(&path)?;
        let start = Instant::now();
        let mut mode = Mode::RUSR;
        // Longer than any tick: a file server whose clock stands still is not waited for.
        while start.elapsed() < Duration::from_secs(3) {
            mode.toggle(Mode::WUSR);
            rustix::fs::fchmod(&file, mode)?;
            let stat = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::CTIME)?;
            if (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec) > newest {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    };
    wait().map_err(RootfsError::io(
        "read the clock of the file system by",
        &path,
    ))
}
