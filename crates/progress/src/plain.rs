//! The display for log files: lines with the number of their vertex, one vertex at a time.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use crate::color::Colors;
use crate::display::Renderer;
use crate::event::Event;
use crate::model::{KEPT_OUTPUT, Model, Output, State, Vertex, since};
use crate::text;

/// A vertex that is shown stays for this time although others have something to say, so that lines that belong
/// together stand together.
const STAY: Duration = Duration::from_secs(5);
/// A status row that is not done is repeated this often.
const REPEAT: Duration = Duration::from_secs(5);
/// Columns of a title that is cut.
const SHORT_TITLE: usize = 72;
/// Lines of a failed step that are repeated at the end when all of them stand together before it; else all are.
const REPEATED_LINES: usize = 10;

/// What a vertex has to say.
#[derive(Default)]
struct Printed {
    /// Numbers are given when a vertex is first shown, so that they only rise.
    number: Option<usize>,
    pending: String,
    /// Since when something is pending.
    pending_since: Option<SystemTime>,
    /// When each status row was last shown.
    statuses: Vec<SystemTime>,
    /// What a failure would repeat.
    output: Output,
    /// Something else was printed since the first line of output, so that a reader has to put it together.
    interrupted: bool,
}

pub(crate) struct Plain {
    model: Model,
    printed: Vec<Printed>,
    numbers: usize,
    /// The vertex whose lines are shown, and since when.
    current: Option<(usize, SystemTime)>,
    began: bool,
    short_titles: bool,
}

impl Plain {
    pub(crate) fn new(short_titles: bool) -> Self {
        Self {
            short_titles,
            model: Model::new(),
            printed: Vec::new(),
            numbers: 0,
            current: None,
            began: false,
        }
    }

    fn take(&mut self, event: &Event, now: SystemTime) -> Option<usize> {
        let change = self.model.apply(event)?;
        let at = change.vertex;
        self.printed
            .resize_with(self.model.vertices.len(), Printed::default);
        let (vertex, printed) = (&self.model.vertices[at], &mut self.printed[at]);
        for line in change.lines {
            printed.say(now, &format!("{} {}", text::log_time(line.time), line.text));
            printed.output.keep([line], KEPT_OUTPUT);
        }
        match event {
            Event::Cached { .. } => printed.say(now, "CACHED"),
            Event::Reason { .. } => printed.say(
                now,
                &format!("why: {}", vertex.reason.as_deref().unwrap_or("")),
            ),
            Event::Waiting { .. } => printed.say(
                now,
                &format!("waiting {}", vertex.waiting.as_deref().unwrap_or("")),
            ),
            Event::Status { name, done, .. } => {
                let name = text::one_line(name);
                if let Some(row) = vertex
                    .statuses
                    .iter()
                    .position(|status| status.name == name)
                {
                    printed.status(vertex, row, *done, now);
                }
            }
            Event::Finished { .. } => {
                printed.output = Output::default();
                printed.say(now, &format!("DONE {}", text::seconds(vertex.time(now))));
            }
            Event::Failed { .. } => {
                if let State::Failed(error) = &vertex.state {
                    for (at, line) in error.iter().enumerate() {
                        let prefix = if at == 0 { "ERROR: " } else { "" };
                        printed.say(now, &format!("{prefix}{line}"));
                    }
                }
            }
            Event::Canceled { .. } if vertex.started.is_some() => printed.say(now, "CANCELED"),
            _ => {}
        }
        Some(at)
    }

    /// Shows what is to be shown now, after a change of the given vertex or with the passing of time.
    fn show(&mut self, changed: Option<usize>, now: SystemTime, out: &mut Vec<u8>) {
        if let Some(at) = changed
            && self.model.vertices[at].state.is_over()
        {
            self.print(at, now, out);
        }
        match self.current {
            Some((at, since_when)) => {
                self.print(at, now, out);
                if since(since_when, now) >= STAY
                    && let Some(next) = self.longest_waiting()
                {
                    self.print(next, now, out);
                }
            }
            None => {
                if let Some(next) = self.longest_waiting() {
                    self.print(next, now, out);
                }
            }
        }
    }

