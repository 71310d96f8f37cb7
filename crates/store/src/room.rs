//! What can be given up to make room, and in which order.
//!
//! The unit is a layer that cache records have. It counts as used when the latest of its records was: whoever uses a step
//! uses the layers that it stands on. So what was not used for longest comes first, and of a stack the top.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::time::SystemTime;

use kiln_image::LayerId;
use rusqlite::{Connection, Transaction, params};

use crate::db::{self, DOOMED, SEALED};
use crate::layers::holders;
use crate::{RecordId, Store, StoreError, lock};

/// A layer of the build cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// Its name.
    pub layer: LayerId,
    /// The step that made it; empty for a layer of a base image.
    pub step: String,
    /// When it was made.
    pub created: SystemTime,
    /// When a record that has it was last used.
    pub used: SystemTime,
    /// What it takes, in bytes of allocated blocks.
    pub space: u64,
    /// An image or a container has it too: without its records it still is there.
    pub shared: bool,
    /// A build that runs has it.
    pub in_use: bool,
    /// How many records have it, or a layer that stands on it.
    pub records: usize,
}

/// What a layer holds besides the build cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spaces {
    /// Layers that images have.
    pub images: u64,
    /// Layers that containers have and no image.
    pub containers: u64,
    /// Layers that only records have.
    pub cache: u64,
    /// Layers that nothing has but a build that runs, and those that go with the next sweep.
    pub rest: u64,
}

impl Store {
    /// The leases that somebody holds.
    pub(crate) fn live_leases(&self) -> Result<HashSet<String>, StoreError> {
        let mut live = HashSet::new();
        for name in crate::collect::list(&self.leases())? {
            if lock::lease_is_live(&self.leases(), &name)? {
                live.insert(name);
            }
        }
        Ok(live)
    }

    /// When the longest running build or container took its lease; `None` when nothing runs. What was used after that
    /// may be in use.
    ///
    /// # Errors
    /// When the leases cannot be read.
    pub fn oldest_lease(
        &self,
        except: Option<&crate::Lease>,
    ) -> Result<Option<SystemTime>, StoreError> {
        let mut oldest = None;
        for name in self.live_leases()? {
            if except.is_some_and(|own| own.name() == name) {
                continue;
            }
            let Ok(meta) = fs::symlink_metadata(self.leases().join(name)) else {
                continue;
            };
            let time = meta.created().or_else(|_| meta.modified()).ok();
            oldest = match (oldest, time) {
                (Some(oldest), Some(time)) => Some(std::cmp::min(oldest, time)),
                (oldest, time) => oldest.or(time),
            };
        }
        Ok(oldest)
    }

