//! `kiln stop`, `kiln kill` and `kiln wait`: the end of containers that run in the foreground of other processes.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Result;
use kiln_engine::{BuildError, ContainerInfo, Engine};
use rustix::process::{Pid, Signal, kill_process};

use crate::container_args::{KillArgs, StopArgs};
use crate::context::Place;
use crate::format::{complain, say};

/// What the process that runs a container passes on, with its names; the last one it takes for SIGKILL.
const SIGNALS: [(&str, i32, Signal); 8] = [
    ("HUP", 1, Signal::HUP),
    ("INT", 2, Signal::INT),
    ("QUIT", 3, Signal::QUIT),
    ("USR1", 10, Signal::USR1),
    ("USR2", 12, Signal::USR2),
    ("TERM", 15, Signal::TERM),
    ("CONT", 18, Signal::CONT),
    ("KILL", 9, Signal::ALARM),
];

/// A signal by its name or number, as the process that runs the container is sent it.
pub(super) fn signal(option: &str, text: &str) -> Result<Signal, BuildError> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let found = SIGNALS
        .iter()
        .find(|(known, number, _)| *known == name || number.to_string() == name);
    found.map(|(.., signal)| *signal).ok_or_else(|| {
        BuildError::new(format!("{option} {text}: that signal is not passed on"))
            .with_hint("the signals are HUP, INT, QUIT, KILL, USR1, USR2, TERM and CONT")
    })
}

/// The process that runs a container.
fn holder(engine: &Engine, container: &ContainerInfo) -> Result<Pid, BuildError> {
    let pid = engine.store.container_holder(&container.id)?;
    pid.and_then(|pid| Pid::from_raw(pid.cast_signed()))
        .ok_or_else(|| {
            let text = format!(
                "cannot end container {:?}: the process that runs it cannot be seen from here",
                container.name
            );
            BuildError::new(text).with_hint("end its kiln run or kiln start where that runs")
        })
}

/// Whether a container has ended.
enum End {
    Runs,
    /// What is left of it.
    Over(Option<Box<ContainerInfo>>),
}

/// Waits for a container's end, for as long as is said.
fn end_of(engine: &Engine, id: &str, within: Option<Duration>) -> Result<End, BuildError> {
    let start = Instant::now();
    loop {
        let mut all = engine.containers()?.into_iter();
        match all.find(|it| it.id == id) {
            Some(still) if still.running => {}
            left => return Ok(End::Over(left.map(Box::new))),
        }
        if within.is_some_and(|within| start.elapsed() >= within) {
            return Ok(End::Runs);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Does something with each container, and says its name, or why it was not possible.
fn each(
    place: &Place,
    names: &[String],
    mut act: impl FnMut(&Engine, &ContainerInfo) -> Result<String, BuildError>,
) -> Result<ExitCode> {
    let engine = place.engine()?;
    let mut code = ExitCode::SUCCESS;
    for name in names {
        let done = engine.container(name).and_then(|it| act(&engine, &it));
        match done {
            Ok(answer) if answer.is_empty() => say(name),
            Ok(answer) => say(&answer),
            Err(error) => {
                complain(&format!("ERROR: {error}"));
                if let Some(hint) = &error.hint {
                    complain(&format!("hint: {hint}"));
                }
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

pub(super) fn stop(place: &Place, args: &StopArgs) -> Result<ExitCode> {
    /// docker's own patience.
    const USUAL: i64 = 10;
    let asked = args.signal.as_deref();
    let asked = asked.map(|text| signal("--signal", text)).transpose()?;
    each(place, &args.containers, |engine, container| {
        if !container.running {
            return Ok(String::new());
        }
        let own = signal("STOPSIGNAL", &container.config.stop_signal).ok();
        let first = asked.or(own).unwrap_or(Signal::TERM);
        let seconds = args.timeout.or(container.config.stop_timeout);
        let within = u64::try_from(seconds.unwrap_or(USUAL)).ok();
        // One that has just ended needs none.
        let _ = kill_process(holder(engine, container)?, first);
        let end = end_of(engine, &container.id, within.map(Duration::from_secs))?;
        if matches!(end, End::Runs) {
            force(engine, container)?;
        }
        Ok(String::new())
    })
}

pub(super) fn kill(place: &Place, args: &KillArgs) -> Result<ExitCode> {
    let signal = signal("--signal", &args.signal)?;
    each(place, &args.containers, |engine, container| {
        if !container.running {
            let text = format!(
                "cannot kill container {:?}: it does not run",
                container.name
            );
            return Err(BuildError::new(text).with_hint("see kiln ps"));
        }
        let _ = kill_process(holder(engine, container)?, signal);
        Ok(String::new())
    })
}

pub(super) fn wait(place: &Place, names: &[String]) -> Result<ExitCode> {
    each(place, names, |engine, container| {
        let code = match end_of(engine, &container.id, None)? {
            End::Over(Some(left)) => left.ended.map(|(code, _)| code),
            _ => None,
        };
        // One that never ran has docker's zero.
        match (code, container.running) {
            (Some(code), _) => Ok(code.to_string()),
            (None, false) => Ok("0".to_owned()),
            (None, true) => {
                let text = format!(
                    "container {:?} went with its end, and its exit code with it",
                    container.name
                );
                Err(BuildError::new(text).with_hint("leave out the --rm of its kiln run"))
            }
        }
    })
}

/// Ends a container that runs by force; gives what is left of it.
fn force(
    engine: &Engine,
    container: &ContainerInfo,
) -> Result<Option<Box<ContainerInfo>>, BuildError> {
    const WITHIN: Duration = Duration::from_secs(10);
    let pid = holder(engine, container)?;
    for signal in [Signal::ALARM, Signal::KILL] {
        let _ = kill_process(pid, signal);
        if let End::Over(left) = end_of(engine, &container.id, Some(WITHIN))? {
            return Ok(left);
        }
    }
    Err(BuildError::new(format!(
        "container {:?} still runs after {} seconds",
        container.name,
        2 * WITHIN.as_secs()
    )))
}

/// Ends a container that runs, and removes it.
pub(super) fn kill_and_remove(
    engine: &Engine,
    container: &ContainerInfo,
) -> Result<(), BuildError> {
    let left = force(engine, container)?;
    left.map_or(Ok(()), |left| engine.remove_container(&left))
}
