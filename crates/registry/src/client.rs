//! The blocking facade, and manifests.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use kiln_image::{Descriptor, Digest, Reference, media_type};
use reqwest::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use reqwest::{Response, StatusCode};
use sha2::{Digest as _, Sha256};
use tokio::runtime::{Builder, Runtime};
use tokio::time::sleep;

use crate::Observer;
use crate::auth::Scopes;
use crate::config::ClientConfig;
use crate::error::Error;
use crate::net::{self, Endpoint, Net};

/// Threads that do the network's work: mostly waiting, and decrypting.
const THREADS: usize = 2;
/// How often an observer is asked.
pub(crate) const GLANCE: Duration = Duration::from_millis(50);
const DIGEST_HEADER: &str = "docker-content-digest";

/// A client for all registries. Cheap to clone; clones share connections, tokens and threads.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    net: Net,
    runtime: OnceLock<Result<Background, String>>,
}

/// A runtime that may be dropped anywhere, also within another one.
struct Background(Option<Runtime>);

impl Drop for Background {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A manifest or an index as the registry has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    /// The sha256 of the bytes.
    pub digest: Digest,
    /// What the registry says that it is; [`kiln_image::parse_manifest`] checks that.
    pub media_type: String,
    /// The document, to be kept as it is.
    pub bytes: Vec<u8>,
}

impl Resolved {
    /// The document's length in bytes.
    pub fn size(&self) -> u64 {
        self.bytes.len() as u64
    }
}

impl Client {
    /// Makes a client. Nothing happens before the first request.
    pub fn new(config: ClientConfig) -> Self {
        Self(Arc::new(Inner {
            net: Net::new(config),
            runtime: OnceLock::new(),
        }))
    }

    /// Asks what a tag points to, without fetching it: with Docker Hub that does not count as a pull. A reference with
    /// a digest is checked to exist.
    pub fn head(
        &self,
        reference: &Reference,
        observer: &dyn Observer,
    ) -> Result<Descriptor, Error> {
        self.wait(
            observer,
            self.pull(reference, async |endpoint| {
                self.head_at(endpoint, reference).await
            }),
        )
    }

    /// Fetches what a reference points to.
    pub fn resolve(
        &self,
        reference: &Reference,
        observer: &dyn Observer,
    ) -> Result<Resolved, Error> {
        let pull = self.pull(reference, async |endpoint| {
            let digest = match reference.digest() {
                Some(digest) => digest,
                None => match self.head_at(endpoint, reference).await {
                    Ok(head) => head.digest,
                    // Some registries name no digest in answers to HEAD.
                    Err(Error::Protocol { .. }) => {
                        return self.get_at(endpoint, reference, None).await;
                    }
                    Err(error) => return Err(error),
                },
            };
            self.get_at(endpoint, reference, Some(digest)).await
        });
        self.wait(observer, pull)
    }

    /// Fetches a manifest or an index of the reference's repository by digest.
    pub fn manifest(
        &self,
        reference: &Reference,
        digest: &Digest,
        observer: &dyn Observer,
    ) -> Result<Resolved, Error> {
        self.wait(
            observer,
            self.pull(reference, async |endpoint| {
                self.get_at(endpoint, reference, Some(*digest)).await
            }),
        )
    }

