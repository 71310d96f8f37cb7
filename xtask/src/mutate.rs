//! `cargo xtask mutate`: proof that the conformance cases can fail. Named places of the language and the copy code are
//! broken one at a time, in a copy of the sources, and each must turn cases red.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, ensure};

use crate::conformance;
use crate::machine::Kiln;
use crate::process::{command, output};
use crate::{say, target_dir, workspace};

/// A place, and what is wrong with it once it is broken.
struct Mutation {
    name: &'static str,
    /// Relative to the workspace.
    file: &'static str,
    /// Occurs in the file exactly once.
    old: &'static str,
    new: &'static str,
    /// The groups of cases that are to notice.
    groups: &'static [&'static str],
}

const MUTATIONS: [Mutation; 10] = [
    Mutation {
        name: "${x-word} takes an empty variable for an unset one",
        file: "crates/dockerfile/src/expand.rs",
        old: "!(empty_is_unset && value.is_empty())",
        new: "!value.is_empty()",
        groups: &["args", "env"],
    },
    Mutation {
        name: r"\$ means nothing within double quotes",
        file: "crates/dockerfile/src/expand.rs",
        old: r#"matches!(next, '"' | '$')"#,
        new: r#"matches!(next, '"')"#,
        groups: &["args", "env"],
    },
    Mutation {
        name: "comments between continued lines are part of the instruction",
        file: "crates/dockerfile/src/lexer.rs",
        old: "if start.starts_with('#') {",
        new: "if start.starts_with(\"\\0\") {",
        groups: &["run", "errors", "env"],
    },
    Mutation {
        name: "bodies of heredocs with a quoted name are expanded",
        file: "crates/dockerfile/src/heredoc.rs",
        old: "expand: quoted.text == name,",
        new: "expand: true,",
        groups: &["heredoc"],
    },
    Mutation {
        name: "the first pattern of .dockerignore decides, not the last",
        file: "crates/source/src/pattern.rs",
        old: "            if fits {",
        new: "            if fits && decided.is_none() {",
        groups: &["ignore"],
    },
    Mutation {
        name: "* stands for slashes, too",
        file: "crates/source/src/glob.rs",
        old: "(matches!(token, Token::Deep) || name[at] != b'/')",
        new: "name.get(at).is_some()",
        groups: &["ignore", "exclude", "copy"],
    },
    Mutation {
        name: "names of stages differ by case",
        file: "crates/frontend/src/stages.rs",
        old: ".is_some_and(|known| known.eq_ignore_ascii_case(name))",
        new: ".is_some_and(|known| known == name)",
        groups: &["stages", "from"],
    },
    Mutation {
        name: "parents of a destination belong to root whatever --chown says",
        file: "crates/fileop/src/copy.rs",
        old: "owner: self.owner.unwrap_or((0, 0)),",
        new: "owner: (0, 0),",
        groups: &["copy"],
    },
    Mutation {
        name: "hard links are copied as files of their own",
        file: "crates/fileop/src/copy.rs",
        old: "self.links.insert(group, at);",
        new: "let _ = (group, at);",
        groups: &["copy"],
    },
    Mutation {
        name: "names of an archive may begin with ..",
        file: "crates/fileop/src/unpack.rs",
        old: "if climbs(name) {",
        new: "if climbs(name) && name.is_empty() {",
        groups: &["add"],
    },
];

