//! `kiln ps`, `kiln rm`, `kiln diff` and `kiln export`.

use anyhow::{Context as _, Result, bail};
use kiln_engine::{Change, ContainerInfo, Engine};
use kiln_graph::Network;
use kiln_template::{Fields, Shape, Value};
use std::process::ExitCode;

use super::find_image;
use crate::container_args::{PsArgs, RmArgs};
use crate::context::Place;
use crate::format::{ago, complain, local_time, say, size};
use crate::listing::Listing;

/// What `kiln ps` shows.
const CONTAINERS: Listing = Listing {
    heads: &[
        ("ID", "CONTAINER ID"),
        ("Names", "NAMES"),
        ("Image", "IMAGE"),
        ("Command", "COMMAND"),
        ("CreatedAt", "CREATED AT"),
        ("RunningFor", "CREATED"),
        ("Ports", "PORTS"),
        ("State", "STATE"),
        ("Status", "STATUS"),
        ("Size", "SIZE"),
        ("Labels", "LABELS"),
        ("Label", ""),
        ("Mounts", "MOUNTS"),
        ("LocalVolumes", "LOCAL VOLUMES"),
        ("Networks", "NETWORKS"),
        ("Platform", "PLATFORM"),
    ],
    usual: WITH_SIZE.split_at(7).0,
};

/// The columns, the last one only with `--size`.
const WITH_SIZE: &[&str] = &[
    "ID",
    "Image",
    "Command",
    "RunningFor",
    "Status",
    "Ports",
    "Names",
    "Size",
];

pub(super) fn ps(place: &Place, args: &PsArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    let mut containers = engine.containers()?;
    let last = args
        .last
        .filter(|last| *last >= 0)
        .map(|last| last as usize);
    let last = if args.latest { Some(1) } else { last };
    let mut any_state = args.all || last.is_some();
    for filter in &args.filters {
        let Some((name, value)) = filter.split_once('=') else {
            bail!("--filter {filter}: expected NAME=VALUE");
        };
        match name {
            "name" => containers.retain(|it| it.name.contains(value.trim_matches(['^', '/', '$']))),
            "id" => containers.retain(|it| it.id.starts_with(value)),
            "status" => {
                any_state = true;
                let wanted: Vec<&str> = args
                    .filters
                    .iter()
                    .filter_map(|filter| filter.strip_prefix("status="))
                    .collect();
                containers.retain(|it| wanted.contains(&state(it)));
            }
            "exited" => {
                any_state = true;
                let code: i32 = value
                    .parse()
                    .ok()
                    .with_context(|| format!("--filter {filter}: expected a number"))?;
                let ended = |it: &ContainerInfo| it.ended.map(|(code, _)| code);
                containers.retain(|it| !it.running && ended(it) == Some(code));
            }
            "ancestor" => {
                let manifest = find_image(&engine.store, value).ok();
                containers.retain(|it| it.manifest.is_some() && it.manifest == manifest);
            }
            "label" => {
                let (label, wanted) = match value.split_once('=') {
                    Some((label, wanted)) => (label, Some(wanted)),
                    None => (value, None),
                };
                containers.retain(|it| {
                    let found = it.config.labels.get(label);
                    found.is_some_and(|value| wanted.is_none_or(|wanted| wanted == value))
                });
            }
            _ => bail!(
                "--filter {filter}: expected one of name, id, status, exited, ancestor, label"
            ),
        }
    }
    containers.retain(|it| any_state || it.running);
    containers.truncate(last.unwrap_or(usize::MAX));
    let mut rows = Vec::new();
    for it in &containers {
        rows.push(row(&engine, it, args)?);
    }
    let listing = Listing {
        usual: if args.size {
            WITH_SIZE
        } else {
            CONTAINERS.usual
        },
        ..CONTAINERS
    };
    listing.print(args.format.as_deref(), args.quiet, rows)?;
    Ok(ExitCode::SUCCESS)
}

