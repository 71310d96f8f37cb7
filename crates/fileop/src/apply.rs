//! Executing a file operation.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use kiln_graph::{CopyAction, FileAction, FileActionKind, FileInput, FileOp, Owner};
use kiln_image::{Entry, FileDigest, Kind, LayerId, LayerPath, MergedView, Totals, Xattrs};
use kiln_source::pattern::Glob;
use kiln_store::layer_fs::{self, Ids, LayerDirs};

use crate::builder::{Builder, Finished, Made};
use crate::copy::{Changes, copy};
use crate::mode::Chmod;
use crate::tree::{Folders, Tree};
use crate::{FileOpError, owner};

/// The result of a file operation.
#[derive(Debug)]
pub struct Applied {
    /// What the layer of each output, on top of the input that its chain of actions starts from, is as a whole. Its entries
    /// are in its index.
    pub layers: Vec<Totals>,
    /// For each of them the layer on whose folder it stands, if it stands on one.
    pub below: Vec<Option<LayerId>>,
    /// Files of a local context that were not what their index says when they were copied. The layers are true; a
    /// key that was made from the index is not the key of these layers.
    pub changed: Vec<LayerPath>,
    /// Names of owners that the image does not know, as sentences: what they should have owned is root's, or their
    /// user's group's.
    pub unknown: Vec<String>,
}

/// A layer to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewLayer {
    /// Its folder, beside those of all others.
    pub dir: PathBuf,
    /// A whole layer that may have most of the same files. If it has, the new one stands on its folder: what is in the
    /// new folder is only what was added or changed.
    pub earlier: Option<LayerId>,
}

impl From<PathBuf> for NewLayer {
    fn from(dir: PathBuf) -> Self {
        Self { dir, earlier: None }
    }
}

/// Executes a file operation: writes `fs/` and `index` of each of `layers`, one for each output. `now` is the time that new
/// folders and files get where the operation says nothing.
///
/// # Errors
/// See [`FileOpError`]. What was written so far is left in the layers' folders.
pub fn apply(
    op: &FileOp,
    inputs: &[Option<Tree<'_>>],
    layers: &[NewLayer],
    ids: Ids,
    now: (i64, u32),
) -> Result<Applied, FileOpError> {
    let empty = MergedView::default();
    let run = Run {
        op,
        inputs,
        empty: &empty,
        ids,
        now,
        unknown: RefCell::default(),
    };
    let mut applied = Applied {
        layers: Vec::new(),
        below: Vec::new(),
        changed: Vec::new(),
        unknown: Vec::new(),
    };
    for (output, layer) in (0u32..).zip(layers) {
        let last = op
            .actions
            .iter()
            .position(|action| action.output == Some(output));
        let last =
            last.ok_or_else(|| FileOpError::Broken(format!("no action gives output {output}")))?;
        let made = run.chain(last, layer)?;
        applied.layers.push(made.totals);
        applied.below.push(made.below);
        applied.changed.extend(made.changed);
    }
    applied.changed.sort_unstable();
    applied.changed.dedup();
    applied.unknown.extend(run.unknown.into_inner());
    Ok(applied)
}

struct Run<'a> {
    op: &'a FileOp,
    inputs: &'a [Option<Tree<'a>>],
    empty: &'a MergedView,
    ids: Ids,
    now: (i64, u32),
    unknown: RefCell<BTreeSet<String>>,
}

/// What an action of the same operation left, for another one to read.
struct Intermediate {
    view: MergedView,
    dirs: Vec<LayerDirs>,
}

impl<'a> Run<'a> {
    /// Executes the actions that lead to action `last`, in one layer.
    fn chain(&self, last: usize, layer: &NewLayer) -> Result<Finished, FileOpError> {
        let (base, actions) = self.actions(last)?;
        let mut sources = Vec::new();
        for &at in &actions {
            let from = match &self.op.actions[at].kind {
                FileActionKind::Copy(copy) => copy.from.unwrap_or(FileInput::Scratch),
                _ => FileInput::Scratch,
            };
            sources.push(match from {
                FileInput::Action(from) if from >= at => {
                    return Err(FileOpError::Broken(format!(
                        "action {at} reads the later action {from}"
                    )));
                }
                FileInput::Action(from) => Some(self.intermediate(from, &layer.dir)?),
                _ => None,
            });
        }
        let trees: Vec<Tree<'_>> = actions
            .iter()
            .zip(&sources)
            .map(|(&at, source)| match (source, &self.op.actions[at].kind) {
                (Some(left), _) => Ok(Tree {
                    view: &left.view,
                    dirs: left.dirs.clone(),
                    stamps: None,
                }),
                (None, FileActionKind::Copy(copy)) => {
                    self.input(copy.from.unwrap_or(FileInput::Scratch))
                }
                _ => Ok(self.scratch()),
            })
            .collect::<Result<_, _>>()?;
        let mut builder = Builder::new(&base, layer, self.ids)?;
        for (&at, from) in actions.iter().zip(&trees) {
            self.action(&mut builder, &self.op.actions[at], from)?;
        }
        let finished = builder.finish()?;
        if sources.iter().any(Option::is_some) {
            layer_fs::delete_layer(&aside(&layer.dir)).map_err(FileOpError::Write)?;
        }
        Ok(finished)
    }

