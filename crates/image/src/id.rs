//! The identities that Kiln tells apart. Each is a type of its own, so that none can stand for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What is wrong with a text that should have been an identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid {what} {text:?}: {expected}")]
pub struct IdError {
    what: &'static str,
    text: String,
    expected: &'static str,
}

fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(DIGITS[usize::from(byte >> 4)] as char);
        text.push(DIGITS[usize::from(byte & 15)] as char);
    }
    text
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let text = text.as_bytes();
    if text.len() != N * 2 {
        return None;
    }
    let mut bytes = [0; N];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = digit(text[at * 2])? << 4 | digit(text[at * 2 + 1])?;
    }
    Some(bytes)
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident, $len:literal, $prefix:literal, $what:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; $len]);

        impl $name {
            /// Wraps the raw bytes.
            pub const fn new(bytes: [u8; $len]) -> Self {
                Self(bytes)
            }

            /// The raw bytes.
            pub const fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }

            /// The bytes as lower-case hexadecimal digits, without any prefix.
            pub fn hex(&self) -> String {
                hex(&self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                out.write_str($prefix)?;
                out.write_str(&self.hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(out, "{}({self})", stringify!($name))
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                text.strip_prefix($prefix)
                    .and_then(unhex)
                    .map(Self)
                    .ok_or_else(|| IdError { what: $what, text: text.to_owned(), expected: $expected })
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                if to.is_human_readable() { to.collect_str(self) } else { self.0.serialize(to) }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                if from.is_human_readable() {
                    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
                } else {
                    <[u8; $len]>::deserialize(from).map(Self)
                }
            }
        }
    };
}

identity!(
    /// The sha256 of a blob as OCI names it: a manifest, a config, a compressed layer
    /// (OCI image spec, descriptor.md, "Digests").
    Digest, 32, "sha256:", "digest", "expected sha256: and 64 lower-case hexadecimal digits"
);
identity!(
    /// The sha256 of a layer's uncompressed tar (OCI image spec, config.md, `rootfs.diff_ids`).
    DiffId, 32, "sha256:", "diff id", "expected sha256: and 64 lower-case hexadecimal digits"
);
identity!(
    /// What a layer holds, without modification times: two layers with one content id are the same outcome of a step.
    ContentId, 32, "", "content id", "expected 64 lower-case hexadecimal digits"
);
identity!(
    /// The blake3 of a regular file's bytes. Private to the store; never in anything that leaves the machine.
    FileDigest, 32, "", "file digest", "expected 64 lower-case hexadecimal digits"
);
identity!(
    /// A cache key: the hash of a step's framed, named parts.
    Key, 32, "", "cache key", "expected 64 lower-case hexadecimal digits"
);
identity!(
    /// The random local name of a layer in one store.
    LayerId, 16, "", "layer id", "expected 32 lower-case hexadecimal digits"
);

/// Hashes named parts into a [`Key`], each framed by its name's and its value's length, so that no two lists of parts
/// can run together into the same bytes.
#[derive(Clone)]
pub struct KeyHasher(blake3::Hasher);

impl KeyHasher {
    /// Starts a key of the given kind; `version` is the kind's semantics version, raised when a fixed bug must miss.
    pub fn new(kind: &str, version: u32) -> Self {
        let mut hasher = Self(blake3::Hasher::new());
        hasher.part(kind, &version.to_le_bytes());
        hasher
    }

    /// Adds one named part.
    pub fn part(&mut self, name: &str, value: &[u8]) -> &mut Self {
        self.0.update(&(name.len() as u64).to_le_bytes());
        self.0.update(name.as_bytes());
        self.0.update(&(value.len() as u64).to_le_bytes());
        self.0.update(value);
        self
    }

    /// Ends the list of parts.
    pub fn finish(&self) -> Key {
        Key(*self.0.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn texts() {
        let digest = Digest::new([0xab; 32]);
        let text = format!("sha256:{}", "ab".repeat(32));
        assert_eq!(
            (digest.to_string(), text.parse::<Digest>().unwrap()),
            (text.clone(), digest)
        );
        assert_eq!(
            serde_json::to_string(&digest).unwrap(),
            format!("\"{text}\"")
        );
        assert_eq!(postcard::to_stdvec(&digest).unwrap(), [0xab; 32]);
        for wrong in [
            "",
            "sha256:",
            &text[..70],
            &text.to_uppercase(),
            &text[7..],
            &format!("{text}0"),
            &text.replace("ab", "xy"),
        ] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
        assert!("é".repeat(16).parse::<LayerId>().is_err());
    }

    type Parts = Vec<(String, Vec<u8>)>;

    fn key(kind: &str, parts: &Parts) -> Key {
        let mut hasher = KeyHasher::new(kind, 1);
        for (name, value) in parts {
            hasher.part(name, value);
        }
        hasher.finish()
    }

    fn any_parts() -> impl Strategy<Value = Parts> {
        proptest::collection::vec(
            ("[ab]{0,2}", proptest::collection::vec(b'a'..=b'b', 0..3)),
            0..4,
        )
    }

    proptest! {
        /// Parts over two letters: were they not framed, many of these lists would run together.
        #[test]
        fn equal_keys_have_equal_parts(a in any_parts(), b in any_parts()) {
            prop_assert_eq!(key("k", &a) == key("k", &b), a == b);
        }
    }

    #[test]
    fn kind_and_version_count() {
        let finish = |kind, version| KeyHasher::new(kind, version).finish();
        assert_ne!(finish("a", 1), finish("a", 2));
        assert_ne!(finish("a", 1), finish("b", 1));
        let joined = key("k", &vec![("a".into(), b"b".to_vec())]);
        assert_ne!(joined, key("k", &vec![("ab".into(), Vec::new())]));
    }
}
