//! A new layer on top of a tree.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;

use kiln_image::view::Node;
use kiln_image::{Entry, Kind, LayerId, LayerPath, ResolveError, Totals, Xattrs};
use kiln_store::layer_fs::{Content, Ids, LayerFs, open_index};

use crate::apply::NewLayer;
use crate::entries::Entries;
use crate::transfer::{Job, run};
use crate::tree::{Folders, Tree};
use crate::{FileOpError, standing};

/// As many links as one resolution follows.
const MAX_LINKS: usize = 255;

/// What folders get that are made on the way.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Made {
    pub(crate) mode: u16,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: (i64, u32),
}

/// The new layer: its entries, and its files on disk. The contents of plain files are copied late and in bulk.
pub(crate) struct Builder<'a> {
    base: &'a Tree<'a>,
    layer_dir: PathBuf,
    ids: Ids,
    fs: LayerFs,
    entries: Entries<'a>,
    jobs: Vec<Job<'a>>,
    /// Those that jobs copy from.
    trees: Vec<&'a Tree<'a>>,
    groups: u32,
    /// The numbers of the entries that were made names of one file.
    names: HashMap<u32, Vec<usize>>,
    /// The folder last asked about, and whether what the base has in it can be seen.
    seen: Option<(LayerPath, bool)>,
    /// The layer that this one may stand on, as long as nothing is on disk.
    earlier: Option<LayerId>,
    /// Files that were not what the index of their tree says.
    pub(crate) changed: Vec<LayerPath>,
}

/// A layer that is on disk with its index.
pub(crate) struct Finished {
    pub(crate) totals: Totals,
    /// The layer on whose folder it stands.
    pub(crate) below: Option<LayerId>,
    /// See [`Builder::changed`].
    pub(crate) changed: Vec<LayerPath>,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(base: &'a Tree<'a>, layer: &NewLayer, ids: Ids) -> Result<Self, FileOpError> {
        let fs = LayerFs::create(&layer.dir, ids).map_err(FileOpError::Write)?;
        Ok(Self {
            base,
            layer_dir: layer.dir.clone(),
            ids,
            fs,
            entries: Entries::default(),
            jobs: Vec::new(),
            trees: Vec::new(),
            groups: 0,
            names: HashMap::new(),
            seen: None,
            earlier: layer.earlier,
            changed: Vec::new(),
        })
    }

    pub(crate) fn base(&self) -> &'a Tree<'a> {
        self.base
    }

