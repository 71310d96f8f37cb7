//! `--output`, `--load`, `--push`, `--annotation` and `--metadata-file` of `kiln build`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::IsTerminal;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use kiln_engine::{Annotated, Annotation, BuildError, Built, Engine, Output, To};
use kiln_export::{Format, Packing};
use kiln_image::{Compression, Platform, Reference};
use serde_json::json;

use super::reference;
use crate::args::BuildArgs;

const KINDS: &str = "type=image, registry, docker, docker-daemon, oci, tar, local or cacheonly";

/// What the build leaves behind, and the annotations of its manifest.
pub(super) fn outputs(
    args: &BuildArgs,
    platforms: &[Platform],
) -> Result<(Vec<Output>, Vec<Annotation>)> {
    let tags: Vec<Reference> = args
        .tags
        .iter()
        .map(|name| reference(name))
        .collect::<Result<_>>()?;
    let mut annotations = Vec::new();
    for text in &args.annotations {
        annotations.extend(annotation(text, "--annotation ", !platforms.is_empty())?);
    }
    let mut outputs = Vec::new();
    for text in &args.outputs {
        let field = |error: BuildError| BuildError {
            message: format!("--output {text:?}: {}", error.message),
            ..error
        };
        outputs.push(output(text, &tags, (platforms, args.push), &mut annotations).map_err(field)?);
    }
    let in_store = |output: &Output| matches!(output, Output::Image { .. });
    if outputs.is_empty() || ((args.push || args.load) && !outputs.iter().any(in_store)) {
        outputs.push(Output::Image {
            names: tags,
            push: args.push,
            keep: args.load,
            packing: Packing::default(),
        });
    } else if args.push {
        for output in &mut outputs {
            if let Output::Image { push, keep, .. } = output {
                *push = true;
                *keep |= args.load;
            }
        }
    }
    for output in &outputs {
        if let Output::Image {
            names, push: true, ..
        } = output
            && names.is_empty()
        {
            return Err(BuildError::new("an image without a name cannot be pushed")
                .with_hint("give it one with -t")
                .into());
        }
    }
    if args.iidfile.is_some() && !outputs.iter().any(Output::has_image) {
        return Err(
            BuildError::new("--iidfile: the outputs are files, there is no image")
                .with_hint("add -o type=image, or leave --iidfile out")
                .into(),
        );
    }
    Ok((outputs, annotations))
}

/// What may surprise who expects the image in Docker: with docker, `--load` and `type=docker` put it there.
pub(super) fn hint(args: &BuildArgs) -> Option<&'static str> {
    let into_docker = |text: &String| {
        let fields = parse(text).unwrap_or_default();
        fields.get("type").is_some_and(|kind| kind == "docker") && !fields.contains_key("dest")
    };
    let surprising = args.load || args.outputs.iter().any(into_docker);
    let other = |text: &String| text.contains("docker-daemon");
    (surprising && !args.outputs.iter().any(other) && crate::context::has_docker()).then_some(
        "the image is in Kiln's own store; -o type=docker-daemon or kiln push docker-daemon:NAME hands it to Docker",
    )
}

/// `KEY=VALUE`, or with words before it that say what is annotated: `manifest,index[linux/amd64]:KEY=VALUE`.
fn annotation(text: &str, option: &str, index: bool) -> Result<Vec<Annotation>, BuildError> {
    let wrong = |what: &str| BuildError::new(format!("{option}{text:?}: {what}"));
    let (key, value) = text
        .split_once('=')
        .filter(|(key, _)| !key.is_empty())
        .ok_or_else(|| wrong("expected KEY=VALUE"))?;
    let word = |kind: &str| kind.split('[').next().unwrap_or_default().to_owned();
    let (kinds, key) = match key.split_once(':') {
        Some((kinds, key)) if kinds.split(',').all(|kind| is_annotation_kind(&word(kind))) => {
            (kinds, key)
        }
        _ => ("manifest", key),
    };
    let mut annotations = Vec::new();
    for kind in kinds.split(',') {
        let platform = match kind.split_once('[') {
            None => None,
            Some((_, rest)) => {
                let platform = rest.strip_suffix(']').ok_or_else(|| wrong("expected ]"))?;
                Some(
                    platform
                        .parse()
                        .map_err(|error| wrong(&format!("{error}")))?,
                )
            }
        };
        let on = match word(kind).as_str() {
            "manifest" => Annotated::Manifest,
            "index" if index => Annotated::Index,
            "manifest-descriptor" if index => Annotated::ManifestDescriptor,
            "index-descriptor" if index => {
                return Err(wrong("nothing in an image points to its index")
                    .with_hint("annotate the index: index:KEY=VALUE"));
            }
            other => {
                return Err(wrong(&format!("no {other} is written for one platform"))
                    .with_hint("annotate the manifest: manifest:KEY=VALUE"));
            }
        };
        annotations.push(Annotation {
            on,
            platform,
            key: key.to_owned(),
            value: value.to_owned(),
        });
    }
    Ok(annotations)
}

