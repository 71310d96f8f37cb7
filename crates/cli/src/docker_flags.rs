//! Options of docker's that do nothing here: accepted, and told. What would change the result is refused instead.

use clap::Args;
use kiln_engine::BuildError;

use crate::format::complain;

/// Of `docker build`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct BuildFlags {
    /// Accepted for docker's sake: there are no intermediate containers
    #[arg(long, hide = true)]
    rm: bool,
    /// Accepted for docker's sake: there are no intermediate containers
    #[arg(long, hide = true)]
    force_rm: bool,
    /// Accepted for docker's sake: contexts are not sent
    #[arg(long, hide = true)]
    compress: bool,
    /// Accepted for docker's sake: there is one builder
    #[arg(long, hide = true, value_name = "NAME", env = "BUILDX_BUILDER")]
    builder: Option<String>,
    /// Accepted for docker's sake
    #[arg(short = 'D', long, hide = true)]
    debug: bool,
    /// Accepted for docker's sake
    #[arg(long, hide = true)]
    disable_content_trust: bool,
    /// Accepted with false only
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    provenance: Option<String>,
    /// Accepted with false only
    #[arg(long, hide = true, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    sbom: Option<String>,
    /// Refused
    #[arg(long, hide = true, value_name = "ATTESTATION")]
    attest: Vec<String>,
    /// Refused
    #[arg(long, hide = true)]
    squash: bool,
    /// Refused
    #[arg(long, hide = true, value_name = "OPTION")]
    security_opt: Vec<String>,
    /// Refused
    #[arg(long, hide = true, value_name = "POLICY")]
    policy: Vec<String>,
    /// Refused
    #[arg(long, hide = true, value_name = "WHAT")]
    print: Option<String>,
}

impl BuildFlags {
    /// Tells what does nothing, and refuses what would do something.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        let refuse = |flag: &str, why: &str, hint: &str| {
            Err(BuildError::new(format!("--{flag}: {why}")).with_hint(hint))
        };
        if self.squash {
            return refuse(
                "squash",
                "kiln keeps layers apart",
                "a last stage with COPY --from of what is needed has the same effect",
            );
        }
        if !self.security_opt.is_empty() {
            return refuse(
                "security-opt",
                "what keeps steps in is not changed by options",
                "RUN --security=insecure with --allow security.insecure gives a step all rights",
            );
        }
        if !self.policy.is_empty() {
            return refuse("policy", "kiln evaluates no policies", "leave it out");
        }
        // Who sets them relies on what they forbid.
        for name in [
            "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY",
            "BUILDX_DEFAULT_POLICY",
        ] {
            if crate::context::variable(name).is_some() {
                let error = BuildError::new(format!("{name}: kiln evaluates no policies"));
                return Err(error.with_hint("unset it for builds that need none"));
            }
        }
        if self.print.is_some() {
            return refuse(
                "print",
                "this is --call by now",
                "write --call=outline or --call=targets",
            );
        }
        let wanted = |value: &Option<String>| {
            value
                .as_deref()
                .is_some_and(|value| !matches!(value, "false" | "0" | "disabled"))
        };
        for (flag, given) in [
            ("attest", !self.attest.is_empty()),
            ("provenance", wanted(&self.provenance)),
            ("sbom", wanted(&self.sbom)),
        ] {
            if given {
                return refuse(
                    flag,
                    "kiln makes no attestations",
                    "leave it out; --metadata-file tells what was built",
                );
            }
        }
        let no_containers = "steps leave no containers behind";
        note(self.rm, "--rm", no_containers);
        note(self.force_rm, "--force-rm", no_containers);
        note(
            self.compress,
            "--compress",
            "the context is read where it is",
        );
        note(self.debug, "--debug", "errors have all that is known");
        note(
            self.disable_content_trust,
            "--disable-content-trust",
            "kiln does not ask notary servers",
        );
        let builder = self.builder.as_deref().filter(|name| *name != "default");
        note(
            builder.is_some(),
            "--builder",
            "there is one builder, this program",
        );
        Ok(())
    }
}

/// Tells that an option does nothing, if it is there.
pub(crate) fn note(given: bool, option: &str, why: &str) {
    if given {
        complain(&format!("note: {option} does nothing here: {why}"));
    }
}

/// Of `docker run` and `docker create`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct ContainerFlags {
    /// Accepted for docker's sake
    #[arg(long, hide = true, value_name = "POLICY")]
    restart: Option<String>,
    /// Accepted for docker's sake
    #[arg(long, hide = true, value_name = "DRIVER")]
    log_driver: Option<String>,
    /// Accepted for docker's sake
    #[arg(long, hide = true, value_name = "OPTION")]
    log_opt: Vec<String>,
    /// Accepted for docker's sake
    #[arg(long, hide = true, value_name = "KEYS")]
    detach_keys: Option<String>,
    /// Accepted for docker's sake
    #[arg(long, hide = true, value_name = "SECONDS")]
    stop_timeout: Option<u64>,
    /// Accepted for docker's sake
    #[arg(long, hide = true)]
    sig_proxy: bool,
    /// Accepted for docker's sake
    #[arg(long, hide = true)]
    no_healthcheck: bool,
    /// Accepted for docker's sake
    #[arg(short, long, hide = true, value_name = "STREAM")]
    attach: Vec<String>,
    /// Accepted for docker's sake
    #[arg(long, hide = true)]
    disable_content_trust: bool,
}

impl ContainerFlags {
    /// Tells what does nothing, and refuses what would do something.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        if let Some(policy) = self.restart.as_deref().filter(|policy| *policy != "no") {
            let text =
                format!("--restart {policy}: nobody watches over containers in the foreground");
            return Err(
                BuildError::new(text).with_hint("leave it out, or write a loop around kiln run")
            );
        }
        note(
            self.log_driver.is_some() || !self.log_opt.is_empty(),
            "--log-driver",
            "containers run in the foreground, and nothing is kept of what they print",
        );
        note(
            self.detach_keys.is_some(),
            "--detach-keys",
            "containers are not detached",
        );
        note(
            self.stop_timeout.is_some(),
            "--stop-timeout",
            "a third interrupt kills the container",
        );
        note(
            self.no_healthcheck,
            "--no-healthcheck",
            "health is not checked",
        );
        note(
            !self.attach.is_empty(),
            "--attach",
            "both outputs are attached; -i adds standard input",
        );
        Ok(())
    }
}
