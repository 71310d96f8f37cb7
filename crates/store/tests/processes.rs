//! Several processes at one store, and processes that die.

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{child, child_argument, collect, is_root, key, layer, open, options, record};
use kiln_store::{ClaimAttempt, IdKind, Store, StoreError};

/// Starts a child and waits until it has printed the line `ready`.
fn start(mut command: Command) -> Child {
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(
        lines.any(|line| line.unwrap().ends_with("ready")),
        "the child died early"
    );
    child
}

#[expect(clippy::print_stdout, reason = "that is how the parent is told")]
fn ready_until_killed() -> ! {
    println!("ready");
    loop {
        std::thread::sleep(Duration::from_mins(1));
    }
}

#[test]
fn a_killed_holder_frees_its_lease() {
    if let Some(root) = child_argument() {
        let store = open(&root);
        let lease = store.lease().unwrap();
        store.begin_layer(&lease).unwrap();
        layer(&store, &lease, "sealed, in no record");
        ready_until_killed();
    }
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let mut child = start(child("a_killed_holder_frees_its_lease", place.path()));
    assert_eq!(collect(&store), [], "held");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(collect(&store).len(), 2);
    assert_eq!(
        std::fs::read_dir(place.path().join("layers"))
            .unwrap()
            .count(),
        0
    );
    assert_eq!(
        std::fs::read_dir(place.path().join("leases"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_killed_worker_hands_its_claim_over() {
    if let Some(root) = child_argument() {
        let store = open(&root);
        let ClaimAttempt::Held(_claim) = store.claim(key(1)).unwrap() else {
            panic!("free")
        };
        ready_until_killed();
    }
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let mut child = start(child("a_killed_worker_hands_its_claim_over", place.path()));
    let ClaimAttempt::Busy(waiter) = store.claim(key(1)).unwrap() else {
        panic!("held")
    };
    assert_eq!(waiter.holder(), Some(child.id()));
    assert!(waiter.wait(Duration::from_millis(50)).unwrap().is_none());
    store.sweep().unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(waiter.wait(Duration::from_secs(10)).unwrap().is_some());
    let files = || {
        std::fs::read_dir(place.path().join("claims"))
            .unwrap()
            .count()
    };
    assert_eq!(files(), 0);
    std::fs::write(place.path().join("claims").join(key(2).hex()), "1").unwrap();
    store.sweep().unwrap();
    assert_eq!(files(), 0, "left behind by a killed holder");
}

/// Many processes make the store at once and write to it at once; nothing gets lost and nobody fails.
#[test]
fn contention() {
    const RECORDS: u8 = 40;
    if let Some(root) = child_argument() {
        let store = open(&root);
        let lease = store.lease().unwrap();
        for number in 0..RECORDS {
            let id = layer(&store, &lease, &number.to_string());
            let id = store.put_record(&[key(number)], &record(&[id])).unwrap();
            store.touch(&[id], &[]).unwrap();
            store.find_record(key(number)).unwrap().unwrap();
            if number % 10 == 0 {
                store.sweep().unwrap();
                store.settle().unwrap();
            }
        }
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let children: Vec<Child> = (0..4)
        .map(|_| {
            child("contention", place.path())
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    let store = open(place.path());
    collect(&store);
    let records = store.records_by_use().unwrap();
    assert_eq!(records.len(), usize::from(RECORDS), "one a key");
    for record in &records {
        assert!(store.layer(record.layers[0]).unwrap().is_some());
    }
    let folders = std::fs::read_dir(place.path().join("layers"))
        .unwrap()
        .count();
    assert_eq!(folders, usize::from(RECORDS));
}

/// Killed anywhere between two writes, a process leaves a store that others can use and clean up.
#[test]
fn killed_anywhere() {
    if let Some(root) = child_argument() {
        let store = open(&root);
        let lease = store.lease().unwrap();
        for round in 0.. {
            let id = layer(&store, &lease, &round.to_string());
            store
                .put_record(&[key(round as u8 % 8)], &record(&[id]))
                .unwrap();
            if round % 5 == 4 {
                collect(&store);
            }
            if round % 11 == 10 {
                store.settle().unwrap();
            }
        }
    }
    let place = tempfile::tempdir().unwrap();
    for round in 0..12u64 {
        let mut child = child("killed_anywhere", place.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(40 + 17 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = open(place.path());
        collect(&store);
        let records = store.records_by_use().unwrap();
        let layers: Vec<_> = records.iter().flat_map(|record| &record.layers).collect();
        for id in &layers {
            assert!(store.load_index(**id).is_ok());
        }
        let folders = std::fs::read_dir(place.path().join("layers"))
            .unwrap()
            .count();
        assert_eq!(folders, layers.len(), "as many folders as layers");
        let open_leases = std::fs::read_dir(place.path().join("leases"))
            .unwrap()
            .count();
        assert_eq!(open_leases, 0);
    }
}

#[test]
fn a_plain_user_is_told_whose_store_it_is() {
    if let Some(root) = child_argument() {
        let err = Store::open(&root, options("boot 1")).err().unwrap();
        assert!(
            matches!(err, StoreError::NotOwner { owner: 0, .. }),
            "{err}"
        );
        assert!(err.to_string().contains("belongs to user 0"), "{err}");
        return;
    }
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    open(place.path());
    let mut command = child("a_plain_user_is_told_whose_store_it_is", place.path());
    if common::as_plain_user(&mut command) {
        assert!(command.status().unwrap().success());
    }
}

#[test]
fn a_plain_user_has_a_store() {
    if let Some(root) = child_argument() {
        let mut how = options("boot 1");
        how.ids = IdKind::Recorded;
        let store = Store::open(&root, how).unwrap();
        let lease = store.lease().unwrap();
        let id = layer(&store, &lease, "content");
        store.put_record(&[key(1)], &record(&[id])).unwrap();
        store.settle().unwrap();
        assert!(store.find_record(key(1)).unwrap().is_some());
        return;
    }
    if !is_root() {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = child("a_plain_user_has_a_store", place.path().join("store"));
    if common::as_plain_user(&mut command) {
        assert!(command.status().unwrap().success());
    }
}
