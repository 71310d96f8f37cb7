use std::io::{Cursor, Read, Write};
use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::*;

fn file(path: &str, size: usize) -> Header {
    Header {
        path: path.as_bytes().to_vec(),
        size: size as u64,
        mode: 0o644,
        ..Header::default()
    }
}

fn write(entries: &[(Header, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (header, content) in entries {
        writer.append(header, &mut Cursor::new(content)).unwrap();
    }
    let (bytes, size) = writer.finish().unwrap();
    assert_eq!(bytes.len() as u64, size);
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::new();
    while let Some(mut entry) = reader.next_entry()? {
        let mut content = Vec::new();
        entry
            .content
            .read_to_end(&mut content)
            .map_err(|source| TarError::Io { offset: 0, source })?;
        entries.push((entry.header, content));
    }
    Ok(entries)
}

/// A header block with any fields, for archives that the writer would not make.
fn raw(kind: u8, name: &[u8], size: u64, change: impl FnOnce(&mut block::Block)) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..name.len()].copy_from_slice(name);
    for field in [block::MODE, block::UID, block::GID, block::MTIME] {
        block::put_octal(&mut block[field], 0);
    }
    block::put_octal(&mut block[block::SIZE], size as i64);
    block[block::KIND] = kind;
    block[block::MAGIC].copy_from_slice(block::USTAR_MAGIC);
    change(&mut block);
    block::put_checksum(&mut block);
    block.to_vec()
}

fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn extended(kind: u8, records: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        pax::put_record(&mut body, key, value);
    }
    [raw(kind, b"x", body.len() as u64, |_| {}), padded(body)].concat()
}

/// Every kind and every reason for an extended header.
fn samples() -> Vec<(Header, Vec<u8>)> {
    let kind = |path: &str, kind, link: &str| Header {
        kind,
        link: link.into(),
        ..file(path, 0)
    };
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    let longer = "n".repeat(300);
    vec![
        (kind("dir/", EntryKind::Dir, ""), vec![]),
        (file("dir/file", 5), b"hello".to_vec()),
        (file("dir/block", 512), vec![b'b'; 512]),
        (kind("dir/link", EntryKind::Symlink, "../x"), vec![]),
        (kind("dir/hard", EntryKind::HardLink, "dir/file"), vec![]),
        (
            Header {
                device: (1, 3),
                ..kind("null", EntryKind::Char, "")
            },
            vec![],
        ),
        (
            Header {
                device: (8, 0x1_2345),
                ..kind("disk", EntryKind::Block, "")
            },
            vec![],
        ),
        (kind("pipe", EntryKind::Fifo, ""), vec![]),
        (file(&long, 1), b"1".to_vec()),
        (file(&longer, 1), b"2".to_vec()),
        (kind("far", EntryKind::Symlink, &longer), vec![]),
        (file("grün", 0), vec![]),
        (
            Header {
                uid: 2_097_151,
                gid: 2_097_151,
                mode: 0o7755,
                ..file("largest", 0)
            },
            vec![],
        ),
        (
            Header {
                uid: 2_097_152,
                gid: 4_294_967_294,
                ..file("large", 0)
            },
            vec![],
        ),
        (
            Header {
                mtime: (1_700_000_000, 123_456_789),
                ..file("fine", 0)
            },
            vec![],
        ),
        (
            Header {
                mtime: (-1, 500_000_000),
                ..file("early", 0)
            },
            vec![],
        ),
        (
            Header {
                mtime: (1 << 34, 0),
                ..file("late", 0)
            },
            vec![],
        ),
        (
            Header {
                user: b"root".to_vec(),
                group: "größe".into(),
                ..file("named", 0)
            },
            vec![],
        ),
        (
            Header {
                xattrs: vec![
                    (
                        b"security.capability".to_vec(),
                        vec![1, 0, 0, 2, 0x0a, b'=', 0, 0xff, 0x0a],
                    ),
                    (b"user.empty".to_vec(), vec![]),
                ]
                .into(),
                ..file("able", 3)
            },
            b"abc".to_vec(),
        ),
    ]
}

