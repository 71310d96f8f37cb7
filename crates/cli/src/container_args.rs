//! The command line's grammar of containers.

use clap::Args;

use crate::args::TrustArgs;
use crate::commands::LimitArgs;
use crate::docker_flags::{OfContainers, OfRm, OfStart, Others};

/// What `kiln run` and `kiln create` share.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct ContainerArgs {
    /// Name of the container
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Remove the container when it ends
    #[arg(long)]
    pub(crate) rm: bool,
    /// Keep standard input open
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Give the container a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Put a process 1 before the program that collects processes and passes signals on
    #[arg(long)]
    pub(crate) init: bool,
    /// Variable; without a value it is taken from the environment
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub(crate) env: Vec<String>,
    /// File of variables, one a line
    #[arg(long, value_name = "FILE")]
    pub(crate) env_file: Vec<String>,
    /// Folder or file of the machine: FROM:TO[:ro]
    #[arg(short, long, value_name = "FROM:TO[:ro]")]
    pub(crate) volume: Vec<String>,
    /// The same in other words: type=bind,source=FROM,target=TO[,readonly] or type=tmpfs,target=TO[,tmpfs-size=SIZE]
    #[arg(long, value_name = "MOUNT")]
    pub(crate) mount: Vec<String>,
    /// A folder in memory: TO[:size=SIZE]
    #[arg(long, value_name = "TO")]
    pub(crate) tmpfs: Vec<String>,
    /// Nothing but mounts can be written
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Working folder
    #[arg(short, long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// User
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub(crate) user: Option<String>,
    /// Program instead of the image's entrypoint
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) entrypoint: Option<String>,
    /// Network: host or none
    #[arg(long, alias = "net", value_name = "KIND", default_value = "default")]
    pub(crate) network: String,
    /// Ports: under the host's network they are the machine's, so that only equal ones can be asked for
    #[arg(short, long, value_name = "PORT:PORT")]
    pub(crate) publish: Vec<String>,
    /// Platform of the image
    #[arg(long, value_name = "OS/ARCH", env = "DOCKER_DEFAULT_PLATFORM")]
    pub(crate) platform: Option<String>,
    /// Host name
    #[arg(short = 'h', long, value_name = "NAME")]
    pub(crate) hostname: Option<String>,
    /// A line of /etc/hosts
    #[arg(long = "add-host", value_name = "NAME:ADDRESS")]
    pub(crate) add_hosts: Vec<String>,
    /// Size of /dev/shm
    #[arg(long, value_name = "SIZE")]
    pub(crate) shm_size: Option<String>,
    /// Limit: TYPE=SOFT[:HARD]
    #[arg(long = "ulimit", value_name = "LIMIT")]
    pub(crate) ulimits: Vec<String>,
    #[command(flatten)]
    pub(crate) limits: LimitArgs,
    /// Most processors, as a number like 1.5
    #[arg(long, value_name = "N", conflicts_with_all = ["cpu_period", "cpu_quota"])]
    pub(crate) cpus: Option<f64>,
    /// File for the container's id
    #[arg(long, value_name = "FILE")]
    pub(crate) cidfile: Option<std::path::PathBuf>,
    /// Do not show how an image is fetched
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Label of the container, besides the image's
    #[arg(short, long = "label", value_name = "NAME=VALUE")]
    pub(crate) labels: Vec<String>,
    /// File of labels, one a line
    #[arg(long, value_name = "FILE")]
    pub(crate) label_file: Vec<String>,
    /// A right besides docker's usual ones: `NET_ADMIN` and the like
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_add: Vec<String>,
    /// A right less: `NET_RAW` and the like, ALL for all of them
    #[arg(long, value_name = "CAPABILITY")]
    pub(crate) cap_drop: Vec<String>,
    /// All rights that kiln itself has
    #[arg(long)]
    pub(crate) privileged: bool,
    /// no-new-privileges: set-user-id programs give none; seccomp=unconfined: no filter of system calls
    #[arg(long, value_name = "OPTION")]
    pub(crate) security_opt: Vec<String>,
    /// A further group of the user, by name or number
    #[arg(long, value_name = "GROUP")]
    pub(crate) group_add: Vec<String>,
    /// A device of the machine: FROM[:TO]
    #[arg(long, value_name = "FROM[:TO]")]
    pub(crate) device: Vec<String>,
    /// Server of /etc/resolv.conf instead of the machine's
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) dns: Vec<String>,
    /// Domain of /etc/resolv.conf in which short names are looked for
    #[arg(long, value_name = "DOMAIN")]
    pub(crate) dns_search: Vec<String>,
    /// Option of /etc/resolv.conf
    #[arg(long, visible_alias = "dns-opt", value_name = "OPTION")]
    pub(crate) dns_option: Vec<String>,
    /// Port that the container says it uses: nothing but a note in its config
    #[arg(long, value_name = "PORT")]
    pub(crate) expose: Vec<String>,
    /// Signal for kiln stop instead of the image's
    #[arg(long, value_name = "SIGNAL")]
    pub(crate) stop_signal: Option<String>,
    /// How long kiln stop waits before it kills
    #[arg(long, value_name = "SECONDS", allow_hyphen_values = true)]
    pub(crate) stop_timeout: Option<i64>,
    #[command(flatten)]
    pub(crate) docker: Others<OfContainers>,
    /// Print help
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,
    /// When a registry is asked for the image: always, missing or never
    #[arg(long, value_name = "WHEN", default_value = "missing", value_parser = ["always", "missing", "never"])]
    pub(crate) pull: String,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    /// Name or id of the image
    pub(crate) image: String,
    /// Command and arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) args: Vec<String>,
}

