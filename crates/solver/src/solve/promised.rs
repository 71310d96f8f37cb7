//! Results whose layers are elsewhere: images in registries, and what remote caches have. They are brought only when
//! somebody needs more of them than their identity.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::Scope;
use std::time::{Duration, SystemTime};

use kiln_graph::{Op, OpId, OpKind, SourceOp};
use kiln_image::{Key, Layer};
use kiln_progress::Event;
use kiln_store::NewRecord;

use super::{Message, Run, State, snapshots, step_name};
use crate::value::{Promise, Snapshot, Value};
use crate::{SolveError, SourceError};

/// What an operation gave, for a remote cache.
#[derive(Debug, Clone)]
pub struct Kept {
    /// The keys under which it can be found.
    pub keys: BTreeSet<Key>,
    /// For each output the layers, lowest first.
    pub outputs: Vec<Vec<Layer>>,
    /// How long it took.
    pub took: Duration,
    /// Its layers are layers of the target.
    pub of_target: bool,
}

/// More keys than this are not worth their place: an old record has one for each way in which it was ever found.
const MOST_KEYS: usize = 32;

impl<'s> Run<'s, '_> {
    /// Whether it is a target whose layers must be in the store.
    pub(super) fn is_wanted_here(&self, id: OpId) -> bool {
        !self.dry && !self.solver.options.lazy && self.targets.iter().any(|target| target.op == id)
    }

    /// Scans all local contexts.
    pub(super) fn scan_all(&mut self) {
        for (id, op) in self.graph.ops() {
            if matches!(op.kind, OpKind::Source(SourceOp::Local { .. })) {
                self.want(id);
            }
        }
        while self.failure.is_none() && self.scan_one() {}
    }

    /// Takes what a remote cache has under a key; `false` when none has it.
    pub(super) fn remembered(&mut self, id: OpId, key: Key) -> Result<bool, SolveError> {
        let Some(promise) = self.solver.providers.remembered(key) else {
            return Ok(false);
        };
        match promise.here() {
            Some(outputs) => {
                self.keep(id, &promise, &outputs)?;
                self.done(id, Value::Trees(outputs), true);
            }
            None => self.states[id.0] = State::Promised(Arc::new(promise)),
        }
        Ok(true)
    }

    /// The layers of several trees on each other, wherever they are.
    pub(super) fn merge_promised(&self, op: &Op) -> Promise {
        let mut merged = Vec::new();
        for edge in &op.inputs {
            match &self.states[edge.op.0] {
                State::Done(value) => {
                    merged.extend(value.tree(edge.output).map(Vec::from).unwrap_or_default());
                }
                State::Promised(promise) => {
                    let layers = promise.outputs.get(edge.output as usize);
                    merged.extend(layers.into_iter().flatten().cloned());
                }
                _ => unreachable!("merged only when the inputs are known"),
            }
        }
        Promise {
            outputs: vec![merged],
            ..Promise::default()
        }
    }

    /// Brings what is only promised of an operation's inputs.
    pub(super) fn bring_inputs<'scope, 'env>(
        &mut self,
        op: &Op,
        scope: &'scope Scope<'scope, 'env>,
        sender: &Sender<Message>,
    ) where
        's: 'scope,
    {
        for edge in &op.inputs {
            self.bring_promised(edge.op, scope, sender);
        }
    }

    /// Starts to bring the layers of a promised result.
    pub(super) fn bring_promised<'scope, 'env>(
        &mut self,
        id: OpId,
        scope: &'scope Scope<'scope, 'env>,
        sender: &Sender<Message>,
    ) where
        's: 'scope,
    {
        let graph = self.graph;
        let State::Promised(promise) = &self.states[id.0] else {
            return;
        };
        if self.dry {
            self.states[id.0] = State::Unknown;
            return;
        }
        let op = graph.op(id);
        match &op.kind {
            _ if self.upon.contains_key(&id) => {
                self.states[id.0] = State::Wanted {
                    looked_up: true,
                    by_content: true,
                };
                self.bring_inputs(op, scope, sender);
            }
            OpKind::Merge => {
                self.states[id.0] = State::Wanted {
                    looked_up: true,
                    by_content: true,
                };
                self.bring_inputs(op, scope, sender);
            }
            OpKind::Source(
                SourceOp::Image { reference } | SourceOp::OciLayout { reference, .. },
            ) => self.fetch_image(id, op, reference, scope, sender),
            _ => {
                let promise = Arc::clone(promise);
                let (vertex, at) = (self.solver.vertex(id), SystemTime::now());
                self.solver.sink.emit(Event::Started { id: vertex, at });
                self.promises.insert(id, Arc::clone(&promise));
                self.states[id.0] = State::Running;
                self.running += 1;
                let (sender, solver) = (sender.clone(), self.solver);
                scope.spawn(move || {
                    solver.providers.before_first();
                    let outcome = solver.providers.bring(&promise, vertex);
                    // The receiver lives as long as the scope.
                    let _ = sender.send(Message::Brought { op: id, outcome });
                });
            }
        }
    }

    /// What was promised is here, or cannot be had: then it is looked for elsewhere, and made if nobody has it.
    pub(super) fn brought(&mut self, id: OpId, outcome: Result<Vec<Snapshot>, SourceError>) {
        let promise = self.promises.remove(&id);
        match outcome {
            Ok(outputs) => {
                let promise = promise.expect("what is brought was promised");
                if let Err(error) = self.keep(id, &promise, &outputs) {
                    return self.fail(error);
                }
                self.done(id, Value::Trees(outputs), true);
            }
            Err(error) if error.canceled => self.fail(SolveError::Canceled),
            Err(_) => {
                self.states[id.0] = State::Wanted {
                    looked_up: false,
                    by_content: false,
                };
                self.forget_contents();
                self.forget_upon();
            }
        }
    }

    /// Keys made of what was promised may be wrong.
    pub(super) fn forget_contents(&mut self) {
        for (state, content) in self.states.iter().zip(&mut self.contents) {
            if matches!(state, State::Wanted { .. } | State::Idle) {
                *content = None;
            }
        }
    }

    /// Keeps a remote cache's record as one of this store.
    fn keep(
        &mut self,
        id: OpId,
        promise: &Promise,
        outputs: &[Snapshot],
    ) -> Result<(), SolveError> {
        let own = [&self.definitions[id.0], &self.contents[id.0]];
        let own: Vec<_> = own.into_iter().flatten().collect();
        let mut keys: BTreeSet<Key> = promise.keys.iter().copied().collect();
        keys.extend(own.iter().map(|(key, _)| *key));
        let parts = own.first().map(|(_, parts)| parts.as_slice().to_vec());
        let keys: Vec<Key> = keys.into_iter().collect();
        let record = NewRecord {
            outputs: outputs.iter().map(|tree| tree.layers.clone()).collect(),
            created: SystemTime::now(),
            took: promise.took,
            parts: parts.unwrap_or_default(),
            step: step_name(&self.graph.op(id).place),
        };
        self.records
            .push(self.solver.store.put_record(&keys, &record)?);
        Ok(())
    }

    /// What all operations gave, where it can be found in a cache.
    pub(super) fn kept(&mut self) -> Result<Vec<Kept>, SolveError> {
        let mut all = Vec::new();
        for (id, op) in self.graph.ops() {
            if matches!(op.kind, OpKind::Source(_) | OpKind::Merge) {
                continue;
            }
            let content = self.contents[id.0].as_ref().map(|(key, _)| *key);
            let keys: BTreeSet<Key> = content.into_iter().chain(self.definition(id)?).collect();
            if let (State::Promised(promise), true) =
                (&self.states[id.0], self.upon.contains_key(&id))
            {
                all.push(Kept {
                    keys,
                    outputs: promise.outputs.clone(),
                    took: Duration::ZERO,
                    of_target: self.on_chain.contains(&id),
                });
            } else if let Some(kept) = self.kept_under(keys)? {
                all.push(Kept {
                    of_target: self.on_chain.contains(&id),
                    ..kept
                });
            }
        }
        Ok(all)
    }

    fn kept_under(&self, mut keys: BTreeSet<Key>) -> Result<Option<Kept>, SolveError> {
        for key in keys.clone() {
            if let Some(record) = self.solver.find(key)?
                && self.solver.take(&record, None)?
            {
                let known = self.solver.store.keys_of(record.id, MOST_KEYS)?;
                keys.extend(known);
                let outputs = snapshots(self.solver.store, &record.outputs)?;
                return Ok(Some(Kept {
                    keys,
                    outputs: outputs.iter().map(Vec::from).collect(),
                    took: record.took,
                    of_target: false,
                }));
            }
        }
        for key in keys.clone() {
            if let Some(promise) = self.solver.providers.remembered(key) {
                keys.extend(&promise.keys);
                return Ok(Some(Kept {
                    keys,
                    outputs: promise.outputs,
                    took: promise.took,
                    of_target: false,
                }));
            }
        }
        Ok(None)
    }
}
