//! From the archive to the index, as a stream.

use std::collections::{BTreeMap, HashMap};

use super::{Member, TarLayerError, Whiteouts, bare, header_to_entry};
use crate::tar::Header;
use crate::{Entry, FileDigest, Kind, LayerIndex, LayerPath};

/// The most symbolic links on the way to one entry.
const MAX_LINKS: usize = 255;

/// Collects the entries of a layer while its archive is unpacked, and tells what to do with each.
///
/// The archive's order counts: what comes later replaces what came earlier at the same path. Only a whiteout never
/// hides what the same archive brings, wherever it stands (OCI image spec, layer.md, "Whiteouts"). Parents that have no
/// entry are added as implied folders. Where a parent is a symbolic link of the same layer, the entry goes where the
/// link leads, inside the root.
#[derive(Debug, Default)]
pub struct LayerBuilder {
    entries: BTreeMap<LayerPath, Entry>,
    /// The names that were given to files with several, by group. Some may have gone again.
    groups: Vec<Vec<LayerPath>>,
    /// The parent of the entry before, as written, and where it is.
    last_parent: Option<(LayerPath, LayerPath)>,
}

/// What is to be done in the layer's folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make this. What is at the path goes, with all that is below; but a folder that stays a folder keeps what it
    /// holds and takes the new metadata. The parent is a folder. A regular file's content follows; when it is written,
    /// [`LayerBuilder::set_digest`] must be told.
    Put(Entry),
    /// Make one more name for a file.
    Link {
        /// The new name with the whole metadata.
        entry: Entry,
        /// A name that the file has.
        first: LayerPath,
    },
    /// Give something that is there, and no folder, the metadata of the entry.
    Change(Entry),
}

impl LayerBuilder {
    /// An empty layer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes a header of the archive. The steps must be done in order before the next header is taken.
    ///
    /// # Errors
    /// As [`header_to_entry`]; when a parent is not a folder; when a hard link names no file that this layer has: the
    /// caller can look for it elsewhere, and hand a copy to [`LayerBuilder::add`].
    pub fn take(&mut self, header: &Header) -> Result<Vec<Step>, TarLayerError> {
        match header_to_entry(header, Whiteouts::Apply)? {
            Member::Entry(entry) => self.add(entry),
            Member::HardLink { entry, target } => self.link(*entry, &target),
            Member::Opaque(dir) => self.opaque(&dir),
            Member::Ignored => Ok(Vec::new()),
        }
    }

    /// Adds an entry.
    ///
    /// # Errors
    /// When a parent is not a folder.
    pub fn add(&mut self, mut entry: Entry) -> Result<Vec<Step>, TarLayerError> {
        let mut steps = Vec::new();
        entry.path = self.place(entry.path, &mut steps)?;
        let before = self
            .entries
            .get(&entry.path)
            .map(|entry| entry.kind.clone());
        match (&mut entry.kind, before) {
            // The layer's own folder stays and hides the one below.
            (Kind::Whiteout, Some(Kind::Dir { .. })) => {
                steps.extend(self.set_opaque(&entry.path));
                return Ok(steps);
            }
            // Any other thing hides what is below anyway.
            (Kind::Whiteout, Some(_)) => return Ok(steps),
            (Kind::Dir { opaque, .. }, Some(Kind::Dir { opaque: was, .. })) => *opaque |= was,
            (Kind::Dir { opaque, .. }, Some(Kind::Whiteout)) => *opaque = true,
            (_, Some(before)) => self.forget(&entry.path, &before),
            (_, None) => {}
        }
        steps.push(self.put(entry));
        Ok(steps)
    }

    /// Tells the digest of a regular file that was put, before the next header is taken: hard links to come copy it.
    pub fn set_digest(&mut self, path: &LayerPath, of: FileDigest) {
        if let Some(Entry {
            kind: Kind::File { digest, .. },
            ..
        }) = self.entries.get_mut(path)
        {
            *digest = of;
        }
    }

    /// What the layer has at a path so far.
    pub fn get(&self, path: &LayerPath) -> Option<&Entry> {
        self.entries.get(path)
    }

    /// The index of the layer.
    pub fn finish(mut self) -> LayerIndex {
        // A file may have lost its other names.
        let mut names: HashMap<u32, u32> = HashMap::new();
        for group in self.entries.values().filter_map(|entry| entry.hardlink) {
            *names.entry(group).or_default() += 1;
        }
        for entry in self.entries.values_mut() {
            entry.hardlink = entry.hardlink.filter(|group| names[group] > 1);
        }
        LayerIndex::new(self.entries.into_values().collect())
    }

    /// One more name for a file, which takes over the header's metadata: whoever unpacks with system calls sets them on
    /// the new name, and so on the file.
    fn link(&mut self, new: Entry, target: &LayerPath) -> Result<Vec<Step>, TarLayerError> {
        let path = new.path.clone();
        let missing = |path: &LayerPath| TarLayerError::LinkTarget {
            path: path.clone(),
            target: target.clone(),
        };
        let mut steps = Vec::new();
        // The target's own parents can be links, but nothing is made on the way to it.
        let first = self.follow(target).map_err(|_| missing(&path))?;
        let path = self.place(path, &mut steps)?;
        let file = self
            .entries
            .get_mut(&first)
            .filter(|entry| !entry.is_dir() && entry.kind != Kind::Whiteout);
        let file = file.ok_or_else(|| missing(&path))?;
        if path == first {
            return Ok(steps);
        }
        let group = *file.hardlink.get_or_insert_with(|| {
            self.groups.push(vec![first.clone()]);
            self.groups.len() as u32 - 1
        });
        let entry = Entry {
            path,
            ..with_metadata(file.clone(), new)
        };
        let changed = Entry {
            path: first.clone(),
            ..entry.clone()
        } != *file;
        if first.below(&entry.path).is_some() {
            return Err(missing(&entry.path));
        }
        if let Some(before) = self
            .entries
            .get(&entry.path)
            .map(|entry| entry.kind.clone())
        {
            self.forget(&entry.path, &before);
        }
        let names = &mut self.groups[group as usize];
        if changed {
            for name in &*names {
                let known = self.entries.get_mut(name);
                if let Some(known) = known.filter(|known| known.hardlink == Some(group)) {
                    *known = Entry {
                        path: known.path.clone(),
                        ..entry.clone()
                    };
                }
            }
        }
        names.push(entry.path.clone());
        self.entries.insert(entry.path.clone(), entry.clone());
        let change = changed.then(|| Step::Change(entry.clone()));
        steps.push(Step::Link { entry, first });
        steps.extend(change);
        Ok(steps)
    }

