//! The user's names and passwords: Docker's configuration file and the helpers that it names.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kiln_engine::BuildError;
use kiln_registry::credentials::{
    Credential, CredentialError, Credentials as _, DockerConfig, DockerCredentials, HelperOutput,
    HelperRunner,
};

use crate::context::docker_config;

/// Runs helpers as programs of the search path.
struct Programs;

impl HelperRunner for Programs {
    fn run(&self, program: &str, action: &str, input: &str) -> io::Result<HelperOutput> {
        let mut child = Command::new(program)
            .arg(action)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut stdin = child.stdin.take().expect("piped");
        // A helper that does not read says why on its standard output.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let output = child.wait_with_output()?;
        Ok(HelperOutput {
            ok: output.status.success(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        })
    }
}

fn read(path: &Path) -> Result<DockerConfig, CredentialError> {
    match fs::read_to_string(path) {
        Ok(text) => DockerConfig::parse(&text)
            .map_err(|error| CredentialError::Config(format!("{}: {error}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(DockerConfig::default()),
        Err(error) => Err(CredentialError::Config(format!(
            "{}: {error}",
            path.display()
        ))),
    }
}

/// The credential that the user has for a registry.
pub(crate) fn stored(registry: &str) -> Result<Option<Credential>, CredentialError> {
    let Some(path) = docker_config() else {
        return Ok(None);
    };
    DockerCredentials::new(read(&path)?, Arc::new(Programs)).get(registry)
}

/// The proxies that Docker's configuration names for builds and containers, as variables in both spellings. A file that
/// cannot be read is told of when a registry asks for credentials.
pub(crate) fn proxies() -> Vec<(String, String)> {
    let text = docker_config().and_then(|path| fs::read_to_string(path).ok());
    let parsed = text.and_then(|text| serde_json::from_str::<serde_json::Value>(&text).ok());
    let Some(config) = parsed else {
        return Vec::new();
    };
    let proxies = &config["proxies"]["default"];
    let mut found = Vec::new();
    for (key, name) in [
        ("httpProxy", "HTTP_PROXY"),
        ("httpsProxy", "HTTPS_PROXY"),
        ("ftpProxy", "FTP_PROXY"),
        ("noProxy", "NO_PROXY"),
        ("allProxy", "ALL_PROXY"),
    ] {
        if let Some(value) = proxies[key].as_str().filter(|value| !value.is_empty()) {
            found.push((name.to_owned(), value.to_owned()));
            found.push((name.to_ascii_lowercase(), value.to_owned()));
        }
    }
    found
}

/// Changes what is kept of the user's credentials; the file is written when its content changes.
pub(crate) fn change<T>(
    change: impl FnOnce(&mut DockerCredentials) -> Result<T, CredentialError>,
) -> Result<T> {
    let path = docker_config().ok_or_else(|| {
        BuildError::new("there is no home to keep credentials in")
            .with_hint("set HOME, or DOCKER_CONFIG to a folder")
    })?;
    let before = read(&path)?;
    let mut credentials = DockerCredentials::new(before.clone(), Arc::new(Programs));
    let outcome = change(&mut credentials)?;
    if *credentials.config() != before {
        write(&path, &credentials.config().to_text())
            .with_context(|| path.display().to_string())?;
    }
    Ok(outcome)
}

/// Replaces the file as a whole. Only the user may read it.
fn write(path: &Path, text: &str) -> io::Result<()> {
    // Where the file is a link, what it leads to is replaced.
    let path = &fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if let Some(folder) = path.parent() {
        let mut builder = fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(builder.recursive(true), 0o700).create(folder)?;
    }
    let mut partial = path.clone().into_os_string();
    partial.push(format!(".{}", std::process::id()));
    let write = || -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&partial)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    let written = write();
    if written.is_err() {
        // It may never have been made.
        let _ = fs::remove_file(&partial);
    }
    written
}
