//! What a build's events add up to: the state that displays draw.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, SystemTime};

use crate::color::{Colors, Tone};
use crate::event::{Event, VertexId};
use crate::text::{self, Lines};

/// Output kept in memory for each running step, in bytes. Beyond it the oldest lines go.
pub(crate) const KEPT_OUTPUT: usize = 32 << 20;
/// What a line costs beside its text.
const LINE_COST: usize = 64;
/// Work that ends within this time needs no clock on the screen.
const SLOW: Duration = Duration::from_millis(100);

/// How far a vertex is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Announced, not begun.
    Idle,
    Running,
    Cached,
    Done,
    Failed(Vec<String>),
    Canceled,
}

impl State {
    pub(crate) fn is_over(&self) -> bool {
        !matches!(self, Self::Idle | Self::Running)
    }
}

/// A row below a vertex.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) name: String,
    pub(crate) current: u64,
    pub(crate) total: u64,
    pub(crate) started: SystemTime,
    pub(crate) ended: Option<SystemTime>,
}

/// One line of a step's output.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// Since the step began.
    pub(crate) time: Duration,
    pub(crate) text: String,
}

/// The output of one vertex: the newest lines up to a limit.
#[derive(Debug, Default)]
pub(crate) struct Output {
    lines: VecDeque<Line>,
    size: usize,
    /// How many older lines are gone.
    forgotten: u64,
}

impl Output {
    /// Adds lines, and lets the oldest go while there is more than the given number of bytes.
    pub(crate) fn keep(&mut self, lines: impl IntoIterator<Item = Line>, limit: usize) {
        for line in lines {
            self.size += line.text.len() + LINE_COST;
            self.lines.push_back(line);
            while self.size > limit {
                let Some(oldest) = self.lines.pop_front() else {
                    break;
                };
                self.size -= oldest.text.len() + LINE_COST;
                self.forgotten += 1;
            }
        }
    }

    /// The newest lines, at most the given number, oldest first.
    pub(crate) fn tail(&self, count: usize) -> impl Iterator<Item = &Line> {
        self.lines.range(self.lines.len().saturating_sub(count)..)
    }
}

#[derive(Debug)]
pub(crate) struct Vertex {
    pub(crate) title: String,
    pub(crate) state: State,
    pub(crate) started: Option<SystemTime>,
    pub(crate) ended: Option<SystemTime>,
    pub(crate) reason: Option<String>,
    pub(crate) waiting: Option<String>,
    pub(crate) statuses: Vec<Status>,
    pub(crate) cutter: Lines,
    pub(crate) output: Output,
}

impl Vertex {
    fn new(title: &str) -> Self {
        Self {
            title: text::one_line(title),
            state: State::Idle,
            started: None,
            ended: None,
            reason: None,
            waiting: None,
            statuses: Vec::new(),
            cutter: Lines::new(),
            output: Output::default(),
        }
    }

    /// It has something to show: it runs, waits or ran.
    pub(crate) fn is_visible(&self) -> bool {
        self.state != State::Idle || self.waiting.is_some()
    }

    /// It runs or waits.
    pub(crate) fn is_active(&self) -> bool {
        self.is_visible() && !self.state.is_over()
    }

    /// How long it took, or takes so far.
    pub(crate) fn time(&self, now: SystemTime) -> Duration {
        self.started.map_or(Duration::ZERO, |started| {
            since(started, self.ended.unwrap_or(now))
        })
    }
}

/// The time between two moments; zero when the clock was set back.
pub(crate) fn since(from: SystemTime, to: SystemTime) -> Duration {
    to.duration_since(from).unwrap_or_default()
}

/// What an event changed.
pub(crate) struct Change {
    /// The vertex, as an index into [`Model::vertices`].
    pub(crate) vertex: usize,
    /// The lines that its output gained.
    pub(crate) lines: Vec<Line>,
}

/// All that was heard of a build.
pub(crate) struct Model {
    /// In the order of their first appearance.
    pub(crate) vertices: Vec<Vertex>,
    pub(crate) warnings: Vec<String>,
    pub(crate) notes: Vec<String>,
    /// How long the build took, once it is over.
    pub(crate) took: Option<Duration>,
    by_id: HashMap<VertexId, usize>,
    active: Vec<usize>,
    /// Something ran that surely takes a while.
    slow: bool,
}

