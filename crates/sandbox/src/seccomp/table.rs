//! Numbers of the calls that are not simply allowed.

use super::Rule;

/// The calls of one architecture.
pub(crate) struct Table {
    /// `AUDIT_ARCH_*` of linux/audit.h.
    pub(crate) architecture: u32,
    /// By number, in any order.
    pub(crate) rules: &'static [(u32, Rule)],
    /// First and last number of the calls beyond the common range that are allowed; (0, 0) for none.
    pub(crate) private: (u32, u32),
}

/// The newest call that is judged by name (`removexattrat`). All numbers from 424 on mean the same everywhere.
pub(crate) const NEWEST: u32 = 466;

/// Calls in the range that no released profile knows or that need `CAP_SYS_ADMIN`, with a way around in all that use
/// them: `statmount`, `listmount`, `lsm_get_self_attr`, `lsm_set_self_attr`, `lsm_list_modules`.
pub(crate) const NEW: [u32; 5] = [457, 458, 459, 460, 461];

const EPERM: Rule = Rule::Fail(libc::EPERM);
// The C library tries `clone3` first; flags in memory cannot be judged, so it must fall back to `clone`.
const ENOSYS: Rule = Rule::Fail(libc::ENOSYS);

/// Rules for calls by their names in the `libc` crate, forbidden if nothing else is said.
macro_rules! native {
    ($($name:ident)*) => {
        &[
            (libc::SYS_clone as u32, Rule::NoNamespaces),
            (libc::SYS_socket as u32, Rule::NoVsock),
            (libc::SYS_personality as u32, Rule::HarmlessPersonality),
            (libc::SYS_clone3 as u32, ENOSYS),
            $((libc::$name as u32, EPERM),)*
        ]
    };
}

/// The same by number.
macro_rules! numbered {
    (clone $clone:literal, socket $socket:literal, personality $personality:literal, $($number:literal)*) => {
        &[
            ($clone, Rule::NoNamespaces),
            ($socket, Rule::NoVsock),
            ($personality, Rule::HarmlessPersonality),
            (435, ENOSYS),
            $(($number, EPERM),)*
        ]
    };
}

#[cfg(target_arch = "x86_64")]
pub(crate) const NATIVE: Table = Table {
    architecture: 0xc000_003e,
    rules: native! {
        SYS_acct SYS_add_key SYS_afs_syscall SYS_bpf SYS_clock_settime SYS_delete_module
        SYS_fanotify_init SYS_finit_module SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick
        SYS_get_mempolicy SYS_getpmsg SYS_init_module SYS_io_uring_enter SYS_io_uring_register SYS_io_uring_setup
        SYS_ioperm SYS_iopl SYS_kcmp SYS_kexec_file_load SYS_kexec_load SYS_keyctl SYS_lookup_dcookie SYS_mbind
        SYS_migrate_pages SYS_mount SYS_mount_setattr SYS_move_mount SYS_move_pages SYS_nfsservctl
        SYS_open_by_handle_at SYS_open_tree SYS_perf_event_open SYS_pidfd_getfd SYS_pivot_root SYS_process_madvise
        SYS_putpmsg SYS_quotactl SYS_quotactl_fd SYS_reboot SYS_request_key SYS_security
        SYS_set_mempolicy SYS_set_mempolicy_home_node SYS_setdomainname SYS_sethostname SYS_setns SYS_settimeofday
        SYS_swapoff SYS_swapon SYS__sysctl SYS_sysfs SYS_syslog SYS_tuxcall SYS_umount2 SYS_unshare SYS_uselib
        SYS_userfaultfd SYS_ustat SYS_vhangup SYS_vserver
    },
    private: (0, 0),
};

