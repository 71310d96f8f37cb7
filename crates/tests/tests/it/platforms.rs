//! Images of several platforms: built at once, kept, run, moved.

use std::fs;
use std::path::Path;

use kiln_tests::{Kiln, Registry, Setting, in_each_setting, skipped};
use serde_json::Value;

in_each_setting! { built_at_once files_of_each }

/// A stage that runs here, and one that holds what it made for each platform; its programs run here.
const DOCKERFILE: &str = "FROM --platform=$BUILDPLATFORM busybox AS build\n\
    RUN echo shared > /shared\n\
    ARG TARGETPLATFORM TARGETOS TARGETARCH TARGETVARIANT BUILDPLATFORM\n\
    RUN echo $BUILDPLATFORM $TARGETPLATFORM $TARGETOS $TARGETARCH $TARGETVARIANT > /out\n\
    FROM scratch\nCOPY --from=build / /\nCMD [\"cat\", \"/out\"]\n";

/// A small image for each platform.
const SMALL: &str =
    "FROM scratch\nARG TARGETARCH\nLABEL arch=$TARGETARCH\nCOPY file /file-of-$TARGETARCH\n";

const PLATFORMS: &str = "linux/amd64,linux/arm64,linux/arm/v7";

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

fn inspect(kiln: &Kiln, name: &str) -> Value {
    let said = kiln.run(&["inspect", name]).ok().stdout;
    let mut list: Value = serde_json::from_str(&said).expect("JSON");
    list[0].take()
}

fn small(kiln: &Kiln, name: &str, platforms: &str) {
    let context = kiln.context(&[("Dockerfile", SMALL), ("file", name)]);
    kiln.build(&["--platform", platforms, "-t", name, &context])
        .ok();
}

fn built_at_once(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", DOCKERFILE)]);
    let (iid, metadata) = (kiln.file("iid"), kiln.file("metadata"));
    let args = [
        "--platform",
        "linux/amd64,linux/arm64",
        "--platform=linux/arm/v7",
        "-t",
        "multi",
        "--iidfile",
        text(&iid),
        "--metadata-file",
        text(&metadata),
        "--annotation",
        "index:org.example.all=yes",
        "--annotation",
        "manifest[linux/arm64]:org.example.arm=yes",
        &context,
    ];
    let built = kiln.build(&args).ok();
    let mut executed = built.executed();
    executed.sort();
    assert_eq!(
        executed,
        [
            "COPY --from=build / /",
            "COPY --from=build / /",
            "COPY --from=build / /",
            "RUN echo linux/amd64 linux/amd64 linux amd64  > /out",
            "RUN echo linux/amd64 linux/arm/v7 linux arm v7 > /out",
            "RUN echo linux/amd64 linux/arm64 linux arm64  > /out",
            "RUN echo shared > /shared",
        ],
        "what they share runs once:\n{built}"
    );
    built.says(&[
        "[linux/amd64 build 2/3] RUN echo shared",
        "[linux/amd64->arm/v7 build 3/3]",
        "[linux/arm64 stage-1 1/1] COPY",
    ]);
    let index = fs::read_to_string(&iid).expect("written");
    let said: Value = serde_json::from_slice(&fs::read(&metadata).expect("written")).expect("JSON");
    assert_eq!(said["containerimage.digest"], index.as_str());
    assert_eq!(
        said["containerimage.descriptor"]["mediaType"],
        "application/vnd.oci.image.index.v1+json"
    );
    assert!(said.get("containerimage.config.digest").is_none(), "{said}");

    // The same again is the same index, and each has its own.
    let again = kiln.build(&args).ok();
    assert_eq!(again.executed(), [""; 0], "{again}");
    assert_eq!(fs::read_to_string(&iid).expect("written"), index);
    let id = &index["sha256:".len()..][..12];
    let images = kiln.run(&["images"]).ok().stdout;
    let line = images.lines().find(|line| line.starts_with("multi"));
    assert!(line.is_some_and(|line| line.contains(id)), "{images}");
    assert!(!images.contains("<none>"), "{images}");
    let inspected = inspect(&kiln, "multi");
    assert_eq!(inspected["Id"], index.as_str());
    assert_eq!(inspected["Architecture"], "amd64");
    let of: Vec<_> = inspected["Manifests"].as_array().expect("a list").clone();
    assert_eq!(of.len(), 3);
    for (run, says) in [
        (vec!["run", "--rm", "multi"], "linux/amd64 linux/amd64"),
        (
            vec!["run", "--rm", "--platform", "linux/arm64", "multi"],
            "linux/amd64 linux/arm64",
        ),
        (vec!["run", "--rm", id], "linux/amd64 linux/amd64"),
    ] {
        kiln.run(&run).ok().says(&[says]);
    }
    kiln.run(&["run", "--rm", "--platform", "linux/s390x", "multi"])
        .failed()
        .says(&[
            "no image for linux/s390x in the store: it has linux/amd64, linux/arm64, linux/arm/v7",
        ]);

    // A second name leads to the index; the last one takes it away with its images.
    kiln.run(&["tag", "multi", "other"]).ok();
    kiln.run(&["rmi", "multi"])
        .ok()
        .says(&["Untagged: multi:latest"]);
    kiln.run(&["run", "--rm", "other"]).ok();
    kiln.run(&["image", "prune", "-f"])
        .ok()
        .silent_about(&["deleted"]);
    kiln.run(&["rmi", "other"])
        .ok()
        .says(&[&format!("Deleted: {index}")]);
    assert_eq!(kiln.run(&["images", "-q"]).ok().stdout.lines().count(), 1);
    kiln.leaves_nothing();
}

