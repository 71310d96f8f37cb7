//! A Docker Engine behind TLS, as far as Kiln needs one.

use std::fs;
use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_tests::{Kiln, Outcome, Setting};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};

/// A certificate that vouches for itself, and its key, as files with these names.
fn identity(folder: &Path, certificate: &str, key: &str) {
    let pair = rcgen::KeyPair::generate().expect("a key");
    let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).expect("an address");
    let pem = params.self_signed(&pair).expect("a certificate").pem();
    fs::write(folder.join(certificate), pem).expect("own folder");
    fs::write(folder.join(key), pair.serialize_pem()).expect("own folder");
}

/// Takes images from whoever has the client's certificate, until the test process ends; gives its address.
fn engine(folder: &Path) -> String {
    let read = |name: &str| CertificateDer::from_pem_file(folder.join(name)).expect("own file");
    let key = PrivateKeyDer::from_pem_file(folder.join("engine-key.pem")).expect("own file");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut clients = RootCertStore::empty();
    clients.add(read("cert.pem")).expect("a certificate");
    let known = WebPkiClientVerifier::builder_with_provider(clients.into(), provider.clone());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("those of the library")
        .with_client_cert_verifier(known.build().expect("one client"))
        .with_single_cert(vec![read("ca.pem")], key)
        .expect("its own key");
    let config = Arc::new(config);
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(config.clone()).expect("a good config");
            // Who is not trusted, or does not trust, hangs up.
            let _ = answer(StreamOwned::new(connection, stream));
        }
    });
    format!("tcp://{address}")
}

fn answer(mut stream: StreamOwned<ServerConnection, std::net::TcpStream>) -> std::io::Result<()> {
    let mut asked = Vec::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        let read = stream.read(&mut piece)?;
        asked.extend(&piece[..read]);
        let ended = if asked.starts_with(b"POST") {
            asked.ends_with(b"0\r\n\r\n")
        } else {
            asked.ends_with(b"\r\n\r\n")
        };
        if read == 0 || ended {
            break;
        }
    }
    // Tars end in zeros; what stands in one shows that it came.
    let whole = asked.windows(13).any(|it| it == b"manifest.json");
    let body = match (asked.starts_with(b"POST /images/load"), whole) {
        (true, true) => "{\"stream\":\"Loaded image: app\\n\"}",
        (true, false) => "{\"error\":\"no archive\"}",
        _ => "OK",
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    )?;
    stream.conn.send_close_notify();
    stream.flush()
}

#[test]
fn an_engine_behind_tls_takes_images_from_whom_it_knows() {
    let Some(kiln) = Kiln::fresh(Setting::User, &["busybox"]) else {
        return;
    };
    let keys: PathBuf = kiln.file("keys");
    let others = kiln.file("others");
    for folder in [&keys, &others] {
        fs::create_dir(folder).expect("own folder");
        identity(folder, "ca.pem", "engine-key.pem");
        identity(folder, "cert.pem", "key.pem");
    }
    let host = engine(&keys);
    let push = |folder: &Path| {
        let mut command = kiln.command(&["push", "docker-daemon:busybox"]);
        command
            .env("DOCKER_HOST", &host)
            .env("DOCKER_TLS_VERIFY", "1");
        let output = command.env("DOCKER_CERT_PATH", folder).output();
        let line = format!("DOCKER_CERT_PATH={} kiln push", folder.display());
        Outcome::new(line, &output.expect("kiln starts"))
    };
    push(&keys).ok().says(&["Loaded image: app"]);

    // The engine is not the one that the user trusts.
    push(&others).failed().says(&[
        &format!("no Docker Engine answers at {host}: "),
        "ertificate",
    ]);
    // The engine does not know the user.
    for name in ["cert.pem", "key.pem"] {
        fs::copy(others.join(name), keys.join(name)).expect("own file");
    }
    push(&keys).failed().says(&["no Docker Engine answers at"]);
    fs::remove_file(keys.join("cert.pem")).expect("own file");
    push(&keys).failed().says(&["no Docker Engine answers at"]);
    // A key that is none is named.
    fs::write(keys.join("ca.pem"), "-----BEGIN CERTIFICATE-----\n!\n").expect("own file");
    push(&keys)
        .failed()
        .says(&["the Docker Engine's certificates: "]);
}
