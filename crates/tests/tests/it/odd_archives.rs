//! Layers whose archives are odd but legal: what becomes of them is what docker makes of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_tests::{Kiln, Outcome, Setting, in_each_setting};
use sha2::{Digest as _, Sha256};
use tar::{EntryType, Header};
use xtask::compare::Peers;

in_each_setting! { unpacked_as_docker_does }

/// Writes an archive entry by entry, with PAX headers where they are given.
struct Archive(tar::Builder<Vec<u8>>);

impl Archive {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn header(kind: EntryType, mode: u32, owner: (u64, u64), time: u64) -> Header {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(time);
        header
    }

    fn add(&mut self, mut header: Header, name: &[u8], link: &[u8], content: &[u8]) {
        let old = header.as_old_mut();
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..link.len()].copy_from_slice(link);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).expect("in memory");
    }

    fn dir(&mut self, name: &str) {
        let header = Self::header(EntryType::Directory, 0o755, (0, 0), 1);
        self.add(header, name.as_bytes(), b"", b"");
    }

    fn file(&mut self, name: &str, content: &str) {
        let header = Self::header(EntryType::Regular, 0o644, (0, 0), 1);
        self.add(header, name.as_bytes(), b"", content.as_bytes());
    }

    fn pax(&mut self, records: &[(&str, &[u8])]) {
        self.0
            .append_pax_extensions(records.iter().copied())
            .expect("in memory");
    }

    /// The entries of another archive.
    fn extend(&mut self, archive: &[u8]) {
        let end = archive
            .chunks(512)
            .rposition(|block| block.iter().any(|byte| *byte != 0));
        let end = end.map_or(0, |last| (last + 1) * 512);
        std::io::Write::write_all(self.0.get_mut(), &archive[..end]).expect("in memory");
    }

    fn finish(self) -> Vec<u8> {
        self.0.into_inner().expect("in memory")
    }
}

fn lower() -> Vec<u8> {
    let mut tar = Archive::new();
    for name in ["odd/", "odd/hidden/", "odd/removed/", "odd/becomes-file/"] {
        tar.dir(name);
    }
    for name in [
        "odd/hidden/a",
        "odd/removed/a",
        "odd/becomes-file/a",
        "odd/becomes-dir",
        "odd/gone",
    ] {
        tar.file(name, "below");
    }
    tar.finish()
}

/// What `tar` makes of a file with a hole, in the four forms that it knows.
fn sparse(folder: &Path) -> Vec<Vec<u8>> {
    let forms: [&[&str]; 4] = [
        &["--format=gnu"],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ];
    let make = |(number, form): (usize, &&[&str])| {
        let name = format!("odd/sparse-{number}");
        let file = folder.join(&name);
        fs::create_dir_all(folder.join("odd")).expect("own folder");
        let open = fs::File::create(&file).expect("own folder");
        open.set_len(1 << 20).expect("a hole");
        let write = |at: u64, text: &str| {
            std::os::unix::fs::FileExt::write_all_at(&open, text.as_bytes(), at).expect("own file");
        };
        write(70_000, "in the middle");
        write((1 << 20) - 3, "end");
        let tar = Command::new("tar")
            .args([
                "--sparse",
                "--mtime=@5",
                "--owner=0",
                "--group=0",
                "--mode=644",
                "-cf",
                "-",
            ])
            .args(*form)
            .arg("-C")
            .arg(folder)
            .arg(&name)
            .output()
            .expect("tar");
        assert!(tar.status.success(), "{tar:?}");
        tar.stdout
    };
    forms.iter().enumerate().map(make).collect()
}

