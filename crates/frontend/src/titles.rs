//! What the displays call the steps of a stage.

use std::fmt::Write as _;

use kiln_dockerfile::Expander;
use kiln_graph::Place;
use kiln_image::Platform;

use crate::build::Stage;

impl Stage<'_, '_> {
    /// An instruction's text as the displays show it: keyword in upper case, variables expanded where that works.
    pub(crate) fn step_text(&self, original: &str, how: Expander) -> String {
        let expanded = how.expand(original, &self.state.env);
        let text = expanded.map_or_else(|_| original.to_owned(), |expanded| expanded.text);
        match text.split_once(' ') {
            Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
            None => text.to_uppercase(),
        }
    }

    /// The title of the next step that has a number.
    pub(crate) fn number(&mut self, step: &str) -> String {
        self.at += 1;
        self.titled(step)
    }

    /// The title of a part of the step that was numbered last.
    pub(crate) fn titled(&self, step: &str) -> String {
        if self.total == 0 {
            return step.to_owned();
        }
        let mut title = "[".to_owned();
        title.push_str(&self.platforms());
        if self.builder.several {
            title.push_str(&self.node.label);
            title.push(' ');
        }
        let width = self.total.to_string().len();
        // Writing into a string cannot fail.
        let _ = write!(title, "{:>width$}/{}] ", self.at, self.total);
        if self.trigger {
            title.push_str("ONBUILD ");
        }
        title.push_str(step);
        title
    }

    /// What tells the steps of one platform from those of another: `linux/amd64->arm64 `.
    fn platforms(&self) -> String {
        if self.builder.bases.options.multi_platform {
            format!("{}{} ", self.state.platform, self.cross_target())
        } else {
            String::new()
        }
    }

    /// `->arm64` for a stage on the build platform that has declared the target platform.
    fn cross_target(&self) -> String {
        let (env, own) = (&self.state.env, &self.state.platform);
        let part = |name: &str, own: &str| env.get(name).unwrap_or(own).to_owned();
        let target = match env
            .get("TARGETPLATFORM")
            .and_then(|text| text.parse::<Platform>().ok())
        {
            Some(platform) => platform,
            None => Platform::new(
                &part("TARGETOS", &own.os),
                &part("TARGETARCH", &own.architecture),
                &part("TARGETVARIANT", &own.variant),
            ),
        };
        if target.os != own.os {
            return format!("->{target}");
        }
        if target.architecture == own.architecture {
            return String::new();
        }
        let variant = if target.variant.is_empty() {
            String::new()
        } else {
            format!("/{}", target.variant)
        };
        format!("->{}{variant}", target.architecture)
    }

    /// A place in this stage.
    pub(crate) fn place(&self, title: String, step: String) -> Place {
        Place {
            title,
            step,
            stage: self.platforms() + &self.node.label,
            lines: Some((self.lines.first, self.lines.last)),
        }
    }

    /// The place of the next step that has a number.
    pub(crate) fn numbered_place(&mut self, step: &str) -> Place {
        let title = self.number(step);
        self.place(title, step.to_owned())
    }
}
