//! Inputs to start from. Those of the language come from the conformance cases, archives are made here.

use std::path::{Path, PathBuf};

use kiln_image::tar::{EntryKind, Header, Reader, Writer};
use kiln_image::tarlayer::LayerBuilder;

pub(crate) fn dockerfiles() -> Vec<Vec<u8>> {
    sections("=== Dockerfile")
}

pub(crate) fn expansions() -> Vec<Vec<u8>> {
    let texts = [
        "$x ${y} ${x:-a} ${z-b} ${x:+c} ${y+d}",
        "${x#*/} ${x##*/} ${y%.*} ${y%%.*} ${x/b/c} ${x//b/$y}",
        r#"'$x' "$x \$y \" \\" \$x $ ${x:-"a b"}"#,
        "cat <<EOF <<-'END' 3<< \"a b\"",
        "${x:?no x} ${z:?}",
        "${a:-${b:-${c:-$x}}}",
    ];
    let with = |how: u8| {
        texts
            .iter()
            .map(move |text| [&[how][..], b"a/b.c/d\nb?*\n", text.as_bytes()].concat())
    };
    with(0).chain(with(0x1f)).collect()
}

pub(crate) fn patterns() -> Vec<Vec<u8>> {
    let lists = [
        "*.o\n!keep.o\na/x.o",
        "**/*.py[co]\n!**/b*\na/b/x.pyc",
        "a**b\n**x\n/a//b/../c/\na/c",
        "[^a-c]?\\*\n#no comment\nd/é*",
    ];
    let mut seeds: Vec<Vec<u8>> = lists.map(|text| text.as_bytes().to_vec()).into();
    for mut list in sections("--- .dockerignore") {
        list.extend_from_slice(b"a/b/c.txt");
        seeds.push(list);
    }
    seeds
}

pub(crate) fn references() -> Vec<Vec<u8>> {
    let digest = format!("busybox@sha256:{}", "ab".repeat(32));
    let names = [
        "busybox",
        "docker.io/library/busybox:1.36",
        "localhost:5000/a/b__c.d-e:Tag_1",
        "[::1]:5000/x",
        "index.docker.io/a.b/c",
        &digest,
    ];
    names.map(|name| name.as_bytes().to_vec()).into()
}

pub(crate) fn manifests() -> Vec<Vec<u8>> {
    let digest = format!("sha256:{}", "01".repeat(32));
    let descriptor = format!(
        r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{digest}","size":7}}"#
    );
    let texts = [
        format!(
            r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{descriptor},{descriptor}],"annotations":{{"a":"b"}}}}"#
        ),
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":9,"platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}}]}}"#
        ),
        r#"{"schemaVersion":1,"signatures":[]}"#.to_owned(),
    ];
    texts.map(String::into_bytes).into()
}

pub(crate) fn configs() -> Vec<Vec<u8>> {
    let full = format!(
        r#"{{"created":"2020-01-02T03:04:05.6Z","author":"a","architecture":"amd64","os":"linux","x":[1],"config":{{"User":"1:2","ExposedPorts":{{"80/tcp":{{}}}},"Env":["A=b"],"Entrypoint":["a"],"Cmd":null,"Volumes":{{"/v":{{}}}},"WorkingDir":"/","Labels":{{"l":"m"}},"StopSignal":"TERM","StopTimeout":3,"Healthcheck":{{"Test":["NONE"],"Interval":1}},"OnBuild":["RUN x"],"Shell":["sh"],"Y":1}},"rootfs":{{"type":"layers","diff_ids":["sha256:{}"]}},"history":[{{"created":"2020-01-02T03:04:05Z","created_by":"x","empty_layer":true}}]}}"#,
        "01".repeat(32)
    );
    vec![
        full.into_bytes(),
        b"{}".to_vec(),
        b"{\"config\":null}".to_vec(),
    ]
}

/// Bodies of index files, without the frame.
pub(crate) fn indexes() -> Vec<Vec<u8>> {
    let index = |archive: Vec<u8>| {
        let mut builder = LayerBuilder::new();
        let mut reader = Reader::new(&archive[..]);
        while let Ok(Some(entry)) = reader.next_entry() {
            let _ = builder.take(&entry.header);
        }
        builder.finish().to_bytes()[crate::image::INDEX_FRAME..].to_vec()
    };
    archives().into_iter().map(index).collect()
}

