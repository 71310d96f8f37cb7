//! Process 1 of a container that is asked for one: collects the processes that others leave, and passes signals on.
//!
//! It is what is left of the worker's copy when the program is started as its child, so that no other program is needed.
//! The rules of [`child`](crate::child) hold: raw system calls only.
#![allow(
    unsafe_code,
    reason = "fork, signals and waiting without the C library's state"
)]

use std::os::fd::RawFd;
use std::ptr;

use rustix::io::Result;

use crate::sys;

/// All signals.
const ALL: u64 = u64::MAX;

/// Forks. Returns in the child, which is to become the program; the parent stays process 1, closes `report`, and ends with
/// the child's code.
pub(crate) fn split(terminal: bool, report: RawFd) -> Result<()> {
    // SAFETY: only numbers and a text. The memory is the worker's: no process of the container may look into it, nor open
    // the worker's program through `/proc/1/exe`. Executing the program ends this for the child.
    sys::check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }.into())?;
    // SAFETY: a text that ends with a null. Executing the program gives the child another name.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"init".as_ptr(), 0, 0, 0) };
    sys::set_signal_mask(ALL)?;
    // SAFETY: a plain fork on a copy of this stack.
    let child = sys::check(unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::SIGCHLD,
            0usize,
            0usize,
            0usize,
            0usize,
        )
    })?;
    if child == 0 {
        return become_foreground(terminal);
    }
    // SAFETY: the descriptor belongs to nobody else in this process.
    unsafe { libc::close(report) };
    attend(child as libc::pid_t)
}

/// A group of its own, which the terminal's keys reach.
fn become_foreground(terminal: bool) -> Result<()> {
    // SAFETY: only numbers, and one that lives through the call.
    unsafe {
        sys::check(libc::setpgid(0, 0).into())?;
        if terminal {
            let group = libc::getpid();
            // All signals are blocked, so that this does not stop who asks from the background.
            sys::check(libc::ioctl(0, libc::TIOCSPGRP, &raw const group).into())?;
        }
    }
    sys::set_signal_mask(0)
}

/// Waits for signals until the child ends. The kernel keeps blocked ones for process 1, which it would not get otherwise.
fn attend(child: libc::pid_t) -> ! {
    let mask = ALL;
    loop {
        // SAFETY: a mask of the size that the kernel reads; no information is asked for.
        let signal = unsafe {
            libc::syscall(
                libc::SYS_rt_sigtimedwait,
                &raw const mask,
                ptr::null_mut::<u8>(),
                ptr::null::<u8>(),
                size_of::<u64>(),
            )
        };
        match signal as i32 {
            libc::SIGCHLD => collect(child),
            // SAFETY: only numbers. One that has ended gets none.
            1.. => unsafe {
                libc::kill(child, signal as i32);
            },
            _ => {}
        }
    }
}

/// Takes the ends of all children that have ended; with the one that counts this process ends.
fn collect(child: libc::pid_t) {
    loop {
        let mut status = 0;
        // SAFETY: writes one number that lives through the call.
        match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
            ended if ended == child => {
                let code = if libc::WIFSIGNALED(status) {
                    128 + libc::WTERMSIG(status)
                } else {
                    libc::WEXITSTATUS(status)
                };
                // SAFETY: ends the process without running anything of its parent's.
                unsafe { libc::_exit(code) }
            }
            1.. => {}
            _ => return,
        }
    }
}
