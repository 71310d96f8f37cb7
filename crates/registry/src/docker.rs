//! Images into a Docker Engine, by its HTTP API (moby, docs/api, "Import images").

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use reqwest::Response;
use serde::Deserialize;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::Observer;
use crate::client::Client;
use crate::error::Error;
use crate::net::{self, PATIENCE};

/// Where the engine is when nobody says anything else.
const USUAL: &str = "unix:///var/run/docker.sock";
/// How long an engine may take to unpack an image after its last byte.
const LOAD_PATIENCE: Duration = Duration::from_mins(30);
/// Pieces in which an archive is read, and how many are read ahead.
const PIECE: usize = 256 << 10;
const PIECES_AHEAD: usize = 4;

/// Where a Docker Engine listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DockerHost {
    /// On a socket.
    Unix(PathBuf),
    /// At an address: `host:port`.
    Tcp(String),
    /// At an address, behind TLS.
    Tls(String, Arc<DockerKeys>),
}

/// Who an engine behind TLS is, and who the client is, all PEM.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct DockerKeys {
    /// Certificates of those who may vouch for the engine; the system's where there are none.
    pub authorities: Option<Vec<u8>>,
    /// The client's certificate and key.
    pub identity: Option<Vec<u8>>,
}

impl fmt::Debug for DockerKeys {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The key is nobody's business.
        out.write_str("DockerKeys")
    }
}

impl DockerHost {
    /// The same engine behind TLS; a socket needs none.
    #[must_use]
    pub fn behind_tls(self, keys: DockerKeys) -> Self {
        match self {
            Self::Tcp(address) => Self::Tls(address, Arc::new(keys)),
            other => other,
        }
    }
}

impl Default for DockerHost {
    fn default() -> Self {
        Self::Unix(PathBuf::from(&USUAL["unix://".len()..]))
    }
}

impl fmt::Display for DockerHost {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(out, "unix://{}", path.display()),
            Self::Tcp(address) | Self::Tls(address, _) => write!(out, "tcp://{address}"),
        }
    }
}

impl FromStr for DockerHost {
    type Err = DockerError;

    /// Reads what `DOCKER_HOST` holds.
    fn from_str(text: &str) -> Result<Self, DockerError> {
        let wrong = |problem: &str| DockerError::Address {
            text: text.to_owned(),
            problem: problem.to_owned(),
        };
        let (scheme, rest) = text
            .split_once("://")
            .ok_or_else(|| wrong("expected unix://PATH or tcp://HOST:PORT"))?;
        let rest = rest.trim_end_matches('/');
        match scheme {
            "unix" if rest.starts_with('/') => Ok(Self::Unix(rest.into())),
            "unix" => Err(wrong("expected the socket's absolute path")),
            "tcp" | "http" if rest.is_empty() || rest.contains('/') => {
                Err(wrong("expected tcp://HOST:PORT"))
            }
            "tcp" | "http" => Ok(Self::Tcp(if rest.contains(':') {
                rest.to_owned()
            } else {
                format!("{rest}:2375")
            })),
            other => Err(wrong(&format!("{other} is not spoken"))),
        }
    }
}

/// The `user@host:port` of an address in the words of the ssh program.
fn ssh_target(address: &str) -> String {
    let place = address.split('/').next().unwrap_or_default();
    match place.rsplit_once(':') {
        // Not the end of an IPv6 address.
        Some((host, port)) if !port.is_empty() && port.bytes().all(|it| it.is_ascii_digit()) => {
            format!("-p {port} {host}")
        }
        _ => place.to_owned(),
    }
}

/// Why an image did not get into an engine.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// The address is none.
    #[error("DOCKER_HOST {text:?}: {problem}")]
    Address {
        /// As given.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Nobody answers.
    #[error("no Docker Engine answers at {host}: {cause}")]
    Unreachable {
        /// Where.
        host: DockerHost,
        /// What the system says.
        cause: String,
    },
    /// The engine does not want it.
    #[error("the Docker Engine at {host} refuses: {message}")]
    Refused {
        /// Where.
        host: DockerHost,
        /// What it says.
        message: String,
    },
    /// The client cannot be used, or the user gave up.
    #[error(transparent)]
    Client(#[from] Error),
}

impl DockerError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Address { text, .. } => match text.strip_prefix("ssh://").map(ssh_target) {
                Some(target) if !target.is_empty() => {
                    return Some(format!(
                        "send an archive instead: kiln save NAME | ssh {target} docker load"
                    ));
                }
                _ => Some(
                    "a socket or an address will do; for others write an archive: kiln save NAME | docker load",
                ),
            },
            Self::Unreachable {
                host: DockerHost::Unix(_),
                cause,
            } if cause.contains("ermission denied") => {
                Some("the socket is open to root and to the group docker")
            }
            Self::Unreachable { .. } => Some(
                "is it running? DOCKER_HOST names another place: unix://PATH or tcp://HOST:PORT",
            ),
            Self::Refused { .. } | Self::Client(_) => None,
        };
        hint.map(str::to_owned)
    }

    /// The user gave up.
    pub fn is_canceled(&self) -> bool {
        matches!(self, Self::Client(Error::Canceled))
    }
}

/// One line of the engine's answer.
#[derive(Debug, Deserialize)]
struct Said {
    #[serde(default)]
    stream: String,
    error: Option<String>,
    message: Option<String>,
}

