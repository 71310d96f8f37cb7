//! A shell in a step that failed, and in what any step made.

use std::io::Write as _;
use std::process::Stdio;

use kiln_tests::{Kiln, OWN_TERMINAL, Outcome, Setting, Terminal, in_each_setting};

in_each_setting! { in_the_failed_step from_standard_input in_any_step }

const FAILS: &str = "FROM busybox AS base\nRUN mkdir /w && echo one > /w/f && chown -R 33:44 /w\n\
    FROM busybox\nENV B=two\nCOPY --from=base /w /w\nWORKDIR /w\nUSER 33:44\n\
    RUN --mount=type=tmpfs,target=/t --mount=type=secret,id=s,mode=444 --mount=type=cache,target=/c,mode=777 \
        --mount=type=bind,from=base,source=/w,target=/b,rw echo changed > f; echo cached > /c/f; cat /no/such\n";

fn in_the_failed_step(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", FAILS), ("secret", "hid''den-4711")]);
    let secret = format!("id=s,src={context}/secret");
    // Both spellings.
    let own = [
        "build",
        "--on-error",
        "shell",
        "--secret",
        &secret,
        &context,
    ];
    let buildx = [
        "buildx",
        "debug",
        "--invoke",
        "/bin/sh",
        "--on=error",
        "build",
        "--secret",
        &secret,
        &context,
    ];
    for args in [&own[..], &buildx] {
        let mut terminal = Terminal::start(kiln.wrapped(&OWN_TERMINAL, args));
        terminal.shows("did not complete successfully: exit code: 1");
        terminal.shows("/bin/sh runs in the step");
        terminal.shows("$ ");
        terminal.send("echo $(id -u):$(id -g) $PWD $B $(cat f) $(cat /c/f) $(cat /b/f) = $(wc -c < /run/secrets/s); tty\r");
        terminal.shows("33:44 /w two changed cached one = 13\r\n/dev/pts/0");
        terminal.send("exit 5\r");
        assert_eq!(terminal.ends().code(), Some(1), "{}", terminal.shown);
    }
    kiln.leaves_nothing();
    // Nothing of it stays: the step fails as before, and then succeeds from where it stood.
    kiln.build(&["--secret", &secret, &context])
        .failed()
        .silent_about(&["/bin/sh runs"]);
    std::fs::write(
        format!("{context}/Dockerfile"),
        FAILS.replace("cat /no/such", "cat f"),
    )
    .expect("own file");
    let built = kiln
        .build(&["--secret", &secret, &context])
        .ok()
        .says(&["changed"]);
    assert_eq!(built.executed().len(), 1, "{built}");
}

/// `kiln ARGS` with something to read.
fn fed(kiln: &Kiln, args: &[&str], input: &str) -> Outcome {
    let mut command = kiln.command(args);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("kiln starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("it ends");
    Outcome::new(format!("kiln {} < {input:?}", args.join(" ")), &output)
}

fn from_standard_input(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    // Another step runs when this one fails: it is given up, and the shell still comes.
    let dockerfile = "FROM busybox AS slow\nRUN sleep 100\nFROM busybox AS fast\nRUN echo x > /left; sleep 1; no-such-program\n\
                      FROM scratch\nCOPY --from=slow / /\nCOPY --from=fast / /\n";
    let context = kiln.context(&[("Dockerfile", dockerfile)]);
    let args = ["build", "--progress", "plain", "--on-error=shell", &context];
    let build = fed(&kiln, &args, "echo left: $(cat /left)\n").failed();
    assert_eq!(build.stdout, "left: x\n", "{build}");
    // A program that cannot be started leaves a step too.
    let context = kiln.context(&[("Dockerfile", "FROM busybox\nRUN [\"/no/such\"]\n")]);
    let args = [
        "build",
        "--on-error=shell",
        "--invoke",
        "/bin/sh -x",
        &context,
    ];
    fed(&kiln, &args, "echo here\n")
        .failed()
        .says(&["+ echo here\n", "exit code: 127"]);
    kiln.leaves_nothing();
}

fn in_any_step(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", FAILS)]);
    let debug = |step: &str| {
        fed(
            &kiln,
            &["debug", "--progress", "plain", step, &context],
            "stat -c %u:%g /w/f; pwd; id -u; exit 6\n",
        )
    };
    for (step, says) in [
        ("2", "33:44\n/\n0\n"),
        ("base 2/2", "33:44\n/\n0\n"),
        ("COPY --from=base", "33:44\n/w\n33\n"),
    ] {
        let outcome = debug(step);
        assert_eq!(
            (outcome.status.code(), outcome.stdout.as_str()),
            (Some(6), says),
            "{outcome}"
        );
    }
    // The failing step is not reached by the others, and fails itself.
    debug("8").failed().says(&["did not complete successfully"]);
    debug("RUN")
        .failed()
        .says(&["\"RUN\" means several steps", "by its line"]);
    debug("no such step")
        .failed()
        .says(&["no step \"no such step\"", "[base 2/2] RUN mkdir"]);
    kiln.leaves_nothing();
}
