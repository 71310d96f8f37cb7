//! What a copy read, kept beside the cache's records: with it a later miss is explained file by file. Pure.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt::Write as _;

use kiln_graph::CopyAction;
use kiln_image::{Entry, Kind, MergedView};
use serde::{Deserialize, Serialize};

use crate::FileOpError;
use crate::select::{keeps_mode, sources};

/// The fastest there is that still makes something of it.
const LEVEL: i32 = 1;

/// The files that a copy selects, with all that counts in its key: see [`selection_key`](crate::selection_key).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Listing {
    /// All paths, one behind the other.
    text: Vec<u8>,
    /// In the order of what counts of their paths.
    items: Vec<Item>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Item {
    /// Where its path begins in the text.
    at: u32,
    length: u32,
    /// How much of the path does not count: it is where the files lie in their tree.
    above: u32,
    kind: Sort,
    mode: u16,
    uid: u32,
    gid: u32,
    /// Stands for the content, or where a link leads.
    content: [u8; 8],
    /// Stands for the extended attributes and for which files are one.
    more: [u8; 8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum Sort {
    Folder,
    File,
    Link,
    Other,
}

impl Sort {
    fn name(self) -> &'static str {
        match self {
            Self::Folder => "a folder",
            Self::File => "a file",
            Self::Link => "a link",
            Self::Other => "something special",
        }
    }
}

/// How two listings differ.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Changes {
    /// In words, in the order of the paths: `src/main.rs changed`. Not more than asked for.
    pub texts: Vec<String>,
    /// How many there are.
    pub count: usize,
}

impl Listing {
    /// What `action` reads of `tree`.
    ///
    /// # Errors
    /// As [`selection`](crate::selection).
    pub fn of(action: &CopyAction, tree: &MergedView) -> Result<Self, FileOpError> {
        let keeps_mode = keeps_mode(action)?;
        let mut listing = Self::default();
        for source in sources(action, tree)? {
            let contents = source.is_dir() && action.dir_copy_contents;
            let (top, above) = if contents || source.name.is_empty() {
                let top = source.path.as_bytes().to_vec();
                let above = top.len() + usize::from(!top.is_empty());
                (top, above)
            } else {
                let parent = source.path.parent().unwrap_or_default();
                let top = parent.child(&source.name).as_bytes().to_vec();
                let above = top.len() - source.name.len();
                (top, above)
            };
            let mut add = |path: &[&[u8]], entry: &Entry, link: Option<u64>| {
                let at = listing.text.len();
                for part in path {
                    listing.text.extend_from_slice(part);
                }
                let mut item = item_of(entry, link);
                item.at = at as u32;
                item.length = (listing.text.len() - at) as u32;
                item.above = above.min(listing.text.len() - at) as u32;
                if !keeps_mode && item.kind != Sort::Link {
                    item.mode = 0;
                }
                if action.owner.is_some() {
                    (item.uid, item.gid) = (0, 0);
                }
                listing.items.push(item);
            };
            if let Some(node) = source.node.filter(|_| !contents) {
                add(&[&top], node.entry, None);
            }
            let slash: &[u8] = if top.is_empty() { b"" } else { b"/" };
            let mut groups: HashMap<(usize, u32), u64> = HashMap::new();
            for item in &source.below {
                let entry = item.node.entry;
                let link = entry.hardlink.map(|group| {
                    let next = groups.len() as u64;
                    *groups.entry((item.node.layer, group)).or_insert(next)
                });
                add(&[&top, slash, item.relative], entry, link);
            }
        }
        let Self { text, items } = &mut listing;
        // Stable: what counts is the same only where a wildcard stands for folders that hold the same names.
        items.sort_by(|a, b| counting(text, a).cmp(counting(text, b)));
        Ok(listing)
    }

    /// How many paths there are.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The listing as bytes to be kept, compressed.
    pub fn encode(&self) -> Vec<u8> {
        // Nothing can fail in memory; what cannot be read later is as good as absent.
        let encode = || {
            let compressor = zstd::Encoder::new(Vec::new(), LEVEL).ok()?;
            postcard::to_io(self, compressor).ok()?.finish().ok()
        };
        encode().unwrap_or_default()
    }

