//! What `kiln build` takes on its command line, turned into a request.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use kiln_engine::{BuildError, BuildRequest, Dockerfile, DockerfileFrom, MainContext, Secret};
use kiln_frontend::{Context, Options};
use kiln_graph::Network;
use kiln_image::Platform;

use super::platforms::platforms;
use crate::args::BuildArgs;

/// Larger files are no Dockerfiles.
const MOST_DOCKERFILE: u64 = 16 << 20;

/// The request for a command line.
pub(super) fn request(args: &BuildArgs) -> Result<BuildRequest> {
    let (dockerfile, context) = dockerfile_and_context(args)?;
    let allowed = |right: &str| args.allow.iter().any(|given| given == right);
    let host = Platform::host();
    let mut options = Options::new(host);
    let mut platforms = platforms(&args.platforms)?;
    if let Some(first) = platforms.first() {
        options.target_platform = first.clone();
        options.platform_requested = true;
    }
    options.target.clone_from(&args.target);
    options.build_args = pairs("--build-arg", &args.build_args, true)?;
    if let Some(seconds) = args.timestamp {
        options
            .build_args
            .insert("SOURCE_DATE_EPOCH".to_owned(), seconds.to_string());
    } else if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        options
            .build_args
            .entry("SOURCE_DATE_EPOCH".to_owned())
            .or_insert(epoch);
    }
    // Those that are given make an index, also one of one image.
    let index = options.build_args.get("BUILDKIT_MULTI_PLATFORM");
    let index = index.is_some_and(|value| matches!(value.as_str(), "1" | "true"));
    if index && platforms.is_empty() {
        platforms.push(options.target_platform.clone());
    } else if platforms.len() < 2 && !index {
        platforms.clear();
    }
    for (name, value) in crate::credentials::proxies() {
        options.build_args.entry(name).or_insert(value);
    }
    options.labels = pairs("--label", &args.labels, false)?;
    options.no_cache = args.no_cache;
    options.no_cache_filter.clone_from(&args.no_cache_filter);
    options.network = match args.network.as_str() {
        "default" => Network::Default,
        "host" => Network::Host,
        "none" => Network::None,
        other => {
            return Err(BuildError::new(format!(
                "--network {other}: expected default, host or none"
            ))
            .into());
        }
    };
    options.extra_hosts = extra_hosts(&args.add_hosts)?;
    options.ulimits = args
        .ulimits
        .iter()
        .map(|text| ulimit(text))
        .collect::<Result<_>>()?;
    options.shm_size = args
        .shm_size
        .as_deref()
        .map(bytes)
        .transpose()?
        .unwrap_or_default();
    let mut folders = BTreeMap::new();
    for text in &args.build_contexts {
        let (name, place) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| {
                BuildError::new(format!("--build-context {text:?}: expected NAME=WHERE")).with_hint(
                    "WHERE is a folder, docker-image://NAME, oci-layout://FOLDER, or the address of a git repository or file",
                )
            })?;
        if let Some(kind @ ("target" | "input")) = place.split_once(':').map(|(kind, _)| kind) {
            let text = format!(
                "--build-context {text:?}: {kind}: names a part of a bake file, and kiln build reads none"
            );
            return Err(BuildError::new(text)
                .with_hint("give what that part stands for: a folder, an image, an address")
                .into());
        }
        let context = match place.split_once("://") {
            Some(("docker-image", image)) => Context::Image(image.to_owned()),
            Some(("oci-layout", layout)) => {
                let (folder, wanted) = oci_layout(layout);
                folders.insert(name.to_owned(), std::path::absolute(folder)?);
                Context::OciLayout(wanted)
            }
            _ if let Some(address) = git_address(place) => Context::Git(address),
            Some(("http" | "https", _)) => Context::Http(place.to_owned()),
            Some((scheme, _)) => {
                let text =
                    format!("--build-context {text:?}: contexts of kind {scheme} cannot be read");
                return Err(BuildError::new(text)
                    .with_hint(
                        "give a folder, docker-image://NAME, oci-layout://FOLDER, or the address of a git repository or file",
                    )
                    .into());
            }
            None => {
                folders.insert(name.to_owned(), std::path::absolute(place)?);
                Context::Local
            }
        };
        options.contexts.insert(name.to_owned(), context);
    }
    let (outputs, annotations) = super::outputs::outputs(args, &platforms)?;
    Ok(BuildRequest {
        dockerfile,
        context,
        options,
        folders,
        platforms,
        outputs,
        cache_from: super::cache_options::sources(&args.cache_from)?,
        cache_to: super::cache_options::targets(&args.cache_to)?,
        annotations,
        pull: args.pull,
        secrets: args
            .secrets
            .iter()
            .map(|text| secret(text))
            .collect::<Result<_>>()?,
        ssh: args
            .ssh
            .iter()
            .map(|text| ssh(text))
            .collect::<Result<_>>()?,
        allow: kiln_engine::Allowed {
            // Who gives all steps the host's network gives it to each.
            network_host: args.network == "host" || allowed("network.host"),
            security_insecure: allowed("security.insecure"),
        },
        jobs: args.jobs.max(1),
        cores: crate::context::cores(),
        keep_failed: args.on_error.is_some(),
        limits: args.limits.limits(&args.resources)?,
        resolv_conf: crate::context::resolv_conf(),
        trust: crate::certificates::trust(&args.trust, crate::context::certificates())?,
        command: command_line(args),
    })
}

