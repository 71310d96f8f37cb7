//! The `kiln` binary with a store, a home and a folder for contexts of its own.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};

use xtask::bases::BASES;
use xtask::machine::{PLAIN_USER, is_root};

use crate::namespace::Namespace;
use crate::{Outcome, leftovers, skipped};

/// Who builds, and on what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Root, with a store that can hold an overlay.
    Root,
    /// A plain user with subordinate ids.
    User,
    /// A plain user with no other id than the own.
    OneId,
    /// Root in a container whose own root is an overlay, so that the store cannot hold one.
    Overlay,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Root, Self::User, Self::OneId, Self::Overlay];

    /// Whether a plain user builds.
    fn is_plain_user(self) -> bool {
        matches!(self, Self::User | Self::OneId)
    }

    fn possible(self) -> bool {
        let possible = self.is_plain_user() || is_root();
        if !possible {
            skipped(&format!("{self:?}: only root can run it"));
        }
        possible
    }
}

/// What `cargo xtask test` prepared.
#[derive(Debug)]
struct Prepared {
    bases: PathBuf,
    /// This process's own folder; its stores and contexts go there.
    folder: PathBuf,
    /// A copy of the binary that everyone may run.
    binary: PathBuf,
}

fn prepared() -> Option<&'static Prepared> {
    static PREPARED: OnceLock<Option<Prepared>> = OnceLock::new();
    let found = PREPARED.get_or_init(|| {
        let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let (binary, bases) = (variable("KILN_BIN")?, variable("KILN_TEST_BASES")?);
        let runs = xtask::test::scratch();
        clean(&runs);
        let folder = runs.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&folder).expect("the test folder can be made");
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("own folder");
        fs::copy(&binary, folder.join("kiln")).expect("KILN_BIN names the binary");
        Some(Prepared {
            bases,
            binary: folder.join("kiln"),
            folder,
        })
    });
    if found.is_none() {
        skipped("KILN_BIN and KILN_TEST_BASES are not set; `cargo xtask test` sets them");
    }
    found.as_ref()
}

/// Removes what earlier test processes left: a process cannot clean up behind its own statics.
fn clean(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix("run-"));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&entry.path());
        }
    }
}

/// Removes a folder; a plain user's layers belong to subordinate ids, so it takes a user namespace.
fn remove(folder: &Path) {
    if fs::remove_dir_all(folder).is_err() {
        let _ = Command::new("unshare")
            .args(["--map-root-user", "--map-auto", "rm", "-rf", "--"])
            .arg(folder)
            .stderr(Stdio::null())
            .status();
    }
}

/// `kiln` in one setting. Dropping it removes its store.
#[derive(Debug)]
pub struct Kiln {
    setting: Setting,
    folder: PathBuf,
    store: PathBuf,
    binary: PathBuf,
    bases: PathBuf,
    namespace: Option<Namespace>,
    contexts: AtomicU32,
    loaded: Mutex<BTreeSet<String>>,
}

