//! What the checks find. `checks.txt` holds what docker says; the same cases go through the real binary and docker in
//! the tests of the whole.

mod common;

use std::collections::BTreeSet;

use common::{image, options};
use kiln_dockerfile::Rule;
use kiln_frontend::{Facts, ImageFact, Need, Options, SourceText, Warning, check};
use kiln_image::Digest;

/// A case of `checks.txt`.
struct Case {
    options: Options,
    ignore: Vec<String>,
    text: String,
    wanted: Vec<String>,
}

/// Reads `=== SETTING...`, the Dockerfile, `---`, what is found; after `-` what only docker says, after `+` what only
/// Kiln says.
fn cases(text: &str) -> Vec<Case> {
    let mut cases = Vec::new();
    for case in text.split("===").skip(1) {
        let (head, rest) = case.split_once('\n').unwrap();
        let (dockerfile, wanted) = rest.split_once("---\n").unwrap();
        let mut case = Case {
            options: options(),
            ignore: Vec::new(),
            text: dockerfile.to_owned(),
            wanted: wanted
                .trim()
                .lines()
                .filter(|line| !line.starts_with("- "))
                .map(|line| line.strip_prefix("+ ").unwrap_or(line).to_owned())
                .collect(),
        };
        for setting in head.split_whitespace() {
            match setting.split_once('=') {
                Some(("ignore", list)) => {
                    let lines = list.replace(',', "\n");
                    case.ignore = kiln_source::ignore::parse(lines.as_bytes());
                }
                Some(("build-arg", pair)) => {
                    let (name, value) = pair.split_once('=').unwrap();
                    let args = &mut case.options.build_args;
                    args.insert(name.to_owned(), value.to_owned());
                }
                Some(("target", name)) => case.options.target = Some(name.to_owned()),
                _ => {}
            }
        }
        cases.push(case);
    }
    cases
}

/// What is found, with the error at the end.
fn found(text: &str, options: &Options, ignore: &[String], unknown: bool) -> Vec<String> {
    let source = SourceText::new("Dockerfile", text);
    let mut facts = Facts::default();
    let mut warnings = Vec::new();
    let error = loop {
        match check(&source, options, &facts, &mut warnings) {
            Ok(needs) if needs.is_empty() => break None,
            Ok(needs) => {
                for need in needs {
                    answer(need, ignore, unknown, &mut facts);
                }
            }
            Err(error) => break Some(error),
        }
    };
    let place = |first: u32, last: u32| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    };
    let line = |found: &Warning| {
        let place = place(found.lines.first, found.lines.last);
        format!("{place} {}: {}", found.rule.name(), found.message)
    };
    let mut lines: Vec<String> = warnings.iter().map(line).collect();
    lines.extend(error.map(|error| {
        let place = error
            .lines
            .map(|lines| place(lines.first, lines.last) + " ");
        format!("{}ERROR: {error}", place.unwrap_or_default())
    }));
    lines
}

/// All images are the same one, for amd64.
fn answer(need: Need, ignore: &[String], unknown: bool, facts: &mut Facts) {
    match need {
        Need::ImageConfig {
            reference,
            platform,
            ..
        } => {
            if unknown {
                facts.unknown.insert(reference.clone());
            }
            let fact = ImageFact {
                digest: Digest::new([0xab; 32]),
                config: image(|_| {}),
            };
            facts.images.insert((reference, platform), fact);
        }
        Need::IgnoreFile { context } => {
            facts.ignore.insert(context, ignore.to_vec());
        }
    }
}

