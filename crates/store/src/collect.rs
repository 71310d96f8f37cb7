//! What goes: sweeping, settling, and what a restart of the machine takes away.
//!
//! Written by processes that may be killed at any time, on a machine that may lose power. Three rules make that safe:
//! a row is committed before its folder is made; a layer is durable only after `syncfs` and then a synced commit; a row
//! is durably doomed before its folder is deleted.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use kiln_image::{DiffId, Digest, LayerId};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, params};

use crate::containers::DOOMED as CONTAINER_DOOMED;
use crate::db::{self, DOOMED, Db, PENDING, SEALED};
use crate::images::parse_name;
use crate::{OpenReport, Store, StoreError, TagFallback, lock};

/// Documents and blobs that nothing refers to are left alone for this long: a pull may be about to refer to them.
const GRACE: i64 = 24 * 3600 * 1_000_000_000;

/// Files of blobs without a row are left alone for so many seconds: longer than a writer waits for the database.
const STRAY: i64 = 600;

/// Stat files are kept for so many seconds after their last use.
const OLD_STAT: i64 = 30 * 24 * 3600;

/// Where a layer is kept by something else than a lease.
const KEPT: &str = "EXISTS (SELECT 1 FROM image_layers WHERE layer = layers.id)
    OR EXISTS (SELECT 1 FROM record_layers WHERE layer = layers.id)
    OR EXISTS (SELECT 1 FROM container_layers WHERE layer = layers.id)
    OR EXISTS (SELECT 1 FROM protected WHERE layer = layers.id)
    OR EXISTS (SELECT 1 FROM layer_below WHERE below = layers.id)";

/// What is doomed stands on nothing any more.
const LET_GO: &str =
    "DELETE FROM layer_below WHERE layer IN (SELECT id FROM layers WHERE state = ?1)";

impl Store {
    /// Finds the layers that nothing keeps: pending ones whose lease is free, and sealed ones that no image, record,
    /// container or live lease refers to. They are doomed durably and given, with those doomed earlier. The worker
    /// deletes their folders; then call [`Store::forget_layers`]. Documents and blobs that nothing refers to are removed.
    ///
    /// # Errors
    /// When the database or a folder cannot be read or written.
    pub fn sweep(&self) -> Result<Vec<LayerId>, StoreError> {
        // Before the transaction: a folder seen now has had its row since before.
        let folders = list(&self.root.join("layers"))?;
        let leases = list(&self.leases())?;
        self.remove_old_stat_files()?;
        let (doomed, blobs, moved) = self.db.write(|on| {
            release_leases(self, on, &leases)?;
            // Whoever is about to refer to a blob has a lease.
            let grace = if self.live_leases()?.is_empty() { 0 } else { GRACE };
            on.execute("DELETE FROM records WHERE NOT EXISTS (SELECT 1 FROM record_keys WHERE record = records.id)", [])?;
            on.execute("UPDATE layers SET state = ?1 WHERE state = ?2 AND lease IS NULL", [DOOMED, PENDING])?;
            let doom = format!("UPDATE layers SET state = ?1 WHERE state = ?2 AND lease IS NULL AND NOT ({KEPT})");
            on.execute(&doom, [DOOMED, SEALED])?;
            // With what stood on them gone, whole layers may go.
            if on.execute(LET_GO, [DOOMED])? > 0 {
                on.execute(&doom, [DOOMED, SEALED])?;
            }
            adopt_strays(on, &folders)?;
            let moved = doomed_that_moved(on)?;
            on.execute("DELETE FROM diffs WHERE layer IN (SELECT id FROM layers WHERE state = ?1)", [DOOMED])?;
            collect_json(on)?;
            let mut query = on.prepare("SELECT id FROM layers WHERE state = ?1")?;
            let doomed = query.query_map([DOOMED], layer_id)?.collect::<Result<Vec<_>, _>>()?;
            Ok((doomed, collect_blobs(on, grace)?, moved))
        })?;
        if !doomed.is_empty() || !blobs.is_empty() {
            Db::sync(&self.root)?;
        }
        self.keep_indexes(&moved)?;
        for digest in blobs {
            remove_if_there(&self.blob_path(digest))?;
        }
        self.remove_stray_blobs()?;
        // Claims whose holder was killed leave their files behind.
        let claims = self.root.join("claims");
        for name in list(&claims)? {
            lock::remove_if_free(&claims.join(name))?;
        }
        self.forget_in_memory(&doomed);
        Ok(doomed)
    }

