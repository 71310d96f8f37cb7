//! The machine: who runs this, Debian packages, the plain user of the tests, and the `kiln` binary.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process::{command, find, output, run, succeeds};
use crate::{say, target_dir, workspace};

/// The plain user that the tests build as when they run as root.
pub const PLAIN_USER: &str = "kilntest";

/// Whether this runs as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A program and the Debian package that has it.
pub type Tool = (&'static str, &'static str);

/// What `kiln` itself needs for a plain user.
pub const ID_MAPS: Tool = ("newuidmap", "uidmap");
/// Makes the Debian base.
pub const DEBOOTSTRAP: Tool = ("debootstrap", "debootstrap");
/// The content of the busybox base.
pub const BUSYBOX: Tool = ("busybox", "busybox-static");

/// Installs the packages of the tools that are not there. Not as root: says which are missing and goes on.
pub fn install(tools: &[Tool]) -> Result<()> {
    let missing: Vec<&str> = tools
        .iter()
        .filter(|(program, _)| find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() {
        say(&format!(
            "missing here: {0}; what needs them is skipped. As root: apt-get install {0}",
            missing.join(" ")
        ));
        return Ok(());
    }
    run(&mut command("apt-get", ["update", "-q"]))?;
    run(
        command("apt-get", ["install", "-qy", "--no-install-recommends"])
            .args(&missing)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// Makes the tests' plain user, with subordinate ids, if it is missing.
pub fn ensure_plain_user() -> Result<()> {
    if !succeeds(&mut command("id", ["-u", PLAIN_USER])) {
        run(&mut command(
            "useradd",
            ["--create-home", "--shell", "/bin/sh", PLAIN_USER],
        ))?;
    }
    for file in ["/etc/subuid", "/etc/subgid"] {
        let text = std::fs::read_to_string(file).unwrap_or_default();
        if !text
            .lines()
            .any(|line| line.starts_with(&format!("{PLAIN_USER}:")))
        {
            bail!(
                "{file} gives {PLAIN_USER} no ids; as root: usermod --add-subuids 200000-265535 --add-subgids 200000-265535 {PLAIN_USER}"
            );
        }
    }
    Ok(())
}

/// The numbers of the tests' plain user.
pub(crate) fn plain_user() -> Result<Ids> {
    ensure_plain_user()?;
    let number = |option| -> Result<u32> {
        let text = output(&mut command("id", [option, PLAIN_USER]))?;
        Ok(String::from_utf8_lossy(&text).trim().parse()?)
    };
    Ok((number("-u")?, number("-g")?))
}

/// How to build the binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quick to compile, with assertions: the tests.
    Dev,
    /// What users run.
    Release,
}

/// A user's and a group's number.
pub(crate) type Ids = (u32, u32);

/// The `kiln` binary, the store to use it with, and who does that.
#[derive(Debug, Clone)]
pub struct Kiln {
    binary: PathBuf,
    store: Option<PathBuf>,
    user: Option<Ids>,
}

impl Kiln {
    /// Builds the binary, or takes the one that `KILN_BIN` names.
    pub fn build(profile: Profile) -> Result<Self> {
        if let Some(binary) = std::env::var_os("KILN_BIN") {
            return Ok(Self {
                binary: binary.into(),
                store: None,
                user: None,
            });
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = command(cargo, ["build", "--package", "kiln"]);
        if profile == Profile::Release {
            build.arg("--release");
        }
        run(build.current_dir(workspace()))?;
        let folder = if profile == Profile::Release {
            "release"
        } else {
            "debug"
        };
        Ok(Self {
            binary: target_dir().join(folder).join("kiln"),
            store: None,
            user: None,
        })
    }

    /// A binary that is there.
    pub(crate) fn of(binary: &Path) -> Self {
        Self {
            binary: binary.to_owned(),
            store: None,
            user: None,
        }
    }

    /// The same binary with another store than the user's own.
    #[must_use]
    pub fn with_store(&self, store: &Path) -> Self {
        Self {
            store: Some(store.to_owned()),
            ..self.clone()
        }
    }

    /// The same binary, started by somebody else than the user who runs this.
    #[must_use]
    pub(crate) fn as_user(&self, user: Option<Ids>) -> Self {
        Self {
            user,
            ..self.clone()
        }
    }

    /// Where the binary is.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// `kiln` with `args`.
    pub fn command<I, S>(&self, args: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        let mut kiln = command(&self.binary, args);
        // Where a gateway signs with an authority of its own, steps that use the network need it.
        kiln.env("KILN_HOST_CA", "1");
        if let Some(store) = &self.store {
            kiln.env("KILN_ROOT", store);
        }
        if let Some((user, group)) = self.user {
            // Nothing of the home of who runs this may be read.
            kiln.uid(user).gid(group).env("HOME", "/nonexistent");
        }
        kiln
    }

    /// The id of a local image, if the store has it.
    pub fn image_id(&self, name: &str) -> Option<String> {
        let text = output(&mut self.command(["inspect", name])).ok()?;
        let parsed: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(parsed.get(0)?.get("Id")?.as_str()?.to_owned())
    }
}

/// Reads a file of the machine, with its name in the error.
pub(crate) fn read(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
