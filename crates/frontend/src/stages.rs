//! Which stages there are, what they start from, and which of them the target needs.

use std::collections::BTreeSet;

use kiln_dockerfile::{
    Diagnostic, Dockerfile, Expanded, Expander, Instruction, Kind, Lines, Rule, Variables,
    description, did_you_mean, parse_trigger,
};
use kiln_image::{Platform, Reference};

use crate::Options;
use crate::args::Globals;
use crate::checks::Checks;

/// Number of a node.
pub(crate) type NodeId = usize;

/// What a node starts from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Nothing.
    Scratch,
    /// An earlier stage.
    Stage(NodeId),
    /// An image, by its canonical reference.
    Image(Reference),
    /// A named context, by the name that the user gave.
    Context(String),
}

/// A stage, or something else that a tree comes from (`COPY --from=image`).
#[derive(Debug)]
pub(crate) struct Node {
    /// Its name in the file; empty for what is no stage.
    pub name: Option<String>,
    /// Its name, or `stage-N`.
    pub label: String,
    /// It is a stage of the file.
    pub stage: bool,
    /// What it starts from.
    pub origin: Origin,
    /// What it starts from as written, expanded.
    pub base: String,
    /// `--platform`.
    pub platform: Option<Platform>,
    /// What it does, triggers of the base first.
    pub steps: Vec<Step>,
    /// The triggers of the base have been added.
    pub triggered: bool,
    /// The `FROM` line, or the instruction that first names it.
    pub lines: Lines,
    /// What the comment above it says.
    pub description: Option<String>,
    /// The variables that its `FROM` line uses.
    pub from_args: BTreeSet<String>,
}

/// An instruction of a node.
#[derive(Debug)]
pub(crate) struct Step {
    pub instruction: Instruction,
    /// It came from the base's ONBUILD.
    pub trigger: bool,
    /// The nodes of `--from` (one) or of the mounts (one each).
    pub sources: Vec<Option<NodeId>>,
}

/// All nodes: the stages in the order of the file, then the rest.
pub(crate) struct Nodes<'a> {
    pub all: Vec<Node>,
    stages: usize,
    file: &'a str,
    escape: char,
    options: &'a Options,
}

/// The form in which names of contexts and images are compared: short, without `:latest`.
fn context_key(name: &str) -> String {
    match name.parse::<Reference>() {
        Ok(reference) => {
            let familiar = reference.familiar();
            familiar
                .strip_suffix(":latest")
                .map_or(familiar.clone(), str::to_owned)
        }
        Err(_) => name.to_lowercase(),
    }
}

/// The named context for `name`, by the name that the user gave.
fn context(options: &Options, name: &str) -> Option<String> {
    if name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
        return None;
    }
    let key = context_key(name);
    options
        .contexts
        .keys()
        .find(|given| context_key(given) == key)
        .cloned()
}

#[expect(clippy::unnecessary_box_returns, reason = "every caller wants the box")]
fn fail(file: &str, lines: Lines, message: impl Into<String>) -> Box<Diagnostic> {
    Box::new(Diagnostic {
        file: file.to_owned(),
        lines: Some(lines),
        message: message.into(),
        hint: None,
        about: None,
    })
}

