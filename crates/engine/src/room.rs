//! Keeps the store within its limit: measures, collects, and stops a build that would not fit.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use kiln_image::LayerId;
use kiln_store::{Disk, SpaceLimits};

use crate::{BuildError, Engine};

/// How often a build that runs is looked after.
const EVERY: Duration = Duration::from_secs(1);

/// Of the limit, in percent: when collection begins at the end of a build, and what it leaves.
const NEAR: u64 = 90;
const LEAVE: u64 = 75;

/// What steps may write together before the store is measured again, where there is room for far more. The worker is told
/// of so much less.
const UNMEASURED: u64 = 16 << 20;

/// The way out when the store is full.
pub(crate) const HINT: &str = "see what takes the space with kiln system df; free some with kiln builder prune, kiln image prune \
     or on the disk; or allow more with storage.max-size in kiln.toml or KILN_STORAGE_MAX_SIZE";

/// What can be given up, in one order for all kinds.
#[derive(Debug, Clone)]
enum Thing {
    Layer(LayerId),
    CacheMount(String),
    Source(std::path::PathBuf),
}

/// What a collection took.
#[derive(Debug, Clone, Default)]
pub struct Collected {
    /// What went, by name.
    pub names: Vec<String>,
    /// How much of the disk is free again, in bytes of allocated blocks.
    pub freed: u64,
}

/// What may be collected.
#[derive(Debug, Clone, Default)]
pub struct Prune {
    /// Also records whose layers an image keeps: they free nothing.
    pub all: bool,
    /// Only what was last used before this time.
    pub before: Option<SystemTime>,
    /// Only these kinds, as `type=` of docker names them: `regular`, `exec.cachemount`, `source.local`,
    /// `source.git.checkout`; empty for all.
    pub kinds: Vec<String>,
    /// Stop when the cache is down to so many bytes.
    pub keep: Option<u64>,
    /// Stop when so many bytes of the disk are free.
    pub free: Option<u64>,
}

/// One thing of the build cache.
#[derive(Debug, Clone)]
pub struct CacheItem {
    /// Its name.
    pub id: String,
    /// As docker calls it: `regular`, `exec.cachemount`, `source.git.checkout`, `source.http`.
    pub kind: &'static str,
    /// What it is.
    pub description: String,
    /// When it was made.
    pub created: SystemTime,
    /// When it was last used.
    pub used: SystemTime,
    /// Bytes of allocated blocks.
    pub space: u64,
    /// An image has it too.
    pub shared: bool,
    /// A build that runs has it.
    pub in_use: bool,
    /// How many records have it, or a layer that stands on it.
    pub records: usize,
    thing: Thing,
}

/// How the store is filled.
#[derive(Debug, Clone, Default)]
pub struct Filled {
    /// Layers of images.
    pub images: u64,
    /// Layers of containers, and what they wrote.
    pub containers: u64,
    /// What only the build cache has: layers, cache mounts, sources.
    pub cache: u64,
    /// Files of layers as they came, kept because Kiln would write them differently.
    pub blobs: u64,
    /// Layers in the making, and those that go with the next sweep.
    pub making: u64,
    /// The database, stat files, locks and the folders of the store themselves.
    pub other: u64,
}

impl Filled {
    /// All of it: what `du` says of the store's folder.
    pub fn total(&self) -> u64 {
        self.content() + self.other
    }

    /// What images, containers and the cache take: pruning frees some of it. The database's log comes and goes by itself.
    pub fn content(&self) -> u64 {
        self.images + self.containers + self.cache + self.blobs + self.making
    }
}

