//! Which privileges the worker gets, decided from what the machine grants the user.

use std::ffi::OsStr;
use std::path::PathBuf;

use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};

/// How the worker is separated from the user who started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Isolation {
    /// Real root: only a mount namespace.
    Root,
    /// A user namespace with subordinate ids.
    MappedIds {
        /// User ids, 0 first.
        uids: Vec<IdRange>,
        /// Group ids, 0 first.
        gids: Vec<IdRange>,
        /// The privileged programs that write the maps.
        tools: IdTools,
    },
    /// A user namespace in which only 0 exists; it is the user.
    SingleId {
        /// The user's id outside.
        uid: u32,
        /// The user's group outside.
        gid: u32,
    },
}

/// A run of ids and what they are outside of the namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdRange {
    /// First id inside.
    pub inside: u32,
    /// First id outside.
    pub outside: u32,
    /// How many.
    pub count: u32,
}

/// The set-user-id programs of the `uidmap` package.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdTools {
    /// Path of `newuidmap`.
    pub newuidmap: PathBuf,
    /// Path of `newgidmap`.
    pub newgidmap: PathBuf,
}

impl IdTools {
    /// Looks for both programs in a `PATH`-like list of folders.
    pub fn find(path: &OsStr) -> Option<Self> {
        let find = |name: &str| {
            std::env::split_paths(path)
                .filter(|folder| folder.is_absolute())
                .map(|folder| folder.join(name))
                .find(|file| file.is_file() && access(file, Access::EXEC_OK).is_ok())
        };
        Some(Self {
            newuidmap: find("newuidmap")?,
            newgidmap: find("newgidmap")?,
        })
    }
}

/// Chooses the best isolation that the facts allow, and says why.
///
/// `subuid` and `subgid` are the texts of `/etc/subuid` and `/etc/subgid` (empty when missing), see subuid(5).
pub fn choose(
    uid: u32,
    gid: u32,
    user: &str,
    subuid: &str,
    subgid: &str,
    tools: Option<IdTools>,
) -> (Isolation, String) {
    if uid == 0 {
        return (Isolation::Root, "running as root".into());
    }
    let single = |why: String| (Isolation::SingleId { uid, gid }, why);
    let uids = map(uid, subordinate(subuid, user, uid));
    let gids = map(gid, subordinate(subgid, user, uid));
    let (extra_uids, extra_gids) = (count(&uids) - 1, count(&gids) - 1);
    if extra_uids == 0 || extra_gids == 0 {
        let file = if extra_uids == 0 {
            "/etc/subuid"
        } else {
            "/etc/subgid"
        };
        return single(format!("{file} has no range for {user}"));
    }
    let Some(tools) = tools else {
        return single(
            "newuidmap and newgidmap are not installed (package uidmap or shadow-utils)".into(),
        );
    };
    let why = format!("{user} has {extra_uids} subordinate user ids and {extra_gids} group ids");
    (Isolation::MappedIds { uids, gids, tools }, why)
}

fn count(ranges: &[IdRange]) -> u64 {
    ranges.iter().map(|range| u64::from(range.count)).sum()
}

/// The ranges of `user`, who may be named or numbered: (first, count). Lines that are no ranges are passed over, as
/// the programs that use these files do.
fn subordinate(text: &str, user: &str, uid: u32) -> Vec<(u32, u32)> {
    let number = uid.to_string();
    text.lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            let first: u32 = fields.next()?.parse().ok()?;
            let count: u32 = fields.next()?.parse().ok()?;
            let usable = (owner == user || owner == number)
                && count > 0
                && first.checked_add(count).is_some();
            (usable && fields.next().is_none()).then_some((first, count))
        })
        .collect()
}

/// 0 is the user, 1 and up are the subordinate ranges one after the other.
fn map(own: u32, ranges: Vec<(u32, u32)>) -> Vec<IdRange> {
    // The kernel takes 340 lines.
    const MOST: usize = 340;
    let mut map = vec![IdRange {
        inside: 0,
        outside: own,
        count: 1,
    }];
    let mut taken: Vec<(u32, u32)> = vec![(own, 1)];
    let mut inside = 1u32;
    for (outside, count) in ranges.into_iter().take(MOST - 1) {
        // An id can stand for one id only; a file that lists one twice would make the kernel refuse the whole map.
        let overlaps = taken
            .iter()
            .any(|&(first, length)| outside < first + length && first < outside + count);
        let Some(next) = inside.checked_add(count) else {
            break;
        };
        if overlaps {
            continue;
        }
        map.push(IdRange {
            inside,
            outside,
            count,
        });
        taken.push((outside, count));
        inside = next;
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tools() -> IdTools {
        IdTools {
            newuidmap: "/usr/bin/newuidmap".into(),
            newgidmap: "/usr/bin/newgidmap".into(),
        }
    }

    #[test]
    fn chooses_by_what_is_granted() {
        let ranges = "root:1:5\nann:100000:65536\n1000:300000:1000\nbob:500000:65536\n";
        let kind = |uid, user, subuid, subgid, tools| match choose(
            uid, 7, user, subuid, subgid, tools,
        )
        .0
        {
            Isolation::Root => "root",
            Isolation::MappedIds { .. } => "mapped",
            Isolation::SingleId { .. } => "single",
        };
        assert_eq!(kind(0, "root", "", "", None), "root");
        assert_eq!(kind(1000, "ann", ranges, ranges, Some(tools())), "mapped");
        assert_eq!(kind(1000, "ann", ranges, ranges, None), "single");
        assert_eq!(kind(1000, "ann", ranges, "", Some(tools())), "single");
        assert_eq!(kind(1000, "ann", "", ranges, Some(tools())), "single");
        assert_eq!(kind(1001, "eve", ranges, ranges, Some(tools())), "single");
        assert_eq!(
            kind(
                1001,
                "eve",
                "eve:x:1\neve:5\neve:1:0\neve:4294967295:2",
                ranges,
                Some(tools())
            ),
            "single"
        );
        assert_eq!(
            choose(5, 7, "eve", "", "", None).1,
            "/etc/subuid has no range for eve"
        );
    }

    #[test]
    fn ranges_follow_each_other() {
        let text = "ann:100000:65536\n1000:300000:1000\nann:100500:10\n";
        let (Isolation::MappedIds { uids, gids, .. }, why) =
            choose(1000, 7, "ann", text, text, Some(tools()))
        else {
            panic!("not mapped");
        };
        let range = |inside, outside, count| IdRange {
            inside,
            outside,
            count,
        };
        assert_eq!(
            uids,
            [
                range(0, 1000, 1),
                range(1, 100_000, 65536),
                range(65537, 300_000, 1000)
            ]
        );
        assert_eq!(gids[0], range(0, 7, 1));
        assert_eq!(
            why,
            "ann has 66536 subordinate user ids and 66536 group ids"
        );
    }
}