    /// The layers of the build cache in the order in which they should be given up: the least recently used first, and of
    /// a stack the top.
    ///
    /// # Errors
    /// When the database or the leases cannot be read.
    pub fn leaves(&self) -> Result<Vec<Leaf>, StoreError> {
        let live = self.live_leases()?;
        let db = self.db.read();
        let mut query = db.prepare(
            "SELECT record_layers.layer, records.outputs, records.step, records.used, layers.created, ifnull(bytes, 0), layers.lease,
                 EXISTS (SELECT 1 FROM image_layers WHERE layer = layers.id)
                 OR EXISTS (SELECT 1 FROM container_layers WHERE layer = layers.id)
             FROM record_layers JOIN records ON records.id = record JOIN layers ON layers.id = record_layers.layer
             LEFT JOIN layer_space ON layer_space.layer = layers.id
             WHERE layers.state = ?1 ORDER BY records.id",
        )?;
        let mut rows = query.query([SEALED])?;
        let mut leaves: HashMap<LayerId, Leaf> = HashMap::new();
        while let Some(row) = rows.next()? {
            let layer = LayerId::new(row.get(0)?);
            let used = db::time(row.get(3)?);
            if let Some(leaf) = leaves.get_mut(&layer) {
                leaf.used = leaf.used.max(used);
                leaf.records += 1;
                continue;
            }
            // The step that made it has it on top; what is only below others is of a base image.
            let outputs = row.get_ref(1)?.as_blob().map_err(rusqlite::Error::from)?;
            let outputs: Vec<Vec<LayerId>> = postcard::from_bytes(outputs).unwrap_or_default();
            let on_top = outputs.iter().any(|stack| stack.last() == Some(&layer));
            let lease: Option<String> = row.get(6)?;
            let leaf = Leaf {
                layer,
                step: if on_top { row.get(2)? } else { String::new() },
                created: db::time(row.get(4)?),
                used,
                space: row.get::<_, i64>(5)? as u64,
                shared: row.get(7)?,
                in_use: lease.is_some_and(|lease| live.contains(&lease)),
                records: 1,
            };
            leaves.insert(layer, leaf);
        }
        let mut query = db.prepare("SELECT lease, layer FROM protected")?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            if let Some(leaf) = leaves.get_mut(&LayerId::new(row.get(1)?)) {
                leaf.in_use |=
                    live.contains(row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?);
            }
        }
        hold_what_others_stand_on(&db, &mut leaves)?;
        let mut leaves: Vec<Leaf> = leaves.into_values().collect();
        // Of a stack fewer records have the upper layers.
        leaves.sort_by(|a, b| {
            (a.used, a.records, b.created, a.layer.hex()).cmp(&(
                b.used,
                b.records,
                a.created,
                b.layer.hex(),
            ))
        });
        Ok(leaves)
    }

    /// Gives up the records that have any of these layers, but none with a layer that a running build has. The layers
    /// that nothing else keeps go with the next sweep. Gives the records.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn give_up(&self, layers: &[LayerId]) -> Result<Vec<RecordId>, StoreError> {
        let live = self.live_leases()?;
        self.db.write(|on| {
            let mut records = BTreeSet::new();
            let mut of_layer =
                on.prepare_cached("SELECT record FROM record_layers WHERE layer = ?1")?;
            for layer in layers {
                if holders(on, *layer)?
                    .iter()
                    .any(|lease| live.contains(lease))
                {
                    continue;
                }
                let with: Vec<i64> = of_layer
                    .query_map(params![layer.as_bytes()], |row| row.get(0))?
                    .collect::<Result<_, _>>()?;
                records.extend(with);
            }
            let mut delete = on.prepare_cached("DELETE FROM records WHERE id = ?1")?;
            for id in &records {
                delete.execute([id])?;
            }
            Ok(records.into_iter().map(RecordId).collect())
        })
    }

    /// Drops a layer that turned out to be damaged, with the layers that stand on its folder, and the records, images and
    /// names that cannot be without them. Gives
    /// how many records and which names went; nothing when the layer was collected meanwhile. The layer goes with the
    /// next sweep.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn drop_layer(&self, id: LayerId) -> Result<Option<Dropped>, StoreError> {
        let (dropped, layers) = self.db.write_durably(|on| {
            let known = on
                .prepare("SELECT 1 FROM layers WHERE id = ?1 AND state = ?2")?
                .exists(params![id.as_bytes(), SEALED])?;
            if !known {
                return Ok((None, vec![id]));
            }
            let mut query = on.prepare("SELECT layer FROM layer_below WHERE below = ?1")?;
            let mut layers = query
                .query_map(params![id.as_bytes()], |row| Ok(LayerId::new(row.get(0)?)))?
                .collect::<Result<Vec<_>, _>>()?;
            layers.push(id);
            let mut dropped = Dropped {
                records: 0,
                names: Vec::new(),
            };
            for id in &layers {
                drop_one(on, *id, &mut dropped)?;
            }
            dropped.names.sort_unstable();
            Ok((Some(dropped), layers))
        })?;
        self.forget_in_memory(&layers);
        Ok(dropped)
    }

    /// Who has how much of the layers; each layer once.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn spaces(&self) -> Result<Spaces, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare(
            "SELECT CASE
                 WHEN state <> ?1 THEN 3
                 WHEN EXISTS (SELECT 1 FROM image_layers WHERE layer = id OR layer IN (SELECT layer FROM layer_below WHERE below = id)) THEN 0
                 WHEN EXISTS (SELECT 1 FROM container_layers WHERE layer = id OR layer IN (SELECT layer FROM layer_below WHERE below = id)) THEN 1
                 WHEN EXISTS (SELECT 1 FROM record_layers WHERE layer = id OR layer IN (SELECT layer FROM layer_below WHERE below = id)) THEN 2
                 ELSE 3 END AS kind, sum(bytes)
             FROM layers JOIN layer_space ON layer_space.layer = id WHERE state <> ?2 GROUP BY kind",
        )?;
        let mut rows = query.query([SEALED, DOOMED])?;
        let mut spaces = Spaces::default();
        while let Some(row) = rows.next()? {
            let bytes = row.get::<_, i64>(1)? as u64;
            match row.get(0)? {
                0 => spaces.images = bytes,
                1 => spaces.containers = bytes,
                2 => spaces.cache = bytes,
                _ => spaces.rest = bytes,
            }
        }
        Ok(spaces)
    }
}

