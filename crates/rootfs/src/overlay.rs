//! Overlay mounts.
//!
//! Nothing is left to the kernel's defaults, which differ between distributions: no redirected or content-less files
//! and no inode index, since each of them ties a layer to the very layers it was made on; marks as `user.*` attributes,
//! since a user namespace may not write others and the same store must read the same for everyone. `volatile` saves the
//! syncs that package managers ask for; the store syncs once before it trusts a layer after a reboot.

use std::ffi::CString;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use kiln_image::{Entry, Kind, LayerPath};
use kiln_store::layer_fs::{Content, Ids, LayerFs};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use crate::diff::unset_root;
use crate::files::{put_aside, times};
use crate::{Lower, RootfsError};

/// Most folders that the kernel stacks in one overlay (`OVL_MAX_STACK`).
const MOST_LOWERS: usize = 500;

const FLAGS: [&str; 2] = ["userxattr", "volatile"];
const OPTIONS: [(&str, &str); 4] = [
    ("index", "off"),
    ("metacopy", "off"),
    ("redirect_dir", "nofollow"),
    ("xino", "off"),
];

/// Makes `layer_dir/fs` the upper folder over `lowers` (lowest first) and mounts both, attached nowhere. `by_mount`: as on
/// kernels before 6.5.
pub(crate) fn prepare(
    lowers: &[Lower],
    layer_dir: &Path,
    ids: Ids,
    by_mount: bool,
) -> Result<OwnedFd, RootfsError> {
    clean(layer_dir, None)?;
    if make_dir(&layer_dir.join("fs"))? {
        set_root(lowers, layer_dir, ids)?;
    }
    make_dir(&layer_dir.join("work"))?;
    // A step that changed nothing shows nothing: each layer is one more folder to look into for every name.
    let mut dirs: Vec<PathBuf> = lowers
        .iter()
        .rev()
        .filter(|lower| !lower.index.entries().is_empty())
        .flat_map(|lower| lower.dirs.all().map(Path::to_owned))
        .collect();
    if dirs.len() > MOST_LOWERS {
        return Err(RootfsError::TooManyLayers {
            layers: dirs.len(),
            most: MOST_LOWERS,
        });
    }
    if dirs.is_empty() {
        // The kernel wants one.
        let empty = layer_dir.join("empty");
        make_dir(&empty)?;
        dirs.push(empty);
    }
    mount(&dirs, layer_dir, by_mount)
}

/// Removes what the mount needed beside the layer's files. The next mount must find no old work folder: the kernel
/// refuses one that was used with `volatile`. The work folder goes to `aside` if that is given.
pub(crate) fn clean(layer_dir: &Path, aside: Option<&Path>) -> Result<(), RootfsError> {
    let empty = layer_dir.join("empty");
    match rustix::fs::unlinkat(CWD, &empty, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(RootfsError::io("remove", &empty)(error)),
    }
    put_aside(&layer_dir.join("work"), aside)
}

/// Gives the new root folder the metadata that the layers give it: an overlay shows those of its upper folder.
fn set_root(lowers: &[Lower], layer_dir: &Path, ids: Ids) -> Result<(), RootfsError> {
    let path = layer_dir.join("fs");
    // As in the merged view: an implied folder speaks only where nothing below it does.
    let implied = |entry: &Entry| matches!(entry.kind, Kind::Dir { implied: true, .. });
    let below = lowers
        .iter()
        .filter_map(|lower| lower.index.get(&LayerPath::root()));
    let below = below.reduce(|known, entry| if implied(entry) { known } else { entry });
    let mut entry = below.cloned().unwrap_or_else(unset_root);
    entry.kind = Kind::Dir {
        opaque: false,
        implied: false,
    };
    let set = || -> io::Result<()> {
        LayerFs::create(layer_dir, ids)?.put(&entry, Content::None)?;
        if ids == Ids::Real {
            rustix::fs::chmod(&path, Mode::from_raw_mode(entry.mode.into()))?;
        }
        if below.is_some() {
            rustix::fs::utimensat(CWD, &path, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        }
        Ok(())
    };
    set().map_err(RootfsError::io("set the metadata of", &path))
}

/// Makes a folder; says whether it was not there.
fn make_dir(path: &Path) -> Result<bool, RootfsError> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) => Ok(true),
        Err(Errno::EXIST) => Ok(false),
        Err(error) => Err(RootfsError::io("make the folder", path)(error)),
    }
}

