//! Which provider a store can use: by trying.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use kiln_store::layer_fs::delete_layer;
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;

use crate::walk::OPAQUE;
use crate::{Provider, overlay};

/// Tells which provider works in the store at `store_root`, and why, as a part of a sentence. An overlay is mounted in a
/// folder below `store_root/tmp`, files are removed in it, and its marks are looked for: some file systems take the
/// mount and then cannot hold them. The folder is given to `remove`, and may be removed later. That overlays work is
/// remembered in the store, for processes that may do the same, until the machine starts again.
pub fn probe(store_root: &Path, remove: impl FnOnce(PathBuf)) -> (Provider, String) {
    match try_overlay(&store_root.join("tmp"), remove) {
        Ok(()) => {
            if let Ok(rights) = rights(store_root) {
                // Who cannot write it tries again.
                let _ = std::fs::write(store_root.join(WORKS), rights);
            }
            let why = format!("overlay mounts work in {}", store_root.display());
            (Provider::Overlay, why)
        }
        Err(why) => (Provider::PlainTree, format!("layers are copied: {why}")),
    }
}

/// What [`probe`] has found out for a process with these rights since the machine started.
pub fn probed(store_root: &Path) -> Option<Provider> {
    let known = std::fs::read(store_root.join(WORKS)).ok()?;
    (known == rights(store_root).ok()?.into_bytes()).then_some(Provider::Overlay)
}

/// The file of a store in which the rights are with which overlays worked.
const WORKS: &str = "overlays-work";

/// All that decides whether a process may mount: the kernel, the file system, ids, capabilities, filters, labels.
fn rights(store_root: &Path) -> io::Result<String> {
    const LINES: [&str; 4] = ["CapEff:", "NoNewPrivs:", "Seccomp:", "Seccomp_filters:"];
    let read = |path: &str| std::fs::read_to_string(path);
    let mut rights = read("/proc/sys/kernel/random/boot_id")? + &read("/proc/self/uid_map")?;
    for line in read("/proc/self/status")?.lines() {
        if LINES.iter().any(|name| line.starts_with(name)) {
            rights += line;
            rights.push('\n');
        }
    }
    // Not there without a security module.
    rights += &read("/proc/self/attr/current").unwrap_or_default();
    let folder = std::fs::metadata(store_root)?;
    Ok(format!("{rights}\n{} {}\n", folder.dev(), folder.ino()))
}

fn try_overlay(tmp: &Path, remove: impl FnOnce(PathBuf)) -> Result<(), String> {
    let (dir, _lock) =
        new_folder(tmp).map_err(|error| format!("cannot write to {}: {error}", tmp.display()))?;
    let result = try_overlay_in(&dir);
    remove(dir);
    result
}

/// What the names of folders begin with in which something is tried.
const PREFIX: &str = "probe-";

/// Makes a folder, and locks it: a sweep tells it from what a process that was killed has left.
fn new_folder(tmp: &Path) -> io::Result<(PathBuf, File)> {
    std::fs::create_dir_all(tmp)?;
    let mut number = 0;
    loop {
        let dir = tmp.join(format!("{PREFIX}{}-{number}", std::process::id()));
        number += 1;
        match rustix::fs::mkdir(&dir, Mode::RWXU) {
            Err(Errno::EXIST) => continue,
            other => other?,
        }
        let lock = File::open(&dir).and_then(|folder| {
            folder.lock()?;
            Ok(folder)
        });
        match lock {
            // A sweep came between.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Ok(_) if !dir.is_dir() => {}
            other => return Ok((dir, other?)),
        }
    }
}

/// Removes what processes that were killed while they tried something have left. What cannot be removed is in nobody's way.
pub fn sweep(store_root: &Path) {
    let tmp = store_root.join("tmp");
    for entry in std::fs::read_dir(tmp).into_iter().flatten().flatten() {
        let left = entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes());
        let free = |path: &Path| File::open(path).is_ok_and(|folder| folder.try_lock().is_ok());
        if left && free(&entry.path()) {
            let _ = delete_layer(&entry.path());
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
    let mount = overlay::mount(&[lower], dir, false).map_err(|error| error.to_string())?;
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
