use std::io;
use std::path::{Path, PathBuf};

use kiln_image::LayerPath;

/// Why a root file system could not be made or read back.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// A file operation failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused the overlay mount.
    #[error("cannot mount an overlay at {}: {what}: {source}{}", path.display(), said(log))]
    Mount {
        /// The layer's folder.
        path: PathBuf,
        /// Which step of the mount failed.
        what: String,
        /// What the kernel says about it beside the error number; may be empty.
        log: String,
        /// The error number.
        source: io::Error,
    },
    /// The kernel stacks no more layers than this.
    #[error("{layers} layers are too many for one overlay: the kernel stacks at most {most}")]
    TooManyLayers {
        /// How many were asked for.
        layers: usize,
        /// The kernel's limit.
        most: usize,
    },
    /// The overlay left a mark that makes a layer depend on the layers below it, though it was mounted without.
    #[error("{path} has the overlay mark {mark}: its content lies in another layer")]
    Mark {
        /// Where.
        path: LayerPath,
        /// The extended attribute.
        mark: String,
    },
}

fn said(log: &str) -> String {
    if log.is_empty() {
        String::new()
    } else {
        format!(" ({log})")
    }
}

impl RootfsError {
    /// For `map_err`: an input or output error at `path`.
    pub(crate) fn io<E: Into<io::Error>>(
        action: &'static str,
        path: &Path,
    ) -> impl FnOnce(E) -> Self {
        move |source| Self::Io {
            action,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}
