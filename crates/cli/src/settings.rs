//! The configuration file, `kiln.toml`: the system's, then the user's own, which wins.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use kiln_registry::HostConfig;
use kiln_store::{Disk, SpaceLimits};
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
    /// How much the store may take.
    #[serde(default)]
    storage: Storage,
    /// Where the store is, and how steps are separated from the machine.
    #[serde(default)]
    store: Place,
    /// What builds do where the command line says nothing.
    #[serde(default)]
    build: Build,
    /// The live screen.
    #[serde(default)]
    display: Display,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Place {
    /// `--root`
    root: Option<PathBuf>,
    /// `--isolation`
    isolation: Option<String>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Build {
    /// `--progress`
    progress: Option<String>,
    /// `--platform`
    platform: Option<String>,
    /// `--network`
    network: Option<String>,
    /// `--jobs`
    jobs: Option<u32>,
    /// `--summary`
    summary: Option<bool>,
    /// `--host-ca`
    host_ca: Option<bool>,
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Display {
    /// As `BUILDKIT_COLORS`, or `none`.
    colors: Option<String>,
    /// Lines of a running step's output.
    log_lines: Option<usize>,
}

/// What the files say instead of the usual values of options: the option's name in the grammar, and the value.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Defaults {
    /// Of every command.
    pub(crate) global: Vec<(&'static str, String)>,
    /// Of `kiln build`.
    pub(crate) build: Vec<(&'static str, String)>,
}

/// What the files say instead of the usual values of options.
pub(crate) fn defaults(files: &Files) -> Result<Defaults> {
    let mut found = Defaults::default();
    for Settings { store, build, .. } in read(files)? {
        let root = store.root.map(|root| root.display().to_string());
        for (name, value) in [("root", root), ("isolation", store.isolation)] {
            found.global.extend(value.map(|value| (name, value)));
        }
        for (name, value) in [
            ("progress", build.progress),
            ("platform", build.platform),
            ("network", build.network),
            ("jobs", build.jobs.map(|jobs| jobs.to_string())),
            ("summary", build.summary.map(|it| it.to_string())),
            ("host_ca", build.host_ca.map(|it| it.to_string())),
        ] {
            found.build.extend(value.map(|value| (name, value)));
        }
    }
    Ok(found)
}

/// What the files say of the live screen: colours as `BUILDKIT_COLORS` has them, lines of output.
pub(crate) fn screen(files: &Files) -> Result<(Option<String>, Option<usize>)> {
    let mut found = (None, None);
    for Settings { display, .. } in read(files)? {
        found.0 = display.colors.or(found.0);
        found.1 = display.log_lines.or(found.1);
    }
    Ok(found)
}

#[derive(Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Storage {
    /// All that is in the store, as `50GB` or `40%` of the disk.
    max_size: Option<String>,
    /// What stays free of the disk.
    reserve: Option<String>,
}

/// Which files are read.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// Read instead of the usual ones, and must be there.
    pub(crate) given: Option<PathBuf>,
    /// The folder of the user's configuration.
    pub(crate) home: Option<PathBuf>,
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

/// What the files say, the one that wins last.
fn read(files: &Files) -> Result<Vec<Settings>> {
    let home = files.home.as_ref();
    let usual = [
        Some(SYSTEM.into()),
        home.map(|home| home.join("kiln/kiln.toml")),
    ];
    let paths: Vec<PathBuf> = match &files.given {
        Some(path) => vec![path.clone()],
        None => usual.into_iter().flatten().collect(),
    };
    let mut all = Vec::new();
    for path in paths {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if files.given.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                continue;
            }
            Err(error) => return Err(error).context(path.display().to_string()),
        };
        all.push(parse(&text).with_context(|| path.display().to_string())?);
    }
    Ok(all)
}

/// What the files say of registries.
pub(crate) fn registries(files: &Files) -> Result<BTreeMap<String, HostConfig>> {
    let mut hosts = BTreeMap::new();
    for settings in read(files)? {
        for (name, registry) in settings.registries {
            hosts.insert(name, host(registry)?);
        }
    }
    Ok(hosts)
}

