//! Pushing blobs.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use kiln_image::{Descriptor, Reference};
use reqwest::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, LOCATION, RANGE,
};
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use tokio::sync::mpsc;

use crate::Observer;
use crate::auth::Scopes;
use crate::client::Client;
use crate::error::Error;
use crate::net::{self, Endpoint, Net};

/// How long a registry may take to check and store a blob after its last byte.
const UPLOAD_PATIENCE: Duration = Duration::from_mins(15);
/// Pieces in which the source is read, and how many are read ahead.
const PIECE: usize = 256 << 10;
const PIECES_AHEAD: usize = 4;

/// A blob that can be read again from any place: uploads go on after lost connections.
pub trait Source: Sync {
    /// Opens the blob at an offset in bytes.
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>>;
}

impl<F: Fn(u64) -> io::Result<Box<dyn Read + Send>> + Sync> Source for F {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        self(offset)
    }
}

/// How a blob came to be in the repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry took it from another repository.
    Mounted,
    /// It was transferred.
    Uploaded,
}

impl Client {
    /// Brings a blob into the reference's repository without its bytes: it is there, or the registry takes it from
    /// `mount_from`, another repository of the same registry. `None`: it has to be uploaded.
    pub fn offer_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        mount_from: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<Option<Pushed>, Error> {
        self.wait(observer, async {
            let net = self.net();
            let push = Push {
                net,
                endpoint: net.endpoint(reference.registry()).await?,
                scopes: Scopes::push(reference.repository(), mount_from),
                reference,
                descriptor,
                source: &|_| Err(io::ErrorKind::Unsupported.into()),
                sent: Arc::default(),
            };
            if push.exists().await? {
                return Ok(Some(Pushed::Existed));
            }
            if mount_from.is_none() {
                return Ok(None);
            }
            match push.begin(mount_from).await {
                Ok(None) => Ok(Some(Pushed::Mounted)),
                Ok(Some(location)) => {
                    push.abandon(location).await;
                    Ok(None)
                }
                // Who may not read the other repository may still push to this one.
                Err(Error::Denied { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    /// Brings a blob into the reference's repository, transferring it only if need be.
    ///
    /// `mount_from` names another repository of the same registry that may have the blob.
    pub fn push_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        source: &dyn Source,
        mount_from: Option<&str>,
        observer: &dyn Observer,
    ) -> Result<Pushed, Error> {
        let sent = Arc::new(AtomicU64::new(0));
        let counted = sent.clone();
        let pushed = self.wait_counting(observer, &counted, descriptor.size, async {
            let net = self.net();
            let endpoint = net.endpoint(reference.registry()).await?;
            let scopes = Scopes::push(reference.repository(), mount_from);
            Push {
                net,
                endpoint,
                scopes,
                reference,
                descriptor,
                source,
                sent,
            }
            .run(mount_from)
            .await
        })?;
        observer.progress(descriptor.size, descriptor.size);
        Ok(pushed)
    }
}

/// One blob on its way.
struct Push<'a> {
    net: &'a Net,
    endpoint: Endpoint,
    scopes: Scopes,
    reference: &'a Reference,
    descriptor: &'a Descriptor,
    source: &'a dyn Source,
    sent: Arc<AtomicU64>,
}

/// How an attempt to upload ended.
enum Attempt {
    Done,
    /// The registry has forgotten the upload, or lost count: only a new one helps.
    StartOver {
        cause: String,
    },
}

/// How a request with a body ended, if it did not simply succeed.
enum Setback {
    /// The registry does not know the upload.
    Forgotten(String),
    /// It may go on later.
    Passing(String),
    Final(Error),
}

impl Push<'_> {
    async fn run(&self, mount_from: Option<&str>) -> Result<Pushed, Error> {
        if self.exists().await? {
            return Ok(Pushed::Existed);
        }
        let mut mount_from = mount_from;
        let mut attempt = 1;
        loop {
            let Some(location) = self.begin(mount_from).await? else {
                return Ok(Pushed::Mounted);
            };
            // One refusal is enough: the second time the blob is not there either.
            mount_from = None;
            match self.upload(location).await? {
                Attempt::Done => return Ok(Pushed::Uploaded),
                Attempt::StartOver { cause } => self.pause(attempt, cause).await?,
            }
            attempt += 1;
        }
    }

    fn what(&self) -> String {
        format!(
            "blob {} of {}",
            self.descriptor.digest,
            self.reference.name()
        )
    }

    async fn failure(&self, response: Response) -> Error {
        net::failure(response, &self.endpoint.registry, &self.what()).await
    }

    async fn pause(&self, failures: u32, cause: String) -> Result<(), Error> {
        let Some(pause) = self
            .net
            .pause(failures, self.net.config.retry.attempts, None)
        else {
            return Err(Error::Unreachable {
                registry: self.endpoint.registry.clone(),
                cause,
            });
        };
        tokio::time::sleep(pause).await;
        Ok(())
    }

    async fn exists(&self) -> Result<bool, Error> {
        let url = self.endpoint.url(
            self.reference.repository(),
            &format!("blobs/{}", self.descriptor.digest),
        )?;
        let response = self
            .net
            .send(
                &self.endpoint,
                &self.scopes,
                self.net.config.retry.patience,
                |http| http.head(url.clone()),
            )
            .await?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.failure(response).await),
        }
    }

    /// Begins an upload and gives its address; `None` when the blob was mounted instead.
    async fn begin(&self, mount_from: Option<&str>) -> Result<Option<Url>, Error> {
        let mut url = self
            .endpoint
            .url(self.reference.repository(), "blobs/uploads/")?;
        if let Some(from) = mount_from {
            let digest = self.descriptor.digest.to_string();
            url.query_pairs_mut()
                .append_pair("mount", &digest)
                .append_pair("from", from);
        }
        let response = self
            .net
            .send(
                &self.endpoint,
                &self.scopes,
                self.net.config.retry.patience,
                |http| http.post(url.clone()).header(CONTENT_LENGTH, 0),
            )
            .await?;
        match response.status() {
            StatusCode::CREATED if mount_from.is_some() => Ok(None),
            StatusCode::ACCEPTED => self.location(&url, response.headers()).map(Some),
            _ => Err(self.failure(response).await),
        }
    }

    /// Ends an upload that is not needed; a registry that does not hear of it ends it by itself, some day.
    async fn abandon(&self, location: Url) {
        let _ = self
            .net
            .send(
                &self.endpoint,
                &self.scopes,
                self.net.config.retry.patience,
                |http| http.delete(location.clone()),
            )
            .await;
    }

    fn location(&self, asked: &Url, headers: &HeaderMap) -> Result<Url, Error> {
        let location = headers
            .get(LOCATION)
            .and_then(|location| asked.join(location.to_str().ok()?).ok());
        location.ok_or_else(|| Error::Protocol {
            what: self.what(),
            problem: "no address to upload to".to_owned(),
        })
    }

    async fn upload(&self, mut location: Url) -> Result<Attempt, Error> {
        let size = self.descriptor.size;
        let mut offset = 0;
        let mut failures = 0;
        loop {
            let done = if offset < size {
                let end = self
                    .net
                    .config
                    .upload_chunk
                    .map_or(size, |chunk| size.min(offset + chunk.max(1)));
                self.patch(&location, offset, end)
                    .await
                    .map(|next| (next, end))
            } else {
                match self.put(&location).await {
                    Ok(()) => return Ok(Attempt::Done),
                    Err(setback) => Err(setback),
                }
            };
            let (cause, forgotten) = match done {
                Ok((next, end)) => {
                    (location, offset, failures) = (next, end, 0);
                    continue;
                }
                Err(Setback::Final(error)) => return Err(error),
                Err(Setback::Passing(cause)) => (cause, false),
                Err(Setback::Forgotten(cause)) => (cause, true),
            };
            // The answer to the last request may be all that was lost.
            if offset == size && self.exists().await? {
                return Ok(Attempt::Done);
            }
            if forgotten {
                return Ok(Attempt::StartOver { cause });
            }
            failures += 1;
            self.pause(failures, cause.clone()).await?;
            match self.state(&location).await? {
                Some((next, reached)) if reached <= size => (location, offset) = (next, reached),
                _ => return Ok(Attempt::StartOver { cause }),
            }
        }
    }

    /// Asks how much of an upload the registry has, and where it goes on.
    async fn state(&self, location: &Url) -> Result<Option<(Url, u64)>, Error> {
        if !self.endpoint.owns(location) {
            return Ok(None);
        }
        let response = self
            .net
            .send(
                &self.endpoint,
                &self.scopes,
                self.net.config.retry.patience,
                |http| http.get(location.clone()),
            )
            .await?;
        if !response.status().is_success() {
            return Ok(None);
        }
        let range = response
            .headers()
            .get(RANGE)
            .and_then(|range| range.to_str().ok());
        let last = range.and_then(|range| {
            range
                .trim_start_matches("bytes=")
                .strip_prefix("0-")?
                .parse::<u64>()
                .ok()
        });
        // `0-0` is said of one byte as well as of none.
        let Some(last) = last.filter(|last| *last > 0) else {
            return Ok(None);
        };
        let next = if response.headers().contains_key(LOCATION) {
            self.location(location, response.headers())?
        } else {
            location.clone()
        };
        Ok(Some((next, last + 1)))
    }

    /// Sends the bytes of a range, and gives the address for those that follow.
    async fn patch(&self, location: &Url, from: u64, to: u64) -> Result<Url, Setback> {
        let reader = self
            .source
            .open(from)
            .map_err(|error| Setback::Final(Error::Source(error)))?;
        let (body, broken) = self.body(reader, from, to);
        let whole = from == 0 && to == self.descriptor.size;
        let request = |method_url: RequestBuilder| {
            let request = method_url
                .header(CONTENT_TYPE, "application/octet-stream")
                .header(CONTENT_LENGTH, to - from)
                .body(body);
            // A single stream has no range (distribution spec 1.1, "Pushing a blob in chunks").
            if whole {
                request
            } else {
                request.header(CONTENT_RANGE, format!("{from}-{}", to - 1))
            }
        };
        let result = self.once(Method::PATCH, location, request).await;
        let source_error = broken.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(error) = source_error {
            return Err(Setback::Final(Error::Source(error)));
        }
        let response = result?;
        match response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => Err(Setback::Passing(
                "the registry lost count of the bytes".to_owned(),
            )),
            status if status.is_success() => self
                .location(location, response.headers())
                .map_err(Setback::Final),
            _ => Err(Setback::Final(self.failure(response).await)),
        }
    }

