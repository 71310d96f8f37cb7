//! Where the program runs: who calls, which store, which namespaces. The only place that reads the environment.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use kiln_engine::{BuildError, Engine};
use kiln_registry::{Client, ClientConfig, Credentials, Proxies};
use kiln_remote::{GitProgram, Remote};
use kiln_rootfs::Provider;
use kiln_sandbox::{IdTools, Isolation, User, Wanted};
use kiln_store::{Header, IdKind, IdRange, OpenOptions, Store};
use kiln_worker::Worker;

use crate::args::Global;

/// What all commands start from.
pub(crate) struct Place {
    pub(crate) root: PathBuf,
    pub(crate) isolation: Isolation,
    pub(crate) reason: String,
    pub(crate) provider: Option<Provider>,
}

/// A variable of the environment that is set and not empty.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The store's folder: as given, else the system's for root and the user's own for everybody else.
fn store_root(global: &Global, uid: u32) -> Result<PathBuf> {
    if let Some(root) = &global.root {
        return std::path::absolute(root).with_context(|| format!("{}", root.display()));
    }
    if uid == 0 {
        return Ok(PathBuf::from("/var/lib/kiln"));
    }
    if let Some(data) = variable("XDG_DATA_HOME").filter(|path| path.starts_with('/')) {
        return Ok(PathBuf::from(data).join("kiln"));
    }
    if let Some(home) = variable("HOME").filter(|path| path.starts_with('/') && path != "/") {
        return Ok(PathBuf::from(home).join(".local/share/kiln"));
    }
    let root = PathBuf::from(format!("/var/tmp/kiln-{uid}"));
    crate::format::complain(&format!(
        "note: there is no HOME, the store is {}",
        root.display()
    ));
    Ok(root)
}

fn user_name(uid: u32) -> Option<String> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// Whether this process has `CAP_SYS_ADMIN`. Where that cannot be found out root is taken for root.
fn may_mount() -> bool {
    use rustix::thread::{CapabilitySet, capabilities};
    capabilities(None).map_or(true, |sets| {
        sets.effective.contains(CapabilitySet::SYS_ADMIN)
    })
}

impl Place {
    pub(crate) fn find(global: &Global) -> Result<Self> {
        let (uid, gid) = (
            rustix::process::geteuid().as_raw(),
            rustix::process::getegid().as_raw(),
        );
        let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let name = user_name(uid).unwrap_or_else(|| uid.to_string());
        let path =
            std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into());
        let (subuid, subgid) = (text("/etc/subuid"), text("/etc/subgid"));
        let tools = IdTools::find(&path);
        let wanted = global.isolation.as_deref().unwrap_or("auto");
        // docker's word for what is usual.
        let wanted = if wanted == "default" { "auto" } else { wanted };
        let wanted = Wanted::from_name(wanted).with_context(|| {
            format!("--isolation {wanted}: expected auto, root, userns or single")
        })?;
        let user = User {
            uid,
            gid,
            name: &name,
            subuid: &subuid,
            subgid: &subgid,
            admin: may_mount(),
            uid_map: &text("/proc/self/uid_map"),
            gid_map: &text("/proc/self/gid_map"),
        };
        let (isolation, reason) = kiln_sandbox::choose(wanted, user, tools)?;
        let provider = match global.rootfs.as_deref() {
            None | Some("auto") => None,
            Some("overlay") => Some(Provider::Overlay),
            Some("overlay-mount") => Some(Provider::OverlayByMount),
            Some("plain") => Some(Provider::PlainTree),
            Some(other) => {
                anyhow::bail!("--rootfs {other}: expected auto, overlay, overlay-mount or plain")
            }
        };
        Ok(Self {
            root: store_root(global, uid)?,
            isolation,
            reason,
            provider,
        })
    }

    /// Opens the store, making it when it is not there.
    pub(crate) fn engine(&self) -> Result<Engine> {
        let store = Store::open(&self.root, options(id_kind(&self.isolation))?)?;
        let report = store.report();
        for tag in &report.tags {
            let now = match tag.now {
                Some(now) => format!("it leads to {now} again, as it did before"),
                None => "it is gone".to_owned(),
            };
            let lost = "was not yet on the disk when the machine stopped";
            crate::format::complain(&format!(
                "note: the image of {} {lost}: {now}",
                tag.name.familiar()
            ));
        }
        let worker = Worker::new(crate::worker::launch(
            &self.root,
            &self.isolation,
            self.provider,
        ));
        let client = registry_client(Arc::new(crate::credentials::stored))?;
        let remote = Remote::new(self.root.join("sources"), client.clone(), git_program());
        Ok(Engine {
            store,
            worker,
            client,
            remote,
            limits: crate::settings::limits(&self.root)?,
        })
    }
}

