//! Running `git`.

use std::ffi::OsString;
use std::io::Read;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kiln_registry::Observer;
use rustix::process::{Pid, Signal};

use crate::RemoteError;

/// How often a running `git` is looked at.
const GLANCE: Duration = Duration::from_millis(20);

/// Settings that repositories and the user's own configuration must not change: a checkout is the same everywhere.
const SETTINGS: [&str; 9] = [
    "core.autocrlf=false",
    "core.eol=lf",
    "core.symlinks=true",
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "advice.detachedHead=false",
    "init.defaultBranch=master",
    "gc.auto=0",
    "maintenance.auto=false",
];

/// The `git` program and what it sees.
#[derive(Debug, Clone, Default)]
pub struct GitProgram {
    /// Where it is; `None` when the machine has none.
    pub path: Option<PathBuf>,
    /// Its environment: the home with the user's configuration and keys, proxies, the ssh agent. Everything else is
    /// kept from it.
    pub env: Vec<(String, OsString)>,
}

impl GitProgram {
    /// Runs `git` in `folder` and gives what it printed.
    pub(crate) fn run(
        &self,
        url: &str,
        folder: &Path,
        args: &[&str],
        observer: &dyn Observer,
    ) -> Result<String, RemoteError> {
        let program = self.path.as_ref().ok_or_else(|| RemoteError::NoGit {
            url: url.to_owned(),
        })?;
        let failed = |message: String| RemoteError::Git {
            url: url.to_owned(),
            message,
        };
        let mut command = Command::new(program);
        for setting in SETTINGS {
            command.args(["-c", setting]);
        }
        command
            .args(args)
            .current_dir(folder)
            .env_clear()
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .env("GIT_TERMINAL_PROMPT", "0")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // A group of its own: its helpers end with it.
            .process_group(0);
        let child = command
            .spawn()
            .map_err(|error| failed(format!("{}: {error}", program.display())))?;
        let mut running = Running(Some(child));
        let child = running.0.as_mut().expect("just started");
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let outcome = std::thread::scope(|scope| {
            let out = scope.spawn(|| read(out));
            let err = scope.spawn(|| read(err));
            let outcome = running.wait(observer);
            let text = |bytes: std::thread::Result<Vec<u8>>| {
                String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
            };
            outcome.map(|ok| (ok, text(out.join()), text(err.join())))
        });
        match outcome? {
            (true, out, _) => Ok(out),
            (false, _, err) => Err(failed(complaint(&err))),
        }
    }
}

fn read(from: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut from) = from {
        // What was read until it broke will do.
        let _ = from.read_to_end(&mut bytes);
    }
    bytes
}

/// The lines in which `git` says what is wrong.
fn complaint(text: &str) -> String {
    let telling: Vec<&str> = text
        .lines()
        .map(str::trim)
        .filter(|line| {
            ["fatal:", "error:", "remote:"]
                .iter()
                .any(|start| line.starts_with(start))
        })
        .collect();
    let text = if telling.is_empty() {
        text.trim().to_owned()
    } else {
        telling.join("; ")
    };
    if text.is_empty() {
        "git failed without a word".to_owned()
    } else {
        text
    }
}

/// A process that is killed with its group when it is not waited for to its end.
struct Running(Option<Child>);

impl Running {
    /// Whether it ended well.
    fn wait(&mut self, observer: &dyn Observer) -> Result<bool, RemoteError> {
        let child = self.0.as_mut().expect("waited for once");
        loop {
            if observer.is_canceled() {
                self.kill();
                return Err(RemoteError::Canceled);
            }
            match child.try_wait() {
                Ok(Some(status)) => {
                    self.0 = None;
                    return Ok(status.success());
                }
                Ok(None) => std::thread::sleep(GLANCE),
                Err(_) => {
                    self.kill();
                    return Ok(false);
                }
            }
        }
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.0.take() {
            let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
            if let Some(group) = group {
                // It may have ended already.
                let _ = rustix::process::kill_process_group(group, Signal::KILL);
            }
            let _ = child.wait();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_are_the_lines_that_tell() {
        for (text, told) in [
            ("Cloning\nfatal: no such thing\n", "fatal: no such thing"),
            ("error: a\nhint: b\nfatal: c", "error: a; fatal: c"),
            ("something else", "something else"),
            ("", "git failed without a word"),
        ] {
            assert_eq!(complaint(text), told);
        }
    }
}
