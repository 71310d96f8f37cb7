//! Jobs on the folders of cache mounts: out as one archive, in again, and away.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use kiln_image::{Entry, Kind, LayerId, LayerIndex, LayerPath};
use kiln_rootfs::FolderTree;
use kiln_store::layer_fs::delete_layer;

use super::{Cleanup, Shared, failure};
use crate::protocol::{Failure, Response};

/// The file of an archive that tells what is in it.
const NOTE: &str = "kiln-cache.json";

/// A larger note is none.
const MOST_NOTE: u64 = 16 << 20;

/// The path of a cache mount's folder. The name comes from outside: it must be one.
pub(super) fn folder(shared: &Shared, name: &str) -> Result<PathBuf, Failure> {
    if name.is_empty() || name.starts_with('.') || name.contains(['/', '\0']) {
        return Err(Failure::other(format!(
            "{name:?}: not the name of a cache mount"
        )));
    }
    Ok(shared.store_root.join("cache-mounts").join(name))
}

pub(super) fn remove(shared: &Shared, folders: &[String]) -> Result<Response, Failure> {
    for name in folders {
        let path = folder(shared, name)?;
        delete_layer(&path)
            .map_err(|error| failure(&format!("cannot remove the cache mount {name}"), &error))?;
    }
    Ok(Response::Done)
}

pub(super) fn pack(
    shared: &Shared,
    folders: &[String],
    note: &[u8],
    fds: &[OwnedFd],
) -> Result<Response, Failure> {
    let out = fds
        .first()
        .and_then(|fd| fd.try_clone().ok())
        .ok_or_else(|| Failure::other("no descriptor to write to"))?;
    let mut entries = vec![Entry {
        kind: Kind::File {
            size: note.len() as u64,
            digest: kiln_image::FileDigest::new([0; 32]),
        },
        ..Entry::dir(LayerPath::clean(NOTE), 0o644, 0, 0, (0, 0))
    }];
    let mut trees = Vec::new();
    let mut groups = 0;
    for name in folders {
        let tree = FolderTree::open(&folder(shared, name)?, shared.ids)
            .map_err(|error| failure(&format!("cannot read the cache mount {name}"), &error))?;
        let mut next = groups;
        for mut entry in tree.entries() {
            entry.path = LayerPath::clean([name.as_bytes(), b"/", entry.path.as_bytes()].concat());
            entry.hardlink = entry.hardlink.map(|group| groups + group);
            next = next.max(entry.hardlink.map_or(0, |group| group + 1));
            entries.push(entry);
        }
        groups = next;
        trees.push((LayerPath::clean(name), tree));
    }
    let index = LayerIndex::new(entries);
    let out = BufWriter::with_capacity(1 << 18, File::from(out));
    let open = |entry: &Entry| -> io::Result<Box<dyn Read>> {
        for (name, tree) in &trees {
            if let Some(rest) = entry.path.below(name) {
                return Ok(Box::new(tree.file(&LayerPath::clean(rest))?));
            }
        }
        Ok(Box::new(io::Cursor::new(note.to_vec())))
    };
    let packed = kiln_image::tarlayer::write_layer(&index, None, out, open);
    packed
        .and_then(|(mut out, _)| out.flush())
        .map_err(|error| failure("cannot write the archive of the cache mounts", &error))?;
    Ok(Response::Done)
}

pub(super) fn unpack(shared: &Shared, into: LayerId, fds: &[OwnedFd]) -> Result<Response, Failure> {
    let file = fds
        .first()
        .and_then(|fd| fd.try_clone().ok())
        .map(File::from)
        .ok_or_else(|| Failure::other("no descriptor to read from"))?;
    let cleanup = Cleanup::new(shared, [into]);
    let raw = BufReader::with_capacity(1 << 18, file);
    let (_, tar) = kiln_image::compress::decoder(raw)
        .map_err(|error| failure("cannot read the archive", &error))?;
    let dir = shared.layer_dir(into);
    kiln_store::unpack_tar(&dir, shared.ids, tar).map_err(|error| failure("", &error))?;
    let note = dir.join("fs").join(NOTE);
    let text = match fs::symlink_metadata(&note) {
        Ok(meta) if meta.is_file() && meta.len() <= MOST_NOTE => fs::read(&note),
        Ok(_) => Err(io::ErrorKind::InvalidData.into()),
        Err(error) => Err(error),
    };
    let text = text.map_err(|_| Failure {
        hint: Some("kiln cache export makes archives that have it".to_owned()),
        ..Failure::other(format!("the archive has no file {NOTE}"))
    })?;
    cleanup.keep_all();
    Ok(Response::CachesUnpacked(text))
}

pub(super) fn place(
    shared: &Shared,
    from: LayerId,
    name: &str,
    to: &str,
) -> Result<Response, Failure> {
    let failed = |error: io::Error| {
        failure(
            &format!("cannot put the cache mount {to} in its place"),
            &error,
        )
    };
    let to = folder(shared, to)?;
    // The name is checked the same way; the folder itself is in the scratch layer.
    folder(shared, name)?;
    let dir = shared.layer_dir(from);
    let new = dir.join("fs").join(name);
    if !fs::symlink_metadata(&new).is_ok_and(|meta| meta.is_dir()) {
        return Err(Failure::other(format!("the archive has no folder {name}")));
    }
    // What was there goes with the scratch layer.
    match fs::rename(&to, dir.join(format!("before-{name}"))) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    fs::rename(&new, &to).map_err(failed)?;
    Ok(Response::Done)
}