/// The command line as others may see it: without the values of build arguments that should not be known.
fn command_line(args: &BuildArgs) -> Vec<String> {
    let hidden: Vec<&String> = args
        .build_args
        .iter()
        .filter(|pair| {
            let name = pair.split('=').next().unwrap_or_default();
            kiln_engine::is_secret_name(name)
        })
        .collect();
    let word = |word: std::ffi::OsString| {
        let word = word.to_string_lossy().into_owned();
        match hidden.iter().find(|pair| word.ends_with(pair.as_str())) {
            Some(pair) => {
                let value = pair.split_once('=').map_or(0, |(_, value)| value.len());
                format!("{}***", &word[..word.len() - value])
            }
            None => word,
        }
    };
    let mut line: Vec<String> = std::env::args_os().map(word).collect();
    if let Some(program) = line.first_mut() {
        "kiln".clone_into(program);
    }
    line
}

fn read_limited(from: impl Read, name: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MOST_DOCKERFILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| BuildError::new(format!("cannot read {name}: {error}")))?;
    if bytes.len() as u64 > MOST_DOCKERFILE {
        return Err(BuildError::new(format!(
            "{name}: larger than {MOST_DOCKERFILE} bytes, this is no Dockerfile"
        ))
        .into());
    }
    Ok(bytes)
}

/// The folder of `FOLDER[:TAG][@DIGEST]`, and `TAG`, `@DIGEST` or both.
fn oci_layout(text: &str) -> (&str, String) {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, format!("@{digest}")),
        None => (text, String::new()),
    };
    match rest.rsplit_once(':').filter(|(_, tag)| !tag.contains('/')) {
        Some((folder, tag)) => (folder, format!("{tag}{digest}")),
        None => (rest, digest),
    }
}

/// The address of a git repository, if a context is one; `github.com/...` is one too, as in docker.
fn git_address(context: &str) -> Option<String> {
    let address = match context.strip_prefix("github.com/") {
        Some(path) => format!("https://github.com/{}", with_git_suffix(path)),
        None => context.to_owned(),
    };
    kiln_frontend::is_git_address(&address).then_some(address)
}

fn with_git_suffix(path: &str) -> String {
    let end = path.find(['#', '?']).unwrap_or(path.len());
    let (path, rest) = path.split_at(end);
    let suffix = if Path::new(path).extension().is_some_and(|end| end == "git") {
        ""
    } else {
        ".git"
    };
    format!("{path}{suffix}{rest}")
}