/// Adds what the folders of certificates say that docker and podman have, `certs.d/HOST:PORT`: authorities (`*.crt`), and
/// the certificate to show with its key (`*.cert`, `*.key`). What `kiln.toml` says of a host stays.
pub(crate) fn add_certificates(
    hosts: &mut BTreeMap<String, HostConfig>,
    folders: &[PathBuf],
) -> Result<()> {
    for folder in folders.iter().rev() {
        let Ok(found) = std::fs::read_dir(folder) else {
            continue;
        };
        for host in found.flatten() {
            let Ok(name) = host.file_name().into_string() else {
                continue;
            };
            // A folder that this user may not enter is for others.
            let Ok(files) = std::fs::read_dir(host.path()) else {
                continue;
            };
            let mut paths: Vec<PathBuf> = files.flatten().map(|file| file.path()).collect();
            paths.sort();
            let host = hosts.entry(name).or_default();
            for path in paths {
                let read =
                    |path: &Path| std::fs::read(path).with_context(|| path.display().to_string());
                match path.extension().and_then(|end| end.to_str()) {
                    Some("crt") => {
                        host.certificates.push(read(&path)?);
                        // On the loopback interface, too, who has a certificate speaks TLS.
                        host.plain_http.get_or_insert(false);
                    }
                    Some("cert") => {
                        let key = path.with_extension("key");
                        let pem = [read(&path)?, b"\n".to_vec(), read(&key)?].concat();
                        host.identity.get_or_insert(pem);
                        host.plain_http.get_or_insert(false);
                    }
                    _ => {}
                }
            }
        }
    }
    Ok(())
}

