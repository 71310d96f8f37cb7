//! The parts that all displays share: options, the lock, the clock that redraws.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, SystemTime};

use crate::classic::{Classic, ClassicStep};
use crate::color::Colors;
use crate::event::{Event, Sink};
use crate::plain::Plain;
use crate::quiet::Quiet;
use crate::rawjson::RawJson;
use crate::tty::Tty;

/// How far apart frames of the live screen are.
pub(crate) const USUAL_PACE: Duration = Duration::from_millis(100);

/// How a build is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// A live screen, redrawn in place. The output must be a terminal.
    Tty,
    /// Lines, for log files.
    Plain,
    /// The steps in the order of the Dockerfile, as docker's builder showed them before `BuildKit`.
    Classic,
    /// Nothing but the output of what failed.
    Quiet,
    /// `BuildKit`'s status stream, one JSON object a line.
    RawJson,
}

/// What a display needs to know.
pub struct Options {
    /// How to show the build.
    pub mode: Mode,
    /// Where to. Flushed after each write; a frame of the live screen is one write.
    pub out: Box<dyn Write + Send>,
    /// The terminal's columns and rows, asked for before each frame; a zero means not known.
    pub size: Box<dyn Fn() -> (u16, u16) + Send>,
    /// The colours of the live screen.
    pub colors: Colors,
    /// How many lines of a running step's output the live screen shows.
    pub log_lines: usize,
    /// Frames of the live screen are at least this far apart.
    pub pace: Duration,
    /// Titles of [`Mode::Plain`] are cut where they are long.
    pub short_titles: bool,
    /// For [`Mode::Classic`]: the instructions of the Dockerfile, and the stage that is built.
    pub steps: (Vec<ClassicStep>, String),
    /// Tells the time.
    pub clock: Box<dyn Fn() -> SystemTime + Send>,
}

impl Options {
    /// The usual options: no colours, 6 lines of output, the system's clock, a terminal of unknown size.
    pub fn new(mode: Mode, out: Box<dyn Write + Send>) -> Self {
        Self {
            mode,
            out,
            size: Box::new(|| (0, 0)),
            colors: Colors::default(),
            log_lines: 6,
            pace: USUAL_PACE,
            short_titles: false,
            steps: Default::default(),
            clock: Box::new(SystemTime::now),
        }
    }
}

/// Makes a display. It writes nothing before the first event, and starts no thread before something takes a while.
pub fn display(options: Options) -> Display {
    let Options {
        mode,
        out,
        size,
        colors,
        log_lines,
        pace,
        short_titles,
        steps: (steps, target),
        clock,
    } = options;
    let now = clock();
    let renderer: Box<dyn Renderer> = match mode {
        Mode::Tty => Box::new(Tty::new(size, colors, log_lines, pace, now)),
        Mode::Plain => Box::new(Plain::new(short_titles)),
        Mode::Classic => Box::new(Classic::new(steps, target)),
        Mode::Quiet => Box::new(Quiet::new()),
        Mode::RawJson => Box::new(RawJson::new()),
    };
    let state = State {
        renderer,
        out,
        clock,
        failure: None,
        ticking: false,
        finished: false,
    };
    Display(Arc::new(Mutex::new(state)))
}

/// Draws the events that it is given. Clones draw on the same screen.
#[derive(Clone)]
pub struct Display(Arc<Mutex<State>>);

impl Display {
    /// Draws the final state. Events that come later are thrown away.
    ///
    /// # Errors
    /// The first error that writing met; nothing was written after it.
    pub fn finish(self) -> io::Result<()> {
        let mut state = lock(&self.0);
        if !state.finished {
            state.finished = true;
            state.draw(|renderer, now, out| renderer.finish(now, out));
        }
        state.failure.take().map_or(Ok(()), Err)
    }

    #[cfg(test)]
    pub(crate) fn is_ticking(&self) -> bool {
        lock(&self.0).ticking
    }
}

impl Sink for Display {
    fn emit(&self, event: Event) {
        let mut state = lock(&self.0);
        if state.finished {
            return;
        }
        state.draw(|renderer, now, out| renderer.event(event, now, out));
        if state.ticking {
            return;
        }
        let now = (state.clock)();
        if let Some(pace) = state.renderer.pace(now) {
            let display = Arc::downgrade(&self.0);
            // Without the thread the screen still changes with each event.
            state.ticking = thread::Builder::new()
                .name("progress".to_owned())
                .spawn(move || tick(&display, pace))
                .is_ok();
        }
    }
}

/// Redraws until nothing takes long any more.
fn tick(display: &Weak<Mutex<State>>, pace: Duration) {
    loop {
        thread::sleep(pace);
        let Some(display) = display.upgrade() else {
            return;
        };
        let mut state = lock(&display);
        let now = (state.clock)();
        if state.finished || state.renderer.pace(now).is_none() {
            state.ticking = false;
            return;
        }
        state.draw(|renderer, now, out| renderer.tick(now, out));
    }
}

/// A display that panicked in one thread still draws what the others report.
fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

struct State {
    renderer: Box<dyn Renderer>,
    out: Box<dyn Write + Send>,
    clock: Box<dyn Fn() -> SystemTime + Send>,
    failure: Option<io::Error>,
    ticking: bool,
    finished: bool,
}

impl State {
    fn draw(&mut self, draw: impl FnOnce(&mut dyn Renderer, SystemTime, &mut Vec<u8>)) {
        let mut bytes = Vec::new();
        draw(self.renderer.as_mut(), (self.clock)(), &mut bytes);
        if bytes.is_empty() || self.failure.is_some() {
            return;
        }
        self.failure = self
            .out
            .write_all(&bytes)
            .and_then(|()| self.out.flush())
            .err();
    }
}

/// One way to show a build. All methods add to `out` what is to be written now.
pub(crate) trait Renderer: Send {
    fn event(&mut self, event: Event, now: SystemTime, out: &mut Vec<u8>);

    /// Time has passed without an event.
    fn tick(&mut self, _now: SystemTime, _out: &mut Vec<u8>) {}

    /// How often [`Renderer::tick`] should be called at the moment; `None` for not at all.
    fn pace(&self, _now: SystemTime) -> Option<Duration> {
        None
    }

    fn finish(&mut self, now: SystemTime, out: &mut Vec<u8>);
}
