//! Writing archives: the same headers always give the same bytes, those that Go's `archive/tar` would write. `ustar`
//! where everything fits into it, else PAX records in an extended header before it.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use super::block::{self, Block, fits_octal, put_checksum, put_octal};
use super::{BLOCK, EntryKind, Header, pax};

/// How much is copied at once.
const CHUNK: usize = 64 * 1024;

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    written: u64,
    buffer: Vec<u8>,
}

impl<W: Write> Writer<W> {
    /// Starts an archive.
    pub fn new(out: W) -> Self {
        Self {
            out,
            written: 0,
            buffer: Vec::new(),
        }
    }

    /// Appends an entry. Of a regular file exactly `header.size` bytes are taken from `content`; of anything else
    /// nothing.
    ///
    /// # Errors
    /// When the destination or `content` fails, `content` is too short, or the header cannot be expressed.
    pub fn append(&mut self, header: &Header, content: &mut dyn Read) -> io::Result<()> {
        let head = header_bytes(header)?;
        self.out.write_all(&head)?;
        self.written += head.len() as u64;
        if header.kind != EntryKind::File {
            return Ok(());
        }
        let copied = self.copy(content, header.size)?;
        if copied < header.size {
            let path = String::from_utf8_lossy(&header.path);
            let what = format!("{path}: {copied} bytes where {} were expected", header.size);
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
        }
        let padding = (copied.wrapping_neg() % BLOCK as u64) as usize;
        self.out.write_all(&[0; BLOCK][..padding])?;
        self.written += copied + padding as u64;
        Ok(())
    }

