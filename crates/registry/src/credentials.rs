//! Names and passwords: Docker's `config.json` and its credential helpers.

use std::io;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Map, Value, json};

use crate::config::DOCKER_HUB;

/// Under which name Docker keeps the credentials of Docker Hub.
const DOCKER_HUB_KEY: &str = "https://index.docker.io/v1/";
/// The user name by which a helper says that the secret is an identity token.
const TOKEN_USER: &str = "<token>";

/// What proves who the user is.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// A name and a password.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// An `OAuth2` refresh token, from which access tokens are made.
    IdentityToken(String),
    /// A bearer token that goes to the registry as it is.
    RegistryToken(String),
}

impl std::fmt::Debug for Credential {
    /// Secrets stay out of logs.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { username, .. } => write!(out, "Password({username})"),
            Self::IdentityToken(_) => out.write_str("IdentityToken"),
            Self::RegistryToken(_) => out.write_str("RegistryToken"),
        }
    }
}

/// Knows credentials.
pub trait Credentials: Send + Sync {
    /// The credential for a registry, by its name in references; `None` to go without. May block: it is called on a
    /// thread of its own, once for each registry.
    fn get(&self, registry: &str) -> Result<Option<Credential>, CredentialError>;
}

/// Knows none.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoCredentials;

impl Credentials for NoCredentials {
    fn get(&self, _: &str) -> Result<Option<Credential>, CredentialError> {
        Ok(None)
    }
}

impl<F> Credentials for F
where
    F: Fn(&str) -> Result<Option<Credential>, CredentialError> + Send + Sync,
{
    fn get(&self, registry: &str) -> Result<Option<Credential>, CredentialError> {
        self(registry)
    }
}

/// Why credentials cannot be had or kept.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    /// The configuration is no JSON object.
    #[error("invalid docker configuration: {0}")]
    Config(String),
    /// An `auth` field that is not what it should be.
    #[error("invalid docker configuration: auths: {0}: expected base64 of NAME:PASSWORD")]
    Auth(String),
    /// A helper cannot be started.
    #[error("credential helper {helper}: {source}")]
    Start {
        /// The program.
        helper: String,
        /// Why.
        source: io::Error,
    },
    /// A helper reports an error, or talks nonsense.
    #[error("credential helper {helper}: {message}")]
    Helper {
        /// The program.
        helper: String,
        /// What it says.
        message: String,
    },
}

/// Starts credential helpers. The crate starts no programs itself.
pub trait HelperRunner: Send + Sync {
    /// Runs `program action` with the given standard input and waits for its end.
    fn run(&self, program: &str, action: &str, input: &str) -> io::Result<HelperOutput>;
}

/// What a helper answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HelperOutput {
    /// It exited with 0.
    pub ok: bool,
    /// Its standard output, where helpers write results as well as error messages.
    pub stdout: String,
}

/// The content of a `config.json`. Keys that are not understood survive changes, in their place.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct DockerConfig(Map<String, Value>);

