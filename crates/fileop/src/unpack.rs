//! Archives that ADD unpacks.
//!
//! The folder that an archive is unpacked into is its root: links in it are followed as if it were the root of a
//! system, and nothing gets out of it.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufReader, Seek};

use kiln_image::tar::{EntryKind, Header, Reader, TarError};
use kiln_image::{Entry, FileDigest, Kind, LayerPath, compress};

use crate::FileOpError;
use crate::builder::{Builder, Made};
use crate::copy::Changes;

/// Whether a file begins like an archive, compressed or not.
pub(crate) fn is_archive(file: &mut File) -> io::Result<bool> {
    file.rewind()?;
    let Ok((_, content)) = compress::decoder(BufReader::new(&mut *file)) else {
        return Ok(false);
    };
    Ok(matches!(Reader::new(content).next_entry(), Ok(Some(_))))
}

/// Unpacks an archive into the folder that `dest` leads to, which is made if it is not there. Owners are the
/// archive's unless the copy sets one; modes and times are the archive's always, as in BuildKit.
pub(crate) fn unpack(
    builder: &mut Builder<'_>,
    archive: &LayerPath,
    file: &mut File,
    dest: &str,
    changes: &Changes,
) -> Result<(), FileOpError> {
    let root = builder.resolve(dest.as_bytes(), true)?;
    let made = changes.made();
    builder.make_folders(
        &root,
        Made {
            mode: 0o755,
            ..made
        },
    )?;
    let broken = |source: io::Error| FileOpError::Archive {
        path: archive.clone(),
        source,
    };
    file.rewind().map_err(broken)?;
    let (_, content) =
        compress::decoder(BufReader::with_capacity(1 << 18, file)).map_err(broken)?;
    let mut reader = Reader::new(BufReader::with_capacity(1 << 16, content));
    let mut unpacker = Unpacker {
        builder,
        archive,
        root,
        changes,
    };
    while let Some(mut entry) = reader
        .next_entry()
        .map_err(|error: TarError| broken(error.into()))?
    {
        unpacker.entry(&entry.header, &mut entry.content)?;
    }
    Ok(())
}

struct Unpacker<'a, 'b> {
    builder: &'b mut Builder<'a>,
    archive: &'b LayerPath,
    root: LayerPath,
    changes: &'b Changes,
}

impl Unpacker<'_, '_> {
    fn bad(&self, what: String) -> FileOpError {
        let source = io::Error::new(io::ErrorKind::InvalidData, what);
        FileOpError::Archive {
            path: self.archive.clone(),
            source,
        }
    }

    /// The path of a name of the archive, its parents resolved, itself not. `None` is the archive's root.
    fn place(&mut self, name: &[u8], what: &str) -> Result<Option<LayerPath>, FileOpError> {
        if climbs(name) {
            return Err(self.bad(format!(
                "invalid {what} {:?}",
                String::from_utf8_lossy(name)
            )));
        }
        let name = LayerPath::clean(name);
        let Some(parent) = name.parent() else {
            return Ok(None);
        };
        let folder = self
            .builder
            .resolve_below(&self.root.clone(), parent.as_bytes(), true)?;
        Ok(Some(folder.child(name.name())))
    }

