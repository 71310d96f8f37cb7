//! What a build leaves behind besides an image in the store.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use kiln_tests::{Kiln, Registry, Setting, in_each_setting, skipped};
use serde_json::Value;

in_each_setting! {
    files_in_a_folder one_tar archives several_at_once an_output_that_fails_leaves_what_was_there forms_in_a_registry
}

/// A result with all that a folder of a user can hold.
const DOCKERFILE: &str = "FROM busybox AS build\n\
    RUN mkdir -p /out/bin && echo one > /out/bin/a && ln /out/bin/a /out/b && ln -s bin/a /out/c && chmod 4750 /out/b\n\
    RUN mkdir -m 700 /out/d && mkfifo /out/p && chown 5:6 /out/d && mknod /out/gone p && rm /out/gone\n\
    FROM scratch\nCOPY --from=build /out /\nCOPY later /bin/later\n";

fn project(kiln: &Kiln) -> String {
    kiln.context(&[("Dockerfile", DOCKERFILE), ("later", "late")])
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a plain name")
}

fn listing(folder: &Path) -> Vec<String> {
    let found = Command::new("find")
        .args([".", "-mindepth", "1", "-printf", "%P %y%m %n %l\n"])
        .current_dir(folder)
        .output()
        .expect("find");
    let mut lines: Vec<String> = String::from_utf8_lossy(&found.stdout)
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect();
    lines.sort();
    lines
}

const FILES: [&str; 7] = [
    "b f4750 2",
    "bin d755 2",
    "bin/a f4750 2",
    "bin/later f644 1",
    "c l777 1 bin/a",
    "d d700 2",
    "p p644 1",
];

fn files_in_a_folder(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = project(&kiln);
    let folder = kiln.file("files");
    kiln.build(&["-o", text(&folder), &context]).ok();
    assert_eq!(listing(&folder), FILES);
    let user = fs::metadata(kiln.file("")).expect("home").uid();
    for name in ["b", "d", "bin/later"] {
        let owner = fs::metadata(folder.join(name)).expect(name).uid();
        assert_eq!(owner, user, "{name} belongs to who builds");
    }
    assert_eq!(kiln.run(&["images", "-q"]).ok().stdout.lines().count(), 1);

    // What is there stays, what comes replaces it, and nothing is written through a link.
    let elsewhere = kiln.file("elsewhere");
    fs::create_dir(&elsewhere).expect("own folder");
    fs::write(folder.join("other"), "other").expect("own folder");
    fs::remove_dir_all(folder.join("bin")).expect("own folder");
    std::os::unix::fs::symlink(&elsewhere, folder.join("bin")).expect("own folder");
    let output = format!("type=local,dest={}", text(&folder));
    kiln.build(&["-o", &output, &context]).ok();
    assert_eq!(listing(&elsewhere), [""; 0]);
    let mut more = FILES.map(str::to_owned).to_vec();
    more.push("other f644 1".to_owned());
    more.sort();
    assert_eq!(listing(&folder), more);

    let output = format!("type=local,mode=delete,dest={}", text(&folder));
    kiln.build(&["-o", &output, &context]).ok();
    assert_eq!(listing(&folder), FILES);
    kiln.leaves_nothing();
}

