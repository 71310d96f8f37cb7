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
        /// The privileged programs that write the maps; none where this process may write them itself.
        tools: Option<IdTools>,
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

/// What the user asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The best that there is.
    Auto,
    /// [`Isolation::Root`].
    Root,
    /// [`Isolation::MappedIds`].
    UserNamespace,
    /// [`Isolation::SingleId`].
    Single,
}

impl Wanted {
    /// By the name that `--isolation` takes: `auto`, `root`, `userns` or `single`.
    pub fn from_name(name: &str) -> Option<Self> {
        Some(match name {
            "auto" => Self::Auto,
            "root" => Self::Root,
            "userns" => Self::UserNamespace,
            "single" => Self::Single,
            _ => return None,
        })
    }
}

/// The isolation asked for is not to be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("isolation {wanted} is not possible here: {why}")]
pub struct NotPossible {
    wanted: &'static str,
    why: String,
}

/// Who starts the worker, and what the machine grants.
#[derive(Debug, Clone, Copy)]
pub struct User<'a> {
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
    /// Name.
    pub name: &'a str,
    /// The text of `/etc/subuid` (empty when missing), see subuid(5).
    pub subuid: &'a str,
    /// The text of `/etc/subgid`.
    pub subgid: &'a str,
    /// Has `CAP_SYS_ADMIN`: root in a container often has not.
    pub admin: bool,
    /// The text of `/proc/self/uid_map`: the ids that there are.
    pub uid_map: &'a str,
    /// The text of `/proc/self/gid_map`.
    pub gid_map: &'a str,
}

/// Chooses the isolation that is wanted, or the best that the facts allow, and says why.
///
/// # Errors
/// When what is wanted cannot be had.
pub fn choose(
    wanted: Wanted,
    user: User<'_>,
    tools: Option<IdTools>,
) -> Result<(Isolation, String), NotPossible> {
    let (uid, gid) = (user.uid, user.gid);
    let single = Isolation::SingleId { uid, gid };
    match wanted {
        Wanted::Auto if uid == 0 && user.admin => Ok((Isolation::Root, "running as root".into())),
        Wanted::Auto | Wanted::UserNamespace if uid == 0 => Ok(all_own_ids(user)),
        Wanted::Auto => Ok(mapped(user, tools).unwrap_or_else(|why| (single, why))),
        Wanted::Root if uid == 0 => Ok((Isolation::Root, "asked for".into())),
        Wanted::Root => Err(NotPossible {
            wanted: "root",
            why: format!("{} is not root", user.name),
        }),
        Wanted::UserNamespace => mapped(user, tools).map_err(|why| NotPossible {
            wanted: "userns",
            why,
        }),
        Wanted::Single => Ok((single, "asked for".into())),
    }
}

/// Root without the right to mount: in a user namespace with the same ids it has that right.
fn all_own_ids(user: User<'_>) -> (Isolation, String) {
    let ranges = |map: &str| -> Vec<IdRange> {
        let range = |line: &str| {
            let mut fields = line.split_whitespace();
            let (first, count) = (fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?);
            Some(IdRange {
                inside: first,
                outside: first,
                count,
            })
        };
        map.lines().filter_map(range).collect()
    };
    let isolation = Isolation::MappedIds {
        uids: ranges(user.uid_map),
        gids: ranges(user.gid_map),
        tools: None,
    };
    let why = if user.admin {
        "asked for"
    } else {
        "root may not mount here: CAP_SYS_ADMIN is missing"
    };
    (isolation, why.into())
}

/// A user namespace with subordinate ids, or why there is none.
fn mapped(user: User<'_>, tools: Option<IdTools>) -> Result<(Isolation, String), String> {
    let name = user.name;
    let uids = map(user.uid, subordinate(user.subuid, name, user.uid));
    let gids = map(user.gid, subordinate(user.subgid, name, user.uid));
    let (extra_uids, extra_gids) = (count(&uids) - 1, count(&gids) - 1);
    if extra_uids == 0 || extra_gids == 0 {
        let file = if extra_uids == 0 {
            "/etc/subuid"
        } else {
            "/etc/subgid"
        };
        return Err(format!("{file} has no range for {name}"));
    }
    let Some(tools) = tools else {
        return Err(
            "newuidmap and newgidmap are not installed (package uidmap or shadow-utils)".into(),
        );
    };
    let why = format!("{name} has {extra_uids} subordinate user ids and {extra_gids} group ids");
    let tools = Some(tools);
    Ok((Isolation::MappedIds { uids, gids, tools }, why))
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
        let user = |uid, name, subuid, subgid| User {
            uid,
            gid: 7,
            name,
            subuid,
            subgid,
            admin: true,
            uid_map: "0 1000 1\n1 100000 65536\n",
            gid_map: "0 0 4294967295\n",
        };
        let want =
            |wanted, user, tools| choose(wanted, user, tools).map(|(isolation, _)| isolation);
        let kind = |uid, name, subuid, subgid, tools| match want(
            Wanted::Auto,
            user(uid, name, subuid, subgid),
            tools,
        )
        .unwrap()
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
        let eve = user(5, "eve", "", "");
        assert_eq!(
            choose(Wanted::Auto, eve, None).unwrap().1,
            "/etc/subuid has no range for eve"
        );
        assert_eq!(
            choose(Wanted::UserNamespace, eve, None)
                .unwrap_err()
                .to_string(),
            "isolation userns is not possible here: /etc/subuid has no range for eve"
        );
        assert!(want(Wanted::Root, eve, None).is_err());
        let ann = user(1000, "ann", ranges, ranges);
        let container = User {
            admin: false,
            ..user(0, "root", "", "")
        };
        let range = |inside, count| IdRange {
            inside,
            outside: inside,
            count,
        };
        let own = Isolation::MappedIds {
            uids: vec![range(0, 1), range(1, 65536)],
            gids: vec![range(0, u32::MAX)],
            tools: None,
        };
        assert_eq!(want(Wanted::Auto, container, None), Ok(own.clone()));
        assert_eq!(want(Wanted::UserNamespace, container, None), Ok(own));
        let single = Isolation::SingleId { uid: 1000, gid: 7 };
        assert_eq!(want(Wanted::Single, ann, Some(tools())), Ok(single));
    }

    #[test]
    fn ranges_follow_each_other() {
        let text = "ann:100000:65536\n1000:300000:1000\nann:100500:10\n";
        let (Isolation::MappedIds { uids, gids, .. }, why) = choose(
            Wanted::Auto,
            User {
                uid: 1000,
                gid: 7,
                name: "ann",
                subuid: text,
                subgid: text,
                admin: false,
                uid_map: "",
                gid_map: "",
            },
            Some(tools()),
        )
        .unwrap() else {
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
