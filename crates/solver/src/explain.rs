//! Why a step is executed and not taken from the cache, in words.

use kiln_fileop::Changes;
use kiln_graph::is_secret_name;
use kiln_store::{BuildStep, StepState};
use serde_json::Value;

/// Parts with this in front of their name are kept for explanations and are no part of the key.
pub(crate) const ABOUT: &str = "about ";
/// Longer values are cut where they are shown.
const SHOWN: usize = 60;

type Part = (String, Vec<u8>);

/// Why a step is executed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Reason {
    /// In one sentence.
    pub(crate) text: String,
    /// All that is different, one by one, the most telling first.
    pub(crate) changes: Vec<String>,
    /// There was no earlier build to compare with.
    pub(crate) first: bool,
}

impl Reason {
    pub(crate) fn plain(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            ..Self::default()
        }
    }
}

/// What is known of the inputs of a step, beside its parts.
pub(crate) trait Inputs {
    /// What became of the step that gave the input of this name (`base`, `source`, ...): a sentence.
    fn told(&self, part: &str) -> Option<String>;

    /// How the files that a part stands for differ from those under an earlier key, if both are known.
    fn files(&self, part: &str, before: &[u8]) -> Option<Changes>;
}

/// Says what differs between a step's parts and those of an earlier record of the same step: the first difference that
/// is not only a consequence of an earlier step, else that consequence. `None` when nothing does.
pub(crate) fn difference(now: &[Part], before: &[Part], inputs: &dyn Inputs) -> Option<Reason> {
    let mut own = Vec::new();
    let mut others = Vec::new();
    let (mut more, mut uncounted) = (0, 0);
    for (at, (name, new)) in now.iter().enumerate() {
        if name.starts_with(ABOUT) {
            continue;
        }
        let old = nth(before, name, occurrence(now, at));
        if old.is_some_and(|old| old == new) {
            continue;
        }
        let old = old.map(Vec::as_slice);
        if is_parent(name) {
            others.push(parent(name, now, before, inputs));
        } else if let (Some(old), Some(files)) = (old, files_of(name)) {
            let changes = inputs.files(name, old).unwrap_or_default();
            if changes.count == 0 {
                own.push(format!("{files} changed"));
                continue;
            }
            if own.is_empty() {
                more = changes.count - 1;
            }
            uncounted += changes.count - changes.texts.len();
            own.extend(changes.texts);
        } else {
            own.push(described(name, old, Some(new)));
        }
    }
    for (at, (name, old)) in before.iter().enumerate() {
        if !name.starts_with(ABOUT) && nth(now, name, occurrence(before, at)).is_none() {
            own.push(described(name, Some(old), None));
        }
    }
    // The parts of a command are one thing.
    let mut changes: Vec<String> = Vec::with_capacity(own.len() + others.len());
    for text in own.into_iter().chain(others) {
        if !changes.contains(&text) || changes.len() > 1000 {
            changes.push(text);
        }
    }
    let mut text = changes.first()?.clone();
    if more > 0 {
        let files = if more == 1 { "file" } else { "files" };
        text = format!("{text} (and {more} more {files})");
    }
    if uncounted > 0 {
        changes.push(format!("and {uncounted} more"));
    }
    Some(Reason {
        text,
        changes,
        first: false,
    })
}

fn nth<'p>(list: &'p [Part], name: &str, at: usize) -> Option<&'p Vec<u8>> {
    list.iter()
        .filter(|(other, _)| other == name)
        .nth(at)
        .map(|(_, value)| value)
}

fn occurrence(list: &[Part], at: usize) -> usize {
    list[..at]
        .iter()
        .filter(|(name, _)| *name == list[at].0)
        .count()
}

fn is_parent(name: &str) -> bool {
    matches!(name, "base" | "source" | "layers" | "lower" | "upper")
}

/// What a part stands for, if it stands for files.
pub(crate) fn files_of(part: &str) -> Option<&str> {
    part.strip_prefix("files of ")
        .or_else(|| part.starts_with("files mounted").then_some(part))
}

/// The base image is another one, or an earlier step gave something else.
fn parent(name: &str, now: &[Part], before: &[Part], inputs: &dyn Inputs) -> String {
    let about = format!("{ABOUT}{name}");
    let image =
        |list| nth(list, &about, 0).map(|value| String::from_utf8_lossy(value).into_owned());
    if let (Some(new), Some(old)) = (image(now), image(before)) {
        return image_moved(&old, &new);
    }
    inputs.told(name).unwrap_or_else(|| match name {
        "source" => "what it copies from is another one".to_owned(),
        _ => "the step before it gave another result".to_owned(),
    })
}

