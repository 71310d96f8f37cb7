//! Displays as a whole: a script of events in, what a reader sees out.

use std::io::{self, Write};
use std::num::NonZero;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;

use crate::classic::Classic;
use crate::display::Renderer;
use crate::display::USUAL_PACE;
use crate::plain::Plain;
use crate::quiet::Quiet;
use crate::rawjson::RawJson;
use crate::text;
use crate::tty::Tty;
use crate::{ClassicStep, Colors, Event, Mode, Options, Sink, Stream, VertexId, display};

fn at(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000) + Duration::from_millis(millis)
}

/// Feeds one renderer, with a clock that is set by hand.
struct Script<R> {
    renderer: R,
    millis: u64,
    out: Vec<u8>,
}

impl<R: Renderer> Script<R> {
    fn new(renderer: R) -> Self {
        Self {
            renderer,
            millis: 0,
            out: Vec::new(),
        }
    }

    fn emit(&mut self, event: Event) {
        self.renderer.event(event, at(self.millis), &mut self.out);
    }

    fn wait(&mut self, millis: u64) {
        self.millis += millis;
        self.renderer.tick(at(self.millis), &mut self.out);
    }

    fn vertices(&mut self, titles: &[&str]) {
        for (number, title) in titles.iter().enumerate() {
            self.emit(Event::Vertex {
                id: VertexId(number as u32),
                title: (*title).to_owned(),
            });
        }
    }

    fn start(&mut self, id: u32) {
        self.emit(Event::Started {
            id: VertexId(id),
            at: at(self.millis),
        });
    }

    fn log(&mut self, id: u32, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref().to_vec();
        self.emit(Event::Log {
            id: VertexId(id),
            stream: Stream::Stdout,
            bytes,
            at: at(self.millis),
        });
    }

    fn status(&mut self, id: u32, name: &str, current: u64, total: u64, done: bool) {
        let (id, name, at) = (VertexId(id), name.to_owned(), at(self.millis));
        self.emit(Event::Status {
            id,
            name,
            current,
            total,
            done,
            at,
        });
    }

    fn finish(&mut self, id: u32) {
        self.emit(Event::Finished {
            id: VertexId(id),
            at: at(self.millis),
        });
    }

    fn fail(&mut self, id: u32, error: &str) {
        self.emit(Event::Failed {
            id: VertexId(id),
            error: error.to_owned(),
            at: at(self.millis),
        });
    }

    fn end(&mut self) -> String {
        self.renderer.finish(at(self.millis), &mut self.out);
        String::from_utf8(std::mem::take(&mut self.out)).unwrap()
    }
}

/// A build that fails, with a bit of everything.
fn failing_build<R: Renderer>(script: &mut Script<R>) {
    script.vertices(&[
        "[internal] load build context",
        "[1/4] FROM debian",
        "[build 2/4] RUN make",
        "[test 2/2] RUN sleep 9",
        "[build 3/4] RUN never reached",
    ]);
    script.start(0);
    script.wait(50);
    script.status(0, "transferring context:", 3_200_000, 0, true);
    script.finish(0);
    script.emit(Event::Cached { id: VertexId(1) });
    script.emit(Event::Reason {
        id: VertexId(2),
        text: "src/main.rs changed".to_owned(),
    });
    script.start(2);
    script.start(3);
    script.wait(312);
    script.log(2, "cc main.c\nma");
    script.wait(100);
    script.log(2, "in.c:1: \x1b[31merror\x1b[0m\n");
    script.log(3, "zzz\n");
    script.wait(1000);
    script.fail(
        2,
        "process \"/bin/sh -c make\" did not complete successfully: exit code: 2",
    );
    script.emit(Event::Canceled {
        id: VertexId(3),
        at: at(script.millis),
    });
    script.emit(Event::Canceled {
        id: VertexId(4),
        at: at(script.millis),
    });
    script.emit(Event::Warning {
        text: "UndefinedVar: usage of undefined variable '$x' (line 3)".to_owned(),
    });
    script.emit(Event::Ended {
        took: Duration::from_millis(1462),
        ok: false,
    });
}

