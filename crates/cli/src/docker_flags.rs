//! Options of docker's that are not Kiln's own: accepted, and told, where they do nothing here; refused by name, with
//! what to do instead, where they would change the result.

use std::marker::PhantomData;

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use kiln_engine::BuildError;

use crate::format::complain;

/// An option.
#[derive(Debug)]
pub(crate) struct Row {
    long: &'static str,
    short: Option<char>,
    takes_value: bool,
    /// Values that ask for what happens anyway.
    fine: &'static [&'static str],
    /// The other values that there are; empty for any.
    known: &'static [&'static str],
    what: What,
}

#[derive(Debug)]
enum What {
    /// It does nothing, for this reason.
    Nothing(&'static str),
    /// It does nothing, and nobody needs to be told.
    Silent,
    /// It is not possible, for this reason; what to do instead.
    Refused(&'static str, &'static str),
}

/// An option that takes a value.
const fn value(long: &'static str, what: What) -> Row {
    Row {
        long,
        short: None,
        takes_value: true,
        fine: &[],
        known: &[],
        what,
    }
}

/// An option that is on or off.
const fn switch(long: &'static str, what: What) -> Row {
    Row {
        takes_value: false,
        ..value(long, what)
    }
}

impl Row {
    fn help(&self) -> String {
        match self.what {
            What::Nothing(why) => format!("accepted for docker's sake: {why}"),
            What::Silent => "accepted for docker's sake".to_owned(),
            What::Refused(why, _) => format!("refused: {why}"),
        }
    }

    const fn short(self, letter: char) -> Self {
        Self {
            short: Some(letter),
            ..self
        }
    }

    const fn fine(self, values: &'static [&'static str]) -> Self {
        Self {
            fine: values,
            ..self
        }
    }

    const fn known(self, values: &'static [&'static str]) -> Self {
        Self {
            known: values,
            ..self
        }
    }
}

/// The options of a command.
pub(crate) trait Table {
    /// All of them.
    const ROWS: &'static [Row];
}

/// Those of a table that the command line has, with their values.
#[derive(Debug, Clone)]
pub(crate) struct Others<T> {
    given: Vec<(&'static Row, Vec<String>)>,
    table: PhantomData<T>,
}

impl<T> Default for Others<T> {
    fn default() -> Self {
        Self {
            given: Vec::new(),
            table: PhantomData,
        }
    }
}

impl<T: Table> Args for Others<T> {
    fn augment_args(mut command: Command) -> Command {
        for row in T::ROWS {
            let action = if row.takes_value {
                ArgAction::Append
            } else {
                ArgAction::SetTrue
            };
            let mut arg = Arg::new(row.long)
                .long(row.long)
                .action(action)
                .help(row.help())
                .hide(true)
                // Where the container's or the builder's own options have such a conflict, the value may begin with -.
                .allow_hyphen_values(row.takes_value);
            if let Some(letter) = row.short {
                arg = arg.short(letter);
            }
            command = command.arg(arg);
        }
        command
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl<T: Table> FromArgMatches for Others<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Vec::new();
        for row in T::ROWS {
            if row.takes_value {
                if let Some(values) = matches.get_many::<String>(row.long) {
                    given.push((row, values.cloned().collect()));
                }
            } else if matches.get_flag(row.long) {
                given.push((row, Vec::new()));
            }
        }
        Ok(Self {
            given,
            table: PhantomData,
        })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl<T> Others<T> {
    /// Tells what does nothing, and refuses what would do something.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        for (row, values) in &self.given {
            let mut asked = values
                .iter()
                .filter(|value| !row.fine.contains(&value.as_str()));
            let asked = asked.next();
            if row.takes_value && asked.is_none() {
                continue;
            }
            if let Some(value) = asked
                && !row.known.is_empty()
                && !row.known.contains(&value.as_str())
            {
                let all = [row.fine, row.known].concat().join(", ");
                let text = format!("--{} {value}: expected one of {all}", row.long);
                return Err(BuildError::new(text));
            }
            match row.what {
                What::Silent => {}
                What::Nothing(why) => note(true, &format!("--{}", row.long), why),
                What::Refused(why, hint) => {
                    let value = asked.map(|value| format!(" {value}")).unwrap_or_default();
                    let text = format!("--{}{value}: {why}", row.long);
                    return Err(BuildError::new(text).with_hint(hint));
                }
            }
        }
        Ok(())
    }
}

/// Tells that an option does nothing, if it is there.
pub(crate) fn note(given: bool, option: &str, why: &str) {
    if given {
        complain(&format!("note: {option} does nothing here: {why}"));
    }
}

use What::{Nothing, Refused, Silent};

const NO_CONTAINERS: &str = "steps leave no containers behind";
const NO_NOTARY: &str = "kiln does not ask notary servers";
const ALL_TOLD: &str = "errors have all that is known";
const ONE_BUILDER: &str = "there is one builder, this program";

/// Of `docker build`.
#[derive(Debug, Clone)]
pub(crate) struct OfBuild;

impl Table for OfBuild {
    const ROWS: &'static [Row] = &[
        switch("rm", Nothing(NO_CONTAINERS)),
        switch("force-rm", Nothing(NO_CONTAINERS)),
        switch("compress", Nothing("the context is read where it is")),
        switch("debug", Nothing(ALL_TOLD)).short('D'),
        switch("disable-content-trust", Nothing(NO_NOTARY)),
        switch(
            "squash",
            Refused(
                "kiln keeps layers apart",
                "a last stage with COPY --from of what is needed has the same effect",
            ),
        ),
        value(
            "security-opt",
            Refused(
                "what keeps steps in is not changed by options",
                "RUN --security=insecure with --allow security.insecure gives a step all rights",
            ),
        ),
        value(
            "policy",
            Refused("kiln evaluates no policies", "leave it out"),
        ),
        value(
            "print",
            Refused(
                "this is --call by now",
                "write --call=outline or --call=targets",
            ),
        ),
        value("builder", Nothing(ONE_BUILDER)).fine(&["default", ""]),
    ];
}