fn image_moved(old: &str, new: &str) -> String {
    let split = |text: &str| {
        let (name, digest) = text.rsplit_once('@').unwrap_or((text, ""));
        let name = name.strip_prefix("docker.io/library/").unwrap_or(name);
        let end = digest.len().min("sha256:".len() + 12);
        (name.to_owned(), digest[..end].to_owned())
    };
    let ((old_name, old), (new_name, new)) = (split(old), split(new));
    if old_name == new_name {
        format!("base image {new_name} moved from {old} to {new}")
    } else {
        format!("base image {old_name} ({old}) was replaced by {new_name} ({new})")
    }
}

fn described(name: &str, old: Option<&[u8]>, new: Option<&[u8]>) -> String {
    if let Some(variable) = name.strip_prefix("environment ") {
        let shown = |value: Option<&[u8]>| {
            let value = value.map(String::from_utf8_lossy)?;
            (!is_secret_name(variable)).then(|| cut(&value, 0))
        };
        return match (old, new) {
            (Some(_), Some(_)) => match (shown(old), shown(new)) {
                (Some(old), Some(new)) => {
                    format!("variable {variable} changed from {old} to {new}")
                }
                _ => format!("variable {variable} changed"),
            },
            (None, _) => match shown(new) {
                Some(new) => format!("variable {variable} is new: {new}"),
                None => format!("variable {variable} is new"),
            },
            (_, None) => format!("variable {variable} is gone"),
        };
    }
    if name.starts_with("command ") {
        return match (old, new) {
            (Some(old), Some(new)) => {
                let (old, new) = (String::from_utf8_lossy(old), String::from_utf8_lossy(new));
                let same = old
                    .bytes()
                    .zip(new.bytes())
                    .take_while(|(a, b)| a == b)
                    .count();
                format!(
                    "the command changed from {} to {}",
                    cut(&old, same),
                    cut(&new, same)
                )
            }
            _ => "the command changed".to_owned(),
        };
    }
    if let (Some(old), Some(new), "copy" | "action") = (old, new, name) {
        return fields(old, new).unwrap_or_else(|| "the instruction changed".to_owned());
    }
    if matches!(name, "copy" | "action" | "output") {
        return "the instruction changed".to_owned();
    }
    // A key says nothing to anybody.
    let text = |value: Option<&[u8]>| match files_of(name) {
        None => Some(cut(std::str::from_utf8(value?).ok()?, 0)),
        Some(_) => None,
    };
    let name = files_of(name).unwrap_or(name);
    match (old, new) {
        (Some(_), Some(_)) => match (text(old), text(new)) {
            (Some(old), Some(new)) => format!("{name} changed from {old} to {new}"),
            _ => format!("{name} changed"),
        },
        (None, _) => match text(new) {
            Some(new) => format!("{name} {new} is new"),
            None => format!("{name} is new"),
        },
        (_, None) => match text(old) {
            Some(old) => format!("{name} {old} is gone"),
            None => format!("{name} is gone"),
        },
    }
}

/// The first field in which two actions differ.
fn fields(old: &[u8], new: &[u8]) -> Option<String> {
    let object = |bytes| match serde_json::from_slice(bytes) {
        Ok(Value::Object(fields)) => Some(fields),
        _ => None,
    };
    let (old, new) = (object(old)?, object(new)?);
    let (name, value) = new
        .iter()
        .find(|(name, value)| old.get(*name) != Some(value))?;
    let plain = |value: &Value| match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => cut(text, 0),
        Value::Object(fields) if fields.contains_key("user") => {
            let id = |name: &str| match &value[name] {
                Value::Object(reference) => match (&reference.get("Id"), reference.get("Name")) {
                    (Some(id), _) => id.to_string(),
                    (_, Some(name)) => name["name"].as_str().unwrap_or_default().to_owned(),
                    _ => String::new(),
                },
                _ => String::new(),
            };
            format!("{}:{}", id("user"), id("group"))
                .trim_end_matches(':')
                .to_owned()
        }
        other => cut(&other.to_string(), 0),
    };
    let old = old.get(name).map_or_else(|| "nothing".to_owned(), &plain);
    let name = match name.as_str() {
        "dest" => "the destination",
        "src" => "the source",
        "mode" => "--chmod",
        "owner" => "--chown",
        "exclude_patterns" => "--exclude",
        _ => return Some("the instruction changed".to_owned()),
    };
    Some(format!("{name} changed from {old} to {}", plain(value)))
}