fn upper(folder: &Path, for_docker: bool, owner: &str) -> Vec<u8> {
    let mut tar = Archive::new();
    let header = Archive::header;
    // A hard link's own metadata become the file's, the last one's those of all.
    let owned = header(EntryType::Regular, 0o644, (1, 2), 1000);
    tar.add(owned, b"odd/first", b"", b"1");
    tar.pax(&[("SCHILY.xattr.user.of", b"link")]);
    tar.add(
        header(EntryType::Link, 0o4751, (7, 8), 2000),
        b"odd/second",
        b"odd/first",
        b"",
    );
    tar.add(
        header(EntryType::Link, 0o640, (9, 10), 3000),
        b"./odd/third",
        b"./odd/second",
        b"",
    );
    tar.add(
        header(EntryType::Symlink, 0o777, (3, 4), 5),
        b"odd/soft",
        b"first",
        b"",
    );
    tar.add(
        header(EntryType::Link, 0o600, (5, 6), 6),
        b"odd/hard-to-soft",
        b"odd/soft",
        b"",
    );
    // Capabilities are lost where the owner is set again.
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    tar.pax(&[("SCHILY.xattr.security.capability", capability)]);
    tar.file("odd/capable", "x");
    tar.pax(&[("SCHILY.xattr.security.capability", capability)]);
    tar.file("odd/once-capable", "x");
    tar.add(
        header(EntryType::Link, 0o755, (0, 0), 1),
        b"odd/other-name",
        b"odd/once-capable",
        b"",
    );
    // Marks: before and after what they do not hide.
    tar.dir("odd/hidden/");
    tar.file("odd/hidden/.wh..wh..opq", "");
    tar.file("odd/hidden/new", "above");
    tar.file("odd/.wh.removed", "");
    tar.file("odd/.wh.gone", "");
    tar.file("odd/.wh.never-was", "");
    tar.file("odd/.wh..wh.plnk", "");
    // Other kinds than before, in the layer below and in the same one.
    tar.file("odd/becomes-file", "file");
    tar.dir("odd/becomes-dir/");
    tar.file("odd/becomes-dir/in", "dir");
    // Names.
    let long = format!("odd/{}/{}", "d".repeat(120), "f".repeat(120));
    let mut by_gnu = Header::new_gnu();
    by_gnu.set_entry_type(EntryType::GNULongName);
    by_gnu.set_size(long.len() as u64 + 1);
    by_gnu.as_old_mut().name[..13].copy_from_slice(b"././@LongLink");
    by_gnu.set_cksum();
    let padded = [long.as_bytes(), b"\0"].concat();
    tar.0.append(&by_gnu, &padded[..]).expect("in memory");
    tar.file("short", "long");
    let longer = format!("odd/{}", "p".repeat(250));
    let target = "../".repeat(60) + "target";
    tar.pax(&[
        ("path", longer.as_bytes()),
        ("mtime", b"1234567890.25"),
        ("uid", owner.as_bytes()),
    ]);
    tar.file("short", "pax");
    tar.pax(&[("linkpath", target.as_bytes())]);
    tar.add(
        header(EntryType::Symlink, 0o777, (0, 0), 1),
        b"odd/long-link",
        b"x",
        b"",
    );
    tar.file("./odd//./slashes", "x");
    let latin = header(EntryType::Regular, 0o644, (0, 0), 1);
    tar.add(latin, b"odd/latin-\xe9", b"", b"x");
    tar.pax(&[
        ("comment", b"of nobody"),
        ("SCHILY.xattr.user.a", b"b=c"),
        ("SCHILY.xattr.user.b", b""),
    ]);
    tar.file("odd/attributes", "x");
    // Other kinds, and a folder in the words of the seventies.
    tar.add(
        header(EntryType::Fifo, 0o620, (0, 5), 1),
        b"odd/fifo",
        b"",
        b"",
    );
    let mut device = header(EntryType::Char, 0o600, (0, 0), 1);
    device.set_device_major(1).expect("ustar");
    device.set_device_minor(3).expect("ustar");
    tar.add(device, b"odd/null", b"", b"");
    tar.add(
        header(EntryType::new(0), 0o700, (0, 0), 1),
        b"odd/old-dir/",
        b"",
        b"",
    );
    tar.add(
        header(EntryType::new(0), 0o600, (0, 0), 1),
        b"odd/old-file",
        b"",
        b"old",
    );
    // Docker does not know the first form.
    for sparse in sparse(folder).iter().skip(usize::from(for_docker)) {
        tar.extend(sparse);
    }
    tar.finish()
}

fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut hex = String::new();
    for byte in Sha256::digest(bytes) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// An archive as `docker save` writes it.
fn image(layers: &[Vec<u8>], name: &str) -> Vec<u8> {
    let diffs: Vec<String> = layers
        .iter()
        .map(|tar| format!("\"sha256:{}\"", sha256(tar)))
        .collect();
    let config = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{\"Cmd\":[\"/x\"]}},\
         \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[{}]}}}}",
        diffs.join(",")
    );
    let names: Vec<String> = (0..layers.len())
        .map(|at| format!("\"{at}/layer.tar\""))
        .collect();
    let manifest = format!(
        "[{{\"Config\":\"config.json\",\"RepoTags\":[\"{name}\"],\"Layers\":[{}]}}]",
        names.join(",")
    );
    let mut tar = Archive::new();
    for (at, layer) in layers.iter().enumerate() {
        let header = Archive::header(EntryType::Regular, 0o644, (0, 0), 0);
        tar.add(header, format!("{at}/layer.tar").as_bytes(), b"", layer);
    }
    tar.file("config.json", &config);
    tar.file("manifest.json", &manifest);
    tar.finish()
}

/// What a file system archive has below `odd`, one line for each name.
fn listed(archive: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut archive = tar::Archive::new(fs::File::open(archive).expect("exported"));
    let mut links: Vec<(String, String)> = Vec::new();
    for entry in archive.entries().expect("a tar") {
        let mut entry = entry.expect("whole");
        let mut extended = Vec::new();
        if let Some(records) = entry.pax_extensions().expect("readable") {
            for record in records.map(|record| record.expect("readable")) {
                if let Some(name) = record.key_bytes().strip_prefix(b"SCHILY.xattr.") {
                    let value = record.value_bytes().escape_ascii();
                    extended.push(format!("{}={value}", name.escape_ascii()));
                }
            }
        }
        extended.sort();
        let path = entry.path_bytes().escape_ascii().to_string();
        let path = path.trim_end_matches('/').to_owned();
        if !path.starts_with("odd") {
            continue;
        }
        let header = entry.header().clone();
        let link = entry
            .link_name_bytes()
            .map(|link| link.escape_ascii().to_string());
        if header.entry_type() == EntryType::Link {
            links.push((path, link.expect("a target")));
            continue;
        }
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).expect("whole");
        let content = if content.len() > 20 {
            format!("{} bytes {}", content.len(), &sha256(&content)[..12])
        } else {
            content.escape_ascii().to_string()
        };
        // Nobody keeps the mode of a link, and both write the time of a folder that holds what came later.
        let mode = if link.is_some() {
            0
        } else {
            header.mode().expect("a number") & 0o7777
        };
        let time = if header.entry_type().is_dir() || link.is_some() {
            0
        } else {
            header.mtime().expect("a number")
        };
        let (uid, gid) = (
            header.uid().expect("a number"),
            header.gid().expect("a number"),
        );
        lines.push(format!(
            "{path} {:?} {mode:o} {uid}:{gid} {time} {content} {} {}",
            header.entry_type(),
            link.unwrap_or_default(),
            extended.join(" ")
        ));
        let line = lines.last_mut().expect("just now");
        line.truncate(line.trim_end().len());
    }
    // Which name of a file comes first is the writer's choice.
    for (path, target) in links {
        let first = lines
            .iter()
            .find(|line| line.split(' ').next() == Some(&target));
        let rest = first
            .expect("it comes first")
            .split_once(' ')
            .expect("words")
            .1;
        lines.push(format!("{path} {rest}"));
    }
    lines.sort();
    lines
}

