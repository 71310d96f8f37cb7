//! From text to logical lines: directives, comments, continuations, here-documents.

use crate::heredoc::Heredoc;
use crate::lint::{Rule, Warning};
use crate::{Lines, words};

/// The longest line, in bytes without its end, that is read: `BuildKit`'s limit, so that a file works in both or neither.
const MAX_LINE: usize = 65_535;

/// An instruction before anything but its first word and flags is understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logical {
    /// The first word as written.
    pub keyword: String,
    /// The flags, with their dashes.
    pub flags: Vec<String>,
    /// What follows the flags, without blanks around it.
    pub arguments: String,
    /// The joined lines, without blanks around them and without bodies of here-documents.
    pub original: String,
    /// From the first word to the end of the last here-document.
    pub lines: Lines,
    /// The comment lines since the instruction before, without their signs; an empty one is an empty text.
    pub comments: Vec<String>,
    /// The here-documents in order.
    pub heredocs: Vec<Heredoc>,
}

/// The directives at the top of a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Directives {
    /// `syntax`, and its line.
    pub syntax: Option<(String, u32)>,
    /// `check`, and its line.
    pub check: Option<(String, u32)>,
    /// `escape`.
    pub escape: Option<char>,
}

/// A whole file in logical lines.
#[derive(Debug, Default)]
pub(crate) struct Lexed {
    pub directives: Directives,
    pub logical: Vec<Logical>,
    pub warnings: Vec<Warning>,
}

/// What is wrong, and where.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LexError {
    pub lines: Option<Lines>,
    pub message: String,
}

impl LexError {
    fn at(line: u32, message: impl Into<String>) -> Self {
        Self {
            lines: Some(Lines::one(line)),
            message: message.into(),
        }
    }
}

struct Input<'a> {
    rest: &'a str,
    line: u32,
}

impl<'a> Input<'a> {
    /// The next line with its end.
    fn next(&mut self) -> Result<Option<&'a str>, LexError> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        self.line += 1;
        let end = self.rest.find('\n').map_or(self.rest.len(), |at| at + 1);
        let (line, rest) = self.rest.split_at(end);
        self.rest = rest;
        if line.trim_end_matches('\n').len() > MAX_LINE {
            let message = format!("dockerfile line greater than max allowed size of {MAX_LINE}");
            return Err(LexError::at(self.line, message));
        }
        Ok(Some(line))
    }
}

/// Reads a whole file. What was read before an error is kept.
pub(crate) fn lex(text: &str, lexed: &mut Lexed) -> Result<(), LexError> {
    let mut input = Input {
        rest: text.strip_prefix('\u{feff}').unwrap_or(text),
        line: 0,
    };
    let mut comments: Vec<String> = Vec::new();
    let mut in_directives = true;
    while let Some(line) = input.next()? {
        let line = trim_line_end(line).trim_start();
        if in_directives {
            in_directives = directive(line, input.line, &mut lexed.directives)?;
            if in_directives {
                continue;
            }
        }
        if let Some(comment) = line.strip_prefix('#') {
            comments.push(comment.trim().to_owned());
            continue;
        }
        if line.is_empty() {
            continue;
        }
        let escape = lexed.directives.escape.unwrap_or('\\');
        let first = input.line;
        let mut joined = String::new();
        let mut gap = false;
        let mut open = append(&mut joined, line, escape);
        while open {
            let Some(line) = input.next()? else { break };
            let line = trim_line_end(line);
            let start = line.trim_start();
            if start.starts_with('#') {
                continue;
            }
            if start.is_empty() {
                gap = true;
                continue;
            }
            open = append(&mut joined, line, escape);
        }
        let original = joined.trim();
        if gap {
            lexed.warnings.push(Warning {
                rule: Rule::NoEmptyContinuation,
                message: "Empty continuation line".to_owned(),
                lines: Lines::one(input.line),
            });
        }
        if original.is_empty() {
            continue;
        }
        let (keyword, rest) = original
            .split_once(words::is_blank)
            .unwrap_or((original, ""));
        let (flags, arguments) = words::flags(rest, escape);
        let mut heredocs = if may_have_heredocs(keyword, arguments, escape) {
            Heredoc::find(original)
        } else {
            Vec::new()
        };
        for heredoc in &mut heredocs {
            loop {
                let Some(line) = input.next()? else {
                    return Err(LexError {
                        lines: Some(Lines {
                            first,
                            last: input.line,
                        }),
                        message: "unterminated heredoc".to_owned(),
                    });
                };
                if heredoc.ends_at(line) {
                    break;
                }
                heredoc.body.push_str(line);
            }
        }
        lexed.logical.push(Logical {
            keyword: keyword.to_owned(),
            flags,
            arguments: arguments.trim().to_owned(),
            lines: Lines {
                first,
                last: input.line,
            },
            comments: std::mem::take(&mut comments),
            heredocs,
            original: original.to_owned(),
        });
    }
    if lexed.logical.is_empty() {
        let message = if text.is_empty() {
            "the Dockerfile cannot be empty"
        } else {
            "file with no instructions"
        };
        return Err(LexError {
            lines: None,
            message: message.to_owned(),
        });
    }
    Ok(())
}

