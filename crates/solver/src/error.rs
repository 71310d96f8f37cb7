//! Why a graph could not be solved.

use kiln_graph::Place;
use kiln_image::{LayerId, Platform};
use kiln_store::StoreError;
use kiln_worker::{ExecJob, Exit, WorkerError};

use crate::keys::KeyError;

/// The way out when the disk is full.
const NO_SPACE: &str = "the store's disk is full: free some space, or put the store elsewhere with --root or KILN_ROOT";

/// The way out when memory runs out.
const NO_MEMORY: &str = "give the step more with --memory if that limits it; else let fewer steps run at once with --jobs, or what it runs \
    use fewer processes";

/// The way out when a program is for another processor.
pub const NO_EMULATOR: &str = "programs for other processors run where the kernel knows an emulator (binfmt_misc): install the packages \
    qemu-user-static and binfmt-support (Debian, Ubuntu), qemu-user-static (Fedora) or qemu-user-static-binfmt (Arch); or compile on this \
    machine for the other, in a stage FROM --platform=$BUILDPLATFORM";

/// Why a graph could not be solved.
#[derive(Debug, thiserror::Error)]
pub enum SolveError {
    /// The user gave up.
    #[error("canceled")]
    Canceled,
    /// A process ended with another code than 0.
    #[error("process {command} did not complete successfully: {}{}", exit_text(*.exit, *.out_of_memory), foreign(platform.as_deref()))]
    Process {
        /// The operation.
        place: Box<Place>,
        /// The command as BuildKit quotes it.
        command: String,
        /// How it ended.
        exit: Exit,
        /// For want of memory.
        out_of_memory: bool,
        /// The store's disk was full when it ended.
        disk_full: bool,
        /// What it is for, when this machine cannot run that.
        platform: Option<Box<Platform>>,
        /// What it ran, on layers that hold what it changed, when that was to be kept.
        state: Option<Box<ExecJob>>,
    },
    /// An operation failed.
    #[error("{message}")]
    Step {
        /// The operation.
        place: Box<Place>,
        /// In words.
        message: String,
        /// A way out.
        hint: Option<String>,
    },
    /// A file that an operation takes from a local context is not there.
    #[error("{message}")]
    Missing {
        /// The operation.
        place: Box<Place>,
        /// The context's name.
        context: String,
        /// The path in it.
        path: String,
        /// In words.
        message: String,
        /// What may have been meant.
        hint: Option<String>,
    },
    /// A layer that the cache promised is damaged or gone.
    #[error("{message}")]
    Damaged {
        /// The operation.
        place: Box<Place>,
        /// The layer.
        layer: LayerId,
        /// In words.
        message: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn foreign(platform: Option<&Platform>) -> String {
    platform.map_or_else(String::new, |platform| {
        format!(
            ": it is for {platform}, and this machine is {}",
            Platform::host()
        )
    })
}

fn exit_text(exit: Exit, out_of_memory: bool) -> String {
    let text = match exit {
        Exit::Code(code) => format!("exit code: {code}"),
        // As a shell and BuildKit count: 128 and the signal.
        Exit::Signal(signal) => format!("exit code: {} (killed by signal {signal})", 128 + signal),
    };
    if out_of_memory {
        format!("{text}: out of memory: the kernel killed a process of it")
    } else {
        text
    }
}

impl SolveError {
    pub(crate) fn step(place: &Place, message: impl Into<String>, hint: Option<String>) -> Self {
        Self::Step {
            place: Box::new(place.clone()),
            message: message.into(),
            hint,
        }
    }

    pub(crate) fn worker(place: &Place, error: &WorkerError) -> Self {
        if error.is_canceled() {
            return Self::Canceled;
        }
        if let Some(layer) = error.damaged() {
            return Self::Damaged {
                place: Box::new(place.clone()),
                layer,
                message: error.to_string(),
            };
        }
        Self::step(place, error.to_string(), error.hint().map(str::to_owned))
    }

    pub(crate) fn key(place: &Place, error: KeyError) -> Self {
        match (error.context, error.missing) {
            (Some(context), Some(path)) => Self::Missing {
                place: Box::new(place.clone()),
                context,
                path,
                message: error.message,
                hint: error.hint,
            },
            _ => Self::step(place, error.message, error.hint),
        }
    }

    /// Where in the build it happened.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Process { place, .. }
            | Self::Step { place, .. }
            | Self::Damaged { place, .. }
            | Self::Missing { place, .. } => Some(place),
            _ => None,
        }
    }

    /// A way out, where there is one.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Step { hint, .. } | Self::Missing { hint, .. } => hint.as_deref(),
            Self::Process {
                platform: Some(_), ..
            } => Some(NO_EMULATOR),
            Self::Process {
                out_of_memory: true,
                ..
            } => Some(NO_MEMORY),
            Self::Process {
                disk_full: true, ..
            }
            | Self::Store(StoreError::Full) => Some(NO_SPACE),
            _ => None,
        }
    }
}
