//! A folder that is no root file system, read as one: what cache mounts hold.

use std::fs::File;
use std::io;
use std::path::Path;

use kiln_image::{Entry, InodeOwners, Kind, LayerPath};
use kiln_store::layer_fs::Ids;
use rustix::fs::OFlags;

use crate::RootfsError;
use crate::files::Folder;
use crate::walk;

/// Everything in a folder.
#[derive(Debug)]
pub struct FolderTree {
    folder: Folder,
    entries: Vec<Entry>,
}

impl FolderTree {
    /// Looks at everything in `folder`. What an archive cannot hold (sockets, names that would be whiteouts, and what
    /// stands for one) is left out.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn open(folder: &Path, ids: Ids) -> Result<Self, RootfsError> {
        let folder = Folder::open(folder)?;
        let owners = InodeOwners::new();
        let recorded = (ids == Ids::Recorded).then_some(&owners);
        let found = walk::walk(&folder, recorded, |_, _| false)?;
        let fits = |entry: &Entry| {
            !matches!(entry.kind, Kind::Socket | Kind::Whiteout)
                && !entry
                    .path
                    .as_bytes()
                    .split(|byte| *byte == b'/')
                    .any(|name| name.starts_with(b".wh."))
        };
        let entries = found
            .into_iter()
            .map(|found| found.entry)
            .filter(fits)
            .collect();
        Ok(Self { folder, entries })
    }

    /// Every path with its metadata, the folder itself first. Digests of files are not those of their content.
    pub fn entries(&self) -> impl Iterator<Item = Entry> {
        self.entries.iter().cloned()
    }

    /// Opens a regular file. No link is followed.
    ///
    /// # Errors
    /// When it is not there any more.
    pub fn file(&self, path: &LayerPath) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = self.folder.open_at(path, flags).map_err(io::Error::other)?;
        Ok(File::from(file))
    }
}