impl<'a> Nodes<'a> {
    /// Makes the nodes of a file's stages.
    pub(crate) fn new(
        dockerfile: Dockerfile,
        file: &'a str,
        globals: &Globals,
        options: &'a Options,
        checks: &mut Checks,
    ) -> Result<Self, Box<Diagnostic>> {
        let escape = dockerfile.escape;
        let mut nodes = Self {
            all: Vec::new(),
            stages: dockerfile.stages.len(),
            file,
            escape,
            options,
        };
        let expander = Expander::new(escape);
        for (at, stage) in dockerfile.stages.into_iter().enumerate() {
            let lines = stage.lines;
            let expand = |text: &str, variables: &Variables| {
                expander.expand(text, variables).map_err(|error| {
                    let hint = suggest(&error.missing, variables);
                    Box::new(Diagnostic {
                        hint,
                        about: Some(text.to_owned()),
                        ..*fail(file, lines, error.to_string())
                    })
                })
            };
            let base = expand(&stage.base, &globals.all)?;
            invalid_default(&stage.base, expander, globals, lines, checks);
            undefined_in_from(&base, globals, lines, checks);
            if base.text.is_empty() {
                let hint = suggest(&base.missing, &globals.all);
                let message = format!("base name ({}) should not be blank", stage.base);
                return Err(Box::new(Diagnostic {
                    hint: hint.or(Some(
                        "give its arguments a value with --build-arg or by default".to_owned(),
                    )),
                    about: Some(stage.base),
                    ..*fail(file, lines, message)
                }));
            }
            let mut from_args = base.used;
            let platform = match &stage.platform {
                None => None,
                Some(text) => {
                    let expanded = expand(text, &globals.all)?;
                    undefined_in_from(&expanded, globals, lines, checks);
                    from_args.extend(expanded.used.iter().cloned());
                    check_platform(text, &expanded, stage.name.as_deref(), lines, checks);
                    let hint = suggest(&expanded.missing, &globals.all);
                    if expanded.text.is_empty() {
                        let message = format!("empty platform value from expression {text}");
                        return Err(Box::new(Diagnostic {
                            hint,
                            about: Some(text.clone()),
                            ..*fail(file, lines, message)
                        }));
                    }
                    let parsed = parse_platform(&expanded.text).map_err(|error| {
                        let message = format!("failed to parse platform {text}: {error}");
                        Box::new(Diagnostic {
                            hint,
                            about: Some(text.clone()),
                            ..*fail(file, lines, message)
                        })
                    })?;
                    Some(parsed)
                }
            };
            let replaced = stage
                .name
                .as_deref()
                .and_then(|name| context(options, name));
            let is_replaced = replaced.is_some();
            let description = stage
                .name
                .as_deref()
                .and_then(|name| description(&stage.comments, name))
                .map(str::to_owned);
            let origin = match replaced {
                Some(key) => Origin::Context(key),
                None => nodes.origin(&base.text, &stage.base, lines, at)?,
            };
            let step = |instruction| Step {
                instruction,
                trigger: false,
                sources: Vec::new(),
            };
            nodes.all.push(Node {
                label: stage.name.clone().unwrap_or_else(|| format!("stage-{at}")),
                name: stage.name,
                stage: true,
                origin,
                base: base.text,
                platform,
                // A context of the stage's name stands for the whole stage.
                steps: if is_replaced {
                    Vec::new()
                } else {
                    stage.instructions.into_iter().map(step).collect()
                },
                triggered: is_replaced,
                lines,
                description,
                from_args,
            });
        }
        for node in 0..nodes.stages {
            for step in 0..nodes.all[node].steps.len() {
                let sources = nodes.sources(&nodes.all[node].steps[step].instruction.clone())?;
                nodes.all[node].steps[step].sources = sources;
            }
        }
        nodes.refuse_circles()?;
        Ok(nodes)
    }

    /// The stage of a name, among the first `before` ones; of several with that name the last.
    fn named(&self, name: &str, before: usize) -> Option<NodeId> {
        let same = |node: &Node| {
            node.name
                .as_deref()
                .is_some_and(|known| known.eq_ignore_ascii_case(name))
        };
        self.all[..before.min(self.all.len())]
            .iter()
            .rposition(same)
    }

    /// What a name stands for; `written` is how the file has it.
    fn origin(
        &self,
        base: &str,
        written: &str,
        lines: Lines,
        before: usize,
    ) -> Result<Origin, Box<Diagnostic>> {
        if let Some(stage) = self.named(base, before) {
            return Ok(Origin::Stage(stage));
        }
        if base == "scratch" {
            return Ok(Origin::Scratch);
        }
        if let Some(key) = context(self.options, base) {
            return Ok(Origin::Context(key));
        }
        base.parse().map(Origin::Image).map_err(|error| {
            let hint = did_you_mean(
                base,
                self.all.iter().filter_map(|node| node.name.as_deref()),
            );
            let message = format!("failed to parse stage name {base:?}: {error}");
            Box::new(Diagnostic {
                hint,
                about: Some(written.to_owned()),
                ..*fail(self.file, lines, message)
            })
        })
    }

