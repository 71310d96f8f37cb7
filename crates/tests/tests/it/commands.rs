//! Commands that look at builds, images and contexts, and what is kept of builds.

use std::fs;

use kiln_tests::{Kiln, Setting, in_each_setting};
use serde_json::Value;

in_each_setting! { whole_logs_are_kept images_are_compared }

/// A step whose output is longer than any display shows, with a secret in it.
const LONG: &str = "FROM busybox\nRUN --mount=type=secret,id=token i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; \
                    cat /run/secrets/token; echo end\nRUN --mount=type=secret,id=token exit 3\n";

fn whole_logs_are_kept(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", LONG), ("token", "s3cr3t-value\n")]);
    let secret = format!("id=token,src={context}/token");
    kiln.run(&[
        "build",
        "--progress",
        "quiet",
        "--secret",
        &secret,
        &context,
    ])
    .failed();
    let log = kiln.run(&["history", "logs"]).ok();
    assert!(
        log.stdout.lines().count() > 3000,
        "all lines: {}",
        log.stdout.len()
    );
    for text in [
        "] RUN --mount=type=secret,id=token i=0;",
        "line 1\n",
        "line 3000\n",
        "***\n",
        "end\n",
        "Dockerfile:3\n",
        "ERROR: failed to build: failed to solve: ",
        "exit code: 3\n",
    ] {
        assert!(
            log.stdout.contains(text),
            "{text:?}: {}",
            &log.stdout[log.stdout.len() - 2000..]
        );
    }
    assert!(
        !log.stdout.contains("s3cr3t-value"),
        "the secret is in the log"
    );
    let files = |kiln: &Kiln| match fs::read_dir(kiln.store().join("logs")) {
        Ok(folder) => folder.count(),
        Err(_) => 0,
    };
    // The overlay's store is in a namespace of its own.
    if setting != Setting::Overlay {
        assert_eq!(files(&kiln), 1);
    }

    let short = kiln.context(&[("Dockerfile", "FROM busybox\nCMD [\"true\"]\n")]);
    kiln.build(&["-t", "short:1", &short]).ok();
    kiln.run(&["history", "logs"])
        .ok()
        .says(&["exporting to image"]);
    if setting != Setting::Overlay {
        assert_eq!(files(&kiln), 1, "a short log needs no file");
    }
    let list = kiln
        .run(&["history", "ls", "--format", "{{.ID}} {{.Name}} {{.Status}}"])
        .ok();
    let rows: Vec<&str> = list.stdout.lines().collect();
    assert_eq!(rows.len(), 2, "{list}");
    assert!(
        rows[0].ends_with("short:1 Completed") && rows[1].ends_with("Error"),
        "{list}"
    );
    let inspected = kiln
        .run(&["history", "inspect", "1", "--format", "json"])
        .ok();
    let value: Value = serde_json::from_str(&inspected.stdout).expect("JSON");
    assert_eq!(value["Status"], "Error");
    assert_eq!(value["Steps"][1]["Status"], "DONE", "{inspected}");
    assert_eq!(value["Steps"][2]["Status"], "FAILED", "{inspected}");
    kiln.run(&["history", "rm", "1"]).ok();
    kiln.run(&["history", "logs", "1"]).failed();
    if setting != Setting::Overlay {
        assert_eq!(files(&kiln), 0, "its file goes with it");
    }
    kiln.leaves_nothing();
}

