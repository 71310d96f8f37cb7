//! `DOCKER_BUILDKIT=0`: the display of docker's builder before `BuildKit`, and what it says at the end.

use kiln_dockerfile::{Kind, SourceText, parse};
use kiln_engine::{BuildRequest, Built, DockerfileFrom, Output};
use kiln_progress::{ClassicStep, Mode, Options};

use super::display;
use crate::args::BuildArgs;
use crate::context::variable;
use crate::format::say;

/// The display for a command line, if it is to be the old one. Where the Dockerfile comes from elsewhere it cannot be.
pub(super) fn options(args: &BuildArgs, request: &BuildRequest) -> Option<Options> {
    let off =
        variable("DOCKER_BUILDKIT").is_some_and(|value| matches!(value.as_str(), "0" | "false"));
    if !off || args.progress != "auto" || args.quiet {
        return None;
    }
    let DockerfileFrom::Text(dockerfile) = &request.dockerfile else {
        return None;
    };
    let source = SourceText::new(&dockerfile.name, &dockerfile.bytes);
    // The build tells what is wrong with it.
    let parsed = parse(&source).ok()?;
    let mut steps = Vec::new();
    let mut labels = Vec::new();
    for arg in &parsed.global_args {
        steps.push(ClassicStep {
            text: arg.original.clone(),
            stage: String::new(),
            number: None,
        });
    }
    for (at, stage) in parsed.stages.iter().enumerate() {
        let label = stage.name.clone().unwrap_or_else(|| format!("stage-{at}"));
        steps.push(ClassicStep {
            text: stage.original.clone(),
            stage: label.clone(),
            number: Some(1),
        });
        let mut number = 1;
        for instruction in &stage.instructions {
            let executed = matches!(
                instruction.kind,
                Kind::Run(_) | Kind::Copy(_) | Kind::Add(_) | Kind::Workdir(_)
            );
            number += usize::from(executed);
            steps.push(ClassicStep {
                text: instruction.original.clone(),
                stage: label.clone(),
                number: executed.then_some(number),
            });
        }
        labels.push(label);
    }
    let target = match &args.target {
        Some(wanted) => wanted
            .parse::<usize>()
            .ok()
            .and_then(|at| labels.get(at).cloned())
            .unwrap_or_else(|| wanted.to_lowercase()),
        None => labels.last().cloned().unwrap_or_default(),
    };
    // Global arguments stand before the first stage, and are as much part of it as anything.
    for step in &mut steps {
        if step.stage.is_empty() {
            step.stage.clone_from(&target);
        }
    }
    let mut options = display::options(Mode::Classic);
    options.out = Box::new(std::io::stdout());
    options.steps = (steps, target);
    Some(options)
}

/// The last words, which scripts look for.
pub(super) fn say_end(built: &Built, outputs: &[Output]) {
    if let Some(image) = &built.image {
        let id = crate::format::short(&image.config);
        say(&format!("Successfully built {id}"));
        for output in outputs {
            if let Output::Image { names, .. } = output {
                for name in names {
                    say(&format!("Successfully tagged {}", name.familiar()));
                }
            }
        }
    }
}
