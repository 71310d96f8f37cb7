//! A mount namespace that lives as long as its value: a container's overlay root, or a store on a small disk.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// Makes the whole file system an overlay, as in a container, but for the folder that holds contexts.
const OVERLAY: &str = "
mkdir -p $1/up $1/work $1/new
mount -t overlay overlay -o lowerdir=/,upperdir=$1/up,workdir=$1/work $1/new
for folder in /dev /proc /sys $2; do mount --rbind $folder $1/new$folder; done
mkdir -p $1/new/mnt/old
cd $1/new
pivot_root . mnt/old
cd /
umount -l /mnt/old
";

/// A small disk.
const DISK: &str = "mount -t tmpfs -o size=$2,mode=755 tmpfs $1";

/// A disk with a file system that can lose its power: what is not yet written is lost.
const POWERED: &str = "
mkfs.ext4 -q -F $2
mount -o loop $2 $1
chmod 755 $1
";

/// The namespace. A process holds it; it ends when its input does, so also when the test process dies.
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
    input: Option<ChildStdin>,
}

impl Namespace {
    /// The whole root is an overlay whose upper folder is below `folder`; `shared` stays what it is outside.
    pub fn overlay(folder: &Path, shared: &Path) -> Self {
        Self::hold(OVERLAY, &[folder.as_os_str(), shared.as_os_str()])
    }

    /// An empty disk of `size` (as tmpfs takes it) at `folder`.
    pub fn small_disk(folder: &Path, size: &str) -> Self {
        Self::hold(DISK, &[folder.as_os_str(), size.as_ref()])
    }

    /// An empty file system at `folder`, in the file `image`.
    pub fn powered(folder: &Path, image: &Path) -> Self {
        Self::hold(POWERED, &[folder.as_os_str(), image.as_os_str()])
    }

    /// Runs a shell script inside, with arguments.
    pub fn run(&self, script: &str, args: &[&std::ffi::OsStr]) {
        let enter = self.enter();
        let status = Command::new(&enter[0])
            .args(&enter[1..])
            .args(["sh", "-ec", script, "sh"])
            .args(args)
            .status();
        assert!(
            status.is_ok_and(|status| status.success()),
            "failed: {script}"
        );
    }

    fn hold(setup: &str, args: &[&std::ffi::OsStr]) -> Self {
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec"])
            .arg(format!("{setup}\necho ready\nexec cat"))
            .arg("sh")
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut said = String::new();
        let stdout = holder.stdout.take().expect("piped");
        BufReader::new(stdout)
            .read_line(&mut said)
            .expect("readable");
        assert_eq!(said, "ready\n", "the namespace could not be made");
        let input = holder.stdin.take();
        Self { holder, input }
    }

    /// The process that holds it.
    pub fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// What runs a program inside.
    pub fn enter(&self) -> [String; 3] {
        [
            "nsenter".into(),
            format!("--mount=/proc/{}/ns/mnt", self.holder.id()),
            "--".into(),
        ]
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Some(mut input) = self.input.take() {
            let _ = input.flush();
        }
        let _ = self.holder.wait();
    }
}
