//! Rows of layers, of the tars that they make, and of the blobs that these make.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

use kiln_image::{ContentId, DiffId, Digest, LayerId, LayerIndex};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};
use serde::{Deserialize, Serialize};

use crate::db::{self, DOOMED, PENDING, SEALED};
use crate::{Lease, Store, StoreError, layer_fs};

/// What the store keeps about a layer beside its index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerSummary {
    /// The outcome without times.
    pub content_id: ContentId,
    /// Bytes in regular files, hard-linked ones once.
    pub size: u64,
    /// How many paths.
    pub entries: u64,
    /// What the layer's folder takes of the disk ([`crate::space_of`]); 0 where it was not measured.
    pub space: u64,
    /// The whole layer on whose folder it stands, where its own has only what is different.
    pub below: Option<LayerId>,
}

impl LayerSummary {
    /// Sums up an index. The space is not in it.
    pub fn of(index: &LayerIndex) -> Self {
        Self {
            content_id: index.content_id(),
            size: index.size(),
            entries: index.entries().len() as u64,
            space: 0,
            below: None,
        }
    }
}

/// A sealed layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerInfo {
    /// Its name in this store.
    pub id: LayerId,
    /// The outcome without times.
    pub content_id: ContentId,
    /// Bytes in regular files, hard-linked ones once.
    pub size: u64,
    /// How many paths.
    pub entries: u64,
    /// When it was sealed.
    pub created: SystemTime,
    /// Whether it outlives a crash of the machine.
    pub durable: bool,
}

/// A form in which a layer's tar leaves or entered the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobInfo {
    /// The tar.
    pub diff: DiffId,
    /// The blob.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Bytes.
    pub size: u64,
    /// What made it: name and version of the encoder, or `pulled`.
    pub encoder: String,
    /// Whether the file is in `blobs/`.
    pub present: bool,
}

/// A clamp for the database.
fn clamp_number(clamp: Option<i64>) -> i64 {
    clamp.unwrap_or(i64::MIN)
}

impl Store {
    /// The folder of a layer.
    pub fn layer_dir(&self, id: LayerId) -> PathBuf {
        self.root.join("layers").join(id.hex())
    }

    /// The place of a blob's file, there or not.
    pub fn blob_path(&self, digest: Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Starts a layer: its row is `pending` and its folder is there, empty. It stays as long as the lease.
    ///
    /// # Errors
    /// When row or folder cannot be made.
    pub fn begin_layer(&self, lease: &Lease) -> Result<LayerId, StoreError> {
        let id = LayerId::new(crate::store::random()?);
        // The row first: a folder without a row is rubbish that any sweep may remove.
        self.db.write(|on| {
            on.prepare_cached(
                "INSERT INTO layers (id, state, lease, created) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![id.as_bytes(), PENDING, lease.name(), db::now()])?;
            Ok(())
        })?;
        let path = self.layer_dir(id);
        fs::create_dir(&path).map_err(StoreError::io("create", &path))?;
        Ok(id)
    }

    /// Declares a layer complete, after its files and index are written. The lease goes on protecting it. The layer that it
    /// stands on, if there is one, stays as long as it does.
    ///
    /// # Errors
    /// When the layer is not pending or has no index, or what it stands on is gone.
    pub fn seal_layer(&self, id: LayerId, summary: &LayerSummary) -> Result<(), StoreError> {
        if !self.layer_dir(id).join(layer_fs::INDEX).is_file() {
            return Err(StoreError::Seal(id, "its index is not written"));
        }
        self.db.write(|on| {
            let changed = on
                .prepare_cached(
                    "UPDATE layers SET state = ?2, content_id = ?3, size = ?4, entries = ?5, created = ?6
                     WHERE id = ?1 AND state = ?7",
                )?
                .execute(params![
                    id.as_bytes(),
                    SEALED,
                    summary.content_id.as_bytes(),
                    summary.size as i64,
                    summary.entries as i64,
                    db::now(),
                    PENDING,
                ])?;
            if changed != 1 {
                return Err(StoreError::Seal(id, "it is not pending"));
            }
            if summary.space > 0 {
                crate::space::put_space(on, id, summary.space)?;
            }
            if let Some(below) = summary.below {
                require_sealed(on, &[below])?;
                on.prepare_cached("INSERT INTO layer_below (layer, below) VALUES (?1, ?2)")?
                    .execute(params![id.as_bytes(), below.as_bytes()])?;
            }
            Ok(())
        })
    }

    /// Says when the step ended that made a layer, where that was in another store.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_created(&self, id: LayerId, created: SystemTime) -> Result<(), StoreError> {
        self.db.write(|on| {
            on.prepare_cached("UPDATE layers SET created = ?2 WHERE id = ?1")?
                .execute(params![id.as_bytes(), db::nanoseconds(created)])?;
            Ok(())
        })
    }

    /// Gives up a layer that was begun and not sealed. The worker then deletes the folder, and
    /// [`Store::forget_layers`] ends the row; if that does not happen, a sweep comes back to it.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn discard_layer(&self, id: LayerId) -> Result<(), StoreError> {
        self.db.write(|on| {
            on.prepare_cached("UPDATE layers SET state = ?2 WHERE id = ?1 AND state = ?3")?
                .execute(params![id.as_bytes(), DOOMED, PENDING])?;
            Ok(())
        })
    }

