//! The thread that sets a container up and stays with it.

use std::ffi::{CString, OsString};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use kiln_image::{InodeOwners, LayerPath};
use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Uid, fchown, fstat, openat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use rustix::thread::UnshareFlags;

use crate::child::{
    self, FAILURE_SIZE, Failure, MASKED, NOT_FOUND, Plan, Pointers, READ_ONLY, Stage,
};
use crate::error::SandboxError;
use crate::one_id::{self, Supervisor, Task};
use crate::process::{Confinement, MountSource, Network, Process, RootSource, Stdio, Ulimit};
use crate::running::Exit;
use crate::seccomp;
use crate::sys;
use crate::tree::{self, Places, Tree};
use crate::users::UserSpec;

type Result<T> = std::result::Result<T, SandboxError>;

/// A [`Process`] that owns everything, so that it can go to the keeper.
pub(crate) struct Job {
    pub(crate) root: OwnedRoot,
    pub(crate) mounts: Vec<OwnedMount>,
    pub(crate) user: UserSpec,
    pub(crate) cwd: PathBuf,
    pub(crate) confinement: Confinement,
    capabilities: u64,
    unfiltered: bool,
    pub(crate) shm_size: u64,
    /// Rows and columns.
    pub(crate) terminal: Option<(u16, u16)>,
    network: Network,
    hostname: String,
    stdio: Option<[OwnedFd; 3]>,
    read_only_root: bool,
    no_new_privs: bool,
    init: bool,
    ulimits: Vec<Ulimit>,
    oom_score_adj: Option<i16>,
    /// See [`Cgroup::doors`](crate::Cgroup::doors).
    doors: Vec<OwnedFd>,
    /// See [`Process::recorded`].
    pub(crate) recorded: Option<InodeOwners>,
    programs: Vec<CString>,
    args: Vec<CString>,
    env: Vec<CString>,
}

pub(crate) enum OwnedRoot {
    Mount(OwnedFd),
    Folder(PathBuf),
}

pub(crate) struct OwnedMount {
    pub(crate) dest: PathBuf,
    pub(crate) source: OwnedSource,
    pub(crate) read_only: bool,
}

pub(crate) enum OwnedSource {
    Bind {
        root: OwnedRoot,
        path: PathBuf,
    },
    Tmpfs {
        size: Option<u64>,
        mode: u32,
    },
    File {
        content: Vec<u8>,
        mode: u32,
        uid: u32,
        gid: u32,
    },
}

impl Job {
    pub(crate) fn new(process: &Process<'_>) -> Result<Self> {
        let args = strings("argument", &process.args)?;
        let env = strings("environment variable", &process.env)?;
        let Some(program) = args.first().filter(|program| !program.is_empty()) else {
            return Err(SandboxError::Invalid("no command given".into()));
        };
        let (stdio, terminal) = match process.stdio {
            Stdio::Files {
                stdin,
                stdout,
                stderr,
            } => {
                let stream = |fd: Option<std::os::fd::BorrowedFd<'_>>| match fd {
                    Some(fd) => beyond_stdio(fd),
                    None => openat(
                        CWD,
                        c"/dev/null",
                        OFlags::RDWR | OFlags::CLOEXEC,
                        Mode::empty(),
                    )
                    .and_then(|null| beyond_stdio(null.as_fd())),
                };
                let failed = |error| SandboxError::setup("standard streams", error);
                let streams = [stream(stdin), stream(stdout), stream(stderr)];
                let [Ok(stdin), Ok(stdout), Ok(stderr)] = streams else {
                    return Err(failed(
                        streams
                            .into_iter()
                            .find_map(std::result::Result::err)
                            .unwrap_or(Errno::BADF),
                    ));
                };
                (Some([stdin, stdout, stderr]), None)
            }
            Stdio::Terminal { rows, cols } => (None, Some((rows, cols))),
        };
        let mounts = process.mounts.iter().map(|mount| {
            let source = match &mount.source {
                MountSource::Bind { root, path } => OwnedSource::Bind {
                    root: owned(*root)?,
                    path: path.clone(),
                },
                MountSource::Tmpfs { size, mode } => OwnedSource::Tmpfs {
                    size: *size,
                    mode: *mode,
                },
                MountSource::File {
                    content,
                    mode,
                    uid,
                    gid,
                } => OwnedSource::File {
                    content: content.clone(),
                    mode: *mode,
                    uid: *uid,
                    gid: *gid,
                },
            };
            Ok(OwnedMount {
                dest: mount.dest.clone(),
                source,
                read_only: mount.read_only,
            })
        });
        let doors = process.cgroup.map(crate::Cgroup::doors).transpose();
        let doors = doors.map_err(|error| SandboxError::setup("control group", error))?;
        Ok(Self {
            root: owned(process.root)?,
            mounts: mounts.collect::<Result<_>>()?,
            user: process.user.clone(),
            cwd: process.cwd.clone(),
            confinement: process.confinement,
            capabilities: process.capabilities,
            unfiltered: process.unfiltered,
            shm_size: process.shm_size,
            terminal,
            network: process.network,
            hostname: process.hostname.clone(),
            stdio,
            read_only_root: process.read_only_root,
            no_new_privs: process.no_new_privs,
            init: process.init,
            ulimits: process.ulimits.clone(),
            oom_score_adj: process.oom_score_adj,
            doors: doors.unwrap_or_default(),
            recorded: process.recorded.clone(),
            programs: programs(program, &env),
            args,
            env,
        })
    }
}

