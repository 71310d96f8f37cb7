//! Images in, from the archives that `docker save`, `podman save` and `skopeo copy` write.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use kiln_image::manifest::{Document, media_type, parse_manifest};
use kiln_image::{
    Descriptor, DiffId, Digest, ImageConfig, Index, LayerId, Manifest, Platform, Reference,
    compress,
};
use kiln_store::{BlobInfo, Lease, Store};
use kiln_worker::{TarInput, UnpackJob, UnpackedLayer, Worker};
use serde::Deserialize;

use crate::blobs::{PULLED, keep_tar, spool};
use crate::commit::sha256;
use crate::pull::blob_of;
use crate::{Committed, ExportError, commit};

/// JSON in an archive is not larger than this.
const MOST_JSON: u64 = 16 << 20;

/// An image that came in.
#[derive(Debug)]
pub struct Loaded {
    /// The image.
    pub image: Committed,
    /// Its names, already tagged.
    pub names: Vec<Reference>,
}

/// Loads all images of an archive and tags them. Of an index all images come that the archive has, or those that run
/// best on `platforms` where some are given; a name leads to the index if more than one came.
///
/// # Errors
/// When the file is no image archive, is damaged, or the store or the worker fails. Images that came before the fault
/// stay.
pub fn load(
    store: &Store,
    worker: &Worker,
    lease: &Lease,
    file: &File,
    path: &str,
    platforms: &[Platform],
) -> Result<Vec<Loaded>, ExportError> {
    let invalid = |what: String| ExportError::Invalid {
        path: path.to_owned(),
        what,
    };
    let spooled;
    let mut magic = [0; 6];
    let plain = file.metadata().is_ok_and(|meta| meta.is_file())
        && file.read_at(&mut magic, 0).is_ok()
        && !compress::is_compressed(&magic);
    let file = if plain {
        file
    } else {
        spooled = spool(store, file, path)?;
        &spooled
    };
    let archive = Archive {
        file,
        path,
        members: members(file, path)?,
    };
    let docker = archive.members.contains_key("manifest.json");
    let oci = archive.members.contains_key("index.json");
    // Docker's list knows no platforms.
    let images = if oci && (!docker || archive.has_index()?) {
        archive.oci(store, platforms)?
    } else if docker {
        archive.docker()?
    } else {
        return Err(invalid(
            "neither manifest.json nor index.json in it: not an image archive".to_owned(),
        ));
    };
    let mut loaded = Vec::new();
    for found in images {
        let mut last = None;
        let count = found.images.len();
        for image in found.images {
            let config = ImageConfig::from_bytes(&image.config)
                .map_err(|error| invalid(format!("config: {error}")))?;
            let has = config.platform();
            let runs = |platform: &Platform| platform.runs().contains(&has.clone().normalised());
            if !platforms.is_empty() && !platforms.iter().any(runs) {
                return Err(ExportError::Platform {
                    name: path.to_owned(),
                    wanted: platforms[0].clone(),
                    has: vec![has],
                });
            }
            let diffs = config.rootfs.diff_ids.clone();
            if diffs.len() != image.layers.len() {
                return Err(invalid(format!(
                    "{} layers, but {} diff ids",
                    image.layers.len(),
                    diffs.len()
                )));
            }
            let mut layers = Vec::new();
            for (member, diff) in image.layers.iter().zip(diffs) {
                layers.push(archive.layer(store, worker, lease, member, diff)?);
            }
            last = Some(match &image.manifest {
                Some(manifest) => keep_manifest(store, layers, &config, &image.config, manifest)?,
                None => keep_config(store, worker, &layers, config, &image.config)?,
            });
        }
        let Some(mut committed) = last else {
            continue;
        };
        if let Some((kind, bytes)) = found.index.filter(|_| count > 1) {
            let index = store.put_json(&kind, &bytes)?;
            store.set_index(index)?;
            committed = Committed {
                manifest: index,
                config: index,
            };
        }
        for name in &found.names {
            store.tag(name, committed.manifest)?;
        }
        loaded.push(Loaded {
            image: committed,
            names: found.names,
        });
    }
    Ok(loaded)
}

