//! The grammar of `kiln manifest`.

use clap::{Args, Subcommand};

use crate::docker_flags::{OfManifests, Others};
use crate::later::Later;

/// `kiln manifest`.
#[derive(Debug, Subcommand)]
pub(crate) enum ManifestCommand {
    /// Show the manifest or the list that a name leads to: a list of this store, else what the registry has
    Inspect(Later<ManifestInspectArgs>),
    /// Make a list of images for several platforms; images of the store, else of registries
    Create(Later<ManifestCreateArgs>),
    /// Change what a list says of an image
    Annotate(Later<ManifestAnnotateArgs>),
    /// Bring a list, with what its registry lacks of its images, to a registry
    Push(Later<ManifestPushArgs>),
    /// Forget lists
    Rm {
        /// Names of lists
        #[arg(required = true)]
        lists: Vec<String>,
    },
}

/// `kiln manifest inspect`.
#[derive(Debug, Args)]
pub(crate) struct ManifestInspectArgs {
    /// Show each manifest of a list, too, with its descriptor
    #[arg(short, long)]
    pub(crate) verbose: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfManifests>,
    /// The image or the list; of two names the list, and an image of it
    #[arg(required = true, num_args = 1..=2)]
    pub(crate) names: Vec<String>,
}

/// `kiln manifest create`.
#[derive(Debug, Args)]
pub(crate) struct ManifestCreateArgs {
    /// Add to a list that is there
    #[arg(short, long)]
    pub(crate) amend: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfManifests>,
    /// The list's name
    pub(crate) list: String,
    /// Images
    #[arg(required = true)]
    pub(crate) images: Vec<String>,
}

/// `kiln manifest annotate`.
#[derive(Debug, Args)]
pub(crate) struct ManifestAnnotateArgs {
    /// The processor
    #[arg(long, value_name = "ARCH")]
    pub(crate) arch: Option<String>,
    /// The operating system
    #[arg(long, value_name = "OS")]
    pub(crate) os: Option<String>,
    /// The processor's variant
    #[arg(long, value_name = "VARIANT")]
    pub(crate) variant: Option<String>,
    /// The operating system's version
    #[arg(long, value_name = "VERSION")]
    pub(crate) os_version: Option<String>,
    /// What the image needs of the operating system; may be repeated, or be a list with commas
    #[arg(long, value_name = "FEATURE", value_delimiter = ',')]
    pub(crate) os_features: Vec<String>,
    /// Annotation of the image's entry; may be repeated
    #[arg(long = "annotation", value_name = "NAME=VALUE")]
    pub(crate) annotations: Vec<String>,
    /// The list's name
    pub(crate) list: String,
    /// The image
    pub(crate) image: String,
}

/// `kiln manifest push`.
#[derive(Debug, Args)]
pub(crate) struct ManifestPushArgs {
    /// Forget the list afterwards
    #[arg(short, long)]
    pub(crate) purge: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfManifests>,
    /// The list's name
    pub(crate) list: String,
}
