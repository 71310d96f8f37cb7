//! Containers of `kiln run`.

use std::path::PathBuf;
use std::time::SystemTime;

use kiln_image::{Digest, LayerId};
use rusqlite::{OptionalExtension, Row, params};

use crate::db;
use crate::layers::require_sealed;
use crate::{Lease, Store, StoreError, lock};

const THERE: i64 = 1;
pub(crate) const DOOMED: i64 = 2;

/// A container to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewContainer {
    /// Unique in the store.
    pub name: String,
    /// The manifest of the image that it was made from.
    pub image: Option<Digest>,
    /// The layers below it, lowest first; they are kept as long as the container.
    pub layers: Vec<LayerId>,
    /// Whether it goes with its lease.
    pub ephemeral: bool,
    /// What the engine wants to keep about it. The store does not look into it.
    pub details: Vec<u8>,
}

/// A container in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its random name: 64 hexadecimal digits.
    pub id: String,
    /// See [`NewContainer::name`].
    pub name: String,
    /// See [`NewContainer::image`].
    pub image: Option<Digest>,
    /// See [`NewContainer::layers`].
    pub layers: Vec<LayerId>,
    /// When it was made.
    pub created: SystemTime,
    /// Whether its lease is held, that is, whether it runs.
    pub running: bool,
    /// See [`NewContainer::details`].
    pub details: Vec<u8>,
}

fn insert_layers(on: &rusqlite::Connection, id: &str, layers: &[LayerId]) -> rusqlite::Result<()> {
    let mut insert = on.prepare_cached(
        "INSERT INTO container_layers (container, position, layer) VALUES (?1, ?2, ?3)",
    )?;
    for (position, layer) in layers.iter().enumerate() {
        insert.execute(params![id, position as i64, layer.as_bytes()])?;
    }
    Ok(())
}

impl Store {
    /// The folder of a container.
    pub fn container_dir(&self, id: &str) -> PathBuf {
        self.root.join("containers").join(id)
    }

    /// Makes a container that runs as long as the lease lives; gives its id, or `None` if the name is taken. Its folder
    /// is made by the caller.
    ///
    /// # Errors
    /// [`StoreError::NoLayer`] when a layer is not sealed.
    pub fn add_container(
        &self,
        lease: &Lease,
        new: &NewContainer,
    ) -> Result<Option<String>, StoreError> {
        let id = crate::store::random_name::<32>()?;
        self.db.write(|on| {
            require_sealed(on, &new.layers)?;
            let inserted = on
                .prepare_cached(
                    "INSERT INTO containers (id, name, lease, ephemeral, image, created, details)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (name) DO NOTHING",
                )?
                .execute(params![
                    id,
                    new.name,
                    lease.name(),
                    new.ephemeral,
                    new.image.map(|image| *image.as_bytes()),
                    db::now(),
                    new.details,
                ])?;
            if inserted == 0 {
                return Ok(None);
            }
            insert_layers(on, &id, &new.layers)?;
            Ok(Some(id))
        })
    }

    /// Gives a stopped container a new lease, so that it counts as running; `false` if it is not there.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn restart_container(&self, lease: &Lease, id: &str) -> Result<bool, StoreError> {
        self.db.write(|on| {
            let mut update =
                on.prepare_cached("UPDATE containers SET lease = ?2 WHERE id = ?1 AND state = ?3")?;
            Ok(update.execute(params![id, lease.name(), THERE])? > 0)
        })
    }

    /// Replaces what the engine keeps about a container; `false` if it is not there.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_container_details(&self, id: &str, details: &[u8]) -> Result<bool, StoreError> {
        self.db.write(|on| {
            let mut update = on.prepare_cached(
                "UPDATE containers SET details = ?2 WHERE id = ?1 AND state = ?3",
            )?;
            Ok(update.execute(params![id, details, THERE])? > 0)
        })
    }

    /// Puts other layers below a container: those that it was made of, and what it changed so far. `false` if it is not
    /// there.
    ///
    /// # Errors
    /// [`StoreError::NoLayer`] when a layer is not sealed.
    pub fn set_container_layers(&self, id: &str, layers: &[LayerId]) -> Result<bool, StoreError> {
        self.db.write(|on| {
            require_sealed(on, layers)?;
            let there = "SELECT 1 FROM containers WHERE id = ?1 AND state = ?2";
            if !on.prepare_cached(there)?.exists(params![id, THERE])? {
                return Ok(false);
            }
            on.execute("DELETE FROM container_layers WHERE container = ?1", [id])?;
            insert_layers(on, id, layers)?;
            Ok(true)
        })
    }

    /// All containers, the latest first.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn containers(&self) -> Result<Vec<Container>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached(
            "SELECT id, name, image, created, details, lease FROM containers WHERE state = ?1
             ORDER BY created DESC, id",
        )?;
        let row = |row: &Row<'_>| {
            let container = Container {
                id: row.get(0)?,
                name: row.get(1)?,
                image: row.get::<_, Option<[u8; 32]>>(2)?.map(Digest::new),
                layers: Vec::new(),
                created: db::time(row.get(3)?),
                running: false,
                details: row.get(4)?,
            };
            Ok((container, row.get::<_, Option<String>>(5)?))
        };
        let found: Vec<_> = query.query_map([THERE], row)?.collect::<Result<_, _>>()?;
        let mut query = db.prepare_cached(
            "SELECT layer FROM container_layers WHERE container = ?1 ORDER BY position",
        )?;
        let layer = |row: &Row<'_>| Ok(LayerId::new(row.get(0)?));
        found
            .into_iter()
            .map(|(mut container, lease)| {
                container.layers = query
                    .query_map([&container.id], layer)?
                    .collect::<Result<_, _>>()?;
                if let Some(lease) = lease {
                    container.running = !lock::lease_is_free(&self.leases(), &lease)?;
                }
                Ok(container)
            })
            .collect()
    }

    /// The process that runs a container; `None` if it does not run, or by nobody whom this process can see.
    ///
    /// # Errors
    /// When the database or the lease cannot be read.
    pub fn container_holder(&self, id: &str) -> Result<Option<u32>, StoreError> {
        let lease: Option<Option<String>> = self
            .db
            .read()
            .prepare_cached("SELECT lease FROM containers WHERE id = ?1 AND state = ?2")?
            .query_row(params![id, THERE], |row| row.get(0))
            .optional()?;
        match lease.flatten() {
            Some(lease) => lock::lease_holder(&self.leases(), &lease),
            None => Ok(None),
        }
    }

    /// Removes a container; `false` if it is not there. The worker then deletes the folder and
    /// [`Store::forget_containers`] ends the row.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn remove_container(&self, id: &str) -> Result<bool, StoreError> {
        self.db.write_durably(|on| {
            // The name is free at once; no name that a user gives has a slash.
            let mut update = on.prepare_cached(
                "UPDATE containers SET state = ?2, name = '/' || id WHERE id = ?1 AND state = ?3",
            )?;
            Ok(update.execute(params![id, DOOMED, THERE])? > 0)
        })
    }

    /// Ends the rows of removed containers, after their folders are gone.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn forget_containers(&self, ids: &[String]) -> Result<(), StoreError> {
        self.db.write(|on| {
            let mut delete =
                on.prepare_cached("DELETE FROM containers WHERE id = ?1 AND state = ?2")?;
            for id in ids {
                delete.execute(params![id, DOOMED])?;
            }
            Ok(())
        })
    }
}
