//! How to reach registries.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use crate::credentials::{Credentials, NoCredentials};
use crate::net::PATIENCE;

/// The name of Docker Hub in references.
pub(crate) const DOCKER_HUB: &str = "docker.io";
/// The host that serves it.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// The settings of a [`crate::Client`].
#[derive(Clone)]
pub struct ClientConfig {
    /// What is special about single registries, by their name in references: `docker.io`, `localhost:5000`.
    pub hosts: BTreeMap<String, HostConfig>,
    /// Certificates of authorities to trust beside the system's, each a PEM file's content.
    pub certificates: Vec<Vec<u8>>,
    /// Who knows the user's names and passwords.
    pub credentials: Arc<dyn Credentials>,
    /// The proxies to use.
    pub proxies: Proxies,
    /// The `User-Agent` of all requests.
    pub user_agent: String,
    /// What to do after failures that may pass.
    pub retry: Retry,
    /// Upload blobs in pieces of at most this many bytes instead of one stream, for proxies that limit requests.
    pub upload_chunk: Option<u64>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            certificates: Vec::new(),
            credentials: Arc::new(NoCredentials),
            proxies: Proxies::default(),
            user_agent: concat!("kiln/", env!("CARGO_PKG_VERSION")).to_owned(),
            retry: Retry::default(),
            upload_chunk: None,
        }
    }
}

/// What is special about one registry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostConfig {
    /// Asked first when pulling, in order: `https://mirror.example`, `http://10.0.0.1:5000`, or just `mirror.example`.
    /// A mirror's own entry in the hosts decides about its certificates.
    pub mirrors: Vec<String>,
    /// Speak HTTP without TLS. When not set, that is done with hosts on the loopback interface only.
    pub plain_http: Option<bool>,
    /// Accept any certificate, and HTTP if the host does not speak TLS.
    pub insecure: bool,
    /// Certificates of authorities to trust for this registry only, each a PEM file's content.
    pub certificates: Vec<Vec<u8>>,
    /// The certificate that this machine shows to the registry, and its key: PEM files' contents, one after the other.
    pub identity: Option<Vec<u8>>,
}

/// Proxies, as the usual environment variables give them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    /// `http_proxy`.
    pub http: Option<String>,
    /// `https_proxy`.
    pub https: Option<String>,
    /// `no_proxy`: names, domains, addresses, separated by commas.
    pub none: Option<String>,
}

/// How often to try again, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Tries in all for an answer of 429 or 5xx and for connections that broke.
    pub attempts: u32,
    /// Tries in all for connections that could not be made.
    pub connects: u32,
    /// The pause before the second try; it doubles with every further one.
    pub pause: Duration,
    /// No pause is longer. A registry that asks for more is not asked again.
    pub longest_pause: Duration,
    /// Who says nothing for so long is asked again.
    pub patience: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 6,
            connects: 3,
            pause: Duration::from_millis(250),
            longest_pause: Duration::from_mins(1),
            patience: PATIENCE,
        }
    }
}

impl ClientConfig {
    pub(crate) fn host(&self, registry: &str) -> HostConfig {
        self.hosts.get(registry).cloned().unwrap_or_default()
    }
}

/// The host that serves a registry of this name.
pub(crate) fn serving_host(registry: &str) -> &str {
    if registry == DOCKER_HUB {
        DOCKER_HUB_HOST
    } else {
        registry
    }
}

/// Whether a `host`, `host:port` or `[address]:port` is on the loopback interface.
pub(crate) fn is_loopback(authority: &str) -> bool {
    if let Some(rest) = authority.strip_prefix('[') {
        let address = rest.split(']').next().unwrap_or_default();
        return address
            .parse()
            .is_ok_and(|address: Ipv6Addr| address.is_loopback());
    }
    let host = authority.split(':').next().unwrap_or_default();
    host == "localhost"
        || host.ends_with(".localhost")
        || host
            .parse()
            .is_ok_and(|address: Ipv4Addr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:5000",
            "a.localhost",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "docker.io",
            "10.0.0.1:5000",
            "[::2]:5000",
            "localhost.example",
            "127.0.0.1.example",
            "",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
