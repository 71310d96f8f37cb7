//! Limits of memory and processor time, by control groups of either version, where this process may make some.
//!
//! The group is made before the container starts and removed after its end. The container's first process moves itself
//! in before it does anything else. With version 2 only a group without processes can hand controllers down, so the
//! first one on the way up from our own is taken in which that works: for a user that is the one that a service manager
//! has delegated.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};

use crate::error::SandboxError;

/// What a container may use.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of memory and swap together; -1 is no limit. Twice the memory when only that is given.
    pub memory_swap: Option<i64>,
    /// Weight among others that want the processors; 1024 is usual.
    pub cpu_shares: Option<u64>,
    /// Microseconds in which the quota can be used up.
    pub cpu_period: Option<u64>,
    /// Microseconds of processor time in each period; -1 is no limit.
    pub cpu_quota: Option<i64>,
    /// Processors, as in `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes.
    pub cpuset_mems: Option<String>,
    /// The group below which the container's is made, from the top of the hierarchy.
    pub parent: Option<String>,
}

/// A value for a file of a controller.
struct Setting {
    controller: &'static str,
    file: &'static str,
    value: String,
}

impl Limits {
    /// Whether there are none.
    pub fn is_none(&self) -> bool {
        *self == Self::default()
    }

    /// The files of version 1, in the order in which they are written.
    fn version_1(&self) -> Vec<Setting> {
        let memory_and_swap = self.memory_and_swap();
        settings([
            ("memory", "memory.limit_in_bytes", text(self.memory)),
            (
                "memory",
                "memory.memsw.limit_in_bytes",
                memory_and_swap.map(|it| it.to_string()),
            ),
            ("cpu", "cpu.shares", text(self.cpu_shares)),
            ("cpu", "cpu.cfs_period_us", text(self.cpu_period)),
            ("cpu", "cpu.cfs_quota_us", text(self.cpu_quota)),
            ("cpuset", "cpuset.cpus", self.cpuset_cpus.clone()),
            ("cpuset", "cpuset.mems", self.cpuset_mems.clone()),
        ])
    }

    /// The files of version 2.
    fn version_2(&self) -> Vec<Setting> {
        let swap = self.memory_and_swap().map(|both| match both {
            -1 => "max".to_owned(),
            both => (both - self.memory.unwrap_or_default() as i64)
                .max(0)
                .to_string(),
        });
        // The formula of the container runtimes: 2..262144 shares are a weight of 1..10000.
        let weight = self
            .cpu_shares
            .map(|shares| (1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142).to_string());
        let max = (self.cpu_quota.is_some() || self.cpu_period.is_some()).then(|| {
            let quota = match self.cpu_quota {
                Some(quota) if quota > 0 => quota.to_string(),
                _ => "max".to_owned(),
            };
            format!("{quota} {}", self.cpu_period.unwrap_or(100_000))
        });
        settings([
            ("memory", "memory.max", text(self.memory)),
            ("memory", "memory.swap.max", swap),
            ("cpu", "cpu.weight", weight),
            ("cpu", "cpu.max", max),
            ("cpuset", "cpuset.cpus", self.cpuset_cpus.clone()),
            ("cpuset", "cpuset.mems", self.cpuset_mems.clone()),
        ])
    }

    fn memory_and_swap(&self) -> Option<i64> {
        let twice = |memory: u64| i64::try_from(memory.saturating_mul(2)).unwrap_or(-1);
        self.memory_swap
            .filter(|&swap| swap != 0)
            .or(self.memory.map(twice))
    }
}

fn text(number: Option<impl ToString>) -> Option<String> {
    number.map(|number| number.to_string())
}

fn settings<const N: usize>(
    all: [(&'static str, &'static str, Option<String>); N],
) -> Vec<Setting> {
    let given = all.into_iter().filter_map(|(controller, file, value)| {
        let value = value?;
        Some(Setting {
            controller,
            file,
            value,
        })
    });
    given.collect()
}

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    /// Of version 1: the controllers. Of version 2: nothing.
    controllers: Option<Vec<String>>,
    /// Where it is mounted.
    mount: PathBuf,
    /// The group of this process.
    own: PathBuf,
}

