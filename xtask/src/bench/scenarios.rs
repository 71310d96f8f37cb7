//! What is measured.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use super::sides::{Folder, REGISTRY, Side};
use super::trees;
use crate::bases::{self, cache_dir};
use crate::process::{command, output, succeeds};
use crate::projects::{self, Project};
use crate::workspace;

/// Something that is measured on every side.
#[derive(Debug)]
pub(super) struct Scenario {
    /// What the command line calls it.
    pub(super) name: &'static str,
    /// One line for the table.
    pub(super) about: &'static str,
    prepare: fn(&Bench) -> Result<Case>,
}

/// A scenario whose files are in place.
pub(super) struct Case {
    before: Box<Before>,
    commands: Box<Commands>,
    limit: Option<Limit>,
    without_buildah: bool,
}

type Before = dyn Fn(&Side, usize) -> Result<()>;
type Commands = dyn Fn(&Side, usize) -> Vec<Command>;

/// What the machine itself needs for the part of the work that nobody can leave out.
pub(super) struct Limit {
    /// The work, for the table.
    pub(super) what: &'static str,
    take: Box<dyn Fn() -> Result<Duration>>,
}

impl Limit {
    fn new(what: &'static str, work: impl Fn() -> Result<()> + 'static) -> Self {
        let take = Box::new(move || {
            let start = Instant::now();
            work()?;
            Ok(start.elapsed())
        });
        Self { what, take }
    }

    /// Does the work and tells how long it took.
    pub(super) fn take(&self) -> Result<Duration> {
        rustix::fs::sync();
        (self.take)()
    }
}

impl Case {
    fn new(commands: impl Fn(&Side, usize) -> Vec<Command> + 'static) -> Self {
        Self {
            before: Box::new(|_, _| Ok(())),
            commands: Box::new(commands),
            limit: None,
            without_buildah: false,
        }
    }

    fn before(mut self, before: impl Fn(&Side, usize) -> Result<()> + 'static) -> Self {
        self.before = Box::new(before);
        self
    }

    fn limit(mut self, what: &'static str, work: impl Fn() -> Result<()> + 'static) -> Self {
        self.limit = Some(Limit::new(what, work));
        self
    }

    /// Does what a round of a side needs and is not measured, and gives the commands that are.
    pub(super) fn commands(&self, side: &Side, round: usize) -> Result<Vec<Command>> {
        (self.before)(side, round)?;
        Ok((self.commands)(side, round))
    }

    /// Whether a side does not do it.
    pub(super) fn leaves_out(&self, side: &Side) -> bool {
        self.without_buildah && matches!(side, Side::Buildah(_))
    }

    /// What the machine itself needs.
    pub(super) fn machine(&self) -> Option<&Limit> {
        self.limit.as_ref()
    }
}

impl Scenario {
    const fn new(
        name: &'static str,
        about: &'static str,
        prepare: fn(&Bench) -> Result<Case>,
    ) -> Self {
        Self {
            name,
            about,
            prepare,
        }
    }

    /// Makes its files.
    pub(super) fn prepare(&self, bench: &Bench) -> Result<Case> {
        (self.prepare)(bench)
    }
}

/// All scenarios.
pub(super) const SCENARIOS: [Scenario; 21] = [
    Scenario::new("cached", "fully cached, small, three stages", cached),
    Scenario::new("cached-20k", "fully cached, 20,000 files", |bench| {
        cached_files(bench, 20_000)
    }),
    Scenario::new("cached-200k", "fully cached, 200,000 files", |bench| {
        cached_files(bench, 200_000)
    }),
    Scenario::new(
        "changed",
        "one of 20,000 files changed, `COPY . .`",
        changed,
    ),
    Scenario::new("copy", "cold COPY of 20,000 files", copy),
    Scenario::new("runs", "20 trivial RUNs", runs),
    Scenario::new("stages-8", "8 stages of `sleep 1`", |bench| {
        stages(bench, 8)
    }),
    Scenario::new("stages-32", "32 stages of `sleep 1`", |bench| {
        stages(bench, 32)
    }),
    Scenario::new("copy-from", "COPY --from of a whole Debian", copy_from),
    Scenario::new("write", "RUN that writes 400 MiB", write),
    Scenario::new("save", "save of a 400 MiB image", save),
    Scenario::new("push", "push of a 400 MiB image", push),
    Scenario::new(
        "push-again",
        "push after a small change on top of 400 MiB",
        push_again,
    ),
    Scenario::new("pull", "pull of a 400 MiB image", pull),
    Scenario::new(
        "ten-builds",
        "10 small builds at once, nothing cached",
        ten_builds,
    ),
    Scenario::new("run", "start of `run busybox true`", run),
    Scenario::new("uncached", "small, three stages, nothing cached", uncached),
    Scenario::new(
        "metadata",
        "30 metadata instructions, nothing cached",
        metadata,
    ),
    Scenario::new("go", "a Go project after an edit of one line", |bench| {
        project(bench, "go-modules")
    }),
    Scenario::new(
        "node",
        "a Node project after an edit of one line",
        |bench| project(bench, "node-app"),
    ),
    Scenario::new(
        "rust",
        "a Rust project after an edit of one line",
        |bench| project(bench, "rust-app"),
    ),
];

