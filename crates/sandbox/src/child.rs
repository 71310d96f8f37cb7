//! The child between fork and exec: raw system calls only.
//!
//! It is a copy of one thread of the worker, so a lock or an allocation could wait for ever for a thread that is not
//! there. All it uses was made before by [`keeper`](crate::keeper); `rustix` makes its calls without the C library.
#![allow(
    unsafe_code,
    reason = "prctl, seccomp, signals and exec have no safe wrappers"
)]

use std::convert::Infallible;
use std::ffi::{CStr, CString, c_char};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{
    Access, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, access, fstat, openat,
};
use rustix::io::{DupFlags, Errno, Result, dup2, dup3};
use rustix::mount::{MountAttrFlags, UnmountFlags, unmount};
use rustix::process::{Signal, chdir, fchdir, pivot_root, set_parent_process_death_signal, setsid};
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

use crate::init;
use crate::resolve::open_inside;
use crate::seccomp::Instruction;
use crate::sys;
use crate::tree::Places;

/// Hidden under Docker's default confinement.
pub(crate) const MASKED: [&CStr; 12] = [
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/interrupts",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/sched_debug",
    c"/proc/scsi",
    c"/proc/timer_list",
    c"/proc/timer_stats",
    c"/sys/devices/virtual/powercap",
    c"/sys/firmware",
];

/// Read-only under Docker's default confinement.
pub(crate) const READ_ONLY: [&CStr; 5] = [
    c"/proc/bus",
    c"/proc/fs",
    c"/proc/irq",
    c"/proc/sys",
    c"/proc/sysrq-trigger",
];

/// Everything that the child needs, allocated.
pub(crate) struct Plan {
    /// The container's mounts.
    pub(crate) places: Places,
    /// The worker's root.
    pub(crate) old_root: OwnedFd,
    /// Standard streams, all of them beyond 9.
    pub(crate) stdio: [OwnedFd; 3],
    /// Standard input is to be the controlling terminal.
    pub(crate) terminal: bool,
    /// Where a failure is told; beyond 9.
    pub(crate) report: OwnedFd,
    /// Docker's confinement; else none.
    pub(crate) confined: bool,
    /// The capabilities that a confined program may have.
    pub(crate) capabilities: u64,
    /// The root is to be read-only.
    pub(crate) read_only_root: bool,
    pub(crate) no_new_privs: bool,
    /// The program is to be the child of a process 1 that collects what others leave.
    pub(crate) init: bool,
    pub(crate) filter: Vec<Instruction>,
    /// The calls that a supervisor answers; empty for none.
    pub(crate) questions: Vec<Instruction>,
    pub(crate) limits: Vec<(u32, libc::rlimit64)>,
    /// Text for `/proc/self/oom_score_adj`; empty for none.
    pub(crate) oom_score_adj: String,
    /// Where it moves itself into its control groups.
    pub(crate) doors: Vec<OwnedFd>,
    pub(crate) cwd: CString,
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
    /// Paths to try, in order.
    pub(crate) programs: Vec<CString>,
    pub(crate) args: Vec<CString>,
    pub(crate) env: Vec<CString>,
}

/// What the child was at when it failed. Sent as a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    Orphaned,
    Cgroup,
    Session,
    Terminal,
    Stdio,
    Proc,
    Pivot,
    Mask,
    ReadOnly,
    ReadOnlyRoot,
    Descriptors,
    OomScore,
    Limit,
    Cwd,
    NoNewPrivs,
    Seccomp,
    Bounding,
    Groups,
    Gid,
    Uid,
    Capabilities,
    DeathSignal,
    Init,
    Exec,
    /// No failure: the filter's descriptor is there, as the index.
    Supervised,
}

