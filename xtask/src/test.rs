//! `cargo xtask test`: everything that `cargo test --workspace` needs, then `cargo test --workspace`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

use crate::machine::{
    DEBOOTSTRAP, ID_MAPS, Kiln, PLAIN_USER, Profile, Tool, ensure_plain_user, install, is_root,
};
use crate::process::command;
use crate::{bases, say, workspace};

/// What the tests use, and what is skipped without.
const TOOLS: [Tool; 12] = [
    ID_MAPS,
    DEBOOTSTRAP,
    ("strace", "strace"),
    ("skopeo", "skopeo"),
    ("podman", "podman"),
    // Podman's usual runtime refuses a machine with both generations of cgroups.
    ("runc", "runc"),
    ("docker-registry", "docker-registry"),
    ("umoci", "umoci"),
    // Runs programs for another processor.
    ("qemu-aarch64-static", "qemu-user-static"),
    ("setpriv", "util-linux"),
    // Completions are tried in them.
    ("fish", "fish"),
    ("zsh", "zsh"),
];

/// Where tests of this user keep stores: on a real file system, and not below a home that others may not enter.
pub fn scratch() -> PathBuf {
    std::env::var_os("KILN_TEST_DIR").map_or_else(
        || {
            PathBuf::from(format!(
                "/var/tmp/kiln-tests-{}",
                rustix::process::geteuid().as_raw()
            ))
        },
        PathBuf::from,
    )
}

/// Prepares the machine and runs the tests with `args`; the code is the test runner's.
pub fn run(args: &[OsString]) -> Result<ExitCode> {
    install(&TOOLS)?;
    if is_root() {
        ensure_plain_user()?;
    } else {
        say(&format!(
            "not root: skipped are the tests as root and as the user {PLAIN_USER}; the others run as you"
        ));
    }
    if std::env::var_os("KILN_PEERS").is_none() {
        say(
            "skipped: comparisons with docker; KILN_PEERS=ROOT names a root (for chroot) with docker in it",
        );
    }
    let scratch = scratch();
    fs::create_dir_all(&scratch).with_context(|| format!("cannot make {}", scratch.display()))?;
    fs::set_permissions(&scratch, fs::Permissions::from_mode(0o755))?;
    let kiln = Kiln::build(Profile::Dev)?.with_store(&scratch.join("bases"));
    let archives = bases::cache_dir();
    bases::archives(&kiln, &archives)?;

    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut tests = command(cargo, ["test"]);
    let chosen = |arg: &OsString| arg == "-p" || arg.to_string_lossy().starts_with("--package");
    if !args.iter().any(chosen) {
        tests.arg("--workspace");
    }
    if is_root() {
        tests.env("KILN_TEST_ALL", "1");
    }
    let status = tests
        .args(args)
        .current_dir(workspace())
        .env("KILN_BIN", kiln.binary())
        .env("KILN_TEST_BASES", &archives)
        .env("KILN_TEST_DIR", &scratch)
        .status()
        .context("cannot start cargo")?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
