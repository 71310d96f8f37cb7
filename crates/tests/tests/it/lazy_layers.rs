//! Base layers that a build does not need stay where they are.

use std::fs;

use kiln_tests::{Kiln, Registry, Setting, in_each_setting};
use serde_json::Value;

in_each_setting! { a_base_that_is_not_read_is_not_moved a_copy_over_a_known_base_moves_nothing }

/// A registry with a base whose config is known.
fn place() -> Option<(Registry, String)> {
    let publisher = Kiln::fresh(Setting::Root, &["busybox"])?;
    let registry = Registry::start()?;
    let base = registry.image("team/base");
    let dockerfile = "FROM busybox\nRUN ln -s /data /link && mkdir -m 700 /data\n";
    let context = publisher.context(&[("Dockerfile", dockerfile)]);
    publisher.build(&["-t", &base, "--push", &context]).ok();
    Some((registry, base))
}

/// The layers that the manifest of a tag names.
fn layers(registry: &Registry, repository: &str) -> Vec<String> {
    named(&registry.manifest(repository, "latest"), "layers")
}

/// The digests that a list of a document names.
fn named(document: &[u8], list: &str) -> Vec<String> {
    let document: Value = serde_json::from_slice(document).expect("JSON");
    let list = document[list].as_array().expect("a list").iter();
    list.map(|it| it["digest"].as_str().expect("a digest").to_owned())
        .collect()
}

/// How often the registry was asked in this way for one of the blobs.
fn asked_for(registry: &Registry, method: &str, blobs: &[String]) -> usize {
    let asked = registry.asked();
    let such = asked.iter().filter(|it| {
        // In an address the colon is written in another way.
        it.starts_with(method)
            && blobs
                .iter()
                .any(|digest| it.contains(&digest["sha256:".len()..]))
    });
    such.count()
}

fn a_base_that_is_not_read_is_not_moved(setting: Setting) {
    let Some((registry, base)) = place() else {
        return;
    };
    let below = layers(&registry, "team/base");
    let of_base = |method: &str| asked_for(&registry, method, &below);
    let build = |name: &str, dockerfile: &str, flags: &[&str]| {
        let kiln = Kiln::fresh(setting, &[])?;
        let context = kiln.context(&[("Dockerfile", dockerfile), ("f", "file\n")]);
        let image = registry.image(name);
        registry.forget();
        let args = [&["-t", &image, "--push"], flags, &[&*context]].concat();
        kiln.build(&args).ok();
        kiln.leaves_nothing();
        Some(image)
    };
    let user = Kiln::fresh(Setting::Root, &[]).expect("as before");
    let said = |image: &str, args: &[&str]| {
        user.run(&["pull", "-q", image]).ok();
        user.run(&[&["run", "--rm", image], args].concat())
            .ok()
            .stdout
    };

    // Metadata alone; the same repository, and another one of the registry.
    let env = format!("FROM {base}\nENV A=b\nLABEL x=y\nCMD echo $A\n");
    let Some(image) = build("team/env", &env, &[]) else {
        return;
    };
    assert_eq!(
        (of_base("GET"), of_base("PATCH"), of_base("PUT")),
        (0, 0, 0)
    );
    assert_eq!(
        of_base("POST"),
        below.len(),
        "mounted: {:?}",
        registry.asked()
    );
    assert_eq!(layers(&registry, "team/env"), below);
    assert_eq!(said(&image, &[]), "b\n");
    build("team/base", &env, &[]);
    assert_eq!(
        (of_base("GET"), of_base("POST")),
        (0, 0),
        "{:?}",
        registry.asked()
    );

    // Layers that stand on nothing.
    let link = format!("FROM {base}\nCOPY --link --chown=5:6 f /opt/f\nCMD cat /opt/f\n");
    let image = build("team/link", &link, &[]).expect("as before");
    assert_eq!(
        (of_base("GET"), of_base("PATCH"), of_base("PUT")),
        (0, 0, 0)
    );
    assert_eq!(layers(&registry, "team/link")[..below.len()], below);
    assert_eq!(said(&image, &[]), "file\n");
    let files =
        format!("FROM scratch AS files\nCOPY f /f\nFROM {base}\nCOPY --link --from=files /f /g\n");
    build("team/files", &files, &[]).expect("as before");
    assert_eq!(of_base("GET"), 0);

    // A link in the base decides where a file goes: a base that was never seen must be looked at.
    let copy = format!("FROM {base}\nCOPY f /link/f\nCMD cat /data/f\n");
    let image = build("team/copy", &copy, &[]).expect("as before");
    assert_eq!(of_base("GET"), below.len());
    assert_eq!(said(&image, &[]), "file\n");
    assert_eq!(said(&image, &["stat", "-c", "%a", "/data"]), "700\n");

    // Who wants the image in the store, too, gets it there.
    for (name, flags) in [
        ("team/load", &["--load"][..]),
        ("team/image", &["-o", "type=image,store=true"]),
    ] {
        build(name, &env, flags).expect("as before");
        assert_eq!(of_base("GET"), below.len(), "{flags:?}");
    }

    // Who only says that an image is to be pushed does not.
    for flags in [&["-o", "type=image"][..], &["-o", "type=image,push=true"]] {
        build("team/pushed", &env, flags).expect("as before");
        assert_eq!(of_base("GET"), 0, "{flags:?}");
    }

    // Another compression of everything needs everything.
    let flags = [
        "-o",
        "type=registry,compression=zstd,force-compression=true",
    ];
    let image = build("team/zstd", &env, &flags).expect("as before");
    assert_eq!(of_base("GET"), below.len());
    assert!(
        layers(&registry, "team/zstd")
            .iter()
            .all(|it| !below.contains(it))
    );
    assert_eq!(said(&image, &[]), "b\n");
}

