//! Paths inside a root that somebody else filled: no link, `..` or mount trick leads out of it.

use std::ffi::OsStr;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use kiln_image::{LayerPath, OWNER_XATTR, OwnerRecord};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, XattrFlags, chownat, fsetxattr,
    fstat, mkdirat, openat, openat2, readlinkat,
};
use rustix::io::{Errno, Result};
use rustix::path::Arg;

use crate::process::RootSource;

/// As many links as Go's in-root joins follow, and far more than the kernel's 40.
const MOST_LINKS: usize = 255;

/// Reads a file inside of a root, such as `/etc/passwd`; links are followed inside. `None` if it is not there or is not
/// a regular file; more than `most` bytes are an error.
///
/// # Errors
/// When it cannot be read, or is larger.
pub fn read_in_root(
    root: RootSource<'_>,
    path: &Path,
    most: u64,
) -> std::io::Result<Option<Vec<u8>>> {
    let folder;
    let root = match root {
        RootSource::Mount(fd) => fd,
        RootSource::Folder(path) => {
            folder = open_folder(path)?;
            folder.as_fd()
        }
    };
    // Opened as a path first: a FIFO or a device must not be opened for reading.
    let place = match open_in_root(root, path) {
        Ok(place) => place,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let before = fstat(&place)?;
    if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open_inside(root, path, flags, Mode::empty(), in_root())?;
    let after = fstat(&file)?;
    if (before.st_dev, before.st_ino) != (after.st_dev, after.st_ino) {
        return Err(std::io::Error::other(format!(
            "{} changed while it was opened",
            path.display()
        )));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(most + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(std::io::Error::new(
            std::io::ErrorKind::FileTooLarge,
            format!("{} is larger than {most} bytes", path.display()),
        ));
    }
    Ok(Some(bytes))
}

fn in_root() -> ResolveFlags {
    ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS
}

/// Opens a folder or file of this machine as a place.
pub(crate) fn open_folder(path: &Path) -> Result<OwnedFd> {
    openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Opens `path` as a place, with `root` as `/` for it and for all links on the way.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &Path) -> Result<OwnedFd> {
    // An empty path is the root itself, which openat2 does not take.
    let path = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    open_inside(root, path, flags, Mode::empty(), in_root())
}

/// How often a lookup is begun again. One is disturbed by chance and only where it meets `..`, so that a few times are
/// enough on the busiest machine; the limit is for those who rename without end.
const MOST_LOOKUPS: usize = 10_000;

/// `openat2` that stays inside of `root`.
///
/// While something is renamed or mounted, anywhere on the machine, the kernel cannot tell whether a `..` stayed inside,
/// and answers `EAGAIN` (openat2(2)): the lookup is begun again.
pub(crate) fn open_inside<P: Arg + Copy>(
    root: BorrowedFd<'_>,
    path: P,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd> {
    for _ in 1..MOST_LOOKUPS {
        match openat2(root, path, flags, mode, resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    openat2(root, path, flags, mode, resolve)
}

/// What to do where something is missing.
pub(crate) enum Missing {
    /// Make a folder, owned by the given user as are the folders above that are missing too.
    Folder(u32, u32),
    /// The same where owners are [recorded](crate::Process::recorded).
    RecordedFolder(u32, u32),
    /// Make an empty file, and folders above.
    File,
}

/// A place inside the root.
pub(crate) struct Place {
    pub(crate) fd: OwnedFd,
    /// What had to be made on the root's own mount, in that order.
    pub(crate) made: Vec<LayerPath>,
}

/// Opens `path` inside the root, and makes what is missing. A link to something missing makes that.
pub(crate) fn open_or_make(root: BorrowedFd<'_>, path: &Path, missing: &Missing) -> Result<Place> {
    match open_in_root(root, path) {
        Ok(fd) => {
            return Ok(Place {
                fd,
                made: Vec::new(),
            });
        }
        Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let mut made = Vec::new();
    let mut at = LayerPath::root();
    // Components still to go, last first.
    let mut todo: Vec<Vec<u8>> = components(path.as_os_str().as_bytes());
    let mut links = 0;
    while let Some(name) = todo.pop() {
        if name == b".." {
            at = at.parent().unwrap_or_default();
            continue;
        }
        let folder = open_plain(root, &at, ResolveFlags::empty())?;
        let stat = match rustix::fs::statat(
            &folder,
            OsStr::from_bytes(&name),
            AtFlags::SYMLINK_NOFOLLOW,
        ) {
            Ok(stat) => Some(stat),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        let child = at.child(&name);
        match stat.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Some(FileType::Symlink) => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(Errno::LOOP);
                }
                let target =
                    readlinkat(&folder, OsStr::from_bytes(&name), Vec::new())?.into_bytes();
                if target.first() == Some(&b'/') {
                    at = LayerPath::root();
                }
                todo.extend(components(&target));
            }
            Some(_) => at = child,
            None => {
                match make(&folder, &name, missing, todo.is_empty()) {
                    // Another container with the same root was faster: look again at what is there now.
                    Err(Errno::EXIST) => {
                        todo.push(name);
                        continue;
                    }
                    other => other?,
                }
                // On another mount it is none of the layer's business.
                match open_plain(root, &at, ResolveFlags::NO_XDEV) {
                    Ok(_) => made.push(child.clone()),
                    Err(Errno::XDEV) => {}
                    Err(error) => return Err(error),
                }
                at = child;
            }
        }
    }
    Ok(Place {
        fd: open_plain(root, &at, ResolveFlags::empty())?,
        made,
    })
}

/// The components of a path, last first.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let kept = path
        .split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".");
    kept.rev().map(Vec::from).collect()
}

fn open_plain(root: BorrowedFd<'_>, path: &LayerPath, more: ResolveFlags) -> Result<OwnedFd> {
    let path = if path.is_root() {
        Path::new(".")
    } else {
        path.as_path()
    };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | more;
    openat2(
        root,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    )
}

fn make(folder: &OwnedFd, name: &[u8], missing: &Missing, last: bool) -> Result<()> {
    let name = OsStr::from_bytes(name);
    match missing {
        Missing::File if last => {
            let flags =
                OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(folder, name, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
        Missing::File => mkdirat(folder, name, Mode::from_raw_mode(0o755)),
        Missing::Folder(uid, gid) => {
            mkdirat(folder, name, Mode::from_raw_mode(0o755))?;
            if (*uid, *gid) == (0, 0) {
                return Ok(());
            }
            let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
            chownat(
                folder,
                name,
                Some(uid),
                Some(gid),
                AtFlags::SYMLINK_NOFOLLOW,
            )
        }
        Missing::RecordedFolder(uid, gid) => {
            mkdirat(folder, name, Mode::from_raw_mode(0o755))?;
            if (*uid, *gid) == (0, 0) {
                return Ok(());
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = openat(folder, name, flags, Mode::empty())?;
            let record = OwnerRecord::file(*uid, *gid).encode();
            fsetxattr(made, OWNER_XATTR, record.as_bytes(), XattrFlags::empty())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn made(root: &Path, path: &str, missing: &Missing) -> Result<Vec<String>> {
        let root = open_folder(root).unwrap();
        let place = open_or_make(root.as_fd(), Path::new(path), missing)?;
        Ok(place.made.iter().map(ToString::to_string).collect())
    }

    /// A step failed with "resource temporarily unavailable" when something else was renamed in the same moment.
    #[test]
    fn renames_elsewhere_do_not_disturb_a_lookup() {
        let temp = tempfile::tempdir().unwrap();
        let (root, elsewhere) = (temp.path().join("root"), temp.path().join("elsewhere"));
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::create_dir_all(elsewhere.join("x")).unwrap();
        symlink("../../../../../a/../a/b/../../a/b", root.join("a/b/link")).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let (x, y) = (elsewhere.join("x"), elsewhere.join("y"));
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    fs::rename(&x, &y).unwrap();
                    fs::rename(&y, &x).unwrap();
                }
            });
            let root = open_folder(&root).unwrap();
            let failed =
                (0..20_000).find_map(|_| open_in_root(root.as_fd(), Path::new("/a/b/link")).err());
            done.store(true, std::sync::atomic::Ordering::Relaxed);
            assert_eq!(failed, None);
        });
    }

    #[test]
    fn makes_what_is_missing_inside() {
        let outside = tempfile::tempdir().unwrap();
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        fs::create_dir_all(root.join("run/x")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink("/run", root.join("var")).unwrap();
        symlink(outside.path().join("out"), root.join("abs")).unwrap();
        symlink("../../../../../../../../escape", root.join("run/up")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("systemd/stub", root.join("run/dangling")).unwrap();

        let folder = Missing::Folder(0, 0);
        assert_eq!(made(root, "/run/x", &folder).unwrap(), Vec::<String>::new());
        assert_eq!(
            made(root, "/a/./b//c", &folder).unwrap(),
            ["/a", "/a/b", "/a/b/c"]
        );
        assert_eq!(made(root, "/a/b/c", &folder).unwrap(), Vec::<String>::new());
        assert_eq!(
            made(root, "/var/new/f", &Missing::File).unwrap(),
            ["/run/new", "/run/new/f"]
        );
        assert!(root.join("run/new/f").is_file());
        assert_eq!(
            made(root, "/run/dangling", &Missing::File).unwrap(),
            ["/run/systemd", "/run/systemd/stub"]
        );
        assert_eq!(
            made(root, "/run/up/z", &folder).unwrap(),
            ["/escape", "/escape/z"]
        );
        let prefix = outside.path().to_str().unwrap();
        assert_eq!(
            made(root, "/abs", &folder).unwrap().last().unwrap(),
            &format!("{prefix}/out")
        );
        assert!(!outside.path().join("out").exists());
        assert_eq!(made(root, "/loop/x", &folder), Err(Errno::LOOP));
        assert_eq!(made(root, "/file/x", &folder), Err(Errno::NOTDIR));
        assert_eq!(made(root, "../../up", &folder).unwrap(), ["/up"]);
        assert!(root.join("up").is_dir());
    }

    #[test]
    fn reads_only_regular_files_of_the_root() {
        let outside = tempfile::NamedTempFile::new().unwrap();
        fs::write(outside.path(), "secret").unwrap();
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path();
        fs::create_dir(root.join("etc")).unwrap();
        fs::write(root.join("real"), "root:x:0:0::/:").unwrap();
        symlink("/real", root.join("etc/passwd")).unwrap();
        symlink(outside.path(), root.join("etc/group")).unwrap();
        rustix::fs::mkfifoat(CWD, root.join("fifo"), Mode::RWXU).unwrap();
        let read = |path: &str, most| read_in_root(RootSource::Folder(root), Path::new(path), most);
        assert_eq!(
            read("/etc/passwd", 100).unwrap().unwrap(),
            b"root:x:0:0::/:"
        );
        assert_eq!(read("/etc/group", 100).unwrap(), None);
        assert_eq!(read("/fifo", 100).unwrap(), None);
        assert_eq!(read("/etc", 100).unwrap(), None);
        assert_eq!(read("/none/x", 100).unwrap(), None);
        assert!(read("/real", 5).is_err());
    }

    /// A folder on the way is a link to the outside every other moment.
    #[test]
    fn races_lead_nowhere() {
        use std::sync::atomic::{AtomicBool, Ordering};
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("file"), "secret").unwrap();
        let temp = tempfile::tempdir().unwrap();
        let (folder, link) = (temp.path().join("x"), temp.path().join("l"));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), "inside").unwrap();
        symlink(outside.path(), &link).unwrap();
        let over = AtomicBool::new(false);
        let mut seen = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let flags = rustix::fs::RenameFlags::EXCHANGE;
                    rustix::fs::renameat_with(CWD, &folder, CWD, &link, flags).unwrap();
                }
            });
            for number in 0..500 {
                // Where it fails the kernel or we saw the change.
                let _ = made(temp.path(), &format!("/x/a{number}/b"), &Missing::File);
                let _ = made(
                    temp.path(),
                    &format!("/l/c{number}"),
                    &Missing::Folder(0, 0),
                );
                let root = RootSource::Folder(temp.path());
                seen.extend(read_in_root(root, Path::new("x/file"), 100).ok().flatten());
            }
            over.store(true, Ordering::Relaxed);
        });
        assert!(!seen.is_empty() && seen.iter().all(|read| read == b"inside"));
        let names = fs::read_dir(outside.path()).unwrap().count();
        assert_eq!(names, 1, "nothing was made outside");
    }
}
