//! `header.json`: what a store is, before anything else of it is read.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::StoreError;

/// The format of the folder and of the database. Raised with every change that an older Kiln would misread.
///
/// 2: layers that stand on others' folders.
pub(crate) const FORMAT: u32 = 2;

const FILE: &str = "header.json";

/// What a store is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Header {
    /// The format of the folder and of the database.
    pub format: u32,
    /// The user who may use it.
    pub owner: u32,
    /// To whom the files of layers belong.
    pub ids: IdKind,
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// To whom the files of layers belong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum IdKind {
    /// To the ids that the image says: a store of root.
    Real,
    /// To the ids that a user namespace maps those of the image to.
    Mapped {
        /// The user ids.
        uids: Vec<IdRange>,
        /// The group ids.
        gids: Vec<IdRange>,
    },
    /// All to the owner of the store; the ids of the image are in the indexes only.
    Recorded,
}

/// A range of ids in a user namespace (`user_namespaces(7)`, `uid_map`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// The first id inside the namespace.
    pub inside: u32,
    /// The first id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

impl IdKind {
    fn words(&self) -> String {
        let ranges = |ranges: &[IdRange]| {
            let one = |range: &IdRange| format!("{}+{}", range.outside, range.count);
            ranges.iter().map(one).collect::<Vec<_>>().join(",")
        };
        match self {
            Self::Real => "files with their real owners".to_owned(),
            Self::Mapped { uids, gids } => {
                format!(
                    "files with mapped owners (users {}, groups {})",
                    ranges(uids),
                    ranges(gids)
                )
            }
            Self::Recorded => "files of one owner".to_owned(),
        }
    }
}

impl Header {
    /// Reads the header of the store at `root`; `None` if there is no store.
    ///
    /// # Errors
    /// When the header cannot be read or understood, or is of a newer format.
    pub fn read(root: &Path) -> Result<Option<Self>, StoreError> {
        let path = root.join(FILE);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(err) => return Err(StoreError::io("read", &path)(err)),
        };
        let wrong = |err: serde_json::Error| StoreError::Header {
            path: path.clone(),
            reason: err.to_string(),
        };
        // First only the format: a newer header may have a shape that this Kiln cannot read.
        let Format { format } = serde_json::from_slice(&bytes).map_err(wrong)?;
        if format > FORMAT {
            return Err(StoreError::Newer {
                root: root.to_owned(),
                found: format,
                known: FORMAT,
            });
        }
        serde_json::from_slice(&bytes).map_err(wrong).map(Some)
    }

    /// Reads the header and checks that the store is `wanted`'s; makes the header if there is none.
    pub(crate) fn open(root: &Path, wanted: &Self) -> Result<(), StoreError> {
        let found = match Self::read(root) {
            Ok(Some(found)) => found,
            Ok(None) => wanted.create(root)?,
            Err(StoreError::Io { source, .. })
                if source.kind() == io::ErrorKind::PermissionDenied =>
            {
                let owner = fs::metadata(root)
                    .map_err(StoreError::io("read", root))?
                    .uid();
                return Err(StoreError::NotOwner {
                    root: root.to_owned(),
                    owner,
                    user: wanted.owner,
                });
            }
            Err(err) => return Err(err),
        };
        if found.owner != wanted.owner {
            return Err(StoreError::NotOwner {
                root: root.to_owned(),
                owner: found.owner,
                user: wanted.owner,
            });
        }
        if found.ids != wanted.ids {
            return Err(StoreError::OtherIds {
                root: root.to_owned(),
                owner: found.owner,
                found: found.ids.words(),
                wanted: wanted.ids.words(),
            });
        }
        Ok(())
    }

    /// Writes the header, unless another process has just done it; gives the one that counts.
    fn create(&self, root: &Path) -> Result<Self, StoreError> {
        let path = root.join(FILE);
        if !is_ours(root).map_err(StoreError::io("list", root))? {
            let reason = "the folder is not empty and holds no store".to_owned();
            return Err(StoreError::Header { path, reason });
        }
        let new = root.join(format!("{FILE}.{}", std::process::id()));
        let mut text = serde_json::to_vec_pretty(self).expect("a header always serialises");
        text.push(b'\n');
        let write = || {
            let mut file = fs::File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()
        };
        write().map_err(StoreError::io("write", &new))?;
        // A link, not a rename: it does not replace.
        let linked = fs::hard_link(&new, &path);
        fs::remove_file(&new).map_err(StoreError::io("remove", &new))?;
        match linked {
            Ok(()) => Ok(self.clone()),
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {
                Self::read(root)?.ok_or_else(|| StoreError::Header {
                    path,
                    reason: "it vanished".to_owned(),
                })
            }
            Err(err) => Err(StoreError::io("write", &path)(err)),
        }
    }
}

/// Whether a folder without a header can become a store: there may be a header in the making.
fn is_ours(root: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(root)? {
        let name = entry?.file_name();
        if name != "lost+found" && !name.as_encoded_bytes().starts_with(FILE.as_bytes()) {
            // Another process may have been faster in making the header and what follows it.
            return fs::exists(root.join(FILE));
        }
    }
    Ok(true)
}
