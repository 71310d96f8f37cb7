//! The store as one process sees it.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, UNIX_EPOCH};

use common::{collect, diff, digest, key, layer, open, options, record};
use kiln_image::{LayerId, Platform, Reference};
use kiln_store::{
    BlobInfo, ClaimAttempt, Header, IdKind, IdRange, ImageInfo, LayerSummary, NewContainer, Store,
    StoreError, TagFallback,
};

fn name(text: &str) -> Reference {
    text.parse().unwrap()
}

fn image(layers: &[LayerId], config: u8) -> ImageInfo {
    ImageInfo {
        config: digest(config),
        layers: layers.to_vec(),
        size: 7,
        created: Some(UNIX_EPOCH + Duration::from_secs(5)),
        platform: Platform {
            os: "linux".to_owned(),
            architecture: "arm".to_owned(),
            variant: "v7".to_owned(),
        },
    }
}

#[test]
fn a_store_is_made_once_and_kept() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("a/b");
    assert_eq!(Header::read(&root).unwrap(), None);
    let id = {
        let store = open(&root);
        assert!(!store.report().restarted);
        let lease = store.lease().unwrap();
        let id = layer(&store, &lease, "one");
        store.put_record(&[key(1)], &record(&[id])).unwrap();
        id
    };
    let store = open(&root);
    assert_eq!(store.find_record(key(1)).unwrap().unwrap().outputs, [[id]]);
    assert_eq!(Header::read(&root).unwrap().unwrap().ids, IdKind::Real);
    for folder in ["", "layers", "containers", "blobs/sha256"] {
        assert_eq!(
            fs::metadata(root.join(folder)).unwrap().mode() & 0o777,
            0o700,
            "{folder}"
        );
    }
}

#[test]
fn the_wrong_store_is_refused_with_a_hint() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path();
    open(root);
    let mut other = options("boot 1");
    other.owner += 1;
    let err = Store::open(root, other).err().unwrap();
    assert!(matches!(err, StoreError::NotOwner { .. }), "{err}");
    assert!(
        err.to_string().contains("hint: ") && err.to_string().contains("KILN_ROOT"),
        "{err}"
    );

    let mut other = options("boot 1");
    let range = IdRange {
        inside: 0,
        outside: 100_000,
        count: 65536,
    };
    other.ids = IdKind::Mapped {
        uids: vec![range],
        gids: vec![range],
    };
    let err = Store::open(root, other).err().unwrap();
    assert!(matches!(err, StoreError::OtherIds { .. }), "{err}");
    assert!(err.to_string().contains("100000+65536"), "{err}");

    let header = root.join("header.json");
    let good = fs::read_to_string(&header).unwrap();
    fs::write(&header, r#"{"format": 99, "something": "new"}"#).unwrap();
    let err = Store::open(root, options("boot 1")).err().unwrap();
    assert!(matches!(err, StoreError::Newer { found: 99, .. }), "{err}");
    fs::write(&header, "no header").unwrap();
    let err = Store::open(root, options("boot 1")).err().unwrap();
    assert!(matches!(err, StoreError::Header { .. }), "{err}");
    fs::write(&header, good).unwrap();
    open(root);

    let full = tempfile::tempdir().unwrap();
    fs::write(full.path().join("thesis.txt"), "").unwrap();
    let err = Store::open(full.path(), options("boot 1")).err().unwrap();
    assert!(err.to_string().contains("not empty"), "{err}");
    assert_eq!(fs::read_dir(full.path()).unwrap().count(), 1);
}

