//! Against a server that fails.

use std::io::{self, Read};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kiln_registry::{Client, ClientConfig, Error, Pushed, Retry};

use crate::support::{
    Reply, Request, Server, client, client_with, client_with_mirrors, config, descriptor, digest,
    noise, password, pull, source,
};

const MANIFEST: &str = "{\"schemaVersion\":2}";
const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

fn manifest() -> Reply {
    Reply::new(200)
        .header("docker-content-digest", digest(MANIFEST.as_bytes()))
        .header("content-type", TYPE)
        .body(MANIFEST)
}

/// Answers the n-th request with the n-th reply, and all later ones with the last.
fn script(replies: Vec<Reply>) -> impl FnMut(&Request) -> Reply {
    let mut next = 0;
    move |_| {
        let reply = replies[next.min(replies.len() - 1)].clone();
        next += 1;
        reply
    }
}

#[test]
fn failures_that_pass_are_waited_for() {
    let server = Server::start(script(vec![
        Reply::new(429).header("retry-after", 0),
        Reply::new(503),
        Reply::new(200).cut(0).header("content-length", 5),
        manifest(),
    ]));
    let started = Instant::now();
    let resolved = client().resolve(&server.reference("x"), &()).unwrap();
    assert_eq!(resolved.bytes, MANIFEST.as_bytes());
    assert!(started.elapsed() < Duration::from_secs(2));
    assert_eq!(server.lines()[..3], ["HEAD /v2/x/manifests/latest"; 3]);
}

#[test]
fn retry_after_is_respected() {
    let server = Server::start(script(vec![
        Reply::new(429).header("retry-after", 1),
        manifest(),
    ]));
    let started = Instant::now();
    client().head(&server.reference("x"), &()).unwrap();
    assert!(started.elapsed() >= Duration::from_secs(1));
}

#[test]
fn too_many_requests() {
    let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"pull rate limit"}]}"#;
    let server = Server::start(script(vec![Reply::new(429).body(body)]));
    let error = client()
        .manifest(&server.reference("x"), &digest(b""), &())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{}: too many requests: pull rate limit", server.address)
    );
    assert_eq!(server.lines().len(), Retry::default().attempts as usize);

    // Who asks for an hour does not get another request in a second.
    let server = Server::start(script(vec![Reply::new(429).header("retry-after", 3600)]));
    let error = client().head(&server.reference("x"), &()).unwrap_err();
    assert!(
        matches!(error, Error::RateLimited { retry_after: Some(time), .. } if time.as_secs() == 3600),
        "{error}"
    );
    assert_eq!(server.lines().len(), 1);
}

#[test]
fn a_server_that_stays_broken() {
    let server = Server::start(script(vec![Reply::new(502).body("<html>")]));
    let error = client().head(&server.reference("x"), &()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{}/x:latest: the registry answers 502", server.address)
    );
}

#[test]
fn nobody_listens() {
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let reference = format!("{address}/x").parse().unwrap();
    let error = client().head(&reference, &()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("{address}: cannot be reached: Connection refused (os error 111)")
    );
}

#[test]
fn a_cut_blob_goes_on_where_it_was() {
    let bytes = noise(1_000_000);
    let blob = bytes.clone();
    let server = Server::start(move |request| {
        let from = request.range_start().unwrap_or(0);
        let reply = Reply::new(if from > 0 { 206 } else { 200 })
            .header(
                "content-range",
                format!("bytes {from}-{}/{}", blob.len() - 1, blob.len()),
            )
            .body(&blob[from..]);
        reply.cut(300_000.min(blob.len() - from))
    });
    assert!(pull(&client(), &server.reference("x"), &descriptor(&bytes), &[]).unwrap() == bytes);
    let ranges: Vec<_> = server.requests().iter().map(Request::range_start).collect();
    assert_eq!(ranges, [None, Some(300_000), Some(600_000), Some(900_000)]);
}

/// A client that waits for a moment only.
fn impatient() -> Client {
    Client::new(ClientConfig {
        retry: Retry {
            patience: Duration::from_millis(300),
            ..config().retry
        },
        ..config()
    })
}

#[test]
fn a_stalled_blob_goes_on_where_it_was() {
    let bytes = noise(1_000_000);
    let blob = bytes.clone();
    let server = Server::start(move |request| {
        let from = request.range_start().unwrap_or(0);
        Reply::new(if from > 0 { 206 } else { 200 })
            .header(
                "content-range",
                format!("bytes {from}-{}/{}", blob.len() - 1, blob.len()),
            )
            .body(&blob[from..])
            .stall(400_000)
    });
    let started = Instant::now();
    let pulled = pull(
        &impatient(),
        &server.reference("x"),
        &descriptor(&bytes),
        &[],
    );
    assert!(pulled.unwrap() == bytes);
    let ranges: Vec<_> = server.requests().iter().map(Request::range_start).collect();
    assert_eq!(ranges, [None, Some(400_000), Some(800_000)]);
    assert!(started.elapsed() < Duration::from_secs(5));
}

