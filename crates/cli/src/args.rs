//! The command line's grammar.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::commands::LimitArgs;
use crate::container_args::{
    CommitArgs, ContainerArgs, CpArgs, ExportArgs, KillArgs, PsArgs, RmArgs, RunArgs, StartArgs,
    StopArgs,
};
use crate::docker_flags::{BuildFlags, OfBuilders, OfProgram, OfRmi, OfTransfers, Others};
use crate::later::Later;
use crate::long_names::{
    BuilderCommand, BuildxCommand, ContainerCommand, HistoryFormatArgs, ImageCommand,
    ImageHistoryArgs, InspectArgs,
};
use crate::manifest_args::ManifestCommand;
use crate::storage_args::{CacheCommand, SystemCommand};

/// Container images from Dockerfiles: no daemon, no root needed.
#[derive(Debug, Parser)]
#[command(
    name = "kiln",
    version,
    disable_version_flag = true,
    disable_help_subcommand = true,
    // As in docker, the last one of an option that is there twice counts.
    args_override_self = true,
    max_term_width = 100
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    /// Print the version
    #[arg(short = 'v', short_alias = 'V', long)]
    pub(crate) version: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfProgram>,
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Folder of the store [default: /var/lib/kiln for root, else ~/.local/share/kiln]
    #[arg(long, global = true, env = "KILN_ROOT", value_name = "DIR")]
    pub(crate) root: Option<PathBuf>,
    /// How root file systems are made: auto, overlay, overlay-mount or plain
    #[arg(
        long,
        global = true,
        env = "KILN_ROOTFS",
        value_name = "KIND",
        hide = true
    )]
    pub(crate) rootfs: Option<String>,
    /// How steps are separated from this machine: auto, root, userns (user namespace with subordinate ids) or single
    /// (user namespace with one id)
    #[arg(long, global = true, env = "KILN_ISOLATION", value_name = "KIND")]
    pub(crate) isolation: Option<String>,
    /// Folder with docker's config.json, for credentials and proxies [default: ~/.docker]
    #[arg(long, global = true, env = "DOCKER_CONFIG", value_name = "DIR")]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Build an image from a Dockerfile
    Build(Later<BuildArgs>),
    /// Run a command in a new container
    Run(Later<RunArgs>),
    /// Make a container that is started later
    Create(Later<ContainerArgs>),
    /// Run a container that was made before
    Start(Later<StartArgs>),
    /// End containers: by their signal, and by force when they are still there after a while
    Stop(Later<StopArgs>),
    /// Send a signal to containers
    Kill(Later<KillArgs>),
    /// Wait for the end of containers, and print their exit codes
    Wait {
        /// Names or ids
        #[arg(required = true)]
        containers: Vec<String>,
    },
    /// Make an image of what a container changed
    Commit(Later<CommitArgs>),
    /// Open a shell in what a step of a build made
    Debug(Later<DebugArgs>),
    /// List containers
    Ps(Later<PsArgs>),
    /// Copy files out of a container or into it
    Cp(Later<CpArgs>),
    /// Show what a container changed
    Diff {
        /// Name or id
        container: String,
    },
    /// Write the files of a container into an archive
    Export(Later<ExportArgs>),
    /// Remove containers
    Rm(Later<RmArgs>),
    /// List images
    Images(Later<ImagesArgs>),
    /// Make an image from a file system archive
    Import(Later<ImportArgs>),
    /// Load images from an archive
    Load(Later<LoadArgs>),
    /// Save images to an archive
    Save(Later<SaveArgs>),
    /// Fetch an image from a registry
    Pull(Later<PullArgs>),
    /// Bring an image to a registry
    Push(Later<PushArgs>),
    /// Show what registries have, and make lists of images for several platforms
    #[command(subcommand)]
    Manifest(ManifestCommand),
    /// Keep the name and the password for a registry
    Login(Later<LoginArgs>),
    /// Forget the name and the password for a registry
    Logout {
        /// The registry [default: Docker Hub]
        server: Option<String>,
    },
    /// Give an image another name
    Tag(Later<TagArgs>),
    /// Remove images
    Rmi(Later<RmiArgs>),
    /// Show how an image was made, or the last builds
    History(Later<HistoryArgs>),
    /// Show what is known of images and containers, as JSON
    Inspect(Later<InspectArgs>),
    /// Look after images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Look after containers
    #[command(subcommand)]
    Container(ContainerCommand),
    /// Look after the store
    #[command(subcommand)]
    System(SystemCommand),
    /// Look after the build cache
    #[command(subcommand)]
    Builder(BuilderCommand),
    /// What docker's buildx has: build, du, prune, history, imagetools
    #[command(subcommand)]
    Buildx(BuildxCommand),
    /// Look after cache mounts
    #[command(subcommand)]
    Cache(CacheCommand),
    /// Show why the steps of a build were executed
    Why(Later<WhyArgs>),
    /// Show which rule of .dockerignore keeps files out of a build
    ExplainIgnore(Later<ExplainIgnoreArgs>),
    /// Show where Kiln runs and how
    Info(Later<InfoArgs>),
    /// Show the version
    Version(Later<VersionArgs>),
    /// Print a script that completes commands in a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual's pages and cli.md into a folder
    #[command(hide = true)]
    Reference {
        /// The folder
        folder: PathBuf,
    },
}

