//! The same program, as root and as root of a user namespace, leaves the same layer.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use kiln_image::{ContentId, InodeOwners};
use kiln_rootfs::{Provider, Rootfs, probe};
use kiln_store::layer_fs::Ids;

use crate::lab::{Inside, Lab, MTIME, dir, file, link, scratch, skipped, view};

const DIR: &str = "KILN_ROOTFS_TEST_DIR";
const USER: &str = "kilntest";

fn change(provider: Provider) -> Option<ContentId> {
    let lab = Lab::new()?;
    let mut owned = file("srv/owned", "text");
    (owned.0.uid, owned.0.gid, owned.0.mode) = (33, 34, 0o4750);
    let lowers = [
        lab.layer(vec![
            dir("srv"),
            owned,
            file("srv/gone", ""),
            link("l", "srv"),
            dir("d"),
            file("d/x", ""),
        ]),
        lab.layer(vec![file("other", "")]),
    ];
    let layer_dir = lab.layer_dir();
    let rootfs = Rootfs::prepare(provider, &lowers, &layer_dir, Ids::Real).unwrap();
    let inside = Inside::new(&rootfs);
    inside.remove("srv/gone");
    inside.remove("d");
    inside.mkdir("d");
    inside.write("d/new", "new");
    inside.chown("d/new", 1000, 50);
    inside.chmod("d/new", 0o2644);
    inside.set_xattr("d/new", "user.a", b"b");
    // As `setcap cap_net_raw+ep` writes it; the namespace's root is stored with it and must not show.
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    inside.set_xattr("d/new", "security.capability", &capability);
    inside.chown("l", 5, 6);
    inside.set_mtime("srv/owned", (9, 9));
    inside.set_mtime("srv/owned", MTIME);
    drop(inside);
    let index = rootfs
        .changes(&view(&lowers), &[], &InodeOwners::new())
        .unwrap();
    Some(index.content_id())
}

/// Runs in the namespace, when the other test starts it there.
#[test]
fn inside_a_user_namespace() {
    let Some(dir) = std::env::var_os(DIR) else {
        return;
    };
    let (provider, why) = probe(Path::new(&dir), crate::lab::remove_old);
    assert_eq!(provider, Provider::Overlay, "{why}");
    let ids = [Provider::Overlay, Provider::PlainTree]
        .map(|provider| change(provider).unwrap().to_string());
    std::fs::write(Path::new(&dir).join("result"), ids.join(" ")).unwrap();
}

#[test]
fn same_layer_in_a_user_namespace() {
    if std::env::var_os(DIR).is_some() {
        return;
    }
    let Some(expected) = change(Provider::Overlay) else {
        return;
    };
    assert_eq!(change(Provider::PlainTree), Some(expected), "as root");
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    if !passwd
        .lines()
        .any(|line| line.split(':').next() == Some(USER))
    {
        skipped("needs the user kilntest with subordinate ids");
        return;
    }
    let home = scratch();
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    // The test binary may lie where the user cannot go.
    let program = home.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new("runuser")
        .args([
            "-u",
            USER,
            "--",
            "unshare",
            "--user",
            "--map-root-user",
            "--map-auto",
            "--mount",
        ])
        .arg(&program)
        .args(["--exact", "userns::inside_a_user_namespace", "--nocapture"])
        .env(DIR, home.path())
        .env("KILN_TEST_DIR", home.path())
        .current_dir(home.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    let result = std::fs::read_to_string(home.path().join("result")).unwrap();
    assert_eq!(result, format!("{expected} {expected}"));
}