#[test]
fn who_says_nothing_is_asked_again() {
    let server = Server::start(script(vec![Reply::silence(), Reply::silence(), manifest()]));
    impatient().head(&server.reference("x"), &()).unwrap();
    assert_eq!(server.lines().len(), 3);

    let server = Server::start(|_| Reply::silence());
    let error = impatient().head(&server.reference("x"), &()).unwrap_err();
    assert!(
        matches!(&error, Error::Unreachable { cause, .. } if cause.contains("no answer within")),
        "{error}"
    );
}

/// The errors that a user can do something about, each from what a registry says.
#[test]
fn failures_are_told_apart() {
    let body = |code: &str| format!(r#"{{"errors":[{{"code":"{code}","message":"because"}}]}}"#);
    let cases = [
        (404, "MANIFEST_UNKNOWN", "not found"),
        (404, "NAME_UNKNOWN", "not found"),
        (401, "UNAUTHORIZED", "access denied, or it does not exist"),
        (403, "DENIED", "access denied, or it does not exist"),
        (429, "TOOMANYREQUESTS", "too many requests: because"),
        (400, "NAME_INVALID", "the registry answers 400: because"),
        (500, "UNKNOWN", "the registry answers 500: because"),
    ];
    for (status, code, words) in cases {
        let server = Server::start(script(vec![Reply::new(status).body(body(code))]));
        let error = client()
            .manifest(&server.reference("x:y"), &digest(b""), &())
            .unwrap_err();
        assert!(error.to_string().contains(words), "{status}: {error}");
        let hint = error.hint().unwrap_or_default();
        let hinted = match status {
            404 => "check the name and the tag",
            401 | 403 => "log in with `kiln login",
            429 => "requests with an account",
            _ => "",
        };
        assert!(
            hint.contains(hinted) && hint.is_empty() == hinted.is_empty(),
            "{hint}"
        );
    }
}

#[test]
fn a_server_without_ranges_is_read_again() {
    let bytes = noise(500_000);
    let blob = bytes.clone();
    let mut cut = 100_000;
    let server = Server::start(move |_| {
        cut += 100_000;
        Reply::new(200).body(&blob).cut(cut.min(blob.len()))
    });
    let client = client();
    assert!(pull(&client, &server.reference("x"), &descriptor(&bytes), &[]).unwrap() == bytes);
    assert!(
        pull(
            &client,
            &server.reference("x"),
            &descriptor(&bytes),
            &bytes[..7]
        )
        .unwrap()
            == bytes[7..]
    );
}

#[test]
fn a_blob_that_never_comes() {
    let server = Server::start(|_| Reply::new(200).header("content-length", 10).cut(0));
    let error = pull(
        &client(),
        &server.reference("x"),
        &descriptor(&noise(10)),
        &[],
    )
    .unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[test]
fn wrong_bytes_are_noticed() {
    let (right, wrong) = (noise(1000), vec![0; 1000]);
    let cases = [
        (Reply::new(200).body(&wrong), "another blob"),
        (Reply::new(200).body(&wrong[1..]), "a shorter one"),
        (
            Reply::new(200).body([&right[..], b"x"].concat()),
            "a longer one",
        ),
        (
            Reply::new(200)
                .header("transfer-encoding", "chunked")
                .header("content-length", 0)
                .body([b"3e9\r\n", &right[..], b"x\r\n0\r\n\r\n"].concat()),
            "a longer one of unknown length",
        ),
    ];
    for (reply, what) in cases {
        let server = Server::start(script(vec![reply]));
        let error = pull(&client(), &server.reference("x"), &descriptor(&right), &[]).unwrap_err();
        assert!(
            matches!(error, Error::Corrupt { expected, .. } if expected == digest(&right)),
            "{what}: {error}"
        );
    }

    let server = Server::start(|_| manifest().header("x", "y").body("{}"));
    let error = client().resolve(&server.reference("x"), &()).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error}");
}

#[test]
fn a_manifest_of_any_size_is_not_read() {
    let server = Server::start(|_| Reply::new(200).body(vec![b' '; 9 << 20]));
    let error = client()
        .manifest(&server.reference("x"), &digest(b""), &())
        .unwrap_err();
    assert!(matches!(error, Error::Protocol { .. }), "{error}");
}

#[test]
fn a_registry_that_names_no_digest() {
    let server = Server::start(|_| {
        Reply::new(200)
            .header("content-type", format!("{TYPE}; charset=utf-8"))
            .body(MANIFEST)
    });
    let resolved = client().resolve(&server.reference("x:y"), &()).unwrap();
    assert_eq!(
        (resolved.digest, resolved.media_type.as_str()),
        (digest(MANIFEST.as_bytes()), TYPE)
    );
    assert_eq!(
        server.lines(),
        ["HEAD /v2/x/manifests/y", "GET /v2/x/manifests/y"]
    );
}

#[test]
fn mirrors_come_first_and_may_fail() {
    let origin = Server::start(|_| manifest());
    let good = Server::start(|_| manifest());
    let bad = Server::start(|_| Reply::new(404));
    let reference = origin.reference("a/b:c");

    let client = client_with_mirrors(
        &origin.address,
        &[&bad.address, &format!("http://{}/proxy", good.address)],
    );
    client.resolve(&reference, &()).unwrap();
    assert_eq!(bad.lines(), ["HEAD /v2/a/b/manifests/c"]);
    assert!(good.lines()[0] == "HEAD /v2/proxy/a/b/manifests/c" && origin.lines().is_empty());

    let client = client_with_mirrors(&origin.address, &[&bad.address]);
    client.resolve(&reference, &()).unwrap();
    assert_eq!(origin.lines().len(), 2);

    let bytes = noise(1000);
    let blob = bytes.clone();
    let origin = Server::start(move |_| Reply::new(200).body(&blob));
    let client = client_with_mirrors(&origin.address, &[&bad.address]);
    assert!(pull(&client, &origin.reference("a"), &descriptor(&bytes), &[]).unwrap() == bytes);
}

/// In a network that reaches its mirror only, it is the mirror that knows why.
#[test]
fn a_mirror_answers_for_a_registry_out_of_reach() {
    let closed = "127.0.0.1:1";
    let bad = Server::start(|_| Reply::new(404));
    let client = client_with_mirrors(closed, &[&bad.address]);
    let reference = format!("{closed}/a/b:c").parse().unwrap();
    let error = client.head(&reference, &()).unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error}");
}

