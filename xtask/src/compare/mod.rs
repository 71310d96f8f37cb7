//! `cargo xtask compare`: the same Dockerfile built by Kiln and by docker must give the same files and the same config.

mod config;
mod diff;
mod saved;
mod tree;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

pub use config::config_differences;
pub use diff::{image_differences, tree_differences};
pub use saved::SavedImage;
pub use tree::{Kind, Node, Tree};

use crate::machine::{Kiln, Profile};
use crate::process::{command, output, run as run_command};
use crate::say;

/// What to build on both sides.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The context folder.
    pub context: PathBuf,
    /// The Dockerfile; the context's own if not given.
    pub file: Option<PathBuf>,
    /// The stage.
    pub target: Option<String>,
    /// `NAME=VALUE`.
    pub build_args: Vec<String>,
    /// Images that docker needs besides those that the Dockerfile names.
    pub bases: Vec<String>,
}

/// A root with a running docker in it; its `share` folder is seen by both sides.
#[derive(Debug, Clone)]
pub struct Peers {
    root: PathBuf,
}

impl Peers {
    /// From `KILN_PEERS`; says so where it is not set.
    pub fn from_environment() -> Option<Self> {
        let root = std::env::var_os("KILN_PEERS").map(PathBuf::from);
        if root.is_none() {
            say(
                "skipped: no comparison with docker; KILN_PEERS=ROOT names a root (for chroot) with docker in it",
            );
        }
        Some(Self { root: root? })
    }

    /// A command inside.
    pub fn command<I, S>(&self, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        let mut inside = command("chroot", [&self.root]);
        inside.args(args);
        inside
    }

    /// The socket of its Docker Engine, as it is reached from here.
    pub fn docker_socket(&self) -> PathBuf {
        self.root.join("run/docker.sock")
    }

    /// A new folder that both sides see, and its name inside.
    pub fn shared(&self) -> Result<(tempfile::TempDir, PathBuf)> {
        let share = self.root.join("share");
        let folder = tempfile::Builder::new()
            .prefix("kiln.")
            .tempdir_in(&share)
            .with_context(|| format!("cannot make a folder in {}", share.display()))?;
        let inside = Path::new("/share").join(folder.path().file_name().unwrap_or_default());
        Ok((folder, inside))
    }
}

/// The command. Code 1 if there is a difference.
pub fn run(request: &Request) -> Result<ExitCode> {
    let Some(peers) = Peers::from_environment() else {
        return Ok(ExitCode::SUCCESS);
    };
    let differences = compare(&Kiln::build(Profile::Release)?, &peers, request)?;
    for difference in &differences {
        say(difference);
    }
    say(&format!(
        "{} differences between Kiln (-) and docker (+)",
        differences.len()
    ));
    Ok(if differences.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Builds on both sides and lists the differences.
pub fn compare(kiln: &Kiln, peers: &Peers, request: &Request) -> Result<Vec<String>> {
    let (folder, inside) = peers.shared()?;
    let copied = Copied::new(request, folder.path())?;
    let dockerfile = fs::read_to_string(folder.path().join(&copied.file))?;

    let named = named_images(&dockerfile);
    for base in named.iter().chain(&request.bases) {
        if kiln.image_id(base).is_some() {
            let archive = folder.path().join("base.tar");
            run_command(kiln.command(["save", "-o"]).arg(&archive).arg(base))?;
            let load = ["docker", "load", "-q", "-i"].map(OsString::from);
            run_command(peers.command(load).arg(inside.join("base.tar")))?;
        }
    }

    // Others may compare at the same time, in this process too.
    let own = folder.path().file_name().unwrap_or_default();
    let tag = format!("kiln-compare:{}", own.display());
    let arguments = |at: &Path| -> Vec<OsString> {
        let mut arguments: Vec<OsString> =
            ["--network", "host", "--progress", "plain", "-t", &tag, "-f"]
                .map(OsString::from)
                .into();
        arguments.push(at.join(&copied.file).into());
        if let Some(target) = &request.target {
            arguments.extend(["--target".into(), target.into()]);
        }
        for pair in &request.build_args {
            arguments.extend(["--build-arg".into(), pair.into()]);
        }
        arguments.push(at.join(&copied.context).into());
        arguments
    };
    run_command(kiln.command(["build"]).args(arguments(folder.path())))?;
    run_command(
        kiln.command(["save", "-o"])
            .arg(folder.path().join("kiln.tar"))
            .arg(&tag),
    )?;
    let build = ["docker", "build", "--provenance=false"].map(OsString::from);
    run_command(peers.command(build).args(arguments(&inside)))?;
    let save = ["docker", "save", "-o"].map(OsString::from);
    run_command(peers.command(save).arg(inside.join("docker.tar")).arg(&tag))?;

    output(&mut kiln.command(["rmi", &tag]))?;
    output(&mut peers.command(["docker", "rmi", "-f", &tag]))?;
    let ours = SavedImage::read(&folder.path().join("kiln.tar"))?;
    let theirs = SavedImage::read(&folder.path().join("docker.tar"))?;
    Ok(image_differences(&ours, &theirs))
}

/// The copy of the context and the Dockerfile, as paths in the shared folder.
struct Copied {
    context: PathBuf,
    file: PathBuf,
}

impl Copied {
    fn new(request: &Request, folder: &Path) -> Result<Self> {
        let context = PathBuf::from("context");
        run_command(
            command("cp", ["-a"])
                .arg(request.context.join("."))
                .arg(folder.join(&context)),
        )?;
        let Some(file) = &request.file else {
            return Ok(Self {
                file: context.join("Dockerfile"),
                context,
            });
        };
        if let Ok(below) = file
            .canonicalize()?
            .strip_prefix(request.context.canonicalize()?)
        {
            return Ok(Self {
                file: context.join(below),
                context,
            });
        }
        fs::copy(file, folder.join("Dockerfile"))?;
        let mut ignore = file.clone().into_os_string();
        ignore.push(".dockerignore");
        if Path::new(&ignore).is_file() {
            fs::copy(&ignore, folder.join("Dockerfile.dockerignore"))?;
        }
        Ok(Self {
            file: "Dockerfile".into(),
            context,
        })
    }
}

/// The words of a Dockerfile that may name an image: a rough reading, the store tells which do.
fn named_images(dockerfile: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for line in dockerfile.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if first.eq_ignore_ascii_case("from") {
            found.extend(
                words
                    .find(|word| !word.starts_with("--"))
                    .map(str::to_owned),
            );
        } else {
            let from = |word: &str| word.strip_prefix("--from=").map(str::to_owned);
            let mounted = |word: &str| {
                let options = word.strip_prefix("--mount=")?;
                options
                    .split(',')
                    .find_map(|option| option.strip_prefix("from="))
                    .map(str::to_owned)
            };
            found.extend(words.filter_map(|word| from(word).or_else(|| mounted(word))));
        }
    }
    found.retain(|name| !name.contains('$') && name != "scratch");
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_where_a_dockerfile_names_them() {
        let text = "ARG X\nfrom --platform=linux/amd64 busybox AS a\nFROM $X\nFROM scratch\n\
                    COPY --chown=1 --from=debian:bookworm /a /b\nRUN --mount=type=bind,from=tools,target=/t true\n";
        let names: Vec<String> = named_images(text).into_iter().collect();
        assert_eq!(names, ["busybox", "debian:bookworm", "tools"]);
    }
}
