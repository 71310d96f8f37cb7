//! From a Dockerfile to a build graph.
//!
//! [`plan`] is a pure function: it is given the text, what the user asked for and what is known of the world, and it
//! gives the graph, or what it still needs to know. The caller finds that out and calls again.

mod args;
mod build;
mod build_checks;
mod checks;
mod config;
mod copy;
mod expansion;
mod git;
mod outline;
mod planner;
mod run;
mod sources;
mod stages;
mod titles;

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kiln_graph::{Edge, Graph, Network, Place, SourceOp};
use kiln_image::{Digest, ImageConfig, Platform};

use planner::{Done, Purpose};

pub use kiln_dockerfile::{Diagnostic, Lines, SourceText, Warning};
pub use outline::{Outline, OutlineArg, OutlineMount, Target, targets};

/// What the user asked for.
#[derive(Debug, Clone)]
pub struct Options {
    /// The stage to build (name or number); the last one if not given.
    pub target: Option<String>,
    /// `--build-arg`: name and value.
    pub build_args: BTreeMap<String, String>,
    /// `--label`: these win over the Dockerfile's.
    pub labels: BTreeMap<String, String>,
    /// Nothing is taken from the cache.
    pub no_cache: bool,
    /// Stages of which nothing is taken from the cache.
    pub no_cache_filter: Vec<String>,
    /// The platform to build for.
    pub target_platform: Platform,
    /// The user asked for that platform: the image says it is for it, whatever its base says.
    pub platform_requested: bool,
    /// The platform that the build runs on.
    pub build_platform: Platform,
    /// The same Dockerfile is planned for several platforms: titles and names of stages name the platform.
    pub multi_platform: bool,
    /// The main build context.
    pub context: Context,
    /// `--build-context`: named contexts, by the name that the user gave.
    pub contexts: BTreeMap<String, Context>,
    /// The network of RUN steps that do not ask for one.
    pub network: Network,
    /// `--add-host`: host name and address.
    pub extra_hosts: Vec<(String, String)>,
    /// `--ulimit`: name, soft, hard.
    pub ulimits: Vec<(String, u64, u64)>,
    /// `--shm-size` in bytes; 0 for the default.
    pub shm_size: u64,
    /// The host name in RUN steps; empty for the default.
    pub hostname: String,
    /// Times in the image are no later than this (seconds since 1970). The `SOURCE_DATE_EPOCH` build argument when
    /// not given.
    pub source_date_epoch: Option<i64>,
}

impl Options {
    /// A plain build of the last stage for the platform it runs on, from a local context.
    pub fn new(platform: Platform) -> Self {
        Self {
            target: None,
            build_args: BTreeMap::new(),
            labels: BTreeMap::new(),
            no_cache: false,
            no_cache_filter: Vec::new(),
            target_platform: platform.clone(),
            platform_requested: false,
            build_platform: platform,
            multi_platform: false,
            context: Context::Local,
            contexts: BTreeMap::new(),
            network: Network::Default,
            extra_hosts: Vec::new(),
            ulimits: Vec::new(),
            shm_size: 0,
            hostname: String::new(),
            source_date_epoch: None,
        }
    }
}

/// What a build context is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Context {
    /// Nothing: the Dockerfile came alone.
    Empty,
    /// Files that the engine can give under the context's name (`context` for the main one).
    Local,
    /// An archive that the engine can give under the context's name: a folder with the one file `context`.
    Archive,
    /// A git repository: remote and fragment.
    Git(String),
    /// A file on a web server, unpacked if it is an archive.
    Http(String),
    /// `docker-image://`: an image, as the user wrote the reference.
    Image(String),
    /// `oci-layout://`: an image in a layout folder, which the engine can give under the context's name; what follows
    /// the folder in the user's text (`:tag`, `@digest`), without the colon of a tag.
    OciLayout(String),
}

/// What is known of the world.
#[derive(Debug, Clone, Default)]
pub struct Facts {
    /// Images by the reference and platform of the [`Need::ImageConfig`] that asked for them.
    pub images: HashMap<(String, Platform), ImageFact>,
    /// The cleaned patterns of ignore files by context name; an empty list when there is no such file.
    pub ignore: HashMap<String, Vec<String>>,
    /// References of images that nobody could say anything about: their facts are placeholders, and checks that
    /// need them are left out.
    pub unknown: BTreeSet<String>,
}

/// What is known of an image.
#[derive(Debug, Clone)]
pub struct ImageFact {
    /// What the reference points to: the digest that pins it.
    pub digest: Digest,
    /// The config for the platform.
    pub config: ImageConfig,
}