#[test]
fn what_is_written_is_read() {
    let bytes = write(&samples());
    assert_eq!(read(&bytes).unwrap(), samples());
    assert_eq!(write(&samples()), bytes);
}

#[test]
fn ustar_where_it_fits() {
    let kind_of_first = |header: &Header| header_bytes(header).unwrap()[block::KIND];
    assert_eq!(
        kind_of_first(&file(
            &format!("{}/{}", "d".repeat(155), "f".repeat(100)),
            0
        )),
        b'0'
    );
    assert_eq!(
        kind_of_first(&file(
            &format!("{}/{}", "d".repeat(156), "f".repeat(100)),
            0
        )),
        b'x'
    );
    assert_eq!(kind_of_first(&file("a", (8 << 30) - 1)), b'0');
    assert_eq!(kind_of_first(&file("a", 8 << 30)), b'x');
    assert_eq!(
        plain_file_header("manifest.json", 3),
        header_bytes(&file("manifest.json", 3)).unwrap()
    );
    for refused in [
        Header {
            xattrs: vec![(b"user.a=b".to_vec(), vec![])].into(),
            ..file("a", 0)
        },
        Header {
            device: (0, 1 << 21),
            ..file("a", 0)
        },
        Header {
            mode: 1 << 21,
            ..file("a", 0)
        },
        file("a\0b", 0),
    ] {
        assert!(header_bytes(&refused).is_err(), "{refused:?}");
    }
    let short = Writer::new(Vec::new()).append(&file("a", 3), &mut &b"ab"[..]);
    assert_eq!(short.unwrap_err().kind(), std::io::ErrorKind::UnexpectedEof);
}

#[test]
fn size_in_records_frames_the_data() {
    // What readers that trust the header's size 0 take for entries is the content of one file (CVE-2025-62518).
    let inner = write(&[(file("smuggled", 0), vec![])]);
    let size = inner.len().to_string();
    let bytes = [
        extended(b'x', &[(b"size", size.as_bytes())]),
        raw(b'0', b"outer", 0, |_| {}),
        inner.clone(),
        raw(b'0', b"last", 0, |_| {}),
    ]
    .concat();
    let entries = read(&bytes).unwrap();
    assert_eq!(
        entries
            .iter()
            .map(|(header, _)| &header.path[..])
            .collect::<Vec<_>>(),
        [&b"outer"[..], b"last"]
    );
    assert_eq!(entries[0].1, inner);
}

#[test]
fn no_content_without_a_file() {
    for kind in *b"123456" {
        let bytes = [raw(kind, b"a", 700, |_| {}), raw(b'0', b"b", 0, |_| {})].concat();
        let entries = read(&bytes).unwrap();
        assert_eq!(
            (entries.len(), entries[0].0.size),
            (2, 0),
            "{}",
            kind as char
        );
    }
    let other = [
        raw(b'V', b"volume", 3, |_| {}),
        padded(b"abc".to_vec()),
        raw(b'0', b"b", 0, |_| {}),
    ]
    .concat();
    assert_eq!(read(&other).unwrap()[0].0.kind, EntryKind::Other(b'V'));
    assert_eq!(read(&other).unwrap()[0].1, b"abc");
}

#[test]
fn records_override_and_globals_do_not() {
    let bytes = [
        extended(b'g', &[(b"path", b"global"), (b"comment", b"c")]),
        extended(
            b'x',
            &[
                (b"path", b"first"),
                (b"path", b"second"),
                (b"uid", b"-5"),
                (b"gname", b""),
                (b"mtime", b"-1.5"),
            ],
        ),
        raw(b'1', b"name", 0, |block| block[block::GROUP.start] = b'g'),
        raw(b'0', b"plain", 0, |_| {}),
    ]
    .concat();
    let entries = read(&bytes).unwrap();
    let first = &entries[0].0;
    assert_eq!(
        (&first.path[..], first.uid, &first.group[..], first.mtime),
        (&b"second"[..], -5, &b"g"[..], (-2, 500_000_000))
    );
    assert_eq!(entries[1].0.path, b"plain");
}

