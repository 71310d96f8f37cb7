//! `docker-lines/lines`: command lines as tutorials have them, run by docker and by Kiln under docker's name.
//!
//! What docker printed is kept in `docker-lines/golden`; with `KILN_PEERS` docker runs them again and must still say so,
//! and with `KILN_RECORD` too the golden file is written anew.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use kiln_tests::{Kiln, Setting};
use xtask::compare::Peers;
use xtask::machine::is_root;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docker-lines")
}

/// How a line is compared, and the line.
fn lines() -> Vec<(char, String)> {
    let text = fs::read_to_string(folder().join("lines")).expect("committed");
    text.lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .map(|line| {
            let (mode, line) = line.split_once(' ').expect("a mode and a line");
            (mode.chars().next().expect("a mode"), line.to_owned())
        })
        .collect()
}

/// A copy of the context that is nobody's.
fn copy_context(to: &Path) {
    let copied = Command::new("cp")
        .arg("-r")
        .arg(folder().join("context").join("."))
        .arg(to)
        .status();
    assert!(copied.is_ok_and(|status| status.success()), "cp failed");
}

/// What lines say is the same for both but for this.
fn normalised(mode: char, text: &str) -> String {
    if mode == '?' {
        return String::new();
    }
    let mut out = String::new();
    let mut rest = text;
    // Ids: 64 or 12 hexadecimal digits that stand alone.
    while !rest.is_empty() {
        let hex = rest
            .find(|letter: char| !matches!(letter, '0'..='9' | 'a'..='f'))
            .unwrap_or(rest.len());
        let alone = !out.ends_with(|letter: char| letter.is_ascii_alphanumeric())
            && !rest[hex..].starts_with(|letter: char| letter.is_ascii_alphanumeric());
        if alone && (hex == 64 || hex == 12) {
            let _ = write!(out, "<{hex}>");
            rest = &rest[hex..];
            continue;
        }
        let next = rest.chars().next().map_or(0, char::len_utf8);
        let step = hex.max(next);
        out.push_str(&rest[..step]);
        rest = &rest[step..];
    }
    // The base may have been imported when the comment still named the file.
    out = out
        .split_inclusive('\n')
        .map(|line| match line.split_once("Imported from ") {
            Some((before, from)) => {
                let end = if from.ends_with('\n') { "\n" } else { "" };
                format!("{before}Imported from -{end}")
            }
            None => line.to_owned(),
        })
        .collect();
    for ago in ["Less than a second ago", "About a minute ago"] {
        out = out.replace(ago, "<ago>");
    }
    let mut words: Vec<String> = Vec::new();
    for word in out.split(' ') {
        words.push(word.to_owned());
        if let [.., number, unit, last] = &mut words[..]
            && last.starts_with("ago")
            && number.parse::<u32>().is_ok()
            && ["second", "minute", "hour"]
                .iter()
                .any(|known| unit.starts_with(known))
        {
            let tail = last["ago".len()..].to_owned();
            words.truncate(words.len() - 3);
            words.push(format!("<ago>{tail}"));
        }
    }
    out = words.join(" ");
    if mode == '~' {
        let mut lines: Vec<String> = out
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect();
        lines.sort();
        out = lines.join("\n");
    }
    out.trim_end().to_owned()
}

/// Runs all lines; the document has each with its exit code and what it printed.
fn document(run: &dyn Fn(&str) -> Command) -> String {
    let mut document = String::new();
    for (mode, line) in lines() {
        let mut command = run(&line);
        let output = command.stdin(Stdio::null()).output().expect("sh starts");
        let code = output.status.code().unwrap_or(-1);
        let stdout = String::from_utf8_lossy(&output.stdout);
        let _ = writeln!(document, "$ {line}");
        // What comes before and behind the lines themselves may fail or not.
        if mode != '?' {
            let _ = writeln!(document, "[{code}]");
        }
        let text = normalised(mode, &stdout);
        if !text.is_empty() {
            let _ = writeln!(document, "{text}");
        }
        document.push('\n');
    }
    document
}

/// What differs, line by line.
fn assert_same(ours: &str, theirs: &str, who: &str) {
    let parts = |text: &str| -> Vec<String> { text.split("\n\n$ ").map(str::to_owned).collect() };
    let (ours, theirs) = (parts(ours), parts(theirs));
    assert_eq!(
        ours.len(),
        theirs.len(),
        "another number of lines: record again"
    );
    let different: Vec<String> = ours
        .iter()
        .zip(&theirs)
        .filter(|(ours, theirs)| ours != theirs)
        .map(|(ours, theirs)| format!("--- {who}\n$ {ours}\n--- golden\n$ {theirs}\n"))
        .collect();
    assert!(different.is_empty(), "{}", different.join("\n"));
}

fn golden() -> String {
    fs::read_to_string(folder().join("golden")).unwrap_or_default()
}

#[test]
fn docker_says_what_is_recorded() {
    let Some(peers) = Peers::from_environment().filter(|_| is_root()) else {
        return;
    };
    let (folder_outside, inside) = peers.shared().expect("a folder in the peers' root");
    copy_context(folder_outside.path());
    let run = |line: &str| {
        let line = format!("cd {} && {line}", inside.display());
        peers.command(["sh", "-c", &line])
    };
    let found = document(&run);
    if std::env::var_os("KILN_RECORD").is_some() {
        fs::write(folder().join("golden"), found).expect("own checkout");
        return;
    }
    assert_same(&found, &golden(), "docker");
}

#[test]
fn kiln_says_what_docker_says() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let context = kiln.file("lines");
    let bin = kiln.file("bin");
    for folder in [&context, &bin] {
        fs::create_dir(folder).expect("own folder");
    }
    copy_context(&context);
    symlink(kiln.binary(), bin.join("docker")).expect("own folder");
    let run = |line: &str| {
        // The environment is that of the other tests.
        let mut command = kiln.wrapped(&["sh", "-c", line], &[]);
        command.env(
            "PATH",
            format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", bin.display()),
        );
        command.current_dir(&context);
        command
    };
    assert_same(&document(&run), &golden(), "kiln");
    kiln.leaves_nothing();
}
