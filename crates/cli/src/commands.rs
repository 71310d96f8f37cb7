//! The commands, one file each.

mod build;
mod build_options;
mod builder;
mod builds;
mod cache;
mod cache_options;
mod call;
mod classic;
mod containers;
mod cp;
mod debug;
mod display;
mod ending;
mod ignored;
mod images;
mod info;
mod inout;
mod inspect;
mod layers;
mod limits;
mod login;
mod manifest;
mod outputs;
mod platforms;
mod prune;
mod remote;
mod run;
mod summary;
mod system;

pub(crate) use limits::LimitArgs;
mod why;

use std::process::ExitCode;

use anyhow::Result;
use clap::FromArgMatches as _;
use kiln_engine::BuildError;
use kiln_export::ExportError;
use kiln_image::Reference;
use kiln_worker::WorkerError;

use self::platforms::{find_image, find_target};
use crate::args::{Cli, Command, Global, HistoryArgs};
use crate::command_line::{self, USAGE};
use crate::context::Place;
use crate::format::{complain, say};
use crate::later::Making;
use crate::long_names::{
    self, BuilderCommand, BuildxCommand, ContainerCommand, ImageCommand, ImagetoolsCommand,
};
use crate::storage_args::SystemCommand;

/// Runs what the command line asks for.
pub(crate) fn main() -> ExitCode {
    let args = std::env::args_os().collect::<Vec<_>>();
    let args = debug::buildx_names(&args).unwrap_or(args);
    let defaults = match crate::settings::defaults(&crate::context::config_files()) {
        Ok(defaults) => defaults,
        Err(error) => {
            complain(&format!("ERROR: {error:#}"));
            complain("hint: the keys are in docs/configuration.md");
            return ExitCode::FAILURE;
        }
    };
    // The grammar keeps what it is given as long as the program runs.
    let defaults = Box::leak(Box::new(defaults));
    let grammar = |is_read| command_line::grammar(Making { defaults, is_read });
    let called = grammar(false);
    let args = command_line::prepared(args, &called);
    let parse = |grammar: clap::Command| {
        let mut matches = grammar.try_get_matches_from(&args)?;
        Cli::from_arg_matches_mut(&mut matches)
    };
    let mut cli = match parse(called) {
        Ok(cli) => cli,
        Err(error) if error.kind() == clap::error::ErrorKind::DisplayHelp => {
            return command_line::refuse(&parse(grammar(true)).err().unwrap_or(error));
        }
        Err(error) => return command_line::refuse(&error),
    };
    crate::context::set_docker_config(cli.global.config.take());
    if cli.version {
        say(&info::version_line());
        return ExitCode::SUCCESS;
    }
    if let Err(error) = cli.docker.check() {
        return failed(&error.into(), false);
    }
    let Some(command) = cli.command.take().map(long_names::short) else {
        let _ = command_line::cli().print_help();
        return ExitCode::SUCCESS;
    };
    let is_run = matches!(command, Command::Run(_) | Command::Start(_));
    match dispatch(&cli.global, command) {
        Ok(code) => code,
        Err(error) => failed(&error, is_run),
    }
}

