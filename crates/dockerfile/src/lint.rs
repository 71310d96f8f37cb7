//! The checks: what is allowed but likely wrong.

use crate::Lines;

macro_rules! rules {
    (
        docker { $($name:ident $slug:literal $about:literal $experimental:literal),* $(,)? }
        own { $($own:ident $own_slug:literal $own_about:literal $hint:literal),* $(,)? }
    ) => {
        /// A check, by the name that `# check=skip=` takes.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule {
            $(#[doc = $about] $name,)*
            $(#[doc = $own_about] $own),*
        }

        impl Rule {
            /// All rules.
            pub const ALL: &'static [Self] = &[$(Self::$name,)* $(Self::$own),*];

            /// `StageNameCasing`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* $(Self::$own => stringify!($own)),* }
            }

            /// What the rule asks for, one sentence.
            pub fn about(self) -> &'static str {
                match self { $(Self::$name => $about,)* $(Self::$own => $own_about),* }
            }

            /// The page that explains the rule; empty if there is none.
            pub fn url(self) -> &'static str {
                match self {
                    $(Self::$name if $slug.is_empty() => "",)*
                    $(Self::$name => concat!("https://docs.docker.com/go/dockerfile/rule/", $slug, "/"),)*
                    $(Self::$own => concat!("docs/checks.md#", $own_slug)),*
                }
            }

            /// Only checked when asked for.
            pub fn experimental(self) -> bool {
                match self { $(Self::$name => $experimental,)* $(Self::$own => false),* }
            }

            /// What would help; Kiln's own rules have one.
            pub fn hint(self) -> Option<&'static str> {
                match self { $(Self::$name => None,)* $(Self::$own => Some($hint)),* }
            }

            /// Whether the rule is Kiln's own and not one of `BuildKit`'s. What it finds is shown, but fails nothing:
            /// neither the exit code of a check nor `error=true` count it, so that a file passes in both or in neither.
            pub fn is_own(self) -> bool {
                self.hint().is_some()
            }
        }
    };
}

rules! {
docker {
    StageNameCasing "stage-name-casing" "Stage names should be lowercase" false,
    FromAsCasing "from-as-casing" "The 'as' keyword should match the case of the 'from' keyword" false,
    NoEmptyContinuation "no-empty-continuation" "Empty continuation lines will become errors in a future release" false,
    ConsistentInstructionCasing "consistent-instruction-casing" "All commands within the Dockerfile should use the same casing (either upper or lower)" false,
    DuplicateStageName "duplicate-stage-name" "Stage names should be unique" false,
    ReservedStageName "reserved-stage-name" "Reserved words should not be used as stage names" false,
    JSONArgsRecommended "json-args-recommended" "JSON arguments recommended for ENTRYPOINT/CMD to prevent unintended behavior related to OS signals" false,
    MaintainerDeprecated "maintainer-deprecated" "The MAINTAINER instruction is deprecated, use a label instead to define an image author" false,
    UndefinedArgInFrom "undefined-arg-in-from" "FROM command must use declared ARGs" false,
    WorkdirRelativePath "workdir-relative-path" "Relative workdir without an absolute workdir declared within the build can have unexpected results if the base image changes" false,
    UndefinedVar "undefined-var" "Variables should be defined before their use" false,
    MultipleInstructionsDisallowed "multiple-instructions-disallowed" "Multiple instructions of the same type should not be used in the same stage" false,
    LegacyKeyValueFormat "legacy-key-value-format" "Legacy key/value format with whitespace separator should not be used" false,
    InvalidBaseImagePlatform "" "Base image platform does not match expected target platform" false,
    RedundantTargetPlatform "redundant-target-platform" "Setting platform to predefined $TARGETPLATFORM in FROM is redundant as this is the default behavior" false,
    SecretsUsedInArgOrEnv "secrets-used-in-arg-or-env" "Sensitive data should not be used in the ARG or ENV commands" false,
    InvalidDefaultArgInFrom "invalid-default-arg-in-from" "Default value for global ARG results in an empty or invalid base image name" false,
    FromPlatformFlagConstDisallowed "from-platform-flag-const-disallowed" "FROM --platform flag should not use a constant value" false,
    CopyIgnoredFile "copy-ignored-file" "Attempting to Copy file that is excluded by .dockerignore" false,
    InvalidDefinitionDescription "invalid-definition-description" "Comment for build stage or argument should follow the format: `# <arg/stage name> <description>`. If this is not intended to be a description comment, add an empty line or comment between the instruction and the comment." true,
    ExposeProtoCasing "expose-proto-casing" "Protocol in EXPOSE instruction should be lowercase" false,
    ExposeInvalidFormat "expose-invalid-format" "IP address and host-port mapping should not be used in EXPOSE instruction. This will become an error in a future release" false,
}
own {
    KilnUnusedBuildArg "kilnunusedbuildarg" "Build arguments should be declared by an ARG instruction" "declare it with ARG where it is needed, or do not give it",
    KilnHeredocWithoutSetE "kilnheredocwithoutsete" "Shell here-documents of several commands should stop at the first one that fails" "begin the here-document with set -e",
    KilnSecretValue "kilnsecretvalue" "Secrets should not be written into a Dockerfile" "revoke it, and give the new one to the step with RUN --mount=type=secret",
    KilnCopyBeforeInstall "kilncopybeforeinstall" "Dependencies should be installed before the whole context is copied" "copy the files that list the dependencies first, install, then copy the rest",
}
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// The check.
    pub rule: Rule,
    /// What it found, one sentence.
    pub message: String,
    /// Where.
    pub lines: Lines,
}

