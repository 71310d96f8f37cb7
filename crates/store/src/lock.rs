//! Leases and claims: files locked with `flock`, which the kernel frees when their owner dies, however it dies.
//!
//! A lock file is removed by whoever holds its lock. Who has just locked a file therefore looks whether the name still
//! leads to it, and begins anew if not.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_image::{Key, LayerId};

use crate::StoreError;

/// How often a waiter looks.
const POLL: Duration = Duration::from_millis(10);

/// A locked file, removed when this is dropped.
struct LockFile {
    path: PathBuf,
    /// Holds the lock.
    _file: File,
}

impl LockFile {
    /// Makes and locks the file; `None` if somebody holds it.
    fn acquire(path: &Path) -> io::Result<Option<Self>> {
        Self::acquire_for(path, "")
    }

    /// The same; `what` is what it is for, in one line, for whoever waits.
    fn acquire_for(path: &Path, what: &str) -> io::Result<Option<Self>> {
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(path)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(err)) => return Err(err),
            }
            let here = file.metadata()?;
            if leads_to(path, &here)? {
                // Only what another has left: ext4 writes a file that was truncated out to the disk when it is closed
                // (`auto_da_alloc`), even one that was empty and has no name any more.
                let emptied = if here.len() > 0 {
                    file.set_len(0)
                } else {
                    Ok(())
                };
                // For messages only, so a full disk does not matter.
                let holder = format!("{}\n{what}", std::process::id());
                let _ = emptied.and_then(|()| file.write_all(holder.as_bytes()));
                return Ok(Some(Self {
                    path: path.to_owned(),
                    _file: file,
                }));
            }
        }
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        // While the lock is held nobody else can have replaced the file. If it cannot be removed, it is a free lock.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether `path` is the name of the file whose metadata are `here`.
fn leads_to(path: &Path, here: &fs::Metadata) -> io::Result<bool> {
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(err) => return Err(err),
    };
    Ok((there.dev(), there.ino()) == (here.dev(), here.ino()))
}

/// Removes a lock file that nobody holds.
pub(crate) fn remove_if_free(path: &Path) -> Result<(), StoreError> {
    LockFile::acquire(path)
        .map(drop)
        .map_err(StoreError::io("lock", path))
}

/// Keeps layers from being collected: those begun under it and those protected by it. It lasts as long as any clone of
/// this value, and ends with the process.
#[derive(Clone)]
pub struct Lease(Arc<Held>);

struct Held {
    name: String,
    /// What the database already knows to be protected.
    protected: Mutex<HashSet<LayerId>>,
    _file: LockFile,
}

impl Lease {
    pub(crate) fn new(folder: &Path) -> Result<Self, StoreError> {
        loop {
            let name = crate::store::random_name::<16>()?;
            let path = folder.join(&name);
            // Taken only when a sweep came between making and locking the file.
            if let Some(file) = LockFile::acquire(&path).map_err(StoreError::io("lock", &path))? {
                return Ok(Self(Arc::new(Held {
                    name,
                    protected: Mutex::default(),
                    _file: file,
                })));
            }
        }
    }

    /// The name of the lease's file in `leases/`.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Those of `layers` that are not yet known to be protected.
    pub(crate) fn unprotected(&self, layers: &[LayerId]) -> Vec<LayerId> {
        let known = self
            .0
            .protected
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        layers
            .iter()
            .filter(|id| !known.contains(id))
            .copied()
            .collect()
    }

    pub(crate) fn now_protected(&self, layers: &[LayerId]) {
        self.0
            .protected
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .extend(layers);
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_tuple("Lease").field(&self.0.name).finish()
    }
}

/// Whether nobody holds the lease; if so, its file is removed.
pub(crate) fn lease_is_free(folder: &Path, name: &str) -> Result<bool, StoreError> {
    let path = folder.join(name);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(true),
        Err(err) => return Err(StoreError::io("open", &path)(err)),
    };
    match file.try_lock() {
        Ok(()) => {
            // Names of leases are never used again, so this cannot be another's.
            let _ = fs::remove_file(&path);
            Ok(true)
        }
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(err)) => Err(StoreError::io("lock", &path)(err)),
    }
}

/// Whether somebody holds the lease. Nothing is removed.
pub(crate) fn lease_is_live(folder: &Path, name: &str) -> Result<bool, StoreError> {
    let path = folder.join(name);
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(err) => return Err(StoreError::io("open", &path)(err)),
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(err)) => Err(StoreError::io("lock", &path)(err)),
    }
}

