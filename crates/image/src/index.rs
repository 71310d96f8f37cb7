//! The layer index: the truth about a layer. Tar, merged views, content keys, sizes, diffs and explanations read the
//! index, never the metadata of the layer's folder, because the files of one user cannot carry the owners of many.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};

use serde::{Deserialize, Serialize};
use thin_vec::ThinVec;

use crate::path::Paths;
use crate::{ContentId, FileDigest, KeyHasher, LayerPath};

/// Extended attributes, sorted by name. Few files have any.
pub type Xattrs = ThinVec<(Vec<u8>, Vec<u8>)>;

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// A folder. `opaque`: hides what layers below have in it. `implied`: it exists only because something lies below
    /// it; stacked on another layer its metadata come from there, and the entry's own are only the fallback.
    Dir {
        /// Hides the contents of the folder in the layers below.
        opaque: bool,
        /// Only a path to something below; metadata come from the layer beneath if it has the folder.
        implied: bool,
    },
    /// A regular file.
    File {
        /// Bytes.
        size: u64,
        /// Of the content.
        digest: FileDigest,
    },
    /// A symbolic link; the target as stored.
    Symlink(Vec<u8>),
    /// A character device: major, minor. Lives in the index only; the layer's folder does not hold it.
    Char(u32, u32),
    /// A block device: major, minor. Lives in the index only.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket. Never in a tar.
    Socket,
    /// Removes the path that a layer below has. Metadata are zero.
    Whiteout,
}

/// One path of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Where it is.
    pub path: LayerPath,
    /// What it is.
    pub kind: Kind,
    /// Permission bits and setuid, setgid, sticky: `0o7777` at most.
    pub mode: u16,
    /// Owner, as the image sees it.
    pub uid: u32,
    /// Group, as the image sees it.
    pub gid: u32,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes, sorted by name; without `trusted.*` and overlay's own in what Kiln writes itself.
    pub xattrs: Xattrs,
    /// Entries of one layer with the same number are names of one file; each has the whole metadata.
    pub hardlink: Option<u32>,
}

impl Entry {
    /// Whether this is a folder.
    pub fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir { .. })
    }

    /// Whether this is a regular file.
    pub fn is_file(&self) -> bool {
        matches!(self.kind, Kind::File { .. })
    }

    /// A folder with the given metadata, neither opaque nor implied.
    pub fn dir(path: LayerPath, mode: u16, uid: u32, gid: u32, mtime: (i64, u32)) -> Self {
        let kind = Kind::Dir {
            opaque: false,
            implied: false,
        };
        Self {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime,
            xattrs: Xattrs::new(),
            hardlink: None,
        }
    }

    /// Adds everything but path, mtime and hard-link number to `hasher`: what makes two files the same to a build.
    pub fn hash_into(&self, hasher: &mut KeyHasher) {
        let numbers = |tag: u8, a: u32, b: u32| {
            let mut bytes = vec![tag];
            bytes.extend_from_slice(&a.to_le_bytes());
            bytes.extend_from_slice(&b.to_le_bytes());
            bytes
        };
        match &self.kind {
            Kind::Dir { opaque, implied } => {
                hasher.part("dir", &[u8::from(*opaque), u8::from(*implied)])
            }
            Kind::File { digest, .. } => hasher.part("file", digest.as_bytes()),
            Kind::Symlink(target) => hasher.part("symlink", target),
            Kind::Char(major, minor) => hasher.part("device", &numbers(b'c', *major, *minor)),
            Kind::Block(major, minor) => hasher.part("device", &numbers(b'b', *major, *minor)),
            Kind::Fifo => hasher.part("fifo", &[]),
            Kind::Socket => hasher.part("socket", &[]),
            Kind::Whiteout => hasher.part("whiteout", &[]),
        };
        // The metadata of an implied folder are the parent layer's, not this layer's.
        if matches!(self.kind, Kind::Dir { implied: true, .. } | Kind::Whiteout) {
            return;
        }
        hasher.part("mode", &self.mode.to_le_bytes());
        hasher.part("owner", &numbers(b'o', self.uid, self.gid));
        for (name, value) in &self.xattrs {
            hasher.part("xattr", name).part("value", value);
        }
    }
}

/// The sorted entries of one layer. The root folder is an entry (with the empty path) only where the layer sets its
/// metadata.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LayerIndex {
    entries: Vec<Entry>,
}

