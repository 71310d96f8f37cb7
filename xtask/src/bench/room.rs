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
            let emptied = fs::read_to_string(room.stamp()).unwrap_or_default();
            let left = left_to_wait(&emptied, SystemTime::now());
            if !left.is_zero() {
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

/// How long the inodes stay kept off that were freed at a time in seconds since 1970, as the stamp has it. A clock that went back
/// tells no age, so that the wait is the whole one; a stamp that is none stands for nothing removed.
fn left_to_wait(emptied: &str, now: SystemTime) -> Duration {
    let emptied = Duration::from_secs(emptied.trim().parse().unwrap_or(0));
    let now = now.duration_since(SystemTime::UNIX_EPOCH);
    let age = now.unwrap_or_default().saturating_sub(emptied);
    KEPT_OFF.saturating_sub(age)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_ends_when_the_inodes_are_old() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let table = [
            ("", 1000, 0),
            ("no number", 1000, 0),
            ("0", 1000, 0),
            ("1000", 1000, 370),
            ("1000\n", 1010, 360),
            ("1000", 1369, 1),
            ("1000", 1370, 0),
            ("1000", 5000, 0),
            ("1000", 900, 370),
            ("18446744073709551615", 1000, 370),
        ];
        for (emptied, now, left) in table {
            let found = left_to_wait(emptied, at(now));
            assert_eq!(
                found,
                Duration::from_secs(left),
                "{emptied:?}, {now} s later than 1970"
            );
        }
    }

    #[test]
    fn a_room_is_empty_before_and_after_and_knows_when_it_was_emptied() {
        // In memory, where nobody waits.
        let parent = tempfile::tempdir_in("/dev/shm").unwrap();
        let path = parent.path().join("bench");
        let stamp = parent.path().join("bench.emptied");
        let room = Room::enter(&path).unwrap();
        assert!(!stamp.exists(), "nothing was removed");
        fs::create_dir(room.path().join("left")).unwrap();
        fs::write(room.path().join("left/file"), "of a broken run").unwrap();
        drop(room);

        let room = Room::enter(&path).unwrap();
        assert_eq!(fs::read_dir(room.path()).unwrap().count(), 0);
        let emptied = fs::read_to_string(&stamp).unwrap();
        assert!(left_to_wait(&emptied, SystemTime::now()) > Duration::from_mins(5));

        fs::write(room.path().join("file"), "").unwrap();
        fs::write(&stamp, "0").unwrap();
        room.leave().unwrap();
        assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
        assert_ne!(fs::read_to_string(&stamp).unwrap(), "0");
    }
}
