//! Whether a store is what it should be: rows, folders, indexes and blobs against each other.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs::{self, File};
use std::io;

use kiln_image::{ContentId, Digest, LayerId};
use rusqlite::{Connection, params};
use sha2::{Digest as _, Sha256};

use crate::db::{DOOMED, PENDING, SEALED};
use crate::{Store, StoreError, layer_fs};

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// In words.
    pub text: String,
    /// What has to go.
    pub of: Faulty,
}

/// What a fault is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Faulty {
    /// A layer.
    Layer(LayerId),
    /// A blob's file.
    Blob(Digest),
    /// Rows that belong to nothing.
    Rows,
    /// The database file itself.
    Database,
}

/// What a check found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Sealed layers.
    pub layers: Vec<LayerId>,
    /// Cache records.
    pub records: usize,
    /// Images.
    pub images: usize,
    /// Blobs whose file is there.
    pub blobs: usize,
    /// What is wrong.
    pub faults: Vec<Fault>,
}

impl Verdict {
    fn add(&mut self, of: Faulty, text: impl Into<String>) {
        self.faults.push(Fault {
            text: text.into(),
            of,
        });
    }
}

impl Store {
    /// Compares rows, folders, indexes and blobs. What a killed process left and a sweep removes is no fault. With
    /// `deep`, the files of blobs are read and the database is read as a whole.
    ///
    /// # Errors
    /// When something cannot be read at all. A database that is no database any more is a fault.
    pub fn check(&self, deep: bool) -> Result<Verdict, StoreError> {
        let mut verdict = Verdict::default();
        let checked = self.check_all(deep, &mut verdict);
        match checked {
            Err(StoreError::Corrupt(reason)) => {
                verdict.add(Faulty::Database, format!("database: {reason}"));
                Ok(verdict)
            }
            Err(err) => Err(err),
            Ok(()) => Ok(verdict),
        }
    }

    fn check_all(&self, deep: bool, verdict: &mut Verdict) -> Result<(), StoreError> {
        // Before the rows: what is made meanwhile has its row first.
        let folders = crate::collect::list(&self.root.join("layers"))?;
        let files = crate::collect::list(&self.root.join("blobs/sha256"))?;
        let db = self.db.read();
        let pragma = if deep {
            "integrity_check"
        } else {
            "quick_check"
        };
        let mut query = db.prepare(&format!("PRAGMA {pragma}"))?;
        let said: Vec<String> = query
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for line in said.iter().filter(|line| *line != "ok") {
            verdict.add(Faulty::Database, format!("database: {line}"));
        }
        let mut query = db.prepare("PRAGMA foreign_key_check")?;
        let tables: BTreeSet<String> = query
            .query_map([], |row| row.get(0))?
            .collect::<Result<_, _>>()?;
        for table in tables {
            verdict.add(
                Faulty::Rows,
                format!("table {table} refers to rows that are not there"),
            );
        }
        self.check_layers(&db, &folders, verdict)?;
        check_records(&db, verdict)?;
        check_images(&db, verdict)?;
        self.check_blobs(&db, &files, deep, verdict)
    }

