//! Rows of the display for work that is no operation of a graph.

use std::time::SystemTime;

use kiln_export::Watch;
use kiln_progress::{Event, Sink, VertexId};

use crate::BuildError;

/// Numbers the rows.
pub(crate) struct Rows<'a> {
    pub(crate) sink: &'a dyn Sink,
    pub(crate) next: u32,
}

/// One of them.
pub(crate) struct Row<'a> {
    pub(crate) sink: &'a dyn Sink,
    pub(crate) id: VertexId,
}

impl<'a> Rows<'a> {
    pub(crate) fn new(sink: &'a dyn Sink) -> Self {
        Self { sink, next: 0 }
    }

    /// A row for work that this thread does now.
    pub(crate) fn work<T>(
        &mut self,
        title: &str,
        work: impl FnOnce(&Row<'a>) -> Result<T, BuildError>,
    ) -> Result<T, BuildError> {
        let id = VertexId(self.next);
        self.next += 1;
        self.sink.emit(Event::Vertex {
            id,
            title: title.to_owned(),
        });
        self.sink.emit(Event::Started {
            id,
            at: SystemTime::now(),
        });
        let row = Row {
            sink: self.sink,
            id,
        };
        let outcome = work(&row);
        let at = SystemTime::now();
        self.sink.emit(match &outcome {
            Ok(_) => Event::Finished { id, at },
            Err(error) if error.canceled => Event::Canceled { id, at },
            Err(error) => Event::Failed {
                id,
                error: error.message.clone(),
                at,
            },
        });
        outcome
    }
}

impl Row<'_> {
    /// A row below it for something that was done at once.
    pub(crate) fn done(&self, what: &str) {
        self.transfer(what, 0, 0, true);
    }
}

impl Watch for Row<'_> {
    fn transfer(&self, name: &str, done: u64, total: u64, ended: bool) {
        self.sink.emit(Event::Status {
            id: self.id,
            name: name.to_owned(),
            current: done,
            total,
            done: ended,
            at: SystemTime::now(),
        });
    }
}
