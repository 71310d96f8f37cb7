//! Root file systems as tar files, made of Debian packages: what `kiln import` turns into the first base images.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use tar::{Builder, EntryType, Header};

use crate::machine::{DEBOOTSTRAP, install, is_root};
use crate::process::{command, output, run};
use crate::sources::{RELEASE, Sources};

/// Users and groups of the busybox base: name, id, home.
const USERS: [(&str, u32, &str); 5] = [
    ("root", 0, "/root"),
    ("daemon", 1, "/usr/sbin"),
    ("bin", 2, "/bin"),
    ("www-data", 33, "/var/www"),
    ("nobody", 65534, "/home"),
];
const MORE_GROUPS: [(&str, u32); 5] = [
    ("tty", 5),
    ("disk", 6),
    ("mail", 8),
    ("wheel", 10),
    ("users", 100),
];

/// Returns `made(part)` under its final name: an interrupted run leaves no half of a file.
fn cached(cache: &Path, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let done = cache.join(name);
    if !done.is_file() {
        fs::create_dir_all(cache).with_context(|| format!("cannot make {}", cache.display()))?;
        let part = cache.join(format!("{name}.{}.part", std::process::id()));
        let made = make(&part).with_context(|| format!("cannot make {}", done.display()));
        if made.is_err() {
            let _ = fs::remove_file(&part);
        }
        made?;
        fs::rename(&part, &done)?;
    }
    Ok(done)
}

/// The busybox root: one static program under many names.
pub(crate) fn busybox(cache: &Path) -> Result<PathBuf> {
    cached(cache, "busybox.tar", |part| {
        let folder = tempfile::tempdir()?;
        let program = busybox_program(folder.path())?;
        let names = String::from_utf8(output(&mut command(&program, ["--list"]))?)?;
        let mut tar = Builder::new(File::create(part)?);
        busybox_tree(&mut tar, &fs::read(&program)?, &names)?;
        tar.into_inner()?.sync_all()?;
        Ok(())
    })
}

/// The static busybox of the machine, or the one out of its package: unpacking needs no root.
fn busybox_program(folder: &Path) -> Result<PathBuf> {
    let query = ["--show", "--showformat=${Status}", "busybox-static"];
    if output(&mut command("dpkg-query", query)).is_ok_and(|status| status.ends_with(b" installed"))
    {
        return Ok("/bin/busybox".into());
    }
    if is_root() {
        run(&mut command("apt-get", ["update", "-q"]))?;
    }
    run(command("apt-get", ["download", "-q", "busybox-static"]).current_dir(folder))?;
    let package = fs::read_dir(folder)?
        .next()
        .context("apt-get downloaded nothing")??
        .path();
    run(command("dpkg-deb", ["--extract"]).arg(package).arg(folder))?;
    Ok(folder.join("bin/busybox"))
}

fn busybox_tree(tar: &mut Builder<File>, program: &[u8], names: &str) -> Result<()> {
    let folders = [
        ("bin", 0o755),
        ("dev", 0o755),
        ("etc", 0o755),
        ("home", 0o755),
        ("proc", 0o755),
        ("root", 0o700),
        ("sys", 0o755),
        ("tmp", 0o1777),
        ("usr", 0o755),
        ("var", 0o755),
        ("var/tmp", 0o1777),
        ("var/www", 0o755),
    ];
    for (name, mode) in folders {
        entry(tar, name, EntryType::Directory, mode, &[])?;
    }
    entry(tar, "bin/busybox", EntryType::Regular, 0o755, program)?;
    for name in names.lines().filter(|name| *name != "busybox") {
        let mut header = header(EntryType::Link, 0o755, 0);
        tar.append_link(&mut header, format!("bin/{name}"), "bin/busybox")?;
    }
    for (name, target) in [
        ("sbin", "bin"),
        ("usr/bin", "../bin"),
        ("usr/sbin", "../bin"),
    ] {
        tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), name, target)?;
    }

    let passwd = USERS.map(|(name, id, home)| {
        let shell = if id == 0 { "/bin/sh" } else { "/bin/false" };
        format!("{name}:x:{id}:{id}:{name}:{home}:{shell}\n")
    });
    let users = USERS.iter().map(|(name, id, _)| (*name, *id));
    let group: Vec<String> = users
        .chain(MORE_GROUPS)
        .map(|(name, id)| format!("{name}:x:{id}:\n"))
        .collect();
    entry(
        tar,
        "etc/passwd",
        EntryType::Regular,
        0o644,
        passwd.concat().as_bytes(),
    )?;
    entry(
        tar,
        "etc/group",
        EntryType::Regular,
        0o644,
        group.concat().as_bytes(),
    )?;
    entry(
        tar,
        "etc/nsswitch.conf",
        EntryType::Regular,
        0o644,
        b"hosts: files dns\n",
    )
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(size as u64);
    header
}

