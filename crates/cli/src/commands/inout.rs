//! `kiln import`, `kiln load`, `kiln save`: images in and out as archives.

use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use kiln_engine::{BuildError, To};
use kiln_export::{Changed, Format, Import, Packing, Unwatched};
use kiln_image::{Digest, Reference};

use super::platforms::{find_image_for, find_target, platform, platforms};
use super::reference;
use crate::args::{ImportArgs, LoadArgs, SaveArgs};
use crate::container_args::CommitArgs;
use crate::context::{Place, cores};
use crate::format::say;

fn standard_input() -> Result<File> {
    Ok(File::from(std::io::stdin().as_fd().try_clone_to_owned()?))
}

pub(super) fn import(place: &Place, args: &ImportArgs) -> Result<ExitCode> {
    let name = args.name.as_deref().map(reference).transpose()?;
    let platform = platform(args.platform.as_deref())?;
    let file = if args.file == "-" {
        standard_input()?
    } else {
        File::open(&args.file).context(args.file.clone())?
    };
    let engine = place.engine()?;
    engine.allow()?;
    let lease = engine.store.lease()?;
    let (store, worker) = (&engine.store, &engine.worker);
    let image = kiln_export::import(
        store,
        worker,
        &lease,
        &file,
        &args.file,
        &Import {
            changes: &args.change,
            message: args.message.as_deref(),
            platform: &platform,
        },
    )?;
    if let Some(name) = &name {
        store.tag(name, image.manifest)?;
    }
    say(&image.config.to_string());
    crate::worker::settle_later(place);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn commit(place: &Place, args: &CommitArgs) -> Result<ExitCode> {
    let name = args.name.as_deref().map(reference).transpose()?;
    let engine = place.engine()?;
    engine.allow()?;
    let lease = engine.store.lease()?;
    let container = engine.container(&args.container)?;
    if container.running {
        let text = format!("container {:?} runs", container.name);
        return Err(BuildError::new(text)
            .with_hint("what it changes is there when it has ended: kiln stop ends it")
            .into());
    }
    let manifest = container.manifest.context("its image is not known")?;
    let (_, image) = super::images::config(&engine.store, manifest)?;
    let layers = [&container.image_layers[..], &container.own_layers[..]].concat();
    engine.store.protect(&lease, &layers)?;
    let image = kiln_export::commit_container(
        &engine.store,
        &engine.worker,
        Changed {
            image,
            run: container.config,
            layers: &layers,
            own: container.own_layers.len(),
            changes: &args.change,
            author: args.author.as_deref(),
            message: args.message.as_deref(),
        },
    )?;
    if let Some(name) = &name {
        engine.store.tag(name, image.manifest)?;
    }
    say(&image.config.to_string());
    crate::worker::settle_later(place);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn load(place: &Place, args: &LoadArgs) -> Result<ExitCode> {
    let (file, path) = if let Some(path) = &args.input {
        (
            File::open(path).with_context(|| path.display().to_string())?,
            path.display().to_string(),
        )
    } else {
        if std::io::stdin().is_terminal() {
            return Err(BuildError::new("standard input is a terminal")
                .with_hint("give the archive with -i FILE, or through a pipe")
                .into());
        }
        (standard_input()?, "standard input".to_owned())
    };
    let engine = place.engine()?;
    engine.allow()?;
    let lease = engine.store.lease()?;
    let loaded = kiln_export::load(
        &engine.store,
        &engine.worker,
        &lease,
        &file,
        &path,
        &platforms(&args.platforms)?,
    )?;
    for image in loaded {
        for name in &image.names {
            say(&format!("Loaded image: {}", name.familiar()));
        }
        if image.names.is_empty() {
            say(&format!("Loaded image ID: {}", image.image.config));
        }
    }
    crate::worker::settle_later(place);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn save(place: &Place, args: &SaveArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    let mut images: Vec<(Digest, Vec<Reference>)> = Vec::new();
    let wanted = platforms(&args.platforms)?;
    for text in &args.images {
        let target = find_target(&engine.store, text)?;
        let name = text.parse::<Reference>().ok().filter(|name| {
            name.digest().is_none()
                && matches!(engine.store.resolve(name), Ok(Some(found)) if found == target)
        });
        let digest = match &wanted[..] {
            [] => target,
            [one] => find_image_for(&engine.store, text, Some(one))?,
            several => {
                let find = |platform| find_image_for(&engine.store, text, Some(platform));
                let found: Vec<Digest> = several.iter().map(find).collect::<Result<_>>()?;
                kiln_export::part_of_index(&engine.store, target, &found)?
            }
        };
        match images.iter_mut().find(|(known, _)| *known == digest) {
            Some((_, names)) => names.extend(name),
            None => images.push((digest, name.into_iter().collect())),
        }
    }
    let format = if args.format == "oci" {
        Format::Oci
    } else {
        Format::Docker
    };
    let to = destination(args.output.as_deref())?;
    let packing = Packing::plain();
    engine.save(&images, format, &packing, &to, cores(), &Unwatched)?;
    Ok(ExitCode::SUCCESS)
}

/// A file, or standard output unless that is a terminal.
fn destination(path: Option<&Path>) -> Result<To> {
    if let Some(path) = path.filter(|path| path.as_os_str() != "-") {
        return Ok(To::File(path.to_owned()));
    }
    let out = std::io::stdout();
    if out.is_terminal() {
        return Err(BuildError::new("standard output is a terminal")
            .with_hint("give a file with -o FILE, or redirect")
            .into());
    }
    Ok(To::Stream(Arc::new(File::from(
        out.as_fd().try_clone_to_owned()?,
    ))))
}

pub(super) fn export(place: &Place, container: &str, output: Option<&Path>) -> Result<ExitCode> {
    let to = destination(output)?;
    let engine = place.engine()?;
    engine.export_container(&engine.container(container)?, &to)?;
    Ok(ExitCode::SUCCESS)
}
