//! Files from any web server, over the same connections, proxies and certificates as registries.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::time::{Duration, Instant, SystemTime};

use kiln_image::Digest;
use reqwest::header::{
    ACCEPT_ENCODING, ETAG, HeaderMap, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED,
};
use reqwest::{Response, StatusCode, Url};
use sha2::{Digest as _, Sha256};
use tokio::time::{sleep, timeout};

use crate::Observer;
use crate::client::Client;
use crate::error::Error;
use crate::net::{self, Break, PATIENCE};

/// How often the observer hears of progress.
const REPORT: Duration = Duration::from_millis(50);

/// What tells one state of a file on a server from another (RFC 9110, 8.8).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Validators {
    /// The `ETag`, as it came.
    pub etag: Option<String>,
    /// The `Last-Modified`, as it came.
    pub last_modified: Option<String>,
}

impl Validators {
    /// Whether the server gave any.
    pub fn is_empty(&self) -> bool {
        self.etag.is_none() && self.last_modified.is_none()
    }

    fn of(headers: &HeaderMap) -> Self {
        let text = |name| Some(headers.get(name)?.to_str().ok()?.to_owned());
        Self {
            etag: text(ETAG),
            last_modified: text(LAST_MODIFIED),
        }
    }

    /// The time in `Last-Modified`.
    pub fn time(&self) -> Option<SystemTime> {
        let date = jiff::fmt::rfc2822::parse(self.last_modified.as_deref()?).ok()?;
        Some(SystemTime::from(date.timestamp()))
    }
}

/// What a server gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Download {
    /// The file is what it was under the validators that were sent.
    Unchanged,
    /// The file was written.
    File {
        /// The sha256 of its bytes.
        digest: Digest,
        /// How many bytes.
        size: u64,
        /// What to ask with the next time.
        validators: Validators,
    },
}

/// Why a file could not be had. Passwords in addresses are not shown.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The address is none.
    #[error("{url}: invalid address: {problem}")]
    Address {
        /// As given.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The server answered, and not with the file.
    #[error("{url}: the server answers {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// `404 Not Found`.
        status: String,
    },
    /// No connection, or it broke again and again.
    #[error("{url}: cannot be reached: {cause}")]
    Unreachable {
        /// What was asked for.
        url: String,
        /// What the network says.
        cause: String,
    },
    /// The server's certificate is not trusted.
    #[error("{url}: the server's certificate is not trusted: {cause}")]
    Distrusted {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The file cannot be written here.
    #[error("cannot keep {url}: {source}")]
    Write {
        /// What was asked for.
        url: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The observer ended it.
    #[error("canceled")]
    Canceled,
    /// The client cannot be used.
    #[error(transparent)]
    Client(Error),
}

impl DownloadError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Status { status, .. } if status.starts_with("404") => {
                Some("check the address; nothing is there")
            }
            Self::Status { status, .. }
                if status.starts_with("401") || status.starts_with("403") =>
            {
                Some("the server wants to know who asks, or does not let you in")
            }
            Self::Unreachable { .. } => Some(
                "check the host's name and the network; behind a proxy, http_proxy and https_proxy must be set",
            ),
            Self::Distrusted { .. } => Some(
                "the authority that signed it must be trusted on this machine; SSL_CERT_FILE can name a bundle that has it",
            ),
            _ => None,
        }
    }

    /// The user gave up.
    pub fn is_canceled(&self) -> bool {
        matches!(self, Self::Canceled)
    }
}

impl From<Error> for DownloadError {
    fn from(error: Error) -> Self {
        match error {
            Error::Canceled => Self::Canceled,
            error => Self::Client(error),
        }
    }
}

/// An attempt that failed.
enum Failed {
    /// Another one may do better.
    Later {
        kind: Break,
        cause: String,
    },
    Final(DownloadError),
}

