//! Layers that are uploaded while they are compressed: a scratch file has one writer, and readers that wait for it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use kiln_image::{Descriptor, DiffId, LayerId};
use kiln_registry::{Growing, Observer, Pushed, Source};
use kiln_store::BlobInfo;

use crate::blobs::unnamed;
use crate::packing::descriptor;
use crate::pull::Stop;
use crate::push::Push;
use crate::{ExportError, Watch};

impl Push<'_> {
    /// Uploads a layer while it is compressed.
    pub(crate) fn compress_and_upload(
        &self,
        layer: LayerId,
        diff: DiffId,
        stop: &Stop,
    ) -> Result<BlobInfo, ExportError> {
        let Self { remote, packer, .. } = self;
        let file = unnamed(remote.store).map_err(ExportError::io("scratch file"))?;
        let (blob, writer) = growing(file);
        let sending = Sending {
            blob: &blob,
            watch: remote.watch,
            stop,
        };
        let compress = move || {
            let (blob, writer) = packer.compress_to(layer, diff, writer)?;
            writer.complete(descriptor(&blob, false));
            Ok(blob)
        };
        let (pushed, compressed) = std::thread::scope(|scope| {
            let compressing = scope.spawn(compress);
            let pushed = remote.client.push_growing(self.to, &blob, &sending);
            if pushed.is_err() {
                blob.give_up();
            }
            let compressed = compressing.join();
            (
                pushed,
                compressed.unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
            )
        });
        match (pushed, compressed) {
            (Ok(pushed), Ok(blob)) => {
                let row = match pushed {
                    Pushed::Existed => format!("{} already there", blob.digest),
                    Pushed::Mounted | Pushed::Uploaded => format!("pushing {}", blob.digest),
                };
                remote.watch.transfer(&row, blob.size, blob.size, true);
                Ok(blob)
            }
            // What could not be made could not be sent.
            (Ok(_) | Err(kiln_registry::Error::Source(_)), Err(error)) => Err(error),
            (Err(error), _) => Err(error.into()),
        }
    }
}

/// A scratch file that grows, and what it grows by.
fn growing(file: File) -> (Blob, Writer) {
    let shared = Arc::new(Shared {
        file,
        state: Mutex::new(State {
            len: 0,
            end: End::Open,
        }),
        changed: Condvar::new(),
    });
    (Blob(Arc::clone(&shared)), Writer(shared))
}

struct Shared {
    file: File,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    len: u64,
    end: End,
}

enum End {
    Open,
    Complete(Box<Descriptor>),
    /// The writer is gone, or nobody wants the rest.
    Broken,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends what has not ended.
    fn end(&self, end: End) {
        let mut state = self.state();
        if matches!(state.end, End::Open) {
            state.end = end;
        }
        self.changed.notify_all();
    }
}

/// The side of the readers.
struct Blob(Arc<Shared>);

impl Blob {
    /// The writer need not go on.
    fn give_up(&self) {
        self.0.end(End::Broken);
    }
}

impl Source for Blob {
    fn open(&self, offset: u64) -> io::Result<Box<dyn Read + Send>> {
        let shared = Arc::clone(&self.0);
        Ok(Box::new(Reader { shared, offset }))
    }
}

impl Growing for Blob {
    fn complete(&self) -> io::Result<Option<Descriptor>> {
        match &self.0.state().end {
            End::Open => Ok(None),
            End::Complete(blob) => Ok(Some((**blob).clone())),
            End::Broken => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

struct Reader {
    shared: Arc<Shared>,
    offset: u64,
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut state = self.shared.state();
        while state.len <= self.offset {
            match state.end {
                End::Open => {}
                End::Complete(_) => return Ok(0),
                End::Broken => return Err(io::ErrorKind::BrokenPipe.into()),
            }
            let changed = self.shared.changed.wait(state);
            state = changed.unwrap_or_else(PoisonError::into_inner);
        }
        drop(state);
        let count = self.shared.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

/// The side of the one who writes.
struct Writer(Arc<Shared>);

impl Writer {
    /// All is written.
    fn complete(self, blob: Descriptor) {
        self.0.end(End::Complete(Box::new(blob)));
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.end(End::Broken);
    }
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if matches!(self.0.state().end, End::Broken) {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let count = (&self.0.file).write(bytes)?;
        self.0.state().len += count as u64;
        self.0.changed.notify_all();
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Tells of an upload once it has a name.
struct Sending<'a> {
    blob: &'a Blob,
    watch: &'a dyn Watch,
    stop: &'a Stop,
}

impl Observer for Sending<'_> {
    fn progress(&self, done: u64, total: u64) {
        if let Ok(Some(blob)) = self.blob.complete() {
            let row = format!("pushing {}", blob.digest);
            self.watch.transfer(&row, done, total, false);
        }
    }

    fn is_canceled(&self) -> bool {
        self.stop.is_canceled()
    }
}

#[cfg(test)]
mod tests {
    use kiln_image::{Digest, media_type};

    use super::*;

    #[test]
    fn readers_wait_for_the_writer() {
        let (blob, mut writer) = growing(tempfile::tempfile().unwrap());
        writer.write_all(b"begin").unwrap();
        let reading = std::thread::spawn({
            let mut reader = blob.open(2).unwrap();
            move || {
                let mut all = Vec::new();
                reader.read_to_end(&mut all).map(|_| all)
            }
        });
        assert_eq!(blob.complete().unwrap(), None);
        writer.write_all(b" and end").unwrap();
        let named = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::new([7; 32]), 13);
        writer.complete(named.clone());
        assert_eq!(reading.join().unwrap().unwrap(), b"gin and end");
        assert_eq!(blob.complete().unwrap(), Some(named));
    }

    #[test]
    fn either_side_may_give_up() {
        let (blob, mut writer) = growing(tempfile::tempfile().unwrap());
        writer.write_all(b"begin").unwrap();
        let mut reader = blob.open(5).unwrap();
        drop(writer);
        assert!(reader.read(&mut [0]).is_err());
        assert!(blob.complete().is_err());

        let (blob, mut writer) = growing(tempfile::tempfile().unwrap());
        blob.give_up();
        assert!(writer.write_all(b"more").is_err());
    }
}