impl Kiln {
    /// The store that all tests of this process share in a setting, with the named bases. None: skipped.
    pub fn shared(setting: Setting, bases: &[&str]) -> Option<&'static Self> {
        static SHARED: [OnceLock<Option<Kiln>>; Setting::ALL.len()] =
            [const { OnceLock::new() }; Setting::ALL.len()];
        let kiln = SHARED[setting as usize]
            .get_or_init(|| Self::new(setting))
            .as_ref()?;
        kiln.load(bases).then_some(kiln)
    }

    /// A store for one test alone, with the named bases. None: skipped.
    pub fn fresh(setting: Setting, bases: &[&str]) -> Option<Self> {
        let kiln = Self::new(setting)?;
        kiln.load(bases).then_some(kiln)
    }

    /// A store for one test alone, on a disk of `size` (as tmpfs takes it); root only. None: skipped.
    pub fn on_small_disk(size: &str, bases: &[&str]) -> Option<Self> {
        let mut kiln = Self::new(Setting::Root)?;
        fs::create_dir(&kiln.store).expect("own folder");
        kiln.namespace = Some(Namespace::small_disk(&kiln.store, size));
        kiln.load(bases).then_some(kiln)
    }

    /// A store for one test alone, on a file system whose power can be cut ([`Kiln::cut_power`]); root only. None: skipped.
    pub fn on_powered_disk(bases: &[&str]) -> Option<Self> {
        let mut kiln = Self::new(Setting::Root)?;
        fs::create_dir(&kiln.store).expect("own folder");
        let image = fs::File::create(kiln.folder.join("disk")).expect("own folder");
        image.set_len(512 << 20).expect("a sparse file");
        kiln.namespace = Some(Namespace::powered(&kiln.store, &kiln.folder.join("disk")));
        kiln.load(bases).then_some(kiln)
    }

    /// A store for one test alone, where the kernel hands some programs to an interpreter
    /// ([`Namespace::with_interpreter`]); root only. None: skipped.
    pub fn with_interpreter(line: &str) -> Option<Self> {
        let mut kiln = Self::new(Setting::Root)?;
        kiln.namespace = Namespace::with_interpreter(line);
        if kiln.namespace.is_none() {
            skipped("this kernel has no binfmt_misc of its own in a user namespace");
            return None;
        }
        Some(kiln)
    }

    /// Stops the store's file system as a loss of power does, then starts the machine again: the file system is mounted
    /// with what reached the disk, and the kernel says that this is another run of the machine.
    pub fn cut_power(&self) {
        static BOOTS: AtomicU32 = AtomicU32::new(0);
        let namespace = self.namespace.as_ref().expect("on_powered_disk");
        let inside = PathBuf::from(format!("/proc/{}/root", namespace.holder()));
        let path = self.store.strip_prefix("/").expect("absolute");
        let folder = fs::File::open(inside.join(path)).expect("mounted");
        shut_down(&folder).expect("ext4 can be shut down");
        drop(folder);
        let boot = self.folder.join("boot");
        let number = BOOTS.fetch_add(1, Ordering::Relaxed);
        fs::write(&boot, format!("boot {number} of {}", std::process::id())).expect("own folder");
        // Processes of the time before may need a moment to see that all is over.
        let again = "
            for try in 1 2 3 4 5 6 7 8 9; do umount $1 && break; sleep 0.5; done
            mount -o loop $2 $1
            mount --bind $3 /proc/sys/kernel/random/boot_id
        ";
        let disk = self.folder.join("disk");
        namespace.run(again, &[self.store.as_ref(), disk.as_ref(), boot.as_ref()]);
    }

    fn new(setting: Setting) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let prepared = prepared()?;
        if !setting.possible() {
            return None;
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = prepared.folder.join(number.to_string());
        fs::create_dir_all(folder.join("home")).expect("own folder");
        own(&folder, setting);
        let name = format!("store-{}-{number}", std::process::id());
        let mut kiln = Self {
            setting,
            store: folder.join(&name),
            folder,
            binary: prepared.binary.clone(),
            bases: prepared.bases.clone(),
            namespace: None,
            contexts: AtomicU32::new(0),
            loaded: Mutex::default(),
        };
        if setting == Setting::Overlay {
            let container = kiln.folder.join("container");
            fs::create_dir(&container).expect("own folder");
            kiln.namespace = Some(Namespace::overlay(&container, &kiln.folder));
            kiln.store = Path::new("/var/lib").join(name);
        }
        Some(kiln)
    }

    /// Puts base images into the store, each once.
    fn load(&self, bases: &[&str]) -> bool {
        let mut loaded = self
            .loaded
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        for name in bases
            .iter()
            .filter(|name| !loaded.contains(**name))
            .copied()
            .collect::<Vec<_>>()
        {
            let base = BASES
                .iter()
                .find(|base| base.name == name)
                .expect("a known base");
            let Ok(archive) = fs::File::open(base.archive(&self.bases)) else {
                skipped(&format!("there is no base image {}", base.image));
                return false;
            };
            let mut load = self.command(&["load"]);
            let output = load.stdin(archive).output().expect("kiln starts");
            Outcome::new(format!("kiln load < {name}"), &output).ok();
            loaded.insert(name.to_owned());
        }
        true
    }

    /// Who builds.
    pub fn setting(&self) -> Setting {
        self.setting
    }

    /// The root of the store, as `kiln` sees it.
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// The binary.
    pub fn binary(&self) -> &Path {
        &self.binary
    }

    /// The archive of a base image.
    pub fn base_archive(&self, name: &str) -> PathBuf {
        self.bases.join(format!("{name}.image.tar"))
    }

    /// A path for a file that the test reads; `kiln` may write it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join("home").join(name)
    }

    /// A command of `kiln` with `args`: its environment is only what it needs.
    pub fn command(&self, args: &[&str]) -> Command {
        self.wrapped(&[], args)
    }

    /// The same with `wrapper` (a tracer) around `kiln`, inside everything else.
    pub fn wrapped(&self, wrapper: &[&str], args: &[&str]) -> Command {
        let mut line: Vec<OsString> = Vec::new();
        if let Some(namespace) = &self.namespace {
            line.extend(namespace.enter().into_iter().map(OsString::from));
        }
        if self.setting.is_plain_user() && is_root() {
            let user = [
                format!("--reuid={PLAIN_USER}"),
                format!("--regid={PLAIN_USER}"),
            ];
            line.push("setpriv".into());
            line.extend(user.map(OsString::from));
            line.extend(["--init-groups", "--"].map(OsString::from));
        }
        line.extend(wrapper.iter().map(OsString::from));
        line.push(self.binary.clone().into());
        line.extend(args.iter().map(OsString::from));
        let mut command = Command::new(&line[0]);
        command
            .args(&line[1..])
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", self.folder.join("home"))
            .env("KILN_ROOT", &self.store)
            .env("RUST_BACKTRACE", "1")
            .current_dir("/")
            .stdin(Stdio::null());
        if self.setting == Setting::OneId {
            command.env("KILN_ISOLATION", "single");
        }
        command
    }

    /// Runs `kiln` to its end.
    pub fn run(&self, args: &[&str]) -> Outcome {
        let output = self.command(args).output().expect("kiln starts");
        Outcome::new(
            format!("kiln {} # {:?}", args.join(" "), self.setting),
            &output,
        )
    }

    /// Runs `kiln build --progress plain` with `args`, the last of them the context.
    pub fn build(&self, args: &[&str]) -> Outcome {
        self.run(&[&["build", "--progress", "plain"], args].concat())
    }

    /// A new context with these files.
    pub fn context(&self, files: &[(&str, &str)]) -> String {
        let folder = self.new_context();
        for (name, content) in files {
            let path = folder.join(name);
            fs::create_dir_all(path.parent().expect("below the context")).expect("own folder");
            fs::write(path, content).expect("own folder");
        }
        own(&folder, self.setting);
        text(&folder)
    }

    /// A copy of one of the examples as a context.
    pub fn example(&self, name: &str) -> String {
        let folder = self.new_context();
        let from = xtask::workspace().join("examples").join(name).join(".");
        let copied = Command::new("cp")
            .args(["-rp", "--"])
            .arg(from)
            .arg(&folder)
            .status();
        assert!(
            copied.is_ok_and(|status| status.success()),
            "cannot copy examples/{name}"
        );
        own(&folder, self.setting);
        text(&folder)
    }

    fn new_context(&self) -> PathBuf {
        let number = self.contexts.fetch_add(1, Ordering::Relaxed);
        let folder = self.folder.join(format!("context-{number}"));
        fs::create_dir(&folder).expect("own folder");
        folder
    }

    /// Saves an image and reads it.
    pub fn save(&self, image: &str) -> xtask::compare::SavedImage {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let file = self.file(&format!(
            "saved-{}.tar",
            NUMBER.fetch_add(1, Ordering::Relaxed)
        ));
        self.run(&["save", "-o", &text(&file), image]).ok();
        let saved = xtask::compare::SavedImage::read(&file).expect("a readable archive");
        let _ = fs::remove_file(file);
        saved
    }

    /// What is unique to this store in arguments, environments and mounts.
    fn needle(&self) -> String {
        self.store
            .file_name()
            .expect("has a name")
            .to_string_lossy()
            .into_owned()
    }

    /// Fails if processes or mounts of this store remain.
    #[track_caller]
    pub fn leaves_nothing(&self) {
        let holder = self.namespace.as_ref().map(Namespace::holder);
        leftovers::none(&self.needle(), &Vec::from_iter(holder));
    }
}

