//! Looking at a build context: what is in the folder, in the form of a layer index.
//!
//! A warm scan opens no file: the stat cache knows the digests. Threads are used only where they pay: a context below
//! some thousand files is read faster than a thread starts.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::SystemTime;

use kiln_image::{Entry, FileDigest, Kind, LayerIndex, LayerPath, Paths, Xattrs};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::cache::{Known, Stamp, StatCache};
use crate::hash;
use crate::pattern::{MatchInfo, PatternMatcher};
use crate::wanted::{Reach, Wanted};

/// The digest of files whose content no one has asked for yet. No content hashes to it.
pub const UNHASHED: FileDigest = FileDigest::new([0; 32]);

/// Entries from which on a second thread helps to walk.
const WALK_ALONE: usize = 2_000;

/// Files that are given to be hashed together.
const HASHED_AT_ONCE: usize = 10_000;

/// Why a context cannot be scanned.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    /// The folder of the context cannot be opened.
    #[error("cannot open the build context {}: {source}", root.display())]
    Root {
        /// The folder.
        root: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Something in the context cannot be read.
    #[error("cannot read {} in the build context: {source}", root.join(path.as_path()).display())]
    Unreadable {
        /// The folder of the context.
        root: PathBuf,
        /// The path within.
        path: LayerPath,
        /// The system's reason.
        source: io::Error,
    },
}

/// What was found in a context.
#[derive(Debug)]
pub struct Scan {
    root: PathBuf,
    folder: OwnedFd,
    /// In path order.
    index: Arc<LayerIndex>,
    stamps: Stamps,
    unlisted: Unlisted,
    /// Entries of which the cache must not keep what is known under their stamps.
    unsettled: HashSet<usize>,
    /// When the walk began.
    clock: SystemTime,
    whole: bool,
    /// The cache does not know all that was found.
    news: bool,
    hashed: usize,
}

/// Why folders could not be listed, by their number: an error once something in them is asked for.
type Unlisted = HashMap<usize, Errno>;

/// What was found, in path order.
#[derive(Debug, Default)]
struct Found {
    entries: Vec<Entry>,
    /// For each entry.
    stamps: Vec<Stamp>,
    unlisted: Unlisted,
}

/// The stamps of a scan's entries, one for each entry of its index, for whoever copies its files later: content that was
/// copied under another stamp is not the content that was hashed.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Stamps(Arc<Vec<Stamp>>);

impl Stamps {
    /// The stamp of one entry of the scan's index.
    pub fn get(&self, index: &LayerIndex, entry: &Entry) -> Option<&Stamp> {
        let number = index.number_of(entry);
        self.0.get(number.or_else(|| index.position(&entry.path))?)
    }

    /// In the order of the index.
    pub fn as_slice(&self) -> &[Stamp] {
        &self.0
    }
}

impl From<Vec<Stamp>> for Stamps {
    fn from(stamps: Vec<Stamp>) -> Self {
        Self(Arc::new(stamps))
    }
}

/// Walks the context at `root` without following links. What `matcher` stands for is left out (a folder that is left
/// out is not even opened unless a `!` can take something in it back); what is not `wanted` is not looked at. Owners
/// are 0:0, sockets become empty files, as in what a BuildKit client sends.
///
/// # Errors
/// When the root cannot be opened, or something that is not left out cannot be read. A folder that cannot be listed
/// is an error only in [`Scan::index`], when it is selected.
pub fn scan(
    root: &Path,
    matcher: Option<&PatternMatcher>,
    cache: &mut StatCache,
    wanted: &Wanted,
) -> Result<Scan, ScanError> {
    let clock = SystemTime::now();
    let folder = open_root_folder(root).map_err(|errno| ScanError::Root {
        root: root.to_owned(),
        source: errno.into(),
    })?;
    let reach = wanted.reach(&folder);
    let walk = Walk {
        root,
        folder: &folder,
        matcher: matcher.filter(|matcher| !matcher.is_empty()),
    };
    let mut found = walk.run(&reach)?;
    link_names(&mut found);
    let whole = *wanted == Wanted::All;
    let recalled = recall(&folder, root, &mut found, cache, clock)?;
    let Found {
        entries,
        stamps,
        unlisted,
    } = found;
    let settled = stamps.iter().filter(|stamp| stamp.settled(clock)).count();
    let news = recalled != settled || whole && settled != cache.len();
    Ok(Scan {
        root: root.to_owned(),
        folder,
        index: Arc::new(LayerIndex::new(entries)),
        stamps: stamps.into(),
        unlisted,
        unsettled: HashSet::new(),
        clock,
        whole,
        news,
        hashed: 0,
    })
}