fn is_annotation_kind(text: &str) -> bool {
    matches!(
        text,
        "manifest" | "index" | "manifest-descriptor" | "index-descriptor"
    )
}

/// The options of one `--output`, each taken once.
pub(super) struct Fields(pub(super) BTreeMap<String, String>);

impl Fields {
    pub(super) fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<Option<bool>, BuildError> {
        match self.take(key).as_deref() {
            None => Ok(None),
            Some("true" | "1") => Ok(Some(true)),
            Some("false" | "0") => Ok(Some(false)),
            Some(other) => Err(BuildError::new(format!(
                "{key}={other}: expected true or false"
            ))),
        }
    }

    fn names(&mut self, tags: &[Reference]) -> Result<Vec<Reference>> {
        match self.take("name") {
            None => Ok(tags.to_vec()),
            Some(names) => names.split(',').map(reference).collect(),
        }
    }

    pub(super) fn packing(&mut self) -> Result<Packing, BuildError> {
        let mut packing = Packing::default();
        if let Some(kind) = self.take("compression") {
            packing.compression = match kind.as_str() {
                "gzip" => Compression::Gzip,
                "zstd" => Compression::Zstd,
                "uncompressed" => Compression::None,
                other => {
                    return Err(BuildError::new(format!(
                        "compression={other}: expected gzip, zstd or uncompressed"
                    )));
                }
            };
        }
        if let Some(level) = self.take("compression-level") {
            let most = match packing.compression {
                Compression::Zstd => 22,
                _ => 9,
            };
            let known = level
                .parse()
                .ok()
                .filter(|level| (0..=most).contains(level));
            packing.level = Some(known.ok_or_else(|| {
                BuildError::new(format!("compression-level={level}: expected 0 to {most}"))
            })?);
        }
        packing.force = self.flag("force-compression")?.unwrap_or_default();
        packing.docker_types = self.flag("oci-mediatypes")?.map(|oci| !oci);
        packing.distribute_foreign = self.flag("prefer-nondist-layers")? == Some(false);
        Ok(packing)
    }

    fn destination(&mut self) -> Option<String> {
        self.take("dest")
    }
}

