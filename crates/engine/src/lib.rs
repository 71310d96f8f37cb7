//! Runs a build request: ties frontend, solver and exporters together. The one API that the command line uses.
//!
//! Nothing here reads the working folder, the environment or a configuration file: everything comes in the request.

mod analyse;
mod bringing;
mod build;
mod caches;
mod check;
mod copy;
mod debug;
mod digesting;
mod docker;
mod error;
mod git_access;
mod history;
mod images;
mod inputs;
mod log;
mod manifests;
mod outputs;
mod remote;
mod remote_cache;
mod room;
mod rows;
mod run;

pub use analyse::{Analysis, Answer, Question};
pub use build::{
    Allowed, Annotated, Annotation, BuildRequest, Built, Dockerfile, DockerfileFrom, MainContext,
    Secret,
};
pub use caches::{CacheInfo, CacheNote};
pub use check::Checked;
pub use copy::{Change, CopiedFrom, FoundKind};
pub use debug::StepState;
pub use error::{BuildError, Place};
pub use kiln_graph::is_secret_name;
pub use kiln_worker::{Limits, Rights, Trust};
pub use manifests::{EntryChange, RawDocument};
pub use outputs::{Output, To};
pub use remote::{Pulled, PushRequest};
pub use remote_cache::CacheTo;
pub use room::{CacheItem, Collected, Filled, Prune};
pub use run::{ContainerInfo, Ran, RunRequest};

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_registry::Client;
use kiln_remote::Remote;
use kiln_store::{SpaceLimits, Store};
use kiln_worker::Worker;

/// A store and the worker that serves it.
pub struct Engine {
    /// What is kept.
    pub store: Store,
    /// What touches layers.
    pub worker: Worker,
    /// What speaks to registries.
    pub client: Client,
    /// Brings files and repositories from the network.
    pub remote: Remote,
    /// How much the store may take.
    pub limits: SpaceLimits,
}

/// Tells everything that the user gave up.
#[derive(Debug, Clone, Default)]
pub struct CancelFlag(Arc<AtomicBool>);

impl CancelFlag {
    /// Gives up.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether the user gave up.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// The flag itself, for those who cannot borrow it.
    pub(crate) fn flag(&self) -> &Arc<AtomicBool> {
        &self.0
    }

    /// The flag itself, for a signal handler.
    pub fn raw(&self) -> Arc<AtomicBool> {
        self.0.clone()
    }
}

impl Engine {
    /// Removes what nobody refers to any more: leftovers of builds that died, layers of removed images.
    ///
    /// # Errors
    /// When the store or the worker fails.
    pub fn sweep(&self) -> Result<usize, BuildError> {
        self.remote.sweep();
        let leftovers = self.store.cache_mount_leftovers()?;
        if !leftovers.is_empty() {
            self.worker
                .remove_caches(leftovers, &[])
                .map_err(|error| BuildError::from_worker(&error))?;
        }
        let doomed = self.store.sweep()?;
        if doomed.is_empty() {
            return Ok(0);
        }
        self.worker
            .delete(doomed.clone(), &[])
            .map_err(|error| BuildError::from_worker(&error))?;
        self.store.forget_layers(&doomed)?;
        Ok(doomed.len())
    }
}
