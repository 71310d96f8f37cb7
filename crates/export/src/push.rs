//! Images out, to registries. What the registry has, or can take from another of its repositories, is not moved; a layer
//! is compressed once, and its digest remembered.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZero;
use std::sync::Arc;

use kiln_image::{
    Compression, Descriptor, DiffId, Digest, Distant, Document, ImageConfig, Index, Layer, LayerId,
    Manifest, Origin, Platform, Reference, media_type, parse_manifest,
};
use kiln_registry::Observer;

use crate::blobs::{ReadAt, kept, unnamed};
use crate::commit::complete;
use crate::documents::{document, manifest};
use crate::indexes::leaving;
use crate::packing::{Packer, descriptor, foreign, of_family};
use crate::pull::{Stop, blob_of, several, transfer_error};
use crate::{Committed, ExportError, Packing, Remote, Watch};

/// An image as a registry has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The digest of its manifest there.
    pub digest: Digest,
    /// The manifest's bytes.
    pub size: u64,
}

/// An image as a registry has it now, and the media type of its manifest.
struct PushedImage {
    kind: &'static str,
    published: Published,
}

/// What is pushed without being an image of the store.
#[derive(Debug)]
pub struct Stack<'a> {
    /// The layers, lowest first.
    pub layers: &'a [Layer],
    /// How many of them, from the top, are the build's own.
    pub own: usize,
    /// The config, complete but for times and layers.
    pub config: ImageConfig,
    /// The latest time of own layers.
    pub clamp: Option<i64>,
    /// Annotations of the manifest.
    pub annotations: &'a BTreeMap<String, String>,
}

/// The repository of a name, where a manifest is pushed by its digest alone.
fn nameless(to: &Reference, digest: Digest) -> Result<Reference, ExportError> {
    let name = format!("{}@{digest}", to.name()).parse();
    name.map_err(|error| ExportError::Unusable {
        name: to.to_string(),
        what: format!("{error}"),
    })
}

/// What is pushed for one platform of several.
#[derive(Debug)]
pub struct Part<'a> {
    /// The image.
    pub stack: Stack<'a>,
    /// What it is for.
    pub platform: Platform,
    /// Annotations of its entry in the index.
    pub entry: BTreeMap<String, String>,
}

/// A stack that is complete.
struct Whole<'a> {
    layers: &'a [Layer],
    diffs: Vec<DiffId>,
    annotations: &'a BTreeMap<String, String>,
    docker: bool,
    named_config: Descriptor,
    config: Vec<u8>,
}

/// One push.
pub(crate) struct Push<'a> {
    pub(crate) remote: &'a Remote<'a>,
    pub(crate) to: &'a Reference,
    /// Whether the manifest is Docker's and not the OCI's.
    docker: bool,
    pub(crate) packer: Packer<'a>,
    /// The layers of local images that other repositories of the same registry have, with these repositories.
    siblings: Vec<(String, Vec<LayerId>)>,
}