#[test]
fn passwords_do_not_follow_redirects_to_other_hosts() {
    let bytes = noise(1000);
    let blob = bytes.clone();
    let storage = Server::start(move |_| Reply::new(200).body(&blob));
    let elsewhere = format!("http://{}/storage", storage.address);
    let registry = Server::start(move |request| match request.header("authorization") {
        "" => Reply::new(401).header("www-authenticate", "Basic realm=x"),
        _ => Reply::new(307).header("location", &elsewhere),
    });
    let client = client_with(password("user", "secret"));
    assert!(pull(&client, &registry.reference("x"), &descriptor(&bytes), &[]).unwrap() == bytes);
    assert_eq!(storage.requests()[0].header("authorization"), "");
}

#[test]
fn a_waiting_call_can_be_canceled() {
    let server = Server::start(|_| Reply::silence());
    let cancel = Arc::new(AtomicBool::new(false));
    let flag = cancel.clone();
    thread::spawn(move || {
        thread::sleep(Duration::from_millis(200));
        flag.store(true, Ordering::Relaxed);
    });
    let started = Instant::now();
    let error = client()
        .head(&server.reference("x"), cancel.as_ref())
        .unwrap_err();
    assert!(matches!(error, Error::Canceled), "{error}");
    assert!(started.elapsed() < Duration::from_secs(2));
}

/// What a registry does with uploads: keeps the bytes, of each request at most so many.
pub(crate) struct Uploads {
    pub(crate) kept: Vec<u8>,
    pub(crate) finished: bool,
    location: String,
}

impl Uploads {
    /// A registry that takes an upload, which must be `expected` in the end, and cuts off bodies of more than `limit` bytes.
    pub(crate) fn of(expected: &[u8], limit: usize) -> Server {
        let (mut uploads, expected) = (Self::new(), expected.to_owned());
        Server::with_limit(limit, move |request| {
            let reply = uploads.answer(request);
            assert!(!uploads.finished || uploads.kept == expected);
            reply
        })
    }

    pub(crate) fn new() -> Self {
        Self {
            kept: Vec::new(),
            finished: false,
            location: "/v2/x/blobs/uploads/1?state=a".to_owned(),
        }
    }

    pub(crate) fn answer(&mut self, request: &Request) -> Reply {
        let location = self.location.clone();
        match request.method.as_str() {
            "HEAD" => Reply::new(if self.finished { 200 } else { 404 }),
            "POST" => Reply::new(202).header("location", location),
            "PATCH" => {
                self.kept.extend(&request.body);
                Reply::new(202).header("location", location)
            }
            "GET" => {
                let reply = Reply::new(204).header("location", location);
                reply.header("range", format!("0-{}", self.kept.len().saturating_sub(1)))
            }
            _ => {
                self.finished = true;
                Reply::new(201)
            }
        }
    }
}

