//! Questions about the owners of files.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use kiln_image::owner::Device;
use kiln_image::{InodeKey, InodeOwners, OWNER_XATTR, OwnerRecord};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, ResolveFlags, Statx, StatxFlags,
    Timespec, Timestamps, Uid, XattrFlags, chownat, fsetxattr, getxattr, lgetxattr, listxattr,
    mkdirat, mknodat, openat, openat2, readlinkat, removexattr, renameat_with, setxattr, statx,
    symlinkat, utimensat,
};
use rustix::io::{Errno, Result};

use super::calls::{CREATES, Call};
use super::credentials::KEEP;
use super::listener::{Answer, Question, read, read_path, write};
use super::{State, argument, layout, word};
use crate::resolve::open_inside;

/// What a call is about.
enum Subject {
    /// A path from a folder's descriptor, or `AT_FDCWD`.
    Path {
        from: i32,
        path: CString,
        follow: bool,
    },
    /// A descriptor.
    Descriptor(i32),
}

/// Where a path begins, and what is left of it. `None` is the root, for an absolute path.
struct Start {
    folder: Option<OwnedFd>,
    rest: CString,
    resolve: ResolveFlags,
}

impl Start {
    fn open(&self, path: &CStr, flags: OFlags, mode: Mode, more: ResolveFlags) -> Result<OwnedFd> {
        let from = self.folder.as_ref().map_or(CWD, AsFd::as_fd);
        let (flags, resolve) = (flags | OFlags::CLOEXEC, self.resolve | more);
        if self.resolve.is_empty() {
            openat2(from, path, flags, mode, resolve)
        } else {
            open_inside(from, path, flags, mode, resolve)
        }
    }
}

/// A new name: its folder, and the last component.
struct Place {
    folder: OwnedFd,
    name: CString,
}

fn words(text: impl Into<Vec<u8>>) -> Result<CString> {
    CString::new(text).map_err(|_| Errno::INVAL)
}

/// A path to an open file, for calls that take no descriptor; the working folder is `/proc`.
fn by_descriptor(fd: BorrowedFd<'_>) -> Result<CString> {
    words(format!("self/fd/{}", fd.as_raw_fd()))
}

/// The record that a file carries.
pub(super) fn attribute(path: &CStr, follow: bool) -> Option<OwnerRecord> {
    let mut value = [0; 64];
    let length = if follow {
        getxattr(path, OWNER_XATTR, &mut value[..])
    } else {
        lgetxattr(path, OWNER_XATTR, &mut value[..])
    };
    OwnerRecord::decode(value.get(..length.ok()?)?)
}

fn look(fd: BorrowedFd<'_>, mask: StatxFlags) -> Result<Statx> {
    statx(fd, c"", AtFlags::EMPTY_PATH, mask)
}

fn key(stat: &Statx) -> InodeKey {
    InodeKey {
        inode: stat.stx_ino,
        born: (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec),
    }
}

const KEY: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// What follows `/proc/self/` in a path that means it: the container's `/proc` knows no process for the supervisor.
/// Nothing that could climb out of the folder of the process.
fn own_process(path: &[u8]) -> Option<Vec<u8>> {
    let fd = |number: &[u8]| [b"fd/", number].concat();
    let rest = match path {
        b"/dev/stdin" => fd(b"0"),
        b"/dev/stdout" => fd(b"1"),
        b"/dev/stderr" => fd(b"2"),
        _ => match path.strip_prefix(b"/dev/fd/") {
            Some(number) => fd(number),
            None => path.strip_prefix(b"/proc/self/")?.to_vec(),
        },
    };
    let climbs = rest.split(|&byte| byte == b'/').any(|name| name == b"..");
    (!climbs && !rest.starts_with(b"/")).then_some(rest)
}

/// Writes down that a file of the supervisor's own making is the user's and the group's.
pub(crate) fn give(
    file: BorrowedFd<'_>,
    uid: u32,
    gid: u32,
    owners: &mut InodeOwners,
) -> Result<()> {
    let record = OwnerRecord::file(uid, gid).encode();
    match fsetxattr(file, OWNER_XATTR, record.as_bytes(), XattrFlags::empty()) {
        Err(Errno::PERM | Errno::OPNOTSUPP) => {
            owners.insert(key(&look(file, KEY)?), (uid, gid));
            Ok(())
        }
        other => other,
    }
}

