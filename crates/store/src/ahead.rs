//! Files of a layer, read ahead in the order of its archive: opening many small ones takes longer than hashing them.

use std::io::{self, Read};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::Scope;

use kiln_image::{Entry, Kind, LayerIndex};

use crate::LayerFs;

/// Larger files are read where they are needed.
const SMALL: u64 = 128 * 1024;
/// Fewer are read at once.
const MANY: usize = 256;
const THREADS: usize = 2;
/// Neighbours are read by one thread. With what waits to be taken, a thread holds so many bytes four times at most.
const CHUNK_FILES: usize = 64;
const CHUNK_BYTES: u64 = 256 * 1024;
const WAITING: usize = 2;

/// Contents of files, one after the other, and where each ends. Ends with the first that could not be read.
struct Chunk {
    bytes: Vec<u8>,
    ends: Vec<usize>,
    error: Option<io::Error>,
}

/// What was read of one file.
pub(crate) struct Part {
    chunk: Arc<Chunk>,
    at: usize,
    end: usize,
}

impl Read for Part {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = (&self.chunk.bytes[self.at..self.end]).read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

/// Threads that read ahead.
pub(crate) struct Ahead {
    from: Vec<Receiver<Chunk>>,
    /// The number of the next chunk.
    next: usize,
    /// The one that is being taken apart, and how many of its files are taken.
    now: Option<(Arc<Chunk>, usize)>,
}

impl Ahead {
    /// Whether the content of an entry is read ahead. One with several names has its content at its first name only.
    pub(crate) fn takes(entry: &Entry) -> bool {
        matches!(entry.kind, Kind::File { size, .. } if size <= SMALL) && entry.hardlink.is_none()
    }

    /// Begins to read; `None` where it is not worth it. Each of the threads has a hold of its own on the folder: `open`
    /// gives one.
    pub(crate) fn begin<'scope>(
        index: &'scope LayerIndex,
        scope: &'scope Scope<'scope, '_>,
        open: impl Fn() -> io::Result<LayerFs>,
    ) -> io::Result<Option<Self>> {
        let wanted = || index.entries().iter().filter(|entry| Self::takes(entry));
        if wanted().nth(MANY).is_none() {
            return Ok(None);
        }
        let mut chunks: Vec<Vec<&Entry>> = vec![Vec::new()];
        let mut bytes = 0;
        for entry in wanted() {
            let size = size(entry);
            if bytes + size > CHUNK_BYTES || chunks.last().is_some_and(|it| it.len() == CHUNK_FILES)
            {
                chunks.push(Vec::with_capacity(CHUNK_FILES));
                bytes = 0;
            }
            bytes += size;
            chunks.last_mut().expect("never empty").push(entry);
        }
        let chunks: Arc<[Vec<&Entry>]> = chunks.into();
        let mut from = Vec::new();
        for thread in 0..THREADS {
            let (to, receiver) = sync_channel(WAITING);
            let (fs, chunks) = (open()?, Arc::clone(&chunks));
            scope.spawn(move || {
                for chunk in chunks.iter().skip(thread).step_by(THREADS) {
                    // Nobody wants more once an error ended it all.
                    if to.send(read(&fs, chunk)).is_err() {
                        return;
                    }
                }
            });
            from.push(receiver);
        }
        Ok(Some(Self {
            from,
            next: 0,
            now: None,
        }))
    }

    /// The content of the next of the entries that are read ahead.
    pub(crate) fn next(&mut self) -> io::Result<Part> {
        let ended = || io::Error::other("the threads that read ahead have ended");
        let (chunk, taken) = match self.now.take() {
            Some((chunk, taken)) if taken < chunk.ends.len() || chunk.error.is_some() => {
                (chunk, taken)
            }
            _ => {
                let from = &self.from[self.next % THREADS];
                self.next += 1;
                (Arc::new(from.recv().map_err(|_| ended())?), 0)
            }
        };
        if taken == chunk.ends.len() {
            let chunk = Arc::into_inner(chunk);
            return Err(chunk.and_then(|chunk| chunk.error).unwrap_or_else(ended));
        }
        let at = if taken == 0 { 0 } else { chunk.ends[taken - 1] };
        let end = chunk.ends[taken];
        self.now = Some((Arc::clone(&chunk), taken + 1));
        Ok(Part { chunk, at, end })
    }
}

fn size(entry: &Entry) -> u64 {
    match entry.kind {
        Kind::File { size, .. } => size,
        _ => 0,
    }
}

fn read(fs: &LayerFs, entries: &[&Entry]) -> Chunk {
    let bytes = entries.iter().map(|entry| size(entry)).sum::<u64>();
    let mut chunk = Chunk {
        bytes: Vec::with_capacity(usize::try_from(bytes).unwrap_or_default()),
        ends: Vec::with_capacity(entries.len()),
        error: None,
    };
    for entry in entries {
        let size = size(entry);
        let got = fs
            .open(&entry.path)
            .and_then(|file| file.take(size).read_to_end(&mut chunk.bytes));
        if let Err(error) = got {
            chunk.error = Some(error);
            break;
        }
        chunk.ends.push(chunk.bytes.len());
    }
    chunk
}
