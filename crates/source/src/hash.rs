//! Hashing files that may change while they are read.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use kiln_image::{FileDigest, LayerPath};
use rustix::fs::{FileType, OFlags};

use crate::cache::Stamp;
use crate::scan::open_beneath;

/// What hashing found out about a file.
pub(crate) struct Hashed {
    pub(crate) digest: FileDigest,
    /// Bytes that were hashed.
    pub(crate) size: u64,
    pub(crate) mode: u16,
    pub(crate) stamp: Stamp,
    /// The file did not change while it was read, and a later change would show in its stamp.
    pub(crate) settled: bool,
}

/// How often a file that changes under the reader is read again.
const TRIES: usize = 4;

/// Work from which on a second thread pays.
const FILES_ALONE: usize = 256;
const BYTES_ALONE: u64 = 8 << 20;

/// Hashes files below `folder`, in at most two threads. `open`: a number to know the file by, its path and its stamp.
pub(crate) fn hash_all(
    folder: &OwnedFd,
    open: &[(usize, &LayerPath, Stamp)],
) -> Vec<(usize, io::Result<Hashed>)> {
    let bytes: u64 = open.iter().map(|(_, _, stamp)| stamp.size).sum();
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(open.len()));
    let work = || {
        let mut buffer = vec![0; 128 * 1024];
        let mut own = Vec::new();
        while let Some((at, path, _)) = open.get(next.fetch_add(1, Ordering::Relaxed)) {
            own.push((*at, hash_file(folder, path, &mut buffer)));
        }
        results
            .lock()
            .expect("a hashing thread has panicked")
            .append(&mut own);
    };
    if open.len() > FILES_ALONE || (open.len() > 1 && bytes > BYTES_ALONE) {
        std::thread::scope(|scope| {
            scope.spawn(work);
            work();
        });
    } else {
        work();
    }
    let mut results = results.into_inner().expect("a hashing thread has panicked");
    results.sort_unstable_by_key(|(at, _)| *at);
    results
}

fn hash_file(folder: &OwnedFd, path: &LayerPath, buffer: &mut [u8]) -> io::Result<Hashed> {
    let mut tries = 0;
    loop {
        tries += 1;
        let clock = SystemTime::now();
        let mut file = File::from(open_beneath(folder, path, OFlags::RDONLY)?);
        let before = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(before.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("it was a file and is none any more"));
        }
        let mut hasher = blake3::Hasher::new();
        let mut size = 0;
        loop {
            match file.read(buffer) {
                Ok(0) => break,
                Ok(length) => {
                    hasher.update(&buffer[..length]);
                    size += length as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let after = rustix::fs::fstat(&file)?;
        let stamp = Stamp::of(&before);
        let same = stamp == Stamp::of(&after) && stamp.size == size;
        // A file that is written to all the time is taken as it was read; the copy of it will be looked at again.
        if same || tries == TRIES {
            return Ok(Hashed {
                digest: FileDigest::new(*hasher.finalize().as_bytes()),
                size,
                mode: (before.st_mode & 0o7777) as u16,
                stamp,
                settled: same && stamp.settled(clock),
            });
        }
    }
}
