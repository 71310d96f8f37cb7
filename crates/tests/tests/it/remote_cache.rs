//! `--cache-to` and `--cache-from`: hits from store to store, what is moved for them, and what becomes of a build whose
//! cache is lost or lies.

use std::fs;
use std::path::Path;
use std::process::Command;

use kiln_tests::{Kiln, Outcome, Registry, Setting, in_each_setting};
use serde_json::{Value, json};
use xtask::compare::Peers;

in_each_setting! { from_store_to_store }

/// A stage that only gives a file, and a result with owners, links and an empty folder.
fn dockerfile(base: &str) -> String {
    format!(
        "FROM {base} AS build\nRUN head -c 300000 /dev/urandom > /big && echo built > /built\nCOPY src /src\n\
         RUN cat /src/f /built > /out\n\
         FROM {base}\nRUN mkdir -p /a/empty && echo own > /a/own && chown 7:8 /a/own && ln /a/own /a/too && ln -s own /a/link\n\
         COPY --from=build --chown=9:9 /out /srv/out\nENV A=b\nCMD [\"sh\", \"-c\", \"cat /srv/out /a/link && stat -c %u:%g /a/too /srv/out\"]\n"
    )
}

const SAID: &str = "hello\nbuilt\nown\n7:8\n9:9\n";

/// A registry with a base image.
struct Place {
    registry: Registry,
    base: String,
}

impl Place {
    fn new() -> Option<Self> {
        let publisher = Kiln::fresh(Setting::Root, &["busybox"])?;
        let registry = Registry::start()?;
        let base = registry.image("base");
        publisher.run(&["tag", "busybox", &base]).ok();
        publisher.run(&["push", &base]).ok();
        Some(Self { registry, base })
    }

    fn context(&self, kiln: &Kiln) -> String {
        kiln.context(&[
            ("Dockerfile", &dockerfile(&self.base)),
            ("src/f", "hello\n"),
        ])
    }

    /// Blobs of which the bytes were moved, but for documents: those are small.
    fn moved(&self) -> Vec<String> {
        let asked = self.registry.asked();
        let blob = |it: &String| {
            let digest = it.strip_prefix("GET ")?.rsplit_once("/blobs/")?.1;
            let size = fs::metadata(self.registry.blob(digest)).map_or(0, |it| it.len());
            let json = fs::read(self.registry.blob(digest)).is_ok_and(|it| it.starts_with(b"{"));
            (!json).then(|| format!("{size}"))
        };
        asked.iter().filter_map(blob).collect()
    }

    fn asked(&self, method: &str, part: &str) -> usize {
        let asked = self.registry.asked();
        let wanted = asked
            .iter()
            .filter(|it| it.starts_with(method) && it.contains(part));
        wanted.count()
    }
}

fn id(kiln: &Kiln, image: &str) -> String {
    let inspected = kiln.run(&["inspect", image]).ok();
    let all: Value = serde_json::from_str(&inspected.stdout).expect("JSON");
    all[0]["Id"].as_str().expect("an id").to_owned()
}

fn all_cached(outcome: Outcome) -> Outcome {
    let outcome = outcome.ok();
    assert_eq!(outcome.executed(), Vec::<String>::new(), "{outcome}");
    outcome
}

/// From root's store to one of this setting, and back.
fn from_store_to_store(setting: Setting) {
    let Some(place) = Place::new() else { return };
    let cache = place.registry.image("cache");
    let to = format!("type=registry,ref={cache},mode=max");
    let from = format!("type=registry,ref={cache}");
    for (maker, user) in [(Setting::Root, setting), (setting, Setting::Root)] {
        let (Some(maker), Some(user)) = (Kiln::fresh(maker, &[]), Kiln::fresh(user, &[])) else {
            return;
        };
        let context = place.context(&maker);
        maker
            .build(&["-t", "app", "--cache-to", &to, &context])
            .ok();
        let elsewhere = place.context(&user);
        all_cached(user.build(&["-t", "app", "--cache-from", &from, &elsewhere]))
            .says(&["importing cache manifest from"]);
        assert_eq!(user.run(&["run", "--rm", "app"]).ok().stdout, SAID);
        assert_eq!(id(&maker, "app"), id(&user, "app"));

        // What was used is in the store's own cache now: the registry is not asked any more.
        place.registry.forget();
        all_cached(user.build(&["-t", "app", "--cache-from", &from, &elsewhere]));
        assert_eq!(place.registry.asked(), Vec::<String>::new());

        // One line more: what lies below comes from the cache, and only as far as it is needed.
        let more = format!("{}RUN cat /srv/out\n", dockerfile(&place.base));
        fs::write(format!("{elsewhere}/Dockerfile"), more).expect("own folder");
        let more = user.build(&["--cache-from", &from, &elsewhere]).ok();
        assert_eq!(more.executed(), ["RUN cat /srv/out"], "{more}");
        user.leaves_nothing();
    }
}

