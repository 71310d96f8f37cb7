//! What the cache has, and what it only promised.

use kiln_graph::Place;
use kiln_image::{Key, LayerId};
use kiln_progress::Event;
use kiln_store::{Record, StoreError};
use kiln_worker::WorkerError;

use crate::SolveError;
use crate::solve::Solver;

impl Solver<'_> {
    /// The record under a key. A layer whose folder is gone is dropped, and the user told: the step runs again.
    pub(crate) fn find(&self, key: Key) -> Result<Option<Record>, SolveError> {
        let record = self.store.find_record(key)?;
        for layer in self.store.take_missing() {
            self.drop_damaged(
                layer,
                &format!("layer {layer} is damaged: its index is not there"),
            )?;
        }
        Ok(record)
    }

    /// Takes a damaged layer out of the store, with all that rests on it.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn drop_damaged(&self, layer: LayerId, message: &str) -> Result<(), StoreError> {
        let Some(dropped) = self.store.drop_layer(layer)? else {
            return Ok(());
        };
        let mut what = match dropped.records {
            1 => "1 cache record".to_owned(),
            count => format!("{count} cache records"),
        };
        if !dropped.names.is_empty() {
            what = format!("{what} and {}", dropped.names.join(", "));
        }
        let text = format!("{message}; dropped with {what}, to be made again");
        self.sink.emit(Event::Warning { text });
        Ok(())
    }

    /// Uses a record: protects its layers. `false` when they were collected since it was found.
    pub(crate) fn take(&self, record: &Record, alias: Option<Key>) -> Result<bool, SolveError> {
        let layers: Vec<LayerId> = record.outputs.iter().flatten().copied().collect();
        match self.store.protect(self.lease, &layers) {
            Err(StoreError::NoLayer(_)) => return Ok(false),
            other => other?,
        }
        match alias.map(|key| self.store.alias(key, record.id)) {
            // The record was collected; the layers are protected.
            None | Some(Ok(()) | Err(StoreError::NoRecord(_))) => Ok(true),
            Some(Err(error)) => Err(error.into()),
        }
    }

    /// A failure of the worker. A job that was stopped because the store is full fails with that.
    pub(crate) fn worker_failed(&self, place: &Place, error: &WorkerError) -> SolveError {
        match self.providers.stopped() {
            Some((message, hint)) if error.is_canceled() => {
                SolveError::step(place, message, Some(hint))
            }
            _ => SolveError::worker(place, error),
        }
    }
}
