//! What changes, which steps run because of it, and the sentence that says so.
//!
//! There is no shortcut for whole builds beside the solver, so nothing has to agree with it but `--dry-run`: after every
//! change it says beforehand what then happens.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use kiln_tests::{Kiln, Outcome, Setting};

const DOCKERFILE: &str = "FROM start AS build\n\
    ARG VERSION=1\n\
    ARG API_TOKEN=one\n\
    ENV MODE=fast\n\
    WORKDIR /w\n\
    COPY src src\n\
    RUN cat src/main.rs > /out; echo $VERSION $MODE >> /out\n\
    FROM start\n\
    COPY --from=build /out /out\n\
    COPY --chmod=755 --chown=1:1 bin/run.sh /run.sh\n\
    RUN --mount=type=secret,id=pin --mount=type=bind,source=data,target=/data cat /out /data/*\n";
const FILES: [(&str, &str); 8] = [
    ("Dockerfile", DOCKERFILE),
    (".dockerignore", "**/*.log\n"),
    ("src/main.rs", "main\n"),
    ("src/a.rs", "a\n"),
    ("src/deep/b.rs", "b\n"),
    ("src/noise.log", "1\n"),
    ("bin/run.sh", "echo\n"),
    ("data/d", "d\n"),
];

const COPY: &str = "COPY src";
const RUN: &str = "RUN cat src";
const OUT: &str = "COPY --from=build";
const TOOL: &str = "COPY --chmod";
const LAST: &str = "RUN --mount";

/// A change, and what becomes of it.
struct Row {
    change: fn(&Path),
    args: &'static [&'static str],
    /// What then runs, by how the instructions begin.
    runs: &'static [&'static str],
    /// What is said.
    why: &'static [&'static str],
}

fn edit(file: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(file).expect("own file");
    assert!(text.contains(from), "{} has no {from:?}", file.display());
    fs::write(file, text.replace(from, to)).expect("own file");
}

fn dockerfile(context: &Path, from: &str, to: &str) {
    edit(&context.join("Dockerfile"), from, to);
}

fn mode(file: &Path, mode: u32) {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).expect("own file");
}

/// What `--dry-run` says, as (instruction, verdict).
fn looked(outcome: &Outcome) -> Vec<(String, &'static str)> {
    let verdict = |line: &str| {
        let (_, step) = line.strip_prefix('[')?.split_once("] ")?;
        let found = [" would run", " may run", " cached"]
            .into_iter()
            .find(|it| step.contains(it))?;
        Some((step.to_owned(), found.trim_start()))
    };
    outcome.stdout.lines().filter_map(verdict).collect()
}

#[track_caller]
fn check(kiln: &Kiln, number: usize, row: &Row) {
    // Every row has a base of its own, so that none finds what another one made.
    let base = kiln.context(&[(
        "Dockerfile",
        &format!("FROM busybox\nRUN echo {number} > /row\n"),
    )]);
    let name = format!("row-{number}");
    kiln.build(&["-t", &name, &base]).ok();
    let context = kiln.context(&FILES);
    let folder = Path::new(&context);
    dockerfile(folder, "start", &name);
    let secret = kiln.file("pin");
    fs::write(&secret, "1").expect("own file");
    let secret = format!("id=pin,src={}", secret.display());
    let usual = ["-t", "explained", "--secret", &secret, &context];
    kiln.build(&usual).ok();
    let same = kiln.build(&usual).ok();
    assert!(same.executed().is_empty(), "row {number}: {same}");

    (row.change)(folder);
    let args = [row.args, &usual].concat();
    let dry = kiln.build(&[&["--dry-run"], &*args].concat()).ok();
    let built = kiln.build(&args);
    let executed = built.executed();
    let runs = |step: &String| row.runs.iter().any(|it| step.starts_with(it));
    assert!(
        executed.iter().all(runs) && executed.len() == row.runs.len(),
        "row {number} runs {executed:?}, not {:?}: {built}",
        row.runs
    );
    for why in row.why {
        assert!(
            built
                .stderr
                .lines()
                .any(|line| line.contains(" why: ") && line.ends_with(why)),
            "row {number} does not say {why:?}: {built}"
        );
    }
    assert!(!built.stderr.contains("hidden"), "row {number}: {built}");
    for (step, verdict) in looked(&dry) {
        let ran = executed.iter().any(|it| step.starts_with(it.as_str()));
        let right = match verdict {
            "would run" => ran,
            "cached" => !ran,
            _ => true,
        };
        assert!(right, "row {number}: {step}: but {executed:?}\n{dry}");
    }
    let told = kiln.run(&["why"]).ok();
    for why in row.why {
        assert!(
            told.stdout.contains(why),
            "row {number}: kiln why does not say {why:?}: {told}"
        );
    }
}

