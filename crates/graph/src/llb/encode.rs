//! From the graph to LLB.

use std::collections::{BTreeMap, HashMap};

use kiln_image::Platform;
use prost::Message as _;

use super::{NO_SOURCE, NONE, SECRET_MODE, SHM, SSH_MODE, STAGE, STEP, TITLE, digest, pb};
use crate::{
    CopyAction, Edge, ExecOp, FileAction, FileActionKind, FileInput, FileOp, Graph, Mount,
    MountKind, Network, Op, OpKind, Owner, Place, Security, Sharing, SourceOp, UserRef,
};

/// The whole graph, whether the target needs it or not, with the vertex that stands for `target` behind it.
///
/// # Panics
/// When an edge names an operation that the graph does not have.
pub fn to_definition(graph: &Graph, target: Edge) -> pb::Definition {
    let mut definition = pb::Definition::default();
    let mut locations = BTreeMap::new();
    let mut digests: Vec<String> = Vec::with_capacity(graph.len());
    let mut variants: HashMap<Vec<u8>, u32> = HashMap::new();
    for (_, op) in graph.ops() {
        let mut message = operation(op, &digests);
        let same = variants.entry(message.encode_to_vec()).or_default();
        message.variant = *same;
        *same += 1;
        let bytes = message.encode_to_vec();
        let name = digest(&bytes);
        if let Some(lines) = op.place.lines {
            locations.insert(name.clone(), location(lines));
        }
        let metadata = pb::OpMetadata {
            ignore_cache: op.ignore_cache,
            description: description(&op.place),
        };
        definition.metadata.insert(name.clone(), metadata);
        definition.def.push(bytes);
        digests.push(name);
    }
    let end = pb::Op {
        inputs: vec![input(target, &digests)],
        ..pb::Op::default()
    };
    definition.def.push(end.encode_to_vec());
    if !locations.is_empty() {
        let file = pb::SourceInfo {
            filename: "Dockerfile".to_owned(),
            language: "Dockerfile".to_owned(),
            ..pb::SourceInfo::default()
        };
        definition.source = Some(pb::Source {
            locations,
            infos: vec![file],
        });
    }
    definition
}

fn location((first, last): (u32, u32)) -> pb::Locations {
    let position = |line: u32| {
        Some(pb::Position {
            line: line.cast_signed(),
            character: 0,
        })
    };
    let range = pb::Range {
        start: position(first),
        end: position(last),
    };
    pb::Locations {
        locations: vec![pb::Location {
            source_index: 0,
            ranges: vec![range],
        }],
    }
}

fn description(place: &Place) -> BTreeMap<String, String> {
    [
        (TITLE, &place.title),
        (STEP, &place.step),
        (STAGE, &place.stage),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| (name.to_owned(), value.clone()))
    .collect()
}

fn input(edge: Edge, digests: &[String]) -> pb::Input {
    pb::Input {
        digest: digests[edge.op.0].clone(),
        index: edge.output.into(),
    }
}

fn operation(op: &Op, digests: &[String]) -> pb::Op {
    let kind = match &op.kind {
        OpKind::Source(op) => pb::Kind::Source(source(op)),
        OpKind::Exec(op) => pb::Kind::Exec(Box::new(exec(op))),
        OpKind::File(file) => pb::Kind::File(self::file(file, op.inputs.len())),
        OpKind::Merge => pb::Kind::Merge(pb::MergeOp {
            inputs: (0..op.inputs.len())
                .map(|number| by_number(Some(number)))
                .collect(),
        }),
        OpKind::Diff { lower, upper } => pb::Kind::Diff(pb::DiffOp {
            lower: Some(by_number(*lower)),
            upper: Some(by_number(*upper)),
        }),
    };
    pb::Op {
        inputs: op.inputs.iter().map(|edge| input(*edge, digests)).collect(),
        kind: Some(kind),
        platform: op.platform.as_ref().map(platform),
        constraints: None,
        variant: 0,
    }
}

