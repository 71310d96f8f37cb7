//! A request to stop that reaches every blocking wait.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

/// A token that is cancelled once and stays so. Clones are the same token.
///
/// Its descriptor becomes readable on cancellation, so that it can stand beside others in a `poll`.
#[derive(Debug, Clone)]
pub struct Cancel {
    event: Arc<OwnedFd>,
}

impl Cancel {
    /// A token that is not cancelled.
    ///
    /// # Errors
    /// When the process has no descriptor left.
    pub fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self {
            event: Arc::new(event),
        })
    }

    /// Cancels. Calling it again changes nothing. Safe to call from a signal handler.
    pub fn cancel(&self) {
        // Nobody reads the counter, so the descriptor stays readable; it overflows (EAGAIN) only when it is set already.
        let _ = rustix::io::write(&*self.event, &1u64.to_ne_bytes());
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.wait(Duration::ZERO)
    }

    /// Waits until it is cancelled or the time is over; says whether it is cancelled.
    pub fn wait(&self, timeout: Duration) -> bool {
        let until = Instant::now().checked_add(timeout);
        loop {
            let mut fds = [PollFd::new(&*self.event, PollFlags::IN)];
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            let left = left.and_then(|left| left.try_into().ok());
            match poll(&mut fds, left.as_ref()) {
                Err(Errno::INTR) => {}
                outcome => return matches!(outcome, Ok(1..)),
            }
        }
    }
}

impl AsFd for Cancel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_cancelled_for_all_clones() {
        let token = Cancel::new().unwrap();
        let clone = token.clone();
        assert!(!token.is_cancelled());
        assert!(!token.wait(Duration::from_millis(5)));
        let waiter = std::thread::spawn(move || clone.wait(Duration::from_secs(10)));
        token.cancel();
        token.cancel();
        assert!(waiter.join().unwrap());
        assert!(token.is_cancelled());
    }
}
