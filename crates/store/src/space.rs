//! How much of the disk things take: allocated blocks, as `du` counts them, never the sizes that files claim.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use rusqlite::params;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir};
use rustix::io::Errno;

use crate::db::{DOOMED, SEALED};
use crate::{Store, StoreError};

/// The unit of `st_blocks`, whatever the file system's own blocks are (`stat(2)`).
const BLOCK: u64 = 512;

/// How much a store may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpaceLimits {
    /// Bytes that everything in the store may take together.
    pub most: u64,
    /// Bytes of the disk that stay free, whoever takes the others.
    pub reserve: u64,
}

impl SpaceLimits {
    /// What holds where nothing is said: three fifths of the disk, and one thousandth of it, but no more than 256 MiB,
    /// is left free.
    pub fn of_disk(total: u64) -> Self {
        Self {
            most: total / 5 * 3,
            reserve: (total / 1000).min(256 << 20),
        }
    }
}

/// The disk that a store is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Its size in bytes.
    pub total: u64,
    /// Bytes that a user who is not root can still write.
    pub available: u64,
}

impl Disk {
    /// The disk of a folder; of the nearest one above where there is none.
    ///
    /// # Errors
    /// When it cannot be examined.
    pub fn of(path: &Path) -> Result<Self, StoreError> {
        let mut at = path;
        loop {
            match rustix::fs::statvfs(at) {
                Ok(disk) => {
                    return Ok(Self {
                        total: disk.f_blocks * disk.f_frsize,
                        available: disk.f_bavail * disk.f_frsize,
                    });
                }
                Err(Errno::NOENT) if at.parent().is_some() => at = at.parent().unwrap_or(at),
                Err(err) => return Err(StoreError::io("examine", path)(err.into())),
            }
        }
    }
}

/// How much a store takes, as it can be told without looking into layers and cache mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Measured {
    /// Layers that are sealed.
    pub layers: u64,
    /// Files of blobs.
    pub blobs: u64,
    /// What was fetched from the network.
    pub sources: u64,
    /// Cache mounts, as they were last measured.
    pub cache_mounts: u64,
    /// The database, stat files, locks, and the folders of the store themselves.
    pub other: u64,
}

impl Measured {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.layers + self.blobs + self.sources + self.cache_mounts + self.other
    }
}

/// The space of a file, or of a folder with everything in it: files with several names once. What goes away meanwhile is
/// not counted.
///
/// # Errors
/// When something cannot be read.
pub fn space_of(path: &Path) -> io::Result<u64> {
    let top = match rustix::fs::lstat(path) {
        Err(Errno::NOENT) => return Ok(0),
        other => other?,
    };
    let mut sum = top.st_blocks as u64 * BLOCK;
    if FileType::from_raw_mode(top.st_mode) != FileType::Directory {
        return Ok(sum);
    }
    let mut several_names = HashSet::new();
    let top: Arc<Option<OwnedFd>> = Arc::new(None);
    let mut pending = vec![(
        top,
        CString::new(path.as_os_str().as_encoded_bytes()).map_err(io::Error::other)?,
    )];
    let mut buffer = Vec::with_capacity(32 * 1024);
    while let Some((parent, name)) = pending.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = parent.as_ref().as_ref().map_or(CWD, AsFd::as_fd);
        let folder = match rustix::fs::openat(from, &name, flags, Mode::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => continue,
            other => Arc::new(Some(other?)),
        };
        let Some(fd) = folder.as_ref() else { continue };
        let mut entries = RawDir::new(fd, buffer.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Err(Errno::NOENT) => break,
                other => other?,
            };
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                pending.push((Arc::clone(&folder), name.to_owned()));
            } else if stat.st_nlink > 1 && !several_names.insert(stat.st_ino) {
                continue;
            }
            sum += stat.st_blocks as u64 * BLOCK;
        }
    }
    Ok(sum)
}

