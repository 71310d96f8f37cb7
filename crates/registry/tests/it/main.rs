//! The client against a real registry, and against a server that does everything wrong.

mod faults;
mod growing;
mod real;
mod support;
mod tokens;
