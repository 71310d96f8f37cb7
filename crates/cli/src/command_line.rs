//! The command line before it is parsed, and what is said when it cannot be.

use std::borrow::Cow;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, Command, CommandFactory as _};

use crate::args::Cli;
use crate::format::complain;
use crate::later::Making;
use crate::settings::Defaults;

/// docker's own code for an option that it does not know.
pub(crate) const USAGE: u8 = 125;

/// The name that the program was called by: `docker` where it stands in for docker.
pub(crate) fn program() -> &'static str {
    let first = std::env::args_os().next().unwrap_or_default();
    match std::path::Path::new(&first).file_name() {
        Some(name) if name == "docker" => "docker",
        _ => "kiln",
    }
}

/// The command line with Go's way to write options that are on or off (`--pull=true`, `--rm=false`) in clap's words.
pub(crate) fn prepared(args: Vec<OsString>, cli: &Command) -> Vec<OsString> {
    let mut command = Cow::Borrowed(cli);
    let mut prepared = Vec::with_capacity(args.len());
    let mut words = args.into_iter();
    prepared.extend(words.next());
    while let Some(word) = words.next() {
        let Some(text) = word.to_str().map(str::to_owned) else {
            prepared.push(word);
            continue;
        };
        if let Some(long) = text.strip_prefix("--").filter(|long| !long.is_empty()) {
            let (name, value) = match long.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (long, None),
            };
            match (
                find(cli, &command, |arg| arg.get_long() == Some(name)),
                value,
            ) {
                (Some(arg), Some(value)) if !takes_value(arg) => match value {
                    "true" | "1" | "t" | "T" | "TRUE" | "True" => {
                        prepared.push(format!("--{name}").into());
                    }
                    "false" | "0" | "f" | "F" | "FALSE" | "False" => {}
                    _ => prepared.push(word),
                },
                (Some(arg), None) if takes_value(arg) && !is_optional(arg) => {
                    prepared.push(word);
                    prepared.extend(words.next());
                }
                _ => prepared.push(word),
            }
        } else if text.len() > 1 && text.starts_with('-') {
            prepared.push(word);
            let mut letters = text.chars().skip(1).peekable();
            while let Some(letter) = letters.next() {
                let found = find(cli, &command, |arg| arg.get_short() == Some(letter));
                if found.is_some_and(takes_value) {
                    if letters.peek().is_none() {
                        prepared.extend(words.next());
                    }
                    break;
                }
            }
        } else if let Some(below) = command.find_subcommand(&text).map(filled) {
            command = Cow::Owned(below);
            prepared.push(word);
        } else {
            prepared.push(word);
            let ends = |arg: &Arg| arg.is_trailing_var_arg_set();
            if text == "--" {
                break;
            }
            if command.get_positionals().any(ends) {
                // What follows is for the container, also where it looks like an option.
                prepared.push("--".into());
                break;
            }
        }
    }
    prepared.extend(words);
    prepared
}