    /// The listing of [`Listing::encode`]; `None` of other bytes.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let listing: Self = postcard::from_bytes(&zstd::decode_all(bytes).ok()?).ok()?;
        let whole = |item: &Item| {
            item.above <= item.length
                && (item.at as usize).saturating_add(item.length as usize) <= listing.text.len()
        };
        listing.items.iter().all(whole).then_some(listing)
    }

    /// What is different from `before`, at most `most` in words. `root` stands in front of each path. Of a folder that
    /// came or went together with what is in it only the latter is told.
    pub fn changes(&self, before: &Self, root: &str, most: usize) -> Changes {
        let mut found = Vec::new();
        let (mut new, mut old) = (self.items.iter().peekable(), before.items.iter().peekable());
        loop {
            let order = match (new.peek(), old.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => counting(&self.text, a).cmp(counting(&before.text, b)),
            };
            let now = new.next_if(|_| order.is_le());
            let then = old.next_if(|_| order.is_ge());
            found.extend(match (now, then) {
                (Some(now), Some(then)) => {
                    (!same(now, then)).then(|| (path(&self.text, now), What::Differs(now, then)))
                }
                (Some(now), None) => {
                    let folder = now.kind == Sort::Folder;
                    Some((path(&self.text, now), What::Came { folder }))
                }
                (None, Some(then)) => {
                    let folder = then.kind == Sort::Folder;
                    Some((path(&before.text, then), What::Went { folder }))
                }
                (None, None) => None,
            });
        }
        let mut changes = Changes::default();
        for (at, (path, what)) in found.iter().enumerate() {
            let with_it = found.get(at + 1).is_some_and(|(next, other)| {
                next.strip_prefix(*path)
                    .is_some_and(|rest| rest.starts_with(b"/"))
                    && other.goes_with(what)
            });
            if with_it {
                continue;
            }
            changes.count += 1;
            if changes.texts.len() < most {
                let mut text = format!("{root}{}", String::from_utf8_lossy(path));
                what.describe(&mut text);
                changes.texts.push(text);
            }
        }
        changes
    }
}

enum What<'a> {
    Came { folder: bool },
    Went { folder: bool },
    Differs(&'a Item, &'a Item),
}

impl What<'_> {
    /// Whether it explains that the folder above came or went.
    fn goes_with(&self, above: &Self) -> bool {
        matches!(
            (self, above),
            (Self::Came { .. }, What::Came { folder: true })
                | (Self::Went { .. }, What::Went { folder: true })
        )
    }

    /// Says of a path what happened to it.
    fn describe(&self, text: &mut String) {
        let (now, then) = match self {
            Self::Came { .. } => return text.push_str(" appeared"),
            Self::Went { .. } => return text.push_str(" vanished"),
            Self::Differs(now, then) => (now, then),
        };
        // Writing to a string does not fail.
        let _ = if now.kind != then.kind {
            write!(
                text,
                " was {} and is {} now",
                then.kind.name(),
                now.kind.name()
            )
        } else if now.content != then.content && now.kind == Sort::Link {
            write!(text, " leads elsewhere")
        } else if now.content != then.content {
            write!(text, " changed")
        } else if now.mode != then.mode {
            write!(
                text,
                " changed its mode from {:04o} to {:04o}",
                then.mode, now.mode
            )
        } else if (now.uid, now.gid) != (then.uid, then.gid) {
            let (from, to) = ((then.uid, then.gid), (now.uid, now.gid));
            write!(
                text,
                " changed its owner from {}:{} to {}:{}",
                from.0, from.1, to.0, to.1
            )
        } else {
            write!(text, " changed its attributes or names")
        };
    }
}

/// Whether all that counts is the same.
fn same(a: &Item, b: &Item) -> bool {
    (a.kind, a.mode, a.uid, a.gid, a.content, a.more)
        == (b.kind, b.mode, b.uid, b.gid, b.content, b.more)
}

fn item_of(entry: &Entry, link: Option<u64>) -> Item {
    let first = |bytes: &[u8; 32]| {
        let (first, _) = bytes.split_first_chunk::<8>().expect("32 bytes");
        *first
    };
    let (kind, content) = match &entry.kind {
        Kind::Dir { .. } => (Sort::Folder, [0; 8]),
        Kind::File { digest, .. } => (Sort::File, first(digest.as_bytes())),
        Kind::Symlink(target) => (Sort::Link, first(blake3::hash(target).as_bytes())),
        other => {
            let text = format!("{other:?}");
            (Sort::Other, first(blake3::hash(text.as_bytes()).as_bytes()))
        }
    };
    let mut more = [0; 8];
    if link.is_some() || !entry.xattrs.is_empty() {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&link.map_or(0, |number| number + 1).to_le_bytes());
        for part in entry.xattrs.iter().flat_map(|(name, value)| [name, value]) {
            hasher
                .update(&(part.len() as u64).to_le_bytes())
                .update(part);
        }
        more = first(hasher.finalize().as_bytes());
    }
    Item {
        at: 0,
        length: 0,
        above: 0,
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        content,
        more,
    }
}

fn path<'t>(text: &'t [u8], item: &Item) -> &'t [u8] {
    &text[item.at as usize..][..item.length as usize]
}

