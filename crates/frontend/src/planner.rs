//! The way from text to plan.

use std::collections::BTreeSet;

use kiln_dockerfile::{
    Diagnostic, Dockerfile, Kind, Lines, SourceText, Warning, is_other_frontend, other_frontend,
    own_checks, parse_checked,
};
use kiln_graph::{Edge, Graph, Op, OpId, OpKind};

use crate::args::{self, Globals};
use crate::build::Builder;
use crate::checks::Checks;
use crate::outline::{self, Outline};
use crate::sources::{Bases, Missing};
use crate::stages::{NodeId, Nodes, Origin};
use crate::{Facts, Need, Options, Plan};

/// What the Dockerfile is read for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To build the target.
    Build,
    /// To check every stage; only those of the target when one is named.
    Check,
    /// To tell what the target takes.
    Outline,
}

/// What came of it.
pub(crate) enum Done {
    Needs(Vec<Need>),
    Plan(Box<Plan>),
    Checked,
    Outline(Outline),
}

/// Reads a Dockerfile. `warnings` becomes what the checks found, also when something is wrong.
pub(crate) fn run(
    source: &SourceText,
    options: &Options,
    facts: &Facts,
    purpose: Purpose,
    warnings: &mut Vec<Warning>,
) -> Result<Done, Box<Diagnostic>> {
    if let Some(image) = options.build_args.get("BUILDKIT_SYNTAX")
        && is_other_frontend(image)
    {
        let refusal = other_frontend(image);
        return Err(Box::new(Diagnostic {
            file: source.name.clone(),
            lines: None,
            message: format!("build argument BUILDKIT_SYNTAX: {}", refusal.message),
            hint: refusal.hint,
            about: None,
        }));
    }
    let parsed = parse_checked(source);
    let check_arg = options
        .build_args
        .get("BUILDKIT_DOCKERFILE_CHECK")
        .map(String::as_str);
    let mut checks = Checks::new(parsed.check.as_ref(), check_arg)
        .map_err(|(message, lines)| wrong(source, lines, message))?;
    checks.extend(parsed.warnings);
    let done = parsed.dockerfile.and_then(|dockerfile| {
        let own = own_checks(&dockerfile);
        let done = read(source, dockerfile, options, facts, purpose, &mut checks)?;
        checks.extend(own);
        Ok(done)
    });
    let done = match done {
        Ok(done) if !matches!(done, Done::Needs(_)) => checks.verdict(&source.name).map(|()| done),
        done => done,
    };
    *warnings = checks.take();
    done
}

#[expect(clippy::unnecessary_box_returns, reason = "every caller wants the box")]
fn wrong(source: &SourceText, lines: Option<Lines>, message: String) -> Box<Diagnostic> {
    let line = lines.and_then(|lines| source.text.lines().nth(lines.first as usize - 1));
    Box::new(Diagnostic {
        file: source.name.clone(),
        lines,
        message,
        hint: None,
        about: line.map(str::to_owned),
    })
}

fn read(
    source: &SourceText,
    dockerfile: Dockerfile,
    options: &Options,
    facts: &Facts,
    purpose: Purpose,
    checks: &mut Checks,
) -> Result<Done, Box<Diagnostic>> {
    let last = dockerfile
        .stages
        .last()
        .and_then(|stage| stage.name.as_deref());
    let target_name = options
        .target
        .as_deref()
        .or(last)
        .unwrap_or_default()
        .to_owned();
    let globals = Globals::new(
        &dockerfile.global_args,
        dockerfile.escape,
        options,
        &target_name,
    )
    .map_err(|(lines, message)| wrong(source, Some(lines), message))?;
    let epoch = match (
        options.source_date_epoch,
        args::effective(options, &globals, "SOURCE_DATE_EPOCH"),
    ) {
        (Some(epoch), _) => Some(epoch),
        (None, Some("") | None) => None,
        (None, Some(text)) => Some(text.parse().map_err(|_| {
            let message =
                format!("invalid SOURCE_DATE_EPOCH: {text:?}: expected seconds since 1970");
            wrong(source, None, message)
        })?),
    };
    let escape = dockerfile.escape;
    let global_args = (purpose == Purpose::Outline).then(|| dockerfile.global_args.clone());
    let mut nodes = Nodes::new(dockerfile, &source.name, &globals, options, checks)?;
    let target = nodes.target()?;
    let bases = Bases { options, facts };
    let all = purpose == Purpose::Check && options.target.is_none();
    let wanted = |nodes: &Nodes<'_>| {
        if all {
            let stages = 0..nodes.stage_count();
            stages.flat_map(|stage| nodes.reachable(stage)).collect()
        } else {
            nodes.reachable(target)
        }
    };
    let needs = resolve(&mut nodes, &wanted, bases, &source.name)?;
    if !needs.is_empty() {
        return Ok(Done::Needs(needs));
    }
    let reachable: BTreeSet<NodeId> = wanted(&nodes);
    let mut builder = Builder::new(&nodes, bases, &globals, checks, escape, &source.name, epoch);
    // What is no stage needs nothing and is needed by stages.
    let order = || {
        let stages = reachable.range(..nodes.stage_count());
        reachable.range(nodes.stage_count()..).chain(stages)
    };
    for &node in order() {
        builder.check_base_platform(node);
    }
    for &node in order() {
        builder.build(node)?;
    }
    builder.check_build_args(target, &reachable);
    if let Some(global_args) = global_args {
        let outline = outline::of(&nodes, target, &global_args, &globals, &builder.captured);
        return Ok(Done::Outline(outline));
    }
    let (graph, state) = builder.finish(target);
    if purpose == Purpose::Check {
        return Ok(Done::Checked);
    }
    let (graph, result) = prune(&graph, state.edge);
    let mut config = state.config;
    config.config.labels.extend(options.labels.clone());
    if options.platform_requested {
        let platform = &options.target_platform;
        let same = config.os == platform.os && config.architecture == platform.architecture;
        if !same || !platform.variant.is_empty() {
            config.variant.clone_from(&platform.variant);
        }
        config.os.clone_from(&platform.os);
        config.architecture.clone_from(&platform.architecture);
    }
    let skipped = (0..nodes.stage_count()).filter(|node| !reachable.contains(node));
    Ok(Done::Plan(Box::new(Plan {
        graph,
        result,
        platform: config.platform(),
        config,
        base_layers: state.base_layers,
        stage: nodes.all[target].label.clone(),
        skipped: skipped.map(|node| nodes.all[node].label.clone()).collect(),
        warnings: Vec::new(),
        source_date_epoch: epoch,
    })))
}

