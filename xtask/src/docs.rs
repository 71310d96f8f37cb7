//! `cargo xtask docs`: what is generated in `docs`. Tests say when it is stale.

use std::fs;

use anyhow::{Context as _, Result};

use crate::machine::{Kiln, Profile};
use crate::process::{command, run as finish};
use crate::workspace;

/// Writes `docs/cli.md` and `docs/screen.svg`.
pub fn run() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let kiln = Kiln::build(Profile::Dev)?;
    finish(kiln.command(["reference"]).arg(folder.path()))?;
    let to = workspace().join("docs/cli.md");
    fs::copy(folder.path().join("cli.md"), &to).with_context(|| to.display().to_string())?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut record = command(cargo, ["test", "-p", "kiln-progress", "picture"]);
    finish(record.current_dir(workspace()).env("KILN_RECORD", "1"))?;
    Ok(())
}