fn files_of_each(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", SMALL), ("file", "f")]);
    let build = |output: &str| {
        let args = [
            "--platform",
            "linux/amd64,linux/arm/v7",
            "-o",
            output,
            &context,
        ];
        kiln.build(&args)
    };
    let folder = kiln.file("files");
    build(text(&folder)).ok();
    for file in ["linux_amd64/file-of-amd64", "linux_arm_v7/file-of-arm"] {
        assert!(folder.join(file).is_file(), "{file}");
    }
    let together = kiln.file("together");
    build(&format!(
        "type=local,platform-split=false,dest={}",
        text(&together)
    ))
    .ok();
    for file in ["file-of-amd64", "file-of-arm"] {
        assert!(together.join(file).is_file(), "{file}");
    }
    for (split, names) in [
        (
            "",
            "linux_amd64/ linux_amd64/file-of-amd64 linux_arm_v7/ linux_arm_v7/file-of-arm",
        ),
        (",platform-split=false", "file-of-amd64 file-of-arm"),
    ] {
        let tar = kiln.file("files.tar");
        build(&format!("type=tar{split},dest={}", text(&tar))).ok();
        let listed = std::process::Command::new("tar")
            .args(["-tf", text(&tar)])
            .output()
            .expect("tar");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert_eq!(
            listed.split_whitespace().collect::<Vec<_>>().join(" "),
            names
        );
    }
    build("type=docker,dest=x.tar").failed().says(&[
        "docker exporter does not support exporting manifest lists, use the oci exporter instead",
        "type=oci",
    ]);
    // One platform has a folder of its own only when it is asked for.
    let one = kiln.file("one");
    let output = format!("type=local,platform-split=true,dest={}", text(&one));
    kiln.build(&["-o", &output, &context]).ok();
    assert!(one.join("linux_amd64/file-of-amd64").is_file());
    assert_eq!(kiln.run(&["images", "-q"]).ok().stdout.lines().count(), 1);
    kiln.leaves_nothing();
}

#[test]
fn to_registries_and_back() {
    let (Some(registry), Some(kiln)) = (Registry::start(), Kiln::fresh(Setting::Root, &[])) else {
        return;
    };
    let name = registry.image("multi:1");
    small(&kiln, &name, PLATFORMS);
    let pushed = kiln.run(&["push", &name]).ok();
    let digest = pushed
        .stdout
        .split_whitespace()
        .find(|word| word.starts_with("sha256:"))
        .expect("a digest")
        .to_owned();
    let document: Value = serde_json::from_slice(&registry.manifest("multi", "1")).expect("JSON");
    let platforms: Vec<_> = document["manifests"]
        .as_array()
        .expect("an index")
        .iter()
        .map(|entry| entry["platform"].to_string())
        .collect();
    assert_eq!(
        platforms,
        [
            r#"{"architecture":"amd64","os":"linux"}"#,
            r#"{"architecture":"arm64","os":"linux"}"#,
            r#"{"architecture":"arm","os":"linux","variant":"v7"}"#,
        ]
    );
    // A build that pushes tells the same.
    let (context, iid) = (
        kiln.context(&[("Dockerfile", SMALL), ("file", &name)]),
        kiln.file("iid"),
    );
    let args = ["--platform", PLATFORMS, "-t", &name, "--push"];
    kiln.build(&[&args[..], &["--iidfile", text(&iid), &context]].concat())
        .ok();
    assert_eq!(fs::read_to_string(&iid).expect("written"), digest);
    // Once more moves nothing.
    registry.forget();
    kiln.run(&["push", &name]).ok().says(&[&digest]);
    let asked = registry.asked();
    assert!(
        !asked.iter().any(|line| line.starts_with("PATCH")),
        "{asked:?}"
    );

    // One platform at a time; the name then leads to what is there of the index.
    let Some(other) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let arch = |wanted: &str| inspect(&other, wanted)["Config"]["Labels"]["arch"].clone();
    other
        .run(&["pull", "--platform", "linux/arm64", &name])
        .ok()
        .says(&[&digest]);
    assert_eq!(arch(&name), "arm64");
    other
        .run(&["push", "--platform", "linux/s390x", &name])
        .failed()
        .says(&["no image for linux/s390x"]);
    other.run(&["pull", &name]).ok().says(&[&digest]);
    assert_eq!(arch(&name), "amd64");
    assert_eq!(inspect(&other, &name)["Id"], digest.as_str());
    other.run(&["push", &name]).failed().says(&[
        "the image for linux/arm/v7 is not in the store",
        "pull it with",
        "--platform linux/arm/v7",
    ]);
    let one = registry.image("one:1");
    other.run(&["tag", &name, &one]).ok();
    other.run(&["push", "--platform", "linux/arm64", &one]).ok();
    let document: Value = serde_json::from_slice(&registry.manifest("one", "1")).expect("JSON");
    assert!(document.get("config").is_some(), "a manifest: {document}");
}

