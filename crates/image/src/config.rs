//! Image configs: Docker's and the OCI's fields together (OCI image spec, config.md; moby's image spec v1.2 for
//! `Healthcheck`, `OnBuild`, `Shell`, `ArgsEscaped`).
//!
//! Unknown keys are kept. The output depends on the value alone: known keys come in a fixed order, maps and unknown
//! keys sorted by name.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

use crate::{DiffId, Platform};

/// Keys of the JSON that Kiln does not know, kept as they are.
pub type Extra = BTreeMap<String, Value>;

/// The config of an image.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When the image was built.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// Who built it.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    /// Processor, `amd64`.
    #[serde(default, deserialize_with = "nullable")]
    pub architecture: String,
    /// Variant of the processor, `v7`.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub variant: String,
    /// Operating system, `linux`.
    #[serde(default, deserialize_with = "nullable")]
    pub os: String,
    /// Windows only.
    #[serde(
        default,
        rename = "os.version",
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub os_version: String,
    /// Windows only.
    #[serde(
        default,
        rename = "os.features",
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub os_features: Vec<String>,
    /// How containers start.
    #[serde(default, deserialize_with = "nullable")]
    pub config: RunConfig,
    /// The layers.
    #[serde(default)]
    pub rootfs: RootFs,
    /// One record per instruction.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub history: Vec<History>,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Extra,
}

/// How containers of an image start: the `config` object.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// User and group, `name`, `uid`, `name:group`, `uid:gid`.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub user: String,
    /// `80/tcp`.
    #[serde(default, with = "keys", skip_serializing_if = "BTreeSet::is_empty")]
    pub exposed_ports: BTreeSet<String>,
    /// `NAME=value`, in the order of definition.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub env: Vec<String>,
    /// What is run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Its default arguments, or what is run where there is no entry point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Paths of volumes.
    #[serde(default, with = "keys", skip_serializing_if = "BTreeSet::is_empty")]
    pub volumes: BTreeSet<String>,
    /// Where the process starts.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub working_dir: String,
    /// Labels.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM`.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub stop_signal: String,
    /// Seconds between the stop signal and SIGKILL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    /// Windows only: the command is one escaped string.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub args_escaped: bool,
    /// How Docker finds out whether the container is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Instructions for images built upon this one.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub on_build: Vec<String>,
    /// What runs the shell forms of RUN, CMD and ENTRYPOINT.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Extra,
}

/// A health check. Durations are nanoseconds; 0 means inherited.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// Empty: inherited; `["NONE"]`: none; `["CMD", ...]`: a program; `["CMD-SHELL", command]`: run by the shell.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub test: Vec<String>,
    /// Between two checks.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Of one check.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// In which failures do not count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Between two checks in the start period.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row until it counts as unhealthy; 0 means inherited.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Extra,
}

/// The layers of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Lowest first.
    #[serde(default, deserialize_with = "nullable")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self {
            kind: "layers".to_owned(),
            diff_ids: Vec::new(),
        }
    }
}

/// What one instruction did.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct History {
    /// When.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<Timestamp>,
    /// The instruction.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub created_by: String,
    /// Whoever MAINTAINER named.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub author: String,
    /// Which builder.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "String::is_empty"
    )]
    pub comment: String,
    /// It made no layer.
    #[serde(
        default,
        deserialize_with = "nullable",
        skip_serializing_if = "std::ops::Not::not"
    )]
    pub empty_layer: bool,
    /// Everything else.
    #[serde(flatten)]
    pub extra: Extra,
}

impl ImageConfig {
    /// The config of an image with nothing in it.
    pub fn scratch(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture.clone(),
            variant: platform.variant.clone(),
            os: platform.os.clone(),
            ..Self::default()
        }
    }

    /// The platform in normal form.
    pub fn platform(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, &self.variant)
    }

    /// Reads the JSON of a config.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// The JSON as it is stored and named by its digest: without white space.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a config always serialises")
    }
}

/// Go writes empty lists and maps as `null`.
fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    from: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Sets as Go has them: `{"80/tcp":{}}`.
mod keys {
    use super::{BTreeMap, BTreeSet, Deserialize, Deserializer, Serializer, Value};

