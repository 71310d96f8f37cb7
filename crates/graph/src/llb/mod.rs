//! The graph as BuildKit's LLB (`pb.Definition` of its `solver/pb/ops.proto`), and back without loss.
//!
//! What LLB has no field for travels in fields of Kiln's own, numbered from 50000, which BuildKit passes over. What LLB
//! can say and Kiln cannot do is refused by [`from_definition`]; what changes nothing in the result (progress groups,
//! capabilities, how a tag is resolved) is passed over.

mod decode;
mod encode;
pub mod pb;

use kiln_image::Digest;
use prost::Message as _;
use sha2::Digest as _;

pub use decode::from_definition;
pub use encode::to_definition;
pub use pb::Definition;

/// The input or output that stands for none.
const NONE: i64 = -1;
/// The source of a copy that has none.
const NO_SOURCE: i64 = -2;
/// What tells displays the name of an operation.
const TITLE: &str = "llb.customname";
const STEP: &str = "kiln.step";
const STAGE: &str = "kiln.stage";
const SECRET_MODE: u16 = 0o400;
const SSH_MODE: u16 = 0o600;
const SHM: &str = "/dev/shm";

/// A definition that is damaged, or asks for what Kiln does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LlbError {
    /// The bytes are no `pb.Definition`.
    #[error("no LLB definition: {0}")]
    Definition(prost::DecodeError),
    /// The bytes of one operation are no `pb.Op`.
    #[error("operation {op} cannot be read: {error}")]
    Op {
        /// Its number in the definition, from 0.
        op: usize,
        /// Why.
        error: prost::DecodeError,
    },
    /// There are no operations.
    #[error("the definition is empty, expected at least one operation and the target")]
    Empty,
    /// The last operation is no target.
    #[error("the last operation is no target: expected one without a kind and with one input")]
    NoTarget,
    /// An operation takes what no earlier operation is.
    #[error("operation {op} takes {digest:?}, which is no operation before it")]
    Missing {
        /// Its number.
        op: usize,
        /// What it takes.
        digest: String,
    },
    /// An operation takes an output that the other does not have.
    #[error("operation {op} takes output {output} of {digest}, which has none of that number")]
    Output {
        /// Its number.
        op: usize,
        /// The other operation.
        digest: String,
        /// The output.
        output: i64,
    },
    /// A part that must be there is not.
    #[error("operation {op} has no {what}")]
    Incomplete {
        /// Its number.
        op: usize,
        /// What is missing.
        what: &'static str,
    },
    /// A value that the field cannot have.
    #[error("operation {op} has the {what} {value:?}, which is invalid")]
    Value {
        /// Its number.
        op: usize,
        /// The field.
        what: &'static str,
        /// Its value.
        value: String,
    },
    /// Something that Kiln does not have.
    #[error("operation {op} uses {what}, which is not supported")]
    Unsupported {
        /// Its number.
        op: usize,
        /// What it uses.
        what: String,
    },
}

/// The bytes of a definition; the same for the same definition.
pub fn encode(definition: &Definition) -> Vec<u8> {
    definition.encode_to_vec()
}

/// Reads what [`encode`] or BuildKit wrote. The operations are read by [`from_definition`].
pub fn decode(bytes: &[u8]) -> Result<Definition, LlbError> {
    Definition::decode(bytes).map_err(LlbError::Definition)
}

/// An operation's name: the sha256 of its bytes.
fn digest(op: &[u8]) -> String {
    Digest::new(sha2::Sha256::digest(op).into()).to_string()
}