fn is_web_address(text: &str) -> bool {
    text.starts_with("http://") || text.starts_with("https://")
}

fn dockerfile_and_context(args: &BuildArgs) -> Result<(DockerfileFrom, MainContext)> {
    let from_stdin = || -> Result<DockerfileFrom> {
        let bytes = read_limited(std::io::stdin().lock(), "standard input")?;
        Ok(DockerfileFrom::Text(Dockerfile {
            name: "Dockerfile".to_owned(),
            bytes,
            path: None,
        }))
    };
    let context = if args.context == "-" {
        let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
        Some(MainContext::Stream(Arc::new(File::from(stdin))))
    } else if let Some(address) = git_address(&args.context) {
        Some(MainContext::Git(address))
    } else if is_web_address(&args.context) {
        Some(MainContext::Http(args.context.clone()))
    } else {
        None
    };
    if let Some(context) = context {
        let dockerfile = match args.file.as_deref() {
            Some("-") if args.context == "-" => {
                return Err(BuildError::new(
                    "standard input cannot be both the context and the Dockerfile",
                )
                .with_hint("give the Dockerfile's path in the context with -f")
                .into());
            }
            Some("-") => from_stdin()?,
            Some(url) if is_web_address(url) => DockerfileFrom::Url(url.to_owned()),
            path => DockerfileFrom::Context(path.map(str::to_owned)),
        };
        return Ok((dockerfile, context));
    }
    let folder = PathBuf::from(&args.context);
    match std::fs::metadata(&folder) {
        Ok(meta) if meta.is_dir() => {}
        Ok(_) => {
            return Err(BuildError::new(format!("context {}: not a folder", folder.display()))
                .with_hint("the context is the folder whose files COPY takes; the Dockerfile is given with -f")
                .into());
        }
        Err(error) => {
            return Err(BuildError::new(format!(
                "unable to prepare context: path {:?}: {error}",
                args.context
            ))
            .into());
        }
    }
    if args.file.as_deref() == Some("-") {
        return Ok((from_stdin()?, MainContext::Folder(folder)));
    }
    if let Some(url) = args.file.as_deref().filter(|file| is_web_address(file)) {
        let dockerfile = DockerfileFrom::Url(url.to_owned());
        return Ok((dockerfile, MainContext::Folder(folder)));
    }
    let path = find_dockerfile(args.file.as_deref(), &folder);
    let name = match &args.file {
        Some(_) => path
            .strip_prefix(&folder)
            .unwrap_or(&path)
            .display()
            .to_string(),
        None => path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned(),
    };
    let file = std::fs::File::open(&path).map_err(|error| cannot_read(&path, &folder, &error))?;
    let bytes = read_limited(file, &path.display().to_string())?;
    Ok((
        DockerfileFrom::Text(Dockerfile {
            name,
            bytes,
            path: Some(path),
        }),
        MainContext::Folder(folder),
    ))
}

/// As given; without `-f` the small spelling will do too.
fn find_dockerfile(given: Option<&str>, folder: &Path) -> PathBuf {
    let Some(given) = given else {
        let usual = folder.join("Dockerfile");
        let small = folder.join("dockerfile");
        return if !usual.exists() && small.exists() {
            small
        } else {
            usual
        };
    };
    PathBuf::from(given)
}

fn cannot_read(path: &Path, folder: &Path, error: &std::io::Error) -> anyhow::Error {
    let failed = BuildError::new(format!(
        "failed to read dockerfile: {}: {error}",
        path.display()
    ));
    if error.kind() != std::io::ErrorKind::NotFound {
        return failed.into();
    }
    let mut near: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| {
            name.to_ascii_lowercase().contains("dockerfile") && !name.ends_with(".dockerignore")
        })
        .collect();
    near.sort();
    let hint = if near.is_empty() {
        format!(
            "there is no Dockerfile in {}; give its path with -f",
            folder.display()
        )
    } else {
        format!(
            "in {} there is {}; give its path with -f",
            folder.display(),
            near.join(", ")
        )
    };
    failed.with_hint(hint).into()
}

