//! Messages are read as one text: they begin in lower case and end without a full stop.

use std::fs;
use std::path::{Path, PathBuf};

/// What makes a message of the text behind it.
const MAKERS: [&str; 10] = [
    "#[error(",
    "with_hint(",
    "bail!(",
    "anyhow!(",
    "context(",
    "complain(",
    "Error::new(",
    "hint = ",
    "Refused(",
    "Nothing(",
];

/// docker's own words, which scripts may look for.
const DOCKERS: [&str; 2] = [
    "WARNING! Using --password via the CLI is insecure. Use --password-stdin.",
    "Unable to find image '{}' locally",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("own sources") {
        let path = entry.expect("own sources").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("tests.rs") {
            found.push(path);
        }
    }
}

/// The string that begins at the start of a text, after `format!(` and such.
fn literal(text: &str) -> Option<&str> {
    let start = text.trim_start_matches(|letter: char| letter.is_whitespace() || letter == '&');
    let start = start.strip_prefix("|| ").unwrap_or(start);
    let start = start.strip_prefix("format!(").unwrap_or(start).trim_start();
    let start = start.strip_prefix('"')?;
    let mut before = ' ';
    let end = start.find(|letter| {
        let ends = letter == '"' && before != '\\';
        before = if before == '\\' { ' ' } else { letter };
        ends
    })?;
    Some(&start[..end])
}

/// What is wrong with a message.
fn fault(message: &str) -> Option<&'static str> {
    let word: String = message
        .chars()
        .take_while(|letter| letter.is_alphanumeric())
        .collect();
    let mut letters = word.chars();
    let capital = letters.next().is_some_and(char::is_uppercase)
        && letters.next().is_some_and(char::is_lowercase)
        && !["Docker", "Dockerfile", "Git", "Kiln", "Linux"].contains(&word.as_str());
    if capital {
        return Some("begins in upper case");
    }
    (message.ends_with('.') && !message.ends_with("..") || message.ends_with('!'))
        .then_some("ends in a full stop")
}

#[test]
fn messages_have_one_voice() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("a workspace");
    let mut files = Vec::new();
    for entry in fs::read_dir(crates).expect("own sources") {
        let folder = entry.expect("own sources").path();
        if !["tests", "fuzz", "micro"]
            .iter()
            .any(|name| folder.ends_with(name))
        {
            sources(&folder.join("src"), &mut files);
        }
    }
    let (mut seen, mut wrong) = (0, Vec::new());
    for file in files {
        let text = fs::read_to_string(&file).expect("own sources");
        let text = text
            .split("#[cfg(test)]\nmod tests")
            .next()
            .unwrap_or_default();
        for maker in MAKERS {
            for (at, _) in text.match_indices(maker) {
                let Some(message) = literal(&text[at + maker.len()..]) else {
                    continue;
                };
                seen += 1;
                if let Some(fault) = fault(message)
                    && !DOCKERS.contains(&message)
                {
                    wrong.push(format!("{}: {message:?} {fault}", file.display()));
                }
            }
        }
    }
    assert!(seen > 400, "only {seen} messages were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
