//! What can go wrong between here and a registry.

use std::io;
use std::time::Duration;

use kiln_image::Digest;

use crate::credentials::CredentialError;

/// An error of the registry client. Each names the registry or the thing that it concerns.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry does not have it.
    #[error("{what}: not found")]
    NotFound {
        /// `docker.io/library/busybox:nope`, `blob sha256:... of docker.io/library/busybox`.
        what: String,
    },
    /// Not allowed; or not there, which some registries tell nobody.
    #[error("{what}: access denied, or it does not exist{}", detail(message))]
    Denied {
        /// What was asked for.
        what: String,
        /// The registry's name as users write it.
        registry: String,
        /// What the registry says.
        message: String,
    },
    /// Too many requests, and waiting did not help.
    #[error("{registry}: too many requests{}{}", detail(message), later(*retry_after))]
    RateLimited {
        /// The registry's name.
        registry: String,
        /// What the registry says.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// No connection, or it broke again and again.
    #[error("{registry}: cannot be reached: {cause}")]
    Unreachable {
        /// The registry's name.
        registry: String,
        /// What the network says.
        cause: String,
    },
    /// The bytes are not those of the digest.
    #[error("{what}: corrupt: expected {expected}, got {got}")]
    Corrupt {
        /// What was transferred.
        what: String,
        /// The digest that was asked for.
        expected: Digest,
        /// The digest or the size that came.
        got: String,
    },
    /// An answer that means failure.
    #[error("{what}: the registry answers {status}{}", detail(message))]
    Status {
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
        /// What the registry says.
        message: String,
    },
    /// An answer that breaks the protocol.
    #[error("{what}: unexpected answer: {problem}")]
    Protocol {
        /// What was asked for.
        what: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// The observer ended the transfer.
    #[error("canceled")]
    Canceled,
    /// What should be pushed cannot be read.
    #[error("cannot read what should be pushed")]
    Source(#[source] io::Error),
    /// The credentials cannot be had.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
    /// The client's own configuration cannot be used.
    #[error("registry client: {0}")]
    Config(String),
}

impl Error {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotFound { .. } => "check the name and the tag".to_owned(),
            Self::Denied { registry, .. } => {
                format!("if it exists, log in with `kiln login {registry}`")
            }
            Self::RateLimited { registry, .. } => {
                format!("requests with an account are often limited less: `kiln login {registry}`")
            }
            Self::Unreachable { .. } => {
                "check the registry's name, the network, and the proxy (HTTPS_PROXY, NO_PROXY)"
                    .to_owned()
            }
            Self::Corrupt { .. } => {
                "the registry, or something on the way, damages it; nothing of it was kept"
                    .to_owned()
            }
            _ => return None,
        })
    }

    /// Another registry with the same content may do better: a reason to go on from a mirror to its origin.
    pub(crate) fn is_local_to_host(&self) -> bool {
        !matches!(self, Self::Canceled | Self::Source(_) | Self::Config(_))
    }
}

fn detail(message: &str) -> String {
    if message.is_empty() {
        String::new()
    } else {
        format!(": {message}")
    }
}

fn later(time: Option<Duration>) -> String {
    time.map_or_else(String::new, |time| {
        format!(" (try again in {} s)", time.as_secs())
    })
}
