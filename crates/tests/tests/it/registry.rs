//! Images to and from a real registry.

use std::process::Command;

use kiln_tests::{Kiln, Outcome, Registry, Setting, in_each_setting, skipped};
use serde_json::Value;
use xtask::compare::{Peers, image_differences};

in_each_setting! { there_and_back bases_come_from_registries }

const DOCKERFILE: &str = "FROM busybox\nRUN echo one > /one && ln /one /two && chown 7:8 /two && mkfifo /fifo\n\
    COPY file /file\nCMD [\"cat\", \"/one\", \"/file\"]\n";

/// Runs `kiln` with a registry that stands in for Docker Hub.
fn mirrored(kiln: &Kiln, registry: &Registry, args: &[&str]) -> Outcome {
    let output = kiln
        .command(args)
        .env("KILN_REGISTRY_MIRROR", registry.address())
        .output()
        .expect("kiln starts");
    Outcome::new(format!("kiln {}", args.join(" ")), &output)
}

/// Builds a small image under a name.
fn build(kiln: &Kiln, name: &str) -> String {
    let context = kiln.context(&[("Dockerfile", DOCKERFILE), ("file", "two\n")]);
    kiln.build(&["-t", name, &context]).ok();
    context
}

fn inspect(kiln: &Kiln, name: &str) -> Value {
    let inspected = kiln.run(&["inspect", name]).ok();
    let all: Value = serde_json::from_str(&inspected.stdout).expect("JSON");
    all[0].clone()
}

/// How many blobs were uploaded.
fn uploads(asked: &[String]) -> usize {
    asked
        .iter()
        .filter(|it| it.starts_with("PUT ") && it.contains("/blobs/uploads/"))
        .count()
}

fn there_and_back(setting: Setting) {
    let (Some(from), Some(to)) = (
        Kiln::fresh(setting, &["busybox"]),
        Kiln::fresh(setting, &[]),
    ) else {
        return;
    };
    let Some(registry) = Registry::start() else {
        return;
    };
    let name = registry.image("team/app:1");
    build(&from, &name);
    let pushed = from.run(&["push", &name]).ok();
    let (_, digest) = pushed
        .stdout
        .split_once("1: digest: ")
        .unwrap_or_else(|| panic!("{pushed}"));
    let digest = digest.split(' ').next().expect("a word").to_owned();
    assert_eq!(
        inspect(&from, &name)["RepoDigests"][0],
        format!("{}@{digest}", registry.image("team/app")),
    );

    let pulled = to.run(&["pull", &name]).ok();
    let status = format!("Status: Downloaded newer image for {name}");
    pulled.says(&[&format!("Digest: {digest}"), &status]);
    let differences = image_differences(&from.save(&name), &to.save(&name));
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    assert_eq!(to.run(&["run", "--rm", &name]).ok().stdout, "one\ntwo\n");
    to.run(&["images", "--digests"]).ok().says(&[&digest]);

    // What is there is not fetched again, and pushed back it is the same without moving anything.
    registry.forget();
    to.run(&["pull", &name]).ok().says(&["Image is up to date"]);
    assert_eq!(
        registry.asked(),
        ["HEAD /v2/team/app/manifests/1"],
        "a pull of what is there only asks"
    );
    registry.forget();
    to.run(&["push", &name])
        .ok()
        .says(&[&format!("1: digest: {digest} ")]);
    assert_eq!(uploads(&registry.asked()), 0);
    assert_eq!(
        to.run(&["pull", "-q", &name]).ok().stdout,
        format!("{name}\n")
    );
    to.leaves_nothing();
}

