//! Where everything lies that is measured on the disk of Kiln's store.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};

use crate::say;

/// How long ext4 without a journal keeps off the inodes of removed files: `RECENTCY_MIN` and `RECENTCY_DIRTY` of the kernel's
/// `fs/ext4/ialloc.c`, and a little more.
const KEPT_OFF: Duration = Duration::from_secs(370);

/// What `statfs` calls ext4 (`EXT4_SUPER_MAGIC` of `linux/magic.h`).
const EXT4: u64 = 0xef53;

/// A folder for one run, which is empty before and after it.
///
/// In a run nothing of it is removed. Without a journal, ext4 does not give away the inodes of removed files for six minutes
/// and looks at each of them when it seeks one for a new file: after some copies of a tree have been removed, one more takes ten
/// times as long, whoever makes it.
#[derive(Debug)]
pub(super) struct Room(PathBuf);

impl Room {
    /// Makes the folder, or removes what a broken run has left in it, and waits until the file system has forgotten
    /// what was removed there.
    pub(super) fn enter(path: &Path) -> Result<Self> {
        fs::create_dir_all(path)?;
        let room = Self(path.to_owned());
        if fs::read_dir(path)?.next().is_some() {
            room.empty()?;
        }
        if keeps_off_freed_inodes(path)? {
            let since = fs::read_to_string(room.stamp()).unwrap_or_default();
            let freed = SystemTime::UNIX_EPOCH + Duration::from_secs(since.parse().unwrap_or(0));
            // A clock that went back gives no age: nothing is known then.
            let age = freed.elapsed().unwrap_or_default();
            if let Some(left) = KEPT_OFF.checked_sub(age) {
                let seconds = left.as_secs();
                say(&format!(
                    "waiting {seconds} s: this file system is slow in making files after others were removed"
                ));
                std::thread::sleep(left);
            }
        }
        Ok(room)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    /// Removes all that is in it.
    pub(super) fn leave(self) -> Result<()> {
        self.empty()
    }

    /// A file beside the folder: when something was last removed.
    fn stamp(&self) -> PathBuf {
        self.0.with_extension("emptied")
    }

    fn empty(&self) -> Result<()> {
        fs::remove_dir_all(&self.0)
            .with_context(|| format!("cannot empty {}", self.0.display()))?;
        fs::create_dir(&self.0)?;
        rustix::fs::sync();
        let now = SystemTime::UNIX_EPOCH.elapsed()?.as_secs();
        Ok(fs::write(self.stamp(), now.to_string())?)
    }
}

/// Whether a folder is on ext4 without a journal.
fn keeps_off_freed_inodes(folder: &Path) -> Result<bool> {
    let kind = rustix::fs::statfs(folder)?.f_type;
    if u64::try_from(kind) != Ok(EXT4) {
        return Ok(false);
    }
    let device = fs::metadata(folder)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let disk = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}"))?;
    let name = disk.file_name().unwrap_or_default().to_string_lossy();
    let Ok(journals) = fs::read_dir("/proc/fs/jbd2") else {
        return Ok(true);
    };
    let own = format!("{name}-");
    Ok(!journals
        .filter_map(Result::ok)
        .any(|journal| journal.file_name().to_string_lossy().starts_with(&own)))
}
