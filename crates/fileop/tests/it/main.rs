//! File operations on small trees.

mod actions;
mod archive;
mod common;
mod copy;
mod standing;
