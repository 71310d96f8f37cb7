//! `kiln system df`, `kiln system check`, `kiln builder du`: what takes the space, and whether it is whole.

use std::collections::HashSet;
use std::process::ExitCode;

use anyhow::Result;
use kiln_engine::{CacheItem, Engine, Filled};
use kiln_image::LayerId;
use kiln_template::{Fields, Shape};

use super::prune::Filters;
use crate::context::Place;
use crate::format::{ago, complain, rfc3339, say, short, size, size4, table};
use crate::listing::Listing;
use crate::storage_args::{CheckArgs, DfArgs, DuArgs};

/// As much of an id as docker shows of one in the build cache.
const SHOWN: usize = 12;

/// An id in a table: of a layer its beginning, of everything else the whole name.
pub(super) fn short_id(id: &str) -> String {
    if id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return id[..SHOWN].to_owned();
    }
    id.to_owned()
}

/// What `kiln builder du` shows.
const CACHE: Listing = Listing {
    heads: &[
        ("ID", "ID"),
        ("Reclaimable", "RECLAIMABLE"),
        ("Size", "SIZE"),
        ("LastUsedSince", "LAST ACCESSED"),
        ("Type", "TYPE"),
        ("Description", "DESCRIPTION"),
        ("Shared", "SHARED"),
        ("CreatedAt", "CREATED AT"),
        ("CreatedSince", "CREATED"),
        ("LastUsedAt", "LAST USED AT"),
        ("UsageCount", "USAGE"),
    ],
    usual: &["ID", "Reclaimable", "Size", "LastUsedSince"],
};

/// The build cache as docker lists it.
fn cache_rows(items: &[CacheItem], is_table: bool) -> Vec<Fields> {
    let row = |item: &CacheItem| {
        let mut fields = Fields::new(Shape::Row);
        fields.add(
            "ID",
            if is_table {
                short_id(&item.id)
            } else {
                item.id.clone()
            },
        );
        fields.add("Type", item.kind);
        fields.add("Description", item.description.clone());
        // Only the table marks what is shared.
        let shared = if item.shared && is_table { "*" } else { "" };
        fields.add("Size", format!("{}{shared}", size(item.space)));
        fields.add("Shared", item.shared);
        fields.add("Reclaimable", !item.in_use);
        fields.add("CreatedAt", rfc3339(item.created));
        fields.add("LastUsedAt", rfc3339(item.used));
        fields.add("UsageCount", item.records as i64);
        fields.hide("LastUsedSince", ago(item.used));
        fields.hide("CreatedSince", ago(item.created));
        fields
    };
    items.iter().map(row).collect()
}

/// docker's table of the build cache.
pub(super) fn cache_table(items: &[CacheItem]) -> Result<()> {
    CACHE.print(None, false, cache_rows(items, true))
}

