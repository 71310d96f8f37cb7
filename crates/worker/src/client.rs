//! The front's side: starts the worker when it is first needed, and hands it jobs.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_sandbox::{Isolation, SandboxError};

use crate::protocol::{Failure, FailureKind, FileTree, Request, Response, WorkerFacts};
use crate::wire;

/// How long a worker that was told to end may take before it is killed.
const END_WITHIN: Duration = Duration::from_secs(10);

/// How the worker is started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The program: this one.
    pub exe: PathBuf,
    /// Arguments that make it call [`crate::serve`].
    pub args: Vec<OsString>,
    /// The namespaces.
    pub isolation: Isolation,
}

/// Why a job gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The worker could not be started.
    #[error(transparent)]
    Start(#[from] SandboxError),
    /// The connection broke.
    #[error("the worker process ended unexpectedly: {0}")]
    Lost(#[source] io::Error),
    /// The job was cancelled.
    #[error("canceled")]
    Canceled,
    /// The job failed.
    #[error("{}", .0.message)]
    Failed(Failure),
}

impl WorkerError {
    /// Whether the job was given up and did not fail.
    pub fn is_canceled(&self) -> bool {
        matches!(
            self,
            Self::Canceled
                | Self::Failed(Failure {
                    kind: FailureKind::Canceled,
                    ..
                })
        )
    }

    /// The layer that turned out to be damaged, if that is why.
    pub fn damaged(&self) -> Option<kiln_image::LayerId> {
        match self {
            Self::Failed(Failure {
                kind: FailureKind::Damaged(layer),
                ..
            }) => Some(*layer),
            _ => None,
        }
    }

    /// Whether there was no space left.
    pub fn is_full(&self) -> bool {
        matches!(
            self,
            Self::Failed(Failure {
                kind: FailureKind::NoSpace,
                ..
            })
        )
    }

    /// A way out, where there is one.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Failed(failure) => failure.hint.as_deref(),
            Self::Start(error) => error.hint(),
            _ => None,
        }
    }
}

struct Running {
    child: Child,
    control: UnixStream,
}

/// The worker process of this front, started with the first job.
pub struct Worker {
    launch: Launch,
    running: Mutex<Option<Running>>,
    jobs: Mutex<HashMap<u64, UnixStream>>,
    next: AtomicU64,
    canceled: Arc<AtomicBool>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    /// Nothing is started yet.
    pub fn new(launch: Launch) -> Self {
        Self {
            launch,
            running: Mutex::default(),
            jobs: Mutex::default(),
            next: AtomicU64::new(0),
            canceled: Arc::default(),
        }
    }

