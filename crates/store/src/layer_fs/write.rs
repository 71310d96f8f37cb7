//! Making files.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::Ordering;

use kiln_image::{Entry, Kind, LayerPath, OWNER_XATTR, OwnerRecord};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::allowance::{Taking, take};
use super::{Content, Ids, LayerFs, kind_at};

/// Marks a folder that hides what layers below have in it (kernel documentation, overlayfs.rst, with `userxattr`).
const OPAQUE: &str = "user.overlay.opaque";
/// Files below this are read and written: the kernel takes longer to set up a copy of its own.
const SMALL: usize = 16 * 1024;
const CAPABILITY: &[u8] = b"security.capability";
/// Makes every file created in the folder inherit it, so it waits for the end.
const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

impl LayerFs {
    pub(super) fn put_any(&self, entry: &Entry, content: Content<'_>) -> io::Result<()> {
        match &entry.kind {
            Kind::Dir { opaque, .. } => self.put_dir(entry, *opaque),
            Kind::File { size, .. } => {
                let written = self.put_file(entry, content)?;
                if written == *size {
                    return Ok(());
                }
                let what = format!(
                    "expected {size} bytes, got {written}; the file changed while it was read"
                );
                Err(io::Error::new(io::ErrorKind::InvalidData, what))
            }
            Kind::Symlink(target) => {
                let (parent, name) = self.parent(&entry.path)?;
                self.make(parent.as_fd(), name, || {
                    rustix::fs::symlinkat(&target[..], &*parent, name)
                })?;
                self.set_by_name(parent.as_fd(), name, entry)
            }
            Kind::Fifo => {
                let (parent, name) = self.parent(&entry.path)?;
                let mode = Mode::from_raw_mode(0o600);
                self.make(parent.as_fd(), name, || {
                    rustix::fs::mknodat(&*parent, name, FileType::Fifo, mode, 0)
                })?;
                self.set_by_name(parent.as_fd(), name, entry)
            }
            Kind::Whiteout => {
                let (parent, name) = self.parent(&entry.path)?;
                let device = rustix::fs::makedev(0, 0);
                let made = self.make(parent.as_fd(), name, || {
                    rustix::fs::mknodat(
                        &*parent,
                        name,
                        FileType::CharacterDevice,
                        Mode::empty(),
                        device,
                    )
                });
                made.or_else(only_if_refused)
            }
            Kind::Char(..) | Kind::Block(..) | Kind::Socket => {
                let (parent, name) = self.parent(&entry.path)?;
                match kind_at(parent.as_fd(), name)? {
                    Some(_) => self.remove_at(parent.as_fd(), name),
                    None => Ok(()),
                }
            }
        }
    }

    pub(super) fn put_stream(&self, entry: &Entry, content: &mut dyn Read) -> io::Result<u64> {
        self.put_file(entry, Content::Reader(content))
    }

