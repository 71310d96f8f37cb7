//! Names of users and groups.

use kiln_graph::{FileInput, Owner, UserRef};

use crate::FileOpError;

/// Gives the numbers of an owner. `read` gives the content of a file of the tree of an input, `None` if it is not
/// there.
pub(crate) fn look_up(
    owner: &Owner,
    mut read: impl FnMut(FileInput, &str) -> Result<Option<Vec<u8>>, FileOpError>,
) -> Result<(u32, u32), FileOpError> {
    let (uid, own_group) = match &owner.user {
        None => (0, 0),
        Some(UserRef::Id(uid)) => (*uid, *uid),
        Some(UserRef::Name { name, input }) => find("user", name, read(*input, PASSWD)?, PASSWD)?,
    };
    let gid = match &owner.group {
        None => own_group,
        Some(UserRef::Id(gid)) => *gid,
        Some(UserRef::Name { name, input }) => find("group", name, read(*input, GROUP)?, GROUP)?.0,
    };
    Ok((uid, gid))
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Finds a name in a file of lines `name:password:number:number...`; gives both numbers, 0 for a missing second one.
fn find(
    what: &'static str,
    name: &str,
    content: Option<Vec<u8>>,
    file: &'static str,
) -> Result<(u32, u32), FileOpError> {
    let missing = |why: String| FileOpError::Owner {
        what,
        name: name.to_owned(),
        why,
    };
    let content = content.ok_or_else(|| missing(format!("the image has no {file}")))?;
    for line in content.split(|&byte| byte == b'\n') {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b':').collect();
        if fields[0] != name.as_bytes() {
            continue;
        }
        let number = |at: usize| {
            std::str::from_utf8(fields.get(at)?)
                .ok()?
                .trim()
                .parse()
                .ok()
        };
        let Some(first) = number(2) else { continue };
        return Ok((first, number(3).unwrap_or(0)));
    }
    Err(missing(format!("no such name in {file}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbroken:x::\nbroken:x:7:8::\napp:x:1000:1001:,,,:/home/app:\n";
        let group = "root:x:0:\nstaff:x:50:app,root\napp:x:1001:\n";
        let name = |name: &str| {
            Some(UserRef::Name {
                name: name.to_owned(),
                input: FileInput::Input(0),
            })
        };
        let id = |id| Some(UserRef::Id(id));
        let cases = [
            (id(9), None, Some((9, 9))),
            (id(9), id(0), Some((9, 0))),
            (name("app"), None, Some((1000, 1001))),
            (name("app"), name("staff"), Some((1000, 50))),
            (name("app"), id(3), Some((1000, 3))),
            (id(5), name("app"), Some((5, 1001))),
            (name("broken"), None, Some((7, 8))),
            (None, name("staff"), Some((0, 50))),
            (name("ghost"), None, None),
            (id(1), name("ghost"), None),
        ];
        for (user, group_ref, expected) in cases {
            let owner = Owner {
                user,
                group: group_ref,
            };
            let found = look_up(&owner, |_, file| {
                Ok(Some(
                    if file == PASSWD { passwd } else { group }
                        .as_bytes()
                        .to_vec(),
                ))
            });
            assert_eq!(found.ok(), expected, "{owner:?}");
        }
        let error = look_up(
            &Owner {
                user: name("app"),
                group: None,
            },
            |_, _| Ok(None),
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot find user \"app\": the image has no /etc/passwd"
        );
    }
}
