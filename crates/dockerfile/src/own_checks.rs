//! Kiln's own checks, as far as they need nothing but the syntax tree.

use crate::ast::{Command, Dockerfile, Instruction, Kind, Run, Stage};
use crate::heredoc::Heredoc;
use crate::lint::{Rule, Warning};

/// What Kiln's own rules find in a Dockerfile.
pub fn own_checks(dockerfile: &Dockerfile) -> Vec<Warning> {
    let mut warnings = Vec::new();
    for instruction in &dockerfile.global_args {
        secret_values(instruction, &mut warnings);
    }
    for stage in &dockerfile.stages {
        heredocs(stage, &mut warnings);
        copy_before_install(stage, &mut warnings);
        for instruction in &stage.instructions {
            secret_values(instruction, &mut warnings);
        }
    }
    warnings.sort_by_key(|warning| warning.lines);
    warnings
}

fn warn(warnings: &mut Vec<Warning>, rule: Rule, instruction: &Instruction, message: String) {
    warnings.push(Warning {
        rule,
        message,
        lines: instruction.lines,
    });
}

/// Here-documents that a shell reads although one of their commands failed.
fn heredocs(stage: &Stage, warnings: &mut Vec<Warning>) {
    let mut shell_stops = false;
    for instruction in &stage.instructions {
        match &instruction.kind {
            Kind::Shell(words) => shell_stops = !is_shell(words) || stops(&words[1..]),
            Kind::Run(run) => {
                let Some(heredoc) = script(run, shell_stops) else {
                    continue;
                };
                let commands = commands(&heredoc.content());
                if commands.len() < 2 || commands.iter().any(|command| sets_stop(command)) {
                    continue;
                }
                let message = format!(
                    "The here-document runs {} commands and goes on when one of them fails",
                    commands.len()
                );
                warn(warnings, Rule::KilnHeredocWithoutSetE, instruction, message);
            }
            _ => {}
        }
    }
}

/// The here-document that a shell without `-e` runs as a script.
fn script(run: &Run, shell_stops: bool) -> Option<&Heredoc> {
    let ([heredoc], Command::Shell(text)) = (&run.heredocs[..], &run.command) else {
        return None;
    };
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    let is_sign = |word: &String| Heredoc::parse(word).is_some();
    let body = heredoc.content();
    let stops = match &words
        .iter()
        .filter(|word| !is_sign(word))
        .cloned()
        .collect::<Vec<_>>()[..]
    {
        // `RUN <<EOF`: the shell of the stage, or what the first line names.
        [] => match body.strip_prefix("#!") {
            Some(rest) => {
                let line = rest.lines().next().unwrap_or_default();
                let mut words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
                if words.first().is_some_and(|word| word.ends_with("/env")) {
                    words.remove(0);
                }
                !is_shell(&words) || stops(&words[1..])
            }
            None => shell_stops,
        },
        // `RUN bash <<EOF`: that shell, not one that is told what to run.
        words => !is_shell(words) || words.iter().any(|word| word == "-c") || stops(&words[1..]),
    };
    (!stops).then_some(heredoc)
}

fn is_shell(words: &[String]) -> bool {
    words.first().is_some_and(|word| {
        let name = word.rsplit('/').next().unwrap_or_default();
        matches!(name, "sh" | "bash" | "ash" | "dash" | "ksh" | "zsh")
    })
}

/// Whether a shell's arguments make it stop at the first command that fails.
fn stops(words: &[String]) -> bool {
    words.iter().any(|word| {
        let letters = word.strip_prefix('-').filter(|rest| !rest.starts_with('-'));
        letters.is_some_and(|letters| letters.contains('e')) || word == "errexit"
    })
}

fn sets_stop(command: &str) -> bool {
    let words: Vec<String> = command.split_whitespace().map(str::to_owned).collect();
    words.first().is_some_and(|word| word == "set") && stops(&words[1..])
}

/// The commands of a script on its outermost level, each with all its lines. Those that `&&` joins are one.
fn commands(script: &str) -> Vec<String> {
    let mut commands: Vec<String> = Vec::new();
    let mut depth = 0_i32;
    let mut open = false;
    let mut inner: Option<Heredoc> = None;
    for line in script.lines() {
        if let Some(heredoc) = &inner {
            if heredoc.ends_at(line) {
                inner = None;
            }
            continue;
        }
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        match commands.last_mut() {
            Some(last) if open || depth > 0 => last.extend([" ", line]),
            _ => commands.push(line.to_owned()),
        }
        for word in line.split([' ', '\t', ';']) {
            match word {
                "if" | "case" | "for" | "while" | "until" | "{" | "(" | "select" => depth += 1,
                "fi" | "esac" | "done" | "}" | ")" => depth -= 1,
                // `f() {` and `x=$(`: what opens at the end of a line.
                _ if word.ends_with("$(") => depth += 1,
                _ => {}
            }
        }
        depth = depth.max(0);
        inner = line.split_whitespace().find_map(Heredoc::parse);
        open = ["\\", "&&", "||", "|"]
            .iter()
            .any(|end| line.ends_with(end));
    }
    commands
}