    /// What is remembered of contexts that nobody has built for a month.
    fn remove_old_stat_files(&self) -> Result<(), StoreError> {
        let folder = self.root.join("stat");
        for name in list(&folder)? {
            let path = folder.join(name);
            let Ok(meta) = fs::symlink_metadata(&path) else {
                continue;
            };
            let used = meta.mtime().max(meta.atime());
            if db::now() / 1_000_000_000 - used > OLD_STAT {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    /// Files whose row was never written: their writer was killed between the two.
    fn remove_stray_blobs(&self) -> Result<(), StoreError> {
        let folder = self.root.join("blobs/sha256");
        for name in list(&folder)? {
            let path = folder.join(&name);
            let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else {
                continue;
            };
            let known = self
                .db
                .read()
                .prepare_cached("SELECT 1 FROM blobs WHERE digest = ?1 AND present = 1")?
                .exists(params![digest.as_bytes()])?;
            if known {
                continue;
            }
            // Linking a file changes this time: its row comes at once, or when the database is free.
            let changed = fs::symlink_metadata(&path).map(|meta| meta.ctime());
            if changed.is_ok_and(|seconds| db::now() / 1_000_000_000 - seconds > STRAY) {
                remove_if_there(&path)?;
            }
        }
        Ok(())
    }

    /// Ends the rows of doomed layers, after their folders are gone.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn forget_layers(&self, layers: &[LayerId]) -> Result<(), StoreError> {
        self.forget_in_memory(layers);
        self.db.write(|on| {
            let mut delete =
                on.prepare_cached("DELETE FROM layers WHERE id = ?1 AND state = ?2")?;
            for id in layers {
                delete.execute(params![id.as_bytes(), DOOMED])?;
            }
            Ok(())
        })
    }

    /// Finds the containers that were removed and those that should go with their lease and whose lease is free; gives
    /// their ids. The worker deletes their folders; then call [`Store::forget_containers`].
    ///
    /// # Errors
    /// When the database or a lease cannot be read or written.
    pub fn sweep_containers(&self) -> Result<Vec<String>, StoreError> {
        let leases = list(&self.leases())?;
        self.db.write_durably(|on| {
            release_leases(self, on, &leases)?;
            on.execute(
                "UPDATE containers SET state = ?1, name = '/' || id WHERE ephemeral AND lease IS NULL AND state <> ?1",
                [CONTAINER_DOOMED],
            )?;
            on.execute(
                "DELETE FROM container_layers WHERE container IN (SELECT id FROM containers WHERE state = ?1)",
                [CONTAINER_DOOMED],
            )?;
            let mut query = on.prepare("SELECT id FROM containers WHERE state = ?1")?;
            Ok(query.query_map([CONTAINER_DOOMED], |row| row.get(0))?.collect::<Result<_, _>>()?)
        })
    }

    /// Makes everything that is sealed now outlive a crash of the machine, and lets tags fall back to nothing older than
    /// now. Takes as long as the disk needs: call it off the path of a build. Does nothing when there is nothing new.
    ///
    /// # Errors
    /// When the file system cannot be synced or the database cannot be written.
    pub fn settle(&self) -> Result<(), StoreError> {
        let (layers, blobs, tags) = unsettled(&self.db.read())?;
        let began = db::now();
        let files = unsettled_files(&self.root, &self.db.read())?;
        if !layers.is_empty() || !blobs.is_empty() || files.any() {
            let sync = || rustix::fs::syncfs(fs::File::open(&self.root)?).map_err(io::Error::from);
            sync().map_err(StoreError::io("sync", &self.root))?;
        } else if !tags {
            return self.db.checkpoint(&self.root);
        }
        self.db.write_durably(|on| {
            let mut update =
                on.prepare_cached("UPDATE layers SET durable = 1 WHERE id = ?1 AND state = ?2")?;
            for id in &layers {
                update.execute(params![id.as_bytes(), SEALED])?;
            }
            let mut update = on
                .prepare_cached("UPDATE blobs SET durable = 1 WHERE digest = ?1 AND present = 1")?;
            for digest in &blobs {
                update.execute(params![digest.as_bytes()])?;
            }
            on.execute(
                "INSERT OR REPLACE INTO settled (one, time) VALUES (1, ?1)",
                [began],
            )?;
            settle_tags(on)
        })?;
        for source in &files.sources {
            // Without it the source is fetched again after a restart.
            let _ = fs::write(source.join(DURABLE), "");
        }
        self.db.checkpoint(&self.root)
    }

    pub(crate) fn forget_in_memory(&self, layers: &[LayerId]) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        for id in layers {
            seen.remove(id);
        }
        drop(seen);
        let mut indexes = self.indexes.lock().unwrap_or_else(PoisonError::into_inner);
        for id in layers {
            indexes.remove(id);
        }
    }
}

/// In the folder of a source: it is on the disk as a whole.
const DURABLE: &str = "durable";

/// What no row tells the durability of.
struct UnsettledFiles {
    /// Folders of fetched sources.
    sources: Vec<PathBuf>,
    /// There are cache mounts that were used since the last time.
    cache_mounts: bool,
}

impl UnsettledFiles {
    fn any(&self) -> bool {
        self.cache_mounts || !self.sources.is_empty()
    }
}

fn unsettled_files(root: &Path, on: &Connection) -> Result<UnsettledFiles, StoreError> {
    let cache_mounts = on
        .prepare_cached(
            "SELECT 1 FROM cache_mounts WHERE used >= (SELECT ifnull(max(time), 0) FROM settled)",
        )?
        .exists([])?;
    let mut sources = Vec::new();
    let folder = root.join("sources");
    if folder.is_dir() {
        for name in list(&folder)? {
            let source = folder.join(&name);
            if !name.starts_with("new-") && source.is_dir() && !source.join(DURABLE).exists() {
                sources.push(source);
            }
        }
    }
    Ok(UnsettledFiles {
        sources,
        cache_mounts,
    })
}

/// Gives up sources and cache mounts that may have been written to shortly before the machine stopped.
fn give_up_files(root: &Path, on: &Transaction<'_>) -> Result<(), StoreError> {
    for source in unsettled_files(root, on)?.sources {
        fs::remove_dir_all(&source).map_err(StoreError::io("remove", &source))?;
    }
    let mut query = on.prepare(
        "SELECT folder FROM cache_mounts WHERE used >= (SELECT ifnull(max(time), 0) FROM settled)
         OR folder IN (SELECT folder FROM cache_mount_uses)",
    )?;
    let folders: Vec<String> = query
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    for folder in folders {
        crate::cache_mounts::set_aside(root, &folder)?;
        on.execute("DELETE FROM cache_mounts WHERE folder = ?1", [&folder])?;
    }
    on.execute("DELETE FROM cache_mount_uses", [])?;
    Ok(())
}

fn layer_id(row: &Row<'_>) -> rusqlite::Result<LayerId> {
    Ok(LayerId::new(row.get(0)?))
}

fn digest(row: &Row<'_>) -> rusqlite::Result<Digest> {
    Ok(Digest::new(row.get(0)?))
}

/// The names in a folder.
pub(crate) fn list(folder: &Path) -> Result<Vec<String>, StoreError> {
    let read = || {
        fs::read_dir(folder)?
            .map(|entry| Ok(entry?.file_name().into_string().ok()))
            .filter_map(Result::transpose)
            .collect::<io::Result<Vec<_>>>()
    };
    read().map_err(StoreError::io("list", folder))
}

pub(crate) fn remove_if_there(path: &Path) -> Result<(), StoreError> {
    match fs::remove_file(path) {
        Err(err) if err.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("remove", path)(err))
        }
        _ => Ok(()),
    }
}

