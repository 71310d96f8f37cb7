//! Starting programs: the command line is shown, and a failure names it.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::say;

/// A command of `program` with `args`.
pub fn command<I, S>(program: impl AsRef<OsStr>, args: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Shows and runs a command; it must end with code 0.
pub fn run(command: &mut Command) -> Result<()> {
    let line = line(command);
    say(&format!("$ {line}"));
    let status = command
        .status()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !status.success() {
        bail!("`{line}` failed: {status}");
    }
    Ok(())
}

/// Runs a command quietly and returns what it wrote to standard output; it must end with code 0.
pub fn output(command: &mut Command) -> Result<Vec<u8>> {
    let line = line(command);
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{line}`"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{line}` failed: {}\n{}", output.status, said.trim_end());
    }
    Ok(output.stdout)
}

/// Whether a command can be started and ends with code 0; what it prints is dropped.
pub fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// The first file called `program` in `PATH` or in the folders for administrators, which a plain user's `PATH` lacks.
pub fn find(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(Into::into))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

/// A command line for people: quoted where it must be.
pub(crate) fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        let argument = argument.to_string_lossy();
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
        if !argument.is_empty() && argument.chars().all(plain) {
            let _ = write!(line, " {argument}");
        } else {
            let _ = write!(line, " '{}'", argument.replace('\'', r"'\''"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_can_be_pasted_into_a_shell() {
        let shown = line(&command(
            "kiln",
            ["build", "-t", "a/b:1", "CMD [\"sh\"]", "it's", ""],
        ));
        assert_eq!(shown, r#"kiln build -t a/b:1 'CMD ["sh"]' 'it'\''s' ''"#);
    }

    #[test]
    fn failures_name_the_command_and_what_it_said() {
        let failed = output(&mut command("sh", ["-c", "echo why >&2; exit 3"]));
        let text = format!("{:#}", failed.expect_err("ends with code 3"));
        assert!(
            text.contains("exit status: 3") && text.ends_with("why"),
            "{text}"
        );
    }
}