#[test]
fn what_changed_is_what_is_said() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let rows = [
        Row {
            change: |_| (),
            args: &[],
            runs: &[],
            why: &[],
        },
        // Files.
        Row {
            change: |at| fs::write(at.join("src/main.rs"), "main\n").expect("own file"),
            args: &[],
            runs: &[],
            why: &[],
        },
        Row {
            change: |at| edit(&at.join("src/main.rs"), "main", "other"),
            args: &[],
            runs: &[COPY, RUN, OUT, TOOL, LAST],
            why: &[
                "src/main.rs changed",
                "[build 3/4] ran again and gave another result",
                "/out changed",
            ],
        },
        Row {
            change: |at| fs::write(at.join("src/new.rs"), "new").expect("own file"),
            args: &[],
            // What RUN makes of it is the same.
            runs: &[COPY, RUN],
            why: &["src/new.rs appeared"],
        },
        Row {
            change: |at| fs::remove_dir_all(at.join("src/deep")).expect("own file"),
            args: &[],
            runs: &[COPY, RUN],
            why: &["src/deep/b.rs vanished"],
        },
        Row {
            change: |at| mode(&at.join("src/a.rs"), 0o755),
            args: &[],
            runs: &[COPY, RUN],
            why: &["src/a.rs changed its mode from 0644 to 0755"],
        },
        Row {
            change: |at| {
                fs::remove_file(at.join("src/a.rs")).expect("own file");
                symlink("main.rs", at.join("src/a.rs")).expect("own folder");
            },
            args: &[],
            runs: &[COPY, RUN],
            why: &["src/a.rs was a file and is a link now"],
        },
        Row {
            change: |at| {
                edit(&at.join("src/a.rs"), "a", "x");
                edit(&at.join("src/deep/b.rs"), "b", "x");
                fs::write(at.join("src/z.rs"), "z").expect("own file");
            },
            args: &[],
            runs: &[COPY, RUN],
            why: &["src/a.rs changed (and 2 more files)"],
        },
        Row {
            change: |at| fs::write(at.join("src/noise.log"), "2").expect("own file"),
            args: &[],
            runs: &[],
            why: &[],
        },
        Row {
            change: |at| {
                fs::write(at.join(".dockerignore"), "**/*.log\n**/a.rs\n").expect("own file");
            },
            args: &[],
            runs: &[COPY, RUN],
            why: &["src/a.rs vanished"],
        },
        Row {
            change: |at| fs::write(at.join("unused"), "2").expect("own file"),
            args: &[],
            runs: &[],
            why: &[],
        },
        Row {
            change: |at| edit(&at.join("bin/run.sh"), "echo", "true"),
            args: &[],
            runs: &[TOOL, LAST],
            why: &[
                "bin/run.sh changed",
                "[stage-1 3/4] ran again and gave another result",
            ],
        },
        // Owner and mode are given.
        Row {
            change: |at| mode(&at.join("bin/run.sh"), 0o600),
            args: &[],
            runs: &[],
            why: &[],
        },
        Row {
            change: |at| edit(&at.join("data/d"), "d", "e"),
            args: &[],
            runs: &[LAST],
            why: &["data/d changed"],
        },
        // Variables.
        Row {
            change: |_| (),
            args: &["--build-arg", "VERSION=2"],
            runs: &[RUN, OUT, TOOL, LAST],
            why: &["variable VERSION changed from \"1\" to \"2\""],
        },
        Row {
            change: |_| (),
            args: &["--build-arg", "API_TOKEN=hidden"],
            runs: &[RUN],
            why: &["variable API_TOKEN changed"],
        },
        Row {
            change: |at| dockerfile(at, "MODE=fast", "MODE=slow"),
            args: &[],
            runs: &[RUN, OUT, TOOL, LAST],
            why: &["variable MODE changed from \"fast\" to \"slow\""],
        },
        Row {
            change: |at| dockerfile(at, "MODE=fast", "MODE=fast MORE=1"),
            args: &[],
            runs: &[RUN],
            why: &["variable MORE is new: \"1\""],
        },
        Row {
            change: |at| dockerfile(at, "ARG API_TOKEN=one\n", ""),
            args: &[],
            runs: &[RUN],
            why: &["variable API_TOKEN is gone"],
        },
        // Instructions.
        Row {
            change: |at| dockerfile(at, "RUN cat src/main.rs", "RUN cat src/a.rs"),
            args: &[],
            runs: &[RUN, OUT, TOOL, LAST],
            why: &[
                "the command changed from \"cat src/main.rs > /out; echo $VERSION $MODE >> /out\" to \
                 \"cat src/a.rs > /out; echo $VERSION $MODE >> /out\"",
            ],
        },
        Row {
            change: |at| dockerfile(at, "COPY src src\n", "COPY src src\nRUN touch /new\n"),
            args: &[],
            runs: &["RUN touch", RUN],
            why: &[
                "never built before",
                "[build 4/5] ran again and gave another result",
            ],
        },
        Row {
            change: |at| {
                dockerfile(
                    at,
                    "COPY src src\n",
                    "COPY src source\nRUN ln -s source src\n",
                );
            },
            args: &[],
            runs: &["COPY src", "RUN ln", RUN],
            why: &["the destination changed from \"/w/src\" to \"/w/source\""],
        },
        Row {
            change: |at| dockerfile(at, "--chown=1:1", "--chown=2:2"),
            args: &[],
            runs: &[TOOL, LAST],
            why: &["--chown changed from 1:1 to 2:2"],
        },
        Row {
            change: |at| {
                dockerfile(
                    at,
                    "RUN --mount=type=secret",
                    "USER 5\nRUN --mount=type=secret",
                );
            },
            args: &[],
            runs: &[LAST],
            why: &["user changed from \"\" to \"5\""],
        },
        Row {
            change: |at| dockerfile(at, "WORKDIR /w\n", "WORKDIR /w\n# a comment\n\n"),
            args: &[],
            runs: &[],
            why: &[],
        },
        Row {
            change: |at| {
                dockerfile(at, "AS build", "AS maker");
                dockerfile(at, "--from=build", "--from=maker");
            },
            args: &[],
            runs: &[],
            why: &[],
        },
        // Options.
        Row {
            change: |_| (),
            args: &["--no-cache"],
            runs: &[COPY, RUN, OUT, TOOL, LAST],
            why: &["the cache is not used (--no-cache)"],
        },
        Row {
            change: |_| (),
            args: &["--no-cache-filter", "build"],
            // It gives the same again, so that the rest stays.
            runs: &[COPY, RUN],
            why: &["the cache is not used (--no-cache-filter)"],
        },
        Row {
            change: |_| (),
            args: &["--network", "none"],
            runs: &[RUN, LAST],
            why: &["network changed from \"Default\" to \"None\""],
        },
        Row {
            change: |_| (),
            args: &["--add-host", "mirror:10.0.0.1"],
            runs: &[RUN, LAST],
            why: &["extra host \"mirror\" is new"],
        },
        Row {
            change: |_| (),
            args: &["--secret", "id=pin,env=PATH"],
            runs: &[],
            why: &[],
        },
        Row {
            change: |_| (),
            args: &["--label", "a=b", "--shm-size", "1g"],
            runs: &[],
            why: &[],
        },
    ];
    for (number, row) in rows.iter().enumerate() {
        check(&kiln, number, row);
    }
}

