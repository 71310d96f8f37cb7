//! The distribution protocol (OCI distribution spec 1.1, Docker registry v2): resolve, pull, push.
//!
//! A [`Client`] is a blocking facade: its methods are called from any thread that is not itself a task of an async
//! runtime. The threads that do the network's work start with the first request, so a client that is never used costs
//! nothing. Everything that comes from a registry under a digest is verified while it is read.

mod auth;
mod client;
mod config;
pub mod credentials;
mod docker;
mod download;
mod error;
mod net;
mod pull;
mod push;

use std::sync::atomic::{AtomicBool, Ordering};

pub use client::{Client, Resolved};
pub use config::{ClientConfig, HostConfig, Proxies, Retry};
pub use credentials::{Credential, CredentialError, Credentials, NoCredentials};
pub use docker::{DockerError, DockerHost, DockerKeys};
pub use download::{Download, DownloadError, Validators};
pub use error::Error;
pub use pull::BlobReader;
pub use push::{Growing, Pushed, Source};

/// Follows a transfer, and can end it.
pub trait Observer: Send + Sync {
    /// So many of so many bytes are done. Called from the waiting thread, about every 50 ms.
    fn progress(&self, _done: u64, _total: u64) {}

    /// Asked about every 50 ms while waiting; once true, the call ends with [`Error::Canceled`].
    fn is_canceled(&self) -> bool {
        false
    }
}

/// Watches nothing.
impl Observer for () {}

/// A cancel flag.
impl Observer for AtomicBool {
    fn is_canceled(&self) -> bool {
        self.load(Ordering::Relaxed)
    }
}
