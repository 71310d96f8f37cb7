//! Several layers seen as one tree.

use std::collections::HashMap;
use std::sync::Arc;

use crate::{Entry, Kind, LayerIndex, LayerPath};

/// The most symbolic links that one resolution follows, as in containerd and moby; the kernel stops at 40.
const MAX_LINKS: usize = 255;

/// The tree that a stack of layers shows: whiteouts, opaque folders and implied folders applied.
///
/// It is one list in path order of what is visible, each item a layer's number and an entry's position in it, 8 bytes:
/// what lies below a folder follows it directly, so that a look-up, a folder's end and the place where a new layer's
/// entries go are binary searches, and everything between is copied in runs.
///
/// Every entry of a layer must have its parent folder as an entry, too (the root apart).
#[derive(Debug, Clone, Default)]
pub struct MergedView {
    layers: Vec<Arc<LayerIndex>>,
    visible: Vec<At>,
}

#[derive(Debug, Clone, Copy)]
struct At {
    layer: u32,
    entry: u32,
}

/// A path of a [`MergedView`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node<'a> {
    /// With its full path. Of an implied folder that a lower layer has, the lower layer's entry.
    pub entry: &'a Entry,
    /// The layer that holds content and metadata, counted from 0, lowest first.
    pub layer: usize,
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    /// More than 255 symbolic links, most likely a circle.
    #[error("{0}: too many levels of symbolic links")]
    Loop(LayerPath),
    /// Something in the middle of the path is neither a folder nor a link to one.
    #[error("{0} is not a directory")]
    NotADirectory(LayerPath),
}

impl MergedView {
    /// Stacks layers, the lowest first.
    pub fn new<I: IntoIterator<Item = Arc<LayerIndex>>>(layers: I) -> Self {
        let mut view = Self::default();
        for layer in layers {
            view.push(layer);
        }
        view
    }

    /// Stacks one more layer on top.
    pub fn push(&mut self, index: Arc<LayerIndex>) {
        let layer = self.layers.len() as u32;
        let lower = std::mem::take(&mut self.visible);
        let mut merged = Vec::with_capacity(lower.len() + index.entries().len());
        let mut next = 0;
        for (position, entry) in index.entries().iter().enumerate() {
            let until = gallop(&lower, next, |at| self.at(at).path < entry.path);
            merged.extend_from_slice(&lower[next..until]);
            next = until;
            let beneath = lower
                .get(next)
                .copied()
                .filter(|&at| self.at(at).path == entry.path);
            let here = At {
                layer,
                entry: position as u32,
            };
            match entry.kind {
                Kind::Dir { implied: true, .. }
                    if beneath.is_some_and(|at| self.at(at).is_dir()) =>
                {
                    merged.extend(beneath);
                }
                Kind::Whiteout => {}
                _ => merged.push(here),
            }
            if matches!(entry.kind, Kind::Dir { opaque: false, .. }) {
                next += usize::from(beneath.is_some());
            } else {
                next = gallop(&lower, next, |at| {
                    self.at(at).path.below(&entry.path).is_some()
                });
            }
        }
        merged.extend_from_slice(&lower[next..]);
        self.visible = merged;
        self.layers.push(index);
    }

    /// The layers, lowest first.
    pub fn layers(&self) -> &[Arc<LayerIndex>] {
        &self.layers
    }

    /// How many paths are visible.
    pub fn len(&self) -> usize {
        self.visible.len()
    }

    /// Whether nothing is visible.
    pub fn is_empty(&self) -> bool {
        self.visible.is_empty()
    }

