//! Users and groups as images define them.
//!
//! The rules are those of the container runtimes: a number is always an id, even if a user has that name; an id
//! without an entry is fine and has group 0; supplementary groups count only if no group was asked for.

use thiserror::Error;

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserSpec {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups, the primary one first.
    pub groups: Vec<u32>,
    /// Home folder, `/` when nothing says otherwise. For `HOME`, when the image does not set it.
    pub home: String,
}

impl UserSpec {
    /// Root without any extra group.
    pub fn root() -> Self {
        Self {
            uid: 0,
            gid: 0,
            groups: vec![0],
            home: "/root".into(),
        }
    }
}

/// Why there is no such user.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UserError {
    /// The name is not in `/etc/passwd`.
    #[error("unable to find user {0}: no matching entries in passwd file")]
    NoUser(String),
    /// The name is not in `/etc/group`.
    #[error("unable to find group {0}: no matching entries in group file")]
    NoGroup(String),
    /// The number is too large.
    #[error("uids and gids must be in range 0-2147483647: {0}")]
    Range(String),
}

/// Looks `spec` (`user`, `uid`, `user:group`, `uid:gid`, or empty for root) up in the texts of `/etc/passwd` and
/// `/etc/group`, where there are any.
///
/// # Errors
/// When a name is not in its file, or a number is out of range.
pub fn lookup_user(
    spec: &str,
    passwd: Option<&[u8]>,
    group: Option<&[u8]>,
) -> Result<UserSpec, UserError> {
    let (user_part, group_part) = spec.split_once(':').unwrap_or((spec, ""));
    let user_id = number(user_part)?;
    let wanted = if user_part.is_empty() {
        Some(0)
    } else {
        user_id
    };
    let entry = lines(passwd)
        .filter_map(parse_passwd)
        .find(|entry| match wanted {
            Some(uid) => entry.uid == uid,
            None => entry.name == user_part.as_bytes(),
        });
    let mut user = match (&entry, wanted) {
        (Some(entry), _) => UserSpec {
            uid: entry.uid,
            gid: entry.gid,
            groups: Vec::new(),
            home: String::from_utf8_lossy(entry.home).into_owned(),
        },
        (None, Some(uid)) => UserSpec {
            uid,
            gid: 0,
            groups: Vec::new(),
            home: String::new(),
        },
        (None, None) => return Err(UserError::NoUser(user_part.into())),
    };
    if user.home.is_empty() {
        user.home = "/".into();
    }
    let mut extra = Vec::new();
    if group_part.is_empty() {
        if let Some(entry) = &entry {
            extra = lines(group)
                .filter_map(parse_group)
                .filter(|group| group.has(entry.name))
                .map(|g| g.gid)
                .collect();
        }
    } else {
        let group_id = number(group_part)?;
        let found = lines(group)
            .filter_map(parse_group)
            .find(|group| match group_id {
                Some(gid) => group.gid == gid,
                None => group.name == group_part.as_bytes(),
            });
        user.gid = match (found, group_id) {
            (Some(group), _) => group.gid,
            (None, Some(gid)) => gid,
            (None, None) => return Err(UserError::NoGroup(group_part.into())),
        };
    }
    user.groups.push(user.gid);
    for gid in extra {
        if !user.groups.contains(&gid) {
            user.groups.push(gid);
        }
    }
    Ok(user)
}

/// The id that `text` is, if it is a number.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match text.strip_prefix('+').unwrap_or(text).parse::<u32>() {
        Ok(id) if i32::try_from(id).is_ok() => Ok(Some(id)),
        _ => Err(UserError::Range(text.into())),
    }
}

struct PasswdEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl GroupEntry<'_> {
    fn has(&self, name: &[u8]) -> bool {
        self.members
            .split(|&byte| byte == b',')
            .any(|member| member == name)
    }
}

fn lines(text: Option<&[u8]>) -> impl Iterator<Item = &[u8]> {
    text.unwrap_or_default()
        .split(|&byte| byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty())
}

