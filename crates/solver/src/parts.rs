//! The named parts that a cache key is the hash of. They are stored with the record, so that a miss can be explained.

use kiln_image::{Key, KeyHasher};

/// A list of named values, hashed with every name and value framed by its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    kind: &'static str,
    version: u32,
    named: Vec<(String, Vec<u8>)>,
}

impl Parts {
    /// Starts a list for a kind of operation; `version` is raised when the operation's meaning changes, so that what an
    /// older Kiln recorded misses.
    pub fn new(kind: &'static str, version: u32) -> Self {
        Self {
            kind,
            version,
            named: Vec::new(),
        }
    }

    /// Adds a part. Parts are not sorted: their order is part of the key.
    pub fn add(&mut self, name: impl Into<String>, value: impl AsRef<[u8]>) -> &mut Self {
        self.named.push((name.into(), value.as_ref().to_vec()));
        self
    }

    /// The key of all parts.
    pub fn key(&self) -> Key {
        let mut hasher = KeyHasher::new(self.kind, self.version);
        for (name, value) in &self.named {
            hasher.part(name, value);
        }
        hasher.finish()
    }

    /// The parts, in order.
    pub fn into_inner(self) -> Vec<(String, Vec<u8>)> {
        self.named
    }

    /// The parts, in order.
    pub fn as_slice(&self) -> &[(String, Vec<u8>)] {
        &self.named
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cannot_run_into_each_other() {
        let key = |parts: &[(&str, &str)]| {
            let mut list = Parts::new("test", 1);
            for (name, value) in parts {
                list.add(*name, value);
            }
            list.key()
        };
        let base = key(&[("a", "bc")]);
        for other in [
            &[("ab", "c")][..],
            &[("a", "b"), ("c", "")],
            &[("a", "b"), ("", "c")],
            &[("a", "bc"), ("", "")],
        ] {
            assert_ne!(base, key(other), "{other:?}");
        }
        assert_ne!(
            base,
            Parts::new("test", 2).add("a", "bc").key(),
            "the version counts"
        );
        assert_ne!(
            base,
            Parts::new("tesu", 1).add("a", "bc").key(),
            "the kind counts"
        );
        assert_eq!(base, key(&[("a", "bc")]));
    }
}
