//! `kiln ps`, `kiln rm` and `kiln diff`.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use kiln_engine::{BuildError, Change, ContainerInfo, Engine};
use rustix::process::{Pid, Signal, kill_process};

use crate::container_args::{PsArgs, RmArgs};
use crate::context::Place;
use crate::format::{ago, complain, say, table};

pub(super) fn ps(place: &Place, args: &PsArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    let mut containers = engine.containers()?;
    containers.retain(|it| args.all || it.running);
    let id = |it: &ContainerInfo| {
        if args.no_trunc {
            it.id.clone()
        } else {
            it.id[..12].to_owned()
        }
    };
    let command = |it: &ContainerInfo| {
        let line = it.args.join(" ");
        let long = !args.no_trunc && line.chars().count() > 20;
        if long {
            format!("\"{}…\"", line.chars().take(19).collect::<String>())
        } else {
            format!("\"{line}\"")
        }
    };
    if args.quiet {
        for it in &containers {
            say(&id(it));
        }
    } else if args.format.is_some() {
        for it in &containers {
            let line = serde_json::json!({
                "ID": id(it), "Image": it.image, "Command": command(it), "RunningFor": ago(it.created),
                "State": state(it), "Status": status(it), "Ports": "", "Names": it.name,
            });
            say(&line.to_string());
        }
    } else {
        let row = |it: &ContainerInfo| {
            vec![
                id(it),
                it.image.clone(),
                command(it),
                ago(it.created),
                status(it),
                String::new(),
                it.name.clone(),
            ]
        };
        let rows: Vec<_> = containers.iter().map(row).collect();
        table(
            &[
                "CONTAINER ID",
                "IMAGE",
                "COMMAND",
                "CREATED",
                "STATUS",
                "PORTS",
                "NAMES",
            ],
            &rows,
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn state(container: &ContainerInfo) -> &'static str {
    match (container.running, container.ended) {
        (true, _) => "running",
        (false, Some(_)) => "exited",
        (false, None) => "created",
    }
}

fn status(container: &ContainerInfo) -> String {
    match (container.running, container.ended) {
        (true, _) => "Up".to_owned(),
        (false, Some((code, at))) => format!("Exited ({code}) {}", ago(at)),
        (false, None) => "Created".to_owned(),
    }
}

pub(super) fn rm(place: &Place, args: &RmArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    let mut code = ExitCode::SUCCESS;
    for name in &args.containers {
        let removed = match engine.container(name) {
            Err(error) if args.force && error.message.starts_with("no such container") => {
                complain(&error.to_string());
                continue;
            }
            Ok(container) if args.force && container.running => kill(&engine, &container),
            other => other.and_then(|container| engine.remove_container(&container)),
        };
        match removed {
            Ok(()) => say(name),
            Err(error) => {
                complain(&format!("ERROR: {error}"));
                if let Some(hint) = &error.hint {
                    complain(&format!("hint: {hint}"));
                }
                code = ExitCode::FAILURE;
            }
        }
    }
    engine.sweep_containers()?;
    engine.sweep()?;
    Ok(code)
}

/// Ends a container that runs, and removes it.
fn kill(engine: &Engine, container: &ContainerInfo) -> Result<(), BuildError> {
    const WITHIN: Duration = Duration::from_secs(10);
    let ends = || {
        let start = Instant::now();
        while start.elapsed() < WITHIN {
            match engine
                .containers()?
                .into_iter()
                .find(|it| it.id == container.id)
            {
                Some(still) if still.running => std::thread::sleep(Duration::from_millis(10)),
                left => return Ok(Some(left)),
            }
        }
        Ok::<_, BuildError>(None)
    };
    let pid = engine.store.container_holder(&container.id)?;
    let pid = pid.and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let Some(pid) = pid else {
        let text = format!(
            "cannot end container {:?}: the process that runs it cannot be seen from here",
            container.name
        );
        return Err(
            BuildError::new(text).with_hint("end its kiln run or kiln start where that runs")
        );
    };
    for signal in [Signal::ALARM, Signal::KILL] {
        // One that has just ended needs none.
        let _ = kill_process(pid, signal);
        if let Some(left) = ends()? {
            return left.map_or(Ok(()), |left| engine.remove_container(&left));
        }
    }
    Err(BuildError::new(format!(
        "container {:?} still runs after {} seconds",
        container.name,
        2 * WITHIN.as_secs()
    )))
}

pub(super) fn diff(place: &Place, name: &str) -> Result<ExitCode> {
    let engine = place.engine()?;
    for (change, path) in engine.changes(&engine.container(name)?)? {
        let letter = match change {
            Change::Added => 'A',
            Change::Changed => 'C',
            Change::Deleted => 'D',
        };
        say(&format!("{letter} {path}"));
    }
    Ok(ExitCode::SUCCESS)
}
