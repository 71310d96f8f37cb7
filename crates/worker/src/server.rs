//! The worker's side: takes jobs, one thread each, and gives up a job when its connection closes.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_image::{LayerId, LayerIndex};
use kiln_rootfs::Provider;
use kiln_sandbox::Cancel;
use kiln_store::layer_fs::{Ids, LayerDirs};
use rustix::event::{PollFd, PollFlags, poll};

use crate::protocol::{Failure, FailureKind, FileTree, Request, Response};
use crate::wire;
use tidy::Tidy;

mod caches;
mod exec;
mod files;
mod space;
mod tidy;
mod tree;
mod trust;

/// What all jobs share.
pub(crate) struct Shared {
    store_root: PathBuf,
    ids: Ids,
    provider: std::sync::OnceLock<Provider>,
    forced: Option<Provider>,
    indexes: Mutex<HashMap<LayerId, Arc<LayerIndex>>>,
    tidy: Tidy,
}

impl Shared {
    pub(crate) fn layer_dir(&self, layer: LayerId) -> PathBuf {
        self.store_root.join("layers").join(layer.hex())
    }

    /// The folders with a layer's files. What it stands on must be there.
    pub(crate) fn dirs(&self, layer: LayerId) -> Result<LayerDirs, Failure> {
        let dirs = LayerDirs::of(&self.layer_dir(layer))
            .map_err(|error| Failure::damaged(layer, &error.to_string()))?;
        if dirs.below.as_ref().is_some_and(|below| !below.is_dir()) {
            return Err(Failure::damaged(
                layer,
                "the layer that it stands on is not there",
            ));
        }
        Ok(dirs)
    }

    /// The way root file systems are made here; found out once, by trying.
    pub(crate) fn provider(&self) -> Provider {
        *self.provider.get_or_init(|| {
            self.forced
                .or_else(|| kiln_rootfs::probed(&self.store_root))
                .unwrap_or_else(|| self.try_provider().0)
        })
    }

    fn try_provider(&self) -> (Provider, String) {
        kiln_rootfs::probe(&self.store_root, |left| self.tidy.remove(left))
    }

    /// Keeps the index of a layer that was made just now.
    pub(crate) fn remember(&self, layer: LayerId, index: LayerIndex) {
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        indexes.insert(layer, Arc::new(index));
    }

    /// A layer's index. Layers never change, so that each is read once.
    pub(crate) fn index(&self, layer: LayerId) -> Result<Arc<LayerIndex>, Failure> {
        let indexes = || self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = indexes().get(&layer) {
            return Ok(index.clone());
        }
        let index = match kiln_store::layer_fs::read_index(&self.layer_dir(layer)) {
            Ok(index) => index,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Failure::damaged(layer, "its index is not there"));
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(Failure::damaged(layer, &format!("its index: {error}")));
            }
            Err(error) => {
                return Err(failure(&format!("cannot read layer {layer}"), &error));
            }
        };
        Ok(indexes().entry(layer).or_insert(Arc::new(index)).clone())
    }
}

impl Failure {
    /// A failure that nobody treats differently.
    pub(crate) fn other(message: impl Into<String>) -> Self {
        Self {
            kind: FailureKind::Other,
            message: message.into(),
            hint: None,
        }
    }

    /// A layer of the store is not as it was sealed.
    pub(crate) fn damaged(layer: LayerId, why: &str) -> Self {
        Self {
            kind: FailureKind::Damaged(layer),
            message: format!("layer {layer} is damaged: {why}"),
            hint: None,
        }
    }
}

/// Removes the folders of layers unless they became results, so that a failed step leaves nothing on the disk.
pub(crate) struct Cleanup<'a> {
    shared: &'a Shared,
    layers: HashSet<LayerId>,
}

impl<'a> Cleanup<'a> {
    pub(crate) fn new(shared: &'a Shared, layers: impl IntoIterator<Item = LayerId>) -> Self {
        let layers = layers.into_iter().collect();
        Self { shared, layers }
    }

    pub(crate) fn add(&mut self, layer: LayerId) {
        self.layers.insert(layer);
    }

    pub(crate) fn keep(&mut self, layer: LayerId) {
        self.layers.remove(&layer);
    }

