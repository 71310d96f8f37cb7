//! `kiln explain-ignore`: which rule keeps a file out of a build.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use kiln_engine::BuildError;
use kiln_source::ignore::{deciding, rules};

use crate::args::ExplainIgnoreArgs;
use crate::format::say;

pub(super) fn explain(args: &ExplainIgnoreArgs) -> Result<ExitCode> {
    let context = args
        .context
        .canonicalize()
        .with_context(|| format!("--context {}", args.context.display()))?;
    let file = ignore_file(&context, args.file.as_deref())?;
    for path in &args.paths {
        let inside = inside(&context, path)?;
        let shown = inside.display();
        // What is not there yet may be asked about, too.
        let place = match context.join(&inside).symlink_metadata() {
            Ok(_) => "in the context",
            Err(_) => "not there",
        };
        let Some((name, text)) = &file else {
            say(&format!("{shown}: {place}: there is no .dockerignore"));
            continue;
        };
        if inside.as_os_str().is_empty() {
            say(".: in the context: the folder itself cannot be ignored");
            continue;
        }
        let decided =
            deciding(text, inside.as_os_str().as_encoded_bytes()).with_context(|| name.clone())?;
        say(&match decided {
            Some((rule, true)) => {
                format!(
                    "{shown}: ignored by {} ({name}:{})",
                    rule.pattern, rule.line
                )
            }
            Some((rule, false)) => {
                format!(
                    "{shown}: {place}, taken back by {} ({name}:{})",
                    rule.pattern, rule.line
                )
            }
            None => {
                let count = rules(text).len();
                format!("{shown}: {place}: none of the {count} rules of {name} is about it")
            }
        });
    }
    Ok(ExitCode::SUCCESS)
}

/// The ignore file that a build would read: the Dockerfile's own, else the context's.
fn ignore_file(context: &Path, dockerfile: Option<&Path>) -> Result<Option<(String, Vec<u8>)>> {
    let dockerfile = dockerfile.map_or_else(|| context.join("Dockerfile"), Path::to_owned);
    let mut own = dockerfile.into_os_string();
    own.push(".dockerignore");
    for path in [PathBuf::from(own), context.join(".dockerignore")] {
        match std::fs::read(&path) {
            Ok(text) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                return Ok(Some((name.into_owned(), text)));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(path.display().to_string()),
        }
    }
    Ok(None)
}

/// A path below the context, as the rules see it. It need not be there, but its folder must be.
fn inside(context: &Path, path: &Path) -> Result<PathBuf> {
    let outside = || {
        BuildError::new(format!(
            "{} is not below the context {}",
            path.display(),
            context.display()
        ))
        .with_hint("name the context with --context DIR")
    };
    // Below the context first, as COPY would take it; then as the shell sees it.
    for base in [context.to_owned(), std::env::current_dir()?] {
        let whole = base.join(path);
        let name = whole.file_name().map(PathBuf::from).unwrap_or_default();
        let folder = match whole.parent() {
            Some(parent) if !name.as_os_str().is_empty() => parent,
            _ => &whole,
        };
        let Ok(folder) = folder.canonicalize() else {
            continue;
        };
        if let Ok(relative) = folder.join(name).strip_prefix(context) {
            return Ok(relative.to_owned());
        }
    }
    Err(outside().into())
}
