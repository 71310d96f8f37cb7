//! Images from and to other programs, as archives and folders.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use kiln_tests::{Kiln, Outcome, Setting, in_each_setting, skipped};
use serde_json::Value;
use xtask::compare::{Peers, SavedImage, image_differences};

in_each_setting! { export_and_import }

const DOCKERFILE: &str = "FROM busybox\n\
    RUN mkdir -m 1777 /t && echo one > /t/one && ln /t/one /two && ln -s t/one /three && mkfifo /t/fifo && chown 5:6 /t\n\
    COPY --chmod=4711 file /with-mode\n\
    RUN rm -rf /var && mkdir /var && echo new > /var/new\n\
    ENV A=b\nCMD [\"cat\", \"/three\"]\n";

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

fn built(kiln: &Kiln, name: &str) {
    let context = kiln.context(&[("Dockerfile", DOCKERFILE), ("file", name)]);
    kiln.build(&["-t", name, &context]).ok();
}

fn id(kiln: &Kiln, name: &str) -> Value {
    let said = kiln.run(&["inspect", name]).ok().stdout;
    let list: Value = serde_json::from_str(&said).expect("JSON");
    list[0]["Id"].clone()
}

/// A program with arguments, or nothing, said aloud, where it is not installed.
fn program(name: &str, args: &[&str]) -> Option<Outcome> {
    if xtask::process::find(name).is_none() {
        skipped(&format!("{name} is not installed"));
        return None;
    }
    let output = Command::new(name).args(args).output().expect("it starts");
    Some(Outcome::new(format!("{name} {}", args.join(" ")), &output).ok())
}

fn export_and_import(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    built(&kiln, "app");
    kiln.run(&[
        "run",
        "--name",
        "box",
        "app",
        "sh",
        "-c",
        "echo more > /more; rm /two",
    ])
    .ok();
    let file = kiln.file("c.tar");
    kiln.run(&["export", "-o", text(&file), "box"]).ok();
    kiln.run(&[
        "import",
        "-c",
        "CMD [\"cat\", \"/more\"]",
        text(&file),
        "again",
    ])
    .ok();
    assert_eq!(kiln.run(&["run", "--rm", "again"]).ok().stdout, "more\n");
    kiln.run(&["run", "--rm", "again", "test", "!", "-e", "/two"])
        .ok();
    let stat = kiln.run(&[
        "run",
        "--rm",
        "again",
        "stat",
        "-c",
        "%a %u:%g %F",
        "/t",
        "/with-mode",
        "/t/fifo",
    ]);
    assert_eq!(
        stat.ok().stdout,
        "1777 5:6 directory\n4711 0:0 regular file\n644 0:0 fifo\n"
    );
    // Through pipes, the same bytes come out again.
    let mut export = kiln.command(&["container", "export", "box"]);
    let mut exported = export.stdout(Stdio::piped()).spawn().expect("kiln starts");
    let mut import = kiln.command(&["import", "-", "piped"]);
    let stdin = exported.stdout.take().expect("piped");
    assert!(import.stdin(stdin).status().expect("kiln starts").success());
    assert!(exported.wait().expect("it ends").success());
    let layers = |name: &str| kiln.save(name).config["rootfs"].clone();
    assert_eq!(layers("piped"), layers("again"));
    kiln.run(&["export", "none"])
        .failed()
        .says(&["no such container: none"]);
    kiln.run(&["rm", "box"]).ok();
    kiln.leaves_nothing();
}

#[test]
fn with_skopeo() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    built(&kiln, "app");
    let Some(other) = Kiln::fresh(Setting::User, &[]) else {
        return;
    };
    let saved = kiln.file("app.tar");
    for format in ["docker", "oci"] {
        kiln.run(&["save", "--format", format, "-o", text(&saved), "app"])
            .ok();
        for (to, more) in [
            ("oci-archive", "--dest-compress-format=zstd"),
            ("oci-archive", "--dest-compress-format=gzip"),
            ("docker-archive", "--dest-compress-format=gzip"),
        ] {
            let file = other.file(&format!("{to}.tar"));
            let _ = std::fs::remove_file(&file);
            let from = format!("{format}-archive:{}", text(&saved));
            let target = format!("{to}:{}:docker.io/library/back:1", text(&file));
            let args = ["--insecure-policy", "copy", "-q", more, &from, &target];
            if program("skopeo", &args).is_none() {
                return;
            }
            other
                .run(&["load", "-i", text(&file)])
                .ok()
                .says(&["back:1"]);
            let run = other.run(&["run", "--rm", "back:1"]).ok();
            assert_eq!(run.stdout, "one\n", "{from} {target}");
            other.run(&["rmi", "back:1"]).ok();
        }
    }
    // An image in a layout keeps its digest.
    let output = format!(
        "type=oci,name=docker.io/library/kept:1,dest={}",
        text(&saved)
    );
    let context = kiln.context(&[("Dockerfile", DOCKERFILE), ("file", "f")]);
    let metadata = kiln.file("metadata");
    kiln.build(&["-o", &output, "--metadata-file", text(&metadata), &context])
        .ok();
    let digest = SavedDigest::of(&saved);
    other.run(&["load", "-i", text(&saved)]).ok();
    other
        .run(&["manifest", "inspect", &format!("kept@{digest}")])
        .ok();
}