#[test]
fn old_formats() {
    let gnu = |block: &mut block::Block| block[block::MAGIC].copy_from_slice(b"ustar  \0");
    let name = [b"n".repeat(200), vec![0]].concat();
    let bytes = [
        raw(b'L', b"././@LongLink", name.len() as u64, gnu),
        padded(name.clone()),
        raw(b'K', b"././@LongLink", 3, gnu),
        padded(b"to\0".to_vec()),
        raw(b'2', b"cut", 0, gnu),
        // Not a prefix in GNU's format.
        raw(b'0', b"times", 0, |block| {
            gnu(block);
            block[block::PREFIX][..11].copy_from_slice(b"00000000001");
        }),
        raw(b'0', b"prefixed", 0, |block| {
            gnu(block);
            block[block::PREFIX][..5].copy_from_slice(b"go1.7");
        }),
        raw(0, b"folder/", 0, |block| block[block::MAGIC].fill(0)),
        raw(b'0', b"numbers", 0, |block| {
            gnu(block);
            block[block::UID].copy_from_slice(&[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]);
            block[block::GID].copy_from_slice(&[0xff; 8]);
            block[block::MODE].copy_from_slice(b"  0755 \0");
            block[block::MTIME].fill(b' ');
        }),
        raw(b'7', b"name", 0, |block| {
            block[block::PREFIX][..3].copy_from_slice(b"pre");
        }),
    ]
    .concat();
    let entries: Vec<_> = read(&bytes)
        .unwrap()
        .into_iter()
        .map(|(header, _)| header)
        .collect();
    assert_eq!(
        (&entries[0].path[..], &entries[0].link[..], entries[0].kind),
        (&name[..200], &b"to"[..], EntryKind::Symlink)
    );
    assert_eq!(entries[1].path, b"times");
    assert_eq!(entries[2].path, b"go1.7/prefixed");
    assert_eq!(entries[3].kind, EntryKind::Dir);
    assert_eq!(
        (entries[4].uid, entries[4].gid, entries[4].mode),
        (4_294_967_294, -1, 0o755)
    );
    assert_eq!(
        (&entries[5].path[..], entries[5].kind),
        (&b"pre/name"[..], EntryKind::File)
    );
}

#[test]
fn sparse_files() {
    let expected = [&[0; 512][..], b"one", &[0; 485], b"two", &[0; 97]].concat();
    let data = padded(b"onetwo".to_vec());
    let octal = |block: &mut [u8], value: i64| block::put_octal(block, value);
    let old = [
        raw(b'S', b"old", 6, |block| {
            block[block::MAGIC].copy_from_slice(b"ustar  \0");
            octal(&mut block[386..398], 512);
            octal(&mut block[398..410], 3);
            block[482] = 1;
            octal(&mut block[483..495], 1100);
        }),
        {
            let mut more = vec![0; BLOCK];
            octal(&mut more[..12], 1000);
            octal(&mut more[12..24], 3);
            octal(&mut more[24..36], 1100);
            octal(&mut more[36..48], 0);
            more
        },
        data.clone(),
    ]
    .concat();
    let size: (&[u8], &[u8]) = (b"GNU.sparse.size", b"1100");
    let zero = [
        extended(
            b'x',
            &[
                size,
                (b"GNU.sparse.offset", b"512"),
                (b"GNU.sparse.numbytes", b"3"),
                (b"GNU.sparse.offset", b"1000"),
                (b"GNU.sparse.numbytes", b"3"),
            ],
        ),
        raw(b'0', b"old", 6, |_| {}),
        data.clone(),
    ]
    .concat();
    let one = [
        extended(
            b'x',
            &[
                size,
                (b"GNU.sparse.map", b"512,3,1000,3"),
                (b"GNU.sparse.name", b"old"),
            ],
        ),
        raw(b'0', b"GNUSparseFile.0/x", 6, |_| {}),
        data.clone(),
    ]
    .concat();
    let version: [(&[u8], &[u8]); 4] = [
        (b"GNU.sparse.major", b"1"),
        (b"GNU.sparse.minor", b"0"),
        (b"GNU.sparse.name", b"old"),
        (b"GNU.sparse.realsize", b"1100"),
    ];
    let front = |map: &str| {
        let map = padded(map.into());
        let size = map.len() as u64 + 6;
        [
            extended(b'x', &version),
            raw(b'0', b"GNUSparseFile.0/x", size, |_| {}),
            map,
            data.clone(),
        ]
        .concat()
    };
    let next = raw(b'0', b"next", 0, |_| {});
    for bytes in [&old, &zero, &one, &front("2\n512\n3\n1000\n3\n")] {
        let entries = read(&[&bytes[..], &next].concat()).unwrap();
        let (header, content) = &entries[0];
        assert_eq!(
            (&header.path[..], header.size, content),
            (&b"old"[..], 1100, &expected)
        );
        assert_eq!(entries[1].0.path, b"next");
        // Unread and half-read contents leave the reader at the right place.
        let all = [&bytes[..], &next].concat();
        let mut reader = Reader::new(&all[..]);
        let mut entry = reader.next_entry().unwrap().unwrap();
        entry.content.read_exact(&mut [0; 600]).unwrap();
        assert_eq!(reader.next_entry().unwrap().unwrap().header.path, b"next");
    }
    for map in [
        "2\n1000\n3\n512\n3\n",
        "1\n512\n3\n",
        "1\n1098\n6\n",
        "2\n512\n3\n513\n3\n",
        "x",
        "1\n-1\n6\n",
        "9999999\n",
    ] {
        assert!(read(&front(map)).is_err(), "{map:?}");
    }
}

