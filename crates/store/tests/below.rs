//! Layers that stand on another one's folder: what keeps what, what goes with what.

mod common;

use common::{collect, file, key, layer, open, options, record};
use kiln_image::{LayerId, LayerIndex};
use kiln_store::{Content, Ids, LayerFs, LayerSummary, Lease, NewContainer, Store, StoreError};

fn finish_on(
    fs: LayerFs,
    below: LayerId,
    own: &LayerIndex,
    index: &LayerIndex,
) -> std::io::Result<()> {
    let folders = own.entries().iter().rev().filter(|entry| entry.is_dir());
    fs.finish_folders(folders)?;
    let entries = index.entries();
    let totals = fs.write_index(Some(below), entries.len(), entries.iter())?;
    assert_eq!(totals, index.totals());
    Ok(())
}

/// A layer with the one file of `below`, which is in that one's folder, and one of its own.
fn standing(store: &Store, lease: &Lease, below: LayerId, content: &str) -> LayerId {
    let id = store.begin_layer(lease).unwrap();
    let fs = LayerFs::create(&store.layer_dir(id), Ids::Recorded).unwrap();
    let own = file("own", content.as_bytes());
    fs.put(&own, Content::Bytes(content.as_bytes())).unwrap();
    let other = store.load_index(below).unwrap().entries()[0].clone();
    let index = LayerIndex::new(vec![own.clone(), other]);
    finish_on(fs, below, &LayerIndex::new(vec![own]), &index).unwrap();
    let summary = LayerSummary {
        below: Some(below),
        space: 4096,
        ..LayerSummary::of(&index)
    };
    store.seal_layer(id, &summary).unwrap();
    id
}

#[test]
fn what_is_stood_on_stays() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let whole = layer(&store, &lease, "whole");
    let upper = standing(&store, &lease, whole, "upper");
    assert_eq!(store.whole_layer(upper).unwrap(), whole);
    assert_eq!(store.whole_layer(whole).unwrap(), whole);
    let old = store.put_record(&[key(1)], &record(&[whole])).unwrap();
    let new = store.put_record(&[key(2)], &record(&[upper])).unwrap();
    drop(lease);
    // The one above goes first, whatever was used last.
    let order: Vec<_> = store.leaves().unwrap().iter().map(|it| it.layer).collect();
    assert_eq!(order, [upper, whole]);
    store.remove_records(&[old]).unwrap();
    assert_eq!(collect(&store), []);
    assert!(store.find_record(key(2)).unwrap().is_some());
    let fs = LayerFs::create(&store.layer_dir(upper), Ids::Recorded).unwrap();
    for (path, content) in [("own", "upper"), ("file", "whole")] {
        let read = std::io::read_to_string(fs.open(&common::path(path)).unwrap()).unwrap();
        assert_eq!(read, content);
    }
    assert_eq!(store.check(true).unwrap().faults, []);
    store.remove_records(&[new]).unwrap();
    let mut gone = collect(&store);
    gone.sort_unstable();
    let mut both = [whole, upper];
    both.sort_unstable();
    assert_eq!(gone, both, "both in one sweep");
    assert_eq!(store.check(true).unwrap().faults, []);
}

#[test]
fn the_layer_of_a_container_keeps_what_it_stands_on() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let whole = layer(&store, &lease, "whole");
    let upper = standing(&store, &lease, whole, "upper");
    store.set_layer_space(whole, 8192).unwrap();
    store.put_record(&[key(1)], &record(&[whole])).unwrap();
    let container = NewContainer {
        name: "kept".to_owned(),
        image: None,
        layers: vec![upper],
        ephemeral: false,
        details: Vec::new(),
    };
    store.add_container(&lease, &container).unwrap().unwrap();
    drop(lease);
    let leaf = &store.leaves().unwrap()[0];
    assert!(leaf.layer == whole && leaf.shared);
    let spaces = store.spaces().unwrap();
    assert_eq!((spaces.containers, spaces.cache), (4096 + 8192, 0));
    store.give_up(&[whole]).unwrap();
    assert_eq!(collect(&store), []);
    let spaces = store.spaces().unwrap();
    assert_eq!(spaces.containers, 4096 + 8192);
}

