//! The kernel's side of the questions: `seccomp_unotify(2)`, and the memory and limits of the process that asks.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{Errno, Result};

use crate::sys;

/// Longest path, with its null byte.
const PATH_MAX: usize = 4096;
/// Memory is read up to the end of a page at a time, since the next one may not be there.
const PAGE: usize = 4096;

// linux/seccomp.h: `SECCOMP_IOCTL_NOTIF_*`.
const RECEIVE: libc::c_ulong = 0xc050_2100;
const SEND: libc::c_ulong = 0xc018_2101;
const ID_VALID: libc::c_ulong = 0x4008_2102;
const ADD_DESCRIPTOR: libc::c_ulong = 0x4018_2103;
const SET_FLAGS: libc::c_ulong = 0x4008_2104;
/// The asking thread and the answering one take turns on one processor: Linux 6.6.
const SYNC_WAKE_UP: u64 = 1;
/// `SECCOMP_ADDFD_FLAG_SEND`.
const ADD_AND_SEND: u32 = 2;
const CONTINUE: u32 = 1;

/// What a process asks.
pub(super) type Question = libc::seccomp_notif;

/// The answer to a question.
#[derive(Debug)]
pub(super) enum Answer {
    /// The kernel does the call.
    Continue,
    /// The call gives this.
    Value(i64),
    /// The call fails.
    Fail(Errno),
    /// The call gives this descriptor.
    Descriptor { fd: OwnedFd, close_on_exec: bool },
}

impl From<Errno> for Answer {
    fn from(error: Errno) -> Self {
        Self::Fail(error)
    }
}

/// Where questions come from.
#[derive(Debug)]
pub(super) struct Listener(OwnedFd);

impl Listener {
    pub(super) fn new(fd: OwnedFd) -> Self {
        // SAFETY: the argument is a number. Older kernels do not know it, and are slower.
        unsafe { libc::ioctl(fd.as_raw_fd(), SET_FLAGS, SYNC_WAKE_UP) };
        Self(fd)
    }

    /// The next question; `None` when everyone who could ask has ended.
    pub(super) fn receive(&self) -> Result<Option<Question>> {
        loop {
            let mut fds = [PollFd::new(&self.0, PollFlags::IN)];
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(error),
            }
            if !fds[0].revents().contains(PollFlags::IN) {
                return Ok(None);
            }
            // SAFETY: all zero is a valid value, and the one that the kernel wants.
            let mut question: Question = unsafe { std::mem::zeroed() };
            // SAFETY: the structure is what this request fills.
            let result = unsafe { libc::ioctl(self.0.as_raw_fd(), RECEIVE, &raw mut question) };
            match sys::check(result.into()) {
                Ok(_) => return Ok(Some(question)),
                // Who asked was killed meanwhile, or the wait was interrupted.
                Err(Errno::NOENT | Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Whether the process that asked is still there, waiting: what was found by its number is its own then.
    pub(super) fn is_waiting(&self, question: &Question) -> bool {
        // SAFETY: this request reads a number of this size.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), ID_VALID, &raw const question.id) };
        result == 0
    }

    /// Answers. Who asked may be gone, which is nobody's loss.
    pub(super) fn answer(&self, question: &Question, answer: Answer) {
        let (val, error, flags) = match answer {
            Answer::Continue => (0, 0, CONTINUE),
            Answer::Value(value) => (value, 0, 0),
            Answer::Fail(error) => (0, -error.raw_os_error(), 0),
            Answer::Descriptor { fd, close_on_exec } => {
                match self.give(question, fd.as_fd(), close_on_exec) {
                    Ok(()) => return,
                    // It has too many open, say.
                    Err(error) => (0, -error.raw_os_error(), 0),
                }
            }
        };
        let response = libc::seccomp_notif_resp {
            id: question.id,
            val,
            error,
            flags,
        };
        // SAFETY: the structure is what this request reads.
        unsafe { libc::ioctl(self.0.as_raw_fd(), SEND, &raw const response) };
    }

    fn give(&self, question: &Question, fd: BorrowedFd<'_>, close_on_exec: bool) -> Result<()> {
        let request = libc::seccomp_notif_addfd {
            id: question.id,
            flags: ADD_AND_SEND,
            srcfd: fd.as_raw_fd() as u32,
            newfd: 0,
            newfd_flags: if close_on_exec {
                libc::O_CLOEXEC as u32
            } else {
                0
            },
        };
        // SAFETY: the structure is what this request reads.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), ADD_DESCRIPTOR, &raw const request) };
        sys::check(result.into()).map(drop)
    }
}

fn transfer(
    question: &Question,
    local: libc::iovec,
    address: u64,
    call: unsafe extern "C" fn(
        libc::pid_t,
        *const libc::iovec,
        libc::c_ulong,
        *const libc::iovec,
        libc::c_ulong,
        libc::c_ulong,
    ) -> libc::ssize_t,
) -> Result<()> {
    let remote = libc::iovec {
        iov_base: address as *mut libc::c_void,
        iov_len: local.iov_len,
    };
    // SAFETY: the local side is a live buffer of the callers below; the kernel checks the other side.
    let done = unsafe {
        call(
            question.pid as i32,
            &raw const local,
            1,
            &raw const remote,
            1,
            0,
        )
    };
    match sys::check(done as libc::c_long) {
        Ok(done) if done as usize == local.iov_len => Ok(()),
        _ => Err(Errno::FAULT),
    }
}

/// Reads the memory of who asks.
pub(super) fn read(question: &Question, address: u64, buffer: &mut [u8]) -> Result<()> {
    let local = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    transfer(question, local, address, libc::process_vm_readv)
}

/// Writes the memory of who asks.
pub(super) fn write(question: &Question, address: u64, bytes: &[u8]) -> Result<()> {
    let local = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    transfer(question, local, address, libc::process_vm_writev)
}

/// Reads a path.
pub(super) fn read_path(question: &Question, address: u64) -> Result<CString> {
    let mut path = Vec::with_capacity(256);
    while path.len() < PATH_MAX {
        let at = address.wrapping_add(path.len() as u64);
        let known = path.len();
        // Short at first: most paths are.
        let rest_of_page = PAGE - at as usize % PAGE;
        let wanted = if known == 0 { 256 } else { PAGE };
        path.resize(known + rest_of_page.min(wanted), 0);
        read(question, at, &mut path[known..])?;
        if let Some(end) = path[known..].iter().position(|&byte| byte == 0) {
            path.truncate(known + end);
            return CString::new(path).map_err(|_| Errno::INVAL);
        }
    }
    Err(Errno::NAMETOOLONG)
}

/// The hard limit that stands for the credentials of who asks, set to `new` if there is one. It can only fall.
pub(super) fn mark(question: &Question, new: Option<u64>) -> Result<u64> {
    let wanted = new.map(|mark| libc::rlimit64 {
        rlim_cur: mark,
        rlim_max: mark,
    });
    let wanted = wanted.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let mut old = libc::rlimit64 {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both are null or live structures.
    sys::check(libc::c_long::from(unsafe {
        libc::prlimit64(
            question.pid as i32,
            libc::RLIMIT_LOCKS,
            wanted,
            &raw mut old,
        )
    }))?;
    Ok(old.rlim_max)
}