fn find<'a>(cli: &'a Command, command: &'a Command, is: impl Fn(&Arg) -> bool) -> Option<&'a Arg> {
    command
        .get_arguments()
        .chain(cli.get_arguments().filter(|arg| arg.is_global_set()))
        .find(|arg| is(arg))
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

fn is_optional(arg: &Arg) -> bool {
    arg.get_num_args()
        .is_some_and(|range| range.min_values() == 0)
}

/// The whole grammar, with the arguments of all commands.
pub(crate) fn cli() -> Command {
    let mut cli = readable();
    cli.build();
    cli
}

/// The grammar as people read it, without what configuration files say.
pub(crate) fn readable() -> Command {
    static NONE: Defaults = Defaults {
        global: Vec::new(),
        build: Vec::new(),
    };
    grammar(Making {
        defaults: &NONE,
        is_read: true,
    })
}

/// The grammar as people read it. Its doc comments begin in upper case, as Rust's do; help begins in lower case.
pub(crate) fn voiced(command: Command) -> Command {
    let about = command.get_about().map(|text| lower(&text.to_string()));
    let command = match about {
        Some(about) => command.about(about),
        None => command,
    };
    // Those that are filled later come here again then.
    if command.get_arguments().next().is_none() && !command.has_subcommands() {
        return command;
    }
    let has = |is: &dyn Fn(&Arg) -> bool| command.get_arguments().any(is);
    let command = if has(&|arg| arg.get_id() == "help") {
        command
    } else {
        // clap's own begins in upper case.
        let help = Arg::new("help")
            .long("help")
            .action(ArgAction::Help)
            .help("print help")
            .display_order(999);
        let help = if has(&|arg| arg.get_short() == Some('h')) {
            help
        } else {
            help.short('h')
        };
        command.disable_help_flag(true).arg(help)
    };
    let command = command.mut_args(|arg| {
        let arg = arg.hide_env_values(true);
        let many = matches!(arg.get_action(), ArgAction::Append) && !arg.is_positional();
        let Some(help) = arg.get_help().map(|text| lower(&text.to_string())) else {
            return arg;
        };
        if many && !help.contains("may be repeated") {
            return arg.help(format!("{help}; may be repeated"));
        }
        arg.help(help)
    });
    command.mut_subcommands(voiced)
}

/// A text that begins in lower case, unless its first word is a name.
fn lower(text: &str) -> String {
    const NAMES: [&str; 3] = ["Kiln", "Docker", "Go"];
    let word = text
        .split(|letter: char| !letter.is_alphanumeric())
        .next()
        .unwrap_or_default();
    let mut letters = text.chars();
    match (letters.next(), letters.clone().next()) {
        (Some(first), Some(second)) if !NAMES.contains(&word) && !second.is_uppercase() => {
            first.to_lowercase().chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

/// The grammar, whose commands have their arguments [later](crate::later).
pub(crate) fn grammar(making: Making) -> Command {
    crate::later::set(making);
    let mut cli = Cli::command();
    for (name, value) in &making.defaults.global {
        cli = cli.mut_arg(*name, |arg| arg.default_value(value.as_str()));
    }
    // Only what is read needs the voice.
    if making.is_read { voiced(cli) } else { cli }
}

/// A command with its arguments.
fn filled(command: &Command) -> Command {
    let mut command = command.clone();
    // The commands of a group are looked at when one of them is called.
    if !command.has_subcommands() {
        command.build();
    }
    command
}

/// What docker has and this program has not, with what to do instead.
const ABSENT: [(&[&str], &str); 16] = [
    (
        &["attach", "logs", "top", "stats", "port"],
        "containers run in the foreground: what they print and what they do is on the terminal of their kiln run",
    ),
    (
        &["exec"],
        "nothing can be run in a container that runs: kiln run a command in a new one, or kiln debug a step of a build",
    ),
    (
        &["restart", "pause", "unpause"],
        "containers run in the foreground: kiln stop ends one, kiln start -a runs it again",
    ),
    (
        &["rename", "update"],
        "a container is made again rather than changed: kiln rm, kiln create",
    ),
    (
        &["create"],
        "kiln manifest create makes a list of images, kiln manifest push brings it to a registry",
    ),
    (
        &["volume"],
        "kiln keeps no volumes: -v takes folders of this machine",
    ),
    (
        &["network"],
        "kiln makes no networks: containers have the machine's, or none",
    ),
    (
        &["compose"],
        "kiln reads no compose files; kiln build takes what stands under build:",
    ),
    (&["search"], "look for images with a browser"),
    (
        &["swarm", "stack", "service", "node", "secret", "config"],
        "kiln builds images; a cluster is not its work",
    ),
    (
        &["context"],
        "there is no daemon to connect to; --root chooses a store",
    ),
    (
        &["plugin", "trust", "scout", "events", "checkpoint"],
        "kiln builds images; it has no such thing",
    ),
    (
        &["bake"],
        "kiln build builds one target of one Dockerfile: write a loop over the targets",
    ),
    (
        &["dial-stdio", "install", "uninstall", "dap"],
        "there is one builder, this program; nothing has to be connected to it",
    ),
    (&["policy"], "kiln evaluates no policies"),
    (
        &["open", "trace", "import", "export"],
        "kiln history inspect and kiln history logs show what is kept of a build",
    ),
];

/// Says what is wrong with the command line, and gives docker's exit code for that.
pub(crate) fn refuse(error: &clap::Error) -> ExitCode {
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(list)) => list.first().cloned(),
        _ => None,
    };
    let path = path();
    let help = format!("hint: see {path} --help");
    match error.kind() {
        ErrorKind::UnknownArgument => {
            let given = text(ContextKind::InvalidArg).unwrap_or_default();
            if given.starts_with('-') {
                complain(&format!("ERROR: unknown flag: {given}"));
                match text(ContextKind::SuggestedArg) {
                    Some(near) => complain(&format!("hint: there is {near}; see {path} --help")),
                    None => complain(&help),
                }
                return ExitCode::from(USAGE);
            }
            complain(&format!(
                "ERROR: {path}: too many arguments: {given:?} is one too many"
            ));
            complain(&help);
            ExitCode::FAILURE
        }
        ErrorKind::InvalidSubcommand => {
            let given = text(ContextKind::InvalidSubcommand).unwrap_or_default();
            complain(&format!(
                "ERROR: {}: unknown command: {path} {given}",
                program()
            ));
            let instead = ABSENT
                .iter()
                .find(|(names, _)| names.contains(&given.as_str()));
            let cli = cli();
            let buildx = cli.find_subcommand("buildx");
            // docker's builder is another name for its buildx.
            let is_buildx = path.ends_with(" builder")
                && buildx.is_some_and(|buildx| buildx.find_subcommand(&given).is_some());
            match (instead, text(ContextKind::SuggestedSubcommand)) {
                _ if is_buildx => complain(&format!("hint: there is {} buildx {given}", program())),
                (Some((_, instead)), _) => complain(&format!("hint: {instead}")),
                (None, Some(near)) => complain(&format!("hint: there is {path} {near}")),
                (None, None) => complain(&help),
            }
            ExitCode::FAILURE
        }
        ErrorKind::MissingRequiredArgument => {
            let missing = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(list)) => list.join(" "),
                _ => "an argument".to_owned(),
            };
            complain(&format!("ERROR: {path}: an argument is missing: {missing}"));
            complain(&help);
            ExitCode::FAILURE
        }
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let _ = error.print();
            ExitCode::SUCCESS
        }
        // A command whose commands were not named: docker shows its help, and is content.
        ErrorKind::MissingSubcommand | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let cli = cli();
            let below = path.split(' ').skip(1);
            let found = below.fold(&cli, |command, word| {
                command.find_subcommand(word).unwrap_or(command)
            });
            let _ = found.clone().bin_name(&path).print_help();
            ExitCode::SUCCESS
        }
        _ => {
            let rendered = error.render().to_string();
            let first = rendered.split("\n\n").next().unwrap_or(&rendered);
            let first = first.strip_prefix("error: ").unwrap_or(first);
            complain(&format!("ERROR: {}", first.trim_end()));
            match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(known)) if !known.is_empty() => {
                    complain(&format!("hint: expected {}", known.join(" or ")));
                }
                _ => complain(&help),
            }
            ExitCode::from(USAGE)
        }
    }
}