/// Which checks are wanted: the value of the `check` directive.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckSettings {
    /// Rules that are not checked.
    pub skip: Vec<String>,
    /// Nothing is checked.
    pub skip_all: bool,
    /// Experimental rules that are checked.
    pub experimental: Vec<String>,
    /// All experimental rules are checked.
    pub experimental_all: bool,
    /// The build fails when something is found.
    pub error: bool,
}

impl CheckSettings {
    /// Reads `skip=A,B;error=true;experimental=A`.
    ///
    /// # Errors
    /// With a sentence, when a part is none of these.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut settings = Self::default();
        if text.trim().is_empty() {
            return Ok(settings);
        }
        for part in text.trim().split(';') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(format!("invalid check option {part:?}"));
            };
            let names = || {
                value
                    .split(',')
                    .map(|name| name.trim().to_owned())
                    .collect::<Vec<_>>()
            };
            match key.trim() {
                "skip" if value.trim() == "all" => settings.skip_all = true,
                "skip" => settings.skip = names(),
                "experimental" if value.trim() == "all" => settings.experimental_all = true,
                "experimental" => settings.experimental = names(),
                "error" => {
                    settings.error = match value.trim() {
                        "true" | "1" | "t" | "T" | "TRUE" | "True" => true,
                        "false" | "0" | "f" | "F" | "FALSE" | "False" => false,
                        _ => {
                            return Err(format!(
                                "failed to parse check option {part:?}: expected true or false"
                            ));
                        }
                    }
                }
                other => return Err(format!("invalid check option {other:?}")),
            }
        }
        Ok(settings)
    }

    /// Whether `rule` is checked.
    pub fn wants(&self, rule: Rule) -> bool {
        let named = |names: &[String]| names.iter().any(|name| name == rule.name());
        if rule.experimental() && !self.experimental_all && !named(&self.experimental) {
            return false;
        }
        !self.skip_all && !named(&self.skip)
    }
}

#[cfg(test)]
mod tests {
    use super::Rule;

    /// The page tells of every rule in the rule's own words.
    #[test]
    fn documented() {
        let page = include_str!("../../../docs/checks.md");
        for rule in Rule::ALL {
            let (name, about) = (rule.name(), rule.about());
            let Some(hint) = rule.hint() else {
                let mark = if rule.experimental() {
                    " (experimental)"
                } else {
                    ""
                };
                assert!(
                    page.contains(&format!("| `{name}`{mark} | {about} |")),
                    "{name}"
                );
                continue;
            };
            let section = format!("### {name}\n\n{about}.\n");
            let (_, rest) = page.split_once(&section).expect(name);
            let section = rest.split("\n### ").next().unwrap_or_default();
            assert!(section.contains(&format!("\nFix: {hint}.\n")), "{name}");
            assert!(section.contains("```"), "{name}: an example");
            assert_eq!(
                rule.url(),
                format!("docs/checks.md#{}", name.to_lowercase())
            );
        }
        assert_eq!(Rule::ALL.iter().filter(|rule| !rule.is_own()).count(), 22);
    }
}
