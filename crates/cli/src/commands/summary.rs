//! What is said at the end of a build: how long it took, what came from the cache, and what the layers hold.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::Result;
use kiln_engine::{BuildRequest, Built, Engine};
use kiln_image::{FileDigest, Kind, LayerPath};
use kiln_store::{BuildStep, StepState, Store};

use super::images::{config, together};
use super::why;
use crate::format::{complain, short, size};

/// Less is not worth a hint.
const WORTH: u64 = 1 << 20;
/// As much of an instruction as a line shows.
const SHOWN: usize = 56;

/// One line; with `whole` a line for each layer, too, and what could be saved.
pub(super) fn tell(
    engine: &Engine,
    request: &BuildRequest,
    built: &Built,
    whole: bool,
) -> Result<()> {
    let Some(build) = engine.latest_build(request)? else {
        return Ok(());
    };
    let steps: Vec<&BuildStep> = build
        .build
        .steps
        .iter()
        .filter(|step| !step.title.is_empty())
        .collect();
    let hits = steps
        .iter()
        .filter(|step| step.state == StepState::Cached)
        .count();
    let mut line = format!(
        "done in {}: {hits} of {} steps from the cache",
        why::seconds(build.build.took),
        steps.len()
    );
    let Some(image) = &built.image else {
        complain(&line);
        return Ok(());
    };
    let store = &engine.store;
    // One image, or those of several platforms.
    let (bytes, manifests) = if let Some(index) = store.index(image.manifest)? {
        let manifests = index.images.iter().map(|image| image.manifest).collect();
        (together(store, &index)?.size, manifests)
    } else {
        let found = store.image(image.manifest)?;
        (
            found.map_or(0, |found| found.info.size),
            vec![image.manifest],
        )
    };
    let _ = write!(line, ", image {} ({})", short(&image.config), size(bytes));
    complain(&line);
    if whole {
        for manifest in manifests {
            layers(store, manifest)?;
        }
        slow(&steps);
    }
    Ok(())
}

/// What a layer does to the image's size, in bytes of files.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Effect {
    /// New files.
    added: u64,
    /// Of files below that it replaces: they are still shipped.
    overwritten: u64,
    /// Of files below that it removes: they are still shipped.
    deleted: u64,
    /// Of files that it replaces by the same content: only owner, mode or time are new.
    repeated: u64,
}

fn layers(store: &Store, manifest: kiln_image::Digest) -> Result<()> {
    let (info, config) = config(store, manifest)?;
    let mut visible: HashMap<LayerPath, (u64, FileDigest)> = HashMap::new();
    let mut made = config.history.iter().filter(|entry| !entry.empty_layer);
    let mut lines = vec!["LAYER\tADDED\tOVERWRITTEN\tDELETED".to_owned()];
    let mut hints = Vec::new();
    let (mut hidden, mut total) = (0, 0);
    for (number, layer) in info.layers.iter().enumerate() {
        let effect = effect(store, *layer, &mut visible)?;
        let by = made.next().map_or_else(String::new, |entry| {
            let text = if entry.created_by.is_empty() {
                &entry.comment
            } else {
                &entry.created_by
            };
            text.trim_end_matches(" # buildkit")
                .replace(['\n', '\t'], " ")
        });
        let mut shown: String = by.chars().take(SHOWN).collect();
        if by.chars().count() > SHOWN {
            shown.push('…');
        }
        lines.push(format!(
            "{shown}\t{}\t{}\t{}",
            size(effect.added),
            size(effect.overwritten),
            size(effect.deleted)
        ));
        total += effect.added + effect.overwritten.max(effect.repeated);
        hidden += effect.overwritten + effect.deleted;
        if effect.repeated >= WORTH {
            hints.push(format!(
                "{shown} ships {} again with the same content: COPY --chown and --chmod set owners and modes at once",
                size(effect.repeated)
            ));
        }
        if effect.deleted >= WORTH {
            hints.push(format!(
                "{shown} removes {} that is shipped all the same: remove it in the step that makes it",
                size(effect.deleted)
            ));
        }
        if number == 0
            && effect.added * 2 > info.size
            && info.layers.len() > 1
            && effect.added >= WORTH
        {
            hints.push(format!(
                "the base is {} of {}: a smaller one, or a last stage with COPY --from of what is needed, saves up to that",
                size(effect.added),
                size(info.size)
            ));
        }
    }
    for line in crate::listing::aligned(&lines) {
        complain(&line);
    }
    if hidden > 0 && total > 0 {
        complain(&format!(
            "{} of the layers are shipped and never seen",
            size(hidden)
        ));
    }
    for hint in hints {
        complain(&format!("hint: {hint}"));
    }
    Ok(())
}

/// What a layer does to what is visible so far.
fn effect(
    store: &Store,
    layer: kiln_image::LayerId,
    visible: &mut HashMap<LayerPath, (u64, FileDigest)>,
) -> Result<Effect> {
    let index = store.load_index(layer)?;
    let mut effect = Effect::default();
    // A layer's names of one file are one file.
    let mut seen = std::collections::HashSet::new();
    // What is hidden goes before what is new comes.
    for entry in index.entries() {
        let whiteout = entry.kind == Kind::Whiteout;
        if whiteout || matches!(entry.kind, Kind::Dir { opaque: true, .. }) {
            let prefix = [entry.path.as_bytes(), b"/"].concat();
            visible.retain(|path, (size, _)| {
                let gone = path.as_bytes().starts_with(&prefix)
                    || whiteout && path.as_bytes() == entry.path.as_bytes();
                effect.deleted += if gone { *size } else { 0 };
                !gone
            });
        }
    }
    for entry in index.entries() {
        let Kind::File { size, digest } = &entry.kind else {
            continue;
        };
        let first = entry.hardlink.is_none_or(|group| seen.insert(group));
        let size = if first { *size } else { 0 };
        match visible.insert(entry.path.clone(), (size, *digest)) {
            Some((before, known)) => {
                effect.overwritten += before;
                if known == *digest {
                    effect.repeated += size;
                } else {
                    effect.added += size;
                }
            }
            None => effect.added += size,
        }
    }
    Ok(effect)
}

/// The time that went into RUN steps behind a COPY that changed: a COPY that stands later would save it.
fn slow(steps: &[&BuildStep]) {
    let mut changed: Option<&BuildStep> = None;
    let mut lost: HashMap<&str, (Duration, &BuildStep)> = HashMap::new();
    for step in steps {
        if step.state != StepState::Done {
            continue;
        }
        let is_copy = step.step.starts_with("COPY ") || step.step.starts_with("ADD ");
        if is_copy
            && step
                .reason
                .as_deref()
                .is_some_and(|reason| reason.contains("changed"))
        {
            changed = Some(step);
        } else if let Some(copy) = changed.filter(|copy| copy.stage == step.stage)
            && step.step.starts_with("RUN ")
        {
            let entry = lost.entry(&copy.title).or_insert((Duration::ZERO, copy));
            entry.0 += step.took.unwrap_or_default();
        }
    }
    for (took, copy) in lost.into_values() {
        if took >= Duration::from_secs(1) {
            complain(&format!(
                "hint: {} of steps ran again because of {}: those that need nothing of it can stand before it",
                why::seconds(took),
                copy.title
            ));
        }
    }
}
