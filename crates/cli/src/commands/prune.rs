//! `kiln builder prune`, `kiln image prune`, `kiln system prune`: as docker asks, and as docker tells.

use std::collections::{BTreeMap, HashSet};
use std::io::{BufRead, Write};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use kiln_engine::{Collected, Engine, Prune};
use kiln_image::{Digest, Document, ImageConfig};
use kiln_store::{Image, Store};

use super::system::{cache_table, short_id};
use crate::container_args::PruneArgs;
use crate::context::Place;
use crate::format::{say, size, size4};
use crate::settings::amount;
use crate::storage_args::{BuilderPruneArgs, ImagePruneArgs, SystemPruneArgs};

/// What `--filter` can say.
#[derive(Debug, Default)]
pub(super) struct Filters {
    pub(super) before: Option<SystemTime>,
    pub(super) kinds: Vec<String>,
    /// Beginnings of ids.
    pub(super) ids: Vec<String>,
    /// Name, value, and whether it must not be there.
    labels: Vec<(String, Option<String>, bool)>,
}

impl Filters {
    /// Reads filters of which only `known` are of use.
    pub(super) fn parse(filters: &[String], known: &[&str]) -> Result<Self> {
        let mut found = Self::default();
        for filter in filters {
            let (name, value) = filter
                .split_once('=')
                .with_context(|| format!("--filter {filter}: expected NAME=VALUE"))?;
            let plain = name.trim_end_matches('!');
            if !known.contains(&plain) {
                bail!("--filter {filter}: expected one of {}", known.join(", "));
            }
            match plain {
                "until" => found.before = Some(until(value)?),
                "unused-for" => found.before = Some(SystemTime::now() - duration(value)?),
                "type" => found.kinds.push(value.to_owned()),
                "id" => found.ids.push(value.to_owned()),
                _ => {
                    let (label, wanted) = match value.split_once('=') {
                        Some((label, wanted)) => (label, Some(wanted.to_owned())),
                        None => (value, None),
                    };
                    found.labels.push((label.to_owned(), wanted, name != plain));
                }
            }
        }
        Ok(found)
    }
}

/// A point in time: so long ago, as Go writes durations, or a time stamp, or seconds since 1970.
fn until(text: &str) -> Result<SystemTime> {
    if let Ok(time) = text.parse::<jiff::Timestamp>() {
        return Ok(time.into());
    }
    if let Ok(date) = text.parse::<jiff::civil::DateTime>() {
        return Ok(date.to_zoned(jiff::tz::TimeZone::UTC)?.timestamp().into());
    }
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    }
    Ok(SystemTime::now() - duration(text)?)
}

/// A duration as Go writes it: `24h`, `1h30m`, `90s`.
fn duration(text: &str) -> Result<Duration> {
    let wrong = || format!("{text:?}: expected a duration like 24h or 1h30m");
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
            .with_context(wrong)?;
        let number: f64 = rest[..digits].parse().ok().with_context(wrong)?;
        let end = rest[digits..]
            .find(|letter: char| letter.is_ascii_digit())
            .map_or(rest.len(), |at| digits + at);
        sum += number
            * match &rest[digits..end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                // Not Go's, but what everybody tries.
                "d" => 86400.0,
                _ => bail!(wrong()),
            };
        rest = &rest[end..];
    }
    if text.is_empty() {
        bail!(wrong());
    }
    Ok(Duration::try_from_secs_f64(sum)?)
}

/// Asks, unless `force` is given.
fn sure(force: bool, warning: &str) -> Result<bool> {
    if force {
        return Ok(true);
    }
    let mut out = std::io::stdout().lock();
    write!(
        out,
        "WARNING! {warning}Are you sure you want to continue? [y/N] "
    )?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(answer.trim().eq_ignore_ascii_case("y"))
}