#[test]
fn damaged() {
    let whole = write(&[(file("a", 600), vec![b'x'; 600])]);
    let fails = |bytes: &[u8]| read(bytes).unwrap_err();
    // Every cut but one at a border of entries is noticed; Go does not insist on the last padding and the zeros.
    for cut in 0..whole.len() {
        let accepted = cut == 0 || (512 + 600..=1536).contains(&cut) || cut == 1536 + 512;
        assert_eq!(read(&whole[..cut]).is_ok(), accepted, "{cut}");
    }
    assert!(matches!(
        fails(&whole[..100]),
        TarError::CutOff { offset: 100 }
    ));
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    assert!(matches!(
        fails(&flipped),
        TarError::Invalid { offset: 0, .. }
    ));
    let second = raw(b'0', b"b", 0, |_| {});
    assert!(
        fails(&[&[0; 512], &second[..]].concat())
            .to_string()
            .contains("zeros")
    );
    let cases = [
        raw(b'0', b"a", 0, |block| block[block::SIZE].fill(0xff)),
        raw(b'0', b"a", 0, |block| {
            block[block::SIZE][..12].copy_from_slice(b"00000000009\0");
        }),
        raw(b'0', b"a", 0, |block| {
            block[block::UID].copy_from_slice(b"12 34  \0");
        }),
        raw(b'0', b"a", 0, |block| {
            block[block::MODE].copy_from_slice(&[0x80, 0xff, 0, 0, 0, 0, 0, 0]);
        }),
        raw(b'S', b"a", 0, |_| {}),
        [extended(b'x', &[(b"size", b"-1")]), second.clone()].concat(),
        [
            extended(b'x', &[(b"size", b"99999999999999999999")]),
            second.clone(),
        ]
        .concat(),
        [extended(b'x', &[(b"mtime", b"now")]), second.clone()].concat(),
        [raw(b'x', b"", 2 << 20, |_| {}), vec![0; 3 << 20]].concat(),
        [raw(b'L', b"", 1 << 17, |_| {}), vec![0; 1 << 18]].concat(),
        [extended(b'x', &[(b"path", &b"p".repeat(1 << 17))]), second].concat(),
    ];
    for (number, bytes) in cases.iter().enumerate() {
        assert!(
            matches!(fails(bytes), TarError::Invalid { .. }),
            "case {number}"
        );
    }
}

