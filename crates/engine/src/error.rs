//! What the user is told when a build fails.

use kiln_dockerfile::{Diagnostic, Lines, SourceText, Span, marked_excerpt};
use kiln_export::ExportError;
use kiln_progress::Finding;
use kiln_solver::SolveError;
use kiln_store::StoreError;
use kiln_worker::WorkerError;

/// Where something is in a Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file's name.
    pub file: String,
    /// First and last line, counted from 1.
    pub lines: (u32, u32),
    /// The first column in the first line, and the column after the last one in the last line, counted from 1.
    pub columns: (u32, u32),
}

impl Place {
    /// A piece of a line, or whole lines without the blanks around them.
    pub(crate) fn new(source: &SourceText, lines: Lines, span: Option<Span>) -> Self {
        let line = |number: u32| {
            let line = source.text.lines().nth(number.saturating_sub(1) as usize);
            line.unwrap_or_default()
        };
        let (lines, columns) = if let Some(span) = span {
            ((span.line, span.line), (span.first, span.end))
        } else {
            let (first, last) = (line(lines.first), line(lines.last));
            let blanks = first
                .chars()
                .take_while(|char| char.is_whitespace())
                .count();
            let end = last.trim_end().chars().count();
            (
                (lines.first, lines.last),
                (blanks as u32 + 1, end as u32 + 1),
            )
        };
        Self {
            file: source.name.clone(),
            lines,
            columns,
        }
    }
}

/// Why a build failed, ready to be shown.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct BuildError {
    /// What went wrong, in one sentence or a chain of them.
    pub message: String,
    /// The lines of the Dockerfile it is about.
    pub excerpt: Option<String>,
    /// The same for programs.
    pub place: Option<Box<Place>>,
    /// A way out.
    pub hint: Option<String>,
    /// The user gave up.
    pub canceled: bool,
    /// How the process of a failed RUN ended.
    pub exit: Option<kiln_worker::Exit>,
    /// The failed RUN as it was left, when the request asks for it.
    pub state: Option<Box<crate::StepState>>,
}

impl BuildError {
    /// What the user is told of a build that failed: the excerpt, the error, the way out.
    pub fn told(&self) -> String {
        let mut text = String::new();
        if let Some(excerpt) = &self.excerpt {
            text.push_str(excerpt.trim_end_matches('\n'));
            text.push('\n');
        }
        text += "ERROR: failed to build: failed to solve: ";
        text += &self.to_string();
        text.push('\n');
        if let Some(hint) = &self.hint {
            text += "hint: ";
            text += hint;
            text.push('\n');
        }
        text
    }

    /// An error of plain words.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            excerpt: None,
            place: None,
            hint: None,
            canceled: false,
            exit: None,
            state: None,
        }
    }

    /// The same with a way out.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub(crate) fn diagnostic(diagnostic: &Diagnostic, source: &SourceText) -> Self {
        let mut error = Self::new(diagnostic.message.clone());
        if let Some(lines) = diagnostic.lines {
            error = error.at(source, lines, diagnostic.span(source));
        }
        error.hint.clone_from(&diagnostic.hint);
        error
    }

    /// The same with the lines of the Dockerfile that it is about.
    pub(crate) fn at(mut self, source: &SourceText, lines: Lines, span: Option<Span>) -> Self {
        self.excerpt = marked_excerpt(source, lines, span);
        self.place = Some(Box::new(Place::new(source, lines, span)));
        self
    }

    /// The error for programs.
    pub(crate) fn finding(&self) -> Finding {
        let place = self.place.as_ref();
        Finding {
            message: self.message.clone(),
            hint: self.hint.clone(),
            file: place.map(|place| place.file.clone()).unwrap_or_default(),
            lines: place.map(|place| place.lines),
            columns: place.map(|place| place.columns),
            ..Finding::default()
        }
    }

    pub(crate) fn from_solve(error: &SolveError, source: &SourceText) -> Self {
        let lines = error.place().and_then(|place| place.lines);
        let placed = match lines {
            Some((first, last)) => {
                Self::new(error.to_string()).at(source, Lines { first, last }, None)
            }
            None => Self::new(error.to_string()),
        };
        Self {
            hint: error.hint().map(str::to_owned),
            canceled: matches!(error, SolveError::Canceled),
            exit: match error {
                SolveError::Process { exit, .. } => Some(*exit),
                _ => None,
            },
            state: None,
            ..placed
        }
    }

    pub(crate) fn from_worker(error: &WorkerError) -> Self {
        let mut out = Self::new(error.to_string());
        out.hint = error.hint().map(str::to_owned);
        out.canceled = error.is_canceled();
        out
    }
}

impl From<StoreError> for BuildError {
    fn from(error: StoreError) -> Self {
        Self::new(error.to_string())
    }
}

impl From<ExportError> for BuildError {
    fn from(error: ExportError) -> Self {
        Self {
            hint: error.hint(),
            canceled: error.is_canceled(),
            ..Self::new(error.to_string())
        }
    }
}
