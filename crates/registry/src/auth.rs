//! Proving who asks: challenges, tokens (Docker registry token authentication, RFC 6749, RFC 7235).

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use reqwest::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Url};
use serde::Deserialize;
use tokio::sync::{Mutex, OnceCell};

use crate::config::is_loopback;
use crate::credentials::{Credential, Credentials};
use crate::error::Error;
use crate::net::{self, Endpoint, Net};

/// How this program calls itself to token servers.
const CLIENT_ID: &str = "kiln";
/// A token's life when the server does not say, as its specification has it.
const USUAL_LIFE: u64 = 60;
/// A token that ends so soon is not used any more.
const LAST_MOMENT: Duration = Duration::from_secs(10);

/// What a request needs to be allowed to do: `repository:library/busybox:pull`. In order, without doubles.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(crate) struct Scopes(BTreeSet<String>);

impl Scopes {
    pub(crate) fn none() -> Self {
        Self::default()
    }

    pub(crate) fn pull(repository: &str) -> Self {
        Self(BTreeSet::from([format!("repository:{repository}:pull")]))
    }

    pub(crate) fn push(repository: &str, mount_from: Option<&str>) -> Self {
        let mut scopes = BTreeSet::from([format!("repository:{repository}:pull,push")]);
        scopes.extend(mount_from.map(|from| format!("repository:{from}:pull")));
        Self(scopes)
    }

    fn with(&self, more: &str) -> Self {
        let mut scopes = self.0.clone();
        // The same actions in another order are nothing new.
        let new = more
            .split_whitespace()
            .filter(|asked| !self.0.iter().any(|own| covers(own, asked)));
        scopes.extend(new.map(str::to_owned));
        Self(scopes)
    }
}

/// Whether one scope's actions on a resource include all of another one's.
fn covers(own: &str, asked: &str) -> bool {
    match (own.rsplit_once(':'), asked.rsplit_once(':')) {
        (Some((resource, own)), Some((same, asked))) => {
            resource == same
                && asked
                    .split(',')
                    .all(|action| own.split(',').any(|known| known == action))
        }
        _ => false,
    }
}

/// What a registry wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Demand {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        /// Of the one request that was refused.
        scope: Option<String>,
    },
}

struct Token {
    header: HeaderValue,
    ends: Instant,
}

/// What is known of one host.
#[derive(Default)]
struct Host {
    demand: Option<Demand>,
    credential: OnceCell<Option<Credential>>,
    tokens: HashMap<Scopes, Token>,
}

/// The credentials and tokens of a client.
pub(crate) struct Auth {
    credentials: Arc<dyn Credentials>,
    /// The inner lock is held while a token is fetched, so that parallel requests fetch it once.
    hosts: std::sync::Mutex<HashMap<String, Arc<Mutex<Host>>>>,
}

impl Auth {
    pub(crate) fn new(credentials: Arc<dyn Credentials>) -> Self {
        Self {
            credentials,
            hosts: std::sync::Mutex::default(),
        }
    }

    fn host(&self, endpoint: &Endpoint) -> Arc<Mutex<Host>> {
        let mut hosts = self
            .hosts
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        hosts.entry(endpoint.registry.clone()).or_default().clone()
    }

    /// The `Authorization` of a request, as far as the host is known to want one.
    pub(crate) async fn header(
        &self,
        net: &Net,
        endpoint: &Endpoint,
        scopes: &Scopes,
    ) -> Result<Option<HeaderValue>, Error> {
        let host = self.host(endpoint);
        let mut host = host.lock().await;
        match host.demand.clone() {
            None => Ok(None),
            Some(demand) => self.answer(net, endpoint, scopes, &mut host, &demand).await,
        }
    }

    /// Takes note of a 401: the next [`Auth::header`] is what the challenge asks for. `used` is what was sent.
    /// False when there is nothing better to send.
    pub(crate) async fn challenged(
        &self,
        net: &Net,
        endpoint: &Endpoint,
        scopes: &Scopes,
        headers: &HeaderMap,
        used: Option<&HeaderValue>,
    ) -> Result<bool, Error> {
        let Some(demand) = demand(headers) else {
            return Ok(false);
        };
        let host = self.host(endpoint);
        let mut host = host.lock().await;
        host.tokens.retain(|_, token| Some(&token.header) != used);
        let header = self
            .answer(net, endpoint, scopes, &mut host, &demand)
            .await?;
        host.demand = Some(match demand {
            Demand::Basic => Demand::Basic,
            Demand::Bearer { realm, service, .. } => Demand::Bearer {
                realm,
                service,
                scope: None,
            },
        });
        Ok(header.is_some() && header.as_ref() != used)
    }

