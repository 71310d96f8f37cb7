//! From a digest to an image, through the documents that the store has: index, manifest, config.

use kiln_image::{
    Descriptor, Digest, Distant, Document, ImageConfig, Manifest, Origin, Platform, Reference,
    media_type, parse_manifest,
};
use kiln_store::Store;

use crate::ExportError;

/// Indexes may be in indexes, but not deeper than this.
const DEPTH: usize = 4;

/// An image of which the documents are in the store; its layers may not be.
#[derive(Debug, Clone)]
pub struct Found {
    /// What it was asked for by.
    pub name: Reference,
    /// What the name leads to: the image's manifest, or an index that names it.
    pub digest: Digest,
    /// The digest of the image's manifest.
    pub manifest: Digest,
    /// Its config.
    pub config: ImageConfig,
}

impl Found {
    /// Finds the image for a platform that `digest` leads to; `None` where a document is not in the store.
    ///
    /// # Errors
    /// When the store cannot be read, or the documents lead to no image for the platform.
    pub fn known(
        store: &Store,
        name: &Reference,
        digest: Digest,
        platform: &Platform,
    ) -> Result<Option<Self>, ExportError> {
        Ok(match walk(store, name, digest, platform)? {
            Walk::Found(found) => Some(*found),
            Walk::NoManifest(_) | Walk::NoConfig(_) => None,
        })
    }
}

impl Found {
    /// Its layers by name, had from `origin`; `None` when its documents do not agree.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn distant(
        &self,
        store: &Store,
        origin: &Origin,
    ) -> Result<Option<Vec<Distant>>, ExportError> {
        let (image, _) = manifest(store, self.manifest)?;
        let diffs = &self.config.rootfs.diff_ids;
        if diffs.len() != image.layers.len() {
            return Ok(None);
        }
        let layers = diffs.iter().zip(image.layers).map(|(diff, blob)| Distant {
            diff: *diff,
            content: None,
            blob,
            created: None,
            clamp: None,
            origin: origin.clone(),
        });
        Ok(Some(layers.collect()))
    }
}

/// How far the documents in the store lead.
pub(crate) enum Walk {
    Found(Box<Found>),
    /// A manifest or an index is missing; of what an index names the size is known.
    NoManifest(Option<Descriptor>),
    /// The config is missing.
    NoConfig(Descriptor),
}

/// Follows the documents from `digest` on.
pub(crate) fn walk(
    store: &Store,
    name: &Reference,
    digest: Digest,
    platform: &Platform,
) -> Result<Walk, ExportError> {
    let unusable = |what: String| ExportError::Unusable {
        name: name.to_string(),
        what,
    };
    let mut manifest = digest;
    let mut named = None;
    for _ in 0..=DEPTH {
        let Some((kind, bytes)) = store.json(manifest)? else {
            return Ok(Walk::NoManifest(named));
        };
        let document =
            parse_manifest(&bytes, Some(&kind)).map_err(|error| unusable(error.to_string()))?;
        let image = match document {
            Document::Index(index) => {
                let Some(chosen) = index.select(platform) else {
                    let has = index.manifests.into_iter().filter_map(|it| it.platform);
                    return Err(ExportError::Platform {
                        name: name.to_string(),
                        wanted: platform.clone(),
                        // Attestations say that they are for an unknown system.
                        has: has.filter(|it| it.os != "unknown").collect(),
                    });
                };
                manifest = chosen.digest;
                named = Some(chosen.clone());
                continue;
            }
            Document::Manifest(image) => image,
        };
        if !media_type::is_config(&image.config.media_type) {
            let what = format!("not an image, but {}", image.config.media_type);
            return Err(unusable(what));
        }
        let Some((_, config)) = store.json(image.config.digest)? else {
            return Ok(Walk::NoConfig(image.config));
        };
        let config = ImageConfig::from_bytes(&config)
            .map_err(|error| unusable(format!("its config cannot be read: {error}")))?;
        let has = config.platform();
        if has.os != platform.os || has.architecture != platform.architecture {
            // An index may have chosen what also runs here, as 32-bit programs do.
            let runs = platform.runs().contains(&has.clone().normalised());
            if named.is_none() || !runs {
                return Err(ExportError::Platform {
                    name: name.to_string(),
                    wanted: platform.clone(),
                    has: vec![has],
                });
            }
        }
        return Ok(Walk::Found(Box::new(Found {
            name: name.clone(),
            digest,
            manifest,
            config,
        })));
    }
    Err(unusable("too many indexes in indexes".to_owned()))
}

/// A manifest or an index in the store.
pub(crate) fn document(store: &Store, digest: Digest) -> Result<Document, ExportError> {
    let missing = || ExportError::NoImage(digest.to_string());
    let (kind, bytes) = store.json(digest)?.ok_or_else(missing)?;
    parse_manifest(&bytes, Some(&kind)).map_err(|_| missing())
}