    /// The node of a `from`: a stage wherever it stands, or what else has that name.
    fn source(&mut self, from: &str, lines: Lines) -> Result<NodeId, Box<Diagnostic>> {
        if let Some(stage) = self.named(from, self.stages) {
            return Ok(stage);
        }
        let origin = self.origin(from, from, lines, 0)?;
        if let Some(known) = self
            .all
            .iter()
            .position(|node| !node.stage && node.origin == origin)
        {
            return Ok(known);
        }
        self.all.push(Node {
            name: None,
            label: from.to_owned(),
            stage: false,
            origin,
            base: from.to_owned(),
            platform: None,
            steps: Vec::new(),
            triggered: true,
            lines,
            description: None,
            from_args: BTreeSet::new(),
        });
        Ok(self.all.len() - 1)
    }

    /// The nodes that an instruction reads.
    fn sources(
        &mut self,
        instruction: &Instruction,
    ) -> Result<Vec<Option<NodeId>>, Box<Diagnostic>> {
        let lines = instruction.lines;
        match &instruction.kind {
            Kind::Copy(copy) => {
                let Some(from) = &copy.from else {
                    return Ok(vec![None]);
                };
                let expanded = Expander::new(self.escape).expand(from, &Variables::default());
                if expanded.is_ok_and(|expanded| expanded.text != *from) {
                    let message = "variable expansion is not supported for --from, define a new stage with FROM \
                                   using ARG from global scope as a workaround";
                    return Err(Box::new(Diagnostic {
                        about: Some(from.clone()),
                        ..*fail(self.file, lines, message)
                    }));
                }
                if let Ok(index) = from.parse::<i64>() {
                    let stage = usize::try_from(index)
                        .ok()
                        .filter(|index| *index < self.stages);
                    return match stage {
                        Some(stage) => Ok(vec![Some(stage)]),
                        None => Err(Box::new(Diagnostic {
                            about: Some(format!("--from={from}")),
                            hint: Some(match self.stages {
                                1 => "there is only stage 0".to_owned(),
                                stages => format!("there are stages 0 to {}", stages - 1),
                            }),
                            ..*fail(self.file, lines, format!("invalid stage index {index}"))
                        })),
                    };
                }
                Ok(vec![Some(self.source(from, lines)?)])
            }
            Kind::Run(run) => {
                let from = |from: &Option<String>| {
                    from.as_ref()
                        .map(|from| self.source(from, lines))
                        .transpose()
                };
                run.mount_sources.iter().map(from).collect()
            }
            _ => Ok(Vec::new()),
        }
    }

    /// What a node needs directly.
    pub(crate) fn needed(&self, node: NodeId) -> impl Iterator<Item = NodeId> {
        let base = if let Origin::Stage(base) = self.all[node].origin {
            Some(base)
        } else {
            None
        };
        base.into_iter().chain(
            self.all[node]
                .steps
                .iter()
                .flat_map(|step| step.sources.iter().flatten().copied()),
        )
    }

    /// Everything that `target` needs, with itself.
    pub(crate) fn reachable(&self, target: NodeId) -> BTreeSet<NodeId> {
        let mut reached = BTreeSet::from([target]);
        let mut open = vec![target];
        while let Some(node) = open.pop() {
            open.extend(self.needed(node).filter(|needed| reached.insert(*needed)));
        }
        reached
    }

    fn refuse_circles(&self) -> Result<(), Box<Diagnostic>> {
        for start in 0..self.stages {
            for step in &self.all[start].steps {
                // A base always stands before: a circle has at least one step that reads its own or a later stage.
                let later = |source: &&NodeId| (start..self.stages).contains(*source);
                for &source in step.sources.iter().flatten().filter(later) {
                    if self.reachable(source).contains(&start) {
                        let message = format!(
                            "circular dependency detected on stage: {}",
                            self.all[start].label
                        );
                        return Err(Box::new(Diagnostic {
                            about: self.all[source].name.clone(),
                            ..*fail(self.file, step.instruction.lines, message)
                        }));
                    }
                }
            }
        }
        Ok(())
    }

    /// The stage that is to be built.
    pub(crate) fn target(&self) -> Result<NodeId, Box<Diagnostic>> {
        let Some(target) = &self.options.target else {
            return Ok(self.stages - 1);
        };
        if let Some(stage) = self.named(target, self.stages) {
            return Ok(stage);
        }
        if let Some(stage) = target.parse().ok().filter(|stage| *stage < self.stages) {
            return Ok(stage);
        }
        let names = self.all[..self.stages]
            .iter()
            .filter_map(|node| node.name.as_deref());
        Err(Box::new(Diagnostic {
            file: self.file.to_owned(),
            lines: None,
            message: format!("target stage {target:?} could not be found"),
            hint: did_you_mean(target, names),
            about: None,
        }))
    }