/// Of `docker run` and `docker create`.
#[derive(Debug, Clone)]
pub(crate) struct OfContainers;

const NO_NETWORK: &str = "containers have the machine's network, or none";
const NETWORKS: &str = "choose between --network host and --network none";
const NO_HEALTH: &str = "health is not checked";
const NO_LIMIT: &str = "kiln does not limit that";
const LIMITS: &str = "the limits are --memory, --memory-swap, --cpus, --cpu-shares, --cpuset-cpus, --ulimit, and others of kiln run --help";
const OWN_NAMESPACE: &str = "containers have a namespace of their own";

impl Table for OfContainers {
    const ROWS: &'static [Row] = &[
        value(
            "restart",
            Refused(
                "nobody watches over containers in the foreground",
                "leave it out, or write a loop around kiln run",
            ),
        )
        .fine(&["no", ""]),
        value(
            "log-driver",
            Nothing("containers run in the foreground, and nothing is kept of what they print"),
        ),
        value(
            "log-opt",
            Nothing("containers run in the foreground, and nothing is kept of what they print"),
        ),
        value("detach-keys", Nothing("containers are not detached")),
        switch("sig-proxy", Silent),
        switch("no-healthcheck", Nothing(NO_HEALTH)),
        value("health-cmd", Nothing(NO_HEALTH)),
        value("health-interval", Nothing(NO_HEALTH)),
        value("health-retries", Nothing(NO_HEALTH)),
        value("health-start-interval", Nothing(NO_HEALTH)),
        value("health-start-period", Nothing(NO_HEALTH)),
        value("health-timeout", Nothing(NO_HEALTH)),
        value(
            "attach",
            Nothing("both outputs are attached; -i adds standard input"),
        )
        .short('a'),
        switch("disable-content-trust", Nothing(NO_NOTARY)),
        switch(
            "publish-all",
            Nothing("the container has the machine's network, so that its ports are the machine's"),
        )
        .short('P'),
        value(
            "annotation",
            Nothing("there is no other runtime to read it"),
        ),
        value("runtime", Nothing("containers are run by kiln itself")),
        value(
            "memory-reservation",
            Nothing("it would only be a wish; --memory is a limit"),
        ),
        value(
            "kernel-memory",
            Nothing("the kernel has no such limit any more"),
        ),
        value("memory-swappiness", Refused(NO_LIMIT, LIMITS)).fine(&["-1"]),
        switch("oom-kill-disable", Refused(NO_LIMIT, LIMITS)),
        value(
            "pids-limit",
            Refused(NO_LIMIT, "--ulimit nproc=N limits the processes of a user"),
        )
        .fine(&["0", "-1"]),
        value("blkio-weight", Refused(NO_LIMIT, LIMITS)).fine(&["0"]),
        value("blkio-weight-device", Refused(NO_LIMIT, LIMITS)),
        value("cpu-rt-period", Refused(NO_LIMIT, LIMITS)),
        value("cpu-rt-runtime", Refused(NO_LIMIT, LIMITS)),
        value("device-read-bps", Refused(NO_LIMIT, LIMITS)),
        value("device-read-iops", Refused(NO_LIMIT, LIMITS)),
        value("device-write-bps", Refused(NO_LIMIT, LIMITS)),
        value("device-write-iops", Refused(NO_LIMIT, LIMITS)),
        value(
            "device-cgroup-rule",
            Refused(
                "kiln makes no rules for devices",
                "--device gives a device to the container",
            ),
        ),
        value(
            "gpus",
            Refused(
                "kiln does not know the files of graphics processors",
                "give devices with --device and libraries with -v",
            ),
        ),
        value(
            "storage-opt",
            Refused(
                "containers have no disk of their own",
                "storage.max-size of kiln.toml limits the store",
            ),
        ),
        value(
            "sysctl",
            Refused(
                "kiln does not set variables of the kernel",
                "set it on the machine, with sysctl -w",
            ),
        ),
        value(
            "domainname",
            Refused(
                "there is no such name",
                "--hostname NAME.DOMAIN has the domain in it",
            ),
        ),
        value("ip", Refused(NO_NETWORK, NETWORKS)),
        value("ip6", Refused(NO_NETWORK, NETWORKS)),
        value(
            "link",
            Refused(NO_NETWORK, "--add-host gives a name to an address"),
        ),
        value("link-local-ip", Refused(NO_NETWORK, NETWORKS)),
        value("mac-address", Refused(NO_NETWORK, NETWORKS)),
        value(
            "network-alias",
            Refused(NO_NETWORK, "--add-host gives a name to an address"),
        ),
        value("ipc", Refused(OWN_NAMESPACE, "leave it out")).fine(&["", "private", "shareable"]),
        value("pid", Refused(OWN_NAMESPACE, "leave it out")).fine(&["", "private"]),
        value("uts", Refused(OWN_NAMESPACE, "leave it out")).fine(&[""]),
        value("cgroupns", Refused(OWN_NAMESPACE, "leave it out")).fine(&["", "private"]),
        value(
            "userns",
            Refused(
                "that is the same for all containers of a store",
                "--isolation, before or after the command, chooses how ids are mapped",
            ),
        )
        .fine(&[""]),
        switch(
            "use-api-socket",
            Refused("there is no daemon", "give a daemon's socket with -v"),
        ),
        value(
            "volume-driver",
            Refused("kiln keeps no volumes", "-v takes folders of this machine"),
        ),
        value(
            "volumes-from",
            Refused("kiln keeps no volumes", "give the folders again, with -v"),
        ),
    ];
}