impl Client {
    /// Hands an engine an archive of images as `docker load` reads it; gives what it says.
    ///
    /// # Errors
    /// When nobody answers, or the engine refuses.
    pub fn docker_load(
        &self,
        host: &DockerHost,
        archive: File,
        observer: &dyn Observer,
    ) -> Result<String, DockerError> {
        let mut outcome = None;
        self.wait(observer, async {
            outcome = Some(load(host, archive).await);
            Ok(())
        })?;
        outcome.expect("set by the work that ended well")
    }
}

async fn load(host: &DockerHost, archive: File) -> Result<String, DockerError> {
    let unreachable = |error: &reqwest::Error| DockerError::Unreachable {
        host: host.clone(),
        cause: net::root_cause(error),
    };
    let (http, base) = connection(host)?;
    // Asked first: an engine that is not there should not cost the making of an archive.
    let ping = http.get(format!("{base}/_ping")).timeout(PATIENCE).send();
    let ping = ping.await.map_err(|error| unreachable(&error))?;
    if !ping.status().is_success() {
        return Err(refused(host, ping).await);
    }
    let sent = http
        .post(format!("{base}/images/load?quiet=1"))
        .header(reqwest::header::CONTENT_TYPE, "application/x-tar")
        .body(body(archive))
        .timeout(LOAD_PATIENCE)
        .send();
    let response = sent.await.map_err(|error| unreachable(&error))?;
    if !response.status().is_success() {
        return Err(refused(host, response).await);
    }
    let text = match timeout(LOAD_PATIENCE, response.text()).await {
        Ok(text) => text.map_err(|error| unreachable(&error))?,
        Err(_) => return Err(refusal(host, "it did not finish its answer")),
    };
    let mut said = String::new();
    for line in text.lines() {
        match serde_json::from_str(line) {
            Ok(Said {
                error: Some(message),
                ..
            }) => return Err(refusal(host, &message)),
            Ok(Said { stream, .. }) => said.push_str(&stream),
            Err(_) => {}
        }
    }
    Ok(said)
}

fn connection(host: &DockerHost) -> Result<(reqwest::Client, String), Error> {
    // No certificates are needed, and no proxy is on the way to the engine.
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]);
    let (builder, base) = match host {
        DockerHost::Unix(path) => (
            builder.unix_socket(path.as_path()),
            "http://docker".to_owned(),
        ),
        DockerHost::Tcp(address) => (builder, format!("http://{address}")),
        DockerHost::Tls(address, keys) => {
            let broken = |error: reqwest::Error| {
                Error::Config(format!(
                    "the Docker Engine's certificates: {}",
                    net::root_cause(&error)
                ))
            };
            let mut builder = reqwest::Client::builder().no_proxy();
            if let Some(pem) = &keys.authorities {
                let known = reqwest::Certificate::from_pem_bundle(pem).map_err(broken)?;
                builder = builder.tls_certs_only(known);
            }
            if let Some(pem) = &keys.identity {
                builder = builder.identity(reqwest::Identity::from_pem(pem).map_err(broken)?);
            }
            (builder, format!("https://{address}"))
        }
    };
    let http = builder.build();
    let http = http.map_err(|error| Error::Config(net::root_cause(&error)))?;
    Ok((http, base))
}

async fn refused(host: &DockerHost, response: Response) -> DockerError {
    let status = response.status();
    let text = response.text().await.unwrap_or_default();
    let said = serde_json::from_str::<Said>(&text).ok();
    let message = said.and_then(|said| said.message.or(said.error));
    refusal(host, &message.unwrap_or_else(|| status.to_string()))
}

fn refusal(host: &DockerHost, message: &str) -> DockerError {
    DockerError::Refused {
        host: host.clone(),
        message: message.trim().to_owned(),
    }
}

/// The archive as it is written on the other side of a pipe.
fn body(mut archive: File) -> reqwest::Body {
    let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES_AHEAD);
    tokio::task::spawn_blocking(move || {
        loop {
            let mut piece = vec![0; PIECE];
            let read = match archive.read(&mut piece) {
                Ok(0) => return,
                Ok(count) => {
                    piece.truncate(count);
                    Ok(Bytes::from(piece))
                }
                Err(error) => Err(error),
            };
            let failed = read.is_err();
            // The request may be over before its body is.
            if sender.blocking_send(read).is_err() || failed {
                return;
            }
        }
    });
    let pieces = stream::unfold(receiver, async |mut receiver| {
        Some((receiver.recv().await?, receiver))
    });
    reqwest::Body::wrap_stream(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        let shown = |text: &str| match text.parse::<DockerHost>() {
            Ok(host) => host.to_string(),
            Err(error) => error.to_string(),
        };
        for (text, expected) in [
            ("unix:///var/run/docker.sock", "unix:///var/run/docker.sock"),
            ("tcp://10.0.0.1:2376", "tcp://10.0.0.1:2376"),
            ("tcp://build/", "tcp://build:2375"),
            ("http://[::1]:1", "tcp://[::1]:1"),
        ] {
            assert_eq!(shown(text), expected);
        }
        for text in [
            "",
            "/run/docker.sock",
            "unix://a",
            "ssh://me@there",
            "tcp://",
            "tcp://a/b",
        ] {
            assert!(
                shown(text).starts_with("DOCKER_HOST"),
                "{text}: {}",
                shown(text)
            );
        }
        assert_eq!(DockerHost::default().to_string(), USUAL);
        for (address, target) in [
            ("me@there", "me@there"),
            ("me@there:2222", "-p 2222 me@there"),
            ("there/run/docker.sock", "there"),
            ("", ""),
        ] {
            assert_eq!(ssh_target(address), target);
        }
    }
}
