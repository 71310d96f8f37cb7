//! `kiln manifest`: lists of images that are in the store or in registries.

use kiln_tests::{Kiln, Registry, Setting};
use serde_json::Value;

/// Builds a small image for a platform and pushes it.
fn pushed(kiln: &Kiln, name: &str, platform: &str) {
    let dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY file /of-$TARGETARCH\n";
    let context = kiln.context(&[("Dockerfile", dockerfile), ("file", name)]);
    kiln.build(&["--platform", platform, "-t", name, "--push", &context])
        .ok();
}

/// A registry with an image for each of two platforms, and a store that knows of them only what the registry tells.
fn two_images() -> Option<(Registry, Kiln, [String; 2])> {
    let (registry, kiln) = (Registry::start()?, Kiln::fresh(Setting::Root, &[])?);
    let images = [registry.image("app:amd64"), registry.image("app:arm")];
    pushed(&kiln, &images[0], "linux/amd64");
    pushed(&kiln, &images[1], "linux/arm64");
    Some((registry, Kiln::fresh(Setting::User, &[])?, images))
}

fn json(text: &[u8]) -> Value {
    serde_json::from_slice(text).expect("JSON")
}

/// What the entries of a list are for.
fn platforms(list: &Value) -> Vec<String> {
    let entries = list["manifests"].as_array().expect("a list");
    entries
        .iter()
        .map(|entry| {
            let platform = &entry["platform"];
            let text = |field: &str| platform[field].as_str().unwrap_or_default().to_owned();
            format!(
                "{}/{}/{}",
                text("os"),
                text("architecture"),
                text("variant")
            )
        })
        .collect()
}

#[test]
fn lists_are_made_and_pushed() {
    let Some((registry, kiln, [amd, arm])) = two_images() else {
        return;
    };
    let list = registry.image("app:1");
    kiln.run(&["manifest", "inspect", &list])
        .failed()
        .says(&["app:1: not found"]);
    kiln.run(&["manifest", "create", &list, &amd])
        .ok()
        .says(&[&format!("Created manifest list {list}")]);
    kiln.run(&["manifest", "create", &list, &arm])
        .failed()
        .says(&["there is a list", "--amend"]);
    kiln.run(&["manifest", "create", "--amend", &list, &arm])
        .ok();
    kiln.run(&[
        "manifest",
        "annotate",
        "--variant",
        "v9",
        "--os-version",
        "5.10",
        "--os-features",
        "sse4,aes",
        "--os-features=avx",
        "--annotation",
        "a=b",
        &list,
        &arm,
    ])
    .ok();
    let missing = registry.image("app:none");
    kiln.run(&["manifest", "annotate", "--os", "x", &list, &missing])
        .failed()
        .says(&["app:none: not found"]);
    let shown = kiln.run(&["manifest", "inspect", &list]).ok();
    assert_eq!(
        platforms(&json(shown.stdout.as_bytes())),
        ["linux/amd64/", "linux/arm64/v9"]
    );
    let verbose = kiln.run(&["manifest", "inspect", "-v", &list]).ok();
    let verbose = json(verbose.stdout.as_bytes());
    assert_eq!(verbose[0]["OCIManifest"]["schemaVersion"], 2, "{verbose}");
    assert_eq!(
        verbose[1]["Descriptor"]["annotations"]["a"], "b",
        "{verbose}"
    );

    // In the same repository only the list moves.
    registry.forget();
    let digest = kiln.run(&["manifest", "push", &list]).ok().stdout;
    let asked = registry.asked();
    assert!(
        !asked.iter().any(|line| line.contains("/blobs/")),
        "{asked:?}"
    );
    let there = json(&registry.manifest("app", "1"));
    assert_eq!(platforms(&there), ["linux/amd64/", "linux/arm64/v9"]);
    let written = &there["manifests"][1]["platform"];
    assert_eq!(written["os.version"], "5.10");
    assert_eq!(
        written["os.features"],
        serde_json::json!(["sse4", "aes", "avx"])
    );
    // In another one of the same registry nothing moves but the manifests.
    let other = registry.image("other:1");
    kiln.run(&["manifest", "create", &other, &list]).ok();
    registry.forget();
    let again = kiln
        .run(&["manifest", "push", "--purge", &other])
        .ok()
        .stdout;
    assert_eq!(again, digest, "the same list");
    let asked = registry.asked();
    assert!(
        !asked.iter().any(|line| line.starts_with("PATCH")),
        "{asked:?}"
    );
    kiln.run(&["manifest", "push", &other])
        .failed()
        .says(&["no such manifest", "kiln manifest create"]);
    // In another registry everything.
    let Some(far) = Registry::start() else {
        return;
    };
    let away = far.image("away:1");
    kiln.run(&["manifest", "create", &away, &amd, &arm]).ok();
    kiln.run(&["manifest", "push", &away]).ok();
    kiln.run(&["manifest", "rm", &away, &list]).ok();
    for (name, platform) in [
        (&away, "linux/arm64"),
        (&other, "linux/amd64"),
        (&list, "linux/arm64/v9"),
    ] {
        kiln.run(&["pull", "--platform", platform, name]).ok();
    }
    kiln.run(&["manifest", "inspect", &away])
        .ok()
        .says(&["\"architecture\": \"arm64\""]);
}

