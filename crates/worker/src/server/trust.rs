//! The host's certificates in a step: `--host-ca`, `--ca-cert`.
//!
//! Programs find them in three ways, since no single one reaches all: a bundle under `/run` that variables name, a key
//! store there for Java, and a layer that is stacked on the image for this one step, in which the system's bundle has
//! the additional certificates, and the folder of local ones, too, so that they survive an update of the bundle. When
//! the step is over they are taken out of what it left.

mod certificates;

use std::io::{Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_image::view::MergedView;
use kiln_image::{Entry, FileDigest, Kind, LayerIndex, LayerPath};
use kiln_rootfs::Lower;
use kiln_sandbox::SandboxMount;
use kiln_store::layer_fs::{Content, Ids, LayerFs};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, ResolveFlags, Timespec, Timestamps, fstat, futimens, open, openat2,
    readlinkat, unlinkat,
};

use self::certificates::{Certificate, java_key_store, parse, without};
use super::failure;
use crate::protocol::{Failure, Trust};

/// Where systems keep what all programs trust.
const BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/var/lib/ca-certificates/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Where systems look for additions when they make the bundle anew.
const ANCHORS: [&str; 4] = [
    "/usr/local/share/ca-certificates",
    "/etc/pki/ca-trust/source/anchors",
    "/etc/ca-certificates/trust-source/anchors",
    "/etc/pki/trust/anchors",
];

/// Where an update of the bundle makes links to each certificate.
const LINKS: &str = "/etc/ssl/certs";

/// What names of files begin with that only stand for the host's certificates.
const PREFIX: &str = "kiln-host-ca-";

const BUNDLE: &str = "/run/kiln/ca/bundle.pem";
const KEY_STORE: &str = "/run/kiln/ca/trust.jks";
const APT: &str = "/run/kiln/ca/apt.conf";

/// Variables that name a bundle, each read by some programs only.
const VARIABLES: [&str; 15] = [
    // OpenSSL and all that is built on it, Go, rustls, uv.
    "SSL_CERT_FILE",
    "CURL_CA_BUNDLE",
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
    "AWS_CA_BUNDLE",
    "PERL_LWP_SSL_CA_FILE",
    "DENO_CERT",
    "COMPOSER_CAFILE",
    "BUNDLE_SSL_CA_CERT",
    "HTTPLIB2_CA_CERTS",
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "NIX_SSL_CERT_FILE",
];

/// Larger files are no bundles, and are not searched for copies.
const MOST: u64 = 16 << 20;

/// The host's certificates in one step.
pub(super) struct Trusted {
    /// In the bundle under `/run`: the image's and the host's.
    all: Vec<Certificate>,
    /// Not trusted by the image itself.
    added: Vec<Certificate>,
    /// The image's bundles.
    bundles: Vec<LayerPath>,
    /// The layer's folder.
    dir: PathBuf,
}