/// Why bytes are not an index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// Not written by Kiln, or cut off, or damaged.
    #[error("damaged layer index: {0}")]
    Damaged(&'static str),
    /// It cannot be read at all.
    #[error("cannot read a layer index: {0}")]
    Unreadable(#[from] io::Error),
    /// Written by a newer Kiln.
    #[error("layer index of format {0}, this Kiln reads up to {1}")]
    Newer(u32, u32),
}

impl LayerIndex {
    /// Sorts the entries. Where a path occurs twice, the later one wins.
    pub fn new(mut entries: Vec<Entry>) -> Self {
        // Mostly they are as they should be, and large contexts are not worth a copy.
        if entries.is_sorted_by(|a, b| a.path < b.path) {
            return Self { entries };
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        let mut unique: Vec<Entry> = Vec::with_capacity(entries.len());
        for entry in entries {
            match unique.last_mut() {
                Some(last) if last.path == entry.path => *last = entry,
                _ => unique.push(entry),
            }
        }
        Self { entries: unique }
    }

    /// The entries in path order.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entries in path order, to be changed. Their paths must stay as they are.
    pub fn entries_mut(&mut self) -> &mut [Entry] {
        &mut self.entries
    }

    /// Finds one path.
    pub fn get(&self, path: &LayerPath) -> Option<&Entry> {
        self.position(path).map(|at| &self.entries[at])
    }

    /// Which of the entries is that of one path.
    pub fn position(&self, path: &LayerPath) -> Option<usize> {
        self.entries
            .binary_search_by(|entry| entry.path.cmp(path))
            .ok()
    }

    /// Which of the entries the given one is, if it is one of these entries themselves and not a copy.
    pub fn number_of(&self, entry: &Entry) -> Option<usize> {
        let offset = std::ptr::from_ref(entry)
            .addr()
            .checked_sub(self.entries.as_ptr().addr())?;
        let number = offset / size_of::<Entry>();
        (number < self.entries.len()).then_some(number)
    }

    /// The layer's outcome without times: paths, kinds, modes, owners, links, xattrs, content, hard-link groups.
    pub fn content_id(&self) -> ContentId {
        self.totals().content_id
    }

    /// What the layer is as a whole.
    pub fn totals(&self) -> Totals {
        let mut outcome = Outcome::default();
        for entry in &self.entries {
            outcome.add(entry);
        }
        outcome.finish()
    }

    /// The sum of the sizes of the files, each hard-linked file once.
    pub fn size(&self) -> u64 {
        let mut seen = HashSet::new();
        let once = |entry: &&Entry| entry.hardlink.is_none_or(|group| seen.insert(group));
        let size = |entry: &Entry| {
            if let Kind::File { size, .. } = entry.kind {
                size
            } else {
                0
            }
        };
        self.entries.iter().filter(once).map(size).sum()
    }

    /// The bytes as they are stored: magic, version, blake3 of the rest, then the entries.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = io::Cursor::new(Vec::new());
        let mut write = || {
            let mut writer = IndexWriter::new(&mut bytes, self.entries.len())?;
            for entry in &self.entries {
                writer.add(entry)?;
            }
            writer.finish()
        };
        write().expect("it goes into memory");
        bytes.into_inner()
    }

    /// Reads what [`LayerIndex::to_bytes`] or an [`IndexWriter`] wrote.
    ///
    /// # Errors
    /// When the bytes are not a whole, undamaged index of a known version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, IndexError> {
        Self::read_all(IndexReader::new(io::Cursor::new(bytes))?)
    }

    /// All that a reader has not given yet.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read_all(mut reader: IndexReader<impl Read + Seek>) -> Result<Self, IndexError> {
        let mut entries = Vec::with_capacity(reader.left.min(MOST_EXPECTED));
        while reader.some(&mut entries)? {}
        Ok(Self { entries })
    }

    /// Parts of the list of entries as bytes, for somebody who puts them together again with [`LayerIndex::from_parts`].
    pub fn parts(&self) -> impl Iterator<Item = Vec<u8>> {
        self.entries
            .chunks(TOGETHER)
            .map(|part| postcard::to_stdvec(part).expect("it goes into memory"))
    }

    /// Puts parts together.
    ///
    /// # Errors
    /// When a part is none, or the parts are not those of one index, or one cannot be got.
    pub fn from_parts<P: AsRef<[u8]>>(
        parts: impl Iterator<Item = io::Result<P>>,
    ) -> Result<Self, IndexError> {
        let (mut entries, mut last) = (Vec::new(), None);
        for part in parts {
            let part = part?;
            let (count, mut rest) = postcard::take_from_bytes::<usize>(part.as_ref())
                .map_err(|_| IndexError::Damaged("cut off"))?;
            let mut made = Together::default();
            for _ in 0..count {
                rest = made
                    .take(rest, &mut entries)?
                    .ok_or(IndexError::Damaged("cannot be decoded"))?;
            }
            made.finish(&mut entries, &mut last)?;
        }
        Ok(Self { entries })
    }
}

