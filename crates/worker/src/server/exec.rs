//! Jobs that run a process.

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use kiln_graph::Network;
use kiln_image::view::MergedView;
use kiln_image::{InodeOwners, LayerPath};
use kiln_rootfs::{Lower, Rootfs};
use kiln_sandbox::{
    Cancel, Cgroup, Confinement, Limits, MountSource as Mounted, Process, RootSource, Running,
    SandboxError, SandboxMount, Stdio, Ulimit, UlimitKind, UserSpec, lookup_user, read_in_root,
};

use kiln_sandbox::cgroup::killed_for_memory;
use kiln_store::layer_fs::Ids;
use rustix::event::{PollFd, PollFlags, poll};

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
                let index = shared.index(*layer)?;
                let dirs = shared.dirs(*layer)?;
                if !dirs.own.is_dir() {
                    return Err(Failure::damaged(*layer, "its files are not there"));
                }
                Ok(Lower { dirs, index })
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
        let rootfs = Rootfs::prepare(shared.provider(), &lowers, &layer_dir, shared.ids)
            .map_err(|error| failure("cannot make the root file system", &error))?
            .put_aside(shared.tidy.place(into));
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
        shared.tidy.remove(shared.tidy.place(self.layer));
        if let Some(trusted) = &self.trusted {
            notes.extend(trusted.copies(&shared.layer_dir(self.layer), &index));
            trusted.remove().map_err(|error| {
                failure("cannot remove the layer of the host's certificates", &error)
            })?;
        }
        let made = made(shared, self.layer, &index.totals(), None)?;
        // Its tar is asked for next.
        shared.remember(self.layer, index);
        Ok(made)
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
    let ends = Ends {
        relay: None,
        signals: None,
        cancel,
        keep: if job.keep {
            Keep::Always
        } else {
            Keep::Success
        },
    };
    process(shared, job, stdio, &ends)
}

/// What becomes of what a process changed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Nothing,
    /// It is kept when the process ended with code 0.
    Success,
    Always,
}

/// What a process is connected with besides its streams.
struct Ends<'a> {
    relay: Option<terminal::Relay<'a>>,
    /// Where its signals come from.
    signals: Option<&'a UnixStream>,
    cancel: &'a Cancel,
    keep: Keep,
}

impl Ends<'_> {
    /// Waits for the end of the process.
    fn wait(&self, running: &Running) -> std::io::Result<kiln_sandbox::Exit> {
        let Some(signals) = self.signals else {
            return running.wait(self.cancel);
        };
        let over = Cancel::new()?;
        std::thread::scope(|scope| {
            // A connection that breaks cancels the job.
            scope.spawn(|| {
                let _ = pass_on(signals, running, &over);
            });
            let exit = match &self.relay {
                Some(relay) => relay.until_exit(running, self.cancel),
                None => running.wait(self.cancel),
            };
            over.cancel();
            exit
        })
    }
}