#[test]
fn bases_are_chosen_for_the_platform() {
    let (Some(registry), Some(kiln)) = (Registry::start(), Kiln::fresh(Setting::Root, &[])) else {
        return;
    };
    let base = registry.image("base:1");
    small(
        &kiln,
        &base,
        "linux/amd64,linux/arm/v5,linux/arm/v7,linux/s390x",
    );
    kiln.run(&["push", &base]).ok();
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let dockerfile = format!("FROM {base}\nARG TARGETVARIANT\nCOPY file /x$TARGETVARIANT\n");
    let context = kiln.context(&[("Dockerfile", dockerfile.as_str()), ("file", "f")]);
    // 64-bit ARM runs the 32-bit one, v6 runs v5.
    let wanted = "linux/amd64,linux/arm64,linux/arm/v6,linux/s390x";
    kiln.build(&["--platform", wanted, "-t", "app", &context])
        .ok();
    for (platform, arch, variant) in [
        ("linux/amd64", "amd64", ""),
        ("linux/arm64", "arm", ""),
        ("linux/arm/v6", "arm", "v6"),
        ("linux/s390x", "s390x", ""),
    ] {
        let file = kiln.file("saved.tar");
        kiln.run(&["save", "--platform", platform, "-o", text(&file), "app"])
            .ok();
        let saved = xtask::compare::SavedImage::read(&file).expect("readable");
        let config = &saved.config;
        assert_eq!(config["config"]["Labels"]["arch"], arch, "{platform}");
        assert_eq!(
            config["variant"].as_str().unwrap_or_default(),
            variant,
            "{platform}"
        );
        let own = platform.split('/').nth(1).expect("an architecture");
        assert_eq!(
            config["architecture"], own,
            "the image is for what was asked for"
        );
    }
    kiln.build(&["--platform", "linux/amd64,linux/riscv64", &context])
        .failed()
        .says(&[
            "no image for linux/riscv64: it is for linux/amd64, linux/arm/v5, linux/arm/v7, linux/s390x",
            "Dockerfile:1",
            "--platform",
        ]);
    let dockerfile = format!("FROM --platform=linux/386 {base}\n");
    let context = kiln.context(&[("Dockerfile", dockerfile.as_str())]);
    kiln.build(&[&context])
        .failed()
        .says(&["no image for linux/386"]);
}

#[test]
fn archives() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    small(&kiln, "multi:1", PLATFORMS);
    small(&kiln, "plain:1", "linux/amd64");
    let id = inspect(&kiln, "multi:1")["Id"].clone();
    for format in ["oci", "docker"] {
        let file = kiln.file("all.tar");
        let args = [
            "save",
            "--format",
            format,
            "-o",
            text(&file),
            "multi:1",
            "plain:1",
        ];
        kiln.run(&args).ok();
        let Some(other) = Kiln::fresh(Setting::Root, &[]) else {
            return;
        };
        let load = |more: &[&str]| {
            let mut command = other.command(&[&["load"], more].concat());
            let archive = fs::File::open(&file).expect("saved");
            let output = command.stdin(archive).output().expect("kiln starts");
            kiln_tests::Outcome::new(format!("kiln load {more:?} # {format}"), &output)
        };
        load(&["--platform", "linux/riscv64"]).failed().says(&[
            "no image for linux/riscv64: it is for linux/amd64, linux/arm64, linux/arm/v7",
        ]);
        load(&[])
            .ok()
            .says(&["Loaded image: multi:1", "Loaded image: plain:1"]);
        assert_eq!(inspect(&other, "multi:1")["Id"], id, "{format}");
        let mut one = [
            "save",
            "--platform",
            "linux/arm64",
            "--format",
            format,
            "-o",
            text(&file),
            "multi:1",
        ];
        other.run(&one).ok();
        other.run(&["rmi", "multi:1"]).ok();
        load(&[]).ok();
        assert_eq!(
            inspect(&other, "multi:1")["Architecture"],
            "arm64",
            "{format}"
        );
        one[2] = "linux/arm64,linux/arm/v7";
        kiln.run(&one).ok();
        load(&["--platform", "linux/arm/v7"]).ok();
        assert_eq!(
            inspect(&other, "multi:1")["Architecture"],
            "arm",
            "{format}"
        );
    }
}

