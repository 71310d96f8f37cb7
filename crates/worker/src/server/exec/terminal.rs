//! Carries bytes between the user's terminal and a container's.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use kiln_sandbox::{Cancel, Exit, Running};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::termios::{tcgetwinsize, tcsetwinsize};

/// How often the size of the user's terminal is looked at: its signal goes to the front.
const LOOK: Duration = Duration::from_millis(250);

/// The user's side.
pub(super) struct Relay<'a> {
    pub(super) stdin: BorrowedFd<'a>,
    pub(super) stdout: BorrowedFd<'a>,
}

impl Relay<'_> {
    /// Carries until the process ends.
    pub(super) fn until_exit(&self, running: &Running, cancel: &Cancel) -> io::Result<Exit> {
        let Some(master) = running.terminal() else {
            return running.wait(cancel);
        };
        let over = Cancel::new()?;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                // A terminal that breaks ends the carrying, not the process.
                let _ = self.carry(master, &over);
            });
            let exit = running.wait(cancel);
            over.cancel();
            exit
        })
    }

    fn carry(&self, master: BorrowedFd<'_>, over: &Cancel) -> io::Result<()> {
        let mut size = tcgetwinsize(self.stdin).ok();
        let mut input_open = true;
        let mut buffer = [0; 16384];
        let timeout = LOOK.try_into().ok();
        loop {
            let ended = over.is_cancelled();
            let mut fds = vec![PollFd::from_borrowed_fd(master, PollFlags::IN)];
            fds.push(PollFd::new(over, PollFlags::IN));
            if input_open {
                fds.push(PollFd::from_borrowed_fd(self.stdin, PollFlags::IN));
            }
            poll(&mut fds, timeout.as_ref())?;
            let output = fds[0].revents();
            let input = fds.get(2).is_some_and(|fd| !fd.revents().is_empty());
            if output.contains(PollFlags::IN) {
                let got = rustix::io::read(master, &mut buffer)?;
                write_all(self.stdout, &buffer[..got])?;
            } else if ended || output.contains(PollFlags::HUP) {
                return Ok(());
            }
            if input {
                match rustix::io::read(self.stdin, &mut buffer)? {
                    0 => input_open = false,
                    got => write_all(master.as_fd(), &buffer[..got])?,
                }
            }
            let now = tcgetwinsize(self.stdin).ok();
            if let Some(now) = now.filter(|now| {
                Some((now.ws_row, now.ws_col)) != size.map(|it| (it.ws_row, it.ws_col))
            }) {
                tcsetwinsize(master, now)?;
                size = Some(now);
            }
        }
    }
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::write(to, bytes)?;
        bytes = &bytes[written..];
    }
    Ok(())
}
