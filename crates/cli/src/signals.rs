//! Ctrl-C and friends.

use kiln_engine::CancelFlag;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// The first signal gives up the build in order; the second ends the process at once.
pub(crate) fn give_up_on_signal() -> std::io::Result<CancelFlag> {
    let cancel = CancelFlag::default();
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        // Registered first, so that it sees the flag as it was before this signal.
        signal_hook::flag::register_conditional_shutdown(signal, 130, cancel.raw())?;
        signal_hook::flag::register(signal, cancel.raw())?;
    }
    Ok(cancel)
}