fn output(
    text: &str,
    tags: &[Reference],
    (platforms, pushed): (&[Platform], bool),
    annotations: &mut Vec<Annotation>,
) -> Result<Output, BuildError> {
    let anyhow = |error: anyhow::Error| BuildError::new(error.to_string());
    if text == "-" {
        return Ok(Output::Tar {
            to: standard_output()?,
            split: None,
        });
    }
    if !text.contains('=') {
        return Ok(Output::Files {
            folder: text.into(),
            delete: false,
            split: None,
        });
    }
    let mut fields = Fields(parse(text)?);
    let Some(kind) = fields.take("type") else {
        return Err(BuildError::new("type is missing").with_hint(KINDS));
    };
    let keys: Vec<_> = fields.0.keys().cloned().collect();
    for name in keys.iter().filter(|key| key.starts_with("annotation")) {
        // `annotation.KEY`, `annotation-index.KEY`, `annotation-manifest[linux/amd64].KEY`
        let Some((kind, key)) = name["annotation".len()..].split_once('.') else {
            continue;
        };
        let kind = kind.strip_prefix('-').unwrap_or("manifest").to_owned();
        if !is_annotation_kind(kind.split('[').next().unwrap_or_default()) {
            continue;
        }
        let value = fields.take(name).unwrap_or_default();
        let text = format!("{kind}:{key}={value}");
        annotations.extend(annotation(&text, "annotation ", !platforms.is_empty())?);
    }
    let output = match kind.as_str() {
        "image" | "registry" => {
            let push = fields.flag("push")?.unwrap_or(kind == "registry");
            // The store has every image unpacked, and names what has no name by its id.
            let unpack = fields.flag("unpack")?;
            let store = fields.flag("store")?.or(unpack);
            Output::Image {
                names: fields.names(tags).map_err(anyhow)?,
                push,
                // As under docker: what is pushed is in the registry, and here only if somebody asks for it.
                keep: store.unwrap_or(kind == "image" && !push && !pushed),
                packing: fields.packing()?,
            }
        }
        "docker" | "oci" => {
            let format = if kind == "oci" {
                Format::Oci
            } else {
                Format::Docker
            };
            let names = fields.names(tags).map_err(anyhow)?;
            let packing = fields.packing()?;
            if format == Format::Docker && !platforms.is_empty() && fields.0.contains_key("dest") {
                let what = "docker exporter does not support exporting manifest lists, use the oci exporter instead";
                return Err(BuildError::new(what)
                    .with_hint("an archive for several platforms is made with type=oci"));
            }
            let as_tar = fields.flag("tar")?.unwrap_or(true);
            let to = match (fields.destination(), as_tar) {
                (Some(path), false) => To::Folder(path.into()),
                (None, false) => return Err(BuildError::new("tar=false needs dest=FOLDER")),
                (Some(path), true) if path == "-" => standard_output()?,
                (Some(path), true) => To::File(path.into()),
                (None, true) if kind == "docker" => {
                    // Where docker would hand the image to its engine, Kiln keeps it.
                    return finish(
                        &kind,
                        fields,
                        Output::Image {
                            names,
                            push: false,
                            keep: true,
                            packing,
                        },
                    );
                }
                (None, true) => standard_output()?,
            };
            Output::Archive {
                format,
                to,
                names,
                packing,
            }
        }
        "docker-daemon" if !platforms.is_empty() => {
            let what = "a Docker Engine takes an image for one platform";
            return Err(BuildError::new(what).with_hint("leave --platform out, or name one"));
        }
        "docker-daemon" => Output::Docker {
            host: crate::context::docker_host()?,
            names: fields.names(tags).map_err(anyhow)?,
        },
        "tar" => Output::Tar {
            to: match fields.destination() {
                Some(path) if path != "-" => To::File(path.into()),
                _ => standard_output()?,
            },
            split: fields.flag("platform-split")?,
        },
        "local" => Output::Files {
            folder: fields
                .destination()
                .map(PathBuf::from)
                .ok_or_else(|| BuildError::new("dest=FOLDER is missing"))?,
            delete: match fields.take("mode").as_deref() {
                None | Some("copy") => false,
                Some("delete") => true,
                Some(other) => {
                    let what = format!("mode={other}: expected copy or delete");
                    return Err(BuildError::new(what));
                }
            },
            split: fields.flag("platform-split")?,
        },
        "cacheonly" => Output::Nothing,
        other => {
            return Err(BuildError::new(format!("unknown type {other}")).with_hint(KINDS));
        }
    };
    finish(&kind, fields, output)
}

/// Nothing that was asked for may be ignored in silence.
fn finish(kind: &str, fields: Fields, output: Output) -> Result<Output, BuildError> {
    match fields.0.into_iter().next() {
        None => Ok(output),
        Some((key, _)) => Err(BuildError::new(format!("type={kind} has no option {key}"))),
    }
}

/// Fields separated by commas; one in double quotes may have commas in it (RFC 4180).
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, String>, BuildError> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let field = if let Some(quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            let mut chars = quoted.char_indices().peekable();
            loop {
                match chars.next() {
                    Some((_, '"')) if chars.next_if(|(_, next)| *next == '"').is_some() => {
                        field.push('"');
                    }
                    Some((at, '"')) => {
                        rest = &quoted[at + 1..];
                        break field;
                    }
                    Some((_, other)) => field.push(other),
                    None => return Err(BuildError::new("a quote is not closed")),
                }
            }
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let field = rest[..end].to_owned();
            rest = &rest[end..];
            field
        };
        fields.push(field);
        match rest.strip_prefix(',') {
            Some(more) => rest = more,
            None if rest.is_empty() => break,
            None => return Err(BuildError::new("expected a comma after the quote")),
        }
    }
    fields
        .into_iter()
        .map(|field| match field.split_once('=') {
            Some((key, value)) => Ok((key.trim().to_lowercase(), value.to_owned())),
            None => Err(BuildError::new(format!("{field:?}: expected KEY=VALUE"))),
        })
        .collect()
}

fn standard_output() -> Result<To, BuildError> {
    let out = std::io::stdout();
    if out.is_terminal() {
        return Err(BuildError::new("standard output is a terminal")
            .with_hint("give a file with dest=FILE, or redirect"));
    }
    let out = out
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| BuildError::new(format!("standard output: {error}")))?;
    Ok(To::Stream(Arc::new(File::from(out))))
}

