//! Differences between two trees, and between two images.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::config::config_differences;
use super::saved::SavedImage;
use super::tree::{Kind, Node, Tree, show};

/// Files and config. `-` is ours, `+` is theirs.
pub fn image_differences(ours: &SavedImage, theirs: &SavedImage) -> Vec<String> {
    let mut found = tree_differences(&ours.files, &theirs.files);
    found.extend(config_differences(&ours.config, &theirs.config));
    if ours.layers.len() != theirs.layers.len() {
        found.push(format!("- {} layers", ours.layers.len()));
        found.push(format!("+ {} layers", theirs.layers.len()));
    }
    found
}

/// One or two lines for each path that differs in type, mode, owner, target, content, xattrs or hard links.
pub fn tree_differences(ours: &Tree, theirs: &Tree) -> Vec<String> {
    let (our_links, their_links) = (ours.hard_links(), theirs.hard_links());
    let paths: BTreeSet<&[u8]> = ours
        .iter()
        .chain(theirs.iter())
        .map(|(path, _)| path)
        .collect();
    let mut found = Vec::new();
    for path in paths {
        let left = ours
            .get(path)
            .map(|node| describe(node, our_links.get(path).copied()));
        let right = theirs
            .get(path)
            .map(|node| describe(node, their_links.get(path).copied()));
        if left != right {
            found.extend(left.map(|text| format!("- {} {text}", show(path))));
            found.extend(right.map(|text| format!("+ {} {text}", show(path))));
        }
    }
    found
}

/// All that counts, in one line.
fn describe(node: &Node, linked: Option<&[u8]>) -> String {
    let mut text = match &node.kind {
        Kind::Dir => "folder".to_owned(),
        Kind::File { size, sha256, .. } => format!("file {size} bytes {}", hex(sha256)),
        Kind::Symlink(target) => format!("-> {}", target.escape_ascii()),
        Kind::Char(major, minor) => format!("character device {major}:{minor}"),
        Kind::Block(major, minor) => format!("block device {major}:{minor}"),
        Kind::Fifo => "fifo".to_owned(),
        Kind::Whiteout => return "whiteout".to_owned(),
        Kind::Opaque => return "opaque".to_owned(),
    };
    // The kernel does not keep the mode of a symbolic link; tar writers put there what they like.
    if !matches!(node.kind, Kind::Symlink(_)) {
        let _ = write!(text, " {:04o}", node.mode);
    }
    let _ = write!(text, " {}:{}", node.uid, node.gid);
    for (name, value) in &node.xattrs {
        let _ = write!(text, " {}={}", name.escape_ascii(), value.escape_ascii());
    }
    if let Some(first) = linked {
        let _ = write!(text, " = {}", show(first));
    }
    text
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .concat()
}
