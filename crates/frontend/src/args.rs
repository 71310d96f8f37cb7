//! Build arguments: those of the whole file, those of the platform, those of the proxies.

use kiln_dockerfile::{Expander, Instruction, Kind, Lines, Variables};
use kiln_image::Platform;

use crate::Options;

/// The variables that `FROM` lines see, and what `ARG` instructions before the first of them made.
pub(crate) struct Globals {
    /// All, with build arguments applied.
    pub all: Variables,
    /// All, as they would be without build arguments.
    pub defaults: Variables,
    /// The names that `ARG` instructions declare.
    pub declared: Vec<String>,
}

/// Something is wrong with an instruction.
pub(crate) type Wrong = (Lines, String);

/// The value of a build argument, or of the global argument of that name.
pub(crate) fn effective<'a>(
    options: &'a Options,
    globals: &'a Globals,
    name: &str,
) -> Option<&'a str> {
    match options.build_args.get(name) {
        Some(value) => Some(value),
        None => globals.all.get(name).filter(|value| !value.is_empty()),
    }
}

impl Globals {
    /// Reads the `ARG` instructions before the first `FROM`.
    pub(crate) fn new(
        instructions: &[Instruction],
        escape: char,
        options: &Options,
        target: &str,
    ) -> Result<Self, Wrong> {
        let mut all: Variables = automatic(options, target);
        for (name, value) in &options.build_args {
            if all.get(name).is_some() {
                all.set(name, value);
            }
        }
        let mut defaults = all.clone();
        let mut declared = Vec::new();
        for instruction in instructions {
            let Kind::Arg(args) = &instruction.kind else {
                continue;
            };
            for (name, default) in args {
                let expand = |variables: &Variables| {
                    let Some(text) = default else { return Ok(None) };
                    let expanded = Expander::new(escape).expand(text, variables);
                    expanded
                        .map(|expanded| Some(expanded.text))
                        .map_err(|error| (instruction.lines, error.to_string()))
                };
                let given = match options.build_args.get(name) {
                    Some(value) => Some(value.clone()),
                    None => expand(&all)?,
                };
                // A default that needs a build argument (`${x:?}`) is no default: nothing to check there.
                if let Ok(Some(value)) = expand(&defaults) {
                    defaults.set(name, value);
                }
                if let Some(value) = given {
                    all.set(name, value);
                }
                declared.push(name.clone());
            }
        }
        Ok(Self {
            all,
            defaults,
            declared,
        })
    }
}

/// `TARGETPLATFORM` and its like.
fn automatic(options: &Options, target: &str) -> Variables {
    let mut variables = Variables::default();
    let mut add = |prefix: &str, platform: &Platform| {
        variables.set(format!("{prefix}PLATFORM"), platform.to_string());
        variables.set(format!("{prefix}OS"), &platform.os);
        variables.set(format!("{prefix}OSVERSION"), "");
        variables.set(format!("{prefix}ARCH"), &platform.architecture);
        variables.set(format!("{prefix}VARIANT"), &platform.variant);
    };
    add("BUILD", &options.build_platform);
    add("TARGET", &options.target_platform);
    variables.set(
        "TARGETSTAGE",
        if target.is_empty() { "default" } else { target },
    );
    variables
}

/// The proxy variables that every process gets without any `ARG`, in both cases.
pub(crate) fn proxies(options: &Options) -> Vec<String> {
    let mut variables = Vec::new();
    for name in [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "FTP_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
    ] {
        let same = |(known, _): &(&String, &String)| known.eq_ignore_ascii_case(name);
        if let Some((_, value)) = options.build_args.iter().rfind(same) {
            variables.push(format!("{name}={value}"));
            variables.push(format!("{}={value}", name.to_lowercase()));
        }
    }
    variables
}