/// The machine's certificates in steps and containers.
#[derive(Debug, Args)]
pub(crate) struct TrustArgs {
    /// Trust the certificates that this machine trusts; they reach neither layers nor cache keys
    #[arg(long, env = "KILN_HOST_CA", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) host_ca: bool,
    /// Trust the certificates of a PEM file, in the same way; may be repeated
    #[arg(long = "ca-cert", value_name = "FILE")]
    pub(crate) ca_certs: Vec<PathBuf>,
}

/// `kiln build`.
#[derive(Debug, Args)]
#[expect(clippy::struct_field_names, reason = "named after the options")]
pub(crate) struct BuildArgs {
    /// The build context: a folder, - for an archive or a Dockerfile on standard input, or the address of a git
    /// repository, an archive or a Dockerfile
    pub(crate) context: String,
    /// The Dockerfile [default: CONTEXT/Dockerfile], - for standard input, or its address
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<String>,
    /// Name for the image; may be repeated
    #[arg(short, long = "tag", value_name = "NAME")]
    pub(crate) tags: Vec<String>,
    /// The stage to build
    #[arg(long, value_name = "STAGE")]
    pub(crate) target: Option<String>,
    /// Value of an ARG; without a value it is taken from the environment
    #[arg(long = "build-arg", value_name = "NAME[=VALUE]")]
    pub(crate) build_args: Vec<String>,
    /// A further context: a folder, `docker-image://NAME`, `oci-layout://FOLDER[:TAG|@DIGEST]`, or the address of a git repository or file
    #[arg(long = "build-context", value_name = "NAME=WHERE")]
    pub(crate) build_contexts: Vec<String>,
    /// Label of the image
    #[arg(long = "label", value_name = "NAME=VALUE")]
    pub(crate) labels: Vec<String>,
    /// Take nothing from the cache
    #[arg(long, conflicts_with = "no_cache_filter")]
    pub(crate) no_cache: bool,
    /// Take nothing from the cache in these stages
    #[arg(long, value_name = "STAGE", value_delimiter = ',')]
    pub(crate) no_cache_filter: Vec<String>,
    /// Remote cache to read: IMAGE, or type=registry,ref=IMAGE or type=local,src=FOLDER[,tag=TAG|,digest=DIGEST]; may be
    /// repeated
    #[arg(long = "cache-from", value_name = "WHERE")]
    pub(crate) cache_from: Vec<String>,
    /// Where to write the build's cache: IMAGE, type=registry,ref=IMAGE, type=local,dest=FOLDER or type=inline, with mode=max
    /// for all steps; may be repeated
    #[arg(long = "cache-to", value_name = "WHERE")]
    pub(crate) cache_to: Vec<String>,
    /// Platforms to build for, local for this machine's; several make an index of images; may be repeated
    #[arg(
        long = "platform",
        value_name = "OS/ARCH",
        env = "DOCKER_DEFAULT_PLATFORM",
        value_delimiter = ','
    )]
    pub(crate) platforms: Vec<String>,
    /// Check the Dockerfile instead of building it: --call check
    #[arg(long)]
    pub(crate) check: bool,
    /// What to do with the Dockerfile: build, check, outline, targets or subrequests.describe; with ,format=json (and
    /// ,format=sarif for check) as a document
    #[arg(long, value_name = "WHAT[,format=FORM]", default_value = "build")]
    pub(crate) call: String,
    /// How progress is shown: auto, plain, tty, quiet or rawjson
    #[arg(
        long,
        value_name = "KIND",
        env = "BUILDKIT_PROGRESS",
        default_value = "auto"
    )]
    pub(crate) progress: String,
    /// Print the image's id only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Write the image's id to a file
    #[arg(long, value_name = "FILE")]
    pub(crate) iidfile: Option<PathBuf>,
    /// Network of RUN: default, none or host
    #[arg(
        long,
        value_name = "KIND",
        env = "KILN_NETWORK",
        default_value = "default"
    )]
    pub(crate) network: String,
    /// A line of /etc/hosts in RUN
    #[arg(long = "add-host", value_name = "NAME:ADDRESS")]
    pub(crate) add_hosts: Vec<String>,
    /// A right that RUN may ask for: network.host or security.insecure
    #[arg(long = "allow", value_name = "RIGHT", value_delimiter = ',', value_parser = ["network.host", "security.insecure"])]
    pub(crate) allow: Vec<String>,
    /// Size of /dev/shm in RUN
    #[arg(long, value_name = "SIZE")]
    pub(crate) shm_size: Option<String>,
    /// Limit of RUN: TYPE=SOFT[:HARD]
    #[arg(long = "ulimit", value_name = "LIMIT")]
    pub(crate) ulimits: Vec<String>,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// A limit of RUN by its name: memory=SIZE, cpu-shares=N, and so on
    #[arg(long = "resource", value_name = "NAME=VALUE", value_delimiter = ',')]
    pub(crate) resources: Vec<String>,
    /// A secret: id=NAME[,src=FILE|,env=VARIABLE]
    #[arg(long = "secret", value_name = "SECRET")]
    pub(crate) secrets: Vec<String>,
    /// The socket of an ssh agent: default or NAME=SOCKET
    #[arg(long = "ssh", value_name = "AGENT")]
    pub(crate) ssh: Vec<String>,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    /// Ask the registry for base images, also for those in the store
    #[arg(long)]
    pub(crate) pull: bool,
    /// Push the image under all its names
    #[arg(long)]
    pub(crate) push: bool,
    /// Keep the image in the store, which is what happens anyway without --output
    #[arg(long)]
    pub(crate) load: bool,
    /// What is left behind: a folder for the files, - for their tar on standard output, or
    /// type=image|registry|docker|oci|tar|local|cacheonly with options; may be repeated
    #[arg(short, long = "output", value_name = "OUTPUT")]
    pub(crate) outputs: Vec<String>,
    /// Annotation of the image's manifest, or, with index: or manifest-descriptor: before it, of the index or of the
    /// image's entry in it; with [OS/ARCH] behind such a word for that platform only; may be repeated
    #[arg(long = "annotation", value_name = "NAME=VALUE")]
    pub(crate) annotations: Vec<String>,
    /// Write what the build made to a file, as JSON
    #[arg(long, value_name = "FILE")]
    pub(crate) metadata_file: Option<PathBuf>,
    /// Latest time of files and of the image, in seconds since 1970
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(crate) timestamp: Option<i64>,
    /// What is done when a RUN fails: shell opens one in its place, with its files, mounts, environment and user
    #[arg(long, value_name = "WHAT", value_parser = ["shell"])]
    pub(crate) on_error: Option<String>,
    /// The shell for that
    #[arg(long, value_name = "COMMAND", default_value = "/bin/sh")]
    pub(crate) invoke: String,
    /// RUN steps at once
    #[arg(long, value_name = "N", env = "KILN_JOBS", default_value = "32")]
    pub(crate) jobs: usize,
    /// Show what would be executed and why, and execute nothing
    #[arg(long, conflicts_with_all = ["push", "iidfile", "metadata_file"])]
    pub(crate) dry_run: bool,
    /// Show all that is different of each step that was executed
    #[arg(long)]
    pub(crate) explain: bool,
    /// Show at the end what each step added, overwrote and deleted
    #[arg(long, env = "KILN_SUMMARY", value_parser = clap::builder::FalseyValueParser::new())]
    pub(crate) summary: bool,
    #[command(flatten)]
    pub(crate) docker: BuildFlags,
}

