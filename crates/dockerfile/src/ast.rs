//! The syntax tree.

use crate::heredoc::Heredoc;
use crate::lint::Warning;
use crate::parse::Complaint;
use crate::{Lines, Mount};

/// A parsed Dockerfile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dockerfile {
    /// The escape character, `\` unless a directive says otherwise.
    pub escape: char,
    /// The `syntax` directive.
    pub syntax: Option<String>,
    /// The `check` directive, and its line.
    pub check: Option<(String, u32)>,
    /// `ARG` instructions before the first `FROM`.
    pub global_args: Vec<Instruction>,
    /// The stages in order; at least one.
    pub stages: Vec<Stage>,
    /// What the checks of the parser found, all of them: skipping is up to the caller.
    pub warnings: Vec<Warning>,
}

/// A `FROM` and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// The name after `AS`, in lower case.
    pub name: Option<String>,
    /// What it starts from, not expanded.
    pub base: String,
    /// `--platform`, not expanded.
    pub platform: Option<String>,
    /// The `FROM` line as written.
    pub original: String,
    /// Where the `FROM` line stands.
    pub lines: Lines,
    /// The comment lines since the instruction before; an empty one is an empty text.
    pub comments: Vec<String>,
    /// The instructions after it.
    pub instructions: Vec<Instruction>,
}

/// An instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub kind: Kind,
    /// The first word in upper case.
    pub keyword: String,
    /// The joined lines as written, without bodies of here-documents.
    pub original: String,
    /// Where it stands.
    pub lines: Lines,
    /// The comment lines since the instruction before; an empty one is an empty text.
    pub comments: Vec<String>,
}

/// What comments say of a stage or an argument: the rest of the first line that begins with its name.
pub fn description<'a>(comments: &'a [String], name: &str) -> Option<&'a str> {
    comments
        .iter()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .map(str::trim)
}

impl Instruction {
    /// The first word as it is written.
    pub fn written_keyword(&self) -> &str {
        let end = self.original.find(crate::words::is_blank);
        end.map_or(&self.original, |end| &self.original[..end])
    }
}

/// The instructions. Nothing is expanded yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `RUN`
    Run(Run),
    /// `COPY`
    Copy(Transfer),
    /// `ADD`
    Add(Transfer),
    /// `ENV`
    Env(Vec<Pair>),
    /// `LABEL`
    Label(Vec<Pair>),
    /// `ARG`: names and default values.
    Arg(Vec<(String, Option<String>)>),
    /// `WORKDIR`
    Workdir(String),
    /// `USER`
    User(String),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `EXPOSE`
    Expose(Vec<String>),
    /// `CMD`
    Cmd(Command),
    /// `ENTRYPOINT`
    Entrypoint(Command),
    /// `SHELL`
    Shell(Vec<String>),
    /// `STOPSIGNAL`
    StopSignal(String),
    /// `HEALTHCHECK`
    Healthcheck(Healthcheck),
    /// `ONBUILD`: the trigger as text, with bodies of here-documents.
    Onbuild(String),
    /// `MAINTAINER`
    Maintainer(String),
}

/// A command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The form of a JSON array: no shell.
    Exec(Vec<String>),
    /// Text for the shell.
    Shell(String),
}

/// `RUN`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Run {
    /// What is run.
    pub command: Command,
    /// The here-documents in order.
    pub heredocs: Vec<Heredoc>,
    /// `--mount`, as written: values hold variables. [`Mount::parse`] reads them.
    pub mounts: Vec<String>,
    /// What the mounts come from (`from=`), in the same order. Cannot hold variables.
    pub mount_sources: Vec<Option<String>>,
    /// `--network`.
    pub network: RunNetwork,
    /// `--security=insecure`.
    pub insecure: bool,
    /// `--device`, as written.
    pub devices: Vec<String>,
}

impl Run {
    /// The mounts, with `expand` applied to their values.
    ///
    /// # Errors
    /// With a sentence and a hint, when a mount makes no sense.
    pub fn mounts(
        &self,
        mut expand: impl FnMut(&str) -> Result<String, String>,
    ) -> Result<Vec<Mount>, Complaint> {
        self.mounts
            .iter()
            .map(|text| Mount::parse(text, &mut expand))
            .collect()
    }
}

/// `RUN --network`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RunNetwork {
    /// The build's.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's.
    Host,
}

/// `COPY` and `ADD`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Transfer {
    /// Paths, addresses.
    pub sources: Vec<String>,
    /// Here-documents among the sources.
    pub heredocs: Vec<Heredoc>,
    /// Where to.
    pub destination: String,
    /// `--from`.
    pub from: Option<String>,
    /// `--chown`.
    pub chown: Option<String>,
    /// `--chmod`.
    pub chmod: Option<String>,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`.
    pub exclude: Vec<String>,
    /// `--keep-git-dir`.
    pub keep_git_dir: Option<bool>,
    /// `--checksum`.
    pub checksum: Option<String>,
    /// `--unpack`.
    pub unpack: Option<bool>,
}

/// A name and a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The name.
    pub name: String,
    /// The value.
    pub value: String,
    /// Written with a blank instead of an equals sign.
    pub legacy: bool,
}

/// `HEALTHCHECK`. Times are in nanoseconds, 0 for the default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Healthcheck {
    /// `NONE`, or `CMD` or `CMD-SHELL` and what follows.
    pub test: Vec<String>,
    /// `--interval`.
    pub interval: i64,
    /// `--timeout`.
    pub timeout: i64,
    /// `--start-period`.
    pub start_period: i64,
    /// `--start-interval`.
    pub start_interval: i64,
    /// `--retries`.
    pub retries: i64,
}
