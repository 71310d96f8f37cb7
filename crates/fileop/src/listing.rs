//! What a copy read, kept beside the cache's records: with it a later miss is explained file by file. Pure.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, Read as _, Write as _};

use kiln_graph::CopyAction;
use kiln_image::{Entry, Kind, LayerPath, MergedView};
use serde::{Deserialize, Serialize};

use crate::FileOpError;
use crate::select::{Source, keeps_mode, sources};

/// The fastest there is that still makes something of it.
const LEVEL: i32 = 1;
/// In front of an encoded listing. Those of Kilns before it had none, and begin otherwise: they are as good as absent.
const FORMAT: u8 = 2;
/// What is put together before it is compressed, and uncompressed at once.
const AHEAD: usize = 64 * 1024;

/// The files that a copy selects, with all that counts in its key: see [`selection_key`](crate::selection_key). Each is
/// looked at when it is needed: large contexts need the memory.
#[derive(Debug)]
pub struct Listing<'a> {
    keeps_mode: bool,
    keeps_owner: bool,
    tops: Vec<Top<'a>>,
    /// What counts, in the order of what counts of their paths: which of the tops, and 0 for itself or else which of those
    /// below it.
    order: Vec<(u32, u32)>,
    /// Of files with several names in the selection the number of the file among those of its top.
    links: HashMap<(u32, u32), u64>,
}

/// A source of a copy.
#[derive(Debug)]
struct Top<'a> {
    source: Source<'a>,
    /// What is shown in front of the paths below it.
    path: Vec<u8>,
    /// How much of that does not count: it is where the files lie in their tree.
    above: usize,
}

/// A file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    path: Vec<u8>,
    /// How much of the path does not count.
    above: usize,
    facts: Facts,
}

/// What counts of a file beside its path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Facts {
    kind: Sort,
    mode: u16,
    uid: u32,
    gid: u32,
    /// Stands for the content, or where a link leads.
    content: [u8; 8],
    /// Stands for the extended attributes and for which files are one.
    more: [u8; 8],
}

/// A file as it is kept.
#[derive(Serialize, Deserialize)]
struct Kept<'a> {
    /// How much of the path before is the beginning of its own.
    same: usize,
    rest: &'a [u8],
    above: usize,
    facts: Facts,
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

impl<'a> Listing<'a> {
    /// What `action` reads of `tree`.
    ///
    /// # Errors
    /// As [`selection`](crate::selection).
    pub fn of(action: &CopyAction, tree: &'a MergedView) -> Result<Self, FileOpError> {
        let mut listing = Self {
            keeps_mode: keeps_mode(action)?,
            keeps_owner: action.owner.is_none(),
            tops: Vec::new(),
            order: Vec::new(),
            links: HashMap::new(),
        };
        for (source, number) in sources(action, tree)?.into_iter().zip(0..) {
            let contents = source.is_dir() && action.dir_copy_contents;
            let (path, above) = if contents || source.name.is_empty() {
                let path = source.path.as_bytes().to_vec();
                let above = path.len() + usize::from(!path.is_empty());
                (path, above)
            } else {
                let parent = source.path.parent().unwrap_or_default();
                let path = parent.child(&source.name).as_bytes().to_vec();
                let above = path.len() - source.name.len();
                (path, above)
            };
            if source.node.is_some() && !contents {
                listing.order.push((number, 0));
            }
            let mut groups: HashMap<(usize, u32), u64> = HashMap::new();
            for (item, at) in source.below.iter().zip(1..) {
                listing.order.push((number, at));
                if let Some(group) = item.node.entry.hardlink {
                    let next = groups.len() as u64;
                    let link = *groups.entry((item.node.layer, group)).or_insert(next);
                    listing.links.insert((number, at), link);
                }
            }
            listing.tops.push(Top {
                source,
                path,
                above,
            });
        }
        if listing.tops.len() > 1 {
            let mut order = std::mem::take(&mut listing.order);
            // Stable: what counts is the same only where a wildcard stands for folders that hold the same names.
            order.sort_by_cached_key(|at| {
                let path = listing.path(*at);
                LayerPath::clean(&path[listing.above(*at).min(path.len())..])
            });
            listing.order = order;
        }
        Ok(listing)
    }

    fn above(&self, (top, _): (u32, u32)) -> usize {
        self.tops[top as usize].above
    }

    fn path(&self, (top, at): (u32, u32)) -> Vec<u8> {
        let Top { source, path, .. } = &self.tops[top as usize];
        let Some(at) = at.checked_sub(1) else {
            return path.clone();
        };
        let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
        let relative = source.relative(&source.below[at as usize]);
        [path, slash, relative].concat()
    }