impl Engine {
    /// How the store is filled, measured anew where no row tells.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn filled(&self) -> Result<Filled, BuildError> {
        let making = self.refresh()?;
        let measured = self.store.measure()?;
        let spaces = self.store.spaces()?;
        Ok(Filled {
            images: spaces.images,
            containers: spaces.containers,
            cache: spaces.cache + measured.cache_mounts + measured.sources,
            blobs: measured.blobs,
            making: making + spaces.rest,
            other: measured.other,
        })
    }

    /// Measures what the rows do not tell, or not any more: cache mounts, layers of older versions. Gives what layers in
    /// the making take.
    fn refresh(&self) -> Result<u64, BuildError> {
        let caches: Vec<String> = self
            .store
            .cache_mounts()?
            .into_iter()
            .map(|mount| mount.folder)
            .collect();
        let unmeasured = self.store.unmeasured_layers()?;
        let pending = self.store.pending_layers()?;
        if caches.is_empty() && unmeasured.is_empty() && pending.is_empty() {
            return Ok(0);
        }
        let layers = [&unmeasured[..], &pending[..]].concat();
        let (spaces, found) = self
            .worker
            .space(layers, caches.clone(), &[])
            .map_err(|error| BuildError::from_worker(&error))?;
        let (known, making) = spaces.split_at(unmeasured.len());
        for (layer, space) in unmeasured.iter().zip(known) {
            self.store.set_layer_space(*layer, *space)?;
        }
        let folders: Vec<(String, u64)> = caches
            .into_iter()
            .zip(found)
            .map(|(folder, found)| (folder, found.map_or(0, |found| found.space)))
            .collect();
        if !folders.is_empty() {
            self.store.set_cache_mount_spaces(&folders)?;
        }
        Ok(making.iter().sum())
    }

    /// Everything in the build cache, in the order in which it is given up: what was not used for longest first,
    /// whatever it is; of a stack of layers the top.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn cache_items(&self) -> Result<Vec<CacheItem>, BuildError> {
        let mut items = Vec::new();
        for (order, leaf) in self.store.leaves()?.into_iter().enumerate() {
            let item = CacheItem {
                id: leaf.layer.hex(),
                kind: "regular",
                description: if leaf.step.is_empty() {
                    "layer of a base image".to_owned()
                } else {
                    leaf.step
                },
                created: leaf.created,
                used: leaf.used,
                space: leaf.space,
                shared: leaf.shared,
                in_use: leaf.in_use,
                records: leaf.records,
                thing: Thing::Layer(leaf.layer),
            };
            items.push((leaf.used, order, item));
        }
        for mount in self.store.cache_mounts()? {
            let item = CacheItem {
                id: mount.folder.clone(),
                kind: "exec.cachemount",
                description: format!("cache mount {}", mount.id),
                created: mount.created,
                used: mount.used,
                space: mount.space,
                shared: false,
                in_use: mount.in_use,
                records: 1,
                thing: Thing::CacheMount(mount.folder),
            };
            items.push((mount.used, 0, item));
        }
        let oldest = self.store.oldest_lease(None)?;
        for source in self.remote.entries() {
            let git = source.name.starts_with("git-");
            let item = CacheItem {
                kind: if git {
                    "source.git.checkout"
                } else {
                    "source.http"
                },
                description: if git {
                    "git checkout"
                } else {
                    "file from the network"
                }
                .to_owned(),
                created: source.used,
                used: source.used,
                space: kiln_store::space_of(&source.path).unwrap_or(0),
                shared: false,
                // Sources have no locks: what was used since the oldest build began may be in use.
                in_use: oldest.is_some_and(|oldest| source.used >= oldest),
                records: 1,
                thing: Thing::Source(source.path),
                id: source.name,
            };
            items.push((source.used, 0, item));
        }
        items.sort_by_key(|(used, order, _)| (*used, *order));
        Ok(items.into_iter().map(|(_, _, item)| item).collect())
    }

    /// Collects of the build cache what may go, and removes it. Tagged images, containers and running builds lose nothing.
    ///
    /// # Errors
    /// When the store or the worker fails.
    pub fn prune(&self, what: &Prune) -> Result<Collected, BuildError> {
        let before = self.filled()?;
        let mut cache = before.cache;
        let mut disk = self.disk()?.available;
        let mut collected = Collected::default();
        let mut layers = Vec::new();
        for item in self.cache_items()? {
            let done = what.keep.is_some_and(|keep| cache <= keep)
                || what.free.is_some_and(|free| disk >= free);
            if done && (what.keep.is_some() || what.free.is_some()) {
                break;
            }
            let wanted = what.kinds.is_empty() || what.kinds.iter().any(|kind| kind == item.kind);
            let old = what.before.is_none_or(|before| item.used < before);
            if item.in_use || !wanted || !old || item.shared && !what.all {
                continue;
            }
            match &item.thing {
                Thing::Layer(layer) => layers.push(*layer),
                Thing::CacheMount(folder) => {
                    if !self.store.remove_cache_mount(folder)? {
                        continue;
                    }
                }
                Thing::Source(path) => self.remote.remove(path),
            }
            if !item.shared {
                cache = cache.saturating_sub(item.space);
                disk += item.space;
            }
            collected.names.push(item.id);
        }
        if !layers.is_empty() {
            self.store.give_up(&layers)?;
        }
        self.sweep()?;
        if what.all && what.before.is_none() && what.kinds.is_empty() && what.keep.is_none() {
            self.store.forget_indexes()?;
        }
        collected.freed = before.content().saturating_sub(self.filled()?.content());
        Ok(collected)
    }

    /// Collects until the whole store takes no more than `most` bytes and `free` bytes of the disk are free, as far as
    /// that is possible.
    fn make_room(&self, most: u64, free: u64) -> Result<(), BuildError> {
        self.sweep()?;
        let filled = self.filled()?;
        let disk = self.disk()?;
        let over = filled
            .total()
            .saturating_sub(most)
            .max(free.saturating_sub(disk.available));
        if over == 0 {
            return Ok(());
        }
        let goal = Prune {
            keep: Some(filled.cache.saturating_sub(over)),
            ..Prune::default()
        };
        self.prune(&goal)?;
        if filled.cache <= over {
            self.store.forget_indexes()?;
        }
        Ok(())
    }

    /// Collects if the store is near its limit. Called when a build has ended, off its time.
    ///
    /// # Errors
    /// When the store or the worker fails.
    pub fn tidy(&self) -> Result<(), BuildError> {
        let SpaceLimits { most, reserve } = self.limits;
        let disk = self.disk()?;
        // All that is on the disk is more than the store takes: then there is nothing to be measured.
        let near = disk.total - disk.available.min(disk.total) > most / 100 * NEAR;
        if !near && disk.available > reserve * 2 {
            return Ok(());
        }
        if self.filled()?.total() > most / 100 * NEAR || disk.available <= reserve * 2 {
            self.make_room(most / 100 * LEAVE, reserve * 2)?;
        }
        Ok(())
    }

    /// Tells the worker how much it may write, after room was made where there is little.
    ///
    /// # Errors
    /// When the store or the worker fails.
    pub fn allow(&self) -> Result<(), BuildError> {
        let SpaceLimits { most, reserve } = self.limits;
        let mut room = self.room()?;
        if room < most / 100 * (100 - NEAR) {
            self.make_room(most / 100 * LEAVE, reserve * 2)?;
            room = self.room()?;
        }
        self.allow_only(room)
    }

    fn allow_only(&self, room: u64) -> Result<(), BuildError> {
        let allowed = self.worker.allow(room - unmeasured(room), &[]);
        allowed.map_err(|error| BuildError::from_worker(&error))
    }

    /// How much may still be written, by what the rows say.
    fn room(&self) -> Result<u64, BuildError> {
        let SpaceLimits { most, reserve } = self.limits;
        let taken = self.store.measure()?.total();
        let available = self.disk()?.available;
        Ok(most
            .saturating_sub(taken)
            .min(available.saturating_sub(reserve)))
    }

    pub(crate) fn disk(&self) -> Result<Disk, BuildError> {
        Ok(Disk::of(self.store.root())?)
    }
}