impl State {
    /// Answers everything that is about files.
    pub(super) fn about_files(
        &mut self,
        question: &Question,
        call: Call,
        narrow: bool,
    ) -> Result<Answer> {
        match call {
            Call::Stat { .. } | Call::Fstat | Call::StatAt | Call::Statx => {
                self.stat(question, call, narrow)
            }
            Call::Chown { .. } | Call::Fchown | Call::ChownAt => self.chown(question, call),
            Call::ListXattr { .. } | Call::FlistXattr => self.list_attributes(question, call),
            Call::Chroot => {
                self.other_roots = true;
                Ok(Answer::Continue)
            }
            _ => self.make(question, call),
        }
    }

    /// The path at one argument, from the folder at another, with the flags at a third.
    fn subject_at(question: &Question, flags: usize) -> Result<Subject> {
        let flags = AtFlags::from_bits_retain(word(question, flags));
        let from = word(question, 0) as i32;
        let empty = flags.contains(AtFlags::EMPTY_PATH);
        let path = match argument(question, 1) {
            0 if empty => CString::default(),
            address => read_path(question, address)?,
        };
        if path.is_empty() && empty {
            return Ok(match from {
                libc::AT_FDCWD => Subject::Path {
                    from,
                    path: c".".into(),
                    follow: true,
                },
                from => Subject::Descriptor(from),
            });
        }
        let follow = !flags.contains(AtFlags::SYMLINK_NOFOLLOW);
        Ok(Subject::Path { from, path, follow })
    }

    fn subject(question: &Question, follow: bool) -> Result<Subject> {
        Ok(Subject::Path {
            from: libc::AT_FDCWD,
            path: read_path(question, argument(question, 0))?,
            follow,
        })
    }

    /// Finds where a path begins; afterwards what was found is known to belong to who asks.
    fn start(&self, question: &Question, from: i32, path: &CStr) -> Result<Start> {
        let bytes = path.to_bytes();
        let pid = question.pid;
        if bytes.is_empty() {
            return Err(Errno::NOENT);
        }
        let mut resolve = ResolveFlags::empty();
        let (folder, rest) = if bytes[0] != b'/' {
            let folder = match from {
                libc::AT_FDCWD => format!("{pid}/cwd"),
                from => format!("{pid}/fd/{from}"),
            };
            (folder, bytes.to_vec())
        } else if self.other_roots {
            resolve = ResolveFlags::IN_ROOT;
            (format!("{pid}/root"), bytes.to_vec())
        } else if let Some(rest) = own_process(bytes) {
            (pid.to_string(), rest)
        } else {
            return Ok(Start {
                folder: None,
                rest: path.into(),
                resolve,
            });
        };
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let folder = openat(CWD, folder, flags, Mode::empty()).map_err(|error| match error {
            Errno::NOENT => Errno::BADF,
            error => error,
        })?;
        self.still_there(question)?;
        Ok(Start {
            folder: Some(folder),
            rest: words(rest)?,
            resolve,
        })
    }

    /// A number may have gone to another process: then nothing found by it is used.
    fn still_there(&self, question: &Question) -> Result<()> {
        if self.listener.is_waiting(question) {
            Ok(())
        } else {
            Err(Errno::SRCH)
        }
    }

    /// Opens what a call is about, as a place.
    fn open(&self, question: &Question, subject: &Subject) -> Result<OwnedFd> {
        match subject {
            Subject::Descriptor(number) => {
                let path = format!("{}/fd/{number}", question.pid);
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let fd = openat(CWD, path, flags, Mode::empty()).map_err(|_| Errno::BADF)?;
                self.still_there(question)?;
                Ok(fd)
            }
            Subject::Path { from, path, follow } => {
                let start = self.start(question, *from, path)?;
                let mut flags = OFlags::PATH;
                flags.set(OFlags::NOFOLLOW, !follow);
                start.open(&start.rest, flags, Mode::empty(), ResolveFlags::empty())
            }
        }
    }

