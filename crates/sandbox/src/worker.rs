//! Starts the worker process and brings it into its namespaces.
//!
//! The worker is the same program again. A user namespace can be entered only by a process with a single thread, so
//! the front starts a fresh one, which calls [`enter_worker`] before anything else. The two talk over an inherited
//! socket, one byte at a time:
//!
//! | worker says             | front answers                                    |
//! |-------------------------|--------------------------------------------------|
//! | `h` I am here           | `R` or `U`: which namespaces to take             |
//! | `u` I have taken them   | `m`: the id maps are written                     |
//! | `h` I am here again     | `g`: go                                          |
//! | `e` stage, error number | nothing                                          |
//!
//! "Again", since the worker executes itself a second time, from a read-only mount of the binary: a program in a
//! container can reach the binary of the worker that forked it through `/proc` (CVE-2019-5736), and must not be able to
//! write to it.
#![allow(
    unsafe_code,
    reason = "descriptors that are inherited by number, and execveat"
)]

use std::ffi::{CString, OsString};
use std::io::{Read, Write};
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::sync_channel;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Gid, MemfdFlags, Mode, SealFlags, Uid, fcntl_add_seals, memfd_create, stat};
use rustix::io::Errno;
use rustix::mount::{
    MountAttrFlags, MountPropagationFlags, OpenTreeFlags, mount_change, open_tree,
};
use rustix::process::{
    Pid, PidfdFlags, Signal, pidfd_open, set_parent_process_death_signal, setsid, umask,
};
use rustix::thread::UnshareFlags;

use crate::error::SandboxError;
use crate::isolation::{IdRange, Isolation};
use crate::sys;

/// The descriptor of the worker that is the `control` given to [`spawn_worker`].
pub const CONTROL_FD: i32 = 3;

/// The descriptor of the worker for the conversation above.
const HANDSHAKE_FD: i32 = 4;

/// What the worker was at when it failed, by its number in an `e` message.
const STAGES: [&str; 6] = [
    "taking new namespaces",
    "becoming root in the user namespace",
    "making mounts private",
    "mounting its own binary read-only",
    "executing its own binary",
    "setting its death signal",
];

/// The number of the last stage that a user namespace is needed for.
const LAST_OF_NAMESPACES: u8 = 3;

type Result<T> = std::result::Result<T, SandboxError>;

fn failed(what: impl Into<String>, error: impl Into<std::io::Error>) -> SandboxError {
    SandboxError::Worker {
        what: what.into(),
        source: error.into(),
    }
}

/// Starts `exe` with `args` as the worker, which must call [`enter_worker`] first of all. `control` becomes its
/// [`CONTROL_FD`]; its environment is empty, its standard error is that of the caller. It is in a session of its own,
/// so that signals from the terminal do not reach it, and dies with this process.
///
/// # Errors
/// When it cannot be started, cannot have its namespaces (some systems forbid user namespaces), or the id maps are
/// refused.
pub fn spawn_worker(
    isolation: &Isolation,
    exe: &Path,
    args: &[OsString],
    control: OwnedFd,
) -> Result<Child> {
    let (ours, theirs) = UnixStream::pair().map_err(|error| failed("socket", error))?;
    // Beyond the numbers that they are put on in the child.
    let high = |fd: &OwnedFd| {
        rustix::io::fcntl_dupfd_cloexec(fd, 10).map_err(|error| failed("descriptors", error))
    };
    let (low_control, low_theirs) = (control, OwnedFd::from(theirs));
    let (control, theirs) = (high(&low_control)?, high(&low_theirs)?);
    drop((low_control, low_theirs));
    let mut command = Command::new(exe);
    command
        .args(args)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    let numbers = [
        (control.as_raw_fd(), CONTROL_FD),
        (theirs.as_raw_fd(), HANDSHAKE_FD),
    ];
    // SAFETY: the closure makes system calls only.
    unsafe {
        command.pre_exec(move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            setsid()?;
            for (from, to) in numbers {
                sys::check(libc::dup2(from, to).into())?;
            }
            Ok(())
        });
    }
    let mut child = start_on_lasting_thread(command)
        .map_err(|error| failed(exe.display().to_string(), error))?;
    drop((control, theirs));
    if let Err(error) = introduce(isolation, child.id(), ours) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    Ok(child)
}

/// The kernel sends the death signal when the *thread* that started the child ends, so that thread must stay.
fn start_on_lasting_thread(mut command: Command) -> std::io::Result<Child> {
    let (tell, started) = sync_channel(1);
    std::thread::Builder::new()
        .name("worker".into())
        .stack_size(256 << 10)
        .spawn(move || {
            let child = command.spawn();
            let pidfd = child.as_ref().ok().and_then(|child| {
                pidfd_open(Pid::from_raw(child.id() as i32)?, PidfdFlags::empty()).ok()
            });
            if tell.send(child).is_err() {
                return;
            }
            if let Some(pidfd) = pidfd {
                while poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], None) == Err(Errno::INTR) {}
            }
        })?;
    started
        .recv()
        .unwrap_or_else(|_| Err(std::io::Error::other("the thread ended")))
}