/// Tells of an error, with its hint, and gives docker's exit code for it.
fn failed(error: &anyhow::Error, is_run: bool) -> ExitCode {
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

fn dispatch(global: &Global, command: Command) -> Result<ExitCode> {
    // What needs no store should not look for one.
    match command {
        Command::Version(args) => return info::version(args.format.as_deref()),
        Command::Buildx(BuildxCommand::Version(args)) => {
            return info::version(args.version.format.as_deref());
        }
        Command::Completion { shell } => return completion(shell),
        Command::Reference { folder } => return crate::reference::write(&folder),
        Command::ExplainIgnore(args) => return ignored::explain(&args),
        _ => {}
    }
    let place = Place::find(global)?;
    match command {
        Command::Build(args) => build::build(&place, &args),
        Command::Run(args) => run::run(&place, &args),
        Command::Create(args) => run::create(&place, &args),
        Command::Start(args) => run::start(&place, &args),
        Command::Stop(args) => ending::stop(&place, &args),
        Command::Kill(args) => ending::kill(&place, &args),
        Command::Wait { containers } => ending::wait(&place, &containers),
        Command::Commit(args) => inout::commit(&place, &args),
        Command::Debug(args) => debug::debug(&place, &args),
        Command::Ps(args) => containers::ps(&place, &args),
        Command::Cp(args) => cp::cp(&place, &args),
        Command::Diff { container } => containers::diff(&place, &container),
        Command::Rm(args) => containers::rm(&place, &args),
        Command::Images(args) => images::images(&place, &args),
        Command::Export(args) => inout::export(&place, &args.container, args.output.as_deref()),
        Command::Tag(args) => images::tag(&place, &args.source, &args.target),
        Command::Rmi(args) => images::rmi(&place, &args),
        Command::History(args) => {
            let HistoryArgs {
                command,
                image,
                how,
            } = args.into_inner();
            match command {
                Some(command) => builds::builds(&place, command),
                None => images::history(&place, &image.unwrap_or_default(), &how),
            }
        }
        Command::Inspect(args) => inspect::inspect(&place, &args),
        Command::Pull(args) => remote::pull(&place, &args),
        Command::Push(args) => remote::push(&place, &args),
        Command::Manifest(command) => manifest::manifest(&place, &command),
        Command::Login(args) => login::login(&args),
        Command::Logout { server } => login::logout(server.as_deref()),
        Command::Import(args) => inout::import(&place, &args),
        Command::Load(args) => inout::load(&place, &args),
        Command::Save(args) => inout::save(&place, &args),
        Command::System(command) => match command {
            SystemCommand::Df(args) => system::df(&place, &args),
            SystemCommand::Prune(args) => prune::system(&place, &args),
            SystemCommand::Check(args) => system::check(&place, &args),
            SystemCommand::Info(args) => info::info(&place, args.format.as_deref()),
        },
        Command::Builder(command) => match command {
            BuilderCommand::Prune(args) => prune::builder(&place, &args),
            BuilderCommand::Du(args) => system::du(&place, &args),
            other @ BuilderCommand::Build(_) => dispatch(global, other.into()),
        },
        Command::Buildx(command) => match command {
            BuildxCommand::Ls(args) => builder::ls(&args),
            BuildxCommand::Inspect(args) => builder::inspect(&place, &args),
            BuildxCommand::Create(args) => builder::create(&args),
            BuildxCommand::Use(args) | BuildxCommand::Stop(args) | BuildxCommand::Rm(args) => {
                builder::nothing_to_do(&args);
                Ok(ExitCode::SUCCESS)
            }
            BuildxCommand::Imagetools(ImagetoolsCommand::Create(args)) => {
                manifest::put_together(&place, &args)
            }
            BuildxCommand::Imagetools(ImagetoolsCommand::Inspect(args)) => {
                builder::inspect_in_registry(&args)
            }
            other => dispatch(global, other.into()),
        },
        Command::Image(command) => match command {
            ImageCommand::Prune(args) => prune::image(&place, &args),
            ImageCommand::Diff(args) => layers::diff(&place, &args),
            other => dispatch(global, other.into()),
        },
        Command::Container(command) => match command {
            ContainerCommand::Prune(args) => prune::container(&place, &args),
            other => dispatch(global, other.into()),
        },
        Command::Cache(command) => cache::cache(&place, command),
        Command::Why(args) => why::why(&place, &args),
        Command::Info(args) => info::info(&place, args.format.as_deref()),
        // Answered above.
        Command::Version(_)
        | Command::Completion { .. }
        | Command::Reference { .. }
        | Command::ExplainIgnore(_) => Ok(ExitCode::SUCCESS),
    }
}

/// A script for a shell.
fn completion(shell: clap_complete::Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    let mut cli = command_line::readable();
    clap_complete::generate(shell, &mut cli, command_line::program(), &mut script);
    crate::format::say_all(&String::from_utf8(script)?);
    Ok(ExitCode::SUCCESS)
}

fn reference(text: &str) -> Result<Reference> {
    text.parse().map_err(|error| {
        BuildError::new(format!("invalid reference format: {text:?}: {error}")).into()
    })
}
