//! Removes what steps have left over beside the next step.
//!
//! Removing the few folders that an overlay mount needed takes longer than mounting it where the disk is told of each
//! block that gets free (`mount -o discard`). They are moved to `tmp/old-<layer>` of the store, where nobody needs them and
//! they are counted as part of the store, and a thread removes them, which may outlive the front. What a worker that was
//! killed has left there the next one removes.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;

use kiln_image::LayerId;
use kiln_store::delete_layer;

/// What the names of folders begin with that are to be removed.
const PREFIX: &str = "old-";

/// The thread that removes, started with the first folder.
pub(crate) struct Tidy {
    store_root: PathBuf,
    thread: Mutex<Option<(Sender<PathBuf>, JoinHandle<()>)>>,
}

impl Tidy {
    /// Nothing is started yet.
    pub(crate) fn new(store_root: &Path) -> Self {
        Self {
            store_root: store_root.to_owned(),
            thread: Mutex::default(),
        }
    }

    /// Where a layer's leftovers go.
    pub(crate) fn place(&self, layer: LayerId) -> PathBuf {
        let name = format!("{PREFIX}{}", layer.hex());
        self.store_root.join("tmp").join(name)
    }

    /// Removes a folder soon. Nothing happens if it is not there.
    pub(crate) fn remove(&self, folder: PathBuf) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let (send, receive) = channel();
            let store_root = self.store_root.clone();
            let started = std::thread::Builder::new()
                .name("tidy".to_owned())
                .spawn(move || run(&store_root, &receive));
            *thread = started.ok().map(|thread| (send, thread));
        }
        // What cannot be removed now the next worker removes.
        if let Some((send, _)) = &*thread {
            let _ = send.send(folder);
        }
    }

    /// Waits until everything is removed.
    pub(crate) fn end(&self) {
        let thread = self
            .thread
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some((send, thread)) = thread {
            drop(send);
            let _ = thread.join();
        }
    }
}

fn run(store_root: &Path, folders: &Receiver<PathBuf>) {
    kiln_rootfs::sweep(store_root);
    let tmp = store_root.join("tmp");
    // Nobody needs what has such a name, so that no lock tells who it is of: two may remove the same.
    for entry in std::fs::read_dir(tmp).into_iter().flatten().flatten() {
        if entry
            .file_name()
            .as_encoded_bytes()
            .starts_with(PREFIX.as_bytes())
        {
            let _ = delete_layer(&entry.path());
        }
    }
    for folder in folders {
        let _ = delete_layer(&folder);
    }
}
