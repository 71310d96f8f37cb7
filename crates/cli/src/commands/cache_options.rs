//! `--cache-from` and `--cache-to` of `kiln build`, as buildx writes them.

use std::path::PathBuf;

use anyhow::Result;
use kiln_engine::{BuildError, CacheTo};
use kiln_export::{CacheForm, CachePlace, CacheSource};

use super::outputs::{Fields, parse};
use super::reference;

const KINDS: &str =
    "type=registry,ref=IMAGE, type=local with src=FOLDER or dest=FOLDER, or type=inline (to write)";

/// What of `--cache-to` is often left standing in `--cache-from`, where it says nothing.
const OF_WRITING: [&str; 7] = [
    "mode",
    "image-manifest",
    "oci-mediatypes",
    "compression",
    "compression-level",
    "force-compression",
    "ignore-error",
];

/// The caches to read.
pub(super) fn sources(all: &[String]) -> Result<Vec<CacheSource>> {
    let mut sources = Vec::new();
    for text in all {
        let named = |error: BuildError| about("--cache-from", text, error);
        for entry in entries(text).map_err(named)? {
            sources.push(source(entry).map_err(named)?);
        }
    }
    Ok(sources)
}

/// Where caches are written.
pub(super) fn targets(all: &[String]) -> Result<Vec<CacheTo>> {
    let mut targets = Vec::new();
    for text in all {
        let named = |error: BuildError| about("--cache-to", text, error);
        for entry in entries(text).map_err(named)? {
            targets.push(target(entry).map_err(named)?);
        }
    }
    Ok(targets)
}

fn about(flag: &str, text: &str, error: BuildError) -> BuildError {
    BuildError {
        message: format!("{flag} {text:?}: {}", error.message),
        ..error
    }
}

/// One of `KEY=VALUE,...`, or one for each bare name of an image.
fn entries(text: &str) -> Result<Vec<Fields>, BuildError> {
    if text.contains('=') {
        return Ok(vec![Fields(parse(text)?)]);
    }
    let registry = |name: &str| {
        let pairs = [("type", "registry"), ("ref", name.trim())];
        Fields(
            pairs
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
        )
    };
    Ok(text.split(',').map(registry).collect())
}

/// The kind; those that are not known are refused by name.
fn kind(fields: &mut Fields) -> Result<String, BuildError> {
    let kind = fields
        .take("type")
        .ok_or_else(|| BuildError::new("type is missing").with_hint(KINDS))?;
    let hint = match kind.as_str() {
        "registry" | "local" | "inline" => return Ok(kind),
        "gha" => {
            "write type=local into a folder that the workflow's cache action keeps, or use type=registry,ref=ghcr.io/..."
        }
        "s3" | "azblob" => {
            "write type=local into a folder and keep that in the bucket, or use type=registry"
        }
        _ => KINDS,
    };
    Err(BuildError::new(format!("caches of type={kind} are not supported")).with_hint(hint))
}

fn image(fields: &mut Fields) -> Result<kiln_image::Reference, BuildError> {
    let name = fields
        .take("ref")
        .filter(|name| !name.is_empty())
        .ok_or_else(|| BuildError::new("ref=IMAGE is missing"))?;
    reference(&name).map_err(|error| BuildError::new(error.to_string()))
}

fn folder(fields: &mut Fields, key: &str) -> Result<PathBuf, BuildError> {
    let folder = fields
        .take(key)
        .filter(|folder| !folder.is_empty())
        .ok_or_else(|| BuildError::new(format!("{key}=FOLDER is missing")))?;
    std::path::absolute(&folder).map_err(|error| BuildError::new(format!("{folder}: {error}")))
}

/// Nothing that was asked for may be ignored in silence.
fn end(kind: &str, fields: Fields) -> Result<(), BuildError> {
    match fields.0.into_keys().next() {
        None => Ok(()),
        Some(key) if key == "registry.insecure" => Err(BuildError::new(format!(
            "type={kind} has no option {key}"
        ))
        .with_hint("say it of the registry in kiln.toml: [registries.\"HOST\"] insecure = true")),
        Some(key) => Err(BuildError::new(format!("type={kind} has no option {key}"))),
    }
}

fn source(mut fields: Fields) -> Result<CacheSource, BuildError> {
    let kind = kind(&mut fields)?;
    for key in OF_WRITING {
        fields.take(key);
    }
    let source = match kind.as_str() {
        "registry" => CacheSource::Registry(image(&mut fields)?),
        "local" => {
            let folder = folder(&mut fields, "src")?;
            let tag = fields.take("tag");
            let wanted = match fields.take("digest") {
                Some(digest) => format!("@{digest}"),
                None => tag.unwrap_or_else(|| "latest".to_owned()),
            };
            CacheSource::Folder { folder, wanted }
        }
        _ => {
            return Err(BuildError::new("type=inline is written, not read")
                .with_hint("read it from the image that has it: type=registry,ref=IMAGE"));
        }
    };
    end(&kind, fields)?;
    Ok(source)
}