#[test]
fn a_cut_upload_goes_on_where_it_was() {
    let bytes = noise(1_000_000);
    let server = Uploads::of(&bytes, 400_000);
    let pushed = client()
        .push_blob(
            &server.reference("x"),
            &descriptor(&bytes),
            &source(&bytes),
            None,
            &(),
        )
        .unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    let ranges: Vec<_> = server
        .requests()
        .iter()
        .map(|request| request.header("content-range").to_owned())
        .collect();
    let ranges: Vec<_> = ranges.iter().filter(|range| !range.is_empty()).collect();
    assert_eq!(ranges, ["400000-999999", "800000-999999"]);
    let lines = server.lines();
    let digest = digest(&bytes).to_string().replace(':', "%3A");
    assert_eq!(
        *lines.last().unwrap(),
        format!("PUT /v2/x/blobs/uploads/1?state=a&digest={digest}")
    );
}

#[test]
fn a_forgotten_upload_starts_over() {
    let bytes = noise(1000);
    let mut uploads = Uploads::new();
    let mut forgotten = false;
    let server = Server::start(move |request| {
        if request.method == "PATCH" && !std::mem::replace(&mut forgotten, true) {
            return Reply::new(404);
        }
        uploads.answer(request)
    });
    let pushed = client()
        .push_blob(
            &server.reference("x"),
            &descriptor(&bytes),
            &source(&bytes),
            None,
            &(),
        )
        .unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    let methods: Vec<_> = server
        .requests()
        .into_iter()
        .map(|request| request.method)
        .collect();
    assert_eq!(methods, ["HEAD", "POST", "PATCH", "POST", "PATCH", "PUT"]);
}

#[test]
fn a_lost_last_answer_does_no_harm() {
    let bytes = noise(1000);
    let mut uploads = Uploads::new();
    let server = Server::start(move |request| {
        let reply = uploads.answer(request);
        if request.method == "PUT" {
            Reply::new(504)
        } else {
            reply
        }
    });
    let pushed = client()
        .push_blob(
            &server.reference("x"),
            &descriptor(&bytes),
            &source(&bytes),
            None,
            &(),
        )
        .unwrap();
    assert_eq!(pushed, Pushed::Uploaded);
    assert_eq!(server.lines().len(), 5);
}

#[test]
fn an_upload_that_always_fails_ends() {
    let server = Server::start(|request| match request.method.as_str() {
        "HEAD" => Reply::new(404),
        "POST" => Reply::new(202).header("location", "/u"),
        _ => Reply::new(500),
    });
    let bytes = noise(1000);
    let client = Client::new(ClientConfig {
        retry: Retry {
            attempts: 3,
            ..config().retry
        },
        ..config()
    });
    let error = client
        .push_blob(
            &server.reference("x"),
            &descriptor(&bytes),
            &source(&bytes),
            None,
            &(),
        )
        .unwrap_err();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[test]
fn uploads_elsewhere_see_no_passwords() {
    let bytes = noise(1000);
    let mut elsewhere = Uploads::new();
    let storage = Server::start(move |request| elsewhere.answer(request));
    let location = format!("http://{}/v2/x/blobs/uploads/1", storage.address);
    let registry = Server::start(move |request| {
        match (request.header("authorization"), request.method.as_str()) {
            ("", _) => Reply::new(401).header("www-authenticate", "Basic realm=x"),
            (_, "HEAD") => Reply::new(404),
            _ => Reply::new(202).header("location", &location),
        }
    });
    let mut uploads = client_with(password("user", "secret")).push_blob(
        &registry.reference("x"),
        &descriptor(&bytes),
        &source(&bytes),
        None,
        &(),
    );
    // The location that PATCH gives is relative to the other host.
    assert_eq!(uploads.as_mut().unwrap(), &Pushed::Uploaded);
    assert!(
        storage
            .requests()
            .iter()
            .all(|request| request.header("authorization").is_empty())
    );
}

#[test]
fn a_source_that_cannot_be_read() {
    let server = Server::start({
        let mut uploads = Uploads::new();
        move |request| uploads.answer(request)
    });
    let bytes = noise(1000);
    let push = |source: &dyn kiln_registry::Source| {
        client()
            .push_blob(
                &server.reference("x"),
                &descriptor(&bytes),
                source,
                None,
                &(),
            )
            .unwrap_err()
    };
    let missing = |_| -> io::Result<Box<dyn Read + Send>> { Err(io::ErrorKind::NotFound.into()) };
    assert!(
        matches!(push(&missing), Error::Source(error) if error.kind() == io::ErrorKind::NotFound)
    );
    assert!(
        matches!(push(&source(&bytes[..999])), Error::Source(error) if error.kind() == io::ErrorKind::UnexpectedEof)
    );
}
