//! Puts the root together: the tree, the mounts that every container has, and the mounts asked for.
//!
//! Runs in the keeper's own mount namespace, where the worker's `/` stays the root until the child turns it. What is
//! built lies on top of that `/`, where no path finds it, since a path starts below; it is reached by descriptor only.

use std::ffi::CString;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use kiln_image::{InodeOwners, LayerPath};
use rustix::fs::{
    CWD, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, fstat, makedev, mkdirat, mknodat,
    openat, statfs, symlinkat,
};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, move_mount};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::error::SandboxError;
use crate::keeper::{Job, OwnedMount, OwnedRoot, OwnedSource};
use crate::one_id;
use crate::process::Confinement;
use crate::resolve::{Missing, open_folder, open_in_root, open_or_make};
use crate::sys;

const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// The devices that every container has, with their numbers.
const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

const LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
    ("core", "/proc/kcore"),
];

/// The group `tty` of all distributions.
const TTY: u32 = 5;

/// The finished tree.
pub(crate) struct Tree {
    pub(crate) places: Places,
    pub(crate) made: Vec<LayerPath>,
    pub(crate) terminal: Option<Terminal>,
}

/// What the child has yet to work on.
pub(crate) struct Places {
    /// The root, on top of the worker's.
    pub(crate) root: OwnedFd,
    /// The folder for `/proc`.
    pub(crate) proc_dest: OwnedFd,
    /// The mount of `/sys`.
    pub(crate) sys: OwnedFd,
    /// The null device, to hide files.
    pub(crate) null: OwnedFd,
    /// An empty folder, to hide folders.
    pub(crate) empty: OwnedFd,
}

/// Both ends of the container's terminal.
pub(crate) struct Terminal {
    pub(crate) outer: OwnedFd,
    pub(crate) inner: OwnedFd,
}

type Result<T> = std::result::Result<T, SandboxError>;

fn nosuid_nodev_noexec() -> MountAttrFlags {
    MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
}

/// Mounts everything but `/proc`, of which only the place is made.
pub(crate) fn assemble(job: &mut Job) -> Result<Tree> {
    let mut bench =
        Bench::new(job.recorded.take()).map_err(|error| SandboxError::setup("workbench", error))?;
    let sources = job
        .mounts
        .iter()
        .map(|mount| source(job, &mut bench, mount))
        .collect::<Result<Vec<_>>>()?;
    let devices = bench
        .devices()
        .map_err(|error| SandboxError::setup("device nodes", error))?;
    let empty = bench
        .empty()
        .map_err(|error| SandboxError::setup("empty folder", error))?;
    let mut builder = Builder {
        root: attach_root(job, &mut bench)?,
        made: Vec::new(),
    };
    job.recorded = bench.recorded.take();

    let proc_dest = builder.place("/proc", &Missing::Folder(0, 0))?;
    let sys = builder.sys(job)?;
    let terminal = builder.dev(job, &devices)?;
    for (mount, source) in job.mounts.iter().zip(&sources) {
        builder.attach(source.as_fd(), &mount.dest)?;
    }
    let cwd = if job.recorded.is_some() {
        Missing::RecordedFolder(job.user.uid, job.user.gid)
    } else {
        Missing::Folder(job.user.uid, job.user.gid)
    };
    open_or_make(builder.root.as_fd(), &job.cwd, &cwd).map_err(|error| {
        SandboxError::setup(format!("working folder {}", job.cwd.display()), error)
    })?;
    let [null, ..] = devices;
    Ok(Tree {
        places: Places {
            root: builder.root,
            proc_dest,
            sys,
            null,
            empty,
        },
        made: builder.made,
        terminal,
    })
}

/// Devices in the image must not work: its files may claim to be the host's disk. Without a device controller the
/// mount attribute is what stands in the way; the container lacks the privilege to change it.
fn forbid_devices(job: &Job, mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
    match job.confinement {
        Confinement::Docker => {
            sys::set_mount_attributes(mount, MountAttrFlags::MOUNT_ATTR_NODEV, true)
        }
        Confinement::Insecure => Ok(()),
    }
}

