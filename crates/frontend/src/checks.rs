//! Collects what the checks find, and leaves out what nobody wants to hear.

use kiln_dockerfile::{CheckSettings, Diagnostic, Lines, Rule, Warning};

/// The findings so far, in the order in which `BuildKit` finds them.
pub(crate) struct Checks {
    settings: CheckSettings,
    found: Vec<Warning>,
}

impl Checks {
    /// Reads the settings: the build argument wins over the directive.
    ///
    /// # Errors
    /// With a sentence, when the settings make no sense.
    pub(crate) fn new(
        directive: Option<&(String, u32)>,
        build_arg: Option<&str>,
    ) -> Result<Self, (String, Option<Lines>)> {
        let settings = match (build_arg, directive) {
            (Some(text), _) => CheckSettings::parse(text).map_err(|message| {
                let place = "build-arg:BUILDKIT_DOCKERFILE_CHECK";
                (format!("failed to parse {place}: {message}"), None)
            })?,
            (None, Some((text, line))) => CheckSettings::parse(text).map_err(|message| {
                let message = format!("failed to parse check options: {message}");
                (message, Some(Lines::one(*line)))
            })?,
            (None, None) => CheckSettings::default(),
        };
        Ok(Self {
            settings,
            found: Vec::new(),
        })
    }

    /// Adds a finding if it is wanted.
    pub(crate) fn add(&mut self, rule: Rule, lines: Lines, message: String) {
        if self.settings.wants(rule) {
            self.found.push(Warning {
                rule,
                message,
                lines,
            });
        }
    }

    /// Adds what is wanted of a list.
    pub(crate) fn extend(&mut self, warnings: Vec<Warning>) {
        let settings = &self.settings;
        self.found.extend(
            warnings
                .into_iter()
                .filter(|found| settings.wants(found.rule)),
        );
    }

    /// All findings.
    pub(crate) fn take(&mut self) -> Vec<Warning> {
        std::mem::take(&mut self.found)
    }

    /// Fails when something was found and `error=true` is set. Kiln's own rules fail nothing.
    pub(crate) fn verdict(&self, file: &str) -> Result<(), Box<Diagnostic>> {
        let mut names: Vec<&str> = Vec::new();
        for warning in self.found.iter().filter(|found| !found.rule.is_own()) {
            if !names.contains(&warning.rule.name()) {
                names.push(warning.rule.name());
            }
        }
        if !self.settings.error || names.is_empty() {
            return Ok(());
        }
        Err(Box::new(Diagnostic {
            file: file.to_owned(),
            lines: None,
            message: format!("lint violation found for rules: {}", names.join(", ")),
            hint: None,
            about: None,
        }))
    }
}
