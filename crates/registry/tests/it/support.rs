//! A real registry on a port of its own, and a small server whose answers a test writes itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use kiln_image::{Descriptor, Digest, Reference};
use kiln_registry::{Client, ClientConfig, Credential, Error, HostConfig, Retry};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

const REGISTRY: &str = "/usr/bin/docker-registry";
/// `user` with the password `secret`.
const HTPASSWD: &str = "user:$2y$04$abcdefghijklmnopqrstuu2r9OfJnfCsdneAXAGHnS4UpFFP8WIrW\n";

/// Debian's docker-registry, which ends with the value.
pub(crate) struct Registry {
    child: Child,
    pub(crate) address: String,
    _data: TempDir,
}

impl Registry {
    /// Starts it; `None` where it is not installed.
    pub(crate) fn start(with_password: bool) -> Option<Self> {
        Self::start_with(with_password, None)
    }

    /// The same with TLS, by a certificate and its key in PEM.
    pub(crate) fn start_with(with_password: bool, tls: Option<(&str, &str)>) -> Option<Self> {
        Self::start_for(with_password, tls, None)
    }

    /// The same for clients alone that show a certificate of this authority.
    pub(crate) fn start_for(
        with_password: bool,
        tls: Option<(&str, &str)>,
        clients: Option<&str>,
    ) -> Option<Self> {
        let data = tempfile::tempdir().unwrap();
        let root = data.path().display();
        let mut config = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {root}/data\nhttp:\n  addr: 127.0.0.1:0\n"
        );
        if with_password {
            std::fs::write(data.path().join("htpasswd"), HTPASSWD).unwrap();
            let _ = write!(
                config,
                "auth:\n  htpasswd:\n    realm: test\n    path: {root}/htpasswd\n"
            );
        }
        if let Some((certificate, key)) = tls {
            std::fs::write(data.path().join("cert.pem"), certificate).unwrap();
            std::fs::write(data.path().join("key.pem"), key).unwrap();
            let mut tls =
                format!("  tls:\n    certificate: {root}/cert.pem\n    key: {root}/key.pem\n");
            if let Some(authority) = clients {
                std::fs::write(data.path().join("clients.pem"), authority).unwrap();
                let _ = write!(tls, "    clientcas:\n      - {root}/clients.pem\n");
            }
            config = config.replace("addr: 127.0.0.1:0\n", &format!("addr: 127.0.0.1:0\n{tls}"));
        }
        let file = data.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new(REGISTRY)
            .arg("serve")
            .arg(&file)
            .env_clear()
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                #[expect(clippy::print_stderr, reason = "a test that does not run must say so")]
                {
                    eprintln!("SKIPPED: {REGISTRY}: {error}");
                }
                return None;
            }
        };
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "the registry ended");
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest.split(['"', ' ', ',', '\n']).next().unwrap().to_owned();
            }
        };
        // A full pipe would stop it.
        thread::spawn(move || io::copy(&mut log, &mut io::sink()));
        Some(Self {
            child,
            address,
            _data: data,
        })
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.address).parse().unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) path: String,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// The value that follows `bytes=` in the range header, as a start.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    }
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Close the connection after so many bytes of the body.
    cut: Option<usize>,
    /// Say nothing more after those bytes, instead of closing.
    stalls: bool,
    /// Say nothing at all.
    silent: bool,
}

impl Reply {
    pub(crate) fn new(status: u16) -> Self {
        Self {
            status,
            ..Self::default()
        }
    }

    /// No answer: the connection is closed, or hangs until the client has enough.
    pub(crate) fn silence() -> Self {
        Self {
            silent: true,
            ..Self::default()
        }
    }

    #[expect(clippy::needless_pass_by_value, reason = "calls read better")]
    pub(crate) fn header(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn body(mut self, body: impl AsRef<[u8]>) -> Self {
        self.body = body.as_ref().to_vec();
        self
    }

    pub(crate) fn cut(mut self, after: usize) -> Self {
        self.cut = Some(after);
        self
    }

    /// After so many bytes of the body nothing comes, and the connection stays.
    pub(crate) fn stall(mut self, after: usize) -> Self {
        self.stalls = true;
        self.cut(after)
    }
}

/// A server that answers as a function says. It reads at most `limit` bytes of each request's body.
pub(crate) struct Server {
    pub(crate) address: String,
    log: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn start(answer: impl FnMut(&Request) -> Reply + Send + 'static) -> Self {
        Self::with_limit(usize::MAX, answer)
    }

    /// Requests with longer bodies are cut off: the connection is closed without an answer.
    pub(crate) fn with_limit(
        limit: usize,
        answer: impl FnMut(&Request) -> Reply + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let log = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(Mutex::new(answer));
        let requests = log.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (requests, answer) = (requests.clone(), answer.clone());
                thread::spawn(move || {
                    let stream = stream.unwrap();
                    let _ = serve(&stream, limit, |request| {
                        requests.lock().unwrap().push(request.clone());
                        (answer.lock().unwrap())(request)
                    });
                });
            }
        });
        Self { address, log }
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        format!("{}/{name}", self.address).parse().unwrap()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    /// `GET /v2/...` of every request so far.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.requests()
            .iter()
            .map(|request| format!("{} {}", request.method, request.path))
            .collect()
    }
}