#[test]
fn only_what_is_needed_moves() {
    let Some(place) = Place::new() else { return };
    let Some(maker) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let (cache, app) = (
        place.registry.image("team/cache"),
        place.registry.image("app"),
    );
    let to = format!("type=registry,ref={cache},mode=max");
    let context = place.context(&maker);
    maker
        .build(&["-t", &app, "--push", "--cache-to", &to, &context])
        .ok();
    let made = id(&maker, &app);

    // Pushed into another repository of the registry: nothing is moved but documents.
    let kiln = Kiln::fresh(Setting::Root, &[]).expect("as before");
    let other = place.registry.image("other");
    place.registry.forget();
    let same = format!("type=registry,ref={cache},mode=max");
    let pushed = kiln.build(&[
        "-t",
        &other,
        "--push",
        "--cache-from",
        &cache,
        "--cache-to",
        &same,
        &context,
    ]);
    all_cached(pushed);
    assert_eq!(place.moved(), Vec::<String>::new());
    assert_eq!(place.asked("POST", "mount=sha256"), 3, "base, RUN, COPY");
    kiln.run(&["images", "-q"]).ok().silent_about(&["sha256"]);
    assert_eq!(kiln.run(&["run", "--rm", &other]).ok().stdout, SAID);
    assert_eq!(id(&kiln, &other), made);

    // As an image of the store: the layers of the result, and not the large one of the other stage. And what was
    // written again above is as good as what was written first.
    let kiln = Kiln::fresh(Setting::Root, &[]).expect("as before");
    place.registry.forget();
    all_cached(kiln.build(&["-t", "app", "--cache-from", &cache, &context]));
    let moved = place.moved();
    assert_eq!(moved.len(), 3, "{moved:?}");
    assert!(
        !moved
            .iter()
            .any(|size| size.len() == 6 && size.starts_with("30")),
        "{moved:?}"
    );
    assert_eq!(id(&kiln, "app"), made);

    // Something changed in the middle: what the changed step stands on comes, and what follows is executed.
    let kiln = Kiln::fresh(Setting::Root, &[]).expect("as before");
    fs::write(format!("{context}/src/f"), "hallo\n").expect("own folder");
    let changed = kiln
        .build(&["-t", "app", "--cache-from", &cache, &context])
        .ok();
    assert_eq!(changed.executed().len(), 3, "{changed}");
    let said = kiln.run(&["run", "--rm", "app"]).ok().stdout;
    assert_eq!(said, SAID.replace("hello", "hallo"));
}

#[test]
fn min_max_and_inline() {
    let Some(place) = Place::new() else { return };
    let Some(maker) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let context = place.context(&maker);
    let (min, max) = (place.registry.image("min"), place.registry.image("max"));
    let inline = place.registry.image("inline:1");
    maker.build(&["--cache-to", &min, &context]).ok();
    let to = format!("type=registry,ref={max},mode=max");
    maker.build(&["--cache-to", &to, &context]).ok();
    maker
        .build(&[
            "--cache-to",
            "type=inline",
            "--push",
            "-t",
            &inline,
            &context,
        ])
        .ok();
    let ran = |cache: &str, more: &[&str]| {
        let kiln = Kiln::fresh(Setting::Root, &[]).expect("as before");
        let args = [&["-t", "app", "--cache-from", cache], more, &[&*context]].concat();
        kiln.build(&args).ok().executed().len()
    };
    for cache in [&min, &max, &inline] {
        assert_eq!(ran(cache, &[]), 0, "{cache}");
    }
    let stage = ["--target", "build"];
    assert_eq!(ran(&max, &stage), 0);
    assert_eq!(ran(&min, &stage), 3, "min has nothing of other stages");
    assert_eq!(ran(&inline, &stage), 3);

    // Who builds upon an image with a cache in it does not inherit it.
    let upon = maker.context(&[("Dockerfile", &format!("FROM {inline}\nENV X=y\n"))]);
    let name = place.registry.image("upon");
    maker.build(&["-t", &name, "--push", &upon]).ok();
    let config = |repository: &str, tag: &str| {
        let manifest = place.registry.manifest(repository, tag);
        let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
        let digest = manifest["config"]["digest"].as_str().expect("a digest");
        fs::read_to_string(place.registry.blob(digest)).expect("text")
    };
    assert!(config("inline", "1").contains("kiln.cache"));
    assert!(!config("upon", "latest").contains("kiln.cache"));
    let kiln = Kiln::fresh(Setting::Root, &[]).expect("as before");
    let base = place.base.clone();
    kiln.build(&["--cache-from", &base, &context])
        .ok()
        .says(&["is not used: the image has no cache in it"]);
}