/// Adds what variables of the environment say of registries: lists of hosts, and of `HOST=FILE` for certificates.
pub(crate) fn add_variables(
    hosts: &mut BTreeMap<String, HostConfig>,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<()> {
    let list = |name| {
        let words = variable(name).unwrap_or_default();
        let words = words.split(',').map(|word| word.trim().to_owned());
        words.filter(|word| !word.is_empty()).collect::<Vec<_>>()
    };
    for name in list("KILN_REGISTRY_INSECURE") {
        hosts.entry(name).or_default().insecure = true;
    }
    for name in list("KILN_REGISTRY_PLAIN_HTTP") {
        hosts.entry(name).or_default().plain_http = Some(true);
    }
    for word in list("KILN_REGISTRY_CERTIFICATES") {
        let name = "KILN_REGISTRY_CERTIFICATES";
        let (host, path) = word
            .split_once('=')
            .with_context(|| format!("{name}: {word:?}: expected HOST=FILE"))?;
        let pem = std::fs::read(path).with_context(|| format!("{name}: {path}"))?;
        let host = hosts.entry(host.to_owned()).or_default();
        host.certificates.push(pem);
        host.plain_http.get_or_insert(false);
    }
    Ok(())
}

/// How much a store may take: as the environment says, else the files, else a share of its disk.
pub(crate) fn limits(root: &Path) -> Result<SpaceLimits> {
    let disk = Disk::of(root)?;
    let mut limits = SpaceLimits::of_disk(disk.total);
    for settings in read(&crate::context::config_files())? {
        if let Some(text) = settings.storage.max_size {
            limits.most = amount(&text, disk.total).context("storage.max-size")?;
        }
        if let Some(text) = settings.storage.reserve {
            limits.reserve = amount(&text, disk.total).context("storage.reserve")?;
        }
    }
    if let Some(text) = crate::context::variable("KILN_STORAGE_MAX_SIZE") {
        limits.most = amount(&text, disk.total).context("KILN_STORAGE_MAX_SIZE")?;
    }
    if let Some(text) = crate::context::variable("KILN_STORAGE_RESERVE") {
        limits.reserve = amount(&text, disk.total).context("KILN_STORAGE_RESERVE")?;
    }
    Ok(limits)
}

/// Reads a size: bytes, with one of docker's units (`10GB`, `512MiB`, `1g`), or a share of the disk (`40%`).
pub(crate) fn amount(text: &str, disk: u64) -> Result<u64> {
    let wrong = || format!("{text:?}: expected a size like 50GB, or a share of the disk like 40%");
    let text = text.trim();
    let end = text
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(text.len());
    let number: f64 = text[..end].parse().ok().with_context(wrong)?;
    let factor = match text[end..].trim().to_ascii_lowercase().as_str() {
        "%" if number <= 100.0 => disk as f64 / 100.0,
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        "tib" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => anyhow::bail!(wrong()),
    };
    Ok((number * factor) as u64)
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
        identity: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("1000", 1000),
            ("1.5k", 1500),
            ("10GB", 10_000_000_000),
            ("2 MiB", 2 << 20),
            ("25%", 250),
        ] {
            assert_eq!(amount(text, 1000).unwrap(), bytes, "{text}");
        }
        for text in ["", "GB", "10 apples", "-1", "120%"] {
            assert!(amount(text, 1000).is_err(), "{text}");
        }
        let settings = parse("[storage]\nmax-size = \"50GB\"\n").unwrap();
        assert_eq!(settings.storage.max_size.as_deref(), Some("50GB"));
    }

    /// Each key of the file, with the variable that says the same: docs/configuration.md has them all.
    const KEYS: [(&str, &str); 16] = [
        ("store.root = \"/x\"", "KILN_ROOT"),
        ("store.isolation = \"userns\"", "KILN_ISOLATION"),
        ("storage.max-size = \"50GB\"", "KILN_STORAGE_MAX_SIZE"),
        ("storage.reserve = \"1GB\"", "KILN_STORAGE_RESERVE"),
        ("build.progress = \"plain\"", "BUILDKIT_PROGRESS"),
        (
            "build.platform = \"linux/amd64\"",
            "DOCKER_DEFAULT_PLATFORM",
        ),
        ("build.network = \"none\"", "KILN_NETWORK"),
        ("build.jobs = 4", "KILN_JOBS"),
        ("build.summary = true", "KILN_SUMMARY"),
        ("build.host-ca = true", "KILN_HOST_CA"),
        ("display.colors = \"run=green\"", "BUILDKIT_COLORS"),
        ("display.log-lines = 10", "BUILDKIT_TTY_LOG_LINES"),
        (
            "registries.\"docker.io\".mirrors = []",
            "KILN_REGISTRY_MIRROR",
        ),
        (
            "registries.\"docker.io\".insecure = true",
            "KILN_REGISTRY_INSECURE",
        ),
        (
            "registries.\"docker.io\".plain-http = true",
            "KILN_REGISTRY_PLAIN_HTTP",
        ),
        (
            "registries.\"docker.io\".certificates = []",
            "KILN_REGISTRY_CERTIFICATES",
        ),
    ];

    /// All keys that a table of the file may have, as the reader tells them.
    fn known_in(table: &str) -> Vec<String> {
        let text = if table.is_empty() {
            "nope = 1".to_owned()
        } else {
            format!("[{table}]\nnope = 1")
        };
        let error = parse(&text).unwrap_err().to_string();
        let (_, known) = error.split_once("expected ").unwrap();
        known
            .split('`')
            .skip(1)
            .step_by(2)
            .map(str::to_owned)
            .collect()
    }

    #[test]
    fn each_key_is_documented_with_its_variable() {
        let mut keys = Vec::new();
        for table in known_in("") {
            let (inside, name) = match table.as_str() {
                "registries" => ("registries.x", "registries.\"docker.io\""),
                other => (other, other),
            };
            keys.extend(known_in(inside).iter().map(|key| format!("{name}.{key}")));
        }
        let listed = KEYS.map(|(line, _)| line.split(" =").next().unwrap_or_default());
        keys.retain(|key| !listed.contains(&key.as_str()));
        assert!(keys.is_empty(), "not in KEYS: {keys:?}");
        let docs = include_str!("../../../docs/configuration.md");
        for (line, variable) in KEYS {
            parse(line).unwrap_or_else(|error| panic!("{line}: {error}"));
            let key = line.split(" =").next().unwrap_or_default();
            let key = key.replace("\"docker.io\"", "NAME");
            let row = docs.lines().find(|row| row.contains(&format!("`{key}`")));
            let row = row.unwrap_or_else(|| panic!("{key} is not in docs/configuration.md"));
            let variable = format!("`{variable}`");
            assert!(row.contains(&variable), "{key}: {variable}: {row}");
        }
    }

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
