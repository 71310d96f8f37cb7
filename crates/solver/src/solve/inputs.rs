//! The keys of an operation's inputs: by what they are made by, and by what is in them.

use std::cell::Cell;
use std::sync::Arc;

use kiln_graph::{CopyAction, Edge, Op, OpId, OpKind, SourceOp};
use kiln_image::view::MergedView;
use kiln_image::{Key, KeyHasher};
use kiln_store::Store;

use super::{Run, State};
use crate::SolveError;
use crate::keys::{self, InputKeys, KeyError};
use crate::value::{LocalTree, Promise, Snapshot, Value};

/// Keys of inputs by definition: what they are made by.
pub(super) struct ByDefinition<'r> {
    pub(super) op: &'r Op,
    pub(super) keys: Vec<Option<Key>>,
    pub(super) values: Vec<Option<Value>>,
}

impl InputKeys for ByDefinition<'_> {
    fn whole(&self, input: usize) -> Option<Key> {
        self.keys[input].map(|key| edge_key(key, self.op.inputs[input].output))
    }

    fn selected(&self, input: usize, copy: &CopyAction) -> Result<Option<Key>, KeyError> {
        match &self.values[input] {
            Some(Value::Local(local)) => local_selection(local, copy).map(Some),
            _ => Ok(None),
        }
    }
}

/// Keys of inputs by what is in them.
struct ByContent<'r> {
    op: &'r Op,
    store: &'r Store,
    values: Vec<Known>,
    /// Set when it turned out that something has to be brought first.
    lacking: Cell<bool>,
}

/// What is known of an input.
enum Known {
    Value(Value),
    Promise(Arc<Promise>),
}

impl InputKeys for ByContent<'_> {
    fn whole(&self, input: usize) -> Option<Key> {
        let output = self.op.inputs[input].output;
        let key = match &self.values[input] {
            Known::Value(value) => value.tree(output).map(Snapshot::content_key),
            Known::Promise(promise) => promise.content_key(output),
        };
        self.lacking.set(self.lacking.get() || key.is_none());
        key
    }

    fn selected(&self, input: usize, copy: &CopyAction) -> Result<Option<Key>, KeyError> {
        match &self.values[input] {
            Known::Promise(_) => {
                self.lacking.set(true);
                Ok(None)
            }
            Known::Value(Value::Local(local)) => local_selection(local, copy).map(Some),
            Known::Value(value) => {
                let Some(tree) = value.tree(self.op.inputs[input].output) else {
                    return Ok(None);
                };
                let indexes: Result<Vec<_>, _> = tree
                    .layers
                    .iter()
                    .map(|layer| self.store.load_index(*layer))
                    .collect();
                // A layer that cannot be read is found out about, and named, when the step is executed.
                let Ok(indexes) = indexes else {
                    return Ok(None);
                };
                selection_key(copy, &MergedView::new(indexes)).map(Some)
            }
        }
    }
}

impl Run<'_, '_> {
    pub(super) fn input_trees(&self, op: &Op) -> Vec<Snapshot> {
        op.inputs
            .iter()
            .map(|edge| match &self.states[edge.op.0] {
                State::Done(value) => value.tree(edge.output).cloned().unwrap_or_default(),
                _ => unreachable!("asked only when the inputs are done"),
            })
            .collect()
    }

    /// The definition key; `None` when a context below has not been scanned.
    pub(super) fn definition(&mut self, id: OpId) -> Result<Option<Key>, SolveError> {
        if let Some((key, _)) = &self.definitions[id.0] {
            return Ok(Some(*key));
        }
        let op = self.graph.op(id);
        let mut keys = Vec::with_capacity(op.inputs.len());
        let mut values = Vec::with_capacity(op.inputs.len());
        for edge in &op.inputs {
            let local = matches!(
                self.graph.op(edge.op).kind,
                OpKind::Source(SourceOp::Local { .. })
            );
            let value = match &self.states[edge.op.0] {
                State::Done(value @ Value::Local(_)) => Some(value.clone()),
                _ => None,
            };
            if local && value.is_none() {
                return Ok(None);
            }
            let key = if local {
                None
            } else {
                self.definition(edge.op)?
            };
            if !local && key.is_none() {
                return Ok(None);
            }
            keys.push(key);
            values.push(value);
        }
        let identity = self.identities[id.0].as_deref();
        let parts = keys::parts(op, identity, &ByDefinition { op, keys, values })
            .map_err(|error| SolveError::key(&op.place, error))?;
        let Some(parts) = parts else { return Ok(None) };
        let key = parts.key();
        self.definitions[id.0] = Some((key, parts));
        Ok(Some(key))
    }

    /// The content key of an operation whose inputs are done.
    pub(super) fn content(&mut self, id: OpId) -> Result<Key, SolveError> {
        let key = self.content_if_known(id)?;
        Ok(key.expect("all inputs are done, so all their keys are known"))
    }

    /// The content key; `None` when it cannot be told without layers that are not here.
    pub(super) fn content_if_known(&mut self, id: OpId) -> Result<Option<Key>, SolveError> {
        if let Some((key, _)) = &self.contents[id.0] {
            return Ok(Some(*key));
        }
        let op = self.graph.op(id);
        let known = |edge: &Edge| match &self.states[edge.op.0] {
            State::Done(value) => Known::Value(value.clone()),
            State::Promised(promise) => Known::Promise(Arc::clone(promise)),
            _ => unreachable!("asked only when the inputs are known"),
        };
        let inputs = ByContent {
            op,
            store: self.solver.store,
            values: op.inputs.iter().map(known).collect(),
            lacking: Cell::new(false),
        };
        let parts =
            keys::parts(op, None, &inputs).map_err(|error| SolveError::key(&op.place, error))?;
        let Some(parts) = parts.filter(|_| !inputs.lacking.get()) else {
            return Ok(None);
        };
        let key = KeyHasher::new("content", 1)
            .part("key", parts.key().as_bytes())
            .finish();
        self.contents[id.0] = Some((key, parts));
        Ok(Some(key))
    }

    /// What the inputs of an operation are; `None` when one of them is elsewhere.
    pub(super) fn input_values(&self, op: &Op) -> Option<Vec<Value>> {
        op.inputs
            .iter()
            .map(|edge| match &self.states[edge.op.0] {
                State::Done(value) => Some(value.clone()),
                _ => None,
            })
            .collect()
    }
}

pub(super) fn edge_key(key: Key, output: u32) -> Key {
    let mut hasher = KeyHasher::new("edge", 1);
    hasher
        .part("key", key.as_bytes())
        .part("output", &output.to_le_bytes());
    hasher.finish()
}

fn selection_key(copy: &CopyAction, view: &MergedView) -> Result<Key, KeyError> {
    let mut hasher = KeyHasher::new("selection", 1);
    kiln_fileop::selection_key(copy, view, &mut hasher)?;
    Ok(hasher.finish())
}

fn local_selection(local: &LocalTree, copy: &CopyAction) -> Result<Key, KeyError> {
    let index = local.index_for(copy)?;
    selection_key(copy, &MergedView::new([index])).map_err(|error| local.named(error))
}
