//! Many ids where the user has one: a supervisor answers the calls that need more (`chown`, `setuid`, `mknod`, ...) and
//! those that read them back (`stat`, `getuid`, ...), so that a step sees, and a layer gets, what it would with all of
//! them. docs/rootless.md has the reasons, the costs, and what is not enforced.
//!
//! - A filter (`seccomp_unotify(2)`) stops these calls in the container, of programs of any kind, and hands them to a
//!   thread of the worker, which answers, or lets the kernel go on when nothing special is written down.
//! - **Files** belong to the one user. Their owners are written beside them ([`OWNER_XATTR`](kiln_image::OWNER_XATTR)).
//! - **Credentials** must follow a process through forks and execs, and end with it. The kernel does that for us: they
//!   are numbered, and the number is the hard limit `RLIMIT_LOCKS` of the process, which has no meaning since Linux 2.4.
//!   An unprivileged limit can only fall, so the numbers do.
//!
//! The thread is in the mount namespace of the container and has its root, so that the kernel resolves paths as it does
//! for the program and nothing leads out; its working folder is the worker's `/proc`, from where it gets at the working
//! folders and descriptors of who asks. Nothing here guards anything: all that runs in the container has the same
//! rights, and so what a program changes between question and answer is its own problem.
#![allow(
    unsafe_code,
    reason = "seccomp, other processes' memory and limits, and structures of the kernel"
)]

mod calls;
mod credentials;
mod files;
mod layout;
mod listener;
mod users;

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;

use kiln_image::InodeOwners;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Result;
use rustix::thread::{ThreadNameSpaceType, UnshareFlags, move_into_thread_name_spaces};

pub(crate) use files::give;

use calls::Call;
use credentials::Credentials;
use listener::{Answer, Listener, Question};

use crate::error::SandboxError;
use crate::seccomp::Instruction;
use crate::sys;

/// The filter that brings the questions.
pub(crate) fn filter() -> Vec<Instruction> {
    calls::filter()
}

/// What a supervisor is told.
pub(crate) struct Task {
    /// Known owners of files that cannot carry them.
    pub(crate) owners: InodeOwners,
    /// Nobody in the container can mount anything.
    pub(crate) confined: bool,
    /// Set-id programs give their owner's rights.
    pub(crate) set_id_programs: bool,
}

/// A thread that answers until the container has ended.
pub(crate) struct Supervisor(JoinHandle<InodeOwners>);

impl Supervisor {
    /// Starts answering for `child`, whose filter's descriptor there is `number`.
    pub(crate) fn start(
        child: &OwnedFd,
        number: i32,
        task: Task,
    ) -> std::result::Result<Self, SandboxError> {
        let failed = |error: std::io::Error| SandboxError::setup("supervisor", error);
        let child = child.try_clone().map_err(failed)?;
        let (tell, started) = sync_channel(1);
        let answer = move || {
            let state = State::new(&child, number, task);
            drop(child);
            match state {
                Ok(mut state) => {
                    let _ = tell.send(Ok(()));
                    state.serve();
                    state.owners
                }
                Err(error) => {
                    let _ = tell.send(Err(error));
                    InodeOwners::new()
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("supervisor".into())
            .stack_size(512 << 10)
            .spawn(answer)
            .map_err(failed)?;
        match started.recv() {
            Ok(Ok(())) => Ok(Self(thread)),
            Ok(Err(error)) => Err(failed(error.into())),
            Err(_) => Err(failed(std::io::Error::other("it ended"))),
        }
    }

    /// Waits for the end, after that of the container, and gives the owners of files that cannot carry them.
    pub(crate) fn finish(self) -> InodeOwners {
        self.0.join().unwrap_or_default()
    }
}

struct State {
    listener: Listener,
    /// By mark.
    credentials: HashMap<u64, Credentials>,
    /// The last mark given.
    mark: Option<u64>,
    owners: InodeOwners,
    /// When it all began: files made before are of layers below.
    since: (i64, u32),
    /// Some process may have another root than the container's.
    other_roots: bool,
    set_id_programs: bool,
}

impl State {
    /// Takes the listener from the child, and goes where the child is.
    fn new(child: &OwnedFd, number: i32, task: Task) -> Result<Self> {
        // SAFETY: numbers only; the kernel makes a new descriptor for us.
        let listener = unsafe {
            let fd = sys::check(libc::syscall(
                libc::SYS_pidfd_getfd,
                child.as_raw_fd(),
                number,
                0,
            ))?;
            OwnedFd::from_raw_fd(fd as i32)
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = openat(CWD, c"/proc", flags, Mode::empty())?;
        sys::unshare(UnshareFlags::FS)?;
        rustix::process::umask(Mode::empty());
        move_into_thread_name_spaces(child.as_fd(), ThreadNameSpaceType::MOUNT)?;
        rustix::process::fchdir(&proc)?;
        Ok(Self {
            listener: Listener::new(listener),
            credentials: HashMap::new(),
            mark: None,
            owners: task.owners,
            since: now(),
            other_roots: !task.confined,
            set_id_programs: task.set_id_programs,
        })
    }

    fn serve(&mut self) {
        while let Ok(Some(question)) = self.listener.receive() {
            let answer = match calls::find(question.data.arch, question.data.nr as u32) {
                Some((call, narrow)) => self
                    .consider(&question, call, narrow)
                    .unwrap_or_else(Answer::Fail),
                None => Answer::Continue,
            };
            self.listener.answer(&question, answer);
        }
    }

    fn consider(&mut self, question: &Question, call: Call, narrow: bool) -> Result<Answer> {
        match self.about_users(question, call)? {
            Some(answer) => Ok(answer),
            None => self.about_files(question, call, narrow),
        }
    }
}

/// By the clock that file systems use.
fn now() -> (i64, u32) {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    (now.tv_sec, now.tv_nsec as u32)
}

/// An argument of the call. Those of 32-bit programs are zero-extended.
fn argument(question: &Question, number: usize) -> u64 {
    question.data.args[number]
}

/// An argument that is an id, a flag word or a descriptor.
fn word(question: &Question, number: usize) -> u32 {
    question.data.args[number] as u32
}
