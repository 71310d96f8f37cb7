//! Layers that are known and not there: somebody else has their bytes.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;

use crate::{ContentId, Descriptor, DiffId, LayerId, Reference};

/// A layer that can be had from elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distant {
    /// Its uncompressed tar.
    pub diff: DiffId,
    /// What it holds, if that is known; so it is said, and it shows only when the layer is there.
    pub content: Option<ContentId>,
    /// Its blob.
    pub blob: Descriptor,
    /// When the step that made it ended, if that is known.
    pub created: Option<Timestamp>,
    /// The latest time in its tar (seconds since 1970), if times were clamped.
    pub clamp: Option<i64>,
    /// Who has the blob.
    pub origin: Origin,
}

/// Where blobs can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// In a repository of a registry.
    Registry(Reference),
    /// In a folder in the OCI's layout.
    Folder(PathBuf),
}

/// A layer of a stack.
#[derive(Debug, Clone)]
pub enum Layer {
    /// In the store.
    Here(LayerId, ContentId),
    /// To be had from elsewhere.
    Distant(Arc<Distant>),
}