    /// Finds a path as it stands: neither its last component nor its parents are followed. The root is found only if a
    /// layer sets its metadata.
    pub fn get(&self, path: &LayerPath) -> Option<Node<'_>> {
        let position = self
            .visible
            .binary_search_by(|&at| self.at(at).path.cmp(path))
            .ok()?;
        Some(self.node(self.visible[position]))
    }

    /// Whether a path, as it stands, is a folder; the root always is.
    pub fn is_dir(&self, path: &LayerPath) -> bool {
        path.is_root() || self.get(path).is_some_and(|node| node.entry.is_dir())
    }

    /// Follows symbolic links as a process whose root folder this is would. The last component is followed if
    /// `follow_last`, or if a slash stands behind it. What does not exist has no links: the result is the path that it
    /// would have, `..` in it taken lexically.
    ///
    /// # Errors
    /// Too many links; something other than a folder where the path goes on.
    pub fn resolve(&self, path: &[u8], follow_last: bool) -> Result<LayerPath, ResolveError> {
        let mut resolved = LayerPath::root();
        let mut links = 0;
        // What is still to be walked, the next on top. Empty components tell that a slash stands at the end.
        let mut rest: Vec<&[u8]> = path.split(|&byte| byte == b'/').rev().collect();
        while let Some(name) = rest.pop() {
            match name {
                b"" | b"." => continue,
                b".." => {
                    resolved = resolved.parent().unwrap_or_default();
                    continue;
                }
                _ => resolved = resolved.child(name),
            }
            let Some(node) = self.get(&resolved) else {
                continue;
            };
            match &node.entry.kind {
                Kind::Dir { .. } => {}
                Kind::Symlink(target) if follow_last || !rest.is_empty() => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(ResolveError::Loop(LayerPath::clean(path)));
                    }
                    resolved = if target.first() == Some(&b'/') {
                        LayerPath::root()
                    } else {
                        resolved.parent().unwrap_or_default()
                    };
                    rest.extend(target.split(|&byte| byte == b'/').rev());
                }
                _ if rest.iter().any(|name| !name.is_empty()) => {
                    return Err(ResolveError::NotADirectory(resolved));
                }
                _ => {}
            }
        }
        Ok(resolved)
    }

    /// What lies directly in a folder, by name.
    pub fn children<'a>(
        &'a self,
        dir: &LayerPath,
    ) -> impl Iterator<Item = (&'a [u8], Node<'a>)> + use<'a> {
        let range = self.range(dir);
        let skip_itself = usize::from(range.first().is_some_and(|&at| self.at(at).path == *dir));
        let prefix = if dir.is_root() {
            0
        } else {
            dir.as_bytes().len() + 1
        };
        let mut rest = &range[skip_itself.min(range.len())..];
        std::iter::from_fn(move || {
            let (&first, others) = rest.split_first()?;
            let node = self.node(first);
            let below = if node.entry.is_dir() {
                gallop(others, 0, |at| {
                    self.at(at).path.below(&node.entry.path).is_some()
                })
            } else {
                0
            };
            rest = &others[below..];
            Some((&node.entry.path.as_bytes()[prefix..], node))
        })
    }

    /// A path and everything below it, in path order; nothing where the path does not exist.
    pub fn walk<'a>(
        &'a self,
        from: &LayerPath,
    ) -> impl Iterator<Item = (LayerPath, Node<'a>)> + use<'a> {
        self.range(from).iter().map(|&at| {
            let node = self.node(at);
            (node.entry.path.clone(), node)
        })
    }

    /// All that is visible but the root as one layer that has nothing below it, and for each of its entries the number of
    /// the layer that it comes from.
    pub fn flattened(&self) -> (LayerIndex, Vec<usize>) {
        let mut groups: HashMap<(u32, u32), u32> = HashMap::new();
        let visible = self
            .visible
            .iter()
            .filter(|&&at| !self.at(at).path.is_root());
        let (entries, layers): (Vec<_>, Vec<_>) = visible
            .map(|&at| {
                let mut entry = self.at(at).clone();
                if let Kind::Dir { opaque, implied } = &mut entry.kind {
                    (*opaque, *implied) = (false, false);
                }
                if let Some(group) = &mut entry.hardlink {
                    // Each layer counts its own.
                    let next = groups.len() as u32;
                    *group = *groups.entry((at.layer, *group)).or_insert(next);
                }
                (entry, at.layer as usize)
            })
            .unzip();
        (LayerIndex::new(entries), layers)
    }

    fn at(&self, at: At) -> &Entry {
        &self.layers[at.layer as usize].entries()[at.entry as usize]
    }

    fn node(&self, at: At) -> Node<'_> {
        Node {
            entry: self.at(at),
            layer: at.layer as usize,
        }
    }

    /// The folder, if it is there, and what is below it.
    fn range(&self, dir: &LayerPath) -> &[At] {
        let start = self.visible.partition_point(|&at| self.at(at).path < *dir);
        let end = if dir.is_root() {
            self.visible.len()
        } else {
            gallop(&self.visible, start, |at| {
                self.at(at).path.below(dir).is_some()
            })
        };
        &self.visible[start..end]
    }
}

