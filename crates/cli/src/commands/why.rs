//! `kiln why`, and what `kiln build --dry-run` and `--explain` print: why steps are executed.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use kiln_engine::BuildError;
use kiln_store::{Build, BuildOutcome, BuildStep, StepState, Store};

use super::find_target;
use crate::args::WhyArgs;
use crate::context::Place;
use crate::format::{ago, complain, say, short};

pub(super) fn why(place: &Place, args: &WhyArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    let found = find(&engine.store, args.build.as_deref())?;
    let Build { id, build } = &found;
    let steps: Vec<&BuildStep> = build
        .steps
        .iter()
        .filter(|step| !step.title.is_empty())
        .collect();
    if let Some(wanted) = &args.step {
        let found: Vec<&BuildStep> = steps
            .iter()
            .copied()
            .filter(|it| is_meant(it, wanted))
            .collect();
        if found.is_empty() {
            let error = BuildError::new(format!("build {id} has no step {wanted:?}"));
            return Err(error.with_hint("see its steps with kiln why").into());
        }
        for step in found {
            say(&line(step));
            for change in all(step) {
                say(&format!("  {change}"));
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    say_build(&found, false);
    Ok(ExitCode::SUCCESS)
}

/// A build with its steps; `whole`: with everything that was different of each.
pub(super) fn say_build(Build { id, build }: &Build, whole: bool) {
    let outcome = match build.outcome {
        BuildOutcome::Done => "done",
        BuildOutcome::Failed => "failed",
        BuildOutcome::Canceled => "canceled",
    };
    let image = build
        .image
        .map_or_else(String::new, |image| format!(", image {}", short(&image)));
    let (when, took) = (ago(build.started), seconds(build.took));
    say(&format!("build {id}: {outcome} in {took}, {when}{image}"));
    say(&format!("  {}", build.command.join(" ")));
    if let Some(error) = &build.error {
        say(&format!("  {error}"));
    }
    for step in build.steps.iter().filter(|step| !step.title.is_empty()) {
        say(&line(step));
        if whole {
            for change in all(step) {
                say(&format!("  {change}"));
            }
        } else if let Some(reason) = &step.reason {
            say(&format!("  {reason}"));
        }
    }
}

/// A build by number or by its image; the last one without either.
pub(super) fn find(store: &Store, wanted: Option<&str>) -> Result<Build> {
    let Some(wanted) = wanted else {
        return store.find_build(None)?.ok_or_else(|| {
            BuildError::new("no build is remembered")
                .with_hint("the last 100 builds of this store are")
                .into()
        });
    };
    if let Ok(id) = wanted.parse()
        && let Some(build) = store.find_build(Some(id))?
    {
        return Ok(build);
    }
    let target = find_target(store, wanted)?;
    // A build for several platforms is remembered by its index.
    let image = store.image(target)?;
    let config = Some(image.map_or(target, |image| image.info.config));
    let builds = store.builds(None, usize::MAX)?;
    let found = builds
        .into_iter()
        .find(|it| it.build.image.is_some() && it.build.image == config);
    found.ok_or_else(|| {
        BuildError::new(format!("{wanted}: no build of this image is remembered"))
            .with_hint("the last 100 builds of this store are")
            .into()
    })
}

/// `2/4` and `build 2/4` are places, everything else is looked for in the instruction.
fn is_meant(step: &BuildStep, wanted: &str) -> bool {
    let place = step
        .title
        .strip_prefix('[')
        .and_then(|title| title.split_once("] "));
    place.is_some_and(|(place, _)| place == wanted || place.ends_with(&format!(" {wanted}")))
        || step.title.contains(wanted)
}

/// A step with what became of it.
fn line(step: &BuildStep) -> String {
    let took = step
        .took
        .map_or_else(String::new, |took| format!(" {}", seconds(took)));
    let mut state = state(step.state).to_owned();
    if matches!(step.state, StepState::Done | StepState::Failed) {
        state += &took;
    }
    format!("{} {state}", step.title)
}

pub(super) fn state(state: StepState) -> &'static str {
    match state {
        StepState::Cached => "CACHED",
        StepState::Done => "DONE",
        StepState::Failed => "FAILED",
        StepState::Canceled => "CANCELED",
        StepState::NotReached => "NOT REACHED",
        StepState::Would => "WOULD RUN",
        StepState::May => "MAY RUN",
    }
}

/// All that was different, or the reason when that is all there is.
fn all(step: &BuildStep) -> Vec<&str> {
    if step.changes.is_empty() {
        step.reason.as_deref().into_iter().collect()
    } else {
        step.changes.iter().map(String::as_str).collect()
    }
}

/// What a build would do, to standard output.
pub(super) fn say_plan(steps: &[BuildStep]) {
    let mut expected = Duration::ZERO;
    let mut counts = [0; 3];
    for step in steps.iter().filter(|step| !step.title.is_empty()) {
        let last = match step.took {
            Some(took) if step.state != StepState::Cached => {
                expected += took;
                format!(" ({} last time)", seconds(took))
            }
            _ => String::new(),
        };
        counts[match step.state {
            StepState::Would => 0,
            StepState::May => 1,
            _ => 2,
        }] += 1;
        let what = match step.state {
            StepState::Would => "would run",
            StepState::May => "may run",
            _ => "cached",
        };
        let reason = step
            .reason
            .as_ref()
            .map_or_else(String::new, |it| format!(": {it}"));
        say(&format!("{} {what}{reason}{last}", step.title));
    }
    let [would, may, cached] = counts;
    let time = if expected.is_zero() {
        String::new()
    } else {
        format!("; together they took {} last time", seconds(expected))
    };
    say(&format!(
        "{would} would run, {may} may run, {cached} cached{time}"
    ));
}

/// All that was different of each executed step, to standard error.
pub(super) fn complain_all(steps: &[BuildStep]) {
    for step in steps.iter().filter(|step| step.reason.is_some()) {
        complain(&step.title);
        for change in all(step) {
            complain(&format!("  {change}"));
        }
    }
}

pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}