/// The front's side of the conversation.
fn introduce(isolation: &Isolation, pid: u32, mut worker: UnixStream) -> Result<()> {
    let root = *isolation == Isolation::Root;
    expect(&mut worker, b'h', root)?;
    match isolation {
        Isolation::Root => say(&mut worker, b'R')?,
        Isolation::MappedIds { uids, gids, tools } => {
            say(&mut worker, b'U')?;
            expect(&mut worker, b'u', root)?;
            if let Some(tools) = tools {
                run_tool(&tools.newuidmap, pid, uids)?;
                run_tool(&tools.newgidmap, pid, gids)?;
            } else {
                write_for(pid, "uid_map", &map_text(uids))?;
                write_for(pid, "gid_map", &map_text(gids))?;
            }
            say(&mut worker, b'm')?;
        }
        Isolation::SingleId { uid, gid } => {
            say(&mut worker, b'U')?;
            expect(&mut worker, b'u', root)?;
            // Without privileges a group map is allowed only once setgroups is given up.
            for (file, text) in [
                ("setgroups", "deny".to_owned()),
                ("uid_map", format!("0 {uid} 1")),
                ("gid_map", format!("0 {gid} 1")),
            ] {
                write_for(pid, file, &text)?;
            }
            say(&mut worker, b'm')?;
        }
    }
    expect(&mut worker, b'h', root)?;
    say(&mut worker, b'g')
}

fn map_text(ranges: &[IdRange]) -> String {
    let line = |it: &IdRange| format!("{} {} {}\n", it.inside, it.outside, it.count);
    ranges.iter().map(line).collect()
}

/// The kernel takes a map in one write.
fn write_for(pid: u32, file: &str, text: &str) -> Result<()> {
    std::fs::write(format!("/proc/{pid}/{file}"), text).map_err(|source| {
        let what = format!("writing its {file}");
        SandboxError::NoNamespace { what, source }
    })
}

fn say(peer: &mut UnixStream, word: u8) -> Result<()> {
    peer.write_all(&[word])
        .map_err(|error| failed("it is gone", error))
}

/// `root` says that there is no user namespace to be had or refused.
fn expect(peer: &mut UnixStream, word: u8, root: bool) -> Result<()> {
    let mut got = [0];
    peer.read_exact(&mut got)
        .map_err(|error| failed("it ended", error))?;
    if got[0] == word {
        return Ok(());
    }
    let mut details = [0; 5];
    if got[0] != b'e' || peer.read_exact(&mut details).is_err() {
        return Err(failed(
            "it speaks another language",
            std::io::Error::other(format!("word {:#x}", got[0])),
        ));
    }
    let [stage, error @ ..] = details;
    let error = Errno::from_raw_os_error(i32::from_ne_bytes(error));
    let what = STAGES
        .get(usize::from(stage))
        .copied()
        .unwrap_or("unknown stage");
    // Up to the mounts all that can be refused is what a user namespace should give.
    let refused = matches!(
        error,
        Errno::PERM | Errno::ACCESS | Errno::NOSPC | Errno::USERS | Errno::NOSYS
    );
    Err(if refused && stage <= LAST_OF_NAMESPACES && !root {
        SandboxError::NoNamespace {
            what: what.to_owned(),
            source: error.into(),
        }
    } else {
        failed(what, error)
    })
}

fn run_tool(tool: &Path, pid: u32, ranges: &[IdRange]) -> Result<()> {
    let mut command = Command::new(tool);
    command
        .arg(pid.to_string())
        .env_clear()
        .stdin(Stdio::null());
    for range in ranges {
        command.args([range.inside, range.outside, range.count].map(|number| number.to_string()));
    }
    let output = command
        .output()
        .map_err(|error| failed(tool.display().to_string(), error))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let message = if message.is_empty() {
        output.status.to_string()
    } else {
        message
    };
    Err(SandboxError::IdMap {
        tool: tool.into(),
        message,
    })
}

