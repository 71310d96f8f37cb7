//! What can go wrong.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why a worker or a container could not be started.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// The program could not be executed. The text is what other runtimes print; the step ends with `code`.
    #[error("{message}")]
    Exec {
        /// `exec: "foo": executable file not found in $PATH` and the like.
        message: String,
        /// The exit code that this counts as: 127 not found, 126 not allowed, 255 not runnable.
        code: u8,
    },
    /// A mount could not be made.
    #[error("cannot mount {}: {what}", dest.display())]
    Mount {
        /// Where in the container.
        dest: PathBuf,
        /// What failed.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// Something else failed while the container was set up.
    #[error("cannot start the container: {what}")]
    Setup {
        /// What failed.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// The request makes no sense.
    #[error("cannot start the container: {0}")]
    Invalid(String),
    /// The worker process could not be started.
    #[error("cannot start the worker process: {what}")]
    Worker {
        /// What failed, with a hint if there is one.
        what: String,
        /// Why.
        source: io::Error,
    },
    /// `newuidmap` or `newgidmap` refused.
    #[error("{} failed: {message}", tool.display())]
    IdMap {
        /// The program.
        tool: PathBuf,
        /// What it printed.
        message: String,
    },
}

impl SandboxError {
    pub(crate) fn setup(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Setup {
            what: what.into(),
            source: source.into(),
        }
    }
}