/// Where files go on top of a layer is told by its index, which stays when the layer goes.
fn a_copy_over_a_known_base_moves_nothing(setting: Setting) {
    let Some((registry, base)) = place() else {
        return;
    };
    let below = layers(&registry, "team/base");
    let Some(kiln) = Kiln::fresh(setting, &[]) else {
        return;
    };
    let dockerfile = format!(
        "FROM {base}\nWORKDIR /w\nCOPY f /link/f\nCOPY --chown=5:6 f /w\nCOPY --link f /g\nCOPY f /x/y/\nCMD cat /data/f\n"
    );
    let build = |kiln: &Kiln, name: &str, dockerfile: &str| {
        let context = kiln.context(&[("Dockerfile", dockerfile), ("f", "file\n")]);
        let image = registry.image(name);
        registry.forget();
        let args = ["--timestamp", "0", "-t", &image, "--push", &*context];
        let built = kiln.build(&args).ok();
        (built, asked_for(&registry, "GET", &below))
    };
    kiln.run(&["pull", "-q", &base]).ok();
    kiln.run(&["rmi", &base]).ok();
    kiln.run(&["builder", "prune", "-f"]).ok();
    let (built, got) = build(&kiln, "team/known", &dockerfile);
    assert_eq!((built.executed().len(), got), (5, 0), "{built}");
    assert_eq!(
        layers(&registry, "team/known")[..below.len()],
        below,
        "the base's layers are named as they are"
    );
    // The second time it is all there, though no record can name layers that are elsewhere.
    let (built, got) = build(&kiln, "team/known", &dockerfile);
    assert_eq!((built.executed().len(), got), (0, 0), "{built}");

    // The same image as where the base is.
    let other = Kiln::fresh(setting, &[]).expect("as before");
    let (built, got) = build(&other, "team/fetched", &dockerfile);
    assert_eq!((built.executed().len(), got), (5, below.len()), "{built}");
    let manifest =
        |name: &str| String::from_utf8_lossy(&registry.manifest(name, "latest")).into_owned();
    assert_eq!(manifest("team/known"), manifest("team/fetched"));
    let image = registry.image("team/known");
    let said = |args: &[&str]| {
        let args = [&["run", "--rm", &*image], args].concat();
        other.run(&args).ok().stdout
    };
    assert_eq!(said(&[]), "file\n");
    assert_eq!(
        said(&["stat", "-c", "%a %u:%g", "/data", "/w/f", "/x/y"]),
        "700 0:0\n644 5:6\n755 0:0\n"
    );

    // A step that reads files of the base has them brought, below what was made without them.
    let upon = format!("{dockerfile}RUN cat /data/f /g > /both\n");
    let (built, got) = build(&kiln, "team/upon", &upon);
    assert_eq!((built.executed().len(), got), (1, below.len()), "{built}");
    kiln.leaves_nothing();

    // An owner's name stands in a file of the base.
    let fresh = Kiln::fresh(setting, &[]).expect("as before");
    fresh.run(&["pull", "-q", &base]).ok();
    fresh.run(&["rmi", &base]).ok();
    let owned = format!("FROM {base}\nCOPY --chown=daemon f /f\n");
    let (_, got) = build(&fresh, "team/owned", &owned);
    assert_eq!(got, below.len());

    // Who wants everything gone has the indexes gone, too.
    fresh
        .run(&["rmi", "-f", &base, &registry.image("team/owned")])
        .ok();
    fresh.run(&["builder", "prune", "-af"]).ok();
    let (_, got) = build(&fresh, "team/gone", &dockerfile);
    assert_eq!(got, below.len());
}