    pub(crate) fn keep_all(mut self) {
        self.layers.clear();
    }
}

impl Drop for Cleanup<'_> {
    fn drop(&mut self) {
        for layer in &self.layers {
            // What stays behind is found by the next sweep.
            let _ = kiln_store::delete_layer(&self.shared.layer_dir(*layer));
        }
    }
}

/// The way out when the disk is full.
const NO_SPACE: &str = "see kiln system df; free some space with kiln builder prune or on the disk, or put the store \
                        elsewhere with --root or KILN_ROOT";

/// An error of the operating system as a failure, with its kind found in the chain of causes.
pub(crate) fn failure(doing: &str, error: &(dyn std::error::Error + 'static)) -> Failure {
    let mut message = if doing.is_empty() {
        error.to_string()
    } else {
        format!("{doing}: {error}")
    };
    let mut kind = FailureKind::Other;
    let mut cause = Some(error);
    while let Some(at) = cause {
        if let Some(io) = at.downcast_ref::<io::Error>() {
            kind = match io.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureKind::NoSpace,
                io::ErrorKind::Interrupted => FailureKind::Canceled,
                _ => kind,
            };
        }
        let text = at.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = at.source();
    }
    let hint = (kind == FailureKind::NoSpace).then(|| NO_SPACE.to_owned());
    Failure {
        kind,
        message,
        hint,
    }
}

/// Serves jobs until the control socket closes. Called in the process that [`kiln_sandbox::spawn_worker`] started,
/// after [`kiln_sandbox::enter_worker`]. `forced` overrides the way root file systems are made.
///
/// # Errors
/// When the control socket breaks.
pub fn serve(
    control: OwnedFd,
    store_root: PathBuf,
    ids: Ids,
    forced: Option<Provider>,
) -> io::Result<()> {
    let shared = Arc::new(Shared {
        tidy: Tidy::new(&store_root),
        store_root,
        ids,
        provider: std::sync::OnceLock::new(),
        forced,
        indexes: Mutex::default(),
    });
    let control = UnixStream::from(control);
    let mut jobs: Vec<(UnixStream, Cancel)> = Vec::new();
    let mut threads = Vec::new();
    let outcome = loop {
        let ready = {
            let mut fds = vec![PollFd::new(&control, PollFlags::IN)];
            // No data is ever due on a job's connection once its request is read: readiness means it closed. Its
            // own end asks for hang-ups only, which are always reported.
            fds.extend(
                jobs.iter()
                    .map(|(socket, _)| PollFd::new(socket, PollFlags::RDHUP)),
            );
            match poll(&mut fds, None) {
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(error) => break Err(error.into()),
            }
            fds.iter()
                .map(|fd| !fd.revents().is_empty())
                .collect::<Vec<_>>()
        };
        let mut at = 0;
        jobs.retain(|(_, cancel)| {
            at += 1;
            if ready[at] {
                cancel.cancel();
            }
            !ready[at]
        });
        if !ready[0] {
            continue;
        }
        let mut byte = [0];
        match wire::receive_with_fds(control.as_fd(), &mut byte) {
            Ok((0, _)) => break Ok(()),
            Ok((_, fds)) => {
                let Some(socket) = fds.into_iter().next().map(UnixStream::from) else {
                    continue;
                };
                let cancel = Cancel::new()?;
                jobs.push((socket.try_clone()?, cancel.clone()));
                let shared = shared.clone();
                threads.retain(|thread: &std::thread::JoinHandle<()>| !thread.is_finished());
                threads.push(std::thread::Builder::new().name("job".to_owned()).spawn(
                    move || {
                        serve_job(&shared, &socket, &cancel);
                    },
                )?);
            }
            Err(error) => break Err(error),
        }
    };
    for (_, cancel) in &jobs {
        cancel.cancel();
    }
    for thread in threads {
        // A job that panicked has told its front by closing the connection.
        let _ = thread.join();
    }
    if let Ok(()) = on_its_own() {
        drop(control);
    }
    shared.tidy.end();
    outcome
}

/// Nobody needs to wait for what is left to do: the front may end, and who reads what it says.
fn on_its_own() -> io::Result<()> {
    let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stderr(&null)?;
    rustix::process::set_parent_process_death_signal(None)?;
    Ok(())
}