#[test]
fn the_life_of_a_layer() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let id = store.begin_layer(&lease).unwrap();
    assert!(store.layer_dir(id).is_dir());
    assert_eq!(store.layer(id).unwrap(), None);
    let summary = LayerSummary::of(&kiln_image::LayerIndex::default());
    assert!(matches!(
        store.seal_layer(id, &summary),
        Err(StoreError::Seal(..))
    ));
    assert!(matches!(
        store.put_record(&[key(1)], &record(&[id])),
        Err(StoreError::NoLayer(_))
    ));
    assert!(matches!(
        store.set_image(digest(1), &image(&[id], 2)),
        Err(StoreError::NoLayer(_))
    ));
    assert!(matches!(
        store.set_diff(id, None, diff(1), 9),
        Err(StoreError::NoLayer(_))
    ));
    assert!(matches!(
        store.protect(&lease, &[id]),
        Err(StoreError::NoLayer(_))
    ));
    store.discard_layer(id).unwrap();
    assert!(matches!(
        store.seal_layer(id, &summary),
        Err(StoreError::Seal(..))
    ));
    assert_eq!(collect(&store), [id]);
    assert!(!store.layer_dir(id).exists());

    let id = layer(&store, &lease, "content");
    let info = store.layer(id).unwrap().unwrap();
    assert_eq!((info.size, info.entries, info.durable), (7, 1, false));
    let index = store.load_index(id).unwrap();
    assert_eq!(index.entries().len(), 1);
    assert_eq!(info.content_id, index.content_id());
    assert!(
        matches!(store.seal_layer(id, &summary), Err(StoreError::Seal(..))),
        "only once"
    );
    store.settle().unwrap();
    assert!(store.layer(id).unwrap().unwrap().durable);

    assert_eq!(store.diff(id, None).unwrap(), None);
    store.set_diff(id, None, diff(1), 2048).unwrap();
    store.set_diff(id, Some(0), diff(2), 1024).unwrap();
    assert_eq!(store.diff(id, None).unwrap(), Some((diff(1), 2048)));
    assert_eq!(store.diff(id, Some(0)).unwrap(), Some((diff(2), 1024)));
    assert_eq!(store.diff(id, Some(1)).unwrap(), None);
    assert_eq!(store.layer_by_diff(diff(1)).unwrap(), Some(id));
    assert_eq!(
        store.layer_by_diff(diff(2)).unwrap(),
        None,
        "not the layer's own times"
    );

    let mut blob = BlobInfo {
        diff: diff(1),
        digest: digest(9),
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        size: 99,
        encoder: "pulled".to_owned(),
        present: true,
    };
    store.set_blob(&blob).unwrap();
    blob.present = false;
    store.set_blob(&blob).unwrap();
    assert!(
        store.blobs_of(diff(1)).unwrap()[0].present,
        "what is there stays known"
    );
    assert_eq!(store.blobs_of(diff(2)).unwrap(), []);
    assert_eq!(store.diff_of_blob(digest(9)).unwrap(), Some(diff(1)));

    fs::remove_dir_all(store.layer_dir(id)).unwrap();
    assert_eq!(
        open(place.path()).layer_by_diff(diff(1)).unwrap(),
        None,
        "cleaned up by hand"
    );
}

#[test]
fn records() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let (one, two) = (layer(&store, &lease, "1"), layer(&store, &lease, "2"));
    let mut new = record(&[one, two]);
    new.outputs.push(vec![]);
    new.outputs.push(vec![two]);
    let id = store.put_record(&[key(1), key(2)], &new).unwrap();
    store.alias(key(3), id).unwrap();
    for number in 1..=3 {
        let found = store.find_record(key(number)).unwrap().unwrap();
        assert_eq!(found.id, id);
        assert_eq!(found.outputs, new.outputs);
        assert_eq!((found.created, found.took), (new.created, new.took));
        assert_eq!(found.step, "RUN make");
    }
    assert_eq!(store.record_parts(id).unwrap(), new.parts);
    assert_eq!(store.find_record(key(4)).unwrap(), None);
    assert!(matches!(
        store.alias(key(4), kiln_store::RecordId(99)),
        Err(StoreError::NoRecord(_))
    ));
    store.touch(&[id], &[]).unwrap();

    // A later record takes the keys over; the earlier one goes when it has none left.
    let later = store
        .put_record(&[key(1), key(2), key(3)], &record(&[one]))
        .unwrap();
    assert_eq!(store.find_record(key(2)).unwrap().unwrap().id, later);
    assert_eq!(
        store.latest_record_of_step("RUN make").unwrap().unwrap().id,
        later
    );
    assert_eq!(store.latest_record_of_step("RUN other").unwrap(), None);
    assert_eq!(store.records_by_use().unwrap().len(), 2);
    assert_eq!(collect(&store), [], "the lease");
    let uses = store.records_by_use().unwrap();
    assert_eq!((uses.len(), uses[0].id), (1, later));
    assert_eq!(uses[0].layers, [one]);
    drop(lease);
    assert_eq!(collect(&store), [two]);
    assert_eq!(collect(&store), []);

    // Cleaned up by hand.
    fs::remove_dir_all(store.layer_dir(one)).unwrap();
    assert_eq!(open(place.path()).find_record(key(1)).unwrap(), None);
    store.remove_records(&[later]).unwrap();
    assert_eq!(store.latest_record_of_step("RUN make").unwrap(), None);
    assert_eq!(collect(&store), [one]);
}

