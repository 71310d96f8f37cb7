//! The grammar of the commands that look after the store: `system`, `builder`, `image prune`, `cache`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::args::InfoArgs;
use crate::docker_flags::{OfBuilders, Others};
use crate::later::Later;

/// `kiln system`.
#[derive(Debug, Subcommand)]
pub(crate) enum SystemCommand {
    /// Show what takes how much of the disk
    Df(Later<DfArgs>),
    /// Remove what is not used: untagged images and the build cache
    Prune(Later<SystemPruneArgs>),
    /// Look whether the store is whole
    Check(Later<CheckArgs>),
    /// Show where Kiln runs and how
    Info(Later<InfoArgs>),
}

/// `kiln system df`.
#[derive(Debug, Args)]
pub(crate) struct DfArgs {
    /// Show each image and each thing in the build cache
    #[arg(short, long)]
    pub(crate) verbose: bool,
    /// json, or a template of fields: '{{.Type}} {{.Size}}'
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
}

/// `kiln system prune`.
#[derive(Debug, Args)]
pub(crate) struct SystemPruneArgs {
    /// Also tagged images that no container uses
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only what this says: until=DURATION or TIME, label=NAME[=VALUE]
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// Accepted for docker's sake: there are no volumes
    #[arg(long)]
    pub(crate) volumes: bool,
}

/// `kiln system check`.
#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    /// Read every file and compare its content
    #[arg(long)]
    pub(crate) deep: bool,
    /// Drop what is damaged; it is built or fetched again when it is needed
    #[arg(long)]
    pub(crate) repair: bool,
}

/// `kiln builder prune`.
#[derive(Debug, Args)]
pub(crate) struct BuilderPruneArgs {
    /// Also what images have, too: frees nothing, but their next build begins anew
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only what this says: until=DURATION or TIME, unused-for=DURATION, type=KIND
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// Keep so much of the cache
    #[arg(
        long = "max-used-space",
        visible_alias = "keep-storage",
        value_name = "SIZE"
    )]
    pub(crate) keep: Option<String>,
    /// Keep so much of the cache, whatever else is said
    #[arg(long, value_name = "SIZE")]
    pub(crate) reserved_space: Option<String>,
    /// Stop when so much of the disk is free
    #[arg(long, value_name = "SIZE")]
    pub(crate) min_free_space: Option<String>,
    /// Accepted for docker's sake
    #[arg(long, hide = true)]
    pub(crate) verbose: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfBuilders>,
}

/// `kiln builder du`.
#[derive(Debug, Args)]
pub(crate) struct DuArgs {
    /// Show all that is known
    #[arg(long)]
    pub(crate) verbose: bool,
    /// Only what this says: until=DURATION or TIME, unused-for=DURATION, type=KIND
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// json, table, pretty, or a template of fields: '{{.ID}} {{.Size}}'
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    #[command(flatten)]
    pub(crate) docker: Others<OfBuilders>,
}

/// `kiln image prune`.
#[derive(Debug, Args)]
pub(crate) struct ImagePruneArgs {
    /// Also those with a name that no container uses
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only what this says: until=DURATION or TIME, label=NAME[=VALUE], label!=NAME[=VALUE]
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
}

/// `kiln cache`.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// List cache mounts
    Ls {
        /// Print folders' names only
        #[arg(short, long)]
        quiet: bool,
        /// Print as JSON lines
        #[arg(long, value_name = "json", value_parser = ["json"])]
        format: Option<String>,
    },
    /// Remove cache mounts
    Rm {
        /// Ids, as `RUN --mount=type=cache,id=ID` or its target says, or names of folders
        #[arg(required_unless_present = "all")]
        caches: Vec<String>,
        /// All of them
        #[arg(short, long, conflicts_with = "caches")]
        all: bool,
    },
    /// Write cache mounts into an archive
    Export {
        /// The archive, compressed as its name says (.tar, .tar.gz, .tar.zst) [default: standard output]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Ids or names of folders [default: all]
        caches: Vec<String>,
    },
    /// Put the cache mounts of an archive into the store
    Import {
        /// The archive [default: standard input]
        #[arg(short, long, value_name = "FILE")]
        input: Option<PathBuf>,
        /// The archive, as an argument
        #[arg(conflicts_with = "input")]
        file: Option<PathBuf>,
    },
}
