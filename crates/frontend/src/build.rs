//! Turns stages into operations and configs, one instruction after the other.

use kiln_dockerfile::{
    Command, Diagnostic, Expander, Kind, Lines, Pair, Rule, Variables, description,
};
use kiln_graph::{
    Edge, FileAction, FileActionKind, FileInput, FileOp, Graph, Op, OpKind, Owner, UserRef,
};
use kiln_image::config::Healthcheck;
use kiln_image::{ImageConfig, LayerPath, Platform};

use crate::args::{Globals, proxies};
use crate::checks::Checks;
use crate::config;
use crate::outline::{Captured, OutlineArg};
use crate::sources::{Bases, DEFAULT_PATH, Missing};
use crate::stages::{Node, NodeId, Nodes, Origin};

/// What a stage has come to.
#[derive(Debug, Clone)]
pub(crate) struct State {
    /// Its tree; `None` for an empty one.
    pub edge: Option<Edge>,
    /// Its image.
    pub config: ImageConfig,
    /// The variables that instructions and processes see: `ENV` and `ARG`.
    pub env: Variables,
    /// The `ARG`s so far.
    pub args: Vec<(String, Option<String>)>,
    /// The working folder, absolute.
    pub cwd: String,
    /// The platform that it is for.
    pub platform: Platform,
    /// How many layers it has from an image, below those that are made here.
    pub base_layers: usize,
    /// A `WORKDIR` of this file was seen.
    workdir_set: bool,
    /// Nothing is known of the base: what is not defined here may be defined there.
    pub base_unknown: bool,
}

/// What is wrong with an instruction.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub message: String,
    pub hint: Option<String>,
    /// The piece of the Dockerfile that is wrong, as written.
    pub about: Option<String>,
}

impl Wrong {
    /// The same with what would help.
    pub(crate) fn hint(mut self, hint: &str) -> Self {
        self.hint = Some(hint.to_owned());
        self
    }

    /// The same, pointing at a piece of the Dockerfile.
    pub(crate) fn at(mut self, about: impl Into<String>) -> Self {
        self.about = Some(about.into());
        self
    }

    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            about: None,
        }
    }
}

/// Makes the graph.
pub(crate) struct Builder<'a> {
    pub nodes: &'a Nodes<'a>,
    pub bases: Bases<'a>,
    pub globals: &'a Globals,
    pub checks: &'a mut Checks,
    pub escape: char,
    file: &'a str,
    pub epoch: Option<i64>,
    pub graph: Graph,
    pub proxies: Vec<String>,
    states: Vec<Option<State>>,
    /// Two nodes or more: titles name them.
    pub several: bool,
    /// What stages take, by node.
    pub captured: Vec<Captured>,
}

/// A stage while its instructions are gone through.
pub(crate) struct Stage<'b, 'a> {
    pub builder: &'b mut Builder<'a>,
    pub node: &'a Node,
    pub id: NodeId,
    pub state: State,
    /// Where the current instruction stands.
    pub lines: Lines,
    /// The first word of the current instruction, as written.
    keyword: &'a str,
    /// The current instruction came from the base's ONBUILD.
    pub trigger: bool,
    /// Nothing of this stage comes from the cache.
    pub ignore_cache: bool,
    /// How many steps have a number, and the number of the latest one.
    pub total: usize,
    pub at: usize,
    /// Where the latest CMD, ENTRYPOINT and HEALTHCHECK of this stage stand.
    cmd: Option<Lines>,
    entrypoint: Option<Lines>,
    healthcheck: Option<Lines>,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(
        nodes: &'a Nodes<'a>,
        bases: Bases<'a>,
        globals: &'a Globals,
        checks: &'a mut Checks,
        escape: char,
        file: &'a str,
        epoch: Option<i64>,
    ) -> Self {
        Self {
            nodes,
            bases,
            globals,
            checks,
            escape,
            file,
            epoch,
            graph: Graph::default(),
            proxies: proxies(bases.options),
            states: vec![None; nodes.all.len()],
            several: nodes.all.len() > 1,
            captured: vec![Captured::default(); nodes.all.len()],
        }
    }

    /// The graph, and the state of a node that was built.
    pub(crate) fn finish(mut self, target: NodeId) -> (Graph, State) {
        let state = self.states[target]
            .take()
            .expect("the target is among the nodes that were built");
        (self.graph, state)
    }

