//! Against docker-registry.

use std::sync::Mutex;
use std::thread;

use kiln_image::media_type;
use kiln_registry::{Client, ClientConfig, Error, HostConfig, Observer, Pushed};

use crate::support::{
    Registry, client, client_with, config, descriptor, digest, noise, password, pull, source,
};

/// Remembers what it is told.
#[derive(Default)]
struct Told(Mutex<Vec<(u64, u64)>>);

impl Observer for Told {
    fn progress(&self, done: u64, total: u64) {
        self.0.lock().unwrap().push((done, total));
    }
}

fn manifest(config: &[u8], layer: &[u8]) -> Vec<u8> {
    let mut config = descriptor(config);
    media_type::OCI_CONFIG.clone_into(&mut config.media_type);
    let mut layer = descriptor(layer);
    media_type::OCI_LAYER_GZIP.clone_into(&mut layer.media_type);
    kiln_image::Manifest::new(media_type::OCI_MANIFEST, config, vec![layer]).to_bytes()
}

#[test]
fn an_image_goes_there_and_comes_back() {
    let Some(registry) = Registry::start(false) else {
        return;
    };
    let client = client();
    let reference = registry.reference("team/image:v1");
    let (config, layer) = (b"{}".to_vec(), noise(3_000_000));

    let told = Told::default();
    let push = |bytes: &[u8]| {
        client
            .push_blob(&reference, &descriptor(bytes), &source(bytes), None, &told)
            .unwrap()
    };
    assert_eq!(push(&layer), Pushed::Uploaded);
    assert_eq!(told.0.lock().unwrap().last(), Some(&(3_000_000, 3_000_000)));
    assert_eq!(push(&layer), Pushed::Existed);
    assert_eq!(push(&config), Pushed::Uploaded);
    let document = manifest(&config, &layer);
    let pushed = client
        .push_manifest(&reference, media_type::OCI_MANIFEST, &document, &())
        .unwrap();
    assert_eq!(pushed, digest(&document));

    let head = client.head(&reference, &()).unwrap();
    assert_eq!((head.digest, head.size), (pushed, document.len() as u64));
    let resolved = client.resolve(&reference, &()).unwrap();
    assert_eq!(
        (&resolved.bytes, resolved.media_type.as_str()),
        (&document, media_type::OCI_MANIFEST)
    );
    assert_eq!(client.manifest(&reference, &pushed, &()).unwrap(), resolved);
    assert_eq!(
        client.resolve(&reference.with_digest(pushed), &()).unwrap(),
        resolved
    );

    let blob = descriptor(&layer);
    assert!(pull(&client, &reference, &blob, &[]).unwrap() == layer);
    assert!(pull(&client, &reference, &blob, &layer[..1_000_001]).unwrap() == layer[1_000_001..]);
    assert!(pull(&client, &reference, &blob, &layer).unwrap().is_empty());
    assert!(matches!(
        pull(&client, &reference, &blob, b"wrong"),
        Err(Error::Corrupt { .. })
    ));

    let other = registry.reference("other/image:v1");
    let mount = |from| {
        client
            .push_blob(&other, &blob, &source(&layer), Some(from), &())
            .unwrap()
    };
    assert_eq!(mount("team/image"), Pushed::Mounted);
    let third = registry.reference("third/image:v1");
    let mounted = client
        .push_blob(&third, &blob, &source(&layer), Some("not/there"), &())
        .unwrap();
    assert_eq!(mounted, Pushed::Uploaded);

    let fourth = registry.reference("fourth/image:v1");
    let offer = |from| client.offer_blob(&fourth, &blob, from, &()).unwrap();
    assert_eq!(offer(None), None);
    assert_eq!(offer(Some("not/there")), None);
    assert_eq!(offer(Some("team/image")), Some(Pushed::Mounted));
    assert_eq!(offer(None), Some(Pushed::Existed));
}

#[test]
fn what_is_not_there_is_named() {
    let Some(registry) = Registry::start(false) else {
        return;
    };
    let client = client();
    let reference = registry.reference("no/such:tag");
    let error = client.resolve(&reference, &()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{}/no/such:tag: not found", registry.address)
    );
    let error = pull(&client, &reference, &descriptor(b"x"), &[]).unwrap_err();
    assert!(
        matches!(&error, Error::NotFound { what } if what.starts_with("blob sha256:2d711642")),
        "{error}"
    );
}

#[test]
fn blobs_go_up_in_pieces() {
    let Some(registry) = Registry::start(false) else {
        return;
    };
    let client = Client::new(ClientConfig {
        upload_chunk: Some(300_000),
        ..config()
    });
    let reference = registry.reference("pieces");
    for length in [0, 1, 300_000, 1_000_000] {
        let bytes = noise(length);
        let pushed = client
            .push_blob(&reference, &descriptor(&bytes), &source(&bytes), None, &())
            .unwrap();
        assert_eq!(pushed, Pushed::Uploaded);
        assert!(pull(&client, &reference, &descriptor(&bytes), &[]).unwrap() == bytes);
    }
}

