//! What a copy reads: source paths, wildcards, include and exclude patterns. Pure.

use std::collections::HashMap;

use kiln_graph::CopyAction;
use kiln_image::view::Node;
use kiln_image::{Entry, KeyHasher, Kind, LayerPath, MergedView};
use kiln_source::pattern::{Glob, MatchInfo, PatternMatcher};

use crate::FileOpError;
use crate::mode::Chmod;

/// One path that a copy's source stands for.
#[derive(Debug)]
pub(crate) struct Source<'a> {
    /// Resolved.
    pub(crate) path: LayerPath,
    /// The last component before the resolution: what a file is called in a destination folder.
    pub(crate) name: Vec<u8>,
    /// Missing for a root without metadata of its own.
    pub(crate) node: Option<Node<'a>>,
    /// Path order; the source itself is not in it.
    pub(crate) below: Vec<Item<'a>>,
}

impl<'a> Source<'a> {
    /// The path of an item below the source.
    pub(crate) fn relative(&self, item: &Item<'a>) -> &'a [u8] {
        &item.node.entry.path.as_bytes()[prefix(&self.path)..]
    }

    pub(crate) fn is_dir(&self) -> bool {
        self.node.is_none_or(|node| node.entry.is_dir())
    }
}

/// How much of a path below a folder is the folder's.
fn prefix(folder: &LayerPath) -> usize {
    match folder.as_bytes().len() {
        0 => 0,
        length => length + 1,
    }
}

/// Something below a source that is a folder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item<'a> {
    pub(crate) node: Node<'a>,
    /// It is not selected itself, but something below it is.
    pub(crate) only_parent: bool,
}

/// Lists what a copy reads. Parents that are copied only because something below them is are part of it.
///
/// # Errors
/// A source that is not there, or a pattern that is not well formed.
pub fn selection<'a>(
    action: &CopyAction,
    tree: &'a MergedView,
) -> Result<Vec<&'a Entry>, FileOpError> {
    let mut selected = Vec::new();
    for source in sources(action, tree)? {
        selected.extend(source.node.map(|node| node.entry));
        selected.extend(source.below.iter().map(|item| item.node.entry));
    }
    Ok(selected)
}

/// Adds what a copy reads to a key: names relative to the source, kinds, modes and owners as far as the copy keeps
/// them, link targets, which files are one, attributes, content. Not times.
///
/// # Errors
/// As [`selection`].
pub fn selection_key(
    action: &CopyAction,
    tree: &MergedView,
    hasher: &mut KeyHasher,
) -> Result<(), FileOpError> {
    let keeps_mode = keeps_mode(action)?;
    let add = |entry: &Entry, hasher: &mut KeyHasher| {
        // Its path has its own part, and copying it would be most of the work.
        let mut entry = Entry {
            path: LayerPath::root(),
            kind: entry.kind.clone(),
            xattrs: entry.xattrs.clone(),
            ..*entry
        };
        if let Kind::Dir { opaque, implied } = &mut entry.kind {
            // How the tree is made of layers does not matter.
            (*opaque, *implied) = (false, false);
        }
        if !keeps_mode && !matches!(entry.kind, Kind::Symlink(_)) {
            entry.mode = 0;
        }
        if action.owner.is_some() {
            (entry.uid, entry.gid) = (0, 0);
        }
        entry.hash_into(hasher);
    };
    for source in sources(action, tree)? {
        let is_dir = source.is_dir();
        hasher.part(
            "source",
            if is_dir && action.dir_copy_contents {
                b""
            } else {
                &source.name
            },
        );
        // Of a folder whose contents are copied, nothing is read but that it is one.
        if let Some(node) = source
            .node
            .filter(|_| !(is_dir && action.dir_copy_contents))
        {
            add(node.entry, hasher);
        }
        let mut groups: HashMap<(usize, u32), u64> = HashMap::new();
        for item in &source.below {
            hasher.part("path", source.relative(item));
            add(item.node.entry, hasher);
            if let Some(group) = item.node.entry.hardlink {
                let next = groups.len() as u64;
                let number = groups.entry((item.node.layer, group)).or_insert(next);
                hasher.part("hardlink", &number.to_le_bytes());
            }
        }
    }
    Ok(())
}

/// Whether the modes of the files themselves have a say in what they become.
pub(crate) fn keeps_mode(action: &CopyAction) -> Result<bool, FileOpError> {
    Ok(match &action.mode {
        Some(mode) => !matches!(Chmod::parse(mode)?, Chmod::Octal(_)),
        None => true,
    })
}

/// Finds the sources of a copy, in the order in which they are copied, with what is selected below them.
pub(crate) fn sources<'a>(
    action: &CopyAction,
    tree: &'a MergedView,
) -> Result<Vec<Source<'a>>, FileOpError> {
    let filter = Filter::new(action)?;
    let mut found = Vec::new();
    for path in matches(action, tree)? {
        let resolved = tree.resolve(path.as_bytes(), action.follow_symlinks)?;
        let node = tree.get(&resolved);
        if node.is_none() && !resolved.is_root() {
            return Err(FileOpError::not_found(&path.to_string(), tree));
        }
        let below = match node {
            Some(node) if !node.entry.is_dir() => Vec::new(),
            _ => filter.select(tree, &resolved),
        };
        if let Some(required) = filter.required(action) {
            let whole = resolved.join(required);
            if !whole.is_root() && tree.get(&whole).is_none() {
                return Err(FileOpError::not_found(&whole.to_string(), tree));
            }
        }
        found.push(Source {
            path: resolved,
            name: path.name().to_vec(),
            node,
            below,
        });
    }
    Ok(found)
}

