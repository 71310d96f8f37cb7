//! The machine's own package sources, for Debian base images: which archives it may use is its owner's business.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::machine::read;

/// The release that the bases are made of.
pub(crate) const RELEASE: &str = "bookworm";

/// Where Debian packages come from on this machine.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Sources {
    /// The archive with the release itself.
    pub(crate) archive: String,
    /// Archive and suite of all its parts: the release, its updates, its security fixes.
    suites: Vec<(String, String)>,
}

impl Sources {
    /// Reads `sources.list` and `sources.list.d` below `etc/apt`.
    pub(crate) fn of_machine(etc_apt: &Path) -> Result<Self> {
        let mut found = Vec::new();
        let list = etc_apt.join("sources.list");
        if list.is_file() {
            found.extend(one_line_style(&read(&list)?));
        }
        let folder = etc_apt.join("sources.list.d");
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            let path = entry.path();
            match path.extension().and_then(|end| end.to_str()) {
                Some("list") => found.extend(one_line_style(&read(&path)?)),
                Some("sources") => found.extend(paragraph_style(&read(&path)?)),
                _ => {}
            }
        }
        found.sort();
        found.dedup();
        Self::choose(found).with_context(|| {
            format!(
                "no apt source of this machine has the Debian release {RELEASE} or its neighbour"
            )
        })
    }

    /// Keeps what belongs to the release. A machine with another Debian release has the same archives, so their suites
    /// are renamed.
    fn choose(found: Vec<(String, String)>) -> Option<Self> {
        const RELEASES: [&str; 4] = [RELEASE, "trixie", "forky", "sid"];
        let host = RELEASES
            .into_iter()
            .find(|release| found.iter().any(|(_, suite)| suite == release))?;
        let renamed = |suite: &str| match suite.strip_prefix(host) {
            Some(end @ ("" | "-updates" | "-security")) => Some(format!("{RELEASE}{end}")),
            _ => None,
        };
        let suites: Vec<(String, String)> = found
            .into_iter()
            .filter_map(|(uri, suite)| Some((uri, renamed(&suite)?)))
            .collect();
        let archive = suites.iter().find(|(_, suite)| suite == RELEASE)?.0.clone();
        Some(Self { archive, suites })
    }

    /// The text of `/etc/apt/sources.list` for the image.
    pub(crate) fn to_list(&self) -> String {
        let line = |(uri, suite): &(String, String)| format!("deb {uri} {suite} main\n");
        self.suites.iter().map(line).collect::<Vec<_>>().concat()
    }
}

/// `deb [options] URI SUITE COMPONENT...` lines.
fn one_line_style(text: &str) -> Vec<(String, String)> {
    let pair = |line: &str| {
        let mut words = line.split_whitespace();
        if words.next()? != "deb" {
            return None;
        }
        let mut word = words.next()?;
        if word.starts_with('[') {
            while !word.ends_with(']') {
                word = words.next()?;
            }
            word = words.next()?;
        }
        Some((word.to_owned(), words.next()?.to_owned()))
    };
    text.lines().filter_map(pair).collect()
}

/// `Key: value` paragraphs; every URI goes with every suite.
fn paragraph_style(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for paragraph in text.split("\n\n") {
        let field = |name: &str| -> Vec<&str> {
            let line = paragraph
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.map(|value| value.split_whitespace().collect())
                .unwrap_or_default()
        };
        if !field("Types").contains(&"deb") || field("Enabled") == ["no"] {
            continue;
        }
        for uri in field("URIs") {
            for suite in field("Suites") {
                found.push((uri.to_owned(), suite.to_owned()));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter()
            .map(|(uri, suite)| ((*uri).to_owned(), (*suite).to_owned()))
            .collect()
    }

    #[test]
    fn both_styles_are_read() {
        let lines = "# deb http://no.invalid x main\ndeb http://a.invalid/debian bookworm main\n\
                     deb [ arch=amd64 signed-by=/k.gpg ] http://b.invalid thing main\ndeb-src http://a.invalid s main\n";
        let expected = [
            ("http://a.invalid/debian", "bookworm"),
            ("http://b.invalid", "thing"),
        ];
        assert_eq!(one_line_style(lines), pairs(&expected));

        let paragraphs = "Types: deb\n# why\nURIs: http://a.invalid\nSuites: one two\nComponents: main\n\n\
                          Types: deb-src\nURIs: http://c.invalid\nSuites: x\n\n\
                          Types: deb\nEnabled: no\nURIs: http://d.invalid\nSuites: y\n";
        let expected = [("http://a.invalid", "one"), ("http://a.invalid", "two")];
        assert_eq!(paragraph_style(paragraphs), pairs(&expected));
    }

    #[test]
    fn only_the_release_is_kept_and_named_as_ours() {
        let found = pairs(&[
            ("http://m.invalid/debian", "trixie"),
            ("http://m.invalid/debian", "trixie-updates"),
            ("http://m.invalid/sec", "trixie-security"),
            ("http://m.invalid/debian", "trixie-backports"),
            ("http://other.invalid", "cloud-trixie"),
        ]);
        let sources = Sources::choose(found).expect("has a release");
        assert_eq!(sources.archive, "http://m.invalid/debian");
        assert_eq!(
            sources.to_list(),
            "deb http://m.invalid/debian bookworm main\ndeb http://m.invalid/debian bookworm-updates main\n\
             deb http://m.invalid/sec bookworm-security main\n"
        );
        assert_eq!(
            Sources::choose(pairs(&[("http://other.invalid", "stable-x")])),
            None
        );
    }
}
