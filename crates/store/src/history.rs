//! What builds did: a row for each of the last builds, and the listings that explanations compare.

use std::time::{Duration, SystemTime};

use kiln_image::{Digest, Key};
use rusqlite::{OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use crate::db;
use crate::records::{self, Record};
use crate::{Store, StoreError};

/// Builds that are remembered.
const BUILDS: i64 = 100;
/// Listings that are kept, in bytes; those kept longest ago go first.
const LISTINGS: i64 = 64 << 20;

/// Stores that lack these tables get them; see `db.rs`.
pub(crate) const TABLES: &str = "
-- The last builds. origin: the same text for the same build file in the same context; command: a list of words in
-- JSON; names: a list of image names in JSON; image: the image's id; log: see logs.rs; steps: see history.rs.
CREATE TABLE IF NOT EXISTS builds (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    origin TEXT NOT NULL,
    command TEXT NOT NULL,
    names TEXT NOT NULL,
    started INTEGER NOT NULL,
    took INTEGER NOT NULL,
    outcome INTEGER NOT NULL,
    error TEXT,
    image BLOB,
    log TEXT,
    steps BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS builds_by_origin ON builds (origin, id);
-- What a key of files stands for: see `Listing` in the crate fileop.
CREATE TABLE IF NOT EXISTS listings (
    key BLOB PRIMARY KEY,
    size INTEGER NOT NULL,
    kept INTEGER NOT NULL,
    bytes BLOB NOT NULL
);
";

/// How a build ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BuildOutcome {
    /// With an image.
    Done,
    /// Something went wrong.
    Failed,
    /// The user gave up.
    Canceled,
}

/// What became of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StepState {
    /// Its result was known.
    Cached,
    /// It was executed.
    Done,
    /// It was executed and failed.
    Failed,
    /// It was given up because of something else.
    Canceled,
    /// The build ended before it.
    NotReached,
    /// It would be executed; only where nothing is.
    Would,
    /// Whether it would be executed depends on the result of another step; only where nothing is.
    May,
}

/// One step of a build.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BuildStep {
    /// Its number among the steps of the build, from 0.
    pub number: u32,
    /// As the displays show it: `[build 2/4] RUN make`. Empty for work that they do not show.
    pub title: String,
    /// The stage.
    pub stage: String,
    /// The instruction, without numbers.
    pub step: String,
    /// What became of it.
    pub state: StepState,
    /// When it began, if it was executed: nanoseconds since 1970.
    pub started: Option<i64>,
    /// How long it took when it was executed; else how long it had taken when that was last done, if known.
    pub took: Option<Duration>,
    /// Why it was executed, in words.
    pub reason: Option<String>,
    /// All that was different, if that is more than the reason says; at most [`BuildStep::MOST_CHANGES`].
    pub changes: Vec<String>,
    /// The keys of the step's records.
    pub keys: Vec<Key>,
}

impl BuildStep {
    /// How many changes of one step are remembered.
    pub const MOST_CHANGES: usize = 200;
}

/// A build to be remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewBuild {
    /// The same text for the same build file in the same context: its builds are compared.
    pub origin: String,
    /// The command line.
    pub command: Vec<String>,
    /// The names that the image was to get.
    pub names: Vec<String>,
    /// When it began.
    pub started: SystemTime,
    /// How long it took.
    pub took: Duration,
    /// How it ended.
    pub outcome: BuildOutcome,
    /// Why it failed.
    pub error: Option<String>,
    /// The id of the image.
    pub image: Option<Digest>,
    /// What it showed: see [`Store::read_log`].
    pub log: Option<String>,
    /// What became of its steps.
    pub steps: Vec<BuildStep>,
}

/// A build that is remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Build {
    /// Its number in the store. Never used twice.
    pub id: i64,
    /// The rest.
    pub build: NewBuild,
}

const COLUMNS: &str =
    "id, origin, command, names, started, took, outcome, error, image, log, steps";

