//! `kiln manifest`: documents of registries, and lists of them.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use kiln_engine::{BuildError, CancelFlag, Engine, EntryChange, PushRequest, RawDocument};
use kiln_image::{Descriptor, Digest, Document, OsDemands, Reference};
use serde_json::{Value, json};

use super::{display, reference};
use crate::context::{Place, cores};
use crate::format::say;
use crate::long_names::ImagetoolsCreateArgs;
use crate::manifest_args::{
    ManifestAnnotateArgs, ManifestCommand, ManifestInspectArgs, ManifestPushArgs,
};

pub(super) fn manifest(place: &Place, command: &ManifestCommand) -> Result<ExitCode> {
    let engine = place.engine()?;
    let cancel = crate::signals::give_up_on_signal()?;
    match command {
        ManifestCommand::Inspect(args) => inspect(&engine, args, &cancel)?,
        ManifestCommand::Create(args) => {
            let list = reference(&args.list)?;
            let images: Vec<Reference> = args
                .images
                .iter()
                .map(|text| reference(text))
                .collect::<Result<_>>()?;
            engine.create_manifest_list(&list, &images, args.amend, &cancel)?;
            say(&format!("Created manifest list {list}"));
        }
        ManifestCommand::Annotate(args) => annotate(&engine, args, &cancel)?,
        ManifestCommand::Push(args) => push(&engine, args, &cancel)?,
        ManifestCommand::Rm { lists } => {
            for list in lists {
                engine.remove_manifest_list(&reference(list)?)?;
            }
            engine.sweep()?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A list of the store, else what the registry has, else what the store has.
fn document(engine: &Engine, name: &Reference, cancel: &CancelFlag) -> Result<RawDocument> {
    let local = engine.local_document(name)?;
    if let Some(local) = &local
        && let Document::Index(_) = local.parse()?
    {
        return Ok(local.clone());
    }
    match (engine.remote_document(name, cancel), local) {
        (Ok(remote), _) => Ok(remote),
        (Err(_), Some(local)) => Ok(local),
        (Err(error), None) => Err(error.into()),
    }
}

fn inspect(engine: &Engine, args: &ManifestInspectArgs, cancel: &CancelFlag) -> Result<()> {
    let name = reference(&args.names[0])?;
    let found = document(engine, &name, cancel)?;
    let parsed = found.parse()?;
    if let Some(image) = args.names.get(1) {
        // Docker's words: the list, and an image of it.
        let image = reference(image)?;
        let meant = document(engine, &image, cancel)?;
        return match parsed {
            Document::Index(index)
                if index.manifests.iter().any(|it| it.digest == meant.digest) =>
            {
                print(engine, &image, &meant, args.verbose, cancel)
            }
            _ => Err(BuildError::new(format!("{image} is not in {name}")).into()),
        };
    }
    print(engine, &name, &found, args.verbose, cancel)
}

fn print(
    engine: &Engine,
    name: &Reference,
    found: &RawDocument,
    verbose: bool,
    cancel: &CancelFlag,
) -> Result<()> {
    let shown = match found.parse()? {
        Document::Index(index) if verbose => {
            let mut all = Vec::new();
            for entry in index.manifests {
                let of = name.with_digest(entry.digest);
                let there = engine.local_document(&of)?;
                let there = there.map_or_else(|| from_elsewhere(engine, &of, cancel), Ok)?;
                all.push(described(&of, &entry, &there)?);
            }
            json!(all)
        }
        Document::Manifest(_) if verbose => {
            let size = found.bytes.len() as u64;
            let entry = Descriptor::new(&found.media_type, found.digest, size);
            described(name, &entry, found)?
        }
        _ => serde_json::from_slice(&found.bytes)?,
    };
    say(&serde_json::to_string_pretty(&shown)?);
    Ok(())
}

/// A manifest of a list from a repository that is known to have it.
fn from_elsewhere(
    engine: &Engine,
    name: &Reference,
    cancel: &CancelFlag,
) -> Result<RawDocument, BuildError> {
    let digest = name.digest();
    let known = digest.map(|digest| engine.store.manifest_sources(digest));
    let known = known.transpose()?.unwrap_or_default();
    engine.remote_document(known.first().unwrap_or(name), cancel)
}

fn described(name: &Reference, entry: &Descriptor, found: &RawDocument) -> Result<Value> {
    let document: Value = serde_json::from_slice(&found.bytes)?;
    let family = if found.media_type.contains("oci") {
        "OCIManifest"
    } else {
        "SchemaV2Manifest"
    };
    Ok(json!({ "Ref": name.to_string(), "Descriptor": entry, family: document }))
}

fn annotate(engine: &Engine, args: &ManifestAnnotateArgs, cancel: &CancelFlag) -> Result<()> {
    let mut annotations = BTreeMap::new();
    for text in &args.annotations {
        let (key, value) = text.split_once('=').ok_or_else(|| {
            BuildError::new(format!("--annotation {text:?}: expected NAME=VALUE"))
        })?;
        annotations.insert(key.to_owned(), value.to_owned());
    }
    let platform = [&args.os, &args.arch, &args.variant];
    let change = EntryChange {
        platform: platform.map(|text| text.clone().unwrap_or_default()),
        os: OsDemands {
            version: args.os_version.clone().unwrap_or_default(),
            features: args.os_features.clone(),
        },
        annotations,
    };
    let (list, image) = (reference(&args.list)?, reference(&args.image)?);
    engine.annotate_manifest_list(&list, &image, &change, cancel)?;
    Ok(())
}

/// `imagetools create`: images of registries under new names.
pub(super) fn put_together(place: &Place, args: &ImagetoolsCreateArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    let cancel = crate::signals::give_up_on_signal()?;
    let tags = args.tags.iter().map(|text| reference(text));
    let tags: Vec<Reference> = tags.collect::<Result<_>>()?;
    let mut sources = Vec::new();
    for file in &args.files {
        let text = std::fs::read_to_string(file)
            .map_err(|error| BuildError::new(format!("cannot read {}: {error}", file.display())))?;
        sources.push(source(text.trim(), &tags)?);
    }
    for text in &args.sources {
        sources.push(source(text, &tags)?);
    }
    let mut annotations = BTreeMap::new();
    for text in &args.annotations {
        let pair = text
            .strip_prefix("index:")
            .and_then(|it| it.split_once('='));
        let (key, value) = pair.ok_or_else(|| {
            BuildError::new(format!("--annotation {text:?}: expected index:NAME=VALUE"))
                .with_hint("only the index can be annotated: its images stay as they are")
        })?;
        annotations.insert(key.to_owned(), value.to_owned());
    }
    let mut all = Vec::new();
    if args.append {
        let tag = tags.first().ok_or_else(|| {
            BuildError::new("--append: nothing to add to").with_hint("name it with -t")
        })?;
        all.push((tag.clone(), EntryChange::default()));
    }
    all.extend(sources);
    let made = engine.combine(&all, &annotations, &cancel)?;
    if args.dry_run {
        let shown: Value = serde_json::from_slice(&made.bytes)?;
        say(&serde_json::to_string_pretty(&shown)?);
        return Ok(ExitCode::SUCCESS);
    }
    if tags.is_empty() {
        return Err(BuildError::new("an index without a name goes nowhere")
            .with_hint("give it one with -t, or look at it with --dry-run")
            .into());
    }
    for tag in tags {
        let digest = push_list(&engine, made.digest, tag.clone(), &cancel)?;
        say(&format!("{tag}@{digest}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// A source: a name, or what one of the repository that the first tag names is told by.
fn source(text: &str, tags: &[Reference]) -> Result<(Reference, EntryChange)> {
    let (digest, change) = if text.starts_with('{') {
        let entry: Descriptor = serde_json::from_str(text)
            .map_err(|error| BuildError::new(format!("{text}: no descriptor: {error}")))?;
        (entry.digest, EntryChange::of(&entry))
    } else if let Ok(digest) = text.parse() {
        (digest, EntryChange::default())
    } else {
        return Ok((reference(text)?, EntryChange::default()));
    };
    let tag = tags.first().ok_or_else(|| {
        BuildError::new(format!("{digest}: it is not said in which repository"))
            .with_hint("name the repository with -t, or write NAME@DIGEST")
    })?;
    let name = reference(&format!("{}@{digest}", tag.name()))?;
    Ok((name, change))
}

fn push_list(
    engine: &Engine,
    list: Digest,
    name: Reference,
    cancel: &CancelFlag,
) -> Result<Digest> {
    let request = PushRequest {
        image: list,
        name,
        packing: kiln_export::Packing::default(),
        cores: cores(),
    };
    let mode = display::mode(false, "auto")?;
    let display = kiln_progress::display(display::options(mode));
    let pushed = engine.push(&request, &display, cancel);
    // Who closes standard error does not want to see it.
    let _ = display.finish();
    Ok(pushed.inspect_err(|_| engine.worker.end())?.digest)
}

fn push(engine: &Engine, args: &ManifestPushArgs, cancel: &CancelFlag) -> Result<()> {
    let name = reference(&args.list)?;
    let (digest, _) = engine.manifest_list(&name)?;
    let pushed = push_list(engine, digest, name.clone(), cancel)?;
    if args.purge {
        engine.remove_manifest_list(&name)?;
    }
    say(&pushed.to_string());
    Ok(())
}
