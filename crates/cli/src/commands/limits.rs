//! `--memory` and its like, of `kiln build` and of containers.

use clap::Args;
use kiln_engine::{BuildError, Limits};

use super::build_options::bytes;

/// Limits of memory and processors.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct LimitArgs {
    /// Most memory, where this machine's control groups allow a limit
    #[arg(short, long, value_name = "SIZE")]
    memory: Option<String>,
    /// Most memory and swap together; -1 for no limit [default: twice the memory]
    #[arg(long, value_name = "SIZE", allow_hyphen_values = true)]
    memory_swap: Option<String>,
    /// Weight among others that want the processors; 1024 is usual
    #[arg(short, long, value_name = "N")]
    cpu_shares: Option<u64>,
    /// Microseconds in which the quota can be used up
    #[arg(long, value_name = "N")]
    cpu_period: Option<u64>,
    /// Microseconds of processor time in each period
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Processors: 0-2,4
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// The control group to be in
    #[arg(long, value_name = "GROUP")]
    cgroup_parent: Option<String>,
}

/// The names that `--resource` takes.
const RESOURCES: &str =
    "memory, memory-swap, cpu-shares, cpu-period, cpu-quota, cpuset-cpus or cpuset-mems";

impl LimitArgs {
    /// What the options say, and `--resource NAME=VALUE` with the same names.
    pub(super) fn limits(&self, resources: &[String]) -> Result<Limits, BuildError> {
        let mut given = self.clone();
        for text in resources {
            let wrong = |what: &str| {
                BuildError::new(format!("--resource {text:?}: {what}"))
                    .with_hint(format!("write NAME=VALUE; the names are {RESOURCES}"))
            };
            let (name, value) = text
                .split_once('=')
                .ok_or_else(|| wrong("expected a value"))?;
            let number = || value.parse().map_err(|_| wrong("expected a number"));
            match name {
                "memory" => given.memory = Some(value.to_owned()),
                "memory-swap" => given.memory_swap = Some(value.to_owned()),
                "cpu-shares" => given.cpu_shares = Some(number()?),
                "cpu-period" => given.cpu_period = Some(number()?),
                "cpu-quota" => {
                    given.cpu_quota = Some(value.parse().map_err(|_| wrong("expected a number"))?);
                }
                "cpuset-cpus" => given.cpuset_cpus = Some(value.to_owned()),
                "cpuset-mems" => given.cpuset_mems = Some(value.to_owned()),
                _ => return Err(wrong("no such resource")),
            }
        }
        let size = |option: &str, text: &String| {
            bytes(text).map_err(|error| BuildError::new(format!("--{option}: {error}")))
        };
        let memory = given
            .memory
            .as_ref()
            .map(|text| size("memory", text))
            .transpose()?;
        let memory_swap = match &given.memory_swap {
            Some(text) if text == "-1" => Some(-1),
            Some(text) => Some(i64::try_from(size("memory-swap", text)?).unwrap_or(i64::MAX)),
            None => None,
        };
        if let (Some(swap @ 1..), memory) = (memory_swap, memory)
            && memory.is_none_or(|memory| memory > swap.cast_unsigned())
        {
            return Err(BuildError::new(
                "--memory-swap: expected --memory too, and no more than this",
            )
            .with_hint("it is the limit of memory and swap together"));
        }
        Ok(Limits {
            memory,
            memory_swap,
            cpu_shares: given.cpu_shares,
            cpu_period: given.cpu_period,
            cpu_quota: given.cpu_quota,
            cpuset_cpus: given.cpuset_cpus,
            cpuset_mems: given.cpuset_mems,
            parent: given.cgroup_parent,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_and_options_are_the_same() {
        let none = LimitArgs::default();
        let resources = [
            "memory=64m",
            "memory-swap=-1",
            "cpu-quota=-1",
            "cpuset-cpus=0",
        ]
        .map(str::to_owned);
        let limits = none.limits(&resources).unwrap();
        assert_eq!(
            (limits.memory, limits.memory_swap),
            (Some(64 << 20), Some(-1))
        );
        assert_eq!(
            (limits.cpu_quota, limits.cpuset_cpus.as_deref()),
            (Some(-1), Some("0"))
        );
        assert!(none.limits(&[]).unwrap().is_none());
        for wrong in [
            "memory",
            "disk=1",
            "cpu-shares=x",
            "memory=x",
            "memory-swap=1m",
        ] {
            assert!(none.limits(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }
}
