//! Image references in Docker's notation.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Digest;

const DOCKER_HUB: &str = "docker.io";
const LEGACY_DOCKER_HUB: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const MAX_REPOSITORY: usize = 255;
const MAX_TAG: usize = 128;

/// The name of an image: registry, repository and a tag, a digest or both.
///
/// Parsing normalises as Docker does (`busybox` is `docker.io/library/busybox:latest`); [`fmt::Display`] gives the
/// canonical form, which parses to the same reference; [`Reference::familiar`] the short one. The grammar is that of
/// the distribution project's `reference` package, with `sha256` as the only digest algorithm.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// Does not follow the grammar.
    #[error("invalid reference format: {text:?}: {problem}")]
    Format {
        /// What was given.
        text: String,
        /// Which part is wrong.
        problem: &'static str,
    },
    /// Upper-case letters in the repository.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    Uppercase(String),
    /// More than 255 characters.
    #[error("repository name must not be more than {MAX_REPOSITORY} characters")]
    TooLong,
    /// Could be mistaken for an image id.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    ImageId(String),
}

impl Reference {
    /// Parses without adding `:latest` where neither a tag nor a digest is given.
    pub fn parse_exact(text: &str) -> Result<Self, ReferenceError> {
        let wrong = |problem| ReferenceError::Format {
            text: text.to_owned(),
            problem,
        };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        if text.len() == 64
            && text
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(ReferenceError::ImageId(text.to_owned()));
        }
        let (name, digest) =
            match text.split_once('@') {
                Some((name, digest)) => (
                    name,
                    Some(digest.parse().map_err(|_| {
                        wrong("the digest must be sha256: and 64 hexadecimal digits")
                    })?),
                ),
                None => (text, None),
            };
        let (registry, rest) = split_registry(name);
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (path, tag) = match rest[last..].split_once(':') {
            Some((name, tag)) => (&rest[..last + name.len()], Some(tag)),
            None => (rest, None),
        };
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ReferenceError::Uppercase(path.to_owned()));
        }
        if !is_registry(registry) {
            return Err(wrong("the registry is not a host name"));
        }
        if !path.split('/').all(is_component) {
            return Err(wrong(
                "the repository may hold lower-case letters, digits and single separators between them",
            ));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong(
                "a tag is up to 128 letters, digits, '_', '.' and '-', not starting with '.' or '-'",
            ));
        }
        let official = if registry == DOCKER_HUB && !path.contains('/') {
            OFFICIAL
        } else {
            ""
        };
        let repository = format!("{official}{path}");
        if repository.len() > MAX_REPOSITORY {
            return Err(ReferenceError::TooLong);
        }
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag: tag.map(str::to_owned),
            digest,
        })
    }

    /// The registry as named: `docker.io`, `localhost:5000`, `[::1]:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository in the registry: `library/busybox`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if there is one.
    pub fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// Registry and repository: `docker.io/library/busybox`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// This name with another tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Format {
                text: tag.to_owned(),
                problem: "it is not a tag",
            });
        }
        Ok(Self {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        })
    }

    /// This reference pinned to a digest; the tag is kept.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// As Docker's users write it: without `docker.io/` and `library/`, with tag and digest.
    pub fn familiar(&self) -> String {
        format!("{}{}", self.familiar_name(), Suffix(self))
    }

    /// The name without tag and digest as Docker's users write it: `busybox`, `localhost:5000/x`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DOCKER_HUB {
            return self.name();
        }
        match self.repository.strip_prefix(OFFICIAL) {
            Some(short) if !short.contains('/') => short.to_owned(),
            // `docker.io/a.b/c`: the short form would name a registry.
            _ if split_registry(&self.repository).1 != self.repository => self.name(),
            _ => self.repository.clone(),
        }
    }
}

struct Suffix<'a>(&'a Reference);

impl fmt::Display for Suffix<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(tag) = &self.0.tag {
            write!(out, ":{tag}")?;
        }
        if let Some(digest) = &self.0.digest {
            write!(out, "@{digest}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}{}", self.registry, self.repository, Suffix(self))
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    /// Parses and adds `:latest` where neither a tag nor a digest is given.
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let mut reference = Self::parse_exact(text)?;
        if reference.tag.is_none() && reference.digest.is_none() {
            reference.tag = Some("latest".to_owned());
        }
        Ok(reference)
    }
}

