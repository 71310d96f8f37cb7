//! Errors and warnings that point into a Dockerfile, and the excerpt that shows where.

use std::fmt::{self, Write as _};

/// The text of a Dockerfile and the name it is shown under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceText {
    /// The file's name as messages show it: `Dockerfile`, `docker/app.Dockerfile`.
    pub name: String,
    /// Everything in the file.
    pub text: String,
}

impl SourceText {
    /// Takes the bytes of a file. Bytes that are not UTF-8 are replaced, since arguments and paths of a build are UTF-8.
    pub fn new(name: impl Into<String>, bytes: impl AsRef<[u8]>) -> Self {
        Self {
            name: name.into(),
            text: String::from_utf8_lossy(bytes.as_ref()).into_owned(),
        }
    }
}

/// The lines of something, counted from 1, first and last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lines {
    /// The first line.
    pub first: u32,
    /// The last line; the same as the first for something on one line.
    pub last: u32,
}

impl Lines {
    /// A single line.
    pub fn one(line: u32) -> Self {
        Self {
            first: line,
            last: line,
        }
    }
}

/// What is wrong with a Dockerfile, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Diagnostic {
    /// Name of the file.
    pub file: String,
    /// Where; `None` when it is about no line in particular.
    pub lines: Option<Lines>,
    /// What is wrong: one sentence, lower case, no full stop.
    pub message: String,
    /// What would help: `did you mean FROM?`.
    pub hint: Option<String>,
    /// The piece of the lines that is wrong, as written.
    pub about: Option<String>,
}

/// The message, with a near name in brackets as `BuildKit` has it; other hints are for those who show them apart.
impl fmt::Display for Diagnostic {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)?;
        match &self.hint {
            Some(hint) if hint.starts_with("did you mean") => write!(out, " ({hint})"),
            _ => Ok(()),
        }
    }
}

impl Diagnostic {
    /// The lines it is about in `BuildKit`'s form, with the piece underlined that is wrong where that is known, or
    /// `None` when it points nowhere.
    pub fn excerpt(&self, source: &SourceText) -> Option<String> {
        marked_excerpt(source, self.lines?, self.span(source))
    }

    /// The piece that is wrong.
    pub fn span(&self, source: &SourceText) -> Option<Span> {
        locate(source, self.lines?, self.about.as_deref()?)
    }
}

/// A piece of one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// The line, counted from 1.
    pub line: u32,
    /// The first column in characters, counted from 1.
    pub first: u32,
    /// The column after the last one.
    pub end: u32,
}

/// Finds a piece of text in some lines: where it stands alone if there is such a place, else where it first occurs.
/// A text that was joined from several lines is found by its first one.
pub fn locate(source: &SourceText, lines: Lines, piece: &str) -> Option<Span> {
    let piece = piece.lines().next()?.trim();
    if piece.is_empty() {
        return None;
    }
    let part_of_word = |char: char| char.is_alphanumeric() || matches!(char, '_' | '-');
    let mut loose = None;
    let all = source.text.lines().zip(1..);
    for (text, line) in all.filter(|(_, line)| (lines.first..=lines.last).contains(line)) {
        if text.trim_start().starts_with('#') && lines.first != line {
            continue;
        }
        for (at, _) in text.match_indices(piece) {
            let (before, after) = (&text[..at], &text[at + piece.len()..]);
            let first = before.chars().count() as u32 + 1;
            let span = Span {
                line,
                first,
                end: first + piece.chars().count() as u32,
            };
            if !before.ends_with(part_of_word) && !after.starts_with(part_of_word) {
                return Some(span);
            }
            loose.get_or_insert(span);
        }
    }
    loose
}

/// An excerpt of `source` around `lines`, as buildx prints it below an error: the file and line, a rule, the numbered
/// lines with marks, a rule. `None` when the text has no such lines.
pub fn excerpt(source: &SourceText, lines: Lines) -> Option<String> {
    marked_excerpt(source, lines, None)
}

/// An [`excerpt`] with a piece underlined.
pub fn marked_excerpt(source: &SourceText, lines: Lines, span: Option<Span>) -> Option<String> {
    const RULE: &str = "--------------------";
    // A line end at the end of the file makes a last, empty line here: so does buildx.
    let all: Vec<&str> = source
        .text
        .split('\n')
        .map(|line| line.strip_suffix('\r').unwrap_or(line))
        .collect();
    let (first, last) = (lines.first as usize, (lines.last as usize).min(all.len()));
    if first == 0 || first > last {
        return None;
    }
    let margin = if first == last { 2 } else { 1 };
    let start = first.saturating_sub(margin).max(1);
    let end = (last + margin).min(all.len());
    let mut text = format!("{}:{first}\n{RULE}\n", source.name);
    for (number, line) in (start..=end).zip(&all[start - 1..end]) {
        let mark = if (first..=last).contains(&number) {
            ">>>"
        } else {
            "   "
        };
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{number:>4} | {mark} {line}");
        if let Some(span) = span.filter(|span| span.line as usize == number) {
            // Tabs stay, so that the marks stand below what they mark.
            let before = line.chars().take(span.first as usize - 1);
            let blank: String = before
                .map(|char| if char == '\t' { '\t' } else { ' ' })
                .collect();
            let marks = "^".repeat((span.end - span.first) as usize);
            let _ = writeln!(text, "     |     {blank}{marks}");
        }
    }
    text.push_str(RULE);
    text.push('\n');
    Some(text)
}
