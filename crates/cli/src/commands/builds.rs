//! `kiln history ls|logs|inspect|rm`: the last builds.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use anyhow::{Result, bail};
use kiln_engine::BuildError;
use kiln_store::{Build, BuildOutcome, StepState, Store};
use kiln_template::{Fields, Shape, Value};
use serde_json::json;

use super::why;
use crate::args::{BuildsArgs, HistoryCommand};
use crate::context::Place;
use crate::format::{ago, complain, rfc3339};
use crate::listing::{Listing, print_one};

/// What `kiln history ls` shows.
const BUILDS: Listing = Listing {
    heads: &[
        ("ID", "BUILD ID"),
        ("Name", "NAME"),
        ("Status", "STATUS"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedSince", "CREATED"),
        ("Duration", "DURATION"),
        ("Cached", "CACHED"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("Error", "ERROR"),
    ],
    usual: &["ID", "Name", "Status", "CreatedSince", "Duration", "Cached"],
};

/// As much of a name as the table shows.
const SHOWN: usize = 40;

pub(super) fn builds(place: &Place, command: HistoryCommand) -> Result<ExitCode> {
    let engine = place.engine()?;
    let store = &engine.store;
    match command {
        HistoryCommand::Ls(args) => list(store, &args)?,
        HistoryCommand::Logs { build, .. } => {
            let build = why::find(store, build.as_deref())?;
            let Some(mut log) = store.read_log(&build)? else {
                let text = format!("the log of build {} is not kept any more", build.id);
                return Err(BuildError::new(text)
                    .with_hint("logs of the last builds are kept as long as there is room for them")
                    .into());
            };
            let mut out = std::io::stdout().lock();
            let mut buffer = vec![0; 1 << 16];
            loop {
                let got = log.read(&mut buffer)?;
                if got == 0 || out.write_all(&buffer[..got]).is_err() {
                    break;
                }
            }
        }
        HistoryCommand::Inspect { build, format, .. } => {
            let build = why::find(store, build.as_deref())?;
            match format {
                Some(format) => print_one(&format, &document(&build))?,
                None => why::say_build(&build, true),
            }
        }
        HistoryCommand::Rm { builds, all, .. } => {
            let gone = store.forget_builds((!all).then_some(&builds[..]))?;
            if !all && gone < builds.len() {
                complain("note: some of these builds were not remembered");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn status(build: &Build) -> &'static str {
    match build.build.outcome {
        BuildOutcome::Done => "Completed",
        BuildOutcome::Failed => "Error",
        BuildOutcome::Canceled => "Canceled",
    }
}

/// What the build made or was made of, in a few words.
fn name(build: &Build) -> String {
    if let Some(name) = build.build.names.first() {
        let short = name.strip_prefix("docker.io/").unwrap_or(name);
        return short.strip_prefix("library/").unwrap_or(short).to_owned();
    }
    let context = build.build.origin.lines().next().unwrap_or_default();
    let last = context.trim_end_matches('/').rsplit('/').next();
    last.unwrap_or_default().to_owned()
}

fn cached(build: &Build) -> (usize, usize) {
    let steps = build
        .build
        .steps
        .iter()
        .filter(|step| !step.title.is_empty());
    steps.fold((0, 0), |(cached, all), step| {
        (
            cached + usize::from(step.state == StepState::Cached),
            all + 1,
        )
    })
}

fn list(store: &Store, args: &BuildsArgs) -> Result<()> {
    let mut builds = store.builds(None, usize::MAX)?;
    for filter in &args.filters {
        match filter.split_once('=') {
            Some(("status", wanted)) => {
                builds.retain(|build| status(build).eq_ignore_ascii_case(wanted));
            }
            _ => bail!("--filter {filter}: expected status=completed, error or canceled"),
        }
    }
    let rows = builds.iter().map(|build| {
        let (hits, steps) = cached(build);
        let mut name = name(build);
        if !args.no_trunc && name.chars().count() > SHOWN {
            name = name.chars().take(SHOWN - 1).chain(['…']).collect();
        }
        let mut fields = Fields::new(Shape::Row);
        fields.add("ID", build.id.to_string());
        fields.add("Name", name);
        fields.add("Status", status(build));
        fields.add("CreatedAt", rfc3339(build.build.started));
        fields.hide("CreatedSince", ago(build.build.started));
        fields.add("Duration", why::seconds(build.build.took));
        fields.add("Cached", format!("{hits}/{steps}"));
        let image = build.build.image.map(|image| image.to_string());
        fields.add("Image", image.unwrap_or_default());
        fields.add("Command", build.build.command.join(" "));
        fields.add("Error", build.build.error.clone().unwrap_or_default());
        fields
    });
    BUILDS.print(args.format.as_deref(), args.quiet, rows)
}

fn document(build: &Build) -> Value {
    let it = &build.build;
    let (hits, all) = cached(build);
    let steps: Vec<_> = it
        .steps
        .iter()
        .filter(|step| !step.title.is_empty())
        .map(|step| {
            json!({
                "Name": step.title,
                "Stage": step.stage,
                "Status": why::state(step.state),
                "Seconds": step.took.map(|took| took.as_secs_f64()),
                "Reason": step.reason,
                "Changes": step.changes,
            })
        })
        .collect();
    super::inspect::structs(json!({
        "ID": build.id.to_string(),
        "Name": name(build),
        "Names": it.names,
        "Command": it.command,
        "Status": status(build),
        "StartedAt": rfc3339(it.started),
        "Seconds": it.took.as_secs_f64(),
        "Image": it.image,
        "Error": it.error,
        "NumCachedSteps": hits,
        "NumTotalSteps": all,
        "Steps": steps,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_is_named_after_its_image_or_its_folder() {
        let mut build = Build {
            id: 1,
            build: kiln_store::NewBuild {
                origin: "/home/x/app\n/home/x/app/Dockerfile".to_owned(),
                command: Vec::new(),
                names: Vec::new(),
                started: std::time::SystemTime::UNIX_EPOCH,
                took: std::time::Duration::ZERO,
                outcome: BuildOutcome::Done,
                error: None,
                image: None,
                log: None,
                steps: Vec::new(),
            },
        };
        assert_eq!(name(&build), "app");
        build.build.names = vec!["docker.io/library/web:1".to_owned()];
        assert_eq!(name(&build), "web:1");
    }
}
