//! `kiln cp`: files out of containers and into them.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use kiln_engine::{BuildError, ContainerInfo, CopiedFrom, Engine, FoundKind};
use kiln_image::LayerPath;
use kiln_image::tar::{EntryKind, Header, Reader, Writer};
use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, linkat, mkdirat, openat, symlinkat, unlinkat,
    utimensat,
};
use rustix::io::Errno;

use crate::container_args::CpArgs;
use crate::context::Place;
use crate::format::complain;

pub(super) fn cp(place: &Place, args: &CpArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    match (in_container(&args.source), in_container(&args.target)) {
        (Some((name, path)), None) => out(&engine, &engine.container(name)?, path, args)?,
        (None, Some((name, path))) => into(&engine, &engine.container(name)?, path, args)?,
        (Some(_), Some(_)) => {
            return Err(BuildError::new("copying between containers is not supported").into());
        }
        (None, None) => {
            return Err(
                BuildError::new("must specify at least one container source")
                    .with_hint("write CONTAINER:PATH for one of the two")
                    .into(),
            );
        }
    }
    engine.sweep()?;
    crate::worker::settle_later(place);
    Ok(ExitCode::SUCCESS)
}

/// `CONTAINER:PATH`; a path of this machine that has a colon begins with `/` or `.`.
fn in_container(text: &str) -> Option<(&str, &str)> {
    if text.starts_with(['/', '.']) {
        return None;
    }
    text.split_once(':')
}

/// Only what is in the folder is meant.
fn means_contents(path: &str) -> bool {
    path == "." || path.ends_with("/.")
}

fn not_there(container: &ContainerInfo, path: &str) -> BuildError {
    BuildError::new(format!(
        "could not find the file {path} in container {}",
        container.name
    ))
}

/// What a pipe's other end does goes on beside.
fn through_pipe<T>(
    produce: impl FnOnce(io::PipeWriter) -> Result<()> + Send,
    consume: impl FnOnce(io::PipeReader) -> Result<T>,
) -> Result<T> {
    let (from, to) = io::pipe()?;
    std::thread::scope(|scope| {
        let producer = scope.spawn(move || produce(to));
        let consumed = consume(from);
        let produced = producer
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // When the reader gives up the writer's pipe breaks, which is not the cause.
        let consumed = consumed?;
        produced.map(|()| consumed)
    })
}

fn out(engine: &Engine, container: &ContainerInfo, path: &str, args: &CpArgs) -> Result<()> {
    let follow = args.follow_link || path.ends_with('/') || means_contents(path);
    let (found, kind) = engine
        .look(container, path, follow)?
        .ok_or_else(|| not_there(container, path))?;
    if args.target == "-" {
        let stdout = io::stdout();
        return Ok(engine.copy_out(container, &found, means_contents(path), stdout.as_fd())?);
    }
    let target = Path::new(&args.target);
    let (is_folder, exists) = (target.is_dir(), target.symlink_metadata().is_ok());
    let folder = kind == FoundKind::Folder;
    if folder && exists && !is_folder {
        return Err(
            BuildError::new(format!("cannot copy a folder to the file {}", args.target)).into(),
        );
    }
    let mut contents = means_contents(path);
    let mut name = None;
    let mut to = target.to_owned();
    if !is_folder {
        if folder {
            fs::create_dir(target).with_context(|| args.target.clone())?;
            contents = true;
        } else {
            if args.target.ends_with('/') {
                return Err(BuildError::new(format!(
                    "destination folder {} is not there",
                    args.target
                ))
                .into());
            }
            name = target.file_name().map(|name| name.as_bytes().to_vec());
            let parent = target
                .parent()
                .filter(|parent| !parent.as_os_str().is_empty());
            to = parent.map_or_else(|| PathBuf::from("."), Path::to_owned);
        }
    }
    through_pipe(
        |to| Ok(engine.copy_out(container, &found, contents, to.as_fd())?),
        |from| {
            extract(from, &to, name.as_deref())
                .with_context(|| format!("cannot write to {}", to.display()))
        },
    )
}