impl DockerConfig {
    /// Reads the file's content; an empty one is an empty configuration.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_json::from_str(text)
            .map(Self)
            .map_err(|error| CredentialError::Config(error.to_string()))
    }

    /// The file's content, indented by tabs as Docker writes it.
    pub fn to_text(&self) -> String {
        let mut text = Vec::new();
        let mut writer = serde_json::Serializer::with_formatter(
            &mut text,
            serde_json::ser::PrettyFormatter::with_indent(b"\t"),
        );
        // Writing a JSON value into memory cannot fail.
        let _ = serde::Serialize::serialize(&self.0, &mut writer);
        text.push(b'\n');
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The helper's program for a registry: its own one, or that for all.
    pub fn helper(&self, registry: &str) -> Option<String> {
        let own = self.object("credHelpers").and_then(|helpers| {
            helpers
                .iter()
                .find(|(key, _)| registry_of(key) == registry_of(registry))
                .map(|(_, helper)| helper)
        });
        let name = own
            .or_else(|| self.0.get("credsStore"))?
            .as_str()
            .filter(|name| !name.is_empty())?;
        Some(format!("docker-credential-{name}"))
    }

    /// The credential that stands in the file itself.
    pub fn stored(&self, registry: &str) -> Result<Option<Credential>, CredentialError> {
        let Some(entry) = self
            .key(registry)
            .and_then(|key| self.object("auths")?.get(&key))
        else {
            return Ok(None);
        };
        let text = |name: &str| {
            entry
                .get(name)
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
        };
        if let Some(token) = text("registrytoken") {
            return Ok(Some(Credential::RegistryToken(token.to_owned())));
        }
        if let Some(token) = text("identitytoken") {
            return Ok(Some(Credential::IdentityToken(token.to_owned())));
        }
        if let Some(auth) = text("auth") {
            let wrong = || CredentialError::Auth(registry.to_owned());
            let pair = BASE64_STANDARD
                .decode(auth)
                .ok()
                .and_then(|pair| String::from_utf8(pair).ok());
            let pair = pair.ok_or_else(wrong)?;
            let (username, password) = pair.split_once(':').ok_or_else(wrong)?;
            // Old versions of Docker padded the pair with zero bytes.
            let password = password.trim_matches('\0');
            return Ok(Some(Credential::Password {
                username: username.to_owned(),
                password: password.to_owned(),
            }));
        }
        Ok(match (text("username"), text("password")) {
            (Some(username), Some(password)) => Some(Credential::Password {
                username: username.to_owned(),
                password: password.to_owned(),
            }),
            _ => None,
        })
    }

    /// Writes a credential into the file; `None` notes only that a helper has it, as Docker does.
    pub fn set(&mut self, registry: &str, credential: Option<&Credential>) {
        let entry = match credential {
            None => json!({}),
            Some(Credential::Password { username, password }) => {
                json!({ "auth": BASE64_STANDARD.encode(format!("{username}:{password}")) })
            }
            Some(Credential::IdentityToken(token)) => json!({ "identitytoken": token }),
            Some(Credential::RegistryToken(token)) => json!({ "registrytoken": token }),
        };
        let key = self.key(registry).unwrap_or_else(|| server(registry));
        let auths = self.0.entry("auths").or_insert_with(|| json!({}));
        if !auths.is_object() {
            *auths = json!({});
        }
        auths[key] = entry;
    }

    /// Takes all entries of a registry out of the file; tells whether there was one.
    pub fn remove(&mut self, registry: &str) -> bool {
        let mut removed = false;
        if let Some(Value::Object(auths)) = self.0.get_mut("auths") {
            auths.retain(|key, _| {
                let keep = registry_of(key) != registry_of(registry);
                removed |= !keep;
                keep
            });
        }
        removed
    }

    /// Under which key of `auths` the registry's credential stands.
    fn key(&self, registry: &str) -> Option<String> {
        let auths = self.object("auths")?;
        let exact = server(registry);
        if auths.contains_key(&exact) {
            return Some(exact);
        }
        auths
            .keys()
            .find(|key| registry_of(key) == registry_of(registry))
            .cloned()
    }

    fn object(&self, name: &str) -> Option<&Map<String, Value>> {
        self.0.get(name)?.as_object()
    }
}

/// The name under which Docker keeps a registry's credential, in the file and in helpers.
fn server(registry: &str) -> String {
    let name = registry_of(registry);
    if name == DOCKER_HUB {
        DOCKER_HUB_KEY.to_owned()
    } else {
        name.to_owned()
    }
}

/// The registry that a key means: keys come with scheme and path, and Docker Hub has several names.
fn registry_of(key: &str) -> &str {
    let host = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let host = host.split('/').next().unwrap_or_default();
    if matches!(host, "index.docker.io" | "registry-1.docker.io") {
        DOCKER_HUB
    } else {
        host
    }
}

/// The credentials of a `config.json` and of the helpers that it names.
#[derive(Clone)]
pub struct DockerCredentials {
    config: DockerConfig,
    runner: Arc<dyn HelperRunner>,
}

impl DockerCredentials {
    /// Credentials that come from the given configuration.
    pub fn new(config: DockerConfig, runner: Arc<dyn HelperRunner>) -> Self {
        Self { config, runner }
    }

    /// The configuration, to be written back after a change.
    pub fn config(&self) -> &DockerConfig {
        &self.config
    }

    /// Keeps a credential: with the helper if there is one, in the configuration else.
    pub fn store(
        &mut self,
        registry: &str,
        credential: &Credential,
    ) -> Result<(), CredentialError> {
        let Some(helper) = self.config.helper(registry) else {
            self.config.set(registry, Some(credential));
            return Ok(());
        };
        let (username, secret) = match credential {
            Credential::Password { username, password } => (username.as_str(), password),
            Credential::IdentityToken(token) | Credential::RegistryToken(token) => {
                (TOKEN_USER, token)
            }
        };
        let input =
            json!({ "ServerURL": server(registry), "Username": username, "Secret": secret })
                .to_string();
        self.run(&helper, "store", &input)?;
        self.config.set(registry, None);
        Ok(())
    }

