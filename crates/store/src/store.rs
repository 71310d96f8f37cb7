//! Opening a store.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use kiln_image::{Digest, Key, LayerId, LayerIndex, Reference};

use crate::db::Db;
use crate::header::FORMAT;
use crate::{ClaimAttempt, Header, IdKind, Lease, StoreError};

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// The effective user id of the process.
    pub owner: u32,
    /// To whom the files of layers belong.
    pub ids: IdKind,
    /// What tells this run of the machine from others: see [`boot_id`].
    pub boot_id: String,
}

/// What was found on opening.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OpenReport {
    /// The machine was restarted since the store was last open.
    pub restarted: bool,
    /// How many layers were given up because they may not be whole.
    pub lost_layers: usize,
    /// How many cache records went with them.
    pub lost_records: usize,
    /// The tags that lead somewhere else now.
    pub tags: Vec<TagFallback>,
    /// Names of containers that were given up.
    pub lost_containers: Vec<String>,
}

/// A tag whose image was lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TagFallback {
    /// The tag.
    pub name: Reference,
    /// What it led to.
    pub lost: Digest,
    /// What it leads to now; nothing if the tag had no durable target and is gone.
    pub now: Option<Digest>,
}

/// The store as the front sees it: database and JSON files. One connection; share it between threads.
pub struct Store {
    pub(crate) root: PathBuf,
    pub(crate) db: Db,
    pub(crate) report: OpenReport,
    pub(crate) indexes: Mutex<HashMap<LayerId, Arc<LayerIndex>>>,
    /// Indexes of layers that are not here.
    pub(crate) known: Mutex<crate::known::Known>,
    /// Layers whose folder has been seen.
    pub(crate) seen: Mutex<HashSet<LayerId>>,
    /// Layers that a record has and that have no folder.
    pub(crate) missing: Mutex<Vec<LayerId>>,
}

const FOLDERS: [&str; 10] = [
    "layers",
    "blobs",
    "blobs/sha256",
    "leases",
    "claims",
    "containers",
    "cache-mounts",
    "stat",
    "tmp",
    "log",
];

impl Store {
    /// Opens the store at `root`, or makes it. After a restart of the machine, what is not durable is given up here.
    ///
    /// # Errors
    /// When the store is another user's, of a newer format or of another kind of ids, each with a hint; when files cannot
    /// be made or read.
    pub fn open(root: &Path, how: OpenOptions) -> Result<Self, StoreError> {
        let wanted = Header {
            format: FORMAT,
            owner: how.owner,
            ids: how.ids,
        };
        if Header::read(root).ok().flatten().is_none() {
            make_folder(root)?;
        }
        Header::open(root, &wanted)?;
        // The last one made tells that the others are there.
        if !root.join(FOLDERS[FOLDERS.len() - 1]).is_dir() {
            FOLDERS
                .iter()
                .try_for_each(|name| make_folder(&root.join(name)))?;
        }
        let db = Db::open(root, &how.boot_id)?;
        let report = crate::collect::recover(root, &db, &how.boot_id)?;
        let root = root.to_owned();
        Ok(Self {
            root,
            db,
            report,
            indexes: Mutex::default(),
            known: Mutex::default(),
            seen: Mutex::default(),
            missing: Mutex::default(),
        })
    }

    /// The folder of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// What was found on opening.
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// Takes a lease.
    ///
    /// # Errors
    /// When its file cannot be made.
    pub fn lease(&self) -> Result<Lease, StoreError> {
        Lease::new(&self.leases())
    }

    /// Whether [`Store::settle`] is worth calling although nothing was made: the database's log is long, which costs
    /// everybody who opens the store.
    pub fn is_log_long(&self) -> bool {
        crate::db::is_log_long(&self.root)
    }

    /// Tries to get the right to do the work of `key`.
    ///
    /// # Errors
    /// When the claim's file cannot be made.
    pub fn claim(&self, key: Key) -> Result<ClaimAttempt, StoreError> {
        self.claim_for(key, "")
    }

    /// The same; `what` tells those who wait what it is held for, in one line.
    ///
    /// # Errors
    /// As [`Store::claim`].
    pub fn claim_for(&self, key: Key, what: &str) -> Result<ClaimAttempt, StoreError> {
        ClaimAttempt::new(&self.root.join("claims"), key, what)
    }

    pub(crate) fn leases(&self) -> PathBuf {
        self.root.join("leases")
    }
}

/// The kernel's name for this run of the machine.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn boot_id() -> Result<String, StoreError> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    let text = fs::read_to_string(PATH).map_err(StoreError::io("read", PATH))?;
    Ok(text.trim().to_owned())
}

/// Only the owner gets in: images bring programs with set-id bits.
pub(crate) fn make_folder(path: &Path) -> Result<(), StoreError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(StoreError::io("create", path))
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], StoreError> {
    let mut bytes = [0; N];
    let mut filled = 0;
    while filled < N {
        filled +=
            rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
                .map_err(|err| StoreError::io("read", "random numbers")(err.into()))?;
    }
    Ok(bytes)
}

/// A random name of `2 * N` hexadecimal digits.
pub(crate) fn random_name<const N: usize>() -> Result<String, StoreError> {
    let mut name = String::with_capacity(2 * N);
    for byte in random::<N>()? {
        write!(name, "{byte:02x}").expect("a string takes all");
    }
    Ok(name)
}
