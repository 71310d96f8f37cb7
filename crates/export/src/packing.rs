//! How layers leave the store: their compression, done once for each layer and encoder.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, Write};
use std::num::NonZero;
use std::time::Instant;

use kiln_image::compress::Encoder;
use kiln_image::{Compression, Descriptor, DiffId, LayerId, media_type};
use kiln_store::{BlobInfo, Store};
use kiln_worker::Worker;

use crate::blobs::{Hashing, PULLED, kept, unnamed, write_tar};
use crate::pull::{GLANCE, PIECE};
use crate::{ExportError, Watch};

/// The form in which an image leaves the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packing {
    /// How layers are compressed that are not compressed yet.
    pub compression: Compression,
    /// The compressor's level; its usual one if not given.
    pub level: Option<i32>,
    /// Compress layers anew that came compressed in another way.
    pub force: bool,
    /// Whether the manifest is Docker's (schema 2) and not the OCI's; as the image has it if not given.
    pub docker_types: Option<bool>,
    /// Push layers as all others that only their publisher should give ([`media_type::is_foreign`]).
    pub distribute_foreign: bool,
}

impl Default for Packing {
    fn default() -> Self {
        Self {
            compression: Compression::Gzip,
            level: None,
            force: false,
            docker_types: None,
            distribute_foreign: false,
        }
    }
}

impl Packing {
    /// Layers as plain tars.
    pub fn plain() -> Self {
        Self {
            compression: Compression::None,
            ..Self::default()
        }
    }

    fn level(&self) -> i32 {
        self.level.unwrap_or(self.compression.default_level())
    }

    /// Whether a blob that was made or came earlier is what is wanted.
    pub(crate) fn takes(&self, blob: &BlobInfo) -> bool {
        Compression::of_media_type(&blob.media_type) == Some(self.compression)
            && (self.level.is_none() || blob.encoder == self.compression.encoder_id(self.level()))
    }
}

/// What compressing needs.
pub(crate) struct Packer<'a> {
    pub(crate) store: &'a Store,
    pub(crate) worker: &'a Worker,
    pub(crate) watch: &'a dyn Watch,
    pub(crate) packing: &'a Packing,
    pub(crate) cores: NonZero<usize>,
}

impl Packer<'_> {
    /// A layer as a blob with its bytes: one that the store has if it fits, else made.
    pub(crate) fn pack(
        &self,
        layer: LayerId,
        diff: DiffId,
    ) -> Result<(BlobInfo, File), ExportError> {
        if let Some((blob, file)) = kept(self.store, diff)?
            && (self.packing.takes(&blob) || (!self.packing.force && blob.encoder == PULLED))
        {
            return Ok((blob, file));
        }
        self.compress(layer, diff)
    }

    /// Compresses a layer.
    pub(crate) fn compress(
        &self,
        layer: LayerId,
        diff: DiffId,
    ) -> Result<(BlobInfo, File), ExportError> {
        let scratch = unnamed(self.store).map_err(ExportError::io("scratch file"))?;
        let (blob, mut file) = self.compress_to(layer, diff, scratch)?;
        file.rewind().map_err(ExportError::io("scratch file"))?;
        Ok((blob, file))
    }

    /// Compresses a layer and gives back where to.
    pub(crate) fn compress_to<W: Write>(
        &self,
        layer: LayerId,
        diff: DiffId,
        out: W,
    ) -> Result<(BlobInfo, W), ExportError> {
        let Self { store, worker, .. } = *self;
        let (compression, level) = (self.packing.compression, self.packing.level());
        let clamp = store.clamp_of(layer, diff)?;
        let total = store.diff(layer, clamp)?.map_or(0, |(_, size)| size);
        let (read, write) = io::pipe().map_err(ExportError::io("pipe"))?;
        // A small pipe works as well.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, PIECE);
        let compressed = std::thread::scope(|scope| {
            let writing = scope.spawn(move || {
                let out = File::from(std::os::fd::OwnedFd::from(write));
                write_tar(store, worker, layer, diff, &out)
            });
            let compress = move || -> io::Result<_> {
                let out = Hashing::new(out);
                let mut encoder = Encoder::new(compression, level, self.cores.get(), out)?;
                let mut tar = Told {
                    read,
                    row: format!("compressing {diff}"),
                    done: 0,
                    total,
                    watch: self.watch,
                    last: Instant::now(),
                };
                io::copy(&mut BufReader::with_capacity(PIECE, &mut tar), &mut encoder)?;
                let finished = encoder.finish()?.finish();
                self.watch.transfer(&tar.row, tar.done, tar.done, true);
                Ok(finished)
            };
            let compressed = compress();
            writing.join().expect("writing a tar does not panic")?;
            compressed.map_err(ExportError::io(format!("layer {diff}")))
        });
        let (out, digest, size) = compressed?;
        let blob = BlobInfo {
            diff,
            digest,
            media_type: compression.oci_layer().unwrap_or_default().to_owned(),
            size,
            encoder: compression.encoder_id(level),
            present: false,
        };
        Ok((blob, out))
    }
}

/// A blob in the words of a manifest's family.
pub(crate) fn descriptor(blob: &BlobInfo, docker: bool) -> Descriptor {
    let family = Compression::of_media_type(&blob.media_type).and_then(|compression| {
        if docker {
            compression.docker_layer()
        } else {
            compression.oci_layer()
        }
    });
    let kind = family.unwrap_or(&blob.media_type);
    Descriptor::new(kind, blob.digest, blob.size)
}

/// A layer that only its publisher gives, in the words of a manifest's family.
pub(crate) fn foreign(named: &Descriptor, docker: bool) -> Option<Descriptor> {
    if !media_type::is_foreign(&named.media_type) || named.urls.as_ref().is_none_or(Vec::is_empty) {
        return None;
    }
    let mut named = named.clone();
    if Compression::of_media_type(&named.media_type) == Some(Compression::Gzip) {
        let kind = if docker {
            media_type::DOCKER_FOREIGN_GZIP
        } else {
            media_type::OCI_FOREIGN_GZIP
        };
        kind.clone_into(&mut named.media_type);
    }
    Some(named)
}

/// A descriptor of the other family: what it names stays the same.
pub(crate) fn of_family(named: &Descriptor, docker: bool) -> Descriptor {
    let compression = Compression::of_media_type(&named.media_type);
    let kind = if media_type::is_config(&named.media_type) {
        Some(if docker {
            media_type::DOCKER_CONFIG
        } else {
            media_type::OCI_CONFIG
        })
    } else if docker {
        compression.and_then(Compression::docker_layer)
    } else {
        compression.and_then(Compression::oci_layer)
    };
    let mut named = named.clone();
    if let Some(kind) = kind {
        kind.clone_into(&mut named.media_type);
        // Who has the blob is where it is pushed to.
        named.urls = None;
    }
    named
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