fn attach_root(job: &Job, bench: &mut Bench) -> Result<OwnedFd> {
    let root = match &job.root {
        OwnedRoot::Mount(fd) => fd
            .try_clone()
            .map_err(|error| SandboxError::setup("root", error))?,
        OwnedRoot::Folder(path) => open_folder(path)
            .and_then(|folder| sys::clone_tree(folder.as_fd()))
            .map_err(|error| SandboxError::setup(format!("root {}", path.display()), error))?,
    };
    forbid_devices(job, root.as_fd())
        .and_then(|()| bench.attach(root.as_fd()))
        .map_err(|error| SandboxError::setup("mounting the root", error))?;
    Ok(root)
}

/// What is to be mounted, as a detached mount.
fn source(job: &Job, bench: &mut Bench, mount: &OwnedMount) -> Result<OwnedFd> {
    let failed = |what: String| {
        move |source: std::io::Error| SandboxError::Mount {
            dest: mount.dest.clone(),
            what,
            source,
        }
    };
    let detached = match &mount.source {
        OwnedSource::Bind { root, path } => {
            let name = if path.as_os_str().is_empty() {
                Path::new("/")
            } else {
                path
            };
            bench
                .bind(root, path)
                .map_err(failed(format!("bind of {}", name.display())))?
        }
        OwnedSource::Tmpfs { size, mode } => {
            let mode = CString::new(format!("{mode:o}")).expect("digits");
            let size = size.map(|size| CString::new(size.to_string()).expect("digits"));
            let mut options = vec![(c"mode", mode.as_c_str())];
            options.extend(size.as_deref().map(|size| (c"size", size)));
            sys::new_mount(c"tmpfs", &options, MountAttrFlags::MOUNT_ATTR_NOSUID)
                .map_err(|error| failed("tmpfs".into())(error.into()))?
        }
        OwnedSource::File {
            content,
            mode,
            uid,
            gid,
        } => bench
            .file(content, *mode, *uid, *gid)
            .map_err(failed("file in memory".into()))?,
    };
    let attributes = if mount.read_only {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        MountAttrFlags::empty()
    };
    // A device itself, as nobody but the user mounts one, is meant to work.
    let kind = fstat(&detached).map(|stat| FileType::from_raw_mode(stat.st_mode));
    let is_device = matches!(kind, Ok(FileType::CharacterDevice | FileType::BlockDevice));
    let forbidden = if is_device {
        Ok(())
    } else {
        forbid_devices(job, detached.as_fd())
    };
    forbidden
        .and_then(|()| sys::set_mount_attributes(detached.as_fd(), attributes, true))
        .map_err(|error| failed("setting its attributes".into())(error.into()))?;
    Ok(detached)
}

/// A tmpfs of this container on top of the worker's `/`, for what the container sees only parts of: before Linux 6.15
/// a part of a mount can be copied only while it is attached somewhere. The container gets copies of single places,
/// never of the bench itself.
struct Bench {
    mount: OwnedFd,
    /// Names given.
    used: u32,
    /// See [`Process::recorded`](crate::Process::recorded).
    recorded: Option<InodeOwners>,
}

impl Bench {
    const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

    fn new(recorded: Option<InodeOwners>) -> rustix::io::Result<Self> {
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        let mount = sys::new_mount(c"tmpfs", &[(c"mode", c"0700")], attributes)?;
        move_mount(
            &mount,
            c"",
            CWD,
            c"/",
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )?;
        Ok(Self {
            mount,
            used: 0,
            recorded,
        })
    }

    fn name(&mut self) -> String {
        self.used += 1;
        self.used.to_string()
    }

    fn folder(&mut self, mode: u32) -> rustix::io::Result<OwnedFd> {
        let name = self.name();
        mkdirat(&self.mount, &name, Mode::from_raw_mode(mode))?;
        openat(&self.mount, &name, Self::PATH, Mode::empty())
    }

    /// Puts a mount on a folder of its own; from another folder if it is on the bench already.
    fn attach(&mut self, mount: BorrowedFd<'_>) -> rustix::io::Result<()> {
        let place = self.folder(0o700)?;
        sys::attach(mount, place.as_fd())
    }

    fn bind(&mut self, root: &OwnedRoot, path: &Path) -> std::io::Result<OwnedFd> {
        let tree = match root {
            OwnedRoot::Mount(fd) => {
                self.attach(fd.as_fd())?;
                fd.try_clone()?
            }
            OwnedRoot::Folder(path) => open_folder(path)?,
        };
        let place = if path.as_os_str().is_empty() {
            tree
        } else {
            open_in_root(tree.as_fd(), path)?
        };
        Ok(sys::clone_tree(place.as_fd())?)
    }

