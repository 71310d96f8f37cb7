//! Layers as tar archives: what an entry of the one is in the other (OCI image spec, layer.md).

mod builder;
mod write;

#[cfg(test)]
mod tests;

pub use builder::{LayerBuilder, Step};
pub use write::{Piece, entry_to_header, pieces, write_layer};

use crate::tar::{EntryKind, Header};
use crate::{Entry, FileDigest, Kind, LayerPath};

/// What the name of a whiteout starts with.
const WHITEOUT: &[u8] = b".wh.";
/// What the names of marks start with that are not whiteouts of a file.
const MARK: &[u8] = b".wh..wh.";
/// The file that makes the folder it is in opaque.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What a tar header means for a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Member {
    /// An entry, also a whiteout. A regular file's digest is all zeros until its content is known.
    Entry(Entry),
    /// One more name for a file.
    HardLink {
        /// The new name, with the metadata that the file has from then on. Its kind says nothing.
        entry: Box<Entry>,
        /// The name that the file has.
        target: LayerPath,
    },
    /// The folder hides what layers below have in it.
    Opaque(LayerPath),
    /// Nothing: bookkeeping of aufs.
    Ignored,
}

/// Whether names that start with `.wh.` are marks or names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// In layers.
    Apply,
    /// In archives that happen to be tar.
    Literal,
}

/// Why an archive is no layer.
#[derive(Debug, thiserror::Error)]
pub enum TarLayerError {
    /// The name, or what a hard link names, climbs above the root.
    #[error("tar entry {name:?} leads out of the root directory")]
    Outside {
        /// As written.
        name: String,
    },
    /// A whiteout of nothing, of `.` or of `..`; a root that is no folder.
    #[error("tar entry {name:?}: {what}")]
    Invalid {
        /// As written.
        name: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Neither file, link, folder, device nor pipe.
    #[error("tar entry {name:?} is of the unknown type {kind:?}")]
    UnknownKind {
        /// As written.
        name: String,
        /// The type byte.
        kind: char,
    },
    /// The parent is something else than a folder, or links that go in a circle.
    #[error("tar entry {path}: {parent} is not a directory")]
    Parent {
        /// The entry.
        path: LayerPath,
        /// What is in its way.
        parent: LayerPath,
    },
    /// A hard link to something that the archive has not brought before: a file of a lower layer, or nothing.
    #[error(
        "tar entry {path} is a hard link to {target}, which is not a file that comes before it in the archive"
    )]
    LinkTarget {
        /// The entry.
        path: LayerPath,
        /// What it names.
        target: LayerPath,
    },
    /// A name that would be a whiteout in the archive.
    #[error(
        "{0} cannot be kept in an image layer: names that start with .wh. stand for deleted files there"
    )]
    Reserved(LayerPath),
}

/// What a header means. Names are cleaned; absolute ones are taken relative to the root.
///
/// # Errors
/// When a name leaves the root, the type is unknown, an owner is no 32-bit number, or a whiteout names no file.
pub fn header_to_entry(header: &Header, whiteouts: Whiteouts) -> Result<Member, TarLayerError> {
    let shown = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    let invalid = |what| TarLayerError::Invalid {
        name: shown(&header.path),
        what,
    };
    let clean =
        |name: &[u8]| clean(name).ok_or_else(|| TarLayerError::Outside { name: shown(name) });
    let path = clean(&header.path)?;
    if whiteouts == Whiteouts::Apply {
        if path.name() == OPAQUE {
            return Ok(Member::Opaque(path.parent().unwrap_or_default()));
        }
        if path.components().any(|name| name.starts_with(MARK)) {
            return Ok(Member::Ignored);
        }
        if let Some(name) = path.name().strip_prefix(WHITEOUT) {
            if matches!(name, b"" | b"." | b"..") {
                return Err(invalid("a whiteout must name a file"));
            }
            return Ok(Member::Entry(bare(
                path.parent().unwrap_or_default().child(name),
                Kind::Whiteout,
            )));
        }
    }
    let kind = match header.kind {
        EntryKind::File | EntryKind::HardLink => Kind::File {
            size: header.size,
            digest: FileDigest::new([0; 32]),
        },
        EntryKind::Symlink => Kind::Symlink(header.link.clone()),
        EntryKind::Char => Kind::Char(header.device.0, header.device.1),
        EntryKind::Block => Kind::Block(header.device.0, header.device.1),
        EntryKind::Dir => Kind::Dir {
            opaque: false,
            implied: false,
        },
        EntryKind::Fifo => Kind::Fifo,
        EntryKind::Other(byte) => {
            return Err(TarLayerError::UnknownKind {
                name: shown(&header.path),
                kind: byte as char,
            });
        }
    };
    if path.is_root() && header.kind != EntryKind::Dir {
        return Err(invalid("the root is not a directory"));
    }
    // The highest number means "leave it" to chown.
    let id = |id: i64| {
        u32::try_from(id)
            .ok()
            .filter(|&id| id != u32::MAX)
            .ok_or_else(|| invalid("an impossible owner"))
    };
    let entry = Entry {
        mode: (header.mode & 0o7777) as u16,
        uid: id(header.uid)?,
        gid: id(header.gid)?,
        mtime: header.mtime,
        xattrs: header.xattrs.clone(),
        ..bare(path, kind)
    };
    Ok(if header.kind == EntryKind::HardLink {
        Member::HardLink {
            target: clean(&header.link)?,
            entry: Box::new(entry),
        }
    } else {
        Member::Entry(entry)
    })
}

/// An entry without metadata.
fn bare(path: LayerPath, kind: Kind) -> Entry {
    Entry {
        kind,
        ..Entry::dir(path, 0, 0, 0, (0, 0))
    }
}

/// Cleans a name; `None` if it climbs above the root.
fn clean(name: &[u8]) -> Option<LayerPath> {
    let mut depth = 0_usize;
    for part in name.split(|&byte| byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => depth = depth.checked_sub(1)?,
            _ => depth += 1,
        }
    }
    Some(LayerPath::clean(name))
}