#[test]
fn damage_goes_up() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let whole = layer(&store, &lease, "whole");
    let uppers = ["one", "two"].map(|name| standing(&store, &lease, whole, name));
    let other = layer(&store, &lease, "other");
    for (number, id) in [whole, uppers[0], uppers[1], other].into_iter().enumerate() {
        let key = key(number as u8);
        store.put_record(&[key], &record(&[id])).unwrap();
    }
    drop(lease);
    std::fs::remove_dir_all(store.layer_dir(whole)).unwrap();
    drop(store);
    let store = open(place.path());
    // One fault of its own, and one of each that stands on it.
    let faults = store.check(false).unwrap().faults;
    assert_eq!(faults.len(), 3, "{faults:?}");
    assert_eq!(store.find_record(key(1)).unwrap(), None);
    assert_eq!(store.take_missing(), [uppers[0]]);
    assert_eq!(store.drop_layer(whole).unwrap().unwrap().records, 3);
    assert_eq!(store.drop_layer(uppers[1]).unwrap(), None);
    assert_eq!(collect(&store).len(), 3);
    assert_eq!(store.check(true).unwrap().faults, []);
    assert!(store.find_record(key(3)).unwrap().is_some());
}

#[test]
fn nothing_stands_on_what_is_gone() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let whole = layer(&store, &lease, "whole");
    let upper = standing(&store, &lease, whole, "upper");
    store.put_record(&[key(1)], &record(&[upper])).unwrap();
    store.drop_layer(whole).unwrap();
    let late = store.begin_layer(&lease).unwrap();
    let index = LayerIndex::default();
    let fs = LayerFs::create(&store.layer_dir(late), Ids::Recorded).unwrap();
    finish_on(fs, whole, &index, &index).unwrap();
    let summary = LayerSummary {
        below: Some(whole),
        ..LayerSummary::of(&index)
    };
    let sealed = store.seal_layer(late, &summary);
    assert!(matches!(sealed, Err(StoreError::NoLayer(id)) if id == whole));
}

#[test]
fn what_was_durable_survives_with_what_it_stands_on() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let whole = layer(&store, &lease, "whole");
    let early = standing(&store, &lease, whole, "early");
    store.put_record(&[key(1)], &record(&[early])).unwrap();
    store.settle().unwrap();
    let late = standing(&store, &lease, whole, "late");
    store.put_record(&[key(2)], &record(&[late])).unwrap();
    drop((lease, store));
    let store = kiln_store::Store::open(place.path(), options("boot 2")).unwrap();
    assert_eq!(store.report().lost_layers, 1);
    assert!(store.find_record(key(1)).unwrap().is_some());
    assert!(store.find_record(key(2)).unwrap().is_none());
    assert_eq!(collect(&store), [late]);
    assert_eq!(store.check(true).unwrap().faults, []);
}

#[test]
fn an_older_store_is_raised_and_shut_to_older_programs() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let id = layer(&store, &lease, "old");
    store.put_record(&[key(1)], &record(&[id])).unwrap();
    drop((lease, store));
    let file = place.path().join("kiln.db");
    let version = |set: Option<u32>| {
        let db = rusqlite::Connection::open(&file).unwrap();
        if let Some(version) = set {
            db.execute_batch("DROP TABLE layer_below").unwrap();
            db.pragma_update(None, "user_version", version).unwrap();
        }
        db.query_row("PRAGMA user_version", [], |row| row.get::<_, u32>(0))
            .unwrap()
    };
    assert_eq!(version(Some(1)), 1);
    let header = place.path().join("header.json");
    let text = std::fs::read_to_string(&header).unwrap();
    std::fs::write(&header, text.replace("\"format\": 2", "\"format\": 1")).unwrap();
    let store = open(place.path());
    assert!(store.find_record(key(1)).unwrap().is_some());
    let lease = store.lease().unwrap();
    standing(&store, &lease, id, "new");
    assert_eq!(store.check(true).unwrap().faults, []);
    drop((lease, store));
    assert_eq!(version(None), 2);
}
