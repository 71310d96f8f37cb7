//! The patterns of `${x#pattern}`, `${x%pattern}` and `${x/pattern/replacement}`: `*` and `?`, no brackets.

/// A pattern of a substitution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pattern(Vec<Token>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Char(char),
    One,
    Many,
}

/// A backslash before a character that needs none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid escape '\\{0}'")]
pub struct PatternError(String);

impl Pattern {
    pub(crate) fn new(text: &str) -> Result<Self, PatternError> {
        let mut tokens = Vec::new();
        let mut chars = text.chars().peekable();
        while let Some(char) = chars.next() {
            tokens.push(match char {
                '*' => Token::Many,
                '?' => Token::One,
                '\\' => match chars.next() {
                    // `}` and `/` are escaped for the sake of the substitution around the pattern.
                    Some(escaped @ ('*' | '?' | '\\' | '}' | '/')) => Token::Char(escaped),
                    other => {
                        return Err(PatternError(other.map_or_else(String::new, String::from)));
                    }
                },
                other => Token::Char(other),
            });
        }
        Ok(Self(tokens))
    }

    /// The ends (byte offsets) of all matches in `text` that start at its beginning, shortest first.
    fn ends(&self, text: &str, reversed: bool) -> Vec<usize> {
        // States of the pattern that can be reached after the characters read so far: no backtracking, so a hostile
        // pattern costs no more than pattern length times text length.
        let tokens: Vec<Token> = if reversed {
            self.0.iter().rev().copied().collect()
        } else {
            self.0.clone()
        };
        let close = |states: &mut Vec<bool>| {
            for (at, token) in tokens.iter().enumerate() {
                if states[at] && *token == Token::Many {
                    states[at + 1] = true;
                }
            }
        };
        let mut states = vec![false; tokens.len() + 1];
        states[0] = true;
        close(&mut states);
        let mut ends = Vec::new();
        if states[tokens.len()] {
            ends.push(0);
        }
        let mut read = 0;
        let mut step = |char: char| {
            read += char.len_utf8();
            let mut next = vec![false; tokens.len() + 1];
            for (at, token) in tokens.iter().enumerate().filter(|(at, _)| states[*at]) {
                match token {
                    Token::Many if char != '\n' => next[at] = true,
                    Token::One if char != '\n' => next[at + 1] = true,
                    Token::Char(wanted) if *wanted == char => next[at + 1] = true,
                    _ => {}
                }
            }
            close(&mut next);
            states = next;
            if states[tokens.len()] {
                ends.push(read);
            }
            states.contains(&true)
        };
        if reversed {
            let _ = text.chars().rev().all(&mut step);
        } else {
            let _ = text.chars().all(&mut step);
        }
        ends
    }

    fn length(&self, text: &str, greedy: bool, reversed: bool) -> Option<usize> {
        let ends = self.ends(text, reversed);
        if greedy { ends.last() } else { ends.first() }.copied()
    }

    /// `text` without the shortest (longest if `greedy`) match at its start.
    pub(crate) fn trim_start<'a>(&self, text: &'a str, greedy: bool) -> &'a str {
        &text[self.length(text, greedy, false).unwrap_or(0)..]
    }

    /// `text` without the shortest (longest if `greedy`) match at its end.
    pub(crate) fn trim_end<'a>(&self, text: &'a str, greedy: bool) -> &'a str {
        &text[..text.len() - self.length(text, greedy, true).unwrap_or(0)]
    }

    /// `text` with the first (or every) longest match replaced; `None` if that gives more than `most` bytes.
    pub(crate) fn replace(
        &self,
        text: &str,
        replacement: &str,
        all: bool,
        most: usize,
    ) -> Option<String> {
        let mut result = String::with_capacity(text.len());
        let mut at = 0;
        let mut after_match = false;
        while at <= text.len() {
            let char = text[at..].chars().next();
            match self.length(&text[at..], true, false) {
                // An empty match directly behind another match does not count.
                Some(length) if length > 0 || !after_match => {
                    result.push_str(replacement);
                    if result.len() > most {
                        return None;
                    }
                    at += length;
                    if !all {
                        break;
                    }
                    after_match = true;
                    if length > 0 {
                        continue;
                    }
                }
                _ => {}
            }
            after_match = false;
            let Some(char) = char else { break };
            result.push(char);
            at += char.len_utf8();
        }
        result.push_str(&text[at.min(text.len())..]);
        Some(result)
    }
}
