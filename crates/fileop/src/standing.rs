//! Whether a new layer can stand on an earlier one's folder, and what its own folder has to hold then.

use std::collections::HashMap;
use std::mem::discriminant;

use kiln_image::{Entry, IndexError, Kind};

use crate::entries::Entries;

/// Files, and bytes in files, from which on it is worth one more folder in every root file system: fewer are copied at once.
const MANY: u64 = 256;
const MUCH: u64 = 8 << 20;
/// At most one part of so many may be different: what changes again and again is copied again and again.
const PART: u64 = 4;

/// What files have in all.
#[derive(Default)]
struct Amount {
    files: u64,
    bytes: u64,
}

impl Amount {
    fn add(&mut self, entry: &Entry) {
        self.files += u64::from(!entry.is_dir());
        if let Kind::File { size, .. } = entry.kind {
            self.bytes += size;
        }
    }
}

/// Tells for each entry whether a layer that stands on the whole layer with the entries `earlier` needs it in its own folder: what was
/// added or changed, and the folders that lead there. `None` if it cannot stand there, or should not: something is gone, a
/// folder has become something else or the other way round, a file with several names is another, something hides what is
/// below it, or too much is different.
pub(crate) fn own(
    entries: &Entries<'_>,
    earlier: impl Iterator<Item = Result<Entry, IndexError>>,
) -> Option<Vec<bool>> {
    let path = |at: &u32| entries.path(*at as usize);
    let order = entries.in_order();
    let mut before = earlier.peekable();
    let mut own = vec![false; entries.len()];
    let mut groups = Groups::default();
    let (mut kept, mut made) = (Amount::default(), Amount::default());
    for &at in &order {
        let at = at as usize;
        let Some(entry) = entries.get(at) else {
            continue;
        };
        let entry = &*entry;
        let known = before.next_if(|known| match known {
            Ok(known) => known.path <= entry.path,
            Err(_) => true,
        });
        let known = known.transpose().ok()?;
        let known = known.as_ref();
        if known.is_some_and(|known| known.path != entry.path || hides(known)) || hides(entry) {
            return None;
        }
        match known {
            Some(known) if alike(entry, known) => {
                if !groups.same(entry.hardlink, known.hardlink) {
                    return None;
                }
                kept.add(entry);
            }
            _ => {
                let fits = |it: &Entry| is_on_disk(it) && it.hardlink.is_none();
                if !fits(entry) || known.is_some_and(|known| !fits(known) || turned(entry, known)) {
                    return None;
                }
                own[at] = true;
                made.add(entry);
            }
        }
    }
    if before.next().is_some()
        || (kept.files < MANY && kept.bytes < MUCH)
        || made.files * PART > kept.files + made.files
        || made.bytes * PART > kept.bytes + made.bytes
    {
        return None;
    }
    for at in &order {
        if !own[*at as usize] {
            continue;
        }
        let mut folder = path(at).and_then(kiln_image::LayerPath::parent);
        while let Some(up) = folder {
            let Ok(found) = order.binary_search_by(|at| path(at).cmp(&Some(&up))) else {
                break;
            };
            if std::mem::replace(&mut own[order[found] as usize], true) {
                break;
            }
            folder = up.parent();
        }
    }
    Some(own)
}

fn hides(entry: &Entry) -> bool {
    matches!(entry.kind, Kind::Whiteout | Kind::Dir { opaque: true, .. })
}

/// Devices and sockets are in the index only: nothing of theirs could cover what is below.
fn is_on_disk(entry: &Entry) -> bool {
    !matches!(entry.kind, Kind::Char(..) | Kind::Block(..) | Kind::Socket)
}

fn turned(entry: &Entry, known: &Entry) -> bool {
    entry.is_dir() != known.is_dir()
        || !entry.is_dir() && discriminant(&entry.kind) != discriminant(&known.kind)
}

/// Whether all is the same but for the number of a group of hard links.
fn alike(entry: &Entry, known: &Entry) -> bool {
    let Entry {
        path: _,
        kind,
        mode,
        uid,
        gid,
        mtime,
        xattrs,
        hardlink,
    } = entry;
    *kind == known.kind
        && *mode == known.mode
        && (*uid, *gid) == (known.uid, known.gid)
        && *mtime == known.mtime
        && *xattrs == known.xattrs
        && hardlink.is_some() == known.hardlink.is_some()
}

/// Which group of hard links is which: numbers are each index's own.
#[derive(Default)]
struct Groups {
    new: HashMap<u32, u32>,
    known: HashMap<u32, u32>,
}

impl Groups {
    fn same(&mut self, new: Option<u32>, known: Option<u32>) -> bool {
        let (Some(new), Some(known)) = (new, known) else {
            return new == known;
        };
        *self.new.entry(new).or_insert(known) == known
            && *self.known.entry(known).or_insert(new) == new
    }
}

#[cfg(test)]
mod tests {
    use kiln_image::{FileDigest, LayerIndex, LayerPath};

    use super::*;

    type Edit = fn(&mut Vec<Entry>);