#[test]
fn leases_and_records_protect_from_a_sweep() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let mine = store.lease().unwrap();
    let kept = layer(&store, &mine, "kept by a record");
    let id = store.put_record(&[key(1)], &record(&[kept])).unwrap();
    let pending = store.begin_layer(&mine).unwrap();
    let clone = mine.clone();
    drop(mine);
    assert_eq!(collect(&store), [], "the clone still holds the lease");

    let other = open(place.path());
    let theirs = other.lease().unwrap();
    other.protect(&theirs, &[kept]).unwrap();
    other.protect(&theirs, &[kept]).unwrap();
    store.remove_records(&[id]).unwrap();
    drop(clone);
    assert_eq!(collect(&store), [pending]);
    assert!(store.layer(kept).unwrap().is_some());
    drop(theirs);
    // Between the sweep and the deletion a layer cannot be had any more.
    assert_eq!(other.sweep().unwrap(), [kept]);
    let late = store.lease().unwrap();
    assert!(matches!(
        store.protect(&late, &[kept]),
        Err(StoreError::NoLayer(_))
    ));
    assert_eq!(store.layer(kept).unwrap(), None);
    assert_eq!(store.sweep().unwrap(), [kept], "until it is forgotten");
    assert_eq!(collect(&store), [kept]);
    assert_eq!(collect(&store), []);
    drop(late);
    assert_eq!(
        fs::read_dir(place.path().join("leases")).unwrap().count(),
        0
    );
}

#[test]
fn folders_without_a_row_are_rubbish() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let stray = LayerId::new([7; 16]);
    fs::create_dir(store.layer_dir(stray)).unwrap();
    fs::create_dir(place.path().join("layers/not a layer")).unwrap();
    assert_eq!(collect(&store), [stray]);
    assert!(place.path().join("layers/not a layer").exists());
}

#[test]
fn images_and_tags() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let (one, two) = (layer(&store, &lease, "1"), layer(&store, &lease, "2"));
    let config = store
        .put_json("application/vnd.oci.image.config.v1+json", b"{}")
        .unwrap();
    assert_eq!(
        config.to_string(),
        "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    );
    assert_eq!(store.json(config).unwrap().unwrap().1, b"{}");
    assert_eq!(store.json(digest(1)).unwrap(), None);

    let info = image(&[two, one, two], 0xab);
    store.set_image(digest(1), &info).unwrap();
    store.set_image(digest(2), &image(&[], 0xac)).unwrap();
    store.tag(&name("app"), digest(1)).unwrap();
    store.tag(&name("app:v1"), digest(1)).unwrap();
    assert_eq!(
        store
            .resolve(&name("docker.io/library/app:latest"))
            .unwrap(),
        Some(digest(1))
    );
    assert_eq!(store.resolve(&name("app:v2")).unwrap(), None);
    let found = store.image(digest(1)).unwrap().unwrap();
    assert_eq!(found.info, info);
    assert_eq!(found.tags, [name("app"), name("app:v1")]);
    assert_eq!(store.image(digest(9)).unwrap(), None);
    store.tag(&name("app"), digest(2)).unwrap();
    let all = store.images().unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(
        (all[0].manifest, all[0].tags.clone()),
        (digest(2), vec![name("app")])
    );
    assert_eq!(
        (all[1].manifest, all[1].tags.clone()),
        (digest(1), vec![name("app:v1")])
    );
    assert_eq!(all[1].info, info);
    let tags: Vec<_> = store
        .tags()
        .unwrap()
        .into_iter()
        .map(|tag| (tag.name, tag.target))
        .collect();
    assert_eq!(
        tags,
        [(name("app"), digest(2)), (name("app:v1"), digest(1))]
    );

    let cases: [(&str, &[u8]); 8] = [
        ("01", &[1]),
        ("sha256:0", &[1, 2]),
        ("a", &[1, 2]),
        ("aba", &[1]),
        ("ABAB", &[1]),
        ("acacac", &[2]),
        ("", &[]),
        ("xyz", &[]),
    ];
    for (prefix, expected) in cases {
        let expected: Vec<_> = expected.iter().map(|&number| digest(number)).collect();
        assert_eq!(store.find_images(prefix).unwrap(), expected, "{prefix}");
    }
    assert_eq!(store.find_images(&digest(1).hex()).unwrap(), [digest(1)]);
    assert_eq!(store.find_images(&"0".repeat(65)).unwrap(), []);

    assert!(store.untag(&name("app")).unwrap());
    assert!(!store.untag(&name("app")).unwrap());
    drop(lease);
    assert_eq!(collect(&store), []);
    assert_eq!(store.remove_image(digest(1)).unwrap(), [name("app:v1")]);
    assert_eq!(store.tags().unwrap(), []);
    let mut gone = collect(&store);
    gone.sort();
    let mut expected = vec![one, two];
    expected.sort();
    assert_eq!(gone, expected);
    assert!(
        store.json(config).unwrap().is_some(),
        "a pull may be about to refer to it"
    );
}