/// Brings this process, started by [`spawn_worker`], into its namespaces. Call it first of all in `main`, before any
/// thread is started. Afterwards the process is root in its user namespace (if it has one), its mounts are private,
/// and its umask is 0. Supplementary groups stay.
///
/// It executes the program once more on the way, with the same arguments.
///
/// # Errors
/// When the namespaces cannot be had, which the caller of `spawn_worker` learns too, or when this process was not
/// started by `spawn_worker`.
pub fn enter_worker() -> Result<()> {
    // SAFETY: by contract the descriptor is ours; it is closed only at the end of the conversation.
    let mut front = ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(HANDSHAKE_FD) });
    let outcome = converse(&mut front);
    if let Err((stage, error)) = outcome {
        let mut message = vec![b'e', stage];
        message.extend(error.raw_os_error().unwrap_or(libc::EIO).to_ne_bytes());
        let _ = front.write_all(&message);
        return Err(failed(
            STAGES
                .get(usize::from(stage))
                .copied()
                .unwrap_or("no answer"),
            error,
        ));
    }
    drop(ManuallyDrop::into_inner(front));
    Ok(())
}

/// The stage of errors of the conversation itself.
const TALK: u8 = 255;

/// The worker's side. Does not return successfully before the program was executed for the second time.
fn converse(front: &mut UnixStream) -> std::result::Result<(), (u8, std::io::Error)> {
    let at = |stage: u8| move |error: Errno| (stage, error.into());
    // Lost at the change of ids and set again after the second exec. A front that is gone by then does not answer.
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(at(5))?;
    // The link is read in the namespace that the program was started in: seen from another one its path may be longer.
    let path = std::env::current_exe();
    let mut word = || -> std::io::Result<u8> {
        let mut word = [0];
        front.write_all(b"h")?;
        front.read_exact(&mut word)?;
        Ok(word[0])
    };
    match word().map_err(|error| (TALK, error))? {
        b'g' => {
            umask(Mode::empty());
            rustix::io::fcntl_setfd(front.as_fd(), rustix::io::FdFlags::CLOEXEC)
                .map_err(at(TALK))?;
            // SAFETY: by contract number 3 is the control descriptor; it is not closed by this value.
            let control = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(CONTROL_FD) });
            rustix::io::fcntl_setfd(control.as_fd(), rustix::io::FdFlags::CLOEXEC)
                .map_err(at(TALK))?;
            return Ok(());
        }
        b'R' => sys::unshare(UnshareFlags::NEWNS).map_err(at(0))?,
        b'U' => {
            sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).map_err(at(0))?;
            let mut word = [0];
            front
                .write_all(b"u")
                .and_then(|()| front.read_exact(&mut word))
                .map_err(|error| (TALK, error))?;
            let (uid, gid) = (Uid::ROOT, Gid::ROOT);
            rustix::thread::set_thread_res_gid(gid, gid, gid).map_err(at(1))?;
            rustix::thread::set_thread_res_uid(uid, uid, uid).map_err(at(1))?;
        }
        other => {
            return Err((
                TALK,
                std::io::Error::other(format!("unknown word {other:#x}")),
            ));
        }
    }
    mount_change(
        c"/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(at(2))?;
    let binary = path
        .and_then(|path| on_read_only_mount(&path))
        .or_else(|_| sealed_copy())
        .map_err(|error| (3, error))?;
    Err((4, execute(&binary)))
}

/// This program in memory, for where its file is not found any more: it may have been replaced or removed meanwhile.
fn sealed_copy() -> std::io::Result<OwnedFd> {
    let mut program = std::fs::File::open("/proc/self/exe")?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let mut copy = std::fs::File::from(memfd_create(c"kiln", flags)?);
    std::io::copy(&mut program, &mut copy)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&copy, seals)?;
    Ok(copy.into())
}

/// This program's file on a read-only mount.
fn on_read_only_mount(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, path, flags)?;
    let (running, found) = (stat("/proc/self/exe")?, rustix::fs::fstat(&mount)?);
    if (running.st_dev, running.st_ino) != (found.st_dev, found.st_ino) {
        return Err(std::io::Error::other(format!(
            "{} was replaced while it ran",
            path.display()
        )));
    }
    sys::set_mount_attributes(mount.as_fd(), MountAttrFlags::MOUNT_ATTR_RDONLY, false)?;
    Ok(mount)
}

/// Executes an open file with the arguments of this process and an empty environment. Returns only the error.
fn execute(file: &OwnedFd) -> std::io::Error {
    let args: std::result::Result<Vec<CString>, _> = std::env::args_os()
        .map(|argument| CString::new(argument.as_bytes()))
        .collect();
    let Ok(args) = args else {
        return std::io::ErrorKind::InvalidInput.into();
    };
    let pointers: Vec<_> = args
        .iter()
        .map(|argument| argument.as_ptr())
        .chain([std::ptr::null()])
        .collect();
    let none = [std::ptr::null::<libc::c_char>()];
    // SAFETY: strings and lists end with a null and live through the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            pointers.as_ptr(),
            none.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    sys::check(result).map_or_else(Into::into, |_| std::io::ErrorKind::Other.into())
}