impl Stage {
    const ALL: [Self; 25] = [
        Self::Orphaned,
        Self::Cgroup,
        Self::Session,
        Self::Terminal,
        Self::Stdio,
        Self::Proc,
        Self::Pivot,
        Self::Mask,
        Self::ReadOnly,
        Self::ReadOnlyRoot,
        Self::Descriptors,
        Self::OomScore,
        Self::Limit,
        Self::Cwd,
        Self::NoNewPrivs,
        Self::Seccomp,
        Self::Bounding,
        Self::Groups,
        Self::Gid,
        Self::Uid,
        Self::Capabilities,
        Self::DeathSignal,
        Self::Init,
        Self::Exec,
        Self::Supervised,
    ];
}

/// Why the child failed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Failure {
    pub(crate) stage: Stage,
    /// Which one of several things.
    pub(crate) index: usize,
    pub(crate) error: Errno,
}

/// Bytes of a failure on the pipe.
pub(crate) const FAILURE_SIZE: usize = 6;

impl Failure {
    fn encode(self) -> [u8; FAILURE_SIZE] {
        let [a, b, c, d] = self.error.raw_os_error().to_ne_bytes();
        [self.stage as u8, self.index.min(255) as u8, a, b, c, d]
    }

    pub(crate) fn decode([stage, index, error @ ..]: [u8; FAILURE_SIZE]) -> Option<Self> {
        Some(Self {
            stage: *Stage::ALL.get(usize::from(stage))?,
            index: usize::from(index),
            error: Errno::from_raw_os_error(i32::from_ne_bytes(error)),
        })
    }
}

/// Lists of pointers for exec, each ending with a null pointer.
pub(crate) struct Pointers {
    args: Vec<*const c_char>,
    env: Vec<*const c_char>,
}

impl Pointers {
    /// Valid as long as `plan` lives unchanged.
    pub(crate) fn of(plan: &Plan) -> Self {
        let list = |strings: &[CString]| {
            strings
                .iter()
                .map(|string| string.as_ptr())
                .chain([ptr::null()])
                .collect::<Vec<_>>()
        };
        Self {
            args: list(&plan.args),
            env: list(&plan.env),
        }
    }
}

/// Becomes the program, or reports why not and ends.
pub(crate) fn run(plan: &Plan, pointers: &Pointers) -> ! {
    let Err(failure) = become_program(plan, pointers);
    // Up to there number 3 may be anything of the worker's.
    let fd = if failure.stage as u8 <= Stage::Descriptors as u8 {
        plan.report.as_raw_fd()
    } else {
        REPORT
    };
    let message = failure.encode();
    // SAFETY: writes from a live buffer; if it fails nobody is left to be told.
    unsafe { libc::write(fd, message.as_ptr().cast(), message.len()) };
    // SAFETY: ends the process without running anything of its parent's.
    unsafe { libc::_exit(1) }
}

/// The number of the report pipe while the program is being executed; it closes on exec.
const REPORT: i32 = 3;

fn become_program(plan: &Plan, pointers: &Pointers) -> std::result::Result<Infallible, Failure> {
    let at = |stage| {
        move |error| Failure {
            stage,
            index: 0,
            error,
        }
    };
    let nth = |stage, index| {
        move |error| Failure {
            stage,
            index,
            error,
        }
    };

    die_with_worker(plan).map_err(at(Stage::Orphaned))?;
    for door in &plan.doors {
        rustix::io::write(door, b"0").map_err(at(Stage::Cgroup))?;
    }
    if !plan.doors.is_empty() {
        // So that the group's own name is not seen either; see the keeper.
        let _ = sys::unshare(UnshareFlags::NEWCGROUP);
    }
    reset_signals();
    setsid().map_err(at(Stage::Session))?;
    // A session keyring of its own, so that the worker's keys are out of reach. Not every kernel has keyrings.
    // SAFETY: no pointers but the null one, which asks for an unnamed keyring.
    unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            1, /* KEYCTL_JOIN_SESSION_KEYRING */
            ptr::null::<c_char>(),
        )
    };
    rustix::process::umask(Mode::from_raw_mode(0o022));
    connect_stdio(plan).map_err(at(Stage::Stdio))?;
    if plan.terminal {
        rustix::process::ioctl_tiocsctty(&plan.stdio[0]).map_err(at(Stage::Terminal))?;
    }

    mount_proc(plan)?;
    turn_root(plan).map_err(at(Stage::Pivot))?;
    if plan.read_only_root {
        let root = plan.places.root.as_fd();
        sys::set_mount_attributes(root, MountAttrFlags::MOUNT_ATTR_RDONLY, false)
            .map_err(at(Stage::ReadOnlyRoot))?;
    }
    // From here on nothing of the worker is open, so that no path through /proc/self/fd leads out. Nothing in this
    // function may hold a descriptor across this line: closing it a second time would abort.
    close_descriptors(plan).map_err(at(Stage::Descriptors))?;

    if !plan.oom_score_adj.is_empty() {
        write_file(c"/proc/self/oom_score_adj", plan.oom_score_adj.as_bytes())
            .map_err(at(Stage::OomScore))?;
    }
    for (index, (resource, limit)) in plan.limits.iter().enumerate() {
        // SAFETY: reads one valid limit.
        let result = unsafe { libc::setrlimit64(*resource as _, limit) };
        sys::check(result.into()).map_err(nth(Stage::Limit, index))?;
    }
    enter(&plan.cwd).map_err(at(Stage::Cwd))?;
    drop_privileges(plan)?;
    if plan.init {
        init::split(plan.terminal, REPORT).map_err(at(Stage::Init))?;
    }
    Err(execute(plan, pointers))
}

