//! Requests: connections, retries, and what answers mean.

use std::collections::HashMap;
use std::error::Error as _;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Certificate, NoProxy, Proxy, RequestBuilder, Response, StatusCode, Url};
use tokio::time::{sleep, timeout};

use crate::auth::{Auth, Scopes};
use crate::config::{ClientConfig, is_loopback, serving_host};
use crate::error::Error;

/// How long a server may take to begin its answer, or to send the next piece of it.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);
/// No manifest and no error message is larger. The distribution spec lets registries refuse more than 4 MiB.
const LARGEST_BODY: usize = 8 << 20;
/// Longer error messages are cut.
const LONGEST_MESSAGE: usize = 300;

/// A host that serves a registry or mirrors it.
#[derive(Clone)]
pub(crate) struct Endpoint {
    /// The name for messages and credentials: `docker.io`, `localhost:5000`.
    pub(crate) registry: String,
    /// `https://host/v2/`.
    pub(crate) base: Url,
    /// What stands before all repository names there: empty, or `proxy/` of a mirror.
    prefix: String,
    pub(crate) http: reqwest::Client,
}

impl Endpoint {
    /// A repository's name at this host.
    pub(crate) fn repository(&self, repository: &str) -> String {
        format!("{}{repository}", self.prefix)
    }

    /// The address of something in a repository: `manifests/latest`.
    pub(crate) fn url(&self, repository: &str, rest: &str) -> Result<Url, Error> {
        self.base
            .join(&format!("{}{repository}/{rest}", self.prefix))
            .map_err(|error| Error::Config(format!("{repository}/{rest}: {error}")))
    }

    /// Whether an address is at this host, so that it may see the host's tokens.
    pub(crate) fn owns(&self, url: &Url) -> bool {
        url.origin() == self.base.origin()
    }
}

/// Where an endpoint is, before it is known how to talk to it.
struct Place {
    registry: String,
    authority: String,
    prefix: String,
    /// `http`, `https`, or nothing said.
    scheme: Option<String>,
}

/// Makes requests.
pub(crate) struct Net {
    pub(crate) config: ClientConfig,
    auth: Auth,
    clients: Mutex<HashMap<String, reqwest::Client>>,
    /// Insecure hosts by name, with whether they speak TLS.
    speaks_tls: Mutex<HashMap<String, bool>>,
}

impl Net {
    pub(crate) fn new(config: ClientConfig) -> Self {
        // Fails only if the program has chosen a provider already, which is then used.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let auth = Auth::new(config.credentials.clone());
        Self {
            config,
            auth,
            clients: Mutex::default(),
            speaks_tls: Mutex::default(),
        }
    }

    /// The registry's own host.
    pub(crate) async fn endpoint(&self, registry: &str) -> Result<Endpoint, Error> {
        self.connect(Place {
            registry: registry.to_owned(),
            authority: serving_host(registry).to_owned(),
            prefix: String::new(),
            scheme: None,
        })
        .await
    }

    /// How many hosts can be asked when pulling: the mirrors and the registry's own host.
    pub(crate) fn sources(&self, registry: &str) -> usize {
        self.config.host(registry).mirrors.len() + 1
    }

    /// One of the hosts to pull from, mirrors first.
    pub(crate) async fn source(&self, registry: &str, number: usize) -> Result<Endpoint, Error> {
        match self.config.host(registry).mirrors.get(number) {
            Some(mirror) => self.connect(mirror_place(mirror)).await,
            None => self.endpoint(registry).await,
        }
    }

    async fn connect(&self, place: Place) -> Result<Endpoint, Error> {
        let host = self.config.host(&place.registry);
        let http = self.http(&place.registry)?;
        let base = |scheme: &str| {
            Url::parse(&format!("{scheme}://{}/v2/", place.authority))
                .map_err(|error| Error::Config(format!("{}: {error}", place.authority)))
        };
        let plain = host
            .plain_http
            .unwrap_or_else(|| is_loopback(&place.authority));
        let base = match place.scheme.as_deref() {
            Some(scheme) => base(scheme)?,
            None if plain => base("http")?,
            None if !host.insecure => base("https")?,
            None => {
                let tls = base("https")?;
                let known = lock(&self.speaks_tls).get(&place.registry).copied();
                let speaks = if let Some(speaks) = known {
                    speaks
                } else {
                    let speaks = matches!(
                        timeout(self.config.retry.patience, http.get(tls.clone()).send()).await,
                        Ok(Ok(_))
                    );
                    lock(&self.speaks_tls).insert(place.registry.clone(), speaks);
                    speaks
                };
                if speaks { tls } else { base("http")? }
            }
        };
        Ok(Endpoint {
            registry: place.registry,
            base,
            prefix: place.prefix,
            http,
        })
    }