/// The hierarchies that the texts of `/proc/self/mountinfo` and `/proc/self/cgroup` tell of; the first mount of each.
fn hierarchies(mountinfo: &str, own: &str) -> Vec<Hierarchy> {
    let mut found: Vec<Hierarchy> = Vec::new();
    for line in mountinfo.lines() {
        let Some((mount, fs)) = line.split_once(" - ") else {
            continue;
        };
        let (mut mount, mut fs) = (mount.split(' ').skip(3), fs.split(' '));
        let (Some(root), Some(at), Some(kind)) = (mount.next(), mount.next(), fs.next()) else {
            continue;
        };
        let options: Vec<_> = fs
            .nth(1)
            .unwrap_or_default()
            .split(',')
            .map(str::to_owned)
            .collect();
        let line = own.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let first = controllers.split(',').next().unwrap_or_default();
            let this = match kind {
                "cgroup2" => controllers.is_empty(),
                "cgroup" => !first.is_empty() && options.iter().any(|option| option == first),
                _ => false,
            };
            this.then_some(path)
        });
        let Some(path) = line else { continue };
        let controllers = (kind == "cgroup").then_some(options);
        if found.iter().any(|known| known.controllers == controllers) {
            continue;
        }
        // In a container only a part may be mounted, and the path may be told from above it.
        let below = if root == "/" {
            path
        } else {
            path.strip_prefix(root).unwrap_or("/")
        };
        found.push(Hierarchy {
            controllers,
            mount: at.into(),
            own: Path::new(at).join(below.trim_matches('/')),
        });
    }
    found
}

/// The control group of one container. Dropping it removes it; the container has to be gone by then.
#[derive(Debug)]
pub struct Cgroup {
    /// One in each hierarchy.
    folders: Vec<PathBuf>,
    /// Counts the processes that were killed for want of memory.
    events: Option<PathBuf>,
}

impl Cgroup {
    /// Makes a group with the limits. What cannot be limited here is told in words, one for each reason.
    ///
    /// # Errors
    /// When the kernel refuses a value.
    pub fn make(limits: &Limits) -> Result<(Self, Vec<String>), SandboxError> {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let found = hierarchies(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup"));
        let mut group = Self {
            folders: Vec::new(),
            events: None,
        };
        let mut notes = Vec::new();
        let mut limited: Vec<&str> = Vec::new();
        for hierarchy in &found {
            let settings = match &hierarchy.controllers {
                Some(controllers) => {
                    let mut settings = limits.version_1();
                    settings.retain(|it| controllers.iter().any(|known| known == it.controller));
                    settings
                }
                None => limits.version_2(),
            };
            let settings: Vec<_> = settings
                .into_iter()
                .filter(|it| !limited.contains(&it.controller))
                .collect();
            if settings.is_empty() {
                continue;
            }
            match hierarchy.make(&settings, limits.parent.as_deref()) {
                Ok((folder, applied)) => {
                    group.folders.push(folder.clone());
                    for setting in settings
                        .iter()
                        .filter(|it| applied.contains(&it.controller))
                    {
                        limited.push(setting.controller);
                        group.set(&folder, setting, &mut notes)?;
                    }
                }
                Err(why) => notes.push(why),
            }
        }
        let wanted = limits.version_2();
        let missing: Vec<_> = wanted
            .iter()
            .map(|it| it.controller)
            .filter(|it| !limited.contains(it))
            .collect();
        if missing.is_empty() {
            notes.retain(|note| note.starts_with("memory.memsw"));
        } else {
            let mut names = missing;
            names.dedup();
            let why = notes.join("; ");
            let why = if why.is_empty() {
                "this machine has no such control groups".to_owned()
            } else {
                why
            };
            notes = vec![format!(
                "no limit of {} could be set: {why}",
                names.join(", ")
            )];
        }
        Ok((group, notes))
    }

    fn set(
        &mut self,
        folder: &Path,
        setting: &Setting,
        notes: &mut Vec<String>,
    ) -> Result<(), SandboxError> {
        let file = folder.join(setting.file);
        match write(&file, &setting.value) {
            Ok(()) => {}
            // Kernels without accounting of swap.
            Err(error)
                if error.kind() == io::ErrorKind::NotFound && setting.file.contains("sw") =>
            {
                notes.push(format!("{}: this kernel does not limit swap", setting.file));
            }
            Err(error) => {
                return Err(SandboxError::setup(
                    format!("limit {}={}", setting.file, setting.value),
                    error,
                ));
            }
        }
        if setting.controller == "memory" {
            let events = ["memory.events", "memory.oom_control"].map(|name| folder.join(name));
            self.events = events.into_iter().find(|file| file.is_file());
        }
        Ok(())
    }

    /// How many processes were killed for want of memory; `None` when memory is not limited.
    pub fn killed_for_memory(&self) -> Option<u64> {
        count(&fs::read_to_string(self.events.as_ref()?).ok()?)
    }

    /// The files through which a process moves itself in, by writing `0`.
    pub(crate) fn doors(&self) -> io::Result<Vec<OwnedFd>> {
        let open = |folder: &PathBuf| {
            OpenOptions::new()
                .write(true)
                .open(folder.join("cgroup.procs"))
        };
        self.folders
            .iter()
            .map(|folder| open(folder).map(OwnedFd::from))
            .collect()
    }
}

/// How many processes of the whole machine were killed for want of memory since it started.
pub fn killed_for_memory() -> Option<u64> {
    count(&fs::read_to_string("/proc/vmstat").ok()?)
}

fn count(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        for folder in &self.folders {
            // The kernel is not always done with the last process when that has been waited for.
            for _ in 0..200 {
                match fs::remove_dir(folder) {
                    Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                        std::thread::sleep(Duration::from_millis(5));
                    }
                    _ => break,
                }
            }
        }
    }
}

