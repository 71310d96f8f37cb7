//! From logical lines to typed instructions.

use crate::ast::{
    Command, Dockerfile, Healthcheck, Instruction, Kind, Pair, Run, RunNetwork, Stage, Transfer,
};
use crate::flags::Flags;
use crate::heredoc::Heredoc;
use crate::lexer::{self, Lexed, Logical};
use crate::lint::Warning;
use crate::parse_checks::{check_casing, check_duplicates, check_instruction, check_stage};
use crate::suggest::did_you_mean;
use crate::words::{self, Json};
use crate::{Diagnostic, Lines, Mount, SourceText, duration};

/// What is wrong with one instruction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Complaint {
    /// One sentence.
    pub message: String,
    /// What would help.
    pub hint: Option<String>,
    /// The piece of the instruction that is wrong, as written.
    pub about: Option<String>,
}

impl Complaint {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            hint: None,
            about: None,
        }
    }

    /// The same with what would help.
    pub(crate) fn hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    /// The same, pointing at a piece of the instruction.
    pub(crate) fn at(mut self, about: impl Into<String>) -> Self {
        self.about = Some(about.into());
        self
    }
}

const KEYWORDS: &[&str] = &[
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// What came of reading a Dockerfile, right or wrong.
#[derive(Debug)]
pub struct Parsed {
    /// The tree, or the first thing that is wrong.
    pub dockerfile: Result<Dockerfile, Box<Diagnostic>>,
    /// What the checks of the parser found before that, all of it: skipping is up to the caller.
    pub warnings: Vec<Warning>,
    /// The `check` directive, and its line.
    pub check: Option<(String, u32)>,
}

/// Parses a Dockerfile.
///
/// # Errors
/// With the first thing that is wrong.
pub fn parse(source: &SourceText) -> Result<Dockerfile, Box<Diagnostic>> {
    let parsed = parse_checked(source);
    let dockerfile = parsed.dockerfile?;
    Ok(Dockerfile {
        warnings: parsed.warnings,
        ..dockerfile
    })
}

/// Parses a Dockerfile and keeps what the checks found, also when something is wrong.
pub fn parse_checked(source: &SourceText) -> Parsed {
    let mut lexed = Lexed::default();
    let outcome = lexer::lex(&source.text, &mut lexed);
    let check = lexed.directives.check.clone();
    let mut warnings = Vec::new();
    let dockerfile = parse_lines(source, outcome, &mut lexed, &mut warnings);
    Parsed {
        dockerfile,
        warnings,
        check,
    }
}

/// Whether an image with a frontend has another language in it than Dockerfiles are written in. Docker's own has many
/// names, since registries mirror it: what they have in common is the last part.
pub fn is_other_frontend(image: &str) -> bool {
    let name = image.split('@').next().unwrap_or_default();
    let last = name.rsplit('/').next().unwrap_or_default();
    let last = last.split(':').next().unwrap_or_default();
    !image.is_empty() && !matches!(last, "dockerfile" | "dockerfile-upstream")
}

/// The refusal of another frontend.
pub fn other_frontend(image: &str) -> Complaint {
    let message = format!("the frontend {image} cannot be used: Kiln reads Dockerfiles itself");
    Complaint::new(message).hint(Some(
        "leave the line out, or name docker/dockerfile:1".to_owned(),
    ))
}

fn parse_lines(
    source: &SourceText,
    outcome: Result<(), lexer::LexError>,
    lexed: &mut Lexed,
    warnings: &mut Vec<Warning>,
) -> Result<Dockerfile, Box<Diagnostic>> {
    let fail = |lines: Option<Lines>, complaint: Complaint| {
        let message = match lines {
            Some(lines) => format!(
                "dockerfile parse error on line {}: {}",
                lines.first, complaint.message
            ),
            None => complaint.message,
        };
        Box::new(Diagnostic {
            file: source.name.clone(),
            lines,
            message,
            hint: complaint.hint,
            about: complaint.about,
        })
    };
    // Before all else: the rest may be in a language that is not known here.
    if let Some((name, line)) = &lexed.directives.syntax
        && is_other_frontend(name)
    {
        return Err(fail(
            Some(Lines::one(*line)),
            other_frontend(name).at(name.clone()),
        ));
    }
    outcome.map_err(|error| {
        let first = error.lines.map_or(0, |lines| lines.first as usize);
        let line = first.checked_sub(1);
        let line = line.and_then(|line| source.text.lines().nth(line));
        let complaint = Complaint::new(error.message).at(line.unwrap_or_default());
        fail(error.lines, complaint)
    })?;
    warnings.append(&mut lexed.warnings);
    let escape = lexed.directives.escape.unwrap_or('\\');
    let mut dockerfile = Dockerfile {
        escape,
        syntax: lexed.directives.syntax.take().map(|(name, _)| name),
        check: lexed.directives.check.take(),
        global_args: Vec::new(),
        stages: Vec::new(),
        warnings: Vec::new(),
    };
    for logical in &lexed.logical {
        if logical.keyword.eq_ignore_ascii_case("FROM") {
            let stage = from(logical).map_err(|complaint| fail(Some(logical.lines), complaint))?;
            check_stage(logical, &stage, warnings);
            dockerfile.stages.push(stage);
            continue;
        }
        let instruction = instruction(logical, escape)
            .map_err(|complaint| fail(Some(logical.lines), complaint))?;
        match dockerfile.stages.last_mut() {
            Some(stage) => {
                check_instruction(&instruction, warnings);
                stage.instructions.push(instruction);
            }
            None if matches!(instruction.kind, Kind::Arg(_)) => {
                check_instruction(&instruction, warnings);
                dockerfile.global_args.push(instruction);
            }
            None => {
                return Err(fail(
                    Some(logical.lines),
                    Complaint::new("no build stage in current context")
                        .at(&logical.keyword)
                        .hint(Some("begin with FROM".to_owned())),
                ));
            }
        }
    }
    if dockerfile.stages.is_empty() {
        return Err(fail(
            None,
            Complaint::new("dockerfile contains no stages to build"),
        ));
    }
    check_duplicates(&dockerfile.stages, warnings);
    check_casing(&lexed.logical, warnings);
    Ok(dockerfile)
}

/// Parses the trigger of an ONBUILD instruction, as a base image has it. Its place is `lines`.
///
/// # Errors
/// When it is not one instruction that may be a trigger.
pub fn parse_trigger(text: &str, lines: Lines, file: &str) -> Result<Instruction, Box<Diagnostic>> {
    let fail = |complaint: Complaint| {
        let message = format!(
            "ONBUILD trigger {text:?} of the base image: {}",
            complaint.message
        );
        Box::new(Diagnostic {
            file: file.to_owned(),
            lines: Some(lines),
            message,
            hint: complaint.hint,
            about: None,
        })
    };
    let mut lexed = Lexed::default();
    lexer::lex(text, &mut lexed).map_err(|error| fail(Complaint::new(error.message)))?;
    let [logical] = &lexed.logical[..] else {
        return Err(fail(Complaint::new(
            "onbuild trigger should be a single expression",
        )));
    };
    refuse_as_trigger(&logical.keyword).map_err(fail)?;
    let parsed = instruction(logical, lexed.directives.escape.unwrap_or('\\')).map_err(fail)?;
    Ok(Instruction { lines, ..parsed })
}

fn refuse_as_trigger(keyword: &str) -> Result<(), Complaint> {
    match keyword.to_uppercase().as_str() {
        "ONBUILD" => Err(
            Complaint::new("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
                .at("ONBUILD ONBUILD"),
        ),
        word @ ("MAINTAINER" | "FROM") => {
            Err(Complaint::new(format!("{word} isn't allowed as an ONBUILD trigger")).at(keyword))
        }
        _ => Ok(()),
    }
}

fn from(logical: &Logical) -> Result<Stage, Complaint> {
    let mut flags = Flags::new(&logical.flags);
    let platform = flags.string("platform")?;
    flags.finish()?;
    let words = words::blanks(&logical.arguments);
    let (base, name) = match &words[..] {
        [base] => (base, None),
        [base, keyword, name] if keyword.eq_ignore_ascii_case("as") => {
            (base, Some(stage_name(name)?))
        }
        [] => {
            return Err(
                Complaint::new("FROM requires either one or three arguments")
                    .at(&logical.keyword)
                    .hint(Some("FROM IMAGE or FROM IMAGE AS NAME".to_owned())),
            );
        }
        [_, rest @ ..] => {
            return Err(
                Complaint::new("FROM requires either one or three arguments")
                    .at(&rest[0])
                    .hint(Some("FROM IMAGE or FROM IMAGE AS NAME".to_owned())),
            );
        }
    };
    Ok(Stage {
        name,
        base: base.clone(),
        platform,
        original: logical.original.clone(),
        lines: logical.lines,
        comments: logical.comments.clone(),
        instructions: Vec::new(),
    })
}

fn stage_name(word: &str) -> Result<String, Complaint> {
    let name = word.to_lowercase();
    let proper = |char: char| {
        char.is_ascii_lowercase() || char.is_ascii_digit() || matches!(char, '-' | '_' | '.')
    };
    if name.starts_with(|char: char| char.is_ascii_lowercase()) && name.chars().all(proper) {
        return Ok(name);
    }
    let message = format!(
        "invalid name for build stage: {word:?}, name can't start with a number or contain symbols"
    );
    Err(Complaint::new(message).at(word))
}

fn instruction(logical: &Logical, escape: char) -> Result<Instruction, Complaint> {
    let keyword = logical.keyword.to_uppercase();
    let arguments = logical.arguments.as_str();
    let mut flags = Flags::new(&logical.flags);
    let kind = match keyword.as_str() {
        "RUN" => Kind::Run(run(logical, &mut flags)?),
        "COPY" => Kind::Copy(transfer(logical, "COPY", &mut flags)?),
        "ADD" => Kind::Add(transfer(logical, "ADD", &mut flags)?),
        "ENV" => Kind::Env(pairs(arguments, "ENV", escape)?),
        "LABEL" => Kind::Label(pairs(arguments, "LABEL", escape)?),
        "ARG" => Kind::Arg(arg(arguments, escape)?),
        "WORKDIR" => Kind::Workdir(one(arguments, "WORKDIR")?),
        "USER" => Kind::User(one(arguments, "USER")?),
        "MAINTAINER" => Kind::Maintainer(one(arguments, "MAINTAINER")?),
        "STOPSIGNAL" => {
            if words::blanks(arguments).len() != 1 {
                return Err(
                    Complaint::new("STOPSIGNAL requires exactly one argument").at(&logical.keyword)
                );
            }
            Kind::StopSignal(arguments.to_owned())
        }
        "VOLUME" => Kind::Volume(list(arguments, "VOLUME")?),
        "EXPOSE" => {
            let mut ports = words::blanks(arguments);
            if ports.is_empty() {
                return Err(at_least_one("EXPOSE"));
            }
            ports.sort();
            Kind::Expose(ports)
        }
        "CMD" => Kind::Cmd(command(arguments)?),
        "ENTRYPOINT" => Kind::Entrypoint(command(arguments)?),
        "SHELL" => match words::json(arguments) {
            Json::Strings(shell) if shell.is_empty() => return Err(at_least_one("SHELL")),
            Json::Strings(shell) => Kind::Shell(shell),
            Json::Mixed => return Err(mixed(arguments)),
            Json::No if arguments.is_empty() => return Err(at_least_one("SHELL")),
            Json::No => {
                return Err(
                    Complaint::new("SHELL requires the arguments to be in JSON form")
                        .at(arguments)
                        .hint(Some(r#"as in SHELL ["/bin/sh", "-c"]"#.to_owned())),
                );
            }
        },
        "HEALTHCHECK" => Kind::Healthcheck(healthcheck(arguments, &mut flags)?),
        "ONBUILD" => Kind::Onbuild(onbuild(logical, escape)?),
        _ => {
            let message = format!("unknown instruction: {}", logical.keyword);
            let hint = did_you_mean(&keyword, KEYWORDS.iter().copied());
            return Err(Complaint::new(message).hint(hint).at(&logical.keyword));
        }
    };
    flags.finish()?;
    Ok(Instruction {
        kind,
        keyword,
        original: logical.original.clone(),
        lines: logical.lines,
        comments: logical.comments.clone(),
    })
}

fn at_least_one(keyword: &str) -> Complaint {
    Complaint::new(format!("{keyword} requires at least one argument")).at(keyword)
}

fn mixed(arguments: &str) -> Complaint {
    Complaint::new("when using JSON array syntax, arrays must be comprised of strings only")
        .at(arguments)
}

fn one(arguments: &str, keyword: &str) -> Result<String, Complaint> {
    if arguments.is_empty() {
        let message = format!("{keyword} requires exactly one argument");
        return Err(Complaint::new(message).at(keyword));
    }
    Ok(arguments.to_owned())
}

fn command(arguments: &str) -> Result<Command, Complaint> {
    match words::json(arguments) {
        Json::Strings(words) => Ok(Command::Exec(words)),
        Json::Mixed => Err(mixed(arguments)),
        Json::No => Ok(Command::Shell(arguments.to_owned())),
    }
}

fn list(arguments: &str, keyword: &str) -> Result<Vec<String>, Complaint> {
    let words = match words::json(arguments) {
        Json::Strings(words) => words,
        Json::Mixed => return Err(mixed(arguments)),
        Json::No => words::blanks(arguments),
    };
    if words.is_empty() {
        return Err(at_least_one(keyword));
    }
    if words.iter().any(|word| word.trim().is_empty()) {
        return Err(Complaint::new(format!(
            "{keyword} specified can not be an empty string"
        )));
    }
    Ok(words)
}

fn run(logical: &Logical, flags: &mut Flags) -> Result<Run, Complaint> {
    let mounts = flags.strings("mount")?;
    let mount_sources = mounts
        .iter()
        .map(|mount| Mount::source_of(mount))
        .collect::<Result<_, _>>()?;
    let network = match flags.string("network")?.as_deref() {
        None | Some("default") => RunNetwork::Default,
        Some("none") => RunNetwork::None,
        Some("host") => RunNetwork::Host,
        Some(other) => return Err(choice("network mode", other, &["default", "none", "host"])),
    };
    let insecure = match flags.string("security")?.as_deref() {
        None | Some("sandbox") => false,
        Some("insecure") => true,
        Some(other) => return Err(choice("security mode", other, &["sandbox", "insecure"])),
    };
    let devices = flags.strings("device")?;
    let command = command(&logical.arguments)?;
    Ok(Run {
        command,
        heredocs: logical.heredocs.clone(),
        mounts,
        mount_sources,
        network,
        insecure,
        devices,
    })
}

fn choice(what: &str, given: &str, options: &[&str]) -> Complaint {
    let message = format!(
        "{what} {given:?} is not valid, use one of {}",
        options.join(", ")
    );
    Complaint::new(message)
        .hint(did_you_mean(given, options.iter().copied()))
        .at(given)
}

fn transfer(logical: &Logical, keyword: &str, flags: &mut Flags) -> Result<Transfer, Complaint> {
    let mut transfer = Transfer {
        chown: flags.string("chown")?,
        chmod: flags.string("chmod")?,
        link: flags.boolean("link")?.unwrap_or(false),
        exclude: flags.strings("exclude")?,
        ..Transfer::default()
    };
    if keyword == "COPY" {
        transfer.from = flags.string("from")?;
        transfer.parents = flags.boolean("parents")?.unwrap_or(false);
    } else {
        transfer.keep_git_dir = flags.boolean("keep-git-dir")?;
        transfer.checksum = flags.string("checksum")?;
        transfer.unpack = flags.boolean("unpack")?;
    }
    let mut words = match words::json(&logical.arguments) {
        Json::Strings(words) => words,
        Json::Mixed => return Err(mixed(&logical.arguments)),
        // The sign of a here-document and its name may stand apart.
        Json::No if logical.heredocs.is_empty() => words::blanks(&logical.arguments),
        Json::No => join_heredoc_signs(words::blanks(&logical.arguments)),
    };
    let no_destination = || {
        let message = format!(
            "{keyword} requires at least two arguments, but only one was provided. Destination could not be determined"
        );
        Complaint::new(message).at(&logical.keyword)
    };
    transfer.destination = words.pop().ok_or_else(no_destination)?;
    if words.is_empty() {
        return Err(no_destination());
    }
    if Heredoc::parse(&transfer.destination).is_some() {
        let message = format!("{keyword} cannot accept a heredoc as a destination");
        return Err(Complaint::new(message).at(transfer.destination));
    }
    for word in words {
        let sign = Heredoc::parse(&word);
        match sign.and_then(|sign| {
            logical
                .heredocs
                .iter()
                .find(|heredoc| heredoc.name == sign.name)
        }) {
            Some(heredoc) => transfer.heredocs.push(heredoc.clone()),
            None => transfer.sources.push(word),
        }
    }
    Ok(transfer)
}

fn join_heredoc_signs(words: Vec<String>) -> Vec<String> {
    let mut joined: Vec<String> = Vec::with_capacity(words.len());
    for word in words {
        match joined.last_mut() {
            Some(last) if last.trim_start_matches(|char: char| char.is_ascii_digit()) == "<<" => {
                last.push_str(&word);
            }
            _ => joined.push(word),
        }
    }
    joined
}

fn pairs(arguments: &str, keyword: &str, escape: char) -> Result<Vec<Pair>, Complaint> {
    let words = words::quoted(arguments, escape);
    let Some(first) = words.first() else {
        return Err(at_least_one(keyword));
    };
    if !first.contains('=') {
        let Some((name, value)) = arguments.split_once(words::is_blank) else {
            let message = format!("{keyword} must have two arguments");
            return Err(Complaint::new(message)
                .at(arguments)
                .hint(Some(format!("as in {keyword} NAME=VALUE"))));
        };
        let value = value.trim_start_matches(words::is_blank);
        return Ok(vec![Pair {
            name: name.to_owned(),
            value: value.to_owned(),
            legacy: true,
        }]);
    }
    let pair = |word: &String| {
        let Some((name, value)) = word.split_once('=') else {
            let message =
                format!("Syntax error - can't find = in {word:?}. Must be of the form: name=value");
            return Err(Complaint::new(message).at(word));
        };
        if name.is_empty() {
            let message = format!("{keyword} names can not be blank");
            return Err(Complaint::new(message).at(word));
        }
        Ok(Pair {
            name: name.to_owned(),
            value: value.to_owned(),
            legacy: false,
        })
    };
    words.iter().map(pair).collect()
}

fn arg(arguments: &str, escape: char) -> Result<Vec<(String, Option<String>)>, Complaint> {
    let words = words::quoted(arguments, escape);
    if words.is_empty() {
        return Err(at_least_one("ARG"));
    }
    let definition = |word: String| match word.split_once('=') {
        Some(("", _)) => Err(Complaint::new("ARG names can not be blank").at(&word)),
        Some((name, value)) => Ok((name.to_owned(), Some(value.to_owned()))),
        None => Ok((word, None)),
    };
    words.into_iter().map(definition).collect()
}

fn healthcheck(arguments: &str, flags: &mut Flags) -> Result<Healthcheck, Complaint> {
    let (kind, rest) = arguments
        .split_once(char::is_whitespace)
        .unwrap_or((arguments, ""));
    let rest = rest.trim_start();
    let mut time = |name: &'static str| -> Result<i64, Complaint> {
        let Some(text) = flags.string(name)? else {
            return Ok(0);
        };
        let Some(nanos) = duration::parse(&text) else {
            let message = format!("invalid duration {text:?} on flag --{name}");
            let hint = "a number with ns, us, ms, s, m or h behind it, as in 1m30s";
            return Err(Complaint::new(message).at(text).hint(Some(hint.to_owned())));
        };
        if nanos != 0 && nanos < duration::MILLISECOND {
            let message = format!("interval {name:?} cannot be less than 1ms");
            return Err(Complaint::new(message).at(text));
        }
        Ok(nanos)
    };
    let mut check = Healthcheck {
        interval: time("interval")?,
        timeout: time("timeout")?,
        start_period: time("start-period")?,
        start_interval: time("start-interval")?,
        ..Healthcheck::default()
    };
    if let Some(retries) = flags.string("retries")? {
        let invalid = |_| {
            Complaint::new(format!("invalid number {retries:?} on flag --retries")).at(&retries)
        };
        check.retries = retries.parse::<i32>().map_err(invalid)?.into();
        if check.retries < 0 {
            let message = format!("--retries cannot be negative ({})", check.retries);
            return Err(Complaint::new(message).at(&retries));
        }
    }
    match kind.to_uppercase().as_str() {
        "" => return Err(at_least_one("HEALTHCHECK")),
        "NONE" if !rest.is_empty() => {
            return Err(Complaint::new("HEALTHCHECK NONE takes no arguments").at(rest));
        }
        "NONE" => check.test = vec!["NONE".to_owned()],
        "CMD" => match command(rest)? {
            Command::Exec(words) if !words.is_empty() => {
                check.test = std::iter::once("CMD".to_owned()).chain(words).collect();
            }
            Command::Shell(text) if !text.is_empty() => {
                check.test = vec!["CMD-SHELL".to_owned(), text];
            }
            _ => return Err(Complaint::new("missing command after HEALTHCHECK CMD").at(kind)),
        },
        other => {
            let hint = did_you_mean(other, ["CMD", "NONE"]);
            let message = format!("unknown type {other:?} in HEALTHCHECK (try CMD)");
            return Err(Complaint::new(message).hint(hint).at(kind));
        }
    }
    Ok(check)
}

fn onbuild(logical: &Logical, escape: char) -> Result<String, Complaint> {
    let (keyword, rest) = logical
        .arguments
        .split_once(words::is_blank)
        .unwrap_or((&logical.arguments, ""));
    if keyword.is_empty() {
        return Err(at_least_one("ONBUILD"));
    }
    refuse_as_trigger(keyword)?;
    // The trigger must make sense now, not only when somebody builds upon it.
    let (flags, arguments) = words::flags(rest, escape);
    let inner = Logical {
        keyword: keyword.to_owned(),
        flags,
        arguments: arguments.trim().to_owned(),
        original: logical.arguments.clone(),
        lines: logical.lines,
        comments: Vec::new(),
        heredocs: logical.heredocs.clone(),
    };
    instruction(&inner, escape)?;
    let mut text = logical.arguments.clone();
    for heredoc in &logical.heredocs {
        text.push('\n');
        text.push_str(&heredoc.body);
        text.push_str(&heredoc.name);
    }
    Ok(text)
}
