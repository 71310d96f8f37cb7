//! Extended attributes of files in a context.

use std::path::Path;

use kiln_image::Xattrs;
use rustix::io::Errno;

/// Reads the attributes of `path`, not following a link, sorted by name. Those that belong to the machine and not to
/// the file (labels of the host's security module, overlay's and other privileged bookkeeping) are left out, those
/// that cannot be read too: attributes are copied as well as can be, as BuildKit does.
pub(crate) fn read(path: &Path) -> Xattrs {
    let Ok(names) = grow(|buffer| rustix::fs::llistxattr(path, buffer)) else {
        return Xattrs::new();
    };
    if names.is_empty() {
        return Xattrs::new();
    }
    let machine = |name: &[u8]| {
        name.starts_with(b"trusted.")
            || name.starts_with(b"user.overlay.")
            || name == b"security.selinux"
    };
    let names = names
        .split(|&byte| byte == 0)
        .filter(|name| !name.is_empty() && !machine(name));
    let value = |name: &[u8]| grow(|buffer| rustix::fs::lgetxattr(path, name, buffer)).ok();
    let mut xattrs: Xattrs = names
        .filter_map(|name| Some((name.to_vec(), value(name)?)))
        .collect();
    xattrs.sort_unstable();
    xattrs
}

/// Calls `read` with a larger buffer until what it reads fits.
fn grow(mut read: impl FnMut(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = [0; 256];
    match read(&mut buffer) {
        Ok(length) => return Ok(buffer[..length].to_vec()),
        Err(Errno::RANGE) => {}
        Err(errno) => return Err(errno),
    }
    // The kernel's own limit for names and for values.
    let mut buffer = vec![0; 64 * 1024];
    let length = read(&mut buffer)?;
    buffer.truncate(length);
    Ok(buffer)
}
