//! Expansion of an instruction's words, and the checks of names.

use kiln_dockerfile::{ExpandError, Expander, Rule, did_you_mean, nearest};

use crate::build::{Stage, Wrong};

impl Stage<'_, '_> {
    pub(crate) fn check_secret(&mut self, keyword: &str, name: &str) {
        if kiln_graph::is_secret_name(name) {
            let message = format!(
                "Do not use ARG or ENV instructions for sensitive data ({keyword} {name:?})"
            );
            self.builder
                .checks
                .add(Rule::SecretsUsedInArgOrEnv, self.lines, message);
        }
    }

    /// Expands a word.
    pub(crate) fn word(&mut self, text: &str) -> Result<String, Wrong> {
        self.word_with(text, Expander::new(self.builder.escape))
    }

    /// Expands a word in another way.
    pub(crate) fn word_with(&mut self, text: &str, how: Expander) -> Result<String, Wrong> {
        match how.expand(text, &self.state.env) {
            Ok(expanded) => {
                self.report_missing(expanded.missing.iter());
                Ok(expanded.text)
            }
            Err(error) => {
                self.report_missing(error.missing.iter());
                Err(self.cannot_expand(&error))
            }
        }
    }

    pub(crate) fn cannot_expand(&self, error: &ExpandError) -> Wrong {
        let hint = error
            .missing
            .iter()
            .find_map(|name| did_you_mean(name, self.state.env.names()));
        Wrong {
            message: error.to_string(),
            hint,
            about: Some(error.text.clone()),
        }
    }

    pub(crate) fn report_missing<'n>(&mut self, names: impl Iterator<Item = &'n String>) {
        for name in names {
            // An ARG without a value is defined: it is empty.
            if self.state.base_unknown || self.state.args.iter().any(|(known, _)| known == name) {
                continue;
            }
            let mut message = format!("Usage of undefined variable '${name}'");
            if let Some(near) = nearest(name, self.state.env.names()) {
                message.extend([" (did you mean $", near, "?)"]);
            }
            self.builder
                .checks
                .add(Rule::UndefinedVar, self.lines, message);
        }
    }
}
