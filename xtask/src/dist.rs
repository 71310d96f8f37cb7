//! `cargo xtask dist`: what is shipped: the static binary, and an image with it that Kiln builds itself.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};

use crate::machine::{ID_MAPS, Kiln, install};
use crate::process::{command, output, run};
use crate::{bases, say, target_dir, workspace};

/// The name of the image.
const IMAGE: &str = "kiln:latest";

/// Builds both into `target/dist`, and the manual's pages into `man` there.
pub fn run_all() -> Result<()> {
    install(&[ID_MAPS])?;
    let folder = target_dir().join("dist");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let binary = static_binary()?;
    let shipped = folder.join("kiln");
    fs::copy(&binary, &shipped).with_context(|| format!("cannot copy {}", binary.display()))?;

    let kiln = Kiln::of(&shipped).with_store(&folder.join("store"));
    bases::run_with(&kiln, &["static"])?;
    let dockerfile = workspace().join("dist/Dockerfile");
    run(kiln
        .command(["build", "-t", IMAGE, "-f"])
        .arg(dockerfile)
        .arg(&folder))?;
    let archive = folder.join("kiln.image.tar");
    run(kiln.command(["save", "-o"]).arg(&archive).arg(IMAGE))?;
    run(&mut kiln.command(["run", "--rm", IMAGE, "version"]))?;
    // Pages for man. The document is in docs.
    let pages = folder.join("man");
    run(kiln.command(["reference"]).arg(&pages))?;
    fs::remove_file(pages.join("cli.md"))?;
    say(&format!("{}\n{}", shipped.display(), archive.display()));
    Ok(())
}

/// Builds the release binary with all its libraries inside, and makes sure that it is so.
fn static_binary() -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let target_dir = target_dir().join("static");
    let mut build = command(
        cargo,
        [
            "build",
            "--release",
            "--package",
            "kiln",
            "--target",
            &target,
        ],
    );
    build
        .arg("--target-dir")
        .arg(&target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static");
    run(build.current_dir(workspace()))?;
    let binary = target_dir.join(&target).join("release/kiln");
    let headers = output(command("readelf", ["--program-headers", "--wide"]).arg(&binary))?;
    ensure!(
        !String::from_utf8_lossy(&headers).contains("INTERP"),
        "{} needs libraries of the system: it is not static",
        binary.display()
    );
    Ok(binary)
}
