//! Paths inside a layer.

use std::borrow::Borrow;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A path inside a layer or a root file system: relative to the root, components joined by single slashes, no `.`, no
/// `..`, no leading or trailing slash. The root itself is the empty path. Bytes, since file names need not be UTF-8.
///
/// Ordered by component, so that everything below a folder follows the folder directly
/// (`a`, `a/b`, `a-b`; plain byte order would put `a-b` between `a` and `a/b`).
#[derive(Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Box<[u8]>")]
pub struct LayerPath(Box<[u8]>);

/// Bytes that are no clean path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a path that is not clean")]
pub struct NotClean;

/// Takes what is clean already.
impl TryFrom<Box<[u8]>> for LayerPath {
    type Error = NotClean;

    fn try_from(bytes: Box<[u8]>) -> Result<Self, NotClean> {
        let clean = |name: &[u8]| !matches!(name, b"" | b"." | b"..");
        if bytes.is_empty() || bytes.split(|&byte| byte == b'/').all(clean) {
            Ok(Self(bytes))
        } else {
            Err(NotClean)
        }
    }
}

impl LayerPath {
    /// The root.
    pub fn root() -> Self {
        Self::default()
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
        Self(kept.join(&b'/').into())
    }

    /// Whether this is the root.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes, without a leading slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The path as the operating system takes it, relative to the root; the root is the empty path.
    pub fn as_path(&self) -> &std::path::Path {
        use std::os::unix::ffi::OsStrExt;
        std::path::Path::new(std::ffi::OsStr::from_bytes(&self.0))
    }

    /// The last component; empty for the root.
    pub fn name(&self) -> &[u8] {
        match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => &self.0[slash + 1..],
            None => &self.0,
        }
    }

    /// The folder that holds this path; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|&byte| byte == b'/') {
            Some(slash) => Self(self.0[..slash].into()),
            None => Self::root(),
        })
    }

    /// This path with one more component. `name` must be a single clean component.
    #[must_use]
    pub fn child(&self, name: impl AsRef<[u8]>) -> Self {
        let name = name.as_ref();
        debug_assert!(!name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..");
        if self.is_root() {
            return Self(name.into());
        }
        let mut bytes = Vec::with_capacity(self.0.len() + 1 + name.len());
        bytes.extend_from_slice(&self.0);
        bytes.push(b'/');
        bytes.extend_from_slice(name);
        Self(bytes.into())
    }

    /// This path and another one, cleaned, below it; `..` in `rest` can climb, but never above the root.
    #[must_use]
    pub fn join(&self, rest: impl AsRef<[u8]>) -> Self {
        let mut bytes = self.0.to_vec();
        bytes.push(b'/');
        bytes.extend_from_slice(rest.as_ref());
        Self::clean(bytes)
    }

    /// The components, outermost first.
    pub fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0
            .split(|&byte| byte == b'/')
            .filter(|part| !part.is_empty())
    }

    /// What is left of this path below `folder`; the empty slice if they are equal, `None` if it is not below.
    pub fn below(&self, folder: &Self) -> Option<&[u8]> {
        if folder.is_root() {
            return Some(&self.0);
        }
        let rest = self.0.strip_prefix(&*folder.0)?;
        if rest.is_empty() {
            Some(rest)
        } else {
            rest.strip_prefix(b"/")
        }
    }
}

impl Ord for LayerPath {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // A slash sorts below every other byte: component order without splitting.
        let rank = |byte: u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
        match self.0.iter().zip(&other.0).find(|(a, b)| a != b) {
            Some((&a, &b)) => rank(a).cmp(&rank(b)),
            None => self.0.len().cmp(&other.0.len()),
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
        &self.0
    }
}

/// Shown as an absolute path, invalid UTF-8 replaced.
impl fmt::Display for LayerPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "/{}", String::from_utf8_lossy(&self.0))
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