/// Mounts `layer_dir/fs` over `lowers`, topmost first.
pub(crate) fn mount(
    lowers: &[PathBuf],
    layer_dir: &Path,
    by_mount: bool,
) -> Result<OwnedFd, RootfsError> {
    let appended = if by_mount {
        Err(Refusal::NoAppend)
    } else {
        mount_appending(lowers, layer_dir)
    };
    match appended {
        Err(Refusal::NoAppend) => mount_at_once(lowers, layer_dir),
        other => other,
    }
    .map_err(|refusal| match refusal {
        Refusal::NoAppend => unreachable!("only the first way needs it"),
        Refusal::File(error) => error,
        Refusal::Mount { what, log, source } => RootfsError::Mount {
            path: layer_dir.to_owned(),
            what,
            log,
            source: source.into(),
        },
    })
}

enum Refusal {
    /// The kernel does not take lower folders one by one: older than 6.5.
    NoAppend,
    File(RootfsError),
    Mount {
        what: String,
        log: String,
        source: Errno,
    },
}

impl Refusal {
    fn mount(what: impl Into<String>) -> impl FnOnce(Errno) -> Self {
        move |source| Self::Mount {
            what: what.into(),
            log: String::new(),
            source,
        }
    }
}

/// Opens a folder to name it in a mount option.
fn folder(path: &Path) -> Result<OwnedFd, Refusal> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map_err(|error| Refusal::File(RootfsError::io("open", path)(error)))
}

/// One lower folder at a time, as many as the kernel stacks. Options are at most 255 bytes long, so each folder is
/// named by a descriptor; the kernel looks it up at once.
fn mount_appending(lowers: &[PathBuf], layer_dir: &Path) -> Result<OwnedFd, Refusal> {
    let context = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(Errno::NOSYS) => return Err(Refusal::NoAppend),
        other => other.map_err(Refusal::mount("fsopen"))?,
    };
    let explain = |what: String| {
        let context = &context;
        move |source| Refusal::Mount {
            what,
            log: kernel_log(context),
            source,
        }
    };
    let set = |key: &str, value: &str| fsconfig_set_string(&context, key, value);
    set("source", "overlay").map_err(explain("source".into()))?;
    let upper = (layer_dir.join("fs"), "upperdir");
    let work = (layer_dir.join("work"), "workdir");
    let lowers = lowers.iter().map(|path| (path.clone(), "lowerdir+"));
    for (at, (path, key)) in lowers.chain([upper, work]).enumerate() {
        let fd = folder(&path)?;
        match set(key, &format!("/proc/self/fd/{}", fd.as_raw_fd())) {
            Err(Errno::INVAL) if at == 0 => return Err(Refusal::NoAppend),
            other => other.map_err(explain(format!("{key}={}", path.display())))?,
        }
    }
    for flag in FLAGS {
        fsconfig_set_flag(&context, flag).map_err(explain(flag.into()))?;
    }
    for (key, value) in OPTIONS {
        set(key, value).map_err(explain(format!("{key}={value}")))?;
    }
    fsconfig_create(&context).map_err(explain("create".into()))?;
    fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::empty(),
    )
    .map_err(explain("fsmount".into()))
}

/// What the kernel wrote about the mount context; each read gives one message, `e ` before errors.
fn kernel_log(context: &OwnedFd) -> String {
    let Ok(context) = context.try_clone() else {
        return String::new();
    };
    let mut context = std::fs::File::from(context);
    let mut buffer = [0; 1024];
    let mut log = Vec::new();
    while let Ok(length @ 1..) = context.read(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        log.push(text.get(2..).unwrap_or(&text).trim_end().to_owned());
    }
    log.join("; ")
}

