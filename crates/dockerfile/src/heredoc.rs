//! Here-documents.

use crate::expand::{Expander, Variables};

/// A here-document: what stands between its sign in an instruction and its terminator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heredoc {
    /// The terminator, unquoted.
    pub name: String,
    /// No part of the name was in quotes: variables in the body are expanded.
    pub expand: bool,
    /// `<<-`: leading tabs of body lines and terminator do not count.
    pub strip_tabs: bool,
    /// The number before the sign: `3<<EOF`.
    pub descriptor: Option<u32>,
    /// The lines as they stand in the file, with their line ends.
    pub body: String,
}

impl Heredoc {
    /// Reads a word as the sign of a here-document; the body is empty. `None` if the word is none.
    pub fn parse(word: &str) -> Option<Self> {
        let digits = word.len()
            - word
                .trim_start_matches(|char: char| char.is_ascii_digit())
                .len();
        let (number, rest) = word.split_at(digits);
        let rest = rest.strip_prefix("<<")?;
        let (strip_tabs, rest) = rest
            .strip_prefix('-')
            .map_or((false, rest), |rest| (true, rest));
        let raw = rest.trim_start();
        if raw.contains('<') {
            return None;
        }
        let none = Variables::default();
        let plain = Expander {
            keep_unset: true,
            ..Expander::new('\\')
        };
        let expanded = plain.expand(raw, &none).ok()?;
        let [name] = <[String; 1]>::try_from(expanded.words).ok()?;
        // Quotes turn the expansion off, escapes do not.
        let quoting = Expander {
            keep_quotes: true,
            ..plain
        };
        let quoted = quoting.expand(raw, &none).ok()?;
        Some(Self {
            expand: quoted.text == name,
            name,
            strip_tabs,
            descriptor: number.parse().ok(),
            body: String::new(),
        })
    }

    /// The here-documents that an instruction's text announces, in order.
    pub(crate) fn find(text: &str) -> Vec<Self> {
        let lexer = Expander {
            keep_quotes: true,
            keep_escapes: true,
            keep_unset: true,
            ..Expander::new('\\')
        };
        // A text that is no proper shell has no here-documents that anyone could find.
        let Ok(expanded) = lexer.expand(text, &Variables::default()) else {
            return Vec::new();
        };
        expanded
            .words
            .iter()
            .filter_map(|word| Self::parse(word))
            .collect()
    }

    /// Whether `line` ends the body.
    pub(crate) fn ends_at(&self, line: &str) -> bool {
        let line = line.trim_end_matches(['\r', '\n']);
        let line = if self.strip_tabs {
            line.trim_start_matches('\t')
        } else {
            line
        };
        line == self.name
    }

    /// The body as it is meant: without leading tabs if the sign was `<<-`.
    pub fn content(&self) -> String {
        if !self.strip_tabs {
            return self.body.clone();
        }
        self.body
            .split_inclusive('\n')
            .map(|line| line.trim_start_matches('\t'))
            .collect()
    }
}
