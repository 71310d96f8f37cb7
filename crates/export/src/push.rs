//! Images out, to registries. What the registry has, or can take from another of its repositories, is not moved; a layer
//! is compressed once, and its digest remembered.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _};
use std::num::NonZero;
use std::sync::Arc;
use std::time::Instant;

use kiln_image::compress::Encoder;
use kiln_image::{
    Compression, Descriptor, DiffId, Digest, ImageConfig, LayerId, Manifest, Reference, media_type,
};
use kiln_registry::Observer;
use kiln_store::BlobInfo;

use crate::blobs::{Hashing, ReadAt, kept, unnamed, write_tar};
use crate::documents::manifest;
use crate::pull::{GLANCE, Stop, blob_of, several};
use crate::{ExportError, Remote, Watch};

/// How layers are compressed that were never in a registry.
const COMPRESSION: Compression = Compression::Gzip;

/// An image as a registry has it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The digest of its manifest there.
    pub digest: Digest,
    /// The manifest's bytes.
    pub size: u64,
}

/// One push.
struct Push<'a> {
    remote: &'a Remote<'a>,
    to: &'a Reference,
    /// Whether the manifest is Docker's and not the OCI's.
    docker: bool,
    cores: NonZero<usize>,
    /// The layers of local images that other repositories of the same registry have, with these repositories.
    siblings: Vec<(String, Vec<LayerId>)>,
}

