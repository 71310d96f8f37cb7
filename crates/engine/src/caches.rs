//! Cache mounts, as those see them who manage them: what there is, away with it, out and in as an archive.

use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use kiln_store::{CacheMount, Claim, ClaimAttempt, cache_mount_claim};
use kiln_worker::WorkerError;
use serde::{Deserialize, Serialize};

use crate::{BuildError, CancelFlag, Engine};

/// How often a wait looks.
const TICK: Duration = Duration::from_millis(50);

/// A cache mount with what its folder tells.
#[derive(Debug, Clone)]
pub struct CacheInfo {
    /// As the Dockerfile names it.
    pub id: String,
    /// The name of its folder.
    pub folder: String,
    /// `shared`, `private` or `locked`; empty where it is not known.
    pub sharing: String,
    /// Bytes of allocated blocks.
    pub space: u64,
    /// User and group of the folder, as a step sees them.
    pub owner: (u32, u32),
    /// The folder's mode.
    pub mode: u16,
    /// When it was first used.
    pub created: SystemTime,
    /// When it was last used.
    pub used: SystemTime,
    /// A build that runs has it.
    pub in_use: bool,
}

/// What an archive says of the cache mounts in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheNote {
    /// Of this form.
    version: u32,
    caches: Vec<NotedCache>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct NotedCache {
    id: String,
    folder: String,
    sharing: String,
}

/// The form of a [`CacheNote`] that this Kiln writes and reads.
const NOTE: u32 = 1;

impl Engine {
    /// All cache mounts, the latest used first.
    ///
    /// # Errors
    /// When the store or the worker fails.
    pub fn caches(&self) -> Result<Vec<CacheInfo>, BuildError> {
        let mut mounts = self.store.cache_mounts()?;
        mounts.reverse();
        let folders: Vec<String> = mounts.iter().map(|mount| mount.folder.clone()).collect();
        if folders.is_empty() {
            return Ok(Vec::new());
        }
        let (_, found) = self
            .worker
            .space(Vec::new(), folders, &[])
            .map_err(failed)?;
        let infos = mounts.into_iter().zip(found).filter_map(|(mount, found)| {
            let found = found?;
            Some(CacheInfo {
                id: mount.id,
                folder: mount.folder,
                sharing: mount.sharing,
                space: found.space,
                owner: found.owner,
                mode: found.mode,
                created: mount.created,
                used: mount.used,
                in_use: mount.in_use,
            })
        });
        Ok(infos.collect())
    }

    /// The cache mounts that are named by their ids or folders; all when none is named.
    ///
    /// # Errors
    /// When there is none of a name.
    pub fn find_caches(&self, names: &[String]) -> Result<Vec<CacheMount>, BuildError> {
        let mounts = self.store.cache_mounts()?;
        if names.is_empty() {
            return Ok(mounts);
        }
        let mut chosen: Vec<CacheMount> = Vec::new();
        for name in names {
            let before = chosen.len();
            for mount in mounts
                .iter()
                .filter(|it| it.id == *name || it.folder == *name)
            {
                if !chosen.contains(mount) {
                    chosen.push(mount.clone());
                }
            }
            if chosen.len() == before && !chosen.iter().any(|it| it.id == *name) {
                return Err(BuildError::new(format!("no such cache mount: {name}"))
                    .with_hint("kiln cache ls shows those that there are"));
            }
        }
        Ok(chosen)
    }

    /// Removes a cache mount, when no build has it any more; `wait` is told what is waited for.
    ///
    /// # Errors
    /// When the store or the worker fails, or the user gave up.
    pub fn remove_cache(
        &self,
        mount: &CacheMount,
        cancel: &CancelFlag,
        wait: &dyn Fn(String),
    ) -> Result<(), BuildError> {
        let _claim = self.wait_for_cache(&mount.folder, &mount.id, cancel, wait)?;
        while !self.store.remove_cache_mount(&mount.folder)? {
            pause(cancel)?;
        }
        self.sweep().map(drop)
    }

