//! How much this process may still write into layers: what keeps a store within its limit.
//!
//! One number for the process, since a worker serves one store and all its jobs write there.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a file takes at least, on the file systems that there are.
const BLOCK: u64 = 4096;

static LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

/// From now on this process writes no more than so many bytes into layers, in blocks. `u64::MAX`: as much as there is.
pub fn allow(bytes: u64) {
    LEFT.store(bytes, Ordering::Relaxed);
}

/// Takes what a file of this size needs.
///
/// # Errors
/// `StorageFull` when there is not so much left.
pub(super) fn take(size: u64) -> io::Result<()> {
    let blocks = size.next_multiple_of(BLOCK);
    let taken = LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
        u64::MAX => Some(left),
        _ => left.checked_sub(blocks),
    });
    match taken {
        Ok(_) => Ok(()),
        Err(_) => Err(io::Error::new(io::ErrorKind::StorageFull, Full)),
    }
}

#[derive(Debug, thiserror::Error)]
#[error("no space left in the store within its limit (storage.max-size)")]
struct Full;

/// Takes what passes through.
pub(super) struct Taking<'a>(pub(super) &'a mut dyn io::Read);

impl io::Read for Taking<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        if count > 0 {
            take(count as u64)?;
        }
        Ok(count)
    }
}
