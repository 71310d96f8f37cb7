//! An image in the local store.

use std::collections::BTreeMap;
use std::time::SystemTime;

use jiff::Timestamp;
use kiln_image::manifest::{Descriptor, Manifest, media_type};
use kiln_image::{Digest, ImageConfig, Layer, LayerId};
use kiln_store::{ImageInfo, Store};
use kiln_worker::Worker;
use sha2::{Digest as _, Sha256};

use crate::{ExportError, digest_layer};

/// An image that is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// The manifest's digest.
    pub manifest: Digest,
    /// The config's digest: the image's id.
    pub config: Digest,
}

/// Makes an image of layers and a config whose history is complete but for times. `own` says how many of the layers,
/// from the top, are this build's; the times of the others are not clamped, since they are somebody else's bytes.
///
/// The manifest names uncompressed layers, so its digest is known without compressing anything. All times come from the
/// layers' own records, so that a build that executes nothing makes the same image again.
///
/// # Errors
/// When the store or the worker fails.
pub fn commit(
    store: &Store,
    worker: &Worker,
    layers: &[LayerId],
    own: usize,
    mut config: ImageConfig,
    clamp: Option<i64>,
    annotations: &BTreeMap<String, String>,
) -> Result<Committed, ExportError> {
    let mut descriptors = Vec::with_capacity(layers.len());
    let mut created = Vec::with_capacity(layers.len());
    let mut size = 0;
    config.rootfs.diff_ids.clear();
    for (at, layer) in layers.iter().enumerate() {
        let clamp = clamp.filter(|_| at + own >= layers.len());
        let (diff, tar_size) = digest_layer(store, worker, *layer, clamp)?;
        config.rootfs.diff_ids.push(diff);
        descriptors.push(Descriptor::new(
            media_type::OCI_LAYER,
            Digest::new(*diff.as_bytes()),
            tar_size,
        ));
        let info = store.layer(*layer)?;
        created.push(
            info.as_ref()
                .and_then(|info| Timestamp::try_from(info.created).ok()),
        );
        size += info.map_or(0, |info| info.size);
    }
    date(
        &mut config,
        &created,
        clamp.and_then(|seconds| Timestamp::from_second(seconds).ok()),
    );
    let config_bytes = config.to_bytes();
    let config_digest = store.put_json(media_type::OCI_CONFIG, &config_bytes)?;
    let descriptor = Descriptor::new(
        media_type::OCI_CONFIG,
        config_digest,
        config_bytes.len() as u64,
    );
    let manifest = Manifest {
        annotations: (!annotations.is_empty()).then(|| annotations.clone()),
        ..Manifest::new(media_type::OCI_MANIFEST, descriptor, descriptors)
    };
    let manifest = store.put_json(media_type::OCI_MANIFEST, &manifest.to_bytes())?;
    let info = ImageInfo {
        config: config_digest,
        layers: layers.to_vec(),
        size,
        created: config.created.map(SystemTime::from),
        platform: config.platform(),
    };
    store.set_image(manifest, &info)?;
    Ok(Committed {
        manifest,
        config: config_digest,
    })
}

/// Completes a config of a stack of which not all layers are here: as [`commit`] does, but no image is kept.
pub(crate) fn complete(
    store: &Store,
    worker: &Worker,
    layers: &[Layer],
    own: usize,
    mut config: ImageConfig,
    clamp: Option<i64>,
) -> Result<ImageConfig, ExportError> {
    let mut created = Vec::with_capacity(layers.len());
    config.rootfs.diff_ids.clear();
    for (at, layer) in layers.iter().enumerate() {
        let clamp = clamp.filter(|_| at + own >= layers.len());
        let (diff, time) = match layer {
            Layer::Here(id, _) => {
                let created = store.layer(*id)?.map(|info| info.created);
                let time = created.and_then(|created| Timestamp::try_from(created).ok());
                (digest_layer(store, worker, *id, clamp)?.0, time)
            }
            Layer::Distant(distant) => (distant.diff, distant.created),
        };
        config.rootfs.diff_ids.push(diff);
        created.push(time);
    }
    let clamp = clamp.and_then(|seconds| Timestamp::from_second(seconds).ok());
    date(&mut config, &created, clamp);
    Ok(config)
}

/// Fills in the times: an entry with a layer has its layer's, one without has that of the entry before it.
fn date(config: &mut ImageConfig, layers: &[Option<Timestamp>], clamp: Option<Timestamp>) {
    let mut layers = layers.iter();
    let mut last = None;
    for entry in &mut config.history {
        let layer = if entry.empty_layer {
            None
        } else {
            layers.next().copied().flatten()
        };
        if entry.created.is_none() {
            entry.created = clamp.or(layer).or(last);
        }
        last = entry.created.or(last);
    }
    // Nothing has a time: an image of metadata alone is the same whenever it is built.
    let last = last.or(config.created).unwrap_or(Timestamp::UNIX_EPOCH);
    for entry in &mut config.history {
        entry.created.get_or_insert(last);
    }
    config.created = Some(clamp.unwrap_or(last));
}

/// The digest of bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::new(Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use kiln_image::config::History;

    use super::*;

    fn entry(empty_layer: bool, created: Option<i64>) -> History {
        let created = created.map(|seconds| Timestamp::from_second(seconds).unwrap());
        History {
            created,
            empty_layer,
            ..History::default()
        }
    }

    fn seconds(config: &ImageConfig) -> Vec<i64> {
        let times = config.history.iter().map(|entry| entry.created);
        times
            .chain([config.created])
            .map(|time| time.unwrap().as_second())
            .collect()
    }

    #[test]
    fn times_come_from_the_layers() {
        let at = |seconds| Some(Timestamp::from_second(seconds).unwrap());
        let history = vec![
            entry(false, Some(5)),
            entry(true, None),
            entry(false, None),
            entry(true, None),
        ];
        let mut config = ImageConfig {
            history: history.clone(),
            ..ImageConfig::default()
        };
        date(&mut config, &[at(9), at(20)], None);
        assert_eq!(
            seconds(&config),
            [5, 5, 20, 20, 20],
            "the base keeps its own, whatever its layer's record says"
        );
        let mut config = ImageConfig {
            history,
            ..ImageConfig::default()
        };
        date(&mut config, &[at(9), at(20)], at(7));
        assert_eq!(seconds(&config), [5, 7, 7, 7, 7]);
        let mut config = ImageConfig {
            history: vec![entry(true, None)],
            ..ImageConfig::default()
        };
        date(&mut config, &[], None);
        assert_eq!(seconds(&config), [0, 0]);
    }
}
