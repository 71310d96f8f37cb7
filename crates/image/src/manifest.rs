//! Manifests and indexes, Docker's (distribution spec, manifest v2 schema 2) and the OCI's.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{Digest, Platform};

/// The media types of both families.
pub mod media_type {
    /// An OCI manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// An OCI index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// An OCI image config.
    pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// An OCI layer, not compressed.
    pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// An OCI layer with gzip.
    pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// An OCI layer with zstd.
    pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// `{}`, the config of artifacts without one.
    pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
    /// A Docker manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// A Docker manifest list.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// A Docker image config.
    pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
    /// A Docker layer, not compressed.
    pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
    /// A Docker layer with gzip.
    pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
    /// A Docker layer with zstd.
    pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

    /// What a client offers to a registry: every kind of manifest and index that Kiln reads.
    pub const MANIFESTS: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

    /// Whether this is a manifest list or an index.
    pub fn is_index(media_type: &str) -> bool {
        matches!(media_type, OCI_INDEX | DOCKER_LIST)
    }

    /// Whether this is the manifest of one image.
    pub fn is_manifest(media_type: &str) -> bool {
        matches!(media_type, OCI_MANIFEST | DOCKER_MANIFEST)
    }

    /// Whether this is an image's config.
    pub fn is_config(media_type: &str) -> bool {
        matches!(media_type, OCI_CONFIG | DOCKER_CONFIG)
    }

    /// An OCI layer with gzip that must not be pushed again.
    pub const OCI_FOREIGN_GZIP: &str =
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    /// The same of Docker.
    pub const DOCKER_FOREIGN_GZIP: &str =
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

    /// Whether this is a layer that must not be pushed again: its publisher alone gives it, at the descriptor's `urls`.
    pub fn is_foreign(media_type: &str) -> bool {
        is_layer(media_type)
            && (media_type.contains(".nondistributable.") || media_type.contains(".foreign."))
    }

    /// Whether this is a file-system layer, also one that must not be pushed again (`foreign`, `nondistributable`).
    pub fn is_layer(media_type: &str) -> bool {
        [
            "application/vnd.oci.image.layer.",
            "application/vnd.docker.image.rootfs.",
        ]
        .iter()
        .any(|family| media_type.starts_with(family))
    }
}

/// A pointer to a blob (OCI image spec, descriptor.md).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub struct Descriptor {
    /// What the blob is.
    pub media_type: String,
    /// Its sha256.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Where else it can be found.
    pub urls: Option<Vec<String>>,
    /// Annotations.
    pub annotations: Option<BTreeMap<String, String>>,
    /// The blob itself, in base64.
    pub data: Option<String>,
    /// In an index: what the image runs on, as written; see [`Platform::normalised`].
    pub platform: Option<Platform>,
    /// In an index, with a platform: what the image wants of the operating system.
    pub os: OsDemands,
    /// Of an artifact's manifest.
    pub artifact_type: Option<String>,
}

/// What an image wants of its operating system (OCI image spec, image-index.md, `os.version` and `os.features`). Nothing
/// is chosen by it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OsDemands {
    /// `10.0.14393.1066`; empty where there is none.
    pub version: String,
    /// `win32k`.
    pub features: Vec<String>,
}

/// A descriptor in its JSON, where a platform and what is wanted of its system are one.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    media_type: String,
    digest: Digest,
    size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    urls: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    data: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    platform: Option<WrittenPlatform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct WrittenPlatform {
    architecture: String,
    os: String,
    #[serde(
        rename = "os.version",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    version: Option<String>,
    #[serde(
        rename = "os.features",
        default,
        skip_serializing_if = "Option::is_none"
    )]
    features: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    variant: String,
}

impl From<Written> for Descriptor {
    fn from(written: Written) -> Self {
        let mut os = OsDemands::default();
        let platform = written.platform.map(|platform| {
            os.version = platform.version.unwrap_or_default();
            os.features = platform.features.unwrap_or_default();
            Platform {
                os: platform.os,
                architecture: platform.architecture,
                variant: platform.variant,
            }
        });
        Self {
            media_type: written.media_type,
            digest: written.digest,
            size: written.size,
            urls: written.urls,
            annotations: written.annotations,
            data: written.data,
            platform,
            os,
            artifact_type: written.artifact_type,
        }
    }
}

impl From<Descriptor> for Written {
    fn from(descriptor: Descriptor) -> Self {
        let OsDemands { version, features } = descriptor.os;
        let platform = descriptor.platform.map(|platform| WrittenPlatform {
            architecture: platform.architecture,
            os: platform.os,
            version: (!version.is_empty()).then_some(version),
            features: (!features.is_empty()).then_some(features),
            variant: platform.variant,
        });
        Self {
            media_type: descriptor.media_type,
            digest: descriptor.digest,
            size: descriptor.size,
            urls: descriptor.urls,
            annotations: descriptor.annotations,
            data: descriptor.data,
            platform,
            artifact_type: descriptor.artifact_type,
        }
    }
}