#[test]
fn a_moved_base_is_named() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let base = |text: &str| {
        let context = kiln.context(&[("Dockerfile", text)]);
        kiln.build(&["-t", "base:1", &context]).ok();
    };
    let context = kiln.context(&[("Dockerfile", "FROM base:1\nWORKDIR /w\nRUN cat /v\n")]);
    base("FROM busybox\nRUN echo 1 > /v\n");
    kiln.build(&[&context]).ok();
    // Another image with the same files.
    base("FROM busybox\nRUN echo 1 > /v\nLABEL a=b\n");
    let same = kiln.build(&[&context]).ok();
    assert!(same.executed().is_empty(), "{same}");
    base("FROM busybox\nRUN echo 2 > /v\n");
    let moved = kiln.build(&[&context]).ok().says(&[
        "why: base image base:1 moved from sha256:",
        "why: [2/3] ran again and gave another result",
    ]);
    assert_eq!(moved.executed().len(), 2, "{moved}");
}

#[test]
fn a_lost_result_a_failure_and_a_fresh_checkout_are_named() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let layers = || {
        let list = fs::read_dir(kiln.store().join("layers")).expect("a store");
        list.map(|it| it.expect("a store").path())
            .collect::<Vec<_>>()
    };
    let before = layers();
    let text = "FROM busybox\nCOPY a /\nRUN test $(cat /a) != 2\n";
    let context = kiln.context(&[("Dockerfile", text), ("a", "1")]);
    kiln.build(&[&context]).ok();
    for lost in layers().iter().filter(|it| !before.contains(it)) {
        fs::remove_dir_all(lost).expect("own store");
    }
    kiln.build(&[&context])
        .ok()
        .says(&["why: its earlier result is no longer in the cache"]);

    fs::write(Path::new(&context).join("a"), "2").expect("own file");
    kiln.build(&[&context]).failed().says(&["why: a changed"]);
    kiln.run(&["why"])
        .ok()
        .says(&["failed in ", "did not complete successfully", "FAILED"]);
    kiln.build(&[&context])
        .failed()
        .says(&["why: it failed last time"]);
    fs::write(Path::new(&context).join("a"), "3").expect("own file");
    // What failed has no record: what last succeeded is compared.
    kiln.build(&[&context]).ok().says(&[
        "why: a changed",
        "why: [2/3] ran again and gave another result",
    ]);

    let elsewhere = kiln.context(&[("Dockerfile", text), ("a", "4")]);
    kiln.build(&[&elsewhere]).ok().says(&["why: a changed"]);
}