fn serve_job(shared: &Shared, socket: &UnixStream, cancel: &Cancel) {
    let Ok(Some((mut request, fds))) = wire::receive::<Request>(socket) else {
        return;
    };
    if let Request::File(job) = &mut request {
        for input in &mut job.inputs {
            if let FileTree::Local { index, stamps, .. } = input {
                let Ok((found, its)) = wire::receive_scan(socket) else {
                    return;
                };
                (*index, *stamps) = (Arc::new(found), its);
            }
        }
    }
    // Outside input has passed many checks by here, but a job that breaks must not leave the front waiting.
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        answer(shared, request, &fds, socket, cancel)
    }));
    let response = match outcome {
        Ok(answer) => answer.unwrap_or_else(Response::Failed),
        Err(_) => Response::Failed(Failure::other("internal error in the worker; see above")),
    };
    // The front may be gone; then nobody wants the answer.
    let _ = wire::send(socket, &response, &[]);
}

fn answer(
    shared: &Shared,
    request: Request,
    fds: &[OwnedFd],
    socket: &UnixStream,
    cancel: &Cancel,
) -> Result<Response, Failure> {
    match request {
        Request::Facts => {
            // Who asks wants it tried now.
            let (provider, reason) = match shared.forced {
                Some(provider) => (provider, "forced".to_owned()),
                None => shared.try_provider(),
            };
            let provider = match provider {
                Provider::Overlay => "overlay",
                Provider::OverlayByMount => "overlay by mount(2)",
                Provider::PlainTree => "plain tree",
            };
            Ok(Response::Facts(crate::WorkerFacts {
                provider: provider.to_owned(),
                reason,
            }))
        }
        Request::Exec(job) => exec::exec(shared, &job, fds, cancel),
        Request::Run(job) => exec::run(shared, &job, fds, socket, cancel),
        Request::File(job) => files::file(shared, *job),
        Request::Unpack(job) => files::unpack(shared, &job, fds),
        Request::Digest { layer, clamp } => files::write_tar(shared, layer, clamp, &mut io::sink()),
        Request::WriteTar { layer, clamp } => {
            let mut out = io::BufWriter::with_capacity(1 << 18, output(fds)?);
            let response = files::write_tar(shared, layer, clamp, &mut out)?;
            io::Write::flush(&mut out)
                .map_err(|error| failure("cannot write the layer", &error))?;
            Ok(response)
        }
        Request::WriteTree { trees, clamp } => {
            let mut out = io::BufWriter::with_capacity(1 << 18, output(fds)?);
            let response = tree::write_tar(shared, &trees, clamp, &mut out)?;
            io::Write::flush(&mut out).map_err(|error| failure("cannot write the tar", &error))?;
            Ok(response)
        }
        Request::CheckOut {
            layers,
            clamp,
            delete,
        } => {
            let folder = output(fds)?.into();
            tree::check_out(shared, &layers, clamp, delete, folder)?;
            Ok(Response::Done)
        }
        Request::Delete(layers) => {
            for layer in layers {
                kiln_store::delete_layer(&shared.layer_dir(layer))
                    .map_err(|error| failure(&format!("cannot remove layer {layer}"), &error))?;
            }
            Ok(Response::Done)
        }
        Request::Space { layers, caches } => space::space(shared, &layers, &caches),
        Request::Allow(bytes) => {
            kiln_store::layer_fs::allow(bytes);
            Ok(Response::Done)
        }
        Request::Verify(layer) => space::verify(shared, layer),
        Request::RemoveCaches(folders) => caches::remove(shared, &folders),
        Request::PackCaches { folders, note } => caches::pack(shared, &folders, &note, fds),
        Request::UnpackCaches { into } => caches::unpack(shared, into, fds),
        Request::PlaceCache { from, folder, to } => caches::place(shared, from, &folder, &to),
    }
}

/// The one descriptor to write to.
fn output(fds: &[OwnedFd]) -> Result<std::fs::File, Failure> {
    let out = fds
        .first()
        .ok_or_else(|| Failure::other("no descriptor to write to"))?;
    let out = out
        .try_clone()
        .map_err(|error| failure("descriptor", &error))?;
    Ok(out.into())
}
