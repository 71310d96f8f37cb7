//! A case: a Dockerfile, a context, options, and what Kiln must say where the build fails.
//!
//! A case is one text file. What stands before the first section says what the case shows. `=== NAME` starts a section
//! about the build, `--- PATH` a file of the context:
//!
//! ```text
//! A pattern without a match is no error next to a source that is there.
//! === Dockerfile
//! FROM scratch
//! COPY a no* /
//! === args
//! --build-arg
//! WHERE={dir}
//! --- a | mode=4755 xattr:user.x=1 uid=3 gid=4 eol=no
//! content; eol=no takes the last line's end away, hex says that it is in hexadecimal digits
//! --- folder/
//! --- link -> target
//! --- other = a
//! --- pipe | fifo
//! --- files.tgz | tar gz
//! folder/file | mode=0600 : content\n
//! ```
//!
//! Sections: `Dockerfile`, `args` (one argument a line; `{dir}` is the context), `env` (`NAME=VALUE`), `fails` (texts that
//! Kiln's message contains; it must fail), `docker differs` (why docker is not right here; the result then stands in the
//! section `expected`, in the form of a golden file), `known bug` (what Kiln does wrong; the case must not pass), `needs
//! root` (why a plain user cannot build it).

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use rustix::fs::{CWD, Gid, Mode, Uid, XattrFlags};
use sha2::{Digest as _, Sha256};

/// A case of the conformance suite.
#[derive(Debug, Clone, Default)]
pub struct Case {
    /// The folder that it is in.
    pub group: String,
    /// The name of its file.
    pub name: String,
    /// Arguments of `build` before the context; `{dir}` stands for it.
    pub args: Vec<String>,
    /// Variables for the command.
    pub env: Vec<(String, String)>,
    /// The build must fail, and the message contains these.
    pub fails: Option<Vec<String>>,
    /// What comes out where docker is not the judge.
    pub expected: Option<String>,
    /// What Kiln does wrong: the case must not pass.
    pub known_bug: Option<String>,
    /// A plain user cannot build it.
    pub needs_root: bool,
    dockerfile: String,
    files: Vec<Entry>,
    path: PathBuf,
    built_from: Sha256,
}

/// A file of the context, or of an archive.
#[derive(Debug, Clone, Default)]
struct Entry {
    path: String,
    link: Option<String>,
    hard: Option<String>,
    folder: bool,
    fifo: bool,
    mode: Option<u32>,
    owner: (u32, u32),
    xattrs: Vec<(String, String)>,
    content: Vec<u8>,
    hex: bool,
    no_eol: bool,
    tar: bool,
    gz: bool,
}

