//! The database: one `SQLite` file in WAL mode, used by any number of processes.
//!
//! Writers begin with `BEGIN IMMEDIATE`, so that they wait at the start and never fail in the middle. Commits are not
//! synced (`synchronous=NORMAL`) but for those made with [`Db::write_durably`].

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags, Transaction, TransactionBehavior};

use crate::StoreError;
use crate::header::FORMAT;

/// How long a writer waits for other processes' writes.
pub(crate) const BUSY_TIMEOUT: Duration = Duration::from_mins(1);

const FILE: &str = "kiln.db";

/// Times are nanoseconds since 1970. Ids are blobs.
const SCHEMA: &str = "
-- One row.
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    boot TEXT NOT NULL
);
-- state: 0 pending, 1 sealed, 2 doomed. The lease holds it while nothing else refers to it.
CREATE TABLE layers (
    id BLOB PRIMARY KEY,
    state INTEGER NOT NULL,
    durable INTEGER NOT NULL DEFAULT 0,
    lease TEXT,
    content_id BLOB,
    size INTEGER NOT NULL DEFAULT 0,
    entries INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX layers_unsettled ON layers (state) WHERE durable = 0;
CREATE INDEX layers_leased ON layers (lease) WHERE lease IS NOT NULL;
-- clamp: the latest time in the tar, or the least integer for none.
CREATE TABLE diffs (
    layer BLOB NOT NULL REFERENCES layers ON DELETE CASCADE,
    clamp INTEGER NOT NULL,
    diff BLOB NOT NULL,
    tar_size INTEGER NOT NULL,
    PRIMARY KEY (layer, clamp)
) WITHOUT ROWID;
CREATE INDEX diffs_by_diff ON diffs (diff);
CREATE TABLE blobs (
    diff BLOB NOT NULL,
    digest BLOB NOT NULL,
    media_type TEXT NOT NULL,
    size INTEGER NOT NULL,
    encoder TEXT NOT NULL,
    present INTEGER NOT NULL,
    durable INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL,
    PRIMARY KEY (diff, digest)
) WITHOUT ROWID;
CREATE INDEX blobs_by_digest ON blobs (digest);
CREATE INDEX blobs_unsettled ON blobs (present) WHERE durable = 0 AND present = 1;
CREATE TABLE protected (
    lease TEXT NOT NULL,
    layer BLOB NOT NULL REFERENCES layers ON DELETE CASCADE,
    PRIMARY KEY (lease, layer)
) WITHOUT ROWID;
CREATE INDEX protected_layers ON protected (layer);
CREATE TABLE json (
    digest BLOB PRIMARY KEY,
    media_type TEXT NOT NULL,
    bytes BLOB NOT NULL,
    created INTEGER NOT NULL
);
CREATE TABLE images (
    manifest BLOB PRIMARY KEY,
    config BLOB NOT NULL,
    size INTEGER NOT NULL,
    created INTEGER,
    os TEXT NOT NULL,
    architecture TEXT NOT NULL,
    variant TEXT NOT NULL,
    stored INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX images_by_config ON images (config);
CREATE TABLE image_layers (
    manifest BLOB NOT NULL REFERENCES images ON DELETE CASCADE,
    position INTEGER NOT NULL,
    layer BLOB NOT NULL REFERENCES layers,
    PRIMARY KEY (manifest, position)
) WITHOUT ROWID;
CREATE INDEX image_layers_by_layer ON image_layers (layer);
CREATE TABLE tags (
    name TEXT PRIMARY KEY,
    target BLOB NOT NULL,
    updated INTEGER NOT NULL,
    durable_target BLOB,
    durable_updated INTEGER
) WITHOUT ROWID;
CREATE INDEX tags_by_target ON tags (target);
-- outputs: for each output the number of layers and their ids; parts: see records.rs.
CREATE TABLE records (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    step TEXT NOT NULL,
    outputs BLOB NOT NULL,
    created INTEGER NOT NULL,
    took INTEGER NOT NULL,
    used INTEGER NOT NULL,
    parts BLOB NOT NULL
);
CREATE INDEX records_by_step ON records (step, id);
CREATE INDEX records_by_use ON records (used);
CREATE TABLE record_layers (
    record INTEGER NOT NULL REFERENCES records ON DELETE CASCADE,
    layer BLOB NOT NULL REFERENCES layers,
    PRIMARY KEY (record, layer)
) WITHOUT ROWID;
CREATE INDEX record_layers_by_layer ON record_layers (layer);
CREATE TABLE record_keys (
    key BLOB PRIMARY KEY,
    record INTEGER NOT NULL REFERENCES records ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX record_keys_by_record ON record_keys (record);
-- state: 1 there, 2 doomed.
CREATE TABLE containers (
    id TEXT PRIMARY KEY,
    state INTEGER NOT NULL DEFAULT 1,
    name TEXT NOT NULL UNIQUE,
    lease TEXT,
    ephemeral INTEGER NOT NULL,
    image BLOB,
    created INTEGER NOT NULL,
    details BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE container_layers (
    container TEXT NOT NULL REFERENCES containers ON DELETE CASCADE,
    position INTEGER NOT NULL,
    layer BLOB NOT NULL REFERENCES layers,
    PRIMARY KEY (container, position)
) WITHOUT ROWID;
CREATE INDEX container_layers_by_layer ON container_layers (layer);
";

/// Tables that came later: stores that lack them get them. An older Kiln can do without all but `layer_below`, for which
/// the format was raised.
const ADDITIONS: &str = "
-- By which digest an image is known in a repository: of its manifest there, or of an index that names it.
CREATE TABLE IF NOT EXISTS repo_digests (
    name TEXT NOT NULL,
    digest BLOB NOT NULL,
    manifest BLOB NOT NULL REFERENCES images ON DELETE CASCADE,
    PRIMARY KEY (name, digest, manifest)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS repo_digests_by_digest ON repo_digests (digest);
CREATE INDEX IF NOT EXISTS repo_digests_by_manifest ON repo_digests (manifest);
-- Indexes that are kept although no tag may lead to them.
CREATE TABLE IF NOT EXISTS indexes (
    digest BLOB PRIMARY KEY,
    stored INTEGER NOT NULL
) WITHOUT ROWID;
-- Repositories that were seen to have a manifest of which no image need be here.
CREATE TABLE IF NOT EXISTS manifest_sources (
    digest BLOB NOT NULL,
    name TEXT NOT NULL,
    PRIMARY KEY (digest, name)
) WITHOUT ROWID;
-- What a layer's folder takes of the disk, in bytes of allocated blocks.
CREATE TABLE IF NOT EXISTS layer_space (
    layer BLOB PRIMARY KEY REFERENCES layers ON DELETE CASCADE,
    bytes INTEGER NOT NULL
) WITHOUT ROWID;
-- Layers whose folder has only what is different from a whole one's.
CREATE TABLE IF NOT EXISTS layer_below (
    layer BLOB PRIMARY KEY REFERENCES layers ON DELETE CASCADE,
    below BLOB NOT NULL REFERENCES layers ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS layer_below_by_below ON layer_below (below);
-- Cache mounts, and the leases of the builds that use them.
CREATE TABLE IF NOT EXISTS cache_mounts (
    folder TEXT PRIMARY KEY,
    id TEXT NOT NULL,
    sharing TEXT NOT NULL,
    bytes INTEGER NOT NULL DEFAULT 0,
    created INTEGER NOT NULL,
    used INTEGER NOT NULL
) WITHOUT ROWID;
-- One row: what was written before this time is on the disk.
CREATE TABLE IF NOT EXISTS settled (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    time INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS cache_mount_uses (
    lease TEXT NOT NULL,
    folder TEXT NOT NULL,
    PRIMARY KEY (lease, folder)
) WITHOUT ROWID;
";

/// The states of a layer's row.
pub(crate) const PENDING: i64 = 0;
/// See [`PENDING`].
pub(crate) const SEALED: i64 = 1;
/// See [`PENDING`].
pub(crate) const DOOMED: i64 = 2;

pub(crate) struct Db(Mutex<Connection>);

impl Db {
    /// Opens the database of the store at `root`, or makes it.
    pub(crate) fn open(root: &Path, boot: &str) -> Result<Self, StoreError> {
        let path = root.join(FILE);
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.set_prepared_statement_cache_capacity(128);
        // A checkpoint at the end would sync, and the last of several processes would pay for all: `settle` does it.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let mut version = user_version(&connection)?;
        if version == 0 {
            create(root, &connection, boot)?;
            version = user_version(&connection)?;
        }
        if version > FORMAT {
            return Err(StoreError::Newer {
                root: root.to_owned(),
                found: version,
                known: FORMAT,
            });
        }
        // 16 MiB of log: a checkpoint syncs, so it should not come in the middle of a build.
        connection.execute_batch(
            "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 4096;",
        )?;
        add(&connection, &[ADDITIONS, crate::history::TABLES])?;
        if version < FORMAT {
            // Older stores lack nothing but tables; from now on an older Kiln must stay out.
            connection.pragma_update(None, "user_version", FORMAT)?;
        }
        Ok(Self(Mutex::new(connection)))
    }

    /// The connection, for reading.
    pub(crate) fn read(&self) -> MutexGuard<'_, Connection> {
        // A panic while it was held has rolled its transaction back.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` in one transaction. It outlives the process, but maybe not the machine.
    pub(crate) fn write<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        transaction(&mut self.read(), work)
    }

    /// Runs `work` in one transaction that is on disk when this returns, and with it all transactions before it.
    pub(crate) fn write_durably<T>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut connection = self.read();
        connection.execute_batch("PRAGMA synchronous = FULL")?;
        let result = transaction(&mut connection, work);
        connection.execute_batch("PRAGMA synchronous = NORMAL")?;
        result
    }

    /// Moves the log into the database file if it is long: the next opening has to read all of it.
    pub(crate) fn checkpoint(&self, root: &Path) -> Result<(), StoreError> {
        if !is_log_long(root) {
            return Ok(());
        }
        let connection = self.read();
        // Readers of other processes are in the way: then another time.
        connection.busy_timeout(Duration::from_millis(50))?;
        let result = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        connection.busy_timeout(BUSY_TIMEOUT)?;
        result?;
        // The first commit into an empty log syncs its header, which takes as long as everybody else's writes on the disk.
        // So it is made here and not by the next build. Setting the version writes the page even if nothing changes.
        Ok(connection.pragma_update(None, "user_version", FORMAT)?)
    }

    /// Brings what was committed to the disk. In WAL mode all of it is in the log, since checkpoints sync by themselves;
    /// the rollback journal of network file systems is synced with each commit.
    pub(crate) fn sync(root: &Path) -> Result<(), StoreError> {
        let path = root.join(format!("{FILE}-wal"));
        match std::fs::File::open(&path).and_then(|log| log.sync_data()) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(StoreError::io("sync", &path)(error))
            }
            _ => Ok(()),
        }
    }
}

/// Whether the log is long: whoever opens the database has to read all of it.
pub(crate) fn is_log_long(root: &Path) -> bool {
    const LONG: u64 = 256 * 1024;
    let log = std::fs::metadata(root.join(format!("{FILE}-wal")));
    log.is_ok_and(|log| log.len() >= LONG)
}

fn transaction<T>(
    connection: &mut Connection,
    work: impl FnOnce(&Transaction<'_>) -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let result = work(&transaction)?;
    transaction.commit()?;
    Ok(result)
}

fn user_version(connection: &Connection) -> Result<u32, StoreError> {
    Ok(connection.query_row("PRAGMA user_version", [], |row| row.get(0))?)
}

/// Makes what is missing of tables and indexes. To see that nothing is takes less than to have each said again.
fn add(connection: &Connection, additions: &[&str]) -> Result<(), StoreError> {
    let mut query = connection.prepare("SELECT name FROM sqlite_schema")?;
    let there = query.query_map([], |row| row.get::<_, String>(0))?;
    let there = there.collect::<Result<std::collections::HashSet<_>, _>>()?;
    for text in additions {
        let mut names = text.split(" IF NOT EXISTS ").skip(1);
        if !names.all(|rest| {
            rest.split(' ')
                .next()
                .is_some_and(|name| there.contains(name))
        }) {
            connection.execute_batch(text)?;
        }
    }
    Ok(())
}

/// Makes the tables. Only one process at a time gets here.
fn create(root: &Path, connection: &Connection, boot: &str) -> Result<(), StoreError> {
    let path = root.join("create.lock");
    let lock = std::fs::File::create(&path).map_err(StoreError::io("create", &path))?;
    lock.lock().map_err(StoreError::io("lock", &path))?;
    if user_version(connection)? != 0 {
        return Ok(());
    }
    if !on_network(root)? {
        let _: String = connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))?;
    }
    let made = connection.execute_batch(&format!(
        "BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {FORMAT};"
    ));
    made.and_then(|()| connection.execute("INSERT INTO state (one, boot) VALUES (1, ?1)", [boot]))
        .and_then(|_| connection.execute_batch("COMMIT"))?;
    Ok(())
}

/// `kiln`, for `file(1)`.
const APPLICATION: u32 = u32::from_be_bytes(*b"kiln");

/// Whether the file system is one where the shared memory of WAL does not work between machines (`statfs(2)`).
fn on_network(root: &Path) -> Result<bool, StoreError> {
    const NFS: i64 = 0x6969;
    const SMB2: i64 = 0xfe53_4d42;
    const CIFS: i64 = 0xff53_4d42;
    let kind = rustix::fs::statfs(root)
        .map_err(|err| StoreError::io("examine", root)(err.into()))?
        .f_type;
    Ok([NFS, SMB2, CIFS].contains(&(kind as i64 & 0xffff_ffff)))
}

/// A time as the database keeps it.
pub(crate) fn nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(err) => i64::try_from(err.duration().as_nanos()).map_or(i64::MIN, |before| -before),
    }
}

/// The time of [`nanoseconds`].
pub(crate) fn time(nanoseconds: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanoseconds.unsigned_abs());
    if nanoseconds < 0 {
        UNIX_EPOCH - distance
    } else {
        UNIX_EPOCH + distance
    }
}

/// The present time.
pub(crate) fn now() -> i64 {
    nanoseconds(SystemTime::now())
}