fn by_number(input: Option<usize>) -> pb::InputNumber {
    pb::InputNumber {
        input: index(input),
    }
}

fn index(input: Option<usize>) -> i64 {
    input.map_or(NONE, |number| number as i64)
}

fn output(output: Option<u32>) -> i64 {
    output.map_or(NONE, i64::from)
}

fn platform(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        ..pb::Platform::default()
    }
}

fn source(op: &SourceOp) -> pb::SourceOp {
    let mut attrs = BTreeMap::new();
    let mut set = |name: &str, value: String| {
        attrs.insert(name.to_owned(), value);
    };
    let identifier = match op {
        SourceOp::Image { reference } => format!("docker-image://{reference}"),
        SourceOp::Local { name, exclude } => {
            if !exclude.is_empty() {
                set(
                    "local.excludepatterns",
                    serde_json::Value::from(exclude.as_slice()).to_string(),
                );
            }
            format!("local://{name}")
        }
        SourceOp::Git {
            url,
            keep_git_dir,
            skip_submodules,
            checkout_times,
            checksum,
        } => {
            let remote = url.split('#').next().unwrap_or_default();
            set("git.fullurl", remote.to_owned());
            if *keep_git_dir {
                set("git.keepgitdir", true.to_string());
            }
            if *skip_submodules {
                set("git.skipsubmodules", true.to_string());
            }
            let times = if *checkout_times {
                "checkout"
            } else {
                "commit"
            };
            set("git.mtime", times.to_owned());
            if let Some(checksum) = checksum {
                set("git.checksum", checksum.clone());
            }
            format!(
                "git://{}",
                url.split_once("://").map_or(url.as_str(), |(_, rest)| rest)
            )
        }
        SourceOp::Http {
            url,
            checksum,
            filename,
            mode,
            owner,
        } => {
            if let Some(checksum) = checksum {
                set("http.checksum", checksum.clone());
            }
            if !filename.is_empty() {
                set("http.filename", filename.clone());
            }
            if let Some(mode) = mode {
                set("http.perm", format!("0{mode:o}"));
            }
            if let Some((uid, gid)) = owner {
                set("http.uid", uid.to_string());
                set("http.gid", gid.to_string());
            }
            url.clone()
        }
        SourceOp::OciLayout { store, reference } => {
            set("oci.store", store.clone());
            format!("oci-layout://{reference}")
        }
    };
    pb::SourceOp { identifier, attrs }
}

fn exec(op: &ExecOp) -> pb::ExecOp {
    let meta = pb::Meta {
        args: op.args.clone(),
        env: op.env.clone(),
        cwd: op.cwd.clone(),
        user: op.user.clone(),
        proxy_env: proxies(&op.proxy_env),
        extra_hosts: op
            .extra_hosts
            .iter()
            .map(|(host, ip)| pb::HostIp {
                host: host.clone(),
                ip: ip.clone(),
            })
            .collect(),
        hostname: op.hostname.clone(),
        ulimit: op
            .ulimits
            .iter()
            .map(|(name, soft, hard)| pb::Ulimit {
                name: name.clone(),
                soft: soft.cast_signed(),
                hard: hard.cast_signed(),
            })
            .collect(),
        remove_mount_stubs_recursive: true,
        shm_size: op.shm_size,
        proxies: op.proxy_env.clone(),
        ..pb::Meta::default()
    };
    let mut mounts = Vec::new();
    let mut variables = Vec::new();
    for (position, mount) in op.mounts.iter().enumerate() {
        let message = self::mount(mount);
        let MountKind::Secret {
            id,
            env,
            file,
            optional,
            ..
        } = &mount.kind
        else {
            mounts.push(message);
            continue;
        };
        // A secret that is neither a file nor a variable is kept by its place alone.
        if env.is_some() || !file {
            variables.push(pb::SecretEnv {
                id: id.clone(),
                name: env.clone().unwrap_or_default(),
                optional: *optional,
                position: Some(position as u32),
                mount: (!file).then(|| message.clone()),
            });
        }
        if *file {
            mounts.push(message);
        }
    }
    if op.shm_size > 0 {
        mounts.push(shm(op.shm_size));
    }
    pb::ExecOp {
        meta: Some(meta),
        mounts,
        network: match op.network {
            Network::Default => pb::NetMode::Unset,
            Network::Host => pb::NetMode::Host,
            Network::None => pb::NetMode::None,
        }
        .into(),
        security: match op.security {
            Security::Sandbox => pb::SecurityMode::Sandbox,
            Security::Insecure => pb::SecurityMode::Insecure,
        }
        .into(),
        secretenv: variables,
        cdi_devices: Vec::new(),
    }
}