    fn entry(&mut self, header: &Header, content: &mut dyn io::Read) -> Result<(), FileOpError> {
        let Some(path) = self.place(&header.path, "entry name")? else {
            return Ok(());
        };
        if let Some(parent) = path.parent() {
            let made = Made {
                mode: 0o755,
                owner: (0, 0),
                ..self.changes.made()
            };
            self.builder.make_folders(&parent, made)?;
        }
        let kind = match header.kind {
            EntryKind::File => Kind::File {
                size: header.size,
                digest: FileDigest::new([0; 32]),
            },
            EntryKind::Dir => Kind::Dir {
                opaque: false,
                implied: false,
            },
            EntryKind::Symlink => Kind::Symlink(header.link.clone()),
            EntryKind::Char => Kind::Char(header.device.0, header.device.1),
            EntryKind::Block => Kind::Block(header.device.0, header.device.1),
            EntryKind::Fifo => Kind::Fifo,
            EntryKind::HardLink => return self.hard_link(path, header),
            EntryKind::Other(kind) => {
                let name = String::from_utf8_lossy(&header.path);
                return Err(self.bad(format!(
                    "{name:?} is of the unknown type {:?}",
                    kind as char
                )));
            }
        };
        let (uid, gid) = self.owner(header)?;
        let mode = if matches!(kind, Kind::Symlink(_)) {
            0o777
        } else {
            (header.mode & 0o7777) as u16
        };
        let entry = Entry {
            path,
            kind,
            mode,
            uid,
            gid,
            mtime: header.mtime,
            xattrs: xattrs(header).cloned().collect(),
            hardlink: None,
        };
        if entry.is_file() {
            self.builder.put_stream(entry, content)
        } else {
            self.builder.put(entry).map(drop)
        }
    }

    fn owner(&self, header: &Header) -> Result<(u32, u32), FileOpError> {
        let number = |id: i64| u32::try_from(id).ok();
        let own = number(header.uid).zip(number(header.gid));
        self.changes.owner.or(own).ok_or_else(|| {
            let name = String::from_utf8_lossy(&header.path);
            self.bad(format!(
                "{name:?} belongs to {}:{}, which is no owner",
                header.uid, header.gid
            ))
        })
    }

    /// One more name. What its entry says of owner, mode, time and attributes counts for the file.
    fn hard_link(&mut self, path: LayerPath, header: &Header) -> Result<(), FileOpError> {
        let missing = |this: &Self| {
            let link = String::from_utf8_lossy(&header.link);
            this.bad(format!(
                "hard link to {link:?}, which is not there or is a folder"
            ))
        };
        let target = self
            .place(&header.link, "hardlink target")?
            .ok_or_else(|| missing(self))?;
        if target == path {
            return Ok(());
        }
        let Some(there) = self
            .builder
            .get(&target)
            .filter(|there| !there.is_dir())
            .map(Cow::into_owned)
        else {
            return Err(missing(self));
        };
        let first = match self.builder.own(&target) {
            Some((first, _)) => first,
            // A file of a lower layer comes up into this one, as it does on an overlay.
            None => self.bring_up(&there)?,
        };
        let mut changed = there.clone();
        (changed.uid, changed.gid) = self.owner(header)?;
        if !matches!(there.kind, Kind::Symlink(_)) {
            changed.mode = (header.mode & 0o7777) as u16;
            changed.mtime = header.mtime;
        }
        for (name, value) in xattrs(header) {
            changed.xattrs.retain(|(known, _)| known != name);
            changed.xattrs.push((name.clone(), value.clone()));
        }
        changed.xattrs.sort();
        let is_same = changed == there;
        self.builder.link(Entry { path, ..there }, first)?;
        if is_same {
            Ok(())
        } else {
            self.builder.set_metadata(first, &changed)
        }
    }

    fn bring_up(&mut self, there: &Entry) -> Result<usize, FileOpError> {
        let entry = Entry {
            hardlink: None,
            ..there.clone()
        };
        if !entry.is_file() {
            return self.builder.put(entry);
        }
        let base = self.builder.base();
        let node = base.view.get(&there.path);
        let node =
            node.ok_or_else(|| FileOpError::Broken(format!("{} is in no layer", there.path)))?;
        self.builder.put_later(entry, base, node)
    }
}

/// The attributes of an entry but for those that the machine keeps for itself.
fn xattrs(header: &Header) -> impl Iterator<Item = &(Vec<u8>, Vec<u8>)> {
    let machine = |name: &[u8]| name.starts_with(b"trusted.") || name.starts_with(b"user.overlay.");
    header.xattrs.iter().filter(move |(name, _)| !machine(name))
}

/// Whether a name, cleaned, begins with `..`.
fn climbs(name: &[u8]) -> bool {
    if name.starts_with(b"/") {
        return false;
    }
    let mut depth = 0usize;
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." if depth == 0 => return true,
            b".." => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}