    /// A sealed layer.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn layer(&self, id: LayerId) -> Result<Option<LayerInfo>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached(
            "SELECT content_id, size, entries, created, durable FROM layers WHERE id = ?1 AND state = ?2",
        )?;
        let row = |row: &Row<'_>| {
            Ok(LayerInfo {
                id,
                content_id: ContentId::new(row.get(0)?),
                size: row.get::<_, i64>(1)? as u64,
                entries: row.get::<_, i64>(2)? as u64,
                created: db::time(row.get(3)?),
                durable: row.get(4)?,
            })
        };
        Ok(query
            .query_row(params![id.as_bytes(), SEALED], row)
            .optional()?)
    }

    /// The index of a layer. Read once, then kept in memory.
    ///
    /// # Errors
    /// When it cannot be read or is damaged.
    pub fn load_index(&self, id: LayerId) -> Result<Arc<LayerIndex>, StoreError> {
        let known = |map: &std::collections::HashMap<_, _>| map.get(&id).map(Arc::clone);
        if let Some(index) = known(&self.indexes.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(index);
        }
        let path = self.layer_dir(id);
        let index =
            layer_fs::read_index(&path).map_err(StoreError::io("read the index of", &path))?;
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(Arc::clone(
            indexes.entry(id).or_insert_with(|| Arc::new(index)),
        ))
    }

    /// The clamp with which a layer makes the tar of `diff`; `None` both for no clamp and for a tar that it does not
    /// make, which [`Store::diff`] tells apart.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn clamp_of(&self, id: LayerId, diff: DiffId) -> Result<Option<i64>, StoreError> {
        let db = self.db.read();
        let mut query =
            db.prepare_cached("SELECT max(clamp) FROM diffs WHERE layer = ?1 AND diff = ?2")?;
        let clamp: Option<i64> =
            query.query_row(params![id.as_bytes(), diff.as_bytes()], |row| row.get(0))?;
        Ok(clamp.filter(|clamp| *clamp != clamp_number(None)))
    }

    /// Notes the tar that a layer makes. `clamp`: no time in it is later (seconds since 1970).
    ///
    /// # Errors
    /// [`StoreError::NoLayer`].
    pub fn set_diff(
        &self,
        id: LayerId,
        clamp: Option<i64>,
        diff: DiffId,
        tar_size: u64,
    ) -> Result<(), StoreError> {
        self.db.write(|on| {
            require_sealed(on, &[id])?;
            on.prepare_cached("INSERT OR REPLACE INTO diffs (layer, clamp, diff, tar_size) VALUES (?1, ?2, ?3, ?4)")?
                .execute(params![id.as_bytes(), clamp_number(clamp), diff.as_bytes(), tar_size as i64])?;
            Ok(())
        })
    }

    /// The tar that a layer makes, and its size, if it is known.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn diff(
        &self,
        id: LayerId,
        clamp: Option<i64>,
    ) -> Result<Option<(DiffId, u64)>, StoreError> {
        let db = self.db.read();
        let mut query =
            db.prepare_cached("SELECT diff, tar_size FROM diffs WHERE layer = ?1 AND clamp = ?2")?;
        let row = |row: &Row<'_>| Ok((DiffId::new(row.get(0)?), row.get::<_, i64>(1)? as u64));
        Ok(query
            .query_row(params![id.as_bytes(), clamp_number(clamp)], row)
            .optional()?)
    }

    /// A sealed layer that makes this tar with its own times.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn layer_by_diff(&self, diff: DiffId) -> Result<Option<LayerId>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached(
            "SELECT layer FROM diffs JOIN layers ON layers.id = diffs.layer
             WHERE diff = ?1 AND clamp = ?2 AND state = ?3 ORDER BY created",
        )?;
        let mut rows = query.query(params![diff.as_bytes(), i64::MIN, SEALED])?;
        while let Some(row) = rows.next()? {
            let id = LayerId::new(row.get(0)?);
            if self.is_there(&db, id)? {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Notes a blob of a tar, with or without its file in `blobs/`. Without `present`, a file that is there stays known.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_blob(&self, blob: &BlobInfo) -> Result<(), StoreError> {
        self.db.write(|on| {
            on.prepare_cached(
                "INSERT INTO blobs (diff, digest, media_type, size, encoder, present, created)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (diff, digest) DO UPDATE SET
                     media_type = excluded.media_type, size = excluded.size, encoder = excluded.encoder,
                     durable = durable AND present, present = max(present, excluded.present),
                     created = excluded.created",
            )?
            .execute(params![
                blob.diff.as_bytes(),
                blob.digest.as_bytes(),
                blob.media_type,
                blob.size as i64,
                blob.encoder,
                blob.present,
                db::now(),
            ])?;
            Ok(())
        })
    }

    /// The known blobs of a tar, the latest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn blobs_of(&self, diff: DiffId) -> Result<Vec<BlobInfo>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached(
            "SELECT digest, media_type, size, encoder, present FROM blobs WHERE diff = ?1 ORDER BY created DESC",
        )?;
        let row = |row: &Row<'_>| {
            Ok(BlobInfo {
                diff,
                digest: Digest::new(row.get(0)?),
                media_type: row.get(1)?,
                size: row.get::<_, i64>(2)? as u64,
                encoder: row.get(3)?,
                present: row.get(4)?,
            })
        };
        Ok(query
            .query_map(params![diff.as_bytes()], row)?
            .collect::<Result<_, _>>()?)
    }

    /// The tar that a blob holds, if it is known: saves pulling a layer that is there in another form.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn diff_of_blob(&self, digest: Digest) -> Result<Option<DiffId>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached("SELECT diff FROM blobs WHERE digest = ?1")?;
        let row = |row: &Row<'_>| Ok(DiffId::new(row.get(0)?));
        Ok(query
            .query_row(params![digest.as_bytes()], row)
            .optional()?)
    }

    /// Keeps sealed layers from being collected as long as the lease lives.
    ///
    /// # Errors
    /// [`StoreError::NoLayer`] when one has been collected since it was found: then it is as if it had not been found.
    pub fn protect(&self, lease: &Lease, layers: &[LayerId]) -> Result<(), StoreError> {
        let new = lease.unprotected(layers);
        if new.is_empty() {
            return Ok(());
        }
        self.db.write(|on| {
            require_sealed(on, &new)?;
            let mut insert = on
                .prepare_cached("INSERT OR IGNORE INTO protected (lease, layer) VALUES (?1, ?2)")?;
            for id in &new {
                insert.execute(params![lease.name(), id.as_bytes()])?;
            }
            Ok(())
        })?;
        lease.now_protected(&new);
        Ok(())
    }

    /// The layer on whose folder a layer stands; itself if it is whole.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn whole_layer(&self, id: LayerId) -> Result<LayerId, StoreError> {
        below_of(&self.db.read(), id).map(|below| below.unwrap_or(id))
    }

    /// Whether the index of a sealed layer, and that of what it stands on, is really there: somebody may have cleaned up
    /// by hand.
    pub(crate) fn is_there(&self, on: &Connection, id: LayerId) -> Result<bool, StoreError> {
        match below_of(on, id)? {
            Some(below) if !self.has_index(below)? => Ok(false),
            _ => self.has_index(id),
        }
    }

    fn has_index(&self, id: LayerId) -> Result<bool, StoreError> {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.contains(&id) {
            return Ok(true);
        }
        let path = self.layer_dir(id).join(layer_fs::INDEX);
        match fs::symlink_metadata(&path) {
            Ok(_) => Ok(seen.insert(id)),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(err) => Err(StoreError::io("examine", &path)(err)),
        }
    }
}

