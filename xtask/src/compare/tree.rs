//! A file tree as layers of tar make it: what counts in a comparison, and nothing else.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

/// Bytes from which on a content is known by its hash alone.
const SHORT: u64 = 400;

/// What a path is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A folder.
    Dir,
    /// A file, by its content.
    File {
        /// Bytes.
        size: u64,
        /// Of the content.
        sha256: [u8; 32],
        /// The content itself where it is short.
        short: Option<Vec<u8>>,
    },
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A character device.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// Removes what lies below. Only in the tree of one layer.
    Whiteout,
    /// Hides what lies below in this folder. Only in the tree of one layer.
    Opaque,
}

/// One path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// `07777`.
    pub mode: u32,
    /// Owner.
    pub uid: u64,
    /// Group.
    pub gid: u64,
    /// By name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The same number for all names of one file.
    file: u64,
}

/// Paths without a leading slash, the root as the empty path.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    nodes: BTreeMap<Vec<u8>, Node>,
    files: u64,
}

/// What PAX and GNU extension headers say of the next entry.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Tree {
    /// The paths in order.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Node)> {
        self.nodes
            .iter()
            .map(|(path, node)| (path.as_slice(), node))
    }

    /// One path.
    pub fn get(&self, path: &[u8]) -> Option<&Node> {
        self.nodes.get(path)
    }

    /// The first name of each file that has several, for all its names.
    pub fn hard_links(&self) -> BTreeMap<&[u8], &[u8]> {
        let mut names: BTreeMap<u64, Vec<&[u8]>> = BTreeMap::new();
        for (path, node) in self.iter().filter(|(_, node)| node.kind != Kind::Dir) {
            names.entry(node.file).or_default().push(path);
        }
        let several = names.values().filter(|names| names.len() > 1);
        several
            .flat_map(|names| names.iter().map(|name| (*name, names[0])))
            .collect()
    }

    /// Reads one layer; `beneath` is what its hard links may point into besides itself.
    pub fn of_layer(tar: impl Read, beneath: &Self) -> Result<Self> {
        let mut tree = Self {
            nodes: BTreeMap::new(),
            files: beneath.files,
        };
        let mut extension = Extension::default();
        for entry in tar::Archive::new(tar).entries()?.raw(true) {
            let mut entry = entry?;
            let kind = entry.header().entry_type();
            if kind.is_pax_local_extensions() {
                let mut text = Vec::new();
                entry.read_to_end(&mut text)?;
                extension.read_pax(&text)?;
            } else if kind.is_gnu_longname() || kind.is_gnu_longlink() {
                let mut name = Vec::new();
                entry.read_to_end(&mut name)?;
                while name.last() == Some(&0) {
                    name.pop();
                }
                *(if kind.is_gnu_longname() {
                    &mut extension.path
                } else {
                    &mut extension.link
                }) = Some(name);
            } else if !kind.is_pax_global_extensions() {
                tree.add(&mut entry, std::mem::take(&mut extension), beneath)?;
            }
        }
        Ok(tree)
    }

    fn add(
        &mut self,
        entry: &mut tar::Entry<impl Read>,
        extension: Extension,
        beneath: &Self,
    ) -> Result<()> {
        let header = entry.header().clone();
        let path = extension
            .path
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let path = clean(&path);
        let link = extension
            .link
            .or_else(|| Some(header.link_name_bytes()?.into_owned()));
        let device = || -> Result<(u32, u32)> {
            Ok((
                header.device_major()?.unwrap_or(0),
                header.device_minor()?.unwrap_or(0),
            ))
        };
        let entry_type = header.entry_type();
        let (folder, name) = split(&path);
        if let Some(hidden) = name.strip_prefix(b".wh.") {
            let (path, kind) = if hidden == b".wh..opq" {
                (join(folder, b".wh..wh..opq"), Kind::Opaque)
            } else {
                (join(folder, hidden), Kind::Whiteout)
            };
            let node = Node {
                kind,
                mode: 0,
                uid: 0,
                gid: 0,
                xattrs: BTreeMap::new(),
                file: 0,
            };
            self.nodes.insert(path, node);
            return Ok(());
        }
        if entry_type.is_hard_link() {
            let target = clean(&link.unwrap_or_default());
            let node = self
                .nodes
                .get(&target)
                .or_else(|| beneath.nodes.get(&target))
                .with_context(|| {
                    format!(
                        "{} links to {}, which is not there",
                        show(&path),
                        show(&target)
                    )
                })?;
            self.nodes.insert(path, node.clone());
            return Ok(());
        }
        let kind = if entry_type.is_dir() {
            Kind::Dir
        } else if entry_type.is_symlink() {
            Kind::Symlink(link.unwrap_or_default())
        } else if entry_type.is_character_special() {
            let (major, minor) = device()?;
            Kind::Char(major, minor)
        } else if entry_type.is_block_special() {
            let (major, minor) = device()?;
            Kind::Block(major, minor)
        } else if entry_type.is_fifo() {
            Kind::Fifo
        } else if entry_type.is_file() || entry_type.is_contiguous() {
            let mut hasher = Sha256::new();
            let mut short = Vec::new();
            entry.by_ref().take(SHORT).read_to_end(&mut short)?;
            hasher.update(&short);
            let size = short.len() as u64 + copy_into(entry, &mut hasher)?;
            Kind::File {
                size,
                sha256: hasher.finalize().into(),
                short: Some(short).filter(|content| (content.len() as u64) < SHORT),
            }
        } else {
            bail!(
                "{}: entry of an unexpected type {entry_type:?}",
                show(&path)
            );
        };
        self.files += 1;
        let node = Node {
            kind,
            mode: header.mode()? & 0o7777,
            uid: extension.uid.map_or_else(|| header.uid(), Ok)?,
            gid: extension.gid.map_or_else(|| header.gid(), Ok)?,
            xattrs: extension.xattrs,
            file: self.files,
        };
        self.nodes.insert(path, node);
        Ok(())
    }

    /// Stacks a layer on this tree, as unpacking it here would.
    pub fn apply(&mut self, layer: &Self) {
        for (path, node) in &layer.nodes {
            match node.kind {
                Kind::Whiteout => {
                    self.nodes.remove(path);
                    self.remove_below(path);
                }
                Kind::Opaque => self.remove_below(split(path).0),
                _ => {}
            }
        }
        for (path, node) in &layer.nodes {
            if matches!(node.kind, Kind::Whiteout | Kind::Opaque) {
                continue;
            }
            if node.kind != Kind::Dir {
                self.remove_below(path);
            }
            self.nodes.insert(path.clone(), node.clone());
        }
        self.files = layer.files;
    }

    fn remove_below(&mut self, folder: &[u8]) {
        let start = if folder.is_empty() {
            Vec::new()
        } else {
            join(folder, b"")
        };
        let below = |path: &[u8]| !path.is_empty() && path.starts_with(&start);
        let paths: Vec<Vec<u8>> = self
            .nodes
            .range(start.clone()..)
            .map(|(path, _)| path.clone())
            .take_while(|path| path.is_empty() || below(path))
            .filter(|path| below(path))
            .collect();
        for path in paths {
            self.nodes.remove(&path);
        }
    }
}