const MAGIC: &[u8; 8] = b"kilnidx\n";
const VERSION: u32 = 1;
/// Magic, version, sum.
const HEAD: usize = 8 + 4 + 32;
/// Entries whose paths share a piece of memory.
const TOGETHER: usize = 512;
/// No number in a file makes more room than for so many entries.
const MOST_EXPECTED: usize = 1 << 20;
/// What is read at once.
const AHEAD: usize = 128 * 1024;

/// An [`Entry`] as it is stored.
#[derive(Deserialize)]
struct Stored<'a> {
    path: &'a [u8],
    kind: Kind,
    mode: u16,
    uid: u32,
    gid: u32,
    mtime: (i64, u32),
    xattrs: Xattrs,
    hardlink: Option<u32>,
}

/// Entries that are being read, and still have no paths.
#[derive(Default)]
struct Together {
    paths: Paths,
    count: usize,
}

impl Together {
    /// Takes one entry from the front of `bytes`; `None` when it is not there as a whole.
    fn take<'b>(
        &mut self,
        bytes: &'b [u8],
        entries: &mut Vec<Entry>,
    ) -> Result<Option<&'b [u8]>, IndexError> {
        let Ok((stored, rest)) = postcard::take_from_bytes::<Stored<'_>>(bytes) else {
            return Ok(None);
        };
        if stored.mode > 0o7777 {
            return Err(IndexError::Damaged("an impossible mode"));
        }
        self.paths
            .try_push(stored.path)
            .map_err(|_| IndexError::Damaged("an impossible path"))?;
        self.count += 1;
        entries.push(Entry {
            path: LayerPath::root(),
            kind: stored.kind,
            mode: stored.mode,
            uid: stored.uid,
            gid: stored.gid,
            mtime: stored.mtime,
            xattrs: stored.xattrs,
            hardlink: stored.hardlink,
        });
        Ok(Some(rest))
    }

    /// Gives the entries that were taken, the last ones of `entries`, their paths. `last` is the path before them.
    fn finish(self, entries: &mut [Entry], last: &mut Option<LayerPath>) -> Result<(), IndexError> {
        let first = entries.len() - self.count;
        for (entry, path) in entries[first..].iter_mut().zip(self.paths.finish()) {
            if last.as_ref().is_some_and(|last| *last >= path) {
                return Err(IndexError::Damaged("entries are out of order"));
            }
            *last = Some(path.clone());
            entry.path = path;
        }
        Ok(())
    }
}

/// Reads a stored index from beginning to end, without having all of it in memory.
pub struct IndexReader<R> {
    from: R,
    buffer: Vec<u8>,
    used: usize,
    left: usize,
    last: Option<LayerPath>,
    /// Those that the iterator gives next.
    batch: std::vec::IntoIter<Entry>,
}

impl<R: Read + Seek> IndexReader<R> {
    /// Goes through all of it once to see whether it is whole.
    ///
    /// # Errors
    /// When it is not, or cannot be read, or a newer Kiln wrote it.
    pub fn new(mut from: R) -> Result<Self, IndexError> {
        let mut head = [0; HEAD];
        let mut got = 0;
        while got < HEAD {
            match from.read(&mut head[got..])? {
                0 => break,
                more => got += more,
            }
        }
        let rest = head[..got]
            .strip_prefix(MAGIC)
            .ok_or(IndexError::Damaged("no magic"))?;
        let (version, sum) = rest
            .split_first_chunk::<4>()
            .ok_or(IndexError::Damaged("cut off"))?;
        let version = u32::from_le_bytes(*version);
        if version != VERSION {
            return Err(IndexError::Newer(version, VERSION));
        }
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; AHEAD];
        loop {
            match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => hasher.update(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
        }
        if hasher.finalize().as_bytes() != sum {
            return Err(IndexError::Damaged("checksum does not match"));
        }
        from.seek(SeekFrom::Start(HEAD as u64))?;
        buffer.clear();
        let mut reader = Self {
            from,
            buffer,
            used: 0,
            left: 0,
            last: None,
            batch: Vec::new().into_iter(),
        };
        reader.more()?;
        let (count, rest) = postcard::take_from_bytes::<usize>(&reader.buffer)
            .map_err(|_| IndexError::Damaged("cannot be decoded"))?;
        reader.left = count;
        reader.used = reader.buffer.len() - rest.len();
        Ok(reader)
    }

