//! RUN.

use kiln_dockerfile::{
    Command, Expander, Heredoc, Mount as RunMount, MountSharing, MountType, Run, RunNetwork,
};
use kiln_graph::{
    Edge, ExecOp, FileAction, FileActionKind, FileInput, FileOp, Mount, MountKind, Network, Op,
    OpKind, Security, Sharing,
};
use kiln_image::LayerPath;

use crate::build::{Stage, Wrong};
use crate::outline::{Captured, OutlineMount};
use crate::sources::{MAIN_CONTEXT, Missing};
use crate::stages::NodeId;

/// The inputs of an operation under construction.
#[derive(Default)]
struct Inputs(Vec<Edge>);

impl Inputs {
    /// The number of an input; `None` is the empty tree.
    fn number(&mut self, edge: Option<Edge>) -> Option<usize> {
        let edge = edge?;
        Some(
            self.0
                .iter()
                .position(|known| *known == edge)
                .unwrap_or_else(|| {
                    self.0.push(edge);
                    self.0.len() - 1
                }),
        )
    }
}

fn bind(
    input: Option<usize>,
    selector: &str,
    dest: &str,
    output: Option<u32>,
    readonly: bool,
) -> Mount {
    Mount {
        input,
        selector: selector.to_owned(),
        dest: dest.to_owned(),
        output,
        readonly,
        kind: MountKind::Bind,
    }
}

/// What a step with a here-document is called: its first line.
fn summary(body: &str) -> String {
    let mut lines = body.trim().lines();
    let first = lines.next().unwrap_or_default();
    format!("{first}{}", if lines.next().is_some() { "..." } else { "" })
}

impl Stage<'_, '_> {
    /// Adds a RUN.
    pub(crate) fn run(
        &mut self,
        run: &Run,
        original: &str,
        sources: &[Option<NodeId>],
    ) -> Result<(), Wrong> {
        if let Some(device) = run.devices.first() {
            return Err(Wrong::new(format!(
                "RUN --device={device}: devices are not supported"
            )));
        }
        let mut inputs = Inputs::default();
        let root = inputs.number(self.state.edge);
        let mut mounts = vec![bind(root, "/", "/", Some(0), false)];
        let mut shown = original.to_owned();
        let args = match &run.command {
            Command::Exec(args) if args.is_empty() => return Err(Wrong::new("RUN has no command")),
            Command::Exec(args) => args.clone(),
            Command::Shell(text) => {
                let text = match &run.heredocs[..] {
                    [] => text.clone(),
                    [heredoc, ..] if Heredoc::parse(text).is_some() => {
                        shown = format!("{original} ({})", summary(&heredoc.body));
                        self.sole_heredoc(heredoc, &mut inputs, &mut mounts)
                    }
                    heredocs => heredocs.iter().fold(text.clone(), |text, heredoc| {
                        format!("{text}\n{}{}", heredoc.body, heredoc.name)
                    }),
                };
                self.with_shell(&text)
            }
        };
        let how = Expander {
            keep_quotes: true,
            keep_unset: true,
            ..Expander::new(self.builder.escape)
        };
        let step = self.step_text(&shown, how);
        let place = self.numbered_place(&step);
        let mut env: Vec<String> = self
            .state
            .env
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        self.mounts(run, sources, &mut inputs, &mut mounts, &mut env)?;
        let options = self.builder.bases.options;
        let hostname = options
            .build_args
            .get("BUILDKIT_SANDBOX_HOSTNAME")
            .unwrap_or(&options.hostname);
        let exec = ExecOp {
            args: args.clone(),
            env,
            cwd: self.state.cwd.clone(),
            user: self.state.config.config.user.clone(),
            hostname: hostname.clone(),
            extra_hosts: options.extra_hosts.clone(),
            network: match run.network {
                RunNetwork::Default => options.network,
                RunNetwork::None => Network::None,
                RunNetwork::Host => Network::Host,
            },
            security: if run.insecure {
                Security::Insecure
            } else {
                Security::Sandbox
            },
            proxy_env: self.builder.proxies.clone(),
            ulimits: options.ulimits.clone(),
            shm_size: options.shm_size,
            mounts,
        };
        let platform = Some(self.state.platform.clone());
        let kind = OpKind::Exec(Box::new(exec));
        self.add(Op {
            kind,
            inputs: inputs.0,
            platform,
            ignore_cache: self.ignore_cache,
            place,
        });
        let line = self.run_history(&args);
        self.history(line, true);
        Ok(())
    }

    /// A RUN with nothing but a here-document: the body is what the shell runs, or, if it says by which program it
    /// wants to be run, a file that the shell starts.
    fn sole_heredoc(
        &mut self,
        heredoc: &Heredoc,
        inputs: &mut Inputs,
        mounts: &mut Vec<Mount>,
    ) -> String {
        const PIPES: &str = "/dev/pipes/";
        let content = heredoc.content();
        if !content.starts_with("#!") {
            return content;
        }
        let edge = self.inline_file(&heredoc.name, 0o755, content);
        mounts.push(bind(inputs.number(Some(edge)), "/", PIPES, None, true));
        format!("{PIPES}{}", heredoc.name)
    }

