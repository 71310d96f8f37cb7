//! Images in, from registries. Layers are unpacked while they come, several at once.

use std::fs::File;
use std::io::{self, PipeWriter, Read, Write};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kiln_image::{
    Descriptor, DiffId, Digest, Distant, KeyHasher, LayerId, Origin, Platform, Reference,
};
use kiln_registry::{BlobReader, Client, Observer};
use kiln_store::{BlobInfo, ClaimAttempt, ImageInfo, Lease, Store, StoreError};
use kiln_worker::{Failure, FailureKind, TarInput, UnpackJob, UnpackedLayer, Worker, WorkerError};

use crate::blobs::{PULLED, keep, unnamed};
use crate::documents::{Walk, manifest, walk};
use crate::load::{blob_name, seal};
use crate::{Committed, ExportError, Found, Layout};

/// Layers that are transferred at once.
const AT_ONCE: usize = 4;
/// No config is larger.
const MOST_CONFIG: u64 = 16 << 20;
/// Bytes moved at once, and what a pipe should hold.
pub(crate) const PIECE: usize = 1 << 18;
/// How often progress is told, and a wait is looked at.
pub(crate) const GLANCE: Duration = Duration::from_millis(50);
/// More documents than this are never on the way to one image.
const DOCUMENTS: usize = 8;

/// Follows what is transferred.
pub trait Watch: Send + Sync {
    /// So many of so many bytes of a thing are done; at the end once more with `ended`.
    fn transfer(&self, name: &str, done: u64, total: u64, ended: bool);
}

/// Nobody is told.
#[derive(Debug, Clone, Copy)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn transfer(&self, _name: &str, _done: u64, _total: u64, _ended: bool) {}
}

/// A way to registries for one store.
pub struct Remote<'a> {
    /// Where images go and come from.
    pub store: &'a Store,
    /// What touches layers.
    pub worker: &'a Worker,
    /// What speaks to registries.
    pub client: &'a Client,
    /// Set when the user gives up.
    pub cancel: &'a Arc<AtomicBool>,
    /// Follows transfers.
    pub watch: &'a dyn Watch,
}

/// What ends transfers: the user, the end of all of the worker's jobs, the failure of another transfer.
pub(crate) struct Stop {
    user: Arc<AtomicBool>,
    worker: Arc<AtomicBool>,
    failed: AtomicBool,
}

impl Stop {
    pub(crate) fn new(remote: &Remote<'_>) -> Arc<Self> {
        Arc::new(Self {
            user: Arc::clone(remote.cancel),
            worker: Arc::clone(remote.worker.canceled()),
            failed: AtomicBool::new(false),
        })
    }
}

impl Observer for Stop {
    fn is_canceled(&self) -> bool {
        [&*self.user, &self.worker, &self.failed]
            .iter()
            .any(|flag| flag.load(Ordering::Acquire))
    }
}

