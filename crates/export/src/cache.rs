//! The build cache out to registries and folders, and in from there.
//!
//! What is written is an image manifest or an index of `BuildKit`'s form: it names the layers, so that registries keep
//! them, and a config of `BuildKit`'s media type. See [`kiln_image::cache_config`].

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use kiln_image::cache_config::{
    BUILDKIT_INLINE, CACHE_CONFIG, CacheConfig, INLINE, KeptRecord, KilnRecords, RecordedLayer,
};
use kiln_image::{
    Compression, ContentId, Descriptor, Digest, Document, ImageConfig, Index, Layer, Manifest,
    Origin, Platform, Reference, media_type, parse_manifest,
};

use crate::archive::{Archive, REF_NAME};
use crate::blobs::ReadAll;
use crate::cache_indexes::LAYER_INDEX;
use crate::commit::sha256;
use crate::packing::{Packer, descriptor, of_family};
use crate::pull::{Stop, several, transfer_error};
use crate::{ExportError, Packing, Place, Remote, digest_layer};

/// No cache config is larger.
const MOST_CONFIG: u64 = 64 << 20;
/// Indexes may be in indexes, but not deeper than this.
const DEPTH: usize = 4;

/// Where a cache goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CachePlace {
    /// Under a name in a registry.
    Registry(Reference),
    /// Into a folder in the OCI's layout.
    Folder {
        /// Which.
        folder: PathBuf,
        /// The name in its index.
        tag: String,
        /// What else is in it goes.
        reset: bool,
    },
}

/// A cache to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheForm {
    /// Where to.
    pub place: CachePlace,
    /// The form of the layers.
    pub packing: Packing,
    /// An image manifest, not an index.
    pub image_manifest: bool,
}

/// Where a cache is looked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CacheSource {
    /// Under a name in a registry: a cache, or an image that has one in its config.
    Registry(Reference),
    /// In a folder in the OCI's layout.
    Folder {
        /// Which.
        folder: PathBuf,
        /// The name in its index, or `@` and a digest.
        wanted: String,
    },
}

/// A layer of a cache.
#[derive(Debug, Clone)]
pub struct CacheLayer {
    /// Which.
    pub layer: Layer,
    /// The latest time in its tar.
    pub clamp: Option<i64>,
}

/// What a cache holds: layers, and records that refer to them by their places.
#[derive(Debug, Clone)]
pub struct CacheContent {
    /// What the keys mean.
    pub semantics: String,
    /// The layers.
    pub layers: Vec<CacheLayer>,
    /// The records.
    pub records: Vec<KeptRecord>,
}

/// A cache that was read.
#[derive(Debug, Clone)]
pub struct CacheFound {
    /// Who has its layers.
    pub origin: Origin,
    /// What it says; each layer has its blob.
    pub records: KilnRecords,
}

