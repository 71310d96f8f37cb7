//! A web server on loopback, as small as a test needs it.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// When all files were modified: 1000000000 seconds since 1970.
const MODIFIED: &str = "Sun, 09 Sep 2001 01:46:40 GMT";

/// Serves until the test process ends.
#[derive(Debug)]
pub struct Server {
    address: String,
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    asked: Arc<Mutex<Vec<String>>>,
    wanted: Arc<Mutex<Option<String>>>,
}

impl Server {
    /// Serves `files`: path with a leading slash, and content.
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
        let address = format!("http://{}", listener.local_addr().expect("bound"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        let files = Arc::new(Mutex::new(files));
        let served = Arc::clone(&files);
        let wanted = Arc::new(Mutex::new(None));
        let checked = Arc::clone(&wanted);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that hangs up is its own affair.
                let files = served.lock().expect("no panic while held").clone();
                let wanted = checked.lock().expect("no panic while held").clone();
                let _ = answer(&stream, &files, wanted.as_deref(), &log);
            }
        });
        Self {
            address,
            files,
            asked,
            wanted,
        }
    }

    /// From now on nothing is served without this value of the header `Authorization`.
    pub fn want(&self, authorization: &str) {
        *self.wanted.lock().expect("no panic while held") = Some(authorization.to_owned());
    }

    /// Serves a file, or another content of it.
    pub fn put(&self, path: &str, content: &[u8]) {
        let mut files = self.files.lock().expect("no panic while held");
        files.insert(path.to_owned(), content.to_vec());
    }

    /// `http://HOST:PORT`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The paths asked for so far; ` unchanged` behind those that were answered with 304.
    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic while held").clone()
    }
}

fn answer(
    stream: &TcpStream,
    files: &BTreeMap<String, Vec<u8>>,
    wanted: Option<&str>,
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream.take(64 * 1024)).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut known = None;
    let mut shown = None;
    while let Some(line) = lines.next().transpose()?.filter(|line| !line.is_empty()) {
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("if-none-match")
        {
            known = Some(value.trim().to_owned());
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("authorization")
        {
            shown = Some(value.trim().to_owned());
        }
    }
    let path = request
        .split([' ', '?'])
        .nth(1)
        .unwrap_or_default()
        .to_owned();
    let tag = |body: &[u8]| {
        let mut hasher = DefaultHasher::new();
        body.hash(&mut hasher);
        format!("\"{:x}\"", hasher.finish())
    };
    let (status, body) = match files.get(&path) {
        _ if wanted.is_some() && wanted != shown.as_deref() => {
            ("401 Unauthorized", b"who are you\n".as_slice())
        }
        Some(body) if known == Some(tag(body)) => ("304 Not Modified", b"".as_slice()),
        Some(body) => ("200 OK", body.as_slice()),
        None => ("404 Not Found", b"not here\n".as_slice()),
    };
    let suffix = if status.starts_with("304") {
        " unchanged"
    } else {
        ""
    };
    log.lock().expect("no panic while held").push(path + suffix);
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status}\r\nETag: {}\r\nLast-Modified: {MODIFIED}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        tag(body),
        body.len()
    )?;
    if !request.starts_with("HEAD") {
        stream.write_all(body)?;
    }
    stream.flush()
}
