//! Paths inside a layer.

use std::borrow::Borrow;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::de::{self, Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// A path inside a layer or a root file system: relative to the root, components joined by single slashes, no `.`, no
/// `..`, no leading or trailing slash. The root itself is the empty path. Bytes, since file names need not be UTF-8.
///
/// Ordered by component, so that everything below a folder follows the folder directly
/// (`a`, `a/b`, `a-b`; plain byte order would put `a-b` between `a` and `a/b`).
///
/// A clone and a parent share the bytes, and so do paths that were made together: see [`Paths`].
#[derive(Clone, Default)]
pub struct LayerPath {
    /// Of this path and of its neighbours.
    shared: Arc<[u8]>,
    start: u32,
    length: u32,
}

/// Bytes that are no clean path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a path that is not clean")]
pub struct NotClean;

fn is_clean(bytes: &[u8]) -> bool {
    let clean = |name: &[u8]| !matches!(name, b"" | b"." | b"..");
    bytes.is_empty() || bytes.split(|&byte| byte == b'/').all(clean)
}

/// Paths that are made together and share one piece of memory, which large listings need. It is freed with the last of
/// them: no more should be made together than will be dropped together.
#[derive(Debug, Default)]
pub struct Paths {
    bytes: Vec<u8>,
    ends: Vec<u32>,
}

impl Paths {
    /// Adds the path of what is at `rest` below `folder`. `rest` must be clean.
    pub fn push(&mut self, folder: &LayerPath, rest: &[u8]) {
        debug_assert!(is_clean(rest));
        self.bytes.extend_from_slice(folder.as_bytes());
        if !folder.is_root() && !rest.is_empty() {
            self.bytes.push(b'/');
        }
        self.bytes.extend_from_slice(rest);
        self.ends.push(short(self.bytes.len()));
    }

    /// Adds a path that may not be one.
    ///
    /// # Errors
    /// When it is none.
    pub fn try_push(&mut self, path: &[u8]) -> Result<(), NotClean> {
        if !is_clean(path) {
            return Err(NotClean);
        }
        self.push(&LayerPath::root(), path);
        Ok(())
    }

    /// The paths, in the order in which they were added.
    pub fn finish(self) -> impl Iterator<Item = LayerPath> {
        let shared: Arc<[u8]> = self.bytes.into();
        let mut start = 0;
        self.ends.into_iter().map(move |end| {
            let length = end - start;
            LayerPath {
                shared: Arc::clone(&shared),
                start: std::mem::replace(&mut start, end),
                length,
            }
        })
    }
}

fn short(length: usize) -> u32 {
    u32::try_from(length).expect("paths have less than 4 GiB together")
}

impl LayerPath {
    /// The root.
    pub fn root() -> Self {
        Self::default()
    }

    fn alone(bytes: &[u8]) -> Self {
        Self {
            shared: bytes.into(),
            start: 0,
            length: short(bytes.len()),
        }
    }

    /// Cleans `path` lexically, as if it stood at the root: `..` never climbs above the root (Go's `path.Clean("/"+p)`).
    pub fn clean(path: impl AsRef<[u8]>) -> Self {
        let path = path.as_ref();
        let mut kept: Vec<&[u8]> = Vec::new();
        for part in path.split(|&byte| byte == b'/') {
            match part {
                b"" | b"." => {}
                b".." => {
                    kept.pop();
                }
                name => kept.push(name),
            }
        }
        Self::alone(&kept.join(&b'/'))
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.length == 0
    }

    /// The bytes, without a leading slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.shared[self.start as usize..][..self.length as usize]
    }

    /// The path as the operating system takes it, relative to the root; the root is the empty path.
    pub fn as_path(&self) -> &std::path::Path {
        use std::os::unix::ffi::OsStrExt;
        std::path::Path::new(std::ffi::OsStr::from_bytes(self.as_bytes()))
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        let bytes = self.as_bytes();
        match bytes.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => &bytes[slash + 1..],
            None => bytes,
        }
    }

    /// The folder that holds this path; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        let slash = self.as_bytes().iter().rposition(|&byte| byte == b'/');
        Some(Self {
            length: short(slash.unwrap_or(0)),
            ..self.clone()
        })
    }

    /// This path with one more component. `name` must be a single clean component.
    #[must_use]
    pub fn child(&self, name: impl AsRef<[u8]>) -> Self {
        let name = name.as_ref();
        debug_assert!(!name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..");
        if self.is_root() {
            return Self::alone(name);
        }
        Self::alone(&[self.as_bytes(), b"/", name].concat())
    }

    /// This path and another one, cleaned, below it; `..` in `rest` can climb, but never above the root.
    #[must_use]
    pub fn join(&self, rest: impl AsRef<[u8]>) -> Self {
        Self::clean([self.as_bytes(), b"/", rest.as_ref()].concat())
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.as_bytes()
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty())
    }

    /// What is left of this path below `folder`; the empty slice if they are equal, `None` if it is not below.
    pub fn below(&self, folder: &Self) -> Option<&[u8]> {
        if folder.is_root() {
            return Some(self.as_bytes());
        }
        let rest = self.as_bytes().strip_prefix(folder.as_bytes())?;
        if rest.is_empty() {
            Some(rest)
        } else {
            rest.strip_prefix(b"/")
        }
    }
}