/// The manifest of an image in the store.
pub(crate) fn manifest(store: &Store, digest: Digest) -> Result<(Manifest, Vec<u8>), ExportError> {
    let missing = || ExportError::NoImage(digest.to_string());
    let (kind, bytes) = store.json(digest)?.ok_or_else(missing)?;
    match parse_manifest(&bytes, Some(&kind)) {
        Ok(Document::Manifest(manifest)) => Ok((manifest, bytes)),
        _ => Err(missing()),
    }
}

#[cfg(test)]
mod tests {
    use kiln_image::Index;
    use kiln_store::{IdKind, OpenOptions};

    use super::*;

    struct Place {
        store: Store,
        _folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let options = OpenOptions {
                owner: rustix::process::geteuid().as_raw(),
                ids: IdKind::Real,
                boot_id: "boot".to_owned(),
            };
            Self {
                store: Store::open(folder.path(), options).unwrap(),
                _folder: folder,
            }
        }

        /// A manifest and its config; the config is put into the store if asked for.
        fn image(&self, platform: &str, config_type: &str, with_config: bool) -> Descriptor {
            let config = ImageConfig::scratch(&platform.parse().unwrap()).to_bytes();
            let digest = crate::commit::sha256(&config);
            if with_config {
                self.store.put_json(config_type, &config).unwrap();
            }
            let config = Descriptor::new(config_type, digest, config.len() as u64);
            let manifest = Manifest::new(media_type::OCI_MANIFEST, config, Vec::new()).to_bytes();
            let digest = self.store.put_json(media_type::OCI_MANIFEST, &manifest);
            let size = manifest.len() as u64;
            let mut named = Descriptor::new(media_type::OCI_MANIFEST, digest.unwrap(), size);
            named.platform = Some(platform.parse().unwrap());
            named
        }

        fn index(&self, entries: Vec<Descriptor>) -> Descriptor {
            let bytes = Index::new(media_type::OCI_INDEX, entries).to_bytes();
            let digest = self.store.put_json(media_type::OCI_INDEX, &bytes).unwrap();
            Descriptor::new(media_type::OCI_INDEX, digest, bytes.len() as u64)
        }

        fn walk(&self, from: &Descriptor, platform: &str) -> Result<Walk, String> {
            let name = "app".parse().unwrap();
            walk(&self.store, &name, from.digest, &platform.parse().unwrap())
                .map_err(|error| error.to_string())
        }
    }

    #[test]
    fn the_documents_lead_to_the_image_of_the_platform() {
        let place = Place::new();
        let entries = ["linux/amd64", "linux/arm64"]
            .map(|platform| place.image(platform, media_type::OCI_CONFIG, true));
        let arm = entries[1].digest;
        let index = place.index(entries.to_vec());
        let Ok(Walk::Found(found)) = place.walk(&index, "linux/arm64") else {
            panic!("not found");
        };
        assert_eq!((found.digest, found.manifest), (index.digest, arm));
        assert_eq!(found.config.platform().architecture, "arm64");

        let error = place.walk(&index, "linux/s390x").err().unwrap();
        assert!(
            error.contains("it is for linux/amd64, linux/arm64"),
            "{error}"
        );
        let error = place.walk(&entries[0], "linux/arm64").err().unwrap();
        assert!(error.contains("no image for linux/arm64"), "{error}");
    }

    #[test]
    fn what_is_missing_is_named() {
        let place = Place::new();
        let no_config = place.image("linux/amd64", media_type::OCI_CONFIG, false);
        assert!(matches!(
            place.walk(&no_config, "linux/amd64"),
            Ok(Walk::NoConfig(_))
        ));
        let mut elsewhere = no_config.clone();
        elsewhere.digest = crate::commit::sha256(b"elsewhere");
        let index = place.index(vec![elsewhere.clone()]);
        let Ok(Walk::NoManifest(Some(named))) = place.walk(&index, "linux/amd64") else {
            panic!("the manifest is not there");
        };
        assert_eq!(named, elsewhere);
        assert!(matches!(
            place.walk(&elsewhere, "linux/amd64"),
            Ok(Walk::NoManifest(None))
        ));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let place = Place::new();
        let chart = place.image(
            "linux/amd64",
            "application/vnd.cncf.helm.config.v1+json",
            true,
        );
        let error = place.walk(&chart, "linux/amd64").err().unwrap();
        assert!(
            error.contains("not an image, but application/vnd.cncf"),
            "{error}"
        );
        let mut deep = place.image("linux/amd64", media_type::OCI_CONFIG, true);
        for _ in 0..6 {
            deep.platform = Some("linux/amd64".parse().unwrap());
            deep = place.index(vec![deep]);
        }
        let error = place.walk(&deep, "linux/amd64").err().unwrap();
        assert!(error.contains("too many indexes"), "{error}");
    }
}