/// The first position from `start` on where `before` no longer holds, found in steps that double: cheap when it is
/// near, logarithmic when it is far.
fn gallop(list: &[At], start: usize, before: impl Fn(At) -> bool) -> usize {
    let mut low = start;
    let mut step = 1;
    while low + step <= list.len() && before(list[low + step - 1]) {
        low += step;
        step *= 2;
    }
    let high = (low + step - 1).min(list.len());
    low + list[low..high].partition_point(|&at| before(at))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{FileDigest, Xattrs};

    fn entry(path: &str, kind: Kind) -> Entry {
        Entry {
            kind,
            ..Entry::dir(LayerPath::clean(path), 0o755, 0, 0, (0, 0))
        }
    }

    fn dir(opaque: bool, implied: bool) -> Kind {
        Kind::Dir { opaque, implied }
    }

    fn file(fill: u8) -> Kind {
        Kind::File {
            size: 1,
            digest: FileDigest::new([fill; 32]),
        }
    }

    fn link(target: &str) -> Kind {
        Kind::Symlink(target.as_bytes().to_vec())
    }

    fn layer(entries: &[(&str, Kind)]) -> Arc<LayerIndex> {
        Arc::new(LayerIndex::new(
            entries
                .iter()
                .map(|(path, kind)| entry(path, kind.clone()))
                .collect(),
        ))
    }

    fn listing(view: &MergedView) -> String {
        let paths = view
            .walk(&LayerPath::root())
            .map(|(path, node)| format!("{path}@{}", node.layer));
        paths.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn stacked() {
        let base = || {
            layer(&[
                ("a", dir(false, false)),
                ("a/b", file(1)),
                ("a/c", dir(false, false)),
                ("a/c/d", file(2)),
                ("a-x", file(3)),
                ("e", file(4)),
            ])
        };
        let cases = [
            (vec![], "/a@0 /a/b@0 /a/c@0 /a/c/d@0 /a-x@0 /e@0"),
            (
                vec![("a", dir(false, true)), ("a/b", file(9))],
                "/a@0 /a/b@1 /a/c@0 /a/c/d@0 /a-x@0 /e@0",
            ),
            (
                vec![("a", dir(false, false))],
                "/a@1 /a/b@0 /a/c@0 /a/c/d@0 /a-x@0 /e@0",
            ),
            (
                vec![("a", dir(true, false)), ("a/n", file(9))],
                "/a@1 /a/n@1 /a-x@0 /e@0",
            ),
            (vec![("a", dir(true, true))], "/a@0 /a-x@0 /e@0"),
            (
                vec![("a", Kind::Whiteout), ("zz", Kind::Whiteout)],
                "/a-x@0 /e@0",
            ),
            (vec![("a", file(9))], "/a@1 /a-x@0 /e@0"),
            (
                vec![("e", dir(false, true)), ("e/f", file(9))],
                "/a@0 /a/b@0 /a/c@0 /a/c/d@0 /a-x@0 /e@1 /e/f@1",
            ),
            (vec![("", dir(true, false)), ("q", file(9))], "/@1 /q@1"),
        ];
        for (upper, expected) in cases {
            assert_eq!(
                listing(&MergedView::new([base(), layer(&upper)])),
                expected,
                "{upper:?}"
            );
        }
        let again = [
            base(),
            layer(&[("a", Kind::Whiteout)]),
            layer(&[("a", dir(false, true)), ("a/new", file(9))]),
        ];
        assert_eq!(
            listing(&MergedView::new(again)),
            "/a@2 /a/new@2 /a-x@0 /e@0"
        );
        assert_eq!(
            listing(&MergedView::new([layer(&[
                ("a", Kind::Whiteout),
                ("b", file(1))
            ])])),
            "/b@0"
        );
        let view = MergedView::new([base()]);
        assert_eq!(view.walk(&LayerPath::clean("a/c")).count(), 2);
        assert_eq!(view.walk(&LayerPath::clean("nothing")).count(), 0);
        assert!(view.is_dir(&LayerPath::root()) && view.get(&LayerPath::root()).is_none());
    }

    #[test]
    fn resolved() {
        let view = MergedView::new([layer(&[
            ("bin", link("usr/bin")),
            ("usr", dir(false, false)),
            ("usr/bin", dir(false, false)),
            ("usr/bin/sh", link("/etc/alternatives/sh")),
            ("usr/up", link("../../../..")),
            ("etc", dir(false, false)),
            ("etc/alternatives", dir(false, false)),
            ("etc/alternatives/sh", link("../../bin/dash")),
            ("usr/bin/dash", file(1)),
            ("loop", link("/loop")),
            ("gone", link("x/y")),
            ("self", link(".")),
        ])]);
        let cases = [
            ("", true, "/"),
            ("/..", true, "/"),
            ("bin", false, "/bin"),
            ("bin", true, "/usr/bin"),
            ("bin/", false, "/usr/bin"),
            ("bin/.", false, "/usr/bin"),
            ("/bin/sh", true, "/usr/bin/dash"),
            ("bin/sh", false, "/usr/bin/sh"),
            ("bin/../x", true, "/usr/x"),
            ("usr/up/etc", true, "/etc"),
            ("gone", true, "/x/y"),
            ("gone/z/../w", true, "/x/y/w"),
            ("no/such/../bin", true, "/no/bin"),
            ("no/../bin", true, "/usr/bin"),
            ("self/self/self/bin", true, "/usr/bin"),
            ("loop", false, "/loop"),
            ("usr/bin/dash/", true, "/usr/bin/dash"),
        ];
        for (path, follow, expected) in cases {
            assert_eq!(
                view.resolve(path.as_bytes(), follow).unwrap().to_string(),
                expected,
                "{path}"
            );
        }
        assert_eq!(
            view.resolve(b"loop/x", false),
            Err(ResolveError::Loop(LayerPath::clean("loop/x")))
        );
        for path in ["bin/dash/x", "bin/sh/..", "bin/dash/."] {
            let wrong = ResolveError::NotADirectory(LayerPath::clean("usr/bin/dash"));
            assert_eq!(view.resolve(path.as_bytes(), true), Err(wrong), "{path}");
        }
    }

    /// What a layer does, entry by entry, in the plainest way.
    fn apply(model: &mut BTreeMap<LayerPath, (usize, Entry)>, number: usize, index: &LayerIndex) {
        for entry in index.entries() {
            let beneath = model.get(&entry.path).cloned();
            let keep_below = matches!(entry.kind, Kind::Dir { opaque: false, .. });
            // Only what lower layers brought is hidden: in path order, this layer's own entries below come later.
            model.retain(|path, _| {
                path.below(&entry.path)
                    .is_none_or(|rest| keep_below && !rest.is_empty())
            });
            match (&entry.kind, beneath) {
                (Kind::Whiteout, _) => {}
                (Kind::Dir { implied: true, .. }, Some((from, lower))) if lower.is_dir() => {
                    model.insert(entry.path.clone(), (from, lower));
                }
                _ => {
                    model.insert(entry.path.clone(), (number, entry.clone()));
                }
            }
        }
    }

    fn any_layer() -> impl Strategy<Value = Arc<LayerIndex>> {
        let kind = prop_oneof![
            3 => (any::<bool>(), any::<bool>()).prop_map(|(opaque, implied)| dir(opaque, implied)),
            3 => any::<u8>().prop_map(file),
            1 => Just(link("a")),
            2 => Just(Kind::Whiteout),
        ];
        let path = "[ab](-|)(/[ab](-|)){0,3}";
        proptest::collection::vec((path, kind), 0..14).prop_map(|list| {
            let mut tree: BTreeMap<LayerPath, Kind> = BTreeMap::new();
            for (path, kind) in list {
                let path = LayerPath::clean(path);
                let parents: Vec<_> =
                    std::iter::successors(path.parent(), LayerPath::parent).collect();
                let blocked = |parent: &LayerPath| {
                    tree.get(parent)
                        .is_some_and(|kind| !matches!(kind, Kind::Dir { .. }))
                };
                let is_parent = tree
                    .keys()
                    .any(|known| known != &path && known.below(&path).is_some());
                if parents.iter().any(blocked) || is_parent && !matches!(kind, Kind::Dir { .. }) {
                    continue;
                }
                for parent in parents.into_iter().filter(|parent| !parent.is_root()) {
                    tree.entry(parent).or_insert(dir(false, true));
                }
                tree.insert(path, kind);
            }
            let entry = |(path, kind)| Entry {
                kind,
                ..Entry::dir(path, 0o755, 0, 0, (0, 0))
            };
            Arc::new(LayerIndex::new(tree.into_iter().map(entry).collect()))
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]
        #[test]
        fn same_as_a_plain_model(layers in proptest::collection::vec(any_layer(), 0..6)) {
            let view = MergedView::new(layers.iter().cloned());
            let mut model = BTreeMap::new();
            for (number, index) in layers.iter().enumerate() {
                apply(&mut model, number, index);
            }
            let walked: Vec<_> = view.walk(&LayerPath::root()).map(|(path, node)| (path, (node.layer, node.entry.clone()))).collect();
            prop_assert_eq!(&walked, &model.clone().into_iter().collect::<Vec<_>>());
            for dir in model.keys().cloned().chain([LayerPath::root(), LayerPath::clean("none")]) {
                let names: Vec<_> = view.children(&dir).map(|(name, _)| name.to_vec()).collect();
                let expected: Vec<_> = model.keys().filter(|path| path.parent().as_ref() == Some(&dir)).map(|path| path.name().to_vec()).collect();
                prop_assert_eq!(names, expected);
                let below: Vec<_> = view.walk(&dir).map(|(path, _)| path).collect();
                prop_assert_eq!(below, model.keys().filter(|path| path.below(&dir).is_some()).cloned().collect::<Vec<_>>());
                prop_assert_eq!(view.get(&dir).map(|node| node.layer), model.get(&dir).map(|(layer, _)| *layer));
            }
        }
    }

    /// 200,000 files under 30 small layers: looks for accidental quadratic work, with a wide margin.
    #[test]
    fn large_trees() {
        let folder = |at: u32| LayerPath::clean(format!("usr/share/some-package-{:04}", at / 100));
        let mut entries = vec![
            entry("usr", dir(false, false)),
            entry("usr/share", dir(false, false)),
        ];
        for at in 0..200_000 {
            if at % 100 == 0 {
                entries.push(Entry::dir(folder(at), 0o755, 0, 0, (0, 0)));
            }
            let path = folder(at).child(format!("file-{at:06}"));
            entries.push(Entry {
                kind: file(1),
                xattrs: Xattrs::new(),
                ..Entry::dir(path, 0o644, 0, 0, (0, 0))
            });
        }
        let base = Arc::new(LayerIndex::new(entries));
        let small = layer(&[
            ("usr", dir(false, true)),
            ("usr/x", file(1)),
            ("usr/share", dir(false, true)),
            ("usr/share/some-package-0500", Kind::Whiteout),
        ]);
        let start = std::time::Instant::now();
        let view = MergedView::new(std::iter::once(base).chain(std::iter::repeat_n(small, 30)));
        assert_eq!(view.len(), 202_003 - 101);
        assert_eq!(view.children(&LayerPath::clean("usr/share")).count(), 1999);
        assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
    }
}
