//! How progress is shown.

use std::io::IsTerminal;
use std::time::Duration;

use anyhow::Result;
use kiln_engine::BuildError;
use kiln_progress::{Colors, Mode};

use crate::context::variable;

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
    // What is wrong with the files was told before.
    let (colors, lines) =
        crate::settings::screen(&crate::context::config_files()).unwrap_or_default();
    let colors = variable("BUILDKIT_COLORS").or(colors);
    let none = colors.as_deref().filter(|colors| *colors == "none");
    let no_color = variable("NO_COLOR");
    let colors = Colors::from_settings(no_color.as_deref().or(none), colors.as_deref());
    let given = variable("BUILDKIT_TTY_LOG_LINES").and_then(|lines| lines.parse().ok());
    let lines = given.or(lines);
    let mut options = kiln_progress::Options::new(mode, Box::new(std::io::stderr()));
    options.size = Box::new(size);
    options.colors = colors;
    options.log_lines = lines.unwrap_or(options.log_lines);
    let rate = variable("TTY_DISPLAY_RATE").and_then(|rate| rate.parse().ok());
    // Faster than this nobody can look.
    let rate = rate.map(|rate: u64| Duration::from_millis(rate.clamp(10, 60_000)));
    options.pace = rate.unwrap_or(options.pace);
    options.short_titles = variable("PROGRESS_NO_TRUNC").as_deref() == Some("0");
    options
}
