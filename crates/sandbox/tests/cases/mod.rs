//! The cases. Each gets the privilege it runs with.
#![allow(clippy::print_stderr, reason = "a test's report")]

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use kiln_sandbox::{Cancel, Exit, Process, RootSource, SandboxError, Stdio, spawn};

mod confinement;
mod ids;
mod many;
mod mounts;
mod programs;

/// What the worker may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privilege {
    Root,
    Mapped,
    Single,
}

/// Whether ids are recorded, so that one stands for many.
pub(crate) static ONE_ID: AtomicBool = AtomicBool::new(false);

type Case = (&'static str, fn(Privilege));

pub(crate) const CASES: &[Case] = &[
    ("exit_codes", programs::exit_codes),
    ("exec_errors", programs::exec_errors),
    ("surroundings", programs::surroundings),
    ("users", ids::users),
    ("owners", ids::owners),
    ("capabilities", ids::capabilities),
    ("proc_and_sys", mounts::proc_and_sys),
    ("devices", mounts::devices),
    ("mounts", mounts::mounts),
    ("stubs", mounts::stubs),
    ("hostile_roots", mounts::hostile_roots),
    ("read_only_binds", mounts::read_only_binds),
    ("read_only_root", mounts::read_only_root),
    ("network", mounts::network),
    ("background_dies", programs::background_dies),
    ("cancel_and_kill", programs::cancel_and_kill),
    ("limits", programs::limits),
    ("with_init", programs::with_init),
    ("terminal", programs::terminal),
    ("filter", confinement::filter),
    ("thirty_two_bit", confinement::thirty_two_bit),
    ("insecure", confinement::insecure),
    ("binary_is_read_only", confinement::binary_is_read_only),
    ("detached_root", mounts::detached_root),
    ("many_in_a_row", many::many_in_a_row),
    ("many_at_once", many::many_at_once),
];

/// What the scripts use.
const APPLETS: &str = "sh cat chgrp chmod chown chroot cp cut date dd df env find grep head hostname id install ip ln ls mkdir mkfifo mknod mount mv ping rm sleep \
                       sort stat stty su tail tar touch test tr true tty umount unshare wc";

/// A root with busybox in it.
struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
        for dir in ["bin", "etc", "tmp", "work"] {
            fs::create_dir(root.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for name in APPLETS.split_whitespace() {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        Self { folder }
    }

    fn program(&self, name: &str, content: &[u8], mode: u32) {
        let path = self.path().join("bin").join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn process(&self, args: &[&str]) -> Process<'_> {
        let mut process = Process::new(RootSource::Folder(self.path()), args);
        process.env = vec!["PATH=/usr/bin:/bin".into()];
        process.recorded = ONE_ID.load(Ordering::Relaxed).then(Default::default);
        process
    }

    fn sh(&self, script: &str) -> Process<'_> {
        self.process(&["/bin/sh", "-c", script])
    }
}

/// Runs to the end; what it printed on both streams.
fn run(process: Process<'_>) -> Result<(Exit, String), SandboxError> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    // Shortens what the process may borrow to the life of the pipe.
    let mut process = process;
    let out = Some(write.as_fd());
    process.stdio = Stdio::Files {
        stdin: None,
        stdout: out,
        stderr: out,
    };
    let running = spawn(&process)?;
    drop(process);
    drop(write);
    let mut text = String::new();
    fs::File::from(read).read_to_string(&mut text).unwrap();
    Ok((running.wait(&Cancel::new().unwrap()).unwrap(), text))
}

/// The same for what must end well.
fn output(process: Process<'_>) -> String {
    let (exit, text) = run(process).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(exit, Exit::Code(0), "{text}");
    text
}

fn chain(error: &dyn std::error::Error) -> String {
    error
        .source()
        .map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// Processes whose parent is this one.
fn children() -> usize {
    let mut count = 0;
    for task in fs::read_dir("/proc/self/task").unwrap() {
        let list = fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default();
        count += list.split_whitespace().count();
    }
    count
}
