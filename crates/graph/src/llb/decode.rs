//! From LLB to the graph.

use std::collections::HashMap;

use kiln_image::Platform;
use prost::Message as _;

use super::{
    LlbError, NO_SOURCE, NONE, SECRET_MODE, SSH_MODE, STAGE, STEP, TITLE, digest, encode, pb,
};
use crate::{
    CopyAction, Edge, ExecOp, FileAction, FileActionKind, FileInput, FileOp, Graph, Mount,
    MountKind, Network, Op, OpId, OpKind, Owner, Place, Security, Sharing, SourceOp, UserRef,
};

/// Attributes of sources that say how to get them, not what they are.
const HINTS: [&str; 6] = [
    "image.resolvemode",
    "image.recordtype",
    "local.session",
    "local.sharedkeyhint",
    "local.unique",
    "oci.session",
];

/// The graph of a definition, and what its target takes.
pub fn from_definition(definition: &pb::Definition) -> Result<(Graph, Edge), LlbError> {
    let (end, ops) = definition.def.split_last().ok_or(LlbError::Empty)?;
    let mut graph = Graph::default();
    let mut known: HashMap<String, OpId> = HashMap::new();
    for (number, bytes) in ops.iter().enumerate() {
        let at = At { op: number };
        let message = at.read(bytes)?;
        let name = digest(bytes);
        let mut op = at.operation(message, &known, &graph)?;
        if let Some(metadata) = definition.metadata.get(&name) {
            op.ignore_cache = metadata.ignore_cache;
            op.place = place(metadata);
        }
        op.place.lines = definition
            .source
            .as_ref()
            .and_then(|source| source.locations.get(&name))
            .and_then(lines);
        known.insert(name, graph.add(op));
    }
    let at = At { op: ops.len() };
    let end = at.read(end)?;
    let [target] = end.inputs.as_slice() else {
        return Err(LlbError::NoTarget);
    };
    if end.kind.is_some() {
        return Err(LlbError::NoTarget);
    }
    let target = at.edge(target, &known, &graph)?;
    Ok((graph, target))
}

fn place(metadata: &pb::OpMetadata) -> Place {
    let text = |name: &str| metadata.description.get(name).cloned().unwrap_or_default();
    Place {
        title: text(TITLE),
        step: text(STEP),
        stage: text(STAGE),
        lines: None,
    }
}

/// The lines from the first to the last of all ranges.
fn lines(locations: &pb::Locations) -> Option<(u32, u32)> {
    let ranges = locations.locations.iter().flat_map(|one| &one.ranges);
    let line = |at: Option<pb::Position>| at.map(|at| at.line.cast_unsigned());
    ranges
        .filter_map(|range| Some((line(range.start)?, line(range.end)?)))
        .reduce(|(first, last), (start, end)| (first.min(start), last.max(end)))
}

/// The operation that is read, for messages.
#[derive(Clone, Copy)]
struct At {
    op: usize,
}

impl At {
    fn read(self, bytes: &[u8]) -> Result<pb::Op, LlbError> {
        let message = pb::Op::decode(bytes).map_err(|error| LlbError::Op { op: self.op, error })?;
        // What is not declared is dropped by the decoder; it must not be dropped from the build.
        if message.encoded_len() != bytes.len() {
            return Err(self.unsupported("fields that are not known"));
        }
        Ok(message)
    }

    fn unsupported(self, what: impl Into<String>) -> LlbError {
        LlbError::Unsupported {
            op: self.op,
            what: what.into(),
        }
    }

    fn value(self, what: &'static str, value: &impl ToString) -> LlbError {
        LlbError::Value {
            op: self.op,
            what,
            value: value.to_string(),
        }
    }

    fn incomplete(self, what: &'static str) -> LlbError {
        LlbError::Incomplete { op: self.op, what }
    }

    fn refuse(self, used: bool, what: &str) -> Result<(), LlbError> {
        if used {
            return Err(self.unsupported(what));
        }
        Ok(())
    }

    fn edge(
        self,
        input: &pb::Input,
        known: &HashMap<String, OpId>,
        graph: &Graph,
    ) -> Result<Edge, LlbError> {
        let op = *known.get(&input.digest).ok_or_else(|| LlbError::Missing {
            op: self.op,
            digest: input.digest.clone(),
        })?;
        u32::try_from(input.index)
            .ok()
            .filter(|output| has_output(graph.op(op), *output))
            .map(|output| Edge { op, output })
            .ok_or_else(|| LlbError::Output {
                op: self.op,
                digest: input.digest.clone(),
                output: input.index,
            })
    }

