//! The parts of `cargo xtask`, as a library, because the integration tests use them too.

pub mod bases;
pub mod bench;
pub mod compare;
pub mod conformance;
pub mod demo;
pub mod dist;
pub mod docs;
pub mod machine;
pub mod mutate;
pub mod process;
pub mod projects;
mod rootfs;
pub mod soak;
mod sources;
pub mod test;

use std::path::{Path, PathBuf};

/// Tells the user something, on standard error, so that standard output holds only results.
#[expect(
    clippy::print_stderr,
    reason = "the one place of this tool that prints"
)]
pub fn say(text: &str) {
    eprintln!("{text}");
}

/// The checkout that this tool belongs to.
pub fn workspace() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_owned()
}

/// Where cargo puts what it builds.
pub fn target_dir() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from)
}
