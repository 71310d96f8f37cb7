//! What several test programs need.
#![allow(dead_code, reason = "not every test program needs all of it")]
#![expect(clippy::print_stderr, reason = "tests say aloud what they skip")]

use std::path::Path;
use std::process::Command;

use kiln_image::{DiffId, Digest, Entry, FileDigest, Key, Kind, LayerId, LayerIndex, LayerPath};
use kiln_store::{
    Content, IdKind, Ids, LayerFs, LayerSummary, Lease, NewRecord, OpenOptions, Store,
};

pub(crate) fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: this test needs root");
    }
    root
}

/// Owners and modes as the plain user of these tests gets them.
pub(crate) fn ids() -> Ids {
    if rustix::process::geteuid().is_root() {
        Ids::Real
    } else {
        Ids::Recorded
    }
}

pub(crate) fn options(boot: &str) -> OpenOptions {
    OpenOptions {
        owner: rustix::process::geteuid().as_raw(),
        ids: IdKind::Real,
        boot_id: boot.to_owned(),
    }
}

pub(crate) fn open(root: &Path) -> Store {
    Store::open(root, options("boot 1")).unwrap()
}

pub(crate) fn path(text: &str) -> LayerPath {
    LayerPath::clean(text)
}

pub(crate) fn entry(text: &str, kind: Kind, mode: u16) -> Entry {
    let mut entry = Entry::dir(path(text), mode, 0, 0, (1_000_000_000, 5));
    entry.kind = kind;
    entry
}

pub(crate) fn dir(text: &str) -> Entry {
    entry(
        text,
        Kind::Dir {
            opaque: false,
            implied: false,
        },
        0o755,
    )
}

pub(crate) fn file(text: &str, content: &[u8]) -> Entry {
    let digest = FileDigest::new(*blake3::hash(content).as_bytes());
    entry(
        text,
        Kind::File {
            size: content.len() as u64,
            digest,
        },
        0o644,
    )
}

/// Writes and seals a layer with one file.
pub(crate) fn layer(store: &Store, lease: &Lease, content: &str) -> LayerId {
    let id = store.begin_layer(lease).unwrap();
    let fs = LayerFs::create(&store.layer_dir(id), ids()).unwrap();
    let file = file("file", content.as_bytes());
    fs.put(&file, Content::Bytes(content.as_bytes())).unwrap();
    let index = LayerIndex::new(vec![file]);
    fs.finish(&index).unwrap();
    store.seal_layer(id, &LayerSummary::of(&index)).unwrap();
    id
}

pub(crate) fn record(layers: &[LayerId]) -> NewRecord {
    NewRecord {
        outputs: vec![layers.to_vec()],
        created: std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_700_000_000),
        took: std::time::Duration::from_millis(1500),
        step: "RUN make".to_owned(),
        parts: vec![("command".to_owned(), b"make".to_vec())],
    }
}

pub(crate) fn key(number: u8) -> Key {
    Key::new([number; 32])
}

pub(crate) fn digest(number: u8) -> Digest {
    Digest::new([number; 32])
}

pub(crate) fn diff(number: u8) -> DiffId {
    DiffId::new([number; 32])
}

/// Does the worker's part of a sweep.
pub(crate) fn collect(store: &Store) -> Vec<LayerId> {
    let doomed = store.sweep().unwrap();
    for id in &doomed {
        kiln_store::delete_layer(&store.layer_dir(*id)).unwrap();
    }
    store.forget_layers(&doomed).unwrap();
    doomed
}

/// This test program again, running only the test `name`, which looks at the variable `KILN_TEST_CHILD`.
pub(crate) fn child(name: &str, argument: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", name, "--nocapture"])
        .env("KILN_TEST_CHILD", argument);
    command
}

/// The argument of [`child`], in the child.
pub(crate) fn child_argument() -> Option<std::path::PathBuf> {
    std::env::var_os("KILN_TEST_CHILD").map(Into::into)
}

/// Lets `command` run as the plain user of these tests; `false` if there is none.
pub(crate) fn as_plain_user(command: &mut Command) -> bool {
    use std::os::unix::process::CommandExt;
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let ids = passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields[0] == "kilntest").then(|| (fields[2].parse().unwrap(), fields[3].parse().unwrap()))
    });
    let Some((uid, gid)) = ids else {
        eprintln!("SKIPPED: this test needs a user kilntest");
        return false;
    };
    command.uid(uid).gid(gid);
    true
}
