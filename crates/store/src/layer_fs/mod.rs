//! File work inside one layer's folder, as the worker does it.
//!
//! Everything goes by folder descriptor: the folder that holds a path is opened beneath `fs/` without following a single
//! link, and what is done there is done by name in that folder. So no archive, however made, gets a path out of `fs/`.
//!
//! The metadata that matter are in the index. What is set on the files is what a process in the root file system should
//! see: everything with [`Ids::Real`], everything but owners with [`Ids::Recorded`].

mod allowance;
mod below;
mod remove;
mod write;

use std::borrow::Borrow;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use kiln_image::{
    Entry, FileDigest, IndexError, IndexReader, IndexWriter, Kind, LayerId, LayerIndex, LayerPath,
    Outcome, Totals,
};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

pub use allowance::allow;
pub use below::{LayerDirs, below};
pub use remove::delete_layer;
pub(crate) use remove::delete_tree;

/// The name of the folder with a layer's files, inside the layer's folder.
pub const FS: &str = "fs";
/// The name of the file with a layer's index, inside the layer's folder.
pub const INDEX: &str = "index";

/// Whether files carry their owners.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ids {
    /// Files are given to their owners with `chown`.
    Real,
    /// All files belong to the one user there is; owners are in the index, and in an extended attribute of files and
    /// folders ([`kiln_image::owner`]) for those who see the layer as a part of a root file system.
    Recorded,
}