impl PartialEq for LayerPath {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for LayerPath {}

/// As [`Borrow`] needs it.
impl Hash for LayerPath {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl Serialize for LayerPath {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.as_bytes().serialize(to)
    }
}

/// Takes only what is clean already.
impl<'de> Deserialize<'de> for LayerPath {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Bytes;

        impl<'de> Visitor<'de> for Bytes {
            type Value = LayerPath;

            fn expecting(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str("the bytes of a path")
            }

            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<LayerPath, E> {
                if is_clean(bytes) {
                    Ok(LayerPath::alone(bytes))
                } else {
                    Err(E::custom(NotClean))
                }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<LayerPath, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = list.next_element()? {
                    bytes.push(byte);
                }
                self.visit_bytes(&bytes)
            }
        }

        from.deserialize_bytes(Bytes)
    }
}

impl Ord for LayerPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // A slash sorts below every other byte: component order without splitting.
        let rank = |byte: u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
        let (own, other) = (self.as_bytes(), other.as_bytes());
        match own.iter().zip(other).find(|(a, b)| a != b) {
            Some((&a, &b)) => rank(a).cmp(&rank(b)),
            None => own.len().cmp(&other.len()),
        }
    }
}

impl PartialOrd for LayerPath {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Borrow<[u8]> for LayerPath {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

/// Shown as an absolute path, invalid UTF-8 replaced.
impl fmt::Display for LayerPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "/{}", String::from_utf8_lossy(self.as_bytes()))
    }
}

impl fmt::Debug for LayerPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn cleaned() {
        for (from, to) in [
            ("", ""),
            ("/", ""),
            ("./a", "a"),
            ("//a//b/", "a/b"),
            ("a/../b", "b"),
            ("../../a", "a"),
            ("a/./b/..", "a"),
            ("...", "..."),
        ] {
            assert_eq!(LayerPath::clean(from).as_bytes(), to.as_bytes(), "{from}");
        }
        let path = LayerPath::clean("a/b/c");
        assert_eq!(
            (path.name(), path.parent()),
            (&b"c"[..], Some(LayerPath::clean("a/b")))
        );
        assert_eq!(LayerPath::clean("a").parent(), Some(LayerPath::root()));
        assert_eq!(path.below(&LayerPath::clean("a")), Some(&b"b/c"[..]));
        assert_eq!(LayerPath::clean("a-b").below(&LayerPath::clean("a")), None);
        assert_eq!(path.join("../../x"), LayerPath::clean("a/x"));
    }

    #[test]
    fn made_together() {
        let folder = LayerPath::clean("a/b");
        let mut paths = Paths::default();
        paths.push(&folder, b"c");
        paths.push(&LayerPath::root(), b"");
        paths.push(&folder, b"");
        paths.push(&LayerPath::root(), b"d/e");
        assert!(paths.try_push(b"x/../y").is_err());
        paths.try_push(b"f").unwrap();
        let paths: Vec<_> = paths.finish().map(|path| path.to_string()).collect();
        assert_eq!(paths, ["/a/b/c", "/", "/a/b", "/d/e", "/f"]);
    }

    proptest! {
        #[test]
        fn ordered_by_component(a in "[-/.a\u{1}é]{0,10}", b in "[-/.a\u{1}é]{0,10}") {
            let (a, b) = (LayerPath::clean(a), LayerPath::clean(b));
            let by_component = a.components().cmp(b.components());
            prop_assert_eq!(a.cmp(&b), by_component);
            prop_assert_eq!(a == b, by_component.is_eq());
            if let Some(parent) = a.parent() {
                prop_assert_eq!(parent.join(a.name()), a.clone());
                prop_assert!(parent < a);
            }
        }
    }
}