/// A folder with a context `context` in it, whose Dockerfile is given.
fn context(bench: &Bench, dockerfile: &str) -> Result<Rc<Folder>> {
    let folder = bench.folder()?;
    write_context(&folder.here().join("context"), dockerfile)?;
    Ok(Rc::new(folder))
}

fn write_context(context: &Path, dockerfile: &str) -> Result<()> {
    fs::create_dir_all(context)?;
    fs::write(context.join("Dockerfile"), dockerfile)?;
    Ok(fs::write(context.join("main.txt"), "the program\n")?)
}

/// Builds `folder`'s context under a name of its own.
fn build(folder: &Rc<Folder>, image: &'static str, options: &'static [&'static str]) -> Case {
    let folder = Rc::clone(folder);
    Case::new(move |side, _| vec![side.build(&folder, "context", image, options)])
}

fn cached(bench: &Bench) -> Result<Case> {
    let folder = context(bench, trees::SMALL)?;
    Ok(build(&folder, "bench/cached", &[]))
}

fn with_tree(bench: &Bench, count: usize) -> Result<Rc<Folder>> {
    let folder = context(bench, trees::COPY_ALL)?;
    trees::tree(&folder.here().join("context/tree"), count)?;
    Ok(folder)
}

fn cached_files(bench: &Bench, count: usize) -> Result<Case> {
    let folder = with_tree(bench, count)?;
    let tree = folder.here().join("context");
    Ok(build(&folder, "bench/cached-files", &[])
        .limit("one `statx` of each file", move || look(&tree)))
}

/// Looks at every file below a folder.
fn look(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.metadata()?.is_dir() {
            look(&entry.path())?;
        }
    }
    Ok(())
}

fn changed(bench: &Bench) -> Result<Case> {
    let folder = with_tree(bench, 20_000)?;
    let tree = folder.here().join("context/tree");
    let looked = tree.clone();
    Ok(build(&folder, "bench/changed", &[])
        .before(move |side, round| {
            let (who, run) = (side.name(), std::process::id());
            let text = format!("changed for {who} in round {round} of {run}\n");
            Ok(fs::write(tree.join(trees::file(12_345)), text)?)
        })
        .limit("one `statx` of each file", move || look(&looked)))
}

fn copy(bench: &Bench) -> Result<Case> {
    let folder = with_tree(bench, 20_000)?;
    let tree = folder.here().join("context/tree");
    let room = bench.room.path().to_owned();
    Ok(build(&folder, "bench/copy", &["--no-cache"])
        .limit("`cp -a`", move || copy_tree(&tree, &room)))
}

fn copy_tree(tree: &Path, room: &Path) -> Result<()> {
    let to = tempfile::tempdir_in(room)?;
    let copied = to.path().join("copy");
    output(command("cp", ["-a"]).arg(tree).arg(&copied))?;
    // It stays until the last scenario has been measured.
    std::mem::forget(to);
    Ok(())
}

fn runs(bench: &Bench) -> Result<Case> {
    let folder = context(bench, &trees::trivial_runs())?;
    Ok(
        build(&folder, "bench/runs", &["--no-cache"]).limit("20 times a bare `unshare`", || {
            for _ in 0..20 {
                bare_namespace()?;
            }
            Ok(())
        }),
    )
}

fn bare_namespace() -> Result<()> {
    output(&mut command(
        "unshare",
        ["--mount", "--pid", "--fork", "true"],
    ))
    .map(drop)
}

fn stages(bench: &Bench, count: usize) -> Result<Case> {
    let folder = context(bench, &trees::sleeping_stages(count))?;
    Ok(
        build(&folder, "bench/stages", &["--no-cache"]).limit("`sleep 1`", || {
            output(&mut command("sleep", ["1"])).map(drop)
        }),
    )
}