/// The mount that gives `/dev/shm` its size under BuildKit.
pub(super) fn shm(size: u64) -> pb::Mount {
    pb::Mount {
        input: NONE,
        dest: SHM.to_owned(),
        output: NONE,
        mount_type: pb::MountType::Tmpfs.into(),
        tmpfs_opt: Some(pb::TmpfsOpt {
            size: size.cast_signed(),
        }),
        ..pb::Mount::default()
    }
}

fn proxies(variables: &[String]) -> Option<pb::ProxyEnv> {
    let value = |name: &str| {
        variables
            .iter()
            .rev()
            .filter_map(|variable| variable.split_once('='))
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
            .unwrap_or_default()
    };
    (!variables.is_empty()).then(|| pb::ProxyEnv {
        http_proxy: value("http_proxy"),
        https_proxy: value("https_proxy"),
        ftp_proxy: value("ftp_proxy"),
        no_proxy: value("no_proxy"),
        all_proxy: value("all_proxy"),
    })
}

fn mount(mount: &Mount) -> pb::Mount {
    let mut message = pb::Mount {
        input: index(mount.input),
        selector: mount.selector.clone(),
        dest: mount.dest.clone(),
        output: output(mount.output),
        readonly: mount.readonly,
        ..pb::Mount::default()
    };
    let file = |id: &str, mode: Option<u16>, default: u16, uid, gid, optional| pb::FileOpt {
        id: id.to_owned(),
        uid,
        gid,
        mode: mode.unwrap_or(default).into(),
        optional,
        mode_given: mode == Some(default),
    };
    let kind = match &mount.kind {
        MountKind::Bind => pb::MountType::Bind,
        MountKind::Cache {
            id,
            sharing,
            mode,
            uid,
            gid,
        } => {
            message.cache_opt = Some(pb::CacheOpt {
                id: id.clone(),
                sharing: match sharing {
                    Sharing::Shared => pb::CacheSharingOpt::Shared,
                    Sharing::Private => pb::CacheSharingOpt::Private,
                    Sharing::Locked => pb::CacheSharingOpt::Locked,
                }
                .into(),
                mode: mode.map(u32::from),
                uid: *uid,
                gid: *gid,
            });
            pb::MountType::Cache
        }
        MountKind::Tmpfs { size } => {
            message.tmpfs_opt = Some(pb::TmpfsOpt {
                size: size.cast_signed(),
            });
            pb::MountType::Tmpfs
        }
        MountKind::Secret {
            id,
            mode,
            uid,
            gid,
            optional,
            ..
        } => {
            message.secret_opt = Some(file(id, *mode, SECRET_MODE, *uid, *gid, *optional));
            pb::MountType::Secret
        }
        MountKind::Ssh {
            id,
            mode,
            uid,
            gid,
            optional,
        } => {
            message.ssh_opt = Some(file(id, *mode, SSH_MODE, *uid, *gid, *optional));
            pb::MountType::Ssh
        }
    };
    message.mount_type = kind.into();
    message
}

fn file(op: &FileOp, inputs: usize) -> pb::FileOp {
    pb::FileOp {
        actions: op
            .actions
            .iter()
            .map(|action| file_action(action, inputs))
            .collect(),
    }
}

fn tree(input: FileInput, inputs: usize) -> i64 {
    match input {
        FileInput::Scratch => NONE,
        FileInput::Input(number) => number as i64,
        FileInput::Action(number) => (inputs + number) as i64,
    }
}