/// Values that are written like keys of well-known services: before the value, its letters and digits, how many.
const TOKENS: &[(&str, &str, &str, usize)] = &[
    ("an AWS access key", "AKIA", "", 16),
    ("an AWS access key", "ASIA", "", 16),
    ("a GitHub token", "ghp_", "", 36),
    ("a GitHub token", "gho_", "", 36),
    ("a GitHub token", "ghu_", "", 36),
    ("a GitHub token", "ghs_", "", 36),
    ("a GitHub token", "ghr_", "", 36),
    ("a GitHub token", "github_pat_", "_", 22),
    ("a GitLab token", "glpat-", "-_", 20),
    ("an npm token", "npm_", "", 36),
    ("a PyPI token", "pypi-AgEIcHlwaS5vcmc", "-_", 50),
    ("a Slack token", "xoxb-", "-", 24),
    ("a Slack token", "xoxp-", "-", 24),
    ("a Stripe key", "sk_live_", "", 24),
    ("a Google API key", "AIza", "-_", 35),
    ("a Docker Hub token", "dckr_pat_", "-_", 27),
    ("a Hugging Face token", "hf_", "", 34),
];

/// What a text has in it that looks like a secret.
fn secret(text: &str) -> Option<&'static str> {
    if text.contains("-----BEGIN") && text.contains("PRIVATE KEY-----") {
        return Some("a private key");
    }
    for (what, prefix, also, length) in TOKENS {
        let inside = |char: &char| char.is_ascii_alphanumeric() || also.contains(*char);
        for (at, _) in text.match_indices(prefix) {
            let alone = !text[..at].ends_with(|char: char| char.is_ascii_alphanumeric());
            let value: String = text[at + prefix.len()..]
                .chars()
                .take_while(inside)
                .collect();
            // The services' documentation marks its examples so.
            if alone && value.len() >= *length && !value.ends_with("EXAMPLE") {
                return Some(what);
            }
        }
    }
    None
}

fn secret_values(instruction: &Instruction, warnings: &mut Vec<Warning>) {
    let found = match &instruction.kind {
        Kind::Env(pairs) | Kind::Label(pairs) => pairs.iter().find_map(|pair| secret(&pair.value)),
        Kind::Arg(args) => args.iter().find_map(|(_, value)| secret(value.as_deref()?)),
        Kind::Run(run) => secret(&instruction.original).or_else(|| {
            run.heredocs
                .iter()
                .find_map(|heredoc| secret(&heredoc.body))
        }),
        _ => None,
    };
    if let Some(what) = found {
        let message = format!("{} holds what looks like {what}", instruction.keyword);
        warn(warnings, Rule::KilnSecretValue, instruction, message);
    }
}

/// How dependencies are installed, and the files that list them.
const INSTALLERS: &[(&[&str], &str)] = &[
    (
        &["npm ci", "npm install", "npm i"],
        "package.json and package-lock.json",
    ),
    (&["yarn", "yarn install"], "package.json and yarn.lock"),
    (
        &["pnpm install", "pnpm i"],
        "package.json and pnpm-lock.yaml",
    ),
    (
        &[
            "pip install -r",
            "pip3 install -r",
            "python -m pip install -r",
            "python3 -m pip install -r",
        ],
        "requirements.txt",
    ),
    (&["uv sync"], "pyproject.toml and uv.lock"),
    (&["go mod download"], "go.mod and go.sum"),
    (&["cargo build", "cargo fetch"], "Cargo.toml and Cargo.lock"),
    (&["mvn", "./mvnw"], "pom.xml"),
    (&["bundle install"], "Gemfile and Gemfile.lock"),
    (&["composer install"], "composer.json and composer.lock"),
];

/// The installer that a command line begins with: its number and the words that name it.
fn installer(command: &str) -> Option<(usize, &'static str)> {
    let words: Vec<&str> = command.split_whitespace().collect();
    INSTALLERS
        .iter()
        .enumerate()
        .find_map(|(number, (forms, _))| {
            let form = forms.iter().rfind(|form| {
                let wanted: Vec<&str> = form.split(' ').collect();
                if let [start @ .., "-r"] = &wanted[..] {
                    return words.starts_with(start)
                        && words
                            .iter()
                            .any(|word| word.starts_with("-r") || *word == "--requirement");
                }
                // `yarn` and `mvn` alone, or with what they are told to do; not `yarn build`.
                if **form == "yarn" {
                    return words.first() == Some(&"yarn")
                        && words[1..].iter().all(|word| word.starts_with("--"));
                }
                words.starts_with(&wanted)
            })?;
            Some((number, *form))
        })
}

