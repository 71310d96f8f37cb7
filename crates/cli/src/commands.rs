//! The commands, one file each.

mod build;
mod build_options;
mod cache;
mod call;
mod containers;
mod cp;
mod debug;
mod display;
mod images;
mod info;
mod inout;
mod limits;
mod login;
mod manifest;
mod outputs;
mod platforms;
mod prune;
mod remote;
mod run;
mod system;

pub(crate) use limits::LimitArgs;
mod why;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;
use kiln_engine::BuildError;
use kiln_export::ExportError;
use kiln_image::Reference;
use kiln_worker::WorkerError;

use self::platforms::{find_image, find_target};
use crate::args::{Cli, Command};
use crate::context::Place;
use crate::format::complain;
use crate::storage_args::{BuilderCommand, ImageCommand, SystemCommand};

/// docker's own code for a command line that it does not understand.
const USAGE: u8 = 125;

/// Runs what the command line asks for.
pub(crate) fn main() -> ExitCode {
    let args = std::env::args_os().collect::<Vec<_>>();
    let cli = match Cli::try_parse_from(docker_names(args)) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::from(USAGE)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let is_run = matches!(cli.command, Command::Run(_) | Command::Start(_));
    match dispatch(cli) {
        Ok(code) => code,
        Err(error) => {
            let build = error.downcast_ref::<BuildError>();
            let export = error.downcast_ref::<ExportError>();
            let worker = error.downcast_ref::<WorkerError>();
            let hint = build
                .and_then(|error| error.hint.clone())
                .or_else(|| export?.hint())
                .or_else(|| worker?.hint().map(str::to_owned));
            complain(&format!("ERROR: {error:#}"));
            if let Some(hint) = hint {
                complain(&format!("hint: {hint}"));
            }
            match build {
                Some(error) if error.canceled => ExitCode::from(130),
                _ if is_run => ExitCode::from(USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// docker's longer names for the same commands: `image build`, `buildx build`, `builder build`, `image ls`.
fn docker_names(mut args: Vec<std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    if let Some(args) = debug::buildx_names(&args) {
        return args;
    }
    let word = |at: usize| args.get(at).and_then(|arg| arg.to_str());
    let short = match (word(1), word(2)) {
        (Some("image" | "buildx" | "builder"), Some("build" | "b")) => Some("build"),
        (Some("image"), Some("ls" | "list")) => Some("images"),
        (Some("image"), Some("rm" | "remove")) => Some("rmi"),
        (Some("image"), Some("history")) => Some("history"),
        (Some("image"), Some("inspect")) => Some("inspect"),
        (Some("image"), Some("tag")) => Some("tag"),
        (Some("image"), Some("load")) => Some("load"),
        (Some("image"), Some("save")) => Some("save"),
        (Some("image"), Some("import")) => Some("import"),
        (Some("image"), Some("pull")) => Some("pull"),
        (Some("image"), Some("push")) => Some("push"),
        (Some("container"), Some("ls" | "list" | "ps")) => Some("ps"),
        (Some("container"), Some("rm" | "remove")) => Some("rm"),
        (Some("container"), Some("run")) => Some("run"),
        (Some("container"), Some("create")) => Some("create"),
        (Some("container"), Some("start")) => Some("start"),
        (Some("container"), Some("cp")) => Some("cp"),
        (Some("container"), Some("diff")) => Some("diff"),
        (Some("container"), Some("export")) => Some("export"),
        _ => None,
    };
    if let Some(short) = short {
        args.splice(1..3, [short.into()]);
    }
    args
}

fn dispatch(cli: Cli) -> Result<ExitCode> {
    let place = Place::find(&cli.global)?;
    match cli.command {
        Command::Build(args) => build::build(&place, &args),
        Command::Run(args) => run::run(&place, &args),
        Command::Create(args) => run::create(&place, &args),
        Command::Start(args) => run::start(&place, &args),
        Command::Debug(args) => debug::debug(&place, &args),
        Command::Ps(args) => containers::ps(&place, &args),
        Command::Cp(args) => cp::cp(&place, &args),
        Command::Diff { container } => containers::diff(&place, &container),
        Command::Rm(args) => containers::rm(&place, &args),
        Command::Images(args) => images::images(&place, &args),
        Command::Tag { source, target } => images::tag(&place, &source, &target),
        Command::Rmi { images, force: _ } => images::rmi(&place, &images),
        Command::History(args) => images::history(&place, &args),
        Command::Inspect { images } => images::inspect(&place, &images),
        Command::Pull(args) => remote::pull(&place, &args),
        Command::Push(args) => remote::push(&place, &args),
        Command::Manifest(command) => manifest::manifest(&place, &command),
        Command::Login(args) => login::login(&args),
        Command::Logout { server } => login::logout(server.as_deref()),
        Command::Export { container, output } => {
            inout::export(&place, &container, output.as_deref())
        }
        Command::Import(args) => inout::import(&place, &args),
        Command::Load(args) => inout::load(&place, &args),
        Command::Save(args) => inout::save(&place, &args),
        Command::System(command) => match command {
            SystemCommand::Df(args) => system::df(&place, &args),
            SystemCommand::Prune(args) => prune::system(&place, &args),
            SystemCommand::Check(args) => system::check(&place, &args),
        },
        Command::Builder(command) => match command {
            BuilderCommand::Prune(args) => prune::builder(&place, &args),
            BuilderCommand::Du(args) => system::du(&place, &args),
        },
        Command::Image(ImageCommand::Prune(args)) => prune::image(&place, &args),
        Command::Cache(command) => cache::cache(&place, command),
        Command::Why(args) => why::why(&place, &args),
        Command::Info => info::info(&place),
        Command::Version => {
            crate::format::say(&format!("kiln {}", env!("CARGO_PKG_VERSION")));
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn reference(text: &str) -> Result<Reference> {
    text.parse().map_err(|error| {
        BuildError::new(format!("invalid reference format: {text:?}: {error}")).into()
    })
}
