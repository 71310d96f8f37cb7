//! Copies onto trees of which some layers are elsewhere. Where a file goes is told by the indexes of the layers below, so
//! where these are known, nothing of the layers is brought. What is made is kept as layers *upon* a tree, under keys of
//! their own, since a record names layers of the store only.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_graph::{FileAction, FileActionKind, FileInput, FileOp, Op, OpId, OpKind, Owner, UserRef};
use kiln_image::{Key, KeyHasher, Layer, LayerIndex};
use kiln_store::NewRecord;

use super::{Run, State, snapshots, step_name};
use crate::SolveError;
use crate::execute::output_bases;
use crate::value::{Outline, Outlined, Promise, Snapshot, Value};

/// The key of the layers that an operation puts on its base, by its own.
pub(crate) fn upon(key: Key) -> Key {
    let mut hasher = KeyHasher::new("upon", 1);
    hasher.part("key", key.as_bytes()).finish()
}

/// What operations put on trees that are not here.
pub(super) type Upon = HashMap<OpId, Above>;

/// What one of them put there.
pub(super) struct Above {
    /// For each output.
    pub(super) outputs: Vec<Snapshot>,
    /// How long that took.
    pub(super) took: Duration,
}

impl Run<'_, '_> {
    /// What an operation must know of its inputs, if nothing need be brought to execute it.
    pub(super) fn outlines(&self, id: OpId) -> Option<Vec<Value>> {
        let op = self.graph.op(id);
        let OpKind::File(file) = &op.kind else {
            return None;
        };
        if self.dry || self.will_be_read(id) {
            return None;
        }
        let outline = |input: usize| match &self.states[op.inputs[input].op.0] {
            State::Done(value) => Some(value.clone()),
            State::Promised(promise) if is_only_base(file, input) => {
                let layers = promise.outputs.get(op.inputs[input].output as usize)?;
                let layers = layers.iter().map(|layer| self.outlined(layer));
                Some(Value::Outline(Outline {
                    of: Arc::clone(promise),
                    layers: layers.collect::<Option<_>>()?,
                }))
            }
            _ => None,
        };
        (0..op.inputs.len()).map(outline).collect()
    }

    fn outlined(&self, layer: &Layer) -> Option<Outlined> {
        Some(match layer {
            Layer::Here(id, _) => Outlined::Here(*id),
            Layer::Distant(distant) => {
                let index: Arc<LayerIndex> = self.solver.providers.index(distant)?;
                // Else what stands on it would have another key when it is here.
                (distant.content == Some(index.content_id())).then_some(())?;
                Outlined::Elsewhere(index)
            }
        })
    }

    /// Whether something that may still be executed, or the target, needs the files of an operation's result.
    fn will_be_read(&self, wanted: OpId) -> bool {
        let mut read = vec![false; self.graph.len()];
        if !self.solver.options.lazy {
            for target in &self.targets {
                read[target.op.0] = true;
            }
        }
        for at in (wanted.0 + 1..self.graph.len()).rev() {
            if !matches!(self.states[at], State::Wanted { .. } | State::Running) {
                continue;
            }
            let op = self.graph.op(OpId(at));
            for (input, edge) in op.inputs.iter().enumerate() {
                let passes_on = match &op.kind {
                    OpKind::Merge => true,
                    OpKind::File(file) => is_only_base(file, input),
                    _ => false,
                };
                read[edge.op.0] |= !passes_on || read[at];
            }
        }
        read[wanted.0]
    }

    /// Takes what was put on a tree before: in this build, or in an earlier one. `false` if nothing is known of it.
    pub(super) fn hit_upon(&mut self, id: OpId) -> Result<bool, SolveError> {
        if let Some(above) = self.upon.remove(&id) {
            self.put_upon(id, above)?;
            return Ok(true);
        }
        let op = self.graph.op(id);
        if op.ignore_cache || !matches!(op.kind, OpKind::File(_)) {
            return Ok(false);
        }
        let Some(content) = self.content_if_known(id)? else {
            return Ok(false);
        };
        let Some(record) = self.solver.find(upon(content))? else {
            return Ok(false);
        };
        if !self.solver.take(&record, None)? {
            return Ok(false);
        }
        let above = Above {
            outputs: snapshots(self.solver.store, &record.outputs)?,
            took: record.took,
        };
        self.records.push(record.id);
        self.put_upon(id, above)?;
        Ok(true)
    }