/// Gives the process the signals that come, until it is over.
fn pass_on(signals: &UnixStream, running: &Running, over: &Cancel) -> rustix::io::Result<()> {
    loop {
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(over, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        if !fds[1].revents().is_empty() {
            return Ok(());
        }
        let mut number = [0];
        if rustix::io::read(signals, &mut number)? == 0 {
            return Ok(());
        }
        // One that has ended gets none.
        let _ = running.signal(number[0].into());
    }
}

pub(super) fn run(
    shared: &Shared,
    job: &ExecJob,
    fds: &[OwnedFd],
    signals: &UnixStream,
    cancel: &Cancel,
) -> Result<Response, Failure> {
    let [stdin, stdout, stderr] = fds else {
        return Err(Failure::other("a container takes three descriptors"));
    };
    let mut ends = Ends {
        relay: None,
        signals: Some(signals),
        cancel,
        keep: if job.keep {
            Keep::Always
        } else {
            Keep::Nothing
        },
    };
    if job.process.terminal {
        let size =
            rustix::termios::tcgetwinsize(stdin).or_else(|_| rustix::termios::tcgetwinsize(stdout));
        let (rows, cols) = size.map_or((24, 80), |size| (size.ws_row, size.ws_col));
        let relay = terminal::Relay {
            stdin: stdin.as_fd(),
            stdout: stdout.as_fd(),
        };
        ends.relay = Some(relay);
        return process(shared, job, Stdio::Terminal { rows, cols }, &ends);
    }
    let stdio = Stdio::Files {
        stdin: Some(stdin.as_fd()),
        stdout: Some(stdout.as_fd()),
        stderr: Some(stderr.as_fd()),
    };
    process(shared, job, stdio, &ends)
}

fn process(
    shared: &Shared,
    job: &ExecJob,
    stdio: Stdio<'_>,
    ends: &Ends<'_>,
) -> Result<Response, Failure> {
    let mut cleanup = Cleanup::new(shared, [job.into]);
    let root = Tree::prepare(shared, &job.root, job.into, job.trust.as_ref())?;
    let user = user(&root, &job.process)?;
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
    let (cgroup, mut notes) = cgroup(&job.process.limits)?;
    spec.cgroup = cgroup.as_ref();
    let killed_before = killed_for_memory();
    let running = match kiln_sandbox::spawn(&spec) {
        Ok(running) => running,
        Err(SandboxError::Exec { message, code }) => {
            say(stdio, ends.relay.as_ref(), &message);
            return Ok(Response::Exited {
                exit: Exit::Code(i32::from(code)),
                out_of_memory: false,
                disk_full: false,
                foreign: code == SandboxError::NOT_EXECUTABLE,
                made: Vec::new(),
                notes,
            });
        }
        Err(error) => return Err(failure("", &error)),
    };
    let exit = ends
        .wait(&running)
        .map_err(|error| failure("cannot wait for the process", &error))?;
    if ends.cancel.is_cancelled() {
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
    let out_of_memory = out_of_memory(exit, cgroup.as_ref(), killed_before);
    let (stubs, owners) = (running.stubs().to_vec(), running.owners());
    drop(running);
    let disk_full = exit != Exit::Code(0) && disk_full(shared);
    let kept = match ends.keep {
        Keep::Nothing => false,
        Keep::Success => exit == Exit::Code(0),
        Keep::Always => true,
    };
    if !kept {
        return Ok(Response::Exited {
            exit,
            out_of_memory,
            disk_full,
            foreign: false,
            made: Vec::new(),
            notes,
        });
    }
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
        foreign: false,
        made: results,
        notes,
    })
}

fn cgroup(limits: &Limits) -> Result<(Option<Cgroup>, Vec<String>), Failure> {
    if limits.is_none() {
        return Ok((None, Vec::new()));
    }
    let (group, notes) = Cgroup::make(limits).map_err(|error| failure("", &error))?;
    Ok((Some(group), notes))
}

/// Whether a process failed because memory ran out: that of its group, or, when it was killed, that of the machine.
fn out_of_memory(exit: Exit, cgroup: Option<&Cgroup>, killed_before: Option<u64>) -> bool {
    match cgroup.and_then(Cgroup::killed_for_memory) {
        Some(killed) => killed > 0 && exit != Exit::Code(0),
        None => {
            matches!(exit, Exit::Signal(9) | Exit::Code(137)) && killed_for_memory() > killed_before
        }
    }
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

fn user(root: &Tree, process: &ProcessSpec) -> Result<UserSpec, Failure> {
    let read = |path: &str| {
        read_in_root(root.source(), Path::new(path), MOST_PASSWD)
            .map_err(|error| failure(&format!("cannot read the image's {path}"), &error))
    };
    let (passwd, group) = (read("etc/passwd")?, read("etc/group")?);
    let mut user = lookup_user(&process.user, passwd.as_deref(), group.as_deref())
        .map_err(|error| failure("", &error))?;
    for name in &process.rights.groups {
        let found = lookup_user(&format!("0:{name}"), None, group.as_deref());
        let gid = found.map_err(|error| failure("", &error))?.gid;
        if !user.groups.contains(&gid) {
            user.groups.push(gid);
        }
    }
    Ok(user)
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
    spec.read_only_root = process.read_only_root;
    spec.init = process.init;
    if process.insecure {
        spec.confinement = Confinement::Insecure;
    }
    if let Some(capabilities) = process.rights.capabilities {
        spec.capabilities = capabilities;
    }
    spec.unfiltered = process.rights.unfiltered;
    spec.no_new_privs = process.rights.no_new_privileges;
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