impl Drop for Kiln {
    fn drop(&mut self) {
        self.namespace = None;
        remove(&self.folder);
    }
}

/// Stops a file system without writing what it has in memory (`EXT4_IOC_SHUTDOWN`, linux/fs/ext4).
#[expect(unsafe_code, reason = "no safe wrapper knows this call")]
fn shut_down(folder: &fs::File) -> rustix::io::Result<()> {
    const SHUTDOWN: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u32>(b'X', 125);
    const NO_LOG_FLUSH: u32 = 2;
    // SAFETY: the call reads one u32 from where it is pointed to, and writes nothing.
    unsafe {
        rustix::ioctl::ioctl(
            folder,
            rustix::ioctl::Setter::<SHUTDOWN, u32>::new(NO_LOG_FLUSH),
        )
    }
}

/// Gives a folder to whoever builds.
fn own(folder: &Path, setting: Setting) {
    if setting.is_plain_user() && is_root() {
        let owner = format!("{PLAIN_USER}:");
        let given = Command::new("chown")
            .args(["-R", &owner])
            .arg(folder)
            .status();
        assert!(given.is_ok_and(|status| status.success()), "chown failed");
    }
}

fn text(path: &Path) -> String {
    path.to_str()
        .expect("the test folder has a plain name")
        .to_owned()
}