impl Client {
    /// Fetches `url` into the empty `file`, unless the server has it in the state that the validators tell of. The
    /// observer hears how many bytes have come, and of how many (0 when the server does not say).
    ///
    /// # Errors
    /// See [`DownloadError`]. What had come is left in the file.
    pub fn download(
        &self,
        url: &str,
        known: &Validators,
        file: &mut File,
        observer: &dyn Observer,
    ) -> Result<Download, DownloadError> {
        let address = Url::parse(url).map_err(|error| DownloadError::Address {
            url: url.to_owned(),
            problem: error.to_string(),
        })?;
        let shown = shown(&address);
        let mut outcome = None;
        let waited = self.wait(observer, async {
            outcome = Some(
                self.attempts(&address, &shown, known, file, observer)
                    .await?,
            );
            Ok(())
        });
        waited?;
        outcome.expect("set by the work that ended well")
    }

    async fn attempts(
        &self,
        url: &Url,
        shown: &str,
        known: &Validators,
        file: &mut File,
        observer: &dyn Observer,
    ) -> Result<Result<Download, DownloadError>, Error> {
        let http = self.net().http("")?;
        let mut attempt = 1;
        loop {
            let mut request = http.get(url.clone()).header(ACCEPT_ENCODING, "identity");
            for (name, value) in [
                (IF_NONE_MATCH, &known.etag),
                (IF_MODIFIED_SINCE, &known.last_modified),
            ] {
                if let Some(value) = value {
                    request = request.header(name, value);
                }
            }
            let tried = match net::once(request, PATIENCE).await {
                Ok(response) => receive(response, shown, known, file, observer).await,
                Err(broken) if broken.distrust => Err(Failed::Final(DownloadError::Distrusted {
                    url: shown.to_owned(),
                    cause: broken.cause,
                })),
                Err(broken) => Err(Failed::Later {
                    kind: broken.kind,
                    cause: broken.cause,
                }),
            };
            let (kind, cause) = match tried {
                Ok(download) => return Ok(Ok(download)),
                Err(Failed::Final(error)) => return Ok(Err(error)),
                Err(Failed::Later { kind, cause }) => (kind, cause),
            };
            let Some(pause) = self.net().pause(attempt, self.net().attempts(kind), None) else {
                let url = shown.to_owned();
                return Ok(Err(DownloadError::Unreachable { url, cause }));
            };
            sleep(pause).await;
            attempt += 1;
        }
    }
}

/// Takes in an answer.
async fn receive(
    mut response: Response,
    shown: &str,
    known: &Validators,
    file: &mut File,
    observer: &dyn Observer,
) -> Result<Download, Failed> {
    let status = response.status();
    if status == StatusCode::NOT_MODIFIED && !known.is_empty() {
        return Ok(Download::Unchanged);
    }
    if net::may_pass(status) {
        return Err(Failed::Later {
            kind: Break::Later,
            cause: format!("the server answers {status}"),
        });
    }
    if !status.is_success() {
        return Err(Failed::Final(DownloadError::Status {
            url: shown.to_owned(),
            status: status.to_string(),
        }));
    }
    let failed = |source| {
        Failed::Final(DownloadError::Write {
            url: shown.to_owned(),
            source,
        })
    };
    let broken = |cause| Failed::Later {
        kind: Break::Later,
        cause,
    };
    file.set_len(0)
        .and_then(|()| file.rewind())
        .map_err(failed)?;
    let validators = Validators::of(response.headers());
    let total = response.content_length().unwrap_or(0);
    let mut hasher = Sha256::new();
    let mut size = 0;
    let mut reported = Instant::now();
    loop {
        match timeout(PATIENCE, response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                hasher.update(&chunk);
                file.write_all(&chunk).map_err(failed)?;
                size += chunk.len() as u64;
                if reported.elapsed() >= REPORT {
                    observer.progress(size, total);
                    reported = Instant::now();
                }
            }
            Ok(Ok(None)) => {
                observer.progress(size, total);
                break;
            }
            Ok(Err(error)) => return Err(broken(net::root_cause(&error))),
            Err(_) => return Err(broken(format!("nothing more for {} s", PATIENCE.as_secs()))),
        }
    }
    Ok(Download::File {
        digest: Digest::new(hasher.finalize().into()),
        size,
        validators,
    })
}

/// An address as messages show it.
fn shown(url: &Url) -> String {
    let mut url = url.clone();
    if url.password().is_some() {
        // Only addresses without a host cannot have one.
        let _ = url.set_password(Some("xxxxx"));
    }
    url.to_string()
}