/// The paths that `src` stands for. Links in front of the first wildcard are resolved, others not.
fn matches(action: &CopyAction, tree: &MergedView) -> Result<Vec<LayerPath>, FileOpError> {
    let path = LayerPath::clean(&action.src);
    if !action.allow_wildcard {
        return Ok(vec![path]);
    }
    let mut globs = Vec::new();
    for name in path.components() {
        globs.push(Glob::new(&String::from_utf8_lossy(name))?);
    }
    let plain = globs
        .iter()
        .take_while(|glob| glob.literal().is_some())
        .count();
    let mut start = LayerPath::root();
    for glob in &globs[..plain] {
        start = start.join(glob.literal().unwrap_or_default());
    }
    let patterns = &globs[plain..];
    if patterns.is_empty() {
        return Ok(vec![start]);
    }
    let folder = tree.resolve(start.as_bytes(), action.follow_symlinks)?;
    if !folder.is_root() && tree.get(&folder).is_none() {
        return Err(FileOpError::not_found(&start.to_string(), tree));
    }
    let mut found = Vec::new();
    descend(tree, &folder, patterns, &mut found);
    if found.is_empty() && !action.allow_empty_wildcard {
        return Err(FileOpError::NoMatch {
            pattern: action.src.clone(),
        });
    }
    Ok(found)
}

fn descend(tree: &MergedView, folder: &LayerPath, patterns: &[Glob], found: &mut Vec<LayerPath>) {
    let Some((first, rest)) = patterns.split_first() else {
        return;
    };
    if let Some(name) = first.literal() {
        let path = folder.join(name);
        match tree.get(&path) {
            Some(_) if rest.is_empty() => found.push(path),
            Some(node) if node.entry.is_dir() => descend(tree, &path, rest, found),
            _ => {}
        }
        return;
    }
    for (name, node) in tree
        .children(folder)
        .filter(|(name, _)| first.matches(name))
    {
        if rest.is_empty() {
            found.push(folder.child(name));
        } else if node.entry.is_dir() {
            descend(tree, &folder.child(name), rest, found);
        }
    }
}

/// The include and exclude patterns of a copy, relative to its source.
struct Filter {
    include: Option<PatternMatcher>,
    exclude: Option<PatternMatcher>,
}

/// A folder on the way to what is looked at.
struct Open<'a> {
    item: Item<'a>,
    taken: bool,
    include: MatchInfo,
    exclude: MatchInfo,
}

impl Filter {
    fn new(action: &CopyAction) -> Result<Self, FileOpError> {
        let compile = |what, patterns: &[String]| {
            let matcher = PatternMatcher::new(patterns)
                .map_err(|source| FileOpError::Filter { what, source })?;
            Ok::<_, FileOpError>((!matcher.is_empty()).then_some(matcher))
        };
        Ok(Self {
            include: compile("include", &action.include_patterns)?,
            exclude: compile("exclude", &action.exclude_patterns)?,
        })
    }

    /// The path that `--parents` asks for if it holds no wildcard: it must be there.
    fn required<'p>(&self, action: &'p CopyAction) -> Option<&'p str> {
        let [pattern] = &*action.include_patterns else {
            return None;
        };
        let plain = |path: &str| {
            path.split('/')
                .all(|name| Glob::new(name).is_ok_and(|glob| glob.literal().is_some()))
        };
        (self.include.is_some()
            && action.parents_pivot.is_some()
            && plain(&action.src)
            && plain(pattern))
        .then_some(&**pattern)
    }

    /// What is selected below `source`, each with the parents that are copied because of it.
    fn select<'a>(&self, tree: &'a MergedView, source: &LayerPath) -> Vec<Item<'a>> {
        let prefix = prefix(source);
        let mut selected = Vec::new();
        let mut open: Vec<Open<'a>> = Vec::new();
        let mut skip: Option<&'a LayerPath> = None;
        for (_, node) in tree.walk(source) {
            let path = &node.entry.path;
            if path == source || skip.is_some_and(|folder| path.below(folder).is_some()) {
                continue;
            }
            skip = None;
            let item = Item {
                node,
                only_parent: false,
            };
            let relative = &path.as_bytes()[prefix..];
            if self.include.is_none() && self.exclude.is_none() {
                selected.push(item);
                continue;
            }
            while open
                .last()
                .is_some_and(|folder| path.below(&folder.item.node.entry.path).is_none())
            {
                open.pop();
            }
            let above = open.last();
            let (included, include) = match &self.include {
                Some(matcher) => above.map_or_else(
                    || matcher.matches_using_parent(relative, &MatchInfo::default()),
                    |above| matcher.matches_using_parent(relative, &above.include),
                ),
                None => (true, MatchInfo::default()),
            };
            let (excluded, exclude) = match &self.exclude {
                Some(matcher) => above.map_or_else(
                    || matcher.matches_using_parent(relative, &MatchInfo::default()),
                    |above| matcher.matches_using_parent(relative, &above.exclude),
                ),
                None => (false, MatchInfo::default()),
            };
            let taken = included && !excluded;
            if taken {
                for folder in open.iter_mut().filter(|folder| !folder.taken) {
                    folder.taken = true;
                    selected.push(Item {
                        only_parent: true,
                        ..folder.item
                    });
                }
                selected.push(item);
            }
            if !node.entry.is_dir() {
                continue;
            }
            let hopeless = match (&self.include, &self.exclude) {
                (_, Some(matcher)) if excluded => !matcher.may_take_back_below(relative),
                (Some(matcher), _) if !included => !matcher.may_match_below(relative),
                _ => false,
            };
            if hopeless {
                skip = Some(path);
            } else {
                open.push(Open {
                    item,
                    taken,
                    include,
                    exclude,
                });
            }
        }
        selected
    }
}
