//! `kiln build`.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use kiln_engine::BuildError;
use kiln_progress::{Colors, Mode, display};

use super::build_options;
use crate::args::BuildArgs;
use crate::context::Place;
use crate::format::{complain, say};

pub(super) fn build(place: &Place, args: &BuildArgs) -> Result<ExitCode> {
    let request = build_options::request(args)?;
    let mode = mode(args)?;
    let engine = place.engine()?;
    let cancel = crate::signals::give_up_on_signal()?;
    let display = display(options(mode));
    let built = engine.build(&request, &display, &cancel);
    // Who closes standard error does not want to see it.
    let _ = display.finish();
    // Whatever comes next, nothing of the build may still run.
    let worked = engine.worker.is_running();
    if worked && built.is_err() {
        engine.worker.end();
    }
    let built = match built {
        Ok(built) => built,
        Err(error) => {
            if let Some(excerpt) = &error.excerpt {
                complain(excerpt.trim_end_matches('\n'));
            }
            complain(&format!("ERROR: failed to build: failed to solve: {error}"));
            if let Some(hint) = &error.hint {
                complain(&format!("hint: {hint}"));
            }
            return Ok(ExitCode::from(if error.canceled { 130 } else { 1 }));
        }
    };
    if let Some(path) = &args.iidfile {
        std::fs::write(path, built.image.config.to_string())
            .with_context(|| path.display().to_string())?;
    }
    if args.quiet || mode == Mode::Quiet {
        say(&built.image.config.to_string());
    }
    if worked {
        engine.sweep()?;
        crate::worker::settle_later(&place.root);
    }
    Ok(ExitCode::SUCCESS)
}

fn mode(args: &BuildArgs) -> Result<Mode> {
    if args.quiet {
        return Ok(Mode::Quiet);
    }
    Ok(match args.progress.as_str() {
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

fn options(mode: Mode) -> kiln_progress::Options {
    let size = || {
        let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok();
        size.map_or((0, 0), |size| (size.ws_col, size.ws_row))
    };
    let variable = |name: &str| std::env::var(name).ok();
    let colors = Colors::from_settings(
        variable("NO_COLOR").as_deref(),
        variable("BUILDKIT_COLORS").as_deref(),
    );
    let lines = variable("BUILDKIT_TTY_LOG_LINES").and_then(|lines| lines.parse().ok());
    let mut options = kiln_progress::Options::new(mode, Box::new(std::io::stderr()));
    options.size = Box::new(size);
    options.colors = colors;
    options.log_lines = lines.unwrap_or(options.log_lines);
    options
}