/// What `--metadata-file` holds: the image in docker's words.
pub(super) fn metadata(engine: &Engine, built: &Built, outputs: &[Output]) -> Result<Vec<u8>> {
    let mut metadata = serde_json::Map::new();
    if let Some(image) = &built.image {
        let (digest, size) = match built.pushed.first() {
            Some(pushed) => (pushed.digest, Some(pushed.size)),
            None => (
                image.manifest,
                engine
                    .store
                    .json(image.manifest)?
                    .map(|(_, bytes)| bytes.len() as u64),
            ),
        };
        let kind = engine.store.json(image.manifest)?.map(|(kind, _)| kind);
        let mut names: Vec<String> = Vec::new();
        for output in outputs {
            names.extend(output.names().iter().map(ToString::to_string));
        }
        let mut known = std::collections::BTreeSet::new();
        names.retain(|name| known.insert(name.clone()));
        let mut put = |key: &str, value| metadata.insert(key.to_owned(), value);
        // An index has none.
        if image.config != image.manifest {
            put(
                "containerimage.config.digest",
                json!(image.config.to_string()),
            );
        }
        put(
            "containerimage.descriptor",
            json!({ "mediaType": kind, "digest": digest.to_string(), "size": size }),
        );
        put("containerimage.digest", json!(digest.to_string()));
        if !names.is_empty() {
            put("image.name", json!(names.join(",")));
        }
    }
    let mut text = serde_json::to_vec_pretty(&metadata)?;
    text.push(b'\n');
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let tags = [reference("app").unwrap()];
        match output(text, &tags, (&[], false), &mut Vec::new()) {
            Ok(output) => format!("{output:?}"),
            Err(error) => match error.hint {
                Some(hint) => format!("{} ({hint})", error.message),
                None => error.message,
            },
        }
    }

    #[test]
    fn kinds_of_outputs() {
        let cases = [
            (
                "out",
                r#"Files { folder: "out", delete: false, split: None }"#,
            ),
            (
                "type=local,dest=a/b,mode=delete",
                r#"Files { folder: "a/b", delete: true, split: None }"#,
            ),
            (
                "type=tar,dest=a.tar",
                r#"Tar { to: File("a.tar"), split: None }"#,
            ),
            ("type=cacheonly", "Nothing"),
            ("type=local", "dest=FOLDER is missing"),
            (
                "dest=a",
                "type is missing (type=image, registry, docker, docker-daemon, oci, tar, local or cacheonly)",
            ),
            (
                "type=zip",
                "unknown type zip (type=image, registry, docker, docker-daemon, oci, tar, local or cacheonly)",
            ),
            ("type=tar,dest=a,mode=copy", "type=tar has no option mode"),
            (
                "type=oci,dest=a,compression=lz4",
                "compression=lz4: expected gzip, zstd or uncompressed",
            ),
            (
                "type=oci,dest=a,compression-level=10",
                "compression-level=10: expected 0 to 9",
            ),
            ("type=oci,tar=false", "tar=false needs dest=FOLDER"),
            (
                "type=image,push=maybe",
                "push=maybe: expected true or false",
            ),
            ("type=tar,dest", "\"dest\": expected KEY=VALUE"),
            ("type=tar,\"dest=a", "a quote is not closed"),
        ];
        for (text, expected) in cases {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn names_and_forms() {
        let tags = [reference("app").unwrap()];
        let text = r#"type=registry,"name=a,b:2",compression=zstd,compression-level=19,force-compression=true,annotation.a=b"#;
        let mut annotations = Vec::new();
        let Output::Image {
            names,
            push: true,
            keep: false,
            packing,
        } = output(text, &tags, (&[], false), &mut annotations).unwrap()
        else {
            panic!("not an image");
        };
        let names: Vec<_> = names.iter().map(Reference::familiar).collect();
        assert_eq!(names, ["a:latest", "b:2"]);
        assert_eq!(packing.compression, Compression::Zstd);
        assert_eq!((packing.level, packing.force), (Some(19), true));
        assert_eq!(annotations, annotation("a=b", "", false).unwrap());
    }

    #[test]
    fn annotations_of_documents() {
        let all = |text: &str, index: bool| match annotation(text, "", index) {
            Ok(annotations) => annotations
                .iter()
                .map(|it| {
                    let platform = it.platform.as_ref().map(Platform::to_string);
                    let platform = platform.unwrap_or_default();
                    format!("{:?} {platform} {}={}", it.on, it.key, it.value)
                })
                .collect::<Vec<_>>()
                .join(", "),
            Err(error) => error.message,
        };
        assert_eq!(all("a=b=c", false), "Manifest  a=b=c");
        assert_eq!(all("manifest:a=b", false), "Manifest  a=b");
        assert_eq!(all("org.x:y=b", false), "Manifest  org.x:y=b");
        assert_eq!(
            all("index,manifest[linux/arm]:a=b", true),
            "Index  a=b, Manifest linux/arm/v7 a=b"
        );
        assert_eq!(
            all("index:a=b", false),
            "\"index:a=b\": no index is written for one platform"
        );
        assert_eq!(all("a", false), "\"a\": expected KEY=VALUE");
    }
}