    /// A mount of a file with this content.
    fn file(&mut self, content: &[u8], mode: u32, uid: u32, gid: u32) -> std::io::Result<OwnedFd> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let name = self.name();
        let file = openat(&self.mount, &name, flags, Mode::from_raw_mode(0o600))?;
        let mut file = std::fs::File::from(file);
        file.write_all(content)?;
        match &mut self.recorded {
            _ if (uid, gid) == (0, 0) => {}
            Some(owners) => one_id::give(file.as_fd(), uid, gid, owners)?,
            None => fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?,
        }
        fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(sys::clone_tree(file.as_fd())?)
    }

    /// Mounts of the device nodes: of our own where we may make some, so that a `chmod` inside does not reach the
    /// host's.
    fn devices(&mut self) -> rustix::io::Result<[OwnedFd; DEVICES.len()]> {
        let mut devices = Vec::with_capacity(DEVICES.len());
        for (name, major, minor) in DEVICES {
            let mode = Mode::from_raw_mode(0o666);
            let number = makedev(major, minor);
            let place = match mknodat(&self.mount, name, FileType::CharacterDevice, mode, number) {
                Ok(()) => openat(&self.mount, name, Self::PATH, Mode::empty())?,
                Err(Errno::PERM) => open_folder(&Path::new("/dev").join(name))?,
                Err(error) => return Err(error),
            };
            devices.push(sys::clone_tree(place.as_fd())?);
        }
        Ok(devices.try_into().expect("one for each name"))
    }

    /// A read-only mount of an empty folder, on the bench.
    fn empty(&mut self) -> rustix::io::Result<OwnedFd> {
        let folder = self.folder(0o555)?;
        let mount = sys::clone_tree(folder.as_fd())?;
        let attributes = nosuid_nodev_noexec() | MountAttrFlags::MOUNT_ATTR_RDONLY;
        sys::set_mount_attributes(mount.as_fd(), attributes, false)?;
        self.attach(mount.as_fd())?;
        Ok(mount)
    }
}

struct Builder {
    root: OwnedFd,
    made: Vec<LayerPath>,
}

impl Builder {
    fn place(&mut self, dest: impl AsRef<Path>, missing: &Missing) -> Result<OwnedFd> {
        let dest = dest.as_ref();
        let place = open_or_make(self.root.as_fd(), dest, missing).map_err(|error| {
            SandboxError::Mount {
                dest: dest.into(),
                what: "making the mount point".into(),
                source: error.into(),
            }
        })?;
        self.made.extend(place.made);
        Ok(place.fd)
    }

    /// Attaches a detached mount; where nothing is, a folder or file is made.
    fn attach(&mut self, mount: BorrowedFd<'_>, dest: impl AsRef<Path>) -> Result<()> {
        let dest = dest.as_ref();
        let failed = |what: &str, error: Errno| SandboxError::Mount {
            dest: dest.into(),
            what: what.into(),
            source: error.into(),
        };
        let stat = fstat(mount).map_err(|error| failed("looking at the source", error))?;
        let folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let missing = if folder {
            Missing::Folder(0, 0)
        } else {
            Missing::File
        };
        let place = self.place(dest, &missing)?;
        let stat = fstat(&place).map_err(|error| failed("looking at the mount point", error))?;
        match (
            folder,
            FileType::from_raw_mode(stat.st_mode) == FileType::Directory,
        ) {
            (true, false) => Err(failed(
                "a folder cannot be mounted on a file",
                Errno::NOTDIR,
            )),
            (false, true) => Err(failed("a file cannot be mounted on a folder", Errno::ISDIR)),
            _ => sys::attach(mount, place.as_fd()).map_err(|error| failed("attaching", error)),
        }
    }

    fn mount(
        &mut self,
        dest: &str,
        kind: &std::ffi::CStr,
        options: &[(&std::ffi::CStr, &std::ffi::CStr)],
        attributes: MountAttrFlags,
    ) -> Result<OwnedFd> {
        let mount =
            sys::new_mount(kind, options, attributes).map_err(|error| SandboxError::Mount {
                dest: dest.into(),
                what: kind.to_string_lossy().into_owned(),
                source: error.into(),
            })?;
        self.attach(mount.as_fd(), dest)?;
        Ok(mount)
    }

