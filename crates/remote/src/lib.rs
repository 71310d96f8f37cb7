//! Sources from the network: files from web servers and git repositories.
//!
//! What was fetched is kept in folders that never change once they have their name, so that any number of builds may
//! read them without locks: a newer state gets a folder of its own. [`Remote::sweep`] removes what was not used for a
//! while. Nothing here reads the environment: what `git` needs comes in [`GitProgram`].

mod error;
mod git;
mod http;
mod program;
mod stream;

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use kiln_image::{Digest, KeyHasher};
use kiln_registry::{Client, Observer};

pub use error::RemoteError;
pub use git::{Checkout, GitAccess, GitAddress};
pub use http::HttpFile;
pub use program::GitProgram;

/// What was not used for so long is removed.
const KEPT: Duration = Duration::from_hours(48);
/// The folder in an entry that holds what was fetched; the entry's own time is that of its last use.
const TREE: &str = "tree";

/// Fetches, and keeps what it fetched.
pub struct Remote {
    root: PathBuf,
    client: Client,
    git: GitProgram,
}

impl Remote {
    /// Keeps everything below the folder `root`, which is made when it is needed.
    pub fn new(root: PathBuf, client: Client, git: GitProgram) -> Self {
        Self { root, client, git }
    }

    /// The file at `url` as it is now, in a folder with nothing else, under `name`: asked for only if the server has
    /// another one than last time.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn http(
        &self,
        url: &str,
        name: &str,
        mode: u16,
        observer: &dyn Observer,
    ) -> Result<HttpFile, RemoteError> {
        http::fetch(self, url, name, mode, observer)
    }

    /// The file of a digest that was fetched from `url` before.
    pub fn known_http(&self, url: &str, name: &str, mode: u16, digest: Digest) -> Option<PathBuf> {
        self.find(&http::entry(url, name, mode, digest))
    }

    /// The id of the commit that a git address leads to now. The repository is asked only if the address itself does
    /// not say it.
    ///
    /// # Errors
    /// When the repository cannot be reached, has no such reference, or leads to another commit than `checksum` (which
    /// may be the beginning of an id) says.
    pub fn commit(
        &self,
        address: &GitAddress,
        access: &GitAccess,
        checksum: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<String, RemoteError> {
        git::resolve(&self.git, address, access, checksum, observer)
    }

    /// The folder with the files of a commit: of the address's folder in it.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn checkout(
        &self,
        address: &GitAddress,
        access: &GitAccess,
        commit: &str,
        how: Checkout,
        observer: &dyn Observer,
    ) -> Result<PathBuf, RemoteError> {
        git::checkout(self, address, access, commit, how, observer)
    }

    /// Keeps what can be read from `from`, as the file `name` in a folder of its own.
    ///
    /// # Errors
    /// When it cannot be read or kept.
    pub fn keep(
        &self,
        from: impl Read,
        name: &str,
        observer: &dyn Observer,
    ) -> Result<PathBuf, RemoteError> {
        stream::keep(self, from, name, observer)
    }

    /// Where something can be remembered about a tree as long as it is kept.
    pub fn beside(tree: &Path) -> PathBuf {
        tree.with_file_name("stat")
    }

    /// What is kept.
    pub fn entries(&self) -> Vec<Kept> {
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        let kept = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let used = entry.metadata().and_then(|meta| meta.modified()).ok()?;
            let path = entry.path();
            (!name.starts_with(SCRATCH)).then_some(Kept { name, path, used })
        };
        entries.filter_map(kept).collect()
    }

    /// Removes what is kept at a path.
    pub fn remove(&self, path: &Path) {
        // Renamed first: no build finds half of it.
        let Ok(doomed) = Scratch::new(self) else {
            return;
        };
        if fs::rename(path, doomed.path.join("old")).is_err() && path.is_file() {
            let _ = fs::remove_file(path);
        }
    }

    /// Removes what no build has used for two days, and what those that were killed were making.
    pub fn sweep(&self) {
        let old = |path: &Path| {
            let used = fs::metadata(path).and_then(|meta| meta.modified());
            used.is_ok_and(|used| used.elapsed().is_ok_and(|age| age > KEPT))
        };
        for entry in fs::read_dir(&self.root).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry
                .file_name()
                .as_encoded_bytes()
                .starts_with(SCRATCH.as_bytes())
            {
                let free = File::open(&path).is_ok_and(|folder| folder.try_lock().is_ok());
                if free {
                    let _ = fs::remove_dir_all(&path);
                }
            } else if old(&path) {
                self.remove(&path);
            }
        }
    }

    /// The tree of an entry, if it is there; it counts as used now.
    fn find(&self, entry: &str) -> Option<PathBuf> {
        let folder = self.root.join(entry);
        let tree = folder.join(TREE);
        let opened = File::open(&folder).ok()?;
        // Only lets it be removed earlier.
        let _ = opened.set_modified(SystemTime::now());
        tree.is_dir().then_some(tree)
    }

    /// Makes an entry: `fill` gets a new folder and fills it.
    fn make(
        &self,
        entry: &str,
        fill: impl FnOnce(&Path) -> Result<(), RemoteError>,
    ) -> Result<PathBuf, RemoteError> {
        let scratch = Scratch::new(self)?;
        let tree = scratch.path.join(TREE);
        fs::create_dir_all(&tree).map_err(RemoteError::keep(&tree))?;
        fill(&tree)?;
        let folder = self.root.join(entry);
        match fs::rename(&scratch.path, &folder) {
            Ok(()) => {}
            // Another build was faster with the same.
            Err(error) if is_there(&error) => {}
            Err(error) => return Err(RemoteError::keep(&folder)(error)),
        }
        Ok(folder.join(TREE))
    }
}

fn is_there(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
    )
}

/// What the names of folders in the making begin with.
const SCRATCH: &str = "new-";

/// Something that was fetched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its name: what it is, and a hash.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// When it was last used.
    pub used: SystemTime,
}

/// A folder that is removed again unless it got another name. It is locked, so that a sweep tells it from what a process
/// that was killed has left.
struct Scratch {
    path: PathBuf,
    _lock: File,
}

impl Scratch {
    fn new(remote: &Remote) -> Result<Self, RemoteError> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("{SCRATCH}{}-{number}", std::process::id());
            let path = remote.root.join(name);
            fs::create_dir_all(&path).map_err(RemoteError::keep(&path))?;
            let locked = File::open(&path).and_then(|folder| {
                folder.lock()?;
                Ok(folder)
            });
            match locked {
                // A sweep that came before the lock has removed it.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Ok(lock) if path.is_dir() => return Ok(Self { path, _lock: lock }),
                Ok(_) => {}
                Err(error) => return Err(RemoteError::keep(&path)(error)),
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// The name of an entry: readable where it is safe.
fn entry_name(kind: &'static str, parts: &[(&str, &[u8])]) -> String {
    let mut hasher = KeyHasher::new(kind, 1);
    for (name, value) in parts {
        hasher.part(name, value);
    }
    format!("{kind}-{}", hasher.finish().hex())
}