    fn operation(
        self,
        message: pb::Op,
        known: &HashMap<String, OpId>,
        graph: &Graph,
    ) -> Result<Op, LlbError> {
        let filters = message
            .constraints
            .is_some_and(|limits| !limits.filter.is_empty());
        self.refuse(filters, "a choice of workers")?;
        let inputs = message
            .inputs
            .iter()
            .map(|input| self.edge(input, known, graph))
            .collect::<Result<Vec<_>, _>>()?;
        let count = inputs.len();
        let kind = match message.kind.ok_or_else(|| self.incomplete("known kind"))? {
            pb::Kind::Source(op) => {
                self.refuse(count > 0, "a source with inputs")?;
                OpKind::Source(self.source(op)?)
            }
            pb::Kind::Exec(op) => OpKind::Exec(Box::new(self.exec(*op, count)?)),
            pb::Kind::File(op) => OpKind::File(self.file(op, count)?),
            pb::Kind::Merge(op) => {
                let given = op.inputs.iter().map(|input| input.input);
                self.refuse(
                    !given.eq(0..count as i64),
                    "a merge in another order than its inputs",
                )?;
                OpKind::Merge
            }
            pb::Kind::Diff(op) => {
                let side = |input: Option<pb::InputNumber>| {
                    self.input(input.map_or(NONE, |input| input.input), count)
                };
                OpKind::Diff {
                    lower: side(op.lower)?,
                    upper: side(op.upper)?,
                }
            }
            pb::Kind::Build(_) => return Err(self.unsupported("a build within the build")),
        };
        Ok(Op {
            kind,
            inputs,
            platform: message.platform.map(|it| self.platform(it)).transpose()?,
            ignore_cache: false,
            place: Place::default(),
        })
    }

    fn platform(self, platform: pb::Platform) -> Result<Platform, LlbError> {
        let versioned = !platform.os_version.is_empty() || !platform.os_features.is_empty();
        self.refuse(versioned, "a version of an operating system")?;
        Ok(Platform {
            os: platform.os,
            architecture: platform.architecture,
            variant: platform.variant,
        })
    }

    fn input(self, number: i64, inputs: usize) -> Result<Option<usize>, LlbError> {
        match usize::try_from(number) {
            _ if number == NONE => Ok(None),
            Ok(at) if at < inputs => Ok(Some(at)),
            _ => Err(self.value("input", &number)),
        }
    }

    fn output(self, number: i64) -> Result<Option<u32>, LlbError> {
        if number == NONE {
            return Ok(None);
        }
        u32::try_from(number)
            .map(Some)
            .map_err(|_| self.value("output", &number))
    }

    fn mode(self, mode: impl TryInto<u16> + Copy + ToString) -> Result<u16, LlbError> {
        mode.try_into().map_err(|_| self.value("mode", &mode))
    }

