//! Reads what `strace -f -y` wrote, and finds what a build that only looks must not do.

use std::collections::HashMap;

/// The system calls that `strace` must record for [`offences`].
pub const WATCHED: &str = "trace=%file,%process,mount,move_mount,fsopen,fsmount,fsconfig,open_tree,mount_setattr,\
    umount2,pivot_root,unshare,setns,fchmod,fchown,ftruncate,fsetxattr";

const MOUNTS: [&str; 11] = [
    "mount",
    "move_mount",
    "fsopen",
    "fsmount",
    "fsconfig",
    "open_tree",
    "mount_setattr",
    "umount2",
    "pivot_root",
    "unshare",
    "setns",
];
const PROCESSES: [&str; 4] = ["clone", "clone3", "fork", "vfork"];
const CHANGES: [&str; 32] = [
    "creat",
    "truncate",
    "ftruncate",
    "mkdir",
    "mkdirat",
    "rmdir",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "mknod",
    "mknodat",
    "chmod",
    "fchmod",
    "fchmodat",
    "fchmodat2",
    "chown",
    "fchown",
    "lchown",
    "fchownat",
    "utime",
    "utimes",
    "utimensat",
    "futimesat",
    "setxattr",
    "lsetxattr",
    "fsetxattr",
];

/// The lines of `trace` that mount, start a process (threads are no processes), or change a file whose path does not
/// begin with one of `allowed`.
pub fn offences(trace: &str, allowed: &[String]) -> Vec<String> {
    let mut started = false;
    calls(trace)
        .into_iter()
        .filter(|call| {
            let name = call.split('(').next().unwrap_or_default();
            if failed(call) {
                return false;
            }
            match name {
                _ if MOUNTS.contains(&name) => true,
                _ if PROCESSES.contains(&name) => !call.contains("CLONE_THREAD"),
                "execve" | "execveat" => std::mem::replace(&mut started, true),
                "open" | "openat" | "openat2" => writes(call) && !inside(call, allowed),
                _ => CHANGES.contains(&name) && !inside(call, allowed),
            }
        })
        .collect()
}

/// Whole calls, those that were interrupted put together again.
fn calls(trace: &str) -> Vec<String> {
    let mut pending: HashMap<&str, &str> = HashMap::new();
    let mut whole = Vec::new();
    for line in trace.lines() {
        let (pid, call) = match line.split_once(' ') {
            Some((pid, call)) if pid.bytes().all(|byte| byte.is_ascii_digit()) => {
                (pid, call.trim_start())
            }
            _ => ("", line),
        };
        if let Some(start) = call.strip_suffix(" <unfinished ...>") {
            pending.insert(pid, start);
        } else if let Some(rest) = call.strip_prefix("<... ") {
            let end = rest.split_once(" resumed>").map_or("", |(_, end)| end);
            whole.push(format!("{}{end}", pending.remove(pid).unwrap_or_default()));
        } else if call.contains('(') {
            whole.push(call.to_owned());
        }
    }
    whole.extend(pending.into_values().map(str::to_owned));
    whole
}

fn failed(call: &str) -> bool {
    call.rsplit_once(" = ")
        .is_some_and(|(_, result)| result.starts_with("-1 "))
}

fn writes(call: &str) -> bool {
    ["O_WRONLY", "O_RDWR", "O_CREAT", "O_TRUNC", "O_TMPFILE"]
        .iter()
        .any(|flag| call.contains(flag))
}

/// Whether every path of the call begins with one of `allowed`: quoted paths relative to the folder that `-y` shows in
/// angle brackets before them; where there is no quoted path, the file in the brackets.
fn inside(call: &str, allowed: &[String]) -> bool {
    let arguments = call.rsplit_once(" = ").map_or(call, |(call, _)| call);
    let mut folder = "";
    let mut paths = Vec::new();
    let mut rest = arguments;
    while let Some(at) = rest.find(['<', '"']) {
        let (close, is_path) = if rest.as_bytes()[at] == b'<' {
            ('>', false)
        } else {
            ('"', true)
        };
        let Some(end) = rest[at + 1..].find(close) else {
            break;
        };
        let text = &rest[at + 1..at + 1 + end];
        if is_path {
            let absolute = text.starts_with('/') || folder.is_empty();
            paths.push(if absolute {
                text.to_owned()
            } else {
                format!("{folder}/{text}")
            });
        } else {
            folder = text;
        }
        rest = &rest[at + end + 2..];
    }
    if paths.is_empty() {
        paths.push(folder.to_owned());
    }
    paths
        .iter()
        .all(|path| allowed.iter().any(|prefix| path.starts_with(prefix)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(trace: &str) -> Vec<String> {
        offences(trace, &["/s/kiln.db".into(), "/dev/null".into()])
    }

    #[test]
    fn looking_and_keeping_records_is_allowed() {
        let trace = r#"10 execve("/bin/kiln", ["kiln"], 0x7 /* 9 vars */) = 0
10 openat(AT_FDCWD</w>, "Dockerfile", O_RDONLY|O_CLOEXEC) = 3</w/Dockerfile>
10 openat(AT_FDCWD</w>, "/s/kiln.db-wal", O_RDWR|O_CREAT|O_CLOEXEC, 0644) = 4</s/kiln.db-wal>
10 clone3({flags=CLONE_VM|CLONE_FS|CLONE_THREAD, stack=0x7} => {parent_tid=[11]}, 88) = 11
11 mkdir("/s/elsewhere", 0777) = -1 EEXIST (File exists)
11 openat(AT_FDCWD</w>, "/dev/null", O_RDWR <unfinished ...>
10 unlinkat(3</s>, "kiln.db-journal", 0) = 0
11 <... resumed>) = 5</dev/null>
10 ftruncate(4</s/kiln.db-wal>, 0) = 0
10 exit_group(0) = ?
10 +++ exited with 0 +++"#;
        assert_eq!(found(trace), Vec::<String>::new());
    }

    #[test]
    fn everything_else_is_found() {
        for call in [
            r#"mount("a", "/b", NULL, MS_BIND, NULL) = 0"#,
            r#"fsopen("overlay", 0) = 3"#,
            "clone(child_stack=NULL, flags=SIGCHLD) = 12",
            "vfork( <unfinished ...>",
            r#"openat(AT_FDCWD</w>, "out", O_WRONLY|O_CREAT, 0666) = 3</w/out>"#,
            r#"mkdirat(5</s/layers>, "new", 0755) = 0"#,
            r#"rename("/s/kiln.db", "/tmp/kiln.db") = 0"#,
            "fchmod(6</w/file>, 0600) = 0",
        ] {
            assert_eq!(found(&format!("7 {call}")).len(), 1, "{call}");
        }
        let twice = "7 execve(\"/bin/kiln\", [], 0x1) = 0\n8 execve(\"/bin/sh\", [], 0x1) = 0";
        assert_eq!(found(twice).len(), 1);
    }
}
