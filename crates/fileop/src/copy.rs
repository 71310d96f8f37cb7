//! Copies: what goes where, and what becomes of it.
//!
//! The rules are those of BuildKit's file copies (`tonistiigi/fsutil`, package `copy`), found out by trying.

use std::collections::HashMap;

use kiln_graph::CopyAction;
use kiln_image::{Entry, Kind, LayerPath, Paths};
use kiln_source::Stamp;

use crate::FileOpError;
use crate::builder::{Builder, Made};
use crate::mode::Chmod;
use crate::select::{Item, Source, sources};
use crate::tree::{Folders, Tree};
use crate::unpack::{is_archive, unpack};

/// Paths that are made together.
const TOGETHER: usize = 512;

/// What a copy changes of the metadata of what it copies.
pub(crate) struct Changes {
    pub(crate) owner: Option<(u32, u32)>,
    pub(crate) chmod: Option<Chmod>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) now: (i64, u32),
}

impl Changes {
    /// What folders get that are made on the way.
    pub(crate) fn made(&self) -> Made {
        Made {
            mode: self
                .chmod
                .as_ref()
                .and_then(Chmod::of_parents)
                .unwrap_or(0o755),
            owner: self.owner.unwrap_or((0, 0)),
            mtime: self.mtime.unwrap_or(self.now),
        }
    }

    /// The entry of the copy of `entry` at `path`.
    fn of(&self, entry: &Entry, path: LayerPath) -> Entry {
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        let mode = match &self.chmod {
            Some(chmod) if !matches!(entry.kind, Kind::Symlink(_)) => {
                chmod.apply(entry.mode, entry.is_dir())
            }
            _ => entry.mode,
        };
        let kind = match &entry.kind {
            Kind::Dir { .. } => Kind::Dir {
                opaque: false,
                implied: false,
            },
            kind => kind.clone(),
        };
        let mtime = self.mtime.unwrap_or(entry.mtime);
        Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs: entry.xattrs.clone(),
            hardlink: None,
        }
    }
}

/// Copies from `from` to the tree that is built.
pub(crate) fn copy<'a>(
    builder: &mut Builder<'a>,
    action: &CopyAction,
    from: &'a Tree<'a>,
    changes: &Changes,
) -> Result<(), FileOpError> {
    if !action.create_dest_path {
        let dest = builder.resolve(action.dest.as_bytes(), true)?;
        let parent = dest.parent().unwrap_or_default();
        if !builder.is_dir(&parent) {
            return Err(FileOpError::NoParent { path: parent });
        }
    }
    for source in sources(action, from.view)? {
        if action.attempt_unpack && unpacked(builder, action, from, &source, changes)? {
            continue;
        }
        Copier {
            builder,
            from,
            changes,
            links: HashMap::new(),
        }
        .source(action, &source)?;
    }
    Ok(())
}

/// Unpacks a source if it is an archive; tells whether it is one.
fn unpacked(
    builder: &mut Builder<'_>,
    action: &CopyAction,
    from: &Tree<'_>,
    source: &Source<'_>,
    changes: &Changes,
) -> Result<bool, FileOpError> {
    let Some(node) = source.node.filter(|node| node.entry.is_file()) else {
        return Ok(false);
    };
    let path = &source.path;
    let unreadable = |source: std::io::Error| FileOpError::Read {
        path: path.clone(),
        source,
    };
    let mut file = Folders::new(&from.dirs)
        .open(node.layer, path)
        .map_err(unreadable)?;
    if !is_archive(&mut file).map_err(unreadable)? {
        return Ok(false);
    }
    unpack(builder, path, &mut file, &action.dest, changes)?;
    if let Some(stamp) = from.stamp(node.entry) {
        let stat = rustix::fs::fstat(&file).map_err(|errno| unreadable(errno.into()))?;
        if Stamp::of(&stat) != *stamp {
            builder.changed.push(path.clone());
        }
    }
    Ok(true)
}

struct Copier<'a, 'b> {
    builder: &'b mut Builder<'a>,
    from: &'a Tree<'a>,
    changes: &'b Changes,
    /// Files of the source that have several names, and the number of their first copy.
    links: HashMap<(usize, u32), usize>,
}

