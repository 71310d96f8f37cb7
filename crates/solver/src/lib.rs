//! Executes a build graph: cache keys, cache records, scheduling, one executor per kind of operation. Knows no
//! Dockerfiles.
//!
//! Every operation has a *definition key*, the hash of what it does and of its inputs' definition keys; a record under
//! it answers without any input being looked at. On a miss the inputs are brought and a *content key* is made of what
//! the operation really reads of them; a record under that is a hit too, and gets the definition key as an alias. Only
//! then is the operation executed. See `docs/architecture.md`, "Keys".

mod cache_mounts;
mod error;
mod execute;
mod explain;
mod found;
mod keys;
mod parts;
mod providers;
mod solve;
mod value;

pub use error::{NO_EMULATOR, SolveError};
pub use keys::semantics;
pub use parts::Parts;
pub use providers::Providers;
pub use solve::{Kept, OpReport, Options, Solved, Solver, SourceError, Watch};
pub use value::{Context, Promise, Snapshot};

/// The layers that the store has recorded, as a snapshot.
///
/// # Errors
/// When a layer is not in the store.
pub fn snapshot(
    store: &kiln_store::Store,
    layers: &[kiln_image::LayerId],
) -> Result<Snapshot, SolveError> {
    Ok(solve::snapshots(store, &[layers.to_vec()])?
        .pop()
        .unwrap_or_default())
}
