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
    /// The system does not let this user have a user namespace, or not one in which mounts can be made.
    #[error(
        "cannot start the worker process: this system allows no user namespace that works: {what}"
    )]
    NoNamespace {
        /// What was refused.
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

/// The ways out where user namespaces are forbidden.
const NAMESPACES: &str = "\
steps run in a user namespace, and the system forbids it or takes its rights away. What helps, as root, depends on the
system; the first that fits:
  Ubuntu 23.10 and later (AppArmor): allow it to all programs,
    sysctl -w kernel.apparmor_restrict_unprivileged_userns=0
    or to Kiln alone, with this in /etc/apparmor.d/kiln, then apparmor_parser -r /etc/apparmor.d/kiln:
      abi <abi/4.0>,
      profile kiln /PATH/OF/kiln flags=(unconfined) { userns, }
  Debian 10, hardened kernels:   sysctl -w kernel.unprivileged_userns_clone=1
  a limit of none (RHEL 7):      sysctl -w user.max_user_namespaces=15000
  inside of a container:         start that one with --security-opt seccomp=unconfined
                                 --security-opt apparmor=unconfined --security-opt systempaths=unconfined
  nothing of these:              run kiln as root
A line in /etc/sysctl.d/ makes a setting last. `kiln info` says whether it works";

impl SandboxError {
    /// The code of an [`SandboxError::Exec`] for a program that is there and that the kernel cannot execute.
    pub const NOT_EXECUTABLE: u8 = 255;

    /// A way out, where there is one.
    pub fn hint(&self) -> Option<&'static str> {
        matches!(self, Self::NoNamespace { .. }).then_some(NAMESPACES)
    }

    pub(crate) fn setup(what: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Setup {
            what: what.into(),
            source: source.into(),
        }
    }
}
