//! A stream that is read by a thread of its own: decompressing takes longer than all that is done with what comes of it.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::thread::Scope;

use kiln_image::DiffId;
use sha2::{Digest, Sha256};

/// Bytes handed over at once.
const PIECE: usize = 256 * 1024;
/// How many pieces wait to be taken.
const WAITING: usize = 4;

type Piece = io::Result<Vec<u8>>;

/// What has been read, in order. Hashes it too, because the thread has more to do than the one that takes the bytes.
pub(crate) struct ReadAhead {
    from: Receiver<Piece>,
    /// Pieces that have been used up, to be filled again.
    back: Sender<Vec<u8>>,
    now: Vec<u8>,
    at: usize,
    hasher: Sha256,
    size: u64,
}

impl ReadAhead {
    /// Begins to read `source`. The thread ends at the end of it or as soon as nobody takes what it read.
    pub(crate) fn begin<'scope>(
        source: impl Read + Send + 'scope,
        scope: &'scope Scope<'scope, '_>,
    ) -> Self {
        let (to, from) = sync_channel(WAITING);
        let (back, used) = channel();
        scope.spawn(move || read_all(source, &to, &used));
        Self {
            from,
            back,
            now: Vec::new(),
            at: 0,
            hasher: Sha256::new(),
            size: 0,
        }
    }

    /// The sha256 of all bytes up to the end of the last piece that was taken from, and their number: at the end, those of
    /// the stream.
    pub(crate) fn hashed(self) -> (DiffId, u64) {
        (DiffId::new(self.hasher.finalize().into()), self.size)
    }
}

impl Read for ReadAhead {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.now.len() {
            let Ok(next) = self.from.recv() else {
                return Ok(0);
            };
            let used = std::mem::replace(&mut self.now, next?);
            self.at = 0;
            self.hasher.update(&self.now);
            self.size += self.now.len() as u64;
            // The thread may have come to the end.
            let _ = self.back.send(used);
        }
        let count = (&self.now[self.at..]).read(buffer)?;
        self.at += count;
        Ok(count)
    }
}

fn read_all(mut source: impl Read, to: &SyncSender<Piece>, used: &Receiver<Vec<u8>>) {
    loop {
        let mut piece = used.try_recv().unwrap_or_default();
        piece.clear();
        piece.reserve_exact(PIECE);
        let read = (&mut source).take(PIECE as u64).read_to_end(&mut piece);
        let is_last = read.is_err() || piece.is_empty();
        // What came before an error is there for the reader, as it would be without a thread.
        if !piece.is_empty() && to.send(Ok(piece)).is_err() {
            return;
        }
        if let Err(error) = read {
            // Nobody may want more.
            let _ = to.send(Err(error));
        }
        if is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives some bytes, then an error.
    struct Fails(&'static [u8]);

    impl Read for Fails {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::ErrorKind::TimedOut.into()),
                count => Ok(count),
            }
        }
    }

    #[test]
    fn bytes_come_as_they_are_and_are_hashed() {
        let bytes: Vec<u8> = (0..3 * PIECE as u32 + 7)
            .map(|at| (at >> 3) as u8)
            .collect();
        std::thread::scope(|scope| {
            let mut ahead = ReadAhead::begin(bytes.as_slice(), scope);
            let mut got = Vec::new();
            ahead.read_to_end(&mut got).unwrap();
            assert!(got == bytes);
            let (digest, size) = ahead.hashed();
            assert_eq!(digest, DiffId::new(Sha256::digest(&bytes).into()));
            assert_eq!(size, bytes.len() as u64);
        });
    }

    #[test]
    fn an_error_comes_behind_what_was_read() {
        std::thread::scope(|scope| {
            let mut ahead = ReadAhead::begin(Fails(b"abc"), scope);
            let mut got = Vec::new();
            let error = ahead.read_to_end(&mut got).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert_eq!(got, b"abc");
        });
    }

    #[test]
    fn the_thread_ends_when_nobody_reads() {
        // The scope would wait for ever.
        std::thread::scope(|scope| drop(ReadAhead::begin(io::repeat(1), scope)));
    }
}