/// `kiln run`.
#[derive(Debug, Args)]
#[command(disable_help_flag = true)]
pub(crate) struct RunArgs {
    /// Refused: Kiln runs containers in the foreground
    #[arg(short, long, hide = true)]
    pub(crate) detach: bool,
    #[command(flatten)]
    pub(crate) container: ContainerArgs,
}

/// `kiln start`.
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Show what it prints, and wait for its end
    #[arg(short, long)]
    pub(crate) attach: bool,
    /// Give it standard input, if it was made with -i
    #[arg(short, long)]
    pub(crate) interactive: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfStart>,
    #[command(flatten)]
    pub(crate) trust: TrustArgs,
    /// Name or id
    pub(crate) container: String,
}

/// `kiln stop`.
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    /// Signal [default: the container's, else TERM]
    #[arg(short, long, value_name = "SIGNAL")]
    pub(crate) signal: Option<String>,
    /// How long to wait before it is killed, -1 for as long as it takes [default: the container's, else 10]
    #[arg(
        short,
        long,
        alias = "time",
        value_name = "SECONDS",
        allow_hyphen_values = true
    )]
    pub(crate) timeout: Option<i64>,
    /// Names or ids
    #[arg(required = true)]
    pub(crate) containers: Vec<String>,
}

/// `kiln kill`.
#[derive(Debug, Args)]
pub(crate) struct KillArgs {
    /// Signal
    #[arg(short, long, value_name = "SIGNAL", default_value = "KILL")]
    pub(crate) signal: String,
    /// Names or ids
    #[arg(required = true)]
    pub(crate) containers: Vec<String>,
}

/// `kiln commit`.
#[derive(Debug, Args)]
pub(crate) struct CommitArgs {
    /// Who made it
    #[arg(short, long, value_name = "NAME")]
    pub(crate) author: Option<String>,
    /// What was changed, for the image's history
    #[arg(short, long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Instruction for the image's config: `CMD ["sh"]`, `ENV A=b`
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub(crate) change: Vec<String>,
    /// Accepted for docker's sake: what a container changes is there when it has ended
    #[arg(short, long, hide = true)]
    pub(crate) pause: bool,
    /// Name or id of the container
    pub(crate) container: String,
    /// Name for the image
    pub(crate) name: Option<String>,
}

/// `kiln ps`.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Also those that do not run
    #[arg(short, long)]
    pub(crate) all: bool,
    /// Print ids only
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Print whole ids and commands
    #[arg(long)]
    pub(crate) no_trunc: bool,
    /// json, table, or a template of fields: '{{.Names}} {{.Status}}'
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<String>,
    /// Only what this says: name=TEXT, id=TEXT, status=created|running|exited, exited=CODE, ancestor=IMAGE
    #[arg(short, long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
    /// The last so many, running or not
    #[arg(short = 'n', long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) last: Option<i64>,
    /// The last one, running or not
    #[arg(short, long)]
    pub(crate) latest: bool,
    /// Show what containers added, too
    #[arg(short, long)]
    pub(crate) size: bool,
}

/// `kiln export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The archive [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<std::path::PathBuf>,
    /// Name or id
    pub(crate) container: String,
}

/// `kiln container prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// Do not ask
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Only what this says: until=DURATION or TIME
    #[arg(long = "filter", value_name = "FILTER")]
    pub(crate) filters: Vec<String>,
}

/// `kiln rm`.
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Names or ids
    #[arg(required = true)]
    pub(crate) containers: Vec<String>,
    /// Kill those that run; no error for containers that are not there
    #[arg(short, long)]
    pub(crate) force: bool,
    /// Accepted for docker's sake: containers have no volumes of their own
    #[arg(short, long, hide = true)]
    pub(crate) volumes: bool,
    #[command(flatten)]
    pub(crate) docker: Others<OfRm>,
}

/// `kiln cp`.
#[derive(Debug, Args)]
pub(crate) struct CpArgs {
    /// Keep the owners of files that are copied into a container
    #[arg(short, long)]
    pub(crate) archive: bool,
    /// Follow a link that the source is
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
    /// Accepted for docker's sake
    #[arg(short, long, hide = true)]
    pub(crate) quiet: bool,
    /// CONTAINER:PATH, a path of this machine, or - for a tar on standard input
    pub(crate) source: String,
    /// CONTAINER:PATH, a path of this machine, or - for a tar on standard output
    pub(crate) target: String,
}
