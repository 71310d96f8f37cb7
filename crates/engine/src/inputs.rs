//! What a build starts from: the Dockerfile and the main context, from wherever they are.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use kiln_dockerfile::{Lines, SourceText, locate, nearest};
use kiln_frontend::{Context, Options};
use kiln_image::tar::{EntryKind, Reader};
use kiln_image::{LayerPath, compress};
use kiln_progress::{Event, Sink, VertexId};
use kiln_registry::Observer;
use kiln_remote::{GitAddress, RemoteError};
use kiln_solver::SolveError;

use crate::build::{BuildRequest, Dockerfile, DockerfileFrom, MainContext};
use crate::git_access::{git_access, git_source};
use crate::rows::{Row, Rows};
use crate::{BuildError, CancelFlag, Engine};

/// The name of the main context, and of the file in it when it is an archive.
const CONTEXT: &str = "context";
/// The title of the row for a context that is fetched.
const LOAD_CONTEXT: &str = "[internal] load remote build context";
/// Larger files are no Dockerfiles.
const MOST_DOCKERFILE: u64 = 16 << 20;
/// A Dockerfile from a web server is not larger than this; BuildKit's limit.
const MOST_REMOTE_DOCKERFILE: u64 = 2 << 20;

/// The Dockerfile, the options of the frontend and the local folders, all at hand.
pub(crate) struct Inputs {
    pub(crate) dockerfile: Dockerfile,
    pub(crate) options: Options,
    /// The folders of the contexts, by name.
    folders: BTreeMap<String, PathBuf>,
    /// The main context was fetched: ignore files have no say in it, as under docker.
    fetched: bool,
}

impl Inputs {
    /// The folder of a context.
    pub(crate) fn folder(&self, name: &str) -> Option<&Path> {
        self.folders.get(name).map(PathBuf::as_path)
    }

    /// The patterns of a context's ignore file; one beside the Dockerfile, with its name, wins for the main context.
    pub(crate) fn ignore_patterns(&self, context: &str) -> Result<Vec<String>, BuildError> {
        let ignore = self.ignore_file(context)?;
        Ok(ignore.map_or_else(Vec::new, |(_, text)| kiln_source::ignore::parse(&text)))
    }

    /// What the user is told of a failed solve; of a file that a context does not have also why.
    pub(crate) fn explained(&self, error: &SolveError, source: &SourceText) -> BuildError {
        let mut failed = BuildError::from_solve(error, source);
        let SolveError::Missing { context, path, .. } = error else {
            return failed;
        };
        let Some(folder) = self.folder(context) else {
            return failed;
        };
        let path = path.trim_start_matches('/');
        if let Some((first, last)) = failed.place.as_ref().map(|place| place.lines) {
            let lines = Lines { first, last };
            let span = locate(source, lines, path);
            failed = failed.at(source, lines, span);
        }
        failed.message = format!("{path:?}: not found in build context");
        if self.fetched && context == CONTEXT {
            return failed;
        }
        let _ = write!(failed.message, " {}", folder.display());
        let there = std::fs::symlink_metadata(folder.join(path)).is_ok();
        if !there {
            failed.hint = near_name(folder, path);
        }
        let Ok(Some((name, text))) = self.ignore_file(context) else {
            return failed;
        };
        if let (true, Ok(Some(rule))) = (there, kiln_source::ignore::explain(&text, path)) {
            let _ = write!(
                failed.message,
                ": excluded by line {} of {name}: {}",
                rule.line, rule.pattern
            );
            failed.hint = Some(format!(
                "take it back with a line !{path} behind that one, or remove the line"
            ));
        }
        failed
    }

