//! Containers: made from an image, run in the foreground, kept as a stack of layers.
//!
//! A container is the layers of its image and, on top, one for each time that it ran or that files were copied into it.
//! So all that layers can do, containers can: nothing here depends on how root file systems are made.

use std::os::fd::BorrowedFd;
use std::time::{Duration, SystemTime};

use kiln_graph::Network;
use kiln_image::{Digest, ImageConfig, LayerId, Platform, RunConfig};
use kiln_store::{Container, Lease, NewContainer};
use kiln_worker::{
    ExecJob, ExecMount, Exit, Limits, Made, MountSource, ProcessSpec, Request, Response, Rights,
    Trust, hosts_file,
};
use serde::{Deserialize, Serialize};

use crate::room::Guard;
use crate::{BuildError, Engine};

/// What is run.
#[derive(Debug, Clone, Default)]
pub struct RunRequest {
    /// The image's manifest.
    pub image: Option<Digest>,
    /// What the user calls the image.
    pub image_name: String,
    /// The container's name; one is made up without.
    pub name: Option<String>,
    /// The container goes when it ends.
    pub remove: bool,
    /// Arguments instead of the image's `Cmd`.
    pub args: Vec<String>,
    /// Instead of the image's entrypoint; an empty one takes it away.
    pub entrypoint: Option<String>,
    /// More variables, `NAME=value`; they win over the image's.
    pub env: Vec<String>,
    /// Instead of the image's working folder.
    pub workdir: Option<String>,
    /// Instead of the image's user.
    pub user: Option<String>,
    /// Folders and files of the machine: from, to, read-only.
    pub volumes: Vec<(String, String, bool)>,
    /// Folders in memory: where, and the most bytes (0 for no limit).
    pub tmpfs: Vec<(String, u64)>,
    /// Nothing but mounts can be written.
    pub read_only: bool,
    /// Network.
    pub network: Network,
    /// Host name.
    pub hostname: String,
    /// The text of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Extra lines of `/etc/hosts`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// Memory and processors.
    pub limits: Limits,
    /// Limits: name, soft, hard.
    pub ulimits: Vec<(String, u64, u64)>,
    /// Bytes of `/dev/shm`; 0 for the default.
    pub shm_size: u64,
    /// The descriptors are one terminal.
    pub terminal: bool,
    /// A process 1 that collects processes comes before the program.
    pub init: bool,
    /// Standard input is given to the container.
    pub interactive: bool,
    /// Certificates of the host that the container trusts.
    pub trust: Option<Trust>,
    /// All rights that this program has.
    pub privileged: bool,
    /// What it may do, where it is not the usual.
    pub rights: Rights,
    /// Labels besides the image's.
    pub labels: Vec<(String, String)>,
    /// Ports besides the image's, `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Instead of the image's signal for its end.
    pub stop_signal: Option<String>,
    /// Seconds between that signal and its end by force.
    pub stop_timeout: Option<i64>,
}

/// How a container ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// How its process ended.
    pub exit: Exit,
    /// What the user should know of.
    pub notes: Vec<String>,
}

impl Ran {
    /// The exit code as docker gives it: 128 and the signal for a process that was killed.
    pub fn code(&self) -> i32 {
        code(self.exit)
    }
}

fn code(exit: Exit) -> i32 {
    match exit {
        Exit::Code(code) => code,
        Exit::Signal(signal) => 128 + signal,
    }
}

/// What the store keeps for us with a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Details {
    image_name: String,
    /// How many of its layers are the image's.
    image_layers: usize,
    process: ProcessSpec,
    mounts: Vec<ExecMount>,
    interactive: bool,
    /// The image's config with what was asked for besides.
    #[serde(default)]
    config: RunConfig,
    /// The latest end: code, seconds since 1970.
    ended: Option<(i32, u64)>,
}

impl Details {
    fn of(container: &Container) -> Result<Self, BuildError> {
        serde_json::from_slice(&container.details).map_err(|error| {
            BuildError::new(format!(
                "what is kept about container {} cannot be read: {error}",
                container.name
            ))
        })
    }

    fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and strings")
    }
}

