//! A tree with the folders that hold its files.

use std::fs::File;
use std::io;

use kiln_image::{Entry, LayerIndex, LayerPath, MergedView};
use kiln_source::{Stamp, Stamps};
use kiln_store::layer_fs::LayerDirs;
use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// An input of a file operation.
#[derive(Debug, Clone)]
pub struct Tree<'a> {
    /// What is in it.
    pub view: &'a MergedView,
    /// For each layer of the view the folders that hold its files: `layers/<id>/fs`, or the root of a context.
    pub dirs: Vec<LayerDirs>,
    /// Of a local context: its index, and the stamps under which its files were hashed. A file that has another one when it is
    /// copied is hashed again.
    pub stamps: Option<(&'a LayerIndex, &'a Stamps)>,
}

impl Tree<'_> {
    /// The stamp under which the content of an entry of the tree is what its digest says; `None` in a layer, which
    /// nobody changes.
    pub(crate) fn stamp(&self, entry: &Entry) -> Option<&Stamp> {
        let (index, stamps) = self.stamps?;
        stamps.get(index, entry)
    }
}

/// The opened folders of a tree. Made by each thread for itself.
pub(crate) struct Folders<'a> {
    dirs: &'a [LayerDirs],
    /// Of each layer the own folder, and that of the one that it stands on.
    open: Vec<[Option<OwnedFd>; 2]>,
}

impl<'a> Folders<'a> {
    pub(crate) fn new(dirs: &'a [LayerDirs]) -> Self {
        Self {
            dirs,
            open: dirs.iter().map(|_| [None, None]).collect(),
        }
    }

    /// Opens a regular file of one layer for reading, following no link at all.
    pub(crate) fn open(&mut self, layer: usize, path: &LayerPath) -> io::Result<File> {
        let mut opened = Err(Errno::NOENT);
        for (dir, folder) in self.dirs[layer].all().zip(&mut self.open[layer]) {
            let folder = match folder {
                Some(folder) => folder,
                closed => {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    closed.insert(rustix::fs::open(dir, flags, Mode::empty())?)
                }
            };
            opened = open_in(folder, path);
            if !matches!(opened, Err(Errno::NOENT)) {
                break;
            }
        }
        let file = opened?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file any more",
            ));
        }
        Ok(File::from(file))
    }
}

fn open_in(folder: &OwnedFd, path: &LayerPath) -> Result<OwnedFd, Errno> {
    // Without NONBLOCK, opening a fifo that has come in place of the file would wait for a writer.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(folder, path.as_path(), flags, Mode::empty(), resolve) {
        // Linux before 5.6, and filters that do not know the call.
        Err(Errno::NOSYS | Errno::PERM) => step_by_step(folder, path, flags),
        outcome => outcome,
    }
}

fn step_by_step(folder: &OwnedFd, path: &LayerPath, flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut at = rustix::io::dup(folder)?;
    let parent = path.parent().unwrap_or_default();
    for name in parent.components() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        at = rustix::fs::openat(&at, name, flags, Mode::empty())?;
    }
    rustix::fs::openat(&at, path.name(), flags, Mode::empty())
}