impl Extension {
    /// `LENGTH KEY=VALUE\n`, where the length counts the whole record: values may hold any bytes.
    fn read_pax(&mut self, mut text: &[u8]) -> Result<()> {
        while !text.is_empty() {
            let space = text
                .iter()
                .position(|byte| *byte == b' ')
                .context("PAX record without a length")?;
            let length: usize = std::str::from_utf8(&text[..space])?.parse()?;
            let record = text
                .get(space + 1..length)
                .context("PAX record longer than its header")?;
            text = &text[length..];
            let record = record
                .strip_suffix(b"\n")
                .context("PAX record without an end")?;
            let equals = record
                .iter()
                .position(|byte| *byte == b'=')
                .context("PAX record without a value")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            let number = || -> Result<u64> { Ok(std::str::from_utf8(value)?.parse()?) };
            match key {
                b"path" => self.path = Some(value.to_vec()),
                b"linkpath" => self.link = Some(value.to_vec()),
                b"uid" => self.uid = Some(number()?),
                b"gid" => self.gid = Some(number()?),
                b"size" => bail!("a file too large for this reader"),
                _ => {
                    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                        self.xattrs.insert(name.to_vec(), value.to_vec());
                    }
                }
            }
        }
        Ok(())
    }
}

fn copy_into(from: &mut impl Read, hasher: &mut Sha256) -> Result<u64> {
    let mut buffer = vec![0; 128 * 1024];
    let mut size = 0;
    loop {
        let count = from.read(&mut buffer)?;
        if count == 0 {
            return Ok(size);
        }
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
}

/// Without `./`, leading and trailing slashes.
fn clean(path: &[u8]) -> Vec<u8> {
    let parts = path
        .split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."));
    parts.collect::<Vec<_>>().join(&b'/')
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn join(folder: &[u8], name: &[u8]) -> Vec<u8> {
    if folder.is_empty() {
        name.to_vec()
    } else {
        [folder, b"/", name].concat()
    }
}

/// A path for people.
pub(crate) fn show(path: &[u8]) -> String {
    format!("/{}", path.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `(path, type, link, content)` as a tar.
    fn tar(entries: &[(&str, u8, &str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, kind, link, content) in entries {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(tar::EntryType::new(*kind));
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(content.len() as u64);
            header.set_path(path).expect("short");
            if !link.is_empty() {
                header.set_link_name(link).expect("short");
            }
            header.set_cksum();
            builder.append(&header, *content).expect("in memory");
        }
        builder.into_inner().expect("in memory")
    }

    fn paths(tree: &Tree) -> Vec<String> {
        tree.iter().map(|(path, _)| show(path)).collect()
    }

    fn stacked(layers: &[Vec<u8>]) -> Tree {
        let mut tree = Tree::default();
        for layer in layers {
            let layer = Tree::of_layer(layer.as_slice(), &tree).expect("a layer");
            tree.apply(&layer);
        }
        tree
    }

    #[test]
    fn layers_stack_with_whiteouts_and_opaque_folders() {
        let below = tar(&[
            ("./", b'5', "", b""),
            ("./a/", b'5', "", b""),
            ("./a/one", b'0', "", b"1"),
            ("./a/two", b'0', "", b"2"),
            ("./a.txt", b'0', "", b"t"),
            ("./b/", b'5', "", b""),
            ("./b/x", b'0', "", b"x"),
        ]);
        let above = tar(&[
            ("a/.wh.one", b'0', "", b""),
            ("b/.wh..wh..opq", b'0', "", b""),
            ("b/y", b'0', "", b"y"),
        ]);
        let tree = stacked(&[below.clone(), above]);
        assert_eq!(paths(&tree), ["/", "/a", "/a.txt", "/a/two", "/b", "/b/y"]);
        let replaced = stacked(&[below, tar(&[("a", b'2', "b", b"")])]);
        assert_eq!(paths(&replaced), ["/", "/a", "/a.txt", "/b", "/b/x"]);
    }

    #[test]
    fn names_of_one_file_are_a_group() {
        let links = |second: u8| {
            stacked(&[tar(&[
                ("f", b'0', "", b"same"),
                ("g", second, if second == b'1' { "f" } else { "" }, b""),
            ])])
        };
        assert_eq!(links(b'1').hard_links().len(), 2);
        assert!(links(b'0').hard_links().is_empty());
    }

    #[test]
    fn pax_values_hold_any_bytes() {
        let mut extension = Extension::default();
        extension
            .read_pax(b"32 SCHILY.xattr.user.a=1\n2=3\0\n4\n15 uid=1234567\n")
            .expect("well formed");
        assert_eq!(extension.xattrs[b"user.a".as_slice()], b"1\n2=3\0\n4");
        assert_eq!(extension.uid, Some(1_234_567));
        assert!(Extension::default().read_pax(b"99 a=b\n").is_err());
    }
}
