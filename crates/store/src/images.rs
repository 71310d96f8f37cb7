//! Images, tags, and the JSON documents (manifests, indexes, configs) that they consist of.

use std::collections::HashMap;
use std::time::SystemTime;

use kiln_image::{Digest, LayerId, Platform, Reference};
use rusqlite::{Connection, OptionalExtension, Row, params};
use sha2::{Digest as _, Sha256};

use crate::db;
use crate::layers::{holders, require_sealed};
use crate::{Store, StoreError};

/// An image of one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageInfo {
    /// The config: what Docker calls the image id.
    pub config: Digest,
    /// Lowest first.
    pub layers: Vec<LayerId>,
    /// The sum of the sizes of the layers' files, in bytes.
    pub size: u64,
    /// As the config says.
    pub created: Option<SystemTime>,
    /// As the config says.
    pub platform: Platform,
}

/// An image in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its manifest.
    pub manifest: Digest,
    /// What it is.
    pub info: ImageInfo,
    /// When it came into the store.
    pub stored: SystemTime,
    /// The tags that lead to its manifest, sorted; those that lead to an index with it are not among them.
    pub tags: Vec<Reference>,
}

/// A name for an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// With a tag, never with a digest only.
    pub name: Reference,
    /// A manifest or an index.
    pub target: Digest,
    /// When it was last set.
    pub updated: SystemTime,
}

const COLUMNS: &str = "manifest, config, size, created, os, architecture, variant, stored";

