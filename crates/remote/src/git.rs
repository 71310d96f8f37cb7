//! Git repositories.

use std::fs::{self, File, FileTimes, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, SystemTime};

use kiln_registry::Observer;

use crate::program::GitProgram;
use crate::{Remote, RemoteError, Scratch, entry_name};

/// A repository, what is wanted of it, and where in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GitAddress {
    /// What `git` fetches from.
    pub remote: String,
    /// Branch, tag or commit; empty for the default branch.
    pub reference: String,
    /// The folder, relative; empty for all.
    pub folder: String,
}

impl GitAddress {
    /// Reads `REMOTE[#REFERENCE[:FOLDER]]`.
    pub fn parse(text: &str) -> Self {
        let (remote, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (reference, folder) = fragment.split_once(':').unwrap_or((fragment, ""));
        Self {
            remote: remote.to_owned(),
            reference: reference.to_owned(),
            folder: folder.trim_matches('/').to_owned(),
        }
    }

    /// The host, with its port, of a repository that is reached by http or https.
    pub fn web_host(&self) -> Option<&str> {
        let (scheme, rest) = self.remote.split_once("://")?;
        let authority = rest.split('/').next()?;
        let host = authority
            .rsplit_once('@')
            .map_or(authority, |(_, host)| host);
        matches!(scheme, "http" | "https").then_some(host)
    }

    /// The addresses that may see what this one is shown: the repository, and all others of the largest host, where
    /// submodules often are in a repository beside it.
    fn scope(&self) -> &str {
        let hosts = ["https://github.com/", "https://www.github.com/"];
        let host = hosts.iter().find(|host| self.remote.starts_with(**host));
        host.map_or(self.remote.as_str(), |host| *host)
    }

    /// `git` with what this repository is shown. It goes by the environment, since everyone can see arguments.
    fn program(&self, git: &GitProgram, access: &GitAccess) -> GitProgram {
        let mut git = git.clone();
        if let (Some(value), Some(_)) = (&access.authorization, self.web_host()) {
            let header = format!("Authorization: {value}");
            for (name, value) in [
                ("GIT_CONFIG_COUNT", "1".to_owned()),
                (
                    "GIT_CONFIG_KEY_0",
                    format!("http.{}.extraheader", self.scope()),
                ),
                ("GIT_CONFIG_VALUE_0", header),
            ] {
                git.env.push((name.to_owned(), value.into()));
            }
        }
        if let Some(socket) = &access.ssh_agent {
            git.env.push(("SSH_AUTH_SOCK".to_owned(), socket.into()));
        }
        git
    }

    /// The reference to ask for.
    fn wanted(&self) -> &str {
        if self.reference.is_empty() {
            "HEAD"
        } else {
            &self.reference
        }
    }

    /// The remote as messages show it: without a password.
    fn shown(&self) -> String {
        let Some((scheme, rest)) = self.remote.split_once("://") else {
            return self.remote.clone();
        };
        match rest.split_once('@') {
            Some((user, host)) if !user.contains('/') && user.contains(':') => {
                let user = user.split(':').next().unwrap_or_default();
                format!("{scheme}://{user}:xxxxx@{host}")
            }
            _ => self.remote.clone(),
        }
    }
}

/// What a repository is shown, besides what the user's own configuration has for it.
#[derive(Clone, Default)]
pub struct GitAccess {
    /// The value of the header `Authorization`, for repositories on the web.
    pub authorization: Option<String>,
    /// The socket of the ssh agent, instead of the user's own.
    pub ssh_agent: Option<PathBuf>,
}

/// What a checkout of a commit holds.
#[derive(Debug, Clone, Copy, Default)]
pub struct Checkout {
    /// `.git`, too.
    pub keep_git_dir: bool,
    /// The repository alone, without its submodules.
    pub skip_submodules: bool,
    /// The time of the checkout as the files' times, instead of the commit's.
    pub checkout_times: bool,
}

/// What an address leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Commit {
    id: String,
    /// The id of the annotated tag that leads to it.
    tag: Option<String>,
}