    #[derive(serde::Serialize)]
    struct Empty {}

    pub(super) fn serialize<S: Serializer>(
        keys: &BTreeSet<String>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_map(keys.iter().map(|key| (key, Empty {})))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeSet<String>, D::Error> {
        let map = Option::<BTreeMap<String, Value>>::deserialize(from)?;
        Ok(map.unwrap_or_default().into_keys().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCKER: &str = r#"{
        "architecture":"arm","variant":"v7","os":"linux","os.version":"10","os.features":["f"],
        "author":"me","created":"2024-02-03T04:05:06.789+01:00","docker_version":"24","container":"c0ffee",
        "config":{"Hostname":"h","Tty":false,"ExposedPorts":{"80/tcp":{},"443/tcp":{}},"Volumes":null,
            "Env":["PATH=/bin","A=b"],"Cmd":null,"Entrypoint":[],"Shell":["/bin/bash","-c"],"OnBuild":["RUN true"],
            "Labels":{"b":"2","a":"1"},"StopTimeout":0,"ArgsEscaped":true,"User":"1:2","WorkingDir":"/w",
            "StopSignal":"SIGINT","Image":"",
            "Healthcheck":{"Test":["CMD","x"],"Interval":5000000000,"StartInterval":1,"Later":{"z":1,"a":2}}},
        "rootfs":{"type":"layers","diff_ids":null},
        "history":[{"created":"0001-01-01T00:00:00Z","created_by":"RUN","empty_layer":true,"x":1},{"comment":"c"}],
        "moby.buildkit.cache.v0":"bnVsbA=="
    }"#;

    #[test]
    fn nothing_is_lost_and_the_order_is_fixed() {
        let config = ImageConfig::from_bytes(DOCKER.as_bytes()).unwrap();
        assert_eq!(config.platform().to_string(), "linux/arm/v7");
        assert_eq!(
            (&config.config.cmd, &config.config.entrypoint),
            (&None, &Some(vec![]))
        );
        let text = String::from_utf8(config.to_bytes()).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"created":"2024-02-03T03:05:06.789Z","author":"me","architecture":"arm","variant":"v7","os":"linux","#,
                r#""os.version":"10","os.features":["f"],"config":{"User":"1:2","ExposedPorts":{"443/tcp":{},"80/tcp":{}},"#,
                r#""Env":["PATH=/bin","A=b"],"Entrypoint":[],"WorkingDir":"/w","Labels":{"a":"1","b":"2"},"#,
                r#""StopSignal":"SIGINT","StopTimeout":0,"ArgsEscaped":true,"#,
                r#""Healthcheck":{"Test":["CMD","x"],"Interval":5000000000,"StartInterval":1,"Later":{"z":1,"a":2}},"#,
                r#""OnBuild":["RUN true"],"Shell":["/bin/bash","-c"],"Hostname":"h","Image":"","Tty":false},"#,
                r#""rootfs":{"type":"layers","diff_ids":[]},"#,
                r#""history":[{"created":"0001-01-01T00:00:00Z","created_by":"RUN","empty_layer":true,"x":1},{"comment":"c"}],"#,
                r#""container":"c0ffee","docker_version":"24","moby.buildkit.cache.v0":"bnVsbA=="}"#
            )
        );
        assert_eq!(ImageConfig::from_bytes(text.as_bytes()).unwrap(), config);
    }

    #[test]
    fn the_smallest() {
        let scratch = ImageConfig::scratch(&"linux/amd64".parse().unwrap());
        let text = r#"{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert_eq!(String::from_utf8(scratch.to_bytes()).unwrap(), text);
        assert_eq!(ImageConfig::from_bytes(text.as_bytes()).unwrap(), scratch);
        assert_eq!(
            ImageConfig::from_bytes(b"{}").unwrap(),
            ImageConfig::default()
        );
        assert!(
            ImageConfig::from_bytes(br#"{"rootfs":{"type":"layers","diff_ids":["sha512:00"]}}"#)
                .is_err()
        );
        assert!(ImageConfig::from_bytes(br#"{"config":{"Env":"x"}}"#).is_err());
    }
}
