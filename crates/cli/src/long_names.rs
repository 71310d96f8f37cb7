//! docker's longer names for the commands: `kiln image ls` is `kiln images`, `kiln buildx build` is `kiln build`.

use clap::{Args, Subcommand};

use crate::args::{
    BuildArgs, Command, HistoryArgs, HistoryCommand, ImagesArgs, ImportArgs, LoadArgs, PullArgs,
    PushArgs, RmiArgs, SaveArgs, TagArgs, VersionArgs,
};
use crate::container_args::{
    CommitArgs, ContainerArgs, CpArgs, ExportArgs, KillArgs, PruneArgs, PsArgs, RmArgs, RunArgs,
    StartArgs, StopArgs,
};
use crate::docker_flags::{OfBuilders, Others};
use crate::later::Later;
use crate::storage_args::{BuilderPruneArgs, DuArgs, ImagePruneArgs};

/// `kiln image`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image from a Dockerfile
    Build(Later<BuildArgs>),
    /// List images
    #[command(visible_alias = "list")]
    Ls(Later<ImagesArgs>),
    /// Show how an image was made
    History(Later<ImageHistoryArgs>),
    /// Show what is known of images, as JSON
    Inspect(Later<InspectArgs>),
    /// Show how the files of two images differ
    Diff(Later<ImageDiffArgs>),
    /// Give an image another name
    Tag(Later<TagArgs>),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(Later<RmiArgs>),
    /// Remove images that have no name
    Prune(Later<ImagePruneArgs>),
    /// Fetch an image from a registry
    Pull(Later<PullArgs>),
    /// Bring an image to a registry
    Push(Later<PushArgs>),
    /// Save images to an archive
    Save(Later<SaveArgs>),
    /// Load images from an archive
    Load(Later<LoadArgs>),
    /// Make an image from a file system archive
    Import(Later<ImportArgs>),
}

/// `kiln container`.
#[derive(Debug, Subcommand)]
pub(crate) enum ContainerCommand {
    /// List containers
    #[command(visible_aliases = ["list", "ps"])]
    Ls(Later<PsArgs>),
    /// Make a container that is started later
    Create(Later<ContainerArgs>),
    /// Run a command in a new container
    Run(Later<RunArgs>),
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
    /// Copy files out of a container or into it
    Cp(Later<CpArgs>),
    /// Show what a container changed
    Diff {
        /// Name or id
        container: String,
    },
    /// Write the files of a container into an archive
    Export(Later<ExportArgs>),
    /// Show what is known of containers, as JSON
    Inspect(Later<InspectArgs>),
    /// Remove containers
    #[command(visible_alias = "remove")]
    Rm(Later<RmArgs>),
    /// Remove all containers that do not run
    Prune(Later<PruneArgs>),
}

/// `kiln builder`.
#[derive(Debug, Subcommand)]
pub(crate) enum BuilderCommand {
    /// Build an image from a Dockerfile
    Build(Later<BuildArgs>),
    /// Remove the build cache, or what was not used for longest of it
    Prune(Later<BuilderPruneArgs>),
    /// Show what is in the build cache
    Du(Later<DuArgs>),
}

/// `kiln buildx`.
#[derive(Debug, Subcommand)]
pub(crate) enum BuildxCommand {
    /// Build an image from a Dockerfile
    #[command(visible_alias = "b")]
    Build(Later<BuildArgs>),
    /// Remove the build cache, or what was not used for longest of it
    Prune(Later<BuilderPruneArgs>),
    /// Show what is in the build cache
    Du(Later<DuArgs>),
    /// Show the last builds
    #[command(subcommand)]
    History(HistoryCommand),
    /// Look at images in registries
    #[command(subcommand)]
    Imagetools(ImagetoolsCommand),
    /// Show the one builder that there is
    Inspect(Later<BuilderInspectArgs>),
    /// List the one builder that there is
    Ls(Later<BuilderLsArgs>),
    /// Accepted for docker's sake: there is one builder
    #[command(hide = true)]
    Create(Later<BuilderCreateArgs>),
    /// Accepted for docker's sake: there is one builder
    #[command(hide = true)]
    Use(Later<BuilderNamesArgs>),
    /// Accepted for docker's sake: there is one builder
    #[command(hide = true)]
    Stop(Later<BuilderNamesArgs>),
    /// Accepted for docker's sake: there is one builder
    #[command(hide = true)]
    Rm(Later<BuilderNamesArgs>),
    /// Show the version
    Version(Later<BuildxVersionArgs>),
}

/// `kiln buildx version`.
#[derive(Debug, Args)]
pub(crate) struct BuildxVersionArgs {
    #[command(flatten)]
    pub(crate) version: VersionArgs,
    #[command(flatten)]
    docker: Others<OfBuilders>,
}

