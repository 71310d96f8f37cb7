//! Cache records: what a step gave, by the keys under which it can be found again.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use kiln_image::{Key, LayerId};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::db::{self, SEALED};
use crate::layers::require_sealed;
use crate::{Store, StoreError};

/// The number of a record in its store. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub i64);

/// What a step gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its number.
    pub id: RecordId,
    /// For each output the layers, lowest first.
    pub outputs: Vec<Vec<LayerId>>,
    /// When the step ended.
    pub created: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// Which step it was: the same text for the same step of the same build file, whatever its inputs are.
    pub step: String,
}

/// A record to be put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewRecord {
    /// See [`Record::outputs`].
    pub outputs: Vec<Vec<LayerId>>,
    /// See [`Record::created`].
    pub created: SystemTime,
    /// See [`Record::took`].
    pub took: Duration,
    /// See [`Record::step`].
    pub step: String,
    /// The named parts of the key, in order: what a later miss is explained with.
    pub parts: Vec<(String, Vec<u8>)>,
}

/// A record as a clean-up sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordUse {
    /// Its number.
    pub id: RecordId,
    /// See [`Record::step`].
    pub step: String,
    /// When it was put.
    pub created: SystemTime,
    /// When it was last used, to the minute.
    pub used: SystemTime,
    /// The layers that it keeps.
    pub layers: Vec<LayerId>,
}

pub(crate) const COLUMNS: &str = "id, outputs, created, took, step";

