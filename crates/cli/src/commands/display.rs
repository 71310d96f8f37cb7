//! How progress is shown.

use std::io::IsTerminal;

use anyhow::Result;
use kiln_engine::BuildError;
use kiln_progress::{Colors, Mode};

/// The display that the command line asks for.
pub(super) fn mode(quiet: bool, progress: &str) -> Result<Mode> {
    if quiet {
        return Ok(Mode::Quiet);
    }
    Ok(match progress {
        "auto" if std::io::stderr().is_terminal() => Mode::Tty,
        "auto" | "plain" => Mode::Plain,
        "tty" => Mode::Tty,
        "quiet" | "none" => Mode::Quiet,
        "rawjson" => Mode::RawJson,
        other => {
            let text = format!("--progress {other}: expected auto, plain, tty, quiet or rawjson");
            return Err(BuildError::new(text).into());
        }
    })
}

/// The display on standard error.
pub(super) fn options(mode: Mode) -> kiln_progress::Options {
    let size = || {
        let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok();
        size.map_or((0, 0), |size| (size.ws_col, size.ws_row))
    };
    let colors = Colors::from_settings(
        crate::context::variable("NO_COLOR").as_deref(),
        crate::context::variable("BUILDKIT_COLORS").as_deref(),
    );
    let lines =
        crate::context::variable("BUILDKIT_TTY_LOG_LINES").and_then(|lines| lines.parse().ok());
    let mut options = kiln_progress::Options::new(mode, Box::new(std::io::stderr()));
    options.size = Box::new(size);
    options.colors = colors;
    options.log_lines = lines.unwrap_or(options.log_lines);
    options
}
