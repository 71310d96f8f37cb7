//! Runs programs in a container of their own, and starts the worker process that does all work on layer folders.
//!
//! - [`isolation`] decides how the worker gets its privileges; [`worker`] starts it and brings it into its namespaces.
//! - [`process`] says what to run; [`spawn`] runs it and gives a [`Running`].
//! - [`users`] reads `/etc/passwd` and `/etc/group` the way container runtimes do.
//! - [`resolve`] opens paths inside a root that is not ours, so that no link leads out of it.
//!
//! How a container starts. Every container has a *keeper* thread in the worker. The keeper takes new mount, IPC, UTS
//! (and network) namespaces for itself, which Linux allows to a single thread, and puts the root together there in
//! ordinary code. Then it forks the child into a new PID namespace. The child may make nothing but raw system calls,
//! since it is the fork of one thread of many; all it needs was allocated before. It mounts `/proc`, turns the root,
//! drops its privileges and executes the program as process 1. The keeper goes back to the worker's mount namespace
//! and stays until the child is gone: the kernel kills the child when the *thread* that forked it ends.

pub mod cancel;
mod capabilities;
pub mod cgroup;
mod child;
mod error;
mod init;
pub mod isolation;
mod keeper;
mod one_id;
pub mod process;
pub mod resolve;
mod running;
mod seccomp;
mod sys;
mod tree;
pub mod users;
pub mod worker;

pub use cancel::Cancel;
pub use capabilities::{Capability, DOCKER_CAPABILITIES};
pub use cgroup::{Cgroup, Limits};
pub use error::SandboxError;
pub use isolation::{IdRange, IdTools, Isolation, User, Wanted, choose};
pub use process::{
    Confinement, MountSource, Network, Process, RootSource, SandboxMount, Stdio, Ulimit, UlimitKind,
};
pub use resolve::read_in_root;
pub use running::{Exit, Running, spawn};
pub use users::{UserError, UserSpec, lookup_user};
pub use worker::{CONTROL_FD, enter_worker, spawn_worker};