    /// The record of the subject as far as one call can tell it, without anything being opened: nearly all questions end
    /// here. What is found by the number of who asks is its own only if it still waits; else nobody gets the answer.
    /// `Err` if it takes a closer look.
    fn glance(&self, question: &Question, subject: &Subject) -> Result<Option<OwnerRecord>> {
        let pid = question.pid;
        let (name, follow) = match subject {
            Subject::Descriptor(number) => (format!("{pid}/fd/{number}").into_bytes(), true),
            Subject::Path { from, path, follow } => {
                let path = path.to_bytes();
                let name = match (path.first(), *from) {
                    (None, _) => return Ok(None),
                    (Some(b'/'), _) if self.other_roots => return Err(Errno::XDEV),
                    (Some(b'/'), _) => match own_process(path) {
                        Some(rest) => [format!("{pid}/").as_bytes(), &rest].concat(),
                        None => path.to_vec(),
                    },
                    (_, libc::AT_FDCWD) => [format!("{pid}/cwd/").as_bytes(), path].concat(),
                    (_, from) => [format!("{pid}/fd/{from}/").as_bytes(), path].concat(),
                };
                (name, *follow)
            }
        };
        Ok(attribute(&words(name)?, follow))
    }

    /// Whether there can be a record of the subject.
    fn may_have_record(&self, question: &Question, subject: &Subject) -> bool {
        !self.owners.is_empty() || !matches!(self.glance(question, subject), Ok(None))
    }

    /// The record of an open file.
    fn record(&self, fd: BorrowedFd<'_>) -> Result<Option<OwnerRecord>> {
        if let Some(record) = attribute(&by_descriptor(fd)?, true) {
            return Ok(Some(record));
        }
        if self.owners.is_empty() {
            return Ok(None);
        }
        let owner = self.owners.get(&key(&look(fd, KEY)?));
        Ok(owner.map(|&(uid, gid)| OwnerRecord::file(uid, gid)))
    }

    fn stat(&mut self, question: &Question, call: Call, narrow: bool) -> Result<Answer> {
        let (subject, buffer) = match call {
            Call::Stat { follow } => (Self::subject(question, follow), 1),
            Call::Fstat => (Ok(Subject::Descriptor(word(question, 0) as i32)), 1),
            Call::StatAt => (Self::subject_at(question, 3), 2),
            _ => (Self::subject_at(question, 2), 4),
        };
        // Whatever is wrong, the kernel says it best.
        let Ok(subject) = subject else {
            return Ok(Answer::Continue);
        };
        if !self.may_have_record(question, &subject) {
            return Ok(Answer::Continue);
        }
        let Ok(fd) = self.open(question, &subject) else {
            return Ok(Answer::Continue);
        };
        let Some(record) = self.record(fd.as_fd())? else {
            return Ok(Answer::Continue);
        };
        let bytes = if call == Call::Statx {
            let flags = AtFlags::from_bits_retain(word(question, 2)) & layout::SYNC;
            layout::statx(fd.as_fd(), flags, word(question, 3), &record)?
        } else if narrow {
            layout::narrow_stat(fd.as_fd(), &record)?
        } else {
            layout::stat(fd.as_fd(), &record)?
        };
        write(question, argument(question, buffer), &bytes)?;
        Ok(Answer::Value(0))
    }

