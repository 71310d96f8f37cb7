//! COPY on small trees. What BuildKit does was found out by trying 0.25 (Docker 28.5) with the same trees.

use crate::common::{chain, copy, key, run, tree, try_run, with_xattr};
use kiln_fileop::{FileOpError, selection};
use kiln_image::LayerPath;
use kiln_store::layer_fs::read_index;

/// The context of most cases.
fn context() -> crate::common::Made {
    tree(&[&[
        "f 644 0:0 a.txt one",
        "f 755 0:0 run.sh two",
        "d 711 0:0 dir",
        "f 600 0:0 dir/x three",
        "d 775 0:0 dir/sub",
        "f 640 0:0 dir/sub/y four",
        "f 644 0:0 other/z five",
        "l link.txt a.txt",
        "l dirlink dir",
        "l dangling no/where",
        "l dir/in ../a.txt",
        "f 644 0:0 arr[0].txt six",
        "f 644 0:0 q?x seven",
    ]])
}

fn base() -> crate::common::Made {
    tree(&[
        &[
            "d 755 0:0 etc",
            "f 644 0:0 etc/passwd root:x:0:0:root\\napp:x:100:101:app\\n",
            "f 644 0:0 etc/group root:x:0:\\nstaff:x:50:\\n",
            "d 1777 0:0 tmp",
            "d 700 5:6 srv",
            "d 700 5:6 srv/sub",
            "f 644 5:6 srv/sub/old old",
            "f 644 5:6 srv/x x",
            "d 755 0:0 usr/bin",
            "l bin usr/bin",
            "f 755 0:0 usr/bin/sh sh",
            "l etc/alias passwd",
            "l fresh missing/deep",
            "l gone x",
        ],
        &["w gone"],
    ])
}

#[test]
fn files() {
    let cases: &[(&[&str], &str)] = &[
        (&["a.txt /"], "f 644 0:0 = /a.txt 3\n"),
        (&["a.txt /b"], "f 644 0:0 = /b 3\n"),
        (
            &["a.txt /new/deep/"],
            "d 755 0:0 now /new\nd 755 0:0 now /new/deep\nf 644 0:0 = /new/deep/a.txt 3\n",
        ),
        (
            &["a.txt /new/name"],
            "d 755 0:0 now /new\nf 644 0:0 = /new/name 3\n",
        ),
        (
            &["a.txt /tmp"],
            "i 1777 0:0 = /tmp\nf 644 0:0 = /tmp/a.txt 3\n",
        ),
        (
            &["a.txt /srv/x"],
            "i 700 5:6 = /srv\nf 644 0:0 = /srv/x 3\n",
        ),
        (&["../../a.txt /x/../y"], "f 644 0:0 = /y 3\n"),
        (&["a.txt /b", "run.sh /b"], "f 755 0:0 = /b 3\n"),
        (&["dir/sub/y /"], "f 640 0:0 = /y 4\n"),
    ];
    for (copies, expected) in cases {
        assert_eq!(
            run(&base(), &context(), &chain(copies)),
            *expected,
            "{copies:?}"
        );
    }
}

#[test]
fn links_of_the_source() {
    let cases: &[(&str, &str)] = &[
        ("link.txt /", "f 644 0:0 = /link.txt 3\n"),
        ("dirlink/x /", "f 600 0:0 = /x 5\n"),
        ("dirlink /d", DIR_AS_D),
        (
            "*.txt /",
            "f 644 0:0 = /a.txt 3\nf 644 0:0 = /arr[0].txt 3\nf 644 0:0 = /link.txt 3\n",
        ),
        (
            "dangling /",
            "error: \"/dangling\": not found\nhint: it is a symbolic link to \"no/where\", which is not there\n",
        ),
        ("one link.txt /", "l 777 0:0 = /link.txt -> a.txt\n"),
    ];
    for (line, expected) in cases {
        assert_eq!(
            run(&base(), &context(), &chain(&[line])),
            *expected,
            "{line}"
        );
    }
}

const DIR_AS_D: &str = "\
d 755 0:0 = /d
l 777 0:0 = /d/in -> ../a.txt
d 775 0:0 = /d/sub
f 640 0:0 = /d/sub/y 4
f 600 0:0 = /d/x 5
";

