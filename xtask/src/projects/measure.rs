//! `cargo xtask projects`: how long the projects take, with docker beside it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::{PROJECTS, Project};
use crate::bases::{self, BASES};
use crate::compare::Peers;
use crate::machine::{ID_MAPS, Kiln, Profile, install};
use crate::process::{command, output, run as run_command};
use crate::{say, workspace};

/// Where additions to what the machine trusts are.
const AUTHORITIES: &str = "/usr/local/share/ca-certificates";

/// What docker's bases get on top, for what `--host-ca` does in Kiln: the machine's authorities, and variables for the
/// programs that do not read the system's bundle.
const TRUSTING: &str = "COPY authorities /usr/local/share/ca-certificates\nRUN update-ca-certificates\n\
    ENV SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt PIP_CERT=/etc/ssl/certs/ca-certificates.crt \
    NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt CARGO_HTTP_CAINFO=/etc/ssl/certs/ca-certificates.crt\n";

/// Bases that run nothing while an image is built.
const BARE: [&str; 2] = ["uv", "static"];

/// Who builds.
enum Builder<'a> {
    Kiln(&'a Kiln),
    Docker(&'a Peers),
}

/// How long one project took: cold, cached, after one edit.
type Times = [Duration; 3];

/// The command: measures the named projects, all if none is named, and prints a table.
pub fn run(names: &[String], rounds: usize) -> Result<()> {
    let projects = chosen(names)?;
    install(&[ID_MAPS])?;
    let kiln = Kiln::build(Profile::Release)?;
    let needed: BTreeSet<&str> = projects.iter().flat_map(|it| it.bases).copied().collect();
    let needed: Vec<&str> = needed.into_iter().collect();
    bases::run_with(&kiln, &needed)?;
    let peers = Peers::from_environment();
    let mut builders = vec![Builder::Kiln(&kiln)];
    if let Some(peers) = &peers {
        give_bases(&kiln, peers, &needed)?;
        builders.push(Builder::Docker(peers));
    }

    let mut table = head(&builders);
    for project in projects {
        let mut row = format!("| {} |", project.name);
        for builder in &builders {
            let mut taken = Vec::new();
            for round in 0..rounds.max(1) {
                let id = format!("{}-{round}", std::process::id());
                let times = builder
                    .measure(project, &id)
                    .with_context(|| format!("project {}", project.name))?;
                taken.push(times);
            }
            for column in 0..3 {
                let seconds = median(taken.iter().map(|times| times[column])).as_secs_f64();
                let _ = write!(row, " {seconds:.2} |");
            }
        }
        say(&row);
        table.push_str(&row);
        table.push('\n');
    }
    say(&format!("\nseconds:\n\n{table}"));
    Ok(())
}

fn chosen(names: &[String]) -> Result<Vec<&'static Project>> {
    if names.is_empty() {
        return Ok(PROJECTS.iter().collect());
    }
    let named = |name: &String| {
        let known = PROJECTS.map(|project| project.name).join(", ");
        Project::named(name).with_context(|| format!("no project {name:?}; there are {known}"))
    };
    names.iter().map(named).collect()
}

