//! The build graph: operations with several inputs and outputs, in the vocabulary of BuildKit's LLB (its `ops.proto`).
//! Pure data. The frontend makes it, the solver executes it; neither knows the other.

pub mod llb;
mod op;
mod secret;

pub use op::*;
pub use secret::is_secret_name;