impl Descriptor {
    /// A descriptor with the required fields only.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            urls: None,
            annotations: None,
            data: None,
            platform: None,
            os: OsDemands::default(),
            artifact_type: None,
        }
    }
}

/// The manifest of one image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// May be missing in OCI manifests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Of an artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image's config.
    pub config: Descriptor,
    /// Lowest first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// What this is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Manifest {
    /// A manifest of the given media type, [`media_type::OCI_MANIFEST`] or [`media_type::DOCKER_MANIFEST`].
    pub fn new(media_type: &str, config: Descriptor, layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(media_type.to_owned()),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: None,
        }
    }

    /// The JSON as it is stored and named by its digest.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a manifest always serialises")
    }
}

/// The images of several platforms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// May be missing in OCI indexes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Of an artifact.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// Manifests, or further indexes.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    /// What this is attached to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Index {
    /// An index of the given media type, [`media_type::OCI_INDEX`] or [`media_type::DOCKER_LIST`].
    pub fn new(media_type: &str, manifests: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: Some(media_type.to_owned()),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: None,
        }
    }

    /// The JSON as it is stored and named by its digest.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("an index always serialises")
    }

    /// The entry whose image runs best on `platform`: see [`Platform::runs`]. Of several equal ones the first.
    /// An entry without a platform is never chosen, unless it is the only one.
    pub fn select(&self, platform: &Platform) -> Option<&Descriptor> {
        let of = |wanted: &Platform| {
            let fits = |entry: &&Descriptor| {
                entry
                    .platform
                    .clone()
                    .is_some_and(|platform| platform.normalised() == *wanted)
            };
            self.manifests.iter().find(fits)
        };
        let only = || match &self.manifests[..] {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        };
        platform.runs().iter().find_map(of).or_else(only)
    }
}

/// A document that names an image.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "one at a time, taken apart at once"
)]
pub enum Document {
    /// Of one platform.
    Manifest(Manifest),
    /// Of several.
    Index(Index),
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Not JSON, or a field missing or of the wrong type.
    #[error("invalid manifest: {0}")]
    Json(#[from] serde_json::Error),
    /// The format that Docker left in 2016.
    #[error(
        "image manifest of schema version 1 is no longer supported; push the image again with a newer Docker"
    )]
    Schema1,
    /// Neither or both kinds at once (the OCI image spec forbids it, since clients could disagree on what it is).
    #[error("invalid manifest: {0}")]
    Ambiguous(&'static str),
    /// Something else.
    #[error("not an image manifest: media type {0:?}")]
    MediaType(String),
}