    /// Runs one job and waits for its answer. [`Response::Failed`] comes as an error.
    ///
    /// # Errors
    /// When the worker cannot be started, dies, or says that the job failed, and after [`Worker::cancel`].
    pub fn call(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Response, WorkerError> {
        let (ours, theirs) = UnixStream::pair().map_err(WorkerError::Lost)?;
        self.connect(&theirs)?;
        drop(theirs);
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        lock(&self.jobs).insert(number, ours.try_clone().map_err(WorkerError::Lost)?);
        let answer = self.exchange(&ours, request, fds);
        lock(&self.jobs).remove(&number);
        match answer {
            Ok(Response::Failed(failure)) if failure.kind == FailureKind::Canceled => {
                Err(WorkerError::Canceled)
            }
            Ok(Response::Failed(failure)) => Err(WorkerError::Failed(failure)),
            Ok(response) => Ok(response),
            Err(_) if self.canceled.load(Ordering::Acquire) => Err(WorkerError::Canceled),
            Err(error) => Err(WorkerError::Lost(error)),
        }
    }

    fn exchange(
        &self,
        ours: &UnixStream,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> io::Result<Response> {
        // Asked after the job is in the table: a cancel from now on finds it there.
        if self.canceled.load(Ordering::Acquire) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        wire::send(ours, request, fds)?;
        if let Request::File(job) = request {
            for input in &job.inputs {
                if let FileTree::Local { index, stamps, .. } = input {
                    wire::send_scan(ours, index, stamps)?;
                }
            }
        }
        let (response, _) = wire::receive(ours)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no answer"))?;
        Ok(response)
    }

    /// What the worker found out about where it runs.
    ///
    /// # Errors
    /// As [`Worker::call`].
    pub fn facts(&self) -> Result<WorkerFacts, WorkerError> {
        match self.call(&Request::Facts, &[])? {
            Response::Facts(facts) => Ok(facts),
            _ => Err(unexpected()),
        }
    }

    /// Gives up all jobs, those under way and those to come. Each ends with [`WorkerError::Canceled`].
    pub fn cancel(&self) {
        self.canceled.store(true, Ordering::Release);
        for job in lock(&self.jobs).values() {
            // The other side may have closed already.
            let _ = job.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Passes a signal on to the process of a container.
    pub fn signal(&self, number: u8) {
        for job in lock(&self.jobs).values() {
            // One that has ended needs no signal; other jobs read nothing.
            let _ = io::Write::write_all(&mut &*job, &[number]);
        }
    }

    /// Takes jobs again after [`Worker::cancel`]. No job may be under way.
    pub fn resume(&self) {
        self.canceled.store(false, Ordering::Release);
    }

    /// Whether [`Worker::cancel`] was called.
    pub fn is_canceled(&self) -> bool {
        self.canceled.load(Ordering::Acquire)
    }

    /// What [`Worker::cancel`] sets, for those who wait for something else.
    pub fn canceled(&self) -> &Arc<AtomicBool> {
        &self.canceled
    }

    /// Whether a worker process was started.
    pub fn is_running(&self) -> bool {
        lock(&self.running).is_some()
    }

    fn connect(&self, theirs: &UnixStream) -> Result<(), WorkerError> {
        let mut running = lock(&self.running);
        if running.is_none() {
            let (ours, control) = UnixStream::pair().map_err(WorkerError::Lost)?;
            let Launch {
                exe,
                args,
                isolation,
            } = &self.launch;
            let child = kiln_sandbox::spawn_worker(isolation, exe, args, OwnedFd::from(control))?;
            *running = Some(Running {
                child,
                control: ours,
            });
        }
        let control = &running.as_ref().expect("started above").control;
        wire::send_with_fds(control.as_fd(), b"j", &[theirs.as_fd()]).map_err(WorkerError::Lost)
    }

    /// Ends the worker process and waits until everything that ran in it is gone. What is left to be tidied up it does
    /// afterwards.
    pub fn end(&self) {
        let Some(Running { mut child, control }) = lock(&self.running).take() else {
            return;
        };
        // The worker closes its end when the jobs have ended; it never writes.
        let ended = control
            .shutdown(std::net::Shutdown::Write)
            .and_then(|()| control.set_read_timeout(Some(END_WITHIN)))
            .and_then(|()| io::Read::read_exact(&mut &control, &mut [0]));
        if !ended.is_err_and(|error| error.kind() == io::ErrorKind::UnexpectedEof) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.end();
    }
}

/// The error for an answer that does not fit its question.
pub(crate) fn unexpected() -> WorkerError {
    WorkerError::Lost(io::Error::other("the answer does not fit the job"))
}

macro_rules! typed {
    ($(#[$doc:meta])* $name:ident($($arg:ident: $type:ty),*) -> $out:ty, $request:expr, $response:pat => $value:expr) => {
        $(#[$doc])*
        ///
        /// # Errors
        /// As [`Worker::call`].
        pub fn $name(&self, $($arg: $type,)* fds: &[BorrowedFd<'_>]) -> Result<$out, WorkerError> {
            match self.call(&$request, fds)? {
                $response => Ok($value),
                _ => Err(unexpected()),
            }
        }
    };
}

impl Worker {
    typed!(
        /// Runs file actions.
        file(job: crate::FileJob) -> crate::MadeFiles, Request::File(Box::new(job)), Response::Files(made) => made
    );
    typed!(
        /// Makes a layer of a tar.
        unpack(job: crate::UnpackJob) -> crate::UnpackedLayer, Request::Unpack(job), Response::Unpacked(it) => it
    );
    typed!(
        /// Removes the folders of layers.
        delete(layers: Vec<kiln_image::LayerId>) -> (), Request::Delete(layers), Response::Done => ()
    );
    typed!(
        /// What folders of layers and of cache mounts take.
        space(layers: Vec<kiln_image::LayerId>, caches: Vec<String>) -> (Vec<u64>, Vec<Option<crate::CacheFolder>>),
        Request::Space { layers, caches }, Response::Spaces { layers, caches } => (layers, caches)
    );
    typed!(
        /// Bounds what the worker writes into layers from now on.
        allow(bytes: u64) -> (), Request::Allow(bytes), Response::Done => ()
    );
    typed!(
        /// What of a layer's files differs from its index.
        verify(layer: kiln_image::LayerId) -> Vec<String>, Request::Verify(layer), Response::Verified(found) => found
    );
    typed!(
        /// Removes folders of cache mounts.
        remove_caches(folders: Vec<String>) -> (), Request::RemoveCaches(folders), Response::Done => ()
    );
    typed!(
        /// Writes cache mounts into the descriptor as one archive.
        pack_caches(folders: Vec<String>, note: Vec<u8>) -> (),
        Request::PackCaches { folders, note }, Response::Done => ()
    );
    typed!(
        /// Unpacks an archive of cache mounts; gives its note.
        unpack_caches(into: kiln_image::LayerId) -> Vec<u8>,
        Request::UnpackCaches { into }, Response::CachesUnpacked(note) => note
    );
    typed!(
        /// Puts an unpacked cache mount in its place.
        place_cache(from: kiln_image::LayerId, folder: String, to: String) -> (),
        Request::PlaceCache { from, folder, to }, Response::Done => ()
    );
    typed!(
        /// The diff id of a layer and the size of its tar.
        digest(layer: kiln_image::LayerId, clamp: Option<i64>) -> (kiln_image::DiffId, u64),
        Request::Digest { layer, clamp }, Response::Tar { diff_id, size } => (diff_id, size)
    );
    typed!(
        /// Writes a layer's tar into the descriptor; gives its diff id and size.
        write_tar(layer: kiln_image::LayerId, clamp: Option<i64>) -> (kiln_image::DiffId, u64),
        Request::WriteTar { layer, clamp }, Response::Tar { diff_id, size } => (diff_id, size)
    );
    typed!(
        /// Writes all that layers show together as one tar into the descriptor, each tree below the folder named before
        /// it, if that is not empty; gives its diff id and size.
        write_tree(trees: Vec<(String, crate::Stacked)>, clamp: Option<i64>) -> (kiln_image::DiffId, u64),
        Request::WriteTree { trees, clamp }, Response::Tar { diff_id, size } => (diff_id, size)
    );
    typed!(
        /// Writes all that layers show together into the folder that the descriptor is; `delete` removes the rest.
        check_out(layers: crate::Stacked, clamp: Option<i64>, delete: bool) -> (),
        Request::CheckOut { layers, clamp, delete }, Response::Done => ()
    );
}