/// Unpacks a tar of files that somebody else made: nothing leaves the folder, whatever links there are in it.
fn extract(from: impl Read, to: &Path, name: Option<&[u8]>) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, to, flags, Mode::empty())?;
    let renamed = |path: &[u8]| match name {
        Some(name) => LayerPath::root().child(name),
        None => LayerPath::clean(path),
    };
    let mut reader = Reader::new(BufReader::with_capacity(1 << 18, from));
    let mut folders = Vec::new();
    while let Some(mut entry) = reader.next_entry()? {
        let header = entry.header.clone();
        let path = renamed(&header.path);
        if path.is_root() {
            continue;
        }
        let above = folder_in(&root, &path.parent().unwrap_or_default())?;
        let own = std::ffi::OsStr::from_bytes(path.name());
        let mode = Mode::from_raw_mode(header.mode & 0o1777);
        if header.kind != EntryKind::Dir {
            match unlinkat(&above, own, AtFlags::empty()) {
                Err(error) if error != Errno::NOENT => return Err(error).context(path.to_string()),
                _ => {}
            }
        }
        match header.kind {
            EntryKind::Dir => {
                match mkdirat(&above, own, Mode::RWXU) {
                    Err(Errno::EXIST) => {}
                    other => other.context(path.to_string())?,
                }
                folders.push((path, mode, header.mtime));
                continue;
            }
            EntryKind::File => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let mut file = File::from(openat(&above, own, flags, Mode::RUSR | Mode::WUSR)?);
                io::copy(&mut entry.content, &mut file)?;
                rustix::fs::fchmod(&file, mode)?;
            }
            EntryKind::Symlink => {
                symlinkat(std::ffi::OsStr::from_bytes(&header.link), &above, own)?;
            }
            EntryKind::HardLink => {
                let first = renamed(&header.link);
                let folder = folder_in(&root, &first.parent().unwrap_or_default())?;
                let first = std::ffi::OsStr::from_bytes(first.name());
                linkat(&folder, first, &above, own, AtFlags::empty())?;
            }
            EntryKind::Fifo => rustix::fs::mkfifoat(&above, own, mode)?,
            _ => {
                complain(&format!("note: {path} is a device and was left out"));
                continue;
            }
        }
        utimensat(&above, own, &times(header.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    // Last, since files in them change their times, and some may not be written to.
    for (path, mode, mtime) in folders.into_iter().rev() {
        let folder = folder_in(&root, &path)?;
        rustix::fs::fchmod(&folder, mode)?;
        rustix::fs::futimens(&folder, &times(mtime))?;
    }
    Ok(())
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

/// Opens a folder below another one without following a link.
fn folder_in(root: &OwnedFd, path: &LayerPath) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = root.try_clone()?;
    for name in path.components() {
        let name = std::ffi::OsStr::from_bytes(name);
        at = match openat(&at, name, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                mkdirat(&at, name, Mode::from_raw_mode(0o755))?;
                openat(&at, name, flags, Mode::empty())
            }
            other => other,
        }
        .with_context(|| path.to_string())?;
    }
    Ok(at)
}