#[test]
fn plain_shows_a_failing_build() {
    let mut script = Script::new(Plain::new(false));
    failing_build(&mut script);
    insta::assert_snapshot!(script.end());
}

#[test]
fn plain_cuts_titles_where_it_is_asked_to() {
    let title = format!("[1/1] RUN {}", "x".repeat(100));
    for (short, columns) in [(true, 72), (false, title.len())] {
        let mut script = Script::new(Plain::new(short));
        script.vertices(&[&title]);
        script.start(0);
        script.finish(0);
        let shown = script.end();
        let first = shown.lines().next().unwrap_or_default();
        assert_eq!(text::width(first.trim_start_matches("#1 ")), columns);
    }
}

#[test]
fn frames_are_as_far_apart_as_is_asked() {
    for (pace, frames) in [(100, 11), (500, 3)] {
        let pace = Duration::from_millis(pace);
        let size = Box::new(|| (60, 24));
        let mut script = Script::new(Tty::new(size, Colors::default(), 6, pace, at(0)));
        script.vertices(&["[1/1] RUN a"]);
        script.start(0);
        for line in 0..=100 {
            script.log(0, format!("{line}\n"));
            script.wait(10);
        }
        let shown = String::from_utf8_lossy(&script.out).into_owned();
        let drawn = shown.matches("\x1b[?25l").count();
        assert!(drawn.abs_diff(frames) <= 1, "{pace:?}: {drawn} frames");
    }
}

#[test]
fn plain_stays_with_a_vertex_for_a_while() {
    let mut script = Script::new(Plain::new(false));
    script.vertices(&["[a 1/1] RUN a", "[b 1/1] RUN b", "[c 1/1] RUN c"]);
    script.start(0);
    script.start(1);
    script.start(2);
    for round in 0..7 {
        script.log(0, format!("a{round}\n"));
        script.log(1, format!("b{round}\n"));
        script.wait(1000);
    }
    script.finish(2);
    script.finish(1);
    script.log(0, "no line end");
    script.finish(0);
    insta::assert_snapshot!(script.end());
}

#[test]
fn plain_does_not_repeat_status_rows_too_often() {
    let mut script = Script::new(Plain::new(false));
    script.vertices(&["[1/1] FROM debian"]);
    script.start(0);
    script.status(0, "exporting layers", 0, 0, false);
    for step in 0..70 {
        script.status(0, "sha256:abc", step * 1_000_000, 70_000_000, false);
        script.wait(100);
    }
    script.status(0, "sha256:abc", 70_000_000, 70_000_000, true);
    script.status(0, "exporting layers", 0, 0, true);
    script.finish(0);
    insta::assert_snapshot!(script.end());
}

#[test]
fn raw_json_has_the_shape_of_a_solve_status() {
    let mut script = Script::new(RawJson::new());
    failing_build(&mut script);
    insta::assert_snapshot!(script.end());
}

#[test]
fn quiet_shows_only_what_failed() {
    let mut script = Script::new(Quiet::new());
    failing_build(&mut script);
    insta::assert_snapshot!(script.end());
}

fn cells(count: u16) -> NonZero<u16> {
    NonZero::new(count).unwrap()
}

type Size = Arc<Mutex<(u16, u16)>>;

/// A live screen together with the terminal that shows it.
struct Screen {
    script: Script<Tty>,
    size: Size,
    terminal: vt100::Parser,
}

impl Screen {
    fn new(columns: u16, lines: u16) -> Self {
        Self::with_colors(columns, lines, Colors::default())
    }

    fn with_colors(columns: u16, lines: u16, colors: Colors) -> Self {
        let size = Size::new(Mutex::new((columns, lines)));
        let asked = size.clone();
        let tty = Tty::new(
            Box::new(move || *asked.lock().unwrap()),
            colors,
            6,
            USUAL_PACE,
            at(0),
        );
        Self {
            script: Script::new(tty),
            size,
            terminal: vt100::Parser::new(cells(lines), cells(columns), 1000),
        }
    }

