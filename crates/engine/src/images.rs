//! The images that a build names: found in the store first, then in their registries.

use std::sync::{Mutex, PoisonError};

use kiln_export::{ExportError, Found, Remote, Watch};
use kiln_frontend::ImageFact;
use kiln_image::{Digest, Platform, Reference};
use kiln_store::Lease;

use crate::{BuildError, BuildRequest, CancelFlag, Engine};

/// The images that one build names.
pub(crate) struct Images<'a> {
    engine: &'a Engine,
    /// Ask registries also for what is in the store.
    pull: bool,
    cancel: &'a CancelFlag,
    /// Those of which the layers are not in the store, and those that a registry was asked for.
    found: Mutex<Vec<Found>>,
}

impl<'a> Images<'a> {
    pub(crate) fn new(engine: &'a Engine, request: &BuildRequest, cancel: &'a CancelFlag) -> Self {
        Self {
            engine,
            pull: request.pull,
            cancel,
            found: Mutex::default(),
        }
    }

    /// What the frontend must know of an image. No layer is fetched for it.
    pub(crate) fn fact(
        &self,
        reference: &str,
        platform: &Platform,
        watch: &dyn Watch,
    ) -> Result<ImageFact, BuildError> {
        let name: Reference = reference
            .parse()
            .map_err(|error| BuildError::new(format!("image name {reference:?}: {error}")))?;
        let local = if self.pull && name.digest().is_none() {
            Ok(None)
        } else {
            self.engine.local_image(&name, platform)
        };
        let found = match local {
            Ok(Some(found)) => found,
            Ok(None) => self
                .remote(watch)
                .find(&name, platform)
                .map_err(|error| self.not_here(&name, error))?,
            // The store has the image for another platform; the registry may have it for this one.
            Err(error @ ExportError::Platform { .. }) => {
                let found = self.remote(watch).find(&name, platform);
                found.map_err(|there| {
                    if matches!(there, ExportError::Canceled) {
                        there
                    } else {
                        error
                    }
                })?
            }
            Err(error) => return Err(error.into()),
        };
        let fact = ImageFact {
            digest: found.manifest,
            config: found.config.clone(),
        };
        self.lock().push(found);
        Ok(fact)
    }

    /// Says of an image that its registry was only asked because the store does not have it.
    fn not_here(&self, name: &Reference, error: ExportError) -> BuildError {
        if self.pull
            || !matches!(
                error,
                ExportError::Registry(kiln_registry::Error::Unreachable { .. })
            )
        {
            return error.into();
        }
        BuildError::new(format!("{name}: not in the local store, and {error}")).with_hint(
            "check the image's name with kiln images, or bring it in with kiln load;              for the registry check the network and the proxy (HTTPS_PROXY, NO_PROXY)",
        )
    }

    /// Fetches the layers of an image that was found before.
    pub(crate) fn fetch(
        &self,
        manifest: Digest,
        lease: &Lease,
        watch: &dyn Watch,
    ) -> Result<(), BuildError> {
        let found = self
            .lock()
            .iter()
            .find(|found| found.manifest == manifest)
            .cloned();
        let found = found.ok_or_else(|| BuildError::new(format!("no image {manifest}")))?;
        self.remote(watch).fetch(&found, lease)?;
        Ok(())
    }

    /// Lets the names that registries were asked for lead to what they said, where its layers are in the store. A new
    /// name of an image whose layers nobody needed leads to the documents: the next build does not ask again.
    pub(crate) fn keep_names(&self) -> Result<(), BuildError> {
        let store = &self.engine.store;
        for found in self.lock().iter() {
            if found.name.digest().is_some() {
                continue;
            }
            let before = store.resolve(&found.name)?;
            if before == Some(found.manifest) {
                continue;
            }
            if store.image(found.manifest)?.is_some() {
                store.set_repo_digest(&found.name, found.digest, found.manifest)?;
                store.tag(&found.name, found.manifest)?;
            } else if before.is_none() {
                store.tag(&found.name, found.digest)?;
            }
        }
        Ok(())
    }

    fn remote<'r>(&'r self, watch: &'r dyn Watch) -> Remote<'r> {
        self.engine.remote(self.cancel, watch)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Found>> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