    fn opaque(&mut self, dir: &LayerPath) -> Result<Vec<Step>, TarLayerError> {
        let mut steps = Vec::new();
        // Placing something in the folder makes the folder.
        let inside = self.place(dir.child("x"), &mut steps)?;
        let dir = inside.parent().unwrap_or_default();
        if dir.is_root() && !self.entries.contains_key(&dir) {
            self.put(implied(dir.clone()));
        }
        steps.extend(self.set_opaque(&dir));
        Ok(steps)
    }

    fn set_opaque(&mut self, dir: &LayerPath) -> Option<Step> {
        let entry = self.entries.get_mut(dir)?;
        if let Kind::Dir { opaque, .. } = &mut entry.kind {
            *opaque = true;
        }
        Some(Step::Put(entry.clone()))
    }

    fn put(&mut self, entry: Entry) -> Step {
        self.entries.insert(entry.path.clone(), entry.clone());
        Step::Put(entry)
    }

    /// Drops what is below a path that stops being a folder, and what is known about parents.
    fn forget(&mut self, path: &LayerPath, before: &Kind) {
        self.last_parent = None;
        if matches!(before, Kind::Dir { .. }) {
            let gone: Vec<LayerPath> = self
                .entries
                .range::<LayerPath, _>(path..)
                .map(|(path, _)| path)
                .take_while(|known| known.below(path).is_some())
                .cloned()
                .collect();
            for path in gone {
                self.entries.remove(&path);
            }
        }
    }

    /// Where an entry goes: its parents followed through this layer's links, and made where they are missing.
    fn place(
        &mut self,
        path: LayerPath,
        steps: &mut Vec<Step>,
    ) -> Result<LayerPath, TarLayerError> {
        let Some(parent) = path.parent() else {
            return Ok(path);
        };
        if let Some((written, real)) = &self.last_parent
            && *written == parent
        {
            return Ok(real.child(path.name()));
        }
        let placed = self.follow(&path)?;
        let real = placed.parent().unwrap_or_default();
        let mut missing: Vec<LayerPath> =
            std::iter::successors(Some(real.clone()), LayerPath::parent)
                .take_while(|folder| {
                    !folder.is_root() && !self.entries.get(folder).is_some_and(Entry::is_dir)
                })
                .collect();
        while let Some(folder) = missing.pop() {
            let mut entry = implied(folder);
            if self.entries.contains_key(&entry.path) {
                // A whiteout: what is below it is gone, so the folder is a new one.
                entry.kind = Kind::Dir {
                    opaque: true,
                    implied: false,
                };
            }
            steps.push(self.put(entry));
        }
        self.last_parent = Some((parent, real));
        Ok(placed)
    }

    /// Follows the links among a path's parents, as far as this layer has them.
    fn follow(&self, path: &LayerPath) -> Result<LayerPath, TarLayerError> {
        let wrong = |parent: LayerPath| TarLayerError::Parent {
            path: path.clone(),
            parent,
        };
        let mut real = LayerPath::root();
        let mut links = 0;
        let mut rest: Vec<&[u8]> = path.components().rev().collect();
        while let Some(name) = rest.pop() {
            match name {
                b"" | b"." => continue,
                b".." => {
                    real = real.parent().unwrap_or_default();
                    continue;
                }
                _ => real = real.child(name),
            }
            if rest.is_empty() {
                break;
            }
            match self.entries.get(&real).map(|entry| &entry.kind) {
                None | Some(Kind::Dir { .. } | Kind::Whiteout) => {}
                Some(Kind::Symlink(target)) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(wrong(real));
                    }
                    real = if target.starts_with(b"/") {
                        LayerPath::root()
                    } else {
                        real.parent().unwrap_or_default()
                    };
                    rest.extend(target.split(|&byte| byte == b'/').rev());
                }
                Some(_) => return Err(wrong(real)),
            }
        }
        Ok(real)
    }
}

/// A file with the metadata of a header that gives it another name: its owner is set first, which takes capabilities
/// away, then what the header has of extended attributes, then mode and time. Of a symbolic link these stay.
fn with_metadata(mut file: Entry, new: Entry) -> Entry {
    const CAPABILITY: &[u8] = b"security.capability";
    (file.uid, file.gid) = (new.uid, new.gid);
    file.xattrs.retain(|(name, _)| {
        name != CAPABILITY && new.xattrs.iter().all(|(known, _)| known != name)
    });
    file.xattrs.extend(new.xattrs);
    file.xattrs.sort();
    if !matches!(file.kind, Kind::Symlink(_)) {
        (file.mode, file.mtime) = (new.mode, new.mtime);
    }
    file
}

/// A folder that only leads to something; the metadata count where no layer below has it.
fn implied(path: LayerPath) -> Entry {
    Entry {
        mode: 0o755,
        ..bare(
            path,
            Kind::Dir {
                opaque: false,
                implied: true,
            },
        )
    }
}