#[test]
fn builds_are_found_again() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    kiln.run(&["why"])
        .failed()
        .says(&["no build is remembered"]);
    let context = kiln.context(&[
        ("Dockerfile", "FROM busybox\nCOPY . /c/\n"),
        ("a", "1"),
        ("b", "1"),
    ]);
    let secret = "--build-arg=MY_SECRET=hidden";
    kiln.build(&["-t", "one", secret, &context]).ok();
    fs::write(Path::new(&context).join("a"), "2").expect("own file");
    fs::write(Path::new(&context).join("b"), "2").expect("own file");
    let explained = kiln.build(&["-t", "two", "--explain", &context]).ok();
    let (_, all) = explained
        .stderr
        .split_once("\n[2/2] COPY . /c/\n")
        .expect("all changes");
    assert!(
        all.starts_with("  a changed\n  b changed\ndone in "),
        "{all}"
    );
    kiln.run(&["why"])
        .ok()
        .says(&["build 2: done", "a changed (and 1 more file)"]);
    kiln.run(&["why", "2", "2/2"])
        .ok()
        .says(&["[2/2] COPY . /c/ DONE", "  a changed\n  b changed\n"]);
    kiln.run(&["why", "one"])
        .ok()
        .says(&["build 1: done", "never built before", "MY_SECRET=***"])
        .silent_about(&["hidden"]);
    kiln.run(&["why", "two", "COPY"])
        .ok()
        .says(&["  b changed"]);
    kiln.run(&["why", "2", "5/5"])
        .failed()
        .says(&["build 2 has no step \"5/5\""]);
    kiln.run(&["why", "none-such"]).failed();
    // A dry run is no build.
    kiln.build(&["--dry-run", &context])
        .ok()
        .says(&["0 would run, 0 may run, 2 cached"]);
    kiln.run(&["why"]).ok().says(&["build 2: done"]);
}

#[test]
fn steps_of_one_text_are_told_apart() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let first = "FROM busybox AS one\nRUN echo a >> /log\nRUN echo a >> /log\nRUN cat /log\n";
    let context = kiln.context(&[("Dockerfile", first)]);
    kiln.build(&[&context])
        .ok()
        .silent_about(&["ran again", "another result"]);
    let why = kiln.run(&["why", "1"]).ok();
    assert_eq!(why.stdout.matches("never built before").count(), 3, "{why}");
    dockerfile(
        Path::new(&context),
        "RUN echo a >> /log\nRUN cat",
        "RUN echo b >> /log\nRUN cat",
    );
    // The second of the two changed, not the first.
    let second = kiln.build(&[&context]).ok();
    assert_eq!(
        second.executed(),
        ["RUN echo b >> /log", "RUN cat /log"],
        "{second}"
    );
    second.says(&["the command changed from \"echo a >> /log\" to \"echo b >> /log\""]);
}