/// The command that was meant, as far as it is known: `kiln image ls`.
fn path() -> String {
    let cli = cli();
    let mut command = &cli;
    let mut path = program().to_owned();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if let Some(option) = word.strip_prefix('-') {
            let found = match option.strip_prefix('-') {
                Some(long) => find(&cli, command, |arg| arg.get_long() == Some(long)),
                None => option
                    .chars()
                    .last()
                    .and_then(|letter| find(&cli, command, |arg| arg.get_short() == Some(letter))),
            };
            if found.is_some_and(|arg| takes_value(arg) && !is_optional(arg)) {
                words.next();
            }
            continue;
        }
        let Some(below) = command.find_subcommand(&word) else {
            break;
        };
        path.push(' ');
        path.push_str(below.get_name());
        command = below;
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_are_on_or_off_may_have_a_value() {
        for (given, taken) in [
            (
                "build --pull=true --no-cache=false -t x .",
                "build --pull -t x .",
            ),
            (
                "build --build-arg --pull=true .",
                "build --build-arg --pull=true .",
            ),
            (
                "run --rm=true img prog --rm=true",
                "run --rm img -- prog --rm=true",
            ),
            ("run -it --rm=false img", "run -it img --"),
            ("run -e --rm=true img", "run -e --rm=true img --"),
            ("image ls --quiet=true", "image ls --quiet"),
            (
                "--root /x images --no-trunc=1",
                "--root /x images --no-trunc",
            ),
            ("build --nope=true .", "build --nope=true ."),
            ("build --provenance=false .", "build --provenance=false ."),
        ] {
            let words = |text: &str| {
                let words = text.split(' ').map(OsString::from);
                std::iter::once("kiln".into())
                    .chain(words)
                    .collect::<Vec<_>>()
            };
            assert_eq!(
                prepared(words(given), &Cli::command()),
                words(taken),
                "{given}"
            );
        }
    }

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
        let defaults = Box::leak(Box::new(Defaults {
            global: vec![("root", "/x".to_owned())],
            build: vec![("jobs", "3".to_owned()), ("summary", "true".to_owned())],
        }));
        let making = Making {
            defaults,
            is_read: false,
        };
        let line = ["kiln", "image", "build", "."];
        let matches = grammar(making).try_get_matches_from(line).unwrap();
        let cli = <Cli as clap::FromArgMatches>::from_arg_matches(&matches).unwrap();
        assert_eq!(cli.global.root, Some("/x".into()));
        let Some(crate::args::Command::Image(crate::long_names::ImageCommand::Build(build))) =
            cli.command
        else {
            panic!("not a build");
        };
        assert_eq!((build.jobs, build.summary), (3, true));
    }

    /// What a call sees of its command is what the whole grammar says of it, under all of the command's names.
    #[test]
    fn a_call_makes_its_commands_whole_grammar() {
        fn check(whole: &Command, path: &[&str]) {
            let words = path.iter().chain(&["--help"]);
            let defaults = Box::leak(Box::default());
            let is_read = true;
            let shown = grammar(Making { defaults, is_read }).try_get_matches_from(words);
            let shown = shown.expect_err("help ends the call").render().to_string();
            assert_eq!(shown, whole.clone().render_help().to_string(), "{path:?}");
            for below in whole.get_subcommands() {
                for name in std::iter::once(below.get_name()).chain(below.get_all_aliases()) {
                    check(below, &[path, &[name]].concat());
                }
            }
        }
        let whole = cli();
        assert!(whole.get_subcommands().count() > 30);
        check(&whole, &["kiln"]);
    }
}
