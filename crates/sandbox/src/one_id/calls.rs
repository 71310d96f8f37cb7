//! The calls that are answered here.

use crate::seccomp::{self, Instruction, Rule};

/// What a call does, apart from where its arguments stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Call {
    /// `stat`, `lstat`.
    Stat {
        follow: bool,
    },
    Fstat,
    /// `newfstatat`, `fstatat64`.
    StatAt,
    Statx,
    /// `chown`, `lchown`.
    Chown {
        follow: bool,
    },
    Fchown,
    ChownAt,
    Open,
    OpenAt,
    OpenAt2,
    Creat,
    Mkdir,
    MkdirAt,
    Mknod,
    MknodAt,
    Symlink,
    SymlinkAt,
    /// `listxattr`, `llistxattr`.
    ListXattr {
        follow: bool,
    },
    FlistXattr,
    Chroot,
    /// `prctl(PR_SET_KEEPCAPS, ...)`.
    KeepRights,
    GetUser,
    GetEffectiveUser,
    GetGroup,
    GetEffectiveGroup,
    GetUsers,
    GetGroups,
    GetOthers,
    SetUser,
    SetTwoUsers,
    SetThreeUsers,
    SetFilesUser,
    SetGroup,
    SetTwoGroups,
    SetThreeGroups,
    SetFilesGroup,
    SetOthers,
}

/// What an open must ask for to make a file (`O_TMPFILE` is two bits, one of them `O_DIRECTORY`).
pub(super) const CREATES: u32 = (libc::O_CREAT | (libc::O_TMPFILE & !libc::O_DIRECTORY)) as u32;

impl Call {
    /// When the call is to be answered: opens only if they may make a file.
    pub(super) fn rule(self) -> Rule {
        match self {
            Self::Open => Rule::AskIfAny {
                argument: 1,
                bits: CREATES,
            },
            Self::OpenAt => Rule::AskIfAny {
                argument: 2,
                bits: CREATES,
            },
            Self::KeepRights => Rule::AskIfFirst(libc::PR_SET_KEEPCAPS as u32),
            _ => Rule::Ask,
        }
    }
}

/// The calls of an architecture.
pub(super) struct Table {
    /// `AUDIT_ARCH_*` of linux/audit.h.
    pub(super) architecture: u32,
    pub(super) calls: &'static [(u32, Call)],
    /// The program's words are of 32 bits.
    pub(super) narrow: bool,
}

use Call::{
    Chown, ChownAt, Chroot, Creat, Fchown, FlistXattr, Fstat, GetEffectiveGroup, GetEffectiveUser,
    GetGroup, GetGroups, GetOthers, GetUser, GetUsers, KeepRights, ListXattr, Mkdir, MkdirAt,
    Mknod, MknodAt, Open, OpenAt, OpenAt2, SetFilesGroup, SetFilesUser, SetGroup, SetOthers,
    SetThreeGroups, SetThreeUsers, SetTwoGroups, SetTwoUsers, SetUser, Stat, StatAt, Statx,
    Symlink, SymlinkAt,
};

/// Those that every architecture has.
macro_rules! common {
    ($($more:expr),* $(,)?) => {
        &[
            (libc::SYS_fstat as u32, Fstat),
            (libc::SYS_newfstatat as u32, StatAt),
            (libc::SYS_statx as u32, Statx),
            (libc::SYS_fchown as u32, Fchown),
            (libc::SYS_fchownat as u32, ChownAt),
            (libc::SYS_openat as u32, OpenAt),
            (libc::SYS_openat2 as u32, OpenAt2),
            (libc::SYS_mkdirat as u32, MkdirAt),
            (libc::SYS_mknodat as u32, MknodAt),
            (libc::SYS_symlinkat as u32, SymlinkAt),
            (libc::SYS_listxattr as u32, ListXattr { follow: true }),
            (libc::SYS_llistxattr as u32, ListXattr { follow: false }),
            (libc::SYS_flistxattr as u32, FlistXattr),
            (libc::SYS_chroot as u32, Chroot),
            (libc::SYS_prctl as u32, KeepRights),
            (libc::SYS_getuid as u32, GetUser),
            (libc::SYS_geteuid as u32, GetEffectiveUser),
            (libc::SYS_getgid as u32, GetGroup),
            (libc::SYS_getegid as u32, GetEffectiveGroup),
            (libc::SYS_getresuid as u32, GetUsers),
            (libc::SYS_getresgid as u32, GetGroups),
            (libc::SYS_getgroups as u32, GetOthers),
            (libc::SYS_setuid as u32, SetUser),
            (libc::SYS_setreuid as u32, SetTwoUsers),
            (libc::SYS_setresuid as u32, SetThreeUsers),
            (libc::SYS_setfsuid as u32, SetFilesUser),
            (libc::SYS_setgid as u32, SetGroup),
            (libc::SYS_setregid as u32, SetTwoGroups),
            (libc::SYS_setresgid as u32, SetThreeGroups),
            (libc::SYS_setfsgid as u32, SetFilesGroup),
            (libc::SYS_setgroups as u32, SetOthers),
            $($more,)*
        ]
    };
}

