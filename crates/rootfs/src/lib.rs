//! Root file systems: a stack of layers as one writable tree, and what a program changed in it as a new layer index.
//!
//! Two [`Provider`]s do the same work. The overlay costs nothing per file of the layers; the plain tree copies them
//! all, and runs where no overlay can be mounted (a store that lies on an overlay itself, NFS, old kernels).
//! [`probe`] tells which one a store can use, by trying.
//!
//! Both end in one comparison ([`Rootfs::changes`]): what was found in the folder against the merged view of the
//! layers' indexes. Its result depends on the two trees only, not on the way from one to the other, so that equal
//! outcomes get equal content ids: a file that was written with what it held already is no change, nor is a folder
//! whose times alone moved; and a folder that was removed and made again is told by whiteouts for what it lost, never
//! by an opaque mark, which would hide what other layers put there when the layer is stacked elsewhere.

mod diff;
mod digest;
mod error;
mod files;
mod normalise;
mod overlay;
mod plain;
mod probe;
mod tree;
mod walk;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_image::view::MergedView;
use kiln_image::{Entry, InodeOwners, Kind, LayerIndex, LayerPath};
use kiln_store::layer_fs::{Ids, LayerDirs, delete_layer};

pub use error::RootfsError;
pub use probe::{probe, probed, sweep};
pub use tree::FolderTree;

use files::Folder;

/// How a root file system is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// The layers' folders stacked by the kernel; the new layer's folder catches what is written.
    Overlay,
    /// The same, mounted with `mount(2)` as kernels before 6.5 want it. Chosen by itself where it is needed.
    OverlayByMount,
    /// A copy of the merged layers; changes are found by inode, change time and size.
    PlainTree,
}

/// A finished layer to stack on.
#[derive(Debug, Clone)]
pub struct Lower {
    /// The folders with its files, absolute.
    pub dirs: LayerDirs,
    /// The layer's index.
    pub index: Arc<LayerIndex>,
}