impl Store {
    /// Keeps a manifest, index or config, under the digest of exactly these bytes.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn put_json(&self, media_type: &str, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::new(Sha256::digest(bytes).into());
        self.db.write(|on| {
            on.prepare_cached(
                "INSERT INTO json (digest, media_type, bytes, created) VALUES (?1, ?2, ?3, ?4)
                 ON CONFLICT (digest) DO UPDATE SET created = excluded.created",
            )?
            .execute(params![digest.as_bytes(), media_type, bytes, db::now()])?;
            Ok(())
        })?;
        Ok(digest)
    }

    /// A document and its media type.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn json(&self, digest: Digest) -> Result<Option<(String, Vec<u8>)>, StoreError> {
        let db = self.db.read();
        let mut query =
            db.prepare_cached("SELECT media_type, bytes FROM json WHERE digest = ?1")?;
        Ok(query
            .query_row(params![digest.as_bytes()], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .optional()?)
    }

    /// Keeps an image with its layers, until it is removed.
    ///
    /// # Errors
    /// [`StoreError::NoLayer`] when a layer is not sealed.
    pub fn set_image(&self, manifest: Digest, info: &ImageInfo) -> Result<(), StoreError> {
        self.db.write(|on| {
            require_sealed(on, &info.layers)?;
            on.prepare_cached(
                "INSERT INTO images (manifest, config, size, created, os, architecture, variant, stored)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
                 ON CONFLICT (manifest) DO UPDATE SET
                     config = excluded.config, size = excluded.size, created = excluded.created, os = excluded.os,
                     architecture = excluded.architecture, variant = excluded.variant",
            )?
            .execute(params![
                manifest.as_bytes(),
                info.config.as_bytes(),
                info.size as i64,
                info.created.map(db::nanoseconds),
                info.platform.os,
                info.platform.architecture,
                info.platform.variant,
                db::now(),
            ])?;
            on.prepare_cached("DELETE FROM image_layers WHERE manifest = ?1")?.execute(params![manifest.as_bytes()])?;
            let mut insert =
                on.prepare_cached("INSERT INTO image_layers (manifest, position, layer) VALUES (?1, ?2, ?3)")?;
            for (position, layer) in info.layers.iter().enumerate() {
                insert.execute(params![manifest.as_bytes(), position as i64, layer.as_bytes()])?;
            }
            Ok(())
        })
    }

    /// The image of a manifest.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn image(&self, manifest: Digest) -> Result<Option<Image>, StoreError> {
        let db = self.db.read();
        let mut query =
            db.prepare_cached(&format!("SELECT {COLUMNS} FROM images WHERE manifest = ?1"))?;
        let Some(mut image) = query
            .query_row(params![manifest.as_bytes()], image_row)
            .optional()?
        else {
            return Ok(None);
        };
        let mut query = db.prepare_cached(
            "SELECT layer FROM image_layers WHERE manifest = ?1 ORDER BY position",
        )?;
        let layer = |row: &Row<'_>| Ok(LayerId::new(row.get(0)?));
        image.info.layers = query
            .query_map(params![manifest.as_bytes()], layer)?
            .collect::<Result<_, _>>()?;
        image.tags = tags_of(&db, manifest)?;
        Ok(Some(image))
    }

    /// All images, those without a tag too, the latest stored first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn images(&self) -> Result<Vec<Image>, StoreError> {
        let tags = self.tags()?;
        let db = self.db.read();
        let mut query = db.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM images ORDER BY stored DESC, manifest"
        ))?;
        let mut images: Vec<Image> = query.query_map([], image_row)?.collect::<Result<_, _>>()?;
        let at: HashMap<Digest, usize> = images
            .iter()
            .enumerate()
            .map(|(at, image)| (image.manifest, at))
            .collect();
        let mut query = db.prepare_cached(
            "SELECT manifest, layer FROM image_layers ORDER BY manifest, position",
        )?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(&at) = at.get(&Digest::new(row.get(0)?)) {
                images[at].info.layers.push(LayerId::new(row.get(1)?));
            }
        }
        for tag in tags {
            if let Some(&at) = at.get(&tag.target) {
                images[at].tags.push(tag.name);
            }
        }
        Ok(images)
    }

    /// The manifests of the images whose manifest or config digest begins with these hexadecimal digits, with or without
    /// `sha256:`. Nothing for an empty or other text.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn find_images(&self, prefix: &str) -> Result<Vec<Digest>, StoreError> {
        let Some((low, high)) = digest_range(prefix.strip_prefix("sha256:").unwrap_or(prefix))
        else {
            return Ok(Vec::new());
        };
        let db = self.db.read();
        let mut query = db.prepare_cached(
            "SELECT manifest FROM images WHERE manifest BETWEEN ?1 AND ?2
             UNION SELECT manifest FROM images WHERE config BETWEEN ?1 AND ?2",
        )?;
        let digest = |row: &Row<'_>| Ok(Digest::new(row.get(0)?));
        Ok(query
            .query_map(params![low, high], digest)?
            .collect::<Result<_, _>>()?)
    }

    /// Removes an image and the tags that lead to it; gives these. Its layers stay until a sweep finds that nothing else
    /// keeps them.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remove_image(&self, manifest: Digest) -> Result<Vec<Reference>, StoreError> {
        self.db.write(|on| {
            let tags = tags_of(on, manifest)?;
            on.prepare_cached("DELETE FROM tags WHERE target = ?1")?
                .execute(params![manifest.as_bytes()])?;
            on.prepare_cached("DELETE FROM images WHERE manifest = ?1")?
                .execute(params![manifest.as_bytes()])?;
            Ok(tags)
        })
    }

    /// Removes an image to which no tag leads; `false` if one does, or if somebody who runs has its uppermost layer: a build
    /// may be about to name it. One without layers could be any build's. Its layers stay as with [`Store::remove_image`].
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remove_untagged_image(&self, manifest: Digest) -> Result<bool, StoreError> {
        self.db.write(|on| {
            // Within the transaction: whoever begins later makes the image anew.
            let live = self.live_leases()?;
            let top: Option<LayerId> = on
                .prepare_cached(
                    "SELECT layer FROM image_layers WHERE manifest = ?1 ORDER BY position DESC LIMIT 1",
                )?
                .query_row(params![manifest.as_bytes()], |row| Ok(LayerId::new(row.get(0)?)))
                .optional()?;
            let held = match top {
                Some(top) => holders(on, top)?.iter().any(|lease| live.contains(lease)),
                None => !live.is_empty(),
            };
            if held {
                return Ok(false);
            }
            let removed = on
                .prepare_cached(
                    "DELETE FROM images WHERE manifest = ?1
                     AND NOT EXISTS (SELECT 1 FROM tags WHERE target = ?1)",
                )?
                .execute(params![manifest.as_bytes()])?;
            Ok(removed > 0)
        })
    }

    /// Lets a name lead to a manifest or an index.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn tag(&self, name: &Reference, target: Digest) -> Result<(), StoreError> {
        self.db.write(|on| {
            on.prepare_cached(
                "INSERT INTO tags (name, target, updated) VALUES (?1, ?2, ?3)
                 ON CONFLICT (name) DO UPDATE SET target = excluded.target, updated = excluded.updated",
            )?
            .execute(params![name.to_string(), target.as_bytes(), db::now()])?;
            Ok(())
        })
    }

    /// Removes a name; says whether it was there.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn untag(&self, name: &Reference) -> Result<bool, StoreError> {
        self.db.write(|on| {
            Ok(on
                .prepare_cached("DELETE FROM tags WHERE name = ?1")?
                .execute([name.to_string()])?
                > 0)
        })
    }

    /// Where a name leads to.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn resolve(&self, name: &Reference) -> Result<Option<Digest>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached("SELECT target FROM tags WHERE name = ?1")?;
        Ok(query
            .query_row([name.to_string()], |row| Ok(Digest::new(row.get(0)?)))
            .optional()?)
    }

    /// Notes that a repository has an image under this digest, that of a manifest or of an index. Of `name` only registry
    /// and repository count.
    ///
    /// # Errors
    /// When the database cannot be written, or there is no such image.
    pub fn set_repo_digest(
        &self,
        name: &Reference,
        digest: Digest,
        manifest: Digest,
    ) -> Result<(), StoreError> {
        self.db.write(|on| {
            on.prepare_cached(
                "INSERT OR IGNORE INTO repo_digests (name, digest, manifest) VALUES (?1, ?2, ?3)",
            )?
            .execute(params![name.name(), digest.as_bytes(), manifest.as_bytes()])?;
            Ok(())
        })
    }

    /// Under which names with digests registries have an image, sorted.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn repo_digests(&self, manifest: Digest) -> Result<Vec<Reference>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached(
            "SELECT name, digest FROM repo_digests WHERE manifest = ?1 ORDER BY name, digest",
        )?;
        let mut rows = query.query(params![manifest.as_bytes()])?;
        let mut names = Vec::new();
        while let Some(row) = rows.next()? {
            let name = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
            let digest = Digest::new(row.get(1)?);
            names.push(parse_name(&format!("{name}@{digest}"))?);
        }
        Ok(names)
    }

    /// The images that registries have under this digest: several where it is that of an index.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn images_of_repo_digest(&self, digest: Digest) -> Result<Vec<Digest>, StoreError> {
        let db = self.db.read();
        let mut query =
            db.prepare_cached("SELECT DISTINCT manifest FROM repo_digests WHERE digest = ?1")?;
        let manifest = |row: &Row<'_>| Ok(Digest::new(row.get(0)?));
        Ok(query
            .query_map(params![digest.as_bytes()], manifest)?
            .collect::<Result<_, _>>()?)
    }

    /// All tags by name.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn tags(&self) -> Result<Vec<Tag>, StoreError> {
        let db = self.db.read();
        let mut query =
            db.prepare_cached("SELECT name, target, updated FROM tags ORDER BY name")?;
        let mut rows = query.query([])?;
        let mut tags = Vec::new();
        while let Some(row) = rows.next()? {
            let name = parse_name(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?)?;
            tags.push(Tag {
                name,
                target: Digest::new(row.get(1)?),
                updated: db::time(row.get(2)?),
            });
        }
        Ok(tags)
    }
}