    /// A tree with one file.
    pub(crate) fn inline_file(&mut self, name: &str, mode: u16, content: String) -> Edge {
        let action = FileAction {
            on: FileInput::Scratch,
            output: Some(0),
            kind: FileActionKind::MkFile {
                path: LayerPath::clean(name).to_string(),
                mode,
                data: content.into_bytes(),
                owner: None,
                timestamp: self.builder.epoch,
            },
        };
        let title = "[internal] preparing inline document".to_owned();
        let op = self.builder.graph.add(Op {
            kind: OpKind::File(FileOp {
                actions: vec![action],
            }),
            inputs: Vec::new(),
            platform: None,
            ignore_cache: false,
            place: self.place(title, format!("inline document {name}")),
        });
        Edge { op, output: 0 }
    }

    /// `RUN |2 A=x B=y /bin/sh -c make # buildkit`.
    fn run_history(&self, args: &[String]) -> String {
        let mut shown: Vec<(&str, &str)> = Vec::new();
        for (name, value) in &self.state.args {
            let value = self
                .state
                .env
                .get(name)
                .or(value.as_deref())
                .unwrap_or_default();
            match shown.iter_mut().find(|(known, _)| known == name) {
                Some((_, old)) => *old = value,
                None => shown.push((name, value)),
            }
        }
        let mut line = "RUN ".to_owned();
        if !shown.is_empty() {
            line.extend(["|", &shown.len().to_string(), " "]);
            for (name, value) in shown {
                line.extend([name, "=", value, " "]);
            }
        }
        line + &args.join(" ") + " # buildkit"
    }

    fn mounts(
        &mut self,
        run: &Run,
        sources: &[Option<NodeId>],
        inputs: &mut Inputs,
        mounts: &mut Vec<Mount>,
        env: &mut Vec<String>,
    ) -> Result<(), Wrong> {
        let parsed = run.mounts(|text| self.word(text).map_err(|wrong| wrong.message));
        let parsed = parsed.map_err(|wrong| Wrong {
            message: wrong.message,
            hint: wrong.hint,
            about: wrong.about,
        })?;
        let mut agents = 0;
        for (mount, source) in parsed.iter().zip(sources) {
            let mounted = match mount.kind {
                MountType::Secret => {
                    let mut secret = secret(mount, &self.state.cwd)?;
                    secret.dest = below_root(secret.dest, &mount.target)?;
                    if let MountKind::Secret { id, .. } = &secret.kind {
                        self.capture(id, mount.required, Captured::secret);
                    }
                    secret
                }
                MountType::Ssh => {
                    let mut agent = ssh(mount, agents, &self.state.cwd);
                    agent.dest = below_root(agent.dest, &mount.target)?;
                    if let MountKind::Ssh { id, .. } = &agent.kind {
                        self.capture(id, mount.required, Captured::agent);
                    }
                    if agents == 0
                        && !env
                            .iter()
                            .any(|variable| variable.starts_with("SSH_AUTH_SOCK="))
                    {
                        env.push(format!("SSH_AUTH_SOCK={}", agent.dest));
                    }
                    agents += 1;
                    agent
                }
                MountType::Tmpfs => Mount {
                    kind: MountKind::Tmpfs { size: mount.size },
                    ..bind(None, "/", &self.target(mount)?, None, mount.readonly)
                },
                MountType::Bind | MountType::Cache => {
                    let dest = self.target(mount)?;
                    let edge = self.mount_source(mount, *source, &dest)?;
                    let selector = LayerPath::clean(&mount.source).to_string();
                    let tree = bind(inputs.number(edge), &selector, &dest, None, mount.readonly);
                    if mount.kind == MountType::Bind {
                        tree
                    } else {
                        Mount {
                            kind: self.cache(mount),
                            ..tree
                        }
                    }
                }
            };
            // As under docker, of several trees at one target only the last is there.
            if is_tree(&mounted) {
                mounts.retain(|other| !is_tree(other) || other.dest != mounted.dest);
            }
            mounts.push(mounted);
        }
        Ok(())
    }

    fn capture(&mut self, id: &str, required: bool, add: fn(&mut Captured, &OutlineMount)) {
        let mount = OutlineMount {
            name: id.to_owned(),
            required,
            lines: self.lines,
        };
        add(&mut self.builder.captured[self.id], &mount);
    }

    fn target(&self, mount: &RunMount) -> Result<String, Wrong> {
        below_root(absolute(&self.state.cwd, &mount.target), &mount.target)
    }

    /// The tree of a mount.
    fn mount_source(
        &mut self,
        mount: &RunMount,
        source: Option<NodeId>,
        dest: &str,
    ) -> Result<Option<Edge>, Wrong> {
        match (source, mount.kind) {
            (Some(node), _) => match self.builder.built(node) {
                Some(state) => Ok(state.edge),
                None => Err(Wrong::new(format!(
                    "cannot mount from stage {:?} to {dest:?}, stage needs to be defined before current command",
                    mount.from.as_deref().unwrap_or_default()
                ))),
            },
            (None, MountType::Cache) => Ok(None),
            (None, _) => self.main_context(),
        }
    }