    /// `/sys`, read-only. A user namespace may mount it only for a network namespace of its own; else the host's is
    /// shown.
    fn sys(&mut self, job: &Job) -> Result<OwnedFd> {
        let failed = |error: Errno| SandboxError::Mount {
            dest: "/sys".into(),
            what: "sysfs".into(),
            source: error.into(),
        };
        let attributes = match job.confinement {
            Confinement::Docker => nosuid_nodev_noexec() | MountAttrFlags::MOUNT_ATTR_RDONLY,
            Confinement::Insecure => nosuid_nodev_noexec(),
        };
        match sys::new_mount(c"sysfs", &[], attributes) {
            Ok(sysfs) => {
                self.attach(sysfs.as_fd(), "/sys")?;
                let unified = statfs(c"/sys/fs/cgroup")
                    .is_ok_and(|stat| stat.f_type as u64 == CGROUP2_SUPER_MAGIC);
                if unified && let Ok(cgroup) = sys::new_mount(c"cgroup2", &[], attributes) {
                    self.attach(cgroup.as_fd(), "/sys/fs/cgroup")?;
                }
                Ok(sysfs)
            }
            Err(Errno::PERM) => {
                let host = open_folder(Path::new("/sys"))
                    .and_then(|place| sys::clone_tree(place.as_fd()))
                    .map_err(failed)?;
                sys::set_mount_attributes(host.as_fd(), attributes, true).map_err(failed)?;
                self.attach(host.as_fd(), "/sys")?;
                Ok(host)
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn dev(&mut self, job: &mut Job, devices: &[OwnedFd]) -> Result<Option<Terminal>> {
        let mut attributes =
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
        if job.confinement == Confinement::Docker {
            attributes |= MountAttrFlags::MOUNT_ATTR_NODEV;
        }
        let dev = self.mount(
            "/dev",
            c"tmpfs",
            &[(c"mode", c"0755"), (c"size", c"65536k")],
            attributes,
        )?;
        for ((name, ..), device) in DEVICES.iter().zip(devices) {
            self.attach(device.as_fd(), Path::new("/dev").join(name))?;
        }
        for (name, target) in LINKS {
            // As runc does it: not every kernel has the file.
            if name == "core" && !Path::new(target).exists() {
                continue;
            }
            symlinkat(target, &dev, name)
                .map_err(|error| SandboxError::setup(format!("link /dev/{name}"), error))?;
        }
        let pts = self.pts()?;
        let size = CString::new(job.shm_size.to_string()).expect("digits");
        self.mount(
            "/dev/shm",
            c"tmpfs",
            &[(c"mode", c"1777"), (c"size", &size)],
            nosuid_nodev_noexec(),
        )?;
        self.mount("/dev/mqueue", c"mqueue", &[], nosuid_nodev_noexec())?;
        job.terminal
            .map(|size| self.terminal(job, &pts, size))
            .transpose()
    }

    fn pts(&mut self) -> Result<OwnedFd> {
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        // Group 5 is `tty`; it does not exist where only one id is mapped.
        let with_tty = [(c"ptmxmode", c"0666"), (c"mode", c"0620"), (c"gid", c"5")];
        match self.mount("/dev/pts", c"devpts", &with_tty, attributes) {
            Err(SandboxError::Mount { .. }) => {
                self.mount("/dev/pts", c"devpts", &with_tty[..2], attributes)
            }
            other => other,
        }
    }

    fn terminal(
        &mut self,
        job: &mut Job,
        pts: &OwnedFd,
        (rows, cols): (u16, u16),
    ) -> Result<Terminal> {
        let failed = |error: Errno| SandboxError::setup("terminal", error);
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let outer = openat(pts, c"ptmx", flags, Mode::empty()).map_err(failed)?;
        unlockpt(&outer).map_err(failed)?;
        let size = Winsize {
            ws_row: rows,
            ws_col: cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&outer, size).map_err(failed)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let inner = ioctl_tiocgptpeer(&outer, flags).map_err(failed)?;
        match &mut job.recorded {
            Some(owners) => one_id::give(inner.as_fd(), job.user.uid, TTY, owners),
            None => fchown(&inner, Some(Uid::from_raw(job.user.uid)), None),
        }
        .map_err(failed)?;
        let console = sys::clone_tree(inner.as_fd()).map_err(failed)?;
        self.attach(console.as_fd(), "/dev/console")?;
        Ok(Terminal { outer, inner })
    }
}
