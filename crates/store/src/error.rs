//! What can go wrong.

use std::io;
use std::path::{Path, PathBuf};

use kiln_image::LayerId;

use crate::RecordId;

/// Why the store could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// A file or folder of the store.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// A verb.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The database.
    #[error("database of the store: {0}")]
    Database(#[source] rusqlite::Error),
    /// Another process held the database for too long.
    #[error(
        "database of the store: another process has been writing to it for more than {0} seconds"
    )]
    Busy(u64),
    /// The store's disk is full.
    #[error("database of the store: the disk is full")]
    Full,
    /// The database is damaged.
    #[error(
        "database of the store: {0}\n\
         hint: kiln system check tells what is damaged; kiln save may still get images out; to begin anew, remove the \
         store's folder (kiln info names it)"
    )]
    Corrupt(String),
    /// The store is somebody else's.
    #[error(
        "the store {} belongs to user {owner}, and this is user {user}\n\
         hint: choose a place of your own with --root or KILN_ROOT, or run as user {owner}",
        root.display()
    )]
    NotOwner {
        /// The store's folder.
        root: PathBuf,
        /// User id of the owner.
        owner: u32,
        /// User id of the caller.
        user: u32,
    },
    /// Written by a newer Kiln.
    #[error(
        "the store {} has format {found}, and this Kiln knows formats up to {known}\n\
         hint: use a newer Kiln, or another place with --root or KILN_ROOT",
        root.display()
    )]
    Newer {
        /// The store's folder.
        root: PathBuf,
        /// The format found.
        found: u32,
        /// The newest format known.
        known: u32,
    },
    /// The files in the store belong to other ids than this way of running can give them.
    #[error(
        "the store {} of user {owner} keeps {found}, and this run would keep {wanted}\n\
         hint: choose another place with --root or KILN_ROOT, or run the way that the store was made",
        root.display()
    )]
    OtherIds {
        /// The store's folder.
        root: PathBuf,
        /// User id of the owner.
        owner: u32,
        /// The kind of ids found, in words.
        found: String,
        /// The kind of ids wanted, in words.
        wanted: String,
    },
    /// The header file is not one.
    #[error("{} does not lead to a store: {reason}\nhint: choose another place with --root or KILN_ROOT", path.display())]
    Header {
        /// The header file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A layer that was there has been collected, or was never sealed.
    #[error("layer {0} is not in the store")]
    NoLayer(LayerId),
    /// Something was asked of a layer that is not `pending` any more, or not yet written.
    #[error("layer {0} cannot be sealed: {1}")]
    Seal(LayerId, &'static str),
    /// A record that was there has been collected.
    #[error("cache record {0:?} is not in the store")]
    NoRecord(RecordId),
    /// What the database holds cannot be understood.
    #[error("damaged store: {what}: {reason}")]
    Damaged {
        /// Of what.
        what: &'static str,
        /// Why.
        reason: String,
    },
}

impl StoreError {
    pub(crate) fn io(what: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            what,
            path: path.as_ref().to_owned(),
            source,
        }
    }

    pub(crate) fn damaged(what: &'static str, reason: &dyn std::fmt::Display) -> Self {
        Self::Damaged {
            what,
            reason: reason.to_string(),
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(err: rusqlite::Error) -> Self {
        match err.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                Self::Busy(crate::db::BUSY_TIMEOUT.as_secs())
            }
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                Self::Corrupt(err.to_string())
            }
            _ => Self::Database(err),
        }
    }
}