    /// The result of an operation that put layers on its inputs, wherever these are.
    pub(super) fn put_upon(&mut self, id: OpId, above: Above) -> Result<(), SolveError> {
        let op = self.graph.op(id);
        let OpKind::File(file) = &op.kind else {
            unreachable!("only copies are put upon something");
        };
        let outputs: Vec<Vec<Layer>> = output_bases(file)
            .into_iter()
            .zip(&above.outputs)
            .map(|(base, above)| {
                let mut layers = base.map_or_else(Vec::new, |input| self.layers_of(op, input));
                layers.extend(Vec::from(above));
                layers
            })
            .collect();
        let promise = Promise {
            outputs,
            ..Promise::default()
        };
        if let Some(trees) = promise.here() {
            let keys = self.definition(id)?.into_iter();
            let keys: Vec<Key> = keys.chain(self.content_if_known(id)?).collect();
            let parts = self.contents[id.0].as_ref().map(|(_, parts)| parts);
            let record = NewRecord {
                outputs: trees.iter().map(|tree| tree.layers.clone()).collect(),
                created: SystemTime::now(),
                took: above.took,
                parts: parts.map_or_else(Vec::new, |parts| parts.as_slice().to_vec()),
                step: step_name(&op.place),
            };
            self.records
                .push(self.solver.store.put_record(&keys, &record)?);
            let cached = self.reports[id.0].is_none();
            self.done(id, Value::Trees(trees), cached);
            return Ok(());
        }
        if self.on_chain.contains(&id) {
            for layer in above.outputs.iter().filter_map(|it| it.layers.last()) {
                (self.solver.sealed)(*layer);
            }
        }
        self.upon.insert(id, above);
        self.states[id.0] = State::Promised(Arc::new(promise));
        Ok(())
    }

    fn layers_of(&self, op: &Op, input: usize) -> Vec<Layer> {
        let edge = op.inputs[input];
        match &self.states[edge.op.0] {
            State::Done(value) => value.tree(edge.output).map(Vec::from).unwrap_or_default(),
            State::Promised(promise) => {
                let layers = promise.outputs.get(edge.output as usize);
                layers.cloned().unwrap_or_default()
            }
            _ => unreachable!("put only on what is known"),
        }
    }

    /// Whether the inputs still are what an operation was executed on: a cache that turned out to be lost may have
    /// promised something else.
    pub(super) fn stands(&self, id: OpId, on: &[Arc<Promise>]) -> bool {
        let inputs = &self.graph.op(id).inputs;
        let mut known = inputs.iter().map(|edge| &self.states[edge.op.0]);
        on.iter().all(|promise| {
            known.any(|state| match state {
                State::Promised(now) => Arc::ptr_eq(now, promise),
                _ => false,
            })
        })
    }

    /// Forgets what stands on promises, since one was not kept.
    pub(super) fn forget_upon(&mut self) {
        for (id, _) in self.upon.drain() {
            if matches!(self.states[id.0], State::Promised(_) | State::Wanted { .. }) {
                self.states[id.0] = State::Wanted {
                    looked_up: false,
                    by_content: false,
                };
            }
        }
    }
}

/// Whether a file operation uses an input as a tree to put things on, and reads no file of it.
fn is_only_base(file: &FileOp, input: usize) -> bool {
    file.actions.iter().all(|FileAction { kind, .. }| {
        let (from, owner) = match kind {
            FileActionKind::Copy(copy) => {
                if copy.attempt_unpack {
                    // A hard link of the archive may lead to a file of the tree below.
                    return false;
                }
                (copy.from, &copy.owner)
            }
            FileActionKind::MkFile { owner, .. } | FileActionKind::MkDir { owner, .. } => {
                (None, owner)
            }
            FileActionKind::Rm { .. } => (None, &None),
        };
        let reads = |from: FileInput| match from {
            FileInput::Scratch => false,
            FileInput::Input(its) => its == input,
            FileInput::Action(_) => true,
        };
        !from.is_some_and(reads) && !names_of(owner.as_ref()).any(reads)
    })
}

/// The trees in which the names of an owner are looked up.
fn names_of(owner: Option<&Owner>) -> impl Iterator<Item = FileInput> {
    let parts = owner.map(|owner| [&owner.user, &owner.group]);
    let parts = parts.into_iter().flatten().flatten();
    parts.filter_map(|part| match part {
        UserRef::Id(_) => None,
        UserRef::Name { input, .. } => Some(*input),
    })
}
