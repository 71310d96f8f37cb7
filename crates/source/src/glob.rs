//! The wildcards that both pattern languages share, and a matcher for them that never takes more than
//! (length of the pattern × length of the name) steps.

/// A pattern that is not well formed: an unclosed or empty class, a backslash at the end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern {pattern:?}")]
pub struct BadPattern {
    /// The pattern as it was given.
    pub pattern: String,
}

/// One piece of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Token {
    /// These bytes.
    Literal(Vec<u8>),
    /// One character that is no slash.
    One,
    /// Any characters but slashes.
    Star,
    /// Any bytes but slashes. In Go's `Match` a star can end inside a character, whose rest then counts as characters
    /// of one byte each; in moby's patterns, which are regular expressions, it cannot.
    ByteStar,
    /// Any characters.
    Deep,
    /// Nothing, or any characters up to and with a slash.
    DeepFolder,
    /// One character of (or, negated, not of) the ranges. Can be a slash, as in Go.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// A list of pieces.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Tokens(Vec<Token>);

impl Tokens {
    pub(crate) fn push(&mut self, token: Token) {
        self.0.push(token);
    }

    pub(crate) fn literal(&mut self, char: char) {
        let mut utf8 = [0; 4];
        let bytes = char.encode_utf8(&mut utf8).as_bytes();
        match self.0.last_mut() {
            Some(Token::Literal(literal)) => literal.extend_from_slice(bytes),
            _ => self.0.push(Token::Literal(bytes.to_vec())),
        }
    }

    /// The bytes that the pattern stands for if it has no wildcards.
    pub(crate) fn as_literal(&self) -> Option<&[u8]> {
        match &*self.0 {
            [] => Some(b""),
            [Token::Literal(bytes)] => Some(bytes),
            _ => None,
        }
    }

    /// Whether the pattern stands for `name`.
    pub(crate) fn matches(&self, name: &[u8]) -> bool {
        if let Some(literal) = self.as_literal() {
            return literal == name;
        }
        // Most names fail at the ends of the pattern already.
        if let Some(Token::Literal(first)) = self.0.first()
            && !name.starts_with(first)
        {
            return false;
        }
        if let Some(Token::Literal(last)) = self.0.last()
            && !name.ends_with(last)
        {
            return false;
        }
        if let [Token::Deep | Token::DeepFolder, Token::Literal(last)] = &*self.0 {
            let before = name.len() - last.len();
            return matches!(self.0[0], Token::Deep) || before == 0 || name[before - 1] == b'/';
        }
        self.run(name, |_, _| false)[name.len()]
    }

    /// Whether the pattern stands for some longer name that begins with `start`.
    pub(crate) fn matches_beyond(&self, start: &[u8]) -> bool {
        let mut beyond = false;
        self.run(start, |token, reachable| {
            // Whatever is left of the pattern can be satisfied by what follows.
            beyond |= reachable[start.len()]
                || matches!(token, Token::Literal(literal) if (0..start.len()).any(|at|
                    reachable[at] && literal.len() > start.len() - at && literal.starts_with(&start[at..])));
            beyond
        });
        beyond
    }

    /// Follows the pattern through `name`: which positions can be reached after each token. `stop` is asked before
    /// each token. The result is the set of positions after the last one.
    fn run(&self, name: &[u8], mut stop: impl FnMut(&Token, &[bool]) -> bool) -> Vec<bool> {
        let mut reachable = vec![false; name.len() + 1];
        reachable[0] = true;
        for token in &self.0 {
            if stop(token, &reachable) {
                return reachable;
            }
            match token {
                Token::Star | Token::ByteStar | Token::Deep => {
                    for at in 0..name.len() {
                        if reachable[at] && (matches!(token, Token::Deep) || name[at] != b'/') {
                            let char =
                                first_char(&name[at..]).filter(|_| *token != Token::ByteStar);
                            reachable[at + char.map_or(1, |(_, length)| length)] = true;
                        }
                    }
                }
                Token::DeepFolder => {
                    if let Some(first) = reachable.iter().position(|&is| is) {
                        for at in first..name.len() {
                            reachable[at + 1] |= name[at] == b'/';
                        }
                    }
                }
                Token::Literal(_) | Token::One | Token::Class { .. } => {
                    let mut next = vec![false; name.len() + 1];
                    for at in (0..=name.len()).filter(|&at| reachable[at]) {
                        if let Some(length) = step(token, &name[at..]) {
                            next[at + length] = true;
                        }
                    }
                    reachable = next;
                }
            }
        }
        reachable
    }
}