/// Of all commands of `docker buildx` and `docker builder`.
#[derive(Debug, Clone)]
pub(crate) struct OfBuilders;

impl Table for OfBuilders {
    const ROWS: &'static [Row] = &[
        value("builder", Silent),
        switch("debug", Silent).short('D'),
        switch("local", Silent),
        value("timeout", Silent),
    ];
}

/// Of `docker pull` and `docker push`.
#[derive(Debug, Clone)]
pub(crate) struct OfTransfers;

impl Table for OfTransfers {
    const ROWS: &'static [Row] = &[
        switch("disable-content-trust", Nothing(NO_NOTARY)),
        switch(
            "all-tags",
            Refused(
                "kiln takes one name at a time",
                "write a loop over the names; kiln images --format '{{.Repository}}:{{.Tag}}' NAME lists those of the store",
            ),
        )
        .short('a'),
    ];
}

/// Of `docker start`.
#[derive(Debug, Clone)]
pub(crate) struct OfStart;

impl Table for OfStart {
    const ROWS: &'static [Row] = &[value("detach-keys", Nothing("containers are not detached"))];
}

/// Of `docker rm`.
#[derive(Debug, Clone)]
pub(crate) struct OfRm;

impl Table for OfRm {
    const ROWS: &'static [Row] = &[switch(
        "link",
        Refused("there are no links between containers", "leave it out"),
    )
    .short('l')];
}

/// Of `docker rmi`.
#[derive(Debug, Clone)]
pub(crate) struct OfRmi;

impl Table for OfRmi {
    const ROWS: &'static [Row] = &[value(
        "platform",
        Refused(
            "an image is removed with all its platforms",
            "kiln save --platform and kiln load keep some of them",
        ),
    )];
}

/// Of `docker manifest`.
#[derive(Debug, Clone)]
pub(crate) struct OfManifests;