/// Each platform has records of its own, in one cache and in the images of one index.
#[test]
fn several_platforms() {
    let (Some(maker), Some(registry)) = (Kiln::fresh(Setting::User, &[]), Registry::start()) else {
        return;
    };
    let dockerfile = "FROM scratch\nARG TARGETARCH\nCOPY $TARGETARCH /word\nCOPY all /all\n";
    let files = [
        ("Dockerfile", dockerfile),
        ("amd64", "one\n"),
        ("arm64", "two\n"),
        ("all", "all\n"),
    ];
    let context = maker.context(&files);
    let (cache, app) = (registry.image("cache"), registry.image("app"));
    let again = registry.image("again");
    let platforms = ["--platform", "linux/amd64,linux/arm64", "--push", "-t"];
    let to = ["--cache-to", "type=inline", &context];
    let made = [&platforms[..], &[&*app, "--cache-to", &cache], &to];
    maker.build(&made.concat()).ok();
    for from in [&cache, &app] {
        let kiln = Kiln::fresh(Setting::User, &[]).expect("as before");
        let from = ["--cache-from", from, &context];
        all_cached(kiln.build(&[&platforms[..], &[&*again], &from].concat()));
        let kiln = Kiln::fresh(Setting::User, &[]).expect("as before");
        let arm = ["--platform", "linux/arm64", "-o", "type=cacheonly"];
        all_cached(kiln.build(&[&arm[..], &from].concat()));
    }
}

