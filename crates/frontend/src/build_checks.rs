//! The checks that look at more than one instruction.

use std::collections::BTreeSet;

use kiln_dockerfile::{Kind, Rule, did_you_mean};

use crate::build::Builder;
use crate::stages::NodeId;

impl Builder<'_> {
    /// Warns about a base image for another platform than was asked for.
    pub(crate) fn check_base_platform(&mut self, id: NodeId) {
        let node = &self.nodes.all[id];
        let Ok(base) = self.bases.base(self.nodes, id) else {
            return;
        };
        let (found, Some(wanted)) = (base.config.platform(), &base.platform) else {
            return;
        };
        if node.stage
            && base.is_image
            && !base.unknown
            && !base.config.architecture.is_empty()
            && (found.os != wanted.os || found.architecture != wanted.architecture)
        {
            let message = format!(
                "Base image {} was pulled with platform \"{found}\", expected \"{wanted}\" for current build",
                node.base
            );
            self.checks
                .add(Rule::InvalidBaseImagePlatform, node.lines, message);
        }
    }

    /// Warns about build arguments that no `ARG` takes: at the target, since that is where one would be missing.
    pub(crate) fn check_build_args(&mut self, target: NodeId, built: &BTreeSet<NodeId>) {
        let mut declared: BTreeSet<&str> =
            self.globals.declared.iter().map(String::as_str).collect();
        for node in &self.nodes.all {
            for step in &node.steps {
                if let Kind::Arg(args) = &step.instruction.kind {
                    declared.extend(args.iter().map(|(name, _)| name.as_str()));
                }
            }
        }
        // The triggers of a base that is not known may take any argument.
        if built
            .iter()
            .any(|node| self.built(*node).is_some_and(|state| state.base_unknown))
        {
            return;
        }
        for name in self.bases.options.build_args.keys() {
            if declared.contains(name.as_str()) || steers(name) {
                continue;
            }
            let hint = did_you_mean(name, declared.iter().copied());
            let hint = hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
            self.checks.add(
                Rule::KilnUnusedBuildArg,
                self.nodes.all[target].lines,
                format!("Build argument '{name}' is declared by no ARG instruction{hint}"),
            );
        }
    }
}

/// Whether a build argument steers the build, or is taken without any `ARG`.
fn steers(name: &str) -> bool {
    const PROXIES: [&str; 5] = [
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "FTP_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
    ];
    const PLATFORM: [&str; 5] = ["PLATFORM", "OS", "OSVERSION", "ARCH", "VARIANT"];
    let automatic = ["TARGET", "BUILD"].iter().any(|prefix| {
        name.strip_prefix(prefix)
            .is_some_and(|rest| PLATFORM.contains(&rest))
    });
    automatic
        || name.starts_with("BUILDKIT_")
        || matches!(name, "SOURCE_DATE_EPOCH" | "TARGETSTAGE")
        || PROXIES.iter().any(|proxy| name.eq_ignore_ascii_case(proxy))
}