    /// What is at a path as it stands. The root need not be there.
    pub(crate) fn get(&mut self, path: &LayerPath) -> Option<Cow<'_, Entry>> {
        if let Some(at) = self.entries.find(path) {
            let entry = self.entries.get(at);
            return entry.filter(|entry| entry.kind != Kind::Whiteout);
        }
        let shows = path.parent().is_none_or(|parent| self.shows_base(&parent));
        if shows {
            let node = self.base.view.get(path);
            node.map(|node| Cow::Borrowed(node.entry))
        } else {
            None
        }
    }

    pub(crate) fn is_dir(&mut self, path: &LayerPath) -> bool {
        path.is_root() || self.get(path).is_some_and(|entry| entry.is_dir())
    }

    /// Whether what the base has in a folder can be seen.
    fn shows_base(&mut self, folder: &LayerPath) -> bool {
        if self.base.view.is_empty() {
            return false;
        }
        if let Some((known, shows)) = &self.seen
            && known == folder
        {
            return *shows;
        }
        let mut shows = self.base.view.is_dir(folder);
        let mut at = Some(folder.clone());
        while let Some(path) = at.filter(|_| shows) {
            let new = self.own(&path).map(|(_, entry)| entry);
            shows = new.is_none_or(|entry| matches!(entry.kind, Kind::Dir { opaque: false, .. }));
            at = path.parent();
        }
        self.seen = Some((folder.clone(), shows));
        shows
    }

    /// Follows links as a process in the root would. What does not exist has no links.
    pub(crate) fn resolve(
        &mut self,
        path: &[u8],
        follow_last: bool,
    ) -> Result<LayerPath, FileOpError> {
        self.resolve_below(&LayerPath::root(), path, follow_last)
    }

    /// The same for a process whose root is the folder `root`.
    pub(crate) fn resolve_below(
        &mut self,
        root: &LayerPath,
        path: &[u8],
        follow_last: bool,
    ) -> Result<LayerPath, FileOpError> {
        let mut resolved = root.clone();
        let mut links = 0;
        let names = |path: &[u8]| {
            path.split(|&byte| byte == b'/')
                .rev()
                .map(<[u8]>::to_vec)
                .collect::<Vec<_>>()
        };
        let mut rest = names(path);
        while let Some(name) = rest.pop() {
            match &*name {
                b"" | b"." => continue,
                b".." => {
                    if resolved != *root {
                        resolved = resolved.parent().unwrap_or_default();
                    }
                    continue;
                }
                name => resolved = resolved.child(name),
            }
            let last = rest.iter().all(Vec::is_empty);
            let Some(entry) = self.get(&resolved) else {
                continue;
            };
            match &entry.kind {
                Kind::Symlink(target) if follow_last || !last => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(ResolveError::Loop(LayerPath::clean(path)).into());
                    }
                    rest.extend(names(target));
                    let absolute = target.starts_with(b"/");
                    resolved = if absolute {
                        root.clone()
                    } else {
                        resolved.parent().unwrap_or_default()
                    };
                }
                Kind::Dir { .. } => {}
                _ if last => {}
                _ => return Err(FileOpError::MakeFolder { path: resolved }),
            }
        }
        Ok(resolved)
    }

    /// Makes a folder and its missing parents. The path must be resolved.
    pub(crate) fn make_folders(&mut self, path: &LayerPath, made: Made) -> Result<(), FileOpError> {
        let mut missing = Vec::new();
        let mut at = path.clone();
        while !at.is_root() {
            match self.get(&at) {
                Some(entry) if entry.is_dir() => break,
                Some(_) => return Err(FileOpError::MakeFolder { path: at }),
                None => {}
            }
            let parent = at.parent().unwrap_or_default();
            missing.push(std::mem::replace(&mut at, parent));
        }
        for path in missing.into_iter().rev() {
            let (uid, gid) = made.owner;
            self.put(Entry::dir(path, made.mode, uid, gid, made.mtime))?;
        }
        Ok(())
    }

    /// Puts anything but a regular file. Its parents must be there; a folder stays a folder with what is in it, all
    /// else gives way.
    pub(crate) fn put(&mut self, entry: Entry) -> Result<usize, FileOpError> {
        let at = self.enter(entry)?;
        self.make(at)?;
        Ok(at)
    }

    /// Makes what has no content: at once, or when it is known whether the layer stands on another one.
    fn make(&mut self, at: usize) -> Result<(), FileOpError> {
        if self.earlier.is_some() {
            self.jobs.push(Job::Make { at: at as u32 });
            return Ok(());
        }
        match self.entries.get(at) {
            Some(entry) => self
                .fs
                .put(&entry, Content::None)
                .map_err(FileOpError::Write),
            None => Ok(()),
        }
    }

    /// Changes the time of a folder that this layer has made.
    pub(crate) fn set_time(&mut self, path: &LayerPath, mtime: (i64, u32)) {
        let own = self.entries.find(path);
        let own = own.and_then(|at| self.entries.get_mut(at));
        if let Some(entry) =
            own.filter(|entry| matches!(entry.kind, Kind::Dir { implied: false, .. }))
        {
            entry.mtime = mtime;
        }
    }

    /// Puts a regular file with these bytes.
    pub(crate) fn put_bytes(&mut self, entry: Entry, bytes: &[u8]) -> Result<(), FileOpError> {
        self.be_whole()?;
        let at = self.enter(entry)?;
        let entry = self.entries.get(at).expect("it was entered just now");
        self.fs
            .put(&entry, Content::Bytes(bytes))
            .map_err(FileOpError::Write)
    }

    /// Puts a regular file with what a stream gives.
    pub(crate) fn put_stream(
        &mut self,
        entry: Entry,
        content: &mut dyn Read,
    ) -> Result<(), FileOpError> {
        self.be_whole()?;
        let at = self.enter(entry)?;
        let entry = self.entries.get_mut(at).expect("it was entered just now");
        self.fs
            .put_hashed(entry, content)
            .map_err(FileOpError::Write)
    }

    /// Puts a regular file whose content is copied later: that of `node` in `tree`.
    pub(crate) fn put_later(
        &mut self,
        entry: Entry,
        tree: &'a Tree<'a>,
        node: Node<'a>,
    ) -> Result<usize, FileOpError> {
        let at = self.enter(entry)?;
        self.entries.is_copy(at, node.entry);
        if self
            .trees
            .last()
            .is_none_or(|last| !std::ptr::eq(*last, tree))
        {
            self.trees.push(tree);
        }
        self.jobs.push(Job::Copy {
            at: at as u32,
            tree: self.trees.len() as u32 - 1,
            layer: node.layer as u32,
            from: node.entry,
        });
        Ok(at)
    }

    /// Makes `entry` one more name of the file that was entered as number `first`.
    pub(crate) fn link(&mut self, mut entry: Entry, first: usize) -> Result<(), FileOpError> {
        let Some(group) = self.entries.get(first).map(|entry| entry.hardlink) else {
            return Err(FileOpError::Broken(
                "a hard link to what was removed".to_owned(),
            ));
        };
        let group = group.unwrap_or_else(|| {
            self.groups += 1;
            self.groups
        });
        entry.hardlink = Some(group);
        let at = self.enter(entry)?;
        if let Some(first) = self.entries.get_mut(first) {
            first.hardlink = Some(group);
        }
        let names = self.names.entry(group).or_insert_with(|| vec![first]);
        names.push(at);
        let (at, first) = (at as u32, first as u32);
        self.jobs.push(Job::Link { at, first });
        Ok(())
    }

    /// Gives owner, mode, time and attributes of `like` to the file that was entered as number `first`, and so to all
    /// of its names.
    pub(crate) fn set_metadata(&mut self, first: usize, like: &Entry) -> Result<(), FileOpError> {
        self.flush()?;
        let group = self.entries.get(first).and_then(|file| file.hardlink);
        let names = group.and_then(|group| self.names.get(&group));
        for &at in names.map_or(&[first][..], |names| names) {
            // The place may be another file's by now.
            if let Some(entry) = self.entries.get_mut(at)
                && entry.hardlink == group
            {
                (entry.uid, entry.gid) = (like.uid, like.gid);
                (entry.mode, entry.mtime) = (like.mode, like.mtime);
                entry.xattrs.clone_from(&like.xattrs);
            }
        }
        match self.entries.get(first) {
            Some(entry) => self.fs.set_metadata(&entry).map_err(FileOpError::Write),
            None => Ok(()),
        }
    }

    /// The number and the metadata of the new file at a path, if this layer has put one there.
    pub(crate) fn own(&self, path: &LayerPath) -> Option<(usize, Cow<'_, Entry>)> {
        let at = self.entries.find(path)?;
        self.entries.get(at).map(|entry| (at, entry))
    }

    /// Writes an entry down, with its parents, in place of what is there.
    fn enter(&mut self, mut entry: Entry) -> Result<usize, FileOpError> {
        let old = self.entries.find(&entry.path);
        if old.is_some() {
            // What is to be replaced must be on disk first.
            self.flush()?;
        }
        let old_dir = old.and_then(|at| match self.entries.get(at)?.kind {
            Kind::Dir { opaque, .. } => Some(opaque),
            _ => None,
        });
        match &mut entry.kind {
            Kind::Dir { opaque, .. } => {
                // A folder where the base has one that was removed or replaced must not show the base's.
                *opaque = match (old, old_dir) {
                    (Some(_), Some(opaque)) => opaque,
                    (Some(_), None) => self.base_has_dir(&entry.path),
                    (None, _) => false,
                };
            }
            _ if old_dir.is_some() => self.forget_below(&entry.path),
            _ => {}
        }
        if self
            .seen
            .as_ref()
            .is_some_and(|(folder, _)| folder.below(&entry.path).is_some())
        {
            self.seen = None;
        }
        if let Some(at) = old {
            self.entries.set(at, entry);
            return Ok(at);
        }
        if let Some(parent) = entry.path.parent() {
            self.lead_to(&parent)?;
        }
        Ok(self.entries.push(entry))
    }

    fn base_has_dir(&mut self, path: &LayerPath) -> bool {
        let shows = path.parent().is_none_or(|parent| self.shows_base(&parent));
        shows
            && self
                .base
                .view
                .get(path)
                .is_some_and(|node| node.entry.is_dir())
    }

    /// Enters the folders of the base that lead to something new.
    fn lead_to(&mut self, folder: &LayerPath) -> Result<(), FileOpError> {
        let mut missing = Vec::new();
        let mut at = folder.clone();
        while !at.is_root() && self.entries.find(&at).is_none() {
            let parent = at.parent().unwrap_or_default();
            missing.push(std::mem::replace(&mut at, parent));
        }
        for path in missing.into_iter().rev() {
            let Some(node) = self.base.view.get(&path) else {
                return Err(FileOpError::NoParent { path });
            };
            let entry = Entry {
                path,
                kind: Kind::Dir {
                    opaque: false,
                    implied: true,
                },
                hardlink: None,
                ..node.entry.clone()
            };
            let at = self.entries.push(entry);
            self.make(at)?;
        }
        Ok(())
    }

    /// Removes a path, resolved but for its last component, with all below it.
    pub(crate) fn remove(&mut self, path: &LayerPath) -> Result<(), FileOpError> {
        self.flush()?;
        self.seen = None;
        let shows = path.parent().is_none_or(|parent| self.shows_base(&parent));
        let in_base = shows && self.base.view.get(path).is_some();
        if self.entries.remove(path) {
            self.forget_below(path);
            self.fs.remove(path).map_err(FileOpError::Write)?;
        }
        if in_base {
            let (mode, uid, gid, mtime) = (0, 0, 0, (0, 0));
            let xattrs = Xattrs::new();
            let kind = Kind::Whiteout;
            self.put(Entry {
                path: path.clone(),
                kind,
                mode,
                uid,
                gid,
                mtime,
                xattrs,
                hardlink: None,
            })?;
        }
        self.seen = None;
        Ok(())
    }

    fn forget_below(&mut self, path: &LayerPath) {
        for at in 0..self.entries.len() {
            let its = self.entries.path(at);
            let below = its.filter(|its| its.below(path).is_some_and(|rest| !rest.is_empty()));
            if let Some(below) = below.cloned() {
                self.entries.remove(&below);
            }
        }
    }

    /// What is in a folder, by name.
    pub(crate) fn children(&mut self, folder: &LayerPath) -> Vec<Vec<u8>> {
        let mut names: Vec<Vec<u8>> = Vec::new();
        if self.shows_base(folder) {
            names.extend(
                self.base
                    .view
                    .children(folder)
                    .map(|(name, _)| name.to_vec()),
            );
        }
        let new = (0..self.entries.len()).filter_map(|at| self.entries.path(at));
        let new = new.filter(|path| path.parent().as_ref() == Some(folder));
        names.extend(new.map(|path| path.name().to_vec()));
        names.sort_unstable();
        names.dedup();
        names.retain(|name| self.get(&folder.child(name)).is_some());
        names
    }

    /// The content of the regular file that a path leads to, links followed.
    pub(crate) fn read(&mut self, path: &str) -> Result<Option<Vec<u8>>, FileOpError> {
        self.flush()?;
        let resolved = self.resolve(path.as_bytes(), true)?;
        if !self.get(&resolved).is_some_and(|entry| entry.is_file()) {
            return Ok(None);
        }
        let mut content = Vec::new();
        let opened = if self.entries.find(&resolved).is_some() {
            self.fs.open(&resolved)
        } else {
            let layer = self.base.view.get(&resolved).map_or(0, |node| node.layer);
            Folders::new(&self.base.dirs).open(layer, &resolved)
        };
        opened
            .and_then(|mut file| file.read_to_end(&mut content))
            .map_err(|source| FileOpError::Read {
                path: resolved,
                source,
            })?;
        Ok(Some(content))
    }

    /// What comes now goes to the disk at once, and so must what came before.
    fn be_whole(&mut self) -> Result<(), FileOpError> {
        if self.earlier.is_some() {
            self.flush()?;
        }
        Ok(())
    }

    /// Makes room for so many more files.
    pub(crate) fn reserve(&mut self, more: usize) {
        self.entries.reserve(more);
        self.jobs.reserve(more);
    }

    /// Makes what is due. From now on the layer stands on nothing.
    pub(crate) fn flush(&mut self) -> Result<(), FileOpError> {
        self.earlier = None;
        let jobs = std::mem::take(&mut self.jobs);
        self.work(&jobs)
    }

    fn work(&mut self, jobs: &[Job<'a>]) -> Result<(), FileOpError> {
        if jobs.is_empty() {
            return Ok(());
        }
        let changed = run(
            &self.fs,
            &self.layer_dir,
            self.ids,
            &mut self.entries,
            &self.trees,
            jobs,
        )?;
        self.changed.extend(changed);
        Ok(())
    }

    /// Finishes the files and gives the index. It is on disk then, too.
    pub(crate) fn finish(mut self) -> Result<Finished, FileOpError> {
        // Large contexts need the memory.
        self.entries.forget_paths();
        let mut names: HashMap<u32, usize> = HashMap::new();
        for group in self.entries.iter().filter_map(|it| it.hardlink) {
            *names.entry(group).or_default() += 1;
        }
        for at in 0..self.entries.len() {
            let group = self.entries.get(at).and_then(|entry| entry.hardlink);
            if group.is_some_and(|group| names[&group] == 1)
                && let Some(entry) = self.entries.get_mut(at)
            {
                entry.hardlink = None;
            }
        }
        let below = self
            .earlier
            .and_then(|earlier| Some((earlier, self.needs_on(earlier)?)));
        let own: Option<&[bool]> = match &below {
            None => {
                self.flush()?;
                None
            }
            Some((_, own)) => {
                let mut jobs = std::mem::take(&mut self.jobs);
                jobs.retain(|job| own[job.at()]);
                self.work(&jobs)?;
                Some(own)
            }
        };
        let order = self.entries.in_order();
        let folders = order.iter().rev().map(|at| *at as usize);
        let folders = folders.filter(|at| own.is_none_or(|own| own[*at]));
        let folders = folders.filter_map(|at| self.entries.get(at));
        self.fs
            .finish_folders(folders.filter(|entry| entry.is_dir()))
            .map_err(FileOpError::Write)?;
        let below = below.as_ref().map(|(earlier, _)| *earlier);
        let entries = order.iter().filter_map(|at| self.entries.get(*at as usize));
        let totals = self
            .fs
            .write_index(below, order.len(), entries)
            .map_err(FileOpError::Write)?;
        Ok(Finished {
            totals,
            below,
            changed: self.changed,
        })
    }

    /// What the layer needs in its own folder if it stands on `earlier`; `None` if it does not. An earlier layer that is
    /// damaged is as good as none: who uses it finds out.
    fn needs_on(&self, earlier: LayerId) -> Option<Vec<bool>> {
        let dir = self.layer_dir.with_file_name(earlier.hex());
        if !dir.join(kiln_store::layer_fs::FS).is_dir() {
            return None;
        }
        standing::own(&self.entries, open_index(&dir).ok()?)
    }
}
