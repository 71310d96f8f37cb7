//! Layers from and to tar archives.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::Path;
use std::rc::Rc;

use kiln_image::tar::{BLOCK, EntryKind, Reader, TarError, header_bytes};
use kiln_image::tarlayer::{LayerBuilder, Step, TarLayerError, pieces, write_layer};
use kiln_image::{DiffId, Kind, LayerIndex};
use serde::{Deserialize, Serialize};

use crate::ahead::{Ahead, Part};
use crate::readahead::ReadAhead;
use crate::{Content, Ids, LayerFs, LayerSummary};

/// Bytes written at once.
const BUFFER: usize = 256 * 1024;

/// What came of unpacking.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unpacked {
    /// For [`crate::Store::seal_layer`].
    pub summary: LayerSummary,
    /// The sha256 of all bytes of the stream, those behind the end of the archive too.
    pub diff_id: DiffId,
    /// How many bytes these were.
    pub tar_size: u64,
    /// Whether [`write_tar`] gives exactly these bytes again. Else the blob must be kept.
    pub reproducible: bool,
}

/// Why an archive could not be unpacked.
#[derive(Debug, thiserror::Error)]
pub enum UnpackError {
    /// The stream cannot be read, or is no archive.
    #[error(transparent)]
    Archive(#[from] TarError),
    /// It is no layer, or leads out of it.
    #[error(transparent)]
    Layer(#[from] TarLayerError),
    /// What is behind the archive cannot be read.
    #[error("cannot read what follows the archive: {0}")]
    Rest(#[source] io::Error),
    /// A file cannot be made, or its content not be read.
    #[error("cannot unpack {0}")]
    Files(#[source] io::Error),
}

/// Unpacks an image layer (OCI image spec, layer.md) into the folder of a layer, as a stream, and writes its index.
///
/// Of entries with the same path the later one counts. Parents that the archive lacks become implied folders of mode
/// 0755. Hard links must lead to something that comes before them in the same archive.
///
/// # Errors
/// When the archive is damaged or hostile (a path that leads out, a parent that is no folder), or files cannot be
/// made. Then part of the layer may be there: it must be discarded.
pub fn unpack_tar(
    layer_dir: &Path,
    ids: Ids,
    tar: impl Read + Send,
) -> Result<Unpacked, UnpackError> {
    let fs = LayerFs::create(layer_dir, ids).map_err(UnpackError::Files)?;
    std::thread::scope(|scope| {
        let mut ahead = ReadAhead::begin(tar, scope);
        let (index, framing) = unpack_into(&fs, &mut ahead)?;
        let mut summary = LayerSummary::of(&index);
        let reproducible = framing_of(&index).is_some_and(|ours| ours == framing);
        fs.finish(&index).map_err(UnpackError::Files)?;
        summary.space = crate::space_of(layer_dir).map_err(UnpackError::Files)?;
        let (diff_id, tar_size) = ahead.hashed();
        Ok(Unpacked {
            summary,
            diff_id,
            tar_size,
            reproducible,
        })
    })
}

/// Makes the files of an archive and reads it to its end; gives the index and the hash of what is not content of files.
fn unpack_into(fs: &LayerFs, tar: impl Read) -> Result<(LayerIndex, blake3::Hash), UnpackError> {
    let in_content = Rc::new(Cell::new(false));
    let mut reader = Reader::new(Framing {
        inner: tar,
        hasher: blake3::Hasher::new(),
        in_content: Rc::clone(&in_content),
    });
    let mut builder = LayerBuilder::new();
    while let Some(mut member) = reader.next_entry()? {
        for step in builder.take(&member.header)? {
            match step {
                Step::Put(mut entry)
                    if member.header.kind == EntryKind::File && entry.is_file() =>
                {
                    in_content.set(true);
                    let put = fs.put_hashed(&mut entry, &mut member.content);
                    in_content.set(false);
                    put.map_err(UnpackError::Files)?;
                    if let Kind::File { digest, .. } = entry.kind {
                        builder.set_digest(&entry.path, digest);
                    }
                }
                Step::Put(entry) => fs.put(&entry, Content::None).map_err(UnpackError::Files)?,
                Step::Link { entry, first } => {
                    fs.link(&entry, &first).map_err(UnpackError::Files)?;
                }
                Step::Change(entry) => fs.set_metadata(&entry).map_err(UnpackError::Files)?,
            }
        }
    }
    let mut framing = reader.into_inner();
    io::copy(&mut framing, &mut io::sink()).map_err(UnpackError::Rest)?;
    Ok((builder.finish(), framing.hasher.finalize()))
}

/// Writes the archive of a layer and gives its size. The same index always gives the same bytes. Times later than
/// `clamp` seconds since 1970 become `clamp`.
///
/// # Errors
/// When `out` or a file fails, a file is shorter than the index says, or an entry cannot be expressed in an archive.
pub fn write_tar(
    layer_dir: &Path,
    index: &LayerIndex,
    clamp: Option<i64>,
    out: &mut dyn Write,
) -> io::Result<u64> {
    let open = || LayerFs::create(layer_dir, Ids::Recorded);
    let fs = open()?;
    let out = BufWriter::with_capacity(BUFFER, out);
    std::thread::scope(|scope| {
        let mut ahead = Ahead::begin(index, scope, open)?;
        let (_, size) = write_layer(index, clamp, out, |entry| match &mut ahead {
            Some(ahead) if Ahead::takes(entry) => ahead.next().map(Source::Ahead),
            _ => fs.open(&entry.path).map(Source::File),
        })?;
        Ok(size)
    })
}

/// Where the content of a file comes from.
enum Source {
    File(File),
    Ahead(Part),
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file) => file.read(buffer),
            Self::Ahead(part) => part.read(buffer),
        }
    }
}

/// The hash of all bytes of a layer's archive that are not content of files. If it is the same for two archives, and
/// the content of the files is, then the archives are: the headers say where the content goes. `None` if the layer has
/// no archive.
fn framing_of(index: &LayerIndex) -> Option<blake3::Hash> {
    let mut hasher = blake3::Hasher::new();
    for piece in pieces(index, None) {
        let piece = piece.ok()?;
        hasher.update(&header_bytes(&piece.header).ok()?);
        if piece.header.kind == EntryKind::File {
            let padding = piece.header.size.wrapping_neg() % BLOCK as u64;
            hasher.update(&[0; BLOCK][..padding as usize]);
        }
    }
    hasher.update(&[0; 2 * BLOCK]);
    Some(hasher.finalize())
}

/// Hashes what is not content.
struct Framing<R> {
    inner: R,
    hasher: blake3::Hasher,
    in_content: Rc<Cell<bool>>,
}

impl<R: Read> Read for Framing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        if !self.in_content.get() {
            self.hasher.update(&buffer[..count]);
        }
        Ok(count)
    }
}
