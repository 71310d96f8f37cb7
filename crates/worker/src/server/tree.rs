//! All that layers show together, as one tar or in a folder of the user.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use kiln_image::tarlayer::write_layer;
use kiln_image::view::MergedView;
use kiln_image::{Entry, LayerIndex, LayerPath};
use kiln_store::layer_fs::{Content, LayerFs};
use rustix::fs::{Dir, Mode, OFlags};

use super::files::{Hashing, tar_response};
use super::{Shared, failure};
use crate::protocol::{Failure, Response, Stacked};

/// Bytes written at once.
const BUFFER: usize = 1 << 18;

/// What layers show, with the files of each.
struct Shown {
    index: LayerIndex,
    /// Of each entry the number of its layer.
    layers: Vec<usize>,
    files: Vec<LayerFs>,
}

impl Shown {
    fn new(shared: &Shared, layers: &Stacked) -> Result<Self, Failure> {
        let mut indexes = Vec::<Arc<LayerIndex>>::new();
        let mut files = Vec::new();
        for layer in layers {
            indexes.push(shared.index(*layer)?);
            let open = LayerFs::create(&shared.layer_dir(*layer), shared.ids);
            files.push(open.map_err(|error| failure("cannot read a layer", &error))?);
        }
        let (index, layers) = MergedView::new(indexes).flattened();
        Ok(Self {
            index,
            layers,
            files,
        })
    }

    fn open(&self, entry: &Entry) -> io::Result<File> {
        let at = self
            .index
            .entries()
            .binary_search_by(|known| known.path.cmp(&entry.path));
        let at = at.map_err(|_| io::Error::from(io::ErrorKind::NotFound))?;
        self.files[self.layers[at]].open(&entry.path)
    }
}

/// Several trees, each below a folder of its own or all below the root.
struct Trees {
    index: LayerIndex,
    /// The folder, which may be the root, and what is below it.
    all: Vec<(LayerPath, Shown)>,
}

impl Trees {
    fn new(
        shared: &Shared,
        trees: &[(String, Stacked)],
        clamp: Option<i64>,
    ) -> Result<Self, Failure> {
        let mut all = Vec::new();
        let mut entries = Vec::new();
        let mut links = 0;
        for (folder, layers) in trees {
            let shown = Shown::new(shared, layers)?;
            let folder = LayerPath::clean(folder);
            if !folder.is_root() {
                let time = (clamp.unwrap_or_default(), 0);
                entries.push(Entry::dir(folder.clone(), 0o755, 0, 0, time));
            }
            let mut most = links;
            for entry in shown.index.entries() {
                if entry.path.is_root() && !folder.is_root() {
                    continue;
                }
                let hardlink = entry.hardlink.map(|group| links + group);
                most = most.max(hardlink.map_or(0, |group| group + 1));
                entries.push(Entry {
                    path: folder.join(entry.path.as_bytes()),
                    hardlink,
                    ..entry.clone()
                });
            }
            links = most;
            all.push((folder, shown));
        }
        Ok(Self {
            index: LayerIndex::new(entries),
            all,
        })
    }

    /// Of a path that several trees have, the last one counts, as in the index.
    fn open(&self, entry: &Entry) -> io::Result<File> {
        for (folder, shown) in self.all.iter().rev() {
            let below = entry.path.below(folder).map(LayerPath::clean);
            if let Some(found) = below.and_then(|path| shown.index.get(&path)) {
                return shown.open(found);
            }
        }
        Err(io::ErrorKind::NotFound.into())
    }
}

/// Writes the tar.
pub(super) fn write_tar(
    shared: &Shared,
    trees: &[(String, Stacked)],
    clamp: Option<i64>,
    out: &mut impl Write,
) -> Result<Response, Failure> {
    let trees = Trees::new(shared, trees, clamp)?;
    let mut out = Hashing::new(out);
    let buffered = BufWriter::with_capacity(BUFFER, &mut out);
    let (mut buffered, size) =
        write_layer(&trees.index, clamp, buffered, |entry| trees.open(entry))
            .map_err(|error| failure("cannot write the tar", &error))?;
    buffered
        .flush()
        .map_err(|error| failure("cannot write the tar", &error))?;
    drop(buffered);
    Ok(tar_response(out, size))
}

/// Writes the files into `folder`. They belong to whoever this is; what cannot be written as such a user, devices and
/// some extended attributes, is left out.
pub(super) fn check_out(
    shared: &Shared,
    layers: &Stacked,
    clamp: Option<i64>,
    delete: bool,
    folder: OwnedFd,
) -> Result<(), Failure> {
    let shown = Shown::new(shared, layers)?;
    write_files(&shown, clamp, delete, folder)
        .map_err(|error| failure("cannot write into the folder", &error))
}

fn write_files(shown: &Shown, clamp: Option<i64>, delete: bool, folder: OwnedFd) -> io::Result<()> {
    let index = clamped(&shown.index, clamp);
    let listing = folder.try_clone()?;
    let out = LayerFs::beneath(folder)?;
    if delete {
        remove_others(&out, listing.as_fd(), &index, &LayerPath::root())?;
    }
    let mut first_names = std::collections::HashMap::new();
    for entry in index.entries() {
        if let Some(group) = entry.hardlink {
            let first: &LayerPath = first_names.entry(group).or_insert(&entry.path);
            if *first != entry.path {
                out.link(entry, first)?;
                continue;
            }
        }
        if entry.is_file() {
            let file = shown.open(entry)?;
            out.put(entry, Content::Copy(file.as_fd()))?;
        } else {
            out.put(entry, Content::None)?;
        }
    }
    let folders = index.entries().iter().rev().filter(|entry| entry.is_dir());
    out.finish_folders(folders)
}

fn clamped(index: &LayerIndex, clamp: Option<i64>) -> LayerIndex {
    let mut entries = index.entries().to_vec();
    if let Some(clamp) = clamp {
        for entry in &mut entries {
            entry.mtime = entry.mtime.min((clamp, 0));
        }
    }
    LayerIndex::new(entries)
}

/// Removes what is in a folder and not in the index.
fn remove_others(
    out: &LayerFs,
    folder: BorrowedFd<'_>,
    index: &LayerIndex,
    path: &LayerPath,
) -> io::Result<()> {
    let names: Vec<_> = Dir::read_from(folder)?
        .map(|found| Ok(found?.file_name().to_owned()))
        .collect::<io::Result<_>>()?;
    for name in names {
        let name = name.as_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        let below = path.child(name);
        match index.get(&below) {
            None => out.remove(&below)?,
            Some(entry) if entry.is_dir() => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                // What is no folder is replaced by one when its turn comes.
                if let Ok(folder) = rustix::fs::openat(folder, name, flags, Mode::empty()) {
                    remove_others(out, folder.as_fd(), index, &below)?;
                }
            }
            Some(_) => {}
        }
    }
    Ok(())
}