impl Commit {
    /// Whether a checksum, which may be shortened, is this commit's or its tag's.
    fn matches(&self, checksum: &str) -> bool {
        let checksum = checksum.to_ascii_lowercase();
        [Some(&self.id), self.tag.as_ref()]
            .into_iter()
            .flatten()
            .any(|id| id.starts_with(&checksum))
    }
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

pub(crate) fn resolve(
    git: &GitProgram,
    address: &GitAddress,
    access: &GitAccess,
    checksum: Option<&str>,
    observer: &dyn Observer,
) -> Result<String, RemoteError> {
    let reference = address.reference.as_str();
    let commit = if is_commit(reference) {
        Commit {
            id: reference.to_ascii_lowercase(),
            tag: None,
        }
    } else {
        let wanted = address.wanted();
        let peeled = format!("{wanted}^{{}}");
        let args = ["ls-remote", "--", &address.remote, wanted, &peeled];
        let git = address.program(git, access);
        let listed = git.run(&address.shown(), Path::new("/"), &args, observer)?;
        choose(wanted, &listed).ok_or_else(|| RemoteError::NoReference {
            url: address.shown(),
            reference: wanted.to_owned(),
        })?
    };
    match checksum {
        Some(checksum) if !commit.matches(checksum) => Err(RemoteError::Checksum {
            what: format!("git repository {}", address.shown()),
            expected: checksum.to_owned(),
            got: commit.id,
        }),
        _ => Ok(commit.id),
    }
}

/// Chooses among the lines of `ls-remote` as `git checkout` does: the full name, then branches, then tags.
fn choose(wanted: &str, listed: &str) -> Option<Commit> {
    let find = |name: &str| {
        let mut lines = listed.lines().filter_map(|line| line.split_once('\t'));
        lines
            .find(|(_, known)| *known == name)
            .map(|(id, _)| id.to_owned())
    };
    let names = [
        wanted.to_owned(),
        format!("refs/heads/{wanted}"),
        format!("refs/tags/{wanted}"),
        format!("refs/{wanted}"),
    ];
    names.into_iter().find_map(|name| {
        let id = find(&name)?;
        let (id, tag) = match find(&format!("{name}^{{}}")) {
            Some(commit) => (commit, Some(id)),
            None => (id, None),
        };
        Some(Commit { id, tag })
    })
}

pub(crate) fn checkout(
    remote: &Remote,
    address: &GitAddress,
    access: &GitAccess,
    commit: &str,
    how: Checkout,
    observer: &dyn Observer,
) -> Result<PathBuf, RemoteError> {
    let entry = entry_name(
        "git",
        &[
            ("remote", address.remote.as_bytes()),
            ("commit", commit.as_bytes()),
            ("folder", address.folder.as_bytes()),
            ("keep", &[u8::from(how.keep_git_dir)]),
            ("alone", &[u8::from(how.skip_submodules)]),
            ("now", &[u8::from(how.checkout_times)]),
        ],
    );
    if let Some(tree) = remote.find(&entry) {
        return Ok(tree);
    }
    let work = Scratch::new(remote)?;
    let clone = Clone {
        git: &address.program(&remote.git, access),
        url: address.shown(),
        folder: &work.path,
        observer,
    };
    clone.fetch(address, commit)?;
    clone.run(&["checkout", "-q", "--detach", commit])?;
    if !how.skip_submodules && work.path.join(".gitmodules").exists() {
        let update = ["submodule", "update", "-q", "--init", "--recursive"];
        if clone.run(&[&update[..], &["--depth=1"]].concat()).is_err() {
            clone.run(&update)?;
        }
    }
    let time = if how.checkout_times {
        SystemTime::now()
    } else {
        let time = clone.run(&["show", "-s", "--format=%ct", commit])?;
        SystemTime::UNIX_EPOCH + Duration::from_secs(time.trim().parse().unwrap_or(0))
    };
    let wanted = below(&work.path, &address.folder).ok_or_else(|| RemoteError::NoFolder {
        url: address.shown(),
        folder: address.folder.clone(),
        commit: commit.to_owned(),
    })?;
    let tidied = if how.keep_git_dir {
        forget_fetch(&work.path)
    } else {
        Ok(())
    };
    tidied
        .and_then(|()| tidy(&wanted, how.keep_git_dir, time))
        .map_err(RemoteError::keep(&wanted))?;
    remote.make(&entry, |tree| {
        let moved = (|| {
            if how.keep_git_dir && wanted != work.path {
                fs::rename(work.path.join(".git"), tree.join(".git"))?;
            }
            for entry in fs::read_dir(&wanted)? {
                let entry = entry?;
                fs::rename(entry.path(), tree.join(entry.file_name()))?;
            }
            fs::set_permissions(tree, Permissions::from_mode(0o755))?;
            File::open(tree)?.set_modified(time)
        })();
        moved.map_err(RemoteError::keep(tree))
    })
}

/// The folder of a checkout that a relative path leads to without any link, so never out of it.
fn below(root: &Path, folder: &str) -> Option<PathBuf> {
    let mut at = root.to_owned();
    for component in Path::new(folder).components() {
        match component {
            Component::Normal(name) => at.push(name),
            Component::CurDir => continue,
            _ => return None,
        }
        let meta = fs::symlink_metadata(&at).ok()?;
        if !meta.is_dir() {
            return None;
        }
    }
    Some(at)
}

/// A repository in the making.
struct Clone<'a> {
    git: &'a GitProgram,
    url: String,
    folder: &'a Path,
    observer: &'a dyn Observer,
}