fn owned(root: RootSource<'_>) -> Result<OwnedRoot> {
    Ok(match root {
        RootSource::Folder(path) => OwnedRoot::Folder(path.into()),
        RootSource::Mount(fd) => OwnedRoot::Mount(
            fd.try_clone_to_owned()
                .map_err(|error| SandboxError::setup("root", error))?,
        ),
    })
}

fn strings(what: &str, list: &[OsString]) -> Result<Vec<CString>> {
    list.iter()
        .map(|string| {
            CString::new(string.as_bytes()).map_err(|_| {
                SandboxError::Invalid(format!("{what} with a null byte: {}", string.display()))
            })
        })
        .collect()
}

/// A copy that no `dup2` onto 0, 1 and 2 can hit, nor the report's 3.
fn beyond_stdio(fd: std::os::fd::BorrowedFd<'_>) -> rustix::io::Result<OwnedFd> {
    rustix::io::fcntl_dupfd_cloexec(fd, 10)
}

/// Where the program may be, in order. Relative folders of `PATH` are passed over, as Go's look-up does.
fn programs(program: &CString, env: &[CString]) -> Vec<CString> {
    let name = program.as_bytes();
    if name.contains(&b'/') {
        return vec![program.clone()];
    }
    let path = env
        .iter()
        .rev()
        .find_map(|variable| variable.as_bytes().strip_prefix(b"PATH="))
        .unwrap_or_default();
    path.split(|&byte| byte == b':')
        .filter(|folder| folder.first() == Some(&b'/'))
        .filter_map(|folder| CString::new([folder, b"/", name].concat()).ok())
        .collect()
}

/// A container that runs.
pub(crate) struct Started {
    pub(crate) pidfd: OwnedFd,
    pub(crate) made: Vec<LayerPath>,
    pub(crate) terminal: Option<OwnedFd>,
}

/// How a container ended, and the owners of files that cannot carry them.
pub(crate) type Ended = (Exit, InodeOwners);

/// The two things a keeper tells.
pub(crate) struct Keeper {
    pub(crate) thread: JoinHandle<()>,
    pub(crate) exit: Receiver<std::io::Result<Ended>>,
}

/// Starts the job on a keeper thread.
pub(crate) fn start(job: Job) -> Result<(Started, Keeper)> {
    let (tell_started, started) = sync_channel(1);
    let (tell_exit, exit) = sync_channel(1);
    let thread = std::thread::Builder::new()
        .name("container".into())
        .stack_size(512 << 10)
        .spawn(move || keep(job, &tell_started, &tell_exit))
        .map_err(|error| SandboxError::setup("thread", error))?;
    match started.recv() {
        Ok(Ok(started)) => Ok((started, Keeper { thread, exit })),
        Ok(Err(error)) => {
            // So that nothing of the failed container is left when the caller goes on.
            let _ = thread.join();
            Err(error)
        }
        Err(_) => Err(SandboxError::setup(
            "thread",
            std::io::Error::other("the keeper of the container died"),
        )),
    }
}

