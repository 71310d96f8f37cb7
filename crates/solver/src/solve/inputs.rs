//! The keys of an operation's inputs: by what they are made by, and by what is in them.

use kiln_graph::{CopyAction, Op};
use kiln_image::view::MergedView;
use kiln_image::{Key, KeyHasher};
use kiln_store::Store;

use crate::keys::{InputKeys, KeyError};
use crate::value::{LocalTree, Snapshot, Value};

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
pub(super) struct ByContent<'r> {
    pub(super) op: &'r Op,
    pub(super) store: &'r Store,
    pub(super) values: Vec<Value>,
}

impl InputKeys for ByContent<'_> {
    fn whole(&self, input: usize) -> Option<Key> {
        self.values[input]
            .tree(self.op.inputs[input].output)
            .map(Snapshot::content_key)
    }

    fn selected(&self, input: usize, copy: &CopyAction) -> Result<Option<Key>, KeyError> {
        match &self.values[input] {
            Value::Local(local) => local_selection(local, copy).map(Some),
            Value::Trees(_) => {
                let Some(tree) = self.values[input].tree(self.op.inputs[input].output) else {
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
