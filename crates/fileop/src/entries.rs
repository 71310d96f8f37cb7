//! The entries of a layer that is being made.

use std::borrow::Cow;
use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;
use kiln_image::{Entry, LayerPath};

/// Entries in the order in which they came, known by their numbers and found by their paths.
#[derive(Default)]
pub(crate) struct Entries<'a> {
    slots: Vec<Slot<'a>>,
    /// What copies have that is not what is copied: few kinds, one after the other.
    given: Vec<Given>,
    /// The numbers of those that are to be found. Their paths are in the slots.
    found: HashTable<u32>,
    state: RandomState,
}

/// An entry. A copy refers to what is copied: of large contexts there are as many as there are files.
enum Slot<'a> {
    /// Taken out when something removed it.
    Gone,
    Own(Box<Entry>),
    Copy {
        from: &'a Entry,
        path: LayerPath,
        mode: u16,
        given: u16,
    },
}

/// Owner and time.
type Given = (u32, u32, Option<(i64, u32)>);

impl<'a> Entries<'a> {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Makes room for so many more.
    pub(crate) fn reserve(&mut self, more: usize) {
        self.slots.reserve(more);
        let hash = |at: &u32| self.state.hash_one(path_of(&self.slots, *at));
        self.found.reserve(more, hash);
    }

    pub(crate) fn get(&self, at: usize) -> Option<Cow<'_, Entry>> {
        match &self.slots[at] {
            Slot::Gone => None,
            Slot::Own(entry) => Some(Cow::Borrowed(entry)),
            Slot::Copy {
                from,
                path,
                mode,
                given,
            } => {
                let (uid, gid, mtime) = self.given[*given as usize];
                Some(Cow::Owned(Entry {
                    path: path.clone(),
                    kind: from.kind.clone(),
                    mode: *mode,
                    uid,
                    gid,
                    mtime: mtime.unwrap_or(from.mtime),
                    xattrs: from.xattrs.clone(),
                    hardlink: None,
                }))
            }
        }
    }

    pub(crate) fn path(&self, at: usize) -> Option<&LayerPath> {
        path_of(&self.slots, at as u32)
    }

    /// An entry to be changed. Its path must stay as it is.
    pub(crate) fn get_mut(&mut self, at: usize) -> Option<&mut Entry> {
        if let Slot::Copy { .. } = self.slots[at] {
            let entry = self.get(at)?.into_owned();
            self.slots[at] = Slot::Own(entry.into());
        }
        match &mut self.slots[at] {
            Slot::Own(entry) => Some(entry),
            _ => None,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = Cow<'_, Entry>> {
        (0..self.len()).filter_map(|at| self.get(at))
    }

    /// The numbers of all that are there, in the order of their paths.
    pub(crate) fn in_order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.len() as u32).collect();
        order.retain(|at| self.path(*at as usize).is_some());
        order.sort_by(|a, b| self.path(*a as usize).cmp(&self.path(*b as usize)));
        order
    }

    /// Adds an entry with a path of its own.
    pub(crate) fn push(&mut self, entry: Entry) -> usize {
        let at = self.len() as u32;
        self.slots.push(Slot::Own(entry.into()));
        let hash = |at: u32| self.state.hash_one(path_of(&self.slots, at));
        self.found.insert_unique(hash(at), at, |at| hash(*at));
        at as usize
    }

    /// Replaces an entry by another one of the same path.
    pub(crate) fn set(&mut self, at: usize, entry: Entry) {
        self.slots[at] = Slot::Own(entry.into());
    }

    /// Says that an entry is `from` but for path, mode, owner and time, which saves memory.
    pub(crate) fn is_copy(&mut self, at: usize, from: &'a Entry) {
        let Slot::Own(entry) = &self.slots[at] else {
            return;
        };
        let mtime = (entry.mtime != from.mtime).then_some(entry.mtime);
        let given = (entry.uid, entry.gid, mtime);
        if entry.hardlink.is_some() || entry.kind != from.kind || entry.xattrs != from.xattrs {
            return;
        }
        if self.given.last() != Some(&given) {
            self.given.push(given);
        }
        // Where there are too many kinds, it stays as it is.
        if let Ok(given) = u16::try_from(self.given.len() - 1) {
            self.slots[at] = Slot::Copy {
                from,
                path: entry.path.clone(),
                mode: entry.mode,
                given,
            };
        }
    }

    /// The number of the entry at a path.
    pub(crate) fn find(&self, path: &LayerPath) -> Option<usize> {
        let is = |at: &u32| path_of(&self.slots, *at) == Some(path);
        let found = self.found.find(self.state.hash_one(Some(path)), is);
        found.map(|at| *at as usize)
    }

    /// Takes out the entry at a path. Tells whether there was one.
    pub(crate) fn remove(&mut self, path: &LayerPath) -> bool {
        let is = |at: &u32| path_of(&self.slots, *at) == Some(path);
        let found = self
            .found
            .find_entry(self.state.hash_one(Some(path)), is)
            .ok();
        let Some((at, _)) = found.map(hashbrown::hash_table::OccupiedEntry::remove) else {
            return false;
        };
        self.slots[at as usize] = Slot::Gone;
        true
    }

    /// Nothing is looked for any more.
    pub(crate) fn forget_paths(&mut self) {
        self.found = HashTable::new();
    }
}

fn path_of<'s>(slots: &'s [Slot<'_>], at: u32) -> Option<&'s LayerPath> {
    match &slots[at as usize] {
        Slot::Gone => None,
        Slot::Own(entry) => Some(&entry.path),
        Slot::Copy { path, .. } => Some(path),
    }
}