/// A cache has the indexes of its layers, so that a fresh machine needs none of the layers.
#[test]
fn a_cache_tells_what_is_in_layers() {
    let Some((registry, base)) = place() else {
        return;
    };
    let dockerfile = format!("FROM {base}\nRUN echo ran > /link/ran\nCOPY f /link/f\n");
    let build = |kiln: &Kiln, name: &str, content: &str, flags: &[&str]| {
        let context = kiln.context(&[("Dockerfile", &dockerfile), ("f", content)]);
        let image = registry.image(name);
        registry.forget();
        let args = [&["-t", &*image, "--push"], flags, &[&*context]].concat();
        kiln.build(&args).ok()
    };
    let maker = Kiln::fresh(Setting::Root, &[]).expect("as before");
    let folder = maker.file("cache");
    let cache = registry.image("team/cache");
    let to = format!("type=registry,mode=max,ref={cache}");
    let local = format!("type=local,mode=max,dest={}", folder.display());
    build(
        &maker,
        "team/made",
        "one",
        &["--cache-to", &to, "--cache-to", &local],
    );
    let mut below = layers(&registry, "team/made");
    below.pop();
    let user = Kiln::fresh(Setting::Root, &[]).expect("as before");
    for from in [&cache, &format!("type=local,src={}", folder.display())] {
        let fresh = Kiln::fresh(Setting::Root, &[]).expect("as before");
        let built = build(&fresh, "team/app", "two", &["--cache-from", from]);
        let got = asked_for(&registry, "GET", &below);
        assert_eq!((built.executed().len(), got), (1, 0), "{from}: {built}");
        let image = registry.image("team/app");
        user.run(&["pull", "-q", &image]).ok();
        let run = user.run(&["run", "--rm", &image, "cat", "/data/ran", "/data/f"]);
        assert_eq!(run.ok().stdout, "ran\ntwo");
        // Who does not name the cache does not believe it: it could have lied.
        let dockerfile = format!("FROM {base}\nCOPY f /link/g\n");
        let context = fresh.context(&[("Dockerfile", &dockerfile), ("f", "two")]);
        registry.forget();
        fresh.build(&["-t", &image, "--push", &context]).ok();
        assert!(asked_for(&registry, "GET", &below) > 0, "{from}");
    }

    // Without the indexes the layers are brought.
    let manifest = registry.manifest("team/cache", "latest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let entries = manifest["layers"].as_array().expect("a list").iter();
    let indexes = entries.filter(|it| {
        it["mediaType"]
            .as_str()
            .is_some_and(|it| it.contains("index"))
    });
    let indexes: Vec<_> = indexes
        .map(|it| registry.blob(it["digest"].as_str().expect("a digest")))
        .collect();
    assert_eq!(indexes.len(), below.len() + 1);
    for index in indexes {
        fs::remove_file(index).expect("the registry's own file");
    }
    let fresh = Kiln::fresh(Setting::User, &[]).expect("root can be the plain user");
    let built = build(&fresh, "team/app", "three", &["--cache-from", &cache]);
    assert_eq!(built.executed().len(), 1, "{built}");
    assert_eq!(asked_for(&registry, "GET", &below), below.len());
    // What was put into folders of the base comes back for who needs it.
    for setting in [Setting::Root, Setting::User] {
        let fresh = Kiln::fresh(setting, &[]).expect("as before");
        let built = build(
            &fresh,
            "team/app",
            "one",
            &["--load", "--cache-from", &cache],
        );
        assert_eq!(built.executed().len(), 0, "{built}");
    }
}

/// For several platforms, too.
#[test]
fn bases_of_all_platforms_stay_where_they_are() {
    let (Some(registry), Some(publisher)) = (Registry::start(), Kiln::fresh(Setting::Root, &[]))
    else {
        return;
    };
    let platforms = "linux/amd64,linux/arm64";
    let base = registry.image("team/base");
    let dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY f /of-$TARGETARCH\n";
    let context = publisher.context(&[("Dockerfile", dockerfile), ("f", "file\n")]);
    publisher
        .build(&["--platform", platforms, "-t", &base, "--push", &context])
        .ok();
    let of_each = |repository: &str| -> Vec<Vec<String>> {
        let index = named(&registry.manifest(repository, "latest"), "manifests");
        let manifest = |digest: &String| fs::read(registry.blob(digest)).expect("it is there");
        let layers = |digest| named(&manifest(digest), "layers");
        index.iter().map(layers).collect()
    };
    let below = of_each("team/base");
    assert_eq!(below.len(), 2);
    let kiln = Kiln::fresh(Setting::User, &[]).expect("root can be the plain user");
    let dockerfile = format!("FROM {base}\nENV A=b\nCOPY --link f /g\n");
    let context = kiln.context(&[("Dockerfile", &dockerfile), ("f", "file\n")]);
    let build = |name: &str, flags: &[&str]| {
        let image = registry.image(name);
        registry.forget();
        let args = [
            &["--platform", platforms, "-t", &image],
            flags,
            &[&*context],
        ]
        .concat();
        kiln.build(&args).ok();
        asked_for(&registry, "GET", &below.concat())
    };
    let annotated = ["--push", "--annotation", "index:a=b"];
    assert_eq!(build("team/app", &annotated), 0);
    for (layers, below) in of_each("team/app").iter().zip(&below) {
        assert_eq!(layers[..1], below[..]);
        assert_eq!(layers.len(), 2);
    }
    let index = registry.manifest("team/app", "latest");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    assert_eq!(index["annotations"]["a"], "b");
    let of = |at: usize| index["manifests"][at]["platform"]["architecture"].clone();
    assert_eq!([of(0), of(1)], ["amd64", "arm64"]);
    let image = registry.image("team/app");
    publisher
        .run(&["pull", "-q", "--platform", "linux/arm64", &image])
        .ok();

    // In the store, and in another form, they must be.
    assert_eq!(build("team/here", &["--push", "--load"]), 2);
    let kiln = Kiln::fresh(Setting::User, &[]).expect("as before");
    let forced = "type=registry,compression=zstd,force-compression=true";
    let image = registry.image("team/zstd");
    let args = [
        "--platform",
        platforms,
        "-t",
        &image,
        "-o",
        forced,
        &*context,
    ];
    registry.forget();
    kiln.build(&args).ok();
    assert_eq!(asked_for(&registry, "GET", &below.concat()), 2);
}

/// From one registry to another there is no way but through here, though nothing is unpacked.
#[test]
fn a_base_goes_from_registry_to_registry_as_it_is() {
    let Some((registry, base)) = place() else {
        return;
    };
    let other = Registry::start().expect("as before");
    let below = layers(&registry, "team/base");
    let kiln = Kiln::fresh(Setting::User, &[]).expect("root can be the plain user");
    let context = kiln.context(&[("Dockerfile", &format!("FROM {base}\nENV A=b\n"))]);
    let image = other.image("env");
    let metadata = kiln.file("metadata.json");
    let ids = kiln.file("id");
    kiln.build(&[
        "-t",
        &image,
        "--push",
        "--metadata-file",
        metadata.to_str().expect("a plain name"),
        "--iidfile",
        ids.to_str().expect("a plain name"),
        "--summary",
        &context,
    ])
    .ok()
    .says(&[" in the registry"]);
    assert_eq!(layers(&other, "env"), below);
    let manifest = kiln_tests::digest(&other.manifest("env", "latest"));
    let metadata: Value =
        serde_json::from_slice(&fs::read(metadata).expect("written")).expect("JSON");
    assert_eq!(metadata["containerimage.digest"], manifest.as_str());
    let id = fs::read_to_string(ids).expect("written");
    assert_eq!(metadata["containerimage.config.digest"], id.as_str());
    let user = Kiln::fresh(Setting::Root, &[]).expect("as before");
    user.run(&["pull", "-q", &image]).ok();
    let run = user.run(&["run", "--rm", &image, "sh", "-c", "echo $A; ls -d /data"]);
    assert_eq!(run.ok().stdout, "b\n/data\n");
    user.run(&["inspect", &image]).ok().says(&[&id]);

    // What is built upon it finds it by its documents, and its layers when it needs them.
    let upon = kiln.context(&[("Dockerfile", &format!("FROM {image}\nRUN test $A = b\n"))]);
    kiln.build(&["-t", "upon", &upon]).ok();
}
