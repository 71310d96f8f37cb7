//! The comparison of what was found with what the layers below have. Pure.

use std::collections::{HashMap, HashSet};

use kiln_image::view::{MergedView, Node};
use kiln_image::{Entry, Kind, LayerPath, Xattrs};

use crate::walk::{Found, belongs, whiteout};

/// What a program changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// The entries of the new layer, in path order; groups of hard links are numbered by first name.
    pub(crate) entries: Vec<Entry>,
    /// What makes the folder that was compared hold the entries and nothing else, in this order.
    pub(crate) fixes: Vec<Fix>,
}

/// One correction of the layer's folder.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fix {
    /// What is there is no change.
    Remove(LayerPath),
    /// A whiteout has to be there, in place of anything that is.
    Whiteout(LayerPath),
    /// The folder must not be opaque.
    Unmark(LayerPath),
}

/// Compares `found` (in path order, from the root) with the merged layers below it. `ignore` are paths that count only
/// if something was made of them.
pub(crate) fn diff(found: &[Found], view: &MergedView, ignore: &[LayerPath]) -> Changes {
    let mut diff = Diff {
        view,
        ignore: ignore.iter().collect(),
        groups: unchanged_groups(found, view),
        folders: Vec::new(),
        changes: Changes::default(),
    };
    for found in found {
        diff.add(found);
    }
    while let Some(folder) = diff.folders.pop() {
        diff.leave(folder);
    }
    let mut changes = diff.changes;
    changes.entries.sort_by(|a, b| a.path.cmp(&b.path));
    let mut numbers: HashMap<u32, u32> = HashMap::new();
    for group in changes
        .entries
        .iter_mut()
        .filter_map(|entry| entry.hardlink.as_mut())
    {
        let next = numbers.len() as u32;
        *group = *numbers.entry(*group).or_insert(next);
    }
    changes
}

struct Diff<'a> {
    view: &'a MergedView,
    ignore: HashSet<&'a LayerPath>,
    /// Groups of hard links that are the same below.
    groups: HashSet<u32>,
    /// The folders that lead to where we are.
    folders: Vec<Folder<'a>>,
    changes: Changes,
}

struct Folder<'a> {
    path: &'a LayerPath,
    entry: Entry,
    /// The folder itself is a change, not only what is in it.
    changed: bool,
    /// Something in it is a change.
    leads_on: bool,
    /// Nothing of the layers below shows in it or in folders in it.
    complete: bool,
    /// The names in it, where those of the layers below that are not among them are gone.
    names: Option<Vec<&'a [u8]>>,
}

impl<'a> Diff<'a> {
    fn add(&mut self, found: &'a Found) {
        let path = &found.entry.path;
        while self
            .folders
            .last()
            .is_some_and(|folder| path.below(folder.path).is_none())
        {
            let folder = self.folders.pop().expect("just seen");
            self.leave(folder);
        }
        if let Some(Folder {
            names: Some(names), ..
        }) = self.folders.last_mut()
        {
            names.push(path.name());
        }
        if found.same {
            return;
        }
        let entry = &found.entry;
        let base = self.view.get(path).map(|node| node.entry);
        let unchanged = base.is_some_and(|base| same(entry, base));
        let stub = base.is_none() && self.ignore.contains(path);
        match entry.kind {
            Kind::Dir { .. } => self.enter(found, base, unchanged, stub),
            Kind::Whiteout if base.is_some() => self.keep(entry.clone()),
            // A socket is nothing without its program, but what it took the place of is gone.
            Kind::Socket if base.is_some() => {
                self.fix(Fix::Whiteout, path);
                self.keep(whiteout(path.clone()));
            }
            Kind::Whiteout | Kind::Socket => self.fix(Fix::Remove, path),
            _ if unchanged
                && entry
                    .hardlink
                    .is_none_or(|group| self.groups.contains(&group)) =>
            {
                self.fix(Fix::Remove, path);
            }
            Kind::File { size: 0, .. } if stub && entry.hardlink.is_none() => {
                self.fix(Fix::Remove, path);
            }
            Kind::Char(..) | Kind::Block(..) => {
                // Devices live in the index only; on disk nothing of what they took the place of may show.
                self.fix(
                    if base.is_some() {
                        Fix::Whiteout
                    } else {
                        Fix::Remove
                    },
                    path,
                );
                self.keep(entry.clone());
            }
            Kind::File { .. } | Kind::Symlink(_) | Kind::Fifo => self.keep(entry.clone()),
        }
    }