/// Something that must be known before the graph can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// An image's digest and config.
    ImageConfig {
        /// Canonical reference (`docker.io/library/busybox:latest`), or `oci-layout://NAME` with `:tag` or `@digest`
        /// for the layout that is the context NAME.
        reference: String,
        /// The platform wanted.
        platform: Platform,
        /// Where the Dockerfile asks for it.
        place: Place,
    },
    /// The ignore patterns of a local context or an archive.
    IgnoreFile {
        /// The context's name: `context`, or the name given with `--build-context`.
        context: String,
    },
}

/// What [`plan`] comes to.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one value a build")]
pub enum Outcome {
    /// All is known.
    Plan(Plan),
    /// This must be found out first; never empty, each need once.
    Needs(Vec<Need>),
}

/// A build graph and what becomes of its result.
#[derive(Debug)]
pub struct Plan {
    /// The operations, only those that the target needs.
    pub graph: Graph,
    /// The target's root file system; `None` when it has no layers (a `FROM scratch` with metadata alone).
    pub result: Option<Edge>,
    /// The image's config. `history` is complete but for the times of new entries; diff ids and `created` are missing.
    pub config: ImageConfig,
    /// How many of the result's layers, the lowest, are those of an image that it starts from.
    pub base_layers: usize,
    /// The name of the stage that is built, or `stage-N`.
    pub stage: String,
    /// The platform that the image is for.
    pub platform: Platform,
    /// Names of the stages that the target does not need.
    pub skipped: Vec<String>,
    /// What the checks found.
    pub warnings: Vec<Warning>,
    /// Times in the image are no later than this, seconds since 1970.
    pub source_date_epoch: Option<i64>,
}

/// Whether the text has the form of a git repository's address, with a query or a fragment.
pub fn is_git_address(text: &str) -> bool {
    git::parse(text).is_some()
}

/// The source that the main context is, when it is the git repository at this address, which may have a query.
///
/// # Errors
/// When the address contradicts itself or asks for what there is not.
pub fn git_context(text: &str, options: &Options) -> Result<SourceOp, String> {
    git::context(text, &options.build_args)
}

/// Plans the build of the Dockerfile in `source`.
///
/// # Errors
/// When the text is no Dockerfile, or asks for what cannot be.
pub fn plan(
    source: &SourceText,
    options: &Options,
    facts: &Facts,
) -> Result<Outcome, Box<Diagnostic>> {
    plan_checked(source, options, facts, &mut Vec::new())
}

/// The same; `warnings` becomes what the checks found, also when something is wrong.
///
/// # Errors
/// When the text is no Dockerfile, or asks for what cannot be.
pub fn plan_checked(
    source: &SourceText,
    options: &Options,
    facts: &Facts,
    warnings: &mut Vec<Warning>,
) -> Result<Outcome, Box<Diagnostic>> {
    match planner::run(source, options, facts, Purpose::Build, warnings)? {
        Done::Needs(needs) => Ok(Outcome::Needs(needs)),
        Done::Plan(plan) => Ok(Outcome::Plan(Plan {
            warnings: warnings.clone(),
            ..*plan
        })),
        Done::Checked | Done::Outline(_) => unreachable!("only a plan was asked for"),
    }
}

/// Checks all stages, or those that the target needs when one is named. `warnings` becomes what was found, in the
/// order in which `BuildKit` finds it. Gives what must be known first; nothing when all is done.
///
/// # Errors
/// With what stands in the way of a build.
pub fn check(
    source: &SourceText,
    options: &Options,
    facts: &Facts,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Need>, Box<Diagnostic>> {
    match planner::run(source, options, facts, Purpose::Check, warnings)? {
        Done::Needs(needs) => Ok(needs),
        Done::Plan(_) | Done::Checked | Done::Outline(_) => Ok(Vec::new()),
    }
}

/// What a build of the target takes: arguments, secrets, agents. Gives what must be known first instead.
///
/// # Errors
/// With what stands in the way of a build.
pub fn outline(
    source: &SourceText,
    options: &Options,
    facts: &Facts,
) -> Result<Result<Outline, Vec<Need>>, Box<Diagnostic>> {
    match planner::run(source, options, facts, Purpose::Outline, &mut Vec::new())? {
        Done::Needs(needs) => Ok(Err(needs)),
        Done::Outline(outline) => Ok(Ok(outline)),
        Done::Plan(_) | Done::Checked => unreachable!("only an outline was asked for"),
    }
}
