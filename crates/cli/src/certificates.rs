//! The machine's trusted certificates, for `--host-ca` and `--ca-cert`.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use kiln_engine::Trust;

use crate::args::TrustArgs;

/// Where distributions keep all that is trusted.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where an administrator puts additional authorities.
const ANCHORS: [&str; 4] = [
    "/usr/local/share/ca-certificates",
    "/etc/pki/ca-trust/source/anchors",
    "/etc/ca-certificates/trust-source/anchors",
    "/etc/pki/trust/anchors",
];

const BEGIN: &str = "-----BEGIN CERTIFICATE-----";

/// What steps are to trust; `None` when nothing was asked for. `bundle` is the file that `SSL_CERT_FILE` names.
pub(crate) fn trust(args: &TrustArgs, bundle: Option<PathBuf>) -> Result<Option<Trust>> {
    if !args.host_ca && args.ca_certs.is_empty() {
        return Ok(None);
    }
    let mut trust = Trust::default();
    if args.host_ca {
        let bundles = bundle.into_iter().chain(BUNDLES.map(PathBuf::from));
        for path in bundles {
            if let Ok(text) = std::fs::read(&path) {
                append(&mut trust.bundle, &text);
                break;
            }
        }
        for folder in ANCHORS {
            anchors(Path::new(folder), 0, &mut trust.anchors)?;
        }
        if trust.bundle.is_empty() && trust.anchors.is_empty() {
            bail!(
                "--host-ca: this machine has no trusted certificates in any of the usual places\nhint: name a file with --ca-cert FILE"
            );
        }
    }
    for path in &args.ca_certs {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("--ca-cert {}", path.display()))?;
        if !text.contains(BEGIN) {
            bail!(
                "--ca-cert {}: there is no certificate in it: expected PEM, {BEGIN}",
                path.display()
            );
        }
        append(&mut trust.anchors, text.as_bytes());
    }
    Ok(Some(trust))
}

fn append(to: &mut Vec<u8>, text: &[u8]) {
    to.extend(text);
    to.push(b'\n');
}

/// Collects the PEM files of a folder and of those in it. What is no PEM is passed over, as the system's own tools do.
fn anchors(folder: &Path, depth: u32, found: &mut Vec<u8>) -> Result<()> {
    const DEEPEST: u32 = 4;
    let Ok(entries) = std::fs::read_dir(folder) else {
        return Ok(());
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() && depth < DEEPEST {
            anchors(&path, depth + 1, found)?;
        } else if path.is_file() {
            let text =
                std::fs::read(&path).with_context(|| format!("--host-ca: {}", path.display()))?;
            if text
                .windows(BEGIN.len())
                .any(|window| window == BEGIN.as_bytes())
            {
                append(found, &text);
            }
        }
    }
    Ok(())
}