fn copy_from(bench: &Bench) -> Result<Case> {
    let folder = context(bench, trees::COPY_DEBIAN)?;
    let room = bench.room.path().to_owned();
    let debian = room.join("debian");
    if !debian.exists() {
        fs::create_dir(&debian)?;
        output(
            command("tar", ["-xf"])
                .arg(cache_dir().join("debian.tar"))
                .arg("-C")
                .arg(&debian),
        )?;
    }
    Ok(build(&folder, "bench/copy-from", &["--no-cache"])
        .limit("`cp -a`", move || copy_tree(&debian, &room)))
}

fn write(bench: &Bench) -> Result<Case> {
    let folder = context(bench, &trees::writing_run())?;
    let room = bench.room.path().to_owned();
    Ok(
        build(&folder, "bench/write", &["--no-cache"]).limit("the command alone", move || {
            let to = tempfile::tempdir_in(&room)?;
            output(command("busybox", ["sh", "-c", trees::WRITE]).current_dir(to.path()))?;
            std::mem::forget(to);
            Ok(())
        }),
    )
}

/// A context with 400 MiB in it.
fn with_bulk(bench: &Bench, dockerfile: &str) -> Result<Rc<Folder>> {
    let folder = context(bench, dockerfile)?;
    trees::bulk(&folder.here().join("context/bulk"))?;
    Ok(folder)
}

const BULK: &str = "FROM busybox\nCOPY bulk /bulk\n";

fn build_once(side: &Side, folder: &Folder, image: &str) -> Result<()> {
    output(&mut side.build(folder, "context", image, &[])).map(drop)
}

fn save(bench: &Bench) -> Result<Case> {
    const IMAGE: &str = "bench/save";
    let folder = with_bulk(bench, BULK)?;
    let saved = Rc::clone(&folder);
    let bulk = folder.here().join("context/bulk");
    let room = bench.room.path().to_owned();
    Ok(
        Case::new(move |side, _| vec![side.save(IMAGE, &saved, "saved.tar")])
            .before(move |side, round| {
                if round == 0 {
                    build_once(side, &folder, IMAGE)?;
                }
                let _ = fs::remove_file(folder.here().join("saved.tar"));
                Ok(())
            })
            .limit("`cp -a` of the files", move || copy_tree(&bulk, &room)),
    )
}

fn needs_registry() -> Result<()> {
    let address = format!("http://{REGISTRY}/v2/");
    let there = succeeds(&mut command("curl", ["-sf", &address]));
    ensure!(
        there,
        "no registry at {REGISTRY}; it belongs to what KILN_PEERS names"
    );
    Ok(())
}

/// A name in the registry that belongs to a side and a round.
fn pushed_name(kind: &str, side: &Side, round: usize) -> String {
    format!(
        "{REGISTRY}/bench/{kind}-{}-{}:{round}",
        side.name(),
        std::process::id()
    )
}

fn push(bench: &Bench) -> Result<Case> {
    needs_registry()?;
    let folder = with_bulk(bench, BULK)?;
    let bulk = folder.here().join("context/bulk");
    let compressed = bulk.clone();
    Ok(
        Case::new(|side, round| vec![side.push(&pushed_name("push", side, round))])
            .before(move |side, round| {
                let image = pushed_name("push", side, round);
                trees::sign_bulk(&bulk, &image)?;
                build_once(side, &folder, &image)
            })
            .limit("`tar | gzip -1`", move || {
                let pipeline = "tar -c . | gzip -1 | cat >/dev/null";
                output(command("sh", ["-c", pipeline]).current_dir(&compressed)).map(drop)
            }),
    )
}

fn push_again(bench: &Bench) -> Result<Case> {
    needs_registry()?;
    let folder = with_bulk(bench, "FROM busybox\nCOPY bulk /bulk\nCOPY main.txt /\n")?;
    Ok(
        Case::new(|side, round| vec![side.push(&pushed_name("again", side, round))]).before(
            move |side, round| {
                let context = folder.here().join("context");
                let image = pushed_name("again", side, round);
                if round == 0 {
                    trees::sign_bulk(&context.join("bulk"), &image)?;
                }
                fs::write(context.join("main.txt"), &image)?;
                build_once(side, &folder, &image)
            },
        ),
    )
}