    fn item(&self, at: (u32, u32)) -> Option<Item> {
        let source = &self.tops[at.0 as usize].source;
        let node = match at.1.checked_sub(1) {
            Some(below) => source.below[below as usize].node,
            None => source.node?,
        };
        let mut facts = facts_of(node.entry, self.links.get(&at).copied());
        if !self.keeps_mode && facts.kind != Sort::Link {
            facts.mode = 0;
        }
        if !self.keeps_owner {
            (facts.uid, facts.gid) = (0, 0);
        }
        let path = self.path(at);
        let above = self.above(at).min(path.len());
        Some(Item { path, above, facts })
    }

    fn items(&self) -> impl Iterator<Item = Item> {
        self.order.iter().filter_map(|at| self.item(*at))
    }

    /// How many paths there are.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The listing as bytes to be kept, compressed.
    pub fn encode(&self) -> Vec<u8> {
        // Nothing can fail in memory; what cannot be read later is as good as absent.
        self.compressed().unwrap_or_default()
    }

    fn compressed(&self) -> io::Result<Vec<u8>> {
        let mut compressor = zstd::Encoder::new(vec![FORMAT], LEVEL)?;
        let (mut buffer, mut before) = (Vec::with_capacity(AHEAD), Vec::new());
        for Item { path, above, facts } in self.items() {
            let same = path.iter().zip(&before).take_while(|(a, b)| a == b).count();
            let kept = Kept {
                same,
                rest: &path[same..],
                above,
                facts,
            };
            buffer = postcard::to_extend(&kept, buffer).map_err(io::Error::other)?;
            before = path;
            if buffer.len() > AHEAD {
                compressor.write_all(&buffer)?;
                buffer.clear();
            }
        }
        compressor.write_all(&buffer)?;
        compressor.finish()
    }

    /// What is different from the encoded listing `before`, at most `most` in words; `None` if that is none. `root` stands in
    /// front of each path. Of a folder that came or went together with what is in it only the latter is told.
    pub fn changes(&self, before: &[u8], root: &str, most: usize) -> Option<Changes> {
        let (mut new, mut old) = (self.items().peekable(), Decoder::new(before)?);
        let mut then = old.next()?;
        let mut changes = Changes::default();
        // Told when the next one is known.
        let mut last: Option<(Vec<u8>, What)> = None;
        let mut tell = |next: Option<(Vec<u8>, What)>| {
            let goes_with = |(path, what): &(Vec<u8>, What)| {
                next.as_ref().is_some_and(|(other, its)| {
                    let rest = other.strip_prefix(&**path);
                    rest.is_some_and(|rest| rest.starts_with(b"/")) && its.goes_with(what)
                })
            };
            if let Some((path, what)) = last.take_if(|it| !goes_with(it)) {
                changes.count += 1;
                if changes.texts.len() < most {
                    let mut text = format!("{root}{}", String::from_utf8_lossy(&path));
                    what.describe(&mut text);
                    changes.texts.push(text);
                }
            }
            last = next;
        };
        loop {
            let order = match (new.peek(), &then) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(a), Some(b)) => a.counting().cmp(b.counting()),
            };
            let now = new.next_if(|_| order.is_le());
            let gone = match &then {
                Some(_) if order.is_ge() => std::mem::replace(&mut then, old.next()?),
                _ => None,
            };
            match (now, gone) {
                (Some(now), Some(gone)) if now.facts != gone.facts => {
                    tell(Some((now.path, What::Differs(now.facts, gone.facts))));
                }
                (Some(now), None) => {
                    let folder = now.facts.kind == Sort::Folder;
                    tell(Some((now.path, What::Came { folder })));
                }
                (None, Some(gone)) => {
                    let folder = gone.facts.kind == Sort::Folder;
                    tell(Some((gone.path, What::Went { folder })));
                }
                _ => {}
            }
        }
        tell(None);
        Some(changes)
    }
}

impl Item {
    /// What of the path counts, in an order in which what is in a folder follows it.
    fn counting(&self) -> impl Iterator<Item = &[u8]> {
        self.path[self.above..].split(|byte| *byte == b'/')
    }
}

/// Reads an encoded listing from beginning to end.
struct Decoder<'b> {
    from: zstd::Decoder<'static, io::BufReader<&'b [u8]>>,
    buffer: Vec<u8>,
    used: usize,
    before: Vec<u8>,
}

impl<'b> Decoder<'b> {
    /// `None` when the bytes are no listing, or one of another format.
    fn new(bytes: &'b [u8]) -> Option<Self> {
        let bytes = bytes.strip_prefix(&[FORMAT])?;
        // No bytes at all would be an empty listing.
        let from = zstd::Decoder::new((!bytes.is_empty()).then_some(bytes)?).ok()?;
        Some(Self {
            from,
            buffer: Vec::new(),
            used: 0,
            before: Vec::new(),
        })
    }