impl Store {
    /// Remembers a build, and forgets the oldest.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn put_build(&self, build: &NewBuild) -> Result<i64, StoreError> {
        let json = |list: &[String]| {
            serde_json::to_string(list).map_err(|err| StoreError::damaged("words of a build", &err))
        };
        let (command, names) = (json(&build.command)?, json(&build.names)?);
        let steps = postcard::to_stdvec(&build.steps)
            .map_err(|err| StoreError::damaged("steps of a build", &err))?;
        let outcome = match build.outcome {
            BuildOutcome::Done => 0,
            BuildOutcome::Failed => 1,
            BuildOutcome::Canceled => 2,
        };
        let (id, gone) = self.db.write(|on| {
            on.prepare_cached(
                "INSERT INTO builds (origin, command, names, started, took, outcome, error, image, log, steps)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
            )?
            .execute(params![
                build.origin,
                command,
                names,
                db::nanoseconds(build.started),
                i64::try_from(build.took.as_nanos()).unwrap_or(i64::MAX),
                outcome,
                build.error,
                build.image.as_ref().map(Digest::as_bytes),
                build.log,
                steps,
            ])?;
            let id = on.last_insert_rowid();
            let gone = forgotten(on, "id <= ?1", id - BUILDS)?;
            Ok((id, gone))
        })?;
        self.remove_logs(&gone)?;
        Ok(id)
    }

    /// The builds that are remembered, the latest first, at most `most`; those of one `origin`, or all.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn builds(&self, origin: Option<&str>, most: usize) -> Result<Vec<Build>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM builds WHERE ?1 IS NULL OR origin = ?1 ORDER BY id DESC"
        ))?;
        query
            .query_and_then([origin], build_of)?
            .take(most)
            .collect::<Result<_, _>>()
    }

    /// One build: the last one without a number.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn find_build(&self, id: Option<i64>) -> Result<Option<Build>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached(&format!(
            "SELECT {COLUMNS} FROM builds WHERE ?1 IS NULL OR id = ?1 ORDER BY id DESC LIMIT 1"
        ))?;
        let mut rows = query.query([id])?;
        rows.next()?.map(build_of).transpose()
    }

    /// The latest record under one of `keys`, whole or not: to explain why there was no hit.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn any_record(&self, keys: &[Key]) -> Result<Option<Record>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached(&format!(
            "SELECT {} FROM record_keys JOIN records ON records.id = record_keys.record WHERE key = ?1",
            records::COLUMNS
        ))?;
        let mut latest: Option<Record> = None;
        for key in keys {
            let found = query
                .query_row(params![key.as_bytes()], records::row)
                .optional()?
                .transpose()?;
            latest = latest.into_iter().chain(found).max_by_key(|it| it.id);
        }
        Ok(latest)
    }

    /// How long a step took when it was last executed.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn last_duration(&self, step: &str) -> Result<Option<Duration>, StoreError> {
        let db = self.db.read();
        let mut query =
            db.prepare_cached("SELECT took FROM records WHERE step = ?1 ORDER BY id DESC LIMIT 1")?;
        let took = query
            .query_row([step], |row| row.get::<_, i64>(0))
            .optional()?;
        Ok(took.map(|took| Duration::from_nanos(took as u64)))
    }

    /// Whether the listing of a key is kept.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn has_listing(&self, key: &[u8]) -> Result<bool, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached("SELECT 1 FROM listings WHERE key = ?1")?;
        Ok(query.exists([key])?)
    }

    /// The listing of a key.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn listing(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached("SELECT bytes FROM listings WHERE key = ?1")?;
        Ok(query.query_row([key], |row| row.get(0)).optional()?)
    }

    /// Keeps the listing of a key, and lets those go that were kept longest ago when there is too much.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn put_listing(&self, key: &[u8], bytes: &[u8]) -> Result<(), StoreError> {
        let size = i64::try_from(bytes.len()).unwrap_or(i64::MAX);
        if size > LISTINGS / 2 {
            return Ok(());
        }
        self.db.write(|on| {
            on.prepare_cached(
                "INSERT OR REPLACE INTO listings (key, size, kept, bytes) VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute(params![key, size, db::now(), bytes])?;
            on.prepare_cached(
                "DELETE FROM listings WHERE key IN (SELECT key FROM
                   (SELECT key, sum(size) OVER (ORDER BY kept DESC, key) AS up_to FROM listings) WHERE up_to > ?1)",
            )?
            .execute([LISTINGS])?;
            Ok(())
        })
    }
}