pub(super) fn builder(place: &Place, args: &BuilderPruneArgs) -> Result<ExitCode> {
    let filters = Filters::parse(&args.filters, &["until", "unused-for", "type"])?;
    let engine = place.engine()?;
    let disk = kiln_store::Disk::of(&place.root)?.total;
    let given = |text: &Option<String>, name: &'static str| {
        text.as_ref()
            .map(|text| amount(text, disk).context(name))
            .transpose()
    };
    let keep = given(&args.keep, "--max-used-space")?;
    let reserved = given(&args.reserved_space, "--reserved-space")?;
    let free = given(&args.min_free_space, "--min-free-space")?;
    let kind = if args.all { "all" } else { "all dangling" };
    if !sure(
        args.force,
        &format!("This will remove {kind} build cache. "),
    )? {
        return Ok(ExitCode::SUCCESS);
    }
    let keep = match (keep, reserved) {
        // Nothing but a reserve: prune down to it.
        (None, reserved) => reserved,
        (Some(keep), reserved) => Some(keep.max(reserved.unwrap_or(0))),
    };
    let before = engine.cache_items()?;
    let collected = engine.prune(&Prune {
        all: args.all,
        before: filters.before,
        kinds: filters.kinds,
        keep,
        free,
    })?;
    let gone: Vec<_> = before
        .into_iter()
        .filter(|item| collected.names.contains(&item.id))
        .collect();
    if !gone.is_empty() {
        cache_table(&gone)?;
    }
    say(&format!("Total:\t{}", size(collected.freed)));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn image(place: &Place, args: &ImagePruneArgs) -> Result<ExitCode> {
    let filters = Filters::parse(&args.filters, &["until", "label", "dangling"])?;
    let engine = place.engine()?;
    let warning = if args.all {
        "This will remove all images without at least one container associated to them.\n"
    } else {
        "This will remove all dangling images.\n"
    };
    if !sure(args.force, warning)? {
        return Ok(ExitCode::SUCCESS);
    }
    let before = engine.filled()?.content();
    images(&engine, args.all, &filters)?;
    engine.sweep()?;
    let freed = before.saturating_sub(engine.filled()?.content());
    say(&format!("Total reclaimed space: {}", size(freed)));
    Ok(ExitCode::SUCCESS)
}

/// Removes images and tells which.
fn images(engine: &Engine, all: bool, filters: &Filters) -> Result<()> {
    let store = &engine.store;
    let used: HashSet<Digest> = store
        .containers()?
        .into_iter()
        .filter_map(|container| container.image)
        .collect();
    // An image that a tagged index names has no tag of its own.
    let mut named = HashSet::new();
    for tag in store.tags()? {
        if let Some((_, bytes)) = store.json(tag.target)?
            && let Ok(Document::Index(index)) = kiln_image::parse_manifest(&bytes, None)
        {
            named.extend(index.manifests.iter().map(|manifest| manifest.digest));
        }
    }
    let mut lines = Vec::new();
    let indexes = store.indexes()?;
    for image in store.images()? {
        let dangling = image.tags.is_empty() && !named.contains(&image.manifest);
        if used.contains(&image.manifest) || !(all || dangling) || !filters.fit(store, &image)? {
            continue;
        }
        if all {
            for name in store.remove_image(image.manifest)? {
                lines.push(format!("untagged: {}", name.familiar()));
            }
        } else if !store.remove_untagged_image(image.manifest)? {
            continue;
        }
        lines.push(format!("deleted: {}", image.info.config));
    }
    for index in indexes {
        if store.index(index.digest)?.is_none() {
            store.remove_index(index.digest)?;
            let names = index.tags.iter().map(kiln_image::Reference::familiar);
            lines.extend(names.map(|name| format!("untagged: {name}")));
            lines.push(format!("deleted: {}", index.digest));
        }
    }
    if !lines.is_empty() {
        say("Deleted Images:");
        for line in &lines {
            say(line);
        }
        say("");
    }
    Ok(())
}

