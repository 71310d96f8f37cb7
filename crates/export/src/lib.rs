//! A result leaves the solver here: as an image in the local store, as an archive; and images come in from archives.

mod archive;
mod commit;
mod import;
mod load;

pub use archive::{Format, save};
pub use commit::{Committed, commit};
pub use import::import;
pub use load::{Loaded, load};

use std::path::PathBuf;

use kiln_image::{DiffId, LayerId};
use kiln_store::{Store, StoreError};
use kiln_worker::{Worker, WorkerError};

/// Why an image could not be brought in or out.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The worker failed.
    #[error(transparent)]
    Worker(#[from] WorkerError),
    /// The worker could not unpack an archive.
    #[error("{path}: {error}")]
    Unpack {
        /// Which.
        path: String,
        /// Why.
        error: WorkerError,
    },
    /// A file could not be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// What was read is not an image archive.
    #[error("{path}: {what}")]
    Invalid {
        /// Which.
        path: String,
        /// What is wrong with it.
        what: String,
    },
    /// A change given on the command line cannot be made.
    #[error("cannot apply the change {change:?}: {what}")]
    Change {
        /// As it was given.
        change: String,
        /// What is wrong with it.
        what: String,
    },
    /// There is no such image.
    #[error("no such image: {0}")]
    NoImage(String),
}

impl ExportError {
    pub(crate) fn unpack(path: &str) -> impl FnOnce(WorkerError) -> Self {
        move |error| Self::Unpack {
            path: path.to_owned(),
            error,
        }
    }

    pub(crate) fn io(path: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |error| Self::Io { path, error }
    }

    /// A way out, where there is one.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Worker(error) | Self::Unpack { error, .. } => error.hint(),
            _ => None,
        }
    }
}

/// Where the bytes of a layer's tar are kept when Kiln's own tar of the layer would be another one.
pub(crate) fn kept_tar(store: &Store, diff: DiffId) -> PathBuf {
    store
        .root()
        .join("blobs/sha256")
        .join(format!("{}.tar.zst", diff.hex()))
}

/// The diff id of a layer and the size of its tar; found out, and kept, when nobody has asked before.
///
/// # Errors
/// When the store or the worker fails.
pub fn digest_layer(
    store: &Store,
    worker: &Worker,
    layer: LayerId,
    clamp: Option<i64>,
) -> Result<(DiffId, u64), ExportError> {
    if let Some(known) = store.diff(layer, clamp)? {
        return Ok(known);
    }
    let (diff, size) = worker.digest(layer, clamp, &[])?;
    store.set_diff(layer, clamp, diff, size)?;
    Ok((diff, size))
}
