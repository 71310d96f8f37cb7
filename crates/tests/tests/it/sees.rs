//! What a RUN sees around it: the same in all settings, and the same as under docker.

use std::collections::BTreeMap;
use std::process::Command;

use kiln_tests::{Kiln, Setting, in_each_setting, skipped};
use xtask::compare::Peers;
use xtask::machine::is_root;

in_each_setting! { what_every_step_sees }

/// One line for each thing: its name, then what it is.
const LOOK: &str = r#"
dev() { for d in /dev/*; do test -L $d && echo $d $(readlink $d) || stat -c '%n %A %t:%T' $d; done; }
flags() { awk -v p=$1 '$5 == p { split($6, f, ","); print f[1], $(NF-2) }' /proc/self/mountinfo | tail -1; }
echo "dev: $(dev | tr '\n' ';')"
echo "shm: $(df -k /dev/shm | tail -1 | awk '{print $2}')"
echo "hosts: $(cat /etc/hosts | tr '\n\t' '| ')"
echo "hostname: $(hostname) $(cat /etc/hostname 2>/dev/null)"
echo "status: $(grep -E '^(Cap|NoNew|Seccomp:|Groups|Uid|Gid|Umask)' /proc/self/status | tr '\n\t' '; ')"
echo "umask: $(umask)"
echo "stdin: $(wc -c < /dev/stdin)"
echo "tty: $(tty)"
echo "env: $(env | sort | tr '\n' ';')"
echo "pid: $$ $(cut -d' ' -f4,7,8 /proc/1/stat)"
echo "cwd: $(pwd) $(stat -c %a /)"
echo "sys: $(flags /sys)"
echo "proc: $(flags /proc)"
echo "shm-mount: $(flags /dev/shm) $(stat -c %a /dev/shm)"
echo "mqueue: $(flags /dev/mqueue)"
for p in bus fs irq sys sysrq-trigger; do test ! -e /proc/$p || echo "read-only $p: $(flags /proc/$p)"; done
for p in kcore keys timer_list acpi asound scsi; do
  test -d /proc/$p && echo "hidden $p: $(ls -A /proc/$p | wc -l)" || echo "hidden $p: $(wc -c < /proc/$p 2>/dev/null || echo 0)"
done
echo "hidden firmware: $(ls -A /sys/firmware | wc -l)"
echo "resolv: $(grep -v '^#' /etc/resolv.conf | tr '\n\t' '| ')"
echo "limits: $(for l in c d e f i l m n q r s t u v x; do echo -n "$l $(ulimit -$l) "; done)"
echo "oom: $(cat /proc/self/oom_score_adj)"
"#;

/// Those that are of the machine or of who started it.
const VARIES: [&str; 3] = ["resolv", "limits", "oom"];

const EXPECTED: &str = "\
dev: /dev/fd /proc/self/fd;/dev/full crw-rw-rw- 1:7;/dev/mqueue drwxrwxrwt 0:0;/dev/null crw-rw-rw- 1:3;/dev/ptmx pts/ptmx;/dev/pts drwxr-xr-x 0:0;\
/dev/random crw-rw-rw- 1:8;/dev/shm drwxrwxrwt 0:0;/dev/stderr /proc/self/fd/2;/dev/stdin /proc/self/fd/0;/dev/stdout /proc/self/fd/1;\
/dev/tty crw-rw-rw- 5:0;/dev/urandom crw-rw-rw- 1:9;/dev/zero crw-rw-rw- 1:5;
shm: 65536
hosts: 127.0.0.1 localhost buildkitsandbox|::1 localhost ip6-localhost ip6-loopback|
hostname: buildkitsandbox
status: Umask: 0022;Uid: 0 0 0 0;Gid: 0 0 0 0;Groups: 0 ;CapInh: 0000000000000000;CapPrm: 00000000a80425fb;CapEff: 00000000a80425fb;\
CapBnd: 00000000a80425fb;CapAmb: 0000000000000000;NoNewPrivs: 0;Seccomp: 2;
umask: 0022
stdin: 0
tty: not a tty
env: HOME=/root;PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin;PWD=/;SHLVL=2;
pid: 1 0 0 -1
cwd: / 755
sys: ro sysfs
proc: rw proc
shm-mount: rw tmpfs 1777
mqueue: rw mqueue
read-only bus: ro proc
read-only fs: ro proc
read-only irq: ro proc
read-only sys: ro proc
read-only sysrq-trigger: ro proc
hidden kcore: 0
hidden keys: 0
hidden timer_list: 0
hidden acpi: 0
hidden asound: 0
hidden scsi: 0
hidden firmware: 0
";

/// The lines of a build's output with progress, by their names.
fn seen(output: &str) -> BTreeMap<String, String> {
    let line = |line: &str| {
        let text = line.strip_prefix('#')?.splitn(3, ' ').nth(2)?;
        let (name, value) = text.split_once(": ")?;
        let words: Vec<_> = value.split_whitespace().collect();
        Some((name.to_owned(), words.join(" ")))
    };
    let known = |name: &str| VARIES.contains(&name) || EXPECTED.contains(&format!("{name}: "));
    let lines = output.lines().filter_map(line);
    lines.filter(|(name, _)| known(name)).collect()
}

fn context(kiln: &Kiln) -> String {
    let dockerfile = "FROM busybox\nCOPY look /\nRUN sh /look\n";
    kiln.context(&[("Dockerfile", dockerfile), ("look", LOOK)])
}

fn what_every_step_sees(setting: Setting) {
    let Some(kiln) = Kiln::shared(setting, &["busybox"]) else {
        return;
    };
    let build = kiln.build(&["--no-cache", &context(kiln)]).ok();
    let mut seen = seen(&build.stderr);
    for name in VARIES {
        assert!(
            seen.remove(name).is_some_and(|it| !it.is_empty()),
            "{name}: {build}"
        );
    }
    let mut expected: BTreeMap<_, _> = EXPECTED
        .lines()
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| {
            (
                name.to_owned(),
                value.split_whitespace().collect::<Vec<_>>().join(" "),
            )
        })
        .collect();
    // Not every kernel has these.
    if std::path::Path::new("/proc/kcore").exists() {
        expected
            .entry("dev".into())
            .and_modify(|it| it.insert_str(0, "/dev/core /proc/kcore;"));
    }
    expected.retain(|name, _| {
        let path = name.strip_prefix("read-only ");
        path.is_none_or(|path| std::path::Path::new("/proc").join(path).exists())
    });
    assert_eq!(seen, expected, "{build}");
}

#[test]
fn what_docker_shows_too() {
    let Some(peers) = Peers::from_environment() else {
        return;
    };
    if !is_root() {
        return skipped("docker is in a root for chroot, which only root may enter");
    }
    let Some(kiln) = Kiln::shared(Setting::Root, &["busybox"]) else {
        return;
    };
    let context = context(kiln);
    let (folder, inside) = peers.shared().expect("a shared folder");
    let copied = Command::new("cp")
        .args([
            "-r",
            &format!("{context}/."),
            &kiln.base_archive("busybox").display().to_string(),
        ])
        .arg(folder.path())
        .status();
    assert!(copied.is_ok_and(|status| status.success()));
    let archive = inside.join("busybox.image.tar");
    let load = [
        std::ffi::OsStr::new("docker"),
        "load".as_ref(),
        "-q".as_ref(),
        "-i".as_ref(),
        archive.as_os_str(),
    ];
    assert!(
        peers
            .command(load)
            .output()
            .is_ok_and(|output| output.status.success())
    );
    let build = [
        "docker",
        "build",
        "--network",
        "host",
        "--no-cache",
        "--progress",
        "plain",
    ];
    let output = peers
        .command(build)
        .arg(&inside)
        .output()
        .expect("chroot starts");
    let theirs = seen(&String::from_utf8_lossy(&output.stderr));
    let ours = seen(&kiln.build(&["--no-cache", &context]).ok().stderr);
    assert_eq!(ours, theirs);
}