/// i386: `arch/x86/entry/syscalls/syscall_32.tbl`, in the order of the names.
#[cfg(target_arch = "x86_64")]
pub(crate) const COMPAT: Table = Table {
    architecture: 0x4000_0003,
    rules: numbered! {
        clone 120, socket 359, personality 136,
        // acct add_key afs_syscall bdflush bpf clock_settime clock_settime64 delete_module
        51 286 137 134 357 264 404 129
        // fanotify_init finit_module fsconfig fsmount fsopen fspick get_mempolicy getpmsg
        338 350 431 432 430 433 275 188
        // idle init_module io_uring_setup, _enter, _register ioperm iopl kcmp kexec_load keyctl lookup_dcookie
        112 128 425 426 427 101 110 349 283 288 253
        // mbind migrate_pages mount mount_setattr move_mount move_pages nfsservctl open_by_handle_at open_tree
        274 294 21 442 429 317 169 342 428
        // perf_event_open pidfd_getfd pivot_root process_madvise putpmsg quotactl quotactl_fd reboot
        336 438 217 440 189 131 443 88
        // request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname setns settimeofday stime
        287 276 450 121 74 346 79 25
        // swapoff swapon _sysctl sysfs syslog umount umount2 unshare uselib userfaultfd ustat vhangup vm86
        115 87 149 135 103 22 52 310 86 374 62 111 166
        // vm86old vserver
        113 273
    },
    private: (0, 0),
};

#[cfg(target_arch = "aarch64")]
pub(crate) const NATIVE: Table = Table {
    architecture: 0xc000_00b7,
    rules: native! {
        SYS_acct SYS_add_key SYS_bpf SYS_clock_settime SYS_delete_module SYS_fanotify_init SYS_finit_module
        SYS_fsconfig SYS_fsmount SYS_fsopen SYS_fspick SYS_get_mempolicy SYS_init_module SYS_io_uring_enter
        SYS_io_uring_register SYS_io_uring_setup SYS_kcmp SYS_kexec_load SYS_keyctl SYS_lookup_dcookie SYS_mbind
        SYS_migrate_pages SYS_mount SYS_mount_setattr SYS_move_mount SYS_move_pages SYS_nfsservctl
        SYS_open_by_handle_at SYS_open_tree SYS_perf_event_open SYS_pidfd_getfd SYS_pivot_root SYS_process_madvise
        SYS_quotactl SYS_quotactl_fd SYS_reboot SYS_request_key SYS_set_mempolicy SYS_set_mempolicy_home_node
        SYS_setdomainname SYS_sethostname SYS_setns SYS_settimeofday SYS_swapoff SYS_swapon SYS_syslog SYS_umount2
        SYS_unshare SYS_userfaultfd SYS_vhangup
    },
    private: (0, 0),
};

/// ARM EABI: `arch/arm/tools/syscall.tbl`, in the order of the names.
#[cfg(target_arch = "aarch64")]
pub(crate) const COMPAT: Table = Table {
    architecture: 0x4000_0028,
    rules: numbered! {
        clone 120, socket 281, personality 136,
        // acct add_key bdflush bpf clock_settime clock_settime64 delete_module fanotify_init finit_module
        51 309 134 386 262 404 129 367 379
        // fsconfig fsmount fsopen fspick get_mempolicy init_module io_uring_setup, _enter, _register kcmp
        431 432 430 433 320 128 425 426 427 378
        // kexec_file_load kexec_load keyctl lookup_dcookie mbind migrate_pages mount mount_setattr move_mount
        401 347 311 249 319 400 21 442 429
        // move_pages nfsservctl open_by_handle_at open_tree pciconfig_iobase, _read, _write perf_event_open
        344 169 371 428 271 272 273 364
        // pidfd_getfd pivot_root process_madvise quotactl quotactl_fd reboot request_key set_mempolicy
        438 218 440 131 443 88 310 321
        // set_mempolicy_home_node setdomainname sethostname setns settimeofday swapoff swapon _sysctl sysfs
        450 121 74 375 79 115 87 149 135
        // syslog umount2 unshare uselib userfaultfd ustat vhangup vserver
        103 52 337 86 388 62 111 313
    },
    // breakpoint, cacheflush, usr26, usr32, set_tls, get_tls
    private: (0xf_0001, 0xf_0006),
};
