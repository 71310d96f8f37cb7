//! Collects what the checks find, and leaves out what nobody wants to hear.

use std::collections::HashMap;

use kiln_dockerfile::{CheckSettings, Diagnostic, Dockerfile, Lines, Rule, Warning};

/// The findings so far.
pub(crate) struct Checks {
    settings: CheckSettings,
    /// Settings in comments above instructions, by the instruction's first line.
    local: HashMap<u32, CheckSettings>,
    found: Vec<Warning>,
}

impl Checks {
    /// Starts with what the parser found.
    ///
    /// # Errors
    /// With a sentence, when the settings make no sense.
    pub(crate) fn new(
        dockerfile: &mut Dockerfile,
        build_arg: Option<&str>,
    ) -> Result<Self, (String, Option<Lines>)> {
        let settings = match (build_arg, &dockerfile.check) {
            (Some(text), _) => CheckSettings::parse(text).map_err(|message| (message, None))?,
            (None, Some((text, line))) => {
                CheckSettings::parse(text).map_err(|message| (message, Some(Lines::one(*line))))?
            }
            (None, None) => CheckSettings::default(),
        };
        let mut local = HashMap::new();
        let stages = dockerfile.stages.iter();
        let of_stages = stages.clone().map(|stage| (stage.lines, &stage.comments));
        let of_instructions = dockerfile
            .global_args
            .iter()
            .chain(stages.flat_map(|stage| &stage.instructions))
            .map(|instruction| (instruction.lines, &instruction.comments));
        for (lines, comments) in of_stages.chain(of_instructions) {
            let setting = |comment: &String| {
                let (key, value) = comment.split_once('=')?;
                key.trim()
                    .eq_ignore_ascii_case("check")
                    .then(|| CheckSettings::parse(value).ok())?
            };
            if let Some(settings) = comments.iter().find_map(setting) {
                local.insert(lines.first, settings);
            }
        }
        let mut checks = Self {
            settings,
            local,
            found: Vec::new(),
        };
        for warning in std::mem::take(&mut dockerfile.warnings) {
            checks.add(warning.rule, warning.lines, warning.message);
        }
        Ok(checks)
    }

    /// Adds a finding if it is wanted and not known yet.
    pub(crate) fn add(&mut self, rule: Rule, lines: Lines, message: String) {
        let local = self.local.get(&lines.first);
        let wanted = match local {
            Some(local) if rule.experimental() => self.settings.wants(rule) || local.wants(rule),
            Some(local) => self.settings.wants(rule) && local.wants(rule),
            None => self.settings.wants(rule),
        };
        let warning = Warning {
            rule,
            message,
            lines,
        };
        if wanted && !self.found.contains(&warning) {
            self.found.push(warning);
        }
    }

    /// The findings in the order of the file.
    ///
    /// # Errors
    /// When there are some and `error=true` is set.
    pub(crate) fn finish(mut self, file: &str) -> Result<Vec<Warning>, Box<Diagnostic>> {
        self.found.sort_by_key(|warning| warning.lines);
        if !self.settings.error || self.found.is_empty() {
            return Ok(self.found);
        }
        let mut names: Vec<&str> = self
            .found
            .iter()
            .map(|warning| warning.rule.name())
            .collect();
        names.sort_unstable();
        names.dedup();
        Err(Box::new(Diagnostic {
            file: file.to_owned(),
            lines: self.found.first().map(|warning| warning.lines),
            message: format!("lint violation found for rules: {}", names.join(", ")),
            hint: None,
        }))
    }
}