impl Table for OfManifests {
    const ROWS: &'static [Row] = &[switch(
        "insecure",
        Nothing("insecure and plain-http of kiln.toml say that of a registry"),
    )];
}

/// Of `docker` itself, before the command.
#[derive(Debug, Clone)]
pub(crate) struct OfProgram;

const NO_TLS: &str = "there is no connection to a daemon; that to registries is set by kiln.toml";

impl Table for OfProgram {
    const ROWS: &'static [Row] = &[
        value(
            "host",
            Refused(
                "there is no daemon to connect to",
                "run kiln on the machine whose store is meant; --root chooses a store of this one",
            ),
        )
        .short('H')
        .fine(&["", "unix:///var/run/docker.sock", "unix:///run/docker.sock"]),
        value(
            "context",
            Refused(
                "there is no daemon to connect to",
                "run kiln on the machine whose store is meant; --root chooses a store of this one",
            ),
        )
        .short('c')
        .fine(&["", "default"]),
        switch("debug", Nothing(ALL_TOLD)).short('D'),
        value(
            "log-level",
            Nothing("kiln keeps no log of its own work; the log of a build is kiln history logs"),
        )
        .short('l')
        .fine(&["info", "warn", "warning", "error", "fatal", "panic"])
        .known(&["debug", "trace"]),
        switch("tls", Nothing(NO_TLS)),
        switch("tlsverify", Nothing(NO_TLS)),
        value("tlscacert", Nothing(NO_TLS)),
        value("tlscert", Nothing(NO_TLS)),
        value("tlskey", Nothing(NO_TLS)),
    ];
}

/// Attestations of `docker build`.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct AttestFlags {
    /// Accepted for docker's sake
    #[arg(long, hide = true, value_name = "HOW")]
    provenance: Option<String>,
    /// Refused
    #[arg(long, hide = true, value_name = "HOW")]
    sbom: Option<String>,
    /// Accepted for docker's sake where it is provenance
    #[arg(long, hide = true, value_name = "ATTESTATION")]
    attest: Vec<String>,
}

impl AttestFlags {
    /// Provenance, which build services ask for whether anybody wants it or not, is left out with a note. Who asks for a
    /// list of what is in an image needs it.
    fn check(&self) -> Result<(), BuildError> {
        let off = |value: &str| {
            matches!(value, "false" | "0" | "f" | "disabled")
                || value.split(',').any(|field| field == "disabled=true")
        };
        let wrong = |text: &str, what: String| {
            let hint = "write type=provenance or type=sbom, then ,NAME=VALUE for what it takes";
            Err(BuildError::new(format!("--attest {text}: {what}")).with_hint(hint))
        };
        let mut provenance = self.provenance.as_deref().is_some_and(|it| !off(it));
        let mut sbom = self.sbom.as_deref().filter(|it| !off(it)).map(|_| "--sbom");
        for text in &self.attest {
            let kind = text
                .split(',')
                .find_map(|field| field.strip_prefix("type="));
            match kind {
                Some("provenance") => provenance |= !off(text),
                Some("sbom") if off(text) => {}
                Some("sbom") => sbom = Some("--attest type=sbom"),
                Some(other) => return wrong(text, format!("there is no type {other}")),
                None => return wrong(text, "expected a type".to_owned()),
            }
        }
        if let Some(option) = sbom {
            let error = BuildError::new(format!("{option}: kiln makes no lists of packages"));
            return Err(
                error.with_hint("leave it out; a scanner reads what kiln save IMAGE writes")
            );
        }
        note(
            provenance,
            "--provenance",
            "kiln makes no attestations; --metadata-file tells what was built",
        );
        Ok(())
    }
}

/// Of `docker build`: with those that are looked at more closely.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct BuildFlags {
    #[command(flatten)]
    others: Others<OfBuild>,
    #[command(flatten)]
    attest: AttestFlags,
}

impl BuildFlags {
    /// Tells what does nothing, and refuses what would do something.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        self.others.check()?;
        self.attest.check()?;
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
        for (name, why) in [
            ("BUILDX_GIT_LABELS", "--label sets labels"),
            (
                "BUILDX_METADATA_PROVENANCE",
                "kiln makes no attestations; --metadata-file tells what was built",
            ),
            (
                "BUILDX_METADATA_WARNINGS",
                "kiln build --call check,format=json has the warnings",
            ),
        ] {
            let value = crate::context::variable(name);
            let off = |value: &String| matches!(value.as_str(), "0" | "false" | "disabled");
            note(value.is_some_and(|value| !off(&value)), name, why);
        }
        Ok(())
    }
}
