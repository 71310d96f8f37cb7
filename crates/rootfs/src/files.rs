//! Opening files below a folder, by descriptor: no symbolic link leads out of it.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_image::LayerPath;
use kiln_store::layer_fs::{LayerDirs, delete_layer};
use rustix::fs::{Mode, OFlags, ResolveFlags, Timespec, Timestamps};
use rustix::io::Errno;

use crate::RootfsError;

/// An open folder that stands for the root of a layer or a tree.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    /// For messages.
    path: PathBuf,
    /// The folder of the layer that this one stands on.
    below: Option<OwnedFd>,
}

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Self, RootfsError> {
        Self::of(&path.to_owned().into())
    }

    /// The files of a layer.
    pub(crate) fn of(dirs: &LayerDirs) -> Result<Self, RootfsError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = |path: &Path| {
            rustix::fs::open(path, flags, Mode::empty()).map_err(RootfsError::io("open", path))
        };
        Ok(Self {
            fd: open(&dirs.own)?,
            path: dirs.own.clone(),
            below: dirs.below.as_deref().map(open).transpose()?,
        })
    }

    /// An error at `path` below this folder, for `map_err`.
    pub(crate) fn error<E: Into<std::io::Error>>(
        &self,
        action: &'static str,
        path: &LayerPath,
    ) -> impl FnOnce(E) -> RootfsError {
        move |source| RootfsError::io(action, &self.path.join(path.as_path()))(source)
    }

    /// Opens what is at `path`; no component, the last one included, may be a symbolic link.
    pub(crate) fn open_at(&self, path: &LayerPath, flags: OFlags) -> Result<OwnedFd, RootfsError> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match (
            open_beneath(self.fd.as_fd(), path.as_bytes(), flags),
            &self.below,
        ) {
            (Err(Errno::NOENT), Some(below)) => open_beneath(below.as_fd(), path.as_bytes(), flags),
            (own, _) => own,
        }
        .map_err(self.error("open", path))
    }

    /// Opens the folder at `path`.
    pub(crate) fn open_dir(&self, path: &LayerPath) -> Result<OwnedFd, RootfsError> {
        self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }
}

/// Moves a folder to `aside`, for somebody else to remove; removes it if that is not possible, or not asked for.
pub(crate) fn put_aside(folder: &Path, aside: Option<&Path>) -> Result<(), RootfsError> {
    match aside.map(|aside| rustix::fs::rename(folder, aside)) {
        Some(Ok(()) | Err(Errno::NOENT)) => Ok(()),
        _ => delete_layer(folder).map_err(RootfsError::io("remove", folder)),
    }
}

/// A path to `name` in an open folder, for calls that take no descriptor; good while the descriptor is open.
pub(crate) fn by_descriptor(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Longest path that is handed to the kernel in one piece; it takes 4095 bytes.
const PIECE: usize = 4000;

fn open_beneath(from: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let whole = |from: BorrowedFd<'_>, path: &[u8], flags| {
        rustix::fs::openat2(from, path, flags, Mode::empty(), resolve)
    };
    match in_pieces(from, path, flags, PIECE, whole) {
        // Kernels before 5.6, and seccomp filters that do not know openat2.
        Err(Errno::NOSYS | Errno::PERM) => {}
        other => return other,
    }
    in_pieces(from, path, flags, 0, |from, name, flags| {
        rustix::fs::openat(from, name, flags, Mode::empty())
    })
}

/// Opens `path` by way of the folders in between, at least one component and at most `longest` bytes at a time.
fn in_pieces(
    from: BorrowedFd<'_>,
    mut path: &[u8],
    flags: OFlags,
    longest: usize,
    open: impl Fn(BorrowedFd<'_>, &[u8], OFlags) -> Result<OwnedFd, Errno>,
) -> Result<OwnedFd, Errno> {
    let between = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut held: Option<OwnedFd> = None;
    while path.len() > longest {
        let fits = path[..longest.min(path.len())]
            .iter()
            .rposition(|&byte| byte == b'/');
        let Some(slash) = fits.or_else(|| path.iter().position(|&byte| byte == b'/')) else {
            break;
        };
        held = Some(open(
            held.as_ref().map_or(from, AsFd::as_fd),
            &path[..slash],
            between,
        )?);
        path = &path[slash + 1..];
    }
    open(
        held.as_ref().map_or(from, AsFd::as_fd),
        if path.is_empty() { b"." } else { path },
        flags,
    )
}

/// Access time left alone, modification time as given.
pub(crate) fn times((tv_sec, nanoseconds): (i64, u32)) -> Timestamps {
    let last_access = Timespec {
        tv_sec: 0,
        tv_nsec: rustix::fs::UTIME_OMIT,
    };
    let tv_nsec = nanoseconds.min(999_999_999).into();
    Timestamps {
        last_access,
        last_modification: Timespec { tv_sec, tv_nsec },
    }
}