impl Hierarchy {
    /// Makes a group in which at least one of the controllers works; says which do. Else why not.
    fn make(
        &self,
        settings: &[Setting],
        parent: Option<&str>,
    ) -> Result<(PathBuf, Vec<&'static str>), String> {
        let mut wanted: Vec<_> = settings.iter().map(|it| it.controller).collect();
        wanted.dedup();
        let given = parent.map(|parent| self.mount.join(parent.trim_matches('/')));
        if self.controllers.is_some() {
            let above = given.unwrap_or_else(|| self.own.clone());
            fs::create_dir_all(&above).map_err(|error| refused(&above, &error))?;
            self.inherit_cpuset(&above);
            let folder = new_folder(&above)?;
            if wanted.contains(&"cpuset") {
                inherit(&above, &folder);
            }
            return Ok((folder, wanted));
        }
        let mut why = None;
        let candidates = match &given {
            Some(given) => {
                fs::create_dir_all(given).map_err(|error| refused(given, &error))?;
                vec![given.as_path()]
            }
            None => self
                .own
                .ancestors()
                .take_while(|path| path.starts_with(&self.mount))
                .collect(),
        };
        for above in candidates {
            match self.hand_down(above, &wanted) {
                Ok(applied) => return new_folder(above).map(|folder| (folder, applied)),
                Err(error) => drop(why.get_or_insert(error)),
            }
        }
        Err(why.unwrap_or_else(|| "no group to make it in".to_owned()))
    }

    /// Lets the children of a group of version 2 have the controllers, and those of the groups above it; says which they
    /// have.
    fn hand_down(
        &self,
        above: &Path,
        wanted: &[&'static str],
    ) -> Result<Vec<&'static str>, String> {
        let door = above.join("cgroup.procs");
        access(&door, Access::WRITE_OK).map_err(|error| refused(&door, &error.into()))?;
        let path: Vec<_> = above
            .ancestors()
            .take_while(|path| path.starts_with(&self.mount))
            .collect();
        let mut applied = Vec::new();
        let mut why = format!("{} has none of them", above.display());
        for controller in wanted {
            let mut works = true;
            for group in path.iter().rev() {
                let file = group.join("cgroup.subtree_control");
                let handed = fs::read_to_string(&file).unwrap_or_default();
                if handed.split_whitespace().any(|it| it == *controller) {
                    continue;
                }
                if let Err(error) = write(&file, &format!("+{controller}")) {
                    why = refused(&file, &error);
                    works = false;
                    break;
                }
            }
            if works {
                applied.push(*controller);
            }
        }
        if applied.is_empty() {
            Err(why)
        } else {
            Ok(applied)
        }
    }

    /// A new group of version 1 has no processors and no nodes, and can have no process, before it is given some.
    fn inherit_cpuset(&self, to: &Path) {
        let path: Vec<_> = to
            .ancestors()
            .take_while(|path| path.starts_with(&self.mount))
            .collect();
        for pair in path.windows(2).rev() {
            inherit(pair[1], pair[0]);
        }
    }
}

fn inherit(from: &Path, to: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let empty = |path: &Path| fs::read_to_string(path).is_ok_and(|text| text.trim().is_empty());
        if empty(&to.join(file))
            && let Ok(value) = fs::read_to_string(from.join(file))
        {
            // What fails here fails again, and is told, when the limit is set.
            let _ = write(&to.join(file), value.trim());
        }
    }
}

fn refused(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}

fn write(path: &Path, value: &str) -> io::Result<()> {
    let mut file: File = OpenOptions::new().write(true).open(path)?;
    io::Write::write_all(&mut file, value.as_bytes())
}