/// `kiln why`.
#[derive(Debug, Args)]
pub(crate) struct WhyArgs {
    /// The build: its number, or the name or id of its image [default: the last build]
    pub(crate) build: Option<String>,
    /// Only this step, with all that was different: 2/4, `build 2/4`, or words of the instruction
    pub(crate) step: Option<String>,
}

/// `kiln debug`.
#[derive(Debug, Args)]
pub(crate) struct DebugArgs {
    /// The step: a line of the Dockerfile, its number in the build (2/4) or a part of its text
    pub(crate) step: String,
    #[command(flatten)]
    pub(crate) build: BuildArgs,
}

/// `kiln images`.
#[derive(Debug, Args)]
pub(crate) struct ImagesArgs {
    /// Only images of this name: NAME or NAME:TAG, with * and ? for any letters but /
    pub(crate) name: Option<String>,
    /// Accepted for docker's sake: there are no intermediate images
    #[arg(short, long, hide = true)]
    pub(crate) all: bool,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print whole ids
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Print the digests that registries know images by
    #[arg(long)]
    pub(crate) digests: bool,
    /// Only what this says: reference=PATTERN, label=NAME[=VALUE], dangling=true, before=IMAGE, since=IMAGE, until=TIME
    #[arg(short, long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// json, table, or a template of fields: '{{.Repository}}:{{.Tag}}', 'table {{.ID}}\t{{.Size}}'
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Show which layers images share
    #[arg(long, conflicts_with_all = ["quiet", "format", "digests"])]
    pub(crate) tree: bool,
}

