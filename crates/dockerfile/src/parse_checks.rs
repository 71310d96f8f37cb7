//! The checks that need nothing but the text.

use std::collections::HashSet;

use crate::ast::{Instruction, Kind, Stage};
use crate::lexer::Logical;
use crate::lint::{Rule, Warning};
use crate::words;

fn is_lower(word: &str) -> bool {
    !word.chars().any(char::is_uppercase)
}

fn is_upper(word: &str) -> bool {
    !word.chars().any(char::is_lowercase)
}

pub(crate) fn check_casing(all: &[Logical], warnings: &mut Vec<Warning>) {
    let upper = all
        .iter()
        .filter(|logical| is_upper(&logical.keyword))
        .count();
    let lower = all
        .iter()
        .filter(|logical| is_lower(&logical.keyword))
        .count();
    let (wanted, is_wanted): (&str, fn(&str) -> bool) = if lower > upper {
        ("lowercase", is_lower)
    } else {
        ("uppercase", is_upper)
    };
    for logical in all.iter().filter(|logical| !is_wanted(&logical.keyword)) {
        warnings.push(Warning {
            rule: Rule::ConsistentInstructionCasing,
            message: format!(
                "Command '{}' should match the case of the command majority ({wanted})",
                logical.keyword
            ),
            lines: logical.lines,
        });
    }
}

pub(crate) fn check_stage(logical: &Logical, stage: &Stage, warnings: &mut Vec<Warning>) {
    let mut warn = |rule, message| {
        warnings.push(Warning {
            rule,
            message,
            lines: logical.lines,
        });
    };
    let words = words::blanks(&logical.arguments);
    let (Some(name), [_, keyword, written]) = (&stage.name, &words[..]) else {
        return;
    };
    if !is_lower(written) {
        warn(
            Rule::StageNameCasing,
            format!("Stage name '{written}' should be lowercase"),
        );
    }
    let differs = (is_lower(&logical.keyword) && !is_lower(keyword))
        || (is_upper(&logical.keyword) && !is_upper(keyword));
    if differs {
        warn(
            Rule::FromAsCasing,
            format!(
                "'{keyword}' and '{}' keywords' casing do not match",
                logical.keyword
            ),
        );
    }
    if let Some(message) = odd_description("FROM", &[name], &stage.comments) {
        warn(Rule::InvalidDefinitionDescription, message);
    }
    if matches!(name.as_str(), "context" | "scratch") {
        warn(
            Rule::ReservedStageName,
            format!("Stage name should not use the same name as reserved stage {name:?}"),
        );
    }
}

pub(crate) fn check_duplicates(stages: &[Stage], warnings: &mut Vec<Warning>) {
    let mut known = HashSet::new();
    for stage in stages {
        let Some(name) = &stage.name else { continue };
        if !known.insert(name) {
            warnings.push(Warning {
                rule: Rule::DuplicateStageName,
                message: format!("Duplicate stage name {name:?}, stage names should be unique"),
                lines: stage.lines,
            });
        }
    }
}

pub(crate) fn check_instruction(instruction: &Instruction, warnings: &mut Vec<Warning>) {
    let mut warn = |rule, message| {
        warnings.push(Warning {
            rule,
            message,
            lines: instruction.lines,
        });
    };
    match &instruction.kind {
        Kind::Maintainer(_) => {
            warn(
                Rule::MaintainerDeprecated,
                "Maintainer instruction is deprecated in favor of using label".to_owned(),
            );
        }
        Kind::Arg(args) => {
            let names: Vec<&String> = args.iter().map(|(name, _)| name).collect();
            if let Some(message) = odd_description("ARG", &names, &instruction.comments) {
                warn(Rule::InvalidDefinitionDescription, message);
            }
        }
        _ => {}
    }
}

/// A comment right above a definition that does not describe it in the way that tools read.
fn odd_description(what: &str, names: &[&String], comments: &[String]) -> Option<String> {
    let last = comments.last().filter(|last| !last.is_empty())?;
    let first = last.split(' ').next().unwrap_or_default();
    if names.iter().any(|name| *name == first) {
        return None;
    }
    let example = if let [name] = names {
        name.as_str()
    } else {
        "<arg_key>"
    };
    Some(format!(
        "Comment for {what} should follow the format: `# {example} <description>`"
    ))
}