impl Filters {
    /// Whether an image is what times and labels say.
    pub(super) fn fit(&self, store: &Store, image: &Image) -> Result<bool> {
        let created = image.info.created.unwrap_or(image.stored);
        if self.before.is_some_and(|before| created >= before) {
            return Ok(false);
        }
        if self.labels.is_empty() {
            return Ok(true);
        }
        let labels = match store.json(image.info.config)? {
            Some((_, bytes)) => ImageConfig::from_bytes(&bytes)?.config.labels,
            None => BTreeMap::new(),
        };
        Ok(self.labels.iter().all(|(name, wanted, not)| {
            let found = labels.get(name);
            let fits = match wanted {
                Some(wanted) => found == Some(wanted),
                None => found.is_some(),
            };
            fits != *not
        }))
    }
}

/// Removes containers that do not run and were made before `before`; gives their ids.
fn stopped(engine: &Engine, before: Option<SystemTime>) -> Result<Vec<String>> {
    let mut gone = Vec::new();
    for container in engine.containers()? {
        if !container.running && before.is_none_or(|before| container.created < before) {
            engine.remove_container(&container)?;
            gone.push(container.id);
        }
    }
    if !gone.is_empty() {
        say("Deleted Containers:");
        for id in &gone {
            say(id);
        }
        say("");
    }
    engine.sweep_containers()?;
    Ok(gone)
}

pub(super) fn container(place: &Place, args: &PruneArgs) -> Result<ExitCode> {
    let filters = Filters::parse(&args.filters, &["until"])?;
    let engine = place.engine()?;
    if !sure(args.force, "This will remove all stopped containers.\n")? {
        return Ok(ExitCode::SUCCESS);
    }
    let before = engine.filled()?.containers;
    stopped(&engine, filters.before)?;
    engine.sweep()?;
    let freed = before.saturating_sub(engine.filled()?.containers);
    say(&format!("Total reclaimed space: {}", size4(freed)));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn system(place: &Place, args: &SystemPruneArgs) -> Result<ExitCode> {
    let filters = Filters::parse(&args.filters, &["until", "label"])?;
    let engine = place.engine()?;
    let (images_said, cache_said) = if args.all {
        (
            "all images without at least one container associated to them",
            "all build cache",
        )
    } else {
        ("all dangling images", "unused build cache")
    };
    let warning = format!(
        "This will remove:\n  - all stopped containers\n  - {images_said}\n  - {cache_said}\n\n"
    );
    if !sure(args.force, &warning)? {
        return Ok(ExitCode::SUCCESS);
    }
    let before = engine.filled()?.content();
    if filters.labels.is_empty() {
        stopped(&engine, filters.before)?;
    }
    images(&engine, args.all, &filters)?;
    engine.sweep()?;
    // Labels are those of images.
    let Collected { names, .. } = if filters.labels.is_empty() {
        engine.prune(&Prune {
            all: args.all,
            before: filters.before,
            ..Prune::default()
        })?
    } else {
        Collected::default()
    };
    if !names.is_empty() {
        say("Deleted build cache objects:");
        for name in &names {
            say(&short_id(name));
        }
        say("");
    }
    let freed = before.saturating_sub(engine.filled()?.content());
    say(&format!("Total reclaimed space: {}", size(freed)));
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        for (text, seconds) in [
            ("24h", 86400),
            ("1h30m", 5400),
            ("90s", 90),
            ("2d", 172_800),
        ] {
            assert_eq!(
                duration(text).unwrap(),
                Duration::from_secs(seconds),
                "{text}"
            );
        }
        for text in ["", "h", "12", "3 weeks"] {
            assert!(duration(text).is_err(), "{text}");
        }
        let day = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for text in ["2023-11-14T22:13:20Z", "1700000000", "2023-11-14T22:13:20"] {
            assert_eq!(until(text).unwrap(), day, "{text}");
        }
    }
}
