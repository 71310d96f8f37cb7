//! Which provider a store can use: by trying.

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use kiln_store::layer_fs::delete_layer;
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use crate::walk::OPAQUE;
use crate::{Provider, overlay};

/// Tells which provider works in the store at `store_root`, and why, as a part of a sentence. An overlay is mounted in a
/// folder below `store_root/tmp`, files are removed in it, and its marks are looked for: some file systems take the
/// mount and then cannot hold them.
pub fn probe(store_root: &Path) -> (Provider, String) {
    match try_overlay(&store_root.join("tmp")) {
        Ok(()) => (
            Provider::Overlay,
            format!("overlay mounts work in {}", store_root.display()),
        ),
        Err(why) => (Provider::PlainTree, format!("layers are copied: {why}")),
    }
}

fn try_overlay(tmp: &Path) -> Result<(), String> {
    let dir =
        new_folder(tmp).map_err(|error| format!("cannot write to {}: {error}", tmp.display()))?;
    let result = try_overlay_in(&dir);
    let removed =
        delete_layer(&dir).map_err(|error| format!("cannot remove {}: {error}", dir.display()));
    result.and(removed)
}

fn new_folder(tmp: &Path) -> io::Result<PathBuf> {
    std::fs::create_dir_all(tmp)?;
    let mut number = 0;
    loop {
        let dir = tmp.join(format!("probe-{}-{number}", std::process::id()));
        match rustix::fs::mkdir(&dir, Mode::RWXU) {
            Err(Errno::EXIST) => number += 1,
            other => return Ok(other.map(|()| dir)?),
        }
    }
}

fn try_overlay_in(dir: &Path) -> Result<(), String> {
    let lower = dir.join("lower");
    let make = || -> io::Result<()> {
        for name in ["lower/gone", "lower/again", "fs", "work"] {
            std::fs::create_dir_all(dir.join(name))?;
        }
        std::fs::write(lower.join("gone/file"), "")?;
        std::fs::write(lower.join("again/file"), "")
    };
    make().map_err(|error| format!("cannot write to {}: {error}", dir.display()))?;
    let mount = overlay::mount(&[lower], dir).map_err(|error| error.to_string())?;
    let inside = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    let change = || -> io::Result<()> {
        std::fs::remove_dir_all(inside.join("gone"))?;
        std::fs::remove_dir_all(inside.join("again"))?;
        std::fs::create_dir(inside.join("again"))?;
        std::fs::write(inside.join("again/new"), "")
    };
    change().map_err(|error| format!("an overlay can be mounted but not written to: {error}"))?;
    drop(mount);
    let gone = rustix::fs::statat(
        CWD,
        dir.join("fs/gone"),
        rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
    );
    let is_mark = |stat: rustix::fs::Stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
    };
    if !gone.is_ok_and(is_mark) {
        return Err("the overlay leaves no whiteout for a removed folder".into());
    }
    let mut value = [0; 8];
    match rustix::fs::lgetxattr(dir.join("fs/again"), OPAQUE, &mut value[..]) {
        Ok(1) if value[0] == b'y' => Ok(()),
        _ => Err(format!(
            "the overlay does not mark a replaced folder with {OPAQUE}"
        )),
    }
}