    /// Adds some of the entries to `entries`. Tells whether there were any.
    fn some(&mut self, entries: &mut Vec<Entry>) -> Result<bool, IndexError> {
        let mut made = Together::default();
        while self.left > 0 && made.count < TOGETHER {
            if let Some(rest) = made.take(&self.buffer[self.used..], entries)? {
                self.used = self.buffer.len() - rest.len();
                self.left -= 1;
            } else if !self.more()? {
                return Err(IndexError::Damaged("cannot be decoded"));
            }
        }
        let some = made.count > 0;
        if some {
            made.finish(entries, &mut self.last)?;
        }
        Ok(some)
    }

    fn more(&mut self) -> io::Result<bool> {
        self.buffer.drain(..std::mem::take(&mut self.used));
        let got = self
            .from
            .by_ref()
            .take(AHEAD as u64)
            .read_to_end(&mut self.buffer)?;
        Ok(got > 0)
    }
}

/// Nothing more comes after an error.
impl<R: Read + Seek> Iterator for IndexReader<R> {
    type Item = Result<Entry, IndexError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(entry) = self.batch.next() {
            return Some(Ok(entry));
        }
        let mut batch = Vec::with_capacity(TOGETHER);
        if let Err(error) = self.some(&mut batch) {
            self.left = 0;
            return Some(Err(error));
        }
        self.batch = batch.into_iter();
        self.batch.next().map(Ok)
    }
}

/// What an index says of its layer as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    /// See [`LayerIndex::content_id`].
    pub content_id: ContentId,
    /// See [`LayerIndex::size`].
    pub size: u64,
    /// How many entries there are.
    pub entries: u64,
}

/// Adds the entries of an index up, which come in their order.
pub struct Outcome {
    hasher: KeyHasher,
    groups: HashMap<u32, u64>,
    size: u64,
    entries: u64,
}

impl Default for Outcome {
    fn default() -> Self {
        Self {
            hasher: KeyHasher::new("layer", 1),
            groups: HashMap::new(),
            size: 0,
            entries: 0,
        }
    }
}

impl Outcome {
    /// Adds the next entry.
    pub fn add(&mut self, entry: &Entry) {
        self.entries += 1;
        self.hasher.part("path", entry.path.as_bytes());
        entry.hash_into(&mut self.hasher);
        // Groups are numbered by first appearance, so that the numbers themselves do not count.
        let next = self.groups.len() as u64;
        let group = entry.hardlink;
        let number = group.map(|group| *self.groups.entry(group).or_insert(next));
        if let Some(number) = number {
            self.hasher.part("hardlink", &number.to_le_bytes());
        }
        if let Kind::File { size, .. } = entry.kind
            && number.is_none_or(|number| number == next)
        {
            self.size += size;
        }
    }

    /// What all of them are together.
    pub fn finish(&self) -> Totals {
        Totals {
            content_id: ContentId::new(*self.hasher.finish().as_bytes()),
            size: self.size,
            entries: self.entries,
        }
    }
}

/// Writes an index entry by entry.
pub struct IndexWriter<W: Write> {
    out: BufWriter<W>,
    buffer: Vec<u8>,
    hasher: blake3::Hasher,
}