impl Remote<'_> {
    /// Brings an image of the store to a registry under a name with a tag. An image that came from a registry keeps its
    /// manifest, as long as its blobs can be had.
    ///
    /// # Errors
    /// When there is no such image, a layer cannot be read, or the registry refuses.
    pub fn push(
        &self,
        image: Digest,
        to: &Reference,
        cores: NonZero<usize>,
    ) -> Result<Published, ExportError> {
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
        let kind = local.media_type.clone();
        let kind = kind.unwrap_or_else(|| media_type::OCI_MANIFEST.to_owned());
        let push = Push {
            remote: self,
            to,
            docker: kind == media_type::DOCKER_MANIFEST,
            cores,
            siblings: self.siblings(to)?,
        };
        let stop = Stop::new(self);
        let layers = several(diffs.len(), &stop, |at| {
            push.layer(info.layers[at], diffs[at], &local.layers[at], &stop)
        })?;
        let source = |offset: u64| -> io::Result<Box<dyn Read + Send>> {
            let rest = config.get(offset as usize..).unwrap_or_default().to_vec();
            Ok(Box::new(io::Cursor::new(rest)))
        };
        self.client
            .push_blob(to, &local.config, &source, None, stop.as_ref())?;
        let bytes = if layers == local.layers {
            local_bytes
        } else {
            Manifest { layers, ..local }.to_bytes()
        };
        let digest = self
            .client
            .push_manifest(to, &kind, &bytes, stop.as_ref())?;
        self.store.set_repo_digest(to, digest, image)?;
        Ok(Published {
            digest,
            size: bytes.len() as u64,
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
    /// Brings a layer to the registry and says what it is called there.
    fn layer(
        &self,
        layer: LayerId,
        diff: DiffId,
        named: &Descriptor,
        stop: &Arc<Stop>,
    ) -> Result<Descriptor, ExportError> {
        let store = self.remote.store;
        // First as the image's own manifest says, unless that names the tar, which no registry should get.
        let mut forms = Vec::new();
        if named.digest != blob_of(diff) {
            forms.push(named.clone());
        }
        for blob in store.blobs_of(diff)? {
            let gzip = Compression::of_media_type(&blob.media_type) == Some(COMPRESSION);
            if gzip && forms.iter().all(|form| form.digest != blob.digest) {
                forms.push(self.descriptor(&blob));
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
            self.upload(form, file, stop)?;
            return Ok(form.clone());
        }
        let (blob, file) = self.compress(layer, diff)?;
        let form = match forms.iter().find(|form| form.digest == blob.digest) {
            Some(form) => form.clone(),
            None => self.descriptor(&blob),
        };
        self.upload(&form, file, stop)?;
        store.set_blob(&blob)?;
        Ok(form)
    }

    /// A blob in the words of the manifest's family.
    fn descriptor(&self, blob: &BlobInfo) -> Descriptor {
        let family = Compression::of_media_type(&blob.media_type).and_then(|compression| {
            if self.docker {
                compression.docker_layer()
            } else {
                compression.oci_layer()
            }
        });
        let kind = family.unwrap_or(&blob.media_type);
        Descriptor::new(kind, blob.digest, blob.size)
    }

    /// Whether the registry has a blob, or takes it from another repository.
    fn offer(
        &self,
        form: &Descriptor,
        layer: LayerId,
        stop: &Arc<Stop>,
    ) -> Result<bool, ExportError> {
        let remote = self.remote;
        let has = |(_, layers): &&(String, Vec<LayerId>)| layers.contains(&layer);
        let sibling = self.siblings.iter().find(has);
        let from = sibling.map(|(repository, _)| repository.as_str());
        let taken = remote
            .client
            .offer_blob(self.to, form, from, stop.as_ref())?;
        if taken.is_some() {
            let row = format!("{} already there", form.digest);
            remote.watch.transfer(&row, form.size, form.size, true);
        }
        Ok(taken.is_some())
    }

    fn compress(&self, layer: LayerId, diff: DiffId) -> Result<(BlobInfo, File), ExportError> {
        let remote = self.remote;
        let level = COMPRESSION.default_level();
        let clamp = remote.store.clamp_of(layer, diff)?;
        let total = remote.store.diff(layer, clamp)?.map_or(0, |(_, size)| size);
        let (read, write) = io::pipe().map_err(ExportError::io("pipe"))?;
        let compressed = std::thread::scope(|scope| {
            let writing = scope.spawn(move || {
                let out = File::from(std::os::fd::OwnedFd::from(write));
                write_tar(remote.store, remote.worker, layer, diff, &out)
            });
            let compress = || -> io::Result<_> {
                let out = Hashing::new(unnamed(remote.store)?);
                let mut encoder = Encoder::new(COMPRESSION, level, self.cores.get(), out)?;
                let mut tar = Told {
                    read,
                    row: format!("compressing {diff}"),
                    done: 0,
                    total,
                    watch: remote.watch,
                    last: Instant::now(),
                };
                io::copy(
                    &mut BufReader::with_capacity(1 << 18, &mut tar),
                    &mut encoder,
                )?;
                let finished = encoder.finish()?.finish();
                remote.watch.transfer(&tar.row, tar.done, tar.done, true);
                Ok(finished)
            };
            let compressed = compress();
            writing.join().expect("writing a tar does not panic")?;
            compressed.map_err(ExportError::io(format!("layer {diff}")))
        });
        let (mut file, digest, size) = compressed?;
        file.rewind().map_err(ExportError::io("scratch file"))?;
        let media_type = COMPRESSION.oci_layer().unwrap_or_default().to_owned();
        let encoder = COMPRESSION.encoder_id(level);
        let blob = BlobInfo {
            diff,
            digest,
            media_type,
            size,
            encoder,
            present: false,
        };
        Ok((blob, file))
    }

    fn upload(&self, form: &Descriptor, file: File, stop: &Arc<Stop>) -> Result<(), ExportError> {
        let file = Arc::new(file);
        let source = |offset: u64| -> io::Result<Box<dyn Read + Send>> {
            let file = Arc::clone(&file);
            Ok(Box::new(ReadAt { file, offset }))
        };
        let row = Row {
            name: format!("pushing {}", form.digest),
            watch: self.remote.watch,
            stop,
        };
        row.watch.transfer(&row.name, 0, form.size, false);
        self.remote
            .client
            .push_blob(self.to, form, &source, None, &row)?;
        row.watch.transfer(&row.name, form.size, form.size, true);
        Ok(())
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

/// Tells how much of a tar has been read.
struct Told<'a, R> {
    read: R,
    row: String,
    done: u64,
    total: u64,
    watch: &'a dyn Watch,
    last: Instant,
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.read.read(buffer)?;
        self.done += count as u64;
        if self.last.elapsed() >= GLANCE {
            self.last = Instant::now();
            self.watch.transfer(&self.row, self.done, self.total, false);
        }
        Ok(count)
    }
}