/// Where the bytes of a regular file come from.
pub enum Content<'a> {
    /// There are none: anything but a regular file, or an empty one.
    None,
    /// These.
    Bytes(&'a [u8]),
    /// All of an open regular file, from its start; shared by reference where the file system can.
    Copy(BorrowedFd<'a>),
    /// The regular file at this path is moved; copied and removed if it is on another file system.
    Move(&'a Path),
    /// Everything up to the end of a stream.
    Reader(&'a mut dyn Read),
}

/// A folder by its path; none where it is known to be missing.
type Folder = (Box<[u8]>, Option<Arc<OwnedFd>>);

/// The files of one layer: `layers/<id>/fs`. Fastest when entries come in index order, since the last folder stays open.
pub struct LayerFs {
    /// `layers/<id>`.
    layer: OwnedFd,
    root: Arc<OwnedFd>,
    /// Nothing where files belong to whoever writes them.
    ids: Option<Ids>,
    /// The folder last used.
    last: Mutex<Option<Folder>>,
    /// Whether reflinks are worth trying.
    can_clone: AtomicBool,
    /// The files of the layer that this one stands on.
    below: Option<Box<LayerFs>>,
}

impl LayerFs {
    /// Makes `fs/` in `layer_dir`, which must exist, or takes the `fs/` that is there.
    ///
    /// # Errors
    /// When a folder cannot be made or opened.
    pub fn create(layer_dir: &Path, ids: Ids) -> io::Result<Self> {
        let within = |err: rustix::io::Errno| at(layer_dir.as_os_str().as_bytes(), err.into());
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let layer = rustix::fs::open(layer_dir, flags, Mode::empty()).map_err(within)?;
        match rustix::fs::mkdirat(&layer, FS, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(err) => return Err(within(err)),
        }
        Self::open_in(layer, flags, ids, below(layer_dir)?.as_deref()).map_err(within)
    }

    fn open_in(
        layer: OwnedFd,
        flags: OFlags,
        ids: Ids,
        below: Option<&Path>,
    ) -> Result<Self, rustix::io::Errno> {
        let root = rustix::fs::openat(&layer, FS, flags | OFlags::NOFOLLOW, Mode::empty())?;
        let below = match below {
            Some(dir) => {
                let layer = rustix::fs::open(dir, flags, Mode::empty())?;
                Some(Box::new(Self::open_in(layer, flags, ids, None)?))
            }
            None => None,
        };
        Ok(Self {
            layer,
            root: Arc::new(root),
            ids: Some(ids),
            last: Mutex::new(None),
            can_clone: AtomicBool::new(true),
            below,
        })
    }

    /// Writes into a user's own folder, where files belong to whoever writes them. What is there stays, unless something
    /// of the same name comes.
    ///
    /// # Errors
    /// When no descriptor can be had.
    pub fn beneath(folder: OwnedFd) -> io::Result<Self> {
        Ok(Self {
            layer: folder.try_clone()?,
            root: Arc::new(folder),
            ids: None,
            last: Mutex::new(None),
            can_clone: AtomicBool::new(true),
            below: None,
        })
    }

    /// Puts one entry where its path says; the parent folder must be there. What is there already is replaced, but a
    /// folder that stays a folder keeps what is in it. Sets owner, mode, extended attributes and time, in this order
    /// (`chown` and writing take set-id bits and capabilities away); the final mode and time of folders are left to
    /// [`LayerFs::finish`].
    ///
    /// Devices and sockets are in the index only: what was at the path is removed, nothing is made. A whiteout is made
    /// as overlay wants it, if the file system allows that.
    ///
    /// # Errors
    /// Besides those of the file system: `InvalidData` when the content has not the size that the entry says.
    pub fn put(&self, entry: &Entry, content: Content<'_>) -> io::Result<()> {
        self.put_any(entry, content)
            .map_err(|err| at(entry.path.as_bytes(), err))
    }

    /// Puts a regular file, whatever `entry.kind` says, with all bytes of `content`, and sets `entry.kind` to what came.
    ///
    /// # Errors
    /// As [`LayerFs::put`], and those of the reader.
    pub fn put_hashed(&self, entry: &mut Entry, content: &mut dyn Read) -> io::Result<()> {
        let mut hashing = Hashing {
            inner: content,
            hasher: blake3::Hasher::new(),
            size: 0,
        };
        self.put_stream(entry, &mut hashing)
            .map_err(|err| at(entry.path.as_bytes(), err))?;
        let digest = FileDigest::new(*hashing.hasher.finalize().as_bytes());
        entry.kind = Kind::File {
            size: hashing.size,
            digest,
        };
        Ok(())
    }

    /// Makes `entry` one more name of the file at `first`. The file keeps its metadata.
    ///
    /// # Errors
    /// When `first` is not there or is a folder, or the names are the same.
    pub fn link(&self, entry: &Entry, first: &LayerPath) -> io::Result<()> {
        self.make_link(entry, first)
            .map_err(|err| at(entry.path.as_bytes(), err))
    }

    /// Sets the metadata of something that is there and no folder to those of `entry`. Extended attributes are only
    /// added.
    ///
    /// # Errors
    /// When it is not there, or is something else.
    pub fn set_metadata(&self, entry: &Entry) -> io::Result<()> {
        self.change(entry)
            .map_err(|err| at(entry.path.as_bytes(), err))
    }

    /// Removes what is at `path`, with everything below. Nothing there is no error.
    ///
    /// # Errors
    /// When something cannot be removed; part of it may be gone.
    pub fn remove(&self, path: &LayerPath) -> io::Result<()> {
        let gone = |err: io::Error| at(path.as_bytes(), err);
        match self.parent(path) {
            Ok((parent, name)) => self.remove_at(parent.as_fd(), name).map_err(gone),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(err) => Err(gone(err)),
        }
    }

    /// Opens a regular file for reading. No link is followed.
    ///
    /// # Errors
    /// When it is not there, or is not a regular file.
    pub fn open(&self, path: &LayerPath) -> io::Result<File> {
        self.open_file(path).map_err(|err| at(path.as_bytes(), err))
    }

    /// Gives folders their modes and times, from the bottom up, and writes the index beside `fs/`.
    ///
    /// # Errors
    /// When a folder of the index is not there, or the index cannot be written.
    pub fn finish(self, index: &LayerIndex) -> io::Result<()> {
        let folders = index.entries().iter().rev().filter(|entry| entry.is_dir());
        self.finish_folders(folders)?;
        write_index(
            self.layer.as_fd(),
            index.entries().len(),
            index.entries().iter(),
            |_| {},
        )
        .map_err(|err| at(INDEX.as_bytes(), err))
    }

    /// Writes the index beside `fs/`: `count` entries, in path order. With `below`, the layer's own folder has only some of
    /// them; all else is in the folder of that layer, which is whole. Gives what the layer is as a whole.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_index<E: Borrow<Entry>>(
        self,
        below: Option<LayerId>,
        count: usize,
        entries: impl Iterator<Item = E>,
    ) -> io::Result<Totals> {
        let layer = self.layer.as_fd();
        if let Some(on) = below {
            below::write(layer, on).map_err(|err| at(b"below", err))?;
        }
        let mut outcome = Outcome::default();
        write_index(layer, count, entries, |entry| outcome.add(entry))
            .map_err(|err| at(INDEX.as_bytes(), err))?;
        Ok(outcome.finish())
    }

    /// Gives folders, which come from the bottom up, their modes and times.
    ///
    /// # Errors
    /// When one is not there.
    pub fn finish_folders<E: Borrow<Entry>>(
        &self,
        folders: impl Iterator<Item = E>,
    ) -> io::Result<()> {
        for entry in folders {
            let entry = entry.borrow();
            self.finish_dir(entry)
                .map_err(|err| at(entry.path.as_bytes(), err))?;
        }
        Ok(())
    }

    fn open_file(&self, path: &LayerPath) -> io::Result<File> {
        match (self.open_own(path), &self.below) {
            (Err(err), Some(below)) if err.kind() == io::ErrorKind::NotFound => {
                below.open_own(path)
            }
            (own, _) => own,
        }
    }

    fn open_own(&self, path: &LayerPath) -> io::Result<File> {
        let (parent, name) = self.parent(path)?;
        // Without NONBLOCK, opening a fifo would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&*parent, name, flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        Ok(File::from(file))
    }

    /// The folder that holds `path`, and the name in it.
    fn parent<'p>(&self, path: &'p LayerPath) -> io::Result<(Arc<OwnedFd>, &'p [u8])> {
        let bytes = path.as_bytes();
        let (folder, name) = match bytes.iter().rposition(|&byte| byte == b'/') {
            Some(0) => (&[][..], &[][..]),
            Some(slash) => (&bytes[..slash], &bytes[slash + 1..]),
            None => (&[][..], bytes),
        };
        // An index is read from disk: what the type promises is checked where it would hurt.
        if matches!(name, b"" | b"." | b"..") || folder.ends_with(b"/") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a path below the root",
            ));
        }
        Ok((self.folder(folder)?, name))
    }

    fn folder(&self, path: &[u8]) -> io::Result<Arc<OwnedFd>> {
        if path.is_empty() {
            return Ok(Arc::clone(&self.root));
        }
        let mut last = self
            .last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((known, fd)) = &*last
            && **known == *path
        {
            return fd.clone().ok_or_else(|| io::ErrorKind::NotFound.into());
        }
        match open_beneath(self.root.as_fd(), path).map(Arc::new) {
            Ok(fd) => {
                *last = Some((path.into(), Some(Arc::clone(&fd))));
                Ok(fd)
            }
            Err(err) => {
                // Nothing is made in a layer that stands on another one: what is missing stays missing.
                if self.below.is_some() && err.kind() == io::ErrorKind::NotFound {
                    *last = Some((path.into(), None));
                }
                Err(err)
            }
        }
    }

    fn remove_at(&self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        // The folder last used may be one of those removed.
        *self
            .last
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = None;
        delete_tree(parent, name, self.layer.as_fd())
    }
}

