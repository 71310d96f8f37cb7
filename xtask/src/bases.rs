//! `cargo xtask bases`: the base images that examples and tests start from. Two are root file systems of Debian
//! packages; the others are built with Kiln itself, from the Dockerfiles in `examples/bases`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::machine::{ID_MAPS, Kiln, Profile, install, is_root};
use crate::process::run;
use crate::{rootfs, say, target_dir, workspace};

const PATH: &str = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Where the content of a base image comes from.
#[derive(Debug)]
enum Origin {
    /// A tar file, made once and kept, and the command of the image.
    Rootfs(fn(&Path) -> Result<PathBuf>, &'static str),
    /// `examples/bases/NAME/Dockerfile`, which starts from the base of this short name.
    Dockerfile(&'static str),
}

/// A base image.
#[derive(Debug)]
pub struct Base {
    /// The short name: what `cargo xtask bases` takes.
    pub name: &'static str,
    /// The name of the image.
    pub image: &'static str,
    origin: Origin,
}

/// All bases; each after the one that it is built on.
pub const BASES: [Base; 12] = [
    Base::of_packages(
        "busybox",
        "busybox:latest",
        rootfs::busybox,
        r#"CMD ["sh"]"#,
    ),
    Base::of_packages(
        "debian",
        "debian:bookworm",
        rootfs::debian,
        r#"CMD ["bash"]"#,
    ),
    Base::built_on("debian", "slim", "slim:bookworm"),
    Base::built_on("slim", "static", "static:bookworm"),
    Base::built_on("debian", "golang", "golang:bookworm"),
    Base::built_on("debian", "jre", "jre:bookworm"),
    Base::built_on("jre", "jdk", "jdk:bookworm"),
    Base::built_on("jdk", "maven", "maven:bookworm"),
    Base::built_on("slim", "python", "python:bookworm"),
    Base::built_on("python", "uv", "uv:latest"),
    Base::built_on("slim", "node", "node:bookworm"),
    Base::built_on("slim", "rust", "rust:bookworm"),
];

impl Base {
    /// The short names.
    pub const NAMES: [&'static str; BASES.len()] = {
        let mut names = [""; BASES.len()];
        let mut at = 0;
        while at < names.len() {
            names[at] = BASES[at].name;
            at += 1;
        }
        names
    };

    const fn of_packages(
        name: &'static str,
        image: &'static str,
        make: fn(&Path) -> Result<PathBuf>,
        cmd: &'static str,
    ) -> Self {
        let origin = Origin::Rootfs(make, cmd);
        Self {
            name,
            image,
            origin,
        }
    }

    const fn built_on(below: &'static str, name: &'static str, image: &'static str) -> Self {
        let origin = Origin::Dockerfile(below);
        Self {
            name,
            image,
            origin,
        }
    }

    /// The archive of the finished image below `cache`.
    pub fn archive(&self, cache: &Path) -> PathBuf {
        cache.join(format!("{}.image.tar", self.name))
    }

    /// Puts the image into the store of `kiln`, making what is missing.
    fn make(&self, kiln: &Kiln, cache: &Path) -> Result<()> {
        match self.origin {
            Origin::Rootfs(make, cmd) => {
                let tar = make(cache)?;
                if kiln.image_id(self.image).is_some() {
                    return Ok(());
                }
                run(kiln
                    .command(["import", "-c", cmd, "-c", PATH])
                    .arg(tar)
                    .arg(self.image))
            }
            Origin::Dockerfile(_) => {
                let context = workspace().join("examples/bases").join(self.name);
                run(kiln.command(["build", "-t", self.image]).arg(context))
            }
        }
    }

    /// The short name of the base that it is built on.
    fn below(&self) -> Option<&'static str> {
        match self.origin {
            Origin::Rootfs(..) => None,
            Origin::Dockerfile(below) => Some(below),
        }
    }
}

/// Where tar files are kept between runs.
pub fn cache_dir() -> PathBuf {
    target_dir().join("bases")
}

/// The named bases, all if none is named, each after the one that it is built on.
fn with_all_below(names: &[&str]) -> Vec<&'static Base> {
    let mut wanted: BTreeSet<&str> = names.iter().copied().collect();
    let mut found: Vec<&Base> = Vec::new();
    for base in BASES.iter().rev() {
        if names.is_empty() || wanted.contains(&base.name) {
            wanted.extend(base.below());
            found.push(base);
        }
    }
    found.reverse();
    found
}

/// The base of a short name.
///
/// # Errors
///
/// There is none of that name.
pub fn named(name: &str) -> Result<&'static Base> {
    let base = BASES.iter().find(|base| base.name == name);
    base.with_context(|| format!("no base {name:?}; there are {}", Base::NAMES.join(", ")))
}

/// Makes the named bases, all if none is named, in the user's own store.
pub fn run_with(kiln: &Kiln, names: &[&str]) -> Result<()> {
    let cache = cache_dir();
    for base in with_all_below(names) {
        base.make(kiln, &cache)
            .with_context(|| format!("base image {}", base.image))?;
    }
    Ok(())
}

/// The command: with a binary of its own, then shows what is there.
///
/// With `registry`, `HOST:PORT` or a name with a path, they are pushed there under their own names.
pub fn run_named(names: &[String], registry: Option<&str>) -> Result<()> {
    install(&[ID_MAPS])?;
    let kiln = Kiln::build(Profile::Release)?;
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    run_with(&kiln, &names)?;
    if let Some(registry) = registry {
        for base in with_all_below(&names) {
            let name = format!("{registry}/{}", base.image);
            run(&mut kiln.command(["tag", base.image, &name]))?;
            run(&mut kiln.command(["push", &name]))?;
        }
    }
    run(&mut kiln.command(["images"]))
}

/// Makes all bases with `kiln` and writes them as archives below `cache`, for tests that start with an empty store.
/// An archive is written anew when the image has changed. A plain user, who cannot make all of them, is told what is left
/// out.
pub fn archives(kiln: &Kiln, cache: &Path) -> Result<()> {
    for base in &BASES {
        let archive = base.archive(cache);
        if let Err(error) = base.make(kiln, cache) {
            if is_root() {
                return Err(error.context(format!("base image {}", base.image)));
            }
            say(&format!(
                "warning: no base image {}, tests that need it are skipped: {error:#}",
                base.image
            ));
            let _ = fs::remove_file(archive);
            continue;
        }
        let id = kiln
            .image_id(base.image)
            .with_context(|| format!("`kiln inspect {}` has no id", base.image))?;
        let stamp = archive.with_extension("id");
        if archive.is_file() && fs::read_to_string(&stamp).is_ok_and(|old| old == id) {
            continue;
        }
        let part = archive.with_extension("part");
        run(kiln.command(["save", "-o"]).arg(&part).arg(base.image))?;
        fs::rename(&part, &archive)?;
        fs::write(&stamp, id)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_base_is_built_on_comes_before_it() {
        let names = |wanted: &[&str]| -> Vec<&str> {
            let found = with_all_below(wanted);
            found.into_iter().map(|base| base.name).collect()
        };
        assert_eq!(names(&[]), Base::NAMES);
        assert_eq!(names(&["uv"]), ["debian", "slim", "python", "uv"]);
        assert_eq!(
            names(&["jdk", "busybox"]),
            ["busybox", "debian", "jre", "jdk"]
        );
        for (at, base) in BASES.iter().enumerate() {
            let below = base.below();
            let made = below.is_none_or(|below| BASES[..at].iter().any(|it| it.name == below));
            assert!(made, "{} comes before {below:?}", base.name);
        }
    }
}
