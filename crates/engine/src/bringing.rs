//! What a build brings to its graph: images, contexts, sources from the network, secrets.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_graph::SourceOp;
use kiln_image::{Digest, Distant, Key, KeyHasher, LayerIndex};
use kiln_progress::{Sink, VertexId};
use kiln_registry::Observer;
use kiln_remote::{GitAccess, GitAddress, Remote, RemoteError};
use kiln_solver::{Context, Promise, Providers, Snapshot, SourceError, Watch};
use kiln_source::{PatternMatcher, StatCache, Wanted};
use kiln_store::{Lease, StoreError};

use crate::build::BuildRequest;
use crate::git_access::{git_access, git_source, secret};
use crate::images::Images;
use crate::inputs::Inputs;
use crate::remote_cache::Caches;
use crate::room::Guard;
use crate::rows::Row;
use crate::{CancelFlag, Engine};

/// The mode of a file from a web server where nothing else is said.
const HTTP_MODE: u16 = 0o600;

/// What a build brings to its graph.
pub(crate) struct Bringing<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) request: &'a BuildRequest,
    pub(crate) inputs: &'a Inputs,
    pub(crate) cancel: &'a CancelFlag,
    pub(crate) images: &'a Images<'a>,
    pub(crate) caches: &'a Caches<'a>,
    pub(crate) lease: &'a Lease,
    pub(crate) sink: &'a dyn Sink,
    /// Keeps the store within its limit.
    pub(crate) guard: &'a Guard<'a>,
    /// Called before anything is made.
    pub(crate) begin: &'a (dyn Fn() + Sync),
}

/// The digest of an image that the graph names.
pub(crate) fn pinned(reference: &str) -> Result<Digest, String> {
    match reference
        .rsplit_once('@')
        .map(|(_, digest)| digest.parse::<Digest>())
    {
        Some(Ok(digest)) => Ok(digest),
        _ => Err(format!("{reference}: no digest")),
    }
}