#[test]
fn a_wrong_digest_is_refused() {
    let Some(registry) = Registry::start(false) else {
        return;
    };
    let reference = registry.reference("x");
    let bytes = noise(1000);
    let mut blob = descriptor(&bytes);
    blob.digest = digest(b"other");
    let error = client()
        .push_blob(&reference, &blob, &source(&bytes), None, &())
        .unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

#[test]
fn a_password_is_needed() {
    let Some(registry) = Registry::start(true) else {
        return;
    };
    let reference = registry.reference("private");
    let bytes = noise(100_000);
    let push = |client: &Client| {
        client.push_blob(&reference, &descriptor(&bytes), &source(&bytes), None, &())
    };

    for client in [client(), client_with(password("user", "wrong"))] {
        let error = push(&client).unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error}");
        assert_eq!(
            error.hint().unwrap(),
            format!(
                "if it exists, log in with `kiln login {}`",
                registry.address
            )
        );
        assert!(matches!(
            client.ping(&registry.address, &()),
            Err(Error::Denied { .. })
        ));
    }
    let client = client_with(password("user", "secret"));
    client.ping(&registry.address, &()).unwrap();
    assert_eq!(push(&client).unwrap(), Pushed::Uploaded);
    assert!(pull(&client, &reference, &descriptor(&bytes), &[]).unwrap() == bytes);
}

#[test]
fn many_threads_share_a_client() {
    let Some(registry) = Registry::start(true) else {
        return;
    };
    let client = client_with(password("user", "secret"));
    thread::scope(|scope| {
        for number in 0..8 {
            let (client, registry) = (&client, &registry);
            scope.spawn(move || {
                let reference = registry.reference(&format!("r{}", number % 3));
                let bytes = noise(100_000 + number);
                client
                    .push_blob(&reference, &descriptor(&bytes), &source(&bytes), None, &())
                    .unwrap();
                assert!(pull(client, &reference, &descriptor(&bytes), &[]).unwrap() == bytes);
            });
        }
    });
}

#[test]
fn certificates_are_checked() {
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(["127.0.0.1".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    let pem = certificate.pem();
    let Some(registry) = Registry::start_with(false, Some((&pem, &key.serialize_pem()))) else {
        return;
    };
    let ping = |host: HostConfig, certificates: &[&str]| {
        let mut config = config();
        config.certificates = certificates
            .iter()
            .map(|pem| pem.as_bytes().to_vec())
            .collect();
        config.hosts.insert(
            registry.address.clone(),
            HostConfig {
                plain_http: Some(false),
                ..host
            },
        );
        Client::new(config).ping(&registry.address, &())
    };

    let error = ping(HostConfig::default(), &[]).unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { cause, .. } if cause.contains("certificate")),
        "{error}"
    );
    ping(HostConfig::default(), &[&pem]).unwrap();
    ping(
        HostConfig {
            certificates: vec![pem.clone().into_bytes()],
            ..HostConfig::default()
        },
        &[],
    )
    .unwrap();
    ping(
        HostConfig {
            insecure: true,
            ..HostConfig::default()
        },
        &[],
    )
    .unwrap();
    let error = ping(
        HostConfig {
            certificates: vec![b"no".to_vec()],
            ..HostConfig::default()
        },
        &[],
    );
    assert!(
        matches!(error, Err(Error::Config(_) | Error::Unreachable { .. })),
        "{error:?}"
    );
}

#[test]
fn an_insecure_host_may_speak_plain_http() {
    let Some(registry) = Registry::start(false) else {
        return;
    };
    let mut config = config();
    let host = HostConfig {
        insecure: true,
        plain_http: Some(false),
        ..HostConfig::default()
    };
    config.hosts.insert(registry.address.clone(), host);
    Client::new(config).ping(&registry.address, &()).unwrap();
}

/// A certificate of an address, signed by itself, and its key.
fn certificate() -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_client_shows_its_certificate() {
    let (server, user) = (certificate(), certificate());
    let tls = Some((server.0.as_str(), server.1.as_str()));
    let Some(registry) = Registry::start_for(false, tls, Some(&user.0)) else {
        return;
    };
    let ping = |identity: Option<Vec<u8>>| {
        let mut config = config();
        let host = HostConfig {
            plain_http: Some(false),
            certificates: vec![server.0.clone().into_bytes()],
            identity,
            ..HostConfig::default()
        };
        config.hosts.insert(registry.address.clone(), host);
        Client::new(config).ping(&registry.address, &())
    };
    let error = ping(None).unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
    ping(Some([user.0.as_bytes(), b"\n", user.1.as_bytes()].concat())).unwrap();
    let error = ping(Some(b"no key".to_vec())).unwrap_err();
    assert!(matches!(error, Error::Config(_)), "{error}");
}

#[test]
fn a_password_is_needed_with_tls_too() {
    let (pem, key) = certificate();
    let Some(registry) = Registry::start_with(true, Some((&pem, &key))) else {
        return;
    };
    let ping = |credential: Option<kiln_registry::Credential>| {
        let mut config = config();
        let host = HostConfig {
            plain_http: Some(false),
            certificates: vec![pem.clone().into_bytes()],
            ..HostConfig::default()
        };
        config.hosts.insert(registry.address.clone(), host);
        if let Some(credential) = credential {
            let known = move |_: &str| Ok(Some(credential.clone()));
            config.credentials = std::sync::Arc::new(known);
        }
        Client::new(config).ping(&registry.address, &())
    };
    let denied = |error| matches!(error, Err(Error::Denied { .. }));
    assert!(denied(ping(None)));
    assert!(denied(ping(Some(crate::support::password(
        "user", "wrong"
    )))));
    ping(Some(crate::support::password("user", "secret"))).unwrap();
}
