//! Base layers that a build does not need stay where they are.

use std::fs;

use kiln_tests::{Kiln, Registry, Setting, in_each_setting};
use serde_json::Value;

in_each_setting! { a_base_that_is_not_read_is_not_moved }

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
    let manifest = registry.manifest(repository, "latest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let layers = manifest["layers"].as_array().expect("a list").iter();
    layers
        .map(|it| it["digest"].as_str().expect("a digest").to_owned())
        .collect()
}

fn a_base_that_is_not_read_is_not_moved(setting: Setting) {
    let Some((registry, base)) = place() else {
        return;
    };
    let below = layers(&registry, "team/base");
    let of_base = |method: &str| {
        let asked = registry.asked();
        let such = asked.iter().filter(|it| {
            // In an address the colon is written in another way.
            it.starts_with(method)
                && below
                    .iter()
                    .any(|digest| it.contains(&digest["sha256:".len()..]))
        });
        such.count()
    };
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

    // A link in the base decides where a file goes: the base must be looked at.
    let copy = format!("FROM {base}\nCOPY f /link/f\nCMD cat /data/f\n");
    let image = build("team/copy", &copy, &[]).expect("as before");
    assert_eq!(of_base("GET"), below.len());
    assert_eq!(said(&image, &[]), "file\n");
    assert_eq!(said(&image, &["stat", "-c", "%a", "/data"]), "700\n");

    // Who wants the image in the store, too, gets it there.
    for (name, flags) in [
        ("team/load", &["--load"][..]),
        ("team/image", &["-o", "type=image"]),
    ] {
        build(name, &env, flags).expect("as before");
        assert_eq!(of_base("GET"), below.len(), "{flags:?}");
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
