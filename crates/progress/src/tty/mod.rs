//! The live screen: a frame of rows that is drawn over the one before.

mod frame;

use std::time::{Duration, SystemTime};

use self::frame::Row;
use crate::color::Colors;
use crate::display::Renderer;
use crate::event::Event;
use crate::model::{Model, since};
use crate::text;

/// What a terminal of unknown size is taken for.
const USUAL_SIZE: (u16, u16) = (80, 24);

pub(crate) struct Tty {
    model: Model,
    size: Box<dyn Fn() -> (u16, u16) + Send>,
    colors: Colors,
    log_lines: usize,
    /// Frames are at least this far apart.
    pace: Duration,
    started: SystemTime,
    /// When the last frame was drawn; before the first one, when the display was made.
    drawn: SystemTime,
    /// The columns of each row of the last frame.
    rows: Vec<usize>,
}

impl Tty {
    pub(crate) fn new(
        size: Box<dyn Fn() -> (u16, u16) + Send>,
        colors: Colors,
        log_lines: usize,
        pace: Duration,
        now: SystemTime,
    ) -> Self {
        Self {
            model: Model::new(),
            size,
            colors,
            log_lines,
            pace,
            started: now,
            drawn: now,
            rows: Vec::new(),
        }
    }

    fn draw(&mut self, now: SystemTime, last: bool, out: &mut Vec<u8>) {
        let (columns, lines) = match (self.size)() {
            (0, _) | (_, 0) => USUAL_SIZE,
            size => size,
        };
        let (columns, lines) = (usize::from(columns), usize::from(lines));
        // The cursor rests on the line below the frame.
        let room = (!last).then(|| lines.saturating_sub(1).max(1));
        let elapsed = self
            .model
            .took
            .filter(|_| last)
            .unwrap_or_else(|| since(self.started, now));
        let rows = frame::rows(&self.model, now, elapsed, columns, room, self.log_lines);

        // The cursor is hidden for the time of this one write only, so that no way to end leaves it hidden.
        out.extend_from_slice(b"\x1b[?25l");
        let up = self.height(columns).min(lines.saturating_sub(1));
        if up > 0 {
            out.extend_from_slice(format!("\x1b[{up}A").as_bytes());
        }
        out.push(b'\r');
        for Row { text, tone } in &rows {
            self.colors.paint(*tone, text, out);
            // A full row leaves the cursor on its last column, which must not be erased.
            out.extend_from_slice(if text::width(text) < columns {
                b"\x1b[K\r\n"
            } else {
                b"\r\n"
            });
        }
        out.extend_from_slice(b"\x1b[J\x1b[?25h");

        self.rows = rows.iter().map(|row| text::width(&row.text)).collect();
        self.drawn = now;
    }

    /// The lines that the last frame takes up now: a terminal that became narrower has wrapped its rows.
    fn height(&self, columns: usize) -> usize {
        self.rows
            .iter()
            .map(|width| width.div_ceil(columns).max(1))
            .sum()
    }

    fn is_due(&self, now: SystemTime) -> bool {
        // A clock that was set back must not stop the screen.
        now.duration_since(self.drawn)
            .map_or(true, |time| time >= self.pace)
    }
}

impl Renderer for Tty {
    fn event(&mut self, event: Event, now: SystemTime, out: &mut Vec<u8>) {
        self.model.apply_keeping_output(&event);
        if self.is_due(now) {
            self.draw(now, false, out);
        }
    }

    fn tick(&mut self, now: SystemTime, out: &mut Vec<u8>) {
        if self.is_due(now) {
            self.draw(now, false, out);
        }
    }

    fn pace(&self, now: SystemTime) -> Option<Duration> {
        self.model.is_slow(now).then_some(self.pace)
    }

    fn finish(&mut self, now: SystemTime, out: &mut Vec<u8>) {
        if self.model.vertices.is_empty() && self.model.warnings.is_empty() {
            return;
        }
        self.draw(now, true, out);
        self.model.write_failures(out);
        self.model.write_warnings(&self.colors, out);
    }
}