    /// The name and the text of a context's ignore file.
    pub(crate) fn ignore_file(
        &self,
        context: &str,
    ) -> Result<Option<(String, Vec<u8>)>, BuildError> {
        if self.fetched && context == CONTEXT {
            return Ok(None);
        }
        let mut candidates = Vec::new();
        if let (Some(path), true) = (&self.dockerfile.path, context == CONTEXT) {
            let mut name = path.as_os_str().to_owned();
            name.push(".dockerignore");
            candidates.push(PathBuf::from(name));
        }
        candidates.extend(self.folder(context).map(|at| at.join(".dockerignore")));
        for candidate in candidates {
            match std::fs::read(&candidate) {
                Ok(text) => {
                    let name = candidate.file_name().unwrap_or_default();
                    return Ok(Some((name.to_string_lossy().into_owned(), text)));
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => {
                    let text = format!("cannot read {}: {error}", candidate.display());
                    return Err(BuildError::new(text));
                }
            }
        }
        Ok(None)
    }
}

/// The path of a folder's file that somebody may have meant.
fn near_name(folder: &Path, path: &str) -> Option<String> {
    let path = path.trim_end_matches('/');
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let entries = std::fs::read_dir(folder.join(parent)).ok()?;
    let names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    let meant = nearest(name, names.iter().map(String::as_str)).or_else(|| {
        names
            .iter()
            .map(String::as_str)
            .find(|known| known.eq_ignore_ascii_case(name))
    })?;
    Some(match parent {
        "" => format!("did you mean {meant}?"),
        parent => format!("did you mean {parent}/{meant}?"),
    })
}

/// Where the main context turned out to be.
enum Found {
    Folder(PathBuf),
    /// A folder with the one file `context`.
    Archive(PathBuf),
    /// The Dockerfile came instead of a context.
    Alone(Dockerfile),
    Empty,
}

impl Engine {
    /// Brings the main context and the Dockerfile.
    pub(crate) fn inputs(
        &self,
        request: &BuildRequest,
        rows: &mut Rows<'_>,
        cancel: &CancelFlag,
    ) -> Result<Inputs, BuildError> {
        let found = self.main_context(request, rows, cancel)?;
        let mut options = request.options.clone();
        let mut folders = request.folders.clone();
        match &found {
            Found::Folder(folder) => {
                options.context = Context::Local;
                folders.insert(CONTEXT.to_owned(), folder.clone());
            }
            Found::Archive(tree) => {
                options.context = Context::Archive;
                folders.insert(CONTEXT.to_owned(), tree.clone());
            }
            Found::Alone(_) | Found::Empty => options.context = Context::Empty,
        }
        let name = match &request.dockerfile {
            DockerfileFrom::Text(dockerfile) => dockerfile.name.clone(),
            DockerfileFrom::Context(path) => {
                path.clone().unwrap_or_else(|| "Dockerfile".to_owned())
            }
            DockerfileFrom::Url(url) => url.clone(),
        };
        let title = format!("[internal] load build definition from {name}");
        let dockerfile = rows.work(&title, |row| match (&request.dockerfile, found) {
            (DockerfileFrom::Text(dockerfile), _) => Ok(dockerfile.clone()),
            (DockerfileFrom::Url(url), _) => {
                let watching = Watching {
                    sink: row.sink,
                    row: row.id,
                    cancel,
                };
                let file = self.remote.http(url, "Dockerfile", 0o600, &watching)?;
                let path = file.tree.join("Dockerfile");
                let bytes = read(&path, url, MOST_REMOTE_DOCKERFILE)?;
                Ok(Dockerfile {
                    name: "Dockerfile".to_owned(),
                    bytes,
                    path: None,
                })
            }
            (DockerfileFrom::Context(None), Found::Alone(dockerfile)) => Ok(dockerfile),
            (DockerfileFrom::Context(path), Found::Folder(folder)) => {
                in_folder(&folder, path.as_deref())
            }
            (DockerfileFrom::Context(path), Found::Archive(tree)) => {
                in_archive(&tree.join(CONTEXT), path.as_deref())
            }
            (DockerfileFrom::Context(_), Found::Alone(_) | Found::Empty) => Err(BuildError::new(
                "both -f and the context are Dockerfiles",
            )
            .with_hint("give a Dockerfile or an archive of the context, not two Dockerfiles")),
        })?;
        Ok(Inputs {
            dockerfile,
            options,
            folders,
            fetched: !matches!(request.context, MainContext::Folder(_)),
        })
    }

    fn main_context(
        &self,
        request: &BuildRequest,
        rows: &mut Rows<'_>,
        cancel: &CancelFlag,
    ) -> Result<Found, BuildError> {
        let sink = rows.sink;
        let watching = |row: &Row<'_>| Watching {
            sink,
            row: row.id,
            cancel,
        };
        let tree = match &request.context {
            MainContext::Folder(folder) => return Ok(Found::Folder(folder.clone())),
            MainContext::Empty => return Ok(Found::Empty),
            MainContext::Git(text) => {
                let title = format!("[internal] load git source {text}");
                return rows.work(&title, |row| {
                    self.git_context(text, request, &watching(row))
                });
            }
            MainContext::Stream(stream) => rows.work(LOAD_CONTEXT, |row| {
                Ok(self.remote.keep(stream.as_ref(), CONTEXT, &watching(row))?)
            })?,
            MainContext::Http(url) => rows.work(LOAD_CONTEXT, |row| {
                let file = self.remote.http(url, CONTEXT, 0o600, &watching(row))?;
                Ok(file.tree)
            })?,
        };
        let path = tree.join(CONTEXT);
        if is_archive(&path)? {
            return Ok(Found::Archive(tree));
        }
        let what = match &request.context {
            MainContext::Http(url) => url.as_str(),
            _ => "standard input",
        };
        let bytes = read(&path, what, MOST_REMOTE_DOCKERFILE)?;
        Ok(Found::Alone(Dockerfile {
            name: "Dockerfile".to_owned(),
            bytes,
            path: None,
        }))
    }

    fn git_context(
        &self,
        text: &str,
        request: &BuildRequest,
        watching: &Watching<'_>,
    ) -> Result<Found, BuildError> {
        let source = kiln_frontend::git_context(text, &request.options).map_err(BuildError::new)?;
        let Some((url, how, checksum)) = git_source(&source) else {
            return Err(BuildError::new(format!("{text} is no git repository")));
        };
        let address = GitAddress::parse(url);
        let access = git_access(request, &address).map_err(BuildError::new)?;
        let commit = self.remote.commit(&address, &access, checksum, watching)?;
        let tree = self
            .remote
            .checkout(&address, &access, &commit, how, watching)?;
        Ok(Found::Folder(tree))
    }
}

