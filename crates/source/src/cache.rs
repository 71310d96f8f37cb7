//! The stat cache: what is known of the files of a context without opening them again.

use std::fs;
use std::io::{self, Write};
use std::path::Path;
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
    /// Sorted by path.
    known: Vec<Known>,
    changed: bool,
}

const MAGIC: &[u8; 8] = b"kilnst1\n";

impl StatCache {
    /// A cache that knows nothing.
    pub fn empty() -> Self {
        Self::default()
    }

    /// Reads a cache file. One that is missing, damaged or of another version is as good as empty.
    pub fn load(file: &Path) -> Self {
        let decode = |bytes: Vec<u8>| {
            let rest = bytes.strip_prefix(MAGIC)?;
            let (sum, body) = rest.split_first_chunk::<32>()?;
            if blake3::hash(body).as_bytes() != sum {
                return None;
            }
            postcard::from_bytes(body).ok()
        };
        Self {
            known: fs::read(file).ok().and_then(decode).unwrap_or_default(),
            changed: false,
        }
    }

    /// Writes the cache, by rename, if it changed since it was loaded. Tells whether it did.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&mut self, file: &Path) -> io::Result<bool> {
        if !self.changed {
            return Ok(false);
        }
        let body = postcard::to_stdvec(&self.known).map_err(io::Error::other)?;
        // Two builds may write at once: each has a name of its own, the later rename wins.
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let temporary = file.with_file_name(name);
        let mut out = fs::File::create(&temporary)?;
        out.write_all(MAGIC)?;
        out.write_all(blake3::hash(&body).as_bytes())?;
        out.write_all(&body)?;
        fs::rename(&temporary, file)?;
        self.changed = false;
        Ok(true)
    }

    /// How many paths are known.
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    pub(crate) fn known(&self) -> &[Known] {
        &self.known
    }

    /// Takes over what a scan has learnt, sorted by path. `whole`: paths that the scan does not mention are gone.
    pub(crate) fn update(&mut self, learnt: Vec<Known>, whole: bool) {
        let old = std::mem::take(&mut self.known);
        let new = if whole { learnt } else { merge(&old, learnt) };
        self.changed |= new != old;
        self.known = new;
    }
}

fn merge(old: &[Known], learnt: Vec<Known>) -> Vec<Known> {
    let mut merged = Vec::with_capacity(old.len() + learnt.len());
    let mut old = old.iter().peekable();
    for new in learnt {
        while let Some(earlier) = old.next_if(|known| known.path < new.path) {
            merged.push(earlier.clone());
        }
        old.next_if(|known| known.path == new.path);
        merged.push(new);
    }
    merged.extend(old.cloned());
    merged
}
