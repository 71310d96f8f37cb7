//! Images in and out of the store, and what other tools make of them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use kiln_tests::{Kiln, Outcome, Setting, in_each_setting, skipped};
use serde_json::Value;

in_each_setting! { names_and_history import_and_load podman_and_skopeo_accept_what_is_saved run_options }

const DOCKERFILE: &str = "FROM busybox\nENV GREETING=hello\nRUN echo me:x:1000:1000::/:/bin/sh >> /etc/passwd && chown -R me /var/www\n\
    WORKDIR /data\nCOPY --chown=me words .\nUSER me\nENTRYPOINT [\"/bin/sh\", \"-c\"]\nCMD [\"echo $GREETING $(cat words); id -u; pwd\"]\n";

fn greeter(kiln: &Kiln, tag: &str) {
    let context = kiln.context(&[("Dockerfile", DOCKERFILE), ("words", "there")]);
    kiln.build(&["-t", tag, &context]).ok();
}

const GREETING: &str = "hello there\n1000\n/data\n";

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

fn names_and_history(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    greeter(&kiln, "greeter:1");
    assert_eq!(
        kiln.run(&["run", "--rm", "greeter:1"]).ok().stdout,
        GREETING
    );

    kiln.run(&["tag", "greeter:1", "localhost:5000/team/greeter"])
        .ok();
    let ids = |name: &str| kiln.run(&["images", "-q", name]).ok().stdout;
    assert_eq!(ids("greeter"), ids("localhost:5000/team/greeter"));
    assert!(!ids("greeter").is_empty());

    let history = kiln.run(&["history", "--no-trunc", "greeter:1"]).ok();
    for step in [
        "CMD [\"echo",
        "ENTRYPOINT [\"/bin/sh\"",
        "USER me",
        "COPY",
        "WORKDIR /data",
        "echo me:x:1000",
        "ENV GREETING",
    ] {
        assert!(history.stdout.contains(step), "{step}: {history}");
    }
    assert!(
        history.stdout.find("USER me") < history.stdout.find("WORKDIR /data"),
        "newest first: {history}"
    );

    let inspected = kiln.run(&["inspect", "greeter:1"]).ok();
    let value: Value = serde_json::from_str(&inspected.stdout).expect("JSON");
    let config = &value[0]["Config"];
    assert_eq!(config["User"], "me");
    assert_eq!(config["WorkingDir"], "/data");
    assert_eq!(config["Entrypoint"], serde_json::json!(["/bin/sh", "-c"]));
    assert_eq!(
        value[0]["RootFS"]["Layers"].as_array().map(Vec::len),
        Some(4),
        "{inspected}"
    );
    assert!(
        value[0]["Id"]
            .as_str()
            .is_some_and(|id| id.starts_with("sha256:")),
        "{inspected}"
    );

    kiln.run(&["rmi", "greeter:1"]).ok();
    kiln.run(&["run", "--rm", "greeter:1"]).failed();
    assert_eq!(
        kiln.run(&["run", "--rm", "localhost:5000/team/greeter"])
            .ok()
            .stdout,
        GREETING
    );
    kiln.run(&["rmi", "localhost:5000/team/greeter"]).ok();
    kiln.run(&["images"]).ok().silent_about(&["greeter"]);
    kiln.run(&["info"]).ok();
    kiln.leaves_nothing();
}

fn import_and_load(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    greeter(&kiln, "greeter");
    let file = kiln.file("greeter.tar");
    for format in ["docker", "oci"] {
        kiln.run(&["save", "-o", text(&file), "--format", format, "greeter"])
            .ok();
        let Some(other) = Kiln::fresh(setting, &[]) else {
            return;
        };
        let archive = std::fs::File::open(&file).expect("saved");
        let output = other
            .command(&["load"])
            .stdin(archive)
            .output()
            .expect("kiln starts");
        Outcome::new(format!("kiln load < {format}"), &output).ok();
        assert_eq!(
            other.run(&["run", "--rm", "greeter"]).ok().stdout,
            GREETING,
            "{format}"
        );
        let id = |kiln: &Kiln| kiln.run(&["images", "-q", "greeter"]).ok().stdout;
        assert_eq!(id(&kiln), id(&other), "{format}");
    }

    let folder = kiln.context(&[("etc/motd", "imported\n")]);
    let tar = kiln.file("root.tar");
    let made = Command::new("tar")
        .args([
            "--owner=3",
            "--group=4",
            "-C",
            &folder,
            "-cf",
            text(&tar),
            ".",
        ])
        .status();
    assert!(made.is_ok_and(|status| status.success()));
    let changes = ["-c", "ENV A=1", "-c", "CMD [\"cat\", \"/etc/motd\"]"];
    kiln.run(&[&["import"], changes.as_slice(), &[text(&tar), "imported:x"]].concat())
        .ok();
    let saved = kiln.save("imported:x");
    let node = saved.files.get(b"etc/motd").expect("imported");
    assert_eq!((node.uid, node.gid), (3, 4));
    assert_eq!(
        saved.config["config"]["Cmd"],
        serde_json::json!(["cat", "/etc/motd"])
    );
    assert_eq!(saved.config["config"]["Env"], serde_json::json!(["A=1"]));
    assert_eq!(saved.names, ["imported:x"]);
    for (file, why) in [
        ("/no/such/file", "/no/such/file"),
        ("/etc/passwd", "/etc/passwd"),
    ] {
        kiln.run(&["import", file, "broken"]).failed().says(&[why]);
        kiln.run(&["load", "-i", file]).failed().says(&[why]);
    }
    kiln.run(&["images"]).ok().silent_about(&["broken"]);
}