impl Remote<'_> {
    /// Brings an image of the store, or an index with its images, to a registry under a name with a tag. An image that
    /// came from a registry keeps its manifest, as long as its blobs can be had; one of an index of which only the
    /// documents are known is copied from where it is.
    ///
    /// # Errors
    /// When there is no such image, the store lacks images of the index, a layer cannot be read, or the registry refuses.
    pub fn push(
        &self,
        image: Digest,
        to: &Reference,
        packing: &Packing,
        cores: NonZero<usize>,
    ) -> Result<Published, ExportError> {
        match document(self.store, image)? {
            Document::Index(index) => self.push_index(image, &index, to, packing, cores),
            Document::Manifest(_) => Ok(self.push_image(image, to, packing, cores)?.published),
        }
    }

    /// The images first, each by its digest alone.
    fn push_index(
        &self,
        digest: Digest,
        index: &Index,
        to: &Reference,
        packing: &Packing,
        cores: NonZero<usize>,
    ) -> Result<Published, ExportError> {
        let stop = Stop::new(self);
        let nameless = nameless(to, digest)?;
        let mut entries = Vec::new();
        let mut own = Vec::new();
        for entry in &index.manifests {
            if self.store.image(entry.digest)?.is_some() {
                let pushed = self.push_image(entry.digest, &nameless, packing, cores)?;
                entries.push(Descriptor {
                    media_type: pushed.kind.to_owned(),
                    digest: pushed.published.digest,
                    size: pushed.published.size,
                    ..entry.clone()
                });
                own.push(entry.digest);
                continue;
            }
            let sources = self.store.manifest_sources(entry.digest)?;
            // What tells how an image was made is for no platform, and goes where its image does not change.
            let platform = entry.platform.clone().unwrap_or_else(Platform::host);
            if !sources.is_empty() {
                self.copy_manifest(entry, &sources, &nameless, &stop)?;
                entries.push(entry.clone());
            } else if platform.os != "unknown" {
                return Err(ExportError::Unusable {
                    name: to.to_string(),
                    what: format!(
                        "the image for {platform} is not in the store: pull it with --platform {platform}, \
                         or push the others one by one with --platform"
                    ),
                });
            }
        }
        let docker = packing.docker_types.unwrap_or(false);
        let (kind, bytes) = leaving(self.store, digest, entries, docker)?;
        let digest = self
            .client
            .push_manifest(to, &kind, &bytes, stop.as_ref())?;
        for image in own {
            self.store.set_repo_digest(to, digest, image)?;
        }
        Ok(Published {
            digest,
            size: bytes.len() as u64,
        })
    }

    /// Copies an image from one repository to another: nothing within one, and within a registry only what that cannot
    /// take over by itself.
    fn copy_manifest(
        &self,
        entry: &Descriptor,
        sources: &[Reference],
        to: &Reference,
        stop: &Arc<Stop>,
    ) -> Result<(), ExportError> {
        let near = |source: &&Reference| source.registry() == to.registry();
        let Some(from) = sources.iter().find(near).or(sources.first()) else {
            return Ok(());
        };
        if sources.iter().any(|source| source.name() == to.name()) {
            return Ok(());
        }
        let document = self.client.manifest(from, &entry.digest, stop.as_ref())?;
        let unusable = |what: String| ExportError::Unusable {
            name: from.to_string(),
            what,
        };
        let manifest = match parse_manifest(&document.bytes, Some(&document.media_type)) {
            Ok(Document::Manifest(manifest)) => manifest,
            Ok(Document::Index(_)) => {
                return Err(unusable("it is a list itself".to_owned()));
            }
            Err(error) => return Err(unusable(error.to_string())),
        };
        let blobs: Vec<&Descriptor> = manifest
            .layers
            .iter()
            .chain([&manifest.config])
            .filter(|blob| blob.urls.is_none())
            .collect();
        let mount = (from.registry() == to.registry()).then(|| from.repository());
        several(blobs.len(), stop, |at| {
            let blob = blobs[at];
            let offered = self.client.offer_blob(to, blob, mount, stop.as_ref())?;
            if offered.is_some() {
                return Ok(());
            }
            let mut scratch = unnamed(self.store).map_err(ExportError::io("scratch file"))?;
            let mut reader = self
                .client
                .blob(from, blob, &mut io::empty(), stop.clone())?;
            io::copy(&mut reader, &mut scratch).map_err(transfer_error)?;
            self.upload(to, blob, scratch, stop)
        })?;
        self.client
            .push_manifest(to, &document.media_type, &document.bytes, stop.as_ref())?;
        Ok(())
    }

    fn upload(
        &self,
        to: &Reference,
        form: &Descriptor,
        file: File,
        stop: &Arc<Stop>,
    ) -> Result<(), ExportError> {
        let file = Arc::new(file);
        let source = |offset: u64| -> io::Result<Box<dyn Read + Send>> {
            let file = Arc::clone(&file);
            Ok(Box::new(ReadAt { file, offset }))
        };
        let row = Row {
            name: format!("pushing {}", form.digest),
            watch: self.watch,
            stop,
        };
        row.watch.transfer(&row.name, 0, form.size, false);
        self.client.push_blob(to, form, &source, None, &row)?;
        row.watch.transfer(&row.name, form.size, form.size, true);
        Ok(())
    }

    fn push_image(
        &self,
        image: Digest,
        to: &Reference,
        packing: &Packing,
        cores: NonZero<usize>,
    ) -> Result<PushedImage, ExportError> {
        let missing = || ExportError::NoImage(image.to_string());
        let info = self.store.image(image)?.ok_or_else(missing)?.info;
        let (local, local_bytes) = manifest(self.store, image)?;
        let (_, config) = self.store.json(info.config)?.ok_or_else(missing)?;
        let diffs = ImageConfig::from_bytes(&config)
            .map_err(|error| ExportError::Invalid {
                path: format!("config {}", info.config),
                what: error.to_string(),
            })?
            .rootfs
            .diff_ids;
        if diffs.len() != local.layers.len() || diffs.len() != info.layers.len() {
            return Err(ExportError::Invalid {
                path: format!("image {image}"),
                what: "its manifest, its config and its layers do not agree".to_owned(),
            });
        }
        let is_docker = local.media_type.as_deref() == Some(media_type::DOCKER_MANIFEST);
        let docker = packing.docker_types.unwrap_or(is_docker);
        let kind = if docker {
            media_type::DOCKER_MANIFEST
        } else {
            media_type::OCI_MANIFEST
        };
        let push = self.pushing(to, docker, packing, cores)?;
        let stop = Stop::new(self);
        let layers = several(diffs.len(), &stop, |at| {
            push.layer(info.layers[at], diffs[at], &local.layers[at], &stop)
        })?;
        let named_config = of_family(&local.config, docker);
        push.bytes(&named_config, &config, &stop)?;
        let bytes = if layers == local.layers && docker == is_docker {
            local_bytes
        } else {
            let pushed = Manifest {
                media_type: Some(kind.to_owned()),
                config: named_config,
                layers,
                ..local
            };
            pushed.to_bytes()
        };
        let digest = self.client.push_manifest(to, kind, &bytes, stop.as_ref())?;
        self.store.set_repo_digest(to, digest, image)?;
        Ok(PushedImage {
            kind,
            published: Published {
                digest,
                size: bytes.len() as u64,
            },
        })
    }

    /// Brings a stack of layers, of which some are elsewhere, to a registry under each of the names as one image. No
    /// image comes into the store, only its documents. A layer that is elsewhere is moved only if the registry cannot
    /// take it from one of its own repositories.
    ///
    /// # Errors
    /// When a layer cannot be had, or the registry refuses.
    pub fn push_stack(
        &self,
        stack: Stack<'_>,
        names: &[Reference],
        packing: &Packing,
        cores: NonZero<usize>,
    ) -> Result<(Committed, Vec<Published>), ExportError> {
        let whole = self.whole(stack, packing)?;
        let mut published = Vec::new();
        for to in names {
            let pushed = self.push_whole(&whole, to, packing, cores)?;
            self.store.tag(to, pushed.published.digest)?;
            published.push(pushed.published);
        }
        let first = published.first();
        let first = first.ok_or_else(|| ExportError::NoImage("an image without a name".into()))?;
        let image = Committed {
            manifest: first.digest,
            config: whole.named_config.digest,
        };
        Ok((image, published))
    }

    /// The same of stacks for several platforms, as one index with these annotations.
    ///
    /// # Errors
    /// As [`Remote::push_stack`].
    pub fn push_stacks(
        &self,
        parts: Vec<Part<'_>>,
        annotations: &BTreeMap<String, String>,
        names: &[Reference],
        packing: &Packing,
        cores: NonZero<usize>,
    ) -> Result<(Committed, Vec<Published>), ExportError> {
        let wholes = parts
            .into_iter()
            .map(|part| Ok((self.whole(part.stack, packing)?, part.platform, part.entry)))
            .collect::<Result<Vec<_>, ExportError>>()?;
        let kind = if packing.docker_types.unwrap_or(false) {
            media_type::DOCKER_LIST
        } else {
            media_type::OCI_INDEX
        };
        let mut published = Vec::new();
        for to in names {
            let mut entries = Vec::new();
            for (whole, platform, entry) in &wholes {
                // Each by its digest alone.
                let nameless = nameless(to, whole.named_config.digest)?;
                let pushed = self.push_whole(whole, &nameless, packing, cores)?;
                entries.push(Descriptor {
                    platform: Some(platform.clone()),
                    annotations: (!entry.is_empty()).then(|| entry.clone()),
                    ..Descriptor::new(pushed.kind, pushed.published.digest, pushed.published.size)
                });
            }
            let index = Index {
                annotations: (!annotations.is_empty()).then(|| annotations.clone()),
                ..Index::new(kind, entries)
            };
            let bytes = index.to_bytes();
            let stop = Stop::new(self);
            let digest = self.client.push_manifest(to, kind, &bytes, stop.as_ref())?;
            self.store.put_json(kind, &bytes)?;
            self.store.tag(to, digest)?;
            published.push(Published {
                digest,
                size: bytes.len() as u64,
            });
        }
        let first = published.first();
        let first = first.ok_or_else(|| ExportError::NoImage("an index without a name".into()))?;
        let image = Committed {
            manifest: first.digest,
            config: first.digest,
        };
        Ok((image, published))
    }

    /// A stack with its config, which is kept in the store.
    fn whole<'s>(&self, stack: Stack<'s>, packing: &Packing) -> Result<Whole<'s>, ExportError> {
        let Stack {
            layers,
            own,
            config,
            clamp,
            annotations,
        } = stack;
        let config = complete(self.store, self.worker, layers, own, config, clamp)?;
        let diffs = config.rootfs.diff_ids.clone();
        let config = config.to_bytes();
        let docker = packing.docker_types.unwrap_or(false);
        let kind = if docker {
            media_type::DOCKER_CONFIG
        } else {
            media_type::OCI_CONFIG
        };
        let digest = self.store.put_json(kind, &config)?;
        Ok(Whole {
            layers,
            diffs,
            annotations,
            docker,
            named_config: Descriptor::new(kind, digest, config.len() as u64),
            config,
        })
    }

    fn push_whole(
        &self,
        whole: &Whole<'_>,
        to: &Reference,
        packing: &Packing,
        cores: NonZero<usize>,
    ) -> Result<PushedImage, ExportError> {
        let Whole { layers, diffs, .. } = whole;
        let stop = Stop::new(self);
        let push = self.pushing(to, whole.docker, packing, cores)?;
        let described = several(layers.len(), &stop, |at| match &layers[at] {
            Layer::Here(id, _) => push.own_layer(*id, diffs[at], &stop),
            Layer::Distant(distant) => push.distant(distant, &stop),
        })?;
        push.bytes(&whole.named_config, &whole.config, &stop)?;
        let kind = if whole.docker {
            media_type::DOCKER_MANIFEST
        } else {
            media_type::OCI_MANIFEST
        };
        let manifest = Manifest {
            annotations: (!whole.annotations.is_empty()).then(|| whole.annotations.clone()),
            ..Manifest::new(kind, whole.named_config.clone(), described)
        };
        let bytes = manifest.to_bytes();
        let digest = self.client.push_manifest(to, kind, &bytes, stop.as_ref())?;
        self.store.put_json(kind, &bytes)?;
        Ok(PushedImage {
            kind,
            published: Published {
                digest,
                size: bytes.len() as u64,
            },
        })
    }

    pub(crate) fn pushing<'a>(
        &'a self,
        to: &'a Reference,
        docker: bool,
        packing: &'a Packing,
        cores: NonZero<usize>,
    ) -> Result<Push<'a>, ExportError> {
        Ok(Push {
            remote: self,
            to,
            docker,
            packer: Packer {
                store: self.store,
                worker: self.worker,
                watch: self.watch,
                packing,
                cores,
            },
            siblings: self.siblings(to)?,
        })
    }

    /// What other repositories of the same registry have, as far as the store knows.
    fn siblings(&self, to: &Reference) -> Result<Vec<(String, Vec<LayerId>)>, ExportError> {
        let mut siblings = Vec::new();
        for image in self.store.images()? {
            for name in self.store.repo_digests(image.manifest)? {
                if name.registry() == to.registry() && name.repository() != to.repository() {
                    siblings.push((name.repository().to_owned(), image.info.layers.clone()));
                }
            }
        }
        Ok(siblings)
    }
}