/// What is to be mounted as `/`.
#[derive(Debug, Clone, Copy)]
pub enum RootSource<'a> {
    /// A mount that is attached nowhere yet (`move_mount(2)`, or `open_tree(2)` for one more copy).
    Mount(BorrowedFd<'a>),
    /// A folder to bind-mount.
    Folder(&'a Path),
}

/// A writable root file system over a stack of layers.
///
/// Dropping it lets go of the mount and leaves the files where they are.
#[derive(Debug)]
pub struct Rootfs {
    layer_dir: PathBuf,
    ids: Ids,
    state: State,
    aside: Option<PathBuf>,
}

#[derive(Debug)]
enum State {
    Overlay(OwnedFd),
    Plain(plain::Tree),
}

impl Rootfs {
    /// Makes the root file system of `lowers` (lowest first; none at all is an empty root) for the new layer in
    /// `layer_dir`, an absolute path to an existing folder. What `layer_dir/fs` holds already stays part of the
    /// overlay.
    ///
    /// # Errors
    /// When the file system refuses; for the overlay also when there are more layers than the kernel stacks.
    pub fn prepare(
        provider: Provider,
        lowers: &[Lower],
        layer_dir: &Path,
        ids: Ids,
    ) -> Result<Self, RootfsError> {
        let state = match provider {
            Provider::Overlay | Provider::OverlayByMount => {
                let by_mount = provider == Provider::OverlayByMount;
                State::Overlay(overlay::prepare(lowers, layer_dir, ids, by_mount)?)
            }
            Provider::PlainTree => State::Plain(plain::Tree::prepare(lowers, layer_dir, ids)?),
        };
        Ok(Self {
            layer_dir: layer_dir.to_owned(),
            ids,
            state,
            aside: None,
        })
    }

    /// Lets [`Rootfs::changes`] move the folder that it needed beside the layer's files to `path`, on the same file
    /// system, where somebody else removes it. Removing takes far longer where the disk is told of each block that gets
    /// free.
    #[must_use]
    pub fn put_aside(mut self, path: PathBuf) -> Self {
        self.aside = Some(path);
        self
    }

    /// What the sandbox mounts as `/`.
    pub fn root(&self) -> RootSource<'_> {
        match &self.state {
            State::Overlay(mount) => RootSource::Mount(mount.as_fd()),
            State::Plain(tree) => RootSource::Folder(tree.root()),
        }
    }

    /// The folder that holds what was written so far, besides what is unchanged in a plain tree. Every process in the
    /// root file system must have ended before anything is changed there.
    pub fn changed_files(&self) -> PathBuf {
        match &self.state {
            State::Overlay(_) => self.layer_dir.join("fs"),
            State::Plain(tree) => tree.root().to_owned(),
        }
    }

    /// The owners of files of the layers that cannot carry them, where ids are recorded: links and fifos. `view` is the
    /// merged view of `lowers`, from which this was made.
    ///
    /// # Errors
    /// When a file is not where the index says.
    pub fn owners(&self, view: &MergedView, lowers: &[Lower]) -> Result<InodeOwners, RootfsError> {
        let mut owners = InodeOwners::new();
        if self.ids == Ids::Real {
            return Ok(owners);
        }
        for (number, lower) in lowers.iter().enumerate() {
            let given = |entry: &&Entry| {
                matches!(entry.kind, Kind::Symlink(_) | Kind::Fifo)
                    && (entry.uid, entry.gid) != (0, 0)
            };
            let mut given = lower.index.entries().iter().filter(given).peekable();
            if given.peek().is_none() {
                continue;
            }
            let folder = match &self.state {
                State::Overlay(_) => Folder::of(&lower.dirs)?,
                State::Plain(tree) => Folder::open(tree.root())?,
            };
            for entry in given {
                if view
                    .get(&entry.path)
                    .is_some_and(|node| node.layer == number)
                {
                    let key = walk::key_at(&folder, &entry.path)?;
                    owners.insert(key, (entry.uid, entry.gid));
                }
            }
        }
        Ok(owners)
    }

    /// Ends the root file system: what differs from `view`, the merged view of the layers it was made of, becomes the
    /// layer's `fs/` and `index`. Every process in it must have ended. `ignore` are the mount points that the sandbox
    /// made: one that is still an empty file or an empty folder is no change. `owners` are those of files that cannot carry
    /// them, where ids are recorded.
    ///
    /// # Errors
    /// When files cannot be read or changed, or when the overlay holds marks that it was told not to make. The
    /// layer's folder is then good for nothing but deletion.
    pub fn changes(
        self,
        view: &MergedView,
        ignore: &[LayerPath],
        owners: &InodeOwners,
    ) -> Result<LayerIndex, RootfsError> {
        let recorded = (self.ids == Ids::Recorded).then_some(owners);
        match self.state {
            State::Overlay(mount) => {
                // Unmounted first: the folder must be nobody's upper when it is tidied up.
                drop(mount);
                overlay::clean(&self.layer_dir, self.aside.as_deref())?;
                let root = Folder::open(&self.layer_dir.join("fs"))?;
                let mut found = walk::walk(&root, recorded, |_, _| false)?;
                digest::fill(&root, &mut found)?;
                let changes = diff::diff(&found, view, ignore);
                normalise::settle(&self.layer_dir, &root, changes, self.ids)
            }
            State::Plain(tree) => {
                let (index, tree) =
                    tree.changes(&self.layer_dir, view, ignore, self.ids, recorded)?;
                tree.remove(self.aside.as_deref())?;
                Ok(index)
            }
        }
    }

    /// Ends the root file system and removes all that it made in the layer's folder.
    ///
    /// # Errors
    /// When files cannot be removed.
    pub fn discard(self) -> Result<(), RootfsError> {
        match self.state {
            State::Overlay(mount) => {
                drop(mount);
                overlay::clean(&self.layer_dir, None)?;
            }
            State::Plain(tree) => tree.remove(None)?,
        }
        let fs = self.layer_dir.join("fs");
        delete_layer(&fs).map_err(RootfsError::io("remove", &fs))
    }
}
