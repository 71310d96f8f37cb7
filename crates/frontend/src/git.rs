//! Addresses of git repositories: contexts, and sources of ADD.

use std::collections::BTreeMap;

use kiln_graph::SourceOp;

/// A git source.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct GitSource {
    /// Remote and fragment: `https://host/repo.git#ref:folder`.
    pub url: String,
    /// `keep-git-dir` of the query.
    pub keep_git_dir: Option<bool>,
    /// `submodules=false` of the query.
    pub skip_submodules: bool,
    /// `mtime=checkout` of the query.
    pub checkout_times: bool,
    /// `checksum` or `commit` of the query.
    pub checksum: Option<String>,
}

impl GitSource {
    /// The source to bring, with `.git` or without it where the query does not say.
    pub(crate) fn op(self, keep_git_dir: bool) -> SourceOp {
        SourceOp::Git {
            url: self.url,
            keep_git_dir: self.keep_git_dir.unwrap_or(keep_git_dir),
            skip_submodules: self.skip_submodules,
            checkout_times: self.checkout_times,
            checksum: self.checksum,
        }
    }
}

/// A context that is a git repository.
pub(crate) fn context(
    text: &str,
    build_args: &BTreeMap<String, String>,
) -> Result<SourceOp, String> {
    let keep = build_args.get("BUILDKIT_CONTEXT_KEEP_GIT_DIR");
    let keep_git_dir = keep.is_some_and(|value| matches!(value.as_str(), "1" | "true"));
    let source = parse(text).unwrap_or_else(|| {
        Ok(GitSource {
            url: text.to_owned(),
            ..GitSource::default()
        })
    })?;
    Ok(source.op(keep_git_dir))
}

/// Reads a source as the address of a git repository. `None` if it is none, an error if it is one that makes no sense.
pub(crate) fn parse(source: &str) -> Option<Result<GitSource, String>> {
    let (address, fragment) = source
        .split_once('#')
        .map_or((source, ""), |(address, fragment)| (address, fragment));
    let (remote, query) = address
        .split_once('?')
        .map_or((address, ""), |(remote, query)| (remote, query));
    let is_git = match remote.split_once("://") {
        Some(("git" | "ssh", rest)) => !rest.is_empty(),
        Some(("http" | "https", rest)) => rest.strip_suffix(".git").is_some(),
        Some(_) => false,
        None => is_scp_like(remote),
    };
    is_git.then(|| with_query(remote, query, fragment))
}

/// `user@host:path`.
fn is_scp_like(remote: &str) -> bool {
    let Some((user, rest)) = remote.split_once('@') else {
        return false;
    };
    let plain = |text: &str| !text.is_empty() && !text.contains(['/', ' ']);
    plain(user)
        && rest
            .split_once(':')
            .is_some_and(|(host, path)| plain(host) && !path.is_empty())
}

fn with_query(remote: &str, query: &str, fragment: &str) -> Result<GitSource, String> {
    let (mut reference, mut folder) = match fragment.split_once(':') {
        Some((reference, folder)) => (reference.to_owned(), folder.to_owned()),
        None => (fragment.to_owned(), String::new()),
    };
    let mut source = GitSource::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let value = percent_decoded(value);
        let boolean = || match value.as_str() {
            "" | "1" | "t" | "true" => Ok(true),
            "0" | "f" | "false" => Ok(false),
            other => Err(format!("invalid value {other:?} for {key} in {remote}")),
        };
        let set = |slot: &mut String, value: String| {
            if !slot.is_empty() && *slot != value {
                return Err(format!("{key} in {remote} conflicts with {slot:?}"));
            }
            *slot = value;
            Ok(())
        };
        match key {
            "ref" => set(&mut reference, value)?,
            "branch" => set(&mut reference, format!("refs/heads/{value}"))?,
            "tag" => set(&mut reference, format!("refs/tags/{value}"))?,
            "subdir" => set(&mut folder, value)?,
            "commit" | "checksum" => {
                let mut checksum = source.checksum.take().unwrap_or_default();
                set(&mut checksum, value)?;
                source.checksum = Some(checksum).filter(|checksum| !checksum.is_empty());
            }
            "keep-git-dir" => source.keep_git_dir = Some(boolean()?),
            "submodules" => source.skip_submodules = !boolean()?,
            "fetch-by-commit" => drop(boolean()?),
            "mtime" => {
                source.checkout_times = match value.as_str() {
                    "checkout" => true,
                    "commit" => false,
                    other => {
                        return Err(format!(
                            "invalid value {other:?} for mtime in {remote}, expected checkout or commit"
                        ));
                    }
                }
            }
            other => return Err(format!("unexpected query {other:?} in {remote}")),
        }
    }
    if reference.is_empty()
        && let Some(commit) = &source.checksum
    {
        reference.clone_from(commit);
    }
    source.url = match (reference.as_str(), folder.as_str()) {
        ("", "") => remote.to_owned(),
        (reference, "") => format!("{remote}#{reference}"),
        (reference, folder) => format!("{remote}#{reference}:{folder}"),
    };
    Ok(source)
}

/// Replaces `%2F` and its like; what is no proper sequence stays.
pub(crate) fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail
            .get(..2)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                bytes.push(decoded);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
