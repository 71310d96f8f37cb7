//! What comes from registries, archives and the store.

use std::collections::HashMap;
use std::io::Read as _;

use kiln_image::tar::{EntryKind, Header, Reader, Writer};
use kiln_image::tarlayer::{LayerBuilder, Step, write_layer};
use kiln_image::{
    Document, Entry, FileDigest, ImageConfig, Kind, LayerIndex, LayerPath, Reference,
    parse_manifest,
};

/// How much of a content is looked at: a sparse file can say that it is of any size.
const MOST: u64 = 1 << 16;

/// A reference, printed, is the same reference, in the long form and in the short one.
pub(crate) fn reference(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let Ok(exact) = Reference::parse_exact(&text) else {
        assert!(text.parse::<Reference>().is_err());
        return;
    };
    assert_eq!(
        Reference::parse_exact(&exact.to_string()),
        Ok(exact.clone())
    );
    assert_eq!(Reference::parse_exact(&exact.familiar()), Ok(exact.clone()));
    let full: Reference = text.parse().expect("only a tag is added");
    assert!(full.tag().is_some() || full.digest().is_some());
    assert_eq!(full.name(), exact.name());
    assert!(exact.repository().len() <= 255);
    assert!(
        !exact
            .repository()
            .split('/')
            .any(|part| matches!(part, "" | "." | ".."))
    );
}

/// All that comes out of an archive was in it, and what is written again is read as the same.
pub(crate) fn tar(data: &[u8]) {
    let entries = read(data);
    let mut writer = Writer::new(Vec::new());
    let mut written = Vec::new();
    for (header, content) in entries {
        // Sizes that were not read to the end, and types that are written as another one.
        let whole = header.size == content.len() as u64;
        let plain = !matches!(header.kind, EntryKind::Other(_))
            && (header.kind == EntryKind::Dir) == header.path.ends_with(b"/");
        if whole && plain && writer.append(&header, &mut &content[..]).is_ok() {
            written.push((header, content));
        }
    }
    let (archive, length) = writer.finish().expect("memory takes everything");
    assert_eq!(archive.len() as u64, length);
    let again = read(&archive);
    for (before, after) in written.iter().zip(&again) {
        assert_eq!(before, after);
    }
    assert_eq!(written.len(), again.len());
}

fn read(archive: &[u8]) -> Vec<(Header, Vec<u8>)> {
    let mut reader = Reader::new(archive);
    let mut entries = Vec::new();
    while let Ok(Some(mut entry)) = reader.next_entry() {
        assert!(entry.header.path.len() <= 1 << 16 && entry.header.link.len() <= 1 << 16);
        assert!(entry.content_offset <= archive.len() as u64);
        let mut content = Vec::new();
        let got = entry.content.by_ref().take(MOST).read_to_end(&mut content);
        assert!(content.len() as u64 <= entry.header.size);
        if got.is_err() {
            break;
        }
        assert_eq!(content.len() as u64, entry.header.size.min(MOST));
        let header = entry.header;
        entries.push((header, content));
        assert!(entries.len() <= archive.len() / 512);
    }
    assert!(reader.offset() <= archive.len() as u64);
    entries
}

/// A layer stays in its root, has a folder above everything, and its archive gives the same layer.
pub(crate) fn layer(data: &[u8]) {
    let Some((index, contents)) = build(data) else {
        return;
    };
    check_index(&index);
    for entry in index.entries() {
        for parent in std::iter::successors(entry.path.parent(), LayerPath::parent) {
            let there = index.get(&parent);
            assert!(
                parent.is_root() || there.is_some_and(Entry::is_dir),
                "{parent}"
            );
        }
        if let Some(group) = entry.hardlink {
            let names = index
                .entries()
                .iter()
                .filter(|one| one.hardlink == Some(group));
            assert!(
                names.count() > 1,
                "{} is the only name of its file",
                entry.path
            );
        }
    }
    let open = |entry: &Entry| {
        let Kind::File { digest, .. } = entry.kind else {
            panic!("{} is no file", entry.path);
        };
        Ok(&contents[&digest][..])
    };
    // Names like `.wh.x/y` can be kept in a folder, but not in an archive.
    let Ok((archive, _)) = write_layer(&index, None, Vec::new(), open) else {
        return;
    };
    let (again, _) = build(&archive).expect("an archive that Kiln wrote");
    assert_eq!(explicit(&index).content_id(), explicit(&again).content_id());
    assert_eq!(index.size(), again.size());
}

