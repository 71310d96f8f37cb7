//! The data model of container images: identities, references, platforms, configs, manifests, the layer index,
//! the merged view of several layers, tar and compression. Nothing here touches the file system or the network.

pub mod cache_config;
pub mod compress;
pub mod config;
pub mod distant;
mod gzip;
pub mod id;
pub mod index;
pub mod manifest;
pub mod owner;
pub mod path;
pub mod platform;
pub mod reference;
pub mod tar;
pub mod tarlayer;
pub mod view;

pub use compress::Compression;
pub use config::{ImageConfig, RunConfig};
pub use distant::{Distant, Layer, Origin};
pub use id::{ContentId, DiffId, Digest, FileDigest, Key, KeyHasher, LayerId};
pub use index::{
    Entry, IndexError, IndexReader, IndexWriter, Kind, LayerIndex, Outcome, Totals, Xattrs,
};
pub use manifest::{Descriptor, Document, Index, Manifest, OsDemands, media_type, parse_manifest};
pub use owner::{InodeKey, InodeOwners, OWNER_XATTR, OwnerRecord};
pub use path::{LayerPath, Paths};
pub use platform::Platform;
pub use reference::Reference;
pub use view::{MergedView, Node, ResolveError};