fn images_are_compared(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let file =
        "FROM busybox\nCOPY f /f\nRUN rm /etc/group && echo more >> /etc/passwd && chmod 600 /f\n";
    let context = kiln.context(&[("Dockerfile", file), ("f", "12345")]);
    kiln.build(&["-t", "changed", &context]).ok();
    let diff = kiln.run(&["image", "diff", "busybox", "changed"]).ok();
    for line in [
        "A /f 5B\n",
        "D /etc/group ",
        "C /etc/passwd ",
        "1 added (5B), 1 removed",
    ] {
        assert!(diff.stdout.contains(line), "{line}: {diff}");
    }
    let json = kiln
        .run(&["image", "diff", "--format", "json", "changed", "busybox"])
        .ok();
    assert!(
        json.stdout
            .contains(r#"{"Path":"/f","Change":"removed","Before":5,"After":0}"#),
        "{json}"
    );
    let tree = kiln.run(&["image", "ls", "--tree"]).ok();
    for line in [
        "├─ busybox:latest ",
        "└─ ",
        "COPY f /f",
        "   └─ changed:latest ",
        "shared layers save ",
    ] {
        assert!(tree.stdout.contains(line), "{line}: {tree}");
    }

    let summary = kiln
        .run(&[
            "build",
            "--progress",
            "plain",
            "--summary",
            "-t",
            "changed",
            &context,
        ])
        .ok();
    summary.says(&[
        "done in ",
        "3 of 3 steps from the cache, image ",
        "LAYER ",
        "OVERWRITTEN",
    ]);
    kiln.leaves_nothing();
}

#[test]
fn the_old_display() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let file =
        "FROM busybox AS unused\nRUN true\nFROM busybox\nENV A=b\nRUN echo hello\nCMD [\"true\"]\n";
    let context = kiln.context(&[("Dockerfile", file)]);
    let build = || {
        let mut command = kiln.command(&["build", "-t", "old:1", &context]);
        let output = command
            .env("DOCKER_BUILDKIT", "0")
            .output()
            .expect("kiln starts");
        kiln_tests::Outcome::new("DOCKER_BUILDKIT=0 kiln build".to_owned(), &output).ok()
    };
    let digits = |text: &str| {
        let words = text.lines().map(|line| match line.rsplit_once(' ') {
            Some((rest, id))
                if id.len() == 12 && id.bytes().all(|byte| byte.is_ascii_hexdigit()) =>
            {
                format!("{rest} ID\n")
            }
            _ => format!("{line}\n"),
        });
        words.collect::<String>()
    };
    let first = build();
    let shown = digits(&first.stdout);
    let steps = "Step 1/6 : FROM busybox AS unused\n ---> Skipped: the target does not need it\n\
        Step 2/6 : RUN true\n ---> Skipped: the target does not need it\n\
        Step 3/6 : FROM busybox\n ---> ID\nStep 4/6 : ENV A=b\n ---> ID\n\
        Step 5/6 : RUN echo hello\n ---> Running in ID\nhello\n ---> Removed intermediate container ID\n ---> ID\n\
        Step 6/6 : CMD [\"true\"]\n ---> ID\n";
    assert!(shown.starts_with(steps), "{first}");
    assert!(
        shown.ends_with("Successfully built ID\nSuccessfully tagged old:1\n"),
        "{first}"
    );
    let id = kiln.run(&["images", "-q", "old:1"]).ok().stdout;
    // The id of the last step is that of the image.
    let last = format!(" ---> {id}");
    let end = format!("Successfully built {id}");
    for line in [last, end] {
        assert!(first.stdout.contains(&line), "{line}: {first}");
    }
    let again = build();
    assert!(
        digits(&again.stdout).contains("Step 5/6 : RUN echo hello\n ---> Using cache\n ---> ID\n"),
        "{again}"
    );
}

#[test]
fn rules_that_ignore_are_named() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let rules = "# what is not for the image\n*.log\nlogs\n!logs/keep.log\n";
    let context = kiln.context(&[
        (".dockerignore", rules),
        ("logs/keep.log", ""),
        ("a.log", ""),
        ("main.c", ""),
    ]);
    let explain = ["explain-ignore", "--context", &context];
    let say = |paths: &[&str]| kiln.run(&[&explain[..], paths].concat()).ok().stdout;
    assert_eq!(
        say(&["a.log", "logs/x", "logs/keep.log", "main.c", "later.c"]),
        "a.log: ignored by *.log (.dockerignore:2)\n\
         logs/keep.log: in the context, taken back by !logs/keep.log (.dockerignore:4)\n"
            .replacen(
                "logs/keep",
                "logs/x: ignored by logs (.dockerignore:3)\nlogs/keep",
                1
            )
            + "main.c: in the context: none of the 3 rules of .dockerignore is about it\n\
               later.c: not there: none of the 3 rules of .dockerignore is about it\n"
    );
    kiln.run(&[&explain[..], &["/etc/passwd"]].concat())
        .failed()
        .says(&["is not below the context", "--context DIR"]);
}

