//! What the solver is given from outside its graph.

use std::path::PathBuf;
use std::sync::Arc;

use kiln_graph::SourceOp;
use kiln_image::{Distant, Key, LayerIndex};
use kiln_progress::VertexId;

use crate::value::{Context, Promise, Snapshot};
use crate::{SourceError, Watch};

/// What a build brings that is not in its graph.
pub trait Providers: Sync {
    /// The layers of an image that the graph names with its digest; `None` when they must be fetched.
    ///
    /// # Errors
    /// In words, when the image cannot be had.
    fn image(&self, reference: &str) -> Result<Option<Snapshot>, String>;

    /// Fetches the layers of an image. Called in a thread of its own; `vertex` is the image's row.
    ///
    /// # Errors
    /// When they cannot be had, or the user or the worker gave up.
    fn fetch_image(&self, reference: &str, vertex: VertexId) -> Result<Snapshot, SourceError>;

    /// The layers of an image by name, without fetching any that the store lacks; `None` when that is not known.
    fn promised_image(&self, _reference: &str) -> Option<Promise> {
        None
    }

    /// What is in a layer that is elsewhere, if that is known without its content.
    fn index(&self, _layer: &Distant) -> Option<Arc<LayerIndex>> {
        None
    }

    /// What a remote cache has under a key.
    fn remembered(&self, _key: Key) -> Option<Promise> {
        None
    }

    /// Brings the layers of what [`Providers::remembered`] gave. Called in a thread of its own; `vertex` is the
    /// operation's row. What cannot be brought is not remembered any more.
    ///
    /// # Errors
    /// When they cannot be had, or are not what was said.
    fn bring(&self, _promise: &Promise, _vertex: VertexId) -> Result<Vec<Snapshot>, SourceError> {
        Err(SourceError {
            message: "there is no remote cache".to_owned(),
            hint: None,
            canceled: false,
        })
    }

    /// Scans a local context, ignoring what the patterns say.
    ///
    /// # Errors
    /// In words, when the context is not there or cannot be read.
    fn scan(&self, name: &str, exclude: &[String]) -> Result<Context, String>;

    /// What a source from the network is now, in the few characters that its key needs: a digest, a commit. Nothing is
    /// asked when the operation itself says it.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn identify(&self, source: &SourceOp, watch: &dyn Watch) -> Result<String, SourceError>;

    /// Brings a source from the network in the state of that identity.
    ///
    /// # Errors
    /// When it cannot be had.
    fn fetch(
        &self,
        source: &SourceOp,
        identity: &str,
        watch: &dyn Watch,
    ) -> Result<Context, SourceError>;

    /// The value of a secret; `None` when the build was given none of that name.
    ///
    /// # Errors
    /// In words, when it was given and cannot be read.
    fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, String>;

    /// The socket of an ssh agent.
    fn ssh(&self, id: &str) -> Option<PathBuf>;

    /// Whether the user gave up.
    fn is_canceled(&self) -> bool;

    /// Why the work was stopped, where it was not the user who gave up: message and way out.
    fn stopped(&self) -> Option<(String, String)> {
        None
    }

    /// Sees to it that the store can keep so many more bytes, which may be `written` already.
    ///
    /// # Errors
    /// Message and way out, when there is no room and none can be made.
    fn make_room(&self, _bytes: u64, _written: bool) -> Result<(), (String, String)> {
        Ok(())
    }

    /// Called once, before the first operation is executed.
    fn before_first(&self) {}
}
