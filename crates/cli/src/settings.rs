//! The configuration file, `kiln.toml`: the system's, then the user's own, which wins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use kiln_registry::HostConfig;
use serde::Deserialize;

/// The system's file.
const SYSTEM: &str = "/etc/kiln/kiln.toml";

/// What a file says.
#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Settings {
    /// What is special about registries, by their names.
    #[serde(default)]
    registries: BTreeMap<String, Registry>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Registry {
    /// Asked first when something is pulled.
    #[serde(default)]
    mirrors: Vec<String>,
    /// HTTP without TLS.
    plain_http: Option<bool>,
    /// Any certificate will do.
    #[serde(default)]
    insecure: bool,
    /// PEM files of authorities to trust for this registry.
    #[serde(default)]
    certificates: Vec<PathBuf>,
}

/// What the files say of registries. `given` (`KILN_CONFIG`) is read instead of the usual ones, and must be there.
pub(crate) fn registries(
    given: Option<&Path>,
    config_home: Option<&Path>,
) -> Result<BTreeMap<String, HostConfig>> {
    let mut hosts = BTreeMap::new();
    let usual = [
        Some(SYSTEM.into()),
        config_home.map(|home| home.join("kiln/kiln.toml")),
    ];
    let paths: Vec<PathBuf> = match given {
        Some(path) => vec![path.to_owned()],
        None => usual.into_iter().flatten().collect(),
    };
    for path in paths {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if given.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                continue;
            }
            Err(error) => return Err(error).context(path.display().to_string()),
        };
        for (name, registry) in parse(&text)
            .with_context(|| path.display().to_string())?
            .registries
        {
            hosts.insert(name, host(registry)?);
        }
    }
    Ok(hosts)
}

fn parse(text: &str) -> Result<Settings> {
    Ok(toml::from_str(text)?)
}

fn host(registry: Registry) -> Result<HostConfig> {
    let read = |path: &PathBuf| {
        std::fs::read(path).with_context(|| format!("certificates: {}", path.display()))
    };
    Ok(HostConfig {
        mirrors: registry.mirrors,
        plain_http: registry.plain_http,
        insecure: registry.insecure,
        certificates: registry
            .certificates
            .iter()
            .map(read)
            .collect::<Result<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_and_mistakes_named() {
        let settings = parse(
            "[registries.\"docker.io\"]\nmirrors = [\"http://10.0.0.1:5000\"]\n\
             [registries.\"corp:5000\"]\ninsecure = true\nplain-http = false\n",
        )
        .unwrap();
        assert_eq!(
            settings.registries["docker.io"].mirrors,
            ["http://10.0.0.1:5000"]
        );
        assert_eq!(settings.registries["corp:5000"].plain_http, Some(false));
        assert!(settings.registries["corp:5000"].insecure);
        let error = parse("[registries.x]\nmirror = 1\n")
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("mirror") && error.contains("line 2"),
            "{error}"
        );
    }
}