    fn resize(&mut self, columns: u16, lines: u16) {
        *self.size.lock().unwrap() = (columns, lines);
        self.update();
        self.terminal
            .screen_mut()
            .set_size(cells(lines), cells(columns));
    }

    fn update(&mut self) {
        let out = std::mem::take(&mut self.script.out);
        self.terminal.process(&out);
        assert!(
            !self.terminal.screen().hide_cursor(),
            "the cursor is back after each frame"
        );
    }

    /// What is seen after some time.
    fn after(&mut self, millis: u64) -> String {
        self.script.wait(millis);
        self.update();
        self.text()
    }

    fn end(&mut self) -> String {
        // The terminal is in cooked mode: it returns to the line's start by itself.
        let out = self
            .script
            .end()
            .replace("\r\n", "\n")
            .replace('\n', "\r\n");
        self.terminal.process(out.as_bytes());
        self.text()
    }

    fn text(&self) -> String {
        self.terminal.screen().contents()
    }
}

#[test]
fn the_screen_shows_a_running_and_a_failed_build() {
    let mut screen = Screen::new(60, 24);
    screen.terminal.process(b"$ kiln build .\r\n");
    failing_build(&mut screen.script);
    insta::assert_snapshot!(screen.after(100));
    insta::assert_snapshot!(screen.end());
}

#[test]
fn the_screen_shows_output_of_running_steps() {
    let mut screen = Screen::new(50, 24);
    screen.script.vertices(&["[1/2] FROM a", "[2/2] RUN make"]);
    screen.script.start(0);
    screen
        .script
        .status(0, "sha256:abc", 1_500_000, 3_000_000, false);
    screen.script.start(1);
    for line in 0..9 {
        screen.script.log(1, format!("line {line}\n"));
    }
    screen.script.log(1, "10%\r\x1b[2K\x1b[32m20%\x1b[0m");
    screen.script.emit(Event::Waiting {
        id: VertexId(0),
        text: "for the same step in build 1234".to_owned(),
    });
    insta::assert_snapshot!(screen.after(1200));
    screen.script.finish(1);
    screen
        .script
        .status(0, "sha256:abc", 3_000_000, 3_000_000, true);
    insta::assert_snapshot!(screen.after(100));
}

/// Whatever has no room of a transfer's row, it is not how far it is.
#[test]
fn transfers_show_their_counts() {
    let digest = format!("sha256:{}", "0123456789abcdef".repeat(4));
    for columns in [110, 80, 60, 52] {
        let mut screen = Screen::new(columns, 24);
        screen.script.vertices(&["pulling a:1"]);
        screen.script.start(0);
        screen
            .script
            .status(0, &digest, 41_500_000, 83_000_000, false);
        let text = screen.after(2000);
        let row = text.lines().last().unwrap();
        assert!(row.starts_with(" => => sha256:"), "{row}");
        assert!(
            row.trim_end()
                .trim_end_matches("2.0s")
                .trim_end()
                .ends_with(" 41.50MB / 83.00MB 20.75MB/s"),
            "{row}"
        );
        assert!(row.len() <= usize::from(columns), "{row}");
    }
}

#[test]
fn rows_fit_the_width() {
    let mut screen = Screen::new(30, 24);
    screen.script.vertices(&["[1/1] RUN echo \u{4f60}\u{597d}\u{4f60}\u{597d}\u{4f60}\u{597d}\u{4f60}\u{597d}\nsecond line"]);
    screen.script.start(0);
    screen.script.log(0, "\u{597d}".repeat(40) + "\n");
    insta::assert_snapshot!(screen.after(1000));
}