/// A new group with a name of its own. Those of processes that have died are removed.
fn new_folder(above: &Path) -> Result<PathBuf, String> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    for entry in fs::read_dir(above).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix("kiln-")?.split('-').next());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            // Fails where something runs, which is right.
            let _ = fs::remove_dir(entry.path());
        }
    }
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = above.join(format!("kiln-{}-{number}", std::process::id()));
    fs::create_dir(&folder).map_err(|error| refused(&folder, &error))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(settings: &[Setting]) -> Vec<String> {
        settings
            .iter()
            .map(|it| format!("{}={}", it.file, it.value))
            .collect()
    }

    #[test]
    fn values_of_both_versions() {
        let limits = Limits {
            memory: Some(64 << 20),
            cpu_shares: Some(1024),
            cpu_quota: Some(50_000),
            cpuset_cpus: Some("0-1".into()),
            ..Limits::default()
        };
        assert_eq!(
            written(&limits.version_1()),
            [
                "memory.limit_in_bytes=67108864",
                "memory.memsw.limit_in_bytes=134217728",
                "cpu.shares=1024",
                "cpu.cfs_quota_us=50000",
                "cpuset.cpus=0-1"
            ]
        );
        assert_eq!(
            written(&limits.version_2()),
            [
                "memory.max=67108864",
                "memory.swap.max=67108864",
                "cpu.weight=39",
                "cpu.max=50000 100000",
                "cpuset.cpus=0-1"
            ]
        );
        let limits = Limits {
            memory: Some(1000),
            memory_swap: Some(-1),
            cpu_period: Some(20_000),
            cpu_quota: Some(-1),
            ..Limits::default()
        };
        assert_eq!(
            written(&limits.version_2()),
            [
                "memory.max=1000",
                "memory.swap.max=max",
                "cpu.max=max 20000"
            ]
        );
    }

    #[test]
    fn hierarchies_are_found() {
        let mountinfo = "30 23 0:26 / /sys rw - sysfs sysfs rw\n\
            35 31 0:32 / /cg/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
            36 31 0:33 /docker/x /cg/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
            41 31 0:38 / /cg/unified rw - cgroup2 cgroup2 rw,nsdelegate\n\
            45 44 0:32 / /elsewhere rw - cgroup cgroup rw,memory\n";
        let own = "4:memory:/a/b\n2:cpu,cpuacct:/docker/x/y\n0::/user.slice/s.scope\n";
        let found: Vec<_> = hierarchies(mountinfo, own)
            .into_iter()
            .map(|it| (it.controllers.is_none(), it.own))
            .collect();
        assert_eq!(
            found,
            [
                (false, "/cg/memory/a/b".into()),
                (false, "/cg/cpu/y".into()),
                (true, "/cg/unified/user.slice/s.scope".into())
            ]
        );
    }

    /// On a copy of what the kernel shows; the files are made beforehand, as the kernel makes them.
    #[test]
    fn version_2_goes_up_to_where_controllers_can_be_handed_down() {
        let temp = tempfile::tempdir().unwrap();
        let mount = temp.path().join("cg");
        let own = mount.join("user/app/scope");
        fs::create_dir_all(&own).unwrap();
        for group in [mount.clone(), mount.join("user"), mount.join("user/app")] {
            fs::write(group.join("cgroup.procs"), "").unwrap();
            fs::write(group.join("cgroup.subtree_control"), "cpu memory\n").unwrap();
        }
        let hierarchy = Hierarchy {
            controllers: None,
            mount: mount.clone(),
            own: own.clone(),
        };
        let limits = Limits {
            memory: Some(1),
            ..Limits::default()
        };
        // Our own group has no such file, as if it could not be written to.
        let (folder, applied) = hierarchy.make(&limits.version_2(), None).unwrap();
        assert_eq!(applied, ["memory"]);
        assert_eq!(folder.parent(), Some(&*mount.join("user/app")));
        let limits = Limits {
            cpuset_cpus: Some("0".into()),
            ..limits
        };
        let (folder, _) = hierarchy.make(&limits.version_2(), Some("user")).unwrap();
        assert_eq!(folder.parent(), Some(&*mount.join("user")));
        let handed = fs::read_to_string(mount.join("user/cgroup.subtree_control")).unwrap();
        assert!(handed.starts_with("+cpuset"), "{handed}");
        let why = hierarchy
            .make(&limits.version_2(), Some("user/app/scope"))
            .unwrap_err();
        assert!(why.contains("scope/cgroup.procs: No such file"), "{why}");
    }
}