    async fn answer(
        &self,
        net: &Net,
        endpoint: &Endpoint,
        scopes: &Scopes,
        host: &mut Host,
        demand: &Demand,
    ) -> Result<Option<HeaderValue>, Error> {
        let (credentials, registry) = (self.credentials.clone(), endpoint.registry.clone());
        let ask = async || {
            tokio::task::spawn_blocking(move || credentials.get(&registry))
                .await
                .map_err(|error| Error::Config(format!("looking up credentials: {error}")))?
                .map_err(Error::from)
        };
        let credential = host.credential.get_or_try_init(ask).await?.clone();
        if let Some(Credential::RegistryToken(token)) = &credential {
            return secret("Bearer", token).map(Some);
        }
        match demand {
            Demand::Basic => match &credential {
                Some(Credential::Password { username, password }) => {
                    basic(username, password).map(Some)
                }
                _ => Ok(None),
            },
            Demand::Bearer {
                realm,
                service,
                scope,
            } => {
                if let Some(token) = host.tokens.get(scopes)
                    && token.ends > Instant::now()
                {
                    return Ok(Some(token.header.clone()));
                }
                let asked = scopes.with(scope.as_deref().unwrap_or_default());
                let token = fetch(
                    net,
                    endpoint,
                    realm,
                    service.as_deref(),
                    &asked,
                    credential.as_ref(),
                )
                .await?;
                let header = token.header.clone();
                host.tokens.insert(scopes.clone(), token);
                Ok(Some(header))
            }
        }
    }
}

/// Gets a token from the realm.
async fn fetch(
    net: &Net,
    endpoint: &Endpoint,
    realm: &str,
    service: Option<&str>,
    scopes: &Scopes,
    credential: Option<&Credential>,
) -> Result<Token, Error> {
    #[derive(Deserialize)]
    struct Answer {
        token: Option<String>,
        access_token: Option<String>,
        expires_in: Option<u64>,
    }
    let what = format!("token for {}", endpoint.registry);
    let wrong = |problem: String| Error::Protocol {
        what: what.clone(),
        problem,
    };
    let url = Url::parse(realm).map_err(|error| wrong(format!("realm {realm:?}: {error}")))?;
    let safe = match url.scheme() {
        "https" => true,
        // Only a registry that is itself without TLS may send us there: passwords do not become public on the way.
        "http" => endpoint.base.scheme() == "http" || url.host_str().is_some_and(is_loopback),
        _ => false,
    };
    if !safe {
        return Err(wrong(format!(
            "realm {realm:?} is not safe to send credentials to"
        )));
    }

    let request = |http: &reqwest::Client| -> Result<RequestBuilder, Error> {
        let mut fields: Vec<(&str, &str)> = service
            .map(|service| ("service", service))
            .into_iter()
            .collect();
        if let Some(Credential::IdentityToken(token)) = credential {
            let scope = scopes
                .0
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>()
                .join(" ");
            fields.extend([
                ("client_id", CLIENT_ID),
                ("grant_type", "refresh_token"),
                ("refresh_token", token),
            ]);
            fields.push(("scope", &scope));
            return Ok(http
                .post(url.clone())
                .header("content-type", "application/x-www-form-urlencoded")
                .body(form(&fields)));
        }
        fields.extend(scopes.0.iter().map(|scope| ("scope", scope.as_str())));
        let mut url = url.clone();
        if let Some(Credential::Password { username, .. }) = credential {
            fields.extend([("account", username.as_str()), ("client_id", CLIENT_ID)]);
        }
        url.query_pairs_mut().extend_pairs(fields);
        let request = http.get(url);
        Ok(match credential {
            Some(Credential::Password { username, password }) => {
                request.header("authorization", basic(username, password)?)
            }
            _ => request,
        })
    };
    let http = endpoint.http.clone();
    let response = net
        .send_retrying(
            &endpoint.registry,
            || request(&http),
            net.config.retry.patience,
        )
        .await?;
    let status = response.status();
    let issued = Instant::now();
    let body = net::body(response, &what).await?;
    if !status.is_success() {
        let message = net::message(&body);
        return Err(match status.as_u16() {
            400 | 401 | 403 => Error::Denied {
                what,
                registry: endpoint.registry.clone(),
                message,
            },
            status => Error::Status {
                what,
                status,
                message,
            },
        });
    }
    let answer: Answer = serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))?;
    let token = answer
        .token
        .or(answer.access_token)
        .filter(|token| !token.is_empty());
    let token = token.ok_or_else(|| wrong("no token in it".to_owned()))?;
    let life = Duration::from_secs(answer.expires_in.unwrap_or(USUAL_LIFE).clamp(1, 24 * 3600));
    Ok(Token {
        header: secret("Bearer", &token)?,
        ends: issued + life.saturating_sub(LAST_MOMENT).max(life / 2),
    })
}

fn form(fields: &[(&str, &str)]) -> String {
    let mut url = Url::parse("form:").unwrap_or_else(|_| unreachable!("a constant that is a URL"));
    url.query_pairs_mut().extend_pairs(fields);
    url.query().unwrap_or_default().to_owned()
}

fn basic(username: &str, password: &str) -> Result<HeaderValue, Error> {
    secret(
        "Basic",
        &BASE64_STANDARD.encode(format!("{username}:{password}")),
    )
}

