//! Remote caches: read before a step is executed, written after the build. A cache that is lost, stale or lying costs a
//! note and never a build.

use std::collections::{BTreeSet, HashMap};
use std::num::NonZero;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use kiln_export::{
    CacheContent, CacheForm, CacheFound, CacheLayer, CachePlace, CacheSource, ExportError,
    Unwatched,
};
use kiln_graph::{OpKind, SourceOp};
use kiln_image::cache_config::{INLINE, KeptRecord, KilnRecords};
use kiln_image::{
    ContentId, Descriptor, DiffId, Distant, ImageConfig, Key, Layer, LayerId, LayerIndex, Origin,
    Platform,
};
use kiln_progress::{Event, Sink, VertexId};
use kiln_solver::{Kept, Promise, Snapshot, SourceError, semantics};
use kiln_store::{Lease, StoreError};

use crate::bringing::pinned;
use crate::outputs::{Outcome, Planned};
use crate::rows::{Row, Rows};
use crate::{BuildError, CancelFlag, Engine};

/// Where a build's cache goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheTo {
    /// Into the config of the image.
    Inline,
    /// To a place of its own.
    Place {
        /// Where, and how it looks.
        form: CacheForm,
        /// All steps, not only those whose layers are the result's.
        max: bool,
        /// A failure is told, and no more.
        ignore_error: bool,
    },
}

/// The caches that a build reads.
pub(crate) struct Caches<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) from: &'a [CacheSource],
    pub(crate) platforms: &'a [Platform],
    pub(crate) cancel: &'a CancelFlag,
    pub(crate) lease: &'a Lease,
    pub(crate) sink: &'a dyn Sink,
    /// The number of the first row: there is one for each cache.
    pub(crate) first_row: u32,
    pub(crate) read: OnceLock<Vec<Cache>>,
}

/// One that was read.
pub(crate) struct Cache {
    name: String,
    layers: Vec<Arc<Distant>>,
    /// Where the indexes of layers are, by the layers' tars.
    indexes: HashMap<DiffId, Descriptor>,
    origin: Origin,
    records: Vec<KeptRecord>,
    by_key: HashMap<Key, usize>,
    /// It promised what it does not have.
    lost: AtomicBool,
}

impl Cache {
    fn new(name: String, found: CacheFound) -> Self {
        let mut indexes = HashMap::new();
        let layers = found.records.layers.into_iter().filter_map(|layer| {
            indexes.extend(layer.index.map(|index| (layer.diff, index)));
            Some(Arc::new(Distant {
                diff: layer.diff,
                content: Some(layer.content),
                blob: layer.blob?,
                created: layer.created,
                clamp: layer.clamp,
                origin: found.origin.clone(),
            }))
        });
        let layers = layers.collect();
        let records = found.records.records;
        let keys = records.iter().enumerate();
        let by_key = keys
            .flat_map(|(at, record)| record.keys.iter().map(move |key| (*key, at)))
            .collect();
        Self {
            name,
            layers,
            indexes,
            origin: found.origin,
            records,
            by_key,
            lost: AtomicBool::new(false),
        }
    }

    fn has(&self, distant: &Arc<Distant>) -> bool {
        self.layers.iter().any(|layer| Arc::ptr_eq(layer, distant))
    }
}