/// The proxies that the environment names, as all programs read them: the small spelling wins, and `HTTP_PROXY` is not
/// read, since a CGI script's clients can set it.
pub(crate) fn proxies() -> Proxies {
    let either = |small: &str, large: &str| variable(small).or_else(|| variable(large));
    let all = either("all_proxy", "ALL_PROXY");
    Proxies {
        http: variable("http_proxy").or_else(|| all.clone()),
        https: either("https_proxy", "HTTPS_PROXY").or(all),
        none: either("no_proxy", "NO_PROXY"),
    }
}

/// `git`, with what it needs of the environment: who the user is, keys, proxies, certificates.
fn git_program() -> GitProgram {
    const NAMES: [&str; 20] = [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "TMPDIR",
        "XDG_CONFIG_HOME",
        "XDG_RUNTIME_DIR",
        "SSH_AUTH_SOCK",
        "GIT_SSH",
        "GIT_SSH_COMMAND",
        "GIT_SSL_CAINFO",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "http_proxy",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
        "no_proxy",
        "NO_PROXY",
    ];
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    let mut places = std::env::split_paths(&path).map(|folder| folder.join("git"));
    GitProgram {
        path: places.find(|place| place.is_file()),
        env: NAMES
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var_os(name)?)))
            .collect(),
    }
}

fn id_kind(isolation: &Isolation) -> IdKind {
    let ranges = |ranges: &[kiln_sandbox::IdRange]| {
        let range = |it: &kiln_sandbox::IdRange| IdRange {
            inside: it.inside,
            outside: it.outside,
            count: it.count,
        };
        ranges.iter().map(range).collect()
    };
    match isolation {
        Isolation::Root => IdKind::Real,
        Isolation::MappedIds { uids, gids, .. } => IdKind::Mapped {
            uids: ranges(uids),
            gids: ranges(gids),
        },
        Isolation::SingleId { .. } => IdKind::Recorded,
    }
}

/// Opens the store of `header`, as it is.
pub(crate) fn open_existing(root: &std::path::Path) -> Result<Store> {
    let header = Header::read(root)?.context("there is no store")?;
    Ok(Store::open(root, options(header.ids)?)?)
}

fn options(ids: IdKind) -> Result<OpenOptions> {
    let owner = rustix::process::geteuid().as_raw();
    Ok(OpenOptions {
        owner,
        ids,
        boot_id: kiln_store::boot_id()?,
    })
}