/// The digest of the first image of an archive.
struct SavedDigest;

impl SavedDigest {
    fn of(archive: &Path) -> String {
        let file = File::open(archive).expect("saved");
        let mut archive = tar::Archive::new(file);
        let mut entries = archive.entries().expect("a tar");
        let index = entries.find_map(|entry| {
            let mut entry = entry.expect("whole");
            let is_index = entry.path().expect("a name").ends_with("index.json");
            is_index.then(|| {
                let index: Value = serde_json::from_reader(&mut entry).expect("JSON");
                index["manifests"][0]["digest"]
                    .as_str()
                    .expect("a digest")
                    .to_owned()
            })
        });
        index.expect("an index")
    }
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

#[test]
fn with_podman() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    built(&kiln, "localhost/first:1");
    built(&kiln, "localhost/second:2");
    // Podman takes no longer path than 50 characters.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = PathBuf::from(format!("/var/tmp/kiln-pod-{}-{number}", std::process::id()));
    let (root, run) = (folder.join("root"), folder.join("run"));
    let podman = |args: &[&str]| {
        let own = [
            "--root",
            text(&root),
            "--runroot",
            text(&run),
            "--storage-driver=vfs",
            "--events-backend=file",
        ];
        program("podman", &[&own, args].concat())
    };
    let saved = kiln.file("both.tar");
    kiln.run(&[
        "save",
        "-o",
        text(&saved),
        "localhost/first:1",
        "localhost/second:2",
    ])
    .ok();
    if podman(&["load", "-q", "-i", text(&saved)]).is_none() {
        return;
    }
    let listed = podman(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).expect("installed");
    listed.says(&["localhost/first:1", "localhost/second:2"]);
    // And back: both in one, and each form alone.
    let Some(other) = Kiln::fresh(Setting::User, &[]) else {
        return;
    };
    let file = kiln.file("podman.tar");
    let both = [
        "save",
        "-q",
        "-m",
        "-o",
        text(&file),
        "localhost/first:1",
        "localhost/second:2",
    ];
    podman(&both).expect("installed");
    other
        .run(&["load", "-i", text(&file)])
        .ok()
        .says(&["localhost/first:1", "localhost/second:2"]);
    assert_eq!(
        id(&other, "localhost/first:1"),
        id(&kiln, "localhost/first:1"),
        "the config is the same"
    );
    for format in ["docker-archive", "oci-archive"] {
        let _ = std::fs::remove_file(&file);
        podman(&[
            "save",
            "-q",
            "--format",
            format,
            "-o",
            text(&file),
            "localhost/first:1",
        ])
        .expect("installed");
        other.run(&["rmi", "localhost/first:1"]).ok();
        other.run(&["load", "-i", text(&file)]).ok();
        assert_eq!(
            other.run(&["run", "--rm", "localhost/first:1"]).ok().stdout,
            "one\n",
            "{format}"
        );
    }
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn with_docker() {
    let Some(peers) = Peers::from_environment() else {
        return;
    };
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let (folder, inside) = peers.shared().expect("a folder that both see");
    let here = |name: &str| folder.path().join(name);
    let there = |name: &str| format!("{}/{name}", inside.display());
    let docker = |args: &[&str]| {
        let output = peers.command(["docker"]).args(args).output();
        Outcome::new(
            format!("docker {}", args.join(" ")),
            &output.expect("it starts"),
        )
        .ok()
    };
    let own = format!("kiln-interchange-{}", std::process::id());
    let (one, two) = (format!("{own}:1"), format!("{own}:2"));
    built(&kiln, &one);
    built(&kiln, &two);
    // Docker reads the OCI's layout alone only where containerd keeps its images; its own form has both in it, and of
    // several platforms that of this machine.
    let three = format!("{own}:3");
    let context = kiln.context(&[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")]);
    let platforms = "linux/arm64,linux/amd64";
    kiln.build(&["--platform", platforms, "-t", &three, &context])
        .ok();
    let archive = here("ours.tar");
    kiln.run(&["save", "-o", text(&archive), &one, &two, &three])
        .ok();
    docker(&["load", "-q", "-i", &there("ours.tar")]);
    let run = docker(&["run", "--rm", "--network", "none", &one]);
    assert_eq!(run.stdout, "one\n");
    docker(&["image", "inspect", &three]).says(&["\"Architecture\": \"amd64\""]);
    docker(&["save", "-o", &there("theirs.tar"), &one, &two]);
    // With several, docker takes them in any order.
    docker(&["save", "-o", &there("theirs-one.tar"), &one]);
    docker(&["rmi", "-f", &one, &two, &three]);
    let Some(other) = Kiln::fresh(Setting::User, &[]) else {
        return;
    };
    let mut load = other.command(&["load"]);
    let archive = File::open(here("theirs.tar")).expect("saved");
    let loaded = load.stdin(archive).output().expect("kiln starts");
    Outcome::new("kiln load".to_owned(), &loaded)
        .ok()
        .says(&[&one, &two]);
    assert_eq!(id(&other, &one), id(&kiln, &one), "the config is the same");
    // The whole tree, as the archives of both have it.
    let again = other.file("again.tar");
    other.run(&["save", "-o", text(&again), &one]).ok();
    let read = |archive: &Path| SavedImage::read(archive).expect("readable");
    let differences = image_differences(&read(&again), &read(&here("theirs-one.tar")));
    assert_eq!(differences, [""; 0]);
    // File systems of containers.
    docker(&["load", "-q", "-i", &there("ours.tar")]);
    docker(&["create", "--name", &own, &one]);
    docker(&["export", "-o", &there("c.tar"), &own]);
    docker(&["rm", &own]);
    docker(&["rmi", "-f", &one, &two, &three]);
    kiln.run(&["import", text(&here("c.tar")), "from-docker"])
        .ok();
    let run = kiln
        .run(&["run", "--rm", "from-docker", "cat", "/three"])
        .ok();
    assert_eq!(run.stdout, "one\n");
    kiln.run(&["create", "--name", "box", &one]).ok();
    kiln.run(&["export", "-o", text(&here("ours.tar")), "box"])
        .ok();
    docker(&["import", &there("ours.tar"), &one]);
    let run = docker(&["run", "--rm", "--network", "none", &one, "cat", "/three"]);
    assert_eq!(run.stdout, "one\n");
    docker(&["rmi", "-f", &one]);
}

#[test]
fn with_umoci() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", DOCKERFILE), ("file", "f")]);
    let layout = kiln.file("layout");
    let output = format!("type=oci,tar=false,name=app:1,dest={}", text(&layout));
    kiln.build(&["-o", &output, &context]).ok();
    let image = format!("{}:1", text(&layout));
    let Some(listed) = program("umoci", &["list", "--layout", text(&layout)]) else {
        return;
    };
    listed.says(&["1"]);
    let bundle = kiln.file("bundle");
    program("umoci", &["unpack", "--image", &image, text(&bundle)]);
    let read = |name: &str| std::fs::read_to_string(bundle.join("rootfs").join(name)).expect(name);
    assert_eq!(
        (read("three"), read("var/new")),
        ("one\n".to_owned(), "new\n".to_owned())
    );
    // What it adds comes back: as a context, and as an archive.
    std::fs::write(bundle.join("rootfs/added"), "by umoci\n").expect("own folder");
    std::fs::remove_file(bundle.join("rootfs/two")).expect("own folder");
    let again = format!("{}:2", text(&layout));
    program("umoci", &["repack", "--image", &again, text(&bundle)]);
    let dockerfile =
        "FROM app AS check\nRUN cat /added && test ! -e /two && test /t/one -ef /t/one\n";
    let context = kiln.context(&[("Dockerfile", dockerfile)]);
    let app = format!("app=oci-layout://{again}");
    kiln.build(&["--build-context", &app, &context])
        .ok()
        .says(&["by umoci"]);
    let file = kiln.file("layout.tar");
    program("tar", &["-C", text(&layout), "-cf", text(&file), "."]);
    kiln.run(&["load", "-i", text(&file)]).ok();
}