impl Trusted {
    /// Finds out what to add to the image of `lowers`, and makes a layer of it in `dir`; none when the image has nowhere
    /// to put it.
    pub(super) fn prepare(
        trust: &Trust,
        view: &MergedView,
        lowers: &[Lower],
        dir: PathBuf,
        ids: Ids,
    ) -> Result<(Self, Option<Lower>), Failure> {
        let mut bundles = Vec::new();
        let mut own = Vec::new();
        for path in BUNDLES {
            let Ok(path) = view.resolve(path.as_bytes(), true) else {
                continue;
            };
            let Some(node) = view.get(&path).filter(|node| node.entry.is_file()) else {
                continue;
            };
            if bundles.iter().any(|(known, _)| *known == path) {
                continue;
            }
            let bytes = read(&lowers[node.layer].dirs.find(&path))
                .map_err(|error| failure("cannot read the image's certificates", &error))?;
            own.extend(parse(&bytes));
            bundles.push((path, bytes));
        }
        let bundle = parse(&trust.bundle);
        let mut added = parse(&trust.anchors);
        if added.is_empty() {
            added.clone_from(&bundle);
        }
        added.retain(|certificate| !own.contains(certificate));
        let mut all = own;
        for certificate in bundle.iter().chain(&added) {
            if !all.contains(certificate) {
                all.push(certificate.clone());
            }
        }
        let mut items: Vec<(Entry, Vec<u8>)> = Vec::new();
        let text: Vec<u8> = added.iter().flat_map(Certificate::to_pem).collect();
        for (path, mut bytes) in bundles.iter().cloned() {
            if let Some(node) = view.get(&path) {
                if bytes.last().is_some_and(|byte| *byte != b'\n') {
                    bytes.push(b'\n');
                }
                bytes.extend(&text);
                let mut entry = node.entry.clone();
                entry.hardlink = None;
                items.push((entry, bytes));
            }
        }
        for folder in ANCHORS {
            let Ok(folder) = view.resolve(folder.as_bytes(), true) else {
                continue;
            };
            let Some(node) = view.get(&folder).filter(|node| node.entry.is_dir()) else {
                continue;
            };
            for (number, certificate) in added.iter().enumerate() {
                let path = folder.child(format!("{PREFIX}{}.crt", number + 1));
                let mut entry = Entry::dir(path, 0o644, 0, 0, node.entry.mtime);
                entry.kind = Kind::Fifo;
                items.push((entry, certificate.to_pem()));
            }
        }
        let trusted = Self {
            all,
            added,
            bundles: bundles.into_iter().map(|(path, _)| path).collect(),
            dir,
        };
        if items.is_empty() || trusted.added.is_empty() {
            return Ok((trusted, None));
        }
        let index = trusted
            .write(view, items, ids)
            .map_err(|error| failure("cannot add the host's certificates", &error))?;
        let lower = Lower {
            dirs: trusted.dir.join("fs").into(),
            index: Arc::new(index),
        };
        Ok((trusted, Some(lower)))
    }

    /// Writes the layer: the files, with the folders above as the image has them.
    fn write(
        &self,
        view: &MergedView,
        items: Vec<(Entry, Vec<u8>)>,
        ids: Ids,
    ) -> std::io::Result<LayerIndex> {
        std::fs::create_dir(&self.dir)?;
        let fs = LayerFs::create(&self.dir, ids)?;
        let mut entries: std::collections::BTreeMap<LayerPath, (Entry, Option<Vec<u8>>)> =
            std::collections::BTreeMap::new();
        for (mut entry, bytes) in items {
            let mut folder = entry.path.parent();
            while let Some(path) = folder {
                if let Some(node) = view.get(&path) {
                    let mut above = node.entry.clone();
                    above.kind = Kind::Dir {
                        opaque: false,
                        implied: false,
                    };
                    entries.entry(path.clone()).or_insert((above, None));
                }
                folder = path.parent();
            }
            entry.kind = Kind::File {
                size: bytes.len() as u64,
                digest: FileDigest::new(*blake3::hash(&bytes).as_bytes()),
            };
            entries.insert(entry.path.clone(), (entry, Some(bytes)));
        }
        for (entry, bytes) in entries.values() {
            if !entry.path.is_root() {
                fs.put(
                    entry,
                    bytes.as_deref().map_or(Content::None, Content::Bytes),
                )?;
            }
        }
        let index = LayerIndex::new(entries.into_values().map(|(entry, _)| entry).collect());
        fs.finish(&index)?;
        Ok(index)
    }