    /// The connections for a host: shared by all hosts without settings of their own.
    pub(crate) fn http(&self, registry: &str) -> Result<reqwest::Client, Error> {
        let host = self.config.host(registry);
        let own = host.insecure || !host.certificates.is_empty() || host.identity.is_some();
        let key = if own { registry } else { "" };
        let mut clients = lock(&self.clients);
        if let Some(client) = clients.get(key) {
            return Ok(client.clone());
        }
        let broken = |error: reqwest::Error| Error::Config(root_cause(&error));
        let mut certificates = Vec::new();
        for pem in self.config.certificates.iter().chain(&host.certificates) {
            certificates.extend(Certificate::from_pem_bundle(pem).map_err(broken)?);
        }
        let builder = || -> Result<reqwest::ClientBuilder, Error> {
            let mut builder = reqwest::Client::builder()
                .user_agent(&self.config.user_agent)
                .connect_timeout(CONNECT_PATIENCE)
                .tls_danger_accept_invalid_certs(host.insecure)
                // Only what the configuration says, never the environment.
                .no_proxy();
            if let Some(pem) = &host.identity {
                builder = builder.identity(reqwest::Identity::from_pem(pem).map_err(broken)?);
            }
            let proxies = &self.config.proxies;
            let none = proxies.none.as_deref().and_then(NoProxy::from_string);
            if let Some(url) = &proxies.http {
                builder = builder.proxy(Proxy::http(url).map_err(broken)?.no_proxy(none.clone()));
            }
            if let Some(url) = &proxies.https {
                builder = builder.proxy(Proxy::https(url).map_err(broken)?.no_proxy(none));
            }
            Ok(builder)
        };
        let client = match builder()?
            .tls_certs_merge(certificates.iter().cloned())
            .build()
        {
            Ok(client) => client,
            // A machine without any trusted certificates can still talk to those that were given, and without TLS.
            Err(_) => builder()?
                .tls_certs_only(certificates)
                .build()
                .map_err(broken)?,
        };
        clients.insert(key.to_owned(), client.clone());
        Ok(client)
    }

    /// Sends a request with the authorization that its scopes need. The answer can be anything but a 429.
    pub(crate) async fn send(
        &self,
        endpoint: &Endpoint,
        scopes: &Scopes,
        patience: Duration,
        request: impl Fn(&reqwest::Client) -> RequestBuilder,
    ) -> Result<Response, Error> {
        let mut challenges = 0;
        loop {
            let header = self.auth.header(self, endpoint, scopes).await?;
            let build = || {
                let request = request(&endpoint.http);
                Ok(match &header {
                    Some(header) => request.header(AUTHORIZATION, header.clone()),
                    None => request,
                })
            };
            let response = self
                .send_retrying(&endpoint.registry, build, patience)
                .await?;
            // The second one is for a token that just ended.
            if response.status() != StatusCode::UNAUTHORIZED || challenges == 2 {
                return Ok(response);
            }
            challenges += 1;
            if !self
                .challenged(endpoint, scopes, response.headers(), header.as_ref())
                .await?
            {
                return Ok(response);
            }
        }
    }

    /// The authorization for a request with a body that cannot simply be sent again.
    pub(crate) async fn authorization(
        &self,
        endpoint: &Endpoint,
        scopes: &Scopes,
    ) -> Result<Option<HeaderValue>, Error> {
        self.auth.header(self, endpoint, scopes).await
    }

    /// Takes note that such a request was answered with 401; tells whether another try makes sense.
    pub(crate) async fn challenged(
        &self,
        endpoint: &Endpoint,
        scopes: &Scopes,
        headers: &HeaderMap,
        used: Option<&HeaderValue>,
    ) -> Result<bool, Error> {
        self.auth
            .challenged(self, endpoint, scopes, headers, used)
            .await
    }

    /// Sends a request, again and again while it fails in a way that may pass.
    pub(crate) async fn send_retrying(
        &self,
        registry: &str,
        request: impl Fn() -> Result<RequestBuilder, Error>,
        patience: Duration,
    ) -> Result<Response, Error> {
        let mut attempt = 1;
        loop {
            match once(request()?, patience).await {
                Ok(response) if may_pass(response.status()) => {
                    let wanted = retry_after(response.headers());
                    match self.pause(attempt, self.config.retry.attempts, wanted) {
                        Some(pause) => sleep(pause).await,
                        None if response.status() == StatusCode::TOO_MANY_REQUESTS => {
                            let message =
                                message(&body(response, registry).await.unwrap_or_default());
                            let registry = registry.to_owned();
                            return Err(Error::RateLimited {
                                registry,
                                message,
                                retry_after: wanted,
                            });
                        }
                        None => return Ok(response),
                    }
                }
                Ok(response) => return Ok(response),
                Err(broken) => {
                    let Some(pause) = self.pause(attempt, self.attempts(broken.kind), None) else {
                        return Err(Error::Unreachable {
                            registry: registry.to_owned(),
                            cause: broken.cause,
                        });
                    };
                    sleep(pause).await;
                }
            }
            attempt += 1;
        }
    }