/// Takes from the database the leases that nobody holds, and removes their files.
fn release_leases(store: &Store, on: &Transaction<'_>, files: &[String]) -> Result<(), StoreError> {
    let mut query = on.prepare(
        "SELECT lease FROM layers WHERE lease IS NOT NULL UNION SELECT lease FROM protected
         UNION SELECT lease FROM containers WHERE lease IS NOT NULL UNION SELECT lease FROM cache_mount_uses",
    )?;
    let mut names: HashSet<String> = query
        .query_map([], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    names.extend(files.iter().cloned());
    for name in names {
        if lock::lease_is_free(&store.leases(), &name)? {
            on.execute("UPDATE layers SET lease = NULL WHERE lease = ?1", [&name])?;
            on.execute("DELETE FROM protected WHERE lease = ?1", [&name])?;
            on.execute(
                "UPDATE cache_mounts SET used = ?2 WHERE folder IN (SELECT folder FROM cache_mount_uses WHERE lease = ?1)",
                params![name, db::now()],
            )?;
            on.execute("DELETE FROM cache_mount_uses WHERE lease = ?1", [&name])?;
            on.execute(
                "UPDATE containers SET lease = NULL WHERE lease = ?1",
                [&name],
            )?;
        }
    }
    Ok(())
}

/// Folders whose row was lost with the power.
fn adopt_strays(on: &Transaction<'_>, folders: &[String]) -> Result<(), StoreError> {
    let mut insert =
        on.prepare("INSERT OR IGNORE INTO layers (id, state, created) VALUES (?1, ?2, ?3)")?;
    for id in folders
        .iter()
        .filter_map(|name| name.parse::<LayerId>().ok())
    {
        insert.execute(params![id.as_bytes(), DOOMED, db::now()])?;
    }
    Ok(())
}

fn collect_json(on: &Transaction<'_>) -> Result<(), StoreError> {
    on.execute(
        "DELETE FROM json WHERE created < ?1
             AND NOT EXISTS (SELECT 1 FROM images WHERE manifest = digest)
             AND NOT EXISTS (SELECT 1 FROM images WHERE config = digest)
             AND NOT EXISTS (SELECT 1 FROM repo_digests WHERE repo_digests.digest = json.digest)
             AND NOT EXISTS (SELECT 1 FROM indexes WHERE indexes.digest = json.digest)
             AND NOT EXISTS (SELECT 1 FROM tags WHERE target = digest OR durable_target = digest)",
        [db::now() - GRACE],
    )?;
    Ok(())
}

/// The doomed layers that came from elsewhere or went there, with their tars: they may be met again.
fn doomed_that_moved(on: &Transaction<'_>) -> Result<Vec<(LayerId, DiffId)>, StoreError> {
    let mut query = on.prepare(
        "SELECT layer, diff FROM diffs JOIN layers ON layers.id = layer WHERE state = ?1 AND clamp = ?2
         AND EXISTS (SELECT 1 FROM blobs WHERE blobs.diff = diffs.diff)",
    )?;
    let pair = |row: &Row<'_>| Ok((LayerId::new(row.get(0)?), DiffId::new(row.get(1)?)));
    Ok(query
        .query_map([DOOMED, i64::MIN], pair)?
        .collect::<Result<_, _>>()?)
}

/// Gives the blobs whose files may go.
fn collect_blobs(on: &Transaction<'_>, grace: i64) -> Result<Vec<Digest>, StoreError> {
    let mut query = on.prepare(
        "DELETE FROM blobs WHERE created < ?1 AND NOT EXISTS (SELECT 1 FROM diffs WHERE diffs.diff = blobs.diff)
         RETURNING digest",
    )?;
    let gone = query
        .query_map([db::now() - grace], digest)?
        .collect::<Result<Vec<_>, _>>()?;
    let mut still = on.prepare("SELECT 1 FROM blobs WHERE digest = ?1 AND present = 1")?;
    let mut files = Vec::new();
    for digest in gone {
        if !still.exists(params![digest.as_bytes()])? {
            files.push(digest);
        }
    }
    Ok(files)
}

/// Whether nothing of what a tag leads to was lost; with `durable`, nor would be in a crash. What was never fetched is
/// not lost: the layers of a base that is known by its config only, images of an index for other platforms.
fn is_target_whole(on: &Connection, target: Digest, durable: bool) -> Result<bool, StoreError> {
    if let Some(whole) = is_image_whole(on, target, durable)? {
        return Ok(whole);
    }
    let mut query = on.prepare_cached("SELECT bytes FROM json WHERE digest = ?1")?;
    let bytes = |row: &Row<'_>| row.get::<_, Vec<u8>>(0);
    let Some(bytes) = query
        .query_row(params![target.as_bytes()], bytes)
        .optional()?
    else {
        return Ok(false);
    };
    let Ok(kiln_image::Document::Index(index)) = kiln_image::parse_manifest(&bytes, None) else {
        return Ok(true);
    };
    let mut nothing_lost = true;
    for manifest in &index.manifests {
        match is_image_whole(on, manifest.digest, durable)? {
            Some(true) => return Ok(true),
            Some(false) => nothing_lost = false,
            None => {}
        }
    }
    Ok(nothing_lost)
}

/// Whether all layers of an image are there; `None` if the store has no such image.
fn is_image_whole(
    on: &Connection,
    manifest: Digest,
    durable: bool,
) -> Result<Option<bool>, StoreError> {
    let manifest = manifest.as_bytes();
    let mut known = on.prepare_cached("SELECT 1 FROM images WHERE manifest = ?1")?;
    if !known.exists(params![manifest])? {
        return Ok(None);
    }
    let mut missing = on.prepare_cached(
        "SELECT 1 FROM image_layers LEFT JOIN layers ON layers.id = image_layers.layer
         WHERE manifest = ?1 AND (state IS NOT ?2 OR durable < ?3)",
    )?;
    Ok(Some(!missing.exists(params![manifest, SEALED, durable])?))
}

/// What is not durable: sealed layers, files of blobs, whether there are targets of tags.
fn unsettled(on: &Connection) -> Result<(Vec<LayerId>, Vec<Digest>, bool), StoreError> {
    let mut query = on.prepare_cached("SELECT id FROM layers WHERE durable = 0 AND state = ?1")?;
    let layers = query
        .query_map([SEALED], layer_id)?
        .collect::<Result<_, _>>()?;
    let mut query =
        on.prepare_cached("SELECT DISTINCT digest FROM blobs WHERE durable = 0 AND present = 1")?;
    let blobs = query.query_map([], digest)?.collect::<Result<_, _>>()?;
    let mut query = on.prepare_cached("SELECT 1 FROM tags WHERE durable_target IS NOT target")?;
    Ok((layers, blobs, query.exists([])?))
}

fn settle_tags(on: &Transaction<'_>) -> Result<(), StoreError> {
    let mut query =
        on.prepare_cached("SELECT name, target FROM tags WHERE durable_target IS NOT target")?;
    let tag = |row: &Row<'_>| Ok((row.get::<_, String>(0)?, Digest::new(row.get(1)?)));
    let tags = query.query_map([], tag)?.collect::<Result<Vec<_>, _>>()?;
    let mut update = on.prepare_cached(
        "UPDATE tags SET durable_target = target, durable_updated = updated WHERE name = ?1",
    )?;
    for (name, target) in tags {
        if is_target_whole(on, target, true)? {
            update.execute([name])?;
        }
    }
    Ok(())
}

/// Looks whether the machine was restarted since the store was last open, and gives up what may have suffered.
pub(crate) fn recover(root: &Path, db: &Db, boot: &str) -> Result<OpenReport, StoreError> {
    let same = |on: &Connection| -> Result<bool, StoreError> {
        Ok(on.query_row("SELECT boot FROM state", [], |row| {
            Ok(row.get_ref(0)?.as_str()? == boot)
        })?)
    };
    if same(&db.read())? {
        return Ok(OpenReport::default());
    }
    let (report, blobs) = db.write_durably(|on| {
        // Another process may have been faster.
        if same(on)? {
            return Ok((OpenReport::default(), Vec::new()));
        }
        let mut report = OpenReport {
            restarted: true,
            ..OpenReport::default()
        };
        let blobs = give_up(on, &mut report)?;
        give_up_files(root, on)?;
        on.execute("UPDATE state SET boot = ?1", [boot])?;
        Ok((report, blobs))
    })?;
    for digest in blobs {
        remove_if_there(&root.join("blobs/sha256").join(digest.hex()))?;
    }
    Ok(report)
}

/// Gives the blobs whose files may be damaged.
fn give_up(on: &Transaction<'_>, report: &mut OpenReport) -> Result<Vec<Digest>, StoreError> {
    report.lost_layers = on.execute(
        "UPDATE layers SET state = ?1 WHERE state = ?2 AND durable = 0",
        [DOOMED, SEALED],
    )?;
    on.execute(
        "UPDATE layers SET state = ?1 WHERE state = ?2",
        [DOOMED, PENDING],
    )?;
    // What a durable layer stands on is older, and so durable itself; this is for what nobody thought of.
    report.lost_layers += on.execute(
        "UPDATE layers SET state = ?1 WHERE state = ?2 AND id IN (SELECT layer FROM layer_below
         JOIN layers AS whole ON whole.id = below WHERE whole.state <> ?2)",
        [DOOMED, SEALED],
    )?;
    let broken = |table: &str, column: &str| {
        format!(
            "SELECT {column} FROM {table} LEFT JOIN layers ON layers.id = {table}.layer WHERE state IS NOT {SEALED}"
        )
    };
    report.lost_records = on.execute(
        &format!(
            "DELETE FROM records WHERE id IN ({})",
            broken("record_layers", "record")
        ),
        [],
    )?;
    // While it can still be seen which images were there.
    give_up_tags(on, report)?;
    on.execute(
        &format!(
            "DELETE FROM images WHERE manifest IN ({})",
            broken("image_layers", "manifest")
        ),
        [],
    )?;
    let lost = format!(
        "id IN ({}) AND state <> ?1",
        broken("container_layers", "container")
    );
    let mut query = on.prepare(&format!(
        "SELECT name FROM containers WHERE {lost} ORDER BY name"
    ))?;
    report.lost_containers = query
        .query_map([CONTAINER_DOOMED], |row| row.get(0))?
        .collect::<Result<_, _>>()?;
    on.execute(
        &format!("UPDATE containers SET state = ?1, name = '/' || id WHERE {lost}"),
        [CONTAINER_DOOMED],
    )?;
    on.execute(
        "DELETE FROM container_layers WHERE container IN (SELECT id FROM containers WHERE state = ?1)",
        [CONTAINER_DOOMED],
    )?;
    let mut query = on.prepare(
        "UPDATE blobs SET present = 0 WHERE present = 1 AND durable = 0 RETURNING digest",
    )?;
    Ok(query.query_map([], digest)?.collect::<Result<_, _>>()?)
}

fn give_up_tags(on: &Transaction<'_>, report: &mut OpenReport) -> Result<(), StoreError> {
    let mut query =
        on.prepare("SELECT name, target, durable_target FROM tags WHERE durable_target IS NOT target ORDER BY name")?;
    let tag = |row: &Row<'_>| {
        let durable = row.get::<_, Option<[u8; 32]>>(2)?.map(Digest::new);
        Ok((row.get::<_, String>(0)?, Digest::new(row.get(1)?), durable))
    };
    for (name, lost, durable) in query.query_map([], tag)?.collect::<Result<Vec<_>, _>>()? {
        if is_target_whole(on, lost, true)? {
            continue;
        }
        let now = match durable {
            Some(target) if is_target_whole(on, target, true)? => Some(target),
            _ => None,
        };
        match now {
            Some(_) => on.execute(
                "UPDATE tags SET target = durable_target, updated = durable_updated WHERE name = ?1",
                [&name],
            )?,
            None => on.execute("DELETE FROM tags WHERE name = ?1", [&name])?,
        };
        report.tags.push(TagFallback {
            name: parse_name(&name)?,
            lost,
            now,
        });
    }
    Ok(())
}
