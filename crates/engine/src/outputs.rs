//! What a build leaves behind: an image in the store and in registries, archives, files.

use std::fs::{self, File};
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_export::{
    Committed, ExportError, Format, Packing, Place, Published, Saving, Watch, commit,
};
use kiln_frontend::Plan;
use kiln_image::{Digest, Reference};
use kiln_solver::Snapshot;
use kiln_store::Lease;

use crate::rows::Rows;
use crate::{BuildError, BuildRequest, CancelFlag, Engine};

/// One thing that a build leaves behind.
#[derive(Debug, Clone)]
pub enum Output {
    /// An image in the store.
    Image {
        /// Its names.
        names: Vec<Reference>,
        /// Push it under these names.
        push: bool,
        /// Its form in registries.
        packing: Packing,
    },
    /// An archive that others load.
    Archive {
        /// Its kind.
        format: Format,
        /// Where to.
        to: To,
        /// The image's names in it.
        names: Vec<Reference>,
        /// The image's form in it.
        packing: Packing,
    },
    /// The files of the result as one tar.
    Tar(To),
    /// The files of the result in a folder.
    Files {
        /// The folder; made if it is not there.
        folder: PathBuf,
        /// Remove what is in it and not in the result.
        delete: bool,
    },
    /// Nothing: what was built is in the cache.
    Nothing,
}

/// Where bytes go.
#[derive(Debug, Clone)]
pub enum To {
    /// Into a file, which is there only when it is complete.
    File(PathBuf),
    /// Into something that is open, standard output for one.
    Stream(Arc<File>),
    /// Into a folder.
    Folder(PathBuf),
}

/// What came of the outputs.
#[derive(Debug, Default)]
pub(crate) struct PutOut {
    pub(crate) image: Option<Committed>,
    pub(crate) pushed: Vec<Published>,
}

/// What the outputs are made of.
pub(crate) struct Outcome<'a> {
    pub(crate) request: &'a BuildRequest,
    pub(crate) plan: &'a Plan,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) lease: &'a Lease,
    pub(crate) cancel: &'a CancelFlag,
}

impl Engine {
    /// Makes the image if an output wants one, and then the outputs in their order.
    pub(crate) fn put_out(
        &self,
        outcome: &Outcome<'_>,
        rows: &mut Rows<'_>,
    ) -> Result<PutOut, BuildError> {
        let outputs = &outcome.request.outputs;
        self.store
            .protect(outcome.lease, &outcome.snapshot.layers)?;
        let mut out = PutOut::default();
        // An archive is made of an image, which stays only if somebody asks for it.
        let keeps = outputs
            .iter()
            .any(|output| matches!(output, Output::Image { .. }));
        let before = if keeps {
            Vec::new()
        } else {
            self.store.images()?
        };
        let wants_image =
            |output: &Output| matches!(output, Output::Image { .. } | Output::Archive { .. });
        if outputs.iter().any(wants_image) {
            out.image = Some(self.make_image(outcome, rows)?);
        }
        for output in outputs {
            match (output, out.image.as_ref()) {
                (
                    Output::Image {
                        names,
                        push: true,
                        packing,
                    },
                    Some(image),
                ) => {
                    for name in names {
                        out.pushed
                            .push(rows.work(&format!("pushing {name}"), |row| {
                                let cores = outcome.request.cores;
                                self.push_to(
                                    image.manifest,
                                    name,
                                    packing,
                                    row,
                                    outcome.cancel,
                                    cores,
                                )
                            })?);
                    }
                }
                (
                    Output::Archive {
                        format,
                        to,
                        names,
                        packing,
                    },
                    Some(image),
                ) => rows.work(&format!("writing {to}"), |row| {
                    let images = [(image.manifest, names.clone())];
                    self.save(&images, *format, packing, to, outcome.request.cores, row)
                })?,
                (Output::Tar(to), _) => rows.work(&format!("writing {to}"), |_| {
                    self.cancelable(outcome.cancel, || self.write_tree(outcome, to))
                })?,
                (Output::Files { folder, delete }, _) => {
                    rows.work(&format!("writing {}", folder.display()), |_| {
                        self.cancelable(outcome.cancel, || {
                            self.write_files(outcome, folder, *delete)
                        })
                    })?;
                }
                _ => {}
            }
        }
        if let Some(image) = &out.image
            && !keeps
            && before.iter().all(|known| known.manifest != image.manifest)
        {
            self.store.remove_image(image.manifest)?;
        }
        Ok(out)
    }

