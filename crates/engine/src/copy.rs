//! Files out of containers and into them, and what a container changed. All of it with the means of a build: a copy out
//! is a COPY onto nothing whose layer goes out as a tar, a copy in is an unpacked tar and a COPY onto the container.

use std::collections::BTreeSet;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use kiln_graph::{CopyAction, FileAction, FileActionKind, FileInput, FileOp, Owner, UserRef};
use kiln_image::view::MergedView;
use kiln_image::{Kind, LayerId, LayerPath};
use kiln_worker::{FileJob, FileTree, TarInput, UnpackJob};

use crate::{BuildError, ContainerInfo, Engine};

/// What a path in a container leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FoundKind {
    /// A folder.
    Folder,
    /// A symbolic link.
    Link,
    /// Anything else.
    File,
}

/// A change that a container made, as docker writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// `A`: new.
    Added,
    /// `C`: another than in the image.
    Changed,
    /// `D`: not there any more.
    Deleted,
}

/// Whose owners the files of a copy have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CopiedFrom {
    /// Those of the archive.
    Archive,
    /// Root's: they come from this machine, where other users live.
    Machine,
}

impl Engine {
    fn view(&self, layers: &[LayerId]) -> Result<MergedView, BuildError> {
        let indexes = layers.iter().map(|layer| self.store.load_index(*layer));
        let indexes: Vec<Arc<_>> = indexes.collect::<Result<_, _>>()?;
        Ok(MergedView::new(indexes))
    }

    /// What is at a path in a container; links on the way are followed inside of it. Also the path itself without links.
    /// `None` where nothing is.
    ///
    /// # Errors
    /// When the container runs, since what it has is not known then.
    pub fn look(
        &self,
        container: &ContainerInfo,
        path: &str,
        follow: bool,
    ) -> Result<Option<(LayerPath, FoundKind)>, BuildError> {
        stopped(container)?;
        let layers = [&*container.image_layers, &container.own_layers].concat();
        let view = self.view(&layers)?;
        let Ok(path) = view.resolve(path.as_bytes(), follow) else {
            return Ok(None);
        };
        let kind = match view.get(&path).map(|node| &node.entry.kind) {
            Some(Kind::Dir { .. }) => FoundKind::Folder,
            Some(Kind::Symlink(_)) => FoundKind::Link,
            Some(_) => FoundKind::File,
            None if path.is_root() || view.is_dir(&path) => FoundKind::Folder,
            None => return Ok(None),
        };
        Ok(Some((path, kind)))
    }

    /// Writes a tar of what is at a path (as [`Engine::look`] gives it) in a container: named by its last component, or
    /// only what is in it.
    ///
    /// # Errors
    /// When the worker fails or nobody reads the tar.
    pub fn copy_out(
        &self,
        container: &ContainerInfo,
        path: &LayerPath,
        contents: bool,
        to: BorrowedFd<'_>,
    ) -> Result<(), BuildError> {
        let lease = self.store.lease()?;
        let layers = [&*container.image_layers, &container.own_layers].concat();
        self.store.protect(&lease, &layers)?;
        let into = self.store.begin_layer(&lease)?;
        let copy = CopyAction {
            from: Some(FileInput::Input(0)),
            src: path.to_string(),
            dest: "/".to_owned(),
            dir_copy_contents: contents || path.is_root(),
            create_dest_path: true,
            ..CopyAction::default()
        };
        let job = FileJob {
            op: one_copy(FileInput::Scratch, copy),
            inputs: vec![FileTree::Layers(layers)],
            into: vec![into],
            earlier: Vec::new(),
            now: (0, 0),
        };
        let failed = |error| BuildError::from_worker(&error);
        self.worker.file(job, &[]).map_err(failed)?;
        let written = self.worker.write_tar(into, None, &[to]);
        self.worker.delete(vec![into], &[]).map_err(failed)?;
        self.store.discard_layer(into)?;
        written.map(drop).map_err(failed)
    }

    /// Unpacks a tar into a folder of a container.
    ///
    /// # Errors
    /// When it runs, the tar is damaged, or the folder is none.
    pub fn copy_in(
        &self,
        container: &ContainerInfo,
        folder: &LayerPath,
        from: CopiedFrom,
        tar: BorrowedFd<'_>,
    ) -> Result<(), BuildError> {
        stopped(container)?;
        let lease = self.store.lease()?;
        // Nobody starts it meanwhile.
        if !self.store.restart_container(&lease, &container.id)? {
            return Err(BuildError::new(format!(
                "no such container: {}",
                container.name
            )));
        }
        let layers = [&*container.image_layers, &container.own_layers].concat();
        self.store.protect(&lease, &layers)?;
        let failed = |error| BuildError::from_worker(&error);
        let unpacked = self.store.begin_layer(&lease)?;
        let job = UnpackJob {
            into: unpacked,
            input: TarInput::Stream,
        };
        self.worker.unpack(job, &[tar]).map_err(failed)?;
        let root = Owner {
            user: Some(UserRef::Id(0)),
            group: Some(UserRef::Id(0)),
        };
        let copy = CopyAction {
            from: Some(FileInput::Input(1)),
            src: "/".to_owned(),
            dest: folder.to_string(),
            dir_copy_contents: true,
            create_dest_path: true,
            owner: (from == CopiedFrom::Machine).then_some(root),
            ..CopyAction::default()
        };
        let job = FileJob {
            op: one_copy(FileInput::Input(0), copy),
            inputs: vec![
                FileTree::Layers(layers.clone()),
                FileTree::Layers(vec![unpacked]),
            ],
            into: vec![self.store.begin_layer(&lease)?],
            earlier: Vec::new(),
            now: (0, 0),
        };
        let made = self.worker.file(job, &[]).map_err(failed)?;
        self.add_layers(&container.id, layers, &made.layers)?;
        self.worker.delete(vec![unpacked], &[]).map_err(failed)?;
        Ok(self.store.discard_layer(unpacked)?)
    }

    /// What a container changed, in the order of the paths.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn changes(
        &self,
        container: &ContainerInfo,
    ) -> Result<Vec<(Change, LayerPath)>, BuildError> {
        let before = self.view(&container.image_layers)?;
        let layers = [&*container.image_layers, &container.own_layers].concat();
        let after = self.view(&layers)?;
        let mut paths = BTreeSet::new();
        for layer in &container.own_layers {
            let index = self.store.load_index(*layer)?;
            paths.extend(index.entries().iter().map(|entry| entry.path.clone()));
        }
        let there =
            |view: &MergedView, path: &LayerPath| view.get(path).is_some() || view.is_dir(path);
        let change = |path: LayerPath| {
            let change = match (there(&before, &path), there(&after, &path)) {
                (false, true) => Change::Added,
                (true, true) => Change::Changed,
                (true, false) => Change::Deleted,
                (false, false) => return None,
            };
            Some((change, path))
        };
        Ok(paths
            .into_iter()
            .filter(|path| !path.is_root())
            .filter_map(change)
            .collect())
    }
}

fn one_copy(on: FileInput, copy: CopyAction) -> FileOp {
    FileOp {
        actions: vec![FileAction {
            on,
            output: Some(0),
            kind: FileActionKind::Copy(Box::new(copy)),
        }],
    }
}

fn stopped(container: &ContainerInfo) -> Result<(), BuildError> {
    if container.running {
        let text = format!("container {:?} is running", container.name);
        return Err(BuildError::new(text)
            .with_hint("its files can be copied when it has ended; a folder that both sides see is made with -v"));
    }
    Ok(())
}
