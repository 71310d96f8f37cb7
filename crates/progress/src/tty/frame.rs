//! What the screen shows at one moment.

use std::time::{Duration, SystemTime};

use crate::color::Tone;
use crate::model::{Model, State, Vertex, since};
use crate::text;

/// A name is cut to no less than this for what stands behind it, in columns.
const SHORTEST: usize = 10;

/// One line of the screen, not wider than it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) text: String,
    pub(super) tone: Tone,
}

/// A vertex with the rows below it.
struct Block {
    head: Row,
    reason: Option<Row>,
    waiting: Option<Row>,
    /// With whether the row is done.
    statuses: Vec<(Row, bool)>,
    output: Vec<Row>,
    state: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Active,
    Over,
    Failed,
}

impl Block {
    fn height(&self) -> usize {
        1 + usize::from(self.reason.is_some())
            + usize::from(self.waiting.is_some())
            + self.statuses.len()
            + self.output.len()
    }
}

/// The rows of a frame that is `columns` wide and at most `room` high; without `room` it is the final one.
pub(super) fn rows(
    model: &Model,
    now: SystemTime,
    elapsed: Duration,
    columns: usize,
    room: Option<usize>,
    log_lines: usize,
) -> Vec<Row> {
    let finished = if room.is_none() { " FINISHED" } else { "" };
    let header = format!(
        "[+] Building {} ({}/{}){finished}",
        text::seconds(elapsed),
        model.over(),
        model.vertices.len()
    );
    let mut rows = vec![Row {
        text: text::fit(&header, columns),
        tone: Tone::Normal,
    }];
    let mut blocks: Vec<Block> = model
        .vertices
        .iter()
        .filter(|vertex| vertex.is_visible())
        // What was given up before it began is no news.
        .filter(|vertex| vertex.state != State::Canceled || vertex.started.is_some())
        .map(|vertex| block(vertex, now, columns, log_lines))
        .collect();
    if let Some(room) = room {
        shrink(&mut blocks, room.saturating_sub(1));
    }
    for block in blocks {
        rows.push(block.head);
        rows.extend(block.reason);
        rows.extend(block.waiting);
        rows.extend(block.statuses.into_iter().map(|(row, _)| row));
        rows.extend(block.output);
    }
    if let Some(room) = room {
        rows.truncate(room);
    }
    rows
}

fn block(vertex: &Vertex, now: SystemTime, columns: usize, log_lines: usize) -> Block {
    let active = vertex.is_active();
    let (word, tone, state) = match vertex.state {
        State::Idle | State::Running => ("", Tone::Normal, Phase::Active),
        State::Done => ("", Tone::Finished, Phase::Over),
        State::Cached => ("CACHED ", Tone::Finished, Phase::Over),
        State::Canceled => ("CANCELED ", Tone::Canceled, Phase::Over),
        State::Failed(_) => ("ERROR ", Tone::Failed, Phase::Failed),
    };
    let row = |text: &str, time: Option<Duration>, tone: Tone| Row {
        text: align(text, time, columns),
        tone,
    };
    let statuses = vertex.statuses.iter().map(|status| {
        let time = since(status.started, status.ended.unwrap_or(now));
        let counts = text::amount(status.current, status.total)
            + &text::rate(status.current, status.total, time);
        // Of a long name, which a digest is, the beginning tells enough; the counts are what is looked for.
        let taken = [" => => ", &counts, " ", &text::seconds(time)].map(text::width);
        let left = columns.saturating_sub(taken.iter().sum());
        let name = if left < SHORTEST {
            status.name.clone()
        } else {
            text::fit(&status.name, left)
        };
        let text = format!(" => => {name}{counts}");
        let tone = if status.ended.is_some() {
            Tone::Finished
        } else {
            Tone::Normal
        };
        (row(&text, Some(time), tone), status.ended.is_some())
    });
    let mut output = Vec::new();
    if active && log_lines > 0 {
        let unfinished = Some(vertex.cutter.unfinished()).filter(|line| !line.is_empty());
        let tail = vertex
            .output
            .tail(log_lines - usize::from(unfinished.is_some()));
        let lines = tail.map(|line| line.text.as_str()).chain(unfinished);
        output.extend(lines.map(|line| row(&format!(" => => # {line}"), None, Tone::Output)));
    }
    Block {
        head: row(
            &format!(" => {word}{}", vertex.title),
            Some(vertex.time(now)),
            tone,
        ),
        reason: vertex
            .reason
            .as_ref()
            .map(|reason| row(&format!(" => => why: {reason}"), None, tone)),
        waiting: vertex
            .waiting
            .as_ref()
            .map(|what| row(&format!(" => => waiting {what}"), None, Tone::Warning)),
        statuses: statuses.collect(),
        output,
        state,
    }
}

/// A text with a time at the right edge.
fn align(text: &str, time: Option<Duration>, columns: usize) -> String {
    let Some(time) = time.map(text::seconds) else {
        return text::fit(text, columns);
    };
    let Some(left) = columns
        .checked_sub(time.len() + 1)
        .filter(|left| *left > " => ".len())
    else {
        return text::fit(text, columns);
    };
    let text = text::fit(text, left);
    let gap = left - text::width(&text) + 1;
    format!("{text}{:gap$}{time}", "")
}

/// Takes away what matters least until the rows fit: vertices that are over, oldest first; then of those that run
/// output, rows that are done, all other rows. Whatever is still too much is cut at the bottom by the caller.
fn shrink(blocks: &mut Vec<Block>, room: usize) {
    let mut height: usize = blocks.iter().map(Block::height).sum();
    for phase in [Phase::Over, Phase::Failed] {
        blocks.retain(|block| {
            let keep = height <= room || block.state != phase;
            if !keep {
                height -= block.height();
            }
            keep
        });
    }
    let longest = blocks
        .iter()
        .map(|block| block.output.len())
        .max()
        .unwrap_or(0);
    for lines in (0..longest).rev() {
        if height <= room {
            return;
        }
        for block in &mut *blocks {
            let extra = block.output.len().saturating_sub(lines);
            block.output.drain(..extra);
            height -= extra;
        }
    }
    if height > room {
        for block in &mut *blocks {
            block.statuses.retain(|(_, done)| {
                let keep = height <= room || !done;
                height -= usize::from(!keep);
                keep
            });
        }
    }
    if height > room {
        for block in &mut *blocks {
            block.statuses.clear();
            block.reason = None;
        }
    }
}
