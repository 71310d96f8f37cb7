//! Images out, as one archive or a folder that docker, podman and skopeo read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Write};
use std::num::NonZero;
use std::path::Path;

use kiln_image::manifest::{Descriptor, Index, Manifest, media_type};
use kiln_image::{Compression, DiffId, Digest, ImageConfig, LayerId, Platform, Reference};
use kiln_store::{Image, ImageInfo, Store};
use kiln_worker::Worker;
use serde_json::{Value, json};

use crate::blobs::write_tar;
use crate::commit::sha256;
use crate::documents::manifest;
use crate::indexes::leaving;
use crate::packing::{Packer, descriptor};
use crate::{ExportError, Packing, Watch, digest_layer};

/// What kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// An OCI layout that also has the `manifest.json` of `docker save`, as today's docker writes it.
    #[default]
    Docker,
    /// An OCI layout alone.
    Oci,
}

/// Where an archive goes.
#[derive(Debug, Clone, Copy)]
pub enum Place<'a> {
    /// Into one tar file.
    Tar(&'a File),
    /// Into a folder, which is made if it is not there; an OCI layout that is in it gets the images in addition.
    Folder(&'a Path),
}

/// How images are written.
pub struct Saving<'a> {
    /// The store.
    pub store: &'a Store,
    /// Its worker.
    pub worker: &'a Worker,
    /// The archive's kind.
    pub format: Format,
    /// The layers' form. Layers that shall not be compressed are written as tars, however they came.
    pub packing: &'a Packing,
    /// Processors for compression.
    pub cores: NonZero<usize>,
    /// Told what is compressed.
    pub watch: &'a dyn Watch,
}

/// The identification of a layout (OCI image layout, "oci-layout file").
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
/// Names an image in an index (OCI annotations).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The same for containerd and docker, which read the whole name.
const IMAGE_NAME: &str = "io.containerd.image.name";