#[test]
fn what_docker_has_and_kiln_has_not_is_refused_by_name() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", "FROM busybox\n")]);
    for (line, code, says) in [
        ("build --squash .", 1, "--squash: kiln keeps layers apart"),
        ("build --sbom=true .", 1, "--sbom: kiln makes no lists"),
        ("build --attest type=sbom .", 1, "--attest type=sbom: "),
        ("build --attest type=x .", 1, "there is no type x"),
        (
            "build --security-opt seccomp=unconfined .",
            1,
            "--security-opt seccomp=unconfined: ",
        ),
        ("build --nope .", 125, "unknown flag: --nope"),
        (
            "run --restart=always busybox true",
            125,
            "--restart always: nobody watches",
        ),
        ("run -d busybox true", 125, "foreground"),
        ("run --gpus all busybox", 125, "--device"),
        ("run --pid=host busybox", 125, "--pid host: containers have"),
        ("run --volumes-from x busybox", 125, "--volumes-from x: "),
        ("run --sysctl a=b busybox", 125, "sysctl -w"),
        ("run --network-alias x busybox", 125, "--add-host"),
        ("run --cap-add NOPE busybox", 125, "no such capability"),
        ("run --cap-add SYS_ADMIN busybox", 125, "seccomp=unconfined"),
        ("run --security-opt seccomp=x busybox", 125, "--privileged"),
        ("run --device /etc/passwd busybox", 125, "is no device"),
        ("create --stop-signal WINCH busybox", 1, "not passed on"),
        ("pull --all-tags busybox", 1, "--all-tags: kiln takes one"),
        ("rm --link x", 1, "--link: "),
        (
            "rmi --platform linux/amd64 busybox",
            1,
            "--platform linux/amd64: ",
        ),
        (
            "-H tcp://1.2.3.4:2375 images",
            1,
            "--host tcp://1.2.3.4:2375: there is no daemon",
        ),
        (
            "--context prod images",
            1,
            "--context prod: there is no daemon",
        ),
        (
            "--context default run --nope busybox",
            125,
            "see kiln run --help",
        ),
        ("logs x", 1, "on the terminal of their kiln run"),
        (
            "buildx create ssh://box",
            1,
            "ssh://box: there is one builder",
        ),
        (
            "inspect --platform linux/arm64 busybox",
            1,
            "no image for linux/arm64",
        ),
        ("exec x sh", 1, "unknown command: kiln exec"),
        ("volume ls", 1, "kiln keeps no volumes"),
        ("compose up", 1, "kiln reads no compose files"),
        ("buildx bake", 1, "a loop over the targets"),
        ("buildx create --driver=kubernetes", 125, "kubernetes"),
        ("image nope", 1, "unknown command: kiln image nope"),
        ("builder ls", 1, "hint: there is kiln buildx ls"),
        (
            "build --allow device .",
            125,
            "hint: expected network.host or security.insecure",
        ),
        ("build", 1, "an argument is missing"),
    ] {
        let words: Vec<&str> = line
            .split(' ')
            .map(|word| if word == "." { &context } else { word })
            .collect();
        let outcome = kiln.run(&words);
        assert_eq!(outcome.status.code(), Some(code), "{outcome}");
        outcome.says(&[says]);
    }
    for (flag, note) in [
        ("--rm", "note: --rm does nothing here"),
        ("--force-rm", "note: --force-rm does nothing here"),
        ("--compress", "note: --compress does nothing here"),
        (
            "--provenance=mode=max",
            "note: --provenance does nothing here: kiln makes no attestations",
        ),
        (
            "--attest=type=provenance,mode=max,builder-id=x",
            "note: --provenance does nothing here",
        ),
    ] {
        kiln.build(&[flag, &context]).ok().says(&[note]);
    }
    for line in [
        "-D images",
        "-l debug images",
        "--tlsverify images",
        "run --rm --runtime runc busybox true",
        "run --rm --health-cmd x busybox true",
        "run --rm -P busybox true",
        "run --rm --security-opt apparmor=unconfined busybox true",
        "buildx create --driver-opt network=host",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        kiln.run(&words).ok().says(&["does nothing here"]);
    }
    // What asks for what happens anyway is not worth a word.
    for line in [
        "-H unix:///var/run/docker.sock -c default -l info images -q",
        "run --rm --ipc private --restart no --pids-limit -1 --userns= --security-opt seccomp=builtin busybox true",
        "buildx prune -D --builder x -f",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let said = kiln.run(&words).ok();
        assert!(!said.stderr.contains("note:"), "{said}");
    }
    for line in [
        "create --name ci --use",
        "inspect --bootstrap ci",
        "use ci",
        "rm ci",
    ] {
        let words: Vec<&str> = ["buildx"].into_iter().chain(line.split(' ')).collect();
        kiln.run(&words)
            .ok()
            .says(&["note: there is one builder, this program"]);
    }
    assert_eq!(
        kiln.run(&["buildx", "create", "--name", "ci"]).ok().stdout,
        "ci\n"
    );
    let mut policy = kiln.command(&["build", &context]);
    policy.env("EXPERIMENTAL_BUILDKIT_SOURCE_POLICY", "/policy.json");
    let output = policy.output().expect("kiln starts");
    kiln_tests::Outcome::new("with a policy".to_owned(), &output)
        .failed()
        .says(&["EXPERIMENTAL_BUILDKIT_SOURCE_POLICY: kiln evaluates no policies"]);
    for (name, value, is_noted) in [
        ("BUILDX_GIT_LABELS", "full", true),
        ("BUILDX_METADATA_PROVENANCE", "max", true),
        ("BUILDX_METADATA_PROVENANCE", "disabled", false),
        ("BUILDX_METADATA_WARNINGS", "1", true),
    ] {
        let output = kiln.command(&["build", &context]).env(name, value).output();
        let said = kiln_tests::Outcome::new(name.to_owned(), &output.expect("kiln starts")).ok();
        let note = format!("note: {name} does nothing here: ");
        assert_eq!(said.stderr.contains(&note), is_noted, "{value}: {said}");
    }
    let off = ["--provenance", "false", "--sbom", "false", &context];
    let said = kiln.build(&off).ok();
    assert!(!said.stderr.contains("note:"), "{said}");
}

#[test]
fn what_is_shipped_and_never_seen() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let file = "FROM busybox\nCOPY f /f\nRUN dd if=/dev/zero of=/big bs=1M count=3\nRUN chmod 600 /big\nRUN rm /big && sleep 1\n";
    let context = kiln.context(&[("Dockerfile", file), ("f", "1")]);
    let build = ["--summary", "-t", "heavy", &context];
    let said = kiln.build(&build).ok();
    for text in [
        "6.29MB of the layers are shipped and never seen",
        "ships 3.15MB again with the same content: COPY --chown",
        "removes 3.15MB that is shipped all the same",
        "hint: ",
    ] {
        assert!(said.stderr.contains(text), "{text}: {said}");
    }
    std::fs::write(format!("{context}/f"), "2").expect("own file");
    kiln.build(&build)
        .ok()
        .says(&["of steps ran again because of [2/5] COPY f /f: those that need nothing of it can stand before it"]);
}
