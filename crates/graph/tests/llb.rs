//! Graphs to LLB and back: what no Dockerfile makes, and damaged definitions. That every plan of a Dockerfile survives
//! is asserted where the frontend's tests make them.

use kiln_graph::llb::{self, Definition, LlbError, pb};
use kiln_graph::{
    CopyAction, Edge, ExecOp, FileAction, FileActionKind, FileInput, FileOp, Graph, Mount,
    MountKind, Network, Op, OpId, OpKind, Owner, Place, Security, Sharing, SourceOp, UserRef,
};
use kiln_image::Platform;
use proptest::prelude::*;
use prost::Message as _;

fn edge(op: OpId, output: u32) -> Edge {
    Edge { op, output }
}

fn op(kind: OpKind, inputs: &[Edge]) -> Op {
    Op {
        kind,
        inputs: inputs.to_vec(),
        platform: None,
        ignore_cache: false,
        place: Place::default(),
    }
}

fn mount(dest: &str, input: Option<usize>, output: Option<u32>, kind: MountKind) -> Mount {
    Mount {
        input,
        selector: "/sub".to_owned(),
        dest: dest.to_owned(),
        output,
        readonly: output.is_none(),
        kind,
    }
}

fn secret(env: Option<&str>, file: bool, mode: Option<u16>, uid: Option<u32>) -> MountKind {
    MountKind::Secret {
        id: "s".to_owned(),
        env: env.map(str::to_owned),
        file,
        mode,
        uid,
        gid: None,
        optional: true,
    }
}

fn exec() -> ExecOp {
    let cache = |sharing, mode, uid| MountKind::Cache {
        id: "c".to_owned(),
        sharing,
        mode,
        uid,
        gid: Some(0),
    };
    let ssh = MountKind::Ssh {
        id: "default".to_owned(),
        mode: Some(0o600),
        uid: Some(0),
        gid: None,
        optional: false,
    };
    ExecOp {
        args: vec!["sh".to_owned(), String::new()],
        env: vec!["A=1".to_owned(), "=".to_owned()],
        cwd: "/w".to_owned(),
        user: "u:g".to_owned(),
        hostname: "h".to_owned(),
        extra_hosts: vec![("a".to_owned(), "::1".to_owned())],
        network: Network::Host,
        security: Security::Insecure,
        proxy_env: vec!["HTTP_PROXY=p".to_owned(), "other=q".to_owned()],
        ulimits: vec![("core".to_owned(), 0, u64::MAX)],
        shm_size: 1 << 30,
        mounts: vec![
            mount("/", Some(0), Some(0), MountKind::Bind),
            mount("", None, None, secret(Some("ONLY"), false, None, Some(0))),
            mount("/c", Some(1), None, cache(Sharing::Private, Some(0), None)),
            mount("/l", None, None, cache(Sharing::Locked, None, Some(3))),
            mount("/dev/shm", None, None, MountKind::Tmpfs { size: 5 }),
            mount(
                "/b",
                None,
                None,
                secret(Some("BOTH"), true, Some(0o400), None),
            ),
            mount("/f", None, None, secret(None, true, Some(0o440), None)),
            mount("/n", None, None, secret(None, false, None, None)),
            mount("/ssh", None, None, ssh),
            mount("/out", Some(1), Some(4), MountKind::Bind),
        ],
    }
}