pub(super) fn du(place: &Place, args: &DuArgs) -> Result<ExitCode> {
    let filters = Filters::parse(&args.filters, &["until", "unused-for", "type", "id"])?;
    let engine = place.engine()?;
    engine.filled()?;
    let mut items = engine.cache_items()?;
    items.retain(|item| {
        filters.before.is_none_or(|before| item.used < before)
            && (filters.kinds.is_empty() || filters.kinds.iter().any(|kind| kind == item.kind))
            && (filters.ids.is_empty() || filters.ids.iter().any(|id| item.id.starts_with(id)))
    });
    items.reverse();
    let format = args.format.as_deref().unwrap_or("table");
    if args.verbose || format == "pretty" {
        for item in &items {
            let line = |name: &str, text: &str| say(&format!("{:<14}{text}", format!("{name}:")));
            line("ID", &item.id);
            line("Created at", &rfc3339(item.created));
            line("Reclaimable", &(!item.in_use).to_string());
            line("Shared", &item.shared.to_string());
            line("Size", &size(item.space));
            line("Description", &item.description);
            line("Usage count", &item.records.to_string());
            line("Last used", &ago(item.used));
            line("Type", item.kind);
            say("");
        }
    } else {
        let is_table = format.starts_with("table");
        CACHE.print(Some(format), false, cache_rows(&items, is_table))?;
        if format != "table" {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let sum = |wanted: &dyn Fn(&&CacheItem) -> bool| {
        size(items.iter().filter(wanted).map(|item| item.space).sum())
    };
    say(&format!("Shared:\t\t{}", sum(&|item| item.shared)));
    say(&format!("Private:\t{}", sum(&|item| !item.shared)));
    say(&format!("Reclaimable:\t{}", sum(&|item| !item.in_use)));
    say(&format!("Total:\t\t{}", sum(&|_| true)));
    Ok(ExitCode::SUCCESS)
}

/// One line of `df`.
struct Line {
    kind: &'static str,
    total: usize,
    active: usize,
    size: u64,
    reclaimable: u64,
}

impl Line {
    fn reclaimable(&self) -> String {
        // docker tells no share of the build cache.
        if self.size == 0 || self.kind == "Build Cache" {
            return size4(self.reclaimable);
        }
        format!(
            "{} ({}%)",
            size4(self.reclaimable),
            self.reclaimable * 100 / self.size
        )
    }
}

fn lines(engine: &Engine, filled: &Filled, items: &[CacheItem]) -> Result<Vec<Line>> {
    let store = &engine.store;
    let images = store.images()?;
    let containers = store.containers()?;
    let used: HashSet<_> = containers
        .iter()
        .filter_map(|container| container.image)
        .collect();
    let (active, idle): (Vec<_>, Vec<_>) = images
        .iter()
        .partition(|image| used.contains(&image.manifest));
    // What only images have of which no container is there.
    let held: HashSet<LayerId> = active
        .iter()
        .flat_map(|image| image.info.layers.clone())
        .collect();
    let free: HashSet<LayerId> = idle
        .iter()
        .flat_map(|image| image.info.layers.clone())
        .filter(|layer| !held.contains(layer))
        .collect();
    let mut reclaimable = if active.is_empty() { filled.blobs } else { 0 };
    for layer in free {
        reclaimable += store.layer_space(layer)?.unwrap_or(0);
    }
    let running = containers
        .iter()
        .filter(|container| container.running)
        .count();
    let in_use: u64 = items
        .iter()
        .filter(|item| item.in_use && !item.shared)
        .map(|item| item.space)
        .sum();
    Ok(vec![
        Line {
            kind: "Images",
            total: images.len(),
            active: active.len(),
            size: filled.images + filled.blobs,
            reclaimable,
        },
        Line {
            kind: "Containers",
            total: containers.len(),
            active: running,
            size: filled.containers,
            reclaimable: 0,
        },
        Line {
            kind: "Local Volumes",
            total: 0,
            active: 0,
            size: 0,
            reclaimable: 0,
        },
        Line {
            kind: "Build Cache",
            total: items.len(),
            active: items.iter().filter(|item| item.in_use).count(),
            size: filled.cache + filled.making,
            reclaimable: filled.cache.saturating_sub(in_use),
        },
    ])
}

pub(super) fn df(place: &Place, args: &DfArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    let filled = engine.filled()?;
    let items = engine.cache_items()?;
    let lines = lines(&engine, &filled, &items)?;
    if args.verbose {
        return verbose(place, &engine, &filled, &items);
    }
    let rows = lines.iter().map(|line| {
        let mut fields = Fields::new(Shape::Row);
        fields.add("Type", line.kind);
        fields.add("TotalCount", line.total.to_string());
        fields.add("Active", line.active.to_string());
        fields.add("Size", size4(line.size));
        fields.add("Reclaimable", line.reclaimable());
        fields.hide("SizeBytes", line.size.to_string());
        // With the database, and what else docker does not show: what du says of the store.
        fields.hide("StoreBytes", filled.total().to_string());
        fields
    });
    DF.print(args.format.as_deref(), false, rows)?;
    Ok(ExitCode::SUCCESS)
}

/// What `kiln system df` shows.
const DF: Listing = Listing {
    heads: &[
        ("Type", "TYPE"),
        ("TotalCount", "TOTAL"),
        ("Active", "ACTIVE"),
        ("Size", "SIZE"),
        ("Reclaimable", "RECLAIMABLE"),
        ("SizeBytes", "SIZE"),
        ("StoreBytes", "STORE"),
    ],
    usual: &["Type", "TotalCount", "Active", "Size", "Reclaimable"],
};

fn verbose(
    place: &Place,
    engine: &Engine,
    filled: &Filled,
    items: &[CacheItem],
) -> Result<ExitCode> {
    let store = &engine.store;
    say("Images space usage:\n");
    let images = store.images()?;
    let containers = store.containers()?;
    let mut rows = Vec::new();
    for image in &images {
        let mut unique = 0;
        let mut whole = 0;
        for layer in &image.info.layers {
            let space = store.layer_space(*layer)?.unwrap_or(0);
            whole += space;
            let others = images
                .iter()
                .filter(|other| other.manifest != image.manifest)
                .any(|other| other.info.layers.contains(layer));
            if !others {
                unique += space;
            }
        }
        let using = containers
            .iter()
            .filter(|container| container.image == Some(image.manifest))
            .count();
        let none = || "<none>".to_owned();
        let names = match &image.tags[..] {
            [] => vec![(none(), none())],
            tags => tags
                .iter()
                .map(|tag| {
                    (
                        tag.familiar_name(),
                        tag.tag().unwrap_or("<none>").to_owned(),
                    )
                })
                .collect(),
        };
        for (repository, tag) in names {
            rows.push(vec![
                repository,
                tag,
                short(&image.info.config),
                image.info.created.map_or_else(|| "N/A".to_owned(), ago),
                size(whole),
                size(whole - unique),
                size(unique),
                using.to_string(),
            ]);
        }
    }
    let heads = [
        "REPOSITORY",
        "TAG",
        "IMAGE ID",
        "CREATED",
        "SIZE",
        "SHARED SIZE",
        "UNIQUE SIZE",
        "CONTAINERS",
    ];
    table(&heads, &rows);
    say("\nContainers space usage:\n");
    let rows: Vec<_> = containers
        .iter()
        .map(|container| {
            vec![
                container.id[..SHOWN].to_owned(),
                container.name.clone(),
                ago(container.created),
                if container.running {
                    "running"
                } else {
                    "exited"
                }
                .to_owned(),
            ]
        })
        .collect();
    table(&["CONTAINER ID", "NAMES", "CREATED", "STATUS"], &rows);
    say("\nLocal Volumes space usage:\n");
    table(&["VOLUME NAME", "LINKS", "SIZE"], &[]);
    say(&format!(
        "\nBuild cache usage: {}\n",
        size(filled.cache + filled.making)
    ));
    let rows: Vec<_> = items
        .iter()
        .rev()
        .map(|item| {
            vec![
                short_id(&item.id),
                item.kind.to_owned(),
                size(item.space),
                ago(item.created),
                ago(item.used),
                item.records.to_string(),
                item.shared.to_string(),
                item.description.clone(),
            ]
        })
        .collect();
    let heads = [
        "CACHE ID",
        "CACHE TYPE",
        "SIZE",
        "CREATED",
        "LAST USED",
        "USAGE",
        "SHARED",
        "DESCRIPTION",
    ];
    table(&heads, &rows);
    say("\nStore:\n");
    let disk = kiln_store::Disk::of(&place.root)?;
    let rows = [
        ("Layers of images", filled.images),
        ("Layers as they came (blobs)", filled.blobs),
        ("Layers of containers", filled.containers),
        ("Build cache", filled.cache),
        ("In the making", filled.making),
        ("Database, locks, folders", filled.other),
        ("Total", filled.total()),
        ("Limit (storage.max-size)", engine.limits.most),
        ("Free on its disk", disk.available),
        ("Left free (storage.reserve)", engine.limits.reserve),
    ]
    .map(|(what, bytes)| vec![what.to_owned(), size(bytes)]);
    table(&["WHAT", "SIZE"], &rows);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn check(place: &Place, args: &CheckArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    let checked = engine.check(args.deep, args.repair)?;
    let verdict = &checked.verdict;
    for fault in &verdict.faults {
        complain(&format!("damaged: {}", fault.text));
    }
    for dropped in &checked.dropped {
        say(&format!("dropped: {dropped}"));
    }
    let how = if args.deep { ", content included" } else { "" };
    say(&format!(
        "{} layers, {} cache records, {} images, {} blobs checked{how}: {}",
        verdict.layers.len(),
        verdict.records,
        verdict.images,
        verdict.blobs,
        match verdict.faults.len() {
            0 => "all whole".to_owned(),
            1 => "1 fault".to_owned(),
            count => format!("{count} faults"),
        }
    ));
    if !verdict.faults.is_empty() && !args.repair {
        complain(
            "hint: kiln system check --deep --repair drops what is damaged; builds make it again, and images can be pulled again",
        );
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}