/// The commands of a RUN, with variables before them and everything behind shell operators left apart.
fn command_lines(run: &Run) -> Vec<String> {
    let text = match &run.command {
        Command::Exec(words) => words.join(" "),
        Command::Shell(text) => {
            let bodies = run.heredocs.iter().map(Heredoc::content);
            std::iter::once(text.clone())
                .chain(bodies)
                .collect::<Vec<_>>()
                .join("\n")
        }
    };
    let is_assignment = |word: &&str| {
        word.split_once('=').is_some_and(|(name, _)| {
            name.chars()
                .all(|char| char.is_alphanumeric() || char == '_')
        })
    };
    text.split(['\n', ';', '&', '|'])
        .map(|part| {
            let words = part.split_whitespace();
            words
                .skip_while(is_assignment)
                .collect::<Vec<_>>()
                .join(" ")
        })
        .filter(|part| !part.is_empty())
        .collect()
}

/// `COPY . .` and then an install: every change of any file installs all dependencies again.
fn copy_before_install(stage: &Stage, warnings: &mut Vec<Warning>) {
    let mut whole: Option<&Instruction> = None;
    let mut installed = [false; INSTALLERS.len()];
    for instruction in &stage.instructions {
        match &instruction.kind {
            Kind::Copy(copy) | Kind::Add(copy)
                if copy.from.is_none()
                    && copy
                        .sources
                        .iter()
                        .any(|source| matches!(source.as_str(), "." | "./" | "/" | "*")) =>
            {
                whole = whole.or(Some(instruction));
            }
            Kind::Run(run) => {
                // What is in a cache mount is not fetched again.
                let kept = run.mounts.iter().any(|mount| mount.contains("type=cache"));
                for command in command_lines(run) {
                    let Some((number, form)) = installer(&command) else {
                        continue;
                    };
                    let before = std::mem::replace(&mut installed[number], true);
                    if let (Some(copy), false, false) = (whole, before, kept) {
                        let message = format!(
                            "The whole context is copied before '{form}': every change of any file installs all \
                             dependencies again; {} would do",
                            INSTALLERS[number].1
                        );
                        warn(warnings, Rule::KilnCopyBeforeInstall, copy, message);
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{commands, installer, secret};

    #[test]
    fn commands_of_scripts() {
        for (script, count) in [
            ("", 0),
            ("a\n", 1),
            ("a\nb\n", 2),
            ("# x\n\na && \\\n b\n", 1),
            ("a &&\nb ||\nc |\nd\n", 1),
            ("if a; then\n b\n c\nfi\n", 1),
            ("for x in 1 2; do\n a\n b\ndone\nc\n", 2),
            ("cat <<X >f\n1\n2\nX\n", 1),
            ("cat <<X >f\n1\nX\nb\n", 2),
            ("f() {\n a\n b\n}\n", 1),
        ] {
            assert_eq!(commands(script).len(), count, "{script:?}");
        }
    }

    #[test]
    fn secrets() {
        let ghp = format!("x=ghp_{}", "a1".repeat(18));
        assert_eq!(secret(&ghp), Some("a GitHub token"));
        assert_eq!(secret(&ghp[..ghp.len() - 1]), None);
        assert_eq!(secret("AKIAABCDEFGHIJKLMNOP"), Some("an AWS access key"));
        assert_eq!(secret("AKIAIOSFODNN7EXAMPLE"), None);
        assert_eq!(secret("XAKIAABCDEFGHIJKLMNOP"), None);
        assert_eq!(
            secret("-----BEGIN RSA PRIVATE KEY-----\nabc"),
            Some("a private key")
        );
        assert_eq!(secret("-----BEGIN PUBLIC KEY-----"), None);
    }

    #[test]
    fn installers() {
        for (command, form) in [
            ("npm ci --omit=dev", Some("npm ci")),
            ("npm run build", None),
            ("yarn", Some("yarn")),
            ("yarn install --frozen-lockfile", Some("yarn install")),
            ("yarn build", None),
            (
                "pip install --no-cache-dir -r requirements.txt",
                Some("pip install -r"),
            ),
            ("pip install flask", None),
            ("cargo build --release", Some("cargo build")),
            ("cargo test", None),
            ("mvn -B package", Some("mvn")),
        ] {
            assert_eq!(installer(command).map(|(_, form)| form), form, "{command}");
        }
    }
}
