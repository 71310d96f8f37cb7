//! The same input gives the same bytes, whoever builds it, and where.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_tests::{Kiln, Outcome, Setting, in_each_setting};

in_each_setting! { whoever_builds }

/// The latest time in what is built: earlier than that of the base's files.
const EPOCH: &str = "1000000000";

/// All that makes layers, with something large enough to be compressed in several parts.
const DOCKERFILE: &str = "FROM busybox AS build\n\
    WORKDIR /src/deep\n\
    COPY . .\n\
    RUN seq 1 600000 > /big && mkdir -p -m 1770 /var/own && chown 5:6 /var/own && ln /big /hard && ln -s big /soft\n\
    FROM busybox\n\
    WORKDIR /made/by/workdir\n\
    COPY --chmod=640 --chown=7:8 tree /tree\n\
    COPY --link tree/a /linked/a\n\
    COPY --from=build /big /hard /soft /from/\n\
    ADD archive.tar.gz /added/\n\
    RUN mkdir /ran && for name in z y x; do echo $name > /ran/$name; done && rm /etc/group && touch -d '2001-01-01 00:00:00' /ran/x\n\
    LABEL a=b\n";

/// The names of the context's files, in the order in which one file system gets them.
const FILES: [&str; 7] = [
    "tree/a", "tree/b/c", "tree/b/d", "tree/e", "x/y/z", "x/run", "later",
];

/// A context with the files in the given order, their modes the same whatever the umask is.
fn context(folder: &Path, backwards: bool, archive: &Path) {
    let mut files = FILES.to_vec();
    if backwards {
        files.reverse();
    }
    let mode = |path: &Path, mode: u32| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("own file");
    };
    for name in files {
        let path = folder.join(name);
        let mut above = path.parent().expect("below the context").to_owned();
        fs::create_dir_all(&above).expect("own folder");
        while above != folder {
            mode(&above, 0o755);
            above.pop();
        }
        fs::write(&path, name.repeat(100)).expect("own folder");
        mode(&path, if name.ends_with("run") { 0o755 } else { 0o644 });
    }
    symlink("a", folder.join("tree/link")).expect("own folder");
    fs::write(folder.join("Dockerfile"), DOCKERFILE).expect("own folder");
    fs::copy(archive, folder.join("archive.tar.gz")).expect("own folder");
    mode(folder, 0o755);
}

/// An archive for ADD, in the test's own folder.
fn archive(kiln: &Kiln) -> PathBuf {
    let folder = kiln.context(&[("one/two", "2"), ("three", "3")]);
    let file = kiln.file("archive.tar.gz");
    let made = Command::new("tar")
        .args([
            "--sort=name",
            "--mtime=@1700000000",
            "--owner=11",
            "--group=12",
        ])
        .args([
            "--mode=u=rwX,go=rX",
            "--format=pax",
            "--pax-option=delete=atime,delete=ctime",
        ])
        .args(["-C", &folder, "-I", "gzip -n", "-cf"])
        .arg(&file)
        .args(["one", "three"])
        .status();
    assert!(made.is_ok_and(|status| status.success()), "tar");
    file
}

/// A folder in memory; dropping it removes it.
struct InMemory(PathBuf);