impl Case {
    /// All cases whose `group/name` contains `filter`, in order.
    pub fn all(folder: &Path, filter: &str) -> Result<Vec<Self>> {
        let mut cases = Vec::new();
        for group in sorted(folder)?.into_iter().filter(|path| path.is_dir()) {
            for path in sorted(&group)? {
                if path.extension().is_some_and(|ending| ending == "case") {
                    let case = Self::read(&path)
                        .with_context(|| format!("in the case {}", path.display()))?;
                    if case.title().contains(filter) {
                        cases.push(case);
                    }
                }
            }
        }
        Ok(cases)
    }

    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path)?;
        let part = |path: Option<&std::ffi::OsStr>| {
            path.unwrap_or_default().to_string_lossy().into_owned()
        };
        let mut case = Self::parse(&text)?;
        case.group = part(path.parent().and_then(Path::file_name));
        case.name = part(path.file_stem());
        path.clone_into(&mut case.path);
        Ok(case)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut case = Self::default();
        let mut differs = false;
        for (header, body) in sections(text) {
            let lines = || body.lines().map(str::to_owned).collect::<Vec<_>>();
            if !matches!(
                header,
                "=== fails"
                    | "=== docker differs"
                    | "=== expected"
                    | "=== known bug"
                    | "=== needs root"
            ) {
                case.built_from.update(header);
                case.built_from.update(&body);
            }
            match header.split_at(4) {
                ("=== ", "Dockerfile") => case.dockerfile = body,
                ("=== ", "args") => case.args = lines(),
                ("=== ", "env") => {
                    for line in body.lines() {
                        let (name, value) = line.split_once('=').context("expected NAME=VALUE")?;
                        case.env.push((name.to_owned(), value.to_owned()));
                    }
                }
                ("=== ", "fails") => case.fails = Some(lines()),
                ("=== ", "docker differs") => {
                    ensure!(!body.trim().is_empty(), "`docker differs` needs a reason");
                    differs = true;
                }
                ("=== ", "known bug") => case.known_bug = Some(body.trim().to_owned()),
                ("=== ", "needs root") => case.needs_root = true,
                ("=== ", "expected") => case.expected = Some(body),
                ("--- ", header) => {
                    let mut entry = Entry::parse(header)?;
                    entry.content = body.into_bytes();
                    case.files.push(entry);
                }
                _ => bail!("unknown section {header:?}"),
            }
        }
        let expected = case.expected.is_some() || case.fails.is_some();
        ensure!(
            !differs || expected,
            "`docker differs` needs `expected` or `fails`"
        );
        ensure!(
            differs || case.expected.is_none(),
            "`expected` without `docker differs`: the golden file is docker's to write"
        );
        if differs && case.expected.is_none() {
            case.expected = Some(super::FAILS.to_owned());
        }
        Ok(case)
    }

    /// `group/name`.
    pub fn title(&self) -> String {
        format!("{}/{}", self.group, self.name)
    }

    /// The golden file beside it.
    pub fn golden(&self) -> PathBuf {
        self.path.with_extension("golden")
    }

    /// The hash of all that goes into the build, shortened: a golden file says which text it was made of.
    pub fn hash(&self) -> String {
        let hash = self.built_from.clone().finalize();
        hash.iter().take(6).fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
    }

    /// The arguments with `dir` for the context.
    pub fn args_in(&self, dir: &Path) -> Vec<String> {
        let dir = dir.to_string_lossy();
        let filled = self.args.iter().map(|arg| arg.replace("{dir}", &dir));
        filled.chain([dir.to_string()]).collect()
    }

    /// Makes the context in an empty folder. With an owner all files of it are given to that one.
    pub fn write(&self, folder: &Path, owner: Option<(u32, u32)>) -> Result<()> {
        if !self.dockerfile.is_empty() {
            fs::write(folder.join("Dockerfile"), &self.dockerfile)?;
        }
        for entry in &self.files {
            entry
                .write(folder, owner.unwrap_or(entry.owner))
                .with_context(|| format!("cannot make {}", entry.path))?;
        }
        // The modes of folders last: they may forbid what happens below.
        for entry in self.files.iter().filter(|entry| entry.folder) {
            let mode = fs::Permissions::from_mode(entry.mode.unwrap_or(0o755));
            fs::set_permissions(folder.join(&entry.path), mode)?;
        }
        Ok(())
    }
}

