//! The images that a build names: found in the store first, then in their registries; and those in layout folders.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use kiln_export::{ExportError, Found, Layout, Remote, Watch};
use kiln_frontend::{Context, ImageFact};
use kiln_image::{Digest, Distant, Origin, Platform, Reference};
use kiln_store::Lease;

use crate::{BuildError, BuildRequest, CancelFlag, Engine};

/// The images that one build names.
pub(crate) struct Images<'a> {
    engine: &'a Engine,
    request: &'a BuildRequest,
    /// Ask registries also for what is in the store.
    pull: bool,
    cancel: &'a CancelFlag,
    /// Those of which the layers are not in the store, and those that a registry was asked for.
    found: Mutex<Vec<Found>>,
    /// Those that are in layout folders.
    in_layouts: Mutex<Vec<(Found, PathBuf)>>,
}

impl<'a> Images<'a> {
    pub(crate) fn new(
        engine: &'a Engine,
        request: &'a BuildRequest,
        cancel: &'a CancelFlag,
    ) -> Self {
        Self {
            engine,
            request,
            pull: request.pull,
            cancel,
            found: Mutex::default(),
            in_layouts: Mutex::default(),
        }
    }

    /// What the frontend must know of an image. No layer is fetched for it.
    pub(crate) fn fact(
        &self,
        reference: &str,
        platform: &Platform,
        watch: &dyn Watch,
    ) -> Result<ImageFact, BuildError> {
        if let Some(named) = reference.strip_prefix("oci-layout://") {
            return self.in_layout(named, platform);
        }
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

    /// The same of an image in the layout folder that is a named context: the context's name, and what of it.
    fn in_layout(&self, named: &str, platform: &Platform) -> Result<ImageFact, BuildError> {
        let mut contexts = self.request.options.contexts.iter();
        let context = contexts.find_map(|(name, context)| match context {
            Context::OciLayout(wanted) => {
                let rest = named.strip_prefix(name.as_str())?;
                let same = rest.strip_prefix(':').unwrap_or(rest) == wanted;
                same.then_some((name, wanted, self.request.folders.get(name)?))
            }
            _ => None,
        });
        let Some((name, wanted, folder)) = context else {
            return Err(BuildError::new(format!("no context {named}")));
        };
        let failed = |error: ExportError| {
            let mut failed = BuildError::new(format!("context {name}: {error}"));
            failed.hint = error.hint().or_else(|| {
                let hint = "write oci-layout://FOLDER:TAG or oci-layout://FOLDER@DIGEST; \
                            FOLDER holds index.json and blobs/";
                Some(hint.to_owned())
            });
            failed
        };
        // Messages about documents call it by the context's name.
        let shown = name.parse().or_else(|_| "oci-layout".parse());
        let shown: Reference =
            shown.map_err(|error| BuildError::new(format!("{name}: {error}")))?;
        let layout = self.layout(folder);
        let found = layout.find(wanted, &shown, platform).map_err(failed)?;
        let fact = ImageFact {
            digest: found.manifest,
            config: found.config.clone(),
        };
        self.known_layouts().push((found, folder.clone()));
        Ok(fact)
    }

    fn layout<'l>(&'l self, folder: &'l Path) -> Layout<'l> {
        Layout {
            store: &self.engine.store,
            worker: &self.engine.worker,
            folder,
        }
    }

    fn known_layouts(&self) -> std::sync::MutexGuard<'_, Vec<(Found, PathBuf)>> {
        self.in_layouts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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
            "check the image's name with kiln images, or bring it in with kiln load; for the registry check the network and the proxy (HTTPS_PROXY, NO_PROXY)",
        )
    }

    /// Fetches the layers of an image that was found before.
    pub(crate) fn fetch(
        &self,
        manifest: Digest,
        lease: &Lease,
        watch: &dyn Watch,
    ) -> Result<(), BuildError> {
        let in_layout = self
            .known_layouts()
            .iter()
            .find(|(found, _)| found.manifest == manifest)
            .cloned();
        if let Some((found, folder)) = in_layout {
            return Ok(self.layout(&folder).fetch(&found, lease)?);
        }
        let found = self
            .lock()
            .iter()
            .find(|found| found.manifest == manifest)
            .cloned();
        let found = found.ok_or_else(|| BuildError::new(format!("no image {manifest}")))?;
        self.remote(watch).fetch(&found, lease)?;
        Ok(())
    }

    /// The layers of an image that was found before, by name.
    pub(crate) fn distant(&self, manifest: Digest) -> Option<Vec<Distant>> {
        let store = &self.engine.store;
        let is_it = |found: &&Found| found.manifest == manifest;
        let in_layouts = self.known_layouts();
        let in_layout = in_layouts.iter().find(|(found, _)| is_it(&found));
        if let Some((found, folder)) = in_layout {
            let origin = Origin::Folder(folder.clone());
            return found.distant(store, &origin).ok()?;
        }
        let known = self.lock();
        let found = known.iter().find(is_it)?;
        let origin = Origin::Registry(found.name.clone());
        found.distant(store, &origin).ok()?
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
            if before == Some(found.manifest) || before == Some(found.digest) {
                continue;
            }
            if store.image(found.manifest)?.is_some() {
                kiln_export::name(store, &found.name, found.digest, found.manifest)?;
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