impl Saving<'_> {
    /// Writes images, also indexes of them, with their names.
    ///
    /// # Errors
    /// When an image is not there, or anything cannot be read or written.
    pub fn save(
        &self,
        images: &[(Digest, Vec<Reference>)],
        place: Place<'_>,
    ) -> Result<(), ExportError> {
        let mut archive = Archive::new(place)?;
        let mut index = archive.index()?;
        let mut docker = Vec::new();
        for (image, names) in images {
            let descriptor = if let Some(found) = self.store.image(*image)? {
                let (descriptor, listed) = self.image(&found, names, &mut archive)?;
                docker.push(listed);
                descriptor
            } else {
                let (descriptor, listed) = self.index(*image, names, &mut archive)?;
                docker.push(listed);
                descriptor
            };
            list(&mut index, &descriptor, names);
        }
        archive.layout(index)?;
        if self.format == Format::Docker {
            archive.file(
                "manifest.json",
                &serde_json::to_vec(&docker).expect("JSON values serialise"),
            )?;
        }
        archive.end()
    }

    /// Writes an image; gives its descriptor and what `manifest.json` says of it.
    fn image(
        &self,
        image: &Image,
        names: &[Reference],
        archive: &mut Archive<'_>,
    ) -> Result<(Descriptor, Value), ExportError> {
        let Image { manifest, info, .. } = image;
        let missing = || ExportError::NoImage(manifest.to_string());
        let (_, config) = self.store.json(info.config)?.ok_or_else(missing)?;
        archive.blob(info.config, &config)?;
        let layers = self.layers(*manifest, info, &config, archive)?;
        let paths: Vec<_> = layers.iter().map(|layer| blob_path(layer.digest)).collect();
        let tags: Vec<_> = names
            .iter()
            .filter(|name| name.tag().is_some())
            .map(Reference::familiar)
            .collect();
        let listed = json!({
            "Config": blob_path(info.config),
            "RepoTags": if tags.is_empty() { json!(null) } else { json!(tags) },
            "Layers": paths,
        });
        let descriptor = self.manifest(*manifest, info, &config, layers, archive)?;
        Ok((descriptor, listed))
    }

    /// Writes an index with the images of it that are in the store. `manifest.json` knows no platforms: it has the image
    /// that runs here, or the first.
    fn index(
        &self,
        digest: Digest,
        names: &[Reference],
        archive: &mut Archive<'_>,
    ) -> Result<(Descriptor, Value), ExportError> {
        let missing = || ExportError::NoImage(digest.to_string());
        let index = self.store.index(digest)?.ok_or_else(missing)?;
        let here = index
            .select(&Platform::host())
            .or(index.images.first())
            .map(|image| image.manifest);
        let mut entries = Vec::new();
        let mut listed = Value::Null;
        for entry in &index.document.manifests {
            let image = index.images.iter().find(|it| it.manifest == entry.digest);
            let Some(image) = image else { continue };
            let (written, entry_of_docker) = self.image(image, names, archive)?;
            if here == Some(image.manifest) {
                listed = entry_of_docker;
            }
            entries.push(Descriptor {
                platform: entry.platform.clone(),
                annotations: entry.annotations.clone(),
                ..written
            });
        }
        let (kind, bytes) = leaving(self.store, digest, entries, self.docker_types())?;
        let written = sha256(&bytes);
        archive.blob(written, &bytes)?;
        let descriptor = Descriptor::new(&kind, written, bytes.len() as u64);
        Ok((descriptor, listed))
    }

    /// Writes the layers of an image.
    fn layers(
        &self,
        image: Digest,
        info: &ImageInfo,
        config: &[u8],
        archive: &mut Archive<'_>,
    ) -> Result<Vec<Descriptor>, ExportError> {
        let config = ImageConfig::from_bytes(config).map_err(|error| ExportError::Invalid {
            path: format!("config {}", info.config),
            what: error.to_string(),
        })?;
        let diffs = config.rootfs.diff_ids;
        let mut layers = Vec::new();
        for (layer, diff) in info.layers.iter().zip(diffs) {
            layers.push(if self.packing.compression == Compression::None {
                self.tar(image, *layer, diff, archive)?
            } else {
                let packer = Packer {
                    store: self.store,
                    worker: self.worker,
                    watch: self.watch,
                    packing: self.packing,
                    cores: self.cores,
                };
                let (blob, file) = packer.pack(*layer, diff)?;
                archive.stream(blob.digest, blob.size, |out| {
                    copy(&file, blob.size, out).map_err(ExportError::io("archive"))
                })?;
                if !blob.present {
                    self.store.set_blob(&blob)?;
                }
                descriptor(&blob, self.docker_types())
            });
        }
        Ok(layers)
    }

    /// Writes a layer uncompressed.
    fn tar(
        &self,
        image: Digest,
        layer: LayerId,
        diff: DiffId,
        archive: &mut Archive<'_>,
    ) -> Result<Descriptor, ExportError> {
        let (store, worker) = (self.store, self.worker);
        let blob = Digest::new(*diff.as_bytes());
        let clamp = store.clamp_of(layer, diff)?;
        let (found, size) = digest_layer(store, worker, layer, clamp)?;
        if found != diff {
            let what = format!("layer {layer} has the diff id {found}, the image says {diff}");
            return Err(ExportError::Invalid {
                path: format!("image {image}"),
                what,
            });
        }
        archive.stream(blob, size, |out| write_tar(store, worker, layer, diff, out))?;
        let kind = if self.docker_types() {
            media_type::DOCKER_LAYER
        } else {
            media_type::OCI_LAYER
        };
        Ok(Descriptor::new(kind, blob, size))
    }

    fn docker_types(&self) -> bool {
        self.packing.docker_types.unwrap_or(false)
    }

    /// Writes a manifest that names the layers as they are in the archive; its annotations are the image's.
    fn manifest(
        &self,
        image: Digest,
        info: &ImageInfo,
        config: &[u8],
        layers: Vec<Descriptor>,
        archive: &mut Archive<'_>,
    ) -> Result<Descriptor, ExportError> {
        let (kind, config_kind) = if self.docker_types() {
            (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG)
        } else {
            (media_type::OCI_MANIFEST, media_type::OCI_CONFIG)
        };
        let config = Descriptor::new(config_kind, info.config, config.len() as u64);
        let written = Manifest {
            annotations: manifest(self.store, image)?.0.annotations,
            ..Manifest::new(kind, config, layers)
        }
        .to_bytes();
        let digest = sha256(&written);
        archive.blob(digest, &written)?;
        let mut descriptor = Descriptor::new(kind, digest, written.len() as u64);
        descriptor.platform = Some(info.platform.clone());
        Ok(descriptor)
    }
}

