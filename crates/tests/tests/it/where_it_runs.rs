//! Kiln inside of containers, and as a user whom nobody knows.

use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_tests::{Kiln, Outcome, Setting, skipped};
use xtask::compare::Peers;
use xtask::machine::{PLAIN_USER, is_root};

/// What is done inside: a base comes in, a build with two stages, its result runs.
const INSIDE: &str = "set -e\n\
    cd /kiln\n\
    ./kiln load -q -i busybox.tar\n\
    ./kiln build --progress plain -t built context\n\
    ./kiln run --rm built cat /one /two\n";

const DOCKERFILE: &str = "FROM busybox AS one\nRUN echo first > /one\n\
                          FROM busybox\nCOPY --from=one /one /\nRUN echo second > /two && chown 33:44 /two\n";

/// The binary is linked with the libraries of this machine.
const LIBRARIES: [&str; 6] = [
    "-v",
    "/lib64:/lib64:ro",
    "-v",
    "/lib:/lib:ro",
    "-v",
    "/usr/lib:/usr/lib:ro",
];

/// A folder with the binary, a base, a context and the script.
fn prepare(folder: &Path) -> Option<()> {
    let kiln = Kiln::shared(Setting::Root, &["busybox"])?;
    let copy = |from: &Path, to: &str| std::fs::copy(from, folder.join(to)).expect("own folder");
    copy(kiln.binary(), "kiln");
    copy(&kiln.base_archive("busybox"), "busybox.tar");
    std::fs::create_dir(folder.join("context")).expect("own folder");
    for (name, text) in [("context/Dockerfile", DOCKERFILE), ("inside.sh", INSIDE)] {
        std::fs::write(folder.join(name), text).expect("own folder");
    }
    let open = Command::new("chmod")
        .args(["-R", "a+rX"])
        .arg(folder)
        .status();
    assert!(open.is_ok_and(|status| status.success()));
    Some(())
}

#[track_caller]
fn has_built(line: &str, command: &mut Command) {
    let output = command.output().expect("it starts");
    let outcome = Outcome::new(line.to_owned(), &output).ok();
    assert!(outcome.stdout.ends_with("first\nsecond\n"), "{outcome}");
}

