//! Lexer and parser: tables, and that they never panic.

use kiln_dockerfile::{
    Command, Dockerfile, Heredoc, Instruction, Kind, Lines, Mount, MountSharing, MountType,
    SourceText, Transfer, excerpt, parse, parse_trigger,
};
use proptest::prelude::*;

fn read(text: &str) -> Dockerfile {
    parse(&SourceText::new("Dockerfile", text))
        .unwrap_or_else(|error| panic!("{error} in {text:?}"))
}

/// The instructions after `FROM x`.
fn body(text: &str) -> Vec<Instruction> {
    read(&format!("FROM x\n{text}"))
        .stages
        .remove(0)
        .instructions
}

fn only(text: &str) -> Kind {
    let mut all = body(text);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0).kind
}

fn error(text: &str) -> String {
    match parse(&SourceText::new("Dockerfile", text)) {
        Ok(parsed) => panic!("no error in {text:?}: {parsed:?}"),
        Err(error) => error.to_string(),
    }
}

fn run_text(text: &str) -> String {
    match only(text) {
        Kind::Run(run) => match run.command {
            Command::Shell(text) => text,
            Command::Exec(args) => format!("{args:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn continuations_and_comments() {
    let cases = [
        ("RUN a", "a"),
        ("  RUN   a  b  ", "a  b"),
        ("RUN a \\\n  b", "a   b"),
        ("RUN a \\  \t\n  b", "a   b"),
        ("RUN a\\\nb", "ab"),
        ("RUN a \\\n# comment\n   # more\n b", "a  b"),
        ("RUN a \\\n\n b", "a  b"),
        ("RUN a # no comment", "a # no comment"),
        ("RUN a \\\\\n", "a \\\\"),
        ("RUN a \\", "a"),
        ("RUN a \\\r\n b\r\n", "a  b"),
        ("run\ta", "a"),
        ("RUN [\"a\", \"b c\"]", "[\"a\", \"b c\"]"),
        ("RUN [ \"a\" ", "[ \"a\""),
        ("RUN ['a']", "['a']"),
        ("RUN [\"a\"] b", "[\"a\"] b"),
    ];
    for (text, wanted) in cases {
        assert_eq!(run_text(text), wanted, "{text:?}");
    }
}

#[test]
fn lines() {
    let all = body("# about\nRUN a \\\n  b\n\n\nRUN <<E\nx\nE\nENV a=b");
    let lines: Vec<(u32, u32)> = all
        .iter()
        .map(|one| (one.lines.first, one.lines.last))
        .collect();
    assert_eq!(lines, [(3, 4), (7, 9), (10, 10)]);
    assert_eq!(all[0].comments, ["about"]);
    assert_eq!(all[1].original, "RUN <<E");
}

#[test]
fn directives() {
    let parsed = read(
        "\u{feff}# syntax = a/dockerfile:1 \n#escape=`\n# check=skip=all\nFROM x\nRUN a `\n b\\\n",
    );
    assert_eq!(
        (parsed.syntax.as_deref(), parsed.escape),
        (Some("a/dockerfile:1"), '`')
    );
    assert_eq!(parsed.check, Some(("skip=all".to_owned(), 3)));
    assert_eq!(parsed.stages[0].instructions[0].original, "RUN a  b\\");
    // After a comment, a blank line or an unknown key a directive is a comment.
    for start in ["# hello\n", "\n", "# key=value\n", "ARG x\n"] {
        assert_eq!(
            read(&format!("{start}# escape=`\nFROM x\n")).escape,
            '\\',
            "{start:?}"
        );
    }
    for image in [
        "docker/dockerfile",
        "docker/dockerfile:1.7-labs",
        "registry.corp:5000/mirror/docker/dockerfile-upstream:master@sha256:00",
        "",
    ] {
        read(&format!("# syntax={image}\nFROM x\n"));
    }
    for image in [
        "acme/builder",
        "dockerfile.io/acme:1",
        "docker/dockerfile/x",
    ] {
        assert_eq!(
            error(&format!("# syntax={image}\n{{}}")),
            format!(
                "dockerfile parse error on line 1: the frontend {image} cannot be used: Kiln reads Dockerfiles itself"
            )
        );
    }
    assert_eq!(
        error("# escape=x\nFROM x"),
        "dockerfile parse error on line 1: invalid escape token 'x' does not match ` or \\"
    );
    assert!(
        error("# escape=`\n# Escape=`\nFROM x")
            .contains("only one escape parser directive can be used")
    );
}

#[test]
fn stages() {
    let parsed =
        read("ARG A=1\nARG B\nFROM --platform=linux/arm64 a:$A AS Build\nRUN x\nfrom build\n");
    assert_eq!(parsed.global_args.len(), 2);
    let first = &parsed.stages[0];
    assert_eq!(
        (first.name.as_deref(), first.base.as_str()),
        (Some("build"), "a:$A")
    );
    assert_eq!(first.platform.as_deref(), Some("linux/arm64"));
    assert_eq!(parsed.stages[1].name, None);
}

#[test]
fn key_values() {
    let pairs = |text: &str| match only(text) {
        Kind::Env(pairs) | Kind::Label(pairs) => pairs
            .into_iter()
            .map(|pair| (pair.name, pair.value, pair.legacy))
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let pair = |name: &str, value: &str, legacy| (name.to_owned(), value.to_owned(), legacy);
    assert_eq!(
        pairs("ENV a=b c=\"d e\" f='g h' i=j\\ k"),
        [
            pair("a", "b", false),
            pair("c", "\"d e\"", false),
            pair("f", "'g h'", false),
            pair("i", "j\\ k", false),
        ]
    );
    assert_eq!(pairs("ENV a   b c = d"), [pair("a", "b c = d", true)]);
    assert_eq!(
        pairs("LABEL \"a b\"=c d="),
        [pair("\"a b\"", "c", false), pair("d", "", false)]
    );
    match only("ARG a b= c=\"d e\"") {
        Kind::Arg(args) => assert_eq!(
            args,
            [
                ("a".to_owned(), None),
                ("b".to_owned(), Some(String::new())),
                ("c".to_owned(), Some("\"d e\"".to_owned())),
            ]
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn heredocs() {
    let bodies = |text: &str| match only(text) {
        Kind::Run(run) => run.heredocs,
        Kind::Copy(copy) | Kind::Add(copy) => copy.heredocs,
        other => panic!("{other:?}"),
    };
    let one = |name: &str, body: &str| Heredoc {
        name: name.to_owned(),
        body: body.to_owned(),
        expand: true,
        strip_tabs: false,
        descriptor: None,
    };
    assert_eq!(
        bodies("RUN <<EOF\na\n# no comment\n\n b \\\nEOF"),
        [one("EOF", "a\n# no comment\n\n b \\\n")]
    );
    assert_eq!(
        bodies("RUN <<A cat >x && <<B cat\na\nA\nb\nB\n"),
        [one("A", "a\n"), one("B", "b\n")]
    );
    assert_eq!(bodies("RUN << EOF\na\nEOF"), [one("EOF", "a\n")]);
    assert_eq!(
        bodies("RUN 3<<E cat\na\nE"),
        [Heredoc {
            descriptor: Some(3),
            ..one("E", "a\n")
        }]
    );
    // As docker has it: quotes count, an escape does not.
    assert_eq!(bodies("RUN <<\\E\n$a\nE"), [one("E", "$a\n")]);
    for quoted in ["'E'", "\"E\"", "\"\"E"] {
        let wanted = Heredoc {
            expand: false,
            ..one("E", "$a\n")
        };
        assert_eq!(
            bodies(&format!("RUN <<{quoted}\n$a\nE")),
            [wanted],
            "{quoted}"
        );
    }
    let stripped = &bodies("RUN <<-E\n\t\ta\n\tb\n\tE\n")[0];
    assert_eq!(
        (stripped.strip_tabs, stripped.content().as_str()),
        (true, "a\nb\n")
    );
    assert_eq!(bodies("RUN <<E\r\na\r\nE\r\n")[0].body, "a\r\n");
    assert_eq!(
        bodies("COPY <<a <<b x /d/\n1\na\n2\nb\n"),
        [one("a", "1\n"), one("b", "2\n")]
    );
    assert_eq!(bodies("RUN <<$E\nx\n$E"), [one("$E", "x\n")]);
    // What only looks like one.
    for fake in [
        "RUN cat <<<x",
        "RUN echo '<<E'",
        "RUN echo \"<<E\"",
        "RUN a<<E",
        "RUN echo \\<<E",
        "RUN [\"<<E\"]",
        "CMD <<E",
    ] {
        let all = body(&format!("{fake}\nRUN true"));
        assert_eq!(all.len(), 2, "{fake}");
    }
    assert!(error("FROM x\nRUN <<E\nabc\n").contains("unterminated heredoc"));
    assert!(
        error("FROM x\nCOPY a <<E\nx\nE\n")
            .contains("COPY cannot accept a heredoc as a destination")
    );
}

#[test]
fn triggers() {
    let text = match only("ONBUILD  RUN <<E\nx\nE\n") {
        Kind::Onbuild(text) => text,
        other => panic!("{other:?}"),
    };
    assert_eq!(text, "RUN <<E\nx\nE");
    let parsed = parse_trigger(&text, Lines::one(7), "Dockerfile").unwrap();
    assert!(matches!(parsed.kind, Kind::Run(run) if run.heredocs[0].body == "x\n"));
    assert_eq!(parsed.lines, Lines::one(7));
    for bad in ["ONBUILD RUN x", "FROM x", "RUN a\nRUN b", "", "NONSENSE"] {
        assert!(
            parse_trigger(bad, Lines::one(7), "Dockerfile").is_err(),
            "{bad:?}"
        );
    }
}

#[test]
fn transfers() {
    let read = |text: &str| match only(text) {
        Kind::Copy(copy) | Kind::Add(copy) => copy,
        other => panic!("{other:?}"),
    };
    let copy = read(
        "COPY --from=a --chown=1:2 --chmod=644 --link --parents --exclude=a --exclude=\"b c\" x y /z",
    );
    let wanted = Transfer {
        sources: vec!["x".to_owned(), "y".to_owned()],
        destination: "/z".to_owned(),
        from: Some("a".to_owned()),
        chown: Some("1:2".to_owned()),
        chmod: Some("644".to_owned()),
        link: true,
        parents: true,
        exclude: vec!["a".to_owned(), "b c".to_owned()],
        ..Transfer::default()
    };
    assert_eq!(copy, wanted);
    let add = read("ADD --keep-git-dir=false --unpack --checksum=sha256:x u d");
    assert_eq!(
        (add.keep_git_dir, add.unpack, add.checksum.as_deref()),
        (Some(false), Some(true), Some("sha256:x"))
    );
    assert_eq!(read("COPY -- --odd /z").sources, ["--odd"]);
    assert!(!read("COPY --link=false a b").link);
}

#[test]
fn mounts() {
    let parse = |text: &str| Mount::parse(text, &mut |value| Ok(value.replace("$x", "X")));
    let bind = parse("target=/a$x,from=$x").unwrap();
    assert_eq!(
        (bind.target.as_str(), bind.from.as_deref(), bind.readonly),
        ("/aX", Some("$x"), true)
    );
    let cache = parse("TYPE=Cache,dst=/c,sharing=LOCKED,mode=0755,uid=1,gid=2,\"id=a,b\"").unwrap();
    assert_eq!(
        (cache.kind, cache.sharing, cache.readonly),
        (MountType::Cache, MountSharing::Locked, false)
    );
    assert_eq!(
        (cache.mode, cache.uid, cache.gid, cache.id.as_str()),
        (Some(0o755), Some(1), Some(2), "a,b")
    );
    assert_eq!(parse("type=tmpfs,target=/t,size=1.5k").unwrap().size, 1536);
    assert!(parse("type=secret,id=a,required").unwrap().required);
    assert!(!parse("target=/a,rw").unwrap().readonly);
    assert!(parse("type=cache,target=/a,ro").unwrap().readonly);
    let errors = [
        (
            "type=bnd",
            "unsupported mount type \"bnd\"",
            Some("did you mean bind?"),
        ),
        (
            "targt=/a",
            "unexpected key 'targt' in 'targt=/a'",
            Some("did you mean target?"),
        ),
        (
            "target",
            "invalid field 'target' must be a key=value pair",
            None,
        ),
        (
            "type=bind,required",
            "unexpected key 'required' for mount type 'bind'",
            None,
        ),
        (
            "type=bind,size=1",
            "unexpected key 'size' for mount type 'bind'",
            None,
        ),
        (
            "type=bind,mode=1",
            "mode not allowed for \"bind\" type mounts",
            None,
        ),
        (
            "type=secret",
            "invalid secret mount. one of source, target required",
            None,
        ),
        (
            "type=secret,id=a,src=b",
            "both source and id can't be set",
            None,
        ),
        (
            "type=secret,id=a,from=b",
            "secret mount should not have a from",
            None,
        ),
        (
            "target=/a,sharing=shared",
            "invalid cache sharing set for bind mount",
            None,
        ),
        (
            "type=cache,sharing=lockd",
            "unsupported sharing value \"lockd\"",
            Some("did you mean locked?"),
        ),
        ("target=/a,ro=maybe", "invalid value for ro: maybe", None),
        ("type=cache,mode=9", "invalid value 9 for mode", None),
        ("", "failed to parse csv mounts: EOF", None),
    ];
    for (text, message, hint) in errors {
        assert_eq!(
            parse(text).map_err(|wrong| (wrong.message, wrong.hint)),
            Err((message.to_owned(), hint.map(str::to_owned))),
            "{text}"
        );
    }
}

#[test]
fn errors() {
    let cases = [
        ("", "the Dockerfile cannot be empty"),
        ("# only a comment\n", "file with no instructions"),
        ("ARG x\n", "dockerfile contains no stages to build"),
        (
            "RUN x\nFROM y",
            "dockerfile parse error on line 1: no build stage in current context",
        ),
        (
            "FORM x",
            "dockerfile parse error on line 1: unknown instruction: FORM (did you mean FROM?)",
        ),
        (
            "FROM x\n\nFOOBAR y",
            "dockerfile parse error on line 3: unknown instruction: FOOBAR",
        ),
        (
            "FROM",
            "dockerfile parse error on line 1: FROM requires either one or three arguments",
        ),
        (
            "FROM a b c",
            "dockerfile parse error on line 1: FROM requires either one or three arguments",
        ),
        (
            "FROM a AS 1x",
            "dockerfile parse error on line 1: invalid name for build stage: \"1x\", name can't start with a number or contain symbols",
        ),
        (
            "FROM --platfrm=a x",
            "dockerfile parse error on line 1: unknown flag: --platfrm (did you mean --platform?)",
        ),
        (
            "FROM x\nCOPY --from=a --from=b c d",
            "dockerfile parse error on line 2: duplicate flag specified: --from",
        ),
        (
            "FROM x\nCOPY --from c d",
            "dockerfile parse error on line 2: missing a value on flag: --from",
        ),
        (
            "FROM x\nCOPY --link=x c d",
            "dockerfile parse error on line 2: expecting boolean value for flag --link, not: x",
        ),
        (
            "FROM x\nCOPY a",
            "dockerfile parse error on line 2: COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        (
            "FROM x\nENV a",
            "dockerfile parse error on line 2: ENV must have two arguments",
        ),
        (
            "FROM x\nENV a=b c",
            "dockerfile parse error on line 2: Syntax error - can't find = in \"c\". Must be of the form: name=value",
        ),
        (
            "FROM x\nENV =b",
            "dockerfile parse error on line 2: ENV names can not be blank",
        ),
        (
            "FROM x\nLABEL",
            "dockerfile parse error on line 2: LABEL requires at least one argument",
        ),
        (
            "FROM x\nCMD [1]",
            "dockerfile parse error on line 2: when using JSON array syntax, arrays must be comprised of strings only",
        ),
        (
            "FROM x\nSHELL /bin/sh -c",
            "dockerfile parse error on line 2: SHELL requires the arguments to be in JSON form",
        ),
        (
            "FROM x\nWORKDIR",
            "dockerfile parse error on line 2: WORKDIR requires exactly one argument",
        ),
        (
            "FROM x\nHEALTHCHECK NONE x",
            "dockerfile parse error on line 2: HEALTHCHECK NONE takes no arguments",
        ),
        (
            "FROM x\nHEALTHCHECK CMD",
            "dockerfile parse error on line 2: missing command after HEALTHCHECK CMD",
        ),
        (
            "FROM x\nHEALTHCHECK --interval=1us CMD x",
            "dockerfile parse error on line 2: interval \"interval\" cannot be less than 1ms",
        ),
        (
            "FROM x\nHEALTHCHECK --interval=1q CMD x",
            "dockerfile parse error on line 2: invalid duration \"1q\" on flag --interval",
        ),
        (
            "FROM x\nHEALTHCHECK --retries=-1 CMD x",
            "dockerfile parse error on line 2: --retries cannot be negative (-1)",
        ),
        (
            "FROM x\nONBUILD ONBUILD RUN x",
            "dockerfile parse error on line 2: Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed",
        ),
        (
            "FROM x\nONBUILD FROM y",
            "dockerfile parse error on line 2: FROM isn't allowed as an ONBUILD trigger",
        ),
        (
            "FROM x\nRUN --network=nnone y",
            "dockerfile parse error on line 2: network mode \"nnone\" is not valid, use one of default, none, host (did you mean none?)",
        ),
        (
            "FROM x\nRUN --mount=from=$a,target=/a y",
            "dockerfile parse error on line 2: 'from' doesn't support variable expansion, define alias stage instead",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(error(text), wanted, "{text:?}");
    }
    let long = format!("FROM x\nRUN {}", "a".repeat(65_535));
    assert!(
        error(&long).contains("line 2: dockerfile line greater than max allowed size of 65535")
    );
    assert_eq!(
        run_text(&format!("RUN {}", "a".repeat(65_531))).len(),
        65_531
    );
}

#[test]
fn excerpts() {
    let source = SourceText::new(
        "Dockerfile",
        "FROM a\n\nRUN one \\\n  two\nRUN three\nRUN four\nRUN five\n",
    );
    let rule = "--------------------";
    let wanted = format!(
        "Dockerfile:3\n{rule}\n   2 |     \n   3 | >>> RUN one \\\n   4 | >>>   two\n   5 |     RUN three\n{rule}\n"
    );
    assert_eq!(excerpt(&source, Lines { first: 3, last: 4 }), Some(wanted));
    let wanted = format!(
        "Dockerfile:1\n{rule}\n   1 | >>> FROM a\n   2 |     \n   3 |     RUN one \\\n{rule}\n"
    );
    assert_eq!(excerpt(&source, Lines::one(1)), Some(wanted));
    assert_eq!(excerpt(&source, Lines::one(9)), None);
}

/// Pieces that a Dockerfile is made of, in any order.
fn pieces() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        Just("FROM x AS y\n"),
        Just("RUN "),
        Just("<<E"),
        Just("<<-'E' "),
        Just("E\n"),
        Just("\n"),
        Just("\\\n"),
        Just("# c\n"),
        Just("# escape=`\n"),
        Just("`\n"),
        Just("COPY "),
        Just("--from=a "),
        Just("--mount=type=bind,"),
        Just("ENV a=b "),
        Just("\"q"),
        Just("'"),
        Just("[\"a\",\"b\"]"),
        Just("[1]"),
        Just("ONBUILD "),
        Just("ARG x=$y"),
        Just("HEALTHCHECK --interval=1s CMD x"),
        Just("\u{feff}"),
        Just("\r\n"),
        Just(" "),
        Just("é\u{2028}"),
        Just("\0"),
        Just("EXPOSE 1 2"),
        Just("--"),
        Just("3<<E"),
        Just("\t"),
    ];
    proptest::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
}

fn check_spans(text: &str) -> Result<(), TestCaseError> {
    let count = u32::try_from(text.lines().count()).unwrap();
    let within =
        |lines: Lines| 1 <= lines.first && lines.first <= lines.last && lines.last <= count;
    let source = SourceText::new("Dockerfile", text);
    match parse(&source) {
        Ok(parsed) => {
            let mut before = 0;
            for stage in &parsed.stages {
                prop_assert!(within(stage.lines));
                for lines in std::iter::once(stage.lines)
                    .chain(stage.instructions.iter().map(|one| one.lines))
                {
                    prop_assert!(
                        within(lines) && before < lines.first,
                        "{lines:?} of {count}"
                    );
                    before = lines.last;
                }
            }
            prop_assert!(parsed.warnings.iter().all(|warning| within(warning.lines)));
        }
        Err(error) => {
            if let Some(lines) = error.lines {
                prop_assert!(within(lines), "{lines:?} of {count}");
                prop_assert!(error.excerpt(&source).is_some());
            }
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn never_panics_on_pieces(text in pieces()) {
        check_spans(&text)?;
    }

    #[test]
    fn never_panics_on_bytes(bytes: Vec<u8>) {
        check_spans(&SourceText::new("Dockerfile", bytes).text)?;
    }

    #[test]
    fn mounts_never_panic(text in "[a-z=,\"/$.0-9]{0,40}") {
        let _ = Mount::parse(&text, &mut |value| Ok(value.to_owned()));
    }
}
