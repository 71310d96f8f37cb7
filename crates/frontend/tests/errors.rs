//! What is refused, what is warned about, and that nothing panics.

mod common;

use std::fmt::Write as _;

use common::{World, error, error_with, image, options, show, warnings};
use kiln_frontend::{Context, Facts, SourceText, plan};
use proptest::prelude::*;

#[test]
fn refused() {
    let cases = [
        ("ARG X\nFROM $X", "2: base name ($X) should not be blank"),
        (
            "ARG TAGG\nFROM a:${TAG:?needed}",
            "2: failed to process \"a:${TAG:?needed}\": TAG: needed",
        ),
        (
            "FROM UPPER",
            "1: failed to parse stage name \"UPPER\": invalid reference format: repository name (UPPER) must be lowercase",
        ),
        (
            "FROM --platform=$NO x",
            "1: empty platform value from expression $NO",
        ),
        (
            "FROM --platform=a/b/c/d x",
            "1: failed to parse platform a/b/c/d: invalid platform \"a/b/c/d\": expected os/architecture or os/architecture/variant, such as linux/amd64",
        ),
        ("FROM a\nCOPY --from=3 x y", "2: invalid stage index 3"),
        (
            "FROM a\nARG S=b\nCOPY --from=$S x y",
            "3: variable expansion is not supported for --from, define a new stage with FROM using ARG from global scope as a workaround",
        ),
        (
            "FROM a AS a\nCOPY --from=a x y",
            "2: circular dependency detected on stage: a",
        ),
        (
            "FROM a AS a\nCOPY --from=b x y\nFROM a AS b\nCOPY --from=a x y",
            "2: circular dependency detected on stage: a",
        ),
        (
            "FROM x AS a\nRUN --mount=from=b,target=/m true\nFROM a AS b",
            "2: circular dependency detected on stage: a",
        ),
        (
            "FROM a\nCOPY https://x.y/z /z",
            "2: source can't be a URL for COPY",
        ),
        (
            "FROM a\nCOPY git@x.y:z.git /z",
            "2: source can't be a git ref for COPY",
        ),
        (
            "FROM a\nADD --checksum=sha256:1 x y",
            "2: checksum requires HTTP(S) or Git sources",
        ),
        (
            "FROM a\nADD --keep-git-dir https://x.y/z.git?keep-git-dir=0 /z",
            "2: inconsistent keep-git-dir configuration",
        ),
        (
            "FROM a\nCOPY --chmod=99 x y",
            "2: invalid chmod parameter: '99'. it should be octal string and between 0 and 07777",
        ),
        (
            "FROM a\nCOPY --chmod=rwx x y",
            "2: invalid chmod parameter: 'rwx'. it should be octal or symbolic (u=rwX,go=rX)",
        ),
        (
            "FROM a\nRUN --mount=type=tmpfs,target=/ x",
            "2: invalid mount target \"/\"",
        ),
        (
            "FROM a\nRUN --mount=type=cach,target=/a x",
            "2: unsupported mount type \"cach\" (did you mean cache?)",
        ),
        ("FROM a\nRUN []", "2: RUN has no command"),
        ("FROM a\nSTOPSIGNAL SIGNONE", "2: invalid signal: SIGNONE"),
        ("FROM a\nEXPOSE 70000", "2: invalid containerPort: 70000"),
        ("FROM a\nEXPOSE 80/tpc", "2: invalid proto: tpc"),
        (
            "FROM a\nWORKDIR ${x",
            "2: failed to process \"${x\": syntax error: missing '}'",
        ),
        (
            "# check=error=true\nFROM a\nMAINTAINER x",
            "lint violation found for rules: MaintainerDeprecated",
        ),
        (
            "# check=skp=x\nFROM a",
            "1: failed to parse check options: invalid check option \"skp\"",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(error(text), wanted, "{text:?}");
    }
}

/// A later stage can be named but not read.
#[test]
fn later_stages() {
    let text = "FROM a AS one\nCOPY --from=two x y\nFROM a AS two\n";
    let mut options = options();
    options.target = Some("one".to_owned());
    let wanted =
        "2: cannot copy from stage \"two\", it needs to be defined before current stage \"one\"";
    assert_eq!(error_with(text, &options), wanted);
    let text = text.replace("COPY --from=two x y", "RUN --mount=from=two,target=/t x");
    let wanted = "2: cannot mount from stage \"two\" to \"/t\", stage needs to be defined before current command";
    assert_eq!(error_with(&text, &options), wanted);
}

#[test]
fn targets() {
    let text = "FROM a AS build\nRUN 1\nFROM b\nRUN 2\n";
    let with = |target: &str| {
        let mut options = options();
        options.target = Some(target.to_owned());
        options
    };
    assert_eq!(
        error_with(text, &with("bulid")),
        "target stage \"bulid\" could not be found (did you mean build?)"
    );
    let (_, plan) = World::default().plan(text, &with("BUILD"));
    let plan = plan.unwrap();
    assert_eq!(
        (plan.stage.as_str(), plan.skipped),
        ("build", vec!["stage-1".to_owned()])
    );
    let (_, plan) = World::default().plan(text, &with("0"));
    assert_eq!(plan.unwrap().stage, "build");
}

/// Build arguments.
type Given<'a> = &'a [(&'a str, &'a str)];

#[test]
fn arguments_and_variables() {
    let env = |text: &str, given: &[(&str, &str)]| {
        let mut options = options();
        for (name, value) in given {
            options
                .build_args
                .insert((*name).to_owned(), (*value).to_owned());
        }
        World::default()
            .plan(text, &options)
            .1
            .unwrap()
            .config
            .config
            .env
            .join(" ")
    };
    let cases: [(&str, Given<'_>, &str); 10] = [
        ("FROM x\nARG A=1\nENV B=$A", &[], "B=1"),
        ("FROM x\nARG A=1\nENV B=$A", &[("A", "2")], "B=2"),
        ("FROM x\nENV B=$A", &[("A", "2")], "B="),
        ("ARG A=1\nFROM x\nENV B=$A", &[], "B="),
        ("ARG A=1\nFROM x\nARG A\nENV B=$A", &[], "B=1"),
        ("ARG A=1\nFROM x\nARG A=3\nENV B=$A", &[], "B=3"),
        ("FROM x AS y\nARG A=1\nFROM y\nENV B=$A", &[], "B=1"),
        (
            "FROM x\nENV A=1\nENV A=2 B=$A C=${A:+c}",
            &[],
            "A=2 B=1 C=c",
        ),
        (
            "FROM x\nARG TARGETARCH\nENV B=$TARGETARCH/$TARGETOS",
            &[],
            "B=amd64/",
        ),
        (
            "FROM x AS y\nARG A=1\nENV A=2\nFROM y\nENV B=$A",
            &[],
            "A=2 B=2",
        ),
    ];
    for (text, given, wanted) in cases {
        assert_eq!(env(text, given), format!("PATH=/bin {wanted}"), "{text:?}");
    }
}

#[test]
fn warned_about() {
    let cases = [
        (
            "ARG A\nFROM x:${AA:-1}",
            "2: UndefinedArgInFrom: FROM argument 'AA' is not declared (did you mean A?)",
        ),
        (
            "FROM --platform=$TARGETPLATFORM x",
            "1: RedundantTargetPlatform: Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior",
        ),
        (
            "FROM --platform=linux/amd64 x",
            "1: FromPlatformFlagConstDisallowed: FROM --platform flag should not use constant value \"linux/amd64\"",
        ),
        (
            "FROM x\nWORKDIR a",
            "2: WorkdirRelativePath: Relative workdir \"a\" can have unexpected results if the base image changes",
        ),
        (
            "FROM x\nENV PATHS=1\nLABEL a=$PATS",
            "3: UndefinedVar: Usage of undefined variable '$PATS' (did you mean $PATH?)",
        ),
        (
            "FROM x\nCMD a",
            "2: JSONArgsRecommended: JSON arguments recommended for CMD to prevent unintended behavior related to OS signals",
        ),
        (
            "FROM x\nCMD [\"a\"]\nCMD [\"b\"]",
            "2: MultipleInstructionsDisallowed: Multiple CMD instructions should not be used in the same stage because only the last one will be used",
        ),
        (
            "FROM x\nENV API_TOKEN=1",
            "2: SecretsUsedInArgOrEnv: Do not use ARG or ENV instructions for sensitive data (ENV \"API_TOKEN\")",
        ),
        (
            "FROM x\nCOPY debug.log /",
            "2: CopyIgnoredFile: Attempting to Copy file \"debug.log\" that is excluded by .dockerignore",
        ),
    ];
    for (text, wanted) in cases {
        assert_eq!(warnings(text), [wanted], "{text:?}");
    }
    let clean = [
        "FROM x\nARG A\nLABEL a=$A",
        "FROM x\nSHELL [\"/bin/bash\", \"-c\"]\nCMD a",
        "FROM x\nENV PUBLIC_KEY=1 MONKEY=2",
        "FROM --platform=linux/amd64 x AS for-amd64\nRUN y",
        "FROM x\nWORKDIR /a\nWORKDIR b",
        "FROM x\nCOPY *.log /",
        "# check=skip=JSONArgsRecommended\nFROM x\nCMD a",
        "# check=skip=all\nFROM x\nCMD a\nCMD b",
    ];
    for text in clean {
        assert!(warnings(text).is_empty(), "{text:?}: {:?}", warnings(text));
    }
}

#[test]
fn default_of_an_argument_in_from() {
    let mut options = options();
    options.build_args.insert("TAG".to_owned(), "1".to_owned());
    let plan = World::default()
        .plan("ARG TAG\nFROM x:$TAG", &options)
        .1
        .unwrap();
    assert_eq!(plan.warnings[0].rule.name(), "InvalidDefaultArgInFrom");
}

#[test]
fn base_of_another_platform() {
    let world = World {
        config: image(|_| {}),
    };
    let mut options = options();
    options.target_platform = kiln_image::Platform::new("linux", "arm64", "");
    // The world answers with the platform that was asked for.
    assert!(
        world
            .plan("FROM x\nRUN y", &options)
            .1
            .unwrap()
            .warnings
            .is_empty()
    );
}

#[test]
fn unknown_contexts_are_only_asked_for_when_used() {
    let mut options = options();
    options.contexts.insert(
        "never".to_owned(),
        Context::Image("bad reference".to_owned()),
    );
    assert!(World::default().plan("FROM x\nRUN y", &options).1.is_ok());
    let message = error_with("FROM never\nRUN y", &options);
    assert!(
        message.starts_with("1: invalid context name never:"),
        "{message}"
    );
}

#[test]
fn empty_image_as_base() {
    let world = World {
        config: image(|config| {
            config.rootfs.diff_ids.clear();
            config.history.clear();
        }),
    };
    let plan = world.plan("FROM empty\nENV a=b", &options()).1.unwrap();
    assert_eq!(plan.result, None);
    assert!(plan.graph.is_empty());
}

/// The result's layers and the history agree: as many lines with a layer as operations on the way.
#[test]
fn history_counts_layers() {
    let text = "FROM x\nWORKDIR /a\nWORKDIR /\nRUN y\nCOPY --link a b\nENV q=w\nADD c d\n";
    let plan = World::default().plan(text, &options()).1.unwrap();
    let layers = plan
        .config
        .history
        .iter()
        .filter(|line| !line.empty_layer)
        .count();
    assert_eq!(layers, 5, "base, WORKDIR /a, RUN, COPY, ADD");
    assert!(show(text).contains("history - WORKDIR /\n"));
}

/// Many stages and instructions take no more than a moment.
#[test]
fn large_files() {
    let mut text = "FROM x AS s0\n".to_owned();
    for stage in 1..500 {
        let before = stage - 1;
        writeln!(
            text,
            "FROM s{before} AS s{stage}\nENV V{stage}=1\nRUN step {stage}"
        )
        .unwrap();
        writeln!(text, "COPY --from=s{before} /a /b{stage}").unwrap();
    }
    let started = std::time::Instant::now();
    let plan = World::default().plan(&text, &options()).1.unwrap();
    assert_eq!(plan.graph.len(), 1 + 2 * 499);
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

fn instructions() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("FROM a AS a"),
        Just("FROM a"),
        Just("FROM scratch AS b"),
        Just("FROM b"),
        Just("FROM $X"),
        Just("ARG X=c"),
        Just("ARG X"),
        Just("ENV E=$X F=${X:-1}"),
        Just("RUN x $E"),
        Just("RUN --mount=from=b,target=y x"),
        Just("RUN <<E\n#!/bin/x\nE"),
        Just("RUN --mount=type=cache,target=$E x"),
        Just("COPY --from=a x y"),
        Just("COPY --from=b --link x y"),
        Just("COPY --from=0 x y"),
        Just("COPY x $X"),
        Just("COPY <<f /\n$E\nf"),
        Just("ADD https://x.y/$X z"),
        Just("ADD x.git#$E z"),
        Just("WORKDIR $E"),
        Just("USER $X"),
        Just("EXPOSE $E"),
        Just("VOLUME $X"),
        Just("ONBUILD COPY --from=a x y"),
        Just("ONBUILD RUN x"),
        Just("CMD x"),
        Just("SHELL [\"s\"]"),
        Just("ENTRYPOINT []"),
        Just("LABEL a=$E"),
        Just("STOPSIGNAL $X"),
        Just("HEALTHCHECK NONE"),
    ];
    proptest::collection::vec(line, 0..12).prop_map(|lines| format!("FROM q\n{}", lines.join("\n")))
}

proptest! {
    /// Whatever the file, planning ends, in the same plan each time, and all that is in the graph is needed.
    #[test]
    fn any_file(text in instructions()) {
        let world = World::default();
        let (rounds, first) = world.plan(&text, &options());
        prop_assert!(rounds.len() < 5);
        if let Ok(first) = first {
            let (_, second) = world.plan(&text, &options());
            prop_assert_eq!(common::render(&first), common::render(&second.unwrap()));
            let mut needed: Vec<bool> = vec![false; first.graph.len()];
            if let Some(result) = first.result {
                needed[result.op.0] = true;
            }
            for (id, op) in first.graph.ops().rev() {
                prop_assert!(needed[id.0], "{:?} is not needed", op.place.title);
                op.inputs.iter().for_each(|input| needed[input.op.0] = true);
            }
        }
    }

    #[test]
    fn any_text(text in "\\PC*") {
        let _ = plan(&SourceText::new("Dockerfile", text), &options(), &Facts::default());
    }
}

#[test]
fn another_frontend_by_argument() {
    let mut options = options();
    let name = "BUILDKIT_SYNTAX".to_owned();
    options.build_args.insert(name, "acme/builder".to_owned());
    let source = kiln_dockerfile::SourceText::new("Dockerfile", "FROM scratch\n");
    let refused = kiln_frontend::plan(&source, &options, &kiln_frontend::Facts::default());
    assert_eq!(
        refused.unwrap_err().message,
        "build argument BUILDKIT_SYNTAX: the frontend acme/builder cannot be used: Kiln reads Dockerfiles itself"
    );
}