    fn chown(&mut self, question: &Question, call: Call) -> Result<Answer> {
        let (subject, ids) = match call {
            Call::Chown { follow } => (Self::subject(question, follow)?, 1),
            Call::Fchown => (Subject::Descriptor(word(question, 0) as i32), 1),
            _ => (Self::subject_at(question, 4)?, 2),
        };
        let (uid, gid) = (word(question, ids), word(question, ids + 1));
        if (uid, gid) == (KEEP, KEEP) {
            return Ok(Answer::Continue);
        }
        let who = self.current(question)?;
        let to_root = [uid, gid].iter().all(|id| [KEEP, 0].contains(id));
        if to_root && who.privileged() && !self.may_have_record(question, &subject) {
            return Ok(Answer::Continue);
        }
        let fd = self.open(question, &subject)?;
        let before = self.record(fd.as_fd())?;
        let mut record = before.unwrap_or(OwnerRecord::file(0, 0));
        if !who.privileged() {
            let own = who.users.files == record.uid;
            let allowed = own
                && (uid == KEEP || uid == record.uid)
                && (gid == KEEP || gid == record.gid || who.in_group(gid));
            if !allowed {
                return Err(Errno::PERM);
            }
        }
        if uid != KEEP {
            record.uid = uid;
        }
        if gid != KEEP {
            record.gid = gid;
        }
        let changes = before.unwrap_or(OwnerRecord::file(0, 0)) != record;
        if changes && let Some(stat) = self.renew(fd.as_fd())? {
            self.owners.insert(key(&stat), (record.uid, record.gid));
            return Ok(Answer::Value(0));
        }
        // What the kernel does besides: it refuses where nothing may be written, and takes set-id bits away.
        let (root, root_group) = (Some(Uid::ROOT), Some(Gid::ROOT));
        chownat(&fd, c"", root, root_group, AtFlags::EMPTY_PATH)?;
        if changes {
            self.save(fd.as_fd(), record)?;
        }
        Ok(Answer::Value(0))
    }

    /// Puts a new one in the place of a link or fifo of a layer below: its inode would change with the copy into this
    /// layer, and nothing would lead from there to its owner.
    fn renew(&self, fd: BorrowedFd<'_>) -> Result<Option<Statx>> {
        let stat = look(fd, KEY)?;
        let kind = FileType::from_raw_mode(stat.stx_mode.into());
        let below = matches!(kind, FileType::Symlink | FileType::Fifo)
            && stat.stx_nlink == 1
            && key(&stat).born < self.since;
        Ok(if below { replace(fd, &stat) } else { None })
    }

    /// Writes down whose a file is.
    fn save(&mut self, fd: BorrowedFd<'_>, record: OwnerRecord) -> Result<()> {
        let path = by_descriptor(fd)?;
        if record.is_default() {
            return match removexattr(&path, OWNER_XATTR) {
                Ok(()) => Ok(()),
                Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => {
                    self.owners.remove(&key(&look(fd, KEY)?));
                    Ok(())
                }
                Err(error) => Err(error),
            };
        }
        match setxattr(
            &path,
            OWNER_XATTR,
            record.encode().as_bytes(),
            XattrFlags::empty(),
        ) {
            // A link, a fifo, a file system without attributes.
            Err(Errno::PERM | Errno::OPNOTSUPP) => {
                let stat = look(fd, KEY)?;
                self.owners.insert(key(&stat), (record.uid, record.gid));
                Ok(())
            }
            other => other,
        }
    }

    fn list_attributes(&mut self, question: &Question, call: Call) -> Result<Answer> {
        // The largest that the kernel gives (limits.h: XATTR_LIST_MAX).
        const LARGEST: usize = 64 * 1024;
        let subject = match call {
            Call::ListXattr { follow } => Self::subject(question, follow),
            _ => Ok(Subject::Descriptor(word(question, 0) as i32)),
        };
        let Ok(fd) = subject.and_then(|subject| self.open(question, &subject)) else {
            return Ok(Answer::Continue);
        };
        let mut list = vec![0; LARGEST];
        let Ok(length) = listxattr(&by_descriptor(fd.as_fd())?, &mut list[..]) else {
            return Ok(Answer::Continue);
        };
        list.truncate(length);
        let shown: Vec<&[u8]> = list
            .split_inclusive(|&byte| byte == 0)
            .filter(|name| name.strip_suffix(b"\0") != Some(OWNER_XATTR.as_bytes()))
            .collect();
        let shown = shown.concat();
        if shown.len() == list.len() {
            return Ok(Answer::Continue);
        }
        let room = argument(question, 2) as usize;
        if room > 0 {
            if room < shown.len() {
                return Err(Errno::RANGE);
            }
            if !shown.is_empty() {
                write(question, argument(question, 1), &shown)?;
            }
        }
        Ok(Answer::Value(shown.len() as i64))
    }

