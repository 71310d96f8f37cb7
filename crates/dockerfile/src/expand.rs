//! Variable expansion and quote removal in words of a Dockerfile, after the manner of a shell.

use std::collections::BTreeSet;
use std::iter::Peekable;
use std::str::Chars;

use crate::glob::{Pattern, PatternError};

/// Variables in the order in which they were first set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Variables(Vec<(String, String)>);

impl Variables {
    /// The value of a variable.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(known, _)| known == name)
            .map(|(_, value)| value.as_str())
    }

    /// Sets a variable; one that is known keeps its place.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), value.into());
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The names.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| name.as_str())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Variables {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut variables = Self::default();
        for (name, value) in pairs {
            variables.set(name, value);
        }
        variables
    }
}

/// How words are expanded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expander {
    /// The character that takes the meaning from the next one.
    pub escape: char,
    /// Quotes stay in the text, though they still work.
    pub keep_quotes: bool,
    /// Escape characters stay in the text, though they still work.
    pub keep_escapes: bool,
    /// References to variables that are not set stay as they are written.
    pub keep_unset: bool,
    /// Quotes are characters like all others.
    pub ignore_quotes: bool,
}

impl Expander {
    /// Quotes and escapes are removed, unset variables are empty.
    pub fn new(escape: char) -> Self {
        Self {
            escape,
            keep_quotes: false,
            keep_escapes: false,
            keep_unset: false,
            ignore_quotes: false,
        }
    }

    /// Expands `text`.
    ///
    /// # Errors
    /// Unbalanced quotes and braces, unknown modifiers, and `${x:?message}` of an unset variable.
    pub fn expand(&self, text: &str, variables: &Variables) -> Result<Expanded, ExpandError> {
        let mut scanner = Scanner {
            how: *self,
            chars: text.chars().peekable(),
            variables,
            used: BTreeSet::new(),
            missing: BTreeSet::new(),
            depth: 0,
            left: MAX_EXPANDED,
        };
        match scanner.until(None, self.keep_escapes) {
            Ok((result, words)) => Ok(Expanded {
                text: result,
                words,
                used: scanner.used,
                missing: scanner.missing,
            }),
            Err(kind) => Err(ExpandError {
                text: text.to_owned(),
                kind,
                missing: scanner.missing,
            }),
        }
    }
}

/// What came of an expansion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expanded {
    /// The text as one word.
    pub text: String,
    /// The text split at blanks that are neither quoted nor escaped.
    pub words: Vec<String>,
    /// Variables that were looked up and found.
    pub used: BTreeSet<String>,
    /// Variables that were looked up and not found.
    pub missing: BTreeSet<String>,
}

/// Why a text cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("failed to process {text:?}: {kind}")]
pub struct ExpandError {
    /// The text.
    pub text: String,
    /// What is wrong with it.
    pub kind: ExpandErrorKind,
    /// Variables that were looked up and not found before the error.
    pub missing: BTreeSet<String>,
}

/// The ways in which a text can be wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandErrorKind {
    /// A quote without its partner.
    #[error("unexpected end of statement while looking for matching {0}")]
    Unclosed(&'static str),
    /// `${` without its `}`, `${x/` without its second `/`.
    #[error("syntax error: missing {0}")]
    Missing(&'static str),
    /// `${}`, `${:x}`.
    #[error("syntax error: bad substitution")]
    BadSubstitution,
    /// `${x^}`.
    #[error("unsupported modifier ({0}) in substitution")]
    Modifier(String),
    /// A pattern that cannot be.
    #[error("invalid pattern ({0}) in substitution: {1}")]
    Pattern(String, PatternError),
    /// `${x?message}`.
    #[error("{0}: {1}")]
    Required(String, String),
    /// More substitutions within each other than anyone writes.
    #[error("syntax error: substitutions are nested too deeply")]
    TooDeep,
    /// Substitutions within substitutions that grow without measure.
    #[error("substitutions give more than {MAX_EXPANDED} bytes")]
    TooLong,
}

/// How deep substitutions may be nested: far more than anyone writes, far less than the stack holds.
const MAX_DEPTH: usize = 64;

/// How many bytes the substitutions of one text may give, all together: eight times what Linux lets an argument be.
pub const MAX_EXPANDED: usize = 1 << 20;

struct Scanner<'a> {
    how: Expander,
    chars: Peekable<Chars<'a>>,
    variables: &'a Variables,
    used: BTreeSet<String>,
    missing: BTreeSet<String>,
    depth: usize,
    /// How many bytes substitutions may still give.
    left: usize,
}

#[derive(Default)]
struct Words {
    word: String,
    words: Vec<String>,
}

impl Words {
    fn literal(&mut self, text: &str) {
        self.word.push_str(text);
    }

