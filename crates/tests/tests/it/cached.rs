//! A build that changes nothing looks at files and records, and does nothing else.

use std::fs;

use kiln_tests::trace::{WATCHED, offences};
use kiln_tests::{Kiln, Outcome, Setting, in_each_setting, skipped};

in_each_setting! { second_build_only_looks one_edit_redoes_what_depends_on_it }

const DOCKERFILE: &str = "FROM busybox AS build\nWORKDIR /src\nCOPY . .\nRUN cat a.txt b/c.txt > /out\n\
                          FROM busybox\nCOPY --from=build /out /out\nRUN touch /touched\nCMD [\"cat\", \"/out\"]\n";
const FILES: [(&str, &str); 3] = [
    ("Dockerfile", DOCKERFILE),
    ("a.txt", "a\n"),
    ("b/c.txt", "c\n"),
];

fn second_build_only_looks(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    if xtask::process::find("strace").is_none() {
        return skipped("strace is not installed");
    }
    let context = kiln.context(&FILES);
    let build = ["build", "--progress", "plain", "-t", "looked-at", &context];
    kiln.run(&build).ok();
    kiln.run(&build).ok();

    let trace = kiln.file("trace");
    let file = trace.to_str().expect("a plain name");
    let strace = [
        "strace", "-f", "-y", "-qq", "-s", "4096", "-e", WATCHED, "-o", file,
    ];
    let output = kiln
        .wrapped(&strace, &build)
        .output()
        .expect("strace starts");
    let traced = Outcome::new("strace kiln build".to_owned(), &output).ok();
    assert_eq!(traced.executed(), Vec::<String>::new(), "{traced}");

    let store = kiln.store().display();
    let mut allowed: Vec<String> = ["kiln.db", "leases/", "claims/", "stat/"]
        .map(|records| format!("{store}/{records}"))
        .into();
    allowed.extend(["/dev/null", "/dev/tty"].map(str::to_owned));
    let found = offences(
        &fs::read_to_string(&trace).expect("strace wrote it"),
        &allowed,
    );
    assert!(
        found.is_empty(),
        "a cached build must not do this:\n{}",
        found.join("\n")
    );
}

fn one_edit_redoes_what_depends_on_it(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&FILES);
    let build = ["-t", "edited", context.as_str()];
    kiln.build(&build).ok();

    // The same bytes with a new time: the content counts.
    fs::write(format!("{context}/a.txt"), "a\n").expect("own file");
    let same = kiln.build(&build).ok();
    assert_eq!(same.executed(), Vec::<String>::new(), "{same}");

    fs::write(format!("{context}/a.txt"), "A\n").expect("own file");
    let edited = kiln.build(&build).ok();
    let mut executed = edited.executed();
    executed.sort_unstable();
    let expected = [
        "COPY --from=build /out /out",
        "COPY . .",
        "RUN cat a.txt b/c.txt > /out",
        "RUN touch /touched",
    ];
    assert_eq!(executed, expected, "{edited}");
    assert_eq!(kiln.run(&["run", "--rm", "edited"]).ok().stdout, "A\nc\n");

    // Back again: the records of the first build still hold.
    fs::write(format!("{context}/a.txt"), "a\n").expect("own file");
    let back = kiln.build(&build).ok();
    assert_eq!(back.executed(), Vec::<String>::new(), "{back}");
    assert_eq!(kiln.run(&["run", "--rm", "edited"]).ok().stdout, "a\nc\n");

    // A step whose input changed but whose outcome did not does not pull the rest along.
    fs::write(format!("{context}/unread.txt"), "new").expect("own file");
    let unread = kiln.build(&build).ok();
    assert!(
        !unread.executed().contains(&"RUN touch /touched".to_owned()),
        "{unread}"
    );

    let afresh = kiln.build(&["--no-cache", "-t", "edited", &context]).ok();
    // As under BuildKit, a folder made by WORKDIR has nothing that could be stale.
    assert_eq!(afresh.executed().len(), 4, "{afresh}");
}
