//! The space that the store takes: what is told of it, its limit, what is collected, and what can be thrown away by hand.

use std::process::Stdio;
use std::time::{Duration, Instant};

use kiln_tests::{Kiln, Outcome, Setting, in_each_setting};

in_each_setting! {
    figures_add_up a_step_cannot_pass_the_limit a_container_cannot_pass_the_limit least_recently_used_goes_first what_runs_keeps_its_layers
    pruned_by_hand many_builds_in_a_small_store
}

/// Runs `kiln` with a limit.
fn limited(kiln: &Kiln, limit: &str, args: &[&str]) -> Outcome {
    let mut command = kiln.command(args);
    let output = command
        .env("KILN_STORAGE_MAX_SIZE", limit)
        .output()
        .expect("kiln starts");
    Outcome::new(
        format!("kiln {} # at most {limit}", args.join(" ")),
        &output,
    )
}

/// What `du` says of the store.
fn du(kiln: &Kiln) -> u64 {
    let script = "du -s -B1 \"$KILN_ROOT\"; exit 0";
    let output = kiln
        .wrapped(&["sh", "-c", script], &[])
        .stderr(Stdio::null())
        .output()
        .expect("du starts");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = said.split_whitespace().next().expect("du says a number");
    number.parse().expect("du says a number")
}

/// What `system df` says of the store, which is no less than the sum of its lines.
fn df(kiln: &Kiln) -> u64 {
    let format = "{{.SizeBytes}} {{.StoreBytes}}";
    let said = kiln.run(&["system", "df", "--format", format]).ok();
    let number = |text: &str| text.parse::<u64>().expect("a number");
    let (mut sum, mut store) = (0, 0);
    for line in said.stdout.lines() {
        let (size, all) = line.split_once(' ').expect("two numbers");
        sum += number(size);
        store = number(all);
    }
    assert!(sum <= store, "{said}");
    store
}

/// What `df` and `du` say at the same time: what runs on after a build may still be writing to the database.
fn both(kiln: &Kiln) -> (u64, u64) {
    let mut said = (df(kiln), 0);
    for _ in 0..20 {
        said.1 = du(kiln);
        if said.0 == said.1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
        said.0 = df(kiln);
    }
    said
}

fn figures_add_up(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let dockerfile = "FROM busybox AS a\nCOPY big small /\n\
        RUN --mount=type=cache,target=/c,id=some dd if=/dev/urandom of=/c/x bs=1k count=300 2>/dev/null; mkdir /d; chmod 700 /d; echo 1 > /d/f; ln /d/f /d/g\n\
        FROM busybox\nCOPY --from=a /d /d\nRUN dd if=/dev/zero of=/hole bs=1 seek=10M count=1 2>/dev/null; touch /etc/new\n";
    let context = kiln.context(&[
        ("Dockerfile", dockerfile),
        ("big", &"0123456789abcdef".repeat(100_000)),
        ("small", "x"),
    ]);
    kiln.build(&["-t", "one", &context]).ok();
    let (ours, theirs) = both(&kiln);
    assert_eq!(ours, theirs, "kiln system df and du disagree");
    kiln.run(&["rmi", "one"]).ok();
    let (ours, theirs) = both(&kiln);
    assert_eq!(ours, theirs, "after rmi");
    kiln.run(&["system", "df"]).ok().says(&[
        "TYPE            TOTAL     ACTIVE    SIZE",
        "Images          1",
        "Build Cache     6",
    ]);
    kiln.run(&["system", "df", "-v"]).ok().says(&[
        "Images space usage:",
        "cache mount some",
        "exec.cachemount",
        "Limit (storage.max-size)",
    ]);
    kiln.run(&["buildx", "du"]).ok().says(&[
        "RECLAIMABLE",
        "LAST ACCESSED",
        "Shared:",
        "Private:",
        "Total:",
    ]);
    kiln.run(&["builder", "du", "--verbose"]).ok().says(&[
        "Type:         exec.cachemount",
        "Description:  a: RUN --mount=type=cache",
    ]);
}