    /// The tree that a chain starts from, and the numbers of its actions in order.
    fn actions(&self, last: usize) -> Result<(Tree<'a>, Vec<usize>), FileOpError> {
        let mut numbers = vec![last];
        loop {
            let at = *numbers.last().unwrap_or(&last);
            let action = self.op.actions.get(at);
            match action
                .ok_or_else(|| FileOpError::Broken(format!("there is no action {at}")))?
                .on
            {
                FileInput::Action(before) if before < at => numbers.push(before),
                FileInput::Action(before) => {
                    return Err(FileOpError::Broken(format!(
                        "action {at} works on the later action {before}"
                    )));
                }
                input => {
                    numbers.reverse();
                    return Ok((self.input(input)?, numbers));
                }
            }
        }
    }

    fn input(&self, input: FileInput) -> Result<Tree<'a>, FileOpError> {
        match input {
            FileInput::Input(at) => match self.inputs.get(at) {
                Some(Some(tree)) => Ok(tree.clone()),
                Some(None) => Ok(self.scratch()),
                None => Err(FileOpError::Broken(format!("there is no input {at}"))),
            },
            _ => Ok(self.scratch()),
        }
    }

    fn scratch(&self) -> Tree<'a> {
        Tree {
            view: self.empty,
            dirs: Vec::new(),
            stamps: None,
        }
    }

    /// Builds what action `at` leaves beside the layer.
    fn intermediate(&self, at: usize, layer_dir: &Path) -> Result<Intermediate, FileOpError> {
        let aside = aside(layer_dir).join(at.to_string());
        std::fs::create_dir_all(&aside).map_err(FileOpError::Write)?;
        self.chain(at, &aside.clone().into())?;
        let index = layer_fs::read_index(&aside).map_err(FileOpError::Write)?;
        let (base, _) = self.actions(at)?;
        let mut view = base.view.clone();
        view.push(index.into());
        let mut dirs = base.dirs;
        dirs.push(aside.join(layer_fs::FS).into());
        Ok(Intermediate { view, dirs })
    }

    fn action<'t>(
        &self,
        builder: &mut Builder<'t>,
        action: &FileAction,
        from: &'t Tree<'t>,
    ) -> Result<(), FileOpError>
    where
        'a: 't,
    {
        match &action.kind {
            FileActionKind::Copy(action) => self.copy(builder, action, from),
            FileActionKind::MkFile {
                path,
                mode,
                data,
                owner,
                timestamp,
            } => {
                let made = self.made(builder, *mode, owner.as_ref(), *timestamp)?;
                make_file(builder, path, data, made)
            }
            FileActionKind::MkDir {
                path,
                mode,
                make_parents,
                owner,
                timestamp,
            } => {
                let made = self.made(builder, *mode, owner.as_ref(), *timestamp)?;
                make_dir(builder, path, *make_parents, made)
            }
            FileActionKind::Rm {
                path,
                allow_not_found,
                allow_wildcard,
            } => remove(builder, path, *allow_not_found, *allow_wildcard),
        }
    }

    fn copy<'t>(
        &self,
        builder: &mut Builder<'t>,
        action: &CopyAction,
        from: &'t Tree<'t>,
    ) -> Result<(), FileOpError>
    where
        'a: 't,
    {
        let changes = Changes {
            owner: action
                .owner
                .as_ref()
                .map(|owner| self.owner(builder, owner))
                .transpose()?,
            chmod: action.mode.as_deref().map(Chmod::parse).transpose()?,
            mtime: action.timestamp.map(|seconds| (seconds, 0)),
            now: self.now,
        };
        copy(builder, action, from, &changes)
    }

    fn made(
        &self,
        builder: &mut Builder<'_>,
        mode: u16,
        owner: Option<&Owner>,
        timestamp: Option<i64>,
    ) -> Result<Made, FileOpError> {
        let owner = owner.map(|owner| self.owner(builder, owner)).transpose()?;
        Ok(Made {
            mode: mode & 0o777,
            owner: owner.unwrap_or((0, 0)),
            mtime: timestamp.map_or(self.now, |seconds| (seconds, 0)),
        })
    }

    /// Looks up names in the files of the tree that they refer to; the tree that is being built counts as it is now.
    fn owner(&self, builder: &mut Builder<'_>, owner: &Owner) -> Result<(u32, u32), FileOpError> {
        let read = |input, file: &str| match input {
            FileInput::Action(_) => builder.read(file),
            input => {
                let tree = self.input(input)?;
                let path = tree.view.resolve(file.as_bytes(), true)?;
                let Some(node) = tree.view.get(&path).filter(|node| node.entry.is_file()) else {
                    return Ok(None);
                };
                let mut content = Vec::new();
                Folders::new(&tree.dirs)
                    .open(node.layer, &path)
                    .and_then(|mut file| std::io::Read::read_to_end(&mut file, &mut content))
                    .map_err(|source| FileOpError::Read { path, source })?;
                Ok(Some(content))
            }
        };
        owner::look_up(owner, read, |name| {
            self.unknown.borrow_mut().insert(name);
        })
    }
}