impl Clone<'_> {
    fn run(&self, args: &[&str]) -> Result<String, RemoteError> {
        self.git.run(&self.url, self.folder, args, self.observer)
    }

    /// Brings the commit, and no more than it where the server can do that.
    fn fetch(&self, address: &GitAddress, commit: &str) -> Result<(), RemoteError> {
        let format = if commit.len() == 64 { "sha256" } else { "sha1" };
        self.run(&["init", "-q", &format!("--object-format={format}"), "."])?;
        self.run(&["remote", "add", "--", "origin", &address.remote])?;
        let alone = ["fetch", "-q", "--depth=1", "--no-tags", "--", "origin"];
        let everything = [
            "fetch",
            "-q",
            "--tags",
            "origin",
            "+refs/heads/*:refs/remotes/origin/*",
        ];
        // Servers may give commits only by the names that lead to them, and the simplest ones give only everything.
        let by_id = [&alone[..], &[commit]].concat();
        let by_name = [&alone[..], &[address.wanted()]].concat();
        for args in [by_id, by_name] {
            match self.run(&args) {
                Ok(_) if self.has(commit)? => return Ok(()),
                Err(error) if error.is_canceled() => return Err(error),
                Ok(_) | Err(_) => {}
            }
        }
        self.run(&everything)?;
        if self.has(commit)? {
            return Ok(());
        }
        Err(RemoteError::NoReference {
            url: self.url.clone(),
            reference: commit.to_owned(),
        })
    }

    fn has(&self, commit: &str) -> Result<bool, RemoteError> {
        let object = format!("{commit}^{{commit}}");
        match self.run(&["cat-file", "-e", &object]) {
            Ok(_) => Ok(true),
            Err(error) if error.is_canceled() => Err(error),
            Err(_) => Ok(false),
        }
    }
}