fn a_step_cannot_pass_the_limit(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let files = |dockerfile: &str| {
        kiln.context(&[
            ("Dockerfile", dockerfile),
            ("big", &"0123456789abcdef".repeat(2 << 20)),
        ])
    };
    // Slowly, so that it is looked at while it runs, and would go on for long.
    let slowly = files(
        "FROM busybox\nRUN while true; do dd if=/dev/zero bs=1M count=4 2>/dev/null; sleep 0.1; done > /big\n",
    );
    let started = Instant::now();
    limited(&kiln, "30MB", &["build", "--progress", "plain", &slowly])
        .failed()
        .says(&[
            "no space left in the store: it would take",
            "its limit is 30.0MB",
            ">>> RUN while true",
            "hint: see what takes the space",
        ]);
    assert!(
        started.elapsed() < Duration::from_secs(20),
        "{:?}",
        started.elapsed()
    );
    // So fast that it is over before anybody looks.
    let fast = files("FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=32 2>/dev/null\n");
    limited(&kiln, "30MB", &["build", "--progress", "plain", &fast])
        .failed()
        .says(&["no space left in the store"]);
    // What Kiln itself writes never passes the limit.
    let copied = files("FROM busybox\nCOPY big /\n");
    limited(&kiln, "30MB", &["build", "--progress", "plain", &copied])
        .failed()
        .says(&[
            "no space left in the store: it would take",
            "storage.max-size",
        ]);
    kiln.leaves_nothing();
    let small = files("FROM busybox\nRUN echo fits > /x\nCMD [\"cat\", \"/x\"]\n");
    limited(&kiln, "30MB", &["build", "-t", "small", &small]).ok();
    kiln.run(&["run", "--rm", "small"]).ok().says(&["fits"]);
    assert!(du(&kiln) < 30_000_000);
    kiln.run(&["system", "check", "--deep"]).ok();
    // A limit that makes no sense is told.
    limited(&kiln, "lots", &["system", "df"])
        .failed()
        .says(&["KILN_STORAGE_MAX_SIZE", "expected a size like 50GB"]);
}

/// A context whose image has so many megabytes of its own, in one step, on top of a small step.
fn sized(kiln: &Kiln, name: &str, megabytes: usize) -> String {
    let dockerfile = format!(
        "FROM busybox\nRUN echo {name} > /name\nRUN dd if=/dev/zero of=/{name} bs=1M count={megabytes} 2>/dev/null\n"
    );
    kiln.context(&[("Dockerfile", &dockerfile)])
}

/// The steps of a build of it that the cache has.
fn cached(kiln: &Kiln, context: &str) -> usize {
    2 - kiln.build(&[context]).ok().executed().len()
}

fn least_recently_used_goes_first(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let [tagged, old, used, new] =
        ["tagged", "old", "used", "new"].map(|name| sized(&kiln, name, 8));
    kiln.build(&["-t", "tagged", &tagged]).ok();
    for context in [&old, &used] {
        kiln.build(&["-t", "none", context]).ok();
        kiln.run(&["rmi", "none"]).ok();
    }
    // Use is known to the minute, which a test cannot wait for.
    std::thread::sleep(Duration::from_millis(20));
    let minute_ago = "UPDATE records SET used = used - 120000000000";
    sql(&kiln, minute_ago);
    assert_eq!(cached(&kiln, &used), 2);
    kiln.run(&["image", "prune", "-f"]).ok();
    // There are 24 MB: the fourth is too much, and what was not used for longest is in the way.
    limited(&kiln, "31MB", &["build", "-t", "new", &new]).ok();
    kiln.leaves_nothing();
    assert!(du(&kiln) < 31_000_000, "{}", du(&kiln));
    kiln.run(&["run", "--rm", "tagged", "cat", "/name"])
        .ok()
        .says(&["tagged"]);
    let all = kiln.run(&["builder", "du", "--verbose"]).ok();
    assert!(!all.stdout.contains("/old bs"), "{all}");
    assert!(all.stdout.contains("/tagged bs"), "{all}");
    assert_eq!(
        cached(&kiln, &tagged),
        2,
        "what a tag keeps stays in the cache"
    );
    kiln.run(&["system", "check", "--deep"]).ok();
}

/// Changes the database by hand.
fn sql(kiln: &Kiln, statement: &str) {
    let file = kiln.store().join("kiln.db");
    let line = format!(
        "import sqlite3; c = sqlite3.connect('{}'); c.execute('''{statement}'''); c.commit()",
        file.display()
    );
    let status = kiln
        .wrapped(&["python3", "-c", &line], &[])
        .status()
        .expect("python3 starts");
    assert!(status.success());
}

fn what_runs_keeps_its_layers(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let context = kiln.context(&[(
        "Dockerfile",
        "FROM busybox AS a\nRUN echo kept > /kept\nRUN --mount=type=cache,target=/c,id=held echo cached > /c/x; sleep 3; cat /c/x /kept > /out\n\
         FROM busybox\nCOPY --from=a /out /out\nCMD [\"cat\", \"/out\"]\n",
    )]);
    kiln.build(&[
        "--target",
        "a",
        &kiln.context(&[("Dockerfile", "FROM busybox AS a\nRUN echo kept > /kept\n")]),
    ])
    .ok();
    let mut build = kiln
        .command(&["build", "-q", "-t", "slow", &context])
        .stdout(Stdio::null())
        .spawn()
        .expect("kiln starts");
    std::thread::sleep(Duration::from_millis(1500));
    kiln.run(&["system", "prune", "-af"]).ok();
    kiln.run(&["builder", "du"]).ok().says(&["false"]);
    assert!(build.wait().expect("own child").success());
    kiln.run(&["run", "--rm", "slow"])
        .ok()
        .says(&["cached\nkept"]);
    kiln.run(&["system", "check", "--deep"]).ok();
}

