//! `cargo xtask conformance`: the behaviours of the Dockerfile language as builds. Each case of `crates/tests/conformance`
//! is built by the real binary; the tree and the config must be those of the golden file beside the case, which only
//! docker writes (`--record docker`), so that the truth is never ours.

mod case;
mod golden;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::num::NonZero;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use rustix::process::{getegid, geteuid};

pub use case::Case;

use crate::compare::{Peers, SavedImage};
use crate::machine::{Kiln, Profile, is_root};
use crate::process::{output, run as run_command};
use crate::{bases, say, test, workspace};

/// The whole golden text of a build that fails.
const FAILS: &str = "fails\n";
/// The image that cases start from.
const BASE: &str = "busybox:latest";

/// Where the cases are in a workspace.
pub(crate) const CASES: &str = "crates/tests/conformance";

/// Where the cases are.
pub fn folder() -> PathBuf {
    workspace().join(CASES)
}

/// A builder of images: Kiln in some setting, or docker.
pub struct Builder<'a> {
    /// The program with these arguments.
    pub command: &'a (dyn Fn(&[OsString]) -> Command + Sync),
    /// A folder for contexts and archives, as this process sees it.
    pub folder: PathBuf,
    /// The same folder as the program sees it.
    pub inside: PathBuf,
    /// The base image as it is saved.
    pub base: SavedImage,
    /// To whom all files of contexts are given, instead of to those that the cases name.
    pub owner: Option<(u32, u32)>,
}

impl std::fmt::Debug for Builder<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Builder")
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

/// What a build came to.
struct Built {
    /// In the form of a golden file.
    text: String,
    /// What the program said.
    said: String,
}

impl<'a> Builder<'a> {
    /// With the base image, which the program must have.
    pub fn new(
        command: &'a (dyn Fn(&[OsString]) -> Command + Sync),
        folder: &Path,
        inside: &Path,
    ) -> Result<Self> {
        let archive = folder.join("base-image.tar");
        let mut save = command(&["save".into(), "-o".into()]);
        output(save.arg(inside.join("base-image.tar")).arg(BASE))?;
        Ok(Self {
            command,
            folder: folder.to_owned(),
            inside: inside.to_owned(),
            base: SavedImage::read(&archive)?,
            owner: None,
        })
    }

    fn build(&self, case: &Case, options: &[&str]) -> Result<Built> {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("case-{}-{number}", std::process::id());
        let folder = self.folder.join(&name);
        let inside = self.inside.join(&name);
        fs::create_dir(&folder)?;
        fs::create_dir(folder.join("context"))?;
        if let Some((uid, gid)) = self.owner {
            std::os::unix::fs::chown(&folder, Some(uid), Some(gid))?;
        }
        case.write(&folder.join("context"), self.owner)?;
        let tag = format!("kiln-conformance:{name}");
        let mut arguments: Vec<OsString> = ["build", "--progress", "plain", "-t", &tag]
            .map(OsString::from)
            .into();
        arguments.extend(options.iter().map(OsString::from));
        let given = case.args_in(&inside.join("context"));
        arguments.extend(given.into_iter().map(OsString::from));
        let built = (self.command)(&arguments)
            .envs(case.env.iter().cloned())
            .stdin(Stdio::null())
            .output()?;
        let said = String::from_utf8_lossy(&[built.stdout, built.stderr].concat()).into_owned();
        let text = if built.status.success() {
            let mut save = (self.command)(&["save".into(), "-o".into()]);
            output(save.arg(inside.join("image.tar")).arg(&tag))?;
            output(&mut (self.command)(&["rmi".into(), tag.into()]))?;
            let image = SavedImage::read(&folder.join("image.tar"))?;
            golden::describe(&image, &self.base)
        } else {
            let code = built.status.code();
            ensure!(code.is_some_and(|code| code != 101), "it crashed:\n{said}");
            FAILS.to_owned()
        };
        fs::remove_dir_all(folder)?;
        Ok(Built { text, said })
    }

