//! What is in a folder: every path with its metadata, no link followed.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use kiln_image::{
    Entry, FileDigest, InodeKey, InodeOwners, Kind, LayerPath, OWNER_XATTR, OwnerRecord, Xattrs,
};
use rustix::fs::{AtFlags, FileType, OFlags, RawDir, Statx, StatxFlags};
use rustix::io::Errno;

use crate::RootfsError;
use crate::files::{Folder, by_descriptor};

/// One path of a folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// The path with its metadata. A file's digest is filled in later ([`crate::digest::fill`]); a folder is neither
    /// opaque nor implied.
    pub(crate) entry: Entry,
    /// Known to be what the layers below have; `entry` then holds nothing but the path and the kind.
    pub(crate) same: bool,
    /// For a folder: nothing of the layers below shows in it.
    pub(crate) complete: bool,
    /// For a folder: it carries the overlay's opaque mark.
    pub(crate) opaque: bool,
    /// Says whether the file was touched.
    pub(crate) stamp: Stamp,
}

/// What changes when a file or its metadata are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Stamp {
    pub(crate) inode: u64,
    pub(crate) ctime: (i64, u32),
    pub(crate) size: u64,
}

/// Stands for the digest of a file that was not read.
pub(crate) const UNREAD: FileDigest = FileDigest::new([0; 32]);

/// Marks a folder that hides what layers below have in it, as a mount with `userxattr` sets it
/// (kernel documentation, filesystems/overlayfs.rst).
pub(crate) const OPAQUE: &str = "user.overlay.opaque";

/// Lists everything in `root`, in path order, `root` itself first. What `known` says of a path and its stamp (not
/// asked for folders) is taken as unchanged without a further look. Where owners are `recorded` they are as written
/// down: with a file, or among the given ones.
///
/// # Errors
/// When something cannot be read, or a file's content lies in another layer.
pub(crate) fn walk(
    root: &Folder,
    recorded: Option<&InodeOwners>,
    known: impl Fn(&LayerPath, &Stamp) -> bool,
) -> Result<Vec<Found>, RootfsError> {
    let mut walk = Walk {
        root,
        recorded,
        known,
        found: Vec::new(),
        names: HashMap::new(),
        buffer: Vec::new(),
    };
    let top = LayerPath::root();
    let fd = root.open_dir(&top)?;
    walk.see(&top, fd.as_fd(), b".")?;
    drop(fd);
    // By path and not by nested descriptors: a tree can be deeper than descriptors last.
    let mut pending = vec![top];
    while let Some(dir) = pending.pop() {
        walk.list(&dir, &mut pending)?;
    }
    let Walk {
        mut found,
        mut names,
        ..
    } = walk;
    found.sort_by(|a, b| a.entry.path.cmp(&b.entry.path));
    names.retain(|_, count| *count > 1);
    let mut groups: HashMap<u64, u32> = HashMap::new();
    for found in &mut found {
        if !found.entry.is_dir() && names.contains_key(&found.stamp.inode) {
            let next = groups.len() as u32;
            found.entry.hardlink = Some(*groups.entry(found.stamp.inode).or_insert(next));
        }
    }
    Ok(found)
}

struct Walk<'a, K> {
    root: &'a Folder,
    recorded: Option<&'a InodeOwners>,
    known: K,
    found: Vec<Found>,
    /// How many names were seen of each inode that says it has several.
    names: HashMap<u64, u32>,
    /// For extended attributes.
    buffer: Vec<u8>,
}

