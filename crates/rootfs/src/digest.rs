//! Hashing what was found.

use std::collections::HashMap;
use std::fs::File;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_image::{FileDigest, Kind};
use rustix::fs::OFlags;

use crate::RootfsError;
use crate::files::Folder;
use crate::walk::Found;

/// Bytes of work from which a second thread pays for itself; opening a file counts as [`PER_FILE`] bytes.
const WORTH_A_THREAD: u64 = 4 << 20;
const PER_FILE: u64 = 32 << 10;

/// Fills in the digests of the regular files that are not known to be unchanged, each hard-linked file once.
///
/// # Errors
/// When a file cannot be read.
pub(crate) fn fill(root: &Folder, found: &mut [Found]) -> Result<(), RootfsError> {
    let mut work: Vec<usize> = Vec::new();
    let mut first_name: HashMap<u32, usize> = HashMap::new();
    let mut cost = 0;
    for (at, found) in found.iter().enumerate() {
        let Kind::File { size, .. } = found.entry.kind else {
            continue;
        };
        let again = |group| *first_name.entry(group).or_insert(at) != at;
        if found.same || found.entry.hardlink.is_some_and(again) {
            continue;
        }
        cost += size + PER_FILE;
        work.push(at);
    }
    let digests = if cost < WORTH_A_THREAD || work.len() < 2 {
        work.iter()
            .map(|&at| Ok((at, hash(root, &found[at])?)))
            .collect::<Result<Vec<_>, RootfsError>>()?
    } else {
        in_two_threads(root, found, &work)?
    };
    for (at, digest) in digests {
        if let Kind::File { digest: place, .. } = &mut found[at].entry.kind {
            *place = digest;
        }
    }
    for at in 0..found.len() {
        let first = found[at]
            .entry
            .hardlink
            .and_then(|group| first_name.get(&group));
        if let Some(&first) = first
            && first != at
        {
            found[at].entry.kind = found[first].entry.kind.clone();
        }
    }
    Ok(())
}

fn in_two_threads(
    root: &Folder,
    found: &[Found],
    work: &[usize],
) -> Result<Vec<(usize, FileDigest)>, RootfsError> {
    let next = AtomicUsize::new(0);
    let run = || {
        let mut digests = Vec::new();
        while let Some(&at) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
            digests.push((at, hash(root, &found[at])?));
        }
        Ok(digests)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(run);
        let mut digests: Vec<_> = run()?;
        digests.extend(
            other
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
        );
        Ok(digests)
    })
}

fn hash(root: &Folder, found: &Found) -> Result<FileDigest, RootfsError> {
    let path = &found.entry.path;
    let mut hasher = blake3::Hasher::new();
    if !matches!(found.entry.kind, Kind::File { size: 0, .. }) {
        // Without NONBLOCK, opening what became a fifo since would wait for a writer.
        let file = File::from(root.open_at(path, OFlags::RDONLY | OFlags::NONBLOCK)?);
        hasher
            .update_reader(file)
            .map_err(root.error("read", path))?;
    }
    Ok(FileDigest::new(*hasher.finalize().as_bytes()))
}