    fn copy(&mut self, content: &mut dyn Read, size: u64) -> io::Result<u64> {
        self.buffer.resize(CHUNK, 0);
        let mut copied = 0;
        while copied < size {
            let most = CHUNK.min(usize::try_from(size - copied).unwrap_or(CHUNK));
            match content.read(&mut self.buffer[..most]) {
                Ok(0) => break,
                Ok(got) => {
                    self.out.write_all(&self.buffer[..got])?;
                    copied += got as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(copied)
    }

    /// Ends the archive with two blocks of zeros and gives back the destination and the size of the archive.
    pub fn finish(mut self) -> io::Result<(W, u64)> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok((self.out, self.written + 2 * BLOCK as u64))
    }
}

/// The block or blocks that stand before an entry's content.
///
/// # Errors
/// When a name holds NUL, an attribute's name `=`, or a mode or device number is too large: no format that other
/// programs read can express these.
pub fn header_bytes(header: &Header) -> io::Result<Vec<u8>> {
    let records = records(header)?;
    // Once there is an extended header the name stands in it and need not be split.
    let split = if records.needed {
        None
    } else {
        split_name(&header.path)
    };
    let mut out = Vec::with_capacity(if records.needed { 3 * BLOCK } else { BLOCK });
    if records.needed {
        let mut body = Vec::new();
        for (key, value) in &records.records {
            pax::put_record(&mut body, key, value);
        }
        let mut block = [0; BLOCK];
        let mut name = ascii(&extension_name(&header.path));
        name.truncate(block::NAME.len());
        while name.ends_with(b"/") {
            name.pop();
        }
        put_text(&mut block[block::NAME], &name);
        for field in [block::MODE, block::UID, block::GID, block::MTIME] {
            put_octal(&mut block[field], 0);
        }
        put_octal(&mut block[block::SIZE], body.len() as i64);
        block[block::KIND] = b'x';
        seal(&mut block);
        out.extend_from_slice(&block);
        out.extend_from_slice(&body);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    let mut block = [0; BLOCK];
    match split {
        Some((prefix, name)) => {
            put_text(&mut block[block::PREFIX], prefix);
            put_text(&mut block[block::NAME], name);
        }
        None => put_text(&mut block[block::NAME], &ascii(&header.path)),
    }
    put_text(&mut block[block::LINK], &ascii(&header.link));
    put_octal(&mut block[block::MODE], i64::from(header.mode));
    put_octal(&mut block[block::UID], header.uid);
    put_octal(&mut block[block::GID], header.gid);
    put_octal(&mut block[block::SIZE], size(header));
    put_octal(&mut block[block::MTIME], header.mtime.0);
    block[block::KIND] = kind(header.kind);
    put_text(&mut block[block::USER], &ascii(&header.user));
    put_text(&mut block[block::GROUP], &ascii(&header.group));
    put_octal(&mut block[block::MAJOR], i64::from(header.device.0));
    put_octal(&mut block[block::MINOR], i64::from(header.device.1));
    seal(&mut block);
    out.extend_from_slice(&block);
    Ok(out)
}

/// The header of a file of mode 0644 that belongs to root, of 1970: what archives of images are made of.
///
/// # Panics
/// When the name holds NUL.
pub fn plain_file_header(path: &str, size: u64) -> Vec<u8> {
    let header = Header {
        path: path.as_bytes().to_vec(),
        size,
        mode: 0o644,
        ..Header::default()
    };
    header_bytes(&header).expect("a name without NUL can be expressed")
}

/// The records that an entry needs. Some values get a record only because there is an extended header anyway.
struct Records {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    needed: bool,
}

fn records(header: &Header) -> io::Result<Records> {
    let invalid = |what: &str| {
        let what = format!("{}: {what}", String::from_utf8_lossy(&header.path));
        io::Error::new(io::ErrorKind::InvalidInput, what)
    };
    let mut all = Records {
        records: BTreeMap::new(),
        needed: false,
    };
    for (key, value, width) in [
        ("path", &header.path, block::NAME.len()),
        ("linkpath", &header.link, block::LINK.len()),
        ("uname", &header.user, block::USER.len()),
        ("gname", &header.group, block::GROUP.len()),
    ] {
        if value.contains(&0) {
            return Err(invalid("a name with NUL cannot be kept in a tar archive"));
        }
        if value.len() > width || !value.is_ascii() {
            all.needed |= key != "path" || split_name(value).is_none();
            all.records.insert(key.into(), value.clone());
        }
    }
    for (key, value, width) in [
        ("uid", header.uid, block::UID.len()),
        ("gid", header.gid, block::GID.len()),
        ("size", size(header), block::SIZE.len()),
    ] {
        if !fits_octal(width, value) {
            all.needed = true;
            all.records.insert(key.into(), value.to_string().into());
        }
    }
    for (what, value) in [
        ("mode", header.mode),
        ("device number", header.device.0),
        ("device number", header.device.1),
    ] {
        if !fits_octal(block::MODE.len(), i64::from(value)) {
            return Err(invalid(&format!(
                "{what} {value} is too large for a tar archive"
            )));
        }
    }
    if header.mtime.1 != 0 || !fits_octal(block::MTIME.len(), header.mtime.0) {
        all.needed = true;
        all.records
            .insert(b"mtime".to_vec(), pax::time_text(header.mtime).into());
    }
    for (name, value) in &header.xattrs {
        if name.is_empty() || name.contains(&b'=') || name.contains(&0) {
            return Err(invalid(
                "the name of an extended attribute cannot be kept in a tar archive",
            ));
        }
        all.needed = true;
        all.records
            .insert([b"SCHILY.xattr.", &name[..]].concat(), value.clone());
    }
    Ok(all)
}

fn size(header: &Header) -> i64 {
    if header.kind == EntryKind::File {
        i64::try_from(header.size).unwrap_or(i64::MAX)
    } else {
        0
    }
}

fn kind(kind: EntryKind) -> u8 {
    match kind {
        EntryKind::File => b'0',
        EntryKind::HardLink => b'1',
        EntryKind::Symlink => b'2',
        EntryKind::Char => b'3',
        EntryKind::Block => b'4',
        EntryKind::Dir => b'5',
        EntryKind::Fifo => b'6',
        EntryKind::Other(byte) => byte,
    }
}

/// Splits a long name at a slash into the prefix and the name field of `ustar`.
fn split_name(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= block::NAME.len() || !path.is_ascii() {
        return None;
    }
    let mut most = path.len().min(block::PREFIX.len() + 1);
    if most == path.len() && path.ends_with(b"/") {
        most -= 1;
    }
    let slash = path[..most].iter().rposition(|&byte| byte == b'/')?;
    let (prefix, name) = (&path[..slash], &path[slash + 1..]);
    (!prefix.is_empty() && !name.is_empty() && name.len() <= block::NAME.len())
        .then_some((prefix, name))
}

/// The name that an extended header gets: readers that do not know the format make a file of it.
fn extension_name(path: &[u8]) -> Vec<u8> {
    let (folder, name) = match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => path.split_at(slash + 1),
        None => (&[][..], path),
    };
    let cleaned = crate::LayerPath::clean([folder, b"PaxHeaders.0/", name].concat());
    let slash: &[u8] = if path.starts_with(b"/") { b"/" } else { b"" };
    [slash, cleaned.as_bytes()].concat()
}

fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter()
        .copied()
        .filter(|byte| byte.is_ascii() && *byte != 0)
        .collect()
}

/// Writes a text, cut where it does not fit; not cut behind a slash, which would make a folder of it.
fn put_text(field: &mut [u8], text: &[u8]) {
    let mut cut = &text[..text.len().min(field.len())];
    if text.len() > field.len() {
        while let Some(shorter) = cut.strip_suffix(b"/") {
            cut = shorter;
        }
    }
    field[..cut.len()].copy_from_slice(cut);
}

fn seal(block: &mut Block) {
    block[block::MAGIC].copy_from_slice(block::USTAR_MAGIC);
    put_checksum(block);
}