    pub(super) fn make_link(&self, entry: &Entry, first: &LayerPath) -> io::Result<()> {
        if entry.path == *first {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "hard link to itself",
            ));
        }
        if matches!(entry.kind, Kind::Char(..) | Kind::Block(..) | Kind::Socket) {
            return self.put_any(entry, Content::None);
        }
        let (from, first_name) = self.parent(first)?;
        let (parent, name) = self.parent(&entry.path)?;
        self.make(parent.as_fd(), name, || {
            rustix::fs::linkat(&*from, first_name, &*parent, name, AtFlags::empty())
        })
    }

    pub(super) fn finish_dir(&self, entry: &Entry) -> io::Result<()> {
        let dir = self.open_dir(&entry.path)?;
        for (name, value) in entry.xattrs.iter().filter(|(name, _)| name == DEFAULT_ACL) {
            set_xattr(name, || {
                rustix::fs::fsetxattr(&dir, &name[..], value, XattrFlags::empty())
            })?;
        }
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(u32::from(entry.mode)))?;
        Ok(rustix::fs::futimens(&dir, &times(entry))?)
    }

    /// Creates something at a name; what is there gives way.
    fn make<T>(
        &self,
        parent: BorrowedFd<'_>,
        name: &[u8],
        create: impl Fn() -> rustix::io::Result<T>,
    ) -> io::Result<T> {
        match create() {
            Err(Errno::EXIST) => {
                self.remove_at(parent, name)?;
                Ok(create()?)
            }
            other => Ok(other?),
        }
    }

    fn open_dir(&self, path: &LayerPath) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if path.is_root() {
            return Ok(rustix::fs::openat(&*self.root, ".", flags, Mode::empty())?);
        }
        let (parent, name) = self.parent(path)?;
        Ok(rustix::fs::openat(&*parent, name, flags, Mode::empty())?)
    }

    fn put_dir(&self, entry: &Entry, opaque: bool) -> io::Result<()> {
        if !entry.path.is_root() {
            let (parent, name) = self.parent(&entry.path)?;
            let mkdir = || rustix::fs::mkdirat(&*parent, name, Mode::from_raw_mode(0o700));
            match mkdir() {
                Err(Errno::EXIST)
                    if kind_at(parent.as_fd(), name)? == Some(FileType::Directory) => {}
                Err(Errno::EXIST) => {
                    self.remove_at(parent.as_fd(), name)?;
                    mkdir()?;
                }
                other => other?,
            }
        }
        let dir = self.open_dir(&entry.path)?;
        self.give(&dir, entry)?;
        // Until the end the folder must be open to the writer.
        rustix::fs::fchmod(&dir, Mode::from_raw_mode(u32::from(entry.mode) | 0o700))?;
        set_xattrs(entry, |name, value| {
            rustix::fs::fsetxattr(&dir, name, value, XattrFlags::empty())
        })?;
        if opaque {
            rustix::fs::fsetxattr(&dir, OPAQUE, b"y", XattrFlags::empty())
                .map_err(io::Error::from)
                .or_else(only_if_refused)?;
        }
        Ok(())
    }

    /// Gives the bytes written.
    fn put_file(&self, entry: &Entry, content: Content<'_>) -> io::Result<u64> {
        let (parent, name) = self.parent(&entry.path)?;
        let (file, size) = match content {
            Content::Move(from) => match self.take(parent.as_fd(), name, from) {
                Err(err) if err.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => {
                    let source = open_source(from)?;
                    let file = self.new_file(parent.as_fd(), name, entry)?;
                    let size = rustix::fs::fstat(&source)?.st_size as u64;
                    let size = self.copy(source.as_fd(), size, &file)?;
                    rustix::fs::unlink(from)?;
                    (file, size)
                }
                other => other?,
            },
            content => {
                let mut file = self.new_file(parent.as_fd(), name, entry)?;
                let size = match content {
                    Content::Bytes(bytes) => {
                        take(bytes.len() as u64)?;
                        file.write_all(bytes)?;
                        bytes.len() as u64
                    }
                    Content::Copy(source) => {
                        let size = rustix::fs::fstat(source)?.st_size as u64;
                        take(size)?;
                        self.copy(source, size, &file)?
                    }
                    Content::Reader(reader) => pump(&mut Taking(reader), &file)?,
                    Content::None | Content::Move(_) => 0,
                };
                (file, size)
            }
        };
        self.set_on_file(&file, entry)?;
        Ok(size)
    }

    fn set_on_file(&self, file: &File, entry: &Entry) -> io::Result<()> {
        // Looking is cheaper than setting, and new files mostly are as they should be.
        let stat = rustix::fs::fstat(file)?;
        let given =
            self.ids == Some(Ids::Real) && (stat.st_uid, stat.st_gid) == (entry.uid, entry.gid);
        if !given {
            self.give(file, entry)?;
        }
        if !given || stat.st_mode & 0o7777 != u32::from(entry.mode) {
            rustix::fs::fchmod(file, Mode::from_raw_mode(entry.mode.into()))?;
        }
        set_xattrs(entry, |name, value| {
            rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())
        })?;
        Ok(rustix::fs::futimens(file, &times(entry))?)
    }

    pub(super) fn change(&self, entry: &Entry) -> io::Result<()> {
        match entry.kind {
            Kind::File { .. } => self.set_on_file(&self.open_file(&entry.path)?, entry),
            Kind::Symlink(_) | Kind::Fifo => {
                let (parent, name) = self.parent(&entry.path)?;
                self.set_by_name(parent.as_fd(), name, entry)
            }
            // In the index only.
            Kind::Char(..) | Kind::Block(..) | Kind::Socket | Kind::Whiteout => Ok(()),
            Kind::Dir { .. } => Err(io::ErrorKind::IsADirectory.into()),
        }
    }

    /// A new file, if possible with what the process's mask leaves of the entry's permissions.
    fn new_file(&self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> io::Result<File> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = match self.ids {
            Some(Ids::Real) => u32::from(entry.mode) & 0o777,
            _ => 0o600,
        };
        let open = || rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(mode));
        self.make(parent, name, open).map(File::from)
    }

    /// Moves a file here.
    fn take(&self, parent: BorrowedFd<'_>, name: &[u8], from: &Path) -> io::Result<(File, u64)> {
        open_source(from)?;
        match rustix::fs::renameat(CWD, from, parent, name) {
            Err(Errno::ISDIR) => {
                self.remove_at(parent, name)?;
                rustix::fs::renameat(CWD, from, parent, name)?;
            }
            other => other?,
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::empty())?;
        let size = rustix::fs::fstat(&file)?.st_size as u64;
        Ok((File::from(file), size))
    }

    /// Copies all of a regular file of that size the cheapest way that works.
    fn copy(&self, from: BorrowedFd<'_>, size: u64, mut to: &File) -> io::Result<u64> {
        if size == 0 {
            // Files of /proc say 0 and have content.
            return pump(
                &mut At {
                    file: from,
                    offset: 0,
                },
                to,
            );
        }
        if self.can_clone.load(Ordering::Relaxed) {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(rustix::fs::fstat(to)?.st_size as u64),
                Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
                    self.can_clone.store(false, Ordering::Relaxed);
                }
                // Another file system, a file that cannot be shared.
                Err(_) => {}
            }
        }
        if size < SMALL as u64 {
            let mut buffer = [0; SMALL];
            let got = rustix::io::pread(from, &mut buffer, 0)?;
            if got as u64 == size {
                to.write_all(&buffer[..got])?;
                return Ok(size);
            }
        }
        let mut offset = 0;
        loop {
            // One byte more than there should be, so that a file of the right size takes one call.
            let wanted = usize::try_from(size.saturating_sub(offset) + 1).unwrap_or(usize::MAX);
            match rustix::fs::copy_file_range(from, Some(&mut offset), to, None, wanted) {
                Ok(0) if offset < size => break,
                Ok(_) if offset == size => return Ok(offset),
                Ok(0) => return Ok(offset),
                Ok(_) | Err(Errno::INTR) => {}
                Err(
                    Errno::XDEV
                    | Errno::NOSYS
                    | Errno::INVAL
                    | Errno::OPNOTSUPP
                    | Errno::PERM
                    | Errno::BADF,
                ) => break,
                Err(err) => return Err(err.into()),
            }
        }
        // Not possible between these files, or the file system only says that there is nothing.
        Ok(offset + pump(&mut At { file: from, offset }, to)?)
    }

    /// Gives a file or folder to its owner, or writes down whose it is.
    fn give(&self, file: impl AsFd, entry: &Entry) -> io::Result<()> {
        let record = OwnerRecord::file(entry.uid, entry.gid);
        let written = match self.ids {
            None => return Ok(()),
            Some(Ids::Real) => {
                let (uid, gid) = owner(entry);
                return rustix::fs::fchown(file, uid, gid).map_err(|err| unmapped(err, entry));
            }
            Some(Ids::Recorded) if record.is_default() => {
                rustix::fs::fremovexattr(file, OWNER_XATTR)
            }
            Some(Ids::Recorded) => {
                let (value, flags) = (record.encode(), XattrFlags::empty());
                rustix::fs::fsetxattr(file, OWNER_XATTR, value.as_bytes(), flags)
            }
        };
        match written {
            Err(Errno::NODATA) => Ok(()),
            other => other.map_err(io::Error::from).or_else(only_if_refused),
        }
    }

    /// Sets the metadata of a link or a fifo, which cannot be opened.
    fn set_by_name(&self, parent: BorrowedFd<'_>, name: &[u8], entry: &Entry) -> io::Result<()> {
        if self.ids == Some(Ids::Real) {
            let (uid, gid) = owner(entry);
            rustix::fs::chownat(parent, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|err| unmapped(err, entry))?;
        }
        if entry.kind == Kind::Fifo {
            // Made just now and not a link, so there is nothing to follow.
            let mode = Mode::from_raw_mode(entry.mode.into());
            rustix::fs::chmodat(parent, name, mode, AtFlags::empty())?;
        }
        if !entry.xattrs.is_empty() {
            let mut path = format!("/proc/self/fd/{}/", parent.as_raw_fd()).into_bytes();
            path.extend_from_slice(name);
            set_xattrs(entry, |key, value| {
                rustix::fs::lsetxattr(&path[..], key, value, XattrFlags::empty())
            })?;
        }
        Ok(rustix::fs::utimensat(
            parent,
            name,
            &times(entry),
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }
}

/// Sets extended attributes, the capabilities last.
fn set_xattrs(
    entry: &Entry,
    set: impl Fn(&[u8], &[u8]) -> rustix::io::Result<()>,
) -> io::Result<()> {
    let of_index = |name: &[u8]| {
        name.starts_with(b"trusted.")
            || name.starts_with(b"user.overlay.")
            || name == DEFAULT_ACL
            || name == OWNER_XATTR.as_bytes()
    };
    let (last, first): (Vec<_>, Vec<_>) = entry
        .xattrs
        .iter()
        .partition(|(name, _)| name == CAPABILITY);
    for (name, value) in first.into_iter().chain(last) {
        if !of_index(name) {
            set_xattr(name, || set(name, value))?;
        }
    }
    Ok(())
}

/// An attribute that the file system or the namespace does not take is in the index only.
fn set_xattr(name: &[u8], set: impl Fn() -> rustix::io::Result<()>) -> io::Result<()> {
    set()
        .map_err(io::Error::from)
        .or_else(only_if_refused)
        .map_err(|err| {
            let name = String::from_utf8_lossy(name);
            io::Error::new(err.kind(), format!("extended attribute {name}: {err}"))
        })
}

/// Takes a refusal of the file system or the kernel as a success, and nothing else.
fn only_if_refused(err: io::Error) -> io::Result<()> {
    match err.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => Ok(()),
        _ => Err(err),
    }
}