/// Opens a folder beneath `root` without following any link. The descriptor is for paths only.
fn open_beneath(root: BorrowedFd<'_>, path: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        // Kernels before 5.6, and seccomp filters that know no openat2.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {}
        other => return Ok(other?),
    }
    let mut folder: Option<OwnedFd> = None;
    for name in path.split(|&byte| byte == b'/') {
        if matches!(name, b"" | b"." | b"..") {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a clean path",
            ));
        }
        let from = folder.as_ref().map_or(root, AsFd::as_fd);
        folder = Some(rustix::fs::openat(from, name, flags, Mode::empty())?);
    }
    folder.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Writes the index file by rename. `and` is told of each entry.
fn write_index<E: Borrow<Entry>>(
    layer: BorrowedFd<'_>,
    count: usize,
    entries: impl Iterator<Item = E>,
    mut and: impl FnMut(&Entry),
) -> io::Result<()> {
    const NEW: &str = "index.new";
    let flags =
        OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(layer, NEW, flags, Mode::from_raw_mode(0o644))?;
    let mut writer = IndexWriter::new(File::from(file), count)?;
    for entry in entries {
        writer.add(entry.borrow())?;
        and(entry.borrow());
    }
    writer.finish()?;
    Ok(rustix::fs::renameat(layer, NEW, layer, INDEX)?)
}

/// Opens the index file of a layer's folder, to be read from beginning to end.
///
/// # Errors
/// When it cannot be read, or is damaged (`InvalidData`).
pub fn open_index(layer_dir: &Path) -> io::Result<IndexReader<File>> {
    let path = layer_dir.join(INDEX);
    let opened = File::open(&path).map_err(IndexError::from);
    opened
        .and_then(IndexReader::new)
        .map_err(|err| at(path.as_os_str().as_bytes(), index_error(err)))
}

/// Reads the index file of a layer's folder.
///
/// # Errors
/// As [`open_index`].
pub fn read_index(layer_dir: &Path) -> io::Result<LayerIndex> {
    let damaged = |err| {
        let path = layer_dir.join(INDEX);
        at(path.as_os_str().as_bytes(), index_error(err))
    };
    LayerIndex::read_all(open_index(layer_dir)?).map_err(damaged)
}

fn index_error(err: IndexError) -> io::Error {
    match err {
        IndexError::Unreadable(err) => err,
        err => io::Error::new(io::ErrorKind::InvalidData, err),
    }
}

/// A stream that is hashed and counted on its way.
struct Hashing<'a> {
    inner: &'a mut dyn Read,
    hasher: blake3::Hasher,
    size: u64,
}

impl Read for Hashing<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        Ok(count)
    }
}

/// Says to which path an error belongs; its kind stays.
fn at(path: &[u8], err: io::Error) -> io::Error {
    #[derive(Debug, thiserror::Error)]
    #[error("{path}: {source}")]
    struct At {
        path: String,
        source: io::Error,
    }
    let path = if path.is_empty() {
        "/".to_owned()
    } else {
        String::from_utf8_lossy(path).into_owned()
    };
    io::Error::new(err.kind(), At { path, source: err })
}

/// What is at a name, no link followed; `None` if nothing is.
fn kind_at(parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<FileType>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
        Err(rustix::io::Errno::NOENT) => Ok(None),
        Err(err) => Err(err.into()),
    }
}