/// Shows a transfer in a row.
struct Watching<'a> {
    sink: &'a dyn Sink,
    row: VertexId,
    cancel: &'a CancelFlag,
}

impl Observer for Watching<'_> {
    fn progress(&self, done: u64, total: u64) {
        self.sink.emit(Event::Status {
            id: self.row,
            name: "transferring".to_owned(),
            current: done,
            total,
            done: total > 0 && done >= total,
            at: std::time::SystemTime::now(),
        });
    }

    fn is_canceled(&self) -> bool {
        self.cancel.is_set()
    }
}

impl From<RemoteError> for BuildError {
    fn from(error: RemoteError) -> Self {
        let mut failed = Self::new(error.to_string());
        failed.hint = error.hint().map(str::to_owned);
        failed.canceled = error.is_canceled();
        failed
    }
}

fn read(path: &Path, what: &str, most: u64) -> Result<Vec<u8>, BuildError> {
    let failed = |error: std::io::Error| BuildError::new(format!("cannot read {what}: {error}"));
    let file = File::open(path).map_err(failed)?;
    limited(file, what, most)
}

fn limited(from: impl Read, what: &str, most: u64) -> Result<Vec<u8>, BuildError> {
    let mut bytes = Vec::new();
    from.take(most + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| BuildError::new(format!("cannot read {what}: {error}")))?;
    if bytes.len() as u64 > most {
        let text = format!("{what}: larger than {most} bytes, this is no Dockerfile");
        return Err(BuildError::new(text));
    }
    Ok(bytes)
}

/// The Dockerfile of a folder that was fetched: it may hold links, and none may lead out of it.
fn in_folder(folder: &Path, path: Option<&str>) -> Result<Dockerfile, BuildError> {
    let names = path.map_or_else(|| vec!["Dockerfile", "dockerfile"], |path| vec![path]);
    let failed = |error: std::io::Error| {
        BuildError::new(format!("failed to read dockerfile: {}: {error}", names[0]))
    };
    let folder = folder.canonicalize().map_err(failed)?;
    for name in &names {
        let at = folder.join(LayerPath::clean(name).as_path());
        let Ok(at) = at.canonicalize() else { continue };
        if !at.starts_with(&folder) {
            let text = format!("failed to read dockerfile: {name}: it leads out of the context");
            return Err(BuildError::new(text));
        }
        let file = File::open(&at).map_err(failed)?;
        return Ok(Dockerfile {
            name: (*name).to_owned(),
            bytes: limited(file, name, MOST_DOCKERFILE)?,
            path: Some(at),
        });
    }
    Err(no_dockerfile(names[0]))
}

fn no_dockerfile(name: &str) -> BuildError {
    BuildError::new(format!(
        "failed to read dockerfile: {name}: not found in the context"
    ))
    .with_hint("give its path in the context with -f")
}

/// The Dockerfile of an archive.
fn in_archive(archive: &Path, path: Option<&str>) -> Result<Dockerfile, BuildError> {
    let names = path.map_or_else(|| vec!["Dockerfile", "dockerfile"], |path| vec![path]);
    let found = members(archive, &names)?;
    let first = names.iter().zip(found).find_map(|(name, bytes)| {
        Some(Dockerfile {
            name: (*name).to_owned(),
            bytes: bytes?,
            path: None,
        })
    });
    first.ok_or_else(|| no_dockerfile(names[0]))
}

fn is_archive(path: &Path) -> Result<bool, BuildError> {
    let failed = |error: std::io::Error| {
        BuildError::new(format!(
            "cannot read the context {}: {error}",
            path.display()
        ))
    };
    let file = BufReader::new(File::open(path).map_err(failed)?);
    let Ok((_, content)) = compress::decoder(file) else {
        return Ok(false);
    };
    Ok(matches!(Reader::new(content).next_entry(), Ok(Some(_))))
}

/// The contents of regular files of an archive.
fn members(archive: &Path, wanted: &[&str]) -> Result<Vec<Option<Vec<u8>>>, BuildError> {
    let broken = |error: &dyn std::fmt::Display| {
        BuildError::new(format!("cannot read the context's archive: {error}"))
    };
    let wanted: Vec<LayerPath> = wanted.iter().map(LayerPath::clean).collect();
    let mut found = vec![None; wanted.len()];
    let file = BufReader::with_capacity(
        1 << 18,
        File::open(archive).map_err(|error| broken(&error))?,
    );
    let (_, content) = compress::decoder(file).map_err(|error| broken(&error))?;
    let mut reader = Reader::new(BufReader::with_capacity(1 << 16, content));
    while let Some(mut entry) = reader.next_entry().map_err(|error| broken(&error))? {
        let path = LayerPath::clean(&entry.header.path);
        if entry.header.kind != EntryKind::File {
            continue;
        }
        if let Some(at) = wanted.iter().position(|wanted| *wanted == path) {
            let what = path.to_string();
            found[at] = Some(limited(&mut entry.content, &what, MOST_DOCKERFILE)?);
        }
    }
    Ok(found)
}