fn files() -> FileOp {
    let user = |input| UserRef::Name {
        name: "n".to_owned(),
        input,
    };
    let owner = |user, group| Some(Owner { user, group });
    let copy = |from, mode: Option<&str>, timestamp: Option<i64>| {
        FileActionKind::Copy(Box::new(CopyAction {
            from,
            src: "/a".to_owned(),
            dest: "/b/".to_owned(),
            owner: owner(Some(user(FileInput::Input(1))), Some(UserRef::Id(0))),
            mode: mode.map(str::to_owned),
            follow_symlinks: true,
            dir_copy_contents: timestamp.is_some(),
            attempt_unpack: true,
            create_dest_path: true,
            allow_wildcard: true,
            allow_empty_wildcard: true,
            include_patterns: vec!["i".to_owned()],
            exclude_patterns: vec!["e".to_owned(), String::new()],
            parents_pivot: mode.map(|_| String::new()),
            timestamp,
        }))
    };
    let from = Some(FileInput::Input(1));
    let kinds = [
        copy(from, None, None),
        copy(None, Some("0644"), Some(0)),
        copy(from, Some("644"), Some(-1)),
        copy(from, Some("u=rwX"), Some(i64::MAX)),
        copy(Some(FileInput::Scratch), Some(""), Some(i64::MIN)),
        copy(
            Some(FileInput::Action(2)),
            Some("177777"),
            Some(1_700_000_000),
        ),
        FileActionKind::MkFile {
            path: "/f".to_owned(),
            mode: 0o7777,
            data: vec![0, 255],
            owner: owner(None, None),
            timestamp: Some(i64::MAX),
        },
        FileActionKind::MkDir {
            path: "/d".to_owned(),
            mode: 0,
            make_parents: true,
            owner: owner(Some(user(FileInput::Action(0))), None),
            timestamp: None,
        },
        FileActionKind::Rm {
            path: "/r".to_owned(),
            allow_not_found: true,
            allow_wildcard: true,
        },
    ];
    let actions = kinds.into_iter().enumerate().map(|(at, kind)| FileAction {
        on: at
            .checked_sub(1)
            .map_or(FileInput::Input(0), FileInput::Action),
        output: at.checked_sub(6).map(|output| output as u32),
        kind,
    });
    FileOp {
        actions: actions.collect(),
    }
}

/// Something in every field.
fn full() -> (Graph, Edge) {
    let mut graph = Graph::default();
    let image = SourceOp::Image {
        reference: "docker.io/library/a:latest".to_owned(),
    };
    let base = Op {
        platform: Some(Platform::new("linux", "arm", "v7")),
        place: Place {
            title: "[a 1/2] FROM a".to_owned(),
            step: "FROM a".to_owned(),
            stage: "a".to_owned(),
            lines: Some((1, u32::MAX)),
        },
        ..op(OpKind::Source(image), &[])
    };
    let uncached = Op {
        ignore_cache: true,
        ..base.clone()
    };
    let base = edge(graph.add(base), 0);
    let uncached = edge(graph.add(uncached), 0);
    let git = |url: &str, checksum: Option<&str>| SourceOp::Git {
        url: url.to_owned(),
        keep_git_dir: checksum.is_some(),
        skip_submodules: checksum == Some(""),
        checkout_times: checksum == Some("abc"),
        checksum: checksum.map(str::to_owned),
    };
    let http = |mode: Option<u16>, owner| SourceOp::Http {
        url: "https://e.x/a#b".to_owned(),
        checksum: mode.map(|_| "sha256:1".to_owned()),
        filename: "a".to_owned(),
        mode,
        owner,
    };
    let local = |exclude: &[&str]| SourceOp::Local {
        name: "context".to_owned(),
        exclude: exclude.iter().map(|&line| line.to_owned()).collect(),
    };
    for source in [
        git("https://e.x/r.git", None),
        git("https://e.x/r.git#", Some("")),
        git("git@e.x:r.git#main:sub#dir", Some("abc")),
        http(None, None),
        http(Some(0o600), Some((0, 7))),
        local(&[]),
        local(&["!a\"", ""]),
        SourceOp::OciLayout {
            store: "s".to_owned(),
            reference: "r@sha256:1".to_owned(),
        },
    ] {
        graph.add(op(OpKind::Source(source), &[]));
    }
    let exec = edge(
        graph.add(op(OpKind::Exec(Box::new(exec())), &[base, uncached])),
        4,
    );
    let file = edge(graph.add(op(OpKind::File(files()), &[exec, base])), 1);
    graph.add(op(OpKind::Merge, &[]));
    let merge = edge(graph.add(op(OpKind::Merge, &[file, exec, file])), 0);
    let diff = OpKind::Diff {
        lower: None,
        upper: Some(1),
    };
    let target = edge(graph.add(op(diff, &[base, merge])), 0);
    (graph, target)
}

