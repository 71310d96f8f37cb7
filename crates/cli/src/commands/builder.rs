//! `kiln buildx ls`, `inspect` and `imagetools inspect`.

use std::io::{self, Read as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use kiln_engine::BuildError;
use kiln_image::{Document, Manifest, Reference, parse_manifest};
use kiln_registry::{Client, Observer, Resolved};
use kiln_template::{Fields, Shape, Value};
use serde_json::json;

use super::reference;
use crate::context::{Place, registry_client};
use crate::docker_flags::note;
use crate::format::{complain, say, say_all};
use crate::listing::{Listing, print_one};
use crate::long_names::{
    BuilderCreateArgs, BuilderInspectArgs, BuilderLsArgs, BuilderNamesArgs, ImagetoolsInspectArgs,
};

/// No config is larger.
const MOST_CONFIG: u64 = 16 << 20;
/// Fields whose keys are not names.
const MAPS: [&str; 4] = ["annotations", "Labels", "ExposedPorts", "Volumes"];

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What `kiln buildx ls` shows.
const BUILDERS: Listing = Listing {
    heads: &[
        ("Name", "NAME/NODE"),
        ("DriverEndpoint", "DRIVER/ENDPOINT"),
        ("Status", "STATUS"),
        ("Buildkit", "BUILDKIT"),
        ("Platforms", "PLATFORMS"),
        ("Driver", "DRIVER"),
    ],
    usual: &["Name", "DriverEndpoint", "Status", "Buildkit", "Platforms"],
};

pub(super) fn ls(args: &BuilderLsArgs) -> Result<ExitCode> {
    let platform = kiln_image::Platform::host().to_string();
    let row = |name: &str, endpoint: &str, status: &str, version: &str, platform: &str| {
        let mut fields = Fields::new(Shape::Row);
        fields.add("Name", name);
        fields.add("DriverEndpoint", endpoint);
        fields.add("Status", status);
        fields.add("Buildkit", version);
        fields.add("Platforms", platform);
        fields.add("Driver", "kiln");
        fields
    };
    let version = format!("kiln {VERSION}");
    let node = row(
        " \\_ default",
        " \\_ default",
        "running",
        &version,
        &platform,
    );
    let mut rows = vec![row("default*", "kiln", "", "", "")];
    if args
        .format
        .as_deref()
        .is_none_or(|format| format.starts_with("table"))
    {
        rows.push(node);
    } else {
        rows = vec![row("default", "kiln", "running", &version, &platform)];
    }
    BUILDERS.print(args.format.as_deref(), false, rows)?;
    Ok(ExitCode::SUCCESS)
}

/// What scripts for CI begin with: it changes nothing, and what they do next works.
pub(super) fn create(args: &BuilderCreateArgs) -> Result<ExitCode> {
    if let Some(endpoint) = args.endpoint.as_deref().filter(|it| *it != "default") {
        let text = format!("{endpoint}: there is one builder, this program");
        let hint = "run kiln on the machine that is to build";
        return Err(BuildError::new(text).with_hint(hint).into());
    }
    let options = !args.driver_opt.is_empty()
        || args.buildkitd_config.is_some()
        || args.buildkitd_flags.is_some();
    note(
        options,
        "an option of a builder",
        "kiln.toml has kiln's own",
    );
    complain("note: there is one builder, this program; nothing was made");
    say(args.name.as_deref().unwrap_or("default"));
    Ok(ExitCode::SUCCESS)
}

/// `use`, `stop`, `rm`.
pub(super) fn nothing_to_do(args: &BuilderNamesArgs) {
    let names = args.names.join(", ");
    let of = if names.is_empty() {
        String::new()
    } else {
        format!(" for {names}")
    };
    complain(&format!(
        "note: there is one builder, this program; nothing was done{of}"
    ));
}

pub(super) fn inspect(place: &Place, args: &BuilderInspectArgs) -> Result<ExitCode> {
    if let Some(name) = args.name.as_deref().filter(|name| *name != "default") {
        complain(&format!(
            "note: there is one builder, this program; {name} is another name for it"
        ));
    }
    let limits = crate::settings::limits(&place.root)?;
    for (name, value) in [
        ("Name", "default".to_owned()),
        ("Driver", "kiln".to_owned()),
        ("", String::new()),
        ("Nodes", String::new()),
        ("Name", "default".to_owned()),
        ("Endpoint", "default".to_owned()),
        ("Status", "running".to_owned()),
        ("BuildKit version", format!("kiln {VERSION}")),
        ("Platforms", kiln_image::Platform::host().to_string()),
        ("Store", place.root.display().to_string()),
        ("Max Used Space", crate::format::size4(limits.most)),
        ("Min Free Space", crate::format::size4(limits.reserve)),
    ] {
        match (name, value.as_str()) {
            ("", _) => say(""),
            (name, "") => say(&format!("{name}:")),
            (name, value) => say(&format!("{:<18}{value}", format!("{name}:"))),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `imagetools inspect`: what a registry has under a name, without fetching the image.
pub(super) fn inspect_in_registry(args: &ImagetoolsInspectArgs) -> Result<ExitCode> {
    let name = reference(&args.name)?;
    let client = registry_client(Arc::new(crate::credentials::stored))?;
    let cancel = crate::signals::give_up_on_signal()?;
    let found = client.resolve(&name, cancel.raw().as_ref())?;
    if args.raw {
        say_all(&String::from_utf8_lossy(&found.bytes));
        return Ok(ExitCode::SUCCESS);
    }
    let document = parse_manifest(&found.bytes, Some(&found.media_type))?;
    if let Some(format) = &args.format {
        let image = if format.contains(".Image") {
            Some(images(&client, &name, &document, &cancel.raw())?)
        } else {
            None
        };
        print_one(format, &value(&name, &found, image)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let line = |name: &str, value: &str| say(&format!("{:<11}{value}", format!("{name}:")));
    line("Name", &name.to_string());
    line("MediaType", &found.media_type);
    line("Digest", &found.digest.to_string());
    if let Document::Index(index) = &document {
        say("           ");
        say("Manifests: ");
        for (number, manifest) in index.manifests.iter().enumerate() {
            if number > 0 {
                say("             ");
            }
            let line = |name: &str, value: &str| {
                say(&format!("  {:<13}{value}", format!("{name}:")));
            };
            line("Name", &format!("{name}@{}", manifest.digest));
            line("MediaType", &manifest.media_type);
            if let Some(platform) = &manifest.platform {
                line("Platform", &platform.to_string());
            }
            if let Some(annotations) = &manifest.annotations {
                line("Annotations", "");
                for (name, value) in annotations {
                    say(&format!("    {name}: {value}"));
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn value(name: &Reference, found: &Resolved, image: Option<Value>) -> Result<Value> {
    let mut manifest: serde_json::Value = serde_json::from_slice(&found.bytes)?;
    if let Some(map) = manifest.as_object_mut() {
        map.insert("mediaType".to_owned(), json!(found.media_type));
        map.insert("digest".to_owned(), json!(found.digest));
        map.insert("size".to_owned(), json!(found.size()));
    }
    let mut fields = Fields::new(Shape::Struct);
    fields.add("Name", name.to_string());
    fields.add("Manifest", go_names(manifest));
    if let Some(image) = image {
        fields.add("Image", image);
    }
    Ok(fields.into())
}

/// The config of an image; of several their configs by platform, as docker's buildx has it.
fn images(
    client: &Client,
    name: &Reference,
    document: &Document,
    cancel: &Arc<AtomicBool>,
) -> Result<Value> {
    let config = |manifest: &Manifest| -> Result<Value> {
        let observer: Arc<dyn Observer> = cancel.clone();
        let mut bytes = Vec::new();
        client
            .blob(name, &manifest.config, &mut io::empty(), observer)?
            .take(MOST_CONFIG)
            .read_to_end(&mut bytes)?;
        let config = serde_json::from_slice(&bytes).map_err(|error| {
            BuildError::new(format!("config {}: {error}", manifest.config.digest))
        })?;
        Ok(go_names(config))
    };
    let index = match document {
        Document::Manifest(manifest) => return config(manifest),
        Document::Index(index) => index,
    };
    let mut found = Vec::new();
    for entry in &index.manifests {
        // What tells how an image was made is for no platform.
        let Some(platform) = entry.platform.as_ref().filter(|its| its.os != "unknown") else {
            continue;
        };
        let there = client.manifest(name, &entry.digest, cancel.as_ref())?;
        if let Document::Manifest(manifest) = parse_manifest(&there.bytes, Some(&there.media_type))?
        {
            found.push((platform.to_string(), config(&manifest)?));
        }
    }
    Ok(match <[_; 1]>::try_from(found) {
        Ok([(_, only)]) => only,
        Err(found) => {
            let mut fields = Fields::new(Shape::Map);
            for (platform, config) in found {
                fields.add(&platform, config);
            }
            fields.into()
        }
    })
}

/// Templates name fields as Go does, JSON as the document: both are there.
fn go_names(value: serde_json::Value) -> Value {
    match value {
        serde_json::Value::Object(map) => {
            let mut fields = Fields::new(Shape::Struct);
            for (name, value) in map {
                let mut letters = name.chars();
                let first: String = letters
                    .next()
                    .into_iter()
                    .flat_map(char::to_uppercase)
                    .collect();
                let go = format!("{first}{}", letters.as_str());
                let value = if MAPS.contains(&name.as_str()) {
                    value.into()
                } else {
                    go_names(value)
                };
                if go != name {
                    fields.hide(&go, value.clone());
                }
                fields.add(&name, value);
            }
            fields.into()
        }
        serde_json::Value::Array(list) => Value::List(list.into_iter().map(go_names).collect()),
        other => other.into(),
    }
}