fn id(field: &[u8]) -> Option<u32> {
    std::str::from_utf8(field).ok()?.parse().ok()
}

/// `name:password:uid:gid:comment:home:shell`
fn parse_passwd(line: &[u8]) -> Option<PasswdEntry<'_>> {
    let mut fields = line.split(|&byte| byte == b':');
    let name = fields.next()?;
    let uid = id(fields.nth(1)?)?;
    let gid = id(fields.next()?)?;
    Some(PasswdEntry {
        name,
        uid,
        gid,
        home: fields.nth(1).unwrap_or_default(),
    })
}

/// `name:password:gid:members`
fn parse_group(line: &[u8]) -> Option<GroupEntry<'_>> {
    let mut fields = line.split(|&byte| byte == b':');
    let name = fields.next()?;
    let gid = id(fields.nth(1)?)?;
    Some(GroupEntry {
        name,
        gid,
        members: fields.next().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# comment\nbroken:x:nan:3\n\n\
        web:x:33:33:web:/var/www:/bin/false\n1234:x:50:51::/home/num:\nshort:x:60:61\r\n";
    const GROUP: &[u8] =
        b"root:x:0:root\nwheel:x:10:root,web\nwww:x:33:\nvideo:x:44:web,web\nstaff:x:50:short";

    #[test]
    fn looks_up() {
        #[rustfmt::skip]
        let cases: &[(&str, u32, u32, &[u32], &str)] = &[
            ("", 0, 0, &[0, 10], "/root"),
            ("root", 0, 0, &[0, 10], "/root"),
            ("0", 0, 0, &[0, 10], "/root"),
            ("web", 33, 33, &[33, 10, 44], "/var/www"),
            ("33", 33, 33, &[33, 10, 44], "/var/www"),
            ("web:", 33, 33, &[33, 10, 44], "/var/www"),
            ("web:video", 33, 44, &[44], "/var/www"),
            ("web:44", 33, 44, &[44], "/var/www"),
            ("web:999", 33, 999, &[999], "/var/www"),
            (":video", 0, 44, &[44], "/root"),
            ("1000", 1000, 0, &[0], "/"),
            ("1000:1000", 1000, 1000, &[1000], "/"),
            ("1000:wheel", 1000, 10, &[10], "/"),
            // A number is an id even where a user has it as a name.
            ("1234", 1234, 0, &[0], "/"),
            ("50", 50, 51, &[51], "/home/num"),
            ("short", 60, 61, &[61, 50], "/"),
            ("2147483647", 2_147_483_647, 0, &[0], "/"),
        ];
        for (spec, uid, gid, groups, home) in cases {
            let want = UserSpec {
                uid: *uid,
                gid: *gid,
                groups: groups.to_vec(),
                home: (*home).into(),
            };
            assert_eq!(
                lookup_user(spec, Some(PASSWD), Some(GROUP)),
                Ok(want),
                "{spec}"
            );
        }
    }

    #[test]
    fn refuses() {
        let look = |spec| {
            lookup_user(spec, Some(PASSWD), Some(GROUP))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            look("nobody"),
            "unable to find user nobody: no matching entries in passwd file"
        );
        assert_eq!(
            look("broken"),
            "unable to find user broken: no matching entries in passwd file"
        );
        assert_eq!(
            look("web:none"),
            "unable to find group none: no matching entries in group file"
        );
        for spec in ["-1", "2147483648", "99999999999", "0:2147483648"] {
            assert!(look(spec).contains("range"), "{spec}");
        }
    }

    #[test]
    fn works_without_files() {
        assert_eq!(lookup_user("", None, None).unwrap().home, "/");
        assert_eq!(lookup_user("5:6", None, None).unwrap().groups, [6]);
        assert_eq!(
            lookup_user("web", None, None),
            Err(UserError::NoUser("web".into()))
        );
    }
}
