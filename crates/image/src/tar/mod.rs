//! Tar archives as image layers use them: POSIX.1-2017 `pax` interchange and `ustar` formats, GNU tar's long names,
//! numbers and sparse files, read with the semantics of Go's `archive/tar`, by which container tools judge archives.
//!
//! Where implementations differ, the reader sides with Go, since a reader that frames an archive differently from the
//! one that checked it can be made to see other files: a PAX `size` overrides the header's for framing; links, folders,
//! devices and pipes have no content whatever their size field says; records are taken by their length, so that values
//! can be binary; global PAX headers are checked but change nothing.

mod block;
mod pax;
mod reader;
mod sparse;
mod writer;

#[cfg(test)]
mod tests;

pub use reader::{Content, Reader, TarEntry};
pub use writer::{Writer, header_bytes, plain_file_header};

use crate::Xattrs;

/// The size of a block: headers take one, contents are padded to it.
pub const BLOCK: usize = 512;

/// What a tar entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EntryKind {
    /// A regular file, also a sparse or contiguous one.
    #[default]
    File,
    /// Another name of the file that `link` names.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    Char,
    /// A block device.
    Block,
    /// A folder.
    Dir,
    /// A named pipe.
    Fifo,
    /// Anything else, by its type byte: volume labels, GNU's folder lists.
    Other(u8),
}

/// A tar entry without its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Header {
    /// The name as written, not cleaned.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Of links: where to. Hard links name a path of the archive.
    pub link: Vec<u8>,
    /// Bytes of content; of sparse files with the holes.
    pub size: u64,
    /// Permission bits and setuid, setgid, sticky; more when the archive has more.
    pub mode: u32,
    /// Owner.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// Name of the owner; usually empty.
    pub user: Vec<u8>,
    /// Name of the group; usually empty.
    pub group: Vec<u8>,
    /// Modification time: seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Of devices: major and minor number.
    pub device: (u32, u32),
    /// Extended attributes, sorted by name.
    pub xattrs: Xattrs,
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The source failed.
    #[error("cannot read the archive at byte {offset}")]
    Io {
        /// Where.
        offset: u64,
        /// Why.
        source: std::io::Error,
    },
    /// The archive is damaged.
    #[error("invalid tar archive at byte {offset}: {what}")]
    Invalid {
        /// Where the header starts.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
    /// The archive ends too early.
    #[error("the tar archive is cut off at byte {offset}")]
    CutOff {
        /// Where it ends.
        offset: u64,
    },
}

impl From<TarError> for std::io::Error {
    fn from(error: TarError) -> Self {
        let kind = match &error {
            TarError::Io { source, .. } => source.kind(),
            TarError::Invalid { .. } => std::io::ErrorKind::InvalidData,
            TarError::CutOff { .. } => std::io::ErrorKind::UnexpectedEof,
        };
        Self::new(kind, error)
    }
}

/// What is wrong with a part of an archive, before it is known where.
type Fault = &'static str;
