//! The templates of `--format`: Go's `text/template` with docker's functions, over values that print as Go's do.
//!
//! What there is: fields and chains of them, variables, pipelines, parentheses, `if`, `range` (with `break` and
//! `continue`), `with`, `else`, comments, trim markers; the functions `and`, `or`, `not`, `len`, `index`, `slice`,
//! `print`, `println`, `printf`, `eq`, `ne`, `lt`, `le`, `gt`, `ge`, and docker's `json`, `join`, `split`, `lower`,
//! `upper`, `title`, `pad`, `truncate`. What there is not (`define`, `template`, `block`, `call`) is refused by name.

mod eval;
mod functions;
mod lexer;
mod parse;
mod print;
#[cfg(test)]
mod tests;
mod value;

pub use value::{Field, Fields, Shape, Value};

/// What is wrong with a template, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {message}")]
pub struct TemplateError {
    /// Counted from 1.
    pub line: usize,
    /// In characters, counted from 1.
    pub column: usize,
    /// One sentence.
    pub message: String,
}

/// A fault at a byte of the text; becomes a [`TemplateError`] when it leaves the crate.
#[derive(Debug)]
struct Fault {
    at: usize,
    message: String,
}

impl Fault {
    fn new(at: usize, message: impl Into<String>) -> Self {
        Self {
            at,
            message: message.into(),
        }
    }

    fn located(self, text: &str) -> TemplateError {
        let before = text.get(..self.at).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |at| at + 1);
        TemplateError {
            line,
            column: before[start..].chars().count() + 1,
            message: self.message,
        }
    }
}

/// A template that was understood.
#[derive(Debug, Clone)]
pub struct Template {
    text: String,
    nodes: Vec<parse::Node>,
}

impl Template {
    /// Reads a template.
    ///
    /// # Errors
    /// When it is not one, or asks for what there is not.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let nodes = parse::parse(text).map_err(|fault| fault.located(text))?;
        Ok(Self {
            text: text.to_owned(),
            nodes,
        })
    }

    /// Fills it in.
    ///
    /// # Errors
    /// When it asks for a field that is not there, or for a function that does not fit its arguments.
    pub fn render(&self, value: &Value) -> Result<String, TemplateError> {
        eval::render(&self.nodes, value).map_err(|fault| fault.located(&self.text))
    }
}