/// `kiln buildx imagetools`.
#[derive(Debug, Subcommand)]
pub(crate) enum ImagetoolsCommand {
    /// Show what a registry has under a name
    Inspect(Later<ImagetoolsInspectArgs>),
    /// Put images of registries together under a name
    Create(Later<ImagetoolsCreateArgs>),
}

/// `kiln buildx imagetools create`.
#[derive(Debug, Args)]
pub(crate) struct ImagetoolsCreateArgs {
    /// The new name; may be repeated
    #[arg(short, long = "tag", value_name = "NAME")]
    pub(crate) tags: Vec<String>,
    /// Add to what has the name
    #[arg(long)]
    pub(crate) append: bool,
    /// Show what would be made, and make nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Annotation of the index: NAME=VALUE; may be repeated
    #[arg(long = "annotation", value_name = "ANNOTATION")]
    pub(crate) annotations: Vec<String>,
    /// Accepted for docker's sake
    #[arg(long, hide = true, value_name = "NAME")]
    pub(crate) builder: Option<String>,
    /// Accepted for docker's sake
    #[arg(long, hide = true, value_name = "KIND")]
    pub(crate) progress: Option<String>,
    /// File with a source, as it would be given; may be repeated
    #[arg(short, long = "file", value_name = "FILE")]
    pub(crate) files: Vec<std::path::PathBuf>,
    /// Images and indexes: NAME, NAME:TAG, NAME@DIGEST, or, in the repository of the new name, DIGEST or the JSON of a
    /// descriptor
    #[arg(required_unless_present = "files")]
    pub(crate) sources: Vec<String>,
}

/// `kiln buildx imagetools inspect`.
#[derive(Debug, Args)]
pub(crate) struct ImagetoolsInspectArgs {
    /// json, or a template of fields: '{{json .Manifest}}'
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Print the manifest as the registry has it
    #[arg(long, conflicts_with = "format")]
    pub(crate) raw: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfBuilders>,
    /// The image: NAME, NAME:TAG or NAME@DIGEST
    pub(crate) name: String,
}

/// `kiln buildx ls`.
#[derive(Debug, Args)]
pub(crate) struct BuilderLsArgs {
    /// json, table, or a template of fields: '{{.Name}}'
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Accepted for docker's sake
    #[arg(long, hide = true)]
    pub(crate) no_trunc: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfBuilders>,
}

/// `kiln buildx create`.
#[derive(Debug, Args)]
pub(crate) struct BuilderCreateArgs {
    /// Name of the builder
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Kind of builder: docker or docker-container
    #[arg(long, value_name = "KIND", value_parser = ["docker", "docker-container"])]
    pub(crate) driver: Option<String>,
    /// Accepted for docker's sake
    #[arg(long, value_name = "OPTION")]
    pub(crate) driver_opt: Vec<String>,
    /// Accepted for docker's sake
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Vec<String>,
    /// Accepted for docker's sake
    #[arg(long = "use")]
    pub(crate) make_usual: bool,
    /// Accepted for docker's sake
    #[arg(long)]
    pub(crate) bootstrap: bool,
    /// Accepted for docker's sake
    #[arg(long)]
    pub(crate) append: bool,
    /// Accepted for docker's sake
    #[arg(long)]
    pub(crate) leave: bool,
    /// Accepted for docker's sake
    #[arg(long, value_name = "NAME")]
    pub(crate) node: Option<String>,
    /// Accepted for docker's sake
    #[arg(long, value_name = "FILE")]
    pub(crate) buildkitd_config: Option<String>,
    /// Accepted for docker's sake
    #[arg(long, value_name = "OPTIONS", allow_hyphen_values = true)]
    pub(crate) buildkitd_flags: Option<String>,
    #[command(flatten)]
    pub(crate) docker: Others<OfBuilders>,
    /// Accepted for docker's sake
    pub(crate) endpoint: Option<String>,
}

/// `kiln buildx use`, `stop`, `rm`.
#[derive(Debug, Args)]
pub(crate) struct BuilderNamesArgs {
    /// Accepted for docker's sake
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Accepted for docker's sake
    #[arg(long = "default")]
    pub(crate) make_default: bool,
    /// Accepted for docker's sake
    #[arg(long)]
    pub(crate) keep_state: bool,
    /// Accepted for docker's sake
    #[arg(long)]
    pub(crate) keep_daemon: bool,
    /// Accepted for docker's sake
    #[arg(long)]
    pub(crate) all_inactive: bool,
    /// Accepted for docker's sake
    #[arg(long)]
    pub(crate) global: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfBuilders>,
    /// Names of builders
    pub(crate) names: Vec<String>,
}

/// `kiln buildx inspect`.
#[derive(Debug, Args)]
pub(crate) struct BuilderInspectArgs {
    /// The builder: default
    pub(crate) name: Option<String>,
    /// Accepted for docker's sake: nothing has to be started
    #[arg(long, hide = true)]
    pub(crate) bootstrap: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfBuilders>,
}