fn full_definition() -> Definition {
    let (graph, target) = full();
    llb::to_definition(&graph, target)
}

#[test]
fn every_field_comes_back() {
    let (graph, target) = full();
    let bytes = llb::encode(&full_definition());
    let read = llb::from_definition(&llb::decode(&bytes).unwrap()).unwrap();
    assert_eq!(read, (graph, target));
}

#[test]
fn the_bytes_are_always_the_same() {
    let first = llb::encode(&full_definition());
    for _ in 0..20 {
        assert_eq!(llb::encode(&full_definition()), first);
    }
}

#[test]
fn what_buildkit_reads_is_where_it_looks() {
    let definition = full_definition();
    let ops: Vec<pb::Op> = definition
        .def
        .iter()
        .map(|bytes| pb::Op::decode(bytes.as_slice()).unwrap())
        .collect();
    let end = ops.last().unwrap();
    assert!(end.kind.is_none() && end.inputs.len() == 1);
    let known: Vec<&String> = definition.metadata.keys().collect();
    for input in ops.iter().flat_map(|op| &op.inputs) {
        assert!(known.contains(&&input.digest), "named by its digest");
    }
    let exec = ops.iter().find_map(|op| match &op.kind {
        Some(pb::Kind::Exec(exec)) => Some(exec),
        _ => None,
    });
    let exec = exec.unwrap();
    let names: Vec<&str> = exec.secretenv.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["ONLY", "BOTH", ""]);
    assert!(exec.mounts.iter().all(|mount| !mount.dest.is_empty()));
    let shm = exec.mounts.last().unwrap();
    assert_eq!(
        (shm.dest.as_str(), shm.tmpfs_opt.unwrap().size),
        ("/dev/shm", 1 << 30)
    );
    assert_eq!(exec.meta.as_ref().unwrap().ulimit[0].hard, -1);
}

/// A definition of these operations and a target that takes the last of them.
fn definition(ops: &[pb::Op]) -> Definition {
    let mut def: Vec<Vec<u8>> = ops.iter().map(prost::Message::encode_to_vec).collect();
    let digest = digest(def.last().unwrap());
    let inputs = vec![pb::Input { digest, index: 0 }];
    let end = pb::Op {
        inputs,
        ..pb::Op::default()
    };
    def.push(end.encode_to_vec());
    Definition {
        def,
        ..Definition::default()
    }
}

fn digest(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    kiln_image::Digest::new(sha2::Sha256::digest(bytes).into()).to_string()
}

fn refused(definition: &Definition) -> String {
    llb::from_definition(definition).unwrap_err().to_string()
}

fn image() -> pb::Op {
    let source = pb::SourceOp {
        identifier: "docker-image://a".to_owned(),
        ..pb::SourceOp::default()
    };
    pb::Op {
        kind: Some(pb::Kind::Source(source)),
        ..pb::Op::default()
    }
}

#[test]
fn hints_are_passed_over_other_attributes_are_not() {
    let with = |name: &str| {
        let mut op = image();
        if let Some(pb::Kind::Source(source)) = &mut op.kind {
            source.attrs.insert(name.to_owned(), "x".to_owned());
        }
        definition(&[op])
    };
    assert!(llb::from_definition(&with("image.resolvemode")).is_ok());
    assert_eq!(
        refused(&with("image.layerlimit")),
        "operation 0 uses the attribute image.layerlimit, which is not supported"
    );
}

