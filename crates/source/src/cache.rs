//! The stat cache: what is known of the files of a context without opening them again.

use std::cell::OnceCell;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
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
    // Seconds since 1970 and nanoseconds each; as pairs they would take more memory.
    mtime: i64,
    mtime_nanos: u32,
    ctime: i64,
    ctime_nanos: u32,
}

impl Stamp {
    /// Of an open file or of what `stat` gave.
    pub fn of(stat: &rustix::fs::Stat) -> Self {
        Self {
            dev: stat.st_dev,
            inode: stat.st_ino,
            size: stat.st_size as u64,
            mtime: stat.st_mtime,
            mtime_nanos: stat.st_mtime_nsec as u32,
            ctime: stat.st_ctime,
            ctime_nanos: stat.st_ctime_nsec as u32,
        }
    }

    /// Time of the last change of the content: seconds since 1970, nanoseconds. Users can set it.
    pub fn mtime(&self) -> (i64, u32) {
        (self.mtime, self.mtime_nanos)
    }

    /// Time of the last change of anything. Users cannot set it.
    pub fn ctime(&self) -> (i64, u32) {
        (self.ctime, self.ctime_nanos)
    }

    /// Whether a later change of the file surely shows in a new stamp, if this one was taken at `clock`. A change in
    /// the same tick of the file system's clock leaves the stamp as it is.
    pub(crate) fn settled(&self, clock: SystemTime) -> bool {
        let clock = clock.duration_since(UNIX_EPOCH).unwrap_or_default();
        let long_before = |(seconds, nanos): (i64, u32)| {
            u64::try_from(seconds)
                .map_or(true, |seconds| Duration::new(seconds, nanos) + TICK < clock)
        };
        long_before(self.ctime()) && long_before(self.mtime())
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
#[derive(Debug, Default)]
pub struct StatCache {
    file: Option<PathBuf>,
    /// The file, if it is whole: opened when it is first needed.
    stored: OnceCell<Option<Stored>>,
    /// What a scan has learnt, encoded: it counts instead of what is stored.
    learnt: Option<Encoded>,
}

const MAGIC: &[u8; 8] = b"kilnst1\n";
/// The magic number and the sum of what follows.
const HEAD: usize = 8 + 32;
/// What is read at once of what is stored.
const AHEAD: usize = 128 * 1024;

/// What is known of many paths, sorted by path, as it is stored but for the count in front.
#[derive(Debug, Default)]
struct Encoded {
    count: usize,
    bytes: Vec<u8>,
}

/// What is known of more paths than these goes to the file at once, and is in memory never as a whole.
const LARGE: usize = 50_000;

impl Encoded {
    fn push(&mut self, known: &Known) {
        self.count += 1;
        let bytes = std::mem::take(&mut self.bytes);
        self.bytes = postcard::to_extend(known, bytes).expect("it goes into memory");
    }

    fn known(&self) -> impl Iterator<Item = Known> {
        let mut left = &*self.bytes;
        std::iter::from_fn(move || {
            let (known, rest) = postcard::take_from_bytes(left).ok()?;
            left = rest;
            Some(known)
        })
    }
}

/// A file that is being written, under a name of its own until it is whole.
struct Writing {
    out: io::BufWriter<fs::File>,
    hasher: blake3::Hasher,
    temporary: PathBuf,
}

impl Writing {
    fn new(file: &Path, count: usize) -> io::Result<Self> {
        // Two builds may write at once: each has a name of its own, the later rename wins.
        let mut name = file.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let temporary = file.with_file_name(name);
        let mut out = io::BufWriter::with_capacity(AHEAD, fs::File::create(&temporary)?);
        out.write_all(&[0; HEAD])?;
        let mut writing = Self {
            out,
            hasher: blake3::Hasher::new(),
            temporary,
        };
        let count = postcard::to_stdvec(&count).map_err(io::Error::other)?;
        writing.put(&count)?;
        Ok(writing)
    }

    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }

    fn finish(self, file: &Path) -> io::Result<()> {
        let out = self.out.into_inner()?;
        out.write_all_at(MAGIC, 0)?;
        out.write_all_at(self.hasher.finalize().as_bytes(), MAGIC.len() as u64)?;
        fs::rename(&self.temporary, file)
    }
}

/// A file that was found to be whole. It is replaced, never written to again.
#[derive(Debug)]
struct Stored {
    file: fs::File,
    count: usize,
    /// Where the first one begins.
    start: u64,
}

impl Stored {
    /// Large contexts need the memory, so the file is never in it as a whole.
    fn open(file: &Path) -> Option<Self> {
        let file = fs::File::open(file).ok()?;
        let mut head = [0; HEAD];
        file.read_exact_at(&mut head, 0).ok()?;
        let sum = head.strip_prefix(MAGIC)?;
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; AHEAD];
        let mut at = HEAD as u64;
        loop {
            match file.read_at(&mut buffer, at) {
                Ok(0) => break,
                Ok(length) => {
                    hasher.update(&buffer[..length]);
                    at += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        if hasher.finalize().as_bytes() != sum {
            return None;
        }
        let length = file.read_at(&mut buffer[..16], HEAD as u64).ok()?;
        let (count, rest) = postcard::take_from_bytes::<usize>(&buffer[..length]).ok()?;
        let start = (HEAD + length - rest.len()) as u64;
        Some(Self { file, count, start })
    }

    fn known(&self) -> impl Iterator<Item = Known> {
        let (mut at, mut left) = (self.start, self.count);
        let (mut buffer, mut used) = (Vec::new(), 0);
        std::iter::from_fn(move || {
            left = left.checked_sub(1)?;
            loop {
                if let Ok((known, rest)) = postcard::take_from_bytes(&buffer[used..]) {
                    used = buffer.len() - rest.len();
                    return Some(known);
                }
                buffer.drain(..std::mem::take(&mut used));
                let had = buffer.len();
                buffer.resize(had + AHEAD, 0);
                // What cannot be read is as good as not known.
                let length = self.file.read_at(&mut buffer[had..], at).unwrap_or(0);
                buffer.truncate(had + length);
                at += length as u64;
                if length == 0 {
                    left = 0;
                    return None;
                }
            }
        })
    }
}

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

    fn stored(&self) -> Option<&Stored> {
        let open = || Stored::open(self.file.as_ref()?);
        self.stored.get_or_init(open).as_ref()
    }

    /// Writes the cache, by rename, if it changed since it was loaded. Tells whether it did.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&mut self, file: &Path) -> io::Result<bool> {
        let Some(learnt) = &self.learnt else {
            return Ok(false);
        };
        let mut writing = Writing::new(file, learnt.count)?;
        writing.put(&learnt.bytes)?;
        writing.finish(file)?;
        self.file = Some(file.to_owned());
        self.stored.take();
        self.learnt = None;
        Ok(true)
    }