fn bases_come_from_registries(setting: Setting) {
    let (Some(publisher), Some(kiln)) = (
        Kiln::fresh(setting, &["busybox"]),
        Kiln::fresh(setting, &[]),
    ) else {
        return;
    };
    let Some(mut registry) = Registry::start() else {
        return;
    };
    let (base, tool) = (
        registry.image("library/busybox:latest"),
        registry.image("tools/tool"),
    );
    publisher.run(&["tag", "busybox", &base]).ok();
    publisher.run(&["push", &base]).ok();
    build(&publisher, &tool);
    publisher.run(&["push", &tool]).ok();

    let dockerfile = format!(
        "FROM busybox AS first\nRUN echo made > /made\nFROM busybox\nCOPY --from=first /made /\n\
         COPY --from={tool} /one /\nRUN --mount=from={tool},target=/tool cat /tool/file > /file\nCMD [\"cat\", \"/made\", \"/one\", \"/file\"]\n"
    );
    let context = kiln.context(&[("Dockerfile", &dockerfile)]);
    let build = ["build", "--progress", "plain", "-t", "built", &context];
    mirrored(&kiln, &registry, &build).ok().says(&[
        "[internal] load metadata for docker.io/library/busybox:latest",
        &format!("[internal] load metadata for {tool}:latest"),
        "[first 1/2] FROM docker.io/library/busybox:latest@sha256:",
    ]);
    let said = kiln.run(&["run", "--rm", "built"]).ok().stdout;
    assert_eq!(said, "made\none\ntwo\n");
    kiln.run(&["images", "busybox"]).ok().says(&["latest"]);

    // Nobody is asked for what is known.
    registry.stop();
    let again = mirrored(&kiln, &registry, &build).ok();
    assert_eq!(again.executed(), Vec::<String>::new(), "{again}");
    if xtask::process::find("strace").is_none() {
        return skipped("strace is not installed");
    }
    let trace = kiln.file("trace");
    let file = trace.to_str().expect("a plain name");
    let strace = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=connect,socket",
        "-o",
        file,
    ];
    let traced = kiln.wrapped(&strace, &build).output();
    Outcome::new(
        "strace kiln build".to_owned(),
        &traced.expect("strace starts"),
    )
    .ok();
    let calls = std::fs::read_to_string(&trace).expect("strace wrote it");
    assert!(!calls.contains("AF_INET"), "{calls}");
    kiln.leaves_nothing();
}

#[test]
fn a_moved_tag_is_seen_with_pull_only() {
    let (Some(publisher), Some(kiln)) = (
        Kiln::fresh(Setting::Root, &["busybox"]),
        Kiln::fresh(Setting::Root, &[]),
    ) else {
        return;
    };
    let Some(registry) = Registry::start() else {
        return;
    };
    let base = registry.image("base");
    let publish = |word: &str| {
        let dockerfile = format!("FROM busybox\nRUN echo {word} > /word\n");
        let context = publisher.context(&[("Dockerfile", &dockerfile)]);
        publisher.build(&["-t", &base, "--push", &context]).ok();
    };
    publish("old");
    let dockerfile = format!("FROM {base}\nRUN cp /word /copy\nCMD [\"cat\", \"/copy\"]\n");
    let context = kiln.context(&[("Dockerfile", &dockerfile)]);
    let word = |args: &[&str]| {
        kiln.build(&[args, &["-t", "moved", &context]].concat())
            .ok();
        kiln.run(&["run", "--rm", "moved"]).ok().stdout
    };
    assert_eq!(word(&[]), "old\n");
    publish("new");
    assert_eq!(word(&[]), "old\n");
    registry.forget();
    assert_eq!(word(&["--pull"]), "new\n");
    let layers = registry
        .asked()
        .iter()
        .filter(|it| it.contains("GET") && it.contains("/blobs/"))
        .count();
    assert_eq!(
        layers,
        2,
        "the new config and the new layer: {:?}",
        registry.asked()
    );
    assert_eq!(word(&[]), "new\n", "the name moved in the store too");

    registry.forget();
    let cached = kiln.build(&["--pull", "-t", "moved", &context]).ok();
    assert_eq!(cached.executed(), Vec::<String>::new(), "{cached}");
    assert_eq!(registry.asked(), ["HEAD /v2/base/manifests/latest"]);
}

#[test]
fn one_line_more_moves_one_layer() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let Some(registry) = Registry::start() else {
        return;
    };
    let name = registry.image("app");
    let context = build(&kiln, &name);
    kiln.run(&["push", &name]).ok();
    assert_eq!(uploads(&registry.asked()), 4, "three layers and the config");

    std::fs::write(format!("{context}/file"), "changed\n").expect("own file");
    kiln.build(&["-t", &name, &context]).ok();
    registry.forget();
    kiln.run(&["push", &name]).ok();
    assert_eq!(uploads(&registry.asked()), 2, "{:?}", registry.asked());

    // Another repository of the same registry takes everything from its sibling.
    let other = registry.image("other/app");
    kiln.run(&["tag", &name, &other]).ok();
    registry.forget();
    kiln.run(&["push", &other]).ok();
    let asked = registry.asked();
    assert_eq!(uploads(&asked), 1, "only the config: {asked:?}");
    let mounts = asked.iter().filter(|it| it.contains("mount=sha256"));
    assert_eq!(mounts.count(), 3, "{asked:?}");
}