/// `kiln tag`.
#[derive(Debug, Args)]
pub(crate) struct TagArgs {
    /// Name or id of the image
    pub(crate) source: String,
    /// The new name
    pub(crate) target: String,
}

/// `kiln rmi`.
#[derive(Debug, Args)]
pub(crate) struct RmiArgs {
    /// Names or ids
    #[arg(required = true)]
    pub(crate) images: Vec<String>,
    /// No error for images that are not there
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Accepted for docker's sake: images have no parents
    #[arg(long, hide = true)]
    pub(crate) no_prune: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfRmi>,
}

/// `kiln explain-ignore`.
#[derive(Debug, Args)]
pub(crate) struct ExplainIgnoreArgs {
    /// Files or folders of the context
    #[arg(required = true, value_name = "PATH")]
    pub(crate) paths: Vec<PathBuf>,
    /// The build context
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) context: PathBuf,
    /// The Dockerfile, whose own .dockerignore wins [default: CONTEXT/Dockerfile]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

/// `kiln info`.
#[derive(Debug, Args)]
pub(crate) struct InfoArgs {
    /// json, or a template of fields: '{{.Driver}}'
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
}

/// `kiln version`.
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    /// json, or a template of fields: '{{.Server.Version}}'
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
}

/// `kiln pull`.
#[derive(Debug, Args)]
pub(crate) struct PullArgs {
    /// Print the image's name only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH", env = "DOCKER_DEFAULT_PLATFORM")]
    pub(crate) platform: Option<String>,
    /// How progress is shown: auto, plain, tty, quiet or rawjson
    #[arg(
        long,
        value_name = "KIND",
        env = "BUILDKIT_PROGRESS",
        default_value = "auto"
    )]
    pub(crate) progress: String,
    #[command(flatten)]
    pub(crate) docker: Others<OfTransfers>,
    /// The image: NAME, NAME:TAG or NAME@DIGEST
    pub(crate) name: String,
}

/// `kiln push`.
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// Print the image's name only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// How progress is shown: auto, plain, tty, quiet or rawjson
    #[arg(
        long,
        value_name = "KIND",
        env = "BUILDKIT_PROGRESS",
        default_value = "auto"
    )]
    pub(crate) progress: String,
    /// Push only the image for this platform
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// Push also layers that only their publisher should give (foreign, not distributable)
    #[arg(long)]
    pub(crate) push_foreign_layers: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfTransfers>,
    /// The image: NAME or NAME:TAG; docker-daemon:NAME hands it to the Docker Engine at `DOCKER_HOST`
    pub(crate) name: String,
}

