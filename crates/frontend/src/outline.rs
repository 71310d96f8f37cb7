//! What a build can be given: the stages of a file, and the arguments, secrets and agents that one of them takes.

use std::collections::{BTreeSet, HashSet};

use kiln_dockerfile::{
    Diagnostic, Expander, Instruction, Kind, Lines, SourceText, description, parse,
};

use crate::args::Globals;
use crate::stages::{NodeId, Nodes};

/// What a build of a target takes. Everything in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outline {
    /// The target's name.
    pub name: Option<String>,
    /// What the comment above it says.
    pub description: Option<String>,
    /// Arguments.
    pub args: Vec<OutlineArg>,
    /// Secrets.
    pub secrets: Vec<OutlineMount>,
    /// Agents of ssh.
    pub ssh: Vec<OutlineMount>,
}

/// An argument of a build.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineArg {
    /// Its name.
    pub name: String,
    /// What the comment above it says.
    pub description: Option<String>,
    /// Its value in this build.
    pub value: Option<String>,
    /// Where it is declared.
    pub lines: Lines,
}

/// A secret or an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutlineMount {
    /// Its id.
    pub name: String,
    /// The step fails without it.
    pub required: bool,
    /// Where it is first mounted.
    pub lines: Lines,
}

/// A stage that can be built.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its name.
    pub name: Option<String>,
    /// It is built when no target is named.
    pub default: bool,
    /// What the comment above it says.
    pub description: Option<String>,
    /// What it starts from, as written.
    pub base: String,
    /// `--platform`, as written.
    pub platform: Option<String>,
    /// Where it begins.
    pub lines: Lines,
}

/// The stages of a Dockerfile.
///
/// # Errors
/// When the text is no Dockerfile.
pub fn targets(source: &SourceText) -> Result<Vec<Target>, Box<Diagnostic>> {
    let dockerfile = parse(source)?;
    let last = dockerfile.stages.len() - 1;
    let stages = dockerfile.stages.into_iter().enumerate();
    let target = |(at, stage): (usize, kiln_dockerfile::Stage)| Target {
        description: stage
            .name
            .as_deref()
            .and_then(|name| description(&stage.comments, name))
            .map(str::to_owned),
        name: stage.name,
        default: at == last,
        base: stage.base,
        platform: stage.platform,
        lines: stage.lines,
    };
    Ok(stages.map(target).collect())
}

/// What one stage takes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Captured {
    args: Vec<(OutlineArg, bool)>,
    secrets: Vec<OutlineMount>,
    ssh: Vec<OutlineMount>,
}

impl Captured {
    /// An `ARG`; of one that only takes over a global argument, that one counts. The last one of a name counts.
    pub(crate) fn arg(&mut self, arg: OutlineArg, global: bool) {
        self.args.retain(|(known, _)| known.name != arg.name);
        self.args.push((arg, global));
    }

    /// A secret. The first one of an id counts.
    pub(crate) fn secret(&mut self, mount: &OutlineMount) {
        add_once(&mut self.secrets, mount);
    }

    /// An agent.
    pub(crate) fn agent(&mut self, mount: &OutlineMount) {
        add_once(&mut self.ssh, mount);
    }
}

fn add_once(list: &mut Vec<OutlineMount>, mount: &OutlineMount) {
    if !list.iter().any(|known| known.name == mount.name) {
        list.push(mount.clone());
    }
}

/// Puts together what the target and all that it needs take. What a stage nearer to the target says of a name counts.
pub(crate) fn of(
    nodes: &Nodes<'_>,
    target: NodeId,
    global_args: &[Instruction],
    globals: &Globals,
    captured: &[Captured],
) -> Outline {
    let mut gathering = Gathering {
        nodes,
        global_args,
        globals,
        captured,
        outline: Outline {
            name: nodes.all[target].name.clone(),
            description: nodes.all[target].description.clone(),
            ..Outline::default()
        },
        known: HashSet::new(),
        seen: BTreeSet::new(),
    };
    gathering.stage(target);
    let mut outline = gathering.outline;
    outline.args.sort_by_key(|arg| arg.lines);
    outline.secrets.sort_by_key(|secret| secret.lines);
    outline.ssh.sort_by_key(|agent| agent.lines);
    outline
}

struct Gathering<'a> {
    nodes: &'a Nodes<'a>,
    global_args: &'a [Instruction],
    globals: &'a Globals,
    captured: &'a [Captured],
    outline: Outline,
    /// Names of arguments that are in the outline.
    known: HashSet<String>,
    seen: BTreeSet<NodeId>,
}

impl Gathering<'_> {
    fn stage(&mut self, target: NodeId) {
        let mut open = vec![target];
        while let Some(node) = open.pop() {
            if !self.seen.insert(node) {
                continue;
            }
            let captured = &self.captured[node];
            for (arg, global) in &captured.args {
                if *global {
                    self.global(&arg.name);
                } else if self.known.insert(arg.name.clone()) {
                    self.outline.args.push(arg.clone());
                }
            }
            for name in &self.nodes.all[node].from_args {
                self.global(name);
            }
            for secret in &captured.secrets {
                add_once(&mut self.outline.secrets, secret);
            }
            for agent in &captured.ssh {
                add_once(&mut self.outline.ssh, agent);
            }
            // The base comes before the other stages that it reads.
            let needed: Vec<NodeId> = self.nodes.needed(node).collect();
            open.extend(needed.into_iter().rev());
        }
    }

    /// A global argument, and those that its default is made of.
    fn global(&mut self, name: &str) {
        let found = self.global_args.iter().rev().find_map(|instruction| {
            let Kind::Arg(args) = &instruction.kind else {
                return None;
            };
            let (_, default) = args.iter().rfind(|(known, _)| known == name)?;
            Some((instruction, default))
        });
        let Some((instruction, default)) = found else {
            return;
        };
        if !self.known.insert(name.to_owned()) {
            return;
        }
        self.outline.args.push(OutlineArg {
            name: name.to_owned(),
            description: description(&instruction.comments, name).map(str::to_owned),
            value: self.globals.all.get(name).map(str::to_owned),
            lines: instruction.lines,
        });
        let Some(default) = default else { return };
        if let Ok(expanded) = Expander::new('\\').expand(default, &self.globals.all) {
            for used in expanded.used {
                self.global(&used);
            }
        }
    }
}
