//! What can go wrong, with a hint where one helps.

use std::io;

use kiln_image::view::ResolveError;
use kiln_image::{Kind, LayerPath, MergedView};
use kiln_source::pattern::{BadPattern, PatternError};

/// Why a file operation failed.
#[derive(Debug, thiserror::Error)]
pub enum FileOpError {
    /// A source path, or the folder in front of its wildcards, is not there.
    #[error("{path:?}: not found")]
    NotFound {
        /// The path as it was given.
        path: String,
        /// What the user may have meant.
        hint: Option<String>,
    },
    /// A pattern matched nothing where it must.
    #[error("{pattern:?}: no file matches")]
    NoMatch {
        /// The pattern.
        pattern: String,
    },
    /// A folder is to be copied onto something that is none.
    #[error("cannot copy to non-directory: {path}")]
    NotAFolder {
        /// The destination.
        path: LayerPath,
        /// Where it points, if it is a symbolic link.
        target: Option<String>,
    },
    /// A file is to be copied onto a folder.
    #[error("cannot replace directory {path} with a file")]
    IsAFolder {
        /// The destination.
        path: LayerPath,
    },
    /// A folder is to be made where or below where something else is.
    #[error("mkdir {path}: not a directory")]
    MakeFolder {
        /// What is there.
        path: LayerPath,
    },
    /// The folder that is to hold the result is not there and may not be made.
    #[error("{path}: no such directory")]
    NoParent {
        /// The missing folder.
        path: LayerPath,
    },
    /// A path cannot be followed.
    #[error(transparent)]
    Resolve(#[from] ResolveError),
    /// A source pattern is not well formed.
    #[error(transparent)]
    Pattern(#[from] BadPattern),
    /// An include or exclude pattern is not well formed.
    #[error("invalid {what} pattern: {source}")]
    Filter {
        /// `include` or `exclude`.
        what: &'static str,
        /// What is wrong.
        source: PatternError,
    },
    /// `--chmod` is neither octal nor symbolic.
    #[error(
        "invalid chmod parameter: {mode:?}: it should be an octal number up to 07777, or symbolic like u=rwX,go=rX"
    )]
    Mode {
        /// As it was given.
        mode: String,
    },
    /// A user or group by name, where there is no image.
    #[error("cannot find {what} {name:?}: there is no image to look it up in")]
    Owner {
        /// `user` or `group`.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// An archive cannot be unpacked.
    #[error("cannot unpack {path}: {source}")]
    Archive {
        /// The archive.
        path: LayerPath,
        /// What is wrong with it.
        source: io::Error,
    },
    /// A source file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// In the source tree.
        path: LayerPath,
        /// The system's reason.
        source: io::Error,
    },
    /// The layer cannot be written.
    #[error("cannot write the layer: {0}")]
    Write(#[source] io::Error),
    /// The operation is not one: an input or action that does not exist, an output that no action gives.
    #[error("broken file operation: {0}")]
    Broken(String),
}

impl FileOpError {
    /// Advice for the user.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound { hint, .. } => hint.clone(),
            Self::NotAFolder {
                path,
                target: Some(target),
            } => Some(format!(
                "{path} is a symbolic link to {target}; copy to {target} instead, so that the link stays"
            )),
            Self::Owner { .. } => {
                Some("names are looked up in the image; a number always works".to_owned())
            }
            _ => None,
        }
    }

    /// For a path that is not in `tree`.
    pub(crate) fn not_found(path: &str, tree: &MergedView) -> Self {
        let link = tree
            .get(&LayerPath::clean(path))
            .and_then(|node| match &node.entry.kind {
                Kind::Symlink(target) => Some(String::from_utf8_lossy(target)),
                _ => None,
            });
        let hint = match link {
            Some(target) => Some(format!(
                "it is a symbolic link to {target:?}, which is not there"
            )),
            None => near(path, tree).map(|near| format!("did you mean {near:?}?")),
        };
        Self::NotFound {
            path: path.to_owned(),
            hint,
        }
    }
}

/// The path whose first wrong component is replaced by the most similar name that exists.
fn near(path: &str, tree: &MergedView) -> Option<String> {
    let wanted = LayerPath::clean(path);
    let mut folder = LayerPath::root();
    for name in wanted.components() {
        let next = tree.resolve(folder.child(name).as_bytes(), true).ok()?;
        if next.is_root() || tree.get(&next).is_some() {
            folder = next;
            continue;
        }
        let name = String::from_utf8_lossy(name).to_lowercase();
        let known = tree
            .children(&folder)
            .map(|(known, _)| String::from_utf8_lossy(known).into_owned());
        let (_, best) = known
            .map(|known| (distance(&name, &known.to_lowercase()), known))
            .filter(|&(distance, _)| distance <= 1 + name.len() / 5)
            .min()?;
        return Some(folder.child(best).to_string());
    }
    None
}

/// How many characters must be added, taken away or changed to get from one text to the other.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (above, char) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (at, &other) in to.iter().enumerate() {
            let changed = diagonal + usize::from(char != other);
            diagonal = row[at + 1];
            row[at + 1] = changed.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