fn pull(bench: &Bench) -> Result<Case> {
    needs_registry()?;
    let image = format!("{REGISTRY}/bench/pull-{}:1", std::process::id());
    let folder = with_bulk(bench, BULK)?;
    // Kiln's pulls go into a store of their own; a daemon that had built it would have the layers in its build cache.
    let pusher = bench.sides.first().context("nobody to push")?;
    build_once(pusher, &folder, &image)?;
    output(&mut pusher.push(&image))?;
    let fresh = bench.room.path().join("fresh");
    let (removed, emptied) = (image.clone(), fresh.clone());
    let (blobs, room) = (blobs(&image)?, bench.room.path().to_owned());
    Ok(Case::new(move |side, _| vec![side.pull(&image, &fresh)])
        .before(move |side, _| {
            side.remove(&removed);
            match fs::remove_dir_all(&emptied) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            }
        })
        .limit("`curl | tar -xz` of each layer", move || {
            let to = tempfile::tempdir_in(&room)?;
            for blob in &blobs {
                let pipeline = format!("curl -sf {blob} | tar -xz");
                output(command("sh", ["-c", &pipeline]).current_dir(to.path()))?;
            }
            std::mem::forget(to);
            Ok(())
        }))
}

/// The addresses of an image's layers in the registry.
fn blobs(image: &str) -> Result<Vec<String>> {
    let (repository, tag) = image
        .trim_start_matches(REGISTRY)
        .trim_start_matches('/')
        .split_once(':')
        .context("a name with a tag")?;
    let accept = "Accept: application/vnd.docker.distribution.manifest.v2+json, application/vnd.oci.image.manifest.v1+json";
    let address = format!("http://{REGISTRY}/v2/{repository}/manifests/{tag}");
    let manifest = output(&mut command("curl", ["-sf", "-H", accept, &address]))?;
    let manifest: serde_json::Value = serde_json::from_slice(&manifest)?;
    let layers = manifest["layers"]
        .as_array()
        .context("a manifest with layers")?;
    let digests = layers.iter().filter_map(|layer| layer["digest"].as_str());
    Ok(digests
        .map(|digest| format!("http://{REGISTRY}/v2/{repository}/blobs/{digest}"))
        .collect())
}

fn ten_builds(bench: &Bench) -> Result<Case> {
    let folder = Rc::new(bench.folder()?);
    for number in 0..10 {
        let context = folder.here().join(format!("context{number}"));
        write_context(&context, &trees::small_project(number))?;
    }
    Ok(Case::new(move |side, _| {
        let build = |number: usize| {
            let (context, image) = (format!("context{number}"), format!("bench/ten:{number}"));
            side.build(&folder, &context, &image, &["--no-cache"])
        };
        (0..10).map(build).collect()
    }))
}

#[expect(clippy::unnecessary_wraps, reason = "as all scenarios are")]
fn run(_: &Bench) -> Result<Case> {
    let case = Case::new(|side, _| vec![side.run_true()]);
    Ok(case.limit("a bare `unshare`", bare_namespace))
}

fn uncached(bench: &Bench) -> Result<Case> {
    let folder = context(bench, trees::SMALL)?;
    Ok(build(&folder, "bench/uncached", &["--no-cache"]))
}

fn metadata(bench: &Bench) -> Result<Case> {
    let folder = context(bench, &trees::metadata(30))?;
    Ok(build(&folder, "bench/metadata", &["--no-cache"]))
}

/// A project of `examples`; the first round, which does not count, builds all of it and fetches what it needs.
fn project(bench: &Bench, name: &str) -> Result<Case> {
    let project = Project::named(name).with_context(|| format!("no project {name}"))?;
    let folder = Rc::new(bench.folder()?);
    for side in &bench.sides {
        let own = folder.here().join(side.name());
        let source = workspace().join("examples").join(project.folder).join(".");
        fs::create_dir(&own)?;
        output(command("cp", ["-rp"]).arg(source).arg(own))?;
        match side {
            Side::Kiln(kiln) => bases::run_with(kiln, project.bases)?,
            Side::Docker(peers) => {
                if let Some(Side::Kiln(kiln)) = bench.sides.first() {
                    projects::give_bases(kiln, peers, project.bases)?;
                }
            }
            Side::Buildah(_) => {}
        }
    }
    let edited = Rc::clone(&folder);
    let mut case = Case::new(move |side, _| {
        let options = match side {
            Side::Docker(_) => projects::trusting_bases(project),
            _ => Vec::new(),
        };
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        let mut build = side.build(&folder, side.name(), "bench/project", &options);
        // What other scenarios leave out: these fetch things.
        if let (Side::Kiln(_), Some(trust)) = (side, std::env::var_os("KILN_HOST_CA")) {
            build.env("KILN_HOST_CA", trust);
        }
        vec![build]
    })
    .before(move |side, round| {
        let file = edited.here().join(side.name()).join(project.edit.file);
        projects::sign(&file, &format!("{}-{round}", std::process::id()))
    });
    case.without_buildah = true;
    Ok(case)
}