/// Finds out what is needed, and adds the triggers of the bases that are known, which may need more.
fn resolve(
    nodes: &mut Nodes<'_>,
    wanted: &dyn Fn(&Nodes<'_>) -> BTreeSet<NodeId>,
    bases: Bases<'_>,
    file: &str,
) -> Result<Vec<Need>, Box<Diagnostic>> {
    loop {
        let mut needs: Vec<Need> = Vec::new();
        let mut more = false;
        let mut missing = |missing: Missing, lines: Lines| match missing {
            Missing::Need(need) => {
                let need = *need;
                // The same image may be wanted at several places: the first one counts.
                let same = |known: &Need| match (known, &need) {
                    (
                        Need::ImageConfig {
                            reference: a,
                            platform: b,
                            ..
                        },
                        Need::ImageConfig {
                            reference: c,
                            platform: d,
                            ..
                        },
                    ) => (a, b) == (c, d),
                    (known, need) => known == need,
                };
                if !needs.iter().any(same) {
                    needs.push(need);
                }
                Ok(())
            }
            Missing::Wrong(message) => Err(Box::new(Diagnostic {
                file: file.to_owned(),
                lines: Some(lines),
                message,
                hint: None,
                about: None,
            })),
        };
        for node in wanted(nodes) {
            if let Some(lines) = uses_main_context(nodes, node)
                && let Err(error) = bases.main_context()
            {
                missing(error, lines)?;
            }
            let triggers = match nodes.all[node].origin {
                Origin::Stage(base) => nodes.triggers(base),
                _ => match bases.base(nodes, node) {
                    Ok(base) => base.config.config.on_build,
                    Err(error) => {
                        missing(error, nodes.all[node].lines)?;
                        continue;
                    }
                },
            };
            more |= nodes.add_triggers(node, &triggers)?;
        }
        if !more {
            return Ok(needs);
        }
    }
}

/// The first instruction of a node that reads the main context.
fn uses_main_context(nodes: &Nodes<'_>, node: NodeId) -> Option<Lines> {
    let reads = nodes.all[node]
        .steps
        .iter()
        .find(|step| match &step.instruction.kind {
            Kind::Copy(copy) => copy.from.is_none() && !copy.sources.is_empty(),
            Kind::Add(add) => add
                .sources
                .iter()
                .any(|source| !crate::copy::is_remote(source)),
            // Without `from` a bind mount shows the context; the type may hide in a variable, so every mount counts.
            Kind::Run(run) => run
                .mount_sources
                .iter()
                .zip(&run.mounts)
                .any(|(from, text)| {
                    let text = text.to_lowercase();
                    let other = ["type=cache", "type=tmpfs", "type=secret", "type=ssh"];
                    from.is_none() && !other.iter().any(|kind| text.contains(kind))
                }),
            _ => false,
        })?;
    Some(reads.instruction.lines)
}

/// The part of a graph that `result` needs.
fn prune(graph: &Graph, result: Option<Edge>) -> (Graph, Option<Edge>) {
    let mut wanted = vec![false; graph.len()];
    if let Some(edge) = result {
        wanted[edge.op.0] = true;
    }
    for (id, op) in graph.ops().rev() {
        if wanted[id.0] {
            op.inputs.iter().for_each(|input| wanted[input.op.0] = true);
        }
    }
    let mut kept = Graph::default();
    let mut moved: Vec<Option<OpId>> = vec![None; graph.len()];
    let follow =
        |edge: &Edge, moved: &[Option<OpId>]| moved[edge.op.0].map(|op| Edge { op, ..*edge });
    for (id, op) in graph.ops().filter(|(id, _)| wanted[id.0]) {
        let inputs = op
            .inputs
            .iter()
            .filter_map(|input| follow(input, &moved))
            .collect();
        moved[id.0] = Some(kept.add(Op {
            inputs,
            ..op.clone()
        }));
    }
    debug_assert!(
        kept.ops()
            .all(|(_, op)| !matches!(&op.kind, OpKind::Merge) || op.inputs.len() > 1)
    );
    let result = result.and_then(|edge| follow(&edge, &moved));
    (kept, result)
}