impl Remote<'_> {
    /// Writes a cache; gives the digest of its manifest or index.
    ///
    /// # Errors
    /// When a layer cannot be read or had, or the place refuses.
    pub fn write_cache(
        &self,
        cache: &CacheContent,
        form: &CacheForm,
        cores: NonZero<usize>,
    ) -> Result<Digest, ExportError> {
        let docker = form.packing.docker_types.unwrap_or(false);
        match &form.place {
            CachePlace::Registry(to) => {
                let stop = Stop::new(self);
                let push = self.pushing(to, docker, &form.packing, cores)?;
                let blobs = several(cache.layers.len(), &stop, |at| {
                    let CacheLayer { layer, clamp } = &cache.layers[at];
                    match layer {
                        Layer::Here(id, _) => {
                            let (diff, _) = digest_layer(self.store, self.worker, *id, *clamp)?;
                            push.own_layer(*id, diff, &stop)
                        }
                        Layer::Distant(distant) => push.distant(distant, &stop),
                    }
                })?;
                let packed = self.packed_indexes(cache, &blobs);
                for (named, bytes) in packed.iter().flatten() {
                    push.bytes(named, bytes, &stop)?;
                }
                let (config, blobs) = self.config(cache, blobs, &packed)?;
                let named = Descriptor::new(CACHE_CONFIG, sha256(&config), config.len() as u64);
                push.bytes(&named, &config, &stop)?;
                let (kind, manifest) = document(form.image_manifest, docker, named, blobs);
                Ok(self
                    .client
                    .push_manifest(to, kind, &manifest, stop.as_ref())?)
            }
            CachePlace::Folder { folder, tag, reset } => {
                let stop = Stop::new(self);
                let mut archive = Archive::new(Place::Folder(folder))?;
                let packer = Packer {
                    store: self.store,
                    worker: self.worker,
                    watch: self.watch,
                    packing: &form.packing,
                    cores,
                };
                let mut blobs = Vec::new();
                for CacheLayer { layer, clamp } in &cache.layers {
                    let (blob, file) = match layer {
                        Layer::Here(id, _) => {
                            let (diff, _) = digest_layer(self.store, self.worker, *id, *clamp)?;
                            let (blob, file) = packer.pack(*id, diff)?;
                            if !blob.present {
                                self.store.set_blob(&blob)?;
                            }
                            (descriptor(&blob, docker), file)
                        }
                        Layer::Distant(distant) => {
                            let file = self.spool(distant, stop.clone())?;
                            (of_family(&distant.blob, docker), file)
                        }
                    };
                    archive.stream(blob.digest, blob.size, |mut out| {
                        let mut from = ReadAll::new(&file);
                        let copied = io::copy(&mut from, &mut out);
                        copied.map_err(ExportError::io("cache")).map(drop)
                    })?;
                    blobs.push(blob);
                }
                let packed = self.packed_indexes(cache, &blobs);
                for (named, bytes) in packed.iter().flatten() {
                    archive.blob(named.digest, bytes)?;
                }
                let (config, blobs) = self.config(cache, blobs, &packed)?;
                let named = Descriptor::new(CACHE_CONFIG, sha256(&config), config.len() as u64);
                archive.blob(named.digest, &config)?;
                let mut used: BTreeSet<Digest> = blobs.iter().map(|blob| blob.digest).collect();
                used.insert(named.digest);
                let (kind, manifest) = document(form.image_manifest, docker, named, blobs);
                let digest = sha256(&manifest);
                used.insert(digest);
                archive.blob(digest, &manifest)?;
                let mut index = if *reset { Vec::new() } else { archive.index()? };
                let name = BTreeMap::from([(REF_NAME.to_owned(), tag.clone())]);
                let name = Some(name);
                index.retain(|known| known.annotations != name);
                index.push(Descriptor {
                    annotations: name,
                    ..Descriptor::new(kind, digest, manifest.len() as u64)
                });
                archive.layout(index)?;
                if *reset {
                    keep_only(folder, &used)?;
                }
                Ok(digest)
            }
        }
    }

    /// The records for the config of an image that has all these layers.
    ///
    /// # Errors
    /// When the store fails.
    pub fn inline_cache(&self, cache: &CacheContent) -> Result<KilnRecords, ExportError> {
        self.records(cache, None)
    }

    /// For each layer its index, if it is to be in the cache.
    fn packed_indexes(
        &self,
        cache: &CacheContent,
        blobs: &[Descriptor],
    ) -> Vec<Option<(Descriptor, Vec<u8>)>> {
        let layers = cache.layers.iter().zip(blobs);
        let packed = layers.map(|(layer, blob)| {
            let bytes = self.packed_index(layer, blob)?;
            let named = Descriptor::new(LAYER_INDEX, sha256(&bytes), bytes.len() as u64);
            Some((named, bytes))
        });
        packed.collect()
    }

    /// The cache's config, and all blobs that its manifest must name.
    fn config(
        &self,
        cache: &CacheContent,
        mut blobs: Vec<Descriptor>,
        packed: &[Option<(Descriptor, Vec<u8>)>],
    ) -> Result<(Vec<u8>, Vec<Descriptor>), ExportError> {
        let mut records = self.records(cache, Some(&blobs))?;
        for (layer, packed) in records.layers.iter_mut().zip(packed) {
            layer.index = packed.as_ref().map(|(named, _)| named.clone());
            blobs.extend(layer.index.clone());
        }
        Ok((CacheConfig::to_bytes(records), blobs))
    }

    fn records(
        &self,
        cache: &CacheContent,
        blobs: Option<&[Descriptor]>,
    ) -> Result<KilnRecords, ExportError> {
        let mut records = KilnRecords::new(&cache.semantics);
        for (at, CacheLayer { layer, clamp }) in cache.layers.iter().enumerate() {
            let blob = blobs.map(|blobs| blobs[at].clone());
            records.layers.push(match layer {
                Layer::Here(id, _) => {
                    let info = self.store.layer(*id)?;
                    let (diff, _) = digest_layer(self.store, self.worker, *id, *clamp)?;
                    RecordedLayer {
                        diff,
                        content: self.index_elsewhere(*id, diff)?.content_id(),
                        created: info.and_then(|info| info.created.try_into().ok()),
                        clamp: *clamp,
                        index: None,
                        blob,
                    }
                }
                Layer::Distant(distant) => RecordedLayer {
                    diff: distant.diff,
                    // Records with layers of which nobody knows what they hold are left out by the caller.
                    content: distant.content.unwrap_or(ContentId::new([0; 32])),
                    created: distant.created,
                    clamp: distant.clamp,
                    index: None,
                    blob,
                },
            });
        }
        records.records.clone_from(&cache.records);
        Ok(records)
    }

    /// Reads a cache: its documents, no layer.
    ///
    /// # Errors
    /// In words, when there is none or it is of no use.
    pub fn read_cache(
        &self,
        from: &CacheSource,
        semantics: &str,
        platforms: &[Platform],
    ) -> Result<CacheFound, String> {
        let reading = Reading {
            remote: self,
            from,
            platforms,
        };
        let (kind, bytes) = match from {
            CacheSource::Registry(name) => {
                let resolved = self.client.resolve(name, self.cancel.as_ref());
                let resolved = resolved.map_err(|error| error.to_string())?;
                (Some(resolved.media_type), resolved.bytes)
            }
            CacheSource::Folder { folder, wanted } => {
                let layout = self.layout(folder);
                let digest = match wanted.strip_prefix('@') {
                    Some(digest) => digest
                        .parse()
                        .map_err(|error| format!("digest {digest:?}: {error}"))?,
                    None => layout.tagged(wanted).map_err(|error| error.to_string())?,
                };
                let bytes = layout.blob(digest).map_err(|error| error.to_string())?;
                (None, bytes)
            }
        };
        let records = reading.document(kind.as_deref(), &bytes, semantics, 0)?;
        let origin = match from {
            CacheSource::Registry(name) => Origin::Registry(name.clone()),
            CacheSource::Folder { folder, .. } => Origin::Folder(folder.clone()),
        };
        Ok(CacheFound { origin, records })
    }
}

