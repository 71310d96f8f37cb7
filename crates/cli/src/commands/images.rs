//! `kiln images`, `tag`, `rmi`, `history`: what is in the store.

use std::collections::{HashMap, HashSet};
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::{Result, bail};
use kiln_engine::BuildError;
use kiln_image::{Digest, ImageConfig, Reference};
use kiln_source::glob::go_match;
use kiln_store::{Image, ImageInfo, Store, StoredIndex};
use kiln_template::{Fields, Shape};

use super::platforms::{find_image_for, platform};
use super::prune::Filters;
use super::{find_image, find_target, reference};
use crate::args::{ImagesArgs, RmiArgs};
use crate::context::Place;
use crate::docker_flags::note;
use crate::format::{ago, complain, local_time, rfc3339, say, short, size, size4};
use crate::listing::Listing;
use crate::long_names::HistoryFormatArgs;

/// What `kiln images` shows.
const IMAGES: Listing = Listing {
    heads: &[
        ("ID", "IMAGE ID"),
        ("Repository", "REPOSITORY"),
        ("Tag", "TAG"),
        ("Digest", "DIGEST"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("Size", "SIZE"),
        ("Containers", "CONTAINERS"),
        ("SharedSize", "SHARED SIZE"),
        ("UniqueSize", "UNIQUE SIZE"),
        ("VirtualSize", "SIZE"),
    ],
    usual: &["Repository", "Tag", "ID", "CreatedSince", "Size"],
};

const NONE: &str = "<none>";

struct Row {
    /// None: the image has no name.
    name: Option<Reference>,
    digest: Option<Digest>,
    id: Digest,
    manifest: Digest,
    info: ImageInfo,
}

pub(super) fn images(place: &Place, args: &ImagesArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    if args.tree {
        return super::layers::tree(&engine.store, args.name.as_deref());
    }
    let mut rows = rows(&engine.store, args)?;
    rows.sort_by_cached_key(|row| {
        let name = row.name.as_ref().map(Reference::familiar);
        (std::cmp::Reverse(row.info.created), name)
    });
    if args.quiet && args.format.is_none() {
        // An image with several names is one image.
        let mut seen = HashSet::new();
        rows.retain(|row| seen.insert(row.id));
    }
    let mut containers: HashMap<Digest, usize> = HashMap::new();
    for manifest in engine
        .store
        .containers()?
        .into_iter()
        .filter_map(|it| it.image)
    {
        *containers.entry(manifest).or_default() += 1;
    }
    let fields = rows.into_iter().map(|row| {
        let none = || NONE.to_owned();
        let mut fields = Fields::new(Shape::Row);
        let id = row.id;
        fields.add(
            "ID",
            if args.no_trunc {
                id.to_string()
            } else {
                short(&id)
            },
        );
        let (name, tag) = match &row.name {
            Some(name) => (name.familiar_name(), name.tag().map(str::to_owned)),
            None => (none(), None),
        };
        fields.add("Repository", name);
        fields.add("Tag", tag.unwrap_or_else(none));
        fields.add(
            "Digest",
            row.digest.map_or_else(none, |digest| digest.to_string()),
        );
        fields.add("CreatedSince", created(row.info.created));
        let at = row
            .info
            .created
            .map_or_else(|| "N/A".to_owned(), local_time);
        fields.add("CreatedAt", at);
        fields.add("Size", size(row.info.size));
        let count = containers.get(&row.manifest).copied().unwrap_or(0);
        fields.add("Containers", count.to_string());
        fields.add("SharedSize", "N/A");
        fields.add("UniqueSize", "N/A");
        fields.add("VirtualSize", size4(row.info.size));
        fields
    });
    let with_digests = Listing {
        usual: &["Repository", "Tag", "Digest", "ID", "CreatedSince", "Size"],
        ..IMAGES
    };
    let listing = if args.digests { with_digests } else { IMAGES };
    listing.print(args.format.as_deref(), args.quiet, fields)?;
    Ok(ExitCode::SUCCESS)
}

/// The images that are asked for.
fn rows(store: &Store, args: &ImagesArgs) -> Result<Vec<Row>> {
    const KNOWN: [&str; 6] = ["reference", "label", "dangling", "before", "since", "until"];
    let mut patterns: Vec<&str> = Vec::new();
    let mut dangling = None;
    let (mut before, mut since) = (None, None);
    let mut others = Vec::new();
    let made = |text: &str| -> Result<Option<SystemTime>> {
        let manifest = find_image(store, text)?;
        Ok(store.image(manifest)?.and_then(|image| image.info.created))
    };
    for filter in &args.filters {
        match filter.split_once('=') {
            Some(("reference", pattern)) => patterns.push(pattern),
            Some(("dangling", value)) => dangling = Some(truth("dangling", value)?),
            Some(("before", image)) => before = made(image)?,
            Some(("since", image)) => since = made(image)?,
            _ => others.push(filter.clone()),
        }
    }
    let filters = Filters::parse(&others, &KNOWN)?;
    // Also with the name alone.
    let named = args.name.as_deref().map(|name| vec![name]);
    let is_one = |name: &Reference, patterns: &[&str]| -> Result<bool> {
        let short = name.familiar();
        for pattern in patterns {
            let pattern = pattern
                .strip_prefix("docker.io/library/")
                .unwrap_or(pattern);
            let pattern = pattern.strip_prefix("docker.io/").unwrap_or(pattern);
            for text in [&short, &name.familiar_name()] {
                if go_match(pattern, text).map_err(|error| anyhow::anyhow!("{pattern}: {error}"))? {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    };
    let mut rows = Vec::new();
    for candidate in candidates(store)? {
        let Candidate { image, digest } = &candidate;
        let time = image.info.created;
        if before.is_some_and(|before| time.is_none_or(|time| time >= before))
            || since.is_some_and(|since| time.is_none_or(|time| time <= since))
            || dangling.is_some_and(|dangling| dangling != image.tags.is_empty())
            || !filters.fit(store, image)?
        {
            continue;
        }
        let digests = store.repo_digests(image.manifest)?;
        let row = |name: Option<&Reference>| {
            let here = digests
                .iter()
                .find(|it| name.is_some_and(|name| it.name() == name.name()));
            Row {
                name: name.cloned(),
                digest: digest.or_else(|| here.and_then(Reference::digest)),
                id: digest.unwrap_or(image.info.config),
                manifest: image.manifest,
                info: image.info.clone(),
            }
        };
        for tag in &image.tags {
            if let Some(named) = &named
                && !is_one(tag, named)?
            {
                continue;
            }
            if patterns.is_empty() || is_one(tag, &patterns)? {
                rows.push(row(Some(tag)));
            }
        }
        if image.tags.is_empty() && named.is_none() && patterns.is_empty() {
            rows.push(row(None));
        }
    }
    Ok(rows)
}

/// What a list can show.
struct Candidate {
    image: Image,
    /// Of an index.
    digest: Option<Digest>,
}

/// Images and indexes; an image that is part of an index only shows itself if it has a name of its own.
fn candidates(store: &Store) -> Result<Vec<Candidate>> {
    let indexes = store.indexes()?;
    let parts = indexes.iter().flat_map(|index| &index.images);
    let parts: HashSet<Digest> = parts.map(|image| image.manifest).collect();
    let images = store.images()?.into_iter();
    let images = images.filter(|image| !image.tags.is_empty() || !parts.contains(&image.manifest));
    let mut found: Vec<_> = images
        .map(|image| Candidate {
            image,
            digest: None,
        })
        .collect();
    for index in &indexes {
        let latest = index.images.iter().max_by_key(|image| image.info.created);
        let Some(latest) = latest else {
            continue;
        };
        let image = Image {
            manifest: index.digest,
            info: together(store, index)?,
            tags: index.tags.clone(),
            ..latest.clone()
        };
        found.push(Candidate {
            image,
            digest: Some(index.digest),
        });
    }
    Ok(found)
}

/// What Go takes for true and false.
pub(super) fn truth(filter: &str, value: &str) -> Result<bool> {
    match value {
        "1" | "t" | "true" | "True" | "TRUE" => Ok(true),
        "0" | "f" | "false" | "False" | "FALSE" => Ok(false),
        _ => bail!("--filter {filter}={value}: expected true or false"),
    }
}

/// What a list shows of an index: the latest of its images, with the size of all that they hold.
pub(super) fn together(store: &Store, index: &StoredIndex) -> Result<ImageInfo> {
    let latest = index.images.iter().max_by_key(|image| image.info.created);
    let mut info = latest
        .map(|image| image.info.clone())
        .ok_or_else(|| BuildError::new(format!("no such image: {}", index.digest)))?;
    let layers: HashSet<_> = index
        .images
        .iter()
        .flat_map(|image| image.info.layers.iter().copied())
        .collect();
    info.size = 0;
    for layer in layers {
        info.size += store.layer(layer)?.map_or(0, |layer| layer.size);
    }
    Ok(info)
}

pub(super) fn tag(place: &Place, source: &str, target: &str) -> Result<ExitCode> {
    let name = reference(target)?;
    if name.digest().is_some() {
        return Err(
            BuildError::new(format!("{target}: a name to be given cannot have a digest")).into(),
        );
    }
    let engine = place.engine()?;
    let digest = find_target(&engine.store, source)?;
    engine.store.tag(&name, digest)?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn rmi(place: &Place, args: &RmiArgs) -> Result<ExitCode> {
    args.docker.check()?;
    note(args.no_prune, "--no-prune", "images have no parents");
    let engine = place.engine()?;
    let store = &engine.store;
    let mut failed = None;
    for text in &args.images {
        let manifest = match find_target(store, text) {
            Ok(manifest) => manifest,
            Err(error) if args.force => {
                complain(&format!("note: {error}"));
                continue;
            }
            Err(error) => {
                // Each is told, the last one at the end.
                if let Some(before) = failed.replace(error) {
                    complain(&format!("ERROR: {before}"));
                }
                continue;
            }
        };
        let tags: Vec<Reference> = store
            .tags()?
            .into_iter()
            .filter(|tag| tag.target == manifest)
            .map(|tag| tag.name)
            .collect();
        let by_name = text
            .parse::<Reference>()
            .ok()
            .filter(|name| tags.contains(name));
        let removed = match &by_name {
            Some(name) => vec![name.clone()],
            None => tags.clone(),
        };
        for name in &removed {
            store.untag(name)?;
            say(&format!("Untagged: {}", name.familiar()));
        }
        if removed.len() == tags.len() {
            if let Some(image) = store.image(manifest)? {
                store.remove_image(manifest)?;
                say(&format!("Deleted: {}", image.info.config));
            } else {
                say(&format!("Deleted: {manifest}"));
                for image in store.remove_index(manifest)? {
                    say(&format!("Deleted: {}", image.info.config));
                }
            }
        }
    }
    engine.sweep()?;
    match failed {
        Some(error) => Err(error),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// An image with its config.
pub(super) fn config(store: &Store, manifest: Digest) -> Result<(ImageInfo, ImageConfig)> {
    let missing = || BuildError::new(format!("no such image: {manifest}"));
    let info = store.image(manifest)?.ok_or_else(missing)?.info;
    let (_, bytes) = store.json(info.config)?.ok_or_else(missing)?;
    Ok((info, ImageConfig::from_bytes(&bytes)?))
}

/// What `kiln history IMAGE` shows.
const HISTORY: Listing = Listing {
    heads: &[
        ("ID", "IMAGE"),
        ("CreatedSince", "CREATED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedBy", "CREATED BY"),
        ("Size", "SIZE"),
        ("Comment", "COMMENT"),
    ],
    usual: &["ID", "CreatedSince", "CreatedBy", "Size", "Comment"],
};

pub(super) fn history(place: &Place, image: &str, args: &HistoryFormatArgs) -> Result<ExitCode> {
    let wanted = args.platform.as_deref().map(|text| platform(Some(text)));
    let wanted = wanted.transpose()?;
    let engine = place.engine()?;
    let manifest = find_image_for(&engine.store, image, wanted.as_ref())?;
    let (info, config) = config(&engine.store, manifest)?;
    let mut layers = info.layers.iter();
    let mut rows = Vec::new();
    for entry in &config.history {
        let layer = if entry.empty_layer {
            None
        } else {
            layers.next()
        };
        let bytes = match layer {
            Some(layer) => engine.store.layer(*layer)?.map_or(0, |info| info.size),
            None => 0,
        };
        let created = entry.created.map(SystemTime::from);
        let mut by = entry.created_by.clone();
        if !args.no_trunc && by.chars().count() > 45 {
            by = by.chars().take(44).chain(['…']).collect();
        }
        let mut fields = Fields::new(Shape::Row);
        fields.add("ID", "<missing>");
        let none = || "N/A".to_owned();
        fields.add(
            "CreatedSince",
            created.map_or_else(
                none,
                |time| if args.human { ago(time) } else { rfc3339(time) },
            ),
        );
        fields.add("CreatedAt", created.map_or_else(none, rfc3339));
        fields.add("CreatedBy", by);
        fields.add(
            "Size",
            if args.human {
                size(bytes)
            } else {
                bytes.to_string()
            },
        );
        fields.add("Comment", entry.comment.clone());
        rows.push(fields);
    }
    rows.reverse();
    if let Some(id) = rows.first_mut().and_then(|row| row.list.first_mut()) {
        id.value = if args.no_trunc {
            info.config.to_string().into()
        } else {
            short(&info.config).into()
        };
    }
    let for_programs = Listing {
        usual: &["ID", "CreatedAt", "CreatedBy", "Size", "Comment"],
        ..HISTORY
    };
    let listing = if args.human { HISTORY } else { for_programs };
    listing.print(args.format.as_deref(), args.quiet, rows)?;
    Ok(ExitCode::SUCCESS)
}

fn created(time: Option<SystemTime>) -> String {
    time.map_or_else(|| "N/A".to_owned(), ago)
}