fn into(engine: &Engine, container: &ContainerInfo, path: &str, args: &CpArgs) -> Result<()> {
    let found = engine.look(container, path, true)?;
    if args.source == "-" {
        return match found {
            Some((folder, FoundKind::Folder)) => {
                let stdin = io::stdin();
                Ok(engine.copy_in(container, &folder, CopiedFrom::Archive, stdin.as_fd())?)
            }
            Some(_) => Err(BuildError::new(format!(
                "{path} is no folder in container {}",
                container.name
            ))
            .with_hint("a tar is unpacked into a folder")
            .into()),
            None => Err(not_there(container, path).into()),
        };
    }
    let source = Path::new(&args.source);
    let stat = if args.follow_link || args.source.ends_with('/') || means_contents(&args.source) {
        fs::metadata(source)
    } else {
        fs::symlink_metadata(source)
    };
    let stat = stat.with_context(|| args.source.clone())?;
    let own_name = || {
        let full = fs::canonicalize(source)?;
        let name = source.file_name().or_else(|| full.file_name());
        Ok::<_, io::Error>(
            name.map(|name| name.as_bytes().to_vec())
                .unwrap_or_default(),
        )
    };
    // The folder that it goes into, and the name that it has there; no name: what is in it.
    let (folder, name) = match found {
        Some((folder, FoundKind::Folder)) if stat.is_dir() && means_contents(&args.source) => {
            (folder, Vec::new())
        }
        Some((folder, FoundKind::Folder)) => (folder, own_name()?),
        Some(_) if stat.is_dir() => {
            return Err(BuildError::new(format!("cannot copy a folder to the file {path}")).into());
        }
        Some((file, _)) => (file.parent().unwrap_or_default(), file.name().to_vec()),
        None => {
            if path.ends_with('/') && !stat.is_dir() {
                return Err(not_there(container, path).into());
            }
            let (above, name) = path
                .trim_end_matches('/')
                .rsplit_once('/')
                .unwrap_or(("", path));
            let above = if above.is_empty() { "/" } else { above };
            match engine.look(container, above, true)? {
                Some((folder, FoundKind::Folder)) => (folder, name.as_bytes().to_vec()),
                _ => return Err(not_there(container, above).into()),
            }
        }
    };
    let from = if args.archive {
        CopiedFrom::Archive
    } else {
        CopiedFrom::Machine
    };
    let follow = args.follow_link;
    through_pipe(
        |to| {
            archive(source, &name, follow, to)
                .with_context(|| format!("cannot read {}", source.display()))
        },
        |tar| Ok(engine.copy_in(container, &folder, from, tar.as_fd())?),
    )
}

/// Writes a tar of a file or a tree under another name; of what is in a folder when there is none.
fn archive(source: &Path, name: &[u8], follow: bool, to: io::PipeWriter) -> Result<()> {
    let mut tar = Writer::new(BufWriter::with_capacity(1 << 18, to));
    // What is still to be written, last first.
    let mut todo = vec![(source.to_owned(), name.to_vec())];
    let mut first = true;
    while let Some((path, name)) = todo.pop() {
        let follow = first && (follow || name.is_empty());
        first = false;
        let stat = if follow {
            fs::metadata(&path)
        } else {
            fs::symlink_metadata(&path)
        }?;
        let mut header = Header {
            path: name.clone(),
            mode: stat.mode() & 0o7777,
            uid: stat.uid().into(),
            gid: stat.gid().into(),
            mtime: (stat.mtime(), stat.mtime_nsec() as u32),
            ..Header::default()
        };
        let kind = stat.file_type();
        if kind.is_dir() {
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                let own = entry.file_name();
                let below = if name.is_empty() {
                    own.as_bytes().to_vec()
                } else {
                    [&name, b"/".as_slice(), own.as_bytes()].concat()
                };
                todo.push((entry.path(), below));
            }
            header.kind = EntryKind::Dir;
            if !name.is_empty() {
                header.path.push(b'/');
                tar.append(&header, &mut io::empty())?;
            }
        } else if kind.is_file() {
            let mut file = open_file(&path, follow)?;
            header.size = file.metadata()?.len();
            tar.append(&header, &mut file)?;
        } else if kind.is_symlink() {
            header.kind = EntryKind::Symlink;
            header.link = fs::read_link(&path)?.as_os_str().as_bytes().to_vec();
            tar.append(&header, &mut io::empty())?;
        } else if kind.is_fifo() {
            header.kind = EntryKind::Fifo;
            tar.append(&header, &mut io::empty())?;
        } else {
            complain(&format!(
                "note: {} is a device or a socket and was left out",
                path.display()
            ));
        }
    }
    tar.finish()?.0.flush()?;
    Ok(())
}

/// Opens what was found to be a file: by now it may be something else.
fn open_file(path: &Path, follow: bool) -> Result<File> {
    let mut flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    if !follow {
        flags |= OFlags::NOFOLLOW;
    }
    let file = File::from(openat(CWD, path, flags, Mode::empty())?);
    anyhow::ensure!(
        file.metadata()?.is_file(),
        "{} changed while it was copied",
        path.display()
    );
    Ok(file)
}
