//! `kiln image ls --tree` and `kiln image diff`: which layers images share, and how their files differ.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use kiln_image::{Digest, Entry, Kind, LayerId, LayerPath, MergedView, Reference};
use kiln_store::{Image, Store};
use serde_json::json;

use super::find_image;
use super::images::config;
use crate::context::Place;
use crate::format::{say, short, size};
use crate::long_names::ImageDiffArgs;

/// As much of an instruction as a line shows.
const SHOWN: usize = 60;

/// A layer that images have, and what stands on it.
#[derive(Default)]
struct Node {
    /// What made it.
    by: String,
    size: u64,
    /// Images that end here.
    images: BTreeSet<String>,
    above: BTreeMap<usize, LayerId>,
}

/// Images below the layers that they are made of, each layer once for each stack of layers below it.
pub(super) fn tree(store: &Store, wanted: Option<&str>) -> Result<ExitCode> {
    let wanted = wanted.map(|name| find_image(store, name)).transpose()?;
    let images: Vec<Image> = store.images()?;
    let mut nodes: HashMap<Vec<LayerId>, Node> = HashMap::new();
    let mut roots: Vec<Vec<LayerId>> = Vec::new();
    for image in images.iter().rev() {
        if wanted.is_some_and(|wanted| wanted != image.manifest) {
            continue;
        }
        let made = made_by(store, image.manifest);
        let layers = &image.info.layers;
        for depth in 1..=layers.len() {
            let stack = layers[..depth].to_vec();
            if !nodes.contains_key(&stack) {
                let size = store.layer(layers[depth - 1])?.map_or(0, |info| info.size);
                let by = made.get(depth - 1).cloned().unwrap_or_default();
                nodes.insert(
                    stack.clone(),
                    Node {
                        by,
                        size,
                        ..Node::default()
                    },
                );
                if depth == 1 {
                    roots.push(stack);
                } else if let Some(below) = nodes.get_mut(&layers[..depth - 1]) {
                    let place = below.above.len();
                    below.above.insert(place, layers[depth - 1]);
                }
            }
        }
        let names = if image.tags.is_empty() {
            "<none>".to_owned()
        } else {
            let names: Vec<_> = image.tags.iter().map(Reference::familiar).collect();
            names.join(", ")
        };
        let label = format!(
            "{names} {} {}",
            short(&image.info.config),
            size(image.info.size)
        );
        match nodes.get_mut(layers.as_slice()) {
            Some(node) => {
                node.images.insert(label);
            }
            None => say(&format!("{label} (no layers)")),
        }
    }
    for root in &roots {
        draw(&nodes, root, "", "");
    }
    let shared: u64 = {
        let mut users: HashMap<LayerId, u64> = HashMap::new();
        for layer in images.iter().flat_map(|image| &image.info.layers) {
            *users.entry(*layer).or_default() += 1;
        }
        let mut shared = 0;
        for (layer, users) in users {
            let size = store.layer(layer)?.map_or(0, |info| info.size);
            shared += size * (users - 1);
        }
        shared
    };
    if wanted.is_none() && shared > 0 {
        say(&format!("\nshared layers save {}", size(shared)));
    }
    Ok(ExitCode::SUCCESS)
}

/// A stack with all that stands on it; layers that nothing else stands beside stay on one level.
fn draw(nodes: &HashMap<Vec<LayerId>, Node>, stack: &[LayerId], first: &str, rest: &str) {
    let Some(node) = nodes.get(stack) else {
        return;
    };
    let mut by: String = node.by.chars().take(SHOWN).collect();
    if node.by.chars().count() > SHOWN {
        by.push('…');
    }
    say(&format!(
        "{first}{} {} {by}",
        &stack[stack.len() - 1].to_string()[..12],
        size(node.size)
    ));
    let mut below: Vec<Option<LayerId>> = vec![None; node.images.len()];
    below.extend(node.above.values().map(|layer| Some(*layer)));
    let mut images = node.images.iter();
    let count = below.len();
    for (number, layer) in below.into_iter().enumerate() {
        let last = number + 1 == count;
        let (branch, pipe) = if last {
            ("└─ ", "   ")
        } else {
            ("├─ ", "│  ")
        };
        match layer {
            Some(layer) => {
                let stack = [stack, &[layer]].concat();
                draw(
                    nodes,
                    &stack,
                    &format!("{rest}{branch}"),
                    &format!("{rest}{pipe}"),
                );
            }
            None => {
                if let Some(image) = images.next() {
                    say(&format!("{rest}{branch}{image}"));
                }
            }
        }
    }
}