    fn source(self, op: pb::SourceOp) -> Result<SourceOp, LlbError> {
        let mut attrs = op.attrs;
        attrs.retain(|name, _| !HINTS.contains(&name.as_str()));
        let (scheme, rest) = op
            .identifier
            .split_once("://")
            .ok_or_else(|| self.value("identifier", &op.identifier))?;
        let rest = rest.to_owned();
        let source = match scheme {
            "docker-image" => SourceOp::Image { reference: rest },
            "local" => SourceOp::Local {
                name: rest,
                exclude: match attrs.remove("local.excludepatterns") {
                    None => Vec::new(),
                    Some(list) => serde_json::from_str(&list)
                        .map_err(|_| self.value("local.excludepatterns", &list))?,
                },
            },
            "git" => {
                let (path, fragment) = match rest.split_once('#') {
                    Some((path, _)) => (path, &rest[path.len()..]),
                    None => (rest.as_str(), ""),
                };
                let remote = attrs
                    .remove("git.fullurl")
                    .unwrap_or_else(|| format!("https://{path}"));
                let mut boolean = |name: &'static str| match attrs.remove(name) {
                    None => Ok(false),
                    Some(value) => value.parse().map_err(|_| self.value(name, &value)),
                };
                SourceOp::Git {
                    url: remote + fragment,
                    keep_git_dir: boolean("git.keepgitdir")?,
                    skip_submodules: boolean("git.skipsubmodules")?,
                    checkout_times: match attrs.remove("git.mtime").as_deref() {
                        None | Some("checkout") => true,
                        Some("commit") => false,
                        Some(other) => return Err(self.value("git.mtime", &other)),
                    },
                    checksum: attrs.remove("git.checksum"),
                }
            }
            "http" | "https" => {
                let mut number = |name: &'static str| match attrs.remove(name) {
                    None => Ok(None),
                    Some(text) => text
                        .parse::<u32>()
                        .map(Some)
                        .map_err(|_| self.value(name, &text)),
                };
                let owner = match (number("http.uid")?, number("http.gid")?) {
                    (None, None) => None,
                    (uid, gid) => Some((uid.unwrap_or(0), gid.unwrap_or(0))),
                };
                SourceOp::Http {
                    owner,
                    checksum: attrs.remove("http.checksum"),
                    filename: attrs.remove("http.filename").unwrap_or_default(),
                    mode: match attrs.remove("http.perm") {
                        None => None,
                        Some(mode) => Some(
                            u16::from_str_radix(&mode, 8)
                                .map_err(|_| self.value("http.perm", &mode))?,
                        ),
                    },
                    url: op.identifier,
                }
            }
            "oci-layout" => SourceOp::OciLayout {
                store: attrs
                    .remove("oci.store")
                    .ok_or_else(|| self.incomplete("oci.store"))?,
                reference: rest,
            },
            _ => return Err(self.unsupported(format!("the source {scheme}://"))),
        };
        match attrs.into_keys().next() {
            Some(name) => Err(self.unsupported(format!("the attribute {name}"))),
            None => Ok(source),
        }
    }

    fn exec(self, op: pb::ExecOp, inputs: usize) -> Result<ExecOp, LlbError> {
        let meta = op.meta.ok_or_else(|| self.incomplete("process"))?;
        self.refuse(!op.cdi_devices.is_empty(), "devices")?;
        self.refuse(
            !meta.cgroup_parent.is_empty(),
            "a parent of the control group",
        )?;
        self.refuse(!meta.valid_exit_codes.is_empty(), "a choice of exit codes")?;
        let mut given = op.mounts;
        if meta.shm_size > 0 && given.pop() != Some(encode::shm(meta.shm_size)) {
            return Err(self.value("size of /dev/shm", &meta.shm_size));
        }
        let mut mounts = given
            .into_iter()
            .map(|mount| self.mount(mount, inputs))
            .collect::<Result<Vec<_>, _>>()?;
        for variable in op.secretenv {
            self.variable(variable, &mut mounts, inputs)?;
        }
        let rooted = mounts.iter().position(|mount| mount.dest == "/") == Some(0)
            && mounts[1..].iter().all(|mount| mount.dest != "/");
        if !rooted {
            return Err(self.unsupported("other than one mount at /, the first"));
        }
        Ok(ExecOp {
            args: meta.args,
            env: meta.env,
            cwd: meta.cwd,
            user: meta.user,
            hostname: meta.hostname,
            extra_hosts: meta
                .extra_hosts
                .into_iter()
                .map(|line| (line.host, line.ip))
                .collect(),
            network: match pb::NetMode::try_from(op.network) {
                Ok(pb::NetMode::Unset) => Network::Default,
                Ok(pb::NetMode::Host) => Network::Host,
                Ok(pb::NetMode::None) => Network::None,
                Err(_) => return Err(self.value("network", &op.network)),
            },
            security: match pb::SecurityMode::try_from(op.security) {
                Ok(pb::SecurityMode::Sandbox) => Security::Sandbox,
                Ok(pb::SecurityMode::Insecure) => Security::Insecure,
                Err(_) => return Err(self.value("security", &op.security)),
            },
            proxy_env: if meta.proxies.is_empty() {
                meta.proxy_env.map(proxies).unwrap_or_default()
            } else {
                meta.proxies
            },
            ulimits: meta
                .ulimit
                .into_iter()
                .map(|limit| {
                    let (soft, hard) = (limit.soft.cast_unsigned(), limit.hard.cast_unsigned());
                    (limit.name, soft, hard)
                })
                .collect(),
            shm_size: meta.shm_size,
            mounts,
        })
    }

    /// Puts a variable with a secret to the mount that it came from, or makes a mount of it.
    fn variable(
        self,
        variable: pb::SecretEnv,
        mounts: &mut Vec<Mount>,
        inputs: usize,
    ) -> Result<(), LlbError> {
        let position = variable.position.map_or(mounts.len(), |at| at as usize);
        let wrong = || self.value("place of a secret", &position);
        let mut mount = match (variable.position, variable.mount) {
            (None, None) => secret(&variable.id, variable.optional),
            (None, Some(_)) => return Err(wrong()),
            (Some(_), Some(mount)) => self.mount(mount, inputs)?,
            (Some(_), None) => {
                let mount = mounts.get_mut(position).ok_or_else(wrong)?;
                let MountKind::Secret {
                    env: env @ None, ..
                } = &mut mount.kind
                else {
                    return Err(wrong());
                };
                *env = Some(variable.name);
                return Ok(());
            }
        };
        let MountKind::Secret { env, file, .. } = &mut mount.kind else {
            return Err(wrong());
        };
        *env = (!variable.name.is_empty()).then_some(variable.name);
        *file = false;
        if position > mounts.len() {
            return Err(wrong());
        }
        mounts.insert(position, mount);
        Ok(())
    }

    fn mount(self, mount: pb::Mount, inputs: usize) -> Result<Mount, LlbError> {
        let file = |options: Option<pb::FileOpt>, default: u16| {
            let options = options.unwrap_or_else(|| pb::FileOpt {
                mode: default.into(),
                ..pb::FileOpt::default()
            });
            let mode = self.mode(options.mode)?;
            let mode = (options.mode_given || mode != default).then_some(mode);
            Ok((options.id, mode, options.uid, options.gid, options.optional))
        };
        let kind = match pb::MountType::try_from(mount.mount_type) {
            Ok(pb::MountType::Bind) => MountKind::Bind,
            Ok(pb::MountType::Cache) => {
                let options = mount.cache_opt.unwrap_or_default();
                MountKind::Cache {
                    sharing: match pb::CacheSharingOpt::try_from(options.sharing) {
                        Ok(pb::CacheSharingOpt::Shared) => Sharing::Shared,
                        Ok(pb::CacheSharingOpt::Private) => Sharing::Private,
                        Ok(pb::CacheSharingOpt::Locked) => Sharing::Locked,
                        Err(_) => return Err(self.value("sharing", &options.sharing)),
                    },
                    id: options.id,
                    mode: options.mode.map(|mode| self.mode(mode)).transpose()?,
                    uid: options.uid,
                    gid: options.gid,
                }
            }
            Ok(pb::MountType::Tmpfs) => MountKind::Tmpfs {
                size: mount.tmpfs_opt.unwrap_or_default().size.cast_unsigned(),
            },
            Ok(pb::MountType::Secret) => {
                let (id, mode, uid, gid, optional) = file(mount.secret_opt, SECRET_MODE)?;
                MountKind::Secret {
                    id,
                    env: None,
                    file: true,
                    mode,
                    uid,
                    gid,
                    optional,
                }
            }
            Ok(pb::MountType::Ssh) => {
                let (id, mode, uid, gid, optional) = file(mount.ssh_opt, SSH_MODE)?;
                MountKind::Ssh {
                    id,
                    mode,
                    uid,
                    gid,
                    optional,
                }
            }
            Err(_) => return Err(self.value("kind of mount", &mount.mount_type)),
        };
        Ok(Mount {
            input: self.input(mount.input, inputs)?,
            selector: mount.selector,
            dest: mount.dest,
            output: self.output(mount.output)?,
            readonly: mount.readonly,
            kind,
        })
    }

    fn file(self, op: pb::FileOp, inputs: usize) -> Result<FileOp, LlbError> {
        let actions = op.actions.into_iter().enumerate();
        let actions = actions.map(|(number, action)| {
            let trees = Trees {
                at: self,
                inputs,
                actions: number,
            };
            trees.action(action)
        });
        Ok(FileOp {
            actions: actions.collect::<Result<_, _>>()?,
        })
    }
}