#[cfg(target_arch = "x86_64")]
pub(super) const TABLES: &[Table] = &[
    Table {
        architecture: 0xc000_003e,
        calls: common![
            (libc::SYS_stat as u32, Stat { follow: true }),
            (libc::SYS_lstat as u32, Stat { follow: false }),
            (libc::SYS_chown as u32, Chown { follow: true }),
            (libc::SYS_lchown as u32, Chown { follow: false }),
            (libc::SYS_open as u32, Open),
            (libc::SYS_creat as u32, Creat),
            (libc::SYS_mkdir as u32, Mkdir),
            (libc::SYS_mknod as u32, Mknod),
            (libc::SYS_symlink as u32, Symlink),
        ],
        narrow: false,
    },
    // i386: arch/x86/entry/syscalls/syscall_32.tbl. The calls with ids of 16 bits and those with the `stat` of 1992 are
    // left out; no C library of this century makes them.
    Table {
        architecture: 0x4000_0003,
        calls: &[
            (195, Stat { follow: true }),
            (196, Stat { follow: false }),
            (197, Fstat),
            (300, StatAt),
            (383, Statx),
            (212, Chown { follow: true }),
            (198, Chown { follow: false }),
            (207, Fchown),
            (298, ChownAt),
            (5, Open),
            (295, OpenAt),
            (437, OpenAt2),
            (8, Creat),
            (39, Mkdir),
            (296, MkdirAt),
            (14, Mknod),
            (297, MknodAt),
            (83, Symlink),
            (304, SymlinkAt),
            (232, ListXattr { follow: true }),
            (233, ListXattr { follow: false }),
            (234, FlistXattr),
            (61, Chroot),
            (172, KeepRights),
            (199, GetUser),
            (201, GetEffectiveUser),
            (200, GetGroup),
            (202, GetEffectiveGroup),
            (209, GetUsers),
            (211, GetGroups),
            (205, GetOthers),
            (213, SetUser),
            (203, SetTwoUsers),
            (208, SetThreeUsers),
            (215, SetFilesUser),
            (214, SetGroup),
            (204, SetTwoGroups),
            (210, SetThreeGroups),
            (216, SetFilesGroup),
            (206, SetOthers),
            // The old calls that cannot fail.
            (24, GetUser),
            (49, GetEffectiveUser),
            (47, GetGroup),
            (50, GetEffectiveGroup),
        ],
        narrow: true,
    },
];

#[cfg(target_arch = "aarch64")]
pub(super) const TABLES: &[Table] = &[Table {
    architecture: 0xc000_00b7,
    calls: common![],
    narrow: false,
}];

/// The filter that brings these calls here.
pub(super) fn filter() -> Vec<Instruction> {
    let rules = |table: &Table| {
        let rules = table
            .calls
            .iter()
            .map(|(number, call)| (*number, call.rule()));
        (table.architecture, rules.collect())
    };
    let tables: Vec<_> = TABLES.iter().map(rules).collect();
    seccomp::questions(&tables)
}

/// The call of a notification, and whether the program's words are of 32 bits.
pub(super) fn find(architecture: u32, number: u32) -> Option<(Call, bool)> {
    let table = TABLES
        .iter()
        .find(|table| table.architecture == architecture)?;
    let (_, call) = table.calls.iter().find(|(known, _)| *known == number)?;
    Some((*call, table.narrow))
}
