//! What is in a key, operation by operation. A change here makes everybody's cache miss: on purpose or not at all.

use kiln_graph::{Edge, Network, OpId, Owner, Place, Security, UserRef};
use kiln_image::Platform;

use super::*;

/// Inputs of which the whole is known by their number, and, from number 1 on, what is read of them.
struct Numbered;

impl InputKeys for Numbered {
    fn whole(&self, input: usize) -> Option<Key> {
        Some(Key::new([input as u8; 32]))
    }

    fn selected(&self, input: usize, copy: &CopyAction) -> Result<Option<Key>, KeyError> {
        Ok((input > 0).then(|| {
            let mut bytes = [0xf0 + input as u8; 32];
            bytes[0] = copy.src.len() as u8;
            Key::new(bytes)
        }))
    }
}

fn shown(kind: OpKind, inputs: usize, identity: Option<&str>) -> String {
    let op = Op {
        kind,
        inputs: (0..inputs)
            .map(|input| Edge {
                op: OpId(input),
                output: 0,
            })
            .collect(),
        platform: Some(Platform::new("linux", "amd64", "")),
        ignore_cache: false,
        place: Place::default(),
    };
    let parts = parts(&op, identity, &Numbered).unwrap().unwrap();
    let mut text = String::new();
    for (name, value) in parts.as_slice() {
        let value = match std::str::from_utf8(value) {
            Ok(value) if !value.contains(|it: char| it.is_control()) => value.to_owned(),
            _ => format!("<{:02x} {:02x} ...>", value[0], value[1]),
        };
        text.extend([name, " = ", &value, "\n"]);
    }
    text
}

fn bind(input: usize, dest: &str, selector: &str) -> Mount {
    Mount {
        input: Some(input),
        selector: selector.to_owned(),
        dest: dest.to_owned(),
        output: (dest == "/").then_some(0),
        readonly: dest != "/",
        kind: MountKind::Bind,
    }
}

fn exec() -> ExecOp {
    ExecOp {
        args: ["/bin/sh", "-c", "make"].map(str::to_owned).to_vec(),
        env: vec!["PATH=/bin".to_owned(), "VERSION=1".to_owned()],
        cwd: "/w".to_owned(),
        user: "app".to_owned(),
        hostname: "host".to_owned(),
        extra_hosts: vec![("mirror".to_owned(), "10.0.0.1".to_owned())],
        network: Network::Default,
        security: Security::Sandbox,
        proxy_env: vec!["http_proxy=http://proxy".to_owned()],
        ulimits: vec![("nofile".to_owned(), 1, 2)],
        shm_size: 1 << 20,
        mounts: vec![bind(0, "/", "/"), bind(1, "/m", "/deep/src")],
    }
}

fn exec_with(change: impl FnOnce(&mut ExecOp)) -> String {
    let mut exec = exec();
    change(&mut exec);
    shown(OpKind::Exec(Box::new(exec)), 2, None)
}

#[test]
fn of_a_process() {
    insta::assert_snapshot!(exec_with(|_| ()));
}

#[test]
fn what_does_not_count_of_a_process() {
    let usual = exec_with(|_| ());
    let cache = |id: &str| Mount {
        input: None,
        kind: MountKind::Cache {
            id: id.to_owned(),
            sharing: kiln_graph::Sharing::Shared,
            mode: None,
            uid: None,
            gid: None,
        },
        ..bind(0, "/cache", "")
    };
    for (what, same) in [
        ("proxies", exec_with(|it| it.proxy_env.clear())),
        (
            "addresses",
            exec_with(|it| it.extra_hosts[0].1 = "::1".to_owned()),
        ),
        ("shared memory", exec_with(|it| it.shm_size = 0)),
        // As long as it is called the same: how long the path is stands for what is read.
        (
            "where mounted files lie",
            exec_with(|it| it.mounts[1].selector = "/peed/src".to_owned()),
        ),
    ] {
        assert_eq!(same, usual, "{what}");
    }
    let with_cache = |id: &str| exec_with(|it| it.mounts.push(cache(id)));
    assert_eq!(with_cache("a"), with_cache("b"));
    assert_ne!(with_cache("a"), usual);
}

#[test]
fn what_counts_of_a_process() {
    let usual = exec_with(|_| ());
    for (what, other) in [
        ("arguments", exec_with(|it| it.args[2].push('x'))),
        ("variables", exec_with(|it| it.env[1].push('x'))),
        ("their order", exec_with(|it| it.env.swap(0, 1))),
        ("folder", exec_with(|it| it.cwd.push('x'))),
        ("user", exec_with(|it| it.user.push('x'))),
        ("host name", exec_with(|it| it.hostname.push('x'))),
        (
            "names of hosts",
            exec_with(|it| it.extra_hosts[0].0.push('x')),
        ),
        ("network", exec_with(|it| it.network = Network::None)),
        ("security", exec_with(|it| it.security = Security::Insecure)),
        ("limits", exec_with(|it| it.ulimits[0].2 = 3)),
        ("mounts", exec_with(|it| it.mounts[1].dest.push('x'))),
        ("read-only", exec_with(|it| it.mounts[1].readonly = false)),
        (
            "what is mounted",
            exec_with(|it| it.mounts[1].selector.push('x')),
        ),
        ("whence", exec_with(|it| it.mounts[1].input = Some(0))),
    ] {
        assert_ne!(other, usual, "{what}");
    }
}

fn copy(from: usize) -> CopyAction {
    CopyAction {
        from: Some(FileInput::Input(from)),
        src: "/deep/src".to_owned(),
        dest: "/to/".to_owned(),
        mode: Some("0755".to_owned()),
        owner: Some(Owner {
            user: Some(UserRef::Id(1)),
            group: None,
        }),
        ..CopyAction::default()
    }
}

fn copied_with(from: usize, change: impl FnOnce(&mut CopyAction)) -> String {
    let mut copy = copy(from);
    change(&mut copy);
    let actions = vec![FileAction {
        on: FileInput::Input(0),
        output: Some(0),
        kind: FileActionKind::Copy(Box::new(copy)),
    }];
    shown(OpKind::File(FileOp { actions }), 2, None)
}

#[test]
fn of_a_copy() {
    insta::assert_snapshot!(copied_with(1, |_| ()));
    insta::assert_snapshot!("of_a_copy_whole", copied_with(0, |_| ()));
}

#[test]
fn of_sources() {
    let image = |name: &str| {
        let reference = format!("{name}@sha256:{}", "5".repeat(64));
        shown(OpKind::Source(SourceOp::Image { reference }), 0, None)
    };
    assert_eq!(
        image("a:1"),
        image("registry/b:2"),
        "the name does not count"
    );
    insta::assert_snapshot!(image("a:1"));
    let http = |url: &str| {
        let source = SourceOp::Http {
            url: url.to_owned(),
            checksum: None,
            filename: "f".to_owned(),
            mode: Some(0o600),
            owner: None,
        };
        shown(OpKind::Source(source), 0, Some("sha256:6"))
    };
    assert_eq!(
        http("http://a/f"),
        http("http://b/f"),
        "nor does the address"
    );
    insta::assert_snapshot!("of_http", http("http://a/f"));
    insta::assert_snapshot!("of_merge", shown(OpKind::Merge, 2, None));
    let diff = OpKind::Diff {
        lower: Some(0),
        upper: Some(1),
    };
    insta::assert_snapshot!("of_diff", shown(diff, 2, None));
}
