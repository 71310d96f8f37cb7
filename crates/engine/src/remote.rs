//! Images from and to registries.

use std::num::NonZero;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use kiln_export::{Committed, ExportError, Found, Packing, Published, Remote, Watch};
use kiln_image::{Digest, Platform, Reference};
use kiln_progress::{Event, Sink};

use crate::rows::Rows;
use crate::{BuildError, CancelFlag, Engine};

/// How often it is looked whether the user gave up.
const GLANCE: Duration = Duration::from_millis(50);

/// A pulled image.
#[derive(Debug)]
pub struct Pulled {
    /// The image.
    pub image: Committed,
    /// What the name leads to in the registry: its manifest, or an index.
    pub digest: Digest,
    /// The name did not lead to it before.
    pub new: bool,
}

/// What is pushed where.
#[derive(Debug)]
pub struct PushRequest {
    /// The image's manifest.
    pub image: Digest,
    /// The name, with a tag.
    pub name: Reference,
    /// The image's form there.
    pub packing: Packing,
    /// Processors for compression.
    pub cores: usize,
}

impl Engine {
    /// Pulls an image, whether or not the store has one of that name.
    ///
    /// # Errors
    /// When the registry has no such image, or anything fails on the way.
    pub fn pull(
        &self,
        name: &Reference,
        platform: &Platform,
        sink: &dyn Sink,
        cancel: &CancelFlag,
    ) -> Result<Pulled, BuildError> {
        self.told(sink, cancel, |rows| {
            self.allow()?;
            let lease = self.store.lease()?;
            rows.work(&format!("pulling {name}"), |row| {
                let remote = self.remote(cancel, row);
                let found = remote.find(name, platform)?;
                let before = match name.digest() {
                    Some(_) => self.store.image(found.manifest)?.map(|it| it.manifest),
                    None => self.store.resolve(name)?,
                };
                Ok(Pulled {
                    image: remote.fetch(&found, &lease)?,
                    digest: found.digest,
                    new: before != Some(found.manifest),
                })
            })
        })
    }

    /// Pushes an image.
    ///
    /// # Errors
    /// When there is no such image, the registry refuses, or anything fails on the way.
    pub fn push(
        &self,
        request: &PushRequest,
        sink: &dyn Sink,
        cancel: &CancelFlag,
    ) -> Result<Published, BuildError> {
        self.told(sink, cancel, |rows| {
            rows.work(&format!("pushing {}", request.name), |row| {
                let PushRequest {
                    image,
                    name,
                    packing,
                    cores,
                } = request;
                self.push_to(*image, name, packing, row, cancel, *cores)
            })
        })
    }

    pub(crate) fn push_to(
        &self,
        image: Digest,
        name: &Reference,
        packing: &Packing,
        watch: &dyn Watch,
        cancel: &CancelFlag,
        cores: usize,
    ) -> Result<Published, BuildError> {
        let cores = NonZero::new(cores).unwrap_or(NonZero::<usize>::MIN);
        let remote = self.remote(cancel, watch);
        Ok(self.cancelable(cancel, || remote.push(image, name, packing, cores))?)
    }

    pub(crate) fn remote<'a>(&'a self, cancel: &'a CancelFlag, watch: &'a dyn Watch) -> Remote<'a> {
        Remote {
            store: &self.store,
            worker: &self.worker,
            client: &self.client,
            cancel: cancel.flag(),
            watch,
        }
    }

    /// The image that a name leads to in the store, also when of the image only the documents are there.
    pub(crate) fn local_image(
        &self,
        name: &Reference,
        platform: &Platform,
    ) -> Result<Option<Found>, ExportError> {
        let Some(digest) = name
            .digest()
            .map_or_else(|| self.store.resolve(name), |it| Ok(Some(it)))?
        else {
            return Ok(None);
        };
        let known = |digest| Found::known(&self.store, name, digest, platform);
        let first = known(digest);
        // The index that the image was chosen from, and images that a registry has under this digest.
        let mut others = match &first {
            Ok(None) => self.store.images_of_repo_digest(digest)?,
            Err(ExportError::Platform { .. }) => {
                let digests = self.store.repo_digests(digest)?;
                let here = digests.iter().filter(|it| it.name() == name.name());
                here.filter_map(Reference::digest).collect()
            }
            _ => return first,
        };
        others.retain(|other| *other != digest);
        for other in others {
            if let Ok(Some(found)) = known(other) {
                return Ok(Some(found));
            }
        }
        first
    }

    /// Does work that has rows of its own.
    pub(crate) fn told<T>(
        &self,
        sink: &dyn Sink,
        cancel: &CancelFlag,
        work: impl FnOnce(&mut Rows<'_>) -> Result<T, BuildError>,
    ) -> Result<T, BuildError> {
        let started = Instant::now();
        let outcome = self.cancelable(cancel, || work(&mut Rows::new(sink)));
        sink.emit(Event::Ended {
            took: started.elapsed(),
            ok: outcome.is_ok(),
        });
        outcome
    }

    /// Does work in which the worker's jobs are given up when the user gives up.
    pub(crate) fn cancelable<T>(&self, cancel: &CancelFlag, work: impl FnOnce() -> T) -> T {
        let (done, ended) = mpsc::channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                // Ends also when the work panics: then the other side is gone.
                while ended.recv_timeout(GLANCE) == Err(RecvTimeoutError::Timeout) {
                    if cancel.is_set() {
                        self.worker.cancel();
                        return;
                    }
                }
            });
            let _done = done;
            work()
        })
    }
}