fn head(builders: &[Builder<'_>]) -> String {
    let mut columns = "| project |".to_owned();
    let mut rule = "|---|".to_owned();
    for builder in builders {
        let name = match builder {
            Builder::Kiln(_) => "Kiln",
            Builder::Docker(_) => "docker",
        };
        let _ = write!(columns, " {name}: cold | cached | one edit |");
        rule.push_str("--:|--:|--:|");
    }
    format!("{columns}\n{rule}\n")
}

fn median(times: impl Iterator<Item = Duration>) -> Duration {
    let mut times: Vec<Duration> = times.collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// Hands Kiln's bases to docker, and makes of each one that trusts what the machine trusts.
pub(crate) fn give_bases(kiln: &Kiln, peers: &Peers, names: &[&str]) -> Result<()> {
    for base in BASES.iter().filter(|base| names.contains(&base.name)) {
        let (folder, inside) = peers.shared()?;
        run_command(
            kiln.command(["save", "-o"])
                .arg(folder.path().join("base.tar"))
                .arg(base.image),
        )?;
        let load = ["docker", "load", "-q", "-i"].map(OsString::from);
        run_command(peers.command(load).arg(inside.join("base.tar")))?;
        fs::remove_file(folder.path().join("base.tar"))?;
        if BARE.contains(&base.name) {
            continue;
        }
        let authorities = folder.path().join("authorities");
        fs::create_dir(&authorities)?;
        for entry in fs::read_dir(AUTHORITIES).into_iter().flatten().flatten() {
            fs::copy(entry.path(), authorities.join(entry.file_name()))?;
        }
        let dockerfile = format!("FROM {}\n{TRUSTING}", base.image);
        fs::write(folder.path().join("Dockerfile"), dockerfile)?;
        let build = ["docker", "build", "-q", "--network", "host", "-t"].map(OsString::from);
        run_command(peers.command(build).arg(trusting(base.image)).arg(inside))?;
    }
    Ok(())
}

/// The name in docker of a base that trusts what the machine trusts.
fn trusting(image: &str) -> String {
    format!("kiln-projects/{image}")
}

/// The options that make docker use those.
pub(crate) fn trusting_bases(project: &Project) -> Vec<String> {
    let bases = BASES.iter().filter(|it| project.bases.contains(&it.name));
    let bases = bases.filter(|base| !BARE.contains(&base.name));
    let option = |base: &bases::Base| {
        let named = format!("{}=docker-image://{}", base.image, trusting(base.image));
        ["--build-context".to_owned(), named]
    };
    bases.flat_map(option).collect()
}

impl Builder<'_> {
    /// Builds a copy of the project: with nothing but the bases, again, and after an edit. `id` is new each time, so that
    /// nothing of an earlier measurement is found: neither cache mounts nor a step with the same edit.
    fn measure(&self, project: &Project, id: &str) -> Result<Times> {
        let (folder, seen) = match self {
            Self::Kiln(_) => {
                let folder = tempfile::tempdir()?;
                let path = folder.path().to_owned();
                (folder, path)
            }
            Self::Docker(peers) => peers.shared()?,
        };
        let source = workspace().join("examples").join(project.folder).join(".");
        output(command("cp", ["-rp"]).arg(source).arg(folder.path()))?;
        let dockerfile = folder.path().join(project.dockerfile);
        let text = fs::read_to_string(&dockerfile)?;
        fs::write(&dockerfile, with_own_caches(&text, id))?;

        let cold = self.build(project, &seen, &["--no-cache"])?;
        let cached = self.build(project, &seen, &[])?;
        project.edit.make(folder.path())?;
        sign(&folder.path().join(project.edit.file), id)?;
        let edited = self.build(project, &seen, &[])?;
        Ok([cold, cached, edited])
    }

    fn build(&self, project: &Project, context: &Path, options: &[&str]) -> Result<Duration> {
        let mut build = match self {
            Self::Kiln(kiln) => kiln.command(["build"]),
            Self::Docker(peers) => {
                let mut build = peers.command(["docker", "build", "--provenance=false"]);
                build.args(trusting_bases(project));
                build
            }
        };
        build
            .args(["--network", "host", "--progress", "plain"])
            .args(["-t", &format!("kiln-projects/{}:built", project.name)])
            .args(options)
            .arg("-f")
            .arg(context.join(project.dockerfile))
            .arg(context);
        let start = Instant::now();
        output(&mut build)?;
        Ok(start.elapsed())
    }
}

/// The Dockerfile with cache mounts that only this measurement has: a cold build starts with empty ones.
fn with_own_caches(dockerfile: &str, id: &str) -> String {
    const MOUNT: &str = "--mount=type=cache,target=";
    let mut pieces = dockerfile.split(MOUNT);
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let target = piece.split([' ', ',', '\n']).next().unwrap_or_default();
        let _ = write!(text, "--mount=type=cache,id={id}{target},target={piece}");
    }
    text
}

/// Adds a comment to a source file.
pub(crate) fn sign(file: &Path, id: &str) -> Result<()> {
    let comment = if file.extension().is_some_and(|end| end == "py") {
        "#"
    } else {
        "//"
    };
    let mut file = OpenOptions::new().append(true).open(file)?;
    Ok(writeln!(file, "{comment} {id}")?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_mounts_are_told_apart() {
        let text =
            "RUN --mount=type=cache,target=/a \\\n --mount=type=cache,target=/b make\nRUN true\n";
        assert_eq!(
            with_own_caches(text, "7"),
            "RUN --mount=type=cache,id=7/a,target=/a \\\n --mount=type=cache,id=7/b,target=/b make\nRUN true\n"
        );
    }

    #[test]
    fn the_middle_counts() {
        let seconds = [5, 1, 3].map(Duration::from_secs);
        assert_eq!(median(seconds.into_iter()), Duration::from_secs(3));
    }
}
