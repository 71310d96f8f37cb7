//! `kiln images`, `tag`, `rmi`, `history`, `inspect`: what is in the store.

use std::collections::HashSet;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Result;
use kiln_engine::BuildError;
use kiln_image::{Digest, ImageConfig, Reference};
use kiln_store::{ImageInfo, Store, StoredIndex};
use serde_json::json;

use super::{find_image, find_target, reference};
use crate::args::{HistoryArgs, ImagesArgs};
use crate::context::Place;
use crate::format::{ago, say, short, size, table};

struct Row {
    repository: String,
    tag: String,
    digest: Option<Digest>,
    id: Digest,
    info: ImageInfo,
}

pub(super) fn images(place: &Place, args: &ImagesArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    let store = &engine.store;
    let wanted = args.name.as_deref().map(reference).transpose()?;
    // The parser gives a name without a tag the tag latest: here it means all tags.
    let any_tag = args
        .name
        .as_deref()
        .is_some_and(|text| !text.rsplit('/').next().unwrap_or_default().contains(':'));
    let mut rows = Vec::new();
    let mut named = HashSet::new();
    for kiln_store::Tag {
        name,
        target: manifest,
        ..
    } in store.tags()?
    {
        named.insert(manifest);
        if let Some(wanted) = &wanted
            && (wanted.name() != name.name() || !any_tag && wanted.tag() != name.tag())
        {
            continue;
        }
        if let Some(kiln_store::Image { info, .. }) = store.image(manifest)? {
            let tag = name.tag().unwrap_or("<none>").to_owned();
            let digests = store.repo_digests(manifest)?;
            let here = digests.iter().find(|it| it.name() == name.name());
            rows.push(Row {
                repository: name.familiar_name(),
                tag,
                digest: here.and_then(Reference::digest),
                id: info.config,
                info,
            });
        } else if let Some(index) = store.index(manifest)? {
            rows.push(Row {
                repository: name.familiar_name(),
                tag: name.tag().unwrap_or("<none>").to_owned(),
                digest: Some(manifest),
                id: manifest,
                info: together(store, &index)?,
            });
        }
    }
    for index in store.indexes()? {
        named.extend(index.images.iter().map(|image| image.manifest));
        if wanted.is_none() && index.tags.is_empty() {
            rows.push(Row {
                repository: "<none>".to_owned(),
                tag: "<none>".to_owned(),
                digest: None,
                id: index.digest,
                info: together(store, &index)?,
            });
        }
    }
    if wanted.is_none() {
        for kiln_store::Image { manifest, info, .. } in store.images()? {
            if !named.contains(&manifest) {
                let none = || "<none>".to_owned();
                rows.push(Row {
                    repository: none(),
                    tag: none(),
                    digest: None,
                    id: info.config,
                    info,
                });
            }
        }
    }
    rows.sort_by(|a, b| {
        b.info
            .created
            .cmp(&a.info.created)
            .then_with(|| (&a.repository, &a.tag).cmp(&(&b.repository, &b.tag)))
    });
    let id = |row: &Row| {
        if args.no_trunc {
            row.id.to_string()
        } else {
            short(&row.id)
        }
    };
    let digest = |row: &Row| {
        row.digest
            .map_or_else(|| "<none>".to_owned(), |digest| digest.to_string())
    };
    if args.quiet {
        let mut seen = Vec::new();
        for row in &rows {
            if !seen.contains(&row.id) {
                seen.push(row.id);
                say(&id(row));
            }
        }
    } else if args.format.is_some() {
        for row in &rows {
            say(&json!({
                "Repository": row.repository,
                "Tag": row.tag,
                "Digest": digest(row),
                "ID": id(row),
                "CreatedSince": created(row.info.created),
                "Size": size(row.info.size),
            })
            .to_string());
        }
    } else {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| {
                let created = created(row.info.created);
                let mut cells = vec![
                    row.repository.clone(),
                    row.tag.clone(),
                    id(row),
                    created,
                    size(row.info.size),
                ];
                if args.digests {
                    cells.insert(2, digest(row));
                }
                cells
            })
            .collect();
        let mut heads = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
        if args.digests {
            heads.insert(2, "DIGEST");
        }
        table(&heads, &rows);
    }
    Ok(ExitCode::SUCCESS)
}

