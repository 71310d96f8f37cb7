//! Documents as registries have them, and lists of manifests that are put together here: indexes under a name in the
//! store, whose images may be in registries only.

use std::collections::BTreeMap;

use kiln_export::{ExportError, Found, Member, commit_index};
use kiln_image::{
    Descriptor, Digest, Document, Index, OsDemands, Platform, Reference, media_type, parse_manifest,
};

use crate::{BuildError, CancelFlag, Engine};

/// A manifest or an index, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawDocument {
    /// What it is.
    pub media_type: String,
    /// The digest of its bytes.
    pub digest: Digest,
    /// JSON.
    pub bytes: Vec<u8>,
}

impl RawDocument {
    /// What it says.
    ///
    /// # Errors
    /// When it is neither a manifest nor an index.
    pub fn parse(&self) -> Result<Document, BuildError> {
        parse_manifest(&self.bytes, Some(&self.media_type))
            .map_err(|error| BuildError::new(format!("{}: {error}", self.digest)))
    }
}

/// What an entry of a list is to say; what is empty stays as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EntryChange {
    /// Operating system, processor and its variant.
    pub platform: [String; 3],
    /// What is wanted of the operating system.
    pub os: OsDemands,
    /// Annotations to add.
    pub annotations: BTreeMap<String, String>,
}

impl EntryChange {
    /// What the JSON of another entry says.
    pub fn of(other: &Descriptor) -> Self {
        let platform = other.platform.as_ref();
        let platform = platform.map(|it| [&it.os, &it.architecture, &it.variant].map(Clone::clone));
        Self {
            platform: platform.unwrap_or_default(),
            os: other.os.clone(),
            annotations: other.annotations.clone().unwrap_or_default(),
        }
    }

    fn apply(&self, entry: &mut Descriptor) {
        let mut platform = entry.platform.clone().unwrap_or_else(Platform::host);
        let [os, architecture, variant] = &self.platform;
        for (field, value) in [
            (&mut platform.os, os),
            (&mut platform.architecture, architecture),
            (&mut platform.variant, variant),
            (&mut entry.os.version, &self.os.version),
        ] {
            if !value.is_empty() {
                value.clone_into(field);
            }
        }
        entry.platform = Some(platform);
        if !self.os.features.is_empty() {
            entry.os.features.clone_from(&self.os.features);
        }
        if !self.annotations.is_empty() {
            let known = entry.annotations.get_or_insert_default();
            known.extend(self.annotations.clone());
        }
    }
}

impl Engine {
    /// What a name leads to in its registry, whatever the store has.
    ///
    /// # Errors
    /// When the registry does not have it, or cannot be asked.
    pub fn remote_document(
        &self,
        name: &Reference,
        cancel: &CancelFlag,
    ) -> Result<RawDocument, BuildError> {
        let found = self.client.resolve(name, cancel.flag().as_ref());
        let found = found.map_err(ExportError::from)?;
        Ok(RawDocument {
            media_type: found.media_type,
            digest: found.digest,
            bytes: found.bytes,
        })
    }

    /// A blob that a document names, a config for one, from the document's registry; at most 16 MiB.
    ///
    /// # Errors
    /// When the registry does not have it, or it is larger.
    pub fn remote_blob(
        &self,
        name: &Reference,
        blob: &Descriptor,
        cancel: &CancelFlag,
    ) -> Result<Vec<u8>, BuildError> {
        const MOST: u64 = 16 << 20;
        if blob.size > MOST {
            let text = format!("{name}: {} has more than {MOST} bytes", blob.digest);
            return Err(BuildError::new(text));
        }
        let mut bytes = Vec::with_capacity(blob.size as usize);
        let mut reader = self
            .client
            .blob(name, blob, &mut std::io::empty(), cancel.flag().clone())
            .map_err(ExportError::from)?;
        std::io::Read::read_to_end(&mut reader, &mut bytes)
            .map_err(|error| BuildError::new(format!("{name}: {error}")))?;
        Ok(bytes)
    }