impl Model {
    pub(crate) fn new() -> Self {
        Self {
            vertices: Vec::new(),
            warnings: Vec::new(),
            notes: Vec::new(),
            took: None,
            by_id: HashMap::new(),
            active: Vec::new(),
            slow: false,
        }
    }

    /// Takes an event. `None` when it concerns no vertex, or one that nobody announced.
    pub(crate) fn apply(&mut self, event: &Event) -> Option<Change> {
        let id = match event {
            Event::Vertex { id, title } => {
                let next = self.vertices.len();
                let at = *self.by_id.entry(*id).or_insert(next);
                if at == next {
                    self.vertices.push(Vertex::new(title));
                }
                return Some(Change {
                    vertex: at,
                    lines: Vec::new(),
                });
            }
            Event::Warning { text } => {
                self.warnings.push(text::one_line(text));
                return None;
            }
            Event::Found(finding) => {
                self.warnings.push(text::one_line(&finding.line()));
                return None;
            }
            Event::Error(_) => return None,
            Event::Note { text } => {
                self.notes.push(text::one_line(text));
                return None;
            }
            Event::Ended { took, .. } => {
                self.took = Some(*took);
                return None;
            }
            Event::Started { id, .. }
            | Event::Cached { id }
            | Event::Reason { id, .. }
            | Event::Waiting { id, .. }
            | Event::Log { id, .. }
            | Event::Status { id, .. }
            | Event::Finished { id, .. }
            | Event::Failed { id, .. }
            | Event::Canceled { id, .. } => *id,
        };
        let at = *self.by_id.get(&id)?;
        let vertex = &mut self.vertices[at];
        let mut change = Change {
            vertex: at,
            lines: Vec::new(),
        };
        if !matches!(event, Event::Reason { .. } | Event::Waiting { .. }) {
            vertex.waiting = None;
        }
        match event {
            Event::Started { at, .. } => {
                vertex.state = State::Running;
                vertex.started = Some(*at);
                self.slow |=
                    vertex.title.starts_with('[') && !vertex.title.starts_with("[internal]");
            }
            Event::Cached { .. } => vertex.state = State::Cached,
            Event::Reason { text, .. } => vertex.reason = Some(text::one_line(text)),
            Event::Waiting { text, .. } => {
                vertex.waiting = Some(text::one_line(text));
                self.slow = true;
            }
            Event::Log { bytes, at, .. } => {
                let time = vertex.time(*at);
                vertex
                    .cutter
                    .feed(bytes, |text| change.lines.push(Line { time, text }));
                self.slow = true;
            }
            Event::Status {
                name,
                current,
                total,
                done,
                at,
                ..
            } => {
                let name = text::one_line(name);
                let ended = done.then_some(*at);
                if let Some(status) = vertex
                    .statuses
                    .iter_mut()
                    .find(|status| status.name == name)
                {
                    (status.current, status.total, status.ended) = (*current, *total, ended);
                } else {
                    vertex.statuses.push(Status {
                        name,
                        current: *current,
                        total: *total,
                        started: *at,
                        ended,
                    });
                }
            }
            Event::Finished { at, .. } => change.lines.extend(vertex.end(State::Done, *at)),
            Event::Failed { error, at, .. } => {
                change
                    .lines
                    .extend(vertex.end(State::Failed(text::lines(error)), *at));
            }
            Event::Canceled { at, .. } => change.lines.extend(vertex.end(State::Canceled, *at)),
            Event::Vertex { .. }
            | Event::Warning { .. }
            | Event::Found(_)
            | Event::Error(_)
            | Event::Note { .. }
            | Event::Ended { .. } => {}
        }
        let known = self.active.iter().position(|active| *active == at);
        match (known, vertex.is_active()) {
            (Some(place), false) => {
                self.active.swap_remove(place);
            }
            (None, true) => self.active.push(at),
            _ => {}
        }
        self.slow &= !self.active.is_empty();
        Some(change)
    }

    /// Takes an event and keeps the output that it brings, as long as a failure could show it.
    pub(crate) fn apply_keeping_output(&mut self, event: &Event) {
        let Some(change) = self.apply(event) else {
            return;
        };
        let vertex = &mut self.vertices[change.vertex];
        if matches!(vertex.state, State::Done | State::Cached | State::Canceled) {
            vertex.output = Output::default();
        } else {
            vertex.output.keep(change.lines, KEPT_OUTPUT);
        }
    }

