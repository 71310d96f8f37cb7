//! `cargo xtask demo`: from nothing to a running image.

use anyhow::Result;

use crate::machine::{ID_MAPS, Kiln, Profile, install};
use crate::process::run as run_command;
use crate::{bases, workspace};

/// Builds Kiln and the bases of the Go example, then builds it both ways, shows both images and runs the smaller.
pub fn run() -> Result<()> {
    install(&[ID_MAPS])?;
    let kiln = Kiln::build(Profile::Release)?;
    bases::run_with(&kiln, &["busybox", "golang"])?;
    let context = workspace().join("examples/go-hello");
    run_command(
        kiln.command(["build", "-t", "user/hellogo:0.0.1"])
            .arg(&context),
    )?;
    let multi_stage = ["build", "-t", "user/hellogo:0.0.2", "-f"];
    run_command(
        kiln.command(multi_stage)
            .args([context.join("Dockerfile.ms"), context]),
    )?;
    run_command(&mut kiln.command(["images", "user/hellogo"]))?;
    run_command(&mut kiln.command(["run", "--rm", "user/hellogo:0.0.2"]))
}