    fn check_layers(
        &self,
        db: &Connection,
        folders: &[String],
        verdict: &mut Verdict,
    ) -> Result<(), StoreError> {
        let mut query = db.prepare("SELECT id, state, content_id, size, entries FROM layers")?;
        let mut rows = query.query([])?;
        let mut known = HashSet::new();
        while let Some(row) = rows.next()? {
            let id = LayerId::new(row.get(0)?);
            known.insert(id.hex().clone());
            let state: i64 = row.get(1)?;
            if state == PENDING || state == DOOMED {
                continue;
            }
            verdict.layers.push(id);
            let index = match layer_fs::read_index(&self.layer_dir(id)) {
                Ok(index) => index,
                Err(err) => {
                    verdict.add(Faulty::Layer(id), format!("layer {id}: {err}"));
                    continue;
                }
            };
            if !self.layer_dir(id).join(layer_fs::FS).is_dir() {
                verdict.add(
                    Faulty::Layer(id),
                    format!("layer {id}: its files are not there"),
                );
            }
            self.check_below(db, id, verdict)?;
            let content: Option<[u8; 32]> = row.get(2)?;
            let size = row.get::<_, i64>(3)? as u64;
            let entries = row.get::<_, i64>(4)? as u64;
            if content.map(ContentId::new) != Some(index.content_id())
                || size != index.size()
                || entries != index.entries().len() as u64
            {
                verdict.add(
                    Faulty::Layer(id),
                    format!("layer {id}: its index is not the one that was sealed"),
                );
            }
        }
        // A folder without a row is rubbish that the next sweep takes; any other name nobody put there.
        for name in folders {
            if name.parse::<LayerId>().is_err() && !known.contains(name) {
                verdict.add(
                    Faulty::Rows,
                    format!("layers/{name}: not the name of a layer"),
                );
            }
        }
        Ok(())
    }

    /// Whether row and folder name the same layer that it stands on, and whether that has its files.
    fn check_below(
        &self,
        db: &Connection,
        id: LayerId,
        verdict: &mut Verdict,
    ) -> Result<(), StoreError> {
        let row = crate::layers::below_of(db, id)?.map(|below| self.layer_dir(below));
        let told = match layer_fs::below(&self.layer_dir(id)) {
            Ok(told) if told != row => "it stands on another layer than its row says".to_owned(),
            Ok(Some(below)) if !below.join(layer_fs::FS).is_dir() => {
                "the layer that it stands on is not there".to_owned()
            }
            Ok(_) => return Ok(()),
            Err(err) => err.to_string(),
        };
        verdict.add(Faulty::Layer(id), format!("layer {id}: {told}"));
        Ok(())
    }

    fn check_blobs(
        &self,
        db: &Connection,
        files: &[String],
        deep: bool,
        verdict: &mut Verdict,
    ) -> Result<(), StoreError> {
        let mut query = db.prepare("SELECT digest, size FROM blobs WHERE present = 1")?;
        let row =
            |row: &rusqlite::Row<'_>| Ok((Digest::new(row.get(0)?), row.get::<_, i64>(1)? as u64));
        let blobs: HashMap<Digest, u64> = query.query_map([], row)?.collect::<Result<_, _>>()?;
        verdict.blobs = blobs.len();
        for (digest, size) in blobs {
            if !files.contains(&digest.hex()) {
                verdict.add(
                    Faulty::Blob(digest),
                    format!("blob {digest}: its file is not there"),
                );
            } else if let Some(reason) = self.blob_fault(digest, size, deep)? {
                verdict.add(Faulty::Blob(digest), format!("blob {digest}: {reason}"));
            }
        }
        Ok(())
    }

    /// What is wrong with a blob's file, if anything is.
    fn blob_fault(
        &self,
        digest: Digest,
        size: u64,
        deep: bool,
    ) -> Result<Option<String>, StoreError> {
        let path = self.blob_path(digest);
        let read = || {
            let mut file = File::open(&path)?;
            let found = file.metadata()?.len();
            if found != size {
                return Ok(Some(format!("it has {found} bytes, expected {size}")));
            }
            if !deep {
                return Ok(None);
            }
            let mut hasher = Sha256::new();
            let mut buffer = vec![0; 1 << 18];
            loop {
                match io::Read::read(&mut file, &mut buffer)? {
                    0 => break,
                    count => hasher.update(&buffer[..count]),
                }
            }
            let found = Digest::new(hasher.finalize().into());
            Ok((found != digest).then(|| format!("its content has the digest {found}")))
        };
        read().map_err(StoreError::io("read", &path))
    }

