//! The logs of the last builds: short ones in the build's row, long ones in files of the folder `logs`.
//!
//! A log in a row begins with `=`; a file's name stands there as it is.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::history::forgotten;
use crate::{Build, Store, StoreError};

/// The files of all logs together, in bytes; the oldest go first.
const ALL_LOGS: u64 = 512 << 20;
/// A file without a row may be that of a build that runs.
const YOUNG: Duration = Duration::from_hours(24);

/// What a log in a row begins with.
const INLINE: char = '=';

impl Store {
    fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// A file for the log of a new build; not made yet.
    pub fn new_log(&self) -> PathBuf {
        let now = crate::db::now();
        self.logs()
            .join(format!("{now:x}-{}.log", std::process::id()))
    }

    /// What the row of a build keeps when its log is this text.
    pub fn log_of_text(text: &str) -> String {
        format!("{INLINE}{text}")
    }

    /// What the row of a build keeps when its log is that file.
    pub fn log_of_file(path: &Path) -> Option<String> {
        Some(path.file_name()?.to_str()?.to_owned())
    }

    /// Whether what a row keeps is a file.
    pub fn is_log_file(log: &str) -> bool {
        !log.starts_with(INLINE)
    }

    /// The log of a build; `None` when it is not kept any more.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn read_log(&self, build: &Build) -> Result<Option<Box<dyn Read>>, StoreError> {
        let Some(log) = &build.build.log else {
            return Ok(None);
        };
        if let Some(text) = log.strip_prefix(INLINE) {
            return Ok(Some(Box::new(Cursor::new(text.to_owned()))));
        }
        let path = self.logs().join(log);
        match File::open(&path) {
            Ok(file) => Ok(Some(Box::new(file))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StoreError::io("open", &path)(error)),
        }
    }

    /// Forgets builds; all of them when none is named. Gives how many there were.
    ///
    /// # Errors
    /// When the database or a folder cannot be written.
    pub fn forget_builds(&self, builds: Option<&[i64]>) -> Result<usize, StoreError> {
        let gone = self.db.write(|on| {
            let mut gone = Vec::new();
            match builds {
                None => gone.extend(forgotten(on, "id >= ?1", 0)?),
                Some(builds) => {
                    for id in builds {
                        gone.extend(forgotten(on, "id = ?1", *id)?);
                    }
                }
            }
            Ok(gone)
        })?;
        self.remove_logs(&gone)?;
        Ok(gone.len())
    }

    /// Removes the files of logs that rows had.
    pub(crate) fn remove_logs(&self, logs: &[Option<String>]) -> Result<(), StoreError> {
        for log in logs.iter().flatten().filter(|log| Self::is_log_file(log)) {
            crate::collect::remove_if_there(&self.logs().join(log))?;
        }
        Ok(())
    }

    /// Removes the files of builds that died, and the oldest when all together are too much.
    ///
    /// # Errors
    /// When the database or a folder cannot be read or written.
    pub fn sweep_logs(&self) -> Result<(), StoreError> {
        let known: HashSet<String> = {
            let db = self.db.read();
            let mut query = db.prepare_cached("SELECT log FROM builds WHERE log NOT LIKE '=%'")?;
            query
                .query_map([], |row| row.get(0))?
                .collect::<Result<_, _>>()?
        };
        let folder = self.logs();
        let mut files = Vec::new();
        if !folder.exists() {
            return Ok(());
        }
        for name in crate::collect::list(&folder)? {
            let path = folder.join(&name);
            let Ok(meta) = fs::symlink_metadata(&path) else {
                continue;
            };
            let written = meta.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let old = SystemTime::now()
                .duration_since(written)
                .is_ok_and(|age| age > YOUNG);
            if known.contains(&name) {
                files.push((written, meta.len(), path));
            } else if old {
                let _ = fs::remove_file(path);
            }
        }
        files.sort_by_key(|(written, ..)| std::cmp::Reverse(*written));
        let mut sum = 0;
        for (at, (_, size, path)) in files.into_iter().enumerate() {
            sum += size;
            // The last one stays, however long.
            if sum > ALL_LOGS && at > 0 {
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }
}