    /// The document that a name leads to in the store.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub fn local_document(&self, name: &Reference) -> Result<Option<RawDocument>, BuildError> {
        let digest = match name.digest() {
            Some(digest) => Some(digest),
            None => self.store.resolve(name)?,
        };
        let Some(digest) = digest else {
            return Ok(None);
        };
        let document = self.store.json(digest)?;
        Ok(document.map(|(media_type, bytes)| RawDocument {
            media_type,
            digest,
            bytes,
        }))
    }

    /// The list of manifests that a name leads to in the store.
    ///
    /// # Errors
    /// When there is none.
    pub fn manifest_list(&self, name: &Reference) -> Result<(Digest, Index), BuildError> {
        if let Some(document) = self.local_document(name)?
            && let Document::Index(index) = document.parse()?
        {
            return Ok((document.digest, index));
        }
        Err(
            BuildError::new(format!("no such manifest: {}", name.familiar()))
                .with_hint("make it with kiln manifest create"),
        )
    }

    /// Puts images into a list under a name: those of the store, else those of registries, of which only documents are
    /// fetched. With `amend` the list may be there, and images for the same platform are replaced.
    ///
    /// # Errors
    /// When the list is there, or an image is nowhere or is of several platforms itself.
    pub fn create_manifest_list(
        &self,
        name: &Reference,
        images: &[Reference],
        amend: bool,
        cancel: &CancelFlag,
    ) -> Result<Digest, BuildError> {
        let mut entries = match self.manifest_list(name) {
            Ok((_, index)) if amend => index.manifests,
            Ok(_) => {
                let text = format!("there is a list {} already", name.familiar());
                return Err(BuildError::new(text)
                    .with_hint("add to it with --amend, or remove it with kiln manifest rm"));
            }
            Err(_) => Vec::new(),
        };
        for image in images {
            let found = self.list_entries(image, cancel)?;
            entries.retain(|known| found.iter().all(|new| new.platform != known.platform));
            entries.extend(found);
        }
        self.put_list(name, entries)
    }

    /// Changes what a list says of an image of it: of `platform` what is not empty.
    ///
    /// # Errors
    /// When there is no such list, or the image is not in it.
    pub fn annotate_manifest_list(
        &self,
        name: &Reference,
        image: &Reference,
        change: &EntryChange,
        cancel: &CancelFlag,
    ) -> Result<Digest, BuildError> {
        let (_, index) = self.manifest_list(name)?;
        let meant = self.list_entries(image, cancel)?;
        let mut entries = index.manifests;
        let mut changed = false;
        for entry in &mut entries {
            if meant.iter().all(|meant| meant.digest != entry.digest) {
                continue;
            }
            changed = true;
            change.apply(entry);
        }
        if !changed {
            let text = format!("{} is not in the list {}", image, name.familiar());
            return Err(BuildError::new(text)
                .with_hint(format!("see kiln manifest inspect {}", name.familiar())));
        }
        self.put_list(name, entries)
    }

    /// An index of images of registries, as `docker buildx imagetools create` puts one together: a source that is an
    /// index, alone and with nothing to add, stays as it is; what is to be said of a source goes for each of its entries. It is in the store's documents, under no name.
    ///
    /// # Errors
    /// When a source is not there.
    pub fn combine(
        &self,
        sources: &[(Reference, EntryChange)],
        annotations: &BTreeMap<String, String>,
        cancel: &CancelFlag,
    ) -> Result<RawDocument, BuildError> {
        let mut entries: Vec<Descriptor> = Vec::new();
        for (source, change) in sources {
            let (found, mut new) = self.remote_entries(source, cancel)?;
            let changed = *change != EntryChange::default();
            if let (1, Document::Index(_), false, true) = (
                sources.len(),
                found.parse()?,
                changed,
                annotations.is_empty(),
            ) {
                self.store.put_json(&found.media_type, &found.bytes)?;
                return Ok(found);
            }
            if changed {
                for entry in &mut new {
                    change.apply(entry);
                }
            }
            for entry in new {
                if entries.iter().all(|known| known.digest != entry.digest) {
                    entries.push(entry);
                }
            }
        }
        let index = Index {
            annotations: (!annotations.is_empty()).then(|| annotations.clone()),
            ..Index::new(media_type::OCI_INDEX, entries)
        };
        let bytes = index.to_bytes();
        let media_type = media_type::OCI_INDEX.to_owned();
        Ok(RawDocument {
            digest: self.store.put_json(&media_type, &bytes)?,
            media_type,
            bytes,
        })
    }

    /// Forgets a list. Images of the store that are in it stay.
    ///
    /// # Errors
    /// When there is none.
    pub fn remove_manifest_list(&self, name: &Reference) -> Result<(), BuildError> {
        self.manifest_list(name)?;
        self.store.untag(name)?;
        Ok(())
    }

    fn put_list(&self, name: &Reference, entries: Vec<Descriptor>) -> Result<Digest, BuildError> {
        let bytes = Index::new(media_type::OCI_INDEX, entries).to_bytes();
        let digest = self.store.put_json(media_type::OCI_INDEX, &bytes)?;
        self.store.tag(name, digest)?;
        Ok(digest)
    }

    /// The entries that an image makes in a list: one, or those of the list that it is.
    fn list_entries(
        &self,
        image: &Reference,
        cancel: &CancelFlag,
    ) -> Result<Vec<Descriptor>, BuildError> {
        if let Some(entries) = self.local_entries(image)? {
            return Ok(entries);
        }
        Ok(self.remote_entries(image, cancel)?.1)
    }

    fn remote_entries(
        &self,
        image: &Reference,
        cancel: &CancelFlag,
    ) -> Result<(RawDocument, Vec<Descriptor>), BuildError> {
        let document = self.remote_document(image, cancel)?;
        let entries = match document.parse()? {
            Document::Index(index) => {
                for entry in &index.manifests {
                    self.store.set_manifest_source(image, entry.digest)?;
                }
                index.manifests
            }
            Document::Manifest(manifest) => {
                self.store.set_manifest_source(image, document.digest)?;
                let config = self.remote_blob(image, &manifest.config, cancel)?;
                let platform = kiln_image::ImageConfig::from_bytes(&config)
                    .map_err(|error| BuildError::new(format!("{image}: its config: {error}")))?
                    .platform();
                let size = document.bytes.len() as u64;
                vec![Descriptor {
                    platform: Some(platform),
                    ..Descriptor::new(&document.media_type, document.digest, size)
                }]
            }
        };
        Ok((document, entries))
    }

    fn local_entries(&self, name: &Reference) -> Result<Option<Vec<Descriptor>>, BuildError> {
        let Some(document) = self.local_document(name)? else {
            return Ok(None);
        };
        if let Some(image) = self.store.image(document.digest)? {
            let member = Member {
                manifest: document.digest,
                platform: image.info.platform,
                annotations: BTreeMap::new(),
            };
            let index = commit_index(&self.store, &[member], &BTreeMap::new())?;
            let (kind, bytes) = self.store.json(index)?.unwrap_or_default();
            return Ok(match parse_manifest(&bytes, Some(&kind)) {
                Ok(Document::Index(index)) => Some(index.manifests),
                _ => None,
            });
        }
        match document.parse()? {
            Document::Index(index) => Ok(Some(index.manifests)),
            // Of an image that is known by its documents only, the registry knows more.
            Document::Manifest(_) => Ok(None),
        }
    }

    /// The image that runs best on a platform, of those that a name leads to in its registry; only documents are fetched.
    ///
    /// # Errors
    /// When there is none, or the registry cannot be asked.
    pub fn remote_image(
        &self,
        name: &Reference,
        platform: &Platform,
        cancel: &CancelFlag,
    ) -> Result<Found, BuildError> {
        let remote = self.remote(cancel, &kiln_export::Unwatched);
        Ok(remote.find(name, platform)?)
    }
}
