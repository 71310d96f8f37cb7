//! The text of a template, cut into what is copied and the words of its actions.

use crate::Fault;

/// A word of an action.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Word {
    /// `.Name`
    Field(String),
    /// `.`
    Dot,
    /// `$name`, without the sign.
    Variable(String),
    /// A function's name or a keyword.
    Name(String),
    Text(String),
    Int(i64),
    Float(f64),
    Pipe,
    Open,
    Close,
    Comma,
    /// `:=`
    Declare,
    /// `=`
    Assign,
}

/// A word with its place.
#[derive(Debug, Clone)]
pub(crate) struct Token {
    pub(crate) word: Word,
    pub(crate) at: usize,
    /// Nothing is between it and the word before.
    pub(crate) glued: bool,
}

/// A part of a template.
#[derive(Debug)]
pub(crate) enum Part {
    Text(String),
    Action { tokens: Vec<Token>, at: usize },
}

/// Cuts a template.
pub(crate) fn parts(text: &str) -> Result<Vec<Part>, Fault> {
    const SPACE: [char; 4] = [' ', '\t', '\r', '\n'];
    let mut parts = Vec::new();
    let mut at = 0;
    let mut trim = false;
    while at < text.len() {
        let open = text[at..].find("{{").map(|open| at + open);
        let mut plain = &text[at..open.unwrap_or(text.len())];
        if trim {
            plain = plain.trim_start_matches(SPACE);
        }
        let Some(open) = open else {
            parts.push(Part::Text(plain.to_owned()));
            break;
        };
        let inside = &text[open + 2..];
        let left = inside.starts_with('-') && inside[1..].starts_with(SPACE);
        if left {
            plain = plain.trim_end_matches(SPACE);
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain.to_owned()));
        }
        let start = open + 2 + usize::from(left);
        let begin = start + text[start..].len() - text[start..].trim_start_matches(SPACE).len();
        let end = if text[begin..].starts_with("/*") {
            let close = text[begin..]
                .find("*/")
                .ok_or_else(|| Fault::new(begin, "the comment does not end"))?;
            begin + close + 2
        } else {
            let (tokens, end) = words(text, start, open)?;
            parts.push(Part::Action { tokens, at: open });
            end
        };
        let rest = &text[end..];
        let behind = rest.trim_start_matches(SPACE);
        let spaces = rest.len() - behind.len();
        trim = spaces > 0 && behind.starts_with("-}}");
        if !trim && !behind.starts_with("}}") {
            return Err(Fault::new(open, "the action does not end: }} is missing"));
        }
        at = end + spaces + if trim { 3 } else { 2 };
    }
    Ok(parts)
}

/// The words from `start` up to the end of the action, and where that is.
fn words(text: &str, start: usize, open: usize) -> Result<(Vec<Token>, usize), Fault> {
    let mut tokens: Vec<Token> = Vec::new();
    let mut at = start;
    let mut glued = false;
    loop {
        let rest = &text[at..];
        let Some(letter) = rest.chars().next() else {
            return Err(Fault::new(open, "the action does not end: }} is missing"));
        };
        if rest.starts_with("}}") {
            return Ok((tokens, at));
        }
        if letter.is_ascii_whitespace() {
            if rest.trim_start().starts_with("-}}") {
                return Ok((tokens, at));
            }
            at += 1;
            glued = false;
            continue;
        }
        let (word, length) = word(rest, at)?;
        tokens.push(Token { word, at, glued });
        at += length;
        glued = true;
    }
}

fn is_letter(letter: char) -> bool {
    letter == '_' || letter.is_alphanumeric()
}

fn word(rest: &str, at: usize) -> Result<(Word, usize), Fault> {
    let name = |from: usize| {
        let end = rest[from..].find(|letter| !is_letter(letter));
        &rest[from..end.map_or(rest.len(), |end| from + end)]
    };
    let mut letters = rest.chars();
    let (first, second) = (letters.next().unwrap_or_default(), letters.next());
    Ok(match first {
        '|' => (Word::Pipe, 1),
        '(' => (Word::Open, 1),
        ')' => (Word::Close, 1),
        ',' => (Word::Comma, 1),
        '=' => (Word::Assign, 1),
        ':' if second == Some('=') => (Word::Declare, 2),
        '$' => (Word::Variable(name(1).to_owned()), 1 + name(1).len()),
        '.' if second.is_some_and(|letter| letter.is_ascii_digit()) => number(rest, at)?,
        '.' if second.is_some_and(is_letter) => {
            (Word::Field(name(1).to_owned()), 1 + name(1).len())
        }
        '.' => (Word::Dot, 1),
        '`' => {
            let end = rest[1..]
                .find('`')
                .ok_or_else(|| Fault::new(at, "the text does not end: ` is missing"))?;
            (Word::Text(rest[1..=end].to_owned()), end + 2)
        }
        '"' => quoted(rest, at, '"')?,
        '\'' => {
            let (word, length) = quoted(rest, at, '\'')?;
            let Word::Text(text) = &word else {
                return Ok((word, length));
            };
            let mut letters = text.chars();
            match (letters.next(), letters.next()) {
                (Some(letter), None) => (Word::Int(i64::from(u32::from(letter))), length),
                _ => {
                    return Err(Fault::new(
                        at,
                        "texts stand between double quotes: ' is for one letter",
                    ));
                }
            }
        }
        '+' | '-' | '0'..='9' => number(rest, at)?,
        _ if is_letter(first) => (Word::Name(name(0).to_owned()), name(0).len()),
        other => return Err(Fault::new(at, format!("{other:?} is not understood"))),
    })
}

fn number(rest: &str, at: usize) -> Result<(Word, usize), Fault> {
    let end = rest[1..]
        .find(|letter: char| !(is_letter(letter) || letter == '.'))
        .map_or(rest.len(), |end| end + 1);
    let text = &rest[..end];
    let plain = text.replace('_', "");
    let int = plain
        .strip_prefix("0x")
        .map_or_else(|| plain.parse(), |hex| i64::from_str_radix(hex, 16));
    match (int, plain.parse()) {
        (Ok(value), _) => Ok((Word::Int(value), end)),
        (_, Ok(value)) => Ok((Word::Float(value), end)),
        _ => Err(Fault::new(at, format!("{text} is no number"))),
    }
}

fn quoted(rest: &str, at: usize, quote: char) -> Result<(Word, usize), Fault> {
    let mut text = String::new();
    let mut letters = rest.char_indices().skip(1);
    while let Some((place, letter)) = letters.next() {
        match letter {
            '\n' => break,
            _ if letter == quote => return Ok((Word::Text(text), place + 1)),
            '\\' => {
                let Some((_, escaped)) = letters.next() else {
                    break;
                };
                text.push(match escaped {
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'a' => '\x07',
                    'b' => '\x08',
                    'f' => '\x0c',
                    'v' => '\x0b',
                    '\\' | '"' | '\'' => escaped,
                    'x' | 'u' => {
                        let count = if escaped == 'x' { 2 } else { 4 };
                        let digits: String = letters
                            .by_ref()
                            .take(count)
                            .map(|(_, digit)| digit)
                            .collect();
                        u32::from_str_radix(&digits, 16)
                            .ok()
                            .and_then(char::from_u32)
                            .ok_or_else(|| {
                                Fault::new(at, format!("\\{escaped}{digits} is no character"))
                            })?
                    }
                    other => {
                        return Err(Fault::new(at, format!("\\{other} is not understood")));
                    }
                });
            }
            other => text.push(other),
        }
    }
    Err(Fault::new(
        at,
        format!("the text does not end: {quote} is missing"),
    ))
}
