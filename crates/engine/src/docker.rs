//! Images into a Docker Engine.

use std::fs::File;
use std::num::NonZero;
use std::os::fd::OwnedFd;

use kiln_export::{Format, Packing, Place, Saving, Watch};
use kiln_image::{Digest, Reference};
use kiln_progress::Sink;
use kiln_registry::DockerHost;

use crate::{BuildError, CancelFlag, Engine};

impl Engine {
    /// Hands an image of the store to a Docker Engine under these names; gives what the engine says.
    ///
    /// # Errors
    /// When there is no such image, no engine answers, or it refuses.
    pub fn push_to_docker(
        &self,
        host: &DockerHost,
        image: (Digest, Vec<Reference>),
        cores: usize,
        sink: &dyn Sink,
        cancel: &CancelFlag,
    ) -> Result<String, BuildError> {
        self.told(sink, cancel, |rows| {
            rows.work(&format!("loading into {host}"), |row| {
                self.load_into_docker(host, image, cores, row, cancel)
            })
        })
    }

    /// The archive is made while it is sent: nothing of it is on the disk here.
    pub(crate) fn load_into_docker(
        &self,
        host: &DockerHost,
        image: (Digest, Vec<Reference>),
        cores: usize,
        watch: &dyn Watch,
        cancel: &CancelFlag,
    ) -> Result<String, BuildError> {
        let (read, write) = std::io::pipe()
            .map_err(|error| BuildError::new(format!("cannot make a pipe: {error}")))?;
        std::thread::scope(|scope| {
            let saving = scope.spawn(move || {
                let saving = Saving {
                    store: &self.store,
                    worker: &self.worker,
                    format: Format::Docker,
                    // The engine unpacks at once what comes, on the same machine mostly.
                    packing: &Packing::plain(),
                    cores: NonZero::new(cores).unwrap_or(NonZero::<usize>::MIN),
                    watch,
                };
                let out = File::from(OwnedFd::from(write));
                saving.save(&[image], Place::Tar(&out))
            });
            let archive = File::from(OwnedFd::from(read));
            let loaded = self
                .client
                .docker_load(host, archive, cancel.flag().as_ref());
            let saved = saving.join().expect("saving does not panic");
            match (loaded, saved) {
                (Ok(said), Ok(())) => Ok(said),
                // An archive that broke off is what the engine complains about then.
                (_, Err(error)) if !is_broken_pipe(&error) => Err(error.into()),
                (Ok(_), Err(error)) => Err(error.into()),
                (Err(error), _) => Err(BuildError {
                    hint: error.hint(),
                    canceled: error.is_canceled(),
                    ..BuildError::new(error.to_string())
                }),
            }
        })
    }
}

/// The engine did not want to read any more.
fn is_broken_pipe(error: &kiln_export::ExportError) -> bool {
    match error {
        kiln_export::ExportError::Io { error, .. } => {
            error.kind() == std::io::ErrorKind::BrokenPipe
        }
        kiln_export::ExportError::Worker(error) => error.to_string().contains("roken pipe"),
        _ => false,
    }
}