/// `NAME=VALUE`; a name alone is taken from the environment, and left out when it is not there.
pub(super) fn variable(text: &str) -> Option<String> {
    if text.contains('=') {
        return Some(text.to_owned());
    }
    std::env::var(text)
        .ok()
        .map(|value| format!("{text}={value}"))
}

fn pairs(flag: &str, list: &[String], from_environment: bool) -> Result<BTreeMap<String, String>> {
    let mut pairs = BTreeMap::new();
    for text in list {
        if text.is_empty() || text.starts_with('=') {
            return Err(BuildError::new(format!("{flag} {text:?}: expected NAME=VALUE")).into());
        }
        match text.split_once('=') {
            Some((name, value)) => {
                pairs.insert(name.to_owned(), value.to_owned());
            }
            None if from_environment => {
                if let Ok(value) = std::env::var(text) {
                    pairs.insert(text.clone(), value);
                }
            }
            None => {
                pairs.insert(text.clone(), String::new());
            }
        }
    }
    Ok(pairs)
}

/// `NAME:ADDRESS` or `NAME=ADDRESS`.
pub(super) fn extra_hosts(list: &[String]) -> Result<Vec<(String, String)>> {
    list.iter()
        .map(|text| {
            let (name, address) = text
                .split_once('=')
                .or_else(|| text.split_once(':'))
                .ok_or_else(|| {
                    BuildError::new(format!("--add-host {text:?}: expected NAME:ADDRESS"))
                })?;
            let address = address.trim_start_matches('[').trim_end_matches(']');
            // Steps and containers have the machine's network, so that it is where they are.
            let address = if address == "host-gateway" {
                "127.0.0.1"
            } else {
                address
            };
            if address.parse::<std::net::IpAddr>().is_err() {
                return Err(BuildError::new(format!(
                    "--add-host {text:?}: {address:?} is no IP address"
                ))
                .into());
            }
            Ok((name.to_owned(), address.to_owned()))
        })
        .collect()
}

pub(super) fn ulimit(text: &str) -> Result<(String, u64, u64)> {
    let wrong = || {
        BuildError::new(format!(
            "--ulimit {text:?}: expected TYPE=SOFT[:HARD], as in nofile=1024:4096"
        ))
    };
    let (name, limits) = text.split_once('=').ok_or_else(wrong)?;
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        text => text.parse::<u64>().map_err(|_| wrong()),
    };
    let (soft, hard) = match limits.split_once(':') {
        Some((soft, hard)) => (number(soft)?, number(hard)?),
        None => (number(limits)?, number(limits)?),
    };
    if soft > hard {
        return Err(BuildError::new(format!(
            "--ulimit {text:?}: the soft limit is above the hard one"
        ))
        .into());
    }
    Ok((name.to_owned(), soft, hard))
}

