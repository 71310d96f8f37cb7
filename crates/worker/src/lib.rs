//! The process that touches layer folders. The front process sends it jobs over a socket; it runs inside the namespaces
//! in which the owners of an image's files exist, so that RUN, COPY, unpacking and tar all see the same ids.
//!
//! A job is a connection of its own: the front makes a socket pair, hands one end over the control socket, and writes one
//! [`Request`] (with file descriptors, where the job has any). The worker answers with one [`Response`]. Closing the
//! connection cancels the job; closing the control socket (as the kernel does when the front dies) ends the worker.

mod client;
mod protocol;
mod server;
mod wire;

pub use client::{Launch, Worker, WorkerError};
pub use kiln_sandbox::Limits;
pub use protocol::{
    CacheFolder, ExecJob, ExecMount, Exit, Failure, FailureKind, FileJob, FileTree, Made,
    MadeFiles, MountSource, Outlined, ProcessSpec, Request, Response, Rights, Seed, Stacked,
    TarInput, Trust, UnpackJob, UnpackedLayer, WorkerFacts, hosts_file,
};
pub use server::serve;
