//! Making a layer's folder hold what its index says and nothing else.

use std::path::Path;

use kiln_image::LayerIndex;
use kiln_store::layer_fs::{Content, Ids, LayerFs};
use rustix::io::Errno;

use crate::RootfsError;
use crate::diff::{Changes, Fix};
use crate::files::Folder;
use crate::walk::{OPAQUE, whiteout};

/// Applies the corrections to `layer_dir/fs`, gives folders the modes and times of the index, and writes the index.
///
/// # Errors
/// When a file cannot be changed.
pub(crate) fn settle(
    layer_dir: &Path,
    root: &Folder,
    changes: Changes,
    ids: Ids,
) -> Result<LayerIndex, RootfsError> {
    let fs = LayerFs::create(layer_dir, ids).map_err(RootfsError::io("open", layer_dir))?;
    for fix in changes.fixes {
        match fix {
            Fix::Remove(path) => fs.remove(&path).map_err(root.error("remove", &path))?,
            Fix::Whiteout(path) => {
                fs.put(&whiteout(path.clone()), Content::None)
                    .map_err(root.error("make a whiteout at", &path))?;
            }
            Fix::Unmark(path) => match rustix::fs::fremovexattr(root.open_dir(&path)?, OPAQUE) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(error) => return Err(root.error("unmark", &path)(error)),
            },
        }
    }
    let index = LayerIndex::new(changes.entries);
    fs.finish(&index)
        .map_err(RootfsError::io("finish the layer in", layer_dir))?;
    Ok(index)
}