/// The kernel kills this process when the keeper ends. If that has happened already the pipe has no reader.
fn die_with_worker(plan: &Plan) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    let mut pipe = [PollFd::new(&plan.report, PollFlags::empty())];
    poll(
        &mut pipe,
        Some(&rustix::fs::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    )?;
    if pipe[0].revents().contains(PollFlags::ERR) {
        Err(Errno::SRCH)
    } else {
        Ok(())
    }
}

/// Exec keeps ignored signals ignored and blocked ones blocked (Rust ignores SIGPIPE, the C library one of its own).
fn reset_signals() {
    // As the kernel has it: handler, flags, restorer, mask. All zero is the default action.
    let default = [0u64; 4];
    // SAFETY: the structure is live, and of the size that the kernel reads. The C library's own function leaves two
    // signals out. SIGKILL and SIGSTOP fail, as they must.
    unsafe {
        for signal in 1..=64 {
            libc::syscall(
                libc::SYS_rt_sigaction,
                signal,
                default.as_ptr(),
                ptr::null_mut::<u64>(),
                size_of::<u64>(),
            );
        }
    }
    // It fails only for a mask that cannot be read.
    let _ = sys::set_signal_mask(0);
}

fn connect_stdio(plan: &Plan) -> Result<()> {
    for (number, stream) in plan.stdio.iter().enumerate() {
        // SAFETY: the descriptor is not closed by this value; 0 to 2 belong to nobody else in this process.
        let mut target = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number as i32) });
        dup2(stream, &mut target)?;
    }
    Ok(())
}

/// `/proc` shows the PID namespace of who mounts it, so it is mounted here. Then parts of it and of `/sys` are closed.
fn mount_proc(plan: &Plan) -> std::result::Result<(), Failure> {
    let nth = |stage, index| {
        move |error| Failure {
            stage,
            index,
            error,
        }
    };
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let proc = sys::new_mount(c"proc", &[], attributes).map_err(nth(Stage::Proc, 0))?;
    sys::attach(proc.as_fd(), plan.places.proc_dest.as_fd()).map_err(nth(Stage::Proc, 1))?;
    if plan.confined {
        for (index, path) in MASKED.iter().enumerate() {
            mask(plan, &proc, path).map_err(nth(Stage::Mask, index))?;
        }
        for (index, path) in READ_ONLY.iter().enumerate() {
            make_read_only(plan, &proc, path).map_err(nth(Stage::ReadOnly, index))?;
        }
    }
    Ok(())
}