    /// The tree of the main context.
    pub(crate) fn main_context(&mut self) -> Result<Option<Edge>, Wrong> {
        let base = self
            .builder
            .bases
            .main_context()
            .map_err(|missing| match missing {
                Missing::Wrong(message) => Wrong::new(message),
                Missing::Need(need) => Wrong::new(format!("not known yet: {need:?}")),
            })?;
        let place = kiln_graph::Place {
            title: base.title.clone(),
            step: base.title.clone(),
            stage: MAIN_CONTEXT.to_owned(),
            lines: None,
        };
        Ok(base.add(&mut self.builder.graph, place))
    }

    fn cache(&self, mount: &RunMount) -> MountKind {
        let name = if mount.id.is_empty() {
            clean(&mount.target)
        } else {
            mount.id.clone()
        };
        let namespace = self
            .builder
            .bases
            .options
            .build_args
            .get("BUILDKIT_CACHE_MOUNT_NS");
        MountKind::Cache {
            id: match namespace {
                Some(namespace) if !namespace.is_empty() => format!("{namespace}/{name}"),
                _ => name,
            },
            sharing: match mount.sharing {
                MountSharing::Shared => Sharing::Shared,
                MountSharing::Private => Sharing::Private,
                MountSharing::Locked => Sharing::Locked,
            },
            mode: mount.mode,
            uid: mount.uid,
            gid: mount.gid,
        }
    }
}

/// A path as seen from a folder.
fn absolute(cwd: &str, path: &str) -> String {
    let path = if path.starts_with('/') {
        path.to_owned()
    } else {
        format!("{cwd}/{path}")
    };
    LayerPath::clean(path).to_string()
}

/// A path without dots and double slashes, relative if it was.
fn clean(path: &str) -> String {
    let cleaned = LayerPath::clean(path).to_string();
    match cleaned.strip_prefix('/') {
        Some("") if !path.starts_with('/') => ".".to_owned(),
        Some(relative) if !path.starts_with('/') => relative.to_owned(),
        _ => cleaned,
    }
}

/// Whether a mount is neither a secret nor an agent's socket.
fn is_tree(mount: &Mount) -> bool {
    use MountKind::{Bind, Cache, Tmpfs};
    matches!(mount.kind, Bind | Cache { .. } | Tmpfs { .. })
}

/// The path of a mount, `given` as the option says it.
fn below_root(path: String, given: &str) -> Result<String, Wrong> {
    if path == "/" {
        return Err(Wrong::new(format!("invalid mount target {given:?}"))
            .at("--mount")
            .hint("a target is a path below the root, as in target=/data"));
    }
    Ok(path)
}

fn base_name(path: &str) -> &str {
    path.trim_end_matches('/')
        .rsplit('/')
        .next()
        .unwrap_or_default()
}

fn secret(mount: &RunMount, cwd: &str) -> Result<Mount, Wrong> {
    let named = [&mount.id, &mount.source]
        .into_iter()
        .find(|name| !name.is_empty());
    let id = match (named, mount.env.as_deref()) {
        (Some(name), _) => name.clone(),
        (None, Some(variable)) if mount.target.is_empty() => variable.to_owned(),
        (None, _) => base_name(&mount.target).to_owned(),
    };
    if id.is_empty() {
        return Err(Wrong::new(
            "invalid secret mount. one of source, target required",
        ));
    }
    if let Some(name) = mount.env.as_deref()
        && (name.is_empty() || name.contains(['=', '\0']))
    {
        return Err(Wrong::new(format!(
            "invalid secret mount: {name:?} cannot be the name of a variable"
        ))
        .at("--mount")
        .hint("env is the name of the variable that gets the secret, as in env=TOKEN"));
    }
    let file = mount.env.is_none() || !mount.target.is_empty();
    let dest = match (file, mount.target.as_str()) {
        (false, _) => String::new(),
        (true, "") => format!("/run/secrets/{}", base_name(&id)),
        (true, target) => absolute(cwd, target),
    };
    let kind = MountKind::Secret {
        id,
        env: mount.env.clone(),
        file,
        mode: mount.mode,
        uid: mount.uid,
        gid: mount.gid,
        optional: !mount.required,
    };
    Ok(Mount {
        kind,
        ..bind(None, "", &dest, None, true)
    })
}

fn ssh(mount: &RunMount, number: usize, cwd: &str) -> Mount {
    let dest = if mount.target.is_empty() {
        format!("/run/buildkit/ssh_agent.{number}")
    } else {
        absolute(cwd, &mount.target)
    };
    let kind = MountKind::Ssh {
        id: if mount.id.is_empty() {
            "default".to_owned()
        } else {
            mount.id.clone()
        },
        mode: mount.mode,
        uid: mount.uid,
        gid: mount.gid,
        optional: !mount.required,
    };
    Mount {
        kind,
        ..bind(None, "", &dest, None, true)
    }
}