impl Entry {
    /// `PATH [-> TARGET | = OTHER] [| ATTRIBUTE...]`
    fn parse(header: &str) -> Result<Self> {
        let (name, attributes) = header.split_once(" | ").unwrap_or((header, ""));
        let mut entry = Self::default();
        let path = if let Some((path, target)) = name.split_once(" -> ") {
            entry.link = Some(target.to_owned());
            path
        } else if let Some((path, other)) = name.split_once(" = ") {
            entry.hard = Some(other.to_owned());
            path
        } else {
            entry.folder = name.ends_with('/');
            name
        };
        path.clone_into(&mut entry.path);
        for attribute in attributes.split_whitespace() {
            match attribute.split_once('=').unwrap_or((attribute, "")) {
                ("mode", mode) => entry.mode = Some(u32::from_str_radix(mode, 8)?),
                ("uid", id) => entry.owner.0 = id.parse()?,
                ("gid", id) => entry.owner.1 = id.parse()?,
                ("eol", "no") => entry.no_eol = true,
                ("hex", _) => entry.hex = true,
                ("fifo", _) => entry.fifo = true,
                ("tar", _) => entry.tar = true,
                ("gz", _) => entry.gz = true,
                (name, value) => match name.strip_prefix("xattr:") {
                    Some(name) => entry.xattrs.push((name.to_owned(), value.to_owned())),
                    None => bail!("unknown attribute {attribute:?} of {path}"),
                },
            }
        }
        Ok(entry)
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = if self.tar {
            self.archive()?
        } else if self.hex {
            let digits: String = String::from_utf8_lossy(&self.content)
                .split_whitespace()
                .collect();
            let pairs = (0..digits.len() / 2).map(|at| &digits[2 * at..2 * at + 2]);
            pairs
                .map(|pair| u8::from_str_radix(pair, 16))
                .collect::<Result<_, _>>()?
        } else {
            self.content.clone()
        };
        if self.no_eol {
            bytes.pop();
        }
        if self.gz {
            let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packed.write_all(&bytes)?;
            bytes = packed.finish()?;
        }
        Ok(bytes)
    }

    fn write(&self, folder: &Path, owner: (u32, u32)) -> Result<()> {
        let path = folder.join(&self.path);
        let parent = path.parent().context("a file is below the context")?;
        fs::create_dir_all(parent)?;
        let mode = self.mode.unwrap_or(0o644);
        if let Some(target) = &self.link {
            symlink(target, &path)?;
        } else if let Some(other) = &self.hard {
            fs::hard_link(folder.join(other), &path)?;
            return Ok(());
        } else if self.folder {
            fs::create_dir_all(&path)?;
        } else if self.fifo {
            rustix::fs::mkfifoat(CWD, &path, Mode::from_raw_mode(mode))?;
        } else {
            fs::write(&path, self.bytes()?)?;
        }
        if owner != (0, 0) {
            let (uid, gid) = (Uid::from_raw(owner.0), Gid::from_raw(owner.1));
            rustix::fs::chownat(
                CWD,
                &path,
                Some(uid),
                Some(gid),
                rustix::fs::AtFlags::SYMLINK_NOFOLLOW,
            )?;
        }
        if self.link.is_none() && !self.folder {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        for (name, value) in &self.xattrs {
            rustix::fs::lsetxattr(&path, name.as_str(), value.as_bytes(), XattrFlags::empty())?;
        }
        Ok(())
    }

    /// A tar of the entries that the content lists, one a line: a header as in a case, then ` : ` and the content, in
    /// which `\n` is an end of line. `global NAME=VALUE` is a global header.
    fn archive(&self) -> Result<Vec<u8>> {
        let mut builder = tar::Builder::new(Vec::new());
        for line in std::str::from_utf8(&self.content)?.lines() {
            if let Some(record) = line.strip_prefix("global ") {
                global(&mut builder, record)?;
                continue;
            }
            let (header, content) = line.split_once(" : ").unwrap_or((line, ""));
            let entry = Self::parse(header)?;
            let content = content.replace("\\n", "\n").into_bytes();
            entry.append(&mut builder, &content)?;
        }
        Ok(builder.into_inner()?)
    }

    fn append(&self, builder: &mut tar::Builder<Vec<u8>>, content: &[u8]) -> Result<()> {
        let pax: Vec<(String, &[u8])> = self
            .xattrs
            .iter()
            .map(|(name, value)| (format!("SCHILY.xattr.{name}"), value.as_bytes()))
            .collect();
        builder.append_pax_extensions(pax.iter().map(|(name, value)| (name.as_str(), *value)))?;
        let mut header = tar::Header::new_gnu();
        let (kind, mode) = match self {
            Self { link: Some(_), .. } => (tar::EntryType::Symlink, 0o777),
            Self { hard: Some(_), .. } => (tar::EntryType::Link, 0o644),
            Self { folder: true, .. } => (tar::EntryType::Directory, 0o755),
            Self { fifo: true, .. } => (tar::EntryType::Fifo, 0o644),
            _ => (tar::EntryType::Regular, 0o644),
        };
        header.set_entry_type(kind);
        header.set_mode(self.mode.unwrap_or(mode));
        header.set_uid(self.owner.0.into());
        header.set_gid(self.owner.1.into());
        header.set_mtime(1_000_000_000);
        header.set_size(content.len() as u64);
        // Written as it is: an archive may hold names that the safe way refuses.
        name(
            &mut header.as_gnu_mut().context("made so")?.name,
            &self.path,
        )?;
        if let Some(target) = self.link.as_ref().or(self.hard.as_ref()) {
            name(
                &mut header.as_gnu_mut().context("made so")?.linkname,
                target,
            )?;
        }
        header.set_cksum();
        builder.append(&header, content)?;
        Ok(())
    }
}

fn name(field: &mut [u8], name: &str) -> Result<()> {
    let bytes = Path::new(name).as_os_str().as_bytes();
    let place = field
        .get_mut(..bytes.len())
        .context("the name is too long")?;
    place.copy_from_slice(bytes);
    Ok(())
}

fn global(builder: &mut tar::Builder<Vec<u8>>, record: &str) -> Result<()> {
    // The length counts its own digits: two, for all that a case needs.
    let text = format!("{} {record}\n", record.len() + 4);
    ensure!(
        text.len() == record.len() + 4,
        "a global header of 10 to 99 bytes"
    );
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::XGlobalHeader);
    header.set_path("pax_global_header")?;
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder.append(&header, text.as_bytes())?;
    Ok(())
}