/// Makes the new root `/` and lets go of the worker's mounts. The old root stays until now because a user namespace
/// may mount `/proc` only where it sees a whole one already.
fn turn_root(plan: &Plan) -> Result<()> {
    fchdir(&plan.places.root)?;
    // Both the same place: the old root lands on top of the new one.
    pivot_root(c".", c".")?;
    fchdir(&plan.old_root)?;
    // The workbench lies on the old root: each call takes the topmost mount away, the last one the old root with all
    // that is mounted in it. Then this folder is no mount any more.
    unmount(c".", UnmountFlags::DETACH)?;
    loop {
        match unmount(c".", UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::INVAL) => return chdir(c"/"),
            Err(error) => return Err(error),
        }
    }
}

/// Opens a path of `/proc` or `/sys` in the mount that it belongs to, whatever links the image has put in its place.
/// `None` if this kernel does not have it.
fn open_kernel_path(plan: &Plan, proc: &OwnedFd, path: &CStr) -> Result<Option<OwnedFd>> {
    let bytes = path.to_bytes_with_nul();
    let (mount, rest) = match bytes.strip_prefix(b"/proc/") {
        Some(rest) => (proc, rest),
        None => (
            &plan.places.sys,
            bytes.strip_prefix(b"/sys/").unwrap_or_default(),
        ),
    };
    let path = CStr::from_bytes_with_nul(rest).map_err(|_| Errno::INVAL)?;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match openat(mount, path, flags, Mode::empty()) {
        Ok(place) => Ok(Some(place)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Hides a file behind the null device, or a folder behind an empty one.
fn mask(plan: &Plan, proc: &OwnedFd, path: &CStr) -> Result<()> {
    let Some(place) = open_kernel_path(plan, proc, path)? else {
        return Ok(());
    };
    let folder = FileType::from_raw_mode(fstat(&place)?.st_mode) == FileType::Directory;
    let cover = if folder {
        &plan.places.empty
    } else {
        &plan.places.null
    };
    sys::attach(sys::clone_tree(cover.as_fd())?.as_fd(), place.as_fd())
}

fn make_read_only(plan: &Plan, proc: &OwnedFd, path: &CStr) -> Result<()> {
    let Some(place) = open_kernel_path(plan, proc, path)? else {
        return Ok(());
    };
    let mount = sys::clone_tree(place.as_fd())?;
    sys::set_mount_attributes(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, true)?;
    sys::attach(mount.as_fd(), place.as_fd())
}

fn close_descriptors(plan: &Plan) -> Result<()> {
    // SAFETY: number 3 belongs to nobody else in this process; it is not closed by this value.
    let mut report = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(REPORT) });
    dup3(&plan.report, &mut report, DupFlags::CLOEXEC)?;
    // SAFETY: the plan's descriptors are closed under it, which is fine since only `run` looks at one of them again,
    // and gets EBADF.
    sys::check(unsafe { libc::syscall(libc::SYS_close_range, REPORT + 1, libc::c_uint::MAX, 0) })?;
    Ok(())
}

fn write_file(path: &CStr, bytes: &[u8]) -> Result<()> {
    let file = openat(CWD, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, bytes).map(drop)
}

/// Goes into the working folder, which must not be reached through a link of `/proc`.
fn enter(cwd: &CStr) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let root = openat(CWD, c"/", flags, Mode::empty())?;
    let folder = open_inside(root.as_fd(), cwd, flags, Mode::empty(), resolve)?;
    fchdir(&folder)
}

