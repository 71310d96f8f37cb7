//! The stat cache: what is known of the files of a context without opening them again.

use std::cell::OnceCell;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kiln_image::{FileDigest, LayerPath, Xattrs};
use serde::{Deserialize, Serialize};

/// What the file system says of a file's identity and of its last change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Stamp {
    /// Device.
    pub dev: u64,
    /// Inode.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Time of the last change of the content: seconds since 1970, nanoseconds. Users can set it.
    pub mtime: (i64, u32),
    /// Time of the last change of anything. Users cannot set it.
    pub ctime: (i64, u32),
}

impl Stamp {
    /// Of an open file or of what `stat` gave.
    pub fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            dev: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            ctime: (stat.st_ctime, stat.st_ctime_nsec as u32),
        }
    }

    /// Whether a later change of the file surely shows in a new stamp, if this one was taken at `clock`. A change in
    /// the same tick of the file system's clock leaves the stamp as it is.
    pub(crate) fn settled(&self, clock: SystemTime) -> bool {
        let clock = clock.duration_since(UNIX_EPOCH).unwrap_or_default();
        let long_before = |(seconds, nanos): (i64, u32)| {
            u64::try_from(seconds)
                .map_or(true, |seconds| Duration::new(seconds, nanos) + TICK < clock)
        };
        long_before(self.ctime) && long_before(self.mtime)
    }
}

/// Longer than the coarsest clock of a file system (2 s: FAT) and than the difference of a file server's clock that
/// can be expected.
const TICK: Duration = Duration::from_millis(2_050);

/// What is known of one path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Known {
    pub(crate) path: LayerPath,
    pub(crate) stamp: Stamp,
    /// Of a regular file that was hashed.
    pub(crate) digest: Option<FileDigest>,
    /// Of a symbolic link.
    pub(crate) target: Option<Vec<u8>>,
    pub(crate) xattrs: Xattrs,
}

/// The digests, link targets and extended attributes of one context's files, with the stamps they were read under.
/// One file for each context root; it is replaced as a whole.
#[derive(Debug, Clone, Default)]
pub struct StatCache {
    file: Option<PathBuf>,
    /// What is in the file, behind its head: read when it is first needed, and decoded when it is gone through, since large
    /// contexts need the memory.
    stored: OnceCell<Vec<u8>>,
    /// What a scan has learnt: it counts instead of what is stored. Sorted by path.
    learnt: Option<Vec<Known>>,
}

const MAGIC: &[u8; 8] = b"kilnst1\n";
/// The magic number and the sum of what follows.
const HEAD: usize = 8 + 32;

impl StatCache {
    /// A cache that knows nothing.
    pub fn empty() -> Self {
        Self::default()
    }

    /// The cache of a file. One that is missing, damaged or of another version is as good as empty.
    pub fn load(file: &Path) -> Self {
        Self {
            file: Some(file.to_owned()),
            ..Self::default()
        }
    }

    fn stored(&self) -> &[u8] {
        self.stored.get_or_init(|| {
            let Some(mut stored) = self.file.as_ref().and_then(|file| fs::read(file).ok()) else {
                return Vec::new();
            };
            let whole = stored
                .strip_prefix(MAGIC)
                .and_then(|rest| rest.split_first_chunk::<32>())
                .is_some_and(|(sum, body)| blake3::hash(body).as_bytes() == sum);
            stored.drain(..if whole { HEAD } else { stored.len() });
            stored
        })
    }

    /// Gives back the memory of what can be read again.
    pub(crate) fn release(&mut self) {
        self.stored.take();
    }

    /// Writes the cache, by rename, if it changed since it was loaded. Tells whether it did.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&mut self, file: &Path) -> io::Result<bool> {
        let Some(learnt) = &self.learnt else {
            return Ok(false);
        };
        let body = postcard::to_stdvec(learnt).map_err(io::Error::other)?;
        // Two builds may write at once: each has a name of its own, the later rename wins.
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let temporary = file.with_file_name(name);
        let mut out = fs::File::create(&temporary)?;
        out.write_all(MAGIC)?;
        out.write_all(blake3::hash(&body).as_bytes())?;
        out.write_all(&body)?;
        fs::rename(&temporary, file)?;
        self.file = Some(file.to_owned());
        self.learnt = None;
        Ok(true)
    }

    /// How many paths are known.
    pub fn len(&self) -> usize {
        match &self.learnt {
            Some(learnt) => learnt.len(),
            None => postcard::take_from_bytes(self.stored()).map_or(0, |(count, _)| count),
        }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known, by path.
    pub(crate) fn known(&self) -> impl Iterator<Item = Known> {
        let learnt = self.learnt.as_deref();
        let mut stored: &[u8] = match learnt {
            Some(_) => &[],
            None => postcard::take_from_bytes::<usize>(self.stored()).map_or(&[], |(_, rest)| rest),
        };
        let stored = std::iter::from_fn(move || {
            let (known, rest) = postcard::take_from_bytes(stored).ok()?;
            stored = rest;
            Some(known)
        });
        learnt.unwrap_or_default().iter().cloned().chain(stored)
    }

    /// Takes over what a scan has learnt, sorted by path. `whole`: paths that the scan does not mention are gone.
    pub(crate) fn update(&mut self, learnt: Vec<Known>, whole: bool) {
        self.learnt = Some(if whole {
            learnt
        } else {
            merge(self.known(), learnt)
        });
        self.release();
    }
}

fn merge(old: impl Iterator<Item = Known>, learnt: Vec<Known>) -> Vec<Known> {
    let mut merged = Vec::with_capacity(learnt.len());
    let mut old = old.peekable();
    for new in learnt {
        while let Some(earlier) = old.next_if(|known| known.path < new.path) {
            merged.push(earlier);
        }
        old.next_if(|known| known.path == new.path);
        merged.push(new);
    }
    merged.extend(old);
    merged
}