    /// Puts the triggers of a node's base before its own instructions. Whether there were any.
    pub(crate) fn add_triggers(
        &mut self,
        node: NodeId,
        triggers: &[String],
    ) -> Result<bool, Box<Diagnostic>> {
        if std::mem::replace(&mut self.all[node].triggered, true) || triggers.is_empty() {
            return Ok(false);
        }
        let lines = self.all[node].lines;
        let mut steps = Vec::with_capacity(triggers.len());
        for trigger in triggers {
            let instruction = parse_trigger(trigger, lines, self.file)?;
            let sources = self.sources(&instruction)?;
            steps.push(Step {
                instruction,
                trigger: true,
                sources,
            });
        }
        self.all[node].steps.splice(..0, steps);
        self.refuse_circles()?;
        Ok(true)
    }

    /// The triggers that a stage of this file leaves to those that start from it.
    pub(crate) fn triggers(&self, node: NodeId) -> Vec<String> {
        let trigger = |step: &Step| {
            if let Kind::Onbuild(text) = &step.instruction.kind {
                Some(text.clone())
            } else {
                None
            }
        };
        self.all[node].steps.iter().filter_map(trigger).collect()
    }

    /// How many stages the file has: the nodes before this number.
    pub(crate) fn stage_count(&self) -> usize {
        self.stages
    }
}

/// A platform as Docker takes it: an operating system or a processor alone is enough.
fn parse_platform(text: &str) -> Result<Platform, String> {
    let host = Platform::host();
    match text.to_ascii_lowercase().as_str() {
        os @ ("linux" | "windows" | "darwin" | "freebsd") => {
            Ok(Platform::new(os, &host.architecture, &host.variant))
        }
        one if !one.is_empty() && !one.contains('/') => Ok(Platform::new(&host.os, one, "")),
        _ => text.parse::<Platform>().map_err(|error| error.to_string()),
    }
}

fn suggest(missing: &BTreeSet<String>, variables: &Variables) -> Option<String> {
    missing
        .iter()
        .find_map(|name| did_you_mean(name, variables.names()))
}

fn undefined_in_from(expanded: &Expanded, globals: &Globals, lines: Lines, checks: &mut Checks) {
    for name in expanded
        .missing
        .iter()
        .filter(|name| !globals.declared.contains(name))
    {
        let hint = did_you_mean(
            name,
            globals
                .all
                .names()
                .chain(globals.declared.iter().map(String::as_str)),
        );
        let hint = hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
        checks.add(
            Rule::UndefinedArgInFrom,
            lines,
            format!("FROM argument '{name}' is not declared{hint}"),
        );
    }
}

fn invalid_default(
    base: &str,
    expander: Expander,
    globals: &Globals,
    lines: Lines,
    checks: &mut Checks,
) {
    let valid = match expander.expand(base, &globals.defaults) {
        Ok(expanded) => {
            expanded.text.parse::<Reference>().is_ok()
                || expanded.used.is_empty() && expanded.missing.is_empty()
        }
        Err(_) => false,
    };
    if !valid {
        let message =
            format!("Default value for ARG {base} results in empty or invalid base image name");
        checks.add(Rule::InvalidDefaultArgInFrom, lines, message);
    }
}

fn check_platform(
    text: &str,
    expanded: &Expanded,
    name: Option<&str>,
    lines: Lines,
    checks: &mut Checks,
) {
    if expanded.missing.is_empty() && expanded.used.iter().eq(["TARGETPLATFORM"]) {
        let message = format!(
            "Setting platform to predefined {text} in FROM is redundant as this is the default behavior"
        );
        checks.add(Rule::RedundantTargetPlatform, lines, message);
    }
    let constant = expanded.used.is_empty() && expanded.missing.is_empty();
    // A stage for one platform that says so in its name means it.
    let named_after_it = name.is_some_and(|name| {
        parse_platform(&expanded.text).is_ok_and(|platform| {
            name.contains(&platform.os) || name.contains(&platform.architecture)
        })
    });
    if constant && !named_after_it {
        let message = format!(
            "FROM --platform flag should not use constant value {:?}",
            expanded.text
        );
        checks.add(Rule::FromPlatformFlagConstDisallowed, lines, message);
    }
}
