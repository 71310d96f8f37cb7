//! Jobs on layer folders that run no process.

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use kiln_fileop::{NewLayer, Tree};
use kiln_image::view::MergedView;
use kiln_image::{DiffId, LayerId, Totals};
use kiln_store::layer_fs::LayerDirs;
use sha2::{Digest as _, Sha256};

use super::{Cleanup, Shared, failure};
use crate::protocol::{
    Failure, FileJob, FileTree, Made, MadeFiles, Outlined, Response, Stacked, TarInput, UnpackJob,
    UnpackedLayer,
};

/// The merged view of layers, with the folders of each.
pub(super) fn stack(
    shared: &Shared,
    layers: &Stacked,
) -> Result<(MergedView, Vec<LayerDirs>), Failure> {
    let indexes = layers
        .iter()
        .map(|layer| shared.index(*layer))
        .collect::<Result<Vec<_>, _>>()?;
    let dirs = layers
        .iter()
        .map(|layer| shared.dirs(*layer))
        .collect::<Result<_, _>>()?;
    Ok((MergedView::new(indexes), dirs))
}

/// What the front is told of a new layer.
pub(super) fn made(
    shared: &Shared,
    layer: LayerId,
    totals: &Totals,
    below: Option<LayerId>,
) -> Result<Made, Failure> {
    let space = kiln_store::space_of(&shared.layer_dir(layer))
        .map_err(|error| failure(&format!("cannot measure layer {layer}"), &error))?;
    Ok(Made {
        layer,
        content_id: totals.content_id,
        size: totals.size,
        entries: totals.entries,
        space,
        below,
    })
}

pub(super) fn file(shared: &Shared, job: FileJob) -> Result<Response, Failure> {
    let cleanup = Cleanup::new(shared, job.into.clone());
    let mut trees = Vec::with_capacity(job.inputs.len());
    for input in job.inputs {
        trees.push(match input {
            FileTree::Layers(layers) => {
                let (view, dirs) = stack(shared, &layers)?;
                (view, dirs, None)
            }
            FileTree::Outline(layers) => {
                let indexes = layers
                    .into_iter()
                    .map(|layer| match layer {
                        Outlined::Here(layer) => shared.index(layer),
                        Outlined::Elsewhere(index) => Ok(index),
                    })
                    .collect::<Result<Vec<_>, _>>()?;
                // Nothing is there, should anybody want to read a file.
                let dirs = vec![PathBuf::new().into(); indexes.len()];
                (MergedView::new(indexes), dirs, None)
            }
            FileTree::Local {
                root,
                index,
                stamps,
            } => (
                MergedView::new([index.clone()]),
                vec![PathBuf::from(root).into()],
                Some((index, stamps)),
            ),
        });
    }
    let inputs: Vec<_> = trees
        .iter()
        .map(|(view, dirs, stamps)| {
            let stamps = stamps.as_ref().map(|(index, stamps)| (&**index, stamps));
            let dirs = dirs.clone();
            Some(Tree { view, dirs, stamps })
        })
        .collect();
    let earlier = job.earlier.iter().copied().chain(std::iter::repeat(None));
    let folders: Vec<_> = job
        .into
        .iter()
        .zip(earlier)
        .map(|(layer, earlier)| NewLayer {
            dir: shared.layer_dir(*layer),
            earlier,
        })
        .collect();
    let applied =
        kiln_fileop::apply(&job.op, &inputs, &folders, shared.ids, job.now).map_err(|error| {
            let failure = failure("", &error);
            Failure {
                hint: error.hint().or(failure.hint),
                ..failure
            }
        })?;
    let layers = job
        .into
        .iter()
        .zip(applied.layers.iter().zip(applied.below))
        .map(|(layer, (totals, below))| made(shared, *layer, totals, below))
        .collect::<Result<_, _>>()?;
    let changed = applied.changed.iter().map(ToString::to_string).collect();
    cleanup.keep_all();
    Ok(Response::Files(MadeFiles {
        layers,
        changed,
        unknown: applied.unknown,
    }))
}

/// A range of a file as a stream of its own, whatever else reads the descriptor.
struct Range {
    file: std::fs::File,
    offset: u64,
    left: u64,
}

impl io::Read for Range {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer
            .len()
            .min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let got = self.file.read_at(&mut buffer[..most], self.offset)?;
        self.offset += got as u64;
        self.left -= got as u64;
        Ok(got)
    }
}

pub(super) fn unpack(
    shared: &Shared,
    job: &UnpackJob,
    fds: &[OwnedFd],
) -> Result<Response, Failure> {
    let fd = fds
        .first()
        .ok_or_else(|| Failure::other("no descriptor to read from"))?;
    let file = std::fs::File::from(
        fd.try_clone()
            .map_err(|error| failure("descriptor", &error))?,
    );
    let raw: Box<dyn io::Read + Send> = match job.input {
        TarInput::Stream => Box::new(file),
        TarInput::Range { offset, len } => Box::new(Range {
            file,
            offset,
            left: len,
        }),
    };
    let cleanup = Cleanup::new(shared, [job.into]);
    let raw = io::BufReader::with_capacity(1 << 18, raw);
    let (_, tar) = kiln_image::compress::decoder(raw)
        .map_err(|error| failure("cannot read the archive", &error))?;
    let unpacked = kiln_store::unpack_tar(&shared.layer_dir(job.into), shared.ids, tar)
        .map_err(|error| failure("", &error))?;
    cleanup.keep_all();
    Ok(Response::Unpacked(UnpackedLayer {
        made: Made {
            layer: job.into,
            content_id: unpacked.summary.content_id,
            size: unpacked.summary.size,
            entries: unpacked.summary.entries,
            space: unpacked.summary.space,
            below: None,
        },
        diff_id: unpacked.diff_id,
        tar_size: unpacked.tar_size,
        reproducible: unpacked.reproducible,
    }))
}

/// Hashes what passes through.
pub(super) struct Hashing<'a, W: Write> {
    hasher: Sha256,
    out: &'a mut W,
}

impl<'a, W: Write> Hashing<'a, W> {
    pub(super) fn new(out: &'a mut W) -> Self {
        Self {
            hasher: Sha256::new(),
            out,
        }
    }
}

/// The answer about a tar that was written.
pub(super) fn tar_response<W: Write>(out: Hashing<'_, W>, size: u64) -> Response {
    Response::Tar {
        diff_id: DiffId::new(out.hasher.finalize().into()),
        size,
    }
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

pub(super) fn write_tar(
    shared: &Shared,
    layer: LayerId,
    clamp: Option<i64>,
    out: &mut impl Write,
) -> Result<Response, Failure> {
    let index = shared.index(layer)?;
    let mut out = Hashing::new(out);
    let size = kiln_store::write_tar(&shared.layer_dir(layer), &index, clamp, &mut out)
        .map_err(|error| failure(&format!("cannot write the tar of layer {layer}"), &error))?;
    Ok(tar_response(out, size))
}