    /// Builds a case with Kiln; the error says in what it is not as it should be.
    pub fn check(&self, case: &Case) -> Result<()> {
        let expected = expected(case)?;
        let built = self.build(case, &["--no-cache"])?;
        if built.text == FAILS && expected != FAILS {
            bail!("it fails:\n{}", built.said.trim_end());
        }
        let different = golden::differences(&built.text, &expected);
        ensure!(
            different.is_empty(),
            "ours (-) and docker's (+) differ:\n{}",
            different.join("\n")
        );
        ensure!(
            case.fails.is_some() == (expected == FAILS),
            "the section `fails` and the golden file disagree"
        );
        for text in case.fails.iter().flatten() {
            ensure!(
                built.said.contains(text),
                "the message does not say {text:?}:\n{}",
                built.said.trim_end()
            );
        }
        Ok(())
    }
}

/// What must come out of a case.
fn expected(case: &Case) -> Result<String> {
    if let Some(expected) = &case.expected {
        return Ok(expected.clone());
    }
    let path = case.golden();
    let text = fs::read_to_string(&path).with_context(|| {
        format!(
            "no golden file {}; `cargo xtask conformance --record docker` writes it",
            path.display()
        )
    })?;
    let (of, text) = text.split_once('\n').unwrap_or_default();
    ensure!(
        of == stamp(case),
        "the golden file is of an older text of the case; `cargo xtask conformance --record docker` writes it anew"
    );
    Ok(text.to_owned())
}

fn stamp(case: &Case) -> String {
    format!("of {}", case.hash())
}

/// Checks cases, several at once. Gives the failing ones with their errors, in order; a known bug is to fail.
pub fn check_all<'c>(builder: &Builder<'_>, cases: &'c [Case]) -> Vec<(&'c Case, anyhow::Error)> {
    let failed = Mutex::new(Vec::new());
    each(cases, |at, case| {
        let checked = match (builder.check(case), &case.known_bug) {
            (Err(_), Some(_)) => Ok(()),
            (Ok(()), Some(_)) => Err(anyhow!("it passes: take `known bug` out of the case")),
            (checked, None) => checked,
        };
        if let Err(error) = checked {
            let mut failed = failed.lock().expect("no panic while held");
            failed.push((at, case, error));
        }
    });
    let mut failed = failed.into_inner().expect("no panic while held");
    failed.sort_by_key(|(at, ..)| *at);
    failed
        .into_iter()
        .map(|(_, case, error)| (case, error))
        .collect()
}

/// Calls `work` for all cases, on as many threads as there are processors.
fn each<'c>(cases: &'c [Case], work: impl Fn(usize, &'c Case) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(cases.len()) {
            scope.spawn(|| {
                while let Some((at, case)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    cases.get(at).map(|case| (at, case))
                } {
                    work(at, case);
                }
            });
        }
    });
}