impl Scan {
    /// The folder that was scanned.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.stamps.0.len()
    }

    /// Whether nothing was found, not even the root.
    pub fn is_empty(&self) -> bool {
        self.stamps.0.is_empty()
    }

    /// How many files have been opened and hashed so far.
    pub fn hashed(&self) -> usize {
        self.hashed
    }

    /// The context as a layer, with the digests that are known by now.
    pub fn seen(&self) -> Arc<LayerIndex> {
        Arc::clone(&self.index)
    }

    /// The context as a layer, all of it; the digests of the `selected` files are true, those of others are either
    /// true or [`UNHASHED`]. `index(|_| false, ..)` reads no file at all. What was learnt goes into `cache`.
    ///
    /// # Errors
    /// When a selected file or folder cannot be read, naming it.
    pub fn index(
        &mut self,
        selected: impl Fn(&LayerPath) -> bool,
        cache: &mut StatCache,
    ) -> Result<Arc<LayerIndex>, ScanError> {
        let entries = self.index.entries().iter().enumerate();
        let selected: Vec<usize> = entries
            .filter(|(_, entry)| selected(&entry.path))
            .map(|(at, _)| at)
            .collect();
        self.index_at(&selected, cache)
    }

    /// As [`Scan::index`]; what is selected is given by its positions in the index, in their order.
    ///
    /// # Errors
    /// When a selected file or folder cannot be read, naming it.
    pub fn index_at(
        &mut self,
        selected: &[usize],
        cache: &mut StatCache,
    ) -> Result<Arc<LayerIndex>, ScanError> {
        let unreadable = |root: &Path, path: &LayerPath, source: io::Error| ScanError::Unreadable {
            root: root.to_owned(),
            path: path.clone(),
            source,
        };
        let mut open = Vec::new();
        for &at in selected {
            let entry = &self.index.entries()[at];
            let unhashed = matches!(
                entry.kind,
                Kind::File {
                    digest: UNHASHED,
                    ..
                }
            );
            match self.unlisted.get(&at) {
                Some(&errno) => return Err(unreadable(&self.root, &entry.path, errno.into())),
                None if unhashed => open.push(at),
                None => {}
            }
        }
        // In parts: what is known of a file while it is hashed takes as much memory as its entry.
        for open in open.chunks(HASHED_AT_ONCE) {
            let files: Vec<_> = open
                .iter()
                .map(|&at| (at, &self.index.entries()[at].path, self.stamps.0[at]))
                .collect();
            let outcomes = hash::hash_all(&self.folder, &files);
            // Copied only if somebody still holds an earlier index.
            let entries = Arc::make_mut(&mut self.index).entries_mut();
            let stamps = Arc::make_mut(&mut self.stamps.0);
            for (at, outcome) in outcomes {
                let entry = &mut entries[at];
                let hashed =
                    outcome.map_err(|source| unreadable(&self.root, &entry.path, source))?;
                entry.kind = Kind::File {
                    size: hashed.size,
                    digest: hashed.digest,
                };
                entry.mode = hashed.mode;
                entry.mtime = hashed.stamp.mtime();
                stamps[at] = hashed.stamp;
                if !hashed.settled {
                    self.unsettled.insert(at);
                }
                self.hashed += 1;
            }
            self.news = true;
        }
        if self.news {
            self.teach(cache);
            self.news = false;
        }
        Ok(Arc::clone(&self.index))
    }

    /// The stamps under which the files were hashed, or known from the cache.
    pub fn stamps(&self) -> Stamps {
        self.stamps.clone()
    }

    fn teach(&self, cache: &mut StatCache) {
        let known = |(_, (entry, stamp)): (usize, (&Entry, &Stamp))| {
            let (digest, target) = match &entry.kind {
                Kind::File {
                    digest: UNHASHED, ..
                } => (None, None),
                Kind::File { digest, .. } => (Some(*digest), None),
                Kind::Symlink(target) => (None, Some(target.clone())),
                _ => (None, None),
            };
            // A file without a digest is worth remembering too: its attributes need not be read again.
            Known {
                path: entry.path.clone(),
                stamp: *stamp,
                digest,
                target,
                xattrs: entry.xattrs.clone(),
            }
        };
        let entries = self.index.entries().iter().zip(self.stamps.as_slice());
        let settled = entries
            .enumerate()
            .filter(|(at, (_, stamp))| !self.unsettled.contains(at) && stamp.settled(self.clock));
        cache.update(&settled.map(known), self.whole);
    }
}