    /// The state of a node if it was built already.
    pub(crate) fn built(&self, node: NodeId) -> Option<&State> {
        self.states[node].as_ref()
    }

    /// Builds a node. Everything that it needs must have been built.
    pub(crate) fn build(&mut self, id: NodeId) -> Result<(), Box<Diagnostic>> {
        let node = &self.nodes.all[id];
        let file = self.file;
        let fail = |lines: Lines, wrong: Wrong| {
            Box::new(Diagnostic {
                file: file.to_owned(),
                lines: Some(lines),
                message: wrong.message,
                hint: wrong.hint,
                about: wrong.about,
            })
        };
        let counted = |kind: &Kind| {
            matches!(
                kind,
                Kind::Run(_) | Kind::Copy(_) | Kind::Add(_) | Kind::Workdir(_)
            )
        };
        let steps = node
            .steps
            .iter()
            .filter(|step| counted(&step.instruction.kind))
            .count();
        let has_from = !matches!(node.origin, Origin::Scratch | Origin::Stage(_));
        let options = self.bases.options;
        let filtered = |name: &String| {
            node.name
                .as_deref()
                .is_some_and(|stage| stage.eq_ignore_ascii_case(name))
        };
        let mut stage = Stage {
            node,
            id,
            lines: node.lines,
            trigger: false,
            ignore_cache: options.no_cache || options.no_cache_filter.iter().any(filtered),
            total: if node.stage {
                steps + usize::from(has_from)
            } else {
                0
            },
            at: 0,
            cmd: None,
            entrypoint: None,
            healthcheck: None,
            keyword: "",
            state: self.start(id).map_err(|wrong| fail(node.lines, wrong))?,
            builder: self,
        };
        stage.add_base();
        // What is no stage, or was replaced by a context, is taken as it is.
        if node.stage && !(node.steps.is_empty() && matches!(node.origin, Origin::Context(_))) {
            stage.begin();
            for step in &node.steps {
                stage.lines = step.instruction.lines;
                stage.keyword = step.instruction.written_keyword();
                stage.trigger = step.trigger;
                stage
                    .step(step)
                    .map_err(|wrong| fail(step.instruction.lines, wrong))?;
            }
        }
        let state = stage.state;
        self.states[id] = Some(state);
        Ok(())
    }

    /// What a node starts from, but for its tree if that comes from outside.
    fn start(&self, id: NodeId) -> Result<State, Wrong> {
        if let Origin::Stage(base) = self.nodes.all[id].origin {
            let base = self.states[base]
                .as_ref()
                .ok_or_else(|| Wrong::new("the base stage has not been built"))?;
            let mut state = base.clone();
            state.config.config.on_build.clear();
            return Ok(state);
        }
        let base = self
            .bases
            .base(self.nodes, id)
            .map_err(|missing| match missing {
                Missing::Wrong(message) => Wrong::new(message),
                Missing::Need(need) => Wrong::new(format!("not known yet: {need:?}")),
            })?;
        let mut config = base.config;
        config.config.on_build.clear();
        Ok(State {
            edge: None,
            env: Variables::default(),
            args: Vec::new(),
            cwd: "/".to_owned(),
            platform: base
                .platform
                .unwrap_or_else(|| self.bases.platform(self.nodes, id)),
            config,
            workdir_set: false,
            base_layers: base.layers,
            base_unknown: base.unknown,
        })
    }
}

impl Stage<'_, '_> {
    /// Adds the source operation of a base from outside.
    fn add_base(&mut self) {
        let builder = &mut *self.builder;
        if matches!(self.node.origin, Origin::Stage(_) | Origin::Scratch) {
            return;
        }
        let Ok(base) = builder.bases.base(builder.nodes, self.id) else {
            return;
        };
        let title = match self.node.origin {
            Origin::Image(_) if self.node.stage => self.number(&base.title),
            _ => {
                self.at += 1;
                base.title.clone()
            }
        };
        let place = self.place(title, base.title.clone());
        self.state.edge = base.add_root(&mut self.builder.graph, place);
    }