/// What the store took at one time, and what was added since.
#[derive(Debug, Clone, Copy)]
struct Look {
    taken: u64,
    available: u64,
    added: u64,
    /// What may be added until the next look.
    unmeasured: u64,
}

/// What need not be measured while there is so much room.
fn unmeasured(room: u64) -> u64 {
    if room / 16 >= UNMEASURED {
        UNMEASURED
    } else {
        0
    }
}

/// Looks after the space while a build runs.
pub(crate) struct Guard<'a> {
    engine: &'a Engine,
    stopped: Mutex<Option<String>>,
    measured: Mutex<Option<Look>>,
    ended: Mutex<bool>,
    wake: Condvar,
}

impl<'a> Guard<'a> {
    pub(crate) fn new(engine: &'a Engine) -> Self {
        Self {
            engine,
            stopped: Mutex::default(),
            measured: Mutex::default(),
            ended: Mutex::default(),
            wake: Condvar::new(),
        }
    }

    /// Makes room before the first step, and tells the worker how much it may write.
    pub(crate) fn begin(&self) -> Result<(), BuildError> {
        self.engine.allow()
    }

    /// Sees to it that so many more bytes can be kept, which may be `written` already, and tells the worker what is left.
    pub(crate) fn make_room(&self, bytes: u64, written: bool) -> Result<(), (String, String)> {
        let engine = self.engine;
        let SpaceLimits { most, reserve } = engine.limits;
        // One step at a time: what one has made room for is not what another one takes.
        let mut measured = self.measured.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(look) = &mut *measured
            && written
            && self.is_little(look, bytes)
        {
            look.added += bytes;
            return Ok(());
        }
        let look = || -> Result<(u64, Disk), BuildError> {
            Ok((engine.store.measure()?.total() + bytes, engine.disk()?))
        };
        let fits = |(taken, disk): &(u64, Disk)| {
            let needed = if written { reserve } else { reserve + bytes };
            *taken <= most && disk.available >= needed
        };
        let told = |error: BuildError| (error.message, HINT.to_owned());
        let mut found = look().map_err(told)?;
        if !fits(&found) {
            // What cannot be collected shows in what is left.
            let _ = engine.make_room(most / 100 * LEAVE, reserve);
            found = look().map_err(told)?;
            if !fits(&found) {
                return Err((self.message(found.0, found.1), HINT.to_owned()));
            }
        }
        let left = if written { found.0 } else { found.0 - bytes };
        let room = (most - left).min(found.1.available - reserve);
        *measured = Some(Look {
            taken: left,
            available: found.1.available,
            added: 0,
            unmeasured: unmeasured(room),
        });
        engine.allow_only(room).map_err(told)
    }

