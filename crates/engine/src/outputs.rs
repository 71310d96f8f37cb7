//! What a build leaves behind: an image in the store and in registries, archives, files.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::num::NonZero;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_export::{
    Committed, ExportError, Format, Member, Packing, Part, Place, Published, Saving, Stack, Watch,
    commit, commit_index,
};
use kiln_frontend::Plan;
use kiln_graph::Graph;
use kiln_image::{Digest, Layer, Platform, Reference};
use kiln_registry::DockerHost;
use kiln_solver::{Kept, Snapshot};
use kiln_store::Lease;

use crate::rows::Rows;
use crate::{Annotated, Annotation, BuildError, BuildRequest, CancelFlag, ContainerInfo, Engine};

/// One thing that a build leaves behind.
#[derive(Debug, Clone)]
pub enum Output {
    /// An image in the store.
    Image {
        /// Its names.
        names: Vec<Reference>,
        /// Push it under these names.
        push: bool,
        /// The store must have it even if it is pushed.
        keep: bool,
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
    /// An image in a Docker Engine.
    Docker {
        /// Which.
        host: DockerHost,
        /// The image's names there.
        names: Vec<Reference>,
    },
    /// The files of the result as one tar.
    Tar {
        /// Where to.
        to: To,
        /// Each platform below a folder of its own, `linux_amd64`; as if said for several platforms.
        split: Option<bool>,
    },
    /// The files of the result in a folder.
    Files {
        /// The folder; made if it is not there.
        folder: PathBuf,
        /// Remove what is in it and not in the result.
        delete: bool,
        /// Each platform below a folder of its own, `linux_amd64`; as if said for several platforms.
        split: Option<bool>,
    },
    /// Nothing: what was built is in the cache.
    Nothing,
}

impl Output {
    /// Whether it is an image, and not files.
    pub fn has_image(&self) -> bool {
        matches!(
            self,
            Self::Image { .. } | Self::Archive { .. } | Self::Docker { .. }
        )
    }

    /// The names of the image.
    pub fn names(&self) -> &[Reference] {
        match self {
            Self::Image { names, .. }
            | Self::Archive { names, .. }
            | Self::Docker { names, .. } => names,
            Self::Tar { .. } | Self::Files { .. } | Self::Nothing => &[],
        }
    }

