//! Files from web servers.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::SystemTime;

use kiln_image::Digest;
use kiln_registry::{Download, Observer, Validators};
use serde::{Deserialize, Serialize};

use crate::{Remote, RemoteError, Scratch, entry_name};

/// A file from a web server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpFile {
    /// The folder that holds it, and nothing else.
    pub tree: PathBuf,
    /// The sha256 of its bytes.
    pub digest: Digest,
}

/// What is remembered of an address.
#[derive(Debug, Serialize, Deserialize)]
struct Known {
    digest: Digest,
    etag: Option<String>,
    last_modified: Option<String>,
}

pub(crate) fn entry(url: &str, name: &str, mode: u16, digest: Digest) -> String {
    entry_name(
        "http",
        &[
            ("url", url.as_bytes()),
            ("name", name.as_bytes()),
            ("mode", &mode.to_le_bytes()),
            ("digest", digest.to_string().as_bytes()),
        ],
    )
}

pub(crate) fn fetch(
    remote: &Remote,
    url: &str,
    name: &str,
    mode: u16,
    observer: &dyn Observer,
) -> Result<HttpFile, RemoteError> {
    let notes = remote
        .root
        .join(entry_name("address", &[("url", url.as_bytes())]));
    let known = fs::read(&notes)
        .ok()
        .and_then(|text| serde_json::from_slice::<Known>(&text).ok());
    // Without the file itself there is nothing that could be unchanged.
    let kept = known.as_ref().and_then(|known| {
        let tree = remote.known_http(url, name, mode, known.digest)?;
        Some(HttpFile {
            tree,
            digest: known.digest,
        })
    });
    let validators = match (known, &kept) {
        (Some(known), Some(_)) => Validators {
            etag: known.etag,
            last_modified: known.last_modified,
        },
        _ => Validators::default(),
    };
    let scratch = Scratch::new(remote)?;
    let body = scratch.path.join("body");
    let mut file = File::create_new(&body).map_err(RemoteError::keep(&body))?;
    let (digest, validators) = match (
        remote
            .client
            .download(url, &validators, &mut file, observer)?,
        kept,
    ) {
        (Download::Unchanged, Some(kept)) => return Ok(kept),
        (Download::Unchanged, None) => unreachable!("no validators were sent"),
        (
            Download::File {
                digest, validators, ..
            },
            _,
        ) => (digest, validators),
    };
    let tree = match remote.known_http(url, name, mode, digest) {
        Some(tree) => tree,
        None => remote.make(&entry(url, name, mode, digest), |tree| {
            let path = tree.join(name);
            let time = validators.time().unwrap_or(SystemTime::UNIX_EPOCH);
            fs::rename(&body, &path)
                .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(mode.into())))
                .and_then(|()| file.set_modified(time))
                .map_err(RemoteError::keep(&path))
        })?,
    };
    let known = Known {
        digest,
        etag: validators.etag,
        last_modified: validators.last_modified,
    };
    let text = serde_json::to_vec(&known).expect("notes always serialise");
    let fresh = scratch.path.join("notes");
    fs::write(&fresh, text)
        .and_then(|()| fs::rename(&fresh, &notes))
        .map_err(RemoteError::keep(&notes))?;
    Ok(HttpFile { tree, digest })
}