/// Keeps an image with the manifest that it came with.
fn keep_manifest(
    store: &Store,
    layers: Vec<LayerId>,
    config: &ImageConfig,
    config_bytes: &[u8],
    (kind, bytes, document): &(String, Vec<u8>, Manifest),
) -> Result<Committed, ExportError> {
    let digest = store.put_json(&document.config.media_type, config_bytes)?;
    let mut size = 0;
    let descriptors = document.layers.iter().zip(&config.rootfs.diff_ids);
    for (layer, (named, diff)) in layers.iter().zip(descriptors) {
        size += store.layer(*layer)?.map_or(0, |info| info.size);
        if named.digest != blob_of(*diff) {
            // What registries may know it as.
            store.set_blob(&BlobInfo {
                diff: *diff,
                digest: named.digest,
                media_type: named.media_type.clone(),
                size: named.size,
                encoder: PULLED.to_owned(),
                present: false,
            })?;
        }
    }
    let manifest = store.put_json(kind, bytes)?;
    let info = kiln_store::ImageInfo {
        config: digest,
        layers,
        size,
        created: config.created.map(std::time::SystemTime::from),
        platform: config.platform(),
    };
    store.set_image(manifest, &info)?;
    Ok(Committed {
        manifest,
        config: digest,
    })
}

/// Commits an image whose config came from elsewhere: its bytes, and with them the image's id, stay.
fn keep_config(
    store: &Store,
    worker: &Worker,
    layers: &[LayerId],
    config: ImageConfig,
    bytes: &[u8],
) -> Result<Committed, ExportError> {
    if config.to_bytes() == bytes
        && config.created.is_some()
        && config.history.iter().all(|it| it.created.is_some())
    {
        return commit(store, worker, layers, 0, config, None, &BTreeMap::new());
    }
    let digest = store.put_json(media_type::OCI_CONFIG, bytes)?;
    let mut descriptors = Vec::new();
    let mut size = 0;
    for (layer, diff) in layers.iter().zip(&config.rootfs.diff_ids) {
        let (_, tar_size) = crate::digest_layer(store, worker, *layer, None)?;
        descriptors.push(Descriptor::new(
            media_type::OCI_LAYER,
            Digest::new(*diff.as_bytes()),
            tar_size,
        ));
        size += store.layer(*layer)?.map_or(0, |info| info.size);
    }
    let descriptor = Descriptor::new(media_type::OCI_CONFIG, digest, bytes.len() as u64);
    let manifest = Manifest::new(media_type::OCI_MANIFEST, descriptor, descriptors);
    let manifest = store.put_json(media_type::OCI_MANIFEST, &manifest.to_bytes())?;
    let created = config.created.map(std::time::SystemTime::from);
    let platform = config.platform();
    let info = kiln_store::ImageInfo {
        config: digest,
        layers: layers.to_vec(),
        size,
        created,
        platform,
    };
    store.set_image(manifest, &info)?;
    Ok(Committed {
        manifest,
        config: digest,
    })
}

/// What a name leads to in an archive.
struct Found {
    names: Vec<Reference>,
    images: Vec<Image>,
    /// The index that names the images, with its media type.
    index: Option<(String, Vec<u8>)>,
}

struct Image {
    config: Vec<u8>,
    layers: Vec<String>,
    /// Its manifest: media type, bytes, what they say.
    manifest: Option<(String, Vec<u8>, Manifest)>,
}

