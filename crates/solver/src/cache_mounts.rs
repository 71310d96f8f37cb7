//! Cache mounts: which folder a step gets, and for whom it waits.

use std::collections::BTreeMap;
use std::time::Duration;

use kiln_graph::{ExecOp, MountKind, Sharing};
use kiln_image::{ContentId, KeyHasher, LayerId};
use kiln_progress::Event;
use kiln_store::{Claim, ClaimAttempt, cache_mount_claim};
use kiln_worker::{MountSource, Seed};

use crate::SolveError;
use crate::solve::{Solver, Task};

/// How often a wait looks whether the user gave up.
const TICK: Duration = Duration::from_millis(20);

/// More private copies of one cache than this are not made: steps wait instead.
const MOST_COPIES: usize = 64;

/// The folders of a step's cache mounts, held for it as long as this lives.
pub(crate) struct CacheMounts {
    /// The folder of each mount, by its position in the operation.
    folders: BTreeMap<usize, (String, Option<Seed>)>,
    _held: Vec<Claim>,
}

impl CacheMounts {
    /// What is mounted for the mount at a position; `scratch` is where a new folder is made.
    pub(crate) fn source(
        &self,
        at: usize,
        kind: &MountKind,
        scratch: LayerId,
    ) -> Option<MountSource> {
        let MountKind::Cache { mode, uid, gid, .. } = kind else {
            return None;
        };
        let (folder, seed) = self.folders.get(&at)?;
        Some(MountSource::Cache {
            dir: format!("cache-mounts/{folder}"),
            mode: mode.unwrap_or(0o755),
            uid: *uid,
            gid: *gid,
            seed: seed.clone(),
            scratch,
        })
    }
}

impl Solver<'_> {
    /// Finds the folders of all cache mounts of a step, and waits for those that another step has to itself.
    pub(crate) fn cache_mounts(
        &self,
        task: &Task,
        exec: &ExecOp,
    ) -> Result<CacheMounts, SolveError> {
        let mut wanted = Vec::new();
        for (at, mount) in exec.mounts.iter().enumerate() {
            if let MountKind::Cache {
                id,
                sharing,
                mode,
                uid,
                gid,
            } = &mount.kind
            {
                let tree = mount.input.map(|input| Solver::tree(task, input));
                let contents = tree.as_ref().map(|tree| &*tree.contents);
                let given = mode.is_some() || uid.is_some() || gid.is_some();
                let made = given.then_some((mode.unwrap_or(0o755), [*uid, *gid]));
                let name = folder(id, made, contents.map(|it| (it, &*mount.selector)));
                let seed = tree.map(|tree| Seed {
                    layers: tree.layers,
                    selector: mount.selector.clone(),
                });
                wanted.push((name, at, id, *sharing, seed));
            }
        }
        // One order for all steps, so that no two wait for each other.
        wanted.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let mut folders = BTreeMap::new();
        let mut held: BTreeMap<String, (String, Claim)> = BTreeMap::new();
        for (folder, at, id, sharing, seed) in wanted {
            let given = match (sharing, held.get(&folder)) {
                (Sharing::Shared, _) => folder,
                (_, Some((given, _))) => given.clone(),
                (Sharing::Locked, None) => {
                    let claim = self.wait_for(task, id, &folder)?;
                    held.insert(folder.clone(), (folder.clone(), claim));
                    folder
                }
                (Sharing::Private, None) => {
                    let (given, claim) = self.own_copy(task, id, &folder)?;
                    held.insert(folder, (given.clone(), claim));
                    given
                }
            };
            let shared = match sharing {
                Sharing::Shared => "shared",
                Sharing::Private => "private",
                Sharing::Locked => "locked",
            };
            self.store.use_cache_mount(self.lease, &given, id, shared)?;
            folders.insert(at, (given, seed));
        }
        Ok(CacheMounts {
            folders,
            _held: held.into_values().map(|(_, claim)| claim).collect(),
        })
    }

    fn wait_for(&self, task: &Task, id: &str, folder: &str) -> Result<Claim, SolveError> {
        let waiter = match self.store.claim(cache_mount_claim(folder))? {
            ClaimAttempt::Held(claim) => return Ok(claim),
            ClaimAttempt::Busy(waiter) => waiter,
        };
        let holder = match waiter.holder() {
            Some(pid) if pid != std::process::id() => format!(" of process {pid}"),
            _ => String::new(),
        };
        let text = format!("for the cache mount {id}: another step{holder} has it");
        self.sink.emit(Event::Waiting {
            id: task.vertex,
            text,
        });
        loop {
            if self.providers.is_canceled() || self.worker.is_canceled() {
                return Err(SolveError::Canceled);
            }
            if let Some(claim) = waiter.wait(TICK)? {
                return Ok(claim);
            }
        }
    }

    /// The first folder of a private cache that nobody uses.
    fn own_copy(&self, task: &Task, id: &str, folder: &str) -> Result<(String, Claim), SolveError> {
        for copy in 0..MOST_COPIES {
            let name = if copy == 0 {
                folder.to_owned()
            } else {
                format!("{folder}.{copy}")
            };
            if let ClaimAttempt::Held(claim) = self.store.claim(cache_mount_claim(&name))? {
                return Ok((name, claim));
            }
        }
        let claim = self.wait_for(task, id, folder)?;
        Ok((folder.to_owned(), claim))
    }
}

/// The folder of a cache mount: readable where its name allows, and never a path of its own. Caches with different
/// seeds, or made with another mode or owner, are different caches, as under BuildKit.
fn folder(
    id: &str,
    made: Option<(u16, [Option<u32>; 2])>,
    seed: Option<(&[ContentId], &str)>,
) -> String {
    let plain: String = id
        .chars()
        .map(|c| {
            if c.is_ascii_alphanumeric() || "._-".contains(c) {
                c
            } else {
                '-'
            }
        })
        .take(60)
        .collect();
    let mut hasher = KeyHasher::new("cache mount", 1);
    hasher.part("id", id.as_bytes());
    if let Some((contents, selector)) = seed {
        for content in contents {
            hasher.part("seed", content.as_bytes());
        }
        hasher.part("selector", selector.as_bytes());
    }
    if let Some((mode, owner)) = made {
        hasher.part("mode", &mode.to_le_bytes());
        for id in owner {
            hasher.part("owner", &id.unwrap_or(0).to_le_bytes());
        }
    }
    let hash = hasher.finish();
    format!("{}-{}", plain.trim_matches(['-', '.']), &hash.hex()[..12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_single_names_and_tell_caches_apart() {
        let names: Vec<_> = [
            "/root/.cache",
            "root/.cache",
            "../../x",
            "..",
            "",
            "a/b",
            "a-b",
        ]
        .map(|id| folder(id, None, None))
        .into();
        for name in &names {
            assert!(
                !name.contains('/') && name != ".." && name.len() < 100,
                "{name}"
            );
            assert_eq!(
                names.iter().filter(|other| *other == name).count(),
                1,
                "{name}"
            );
        }
        let made = |uid| folder("a", Some((0o755, [uid, None])), None);
        assert_ne!(
            folder("a", None, None),
            folder("a", None, Some((&[], "/x")))
        );
        assert_ne!(folder("a", None, None), made(Some(0)));
        assert_ne!(made(Some(1)), made(Some(2)));
    }
}
