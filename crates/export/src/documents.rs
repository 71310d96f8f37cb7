//! From a digest to an image, through the documents that the store has: index, manifest, config.

use kiln_image::{
    Descriptor, Digest, Document, ImageConfig, Manifest, Platform, Reference, media_type,
    parse_manifest,
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

/// The manifest of an image in the store.
pub(crate) fn manifest(store: &Store, digest: Digest) -> Result<(Manifest, Vec<u8>), ExportError> {
    let missing = || ExportError::NoImage(digest.to_string());
    let (kind, bytes) = store.json(digest)?.ok_or_else(missing)?;
    match parse_manifest(&bytes, Some(&kind)) {
        Ok(Document::Manifest(manifest)) => Ok((manifest, bytes)),
        _ => Err(missing()),
    }
}