fn one_tar(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = project(&kiln);
    let piped = kiln
        .command(&[
            "build",
            "-q",
            "--timestamp",
            "1000000000",
            "-o",
            "-",
            &context,
        ])
        .output()
        .expect("kiln starts");
    assert!(piped.status.success(), "{piped:?}");
    let file = kiln.file("out.tar");
    let output = format!("type=tar,dest={}", text(&file));
    kiln.build(&["--timestamp", "1000000000", "-o", &output, &context])
        .ok();
    assert_eq!(
        fs::read(&file).expect("made"),
        piped.stdout,
        "the same bytes"
    );
    let listed = Command::new("tar")
        .args(["--utc", "--full-time", "-tvf", text(&file)])
        .output()
        .expect("tar");
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let lines: Vec<String> = listed
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    let at = "2001-09-09 01:46:40";
    assert_eq!(
        lines,
        [
            format!("-rwsr-x--- 0/0 4 {at} b"),
            format!("drwxr-xr-x 0/0 0 {at} bin/"),
            format!("hrwsr-x--- 0/0 0 {at} bin/a link to b"),
            format!("-rw-r--r-- 0/0 4 {at} bin/later"),
            format!("lrwxrwxrwx 0/0 0 {at} c -> bin/a"),
            format!("drwx------ 5/6 0 {at} d/"),
            format!("prw-r--r-- 0/0 0 {at} p"),
        ]
    );
}

/// The documents of an OCI layout: manifest and the bytes of a blob.
fn manifest(layout: &Path) -> Value {
    let read = |path: &Path| -> Value {
        serde_json::from_slice(&fs::read(path).expect("a document")).expect("JSON")
    };
    let index = read(&layout.join("index.json"));
    let digest = index["manifests"][0]["digest"].as_str().expect("a digest");
    let blob = digest.replace("sha256:", "blobs/sha256/");
    read(&layout.join(blob))
}

fn archives(setting: Setting) {
    let (Some(kiln), Some(other)) = (
        Kiln::fresh(setting, &["busybox"]),
        Kiln::fresh(setting, &[]),
    ) else {
        return;
    };
    let context = project(&kiln);
    for (kind, name, options) in [
        ("oci", "a.tar", ""),
        ("oci", "b.tar", ",compression=zstd,compression-level=19"),
        ("docker", "c.tar", ",compression=uncompressed"),
        ("docker", "d.tar", ",oci-mediatypes=false"),
    ] {
        let file = kiln.file(name);
        let output = format!("type={kind},dest={}{options}", text(&file));
        let tag = format!("made:{kind}");
        let ids = kiln.file("id");
        kiln.build(&["-t", &tag, "--iidfile", text(&ids), "-o", &output, &context])
            .ok();
        assert_eq!(
            kiln.run(&["images", "-q", "made"]).ok().stdout,
            "",
            "only the archive was asked for"
        );
        let to = other.file(name);
        fs::copy(&file, &to).expect("own folder");
        let loaded = other.run(&["load", "-i", text(&to)]).ok();
        assert_eq!(loaded.stdout, format!("Loaded image: {tag}\n"));
        let inspected = other.run(&["inspect", &tag]).ok();
        let value: Value = serde_json::from_str(&inspected.stdout).expect("JSON");
        assert_eq!(
            value[0]["Id"].as_str(),
            Some(fs::read_to_string(&ids).expect("written").as_str())
        );
        if xtask::process::find("skopeo").is_none() {
            skipped("skopeo is not installed");
            continue;
        }
        let seen = Command::new("skopeo")
            .args(["inspect", &format!("{kind}-archive:{}", text(&file))])
            .output()
            .expect("skopeo");
        assert!(seen.status.success(), "{name}: {seen:?}");
    }
}