pub(crate) fn archives() -> Vec<Vec<u8>> {
    let file = |path: &str, content: &str| {
        let header = Header {
            path: path.into(),
            size: content.len() as u64,
            mode: 0o4755,
            mtime: (1_500_000_000, 5),
            ..Header::default()
        };
        (header, content.to_owned())
    };
    let other = |path: &str, kind, link: &str| {
        let header = Header {
            path: path.into(),
            kind,
            link: link.into(),
            mode: 0o755,
            ..Header::default()
        };
        (header, String::new())
    };
    let mut with_xattrs = file("x", "content");
    with_xattrs.0.xattrs = [(b"security.capability".to_vec(), vec![1, 0, 0, 2])].into();
    with_xattrs.0.uid = 1 << 30;
    let long = "long/".repeat(60);
    let archives = [
        vec![
            other("./", EntryKind::Dir, ""),
            other("a/", EntryKind::Dir, ""),
            file("a/f", "one\n"),
            other("a/h", EntryKind::HardLink, "a/f"),
            other("l", EntryKind::Symlink, "a"),
            file("l/through", "two"),
        ],
        vec![
            file("d/.wh.gone", ""),
            file("e/.wh..wh..opq", ""),
            other("p", EntryKind::Fifo, ""),
            other("c", EntryKind::Char, ""),
        ],
        vec![with_xattrs, file(&long, ""), file("a/../../b", "climbs")],
    ];
    let mut seeds: Vec<Vec<u8>> = archives
        .iter()
        .map(|entries| {
            let mut writer = Writer::new(Vec::new());
            for (header, content) in entries {
                // What cannot be written is no seed.
                let _ = writer.append(header, &mut content.as_bytes());
            }
            writer
                .finish()
                .map_or_else(|_| Vec::new(), |(bytes, _)| bytes)
        })
        .collect();
    seeds.push(sparse());
    seeds
}

/// A GNU sparse file of version 1.0: its map stands before the data.
fn sparse() -> Vec<u8> {
    let header = Header {
        path: b"s".to_vec(),
        size: 512 + 3,
        ..Header::default()
    };
    let mut map = b"1\n5\n3\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"abc");
    let mut writer = Writer::new(Vec::new());
    let _ = writer.append(&header, &mut &map[..]);
    let plain = writer
        .finish()
        .map_or_else(|_| Vec::new(), |(bytes, _)| bytes);
    let records = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.realsize=8\n";
    let extension = Header {
        path: b"x".to_vec(),
        size: records.len() as u64,
        ..Header::default()
    };
    let mut writer = Writer::new(Vec::new());
    let _ = writer.append(&extension, &mut &records[..]);
    let mut bytes = writer
        .finish()
        .map_or_else(|_| Vec::new(), |(bytes, _)| bytes);
    bytes.truncate(1024);
    // The type byte makes it an extended header; the sum counts it.
    let sum: u32 = bytes[..512]
        .iter()
        .enumerate()
        .map(|(at, &byte)| match at {
            148..156 => u32::from(b' '),
            156 => u32::from(b'x'),
            _ => u32::from(byte),
        })
        .sum();
    bytes[156] = b'x';
    bytes[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    bytes.extend_from_slice(&plain);
    bytes
}

/// The sections of this header in all conformance cases.
fn sections(wanted: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/conformance");
    let list = |folder: PathBuf| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    };
    let cases = list(folder).into_iter().flat_map(list);
    let mut found = Vec::new();
    for case in cases.filter(|path| path.extension().is_some_and(|ending| ending == "case")) {
        let text = std::fs::read_to_string(case).unwrap_or_default();
        let mut section = None;
        for line in text.split_inclusive('\n') {
            if line.starts_with("=== ") || line.starts_with("--- ") {
                found.extend(section.take());
                section = (line.trim_end() == wanted).then(Vec::new);
            } else if let Some(section) = &mut section {
                section.extend_from_slice(line.as_bytes());
            }
        }
        found.extend(section);
    }
    found
}