    /// Calls that make files: done here if the file is not to be root's, so that nobody ever sees it as such.
    fn make(&mut self, question: &Question, call: Call) -> Result<Answer> {
        let from_folder = |at: usize| (word(question, at) as i32, at + 1);
        let (from, at) = match call {
            Call::OpenAt | Call::OpenAt2 | Call::MkdirAt | Call::MknodAt => from_folder(0),
            Call::SymlinkAt => from_folder(1),
            Call::Symlink => (libc::AT_FDCWD, 1),
            _ => (libc::AT_FDCWD, 0),
        };
        let (mut flags, mut mode, mut resolve) = (0, 0, ResolveFlags::empty());
        match call {
            Call::Creat => {
                flags = (libc::O_CREAT | libc::O_WRONLY | libc::O_TRUNC) as u32;
                mode = word(question, 1);
            }
            Call::Open | Call::OpenAt => {
                (flags, mode) = (word(question, at + 1), word(question, at + 2));
            }
            Call::OpenAt2 => {
                let mut how = [0; 24];
                read(question, argument(question, 2), &mut how)?;
                let field =
                    |at: usize| u64::from_ne_bytes(how[at..at + 8].try_into().unwrap_or_default());
                (flags, mode) = (field(0) as u32, field(8) as u32);
                resolve = ResolveFlags::from_bits_retain(field(16));
            }
            Call::Symlink | Call::SymlinkAt => {}
            _ => mode = word(question, at + 1),
        }
        let opens = matches!(
            call,
            Call::Open | Call::OpenAt | Call::OpenAt2 | Call::Creat
        );
        let flags = OFlags::from_bits_retain(flags);
        if opens && (flags.bits() & CREATES == 0 || flags.contains(OFlags::PATH)) {
            return Ok(Answer::Continue);
        }
        let kind = FileType::from_raw_mode(mode);
        let device = matches!(call, Call::Mknod | Call::MknodAt)
            && matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        let who = self.current(question)?;
        // Where the kernel would fail it shall say so itself.
        let Ok(path) = read_path(question, argument(question, at)) else {
            return Ok(Answer::Continue);
        };
        let temporary = opens && flags.contains(OFlags::TMPFILE);
        let root = OwnerRecord::file(who.users.files, who.groups.files).is_default();
        if root && !device && !temporary {
            // Only a folder that gives away its group makes a difference.
            let folder = Subject::Path {
                from,
                path: words(split(path.to_bytes()).0)?,
                follow: true,
            };
            if let Ok(None) = self.glance(question, &folder) {
                return Ok(Answer::Continue);
            }
        }
        let Ok(start) = self.start(question, from, &path) else {
            return Ok(Answer::Continue);
        };
        let Some(place) = Place::find(&start, temporary) else {
            return Ok(Answer::Continue);
        };
        let group = inherited_group(place.folder.as_fd()).unwrap_or(who.groups.files);
        let mut owner = OwnerRecord::file(who.users.files, group);
        if owner.is_default() && !device {
            return Ok(Answer::Continue);
        }
        let mode = Mode::from_raw_mode(mode & 0o7777 & !umask(question)?);
        let (folder, name) = (&place.folder, place.name.as_c_str());
        let made = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if opens {
            let fd = if temporary {
                start.open(&start.rest, flags, mode, resolve)?
            } else {
                let new = flags | OFlags::CREATE | OFlags::EXCL;
                match start.open(&start.rest, new, mode, resolve) {
                    Err(Errno::EXIST) if !flags.contains(OFlags::EXCL) => {
                        return Ok(Answer::Continue);
                    }
                    other => other?,
                }
            };
            self.save(fd.as_fd(), owner)?;
            let close_on_exec = flags.contains(OFlags::CLOEXEC);
            return Ok(Answer::Descriptor { fd, close_on_exec });
        }
        match call {
            Call::Mkdir | Call::MkdirAt => mkdirat(folder, name, mode)?,
            Call::Symlink | Call::SymlinkAt => {
                symlinkat(read_path(question, argument(question, 0))?, folder, name)?;
            }
            _ if device => {
                let number = word(question, at + 2);
                owner.device = Some(Device {
                    block: kind == FileType::BlockDevice,
                    major: rustix::fs::major(number.into()),
                    minor: rustix::fs::minor(number.into()),
                });
                mknodat(folder, name, FileType::RegularFile, mode, 0)?;
            }
            _ if matches!(kind, FileType::Unknown) => {
                mknodat(folder, name, FileType::RegularFile, mode, 0)?;
            }
            _ => mknodat(folder, name, kind, mode, 0)?,
        }
        let fd = openat(folder, name, made, Mode::empty())?;
        self.save(fd.as_fd(), owner)?;
        Ok(Answer::Value(0))
    }
}

