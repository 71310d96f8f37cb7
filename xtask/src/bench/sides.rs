//! Who is measured: the same work as a command line of each.

use std::ffi::{OsStr, OsString};
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;

use anyhow::Result;

use crate::compare::Peers;
use crate::machine::Kiln;
use crate::process::{output, succeeds};

/// The registry that belongs to the peers: plain HTTP, on loopback.
pub(super) const REGISTRY: &str = "127.0.0.1:5000";

/// A builder.
#[derive(Debug)]
pub(super) enum Side {
    Kiln(Kiln),
    Docker(Peers),
    Buildah(Peers),
}

/// A folder that all sides see.
#[derive(Debug)]
pub(super) struct Folder {
    here: Rc<tempfile::TempDir>,
    inside: PathBuf,
}

impl Folder {
    /// A new folder, which all may write: in what the peers share if there are any, else in `room`.
    pub(super) fn new(peers: Option<&Peers>, room: &Path) -> Result<Self> {
        let (here, inside) = if let Some(peers) = peers {
            peers.shared()?
        } else {
            let here = tempfile::tempdir_in(room)?;
            let inside = here.path().to_owned();
            (here, inside)
        };
        std::fs::set_permissions(here.path(), Permissions::from_mode(0o777))?;
        Ok(Self {
            here: Rc::new(here),
            inside,
        })
    }

    /// What keeps it from being removed.
    pub(super) fn kept(&self) -> Rc<tempfile::TempDir> {
        Rc::clone(&self.here)
    }

    /// Its name for this program and for Kiln.
    pub(super) fn here(&self) -> &Path {
        self.here.path()
    }

    /// The name of something in it for a side.
    fn seen_by(&self, side: &Side, name: &str) -> PathBuf {
        match side {
            Side::Kiln(_) => self.here().join(name),
            Side::Docker(_) | Side::Buildah(_) => self.inside.join(name),
        }
    }
}

impl Side {
    /// As a table calls it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Kiln(_) => "kiln",
            Self::Docker(_) => "docker",
            Self::Buildah(_) => "buildah",
        }
    }

    /// Builds what is in `context` below `folder`. RUN has the host's network, because the peers are without one of their
    /// own.
    pub(super) fn build(
        &self,
        folder: &Folder,
        context: &str,
        image: &str,
        options: &[&str],
    ) -> Command {
        let mut build = match self {
            Self::Kiln(kiln) => bare(kiln, ["build", "--progress", "plain"]),
            Self::Docker(peers) => peers.command([
                "docker",
                "build",
                "--progress",
                "plain",
                "--provenance=false",
            ]),
            // Without `--layers` nothing is cached.
            Self::Buildah(peers) => peers.command(["buildah", "build", "--layers"]),
        };
        build
            .args(["--network", "host", "-t", image])
            .args(options)
            .arg(folder.seen_by(self, context));
        build
    }

    /// Writes an image to a file below `folder` that is not there yet.
    pub(super) fn save(&self, image: &str, folder: &Folder, file: &str) -> Command {
        let file = folder.seen_by(self, file);
        match self {
            Self::Kiln(kiln) => with(
                bare(kiln, ["save", "-o"]),
                [file.as_os_str(), image.as_ref()],
            ),
            Self::Docker(peers) => with(
                peers.command(["docker", "save", "-o"]),
                [file.as_os_str(), image.as_ref()],
            ),
            Self::Buildah(peers) => {
                let mut to = OsString::from("docker-archive:");
                to.push(file);
                with(
                    peers.command(["buildah", "push", "-q"]),
                    [image.as_ref(), to.as_os_str()],
                )
            }
        }
    }

    /// Brings an image to the registry that its name begins with.
    pub(super) fn push(&self, image: &str) -> Command {
        match self {
            Self::Kiln(kiln) => bare(kiln, ["push", image]),
            Self::Docker(peers) => peers.command(["docker", "push", image]),
            Self::Buildah(peers) => peers.command(["buildah", "push", "--tls-verify=false", image]),
        }
    }

    /// Fetches an image. Kiln does it into the empty store `fresh`.
    pub(super) fn pull(&self, image: &str, fresh: &Path) -> Command {
        match self {
            Self::Kiln(kiln) => bare(&kiln.with_store(fresh), ["pull", image]),
            Self::Docker(peers) => peers.command(["docker", "pull", image]),
            Self::Buildah(peers) => peers.command(["buildah", "pull", "--tls-verify=false", image]),
        }
    }

    /// Forgets an image; nothing happens where it is not known.
    pub(super) fn remove(&self, image: &str) {
        let mut remove = match self {
            Self::Kiln(kiln) => bare(kiln, ["rmi", "-f", image]),
            Self::Docker(peers) => peers.command(["docker", "rmi", "-f", image]),
            Self::Buildah(peers) => peers.command(["buildah", "rmi", "-f", image]),
        };
        succeeds(&mut remove);
    }

    /// Runs `true` in a container. Buildah has no such command of its own; podman, which shares its store, has.
    pub(super) fn run_true(&self) -> Command {
        const ARGS: [&str; 6] = ["run", "--rm", "--network", "host", "busybox", "true"];
        match self {
            Self::Kiln(kiln) => bare(kiln, ARGS),
            Self::Docker(peers) => with(peers.command(["docker"]), ARGS),
            Self::Buildah(peers) => with(peers.command(["podman"]), ARGS),
        }
    }

    /// Takes an image of a docker archive that lies in `folder`.
    pub(super) fn load(&self, folder: &Folder, file: &str) -> Result<()> {
        let file = folder.seen_by(self, file);
        let mut load = match self {
            Self::Kiln(kiln) => bare(kiln, ["load", "-q", "-i"]),
            Self::Docker(peers) => peers.command(["docker", "load", "-q", "-i"]),
            Self::Buildah(peers) => peers.command(["podman", "load", "-q", "-i"]),
        };
        output(load.arg(file)).map(drop)
    }

    /// Whether it can be used: docker's daemon may be away.
    pub(super) fn is_there(&self) -> bool {
        match self {
            Self::Kiln(_) => true,
            Self::Docker(peers) => succeeds(&mut peers.command(["docker", "version"])),
            Self::Buildah(peers) => succeeds(&mut peers.command(["buildah", "version"])),
        }
    }

    /// What the side calls itself, with its version.
    pub(super) fn version(&self) -> String {
        let mut version = match self {
            Self::Kiln(kiln) => bare(kiln, ["--version"]),
            Self::Docker(peers) => peers.command(["docker", "--version"]),
            Self::Buildah(peers) => peers.command(["buildah", "--version"]),
        };
        output(&mut version).map_or_else(
            |_| self.name().to_owned(),
            |text| String::from_utf8_lossy(&text).trim().to_owned(),
        )
    }
}

/// `kiln` as the peers are: nothing is added to what steps see.
fn bare<const N: usize>(kiln: &Kiln, args: [&str; N]) -> Command {
    let mut command = kiln.command(args);
    command.env_remove("KILN_HOST_CA");
    command
}

fn with<S: AsRef<OsStr>>(mut command: Command, args: impl IntoIterator<Item = S>) -> Command {
    command.args(args);
    command
}
