//! What happens during a build, as typed events, and the displays that draw them.

pub mod event;

pub use event::{Event, Sink, VertexId};