fn build(archive: &[u8]) -> Option<(LayerIndex, HashMap<FileDigest, Vec<u8>>)> {
    let mut builder = LayerBuilder::new();
    let mut contents = HashMap::new();
    let mut reader = Reader::new(archive);
    while let Some(mut entry) = reader.next_entry().ok()? {
        let header = entry.header.clone();
        if header.size > MOST {
            return None;
        }
        for step in builder.take(&header).ok()? {
            let Step::Put(put) = step else { continue };
            if !put.is_file() {
                continue;
            }
            let mut content = Vec::new();
            entry.content.read_to_end(&mut content).ok()?;
            let digest = FileDigest::new(*blake3::hash(&content).as_bytes());
            builder.set_digest(&put.path, digest);
            contents.insert(digest, content);
        }
    }
    Some((builder.finish(), contents))
}

/// In an archive a folder that is only on the way is one like all others.
fn explicit(index: &LayerIndex) -> LayerIndex {
    let mut entries = index.entries().to_vec();
    for entry in &mut entries {
        if let Kind::Dir { implied, .. } = &mut entry.kind {
            *implied = false;
        }
    }
    LayerIndex::new(entries)
}

fn check_index(index: &LayerIndex) {
    for pair in index.entries().windows(2) {
        assert!(
            pair[0].path < pair[1].path,
            "{} {}",
            pair[0].path,
            pair[1].path
        );
    }
    for entry in index.entries() {
        assert_eq!(LayerPath::clean(entry.path.as_bytes()), entry.path);
        assert!(entry.mode <= 0o7777);
        assert!(std::ptr::eq(index.get(&entry.path).expect("found"), entry));
    }
}

/// A document, printed, is the same document.
pub(crate) fn manifest(data: &[u8]) {
    let Ok(document) = parse_manifest(data, None) else {
        return;
    };
    let bytes = match &document {
        Document::Manifest(manifest) => manifest.to_bytes(),
        Document::Index(index) => {
            let _ = index.select(&kiln_image::Platform::new("linux", "arm", "v7"));
            index.to_bytes()
        }
    };
    let again = parse_manifest(&bytes, None).expect("what was written can be read");
    assert_eq!(again, document);
}

/// A config, printed, is the same config, and the bytes depend on it alone.
pub(crate) fn config(data: &[u8]) {
    let Ok(config) = ImageConfig::from_bytes(data) else {
        return;
    };
    let bytes = config.to_bytes();
    let again = ImageConfig::from_bytes(&bytes).expect("what was written can be read");
    assert_eq!(again, config);
    assert_eq!(again.to_bytes(), bytes);
    let _ = config.platform().normalised();
}

/// Magic, version and checksum.
pub(crate) const INDEX_FRAME: usize = 8 + 4 + 32;

/// The body of an index file in a valid frame, so that the fuzzer gets behind the checksum.
pub(crate) fn index(data: &[u8]) {
    let _ = LayerIndex::from_bytes(data);
    let mut framed = LayerIndex::default().to_bytes()[..INDEX_FRAME - 32].to_vec();
    framed.extend_from_slice(blake3::hash(data).as_bytes());
    framed.extend_from_slice(data);
    let Ok(index) = LayerIndex::from_bytes(&framed) else {
        return;
    };
    check_index(&index);
    let _ = (index.content_id(), index.size());
    let again = LayerIndex::from_bytes(&index.to_bytes()).expect("what was written can be read");
    assert_eq!(again, index);
}