/// `kiln image history`, and `kiln history` with an image.
#[derive(Debug, Args)]
pub(crate) struct ImageHistoryArgs {
    /// Name or id of the image
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) how: HistoryFormatArgs,
}

/// How the history of an image is shown.
#[derive(Debug, Default, Args)]
pub(crate) struct HistoryFormatArgs {
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// json, table, or a template of fields: '{{.ID}} {{.Size}}'
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Sizes and times for people; --human=false for programs
    #[arg(short = 'H', long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
        default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set, hide_possible_values = true)]
    pub(crate) human: bool,
    /// Print whole commands and ids
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// `kiln inspect`, `kiln image inspect`, `kiln container inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// json, or a template of fields: '{{.Config.Env}}'
    #[arg(short, long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Show also how much a container added
    #[arg(short, long)]
    pub(crate) size: bool,
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH")]
    pub(crate) platform: Option<String>,
    /// Only image or container
    #[arg(long = "type", value_name = "KIND", value_parser = ["image", "container"])]
    pub(crate) kind: Option<String>,
    /// Names or ids
    #[arg(required = true, value_name = "NAME")]
    pub(crate) names: Vec<String>,
}

impl InspectArgs {
    fn only(mut self, kind: &str) -> Self {
        self.kind = Some(kind.to_owned());
        self
    }
}

/// `kiln image diff`.
#[derive(Debug, Args)]
pub(crate) struct ImageDiffArgs {
    /// Print as JSON lines
    #[arg(long, value_name = "json", value_parser = ["json"])]
    pub(crate) format: Option<String>,
    /// Name or id of the one image
    pub(crate) from: String,
    /// Name or id of the other image
    pub(crate) to: String,
}

impl From<ImageCommand> for Command {
    fn from(command: ImageCommand) -> Self {
        match command {
            ImageCommand::Build(args) => Self::Build(args),
            ImageCommand::Ls(args) => Self::Images(args),
            ImageCommand::History(args) => Self::History(args.map(HistoryArgs::from)),
            ImageCommand::Inspect(args) => Self::Inspect(args.map(|args| args.only("image"))),
            ImageCommand::Tag(args) => Self::Tag(args),
            ImageCommand::Rm(args) => Self::Rmi(args),
            ImageCommand::Pull(args) => Self::Pull(args),
            ImageCommand::Push(args) => Self::Push(args),
            ImageCommand::Save(args) => Self::Save(args),
            ImageCommand::Load(args) => Self::Load(args),
            ImageCommand::Import(args) => Self::Import(args),
            own @ (ImageCommand::Diff(_) | ImageCommand::Prune(_)) => Self::Image(own),
        }
    }
}

impl From<ContainerCommand> for Command {
    fn from(command: ContainerCommand) -> Self {
        match command {
            ContainerCommand::Ls(args) => Self::Ps(args),
            ContainerCommand::Create(args) => Self::Create(args),
            ContainerCommand::Run(args) => Self::Run(args),
            ContainerCommand::Start(args) => Self::Start(args),
            ContainerCommand::Stop(args) => Self::Stop(args),
            ContainerCommand::Kill(args) => Self::Kill(args),
            ContainerCommand::Wait { containers } => Self::Wait { containers },
            ContainerCommand::Commit(args) => Self::Commit(args),
            ContainerCommand::Cp(args) => Self::Cp(args),
            ContainerCommand::Diff { container } => Self::Diff { container },
            ContainerCommand::Export(args) => Self::Export(args),
            ContainerCommand::Inspect(args) => {
                Self::Inspect(args.map(|args| args.only("container")))
            }
            ContainerCommand::Rm(args) => Self::Rm(args),
            own @ ContainerCommand::Prune(_) => Self::Container(own),
        }
    }
}

impl From<BuilderCommand> for Command {
    fn from(command: BuilderCommand) -> Self {
        match command {
            BuilderCommand::Build(args) => Self::Build(args),
            own => Self::Builder(own),
        }
    }
}

impl From<BuildxCommand> for Command {
    fn from(command: BuildxCommand) -> Self {
        match command {
            BuildxCommand::Build(args) => Self::Build(args),
            BuildxCommand::Prune(args) => Self::Builder(BuilderCommand::Prune(args)),
            BuildxCommand::Du(args) => Self::Builder(BuilderCommand::Du(args)),
            BuildxCommand::History(command) => {
                Self::History(Later::from(HistoryArgs::from(command)))
            }
            own => Self::Buildx(own),
        }
    }
}

/// The command by its short name.
pub(crate) fn short(command: Command) -> Command {
    match command {
        Command::Image(command) => command.into(),
        Command::Container(command) => command.into(),
        Command::Builder(command) => command.into(),
        Command::Buildx(command) => command.into(),
        other => other,
    }
}