    /// Takes over what the base's config says.
    fn begin(&mut self) {
        let config = &mut self.state.config.config;
        if !config
            .env
            .iter()
            .any(|variable| variable.starts_with("PATH="))
            && self.state.platform.os != "windows"
        {
            config.env.push(format!("PATH={DEFAULT_PATH}"));
        }
        for variable in &config.env {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            self.state.env.set(name, value);
        }
        if !config.working_dir.is_empty() {
            config.working_dir = LayerPath::clean(&config.working_dir).to_string();
            self.state.cwd.clone_from(&config.working_dir);
        }
    }

    fn step(&mut self, step: &crate::stages::Step) -> Result<(), Wrong> {
        let instruction = &step.instruction;
        match &instruction.kind {
            Kind::Run(run) => self.run(run, &instruction.original, &step.sources),
            Kind::Copy(copy) => self.copy(
                copy,
                false,
                &instruction.original,
                step.sources.first().copied().flatten(),
            ),
            Kind::Add(add) => self.copy(add, true, &instruction.original, None),
            Kind::Env(pairs) => self.env(pairs),
            Kind::Label(pairs) => self.label(pairs),
            Kind::Arg(args) => self.arg(args, &instruction.comments),
            Kind::Workdir(path) => self.workdir(path, &instruction.original),
            Kind::User(user) => {
                let user = self.word(user)?;
                self.history(format!("USER {user}"), false);
                self.state.config.config.user = user;
                Ok(())
            }
            Kind::Volume(paths) => self.volume(paths),
            Kind::Expose(ports) => self.expose(ports),
            Kind::Cmd(command) => {
                self.once(|stage| &mut stage.cmd);
                let args = self.default_command(command);
                self.history(format!("CMD {}", config::quoted_list(&args)), false);
                let config = &mut self.state.config.config;
                config.cmd = Some(args).filter(|args| !args.is_empty());
                config.args_escaped = true;
                Ok(())
            }
            Kind::Entrypoint(command) => {
                self.once(|stage| &mut stage.entrypoint);
                let args = self.default_command(command);
                self.history(format!("ENTRYPOINT {}", config::quoted_list(&args)), false);
                let config = &mut self.state.config.config;
                config.entrypoint = Some(args).filter(|args| !args.is_empty());
                if self.cmd.is_none() {
                    config.cmd = None;
                }
                Ok(())
            }
            Kind::Shell(shell) => {
                self.history(format!("SHELL {}", config::plain_list(shell)), false);
                self.state.config.config.shell = Some(shell.clone());
                Ok(())
            }
            Kind::StopSignal(signal) => {
                let signal = self.word(signal)?;
                if !config::is_signal(&signal) {
                    return Err(Wrong::new(format!("invalid signal: {signal}"))
                        .at(&instruction.original[self.keyword.len()..])
                        .hint("a number, or a name such as SIGTERM"));
                }
                self.history(format!("STOPSIGNAL {signal}"), false);
                self.state.config.config.stop_signal = signal;
                Ok(())
            }
            Kind::Healthcheck(check) => {
                self.once(|stage| &mut stage.healthcheck);
                self.history(
                    format!("HEALTHCHECK {}", config::healthcheck_text(check)),
                    false,
                );
                self.state.config.config.healthcheck = Some(Healthcheck {
                    test: check.test.clone(),
                    interval: check.interval,
                    timeout: check.timeout,
                    start_period: check.start_period,
                    start_interval: check.start_interval,
                    retries: check.retries,
                    ..Healthcheck::default()
                });
                Ok(())
            }
            Kind::Onbuild(trigger) => {
                self.state.config.config.on_build.push(trigger.clone());
                Ok(())
            }
            Kind::Maintainer(author) => {
                self.history(format!("MAINTAINER {author}"), false);
                self.state.config.author.clone_from(author);
                Ok(())
            }
        }
    }

    fn env(&mut self, pairs: &[Pair]) -> Result<(), Wrong> {
        let expanded = self.expand_pairs(pairs)?;
        self.check_legacy(pairs);
        let mut line = "ENV".to_owned();
        for (name, value) in expanded {
            self.check_secret("ENV", &name);
            line.extend([" ", &name, "=", &value]);
            let variables = &mut self.state.config.config.env;
            let same = |variable: &String| variable.split('=').next() == Some(name.as_str());
            let text = format!("{name}={value}");
            match variables.iter().position(same) {
                Some(at) => variables[at] = text,
                None => variables.push(text),
            }
            self.state.env.set(name, value);
        }
        self.history(line, false);
        Ok(())
    }

