//! What can go wrong, with a hint where one helps.

use std::io;
use std::path::{Path, PathBuf};

use kiln_registry::DownloadError;

/// Why a source could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// A file from a web server.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// What came is not what was expected.
    #[error("{what}: checksum mismatch: expected {expected}, got {got}")]
    Checksum {
        /// The address.
        what: String,
        /// What the user expects.
        expected: String,
        /// What came.
        got: String,
    },
    /// There is no `git`.
    #[error("git repository {url}: the git program is needed and not found")]
    NoGit {
        /// The repository.
        url: String,
    },
    /// `git` failed.
    #[error("git repository {url}: {message}")]
    Git {
        /// The repository.
        url: String,
        /// What `git` says.
        message: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("git repository {url}: no branch, tag or commit {reference:?}")]
    NoReference {
        /// The repository.
        url: String,
        /// What was asked for.
        reference: String,
    },
    /// The commit has no such folder.
    #[error("git repository {url}: no folder {folder:?} in commit {commit}")]
    NoFolder {
        /// The repository.
        url: String,
        /// What was asked for.
        folder: String,
        /// Where.
        commit: String,
    },
    /// Standard input cannot be read.
    #[error("cannot read the context from standard input: {source}")]
    Stream {
        /// The system's reason.
        source: io::Error,
    },
    /// What was fetched cannot be kept.
    #[error("cannot keep {}: {source}", path.display())]
    Keep {
        /// Where.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The user gave up.
    #[error("canceled")]
    Canceled,
}

impl RemoteError {
    pub(crate) fn keep(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Keep { path, source }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Download(error) => error.hint(),
            Self::Checksum { .. } => {
                Some("if the new content is wanted, put its checksum into the Dockerfile")
            }
            Self::NoGit { .. } => Some("install git, or add it to PATH"),
            Self::NoReference { .. } => Some(
                "a commit must be given with all its 40 or 64 digits, a branch or tag by its name",
            ),
            Self::NoFolder { .. } => {
                Some("what stands behind the colon is a folder in the repository")
            }
            _ => None,
        }
    }

    /// The user gave up.
    pub fn is_canceled(&self) -> bool {
        match self {
            Self::Canceled => true,
            Self::Download(error) => error.is_canceled(),
            _ => false,
        }
    }
}
