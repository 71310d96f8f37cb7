//! The events.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A thing that takes time and has a row in the displays: a step, or internal work. Numbered by first appearance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId(pub u32);

/// Which stream of a step a piece of its output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What is wrong and where, in parts.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Finding {
    /// The check's name; none for an error.
    pub rule: Option<String>,
    /// What the check asks for.
    pub about: String,
    /// The page that explains it.
    pub url: String,
    /// One sentence.
    pub message: String,
    /// A way out.
    pub hint: Option<String>,
    /// Name of the file; empty when it is about no file.
    pub file: String,
    /// First and last line, counted from 1.
    pub lines: Option<(u32, u32)>,
    /// The first column in the first line and the column after the last one in the last line, in characters, counted
    /// from 1.
    pub columns: Option<(u32, u32)>,
}

impl Finding {
    /// The finding of a check in one line, as `BuildKit` has it.
    pub(crate) fn line(&self) -> String {
        let rule = self.rule.as_deref().unwrap_or_default();
        let message = &self.message;
        match self.lines {
            Some((first, _)) => format!("{rule}: {message} (line {first})"),
            None => format!("{rule}: {message}"),
        }
    }
}

/// One event. Times are those of the event, not of its arrival.
#[derive(Debug, Clone)]
pub enum Event {
    /// A vertex exists. Sent once, before all else of that vertex.
    Vertex {
        /// Its number.
        id: VertexId,
        /// `[build 2/4] RUN make`, `[internal] load build definition from Dockerfile`, `exporting to image`.
        title: String,
    },
    /// Its work began.
    Started {
        /// Which.
        id: VertexId,
        /// When.
        at: SystemTime,
    },
    /// It was not executed, its result is known. No `Started`, no `Finished`.
    Cached {
        /// Which.
        id: VertexId,
    },
    /// Why the vertex is executed and not cached, in words.
    Reason {
        /// Which.
        id: VertexId,
        /// `src/main.rs changed`.
        text: String,
    },
    /// It waits for something that is not the build's own work: a lock, another process, a registry. Any later event
    /// of the vertex, except a reason, ends the waiting. May come before `Started`.
    Waiting {
        /// Which.
        id: VertexId,
        /// `for the same step in build 1234`.
        text: String,
    },
    /// Output of its process, any bytes, not cut into lines.
    Log {
        /// Which.
        id: VertexId,
        /// Where from.
        stream: Stream,
        /// What.
        bytes: Vec<u8>,
        /// When.
        at: SystemTime,
    },
    /// A row below the vertex: `transferring context: 3.2MB`, `exporting layers`.
    Status {
        /// Which.
        id: VertexId,
        /// The row's name; the same name again updates the row.
        name: String,
        /// Done so far, in bytes; 0 when there is nothing to count. Other counts belong in the name.
        current: u64,
        /// Of how many bytes; 0 when not known.
        total: u64,
        /// The row is done.
        done: bool,
        /// When.
        at: SystemTime,
    },
    /// Its work ended well.
    Finished {
        /// Which.
        id: VertexId,
        /// When.
        at: SystemTime,
    },
    /// Its work failed.
    Failed {
        /// Which.
        id: VertexId,
        /// The error in one line or more.
        error: String,
        /// When.
        at: SystemTime,
    },
    /// Its work was given up because something else failed or the user asked.
    Canceled {
        /// Which.
        id: VertexId,
        /// When.
        at: SystemTime,
    },
    /// Something the user should know that stops nothing; shown again at the end.
    Warning {
        /// `UndefinedVar: usage of undefined variable '$x' (line 3)`.
        text: String,
    },
    /// A warning of a check, with its parts.
    Found(Box<Finding>),
    /// Why the build failed, for programs: people are told by who called.
    Error(Box<Finding>),
    /// Something worth knowing that is nobody's fault; shown at the end.
    Note {
        /// `stage test is not needed for the target, skipped`.
        text: String,
    },
    /// The build ended: the last event.
    Ended {
        /// How long it took.
        took: Duration,
        /// Whether it ended well.
        ok: bool,
    },
}

/// Takes events, from any thread, in the order of each thread.
pub trait Sink: Send + Sync {
    /// Takes one event. Must not block for long: it is called on the paths that build.
    fn emit(&self, event: Event);
}

/// Throws everything away.
#[derive(Debug, Default)]
pub struct NoSink;

impl Sink for NoSink {
    fn emit(&self, _: Event) {}
}

/// Gives every event to several sinks, in order: a screen and a log file.
pub struct Tee(pub Vec<Arc<dyn Sink>>);

impl Sink for Tee {
    fn emit(&self, event: Event) {
        if let Some((last, others)) = self.0.split_last() {
            for sink in others {
                sink.emit(event.clone());
            }
            last.emit(event);
        }
    }
}
