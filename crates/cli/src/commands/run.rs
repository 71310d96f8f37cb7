//! `kiln run`: a container from an image, until it ends.

use std::fs::File;
use std::os::fd::AsFd;
use std::process::ExitCode;

use anyhow::Result;
use kiln_engine::{BuildError, Engine, RunRequest};
use kiln_graph::Network;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};

use super::find_image;
use crate::args::RunArgs;
use crate::context::{Place, resolv_conf};
use crate::format::complain;

pub(super) fn run(place: &Place, args: &RunArgs) -> Result<ExitCode> {
    let mut request = RunRequest {
        args: args.args.clone(),
        entrypoint: args.entrypoint.clone(),
        env: args
            .env
            .iter()
            .filter_map(|variable| super::build_options::variable(variable))
            .collect(),
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        network: network(&args.network)?,
        hostname: args.hostname.clone().unwrap_or_else(|| "kiln".to_owned()),
        resolv_conf: resolv_conf(),
        extra_hosts: super::build_options::extra_hosts(&args.add_hosts)?,
        terminal: args.tty,
        trust: crate::certificates::trust(&args.trust, crate::context::certificates())?,
        ..RunRequest::default()
    };
    for volume in &args.volume {
        request.volumes.push(parse_volume(volume)?);
    }
    if !args.rm {
        complain("note: the container is removed when it ends, as with --rm");
    }
    let engine = place.engine()?;
    request.image = Some(find_image(&engine.store, &args.image)?);
    // The container's terminal does what the user's would do; until the end that one only carries bytes.
    let raw = args.tty.then(Raw::enter);
    let ran = until_exit(&engine, &request, args.interactive || args.tty);
    drop(raw);
    let ran = ran?;
    engine.sweep()?;
    Ok(ExitCode::from(ran.clamp(0, 255) as u8))
}

fn network(text: &str) -> Result<Network> {
    match text {
        "default" | "bridge" => Ok(Network::Default),
        "host" => Ok(Network::Host),
        "none" => Ok(Network::None),
        other => Err(BuildError::new(format!("--network {other}: expected host or none")).into()),
    }
}

fn parse_volume(text: &str) -> Result<(String, String, bool)> {
    let wrong = || {
        BuildError::new(format!(
            "--volume {text:?}: expected FROM:TO or FROM:TO:ro, both absolute"
        ))
    };
    let mut fields = text.split(':');
    let (from, to) = (
        fields.next().unwrap_or_default(),
        fields.next().ok_or_else(wrong)?,
    );
    let readonly = match fields.next() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(wrong().into()),
    };
    if !to.starts_with('/') || fields.next().is_some() {
        return Err(wrong().into());
    }
    let from = std::path::absolute(from)?;
    if !from.exists() {
        return Err(BuildError::new(format!(
            "--volume {text:?}: {} is not there",
            from.display()
        ))
        .into());
    }
    Ok((from.to_string_lossy().into_owned(), to.to_owned(), readonly))
}

fn until_exit(engine: &Engine, request: &RunRequest, interactive: bool) -> Result<i32> {
    let null = File::open("/dev/null")?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    let stdin = if interactive {
        stdin.as_fd()
    } else {
        null.as_fd()
    };
    let cancel = crate::signals::give_up_on_signal()?;
    let done = std::sync::atomic::AtomicBool::new(false);
    let ran = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Acquire) {
                if cancel.is_set() {
                    engine.worker.cancel();
                    return;
                }
                std::thread::park_timeout(std::time::Duration::from_millis(50));
            }
        });
        let ran = engine.run(request, [stdin, stdout.as_fd(), stderr.as_fd()]);
        done.store(true, std::sync::atomic::Ordering::Release);
        ran
    });
    Ok(ran?.code())
}

/// The user's terminal in raw mode, until dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        let Ok(before) = tcgetattr(&stdin) else {
            return Self(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        // A terminal that cannot be set stays as it is.
        let set = tcsetattr(&stdin, OptionalActions::Now, &raw);
        Self(set.is_ok().then_some(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nothing can be done for a terminal that is gone.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}
