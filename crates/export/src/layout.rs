//! Images in, from folders in the OCI's layout (OCI image spec, image-layout.md). As with registries, documents come
//! first and layers only when they are needed.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::SystemTime;

use kiln_image::manifest::{Document, media_type, parse_manifest};
use kiln_image::{Descriptor, DiffId, Digest, Index, LayerId, Platform, Reference};
use kiln_store::{ImageInfo, Lease, Store};
use kiln_worker::{TarInput, UnpackJob, Worker};

use crate::blobs::Hashing;
use crate::commit::sha256;
use crate::documents::{Walk, manifest, walk};
use crate::load::{blob_name, keep, seal};
use crate::{ExportError, Found};

/// Documents are not larger than this.
const MOST_JSON: u64 = 16 << 20;
/// More documents than this are never on the way to one image.
const DOCUMENTS: usize = 8;
/// What an entry of `index.json` is called: a tag, or with containerd a whole name.
const NAMES: [&str; 2] = [
    "org.opencontainers.image.ref.name",
    "io.containerd.image.name",
];

/// A layout folder.
pub struct Layout<'a> {
    /// Where its images go.
    pub store: &'a Store,
    /// What touches layers.
    pub worker: &'a Worker,
    /// Where it is.
    pub folder: &'a Path,
}