    /// The active vertex whose words have waited longest.
    fn longest_waiting(&self) -> Option<usize> {
        self.model
            .active()
            .iter()
            .copied()
            .filter(|at| {
                self.printed[*at].number.is_none() || !self.printed[*at].pending.is_empty()
            })
            .min_by_key(|at| {
                (
                    self.printed[*at]
                        .pending_since
                        .or(self.model.vertices[*at].started),
                    *at,
                )
            })
    }

    /// Shows all that a vertex has to say, and makes it the current one until it is over.
    fn print(&mut self, at: usize, now: SystemTime, out: &mut Vec<u8>) {
        let over = self.model.vertices[at].state.is_over();
        let printed = &mut self.printed[at];
        if printed.pending.is_empty() && (over || printed.number.is_some()) {
            return;
        }
        let number = *printed.number.get_or_insert_with(|| {
            self.numbers += 1;
            self.numbers
        });
        let pending = std::mem::take(&mut printed.pending);
        printed.pending_since = None;
        let mut text = String::new();
        if self.current.is_none_or(|(current, _)| current != at) {
            if let Some(left) = self
                .current
                .and_then(|(current, _)| self.printed[current].number)
            {
                let _ = writeln!(text, "#{left} ...");
            }
            if self.began {
                text.push('\n');
            }
            let title = &self.model.vertices[at].title;
            let _ = if self.short_titles {
                writeln!(text, "#{number} {}", text::fit(title, SHORT_TITLE))
            } else {
                writeln!(text, "#{number} {title}")
            };
            self.current = Some((at, now));
            self.began = true;
            for (other, printed) in self.printed.iter_mut().enumerate() {
                printed.interrupted |= other != at && printed.output.tail(1).count() > 0;
            }
        }
        for line in pending.lines() {
            let _ = writeln!(text, "#{number} {line}");
        }
        if over {
            self.current = None;
        }
        out.extend_from_slice(text.as_bytes());
    }
}

impl Printed {
    fn say(&mut self, now: SystemTime, line: &str) {
        self.pending.push_str(line);
        self.pending.push('\n');
        self.pending_since.get_or_insert(now);
    }

    /// Says how far a status row is, unless that was said a moment ago.
    fn status(&mut self, vertex: &Vertex, row: usize, done: bool, now: SystemTime) {
        let status = &vertex.statuses[row];
        if row == self.statuses.len() {
            // The beginning is worth a line only if there is nothing to count, as with `exporting layers`.
            self.statuses.push(now);
            if !done && (status.total, status.current) != (0, 0) {
                return;
            }
        } else if done || since(self.statuses[row], now) >= REPEAT {
            self.statuses[row] = now;
        } else {
            return;
        }
        let took = since(status.started, status.ended.unwrap_or(now));
        let rate = text::rate(status.current, status.total, took);
        let time = if took >= Duration::from_millis(10) {
            format!(" {}", text::seconds(took))
        } else {
            String::new()
        };
        let amount = text::amount(status.current, status.total);
        self.say(
            now,
            &format!(
                "{}{amount}{rate}{time}{}",
                status.name,
                if done { " done" } else { "" }
            ),
        );
    }
}

impl Renderer for Plain {
    fn event(&mut self, event: Event, now: SystemTime, out: &mut Vec<u8>) {
        let changed = self.take(&event, now);
        self.show(changed, now, out);
    }

    fn tick(&mut self, now: SystemTime, out: &mut Vec<u8>) {
        self.show(None, now, out);
    }

    fn pace(&self, now: SystemTime) -> Option<Duration> {
        // One vertex alone never has to make room for another.
        (self.model.active().len() > 1 && self.model.is_slow(now)).then_some(Duration::from_secs(1))
    }

    fn finish(&mut self, now: SystemTime, out: &mut Vec<u8>) {
        while let Some(next) = self.longest_waiting() {
            self.print(next, now, out);
        }
        for (vertex, printed) in self.model.vertices.iter_mut().zip(&mut self.printed) {
            vertex.output = if printed.interrupted {
                std::mem::take(&mut printed.output)
            } else {
                let mut last = Output::default();
                last.keep(printed.output.tail(REPEATED_LINES).cloned(), usize::MAX);
                last
            };
        }
        self.model.write_failures(out);
        self.model.write_warnings(&Colors::default(), out);
    }
}
