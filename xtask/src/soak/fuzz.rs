//! `cargo xtask soak fuzz`: the fuzz targets of `crates/fuzz` under libFuzzer, for as long as one likes.
//!
//! It works with the stable compiler: the coverage pass is one of LLVM's own, which `-C passes` reaches; what needs a
//! nightly one is the address sanitizer, and the crates that are fuzzed have no `unsafe`. What is found is kept in
//! `TARGET_DIR/fuzz/corpus` for the next time. An input that fails belongs into `crates/fuzz/regressions/TARGET`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::{num::NonZero, thread};

use anyhow::{Context as _, Result, bail, ensure};
use kiln_fuzz::{TARGETS, Target};

use crate::process::{command, output, run as run_command};
use crate::{say, target_dir, workspace};

/// What makes LLVM count the edges that are taken, and hand over what is compared.
const COVERAGE: [&str; 8] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Ccodegen-units=1",
    "-Cdebug-assertions=on",
    "-Coverflow-checks=on",
];
/// No input needs more: what takes it is a finding.
const MEGABYTES: u32 = 1024;
/// Seconds for one input.
const TIMEOUT: u32 = 10;
/// Bytes of an input; an archive takes some blocks.
const LONGEST: u32 = 16 * 1024;

/// Runs the targets named (all if none is), each for so many minutes, as many at once as there are processors. Code 1
/// if one fails.
pub fn run(names: &[String], minutes: u64) -> Result<ExitCode> {
    let mut targets: Vec<&Target> = TARGETS.iter().collect();
    for name in names {
        ensure!(
            TARGETS.iter().any(|target| target.name == name),
            "no target {name:?}; there are: {}",
            TARGETS.map(|target| target.name).join(", ")
        );
    }
    targets.retain(|target| names.is_empty() || names.iter().any(|name| name == target.name));
    let fuzzer = build()?;
    let next = AtomicUsize::new(0);
    let failed = AtomicBool::new(false);
    let errors = Mutex::new(Vec::new());
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads.min(targets.len()) {
            scope.spawn(|| {
                while let Some(target) = targets.get(next.fetch_add(1, Ordering::Relaxed)) {
                    match soak(&fuzzer, target, minutes) {
                        Ok(true) => {}
                        Ok(false) => failed.store(true, Ordering::Relaxed),
                        Err(error) => errors.lock().expect("no panic while held").push(error),
                    }
                }
            });
        }
    });
    if let Some(error) = errors.into_inner().expect("no panic while held").pop() {
        return Err(error);
    }
    Ok(if failed.into_inner() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

/// Builds the targets with libFuzzer. `--target` keeps the flags away from build scripts and macros.
fn build() -> Result<PathBuf> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let said = String::from_utf8(output(&mut command(rustc, ["-vV"]))?)?;
    let host = said.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say for which host it is")?;
    let target = target_dir().join("fuzz").join("target");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let args = ["build", "--release", "--locked", "--package", "kiln-fuzz"];
    run_command(
        command(cargo, args)
            .args(["--features", "libfuzzer", "--target", host])
            .current_dir(workspace())
            .env("CARGO_TARGET_DIR", &target)
            .env("CARGO_PROFILE_RELEASE_LTO", "off")
            .env("CARGO_PROFILE_RELEASE_STRIP", "none")
            .env("RUSTFLAGS", COVERAGE.join(" ")),
    )?;
    Ok(target.join(host).join("release/kiln-fuzz"))
}

/// Whether a target held.
fn soak(fuzzer: &Path, target: &Target, minutes: u64) -> Result<bool> {
    let folder = target_dir().join("fuzz");
    let corpus = folder.join("corpus").join(target.name);
    let findings = folder.join("findings").join(target.name);
    for folder in [&corpus, &findings] {
        fs::create_dir_all(folder)?;
    }
    let seeds = (target.seeds)();
    for (number, seed) in seeds.iter().enumerate() {
        fs::write(corpus.join(format!("seed-{number}")), seed)?;
    }
    let log = findings.join("log");
    let mut fuzz = command(fuzzer, [format!("-max_total_time={}", minutes * 60)]);
    fuzz.arg(format!("-rss_limit_mb={MEGABYTES}"))
        .arg(format!("-timeout={TIMEOUT}"))
        .arg(format!("-max_len={LONGEST}"))
        .arg("-print_final_stats=1")
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .arg(&corpus);
    if target.regressions().is_dir() {
        fuzz.arg(target.regressions());
    }
    let status = fuzz
        .env("KILN_FUZZ_TARGET", target.name)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?)
        .status()
        .with_context(|| format!("cannot start {}", fuzzer.display()))?;
    let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    let runs = said
        .lines()
        .find_map(|line| line.strip_prefix("stat::number_of_executed_units:"))
        .map_or("?", str::trim);
    let coverage = said
        .lines()
        .rev()
        .find_map(|line| line.split_once("cov: ")?.1.split(' ').next())
        .unwrap_or("?");
    let name = target.name;
    if status.success() {
        say(&format!(
            "{name:12} {minutes} minutes, {runs} inputs, {coverage} edges: held"
        ));
        return Ok(true);
    }
    if !said.contains("Test unit written to") {
        bail!("{name}: {status}; see {}", log.display());
    }
    say(&format!(
        "{name:12} FAILED; see {} and the input beside it",
        log.display()
    ));
    Ok(false)
}