impl Providers for Bringing<'_> {
    fn image(&self, reference: &str) -> Result<Option<Snapshot>, String> {
        let digest = pinned(reference)?;
        let image = self
            .engine
            .store
            .image(digest)
            .map_err(|error| error.to_string())?;
        let Some(image) = image else { return Ok(None) };
        match self.engine.store.protect(self.lease, &image.info.layers) {
            // Removed since it was found.
            Err(StoreError::NoLayer(_)) => return Ok(None),
            other => other.map_err(|error| error.to_string())?,
        }
        kiln_solver::snapshot(&self.engine.store, &image.info.layers)
            .map(Some)
            .map_err(|error| error.to_string())
    }

    fn fetch_image(&self, reference: &str, vertex: VertexId) -> Result<Snapshot, SourceError> {
        let failed = |message| SourceError {
            message,
            hint: None,
            canceled: false,
        };
        let digest = pinned(reference).map_err(failed)?;
        (self.begin)();
        let row = Row {
            sink: self.sink,
            id: vertex,
        };
        self.images
            .fetch(digest, self.lease, &row)
            .map_err(|error| SourceError {
                message: error.message,
                hint: error.hint,
                canceled: error.canceled,
            })?;
        self.image(reference)
            .map_err(failed)?
            .ok_or_else(|| failed(format!("{reference}: gone again")))
    }

    fn promised_image(&self, reference: &str) -> Option<Promise> {
        let layers = self.images.distant(pinned(reference).ok()?)?;
        let layers = layers.into_iter().map(|layer| {
            Arc::new(Distant {
                content: self.caches.content_of(layer.diff).or_else(|| {
                    let index = self.engine.store.known_index(layer.diff)?;
                    Some(index.content_id())
                }),
                ..layer
            })
        });
        Some(Promise {
            outputs: vec![self.caches.here_or_there(layers)],
            ..Promise::default()
        })
    }

    fn index(&self, layer: &Distant) -> Option<Arc<LayerIndex>> {
        self.caches.index(layer)
    }

    fn remembered(&self, key: Key) -> Option<Promise> {
        self.caches.remembered(key)
    }

    fn bring(&self, promise: &Promise, vertex: VertexId) -> Result<Vec<Snapshot>, SourceError> {
        let row = Row {
            sink: self.sink,
            id: vertex,
        };
        self.caches.bring(promise, &row)
    }

    fn scan(&self, name: &str, exclude: &[String]) -> Result<Context, String> {
        let root = self
            .inputs
            .folder(name)
            .ok_or_else(|| format!("context {name}: not a folder"))?;
        let root = root
            .canonicalize()
            .map_err(|error| format!("context {}: {error}", root.display()))?;
        let matcher =
            PatternMatcher::new(exclude).map_err(|error| format!(".dockerignore: {error}"))?;
        let mut hasher = KeyHasher::new("context", 1);
        hasher.part("root", root.as_os_str().as_encoded_bytes());
        let cache_file = self
            .engine
            .store
            .root()
            .join("stat")
            .join(hasher.finish().hex());
        context(&root, cache_file, Some(&matcher))
    }

    fn identify(&self, source: &SourceOp, watch: &dyn Watch) -> Result<String, SourceError> {
        let watching = Watching(watch);
        let remote = &self.engine.remote;
        match source {
            // What must come is known: if it was used before, nothing is asked.
            SourceOp::Http {
                checksum: Some(checksum),
                ..
            } => Ok(checksum.clone()),
            SourceOp::Http {
                url,
                filename,
                mode,
                ..
            } => remote
                .http(url, filename, mode.unwrap_or(HTTP_MODE), &watching)
                .map(|file| file.digest.to_string())
                .map_err(failed),
            SourceOp::Git { url, checksum, .. } => {
                let (address, access) = self.git(url)?;
                remote
                    .commit(&address, &access, checksum.as_deref(), &watching)
                    .map_err(failed)
            }
            _ => Err(not_remote()),
        }
    }

    fn fetch(
        &self,
        source: &SourceOp,
        identity: &str,
        watch: &dyn Watch,
    ) -> Result<Context, SourceError> {
        let watching = Watching(watch);
        let remote = &self.engine.remote;
        let tree = match source {
            SourceOp::Http {
                url,
                filename,
                mode,
                checksum,
                ..
            } => {
                let mode = mode.unwrap_or(HTTP_MODE);
                let digest = identity.parse().map_err(|error| SourceError {
                    message: format!("checksum {identity:?}: {error}"),
                    hint: Some("a checksum is sha256: and 64 hexadecimal digits".to_owned()),
                    canceled: false,
                })?;
                if let Some(tree) = remote.known_http(url, filename, mode, digest) {
                    tree
                } else {
                    let file = remote
                        .http(url, filename, mode, &watching)
                        .map_err(failed)?;
                    if file.digest != digest {
                        return Err(failed(RemoteError::Checksum {
                            what: url.clone(),
                            expected: checksum.clone().unwrap_or_else(|| identity.to_owned()),
                            got: file.digest.to_string(),
                        }));
                    }
                    file.tree
                }
            }
            other => {
                let (url, how, _) = git_source(other).ok_or_else(not_remote)?;
                watch.transferred(0, 0);
                let (address, access) = self.git(url)?;
                remote
                    .checkout(&address, &access, identity, how, &watching)
                    .map_err(failed)?
            }
        };
        context(&tree, Remote::beside(&tree), None).map_err(|message| SourceError {
            message,
            hint: None,
            canceled: false,
        })
    }

    fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, String> {
        secret(self.request, id)
    }

    fn ssh(&self, id: &str) -> Option<PathBuf> {
        self.request.ssh.get(id).cloned()
    }

    fn is_canceled(&self) -> bool {
        self.cancel.is_set()
    }

    fn stopped(&self) -> Option<(String, String)> {
        self.guard.stopped()
    }

    fn make_room(&self, bytes: u64, written: bool) -> Result<(), (String, String)> {
        self.guard.make_room(bytes, written)
    }

    fn before_first(&self) {
        (self.begin)();
    }
}

impl Bringing<'_> {
    /// Where a repository is, and what it is shown.
    fn git(&self, url: &str) -> Result<(GitAddress, GitAccess), SourceError> {
        let address = GitAddress::parse(url);
        let access = git_access(self.request, &address).map_err(|message| SourceError {
            message,
            hint: None,
            canceled: false,
        })?;
        Ok((address, access))
    }
}

/// Looks at a folder.
fn context(
    root: &Path,
    cache_file: PathBuf,
    matcher: Option<&PatternMatcher>,
) -> Result<Context, String> {
    let mut cache = StatCache::load(&cache_file);
    let scan = kiln_source::scan(root, matcher, &mut cache, &Wanted::All)
        .map_err(|error| error.to_string())?;
    Ok(Context {
        scan,
        cache,
        cache_file,
    })
}

/// Lets the displays follow a transfer.
struct Watching<'a>(&'a dyn Watch);

impl Observer for Watching<'_> {
    fn progress(&self, done: u64, total: u64) {
        self.0.transferred(done, total);
    }

    fn is_canceled(&self) -> bool {
        self.0.is_canceled()
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the form that map_err takes")]
fn failed(error: RemoteError) -> SourceError {
    SourceError {
        message: error.to_string(),
        hint: error.hint().map(str::to_owned),
        canceled: error.is_canceled(),
    }
}

fn not_remote() -> SourceError {
    SourceError {
        message: "not a source from the network".to_owned(),
        hint: None,
        canceled: false,
    }
}