fn row(engine: &Engine, it: &ContainerInfo, args: &PsArgs) -> Result<Fields> {
    let line: Vec<_> = it.args.iter().map(|word| quoted(word)).collect();
    let line = line.join(" ");
    let long = !args.no_trunc && line.chars().count() > 20;
    let command = if long {
        format!("\"{}…\"", line.chars().take(19).collect::<String>())
    } else {
        format!("\"{line}\"")
    };
    let id = if args.no_trunc { &it.id } else { &it.id[..12] };
    let (own, all) = sizes(engine, it)?;
    let labels = &it.config.labels;
    let pairs: Vec<_> = labels
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let mut fields = Fields::new(Shape::Row);
    fields.add("Command", command);
    fields.add("CreatedAt", local_time(it.created));
    fields.add("ID", id);
    fields.add("Image", it.image.as_str());
    fields.add("Labels", pairs.join(","));
    fields.hide("Label", Value::Lookup(labels.clone().into_iter().collect()));
    fields.add("LocalVolumes", "0");
    fields.add("Mounts", "");
    fields.add("Names", it.name.as_str());
    fields.add(
        "Networks",
        if it.process.network == Network::None {
            "none"
        } else {
            "host"
        },
    );
    fields.add("Platform", Value::Null);
    fields.add("Ports", "");
    fields.add("RunningFor", ago(it.created));
    fields.add("Size", format!("{} (virtual {})", size(own), size(all)));
    fields.add("State", state(it));
    fields.add("Status", status(it));
    Ok(fields)
}

/// A word of a command line as docker shows it.
fn quoted(word: &str) -> String {
    let plain = !word.is_empty()
        && !word.contains(|letter: char| letter.is_whitespace() || "'\"\\$`".contains(letter));
    if plain {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

/// What a container added to its image, and both together.
pub(super) fn sizes(engine: &Engine, it: &ContainerInfo) -> Result<(u64, u64)> {
    let sum = |layers: &[kiln_image::LayerId]| -> Result<u64> {
        let mut sum = 0;
        for layer in layers {
            sum += engine.store.layer(*layer)?.map_or(0, |info| info.size);
        }
        Ok(sum)
    };
    let own = sum(&it.own_layers)?;
    Ok((own, own + sum(&it.image_layers)?))
}

pub(super) fn state(container: &ContainerInfo) -> &'static str {
    match (container.running, container.ended) {
        (true, _) => "running",
        (false, Some(_)) => "exited",
        (false, None) => "created",
    }
}

fn status(container: &ContainerInfo) -> String {
    match (container.running, container.ended) {
        (true, _) => "Up".to_owned(),
        (false, Some((code, at))) => format!("Exited ({code}) {}", ago(at)),
        (false, None) => "Created".to_owned(),
    }
}

pub(super) fn rm(place: &Place, args: &RmArgs) -> Result<ExitCode> {
    args.docker.check()?;
    let engine = place.engine()?;
    let mut code = ExitCode::SUCCESS;
    for name in &args.containers {
        let removed = match engine.container(name) {
            Err(error) if args.force && error.message.starts_with("no such container") => {
                complain(&error.to_string());
                continue;
            }
            Ok(container) if args.force && container.running => {
                super::ending::kill_and_remove(&engine, &container)
            }
            other => other.and_then(|container| engine.remove_container(&container)),
        };
        match removed {
            Ok(()) => say(name),
            Err(error) => {
                complain(&format!("ERROR: {error}"));
                if let Some(hint) = &error.hint {
                    complain(&format!("hint: {hint}"));
                }
                code = ExitCode::FAILURE;
            }
        }
    }
    engine.sweep_containers()?;
    engine.sweep()?;
    Ok(code)
}

pub(super) fn diff(place: &Place, name: &str) -> Result<ExitCode> {
    let engine = place.engine()?;
    for (change, path) in engine.changes(&engine.container(name)?)? {
        let letter = match change {
            Change::Added => 'A',
            Change::Changed => 'C',
            Change::Deleted => 'D',
        };
        say(&format!("{letter} {path}"));
    }
    Ok(ExitCode::SUCCESS)
}
