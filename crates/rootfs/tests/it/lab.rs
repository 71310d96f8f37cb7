//! Layers to stack, and a look at what a root file system shows that owes nothing to the code under test.

use std::cell::Cell;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_image::view::MergedView;
use kiln_image::{Entry, FileDigest, InodeOwners, Kind, LayerIndex, LayerPath, Xattrs};
use kiln_rootfs::{Lower, Provider, RootSource, Rootfs};
use kiln_store::layer_fs::{Content, Ids, LayerFs};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};

/// An entry and the bytes of the file.
pub(crate) type Item = (Entry, Vec<u8>);

pub(crate) struct Lab {
    dir: tempfile::TempDir,
    layers: Cell<u32>,
}

impl Lab {
    /// `None` where the rights are missing.
    pub(crate) fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skipped("needs root");
            return None;
        }
        Some(Self {
            dir: scratch(),
            layers: Cell::new(0),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A new, empty layer folder.
    pub(crate) fn layer_dir(&self) -> PathBuf {
        let number = self.layers.get();
        self.layers.set(number + 1);
        let dir = self.dir.path().join(format!("layer-{number}"));
        std::fs::create_dir(&dir).unwrap();
        dir
    }

    /// A finished layer.
    pub(crate) fn layer(&self, items: Vec<Item>) -> Lower {
        let dir = self.layer_dir();
        let fs = LayerFs::create(&dir, Ids::Real).unwrap();
        let contents: std::collections::HashMap<LayerPath, Vec<u8>> = items
            .iter()
            .map(|(entry, content)| (entry.path.clone(), content.clone()))
            .collect();
        let index = LayerIndex::new(items.into_iter().map(|(entry, _)| entry).collect());
        let mut first_names: std::collections::HashMap<u32, LayerPath> =
            std::collections::HashMap::default();
        for entry in index.entries() {
            if let Some(group) = entry.hardlink {
                if let Some(first) = first_names.get(&group) {
                    fs.link(entry, first).unwrap();
                    continue;
                }
                first_names.insert(group, entry.path.clone());
            }
            fs.put(entry, Content::Bytes(&contents[&entry.path]))
                .unwrap();
        }
        fs.finish(&index).unwrap();
        Lower {
            dirs: dir.join("fs").into(),
            index: Arc::new(index),
        }
    }

    /// Runs `program` in a root file system of `lowers`; gives its changes as a layer.
    pub(crate) fn run(
        &self,
        provider: Provider,
        lowers: &[Lower],
        ignore: &[&str],
        program: impl FnOnce(&Inside),
    ) -> Lower {
        let dir = self.layer_dir();
        let rootfs = Rootfs::prepare(provider, lowers, &dir, Ids::Real).unwrap();
        program(&Inside::new(&rootfs));
        let ignore: Vec<_> = ignore.iter().map(LayerPath::clean).collect();
        let index = rootfs
            .changes(&view(lowers), &ignore, &InodeOwners::new())
            .unwrap();
        let written = kiln_store::layer_fs::read_index(&dir).unwrap();
        assert_eq!(written, index, "the index file");
        let left: Vec<_> = names(&dir);
        assert_eq!(left, ["fs", "index"], "what is left in the layer's folder");
        Lower {
            dirs: dir.join("fs").into(),
            index: Arc::new(index),
        }
    }

    /// What a fresh overlay of `lowers` shows.
    pub(crate) fn shown(&self, lowers: &[Lower]) -> Vec<Entry> {
        let dir = self.layer_dir();
        let rootfs = Rootfs::prepare(Provider::Overlay, lowers, &dir, Ids::Real).unwrap();
        let shown = Inside::new(&rootfs).listing();
        rootfs.discard().unwrap();
        assert!(names(&dir).is_empty(), "discard left {:?}", names(&dir));
        shown
    }
}

/// A folder on a real file system.
pub(crate) fn scratch() -> tempfile::TempDir {
    let parent = std::env::var_os("KILN_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    tempfile::tempdir_in(parent).unwrap()
}

/// Tells that a test did not run. With `KILN_TEST_ALL` set it fails instead.
pub(crate) fn skipped(why: &str) {
    use std::io::Write;
    assert!(
        std::env::var_os("KILN_TEST_ALL").is_none(),
        "KILN_TEST_ALL is set, but {why}"
    );
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

pub(crate) fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub(crate) fn view(lowers: &[Lower]) -> MergedView {
    MergedView::new(lowers.iter().map(|lower| Arc::clone(&lower.index)))
}

/// A root file system as a program in it sees it. Paths are taken literally: no link is followed.
pub(crate) struct Inside {
    root: OwnedFd,
}

impl Inside {
    pub(crate) fn new(rootfs: &Rootfs) -> Self {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = match rootfs.root() {
            RootSource::Mount(mount) => rustix::fs::openat(mount, ".", flags, Mode::empty()),
            RootSource::Folder(folder) => rustix::fs::open(folder, flags, Mode::empty()),
        };
        Self {
            root: root.unwrap(),
        }
    }

    pub(crate) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// A host path to `path`; only for paths without links.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{path}", self.root.as_raw_fd()))
    }

    pub(crate) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.path(path), content).unwrap();
    }

    pub(crate) fn mkdir(&self, path: &str) {
        std::fs::create_dir(self.path(path)).unwrap();
    }

    pub(crate) fn remove(&self, path: &str) {
        let path = self.path(path);
        if path.symlink_metadata().unwrap().is_dir() {
            std::fs::remove_dir_all(path).unwrap();
        } else {
            std::fs::remove_file(path).unwrap();
        }
    }

    pub(crate) fn chmod(&self, path: &str, mode: u32) {
        rustix::fs::chmod(self.path(path), Mode::from_raw_mode(mode)).unwrap();
    }

    pub(crate) fn chown(&self, path: &str, uid: u32, gid: u32) {
        std::os::unix::fs::lchown(self.path(path), Some(uid), Some(gid)).unwrap();
    }

    pub(crate) fn set_mtime(&self, path: &str, mtime: (i64, u32)) {
        let at = rustix::fs::Timespec {
            tv_sec: mtime.0,
            tv_nsec: mtime.1.into(),
        };
        let times = rustix::fs::Timestamps {
            last_access: at,
            last_modification: at,
        };
        rustix::fs::utimensat(CWD, self.path(path), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }

    pub(crate) fn set_xattr(&self, path: &str, name: &str, value: &[u8]) {
        rustix::fs::lsetxattr(
            self.path(path),
            name,
            value,
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
    }

    /// The folder of `path`, for calls that take a descriptor, and the last name.
    pub(crate) fn parent(&self, path: &LayerPath) -> rustix::io::Result<(OwnedFd, Vec<u8>)> {
        let parent = path.parent().ok_or(rustix::io::Errno::INVAL)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let name = if parent.is_root() {
            ".".as_ref()
        } else {
            parent.as_path()
        };
        let fd = rustix::fs::openat2(&self.root, name, flags, Mode::empty(), resolve)?;
        Ok((fd, path.name().to_vec()))
    }

    /// Everything there is, as entries: folders without marks, no hard-link numbers, no sockets.
    pub(crate) fn listing(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        list(self.root.as_fd(), b".", &LayerPath::root(), &mut entries);
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        entries
    }
}

fn list(dir: BorrowedFd<'_>, name: &[u8], path: &LayerPath, entries: &mut Vec<Entry>) {
    let stat = rustix::fs::statx(
        dir,
        name,
        AtFlags::SYMLINK_NOFOLLOW,
        StatxFlags::BASIC_STATS,
    )
    .unwrap();
    let mut link = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    link.extend_from_slice(name);
    let file_type = FileType::from_raw_mode(stat.stx_mode.into());
    let read = || {
        let file = rustix::fs::openat(dir, name, OFlags::RDONLY | OFlags::NOFOLLOW, Mode::empty());
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::fs::File::from(file.unwrap()), &mut bytes).unwrap();
        bytes
    };
    let kind = match file_type {
        FileType::Directory => Kind::Dir {
            opaque: false,
            implied: false,
        },
        FileType::RegularFile => file_kind(&read()),
        FileType::Symlink => Kind::Symlink(
            rustix::fs::readlinkat(dir, name, Vec::new())
                .unwrap()
                .into_bytes(),
        ),
        FileType::Fifo => Kind::Fifo,
        FileType::CharacterDevice => Kind::Char(stat.stx_rdev_major, stat.stx_rdev_minor),
        FileType::Socket => return,
        other => panic!("{path}: {other:?}"),
    };
    entries.push(Entry {
        path: path.clone(),
        kind,
        mode: stat.stx_mode & 0o7777,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mtime: (stat.stx_mtime.tv_sec, stat.stx_mtime.tv_nsec),
        xattrs: xattrs(&link),
        hardlink: None,
    });
    if file_type == FileType::Directory {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(dir, name, flags, Mode::empty()).unwrap();
        for child in rustix::fs::Dir::read_from(&fd).unwrap() {
            let child = child.unwrap().file_name().to_bytes().to_vec();
            if child != b"." && child != b".." {
                list(fd.as_fd(), &child, &path.child(&child), entries);
            }
        }
    }
}

fn xattrs(path: &[u8]) -> Xattrs {
    let mut buffer = vec![0; 65536];
    let Ok(length) = rustix::fs::llistxattr(path, &mut buffer[..]) else {
        return Xattrs::new();
    };
    let keys = buffer[..length].to_vec();
    let mut xattrs = Xattrs::new();
    for key in keys.split(|&byte| byte == 0).filter(|key| !key.is_empty()) {
        if key == b"security.selinux" {
            continue;
        }
        let length = rustix::fs::lgetxattr(path, key, &mut buffer[..]).unwrap();
        xattrs.push((key.to_vec(), buffer[..length].to_vec()));
    }
    xattrs.sort();
    xattrs
}

pub(crate) fn file_kind(content: &[u8]) -> Kind {
    let digest = FileDigest::new(*blake3::hash(content).as_bytes());
    Kind::File {
        size: content.len() as u64,
        digest,
    }
}

/// What a view shows, in the form of [`Inside::listing`].
pub(crate) fn visible(view: &MergedView) -> Vec<Entry> {
    let mut entries: Vec<_> = view
        .walk(&LayerPath::root())
        .map(|(_, node)| plain(node.entry))
        .collect();
    entries.retain(|entry| !matches!(entry.kind, Kind::Char(..) | Kind::Block(..) | Kind::Socket));
    if entries.first().is_none_or(|entry| !entry.path.is_root()) {
        entries.insert(0, Entry::dir(LayerPath::root(), 0o755, 0, 0, (0, 0)));
    }
    entries
}

fn plain(entry: &Entry) -> Entry {
    let mut entry = Entry {
        hardlink: None,
        ..entry.clone()
    };
    if entry.is_dir() {
        entry.kind = Kind::Dir {
            opaque: false,
            implied: false,
        };
    }
    entry
}

/// Without the times of folders, which change with every name that comes or goes.
pub(crate) fn timeless_dirs(mut entries: Vec<Entry>) -> Vec<Entry> {
    for entry in entries.iter_mut().filter(|entry| entry.is_dir()) {
        entry.mtime = (0, 0);
    }
    entries
}

/// The time of the root is the time of the mount where no layer sets it.
pub(crate) fn but_root_time(mut entries: Vec<Entry>) -> Vec<Entry> {
    entries[0].mtime = (0, 0);
    entries
}

/// The time of everything that the lab makes.
pub(crate) const MTIME: (i64, u32) = (1_000_000_000, 5);

pub(crate) fn entry(path: &str, kind: Kind, mode: u16) -> Entry {
    Entry {
        kind,
        ..Entry::dir(LayerPath::clean(path), mode, 0, 0, MTIME)
    }
}

pub(crate) fn dir(path: &str) -> Item {
    (
        entry(
            path,
            Kind::Dir {
                opaque: false,
                implied: false,
            },
            0o755,
        ),
        Vec::new(),
    )
}

pub(crate) fn implied(path: &str) -> Item {
    (
        entry(
            path,
            Kind::Dir {
                opaque: false,
                implied: true,
            },
            0o755,
        ),
        Vec::new(),
    )
}

pub(crate) fn file(path: &str, content: &str) -> Item {
    (
        entry(path, file_kind(content.as_bytes()), 0o644),
        content.into(),
    )
}

pub(crate) fn link(path: &str, target: &str) -> Item {
    (entry(path, Kind::Symlink(target.into()), 0o777), Vec::new())
}

pub(crate) fn whiteout(path: &str) -> Item {
    let entry = Entry {
        mtime: (0, 0),
        ..entry(path, Kind::Whiteout, 0)
    };
    (entry, Vec::new())
}

/// A layer in a few words: `path=kind`, whiteouts as `-path`, implied folders as `(path)`.
pub(crate) fn words(index: &LayerIndex) -> Vec<String> {
    let word = |entry: &Entry| {
        let path = &entry.path;
        let name = match &entry.kind {
            Kind::Dir { implied: true, .. } => format!("({path})"),
            Kind::Dir { opaque: true, .. } => format!("{path}=opaque"),
            Kind::Dir { .. } => format!("{path}=dir"),
            Kind::File { .. } => format!("{path}=file"),
            Kind::Symlink(_) => format!("{path}=link"),
            Kind::Char(..) | Kind::Block(..) => format!("{path}=device"),
            Kind::Fifo => format!("{path}=fifo"),
            Kind::Socket => format!("{path}=socket"),
            Kind::Whiteout => format!("-{path}"),
        };
        match entry.hardlink {
            Some(group) => format!("{name}#{group}"),
            None => name,
        }
    };
    index.entries().iter().map(word).collect()
}

/// Removes what a probe leaves.
pub(crate) fn remove_old(folder: impl AsRef<Path>) {
    kiln_store::layer_fs::delete_layer(folder.as_ref()).expect("own folder");
}
