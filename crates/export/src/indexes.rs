//! Images of several platforms.

use std::collections::BTreeMap;

use kiln_image::{
    Descriptor, Digest, Document, Index, Platform, Reference, media_type, parse_manifest,
};
use kiln_store::Store;

use crate::ExportError;

/// An image of an index that is made.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its manifest, which is in the store.
    pub manifest: Digest,
    /// What it is for.
    pub platform: Platform,
    /// Annotations of its entry.
    pub annotations: BTreeMap<String, String>,
}

/// Makes an index of images of the store. It is kept once a tag leads to it, or with [`Store::set_index`].
///
/// # Errors
/// When an image is not there, or the store fails.
pub fn commit_index(
    store: &Store,
    members: &[Member],
    annotations: &BTreeMap<String, String>,
) -> Result<Digest, ExportError> {
    let mut entries = Vec::with_capacity(members.len());
    for member in members {
        let missing = || ExportError::NoImage(member.manifest.to_string());
        let (kind, bytes) = store.json(member.manifest)?.ok_or_else(missing)?;
        entries.push(Descriptor {
            platform: Some(member.platform.clone()),
            annotations: some(&member.annotations),
            ..Descriptor::new(&kind, member.manifest, bytes.len() as u64)
        });
    }
    let index = Index {
        annotations: some(annotations),
        ..Index::new(media_type::OCI_INDEX, entries)
    };
    Ok(store.put_json(media_type::OCI_INDEX, &index.to_bytes())?)
}

/// An index of some of the images of an index; an image alone stays one.
///
/// # Errors
/// When there is no such index, or the store fails.
pub fn part_of_index(
    store: &Store,
    index: Digest,
    images: &[Digest],
) -> Result<Digest, ExportError> {
    let Some(whole) = store.index(index)? else {
        return match images {
            [image, ..] => Ok(*image),
            [] => Err(ExportError::NoImage(index.to_string())),
        };
    };
    let mut part = whole.document;
    part.manifests
        .retain(|entry| images.contains(&entry.digest));
    let kind = part.media_type.clone();
    let kind = kind.unwrap_or_else(|| media_type::OCI_INDEX.to_owned());
    Ok(store.put_json(&kind, &part.to_bytes())?)
}

fn some(annotations: &BTreeMap<String, String>) -> Option<BTreeMap<String, String>> {
    (!annotations.is_empty()).then(|| annotations.clone())
}

/// The index as it leaves the store, when its images have the descriptors `entries` there: with its own bytes if they
/// are all that it names. Gives its media type and its bytes.
pub(crate) fn leaving(
    store: &Store,
    index: Digest,
    entries: Vec<Descriptor>,
    docker: bool,
) -> Result<(String, Vec<u8>), ExportError> {
    let missing = || ExportError::NoImage(index.to_string());
    let (kind, bytes) = store.json(index)?.ok_or_else(missing)?;
    let Ok(Document::Index(document)) = parse_manifest(&bytes, Some(&kind)) else {
        return Err(missing());
    };
    let wanted = if docker {
        media_type::DOCKER_LIST
    } else {
        media_type::OCI_INDEX
    };
    if document.manifests == entries && (kind == wanted || !docker) {
        return Ok((kind, bytes));
    }
    let leaving = Index {
        media_type: Some(wanted.to_owned()),
        manifests: entries,
        ..document
    };
    Ok((wanted.to_owned(), leaving.to_bytes()))
}

/// Lets a name lead to an image that came from a registry, or to the index that names it: to the index where the name
/// led to an image of the same index before, which stays.
///
/// # Errors
/// When there is no such image, or the store fails.
pub fn name(
    store: &Store,
    name: &Reference,
    digest: Digest,
    manifest: Digest,
) -> Result<(), ExportError> {
    store.set_repo_digest(name, digest, manifest)?;
    if name.digest().is_some() {
        return Ok(());
    }
    let before = store.resolve(name)?;
    let beside = match before {
        Some(before) if before == digest => true,
        Some(before) if before != manifest => {
            let digests = store.repo_digests(before)?;
            digests
                .iter()
                .any(|it| it.name() == name.name() && it.digest() == Some(digest))
        }
        _ => false,
    };
    let target = if beside { digest } else { manifest };
    Ok(store.tag(name, target)?)
}