struct Archive<'a> {
    file: &'a File,
    path: &'a str,
    members: HashMap<String, (u64, u64)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Archive<'_> {
    fn invalid(&self, what: impl Into<String>) -> ExportError {
        ExportError::Invalid {
            path: self.path.to_owned(),
            what: what.into(),
        }
    }

    fn read(&self, member: &str) -> Result<Vec<u8>, ExportError> {
        let (offset, len) = *self
            .members
            .get(member)
            .ok_or_else(|| self.invalid(format!("{member} is missing")))?;
        if len > MOST_JSON {
            return Err(self.invalid(format!("{member} is larger than {MOST_JSON} bytes")));
        }
        let mut bytes = vec![0; len as usize];
        self.file
            .read_exact_at(&mut bytes, offset)
            .map_err(ExportError::io(self.path))?;
        Ok(bytes)
    }

    fn name(&self, text: &str) -> Result<Reference, ExportError> {
        text.parse()
            .map_err(|error| self.invalid(format!("image name {text:?}: {error}")))
    }

    fn docker(&self) -> Result<Vec<Found>, ExportError> {
        let list: Vec<DockerImage> = serde_json::from_slice(&self.read("manifest.json")?)
            .map_err(|error| self.invalid(format!("manifest.json: {error}")))?;
        list.into_iter()
            .map(|image| {
                let names = image.repo_tags.unwrap_or_default();
                let names = names.iter().map(|name| self.name(name));
                Ok(Found {
                    names: names.collect::<Result<_, _>>()?,
                    images: vec![Image {
                        config: self.read(&image.config)?,
                        layers: image.layers,
                        manifest: None,
                    }],
                    index: None,
                })
            })
            .collect()
    }

    fn index(&self) -> Result<Index, ExportError> {
        match parse_manifest(&self.read("index.json")?, Some(media_type::OCI_INDEX)) {
            Ok(Document::Index(index)) => Ok(index),
            Ok(Document::Manifest(_)) => {
                Err(self.invalid("index.json: a manifest, expected an index"))
            }
            Err(error) => Err(self.invalid(format!("index.json: {error}"))),
        }
    }

    /// Whether it has an image of several platforms.
    fn has_index(&self) -> Result<bool, ExportError> {
        let is_index = |entry: &Descriptor| media_type::is_index(&entry.media_type);
        Ok(self.index()?.manifests.iter().any(is_index))
    }

    fn oci(&self, store: &Store, platforms: &[Platform]) -> Result<Vec<Found>, ExportError> {
        let mut all: Vec<(Digest, Found)> = Vec::new();
        for descriptor in &self.index()?.manifests {
            let annotation = |key: &str| {
                descriptor
                    .annotations
                    .as_ref()
                    .and_then(|annotations| annotations.get(key))
                    .cloned()
            };
            let name = annotation("io.containerd.image.name").or_else(|| {
                annotation("org.opencontainers.image.ref.name")
                    .filter(|name| name.contains(['/', ':']))
            });
            let names = name
                .iter()
                .map(|name| self.name(name))
                .collect::<Result<Vec<_>, _>>()?;
            if let Some((_, known)) = all
                .iter_mut()
                .find(|(digest, _)| *digest == descriptor.digest)
            {
                known.names.extend(names);
                continue;
            }
            let bytes = self.blob(descriptor.digest)?;
            let (images, index) = match self.document(descriptor.digest, &bytes)? {
                Document::Manifest(manifest) => {
                    (vec![self.image(descriptor, bytes, manifest)?], None)
                }
                Document::Index(index) => {
                    let images = self.members(store, descriptor.digest, &index, platforms)?;
                    (images, Some((descriptor.media_type.clone(), bytes)))
                }
            };
            let found = Found {
                names,
                images,
                index,
            };
            all.push((descriptor.digest, found));
        }
        Ok(all.into_iter().map(|(_, found)| found).collect())
    }

    fn document(&self, digest: Digest, bytes: &[u8]) -> Result<Document, ExportError> {
        parse_manifest(bytes, None)
            .map_err(|error| self.invalid(format!("manifest {digest}: {error}")))
    }

    fn image(
        &self,
        named: &Descriptor,
        bytes: Vec<u8>,
        manifest: Manifest,
    ) -> Result<Image, ExportError> {
        Ok(Image {
            config: self.blob(manifest.config.digest)?,
            layers: manifest
                .layers
                .iter()
                .map(|layer| blob_name(layer.digest))
                .collect(),
            manifest: Some((named.media_type.clone(), bytes, manifest)),
        })
    }

    /// The images of an index that the archive has, or those for `platforms`.
    fn members(
        &self,
        store: &Store,
        digest: Digest,
        index: &Index,
        platforms: &[Platform],
    ) -> Result<Vec<Image>, ExportError> {
        let mut wanted: Vec<&Descriptor> = Vec::new();
        for platform in platforms {
            let chosen = index.select(platform).ok_or_else(|| {
                let has = index.manifests.iter().filter_map(|it| it.platform.clone());
                ExportError::Platform {
                    name: self.path.to_owned(),
                    wanted: platform.clone(),
                    has: has.filter(|it| it.os != "unknown").collect(),
                }
            })?;
            if !wanted.contains(&chosen) {
                wanted.push(chosen);
            }
        }
        let mut images = Vec::new();
        for entry in &index.manifests {
            let named = wanted.is_empty() || wanted.contains(&entry);
            if !named || !self.members.contains_key(&blob_name(entry.digest)) {
                continue;
            }
            let bytes = self.blob(entry.digest)?;
            let manifest = match self.document(entry.digest, &bytes)? {
                Document::Manifest(manifest) => manifest,
                Document::Index(inner) => {
                    images.extend(self.members(store, entry.digest, &inner, platforms)?);
                    continue;
                }
            };
            // Attestations are no images.
            if !media_type::is_config(&manifest.config.media_type)
                || manifest
                    .layers
                    .iter()
                    .any(|layer| !media_type::is_layer(&layer.media_type))
            {
                continue;
            }
            let image = self.image(entry, bytes, manifest)?;
            let diffs = ImageConfig::from_bytes(&image.config).map(|it| it.rootfs.diff_ids);
            let mut whole = true;
            for (layer, diff) in image.layers.iter().zip(diffs.unwrap_or_default()) {
                whole &= self.members.contains_key(layer) || store.layer_by_diff(diff)?.is_some();
            }
            if whole {
                images.push(image);
            }
        }
        if images.is_empty() {
            let what = format!("index {digest} has no image whose layers are in the archive");
            return Err(self.invalid(what));
        }
        Ok(images)
    }

    fn blob(&self, digest: Digest) -> Result<Vec<u8>, ExportError> {
        let bytes = self.read(&blob_name(digest))?;
        if sha256(&bytes) != digest {
            return Err(self.invalid(format!(
                "blob {digest} is damaged: its bytes have the digest {}",
                sha256(&bytes)
            )));
        }
        Ok(bytes)
    }

    fn layer(
        &self,
        store: &Store,
        worker: &Worker,
        lease: &Lease,
        member: &str,
        diff: DiffId,
    ) -> Result<LayerId, ExportError> {
        if let Some(known) = store.layer_by_diff(diff)? {
            store.protect(lease, &[known])?;
            return Ok(known);
        }
        let (offset, len) = *self
            .members
            .get(member)
            .ok_or_else(|| self.invalid(format!("{member} is missing")))?;
        let into = store.begin_layer(lease)?;
        let input = TarInput::Range { offset, len };
        let unpacked = worker
            .unpack(UnpackJob { into, input }, &[self.file.as_fd()])
            .map_err(ExportError::unpack(&format!("{}: {member}", self.path)))?;
        if unpacked.diff_id != diff {
            let what = format!(
                "{member} is damaged: its tar has the digest {}, expected {diff}",
                unpacked.diff_id
            );
            return Err(self.invalid(what));
        }
        if !unpacked.reproducible {
            keep(store, self.file, offset, len, diff, self.path)?;
        }
        seal(store, &unpacked)
    }
}

