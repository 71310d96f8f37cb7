//! System calls that rustix has no safe wrapper for. Nothing here allocates.
#![allow(unsafe_code, reason = "raw system calls")]

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};
use rustix::thread::UnshareFlags;

/// The result of a call that says -1 and sets `errno`.
pub(crate) fn check(result: libc::c_long) -> Result<libc::c_long> {
    if result >= 0 {
        return Ok(result);
    }
    // SAFETY: the thread's own errno, valid as long as the thread runs.
    Err(Errno::from_raw_os_error(unsafe {
        *libc::__errno_location()
    }))
}

/// Blocks the signals of the mask, and no others: a bit each. The C library's own function leaves two out.
pub(crate) fn set_signal_mask(mask: u64) -> Result<()> {
    // SAFETY: a mask of the size that the kernel reads.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const mask,
            std::ptr::null_mut::<u64>(),
            size_of::<u64>(),
        )
    })
    .map(drop)
}

/// Changes attributes of the mount that `fd` stands for, see `mount_setattr(2)`.
pub(crate) fn set_mount_attributes(
    fd: BorrowedFd<'_>,
    set: MountAttrFlags,
    recursive: bool,
) -> Result<()> {
    #[repr(C)]
    struct MountAttr {
        attr_set: u64,
        attr_clr: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attributes = MountAttr {
        attr_set: u64::from(set.bits()),
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: all pointers are valid for the call, and the size is that of the structure.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// A detached new file system.
pub(crate) fn new_mount(
    kind: &std::ffi::CStr,
    options: &[(&std::ffi::CStr, &std::ffi::CStr)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    // What `mount` shows in front; else "none".
    fsconfig_set_string(context.as_fd(), c"source", kind)?;
    for (key, value) in options {
        fsconfig_set_string(context.as_fd(), *key, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A copy of the mounts at and below a place.
pub(crate) fn clone_tree(place: BorrowedFd<'_>) -> Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(
        place,
        c"",
        flags | OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::AT_RECURSIVE,
    )
}

/// Attaches a mount to the folder or file that `dest` stands for.
pub(crate) fn attach(mount: BorrowedFd<'_>, dest: BorrowedFd<'_>) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, c"", dest, c"", flags)
}

/// Gives the calling thread namespaces of its own. It also gets a root, a working folder and a umask of its own.
pub(crate) fn unshare(flags: UnshareFlags) -> Result<()> {
    // SAFETY: unsafe only because of CLONE_FILES, after which descriptors are not shared between threads as safe code
    // expects; it is never asked for here.
    debug_assert!(!flags.contains(UnshareFlags::FILES));
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Moves the calling thread back into the mount namespace that the main thread of this process is in.
pub(crate) fn rejoin_mount_namespace() -> Result<()> {
    let pidfd = rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    )?;
    rustix::thread::move_into_thread_name_spaces(
        pidfd.as_fd(),
        rustix::thread::ThreadNameSpaceType::MOUNT,
    )
}

/// Forks this thread into a new PID namespace.
///
/// Returns the child's pidfd, or `None` in the child.
///
/// # Safety
/// The child is a copy of one thread of many: until it executes a program it must not allocate, take a lock or unwind.
pub(crate) unsafe fn fork_into_pid_namespace() -> Result<Option<OwnedFd>> {
    let mut pidfd: RawFd = -1;
    // SAFETY: all zero is a valid value; it means "nothing".
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (libc::CLONE_PIDFD | libc::CLONE_NEWPID) as u64;
    args.pidfd = &raw mut pidfd as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM this is a fork: the child runs on its own copy of this stack.
    match check(unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    })? {
        0 => Ok(None),
        // SAFETY: the kernel made this descriptor for us.
        _ => Ok(Some(unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

/// Switches the loopback device of the thread's network namespace on.
pub(crate) fn loopback_up() -> Result<()> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all zero is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads an ifreq.
    check(libc::c_long::from(unsafe {
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    }))?;
    Ok(())
}