    /// How many paths are known.
    pub fn len(&self) -> usize {
        match &self.learnt {
            Some(learnt) => learnt.count,
            None => self.stored().map_or(0, |stored| stored.count),
        }
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is known, by path.
    pub(crate) fn known(&self) -> impl Iterator<Item = Known> {
        let stored = match self.learnt {
            Some(_) => None,
            None => self.stored(),
        };
        let learnt = self.learnt.iter().flat_map(Encoded::known);
        learnt.chain(stored.into_iter().flat_map(Stored::known))
    }

    /// Takes over what a scan has learnt, sorted by path. `whole`: paths that the scan does not mention are gone.
    pub(crate) fn update(&mut self, learnt: &(impl Iterator<Item = Known> + Clone), whole: bool) {
        let all = |push: &mut dyn FnMut(&Known)| {
            if whole {
                learnt.clone().for_each(|known| push(&known));
            } else {
                merge(self.known(), learnt.clone(), |known| push(&known));
            }
        };
        let mut count = 0;
        all(&mut |_| count += 1);
        if count > LARGE
            && let Some(file) = &self.file
        {
            // What cannot be remembered is found out again next time.
            let _ = write_all(file, count, all);
            self.learnt = None;
        } else {
            let mut encoded = Encoded::default();
            all(&mut |known| encoded.push(known));
            self.learnt = Some(encoded);
        }
        self.stored.take();
    }
}

/// Writes the file from what `all` gives.
fn write_all(
    file: &Path,
    count: usize,
    all: impl FnOnce(&mut dyn FnMut(&Known)),
) -> io::Result<()> {
    let mut writing = Writing::new(file, count)?;
    let (mut buffer, mut outcome) = (Vec::new(), Ok(()));
    all(&mut |known| {
        if outcome.is_ok() {
            let mut bytes = std::mem::take(&mut buffer);
            bytes.clear();
            buffer = postcard::to_extend(known, bytes).expect("it goes into memory");
            outcome = writing.put(&buffer);
        }
    });
    outcome?;
    writing.finish(file)
}

fn merge(
    old: impl Iterator<Item = Known>,
    learnt: impl Iterator<Item = Known>,
    mut push: impl FnMut(Known),
) {
    let mut old = old.peekable();
    for new in learnt {
        while let Some(earlier) = old.next_if(|known| known.path < new.path) {
            push(earlier);
        }
        old.next_if(|known| known.path == new.path);
        push(new);
    }
    old.for_each(push);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(at: usize, size: u64) -> Known {
        let stat = rustix::fs::stat("/").expect("the root is there");
        Known {
            path: LayerPath::clean(format!("folder/{at:06}")),
            stamp: Stamp {
                size,
                ..Stamp::of(&stat)
            },
            digest: Some(FileDigest::new([7; 32])),
            target: None,
            xattrs: Xattrs::new(),
        }
    }

    #[test]
    fn much_goes_to_the_file_at_once() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("stat");
        let mut cache = StatCache::load(&file);
        let many = LARGE + 3;
        cache.update(&(0..many).map(|at| known(at, 1)), true);
        assert!(cache.learnt.is_none() && !cache.save(&file).unwrap());
        assert_eq!(StatCache::load(&file).len(), many);
        // Some are other ones, one is new, the rest stays.
        let news = [(0, 2), (many / 2, 2), (many, 2)];
        cache.update(&news.iter().map(|(at, size)| known(*at, *size)), false);
        let sizes: Vec<u64> = cache.known().map(|known| known.stamp.size).collect();
        assert_eq!(sizes.len(), many + 1);
        let other = sizes.iter().enumerate().filter(|(_, size)| **size == 2);
        let other: Vec<usize> = other.map(|(at, _)| at).collect();
        assert_eq!(other, [0, many / 2, many]);
        assert_eq!(std::fs::read_dir(home.path()).unwrap().count(), 1);
        // Few stay in memory until they are saved.
        cache.update(&(0..3).map(|at| known(at, 1)), true);
        assert_eq!((cache.len(), StatCache::load(&file).len()), (3, many + 1));
        assert!(cache.save(&file).unwrap());
        assert_eq!(StatCache::load(&file).known().count(), 3);
    }
}
