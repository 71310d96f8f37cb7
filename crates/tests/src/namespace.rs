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

/// A user namespace with all ids, and in it a list of interpreters of its own (Linux 6.7): the machine's stays as it is.
const INTERPRETERS: &str = "
read go
mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc
printf %s \"$1\" > /proc/sys/fs/binfmt_misc/register
";

/// The namespace. A process holds it; it ends when its input does, so also when the test process dies.
#[derive(Debug)]
pub struct Namespace {
    holder: Child,
    input: Option<ChildStdin>,
    /// It is a user namespace, too.
    user: bool,
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

    /// One in which the kernel hands some programs to an interpreter: a line as `binfmt_misc` takes it. `None` where the
    /// kernel has only one list for all.
    pub fn with_interpreter(line: &str) -> Option<Self> {
        let mut holder = Command::new("unshare")
            .args(["--user", "--mount", "--propagation", "private", "sh", "-ec"])
            .arg(format!("{INTERPRETERS}\necho ready\nexec cat"))
            .args(["sh", line])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare starts");
        let mut input = holder.stdin.take().expect("piped");
        let maps = format!("/proc/{}", holder.id());
        // The process must have its own namespace before it can get ids.
        let own = |process: &str| std::fs::read_link(format!("{process}/ns/user")).ok();
        while own(&maps) == own("/proc/self") {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("{maps}/{map}"), "0 0 4294967295").expect("root may");
        }
        writeln!(input, "go").expect("it reads");
        let mut said = String::new();
        let stdout = holder.stdout.take().expect("piped");
        BufReader::new(stdout)
            .read_line(&mut said)
            .expect("readable");
        let mut namespace = Self {
            holder,
            input: Some(input),
            user: true,
        };
        if said != "ready\n" {
            let _ = namespace.holder.kill();
            return None;
        }
        Some(namespace)
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
        Self {
            holder,
            input,
            user: false,
        }
    }

    /// The process that holds it.
    pub fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// What runs a program inside.
    pub fn enter(&self) -> Vec<String> {
        let id = self.holder.id();
        let mut line = vec!["nsenter".to_owned(), format!("--mount=/proc/{id}/ns/mnt")];
        if self.user {
            line.push(format!("--user=/proc/{id}/ns/user"));
        }
        line.push("--".to_owned());
        line
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