/// All options in one text, as kernels before 6.5 want them. It has room for one page, so the folders are named by the
/// shortest names there are: their descriptors' numbers, seen from `/proc/self/fd`. That takes a working directory,
/// which is why it happens in a thread with one of its own. The mount is attached for a moment, then taken off.
fn mount_at_once(lowers: &[PathBuf], layer_dir: &Path) -> Result<OwnedFd, Refusal> {
    let at = layer_dir.join("mnt");
    make_dir(&at).map_err(Refusal::File)?;
    let lowers = lowers
        .iter()
        .map(|path| folder(path))
        .collect::<Result<Vec<_>, _>>()?;
    let (upper, work) = (
        folder(&layer_dir.join("fs"))?,
        folder(&layer_dir.join("work"))?,
    );
    let options = |flags: &[&str]| {
        let names: Vec<_> = lowers.iter().map(|fd| fd.as_raw_fd().to_string()).collect();
        let folders = [
            format!("lowerdir={}", names.join(":")),
            format!("upperdir={}", upper.as_raw_fd()),
            format!("workdir={}", work.as_raw_fd()),
        ];
        let flags = flags.iter().map(ToString::to_string);
        let others = OPTIONS.iter().map(|(key, value)| format!("{key}={value}"));
        let all: Vec<_> = folders.into_iter().chain(flags).chain(others).collect();
        CString::new(all.join(",")).expect("made of numbers and words")
    };
    let mount = || {
        // SAFETY: CLONE_FS gives this thread a working directory of its own; no descriptor table is unshared.
        #[expect(
            unsafe_code,
            reason = "no safe wrapper: other flags would split the descriptor table"
        )]
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FS) }?;
        rustix::process::chdir("/proc/self/fd")?;
        let mount = |options: &CString| {
            rustix::mount::mount(
                "overlay",
                &at,
                "overlay",
                MountFlags::empty(),
                options.as_c_str(),
            )
        };
        match mount(&options(&FLAGS)) {
            // Kernels before 5.10 do not know `volatile`.
            Err(Errno::INVAL) => mount(&options(&FLAGS[..1])),
            other => other,
        }
    };
    let mounted = std::thread::scope(|scope| {
        scope
            .spawn(mount)
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    mounted.map_err(Refusal::mount("mount"))?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, &at, flags);
    rustix::mount::unmount(&at, UnmountFlags::DETACH).map_err(Refusal::mount("unmount"))?;
    let tree = tree.map_err(Refusal::mount("open_tree"))?;
    rustix::fs::rmdir(&at).map_err(|error| Refusal::File(RootfsError::io("remove", &at)(error)))?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kernels before 6.5 are not at hand, but every kernel still takes their way.
    #[test]
    #[expect(clippy::print_stderr, reason = "a test that did not run must say so")]
    fn all_at_once() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: needs root");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let lowers: Vec<PathBuf> = (0..MOST_LOWERS)
            .map(|number| dir.path().join(format!("lower, {number}")))
            .collect();
        for (number, lower) in lowers.iter().enumerate() {
            std::fs::create_dir(lower).unwrap();
            std::fs::write(lower.join("top"), number.to_string()).unwrap();
            std::fs::write(lower.join(format!("file-{number}")), "").unwrap();
        }
        for name in ["fs", "work"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let Ok(mount) = mount_at_once(&lowers, dir.path()) else {
            panic!("refused")
        };
        let inside = PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd()));
        assert_eq!(std::fs::read_to_string(inside.join("top")).unwrap(), "0");
        assert_eq!(std::fs::read_dir(&inside).unwrap().count(), MOST_LOWERS + 1);
        std::fs::write(inside.join("new"), "").unwrap();
        drop(mount);
        assert!(dir.path().join("fs/new").is_file());
        assert!(!dir.path().join("mnt").exists());
    }
}
