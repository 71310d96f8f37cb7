//! A container from an image.

use std::os::fd::BorrowedFd;

use kiln_graph::Network;
use kiln_image::{Digest, ImageConfig};
use kiln_worker::{
    ExecJob, ExecMount, Exit, MountSource, ProcessSpec, Request, Response, Trust, hosts_file,
};

use crate::{BuildError, Engine};

/// What is run.
#[derive(Debug, Clone, Default)]
pub struct RunRequest {
    /// The image's manifest.
    pub image: Option<Digest>,
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
    /// Network.
    pub network: Network,
    /// Host name.
    pub hostname: String,
    /// The text of `/etc/resolv.conf`.
    pub resolv_conf: String,
    /// Extra lines of `/etc/hosts`: name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// The descriptors are one terminal.
    pub terminal: bool,
    /// Certificates of the host that the container trusts.
    pub trust: Option<Trust>,
}

/// How a container ended.
#[derive(Debug, Clone, Copy)]
pub struct Ran {
    /// How its process ended.
    pub exit: Exit,
}

impl Ran {
    /// The exit code as docker gives it: 128 and the signal for a process that was killed.
    pub fn code(self) -> i32 {
        match self.exit {
            Exit::Code(code) => code,
            Exit::Signal(signal) => 128 + signal,
        }
    }
}

impl Engine {
    /// Runs a container until it ends and removes it. `stdio` are standard input, output and error.
    ///
    /// # Errors
    /// When the image is not there or the process cannot be started.
    pub fn run(&self, request: &RunRequest, stdio: [BorrowedFd<'_>; 3]) -> Result<Ran, BuildError> {
        let manifest = request
            .image
            .ok_or_else(|| BuildError::new("no image given"))?;
        let missing = || BuildError::new(format!("no such image: {manifest}"));
        let info = self.store.image(manifest)?.ok_or_else(missing)?.info;
        let (_, config) = self.store.json(info.config)?.ok_or_else(missing)?;
        let config = ImageConfig::from_bytes(&config)
            .map_err(|error| {
                BuildError::new(format!("the image's config cannot be read: {error}"))
            })?
            .config;
        let lease = self.store.lease()?;
        self.store.protect(&lease, &info.layers)?;
        let into = self.store.begin_layer(&lease)?;

        let mut args = match &request.entrypoint {
            Some(entrypoint) if entrypoint.is_empty() => Vec::new(),
            Some(entrypoint) => vec![entrypoint.clone()],
            None => config.entrypoint.unwrap_or_default(),
        };
        if !request.args.is_empty() {
            args.extend(request.args.iter().cloned());
        } else if request.entrypoint.is_none() {
            args.extend(config.cmd.unwrap_or_default());
        }
        if args.is_empty() {
            return Err(BuildError::new("no command specified").with_hint(
                "the image has neither ENTRYPOINT nor CMD: give a command after its name",
            ));
        }
        let mut env = config.env;
        for variable in &request.env {
            let name = variable.split('=').next().unwrap_or_default();
            env.retain(|known| known.split('=').next() != Some(name));
            env.push(variable.clone());
        }
        let or_image = |given: &Option<String>, image: String| given.clone().unwrap_or(image);
        let cwd = or_image(&request.workdir, config.working_dir);
        let process = ProcessSpec {
            args,
            env,
            cwd: if cwd.is_empty() { "/".to_owned() } else { cwd },
            user: or_image(&request.user, config.user),
            hostname: request.hostname.clone(),
            hosts: hosts_file(&request.hostname, &request.extra_hosts),
            resolv_conf: request.resolv_conf.clone(),
            network: request.network,
            terminal: request.terminal,
            ..ProcessSpec::default()
        };
        let mounts = request
            .volumes
            .iter()
            .map(|(from, to, readonly)| ExecMount {
                dest: to.clone(),
                readonly: *readonly,
                source: MountSource::Host(from.clone()),
            })
            .collect();
        let job = ExecJob {
            process,
            root: info.layers,
            into,
            mounts,
            trust: request.trust.clone(),
        };
        match self.worker.call(&Request::Run(Box::new(job)), &stdio) {
            Ok(Response::Exited { exit, .. }) => Ok(Ran { exit }),
            Ok(_) => Err(BuildError::new("the worker's answer does not fit the job")),
            Err(error) => Err(BuildError::from_worker(&error)),
        }
    }
}