/// The command: which cases each mutation turns red. Code 1 if one survives.
pub fn run() -> Result<ExitCode> {
    let sources = Sources::prepare()?;
    let kiln = sources.build()?;
    ensure!(
        conformance::failing(&kiln, &sources.cases(), &all_groups())?.is_empty(),
        "cases fail already; see `cargo xtask conformance`"
    );
    let mut survivors = 0;
    for mutation in &MUTATIONS {
        let broken = sources.broken(mutation)?;
        let red = sources
            .with(mutation.file, &broken, || {
                conformance::failing(&sources.build()?, &sources.cases(), mutation.groups)
            })
            .with_context(|| format!("in the mutation {:?}", mutation.name))?;
        survivors += usize::from(red.is_empty());
        say(&format!("{:66} {:3} red", mutation.name, red.len()));
        for case in red {
            say(&format!("    {case}"));
        }
    }
    say(&format!(
        "{} mutations: {} noticed, {survivors} survived",
        MUTATIONS.len(),
        MUTATIONS.len() - survivors
    ));
    Ok(if survivors == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn all_groups() -> Vec<&'static str> {
    let groups = MUTATIONS.iter().flat_map(|mutation| mutation.groups);
    let groups: BTreeSet<&str> = groups.copied().collect();
    groups.into_iter().collect()
}

/// A copy of the workspace, kept for the next time together with what was compiled of it.
struct Sources {
    copy: PathBuf,
    target: PathBuf,
}

impl Sources {
    fn prepare() -> Result<Self> {
        let folder = target_dir().join("mutate");
        let sources = Self {
            copy: folder.join("sources"),
            target: folder.join("target"),
        };
        fs::create_dir_all(&sources.copy)?;
        for part in ["Cargo.toml", "Cargo.lock", "crates", "xtask"] {
            mirror(&workspace().join(part), &sources.copy.join(part))
                .with_context(|| format!("cannot copy {part}"))?;
        }
        Ok(sources)
    }

    fn cases(&self) -> PathBuf {
        self.copy.join(conformance::CASES)
    }

    fn build(&self) -> Result<Kiln> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let args = ["build", "--quiet", "--locked", "--package", "kiln"].map(OsString::from);
        output(
            command(cargo, args)
                .current_dir(&self.copy)
                .env("CARGO_TARGET_DIR", &self.target),
        )?;
        Ok(Kiln::of(&self.target.join("debug/kiln")))
    }

    fn broken(&self, mutation: &Mutation) -> Result<String> {
        apply(
            mutation,
            &fs::read_to_string(self.copy.join(mutation.file))?,
        )
    }

    /// Does `work` while `file` has another text.
    fn with<T>(&self, file: &str, text: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let path = self.copy.join(file);
        let original = fs::read(&path)?;
        fs::write(&path, text)?;
        let done = work();
        fs::write(&path, original)?;
        done
    }
}

/// The text with the mutation in it.
fn apply(mutation: &Mutation, text: &str) -> Result<String> {
    let Mutation {
        name, file, old, ..
    } = mutation;
    let found = text.matches(old).count();
    ensure!(
        found == 1,
        "the place of {name:?} moved: {old:?} occurs {found} times in {file}"
    );
    Ok(text.replace(old, mutation.new))
}

/// Makes `to` the same as `from`. What is the same already keeps its time, so that it is not compiled again.
fn mirror(from: &Path, to: &Path) -> io::Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        let names = |folder: &Path| -> io::Result<BTreeSet<OsString>> {
            fs::read_dir(folder)?
                .map(|entry| Ok(entry?.file_name()))
                .collect()
        };
        let wanted = names(from)?;
        for name in names(to)?.difference(&wanted) {
            let path = to.join(name);
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        return wanted
            .iter()
            .try_for_each(|name| mirror(&from.join(name), &to.join(name)));
    }
    let content = fs::read(from)?;
    if fs::read(to).is_ok_and(|there| there == content) {
        return Ok(());
    }
    fs::write(to, content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_still_there() {
        for mutation in &MUTATIONS {
            let text = fs::read_to_string(workspace().join(mutation.file)).expect("a source file");
            let broken = apply(mutation, &text).expect("the place is there");
            assert_ne!(text, broken, "{}", mutation.name);
        }
    }

    #[test]
    fn the_groups_have_cases() {
        let cases = conformance::Case::all(&conformance::folder(), "").expect("well-formed cases");
        for group in all_groups() {
            assert!(cases.iter().any(|case| case.group == group), "{group}");
        }
    }

    #[test]
    fn a_place_that_moved_is_an_error() {
        let error = apply(&MUTATIONS[0], "something else").expect_err("not there");
        assert!(error.to_string().contains("occurs 0 times"), "{error}");
    }

    #[test]
    fn a_mirror_drops_what_is_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir_all(from.join("a")).expect("made");
        fs::write(from.join("a/x"), "1").expect("written");
        mirror(&from, &to).expect("mirrored");
        fs::rename(from.join("a"), from.join("b")).expect("renamed");
        mirror(&from, &to).expect("mirrored");
        assert!(!to.join("a").exists());
        assert_eq!(fs::read_to_string(to.join("b/x")).expect("there"), "1");
    }
}