/// Reads a name that the database holds.
pub(crate) fn parse_name(text: &str) -> Result<Reference, StoreError> {
    text.parse().map_err(|err| StoreError::damaged("tag", &err))
}

fn tags_of(db: &Connection, target: Digest) -> Result<Vec<Reference>, StoreError> {
    let mut query = db.prepare_cached("SELECT name FROM tags WHERE target = ?1 ORDER BY name")?;
    let names: Vec<String> = query
        .query_map(params![target.as_bytes()], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    names.iter().map(|name| parse_name(name)).collect()
}

/// Layers and tags are not in the row.
fn image_row(row: &Row<'_>) -> rusqlite::Result<Image> {
    let platform = Platform {
        os: row.get(4)?,
        architecture: row.get(5)?,
        variant: row.get(6)?,
    };
    let info = ImageInfo {
        config: Digest::new(row.get(1)?),
        layers: Vec::new(),
        size: row.get::<_, i64>(2)? as u64,
        created: row.get::<_, Option<i64>>(3)?.map(db::time),
        platform,
    };
    Ok(Image {
        manifest: Digest::new(row.get(0)?),
        info,
        stored: db::time(row.get(7)?),
        tags: Vec::new(),
    })
}

/// The first and last digest that begin with these digits.
fn digest_range(prefix: &str) -> Option<([u8; 32], [u8; 32])> {
    if prefix.is_empty() || prefix.len() > 64 {
        return None;
    }
    let (mut low, mut high) = ([0; 32], [0xff; 32]);
    for (at, digit) in prefix.chars().enumerate() {
        let digit = digit.to_digit(16)? as u8;
        let (shift, mask) = if at % 2 == 0 { (4, 0x0f) } else { (0, 0xf0) };
        low[at / 2] = low[at / 2] & mask | digit << shift;
        high[at / 2] = high[at / 2] & mask | digit << shift;
    }
    Some((low, high))
}