    /// Writes images of the store as an archive.
    ///
    /// # Errors
    /// When an image is not there, or anything cannot be read or written; a file that was to be made is not there then.
    pub fn save(
        &self,
        images: &[(Digest, Vec<Reference>)],
        format: Format,
        packing: &Packing,
        to: &To,
        cores: usize,
        watch: &dyn Watch,
    ) -> Result<(), BuildError> {
        let saving = Saving {
            store: &self.store,
            worker: &self.worker,
            format,
            packing,
            cores: NonZero::new(cores).unwrap_or(NonZero::<usize>::MIN),
            watch,
        };
        match to {
            To::Folder(folder) => Ok(saving.save(images, Place::Folder(folder))?),
            To::Stream(out) => Ok(saving.save(images, Place::Tar(out))?),
            To::File(path) => whole_file(path, |out| Ok(saving.save(images, Place::Tar(out))?)),
        }
    }

    fn make_image(
        &self,
        outcome: &Outcome<'_>,
        rows: &mut Rows<'_>,
    ) -> Result<Committed, BuildError> {
        let (plan, snapshot) = (outcome.plan, outcome.snapshot);
        let base = plan.config.rootfs.diff_ids.len();
        let own = snapshot.layers.len().saturating_sub(base);
        rows.work("exporting to image", |_| {
            let image = commit(
                &self.store,
                &self.worker,
                &snapshot.layers,
                own,
                plan.config.clone(),
                plan.source_date_epoch,
                &outcome.request.annotations,
            )?;
            for output in &outcome.request.outputs {
                if let Output::Image { names, .. } = output {
                    for name in names {
                        self.store.tag(name, image.manifest)?;
                    }
                }
            }
            Ok(image)
        })
    }

    fn write_tree(&self, outcome: &Outcome<'_>, to: &To) -> Result<(), BuildError> {
        let write = |out: &File| {
            let layers = outcome.snapshot.layers.clone();
            let clamp = outcome.plan.source_date_epoch;
            self.worker
                .write_tree(layers, clamp, &[out.as_fd()])
                .map_err(ExportError::Worker)?;
            Ok(())
        };
        match to {
            To::File(path) => whole_file(path, write),
            To::Stream(out) => write(out),
            To::Folder(path) => Err(BuildError::new(format!("{}: is a folder", path.display()))),
        }
    }

    fn write_files(
        &self,
        outcome: &Outcome<'_>,
        folder: &Path,
        delete: bool,
    ) -> Result<(), BuildError> {
        let failed = |error: io::Error| {
            BuildError::new(format!("cannot write {}: {error}", folder.display()))
        };
        fs::create_dir_all(folder).map_err(failed)?;
        let open = File::open(folder).map_err(failed)?;
        let layers = outcome.snapshot.layers.clone();
        let clamp = outcome.plan.source_date_epoch;
        self.worker
            .check_out(layers, clamp, delete, &[open.as_fd()])
            .map_err(ExportError::Worker)?;
        Ok(())
    }
}

impl std::fmt::Display for To {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) | Self::Folder(path) => write!(out, "{}", path.display()),
            Self::Stream(_) => out.write_str("a stream"),
        }
    }
}

/// Writes a file that is there only when it is complete. What is no regular file, a pipe for one, is written to as it is.
fn whole_file(
    path: &Path,
    write: impl FnOnce(&File) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let failed =
        |error: io::Error| BuildError::new(format!("cannot write {}: {error}", path.display()));
    let special = fs::metadata(path).is_ok_and(|it| !it.is_file() && !it.is_dir());
    if special {
        let open = File::options().write(true).open(path);
        return write(&open.map_err(failed)?);
    }
    if path.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let written = File::create(&new)
        .map_err(failed)
        .and_then(|file| write(&file))
        .and_then(|()| fs::rename(&new, path).map_err(failed));
    if written.is_err() {
        // It may not have been made.
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_there_when_it_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.tar");
        fs::write(&path, "before").unwrap();
        let failed = whole_file(&path, |_| Err(BuildError::new("no")));
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"before");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        whole_file(&path, |mut out| {
            io::Write::write_all(&mut out, b"after").unwrap();
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"after");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