impl Store {
    /// How much of the disk is taken, but for what layers in the making and containers hold. What layers and cache mounts
    /// take is known from their rows.
    ///
    /// # Errors
    /// When the database or a folder cannot be read.
    pub fn measure(&self) -> Result<Measured, StoreError> {
        let layers: i64 = self.db.read().query_row(
            "SELECT ifnull(sum(bytes), 0) FROM layer_space JOIN layers ON layers.id = layer_space.layer
             WHERE state <> ?1",
            [DOOMED],
            |row| row.get(0),
        )?;
        let cache_mounts: i64 = self.db.read().query_row(
            "SELECT ifnull(sum(bytes), 0) FROM cache_mounts",
            [],
            |row| row.get(0),
        )?;
        let mut measured = Measured {
            layers: layers as u64,
            cache_mounts: cache_mounts as u64,
            ..Measured::default()
        };
        let space = |path: &Path| space_of(path).map_err(StoreError::io("measure", path));
        let own = |path: &Path| {
            let meta = fs::symlink_metadata(path).map_err(StoreError::io("examine", path))?;
            Ok::<_, StoreError>(meta.blocks() * BLOCK)
        };
        measured.other = own(&self.root)?;
        let entries = fs::read_dir(&self.root).map_err(StoreError::io("list", &self.root))?;
        for entry in entries {
            let path = entry.map_err(StoreError::io("list", &self.root))?.path();
            match path.file_name().and_then(|name| name.to_str()) {
                Some("layers" | "cache-mounts" | "containers") => measured.other += own(&path)?,
                Some("blobs") => measured.blobs += space(&path)?,
                Some("sources") => measured.sources += space(&path)?,
                // The worker tries things out in it, in folders that the front may not read.
                Some("tmp") => measured.other += space(&path).or_else(|_| own(&path))?,
                _ => measured.other += space(&path)?,
            }
        }
        Ok(measured)
    }

    /// Sealed layers of which it is not written down what they take: those of older versions of Kiln.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn unmeasured_layers(&self) -> Result<Vec<kiln_image::LayerId>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached(
            "SELECT id FROM layers WHERE state = ?1 AND NOT EXISTS (SELECT 1 FROM layer_space WHERE layer = id)",
        )?;
        let id = |row: &rusqlite::Row<'_>| Ok(kiln_image::LayerId::new(row.get(0)?));
        Ok(query.query_map([SEALED], id)?.collect::<Result<_, _>>()?)
    }

    /// Layers that are being made: they take space that no row tells of.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn pending_layers(&self) -> Result<Vec<kiln_image::LayerId>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached("SELECT id FROM layers WHERE state <> ?1")?;
        let id = |row: &rusqlite::Row<'_>| Ok(kiln_image::LayerId::new(row.get(0)?));
        Ok(query.query_map([SEALED], id)?.collect::<Result<_, _>>()?)
    }

    /// Writes down what a layer takes.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_layer_space(&self, id: kiln_image::LayerId, bytes: u64) -> Result<(), StoreError> {
        self.db.write(|on| put_space(on, id, bytes))
    }

    /// What a layer takes, where it is written down.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn layer_space(&self, id: kiln_image::LayerId) -> Result<Option<u64>, StoreError> {
        use rusqlite::OptionalExtension as _;
        let db = self.db.read();
        let mut query = db.prepare_cached("SELECT bytes FROM layer_space WHERE layer = ?1")?;
        let bytes: Option<i64> = query
            .query_row(params![id.as_bytes()], |row| row.get(0))
            .optional()?;
        Ok(bytes.map(|bytes| bytes as u64))
    }
}

pub(crate) fn put_space(
    on: &rusqlite::Transaction<'_>,
    id: kiln_image::LayerId,
    bytes: u64,
) -> Result<(), StoreError> {
    on.prepare_cached(
        "INSERT OR REPLACE INTO layer_space (layer, bytes) SELECT id, ?2 FROM layers WHERE id = ?1",
    )?
    .execute(params![id.as_bytes(), bytes as i64])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_counted_and_names_are_not() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path();
        let empty = space_of(path).expect("readable");
        fs::create_dir_all(path.join("a/b")).expect("own folder");
        fs::write(path.join("a/b/file"), vec![1; 100_000]).expect("own folder");
        fs::hard_link(path.join("a/b/file"), path.join("a/again")).expect("own folder");
        let sparse = fs::File::create(path.join("sparse")).expect("own folder");
        sparse.set_len(1 << 30).expect("own file");
        let full = space_of(path).expect("readable") - empty;
        assert!((100_000..200_000).contains(&full), "{full}");
        assert_eq!(space_of(&path.join("none")).expect("no error"), 0);
    }

    #[test]
    fn a_share_of_the_disk_is_left() {
        let limits = SpaceLimits::of_disk(100 << 30);
        assert_eq!(limits.most, 60 << 30);
        assert!((100 << 20..256 << 20).contains(&limits.reserve));
        assert_eq!(SpaceLimits::of_disk(10 << 40).reserve, 256 << 20);
    }
}
