//! `kiln cache`: cache mounts, listed, removed, carried to another machine.

use std::fs::File;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use kiln_engine::{BuildError, CancelFlag, Engine};
use kiln_image::compress::{Compression, Encoder};
use kiln_store::CacheMount;
use serde_json::json;

use crate::context::Place;
use crate::format::{ago, complain, say, size, table};
use crate::storage_args::CacheCommand;

pub(super) fn cache(place: &Place, command: CacheCommand) -> Result<ExitCode> {
    let engine = place.engine()?;
    match command {
        CacheCommand::Ls { quiet, format } => list(&engine, quiet, format.is_some())?,
        CacheCommand::Rm { caches, all: _ } => {
            let cancel = crate::signals::give_up_on_signal()?;
            for mount in engine.find_caches(&caches)? {
                engine.remove_cache(&mount, &cancel, &|text| complain(&text))?;
                say(&mount.folder);
            }
        }
        CacheCommand::Export { output, caches } => {
            let cancel = crate::signals::give_up_on_signal()?;
            let mounts = engine.find_caches(&caches)?;
            export(&engine, &mounts, output.as_deref(), &cancel)?;
        }
        CacheCommand::Import { input, file } => {
            let cancel = crate::signals::give_up_on_signal()?;
            let file = match input.or(file).filter(|path| path != Path::new("-")) {
                Some(path) => File::open(&path).with_context(|| path.display().to_string())?,
                None if io::stdin().is_terminal() => {
                    return Err(BuildError::new("standard input is a terminal")
                        .with_hint("give the archive as an argument, or through a pipe")
                        .into());
                }
                None => File::from(io::stdin().as_fd().try_clone_to_owned()?),
            };
            for id in engine.import_caches(file.as_fd(), &cancel, &|text| complain(&text))? {
                say(&format!("Imported: {id}"));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(engine: &Engine, quiet: bool, as_json: bool) -> Result<()> {
    let caches = engine.caches()?;
    if as_json {
        for cache in &caches {
            let time = |time| jiff::Timestamp::try_from(time).map(|time| time.to_string());
            let line = json!({
                "ID": cache.id,
                "Folder": cache.folder,
                "Size": cache.space,
                "Sharing": cache.sharing,
                "Owner": format!("{}:{}", cache.owner.0, cache.owner.1),
                "Mode": format!("{:04o}", cache.mode),
                "Created": time(cache.created)?,
                "LastUsed": time(cache.used)?,
                "InUse": cache.in_use,
            });
            say(&line.to_string());
        }
    } else if quiet {
        for cache in &caches {
            say(&cache.folder);
        }
    } else {
        let rows: Vec<_> = caches
            .iter()
            .map(|cache| {
                let used = if cache.in_use {
                    "in use".to_owned()
                } else {
                    ago(cache.used)
                };
                let sharing = if cache.sharing.is_empty() {
                    "-".to_owned()
                } else {
                    cache.sharing.clone()
                };
                vec![
                    cache.id.clone(),
                    size(cache.space),
                    used,
                    sharing,
                    format!("{}:{}", cache.owner.0, cache.owner.1),
                    cache.folder.clone(),
                ]
            })
            .collect();
        table(
            &["ID", "SIZE", "LAST USED", "SHARING", "OWNER", "FOLDER"],
            &rows,
        );
    }
    Ok(())
}

fn export(
    engine: &Engine,
    mounts: &[CacheMount],
    output: Option<&Path>,
    cancel: &CancelFlag,
) -> Result<()> {
    let Some(path) = output.filter(|path| *path != Path::new("-")) else {
        let out = io::stdout();
        if out.is_terminal() {
            return Err(BuildError::new("standard output is a terminal")
                .with_hint("give a file with -o FILE, or redirect")
                .into());
        }
        return Ok(engine.export_caches(mounts, out.as_fd(), cancel, &|text| complain(&text))?);
    };
    // Under another name until it is whole, so that nothing is lost when it fails.
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let partial = PathBuf::from(partial);
    let written = write(engine, mounts, &partial, compression(path), cancel)
        .and_then(|()| std::fs::rename(&partial, path).with_context(|| path.display().to_string()));
    if written.is_err() {
        // What is half written helps nobody.
        let _ = std::fs::remove_file(&partial);
    }
    written
}

fn write(
    engine: &Engine,
    mounts: &[CacheMount],
    path: &Path,
    compression: Compression,
    cancel: &CancelFlag,
) -> Result<()> {
    let named = || path.display().to_string();
    let file = File::create(path).with_context(named)?;
    let wait = |text: String| complain(&text);
    if compression == Compression::None {
        return Ok(engine.export_caches(mounts, file.as_fd(), cancel, &wait)?);
    }
    let (mut tar, to) = io::pipe()?;
    std::thread::scope(|scope| {
        let compressed = scope.spawn(move || -> io::Result<()> {
            let out = io::BufWriter::new(file);
            let (level, threads) = (compression.default_level(), crate::context::cores());
            let mut encoder = Encoder::new(compression, level, threads, out)?;
            io::copy(&mut tar, &mut encoder)?;
            encoder.finish()?.flush()
        });
        let exported = engine.export_caches(mounts, to.as_fd(), cancel, &wait);
        // Our own end must close before the reader can see the end.
        drop(to);
        let compressed = compressed.join().expect("compressing does not panic");
        exported?;
        compressed.with_context(named)
    })
}

/// What the name of an archive says.
fn compression(path: &Path) -> Compression {
    match path.extension().and_then(|end| end.to_str()) {
        Some("zst" | "zstd" | "tzst") => Compression::Zstd,
        Some("gz" | "tgz") => Compression::Gzip,
        _ => Compression::None,
    }
}