/// A header value that no log shows.
fn secret(scheme: &str, value: &str) -> Result<HeaderValue, Error> {
    let mut header = HeaderValue::from_str(&format!("{scheme} {value}"))
        .map_err(|_| Error::Config("a token has characters that no header can hold".to_owned()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// What the challenges of a response demand; a bearer token if there is a choice.
fn demand(headers: &HeaderMap) -> Option<Demand> {
    let challenges: Vec<(String, HashMap<String, String>)> = headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(challenges)
        .collect();
    let bearer = challenges
        .iter()
        .find(|(scheme, parameters)| scheme == "bearer" && parameters.contains_key("realm"));
    if let Some((_, parameters)) = bearer {
        let parameter = |name: &str| {
            parameters
                .get(name)
                .filter(|value| !value.is_empty())
                .cloned()
        };
        return Some(Demand::Bearer {
            realm: parameter("realm")?,
            service: parameter("service"),
            scope: parameter("scope"),
        });
    }
    challenges
        .iter()
        .any(|(scheme, _)| scheme == "basic")
        .then_some(Demand::Basic)
}

/// Reads a `WWW-Authenticate` value (RFC 7235, 2.1 and 4.1): schemes and parameter names in lower case.
fn challenges(mut text: &str) -> Vec<(String, HashMap<String, String>)> {
    let mut found: Vec<(String, HashMap<String, String>)> = Vec::new();
    loop {
        text = text.trim_start_matches([' ', '\t', ',']);
        let end = text.find([' ', '\t', ',', '=']).unwrap_or(text.len());
        if end == 0 && text.is_empty() {
            return found;
        }
        let word = text[..end].to_ascii_lowercase();
        text = text[end..].trim_start_matches([' ', '\t']);
        let Some(value) = text.strip_prefix('=') else {
            found.push((word, HashMap::new()));
            continue;
        };
        let value = value.trim_start_matches([' ', '\t']);
        let (value, rest) = if let Some(quoted) = value.strip_prefix('"') {
            unquote(quoted)
        } else {
            let end = value.find([' ', '\t', ',']).unwrap_or(value.len());
            (value[..end].to_owned(), &value[end..])
        };
        text = rest;
        if let Some((_, parameters)) = found.last_mut() {
            parameters.entry(word).or_insert(value);
        }
    }
}

/// The quoted string that `text` begins with, and what follows its closing quote.
fn unquote(text: &str) -> (String, &str) {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, char)| char)),
            _ => value.push(char),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn demand_of(values: &[&str]) -> Option<Demand> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap());
        }
        demand(&headers)
    }

    #[test]
    fn challenges_are_understood() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Demand::Bearer {
                realm: realm.to_owned(),
                service: service.map(str::to_owned),
                scope: scope.map(str::to_owned),
            })
        };
        let table: [(&[&str], Option<Demand>); 9] = [
            (
                &[r#"Bearer realm="https://a/t",service="r.io",scope="repository:x:pull,push""#],
                bearer("https://a/t", Some("r.io"), Some("repository:x:pull,push")),
            ),
            (
                &["bearer Realm = https://a/t , error=\"x\\\"y\""],
                bearer("https://a/t", None, None),
            ),
            (
                &["Basic realm=\"x\", Bearer realm=\"y\",service=\"\""],
                bearer("y", None, None),
            ),
            (&["Basic", "Bearer realm=y"], bearer("y", None, None)),
            (&["Basic realm=\"a, Bearer realm=b\""], Some(Demand::Basic)),
            (&["Bearer"], None),
            (&["Bearer realm=\"\""], None),
            (&["Negotiate abc==, NTLM"], None),
            (&[], None),
        ];
        for (values, expected) in table {
            assert_eq!(demand_of(values), expected, "{values:?}");
        }
    }

    #[test]
    fn scopes_are_joined() {
        let own = Scopes::push("a", Some("b"));
        assert_eq!(
            own.0.iter().collect::<Vec<_>>(),
            ["repository:a:pull,push", "repository:b:pull"]
        );
        assert_eq!(own.with("repository:a:push,pull"), own);
        assert_eq!(own.with(""), own);
        assert_eq!(Scopes::pull("a").with("repository:c:pull").0.len(), 2);
    }

    #[test]
    fn forms_are_encoded() {
        assert_eq!(
            form(&[("a b", "c&d=e"), ("scope", "x:y z")]),
            "a+b=c%26d%3De&scope=x%3Ay+z"
        );
    }

    proptest! {
        #[test]
        fn any_header_is_read(text in ".*") {
            challenges(&text);
        }

        #[test]
        fn quoted_values_come_back(value in "[ -~]*") {
            let escaped = value.replace('\\', "\\\\").replace('"', "\\\"");
            let found = challenges(&format!("Bearer realm=\"{escaped}\",x=y"));
            prop_assert_eq!(&found[0].1["realm"], &value);
            prop_assert_eq!(&found[0].1["x"], "y");
        }
    }
}