fn keep(
    job: Job,
    tell_started: &SyncSender<Result<Started>>,
    tell_exit: &SyncSender<std::io::Result<Ended>>,
) {
    let (started, pidfd, supervisor) = match set_up(job) {
        Ok(all) => all,
        Err(error) => {
            let _ = tell_started.send(Err(error));
            return;
        }
    };
    let _ = tell_started.send(Ok(started));
    let exit = reap(&pidfd);
    let owners = supervisor.map(Supervisor::finish).unwrap_or_default();
    let _ = tell_exit.send(exit.map(|exit| (exit, owners)));
}

/// Waits for the child's end.
fn reap(pidfd: &OwnedFd) -> std::io::Result<Exit> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                return Ok(match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Exit::Code(code as u8),
                    (None, signal) => Exit::Signal(signal.unwrap_or(libc::SIGKILL) as u8),
                });
            }
            Ok(None) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn set_up(mut job: Job) -> Result<(Started, OwnedFd, Option<Supervisor>)> {
    enter_namespaces(&job)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let old_root = openat(CWD, c"/", flags, Mode::empty())
        .map_err(|error| SandboxError::setup("opening the old root", error))?;
    let Tree {
        places,
        made,
        terminal,
    } = tree::assemble(&mut job)?;
    let (stdio, outer) = match (job.stdio.take(), terminal) {
        (Some(stdio), _) => (stdio, None),
        (None, Some(terminal)) => {
            let failed = |error| SandboxError::setup("terminal", error);
            let stream = || beyond_stdio(terminal.inner.as_fd()).map_err(failed);
            ([stream()?, stream()?, stream()?], Some(terminal.outer))
        }
        (None, None) => return Err(SandboxError::Invalid("no standard streams".into())),
    };
    if outer.is_none() {
        give_streams(&stdio, &job.user);
    }
    let (failures, report) = report_pipe().map_err(|error| SandboxError::setup("pipe", error))?;
    let opened = Opened {
        places,
        old_root,
        stdio,
        report,
        terminal: outer.is_some(),
    };
    let task = job.recorded.take().map(|owners| Task {
        owners,
        confined: job.confinement == Confinement::Docker,
        set_id_programs: !job.no_new_privs,
    });
    let plan = plan(job, opened, task.is_some());
    let pidfd = fork(&plan)?;
    let names = Names::of(&plan);
    // Closes this side's end of the pipe, and all that belongs to the container.
    drop(plan);
    let started = became_program(failures, &names, &pidfd, task).and_then(|supervisor| {
        let copy = pidfd
            .try_clone()
            .map_err(|error| SandboxError::setup("pidfd", error))?;
        Ok((copy, supervisor))
    });
    match started {
        Ok((copy, supervisor)) => Ok((
            Started {
                pidfd: copy,
                made,
                terminal: outer,
            },
            pidfd,
            supervisor,
        )),
        Err(error) => {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            let _ = reap(&pidfd);
            Err(error)
        }
    }
}

/// Leaves the child's mounts alone and waits until it has executed its program; starts its supervisor on the way.
fn became_program(
    failures: OwnedFd,
    names: &Names,
    child: &OwnedFd,
    mut task: Option<Task>,
) -> Result<Option<Supervisor>> {
    sys::rejoin_mount_namespace()
        .map_err(|error| SandboxError::setup("leaving the mount namespace", error))?;
    let mut failures = std::fs::File::from(failures);
    let mut message = [0; FAILURE_SIZE];
    let mut supervisor = None;
    loop {
        match failures.read(&mut message) {
            Ok(0) => return Ok(supervisor),
            Ok(_) => {}
            Err(error) => return Err(SandboxError::setup("pipe", error)),
        }
        match (Failure::decode(message), task.take()) {
            (
                Some(Failure {
                    stage: Stage::Supervised,
                    index,
                    ..
                }),
                Some(task),
            ) => {
                supervisor = Some(Supervisor::start(child, index as i32, task)?);
            }
            (Some(failure), _) => return Err(names.explain(failure)),
            (None, _) => {
                return Err(SandboxError::Invalid("it failed in an unknown way".into()));
            }
        }
    }
}