impl Push<'_> {
    /// Brings a document to the registry.
    pub(crate) fn bytes(
        &self,
        named: &Descriptor,
        bytes: &[u8],
        stop: &Arc<Stop>,
    ) -> Result<(), ExportError> {
        let source = |offset: u64| -> io::Result<Box<dyn Read + Send>> {
            let rest = bytes.get(offset as usize..).unwrap_or_default().to_vec();
            Ok(Box::new(io::Cursor::new(rest)))
        };
        self.remote
            .client
            .push_blob(self.to, named, &source, None, stop.as_ref())?;
        Ok(())
    }

    /// Brings a layer to the registry that no manifest names.
    pub(crate) fn own_layer(
        &self,
        layer: LayerId,
        diff: DiffId,
        stop: &Arc<Stop>,
    ) -> Result<Descriptor, ExportError> {
        let tar = Descriptor::new(media_type::OCI_LAYER, blob_of(diff), 0);
        self.layer(layer, diff, &tar, stop)
    }

    /// Brings a layer to the registry that is elsewhere, as it is.
    pub(crate) fn distant(
        &self,
        distant: &Distant,
        stop: &Arc<Stop>,
    ) -> Result<Descriptor, ExportError> {
        if !self.packer.packing.distribute_foreign
            && let Some(foreign) = foreign(&distant.blob, self.docker)
        {
            return Ok(foreign);
        }
        let form = of_family(&distant.blob, self.docker);
        let from = match &distant.origin {
            Origin::Registry(name)
                if name.registry() == self.to.registry()
                    && name.repository() != self.to.repository() =>
            {
                Some(name.repository())
            }
            _ => None,
        };
        if !self.taken(&form, from, stop)? {
            let observer: Arc<dyn Observer> = stop.clone();
            let file = self.remote.spool(distant, observer)?;
            self.remote.upload(self.to, &form, file, stop)?;
        }
        Ok(form)
    }

    /// Brings a layer to the registry and says what it is called there.
    fn layer(
        &self,
        layer: LayerId,
        diff: DiffId,
        named: &Descriptor,
        stop: &Arc<Stop>,
    ) -> Result<Descriptor, ExportError> {
        let store = self.remote.store;
        let packing = self.packer.packing;
        if !packing.distribute_foreign
            && let Some(foreign) = self.foreign(diff, named)?
        {
            return Ok(foreign);
        }
        // First as the image's own manifest says, unless that names the tar, which no registry gets unasked.
        let mut forms = Vec::new();
        let fits = Compression::of_media_type(&named.media_type) == Some(packing.compression);
        if named.digest != blob_of(diff) && (fits || !packing.force) {
            forms.push(of_family(named, self.docker));
        }
        for blob in store.blobs_of(diff)? {
            if packing.takes(&blob) && forms.iter().all(|form| form.digest != blob.digest) {
                forms.push(descriptor(&blob, self.docker));
            }
        }
        for form in &forms {
            if self.offer(form, layer, stop)? {
                return Ok(form.clone());
            }
        }
        if let Some((blob, file)) = kept(store, diff)?
            && let Some(form) = forms.iter().find(|form| form.digest == blob.digest)
        {
            self.remote.upload(self.to, form, file, stop)?;
            return Ok(form.clone());
        }
        let blob = self.compress_and_upload(layer, diff, stop)?;
        let form = match forms.iter().find(|form| form.digest == blob.digest) {
            Some(form) => form.clone(),
            None => descriptor(&blob, self.docker),
        };
        store.set_blob(&blob)?;
        Ok(form)
    }

    /// How a layer is called that only its publisher gives; such a layer is not pushed.
    fn foreign(&self, diff: DiffId, named: &Descriptor) -> Result<Option<Descriptor>, ExportError> {
        if let Some(foreign) = foreign(named, self.docker) {
            return Ok(Some(foreign));
        }
        let store = self.remote.store;
        for blob in store.blobs_of(diff)? {
            if !media_type::is_foreign(&blob.media_type) {
                continue;
            }
            // The manifest that it came with knows where it can be had.
            for image in store.images()? {
                let layers = manifest(store, image.manifest)?.0.layers;
                let known = layers.iter().find(|layer| layer.digest == blob.digest);
                if let Some(foreign) = known.and_then(|known| foreign(known, self.docker)) {
                    return Ok(Some(foreign));
                }
            }
        }
        Ok(None)
    }

    /// Whether the registry has a blob, or takes it from another repository.
    fn offer(
        &self,
        form: &Descriptor,
        layer: LayerId,
        stop: &Arc<Stop>,
    ) -> Result<bool, ExportError> {
        let has = |(_, layers): &&(String, Vec<LayerId>)| layers.contains(&layer);
        let sibling = self.siblings.iter().find(has);
        self.taken(
            form,
            sibling.map(|(repository, _)| repository.as_str()),
            stop,
        )
    }

    fn taken(
        &self,
        form: &Descriptor,
        from: Option<&str>,
        stop: &Arc<Stop>,
    ) -> Result<bool, ExportError> {
        let remote = self.remote;
        let taken = remote
            .client
            .offer_blob(self.to, form, from, stop.as_ref())?;
        if taken.is_some() {
            let row = format!("{} already there", form.digest);
            remote.watch.transfer(&row, form.size, form.size, true);
        }
        Ok(taken.is_some())
    }
}

/// The row of an upload.
struct Row<'a> {
    name: String,
    watch: &'a dyn Watch,
    stop: &'a Stop,
}

impl Observer for Row<'_> {
    fn progress(&self, done: u64, total: u64) {
        self.watch.transfer(&self.name, done, total, false);
    }

    fn is_canceled(&self) -> bool {
        self.stop.is_canceled()
    }
}
