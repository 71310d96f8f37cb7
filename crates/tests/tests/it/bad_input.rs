//! What is wrong is said, with the place, and nothing stays behind.

use std::fs;

use kiln_tests::{Kiln, Setting, in_each_setting};

in_each_setting! { failing_run failing_inputs rights_must_be_given }

fn failing_run(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let dockerfile =
        "FROM busybox\nRUN echo fine > /fine\nRUN echo last words && exit 7\nRUN echo never\n";
    let context = kiln.context(&[("Dockerfile", dockerfile)]);
    let failed = kiln.build(&["-t", "failing", &context]).failed();
    let failed = failed.says(&[
        "last words",
        "exit code: 7",
        "Dockerfile:3",
        ">>> RUN echo last words && exit 7",
    ]);
    failed.silent_about(&["echo never &&", "panicked"]);
    kiln.leaves_nothing();
    kiln.run(&["run", "--rm", "failing"])
        .failed()
        .says(&["failing"]);

    // What went well before the failure is kept.
    fs::write(
        format!("{context}/Dockerfile"),
        dockerfile.replace("exit 7", "true"),
    )
    .expect("own file");
    let repaired = kiln.build(&["-t", "failing", &context]).ok();
    assert_eq!(
        repaired.executed(),
        ["RUN echo last words && true", "RUN echo never"],
        "{repaired}"
    );

    for (program, why) in [
        ("/no/such/program", "no such file or directory"),
        ("/etc/passwd", "permission denied"),
    ] {
        let context = kiln.context(&[(
            "Dockerfile",
            &format!("FROM busybox\nRUN [\"{program}\"]\n"),
        )]);
        let failed = kiln
            .build(&[&context])
            .failed()
            .says(&[program, "Dockerfile:2"]);
        assert!(failed.stderr.to_lowercase().contains(why), "{failed}");
    }
    let context = kiln.context(&[(
        "Dockerfile",
        "FROM busybox\nRUN sh -c 'kill -9 $$'; exit $?\n",
    )]);
    kiln.build(&[&context]).failed().says(&["137"]);
    kiln.leaves_nothing();
}

/// Files of the context, arguments before it, and what must be said.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str], &'a [&'a str]);

fn failing_inputs(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let cases: &[Case] = &[
        (&[("other", "")], &[], &["Dockerfile"]),
        (&[("Dockerfile", "")], &[], &["Dockerfile"]),
        (
            &[("Dockerfile", "FROM busybox\nRUM true\n")],
            &[],
            &["Dockerfile:2", "RUM", "RUN"],
        ),
        (&[("Dockerfile", "RUN true\n")], &[], &["Dockerfile:1"]),
        (
            &[("Dockerfile", "FROM localhost:1/no-such-image\n")],
            &[],
            &["no-such-image", "Dockerfile:1"],
        ),
        (
            &[
                ("Dockerfile", "FROM busybox\nCOPY main.rs other.txt /\n"),
                ("main.c", ""),
                ("other.txt", ""),
            ],
            &[],
            &["main.rs", "Dockerfile:2"],
        ),
        (
            &[
                ("Dockerfile", "FROM busybox\nCOPY hidden /\n"),
                ("hidden", ""),
                (".dockerignore", "hidden\n"),
            ],
            &[],
            &["hidden", "Dockerfile:2"],
        ),
        (
            &[("Dockerfile", "FROM busybox\nCOPY --from=0 /nothing /\n")],
            &[],
            &["Dockerfile:2"],
        ),
        (
            &[(
                "Dockerfile",
                "FROM busybox AS a\nFROM busybox\nCOPY --from=a /nothing /here\n",
            )],
            &[],
            &["/nothing", "Dockerfile:3"],
        ),
        (
            &[("Dockerfile", "FROM busybox\nCOPY ../outside /\n")],
            &[],
            &["outside", "Dockerfile:2"],
        ),
        (
            &[("Dockerfile", "FROM busybox\nUSER nosuchuser\nRUN id\n")],
            &[],
            &["nosuchuser", "Dockerfile:3"],
        ),
        (
            &[("Dockerfile", "FROM busybox\n")],
            &["--target", "nosuchstage"],
            &["nosuchstage"],
        ),
        (
            &[("Dockerfile", "FROM busybox\n")],
            &["-t", "Not A Name"],
            &["Not A Name"],
        ),
        (
            &[("Dockerfile", "FROM busybox\n")],
            &["-f", "/no-such-file"],
            &["/no-such-file"],
        ),
        (
            &[("Dockerfile", "FROM busybox\n")],
            &["--no-such-option"],
            &["--no-such-option"],
        ),
    ];
    for (files, args, texts) in cases {
        let context = kiln.context(files);
        let failed = kiln
            .build(&[args, [context.as_str()].as_slice()].concat())
            .failed();
        failed
            .says(texts)
            .silent_about(&["panicked", "stack backtrace"]);
    }
    kiln.build(&["/no/such/context"])
        .failed()
        .says(&["/no/such/context"]);
    kiln.leaves_nothing();
    for args in [
        ["run", "no-such-image"],
        ["history", "no-such-image"],
        ["inspect", "no-such-image"],
        ["rmi", "no-such-image"],
    ] {
        kiln.run(&args).failed().says(&["no-such-image"]);
    }
}

fn rights_must_be_given(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[(
        "Dockerfile",
        "FROM busybox\nRUN --security=insecure mkdir -p /mnt && mount -t tmpfs none /mnt && echo mounted\n",
    )]);
    kiln.build(&[&context]).failed().says(&[
        "security.insecure is not allowed",
        ">>> RUN --security=insecure",
        "hint: allow it for this build with --allow security.insecure",
    ]);
    kiln.build(&["--allow", "security.insecure", &context])
        .ok()
        .says(&["mounted"]);
    let context = kiln.context(&[("Dockerfile", "FROM busybox\nRUN --network=host true\n")]);
    kiln.build(&[&context])
        .failed()
        .says(&["network.host is not allowed", "--allow network.host"]);
    kiln.build(&["--allow", "network.host", &context]).ok();
    kiln.build(&["--network", "host", &context]).ok();
}