/// The pipe for the child's failure; the writing end is beyond the numbers that the child uses.
fn report_pipe() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((read, beyond_stdio(write.as_fd())?))
}

/// Namespaces of this thread, which the child inherits.
fn enter_namespaces(job: &Job) -> Result<()> {
    let mut flags = UnshareFlags::NEWNS | UnshareFlags::NEWIPC | UnshareFlags::NEWUTS;
    if job.network == Network::None {
        flags |= UnshareFlags::NEWNET;
    }
    sys::unshare(flags).map_err(|error| SandboxError::setup("new namespaces", error))?;
    // Missing only in old or small kernels; it hides names, nothing depends on it.
    let _ = sys::unshare(UnshareFlags::NEWCGROUP);
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(|error| SandboxError::setup("making mounts private", error))?;
    // The thread has a umask of its own now; modes are meant as they are written.
    rustix::process::umask(Mode::empty());
    rustix::system::sethostname(job.hostname.as_bytes())
        .map_err(|error| SandboxError::setup(format!("host name {:?}", job.hostname), error))?;
    if job.network == Network::None {
        sys::loopback_up().map_err(|error| SandboxError::setup("loopback device", error))?;
    }
    Ok(())
}

/// The user may reopen its streams (`> /dev/stdout`), for which a pipe must belong to it.
fn give_streams(stdio: &[OwnedFd; 3], user: &UserSpec) {
    for stream in stdio {
        let fifo =
            fstat(stream).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
        if fifo && user.uid != 0 {
            // Only reopening suffers if it fails.
            let _ = fchown(stream, Some(Uid::from_raw(user.uid)), None);
        }
    }
}

struct Opened {
    places: Places,
    old_root: OwnedFd,
    stdio: [OwnedFd; 3],
    report: OwnedFd,
    terminal: bool,
}

fn plan(job: Job, opened: Opened, supervised: bool) -> Plan {
    let confined = job.confinement == Confinement::Docker;
    let limit = |ulimit: &Ulimit| {
        (
            ulimit.kind.0,
            libc::rlimit64 {
                rlim_cur: ulimit.soft,
                rlim_max: ulimit.hard,
            },
        )
    };
    Plan {
        places: opened.places,
        old_root: opened.old_root,
        stdio: opened.stdio,
        terminal: opened.terminal,
        report: opened.report,
        confined,
        capabilities: job.capabilities,
        read_only_root: job.read_only_root,
        no_new_privs: job.no_new_privs,
        init: job.init,
        filter: if confined && !job.unfiltered {
            seccomp::filter()
        } else {
            Vec::new()
        },
        questions: if supervised {
            one_id::filter()
        } else {
            Vec::new()
        },
        limits: job.ulimits.iter().map(limit).collect(),
        oom_score_adj: job
            .oom_score_adj
            .map(|score| score.to_string())
            .unwrap_or_default(),
        doors: job.doors,
        cwd: CString::new(job.cwd.as_os_str().as_bytes()).unwrap_or_default(),
        uid: Uid::from_raw(job.user.uid),
        gid: Gid::from_raw(job.user.gid),
        groups: job
            .user
            .groups
            .iter()
            .map(|&gid| Gid::from_raw(gid))
            .collect(),
        programs: job.programs,
        args: job.args,
        env: job.env,
    }
}

#[allow(unsafe_code, reason = "fork")]
fn fork(plan: &Plan) -> Result<OwnedFd> {
    let pointers = Pointers::of(plan);
    // SAFETY: the child goes straight into `child::run`, which keeps the rules and does not return.
    match unsafe { sys::fork_into_pid_namespace() } {
        Ok(Some(pidfd)) => Ok(pidfd),
        Ok(None) => child::run(plan, &pointers),
        Err(error) => Err(SandboxError::setup("new process", error)),
    }
}