fn sorted(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries =
        fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

/// Headers and what follows each.
fn sections(text: &str) -> Vec<(&str, String)> {
    let mut found: Vec<(&str, String)> = Vec::new();
    for line in text.split_inclusive('\n') {
        if line.starts_with("=== ") || line.starts_with("--- ") {
            found.push((line.trim_end_matches('\n'), String::new()));
        } else if let Some((_, body)) = found.last_mut() {
            body.push_str(line);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_read() {
        let case = Case::parse(
            "About.\n=== Dockerfile\nFROM scratch\n=== args\n--x\n{dir}/y\n=== env\nA=b=c\n=== fails\nwhy\n\
             --- a b | mode=4755 eol=no\ntext\n--- d/\n--- l -> a b\n",
        )
        .expect("well formed");
        assert_eq!(case.args_in(Path::new("/c")), ["--x", "/c/y", "/c"]);
        assert_eq!(case.env, [("A".to_owned(), "b=c".to_owned())]);
        assert_eq!(case.fails, Some(vec!["why".to_owned()]));
        assert_eq!(case.files.len(), 3);
        assert_eq!(case.files[0].bytes().expect("text"), b"text");
        assert_eq!(case.files[0].mode, Some(0o4755));
        assert!(case.files[1].folder);
        assert_eq!(case.files[2].link.as_deref(), Some("a b"));
    }

    #[test]
    fn only_what_is_built_is_in_the_hash() {
        let hash = |text| Case::parse(text).expect("well formed").hash();
        let first = hash("a\n=== Dockerfile\nFROM scratch\n=== fails\nx\n");
        assert_eq!(
            first,
            hash("b\n=== Dockerfile\nFROM scratch\n=== fails\ny\n")
        );
        assert_ne!(
            first,
            hash("a\n=== Dockerfile\nFROM busybox\n=== fails\nx\n")
        );
    }

    #[test]
    fn docker_is_contradicted_only_with_a_reason() {
        for text in [
            "=== Dockerfile\nFROM scratch\n=== expected\nx\n",
            "=== Dockerfile\nFROM scratch\n=== docker differs\n\n=== expected\nx\n",
            "=== Dockerfile\nFROM scratch\n=== docker differs\nbecause\n",
            "=== else\n",
            "--- a | colour=red\n",
        ] {
            assert!(Case::parse(text).is_err(), "{text}");
        }
    }
}