/// The process that holds the lease; `None` if nobody does, or nobody whom this process can see.
pub(crate) fn lease_holder(folder: &Path, name: &str) -> Result<Option<u32>, StoreError> {
    const TRIES: u32 = 20;
    let path = folder.join(name);
    let failed = StoreError::io("read", &path);
    let read = || {
        Ok((
            fs::read_to_string(&path)?,
            fs::symlink_metadata(&path)?.ino(),
        ))
    };
    let (text, inode) = match read() {
        Err(err) if io::Error::kind(&err) == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(failed)?,
    };
    let Some(pid) = text.lines().next().and_then(|line| line.parse().ok()) else {
        return Ok(None);
    };
    // The number may be one of another namespace, where it is somebody else's here. So the kernel is asked as well: more
    // than once, since it gives its list page by page, and one that is passed over when others go is not the lock's end.
    let locks = Path::new("/proc/locks");
    for _ in 0..TRIES {
        let list = fs::read_to_string(locks).map_err(StoreError::io("read", locks))?;
        if list.lines().any(|line| is_lock_of(line, pid, inode)) {
            return Ok(Some(pid));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(None)
}

/// Whether a line of `/proc/locks` (`1: FLOCK ADVISORY WRITE 4711 fe:00:12345 0 EOF`, proc(5)) tells of a lock of this
/// process on a file with this inode. The device is that of the file system, which `stat` may call something else.
fn is_lock_of(line: &str, pid: u32, inode: u64) -> bool {
    let mut words = line.split_whitespace().skip(1);
    words.next() == Some("FLOCK")
        && words.nth(2) == Some(&*pid.to_string())
        && words.next().and_then(|file| file.rsplit(':').next()) == Some(&*inode.to_string())
}

/// The right to do the work of one key, among all processes that share the store. Ends when dropped.
pub struct Claim(#[expect(dead_code, reason = "held, not read")] LockFile);

/// What came of trying to get a claim.
pub enum ClaimAttempt {
    /// It is held from now on.
    Held(Claim),
    /// Somebody else does the work.
    Busy(Waiter),
}

/// Waits for a claim that somebody else holds.
pub struct Waiter {
    path: PathBuf,
    /// What it is wanted for.
    what: String,
}

/// Who holds a claim. For messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: u32,
    /// What for: see [`Store::claim_for`](crate::Store::claim_for).
    pub what: String,
}

impl ClaimAttempt {
    pub(crate) fn new(folder: &Path, key: Key, what: &str) -> Result<Self, StoreError> {
        let path = folder.join(key.hex());
        let file = LockFile::acquire_for(&path, what).map_err(StoreError::io("lock", &path))?;
        Ok(match file {
            Some(file) => Self::Held(Claim(file)),
            None => Self::Busy(Waiter {
                path,
                what: what.to_owned(),
            }),
        })
    }
}

impl Waiter {
    /// Waits until the claim is free and takes it, at most for `timeout`. Then the work may be done: look for its record
    /// before doing it again. `None`: still held. To be cancelable, wait for short times.
    ///
    /// # Errors
    /// When the file cannot be locked for another reason.
    pub fn wait(&self, timeout: Duration) -> Result<Option<Claim>, StoreError> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(file) = LockFile::acquire_for(&self.path, &self.what)
                .map_err(StoreError::io("lock", &self.path))?
            {
                return Ok(Some(Claim(file)));
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            std::thread::sleep(POLL.min(left));
        }
    }

    /// The process that holds the claim, if it could be read. For messages.
    pub fn holder(&self) -> Option<u32> {
        Some(self.held_by()?.pid)
    }

    /// Who holds the claim and what for, if it could be read. For messages.
    pub fn held_by(&self) -> Option<Holder> {
        let text = fs::read_to_string(&self.path).ok()?;
        let (pid, what) = text.split_once('\n')?;
        Some(Holder {
            pid: pid.parse().ok()?,
            what: what.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_killed_holder_wrote_is_gone_when_the_next_one_has_the_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("claim");
        fs::write(&path, format!("4194304\n{}", "a long step ".repeat(20))).unwrap();
        let lock = LockFile::acquire_for(&path, "short").unwrap().unwrap();
        let own = format!("{}\nshort", std::process::id());
        assert_eq!(fs::read_to_string(&path).unwrap(), own);
        assert!(LockFile::acquire(&path).unwrap().is_none(), "it is held");
        drop(lock);
        assert!(!path.exists());
    }
}