    /// How many tries in all something is worth that broke in this way.
    pub(crate) fn attempts(&self, kind: Break) -> u32 {
        match kind {
            Break::Final => 1,
            Break::Connecting => self.config.retry.connects,
            Break::Later => self.config.retry.attempts,
        }
    }

    /// How long to wait after a failed attempt, counted from 1; `None` to give up.
    pub(crate) fn pause(
        &self,
        attempt: u32,
        attempts: u32,
        wanted: Option<Duration>,
    ) -> Option<Duration> {
        let retry = &self.config.retry;
        if attempt >= attempts || wanted.is_some_and(|wanted| wanted > retry.longest_pause) {
            return None;
        }
        let doubled = retry
            .pause
            .saturating_mul(1 << (attempt - 1).min(16))
            .min(retry.longest_pause);
        // Many clients that failed together should not come back together: up to a quarter more, by the clock's digits.
        let nanos = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |time| time.subsec_nanos());
        let spread = doubled.mul_f64(f64::from(nanos % 1000) / 4000.0);
        Some(wanted.unwrap_or(Duration::ZERO).max(doubled) + spread)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `https://host/path`, `host:5000/path`: the path stands before the repository, as `BuildKit` has it.
fn mirror_place(mirror: &str) -> Place {
    let (scheme, rest) = match mirror.split_once("://") {
        Some((scheme, rest)) => (Some(scheme.to_owned()), rest),
        None => (None, mirror),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let path = path.trim_matches('/');
    let path = path
        .strip_prefix("v2")
        .map_or(path, |rest| rest.strip_prefix('/').unwrap_or(path));
    let prefix = if path.is_empty() || path == "v2" {
        String::new()
    } else {
        format!("{path}/")
    };
    Place {
        registry: authority.to_owned(),
        authority: authority.to_owned(),
        prefix,
        scheme,
    }
}

/// How a request broke.
pub(crate) struct Broken {
    pub(crate) kind: Break,
    pub(crate) cause: String,
    /// The host's certificate is not trusted.
    pub(crate) distrust: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Break {
    /// It will always do.
    Final,
    Connecting,
    Later,
}

/// Sends a request once.
pub(crate) async fn once(request: RequestBuilder, patience: Duration) -> Result<Response, Broken> {
    match timeout(patience, request.send()).await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(error)) => {
            let distrust = is_distrust(&error);
            let kind = if error.is_builder() || error.is_redirect() || distrust {
                Break::Final
            } else if error.is_connect() {
                Break::Connecting
            } else {
                Break::Later
            };
            Err(Broken {
                kind,
                cause: root_cause(&error),
                distrust,
            })
        }
        Err(_) => Err(Broken {
            kind: Break::Later,
            cause: format!("no answer within {} s", patience.as_secs()),
            distrust: false,
        }),
    }
}

/// The host's certificate is not trusted, which no second try will change.
fn is_distrust(error: &reqwest::Error) -> bool {
    let mut source = error.source();
    while let Some(error) = source {
        let inner = error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref);
        let tls = error
            .downcast_ref::<rustls::Error>()
            .or_else(|| inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()));
        if matches!(tls, Some(rustls::Error::InvalidCertificate(_))) {
            return true;
        }
        source = error.source();
    }
    false
}

/// The innermost error: what happened, without the layers that it came through.
pub(crate) fn root_cause(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// Answers after which the same request may succeed.
pub(crate) fn may_pass(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502..=504)
}

/// `Retry-After`: seconds or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = value.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(value).ok()?;
    let date = SystemTime::from(date.timestamp());
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

/// Reads a body that has to be small.
pub(crate) async fn body(mut response: Response, what: &str) -> Result<Bytes, Error> {
    let wrong = |problem: String| Error::Protocol {
        what: what.to_owned(),
        problem,
    };
    let mut bytes = BytesMut::new();
    loop {
        match timeout(PATIENCE, response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                if bytes.len() + chunk.len() > LARGEST_BODY {
                    return Err(wrong(format!("more than {LARGEST_BODY} bytes")));
                }
                bytes.extend_from_slice(&chunk);
            }
            Ok(Ok(None)) => return Ok(bytes.freeze()),
            Ok(Err(error)) => return Err(wrong(format!("it broke off: {}", root_cause(&error)))),
            Err(_) => return Err(wrong(format!("nothing more for {} s", PATIENCE.as_secs()))),
        }
    }
}

