//! What a run of `kiln` ended with.

use std::fmt;
use std::process::{ExitStatus, Output};

/// Exit status and output, with assertions that show everything when they fail.
#[derive(Debug)]
pub struct Outcome {
    /// The command line.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "$ {}\n{}\n--- output\n{}\n--- errors\n{}\n---",
            self.line,
            self.status,
            self.stdout.trim_end(),
            self.stderr.trim_end()
        )
    }
}

impl Outcome {
    /// From a finished process.
    pub fn new(line: String, output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            line,
            status: output.status,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    /// Ended with code 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.status.success(), "{self}");
        self
    }

    /// Ended with another code: by itself, not by a panic, not by a signal.
    #[track_caller]
    pub fn failed(self) -> Self {
        let code = self.status.code();
        assert!(code.is_some_and(|code| code != 0 && code != 101), "{self}");
        self
    }

    /// Each of `texts` is somewhere in what it said.
    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(
                self.stdout.contains(text) || self.stderr.contains(text),
                "does not say {text:?}:\n{self}"
            );
        }
        self
    }

    /// None of `texts` is in what it said.
    #[track_caller]
    pub fn silent_about(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(
                !self.stdout.contains(text) && !self.stderr.contains(text),
                "says {text:?}:\n{self}"
            );
        }
        self
    }

    /// The instructions that a build with `--progress plain` ran, rather than finding their result: those whose number
    /// is not followed by `CACHED`.
    pub fn executed(&self) -> Vec<String> {
        let cached: Vec<&str> = self
            .stderr
            .lines()
            .filter_map(|line| line.strip_suffix(" CACHED"))
            .collect();
        let step = |line: &str| {
            let (number, step) = line.split_once(' ')?;
            let instruction = step.strip_prefix('[')?.split_once("] ")?.1;
            let word = instruction.split(' ').next()?;
            let runs = ["RUN", "COPY", "ADD", "WORKDIR"].contains(&word);
            let wanted = number.starts_with('#') && runs && !cached.contains(&number);
            wanted.then(|| (number.to_owned(), instruction.to_owned()))
        };
        // The header of a step is repeated where the output comes back to it.
        let mut steps: Vec<(String, String)> = Vec::new();
        for step in self.stderr.lines().filter_map(step) {
            if !steps.contains(&step) {
                steps.push(step);
            }
        }
        steps
            .into_iter()
            .map(|(_, instruction)| instruction)
            .collect()
    }

    /// How many steps came from the cache.
    pub fn cached(&self) -> usize {
        self.stderr
            .lines()
            .filter(|line| line.starts_with('#') && line.ends_with(" CACHED"))
            .count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executed_steps_are_told_from_cached_ones() {
        let stderr = "#1 [internal] load build definition from Dockerfile\n#1 DONE 0.0s\n\
            #4 [build 2/4] WORKDIR /src\n#4 CACHED\n#5 [build 3/4] RUN make\n#5 0.1 [1/2] RUN x\n#5 DONE 1.0s\n\
            #6 [stage-1 1/2] FROM docker.io/library/busybox\n#6 DONE 0.0s\n#7 [stage-1 2/2] COPY --from=build a b\n#7 CACHED\n";
        let outcome = Outcome {
            line: String::new(),
            status: ExitStatus::default(),
            stdout: String::new(),
            stderr: stderr.to_owned(),
        };
        assert_eq!(outcome.executed(), ["RUN make"]);
        assert_eq!(outcome.cached(), 2);
    }
}
