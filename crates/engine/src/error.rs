//! What the user is told when a build fails.

use kiln_dockerfile::{Diagnostic, Lines, SourceText, excerpt};
use kiln_export::ExportError;
use kiln_solver::SolveError;
use kiln_store::StoreError;
use kiln_worker::WorkerError;

/// Why a build failed, ready to be shown.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct BuildError {
    /// What went wrong, in one sentence or a chain of them.
    pub message: String,
    /// The lines of the Dockerfile it is about.
    pub excerpt: Option<String>,
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
    /// An error of plain words.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            excerpt: None,
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
        error.excerpt = diagnostic.excerpt(source);
        error.hint.clone_from(&diagnostic.hint);
        error
    }

    pub(crate) fn from_solve(error: &SolveError, source: &SourceText) -> Self {
        let lines = error
            .place()
            .and_then(|place| place.lines)
            .map(|(first, last)| Lines { first, last });
        Self {
            message: error.to_string(),
            excerpt: lines.and_then(|lines| excerpt(source, lines)),
            hint: error.hint().map(str::to_owned),
            canceled: matches!(error, SolveError::Canceled),
            exit: match error {
                SolveError::Process { exit, .. } => Some(*exit),
                _ => None,
            },
            state: None,
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
