//! The complete log of a build, whatever display shows it: the plain display's lines, with the secrets taken out.
//!
//! A short one stays in memory and goes into the build's record, so that a build that finds everything in the cache
//! writes no file. What gets longer goes to a file of the store as it comes, so that it is there when the build dies.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_progress::{Display, Event, Mode, Options, Sink, display};
use kiln_store::Store;

use crate::build::{BuildRequest, Secret};
use crate::is_secret_name;

/// Longer logs go to a file.
const SHORT: usize = 16 << 10;
/// Shorter values are no secrets that could be told from other text.
const LEAST_SECRET: usize = 4;
/// Longer files are no secrets that a step would print.
const MOST_SECRET: u64 = 64 << 10;

/// What a secret is replaced by.
const REDACTED: &[u8] = b"***";

/// Listens to a build beside the display that the user sees.
pub(crate) struct BuildLog<'a> {
    seen: &'a dyn Sink,
    kept: Display,
    text: Arc<Mutex<Text>>,
}

/// Where the lines go.
struct Text {
    secrets: Vec<Vec<u8>>,
    memory: Vec<u8>,
    /// Where a file would be.
    path: PathBuf,
    file: Option<File>,
    /// A log that cannot be written is no reason to fail.
    broken: bool,
}

impl<'a> BuildLog<'a> {
    pub(crate) fn new(store: &Store, request: &BuildRequest, seen: &'a dyn Sink) -> Self {
        let text = Arc::new(Mutex::new(Text {
            secrets: secrets(request),
            memory: Vec::new(),
            path: store.new_log(),
            file: None,
            broken: false,
        }));
        let options = Options::new(Mode::Plain, Box::new(Writer(text.clone())));
        Self {
            seen,
            kept: display(options),
            text,
        }
    }

    /// Ends the log with a text, and gives what the build's record keeps: the log, or the name of its file.
    pub(crate) fn end(self, last: &str) -> Option<String> {
        let _ = self.kept.finish();
        let mut text = lock(&self.text);
        if !last.is_empty() {
            text.take(last.as_bytes());
        }
        if text.file.is_some() {
            return Store::log_of_file(&text.path);
        }
        Some(Store::log_of_text(&String::from_utf8_lossy(&text.memory)))
    }
}

impl Sink for BuildLog<'_> {
    fn emit(&self, event: Event) {
        self.kept.emit(event.clone());
        self.seen.emit(event);
    }
}

fn lock(text: &Mutex<Text>) -> MutexGuard<'_, Text> {
    text.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Text {
    fn take(&mut self, bytes: &[u8]) {
        let clean = redacted(bytes, &self.secrets);
        if self.file.is_none() && !self.broken && self.memory.len() + clean.len() > SHORT {
            match self.path.parent().map(std::fs::create_dir_all) {
                Some(Ok(())) => self.file = File::create(&self.path).ok(),
                _ => self.broken = true,
            }
            self.broken |= self.file.is_none();
            let memory = std::mem::take(&mut self.memory);
            self.write(&memory);
        }
        if self.file.is_some() {
            self.write(&clean);
        } else if !self.broken {
            self.memory.extend_from_slice(&clean);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if let Some(file) = &mut self.file
            && !self.broken
        {
            // A full disk says so elsewhere.
            self.broken = file.write_all(bytes).is_err();
        }
    }
}

/// The plain display writes whole lines.
struct Writer(Arc<Mutex<Text>>);

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).take(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines of all secrets, the longest first, so that none is left in pieces.
fn secrets(request: &BuildRequest) -> Vec<Vec<u8>> {
    let mut found: Vec<Vec<u8>> = Vec::new();
    for secret in request.secrets.values() {
        match secret {
            Secret::Value(value) => found.push(value.clone()),
            Secret::File(path) => {
                let small = std::fs::metadata(path)
                    .is_ok_and(|meta| meta.is_file() && meta.len() <= MOST_SECRET);
                if small && let Ok(value) = std::fs::read(path) {
                    found.push(value);
                }
            }
        }
    }
    for (name, value) in &request.options.build_args {
        if is_secret_name(name) {
            found.push(value.clone().into_bytes());
        }
    }
    let mut lines: Vec<Vec<u8>> = found
        .iter()
        .flat_map(|value| value.split(|byte| *byte == b'\n'))
        .map(|line| line.trim_ascii().to_vec())
        .filter(|line| line.len() >= LEAST_SECRET)
        .collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.len()));
    lines.dedup();
    lines
}

fn redacted(bytes: &[u8], secrets: &[Vec<u8>]) -> Vec<u8> {
    let mut clean = bytes.to_vec();
    for secret in secrets {
        let mut rest = &clean[..];
        let mut out = Vec::new();
        while let Some(at) = rest.windows(secret.len()).position(|part| part == secret) {
            out.extend_from_slice(&rest[..at]);
            out.extend_from_slice(REDACTED);
            rest = &rest[at + secret.len()..];
        }
        if !out.is_empty() {
            out.extend_from_slice(rest);
            clean = out;
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_taken_out() {
        let secrets = vec![b"hunter22".to_vec(), b"hunt".to_vec()];
        let clean = |text: &str| String::from_utf8(redacted(text.as_bytes(), &secrets)).unwrap();
        assert_eq!(clean("a hunter22 b hunter22hunt"), "a *** b ******");
        assert_eq!(clean("hunter22"), "***");
        assert_eq!(clean("nothing"), "nothing");
    }
}