/// Removes what only tells when and how a repository was fetched.
fn forget_fetch(root: &Path) -> io::Result<()> {
    let git = root.join(".git");
    for name in ["FETCH_HEAD", "ORIG_HEAD", "logs", "hooks"] {
        let path = git.join(name);
        let removed = if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// Gives everything the modes that git knows, whatever the umask was, and one time; takes `.git` away.
fn tidy(folder: &Path, keep_git_dir: bool, time: SystemTime) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let (path, meta) = (entry.path(), entry.metadata()?);
        if entry.file_name() == ".git" && !keep_git_dir {
            if meta.is_dir() {
                fs::remove_dir_all(&path)?;
            } else {
                fs::remove_file(&path)?;
            }
        } else if meta.is_dir() {
            fs::set_permissions(&path, Permissions::from_mode(0o755))?;
            tidy(&path, keep_git_dir, time)?;
            File::open(&path)?.set_modified(time)?;
        } else if meta.is_file() {
            let mode = if meta.permissions().mode() & 0o100 == 0 {
                0o644
            } else {
                0o755
            };
            fs::set_permissions(&path, Permissions::from_mode(mode))?;
            let file = OpenOptions::new()
                .read(true)
                .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits() as i32)
                .open(&path)?;
            file.set_times(FileTimes::new().set_modified(time))?;
        } else {
            let time = time
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap_or_default();
            let time = rustix::fs::Timespec {
                tv_sec: time.as_secs() as i64,
                tv_nsec: time.subsec_nanos().into(),
            };
            let times = rustix::fs::Timestamps {
                last_access: time,
                last_modification: time,
            };
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, remote, reference, folder) in [
            ("https://h/r.git", "https://h/r.git", "", ""),
            ("https://h/r.git#v1", "https://h/r.git", "v1", ""),
            ("https://h/r.git#v1:a/b", "https://h/r.git", "v1", "a/b"),
            ("git@h:r.git#:/a/", "git@h:r.git", "", "a"),
        ] {
            let address = GitAddress::parse(text);
            let got = (
                address.remote.as_str(),
                address.reference.as_str(),
                address.folder.as_str(),
            );
            assert_eq!(got, (remote, reference, folder), "{text}");
        }
        let hidden = |text: &str| GitAddress::parse(text).shown();
        assert_eq!(hidden("https://u:p@h/r.git"), "https://u:xxxxx@h/r.git");
        assert_eq!(hidden("https://u@h/r.git"), "https://u@h/r.git");
        assert_eq!(hidden("git@h:r.git"), "git@h:r.git");
    }

    #[test]
    fn what_is_shown_goes_to_the_repository_alone() {
        let access = GitAccess {
            authorization: Some("basic x".to_owned()),
            ssh_agent: Some("/agent".into()),
        };
        let env = |text: &str| {
            let git = GitAddress::parse(text).program(&GitProgram::default(), &access);
            let text = |(name, value): (String, std::ffi::OsString)| {
                format!("{name}={}", value.to_string_lossy())
            };
            git.env.into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(env("git@h:r.git"), ["SSH_AUTH_SOCK=/agent"]);
        assert_eq!(
            env("https://u@h:1/r.git#main"),
            [
                "GIT_CONFIG_COUNT=1",
                "GIT_CONFIG_KEY_0=http.https://u@h:1/r.git.extraheader",
                "GIT_CONFIG_VALUE_0=Authorization: basic x",
                "SSH_AUTH_SOCK=/agent"
            ]
        );
        let known = "GIT_CONFIG_KEY_0=http.https://github.com/.extraheader";
        assert!(env("https://github.com/a/b.git").contains(&known.to_owned()));
        let host = |text: &str| GitAddress::parse(text).web_host().map(str::to_owned);
        assert_eq!(host("https://u:p@h:1/r.git"), Some("h:1".to_owned()));
        assert_eq!(host("ssh://h/r.git"), None);
    }

    #[test]
    fn references_are_chosen_as_git_does() {
        let listed = "1\trefs/heads/v1\n2\trefs/tags/v1\n3\trefs/tags/v1^{}\n4\trefs/heads/x/v1\n\
                      5\trefs/tags/v2\n6\trefs/tags/v2^{}\n7\trefs/pull/9/head\n8\tHEAD\n";
        for (wanted, id, tag) in [
            ("v1", "1", None),
            ("refs/tags/v1", "3", Some("2")),
            ("v2", "6", Some("5")),
            ("pull/9/head", "7", None),
            ("HEAD", "8", None),
        ] {
            let commit = choose(wanted, listed).unwrap();
            assert_eq!(
                (commit.id.as_str(), commit.tag.as_deref()),
                (id, tag),
                "{wanted}"
            );
        }
        assert_eq!(choose("v3", listed), None);
    }

    #[test]
    fn folders_stay_in_the_checkout() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("a/b")).unwrap();
        std::os::unix::fs::symlink("/etc", root.path().join("out")).unwrap();
        fs::write(root.path().join("file"), "").unwrap();
        assert_eq!(below(root.path(), ""), Some(root.path().to_owned()));
        assert_eq!(below(root.path(), "./a/b"), Some(root.path().join("a/b")));
        for wrong in ["..", "a/../..", "out", "file", "/etc", "nope"] {
            assert_eq!(below(root.path(), wrong), None, "{wrong}");
        }
    }
}
