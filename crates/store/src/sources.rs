//! Where manifests are of which the store has no image: what lists of manifests are made of.

use kiln_image::{Digest, Reference};
use rusqlite::params;

use crate::images::parse_name;
use crate::{Store, StoreError};

impl Store {
    /// Notes that a repository has a manifest; of `name` only registry and repository count.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub fn set_manifest_source(&self, name: &Reference, digest: Digest) -> Result<(), StoreError> {
        self.db.write(|on| {
            on.prepare_cached(
                "INSERT OR IGNORE INTO manifest_sources (digest, name) VALUES (?1, ?2)",
            )?
            .execute(params![digest.as_bytes(), name.name()])?;
            Ok(())
        })
    }

    /// The repositories that were seen to have a manifest, as names with its digest, sorted.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn manifest_sources(&self, digest: Digest) -> Result<Vec<Reference>, StoreError> {
        let db = self.db.read();
        let mut query = db.prepare_cached(
            "SELECT name FROM manifest_sources WHERE digest = ?1
             UNION SELECT name FROM repo_digests WHERE digest = ?1 ORDER BY name",
        )?;
        let mut rows = query.query(params![digest.as_bytes()])?;
        let mut names = Vec::new();
        while let Some(row) = rows.next()? {
            let name = row.get_ref(0)?.as_str().map_err(rusqlite::Error::from)?;
            names.push(parse_name(&format!("{name}@{digest}"))?);
        }
        Ok(names)
    }
}
