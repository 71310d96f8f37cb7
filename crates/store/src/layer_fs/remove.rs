//! Removing trees of any depth.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use super::at;

/// Folders nested deeper are moved up first, so that neither descriptors nor the stack run out.
const MAX_DEPTH: usize = 64;

const DIR: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Removes a layer's folder with all that is in it. A folder that is not there is no error, and two may do it at once.
///
/// # Errors
/// When something cannot be removed; the rest stays and the call can be repeated.
pub fn delete_layer(layer_dir: &Path) -> io::Result<()> {
    delete_folder(layer_dir).map_err(|err| at(layer_dir.as_os_str().as_bytes(), err))
}

fn delete_folder(path: &Path) -> io::Result<()> {
    loop {
        let dir = match rustix::fs::open(path, DIR, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(()),
            other => other?,
        };
        for (name, _) in list(dir.as_fd())? {
            delete_tree(dir.as_fd(), name.as_bytes(), dir.as_fd())?;
        }
        match rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR) {
            // Somebody else removes it too and has moved something up.
            Err(Errno::NOTEMPTY) => {}
            Err(Errno::NOENT) => return Ok(()),
            other => return Ok(other?),
        }
    }
}

/// Removes what is at `name`, with everything below. `shelf` is a folder of the same file system where deep folders are
/// put for the while.
pub(crate) fn delete_tree(
    parent: BorrowedFd<'_>,
    name: &[u8],
    shelf: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut removal = Removal {
        shelf,
        shelved: Vec::new(),
    };
    removal.remove(parent, name, None, 0)?;
    while let Some(name) = removal.shelved.pop() {
        removal.remove(shelf, name.as_bytes(), Some(FileType::Directory), 0)?;
    }
    Ok(())
}

struct Removal<'a> {
    shelf: BorrowedFd<'a>,
    shelved: Vec<String>,
}

impl Removal<'_> {
    fn remove(
        &mut self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        kind: Option<FileType>,
        depth: usize,
    ) -> io::Result<()> {
        if kind != Some(FileType::Directory) {
            match open_up(parent, || {
                rustix::fs::unlinkat(parent, name, AtFlags::empty())
            }) {
                Ok(()) | Err(Errno::NOENT) => return Ok(()),
                Err(Errno::ISDIR) => {}
                Err(err) => return Err(at(name, err.into())),
            }
        }
        if depth == MAX_DEPTH {
            return self.put_on_shelf(parent, name);
        }
        let dir = match rustix::fs::openat(parent, name, DIR, Mode::empty()) {
            Err(Errno::ACCESS) => {
                // A folder, so nothing is followed.
                rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
                rustix::fs::openat(parent, name, DIR, Mode::empty())
            }
            other => other,
        };
        let dir: OwnedFd = match dir {
            Err(Errno::NOENT) => return Ok(()),
            other => other.map_err(|err| at(name, err.into()))?,
        };
        for (child, kind) in list(dir.as_fd())? {
            self.remove(dir.as_fd(), child.as_bytes(), Some(kind), depth + 1)?;
        }
        drop(dir);
        match open_up(parent, || {
            rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
        }) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(err) => Err(at(name, err.into())),
        }
    }

    fn put_on_shelf(&mut self, parent: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let new = format!("trash-{}-{count}", std::process::id());
        match open_up(parent, || {
            rustix::fs::renameat(parent, name, self.shelf, &new)
        }) {
            Ok(()) => self.shelved.push(new),
            Err(Errno::NOENT) => {}
            Err(err) => return Err(at(name, err.into())),
        }
        Ok(())
    }
}

/// Repeats an action that the folder's own mode forbade. Only for users without root's rights does that happen.
fn open_up(
    folder: BorrowedFd<'_>,
    action: impl Fn() -> rustix::io::Result<()>,
) -> rustix::io::Result<()> {
    match action() {
        Err(Errno::ACCESS) => {
            rustix::fs::fchmod(folder, Mode::RWXU)?;
            action()
        }
        other => other,
    }
}

/// All names in a folder, read before any is removed. None in a folder that somebody else has removed since it was
/// opened, of which the kernel says that it is not there.
fn list(dir: BorrowedFd<'_>) -> io::Result<Vec<(CString, FileType)>> {
    let mut buffer = Vec::with_capacity(16 * 1024);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = match entry {
            Err(Errno::NOENT) => break,
            other => other?,
        };
        let name = entry.file_name();
        if !matches!(name.to_bytes(), b"." | b"..") {
            names.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_removed_while_it_is_open_is_empty() {
        let parent = tempfile::tempdir().expect("a temporary folder");
        let path = parent.path().join("layer");
        std::fs::create_dir(&path).expect("own folder");
        let dir = rustix::fs::open(&path, DIR, Mode::empty()).expect("it is there");
        std::fs::remove_dir(&path).expect("it is empty");
        assert!(list(dir.as_fd()).expect("no error").is_empty());
    }
}