impl<K: Fn(&LayerPath, &Stamp) -> bool> Walk<'_, K> {
    fn list(&mut self, dir: &LayerPath, pending: &mut Vec<LayerPath>) -> Result<(), RootfsError> {
        let fd = self.root.open_dir(dir)?;
        let mut buffer = Vec::with_capacity(32 * 1024);
        let mut names = RawDir::new(&fd, buffer.spare_capacity_mut());
        while let Some(name) = names.next() {
            let name = name.map_err(self.root.error("list", dir))?;
            let name = name.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let path = dir.child(name);
            if self.see(&path, fd.as_fd(), name)? {
                pending.push(path);
            }
        }
        Ok(())
    }

    /// Adds one path; says whether it is a folder.
    fn see(
        &mut self,
        path: &LayerPath,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<bool, RootfsError> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
        let stat =
            rustix::fs::statx(dir, name, flags, mask).map_err(self.root.error("look at", path))?;
        let stamp = Stamp {
            inode: stat.stx_ino,
            ctime: (stat.stx_ctime.tv_sec, stat.stx_ctime.tv_nsec),
            size: stat.stx_size,
        };
        let kind = kind(&stat, dir, name).map_err(self.root.error("read the link", path))?;
        let is_dir = matches!(kind, Kind::Dir { .. });
        let mut entry = Entry {
            path: path.clone(),
            kind,
            mode: stat.stx_mode & 0o7777,
            uid: stat.stx_uid,
            gid: stat.stx_gid,
            mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
            xattrs: Xattrs::new(),
            hardlink: None,
        };
        if let Some(owners) = self.recorded {
            (entry.uid, entry.gid) = owners.get(&key(&stat)).copied().unwrap_or((0, 0));
        }
        if entry.kind == Kind::Whiteout {
            // The overlay makes all its whiteouts one inode; they are no hard links.
            entry = whiteout(path.clone());
            self.found.push(Found {
                entry,
                same: false,
                complete: false,
                opaque: false,
                stamp,
            });
            return Ok(false);
        }
        if !is_dir && stat.stx_nlink > 1 {
            *self.names.entry(stamp.inode).or_default() += 1;
        }
        let same = !is_dir && (self.known)(path, &stamp);
        let mut opaque = false;
        if !same {
            opaque = self.xattrs(&mut entry, dir, name)?;
        }
        self.found.push(Found {
            entry,
            same,
            complete: opaque,
            opaque,
            stamp,
        });
        Ok(is_dir)
    }

    /// Reads the extended attributes; says whether one of them is the opaque mark.
    fn xattrs(
        &mut self,
        entry: &mut Entry,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> Result<bool, RootfsError> {
        // The largest that the kernel gives, for a list and for a value (limits.h: XATTR_LIST_MAX, XATTR_SIZE_MAX).
        const LARGEST: usize = 64 * 1024;
        let path = by_descriptor(dir, name);
        self.buffer.resize(LARGEST, 0);
        let length = match rustix::fs::llistxattr(&path[..], &mut self.buffer[..]) {
            Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(false),
            Ok(length) => length,
            Err(error) => {
                return Err(self
                    .root
                    .error("list the extended attributes of", &entry.path)(
                    error
                ));
            }
        };
        let list = self.buffer[..length].to_vec();
        let mut opaque = false;
        for key in list.split(|&byte| byte == 0).filter(|key| !key.is_empty()) {
            if matches!(key, b"user.overlay.redirect" | b"user.overlay.metacopy") {
                let mark = String::from_utf8_lossy(key).into_owned();
                return Err(RootfsError::Mark {
                    path: entry.path.clone(),
                    mark,
                });
            }
            let is_mark = key == OPAQUE.as_bytes();
            let is_record = self.recorded.is_some() && key == OWNER_XATTR.as_bytes();
            if !is_mark && !is_record && !belongs(key) {
                continue;
            }
            let length = match rustix::fs::lgetxattr(&path[..], key, &mut self.buffer[..]) {
                Ok(length) => length,
                // Listed by the file system, but nothing that this user may read.
                Err(Errno::NODATA) => continue,
                Err(error) => {
                    return Err(self
                        .root
                        .error("read the extended attributes of", &entry.path)(
                        error
                    ));
                }
            };
            let value = &self.buffer[..length];
            if is_mark {
                opaque = value == b"y";
            } else if is_record {
                if let Some(record) = OwnerRecord::decode(value) {
                    (entry.uid, entry.gid) = (record.uid, record.gid);
                    entry.kind = match record.device {
                        None => continue,
                        Some(it) if it.block => Kind::Block(it.major, it.minor),
                        Some(it) => Kind::Char(it.major, it.minor),
                    };
                }
            } else {
                entry.xattrs.push((key.to_vec(), value.to_vec()));
            }
        }
        entry.xattrs.sort();
        Ok(opaque)
    }
}

/// Whether an extended attribute is a program's own doing: not a mark of the overlay, not a label of the host, not an
/// owner that is only written down.
pub(crate) fn belongs(name: &[u8]) -> bool {
    !name.starts_with(b"user.overlay.")
        && !name.starts_with(b"trusted.")
        && name != b"security.selinux"
        && name != OWNER_XATTR.as_bytes()
}

/// What [`InodeOwners`] knows a file by.
pub(crate) fn key(stat: &Statx) -> InodeKey {
    InodeKey {
        inode: stat.stx_ino,
        born: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
    }
}

/// The key of what is at `path`.
pub(crate) fn key_at(root: &Folder, path: &LayerPath) -> Result<InodeKey, RootfsError> {
    let file = root.open_at(path, OFlags::PATH)?;
    let mask = StatxFlags::INO | StatxFlags::BTIME;
    let stat = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, mask)
        .map_err(root.error("look at", path))?;
    Ok(key(&stat))
}

/// The entry that removes `path`.
pub(crate) fn whiteout(path: LayerPath) -> Entry {
    let kind = Kind::Whiteout;
    Entry {
        path,
        kind,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: Xattrs::new(),
        hardlink: None,
    }
}

fn kind(stat: &Statx, dir: BorrowedFd<'_>, name: &[u8]) -> Result<Kind, Errno> {
    let device = (stat.stx_rdev_major, stat.stx_rdev_minor);
    Ok(match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Directory => Kind::Dir {
            opaque: false,
            implied: false,
        },
        FileType::RegularFile => Kind::File {
            size: stat.stx_size,
            digest: UNREAD,
        },
        FileType::Symlink => {
            Kind::Symlink(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
        }
        FileType::CharacterDevice if device == (0, 0) => Kind::Whiteout,
        FileType::CharacterDevice => Kind::Char(device.0, device.1),
        FileType::BlockDevice => Kind::Block(device.0, device.1),
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::Unknown => return Err(Errno::INVAL),
    })
}