/// Where configuration is read.
pub(crate) fn config_files() -> crate::settings::Files {
    crate::settings::Files {
        given: variable("KILN_CONFIG").map(PathBuf::from),
        home: variable("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(variable("HOME")?).join(".config"))),
    }
}

/// What speaks to registries. The file with the credentials is read when a registry asks for some.
pub(crate) fn registry_client(credentials: Arc<dyn Credentials>) -> Result<Client> {
    let files = config_files();
    let mut hosts = crate::settings::registries(&files)?;
    let homes = files
        .home
        .iter()
        .map(PathBuf::as_path)
        .chain([Path::new("/etc")]);
    let folders: Vec<PathBuf> = homes
        .flat_map(|home| ["docker", "containers"].map(|tool| home.join(tool).join("certs.d")))
        .collect();
    crate::settings::add_certificates(&mut hosts, &folders)?;
    if let Some(mirror) = variable("KILN_REGISTRY_MIRROR") {
        let hub = hosts.entry("docker.io".to_owned()).or_default();
        hub.mirrors.insert(0, mirror);
    }
    crate::settings::add_variables(&mut hosts, variable)?;
    Ok(Client::new(ClientConfig {
        hosts,
        credentials,
        proxies: proxies(),
        ..ClientConfig::default()
    }))
}

/// The folder that `--config` or `DOCKER_CONFIG` names.
static DOCKER_CONFIG: OnceLock<Option<PathBuf>> = OnceLock::new();

/// Takes what the command line says of Docker's configuration, once, before anything asks for it.
pub(crate) fn set_docker_config(folder: Option<PathBuf>) {
    let folder = folder.filter(|folder| !folder.as_os_str().is_empty());
    let _ = DOCKER_CONFIG.set(folder);
}

/// Docker's configuration: `config.json` in `--config`, `DOCKER_CONFIG`, else in `~/.docker`. Nothing where there is no home.
pub(crate) fn docker_config() -> Option<PathBuf> {
    Some(docker_config_folder()?.join("config.json"))
}

fn docker_config_folder() -> Option<PathBuf> {
    let given = DOCKER_CONFIG.get().cloned().flatten();
    given.or_else(|| Some(PathBuf::from(variable("HOME")?).join(".docker")))
}

/// The Docker Engine that `DOCKER_HOST` names, else the usual one.
pub(crate) fn docker_host() -> Result<kiln_registry::DockerHost, BuildError> {
    let Some(text) = variable("DOCKER_HOST") else {
        return Ok(kiln_registry::DockerHost::default());
    };
    let host = text.parse().map_err(|error: kiln_registry::DockerError| {
        let failed = BuildError::new(error.to_string());
        match error.hint() {
            Some(hint) => failed.with_hint(hint),
            None => failed,
        }
    })?;
    match host {
        kiln_registry::DockerHost::Tcp(_) if variable("DOCKER_TLS_VERIFY").is_some() => {
            Ok(kiln_registry::DockerHost::behind_tls(host, docker_keys()?))
        }
        host => Ok(host),
    }
}

/// The certificates and the key where docker's client looks for them. Those that are not there are not shown.
fn docker_keys() -> Result<kiln_registry::DockerKeys, BuildError> {
    let Some(folder) = variable("DOCKER_CERT_PATH")
        .map(PathBuf::from)
        .or_else(docker_config_folder)
    else {
        return Ok(kiln_registry::DockerKeys::default());
    };
    let read = |name: &str| {
        let path = folder.join(name);
        match std::fs::read(&path) {
            Ok(pem) => Ok(Some(pem)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(BuildError::new(format!("{}: {error}", path.display()))),
        }
    };
    let identity = read("cert.pem")?.zip(read("key.pem")?);
    Ok(kiln_registry::DockerKeys {
        authorities: read("ca.pem")?,
        identity: identity.map(|(certificate, key)| [certificate, key].concat()),
    })
}

/// Whether somebody who types `docker` here would reach an engine.
pub(crate) fn has_docker() -> bool {
    variable("DOCKER_HOST").is_some()
        || matches!(kiln_registry::DockerHost::default(),
            kiln_registry::DockerHost::Unix(path) if path.exists())
}

/// The host's resolver as a step sees it.
pub(crate) fn resolv_conf() -> String {
    std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
}

/// The bundle of certificates that this user's programs read, where it is not the system's.
pub(crate) fn certificates() -> Option<PathBuf> {
    variable("SSL_CERT_FILE").map(PathBuf::from)
}

/// What this system calls itself.
pub(crate) fn system_name() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="));
    name.map_or_else(
        || "linux".to_owned(),
        |name| name.trim_matches('"').to_owned(),
    )
}

/// How many processors there are.
pub(crate) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