/// How many bytes a token that stands for a fixed number of characters takes from the start of `rest`.
fn step(token: &Token, rest: &[u8]) -> Option<usize> {
    match token {
        Token::Literal(literal) => rest.starts_with(literal).then_some(literal.len()),
        Token::One => first_char(rest)
            .filter(|&(char, _)| char != '/')
            .map(|(_, length)| length),
        Token::Class { negated, ranges } => {
            let (char, length) = first_char(rest)?;
            let within = ranges
                .iter()
                .any(|&(low, high)| low <= char && char <= high);
            (within != *negated).then_some(length)
        }
        Token::Star | Token::ByteStar | Token::Deep | Token::DeepFolder => None,
    }
}

/// The first character and its length. A byte that is not UTF-8 is one character, as in Go.
fn first_char(bytes: &[u8]) -> Option<(char, usize)> {
    let first = *bytes.first()?;
    if first < 0x80 {
        return Some((first as char, 1));
    }
    let known = &bytes[..bytes.len().min(4)];
    let valid = match std::str::from_utf8(known) {
        Ok(text) => text,
        Err(error) => std::str::from_utf8(&known[..error.valid_up_to()]).unwrap_or_default(),
    };
    Some(
        valid
            .chars()
            .next()
            .map_or((char::REPLACEMENT_CHARACTER, 1), |char| {
                (char, char.len_utf8())
            }),
    )
}

/// Reads the class that `text` begins with, behind its `[`; gives it and the text behind its `]`.
pub(crate) fn class(text: &str) -> Option<(Token, &str)> {
    let (negated, mut text) = match text.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut ranges = Vec::new();
    loop {
        if let Some(rest) = text.strip_prefix(']')
            && !ranges.is_empty()
        {
            return Some((Token::Class { negated, ranges }, rest));
        }
        let (low, rest) = class_char(text)?;
        let (high, rest) = match rest.strip_prefix('-') {
            Some(rest) => class_char(rest)?,
            None => (low, rest),
        };
        ranges.push((low, high));
        text = rest;
    }
}

fn class_char(text: &str) -> Option<(char, &str)> {
    let text = match text.as_bytes().first()? {
        b'-' | b']' => return None,
        b'\\' => &text[1..],
        _ => text,
    };
    let char = text.chars().next()?;
    let rest = &text[char.len_utf8()..];
    (!rest.is_empty()).then_some((char, rest))
}

/// A compiled pattern of Go's `path/filepath.Match`: `*` and `?` stand for no slash, `[a-z]`, `[^a-z]`, `\x`. The
/// pattern must stand for the whole name.
#[derive(Debug, Clone)]
pub struct Glob(Tokens);

impl Glob {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// When the pattern is not well formed.
    pub fn new(pattern: &str) -> Result<Self, BadPattern> {
        let bad = || BadPattern {
            pattern: pattern.to_owned(),
        };
        let mut tokens = Tokens::default();
        let mut rest = pattern;
        while let Some(char) = rest.chars().next() {
            rest = &rest[char.len_utf8()..];
            match char {
                '*' => tokens.push(Token::ByteStar),
                '?' => tokens.push(Token::One),
                '[' => {
                    let (token, behind) = class(rest).ok_or_else(bad)?;
                    tokens.push(token);
                    rest = behind;
                }
                '\\' => {
                    let escaped = rest.chars().next().ok_or_else(bad)?;
                    rest = &rest[escaped.len_utf8()..];
                    tokens.literal(escaped);
                }
                char => tokens.literal(char),
            }
        }
        Ok(Self(tokens))
    }

    /// Whether the pattern stands for `name`.
    pub fn matches(&self, name: impl AsRef<[u8]>) -> bool {
        self.0.matches(name.as_ref())
    }

    /// The name that a pattern without wildcards stands for, its escapes removed.
    pub fn literal(&self) -> Option<&[u8]> {
        self.0.as_literal()
    }
}

/// Go's `path/filepath.Match`: whether `pattern` stands for the whole `name`.
///
/// # Errors
/// When the pattern is not well formed, whatever the name.
pub fn go_match(pattern: &str, name: impl AsRef<[u8]>) -> Result<bool, BadPattern> {
    Glob::new(pattern).map(|glob| glob.matches(name))
}

/// Go's `path.Clean`: the shortest lexically equal path; `.` for nothing.
pub fn go_clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut kept: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if kept.last().is_some_and(|&last| last != "..") => {
                kept.pop();
            }
            ".." if rooted => {}
            part => kept.push(part),
        }
    }
    let joined = kept.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}
