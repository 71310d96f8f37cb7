//! An image as `save` writes it: a docker archive or an OCI layout in a tar.

use std::fs::{self, File};
use std::io::{BufReader, Read, Seek as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::tree::Tree;

/// A saved image, opened.
#[derive(Debug)]
pub struct SavedImage {
    /// The image config.
    pub config: Value,
    /// Each layer for itself, lowest first.
    pub layers: Vec<Tree>,
    /// All layers on top of each other.
    pub files: Tree,
    /// The names that the archive gives it.
    pub names: Vec<String>,
}

impl SavedImage {
    /// Reads the first image of an archive.
    pub fn read(archive: &Path) -> Result<Self> {
        let parent = archive.parent().unwrap_or(Path::new("."));
        let folder = tempfile::Builder::new()
            .prefix("saved.")
            .tempdir_in(parent)?;
        let file =
            File::open(archive).with_context(|| format!("cannot open {}", archive.display()))?;
        tar::Archive::new(BufReader::new(file))
            .unpack(folder.path())
            .with_context(|| format!("cannot unpack {}", archive.display()))?;
        Self::of_folder(folder.path()).with_context(|| format!("in {}", archive.display()))
    }

    fn of_folder(folder: &Path) -> Result<Self> {
        let manifest = folder.join("manifest.json");
        let (config, layers, names) = if manifest.is_file() {
            docker_archive(folder, &manifest)?
        } else {
            oci_layout(folder)?
        };
        let mut saved = Self {
            config: json(&config)?,
            layers: Vec::new(),
            files: Tree::default(),
            names,
        };
        for path in layers {
            let layer = Tree::of_layer(open(&path)?, &saved.files)
                .with_context(|| path.display().to_string())?;
            saved.files.apply(&layer);
            saved.layers.push(layer);
        }
        Ok(saved)
    }
}

/// The files of config and layers, and the names.
type Parts = (PathBuf, Vec<PathBuf>, Vec<String>);

fn docker_archive(folder: &Path, manifest: &Path) -> Result<Parts> {
    let manifest = json(manifest)?;
    let image = &manifest[0];
    let config = folder.join(
        image["Config"]
            .as_str()
            .context("manifest.json names no config")?,
    );
    let layers = strings(&image["Layers"])
        .into_iter()
        .map(|name| folder.join(name))
        .collect();
    Ok((config, layers, strings(&image["RepoTags"])))
}

fn oci_layout(folder: &Path) -> Result<Parts> {
    let blob = |descriptor: &Value| -> Result<PathBuf> {
        let digest = descriptor["digest"]
            .as_str()
            .context("a descriptor without a digest")?;
        Ok(folder.join("blobs").join(digest.replace(':', "/")))
    };
    let index = json(&folder.join("index.json"))?;
    let mut descriptor = index["manifests"][0].clone();
    let names = strings(&Value::Array(vec![
        descriptor["annotations"]["org.opencontainers.image.ref.name"].clone(),
    ]));
    let mut manifest = json(&blob(&descriptor)?)?;
    while manifest["manifests"].is_array() {
        descriptor = manifest["manifests"][0].clone();
        manifest = json(&blob(&descriptor)?)?;
    }
    let layers = manifest["layers"]
        .as_array()
        .context("a manifest without layers")?;
    Ok((
        blob(&manifest["config"])?,
        layers.iter().map(blob).collect::<Result<_>>()?,
        names,
    ))
}

fn strings(list: &Value) -> Vec<String> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter()
        .filter_map(|name| name.as_str().map(str::to_owned))
        .collect()
}

fn json(path: &Path) -> Result<Value> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is not JSON", path.display()))
}

/// A layer, decompressed if it must be.
fn open(path: &Path) -> Result<Box<dyn Read>> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut magic = [0; 4];
    let read = file.read(&mut magic)?;
    file.rewind()?;
    let file = BufReader::new(file);
    match &magic[..read] {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::read::MultiGzDecoder::new(file))),
        [0x28, 0xb5, 0x2f, 0xfd] => bail!("{}: compressed with zstd", path.display()),
        _ => Ok(Box::new(file)),
    }
}