/// Root with the capabilities that docker's containers have may make user namespaces, but not mount: Kiln takes one with
/// the ids that there are.
#[test]
fn as_root_without_the_right_to_mount() {
    if !is_root() {
        return skipped("only root can give up root's rights");
    }
    let folder = xtask::test::scratch().join(format!("no-admin-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the test folder");
    let Some(()) = prepare(&folder) else {
        return;
    };
    let script = INSIDE.replace("cd /kiln", &format!("cd {}; ./kiln info", folder.display()));
    let script = format!(
        "{script}./kiln run --rm built stat -c %u:%g /two\n./kiln run --rm built cat /one /two\n"
    );
    let kept = "-all,+chown,+dac_override,+fowner,+fsetid,+kill,+setgid,+setuid,+setpcap,+net_bind_service,+net_raw,\
                +sys_chroot,+mknod,+audit_write,+setfcap";
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set", kept, "--", "sh", "-c", &script])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("KILN_ROOT", folder.join("store"))
        .current_dir("/");
    let output = command.output().expect("it starts");
    let outcome = Outcome::new("kiln without CAP_SYS_ADMIN".to_owned(), &output).ok();
    outcome.says(&[
        "user namespace with all own ids (root may not mount here: CAP_SYS_ADMIN is missing)",
        "33:44\nfirst\nsecond\n",
    ]);
    let _ = std::fs::remove_dir_all(folder);
}

#[test]
fn in_a_privileged_docker_container() {
    let Some(peers) = Peers::from_environment() else {
        return;
    };
    if !is_root() {
        return skipped("docker is in a root for chroot, which only root may enter");
    }
    let (folder, inside) = peers.shared().expect("a shared folder");
    let Some(()) = prepare(folder.path()) else {
        return;
    };
    // The libraries of the container's host are another system's: this machine's go along.
    let libraries = folder.path().join("libraries");
    std::fs::create_dir(&libraries).expect("own folder");
    let copied = Command::new("sh")
        .args([
            "-c",
            "ldd \"$1\" | grep -o '/[^ ]*' | xargs -I{} cp -L {} \"$2\"",
            "sh",
        ])
        .args([&folder.path().join("kiln"), &libraries])
        .status();
    assert!(copied.is_ok_and(|status| status.success()));
    let load = ["docker", "load", "-q", "-i"].map(PathBuf::from);
    let loaded = peers
        .command(load)
        .arg(inside.join("busybox.tar"))
        .output()
        .expect("chroot starts");
    Outcome::new("docker load".to_owned(), &loaded).ok();
    let script = "mkdir -p /lib /lib64 && cp /kiln/libraries/* /lib/ && cp /kiln/libraries/* /lib64/ && sh /kiln/inside.sh";
    let mount = format!("{}:/kiln:ro", inside.display());
    let run = [
        "docker",
        "run",
        "--rm",
        "--privileged",
        "--network",
        "none",
        "-v",
        &mount,
        "busybox",
        "sh",
        "-c",
        script,
    ];
    has_built("docker run --privileged", &mut peers.command(run));
}

#[test]
fn in_a_container_of_rootless_podman() {
    let (Some(podman), Some(runc)) = (xtask::process::find("podman"), xtask::process::find("runc"))
    else {
        return skipped("podman or runc is not installed");
    };
    if !is_root() {
        return skipped("only root can become another user");
    }
    // Podman takes no longer path than 50 characters.
    let folder = PathBuf::from(format!("/var/tmp/kiln-rootless-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("own folder");
    let Some(()) = prepare(&folder) else { return };
    let own = folder.join("podman");
    std::fs::create_dir(&own).expect("own folder");
    let owner = format!("{PLAIN_USER}:");
    let given = Command::new("chown").arg(owner).arg(&own).status();
    assert!(given.is_ok_and(|status| status.success()));
    let as_user = || {
        let mut command = Command::new("setpriv");
        command
            .args([
                &format!("--reuid={PLAIN_USER}"),
                &format!("--regid={PLAIN_USER}"),
            ])
            .args(["--init-groups", "--"])
            .env("HOME", &own)
            .env("XDG_RUNTIME_DIR", &own)
            .current_dir("/");
        command
    };
    let podman = |args: &[&str]| {
        let mut command = as_user();
        command
            .arg(&podman)
            .arg("--root")
            .arg(own.join("root"))
            .arg("--runroot")
            .arg(own.join("run"));
        command.args([
            "--storage-driver=vfs",
            "--cgroup-manager=cgroupfs",
            "--events-backend=file",
            "--runtime",
        ]);
        command.arg(&runc).args(args);
        command
    };
    let archive = folder.join("busybox.tar");
    let loaded = podman(&["load", "-q", "-i"])
        .arg(&archive)
        .output()
        .expect("podman starts");
    Outcome::new("podman load".to_owned(), &loaded).ok();
    let mount = format!("{}:/kiln:ro", folder.display());
    let limits = [
        "--ulimit",
        "nofile=1024:1024",
        "--ulimit",
        "nproc=1024:1024",
    ];
    let run = [
        &[
            "run",
            "--rm",
            "--privileged",
            "--network",
            "none",
            "-v",
            &mount,
        ],
        LIBRARIES.as_slice(),
        &limits,
        &["busybox", "sh", "/kiln/inside.sh"],
    ]
    .concat();
    has_built("podman run --privileged, rootless", &mut podman(&run));
    let _ = as_user()
        .args([
            "unshare",
            "--map-root-user",
            "--map-auto",
            "rm",
            "-rf",
            "--",
        ])
        .args([own.join("root"), own.join("run")])
        .status();
    let _ = std::fs::remove_dir_all(folder);
}

/// Nothing is known of the user: no name, no home, no subordinate ids.
#[test]
fn as_a_user_without_a_passwd_entry() {
    const NOBODY_KNOWS: &str = "54321";
    if !is_root() {
        return skipped("only root can become another user");
    }
    let folder = xtask::test::scratch().join(format!("unknown-user-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("the test folder");
    let Some(()) = prepare(&folder) else {
        return;
    };
    let store = folder.join("store");
    std::fs::create_dir(&store).expect("own folder");
    std::os::unix::fs::chown(&store, Some(54321), Some(54321)).expect("root may");
    let script = INSIDE.replace("cd /kiln", &format!("cd {}", folder.display()));
    let mut command = Command::new("setpriv");
    command
        .args([
            &format!("--reuid={NOBODY_KNOWS}"),
            &format!("--regid={NOBODY_KNOWS}"),
        ])
        .args(["--clear-groups", "--", "sh", "-c", &script])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("KILN_ROOT", store.join("kiln"))
        .current_dir("/");
    has_built("kiln as 54321", &mut command);
    let _ = std::fs::remove_dir_all(folder);
}