    /// Something goes on and takes more than a moment, so that the screen needs a clock.
    ///
    /// Internal work that is over at once does not count, because a build that finds everything in the cache should
    /// start no thread for its display: the first sign is a step, output, waiting, or an event that comes late enough.
    pub(crate) fn is_slow(&self, now: SystemTime) -> bool {
        self.slow
            || self
                .active
                .iter()
                .any(|at| self.vertices[*at].time(now) >= SLOW)
    }

    /// Indexes of the vertices that run or wait.
    pub(crate) fn active(&self) -> &[usize] {
        &self.active
    }

    /// How many vertices are over.
    pub(crate) fn over(&self) -> usize {
        self.vertices
            .iter()
            .filter(|vertex| vertex.state.is_over())
            .count()
    }

    /// Writes the kept output of each failed vertex, between rules.
    pub(crate) fn write_failures(&self, out: &mut Vec<u8>) {
        for vertex in &self.vertices {
            if !matches!(vertex.state, State::Failed(_)) {
                continue;
            }
            out.extend_from_slice(format!("------\n > {}:\n", vertex.title).as_bytes());
            if vertex.output.forgotten > 0 {
                let note = format!(
                    "({} earlier lines are not shown here)\n",
                    vertex.output.forgotten
                );
                out.extend_from_slice(note.as_bytes());
            }
            for line in &vertex.output.lines {
                out.extend_from_slice(
                    format!("{} {}\n", text::log_time(line.time), line.text).as_bytes(),
                );
            }
            out.extend_from_slice(b"------\n");
        }
    }

    /// Writes the notes and the list of warnings.
    pub(crate) fn write_warnings(&self, colors: &Colors, out: &mut Vec<u8>) {
        for note in &self.notes {
            out.extend_from_slice(format!("note: {note}\n").as_bytes());
        }
        let count = self.warnings.len();
        if count == 0 {
            return;
        }
        out.push(b'\n');
        let plural = if count == 1 { "" } else { "s" };
        colors.paint(
            Tone::Warning,
            &format!(" {count} warning{plural} found:"),
            out,
        );
        out.push(b'\n');
        for warning in &self.warnings {
            out.extend_from_slice(format!(" - {warning}\n").as_bytes());
        }
    }
}

impl Vertex {
    fn end(&mut self, state: State, at: SystemTime) -> Option<Line> {
        self.state = state;
        self.ended = Some(at);
        for status in &mut self.statuses {
            status.ended.get_or_insert(at);
        }
        let time = self.time(at);
        self.cutter.end().map(|text| Line { time, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(text: &str) -> Line {
        Line {
            time: Duration::ZERO,
            text: text.to_owned(),
        }
    }

    #[test]
    fn the_oldest_output_goes_first() {
        let mut output = Output::default();
        output.keep(
            (0..10).map(|number| line(&number.to_string())),
            3 * (LINE_COST + 1),
        );
        assert_eq!(output.forgotten, 7);
        assert_eq!(
            output
                .tail(2)
                .map(|line| line.text.as_str())
                .collect::<Vec<_>>(),
            ["8", "9"]
        );
        assert_eq!(output.tail(9).count(), 3);
    }

    #[test]
    fn internal_work_is_slow_only_when_it_lasts() {
        let start = SystemTime::UNIX_EPOCH;
        let id = VertexId(1);
        let mut model = Model::new();
        model.apply(&Event::Vertex {
            id,
            title: "[internal] load build definition".to_owned(),
        });
        model.apply(&Event::Started { id, at: start });
        assert!(!model.is_slow(start + Duration::from_millis(99)));
        assert!(model.is_slow(start + Duration::from_millis(100)));
        model.apply(&Event::Waiting {
            id,
            text: "for a lock".to_owned(),
        });
        assert!(model.is_slow(start));
        model.apply(&Event::Finished { id, at: start });
        assert!(!model.is_slow(start + Duration::from_secs(9)));

        let id = VertexId(2);
        model.apply(&Event::Vertex {
            id,
            title: "[2/2] RUN make".to_owned(),
        });
        assert!(!model.is_slow(start));
        model.apply(&Event::Started { id, at: start });
        assert!(model.is_slow(start));
    }
}
