//! Gzip, written as members of one fixed size of input, each compressed by itself: the bytes do not depend on how many
//! threads there are.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};

use libdeflater::{CompressionLvl, Compressor};

/// Input bytes of one member: large enough to lose no more than 0.2 % of the ratio.
pub(crate) const MEMBER: usize = 1 << 20;
/// Members on their way for each thread: one that is compressed, and one that waits, so that no thread does.
const AHEAD: usize = 2;

/// Compresses what is written to it, in threads that it starts when there is more than one member.
pub(crate) struct Gzip<W> {
    out: W,
    level: CompressionLvl,
    threads: usize,
    /// How many of them run.
    started: usize,
    /// Input of the next member.
    input: Vec<u8>,
    jobs: Sender<Job>,
    waiting: Arc<Mutex<Receiver<Job>>>,
    /// Members on their way, in their order.
    members: VecDeque<Receiver<io::Result<Member>>>,
    /// Buffers that were used before: those of the system would be cleared each time.
    spare: Vec<Buffers>,
    written: bool,
}

#[derive(Default)]
struct Buffers {
    input: Vec<u8>,
    output: Vec<u8>,
}

struct Job {
    buffers: Buffers,
    done: SyncSender<io::Result<Member>>,
}

/// A member in the first bytes of its output.
struct Member {
    buffers: Buffers,
    len: usize,
}

impl<W: Write> Gzip<W> {
    pub(crate) fn new(level: CompressionLvl, threads: usize, out: W) -> Self {
        let (jobs, waiting) = channel();
        Self {
            out,
            level,
            threads,
            started: 0,
            input: Vec::new(),
            jobs,
            waiting: Arc::new(Mutex::new(waiting)),
            members: VecDeque::new(),
            spare: Vec::new(),
            written: false,
        }
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(MEMBER - self.input.len());
        self.input.extend_from_slice(&bytes[..taken]);
        if self.input.len() == MEMBER {
            self.begin_member();
            while self.members.len() >= self.threads * AHEAD {
                self.end_member()?;
            }
        }
        Ok(taken)
    }

    pub(crate) fn finish(mut self) -> io::Result<W> {
        if self.members.is_empty() && !(self.written && self.input.is_empty()) {
            // Nothing at all is no gzip file, but an empty member is.
            let buffers = Buffers {
                input: std::mem::take(&mut self.input),
                output: Vec::new(),
            };
            let member = compress(&mut Compressor::new(self.level), buffers)?;
            self.put(member)?;
        } else if !self.input.is_empty() {
            self.begin_member();
        }
        while !self.members.is_empty() {
            self.end_member()?;
        }
        self.out.flush()?;
        Ok(self.out)
    }

    /// Gives the input to a thread.
    fn begin_member(&mut self) {
        if self.started < self.threads {
            let (waiting, level) = (Arc::clone(&self.waiting), self.level);
            std::thread::spawn(move || work(&waiting, level));
            self.started += 1;
        }
        let mut buffers = self.spare.pop().unwrap_or_default();
        std::mem::swap(&mut self.input, &mut buffers.input);
        self.input.clear();
        let (done, member) = sync_channel(1);
        // The other end is in `self`.
        let _ = self.jobs.send(Job { buffers, done });
        self.members.push_back(member);
    }

    /// Waits for the first of the members, and writes it.
    fn end_member(&mut self) -> io::Result<()> {
        let Some(first) = self.members.pop_front() else {
            return Ok(());
        };
        let gone = |_| io::Error::other("a compressing thread ended");
        self.put(first.recv().map_err(gone)??)
    }

    fn put(&mut self, member: Member) -> io::Result<()> {
        self.out.write_all(&member.buffers.output[..member.len])?;
        self.spare.push(member.buffers);
        self.written = true;
        Ok(())
    }
}

/// Compresses members until there will be no more.
fn work(waiting: &Mutex<Receiver<Job>>, level: CompressionLvl) {
    let mut compressor = Compressor::new(level);
    loop {
        let next = waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .recv();
        let Ok(Job { buffers, done }) = next else {
            return;
        };
        // Nobody may want it any more.
        let _ = done.send(compress(&mut compressor, buffers));
    }
}

fn compress(compressor: &mut Compressor, mut buffers: Buffers) -> io::Result<Member> {
    let bound = compressor.gzip_compress_bound(buffers.input.len());
    if buffers.output.len() < bound {
        buffers.output.resize(bound, 0);
    }
    let len = compressor
        .gzip_compress(&buffers.input, &mut buffers.output)
        .map_err(io::Error::other)?;
    Ok(Member { buffers, len })
}
