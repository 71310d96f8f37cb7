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
}

/// The message with its hint in brackets.
impl fmt::Display for Diagnostic {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(out, " ({hint})"),
            None => Ok(()),
        }
    }
}

impl Diagnostic {
    /// The lines it is about in `BuildKit`'s form, or `None` when it points nowhere.
    pub fn excerpt(&self, source: &SourceText) -> Option<String> {
        excerpt(source, self.lines?)
    }
}

/// An excerpt of `source` around `lines`, as buildx prints it below an error: the file and line, a rule, the numbered
/// lines with marks, a rule. `None` when the text has no such lines.
pub fn excerpt(source: &SourceText, lines: Lines) -> Option<String> {
    const RULE: &str = "--------------------";
    let all: Vec<&str> = source.text.lines().collect();
    let (first, last) = (lines.first as usize, (lines.last as usize).min(all.len()));
    if first == 0 || first > last {
        return None;
    }
    let margin = if first == last { 4 } else { 2 };
    // The margin shrinks in turn at both ends until the excerpt has no more lines than the margin was meant to add.
    let (mut start, mut end) = (first, last);
    let mut added = 0;
    while added < margin {
        let before = added;
        if end < all.len() {
            end += 1;
            added += 1;
        }
        if start > 1 {
            start -= 1;
            added += 1;
        }
        if added == before {
            break;
        }
    }
    let mut text = format!("{}:{first}\n{RULE}\n", source.name);
    for (number, line) in (start..=end).zip(&all[start - 1..end]) {
        let mark = if (first..=last).contains(&number) {
            ">>>"
        } else {
            "   "
        };
        // Writing into a string cannot fail.
        let _ = writeln!(text, "{number:>4} | {mark} {line}");
    }
    text.push_str(RULE);
    text.push('\n');
    Some(text)
}