impl<W: Write + Seek> IndexWriter<W> {
    /// Begins an index of `count` entries at the beginning of `out`.
    ///
    /// # Errors
    /// When `out` cannot be written to.
    pub fn new(out: W, count: usize) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(AHEAD, out);
        out.write_all(MAGIC)?;
        out.write_all(&VERSION.to_le_bytes())?;
        out.write_all(&[0; 32])?;
        let mut writer = Self {
            out,
            buffer: Vec::new(),
            hasher: blake3::Hasher::new(),
        };
        writer.put(&count)?;
        Ok(writer)
    }

    /// Adds an entry. They come in path order.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn add(&mut self, entry: &Entry) -> io::Result<()> {
        self.put(entry)
    }

    fn put(&mut self, what: &impl Serialize) -> io::Result<()> {
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.clear();
        self.buffer = postcard::to_extend(what, buffer).map_err(io::Error::other)?;
        self.hasher.update(&self.buffer);
        self.out.write_all(&self.buffer)
    }

    /// Ends the index.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.seek(SeekFrom::Start(HEAD as u64 - 32))?;
        self.out.write_all(self.hasher.finalize().as_bytes())?;
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry {
            kind,
            ..Entry::dir(LayerPath::clean(path), 0o755, 1, 2, (3, 4))
        }
    }

    fn file(path: &str, hardlink: Option<u32>) -> Entry {
        Entry {
            hardlink,
            ..entry(
                path,
                Kind::File {
                    size: 10,
                    digest: FileDigest::new([1; 32]),
                },
            )
        }
    }

    fn sample() -> Vec<Entry> {
        let dir = Kind::Dir {
            opaque: false,
            implied: false,
        };
        vec![
            file("a-b", None),
            entry("a", dir),
            file("a/y", Some(7)),
            file("a/x", Some(7)),
            entry("l", Kind::Symlink(b"\xff".to_vec())),
            entry("w", Kind::Whiteout),
        ]
    }

    #[test]
    fn sorted_and_found() {
        let index = LayerIndex::new([sample(), vec![file("a-b", Some(1))]].concat());
        let paths: Vec<_> = index
            .entries()
            .iter()
            .map(|entry| entry.path.to_string())
            .collect();
        assert_eq!(paths, ["/a", "/a/x", "/a/y", "/a-b", "/l", "/w"]);
        assert_eq!(
            index.get(&LayerPath::clean("a-b")).unwrap().hardlink,
            Some(1)
        );
        assert_eq!(index.get(&LayerPath::clean("b")), None);
        assert_eq!(index.size(), 20);
    }

    #[test]
    fn content_id() {
        type Change<'a> = &'a dyn Fn(&mut Vec<Entry>);
        let id = |change: Change<'_>| {
            let mut entries = sample();
            change(&mut entries);
            LayerIndex::new(entries).content_id()
        };
        let same = id(&|_| {});
        assert_eq!(
            id(&|entries| entries.iter_mut().for_each(|entry| entry.mtime = (9, 9))),
            same
        );
        assert_eq!(
            id(&|entries| (entries[2].hardlink, entries[3].hardlink) = (Some(0), Some(0))),
            same
        );
        assert_eq!(
            id(&|entries| (entries[5].mode, entries[5].uid) = (0, 0)),
            same
        );
        let changes: [Change<'_>; 8] = [
            &|entries| entries[0].path = LayerPath::clean("a-c"),
            &|entries| entries[0].mode = 0o4755,
            &|entries| entries[1].uid = 5,
            &|entries| entries[3].hardlink = Some(8),
            &|entries| entries[0].xattrs = thin_vec::thin_vec![(b"user.x".to_vec(), Vec::new())],
            &|entries| entries[4].kind = Kind::Symlink(Vec::new()),
            &|entries| {
                entries[1].kind = Kind::Dir {
                    opaque: true,
                    implied: false,
                }
            },
            &|entries| drop(entries.pop()),
        ];
        let ids: HashSet<_> = changes
            .iter()
            .map(|change| id(change))
            .chain([same])
            .collect();
        assert_eq!(ids.len(), changes.len() + 1);
    }

    #[test]
    fn stored() {
        let index = LayerIndex::new(sample());
        let bytes = index.to_bytes();
        assert_eq!(LayerIndex::from_bytes(&bytes).unwrap(), index);
        for cut in 0..bytes.len() {
            assert!(LayerIndex::from_bytes(&bytes[..cut]).is_err(), "{cut}");
        }
        for at in 12..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(LayerIndex::from_bytes(&flipped).is_err(), "{at}");
        }
        let wrong = |entries: Vec<Entry>| {
            LayerIndex::from_bytes(&LayerIndex { entries }.to_bytes()).is_err()
        };
        assert!(wrong(vec![file("b", None), file("a", None)]));
        assert!(wrong(vec![file("a", None), file("a", None)]));
        let mode = 0o10_000;
        assert!(wrong(vec![Entry {
            mode,
            ..file("a", None)
        }]));
        let mut newer = bytes;
        newer[8] = 9;
        assert!(matches!(
            LayerIndex::from_bytes(&newer),
            Err(IndexError::Newer(9, 1))
        ));
    }
}
