//! Reading archives as a stream.

use std::io::{self, Read};

use super::block::{self, Block, Format};
use super::pax::Records;
use super::sparse::{self, Declared, Front, Map};
use super::{BLOCK, EntryKind, Fault, Header, TarError};

/// The most bytes of one extended header.
const MAX_PAX: u64 = 1 << 20;
/// The most bytes of a path or a link target.
const MAX_NAME: u64 = 1 << 16;

/// Reads an archive entry by entry. It reads in blocks of 512 bytes, so the source should be buffered.
#[derive(Debug)]
pub struct Reader<R> {
    source: Source<R>,
    /// What the current entry has left in the archive, and the padding behind it.
    stored_left: u64,
    padding: u64,
    ended: bool,
}

/// An entry. Its content can be left unread, or partly.
#[derive(Debug)]
pub struct TarEntry<'a, R> {
    /// Everything but the content.
    pub header: Header,
    /// Where the content starts, counted from where the reader started; of sparse files where the data do.
    pub content_offset: u64,
    /// The content; of sparse files with zeros in the holes.
    pub content: Content<'a, R>,
}

/// The content of an entry.
#[derive(Debug)]
pub struct Content<'a, R> {
    reader: &'a mut Reader<R>,
    /// Of sparse files: where the data go, the next last.
    pieces: Option<Vec<(u64, u64)>>,
    position: u64,
    size: u64,
}

#[derive(Debug)]
struct Source<R> {
    inner: R,
    offset: u64,
}

impl<R: Read> Source<R> {
    /// Fills the buffer unless the source ends before; tells how much it got.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, TarError> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.inner.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(got) => {
                    filled += got;
                    self.offset += got as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    return Err(TarError::Io {
                        offset: self.offset,
                        source,
                    });
                }
            }
        }
        Ok(filled)
    }

    /// A whole block; `None` at the end of the source.
    fn block(&mut self) -> Result<Option<Block>, TarError> {
        let mut block = [0; BLOCK];
        match self.fill(&mut block)? {
            0 => Ok(None),
            BLOCK => Ok(Some(block)),
            _ => Err(TarError::CutOff {
                offset: self.offset,
            }),
        }
    }

    fn needed_block(&mut self) -> Result<Block, TarError> {
        self.block()?.ok_or(TarError::CutOff {
            offset: self.offset,
        })
    }

    /// The content of a header that says something about the next entry.
    fn special(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        let mut content = vec![0; size as usize];
        if self.fill(&mut content)? < content.len() {
            return Err(TarError::CutOff {
                offset: self.offset,
            });
        }
        let mut padding = [0; BLOCK];
        self.fill(&mut padding[..padding_of(size) as usize])?;
        Ok(content)
    }

    fn skip(&mut self, mut bytes: u64) -> Result<(), TarError> {
        let mut buffer = [0; 16 * 1024];
        while bytes > 0 {
            let most = buffer
                .len()
                .min(usize::try_from(bytes).unwrap_or(usize::MAX));
            let got = self.fill(&mut buffer[..most])?;
            if got < most {
                return Err(TarError::CutOff {
                    offset: self.offset,
                });
            }
            bytes -= got as u64;
        }
        Ok(())
    }
}

