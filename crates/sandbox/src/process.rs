//! What to run, and what it sees.

use std::ffi::OsString;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use kiln_image::InodeOwners;

use crate::capabilities::DOCKER_CAPABILITIES;
use crate::cgroup::Cgroup;
use crate::users::UserSpec;

/// Default size of `/dev/shm` in bytes.
pub const DEFAULT_SHM_SIZE: u64 = 64 << 20;

/// A tree that can be mounted.
#[derive(Debug, Clone, Copy)]
pub enum RootSource<'a> {
    /// A detached mount (`fsmount`, `open_tree`). The container takes it: it can be used for one container only.
    Mount(BorrowedFd<'a>),
    /// A folder (for a bind also a file).
    Folder(&'a Path),
}

/// A program with everything around it. The program becomes process 1 of its own PID namespace, or with
/// [`Process::init`] process 2.
#[derive(Debug)]
pub struct Process<'a> {
    /// What becomes `/`.
    pub root: RootSource<'a>,
    /// Nothing on the root itself can be written (mounts decide for themselves).
    pub read_only_root: bool,
    /// Program and arguments; a program without a slash is looked up in `PATH` of `env`, inside the root.
    pub args: Vec<OsString>,
    /// Environment, `NAME=value`.
    pub env: Vec<OsString>,
    /// Working folder inside the root; made, owned by the user, if it is not there.
    pub cwd: PathBuf,
    /// Who runs.
    pub user: UserSpec,
    /// Host name.
    pub hostname: String,
    /// Network.
    pub network: Network,
    /// Further mounts, in the order in which they are made.
    pub mounts: Vec<SandboxMount<'a>>,
    /// How tightly it is held.
    pub confinement: Confinement,
    /// The capabilities that it may have, a bit each, under [`Confinement::Docker`].
    pub capabilities: u64,
    /// There is no filter of system calls under [`Confinement::Docker`] either.
    pub unfiltered: bool,
    /// Set-user-id programs give no privileges. Off in builds: `su` and `sudo` work in a `RUN`.
    pub no_new_privs: bool,
    /// The program is the child of a process 1 that collects the processes that others leave, and passes signals on.
    pub init: bool,
    /// Resource limits.
    pub ulimits: Vec<Ulimit>,
    /// Score for the kernel's choice when memory runs out, -1000 to 1000; `None` inherits.
    pub oom_score_adj: Option<i16>,
    /// The control group that it runs in; the worker's when there is none.
    pub cgroup: Option<&'a Cgroup>,
    /// Bytes of `/dev/shm`.
    pub shm_size: u64,
    /// Standard streams.
    pub stdio: Stdio<'a>,
    /// `Some` where the worker has one id only: ids beyond it are written down, and all calls that set or tell ids
    /// answer accordingly. Holds the known owners of files that cannot carry them; see [`Running::owners`].
    ///
    /// [`Running::owners`]: crate::Running::owners
    pub recorded: Option<InodeOwners>,
}

impl<'a> Process<'a> {
    /// `args` as root in `/` with the defaults of a build, and nothing in its environment.
    pub fn new<I: IntoIterator<Item: Into<OsString>>>(root: RootSource<'a>, args: I) -> Self {
        Self {
            root,
            read_only_root: false,
            args: args.into_iter().map(Into::into).collect(),
            env: Vec::new(),
            cwd: PathBuf::from("/"),
            user: UserSpec::root(),
            hostname: "buildkitsandbox".into(),
            network: Network::Host,
            mounts: Vec::new(),
            confinement: Confinement::Docker,
            capabilities: DOCKER_CAPABILITIES,
            unfiltered: false,
            no_new_privs: false,
            init: false,
            ulimits: Vec::new(),
            oom_score_adj: None,
            cgroup: None,
            shm_size: DEFAULT_SHM_SIZE,
            stdio: Stdio::Files {
                stdin: None,
                stdout: None,
                stderr: None,
            },
            recorded: None,
        }
    }
}