#[test]
fn images_of_the_store_are_in_lists() {
    let (Some(registry), Some(kiln)) = (Registry::start(), Kiln::fresh(Setting::Root, &[])) else {
        return;
    };
    let there = registry.image("app:arm");
    pushed(&kiln, &there, "linux/arm64");
    kiln.run(&["rmi", &there]).ok();
    let context = kiln.context(&[
        ("Dockerfile", "FROM scratch\nCOPY file /\n"),
        ("file", "here"),
    ]);
    kiln.build(&["-t", "here", &context]).ok();
    kiln.run(&["manifest", "inspect", "here"])
        .ok()
        .says(&["application/vnd.oci.image.layer.v1.tar"]);
    let list = registry.image("all:1");
    kiln.run(&["manifest", "create", &list, "here", &there])
        .ok();
    kiln.run(&["manifest", "push", &list]).ok();
    let Some(other) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    for platform in ["linux/amd64", "linux/arm64"] {
        other.run(&["pull", "--platform", platform, &list]).ok();
    }
    // What goes with the list are not the store's images.
    kiln.run(&["manifest", "rm", &list]).ok();
    kiln.run(&["history", "here"]).ok();
}

#[test]
fn imagetools_put_images_together() {
    let Some((registry, kiln, [amd, arm])) = two_images() else {
        return;
    };
    let create = |args: &[&str]| {
        let args = [&["buildx", "imagetools", "create"], args].concat();
        kiln.run(&args)
    };
    let (new, other) = (registry.image("app:1"), registry.image("other/app:1"));
    let dry = create(&["--dry-run", &amd, &arm]).ok();
    assert_eq!(
        platforms(&json(dry.stdout.as_bytes())),
        ["linux/amd64/", "linux/arm64/"]
    );
    create(&[&amd]).failed().says(&["without a name", "-t"]);
    create(&["-t", &new, &amd])
        .ok()
        .says(&[&format!("{new}@sha256:")]);
    let there = |repository: &str| json(&registry.manifest(repository, "1"));
    assert_eq!(platforms(&there("app")), ["linux/amd64/"]);
    create(&["--append", "--annotation", "index:a=b", "-t", &new, &arm]).ok();
    assert_eq!(platforms(&there("app")), ["linux/amd64/", "linux/arm64/"]);
    assert_eq!(there("app")["annotations"]["a"], "b");
    create(&["--annotation", "a=b", "-t", &new, &arm])
        .failed()
        .says(&["expected index:NAME=VALUE"]);

    let inspect = |format: &str, name: &str| {
        let args = ["buildx", "imagetools", "inspect", "--format", format, name];
        kiln.run(&args).ok().stdout
    };
    assert_eq!(inspect("{{.Image.Architecture}}", &arm), "arm64\n");
    let each = "{{range $name, $image := .Image}}{{$name}} {{$image.Os}} {{end}}";
    assert_eq!(
        inspect(each, &new),
        "linux/amd64 linux linux/arm64 linux \n"
    );
    let config = json(inspect("{{json .Image}}", &amd).as_bytes());
    assert_eq!(config["rootfs"]["type"], "layers", "{config}");

    // An index goes to another repository as it is, with what it names, and no blob comes here.
    registry.forget();
    create(&["-t", &other, &new]).ok();
    assert_eq!(
        registry.manifest("other/app", "1"),
        registry.manifest("app", "1")
    );
    let blobs = registry.asked();
    let fetched = |it: &&String| it.starts_with("GET") && it.contains("/blobs/sha256");
    assert_eq!(blobs.iter().find(fetched), None);
    kiln.run(&["pull", "-q", "--platform", "linux/arm64", &other])
        .ok();
    let none = registry.image("app:none");
    create(&["-t", &other, &none])
        .failed()
        .says(&["app:none: not found"]);
}

#[test]
fn imagetools_take_sources_from_files() {
    let (Some(registry), Some(kiln)) = (Registry::start(), Kiln::fresh(Setting::Root, &[])) else {
        return;
    };
    let (amd, arm) = (registry.image("app:amd64"), registry.image("app:arm"));
    pushed(&kiln, &amd, "linux/amd64");
    pushed(&kiln, &arm, "linux/arm64");
    let list = registry.image("app:1");
    let create = |args: &[&str]| {
        let args = [&["buildx", "imagetools", "create"], args].concat();
        kiln.run(&args)
    };
    let both = create(&["--dry-run", &amd, &arm]).ok().stdout;
    let both = json(both.as_bytes());
    let digest = both["manifests"][0]["digest"].as_str().unwrap();
    let mut entry = both["manifests"][1].clone();
    entry["platform"]["variant"] = "v9".into();
    entry["platform"]["os.version"] = "5.10".into();
    entry["annotations"] = serde_json::json!({ "a": "b" });
    let file = |name: &str, text: &str| {
        let path = kiln.file(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let described = file("described", &format!("{entry}\n"));
    let named = file("named", &format!("{amd}\n"));
    let there = || json(&registry.manifest("app", "1"));

    create(&["-t", &list, "-f", &named, "--file", &described])
        .ok()
        .says(&[&format!("{list}@sha256:")]);
    assert_eq!(platforms(&there()), ["linux/amd64/", "linux/arm64/v9"]);
    let second = &there()["manifests"][1];
    assert_eq!(second["platform"]["os.version"], "5.10");
    assert_eq!(second["annotations"]["a"], "b");
    // A digest is one of the repository that the tag names.
    create(&["-t", &list, digest]).ok();
    assert_eq!(platforms(&there()), ["linux/amd64/"]);
    create(&["--dry-run", digest])
        .failed()
        .says(&["it is not said in which repository", "-t"]);
    create(&["-t", &list, "-f", &file("odd", "{\"size\": 1}")])
        .failed()
        .says(&["no descriptor", "missing field"]);
    let gone = kiln.file("gone");
    create(&["-t", &list, "-f", gone.to_str().unwrap()])
        .failed()
        .says(&["cannot read", "No such file"]);
    create(&["-t", &list])
        .failed()
        .says(&["an argument is missing"]);
}