/// The command: counts by group and the names of what fails. Code 1 if something does.
pub fn run(filter: &str) -> Result<ExitCode> {
    let mut cases = Case::all(&folder(), filter)?;
    cases.retain(|case| is_root() || !case.needs_root);
    let failed = check_with(&prepared(&Kiln::build(Profile::Dev)?)?, &cases)?;
    let mut groups: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for case in cases.iter().filter(|case| case.known_bug.is_none()) {
        groups.entry(&case.group).or_default().0 += 1;
    }
    for (case, error) in &failed {
        groups.entry(&case.group).or_default().1 += 1;
        say(&format!("FAILED {}: {error:#}", case.title()));
    }
    for (group, (all, failed)) in &groups {
        say(&format!(
            "{group}: {} passed, {failed} failed",
            all - failed
        ));
    }
    let known: Vec<&Case> = cases
        .iter()
        .filter(|case| case.known_bug.is_some())
        .collect();
    for case in &known {
        let bug = case.known_bug.as_deref().unwrap_or_default();
        say(&format!("known bug {}: {bug}", case.title()));
    }
    say(&format!(
        "{} behaviours: {} passed, {} failed, {} known bugs",
        cases.len(),
        cases.len() - failed.len() - known.len(),
        failed.len(),
        known.len()
    ));
    Ok(if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The titles of the cases of some groups below `folder` that fail with this binary.
pub(crate) fn failing(kiln: &Kiln, folder: &Path, groups: &[&str]) -> Result<Vec<String>> {
    let mut cases = Case::all(folder, "")?;
    cases.retain(|case| groups.contains(&case.group.as_str()));
    let failed = check_with(&prepared(kiln)?, &cases)?;
    Ok(failed.iter().map(|(case, _)| case.title()).collect())
}

/// Checks cases with Kiln as it was prepared.
fn check_with<'c>(kiln: &Kiln, cases: &'c [Case]) -> Result<Vec<(&'c Case, anyhow::Error)>> {
    let folder = work_folder()?;
    let command = |args: &[OsString]| {
        let mut kiln = kiln.command(args);
        // Certificates of this machine are no part of what a case is to show.
        kiln.env_remove("KILN_HOST_CA");
        kiln
    };
    let mut builder = Builder::new(&command, folder.path(), folder.path())?;
    if !is_root() {
        let own = (geteuid().as_raw(), getegid().as_raw());
        builder.owner = Some(own);
    }
    Ok(check_all(&builder, cases))
}

/// Writes the golden files that are missing or of another text of their case.
pub fn record(filter: &str) -> Result<ExitCode> {
    let mut cases = Case::all(&folder(), filter)?;
    cases.retain(|case| case.expected.is_none() && expected(case).is_err());
    let Some(peers) = Peers::from_environment() else {
        return Ok(ExitCode::FAILURE);
    };
    let kiln = prepared(&Kiln::build(Profile::Dev)?)?;
    let (folder, inside) = peers.shared()?;
    run_command(
        kiln.command(["save", "-o"])
            .arg(folder.path().join("base.tar"))
            .arg(BASE),
    )?;
    let load = ["docker", "load", "-q", "-i"].map(OsString::from);
    run_command(peers.command(load).arg(inside.join("base.tar")))?;
    let command = |args: &[OsString]| {
        let mut docker = peers.command(["docker"]);
        docker.args(args);
        docker
    };
    let builder = Builder::new(&command, folder.path(), &inside)?;
    let options = ["--provenance=false", "--network=host", "--no-cache"];
    let failed = AtomicUsize::new(0);
    each(&cases, |_, case| {
        let recorded = builder.build(case, &options).and_then(|built| {
            if built.text == FAILS && case.fails.is_none() {
                bail!("docker fails:\n{}", built.said.trim_end());
            }
            let text = format!("{}\n{}", stamp(case), built.text);
            Ok(fs::write(case.golden(), text)?)
        });
        match recorded {
            Ok(()) => say(&format!("recorded {}", case.title())),
            Err(error) => {
                failed.fetch_add(1, Ordering::Relaxed);
                say(&format!("FAILED {}: {error:#}", case.title()));
            }
        }
    });
    Ok(if failed.into_inner() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Kiln with a store of its own that has the base.
fn prepared(kiln: &Kiln) -> Result<Kiln> {
    let scratch = test::scratch();
    fs::create_dir_all(&scratch)?;
    fs::set_permissions(&scratch, fs::Permissions::from_mode(0o755))?;
    let store = scratch.join("conformance");
    // Another version may have written the last one. Where a plain user cannot remove it, it is used again.
    let _ = fs::remove_dir_all(&store);
    let kiln = kiln.with_store(&store);
    bases::run_with(&kiln, &["busybox"])?;
    Ok(kiln)
}

fn work_folder() -> Result<tempfile::TempDir> {
    Ok(tempfile::Builder::new()
        .prefix("conformance.")
        .tempdir_in(test::scratch())?)
}
