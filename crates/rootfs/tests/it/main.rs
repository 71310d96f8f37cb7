//! Root file systems made for real. All of it needs root, or a user namespace with mapped ids.

mod lab;
mod overlay;
mod property;
mod userns;