#[test]
fn all_forms_are_read_again() {
    let Some(place) = Place::new() else { return };
    let Some(maker) = Kiln::fresh(Setting::User, &[]) else {
        return;
    };
    let context = place.context(&maker);
    let oci = "application/vnd.oci.image.";
    let docker = "application/vnd.docker.";
    for (number, (options, kind, layers)) in [
        ("", format!("{oci}manifest.v1+json"), "tar+gzip"),
        (
            "image-manifest=false",
            format!("{oci}index.v1+json"),
            "tar+gzip",
        ),
        (
            "oci-mediatypes=false",
            format!("{docker}distribution.manifest.list.v2+json"),
            "tar.gzip",
        ),
        (
            "compression=zstd,compression-level=7,force-compression=true,image-manifest=true",
            format!("{oci}manifest.v1+json"),
            "tar+zstd",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let repository = format!("cache{number}");
        let cache = place.registry.image(&repository);
        let to = format!("type=registry,mode=max,ref={cache},{options}");
        let to = to.trim_end_matches(',');
        maker.build(&["--cache-to", to, &context]).ok();
        let manifest = place.registry.manifest(&repository, "latest");
        let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
        assert_eq!(manifest["mediaType"], kind, "{options}");
        let text = manifest.to_string();
        assert!(
            text.contains("application/vnd.buildkit.cacheconfig.v0"),
            "{text}"
        );
        assert!(text.contains(layers), "{options}: {text}");
        let folder = maker.file(&repository);
        let to = format!(
            "type=local,tag=t,mode=max,dest={},{options}",
            folder.display()
        );
        maker
            .build(&["--cache-to", to.trim_end_matches(','), &context])
            .ok();
        let user = Kiln::fresh(Setting::User, &[]).expect("as before");
        all_cached(user.build(&["-t", "app", "--cache-from", &cache, &context]));
        let user = Kiln::fresh(Setting::User, &[]).expect("as before");
        let from = format!("type=local,tag=t,src={}", folder.display());
        all_cached(user.build(&["-t", "app", "--cache-from", &from, &context]));
        assert_eq!(user.run(&["run", "--rm", "app"]).ok().stdout, SAID);
        // On to a third place without anything being unpacked, and what was there before is still there or goes.
        let next = maker.file(&format!("{repository}-next"));
        let user = Kiln::fresh(Setting::User, &[]).expect("as before");
        for reset in [false, true] {
            let to = format!("type=local,mode=max,dest={},reset={reset}", next.display());
            let args = [
                "--cache-from",
                &from,
                "--cache-to",
                &to,
                "-o",
                "type=cacheonly",
                &context,
            ];
            all_cached(user.build(&args));
        }
        let from = format!("type=local,src={}", next.display());
        let user = Kiln::fresh(Setting::User, &[]).expect("as before");
        all_cached(user.build(&["-t", "app", "--cache-from", &from, &context]));
    }
}

/// Changes a document of the cache in a folder, and the digests that lead to it.
fn rewrite(folder: &Path, change: &dyn Fn(&mut Vec<u8>)) {
    let read = |path: &Path| -> Value {
        serde_json::from_slice(&fs::read(path).expect("it is there")).expect("JSON")
    };
    let blob = |value: &Value| {
        let digest = value["digest"].as_str().expect("a digest");
        folder.join("blobs/sha256").join(&digest["sha256:".len()..])
    };
    let put = |bytes: &[u8], named: &mut Value| {
        let digest = kiln_tests::digest(bytes);
        named["digest"] = json!(digest);
        named["size"] = json!(bytes.len());
        fs::write(blob(named), bytes).expect("own folder");
    };
    let mut index = read(&folder.join("index.json"));
    let mut manifest = read(&blob(&index["manifests"][0]));
    let mut config = fs::read(blob(&manifest["config"])).expect("it is there");
    change(&mut config);
    put(&config, &mut manifest["config"]);
    put(manifest.to_string().as_bytes(), &mut index["manifests"][0]);
    fs::write(folder.join("index.json"), index.to_string()).expect("own folder");
}

/// The blobs of the layers in a cache's folder, the largest last.
fn layers(folder: &Path) -> Vec<std::path::PathBuf> {
    let blobs = fs::read_dir(folder.join("blobs/sha256")).expect("a layout");
    let mut blobs: Vec<_> = blobs
        .map(|it| it.expect("readable").path())
        .filter(|path| !fs::read(path).expect("readable").starts_with(b"{"))
        .collect();
    blobs.sort_by_key(|path| fs::metadata(path).expect("there").len());
    blobs
}

fn each_layer(change: impl Fn(&Path)) -> impl Fn(&Path) {
    move |folder| layers(folder).iter().for_each(|layer| change(layer))
}

/// Another text in the place of the cache's config.
fn other_text(change: impl Fn(&str) -> String) -> impl Fn(&Path) {
    move |folder| {
        rewrite(folder, &|config| {
            *config = change(std::str::from_utf8(config).expect("text")).into_bytes();
        });
    }
}

type Damage<'a> = &'a dyn Fn(&Path);

#[test]
fn a_cache_that_is_lost_or_lies_breaks_nothing() {
    let Some(place) = Place::new() else { return };
    let Some(maker) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let context = place.context(&maker);
    let whole = maker.file("cache");
    let to = format!("type=local,mode=max,dest={}", whole.display());
    maker
        .build(&["-t", "app", "--cache-to", &to, &context])
        .ok();
    let gone = each_layer(|layer| fs::remove_file(layer).expect("own file"));
    let cut = each_layer(|layer| {
        let bytes = fs::read(layer).expect("own file");
        fs::write(layer, &bytes[..bytes.len() / 2]).expect("own file");
    });
    let other = each_layer(|layer| {
        let mut bytes = fs::read(layer).expect("own file");
        let at = bytes.len() - 9;
        bytes[at] ^= 1;
        fs::write(layer, bytes).expect("own file");
    });
    let lies = |key: &'static str| {
        move |folder: &Path| {
            rewrite(folder, &|config| {
                let mut value: Value = serde_json::from_slice(config).expect("JSON");
                for layer in value["kiln"]["layers"].as_array_mut().expect("a list") {
                    let text = layer[key].as_str().expect("text");
                    let (head, last) = text.split_at(text.len() - 1);
                    layer[key] = json!(format!("{head}{}", if last == "0" { "1" } else { "0" }));
                }
                *config = value.to_string().into_bytes();
            });
        }
    };
    let (lying_diff, lying_content) = (lies("diff"), lies("content"));
    let no_json = other_text(|text| text[..text.len() / 2].to_owned());
    let other_json =
        other_text(|_| r#"{"kiln":{"form":1,"semantics":"x","records":7}}"#.to_owned());
    let version = other_text(|text| text.replace("exec ", "exec 9"));
    let builder = other_text(|_| r#"{"layers":[],"records":[{"digest":"sha256:00"}]}"#.to_owned());
    let cases: [(&str, Damage<'_>, &str); 10] = [
        ("gone", &gone, "No such file"),
        ("cut", &cut, ""),
        ("other bytes", &other, ""),
        ("diff ids lie", &lying_diff, "diff id"),
        (
            "contents lie",
            &lying_content,
            "something else than was said",
        ),
        ("no JSON", &no_json, "it cannot be read"),
        ("other JSON", &other_json, "it cannot be read"),
        (
            "another version",
            &version,
            "another version of Kiln wrote it",
        ),
        (
            "another builder",
            &builder,
            "another builder wrote it, and nothing in it is of use to Kiln",
        ),
        (
            "no layers",
            &|folder| fs::write(folder.join("index.json"), "{}").expect("own file"),
            "is not used: ",
        ),
    ];
    for (what, damage, why) in cases {
        let kiln = Kiln::fresh(Setting::Root, &[]).expect("as before");
        let folder = kiln.file("cache");
        let copied = Command::new("cp")
            .arg("-r")
            .args([&whole, &folder])
            .status();
        assert!(copied.is_ok_and(|it| it.success()));
        damage(&folder);
        let from = format!("type=local,src={}", folder.display());
        let built = kiln
            .build(&["-t", "app", "--cache-from", &from, &context])
            .ok();
        assert!(built.stderr.contains("note: cache "), "{what}: {built}");
        assert!(built.stderr.contains(why), "{what}: {built}");
        assert_eq!(
            kiln.run(&["run", "--rm", "app"]).ok().stdout,
            SAID,
            "{what}"
        );
        kiln.run(&["system", "check", "--deep"]).ok();
    }
}

#[test]
fn a_lost_layer_is_made_again_before_it_is_pushed() {
    let Some(place) = Place::new() else { return };
    let Some(maker) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let context = place.context(&maker);
    let cache = place.registry.image("cache");
    maker.build(&["--cache-to", &cache, &context]).ok();
    let manifest = place.registry.manifest("cache", "latest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let lost = manifest["layers"][2]["digest"]
        .as_str()
        .expect("three layers");
    fs::remove_file(place.registry.blob(lost)).expect("the registry's file");
    let kiln = Kiln::fresh(Setting::Root, &[]).expect("as before");
    let app = place.registry.image("app");
    let built = kiln
        .build(&["-t", &app, "--push", "--cache-from", &cache, &context])
        .ok();
    built.says(&["is not used any more: layer sha256:", "is not there"]);
    let other = Kiln::fresh(Setting::Root, &[]).expect("as before");
    assert_eq!(other.run(&["run", "--rm", &app]).ok().stdout, SAID);
    // And a cache that is not there at all, or a registry that does not answer.
    let nowhere = place.registry.image("nowhere");
    other
        .build(&[
            "--cache-from",
            &nowhere,
            "--cache-from",
            "127.0.0.1:1/x",
            &context,
        ])
        .ok()
        .says(&[
            "nowhere:latest is not used: ",
            ": not found",
            "127.0.0.1:1: cannot be reached",
        ]);
}

#[test]
fn a_cache_that_cannot_be_written_fails_unless_told_otherwise() {
    let Some(place) = Place::new() else { return };
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let context = place.context(&kiln);
    let to = "type=registry,ref=127.0.0.1:1/x";
    kiln.build(&["--cache-to", to, &context])
        .failed()
        .says(&["cannot write the cache 127.0.0.1:1/x:latest: 127.0.0.1:1: cannot be reached"]);
    let to = format!("{to},ignore-error=true");
    kiln.build(&["--cache-to", &to, &context])
        .ok()
        .says(&["note: cannot write the cache"]);
    for (flag, text, hint) in [
        (
            "--cache-from",
            "type=gha",
            "caches of type=gha are not supported",
        ),
        ("--cache-to", "type=s3,bucket=b", "use type=registry"),
    ] {
        kiln.build(&[flag, text, &context]).failed().says(&[hint]);
    }
}

#[test]
fn records_tell_nothing() {
    let Some(place) = Place::new() else { return };
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let dockerfile = format!(
        "FROM {}\nARG TOKEN\nRUN --mount=type=secret,id=s test -s /run/secrets/s && echo telltale > /x\n",
        place.base
    );
    let context = kiln.context(&[("Dockerfile", &dockerfile), ("secret", "sesame-open")]);
    let secret = format!("id=s,src={context}/secret");
    let cache = place.registry.image("cache");
    let to = format!("type=registry,ref={cache},mode=max");
    let args = [
        "--secret",
        &secret,
        "--build-arg",
        "TOKEN=hunter2",
        "--cache-to",
        &to,
        &context,
    ];
    kiln.build(&args).ok();
    let manifest = place.registry.manifest("cache", "latest");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let config = manifest["config"]["digest"].as_str().expect("a digest");
    let config = fs::read_to_string(place.registry.blob(config)).expect("text");
    assert!(config.contains("\"records\":[{"), "{config}");
    for word in ["sesame", "hunter2", "TOKEN", "telltale", "secret", &context] {
        assert!(!config.contains(word), "{word}: {config}");
    }
    // With another value of the argument it is another step, with another secret it is the same.
    let other = Kiln::fresh(Setting::Root, &[]).expect("as before");
    fs::write(format!("{context}/secret"), "another").expect("own folder");
    let build = |token: &str| {
        let token = format!("TOKEN={token}");
        let args = [
            "--secret",
            &secret,
            "--build-arg",
            &token,
            "--cache-from",
            &cache,
            &context,
        ];
        other.build(&args).ok().executed().len()
    };
    assert_eq!((build("hunter2"), build("hunter3")), (0, 1));
}

#[test]
fn buildkit_reads_what_is_written() {
    let Some(peers) = Peers::from_environment() else {
        return;
    };
    let Some(place) = Place::new() else { return };
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let context = place.context(&kiln);
    let (folder, inside) = peers.shared().expect("a folder that both see");
    let copied = Command::new("cp")
        .arg("-r")
        .arg(format!("{context}/."))
        .arg(folder.path())
        .status();
    assert!(copied.is_ok_and(|it| it.success()));
    let inside = inside.to_str().expect("a plain name");
    let (cache, list, inline) = (
        place.registry.image("cache"),
        place.registry.image("list"),
        place.registry.image("inline"),
    );
    let max = format!("type=registry,mode=max,ref={cache}");
    let index = format!("type=registry,mode=max,image-manifest=false,ref={list}");
    let local = format!(
        "type=local,mode=max,dest={}",
        folder.path().join("cache").display()
    );
    kiln.build(&[
        "--push",
        "-t",
        &inline,
        "--cache-to",
        &max,
        "--cache-to",
        &index,
        "--cache-to",
        &local,
        "--cache-to",
        "type=inline",
        &context,
    ])
    .ok();
    let here = format!("type=local,src={inside}/cache");
    for from in [&cache, &list, &inline, &here] {
        let output = peers
            .command([
                "docker",
                "build",
                "--progress",
                "plain",
                "--network",
                "none",
            ])
            .args(["--cache-from", from, inside])
            .output();
        let built = Outcome::new(
            format!("docker build --cache-from {from}"),
            &output.expect("starts"),
        );
        built
            .ok()
            .says(&["importing cache manifest from"])
            .silent_about(&["WARNING", "ERROR", "failed to"]);
    }
    // And the other way round: there is nothing in it for Kiln.
    let theirs = place.registry.image("theirs");
    let output = peers
        .command([
            "docker",
            "build",
            "-q",
            "--network",
            "none",
            "--push",
            "-t",
            &theirs,
        ])
        .args(["--cache-to", "type=inline", inside])
        .output();
    Outcome::new(
        "docker build --cache-to type=inline".to_owned(),
        &output.expect("starts"),
    )
    .ok();
    kiln.build(&["--no-cache", "--cache-from", &theirs, &context])
        .ok();
    let other = Kiln::fresh(Setting::Root, &[]).expect("as before");
    other
        .build(&["--cache-from", &theirs, &context])
        .ok()
        .says(&["is not used: another builder wrote it, and nothing in it is of use to Kiln"]);
    let removed = peers.command(["docker", "rmi", "-f", &theirs]).output();
    assert!(removed.is_ok_and(|it| it.status.success()));
}