/// Puts an image into an index, under each of its names; who had such a name loses it.
fn list(index: &mut Vec<Descriptor>, image: &Descriptor, names: &[Reference]) {
    if names.is_empty() {
        index.retain(|known| known.digest != image.digest);
        index.push(image.clone());
    }
    for name in names {
        let tag = name.tag().unwrap_or("latest");
        let annotations = BTreeMap::from([
            (IMAGE_NAME.to_owned(), name.to_string()),
            (REF_NAME.to_owned(), tag.to_owned()),
        ]);
        let named = Some(annotations);
        index.retain(|known| known.annotations != named);
        index.push(Descriptor {
            annotations: named,
            ..image.clone()
        });
    }
}

/// Copies so many bytes from the start of a file, wherever it is read.
fn copy(from: &File, size: u64, mut to: &File) -> io::Result<()> {
    let mut from = from.try_clone()?;
    io::Seek::rewind(&mut from)?;
    let copied = io::copy(&mut from.take(size), &mut to)?;
    if copied < size {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The archive. A tar is written by hand, block by block, because the worker writes layers into the middle of it.
pub(crate) struct Archive<'a> {
    place: Place<'a>,
    written: Vec<Digest>,
}

impl<'a> Archive<'a> {
    pub(crate) fn new(place: Place<'a>) -> Result<Self, ExportError> {
        if let Place::Folder(folder) = place {
            let blobs = folder.join("blobs/sha256");
            fs::create_dir_all(&blobs).map_err(ExportError::io(blobs.display().to_string()))?;
        }
        Ok(Self {
            place,
            written: Vec::new(),
        })
    }

    /// The images that are there already.
    pub(crate) fn index(&self) -> Result<Vec<Descriptor>, ExportError> {
        let Place::Folder(folder) = self.place else {
            return Ok(Vec::new());
        };
        let path = folder.join("index.json");
        let name = path.display().to_string();
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(ExportError::io(name)(error)),
        };
        match kiln_image::parse_manifest(&bytes, Some(media_type::OCI_INDEX)) {
            Ok(kiln_image::Document::Index(index)) => Ok(index.manifests),
            _ => Err(ExportError::Invalid {
                path: name,
                what: "it is no index of images, and would be overwritten".to_owned(),
            }),
        }
    }

    /// Writes something of known size with what `write` gives.
    fn entry(
        &mut self,
        name: &str,
        size: u64,
        write: impl FnOnce(&File) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        match self.place {
            Place::Tar(mut out) => {
                let failed = ExportError::io("archive");
                let header = kiln_image::tar::plain_file_header(name, size);
                out.write_all(&header).map_err(failed)?;
                write(out)?;
                let rest = (512 - size % 512) % 512;
                out.write_all(&[0; 512][..rest as usize])
                    .map_err(ExportError::io("archive"))
            }
            Place::Folder(folder) => {
                let path = folder.join(name);
                let new = folder.join(format!("{name}.new"));
                let failed = || ExportError::io(path.display().to_string());
                write(&File::create(&new).map_err(failed())?)?;
                fs::rename(&new, &path).map_err(failed())
            }
        }
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), ExportError> {
        self.entry(name, bytes.len() as u64, |mut out| {
            out.write_all(bytes).map_err(ExportError::io("archive"))
        })
    }

    /// Writes a blob, unless the archive has it.
    pub(crate) fn stream(
        &mut self,
        digest: Digest,
        size: u64,
        write: impl FnOnce(&File) -> Result<(), ExportError>,
    ) -> Result<(), ExportError> {
        let name = blob_path(digest);
        let there = matches!(self.place, Place::Folder(folder) if folder.join(&name).is_file());
        if there || self.written.contains(&digest) {
            return Ok(());
        }
        self.written.push(digest);
        self.entry(&name, size, write)
    }

    pub(crate) fn blob(&mut self, digest: Digest, bytes: &[u8]) -> Result<(), ExportError> {
        self.stream(digest, bytes.len() as u64, |mut out| {
            out.write_all(bytes).map_err(ExportError::io("archive"))
        })
    }

    /// Writes what makes it a layout.
    pub(crate) fn layout(&mut self, index: Vec<Descriptor>) -> Result<(), ExportError> {
        let index = Index::new(media_type::OCI_INDEX, index).to_bytes();
        self.file("index.json", &index)?;
        self.file("oci-layout", LAYOUT)
    }

    fn end(&mut self) -> Result<(), ExportError> {
        match self.place {
            Place::Tar(mut out) => out
                .write_all(&[0; 1024])
                .map_err(ExportError::io("archive")),
            Place::Folder(_) => Ok(()),
        }
    }
}