/// Where a layer's intermediate trees are while it is made.
fn aside(layer_dir: &Path) -> PathBuf {
    layer_dir.join("actions")
}

fn make_file(
    builder: &mut Builder<'_>,
    path: &str,
    data: &[u8],
    made: Made,
) -> Result<(), FileOpError> {
    let path = builder.resolve(path.as_bytes(), true)?;
    let parent = path.parent().unwrap_or_default();
    if !builder.is_dir(&parent) {
        return Err(FileOpError::NoParent { path: parent });
    }
    if builder.is_dir(&path) {
        return Err(FileOpError::IsAFolder { path });
    }
    // Writing into a file that is there leaves its mode.
    let mode = builder.get(&path).map_or(made.mode, |entry| entry.mode);
    let kind = Kind::File {
        size: data.len() as u64,
        digest: FileDigest::new(*blake3::hash(data).as_bytes()),
    };
    let (uid, gid) = made.owner;
    let entry = Entry {
        path,
        kind,
        mode,
        uid,
        gid,
        mtime: made.mtime,
        xattrs: Xattrs::new(),
        hardlink: None,
    };
    builder.put_bytes(entry, data)
}

fn make_dir(
    builder: &mut Builder<'_>,
    path: &str,
    parents: bool,
    made: Made,
) -> Result<(), FileOpError> {
    let path = builder.resolve(path.as_bytes(), true)?;
    if path.is_root() {
        return Ok(());
    }
    if parents {
        return builder.make_folders(&path, made);
    }
    let parent = path.parent().unwrap_or_default();
    if !builder.is_dir(&parent) {
        return Err(FileOpError::NoParent { path: parent });
    }
    if builder.get(&path).is_some() {
        return Ok(());
    }
    builder.make_folders(&path, made)
}

fn remove(
    builder: &mut Builder<'_>,
    path: &str,
    allow_not_found: bool,
    allow_wildcard: bool,
) -> Result<(), FileOpError> {
    let cleaned = LayerPath::clean(path);
    let names: Vec<&[u8]> = cleaned.components().collect();
    let mut globs = Vec::new();
    if allow_wildcard {
        for name in &names {
            globs.push(Glob::new(&String::from_utf8_lossy(name))?);
        }
    }
    let plain = globs
        .iter()
        .take_while(|glob| glob.literal().is_some())
        .count();
    let mut found = Vec::new();
    if plain == globs.len() {
        let mut path = LayerPath::root();
        for (at, name) in names.iter().enumerate() {
            let folder = builder.resolve(path.as_bytes(), true)?;
            path = folder.join(globs.get(at).and_then(Glob::literal).unwrap_or(name));
        }
        found.push(path);
    } else {
        let start = globs[..plain]
            .iter()
            .filter_map(Glob::literal)
            .fold(LayerPath::root(), |path, name| path.join(name));
        let start = builder.resolve(start.as_bytes(), true)?;
        descend(builder, &start, &globs[plain..], &mut found);
    }
    for path in found {
        if path.is_root() {
            return Err(FileOpError::Broken("the root cannot be removed".to_owned()));
        }
        if builder.get(&path).is_some() {
            builder.remove(&path)?;
        } else if !allow_not_found {
            return Err(FileOpError::NotFound {
                path: path.to_string(),
                hint: None,
            });
        }
    }
    Ok(())
}

/// Finds what a pattern stands for in the tree that is built; links are not followed.
fn descend(
    builder: &mut Builder<'_>,
    folder: &LayerPath,
    globs: &[Glob],
    found: &mut Vec<LayerPath>,
) {
    let Some((first, rest)) = globs.split_first() else {
        return;
    };
    for name in builder
        .children(folder)
        .iter()
        .filter(|name| first.matches(name))
    {
        let path = folder.child(name);
        if rest.is_empty() {
            found.push(path);
        } else if builder.is_dir(&path) {
            descend(builder, &path, rest, found);
        }
    }
}
