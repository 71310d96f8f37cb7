//! `kiln inspect`: what is known of images and containers, in docker's words.

use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Result;
use kiln_engine::{ContainerInfo, Engine};
use kiln_graph::Network;
use kiln_image::{Digest, Reference, RunConfig};
use kiln_store::StoredIndex;
use kiln_template::{Fields, Shape, Value};
use serde_json::{Map, json};

use super::find_target;
use super::images::config;
use super::platforms::{find_image_for, platform};
use crate::context::Place;
use crate::format::{complain, say};
use crate::listing::print_one;
use crate::long_names::InspectArgs;

/// What Go says for a time that never was.
const NEVER: &str = "0001-01-01T00:00:00Z";

pub(super) fn inspect(place: &Place, args: &InspectArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    let mut found = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for name in &args.names {
        match find(&engine, name, args) {
            Ok(value) => found.push(value),
            Err(error) => {
                complain(&format!("ERROR: {error}"));
                code = ExitCode::FAILURE;
            }
        }
    }
    match &args.format {
        None => {
            let all = Value::List(
                found
                    .iter()
                    .map(|value| value.document.clone().into())
                    .collect(),
            );
            say(&pretty(&all)?);
        }
        Some(format) if format == "json" => {
            print_one(
                "json",
                &Value::List(found.into_iter().map(|it| it.document.into()).collect()),
            )?;
        }
        Some(format) => {
            for value in &found {
                print_one(format, &value.fields.clone().into())?;
            }
        }
    }
    Ok(code)
}

/// A thing as a document, and as templates see it.
struct Found {
    document: serde_json::Value,
    fields: Fields,
}

fn find(engine: &Engine, name: &str, args: &InspectArgs) -> Result<Found> {
    let kind = args.kind.as_deref();
    if kind != Some("image") {
        match engine.container(name) {
            Ok(it) => return container(engine, &it, args.size),
            Err(error) if kind == Some("container") => return Err(error.into()),
            Err(_) => {}
        }
    }
    let wanted = args.platform.as_deref().map(|text| platform(Some(text)));
    match find_image_for(&engine.store, name, wanted.transpose()?.as_ref()) {
        Ok(manifest) => image(engine, find_target(&engine.store, name)?, manifest),
        Err(_) if kind.is_none() && args.platform.is_none() => {
            anyhow::bail!("no such object: {name}")
        }
        Err(error) => Err(error),
    }
}

/// JSON with docker's indent of four.
pub(super) fn pretty(value: &Value) -> Result<String> {
    let mut text = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut writer = serde_json::Serializer::with_formatter(&mut text, format);
    serde::Serialize::serialize(&json_of(value), &mut writer)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}

fn json_of(value: &Value) -> serde_json::Value {
    match value {
        Value::Bool(value) => json!(value),
        Value::Int(value) | Value::Duration(value) => json!(value),
        Value::Float(value) => json!(value),
        Value::Text(text) => json!(text),
        Value::List(list) => list.iter().map(json_of).collect(),
        Value::Map(fields) => {
            let shown = fields.list.iter().filter(|field| !field.hidden);
            let map: Map<_, _> = shown
                .map(|field| (field.name.clone(), json_of(&field.value)))
                .collect();
            map.into()
        }
        _ => serde_json::Value::Null,
    }
}

/// The keys that docker always gives in `Config`, with null for what is not there; those of the config besides.
fn config_document(run: &RunConfig) -> Result<serde_json::Value> {
    let mut map = match serde_json::to_value(run)? {
        serde_json::Value::Object(map) => map,
        _ => Map::new(),
    };
    map.retain(|_, value| !value.is_null());
    for (name, usual) in [
        ("Cmd", json!(null)),
        ("Entrypoint", json!(null)),
        ("Env", json!(null)),
        ("Labels", json!(null)),
        ("OnBuild", json!(null)),
        ("User", json!("")),
        ("Volumes", json!(null)),
        ("WorkingDir", json!("")),
    ] {
        map.entry(name).or_insert(usual);
    }
    let mut sorted: Vec<_> = map.into_iter().collect();
    sorted.sort_by(|left, right| left.0.cmp(&right.0));
    Ok(Map::from_iter(sorted).into())
}

