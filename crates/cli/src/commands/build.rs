//! `kiln build`.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use kiln_engine::BuildError;
use kiln_progress::Mode;

use super::call::Call;
use super::{build_options, classic, display, outputs, summary, why};
use crate::args::BuildArgs;
use crate::context::Place;
use crate::format::{complain, say};

pub(super) fn build(place: &Place, args: &BuildArgs) -> Result<ExitCode> {
    if let Some(call) = Call::of(args)? {
        return call.answer(place, args);
    }
    args.docker.check()?;
    let request = build_options::request(args)?;
    let mode = display::mode(args.quiet, &args.progress)?;
    let engine = place.engine()?;
    let cancel = crate::signals::give_up_on_signal()?;
    let classic = classic::options(args, &request).filter(|_| !args.dry_run);
    let is_classic = classic.is_some();
    let options = classic.unwrap_or_else(|| display::options(mode));
    let display = kiln_progress::display(options);
    if args.dry_run {
        let looked = engine.look_ahead(&request, &display, &cancel);
        let _ = display.finish();
        return match looked {
            Ok(steps) => {
                why::say_plan(&steps);
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => Ok(failed(&error)),
        };
    }
    let built = engine.build(&request, &display, &cancel);
    // Who closes standard error does not want to see it.
    let _ = display.finish();
    // Whatever comes next, nothing of the build may still run.
    let worked = engine.worker.is_running();
    let asked = matches!(&built, Err(error) if error.state.is_some());
    if worked && built.is_err() && !asked {
        engine.worker.end();
    }
    if args.explain
        && let Some(build) = engine.latest_build(&request)?
    {
        why::complain_all(&build.build.steps);
    }
    let built = match built {
        Ok(built) => built,
        Err(error) => {
            let code = failed(&error);
            if let Some(state) = &error.state {
                super::debug::shell(&engine, state, &args.invoke)?;
                engine.worker.end();
                engine.sweep()?;
            }
            return Ok(code);
        }
    };
    if let Some(path) = &args.metadata_file {
        let metadata = outputs::metadata(&engine, &built, &request.outputs)?;
        std::fs::write(path, metadata).with_context(|| path.display().to_string())?;
    }
    if let Some(image) = &built.image {
        if let Some(path) = &args.iidfile {
            std::fs::write(path, image.config.to_string())
                .with_context(|| path.display().to_string())?;
        }
        if args.quiet || mode == Mode::Quiet {
            say(&image.config.to_string());
        }
    }
    if is_classic {
        classic::say_end(&built, &request.outputs);
    } else if args.summary || matches!(mode, Mode::Tty | Mode::Plain) {
        summary::tell(&engine, &request, &built, args.summary)?;
    }
    if mode != Mode::Quiet
        && !is_classic
        && let Some(hint) = outputs::hint(args)
    {
        complain(&format!("hint: {hint}"));
    }
    if worked {
        engine.sweep()?;
    }
    if worked || engine.store.is_log_long() {
        crate::worker::settle_later(place);
    }
    Ok(ExitCode::SUCCESS)
}

/// Tells why a build failed.
pub(super) fn failed(error: &BuildError) -> ExitCode {
    complain(error.told().trim_end_matches('\n'));
    ExitCode::from(if error.canceled { 130 } else { 1 })
}