    fn splitting(&mut self, text: &str) {
        for char in text.chars() {
            if char.is_whitespace() {
                self.end();
            } else {
                self.word.push(char);
            }
        }
    }

    fn end(&mut self) {
        if !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
        }
    }
}

impl Scanner<'_> {
    /// Reads up to `stop`, which is consumed, or to the end.
    fn until(
        &mut self,
        stop: Option<char>,
        keep_escapes: bool,
    ) -> Result<(String, Vec<String>), ExpandErrorKind> {
        let outer = std::mem::replace(&mut self.how.keep_escapes, keep_escapes);
        let read = self.read_until(stop);
        self.how.keep_escapes = outer;
        read
    }

    fn read_until(&mut self, stop: Option<char>) -> Result<(String, Vec<String>), ExpandErrorKind> {
        let mut result = String::new();
        let mut words = Words::default();
        let mut buffer = [0; 4];
        while let Some(&char) = self.chars.peek() {
            if Some(char) == stop {
                self.chars.next();
                words.end();
                return Ok((result, words.words));
            }
            match char {
                '$' => {
                    let value = self.dollar()?;
                    words.splitting(&value);
                    result.push_str(&value);
                }
                '\'' if !self.how.ignore_quotes => {
                    let value = self.single_quoted()?;
                    words.literal(&value);
                    result.push_str(&value);
                }
                '"' if !self.how.ignore_quotes => {
                    let value = self.double_quoted()?;
                    words.literal(&value);
                    result.push_str(&value);
                }
                '<' => {
                    self.chars.next();
                    words.literal("<");
                    result.push('<');
                    if self.chars.next_if_eq(&'<').is_some() {
                        words.literal("<");
                        result.push('<');
                        // A heredoc's name may stand apart from its sign: still one word.
                        while let Some(blank) = self.chars.next_if(|next| next.is_whitespace()) {
                            result.push(blank);
                        }
                    }
                }
                _ => {
                    self.chars.next();
                    if char != self.how.escape {
                        words.splitting(char.encode_utf8(&mut buffer));
                        result.push(char);
                        continue;
                    }
                    if self.how.keep_escapes {
                        words.literal(char.encode_utf8(&mut buffer));
                        result.push(char);
                    }
                    if let Some(escaped) = self.chars.next() {
                        words.literal(escaped.encode_utf8(&mut buffer));
                        result.push(escaped);
                    }
                }
            }
        }
        match stop {
            Some('}') => Err(ExpandErrorKind::Missing("'}'")),
            Some(_) => Err(ExpandErrorKind::Missing("'/' in ${}")),
            None => {
                words.end();
                Ok((result, words.words))
            }
        }
    }

    fn single_quoted(&mut self) -> Result<String, ExpandErrorKind> {
        self.chars.next();
        let mut result = String::new();
        if self.how.keep_quotes {
            result.push('\'');
        }
        loop {
            match self.chars.next() {
                None => return Err(ExpandErrorKind::Unclosed("single-quote")),
                Some('\'') => break,
                Some(char) => result.push(char),
            }
        }
        if self.how.keep_quotes {
            result.push('\'');
        }
        Ok(result)
    }

    fn double_quoted(&mut self) -> Result<String, ExpandErrorKind> {
        self.chars.next();
        let mut result = String::new();
        if self.how.keep_quotes {
            result.push('"');
        }
        loop {
            match self.chars.peek() {
                None => return Err(ExpandErrorKind::Unclosed("double-quote")),
                Some('"') => {
                    self.chars.next();
                    break;
                }
                Some('$') => result.push_str(&self.dollar()?),
                Some(&char) => {
                    self.chars.next();
                    if char != self.how.escape {
                        result.push(char);
                        continue;
                    }
                    if self.how.keep_escapes {
                        result.push(char);
                    }
                    // Only a few characters can be escaped here; before all others the escape character is itself.
                    let escapable =
                        |next: &char| matches!(next, '"' | '$') || *next == self.how.escape;
                    match self.chars.next_if(escapable) {
                        Some(escaped) => result.push(escaped),
                        None if self.chars.peek().is_some() && !self.how.keep_escapes => {
                            result.push(char);
                        }
                        None => {}
                    }
                }
            }
        }
        if self.how.keep_quotes {
            result.push('"');
        }
        Ok(result)
    }

    fn dollar(&mut self) -> Result<String, ExpandErrorKind> {
        let value = self.substitution()?;
        self.left = self
            .left
            .checked_sub(value.len())
            .ok_or(ExpandErrorKind::TooLong)?;
        Ok(value)
    }

    fn substitution(&mut self) -> Result<String, ExpandErrorKind> {
        self.chars.next();
        if self.chars.next_if_eq(&'{').is_none() {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".to_owned());
            }
            return Ok(match self.look_up(&name) {
                Some(value) => value,
                None if self.how.keep_unset => format!("${name}"),
                None => String::new(),
            });
        }
        if self.depth == MAX_DEPTH {
            return Err(ExpandErrorKind::TooDeep);
        }
        self.depth += 1;
        let value = self.braced();
        self.depth -= 1;
        value
    }

    /// Reads on after `${`.
    fn braced(&mut self) -> Result<String, ExpandErrorKind> {
        match self.chars.peek() {
            None => return Err(ExpandErrorKind::Missing("'}'")),
            Some('{' | '}' | ':') => return Err(ExpandErrorKind::BadSubstitution),
            Some(_) => {}
        }
        let name = self.name();
        let mut modifier = String::new();
        let mut next = |scanner: &mut Self| {
            let char = scanner
                .chars
                .next()
                .ok_or(ExpandErrorKind::Missing("'}'"))?;
            modifier.push(char);
            Ok(char)
        };
        let mut char = next(self)?;
        if char == '}' {
            return Ok(match self.look_up(&name) {
                Some(value) => value,
                None if self.how.keep_unset => format!("${{{name}}}"),
                None => String::new(),
            });
        }
        if char == '/' {
            return self.replace(&name);
        }
        let empty_is_unset = char == ':';
        if empty_is_unset {
            char = next(self)?;
        }
        if !matches!(char, '-' | '+' | '?' | '#' | '%')
            || (empty_is_unset && matches!(char, '#' | '%'))
        {
            return Err(ExpandErrorKind::Modifier(modifier));
        }
        let (word, _) = self.until(Some('}'), matches!(char, '#' | '%'))?;
        let value = self.look_up(&name);
        if value.is_none() && self.how.keep_unset {
            return Ok(format!("${{{name}{modifier}{word}}}"));
        }
        let set = value
            .as_deref()
            .filter(|value| !(empty_is_unset && value.is_empty()));
        Ok(match char {
            '-' => set.map_or(word, str::to_owned),
            '+' => set.map_or_else(String::new, |_| word),
            '?' => {
                if let Some(value) = set {
                    value.to_owned()
                } else {
                    let default = if value.is_some() {
                        "is not allowed to be empty"
                    } else {
                        "is not allowed to be unset"
                    };
                    let message = if word.is_empty() {
                        default.to_owned()
                    } else {
                        word
                    };
                    return Err(ExpandErrorKind::Required(name, message));
                }
            }
            _ => {
                let value = value.unwrap_or_default();
                let (greedy, pattern) = match word.strip_prefix(char) {
                    Some(rest) => (true, rest),
                    None => (false, word.as_str()),
                };
                let compiled = Pattern::new(pattern)
                    .map_err(|error| ExpandErrorKind::Pattern(pattern.to_owned(), error))?;
                if char == '#' {
                    compiled.trim_start(&value, greedy).to_owned()
                } else {
                    compiled.trim_end(&value, greedy).to_owned()
                }
            }
        })
    }

    /// Reads on after `${name/`.
    fn replace(&mut self, name: &str) -> Result<String, ExpandErrorKind> {
        let all = self.chars.next_if_eq(&'/').is_some();
        let (pattern, _) = self.until(Some('/'), true)?;
        let (replacement, _) = self.until(Some('}'), true)?;
        let Some(value) = self.look_up(name) else {
            return Ok(if self.how.keep_unset {
                format!("${{{name}/{pattern}/{replacement}}}")
            } else {
                String::new()
            });
        };
        let compiled =
            Pattern::new(&pattern).map_err(|error| ExpandErrorKind::Pattern(pattern, error))?;
        compiled
            .replace(&value, &replacement, all, self.left)
            .ok_or(ExpandErrorKind::TooLong)
    }

    /// Letters, digits and underscores; a number alone; or one of the shell's special parameters.
    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(&char) = self.chars.peek() {
            if name.is_empty() && char.is_numeric() {
                while let Some(digit) = self.chars.next_if(|next| next.is_numeric()) {
                    name.push(digit);
                }
                break;
            }
            if name.is_empty() && matches!(char, '@' | '*' | '#' | '?' | '-' | '$' | '!') {
                self.chars.next();
                name.push(char);
                break;
            }
            if !char.is_alphanumeric() && char != '_' {
                break;
            }
            self.chars.next();
            name.push(char);
        }
        name
    }

    fn look_up(&mut self, name: &str) -> Option<String> {
        let value = self.variables.get(name);
        let seen = if value.is_some() {
            &mut self.used
        } else {
            &mut self.missing
        };
        seen.insert(name.to_owned());
        value.map(str::to_owned)
    }
}