/// What of the path counts, in an order in which what is in a folder follows it.
fn counting<'t>(text: &'t [u8], item: &Item) -> impl Iterator<Item = &'t [u8]> + use<'t> {
    path(text, item)[item.above as usize..].split(|byte| *byte == b'/')
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use kiln_image::{FileDigest, LayerIndex, LayerPath, Xattrs};

    use super::*;

    fn dir(path: &str) -> Entry {
        Entry::dir(LayerPath::clean(path), 0o755, 0, 0, (0, 0))
    }

    fn file(path: &str, content: u8, mode: u16) -> Entry {
        let digest = FileDigest::new([content; 32]);
        Entry {
            kind: Kind::File { size: 1, digest },
            mode,
            xattrs: Xattrs::new(),
            ..dir(path)
        }
    }

    fn listing(copy: &CopyAction, entries: &[Entry]) -> Listing {
        let view = MergedView::new([Arc::new(LayerIndex::new(entries.to_vec()))]);
        let listing = Listing::of(copy, &view).unwrap();
        assert_eq!(Listing::decode(&listing.encode()), Some(listing.clone()));
        listing
    }

    /// What is there now, and what is said of it.
    type Case<'a> = (&'a [Entry], &'a [&'a str]);

    fn copy(src: &str) -> CopyAction {
        CopyAction {
            src: src.to_owned(),
            dir_copy_contents: true,
            allow_wildcard: true,
            ..CopyAction::default()
        }
    }

    #[test]
    fn differences_in_words() {
        let before = [
            dir("src"),
            file("src/a", 1, 0o644),
            file("src/b", 1, 0o644),
            dir("src/c"),
            file("src/c/d", 1, 0o644),
            file("src/c-e", 1, 0o644),
        ];
        let link = Entry {
            kind: Kind::Symlink(b"a".to_vec()),
            ..dir("src/b")
        };
        let cases: [Case<'_>; 6] = [
            (&before, &[]),
            (
                &[
                    dir("src"),
                    file("src/a", 2, 0o644),
                    file("src/b", 1, 0o755),
                    dir("src/c"),
                    file("src/c/d", 1, 0o644),
                    file("src/c-e", 1, 0o644),
                ],
                &["src/a changed", "src/b changed its mode from 0644 to 0755"],
            ),
            (
                &[
                    dir("src"),
                    file("src/a", 1, 0o644),
                    link,
                    file("src/c-e", 1, 0o644),
                ],
                &["src/b was a file and is a link now", "src/c/d vanished"],
            ),
            (
                &[
                    &before[..],
                    &[
                        dir("src/new"),
                        dir("src/new/x"),
                        file("src/new/x/f", 1, 0o644),
                        dir("src/z"),
                    ],
                ]
                .concat(),
                &["src/new/x/f appeared", "src/z appeared"],
            ),
            (
                &[dir("src")],
                &[
                    "src/a vanished",
                    "src/b vanished",
                    "src/c/d vanished",
                    "src/c-e vanished",
                ],
            ),
            (
                &[
                    &before[..5],
                    &[Entry {
                        uid: 7,
                        gid: 8,
                        ..file("src/c-e", 1, 0o644)
                    }],
                ]
                .concat(),
                &["src/c-e changed its owner from 0:0 to 7:8"],
            ),
        ];
        for (now, texts) in cases {
            let changes =
                listing(&copy("/src"), now).changes(&listing(&copy("/src"), &before), "", 9);
            assert_eq!(changes.texts, texts);
            assert_eq!(changes.count, texts.len());
        }
    }

    #[test]
    fn what_does_not_count_is_no_difference() {
        let tree = [dir("src"), file("src/a", 1, 0o644)];
        let other = [
            dir("elsewhere"),
            Entry {
                uid: 3,
                mtime: (9, 9),
                ..file("elsewhere/a", 1, 0o600)
            },
        ];
        let given = |src: &str| CopyAction {
            mode: Some("0700".to_owned()),
            owner: Some(kiln_graph::Owner {
                user: None,
                group: None,
            }),
            ..copy(src)
        };
        let (now, then) = (
            listing(&given("/src"), &tree),
            listing(&given("/elsewhere"), &other),
        );
        assert_eq!(now.changes(&then, "", 9), Changes::default());
        let (now, then) = (
            listing(&copy("/src"), &tree),
            listing(&copy("/elsewhere"), &other),
        );
        assert_eq!(
            now.changes(&then, "/", 9).texts,
            ["/src/a changed its mode from 0600 to 0644"]
        );
    }

    #[test]
    fn whole_trees_and_single_files() {
        let tree = [
            Entry::dir(LayerPath::root(), 0o755, 0, 0, (0, 0)),
            dir("d"),
            file("d/a", 1, 0o644),
        ];
        let mut other = tree.clone();
        other[2] = file("d/a", 2, 0o644);
        let whole = CopyAction {
            dir_copy_contents: false,
            ..copy("/")
        };
        for (copy, texts) in [(whole, ["/d/a changed"]), (copy("/d/a"), ["/d/a changed"])] {
            assert_eq!(
                listing(&copy, &other)
                    .changes(&listing(&copy, &tree), "/", 9)
                    .texts,
                texts
            );
        }
    }

    #[test]
    fn the_rest_is_counted() {
        let many: Vec<Entry> = (0..50)
            .map(|at| file(&format!("f{at:02}"), 1, 0o644))
            .collect();
        let changes = listing(&copy("/"), &many).changes(&Listing::default(), "", 2);
        assert_eq!(
            (changes.count, &*changes.texts),
            (
                50,
                &["f00 appeared".to_owned(), "f01 appeared".to_owned()][..]
            )
        );
    }
}
