//! A file system archive becomes an image of one layer.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsFd;

use kiln_image::config::History;
use kiln_image::{ImageConfig, LayerId, Platform, RunConfig};
use kiln_store::{Lease, Store};
use kiln_worker::{TarInput, UnpackJob, Worker};

use crate::load::{keep, seal};
use crate::{Committed, ExportError, commit};

/// What is said of an archive that becomes an image.
#[derive(Debug)]
pub struct Import<'a> {
    /// Instructions as docker's `import -c` takes them: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME,
    /// WORKDIR.
    pub changes: &'a [String],
    /// What it is.
    pub message: Option<&'a str>,
    /// For which machines.
    pub platform: &'a Platform,
}

/// Makes an image of the tar in `file` (compressed or not), from its current position to its end.
///
/// # Errors
/// When the archive or a change is wrong, or the store or the worker fails.
pub fn import(
    store: &Store,
    worker: &Worker,
    lease: &Lease,
    file: &File,
    path: &str,
    import: &Import<'_>,
) -> Result<Committed, ExportError> {
    let mut config = ImageConfig::scratch(import.platform);
    change(&mut config, import.changes)?;
    let spool;
    let file = if file.metadata().is_ok_and(|meta| meta.is_file()) {
        file
    } else {
        // Read twice when the tar must be kept, so a pipe goes through a file.
        spool = crate::blobs::spool(store, file, path)?;
        &spool
    };
    let len = file.metadata().map_err(ExportError::io(path))?.len();
    let into = store.begin_layer(lease)?;
    let input = TarInput::Range { offset: 0, len };
    let unpacked = worker
        .unpack(UnpackJob { into, input }, &[file.as_fd()])
        .map_err(ExportError::unpack(path))?;
    let layer: LayerId = seal(store, &unpacked)?;
    if !unpacked.reproducible {
        keep(store, file, 0, len, unpacked.diff_id, path)?;
    }
    config.history.push(History {
        // As docker writes it of files: where they were is nobody's business who gets the image.
        comment: import.message.unwrap_or("Imported from -").to_owned(),
        ..History::default()
    });
    commit(store, worker, &[layer], 1, config, None, &BTreeMap::new())
}

/// What a container changed, as an image.
#[derive(Debug)]
pub struct Changed<'a> {
    /// The config of the container's image.
    pub image: ImageConfig,
    /// How the container was started.
    pub run: RunConfig,
    /// The layers of the image, then those that the container made.
    pub layers: &'a [LayerId],
    /// How many of them the container made.
    pub own: usize,
    /// Instructions for the image's config.
    pub changes: &'a [String],
    /// Who made it.
    pub author: Option<&'a str>,
    /// What was changed.
    pub message: Option<&'a str>,
}

/// Makes an image of a container.
///
/// # Errors
/// When an instruction cannot be followed, or the store fails.
pub fn commit_container(
    store: &Store,
    worker: &Worker,
    changed: Changed<'_>,
) -> Result<Committed, ExportError> {
    let mut config = changed.image;
    let command: Vec<String> = [&changed.run.entrypoint, &changed.run.cmd]
        .into_iter()
        .flat_map(|words| words.iter().flatten().cloned())
        .collect();
    config.config = changed.run;
    change(&mut config, changed.changes)?;
    if let Some(author) = changed.author {
        author.clone_into(&mut config.author);
    }
    // A container that changed nothing still makes an image of its own.
    for at in 0..changed.own.max(1) {
        let last = at + 1 >= changed.own;
        config.history.push(History {
            created_by: command.join(" "),
            comment: changed
                .message
                .filter(|_| last)
                .unwrap_or_default()
                .to_owned(),
            author: changed.author.unwrap_or_default().to_owned(),
            empty_layer: changed.own == 0,
            ..History::default()
        });
    }
    config.created = None;
    let none = BTreeMap::new();
    commit(
        store,
        worker,
        changed.layers,
        changed.own,
        config,
        None,
        &none,
    )
}