fn drop_privileges(plan: &Plan) -> std::result::Result<(), Failure> {
    let at = |stage| {
        move |error| Failure {
            stage,
            index: 0,
            error,
        }
    };
    if plan.no_new_privs {
        rustix::thread::set_no_new_privs(true).map_err(at(Stage::NoNewPrivs))?;
    }
    // Without no_new_privs a filter needs CAP_SYS_ADMIN, so it comes before the capabilities go.
    if !plan.filter.is_empty() {
        install(&plan.filter, 0).map_err(at(Stage::Seccomp))?;
    }
    if !plan.questions.is_empty() {
        supervise(&plan.questions).map_err(at(Stage::Supervised))?;
    }
    if plan.confined {
        limit_bounding_set(plan.capabilities).map_err(at(Stage::Bounding))?;
    }
    match rustix::thread::set_thread_groups(&plan.groups) {
        // Where only one id exists setgroups is switched off, and there is no other group to have.
        Err(Errno::PERM) if plan.groups.iter().all(|gid| gid.is_root()) => {}
        other => other.map_err(at(Stage::Groups))?,
    }
    // Where a supervisor answers, the user is one in name only, and needs root's rights to have its own.
    let keeps_rights = plan.uid.is_root() || !plan.questions.is_empty();
    let (uid, gid) = (plan.uid, plan.gid);
    rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at(Stage::Gid))?;
    // From root to another user the kernel clears all capabilities.
    rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at(Stage::Uid))?;
    if plan.confined && keeps_rights {
        let all = rustix::thread::capabilities(None).map_err(at(Stage::Capabilities))?;
        let kept = all.permitted & CapabilitySet::from_bits_retain(plan.capabilities);
        let sets = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).map_err(at(Stage::Capabilities))?;
    }
    // Changing ids has cleared it.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(at(Stage::DeathSignal))
}

fn install(filter: &[Instruction], flags: libc::c_ulong) -> Result<libc::c_long> {
    let program = libc::sock_fprog {
        len: filter.len() as u16,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program, which it does not write to.
    sys::check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    })
}

/// Installs the filter that asks, and tells the keeper where its other end is. The next call that asks waits until
/// there is a supervisor.
fn supervise(questions: &[Instruction]) -> Result<()> {
    let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER;
    // Once a question is taken only a deadly signal may interrupt it; else a call such as mkdir would be done twice.
    // Linux 5.19.
    let fd = match install(questions, listener | WAIT_KILLABLE) {
        Err(Errno::INVAL) => install(questions, listener),
        other => other,
    }?;
    let message = Failure {
        stage: Stage::Supervised,
        index: fd as usize,
        error: Errno::AGAIN,
    };
    // SAFETY: number 3 belongs to nobody else in this process; it is not closed by this value.
    let report = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(REPORT) });
    rustix::io::write(&*report, &message.encode()).map(drop)
}

/// `SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV` of linux/seccomp.h.
const WAIT_KILLABLE: libc::c_ulong = 1 << 5;

fn limit_bounding_set(keep: u64) -> Result<()> {
    for capability in 0..64u64 {
        if keep & (1 << capability) != 0 {
            continue;
        }
        // SAFETY: only numbers.
        match sys::check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }.into())
        {
            // Beyond the last one that this kernel knows.
            Err(Errno::INVAL) => break,
            other => drop(other?),
        }
    }
    Ok(())
}

/// Tries the programs in order. The error is that of the one found, or of the last.
fn execute(plan: &Plan, pointers: &Pointers) -> Failure {
    let mut failure = Failure {
        stage: Stage::Exec,
        index: NOT_FOUND,
        error: Errno::NOENT,
    };
    for (index, program) in plan.programs.iter().enumerate() {
        // SAFETY: all strings and lists end with a null and live as long as the plan.
        unsafe {
            libc::execve(
                program.as_ptr(),
                pointers.args.as_ptr(),
                pointers.env.as_ptr(),
            )
        };
        let error = sys::check(-1).err().unwrap_or(Errno::NOENT);
        match error {
            // Not there; or it is, and its interpreter is not.
            Errno::NOENT | Errno::NOTDIR if access(program.as_c_str(), Access::EXISTS).is_err() => {
            }
            Errno::ACCESS if is_folder(program) && plan.programs.len() > 1 => {}
            Errno::ACCESS => {
                failure = Failure {
                    index,
                    error,
                    ..failure
                }
            }
            error => {
                return Failure {
                    index,
                    error,
                    ..failure
                };
            }
        }
    }
    failure
}

/// The index of a failed exec when there was nothing to execute.
pub(crate) const NOT_FOUND: usize = 255;

fn is_folder(path: &CStr) -> bool {
    openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .and_then(|fd| fstat(&fd))
    .is_ok()
}