#[test]
fn skopeo_accepts_what_is_pushed() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let Some(registry) = Registry::start() else {
        return;
    };
    let name = registry.image("app");
    build(&kiln, &name);
    kiln.run(&["push", &name]).ok();
    if xtask::process::find("skopeo").is_none() {
        return skipped("skopeo is not installed");
    }
    let skopeo = |args: &[&str]| {
        let output = Command::new("skopeo")
            .arg("--insecure-policy")
            .args(args)
            .output();
        Outcome::new(
            format!("skopeo {}", args.join(" ")),
            &output.expect("it starts"),
        )
        .ok()
    };
    let image = format!("docker://{name}");
    let inspected = skopeo(&["inspect", "--tls-verify=false", &image]).stdout;
    let value: Value = serde_json::from_str(&inspected).expect("JSON");
    assert_eq!(value["Layers"].as_array().map(Vec::len), Some(3));
    // Skopeo reads and checks every byte when it copies, here into the other family of manifests.
    let again = format!("docker://{}", registry.image("again"));
    let tls = ["--src-tls-verify=false", "--dest-tls-verify=false"];
    skopeo(&["copy", "--format", "v2s2", tls[0], tls[1], &image, &again]);
    let Some(other) = Kiln::fresh(Setting::User, &[]) else {
        return;
    };
    let again = registry.image("again");
    other.run(&["pull", &again]).ok();
    assert_eq!(
        other.run(&["run", "--rm", &again]).ok().stdout,
        "one\ntwo\n"
    );
    let mut digest = inspect(&other, &again)["RepoDigests"].clone();
    // Docker's manifest goes back as it came.
    let digest = digest[0].take().as_str().expect("text").to_owned();
    other
        .run(&["push", &again])
        .ok()
        .says(&[digest.rsplit_once('@').expect("a digest").1]);
}

#[test]
fn docker_and_kiln_exchange_images() {
    let Some(peers) = Peers::from_environment() else {
        return;
    };
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let Some(registry) = Registry::start() else {
        return;
    };
    let docker = |args: &[&str]| {
        let output = peers.command(["docker"]).args(args).output();
        Outcome::new(
            format!("docker {}", args.join(" ")),
            &output.expect("it starts"),
        )
        .ok()
    };
    let (ours, theirs) = (registry.image("ours"), registry.image("theirs"));
    build(&kiln, &ours);
    kiln.run(&["push", &ours]).ok();
    docker(&["pull", "-q", &ours]);
    let run = docker(&["run", "--rm", "--network", "none", &ours]);
    assert_eq!(run.stdout, "one\ntwo\n");

    let (folder, inside) = peers.shared().expect("a folder that both see");
    let dockerfile = format!(
        "FROM {ours}\nRUN echo more > /more && rm /two\nCMD [\"cat\", \"/more\", \"/one\"]\n"
    );
    std::fs::write(folder.path().join("Dockerfile"), dockerfile).expect("own folder");
    let inside = inside.to_str().expect("a plain name");
    docker(&["build", "-q", "--network", "none", "-t", &theirs, inside]);
    docker(&["push", "-q", &theirs]);
    let pulled = Kiln::fresh(Setting::User, &[]).expect("root can be the plain user");
    pulled.run(&["pull", &theirs]).ok();
    let run = pulled.run(&["run", "--rm", &theirs]).ok();
    assert_eq!(run.stdout, "more\none\n");
    pulled
        .run(&["run", "--rm", &theirs, "test", "-e", "/two"])
        .failed();
    // What Kiln's own tar would not reproduce is kept: the image goes on as it is.
    let copy = registry.image("copy");
    pulled.run(&["tag", &theirs, &copy]).ok();
    let digest = inspect(&pulled, &theirs)["Id"].clone();
    pulled.run(&["push", &copy]).ok();
    docker(&["pull", "-q", &copy]);
    docker(&["rmi", "-f", &ours, &theirs, &copy]);
    kiln.run(&["pull", &copy]).ok();
    assert_eq!(inspect(&kiln, &copy)["Id"], digest);
}