fn file_action(action: &FileAction, inputs: usize) -> pb::FileAction {
    let mut from = NONE;
    let kind = match &action.kind {
        FileActionKind::Copy(copy) => {
            from = copy.from.map_or(NO_SOURCE, |from| tree(from, inputs));
            pb::Action::Copy(self::copy(copy, inputs))
        }
        FileActionKind::MkFile {
            path,
            mode,
            data,
            owner,
            timestamp,
        } => {
            let (timestamp, seconds) = time(*timestamp);
            pb::Action::MkFile(pb::FileActionMkFile {
                path: path.clone(),
                mode: (*mode).into(),
                data: data.clone(),
                owner: owner.as_ref().map(|owner| chown(owner, inputs)),
                timestamp,
                seconds,
            })
        }
        FileActionKind::MkDir {
            path,
            mode,
            make_parents,
            owner,
            timestamp,
        } => {
            let (timestamp, seconds) = time(*timestamp);
            pb::Action::MkDir(pb::FileActionMkDir {
                path: path.clone(),
                mode: (*mode).into(),
                make_parents: *make_parents,
                owner: owner.as_ref().map(|owner| chown(owner, inputs)),
                timestamp,
                seconds,
            })
        }
        FileActionKind::Rm {
            path,
            allow_not_found,
            allow_wildcard,
        } => pb::Action::Rm(pb::FileActionRm {
            path: path.clone(),
            allow_not_found: *allow_not_found,
            allow_wildcard: *allow_wildcard,
        }),
    };
    pb::FileAction {
        input: tree(action.on, inputs),
        secondary_input: from,
        output: output(action.output),
        action: Some(kind),
    }
}

/// LLB counts nanoseconds; what they cannot hold goes into the second field.
fn time(seconds: Option<i64>) -> (i64, Option<i64>) {
    let nanoseconds = seconds.map(|seconds| seconds.checked_mul(1_000_000_000));
    match nanoseconds {
        None => (NONE, None),
        Some(Some(nanoseconds)) => (nanoseconds, None),
        Some(None) => (NONE, seconds),
    }
}

fn copy(copy: &CopyAction, inputs: usize) -> pb::FileActionCopy {
    let (timestamp, seconds) = time(copy.timestamp);
    let number = copy
        .mode
        .as_deref()
        .and_then(|mode| u16::from_str_radix(mode, 8).ok())
        .filter(|mode| *mode <= 0o7777);
    let plain = number.map(|number| format!("{number:o}"));
    pb::FileActionCopy {
        src: copy.src.clone(),
        dest: copy.dest.clone(),
        owner: copy.owner.as_ref().map(|owner| chown(owner, inputs)),
        mode: number.map_or(-1, i32::from),
        follow_symlink: copy.follow_symlinks,
        dir_copy_contents: copy.dir_copy_contents,
        attempt_unpack_docker_compatibility: copy.attempt_unpack,
        create_dest_path: copy.create_dest_path,
        allow_wildcard: copy.allow_wildcard,
        allow_empty_wildcard: copy.allow_empty_wildcard,
        timestamp,
        include_patterns: copy.include_patterns.clone(),
        exclude_patterns: copy.exclude_patterns.clone(),
        always_replace_existing_dest_paths: false,
        mode_str: copy.mode.clone().filter(|_| copy.mode != plain),
        parents_pivot: copy.parents_pivot.clone(),
        seconds,
    }
}

fn chown(owner: &Owner, inputs: usize) -> pb::ChownOpt {
    let one = |user: &UserRef| pb::UserOpt {
        user: Some(match user {
            UserRef::Id(id) => pb::User::ById(*id),
            UserRef::Name { name, input } => pb::User::ByName(pb::NamedUserOpt {
                name: name.clone(),
                input: tree(*input, inputs),
            }),
        }),
    };
    pb::ChownOpt {
        user: owner.user.as_ref().map(one),
        group: owner.group.as_ref().map(one),
    }
}
