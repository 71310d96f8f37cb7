//! What a remote cache says: which keys lead to which layers.
//!
//! It is a document of `BuildKit`'s media type, so that registries and other builders take it for what it is. Kiln's
//! keys mean nothing to `BuildKit` and the other way round: Kiln's own part stands beside `BuildKit`'s records, of which
//! Kiln writes none. There are only hashes in it: no command, no variable, no name.

use std::collections::BTreeSet;

use jiff::Timestamp;
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::{ContentId, Descriptor, DiffId, Key};

/// The media type of the document.
pub const CACHE_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";
/// Where the config of an image has the records of its own steps.
pub const INLINE: &str = "kiln.cache.v0";
/// Where `BuildKit` puts its own.
pub const BUILDKIT_INLINE: &str = "moby.buildkit.cache.v0";

/// The form of [`KilnRecords`].
const FORM: u32 = 1;

/// The whole document.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct CacheConfig {
    /// `BuildKit`'s; of them only counts that there are some.
    #[serde(default, skip_serializing)]
    pub records: Option<Vec<IgnoredAny>>,
    /// Kiln's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kiln: Option<KilnRecords>,
}

/// Kiln's own part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KilnRecords {
    /// Of this part.
    pub form: u32,
    /// What keys mean: records with other semantics lead astray.
    pub semantics: String,
    /// The layers.
    #[serde(default)]
    pub layers: Vec<RecordedLayer>,
    /// The records.
    #[serde(default)]
    pub records: Vec<KeptRecord>,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedLayer {
    /// Its uncompressed tar.
    pub diff: DiffId,
    /// What it holds.
    pub content: ContentId,
    /// When the step that made it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// The latest time in its tar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clamp: Option<i64>,
    /// Its index, packed, beside the cache; what is in it counts only if it has this content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<Descriptor>,
    /// Its blob. In an image's config there is none: the image's manifest names the blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blob: Option<Descriptor>,
}

/// What a step gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRecord {
    /// Under which it is found.
    pub keys: BTreeSet<Key>,
    /// For each output the layers, lowest first, by their place in [`KilnRecords::layers`].
    pub outputs: Vec<Vec<usize>>,
    /// How long the step took, in milliseconds.
    pub took: u64,
}

/// Why a document is of no use.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CacheConfigError {
    /// Not JSON, or not of this form.
    #[error("it cannot be read: {0}")]
    Broken(String),
    /// Nothing in it is Kiln's.
    #[error("another builder wrote it, and nothing in it is of use to Kiln")]
    Foreign,
    /// It is of another version.
    #[error("another version of Kiln wrote it (its keys: {found}; here: {wanted})")]
    Semantics {
        /// What it says.
        found: String,
        /// What is known here.
        wanted: String,
    },
}

impl KilnRecords {
    /// An empty one.
    pub fn new(semantics: &str) -> Self {
        Self {
            form: FORM,
            semantics: semantics.to_owned(),
            layers: Vec::new(),
            records: Vec::new(),
        }
    }

    /// Checks that it can be used here.
    ///
    /// # Errors
    /// When it is of another version, or refers to what is not in it.
    pub fn checked(self, semantics: &str) -> Result<Self, CacheConfigError> {
        if self.form != FORM || self.semantics != semantics {
            return Err(CacheConfigError::Semantics {
                found: format!("{} of form {}", self.semantics, self.form),
                wanted: format!("{semantics} of form {FORM}"),
            });
        }
        let mut named = self
            .records
            .iter()
            .flat_map(|it| it.outputs.iter().flatten());
        match named.find(|at| **at >= self.layers.len()) {
            Some(at) => Err(CacheConfigError::Broken(format!(
                "there is no layer {at} in it"
            ))),
            None => Ok(self),
        }
    }
}

impl CacheConfig {
    /// Reads the document.
    ///
    /// # Errors
    /// When it cannot be read, or is of no use.
    pub fn parse(bytes: &[u8], semantics: &str) -> Result<KilnRecords, CacheConfigError> {
        let config: Self = serde_json::from_slice(bytes)
            .map_err(|error| CacheConfigError::Broken(error.to_string()))?;
        config
            .kiln
            .ok_or(CacheConfigError::Foreign)?
            .checked(semantics)
    }

    /// The document.
    pub fn to_bytes(records: KilnRecords) -> Vec<u8> {
        let config = Self {
            records: None,
            kiln: Some(records),
        };
        serde_json::to_vec(&config).expect("a cache config always serialises")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> KilnRecords {
        KilnRecords {
            layers: vec![RecordedLayer {
                diff: DiffId::new([1; 32]),
                content: ContentId::new([2; 32]),
                created: None,
                clamp: Some(7),
                index: None,
                blob: None,
            }],
            records: vec![KeptRecord {
                keys: BTreeSet::from([Key::new([3; 32])]),
                outputs: vec![vec![0], vec![]],
                took: 5,
            }],
            ..KilnRecords::new("exec 1")
        }
    }

    #[test]
    fn there_and_back() {
        let bytes = CacheConfig::to_bytes(records());
        assert_eq!(CacheConfig::parse(&bytes, "exec 1").unwrap(), records());
    }

    #[test]
    fn what_is_of_no_use() {
        let parse = |text: &str| {
            CacheConfig::parse(text.as_bytes(), "exec 1")
                .unwrap_err()
                .to_string()
        };
        assert!(parse("{").starts_with("it cannot be read"));
        assert!(
            parse(r#"{"layers":[],"records":[{"digest":"x"}]}"#).starts_with("another builder")
        );
        let other = parse(r#"{"kiln":{"form":1,"semantics":"exec 0"}}"#);
        assert_eq!(
            other,
            "another version of Kiln wrote it (its keys: exec 0 of form 1; here: exec 1 of form 1)"
        );
        let mut lying = records();
        lying.records[0].outputs[1].push(1);
        let bytes = CacheConfig::to_bytes(lying);
        assert!(parse(std::str::from_utf8(&bytes).unwrap()).contains("no layer 1"));
    }
}
