//! Jobs that run a process.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_graph::Network;
use kiln_image::view::MergedView;
use kiln_image::{InodeOwners, LayerPath};
use kiln_rootfs::{Lower, Rootfs};
use kiln_sandbox::{
    Cancel, Confinement, MountSource as Mounted, Process, RootSource, SandboxError, SandboxMount,
    Stdio, Ulimit, UlimitKind, UserSpec, lookup_user, read_in_root,
};

use kiln_store::layer_fs::Ids;

use super::files::made;
use super::trust::Trusted;
use super::{Cleanup, Shared, failure};
use crate::protocol::{
    ExecJob, ExecMount, Exit, Failure, FailureKind, Made, MountSource, ProcessSpec, Response,
    Stacked, Trust,
};

mod cache;
mod terminal;

/// What an image without a `PATH` gets, as under docker.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Larger user databases are not read.
const MOST_PASSWD: u64 = 16 << 20;

/// A root file system with the view of what lies below it.
struct Tree {
    rootfs: Rootfs,
    view: MergedView,
    layer: kiln_image::LayerId,
    trusted: Option<Trusted>,
    /// Of files that cannot carry them, where ids are recorded.
    owners: InodeOwners,
}

impl Tree {
    fn prepare(
        shared: &Shared,
        layers: &Stacked,
        into: kiln_image::LayerId,
        trust: Option<&Trust>,
    ) -> Result<Self, Failure> {
        let mut lowers = layers
            .iter()
            .map(|layer| {
                let dir = shared.layer_dir(*layer);
                let index = shared.index(*layer)?;
                if !dir.join("fs").is_dir() {
                    return Err(Failure::damaged(*layer, "its files are not there"));
                }
                Ok(Lower { dir, index })
            })
            .collect::<Result<Vec<_>, Failure>>()?;
        let view = MergedView::new(lowers.iter().map(|lower| lower.index.clone()));
        let layer_dir = shared.layer_dir(into);
        let mut trusted = None;
        if let Some(trust) = trust {
            let dir = layer_dir.join("trust");
            let (added, layer) = Trusted::prepare(trust, &view, &lowers, dir, shared.ids)?;
            trusted = Some(added);
            lowers.extend(layer);
        }
        let rootfs = Rootfs::prepare(shared.provider().0, &lowers, &layer_dir, shared.ids)
            .map_err(|error| failure("cannot make the root file system", &error))?;
        let owners = rootfs
            .owners(&view, &lowers[..layers.len()])
            .map_err(|error| failure("cannot find the owners of links", &error))?;
        Ok(Self {
            owners,
            rootfs,
            view,
            layer: into,
            trusted,
        })
    }

    fn source(&self) -> RootSource<'_> {
        match self.rootfs.root() {
            kiln_rootfs::RootSource::Mount(fd) => RootSource::Mount(fd),
            kiln_rootfs::RootSource::Folder(path) => RootSource::Folder(path),
        }
    }

    fn keep(
        self,
        shared: &Shared,
        stubs: &[LayerPath],
        owners: &InodeOwners,
        notes: &mut Vec<String>,
    ) -> Result<Made, Failure> {
        if let Some(trusted) = &self.trusted {
            trusted
                .take_out(&self.rootfs.changed_files())
                .map_err(|error| failure("cannot take the host's certificates out", &error))?;
        }
        let index = self
            .rootfs
            .changes(&self.view, stubs, owners)
            .map_err(|error| failure("cannot keep what the step changed", &error))?;
        if let Some(trusted) = &self.trusted {
            notes.extend(trusted.copies(&shared.layer_dir(self.layer), &index));
            trusted.remove().map_err(|error| {
                failure("cannot remove the layer of the host's certificates", &error)
            })?;
        }
        made(shared, self.layer, &index)
    }
}

pub(super) fn exec(
    shared: &Shared,
    job: &ExecJob,
    fds: &[OwnedFd],
    cancel: &Cancel,
) -> Result<Response, Failure> {
    let [stdout, stderr] = fds else {
        return Err(Failure::other("a step takes two descriptors"));
    };
    let stdio = Stdio::Files {
        stdin: None,
        stdout: Some(stdout.as_fd()),
        stderr: Some(stderr.as_fd()),
    };
    process(shared, job, stdio, None, cancel, true)
}

pub(super) fn run(
    shared: &Shared,
    job: &ExecJob,
    fds: &[OwnedFd],
    cancel: &Cancel,
) -> Result<Response, Failure> {
    let [stdin, stdout, stderr] = fds else {
        return Err(Failure::other("a container takes three descriptors"));
    };
    if job.process.terminal {
        let size =
            rustix::termios::tcgetwinsize(stdin).or_else(|_| rustix::termios::tcgetwinsize(stdout));
        let (rows, cols) = size.map_or((24, 80), |size| (size.ws_row, size.ws_col));
        let relay = terminal::Relay {
            stdin: stdin.as_fd(),
            stdout: stdout.as_fd(),
        };
        return process(
            shared,
            job,
            Stdio::Terminal { rows, cols },
            Some(relay),
            cancel,
            false,
        );
    }
    let stdio = Stdio::Files {
        stdin: Some(stdin.as_fd()),
        stdout: Some(stdout.as_fd()),
        stderr: Some(stderr.as_fd()),
    };
    process(shared, job, stdio, None, cancel, false)
}