/// Opens a folder below `root`, following no link.
pub(crate) fn open_folder(root: impl AsFd, path: &LayerPath) -> Result<OwnedFd, Errno> {
    open_beneath(root, path, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens what is at `path` below `root`; no component may be a link.
pub(crate) fn open_beneath(
    root: impl AsFd,
    path: &LayerPath,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let name = if path.is_root() {
        Path::new(".")
    } else {
        path.as_path()
    };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(root.as_fd(), name, flags, Mode::empty(), resolve) {
        // Linux before 5.6, and sandboxes that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => {
            rustix::fs::openat(root.as_fd(), name, flags, Mode::empty())
        }
        outcome => outcome,
    }
}

/// Opens the root of a context; it alone may be a link.
pub(crate) fn open_root_folder(root: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        root,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

struct Walk<'a> {
    root: &'a Path,
    folder: &'a OwnedFd,
    matcher: Option<&'a PatternMatcher>,
}

/// A folder still to be listed.
struct Task<'a> {
    id: u32,
    path: LayerPath,
    info: MatchInfo,
    reach: &'a Reach,
}

/// What listing one folder gave. All listings are in memory before there is an entry, so they are as small as can be.
#[derive(Default)]
struct Listing {
    /// The [`Item`]s, encoded.
    items: Vec<u8>,
    count: usize,
    /// Which of them is a folder with a listing of its own, and which one.
    below: Vec<(usize, u32)>,
    error: Option<Errno>,
}

#[derive(Serialize, Deserialize)]
struct Item<'a> {
    name: &'a [u8],
    seen: Seen,
    /// It is not left out itself: not only a folder that could lead to something that is not.
    wanted: bool,
}

impl Listing {
    fn push(&mut self, item: &Item<'_>) {
        let items = std::mem::take(&mut self.items);
        self.items = postcard::to_extend(item, items).expect("it goes into memory");
        self.count += 1;
    }

    fn items(&self) -> impl Iterator<Item = Item<'_>> {
        let mut left = &*self.items;
        std::iter::from_fn(move || {
            let (item, rest) = postcard::take_from_bytes(left).ok()?;
            left = rest;
            Some(item)
        })
    }
}

/// What a stat says about a path.
#[derive(Serialize, Deserialize)]
struct Seen {
    stamp: Stamp,
    /// With the kind.
    mode: u32,
    device: u64,
    /// It has several names.
    linked: bool,
}

struct Queue<'a> {
    open: Vec<Task<'a>>,
    busy: usize,
    next: u32,
    seen: usize,
    done: HashMap<u32, Listing>,
    failed: Option<ScanError>,
}

impl<'a> Walk<'a> {
    fn run(&self, reach: &'a Reach) -> Result<Found, ScanError> {
        let stat = rustix::fs::fstat(self.folder)
            .map_err(|errno| self.unreadable(&LayerPath::root(), errno))?;
        let root = Seen::new(&stat);
        let task = Task {
            id: 0,
            path: LayerPath::root(),
            info: MatchInfo::default(),
            reach,
        };
        let queue = Mutex::new(Queue {
            open: vec![task],
            busy: 0,
            next: 1,
            seen: 0,
            done: HashMap::new(),
            failed: None,
        });
        let more = Condvar::new();

        std::thread::scope(|scope| {
            let mut helper = None;
            self.work(&queue, &more, |seen, waiting| {
                if helper.is_none() && seen >= WALK_ALONE && waiting > 1 {
                    helper = Some(scope.spawn(|| self.work(&queue, &more, |_, _| ())));
                }
            });
        });

        let mut queue = queue.into_inner().expect(POISON);
        if let Some(error) = queue.failed.take() {
            return Err(error);
        }
        let mut all = Found {
            entries: Vec::with_capacity(queue.seen + 1),
            stamps: Vec::with_capacity(queue.seen + 1),
            unlisted: Unlisted::new(),
        };
        all.push(LayerPath::root(), &root);
        let errno = flatten(&mut queue.done, 0, &LayerPath::root(), &mut all);
        all.unlisted.extend(errno.map(|errno| (0, errno)));
        Ok(all)
    }