#[test]
fn damaged_definitions_are_refused() {
    assert_eq!(
        llb::from_definition(&Definition::default()),
        Err(LlbError::Empty)
    );

    let good = definition(&[image()]);
    assert!(llb::from_definition(&good).is_ok());

    let mut headless = good.clone();
    headless.def.pop();
    assert_eq!(llb::from_definition(&headless), Err(LlbError::NoTarget));

    let mut missing = good.clone();
    missing.def.remove(0);
    assert!(matches!(
        llb::from_definition(&missing),
        Err(LlbError::Missing { op: 0, .. })
    ));

    // A cycle cannot be made of digests; an operation before its input is as near as one gets.
    let merge = pb::Op {
        inputs: vec![pb::Input {
            digest: digest(&image().encode_to_vec()),
            index: 0,
        }],
        kind: Some(pb::Kind::Merge(pb::MergeOp {
            inputs: vec![pb::InputNumber { input: 0 }],
        })),
        ..pb::Op::default()
    };
    assert!(llb::from_definition(&definition(&[image(), merge.clone()])).is_ok());
    assert!(refused(&definition(&[merge.clone(), image()])).contains("no operation before it"));

    let mut output = merge.clone();
    output.inputs[0].index = 1;
    assert!(refused(&definition(&[image(), output])).contains("takes output 1 of"));

    let mut beyond = merge;
    beyond.kind = Some(pb::Kind::Diff(pb::DiffOp {
        lower: Some(pb::InputNumber { input: 1 }),
        upper: None,
    }));
    assert_eq!(
        refused(&definition(&[image(), beyond])),
        "operation 1 has the input \"1\", which is invalid"
    );

    let nested = pb::Op {
        kind: Some(pb::Kind::Build(pb::BuildOp {})),
        ..pb::Op::default()
    };
    assert!(refused(&definition(&[nested])).contains("a build within the build"));

    assert_eq!(
        refused(&definition(&[pb::Op::default()])),
        "operation 0 has no known kind"
    );

    let mut unknown = good;
    // Field 100 of the operation, a number: dropped by the decoder.
    unknown.def[0].extend([0xa0, 0x06, 0x01]);
    assert!(refused(&unknown).contains("fields that are not known"));
}

proptest! {
    #[test]
    fn bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(definition) = llb::decode(&bytes) {
            let _ = llb::from_definition(&definition);
        }
        let _ = llb::from_definition(&Definition { def: vec![bytes], ..Definition::default() });
    }

    #[test]
    fn damage_never_panics(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = llb::encode(&full_definition());
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(definition) = llb::decode(&bytes) {
            let _ = llb::from_definition(&definition);
        }
    }

    #[test]
    fn what_is_cut_off_is_missed(at in any::<prop::sample::Index>()) {
        let bytes = llb::encode(&full_definition());
        // The end holds places and metadata, without which a graph is whole; the operations come first.
        let ops: usize = full_definition().def.iter().map(|op| op.len() + 2).sum();
        let cut = &bytes[..at.index(ops)];
        let read = llb::decode(cut).and_then(|definition| llb::from_definition(&definition));
        prop_assert!(read.is_err());
    }

    /// Damage inside one operation, with all digests made right again, so that it is not noticed by them.
    #[test]
    fn a_damaged_operation_never_panics(
        which in any::<prop::sample::Index>(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
    ) {
        let ops = full_definition().def;
        let which = which.index(ops.len() - 1);
        let mut renamed: Vec<(String, String)> = Vec::new();
        let mut def = Vec::new();
        for (number, bytes) in ops.iter().enumerate() {
            let mut op = pb::Op::decode(bytes.as_slice()).unwrap();
            for input in &mut op.inputs {
                if let Some((_, new)) = renamed.iter().find(|(old, _)| *old == input.digest) {
                    input.digest.clone_from(new);
                }
            }
            let mut now = op.encode_to_vec();
            if number == which {
                let at = at.index(now.len());
                now[at] = byte;
            }
            renamed.push((digest(bytes), digest(&now)));
            def.push(now);
        }
        let _ = llb::from_definition(&Definition { def, ..Definition::default() });
    }
}