/// The instruction of each layer.
fn made_by(store: &Store, manifest: Digest) -> Vec<String> {
    let Ok((_, config)) = config(store, manifest) else {
        return Vec::new();
    };
    config
        .history
        .into_iter()
        .filter(|entry| !entry.empty_layer)
        .map(|entry| {
            if entry.created_by.is_empty() {
                entry.comment
            } else {
                entry.created_by
            }
        })
        .map(|text| text.trim_end_matches(" # buildkit").replace('\n', " "))
        .collect()
}

/// What an image shows.
fn view(store: &Store, manifest: Digest) -> Result<MergedView> {
    let layers = store
        .image(manifest)?
        .map_or_else(Vec::new, |image| image.info.layers);
    let indexes = layers.iter().map(|layer| store.load_index(*layer));
    let indexes: Vec<Arc<_>> = indexes.collect::<Result<_, _>>()?;
    Ok(MergedView::new(indexes))
}

/// The files of two images, compared.
pub(super) fn diff(place: &Place, args: &ImageDiffArgs) -> Result<ExitCode> {
    let engine = place.engine()?;
    let store = &engine.store;
    let (from, to) = (find_image(store, &args.from)?, find_image(store, &args.to)?);
    let (left, right) = (view(store, from)?, view(store, to)?);
    let root = LayerPath::root();
    let list = |view: &MergedView| -> BTreeMap<LayerPath, Entry> {
        let nodes = view.walk(&root);
        nodes
            .map(|(path, node)| (path, node.entry.clone()))
            .collect()
    };
    let (left, right) = (list(&left), list(&right));
    let paths: BTreeSet<&LayerPath> = left.keys().chain(right.keys()).collect();
    let (mut counts, mut bytes) = ([0_u64; 3], [0_u64; 3]);
    for path in paths {
        let (letter, at, before, after) = match (left.get(path), right.get(path)) {
            (None, Some(new)) => ('A', 0, 0, content(new)),
            (Some(old), None) => ('D', 1, content(old), 0),
            (Some(old), Some(new)) if differ(old, new) => ('C', 2, content(old), content(new)),
            _ => continue,
        };
        counts[at] += 1;
        bytes[at] += if letter == 'D' { before } else { after };
        if args.format.is_some() {
            let change = match letter {
                'A' => "added",
                'D' => "removed",
                _ => "changed",
            };
            say(&json!({ "Path": path.to_string(), "Change": change, "Before": before, "After": after }).to_string());
            continue;
        }
        let amount = match letter {
            'C' if before == after => String::new(),
            'C' => format!(" {} -> {}", size(before), size(after)),
            _ if before + after == 0 => String::new(),
            _ => format!(" {}", size(before + after)),
        };
        say(&format!("{letter} {path}{amount}"));
    }
    if args.format.is_none() {
        let [added, removed, changed] = counts;
        say(&format!(
            "{added} added ({}), {removed} removed ({}), {changed} changed ({})",
            size(bytes[0]),
            size(bytes[1]),
            size(bytes[2])
        ));
    }
    Ok(ExitCode::SUCCESS)
}

fn content(entry: &Entry) -> u64 {
    match entry.kind {
        Kind::File { size, .. } => size,
        _ => 0,
    }
}

/// Times do not count, and neither does which layer a folder comes from.
fn differ(old: &Entry, new: &Entry) -> bool {
    let same = match (&old.kind, &new.kind) {
        (Kind::Dir { .. }, Kind::Dir { .. }) => true,
        (old, new) => old == new,
    };
    !same
        || (old.mode, old.uid, old.gid) != (new.mode, new.uid, new.gid)
        || old.xattrs != new.xattrs
}