    /// Tells the registry that all is sent.
    async fn put(&self, location: &Url) -> Result<(), Setback> {
        let mut url = location.clone();
        url.query_pairs_mut()
            .append_pair("digest", &self.descriptor.digest.to_string());
        let response = self
            .once(Method::PUT, &url, |request| {
                request.header(CONTENT_LENGTH, 0)
            })
            .await?;
        if response.status().is_success() {
            return Ok(());
        }
        let error = self.failure(response).await;
        Err(Setback::Final(match error {
            Error::Status {
                what,
                status: 400,
                message,
            } if message.contains("digest") => Error::Corrupt {
                what,
                expected: self.descriptor.digest,
                got: message,
            },
            error => error,
        }))
    }

    /// Sends a request that cannot be repeated without asking first how far the upload is.
    async fn once(
        &self,
        method: Method,
        url: &Url,
        complete: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Response, Setback> {
        let mut request = complete(self.endpoint.http.request(method, url.clone()));
        // An upload may go to another host, which is no reason to show it our tokens.
        let own = self.endpoint.owns(url);
        let header = if own {
            self.net
                .authorization(&self.endpoint, &self.scopes)
                .await
                .map_err(Setback::Final)?
        } else {
            None
        };
        if let Some(header) = &header {
            request = request.header(AUTHORIZATION, header.clone());
        }
        let response = match net::once(request, UPLOAD_PATIENCE).await {
            Ok(response) => response,
            Err(broken) if broken.kind == net::Break::Final => {
                let registry = self.endpoint.registry.clone();
                return Err(Setback::Final(Error::Unreachable {
                    registry,
                    cause: broken.cause,
                }));
            }
            Err(broken) => return Err(Setback::Passing(broken.cause)),
        };
        match response.status() {
            StatusCode::UNAUTHORIZED if own => {
                let headers = response.headers();
                let again = self
                    .net
                    .challenged(&self.endpoint, &self.scopes, headers, header.as_ref())
                    .await;
                if again.map_err(Setback::Final)? {
                    Err(Setback::Passing("the token ended".to_owned()))
                } else {
                    Err(Setback::Final(self.failure(response).await))
                }
            }
            StatusCode::NOT_FOUND => Err(Setback::Forgotten(
                "the registry does not know the upload".to_owned(),
            )),
            status if net::may_pass(status) => {
                Err(Setback::Passing(format!("the registry answers {status}")))
            }
            _ => Ok(response),
        }
    }

    /// A request body that reads the source on a thread of its own, with the place where its error ends up.
    fn body(
        &self,
        mut reader: Box<dyn Read + Send>,
        from: u64,
        to: u64,
    ) -> (reqwest::Body, Arc<Mutex<Option<io::Error>>>) {
        let broken = Arc::new(Mutex::new(None));
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES_AHEAD);
        let failed = broken.clone();
        tokio::task::spawn_blocking(move || {
            let mut left = to - from;
            while left > 0 {
                let want = left.min(PIECE as u64);
                let mut piece = Vec::with_capacity(want as usize);
                let read = match reader.by_ref().take(want).read_to_end(&mut piece) {
                    Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(_) => Ok(Bytes::from(piece)),
                    Err(error) => Err(error),
                };
                let stop = match &read {
                    Ok(piece) => {
                        left -= piece.len() as u64;
                        false
                    }
                    Err(error) => {
                        *failed.lock().unwrap_or_else(PoisonError::into_inner) =
                            Some(io::Error::new(error.kind(), error.to_string()));
                        true
                    }
                };
                // The request may be over before its body is.
                if sender.blocking_send(read).is_err() || stop {
                    return;
                }
            }
        });
        let sent = self.sent.clone();
        sent.store(from, Ordering::Relaxed);
        let pieces = stream::unfold((receiver, sent), async |(mut receiver, sent)| {
            let piece = receiver.recv().await?;
            if let Ok(piece) = &piece {
                sent.fetch_add(piece.len() as u64, Ordering::Relaxed);
            }
            Some((piece, (receiver, sent)))
        });
        (reqwest::Body::wrap_stream(pieces), broken)
    }
}