#[test]
fn folders() {
    // Contents, never the folder: a new destination is 0755, with the source's time.
    for line in ["dir /d", "dir/ /d/", "dir/. /d", "/dir /x/../d/"] {
        assert_eq!(
            run(&base(), &context(), &chain(&[line])),
            DIR_AS_D,
            "{line}"
        );
    }
    // A folder that is there keeps its metadata; one below gets the source's.
    insta::assert_snapshot!(run(&base(), &context(), &chain(&["dir /srv"])), @r"
    i 700 5:6 = /srv
    l 777 0:0 = /srv/in -> ../a.txt
    d 775 0:0 = /srv/sub
    f 640 0:0 = /srv/sub/y 4
    f 600 0:0 = /srv/x 5
    ");
    // The folder itself, as a plan without `dir_copy_contents` has it.
    insta::assert_snapshot!(run(&base(), &context(), &chain(&["one dir /tmp"])), @r"
    i 1777 0:0 = /tmp
    d 711 0:0 = /tmp/dir
    l 777 0:0 = /tmp/dir/in -> ../a.txt
    d 775 0:0 = /tmp/dir/sub
    f 640 0:0 = /tmp/dir/sub/y 4
    f 600 0:0 = /tmp/dir/x 5
    ");
    insta::assert_snapshot!(run(&base(), &context(), &chain(&["one dir /fine"])), @r"
    d 711 0:0 = /fine
    l 777 0:0 = /fine/in -> ../a.txt
    d 775 0:0 = /fine/sub
    f 640 0:0 = /fine/sub/y 4
    f 600 0:0 = /fine/x 5
    ");
    assert_eq!(
        run(
            &base(),
            &tree(&[&["f 644 0:0 etc/new n"]]),
            &chain(&["/ /"])
        ),
        "i 755 0:0 = /etc\nf 644 0:0 = /etc/new 1\n".replace('i', "d")
    );
    assert_eq!(
        run(&base(), &tree(&[]), &chain(&["/ /empty/"])),
        "d 755 0:0 now /empty\n"
    );
}

#[test]
fn wildcards() {
    let cases: &[(&str, &str)] = &[
        ("*.sh /", "f 755 0:0 = /run.sh 3\n"),
        ("arr[[]0].txt /", "f 644 0:0 = /arr[0].txt 3\n"),
        ("q\\?x /", "f 644 0:0 = /q?x 5\n"),
        ("nothing* /", ""),
        ("*/x /", "f 600 0:0 = /x 5\n"),
        // `**` is one level where no pattern matcher is at work.
        ("**/y /", ""),
        ("dir/**/y /", "f 640 0:0 = /y 4\n"),
        ("o* /o", "d 755 0:0 = /o\nf 644 0:0 = /o/z 4\n"),
        ("dir*/sub /s", "d 755 0:0 = /s\nf 640 0:0 = /s/y 4\n"),
        ("nowhere/* /", "error: \"/nowhere\": not found\n"),
        ("[ /", "error: syntax error in pattern \"[\"\n"),
    ];
    for (line, expected) in cases {
        assert_eq!(
            run(&base(), &context(), &chain(&[line])),
            *expected,
            "{line}"
        );
    }
    // A folder among the matches is flattened too.
    insta::assert_snapshot!(run(&base(), &context(), &chain(&["dir/* /m/"])), @r"
    d 755 0:0 = /m
    f 644 0:0 = /m/in 3
    f 600 0:0 = /m/x 5
    f 640 0:0 = /m/y 4
    ");
    let mut strict = copy("nothing* /");
    strict.allow_empty_wildcard = false;
    assert!(matches!(
        selection(&strict, &context().view),
        Err(FileOpError::NoMatch { .. })
    ));
}

#[test]
fn links_of_the_destination() {
    let cases: &[(&[&str], &str)] = &[
        (
            &["a.txt /bin/"],
            "i 755 0:0 = /usr\ni 755 0:0 = /usr/bin\nf 644 0:0 = /usr/bin/a.txt 3\n",
        ),
        (
            &["a.txt /bin"],
            "i 755 0:0 = /usr\ni 755 0:0 = /usr/bin\nf 644 0:0 = /usr/bin/a.txt 3\n",
        ),
        (
            &["a.txt /etc/alias"],
            "i 755 0:0 = /etc\nf 644 0:0 = /etc/passwd 3\n",
        ),
        // A link that lies in the destination folder gives way, it is not followed.
        (
            &["one link.txt /etc/", "a.txt /etc/"],
            "i 755 0:0 = /etc\nf 644 0:0 = /etc/a.txt 3\nl 777 0:0 = /etc/link.txt -> a.txt\n",
        ),
        (
            &["a.txt /fresh"],
            "d 755 0:0 now /missing\nf 644 0:0 = /missing/deep 3\n",
        ),
        (
            &["a.txt /fresh/"],
            "d 755 0:0 now /missing\nd 755 0:0 now /missing/deep\nf 644 0:0 = /missing/deep/a.txt 3\n",
        ),
        (
            &["dir/sub /bin"],
            "i 755 0:0 = /usr\ni 755 0:0 = /usr/bin\nf 640 0:0 = /usr/bin/y 4\n",
        ),
        (
            &["a.txt /gone/"],
            "d 755 0:0 now /gone\nf 644 0:0 = /gone/a.txt 3\n",
        ),
    ];
    for (copies, expected) in cases {
        assert_eq!(
            run(&base(), &context(), &chain(copies)),
            *expected,
            "{copies:?}"
        );
    }
    let etc = tree(&[&["f 644 0:0 alias new"]]);
    assert_eq!(
        run(&base(), &etc, &chain(&["alias /etc/"])),
        "i 755 0:0 = /etc\nf 644 0:0 = /etc/alias 3\n"
    );
}

#[test]
fn kinds_that_do_not_fit() {
    let usr_merge = tree(&[&["f 755 0:0 root/bin/tool t"]]);
    insta::assert_snapshot!(run(&base(), &usr_merge, &chain(&["root/ /"])), @r"
    error: cannot copy to non-directory: /bin
    hint: /bin is a symbolic link to usr/bin; copy to usr/bin instead, so that the link stays
    ");
    let cases: &[(&[&str], &str)] = &[
        (
            &["dir /srv/x"],
            "error: cannot copy to non-directory: /srv/x\n",
        ),
        (&["dir /srv/x/"], "error: mkdir /srv/x: not a directory\n"),
        (&["a.txt /srv/x/"], "error: mkdir /srv/x: not a directory\n"),
        (
            &["a.txt /srv/x/y"],
            "error: mkdir /srv/x: not a directory\n",
        ),
        (
            &["dir /d", "dir/x /d/sub", "dir/x /d/sub/x/y"],
            "error: mkdir /d/sub/x: not a directory\n",
        ),
    ];
    for (copies, expected) in cases {
        assert_eq!(
            run(&base(), &context(), &chain(copies)),
            *expected,
            "{copies:?}"
        );
    }
    let file = tree(&[&["f 644 0:0 sub s"]]);
    assert_eq!(
        run(&base(), &file, &chain(&["sub /srv/"])),
        "error: cannot replace directory /srv/sub with a file\n"
    );
}

#[test]
fn missing_sources() {
    let cases = [
        (
            "A.TXT /",
            "error: \"/A.TXT\": not found\nhint: did you mean \"/a.txt\"?\n",
        ),
        (
            "dir/sup/y /",
            "error: \"/dir/sup/y\": not found\nhint: did you mean \"/dir/sub\"?\n",
        ),
        (
            "completely/else /",
            "error: \"/completely/else\": not found\n",
        ),
        ("a.txt/x /", "error: /a.txt is not a directory\n"),
    ];
    for (line, expected) in cases {
        assert_eq!(
            run(&base(), &context(), &chain(&[line])),
            expected,
            "{line}"
        );
    }
}

#[test]
fn owners_and_modes() {
    insta::assert_snapshot!(run(&base(), &context(), &chain(&["chown=7:8 dir/sub /n/m"])), @r"
    d 755 7:8 now /n
    d 755 7:8 = /n/m
    f 640 7:8 = /n/m/y 4
    ");
    insta::assert_snapshot!(run(&base(), &context(), &chain(&["chown=app chmod=4711 dir /n/m/"])), @r"
    d 711 100:101 now /n
    d 711 100:101 = /n/m
    l 777 100:101 = /n/m/in -> ../a.txt
    d 4711 100:101 = /n/m/sub
    f 4711 100:101 = /n/m/sub/y 4
    f 4711 100:101 = /n/m/x 5
    ");
    let cases = [
        ("chown=app:staff a.txt /", "f 644 100:50 = /a.txt 3\n"),
        ("chown=app:0 a.txt /", "f 644 100:0 = /a.txt 3\n"),
        (
            "chown=9 a.txt /srv/sub/z",
            "i 700 5:6 = /srv\ni 700 5:6 = /srv/sub\nf 644 9:9 = /srv/sub/z 3\n",
        ),
        (
            "chmod=u=rwX,go=rX dir/sub /s",
            "d 755 0:0 = /s\nf 644 0:0 = /s/y 4\n",
        ),
        (
            "chmod=600 a.txt /n/f",
            "d 600 0:0 now /n\nf 600 0:0 = /n/f 3\n",
        ),
        (
            "chmod=a-w a.txt /n/f",
            "d 755 0:0 now /n\nf 444 0:0 = /n/f 3\n",
        ),
        (
            "time=77 a.txt /n/",
            "d 755 0:0 77 /n\nf 644 0:0 77 /n/a.txt 3\n",
        ),
        (
            "chmod=99 a.txt /",
            "error: invalid chmod parameter: \"99\": it should be an octal number up to 07777, or symbolic like u=rwX,go=rX\n",
        ),
        (
            "chown=ghost a.txt /",
            "f 644 0:0 = /a.txt 3\nnote: cannot find user \"ghost\": no such name in /etc/passwd\n",
        ),
    ];
    for (line, expected) in cases {
        assert_eq!(
            run(&base(), &context(), &chain(&[line])),
            expected,
            "{line}"
        );
    }
    // From a stage, owners are kept; names are those of the destination.
    let stage = tree(&[&[
        "d 750 3:4 d",
        "f 4755 3:4 d/suid s",
        "f 644 0:0 etc/passwd app:x:1:1:",
    ]]);
    assert_eq!(
        run(&base(), &stage, &chain(&["d /d"])),
        "d 755 0:0 = /d\nf 4755 3:4 = /d/suid 1\n"
    );
    assert_eq!(
        run(&base(), &stage, &chain(&["chown=app d/suid /"])),
        "f 4755 100:101 = /suid 1\n"
    );
}

#[test]
fn excluded() {
    let cases: &[(&str, &str)] = &[
        (
            "exclude=*.sh exclude=dir* exclude=d* exclude=[aq]* exclude=link* / /e",
            "d 755 0:0 now /e\nd 755 0:0 = /e/other\nf 644 0:0 = /e/other/z 4\n",
        ),
        (
            "exclude=**/y exclude=in dir /e",
            "d 755 0:0 = /e\nd 775 0:0 = /e/sub\nf 600 0:0 = /e/x 5\n",
        ),
        (
            "exclude=sub dir /e",
            "d 755 0:0 = /e\nl 777 0:0 = /e/in -> ../a.txt\nf 600 0:0 = /e/x 5\n",
        ),
        (
            "exclude=* exclude=!sub/y dir /e",
            "d 755 0:0 = /e\nd 775 0:0 = /e/sub\nf 640 0:0 = /e/sub/y 4\n",
        ),
        (
            "exclude=!sub exclude=x exclude=in dir /e",
            "d 755 0:0 = /e\nd 775 0:0 = /e/sub\nf 640 0:0 = /e/sub/y 4\n",
        ),
        // A source that is named is never excluded, nor is one that a wildcard finds.
        ("exclude=a.txt a.txt /e", "f 644 0:0 = /e 3\n"),
        ("exclude=*.sh *.sh /e", "f 755 0:0 = /e 3\n"),
        // Patterns are relative to the folder that is copied.
        (
            "exclude=dir/x dir/sub /e",
            "d 755 0:0 = /e\nf 640 0:0 = /e/y 4\n",
        ),
        (
            "exclude=[ dir /e",
            "error: invalid exclude pattern: syntax error in pattern \"[\"\n",
        ),
    ];
    for (line, expected) in cases {
        assert_eq!(
            run(&base(), &context(), &chain(&[line])),
            *expected,
            "{line}"
        );
    }
}

#[test]
fn parents() {
    let cases: &[(&str, &str)] = &[
        (
            "parents |dir/sub/y /p/",
            "d 755 0:0 now /p\nd 711 0:0 = /p/dir\nd 775 0:0 = /p/dir/sub\nf 640 0:0 = /p/dir/sub/y 4\n",
        ),
        (
            "parents |*/sub /p/",
            "d 755 0:0 now /p\nd 711 0:0 = /p/dir\nd 775 0:0 = /p/dir/sub\nf 640 0:0 = /p/dir/sub/y 4\n",
        ),
        (
            "parents dir|sub/* /p/",
            "d 755 0:0 = /p\nd 775 0:0 = /p/sub\nf 640 0:0 = /p/sub/y 4\n",
        ),
        (
            "parents |**/y /p/",
            "d 755 0:0 now /p\nd 711 0:0 = /p/dir\nd 775 0:0 = /p/dir/sub\nf 640 0:0 = /p/dir/sub/y 4\n",
        ),
        (
            "parents dir| /p/",
            "d 755 0:0 = /p\nl 777 0:0 = /p/in -> ../a.txt\nd 775 0:0 = /p/sub\nf 640 0:0 = /p/sub/y 4\nf 600 0:0 = /p/x 5\n",
        ),
        (
            "parents exclude=**/sub |dir /p/",
            "d 755 0:0 now /p\nd 711 0:0 = /p/dir\nl 777 0:0 = /p/dir/in -> ../a.txt\nf 600 0:0 = /p/dir/x 5\n",
        ),
        ("parents |nothing/* /p/", "d 755 0:0 now /p\n"),
        ("parents |dir/none /p/", "error: \"/dir/none\": not found\n"),
        (
            "parents chown=3:4 |other/z /p/",
            "d 755 3:4 now /p\nd 755 3:4 = /p/other\nf 644 3:4 = /p/other/z 4\n",
        ),
        ("parents |link.txt /", "l 777 0:0 = /link.txt -> a.txt\n"),
    ];
    for (line, expected) in cases {
        assert_eq!(
            run(&base(), &context(), &chain(&[line])),
            *expected,
            "{line}"
        );
    }
    // A folder on the way that is there keeps its owner and gets the source's mode.
    let srv = tree(&[&["d 755 1:1 srv", "f 644 1:1 srv/new n"]]);
    assert_eq!(
        run(&base(), &srv, &chain(&["parents |srv/new /"])),
        "d 755 5:6 = /srv\nf 644 1:1 = /srv/new 1\n"
    );
}

#[test]
fn special_files_and_hard_links() {
    let stage = tree(&[&[
        "h s/one A",
        "h s/two A",
        "h s/three B",
        "h elsewhere B",
        "p s/pipe",
        "c s/null",
        "d 2755 0:9 s/setgid",
        "f 6755 0:0 s/z z",
    ]]);
    insta::assert_snapshot!(run(&base(), &stage, &chain(&["s /s"])), @r"
    d 755 0:0 = /s
    c 666 0:0 = /s/null 1,3
    f 644 0:0 = /s/one 1 #1
    p 600 0:0 = /s/pipe
    d 2755 0:9 = /s/setgid
    f 644 0:0 = /s/three 1
    f 644 0:0 = /s/two 1 #1
    f 6755 0:0 = /s/z 1
    ");
    // Two sources are two copies; replacing one name leaves the others.
    assert_eq!(
        run(&base(), &stage, &chain(&["s/[ot]*e /t/"]))
            .matches('#')
            .count(),
        0
    );
    let links = chain(&["s /s", "s/z /s/one", "s /u"]);
    let ground = base();
    let (_, dir) = try_run(&ground, &stage, &links).unwrap();
    assert_eq!(
        crate::common::listing(&read_index(&dir).unwrap())
            .matches(" #")
            .count(),
        2
    );
}

#[test]
fn attributes() {
    let capability =
        b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let stage = with_xattr(
        tree(&[&["f 755 0:0 d/ping p"]]),
        "d/ping",
        "security.capability",
        capability,
    );
    let base = base();
    let (_, dir) = try_run(&base, &stage, &chain(&["chown=5:5 d/ping /"])).unwrap();
    let index = read_index(&dir).unwrap();
    assert_eq!(
        index.entries()[0].xattrs,
        [(b"security.capability".to_vec(), capability.to_vec())]
    );
    if rustix::process::geteuid().is_root() {
        let mut found = [0; 64];
        let length =
            rustix::fs::lgetxattr(dir.join("fs/ping"), "security.capability", &mut found).unwrap();
        assert_eq!(
            found[..length],
            *capability,
            "chown would have taken it away"
        );
    }
}

#[test]
fn layers_below() {
    // What was removed and comes back hides what was there.
    let base = tree(&[&["f 644 0:0 d/low low"], &["w d"]]);
    assert_eq!(
        run(&base, &context(), &chain(&["a.txt /d/"])),
        "d 755 0:0 now /d\nf 644 0:0 = /d/a.txt 3\n"
    );
    // Content comes from the layer that holds it.
    let stage = tree(&[
        &["f 644 0:0 d/a one", "f 644 0:0 d/b two"],
        &["i d", "f 600 0:0 d/b three"],
        &["i d", "l d/c a"],
    ]);
    assert_eq!(
        run(&base, &stage, &chain(&["d /n", "d/c /m"])),
        "f 644 0:0 = /m 3\nd 755 0:0 = /n\nf 644 0:0 = /n/a 3\nf 600 0:0 = /n/b 5\nl 777 0:0 = /n/c -> a\n"
    );
}

#[test]
fn selections() {
    let context = context();
    let paths = |line: &str| -> Vec<String> {
        let selected = selection(&copy(line), &context.view).unwrap();
        selected
            .into_iter()
            .map(|selected| {
                format!(
                    "{}{}",
                    selected.path,
                    if selected.is_file() { "" } else { "/" }
                )
            })
            .collect()
    };
    assert_eq!(paths("link.txt /"), ["/a.txt"]);
    assert_eq!(
        paths("exclude=x dir /"),
        ["/dir/", "/dir/in/", "/dir/sub/", "/dir/sub/y"]
    );
    assert_eq!(paths("*.sh /"), ["/run.sh"]);
    assert!(paths("none* /").is_empty());
    assert_eq!(
        selection(&copy("dir/sub /"), &context.view).unwrap()[1].path,
        LayerPath::clean("dir/sub/y")
    );
}

#[test]
fn keys() {
    let of = |line: &str, lines: &[&str]| key(&copy(line), &tree(&[lines])).unwrap();
    let plain: &[&str] = &["d 755 0:0 d", "f 644 0:0 d/f one", "l d/l f"];
    let same: &[(&str, &[&str])] = &[
        // What the copy does not read, or sets anyway.
        (
            "d /x",
            &[
                "d 755 0:0 d",
                "f 644 0:0 d/f one",
                "l d/l f",
                "f 644 0:0 e e",
            ],
        ),
        ("d /x", &["d 700 5:5 d", "f 644 0:0 d/f one", "l d/l f"]),
        (
            "chmod=644 d /x",
            &["d 755 0:0 d", "f 600 0:0 d/f one", "l d/l f"],
        ),
        (
            "chown=1 d /x",
            &["d 755 0:0 d", "f 644 7:8 d/f one", "l d/l f"],
        ),
    ];
    for (line, lines) in same {
        assert_eq!(of(line, plain), of(line, lines), "{line} {lines:?}");
    }
    let other: &[(&str, &[&str])] = &[
        ("d /x", &["d 755 0:0 d", "f 644 0:0 d/f two", "l d/l f"]),
        ("d /x", &["d 755 0:0 d", "f 600 0:0 d/f one", "l d/l f"]),
        ("d /x", &["d 755 0:0 d", "f 644 1:0 d/f one", "l d/l f"]),
        ("d /x", &["d 755 0:0 d", "f 644 0:0 d/g one", "l d/l f"]),
        ("d /x", &["d 755 0:0 d", "f 644 0:0 d/f one", "l d/l g"]),
        (
            "d /x",
            &[
                "d 755 0:0 d",
                "f 644 0:0 d/f one",
                "l d/l f",
                "d 755 0:0 d/e",
            ],
        ),
        (
            "chmod=u+x d /x",
            &["d 755 0:0 d", "f 600 0:0 d/f one", "l d/l f"],
        ),
        ("one d /x", &["d 700 0:0 d", "f 644 0:0 d/f one", "l d/l f"]),
    ];
    for (line, lines) in other {
        assert_ne!(of(line, plain), of(line, lines), "{line} {lines:?}");
    }
    assert_ne!(
        of("d /", &["h d/a A", "h d/b A"]),
        of("d /", &["f 644 0:0 d/a A", "f 644 0:0 d/b A"])
    );
    assert_eq!(
        of("d /", &["h d/a A", "h d/b A"]),
        of("d /", &["h d/a A", "h d/b A", "h c B", "h e B"])
    );
    // How a tree is made of layers does not count.
    let layered = tree(&[
        &["d 755 0:0 d", "f 644 0:0 d/f old", "f 644 0:0 d/gone x"],
        &["i d", "f 644 0:0 d/f one", "w d/gone", "l d/l f"],
    ]);
    assert_eq!(of("d /x", plain), key(&copy("d /x"), &layered).unwrap());
    assert!(key(&copy("gone /x"), &layered).is_err());
    assert_ne!(
        of("d/f /x", plain),
        of("d/g /x", &["f 644 0:0 d/g one"]),
        "the name may be the destination's"
    );
}