    /// Puts a manifest or an index at the reference's tag, or at its own digest if the reference has no tag.
    pub fn push_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
        observer: &dyn Observer,
    ) -> Result<Digest, Error> {
        let digest = sha256(bytes);
        let name = reference
            .tag()
            .map_or_else(|| digest.to_string(), str::to_owned);
        let bytes = Bytes::copy_from_slice(bytes);
        self.wait(observer, async {
            let what = reference.to_string();
            let endpoint = self.net().endpoint(reference.registry()).await?;
            let url = endpoint.url(reference.repository(), &format!("manifests/{name}"))?;
            let scopes = Scopes::push(reference.repository(), None);
            let response = self
                .net()
                .send(
                    &endpoint,
                    &scopes,
                    self.net().config.retry.patience,
                    |http| {
                        http.put(url.clone())
                            .header(CONTENT_TYPE, media_type)
                            .body(bytes.clone())
                    },
                )
                .await?;
            if !response.status().is_success() {
                return Err(net::failure(response, &endpoint.registry, &what).await);
            }
            match digest_header(response.headers()) {
                Some(got) if got != digest => Err(Error::Corrupt {
                    what,
                    expected: digest,
                    got: got.to_string(),
                }),
                _ => Ok(digest),
            }
        })
    }

    /// Checks that a registry answers, and accepts the credentials that it demands: what `kiln login` needs to know.
    pub fn ping(&self, registry: &str, observer: &dyn Observer) -> Result<(), Error> {
        self.wait(observer, async {
            let endpoint = self.net().endpoint(registry).await?;
            let url = endpoint.base.clone();
            let response = self
                .net()
                .send(
                    &endpoint,
                    &Scopes::none(),
                    self.net().config.retry.patience,
                    |http| http.get(url.clone()),
                )
                .await?;
            if response.status().is_success() {
                return Ok(());
            }
            Err(net::failure(response, registry, &format!("registry {registry}")).await)
        })
    }

    async fn head_at(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
    ) -> Result<Descriptor, Error> {
        let name = reference.digest().map(|digest| digest.to_string());
        let name = name.as_deref().or(reference.tag()).unwrap_or("latest");
        let response = self
            .manifest_request(endpoint, reference, name, true)
            .await?;
        let digest = reference
            .digest()
            .or_else(|| digest_header(response.headers()));
        let digest = digest.ok_or_else(|| Error::Protocol {
            what: reference.to_string(),
            problem: "no sha256 digest in it".to_owned(),
        })?;
        let size = response
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|size| size.to_str().ok()?.parse().ok());
        Ok(Descriptor::new(
            &media_type_header(response.headers()),
            digest,
            size.unwrap_or(0),
        ))
    }

    async fn get_at(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        digest: Option<Digest>,
    ) -> Result<Resolved, Error> {
        let name = digest.map(|digest| digest.to_string());
        let name = name.as_deref().or(reference.tag()).unwrap_or("latest");
        let response = self
            .manifest_request(endpoint, reference, name, false)
            .await?;
        let media_type = media_type_header(response.headers());
        let what = reference.to_string();
        let bytes = net::body(response, &what).await?.to_vec();
        let got = sha256(&bytes);
        match digest {
            Some(expected) if expected != got => Err(Error::Corrupt {
                what,
                expected,
                got: got.to_string(),
            }),
            _ => Ok(Resolved {
                digest: got,
                media_type,
                bytes,
            }),
        }
    }

    async fn manifest_request(
        &self,
        endpoint: &Endpoint,
        reference: &Reference,
        name: &str,
        head: bool,
    ) -> Result<Response, Error> {
        let url = endpoint.url(reference.repository(), &format!("manifests/{name}"))?;
        let accept = media_type::MANIFESTS.join(", ");
        let scopes = Scopes::pull(&endpoint.repository(reference.repository()));
        let response = self
            .net()
            .send(
                endpoint,
                &scopes,
                self.net().config.retry.patience,
                |http| {
                    let request = if head {
                        http.head(url.clone())
                    } else {
                        http.get(url.clone())
                    };
                    request.header(ACCEPT, &accept)
                },
            )
            .await?;
        match response.status() {
            StatusCode::OK => Ok(response),
            _ => Err(net::failure(response, &endpoint.registry, &reference.to_string()).await),
        }
    }

    /// Tries the mirrors in order, then the registry itself, whose error is the one that counts; but where it cannot be
    /// reached at all, as in networks that have mirrors for that reason, that of a mirror which answered.
    pub(crate) async fn pull<T>(
        &self,
        reference: &Reference,
        attempt: impl AsyncFn(&Endpoint) -> Result<T, Error>,
    ) -> Result<T, Error> {
        let mirrors = self.net().sources(reference.registry()) - 1;
        let mut answered = None;
        for number in 0..mirrors {
            let tried = match self.net().source(reference.registry(), number).await {
                Ok(endpoint) => attempt(&endpoint).await,
                Err(error) => Err(error),
            };
            match tried {
                Err(error) if error.is_local_to_host() => {
                    if !matches!(error, Error::Unreachable { .. }) {
                        answered.get_or_insert(error);
                    }
                }
                result => return result,
            }
        }
        match attempt(&self.net().source(reference.registry(), mirrors).await?).await {
            Err(Error::Unreachable { registry, cause }) => {
                Err(answered.unwrap_or(Error::Unreachable { registry, cause }))
            }
            result => result,
        }
    }

    pub(crate) fn net(&self) -> &Net {
        &self.0.net
    }

    /// Runs network work on this thread until it is done or the observer has enough.
    pub(crate) fn wait<T>(
        &self,
        observer: &dyn Observer,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.wait_counting(observer, &AtomicU64::new(0), || 0, work)
    }

    /// The same, with a count of bytes that the observer hears of, as soon as their total is known.
    pub(crate) fn wait_counting<T>(
        &self,
        observer: &dyn Observer,
        done: &AtomicU64,
        total: impl Fn() -> u64,
        work: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Error> {
        self.runtime()?.block_on(async {
            tokio::pin!(work);
            loop {
                if observer.is_canceled() {
                    return Err(Error::Canceled);
                }
                tokio::select! {
                    result = &mut work => return result,
                    () = sleep(GLANCE) => {
                        let total = total();
                        if total > 0 {
                            observer.progress(done.load(Ordering::Relaxed), total);
                        }
                    }
                }
            }
        })
    }

    fn runtime(&self) -> Result<&Runtime, Error> {
        let started = self.0.runtime.get_or_init(|| {
            Builder::new_multi_thread()
                .worker_threads(THREADS)
                .thread_name("registry")
                .enable_all()
                .build()
                .map(|runtime| Background(Some(runtime)))
                .map_err(|error| error.to_string())
        });
        match started {
            Ok(Background(Some(runtime))) => Ok(runtime),
            Ok(Background(None)) => Err(Error::Config("it is shut down".to_owned())),
            Err(error) => Err(Error::Config(format!("cannot start threads: {error}"))),
        }
    }
}

/// The sha256 of some bytes.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    Digest::new(Sha256::digest(bytes).into())
}

fn digest_header(headers: &HeaderMap) -> Option<Digest> {
    headers.get(DIGEST_HEADER)?.to_str().ok()?.parse().ok()
}

/// The media type without its parameters.
fn media_type_header(headers: &HeaderMap) -> String {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    value
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned()
}
