//! A container that runs.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;

use kiln_image::{InodeOwners, LayerPath};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Signal, pidfd_send_signal};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::cancel::Cancel;
use crate::error::SandboxError;
use crate::keeper::{self, Job, Keeper, Started};
use crate::process::Process;

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this code.
    Code(u8),
    /// By this signal.
    Signal(u8),
}

impl Exit {
    /// As shells count it: a signal is 128 and its number.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code.into(),
            Self::Signal(signal) => 128 + i32::from(signal),
        }
    }

    /// Whether it ended with code 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

/// Runs a program in a container.
///
/// Any thread may call this; what is mounted for the container is seen by nobody else.
///
/// # Errors
/// When the container could not be set up or the program not be executed; then nothing of it is left, but mount points
/// that were made in the root.
pub fn spawn(process: &Process<'_>) -> Result<Running, SandboxError> {
    let (
        Started {
            pidfd,
            made,
            terminal,
        },
        keeper,
    ) = keeper::start(Job::new(process)?)?;
    Ok(Running {
        pidfd,
        stubs: made,
        terminal,
        state: Mutex::new(State::Alive(keeper)),
    })
}

/// A container that runs, or has ended. Dropping it kills it and waits for its end.
#[derive(Debug)]
pub struct Running {
    pidfd: OwnedFd,
    stubs: Vec<LayerPath>,
    terminal: Option<OwnedFd>,
    state: Mutex<State>,
}

enum State {
    Alive(Keeper),
    Ended(Exit, InodeOwners),
}

impl std::fmt::Debug for State {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Alive(_) => out.write_str("Alive"),
            Self::Ended(exit, _) => write!(out, "Ended({exit:?})"),
        }
    }
}

impl Running {
    /// Waits for the end of the program, with which everything else in the container ends too. When `cancel` is or
    /// gets cancelled all is killed first. Can be called again.
    ///
    /// # Errors
    /// Only when the kernel refuses to wait.
    pub fn wait(&self, cancel: &Cancel) -> std::io::Result<Exit> {
        let mut fds = [
            PollFd::new(&self.pidfd, PollFlags::IN),
            PollFd::new(cancel, PollFlags::IN),
        ];
        loop {
            match poll(&mut fds, None) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if fds[0].revents().is_empty() {
            self.kill();
        }
        self.exit()
    }

    fn exit(&self) -> std::io::Result<Exit> {
        let mut state = self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let keeper = match &*state {
            State::Ended(exit, _) => return Ok(*exit),
            State::Alive(keeper) => keeper,
        };
        let (exit, owners) = keeper
            .exit
            .recv()
            .unwrap_or_else(|_| Err(std::io::Error::other("the container's keeper died")))?;
        if let State::Alive(keeper) = std::mem::replace(&mut *state, State::Ended(exit, owners)) {
            let _ = keeper.thread.join();
        }
        Ok(exit)
    }

    /// Kills the program and everything else in the container. Does not wait.
    pub fn kill(&self) {
        // ESRCH when it has ended already, which is as good.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Sends the program a signal. Being process 1 it gets only those that it handles, and SIGKILL and SIGSTOP.
    ///
    /// # Errors
    /// When it has ended or there is no such signal.
    pub fn signal(&self, number: i32) -> std::io::Result<()> {
        let signal = Signal::from_named_raw(number).ok_or(Errno::INVAL)?;
        Ok(pidfd_send_signal(&self.pidfd, signal)?)
    }

    /// A descriptor that becomes readable when the program ends.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// The mount points that had to be made in the root itself, in that order, folders before what is in them.
    pub fn stubs(&self) -> &[LayerPath] {
        &self.stubs
    }

    /// After the end: the owners of files that cannot carry them, where ids are
    /// [recorded](crate::Process::recorded).
    pub fn owners(&self) -> InodeOwners {
        let state = self
            .state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        match &*state {
            State::Ended(_, owners) => owners.clone(),
            State::Alive(_) => InodeOwners::new(),
        }
    }

    /// The outer end of the container's terminal, if it has one: what is written is typed, what is read was printed.
    pub fn terminal(&self) -> Option<BorrowedFd<'_>> {
        self.terminal.as_ref().map(AsFd::as_fd)
    }

    /// Tells the terminal its new size.
    ///
    /// # Errors
    /// When there is no terminal.
    pub fn resize(&self, rows: u16, cols: u16) -> std::io::Result<()> {
        let terminal = self.terminal.as_ref().ok_or(Errno::NOTTY)?;
        Ok(tcsetwinsize(
            terminal,
            Winsize {
                ws_row: rows,
                ws_col: cols,
                ws_xpixel: 0,
                ws_ypixel: 0,
            },
        )?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
        let _ = self.exit();
    }
}
