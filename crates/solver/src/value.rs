//! What flows along the edges of a graph while it is solved.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_graph::CopyAction;
use kiln_image::view::MergedView;
use kiln_image::{ContentId, Entry, Key, KeyHasher, Kind, Layer, LayerId, LayerIndex};
use kiln_source::{Scan, StatCache, UNHASHED};
pub(crate) use kiln_worker::Outlined;

use crate::keys::KeyError;

/// A stack of sealed layers, lowest first: the result of a step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// The layers.
    pub layers: Vec<LayerId>,
    /// The outcome of each layer, in the same order.
    pub contents: Vec<ContentId>,
}

impl Snapshot {
    /// The identity of the whole stack's outcome, whatever steps it came from.
    pub fn content_key(&self) -> Key {
        content_key(&self.contents)
    }

    /// A stack of layers that are all in the store.
    pub fn here(layers: &[Layer]) -> Option<Self> {
        let mut snapshot = Self::default();
        for layer in layers {
            let Layer::Here(id, content) = layer else {
                return None;
            };
            snapshot.layers.push(*id);
            snapshot.contents.push(*content);
        }
        Some(snapshot)
    }

    /// This stack with others on top.
    #[must_use]
    pub fn stacked(&self, above: &Self) -> Self {
        let mut stack = self.clone();
        stack.layers.extend(&above.layers);
        stack.contents.extend(&above.contents);
        stack
    }
}

fn content_key(contents: &[ContentId]) -> Key {
    let mut hasher = KeyHasher::new("snapshot", 1);
    for content in contents {
        hasher.part("layer", content.as_bytes());
    }
    hasher.finish()
}

/// The result of an operation as far as it is known without its layers being here. They are brought when somebody
/// needs them.
#[derive(Debug, Clone, Default)]
pub struct Promise {
    /// For each output the layers, lowest first.
    pub outputs: Vec<Vec<Layer>>,
    /// The keys under which a remote cache has it; none for an image.
    pub keys: Vec<Key>,
    /// How long the step took where it was executed.
    pub took: Duration,
}

impl Promise {
    /// The identity of an output's outcome, if that is known of all its layers.
    pub(crate) fn content_key(&self, output: u32) -> Option<Key> {
        let contents: Option<Vec<ContentId>> = self
            .outputs
            .get(output as usize)?
            .iter()
            .map(|layer| match layer {
                Layer::Here(_, content) => Some(*content),
                Layer::Distant(distant) => distant.content,
            })
            .collect();
        Some(content_key(&contents?))
    }

    /// The outputs, if nothing has to be brought.
    pub(crate) fn here(&self) -> Option<Vec<Snapshot>> {
        self.outputs
            .iter()
            .map(|layers| Snapshot::here(layers))
            .collect()
    }
}

impl From<&Snapshot> for Vec<Layer> {
    fn from(snapshot: &Snapshot) -> Self {
        let pairs = snapshot.layers.iter().zip(&snapshot.contents);
        pairs
            .map(|(id, content)| Layer::Here(*id, *content))
            .collect()
    }
}

/// A local context as it was found, with what is remembered of its files.
pub struct Context {
    /// What was found.
    pub scan: Scan,
    /// The digests known from earlier builds, and those learnt in this one.
    pub cache: StatCache,
    /// Where they are kept.
    pub cache_file: PathBuf,
}

/// A local context. Files get their digests when a copy selects them.
#[derive(Clone)]
pub(crate) struct LocalTree {
    name: Arc<str>,
    context: Arc<Mutex<Context>>,
}

impl LocalTree {
    pub(crate) fn new(name: impl Into<Arc<str>>, context: Context) -> Self {
        Self {
            name: name.into(),
            context: Arc::new(Mutex::new(context)),
        }
    }

    /// The same error, about this context.
    pub(crate) fn named(&self, error: KeyError) -> KeyError {
        KeyError {
            context: Some(self.name.to_string()),
            ..error
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Context> {
        self.context.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The context in which everything that `copy` selects has its digest.
    pub(crate) fn index_for(&self, copy: &CopyAction) -> Result<Arc<LayerIndex>, KeyError> {
        let Context { scan, cache, .. } = &mut *self.lock();
        let index = scan.seen();
        let listing = MergedView::new([Arc::clone(&index)]);
        // Nothing else is looked for, and by its position: the paths of large contexts would take much memory.
        let open = |entry: &&Entry| {
            entry.is_dir()
                || matches!(
                    entry.kind,
                    Kind::File {
                        digest: UNHASHED,
                        ..
                    }
                )
        };
        let mut selected: Vec<usize> = kiln_fileop::selection(copy, &listing)
            .map_err(|error| self.named(error.into()))?
            .into_iter()
            .filter(open)
            .filter_map(|entry| index.number_of(entry))
            .collect();
        selected.sort_unstable();
        selected.dedup();
        // Else the scan would have to copy its index.
        drop((listing, index));
        Ok(scan.index_at(&selected, cache)?)
    }
}

/// A tree of which some layers are elsewhere, and only the entries matter.
#[derive(Clone)]
pub(crate) struct Outline {
    /// What was promised.
    pub(crate) of: Arc<Promise>,
    /// The layers, lowest first.
    pub(crate) layers: Vec<Outlined>,
}

/// The result of an operation.
#[derive(Clone)]
pub(crate) enum Value {
    /// One snapshot per output.
    Trees(Vec<Snapshot>),
    /// A local context.
    Local(LocalTree),
    /// What is known of a tree that is elsewhere; made for the operation that is about to be executed.
    Outline(Outline),
}

impl Value {
    /// The snapshot of an output; the empty one for a context, which has none.
    pub(crate) fn tree(&self, output: u32) -> Option<&Snapshot> {
        match self {
            Self::Trees(trees) => trees.get(output as usize),
            Self::Local(_) | Self::Outline(_) => None,
        }
    }
}
