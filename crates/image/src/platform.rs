//! Platforms.

use std::fmt;
use std::str::FromStr;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize};

/// An operating system and processor, in the names of Go (OCI image spec, image-index.md, `platform`).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub struct Platform {
    /// `linux`.
    pub os: String,
    /// `amd64`, `arm64`.
    pub architecture: String,
    /// `v7`, `v8`; empty where there is none.
    #[serde(default)]
    pub variant: String,
}

/// A text that is no platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "invalid platform {0:?}: expected os/architecture or os/architecture/variant, such as linux/amd64"
)]
pub struct PlatformError(String);

impl Platform {
    /// A platform in normal form: other names of a processor are replaced by Go's, a variant that says nothing is left
    /// out, one that is always meant is filled in (`linux/aarch64/v8` is `linux/arm64`, `linux/arm` is
    /// `linux/arm/v7`).
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let [os, architecture, variant] = [os, architecture, variant].map(str::to_ascii_lowercase);
        Self {
            os,
            architecture,
            variant,
        }
        .normalised()
    }

    /// This platform in normal form; see [`Platform::new`]. Apply it to what a manifest or a config says before
    /// comparing.
    #[must_use]
    pub fn normalised(mut self) -> Self {
        if self.os == "macos" {
            "darwin".clone_into(&mut self.os);
        }
        let (architecture, variant) = match (self.architecture.as_str(), self.variant.as_str()) {
            ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("i386" | "i486" | "i586" | "i686", _) => ("386", ""),
            ("aarch64" | "arm64", "8" | "v8" | "") => ("arm64", ""),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            _ => return self,
        };
        Self {
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
            os: self.os,
        }
    }

    /// What this program was built for.
    pub fn host() -> Self {
        Self::new(std::env::consts::OS, std::env::consts::ARCH, "")
    }

    /// The platforms whose images run on this one, the best first, in normal form: itself, then older variants of the
    /// processor, then its 32-bit forms.
    pub fn runs(&self) -> Vec<Self> {
        let this = self.clone().normalised();
        let other = |architecture: &str, variant: &str| Self {
            os: this.os.clone(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        };
        let arm_below = |version: u32| {
            (5..=version)
                .rev()
                .map(move |version| ("arm", format!("v{version}")))
        };
        let version = this
            .variant
            .strip_prefix('v')
            .and_then(|number| number.parse::<u32>().ok());
        let mut all = vec![this.clone()];
        match (this.architecture.as_str(), version) {
            ("amd64", version) => {
                all.extend(
                    (2..version.unwrap_or(1).min(9))
                        .rev()
                        .map(|version| other("amd64", &format!("v{version}"))),
                );
                if version.is_some() {
                    all.push(other("amd64", ""));
                }
                all.push(other("386", ""));
            }
            ("arm64", version) => {
                if version.is_some() {
                    all.push(other("arm64", ""));
                }
                all.extend(
                    arm_below(8).map(|(architecture, variant)| other(architecture, &variant)),
                );
            }
            ("arm", Some(version @ 6..=8)) => {
                all.extend(
                    arm_below(version - 1)
                        .map(|(architecture, variant)| other(architecture, &variant)),
                );
            }
            _ => {}
        }
        all
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() {
            Ok(())
        } else {
            write!(out, "/{}", self.variant)
        }
    }
}

impl FromStr for Platform {
    type Err = PlatformError;

    fn from_str(text: &str) -> Result<Self, PlatformError> {
        let wrong = || PlatformError(text.to_owned());
        let part = |part: &&str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'))
        };
        let parts: Vec<&str> = text.split('/').collect();
        if !parts.iter().all(part) {
            return Err(wrong());
        }
        match parts[..] {
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(wrong()),
        }
    }
}

/// By hand: a variant left out would break formats that do not name their fields, so only JSON and its like leave it out.
impl Serialize for Platform {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        if !to.is_human_readable() {
            return (&self.os, &self.architecture, &self.variant).serialize(to);
        }
        let mut fields =
            to.serialize_struct("Platform", 2 + usize::from(!self.variant.is_empty()))?;
        fields.serialize_field("architecture", &self.architecture)?;
        fields.serialize_field("os", &self.os)?;
        if !self.variant.is_empty() {
            fields.serialize_field("variant", &self.variant)?;
        }
        fields.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parsed_and_shown() {
        let cases = [
            ("linux/amd64", "linux/amd64"),
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("Linux/AArch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/v9", "linux/arm64/v9"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/6", "linux/arm/v6"),
            ("linux/i386", "linux/386"),
            ("linux/riscv64", "linux/riscv64"),
            ("macos/arm64", "darwin/arm64"),
        ];
        for (text, shown) in cases {
            assert_eq!(
                text.parse::<Platform>().unwrap().to_string(),
                shown,
                "{text}"
            );
        }
        for text in [
            "",
            "linux",
            "/",
            "linux/",
            "/amd64",
            "linux/amd64/",
            "a/b/c/d",
            "linux/amd 64",
        ] {
            assert_eq!(
                text.parse::<Platform>(),
                Err(PlatformError(text.to_owned()))
            );
        }
    }

    #[test]
    fn what_runs_best_first() {
        let runs = |text: &str| {
            let all = text.parse::<Platform>().unwrap().runs();
            all.iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(runs("linux/amd64"), "linux/amd64 linux/386");
        assert_eq!(
            runs("linux/amd64/v3"),
            "linux/amd64/v3 linux/amd64/v2 linux/amd64 linux/386"
        );
        assert_eq!(
            runs("linux/arm64"),
            "linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5"
        );
        assert_eq!(runs("linux/arm/v6"), "linux/arm/v6 linux/arm/v5");
        assert_eq!(runs("linux/s390x"), "linux/s390x");
    }

    #[test]
    fn serialised_with_and_without_names() {
        for text in ["linux/amd64", "linux/arm/v6"] {
            let platform: Platform = text.parse().unwrap();
            let json = serde_json::to_string(&platform).unwrap();
            assert_eq!(json.contains("variant"), text.ends_with("v6"), "{json}");
            assert_eq!(serde_json::from_str::<Platform>(&json).unwrap(), platform);
            let bytes = postcard::to_stdvec(&(&platform, 7_u8)).unwrap();
            assert_eq!(
                postcard::from_bytes::<(Platform, u8)>(&bytes).unwrap(),
                (platform, 7)
            );
        }
    }
}
