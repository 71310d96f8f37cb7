//! From the index to the archive.

use std::collections::HashMap;
use std::io::{self, Read, Write};

use super::{OPAQUE, TarLayerError, WHITEOUT};
use crate::tar::{EntryKind, Header, Writer};
use crate::{Entry, Kind, LayerIndex, LayerPath};

/// One entry of a layer's archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece<'a> {
    /// Its header.
    pub header: Header,
    /// The regular file whose content follows.
    pub content: Option<&'a Entry>,
}

/// The header that an entry has in an archive, folders with a slash at the end. Hard links are not looked at: each
/// name gets the header of a file. `None` for sockets, which have no place in archives. An opaque folder's mark is a
/// header of its own, see [`pieces`].
///
/// # Errors
/// When the name would be a whiteout.
pub fn entry_to_header(entry: &Entry) -> Result<Option<Header>, TarLayerError> {
    if entry.path.name().starts_with(WHITEOUT) {
        return Err(TarLayerError::Reserved(entry.path.clone()));
    }
    let mut header = Header {
        path: entry.path.as_bytes().to_vec(),
        mode: u32::from(entry.mode),
        uid: i64::from(entry.uid),
        gid: i64::from(entry.gid),
        mtime: entry.mtime,
        xattrs: entry.xattrs.clone(),
        ..Header::default()
    };
    match &entry.kind {
        Kind::Dir { .. } => {
            header.kind = EntryKind::Dir;
            header.path = if entry.path.is_root() {
                b"./".to_vec()
            } else {
                [&header.path[..], b"/"].concat()
            };
        }
        Kind::File { size, .. } => header.size = *size,
        Kind::Symlink(target) => {
            header.kind = EntryKind::Symlink;
            header.link.clone_from(target);
        }
        Kind::Char(major, minor) => {
            (header.kind, header.device) = (EntryKind::Char, (*major, *minor));
        }
        Kind::Block(major, minor) => {
            (header.kind, header.device) = (EntryKind::Block, (*major, *minor));
        }
        Kind::Fifo => header.kind = EntryKind::Fifo,
        Kind::Socket => return Ok(None),
        Kind::Whiteout => {
            let name = [WHITEOUT, entry.path.name()].concat();
            let path = entry
                .path
                .parent()
                .unwrap_or_default()
                .child(name)
                .as_bytes()
                .to_vec();
            header = Header {
                path,
                ..Header::default()
            };
        }
    }
    Ok(Some(header))
}

/// The archive of a layer, entry by entry in index order. Times later than `clamp` seconds since 1970 become `clamp`.
/// Of a file with several names the first has the content, the others are hard links to it.
pub fn pieces(
    index: &LayerIndex,
    clamp: Option<i64>,
) -> impl Iterator<Item = Result<Piece<'_>, TarLayerError>> {
    let mut first_names: HashMap<u32, &LayerPath> = HashMap::new();
    index
        .entries()
        .iter()
        .flat_map(move |entry| {
            let header = match entry_to_header(entry) {
                Ok(Some(header)) => header,
                Ok(None) => return [None, None],
                Err(error) => return [Some(Err(error)), None],
            };
            let mut piece = Piece {
                header,
                content: entry.is_file().then_some(entry),
            };
            if let Some(clamp) = clamp {
                piece.header.mtime = piece.header.mtime.min((clamp, 0));
            }
            if let Some(group) = entry.hardlink {
                let first = *first_names.entry(group).or_insert(&entry.path);
                if *first != entry.path {
                    piece.header.kind = EntryKind::HardLink;
                    piece.header.link = first.as_bytes().to_vec();
                    piece.header.size = 0;
                    piece.header.device = (0, 0);
                    piece.content = None;
                }
            }
            let mark = matches!(entry.kind, Kind::Dir { opaque: true, .. }).then(|| {
                let path = entry.path.child(OPAQUE).as_bytes().to_vec();
                Ok(Piece {
                    header: Header {
                        path,
                        ..Header::default()
                    },
                    content: None,
                })
            });
            [Some(Ok(piece)), mark]
        })
        .flatten()
}

/// Writes the archive of a layer and gives back the destination and the size of the archive. `open` opens a regular
/// file, of which exactly the size that the index says is taken.
///
/// # Errors
/// When the destination or a file fails, or an entry cannot be expressed in an archive.
pub fn write_layer<W: Write, R: Read>(
    index: &LayerIndex,
    clamp: Option<i64>,
    out: W,
    mut open: impl FnMut(&Entry) -> io::Result<R>,
) -> io::Result<(W, u64)> {
    let mut writer = Writer::new(out);
    for piece in pieces(index, clamp) {
        let piece = piece.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        match piece.content {
            Some(entry) => writer.append(&piece.header, &mut open(entry)?)?,
            None => writer.append(&piece.header, &mut io::empty())?,
        }
    }
    writer.finish()
}