/// The trees that a file action can name.
#[derive(Clone, Copy)]
struct Trees {
    at: At,
    inputs: usize,
    actions: usize,
}

impl Trees {
    fn tree(self, number: i64) -> Result<FileInput, LlbError> {
        match usize::try_from(number) {
            _ if number == NONE => Ok(FileInput::Scratch),
            Ok(at) if at < self.inputs => Ok(FileInput::Input(at)),
            Ok(at) if at - self.inputs < self.actions => Ok(FileInput::Action(at - self.inputs)),
            _ => Err(self.at.value("tree", &number)),
        }
    }

    fn time(self, nanoseconds: i64, seconds: Option<i64>) -> Result<Option<i64>, LlbError> {
        match nanoseconds {
            NONE => Ok(seconds),
            _ if nanoseconds % 1_000_000_000 == 0 => Ok(Some(nanoseconds / 1_000_000_000)),
            _ => Err(self.at.unsupported("a time in parts of a second")),
        }
    }

    fn owner(self, owner: Option<pb::ChownOpt>) -> Result<Option<Owner>, LlbError> {
        let one = |user: Option<pb::UserOpt>| {
            let Some(user) = user else { return Ok(None) };
            Ok(Some(
                match user.user.ok_or_else(|| self.at.incomplete("user"))? {
                    pb::User::ById(id) => UserRef::Id(id),
                    pb::User::ByName(user) => UserRef::Name {
                        input: self.tree(user.input)?,
                        name: user.name,
                    },
                },
            ))
        };
        let Some(owner) = owner else { return Ok(None) };
        Ok(Some(Owner {
            user: one(owner.user)?,
            group: one(owner.group)?,
        }))
    }

