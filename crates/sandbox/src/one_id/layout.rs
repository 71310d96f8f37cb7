//! What `stat` gives, as the kernel lays it out, with the owner that is written down.

use std::os::fd::{AsRawFd, BorrowedFd};

use kiln_image::OwnerRecord;
use rustix::fs::AtFlags;
use rustix::io::Result;

use crate::sys;

/// The flags of `statx` about asking a server.
pub(super) const SYNC: AtFlags = AtFlags::from_bits_retain(0x6000);

fn mode(mode: u32, record: &OwnerRecord) -> u32 {
    let kind = match record.device {
        Some(device) if device.block => libc::S_IFBLK,
        Some(_) => libc::S_IFCHR,
        None => mode & libc::S_IFMT,
    };
    kind | mode & !libc::S_IFMT
}

/// The bytes of a structure of integers.
fn bytes<T>(value: &T) -> Vec<u8> {
    // SAFETY: only used with `stat` and `statx`, which the kernel has filled whole after they were zeroed.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
        .to_vec()
}

fn filled(fd: BorrowedFd<'_>, record: &OwnerRecord) -> Result<libc::stat> {
    // SAFETY: all zero is a valid value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: an empty path and a live structure. Its layout is the kernel's on all 64-bit machines.
    sys::check(libc::c_long::from(unsafe {
        libc::fstatat(
            fd.as_raw_fd(),
            c"".as_ptr(),
            &raw mut stat,
            libc::AT_EMPTY_PATH,
        )
    }))?;
    stat.st_uid = record.uid;
    stat.st_gid = record.gid;
    stat.st_mode = mode(stat.st_mode, record);
    if let Some(device) = record.device {
        stat.st_rdev = libc::makedev(device.major, device.minor);
    }
    Ok(stat)
}

/// `struct stat`.
pub(super) fn stat(fd: BorrowedFd<'_>, record: &OwnerRecord) -> Result<Vec<u8>> {
    Ok(bytes(&filled(fd, record)?))
}

/// `struct stat64` of i386 (arch/x86/include/uapi/asm/stat.h).
pub(super) fn narrow_stat(fd: BorrowedFd<'_>, record: &OwnerRecord) -> Result<Vec<u8>> {
    let stat = filled(fd, record)?;
    let mut out = Vec::with_capacity(96);
    let mut long = |value: u64| out.extend(value.to_le_bytes());
    // Two words in one where they are neighbours.
    let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
    long(stat.st_dev);
    long(pair(0, stat.st_ino as u32));
    long(pair(stat.st_mode, stat.st_nlink as u32));
    long(pair(stat.st_uid, stat.st_gid));
    long(stat.st_rdev);
    // Padding, and a size that is not aligned.
    long(pair(0, stat.st_size as u32));
    long(pair((stat.st_size >> 32) as u32, stat.st_blksize as u32));
    long(stat.st_blocks as u64);
    long(pair(stat.st_atime as u32, stat.st_atime_nsec as u32));
    long(pair(stat.st_mtime as u32, stat.st_mtime_nsec as u32));
    long(pair(stat.st_ctime as u32, stat.st_ctime_nsec as u32));
    long(stat.st_ino);
    Ok(out)
}

/// `struct statx`.
pub(super) fn statx(
    fd: BorrowedFd<'_>,
    flags: AtFlags,
    mask: u32,
    record: &OwnerRecord,
) -> Result<Vec<u8>> {
    // SAFETY: all zero is a valid value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let flags = libc::AT_EMPTY_PATH | flags.bits() as i32;
    // SAFETY: an empty path and a live structure.
    sys::check(unsafe {
        libc::syscall(
            libc::SYS_statx,
            fd.as_raw_fd(),
            c"".as_ptr(),
            flags,
            mask,
            &raw mut stat,
        )
    })?;
    stat.stx_uid = record.uid;
    stat.stx_gid = record.gid;
    stat.stx_mode = mode(stat.stx_mode.into(), record) as u16;
    if let Some(device) = record.device {
        (stat.stx_rdev_major, stat.stx_rdev_minor) = (device.major, device.minor);
    }
    Ok(bytes(&stat))
}
