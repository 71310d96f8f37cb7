//! Images out, as one archive that docker, podman and skopeo read.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;

use kiln_image::manifest::{Descriptor, Index, Manifest, media_type};
use kiln_image::{Digest, ImageConfig, Reference};
use kiln_store::Store;
use kiln_worker::Worker;
use serde_json::json;

use crate::blobs::write_tar;
use crate::commit::sha256;
use crate::{ExportError, digest_layer};

/// What kind of archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// An OCI layout that also has the `manifest.json` of `docker save`, as today's docker writes it.
    #[default]
    Docker,
    /// An OCI layout alone.
    Oci,
}

/// Writes images with their names into `out`. Layers are written uncompressed.
///
/// # Errors
/// When an image is not there, or anything cannot be read or written.
pub fn save(
    store: &Store,
    worker: &Worker,
    images: &[(Digest, Vec<Reference>)],
    format: Format,
    out: &File,
) -> Result<(), ExportError> {
    let mut archive = Archive {
        out,
        written: Vec::new(),
    };
    let mut index = Vec::new();
    let mut docker = Vec::new();
    for (image, names) in images {
        let info = store
            .image(*image)?
            .ok_or_else(|| ExportError::NoImage(image.to_string()))?
            .info;
        let (_, config) = store
            .json(info.config)?
            .ok_or_else(|| ExportError::NoImage(info.config.to_string()))?;
        let diffs = ImageConfig::from_bytes(&config)
            .map_err(|error| ExportError::Invalid {
                path: format!("config {}", info.config),
                what: error.to_string(),
            })?
            .rootfs
            .diff_ids;
        archive.blob(info.config, &config)?;
        let mut layers = Vec::new();
        for (layer, diff) in info.layers.iter().zip(diffs) {
            let blob = Digest::new(*diff.as_bytes());
            let clamp = store.clamp_of(*layer, diff)?;
            let (found, size) = digest_layer(store, worker, *layer, clamp)?;
            if found != diff {
                let what = format!("layer {layer} has the diff id {found}, the image says {diff}");
                return Err(ExportError::Invalid {
                    path: format!("image {image}"),
                    what,
                });
            }
            layers.push(Descriptor::new(media_type::OCI_LAYER, blob, size));
            if !archive.start_blob(blob, size)? {
                continue;
            }
            write_tar(store, worker, *layer, diff, out)?;
            archive.pad(size)?;
        }
        let paths: Vec<_> = layers.iter().map(|layer| blob_path(layer.digest)).collect();
        let tags: Vec<_> = names
            .iter()
            .filter(|name| name.tag().is_some())
            .map(Reference::familiar)
            .collect();
        docker.push(json!({
            "Config": blob_path(info.config),
            "RepoTags": if tags.is_empty() { json!(null) } else { json!(tags) },
            "Layers": paths,
        }));
        let config = Descriptor::new(media_type::OCI_CONFIG, info.config, config.len() as u64);
        let manifest = Manifest::new(media_type::OCI_MANIFEST, config, layers).to_bytes();
        let digest = sha256(&manifest);
        archive.blob(digest, &manifest)?;
        let mut descriptor =
            Descriptor::new(media_type::OCI_MANIFEST, digest, manifest.len() as u64);
        descriptor.platform = Some(info.platform.clone());
        if names.is_empty() {
            index.push(descriptor.clone());
        }
        for name in names {
            // containerd and docker read the whole name, others the tag.
            let tag = name.tag().unwrap_or("latest");
            descriptor.annotations = Some(BTreeMap::from([
                ("io.containerd.image.name".to_owned(), name.to_string()),
                (
                    "org.opencontainers.image.ref.name".to_owned(),
                    tag.to_owned(),
                ),
            ]));
            index.push(descriptor.clone());
        }
    }
    archive.file(
        "index.json",
        &Index::new(media_type::OCI_INDEX, index).to_bytes(),
    )?;
    archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    if format == Format::Docker {
        archive.file(
            "manifest.json",
            &serde_json::to_vec(&docker).expect("JSON values serialise"),
        )?;
    }
    archive.end()
}

fn blob_path(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// The outer tar. Written by hand, block by block, because the worker writes layers into the middle of it.
struct Archive<'a> {
    out: &'a File,
    written: Vec<Digest>,
}

impl Archive<'_> {
    fn write(&mut self, bytes: &[u8]) -> Result<(), ExportError> {
        self.out
            .write_all(bytes)
            .map_err(ExportError::io("archive"))
    }

    fn header(&mut self, name: &str, size: u64) -> Result<(), ExportError> {
        let header = kiln_image::tar::plain_file_header(name, size);
        self.write(&header)
    }

    fn pad(&mut self, size: u64) -> Result<(), ExportError> {
        let rest = (512 - size % 512) % 512;
        self.write(&[0; 512][..rest as usize])
    }

    fn file(&mut self, name: &str, bytes: &[u8]) -> Result<(), ExportError> {
        self.header(name, bytes.len() as u64)?;
        self.write(bytes)?;
        self.pad(bytes.len() as u64)
    }

    /// Starts a blob whose content follows; false when the archive has it.
    fn start_blob(&mut self, digest: Digest, size: u64) -> Result<bool, ExportError> {
        if self.written.contains(&digest) {
            return Ok(false);
        }
        self.written.push(digest);
        self.header(&blob_path(digest), size)?;
        Ok(true)
    }

    fn blob(&mut self, digest: Digest, bytes: &[u8]) -> Result<(), ExportError> {
        if self.start_blob(digest, bytes.len() as u64)? {
            self.write(bytes)?;
            self.pad(bytes.len() as u64)?;
        }
        Ok(())
    }

    fn end(&mut self) -> Result<(), ExportError> {
        self.write(&[0; 1024])
    }
}
