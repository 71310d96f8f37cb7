//! The rights that Linux splits root's into, by their names (capabilities(7)).

/// Docker's default set: `chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw
/// sys_chroot mknod audit_write setfcap`.
pub const DOCKER_CAPABILITIES: u64 = 0xa804_25fb;

/// By number. Those whose system calls the filter forbids come with a `true`.
const NAMES: [(&str, bool); 41] = [
    ("CHOWN", false),
    ("DAC_OVERRIDE", false),
    ("DAC_READ_SEARCH", true),
    ("FOWNER", false),
    ("FSETID", false),
    ("KILL", false),
    ("SETGID", false),
    ("SETUID", false),
    ("SETPCAP", false),
    ("LINUX_IMMUTABLE", false),
    ("NET_BIND_SERVICE", false),
    ("NET_BROADCAST", false),
    ("NET_ADMIN", false),
    ("NET_RAW", false),
    ("IPC_LOCK", false),
    ("IPC_OWNER", false),
    ("SYS_MODULE", true),
    ("SYS_RAWIO", true),
    ("SYS_CHROOT", false),
    ("SYS_PTRACE", false),
    ("SYS_PACCT", true),
    ("SYS_ADMIN", true),
    ("SYS_BOOT", true),
    ("SYS_NICE", true),
    ("SYS_RESOURCE", false),
    ("SYS_TIME", true),
    ("SYS_TTY_CONFIG", true),
    ("MKNOD", false),
    ("LEASE", false),
    ("AUDIT_WRITE", false),
    ("AUDIT_CONTROL", false),
    ("SETFCAP", false),
    ("MAC_OVERRIDE", false),
    ("MAC_ADMIN", false),
    ("SYSLOG", true),
    ("WAKE_ALARM", false),
    ("BLOCK_SUSPEND", false),
    ("AUDIT_READ", false),
    ("PERFMON", true),
    ("BPF", true),
    ("CHECKPOINT_RESTORE", false),
];

/// One of them, or all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capability {
    /// A bit for each.
    pub bits: u64,
    /// It is of use only without the filter of system calls.
    pub needs_calls: bool,
}

impl Capability {
    /// By its name, with or without `CAP_`, in whatever case; `ALL` for all. `None` when there is none of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_uppercase();
        if name == "ALL" {
            return Some(Self {
                bits: (1 << NAMES.len()) - 1,
                needs_calls: true,
            });
        }
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        let number = NAMES.iter().position(|(known, _)| *known == name)?;
        Some(Self {
            bits: 1 << number,
            needs_calls: NAMES[number].1,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_the_kernels_numbers() {
        let bits = |name: &str| Capability::from_name(name).map(|it| it.bits);
        assert_eq!(bits("CAP_SYS_ADMIN"), Some(1 << 21));
        assert_eq!(bits("checkpoint_restore"), Some(1 << 40));
        assert_eq!(bits("ALL"), Some((1 << 41) - 1));
        assert_eq!(bits("NOPE"), None);
        let usual = "chown dac_override fowner fsetid kill setgid setuid setpcap net_bind_service net_raw sys_chroot \
            mknod audit_write setfcap";
        let all = usual.split_whitespace().filter_map(bits).sum::<u64>();
        assert_eq!(all, DOCKER_CAPABILITIES);
    }
}
