//! Pushing blobs.

use std::io::{self, Read};
use std::pin::pin;
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
use crate::client::{Client, GLANCE};
use crate::error::Error;
use crate::net::{self, Endpoint, Net};

/// How long a registry may take to check and store a blob after its last byte.
const UPLOAD_PATIENCE: Duration = Duration::from_mins(15);
/// Pieces in which the source is read, and how many are read ahead.
const PIECE: usize = 256 << 10;
const PIECES_AHEAD: usize = 4;
/// With so many bytes left to send it is asked first whether they are needed.
const WORTH_ASKING: u64 = 1 << 20;

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

/// A blob that is sent while it is made. A reader of it waits for what is still missing.
pub trait Growing: Source {
    /// What it has become; `None` while it grows.
    ///
    /// # Errors
    /// When it will never be whole.
    fn complete(&self) -> io::Result<Option<Descriptor>>;
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
                blob: Some(descriptor),
                source: &|_| Err(io::ErrorKind::Unsupported.into()),
                sent: Arc::default(),
            };
            if push.exists(descriptor).await? {
                return Ok(Some(Pushed::Existed));
            }
            let Some(from) = mount_from else {
                return Ok(None);
            };
            match push.begin(Some((descriptor, from))).await {
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
        let total = || descriptor.size;
        let pushed = self.wait_counting(observer, &counted, total, async {
            let net = self.net();
            let endpoint = net.endpoint(reference.registry()).await?;
            let scopes = Scopes::push(reference.repository(), mount_from);
            Push {
                net,
                endpoint,
                scopes,
                reference,
                blob: Some(descriptor),
                source,
                sent,
            }
            .run(descriptor, mount_from)
            .await
        })?;
        observer.progress(descriptor.size, descriptor.size);
        Ok(pushed)
    }

    /// Brings a blob into the reference's repository while it is made. Once it is complete the registry is asked whether
    /// it has it, and what was sent until then was in vain if so.
    ///
    /// The observer hears of progress when the size is known.
    pub fn push_growing(
        &self,
        reference: &Reference,
        source: &dyn Growing,
        observer: &dyn Observer,
    ) -> Result<Pushed, Error> {
        let sent = Arc::new(AtomicU64::new(0));
        let counted = sent.clone();
        let total = || match source.complete() {
            Ok(Some(blob)) => blob.size,
            _ => 0,
        };
        self.wait_counting(observer, &counted, total, async {
            let net = self.net();
            let mut push = Push {
                net,
                endpoint: net.endpoint(reference.registry()).await?,
                scopes: Scopes::push(reference.repository(), None),
                reference,
                blob: None,
                source,
                sent,
            };
            let streamed = match net.config.upload_chunk {
                None => push.stream(source).await?,
                // Pieces need their sizes.
                Some(_) => Streamed::Nothing,
            };
            let blob = completed(source).await?;
            push.blob = Some(&blob);
            match streamed {
                Streamed::Needless => return Ok(Pushed::Existed),
                Streamed::All(next) => {
                    if let Attempt::Done = push.upload(&blob, next, blob.size).await? {
                        return Ok(Pushed::Uploaded);
                    }
                }
                Streamed::Some(location, cause) => {
                    push.pause(1, cause).await?;
                    if let Some((next, reached)) = push.state(&location).await?
                        && reached <= blob.size
                        && let Attempt::Done = push.upload(&blob, next, reached).await?
                    {
                        return Ok(Pushed::Uploaded);
                    }
                }
                Streamed::Nothing => {}
            }
            push.run(&blob, None).await
        })
    }
}

/// Waits until a blob is whole.
async fn completed(source: &dyn Growing) -> Result<Descriptor, Error> {
    loop {
        if let Some(blob) = source.complete().map_err(Error::Source)? {
            return Ok(blob);
        }
        tokio::time::sleep(GLANCE).await;
    }
}

/// One blob on its way.
struct Push<'a> {
    net: &'a Net,
    endpoint: Endpoint,
    scopes: Scopes,
    reference: &'a Reference,
    /// What it is, if that is known yet.
    blob: Option<&'a Descriptor>,
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

/// How far a blob came that was sent while it was made.
enum Streamed {
    /// To the end: this is where the end is told.
    All(Url),
    /// The connection broke, for this cause.
    Some(Url, String),
    /// The registry has it.
    Needless,
    /// The registry takes no blob of unknown size.
    Nothing,
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
    async fn run(&self, blob: &Descriptor, mount_from: Option<&str>) -> Result<Pushed, Error> {
        if self.exists(blob).await? {
            return Ok(Pushed::Existed);
        }
        let mut mount_from = mount_from;
        let mut attempt = 1;
        loop {
            let mount = mount_from.map(|from| (blob, from));
            let Some(location) = self.begin(mount).await? else {
                return Ok(Pushed::Mounted);
            };
            // One refusal is enough: the second time the blob is not there either.
            mount_from = None;
            match self.upload(blob, location, 0).await? {
                Attempt::Done => return Ok(Pushed::Uploaded),
                Attempt::StartOver { cause } => self.pause(attempt, cause).await?,
            }
            attempt += 1;
        }
    }