/// One cache that is read.
struct Reading<'a> {
    remote: &'a Remote<'a>,
    from: &'a CacheSource,
    platforms: &'a [Platform],
}

impl Reading<'_> {
    fn document(
        &self,
        kind: Option<&str>,
        bytes: &[u8],
        semantics: &str,
        depth: usize,
    ) -> Result<KilnRecords, String> {
        let document = parse_manifest(bytes, kind).map_err(|error| error.to_string())?;
        let is_cache = |named: &Descriptor| named.media_type == CACHE_CONFIG;
        let (config, layers) = match document {
            Document::Manifest(manifest) if is_cache(&manifest.config) => {
                (manifest.config, manifest.layers)
            }
            Document::Manifest(manifest) => return self.inline(&manifest, semantics),
            Document::Index(mut index) => match index.manifests.iter().position(is_cache) {
                Some(at) => (index.manifests.remove(at), index.manifests),
                None if depth < DEPTH => return self.images(&index, semantics, depth),
                None => return Err("too many indexes in indexes".to_owned()),
            },
        };
        let bytes = self.blob(&config)?;
        let mut records =
            CacheConfig::parse(&bytes, semantics).map_err(|error| error.to_string())?;
        let named: BTreeSet<Digest> = layers.iter().map(|layer| layer.digest).collect();
        for layer in &mut records.layers {
            let blob = layer.blob.as_mut().filter(|it| named.contains(&it.digest));
            let blob = blob.ok_or_else(|| format!("its layer {} is not named", layer.diff))?;
            layer.index.take_if(|it| !named.contains(&it.digest));
            // Who copies a cache may have changed the family of the types.
            if Compression::of_media_type(&blob.media_type).is_none() {
                return Err(format!("{} is no layer", blob.media_type));
            }
        }
        Ok(records)
    }

    /// The records in the images of an index, for all platforms that are built for.
    fn images(&self, index: &Index, semantics: &str, depth: usize) -> Result<KilnRecords, String> {
        let mut all = KilnRecords::new(semantics);
        let mut chosen: Vec<&Descriptor> = self
            .platforms
            .iter()
            .filter_map(|platform| index.select(platform))
            .collect();
        chosen.dedup();
        if chosen.is_empty() {
            let platforms: Vec<_> = self.platforms.iter().map(Platform::to_string).collect();
            let platforms = platforms.join(", ");
            return Err(format!(
                "it has neither a cache nor an image for {platforms}"
            ));
        }
        for named in chosen {
            let bytes = self.manifest(named)?;
            let found = self.document(None, &bytes, semantics, depth + 1)?;
            let below = all.layers.len();
            all.layers.extend(found.layers);
            all.records
                .extend(found.records.into_iter().map(|mut record| {
                    for at in record.outputs.iter_mut().flatten() {
                        *at += below;
                    }
                    record
                }));
        }
        Ok(all)
    }

    /// The records in the config of an image.
    fn inline(&self, manifest: &Manifest, semantics: &str) -> Result<KilnRecords, String> {
        if !media_type::is_config(&manifest.config.media_type) {
            let kind = &manifest.config.media_type;
            return Err(format!("neither a cache nor an image, but {kind}"));
        }
        let bytes = self.blob(&manifest.config)?;
        let config = ImageConfig::from_bytes(&bytes).map_err(|error| error.to_string())?;
        let Some(value) = config.extra.get(INLINE) else {
            return Err(if config.extra.contains_key(BUILDKIT_INLINE) {
                "another builder wrote it, and nothing in it is of use to Kiln".to_owned()
            } else {
                "the image has no cache in it".to_owned()
            });
        };
        let records: KilnRecords = serde_json::from_value(value.clone())
            .map_err(|error| format!("it cannot be read: {error}"))?;
        let mut records = records.checked(semantics).map_err(|it| it.to_string())?;
        let diffs = config.rootfs.diff_ids;
        for layer in &mut records.layers {
            let at = diffs.iter().position(|diff| *diff == layer.diff);
            let blob = at.and_then(|at| manifest.layers.get(at));
            let blob = blob.ok_or_else(|| format!("the image has no layer {}", layer.diff))?;
            layer.blob = Some(blob.clone());
        }
        Ok(records)
    }

    fn manifest(&self, named: &Descriptor) -> Result<Vec<u8>, String> {
        match self.from {
            CacheSource::Registry(name) => {
                let client = self.remote.client;
                let document = client.manifest(name, &named.digest, self.remote.cancel.as_ref());
                Ok(document.map_err(|error| error.to_string())?.bytes)
            }
            CacheSource::Folder { .. } => self.blob(named),
        }
    }

    fn blob(&self, named: &Descriptor) -> Result<Vec<u8>, String> {
        if named.size > MOST_CONFIG {
            return Err(format!("a document of it has {} bytes", named.size));
        }
        match self.from {
            CacheSource::Registry(name) => {
                let cancel = Arc::clone(self.remote.cancel);
                let opened = self
                    .remote
                    .client
                    .blob(name, named, &mut io::empty(), cancel);
                let mut reader = opened.map_err(|error| error.to_string())?;
                let mut bytes = Vec::new();
                io::copy(&mut reader, &mut bytes)
                    .map_err(|error| transfer_error(error).to_string())?;
                Ok(bytes)
            }
            CacheSource::Folder { folder, .. } => {
                let layout = self.remote.layout(folder);
                layout.blob(named.digest).map_err(|error| error.to_string())
            }
        }
    }
}

/// The document that names a cache's config and layers, with its media type.
fn document(
    image_manifest: bool,
    docker: bool,
    config: Descriptor,
    mut layers: Vec<Descriptor>,
) -> (&'static str, Vec<u8>) {
    let mut known = BTreeSet::new();
    layers.retain(|layer| known.insert(layer.digest));
    if image_manifest {
        let kind = media_type::OCI_MANIFEST;
        return (kind, Manifest::new(kind, config, layers).to_bytes());
    }
    let kind = if docker {
        media_type::DOCKER_LIST
    } else {
        media_type::OCI_INDEX
    };
    layers.push(config);
    (kind, Index::new(kind, layers).to_bytes())
}

/// Removes the blobs of a layout folder that are not used.
fn keep_only(folder: &Path, used: &BTreeSet<Digest>) -> Result<(), ExportError> {
    let blobs = folder.join("blobs/sha256");
    let failed = || ExportError::io(blobs.display().to_string());
    let used: BTreeSet<String> = used.iter().map(Digest::hex).collect();
    for entry in fs::read_dir(&blobs).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if !used.contains(&*entry.file_name().to_string_lossy()) {
            fs::remove_file(entry.path()).map_err(failed())?;
        }
    }
    Ok(())
}
