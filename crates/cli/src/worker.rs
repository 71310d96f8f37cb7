//! The hidden side of the binary: the worker process, and what runs on after a build.

use std::ffi::OsString;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use kiln_rootfs::Provider;
use kiln_sandbox::Isolation;
use kiln_store::layer_fs::Ids;
use kiln_worker::Launch;

use crate::args::Global;
use crate::context::{Place, variable};

/// The first argument that makes this binary a worker. Not a command: nobody types it.
const WORKER: &str = "__worker";
/// The first argument that makes this binary settle a store and end.
const SETTLE: &str = "__settle";
/// Where [`kiln_sandbox::spawn_worker`] puts the control socket.
const CONTROL_FD: i32 = 3;

/// How the worker of a store is started.
pub(crate) fn launch(root: &Path, isolation: &Isolation, provider: Option<Provider>) -> Launch {
    let ids = if matches!(isolation, Isolation::SingleId { .. }) {
        "recorded"
    } else {
        "real"
    };
    let provider = match provider {
        None => "auto",
        Some(Provider::Overlay) => "overlay",
        Some(Provider::OverlayByMount) => "overlay-mount",
        Some(Provider::PlainTree) => "plain",
    };
    Launch {
        exe: PathBuf::from("/proc/self/exe"),
        args: [
            WORKER.into(),
            root.as_os_str().to_owned(),
            ids.into(),
            provider.into(),
        ]
        .into(),
        isolation: isolation.clone(),
    }
}

/// Makes what was built durable after this process has ended, so that nobody waits for the disk.
///
/// The same process then collects what the store has too much of.
pub(crate) fn settle_later(place: &Place) {
    use std::os::unix::process::CommandExt;
    let isolation = match place.isolation {
        Isolation::Root => "root",
        Isolation::MappedIds { .. } => "userns",
        Isolation::SingleId { .. } => "single",
    };
    let mut command = std::process::Command::new("/proc/self/exe");
    command
        .arg(SETTLE)
        .arg(&place.root)
        .arg(isolation)
        .current_dir("/")
        .process_group(0);
    command
        .stdin(std::process::Stdio::null())
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    if let Some(config) = variable("KILN_CONFIG")
        && let Ok(config) = std::path::absolute(config)
    {
        command.env("KILN_CONFIG", config);
    }
    // Without it the next build's process does the same.
    let _ = command.spawn();
}

/// Runs the hidden commands; `None` when this is an ordinary call.
pub(crate) fn serve_if_asked() -> Option<ExitCode> {
    let mut args = std::env::args_os().skip(1);
    let first = args.next()?;
    let rest: Vec<OsString> = args.collect();
    let outcome = if first == WORKER {
        serve(&rest)
    } else if first == SETTLE {
        settle(&rest)
    } else {
        return None;
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::format::complain(&format!("kiln worker: {error:#}"));
            ExitCode::FAILURE
        }
    })
}

fn serve(args: &[OsString]) -> anyhow::Result<()> {
    let [root, ids, provider] = args else {
        anyhow::bail!("not to be called by hand")
    };
    if kiln_sandbox::enter_worker().is_err() {
        // Who started this process was told why, and tells the user.
        return Ok(());
    }
    let ids = if ids == "recorded" {
        Ids::Recorded
    } else {
        Ids::Real
    };
    let provider = match provider.to_str() {
        Some("overlay") => Some(Provider::Overlay),
        Some("overlay-mount") => Some(Provider::OverlayByMount),
        Some("plain") => Some(Provider::PlainTree),
        _ => None,
    };
    #[expect(
        unsafe_code,
        reason = "the descriptor that the parent left open for this process"
    )]
    // SAFETY: nothing else in this process owns it; spawn_worker made it for us.
    let control = unsafe { OwnedFd::from_raw_fd(CONTROL_FD) };
    kiln_worker::serve(control, PathBuf::from(root), ids, provider)?;
    Ok(())
}

fn settle(args: &[OsString]) -> anyhow::Result<()> {
    let [root, isolation] = args else {
        anyhow::bail!("not to be called by hand")
    };
    crate::context::open_existing(Path::new(root))?.settle()?;
    let place = Place::find(&Global {
        root: Some(PathBuf::from(root)),
        rootfs: None,
        isolation: isolation.to_str().map(str::to_owned),
        config: None,
    })?;
    place.engine()?.tidy()?;
    Ok(())
}