/// The layer that a layer stands on.
pub(crate) fn below_of(on: &Connection, id: LayerId) -> Result<Option<LayerId>, StoreError> {
    let mut query = on.prepare_cached("SELECT below FROM layer_below WHERE layer = ?1")?;
    let below = |row: &Row<'_>| Ok(LayerId::new(row.get(0)?));
    Ok(query.query_row(params![id.as_bytes()], below).optional()?)
}

/// The leases under which somebody has or had a layer.
pub(crate) fn holders(on: &Connection, id: LayerId) -> Result<Vec<String>, StoreError> {
    let mut query = on.prepare_cached(
        "SELECT lease FROM protected WHERE layer = ?1
         UNION SELECT lease FROM layers WHERE id = ?1 AND lease IS NOT NULL",
    )?;
    Ok(query
        .query_map(params![id.as_bytes()], |row| row.get(0))?
        .collect::<Result<_, _>>()?)
}

/// Checks that layers are sealed.
pub(crate) fn require_sealed(on: &Transaction<'_>, layers: &[LayerId]) -> Result<(), StoreError> {
    let mut query = on.prepare_cached("SELECT 1 FROM layers WHERE id = ?1 AND state = ?2")?;
    for id in layers {
        if !query.exists(params![id.as_bytes(), SEALED])? {
            return Err(StoreError::NoLayer(*id));
        }
    }
    Ok(())
}