fn entry(
    tar: &mut Builder<File>,
    path: &str,
    kind: EntryType,
    mode: u32,
    content: &[u8],
) -> Result<()> {
    tar.append_data(&mut header(kind, mode, content.len()), path, content)?;
    Ok(())
}

/// The smallest Debian that has apt, with this machine's package sources.
pub(crate) fn debian(cache: &Path) -> Result<PathBuf> {
    cached(cache, "debian.tar", |part| {
        if !is_root() {
            bail!(
                "debootstrap needs root; run `cargo xtask bases debian` once as root in this checkout"
            );
        }
        install(&[DEBOOTSTRAP])?;
        let sources = Sources::of_machine(Path::new("/etc/apt"))?;
        let folder = tempfile::Builder::new()
            .prefix("debian.")
            .tempdir_in(cache)?;
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755))?;
        run(command("debootstrap", ["--variant=minbase", RELEASE])
            .arg(folder.path())
            .arg(&sources.archive))?;
        settle_debian(folder.path(), &sources)?;
        run(command(
            "tar",
            [
                "--create",
                "--numeric-owner",
                "--sort=name",
                "--xattrs",
                "--one-file-system",
            ],
        )
        .args([
            "--exclude=./dev/*",
            "--exclude=./proc/*",
            "--exclude=./sys/*",
            "--directory",
        ])
        .arg(folder.path())
        .arg("--file")
        .args([part, Path::new(".")]))
    })
}

/// What is particular to a container, and no left-overs of the making.
fn settle_debian(root: &Path, sources: &Sources) -> Result<()> {
    for folder in ["var/cache/apt", "var/lib/apt/lists", "var/log"] {
        empty(&root.join(folder))?;
    }
    for folder in [
        "var/cache/apt/archives/partial",
        "var/lib/apt/lists/partial",
        "var/log/apt",
    ] {
        fs::create_dir_all(root.join(folder))?;
    }
    let _ = fs::remove_file(root.join("var/cache/ldconfig/aux-cache"));
    let list = sources.to_list();
    let files = [
        ("etc/apt/sources.list", 0o644, list.as_str()),
        // Packages must not start services while an image is built.
        ("usr/sbin/policy-rc.d", 0o755, "#!/bin/sh\nexit 101\n"),
        // A step that fails is thrown away: flushing every file to the disk protects nothing.
        ("etc/dpkg/dpkg.cfg.d/container", 0o644, "force-unsafe-io\n"),
        (
            "etc/apt/apt.conf.d/99container",
            0o644,
            "Acquire::Languages \"none\";\nAPT::Update::Error-Mode \"any\";\n",
        ),
        ("etc/hostname", 0o644, "localhost\n"),
        ("etc/resolv.conf", 0o644, ""),
    ];
    for (path, mode, text) in files {
        let path = root.join(path);
        let mut file =
            File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        file.write_all(text.as_bytes())?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

/// Removes what is in a folder, not the folder.
fn empty(folder: &Path) -> Result<()> {
    for entry in
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?
    {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
