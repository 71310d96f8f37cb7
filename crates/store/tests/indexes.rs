//! Images of several platforms in the store.

mod common;

use common::{digest, open};
use kiln_image::{Descriptor, Digest, Index, Platform, Reference, media_type};
use kiln_store::{ImageInfo, Store};

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

fn platform(text: &str) -> Platform {
    text.parse().unwrap()
}

/// An image without layers, and its entry in an index.
fn image(store: &Store, number: u8, text: &str) -> Descriptor {
    let info = ImageInfo {
        config: digest(number + 100),
        layers: Vec::new(),
        size: 0,
        created: None,
        platform: platform(text),
    };
    store.set_image(digest(number), &info).unwrap();
    entry(number, text)
}

fn entry(number: u8, text: &str) -> Descriptor {
    Descriptor {
        platform: Some(platform(text)),
        ..Descriptor::new(media_type::OCI_MANIFEST, digest(number), 1)
    }
}

fn index(store: &Store, entries: &[&Descriptor]) -> Digest {
    let entries = entries.iter().map(|entry| (*entry).clone()).collect();
    let bytes = Index::new(media_type::OCI_INDEX, entries).to_bytes();
    store.put_json(media_type::OCI_INDEX, &bytes).unwrap()
}

#[test]
fn an_index_has_the_images_that_are_here() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let (amd, arm) = (
        image(&store, 1, "linux/amd64"),
        image(&store, 2, "linux/arm/v6"),
    );
    let whole = index(&store, &[&amd, &arm, &entry(3, "linux/arm64")]);
    let found = store.index(whole).unwrap().unwrap();
    assert_eq!(found.images.len(), 2);
    let select = |text: &str| found.select(&platform(text)).map(|image| image.manifest);
    assert_eq!(select("linux/amd64"), Some(digest(1)));
    // Not the one that is elsewhere.
    assert_eq!(select("linux/arm64"), Some(digest(2)));
    assert_eq!(select("linux/s390x"), None);

    // An image is no index, nor is one of which nothing is here.
    assert_eq!(store.index(digest(1)).unwrap(), None);
    let elsewhere = index(&store, &[&entry(3, "linux/arm64")]);
    assert_eq!(store.index(elsewhere).unwrap(), None);
    store.set_index(elsewhere).unwrap();
    assert_eq!(store.indexes().unwrap(), []);
    store.tag(&name("app"), whole).unwrap();
    let all = store.indexes().unwrap();
    assert_eq!((all.len(), &all[0].tags[..]), (1, &[name("app")][..]));
}

#[test]
fn with_an_index_go_the_images_that_nothing_else_leads_to() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let entries = [
        image(&store, 1, "linux/amd64"),
        image(&store, 2, "linux/arm64"),
        image(&store, 3, "linux/s390x"),
    ];
    let [shared, tagged, alone] = &entries;
    let one = index(&store, &[shared, tagged, alone]);
    let two = index(&store, &[shared]);
    store.tag(&name("one"), one).unwrap();
    store.set_index(two).unwrap();
    store.tag(&name("by-itself"), digest(2)).unwrap();
    let removed = store.remove_index(one).unwrap();
    let removed: Vec<_> = removed.iter().map(|image| image.manifest).collect();
    assert_eq!(removed, [digest(3)]);
    assert_eq!(store.resolve(&name("one")).unwrap(), None);
    assert!(store.image(digest(1)).unwrap().is_some());
    assert_eq!(store.remove_index(two).unwrap().len(), 1);
    assert_eq!(store.indexes().unwrap(), []);
}

#[test]
fn repositories_of_manifests() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let seen = name("registry:5000/app:1");
    store.set_manifest_source(&seen, digest(1)).unwrap();
    store.set_manifest_source(&seen, digest(1)).unwrap();
    let sources = store.manifest_sources(digest(1)).unwrap();
    assert_eq!(sources, [name(&format!("registry:5000/app@{}", digest(1)))]);
    assert_eq!(store.manifest_sources(digest(2)).unwrap(), []);
}
