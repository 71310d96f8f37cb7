//! `kiln build --check` and `--call`: what is said of a Dockerfile instead of building it. Texts and documents are
//! docker's to the letter, so that what reads one reads the other.

mod document;
mod sarif;
mod text;

use std::path::{Component, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use kiln_dockerfile::{Diagnostic, Lines, SourceText, Warning, did_you_mean};
use kiln_engine::{Analysis, Answer, BuildError, Question};
use kiln_progress::NoSink;

use super::{build_options, display};
use crate::args::BuildArgs;
use crate::context::Place;
use crate::format::{complain, say_all};

/// What is wanted instead of a build, and in which form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Call {
    what: What,
    form: Form,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Analysis(Question),
    Describe,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Text,
    Json,
    Sarif,
}

/// What the checks found, put in order.
struct Checked<'a> {
    source: &'a SourceText,
    /// As people know the file.
    path: &'a str,
    /// Of `BuildKit`'s rules, in its order.
    warnings: Vec<&'a Warning>,
    /// Of Kiln's own rules.
    own: Vec<&'a Warning>,
    error: Option<&'a Diagnostic>,
}

impl Call {
    /// Reads `--check` and `--call`; nothing for a build.
    pub(super) fn of(args: &BuildArgs) -> Result<Option<Self>> {
        const WHATS: [&str; 5] = [
            "build",
            "check",
            "outline",
            "targets",
            "subrequests.describe",
        ];
        let mut fields = args.call.split(',');
        let name = match (args.check, fields.next().unwrap_or_default()) {
            (true, "build" | "check" | "lint") => "check",
            (true, other) => {
                let text = format!("--check and --call {other} are two questions");
                return Err(BuildError::new(text).into());
            }
            (false, name) => name,
        };
        let what = match name {
            "build" => None,
            "check" | "lint" => Some(What::Analysis(Question::Check)),
            "outline" => Some(What::Analysis(Question::Outline)),
            "targets" => Some(What::Analysis(Question::Targets)),
            "subrequests.describe" => Some(What::Describe),
            other => {
                let text = format!("--call {other}: expected {}", WHATS.join(", "));
                let hint = did_you_mean(other, WHATS);
                return Err(BuildError {
                    hint,
                    ..BuildError::new(text)
                }
                .into());
            }
        };
        let mut form = Form::Text;
        for field in fields {
            form = match field {
                "format=text" => Form::Text,
                "format=json" => Form::Json,
                "format=sarif" if name == "check" || name == "lint" => Form::Sarif,
                "format=sarif" => {
                    let text = format!("--call {name}: SARIF is a form for findings of checks");
                    return Err(BuildError::new(text)
                        .with_hint("use --call check,format=sarif")
                        .into());
                }
                other => {
                    let text = format!(
                        "--call {name},{other}: expected format=text, format=json or format=sarif"
                    );
                    return Err(BuildError::new(text).into());
                }
            };
        }
        Ok(what.map(|what| Self { what, form }))
    }

    /// Answers.
    pub(super) fn answer(self, place: &Place, args: &BuildArgs) -> Result<ExitCode> {
        let question = match self.what {
            What::Analysis(question) => question,
            What::Describe => {
                say_all(&match self.form {
                    Form::Json => document::subrequests(),
                    Form::Text | Form::Sarif => text::subrequests(),
                });
                return Ok(ExitCode::SUCCESS);
            }
        };
        let request = build_options::request(args)?;
        let engine = place.engine()?;
        let cancel = crate::signals::give_up_on_signal()?;
        // Rows of progress are noise here, unless they are asked for.
        let analysis = if args.progress == "auto" || args.quiet {
            engine.analyse(&request, question, &NoSink, &cancel)
        } else {
            let mode = display::mode(args.quiet, &args.progress)?;
            let display = kiln_progress::display(display::options(mode));
            let analysis = engine.analyse(&request, question, &display, &cancel);
            let _ = display.finish();
            analysis
        };
        match analysis {
            Ok(analysis) => Ok(self.show(&analysis)),
            Err(error) => Ok(super::build::failed(&error)),
        }
    }

    fn show(self, analysis: &Analysis) -> ExitCode {
        for note in &analysis.notes {
            complain(&format!("note: {note}"));
        }
        let source = &analysis.source;
        let json = self.form == Form::Json;
        match &analysis.answer {
            Answer::Outline(outline) if json => say_all(&document::outline(outline, source)),
            Answer::Outline(outline) => say_all(&text::outline(outline)),
            Answer::Targets(targets) if json => say_all(&document::targets(targets, source)),
            Answer::Targets(targets) => say_all(&text::targets(targets)),
            Answer::Checked(warnings, error) => {
                let path = shown_path(analysis);
                let (own, others) = warnings.iter().partition(|found| found.rule.is_own());
                let checked = Checked {
                    source,
                    path: &path,
                    warnings: others,
                    own,
                    error: error.as_deref(),
                };
                return self.show_checked(&checked);
            }
        }
        ExitCode::SUCCESS
    }

    fn show_checked(self, checked: &Checked<'_>) -> ExitCode {
        say_all(&match self.form {
            Form::Text => text::checked(checked),
            Form::Json => document::checked(checked),
            Form::Sarif => sarif::checked(checked),
        });
        if let Some(error) = checked.error {
            complain(&format!("ERROR: {error}"));
            let named = SourceText {
                name: checked.path.to_owned(),
                text: checked.source.text.clone(),
            };
            if let Some(excerpt) = error.excerpt(&named) {
                complain(excerpt.trim_end_matches('\n'));
            }
            match &error.hint {
                Some(hint) if !hint.starts_with("did you mean") => {
                    complain(&format!("hint: {hint}"));
                }
                _ => {}
            }
            complain("");
        }
        ExitCode::from(u8::from(
            !checked.warnings.is_empty() || checked.error.is_some(),
        ))
    }
}

/// The Dockerfile's path as the user would write it, without `./`.
fn shown_path(analysis: &Analysis) -> String {
    let Some(path) = &analysis.path else {
        return analysis.source.name.clone();
    };
    let parts = path
        .components()
        .filter(|part| !matches!(part, Component::CurDir));
    parts.collect::<PathBuf>().display().to_string()
}

/// The lines of something, one by one.
fn each(lines: Lines) -> impl Iterator<Item = u32> {
    lines.first..=lines.last
}
