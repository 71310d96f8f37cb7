//! Indexes of layers beside a cache: with them a COPY is placed on layers that stay where they are, also by who never had
//! them.

use std::io::{self, Read as _, Write as _};
use std::sync::Arc;

use kiln_image::compress::{self, Encoder};
use kiln_image::{
    Compression, Descriptor, DiffId, Entry, Kind, Layer, LayerId, LayerIndex, Origin,
};

use crate::cache::CacheLayer;
use crate::pull::transfer_error;
use crate::{ExportError, Remote, digest_layer};

/// What they are in a cache's manifest.
pub(crate) const LAYER_INDEX: &str = "application/vnd.kiln.layer.index.v1+zstd";

/// Larger ones are not read, in bytes: packed, and as they are.
const MOST_PACKED: u64 = 16 << 20;
const MOST: u64 = 128 << 20;
/// An index is written if it is smaller than this, or than this part of its layer.
const SMALL: u64 = 64 << 10;
const PART: u64 = 10;
const LEVEL: i32 = 6;

impl Remote<'_> {
    /// The index of a layer as it will be where its tar is unpacked. Kiln's own tar has folders of a base, which the layer
    /// only implies, with their metadata; a tar that came from elsewhere is handed on as it is.
    pub(crate) fn index_elsewhere(
        &self,
        layer: LayerId,
        diff: DiffId,
    ) -> Result<Arc<LayerIndex>, ExportError> {
        let mut index = self.store.load_index(layer)?;
        let is_implied = |entry: &Entry| matches!(entry.kind, Kind::Dir { implied: true, .. });
        let kept = || Ok::<_, ExportError>(self.store.blobs_of(diff)?.iter().any(|it| it.present));
        if index.entries().iter().any(is_implied) && !kept()? {
            for entry in Arc::make_mut(&mut index).entries_mut() {
                if let Kind::Dir { implied, .. } = &mut entry.kind {
                    *implied = false;
                }
            }
        }
        Ok(index)
    }

    /// The index of a layer with this blob, if it is known and worth its place.
    pub(crate) fn packed_index(&self, layer: &CacheLayer, blob: &Descriptor) -> Option<Vec<u8>> {
        let index = match &layer.layer {
            Layer::Here(id, _) => {
                let tar = digest_layer(self.store, self.worker, *id, layer.clamp);
                self.index_elsewhere(*id, tar.ok()?.0).ok()?
            }
            Layer::Distant(distant) => self.store.known_index(distant.diff)?,
        };
        let mut encoder = Encoder::new(Compression::Zstd, LEVEL, 1, Vec::new()).ok()?;
        encoder.write_all(&index.to_bytes()).ok()?;
        let packed = encoder.finish().ok()?;
        let size = packed.len() as u64;
        (size < SMALL || size < blob.size / PART).then_some(packed)
    }

    /// Reads an index from where the layers of its cache are.
    ///
    /// # Errors
    /// In words, when it is not there or is none.
    pub fn read_index(&self, from: &Origin, named: &Descriptor) -> Result<LayerIndex, String> {
        if named.size > MOST_PACKED {
            return Err(format!("it has {} bytes", named.size));
        }
        let mut packed = Vec::new();
        match from {
            Origin::Registry(name) => {
                let cancel = Arc::clone(self.cancel);
                let opened = self.client.blob(name, named, &mut io::empty(), cancel);
                let mut reader = opened.map_err(|error| error.to_string())?;
                io::copy(&mut reader, &mut packed)
                    .map_err(|error| transfer_error(error).to_string())?;
            }
            Origin::Folder(folder) => {
                let blob = self.layout(folder).blob(named.digest);
                packed = blob.map_err(|error| error.to_string())?;
            }
        }
        let read = || {
            let (_, content) = compress::decoder(&packed[..])?;
            let mut bytes = Vec::new();
            content.take(MOST).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        let bytes = read().map_err(|error: io::Error| error.to_string())?;
        LayerIndex::from_bytes(&bytes).map_err(|error| error.to_string())
    }
}