fn run_options(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let run = |args: &[&str]| kiln.run(&[&["run", "--rm"], args].concat());
    assert_eq!(
        run(&["busybox", "sh", "-c", "exit 42"])
            .failed()
            .status
            .code(),
        Some(42)
    );
    assert_eq!(
        run(&["-e", "A=b c", "busybox", "sh", "-c", "echo $A"])
            .ok()
            .stdout,
        "b c\n"
    );
    assert_eq!(
        run(&["-w", "/var/tmp", "busybox", "pwd"]).ok().stdout,
        "/var/tmp\n"
    );
    assert_eq!(
        run(&["-u", "www-data", "busybox", "id", "-un"]).ok().stdout,
        "www-data\n"
    );
    assert_eq!(
        run(&["-u", "12:34", "busybox", "sh", "-c", "id -u; id -g"])
            .ok()
            .stdout,
        "12\n34\n"
    );
    assert_eq!(
        run(&["--entrypoint", "echo", "busybox", "x"]).ok().stdout,
        "x\n"
    );
    assert_eq!(
        run(&["--network", "none", "busybox", "ls", "/sys/class/net"])
            .ok()
            .stdout,
        "lo\n"
    );

    let folder = kiln.context(&[("in", "mounted\n")]);
    assert_eq!(
        run(&["-v", &format!("{folder}:/m"), "busybox", "cat", "/m/in"])
            .ok()
            .stdout,
        "mounted\n"
    );
    run(&[
        "-v",
        &format!("{folder}:/m:ro"),
        "busybox",
        "touch",
        "/m/new",
    ])
    .failed();
    run(&["-v", &format!("{folder}:/m"), "busybox", "touch", "/m/new"]).ok();
    assert!(Path::new(&folder).join("new").exists());

    // A container's changes are its own.
    run(&["busybox", "rm", "-rf", "/var"]).ok();
    run(&["busybox", "ls", "/var/www"]).ok();
    run(&["busybox", "/no/such/program"])
        .failed()
        .says(&["/no/such/program"]);
    kiln.leaves_nothing();
}

fn podman_and_skopeo_accept_what_is_saved(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    greeter(&kiln, "greeter");
    for format in ["docker", "oci"] {
        let file = kiln.file(&format!("{format}.tar"));
        kiln.run(&["save", "-o", text(&file), "--format", format, "greeter"])
            .ok();
        skopeo_inspects(format, &file);
        podman_runs(&file);
    }
}

fn skopeo_inspects(format: &str, file: &Path) {
    if xtask::process::find("skopeo").is_none() {
        return skipped("skopeo is not installed");
    }
    let image = format!("{format}-archive:{}", file.display());
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "inspect", &image])
        .output()
        .expect("it starts");
    let inspected = Outcome::new(format!("skopeo inspect {image}"), &output).ok();
    let value: Value = serde_json::from_str(&inspected.stdout).expect("JSON");
    assert_eq!(
        value["Layers"].as_array().map(Vec::len),
        Some(4),
        "{inspected}"
    );
    assert_eq!(value["Os"], "linux");
    // Skopeo reads and checks every byte when it copies.
    let copy = format!("dir:{}.copy", file.display());
    let output = Command::new("skopeo")
        .args(["--insecure-policy", "copy", &image, &copy])
        .output()
        .expect("it starts");
    Outcome::new(format!("skopeo copy {image}"), &output).ok();
}

static NUMBER: AtomicU32 = AtomicU32::new(0);

fn podman_runs(file: &Path) {
    let Some(runc) = xtask::process::find("runc") else {
        return skipped("runc is not installed");
    };
    if xtask::process::find("podman").is_none() || !xtask::machine::is_root() {
        return skipped("podman is not installed, or this is not root");
    }
    // Podman takes no longer path than 50 characters.
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = PathBuf::from(format!(
        "/var/tmp/kiln-podman-{}-{number}",
        std::process::id()
    ));
    let podman = |args: &[&str]| {
        let mut command = Command::new("podman");
        command.args([
            "--root",
            text(&folder.join("root")),
            "--runroot",
            text(&folder.join("run")),
        ]);
        command.args([
            "--storage-driver=vfs",
            "--cgroup-manager=cgroupfs",
            "--events-backend=file",
            "--runtime",
        ]);
        let output = command
            .arg(&runc)
            .args(args)
            .output()
            .expect("podman starts");
        Outcome::new(format!("podman {}", args.join(" ")), &output).ok()
    };
    let loaded = podman(&["load", "-q", "-i", text(file)]).stdout;
    let name = loaded
        .trim()
        .rsplit_once(": ")
        .map_or_else(|| loaded.trim(), |(_, name)| name)
        .to_owned();
    let limits = [
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=1024:1024",
    ];
    let run = [
        &["run", "--rm", "--network", "none"],
        limits.as_slice(),
        &[&name],
    ]
    .concat();
    assert_eq!(podman(&run).stdout, GREETING);
    let _ = std::fs::remove_dir_all(folder);
}
