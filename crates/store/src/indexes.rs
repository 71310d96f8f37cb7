//! Images of several platforms: an index, and as many of its images as the store has.

use std::collections::HashSet;

use kiln_image::{Digest, Document, Index, Platform, Reference, parse_manifest};
use rusqlite::params;

use crate::{Image, Store, StoreError, db};

/// An index of which the store has at least one image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredIndex {
    /// The digest of its bytes.
    pub digest: Digest,
    /// What it says.
    pub document: Index,
    /// Its images that are in the store, in its order.
    pub images: Vec<Image>,
    /// The tags that lead to it, sorted.
    pub tags: Vec<Reference>,
}

impl StoredIndex {
    /// The image that runs best on a platform; an image that the store does not have is not chosen.
    pub fn select(&self, platform: &Platform) -> Option<&Image> {
        let mut there = self.document.clone();
        there
            .manifests
            .retain(|entry| self.images.iter().any(|it| it.manifest == entry.digest));
        let chosen = there.select(platform)?.digest;
        self.images.iter().find(|image| image.manifest == chosen)
    }
}

impl Store {
    /// Keeps an index, whose bytes are in the store, also when no tag leads to it; until it is removed.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_index(&self, index: Digest) -> Result<(), StoreError> {
        self.db.write(|on| {
            on.prepare_cached("INSERT OR IGNORE INTO indexes (digest, stored) VALUES (?1, ?2)")?
                .execute(params![index.as_bytes(), db::now()])?;
            Ok(())
        })
    }

    /// The index of a digest; `None` if it is none, or the store has none of its images.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn index(&self, digest: Digest) -> Result<Option<StoredIndex>, StoreError> {
        let Some((kind, bytes)) = self.json(digest)? else {
            return Ok(None);
        };
        let Ok(Document::Index(document)) = parse_manifest(&bytes, Some(&kind)) else {
            return Ok(None);
        };
        let mut images = Vec::new();
        for entry in &document.manifests {
            images.extend(self.image(entry.digest)?);
        }
        if images.is_empty() {
            return Ok(None);
        }
        let tags = self.tags()?.into_iter().filter(|tag| tag.target == digest);
        Ok(Some(StoredIndex {
            tags: tags.map(|tag| tag.name).collect(),
            digest,
            document,
            images,
        }))
    }

    /// All indexes that tags lead to or that are kept without one, the latest kept first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn indexes(&self) -> Result<Vec<StoredIndex>, StoreError> {
        let mut digests: Vec<Digest> = {
            let db = self.db.read();
            let mut query = db.prepare_cached("SELECT digest FROM indexes ORDER BY stored DESC")?;
            query
                .query_map([], |row| Ok(Digest::new(row.get(0)?)))?
                .collect::<Result<_, _>>()?
        };
        let mut known: HashSet<Digest> = digests.iter().copied().collect();
        for tag in self.tags()? {
            // An image has no index of the same digest, and is not worth reading.
            if known.insert(tag.target) && self.image(tag.target)?.is_none() {
                digests.push(tag.target);
            }
        }
        let mut indexes = Vec::new();
        for digest in digests {
            indexes.extend(self.index(digest)?);
        }
        Ok(indexes)
    }

    /// Removes an index, the tags that lead to it, and its images, unless a tag or another index leads to them. Gives
    /// the removed images.
    ///
    /// # Errors
    /// When the database cannot be read or written.
    pub fn remove_index(&self, digest: Digest) -> Result<Vec<Image>, StoreError> {
        let images = self.index(digest)?.map_or_else(Vec::new, |it| it.images);
        self.db.write(|on| {
            on.prepare_cached("DELETE FROM tags WHERE target = ?1")?
                .execute(params![digest.as_bytes()])?;
            on.prepare_cached("DELETE FROM indexes WHERE digest = ?1")?
                .execute(params![digest.as_bytes()])?;
            Ok(())
        })?;
        let others: HashSet<Digest> = self
            .indexes()?
            .into_iter()
            .flat_map(|other| other.images)
            .map(|image| image.manifest)
            .collect();
        let mut removed = Vec::new();
        for image in images {
            if image.tags.is_empty() && !others.contains(&image.manifest) {
                self.remove_image(image.manifest)?;
                removed.push(image);
            }
        }
        Ok(removed)
    }
}
