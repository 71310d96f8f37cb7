//! Scans of real folders.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use kiln_image::{FileDigest, Kind, LayerIndex, LayerPath};
use kiln_source::{PatternMatcher, Scan, ScanError, StatCache, UNHASHED, Wanted, scan};

fn tree(files: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in files {
        let path = dir.path().join(file);
        if file.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
    }
    dir
}

fn look(root: &Path, ignore: &[&str], wanted: &Wanted) -> Scan {
    let matcher = PatternMatcher::new(ignore).unwrap();
    scan(root, Some(&matcher), &mut StatCache::empty(), wanted).unwrap()
}

fn listing(mut scan: Scan) -> String {
    let index = scan.index(|_| true, &mut StatCache::empty()).unwrap();
    let paths: Vec<String> = index
        .entries()
        .iter()
        .map(|entry| String::from_utf8_lossy(entry.path.as_bytes()).into_owned())
        .collect();
    paths.join(" ").trim().to_owned()
}

fn digest(index: &LayerIndex, path: &str) -> FileDigest {
    match index.get(&LayerPath::clean(path)).unwrap().kind {
        Kind::File { digest, .. } => digest,
        ref other => panic!("{path} is {other:?}"),
    }
}

fn blake(bytes: &[u8]) -> FileDigest {
    FileDigest::new(*blake3::hash(bytes).as_bytes())
}

#[test]
fn ignored_paths() {
    let dir = tree(&[
        "a/b/c/f",
        "a/b/x",
        "a/y",
        "a-z",
        "e/",
        "m/keep/1",
        "m/drop/2",
        "n/deep/er/k.go",
        "n/t",
    ]);
    let cases: &[(&[&str], &str)] = &[
        (
            &[],
            "a a/b a/b/c a/b/c/f a/b/x a/y a-z e m m/drop m/drop/2 m/keep m/keep/1 n n/deep n/deep/er n/deep/er/k.go n/t",
        ),
        (&["*"], ""),
        (&["**", "!a/y"], "a a/y"),
        (&["**", "!a/b/c"], "a a/b a/b/c a/b/c/f"),
        (&["**", "!a/b/nothing"], ""),
        (&["**", "!e"], "e"),
        (&["*", "!m", "m/drop"], "m m/keep m/keep/1"),
        (&["*", "!**/*.go"], "n n/deep n/deep/er n/deep/er/k.go"),
        (
            &["a", "!a/b", "a/b/c", "!a/b/c/f", "m", "n", "e"],
            "a a/b a/b/c a/b/c/f a/b/x a-z",
        ),
        (&["a", "m/*", "n/**"], "a-z e m n"),
    ];
    for (ignore, expected) in cases {
        assert_eq!(
            listing(look(dir.path(), ignore, &Wanted::All)),
            *expected,
            "{ignore:?}"
        );
    }
}

#[test]
fn wanted_paths() {
    let dir = tree(&["a/b/f", "a/c/g", "d/h", "top.txt", "top.md", "real/x/y"]);
    symlink("real", dir.path().join("link")).unwrap();
    symlink("../a/b/../c", dir.path().join("d/up")).unwrap();
    symlink("/d/up/g", dir.path().join("abs")).unwrap();
    symlink("circle", dir.path().join("circle")).unwrap();
    let cases: &[(&[&str], &str)] = &[
        (&[], ""),
        (&["/a/b"], "a a/b a/b/f"),
        (&["*.txt", "nothing/x"], "top.txt"),
        (&["a/*/g"], "a a/b a/c a/c/g"),
        (&["link/x"], "link real real/x real/x/y"),
        (&["link"], "link real real/x real/x/y"),
        (&["d/up"], "a a/b a/c a/c/g d d/up"),
        (&["abs"], "a a/b a/c a/c/g abs d d/up"),
        (&["circle"], "circle"),
        (&["top.txt/x", "d/h"], "d d/h"),
        (&["d/../top.*"], "top.md top.txt"),
        (&["a/**/g"], "a a/b a/b/f a/c a/c/g"),
        (
            &["[", "d/h"],
            "a a/b a/b/f a/c a/c/g abs circle d d/h d/up link real real/x real/x/y top.md top.txt",
        ),
    ];
    for (wanted, expected) in cases {
        let paths = Wanted::Paths(wanted.iter().map(|&path| path.to_owned()).collect());
        assert_eq!(
            listing(look(dir.path(), &[], &paths)),
            *expected,
            "{wanted:?}"
        );
    }
    let both = Wanted::Paths(vec!["a".to_owned()]);
    assert_eq!(listing(look(dir.path(), &["a/c"], &both)), "a a/b a/b/f");
}