fn padding_of(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// What headers before an entry's own say about it.
#[derive(Default)]
struct Pending {
    records: Records,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: Read> Reader<R> {
    /// Reads the archive from where `source` stands.
    pub fn new(source: R) -> Self {
        Self {
            source: Source {
                inner: source,
                offset: 0,
            },
            stored_left: 0,
            padding: 0,
            ended: false,
        }
    }

    /// How many bytes have been read.
    pub fn offset(&self) -> u64 {
        self.source.offset
    }

    /// The source, which stands somewhere behind the last entry read: after the end of the archive there can be more
    /// bytes.
    pub fn into_inner(self) -> R {
        self.source.inner
    }

    /// The next entry; `None` at the end of the archive, which is two blocks of zeros or the end of the source.
    ///
    /// # Errors
    /// When the source fails, the archive is damaged, or it ends inside an entry. The reader must not be used after.
    pub fn next_entry(&mut self) -> Result<Option<TarEntry<'_, R>>, TarError> {
        self.source.skip(std::mem::take(&mut self.stored_left))?;
        // The last entry's padding may be missing, as Go has it.
        self.source.skip_some(std::mem::take(&mut self.padding))?;
        let mut pending = Pending::default();
        while !self.ended {
            let offset = self.source.offset;
            let at = |what: Fault| TarError::Invalid { offset, what };
            let Some(block) = self.source.block()? else {
                break;
            };
            if block == [0; BLOCK] {
                match self.source.block()? {
                    Some(second) if second != [0; BLOCK] => {
                        return Err(at("one block of zeros, then more entries"));
                    }
                    _ => break,
                }
            }
            verify_checksum(&block).map_err(at)?;
            if !matches!(block[block::KIND], b'x' | b'g' | b'L' | b'K') {
                return self.entry(&block, offset, pending).map(Some);
            }
            let size = header(&block, &Records::default()).map_err(at)?.size;
            let limited = |most: u64| {
                if size > most {
                    Err(at("a name or an extended header is too long"))
                } else {
                    Ok(size)
                }
            };
            match block[block::KIND] {
                b'x' => {
                    pending.records =
                        Records::parse(&self.source.special(limited(MAX_PAX)?)?).map_err(at)?;
                }
                b'L' => {
                    pending.path =
                        Some(block::text(&self.source.special(limited(MAX_NAME)?)?).to_vec());
                }
                b'K' => {
                    pending.link =
                        Some(block::text(&self.source.special(limited(MAX_NAME)?)?).to_vec());
                }
                _ => {
                    Records::parse(&self.source.special(limited(MAX_PAX)?)?).map_err(at)?;
                    // To Go a global header is an entry: what stood before it is used up.
                    pending = Pending::default();
                }
            }
        }
        self.ended = true;
        Ok(None)
    }

    fn entry(
        &mut self,
        block: &Block,
        offset: u64,
        pending: Pending,
    ) -> Result<TarEntry<'_, R>, TarError> {
        let at = |what: Fault| TarError::Invalid { offset, what };
        let mut header = header(block, &pending.records).map_err(at)?;
        if let Some(path) = pending.path {
            header.path = path;
        }
        if let Some(link) = pending.link {
            header.link = link;
        }
        header.kind = block::kind(block[block::KIND], &header.path);
        if header.path.len().max(header.link.len()) as u64 > MAX_NAME {
            return Err(at("a name is too long"));
        }
        if !matches!(header.kind, EntryKind::File | EntryKind::Other(_)) {
            header.size = 0;
        }
        let mut stored = header.size;
        self.padding = padding_of(stored);
        let mut map = None;
        if block[block::KIND] == b'S' {
            if block::format(block) != Format::Gnu {
                return Err(at("a sparse file without GNU's header"));
            }
            let (mut old, mut more) = Map::from_header(block).map_err(at)?;
            while more {
                more = old.extend_from(&self.source.needed_block()?).map_err(at)?;
            }
            map = Some(old);
        } else if header.kind == EntryKind::File {
            let (declared, name) = sparse::declared(&pending.records).map_err(at)?;
            if let Some(name) = name {
                header.path = name;
            }
            match declared {
                Declared::No => {}
                Declared::Here(here) => map = Some(here),
                Declared::BeforeData(size) => {
                    let mut front = Front::new(size);
                    map = loop {
                        stored = stored
                            .checked_sub(BLOCK as u64)
                            .ok_or(at("damaged map of a sparse file"))?;
                        if let Some(map) = front.take(&self.source.needed_block()?).map_err(at)? {
                            break Some(map);
                        }
                    };
                }
            }
        }
        let pieces = match map {
            Some(map) => {
                let map = map.checked(stored).map_err(at)?;
                header.size = map.size;
                let mut pieces = map.pieces;
                pieces.reverse();
                Some(pieces)
            }
            None => None,
        };
        self.stored_left = stored;
        let (content_offset, size) = (self.source.offset, header.size);
        Ok(TarEntry {
            header,
            content_offset,
            content: Content {
                reader: self,
                pieces,
                position: 0,
                size,
            },
        })
    }
}

impl<R: Read> Source<R> {
    /// Like `skip`, but the source may end before.
    fn skip_some(&mut self, bytes: u64) -> Result<(), TarError> {
        match self.skip(bytes) {
            Err(TarError::CutOff { .. }) => Ok(()),
            other => other,
        }
    }
}

fn verify_checksum(block: &Block) -> Result<(), Fault> {
    let said = block::number(&block[block::CHECKSUM])?;
    if said == block::checksum(block) || said == block::signed_checksum(block) {
        Ok(())
    } else {
        Err("the checksum of a header does not match")
    }
}