    /// Takes folders from the queue until there are none and nobody can add any.
    fn work(&self, queue: &Mutex<Queue<'a>>, more: &Condvar, mut after: impl FnMut(usize, usize)) {
        let mut held = queue.lock().expect(POISON);
        loop {
            if let Some(task) = held.open.pop() {
                held.busy += 1;
                drop(held);
                let outcome = self.list(&task);
                held = queue.lock().expect(POISON);
                held.busy -= 1;
                match outcome {
                    Ok((mut listing, folders)) => {
                        held.seen += listing.count;
                        for (at, path, info, reach) in folders {
                            let id = held.next;
                            held.next += 1;
                            listing.below.push((at, id));
                            held.open.push(Task {
                                id,
                                path,
                                info,
                                reach,
                            });
                        }
                        held.done.insert(task.id, listing);
                    }
                    Err(error) => {
                        held.open.clear();
                        held.failed.get_or_insert(error);
                    }
                }
                let (seen, waiting) = (held.seen, held.open.len());
                drop(held);
                more.notify_all();
                after(seen, waiting);
                held = queue.lock().expect(POISON);
            } else if held.busy == 0 {
                return;
            } else {
                held = more.wait(held).expect(POISON);
            }
        }
    }

    #[expect(clippy::type_complexity, reason = "private, used once")]
    fn list(
        &self,
        task: &Task<'a>,
    ) -> Result<(Listing, Vec<(usize, LayerPath, MatchInfo, &'a Reach)>), ScanError> {
        static EVERYTHING: Reach = Reach::everything();
        let mut listing = Listing::default();
        let mut folders = Vec::new();
        let folder = match open_folder(self.folder, &task.path) {
            Ok(folder) => folder,
            // It was there a moment ago: a folder that goes away while we look is not in the context.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok((listing, folders)),
            Err(errno) => {
                listing.error = Some(errno);
                return Ok((listing, folders));
            }
        };
        let mut names: Vec<(Vec<u8>, FileType)> = Vec::new();
        if task.reach.all {
            let reading = Dir::read_from(&folder).and_then(|dir| {
                for item in dir {
                    let item = item?;
                    let name = item.file_name().to_bytes();
                    if name != b"." && name != b".." {
                        names.push((name.to_owned(), item.file_type()));
                    }
                }
                Ok(())
            });
            if let Err(errno) = reading {
                listing.error = Some(errno);
            }
            names.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        } else {
            names.extend(
                task.reach
                    .below
                    .keys()
                    .map(|name| (name.clone(), FileType::Unknown)),
            );
        }

        for (name, kind) in names {
            let path = task.path.child(&name);
            let (left_out, info) = match self.matcher {
                Some(matcher) => matcher.matches_using_parent(path.as_bytes(), &task.info),
                None => (false, MatchInfo::default()),
            };
            let may_lead = || {
                self.matcher
                    .is_some_and(|matcher| matcher.may_take_back_below(path.as_bytes()))
            };
            if left_out && (!matches!(kind, FileType::Directory | FileType::Unknown) || !may_lead())
            {
                continue;
            }
            let stat = match rustix::fs::statat(&folder, &*name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                Err(Errno::NOENT) => continue,
                Err(errno) => return Err(self.unreadable(&path, errno)),
            };
            let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if left_out && !is_folder {
                continue;
            }
            if is_folder {
                let reach = if task.reach.all {
                    Some(&EVERYTHING)
                } else {
                    task.reach.below.get(&name)
                };
                folders.push((listing.count, path, info, reach.unwrap_or(&EVERYTHING)));
            }
            listing.push(&Item {
                name: &name,
                seen: Seen::new(&stat),
                wanted: !left_out,
            });
        }
        listing.items.shrink_to_fit();
        Ok((listing, folders))
    }

    fn unreadable(&self, path: &LayerPath, errno: Errno) -> ScanError {
        ScanError::Unreadable {
            root: self.root.to_owned(),
            path: path.clone(),
            source: errno.into(),
        }
    }
}

impl Seen {
    fn new(stat: &Stat) -> Self {
        Self {
            stamp: Stamp::of(stat),
            mode: stat.st_mode,
            device: stat.st_rdev,
            linked: stat.st_nlink > 1,
        }
    }
}

impl Found {
    fn push(&mut self, path: LayerPath, seen: &Seen) {
        let Seen {
            stamp,
            mode,
            device,
            linked,
        } = *seen;
        let device = || (rustix::fs::major(device), rustix::fs::minor(device));
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Directory => Kind::Dir {
                opaque: false,
                implied: false,
            },
            FileType::Symlink => Kind::Symlink(Vec::new()),
            FileType::CharacterDevice => Kind::Char(device().0, device().1),
            FileType::BlockDevice => Kind::Block(device().0, device().1),
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::File {
                size: 0,
                digest: FileDigest::new(*blake3::hash(b"").as_bytes()),
            },
            _ => Kind::File {
                size: stamp.size,
                digest: UNHASHED,
            },
        };
        // Until the names are known, the number stands for "has several names".
        let hardlink = (matches!(kind, Kind::File { .. }) && linked).then_some(0);
        self.entries.push(Entry {
            path,
            kind,
            mode: (mode & 0o7777) as u16,
            uid: 0,
            gid: 0,
            mtime: stamp.mtime(),
            xattrs: Xattrs::new(),
            hardlink,
        });
        self.stamps.push(stamp);
    }
}

