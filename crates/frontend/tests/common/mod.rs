//! Plans Dockerfiles and renders the outcome as text.
#![allow(dead_code, reason = "each test program uses a part")]

use std::fmt::Write as _;

use kiln_frontend::{Diagnostic, Facts, ImageFact, Need, Options, Outcome, Plan, SourceText, plan};
use kiln_graph::{
    CopyAction, Edge, FileAction, FileActionKind, FileInput, MountKind, Op, OpKind, Owner,
    SourceOp, UserRef, llb,
};
use kiln_image::{Digest, ImageConfig, Platform};

/// The platform of all tests.
pub(crate) fn amd64() -> Platform {
    Platform::new("linux", "amd64", "")
}

/// Options of a plain build.
pub(crate) fn options() -> Options {
    Options::new(amd64())
}

/// The config of an image with one layer, a shell's environment and whatever `change` makes of it.
pub(crate) fn image(change: impl FnOnce(&mut ImageConfig)) -> ImageConfig {
    let mut config = ImageConfig::scratch(&amd64());
    config.rootfs.diff_ids = vec![kiln_image::DiffId::new([1; 32])];
    config.config.env = vec!["PATH=/bin".to_owned()];
    config.config.cmd = Some(vec!["sh".to_owned()]);
    config.history = vec![kiln_image::config::History {
        created_by: "base".to_owned(),
        ..Default::default()
    }];
    change(&mut config);
    config
}

/// What the tests know: any image that is asked for is the given one, any context ignores `*.log`.
pub(crate) struct World {
    pub(crate) config: ImageConfig,
}

impl Default for World {
    fn default() -> Self {
        Self {
            config: image(|_| {}),
        }
    }
}

impl World {
    /// Plans until nothing is needed any more. Gives the needs of each round too.
    pub(crate) fn plan(
        &self,
        text: &str,
        options: &Options,
    ) -> (Vec<Vec<Need>>, Result<Plan, Box<Diagnostic>>) {
        let source = SourceText::new("Dockerfile", text);
        let mut facts = Facts::default();
        let mut rounds = Vec::new();
        loop {
            match plan(&source, options, &facts) {
                Err(error) => return (rounds, Err(error)),
                Ok(Outcome::Plan(plan)) => {
                    survives_llb(&plan);
                    return (rounds, Ok(plan));
                }
                Ok(Outcome::Needs(needs)) => {
                    assert!(
                        !needs.is_empty() && rounds.len() < 10,
                        "needs without end: {needs:?}"
                    );
                    for need in &needs {
                        match need {
                            Need::ImageConfig {
                                reference,
                                platform,
                                ..
                            } => {
                                let config = ImageConfig {
                                    os: platform.os.clone(),
                                    architecture: platform.architecture.clone(),
                                    ..self.config.clone()
                                };
                                let fact = ImageFact {
                                    digest: Digest::new([0xab; 32]),
                                    config,
                                };
                                let old = facts
                                    .images
                                    .insert((reference.clone(), platform.clone()), fact);
                                assert!(old.is_none(), "asked twice for {reference}");
                            }
                            Need::IgnoreFile { context } => {
                                let old = facts
                                    .ignore
                                    .insert(context.clone(), vec!["*.log".to_owned()]);
                                assert!(old.is_none(), "asked twice for {context}");
                            }
                        }
                    }
                    rounds.push(needs);
                }
            }
        }
    }

    /// The plan as text.
    pub(crate) fn show(&self, text: &str, options: &Options) -> String {
        match self.plan(text, options).1 {
            Ok(plan) => render(&plan),
            Err(error) => failure(text, &error),
        }
    }
}

/// Every plan that a test makes comes back from BuildKit's form as it was, and has one form only.
fn survives_llb(plan: &Plan) {
    let Some(result) = plan.result else { return };
    let bytes = llb::encode(&llb::to_definition(&plan.graph, result));
    let definition = llb::decode(&bytes).expect("what was encoded can be decoded");
    let (graph, target) = llb::from_definition(&definition).expect("nothing that LLB cannot hold");
    assert_eq!((&graph, target), (&plan.graph, result));
    let again = llb::encode(&llb::to_definition(&graph, target));
    assert_eq!(again, bytes, "the bytes are the same each time");
}

/// The plan of a Dockerfile with default options as text.
pub(crate) fn show(text: &str) -> String {
    World::default().show(text, &options())
}

/// The error message that a Dockerfile comes to, with its first line number.
pub(crate) fn error(text: &str) -> String {
    error_with(text, &options())
}

/// The same with options.
pub(crate) fn error_with(text: &str, options: &Options) -> String {
    match World::default().plan(text, options).1 {
        Ok(plan) => panic!("no error:\n{}", render(&plan)),
        Err(error) => match error.lines {
            Some(lines) => format!("{}: {error}", lines.first),
            None => error.to_string(),
        },
    }
}