/// Does `work` for each number below `count`, some at once, in order; the first failure ends all.
pub(crate) fn several<T: Send>(
    count: usize,
    stop: &Stop,
    work: impl Fn(usize) -> Result<T, ExportError> + Sync,
) -> Result<Vec<T>, ExportError> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new((0..count).map(|_| None).collect::<Vec<Option<T>>>());
    let failure = Mutex::new(None);
    let one_after_the_other = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            if at >= count || stop.is_canceled() {
                return;
            }
            match work(at) {
                Ok(result) => {
                    results.lock().unwrap_or_else(PoisonError::into_inner)[at] = Some(result);
                }
                Err(error) => {
                    stop.failed.store(true, Ordering::Release);
                    let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                    failure.get_or_insert(error);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..count.min(AT_ONCE) {
            scope.spawn(one_after_the_other);
        }
        one_after_the_other();
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results
        .into_iter()
        .collect::<Option<_>>()
        .ok_or(ExportError::Canceled)
}

impl Remote<'_> {
    /// Asks the registry what a name leads to, and fetches the documents that the store lacks, but no layer.
    ///
    /// # Errors
    /// When the registry has no such image, has none for the platform, or cannot be asked.
    pub fn find(&self, name: &Reference, platform: &Platform) -> Result<Found, ExportError> {
        let observer = self.cancel.as_ref();
        let digest = match name.digest() {
            Some(digest) => digest,
            None => match self.client.head(name, observer) {
                Ok(head) => head.digest,
                // Some registries name no digest in answers to HEAD.
                Err(kiln_registry::Error::Protocol { .. }) => {
                    let document = self.client.resolve(name, observer)?;
                    self.store.put_json(&document.media_type, &document.bytes)?
                }
                Err(error) => return Err(error.into()),
            },
        };
        for _ in 0..DOCUMENTS {
            match walk(self.store, name, digest, platform)? {
                Walk::Found(found) => return Ok(*found),
                Walk::NoManifest(named) => {
                    let wanted = named.as_ref().map_or(digest, |named| named.digest);
                    let document = self.client.manifest(name, &wanted, observer)?;
                    if let Some(named) = named.filter(|named| named.size != document.size()) {
                        return Err(unusable(
                            name,
                            format!(
                                "the index says that manifest {wanted} has {} bytes, it has {}",
                                named.size,
                                document.size()
                            ),
                        ));
                    }
                    self.store.put_json(&document.media_type, &document.bytes)?;
                }
                Walk::NoConfig(config) => {
                    if config.size > MOST_CONFIG {
                        let what = format!("its config has more than {MOST_CONFIG} bytes");
                        return Err(unusable(name, what));
                    }
                    let mut bytes = Vec::with_capacity(config.size as usize);
                    self.client
                        .blob(name, &config, &mut io::empty(), self.cancel.clone())?
                        .read_to_end(&mut bytes)
                        .map_err(transfer_error)?;
                    self.store.put_json(&config.media_type, &bytes)?;
                }
            }
        }
        Err(unusable(name, "too many documents lead to it".to_owned()))
    }

    /// Brings the layers of an image that the store lacks, and keeps the image. With a name that has no digest, the name
    /// leads to it from then on, or, beside images for other platforms, to their index.
    ///
    /// # Errors
    /// When a layer cannot be had, is damaged or cannot be unpacked. Layers that are whole by then stay as long as the
    /// lease.
    pub fn fetch(&self, found: &Found, lease: &Lease) -> Result<Committed, ExportError> {
        let (image, _) = manifest(self.store, found.manifest)?;
        let diffs = &found.config.rootfs.diff_ids;
        if image.layers.len() != diffs.len() {
            let what = format!(
                "its manifest has {} layers, its config {}",
                image.layers.len(),
                diffs.len()
            );
            return Err(unusable(&found.name, what));
        }
        let stop = Stop::new(self);
        let layers = several(diffs.len(), &stop, |at| {
            self.layer(&found.name, &image.layers[at], diffs[at], lease, &stop)
        })?;
        let mut size = 0;
        for layer in &layers {
            size += self.store.layer(*layer)?.map_or(0, |info| info.size);
        }
        let info = ImageInfo {
            config: image.config.digest,
            layers,
            size,
            created: found.config.created.map(SystemTime::from),
            platform: found.config.platform(),
        };
        self.store.set_image(found.manifest, &info)?;
        crate::indexes::name(self.store, &found.name, found.digest, found.manifest)?;
        Ok(Committed {
            manifest: found.manifest,
            config: image.config.digest,
        })
    }

    /// Brings layers that are elsewhere.
    ///
    /// # Errors
    /// When one cannot be had, or is not what was said.
    pub fn bring(
        &self,
        distant: &[Arc<Distant>],
        lease: &Lease,
    ) -> Result<Vec<LayerId>, ExportError> {
        let stop = Stop::new(self);
        several(distant.len(), &stop, |at| {
            let distant = &*distant[at];
            if let Some(known) = self.known(distant.diff, lease)? {
                return Ok(known);
            }
            let (blob, diff) = (&distant.blob, distant.diff);
            let layer = match &distant.origin {
                Origin::Registry(name) => self.layer(name, blob, diff, lease, &stop)?,
                Origin::Folder(folder) => self.layout(folder).layer(blob, diff, lease)?,
            };
            let made = self.store.layer(layer)?.map(|info| info.content_id);
            if distant.content.is_some() && distant.content != made {
                return Err(ExportError::Unusable {
                    name: format!("layer {}", blob.digest),
                    what: "it holds something else than was said".to_owned(),
                });
            }
            if let Some(created) = distant.created {
                self.store.set_created(layer, created.into())?;
            }
            Ok(layer)
        })
    }

    pub(crate) fn layout<'l>(&'l self, folder: &'l Path) -> Layout<'l> {
        Layout {
            store: self.store,
            worker: self.worker,
            folder,
        }
    }

    /// Whether a layer can still be had.
    ///
    /// # Errors
    /// When nobody can be asked.
    pub fn has(&self, distant: &Distant) -> Result<bool, ExportError> {
        let blob = &distant.blob;
        match &distant.origin {
            Origin::Registry(name) => {
                Ok(self
                    .client
                    .has_blob(name, blob.digest, self.cancel.as_ref())?)
            }
            Origin::Folder(folder) => {
                let file = folder.join(blob_name(blob.digest)).metadata();
                Ok(file.is_ok_and(|it| it.len() == blob.size))
            }
        }
    }

    /// The blob of a layer that is elsewhere, whole and checked.
    pub(crate) fn spool(
        &self,
        distant: &Distant,
        observer: Arc<dyn Observer>,
    ) -> Result<File, ExportError> {
        let blob = &distant.blob;
        let name = match &distant.origin {
            Origin::Registry(name) => name,
            Origin::Folder(folder) => return self.layout(folder).file(blob),
        };
        let mut reader = self.client.blob(name, blob, &mut io::empty(), observer)?;
        let mut scratch = unnamed(self.store).map_err(ExportError::io("scratch file"))?;
        io::copy(&mut reader, &mut scratch).map_err(transfer_error)?;
        Ok(scratch)
    }

    /// A layer of the store, under the protection of the lease.
    fn known(&self, diff: DiffId, lease: &Lease) -> Result<Option<LayerId>, ExportError> {
        let Some(layer) = self.store.layer_by_diff(diff)? else {
            return Ok(None);
        };
        match self.store.protect(lease, &[layer]) {
            Ok(()) => Ok(Some(layer)),
            // Collected meanwhile.
            Err(StoreError::NoLayer(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn layer(
        &self,
        name: &Reference,
        blob: &Descriptor,
        diff: DiffId,
        lease: &Lease,
        stop: &Arc<Stop>,
    ) -> Result<LayerId, ExportError> {
        let layer = self.known_or_pulled(name, blob, diff, lease, stop)?;
        // How it is called in registries: pushing it again then needs no compression.
        self.store.set_blob(&BlobInfo {
            diff,
            digest: blob.digest,
            media_type: blob.media_type.clone(),
            size: blob.size,
            encoder: PULLED.to_owned(),
            present: false,
        })?;
        Ok(layer)
    }

    fn known_or_pulled(
        &self,
        name: &Reference,
        blob: &Descriptor,
        diff: DiffId,
        lease: &Lease,
        stop: &Arc<Stop>,
    ) -> Result<LayerId, ExportError> {
        if let Some(layer) = self.known(diff, lease)? {
            return Ok(layer);
        }
        // Whoever pulls the same layer, here or in another process, waits, and then finds it.
        let key = KeyHasher::new("pull", 1)
            .part("diff", diff.as_bytes())
            .finish();
        let _claim = match self.store.claim(key)? {
            ClaimAttempt::Held(claim) => claim,
            ClaimAttempt::Busy(waiter) => loop {
                if stop.is_canceled() {
                    return Err(ExportError::Canceled);
                }
                if let Some(claim) = waiter.wait(GLANCE)? {
                    break claim;
                }
            },
        };
        if let Some(layer) = self.known(diff, lease)? {
            return Ok(layer);
        }
        let into = self.store.begin_layer(lease)?;
        let made = self.unpack(name, blob, diff, into, stop);
        if made.is_err() {
            // The first error counts; what stays is found by the next sweep.
            let _ = self.discard(into);
        }
        made
    }

    fn discard(&self, layer: LayerId) -> Result<(), ExportError> {
        self.store.discard_layer(layer)?;
        self.worker.delete(vec![layer], &[])?;
        Ok(self.store.forget_layers(&[layer])?)
    }

    fn unpack(
        &self,
        name: &Reference,
        blob: &Descriptor,
        diff: DiffId,
        into: LayerId,
        stop: &Arc<Stop>,
    ) -> Result<LayerId, ExportError> {
        let reader = self
            .client
            .blob(name, blob, &mut io::empty(), stop.clone())?;
        let mut stream = Stream {
            reader,
            row: blob.digest.to_string(),
            total: blob.size,
            watch: self.watch,
            told: Instant::now(),
        };
        self.watch.transfer(&stream.row, 0, blob.size, false);
        // Kept only if it turns out that Kiln would write the tar in another way.
        let scratch = unnamed(self.store).map_err(ExportError::io("scratch file"))?;
        let unpacked = self.stream(&mut stream, &scratch, into)?;
        if unpacked.diff_id != diff {
            return Err(unusable(
                name,
                format!(
                    "layer {} has the diff id {}, the config says {diff}",
                    blob.digest, unpacked.diff_id
                ),
            ));
        }
        if !unpacked.reproducible {
            let blob = BlobInfo {
                diff,
                digest: blob.digest,
                media_type: blob.media_type.clone(),
                size: blob.size,
                encoder: PULLED.to_owned(),
                present: true,
            };
            keep(self.store, &scratch, blob)?;
        }
        let layer = seal(self.store, &unpacked)?;
        self.watch.transfer(&stream.row, blob.size, blob.size, true);
        Ok(layer)
    }

    /// Lets the worker unpack a blob while it comes.
    fn stream(
        &self,
        stream: &mut Stream<'_>,
        scratch: &File,
        into: LayerId,
    ) -> Result<UnpackedLayer, ExportError> {
        let (read, write) = io::pipe().map_err(ExportError::io("pipe"))?;
        // A larger pipe is faster, but not needed.
        let _ = rustix::pipe::fcntl_setpipe_size(&write, PIECE);
        std::thread::scope(|scope| {
            let unpacking = scope.spawn(move || {
                let job = UnpackJob {
                    into,
                    input: TarInput::Stream,
                };
                // The pipe's end must not outlive the job: that is how its writer hears of a failure.
                let unpacked = self.worker.unpack(job, &[read.as_fd()]);
                drop(read);
                unpacked
            });
            let copied = stream.copy(scratch, Some(write));
            let unpacked = unpacking
                .join()
                .expect("the worker's client does not panic");
            match (copied, unpacked) {
                (Ok(Copied::All), unpacked) => unpacked.map_err(ExportError::unpack(&stream.row)),
                (Ok(Copied::Refused), Err(error)) => {
                    // Damage on the way is the better explanation for an archive that cannot be read.
                    if is_about_the_archive(&error) {
                        stream.copy(scratch, None)?;
                    }
                    Err(ExportError::unpack(&stream.row)(error))
                }
                (Ok(Copied::Refused), Ok(_)) => {
                    Err(ExportError::io("pipe")(io::ErrorKind::BrokenPipe.into()))
                }
                (Err(error), _) => Err(error),
            }
        })
    }
}

fn is_about_the_archive(error: &WorkerError) -> bool {
    matches!(
        error,
        WorkerError::Failed(Failure {
            kind: FailureKind::Other,
            ..
        })
    )
}

fn unusable(name: &Reference, what: String) -> ExportError {
    ExportError::Unusable {
        name: name.to_string(),
        what,
    }
}

/// What a reader of the registry's crate failed with.
pub(crate) fn transfer_error(error: io::Error) -> ExportError {
    match error.downcast::<kiln_registry::Error>() {
        Ok(error) => error.into(),
        Err(error) => ExportError::io("transfer")(error),
    }
}

/// A blob on its way into a layer.
struct Stream<'a> {
    reader: BlobReader,
    row: String,
    total: u64,
    watch: &'a dyn Watch,
    told: Instant,
}

/// How far the copying came.
enum Copied {
    /// To the blob's end, and it is what its digest says.
    All,
    /// The worker did not want any more.
    Refused,
}

impl Stream<'_> {
    /// Copies what is left of the blob. The pipe is closed at the end, whatever happens.
    fn copy(
        &mut self,
        mut scratch: &File,
        mut pipe: Option<PipeWriter>,
    ) -> Result<Copied, ExportError> {
        let mut buffer = vec![0; PIECE];
        loop {
            let count = match self.reader.read(&mut buffer) {
                Ok(0) => return Ok(Copied::All),
                Ok(count) => count,
                Err(error) => return Err(transfer_error(error)),
            };
            let piece = &buffer[..count];
            if let Some(pipe) = &mut pipe {
                if pipe.write_all(piece).is_err() {
                    return Ok(Copied::Refused);
                }
                scratch
                    .write_all(piece)
                    .map_err(ExportError::io("scratch file"))?;
            }
            if self.told.elapsed() >= GLANCE {
                self.told = Instant::now();
                let done = self.reader.offset();
                self.watch.transfer(&self.row, done, self.total, false);
            }
        }
    }
}

/// What the manifest of an image that Kiln made calls a layer: by its uncompressed tar.
pub(crate) fn blob_of(diff: DiffId) -> Digest {
    Digest::new(*diff.as_bytes())
}
