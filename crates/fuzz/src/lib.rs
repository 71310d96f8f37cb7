//! Fuzz targets: whatever the bytes are, the readers of Kiln must neither crash nor break their promises.
//!
//! A target is a function that takes bytes and panics when something is wrong. `cargo test` runs each on its seeds, on
//! what once went wrong (`regressions/TARGET/*`) and on seeds that are changed at random for some seconds;
//! `cargo xtask soak fuzz` hands them to libFuzzer for as long as one likes.

mod image;
mod language;
mod patterns;
mod seeds;
mod words;

use std::path::{Path, PathBuf};

/// One way in.
#[derive(Debug)]
pub struct Target {
    /// What it is called on the command line.
    pub name: &'static str,
    /// Panics when a promise is broken.
    pub run: fn(&[u8]),
    /// Inputs to start from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All targets.
pub const TARGETS: [Target; 11] = [
    Target {
        name: "dockerfile",
        run: language::dockerfile,
        seeds: seeds::dockerfiles,
    },
    Target {
        name: "plan",
        run: language::plan,
        seeds: seeds::dockerfiles,
    },
    Target {
        name: "expand",
        run: language::expand,
        seeds: seeds::expansions,
    },
    Target {
        name: "patterns",
        run: patterns::patterns,
        seeds: seeds::patterns,
    },
    Target {
        name: "reference",
        run: image::reference,
        seeds: seeds::references,
    },
    Target {
        name: "tar",
        run: image::tar,
        seeds: seeds::archives,
    },
    Target {
        name: "layer",
        run: image::layer,
        seeds: seeds::archives,
    },
    Target {
        name: "manifest",
        run: image::manifest,
        seeds: seeds::manifests,
    },
    Target {
        name: "config",
        run: image::config,
        seeds: seeds::configs,
    },
    Target {
        name: "index",
        run: image::index,
        seeds: seeds::indexes,
    },
    Target {
        name: "words",
        run: words::words,
        seeds: words::seeds,
    },
];

impl Target {
    /// Where the inputs are on which it once failed.
    pub fn regressions(&self) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("regressions")
            .join(self.name)
    }
}