/// `kiln login`.
#[derive(Debug, Args)]
pub(crate) struct LoginArgs {
    /// The name
    #[arg(short, long, value_name = "NAME")]
    pub(crate) username: Option<String>,
    /// The password; other users of the machine can see it: better take --password-stdin
    #[arg(
        short,
        long,
        value_name = "PASSWORD",
        conflicts_with = "password_stdin"
    )]
    pub(crate) password: Option<String>,
    /// Take the password from standard input
    #[arg(long)]
    pub(crate) password_stdin: bool,
    /// The registry [default: Docker Hub]
    pub(crate) server: Option<String>,
}

/// `kiln import`.
#[derive(Debug, Args)]
pub(crate) struct ImportArgs {
    /// The archive, or - for standard input
    pub(crate) file: String,
    /// Name for the image
    pub(crate) name: Option<String>,
    /// Instruction for the image's config: `CMD ["sh"]`, `ENV A=b`
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub(crate) change: Vec<String>,
    /// What it is, for the image's history
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
}

/// `kiln load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The archive [default: standard input]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) input: Option<PathBuf>,
    /// Accepted for docker's sake: nothing but names is printed
    #[arg(short, long, hide = true)]
    pub(crate) quiet: bool,
    /// Load only the images for these platforms
    #[arg(long = "platform", value_name = "OS/ARCH", value_delimiter = ',')]
    pub(crate) platforms: Vec<String>,
}

/// `kiln save`.
#[derive(Debug, Args)]
pub(crate) struct SaveArgs {
    /// The archive [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// Kind of archive: docker or oci
    #[arg(long, value_name = "KIND", default_value = "docker", value_parser = ["docker", "oci"])]
    pub(crate) format: String,
    /// Save only the images for these platforms
    #[arg(long = "platform", value_name = "OS/ARCH", value_delimiter = ',')]
    pub(crate) platforms: Vec<String>,
    /// Names or ids
    #[arg(required = true)]
    pub(crate) images: Vec<String>,
}

/// `kiln history`.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct HistoryArgs {
    #[command(subcommand)]
    pub(crate) command: Option<HistoryCommand>,
    /// Name or id of the image
    #[arg(required = true)]
    pub(crate) image: Option<String>,
    #[command(flatten)]
    pub(crate) how: HistoryFormatArgs,
}

impl From<ImageHistoryArgs> for HistoryArgs {
    fn from(args: ImageHistoryArgs) -> Self {
        Self {
            command: None,
            image: Some(args.image),
            how: args.how,
        }
    }
}

impl From<HistoryCommand> for HistoryArgs {
    fn from(command: HistoryCommand) -> Self {
        Self {
            command: Some(command),
            image: None,
            how: HistoryFormatArgs::default(),
        }
    }
}

/// `kiln history` of builds.
#[derive(Debug, Subcommand)]
pub(crate) enum HistoryCommand {
    /// List the last builds
    Ls(Later<BuildsArgs>),
    /// Print all that a build showed, from its first line to its last
    Logs {
        /// The build: its number, or the name or id of its image [default: the last build]
        build: Option<String>,
        /// Accepted for docker's sake: it is what was shown
        #[arg(long, hide = true, value_name = "KIND")]
        progress: Option<String>,
        #[command(flatten)]
        docker: Others<OfBuilders>,
    },
    /// Show what a build did: its command, its outcome, each step with its time and its reason
    Inspect {
        /// The build: its number, or the name or id of its image [default: the last build]
        build: Option<String>,
        /// json, or a template of fields: '{{.Status}}'
        #[arg(short, long, value_name = "FORMAT")]
        format: Option<String>,
        #[command(flatten)]
        docker: Others<OfBuilders>,
    },
    /// Forget builds
    Rm {
        /// Numbers of builds
        #[arg(required_unless_present = "all")]
        builds: Vec<i64>,
        /// All of them
        #[arg(short, long, conflicts_with = "builds")]
        all: bool,
        #[command(flatten)]
        docker: Others<OfBuilders>,
    },
}

/// `kiln history ls`.
#[derive(Debug, Args)]
pub(crate) struct BuildsArgs {
    /// Print numbers only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// json, table, or a template of fields: '{{.ID}} {{.Status}}'
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Print whole names
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Only what this says: status=completed, status=error, status=canceled
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    #[command(flatten)]
    pub(crate) docker: Others<OfBuilders>,
}
