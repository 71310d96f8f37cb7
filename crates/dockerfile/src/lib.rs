//! The Dockerfile language: lexer, parser, variable expansion, checks, diagnostics. Knows nothing of images or builds.

mod diagnostic;
mod lint;

pub use diagnostic::{Diagnostic, Lines, SourceText, excerpt};
pub use lint::{CheckSettings, Rule, Warning};