/// `Config` as templates see it: all fields are there, what is not set has Go's zero value.
fn config_fields(run: &RunConfig) -> Fields {
    fn list(list: &[String]) -> Value {
        if list.is_empty() {
            return Value::NilList;
        }
        Value::List(list.iter().map(|text| text.as_str().into()).collect())
    }
    fn set<'a>(names: impl IntoIterator<Item = &'a String>) -> Value {
        let mut fields = Fields::new(Shape::Map);
        for name in names {
            fields.add(name, Fields::new(Shape::Struct));
        }
        if fields.list.is_empty() {
            return Value::NilMap;
        }
        fields.into()
    }
    fn put(fields: &mut Fields, name: &str, value: Value) {
        let empty = match &value {
            Value::Text(text) => text.is_empty(),
            Value::Bool(value) => !value,
            Value::Int(value) | Value::Duration(value) => *value == 0,
            Value::Null | Value::NilList | Value::NilMap => true,
            _ => false,
        };
        if empty {
            fields.hide(name, value);
        } else {
            fields.add(name, value);
        }
    }
    let given = |it: &Option<Vec<String>>| it.as_deref().map_or(Value::NilList, list);
    let mut fields = Fields::new(Shape::Struct);
    put(&mut fields, "User", run.user.as_str().into());
    put(&mut fields, "ExposedPorts", set(&run.exposed_ports));
    put(&mut fields, "Env", list(&run.env));
    put(&mut fields, "Entrypoint", given(&run.entrypoint));
    put(&mut fields, "Cmd", given(&run.cmd));
    put(&mut fields, "Volumes", set(&run.volumes));
    put(&mut fields, "WorkingDir", run.working_dir.as_str().into());
    let mut labels = Fields::new(Shape::Map);
    for (name, value) in &run.labels {
        labels.add(name, value.as_str());
    }
    let labels = if run.labels.is_empty() {
        Value::NilMap
    } else {
        labels.into()
    };
    put(&mut fields, "Labels", labels);
    put(&mut fields, "StopSignal", run.stop_signal.as_str().into());
    let timeout = run.stop_timeout.map_or(Value::Null, Value::Int);
    put(&mut fields, "StopTimeout", timeout);
    put(&mut fields, "ArgsEscaped", run.args_escaped.into());
    let health = run.healthcheck.as_ref().map_or(Value::Null, |check| {
        let mut fields = Fields::new(Shape::Struct);
        put(&mut fields, "Test", list(&check.test));
        for (name, value) in [
            ("Interval", Value::Duration(check.interval)),
            ("Timeout", Value::Duration(check.timeout)),
            ("StartPeriod", Value::Duration(check.start_period)),
            ("StartInterval", Value::Duration(check.start_interval)),
            ("Retries", Value::Int(check.retries)),
        ] {
            put(&mut fields, name, value);
        }
        fields.into()
    });
    put(&mut fields, "Healthcheck", health);
    put(&mut fields, "OnBuild", list(&run.on_build));
    put(&mut fields, "Shell", given(&run.shell));
    fields
}

/// A document's fields, with others in place of some of them.
fn fields_of(document: &serde_json::Value, mut instead: Vec<(&str, Value)>) -> Fields {
    let mut fields = Fields::new(Shape::Struct);
    for (name, value) in document.as_object().into_iter().flatten() {
        let value = match instead.iter().position(|(known, _)| known == name) {
            Some(at) => instead.swap_remove(at).1,
            None => structs(value.clone()),
        };
        fields.add(name, value);
    }
    fields
}

/// Objects are structures in Go's eyes, but for those that hold names.
pub(super) fn structs(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Object(map) => {
            let mut fields = Fields::new(Shape::Struct);
            for (name, value) in map {
                let value = match name.as_str() {
                    "Labels" | "Ports" | "PortBindings" | "Networks" | "Data" => value.into(),
                    _ => structs(value),
                };
                fields.add(&name, value);
            }
            fields.into()
        }
        serde_json::Value::Array(list) => Value::List(list.into_iter().map(structs).collect()),
        other => other.into(),
    }
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

