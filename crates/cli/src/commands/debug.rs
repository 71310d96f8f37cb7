//! A shell in a failed step, and `kiln debug`: one in what any step made.

use std::ffi::OsString;
use std::process::ExitCode;

use anyhow::Result;
use kiln_engine::{Engine, Ran, StepState};
use rustix::termios::isatty;

use super::{build_options, display, run};
use crate::args::DebugArgs;
use crate::context::Place;
use crate::format::complain;

pub(super) fn debug(place: &Place, args: &DebugArgs) -> Result<ExitCode> {
    let request = build_options::request(&args.build)?;
    let mode = display::mode(args.build.quiet, &args.build.progress)?;
    let engine = place.engine()?;
    let cancel = crate::signals::give_up_on_signal()?;
    let display = kiln_progress::display(display::options(mode));
    let reached = engine.build_step(&args.step, &request, &display, &cancel);
    // Who closes standard error does not want to see it.
    let _ = display.finish();
    let state = reached.inspect_err(|error| {
        if let Some(excerpt) = &error.excerpt {
            complain(excerpt.trim_end_matches('\n'));
        }
    })?;
    let ran = shell(&engine, &state, &args.build.invoke)?;
    drop(state);
    engine.sweep()?;
    crate::worker::settle_later(place);
    Ok(ExitCode::from(ran.code().clamp(0, 255) as u8))
}

/// A shell for the user, in a terminal if the user is in one.
pub(super) fn shell(engine: &Engine, state: &StepState, command: &str) -> Result<Ran> {
    let terminal = isatty(std::io::stdin()) && isatty(std::io::stdout());
    let args: Vec<_> = command.split_whitespace().map(str::to_owned).collect();
    complain(&format!(
        "{command} runs in the step; what it changes is thrown away when it ends"
    ));
    run::attached(engine, terminal, true, |stdio| {
        engine.run_in(state, &args, terminal, stdio)
    })
}

/// `buildx debug --invoke /bin/sh --on=error build .` in Kiln's words.
pub(super) fn buildx_names(args: &[OsString]) -> Option<Vec<OsString>> {
    let word = |at: usize| args.get(at).and_then(|arg| arg.to_str());
    if (word(1), word(2)) != (Some("buildx"), Some("debug")) {
        return None;
    }
    let mut words = vec![args[0].clone(), "build".into(), "--on-error=shell".into()];
    let mut rest = args[3..].iter();
    while let Some(arg) = rest.next() {
        match arg.to_str() {
            Some("build" | "b") => break,
            // It is opened on errors only.
            Some("--on") => drop(rest.next()),
            Some(option) if option.starts_with("--on=") => {}
            _ => words.push(arg.clone()),
        }
    }
    words.extend(rest.cloned());
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_of_buildx_debug_come_before_build() {
        let line = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            buildx_names(&line(
                "kiln buildx debug --invoke /bin/bash --on=error build -t x ."
            )),
            Some(line(
                "kiln build --on-error=shell --invoke /bin/bash -t x ."
            ))
        );
        assert_eq!(
            buildx_names(&line("kiln buildx debug --on error build .")),
            Some(line("kiln build --on-error=shell ."))
        );
        assert_eq!(buildx_names(&line("kiln buildx build .")), None);
    }
}
