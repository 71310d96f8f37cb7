//! Owners where the file system cannot hold them: a user without subordinate ids can give files to nobody else.
//!
//! There every file belongs to that user, and its owner in the image is written down beside it: as an extended
//! attribute, which the kernel keeps through renames, links and copies into an upper layer. Links and fifos cannot have
//! one; theirs are known by inode.

use std::collections::HashMap;

/// The extended attribute that holds an [`OwnerRecord`]. Without it a file belongs to 0:0.
pub const OWNER_XATTR: &str = "user.kiln.owner";

/// Whose a file is in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnerRecord {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// The file, empty and regular on disk, is this device.
    pub device: Option<Device>,
}

/// A device that is only written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// A block device, not a character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl OwnerRecord {
    /// A file of the user and group, no device.
    pub fn file(uid: u32, gid: u32) -> Self {
        Self {
            uid,
            gid,
            device: None,
        }
    }

    /// Whether it says what holds without a record too.
    pub fn is_default(&self) -> bool {
        *self == Self::file(0, 0)
    }

    /// The value of the attribute: `33:44`, or `0:6:b:8:1` for a device.
    pub fn encode(&self) -> String {
        let Self { uid, gid, device } = self;
        match device {
            None => format!("{uid}:{gid}"),
            Some(device) => {
                let kind = if device.block { 'b' } else { 'c' };
                format!("{uid}:{gid}:{kind}:{}:{}", device.major, device.minor)
            }
        }
    }

    /// Reads the value of the attribute; `None` if it is none.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let mut fields = std::str::from_utf8(value).ok()?.split(':');
        let number = |field: Option<&str>| field?.parse::<u32>().ok();
        let (uid, gid) = (number(fields.next())?, number(fields.next())?);
        let device = match fields.next() {
            None => None,
            Some(kind @ ("b" | "c")) => Some(Device {
                block: kind == "b",
                major: number(fields.next())?,
                minor: number(fields.next())?,
            }),
            Some(_) => return None,
        };
        let record = Self { uid, gid, device };
        fields.next().is_none().then_some(record)
    }
}

/// An inode that is not mistaken for a later one with its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InodeKey {
    /// The number.
    pub inode: u64,
    /// When it was made, as seconds and nanoseconds; zeros where the file system does not say.
    pub born: (i64, u32),
}

/// User and group of files that cannot carry the attribute; who is not in it is 0:0.
pub type InodeOwners = HashMap<InodeKey, (u32, u32)>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_their_encoding() {
        let device = |block| {
            Some(Device {
                block,
                major: 8,
                minor: 1,
            })
        };
        for (device, text) in [
            (None, "33:4294967294"),
            (device(true), "33:4294967294:b:8:1"),
            (device(false), "33:4294967294:c:8:1"),
        ] {
            let record = OwnerRecord {
                uid: 33,
                gid: u32::MAX - 1,
                device,
            };
            assert_eq!(record.encode(), text);
            assert_eq!(OwnerRecord::decode(text.as_bytes()), Some(record));
        }
        for text in [
            "",
            "1",
            "1:",
            "1:2:",
            "1:2:c:1",
            "1:2:x:1:1",
            "1:2:c:1:1:1",
            "-1:2",
            "1:\u{fe}",
        ] {
            assert_eq!(OwnerRecord::decode(text.as_bytes()), None, "{text}");
        }
    }
}
