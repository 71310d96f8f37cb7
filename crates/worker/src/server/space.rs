//! Jobs that look at the store: what takes how much, and whether it is whole.

use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use kiln_image::{FileDigest, Kind, LayerId, OWNER_XATTR, OwnerRecord};
use kiln_store::layer_fs::{Ids, LayerFs};
use kiln_store::space_of;

use super::{Shared, failure};
use crate::protocol::{CacheFolder, Failure, Response};

/// More differences of one layer are not told.
const MOST_TOLD: usize = 10;

pub(super) fn space(
    shared: &Shared,
    layers: &[LayerId],
    caches: &[String],
) -> Result<Response, Failure> {
    let space = |path: &std::path::Path| {
        space_of(path)
            .map_err(|error| failure(&format!("cannot measure {}", path.display()), &error))
    };
    let layers = layers
        .iter()
        .map(|layer| space(&shared.layer_dir(*layer)))
        .collect::<Result<_, _>>()?;
    let mut found = Vec::new();
    for folder in caches {
        let path = super::caches::folder(shared, folder)?;
        let Ok(meta) = std::fs::symlink_metadata(&path) else {
            found.push(None);
            continue;
        };
        let mut owner = (meta.uid(), meta.gid());
        if shared.ids == Ids::Recorded {
            let mut value = [0; 64];
            let length = rustix::fs::lgetxattr(&path, OWNER_XATTR, &mut value[..]).unwrap_or(0);
            owner = OwnerRecord::decode(&value[..length])
                .map_or((0, 0), |record| (record.uid, record.gid));
        }
        found.push(Some(CacheFolder {
            space: space(&path)?,
            owner,
            mode: (meta.permissions().mode() & 0o7777) as u16,
        }));
    }
    Ok(Response::Spaces {
        layers,
        caches: found,
    })
}

/// Compares the files of a layer with its index.
pub(super) fn verify(shared: &Shared, layer: LayerId) -> Result<Response, Failure> {
    let mut wrong = Vec::new();
    let index = shared.index(layer)?;
    let dirs = shared.dirs(layer)?;
    let fs = LayerFs::create(&shared.layer_dir(layer), Ids::Recorded)
        .map_err(|error| failure(&format!("cannot open layer {layer}"), &error))?;
    for entry in index.entries() {
        let path = dirs.find(&entry.path);
        let there = std::fs::symlink_metadata(&path);
        let text = match (&entry.kind, there) {
            // In the index only, or only where the file system allows it.
            (Kind::Char(..) | Kind::Block(..) | Kind::Socket | Kind::Whiteout, _) => continue,
            (_, Err(error)) => error.to_string(),
            (Kind::Dir { .. }, Ok(meta)) if meta.is_dir() => continue,
            (Kind::Symlink(target), Ok(meta)) if meta.is_symlink() => {
                match rustix::fs::readlink(&path, Vec::new()) {
                    Ok(found) if found.as_bytes() == &target[..] => continue,
                    _ => "it leads elsewhere".to_owned(),
                }
            }
            (Kind::Fifo, Ok(meta)) if !meta.is_file() && !meta.is_dir() && !meta.is_symlink() => {
                continue;
            }
            (Kind::File { size, digest }, Ok(meta)) if meta.is_file() => {
                match fs.open(&entry.path).and_then(|mut file| hash(&mut file)) {
                    Ok((found_size, found)) if (found_size, found) == (*size, *digest) => continue,
                    Ok((found, _)) if found != *size => {
                        format!("it has {found} bytes, expected {size}")
                    }
                    Ok(_) => "its content is another".to_owned(),
                    Err(error) => error.to_string(),
                }
            }
            _ => "it is something else".to_owned(),
        };
        wrong.push(format!("{}: {text}", entry.path));
        if wrong.len() == MOST_TOLD {
            break;
        }
    }
    Ok(Response::Verified(wrong))
}

fn hash(file: &mut std::fs::File) -> std::io::Result<(u64, FileDigest)> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(&mut *file)?;
    let size = rustix::fs::fstat(file.as_fd())?.st_size as u64;
    Ok((size, FileDigest::new(*hasher.finalize().as_bytes())))
}