fn pruned_by_hand(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let [first, second] = ["first", "second"].map(|name| sized(&kiln, name, 2));
    kiln.build(&["-t", "name", &first]).ok();
    kiln.build(&["-t", "name", &second]).ok();
    kiln.run(&["image", "prune", "-f", "--filter", "until=1h"])
        .ok()
        .says(&["Total reclaimed space: 0B"])
        .silent_about(&["Deleted Images:"]);
    kiln.run(&["image", "prune", "-f"]).ok().says(&[
        "Deleted Images:",
        "deleted: sha256:",
        "Total reclaimed space: ",
    ]);
    // Asked, and nobody says yes.
    kiln.run(&["builder", "prune"])
        .ok()
        .says(&["WARNING! This will remove all dangling build cache. Are you sure you want to continue? [y/N]"]);
    assert_eq!(cached(&kiln, &first), 2);
    kiln.run(&["image", "prune", "-f"]).ok();
    kiln.run(&["builder", "prune", "-f", "--filter", "unused-for=1h"])
        .ok()
        .says(&["Total:\t0B"]);
    kiln.run(&["buildx", "prune", "-f", "--keep-storage", "100MB"])
        .ok()
        .says(&["Total:\t0B"]);
    kiln.run(&["builder", "prune", "-f"])
        .ok()
        .says(&["ID             RECLAIMABLE   SIZE", "Total:\t2."]);
    // What the image has stays in the cache, unless all has to go.
    assert_eq!(cached(&kiln, &second), 2);
    assert_eq!(cached(&kiln, &first), 0);
    kiln.run(&["system", "prune", "-af", "--volumes"])
        .ok()
        .says(&[
            "untagged: name:latest",
            "untagged: busybox:latest",
            "Deleted build cache objects:",
            "Total reclaimed space: ",
        ]);
    assert!(du(&kiln) < 2_000_000, "{}", du(&kiln));
    kiln.run(&["builder", "prune", "-f", "--filter", "colour=red"])
        .failed()
        .says(&["expected one of until, unused-for, type"]);
}

fn many_builds_in_a_small_store(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    std::thread::scope(|scope| {
        let builders: Vec<_> = (0..4)
            .map(|builder| {
                let kiln = &kiln;
                scope.spawn(move || {
                    for round in 0..5 {
                        let name = format!("b{builder}r{round}");
                        let dockerfile = format!(
                            "FROM busybox AS a\nRUN echo shared > /shared\nRUN dd if=/dev/zero of=/z bs=1M count=3 2>/dev/null; echo {name} > /n\n\
                             FROM busybox\nCOPY --from=a /n /shared /\nRUN cat /n /shared > /all\nCMD [\"cat\", \"/all\"]\n"
                        );
                        let context = kiln.context(&[("Dockerfile", &dockerfile)]);
                        let tag = format!("of{builder}");
                        limited(kiln, "40MB", &["build", "-q", "-t", &tag, &context]).ok();
                        kiln.run(&["run", "--rm", &tag]).ok().says(&[&format!("{name}\nshared")]);
                    }
                })
            })
            .collect();
        while builders.iter().any(|builder| !builder.is_finished()) {
            kiln.run(&["builder", "prune", "-f"]).ok();
            kiln.run(&["image", "prune", "-f"]).ok();
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    kiln.run(&["system", "check", "--deep"]).ok();
    kiln.leaves_nothing();
}

fn a_container_cannot_pass_the_limit(setting: Setting) {
    let Some(kiln) = Kiln::fresh(setting, &["busybox"]) else {
        return;
    };
    let limit = (du(&kiln) + (20 << 20)).to_string();
    let endless = "while :; do head -c 1048576 /dev/urandom >> /big; sleep 0.01; done";
    let started = Instant::now();
    limited(
        &kiln,
        &limit,
        &["run", "--rm", "busybox", "sh", "-c", endless],
    )
    .failed()
    .says(&["no space left in the store: it would take"]);
    assert!(started.elapsed() < Duration::from_secs(30));
    kiln.leaves_nothing();
    limited(&kiln, &limit, &["run", "--rm", "busybox", "true"]).ok();
    // One that ends before anybody looks.
    limited(
        &kiln,
        &limit,
        &[
            "run",
            "busybox",
            "sh",
            "-c",
            "head -c 30000000 /dev/urandom > /big",
        ],
    )
    .failed()
    .says(&["no space left in the store"]);
}
