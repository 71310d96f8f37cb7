//! Names of users and groups.

use kiln_graph::{FileInput, Owner, UserRef};

use crate::FileOpError;

/// Gives the numbers of an owner. `read` gives the content of a file of the tree of an input, `None` if it is not
/// there.
///
/// As under docker a user whom the image does not know is root, and a group that it does not know is the user's own;
/// `unknown` is told of each. Only where there is no image at all a name is an error.
pub(crate) fn look_up(
    owner: &Owner,
    mut read: impl FnMut(FileInput, &str) -> Result<Option<Vec<u8>>, FileOpError>,
    mut unknown: impl FnMut(String),
) -> Result<(u32, u32), FileOpError> {
    let mut known = |what: &'static str, name: &str, input: FileInput, file: &str| {
        if input == FileInput::Scratch {
            return Err(FileOpError::Owner {
                what,
                name: name.to_owned(),
            });
        }
        let content = read(input, file)?;
        let found = find(name, content.as_deref());
        if found.is_none() {
            let why = match content {
                Some(_) => format!("no such name in {file}"),
                None => format!("the image has no {file}"),
            };
            unknown(format!("cannot find {what} {name:?}: {why}"));
        }
        Ok(found)
    };
    let (uid, own_group) = match &owner.user {
        None => (0, 0),
        Some(UserRef::Id(uid)) => (*uid, *uid),
        Some(UserRef::Name { name, input }) => {
            known("user", name, *input, PASSWD)?.unwrap_or((0, 0))
        }
    };
    let gid = match &owner.group {
        None => own_group,
        Some(UserRef::Id(gid)) => *gid,
        Some(UserRef::Name { name, input }) => {
            known("group", name, *input, GROUP)?.map_or(own_group, |(gid, _)| gid)
        }
    };
    Ok((uid, gid))
}

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// Finds a name in a file of lines `name:password:number:number...`; gives both numbers, 0 for a missing second one.
fn find(name: &str, content: Option<&[u8]>) -> Option<(u32, u32)> {
    for line in content?.split(|&byte| byte == b'\n') {
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
        return Some((first, number(3).unwrap_or(0)));
    }
    None
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
            (id(9), None, (9, 9), 0),
            (id(9), id(0), (9, 0), 0),
            (name("app"), None, (1000, 1001), 0),
            (name("app"), name("staff"), (1000, 50), 0),
            (name("app"), id(3), (1000, 3), 0),
            (id(5), name("app"), (5, 1001), 0),
            (name("broken"), None, (7, 8), 0),
            (None, name("staff"), (0, 50), 0),
            (name("ghost"), None, (0, 0), 1),
            (name("ghost"), name("staff"), (0, 50), 1),
            (id(1), name("ghost"), (1, 1), 1),
            (name("app"), name("ghost"), (1000, 1001), 1),
            (name("ghost"), name("ghost"), (0, 0), 2),
        ];
        for (user, group_ref, expected, strangers) in cases {
            let owner = Owner {
                user,
                group: group_ref,
            };
            let mut unknown = Vec::new();
            let read = |_, file: &str| {
                let text = if file == PASSWD { passwd } else { group };
                Ok(Some(text.as_bytes().to_vec()))
            };
            let found = look_up(&owner, read, |name| unknown.push(name));
            assert_eq!(found.ok(), Some(expected), "{owner:?}");
            assert_eq!(unknown.len(), strangers, "{owner:?}: {unknown:?}");
        }
        let app = Owner {
            user: name("app"),
            group: None,
        };
        let mut unknown = Vec::new();
        let found = look_up(&app, |_, _| Ok(None), |name| unknown.push(name));
        assert_eq!(found.ok(), Some((0, 0)));
        assert_eq!(
            unknown,
            ["cannot find user \"app\": the image has no /etc/passwd"]
        );
        let nowhere = Owner {
            user: Some(UserRef::Name {
                name: "app".to_owned(),
                input: FileInput::Scratch,
            }),
            group: None,
        };
        let error = look_up(&nowhere, |_, _| Ok(None), |_| {}).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot find user \"app\": there is no image to look it up in"
        );
    }
}