/// A body without a length, up to the chunk that exceeds the limit.
fn chunked(reader: &mut impl BufRead, limit: usize) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let length = usize::from_str_radix(line.trim_end(), 16).map_err(io::Error::other)?;
        let start = body.len();
        body.resize(start + length, 0);
        reader.read_exact(&mut body[start..])?;
        reader.read_line(&mut String::new())?;
        if length == 0 || body.len() > limit {
            return Ok(body);
        }
    }
}

/// One request a connection.
fn serve(
    stream: &TcpStream,
    limit: usize,
    answer: impl FnOnce(&Request) -> Reply,
) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split(' ');
    let (Some(method), Some(path)) = (words.next(), words.next()) else {
        return Ok(());
    };
    let mut request = Request {
        method: method.to_owned(),
        path: path.to_owned(),
        headers: BTreeMap::new(),
        body: Vec::new(),
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        request
            .headers
            .insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let too_long = if request.header("transfer-encoding") == "chunked" {
        request.body = chunked(&mut reader, limit)?;
        request.body.len() > limit
    } else {
        let length: usize = request.header("content-length").parse().unwrap_or(0);
        request.body = vec![0; length.min(limit)];
        reader.read_exact(&mut request.body)?;
        length > limit
    };
    request.body.truncate(limit);
    let reply = answer(&request);
    if reply.silent {
        // Until the client closes its side; what it still sends is hardly read.
        while reader.read(&mut [0; 1])? > 0 {
            thread::sleep(Duration::from_millis(10));
        }
        return Ok(());
    }
    if too_long {
        return Ok(());
    }
    let mut head = format!("HTTP/1.1 {} x\r\nconnection: close\r\n", reply.status);
    if !reply
        .headers
        .iter()
        .any(|(name, _)| name == "content-length")
    {
        let _ = write!(head, "content-length: {}\r\n", reply.body.len());
    }
    for (name, value) in &reply.headers {
        let _ = write!(head, "{name}: {value}\r\n");
    }
    let mut stream = stream;
    stream.write_all(head.as_bytes())?;
    stream.write_all(b"\r\n")?;
    if request.method != "HEAD" {
        let end = reply.cut.unwrap_or(reply.body.len());
        stream.write_all(&reply.body[..end.min(reply.body.len())])?;
    }
    stream.flush()?;
    if reply.stalls {
        // Until the client has enough.
        let _ = reader.read(&mut [0; 1]);
    }
    Ok(())
}

/// A client that is quick to try again.
pub(crate) fn config() -> ClientConfig {
    let pause = Duration::from_millis(1);
    ClientConfig {
        retry: Retry {
            pause,
            ..Retry::default()
        },
        ..ClientConfig::default()
    }
}

pub(crate) fn client() -> Client {
    Client::new(config())
}

/// A client that knows one credential for all registries.
pub(crate) fn client_with(credential: Credential) -> Client {
    let credentials = move |_: &str| Ok(Some(credential.clone()));
    Client::new(ClientConfig {
        credentials: Arc::new(credentials),
        ..config()
    })
}

/// A client that asks mirrors for what is in `registry`.
pub(crate) fn client_with_mirrors(registry: &str, mirrors: &[&str]) -> Client {
    let mut config = config();
    let mirrors = mirrors.iter().map(|mirror| (*mirror).to_owned()).collect();
    config.hosts.insert(
        registry.to_owned(),
        HostConfig {
            mirrors,
            ..HostConfig::default()
        },
    );
    Client::new(config)
}

pub(crate) fn password(username: &str, password: &str) -> Credential {
    Credential::Password {
        username: username.to_owned(),
        password: password.to_owned(),
    }
}

pub(crate) fn digest(bytes: &[u8]) -> Digest {
    Digest::new(Sha256::digest(bytes).into())
}

pub(crate) fn descriptor(bytes: &[u8]) -> Descriptor {
    Descriptor::new(
        "application/octet-stream",
        digest(bytes),
        bytes.len() as u64,
    )
}

/// Bytes without a pattern that a shift would hide.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_9abc_def0_u64;
    (0..length)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as u8
        })
        .collect()
}

/// The bytes as something to push.
pub(crate) fn source(
    bytes: &[u8],
) -> impl Fn(u64) -> io::Result<Box<dyn Read + Send>> + Sync + 'static {
    let bytes = Arc::new(bytes.to_vec());
    move |offset| {
        let mut reader = io::Cursor::new(bytes.as_ref().clone());
        reader.set_position(offset);
        Ok(Box::new(reader))
    }
}

/// Reads a blob to its verified end.
pub(crate) fn pull(
    client: &Client,
    reference: &Reference,
    blob: &Descriptor,
    have: &[u8],
) -> Result<Vec<u8>, Error> {
    let mut have = have;
    let mut reader = client.blob(reference, blob, &mut have, Arc::new(()))?;
    let mut bytes = Vec::new();
    match reader.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(error) => Err(error.downcast().unwrap()),
    }
}