/// Forgets builds; gives their logs.
pub(crate) fn forgotten(
    on: &rusqlite::Connection,
    which: &str,
    id: i64,
) -> rusqlite::Result<Vec<Option<String>>> {
    let mut delete =
        on.prepare_cached(&format!("DELETE FROM builds WHERE {which} RETURNING log"))?;
    delete.query_map([id], |row| row.get(0))?.collect()
}

fn build_of(row: &Row<'_>) -> Result<Build, StoreError> {
    let words = |at: usize| -> Result<Vec<String>, StoreError> {
        serde_json::from_str(row.get_ref(at)?.as_str().map_err(rusqlite::Error::from)?)
            .map_err(|err| StoreError::damaged("words of a build", &err))
    };
    let steps = row.get_ref(10)?.as_blob().map_err(rusqlite::Error::from)?;
    Ok(Build {
        id: row.get(0)?,
        build: NewBuild {
            origin: row.get(1)?,
            command: words(2)?,
            names: words(3)?,
            started: db::time(row.get(4)?),
            took: Duration::from_nanos(row.get::<_, i64>(5)? as u64),
            outcome: match row.get(6)? {
                0 => BuildOutcome::Done,
                2 => BuildOutcome::Canceled,
                _ => BuildOutcome::Failed,
            },
            error: row.get(7)?,
            image: row.get::<_, Option<[u8; 32]>>(8)?.map(Digest::new),
            log: row.get(9)?,
            // Of another version of Kiln: the build is known, what its steps were is not.
            steps: postcard::from_bytes(steps).unwrap_or_default(),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{IdKind, OpenOptions};

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let how = OpenOptions {
            owner: rustix::process::geteuid().as_raw(),
            ids: IdKind::Real,
            boot_id: "boot".to_owned(),
        };
        let store = Store::open(&dir.path().join("store"), how).unwrap();
        (dir, store)
    }

    fn build(origin: &str) -> NewBuild {
        NewBuild {
            origin: origin.to_owned(),
            command: vec!["kiln".to_owned(), "build".to_owned()],
            names: vec!["app".to_owned()],
            started: db::time(1_700_000_000_000_000_000),
            took: Duration::from_millis(5),
            outcome: BuildOutcome::Failed,
            error: Some("no".to_owned()),
            image: Some(Digest::new([7; 32])),
            log: None,
            steps: vec![BuildStep {
                number: 3,
                title: "[1/1] RUN x".to_owned(),
                stage: "stage-0".to_owned(),
                step: "RUN x".to_owned(),
                state: StepState::Failed,
                started: Some(1),
                took: Some(Duration::from_secs(2)),
                reason: Some("never built before".to_owned()),
                changes: Vec::new(),
                keys: vec![Key::new([1; 32])],
            }],
        }
    }

    #[test]
    fn builds_are_remembered_and_the_oldest_forgotten() {
        let (_dir, store) = store();
        let first = store.put_build(&build("a")).unwrap();
        assert_eq!(
            store.find_build(Some(first)).unwrap().unwrap().build,
            build("a")
        );
        for _ in 0..BUILDS {
            store.put_build(&build("b")).unwrap();
        }
        assert_eq!(store.find_build(Some(first)).unwrap(), None);
        assert_eq!(store.builds(None, usize::MAX).unwrap().len() as i64, BUILDS);
        assert_eq!(store.builds(Some("a"), 9).unwrap(), []);
        let last = store.find_build(None).unwrap().unwrap();
        assert_eq!(last.id, first + BUILDS);
        assert_eq!(store.builds(Some("b"), 1).unwrap()[0], last);
    }

    #[test]
    fn the_listings_kept_last_stay() {
        let (_dir, store) = store();
        let large = vec![0; (LISTINGS / 4) as usize];
        for key in 0_u8..6 {
            store.put_listing(&[key], &large).unwrap();
        }
        let kept: Vec<u8> = (0..6)
            .filter(|key| store.has_listing(&[*key]).unwrap())
            .collect();
        assert_eq!(kept, [2, 3, 4, 5]);
        assert_eq!(store.listing(&[5]).unwrap(), Some(large));
        store
            .put_listing(&[9], &vec![0; LISTINGS as usize])
            .unwrap();
        assert!(!store.has_listing(&[9]).unwrap(), "too large for all");
    }
}
