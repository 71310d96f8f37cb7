//! Sparse files: GNU's old header with extension blocks, and the PAX forms 0.0, 0.1 and 1.0
//! (GNU tar manual, "Storing Sparse Files").

use super::Fault;
use super::block::{Block, number};
use super::pax::{Records, decimal};

/// The most pieces of data in one file; real files stay far below.
const MAX_PIECES: usize = 1 << 20;

const BAD: Fault = "damaged map of a sparse file";

/// Where data stand in a file; everything between is zeros.
#[derive(Debug, Default)]
pub(super) struct Map {
    /// Offset and length, ascending, not overlapping.
    pub(super) pieces: Vec<(u64, u64)>,
    /// The size with the holes.
    pub(super) size: u64,
}

impl Map {
    /// Checks the order of the pieces and that they lie in the file; `stored` is how many bytes the archive has.
    pub(super) fn checked(self, stored: u64) -> Result<Self, Fault> {
        let mut end = 0;
        let mut sum = 0_u64;
        for &(offset, length) in &self.pieces {
            let next = offset.checked_add(length).ok_or(BAD)?;
            if offset < end || next > self.size {
                return Err(BAD);
            }
            (end, sum) = (next, sum + length);
        }
        if sum == stored && i64::try_from(self.size).is_ok() {
            Ok(self)
        } else {
            Err(BAD)
        }
    }

    fn push(&mut self, offset: i64, length: i64) -> Result<(), Fault> {
        if self.pieces.len() >= MAX_PIECES {
            return Err("a sparse file has too many pieces");
        }
        self.pieces.push((
            u64::try_from(offset).map_err(|_| BAD)?,
            u64::try_from(length).map_err(|_| BAD)?,
        ));
        Ok(())
    }

    /// Starts the map of the old GNU format from a header; the result tells whether extension blocks follow.
    pub(super) fn from_header(block: &Block) -> Result<(Self, bool), Fault> {
        let size = u64::try_from(number(&block[483..495])?).map_err(|_| BAD)?;
        let mut map = Self {
            pieces: Vec::new(),
            size,
        };
        map.extend(&block[386..482])?;
        Ok((map, block[482] != 0))
    }

    /// Continues with an extension block; the result tells whether another one follows.
    pub(super) fn extend_from(&mut self, block: &Block) -> Result<bool, Fault> {
        self.extend(&block[..504])?;
        Ok(block[504] != 0)
    }

    fn extend(&mut self, fields: &[u8]) -> Result<(), Fault> {
        for piece in fields.chunks_exact(24) {
            // The first unused piece ends the list.
            if piece[0] == 0 {
                break;
            }
            self.push(number(&piece[..12])?, number(&piece[12..])?)?;
        }
        Ok(())
    }
}

/// What the PAX records of an entry say about holes.
pub(super) enum Declared {
    /// Nothing.
    No,
    /// The formats 0.0 and 0.1: the map is in the records.
    Here(Map),
    /// The format 1.0: the map stands before the data; the size with the holes.
    BeforeData(u64),
}

/// Finds out what the records declare, and the real name if it stands apart.
pub(super) fn declared(records: &Records) -> Result<(Declared, Option<Vec<u8>>), Fault> {
    let version = (
        records.get(b"GNU.sparse.major"),
        records.get(b"GNU.sparse.minor"),
    );
    let map_here = records.get(b"GNU.sparse.map");
    let pairs = records.iter().any(|(key, _)| key == b"GNU.sparse.offset");
    let in_front = match version {
        (Some(b"0"), Some(b"0" | b"1")) => false,
        (Some(b"1"), Some(b"0")) => true,
        _ if map_here.is_some() || pairs => false,
        // Versions to come: Go shows them as plain files, too.
        _ => return Ok((Declared::No, None)),
    };
    let size = match records.number(b"GNU.sparse.size")? {
        Some(size) => Some(size),
        None => records.number(b"GNU.sparse.realsize")?,
    };
    let size = u64::try_from(size.ok_or(BAD)?).map_err(|_| BAD)?;
    let name = records.get(b"GNU.sparse.name").map(<[u8]>::to_vec);
    if in_front {
        return Ok((Declared::BeforeData(size), name));
    }
    let mut map = Map {
        pieces: Vec::new(),
        size,
    };
    if let Some(text) = map_here {
        let numbers: Vec<i64> = text
            .split(|&byte| byte == b',')
            .map(decimal)
            .collect::<Result<_, _>>()?;
        if !numbers.len().is_multiple_of(2) {
            return Err(BAD);
        }
        for pair in numbers.chunks_exact(2) {
            map.push(pair[0], pair[1])?;
        }
    } else {
        let mut offset = None;
        for (key, value) in records.iter() {
            match (key, offset) {
                (b"GNU.sparse.offset", None) => offset = Some(decimal(value)?),
                (b"GNU.sparse.numbytes", Some(start)) => {
                    map.push(start, decimal(value)?)?;
                    offset = None;
                }
                (b"GNU.sparse.offset" | b"GNU.sparse.numbytes", _) => return Err(BAD),
                _ => {}
            }
        }
        if offset.is_some() {
            return Err(BAD);
        }
    }
    Ok((Declared::Here(map), name))
}

/// The map of the format 1.0 as it is read: decimal numbers with a newline each, how many pieces first.
pub(super) struct Front {
    map: Map,
    digits: Vec<u8>,
    pieces: Option<usize>,
    offset: Option<i64>,
}

impl Front {
    pub(super) fn new(size: u64) -> Self {
        Self {
            map: Map {
                pieces: Vec::new(),
                size,
            },
            digits: Vec::new(),
            pieces: None,
            offset: None,
        }
    }

    /// Takes one block more; gives the map when it is whole. What is left of the block is padding.
    pub(super) fn take(&mut self, block: &Block) -> Result<Option<Map>, Fault> {
        for &byte in block {
            if byte != b'\n' {
                if self.digits.len() > 20 {
                    return Err(BAD);
                }
                self.digits.push(byte);
                continue;
            }
            let value = decimal(&std::mem::take(&mut self.digits))?;
            match (self.pieces, self.offset) {
                (None, _) => self.pieces = Some(usize::try_from(value).map_err(|_| BAD)?),
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => {
                    self.map.push(offset, value)?;
                    self.offset = None;
                }
            }
            if self.offset.is_none() && self.pieces == Some(self.map.pieces.len()) {
                return Ok(Some(std::mem::take(&mut self.map)));
            }
        }
        Ok(None)
    }
}
