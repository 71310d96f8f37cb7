//! Bytes that come from nowhere in particular: standard input.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write as _};
use std::path::PathBuf;
use std::time::SystemTime;

use kiln_registry::Observer;
use sha2::{Digest as _, Sha256};

use crate::{Remote, RemoteError, Scratch, entry_name};

pub(crate) fn keep(
    remote: &Remote,
    mut from: impl Read,
    name: &str,
    observer: &dyn Observer,
) -> Result<PathBuf, RemoteError> {
    let scratch = Scratch::new(remote)?;
    let body = scratch.path.join("body");
    let mut file = File::create_new(&body).map_err(RemoteError::keep(&body))?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut size = 0;
    loop {
        if observer.is_canceled() {
            return Err(RemoteError::Canceled);
        }
        match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&buffer[..count]);
                file.write_all(&buffer[..count])
                    .map_err(RemoteError::keep(&body))?;
                size += count as u64;
                observer.progress(size, 0);
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(source) => return Err(RemoteError::Stream { source }),
        }
    }
    let digest = hasher.finalize();
    let parts: [(&str, &[u8]); 2] = [("bytes", &digest), ("name", name.as_bytes())];
    let entry = entry_name("stream", &parts);
    if let Some(tree) = remote.find(&entry) {
        return Ok(tree);
    }
    remote.make(&entry, |tree| {
        let path = tree.join(name);
        file.set_modified(SystemTime::UNIX_EPOCH)
            .and_then(|()| fs::rename(&body, &path))
            .map_err(RemoteError::keep(&path))
    })
}