    /// What is mounted under `/run`.
    pub(super) fn mounts(&self) -> Vec<SandboxMount<'static>> {
        let bundle: Vec<u8> = self.all.iter().flat_map(Certificate::to_pem).collect();
        let apt = format!("Acquire::https::CAInfo \"{BUNDLE}\";\n");
        vec![
            SandboxMount::file(BUNDLE, bundle),
            SandboxMount::file(KEY_STORE, java_key_store(&self.all)),
            SandboxMount::file(APT, apt),
        ]
    }

    /// Adds the variables that `env` does not set itself.
    pub(super) fn add_variables(env: &mut Vec<String>) {
        let value_at = |env: &[String], name: &str| {
            env.iter().position(|it| it.split('=').next() == Some(name))
        };
        for (name, value) in VARIABLES
            .into_iter()
            .map(|name| (name, BUNDLE))
            .chain([("APT_CONFIG", APT)])
        {
            if value_at(env, name).is_none() {
                env.push(format!("{name}={value}"));
            }
        }
        // The one variable that every Java reads; what it holds already stays.
        let options =
            format!("-Djavax.net.ssl.trustStore={KEY_STORE} -Djavax.net.ssl.trustStoreType=JKS");
        match value_at(env, "JAVA_TOOL_OPTIONS") {
            Some(at) if env[at].contains("javax.net.ssl.trustStore=") => {}
            Some(at) => {
                env[at].push(' ');
                env[at].push_str(&options);
            }
            None => env.push(format!("JAVA_TOOL_OPTIONS={options}")),
        }
    }

    /// Takes the host's certificates out of what the step left in `folder`.
    ///
    /// Whatever the step made of the paths, nothing outside of the folder is touched: no link is followed.
    pub(super) fn take_out(&self, folder: &Path) -> std::io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(folder, flags, Mode::empty())?;
        let within = |path: &LayerPath, flags: OFlags| {
            openat2(
                &root,
                path.as_path(),
                flags | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
            )
        };
        let mut bundles = self.bundles.clone();
        bundles.extend(BUNDLES.map(LayerPath::clean));
        for path in &bundles {
            let Ok(file) = within(path, OFlags::RDWR | OFlags::NONBLOCK) else {
                continue;
            };
            self.clean(std::fs::File::from(file))?;
        }
        for path in ANCHORS {
            let Ok(folder) = within(&LayerPath::clean(path), OFlags::RDONLY | OFlags::DIRECTORY)
            else {
                continue;
            };
            for number in 1..=self.added.len() {
                match unlinkat(&folder, format!("{PREFIX}{number}.crt"), AtFlags::empty()) {
                    Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::ISDIR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        let Ok(links) = within(&LayerPath::clean(LINKS), OFlags::RDONLY | OFlags::DIRECTORY) else {
            return Ok(());
        };
        for entry in rustix::fs::Dir::read_from(&links)? {
            let entry = entry?;
            let Ok(target) = readlinkat(&links, entry.file_name(), Vec::new()) else {
                continue;
            };
            let name = target.to_bytes().rsplit(|byte| *byte == b'/').next();
            if name.is_some_and(|name| name.starts_with(PREFIX.as_bytes())) {
                unlinkat(&links, entry.file_name(), AtFlags::empty())?;
            }
        }
        Ok(())
    }

    /// Takes the certificates out of a bundle; its time stays.
    fn clean(&self, mut file: std::fs::File) -> std::io::Result<()> {
        let meta = file.metadata()?;
        if !meta.is_file() || meta.len() > MOST {
            return Ok(());
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let Some(left) = without(&bytes, &self.added) else {
            return Ok(());
        };
        let stat = fstat(&file)?;
        file.rewind()?;
        file.write_all(&left)?;
        file.set_len(left.len() as u64)?;
        let time = Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec.cast_signed(),
        };
        futimens(
            &file,
            &Timestamps {
                last_access: time,
                last_modification: time,
            },
        )?;
        Ok(())
    }

    /// Removes the layer that was made for the step.
    pub(super) fn remove(&self) -> std::io::Result<()> {
        kiln_store::layer_fs::delete_layer(&self.dir)
    }

    /// Files of the new layer that hold one of the certificates all the same, in words.
    pub(super) fn copies(&self, layer_dir: &Path, index: &LayerIndex) -> Vec<String> {
        let mut found = Vec::new();
        for entry in index.entries() {
            let Kind::File { size, .. } = entry.kind else {
                continue;
            };
            if !(64..=MOST).contains(&size) {
                continue;
            }
            let Ok(bytes) = read(&layer_dir.join("fs").join(entry.path.as_path())) else {
                continue;
            };
            if self
                .added
                .iter()
                .any(|certificate| certificate.is_in(&bytes))
            {
                found.push(format!(
                    "/{} holds a certificate of the host, and will be in the image",
                    String::from_utf8_lossy(entry.path.as_bytes()).trim_start_matches('/')
                ));
            }
        }
        found
    }
}

/// Reads a file of a layer, which is a regular one by its index.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let mut bytes = Vec::new();
    std::fs::File::from(file)
        .take(MOST)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}