    /// Writes cache mounts into one archive (tar); waits for builds that have one.
    ///
    /// # Errors
    /// When the archive cannot be written, a file changes while it is read, or the user gave up.
    pub fn export_caches(
        &self,
        mounts: &[CacheMount],
        out: BorrowedFd<'_>,
        cancel: &CancelFlag,
        wait: &dyn Fn(String),
    ) -> Result<(), BuildError> {
        let lease = self.store.lease()?;
        let mut claims = Vec::new();
        let mut sorted: Vec<&CacheMount> = mounts.iter().collect();
        // One order for all who take several.
        sorted.sort_by(|a, b| a.folder.cmp(&b.folder));
        for mount in &sorted {
            claims.push(self.wait_for_cache(&mount.folder, &mount.id, cancel, wait)?);
            self.store
                .use_cache_mount(&lease, &mount.folder, &mount.id, &mount.sharing)?;
        }
        let note = CacheNote {
            version: NOTE,
            caches: sorted
                .iter()
                .map(|mount| NotedCache {
                    id: mount.id.clone(),
                    folder: mount.folder.clone(),
                    sharing: mount.sharing.clone(),
                })
                .collect(),
        };
        let note = serde_json::to_vec_pretty(&note)
            .map_err(|error| BuildError::new(format!("cache mounts: {error}")))?;
        let folders = sorted.iter().map(|mount| mount.folder.clone()).collect();
        self.worker
            .pack_caches(folders, note, &[out])
            .map_err(failed)
    }

    /// Puts the cache mounts of an archive into the store, in place of those that it has; gives their ids.
    ///
    /// # Errors
    /// When it is no such archive, or cannot be unpacked, or the user gave up. Then each cache mount is what it was or what
    /// the archive has.
    pub fn import_caches(
        &self,
        file: BorrowedFd<'_>,
        cancel: &CancelFlag,
        wait: &dyn Fn(String),
    ) -> Result<Vec<String>, BuildError> {
        self.sweep()?;
        self.allow()?;
        let lease = self.store.lease()?;
        let scratch = self.store.begin_layer(&lease)?;
        let note = self
            .worker
            .unpack_caches(scratch, &[file])
            .map_err(failed)?;
        let note: CacheNote = serde_json::from_slice(&note).map_err(|error| {
            BuildError::new(format!(
                "the archive's kiln-cache.json cannot be read: {error}"
            ))
        })?;
        if note.version != NOTE {
            let text = format!(
                "the archive has version {}, and this Kiln knows {NOTE}",
                note.version
            );
            return Err(BuildError::new(text).with_hint("use the Kiln that made it"));
        }
        let mut ids = Vec::new();
        for cache in note.caches {
            let NotedCache {
                id,
                folder,
                sharing,
            } = cache;
            let _claim = self.wait_for_cache(&folder, &id, cancel, wait)?;
            self.store.use_cache_mount(&lease, &folder, &id, &sharing)?;
            self.worker
                .place_cache(scratch, folder.clone(), folder, &[])
                .map_err(failed)?;
            ids.push(id);
        }
        drop(lease);
        self.sweep()?;
        self.filled()?;
        Ok(ids)
    }

    /// Waits until no build has a cache mount. Who wants it alone waits for the claim that this gives.
    fn wait_for_cache(
        &self,
        folder: &str,
        id: &str,
        cancel: &CancelFlag,
        wait: &dyn Fn(String),
    ) -> Result<Claim, BuildError> {
        let mut told = false;
        let mut tell = |holder: Option<u32>| {
            if !std::mem::replace(&mut told, true) {
                let holder = holder.map_or_else(String::new, |pid| format!(" (process {pid})"));
                wait(format!(
                    "waiting for the cache mount {id}: a build{holder} has it"
                ));
            }
        };
        let claim = match self.store.claim(cache_mount_claim(folder))? {
            ClaimAttempt::Held(claim) => claim,
            ClaimAttempt::Busy(waiter) => {
                tell(waiter.holder());
                loop {
                    if let Some(claim) = waiter.wait(TICK)? {
                        break claim;
                    }
                    canceled(cancel)?;
                }
            }
        };
        while self.is_cache_in_use(folder)? {
            tell(None);
            pause(cancel)?;
        }
        Ok(claim)
    }

    fn is_cache_in_use(&self, folder: &str) -> Result<bool, BuildError> {
        let mounts = self.store.cache_mounts()?;
        Ok(mounts
            .iter()
            .any(|mount| mount.folder == folder && mount.in_use))
    }
}

fn canceled(cancel: &CancelFlag) -> Result<(), BuildError> {
    if cancel.is_set() {
        return Err(BuildError {
            canceled: true,
            ..BuildError::new("canceled")
        });
    }
    Ok(())
}

fn pause(cancel: &CancelFlag) -> Result<(), BuildError> {
    std::thread::sleep(TICK);
    canceled(cancel)
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn failed(error: WorkerError) -> BuildError {
    BuildError::from_worker(&error)
}
