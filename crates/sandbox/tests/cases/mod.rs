//! The cases. Each gets the privilege it runs with.
#![allow(clippy::print_stderr, reason = "a test's report")]

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use kiln_sandbox::{
    Cancel, Confinement, Exit, MountSource, Network, Process, RootSource, SandboxError,
    SandboxMount, Stdio, Ulimit, UlimitKind, UserSpec, spawn,
};

/// What the worker may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    Root,
    Mapped,
    Single,
}

type Case = (&'static str, fn(Privilege));

pub const CASES: &[Case] = &[("exit_codes", exit_codes)];

/// A root with busybox in it.
struct Root {
    folder: tempfile::TempDir,
}

impl Root {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::set_permissions(root, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        for dir in ["bin", "etc", "tmp", "work"] {
            fs::create_dir(root.join(dir)).unwrap();
        }
        fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        for name in [
            "sh", "cat", "ls", "id", "sleep", "mount", "grep", "stat", "hostname", "env", "mknod",
            "touch",
        ] {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn process(&self, args: &[&str]) -> Process<'_> {
        let mut process = Process::new(RootSource::Folder(self.path()), args);
        process.env = vec!["PATH=/usr/bin:/bin".into()];
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

fn exit_codes(_: Privilege) {
    let root = Root::new();
    for code in [0, 3, 255] {
        assert_eq!(
            run(root.sh(&format!("exit {code}"))).unwrap().0,
            Exit::Code(code)
        );
    }
    assert_eq!(
        run(root.sh("echo hi; echo there >&2")).unwrap().1,
        "hi\nthere\n"
    );
}