    const DIR: Kind = Kind::Dir {
        opaque: false,
        implied: false,
    };

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry {
            kind,
            ..Entry::dir(LayerPath::clean(path), 0o755, 1, 2, (3, 4))
        }
    }

    fn file(fill: u8) -> Kind {
        Kind::File {
            size: 10,
            digest: FileDigest::new([fill; 32]),
        }
    }

    fn empty() -> Kind {
        Kind::File {
            size: 0,
            digest: FileDigest::new([0; 32]),
        }
    }

    /// Enough files to be worth it, below `app`.
    fn listing() -> Vec<Entry> {
        let mut all = vec![
            entry("app", DIR),
            entry("app/d", DIR),
            entry("app/d/e", DIR),
        ];
        all.extend((0..300).map(|number| entry(&format!("app/d/{number:03}"), file(1))));
        all.push(entry("app/d/e/f", file(1)));
        all
    }

    fn paths(edit: impl FnOnce(&mut Vec<Entry>)) -> Option<Vec<String>> {
        on(listing(), edit)
    }

    fn on(before: Vec<Entry>, edit: impl FnOnce(&mut Vec<Entry>)) -> Option<Vec<String>> {
        let mut now = before.clone();
        edit(&mut now);
        let mut entries = Entries::default();
        for entry in now.into_iter().rev() {
            entries.push(entry);
        }
        let before = LayerIndex::new(before);
        let own = own(&entries, before.entries().iter().cloned().map(Ok))?;
        let mut paths: Vec<String> = entries
            .iter()
            .zip(own)
            .filter_map(|(entry, own)| own.then(|| entry.path.to_string()))
            .collect();
        paths.sort();
        Some(paths)
    }

    #[test]
    fn what_changed_and_what_leads_there() {
        assert_eq!(paths(|_| {}).unwrap(), [""; 0]);
        let changed = paths(|all| all[303].kind = file(2)).unwrap();
        assert_eq!(changed, ["/app", "/app/d", "/app/d/e", "/app/d/e/f"]);
        let time = paths(|all| all[1].mtime = (9, 9)).unwrap();
        assert_eq!(time, ["/app", "/app/d"]);
        let added = paths(|all| all.push(entry("new", file(3)))).unwrap();
        assert_eq!(added, ["/new"]);
        for change in [
            |entry: &mut Entry| entry.mode = 0o700,
            |entry: &mut Entry| entry.uid = 9,
            |entry: &mut Entry| entry.gid = 9,
            |entry: &mut Entry| entry.mtime = (9, 9),
            |entry: &mut Entry| entry.xattrs = [(b"user.a".to_vec(), b"b".to_vec())].into(),
        ] {
            let changed = paths(|all| change(&mut all[3])).unwrap();
            assert_eq!(changed, ["/app", "/app/d", "/app/d/000"]);
        }
    }

    #[test]
    fn what_cannot_be_covered_is_made_whole() {
        let opaque = Kind::Dir {
            opaque: true,
            implied: false,
        };
        let cases: [(&str, Edit); 9] = [
            ("removed", |all| drop(all.remove(5))),
            ("the last one removed", |all| drop(all.pop())),
            ("a folder in place of a file", |all| all[5].kind = DIR),
            ("a link in place of a file", |all| {
                all[5].kind = Kind::Symlink(b"x".to_vec());
            }),
            ("a device", |all| all[5].kind = Kind::Char(1, 3)),
            ("a device more", |all| {
                all.push(entry("null", Kind::Char(1, 3)));
            }),
            ("a whiteout", |all| all.push(entry("gone", Kind::Whiteout))),
            ("too many", |all| {
                all.extend((0..110).map(|number| entry(&format!("app/{number}"), empty())));
            }),
            ("too much", |all| {
                all[5].kind = Kind::File {
                    size: 2000,
                    digest: FileDigest::new([7; 32]),
                };
            }),
        ];
        for (name, edit) in cases {
            assert_eq!(paths(edit), None, "{name}");
        }
        let mut before = listing();
        before[1].kind = opaque;
        assert_eq!(on(before, |all| all[1].kind = DIR), None, "one that hid");
        let hides = paths(|all| {
            all[1].kind = Kind::Dir {
                opaque: true,
                implied: false,
            };
        });
        assert_eq!(hides, None, "a folder that hides");
        let mut few = listing();
        few.truncate(100);
        assert_eq!(on(few, |all| all[50].kind = file(2)), None, "few");
    }

    #[test]
    fn links_are_the_same_file_or_nothing() {
        let linked = || {
            let mut all = listing();
            (all[3].hardlink, all[4].hardlink) = (Some(1), Some(1));
            (all[5].hardlink, all[6].hardlink) = (Some(2), Some(2));
            all
        };
        let renumbered = on(linked(), |all| {
            (all[3].hardlink, all[4].hardlink) = (Some(8), Some(8));
            (all[5].hardlink, all[6].hardlink) = (Some(7), Some(7));
        });
        assert_eq!(renumbered, Some(Vec::new()));
        let cases: [(&str, Edit); 5] = [
            ("a changed member", |all| all[3].mtime = (9, 9)),
            ("one file of two", |all| all[5].hardlink = Some(1)),
            ("two files of one", |all| all[4].hardlink = Some(2)),
            ("a link no more", |all| {
                (all[3].hardlink, all[4].hardlink) = (None, None);
            }),
            ("one more name", |all| {
                let more = Entry {
                    path: LayerPath::clean("app/more"),
                    ..all[3].clone()
                };
                all.push(more);
            }),
        ];
        for (name, edit) in cases {
            assert_eq!(on(linked(), edit), None, "{name}");
        }
    }
}