/// A size as docker takes it: `64m`, `1g`, `67108864`.
pub(super) fn bytes(text: &str) -> Result<u64> {
    let wrong = || {
        BuildError::new(format!(
            "size {text:?}: expected a number with b, k, m or g behind it"
        ))
    };
    let lower = text.to_ascii_lowercase();
    let lower = lower.strip_suffix('b').unwrap_or(&lower);
    let (digits, factor) = match lower.char_indices().last() {
        Some((at, 'k')) => (&lower[..at], 1 << 10),
        Some((at, 'm')) => (&lower[..at], 1 << 20),
        Some((at, 'g')) => (&lower[..at], 1 << 30),
        _ => (lower, 1),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    Ok(number.checked_mul(factor).ok_or_else(wrong)?)
}

fn secret(text: &str) -> Result<(String, Secret)> {
    let wrong = |what: &str| {
        BuildError::new(format!("--secret {text:?}: {what}"))
            .with_hint("write id=NAME,src=FILE or id=NAME,env=VARIABLE")
    };
    let (mut id, mut src, mut env, mut kind) = (None, None, None, None);
    for field in text.split(',') {
        let (key, value) = field
            .split_once('=')
            .ok_or_else(|| wrong("expected KEY=VALUE"))?;
        match key {
            "id" => id = Some(value),
            "src" | "source" => src = Some(value),
            "env" => env = Some(value),
            "type" => kind = Some(value),
            other => return Err(wrong(&format!("unknown key {other}")).into()),
        }
    }
    let id = id
        .filter(|id| !id.is_empty())
        .ok_or_else(|| wrong("the id is missing"))?;
    let variable = match (kind, env, src) {
        (Some("env"), env, src) => env.or(src).or(Some(id)),
        (None, Some(env), _) => Some(env),
        // docker's rule: an id that is a variable's name stands for the variable.
        (None, None, None) if std::env::var_os(id).is_some() => Some(id),
        (None | Some("file"), ..) => None,
        (Some(other), ..) => {
            return Err(wrong(&format!("unknown type {other}, expected file or env")).into());
        }
    };
    if let Some(variable) = variable {
        let value = std::env::var_os(variable)
            .ok_or_else(|| wrong(&format!("there is no variable {variable}")))?;
        return Ok((id.to_owned(), Secret::Value(value.into_encoded_bytes())));
    }
    let path = std::path::absolute(src.unwrap_or(id))?;
    if !path.exists() {
        return Err(wrong(&format!("{} is not there", path.display())).into());
    }
    Ok((id.to_owned(), Secret::File(path)))
}

fn ssh(text: &str) -> Result<(String, PathBuf)> {
    if let Some((id, socket)) = text.split_once('=') {
        return Ok((id.to_owned(), std::path::absolute(socket)?));
    }
    match std::env::var_os("SSH_AUTH_SOCK") {
        Some(socket) => Ok((text.to_owned(), PathBuf::from(socket))),
        None => Err(
            BuildError::new(format!("--ssh {text}: there is no SSH_AUTH_SOCK"))
                .with_hint("start an ssh agent, or name its socket: --ssh default=SOCKET")
                .into(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_limits() {
        for (text, number) in [
            ("64m", 64 << 20),
            ("1g", 1 << 30),
            ("1gb", 1 << 30),
            ("7", 7),
            ("7b", 7),
            ("2K", 2048),
        ] {
            assert_eq!(bytes(text).unwrap(), number, "{text}");
        }
        for wrong in ["", "m", "1t", "-1", "99999999999999999999g"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
        assert_eq!(ulimit("nofile=1:2").unwrap(), ("nofile".to_owned(), 1, 2));
        assert_eq!(
            ulimit("core=-1").unwrap(),
            ("core".to_owned(), u64::MAX, u64::MAX)
        );
        for wrong in ["nofile", "nofile=2:1", "nofile=x"] {
            assert!(ulimit(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn layouts() {
        for (text, folder, wanted) in [
            ("dir", "dir", ""),
            ("/a/b:v1", "/a/b", "v1"),
            ("./a:b/c", "./a:b/c", ""),
            ("d@sha256:ab", "d", "@sha256:ab"),
            ("d:v1@sha256:ab", "d", "v1@sha256:ab"),
        ] {
            assert_eq!(oci_layout(text), (folder, wanted.to_owned()), "{text}");
        }
    }

    #[test]
    fn hosts() {
        let hosts = extra_hosts(&[
            "a:1.2.3.4".to_owned(),
            "b=::1".to_owned(),
            "c=[::1]".to_owned(),
            "host.docker.internal:host-gateway".to_owned(),
        ])
        .unwrap();
        assert_eq!(hosts[0], ("a".to_owned(), "1.2.3.4".to_owned()));
        assert_eq!((hosts[1].1.as_str(), hosts[2].1.as_str()), ("::1", "::1"));
        assert_eq!(hosts[3].1, "127.0.0.1");
        assert!(extra_hosts(&["a".to_owned()]).is_err());
        assert!(extra_hosts(&["a:b".to_owned()]).is_err());
    }
}
