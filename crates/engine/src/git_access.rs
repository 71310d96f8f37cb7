//! Secrets, and what of them git repositories are shown.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use kiln_graph::SourceOp;
use kiln_remote::{Checkout, GitAccess, GitAddress};

use crate::build::{BuildRequest, Secret};

/// Address, what its checkout holds, and the commit that is expected, if the source is a git repository.
pub(crate) fn git_source(source: &SourceOp) -> Option<(&str, Checkout, Option<&str>)> {
    let SourceOp::Git {
        url,
        keep_git_dir,
        skip_submodules,
        checkout_times,
        checksum,
    } = source
    else {
        return None;
    };
    let how = Checkout {
        keep_git_dir: *keep_git_dir,
        skip_submodules: *skip_submodules,
        checkout_times: *checkout_times,
    };
    Some((url, how, checksum.as_deref()))
}

/// The value of a secret; `None` if there is none of that id.
pub(crate) fn secret(request: &BuildRequest, id: &str) -> Result<Option<Vec<u8>>, String> {
    match request.secrets.get(id) {
        None => Ok(None),
        Some(Secret::Value(value)) => Ok(Some(value.clone())),
        Some(Secret::File(path)) => match std::fs::read(path) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(format!(
                "secret {id}: cannot read {}: {error}",
                path.display()
            )),
        },
    }
}

/// What a repository is shown: the secret `GIT_AUTH_HEADER` or `GIT_AUTH_TOKEN` on the web, one with `.HOST` behind
/// the name before one for all hosts; by ssh the agent that `--ssh` gives.
pub(crate) fn git_access(
    request: &BuildRequest,
    address: &GitAddress,
) -> Result<GitAccess, String> {
    let mut access = GitAccess {
        authorization: None,
        ssh_agent: request.ssh.get("default").cloned(),
    };
    let Some(host) = address.web_host() else {
        return Ok(access);
    };
    for suffix in [format!(".{host}"), String::new()] {
        for (name, is_token) in [("GIT_AUTH_HEADER", false), ("GIT_AUTH_TOKEN", true)] {
            let Some(value) = secret(request, &format!("{name}{suffix}"))? else {
                continue;
            };
            let value = String::from_utf8_lossy(&value).trim().to_owned();
            access.authorization = Some(if is_token {
                // The user name is what GitHub and GitLab take with a token.
                let pair = BASE64_STANDARD.encode(format!("x-access-token:{value}"));
                format!("basic {pair}")
            } else {
                value
            });
            return Ok(access);
        }
    }
    Ok(access)
}