#[test]
fn an_index_leads_to_the_image_of_the_platform() {
    let (Some(publisher), Some(kiln)) = (
        Kiln::fresh(Setting::Root, &["busybox"]),
        Kiln::fresh(Setting::Root, &[]),
    ) else {
        return;
    };
    let Some(mut registry) = Registry::start() else {
        return;
    };
    let name = registry.image("many");
    publisher.run(&["tag", "busybox", &name]).ok();
    let pushed = publisher.run(&["push", &name]).ok().stdout;
    let fields = pushed.rsplit_once("digest: ").expect("a digest").1;
    let (digest, size) = fields.trim().split_once(" size: ").expect("a size");
    let kind = "application/vnd.oci.image.";
    let entry = |architecture: &str| {
        format!(
            r#"{{"mediaType":"{kind}manifest.v1+json","digest":"{digest}","size":{size},"platform":{{"os":"linux","architecture":"{architecture}"}}}}"#
        )
    };
    let ours = inspect(&publisher, &name)["Architecture"].clone();
    let ours = ours.as_str().expect("text");
    let manifests = [entry("s390x"), entry(ours), entry("unknown")].join(",");
    let media_type = format!("{kind}index.v1+json");
    let index =
        format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","manifests":[{manifests}]}}"#);
    registry.put_manifest("many", "latest", &media_type, &index);

    kiln.run(&["pull", "--platform", "linux/ppc64le", &name])
        .failed()
        .says(&[&format!("linux/s390x, linux/{ours}"), "--platform"]);
    kiln.run(&["pull", &name]).ok();
    let known = inspect(&kiln, &name)["RepoDigests"][0].clone();
    let known = known.as_str().expect("text");
    assert!(!known.ends_with(digest), "the index's digest: {known}");

    // The digest of the index is a name as good as the tag, and the registry is not needed for it.
    registry.stop();
    let context = kiln.context(&[("Dockerfile", &format!("FROM {known}\nRUN true\n"))]);
    kiln.build(&[&context]).ok();
    // A manifest that is not what the index says.
    kiln.build(&["--platform", "linux/s390x", &context])
        .failed()
        .says(&["no image for linux/s390x"]);
}

/// The configuration names a mirror: by `KILN_CONFIG`, and in the user's own place.
#[test]
fn mirrors_come_from_the_configuration() {
    let (Some(publisher), Some(kiln)) = (
        Kiln::fresh(Setting::Root, &["busybox"]),
        Kiln::fresh(Setting::Root, &[]),
    ) else {
        return;
    };
    let Some(registry) = Registry::start() else {
        return;
    };
    let base = registry.image("library/busybox:latest");
    publisher.run(&["tag", "busybox", &base]).ok();
    publisher.run(&["push", &base]).ok();
    let file = kiln.file("kiln.toml");
    let pull = |name: &str, value: &std::path::Path| {
        let mut command = kiln.command(&["pull", "busybox"]);
        Outcome::new(
            format!("{name}={} kiln pull busybox", value.display()),
            &command.env(name, value).output().expect("kiln starts"),
        )
    };
    let missing = pull("KILN_CONFIG", &file).failed();
    missing.says(&["kiln.toml"]);
    std::fs::write(&file, "[registries.x]\nmirror = 1\n").expect("own file");
    let wrong = pull("KILN_CONFIG", &file).failed();
    wrong.says(&["kiln.toml", "line 2", "mirror"]);
    let text = format!(
        "[registries.\"docker.io\"]\nmirrors = [\"{}\"]\n",
        registry.address()
    );
    std::fs::write(&file, &text).expect("own file");
    pull("KILN_CONFIG", &file).ok();
    kiln.run(&["rmi", "busybox"]).ok();
    let home = kiln.file("config-home");
    std::fs::create_dir_all(home.join("kiln")).expect("own folder");
    std::fs::write(home.join("kiln/kiln.toml"), text).expect("own file");
    pull("XDG_CONFIG_HOME", &home).ok();
    kiln.run(&["images"]).ok().says(&["busybox"]);
}