fn process(
    shared: &Shared,
    job: &ExecJob,
    stdio: Stdio<'_>,
    relay: Option<terminal::Relay<'_>>,
    cancel: &Cancel,
    keep: bool,
) -> Result<Response, Failure> {
    let mut cleanup = Cleanup::new(shared, [job.into]);
    let root = Tree::prepare(shared, &job.root, job.into, job.trust.as_ref())?;
    let user = user(&root, &job.process.user)?;
    let mut trees = Vec::new();
    for mount in &job.mounts {
        if let MountSource::Cache { scratch, .. } = &mount.source {
            cleanup.add(*scratch);
        }
        if let MountSource::Tree { layers, into, .. } = &mount.source {
            cleanup.add(*into);
            trees.push(Some(Tree::prepare(shared, layers, *into, None)?));
        } else {
            trees.push(None);
        }
    }
    let mut mounts = standard_files(&job.process);
    if let Some(trusted) = &root.trusted {
        mounts.extend(trusted.mounts());
    }
    for (mount, tree) in job.mounts.iter().zip(&trees) {
        mounts.push(sandbox_mount(shared, mount, tree.as_ref(), &user)?);
    }
    let mut process = job.process.clone();
    if root.trusted.is_some() {
        Trusted::add_variables(&mut process.env);
    }
    let mut spec = spec(&process, root.source(), user, mounts, stdio)?;
    if shared.ids == Ids::Recorded {
        let trees = trees.iter().flatten().chain([&root]);
        spec.recorded = Some(trees.flat_map(|tree| tree.owners.clone()).collect());
    }
    let running = match kiln_sandbox::spawn(&spec) {
        Ok(running) => running,
        Err(SandboxError::Exec { message, code }) => {
            say(stdio, relay.as_ref(), &message);
            return Ok(Response::Exited {
                exit: Exit::Code(i32::from(code)),
                out_of_memory: false,
                disk_full: false,
                made: Vec::new(),
                notes: Vec::new(),
            });
        }
        Err(error) => return Err(failure("", &error)),
    };
    let exit = match relay {
        Some(relay) => relay.until_exit(&running, cancel),
        None => running.wait(cancel),
    };
    let exit = exit.map_err(|error| failure("cannot wait for the process", &error))?;
    if cancel.is_cancelled() {
        return Err(Failure {
            kind: FailureKind::Canceled,
            message: "canceled".to_owned(),
            hint: None,
        });
    }
    let exit = match exit {
        kiln_sandbox::Exit::Code(code) => Exit::Code(i32::from(code)),
        kiln_sandbox::Exit::Signal(signal) => Exit::Signal(i32::from(signal)),
    };
    let out_of_memory = false;
    let (stubs, owners) = (running.stubs().to_vec(), running.owners());
    drop(running);
    let disk_full = exit != Exit::Code(0) && disk_full(shared);
    if !keep || exit != Exit::Code(0) {
        return Ok(Response::Exited {
            exit,
            out_of_memory,
            disk_full,
            made: Vec::new(),
            notes: Vec::new(),
        });
    }
    let mut notes = Vec::new();
    let mut results = vec![root.keep(shared, &stubs, &owners, &mut notes)?];
    for (mount, tree) in job.mounts.iter().zip(trees) {
        if let (MountSource::Tree { keep: true, .. }, Some(tree)) = (&mount.source, tree) {
            results.push(tree.keep(shared, &[], &owners, &mut notes)?);
        }
    }
    for result in &results {
        cleanup.keep(result.layer);
    }
    Ok(Response::Exited {
        exit,
        out_of_memory,
        disk_full,
        made: results,
        notes,
    })
}

/// Whether the store's disk has no room for anything worth mentioning: then that is why a process failed.
fn disk_full(shared: &Shared) -> bool {
    let left = rustix::fs::statvfs(&shared.store_root).map(|disk| disk.f_bavail * disk.f_frsize);
    left.is_ok_and(|left| left < 1 << 20)
}

/// Tells the step's own output why its program could not be started, as a shell would.
fn say(stdio: Stdio<'_>, relay: Option<&terminal::Relay<'_>>, message: &str) {
    let to = match (stdio, relay) {
        (Stdio::Files { stderr, .. }, _) => stderr,
        (_, Some(relay)) => Some(relay.stdout),
        _ => None,
    };
    if let Some(to) = to {
        // The reader may be gone.
        let _ = rustix::io::write(to, format!("{message}\n").as_bytes());
    }
}

