//! Why a step was executed and not taken from the cache.

use crate::parts::Parts;

/// Says what differs between a step's parts and those of the nearest earlier record of the same step, in words: the
/// first difference that is not only a consequence of an earlier step, else that consequence.
pub(crate) fn difference(now: &Parts, before: &[(String, Vec<u8>)]) -> String {
    let now = now.as_slice();
    let value = |list: &[(String, Vec<u8>)], name: &str, at: usize| {
        list.iter()
            .filter(|(other, _)| other == name)
            .nth(at)
            .map(|(_, value)| value.clone())
    };
    let occurrence = |list: &[(String, Vec<u8>)], at: usize| {
        list[..at]
            .iter()
            .filter(|(name, _)| *name == list[at].0)
            .count()
    };
    let mut parent = None;
    for (at, (name, new)) in now.iter().enumerate() {
        let text = match value(before, name, occurrence(now, at)) {
            Some(old) if old == *new => continue,
            Some(old) => describe_change(name, &old, new),
            None => format!("{name} is new"),
        };
        if is_parent(name) {
            parent.get_or_insert(text);
        } else {
            return text;
        }
    }
    for (at, (name, _)) in before.iter().enumerate() {
        if value(now, name, occurrence(before, at)).is_none() {
            return format!("{name} is gone");
        }
    }
    parent.unwrap_or_else(|| "the result of an earlier build is no longer there".to_owned())
}

fn is_parent(name: &str) -> bool {
    matches!(name, "base" | "source" | "layers" | "lower" | "upper")
}

fn describe_change(name: &str, old: &[u8], new: &[u8]) -> String {
    match name {
        "base" => "the step before it gave another result".to_owned(),
        "source" => "the stage or image it copies from is another one".to_owned(),
        _ if name.starts_with("files of ") => {
            format!("{} changed", name.trim_start_matches("files of "))
        }
        _ if name.starts_with("files mounted") => format!("{name} changed"),
        _ if name.starts_with("command") || name == "copy" || name == "action" => {
            "the command changed".to_owned()
        }
        _ => match (std::str::from_utf8(old), std::str::from_utf8(new)) {
            (Ok(old), Ok(new)) => format!("{name} changed from {old:?} to {new:?}"),
            _ => format!("{name} changed"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(list: &[(&str, &str)]) -> Parts {
        let mut parts = Parts::new("test", 1);
        for (name, value) in list {
            parts.add(*name, value);
        }
        parts
    }

    #[test]
    fn the_first_difference_of_the_steps_own_is_named() {
        let before = parts(&[
            ("command 0", "make"),
            ("environment A", "1"),
            ("base", "x"),
            ("files of /src", "d1"),
        ]);
        let cases = [
            (
                parts(&[
                    ("command 0", "make"),
                    ("environment A", "2"),
                    ("base", "x"),
                    ("files of /src", "d1"),
                ]),
                "environment A changed from \"1\" to \"2\"",
            ),
            (
                parts(&[
                    ("command 0", "make"),
                    ("environment A", "1"),
                    ("base", "y"),
                    ("files of /src", "d2"),
                ]),
                "/src changed",
            ),
            (
                parts(&[
                    ("command 0", "make"),
                    ("environment A", "1"),
                    ("base", "y"),
                    ("files of /src", "d1"),
                ]),
                "the step before it gave another result",
            ),
            (
                parts(&[
                    ("command 0", "make"),
                    ("base", "x"),
                    ("files of /src", "d1"),
                ]),
                "environment A is gone",
            ),
            (
                parts(&[
                    ("command 0", "make x"),
                    ("environment A", "1"),
                    ("base", "x"),
                    ("files of /src", "d1"),
                ]),
                "the command changed",
            ),
        ];
        for (now, text) in cases {
            assert_eq!(difference(&now, before.as_slice()), text);
        }
    }
}
