//! The manual: `docs/cli.md` and pages for `man`, made of the same grammar that reads the command line.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Arg, Command};

use crate::command_line;

/// Writes `cli.md` and the pages of the manual into a folder.
pub(crate) fn write(folder: &Path) -> Result<ExitCode> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let document = folder.join("cli.md");
    std::fs::write(&document, markdown()).with_context(|| document.display().to_string())?;
    clap_mangen::generate_to(command_line::cli(), folder)
        .with_context(|| folder.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// The whole reference as one document.
fn markdown() -> String {
    let mut text = "# The command line\n\nMade of the program's own grammar by `cargo xtask docs`: change the grammar, not this file. \
        Where the program is\ncalled `docker`, it is docker's command line. Options that are on or off can be written `--pull=true`, too.\n\n\
        Exit codes: 0; 1 for what failed; 125 for an option that is not known, and for `kiln run` when no process could be\n\
        started; 126 when the program cannot be executed, 127 when it is not there; 130 after an interrupt; else that of the\ncontainer's process.\n"
        .to_owned();
    let cli = command_line::cli();
    let _ = writeln!(text, "\n## Options of all commands\n");
    let mut globals: Vec<&Arg> = cli
        .get_arguments()
        .filter(|arg| arg.is_global_set())
        .collect();
    globals.retain(|arg| is_shown(arg));
    options(&mut text, &globals);
    let mut known = HashMap::new();
    for command in cli.get_subcommands() {
        section(&mut text, command, "kiln", &mut known);
    }
    text
}

fn is_shown(arg: &Arg) -> bool {
    !arg.is_hide_set() && arg.get_id() != "help"
}

/// A command, and those below it. What says the same as one before is named only.
fn section(text: &mut String, command: &Command, above: &str, known: &mut HashMap<String, String>) {
    if command.is_hide_set() {
        return;
    }
    let path = format!("{above} {}", command.get_name());
    let mut aliases: Vec<_> = command.get_visible_aliases().collect();
    aliases.sort_unstable();
    let mut body = String::new();
    let arguments: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| is_shown(arg) && !arg.is_global_set())
        .collect();
    let (positional, named): (Vec<&Arg>, Vec<&Arg>) =
        arguments.into_iter().partition(|arg| arg.is_positional());
    options(&mut body, &[&*positional, &*named].concat());
    let about = command
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    let usage = positional.iter().fold(String::new(), |usage, arg| {
        let name = value_name(arg);
        let name = if arg.is_required_set() {
            name
        } else {
            format!("[{name}]")
        };
        format!("{usage} {name}")
    });
    let options = if named.is_empty() { "" } else { " [OPTIONS]" };
    let below = if command.has_subcommands() {
        " COMMAND"
    } else {
        ""
    };
    let _ = writeln!(text, "\n## {path}\n\n{about}");
    if !aliases.is_empty() {
        let _ = writeln!(text, "\nalso: {}", aliases.join(", "));
    }
    if let Some(same) = known.get(&body).filter(|_| !body.is_empty()) {
        let _ = writeln!(text, "\nthe same as `{same}`");
    } else {
        // With both it is either a command or what the arguments say.
        let usage = if positional.is_empty() {
            format!("{path}{options}{below}")
        } else if below.is_empty() {
            format!("{path}{options}{usage}")
        } else {
            format!("{path}{options}{usage}\n{path}{below}")
        };
        let _ = writeln!(text, "\n```\n{usage}\n```\n");
        text.push_str(&body);
        known.entry(body).or_insert_with(|| path.clone());
    }
    for command in command.get_subcommands() {
        section(text, command, &path, known);
    }
}

fn value_name(arg: &Arg) -> String {
    let names = arg.get_value_names().unwrap_or_default();
    let name = names
        .first()
        .map_or_else(|| arg.get_id().to_string(), ToString::to_string);
    let many = arg
        .get_num_args()
        .is_some_and(|range| range.max_values() > 1);
    format!("{}{}", name.to_uppercase(), if many { "..." } else { "" })
}

/// A table of arguments.
fn options(text: &mut String, arguments: &[&Arg]) {
    if arguments.is_empty() {
        return;
    }
    text.push_str("| | |\n|---|---|\n");
    for arg in arguments {
        let mut names = Vec::new();
        if arg.is_positional() {
            names.push(value_name(arg));
        }
        names.extend(arg.get_short().map(|short| format!("-{short}")));
        names.extend(arg.get_long().map(|long| format!("--{long}")));
        let mut name = names.join(", ");
        let takes = matches!(
            arg.get_action(),
            clap::ArgAction::Set | clap::ArgAction::Append
        );
        if takes && !arg.is_positional() {
            let _ = write!(name, " {}", value_name(arg));
        }
        let mut about = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let defaults: Vec<_> = arg
            .get_default_values()
            .iter()
            .map(|value| value.to_string_lossy())
            .collect();
        if takes && !defaults.is_empty() {
            let _ = write!(about, " [default: {}]", defaults.join(","));
        }
        if let Some(variable) = arg.get_env() {
            let _ = write!(about, " [variable: {}]", variable.to_string_lossy());
        }
        let about = about.replace('|', "\\|").replace('<', "&lt;");
        let _ = writeln!(text, "| `{name}` | {about} |");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_is_what_the_grammar_says() {
        let kept = include_str!("../../../docs/cli.md");
        let now = markdown();
        let different = kept
            .lines()
            .zip(now.lines())
            .find(|(kept, now)| kept != now);
        assert!(
            kept == now,
            "docs/cli.md is stale, run cargo xtask docs; the first difference: {different:?}"
        );
    }

    /// Help is read as one text: it begins in lower case, ends without a full stop, and is never missing.
    #[test]
    fn helps_have_one_voice() {
        fn check(command: &Command, path: &str, wrong: &mut Vec<String>) {
            let path = format!("{path} {}", command.get_name());
            let mut texts = vec![(path.clone(), command.get_about().map(ToString::to_string))];
            for arg in command.get_arguments() {
                let help = arg.get_help().map(ToString::to_string);
                texts.push((format!("{path} {}", arg.get_id()), help));
            }
            for (place, text) in texts {
                let text = text.unwrap_or_default();
                let mut letters = text.chars();
                let (first, second) = (letters.next(), letters.next());
                let capital =
                    first.is_some_and(char::is_uppercase) && second.is_some_and(char::is_lowercase);
                if capital || text.ends_with('.') || text.is_empty() {
                    wrong.push(format!("{place}: {text:?}"));
                }
            }
            for command in command.get_subcommands() {
                check(command, &path, wrong);
            }
        }
        let mut wrong = Vec::new();
        check(&command_line::cli(), "", &mut wrong);
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