/// The header of an entry from its block and the records that go with it.
fn header(block: &Block, records: &Records) -> Result<Header, Fault> {
    let format = block::format(block);
    let field = |range: std::ops::Range<usize>| block::text(&block[range]).to_vec();
    let mut header = Header {
        path: field(block::NAME),
        link: field(block::LINK),
        size: u64::try_from(block::number(&block[block::SIZE])?).map_err(|_| "a negative size")?,
        mode: u32::try_from(block::number(&block[block::MODE])?)
            .map_err(|_| "an impossible mode")?,
        uid: block::number(&block[block::UID])?,
        gid: block::number(&block[block::GID])?,
        mtime: (block::number(&block[block::MTIME])?, 0),
        ..Header::default()
    };
    if format != Format::V7 {
        header.user = field(block::USER);
        header.group = field(block::GROUP);
        let (major, minor) = (
            block::number(&block[block::MAJOR])?,
            block::number(&block[block::MINOR])?,
        );
        // Of anything but a device the numbers mean nothing, and some programs write such that do not fit.
        header.device = match (u32::try_from(major), u32::try_from(minor)) {
            (Ok(major), Ok(minor)) => (major, minor),
            _ if matches!(block[block::KIND], b'3' | b'4') => {
                return Err("an impossible device number");
            }
            _ => (0, 0),
        };
    }
    let prefix = match format {
        Format::Ustar => field(block::PREFIX),
        Format::Star => field(block::STAR_PREFIX),
        // Go before 1.8 wrote prefixes into GNU's format, where times stand: what is no number is a prefix.
        Format::Gnu => {
            let time = |range: std::ops::Range<usize>| {
                block[range.start] == 0 || block::number(&block[range]).is_ok()
            };
            let prefix = field(block::PREFIX);
            if time(block::GNU_ATIME) && time(block::GNU_CTIME) || !prefix.is_ascii() {
                Vec::new()
            } else {
                prefix
            }
        }
        Format::V7 => Vec::new(),
    };
    if !prefix.is_empty() {
        header.path = [&prefix[..], &header.path].join(&b'/');
    }
    let text = |key: &[u8], value: &mut Vec<u8>| {
        if let Some(record) = records.get(key) {
            *value = record.to_vec();
        }
    };
    text(b"path", &mut header.path);
    text(b"linkpath", &mut header.link);
    text(b"uname", &mut header.user);
    text(b"gname", &mut header.group);
    header.uid = records.number(b"uid")?.unwrap_or(header.uid);
    header.gid = records.number(b"gid")?.unwrap_or(header.gid);
    header.mtime = records.time(b"mtime")?.unwrap_or(header.mtime);
    if let Some(size) = records.number(b"size")? {
        header.size = u64::try_from(size).map_err(|_| "a negative size")?;
    }
    for (key, value) in records.iter() {
        if let Some(name) = key.strip_prefix(b"SCHILY.xattr.")
            && !name.is_empty()
        {
            header.xattrs.retain(|(known, _)| known != name);
            header.xattrs.push((name.to_vec(), value.to_vec()));
        }
    }
    header.xattrs.sort();
    Ok(header)
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.size - self.position;
        let most = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let mut buffer = &mut buffer[..most];
        if buffer.is_empty() {
            return Ok(0);
        }
        if let Some(pieces) = &mut self.pieces {
            while pieces
                .last()
                .is_some_and(|&(offset, length)| offset + length <= self.position)
            {
                pieces.pop();
            }
            let (offset, length) = pieces.last().copied().unwrap_or((self.size, 0));
            let (until, hole) = if self.position < offset {
                (offset, true)
            } else {
                (offset + length, false)
            };
            let most = buffer
                .len()
                .min(usize::try_from(until - self.position).unwrap_or(usize::MAX));
            buffer = &mut buffer[..most];
            if hole {
                buffer.fill(0);
                self.position += most as u64;
                return Ok(most);
            }
        }
        let got = self.reader.source.inner.read(buffer)?;
        self.reader.source.offset += got as u64;
        self.reader.stored_left -= got as u64;
        self.position += got as u64;
        if got == 0 {
            return Err(TarError::CutOff {
                offset: self.reader.source.offset,
            }
            .into());
        }
        Ok(got)
    }
}

impl<R: Read> Read for TarEntry<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.content.read(buffer)
    }
}