fn target(mut fields: Fields) -> Result<CacheTo, BuildError> {
    let kind = kind(&mut fields)?;
    if kind == "inline" {
        match fields.take("mode").as_deref() {
            None | Some("min") => {}
            Some(_) => {
                return Err(
                    BuildError::new("an inline cache holds the image's own steps only")
                        .with_hint("leave mode out, or use type=registry with mode=max"),
                );
            }
        }
        end(&kind, fields)?;
        return Ok(CacheTo::Inline);
    }
    let place = if kind == "registry" {
        CachePlace::Registry(image(&mut fields)?)
    } else {
        CachePlace::Folder {
            folder: folder(&mut fields, "dest")?,
            tag: fields.take("tag").unwrap_or_else(|| "latest".to_owned()),
            reset: fields.flag("reset")?.unwrap_or_default(),
        }
    };
    let max = match fields.take("mode").as_deref() {
        None | Some("min") => false,
        Some("max") => true,
        Some(other) => {
            return Err(BuildError::new(format!(
                "mode={other}: expected min or max"
            )));
        }
    };
    let ignore_error = fields.flag("ignore-error")?.unwrap_or_default();
    let packing = fields.packing()?;
    let oci = packing.docker_types != Some(true);
    let image_manifest = fields.flag("image-manifest")?.unwrap_or(oci);
    if image_manifest && !oci {
        return Err(
            BuildError::new("image-manifest=true needs oci-mediatypes=true")
                .with_hint("leave one of them out"),
        );
    }
    end(&kind, fields)?;
    Ok(CacheTo::Place {
        form: CacheForm {
            place,
            packing,
            image_manifest,
        },
        max,
        ignore_error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown<T: std::fmt::Debug>(parsed: Result<Vec<T>>) -> String {
        match parsed {
            // Names are easier to read in their parts' order.
            Ok(all) => format!("{all:?}")
                .replace("\", repository: \"", "/")
                .replace("\", tag: Some(\"", ":")
                .replace("\")", "\""),
            Err(error) => match error.downcast_ref::<BuildError>() {
                Some(BuildError {
                    message,
                    hint: Some(hint),
                    ..
                }) => format!("{message} ({hint})"),
                _ => error.to_string(),
            },
        }
    }

    #[test]
    fn what_is_read() {
        for (text, expected) in [
            ("app", "docker.io/library/app:latest\""),
            ("a/b:c,d/e", "docker.io/d/e:latest"),
            ("type=registry,ref=h:5000/a:b", "h:5000/a:b"),
            ("type=registry,ref=a,mode=max", "docker.io/library/a:latest"),
            ("type=local,src=/c", r#"folder: "/c", wanted: "latest""#),
            ("type=local,src=/c,tag=t", r#"wanted: "t""#),
            (
                "type=local,src=/c,digest=sha256:ab",
                r#"wanted: "@sha256:ab""#,
            ),
            ("type=local", "src=FOLDER is missing"),
            ("ref=a", "type is missing"),
            (
                "type=gha,scope=x",
                "caches of type=gha are not supported (write type=local",
            ),
            (
                "type=s3,bucket=x",
                "caches of type=s3 are not supported (write type=local",
            ),
            (
                "type=inline",
                "type=inline is written, not read (read it from the image",
            ),
            ("type=registry,ref=a,registry.insecure=true", "kiln.toml"),
            ("type=local,src=/c,dest=/d", "type=local has no option dest"),
        ] {
            let shown = shown(sources(&[text.to_owned()]));
            assert!(shown.contains(expected), "{text}: {shown}");
        }
        assert_eq!(
            sources(&["a,b".to_owned(), "c".to_owned()]).unwrap().len(),
            3
        );
    }

    #[test]
    fn what_is_written() {
        for (text, expected) in [
            ("type=inline", "[Inline]"),
            (
                "type=inline,mode=max",
                "an inline cache holds the image's own steps only",
            ),
            ("app:cache", "max: false, ignore_error: false"),
            ("type=registry,ref=a,mode=max", "image_manifest: true"),
            (
                "type=registry,ref=a,oci-mediatypes=false",
                "image_manifest: false",
            ),
            (
                "type=registry,ref=a,oci-mediatypes=false,image-manifest=true",
                "needs oci-mediatypes=true",
            ),
            (
                "type=registry,ref=a,mode=some",
                "mode=some: expected min or max",
            ),
            (
                "type=local,dest=/c,compression=zstd,ignore-error=true",
                "compression: Zstd",
            ),
            (
                "type=local,dest=/c,tag=t,reset=true",
                r#"tag: "t", reset: true"#,
            ),
            ("type=local,src=/c", "dest=FOLDER is missing"),
            (
                "type=azblob,name=x",
                "caches of type=azblob are not supported",
            ),
            ("type=registry", "ref=IMAGE is missing"),
        ] {
            let shown = shown(targets(&[text.to_owned()]));
            assert!(shown.contains(expected), "{text}: {shown}");
        }
    }
}