/// An image, which may be the one of `target` for this machine.
fn image(engine: &Engine, target: Digest, manifest: Digest) -> Result<Found> {
    let store = &engine.store;
    let (info, config) = config(store, manifest)?;
    let mut tags: Vec<_> = store
        .tags()?
        .into_iter()
        .filter(|tag| tag.target == target)
        .collect();
    tags.sort_by_cached_key(|tag| tag.name.familiar());
    let tagged = tags.iter().map(|tag| tag.updated).max();
    let digests = store.repo_digests(manifest)?;
    let comment = config
        .history
        .last()
        .map_or("", |entry| entry.comment.as_str());
    let mut document = json!({
        "Id": info.config,
        "RepoTags": tags.iter().map(|tag| tag.name.familiar()).collect::<Vec<_>>(),
        "RepoDigests": digests.iter().map(Reference::familiar).collect::<Vec<_>>(),
        "Parent": "",
        "Comment": comment,
        "Created": config.created,
        "DockerVersion": "",
        "Author": config.author,
        "Architecture": config.architecture,
    });
    if let Some(map) = document.as_object_mut() {
        if !config.variant.is_empty() {
            map.insert("Variant".to_owned(), json!(config.variant));
        }
        map.insert("Os".to_owned(), json!(config.os));
        map.insert("Size".to_owned(), json!(info.size));
        map.insert(
            "GraphDriver".to_owned(),
            json!({ "Data": null, "Name": "kiln" }),
        );
        let layers = &config.rootfs.diff_ids;
        map.insert(
            "RootFS".to_owned(),
            json!({ "Type": "layers", "Layers": layers }),
        );
        let tagged = tagged.map_or_else(|| NEVER.to_owned(), timestamp);
        map.insert("Metadata".to_owned(), json!({ "LastTagTime": tagged }));
        map.insert("Config".to_owned(), config_document(&config.config)?);
    }
    if let Some(index) = store.index(target)? {
        document["Id"] = json!(target);
        document["Manifests"] = json!(manifests(&index));
    }
    let mut fields = fields_of(
        &document,
        vec![("Config", config_fields(&config.config).into())],
    );
    fields.hide("Variant", config.variant.as_str());
    Ok(Found { document, fields })
}

fn timestamp(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .unwrap_or_default()
        .to_string()
}

fn container(engine: &Engine, it: &ContainerInfo, with_size: bool) -> Result<Found> {
    let image = match it.manifest {
        Some(manifest) => engine.store.image(manifest)?.map(|image| image.info.config),
        None => None,
    };
    let ended = it.ended.map(|(code, at)| (code, timestamp(at)));
    let never = || NEVER.to_owned();
    let (path, args) = it
        .args
        .split_first()
        .map_or(("", &[][..]), |(path, args)| (path, args));
    let network = match it.process.network {
        Network::None => "none",
        _ => "host",
    };
    let run = &it.config;
    let mut document = json!({
        "Id": it.id,
        "Created": timestamp(it.created),
        "Path": path,
        "Args": args,
        "State": {
            "Status": super::containers::state(it),
            "Running": it.running,
            "Paused": false,
            "Restarting": false,
            "OOMKilled": false,
            "Dead": false,
            "Pid": 0,
            "ExitCode": it.ended.map_or(0, |(code, _)| code),
            "Error": "",
            "StartedAt": ended.as_ref().map_or_else(never, |(_, at)| at.clone()),
            "FinishedAt": ended.map_or_else(never, |(_, at)| at),
        },
        "Image": image.map(|id| id.to_string()).unwrap_or_default(),
        "Name": format!("/{}", it.name),
        "RestartCount": 0,
        "Driver": "kiln",
        "Platform": "linux",
        "HostConfig": {
            "NetworkMode": network,
            "AutoRemove": false,
            "Privileged": it.process.insecure,
            "ReadonlyRootfs": it.process.read_only_root,
            "ShmSize": it.process.shm_size,
        },
        "Mounts": [],
        "Config": config_document(run)?,
        "NetworkSettings": { "Ports": {}, "IPAddress": "", "Networks": { network: {} } },
    });
    if let Some(map) = document["Config"].as_object_mut() {
        for (name, value) in [
            ("Hostname", json!(it.process.hostname)),
            ("Image", json!(it.image)),
            ("Tty", json!(it.terminal)),
            ("OpenStdin", json!(it.interactive)),
        ] {
            map.insert(name.to_owned(), value);
        }
    }
    if with_size && let Some(map) = document.as_object_mut() {
        let (own, all) = super::containers::sizes(engine, it)?;
        map.insert("SizeRw".to_owned(), json!(own));
        map.insert("SizeRootFs".to_owned(), json!(all));
    }
    let mut inner = config_fields(run);
    inner.add("Hostname", it.process.hostname.as_str());
    inner.add("Image", it.image.as_str());
    inner.add("Tty", it.terminal);
    inner.add("OpenStdin", it.interactive);
    let fields = fields_of(&document, vec![("Config", inner.into())]);
    Ok(Found { document, fields })
}
