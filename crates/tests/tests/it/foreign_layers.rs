//! Layers that only their publisher gives, at addresses of his own.

use std::collections::BTreeMap;
use std::fs;

use kiln_tests::server::Server;
use kiln_tests::{Kiln, Registry, Setting, in_each_setting};
use serde_json::{Value, json};

in_each_setting! { foreign_layers_stay_foreign }

const FOREIGN: [&str; 2] = [
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
];

fn manifest(registry: &Registry, repository: &str) -> Value {
    let bytes = registry.manifest(repository, "latest");
    serde_json::from_slice(&bytes).expect("JSON")
}

/// Makes the first layer of an image foreign: the registry loses it, a web server has it.
fn publish(registry: &Registry, repository: &str, docker: bool) -> (Server, Value) {
    let mut image = manifest(registry, repository);
    let layer = &mut image["layers"][0];
    let blob = registry.blob(layer["digest"].as_str().expect("a digest"));
    let bytes = fs::read(&blob).expect("the registry's file");
    let server = Server::start(BTreeMap::from([("/layer".to_owned(), bytes)]));
    layer["mediaType"] = json!(FOREIGN[usize::from(!docker)]);
    layer["urls"] = json!(["gone", "layer"].map(|it| format!("{}/{it}", server.address())));
    let layer = layer.clone();
    let mut kind = "application/vnd.oci.image.manifest.v1+json";
    if docker {
        kind = "application/vnd.docker.distribution.manifest.v2+json";
        image["mediaType"] = json!(kind);
        image["config"]["mediaType"] = json!("application/vnd.docker.container.image.v1+json");
    }
    fs::remove_file(&blob).expect("the registry's file");
    registry.put_manifest(repository, "latest", kind, &image.to_string());
    (server, layer)
}

fn foreign_layers_stay_foreign(setting: Setting) {
    let (Some(publisher), Some(kiln)) = (
        Kiln::fresh(Setting::Root, &["busybox"]),
        Kiln::fresh(setting, &[]),
    ) else {
        return;
    };
    let Some(registry) = Registry::with_urls() else {
        return;
    };
    let base = registry.image("base");
    publisher.run(&["tag", "busybox", &base]).ok();
    publisher.run(&["push", &base]).ok();
    let (server, foreign) = publish(&registry, "base", true);
    registry.forget();
    let digest = foreign["digest"].as_str().expect("a digest");
    let hex = &digest["sha256:".len()..];
    let uploads = || {
        let asked = registry.asked();
        let such = asked
            .iter()
            .filter(|it| it.starts_with("PUT ") && it.contains(hex));
        such.count()
    };

    // Nothing of it is needed for an image of metadata alone.
    let context = kiln.context(&[("Dockerfile", &format!("FROM {base}\nENV A=b\n"))]);
    let metadata = registry.image("metadata");
    kiln.build(&["-t", &metadata, "--push", &context]).ok();
    assert_eq!(server.asked(), Vec::<String>::new());
    let pushed = manifest(&registry, "metadata")["layers"][0].clone();
    assert_eq!(pushed["urls"], foreign["urls"]);
    assert_eq!(pushed["mediaType"], FOREIGN[1], "the OCI's word for it");

    // It comes from its publisher when it is needed.
    kiln.run(&["pull", &base]).ok();
    assert_eq!(server.asked().len(), 2, "what is gone, and what is there");
    assert_eq!(
        kiln.run(&["run", "--rm", &base, "echo", "hello"])
            .ok()
            .stdout,
        "hello\n"
    );
    let copy = registry.image("copy");
    kiln.run(&["tag", &base, &copy]).ok();
    kiln.run(&["push", &copy]).ok();
    assert_eq!(manifest(&registry, "copy"), manifest(&registry, "base"));
    let dockerfile = format!("FROM {base}\nRUN echo own > /own\nCMD [\"cat\", \"/own\"]\n");
    let context = kiln.context(&[("Dockerfile", &dockerfile)]);
    let built = registry.image("built");
    kiln.build(&["-t", &built, "--push", &context]).ok();
    let layers = manifest(&registry, "built")["layers"].clone();
    assert_eq!(
        (&layers[0]["urls"], &layers[0]["digest"]),
        (&foreign["urls"], &foreign["digest"])
    );
    assert_eq!(layers[1]["urls"], Value::Null);
    assert_eq!(uploads(), 0);
    let other = Kiln::fresh(setting, &[]).expect("as before");
    other.run(&["pull", "-q", &built]).ok();
    assert_eq!(other.run(&["run", "--rm", &built]).ok().stdout, "own\n");

    // A publisher who gives something else.
    let size = foreign["size"].as_u64().expect("a size");
    server.put("/layer", &vec![7; size as usize]);
    let late = Kiln::fresh(setting, &[]).expect("as before");
    late.run(&["pull", &base])
        .failed()
        .says(&[&format!("blob {digest}"), "corrupt"]);
    late.leaves_nothing();

    // Who asks for it gets it as a layer like all others.
    let all = registry.image("all");
    kiln.run(&["tag", &built, &all]).ok();
    kiln.run(&["push", "--push-foreign-layers", &all]).ok();
    let layer = manifest(&registry, "all")["layers"][0].clone();
    assert_eq!(layer["urls"], Value::Null, "{layer}");
    assert_eq!(
        layer["mediaType"],
        "application/vnd.oci.image.layer.v1.tar+gzip"
    );
    let output = format!(
        "type=registry,name={},prefer-nondist-layers=false",
        registry.image("too")
    );
    kiln.build(&["-o", &output, &context]).ok();
    assert_eq!(manifest(&registry, "too")["layers"][0], layer);
}