    /// Whether layers can stay where they are: nothing of the result comes into the store or into files.
    pub(crate) fn is_lazy(&self) -> bool {
        match self {
            Self::Image {
                push,
                keep,
                packing,
                ..
            } => *push && !keep && !packing.force,
            Self::Nothing => true,
            Self::Archive { .. } | Self::Docker { .. } | Self::Tar { .. } | Self::Files { .. } => {
                false
            }
        }
    }
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

/// A plan and what came of it.
pub(crate) struct Planned {
    pub(crate) plan: Plan,
    /// Its layers, wherever they are.
    pub(crate) layers: Vec<Layer>,
    /// The layers, if all are in the store.
    pub(crate) snapshot: Snapshot,
    /// Some are not.
    pub(crate) distant: bool,
}

impl Planned {
    pub(crate) fn new(plan: Plan, layers: Vec<Layer>) -> Self {
        let here = Snapshot::here(&layers);
        Self {
            plan,
            layers,
            distant: here.is_none(),
            snapshot: here.unwrap_or_default(),
        }
    }
}

/// What the outputs are made of.
pub(crate) struct Outcome<'a> {
    pub(crate) request: &'a BuildRequest,
    /// Of all plans together.
    pub(crate) graph: &'a Graph,
    /// One for each platform, at least one.
    pub(crate) results: Vec<Planned>,
    pub(crate) lease: &'a Lease,
    pub(crate) cancel: &'a CancelFlag,
}

impl Engine {
    /// Makes the image if an output wants one, and then the outputs in their order.
    pub(crate) fn put_out(
        &self,
        outcome: &Outcome<'_>,
        kept: &[Kept],
        rows: &mut Rows<'_>,
    ) -> Result<PutOut, BuildError> {
        let outputs = &outcome.request.outputs;
        if outcome.results.iter().any(|result| result.distant) {
            return self.put_out_from_afar(outcome, kept, rows);
        }
        for Planned { snapshot, .. } in &outcome.results {
            self.store.protect(outcome.lease, &snapshot.layers)?;
        }
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
        if outputs.iter().any(Output::has_image) {
            out.image = Some(self.make_images(outcome, kept, keeps, rows)?);
        }
        for output in outputs {
            match (output, out.image.as_ref()) {
                (
                    Output::Image {
                        names,
                        push: true,
                        packing,
                        ..
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
                (Output::Docker { host, names }, Some(image)) => {
                    rows.work(&format!("loading into {host}"), |row| {
                        let image = (image.manifest, names.clone());
                        let cores = outcome.request.cores;
                        self.cancelable(outcome.cancel, || {
                            self.load_into_docker(host, image, cores, row, outcome.cancel)
                        })
                    })?;
                }
                (Output::Tar { to, split }, _) => rows.work(&format!("writing {to}"), |_| {
                    self.cancelable(outcome.cancel, || self.write_tree(outcome, *split, to))
                })?,
                (
                    Output::Files {
                        folder,
                        delete,
                        split,
                    },
                    _,
                ) => {
                    rows.work(&format!("writing {}", folder.display()), |_| {
                        self.cancelable(outcome.cancel, || {
                            self.write_files(outcome, *split, folder, *delete)
                        })
                    })?;
                }
                _ => {}
            }
        }
        if !keeps && let Some(image) = &out.image {
            let made = match self.store.index(image.manifest)? {
                Some(index) => index.images.into_iter().map(|it| it.manifest).collect(),
                None => vec![image.manifest],
            };
            for made in made {
                if before.iter().all(|known| known.manifest != made) {
                    self.store.remove_image(made)?;
                }
            }
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

    /// Writes the files of a container as one tar: those of its image and what it changed in the runs that ended.
    ///
    /// # Errors
    /// When anything cannot be read or written; a file that was to be made is not there then.
    pub fn export_container(&self, container: &ContainerInfo, to: &To) -> Result<(), BuildError> {
        let lease = self.store.lease()?;
        let layers = [&container.image_layers[..], &container.own_layers].concat();
        self.store.protect(&lease, &layers)?;
        write_to(to, |out| {
            let trees = vec![(String::new(), layers.clone())];
            self.worker
                .write_tree(trees, None, &[out.as_fd()])
                .map_err(ExportError::Worker)?;
            Ok(())
        })
    }

    /// Pushes a result of which not all layers are here; no image comes into the store.
    fn put_out_from_afar(
        &self,
        outcome: &Outcome<'_>,
        kept: &[Kept],
        rows: &mut Rows<'_>,
    ) -> Result<PutOut, BuildError> {
        let request = outcome.request;
        let cores = NonZero::new(request.cores).unwrap_or(NonZero::<usize>::MIN);
        let mut images = Vec::new();
        for result in &outcome.results {
            let platform = &result.plan.platform;
            images.push((
                result,
                self.config(outcome, result, kept)?,
                annotations(request, Annotated::Manifest, platform),
            ));
        }
        let of_index = annotations(request, Annotated::Index, &Platform::host());
        let mut out = PutOut::default();
        for output in &outcome.request.outputs {
            let Output::Image { names, packing, .. } = output else {
                continue;
            };
            let title = names.iter().map(ToString::to_string).collect::<Vec<_>>();
            let (image, pushed) = rows.work(&format!("pushing {}", title.join(", ")), |row| {
                self.cancelable(outcome.cancel, || {
                    let remote = self.remote(outcome.cancel, row);
                    let parts = images.iter().map(|(result, config, annotated)| {
                        let Planned { plan, layers, .. } = result;
                        let platform = plan.platform.clone();
                        Part {
                            stack: Stack {
                                layers,
                                own: layers.len().saturating_sub(plan.base_layers),
                                config: config.clone(),
                                clamp: plan.source_date_epoch,
                                annotations: annotated,
                            },
                            entry: annotations(request, Annotated::ManifestDescriptor, &platform),
                            platform,
                        }
                    });
                    let mut parts: Vec<_> = parts.collect();
                    Ok(match parts.pop() {
                        Some(part) if request.platforms.is_empty() => {
                            remote.push_stack(part.stack, names, packing, cores)?
                        }
                        last => {
                            parts.extend(last);
                            remote.push_stacks(parts, &of_index, names, packing, cores)?
                        }
                    })
                })
            })?;
            out.image.get_or_insert(image);
            out.pushed.extend(pushed);
        }
        Ok(out)
    }

    /// The image, or an index of the platforms' images.
    fn make_images(
        &self,
        outcome: &Outcome<'_>,
        kept: &[Kept],
        keeps: bool,
        rows: &mut Rows<'_>,
    ) -> Result<Committed, BuildError> {
        let request = outcome.request;
        rows.work("exporting to image", |row| {
            let mut members = Vec::new();
            let mut last = None;
            for result in &outcome.results {
                let image = self.make_image(outcome, result, kept)?;
                let platform = result.plan.platform.clone();
                let annotations = annotations(request, Annotated::ManifestDescriptor, &platform);
                members.push(Member {
                    manifest: image.manifest,
                    platform,
                    annotations,
                });
                last = Some(image);
            }
            let image = match last {
                Some(image) if request.platforms.is_empty() => image,
                _ => {
                    let annotations = annotations(request, Annotated::Index, &Platform::host());
                    let index = commit_index(&self.store, &members, &annotations)?;
                    if keeps {
                        self.store.set_index(index)?;
                    }
                    Committed {
                        manifest: index,
                        config: index,
                    }
                }
            };
            // As BuildKit says it: scripts look for these lines.
            if image.config == image.manifest {
                row.done(&format!("exporting manifest list {}", image.manifest));
            } else {
                row.done(&format!("writing image {}", image.config));
            }
            for output in &request.outputs {
                if let Output::Image { names, .. } = output {
                    for name in names {
                        self.store.tag(name, image.manifest)?;
                        row.done(&format!("naming to {name}"));
                    }
                }
            }
            Ok(image)
        })
    }

    fn make_image(
        &self,
        outcome: &Outcome<'_>,
        result: &Planned,
        kept: &[Kept],
    ) -> Result<Committed, BuildError> {
        let Planned { plan, snapshot, .. } = result;
        let own = snapshot.layers.len().saturating_sub(plan.base_layers);
        Ok(commit(
            &self.store,
            &self.worker,
            &snapshot.layers,
            own,
            self.config(outcome, result, kept)?,
            plan.source_date_epoch,
            &annotations(outcome.request, Annotated::Manifest, &plan.platform),
        )?)
    }

    fn write_tree(
        &self,
        outcome: &Outcome<'_>,
        split: Option<bool>,
        to: &To,
    ) -> Result<(), BuildError> {
        let write = |out: &File| {
            let results = outcome.results.iter();
            let clamp = outcome.results[0].plan.source_date_epoch;
            let trees = results.map(|result| {
                let folder = outcome.folder_of(result, split).unwrap_or_default();
                (folder, result.snapshot.layers.clone())
            });
            self.worker
                .write_tree(trees.collect(), clamp, &[out.as_fd()])
                .map_err(ExportError::Worker)?;
            Ok(())
        };
        write_to(to, write)
    }

    fn write_files(
        &self,
        outcome: &Outcome<'_>,
        split: Option<bool>,
        folder: &Path,
        delete: bool,
    ) -> Result<(), BuildError> {
        for (at, result) in outcome.results.iter().enumerate() {
            let own = outcome.folder_of(result, split);
            // What the platform before has left in the same folder belongs there.
            let delete = delete && (own.is_some() || at == 0);
            let folder = own.map_or_else(|| folder.to_owned(), |own| folder.join(own));
            let failed = |error: io::Error| {
                BuildError::new(format!("cannot write {}: {error}", folder.display()))
            };
            fs::create_dir_all(&folder).map_err(failed)?;
            let open = File::open(&folder).map_err(failed)?;
            let layers = result.snapshot.layers.clone();
            let clamp = result.plan.source_date_epoch;
            self.worker
                .check_out(layers, clamp, delete, &[open.as_fd()])
                .map_err(ExportError::Worker)?;
        }
        Ok(())
    }
}

impl Outcome<'_> {
    /// The folder of a platform's files, where each has one of its own.
    fn folder_of(&self, result: &Planned, split: Option<bool>) -> Option<String> {
        split
            .unwrap_or(!self.request.platforms.is_empty())
            .then(|| result.plan.platform.to_string().replace('/', "_"))
    }
}

/// The annotations of a document of the image for a platform.
fn annotations(
    request: &BuildRequest,
    on: Annotated,
    platform: &Platform,
) -> BTreeMap<String, String> {
    let fits = |annotation: &&Annotation| {
        let its = annotation.platform.as_ref();
        annotation.on == on && its.is_none_or(|its| its == platform)
    };
    let found = request.annotations.iter().filter(fits);
    found
        .map(|annotation| (annotation.key.clone(), annotation.value.clone()))
        .collect()
}

impl std::fmt::Display for To {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) | Self::Folder(path) => write!(out, "{}", path.display()),
            Self::Stream(_) => out.write_str("a stream"),
        }
    }
}

/// Writes one stream of bytes.
fn write_to(
    to: &To,
    write: impl FnOnce(&File) -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    match to {
        To::File(path) => whole_file(path, write),
        To::Stream(out) => write(out),
        To::Folder(path) => Err(BuildError::new(format!("{}: is a folder", path.display()))),
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