/// A program for 64-bit ARM that writes a line into the file `/made`.
fn program_for_arm() -> Vec<u8> {
    const PATH: &[u8] = b"/made\0";
    const LINE: &[u8] = b"by arm64\n";
    const COUNT: u32 = 13;
    const SUPERVISOR_CALL: u32 = 0xd400_0001;
    let set = |register: u32, value: u32| 0xd280_0000 | value << 5 | register;
    // The address of data that is so many bytes behind the code, from the instruction `at`.
    let address = |register: u32, behind: u32, at: u32| {
        let distance = (COUNT - at) * 4 + behind;
        0x1000_0000 | (distance & 3) << 29 | (distance >> 2) << 5 | register
    };
    let code: [u32; COUNT as usize] = [
        0x9280_0000 | 99 << 5, // the working folder
        address(1, 0, 1),
        set(2, 0o1101), // write only, make it, empty it
        set(3, 0o644),
        set(8, 56), // openat
        SUPERVISOR_CALL,
        address(1, PATH.len() as u32, 6),
        set(2, LINE.len() as u32),
        set(8, 64), // write
        SUPERVISOR_CALL,
        set(0, 0),
        set(8, 93), // exit
        SUPERVISOR_CALL,
    ];
    let code: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (head, base) = (120_u64, 0x40_0000_u64);
    let size = head + (code.len() + PATH.len() + LINE.len()) as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0\x01\0\0\0".to_vec();
    for word in [base + head, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, base, base, size, size, 0x1_0000] {
        file.extend(word.to_le_bytes());
    }
    [&file[..], &code, PATH, LINE].concat()
}

/// A context whose RUN is for 64-bit ARM.
fn for_arm(kiln: &Kiln) -> String {
    let context = kiln.context(&[("Dockerfile", "FROM scratch\nCOPY sh /bin/sh\nRUN x\n")]);
    let program = Path::new(&context).join("sh");
    fs::write(&program, program_for_arm()).expect("own folder");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    fs::set_permissions(&program, mode).expect("own file");
    context
}

#[test]
fn what_runs_here_only_with_an_emulator() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let known = fs::read_dir("/proc/sys/fs/binfmt_misc").expect("a folder");
    if known
        .flatten()
        .any(|it| it.file_name().to_string_lossy().contains("aarch64"))
    {
        skipped("this machine runs programs for 64-bit ARM");
        return;
    }
    let context = for_arm(&kiln);
    kiln.build(&["--platform", "linux/arm64", &context])
        .failed()
        .says(&[
            "exec /bin/sh: exec format error",
            "it is for linux/arm64, and this machine is linux/amd64",
            "qemu-user-static",
            "FROM --platform=$BUILDPLATFORM",
        ]);
    let kept = format!("{context}/kept");
    fs::write(&kept, "FROM scratch\nCOPY sh /bin/sh\n").expect("own folder");
    kiln.build(&[
        "--platform",
        "linux/arm64",
        "-f",
        &kept,
        "-t",
        "arm",
        &context,
    ])
    .ok();
    kiln.run(&["run", "--rm", "arm", "/bin/sh"])
        .failed()
        .says(&[
            "the image is for linux/arm64, and this machine is linux/amd64",
            "qemu-user-static",
        ]);
    kiln.leaves_nothing();
}

#[test]
fn an_emulator_runs_the_steps() {
    const EMULATOR: &str = "/usr/bin/qemu-aarch64-static";
    if !Path::new(EMULATOR).exists() {
        skipped("qemu-user-static is not installed");
        return;
    }
    let mask = "\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\x00\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xff\\xfe\\xff\\xff\\xff";
    let magic =
        "\\x7fELF\\x02\\x01\\x01\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x00\\x02\\x00\\xb7\\x00";
    let Some(kiln) = Kiln::with_interpreter(&format!(":arm:M::{magic}:{mask}:{EMULATOR}:F")) else {
        return;
    };
    let context = for_arm(&kiln);
    let folder = kiln.file("made");
    let built = kiln.build(&["--platform", "linux/arm64", "-o", text(&folder), &context]);
    built.ok();
    assert_eq!(
        fs::read_to_string(folder.join("made")).expect("made"),
        "by arm64\n"
    );
}