/// What is known of a container.
#[derive(Debug, Clone)]
pub struct ContainerInfo {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name.
    pub name: String,
    /// What the user called its image.
    pub image: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// When it was made.
    pub created: SystemTime,
    /// Whether it runs.
    pub running: bool,
    /// How it ended the last time, and when.
    pub ended: Option<(i32, SystemTime)>,
    /// It was made with a terminal.
    pub terminal: bool,
    /// It was made with standard input open.
    pub interactive: bool,
    /// The manifest of its image.
    pub manifest: Option<Digest>,
    /// What it runs, and how.
    pub process: ProcessSpec,
    /// The image's config with what was asked for besides.
    pub config: RunConfig,
    /// The image's layers.
    pub image_layers: Vec<LayerId>,
    /// The layers that it made itself.
    pub own_layers: Vec<LayerId>,
}

impl Engine {
    /// Runs a new container until it ends. `stdio` are standard input, output and error.
    ///
    /// # Errors
    /// When the image is not there or the process cannot be started.
    pub fn run(&self, request: &RunRequest, stdio: [BorrowedFd<'_>; 3]) -> Result<Ran, BuildError> {
        let lease = self.store.lease()?;
        let id = self.add_container(&lease, request)?;
        self.start_container(&lease, &id, request.trust.clone(), !request.remove, stdio)
    }

    /// Makes a container that does not run yet; gives its id.
    ///
    /// # Errors
    /// When the image is not there or the name is taken.
    pub fn create(&self, request: &RunRequest) -> Result<String, BuildError> {
        let lease = self.store.lease()?;
        self.add_container(&lease, request)
    }

    /// Runs a container that was made before, from what it left the last time.
    ///
    /// # Errors
    /// When there is none, it runs already, or its process cannot be started.
    pub fn start(
        &self,
        id: &str,
        trust: Option<Trust>,
        stdio: [BorrowedFd<'_>; 3],
    ) -> Result<Ran, BuildError> {
        let lease = self.store.lease()?;
        self.start_container(&lease, id, trust, true, stdio)
    }

    fn add_container(&self, lease: &Lease, request: &RunRequest) -> Result<String, BuildError> {
        let manifest = request
            .image
            .ok_or_else(|| BuildError::new("no image given"))?;
        let missing = || BuildError::new(format!("no such image: {manifest}"));
        let info = self.store.image(manifest)?.ok_or_else(missing)?.info;
        let (_, config) = self.store.json(info.config)?.ok_or_else(missing)?;
        let config = ImageConfig::from_bytes(&config).map_err(|error| {
            BuildError::new(format!("the image's config cannot be read: {error}"))
        })?;
        let config = merged(request, config.config);
        let details = Details {
            image_name: request.image_name.clone(),
            image_layers: info.layers.len(),
            process: process(request, &config)?,
            mounts: mounts(request),
            interactive: request.interactive,
            config,
            ended: None,
        };
        let mut new = NewContainer {
            name: String::new(),
            image: Some(manifest),
            layers: info.layers,
            ephemeral: request.remove,
            details: details.bytes(),
        };
        if let Some(name) = &request.name {
            check_name(name)?;
            new.name.clone_from(name);
            return self.store.add_container(lease, &new)?.ok_or_else(|| {
                BuildError::new(format!("the container name {name:?} is already in use")).with_hint(
                    format!("remove that container with kiln rm {name}, or take another name"),
                )
            });
        }
        loop {
            new.name = made_up_name();
            if let Some(id) = self.store.add_container(lease, &new)? {
                return Ok(id);
            }
        }
    }

    fn start_container(
        &self,
        lease: &Lease,
        id: &str,
        trust: Option<Trust>,
        keep: bool,
        stdio: [BorrowedFd<'_>; 3],
    ) -> Result<Ran, BuildError> {
        let gone = || BuildError::new(format!("no such container: {id}"));
        if !self.store.restart_container(lease, id)? {
            return Err(gone());
        }
        let all = self.store.containers()?;
        let container = all.into_iter().find(|it| it.id == id).ok_or_else(gone)?;
        let mut details = Details::of(&container)?;
        self.store.protect(lease, &container.layers)?;
        let job = ExecJob {
            process: details.process.clone(),
            root: container.layers.clone(),
            into: self.store.begin_layer(lease)?,
            mounts: details.mounts.clone(),
            trust,
            keep,
        };
        let request = Request::Run(Box::new(job));
        let guard = Guard::new(self);
        let answer = std::thread::scope(|scope| {
            scope.spawn(|| guard.watch());
            let answer = self.worker.call(&request, &stdio);
            guard.end();
            answer
        });
        if let Some((message, hint)) = guard.stopped() {
            self.worker.resume();
            return Err(BuildError::new(message).with_hint(hint));
        }
        let (exit, made, notes) = match answer {
            Ok(Response::Exited {
                exit,
                made,
                mut notes,
                out_of_memory,
                foreign,
                ..
            }) => {
                if foreign && let Some(note) = self.foreign(&container)? {
                    notes.push(note);
                }
                if out_of_memory {
                    notes.push(
                        "out of memory: the kernel killed a process of the container".to_owned(),
                    );
                }
                (exit, made, notes)
            }
            Ok(_) => return Err(BuildError::new("the worker's answer does not fit the job")),
            Err(error) => return Err(BuildError::from_worker(&error)),
        };
        if keep {
            let space = made.iter().map(|made| made.space).sum();
            let fits = guard.make_room(space, true);
            fits.map_err(|(message, hint)| BuildError::new(message).with_hint(hint))?;
            self.add_layers(id, container.layers, &made)?;
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
            details.ended = Some((code(exit), now.unwrap_or_default().as_secs()));
            self.store.set_container_details(id, &details.bytes())?;
        }
        Ok(Ran { exit, notes })
    }

    /// Why a container's program cannot be executed, if its image is for another machine.
    fn foreign(&self, container: &Container) -> Result<Option<String>, BuildError> {
        let image = container.image.map(|image| self.store.image(image));
        let platform = image.transpose()?.flatten().map(|it| it.info.platform);
        let platform = platform.filter(|it| !Platform::host().runs().contains(it));
        Ok(platform.map(|platform| {
            let (host, hint) = (Platform::host(), kiln_solver::NO_EMULATOR);
            format!("the image is for {platform}, and this machine is {host}: {hint}")
        }))
    }

    /// Puts what a container or a copy made on top of a container. A layer without content is not worth its place.
    pub(crate) fn add_layers(
        &self,
        id: &str,
        mut layers: Vec<LayerId>,
        made: &[Made],
    ) -> Result<(), BuildError> {
        for made in made.iter().filter(|made| made.entries > 0) {
            self.store
                .seal_layer(made.layer, &kiln_store::LayerSummary::from(made))?;
            layers.push(made.layer);
        }
        self.store.set_container_layers(id, &layers)?;
        Ok(())
    }

    /// All containers, the latest first.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn containers(&self) -> Result<Vec<ContainerInfo>, BuildError> {
        self.store
            .containers()?
            .into_iter()
            .map(|container| {
                let details = Details::of(&container)?;
                let mut image_layers = container.layers;
                let own_layers =
                    image_layers.split_off(details.image_layers.min(image_layers.len()));
                let then = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
                Ok(ContainerInfo {
                    id: container.id,
                    name: container.name,
                    image: details.image_name,
                    args: details.process.args.clone(),
                    manifest: container.image,
                    created: container.created,
                    running: container.running,
                    ended: details.ended.map(|(code, at)| (code, then(at))),
                    terminal: details.process.terminal,
                    interactive: details.interactive,
                    process: details.process,
                    config: details.config,
                    image_layers,
                    own_layers,
                })
            })
            .collect()
    }

    /// A container by its name, its id, or the beginning of its id.
    ///
    /// # Errors
    /// When there is none, or more than one.
    pub fn container(&self, text: &str) -> Result<ContainerInfo, BuildError> {
        let mut all = self.containers()?;
        if let Some(at) = all.iter().position(|it| it.name == text || it.id == text) {
            return Ok(all.swap_remove(at));
        }
        all.retain(|it| !text.is_empty() && it.id.starts_with(text));
        match all.len() {
            1 => Ok(all.swap_remove(0)),
            0 => {
                Err(BuildError::new(format!("no such container: {text}"))
                    .with_hint("see kiln ps -a"))
            }
            _ => Err(BuildError::new(format!(
                "several containers have an id that begins with {text}"
            ))
            .with_hint("give more digits")),
        }
    }

    /// Removes a container that does not run.
    ///
    /// # Errors
    /// When it runs, or the store cannot be written.
    pub fn remove_container(&self, container: &ContainerInfo) -> Result<(), BuildError> {
        if container.running {
            let text = format!(
                "cannot remove container {:?}: container is running",
                container.name
            );
            return Err(BuildError::new(text)
                .with_hint("end the kiln run or kiln start that runs it, or take kiln rm -f"));
        }
        self.store.remove_container(&container.id)?;
        Ok(())
    }

    /// Forgets containers that were removed, or were to go with their end; then [`Engine::sweep`] takes their layers.
    ///
    /// # Errors
    /// When the store cannot be written.
    pub fn sweep_containers(&self) -> Result<(), BuildError> {
        let gone = self.store.sweep_containers()?;
        Ok(self.store.forget_containers(&gone)?)
    }
}

/// The image's config with what is asked for besides.
fn merged(request: &RunRequest, mut config: RunConfig) -> RunConfig {
    if let Some(entrypoint) = &request.entrypoint {
        config.entrypoint = (!entrypoint.is_empty()).then(|| vec![entrypoint.clone()]);
        config.cmd = None;
    }
    if !request.args.is_empty() {
        config.cmd = Some(request.args.clone());
    }
    for variable in &request.env {
        let name = variable.split('=').next().unwrap_or_default();
        config
            .env
            .retain(|known| known.split('=').next() != Some(name));
        config.env.push(variable.clone());
    }
    if let Some(workdir) = &request.workdir {
        config.working_dir.clone_from(workdir);
    }
    if let Some(user) = &request.user {
        config.user.clone_from(user);
    }
    if let Some(signal) = &request.stop_signal {
        config.stop_signal.clone_from(signal);
    }
    config.stop_timeout = request.stop_timeout.or(config.stop_timeout);
    config.labels.extend(request.labels.iter().cloned());
    config
        .exposed_ports
        .extend(request.exposed_ports.iter().cloned());
    config
}

fn process(request: &RunRequest, config: &RunConfig) -> Result<ProcessSpec, BuildError> {
    let mut args = config.entrypoint.clone().unwrap_or_default();
    args.extend(config.cmd.iter().flatten().cloned());
    if args.is_empty() {
        return Err(BuildError::new("no command specified")
            .with_hint("the image has neither ENTRYPOINT nor CMD: give a command after its name"));
    }
    let cwd = match config.working_dir.as_str() {
        "" => "/",
        given => given,
    };
    Ok(ProcessSpec {
        args,
        env: config.env.clone(),
        cwd: cwd.to_owned(),
        user: config.user.clone(),
        hostname: request.hostname.clone(),
        hosts: hosts_file(&request.hostname, &request.extra_hosts),
        resolv_conf: request.resolv_conf.clone(),
        network: request.network,
        limits: request.limits.clone(),
        ulimits: request.ulimits.clone(),
        shm_size: request.shm_size,
        read_only_root: request.read_only,
        terminal: request.terminal,
        init: request.init,
        insecure: request.privileged,
        rights: request.rights.clone(),
    })
}

fn mounts(request: &RunRequest) -> Vec<ExecMount> {
    let volumes = request
        .volumes
        .iter()
        .map(|(from, to, readonly)| ExecMount {
            dest: to.clone(),
            readonly: *readonly,
            source: MountSource::Host(from.clone()),
        });
    let tmpfs = request.tmpfs.iter().map(|(to, size)| ExecMount {
        dest: to.clone(),
        readonly: false,
        source: MountSource::Tmpfs { size: *size },
    });
    // Folders before what is mounted in them.
    let mut mounts: Vec<_> = volumes.chain(tmpfs).collect();
    mounts.sort_by_key(|mount| mount.dest.matches('/').count());
    mounts
}

/// docker's rule.
fn check_name(name: &str) -> Result<(), BuildError> {
    let mut letters = name.bytes();
    let first = letters
        .next()
        .is_some_and(|letter| letter.is_ascii_alphanumeric());
    let rest = letters.all(|letter| letter.is_ascii_alphanumeric() || b"_.-".contains(&letter));
    if first && rest && name.len() > 1 {
        return Ok(());
    }
    Err(BuildError::new(format!(
        "invalid container name {name:?}: expected two or more letters, digits, _, . or -, beginning with a letter or digit"
    )))
}

/// Two words, as everyone knows them from docker.
fn made_up_name() -> String {
    use std::hash::{BuildHasher as _, RandomState};
    const HOW: [&str; 16] = [
        "amber", "brave", "calm", "dusty", "eager", "fired", "glazed", "hot", "iron", "jolly",
        "keen", "light", "molten", "neat", "quiet", "red",
    ];
    const WHAT: [&str; 16] = [
        "amphora", "basin", "bowl", "brick", "clay", "cup", "ember", "flask", "hearth", "jar",
        "jug", "oven", "plate", "pot", "tile", "vase",
    ];
    // The only source of chance at hand, and good enough where a taken name makes us try again.
    let chance = RandomState::new().hash_one(std::process::id()) as usize;
    let word = |list: [&'static str; 16], chance: usize| list[chance % list.len()];
    let number = chance >> 8 & 0xfff;
    format!(
        "{}_{}_{number:03x}",
        word(HOW, chance),
        word(WHAT, chance >> 4)
    )
}
