//! Diff ids that are found while the next steps run.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Layers that are being digested beside the build.
#[derive(Default)]
pub(crate) struct Digesting {
    /// One at a time: the steps need the processors more.
    pub(crate) turn: Mutex<()>,
    under_way: Mutex<usize>,
    ended: Condvar,
}

impl Digesting {
    fn under_way(&self) -> MutexGuard<'_, usize> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn begin(&self) -> Begun<'_> {
        *self.under_way() += 1;
        Begun(self)
    }

    /// Waits until all have ended, and looks after the build meanwhile.
    pub(crate) fn wait(&self, look: impl Fn()) {
        let mut under_way = self.under_way();
        while *under_way > 0 {
            look();
            let waited = self
                .ended
                .wait_timeout(under_way, Duration::from_millis(50));
            under_way = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// One that is counted until it is dropped, however its thread ends.
pub(crate) struct Begun<'a>(&'a Digesting);

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        *self.0.under_way() -= 1;
        self.0.ended.notify_all();
    }
}