const POISON: &str = "a thread of the walk has panicked";

/// Puts the listings of a folder and of those in it into path order. Gives the error of the listing itself.
fn flatten(
    done: &mut HashMap<u32, Listing>,
    id: u32,
    folder: &LayerPath,
    all: &mut Found,
) -> Option<Errno> {
    let listing = done.remove(&id)?;
    let mut paths = Paths::default();
    for item in listing.items() {
        paths.push(folder, item.name);
    }
    let mut folders = listing.below.iter().peekable();
    for ((number, item), path) in listing.items().enumerate().zip(paths.finish()) {
        let own = all.entries.len();
        let Some((_, below)) = folders.next_if(|(at, _)| *at == number) else {
            all.push(path, &item.seen);
            continue;
        };
        all.push(path.clone(), &item.seen);
        let error = flatten(done, *below, &path, all);
        if item.wanted {
            all.unlisted.extend(error.map(|errno| (own, errno)));
        } else if all.entries.len() == own + 1 {
            // Left out, and nothing in it was taken back.
            all.entries.pop();
            all.stamps.pop();
        }
    }
    listing.error
}

/// Numbers the files that have several names among the found ones.
fn link_names(found: &mut Found) {
    let mut names: HashMap<(u64, u64), Vec<usize>> = HashMap::new();
    for (at, (entry, stamp)) in found.entries.iter_mut().zip(&found.stamps).enumerate() {
        if entry.hardlink.take().is_some() {
            names.entry((stamp.dev, stamp.inode)).or_default().push(at);
        }
    }
    for names in names.into_values().filter(|names| names.len() > 1) {
        for &at in &names {
            found.entries[at].hardlink = Some(names[0] as u32);
        }
    }
}

/// Fills in digests, link targets and attributes, from the cache where the stamp is the same, else by reading. Gives how
/// many of those that the cache may keep it knows.
fn recall(
    folder: &OwnedFd,
    root: &Path,
    found: &mut Found,
    cache: &StatCache,
    clock: SystemTime,
) -> Result<usize, ScanError> {
    let mut known = cache.known().peekable();
    let mut recalled = 0;
    for (entry, stamp) in found.entries.iter_mut().zip(&found.stamps) {
        while known.next_if(|known| known.path < entry.path).is_some() {}
        let hit = known.next_if(|known| known.path == entry.path && known.stamp == *stamp);
        if let Some(hit) = hit {
            recalled += usize::from(stamp.settled(clock));
            entry.xattrs = hit.xattrs;
            match (&mut entry.kind, hit.digest, hit.target) {
                (Kind::File { digest, .. }, Some(known), _) => *digest = known,
                (Kind::Symlink(target), _, Some(known)) => *target = known,
                _ => {}
            }
            continue;
        }
        let path = &entry.path;
        if let Kind::Symlink(target) = &mut entry.kind {
            let read = rustix::fs::readlinkat(folder, path.as_path(), Vec::new());
            let unreadable = |errno: Errno| ScanError::Unreadable {
                root: root.to_owned(),
                path: path.clone(),
                source: errno.into(),
            };
            *target = read.map_err(unreadable)?.into_bytes();
        }
        entry.xattrs = crate::xattr::read(&root.join(path.as_path()));
    }
    Ok(recalled)
}