    /// Forgets the file of a blob that turned out to be damaged.
    ///
    /// # Errors
    /// When the database cannot be written or the file not be removed.
    pub fn drop_blob(&self, digest: Digest) -> Result<(), StoreError> {
        self.db.write_durably(|on| {
            on.execute(
                "UPDATE blobs SET present = 0 WHERE digest = ?1",
                params![digest.as_bytes()],
            )?;
            Ok(())
        })?;
        let path = self.blob_path(digest);
        match fs::remove_file(&path) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::io("remove", &path)(err))
            }
            _ => Ok(()),
        }
    }

    /// Removes rows that refer to what is not there.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn drop_loose_rows(&self) -> Result<(), StoreError> {
        let missing = |table: &str, column: &str| {
            format!(
                "SELECT {column} FROM {table} LEFT JOIN layers ON layers.id = {table}.layer WHERE state IS NOT {SEALED}"
            )
        };
        self.db.write_durably(|on| {
            on.execute(
                &format!(
                    "DELETE FROM records WHERE id IN ({})",
                    missing("record_layers", "record")
                ),
                [],
            )?;
            on.execute(
                &format!(
                    "DELETE FROM images WHERE manifest IN ({})",
                    missing("image_layers", "manifest")
                ),
                [],
            )?;
            on.execute(
                &format!("DELETE FROM tags WHERE target NOT IN ({TARGETS})"),
                [],
            )?;
            Ok(())
        })
    }
}

/// What tags can lead to.
const TARGETS: &str = "SELECT manifest FROM images UNION SELECT digest FROM json";

fn check_records(db: &Connection, verdict: &mut Verdict) -> Result<(), StoreError> {
    let mut query = db.prepare("SELECT id, outputs, step FROM records")?;
    let mut layers = db.prepare("SELECT layer, state FROM record_layers LEFT JOIN layers ON layers.id = layer WHERE record = ?1")?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        verdict.records += 1;
        let id: i64 = row.get(0)?;
        let step: String = row.get(2)?;
        let held: HashMap<LayerId, Option<i64>> = layers
            .query_map([id], |row| Ok((LayerId::new(row.get(0)?), row.get(1)?)))?
            .collect::<Result<_, _>>()?;
        let outputs: Result<Vec<Vec<LayerId>>, _> =
            postcard::from_bytes(row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?);
        let Ok(outputs) = outputs else {
            verdict.add(
                Faulty::Rows,
                format!("record of {step:?}: its outputs cannot be read"),
            );
            continue;
        };
        let named: HashSet<LayerId> = outputs.into_iter().flatten().collect();
        if named.len() != held.len()
            || named
                .iter()
                .any(|layer| held.get(layer) != Some(&Some(SEALED)))
        {
            verdict.add(
                Faulty::Rows,
                format!("record of {step:?}: its layers are not there"),
            );
        }
    }
    Ok(())
}

fn check_images(db: &Connection, verdict: &mut Verdict) -> Result<(), StoreError> {
    let mut query = db.prepare(
        "SELECT manifest,
             EXISTS (SELECT 1 FROM json WHERE digest = manifest) AND EXISTS (SELECT 1 FROM json WHERE digest = config),
             EXISTS (SELECT 1 FROM image_layers LEFT JOIN layers ON layers.id = layer
                     WHERE image_layers.manifest = images.manifest AND state IS NOT ?1)
         FROM images",
    )?;
    let mut rows = query.query([SEALED])?;
    while let Some(row) = rows.next()? {
        verdict.images += 1;
        let manifest = Digest::new(row.get(0)?);
        if !row.get::<_, bool>(1)? {
            verdict.add(
                Faulty::Rows,
                format!("image {manifest}: its manifest or config is not there"),
            );
        }
        if row.get(2)? {
            verdict.add(
                Faulty::Rows,
                format!("image {manifest}: a layer is not there"),
            );
        }
    }
    let mut query = db.prepare(&format!(
        "SELECT name FROM tags WHERE target NOT IN ({TARGETS})"
    ))?;
    let names: Vec<String> = query
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for name in names {
        verdict.add(Faulty::Rows, format!("tag {name}: it leads to nothing"));
    }
    Ok(())
}
