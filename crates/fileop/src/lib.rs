//! File operations: COPY, ADD, WORKDIR and their kin, executed on layer indexes.
//!
//! What is copied, where it goes and what becomes of it is decided over merged views, without a mount. Then files go
//! straight from the folders of the source's layers, or from the build context, into the folder of the new layer.

mod apply;
mod builder;
mod copy;
mod entries;
mod error;
mod listing;
mod mode;
mod owner;
mod select;
mod standing;
mod transfer;
mod tree;
mod unpack;

pub use apply::{Applied, NewLayer, apply};
pub use error::FileOpError;
pub use listing::{Changes, Listing};
pub use select::{selection, selection_key};
pub use tree::Tree;