/// What an answer that is not a success means.
pub(crate) async fn failure(response: Response, registry: &str, what: &str) -> Error {
    let status = response.status().as_u16();
    let bytes = body(response, what).await.unwrap_or_default();
    let (what, registry, message) = (what.to_owned(), registry.to_owned(), message(&bytes));
    match status {
        404 => Error::NotFound { what },
        401 | 403 => Error::Denied {
            what,
            registry,
            message,
        },
        status => Error::Status {
            what,
            status,
            message,
        },
    }
}

/// The words in an error's body: the distribution spec's JSON, a token server's, or plain text.
pub(crate) fn message(body: &[u8]) -> String {
    let text = match serde_json::from_slice::<serde_json::Value>(body) {
        Ok(json) => {
            let text = |value: &serde_json::Value, names: &[&str]| {
                let found = names
                    .iter()
                    .filter_map(|name| value.get(name)?.as_str())
                    .find(|text| !text.is_empty());
                found.map(str::to_owned)
            };
            match json.get("errors").and_then(serde_json::Value::as_array) {
                Some(errors) => errors
                    .iter()
                    .filter_map(|error| text(error, &["message", "code"]))
                    .collect::<Vec<_>>()
                    .join("; "),
                None => text(&json, &["details", "error_description", "message", "error"])
                    .unwrap_or_default(),
            }
        }
        // A web page is no message.
        Err(_) if body.starts_with(b"<") => String::new(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let line = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty())
        .unwrap_or_default();
    line.chars()
        .filter(|char| !char.is_control())
        .take(LONGEST_MESSAGE)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors() {
        for (mirror, authority, prefix, scheme) in [
            ("mirror.example", "mirror.example", "", None),
            ("http://10.0.0.1:5000", "10.0.0.1:5000", "", Some("http")),
            ("https://m.example/", "m.example", "", Some("https")),
            (
                "harbor.example/proxy.docker.io",
                "harbor.example",
                "proxy.docker.io/",
                None,
            ),
            ("https://m.example/v2/", "m.example", "", Some("https")),
            (
                "https://m.example/v2/a/b/",
                "m.example",
                "a/b/",
                Some("https"),
            ),
            ("m.example/v2x", "m.example", "v2x/", None),
        ] {
            let place = mirror_place(mirror);
            assert_eq!(
                (
                    place.authority.as_str(),
                    place.prefix.as_str(),
                    place.scheme.as_deref()
                ),
                (authority, prefix, scheme),
                "{mirror}"
            );
        }
    }

    #[test]
    fn messages() {
        for (body, expected) in [
            (
                r#"{"errors":[{"code":"DENIED","message":"no"},{"code":"X"}]}"#,
                "no; X",
            ),
            (
                r#"{"details":"incorrect username or password"}"#,
                "incorrect username or password",
            ),
            (
                r#"{"error":"invalid_grant","error_description":"bad token"}"#,
                "bad token",
            ),
            ("<html>Bad Gateway</html>", ""),
            ("\n  slow\x1b down \nmore", "slow down"),
            ("", ""),
            ("[1]", ""),
        ] {
            assert_eq!(message(body.as_bytes()), expected);
        }
    }

    #[test]
    fn pauses_double_up_to_a_limit() {
        let net = Net::new(ClientConfig::default());
        let within = |pause: Option<Duration>, least: u64| {
            let (pause, least) = (pause.unwrap(), Duration::from_millis(least));
            assert!(
                pause >= least && pause <= least.mul_f64(1.25),
                "{pause:?} {least:?}"
            );
        };
        within(net.pause(1, 6, None), 250);
        within(net.pause(3, 6, None), 1000);
        within(net.pause(40, 99, None), 60_000);
        within(net.pause(1, 6, Some(Duration::from_secs(7))), 7000);
        assert_eq!(net.pause(6, 6, None), None);
        assert_eq!(net.pause(1, 6, Some(Duration::from_secs(61))), None);
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let header = |value: &str| HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]);
        assert_eq!(retry_after(&header("7")), Some(Duration::from_secs(7)));
        assert_eq!(
            retry_after(&header("Wed, 21 Oct 2015 07:28:00 GMT")),
            Some(Duration::ZERO)
        );
        assert!(
            retry_after(&header("Wed, 21 Oct 2099 07:28:00 GMT"))
                > Some(Duration::from_secs(1 << 20))
        );
        assert_eq!(retry_after(&header("soon")), None);
    }
}
