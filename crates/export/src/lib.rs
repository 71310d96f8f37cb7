//! A result leaves the solver here: as an image in the local store, as an archive, to a registry; and images come in
//! from archives and registries.

mod archive;
mod blobs;
mod cache;
mod cache_indexes;
mod commit;
mod documents;
mod growing;
mod import;
mod indexes;
mod layout;
mod load;
mod packing;
mod pull;
mod push;

pub use archive::{Format, Place, Saving};
pub use cache::{CacheContent, CacheForm, CacheFound, CacheLayer, CachePlace, CacheSource};
pub use commit::{Committed, commit};
pub use documents::Found;
pub use import::{Changed, Import, commit_container, import};
pub use indexes::{Member, commit_index, name, part_of_index};
pub use layout::Layout;
pub use load::{Loaded, load};
pub use packing::Packing;
pub use pull::{Remote, Unwatched, Watch};
pub use push::{Part, Published, Stack};

use kiln_image::{DiffId, LayerId, Platform};
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
    /// A layer of the store was damaged, and is dropped.
    #[error("layer {layer} is damaged ({why}), and is dropped{}", with(names))]
    Damaged {
        /// Which.
        layer: LayerId,
        /// What is wrong with it.
        why: String,
        /// The names of images that went with it.
        names: Vec<String>,
    },
    /// A change given on the command line cannot be made.
    #[error("cannot apply the change {change:?}: {what}")]
    Change {
        /// As it was given.
        change: String,
        /// What is wrong with it.
        what: String,
    },
    /// The registry, or the way to it, failed.
    #[error(transparent)]
    Registry(#[from] kiln_registry::Error),
    /// What a name leads to is no image that Kiln can use.
    #[error("{name}: {what}")]
    Unusable {
        /// The name.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// There is nothing for the platform.
    #[error("{name}: no image for {wanted}: it is for {}", list(has))]
    Platform {
        /// The image's name.
        name: String,
        /// What was asked for.
        wanted: Platform,
        /// What there is.
        has: Vec<Platform>,
    },
    /// The user gave up.
    #[error("canceled")]
    Canceled,
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
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Worker(error) | Self::Unpack { error, .. } => error.hint().map(str::to_owned),
            Self::Registry(error) => error.hint(),
            Self::Platform { .. } => Some("choose one of them with --platform".to_owned()),
            Self::NoImage(_) => Some("see kiln images".to_owned()),
            Self::Damaged { .. } => Some(
                "build, pull or load the image again; kiln system check --deep finds what else is damaged"
                    .to_owned(),
            ),
            _ => None,
        }
    }

    /// Whether the work was given up and did not fail.
    pub fn is_canceled(&self) -> bool {
        match self {
            Self::Canceled | Self::Registry(kiln_registry::Error::Canceled) => true,
            Self::Worker(error) | Self::Unpack { error, .. } => error.is_canceled(),
            _ => false,
        }
    }
}

fn with(names: &[String]) -> String {
    if names.is_empty() {
        return String::new();
    }
    format!(" with {}", names.join(", "))
}

fn list(platforms: &[Platform]) -> String {
    let names: Vec<_> = platforms.iter().map(Platform::to_string).collect();
    if names.is_empty() {
        return "no platform at all".to_owned();
    }
    names.join(", ")
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