#[test]
fn kinds_and_metadata() {
    let dir = tree(&["f", "exec", "sub/"]);
    let path = |name: &str| dir.path().join(name);
    fs::set_permissions(path("exec"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(path("exec"), path("sub/name")).unwrap();
    symlink("no/where", path("l")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(path("sock")).unwrap();
    assert!(fs::metadata(path("sock")).unwrap().file_type().is_socket());
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path("pipe"),
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    let tagged =
        rustix::fs::setxattr(path("f"), "user.tag", b"v", rustix::fs::XattrFlags::empty()).is_ok();

    let mut scan = look(dir.path(), &[], &Wanted::All);
    let outline = scan.index(|_| false, &mut StatCache::empty()).unwrap();
    assert_eq!((scan.hashed(), digest(&outline, "f")), (0, UNHASHED));
    let index = scan
        .index(|path| path.as_bytes() == b"f", &mut StatCache::empty())
        .unwrap();
    assert_eq!(
        (scan.hashed(), digest(&index, "f"), digest(&index, "exec")),
        (1, blake(b"f"), UNHASHED)
    );
    let index = scan.index(|_| true, &mut StatCache::empty()).unwrap();
    let entry = |name: &str| index.get(&LayerPath::clean(name)).unwrap();
    let exec = entry("exec");
    assert_eq!(
        (exec.mode, exec.uid, exec.gid, exec.hardlink),
        (0o4755, 0, 0, entry("sub/name").hardlink)
    );
    assert!(exec.hardlink.is_some() && entry("f").hardlink.is_none());
    assert_eq!(entry("l").kind, Kind::Symlink(b"no/where".to_vec()));
    assert_eq!(entry("pipe").kind, Kind::Fifo);
    assert_eq!(
        entry("sock").kind,
        Kind::File {
            size: 0,
            digest: blake(b"")
        }
    );
    let real = fs::metadata(path("exec")).unwrap();
    assert_eq!(exec.mtime, (real.mtime(), real.mtime_nsec() as u32));
    if tagged {
        assert_eq!(entry("f").xattrs, [(b"user.tag".to_vec(), b"v".to_vec())]);
    }
    let stamps = scan.stamps();
    assert_eq!(
        stamps
            .get(&index, index.get(&LayerPath::clean("f")).unwrap())
            .unwrap()
            .size,
        1
    );
}

/// Scans with the cache of the last scan; gives the digest of `f` and how many files were hashed.
fn again(root: &Path, cache: &mut StatCache) -> (FileDigest, usize) {
    let mut scan = scan(root, None, cache, &Wanted::All).unwrap();
    let index = scan.index(|_| true, cache).unwrap();
    (digest(&index, "f"), scan.hashed())
}

#[test]
fn no_wrong_digest() {
    let dir = tree(&["f", "g", "sub/f"]);
    let (f, g) = (dir.path().join("f"), dir.path().join("g"));
    let mut cache = StatCache::empty();
    let mut expect = |content: &[u8], what: &str| {
        assert_eq!(again(dir.path(), &mut cache).0, blake(content), "{what}");
    };
    fs::write(&f, b"one").unwrap();
    expect(b"one", "first");
    fs::write(&f, b"two").unwrap();
    expect(b"two", "same size, same tick");
    let times = fs::metadata(&f).unwrap();
    let set_back = |path: &Path| {
        let times = fs::FileTimes::new().set_modified(times.modified().unwrap());
        fs::File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_times(times)
            .unwrap();
    };
    fs::write(&f, b"six").unwrap();
    set_back(&f);
    expect(b"six", "time set back");
    std::thread::sleep(Duration::from_millis(2_200));
    expect(b"six", "settled");
    fs::write(&f, b"ten").unwrap();
    set_back(&f);
    expect(b"ten", "time set back after the cache trusts it");
    std::thread::sleep(Duration::from_millis(2_200));
    expect(b"ten", "settled");
    fs::write(&g, b"new").unwrap();
    set_back(&g);
    fs::rename(&g, &f).unwrap();
    expect(b"new", "replaced by rename");
    let other = tree(&["f"]);
    fs::write(other.path().join("f"), b"old").unwrap();
    set_back(&other.path().join("f"));
    fs::rename(dir.path(), dir.path().with_extension("away")).unwrap();
    fs::rename(other.path(), dir.path()).unwrap();
    expect(b"old", "another folder under the same path");
    fs::remove_dir_all(dir.path().with_extension("away")).unwrap();
}

#[test]
fn a_warm_cache_opens_nothing() {
    let dir = tree(&["f", "sub/g", "sub/h"]);
    let file = tempfile::tempdir().unwrap().path().with_extension("stat");
    std::thread::sleep(Duration::from_millis(2_200));
    let mut cache = StatCache::load(&file);
    assert_eq!(again(dir.path(), &mut cache).1, 3);
    assert!(cache.save(&file).unwrap());
    let mut cache = StatCache::load(&file);
    assert_eq!(again(dir.path(), &mut cache), (blake(b"f"), 0));
    assert!(!cache.save(&file).unwrap(), "nothing was learnt");

    // A scan of a part neither forgets nor mixes up the rest.
    let part = Wanted::Paths(vec!["sub/g".to_owned()]);
    let mut partial = scan(dir.path(), None, &mut cache, &part).unwrap();
    partial.index(|_| true, &mut cache).unwrap();
    assert_eq!((partial.hashed(), again(dir.path(), &mut cache).1), (0, 0));

    fs::write(&file, b"kilnst1\nrubbish").unwrap();
    assert!(StatCache::load(&file).is_empty());
    fs::remove_file(file).unwrap();
}

#[test]
fn unreadable_files_matter_only_when_selected() {
    let dir = tree(&["f", "gone"]);
    let mut scan = look(dir.path(), &[], &Wanted::All);
    fs::remove_file(dir.path().join("gone")).unwrap();
    scan.index(|path| path.as_bytes() == b"f", &mut StatCache::empty())
        .unwrap();
    let error = scan.index(|_| true, &mut StatCache::empty()).unwrap_err();
    assert!(
        error.to_string().contains("/gone in the build context"),
        "{error}"
    );
    let missing = kiln_source::scan(
        &dir.path().join("no"),
        None,
        &mut StatCache::empty(),
        &Wanted::All,
    );
    assert!(matches!(missing, Err(ScanError::Root { .. })));
}

#[test]
fn many_files_in_path_order() {
    let names: Vec<String> = (0..3_000)
        .map(|at| format!("d{}/e{}/f{at}", at % 7, at % 50))
        .collect();
    let dir = tree(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut scan = look(dir.path(), &["d3"], &Wanted::All);
    let index = scan.index(|_| true, &mut StatCache::empty()).unwrap();
    let mut sorted = index.entries().to_vec();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    assert_eq!(index.entries(), sorted);
    assert_eq!(
        sorted.iter().filter(|entry| entry.is_file()).count(),
        scan.hashed()
    );
    for name in names.iter().filter(|name| !name.starts_with("d3")) {
        assert_eq!(digest(&index, name), blake(name.as_bytes()), "{name}");
    }
}