#[test]
fn digests_in_repositories() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    for manifest in [1, 2] {
        store
            .set_image(digest(manifest), &image(&[], manifest))
            .unwrap();
    }
    let put = |text: &str, there: u8, manifest: u8| {
        store.set_repo_digest(&name(text), digest(there), digest(manifest))
    };
    // An index with both, and one of them again as it is after a push, twice.
    put("app:1", 9, 1).unwrap();
    put("app:2", 9, 2).unwrap();
    put("localhost:5000/app", 7, 1).unwrap();
    put("localhost:5000/app:again", 7, 1).unwrap();
    put("app", 9, 3).unwrap_err();
    let known = |manifest| -> Vec<String> {
        let names = store.repo_digests(digest(manifest)).unwrap();
        names.iter().map(Reference::familiar).collect()
    };
    let (index, pushed) = (digest(9), digest(7));
    assert_eq!(
        known(1),
        [
            format!("app@{index}"),
            format!("localhost:5000/app@{pushed}")
        ]
    );
    assert_eq!(known(2), [format!("app@{index}")]);
    let of = |digest| store.images_of_repo_digest(digest).unwrap();
    assert_eq!(of(index), [digest(1), digest(2)]);
    assert_eq!(of(pushed), [digest(1)]);
    store.remove_image(digest(1)).unwrap();
    assert_eq!(of(index), [digest(2)]);
    assert!(known(1).is_empty());
}

#[test]
fn claims_in_one_process() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let ClaimAttempt::Held(first) = store.claim(key(1)).unwrap() else {
        panic!("free")
    };
    let ClaimAttempt::Held(_) = store.claim(key(2)).unwrap() else {
        panic!("another key")
    };
    let ClaimAttempt::Busy(waiter) = open(place.path()).claim(key(1)).unwrap() else {
        panic!("held")
    };
    assert_eq!(waiter.holder(), Some(std::process::id()));
    assert!(waiter.wait(Duration::from_millis(30)).unwrap().is_none());
    let (told, waiting) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            told.send(()).unwrap();
            waiter.wait(Duration::from_mins(1)).unwrap().is_some()
        });
        waiting.recv().unwrap();
        std::thread::sleep(Duration::from_millis(20));
        drop(first);
        assert!(waits.join().unwrap());
    });
    assert_eq!(
        fs::read_dir(place.path().join("claims")).unwrap().count(),
        0
    );
}

/// Every claim is held by one at a time, however often its file is removed and made.
#[test]
fn claims_are_exclusive() {
    use std::sync::atomic::{AtomicU32, Ordering};
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let inside = AtomicU32::new(0);
    let rounds = AtomicU32::new(0);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while rounds.load(Ordering::Relaxed) < 2000 {
                    if let ClaimAttempt::Held(claim) = store.claim(key(1)).unwrap() {
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        rounds.fetch_add(1, Ordering::Relaxed);
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                        drop(claim);
                    }
                }
            });
        }
    });
}