    /// The next file, and then none; `None` when the bytes are no listing.
    #[expect(clippy::option_option, reason = "told apart at the only two places")]
    fn next(&mut self) -> Option<Option<Item>> {
        loop {
            let left = &self.buffer[self.used..];
            if let Ok((kept, rest)) = postcard::take_from_bytes::<Kept<'_>>(left) {
                self.used = self.buffer.len() - rest.len();
                let path = [self.before.get(..kept.same)?, kept.rest].concat();
                self.before.clone_from(&path);
                return (kept.above <= path.len()).then_some(Some(Item {
                    path,
                    above: kept.above,
                    facts: kept.facts,
                }));
            }
            self.buffer.drain(..std::mem::take(&mut self.used));
            let more = self.from.by_ref().take(AHEAD as u64);
            if { more }.read_to_end(&mut self.buffer).ok()? == 0 {
                return self.buffer.is_empty().then_some(None);
            }
        }
    }
}

enum What {
    Came { folder: bool },
    Went { folder: bool },
    Differs(Facts, Facts),
}

impl What {
    /// Whether it explains that the folder above came or went.
    fn goes_with(&self, above: &Self) -> bool {
        matches!(
            (self, above),
            (Self::Came { .. }, Self::Came { folder: true })
                | (Self::Went { .. }, Self::Went { folder: true })
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

fn facts_of(entry: &Entry, link: Option<u64>) -> Facts {
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
    Facts {
        kind,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        content,
        more,
    }
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

    fn view(entries: &[Entry]) -> MergedView {
        MergedView::new([Arc::new(LayerIndex::new(entries.to_vec()))])
    }

    fn encoded(copy: &CopyAction, entries: &[Entry]) -> Vec<u8> {
        let view = view(entries);
        let listing = Listing::of(copy, &view).unwrap();
        let bytes = listing.encode();
        let mut decoder = Decoder::new(&bytes).unwrap();
        let decoded: Vec<Item> = std::iter::from_fn(|| decoder.next().unwrap()).collect();
        assert_eq!(decoded, listing.items().collect::<Vec<_>>());
        bytes
    }

    fn changes(copy: &CopyAction, now: &[Entry], before: &[u8], root: &str) -> Changes {
        let view = view(now);
        let listing = Listing::of(copy, &view).unwrap();
        listing.changes(before, root, 9).unwrap()
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
            let before = encoded(&copy("/src"), &before);
            let changes = changes(&copy("/src"), now, &before, "");
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
        let then = encoded(&given("/elsewhere"), &other);
        assert_eq!(
            changes(&given("/src"), &tree, &then, ""),
            Changes::default()
        );
        let then = encoded(&copy("/elsewhere"), &other);
        assert_eq!(
            changes(&copy("/src"), &tree, &then, "/").texts,
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
                changes(&copy, &other, &encoded(&copy, &tree), "/").texts,
                texts
            );
        }
    }

    #[test]
    fn the_rest_is_counted() {
        let many: Vec<Entry> = (0..50)
            .map(|at| file(&format!("f{at:02}"), 1, 0o644))
            .collect();
        let (none, all) = (encoded(&copy("/"), &[]), view(&many));
        let all = Listing::of(&copy("/"), &all).unwrap();
        let changes = all.changes(&none, "", 2).unwrap();
        assert_eq!(
            (changes.count, &*changes.texts),
            (
                50,
                &["f00 appeared".to_owned(), "f01 appeared".to_owned()][..]
            )
        );
    }

    #[test]
    fn several_sources_are_one_list() {
        let tree = |content| {
            [
                dir("a"),
                file("a/x", 1, 0o644),
                file("a/z", content, 0o644),
                dir("b"),
                file("b/y", content, 0o644),
            ]
        };
        let copy = copy("/*");
        let before = encoded(&copy, &tree(1));
        let changes = changes(&copy, &tree(2), &before, "");
        assert_eq!(changes.texts, ["b/y changed", "a/z changed"]);
    }

    #[test]
    fn other_bytes_are_no_listing() {
        let tree = [file("a", 1, 0o644), file("b", 1, 0o644)];
        let bytes = encoded(&copy("/"), &tree);
        let view = view(&tree);
        let listing = Listing::of(&copy("/"), &view).unwrap();
        assert_eq!(listing.changes(&bytes, "", 9), Some(Changes::default()));
        for cut in 0..bytes.len() {
            assert_eq!(listing.changes(&bytes[..cut], "", 9), None, "{cut}");
        }
        assert_eq!(
            listing.changes(&bytes[1..], "", 9),
            None,
            "of another format"
        );
    }
}
