//! `kiln login` and `kiln logout`.

use std::io::{IsTerminal, Read as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use kiln_engine::BuildError;
use kiln_registry::Error;
use kiln_registry::credentials::Credential;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::args::LoginArgs;
use crate::context::registry_client;
use crate::credentials;
use crate::format::{complain, say};
use crate::signals::give_up_on_signal;

/// What docker calls Docker Hub here.
const HUB: &str = "https://index.docker.io/v1/";

/// The registry's name as references have it.
fn registry(server: Option<&str>) -> String {
    let server = server.unwrap_or(HUB);
    let host = server
        .strip_prefix("https://")
        .or_else(|| server.strip_prefix("http://"))
        .unwrap_or(server);
    match host.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        host => host.to_owned(),
    }
}

pub(super) fn login(args: &LoginArgs) -> Result<ExitCode> {
    let registry = registry(args.server.as_deref());
    let username = match &args.username {
        Some(name) => name.clone(),
        None if args.password_stdin => {
            return Err(
                BuildError::new("--password-stdin: the name is missing: give it with -u").into(),
            );
        }
        None => ask("Username: ")?,
    };
    let password = if args.password_stdin {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text)?;
        text.trim_end_matches(['\n', '\r']).to_owned()
    } else if let Some(password) = &args.password {
        complain("WARNING! Using --password via the CLI is insecure. Use --password-stdin.");
        password.clone()
    } else {
        ask_hidden("Password: ")?
    };
    if username.is_empty() || password.is_empty() {
        return Err(BuildError::new("a name and a password are needed").into());
    }
    let credential = Credential::Password { username, password };
    let offered = credential.clone();
    let cancel = give_up_on_signal()?;
    let client = registry_client(Arc::new(move |_: &str| Ok(Some(offered.clone()))))?;
    client
        .ping(&registry, cancel.raw().as_ref())
        .map_err(|error| match error {
            Error::Denied { message, .. } => {
                let why = if message.is_empty() {
                    "incorrect username or password".to_owned()
                } else {
                    message
                };
                BuildError::new(format!("login to {registry} failed: unauthorized: {why}"))
                    .with_hint("check the name and the password, or token, for this registry")
            }
            error => {
                let mut failed = BuildError::new(format!("login to {registry} failed: {error}"));
                failed.canceled = matches!(error, Error::Canceled);
                failed.hint = error.hint();
                failed
            }
        })?;
    credentials::change(|kept| kept.store(&registry, &credential))?;
    say("Login Succeeded");
    Ok(ExitCode::SUCCESS)
}

pub(super) fn logout(server: Option<&str>) -> Result<ExitCode> {
    let name = server.unwrap_or(HUB);
    let registry = registry(server);
    if credentials::change(|kept| kept.erase(&registry))? {
        say(&format!("Removing login credentials for {name}"));
    } else {
        say(&format!("Not logged in to {name}"));
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(prompt: &str) -> Result<String> {
    if !std::io::stdin().is_terminal() {
        return Err(BuildError::new(
            "cannot ask for a name and a password: standard input is no terminal",
        )
        .with_hint("give -u NAME and --password-stdin")
        .into());
    }
    let mut err = std::io::stderr();
    write!(err, "{prompt}").and_then(|()| err.flush())?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    Ok(line.trim_end_matches(['\n', '\r']).to_owned())
}

/// Asks without showing what is typed.
fn ask_hidden(prompt: &str) -> Result<String> {
    let stdin = std::io::stdin();
    let Ok(before) = tcgetattr(&stdin) else {
        return ask(prompt);
    };
    let mut hidden = before.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Now, &hidden)?;
    let answer = ask(prompt);
    tcsetattr(&stdin, OptionalActions::Now, &before)?;
    complain("");
    answer
}