/// Reads a manifest or an index and tells them apart by their fields. `content_type` is what the registry or the
/// descriptor says, when known; it must not contradict the document.
pub fn parse_manifest(bytes: &[u8], content_type: Option<&str>) -> Result<Document, ManifestError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        schema_version: u32,
        media_type: Option<String>,
        config: Option<serde::de::IgnoredAny>,
        layers: Option<serde::de::IgnoredAny>,
        manifests: Option<serde::de::IgnoredAny>,
    }
    let shape: Shape = serde_json::from_slice(bytes)?;
    match shape.schema_version {
        2 => {}
        1 => return Err(ManifestError::Schema1),
        _ => return Err(ManifestError::Ambiguous("unknown schema version")),
    }
    let index = match (
        shape.manifests.is_some(),
        shape.config.is_some() || shape.layers.is_some(),
    ) {
        (true, false) => true,
        (false, true) => false,
        (true, true) => {
            return Err(ManifestError::Ambiguous(
                "it has manifests as well as layers",
            ));
        }
        (false, false) => {
            return Err(ManifestError::Ambiguous(
                "it has neither manifests nor layers",
            ));
        }
    };
    // A server that does not know the type says text/plain or application/json: only real types can contradict.
    let said = content_type
        .map(|text| text.split(';').next().unwrap_or_default().trim())
        .filter(|text| media_type::is_index(text) || media_type::is_manifest(text));
    for named in [
        shape.media_type.as_deref().filter(|text| !text.is_empty()),
        said,
    ]
    .into_iter()
    .flatten()
    {
        if index != media_type::is_index(named) || index == media_type::is_manifest(named) {
            return Err(ManifestError::MediaType(named.to_owned()));
        }
    }
    Ok(if index {
        Document::Index(serde_json::from_slice(bytes)?)
    } else {
        Document::Manifest(serde_json::from_slice(bytes)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(media_type: &str, fill: u8, platform: Option<&str>) -> Descriptor {
        let platform = platform.map(|text| {
            let mut parts = text.split('/').map(str::to_owned);
            let mut next = || parts.next().unwrap_or_default();
            Platform {
                os: next(),
                architecture: next(),
                variant: next(),
            }
        });
        Descriptor {
            platform,
            ..Descriptor::new(media_type, Digest::new([fill; 32]), 7)
        }
    }

    #[test]
    fn demands_of_a_system_stay_with_its_platform() {
        let json = format!(
            concat!(
                r#"{{"mediaType":"{}","digest":"sha256:{}","size":7,"platform":{{"architecture":"amd64","#,
                r#""os":"windows","os.version":"10.0.1","os.features":["win32k"],"variant":"v2"}}}}"#
            ),
            media_type::OCI_MANIFEST,
            "01".repeat(32)
        );
        let read: Descriptor = serde_json::from_str(&json).unwrap();
        let demands = OsDemands {
            version: "10.0.1".to_owned(),
            features: vec!["win32k".to_owned()],
        };
        let plain = descriptor(media_type::OCI_MANIFEST, 1, Some("windows/amd64/v2"));
        assert_eq!(
            read,
            Descriptor {
                os: demands,
                ..plain
            }
        );
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
    }

    #[test]
    fn told_apart() {
        let config = descriptor(media_type::OCI_CONFIG, 1, None);
        let layer = descriptor(media_type::OCI_LAYER_GZIP, 2, None);
        let manifest = Manifest::new(media_type::OCI_MANIFEST, config, vec![layer]);
        let bytes = manifest.to_bytes();
        assert!(bytes.starts_with(
            br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"mediaType":"#
        ));
        for content_type in [
            None,
            Some("text/plain"),
            Some("application/vnd.oci.image.manifest.v1+json; x=y"),
        ] {
            assert_eq!(
                parse_manifest(&bytes, content_type).unwrap(),
                Document::Manifest(manifest.clone())
            );
        }
        assert!(matches!(
            parse_manifest(&bytes, Some(media_type::OCI_INDEX)),
            Err(ManifestError::MediaType(_))
        ));
        let image = descriptor(media_type::OCI_MANIFEST, 3, Some("linux/amd64"));
        let mut index = Index::new(media_type::DOCKER_LIST, vec![image]);
        assert_eq!(
            parse_manifest(&index.to_bytes(), None).unwrap(),
            Document::Index(index.clone())
        );
        index.media_type = None;
        assert_eq!(
            parse_manifest(&index.to_bytes(), None).unwrap(),
            Document::Index(index.clone())
        );
        index.media_type = Some(media_type::OCI_MANIFEST.to_owned());
        assert!(matches!(
            parse_manifest(&index.to_bytes(), None),
            Err(ManifestError::MediaType(_))
        ));
    }

    #[test]
    fn refused() {
        let error = |text: &str| {
            parse_manifest(text.as_bytes(), None)
                .unwrap_err()
                .to_string()
        };
        assert!(error(r#"{"schemaVersion":1,"fsLayers":[]}"#).contains("schema version 1"));
        assert!(error(r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#).contains("as well as"));
        assert!(error(r#"{"schemaVersion":2}"#).contains("neither"));
        assert!(error(r#"{"schemaVersion":3,"manifests":[]}"#).contains("unknown"));
        assert!(error(r#"{"schemaVersion":2,"layers":[]}"#).contains("config"));
        assert!(error("[]").contains("invalid"));
    }

    #[test]
    fn selection() {
        let entry = |fill, platform| descriptor(media_type::OCI_MANIFEST, fill, Some(platform));
        let entries = vec![
            entry(0, "unknown/unknown"),
            entry(1, "linux/386"),
            entry(2, "linux/arm/v5"),
            entry(3, "linux/arm/v7"),
            entry(4, "linux/amd64"),
            entry(5, "linux/arm64/v8"),
            entry(6, "linux/amd64"),
        ];
        let index = Index::new(media_type::OCI_INDEX, entries);
        let select = |text: &str| {
            index
                .select(&text.parse().unwrap())
                .map(|entry| entry.digest.as_bytes()[0])
        };
        assert_eq!(select("linux/amd64"), Some(4));
        assert_eq!(select("linux/amd64/v3"), Some(4));
        assert_eq!(select("linux/arm64"), Some(5));
        assert_eq!(select("linux/arm"), Some(3));
        assert_eq!(select("linux/arm/v6"), Some(2));
        assert_eq!(select("linux/s390x"), None);
        let only = Index::new(
            media_type::OCI_INDEX,
            vec![descriptor(media_type::OCI_MANIFEST, 9, None)],
        );
        assert!(only.select(&"linux/s390x".parse().unwrap()).is_some());
    }
}