fn several_at_once(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = project(&kiln);
    let (layout, files, metadata) = (kiln.file("layout"), kiln.file("f"), kiln.file("m.json"));
    let oci = format!(
        "type=oci,tar=false,dest={},annotation.org.example.a=b",
        text(&layout)
    );
    let local = format!("type=local,dest={}", text(&files));
    let args = [
        "-t",
        "several",
        "-o",
        &oci,
        "-o",
        &local,
        "-o",
        "type=image",
        "--annotation",
        "c=d",
        "--metadata-file",
        text(&metadata),
        &context,
    ];
    kiln.build(&args).ok();
    assert_eq!(listing(&files), FILES);
    let written = manifest(&layout);
    assert_eq!(written["annotations"]["org.example.a"], "b");
    assert_eq!(written["annotations"]["c"], "d");
    let kinds = &written["layers"][0]["mediaType"];
    assert_eq!(kinds, "application/vnd.oci.image.layer.v1.tar+gzip");
    let read: Value = serde_json::from_slice(&fs::read(&metadata).expect("written")).expect("JSON");
    assert_eq!(read["image.name"], "docker.io/library/several:latest");
    let inspected = kiln.run(&["inspect", "several"]).ok();
    let value: Value = serde_json::from_str(&inspected.stdout).expect("JSON");
    assert_eq!(read["containerimage.config.digest"], value[0]["Id"]);
    assert!(
        read["containerimage.descriptor"]["size"].as_u64() > Some(100),
        "{read}"
    );

    // A second image joins what the layout holds, a new one of the same name takes its place.
    for tag in ["second", "several"] {
        kiln.build(&["-t", tag, "-o", &oci, "--label", "new=1", &context])
            .ok();
    }
    let index = fs::read(layout.join("index.json")).expect("written");
    let index: Value = serde_json::from_slice(&index).expect("JSON");
    let names: Vec<_> = index["manifests"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|image| image["annotations"]["io.containerd.image.name"].as_str())
        .collect();
    assert_eq!(
        names,
        [
            "docker.io/library/second:latest",
            "docker.io/library/several:latest"
        ]
    );

    kiln.build(&["-o", &local, "--iidfile", text(&metadata), &context])
        .failed()
        .says(&[
            "--iidfile: the outputs are files, there is no image",
            "hint:",
        ]);
    kiln.build(&["-o", "type=zip", &context]).failed().says(&[
        "--output \"type=zip\": unknown type zip",
        "hint: type=image",
    ]);
    kiln.build(&["--push", &context]).failed().says(&[
        "an image without a name cannot be pushed",
        "hint: give it one with -t",
    ]);
}

fn an_output_that_fails_leaves_what_was_there(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", "FROM busybox\nRUN exit 3\n")]);
    let file = kiln.file("kept.tar");
    fs::write(&file, "before").expect("own folder");
    let output = format!("type=tar,dest={}", text(&file));
    kiln.build(&["-o", &output, &context]).failed();
    assert_eq!(fs::read(&file).expect("there"), b"before");
    let nowhere = kiln.file("missing/out.tar");
    let output = format!("type=tar,dest={}", text(&nowhere));
    let context = project(&kiln);
    kiln.build(&["-o", &output, &context])
        .failed()
        .says(&["missing/out.tar", "No such file or directory"]);
    assert!(!kiln.file("missing").exists());
    kiln.leaves_nothing();
}

fn forms_in_a_registry(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let Some(registry) = Registry::start() else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", "FROM busybox\nRUN echo x > /x\n")]);
    let forms = [
        ("gzip", "", "application/vnd.oci.image.layer.v1.tar+gzip"),
        (
            "zstd",
            ",compression=zstd,force-compression=true",
            "application/vnd.oci.image.layer.v1.tar+zstd",
        ),
        (
            "plain",
            ",compression=uncompressed",
            "application/vnd.oci.image.layer.v1.tar",
        ),
        (
            "docker",
            ",oci-mediatypes=false",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ),
    ];
    for (tag, options, expected) in forms {
        let name = registry.image(&format!("forms:{tag}"));
        let output = format!("type=registry,name={name}{options}");
        kiln.build(&["-o", &output, "--annotation", "a=b", &context])
            .ok();
        let seen: Value = serde_json::from_slice(&registry.manifest("forms", tag)).expect("JSON");
        assert_eq!(seen["layers"][1]["mediaType"], expected, "{tag}: {seen}");
        assert_eq!(seen["annotations"]["a"], "b");
        let Some(other) = Kiln::fresh(setting, &[]) else {
            return;
        };
        other.run(&["pull", &name]).ok();
        assert_eq!(
            other.run(&["run", "--rm", &name, "cat", "/x"]).ok().stdout,
            "x\n"
        );
    }
}
