//! Builds killed at random instants: after each the store must be whole, and the next build right.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::machine::{Kiln, Profile};
use crate::{bases, say};

/// A build with every kind of step that writes: a copy, processes, hard links, a cache mount, two stages.
const DOCKERFILE: &str = "FROM busybox AS a\nARG ROUND\nCOPY . /a/\n\
    RUN for i in 1 2 3 4 5 6 7 8; do echo $ROUND > /a/$i; done; rm /a/x\n\
    RUN --mount=type=cache,target=/c mkdir -p /b/c && ln /a/1 /b/c/one && chown 7:8 /b/c && echo $ROUND > /c/last\n\
    FROM busybox\nARG ROUND\nCOPY --from=a /a /b /all/\n\
    RUN rm -rf /var/www && mkdir /var/www && echo $ROUND > /var/www/new\n";

/// Numbers that look random and can be repeated (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Kills `count` builds with the store that `command` uses. `context` is an empty folder that the builds may read.
///
/// # Errors
/// When the store is not whole after a kill, or a build then fails or gives something else.
pub fn torture(
    command: &dyn Fn(&[&str]) -> Command,
    context: &Path,
    count: usize,
    seed: u64,
) -> Result<()> {
    let mut random = Random(seed | 1);
    std::fs::write(context.join("Dockerfile"), DOCKERFILE)?;
    std::fs::write(context.join("x"), "x")?;
    std::fs::create_dir_all(context.join("y"))?;
    std::fs::write(context.join("y/z"), "z".repeat(100_000))?;
    let context = context.to_str().context("a plain name")?;
    let run = |args: &[&str], what: &str| -> Result<String> {
        let output = command(args).output().context("kiln starts")?;
        ensure!(
            output.status.success(),
            "seed {seed}, {what}: {}\n{}{}",
            args.join(" "),
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let build = |round: usize| {
        let arg = format!("ROUND={round}");
        ["build", "-q", "-t", "killed", "--build-arg", &arg, context].map(str::to_owned)
    };
    // How long a whole build takes: kills are spread over that, and a little more for what follows it.
    let started = Instant::now();
    let first = build(0);
    run(&first.each_ref().map(String::as_str), "at first")?;
    let whole = started.elapsed().max(Duration::from_millis(50)) * 5 / 4;
    for round in 1..=count {
        let args = build(round);
        let args = args.each_ref().map(String::as_str);
        let mut child = command(&args)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("kiln starts")?;
        let delay = Duration::from_micros(random.below(whole.as_micros() as u64));
        std::thread::sleep(delay);
        // It may have ended.
        let _ = child.kill();
        child.wait()?;
        let when = format!("round {round}, killed after {delay:?}");
        // Every tenth time with all that there is to read.
        let check: &[&str] = if round % 10 == 0 {
            &["system", "check", "--deep"]
        } else {
            &["system", "check"]
        };
        run(check, &when)?;
        run(&args, &when)?;
        let said = run(
            &[
                "run",
                "--rm",
                "killed",
                "sh",
                "-c",
                "cat /var/www/new /all/8 /all/c/one; ls /all | wc -l",
            ],
            &when,
        )?;
        let expected = format!("{round}\n{round}\n{round}\n11\n");
        ensure!(
            said == expected,
            "seed {seed}, {when}: {said:?}, expected {expected:?}"
        );
    }
    Ok(())
}

/// Kills `count` builds as whoever calls, in a store of their own.
///
/// # Errors
/// As [`torture`].
pub fn run(count: usize, seed: Option<u64>) -> Result<()> {
    let folder = crate::test::scratch().join(format!("soak-{}", std::process::id()));
    let context = folder.join("context");
    std::fs::create_dir_all(&context)?;
    let kiln = Kiln::build(Profile::Dev)?.with_store(&folder.join("store"));
    bases::run_with(&kiln, &["busybox"])?;
    let seed = seed.unwrap_or_else(|| u64::from(std::process::id()));
    say(&format!(
        "{count} kills with seed {seed} in {}",
        folder.display()
    ));
    torture(&|args| kiln.command(args), &context, count, seed)?;
    say(&format!(
        "{count} kills: the store was whole and the next build right after each"
    ));
    // A plain user's layers belong to other ids: then the folder stays.
    let _ = std::fs::remove_dir_all(&folder);
    Ok(())
}