impl InMemory {
    fn new(name: &str) -> Self {
        let folder = Path::new("/dev/shm").join(format!("kiln-{}-{name}", std::process::id()));
        fs::create_dir_all(&folder).expect("a tmpfs");
        Self(folder)
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The archive of the image that a build in `context` makes, with a wrapper around Kiln.
fn built(kiln: &Kiln, wrapper: &[&str], context: &Path, more: &[&str]) -> Vec<u8> {
    built_as("gzip", kiln, wrapper, context, more)
}

fn built_as(
    compression: &str,
    kiln: &Kiln,
    wrapper: &[&str],
    context: &Path,
    more: &[&str],
) -> Vec<u8> {
    let file = kiln.file("built.tar");
    let output = format!("type=oci,compression={compression},dest={}", file.display());
    let context = context.to_str().expect("a plain name");
    let args = [
        &["build", "--timestamp", EPOCH, "-o", &output],
        more,
        &[context],
    ]
    .concat();
    let run = kiln.wrapped(wrapper, &args).output().expect("kiln starts");
    Outcome::new(format!("{wrapper:?} kiln {args:?}"), &run).ok();
    fs::read(&file).expect("built")
}

/// What the first build of all of them made, which all others must make again.
fn reference() -> &'static [u8] {
    static REFERENCE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
    REFERENCE.get_or_init(|| {
        let kiln = Kiln::fresh(Setting::User, &["busybox"]).expect("prepared");
        let folder = PathBuf::from(kiln.context(&[]));
        context(&folder, false, &archive(&kiln));
        built(&kiln, &[], &folder, &[])
    })
}

#[track_caller]
fn same(what: &str, found: &[u8]) {
    let reference = reference();
    let differs = found.iter().zip(reference).position(|(a, b)| a != b);
    assert!(
        found == reference,
        "{what}: {} bytes instead of {}, the first difference at {differs:?}",
        found.len(),
        reference.len()
    );
}

fn whoever_builds(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let archive = archive(&kiln);
    // Other users' namespaces see the folder of contexts only.
    let folder = PathBuf::from(kiln.context(&[]));
    context(&folder, true, &archive);
    same(
        "files made in another order",
        &built(&kiln, &[], &folder, &[]),
    );
    same("all from the cache", &built(&kiln, &[], &folder, &[]));
    let shell = |script: &'static str| ["sh", "-c", script, "sh"];
    let open = shell("umask 0; TZ=Asia/Kathmandu LC_ALL=C.UTF-8 exec \"$@\"");
    same(
        "umask 0, another time zone",
        &built(&kiln, &open, &folder, &["--no-cache"]),
    );
    let closed = shell("umask 077; TZ=America/St_Johns exec taskset -c 0 \"$@\"");
    same(
        "umask 077, one processor",
        &built(&kiln, &closed, &folder, &["--no-cache"]),
    );
    kiln.leaves_nothing();
}

/// In stores of their own: what was compressed once is not compressed again.
#[test]
fn whatever_compresses() {
    for compression in [
        "gzip",
        "gzip,compression-level=1",
        "zstd",
        "zstd,compression-level=9,force-compression=true",
    ] {
        let on = |processors: &[&str]| {
            let kiln = Kiln::fresh(Setting::Root, &["busybox"])?;
            let folder = PathBuf::from(kiln.context(&[]));
            context(&folder, false, &archive(&kiln));
            Some(built_as(compression, &kiln, processors, &folder, &[]))
        };
        let Some(all) = on(&[]) else { return };
        let one = on(&["taskset", "-c", "0"]).expect("as before");
        assert!(one == all, "{compression} on one processor");
        if compression == "gzip" {
            same("gzip is what there is by itself", &all);
        } else {
            assert!(all != reference(), "{compression} is told from gzip");
        }
    }
}

#[test]
fn wherever_it_is_built() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let archive = archive(&kiln);
    let memory = InMemory::new("context");
    context(&memory.0, true, &archive);
    same("a context in memory", &built(&kiln, &[], &memory.0, &[]));
    let elsewhere = [
        "unshare",
        "--uts",
        "sh",
        "-c",
        "hostname elsewhere.example; exec \"$@\"",
        "sh",
    ];
    same(
        "another host",
        &built(&kiln, &elsewhere, &memory.0, &["--no-cache"]),
    );
    let Some(plain) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let trees = ["env", "KILN_ROOTFS=plain"];
    same("without overlays", &built(&plain, &trees, &memory.0, &[]));
}

#[test]
fn times_of_the_base_stay() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let late = kiln.context(&[("Dockerfile", "FROM busybox\nRUN echo > /late\n")]);
    kiln.build(&["-t", "late", &late]).ok();
    let folder = PathBuf::from(kiln.context(&[]));
    context(&folder, false, &archive(&kiln));
    let dockerfile = DOCKERFILE.replace("FROM busybox\n", "FROM late\n");
    fs::write(folder.join("Dockerfile"), dockerfile).expect("own folder");
    let (base, image) = (kiln.file("base"), kiln.file("image"));
    let output = |to: &Path| {
        format!(
            "type=oci,tar=false,compression=uncompressed,dest={}",
            to.display()
        )
    };
    let text = |path: &Path| path.to_str().expect("a plain name").to_owned();
    kiln.build(&["-o", &output(&image), "--timestamp", EPOCH, &text(&folder)])
        .ok();
    let only = kiln.context(&[("Dockerfile", "FROM late\n")]);
    kiln.build(&["-o", &output(&base), "--timestamp", EPOCH, &only])
        .ok();
    let layers = |layout: &Path| -> Vec<PathBuf> {
        let read = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&fs::read(layout.join(name)).expect("a document")).expect("JSON")
        };
        let blob = |value: &serde_json::Value| {
            let digest = value["digest"].as_str().expect("a digest");
            digest.replace("sha256:", "blobs/sha256/")
        };
        let manifest = read(&blob(&read("index.json")["manifests"][0]));
        let layers = manifest["layers"].as_array().expect("layers");
        layers
            .iter()
            .map(|layer| layout.join(blob(layer)))
            .collect()
    };
    let times = |tar: &Path| -> Vec<String> {
        let listed = Command::new("tar")
            .args(["--utc", "--full-time", "-tvf"])
            .arg(tar)
            .output()
            .expect("tar");
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        let time = |line: &str| {
            let words: Vec<&str> = line.split_whitespace().collect();
            format!("{} {}", words[3], words[4])
        };
        listed.lines().map(time).collect()
    };
    let (own, base) = (layers(&image), layers(&base));
    let base: Vec<_> = base.iter().map(|layer| layer.file_name()).collect();
    let (below, own) = own.split_at(base.len());
    let names: Vec<_> = below.iter().map(|layer| layer.file_name()).collect();
    assert_eq!(names, base, "the base's bytes");
    let epoch = "2001-09-09 01:46:40";
    assert!(times(&below[1]).iter().any(|time| time.as_str() > epoch));
    for layer in own {
        let times = times(layer);
        assert!(
            !times.is_empty() && times.iter().all(|time| time.as_str() <= epoch),
            "{times:?}"
        );
    }
    let early = own.iter().flat_map(|layer| times(layer));
    assert!(
        early.into_iter().any(|time| time == "2001-01-01 00:00:00"),
        "earlier times stay"
    );
}