fn change(config: &mut ImageConfig, changes: &[String]) -> Result<(), ExportError> {
    for change in changes {
        apply(config, change).map_err(|what| ExportError::Change {
            change: change.clone(),
            what,
        })?;
    }
    Ok(())
}

/// One instruction on a config.
fn apply(config: &mut ImageConfig, change: &str) -> Result<(), String> {
    let (word, rest) = change
        .trim()
        .split_once(char::is_whitespace)
        .ok_or("expected an instruction and a value")?;
    let rest = rest.trim();
    let list = || -> Result<Vec<String>, String> {
        if rest.starts_with('[') {
            serde_json::from_str(rest)
                .map_err(|error| format!("not a JSON list of strings: {error}"))
        } else {
            Ok(vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.to_owned()])
        }
    };
    let words = || -> Result<Vec<String>, String> {
        if rest.starts_with('[') {
            serde_json::from_str(rest)
                .map_err(|error| format!("not a JSON list of strings: {error}"))
        } else {
            Ok(rest.split_whitespace().map(str::to_owned).collect())
        }
    };
    let pair = || -> Result<(String, String), String> {
        let (name, value) = rest
            .split_once('=')
            .or_else(|| rest.split_once(char::is_whitespace))
            .ok_or("expected NAME=VALUE")?;
        let value = value.trim();
        let bare = value
            .strip_prefix('"')
            .and_then(|inner| inner.strip_suffix('"'))
            .unwrap_or(value);
        Ok((name.to_owned(), bare.to_owned()))
    };
    let run = &mut config.config;
    match word.to_ascii_uppercase().as_str() {
        "CMD" => run.cmd = Some(list()?),
        "ENTRYPOINT" => run.entrypoint = Some(list()?),
        "ENV" => {
            let (name, value) = pair()?;
            run.env
                .retain(|known| known.split_once('=').is_none_or(|(known, _)| known != name));
            run.env.push(format!("{name}={value}"));
        }
        "LABEL" => {
            let (name, value) = pair()?;
            run.labels.insert(name, value);
        }
        "EXPOSE" => run.exposed_ports.extend(words()?.into_iter().map(|port| {
            if port.contains('/') {
                port
            } else {
                format!("{port}/tcp")
            }
        })),
        "VOLUME" => run.volumes.extend(words()?),
        "WORKDIR" => rest.clone_into(&mut run.working_dir),
        "USER" => rest.clone_into(&mut run.user),
        "STOPSIGNAL" => rest.clone_into(&mut run.stop_signal),
        _ => {
            let known = "CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME or WORKDIR";
            return Err(format!("unknown instruction {word}, expected {known}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_made_as_docker_makes_them() {
        let mut config = ImageConfig::default();
        for change in [
            r#"CMD ["sh"]"#,
            "ENV PATH=/bin",
            "env PATH=/usr/bin",
            "ENV A b c",
            "EXPOSE 80 53/udp",
            "LABEL x=\"y z\"",
            "WORKDIR /srv",
            "USER app",
            "ENTRYPOINT exec top",
        ] {
            apply(&mut config, change).unwrap();
        }
        let run = &config.config;
        assert_eq!(run.cmd, Some(vec!["sh".to_owned()]));
        assert_eq!(run.env, ["PATH=/usr/bin", "A=b c"]);
        assert_eq!(
            run.exposed_ports.iter().collect::<Vec<_>>(),
            ["53/udp", "80/tcp"]
        );
        assert_eq!(run.labels["x"], "y z");
        assert_eq!(
            (run.working_dir.as_str(), run.user.as_str()),
            ("/srv", "app")
        );
        assert_eq!(run.entrypoint.as_ref().unwrap()[2], "exec top");
        for wrong in ["", "CMD", "RUN x", "ENV X", "CMD [1]"] {
            assert!(apply(&mut config, wrong).is_err(), "{wrong}");
        }
    }
}
