//! The Dockerfile language: lexer, parser, variable expansion, checks, diagnostics. Knows nothing of images or builds.

mod ast;
mod diagnostic;
mod duration;
mod expand;
mod flags;
mod glob;
mod heredoc;
mod lexer;
mod lint;
mod mount;
mod own_checks;
mod parse;
mod parse_checks;
mod suggest;
mod words;

pub use ast::{
    Command, Dockerfile, Healthcheck, Instruction, Kind, Pair, Run, RunNetwork, Stage, Transfer,
    description,
};
pub use diagnostic::{Diagnostic, Lines, SourceText, Span, excerpt, locate, marked_excerpt};
pub use expand::{ExpandError, ExpandErrorKind, Expanded, Expander, MAX_EXPANDED, Variables};
pub use glob::PatternError;
pub use heredoc::Heredoc;
pub use lint::{CheckSettings, Rule, Warning};
pub use mount::{Mount, MountSharing, MountType};
pub use own_checks::own_checks;
pub use parse::{
    Complaint, Parsed, is_other_frontend, other_frontend, parse, parse_checked, parse_trigger,
};
pub use suggest::{did_you_mean, nearest};