#[test]
fn a_frame_never_is_higher_than_the_terminal() {
    let mut screen = Screen::new(40, 10);
    screen.terminal.process(b"before\r\n");
    let titles: Vec<String> = (0..30)
        .map(|number| format!("[{number}/30] RUN step"))
        .collect();
    screen
        .script
        .vertices(&titles.iter().map(String::as_str).collect::<Vec<_>>());
    for id in 0..30 {
        screen.script.start(id);
        for line in 0..8 {
            screen.script.log(id, format!("{id}: {line}\n"));
        }
        screen.after(100);
        if id < 27 {
            screen.script.finish(id);
        }
    }
    insta::assert_snapshot!(screen.after(100));
    for id in 27..30 {
        screen.script.finish(id);
    }
    screen.end();
    screen.terminal.screen_mut().set_scrollback(1000);
    // Everything is in the final drawing, and nothing of the earlier frames was left behind above it.
    assert!(
        screen
            .text()
            .starts_with("before\n[+] Building 3.1s (30/30) FINISHED\n => [0/30] RUN step"),
        "{}",
        screen.text()
    );
}

#[test]
fn a_resized_terminal_is_redrawn() {
    let mut screen = Screen::new(60, 10);
    screen.script.vertices(&[
        "[1/2] RUN some long command line that fills the row",
        "[2/2] RUN x",
    ]);
    screen.script.start(0);
    screen.script.start(1);
    screen.after(100);
    screen.resize(30, 10);
    insta::assert_snapshot!(screen.after(100));
    screen.resize(50, 3);
    insta::assert_snapshot!(screen.after(100));
    screen.resize(80, 24);
    // Above may stand rows that the small terminal had scrolled out of reach.
    let text = screen.after(100);
    let last: Vec<&str> = text.lines().skip(text.lines().count() - 3).collect();
    assert_eq!(last[0], "[+] Building 0.4s (0/2)");
    assert!(
        last[1].starts_with(" => [1/2] RUN some long command line that fills the row  ")
            && last[1].len() == 80
    );
    assert!(last[2].starts_with(" => [2/2] RUN x  ") && last[2].len() == 80);
}

#[test]
fn rows_have_colors() {
    let mut screen = Screen::with_colors(40, 10, Colors::from_settings(None, None));
    screen.script.vertices(&["[1/2] RUN a", "[2/2] RUN b"]);
    screen.script.start(0);
    screen.script.finish(0);
    screen.script.start(1);
    screen.script.fail(1, "no");
    screen.after(100);
    let color = |row| screen.terminal.screen().cell(row, 5).unwrap().fgcolor();
    assert_eq!(
        [color(0), color(1), color(2)],
        [
            vt100::Color::Default,
            vt100::Color::Idx(4),
            vt100::Color::Idx(1)
        ]
    );
}

#[test]
fn frames_are_far_enough_apart() {
    let mut screen = Screen::new(80, 24);
    screen.script.vertices(&["[1/1] RUN yes"]);
    screen.script.start(0);
    let mut frames = 0;
    for _ in 0..1000 {
        screen.script.log(0, "y\n");
        screen.script.wait(1);
        frames += usize::from(!std::mem::take(&mut screen.script.out).is_empty());
    }
    assert_eq!(frames, 10);
}