/// An owner that no number of the old header can tell.
const OWNER: &str = "3000000";

/// What docker 28 made of it.
const GOLDEN: &str = include_str!("odd_archives.golden");

fn unpacked_as_docker_does(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &[]) else {
        return;
    };
    let scratch = PathBuf::from(kiln.context(&[]));
    let archive = scratch.join("image.tar");
    let load = |owner: &str| {
        let upper = upper(&scratch, false, owner);
        let digest = sha256(&upper);
        fs::write(&archive, image(&[lower(), upper], "odd:1")).expect("own folder");
        let mut load = kiln.command(&["load"]);
        let archive = fs::File::open(&archive).expect("written");
        let loaded = load.stdin(archive).output().expect("kiln starts");
        (Outcome::new("kiln load".to_owned(), &loaded), digest)
    };
    let (loaded, mut digest) = load(OWNER);
    let mut owner = OWNER;
    if setting == Setting::User {
        // A user with 65536 ids has no such one.
        loaded.failed().says(&["owner 3000000:0", "/etc/subuid"]);
        owner = "60000";
        let (loaded, other) = load(owner);
        loaded.ok();
        digest = other;
    } else {
        loaded.ok();
    }
    kiln.run(&["create", "--name", "box", "odd:1"]).ok();
    let exported = kiln.file("exported.tar");
    kiln.run(&["export", "-o", exported.to_str().expect("plain"), "box"])
        .ok();
    let mut lines = listed(&exported);
    let first = lines
        .iter()
        .position(|line| line.starts_with("odd/sparse-0"));
    let first = lines.remove(first.expect("made"));
    assert!(
        lines.contains(&first.replace("sparse-0", "sparse-1")),
        "{first}"
    );
    let golden = GOLDEN.replace(OWNER, owner);
    let golden: Vec<&str> = golden.lines().collect();
    assert_eq!(lines, golden, "\n{}\n", lines.join("\n"));
    // The archive that came goes out again, byte for byte.
    let saved = kiln.file("saved.tar");
    kiln.run(&["save", "-o", saved.to_str().expect("plain"), "odd:1"])
        .ok();
    let listed = Command::new("tar")
        .arg("-tf")
        .arg(&saved)
        .output()
        .expect("tar");
    assert!(
        String::from_utf8_lossy(&listed.stdout).contains(&digest),
        "the same diff id"
    );
    kiln.leaves_nothing();
}

/// The golden listing is docker's.
#[test]
fn docker_unpacks_so() {
    let Some(peers) = Peers::from_environment() else {
        return;
    };
    let (folder, inside) = peers.shared().expect("a folder that both see");
    let name = format!("kiln-odd-{}:1", std::process::id());
    let layers = [lower(), upper(folder.path(), true, OWNER)];
    fs::write(folder.path().join("image.tar"), image(&layers, &name)).expect("own folder");
    let there = |name: &str| format!("{}/{name}", inside.display());
    let docker = |args: &[&str]| {
        let output = peers.command(["docker"]).args(args).output();
        Outcome::new(
            format!("docker {}", args.join(" ")),
            &output.expect("it starts"),
        )
        .ok()
    };
    docker(&["load", "-q", "-i", &there("image.tar")]);
    let made = docker(&["create", &name]).stdout;
    docker(&["export", "-o", &there("exported.tar"), made.trim()]);
    docker(&["rm", made.trim()]);
    docker(&["rmi", "-f", &name]);
    let lines = listed(&folder.path().join("exported.tar"));
    // Its own archives have no other extended attributes than capabilities.
    let plain = |line: &str| {
        line.split(" user.")
            .next()
            .unwrap_or_default()
            .trim_end()
            .to_owned()
    };
    let golden: Vec<String> = GOLDEN.lines().map(plain).collect();
    assert_eq!(lines, golden, "\n{}\n", lines.join("\n"));
}
