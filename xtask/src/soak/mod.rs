//! `cargo xtask soak`: what takes too long for every run of the tests.

pub mod fuzz;
pub mod kills;