#[test]
fn as_docker_says() {
    let mut wrong = Vec::new();
    let mut seen = BTreeSet::new();
    let cases = cases(include_str!("checks.txt"));
    for case in &cases {
        let found = found(&case.text, &case.options, &case.ignore, false);
        // Kiln's own rules are not docker's.
        let found: Vec<String> = found
            .into_iter()
            .filter(|line| !line.contains(" Kiln"))
            .map(|line| line.trim_end().to_owned())
            .collect();
        for line in &found {
            seen.extend(line.split([' ', ':']).nth(1).map(str::to_owned));
        }
        if found != case.wanted {
            wrong.push(format!(
                "{}Kiln:   {found:#?}\ndocker: {:#?}",
                case.text, case.wanted
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    for rule in Rule::ALL.iter().filter(|rule| !rule.is_own()) {
        assert!(seen.contains(rule.name()), "no case for {}", rule.name());
    }
}

/// Without knowing the bases nothing is said that depends on them, and nothing fails.
#[test]
fn unknown_bases() {
    let text = "FROM some AS a\nENV x=$y\nWORKDIR r\nFROM --platform=linux/arm64 other AS arm64\nLABEL l=$z\nFROM scratch\nLABEL l=$z\n";
    let mut options = options();
    options.build_args.insert("X".to_owned(), "1".to_owned());
    let wanted = [
        "3 WorkdirRelativePath: Relative workdir \"r\" can have unexpected results if the base image changes",
        "7 UndefinedVar: Usage of undefined variable '$z'",
    ];
    assert_eq!(found(text, &options, &[], true), wanted);
    assert_eq!(found(text, &options, &[], false).len(), 6);
}

/// Kiln's own rules.
#[test]
fn own_rules() {
    let finds = [
        // (Dockerfile after FROM, line and rule)
        ("RUN <<EOF\na\nb\nEOF", "2-5 KilnHeredocWithoutSetE"),
        ("RUN <<EOF bash\na\nb\nEOF", "2-5 KilnHeredocWithoutSetE"),
        (
            "RUN <<EOF\n#!/bin/bash\na\nb\nEOF",
            "2-6 KilnHeredocWithoutSetE",
        ),
        (
            "RUN <<EOF\n#!/usr/bin/env sh\na\nb\nEOF",
            "2-6 KilnHeredocWithoutSetE",
        ),
        (
            "SHELL [\"/bin/bash\", \"-o\", \"pipefail\", \"-c\"]\nRUN <<EOF\na\nb\nEOF",
            "3-6 KilnHeredocWithoutSetE",
        ),
        (
            "ENV A=ghp_aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
            "2 KilnSecretValue",
        ),
        ("ARG A=AKIAABCDEFGHIJKLMNOP", "2 KilnSecretValue"),
        (
            "LABEL a=xoxb-123456789012-123456789012",
            "2 KilnSecretValue",
        ),
        (
            "RUN echo '-----BEGIN OPENSSH PRIVATE KEY-----' > /k",
            "2 KilnSecretValue",
        ),
        (
            "RUN cat <<EOF >/k\n-----BEGIN PRIVATE KEY-----\nEOF",
            "2-4 KilnSecretValue",
        ),
        ("COPY . .\nRUN npm ci", "2 KilnCopyBeforeInstall"),
        (
            "COPY . /app/\nRUN cd /app && npm install --omit=dev",
            "2 KilnCopyBeforeInstall",
        ),
        (
            "ADD ./ /app\nRUN pip install --no-cache-dir -r requirements.txt",
            "2 KilnCopyBeforeInstall",
        ),
        (
            "COPY . .\nRUN [\"go\", \"mod\", \"download\"]",
            "2 KilnCopyBeforeInstall",
        ),
        (
            "COPY . .\nRUN CARGO_INCREMENTAL=0 cargo build --release",
            "2 KilnCopyBeforeInstall",
        ),
        ("COPY . .\nRUN mvn -B package", "2 KilnCopyBeforeInstall"),
        ("COPY . .\nRUN bundle install", "2 KilnCopyBeforeInstall"),
        (
            "COPY . .\nRUN composer install --no-dev",
            "2 KilnCopyBeforeInstall",
        ),
        ("COPY . .\nRUN uv sync --frozen", "2 KilnCopyBeforeInstall"),
        ("COPY . .\nRUN yarn", "2 KilnCopyBeforeInstall"),
    ];
    for (text, wanted) in finds {
        let found = found(&format!("FROM x\n{text}\n"), &options(), &[], false);
        let own: Vec<&String> = found.iter().filter(|line| line.contains(" Kiln")).collect();
        assert_eq!(own.len(), 1, "{text:?}: {found:?}");
        assert!(
            own[0].starts_with(&format!("{wanted}: ")),
            "{text:?}: {found:?}"
        );
    }
    let clean = [
        "RUN <<EOF\nset -e\na\nb\nEOF",
        "RUN <<EOF\nset -euxo pipefail\na\nb\nEOF",
        "RUN <<EOF\nset -o errexit\na\nb\nEOF",
        "RUN <<EOF\na\nEOF",
        "RUN <<EOF\na && \\\n b\nEOF",
        "RUN <<EOF\na &&\nb\nEOF",
        "RUN <<EOF\n#!/usr/bin/env python3\na\nb\nEOF",
        "RUN <<EOF\n#!/bin/sh -e\na\nb\nEOF",
        "RUN python3 <<EOF\na\nb\nEOF",
        "RUN bash -e <<EOF\na\nb\nEOF",
        "RUN cat <<EOF >/f\na\nb\nEOF",
        "RUN <<EOF\nif a; then\n b\n c\nfi\nEOF",
        "SHELL [\"/bin/bash\", \"-euo\", \"pipefail\", \"-c\"]\nRUN <<EOF\na\nb\nEOF",
        "SHELL [\"/usr/bin/python3\", \"-c\"]\nRUN <<EOF\na\nb\nEOF",
        "COPY <<EOF /f\na\nb\nEOF",
        "ENV A=ghp_short B=AKIAIOSFODNN7EXAMPLE",
        "LABEL a=sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "ENV TASKIAABCDEFGHIJKLMNOPQ=1",
        "COPY package.json package-lock.json ./\nRUN npm ci\nCOPY . .\nRUN npm run build",
        "COPY go.mod go.sum ./\nRUN go mod download\nCOPY . .\nRUN go mod download && go build",
        "COPY . .\nRUN --mount=type=cache,target=/root/.npm npm ci",
        "COPY src .\nRUN npm ci",
        "COPY --from=build . .\nRUN npm ci",
        "COPY . .\nRUN yarn build",
        "COPY . .\nRUN pip install .",
        "RUN npm ci\nCOPY . .",
    ];
    for text in clean {
        let found = found(
            &format!("FROM x AS build\nFROM x\n{text}\n"),
            &options(),
            &[],
            false,
        );
        assert!(
            !found.iter().any(|line| line.contains(" Kiln")),
            "{text:?}: {found:?}"
        );
    }
}

#[test]
fn unused_build_arguments() {
    let found = |text: &str, name: &str| {
        let mut options = options();
        options.build_args.insert(name.to_owned(), "1".to_owned());
        found(text, &options, &[], false)
    };
    let text = "ARG GLOBAL\nFROM x AS a\nARG FOO\nFROM x\nARG BAR\n";
    assert_eq!(
        found(text, "FOOO"),
        [
            "4 KilnUnusedBuildArg: Build argument 'FOOO' is declared by no ARG instruction (did you mean FOO?)"
        ]
    );
    for name in [
        "GLOBAL",
        "FOO",
        "BAR",
        "http_proxy",
        "NO_PROXY",
        "TARGETARCH",
        "BUILDPLATFORM",
        "SOURCE_DATE_EPOCH",
        "BUILDKIT_INLINE_CACHE",
    ] {
        assert!(
            found(text, name).is_empty(),
            "{name}: {:?}",
            found(text, name)
        );
    }
    assert!(found(&format!("# check=skip=KilnUnusedBuildArg\n{text}"), "FOOO").is_empty());
}

/// Kiln's own rules fail nothing.
#[test]
fn own_rules_fail_nothing() {
    let text = "# check=error=true\nFROM x\nCOPY . .\nRUN npm ci\n";
    let found = found(text, &options(), &[], false);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].starts_with("3 KilnCopyBeforeInstall"));
    let skipped = text.replace("error=true", "skip=KilnCopyBeforeInstall");
    assert!(self::found(&skipped, &options(), &[], false).is_empty());
}
