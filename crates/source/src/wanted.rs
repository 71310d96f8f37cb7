//! Which part of a context a build can read at all.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::OwnedFd;

use kiln_image::LayerPath;
use rustix::fs::{AtFlags, Dir, FileType};

use crate::pattern::Glob;
use crate::scan::open_folder;

/// Which paths of a context are asked for; the rest is not looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Everything.
    All,
    /// Sources of copies and mounts, from the root of the context; they may hold wildcards. A folder stands for all
    /// that is in it. Symbolic links on the way are followed, and both the link and its target are wanted.
    Paths(Vec<String>),
}

/// The wanted part as a tree: the root and, below it, either everything or some names.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Reach {
    pub(crate) all: bool,
    pub(crate) below: BTreeMap<Vec<u8>, Reach>,
}

impl Reach {
    pub(crate) const fn everything() -> Self {
        Self {
            all: true,
            below: BTreeMap::new(),
        }
    }

    fn add(&mut self, path: &LayerPath, all: bool) {
        let mut node = self;
        for name in path.components() {
            node = node.below.entry(name.to_vec()).or_default();
        }
        node.all |= all;
    }
}

impl Wanted {
    /// Finds the wanted part in the folder `root`. What cannot be looked at is left out: the walk will name it.
    pub(crate) fn reach(&self, root: &OwnedFd) -> Reach {
        let Self::Paths(paths) = self else {
            return Reach::everything();
        };
        let mut finder = Finder {
            root,
            reach: Reach::default(),
            open: VecDeque::new(),
            followed: 0,
        };
        for path in paths {
            let path = LayerPath::clean(path);
            let parts = path
                .components()
                .map(|part| Part::Pattern(String::from_utf8_lossy(part).into_owned()));
            finder.open.push_back((LayerPath::root(), parts.collect()));
        }
        while let Some((folder, rest)) = finder.open.pop_front() {
            finder.descend(&folder, &rest);
        }
        finder.reach
    }
}

/// A component of a path that is looked for.
#[derive(Debug, Clone)]
enum Part {
    /// From a source path: may hold wildcards.
    Pattern(String),
    /// From the target of a link: a name, or `..`.
    Name(Vec<u8>),
}

/// A bound against circles of links.
const MOST_LINKS: usize = 10_000;

struct Finder<'a> {
    root: &'a OwnedFd,
    reach: Reach,
    /// Folders, without links in their paths, and what is looked for in them.
    open: VecDeque<(LayerPath, Vec<Part>)>,
    followed: usize,
}

impl Finder<'_> {
    fn descend(&mut self, folder: &LayerPath, rest: &[Part]) {
        self.reach.add(folder, rest.is_empty());
        let Some((first, rest)) = rest.split_first() else {
            return;
        };
        let pattern = match first {
            Part::Name(name) if name == b".." => {
                return self.descend(&folder.parent().unwrap_or_default(), rest);
            }
            Part::Name(name) => return self.visit(folder, name, rest),
            Part::Pattern(pattern) => pattern,
        };
        // `**` is any depth in `--parents` and one name elsewhere; all of the folder is enough for both. A broken
        // pattern is reported by the copy.
        let glob = match Glob::new(pattern) {
            Ok(glob) if !pattern.contains("**") => glob,
            _ => return self.reach.add(folder, true),
        };
        if let Some(name) = glob.literal() {
            return self.visit(folder, name, rest);
        }
        let Ok(listed) = open_folder(self.root, folder) else {
            return;
        };
        let Ok(listing) = Dir::read_from(&listed) else {
            return;
        };
        for item in listing.flatten() {
            let name = item.file_name().to_bytes();
            if name != b"." && name != b".." && glob.matches(name) {
                self.visit(folder, name, rest);
            }
        }
    }

    fn visit(&mut self, folder: &LayerPath, name: &[u8], rest: &[Part]) {
        let path = folder.child(name);
        let Ok(stat) = rustix::fs::statat(self.root, path.as_path(), AtFlags::SYMLINK_NOFOLLOW)
        else {
            return;
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => self.descend(&path, rest),
            FileType::Symlink => {
                self.reach.add(&path, false);
                self.followed += 1;
                let Ok(target) = rustix::fs::readlinkat(self.root, path.as_path(), Vec::new())
                else {
                    return;
                };
                if self.followed <= MOST_LINKS {
                    self.follow(folder, target.as_bytes(), rest);
                }
            }
            _ if rest.is_empty() => self.reach.add(&path, false),
            _ => {}
        }
    }

    /// Looks for `target`, as a link in `folder` says it, and then for `rest` in it.
    fn follow(&mut self, folder: &LayerPath, target: &[u8], rest: &[Part]) {
        let base = if target.starts_with(b"/") {
            LayerPath::root()
        } else {
            folder.clone()
        };
        let names = target
            .split(|&byte| byte == b'/')
            .filter(|name| !name.is_empty() && *name != b".");
        let parts = names
            .map(|name| Part::Name(name.to_vec()))
            .chain(rest.iter().cloned())
            .collect();
        self.open.push_back((base, parts));
    }
}