    fn enter(&mut self, found: &'a Found, base: Option<&Entry>, unchanged: bool, stub: bool) {
        let path = &found.entry.path;
        // Either it hides nothing, or what it hides gets whiteouts when the folder is left.
        if found.opaque {
            self.fix(Fix::Unmark, path);
        }
        let mut entry = found.entry.clone();
        let mut changed = !unchanged && !stub;
        if path.is_root() && base.is_none() {
            changed = !same(&entry, &unset_root());
        }
        if unchanged && let Some(base) = base {
            entry = base.clone();
            entry.kind = Kind::Dir {
                opaque: false,
                implied: true,
            };
        }
        // In a folder that hides what is below it, the kernel marks no folder again.
        let complete = found.complete || self.folders.last().is_some_and(|parent| parent.complete);
        let names = (complete && self.view.is_dir(path)).then(Vec::new);
        self.folders.push(Folder {
            path,
            entry,
            changed,
            leads_on: false,
            complete,
            names,
        });
    }

    fn leave(&mut self, mut folder: Folder<'a>) {
        if let Some(names) = folder.names.take() {
            let mut names = names.into_iter().peekable();
            for (child, _) in self.view.children(folder.path) {
                while names.next_if(|&name| name < child).is_some() {}
                if names.peek() != Some(&child) {
                    let path = folder.path.child(child);
                    self.fix(Fix::Whiteout, &path);
                    self.changes.entries.push(whiteout(path));
                    folder.leads_on = true;
                }
            }
        }
        if folder.changed || (folder.leads_on && !folder.path.is_root()) {
            self.keep(folder.entry);
        } else if !folder.path.is_root() {
            self.fix(Fix::Remove, folder.path);
        }
    }

    fn keep(&mut self, entry: Entry) {
        if let Some(folder) = self.folders.last_mut() {
            folder.leads_on = true;
        }
        self.changes.entries.push(entry);
    }

    fn fix(&mut self, fix: fn(LayerPath) -> Fix, path: &LayerPath) {
        self.changes.fixes.push(fix(path.clone()));
    }
}

/// The root folder where no layer says anything about it.
pub(crate) fn unset_root() -> Entry {
    Entry::dir(LayerPath::root(), 0o755, 0, 0, (0, 0))
}

/// Whether nothing about `entry` differs from what is below. The times of folders do not count: they change with
/// every name that comes or goes.
fn same(entry: &Entry, base: &Entry) -> bool {
    let times = || entry.mtime == base.mtime;
    let modes = || entry.mode == base.mode;
    let alike = match (&entry.kind, &base.kind) {
        (Kind::Dir { .. }, Kind::Dir { .. }) => modes(),
        // The mode of a link is always 0777 on disk, whatever its image says.
        (Kind::Symlink(a), Kind::Symlink(b)) => a == b && times(),
        (a, b) => a == b && modes() && times(),
    };
    let own = |xattrs: &'_ Xattrs| -> Vec<_> {
        xattrs
            .iter()
            .filter(|(name, _)| belongs(name))
            .cloned()
            .collect()
    };
    alike
        && (entry.uid, entry.gid) == (base.uid, base.gid)
        && own(&entry.xattrs) == own(&base.xattrs)
}