fn any_header() -> impl Strategy<Value = (Header, Vec<u8>)> {
    let name = || {
        prop_oneof![
            "[a-zé/ .]{1,20}",
            "[a-z]{1,99}/[a-z]{90,160}/?",
            "[a-z]{95,105}"
        ]
    };
    let kind = prop_oneof![
        Just(EntryKind::File),
        Just(EntryKind::HardLink),
        Just(EntryKind::Symlink),
        Just(EntryKind::Char),
        Just(EntryKind::Dir),
    ];
    let value = || proptest::collection::vec(any::<u8>(), 0..30);
    let xattrs = proptest::collection::btree_map(
        proptest::collection::vec(b'a'..=b'z', 1..8),
        value(),
        0..3,
    );
    let numbers = (
        0..1_u32 << 12,
        -1_i64..1 << 33,
        0..1_i64 << 32,
        -1_i64 << 35..1 << 35,
        prop_oneof![Just(0), 0..1_000_000_000_u32],
    );
    (
        name(),
        name(),
        kind,
        numbers,
        xattrs,
        proptest::collection::vec(any::<u8>(), 0..1200),
    )
        .prop_map(
            |(path, link, kind, (mode, uid, gid, seconds, nanoseconds), xattrs, content)| {
                let content = if kind == EntryKind::File {
                    content
                } else {
                    Vec::new()
                };
                let header = Header {
                    path: path.into(),
                    kind,
                    link: if matches!(kind, EntryKind::HardLink | EntryKind::Symlink) {
                        link.into()
                    } else {
                        Vec::new()
                    },
                    size: content.len() as u64,
                    mode,
                    uid,
                    gid,
                    mtime: (seconds, nanoseconds),
                    device: if kind == EntryKind::Char {
                        (mode, 7)
                    } else {
                        (0, 0)
                    },
                    xattrs: xattrs.into_iter().collect(),
                    ..Header::default()
                };
                (header, content)
            },
        )
}

proptest! {
    #[test]
    fn round_trip(entries in proptest::collection::vec(any_header(), 0..5)) {
        let bytes = write(&entries);
        prop_assert_eq!(&read(&bytes).unwrap(), &entries);
        // tar-rs cannot read values with newlines, nor fractions of times.
        let mut theirs = ::tar::Archive::new(&bytes[..]);
        for (theirs, (header, content)) in theirs.entries().unwrap().zip(&entries) {
            let mut theirs = theirs.unwrap();
            let mut read = Vec::new();
            theirs.read_to_end(&mut read).unwrap();
            prop_assert_eq!(&read, content);
            if !header.xattrs.iter().any(|(_, value)| value.contains(&b'\n')) {
                prop_assert_eq!(&*theirs.path_bytes(), &header.path[..]);
                prop_assert_eq!(theirs.link_name_bytes().unwrap_or_default(), &header.link[..]);
            }
        }
    }

    #[test]
    fn never_panics(
        mut bytes in proptest::collection::vec(any::<u8>(), 0..3000),
        changes in proptest::collection::vec((0..16_384_usize, any::<u8>()), 0..6),
    ) {
        let _ = read(&bytes);
        // Blocks with a valid checksum get further.
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
        for chunk in bytes.chunks_exact_mut(BLOCK) {
            let block: &mut block::Block = chunk.try_into().unwrap();
            block[block::SIZE].copy_from_slice(b"00000000700\0");
            block[block::KIND] = b"xgLKS0125"[usize::from(block[0]) % 9];
            block::put_checksum(block);
        }
        let _ = read(&bytes);
        let mut sample = write(&samples());
        let len = sample.len();
        for (at, byte) in changes {
            let at = at % len;
            sample[at] = byte;
            let start = at / BLOCK * BLOCK;
            block::put_checksum((&mut sample[start..start + BLOCK]).try_into().unwrap());
        }
        let _ = read(&sample);
    }
}

/// Runs a program with `input`; `None`, said aloud, where it is not installed.
fn oracle(program: &str, arguments: &[&str], input: &[u8]) -> Option<Vec<u8>> {
    let child = Command::new(program)
        .args(arguments)
        .env("TZ", "UTC")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        #[expect(clippy::print_stderr, reason = "a test that is skipped must be seen")]
        {
            eprintln!("SKIPPED: {program} is not installed");
        }
        return None;
    };
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    let _ = feeder.join();
    Some(output.stdout)
}