    fn label(&mut self, pairs: &[Pair]) -> Result<(), Wrong> {
        let expanded = self.expand_pairs(pairs)?;
        self.check_legacy(pairs);
        let mut line = "LABEL".to_owned();
        for (name, value) in expanded {
            line.extend([" ", &name, "=", &value]);
            self.state.config.config.labels.insert(name, value);
        }
        self.history(line, false);
        Ok(())
    }

    fn check_legacy(&mut self, pairs: &[Pair]) {
        if pairs.iter().any(|pair| pair.legacy) {
            let keyword = self.keyword;
            let message = format!(
                "\"{keyword} key=value\" should be used instead of legacy \"{keyword} key value\" format"
            );
            self.builder
                .checks
                .add(Rule::LegacyKeyValueFormat, self.lines, message);
        }
    }

    /// All values are those from before the instruction.
    fn expand_pairs(&mut self, pairs: &[Pair]) -> Result<Vec<(String, String)>, Wrong> {
        pairs
            .iter()
            .map(|pair| Ok((self.word(&pair.name)?, self.word(&pair.value)?)))
            .collect()
    }

    fn arg(&mut self, args: &[(String, Option<String>)], comments: &[String]) -> Result<(), Wrong> {
        let mut line = "ARG".to_owned();
        for (name, default) in args {
            self.check_secret("ARG", name);
            let options = self.builder.bases.options;
            let value = match (options.build_args.get(name), default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.word(default)?),
                (None, None) => self.builder.globals.all.get(name).map(str::to_owned),
            };
            let imported = default.is_none() && !options.build_args.contains_key(name);
            let globals = self.builder.globals;
            let global =
                imported && (globals.all.get(name).is_some() || globals.declared.contains(name));
            self.builder.captured[self.id].arg(
                OutlineArg {
                    name: name.clone(),
                    description: description(comments, name).map(str::to_owned),
                    value: value.clone(),
                    lines: self.lines,
                },
                global,
            );
            line.push(' ');
            line.push_str(name);
            if let Some(value) = &value {
                line.push('=');
                line.push_str(value);
                if !matches!(
                    name.as_str(),
                    "BUILDKIT_SBOM_SCAN_CONTEXT" | "BUILDKIT_SBOM_SCAN_STAGE"
                ) {
                    self.state.env.set(name, value);
                }
            }
            self.state.args.push((name.clone(), value));
        }
        self.history(line, false);
        Ok(())
    }

    fn workdir(&mut self, path: &str, original: &str) -> Result<(), Wrong> {
        let path = self.word(path)?;
        if !self.state.workdir_set && !path.starts_with('/') {
            let message = format!(
                "Relative workdir {path:?} can have unexpected results if the base image changes"
            );
            self.builder
                .checks
                .add(Rule::WorkdirRelativePath, self.lines, message);
        }
        self.state.workdir_set = true;
        // The config keeps an absolute path as it is written, as BuildKit's does.
        let written = if path.starts_with('/') {
            path
        } else {
            let base = &self.state.config.config.working_dir;
            LayerPath::clean(format!("{base}/{path}")).to_string()
        };
        let path = LayerPath::clean(&written).to_string();
        self.state.config.config.working_dir.clone_from(&written);
        self.state.cwd.clone_from(&path);
        let layer = path != "/";
        if layer {
            let step = self.step_text(original, Expander::new(self.builder.escape));
            let place = self.numbered_place(&step);
            let (on, inputs) = self.tree();
            let user = self.state.config.config.user.clone();
            let action = FileAction {
                on,
                output: Some(0),
                kind: FileActionKind::MkDir {
                    path: path.clone(),
                    mode: 0o755,
                    make_parents: true,
                    owner: owner(&user, on),
                    timestamp: self.builder.epoch,
                },
            };
            let kind = OpKind::File(FileOp {
                actions: vec![action],
            });
            self.add(Op {
                kind,
                inputs,
                platform: None,
                ignore_cache: false,
                place,
            });
        }
        self.history(format!("WORKDIR {written}"), layer);
        Ok(())
    }

    fn volume(&mut self, paths: &[String]) -> Result<(), Wrong> {
        let paths = paths
            .iter()
            .map(|path| self.word(path))
            .collect::<Result<Vec<_>, _>>()?;
        if paths.iter().any(String::is_empty) {
            return Err(Wrong::new("VOLUME specified can not be an empty string"));
        }
        self.history(format!("VOLUME {}", config::plain_list(&paths)), false);
        self.state.config.config.volumes.extend(paths);
        Ok(())
    }

    fn expose(&mut self, arguments: &[String]) -> Result<(), Wrong> {
        let mut ports = Vec::new();
        for argument in arguments {
            let expanded = Expander::new(self.builder.escape).expand(argument, &self.state.env);
            // BuildKit does not look for undefined variables here.
            let expanded = expanded.map_err(|error| self.cannot_expand(&error))?;
            for word in expanded.words {
                let exposed =
                    config::expose(&word).map_err(|message| Wrong::new(message).at(argument))?;
                if exposed.odd_case {
                    let message = format!(
                        "Defined protocol '{word}' in EXPOSE instruction should be lowercase"
                    );
                    self.builder
                        .checks
                        .add(Rule::ExposeProtoCasing, self.lines, message);
                }
                if exposed.mapping {
                    let message = format!(
                        "EXPOSE instruction should not define an IP address or host-port mapping, found '{word}'"
                    );
                    self.builder
                        .checks
                        .add(Rule::ExposeInvalidFormat, self.lines, message);
                }
                ports.extend(exposed.ports);
            }
        }
        self.history(format!("EXPOSE {}", config::plain_list(&ports)), false);
        self.state.config.config.exposed_ports.extend(ports);
        Ok(())
    }

    fn default_command(&mut self, command: &Command) -> Vec<String> {
        match command {
            Command::Exec(args) => args.clone(),
            Command::Shell(text) => {
                if self.state.config.config.shell.is_none() {
                    let keyword = self.keyword;
                    let message = format!(
                        "JSON arguments recommended for {keyword} to prevent unintended behavior related to OS signals"
                    );
                    self.builder
                        .checks
                        .add(Rule::JSONArgsRecommended, self.lines, message);
                }
                self.with_shell(text)
            }
        }
    }

    /// A command line for the shell.
    pub(crate) fn with_shell(&self, text: &str) -> Vec<String> {
        let mut args = match &self.state.config.config.shell {
            Some(shell) if !shell.is_empty() => shell.clone(),
            _ => vec!["/bin/sh".to_owned(), "-c".to_owned()],
        };
        args.push(text.to_owned());
        args
    }

    /// Only the last instruction of its kind counts: warns about the one before.
    fn once(&mut self, latest: fn(&mut Self) -> &mut Option<Lines>) {
        let (lines, keyword) = (self.lines, self.keyword);
        if let Some(before) = latest(self).replace(lines) {
            let message = format!(
                "Multiple {keyword} instructions should not be used in the same stage because only the last one will be used"
            );
            self.builder
                .checks
                .add(Rule::MultipleInstructionsDisallowed, before, message);
        }
    }

    /// Adds a history line.
    pub(crate) fn history(&mut self, created_by: String, layer: bool) {
        self.state
            .config
            .history
            .push(config::history(created_by, layer, self.builder.epoch));
    }

    /// The stage's tree as the first input of a file operation.
    pub(crate) fn tree(&self) -> (FileInput, Vec<Edge>) {
        match self.state.edge {
            Some(edge) => (FileInput::Input(0), vec![edge]),
            None => (FileInput::Scratch, Vec::new()),
        }
    }

    /// Adds an operation whose first output becomes the stage's tree.
    pub(crate) fn add(&mut self, op: Op) {
        let op = self.builder.graph.add(op);
        self.state.edge = Some(Edge { op, output: 0 });
    }
}

/// Reads `user[:group]`, by numbers or by names that are looked up in the tree `on`. `None` for an empty text.
pub(crate) fn owner(text: &str, on: FileInput) -> Option<Owner> {
    let reference = |text: &str| {
        let name = || UserRef::Name {
            name: text.to_owned(),
            input: on,
        };
        (!text.is_empty()).then(|| text.parse().map_or_else(|_| name(), UserRef::Id))
    };
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let owner = Owner {
        user: reference(user),
        group: reference(group),
    };
    (owner.user.is_some() || owner.group.is_some()).then_some(owner)
}