/// What a list shows of an index: the latest of its images, with the size of all that they hold.
fn together(store: &Store, index: &StoredIndex) -> Result<ImageInfo> {
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

pub(super) fn rmi(place: &Place, images: &[String]) -> Result<ExitCode> {
    let engine = place.engine()?;
    let store = &engine.store;
    let mut failed = None;
    for text in images {
        let manifest = match find_target(store, text) {
            Ok(manifest) => manifest,
            Err(error) => {
                failed = Some(error);
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

fn config(store: &Store, manifest: Digest) -> Result<(ImageInfo, ImageConfig)> {
    let missing = || BuildError::new(format!("no such image: {manifest}"));
    let info = store.image(manifest)?.ok_or_else(missing)?.info;
    let (_, bytes) = store.json(info.config)?.ok_or_else(missing)?;
    Ok((info, ImageConfig::from_bytes(&bytes)?))
}

pub(super) fn history(place: &Place, args: &HistoryArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    let manifest = find_image(&engine.store, &args.image)?;
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
        let created = entry
            .created
            .map_or_else(|| "N/A".to_owned(), |time| ago(SystemTime::from(time)));
        let mut by = entry.created_by.clone();
        if !args.no_trunc && by.chars().count() > 45 {
            by = by.chars().take(44).chain(['…']).collect();
        }
        rows.push(vec![
            "<missing>".to_owned(),
            created,
            by,
            size(bytes),
            entry.comment.clone(),
        ]);
    }
    rows.reverse();
    if let Some(first) = rows.first_mut() {
        first[0] = if args.no_trunc {
            info.config.to_string()
        } else {
            short(&info.config)
        };
    }
    if args.quiet {
        for row in &rows {
            say(&row[0]);
        }
    } else {
        table(
            &["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"],
            &rows,
        );
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn inspect(place: &Place, images: &[String]) -> Result<ExitCode> {
    let engine = place.engine()?;
    let mut list = Vec::new();
    for text in images {
        let target = find_target(&engine.store, text)?;
        let manifest = find_image(&engine.store, text)?;
        let (info, config) = config(&engine.store, manifest)?;
        let tags: Vec<_> = engine
            .store
            .tags()?
            .into_iter()
            .filter(|tag| tag.target == target)
            .collect();
        let mut run = serde_json::to_value(&config.config)?;
        if let Some(run) = run.as_object_mut() {
            run.retain(|_, value| !value.is_null());
        }
        let mut shown = json!({
            "Id": info.config,
            "RepoTags": tags.iter().map(|tag| tag.name.familiar()).collect::<Vec<_>>(),
            "RepoDigests": engine.store.repo_digests(manifest)?.iter().map(Reference::familiar).collect::<Vec<_>>(),
            "Comment": config.history.last().map_or("", |entry| entry.comment.as_str()),
            "Created": config.created,
            "Author": config.author,
            "Config": run,
            "Architecture": config.architecture,
            "Variant": config.variant,
            "Os": config.os,
            "Size": info.size,
            "RootFS": { "Type": "layers", "Layers": config.rootfs.diff_ids },
        });
        if let Some(index) = engine.store.index(target)? {
            shown["Id"] = json!(target);
            shown["Manifests"] = json!(manifests(&index));
        }
        list.push(shown);
    }
    say(&serde_json::to_string_pretty(&list)?);
    Ok(ExitCode::SUCCESS)
}

/// The images of an index, in docker's words.
fn manifests(index: &StoredIndex) -> Vec<serde_json::Value> {
    let entries = index.document.manifests.iter();
    let shown = entries.map(|entry| {
        let image = index.images.iter().find(|it| it.manifest == entry.digest);
        json!({
            "ID": entry.digest,
            "Descriptor": entry,
            "Available": image.is_some(),
            "Kind": if image.is_some() { "image" } else { "unknown" },
            "ImageData": image.map(|image| json!({
                "Platform": entry.platform,
                "Id": image.info.config,
                "Size": image.info.size,
            })),
        })
    });
    shown.collect()
}

fn created(time: Option<SystemTime>) -> String {
    time.map_or_else(|| "N/A".to_owned(), ago)
}