impl Place {
    /// The folder that a new file at the path is made in, and its name; the folder itself for a file without name.
    /// `None` where there is no such folder or no proper name.
    fn find(start: &Start, temporary: bool) -> Option<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let open = |path: &CStr| {
            start
                .open(path, flags, Mode::empty(), ResolveFlags::empty())
                .ok()
        };
        if temporary {
            return Some(Self {
                folder: open(&start.rest)?,
                name: CString::default(),
            });
        }
        let (folder, name) = split(start.rest.to_bytes());
        if matches!(name, b"" | b"." | b"..") {
            return None;
        }
        Some(Self {
            folder: open(&CString::new(folder).ok()?)?,
            name: CString::new(name).ok()?,
        })
    }
}

/// The folder of a path, and the last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|&byte| byte != b'/');
    let path = &path[..end.map_or(0, |end| end + 1)];
    match path.iter().rposition(|&byte| byte == b'/') {
        None => (b".", path),
        Some(slash) => (&path[..=slash], &path[slash + 1..]),
    }
}

/// The group that a folder gives what is made in it.
fn inherited_group(folder: BorrowedFd<'_>) -> Option<u32> {
    let record = attribute(&by_descriptor(folder).ok()?, true)?;
    let stat = look(folder, StatxFlags::MODE).ok()?;
    Mode::from_raw_mode(stat.stx_mode.into())
        .contains(Mode::SGID)
        .then_some(record.gid)
}

fn umask(question: &Question) -> Result<u32> {
    let status = std::fs::read_to_string(format!("{}/status", question.pid));
    let status = status.map_err(|_| Errno::SRCH)?;
    let umask = status.lines().find_map(|line| line.strip_prefix("Umask:"));
    umask
        .and_then(|digits| u32::from_str_radix(digits.trim(), 8).ok())
        .ok_or(Errno::SRCH)
}

/// Puts a copy in the place of a link or fifo.
fn replace(fd: BorrowedFd<'_>, stat: &Statx) -> Option<Statx> {
    // Seen from the supervisor's root, which is the container's.
    let path = readlinkat(CWD, by_descriptor(fd).ok()?, Vec::new()).ok()?;
    let path = path.into_bytes();
    let slash = path.iter().rposition(|&byte| byte == b'/')?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = openat(CWD, &path[..=slash], flags, Mode::empty()).ok()?;
    let name = &path[slash + 1..];
    let new = format!(".kiln-{}", stat.stx_ino);
    match FileType::from_raw_mode(stat.stx_mode.into()) {
        FileType::Symlink => {
            let target = readlinkat(fd, c"", Vec::new()).ok()?;
            symlinkat(target, &folder, &new).ok()?;
        }
        FileType::Fifo => {
            let mode = Mode::from_raw_mode(stat.stx_mode.into());
            mknodat(&folder, &new, FileType::Fifo, mode, 0).ok()?;
        }
        _ => return None,
    }
    let times = Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: rustix::fs::UTIME_OMIT,
        },
        last_modification: Timespec {
            tv_sec: stat.stx_mtime.tv_sec,
            tv_nsec: stat.stx_mtime.tv_nsec.into(),
        },
    };
    let finish = || {
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        utimensat(&folder, &new, &times, nofollow)?;
        let stat = statx(&folder, &new, nofollow, KEY)?;
        renameat_with(&folder, &new, &folder, name, RenameFlags::empty())?;
        Ok::<_, Errno>(stat)
    };
    let replaced = finish();
    if replaced.is_err() {
        let _ = rustix::fs::unlinkat(&folder, &new, AtFlags::empty());
    }
    replaced.ok()
}
