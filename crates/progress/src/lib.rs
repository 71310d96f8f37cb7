//! What happens during a build, as typed events, and the displays that draw them.
//!
//! Whatever builds sends [`Event`]s into a [`Sink`]; a [`Display`] is a sink that draws them: a live screen
//! ([`Mode::Tty`]), lines for log files ([`Mode::Plain`]), the steps in
//! order ([`Mode::Classic`]), `BuildKit`'s status stream ([`Mode::RawJson`]) or only what
//! failed ([`Mode::Quiet`]). Output of steps is never trusted: only its text reaches the screen.

mod classic;
mod color;
mod display;
pub mod event;
mod model;
mod plain;
mod quiet;
mod rawjson;
mod text;
mod tty;

pub use classic::ClassicStep;
pub use color::Colors;
pub use display::{Display, Mode, Options, display};
pub use event::{Event, Finding, NoSink, Sink, Stream, Tee, VertexId};

#[cfg(test)]
mod picture;
#[cfg(test)]
mod tests;
