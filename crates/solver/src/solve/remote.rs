//! Sources from the network, in two steps: first what they are now, which is enough for a key, then what is in them,
//! only if something reads it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::thread::Scope;
use std::time::SystemTime;

use kiln_graph::{OpId, OpKind, SourceOp};
use kiln_progress::{Event, VertexId};

use super::{Message, Run, Solver, State};
use crate::SolveError;
use crate::value::{Context, LocalTree, Value};

/// Follows the work on a source, and can end it.
pub trait Watch: Sync {
    /// So much was transferred, of so much (0 when not known), in bytes.
    fn transferred(&self, current: u64, total: u64);

    /// Whether the work is not needed any more.
    fn is_canceled(&self) -> bool;
}

/// Why a source cannot be had.
#[derive(Debug, Clone)]
pub struct SourceError {
    /// In words.
    pub message: String,
    /// A way out.
    pub hint: Option<String>,
    /// It was ended by [`Watch::is_canceled`].
    pub canceled: bool,
}

/// The row of a source in the displays; it starts when there is something to see.
struct Row<'a> {
    solver: &'a Solver<'a>,
    id: VertexId,
    started: AtomicBool,
}

impl Row<'_> {
    fn start(&self) {
        if !self.started.swap(true, Ordering::Relaxed) {
            let (id, at) = (self.id, SystemTime::now());
            self.solver.sink.emit(Event::Started { id, at });
        }
    }

    fn end<T>(self, outcome: &Result<T, SourceError>) -> bool {
        let at = SystemTime::now();
        let id = self.id;
        match outcome {
            Ok(_) => {
                if self.started.load(Ordering::Relaxed) {
                    self.solver.sink.emit(Event::Finished { id, at });
                }
            }
            Err(error) if error.canceled => self.solver.sink.emit(Event::Canceled { id, at }),
            Err(error) => {
                self.start();
                let error = error.message.clone();
                self.solver.sink.emit(Event::Failed { id, error, at });
            }
        }
        self.started.into_inner()
    }
}

impl Watch for Row<'_> {
    fn transferred(&self, current: u64, total: u64) {
        self.start();
        self.solver.sink.emit(Event::Status {
            id: self.id,
            name: "transferring".to_owned(),
            current,
            total,
            done: total > 0 && current >= total,
            at: SystemTime::now(),
        });
    }

    fn is_canceled(&self) -> bool {
        self.solver.providers.is_canceled() || self.solver.worker.is_canceled()
    }
}

/// Whether a source comes from the network.
pub(super) fn is_remote(kind: &OpKind) -> bool {
    matches!(
        kind,
        OpKind::Source(SourceOp::Http { .. } | SourceOp::Git { .. })
    )
}

impl<'s> Run<'s, '_> {
    /// Starts to find out what a source is now.
    pub(super) fn identify<'scope, 'env>(
        &mut self,
        id: OpId,
        scope: &'scope Scope<'scope, 'env>,
        sender: &Sender<Message>,
    ) where
        's: 'scope,
    {
        self.bring(id, scope, sender, move |solver, source, row| {
            let text = "for the server's answer".to_owned();
            solver.sink.emit(Event::Waiting { id: row.id, text });
            let outcome = solver.providers.identify(source, &row);
            let started = row.end(&outcome);
            Message::Identified {
                op: id,
                outcome,
                started,
            }
        });
    }

    /// Starts to bring what is in an identified source.
    pub(super) fn fetch<'scope, 'env>(
        &mut self,
        id: OpId,
        scope: &'scope Scope<'scope, 'env>,
        sender: &Sender<Message>,
    ) where
        's: 'scope,
    {
        let identity = self.identities[id.0].clone().unwrap_or_default();
        self.bring(id, scope, sender, move |solver, source, row| {
            let outcome = solver.providers.fetch(source, &identity, &row);
            let started = row.end(&outcome);
            Message::Fetched {
                op: id,
                outcome: Box::new(outcome),
                started,
            }
        });
    }

    fn bring<'scope, 'env>(
        &mut self,
        id: OpId,
        scope: &'scope Scope<'scope, 'env>,
        sender: &Sender<Message>,
        work: impl FnOnce(&Solver<'_>, &SourceOp, Row<'_>) -> Message + Send + 'scope,
    ) where
        's: 'scope,
    {
        let (graph, solver, sender) = (self.graph, self.solver, sender.clone());
        self.states[id.0] = State::Running;
        self.running += 1;
        scope.spawn(move || {
            let OpKind::Source(source) = &graph.op(id).kind else {
                unreachable!("only sources are brought");
            };
            let row = Row {
                solver,
                id: solver.vertex(id),
                started: AtomicBool::new(false),
            };
            // The receiver lives as long as the scope.
            let _ = sender.send(work(solver, source, row));
        });
    }

    pub(super) fn identified(
        &mut self,
        id: OpId,
        outcome: Result<String, SourceError>,
        started: bool,
    ) {
        self.told[id.0] |= started;
        match outcome {
            Ok(identity) => {
                self.identities[id.0] = Some(identity);
                self.states[id.0] = State::Identified;
            }
            Err(error) => self.source_failed(id, error),
        }
    }

    pub(super) fn fetched(
        &mut self,
        id: OpId,
        outcome: Result<Context, SourceError>,
        started: bool,
    ) {
        self.told[id.0] |= started;
        match outcome {
            Ok(context) => {
                let cached = !self.told[id.0];
                let name = self.graph.op(id).place.title.clone();
                self.done(id, Value::Local(LocalTree::new(name, context)), cached);
            }
            Err(error) => self.source_failed(id, error),
        }
    }

    fn source_failed(&mut self, id: OpId, error: SourceError) {
        let place = &self.graph.op(id).place;
        self.fail(if error.canceled {
            SolveError::Canceled
        } else {
            SolveError::step(place, error.message, error.hint)
        });
    }
}
