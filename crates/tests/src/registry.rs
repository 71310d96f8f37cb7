//! Debian's docker-registry on loopback, with a folder of its own.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::skipped;

/// The user that a registry with a password knows, the password, and the line of htpasswd for them (bcrypt).
pub const USER: (&str, &str) = ("sim", "sesame");
const HTPASSWD: &str = "sim:$2y$05$abcdefghijklmnopqrstuuKcS.CYWVYVaLiiCKrrc0A5s3mGesJ9O\n";

/// A running registry. Dropping it ends it and removes what it holds.
#[derive(Debug)]
pub struct Registry {
    server: Option<Child>,
    folder: PathBuf,
    port: u16,
}

impl Registry {
    /// One that everyone may use. None: skipped.
    pub fn start() -> Option<Self> {
        Self::with("")
    }

    /// One that knows only [`USER`]. None: skipped.
    pub fn with_password() -> Option<Self> {
        Self::with("auth:\n  htpasswd:\n    realm: test\n    path: FOLDER/htpasswd\n")
    }

    /// One that takes manifests with layers that are elsewhere. None: skipped.
    pub fn with_urls() -> Option<Self> {
        Self::with("validation:\n  manifests:\n    urls:\n      allow: [\"^http://127.0.0.1\"]\n")
    }

    /// One that speaks TLS with a certificate that nobody trusts; gives the certificate's file, too. None: skipped.
    pub fn with_tls() -> Option<(Self, PathBuf)> {
        if xtask::process::find("openssl").is_none() {
            skipped("openssl is not installed");
            return None;
        }
        let registry = Self::with("  tls: {certificate: FOLDER/cert.pem, key: FOLDER/key.pem}\n")?;
        let certificate = registry.folder.join("cert.pem");
        Some((registry, certificate))
    }

    fn with(more: &str) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        if xtask::process::find("docker-registry").is_none() {
            skipped("docker-registry is not installed");
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = xtask::test::scratch()
            .join(format!("run-{}", std::process::id()))
            .join(format!("registry-{number}"));
        fs::create_dir_all(&folder).expect("own folder");
        // Free now: another program would have to be quick to take it.
        let port = TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("loopback has a free port")
            .port();
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: FOLDER/data}}\n\
             http:\n  addr: 127.0.0.1:{port}\n{more}"
        )
        .replace("FOLDER", folder.to_str().expect("a plain name"));
        fs::write(folder.join("config.yml"), config).expect("own folder");
        fs::write(folder.join("htpasswd"), HTPASSWD).expect("own folder");
        if more.contains("tls") {
            certify(&folder);
        }
        let mut registry = Self {
            server: None,
            folder,
            port,
        };
        registry.resume();
        Some(registry)
    }

    /// Starts it again where it was stopped.
    pub fn resume(&mut self) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log())
            .expect("own folder");
        let server = Command::new("docker-registry")
            .arg("serve")
            .arg(self.folder.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("own file"))
            .stderr(log)
            .spawn()
            .expect("docker-registry starts");
        self.server = Some(server);
        let start = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let late = start.elapsed() > Duration::from_secs(20);
            assert!(!late, "docker-registry does not answer: {}", self.said());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it; nobody answers under its address.
    pub fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }

    /// Its name in references: `127.0.0.1:PORT`.
    pub fn name(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// An image in it.
    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.name())
    }

    /// `http://127.0.0.1:PORT`.
    pub fn address(&self) -> String {
        format!("http://{}", self.name())
    }

    /// The file of a blob.
    pub fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        self.folder
            .join("data/docker/registry/v2/blobs/sha256")
            .join(&hex[..2])
            .join(hex)
            .join("data")
    }

    /// The bytes of the manifest that a tag leads to, as the registry has it.
    pub fn manifest(&self, repository: &str, tag: &str) -> Vec<u8> {
        let link = self.folder.join(format!(
            "data/docker/registry/v2/repositories/{repository}/_manifests/tags/{tag}/current/link"
        ));
        let digest = fs::read_to_string(link).expect("the tag is there");
        fs::read(self.blob(digest.trim())).expect("the manifest is there")
    }

    /// Puts a manifest or an index at a name, as a client would.
    pub fn put_manifest(&self, repository: &str, tag: &str, media_type: &str, document: &str) {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it runs");
        let request = format!(
            "PUT /v2/{repository}/manifests/{tag} HTTP/1.1\r\nHost: {}\r\nContent-Type: {media_type}\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{document}",
            self.name(),
            document.len()
        );
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers");
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }

    /// Forgets what was asked so far.
    pub fn forget(&self) {
        fs::write(self.log(), "").expect("own folder");
    }

    /// What was asked, as `METHOD /path`, since it was started or told to forget.
    pub fn asked(&self) -> Vec<String> {
        // A request is logged only after its answer.
        std::thread::sleep(Duration::from_millis(200));
        let request = |line: &str| {
            let (_, rest) = line.split_once("] \"")?;
            Some(rest.split_once(" HTTP/")?.0.to_owned())
        };
        self.said().lines().filter_map(request).collect()
    }

    fn said(&self) -> String {
        fs::read_to_string(self.log()).unwrap_or_default()
    }

    fn log(&self) -> PathBuf {
        Path::new(&self.folder).join("log")
    }
}

/// Makes a key and a certificate for loopback.
fn certify(folder: &Path) {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=kiln-tests", "-addext"])
        .args(["subjectAltName=IP:127.0.0.1", "-addext"])
        .args(["basicConstraints=critical,CA:FALSE", "-keyout"])
        .arg(folder.join("key.pem"))
        .arg("-out")
        .arg(folder.join("cert.pem"))
        .stderr(Stdio::null())
        .status();
    assert!(made.is_ok_and(|it| it.success()), "openssl failed");
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