/// What error messages name.
struct Names {
    program: String,
    programs: Vec<String>,
    cwd: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Names {
    fn of(plan: &Plan) -> Self {
        let text = |string: &CString| string.to_string_lossy().into_owned();
        Self {
            program: plan.args.first().map(text).unwrap_or_default(),
            programs: plan.programs.iter().map(text).collect(),
            cwd: text(&plan.cwd),
            uid: plan.uid.as_raw(),
            gid: plan.gid.as_raw(),
            groups: plan.groups.iter().map(|gid| gid.as_raw()).collect(),
        }
    }

    fn explain(&self, failure: Failure) -> SandboxError {
        let Failure {
            stage,
            index,
            error,
        } = failure;
        let mount = |dest: String, what: &str| SandboxError::Mount {
            dest: dest.into(),
            what: what.into(),
            source: error.into(),
        };
        let path = |list: &[&std::ffi::CStr]| {
            list.get(index)
                .map(|path| path.to_string_lossy().into_owned())
        };
        let what = match stage {
            Stage::Exec => return self.exec(index, error),
            Stage::Proc if error == Errno::PERM => {
                let hint = "the kernel allows it only where a whole /proc is visible, which is not so in a container \
                    with hidden parts";
                return mount("/proc".into(), hint);
            }
            Stage::Proc => return mount("/proc".into(), "proc"),
            Stage::Mask => return mount(path(&MASKED).unwrap_or_default(), "hiding it"),
            Stage::ReadOnly => {
                return mount(path(&READ_ONLY).unwrap_or_default(), "making it read-only");
            }
            Stage::ReadOnlyRoot => return mount("/".into(), "making it read-only"),
            Stage::Cgroup => "control group".into(),
            Stage::Orphaned => "the worker ended".into(),
            Stage::Session => "new session".into(),
            Stage::Terminal => "controlling terminal".into(),
            Stage::Stdio => "standard streams".into(),
            Stage::Pivot => "changing the root".into(),
            Stage::Descriptors => "closing descriptors".into(),
            Stage::OomScore => "out-of-memory score".into(),
            Stage::Limit => format!("resource limit number {}", index + 1),
            Stage::Cwd => format!("working folder {}", self.cwd),
            Stage::NoNewPrivs => "no_new_privs".into(),
            Stage::Seccomp => "system call filter".into(),
            Stage::Bounding | Stage::Capabilities => "capabilities".into(),
            Stage::Groups => format!("groups {:?}{}", self.groups, unmapped(error)),
            Stage::Gid => format!("group {}{}", self.gid, unmapped(error)),
            Stage::Uid => format!("user {}{}", self.uid, unmapped(error)),
            Stage::DeathSignal => "death signal".into(),
            Stage::Init => "process 1".into(),
            Stage::Supervised => "supervision of calls".into(),
        };
        SandboxError::setup(what, error)
    }

    /// The texts of runc.
    fn exec(&self, index: usize, error: Errno) -> SandboxError {
        let program = &self.program;
        let (message, code) = match (index, error) {
            (NOT_FOUND, _) if program.contains('/') => (
                format!("exec: {program:?}: stat {program}: no such file or directory"),
                127,
            ),
            (NOT_FOUND, _) => (
                format!("exec: {program:?}: executable file not found in $PATH"),
                127,
            ),
            (_, Errno::ACCESS) => (format!("exec: {program:?}: permission denied"), 126),
            (_, error) => {
                let path = self.programs.get(index).unwrap_or(program);
                let text = match error {
                    Errno::NOEXEC => "exec format error".to_owned(),
                    Errno::NOENT => {
                        "no such file or directory (its interpreter is missing)".to_owned()
                    }
                    error => error.to_string(),
                };
                (format!("exec {path}: {text}"), SandboxError::NOT_EXECUTABLE)
            }
        };
        SandboxError::Exec { message, code }
    }
}

/// Ids that the user namespace does not have give EINVAL; where there is only one, setgroups gives EPERM.
fn unmapped(error: Errno) -> &'static str {
    match error {
        Errno::INVAL | Errno::PERM => " (no such id in the worker's user namespace)",
        _ => "",
    }
}