const PYTHON_LIST: &str = r"
import sys, tarfile
for m in tarfile.open(fileobj=sys.stdin.buffer, mode='r|', errors='surrogateescape'):
    print(m.type.decode(), m.name, m.linkname, m.size, oct(m.mode), m.uid, m.gid, int(m.mtime // 1), sep='|')
";

#[test]
fn python_reads_what_we_write() {
    let Some(output) = oracle("python3", &["-c", PYTHON_LIST], &write(&samples())) else {
        return;
    };
    let expected: Vec<String> = samples()
        .iter()
        .map(|(header, _)| {
            let text = |bytes: &[u8]| {
                String::from_utf8_lossy(bytes)
                    .trim_end_matches('/')
                    .to_owned()
            };
            let kind = header_bytes(header).unwrap();
            format!(
                "{}|{}|{}|{}|0o{:o}|{}|{}|{}",
                kind[kind.len() - BLOCK + block::KIND] as char,
                text(&header.path),
                text(&header.link),
                header.size,
                header.mode,
                header.uid,
                header.gid,
                header.mtime.0
            )
        })
        .collect();
    assert_eq!(
        String::from_utf8(output)
            .unwrap()
            .lines()
            .collect::<Vec<_>>(),
        expected
    );
}

const PYTHON_WRITE: &str = r"
import sys, tarfile, io
a = tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=getattr(tarfile, sys.argv[1]))
def add(name, data=b'', **more):
    t = tarfile.TarInfo(name)
    t.size = len(data)
    for key, value in more.items(): setattr(t, key, value)
    a.addfile(t, io.BytesIO(data))
add('plain', b'x' * 1000, mode=0o4755, mtime=1700000000)
add('l' * 250, b'long')
add('link', type=tarfile.SYMTYPE, linkname='t' * 180)
add('ids', uid=3000000, gid=4294967294)
add('dir', type=tarfile.DIRTYPE)
a.close()
";

#[test]
fn we_read_what_python_writes() {
    for format in ["GNU_FORMAT", "PAX_FORMAT"] {
        let Some(bytes) = oracle("python3", &["-c", PYTHON_WRITE, format], &[]) else {
            return;
        };
        let entries = read(&bytes).unwrap();
        let headers: Vec<_> = entries.iter().map(|(header, _)| header).collect();
        assert_eq!(headers.len(), 5);
        assert_eq!(
            (headers[0].size, headers[0].mode, headers[0].mtime),
            (1000, 0o4755, (1_700_000_000, 0))
        );
        assert_eq!(
            (headers[1].path.len(), &entries[1].1[..]),
            (250, &b"long"[..])
        );
        assert_eq!(
            (headers[2].kind, headers[2].link.len()),
            (EntryKind::Symlink, 180)
        );
        assert_eq!((headers[3].uid, headers[3].gid), (3_000_000, 4_294_967_294));
        assert_eq!(headers[4].kind, EntryKind::Dir);
    }
}

#[test]
fn gnu_tar_agrees() {
    let Some(output) = oracle(
        "tar",
        &["-tf", "-", "--quoting-style=literal"],
        &write(&samples()),
    ) else {
        return;
    };
    let names: Vec<u8> = samples()
        .iter()
        .flat_map(|(header, _)| [&header.path[..], b"\n"].concat())
        .collect();
    assert_eq!(output, names);

    let folder = tempfile::tempdir().unwrap();
    let sparse = std::fs::File::create(folder.path().join("sparse")).unwrap();
    let mut expected = vec![0; 300_000];
    for at in (0..300_000).step_by(40_000) {
        std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", at).unwrap();
        expected[at as usize..at as usize + 4].copy_from_slice(b"data");
    }
    sparse.set_len(300_000).unwrap();
    let root = folder.path().to_str().unwrap();
    for format in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let arguments = [&["-cSf", "-", "-C", root], format, &["sparse"]].concat();
        let bytes = oracle("tar", &arguments, &[]).unwrap();
        let entries = read(&bytes).unwrap();
        assert_eq!(
            (&entries[0].0.path[..], entries.len()),
            (&b"sparse"[..], 1),
            "{format:?}"
        );
        assert!(
            entries[0].1 == expected && bytes.len() < 200_000,
            "{format:?}"
        );
    }
}
