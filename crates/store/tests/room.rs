//! What is given up first, what never, and what a restart does to what no row vouches for.

mod common;

use std::fs;

use common::{collect, key, layer, open, options, record};
use kiln_store::{Store, StoreError};

#[test]
fn of_a_stack_the_top_goes_first() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let [base, middle, top, alone] =
        ["base", "middle", "top", "alone"].map(|name| layer(&store, &lease, name));
    // The stack is older than the single one, but its lowest step was used again with the top.
    let low = store.put_record(&[key(1)], &record(&[base])).unwrap();
    store
        .put_record(&[key(2)], &record(&[base, middle]))
        .unwrap();
    let high = store
        .put_record(&[key(3)], &record(&[base, middle, top]))
        .unwrap();
    store.put_record(&[key(4)], &record(&[alone])).unwrap();
    let order = || -> Vec<_> {
        store
            .leaves()
            .unwrap()
            .into_iter()
            .map(|leaf| leaf.layer)
            .collect()
    };
    assert_eq!(order(), [top, middle, base, alone]);
    assert!(store.leaves().unwrap().iter().all(|leaf| leaf.in_use));
    // What a build that runs has cannot be given up.
    assert_eq!(store.give_up(&[top]).unwrap(), []);
    drop(lease);
    assert!(store.leaves().unwrap().iter().all(|leaf| !leaf.in_use));
    assert_eq!(store.give_up(&[top]).unwrap(), [high]);
    assert_eq!(collect(&store), [top]);
    // With a lower layer goes what stands on it.
    assert_eq!(store.give_up(&[base]).unwrap().len(), 2);
    assert_eq!(order(), [alone]);
    assert!(matches!(
        store.alias(key(5), low),
        Err(StoreError::NoRecord(_))
    ));
    assert_eq!(store.check(true).unwrap().faults, []);
}

#[test]
fn cache_mounts_live_as_long_as_somebody_has_them() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    store
        .use_cache_mount(&lease, "apt-1", "apt", "locked")
        .unwrap();
    fs::create_dir(store.cache_mount_dir("apt-1")).unwrap();
    fs::create_dir(store.cache_mount_dir("older-2")).unwrap();
    let mounts = store.cache_mounts().unwrap();
    let seen: Vec<_> = mounts
        .iter()
        .map(|it| (it.id.as_str(), it.in_use))
        .collect();
    assert!(
        seen.contains(&("apt", true)) && seen.contains(&("older", false)),
        "{seen:?}"
    );
    assert!(!store.remove_cache_mount("apt-1").unwrap());
    drop(lease);
    assert!(store.remove_cache_mount("apt-1").unwrap());
    assert!(!store.cache_mount_dir("apt-1").exists());
    assert_eq!(store.cache_mount_leftovers().unwrap().len(), 1);
    assert_eq!(store.cache_mounts().unwrap().len(), 1);
}

#[test]
fn a_restart_takes_files_that_may_not_be_on_the_disk() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let source = |name: &str| {
        let tree = place.path().join("sources").join(name).join("tree");
        fs::create_dir_all(&tree).unwrap();
        tree
    };
    let used = |store: &Store, folder: &str| {
        let lease = store.lease().unwrap();
        store
            .use_cache_mount(&lease, folder, folder, "shared")
            .unwrap();
        fs::create_dir_all(store.cache_mount_dir(folder)).unwrap();
        drop(lease);
        store.sweep().unwrap();
    };
    let early = source("git-early");
    used(&store, "early");
    store.settle().unwrap();
    let late = source("git-late");
    used(&store, "late");
    drop(store);
    let store = Store::open(place.path(), options("boot 2")).unwrap();
    assert!(early.exists() && !late.exists());
    assert!(store.cache_mount_dir("early").exists() && !store.cache_mount_dir("late").exists());
    let folders: Vec<_> = store
        .cache_mounts()
        .unwrap()
        .into_iter()
        .map(|it| it.folder)
        .collect();
    assert_eq!(folders, ["early"]);
}

#[test]
fn faults_are_found_and_dropped() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let [whole, cut, gone] = ["whole", "cut", "gone"].map(|name| layer(&store, &lease, name));
    for (number, id) in [whole, cut, gone].into_iter().enumerate() {
        store
            .put_record(&[key(number as u8)], &record(&[id]))
            .unwrap();
    }
    drop(lease);
    assert_eq!(store.check(true).unwrap().faults, []);
    fs::write(store.layer_dir(cut).join("index"), "kilnidx\n").unwrap();
    fs::remove_dir_all(store.layer_dir(gone)).unwrap();
    drop(store);
    let store = open(place.path());
    let faults = store.check(false).unwrap().faults;
    assert_eq!(faults.len(), 2, "{faults:?}");
    assert_eq!(store.find_record(key(2)).unwrap(), None);
    assert_eq!(store.take_missing(), [gone]);
    for id in [cut, gone] {
        assert_eq!(store.drop_layer(id).unwrap().unwrap().records, 1);
        assert_eq!(store.drop_layer(id).unwrap(), None);
    }
    assert_eq!(collect(&store).len(), 2);
    assert_eq!(store.check(true).unwrap().faults, []);
    assert!(store.find_record(key(0)).unwrap().is_some());
}