impl Caches<'_> {
    /// Reads all caches, when they are first asked for.
    fn all(&self) -> &[Cache] {
        self.read.get_or_init(|| {
            let numbered = (self.first_row..).zip(self.from);
            numbered
                .filter_map(|(row, from)| self.read_one(VertexId(row), from))
                .collect()
        })
    }

    fn read_one(&self, id: VertexId, from: &CacheSource) -> Option<Cache> {
        let name = match from {
            CacheSource::Registry(name) => name.to_string(),
            CacheSource::Folder { folder, .. } => folder.display().to_string(),
        };
        let title = format!("importing cache manifest from {name}");
        self.sink.emit(Event::Vertex { id, title });
        let at = SystemTime::now();
        self.sink.emit(Event::Started { id, at });
        let row = Row {
            sink: self.sink,
            id,
        };
        let remote = self.engine.remote(self.cancel, &row);
        let found = remote.read_cache(from, &semantics(), self.platforms);
        let at = SystemTime::now();
        self.sink.emit(Event::Finished { id, at });
        match found {
            Ok(found) => Some(Cache::new(name, found)),
            Err(why) => {
                let text = format!("cache {name} is not used: {why}");
                self.sink.emit(Event::Note { text });
                None
            }
        }
    }

    /// What a cache has under a key.
    pub(crate) fn remembered(&self, key: Key) -> Option<Promise> {
        if self.from.is_empty() {
            return None;
        }
        let caches = self.all().iter();
        caches
            .filter(|cache| !cache.lost.load(Ordering::Acquire))
            .find_map(|cache| {
                let record = &cache.records[*cache.by_key.get(&key)?];
                let stack = |layers: &Vec<usize>| {
                    let layers = layers.iter().map(|at| Arc::clone(&cache.layers[*at]));
                    self.here_or_there(layers)
                };
                Some(Promise {
                    outputs: record.outputs.iter().map(stack).collect(),
                    keys: record.keys.iter().copied().collect(),
                    took: std::time::Duration::from_millis(record.took),
                })
            })
    }

    /// Layers, taken from the store where it has them.
    pub(crate) fn here_or_there(&self, layers: impl Iterator<Item = Arc<Distant>>) -> Vec<Layer> {
        layers
            .map(|distant| match self.here(distant.diff) {
                // What cannot be read is fetched.
                Ok(Some(here)) => here,
                _ => Layer::Distant(distant),
            })
            .collect()
    }

    /// What a layer of an image holds, if a cache knows that: then the image need not be here to find what stands on it.
    pub(crate) fn content_of(&self, diff: DiffId) -> Option<ContentId> {
        if self.from.is_empty() {
            return None;
        }
        let known = self.all().iter().flat_map(|cache| &cache.layers);
        known
            .filter(|layer| layer.diff == diff)
            .find_map(|layer| layer.content)
    }

    /// What is in a layer that is elsewhere, if the store or a cache knows that.
    pub(crate) fn index(&self, layer: &Distant) -> Option<Arc<LayerIndex>> {
        let store = &self.engine.store;
        if let Some(known) = store.known_index(layer.diff) {
            return Some(known);
        }
        if self.from.is_empty() {
            return None;
        }
        let mut caches = self.all().iter();
        let found = caches.find_map(|cache| {
            let named = cache.indexes.get(&layer.diff)?;
            let remote = self.engine.remote(self.cancel, &Unwatched);
            let index = remote.read_index(&cache.origin, named).ok()?;
            (layer.content == Some(index.content_id())).then_some(index)
        })?;
        Some(store.know_index(layer.diff, found))
    }

    fn here(&self, diff: DiffId) -> Result<Option<Layer>, StoreError> {
        let store = &self.engine.store;
        let Some(id) = store.layer_by_diff(diff)? else {
            return Ok(None);
        };
        store.protect(self.lease, &[id])?;
        let info = store.layer(id)?;
        Ok(info.map(|info| Layer::Here(id, info.content_id)))
    }

    /// Brings what a cache promised.
    pub(crate) fn bring(
        &self,
        promise: &Promise,
        row: &Row<'_>,
    ) -> Result<Vec<Snapshot>, SourceError> {
        let mut outputs = promise.outputs.clone();
        let mut all: Vec<&mut Layer> = outputs.iter_mut().flatten().collect();
        let brought = self.bring_layers(&mut all, row);
        let gone = |message: String| SourceError {
            message,
            hint: None,
            canceled: self.cancel.is_set() || self.engine.worker.is_canceled(),
        };
        brought.map_err(|error| gone(error.message))?;
        let outputs = outputs.iter().map(|layers| Snapshot::here(layers));
        outputs
            .collect::<Option<_>>()
            .ok_or_else(|| gone("a layer is gone again".to_owned()))
    }

    /// Puts layers of the store in the place of those that are elsewhere.
    fn bring_layers(&self, layers: &mut [&mut Layer], row: &Row<'_>) -> Result<(), BuildError> {
        let mut distant: Vec<Arc<Distant>> = Vec::new();
        for layer in &*layers {
            if let Layer::Distant(wanted) = layer
                && distant.iter().all(|known| known.diff != wanted.diff)
            {
                distant.push(Arc::clone(wanted));
            }
        }
        let remote = self.engine.remote(self.cancel, row);
        let ids = remote.bring(&distant, self.lease).inspect_err(|error| {
            if !error.is_canceled() {
                self.lose(&distant, &error.to_string());
            }
        })?;
        let ids: HashMap<DiffId, LayerId> = distant.iter().map(|it| it.diff).zip(ids).collect();
        for layer in layers {
            let Layer::Distant(wanted) = &**layer else {
                continue;
            };
            let id = ids[&wanted.diff];
            if let Some(info) = self.engine.store.layer(id)? {
                **layer = Layer::Here(id, info.content_id);
            }
        }
        Ok(())
    }

    /// No cache is asked any more that has one of these layers; whether there was one.
    fn lose(&self, distant: &[Arc<Distant>], why: &str) -> bool {
        let mut any = false;
        for cache in self.read.get().into_iter().flatten() {
            if distant.iter().any(|it| cache.has(it)) {
                any = true;
                if !cache.lost.swap(true, Ordering::AcqRel) {
                    let text = format!("cache {} is not used any more: {why}", cache.name);
                    self.sink.emit(Event::Note { text });
                }
            }
        }
        any
    }

    /// Sees to it that layers of the result that are elsewhere can be had when they are pushed, and brings those whose
    /// times are not as wanted. `false` when a cache turned out to be lost: the build must be looked at again.
    pub(crate) fn secure(
        &self,
        layers: &mut [Layer],
        below: usize,
        clamp: Option<i64>,
        row: &Row<'_>,
    ) -> Result<bool, BuildError> {
        let mut unfit: Vec<&mut Layer> = layers
            .iter_mut()
            .skip(below)
            .filter(|layer| match layer {
                Layer::Distant(distant) => clamp.is_some() && distant.clamp != clamp,
                Layer::Here(..) => false,
            })
            .collect();
        if !unfit.is_empty()
            && let Err(error) = self.bring_layers(&mut unfit, row)
        {
            return if error.canceled {
                Err(error)
            } else {
                Ok(false)
            };
        }
        for layer in &*layers {
            let Layer::Distant(distant) = layer else {
                continue;
            };
            let one = std::slice::from_ref(distant);
            let known = self.read.get().into_iter().flatten();
            if !known.into_iter().any(|cache| cache.has(distant)) {
                continue;
            }
            let why = match self.engine.remote(self.cancel, &Unwatched).has(distant) {
                Ok(true) => continue,
                Ok(false) => format!("layer {} is not there", distant.blob.digest),
                Err(error) if error.is_canceled() => return Err(error.into()),
                Err(error) => error.to_string(),
            };
            if self.lose(one, &why) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

impl Engine {
    /// What is kept of a build in caches: all that it knows, or what has only layers of `results`.
    fn cache_content(
        &self,
        outcome: &Outcome<'_>,
        kept: &[Kept],
        results: Option<&[Planned]>,
    ) -> CacheContent {
        let of_bases = self.base_layers(outcome);
        let clamp = outcome.results[0].plan.source_date_epoch;
        let name = |layer: &Layer| match layer {
            Layer::Here(id, _) => (Some(*id), None),
            Layer::Distant(distant) => (None, Some(distant.diff)),
        };
        let results: Option<BTreeSet<_>> = results.map(|results| {
            let layers = results.iter().flat_map(|result| &result.layers);
            layers.map(name).collect()
        });
        let mut places: HashMap<_, usize> = HashMap::new();
        let mut content = CacheContent {
            semantics: semantics(),
            layers: Vec::new(),
            records: Vec::new(),
        };
        for kept in kept {
            let mut layers = kept.outputs.iter().flatten();
            let known = layers.clone().all(|layer| match layer {
                Layer::Here(..) => true,
                Layer::Distant(distant) => distant.content.is_some(),
            });
            let wanted = results.as_ref().is_none_or(|results| {
                kept.of_target && layers.all(|layer| results.contains(&name(layer)))
            });
            if !known || !wanted {
                continue;
            }
            let mut place = |layer: &Layer| {
                *places.entry(name(layer)).or_insert_with(|| {
                    let base = matches!(layer, Layer::Here(id, _) if of_bases.contains(id));
                    content.layers.push(CacheLayer {
                        layer: layer.clone(),
                        clamp: clamp.filter(|_| !base),
                    });
                    content.layers.len() - 1
                })
            };
            let outputs = kept.outputs.iter();
            let outputs = outputs.map(|layers| layers.iter().map(&mut place).collect());
            content.records.push(KeptRecord {
                keys: kept.keys.clone(),
                outputs: outputs.collect(),
                took: u64::try_from(kept.took.as_millis()).unwrap_or(u64::MAX),
            });
        }
        content
    }

    /// The layers of the images that a build stands on.
    fn base_layers(&self, outcome: &Outcome<'_>) -> BTreeSet<LayerId> {
        let mut layers = BTreeSet::new();
        for (_, op) in outcome.graph.ops() {
            if let OpKind::Source(
                SourceOp::Image { reference } | SourceOp::OciLayout { reference, .. },
            ) = &op.kind
                && let Ok(digest) = pinned(reference)
                && let Ok(Some(image)) = self.store.image(digest)
            {
                layers.extend(image.info.layers);
            }
        }
        layers
    }

    /// The config of the image: with the build's records if they are to be in it, and never with those of its base.
    pub(crate) fn config(
        &self,
        outcome: &Outcome<'_>,
        result: &Planned,
        kept: &[Kept],
    ) -> Result<ImageConfig, BuildError> {
        let mut config = result.plan.config.clone();
        config.extra.remove(INLINE);
        if outcome.request.cache_to.contains(&CacheTo::Inline) {
            let content = self.cache_content(outcome, kept, Some(std::slice::from_ref(result)));
            let remote = self.remote(outcome.cancel, &Unwatched);
            let records: KilnRecords = remote.inline_cache(&content)?;
            let value = serde_json::to_value(records)
                .map_err(|error| BuildError::new(format!("inline cache: {error}")))?;
            config.extra.insert(INLINE.to_owned(), value);
        }
        Ok(config)
    }

    /// Writes the caches that have places of their own.
    pub(crate) fn put_caches(
        &self,
        outcome: &Outcome<'_>,
        kept: &[Kept],
        rows: &mut Rows<'_>,
    ) -> Result<(), BuildError> {
        let cores = NonZero::new(outcome.request.cores).unwrap_or(NonZero::<usize>::MIN);
        for to in &outcome.request.cache_to {
            let CacheTo::Place {
                form,
                max,
                ignore_error,
            } = to
            else {
                continue;
            };
            let name = match &form.place {
                CachePlace::Registry(name) => name.to_string(),
                CachePlace::Folder { folder, .. } => folder.display().to_string(),
            };
            let content = self.cache_content(outcome, kept, (!max).then_some(&outcome.results));
            let written = rows.work(&format!("exporting cache to {name}"), |row| {
                self.cancelable(outcome.cancel, || {
                    let remote = self.remote(outcome.cancel, row);
                    let written = remote.write_cache(&content, form, cores);
                    written.map_err(|error: ExportError| {
                        let mut failed = BuildError::from(error);
                        failed.message =
                            format!("cannot write the cache {name}: {}", failed.message);
                        failed
                    })
                })
            });
            match written {
                Err(error) if *ignore_error && !error.canceled => {
                    let text = error.message;
                    rows.sink.emit(Event::Note { text });
                }
                other => other.map(drop)?,
            }
        }
        Ok(())
    }
}