impl Serialize for Reference {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Self::parse_exact(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// The first component is a registry only if it cannot be part of a Docker Hub repository.
fn split_registry(name: &str) -> (&str, &str) {
    match name.split_once('/') {
        Some((LEGACY_DOCKER_HUB, rest)) => (DOCKER_HUB, rest),
        Some((first, rest))
            if first == "localhost"
                || first.contains(['.', ':'])
                || first.bytes().any(|byte| byte.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DOCKER_HUB, name),
    }
}

fn is_registry(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, after)) => {
                let valid = !address.is_empty()
                    && address
                        .bytes()
                        .all(|byte| byte.is_ascii_hexdigit() || byte == b':');
                match (valid, after.strip_prefix(':')) {
                    (true, Some(port)) => (None, Some(port)),
                    (true, None) if after.is_empty() => (None, None),
                    _ => return false,
                }
            }
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(text), None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.is_none_or(|host| host.split('.').all(label))
        && port
            .is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Runs of `[a-z0-9]` joined by `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = bytes.first().is_some_and(|&byte| alphanumeric(byte))
        && bytes.last().is_some_and(|&byte| alphanumeric(byte));
    ends && bytes.split(|&byte| alphanumeric(byte)).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-')
    })
}

fn is_tag(text: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    text.len() <= MAX_TAG
        && text.bytes().next().is_some_and(word)
        && text
            .bytes()
            .all(|byte| word(byte) || byte == b'.' || byte == b'-')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn canonical_and_familiar() {
        let pinned = format!("busybox:1@sha256:{HEX}");
        let cases: &[(&str, &str, &str)] = &[
            (
                "busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "busybox:1.36",
                "docker.io/library/busybox:1.36",
                "busybox:1.36",
            ),
            ("a/b", "docker.io/a/b:latest", "a/b:latest"),
            ("library/a", "docker.io/library/a:latest", "a:latest"),
            (
                "docker.io/busybox",
                "docker.io/library/busybox:latest",
                "busybox:latest",
            ),
            (
                "docker.io/library/a/b",
                "docker.io/library/a/b:latest",
                "library/a/b:latest",
            ),
            ("index.docker.io/x/y:t", "docker.io/x/y:t", "x/y:t"),
            ("localhost/x", "localhost/x:latest", "localhost/x:latest"),
            (
                "localhost:5000",
                "docker.io/library/localhost:5000",
                "localhost:5000",
            ),
            (
                "localhost:5000/x",
                "localhost:5000/x:latest",
                "localhost:5000/x:latest",
            ),
            (
                "[::1]:5000/x/y:v1",
                "[::1]:5000/x/y:v1",
                "[::1]:5000/x/y:v1",
            ),
            ("[fe80::1]/x", "[fe80::1]/x:latest", "[fe80::1]/x:latest"),
            ("Upper/x", "Upper/x:latest", "Upper/x:latest"),
            (
                "ghcr.io/a-b/c__d/e--f.g:T_1.2-3",
                "ghcr.io/a-b/c__d/e--f.g:T_1.2-3",
                "ghcr.io/a-b/c__d/e--f.g:T_1.2-3",
            ),
            (&pinned, &format!("docker.io/library/{pinned}"), &pinned),
        ];
        for (text, canonical, familiar) in cases {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(reference.to_string(), *canonical, "{text}");
            assert_eq!(reference.familiar(), *familiar, "{text}");
        }
        let digest_only: Reference = format!("x@sha256:{HEX}").parse().unwrap();
        assert_eq!(
            (digest_only.tag(), digest_only.digest().unwrap().hex()),
            (None, HEX.to_owned())
        );
        assert_eq!(
            Reference::parse_exact("x").unwrap().to_string(),
            "docker.io/library/x"
        );
    }

    #[test]
    fn refused() {
        let long_tag = format!("x:{}", "t".repeat(129));
        let cases = [
            "",
            " ",
            "/",
            "a//b",
            "/a",
            "a/",
            ":t",
            "x:",
            "x@",
            "x@sha256:12",
            "x:t:u",
            "a b",
            "a:t/b:",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "é",
            "-x.io/a",
            "x..io/a",
            "x.io:/a",
            "x.io:port/a",
            "[::1/a",
            "[]/a",
            "[::1]x/a",
            "x:.t",
            "x:-t",
            "https://x/y",
            &long_tag,
        ];
        for text in cases {
            assert!(
                matches!(
                    text.parse::<Reference>(),
                    Err(ReferenceError::Format { .. })
                ),
                "{text}"
            );
        }
        assert_eq!(
            HEX.parse::<Reference>(),
            Err(ReferenceError::ImageId(HEX.into()))
        );
        assert_eq!(
            "Busybox".parse::<Reference>(),
            Err(ReferenceError::Uppercase("Busybox".into()))
        );
        assert_eq!(
            "a/B:T".parse::<Reference>(),
            Err(ReferenceError::Uppercase("a/B".into()))
        );
        assert_eq!(
            "x".repeat(256).parse::<Reference>(),
            Err(ReferenceError::TooLong)
        );
        assert!(format!("x.io/{HEX}").parse::<Reference>().is_ok());
    }

    #[test]
    fn derived() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        let reference: Reference = "x:1".parse().unwrap();
        assert_eq!(
            reference.with_digest(digest).familiar(),
            format!("x:1@{digest}")
        );
        assert_eq!(
            reference
                .with_digest(digest)
                .with_tag("2")
                .unwrap()
                .familiar(),
            "x:2"
        );
        assert!(reference.with_tag("a/b").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,80}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn round_trip(
            registry in "(docker\\.io/|localhost/|[a-z]{1,8}\\.io/|[A-Za-z]{1,5}:[0-9]{1,5}/|\\[[0-9a-f:]{1,6}\\]:1/)",
            path in "[a-z0-9]{1,5}((\\.|_|__|-{1,3})[a-z0-9]{1,3}){0,2}(/[a-z0-9]{1,5}){0,2}",
            tag in "(|:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})",
            digest in "(|@sha256:[0-9a-f]{64})",
        ) {
            let reference: Reference = format!("{registry}{path}{tag}{digest}").parse().unwrap();
            prop_assert_eq!(&reference.to_string().parse::<Reference>().unwrap(), &reference);
            prop_assert_eq!(&reference.familiar().parse::<Reference>().unwrap(), &reference);
        }
    }
}