pub(crate) fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Seals a layer that was unpacked.
pub(crate) fn seal(store: &Store, unpacked: &UnpackedLayer) -> Result<LayerId, ExportError> {
    let made = &unpacked.made;
    store.seal_layer(made.layer, &made.into())?;
    store.set_diff(made.layer, None, unpacked.diff_id, unpacked.tar_size)?;
    Ok(made.layer)
}

/// Keeps a tar in a file, compressed or not, that Kiln would write in another way.
pub(crate) fn keep(
    store: &Store,
    file: &File,
    offset: u64,
    len: u64,
    diff: DiffId,
    path: &str,
) -> Result<(), ExportError> {
    let range = Range {
        file,
        at: offset,
        end: offset + len,
    };
    let (_, mut tar) =
        compress::decoder(io::BufReader::new(range)).map_err(ExportError::io(path))?;
    keep_tar(store, &mut tar, diff)
}

/// A part of a file.
pub(crate) struct Range<'a> {
    pub(crate) file: &'a File,
    pub(crate) at: u64,
    pub(crate) end: u64,
}

impl Read for Range<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer
            .len()
            .min(usize::try_from(self.end - self.at).unwrap_or(usize::MAX));
        let got = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += got as u64;
        Ok(got)
    }
}

/// The files of an uncompressed tar, with where their content stands.
fn members(file: &File, path: &str) -> Result<HashMap<String, (u64, u64)>, ExportError> {
    let len = file.metadata().map_err(ExportError::io(path))?.len();
    let mut members = HashMap::new();
    let mut reader = kiln_image::tar::Reader::new(Range {
        file,
        at: 0,
        end: len,
    });
    let mut links = Vec::new();
    loop {
        let entry = reader.next_entry().map_err(|error| ExportError::Invalid {
            path: path.to_owned(),
            what: error.to_string(),
        })?;
        let Some(entry) = entry else { break };
        let name = String::from_utf8_lossy(&entry.header.path)
            .trim_start_matches("./")
            .to_owned();
        match &entry.header.kind {
            kiln_image::tar::EntryKind::File => {
                members.insert(name, (entry.content_offset, entry.header.size));
            }
            // Old archives of docker have one layer twice as a link.
            kiln_image::tar::EntryKind::Symlink | kiln_image::tar::EntryKind::HardLink => {
                links.push((
                    name,
                    String::from_utf8_lossy(&entry.header.link).into_owned(),
                ));
            }
            _ => {}
        }
    }
    for (name, target) in links {
        let folder = name.rsplit_once('/').map_or("", |(folder, _)| folder);
        let cleaned = kiln_image::LayerPath::clean(format!("{folder}/{target}"));
        let cleaned = String::from_utf8_lossy(cleaned.as_bytes()).into_owned();
        if let Some(at) = members
            .get(&cleaned)
            .or_else(|| members.get(&target))
            .copied()
        {
            members.insert(name, at);
        }
    }
    Ok(members)
}