impl Layout<'_> {
    /// Finds an image by `TAG`, `@DIGEST` or both (the digest decides) and brings its documents into the store. Without
    /// either it is the one tagged `latest`, or the only one there is. `name` is what messages call it.
    ///
    /// # Errors
    /// When the folder is no layout, or has no such image.
    pub fn find(
        &self,
        wanted: &str,
        name: &Reference,
        platform: &Platform,
    ) -> Result<Found, ExportError> {
        let (tag, digest) = wanted.split_once('@').unwrap_or((wanted, ""));
        let digest = if digest.is_empty() {
            self.tagged(tag)?
        } else {
            digest
                .parse()
                .map_err(|error| self.invalid(format!("digest {digest:?}: {error}")))?
        };
        let name = name.with_digest(digest);
        for _ in 0..DOCUMENTS {
            match walk(self.store, &name, digest, platform)? {
                Walk::Found(found) => return Ok(*found),
                Walk::NoManifest(named) => {
                    let bytes = self.blob(named.map_or(digest, |named| named.digest))?;
                    let document = parse_manifest(&bytes, None)
                        .map_err(|error| self.invalid(error.to_string()))?;
                    let kind = match document {
                        Document::Manifest(it) => {
                            it.media_type.unwrap_or(media_type::OCI_MANIFEST.to_owned())
                        }
                        Document::Index(it) => {
                            it.media_type.unwrap_or(media_type::OCI_INDEX.to_owned())
                        }
                    };
                    self.store.put_json(&kind, &bytes)?;
                }
                Walk::NoConfig(config) => {
                    let bytes = self.blob(config.digest)?;
                    self.store.put_json(&config.media_type, &bytes)?;
                }
            }
        }
        Err(self.invalid("too many documents lead to the image".to_owned()))
    }

    /// Brings the layers of an image that was found, and keeps the image.
    ///
    /// # Errors
    /// When a layer is missing, damaged or cannot be unpacked.
    pub fn fetch(&self, found: &Found, lease: &Lease) -> Result<(), ExportError> {
        let (image, _) = manifest(self.store, found.manifest)?;
        let diffs = &found.config.rootfs.diff_ids;
        if image.layers.len() != diffs.len() {
            return Err(self.invalid(format!(
                "the manifest has {} layers, the config {}",
                image.layers.len(),
                diffs.len()
            )));
        }
        let mut layers = Vec::new();
        let mut size = 0;
        for (blob, diff) in image.layers.iter().zip(diffs) {
            let layer = self.layer(blob, *diff, lease)?;
            size += self.store.layer(layer)?.map_or(0, |info| info.size);
            layers.push(layer);
        }
        let info = ImageInfo {
            config: image.config.digest,
            layers,
            size,
            created: found.config.created.map(SystemTime::from),
            platform: found.config.platform(),
        };
        Ok(self.store.set_image(found.manifest, &info)?)
    }

    pub(crate) fn invalid(&self, what: String) -> ExportError {
        ExportError::Invalid {
            path: self.folder.display().to_string(),
            what,
        }
    }

    pub(crate) fn tagged(&self, tag: &str) -> Result<Digest, ExportError> {
        let bytes = self.read("index.json")?;
        let index: Index = match parse_manifest(&bytes, Some(media_type::OCI_INDEX)) {
            Ok(Document::Index(index)) => index,
            Ok(Document::Manifest(_)) => {
                return Err(self.invalid("index.json: a manifest, expected an index".to_owned()));
            }
            Err(error) => return Err(self.invalid(format!("index.json: {error}"))),
        };
        let names = |entry: &Descriptor| -> Vec<String> {
            let annotations = entry.annotations.as_ref();
            let of = |key: &&str| annotations.and_then(|known| known.get(*key)).cloned();
            NAMES.iter().filter_map(of).collect()
        };
        let looked_for = if tag.is_empty() { "latest" } else { tag };
        let is_it = |entry: &&Descriptor| {
            names(entry).iter().any(|name| {
                let parsed = name.parse::<Reference>().ok();
                let tag = parsed.as_ref().and_then(Reference::tag);
                name == looked_for || name.contains([':', '/']) && tag == Some(looked_for)
            })
        };
        if let Some(entry) = index.manifests.iter().find(is_it) {
            return Ok(entry.digest);
        }
        match &index.manifests[..] {
            [only] if tag.is_empty() => Ok(only.digest),
            all => {
                let known: Vec<String> = all.iter().flat_map(names).collect();
                let known = if known.is_empty() {
                    "no image with a name".to_owned()
                } else {
                    known.join(", ")
                };
                Err(self.invalid(format!("no image {looked_for:?}; it has {known}")))
            }
        }
    }

    /// The file of a blob, whole and checked.
    pub(crate) fn file(&self, blob: &Descriptor) -> Result<File, ExportError> {
        let path = self.folder.join(blob_name(blob.digest));
        let io = || ExportError::io(path.display().to_string());
        let mut file = File::open(&path).map_err(io())?;
        let mut hashing = Hashing::new(std::io::sink());
        std::io::copy(&mut file, &mut hashing).map_err(io())?;
        let (_, got, _) = hashing.finish();
        if got != blob.digest {
            let what = format!(
                "blob {} is damaged: its bytes have the digest {got}",
                blob.digest
            );
            return Err(self.invalid(what));
        }
        file.rewind().map_err(io())?;
        Ok(file)
    }

    fn read(&self, member: &str) -> Result<Vec<u8>, ExportError> {
        let path = self.folder.join(member);
        let io = || ExportError::io(path.display().to_string());
        let mut bytes = Vec::new();
        let file = File::open(&path).map_err(io())?;
        file.take(MOST_JSON + 1)
            .read_to_end(&mut bytes)
            .map_err(io())?;
        if bytes.len() as u64 > MOST_JSON {
            return Err(self.invalid(format!("{member} is larger than {MOST_JSON} bytes")));
        }
        Ok(bytes)
    }

    pub(crate) fn blob(&self, digest: Digest) -> Result<Vec<u8>, ExportError> {
        let bytes = self.read(&blob_name(digest))?;
        let got = sha256(&bytes);
        if got == digest {
            Ok(bytes)
        } else {
            let what = format!("blob {digest} is damaged: its bytes have the digest {got}");
            Err(self.invalid(what))
        }
    }

    pub(crate) fn layer(
        &self,
        blob: &Descriptor,
        diff: DiffId,
        lease: &Lease,
    ) -> Result<LayerId, ExportError> {
        if let Some(known) = self.store.layer_by_diff(diff)? {
            self.store.protect(lease, &[known])?;
            return Ok(known);
        }
        let path = self.folder.join(blob_name(blob.digest));
        let shown = path.display().to_string();
        let file = File::open(&path).map_err(ExportError::io(&shown))?;
        let len = file.metadata().map_err(ExportError::io(&shown))?.len();
        let into = self.store.begin_layer(lease)?;
        let input = TarInput::Range { offset: 0, len };
        let unpacked = self
            .worker
            .unpack(UnpackJob { into, input }, &[file.as_fd()])
            .map_err(ExportError::unpack(&shown))?;
        if unpacked.diff_id != diff {
            return Err(self.invalid(format!(
                "layer {} has the diff id {}, the config says {diff}",
                blob.digest, unpacked.diff_id
            )));
        }
        if !unpacked.reproducible {
            keep(self.store, &file, 0, len, diff, &shown)?;
        }
        seal(self.store, &unpacked)
    }
}