    /// Sends a blob while it grows.
    async fn stream(&self, source: &dyn Growing) -> Result<Streamed, Error> {
        let Some(location) = self.begin(None).await? else {
            return Ok(Streamed::Nothing);
        };
        let sent = {
            let mut sending = pin!(self.patch(&location, 0, None, true));
            let mut asked = false;
            loop {
                tokio::select! {
                    sent = &mut sending => break Some(sent),
                    () = tokio::time::sleep(GLANCE) => {}
                }
                if !asked && let Ok(Some(blob)) = source.complete() {
                    asked = true;
                    let left = blob.size.saturating_sub(self.sent.load(Ordering::Relaxed));
                    if left >= WORTH_ASKING && self.exists(&blob).await? {
                        break None;
                    }
                }
            }
        };
        let Some(sent) = sent else {
            self.abandon(location).await;
            return Ok(Streamed::Needless);
        };
        match sent {
            Ok(next) => Ok(Streamed::All(next)),
            Err(Setback::Passing(cause)) => Ok(Streamed::Some(location, cause)),
            Err(Setback::Forgotten(_) | Setback::Final(Error::Status { .. })) => {
                Ok(Streamed::Nothing)
            }
            Err(Setback::Final(error)) => Err(error),
        }
    }

    fn what(&self) -> String {
        let name = self.reference.name();
        match self.blob {
            Some(blob) => format!("blob {} of {name}", blob.digest),
            None => format!("a new blob of {name}"),
        }
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

    async fn exists(&self, blob: &Descriptor) -> Result<bool, Error> {
        let url = self.endpoint.url(
            self.reference.repository(),
            &format!("blobs/{}", blob.digest),
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

    /// Begins an upload and gives its address; `None` when the blob was mounted instead, from the repository `mount`.
    async fn begin(&self, mount: Option<(&Descriptor, &str)>) -> Result<Option<Url>, Error> {
        let mut url = self
            .endpoint
            .url(self.reference.repository(), "blobs/uploads/")?;
        if let Some((blob, from)) = mount {
            let digest = blob.digest.to_string();
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
            StatusCode::CREATED if mount.is_some() => Ok(None),
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

    /// Sends what comes after `offset`, and tells the registry that this was all.
    async fn upload(
        &self,
        blob: &Descriptor,
        mut location: Url,
        mut offset: u64,
    ) -> Result<Attempt, Error> {
        let size = blob.size;
        let mut failures = 0;
        loop {
            let done = if offset < size {
                let end = self
                    .net
                    .config
                    .upload_chunk
                    .map_or(size, |chunk| size.min(offset + chunk.max(1)));
                let whole = offset == 0 && end == size;
                self.patch(&location, offset, Some(end), whole)
                    .await
                    .map(|next| (next, end))
            } else {
                match self.put(blob, &location).await {
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
            if offset == size && self.exists(blob).await? {
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

    /// Sends the bytes of a range, which is all there is if `whole`, and gives the address for those that follow.
    async fn patch(
        &self,
        location: &Url,
        from: u64,
        to: Option<u64>,
        whole: bool,
    ) -> Result<Url, Setback> {
        let reader = self
            .source
            .open(from)
            .map_err(|error| Setback::Final(Error::Source(error)))?;
        let (body, broken) = self.body(reader, from, to);
        let request = |method_url: RequestBuilder| {
            let request = method_url
                .header(CONTENT_TYPE, "application/octet-stream")
                .body(body);
            let Some(to) = to else {
                return request;
            };
            let request = request.header(CONTENT_LENGTH, to - from);
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
    async fn put(&self, blob: &Descriptor, location: &Url) -> Result<(), Setback> {
        let mut url = location.clone();
        url.query_pairs_mut()
            .append_pair("digest", &blob.digest.to_string());
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
                expected: blob.digest,
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

    /// A request body that reads the source on a thread of its own, to its end if none is given, with the place where its
    /// error ends up.
    fn body(
        &self,
        mut reader: Box<dyn Read + Send>,
        from: u64,
        to: Option<u64>,
    ) -> (reqwest::Body, Arc<Mutex<Option<io::Error>>>) {
        let broken = Arc::new(Mutex::new(None));
        let (sender, receiver) = mpsc::channel::<io::Result<Bytes>>(PIECES_AHEAD);
        let failed = broken.clone();
        tokio::task::spawn_blocking(move || {
            let mut left = to.map_or(u64::MAX, |to| to - from);
            while left > 0 {
                let want = left.min(PIECE as u64);
                let mut piece = Vec::with_capacity(want as usize);
                let read = match reader.by_ref().take(want).read_to_end(&mut piece) {
                    Ok(0) if to.is_none() => return,
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
