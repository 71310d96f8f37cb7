//! What is on disk: layers with their indexes, blobs, images, tags, cache records, containers, leases and claims.
//!
//! [`Store`] is the front's side: an `SQLite` database and JSON files, shared by any number of processes. [`layer_fs`],
//! [`unpack_tar`] and [`write_tar`] are the worker's side: file work inside one layer's folder, without the database.
//! The format, the locks and what is durable when are described in `docs/store.md`.

mod ahead;
mod cache_mounts;
mod check;
mod collect;
mod containers;
mod db;
mod error;
mod header;
mod history;
mod images;
mod indexes;
mod known;
pub mod layer_fs;
mod layers;
mod lock;
mod logs;
mod readahead;
mod records;
mod room;
mod sources;
mod space;
mod store;
mod tar;

pub use cache_mounts::{CacheMount, cache_mount_claim};
pub use check::{Fault, Faulty, Verdict};
pub use containers::{Container, NewContainer};
pub use error::StoreError;
pub use header::{Header, IdKind, IdRange};
pub use history::{Build, BuildOutcome, BuildStep, NewBuild, StepState};
pub use images::{Image, ImageInfo, Tag};
pub use indexes::StoredIndex;
pub use layer_fs::{Content, Ids, LayerFs, delete_layer};
pub use layers::{BlobInfo, LayerInfo, LayerSummary};
pub use lock::{Claim, ClaimAttempt, Holder, Lease, Waiter};
pub use records::{NewRecord, Record, RecordId, RecordUse};
pub use room::{Dropped, Leaf, Spaces};
pub use space::{Disk, Measured, SpaceLimits, space_of};
pub use store::{OpenOptions, OpenReport, Store, TagFallback, boot_id};
pub use tar::{UnpackError, Unpacked, unpack_tar, write_tar};