/// A value in quotes, cut to what can be read at a glance around the place `at`.
fn cut(value: &str, at: usize) -> String {
    if value.chars().count() <= SHOWN {
        return format!("{value:?}");
    }
    let mut start = at.saturating_sub(SHOWN / 3).min(value.len());
    while !value.is_char_boundary(start) {
        start -= 1;
    }
    let shown: String = value[start..].chars().take(SHOWN).collect();
    let (front, back) = (
        if start > 0 { "..." } else { "" },
        if start + shown.len() < value.len() {
            "..."
        } else {
            ""
        },
    );
    format!("{front}{shown:?}{back}")
}

/// The step of an earlier build that is the same one: by its text, the `nth` where several have the same one, else, in the
/// latest build, by its place in the stage, if the text there is not one of those of the stage now, of which `texts` tells how
/// many there are.
pub(crate) fn counterpart<'b>(
    builds: &'b [Vec<BuildStep>],
    (stage, step, nth): (&str, &str, usize),
    title: &str,
    texts: &dyn Fn(&str) -> usize,
) -> Vec<&'b BuildStep> {
    let known = |step: &&BuildStep| step.state != StepState::NotReached;
    let same: Vec<&BuildStep> = builds
        .iter()
        .filter_map(|steps| {
            let same = |it: &&BuildStep| it.stage == stage && it.step == step;
            steps.iter().filter(same).take(nth + 1).last()
        })
        .filter(known)
        .collect();
    if !same.is_empty() {
        return same;
    }
    let word = |text: &str| text.split(' ').next().unwrap_or_default().to_owned();
    let place = |title: &str| {
        let (place, _) = title.strip_prefix('[')?.split_once('/')?;
        Some(place.to_owned())
    };
    let Some(here) = place(title) else {
        return Vec::new();
    };
    let there = |steps: &'b Vec<BuildStep>| {
        let at = steps.iter().position(|it| {
            known(&it)
                && it.stage == stage
                && place(&it.title).as_ref() == Some(&here)
                && word(&it.step) == word(step)
        })?;
        let (before, it) = (&steps[..at], &steps[at]);
        let same = |other: &&BuildStep| other.stage == stage && other.step == it.step;
        (before.iter().filter(same).count() >= texts(&it.step)).then_some(it)
    };
    builds.iter().find_map(there).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parts::Parts;

    struct Told;

    impl Inputs for Told {
        fn told(&self, _: &str) -> Option<String> {
            None
        }

        fn files(&self, part: &str, _: &[u8]) -> Option<Changes> {
            (part == "files of /known").then(|| Changes {
                texts: vec!["a changed".to_owned(), "b appeared".to_owned()],
                count: 3,
            })
        }
    }

    fn parts(list: &[(&str, &str)]) -> Vec<Part> {
        let mut parts = Parts::new("test", 1);
        for (name, value) in list {
            parts.add(*name, value);
        }
        parts.into_inner()
    }

    #[test]
    fn the_first_difference_of_the_steps_own_is_named() {
        let before = [
            ("command 0", "make"),
            ("environment A", "1"),
            ("environment API_TOKEN", "hidden1"),
            ("base", "x"),
            ("files of /src", "d1"),
            ("files of /known", "d1"),
            (
                "about base",
                "docker.io/library/busybox:latest@sha256:0123456789abcdef",
            ),
        ];
        let with = |at: usize, value: &'static str| {
            let mut list = before;
            list[at].1 = value;
            list.to_vec()
        };
        let without = |name: &str| {
            let mut list = before.to_vec();
            list.retain(|(other, _)| *other != name);
            list
        };
        let image = "docker.io/library/busybox:latest@sha256:fedcba9876543210";
        let mut moved = with(3, "y");
        moved[6].1 = image;
        let mut both = with(3, "y");
        both[1].1 = "2";
        let cases = [
            (with(1, "2"), r#"variable A changed from "1" to "2""#),
            (with(2, "hidden2"), "variable API_TOKEN changed"),
            (both, r#"variable A changed from "1" to "2""#),
            (with(4, "d2"), "/src changed"),
            (with(5, "d2"), "a changed (and 2 more files)"),
            (without("about base"), ""),
            (
                moved,
                "base image busybox:latest moved from sha256:0123456789ab to sha256:fedcba987654",
            ),
            (
                with(0, "make all"),
                r#"the command changed from "make" to "make all""#,
            ),
            (without("environment A"), "variable A is gone"),
        ];
        for (now, text) in cases {
            let reason = difference(&parts(&now), &parts(&before), &Told);
            assert_eq!(reason.unwrap_or_default().text, text);
        }
        let mut parent = without("about base");
        parent[3].1 = "y";
        let reason = difference(&parts(&parent), &parts(&before), &Told);
        assert_eq!(
            reason.unwrap().text,
            "the step before it gave another result"
        );
    }

    #[test]
    fn long_values_are_shown_around_the_difference() {
        let long = "x".repeat(100);
        let changed = described(
            "command 2",
            Some(format!("{long}a{long}").as_bytes()),
            Some(format!("{long}b").as_bytes()),
        );
        let (front, back) = ("x".repeat(20), "x".repeat(39));
        assert_eq!(
            changed,
            format!(r#"the command changed from ..."{front}a{back}"... to ..."{front}b""#)
        );
    }

    #[test]
    fn what_differs_of_an_instruction_is_named() {
        let described =
            |old: &str, new: &str| described("copy", Some(old.as_bytes()), Some(new.as_bytes()));
        assert_eq!(
            described(
                r#"{"dest":"/a","mode":null}"#,
                r#"{"dest":"/b","mode":null}"#
            ),
            r#"the destination changed from "/a" to "/b""#
        );
        assert_eq!(
            described(
                r#"{"dest":"/a","mode":null}"#,
                r#"{"dest":"/a","mode":"0700"}"#
            ),
            r#"--chmod changed from nothing to "0700""#
        );
    }

    #[test]
    fn steps_are_the_same_by_text_or_by_place() {
        let step = |title: &str, step: &str, state| BuildStep {
            number: 0,
            title: title.to_owned(),
            stage: "build".to_owned(),
            step: step.to_owned(),
            state,
            started: None,
            took: None,
            reason: None,
            changes: Vec::new(),
            keys: Vec::new(),
        };
        let twice = [vec![
            step("[build 2/3] RUN a", "RUN a", StepState::Done),
            step("[build 3/3] RUN a", "RUN a", StepState::Done),
        ]];
        for (nth, title) in ["[build 2/3] RUN a", "[build 3/3] RUN a"]
            .iter()
            .enumerate()
        {
            let same = counterpart(&twice, ("build", "RUN a", nth), "", &|_| 2);
            assert_eq!(same[0].title, *title);
        }
        let one = counterpart(&twice, ("build", "RUN b", 0), "[build 3/3] RUN b", &|_| 1);
        assert_eq!(one[0].title, "[build 3/3] RUN a");
        assert!(counterpart(&twice, ("build", "RUN b", 0), "[build 2/3] RUN b", &|_| 1).is_empty());
        let builds = [
            vec![
                step("[build 2/3] RUN a", "RUN a", StepState::Done),
                step("[build 3/3] RUN b", "RUN b", StepState::NotReached),
            ],
            vec![step("[build 3/3] RUN b", "RUN b", StepState::Cached)],
        ];
        let found = |text: &str, title: &str, now: &[&str]| {
            let steps = counterpart(&builds, ("build", text, 0), title, &|it| {
                usize::from(now.contains(&it))
            });
            steps.iter().map(|it| it.title.clone()).collect::<Vec<_>>()
        };
        assert_eq!(
            found("RUN b", "[build 4/4] RUN b", &[]),
            ["[build 3/3] RUN b"]
        );
        assert_eq!(
            found("RUN aa", "[build 2/4] RUN aa", &[]),
            ["[build 2/3] RUN a"]
        );
        assert!(found("RUN aa", "[build 2/4] RUN aa", &["RUN a"]).is_empty());
        assert!(found("COPY a", "[build 2/4] COPY a", &[]).is_empty());
        assert!(
            counterpart(&builds, ("other", "RUN a", 0), "[other 2/3] RUN a", &|_| {
                0
            })
            .is_empty()
        );
    }
}
