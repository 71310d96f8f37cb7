//! Images in, from the archives that `docker save`, `podman save` and `skopeo copy` write.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use kiln_image::manifest::{Document, media_type, parse_manifest};
use kiln_image::{DiffId, Digest, ImageConfig, LayerId, Platform, Reference, compress};
use kiln_store::{Lease, Store};
use kiln_worker::{TarInput, UnpackJob, UnpackedLayer, Worker};
use serde::Deserialize;

use crate::blobs::{keep_tar, spool};
use crate::commit::sha256;
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

/// Loads all images of an archive and tags them. Of an index with several platforms the one that fits is taken.
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
    platform: &Platform,
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
    let images = if archive.members.contains_key("manifest.json") {
        archive.docker()?
    } else if archive.members.contains_key("index.json") {
        archive.oci(platform)?
    } else {
        return Err(invalid(
            "neither manifest.json nor index.json in it: not an image archive".to_owned(),
        ));
    };
    let mut loaded = Vec::new();
    for image in images {
        let config = ImageConfig::from_bytes(&image.config)
            .map_err(|error| invalid(format!("config: {error}")))?;
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
        let committed = keep_config(store, worker, &layers, config, &image.config)?;
        for name in &image.names {
            store.tag(name, committed.manifest)?;
        }
        loaded.push(Loaded {
            image: committed,
            names: image.names,
        });
    }
    Ok(loaded)
}

/// Commits an image whose config came from elsewhere: its bytes, and with them the image's id, stay.
fn keep_config(
    store: &Store,
    worker: &Worker,
    layers: &[LayerId],
    config: ImageConfig,
    bytes: &[u8],
) -> Result<Committed, ExportError> {
    use kiln_image::manifest::{Descriptor, Manifest};
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

struct Image {
    config: Vec<u8>,
    layers: Vec<String>,
    names: Vec<Reference>,
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

    fn docker(&self) -> Result<Vec<Image>, ExportError> {
        let list: Vec<DockerImage> = serde_json::from_slice(&self.read("manifest.json")?)
            .map_err(|error| self.invalid(format!("manifest.json: {error}")))?;
        list.into_iter()
            .map(|image| {
                let names = image.repo_tags.unwrap_or_default();
                Ok(Image {
                    config: self.read(&image.config)?,
                    layers: image.layers,
                    names: names
                        .iter()
                        .map(|name| self.name(name))
                        .collect::<Result<_, _>>()?,
                })
            })
            .collect()
    }

    fn oci(&self, platform: &Platform) -> Result<Vec<Image>, ExportError> {
        let index = match parse_manifest(&self.read("index.json")?, Some(media_type::OCI_INDEX)) {
            Ok(Document::Index(index)) => index,
            Ok(Document::Manifest(_)) => {
                return Err(self.invalid("index.json: a manifest, expected an index"));
            }
            Err(error) => return Err(self.invalid(format!("index.json: {error}"))),
        };
        let mut images: Vec<(Digest, Image)> = Vec::new();
        for descriptor in &index.manifests {
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
            if let Some((_, known)) = images
                .iter_mut()
                .find(|(digest, _)| *digest == descriptor.digest)
            {
                known.names.extend(names);
                continue;
            }
            let mut digest = descriptor.digest;
            let manifest = loop {
                match parse_manifest(&self.blob(digest)?, None) {
                    Ok(Document::Manifest(manifest)) => break manifest,
                    Ok(Document::Index(inner)) => {
                        let chosen = inner.select(platform);
                        digest = chosen
                            .ok_or_else(|| {
                                self.invalid(format!("index {digest} has nothing for {platform}"))
                            })?
                            .digest;
                    }
                    Err(error) => return Err(self.invalid(format!("manifest {digest}: {error}"))),
                }
            };
            let image = Image {
                config: self.blob(manifest.config.digest)?,
                layers: manifest
                    .layers
                    .iter()
                    .map(|layer| blob_name(layer.digest))
                    .collect(),
                names,
            };
            images.push((descriptor.digest, image));
        }
        Ok(images.into_iter().map(|(_, image)| image).collect())
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
