//! Rows of cache mounts: folders that outlive builds. The files are the worker's.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use kiln_image::{Key, KeyHasher};
use rusqlite::params;

use crate::db;
use crate::{Lease, Store, StoreError};

/// The folder of the store with the folders of cache mounts.
pub(crate) const FOLDER: &str = "cache-mounts";

/// What the name of a folder ends with that is to be deleted.
const GONE: &str = ".gone";

/// What the name of a folder ends with that an older Kiln was making when it was killed.
const NEW: &str = ".new";

/// A cache mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheMount {
    /// The name of its folder: unique.
    pub folder: String,
    /// As the Dockerfile names it. Caches that started as different trees share an id.
    pub id: String,
    /// `shared`, `private` or `locked`, as it was last used.
    pub sharing: String,
    /// What it took when it was last measured, in bytes of allocated blocks.
    pub space: u64,
    /// When it was first used.
    pub created: SystemTime,
    /// When it was last used.
    pub used: SystemTime,
    /// A build that runs has it.
    pub in_use: bool,
}

/// The claim that stands for a cache mount's folder: who alone uses it holds it.
pub fn cache_mount_claim(folder: &str) -> Key {
    KeyHasher::new("cache mount in use", 1)
        .part("folder", folder.as_bytes())
        .finish()
}

impl Store {
    /// The folder of a cache mount, there or not.
    pub fn cache_mount_dir(&self, folder: &str) -> PathBuf {
        self.root.join(FOLDER).join(folder)
    }

    /// Notes that a cache mount is used from now on, as long as the lease lives: it is not collected meanwhile.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn use_cache_mount(
        &self,
        lease: &Lease,
        folder: &str,
        id: &str,
        sharing: &str,
    ) -> Result<(), StoreError> {
        self.db.write(|on| {
            on.prepare_cached(
                "INSERT INTO cache_mounts (folder, id, sharing, created, used) VALUES (?1, ?2, ?3, ?4, ?4)
                 ON CONFLICT (folder) DO UPDATE SET id = excluded.id, sharing = excluded.sharing, used = excluded.used",
            )?
            .execute(params![folder, id, sharing, db::now()])?;
            on.prepare_cached("INSERT OR IGNORE INTO cache_mount_uses (lease, folder) VALUES (?1, ?2)")?
                .execute(params![lease.name(), folder])?;
            Ok(())
        })
    }

    /// All cache mounts, the least recently used first. Folders without a row, those of older versions of Kiln, get one.
    ///
    /// # Errors
    /// When the database or the folder cannot be read.
    pub fn cache_mounts(&self) -> Result<Vec<CacheMount>, StoreError> {
        let path = self.root.join(FOLDER);
        let folders = crate::collect::list(&path)?;
        let live = self.live_leases()?;
        self.db.write(|on| {
            let mut insert = on.prepare_cached(
                "INSERT OR IGNORE INTO cache_mounts (folder, id, sharing, created, used) VALUES (?1, ?2, '', ?3, ?3)",
            )?;
            for folder in folders.iter().filter(|name| !is_leftover(name)) {
                let time = fs::symlink_metadata(path.join(folder)).and_then(|meta| meta.modified());
                let Ok(time) = time else { continue };
                // All that is known of its id is the readable part of the folder's name.
                let id = folder.rsplit_once('-').map_or(folder.as_str(), |(id, _)| id);
                insert.execute(params![folder, id, db::nanoseconds(time)])?;
            }
            let mut gone = on.prepare_cached("DELETE FROM cache_mounts WHERE folder = ?1")?;
            let mut users = on.prepare_cached("SELECT lease FROM cache_mount_uses WHERE folder = ?1")?;
            let mut query =
                on.prepare_cached("SELECT folder, id, sharing, created, used, bytes FROM cache_mounts ORDER BY used, folder")?;
            let row = |row: &rusqlite::Row<'_>| {
                Ok(CacheMount {
                    folder: row.get(0)?,
                    id: row.get(1)?,
                    sharing: row.get(2)?,
                    created: db::time(row.get(3)?),
                    used: db::time(row.get(4)?),
                    space: row.get::<_, i64>(5)? as u64,
                    in_use: false,
                })
            };
            let mut mounts: Vec<CacheMount> = query.query_map([], row)?.collect::<Result<_, _>>()?;
            for mount in &mut mounts {
                let leases: Vec<String> =
                    users.query_map([&mount.folder], |row| row.get(0))?.collect::<Result<_, _>>()?;
                mount.in_use = leases.iter().any(|lease| live.contains(lease));
                if !mount.in_use && !folders.contains(&mount.folder) {
                    gone.execute([&mount.folder])?;
                }
            }
            mounts.retain(|mount| mount.in_use || folders.contains(&mount.folder));
            Ok(mounts)
        })
    }

    /// Writes down what cache mounts take.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_cache_mount_spaces(&self, spaces: &[(String, u64)]) -> Result<(), StoreError> {
        self.db.write(|on| {
            let mut update =
                on.prepare_cached("UPDATE cache_mounts SET bytes = ?2 WHERE folder = ?1")?;
            for (folder, bytes) in spaces {
                update.execute(params![folder, *bytes as i64])?;
            }
            Ok(())
        })
    }

    /// Gives up a cache mount that no running build uses; `false` if one does. Its folder gets another name, under which
    /// nobody looks for it and the worker deletes it: see [`Store::cache_mount_leftovers`].
    ///
    /// # Errors
    /// When the database cannot be written, or the folder not be renamed.
    pub fn remove_cache_mount(&self, folder: &str) -> Result<bool, StoreError> {
        let live = self.live_leases()?;
        self.db.write(|on| {
            let mut users =
                on.prepare_cached("SELECT lease FROM cache_mount_uses WHERE folder = ?1")?;
            let leases: Vec<String> = users
                .query_map([folder], |row| row.get(0))?
                .collect::<Result<_, _>>()?;
            if leases.iter().any(|lease| live.contains(lease)) {
                return Ok(false);
            }
            on.execute("DELETE FROM cache_mounts WHERE folder = ?1", [folder])?;
            // Within the transaction: who begins to use the cache waits for it, and then finds no folder.
            set_aside(&self.root, folder)?;
            Ok(true)
        })
    }

    /// Folders among those of the cache mounts that are to be deleted.
    ///
    /// # Errors
    /// When the folder cannot be read.
    pub fn cache_mount_leftovers(&self) -> Result<Vec<String>, StoreError> {
        let mut names = crate::collect::list(&self.root.join(FOLDER))?;
        names.retain(|name| is_leftover(name));
        Ok(names)
    }
}

/// Gives the folder of a cache mount a name under which the worker finds and deletes it.
pub(crate) fn set_aside(root: &Path, folder: &str) -> Result<(), StoreError> {
    let mounts = root.join(FOLDER);
    let from = mounts.join(folder);
    let to = mounts.join(format!("{}{GONE}", crate::store::random_name::<8>()?));
    match fs::rename(&from, to) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::io("rename", &from)(err))
        }
        _ => Ok(()),
    }
}

/// Whether a folder is to be deleted. Names of cache mounts end with the digits of a hash, or the number of a copy.
fn is_leftover(name: &str) -> bool {
    name.ends_with(GONE) || name.ends_with(NEW)
}