/// The groups of hard links of which every name is the same below, and all are names of one file there too.
fn unchanged_groups(found: &[Found], view: &MergedView) -> HashSet<u32> {
    let mut groups: HashMap<u32, Option<(usize, u32)>> = HashMap::new();
    for found in found {
        let Some(group) = found.entry.hardlink.filter(|_| !found.same) else {
            continue;
        };
        let below = view
            .get(&found.entry.path)
            .filter(|node| same(&found.entry, node.entry))
            .and_then(|Node { entry, layer, .. }| Some((layer, entry.hardlink?)));
        let known = groups.entry(group).or_insert(below);
        if *known != below {
            *known = None;
        }
    }
    groups
        .into_iter()
        .filter_map(|(group, below)| below.map(|_| group))
        .collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kiln_image::{FileDigest, LayerIndex};

    use super::*;
    use crate::walk::Stamp;

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry {
            kind,
            ..Entry::dir(LayerPath::clean(path), 0o755, 3, 4, (1, 2))
        }
    }

    fn file(fill: u8) -> Kind {
        Kind::File {
            size: 1,
            digest: FileDigest::new([fill; 32]),
        }
    }

    const DIR: Kind = Kind::Dir {
        opaque: false,
        implied: false,
    };

    fn found(entry: Entry) -> Found {
        Found {
            entry,
            same: false,
            complete: false,
            opaque: false,
            stamp: Stamp::default(),
        }
    }

    fn below(entries: Vec<Entry>) -> MergedView {
        MergedView::new([Arc::new(LayerIndex::new(entries))])
    }

    /// The root, then the given entries, as they come out of a walk.
    fn changes(view: &MergedView, mut list: Vec<Found>) -> (Vec<String>, Vec<String>) {
        list.insert(0, found(unset_root()));
        let changes = diff(&list, view, &[]);
        let entries = changes.entries.iter().map(|entry| {
            let kind = format!("{:?}", entry.kind);
            let end = kind.find([' ', '(']).unwrap_or(kind.len());
            format!(
                "{} {} {:o} {}:{}",
                entry.path,
                &kind[..end],
                entry.mode,
                entry.uid,
                entry.gid
            )
        });
        let fixes = changes.fixes.iter().map(|fix| format!("{fix:?}"));
        (entries.collect(), fixes.collect())
    }

    #[test]
    fn devices_live_in_the_index_only() {
        let view = below(vec![entry("a", file(1)), entry("null", Kind::Char(1, 3))]);
        let list = vec![
            found(entry("a", Kind::Block(8, 1))),
            found(entry("null", Kind::Char(1, 3))),
            found(entry("z", Kind::Char(1, 5))),
        ];
        let (entries, fixes) = changes(&view, list);
        assert_eq!(entries, ["/a Block 755 3:4", "/z Char 755 3:4"]);
        assert_eq!(
            fixes,
            [r#"Whiteout("/a")"#, r#"Remove("/null")"#, r#"Remove("/z")"#]
        );
    }

    #[test]
    fn what_is_known_to_be_the_same_keeps_its_folder_whole() {
        let view = below(vec![
            entry("d", DIR),
            entry("d/a", file(1)),
            entry("d/b", file(2)),
            entry("d/c", file(3)),
        ]);
        let same = |path| Found {
            same: true,
            ..found(entry(path, file(0)))
        };
        let list = vec![
            Found {
                complete: true,
                opaque: true,
                ..found(entry("d", DIR))
            },
            same("d/a"),
            same("d/c"),
        ];
        let (entries, fixes) = changes(&view, list);
        assert_eq!(entries, ["/d Dir 755 3:4", "/d/b Whiteout 0 0:0"]);
        assert_eq!(fixes, [r#"Unmark("/d")"#, r#"Whiteout("/d/b")"#]);
    }

    #[test]
    fn hard_links_are_dropped_all_or_none() {
        let linked = |path, fill, group| Entry {
            hardlink: Some(group),
            ..entry(path, file(fill))
        };
        let view = below(vec![
            linked("a", 1, 7),
            linked("b", 1, 7),
            entry("c", file(1)),
        ]);
        let group = |list: &[(&'static str, u8)]| {
            let list = list
                .iter()
                .map(|&(path, fill)| found(linked(path, fill, 3)))
                .collect();
            changes(&view, list).0.len()
        };
        assert_eq!(group(&[("a", 1), ("b", 1)]), 0, "one file below, too");
        assert_eq!(group(&[("a", 1), ("c", 1)]), 2, "two files below");
        assert_eq!(group(&[("a", 1), ("b", 1), ("n", 1)]), 3, "one more name");
        assert_eq!(group(&[("a", 2), ("b", 2)]), 2, "other content");
    }
}
