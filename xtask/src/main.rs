//! `cargo xtask`: what a script would do.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{bases, bench, compare, conformance, demo, dist, docs, mutate, projects, soak, test};

/// What a script would do: base images, the demo, the test run, comparisons, measurements.
#[derive(Parser)]
#[command(name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes base images from Debian packages and puts them into Kiln's store.
    Bases {
        /// Only these; all if none is named.
        #[arg(value_parser = bases::Base::NAMES)]
        names: Vec<String>,
        /// Push them to this registry, too: `HOST:PORT`, or with a path.
        #[arg(long, value_name = "REGISTRY")]
        push: Option<String>,
    },
    /// Builds Kiln and the base images, then builds, shows and runs the Go example.
    Demo,
    /// Makes what is shipped: a static binary, and an image with it.
    Dist,
    /// Writes what is generated in docs: the reference of the command line, the picture of the display.
    Docs,
    /// Installs what the tests need, makes the base images and runs all tests.
    Test {
        /// Passed to `cargo test`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
    /// Measures how long the projects in `examples` take: cold, cached, after one edit. With `KILN_PEERS` also by docker.
    Projects {
        /// Only these; all if none is named.
        names: Vec<String>,
        /// How often; the table shows medians.
        #[arg(long, default_value_t = 1)]
        rounds: usize,
    },
    /// Measures Kiln, and with `KILN_PEERS` docker and buildah beside it, in turn; prints medians and ratios.
    Bench {
        /// Only these scenarios; all if none is named.
        names: Vec<String>,
        /// How often; the table shows medians.
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// Leave one of them out: docker or buildah.
        #[arg(long, value_name = "PEER")]
        without: Vec<String>,
        /// Kiln as the tests' plain user.
        #[arg(long)]
        rootless: bool,
    },
    /// Tests that take long.
    #[command(subcommand)]
    Soak(Soak),
    /// Builds a Dockerfile with Kiln and with docker, and shows how the two images differ.
    Compare(CompareArguments),
    /// Builds the cases of `crates/tests/conformance` and compares each result with its golden file.
    Conformance {
        /// Only cases whose `group/name` contains this.
        filter: Option<String>,
        /// Writes golden files that are missing or of an older text of their case, from what docker builds.
        #[arg(long, value_name = "docker")]
        record: Option<Oracle>,
    },
    /// Breaks places of the language and the copy code, one at a time; each must turn cases of `conformance` red.
    Mutate,
}

#[derive(Subcommand)]
enum Soak {
    /// Runs the fuzz targets of `crates/fuzz`; needs a C++ compiler.
    Fuzz {
        /// Only these; all if none is named.
        targets: Vec<String>,
        /// How long each of them runs.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
    },
    /// Kills builds at random instants; after each the store must be whole, and the next build right.
    Kills {
        /// How many.
        #[arg(long, default_value_t = 1000)]
        count: usize,
        /// Of the random instants, to have the same ones again.
        #[arg(long)]
        seed: Option<u64>,
    },
}

/// Who says what is right.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Oracle {
    Docker,
}

#[derive(clap::Args)]
struct CompareArguments {
    /// The build context.
    context: PathBuf,
    /// The Dockerfile; `CONTEXT/Dockerfile` if not given.
    #[arg(short, long)]
    file: Option<PathBuf>,
    /// The stage to build.
    #[arg(long)]
    target: Option<String>,
    /// A build argument, `NAME=VALUE`.
    #[arg(long = "build-arg")]
    build_args: Vec<String>,
    /// A base image to hand to docker besides those that the Dockerfile names.
    #[arg(long = "base")]
    bases: Vec<String>,
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Bases { names, push } => {
            bases::run_named(&names, push.as_deref()).map(|()| ExitCode::SUCCESS)
        }
        Command::Demo => demo::run().map(|()| ExitCode::SUCCESS),
        Command::Dist => dist::run_all().map(|()| ExitCode::SUCCESS),
        Command::Docs => docs::run().map(|()| ExitCode::SUCCESS),
        Command::Test { args } => test::run(&args),
        Command::Conformance { filter, record } => {
            let filter = filter.as_deref().unwrap_or_default();
            match record {
                Some(Oracle::Docker) => conformance::record(filter),
                None => conformance::run(filter),
            }
        }
        Command::Mutate => mutate::run(),
        Command::Soak(Soak::Fuzz { targets, minutes }) => soak::fuzz::run(&targets, minutes),
        Command::Projects { names, rounds } => {
            projects::run(&names, rounds).map(|()| ExitCode::SUCCESS)
        }
        Command::Bench {
            names,
            rounds,
            without,
            rootless,
        } => bench::run(&names, rounds, &without, rootless).map(|()| ExitCode::SUCCESS),
        Command::Soak(Soak::Kills { count, seed }) => {
            soak::kills::run(count, seed).map(|()| ExitCode::SUCCESS)
        }
        Command::Compare(arguments) => compare::run(&compare::Request {
            context: arguments.context,
            file: arguments.file,
            target: arguments.target,
            build_args: arguments.build_args,
            bases: arguments.bases,
        }),
    };
    result.unwrap_or_else(|error| {
        xtask::say(&format!("error: {error:#}"));
        ExitCode::FAILURE
    })
}
