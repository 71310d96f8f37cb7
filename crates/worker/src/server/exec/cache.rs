//! The folders of cache mounts.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kiln_image::{Entry, LayerId, LayerIndex, LayerPath};
use kiln_store::layer_fs::{Content, LayerFs};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::super::files::stack;
use super::super::{Shared, failure};
use crate::protocol::{Failure, FailureKind, Seed};

/// The folder `dir` below the store's root; made, with the given owner and what it starts as, when it is not there. It
/// is made in a scratch layer, whose folder goes with the lease if this process is killed, and gets its name when it is
/// complete.
pub(super) fn folder(
    shared: &Shared,
    dir: &str,
    scratch: LayerId,
    mode: u16,
    owner: (u32, u32),
    seed: Option<&Seed>,
) -> Result<PathBuf, Failure> {
    let folder = shared.store_root.join(dir);
    if folder.is_dir() {
        return Ok(dir.into());
    }
    let failed = |error: io::Error| {
        let what = format!("cannot make the cache mount's folder {}", folder.display());
        failure(&what, &error)
    };
    let new = shared.layer_dir(scratch);
    fill(shared, &new, mode, owner, seed, failed)?;
    name(&new.join("fs"), &folder).map_err(failed)?;
    Ok(dir.into())
}

/// Gives a complete folder its name, unless another step was faster.
///
/// A plain rename puts a folder in the place of an empty one, and a new cache is empty: the faster step would go on in a
/// folder that is deleted, where nothing can be made.
fn name(new: &Path, folder: &Path) -> io::Result<()> {
    match renameat_with(CWD, new, CWD, folder, RenameFlags::NOREPLACE) {
        Err(Errno::EXIST) => Ok(()),
        // File systems that cannot tell.
        Err(Errno::INVAL | Errno::NOSYS) => match fs::rename(new, folder) {
            Err(_) if folder.is_dir() => Ok(()),
            other => other,
        },
        other => Ok(other?),
    }
}

fn fill(
    shared: &Shared,
    new: &Path,
    mode: u16,
    (uid, gid): (u32, u32),
    seed: Option<&Seed>,
    failed: impl Fn(io::Error) -> Failure + Copy,
) -> Result<(), Failure> {
    let fs = LayerFs::create(new, shared.ids).map_err(failed)?;
    let root = new.join("fs");
    let owned = Entry::dir(LayerPath::root(), mode, uid, gid, (0, 0));
    fs.put(&owned, Content::None).map_err(failed)?;
    if let Some(seed) = seed {
        let copied = copy(shared, seed, &fs, failed)?;
        fs.finish(&copied).map_err(failed)?;
    }
    fs::set_permissions(&root, Permissions::from_mode(u32::from(mode))).map_err(failed)
}

/// Copies a folder of layers.
fn copy(
    shared: &Shared,
    seed: &Seed,
    fs: &LayerFs,
    failed: impl Fn(io::Error) -> Failure + Copy,
) -> Result<LayerIndex, Failure> {
    let mut entries = Vec::new();
    let (view, dirs) = stack(shared, &seed.layers)?;
    let from = view
        .resolve(seed.selector.as_bytes(), true)
        .ok()
        .filter(|path| path.is_root() || view.is_dir(path))
        .ok_or_else(|| Failure {
            kind: FailureKind::NotFound,
            message: format!("cache mount: {:?}: no folder in its source", seed.selector),
            hint: None,
        })?;
    for (path, node) in view.walk(&from) {
        let Some(rest) = path.below(&from).filter(|rest| !rest.is_empty()) else {
            continue;
        };
        let mut entry = node.entry.clone();
        entry.path = LayerPath::clean(rest);
        entry.hardlink = None;
        if entry.is_file() {
            let file = File::open(dirs[node.layer].find(&path)).map_err(failed)?;
            fs.put(&entry, Content::Copy(std::os::fd::AsFd::as_fd(&file)))
        } else {
            fs.put(&entry, Content::None)
        }
        .map_err(failed)?;
        entries.push(entry);
    }
    Ok(LayerIndex::new(entries))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `npm` turned in circles: two steps made one cache at once, and the slower one replaced the folder of the faster.
    #[test]
    fn the_cache_of_a_faster_step_is_not_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let (cache, other) = (temp.path().join("cache"), temp.path().join("other"));
        for new in [&cache, &other] {
            fs::create_dir(new).unwrap();
        }
        let mounted = File::open(&cache).unwrap();
        name(&other, &cache).unwrap();
        rustix::fs::mkdirat(&mounted, "made", rustix::fs::Mode::RWXU).unwrap();
        assert!(cache.join("made").is_dir());
    }
}