#[derive(Clone, Default)]
struct Shared(Arc<Mutex<Vec<Vec<u8>>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().push(bytes.to_vec());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn real_display(mode: Mode) -> (crate::Display, Shared) {
    let out = Shared::default();
    (display(Options::new(mode, Box::new(out.clone()))), out)
}

#[test]
fn the_clock_runs_only_while_something_takes_long() {
    let asked = Arc::new(AtomicU32::new(0));
    let counter = asked.clone();
    let out = Shared::default();
    let options = Options {
        size: Box::new(move || {
            counter.fetch_add(1, Ordering::Relaxed);
            (80, 24)
        }),
        ..Options::new(Mode::Tty, Box::new(out.clone()))
    };
    let display = display(options);
    let id = VertexId(0);
    display.emit(Event::Vertex {
        id,
        title: "[1/1] RUN sleep".to_owned(),
    });
    display.emit(Event::Started {
        id,
        at: SystemTime::now(),
    });
    thread::sleep(Duration::from_secs(1));
    display.emit(Event::Finished {
        id,
        at: SystemTime::now(),
    });
    let frames = asked.load(Ordering::Relaxed);
    assert!((3..=11).contains(&frames), "{frames} frames in a second");
    thread::sleep(Duration::from_millis(300));
    assert!(
        asked.load(Ordering::Relaxed) <= frames + 1,
        "nothing runs, nothing is drawn"
    );
    display.finish().unwrap();
    let writes = out.0.lock().unwrap();
    assert_eq!(
        writes.len(),
        asked.load(Ordering::Relaxed) as usize,
        "one write a frame"
    );
}

#[test]
fn a_build_from_the_cache_is_one_frame() {
    let (display, out) = real_display(Mode::Tty);
    for (number, title) in [
        "[internal] load build definition",
        "[1/2] FROM a",
        "[2/2] RUN b",
        "exporting to image",
    ]
    .into_iter()
    .enumerate()
    {
        let id = VertexId(number as u32);
        display.emit(Event::Vertex {
            id,
            title: title.to_owned(),
        });
        if title.contains('/') {
            display.emit(Event::Cached { id });
        } else {
            display.emit(Event::Started {
                id,
                at: SystemTime::now(),
            });
            display.emit(Event::Finished {
                id,
                at: SystemTime::now(),
            });
        }
    }
    assert!(!display.is_ticking());
    display.clone().finish().unwrap();
    display.emit(Event::Warning {
        text: "too late".to_owned(),
    });
    assert_eq!(out.0.lock().unwrap().len(), 1);
}

#[test]
fn a_broken_output_is_reported_once_at_the_end() {
    struct Broken;
    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let display = display(Options::new(Mode::RawJson, Box::new(Broken)));
    for id in 0..3 {
        display.emit(Event::Vertex {
            id: VertexId(id),
            title: String::new(),
        });
    }
    assert_eq!(
        display.finish().unwrap_err().kind(),
        io::ErrorKind::BrokenPipe
    );
}

fn any_event() -> impl Strategy<Value = Event> {
    let id = (0u32..4).prop_map(VertexId);
    let time = (0u64..20_000).prop_map(at);
    let text = prop::collection::vec(any::<u8>(), 0..30)
        .prop_map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    (
        id,
        time,
        text,
        prop::collection::vec(any::<u8>(), 0..200),
        0..10,
        any::<u64>(),
        any::<bool>(),
    )
        .prop_map(|(id, at, text, bytes, kind, number, done)| match kind {
            0 => Event::Vertex { id, title: text },
            1 => Event::Started { id, at },
            2 => Event::Cached { id },
            3 => Event::Reason { id, text },
            4 => Event::Waiting { id, text },
            5 => Event::Status {
                id,
                name: text,
                current: number,
                total: number / 2,
                done,
                at,
            },
            6 => Event::Finished { id, at },
            7 => Event::Failed {
                id,
                error: text,
                at,
            },
            8 => Event::Warning { text },
            _ => Event::Log {
                id,
                stream: Stream::Stderr,
                bytes,
                at,
            },
        })
}

proptest! {
    #[test]
    fn whatever_a_build_says_only_text_comes_out(
        events in prop::collection::vec(any_event(), 0..60),
        (columns, lines) in (0u16..50, 0u16..12),
    ) {
        let renderers: [Box<dyn Renderer>; 4] = [
            Box::new(Plain::new(false)),
            Box::new(Quiet::new()),
            Box::new(RawJson::new()),
            Box::new(Tty::new(Box::new(move || (columns, lines)), Colors::default(), 6, USUAL_PACE, at(0))),
        ];
        for mut renderer in renderers {
            let mut out = Vec::new();
            for id in 0..3 {
                renderer.event(Event::Vertex { id: VertexId(id), title: "x".to_owned() }, at(0), &mut out);
            }
            for (number, event) in events.iter().enumerate() {
                let now = at(number as u64 * 100);
                let from = out.len();
                renderer.event(event.clone(), now, &mut out);
                renderer.tick(now, &mut out);
                let rows = out[from..].split(|byte| *byte == b'\n').count() - 1;
                if columns > 0 && lines > 1 && out[from..].starts_with(b"\x1b[?25l") {
                    prop_assert!(rows < usize::from(lines), "{rows} rows in {lines}");
                }
            }
            renderer.finish(at(20_000), &mut out);
            let mut text = String::from_utf8(out).unwrap();
            for own in ["\x1b[?25l", "\x1b[?25h", "\x1b[K", "\x1b[J", "\r", "\n"] {
                text = text.replace(own, "");
            }
            for up in 1..=24 {
                text = text.replace(&format!("\x1b[{up}A"), "");
            }
            prop_assert!(!text.contains(char::is_control), "{text:?}");
        }
    }
}

fn classic_step(text: &str, stage: &str, number: Option<usize>) -> ClassicStep {
    ClassicStep {
        text: text.to_owned(),
        stage: stage.to_owned(),
        number,
    }
}

#[test]
fn classic_shows_steps_in_the_order_of_the_file() {
    let steps = vec![
        classic_step("FROM a AS one", "one", Some(1)),
        classic_step("RUN slow", "one", Some(2)),
        classic_step("FROM b AS never", "never", Some(1)),
        classic_step("RUN never", "never", Some(2)),
        classic_step("FROM c", "stage-2", Some(1)),
        classic_step("ENV A=b", "stage-2", None),
        classic_step("RUN fast", "stage-2", Some(2)),
        classic_step("COPY --from=one /x /", "stage-2", Some(3)),
    ];
    let mut script = Script::new(Classic::new(steps, "stage-2".to_owned()));
    script.vertices(&[
        "[internal] load build definition from Dockerfile",
        "[one 1/2] FROM a",
        "[one 2/2] RUN slow",
        "[stage-2 1/3] FROM c",
        "[stage-2 2/3] RUN fast",
        "[stage-2 3/3] COPY --from=one /x /",
    ]);
    for id in [1, 3] {
        script.emit(Event::Cached { id: VertexId(id) });
    }
    script.start(2);
    script.start(4);
    script.log(4, "fast output\n");
    script.log(2, "first\n");
    let finish = |script: &mut Script<Classic>, id| {
        let at = at(script.millis);
        script.emit(Event::Finished {
            id: VertexId(id),
            at,
        });
    };
    script.wait(100);
    finish(&mut script, 4);
    script.log(2, "second\n");
    finish(&mut script, 2);
    script.emit(Event::Cached { id: VertexId(5) });
    script.emit(Event::Vertex {
        id: VertexId(6),
        title: "exporting to image".to_owned(),
    });
    let image = format!("writing image sha256:{}", "0123456789abcdef".repeat(4));
    script.status(6, &image, 0, 0, true);
    script.renderer.finish(at(200), &mut script.out);
    let shown = String::from_utf8(script.out).unwrap();
    assert!(
        shown.ends_with(" ---> Using cache\n ---> 0123456789ab\n"),
        "the last step is the image: {shown}"
    );
    let without_names: String = shown
        .lines()
        .map(|line| match line.rsplit_once(' ') {
            Some((rest, name)) if name.len() == 12 && !name.contains('/') => {
                format!("{rest} NAME\n")
            }
            _ => format!("{line}\n"),
        })
        .collect();
    insta::assert_snapshot!(without_names);
}

#[test]
fn plain_repeats_output_that_was_interrupted() {
    let mut script = Script::new(Plain::new(false));
    script.vertices(&["[a 1/1] RUN fails", "[b 1/1] RUN other"]);
    script.start(0);
    script.start(1);
    for number in 0..20 {
        script.log(0, format!("before {number}\n"));
    }
    script.wait(6000);
    script.log(1, "other\n");
    script.wait(6000);
    script.log(0, "behind\n");
    let error = "exit code: 1".to_owned();
    let at = at(script.millis);
    script.emit(Event::Failed {
        id: VertexId(0),
        error,
        at,
    });
    script.emit(Event::Canceled {
        id: VertexId(1),
        at,
    });
    script.renderer.finish(at, &mut script.out);
    let shown = String::from_utf8(script.out).unwrap();
    let block = shown.split(" > [a 1/1] RUN fails:\n").nth(1).unwrap();
    assert!(
        block.contains(" before 0\n") && block.contains(" behind\n"),
        "{shown}"
    );
    assert!(!block.contains("other"), "{shown}");
}
