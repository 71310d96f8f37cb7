//! One header block: where its fields are and how numbers stand in them.

use std::ops::Range;

use super::{BLOCK, EntryKind, Fault};

pub(super) type Block = [u8; BLOCK];

pub(super) const NAME: Range<usize> = 0..100;
pub(super) const MODE: Range<usize> = 100..108;
pub(super) const UID: Range<usize> = 108..116;
pub(super) const GID: Range<usize> = 116..124;
pub(super) const SIZE: Range<usize> = 124..136;
pub(super) const MTIME: Range<usize> = 136..148;
pub(super) const CHECKSUM: Range<usize> = 148..156;
pub(super) const KIND: usize = 156;
pub(super) const LINK: Range<usize> = 157..257;
pub(super) const MAGIC: Range<usize> = 257..265;
pub(super) const USER: Range<usize> = 265..297;
pub(super) const GROUP: Range<usize> = 297..329;
pub(super) const MAJOR: Range<usize> = 329..337;
pub(super) const MINOR: Range<usize> = 337..345;
pub(super) const PREFIX: Range<usize> = 345..500;
/// In the star format the prefix is shorter, times follow, and the block ends with `tar\0`.
pub(super) const STAR_PREFIX: Range<usize> = 345..476;
/// GNU's format has times there.
pub(super) const GNU_ATIME: Range<usize> = 345..357;
pub(super) const GNU_CTIME: Range<usize> = 357..369;

pub(super) const USTAR_MAGIC: &[u8; 8] = b"ustar\x0000";
const GNU_MAGIC: &[u8; 8] = b"ustar  \0";

/// Which of the incompatible header formats a block has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// Before POSIX: nothing behind the link name.
    V7,
    Ustar,
    Star,
    Gnu,
}

pub(super) fn format(block: &Block) -> Format {
    if block[MAGIC] == *GNU_MAGIC {
        Format::Gnu
    } else if block[MAGIC].starts_with(b"ustar\0") {
        if block[508..] == *b"tar\0" {
            Format::Star
        } else {
            Format::Ustar
        }
    } else {
        Format::V7
    }
}

/// The sum of all bytes, the checksum's own taken as spaces.
pub(super) fn checksum(block: &Block) -> i64 {
    sum(block, i64::from)
}

/// The sum as some old programs made it, of signed bytes.
pub(super) fn signed_checksum(block: &Block) -> i64 {
    sum(block, |byte| i64::from(byte as i8))
}

fn sum(block: &Block, value: impl Fn(u8) -> i64) -> i64 {
    let sum = |bytes: &[u8]| bytes.iter().map(|&byte| value(byte)).sum::<i64>();
    sum(block) - sum(&block[CHECKSUM]) + CHECKSUM.len() as i64 * i64::from(b' ')
}

/// A text field: up to the first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    &field[..field
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(field.len())]
}

/// A number: octal digits between spaces and NULs, or, with the highest bit of the first byte set, GNU's base-256 in
/// two's complement.
pub(super) fn number(field: &[u8]) -> Result<i64, Fault> {
    const TOO_LARGE: Fault = "a number does not fit";
    if field[0] & 0x80 != 0 {
        // The second highest bit is the sign.
        let negative = field[0] & 0x40 != 0;
        let start: i128 = if negative { -1 } else { 0 };
        let first = if negative { field[0] } else { field[0] & 0x7f };
        let bytes = std::iter::once(first).chain(field[1..].iter().copied());
        let value = bytes.fold(start, |value, byte| value << 8 | i128::from(byte));
        return i64::try_from(value).map_err(|_| TOO_LARGE);
    }
    let blank = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(first) = field.iter().position(|byte| !blank(byte)) else {
        return Ok(0);
    };
    let last = field.iter().rposition(|byte| !blank(byte)).unwrap_or(first);
    let mut value: i64 = 0;
    // What stands behind a NUL is ignored, as Go does.
    for &digit in text(&field[first..=last]) {
        if !(b'0'..=b'7').contains(&digit) {
            return Err("a number has a character that is no octal digit");
        }
        value = value.checked_mul(8).ok_or(TOO_LARGE)? + i64::from(digit - b'0');
    }
    Ok(value)
}

pub(super) fn kind(byte: u8, path: &[u8]) -> EntryKind {
    match byte {
        // Before POSIX, folders were files with a slash at the end.
        0 if path.ends_with(b"/") => EntryKind::Dir,
        0 | b'0' | b'7' | b'S' => EntryKind::File,
        b'1' => EntryKind::HardLink,
        b'2' => EntryKind::Symlink,
        b'3' => EntryKind::Char,
        b'4' => EntryKind::Block,
        b'5' => EntryKind::Dir,
        b'6' => EntryKind::Fifo,
        other => EntryKind::Other(other),
    }
}

/// Whether a number fits into an octal field of `width` bytes, the last of them NUL.
pub(super) fn fits_octal(width: usize, value: i64) -> bool {
    value >= 0 && value < 1 << ((width - 1) * 3)
}

/// Writes octal digits and a NUL; a number that does not fit, and stands elsewhere, as zero.
pub(super) fn put_octal(field: &mut [u8], value: i64) {
    let mut value = if fits_octal(field.len(), value) {
        value
    } else {
        0
    };
    let (nul, digits) = field.split_last_mut().expect("fields are not empty");
    *nul = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
}

pub(super) fn put_checksum(block: &mut Block) {
    let sum = checksum(block);
    put_octal(&mut block[CHECKSUM.start..CHECKSUM.end - 1], sum);
    block[CHECKSUM.end - 1] = b' ';
}