/// Why a file cannot be given to its owner: in a user namespace an id that it does not have is no argument at all.
fn unmapped(error: Errno, entry: &Entry) -> io::Error {
    if error != Errno::INVAL {
        return error.into();
    }
    io::Error::other(format!(
        "its owner {}:{} is none of the ids that this user has: give it more in /etc/subuid and /etc/subgid, or take \
         one id for all with --isolation single",
        entry.uid, entry.gid
    ))
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(entry.uid)),
        Some(Gid::from_raw(entry.gid)),
    )
}

fn times(entry: &Entry) -> Timestamps {
    let (seconds, nanoseconds) = entry.mtime;
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds.min(999_999_999).into(),
        },
    }
}

fn open_source(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "what should be moved is not a regular file",
        ));
    }
    Ok(file)
}

/// Reads a file from a place of its own, so that the shared offset does not matter.
struct At<'a> {
    file: BorrowedFd<'a>,
    offset: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = rustix::io::pread(self.file, buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// Copies a stream to its end. Long runs of zeros become holes, as a sparse file in an archive had them. The buffer
/// suits many small files and few large ones.
fn pump(from: &mut dyn Read, mut to: &File) -> io::Result<u64> {
    const HOLE: usize = 4096;
    thread_local! {
        static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
    }
    // Taken out, not borrowed: the reader may pump too.
    let mut buffer = BUFFER.take();
    buffer.resize(256 * 1024, 0);
    let mut pump = || {
        let mut total = 0;
        let mut ends_in_hole = false;
        loop {
            let count = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => continue,
                Err(err) => return Err(err),
            };
            ends_in_hole = count >= HOLE && buffer[..count].iter().all(|&byte| byte == 0);
            if ends_in_hole {
                to.seek(SeekFrom::Current(count as i64))?;
            } else {
                to.write_all(&buffer[..count])?;
            }
            total += count as u64;
        }
        if ends_in_hole {
            to.set_len(to.stream_position()?)?;
        }
        Ok(total)
    };
    let result = pump();
    BUFFER.set(buffer);
    result
}