/// A layer on whose folder another one stands is used and kept with that one, and goes after it.
fn hold_what_others_stand_on(
    db: &Connection,
    leaves: &mut HashMap<LayerId, Leaf>,
) -> Result<(), StoreError> {
    let mut query = db.prepare(
        "SELECT layer, below, EXISTS (SELECT 1 FROM image_layers WHERE image_layers.layer = layer_below.layer)
             OR EXISTS (SELECT 1 FROM container_layers WHERE container_layers.layer = layer_below.layer)
         FROM layer_below",
    )?;
    let mut rows = query.query([])?;
    while let Some(row) = rows.next()? {
        let upper = leaves.get(&LayerId::new(row.get(0)?)).cloned();
        let Some(leaf) = leaves.get_mut(&LayerId::new(row.get(1)?)) else {
            continue;
        };
        leaf.shared |= row.get::<_, bool>(2)?;
        if let Some(upper) = upper {
            leaf.used = leaf.used.max(upper.used);
            leaf.in_use |= upper.in_use;
            leaf.records += upper.records;
        }
    }
    Ok(())
}

/// Dooms a layer, and adds up what goes with it.
fn drop_one(on: &Transaction<'_>, id: LayerId, dropped: &mut Dropped) -> Result<(), StoreError> {
    let id = params![id.as_bytes()];
    let of_images = "SELECT manifest FROM image_layers WHERE layer = ?1";
    let mut query = on.prepare(&format!(
        "SELECT name FROM tags WHERE target IN ({of_images})"
    ))?;
    let names = query.query_map(id, |row| row.get(0))?;
    dropped
        .names
        .extend(names.collect::<Result<Vec<String>, _>>()?);
    dropped.records += on.execute(
        "DELETE FROM records WHERE id IN (SELECT record FROM record_layers WHERE layer = ?1)",
        id,
    )?;
    for what in [
        &format!("FROM tags WHERE target IN ({of_images})"),
        &format!("FROM images WHERE manifest IN ({of_images})"),
        "FROM protected WHERE layer = ?1",
        "FROM container_layers WHERE layer = ?1",
        "FROM diffs WHERE layer = ?1",
        "FROM layer_below WHERE layer = ?1",
    ] {
        on.execute(&format!("DELETE {what}"), id)?;
    }
    on.execute(
        &format!("UPDATE layers SET state = {DOOMED} WHERE id = ?1"),
        id,
    )?;
    Ok(())
}

/// What went with a damaged layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// How many cache records.
    pub records: usize,
    /// The names of images.
    pub names: Vec<String>,
}
