//! Ignore files.

use crate::pattern::{PatternError, PatternMatcher, go_clean};

/// A rule of an ignore file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The line it stands on, counted from 1.
    pub line: u32,
    /// The pattern, cleaned.
    pub pattern: String,
}

/// Reads the patterns of an ignore file: comments (a `#` as the very first character), blank lines and a byte order
/// mark are left out; each pattern is trimmed, cleaned and made relative to the root.
pub fn parse(text: &[u8]) -> Vec<String> {
    rules(text).into_iter().map(|rule| rule.pattern).collect()
}

/// Like [`parse`], with the lines.
pub fn rules(text: &[u8]) -> Vec<Rule> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let lines = text.split(|&byte| byte == b'\n').zip(1..);
    lines
        .filter_map(|(text, line)| {
            Some(Rule {
                line,
                pattern: pattern(&String::from_utf8_lossy(text))?,
            })
        })
        .collect()
}

fn pattern(line: &str) -> Option<String> {
    if line.starts_with('#') {
        return None;
    }
    let trimmed = line.trim();
    if trimmed.is_empty() {
        return None;
    }
    let (mark, body) = match trimmed.strip_prefix('!') {
        Some(body) => ("!", body.trim()),
        None => ("", trimmed),
    };
    if body.is_empty() {
        return Some(mark.to_owned());
    }
    let cleaned = go_clean(body);
    let relative = if cleaned.len() > 1 {
        cleaned.strip_prefix('/').unwrap_or(&cleaned)
    } else {
        &cleaned
    };
    Some(format!("{mark}{relative}"))
}

/// Tells which rule of an ignore file keeps `path` out of the context, for the hint of an error. `None` when the path
/// is not ignored.
///
/// # Errors
/// When a pattern of the file is not well formed.
pub fn explain(text: &[u8], path: impl AsRef<[u8]>) -> Result<Option<Rule>, PatternError> {
    let decided = deciding(text, path)?;
    Ok(decided
        .filter(|&(_, ignored)| ignored)
        .map(|(rule, _)| rule))
}

/// Tells which rule of an ignore file decides about `path`, and whether it is ignored by it; `None` when none is about
/// it.
///
/// # Errors
/// When a pattern of the file is not well formed.
pub fn deciding(text: &[u8], path: impl AsRef<[u8]>) -> Result<Option<(Rule, bool)>, PatternError> {
    let mut rules = rules(text);
    let matcher = PatternMatcher::new(rules.iter().map(|rule| &rule.pattern))?;
    let decided = matcher.deciding_rule(path);
    Ok(decided.map(|(at, ignored)| (rules.swap_remove(at), ignored)))
}
