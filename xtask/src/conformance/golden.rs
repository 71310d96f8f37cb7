//! What a build came to, as text: the tree and the config, without what no two builds share.

use std::fmt::Write as _;

use serde_json::Value;

use crate::compare::{Kind, Node, SavedImage, Tree};

/// The image without what its base has, so that the text is the same for every version of the base.
pub(super) fn describe(image: &SavedImage, base: &SavedImage) -> String {
    let nothing = Tree::default();
    let layers = |image: &SavedImage| image.config["rootfs"]["diff_ids"][0].clone();
    let based = !layers(base).is_null() && layers(image) == layers(base);
    let beneath = if based { &base.files } else { &nothing };
    let mut text = String::new();
    tree(&mut text, &image.files, beneath);
    config(&mut text, &image.config);
    let skipped = if based { history(base).len() } else { 0 };
    for step in history(image).iter().skip(skipped) {
        let mark = if step["empty_layer"] == true {
            '-'
        } else {
            '+'
        };
        let by = step["created_by"].as_str().unwrap_or_default();
        let _ = writeln!(text, "history {mark} {}", by.escape_debug());
    }
    text
}

fn history(image: &SavedImage) -> &[Value] {
    image.config["history"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn tree(text: &mut String, files: &Tree, beneath: &Tree) {
    let (links, old_links) = (files.hard_links(), beneath.hard_links());
    for (path, node) in files.iter() {
        let line = line(path, node, links.get(path).copied());
        let old = beneath.get(path);
        if old.map(|old| self::line(path, old, old_links.get(path).copied())) != Some(line.clone())
        {
            text.push_str(&line);
        }
    }
    for (path, _) in beneath.iter().filter(|(path, _)| files.get(path).is_none()) {
        let _ = writeln!(text, "/{} removed", path.escape_ascii());
    }
}

fn line(path: &[u8], node: &Node, first: Option<&[u8]>) -> String {
    let mut line = format!("/{} {}", path.escape_ascii(), kind(node));
    if let Some(first) = first.filter(|first| *first != path) {
        let _ = write!(line, " = /{}", first.escape_ascii());
    }
    line + "\n"
}

fn kind(node: &Node) -> String {
    let mut text = match &node.kind {
        Kind::Dir => format!("folder {:04o}", node.mode),
        Kind::File {
            short: Some(content),
            ..
        } => format!("file {:04o} \"{}\"", node.mode, content.escape_ascii()),
        Kind::File { size, sha256, .. } => {
            let hash = sha256[..8].iter().fold(String::new(), |mut text, byte| {
                let _ = write!(text, "{byte:02x}");
                text
            });
            format!("file {:04o} {size} bytes {hash}", node.mode)
        }
        // The kernel does not keep the mode of a symbolic link; tar writers put there what they like.
        Kind::Symlink(target) => format!("-> {}", target.escape_ascii()),
        Kind::Char(major, minor) => format!("character {:04o} {major}:{minor}", node.mode),
        Kind::Block(major, minor) => format!("block {:04o} {major}:{minor}", node.mode),
        Kind::Fifo => format!("fifo {:04o}", node.mode),
        Kind::Whiteout | Kind::Opaque => "a mark outside a layer".to_owned(),
    };
    let _ = write!(text, " {}:{}", node.uid, node.gid);
    for (name, value) in &node.xattrs {
        let _ = write!(text, " {}={}", name.escape_ascii(), value.escape_ascii());
    }
    text
}

fn config(text: &mut String, image: &Value) {
    for name in ["os", "architecture", "variant", "author"] {
        if let Some(value) = image[name].as_str().filter(|value| !value.is_empty()) {
            let _ = writeln!(text, "{name} {}", value.escape_debug());
        }
    }
    let Some(config) = image["config"].as_object() else {
        return;
    };
    let mut keys: Vec<_> = config.iter().collect();
    keys.sort_by_key(|(name, _)| name.as_str());
    for (name, value) in keys {
        // What is null, false or empty is as good as missing, but an emptied list of words is not.
        let empty = matches!(value, Value::Null | Value::Bool(false)) || value == "";
        if !empty {
            let _ = writeln!(text, "{name} {}", sorted(value));
        }
    }
}

/// With the keys of objects in order, in which docker does not write them.
fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut pairs: Vec<_> = map.iter().collect();
            pairs.sort_by_key(|(name, _)| name.as_str());
            let sorted = pairs
                .into_iter()
                .map(|(name, value)| (name.clone(), sorted(value)));
            Value::Object(sorted.collect())
        }
        other => other.clone(),
    }
}

/// Lines that only one of two texts has: `-` is ours, `+` the golden one's.
pub(super) fn differences(ours: &str, golden: &str) -> Vec<String> {
    let only = |mark: char, these: &str, those: &str| {
        let those: Vec<&str> = those.lines().collect();
        these
            .lines()
            .filter(|line| !those.contains(line))
            .map(|line| format!("{mark} {line}"))
            .collect::<Vec<_>>()
    };
    let mut found = only('-', ours, golden);
    found.extend(only('+', golden, ours));
    if found.is_empty() && ours != golden {
        found.push("the same lines in another order".to_owned());
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_counts_too() {
        assert!(differences("a\nb\n", "a\nb\n").is_empty());
        assert_eq!(differences("a\nb\n", "a\nc\n"), ["- b", "+ c"]);
        assert_eq!(differences("a\nb\n", "b\na\n").len(), 1);
    }
}
