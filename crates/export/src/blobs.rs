//! Tars of layers as files: scratch files without a name, and those that are kept because Kiln's own tar would differ.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, Write};
use std::os::fd::AsFd as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use kiln_image::{DiffId, Digest, LayerId, compress, media_type};
use kiln_store::{BlobInfo, Store};
use kiln_worker::Worker;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, open};
use sha2::{Digest as _, Sha256};

use crate::ExportError;

/// The encoder of blobs that came from a registry.
pub(crate) const PULLED: &str = "pulled";

/// Bytes read at once.
const BUFFER: usize = 1 << 18;

/// A scratch file without a name: gone with the process, however that ends.
pub(crate) fn unnamed(store: &Store) -> io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let folder = store.root().join("tmp");
    Ok(File::from(open(folder, flags, Mode::RUSR | Mode::WUSR)?))
}

/// Keeps a scratch file as the file of a blob.
pub(crate) fn keep(store: &Store, file: &File, blob: BlobInfo) -> Result<(), ExportError> {
    use std::os::fd::AsRawFd as _;
    let path = store.blob_path(blob.digest);
    let scratch = format!("/proc/self/fd/{}", file.as_raw_fd());
    match linkat(CWD, scratch, CWD, &path, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(ExportError::io(path.display().to_string())(error.into())),
    }
    store.set_blob(&BlobInfo {
        present: true,
        ..blob
    })?;
    Ok(())
}

/// Keeps an uncompressed tar that Kiln would write in another way.
pub(crate) fn keep_tar(store: &Store, tar: &mut dyn Read, diff: DiffId) -> Result<(), ExportError> {
    let mut write = || -> io::Result<(File, Digest, u64)> {
        let mut encoder = zstd::Encoder::new(Hashing::new(unnamed(store)?), 1)?;
        io::copy(tar, &mut encoder)?;
        Ok(encoder.finish()?.finish())
    };
    let (file, digest, size) = write().map_err(ExportError::io(format!("layer {diff}")))?;
    let blob = BlobInfo {
        diff,
        digest,
        media_type: media_type::OCI_LAYER_ZSTD.to_owned(),
        size,
        encoder: "kept".to_owned(),
        present: true,
    };
    keep(store, &file, blob)
}

/// The blob that holds the tar with this diff id as it came, where it was kept. One whose file is damaged or gone is
/// dropped, and is not given.
pub(crate) fn kept(store: &Store, diff: DiffId) -> Result<Option<(BlobInfo, File)>, ExportError> {
    for blob in store.blobs_of(diff)? {
        if !blob.present {
            continue;
        }
        let path = store.blob_path(blob.digest);
        let whole = || -> io::Result<Option<File>> {
            let mut file = match File::open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                other => other?,
            };
            let mut hashing = Hashing::new(io::sink());
            io::copy(&mut BufReader::with_capacity(BUFFER, &file), &mut hashing)?;
            file.rewind()?;
            Ok((hashing.finish().1 == blob.digest).then_some(file))
        };
        match whole().map_err(ExportError::io(path.display().to_string()))? {
            Some(file) => return Ok(Some((blob, file))),
            None => store.drop_blob(blob.digest)?,
        }
    }
    Ok(None)
}

/// Writes the uncompressed tar of a layer, that of the diff id and no other. A layer that is damaged is dropped.
pub(crate) fn write_tar(
    store: &Store,
    worker: &Worker,
    layer: LayerId,
    diff: DiffId,
    mut out: &File,
) -> Result<(), ExportError> {
    let known = store.blobs_of(diff)?.iter().any(|blob| blob.present);
    if let Some((blob, file)) = kept(store, diff)? {
        let failed = ExportError::io(format!("blob {}", blob.digest));
        let copy = || {
            let (_, mut tar) = compress::decoder(BufReader::with_capacity(BUFFER, file))?;
            io::copy(&mut tar, &mut out)
        };
        copy().map_err(failed)?;
        return Ok(());
    }
    let clamp = store.clamp_of(layer, diff)?;
    let why = match worker.write_tar(layer, clamp, &[out.as_fd()]) {
        Ok((wrote, _)) if wrote == diff => return Ok(()),
        Ok(_) if known => "the blob with its tar".to_owned(),
        Ok((wrote, _)) => format!("its tar has the digest {wrote}, expected {diff}"),
        Err(error) if error.damaged().is_some() => error.to_string(),
        Err(error) => return Err(error.into()),
    };
    let dropped = store.drop_layer(layer)?;
    Err(ExportError::Damaged {
        layer,
        why,
        names: dropped.map(|dropped| dropped.names).unwrap_or_default(),
    })
}

/// Hashes and counts what is written through it.
pub(crate) struct Hashing<W> {
    out: W,
    hasher: Sha256,
    size: u64,
}

impl<W: Write> Hashing<W> {
    pub(crate) fn new(out: W) -> Self {
        Self {
            out,
            hasher: Sha256::new(),
            size: 0,
        }
    }

    /// What was written to, the digest and the number of bytes.
    pub(crate) fn finish(self) -> (W, Digest, u64) {
        (
            self.out,
            Digest::new(self.hasher.finalize().into()),
            self.size,
        )
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// A file read from a place on, whoever else reads it.
pub(crate) struct ReadAt {
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
}

impl Read for ReadAt {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// A file read from its beginning, wherever it is read.
pub(crate) struct ReadAll<'a> {
    file: &'a File,
    offset: u64,
}

impl<'a> ReadAll<'a> {
    pub(crate) fn new(file: &'a File) -> Self {
        Self { file, offset: 0 }
    }
}

impl Read for ReadAll<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// A stream as a scratch file, decompressed.
pub(crate) fn spool(store: &Store, from: &File, path: &str) -> Result<File, ExportError> {
    let spool = || -> io::Result<File> {
        let (_, mut plain) =
            compress::decoder(BufReader::with_capacity(BUFFER, from.try_clone()?))?;
        let mut file = unnamed(store)?;
        io::copy(&mut plain, &mut file)?;
        file.rewind()?;
        Ok(file)
    };
    spool().map_err(ExportError::io(path))
}