    /// Whether what was added since a look, with so many bytes more, is what the worker was not allowed to write then,
    /// and still fits.
    fn is_little(&self, look: &Look, bytes: u64) -> bool {
        let SpaceLimits { most, reserve } = self.engine.limits;
        let Ok(disk) = self.engine.disk() else {
            return false;
        };
        let added = look.added + bytes;
        added.max(look.available.saturating_sub(disk.available)) < look.unmeasured
            && look.taken + look.unmeasured <= most
            && disk.available >= reserve + look.unmeasured
    }

    /// Why the build was stopped.
    pub(crate) fn stopped(&self) -> Option<(String, String)> {
        let stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        stopped.clone().map(|message| (message, HINT.to_owned()))
    }

    /// Looks each second until the build ends. Between two looks at everything the free space of the disk tells how much
    /// can have been added at most.
    pub(crate) fn watch(&self) {
        let mut known: Option<(u64, u64)> = None;
        let mut tried = None;
        while !self.wait() {
            // A look that fails is repeated; what is wrong with the store shows in the build.
            let Ok(disk) = self.engine.disk() else {
                continue;
            };
            let SpaceLimits { most, reserve } = self.engine.limits;
            let low = disk.available < reserve;
            let bound = match known {
                Some((taken, available)) => taken + available.saturating_sub(disk.available),
                None => disk.total - disk.available.min(disk.total),
            };
            if !low && bound <= most {
                continue;
            }
            let Ok(filled) = self.engine.filled() else {
                continue;
            };
            known = Some((filled.total(), disk.available));
            if !low && filled.total() <= most {
                // What is in the making is counted when it is written, or when it is sealed.
                let room = (most - filled.total() + filled.making).min(disk.available - reserve);
                let _ = self.engine.allow_only(room);
                continue;
            }
            // Once is enough: what was not there to be collected then is not there now.
            if tried
                .is_none_or(|tried: SystemTime| tried.elapsed().is_ok_and(|past| past > EVERY * 10))
            {
                tried = Some(SystemTime::now());
                if self.engine.make_room(most / 100 * NEAR, reserve).is_ok() {
                    known = None;
                    let filled = self.engine.filled().map(|filled| filled.total());
                    let available = self.engine.disk().map(|disk| disk.available);
                    if let (Ok(filled), Ok(available)) = (filled, available)
                        && filled <= most
                        && available >= reserve
                    {
                        continue;
                    }
                }
            }
            self.stop(&filled, disk);
            return;
        }
    }

    fn stop(&self, filled: &Filled, disk: Disk) {
        let message = self.message(filled.total(), disk);
        *self.stopped.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
        self.engine.worker.cancel();
    }

    fn message(&self, taken: u64, disk: Disk) -> String {
        let SpaceLimits { most, reserve } = self.engine.limits;
        if taken <= most {
            return format!(
                "no space left: {} of the store's disk are free, and {} are to stay free",
                bytes(disk.available),
                bytes(reserve)
            );
        }
        format!(
            "no space left in the store: it would take {}, its limit is {}, and what is left cannot be collected",
            bytes(taken),
            bytes(most)
        )
    }

    /// Waits for the next look; whether the build has ended.
    fn wait(&self) -> bool {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.wake.wait_timeout_while(ended, EVERY, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Ends the watching.
    pub(crate) fn end(&self) {
        *self.ended.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_all();
    }
}

/// A size in words, powers of 1000.
fn bytes(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1}kB", bytes as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1}MB", bytes as f64 / 1e6),
        _ => format!("{:.2}GB", bytes as f64 / 1e9),
    }
}