fn trim_line_end(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

/// Appends a line without its continuation mark. Whether it had one.
fn append(joined: &mut String, line: &str, escape: char) -> bool {
    let end = line.trim_end_matches([' ', '\t']);
    match end.strip_suffix(escape) {
        Some(before) if !before.ends_with(escape) => {
            joined.push_str(before);
            true
        }
        _ => {
            joined.push_str(line);
            false
        }
    }
}

/// Whether the instruction is one that takes here-documents. The form of a JSON array takes none.
fn may_have_heredocs(keyword: &str, arguments: &str, escape: char) -> bool {
    let is = |name: &str| keyword.eq_ignore_ascii_case(name);
    if is("ONBUILD") {
        let (keyword, rest) = arguments
            .split_once(words::is_blank)
            .unwrap_or((arguments, ""));
        let (_, arguments) = words::flags(rest, escape);
        return !keyword.eq_ignore_ascii_case("ONBUILD")
            && may_have_heredocs(keyword, arguments, escape);
    }
    (is("RUN") || is("COPY") || is("ADD"))
        && !matches!(words::json(arguments), words::Json::Strings(_))
}

/// Reads a line as a directive. Whether the next line may be one too.
fn directive(line: &str, number: u32, directives: &mut Directives) -> Result<bool, LexError> {
    let Some((key, value)) = split_directive(line) else {
        return Ok(false);
    };
    let key = key.to_lowercase();
    let known = match key.as_str() {
        "syntax" => directives
            .syntax
            .replace((value.to_owned(), number))
            .is_some(),
        "check" => directives
            .check
            .replace((first_word(value).to_owned(), number))
            .is_some(),
        "escape" => {
            let char = match value {
                "\\" => '\\',
                "`" => '`',
                other => {
                    let message = format!("invalid escape token '{other}' does not match ` or \\");
                    return Err(LexError::at(number, message));
                }
            };
            directives.escape.replace(char).is_some()
        }
        _ => return Ok(false),
    };
    if known {
        return Err(LexError::at(
            number,
            format!("only one {key} parser directive can be used"),
        ));
    }
    Ok(true)
}

/// The settings of the checks end at the first blank, as in `BuildKit`.
fn first_word(value: &str) -> &str {
    value.split_whitespace().next().unwrap_or_default()
}

/// `# key = value`.
fn split_directive(line: &str) -> Option<(&str, &str)> {
    let (key, value) = line.strip_prefix('#')?.split_once('=')?;
    let (key, value) = (key.trim(), value.trim());
    let proper = key.starts_with(|char: char| char.is_ascii_alphabetic())
        && key.chars().all(|char| char.is_ascii_alphanumeric());
    (proper && !value.is_empty()).then_some((key, value))
}
