//! Layers that stand on another layer's folder: their own has only what is different.
//!
//! The file `below` in such a layer's folder names the other layer, which is always whole. What is in the own folder comes
//! first; nothing is ever hidden, since a layer that lacks something of the other one is made whole.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use kiln_image::{LayerId, LayerPath};
use rustix::fs::{Mode, OFlags};

use super::{FS, at};

/// The name of the file that says on which layer's folder a layer stands.
const BELOW: &str = "below";

/// The folders that together hold the files of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDirs {
    /// The layer's own.
    pub own: PathBuf,
    /// That of the layer that it stands on.
    pub below: Option<PathBuf>,
}

impl LayerDirs {
    /// The folders of the layer in `layer_dir`.
    ///
    /// # Errors
    /// When it cannot be read on which layer it stands.
    pub fn of(layer_dir: &Path) -> io::Result<Self> {
        Ok(Self {
            own: layer_dir.join(FS),
            below: below(layer_dir)?.map(|below| below.join(FS)),
        })
    }

    /// All of them, the own one first: what is in it counts.
    pub fn all(&self) -> impl Iterator<Item = &Path> {
        [Some(&*self.own), self.below.as_deref()]
            .into_iter()
            .flatten()
    }

    /// Where something is that the layer's index has.
    pub fn find(&self, path: &LayerPath) -> PathBuf {
        let own = self.own.join(path.as_path());
        match &self.below {
            Some(below) if own.symlink_metadata().is_err() => below.join(path.as_path()),
            _ => own,
        }
    }
}

impl From<PathBuf> for LayerDirs {
    fn from(own: PathBuf) -> Self {
        Self { own, below: None }
    }
}

/// The folder of the layer that the one in `layer_dir` stands on, if it stands on one.
///
/// # Errors
/// When the file that says so cannot be read, or is damaged (`InvalidData`).
pub fn below(layer_dir: &Path) -> io::Result<Option<PathBuf>> {
    let path = layer_dir.join(BELOW);
    let named = |err| at(path.as_os_str().as_encoded_bytes(), err);
    let text = match std::fs::read_to_string(&path) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(named)?,
    };
    match text.parse::<LayerId>() {
        Ok(id) => Ok(Some(layer_dir.with_file_name(id.hex()))),
        Err(_) => Err(named(io::ErrorKind::InvalidData.into())),
    }
}

/// Writes down on which layer the one in the folder `layer` stands.
pub(super) fn write(layer: BorrowedFd<'_>, on: LayerId) -> io::Result<()> {
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(layer, BELOW, flags, Mode::from_raw_mode(0o644))?;
    File::from(file).write_all(on.hex().as_bytes())
}