fn user(root: &Tree, spec: &str) -> Result<UserSpec, Failure> {
    let read = |path: &str| {
        read_in_root(root.source(), Path::new(path), MOST_PASSWD)
            .map_err(|error| failure(&format!("cannot read the image's {path}"), &error))
    };
    let (passwd, group) = (read("etc/passwd")?, read("etc/group")?);
    lookup_user(spec, passwd.as_deref(), group.as_deref()).map_err(|error| failure("", &error))
}

fn standard_files(process: &ProcessSpec) -> Vec<SandboxMount<'static>> {
    let mut files = vec![
        SandboxMount::file("/etc/hosts", process.hosts.as_bytes()),
        SandboxMount::file("/etc/resolv.conf", process.resolv_conf.as_bytes()),
    ];
    if process.terminal {
        files.push(SandboxMount::file(
            "/etc/hostname",
            format!("{}\n", process.hostname),
        ));
    }
    files
}

fn spec<'a>(
    process: &ProcessSpec,
    root: RootSource<'a>,
    user: UserSpec,
    mounts: Vec<SandboxMount<'a>>,
    stdio: Stdio<'a>,
) -> Result<Process<'a>, Failure> {
    let mut spec = Process::new(root, process.args.iter());
    spec.env = process.env.iter().map(Into::into).collect();
    let set = |name: &str| {
        process
            .env
            .iter()
            .any(|known| known.split('=').next() == Some(name))
    };
    if !set("PATH") {
        spec.env.push(format!("PATH={DEFAULT_PATH}").into());
    }
    if !set("HOME") {
        spec.env.push(format!("HOME={}", user.home).into());
    }
    if process.terminal && !set("TERM") {
        spec.env.push("TERM=xterm".into());
    }
    spec.cwd = PathBuf::from(if process.cwd.is_empty() {
        "/"
    } else {
        &process.cwd
    });
    spec.user = user;
    spec.hostname.clone_from(&process.hostname);
    spec.network = match process.network {
        Network::None => kiln_sandbox::Network::None,
        Network::Default | Network::Host => kiln_sandbox::Network::Host,
    };
    spec.mounts = mounts;
    if process.insecure {
        spec.confinement = Confinement::Insecure;
    }
    for (name, soft, hard) in &process.ulimits {
        let kind = UlimitKind::from_name(name)
            .ok_or_else(|| Failure::other(format!("unknown limit {name}")))?;
        spec.ulimits.push(Ulimit {
            kind,
            soft: *soft,
            hard: *hard,
        });
    }
    if process.shm_size > 0 {
        spec.shm_size = process.shm_size;
    }
    spec.stdio = stdio;
    Ok(spec)
}

fn sandbox_mount<'a>(
    shared: &'a Shared,
    mount: &'a ExecMount,
    tree: Option<&'a Tree>,
    user: &UserSpec,
) -> Result<SandboxMount<'a>, Failure> {
    let source = match &mount.source {
        MountSource::Tree { selector, .. } => {
            let tree = tree.ok_or_else(|| Failure::other("a tree mount without its tree"))?;
            let path = PathBuf::from(selector.trim_matches('/'));
            if tree
                .view
                .resolve(selector.as_bytes(), true)
                .ok()
                .and_then(|path| tree.view.get(&path))
                .is_none()
                && !path.as_os_str().is_empty()
            {
                return Err(Failure {
                    kind: FailureKind::NotFound,
                    message: format!(
                        "mount {}: {selector:?}: not found in its source",
                        mount.dest
                    ),
                    hint: None,
                });
            }
            Mounted::Bind {
                root: tree.source(),
                path,
            }
        }
        MountSource::Host(path) => Mounted::Bind {
            root: RootSource::Folder(Path::new(path)),
            path: PathBuf::new(),
        },
        MountSource::Cache {
            dir,
            mode,
            uid,
            gid,
            seed,
            scratch,
        } => {
            let owner = (uid.unwrap_or(user.uid), gid.unwrap_or(user.gid));
            let path = cache::folder(shared, dir, *scratch, *mode, owner, seed.as_ref())?;
            Mounted::Bind {
                root: RootSource::Folder(&shared.store_root),
                path,
            }
        }
        MountSource::Tmpfs { size } => Mounted::Tmpfs {
            size: (*size > 0).then_some(*size),
            mode: 0o1777,
        },
        MountSource::File {
            content,
            mode,
            uid,
            gid,
        } => Mounted::File {
            content: content.clone(),
            mode: u32::from(*mode),
            uid: uid.unwrap_or(0),
            gid: gid.unwrap_or(0),
        },
    };
    Ok(SandboxMount {
        dest: PathBuf::from(&mount.dest),
        source,
        read_only: mount.readonly,
    })
}
