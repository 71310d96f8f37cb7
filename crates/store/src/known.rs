//! Indexes of layers whose files are not here any more. They tell where files go on top of such a layer, so that nothing
//! of it need be fetched for that.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use kiln_image::{DiffId, LayerId, LayerIndex};

use crate::collect::{list, remove_if_there};
use crate::store::make_folder;
use crate::{Store, StoreError, layer_fs};

/// What all of them may take, in bytes: those go that were not used for longest.
const MOST: u64 = 64 << 20;

/// Those that were read in this process.
pub(crate) type Known = HashMap<DiffId, Arc<LayerIndex>>;

impl Store {
    fn known_indexes(&self) -> PathBuf {
        self.root.join("indexes")
    }

    /// The index of a layer that is not here, by its tar; `None` if it is not known, or damaged.
    pub fn known_index(&self, diff: DiffId) -> Option<Arc<LayerIndex>> {
        let read = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = read().get(&diff) {
            return Some(Arc::clone(index));
        }
        let path = self.known_indexes().join(diff.hex());
        let bytes = fs::read(&path).ok()?;
        let Ok(index) = LayerIndex::from_bytes(&bytes) else {
            // It was not on the disk yet when the machine stopped.
            let _ = fs::remove_file(&path);
            return None;
        };
        // When it was last used; nothing depends on it but which goes first.
        let _ = fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
        Some(Arc::clone(read().entry(diff).or_insert(Arc::new(index))))
    }

    /// Remembers, as long as this process lives, what somebody else says of a layer that is elsewhere: later builds, which
    /// may not ask them, must not believe it.
    pub fn know_index(&self, diff: DiffId, index: LayerIndex) -> Arc<LayerIndex> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(known.entry(diff).or_insert(Arc::new(index)))
    }

    /// Keeps the indexes of layers whose folders are about to be deleted. What cannot be kept is missed by nobody.
    pub(crate) fn keep_indexes(&self, layers: &[(LayerId, DiffId)]) -> Result<(), StoreError> {
        if !layers.is_empty() {
            make_folder(&self.known_indexes())?;
        }
        for (id, diff) in layers {
            let from = self.layer_dir(*id).join(layer_fs::INDEX);
            let to = self.known_indexes().join(diff.hex());
            // One that is damaged must not stay.
            let _ = fs::remove_file(&to);
            if fs::hard_link(&from, &to).is_ok() {
                let now = SystemTime::now();
                let _ = fs::File::open(&to).and_then(|file| file.set_modified(now));
            }
        }
        self.trim_indexes(MOST)
    }

    /// Forgets the indexes of layers that are not here.
    ///
    /// # Errors
    /// When they cannot be removed.
    pub fn forget_indexes(&self) -> Result<(), StoreError> {
        self.trim_indexes(0)
    }

    fn trim_indexes(&self, most: u64) -> Result<(), StoreError> {
        let folder = self.known_indexes();
        if !folder.is_dir() {
            return Ok(());
        }
        let mut all: Vec<(SystemTime, u64, PathBuf)> = list(&folder)?
            .into_iter()
            .filter_map(|name| {
                let path = folder.join(name);
                let meta = fs::symlink_metadata(&path).ok()?;
                Some((meta.modified().ok()?, meta.len(), path))
            })
            .collect();
        let mut total: u64 = all.iter().map(|(_, size, _)| size).sum();
        all.sort();
        for (_, size, path) in all {
            if total <= most {
                break;
            }
            remove_if_there(&path)?;
            total -= size;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let how = crate::OpenOptions {
            owner: rustix::process::geteuid().as_raw(),
            ids: crate::IdKind::Real,
            boot_id: "one".to_owned(),
        };
        let store = Store::open(&folder.path().join("store"), how).expect("a new store");
        (folder, store)
    }

    fn keep_index(store: &Store, diff: DiffId, index: &LayerIndex) {
        make_folder(&store.known_indexes()).expect("own folder");
        let path = store.known_indexes().join(diff.hex());
        fs::write(path, index.to_bytes()).expect("own folder");
    }

    #[test]
    fn those_used_last_stay() {
        let (_folder, store) = store();
        let diffs = [DiffId::new([1; 32]), DiffId::new([2; 32])];
        let index = LayerIndex::default();
        for (age, diff) in diffs.iter().enumerate() {
            keep_index(&store, *diff, &index);
            let path = store.known_indexes().join(diff.hex());
            let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(age as u64);
            let file = fs::File::open(path).expect("just written");
            file.set_modified(time).expect("own file");
        }
        let one = index.to_bytes().len() as u64;
        store.trim_indexes(2 * one).expect("own folder");
        assert_eq!(list(&store.known_indexes()).expect("there").len(), 2);
        // Read, and so the last used.
        assert!(store.known_index(diffs[0]).is_some());
        store.trim_indexes(one).expect("own folder");
        let left = list(&store.known_indexes()).expect("there");
        assert_eq!(left, [diffs[0].hex()]);
        store.forget_indexes().expect("own folder");
        assert!(list(&store.known_indexes()).expect("there").is_empty());
    }

    #[test]
    fn a_damaged_one_is_not_known() {
        let (_folder, store) = store();
        let diff = DiffId::new([1; 32]);
        keep_index(&store, diff, &LayerIndex::default());
        let path = store.known_indexes().join(diff.hex());
        let mut bytes = fs::read(&path).expect("just written");
        *bytes.last_mut().expect("not empty") ^= 1;
        fs::write(&path, bytes).expect("own file");
        assert!(store.known_index(diff).is_none());
        assert!(!path.exists());
    }
}
