//! Pulling blobs.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use kiln_image::{Descriptor, Digest, Reference, media_type};
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{RequestBuilder, Response, StatusCode, Url};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::auth::Scopes;
use crate::client::Client;
use crate::error::Error;
use crate::net;
use crate::{Observer, net::Net};

/// How often the observer hears of progress.
const REPORT: Duration = Duration::from_millis(50);

impl Client {
    /// Opens a blob of the reference's repository.
    ///
    /// `have` gives the blob's first bytes that are already on disk from an earlier attempt ([`io::empty`] for none):
    /// the reader goes on behind them, and checks them with the rest. No request is made before the first read.
    ///
    /// # Errors
    /// When `have` cannot be read, or holds more than the whole blob.
    pub fn blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        have: &mut dyn Read,
        observer: Arc<dyn Observer>,
    ) -> Result<BlobReader, Error> {
        let mut hasher = Sha256::new();
        let mut offset = 0;
        let mut buffer = vec![0; 1 << 16];
        loop {
            let count = match have.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::Source(error)),
            };
            hasher.update(&buffer[..count]);
            offset += count as u64;
        }
        // Who publishes such a layer gives it himself; a registry may have it all the same.
        let urls = match &descriptor.urls {
            Some(urls) if media_type::is_foreign(&descriptor.media_type) => urls.clone(),
            _ => Vec::new(),
        };
        let reader = BlobReader {
            client: self.clone(),
            reference: reference.clone(),
            urls,
            digest: descriptor.digest,
            size: descriptor.size,
            observer,
            hasher,
            offset,
            source: 0,
            response: None,
            skip: 0,
            chunk: Bytes::new(),
            failures: 0,
            verified: false,
            reported: Instant::now(),
        };
        if offset > descriptor.size {
            return Err(reader.corrupt(format!("{offset} bytes")));
        }
        Ok(reader)
    }

    /// Whether the reference's repository has a blob.
    ///
    /// # Errors
    /// When the registry cannot be asked.
    pub fn has_blob(
        &self,
        reference: &Reference,
        digest: Digest,
        observer: &dyn Observer,
    ) -> Result<bool, Error> {
        let work = self.pull(reference, async |endpoint| {
            let repository = endpoint.repository(reference.repository());
            let url = endpoint.url(reference.repository(), &format!("blobs/{digest}"))?;
            let scopes = Scopes::pull(&repository);
            let net = self.net();
            let response = net
                .send(
                    endpoint,
                    &scopes,
                    self.net().config.retry.patience,
                    |http| http.head(url.clone()),
                )
                .await?;
            let what = format!("blob {digest} of {}", reference.name());
            match response.status() {
                StatusCode::OK => Ok(()),
                _ => Err(net::failure(response, &endpoint.registry, &what).await),
            }
        });
        match self.wait(observer, work) {
            Ok(()) => Ok(true),
            Err(Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// A blob while it comes. Goes on where it was after lost connections. The last read, which gives 0 bytes, succeeds only
/// if all bytes are those of the digest; until then nothing of it may be trusted. Errors hold an [`Error`].
pub struct BlobReader {
    client: Client,
    reference: Reference,
    /// Where else it may be; asked first.
    urls: Vec<String>,
    digest: Digest,
    size: u64,
    observer: Arc<dyn Observer>,
    hasher: Sha256,
    /// Bytes that are hashed: on disk before, or handed out.
    offset: u64,
    /// Which of the addresses, and then of the hosts to pull from, is asked.
    source: usize,
    response: Option<Response>,
    /// Bytes at the response's beginning that were handed out before.
    skip: u64,
    chunk: Bytes,
    /// Tries since something came.
    failures: u32,
    verified: bool,
    reported: Instant,
}

impl BlobReader {
    /// How many of the blob's bytes are done, with those that were on disk.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    fn what(&self) -> String {
        format!("blob {} of {}", self.digest, self.reference.name())
    }

    fn corrupt(&self, got: String) -> Error {
        Error::Corrupt {
            what: self.what(),
            expected: self.digest,
            got,
        }
    }

    fn verify(&mut self) -> Result<(), Error> {
        let got = Digest::new(std::mem::take(&mut self.hasher).finalize().into());
        if got != self.digest {
            return Err(self.corrupt(got.to_string()));
        }
        self.observer.progress(self.size, self.size);
        self.verified = true;
        Ok(())
    }

    /// Gets the next bytes, from a new connection if need be.
    async fn fetch(&mut self, net: &Net) -> Result<Bytes, Error> {
        loop {
            let mut response = match self.response.take() {
                Some(response) => response,
                None => self.open(net).await?,
            };
            let cause = match timeout(net.config.retry.patience, response.chunk()).await {
                Ok(Ok(Some(mut chunk))) => {
                    self.response = Some(response);
                    let skipped = (chunk.len() as u64).min(self.skip);
                    chunk.advance(skipped as usize);
                    self.skip -= skipped;
                    if chunk.is_empty() {
                        continue;
                    }
                    self.failures = 0;
                    if chunk.len() as u64 > self.size - self.offset {
                        return Err(self.corrupt(format!("more than {} bytes", self.size)));
                    }
                    return Ok(chunk);
                }
                Ok(Ok(None)) => format!("it ended after {} of {} bytes", self.offset, self.size),
                Ok(Err(error)) => net::root_cause(&error),
                Err(_) => {
                    let patience = net.config.retry.patience.as_secs();
                    format!("nothing more for {patience} s")
                }
            };
            self.failures += 1;
            let Some(pause) = net.pause(self.failures, net.config.retry.attempts, None) else {
                return Err(Error::Unreachable {
                    registry: self.reference.registry().to_owned(),
                    cause,
                });
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Asks for the bytes from the offset on, from the first host that has them.
    async fn open(&mut self, net: &Net) -> Result<Response, Error> {
        loop {
            let hosts = net.sources(self.reference.registry());
            let last = self.source + 1 >= self.urls.len() + hosts;
            match self.open_at(net).await {
                Err(error) if !last && error.is_local_to_host() => self.source += 1,
                result => return result,
            }
        }
    }

    async fn open_at(&mut self, net: &Net) -> Result<Response, Error> {
        let offset = self.offset;
        let ranged = |request: RequestBuilder| {
            if offset > 0 {
                request.header(RANGE, format!("bytes={offset}-"))
            } else {
                request
            }
        };
        let (registry, response) = if let Some(url) = self.urls.get(self.source) {
            let url = Url::parse(url)
                .ok()
                .filter(|url| matches!(url.scheme(), "http" | "https"))
                .ok_or_else(|| Error::Protocol {
                    what: self.what(),
                    problem: format!("{url:?} is no address of a file"),
                })?;
            let host = url.host_str().unwrap_or_default().to_owned();
            let request = ranged(net.http(&host)?.get(url));
            let response = net::once(request, net.config.retry.patience).await;
            let response = response.map_err(|broken| Error::Unreachable {
                registry: host.clone(),
                cause: broken.cause,
            })?;
            (host, response)
        } else {
            let number = self.source - self.urls.len();
            let endpoint = net.source(self.reference.registry(), number).await?;
            let url = endpoint.url(
                self.reference.repository(),
                &format!("blobs/{}", self.digest),
            )?;
            let scopes = Scopes::pull(&endpoint.repository(self.reference.repository()));
            let response = net
                .send(&endpoint, &scopes, net.config.retry.patience, |http| {
                    ranged(http.get(url.clone()))
                })
                .await?;
            (endpoint.registry, response)
        };
        let (begin, rest) = match response.status() {
            StatusCode::OK => (0, self.size),
            StatusCode::PARTIAL_CONTENT => {
                let range = response
                    .headers()
                    .get(CONTENT_RANGE)
                    .and_then(|range| range.to_str().ok());
                let begin = range.and_then(|range| {
                    range
                        .strip_prefix("bytes ")?
                        .split('-')
                        .next()?
                        .parse()
                        .ok()
                });
                (begin.unwrap_or(offset), self.size - offset)
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                return Err(self.corrupt(format!("at most {offset} bytes")));
            }
            _ => return Err(net::failure(response, &registry, &self.what()).await),
        };
        if begin > offset {
            let problem = format!("bytes from {begin} on were not asked for");
            return Err(Error::Protocol {
                what: self.what(),
                problem,
            });
        }
        if let Some(length) = response.content_length()
            && length != rest
        {
            return Err(self.corrupt(format!("{} bytes", begin + length)));
        }
        self.skip = offset - begin;
        Ok(response)
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() || self.verified {
            return Ok(0);
        }
        if self.chunk.is_empty() {
            if self.offset == self.size {
                self.verify().map_err(io::Error::other)?;
                return Ok(0);
            }
            let (client, observer) = (self.client.clone(), self.observer.clone());
            self.chunk = client
                .wait(observer.as_ref(), self.fetch(client.net()))
                .map_err(io::Error::other)?;
        }
        let count = self.chunk.len().min(buffer.len());
        self.chunk.copy_to_slice(&mut buffer[..count]);
        self.hasher.update(&buffer[..count]);
        self.offset += count as u64;
        if self.reported.elapsed() >= REPORT {
            self.reported = Instant::now();
            self.observer.progress(self.offset, self.size);
        }
        Ok(count)
    }
}
