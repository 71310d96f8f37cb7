//! A terminal with a program in it, typed into and read by a test.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pty::{OpenptFlags, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// What makes the terminal that of a program: put it around the program.
pub const OWN_TERMINAL: [&str; 3] = ["setsid", "--ctty", "--wait"];

/// The terminal.
#[derive(Debug)]
pub struct Terminal {
    master: File,
    child: Child,
    /// All that was shown.
    pub shown: String,
    /// How much of it [`Terminal::shows`] has passed.
    seen: usize,
}

impl Terminal {
    /// Starts a command, wrapped in [`OWN_TERMINAL`], in a terminal of 24 lines and 80 columns.
    pub fn start(mut command: Command) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("there are terminals");
        unlockpt(&master).expect("own terminal");
        let name = ptsname(&master, Vec::new()).expect("own terminal");
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        let end = File::from(openat(CWD, name, flags, Mode::empty()).expect("own terminal"));
        let stream = || Stdio::from(end.try_clone().expect("descriptors"));
        let child = command
            .stdin(stream())
            .stdout(stream())
            .stderr(stream())
            .env("TERM", "xterm")
            .spawn()
            .expect("it starts");
        drop(command);
        let terminal = Self {
            master: File::from(master),
            child,
            shown: String::new(),
            seen: 0,
        };
        terminal.resize(24, 80);
        terminal
    }

    /// Changes the size.
    pub fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize {
            ws_row: rows,
            ws_col: columns,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&self.master, size).expect("own terminal");
    }

    /// Types.
    pub fn send(&mut self, keys: &str) {
        self.master
            .write_all(keys.as_bytes())
            .expect("own terminal");
    }

    /// Waits until it shows a text, after those that were waited for before.
    #[track_caller]
    pub fn shows(&mut self, text: &str) {
        let end = Instant::now() + Duration::from_secs(30);
        let found = loop {
            if let Some(at) = self.shown[self.seen..].find(text) {
                break at;
            }
            let open = self.read(Duration::from_millis(100));
            assert!(
                open && Instant::now() < end,
                "never shows {text:?}:\n{}",
                self.shown
            );
        };
        self.seen += found + text.len();
    }

    /// Reads what there is; whether there can be more.
    fn read(&mut self, wait: Duration) -> bool {
        let wait = Timespec::try_from(wait).expect("short");
        let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
        if poll(&mut fds, Some(&wait)) == Ok(0) {
            return true;
        }
        let mut buffer = [0; 4096];
        match self.master.read(&mut buffer) {
            Ok(got @ 1..) => {
                self.shown += &String::from_utf8_lossy(&buffer[..got]);
                true
            }
            // The other end is closed.
            _ => false,
        }
    }

    /// Waits for the end of the program.
    #[track_caller]
    pub fn ends(&mut self) -> ExitStatus {
        let end = Instant::now() + Duration::from_secs(30);
        loop {
            self.read(Duration::from_millis(20));
            if let Some(status) = self.child.try_wait().expect("own child") {
                // What it printed last.
                let mut before = usize::MAX;
                while before != self.shown.len() {
                    before = self.shown.len();
                    self.read(Duration::from_millis(20));
                }
                return status;
            }
            assert!(Instant::now() < end, "does not end:\n{}", self.shown);
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
