//! One measured run: time, memory, bytes that reached the disk.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use wait4::Wait4 as _;

use crate::process::line;

/// Bytes in the unit in which the kernel counts what a disk wrote, whatever the disk's own.
const SECTOR: u64 = 512;

/// Between two runs.
const SETTLE: Duration = Duration::from_secs(1);

/// What a run took.
#[derive(Debug, Clone, Copy)]
pub(super) struct Taken {
    /// From the start of the first command to the end of the last.
    pub(super) wall: Duration,
    /// Bytes of memory: the largest process of each command, summed over commands that ran at once. A daemon's memory is
    /// not in it.
    pub(super) peak: u64,
    /// Bytes that the disk wrote until everything was on it, if the system counts them.
    pub(super) written: Option<u64>,
}

/// Counts what the disk below a folder writes.
#[derive(Debug)]
pub(super) struct Disk {
    counters: PathBuf,
}

impl Disk {
    /// The disk of a folder.
    pub(super) fn of(folder: &Path) -> Result<Self> {
        let device = fs::metadata(folder)?.dev();
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        Ok(Self {
            counters: format!("/sys/dev/block/{major}:{minor}/stat").into(),
        })
    }

    /// Bytes written since the machine started; nothing for a file system without a disk of its own.
    fn written(&self) -> Option<u64> {
        let counters = fs::read_to_string(&self.counters).ok()?;
        let sectors: u64 = counters.split_whitespace().nth(6)?.parse().ok()?;
        Some(sectors * SECTOR)
    }
}

/// Runs commands, all at once; each must end with code 0. What was written before them is brought to the disk first, and
/// what they wrote afterwards, outside the time that counts.
pub(super) fn run(commands: Vec<Command>, disk: &Disk) -> Result<Taken> {
    rustix::fs::sync();
    // Daemons clean up after they have answered; that is not to be on the bill of who comes next.
    std::thread::sleep(SETTLE);
    let before = disk.written();
    let start = Instant::now();
    let mut running = Vec::new();
    for mut command in commands {
        let said = tempfile::tempfile()?;
        let name = line(&command);
        let child = command
            .stdin(Stdio::null())
            .stdout(said.try_clone()?)
            .stderr(said.try_clone()?)
            .spawn()
            .with_context(|| format!("cannot start `{name}`"))?;
        running.push((name, child, said));
    }
    let mut peak = 0;
    let mut failed = Ok(());
    for (name, child, said) in running {
        let ended = child.wait4()?;
        peak += ended.rusage.maxrss;
        if !ended.status.success() && failed.is_ok() {
            failed = failure(&name, ended.status, said);
        }
    }
    let wall = start.elapsed();
    failed?;
    rustix::fs::sync();
    let written = before.and_then(|before| Some(disk.written()?.saturating_sub(before)));
    Ok(Taken {
        wall,
        peak,
        written,
    })
}

fn failure(name: &str, status: std::process::ExitStatus, mut said: File) -> Result<()> {
    use std::io::Seek as _;

    let mut text = String::new();
    said.rewind()?;
    said.read_to_string(&mut text)?;
    bail!("`{name}` failed: {status}\n{}", text.trim_end())
}

/// The middle of some values, the upper one of two.
pub(super) fn median<T: Ord + Copy>(values: impl IntoIterator<Item = T>) -> Option<T> {
    let mut values: Vec<T> = values.into_iter().collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_tells_what_it_printed() {
        let disk = Disk::of(Path::new("/")).unwrap();
        let mut fails = Command::new("sh");
        fails.args(["-c", "echo because; exit 3"]);
        let error = run(vec![fails], &disk).unwrap_err().to_string();
        assert!(error.contains("exit status: 3\nbecause"), "{error}");
    }

    #[test]
    fn commands_run_at_once() {
        let disk = Disk::of(Path::new("/")).unwrap();
        let sleep = || {
            let mut sleep = Command::new("sleep");
            sleep.arg("0.3");
            sleep
        };
        let taken = run(vec![sleep(), sleep(), sleep()], &disk).unwrap();
        assert!(taken.wall >= Duration::from_millis(300));
        assert!(taken.peak > 0);
    }

    #[test]
    fn the_middle() {
        assert_eq!(median([5, 1, 3]), Some(3));
        assert_eq!(median([5, 1]), Some(5));
        assert_eq!(median::<u8>([]), None);
    }
}
