//! Token authentication.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock};

use kiln_registry::{Client, Credential, Error, Pushed};

use crate::support::{
    Reply, Request, Server, client, client_with, descriptor, noise, password, source,
};

/// A registry with a token server beside it, in one: a token is `T` and the number of its request.
struct Guarded {
    server: Server,
}

impl Guarded {
    /// `accept` says whether a token's number is good enough for a request.
    fn start(
        token: impl Fn(&Request, u32) -> Reply + Send + 'static,
        accept: impl Fn(&Request, u32) -> bool + Send + 'static,
    ) -> Self {
        let address = Arc::new(OnceLock::<String>::new());
        let known = address.clone();
        let given = AtomicU32::new(0);
        let server = Server::start(move |request| {
            if request.path.starts_with("/token") {
                return token(request, given.fetch_add(1, Ordering::Relaxed) + 1);
            }
            let number = request
                .header("authorization")
                .strip_prefix("Bearer T")
                .and_then(|number| number.parse().ok());
            if number.is_some_and(|number| accept(request, number)) {
                return match request.method.as_str() {
                    "HEAD" if request.path.contains("/blobs/") => Reply::new(404),
                    "HEAD" => {
                        Reply::new(200).header("docker-content-digest", descriptor(b"").digest)
                    }
                    "POST" => Reply::new(201),
                    _ => Reply::new(200),
                };
            }
            let realm = format!("http://{}/token", known.get().unwrap());
            Reply::new(401)
                .header(
                    "www-authenticate",
                    format!("Bearer realm=\"{realm}\",service=\"srv\",scope=\"repository:x:pull\""),
                )
                .body(r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#)
        });
        address.set(server.address.clone()).unwrap();
        Self { server }
    }

    fn head(&self, client: &Client) -> Result<(), Error> {
        client.head(&self.server.reference("x"), &()).map(drop)
    }

    fn token_requests(&self) -> Vec<Request> {
        self.server
            .requests()
            .into_iter()
            .filter(|request| request.path.starts_with("/token"))
            .collect()
    }
}

fn token(number: u32) -> Reply {
    Reply::new(200).body(format!("{{\"token\":\"T{number}\",\"expires_in\":300}}"))
}

#[test]
fn a_token_is_fetched_once() {
    let guarded = Guarded::start(|_, number| token(number), |_, _| true);
    let client = client();
    guarded.head(&client).unwrap();
    guarded.head(&client).unwrap();
    assert_eq!(
        guarded.server.lines(),
        [
            "HEAD /v2/x/manifests/latest",
            "GET /token?service=srv&scope=repository%3Ax%3Apull",
            "HEAD /v2/x/manifests/latest",
            "HEAD /v2/x/manifests/latest",
        ]
    );
    assert_eq!(guarded.token_requests()[0].header("authorization"), "");
}

#[test]
fn names_and_passwords_go_to_the_token_server_only() {
    let guarded = Guarded::start(|_, number| token(number), |_, _| true);
    guarded.head(&client_with(password("me", "pw"))).unwrap();
    let request = &guarded.token_requests()[0];
    assert_eq!(request.header("authorization"), "Basic bWU6cHc=");
    assert!(
        request.path.ends_with("&account=me&client_id=kiln"),
        "{}",
        request.path
    );
    let others = guarded.server.requests();
    let others = others
        .iter()
        .filter(|request| !request.path.starts_with("/token"));
    assert!(
        others
            .into_iter()
            .all(|request| !request.header("authorization").starts_with("Basic"))
    );
}

#[test]
fn identity_tokens_are_posted() {
    let guarded = Guarded::start(
        |_, number| Reply::new(200).body(format!("{{\"access_token\":\"T{number}\"}}")),
        |_, _| true,
    );
    guarded
        .head(&client_with(Credential::IdentityToken(
            "refresh me".to_owned(),
        )))
        .unwrap();
    let request = &guarded.token_requests()[0];
    assert_eq!(request.method, "POST");
    assert_eq!(
        String::from_utf8_lossy(&request.body),
        "service=srv&client_id=kiln&grant_type=refresh_token&refresh_token=refresh+me&scope=repository%3Ax%3Apull"
    );
}

#[test]
fn registry_tokens_go_to_the_registry() {
    let guarded = Guarded::start(|_, number| token(number), |_, number| number == 7);
    guarded
        .head(&client_with(Credential::RegistryToken("T7".to_owned())))
        .unwrap();
    assert!(guarded.token_requests().is_empty());
}

#[test]
fn a_token_that_ended_early_is_replaced() {
    // The first token is good for one request.
    let used = AtomicU32::new(0);
    let guarded = Guarded::start(
        |_, number| token(number),
        move |_, number| number > 1 || used.fetch_add(1, Ordering::Relaxed) == 0,
    );
    let client = client();
    guarded.head(&client).unwrap();
    guarded.head(&client).unwrap();
    assert_eq!(guarded.token_requests().len(), 2);
}

#[test]
fn who_is_not_allowed_is_told() {
    let guarded = Guarded::start(|_, number| token(number), |_, _| false);
    let error = guarded.head(&client()).unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    assert!(guarded.token_requests().len() <= 2);

    let guarded = Guarded::start(
        |_, _| Reply::new(401).body("{\"details\":\"incorrect username or password\"}"),
        |_, _| true,
    );
    let error = guarded
        .head(&client_with(password("me", "wrong")))
        .unwrap_err();
    let address = &guarded.server.address;
    assert_eq!(
        error.to_string(),
        format!(
            "token for {address}: access denied, or it does not exist: incorrect username or password"
        )
    );
    assert_eq!(
        error.hint().unwrap(),
        format!("if it exists, log in with `kiln login {address}`")
    );
}

#[test]
fn a_token_server_may_be_busy() {
    let guarded = Guarded::start(
        |_, number| {
            if number < 3 {
                Reply::new(429)
            } else {
                token(number)
            }
        },
        |_, _| true,
    );
    guarded.head(&client()).unwrap();
    assert_eq!(guarded.token_requests().len(), 3);
}

#[test]
fn a_mount_asks_for_both_repositories() {
    let guarded = Guarded::start(|_, number| token(number), |_, _| true);
    let bytes = noise(10);
    let reference = guarded.server.reference("x");
    let pushed = client()
        .push_blob(
            &reference,
            &descriptor(&bytes),
            &source(&bytes),
            Some("base"),
            &(),
        )
        .unwrap();
    assert_eq!(pushed, Pushed::Mounted);
    assert!(
        guarded.token_requests()[0]
            .path
            .ends_with("&scope=repository%3Abase%3Apull&scope=repository%3Ax%3Apull%2Cpush")
    );
}