/// The warnings of a Dockerfile.
pub(crate) fn warnings(text: &str) -> Vec<String> {
    let plan = World::default()
        .plan(text, &options())
        .1
        .unwrap_or_else(|error| panic!("{error}"));
    plan.warnings
        .iter()
        .map(|warning| {
            format!(
                "{}: {}: {}",
                warning.lines.first,
                warning.rule.name(),
                warning.message
            )
        })
        .collect()
}

fn failure(text: &str, error: &Diagnostic) -> String {
    let source = SourceText::new("Dockerfile", text);
    let shown = error.excerpt(&source).unwrap_or_default();
    let hint = error.hint.as_ref();
    let hint = hint
        .map(|hint| format!("hint: {hint}\n"))
        .unwrap_or_default();
    format!("{shown}ERROR: {}\n{hint}", error.message)
}

fn edge(edge: Edge) -> String {
    if edge.output == 0 {
        format!("#{}", edge.op.0)
    } else {
        format!("#{}.{}", edge.op.0, edge.output)
    }
}

/// A plan as text: operations, then what differs from the defaults.
pub(crate) fn render(plan: &Plan) -> String {
    let mut text = String::new();
    for (id, op) in plan.graph.ops() {
        let lines = op
            .place
            .lines
            .map(|(first, last)| format!(" :{first}-{last}"))
            .unwrap_or_default();
        writeln!(text, "#{} {}{lines}", id.0, op.place.title).unwrap();
        for line in describe(op).lines() {
            writeln!(text, "    {line}").unwrap();
        }
    }
    writeln!(
        text,
        "result {}",
        plan.result.map_or("none".to_owned(), edge)
    )
    .unwrap();
    let config = serde_like(&plan.config);
    text.push_str(&config);
    for step in &plan.config.history {
        let mark = if step.empty_layer { "-" } else { "+" };
        writeln!(text, "history {mark} {}", step.created_by).unwrap();
    }
    if !plan.skipped.is_empty() {
        writeln!(text, "skipped {}", plan.skipped.join(", ")).unwrap();
    }
    for warning in &plan.warnings {
        let lines = warning.lines;
        writeln!(
            text,
            "warning {}: {} (line {})",
            warning.rule.name(),
            warning.message,
            lines.first
        )
        .unwrap();
    }
    text
}

fn serde_like(config: &ImageConfig) -> String {
    let mut text = String::new();
    let json = String::from_utf8(config.to_bytes()).unwrap();
    let start = json.find("\"config\":").unwrap();
    let end = json[start..]
        .find(",\"rootfs\"")
        .map_or(json.len(), |end| start + end);
    writeln!(text, "{}", &json[start..end]).unwrap();
    text
}

fn describe(op: &Op) -> String {
    let mut text = String::new();
    let platform = op
        .platform
        .as_ref()
        .map(|platform| format!(" for {platform}"))
        .unwrap_or_default();
    let cache = if op.ignore_cache {
        " ignoring the cache"
    } else {
        ""
    };
    let inputs: Vec<String> = op.inputs.iter().map(|input| edge(*input)).collect();
    let inputs = if inputs.is_empty() {
        String::new()
    } else {
        format!(" of {}", inputs.join(" "))
    };
    match &op.kind {
        OpKind::Source(source) => {
            writeln!(text, "{}{platform}{cache}", describe_source(source)).unwrap();
        }
        OpKind::Merge => writeln!(text, "merge{inputs}{cache}").unwrap(),
        OpKind::Diff { .. } => writeln!(text, "diff{inputs}").unwrap(),
        OpKind::File(file) => {
            writeln!(text, "file{inputs}{cache}").unwrap();
            for (at, action) in file.actions.iter().enumerate() {
                writeln!(text, "  .{at} {}", describe_action(action)).unwrap();
            }
        }
        OpKind::Exec(exec) => {
            writeln!(text, "exec{inputs}{platform}{cache} {:?}", exec.args).unwrap();
            writeln!(text, "  env {:?}", exec.env).unwrap();
            let user = if exec.user.is_empty() {
                String::new()
            } else {
                format!(" user {}", exec.user)
            };
            writeln!(text, "  cwd {}{user}", exec.cwd).unwrap();
            let rest = [
                (
                    "hostname",
                    format!("{:?}", exec.hostname),
                    exec.hostname.is_empty(),
                ),
                (
                    "hosts",
                    format!("{:?}", exec.extra_hosts),
                    exec.extra_hosts.is_empty(),
                ),
                (
                    "network",
                    format!("{:?}", exec.network),
                    exec.network == kiln_graph::Network::Default,
                ),
                (
                    "security",
                    format!("{:?}", exec.security),
                    exec.security == kiln_graph::Security::Sandbox,
                ),
                (
                    "proxy",
                    format!("{:?}", exec.proxy_env),
                    exec.proxy_env.is_empty(),
                ),
                (
                    "ulimits",
                    format!("{:?}", exec.ulimits),
                    exec.ulimits.is_empty(),
                ),
                ("shm", exec.shm_size.to_string(), exec.shm_size == 0),
            ];
            for (name, value, _) in rest.iter().filter(|(_, _, default)| !default) {
                writeln!(text, "  {name} {value}").unwrap();
            }
            for mount in &exec.mounts {
                let from = mount
                    .input
                    .map_or("empty".to_owned(), |input| format!("input {input}"));
                let selector = if mount.selector == "/" {
                    ""
                } else {
                    &mount.selector
                };
                let output = mount
                    .output
                    .map(|output| format!(" output {output}"))
                    .unwrap_or_default();
                let mode = if mount.readonly { "ro" } else { "rw" };
                let kind = match &mount.kind {
                    MountKind::Bind => String::new(),
                    other => format!(" {other:?}"),
                };
                writeln!(
                    text,
                    "  mount {} {mode} {from}{selector}{output}{kind}",
                    mount.dest
                )
                .unwrap();
            }
        }
    }
    text
}