impl<'a> Copier<'a, '_> {
    fn source(&mut self, action: &CopyAction, source: &Source<'a>) -> Result<(), FileOpError> {
        let made = self.changes.made();
        // The part in front of the last slash is made in any case, so that `dir/` is a folder from now on.
        let (folder, name) = match action.dest.rfind('/') {
            Some(slash) => action.dest.split_at(slash + 1),
            None => ("", &*action.dest),
        };
        let ensured = if matches!(name, "" | ".") {
            &*action.dest
        } else {
            folder
        };
        let ensured = self.builder.resolve(ensured.as_bytes(), true)?;
        self.builder.make_folders(&ensured, made)?;

        let mut dest = self
            .builder
            .resolve(LayerPath::clean(&action.dest).as_bytes(), true)?;
        let exists = dest.is_root() || self.builder.get(&dest).is_some();
        let is_dir = source.is_dir();
        if (is_dir && !action.dir_copy_contents && exists)
            || (!is_dir && self.builder.is_dir(&dest))
        {
            dest = dest.join(&source.name);
        }
        let contents = is_dir && action.dir_copy_contents;
        let parent = if contents && !exists {
            dest.clone()
        } else {
            dest.parent().unwrap_or_default()
        };
        self.builder.make_folders(&parent, made)?;

        if !is_dir {
            let Some(node) = source.node else {
                return Ok(());
            };
            return self.entry(
                &Item {
                    node,
                    only_parent: false,
                },
                dest,
            );
        }
        self.top(source, &dest)?;
        self.builder.reserve(source.below.len());
        for part in source.below.chunks(TOGETHER) {
            if dest == source.path {
                for item in part {
                    self.entry(item, item.node.entry.path.clone())?;
                }
                continue;
            }
            let mut paths = Paths::default();
            for item in part {
                paths.push(&dest, source.relative(item));
            }
            for (item, path) in part.iter().zip(paths.finish()) {
                self.entry(item, path)?;
            }
        }
        Ok(())
    }

    /// The folder that stands for the source itself. One that is there keeps its metadata; one that this layer has
    /// made gets the source's time.
    fn top(&mut self, source: &Source<'_>, dest: &LayerPath) -> Result<(), FileOpError> {
        match self.builder.get(dest) {
            Some(entry) if entry.is_dir() => {
                if let Some(node) = source.node {
                    self.builder
                        .set_time(dest, self.changes.mtime.unwrap_or(node.entry.mtime));
                }
                Ok(())
            }
            Some(entry) => Err(not_a_folder(&entry)),
            None if dest.is_root() => Ok(()),
            None => {
                let Made {
                    mode,
                    owner: (uid, gid),
                    mtime,
                } = self.changes.made();
                let entry = source.node.map_or_else(
                    || Entry::dir(dest.clone(), mode, uid, gid, mtime),
                    |node| self.changes.of(node.entry, dest.clone()),
                );
                self.builder.put(entry).map(drop)
            }
        }
    }

    fn entry(&mut self, item: &Item<'a>, dest: LayerPath) -> Result<(), FileOpError> {
        let node = item.node;
        let there = self.builder.get(&dest);
        if node.entry.is_dir() {
            return match there {
                Some(there) if !there.is_dir() => Err(not_a_folder(&there)),
                // A folder on the way to what was selected only gives its mode.
                Some(there) if item.only_parent => {
                    if there.mode == node.entry.mode {
                        return Ok(());
                    }
                    let kind = Kind::Dir {
                        opaque: false,
                        implied: false,
                    };
                    let entry = Entry {
                        mode: node.entry.mode,
                        kind,
                        ..there.into_owned()
                    };
                    self.builder.put(entry).map(drop)
                }
                _ => self
                    .builder
                    .put(self.changes.of(node.entry, dest))
                    .map(drop),
            };
        }
        if there.is_some_and(|there| there.is_dir()) || dest.is_root() {
            return Err(FileOpError::IsAFolder { path: dest });
        }
        let entry = self.changes.of(node.entry, dest);
        if !entry.is_file() {
            return self.builder.put(entry).map(drop);
        }
        let group = node.entry.hardlink.map(|group| (node.layer, group));
        if let Some(&first) = group.and_then(|group| self.links.get(&group)) {
            return self.builder.link(entry, first);
        }
        let at = self.builder.put_later(entry, self.from, node)?;
        if let Some(group) = group {
            self.links.insert(group, at);
        }
        Ok(())
    }
}

fn not_a_folder(there: &Entry) -> FileOpError {
    let target = match &there.kind {
        Kind::Symlink(target) => Some(String::from_utf8_lossy(target).into_owned()),
        _ => None,
    };
    FileOpError::NotAFolder {
        path: there.path.clone(),
        target,
    }
}