impl Store {
    /// The record under a key; only if all its layers are sealed and their folders are there. Protect its layers before
    /// you rely on them.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn find_record(&self, key: Key) -> Result<Option<Record>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM record_keys JOIN records ON records.id = record_keys.record WHERE key = ?1"
        ))?;
        let Some(record) = query.query_row(params![key.as_bytes()], row).optional()? else {
            return Ok(None);
        };
        let record = record?;
        Ok(self.is_whole(&db, &record)?.then_some(record))
    }

    /// The layers that records had and that turned out to have no folder, since this was last asked.
    pub fn take_missing(&self) -> Vec<LayerId> {
        std::mem::take(
            &mut *self
                .missing
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        )
    }

    /// The latest record of a step, whole or not: to explain why there was no hit.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn latest_record_of_step(&self, step: &str) -> Result<Option<Record>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM records WHERE step = ?1 ORDER BY id DESC LIMIT 1"
        ))?;
        query.query_row([step], row).optional()?.transpose()
    }

    /// The parts of a record's key. They may be large and only explanations need them, so they are not in [`Record`].
    ///
    /// # Errors
    /// [`StoreError::NoRecord`].
    pub fn record_parts(&self, id: RecordId) -> Result<Vec<(String, Vec<u8>)>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached("SELECT parts FROM records WHERE id = ?1")?;
        let bytes: Vec<u8> = query
            .query_row([id.0], |row| row.get(0))
            .optional()?
            .ok_or(StoreError::NoRecord(id))?;
        postcard::from_bytes(&bytes)
            .map_err(|err| StoreError::damaged("parts of a cache record", &err))
    }

    /// Puts a record under all of `keys`; what was under them before is found no more.
    ///
    /// # Errors
    /// [`StoreError::NoLayer`] when an output has a layer that is not sealed.
    pub fn put_record(&self, keys: &[Key], record: &NewRecord) -> Result<RecordId, StoreError> {
        let layers: BTreeSet<LayerId> = record.outputs.iter().flatten().copied().collect();
        let layers: Vec<LayerId> = layers.into_iter().collect();
        let encode = |err: postcard::Error| StoreError::damaged("cache record", &err);
        let outputs = postcard::to_stdvec(&record.outputs).map_err(encode)?;
        let parts = postcard::to_stdvec(&record.parts).map_err(encode)?;
        self.db.write(|on| {
            require_sealed(on, &layers)?;
            let created = db::nanoseconds(record.created);
            let took = i64::try_from(record.took.as_nanos()).unwrap_or(i64::MAX);
            on.prepare_cached(
                "INSERT INTO records (step, outputs, created, took, used, parts) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            )?
            .execute(params![record.step, outputs, created, took, db::now(), parts])?;
            let id = RecordId(on.last_insert_rowid());
            let mut insert = on.prepare_cached("INSERT INTO record_layers (record, layer) VALUES (?1, ?2)")?;
            for layer in &layers {
                insert.execute(params![id.0, layer.as_bytes()])?;
            }
            put_keys(on, keys, id)?;
            Ok(id)
        })
    }

    /// Keys under which a record is found, at most so many.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn keys_of(&self, record: RecordId, most: usize) -> Result<Vec<Key>, StoreError> {
        let db = self.db.read();
        let mut query =
            db.prepare_cached("SELECT key FROM record_keys WHERE record = ?1 LIMIT ?2")?;
        let key = |row: &Row<'_>| Ok(Key::new(row.get(0)?));
        Ok(query
            .query_map(params![record.0, most as i64], key)?
            .collect::<Result<_, _>>()?)
    }

    /// Makes a record findable under one more key.
    ///
    /// # Errors
    /// [`StoreError::NoRecord`].
    pub fn alias(&self, key: Key, record: RecordId) -> Result<(), StoreError> {
        self.db.write(|on| {
            if !on
                .prepare_cached("SELECT 1 FROM records WHERE id = ?1")?
                .exists([record.0])?
            {
                return Err(StoreError::NoRecord(record));
            }
            put_keys(on, &[key], record)
        })
    }

    /// Marks records as used now, by number or by key. Times are kept to the minute, so that most builds change nothing.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn touch(&self, records: &[RecordId], keys: &[Key]) -> Result<(), StoreError> {
        const MINUTE: i64 = 60_000_000_000;
        let ids: Vec<i64> = records.iter().map(|id| id.0).collect();
        let ids =
            serde_json::to_string(&ids).map_err(|err| StoreError::damaged("record ids", &err))?;
        let keys: Vec<String> = keys.iter().map(Key::hex).collect();
        let keys =
            serde_json::to_string(&keys).map_err(|err| StoreError::damaged("record keys", &err))?;
        let now = db::now();
        let stale = params![ids, now - MINUTE, keys];
        let such =
            "(id IN (SELECT value FROM json_each(?1)) OR id IN (SELECT record FROM record_keys
             WHERE key IN (SELECT unhex(value) FROM json_each(?3)))) AND used < ?2";
        if !self
            .db
            .read()
            .prepare_cached(&format!("SELECT 1 FROM records WHERE {such} LIMIT 1"))?
            .exists(stale)?
        {
            return Ok(());
        }
        self.db.write(|on| {
            on.prepare_cached(&format!("UPDATE records SET used = ?4 WHERE {such}"))?
                .execute(params![ids, now - MINUTE, keys, now])?;
            Ok(())
        })
    }

    /// All records, the least recently used first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn records_by_use(&self) -> Result<Vec<RecordUse>, StoreError> {
        let db = self.db.read();
        let mut layers_of: std::collections::HashMap<i64, Vec<LayerId>> =
            std::collections::HashMap::new();
        let mut query = db.prepare_cached("SELECT record, layer FROM record_layers")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            layers_of
                .entry(row.get(0)?)
                .or_default()
                .push(LayerId::new(row.get(1)?));
        }
        let mut query =
            db.prepare_cached("SELECT id, step, created, used FROM records ORDER BY used, id")?;
        let row = |row: &Row<'_>| {
            let id = row.get(0)?;
            Ok(RecordUse {
                id: RecordId(id),
                step: row.get(1)?,
                created: db::time(row.get(2)?),
                used: db::time(row.get(3)?),
                layers: layers_of.remove(&id).unwrap_or_default(),
            })
        };
        Ok(query.query_map([], row)?.collect::<Result<_, _>>()?)
    }

    /// Removes records. Their layers stay until a sweep finds that nothing else keeps them.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remove_records(&self, records: &[RecordId]) -> Result<(), StoreError> {
        self.db.write(|on| {
            let mut delete = on.prepare_cached("DELETE FROM records WHERE id = ?1")?;
            for id in records {
                delete.execute([id.0])?;
            }
            Ok(())
        })
    }

    fn is_whole(&self, db: &Connection, record: &Record) -> Result<bool, StoreError> {
        let mut missing = db.prepare_cached(
            "SELECT 1 FROM record_layers LEFT JOIN layers ON layers.id = record_layers.layer
             WHERE record = ?1 AND state IS NOT ?2",
        )?;
        if missing.exists(params![record.id.0, SEALED])? {
            return Ok(false);
        }
        for id in record.outputs.iter().flatten() {
            if !self.is_there(db, *id)? {
                self.missing
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .push(*id);
                return Ok(false);
            }
        }
        Ok(true)
    }
}

pub(crate) fn row(row: &Row<'_>) -> rusqlite::Result<Result<Record, StoreError>> {
    let outputs = row.get_ref(1)?.as_blob()?;
    let outputs = match postcard::from_bytes(outputs) {
        Ok(outputs) => outputs,
        Err(err) => return Ok(Err(StoreError::damaged("outputs of a cache record", &err))),
    };
    Ok(Ok(Record {
        id: RecordId(row.get(0)?),
        outputs,
        created: db::time(row.get(2)?),
        took: Duration::from_nanos(row.get::<_, i64>(3)? as u64),
        step: row.get(4)?,
    }))
}

fn put_keys(on: &Connection, keys: &[Key], record: RecordId) -> Result<(), StoreError> {
    let mut insert =
        on.prepare_cached("INSERT OR REPLACE INTO record_keys (key, record) VALUES (?1, ?2)")?;
    for key in keys {
        insert.execute(params![key.as_bytes(), record.0])?;
    }
    Ok(())
}