    fn action(self, action: pb::FileAction) -> Result<FileAction, LlbError> {
        let kind = action
            .action
            .ok_or_else(|| self.at.incomplete("known file action"))?;
        let copies = matches!(kind, pb::Action::Copy(_));
        if !copies && action.secondary_input != NONE {
            return Err(self.at.value("second tree", &action.secondary_input));
        }
        let kind = match kind {
            pb::Action::Copy(copy) => {
                FileActionKind::Copy(Box::new(self.copy(copy, action.secondary_input)?))
            }
            pb::Action::MkFile(file) => FileActionKind::MkFile {
                path: file.path,
                mode: self.at.mode(file.mode)?,
                data: file.data,
                owner: self.owner(file.owner)?,
                timestamp: self.time(file.timestamp, file.seconds)?,
            },
            pb::Action::MkDir(folder) => FileActionKind::MkDir {
                path: folder.path,
                mode: self.at.mode(folder.mode)?,
                make_parents: folder.make_parents,
                owner: self.owner(folder.owner)?,
                timestamp: self.time(folder.timestamp, folder.seconds)?,
            },
            pb::Action::Rm(rm) => FileActionKind::Rm {
                path: rm.path,
                allow_not_found: rm.allow_not_found,
                allow_wildcard: rm.allow_wildcard,
            },
        };
        Ok(FileAction {
            on: self.tree(action.input)?,
            output: self.at.output(action.output)?,
            kind,
        })
    }

    fn copy(self, copy: pb::FileActionCopy, from: i64) -> Result<CopyAction, LlbError> {
        let replaces = copy.always_replace_existing_dest_paths;
        self.at
            .refuse(replaces, "a copy that replaces what is of another type")?;
        let mode = match (copy.mode_str, copy.mode) {
            (Some(mode), _) => Some(mode),
            (None, -1) => None,
            (None, mode) => Some(format!("{:o}", self.at.mode(mode)?)),
        };
        Ok(CopyAction {
            from: match from {
                NO_SOURCE => None,
                number => Some(self.tree(number)?),
            },
            src: copy.src,
            dest: copy.dest,
            owner: self.owner(copy.owner)?,
            mode,
            follow_symlinks: copy.follow_symlink,
            dir_copy_contents: copy.dir_copy_contents,
            attempt_unpack: copy.attempt_unpack_docker_compatibility,
            create_dest_path: copy.create_dest_path,
            allow_wildcard: copy.allow_wildcard,
            allow_empty_wildcard: copy.allow_empty_wildcard,
            include_patterns: copy.include_patterns,
            exclude_patterns: copy.exclude_patterns,
            parents_pivot: copy.parents_pivot,
            timestamp: self.time(copy.timestamp, copy.seconds)?,
        })
    }
}

/// Whether an operation gives that output.
fn has_output(op: &Op, output: u32) -> bool {
    match &op.kind {
        OpKind::Exec(exec) => exec.mounts.iter().any(|mount| mount.output == Some(output)),
        OpKind::File(file) => file
            .actions
            .iter()
            .any(|action| action.output == Some(output)),
        OpKind::Source(_) | OpKind::Merge | OpKind::Diff { .. } => output == 0,
    }
}

/// A secret that is only a variable.
fn secret(id: &str, optional: bool) -> Mount {
    Mount {
        input: None,
        selector: String::new(),
        dest: String::new(),
        output: None,
        readonly: true,
        kind: MountKind::Secret {
            id: id.to_owned(),
            env: None,
            file: false,
            mode: None,
            uid: None,
            gid: None,
            optional,
        },
    }
}

/// The variables, in both cases, as the frontend gives them.
fn proxies(given: pb::ProxyEnv) -> Vec<String> {
    [
        ("HTTP_PROXY", given.http_proxy),
        ("HTTPS_PROXY", given.https_proxy),
        ("FTP_PROXY", given.ftp_proxy),
        ("NO_PROXY", given.no_proxy),
        ("ALL_PROXY", given.all_proxy),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .flat_map(|(name, value)| {
        [
            format!("{name}={value}"),
            format!("{}={value}", name.to_lowercase()),
        ]
    })
    .collect()
}