fn describe_source(source: &SourceOp) -> String {
    match source {
        SourceOp::Image { reference } => format!("image {}", short(reference)),
        SourceOp::Local { name, exclude } => format!("local {name} without {exclude:?}"),
        SourceOp::OciLayout { store, reference } => format!("layout {store} {}", short(reference)),
        other => format!("{other:?}"),
    }
}

fn short(reference: &str) -> String {
    reference.replace(&"ab".repeat(32), "ab")
}

fn input(input: FileInput) -> String {
    match input {
        FileInput::Scratch => "empty".to_owned(),
        FileInput::Input(number) => format!("input {number}"),
        FileInput::Action(number) => format!(".{number}"),
    }
}

fn describe_owner(owner: Option<&Owner>) -> String {
    let part = |part: &Option<UserRef>| match part {
        None => "-".to_owned(),
        Some(UserRef::Id(id)) => id.to_string(),
        Some(UserRef::Name { name, input: from }) => format!("{name}@{}", input(*from)),
    };
    owner
        .map(|owner| format!(" owner {}:{}", part(&owner.user), part(&owner.group)))
        .unwrap_or_default()
}

fn describe_action(action: &FileAction) -> String {
    let mut text = match &action.kind {
        FileActionKind::Copy(copy) => describe_copy(copy),
        FileActionKind::MkFile {
            path,
            mode,
            data,
            owner,
            ..
        } => {
            format!(
                "mkfile {path} {mode:o} {:?}{}",
                String::from_utf8_lossy(data),
                describe_owner(owner.as_ref())
            )
        }
        FileActionKind::MkDir {
            path,
            mode,
            make_parents,
            owner,
            timestamp,
        } => {
            let parents = if *make_parents { " parents" } else { "" };
            let time = timestamp
                .map(|time| format!(" at {time}"))
                .unwrap_or_default();
            format!(
                "mkdir {path} {mode:o}{parents}{}{time}",
                describe_owner(owner.as_ref())
            )
        }
        FileActionKind::Rm { path, .. } => format!("rm {path}"),
    };
    write!(text, " on {}", input(action.on)).unwrap();
    if let Some(output) = action.output {
        write!(text, " -> {output}").unwrap();
    }
    text
}

fn describe_copy(copy: &CopyAction) -> String {
    let from = copy.from.map_or("nothing".to_owned(), input);
    let mut text = format!(
        "copy {from} {} to {}{}",
        copy.src,
        copy.dest,
        describe_owner(copy.owner.as_ref())
    );
    let flags = [
        ("follow", copy.follow_symlinks),
        ("contents", copy.dir_copy_contents),
        ("unpack", copy.attempt_unpack),
        ("create", copy.create_dest_path),
        ("wildcard", copy.allow_wildcard),
        ("empty-ok", copy.allow_empty_wildcard),
    ];
    let flags: Vec<&str> = flags
        .iter()
        .filter(|(_, set)| *set)
        .map(|(name, _)| *name)
        .collect();
    write!(text, " [{}]", flags.join(" ")).unwrap();
    if let Some(mode) = &copy.mode {
        write!(text, " mode {mode}").unwrap();
    }
    for (name, patterns) in [
        ("only", &copy.include_patterns),
        ("not", &copy.exclude_patterns),
    ] {
        if !patterns.is_empty() {
            write!(text, " {name} {patterns:?}").unwrap();
        }
    }
    if let Some(pivot) = &copy.parents_pivot {
        write!(text, " pivot {pivot}").unwrap();
    }
    if let Some(time) = copy.timestamp {
        write!(text, " at {time}").unwrap();
    }
    text
}