#[test]
fn a_restart_takes_what_is_not_durable() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let old = layer(&store, &lease, "old");
    store.put_record(&[key(1)], &record(&[old])).unwrap();
    store.set_image(digest(1), &image(&[old], 0xa)).unwrap();
    for tag in ["moved", "kept", "indexed"] {
        store.tag(&name(tag), digest(1)).unwrap();
    }
    store.settle().unwrap();

    let new = layer(&store, &lease, "new");
    let pending = store.begin_layer(&lease).unwrap();
    store.put_record(&[key(2)], &record(&[old, new])).unwrap();
    store.put_record(&[key(3)], &record(&[old])).unwrap();
    store
        .set_image(digest(2), &image(&[old, new], 0xb))
        .unwrap();
    store.set_image(digest(3), &image(&[old], 0xc)).unwrap();
    store.tag(&name("moved"), digest(2)).unwrap();
    store.tag(&name("fresh"), digest(2)).unwrap();
    store.tag(&name("whole"), digest(3)).unwrap();
    let document = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[
            {{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":2}},
            {{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{}","size":2}}]}}"#,
        digest(8),
        digest(3)
    );
    let index = store
        .put_json(
            "application/vnd.oci.image.index.v1+json",
            document.as_bytes(),
        )
        .unwrap();
    store.tag(&name("indexed"), index).unwrap();
    // Only known, not fetched; and one that lost all that was fetched.
    let known = store
        .put_json("application/vnd.oci.image.manifest.v1+json", b"{}")
        .unwrap();
    store.tag(&name("known"), known).unwrap();
    let document = document.replace(&digest(3).to_string(), &digest(2).to_string());
    let broken = store
        .put_json(
            "application/vnd.oci.image.index.v1+json",
            document.as_bytes(),
        )
        .unwrap();
    store.tag(&name("broken"), broken).unwrap();
    let blob = BlobInfo {
        diff: diff(1),
        digest: digest(9),
        media_type: String::new(),
        size: 4,
        encoder: String::new(),
        present: true,
    };
    store.set_blob(&blob).unwrap();
    fs::write(store.blob_path(digest(9)), "blob").unwrap();
    let container = NewContainer {
        name: "lost".to_owned(),
        image: Some(digest(2)),
        layers: vec![new],
        ephemeral: false,
        details: vec![],
    };
    store.add_container(&lease, &container).unwrap().unwrap();
    drop((store, lease));

    let store = Store::open(place.path(), options("boot 2")).unwrap();
    let report = store.report();
    assert!(report.restarted);
    assert_eq!((report.lost_layers, report.lost_records), (1, 1));
    assert_eq!(report.lost_containers, ["lost"]);
    let lost = |tag, lost, now| TagFallback {
        name: name(tag),
        lost,
        now,
    };
    assert_eq!(
        report.tags,
        [
            lost("broken", broken, None),
            lost("fresh", digest(2), None),
            lost("moved", digest(2), Some(digest(1)))
        ]
    );
    assert_eq!(store.resolve(&name("known")).unwrap(), Some(known));
    let expected = [
        ("moved", Some(1)),
        ("kept", Some(1)),
        ("fresh", None),
        ("whole", Some(3)),
    ];
    for (tag, target) in expected {
        assert_eq!(
            store.resolve(&name(tag)).unwrap(),
            target.map(digest),
            "{tag}"
        );
    }
    assert_eq!(store.resolve(&name("indexed")).unwrap(), Some(index));
    assert!(store.find_record(key(1)).unwrap().is_some());
    assert!(store.find_record(key(2)).unwrap().is_none());
    assert!(
        store.find_record(key(3)).unwrap().is_some(),
        "nothing that it needs was lost"
    );
    assert!(store.image(digest(2)).unwrap().is_none());
    assert!(!store.blobs_of(diff(1)).unwrap()[0].present);
    assert!(!store.blob_path(digest(9)).exists());
    let mut gone = collect(&store);
    gone.sort();
    let mut expected = vec![new, pending];
    expected.sort();
    assert_eq!(gone, expected);
    assert_eq!(store.sweep_containers().unwrap().len(), 1);
    assert_eq!(open_again(&store, "boot 2").report().tags, []);
}

fn open_again(store: &Store, boot: &str) -> Store {
    Store::open(store.root(), options(boot)).unwrap()
}

#[test]
fn a_store_is_shared_between_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Store>();
    shared::<kiln_store::Lease>();
    shared::<kiln_store::Claim>();
    shared::<kiln_store::LayerFs>();
}

#[test]
fn containers() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let base = layer(&store, &lease, "base");
    let new = |name: &str, ephemeral| NewContainer {
        name: name.to_owned(),
        image: None,
        layers: vec![base],
        ephemeral,
        details: b"details".to_vec(),
    };
    let kept = store
        .add_container(&lease, &new("kept", false))
        .unwrap()
        .unwrap();
    assert_eq!(
        store.add_container(&lease, &new("kept", false)).unwrap(),
        None,
        "name taken"
    );
    let other = store.lease().unwrap();
    let passing = store
        .add_container(&other, &new("passing", true))
        .unwrap()
        .unwrap();
    let running = |store: &Store| -> Vec<(String, bool)> {
        let mut all: Vec<_> = store
            .containers()
            .unwrap()
            .into_iter()
            .map(|one| (one.name, one.running))
            .collect();
        all.sort();
        all
    };
    assert_eq!(
        running(&store),
        [("kept".to_owned(), true), ("passing".to_owned(), true)]
    );
    assert_eq!(store.sweep_containers().unwrap(), [""; 0]);
    drop((lease, other));
    assert_eq!(
        running(&store),
        [("kept".to_owned(), false), ("passing".to_owned(), false)]
    );
    assert_eq!(store.sweep_containers().unwrap(), [passing.as_str()]);
    store.forget_containers(&[passing]).unwrap();
    assert_eq!(collect(&store), []);

    let again = store.lease().unwrap();
    assert!(store.restart_container(&again, &kept).unwrap());
    assert!(store.set_container_details(&kept, b"new").unwrap());
    let found = &store.containers().unwrap()[0];
    assert_eq!(
        (found.running, &found.details[..], &found.layers[..]),
        (true, &b"new"[..], &[base][..])
    );
    assert!(store.remove_container(&kept).unwrap());
    assert!(!store.remove_container(&kept).unwrap());
    assert!(
        store
            .add_container(&again, &new("kept", true))
            .unwrap()
            .is_some(),
        "the name is free"
    );
    assert_eq!(store.sweep_containers().unwrap(), [kept.as_str()]);
    store.forget_containers(&[kept]).unwrap();
    drop(again);
    assert_eq!(store.sweep_containers().unwrap().len(), 1);
    assert_eq!(collect(&store), [base]);
}

/// Not a test: what a fully cached build costs here. `cargo test --release -p kiln-store -- --ignored --nocapture speed`.
#[test]
#[ignore = "a measurement"]
#[expect(clippy::print_stderr, reason = "a measurement")]
fn speed() {
    let place = tempfile::tempdir().unwrap();
    let store = open(place.path());
    let lease = store.lease().unwrap();
    let start = std::time::Instant::now();
    let layers: Vec<LayerId> = (0..100)
        .map(|number| layer(&store, &lease, &number.to_string()))
        .collect();
    eprintln!("100 layers: {:?}", start.elapsed());
    let mut new = record(&layers[..20]);
    new.parts = (0..1000)
        .map(|number| (format!("file {number}"), vec![0; 32]))
        .collect();
    let start = std::time::Instant::now();
    let mut keys = Vec::new();
    for number in 0..1000u32 {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        keys.push(kiln_image::Key::new(bytes));
        store.put_record(&keys[keys.len() - 1..], &new).unwrap();
    }
    eprintln!("1000 records: {:?}", start.elapsed());
    let open_once = || {
        let start = std::time::Instant::now();
        let store = open(place.path());
        (store, start.elapsed())
    };
    eprintln!("open beside an open one: {:?}", open_once().1);
    drop((store, lease));
    eprintln!("open with a long log: {:?}", open_once().1);
    let store = open(place.path());
    let start = std::time::Instant::now();
    store.settle().unwrap();
    eprintln!("settle: {:?}", start.elapsed());
    drop(store);
    let (store, took) = open_once();
    eprintln!("open: {took:?}");
    let start = std::time::Instant::now();
    for key in &keys {
        assert!(store.find_record(*key).unwrap().is_some());
    }
    eprintln!("1000 look-ups: {:?}", start.elapsed());
    let start = std::time::Instant::now();
    store.sweep().unwrap();
    eprintln!("sweep: {:?}", start.elapsed());
}

/// An image was gone before it had its name when another process pruned in that moment, or had just been given one.
#[test]
fn an_image_that_is_about_to_be_named_is_not_pruned() {
    let temp = tempfile::tempdir().unwrap();
    let store = open(temp.path());
    let made = |number, layers: &[LayerId]| {
        store
            .set_image(digest(number), &image(layers, number))
            .unwrap();
        digest(number)
    };
    let lease = store.lease().unwrap();
    let (below, top) = (layer(&store, &lease, "below"), layer(&store, &lease, "top"));
    // One that is made again, as it was, after a long time.
    let old = made(1, &[below, top]);
    let (empty, base) = (made(2, &[]), made(3, &[below]));
    drop(lease);
    let lease = store.lease().unwrap();
    store.protect(&lease, &[top]).unwrap();
    assert!(!store.remove_untagged_image(old).unwrap());
    assert!(!store.remove_untagged_image(empty).unwrap());
    assert!(store.remove_untagged_image(base).unwrap());
    drop(lease);
    store.tag(&name("app:v1"), empty).unwrap();
    assert!(!store.remove_untagged_image(empty).unwrap());
    assert!(store.image(empty).unwrap().is_some());
    assert!(store.remove_untagged_image(old).unwrap());
    assert!(store.image(old).unwrap().is_none());
}