    /// Forgets a credential; tells whether there was one.
    pub fn erase(&mut self, registry: &str) -> Result<bool, CredentialError> {
        let known = self.get(registry)?.is_some();
        if let Some(helper) = self.config.helper(registry).filter(|_| known) {
            self.run(&helper, "erase", &server(registry))?;
        }
        Ok(self.config.remove(registry) || known)
    }

    fn run(&self, helper: &str, action: &str, input: &str) -> Result<String, CredentialError> {
        let output =
            self.runner
                .run(helper, action, input)
                .map_err(|source| CredentialError::Start {
                    helper: helper.to_owned(),
                    source,
                })?;
        if output.ok {
            return Ok(output.stdout);
        }
        Err(CredentialError::Helper {
            helper: helper.to_owned(),
            message: output.stdout.trim().to_owned(),
        })
    }
}

impl Credentials for DockerCredentials {
    fn get(&self, registry: &str) -> Result<Option<Credential>, CredentialError> {
        let Some(helper) = self.config.helper(registry) else {
            return self.config.stored(registry);
        };
        let answer = match self.run(&helper, "get", &server(registry)) {
            Ok(answer) => answer,
            // The one error that all helpers share, by its words.
            Err(CredentialError::Helper { message, .. })
                if message.contains("credentials not found") =>
            {
                return self.config.stored(registry);
            }
            Err(error) => return Err(error),
        };
        let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
        let text = |name: &str| answer.get(name).and_then(Value::as_str);
        match (text("Username"), text("Secret")) {
            (_, Some("")) => Ok(None),
            (Some(TOKEN_USER), Some(secret)) => {
                Ok(Some(Credential::IdentityToken(secret.to_owned())))
            }
            (Some(username), Some(secret)) => Ok(Some(Credential::Password {
                username: username.to_owned(),
                password: secret.to_owned(),
            })),
            _ => {
                let message = "its answer has no Username and Secret".to_owned();
                Err(CredentialError::Helper { helper, message })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;

    fn password(username: &str, password: &str) -> Credential {
        Credential::Password {
            username: username.to_owned(),
            password: password.to_owned(),
        }
    }

    #[test]
    fn stored_credentials() {
        let config = DockerConfig::parse(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHVi"},
                "https://legacy.example/v1/": {"auth": "YTpi"},
                "plain.example": {"auth": "YTpiOmM="},
                "padded.example": {"auth": "YTpiAAA="},
                "token.example": {"auth": "YTpi", "identitytoken": "t"},
                "bearer.example:5000": {"registrytoken": "r"},
                "fields.example": {"username": "u", "password": "p"},
                "empty.example": {}
            }}"#,
        )
        .unwrap();
        for (registry, credential) in [
            ("legacy.example", Some(password("a", "b"))),
            ("plain.example", Some(password("a", "b:c"))),
            ("padded.example", Some(password("a", "b"))),
            (
                "token.example",
                Some(Credential::IdentityToken("t".to_owned())),
            ),
            (
                "bearer.example:5000",
                Some(Credential::RegistryToken("r".to_owned())),
            ),
            ("bearer.example", None),
            ("fields.example", Some(password("u", "p"))),
            ("empty.example", None),
            ("other.example", None),
        ] {
            assert_eq!(config.stored(registry).unwrap(), credential, "{registry}");
        }
        let error = config.stored("docker.io").unwrap_err().to_string();
        assert!(error.contains("docker.io"), "{error}");
        assert!(!error.contains("aHVi"), "no secrets in errors");
        assert!(DockerConfig::parse("[]").is_err());
        assert_eq!(DockerConfig::parse(" \n").unwrap(), DockerConfig::default());
    }

    #[test]
    fn changes_keep_what_is_not_understood() {
        let text = "{\n\t\"detachKeys\": \"ctrl-x\",\n\t\"auths\": {\n\t\t\"docker.io\": {\n\t\t\t\"auth\": \"YTpi\"\n\t\t}\n\t},\n\t\"HttpHeaders\": {\n\t\t\"X\": \"y\"\n\t}\n}\n";
        let mut config = DockerConfig::parse(text).unwrap();
        assert_eq!(config.to_text(), text);
        config.set("localhost:5000", Some(&password("u", "p")));
        config.set("docker.io", Some(&password("a", "c")));
        assert_eq!(
            config.stored("docker.io").unwrap(),
            Some(password("a", "c")),
            "replaced under its old key"
        );
        assert!(config.remove("docker.io"));
        assert!(!config.remove("docker.io"));
        let after = text
            .replace("docker.io", "localhost:5000")
            .replace("YTpi", "dTpw");
        assert_eq!(config.to_text(), after);

        let mut empty = DockerConfig::default();
        empty.set("docker.io", Some(&password("a", "b")));
        assert!(empty.to_text().contains(DOCKER_HUB_KEY));
    }

    #[test]
    fn helpers_are_found_by_registry() {
        let config =
            DockerConfig::parse(r#"{"credsStore": "all", "credHelpers": {"https://one.example": "one", "index.docker.io": "hub"}}"#)
                .unwrap();
        for (registry, helper) in [
            ("one.example", "one"),
            ("docker.io", "hub"),
            ("x.example", "all"),
        ] {
            assert_eq!(
                config.helper(registry),
                Some(format!("docker-credential-{helper}"))
            );
        }
        assert_eq!(DockerConfig::default().helper("x"), None);
        assert_eq!(
            DockerConfig::parse(r#"{"credsStore": ""}"#)
                .unwrap()
                .helper("x"),
            None
        );
    }

    /// A helper that keeps its secrets in memory.
    #[derive(Default)]
    struct Memory(Mutex<BTreeMap<String, String>>);

    impl HelperRunner for Memory {
        fn run(&self, program: &str, action: &str, input: &str) -> io::Result<HelperOutput> {
            if program != "docker-credential-memory" {
                return Err(io::ErrorKind::NotFound.into());
            }
            let mut kept = self.0.lock().unwrap();
            let answer = |ok, stdout: &str| {
                Ok(HelperOutput {
                    ok,
                    stdout: stdout.to_owned(),
                })
            };
            match action {
                "store" => {
                    let value: Value = serde_json::from_str(input).unwrap();
                    kept.insert(
                        value["ServerURL"].as_str().unwrap().to_owned(),
                        input.to_owned(),
                    );
                    answer(true, "")
                }
                "get" if input == "broken.example" => answer(true, "hello"),
                "get" if input == "locked.example" => answer(false, "the keychain is locked\n"),
                "get" => match kept.get(input) {
                    Some(secret) => answer(true, secret),
                    None => answer(false, "credentials not found in native keychain\n"),
                },
                _ => {
                    kept.remove(input);
                    answer(true, "")
                }
            }
        }
    }

    #[test]
    fn a_helper_keeps_credentials() {
        let config = DockerConfig::parse(
            r#"{"credsStore": "memory", "credHelpers": {"gone.example": "gone"}}"#,
        )
        .unwrap();
        let mut credentials = DockerCredentials::new(config, Arc::new(Memory::default()));
        assert_eq!(credentials.get("docker.io").unwrap(), None);
        credentials.store("docker.io", &password("a", "b")).unwrap();
        credentials
            .store("x.example", &Credential::IdentityToken("t".to_owned()))
            .unwrap();
        assert_eq!(
            credentials.get("docker.io").unwrap(),
            Some(password("a", "b"))
        );
        assert_eq!(
            credentials.get("x.example").unwrap(),
            Some(Credential::IdentityToken("t".to_owned()))
        );
        let text = credentials.config().to_text();
        assert!(
            text.contains("\"x.example\": {}") && !text.contains("YTpi"),
            "{text}"
        );
        assert!(credentials.erase("docker.io").unwrap());
        assert!(!credentials.erase("docker.io").unwrap());
        assert_eq!(credentials.get("docker.io").unwrap(), None);

        for (registry, message) in [
            (
                "broken.example",
                "credential helper docker-credential-memory: its answer has no Username and Secret",
            ),
            (
                "locked.example",
                "credential helper docker-credential-memory: the keychain is locked",
            ),
            (
                "gone.example",
                "credential helper docker-credential-gone: entity not found",
            ),
        ] {
            assert_eq!(credentials.get(registry).unwrap_err().to_string(), message);
        }
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        assert_eq!(format!("{:?}", password("me", "hunter2")), "Password(me)");
    }
}
