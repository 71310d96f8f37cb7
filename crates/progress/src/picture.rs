//! The picture of the live screen in the README, `docs/screen.svg`: what a terminal shows of a script of events.

use std::fmt::Write as _;
use std::num::NonZero;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::display::Renderer as _;
use crate::tty::Tty;
use crate::{Colors, Event, Stream, VertexId};

const COLUMNS: u16 = 100;
const ROWS: u16 = 22;

fn at(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_millis(millis)
}

/// A build of two stages in the middle of its work.
fn script() -> Vec<(u64, Event)> {
    let mut events = Vec::new();
    let titles = [
        "[internal] load build definition from Dockerfile",
        "[internal] load metadata for docker.io/library/golang:bookworm",
        "[internal] load .dockerignore",
        "[internal] load build context",
        "[build 1/4] FROM docker.io/library/golang:bookworm",
        "[build 2/4] WORKDIR /src",
        "[build 3/4] COPY . .",
        "[build 4/4] RUN go build -o /app ./cmd/app",
        "[assets 1/3] FROM docker.io/library/node:bookworm",
        "[assets 2/3] COPY package*.json ./",
        "[assets 3/3] RUN --mount=type=cache,target=/root/.npm npm ci",
        "[stage-2 2/3] COPY --from=build /app /app",
        "[stage-2 3/3] COPY --from=assets /web /web",
    ];
    for (id, title) in titles.iter().enumerate() {
        let id = VertexId(id as u32);
        events.push((
            0,
            Event::Vertex {
                id,
                title: (*title).to_owned(),
            },
        ));
    }
    let start = |id, time| {
        (
            time,
            Event::Started {
                id: VertexId(id),
                at: at(time),
            },
        )
    };
    let end = |id, time| {
        (
            time,
            Event::Finished {
                id: VertexId(id),
                at: at(time),
            },
        )
    };
    let cached = |id| (300, Event::Cached { id: VertexId(id) });
    for id in [0, 2] {
        events.extend([start(id, 0), end(id, 20)]);
    }
    events.extend([
        start(1, 30),
        end(1, 60),
        start(3, 60),
        end(3, 240),
        cached(4),
        cached(5),
        cached(9),
    ]);
    let reason = |id, text: &str| {
        (
            300,
            Event::Reason {
                id: VertexId(id),
                text: text.to_owned(),
            },
        )
    };
    let log = |id, time, text: &str| {
        let bytes = text.as_bytes().to_vec();
        (
            time,
            Event::Log {
                id: VertexId(id),
                stream: Stream::Stdout,
                bytes,
                at: at(time),
            },
        )
    };
    let status = |time, current, done| {
        let name = "sha256:7b9a30e4f1d2 node:bookworm".to_owned();
        let total = 48_300_000;
        (
            time,
            Event::Status {
                id: VertexId(8),
                name,
                current,
                total,
                done,
                at: at(time),
            },
        )
    };
    events.extend([
        reason(6, "cmd/app/main.go changed (and 2 more files)"),
        start(6, 300),
        end(6, 420),
        reason(7, "step 3/4 (COPY . .) gave another outcome"),
        start(7, 430),
        start(8, 300),
        status(400, 0, false),
        status(4200, 31_400_000, false),
        log(7, 900, "github.com/corp/app/internal/store\n"),
        log(7, 2100, "github.com/corp/app/internal/server\n"),
        log(7, 3900, "github.com/corp/app/cmd/app\n"),
    ]);
    let text = "for the cache mount /root/.npm, held by build 4711: kiln build -t web .".to_owned();
    events.push((
        4200,
        Event::Waiting {
            id: VertexId(10),
            text,
        },
    ));
    events
}

/// Draws the screen of a terminal.
fn svg(screen: &vt100::Screen) -> String {
    const WIDTH: u32 = 9;
    const HEIGHT: u32 = 19;
    let mut text = String::new();
    let shown: Vec<u16> = (0..ROWS)
        .filter(|row| (0..COLUMNS).any(|column| !content(screen, *row, column).trim().is_empty()))
        .collect();
    let height = (shown.last().map_or(0, |row| u32::from(*row)) + 3) * HEIGHT;
    let width = (u32::from(COLUMNS) + 4) * WIDTH;
    let _ = writeln!(
        text,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\">\n\
         <rect width=\"100%\" height=\"100%\" rx=\"8\" fill=\"#16181d\"/>\n\
         <g font-family=\"ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace\" font-size=\"15\" \
         xml:space=\"preserve\">"
    );
    for row in shown {
        let mut column = 0;
        while column < COLUMNS {
            let color = color(screen, row, column);
            let first = column;
            let mut run = String::new();
            while column < COLUMNS && self::color(screen, row, column) == color {
                run += &content(screen, row, column);
                column += 1;
            }
            let kept = run.trim_end();
            if kept.trim().is_empty() {
                continue;
            }
            let blanks = kept.len() - kept.trim_start().len();
            let x = (u32::from(first) + blanks as u32 + 2) * WIDTH;
            let y = (u32::from(row) + 2) * HEIGHT;
            let words = kept.trim_start();
            let length = words.chars().count() as u32 * WIDTH;
            let words = words
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;");
            let _ = writeln!(
                text,
                "<text x=\"{x}\" y=\"{y}\" fill=\"{color}\" textLength=\"{length}\">{words}</text>"
            );
        }
    }
    text + "</g>\n</svg>\n"
}

fn content(screen: &vt100::Screen, row: u16, column: u16) -> String {
    let text = screen.cell(row, column).map_or("", vt100::Cell::contents);
    if text.is_empty() {
        " ".to_owned()
    } else {
        text.to_owned()
    }
}

fn color(screen: &vt100::Screen, row: u16, column: u16) -> &'static str {
    let cell = screen.cell(row, column);
    match cell.map(|cell| (cell.fgcolor(), cell.dim())) {
        Some((vt100::Color::Idx(4), _)) => "#6ea8fe",
        Some((vt100::Color::Idx(3), _)) => "#e5c07b",
        Some((vt100::Color::Idx(1), _)) => "#ff7b72",
        Some((_, true)) => "#8b929e",
        _ => "#e6e6e6",
    }
}

#[test]
fn picture_is_what_the_screen_shows() {
    let size = || (COLUMNS, ROWS);
    let colors = Colors::from_settings(None, None);
    let mut tty = Tty::new(Box::new(size), colors, 6, crate::display::USUAL_PACE, at(0));
    let mut out = Vec::new();
    for (time, event) in script() {
        tty.event(event, at(time), &mut out);
    }
    tty.tick(at(4600), &mut out);
    let mut terminal = vt100::Parser::new(
        NonZero::new(ROWS).expect("rows"),
        NonZero::new(COLUMNS).expect("columns"),
        0,
    );
    terminal.process(&out);
    let now = svg(terminal.screen());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/screen.svg");
    if std::env::var_os("KILN_RECORD").is_some() {
        std::fs::write(path, now).expect("own checkout");
        return;
    }
    let kept = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        now == kept,
        "docs/screen.svg is stale, run cargo xtask docs"
    );
}