/// Where the standard streams go.
#[derive(Debug, Clone, Copy)]
pub enum Stdio<'a> {
    /// Descriptors; `None` is `/dev/null`.
    Files {
        /// Standard input.
        stdin: Option<BorrowedFd<'a>>,
        /// Standard output.
        stdout: Option<BorrowedFd<'a>>,
        /// Standard error.
        stderr: Option<BorrowedFd<'a>>,
    },
    /// A terminal of the container, which is the controlling one and `/dev/console`; its other end is
    /// [`Running::terminal`](crate::Running::terminal).
    Terminal {
        /// Lines.
        rows: u16,
        /// Columns.
        cols: u16,
    },
}

/// The network of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// The worker's.
    Host,
    /// Only a loopback device, up.
    None,
}

/// What the container may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Confinement {
    /// Docker's default capabilities and system calls; parts of `/proc` and `/sys` hidden or read-only; no devices.
    Docker,
    /// Everything that the worker may do.
    Insecure,
}

/// A mount besides the standard ones.
#[derive(Debug)]
pub struct SandboxMount<'a> {
    /// Where, as seen from inside; links are followed inside the root, and what is missing is made.
    pub dest: PathBuf,
    /// What.
    pub source: MountSource<'a>,
    /// It cannot be written, nor can what is mounted below it.
    pub read_only: bool,
}

impl SandboxMount<'_> {
    /// A read-only file with the given content, owned by root, mode 0644, such as `/etc/hosts`.
    pub fn file(dest: impl Into<PathBuf>, content: impl Into<Vec<u8>>) -> Self {
        let source = MountSource::File {
            content: content.into(),
            mode: 0o644,
            uid: 0,
            gid: 0,
        };
        Self {
            dest: dest.into(),
            source,
            read_only: true,
        }
    }
}

/// What can be mounted.
#[derive(Debug)]
pub enum MountSource<'a> {
    /// A folder or file of another tree, with all that is mounted below it.
    Bind {
        /// The tree.
        root: RootSource<'a>,
        /// Path in the tree, links followed inside of it; empty for the tree itself. Must exist.
        path: PathBuf,
    },
    /// Memory, empty at first.
    Tmpfs {
        /// Most bytes; `None` is the kernel's default.
        size: Option<u64>,
        /// Mode of the folder.
        mode: u32,
    },
    /// A file with this content, in memory.
    File {
        /// Content.
        content: Vec<u8>,
        /// Mode.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
    },
}

/// A limit of a resource, see getrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ulimit {
    /// What is limited.
    pub kind: UlimitKind,
    /// Soft limit; `u64::MAX` is none.
    pub soft: u64,
    /// Hard limit; `u64::MAX` is none.
    pub hard: u64,
}

/// A resource that can be limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UlimitKind(pub(crate) u32);

impl UlimitKind {
    /// By the name that `--ulimit` takes (`nofile`, `nproc`, ...).
    pub fn from_name(name: &str) -> Option<Self> {
        Some(Self(match name {
            "core" => libc::RLIMIT_CORE,
            "cpu" => libc::RLIMIT_CPU,
            "data" => libc::RLIMIT_DATA,
            "fsize" => libc::RLIMIT_FSIZE,
            "locks" => libc::RLIMIT_LOCKS,
            "memlock" => libc::RLIMIT_MEMLOCK,
            "msgqueue" => libc::RLIMIT_MSGQUEUE,
            "nice" => libc::RLIMIT_NICE,
            "nofile" => libc::RLIMIT_NOFILE,
            "nproc" => libc::RLIMIT_NPROC,
            "rss" => libc::RLIMIT_RSS,
            "rtprio" => libc::RLIMIT_RTPRIO,
            "rttime" => libc::RLIMIT_RTTIME,
            "sigpending" => libc::RLIMIT_SIGPENDING,
            "stack" => libc::RLIMIT_STACK,
            _ => return None,
        }))
    }
}
