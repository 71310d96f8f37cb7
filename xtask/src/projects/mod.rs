//! Projects as people have them, from `examples`: what they need, what they print, and what one edit makes a build do
//! again. The tests hold Kiln to it; `cargo xtask projects` measures.

mod measure;

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};

pub use measure::run;
pub(crate) use measure::{give_bases, sign, trusting_bases};

/// An example that is built over the network.
#[derive(Debug)]
pub struct Project {
    /// What it is called here.
    pub name: &'static str,
    /// Its folder in `examples`.
    pub folder: &'static str,
    /// The Dockerfile in it.
    pub dockerfile: &'static str,
    /// The base images that it starts from or copies of.
    pub bases: &'static [&'static str],
    /// What the image prints when it is run.
    pub prints: &'static str,
    /// One line of its sources.
    pub edit: Edit,
    /// The steps that the edit makes a build do again, sorted.
    pub redone: &'static [&'static str],
}

/// A change of one line.
#[derive(Debug)]
pub struct Edit {
    /// The file, below the project's folder.
    pub file: &'static str,
    /// What is replaced; it is there once.
    pub old: &'static str,
    /// By what.
    pub new: &'static str,
    /// What the image prints then.
    pub prints: &'static str,
}

/// All projects.
pub const PROJECTS: [Project; 7] = [
    Project {
        name: "python-uv",
        folder: "python-uv",
        dockerfile: "Dockerfile",
        bases: &["python", "uv"],
        prints: "Estimate pi with POINTS random points.",
        edit: Edit {
            file: "src/calculate_pi/cli.py",
            old: "Estimate pi with",
            new: "Guess pi with",
            prints: "Guess pi with POINTS random points.",
        },
        redone: &[
            "COPY --from=builder /app/.venv /app/.venv",
            "COPY . .",
            "RUN --mount=type=cache,target=/root/.cache/uv uv sync --frozen --no-dev",
        ],
    },
    Project {
        name: "python-pip",
        folder: "python-pip",
        dockerfile: "Dockerfile",
        bases: &["python"],
        prints: "| Earth    |            12756 |",
        edit: Edit {
            file: "planets.py",
            old: "\"Earth\"",
            new: "\"Home\"",
            prints: "| Home     |            12756 |",
        },
        redone: &["COPY planets.py ."],
    },
    Project {
        name: "python-venv",
        folder: "python-pip",
        dockerfile: "Dockerfile.venv",
        bases: &["python"],
        prints: "| Earth    |            12756 |",
        edit: Edit {
            file: "planets.py",
            old: "\"Earth\"",
            new: "\"Home\"",
            prints: "| Home     |            12756 |",
        },
        redone: &["COPY --chown=nonroot planets.py ."],
    },
    Project {
        name: "node-app",
        folder: "node-app",
        dockerfile: "Dockerfile",
        bases: &["node"],
        prints: "29 days\n",
        edit: Edit {
            file: "src/main.ts",
            old: "} days`",
            new: "} nights`",
            prints: "29 nights\n",
        },
        redone: &[
            "COPY --from=build /app/dist dist",
            "COPY . .",
            "RUN npm run build",
        ],
    },
    Project {
        name: "rust-app",
        folder: "rust-app",
        dockerfile: "Dockerfile",
        bases: &["rust", "slim"],
        prints: "1day 1h 1m 1s\n",
        edit: Edit {
            file: "src/main.rs",
            old: "\"{}\",",
            new: "\"{}, no more\",",
            prints: "1day 1h 1m 1s, no more\n",
        },
        redone: &[
            "COPY --from=build /usr/local/bin/how-long /usr/local/bin/",
            "COPY . .",
            "RUN --mount=type=cache,target=/usr/local/cargo/registry     --mount=type=cache,target=/src/target     \
             cargo install --path . --locked --root /usr/local",
        ],
    },
    Project {
        name: "java-maven",
        folder: "java-maven",
        dockerfile: "Dockerfile",
        bases: &["maven", "jre"],
        prints: "Built with Maven\n================\n",
        edit: Edit {
            file: "src/main/java/example/Headline.java",
            old: "'='",
            new: "'-'",
            prints: "Built with Maven\n----------------\n",
        },
        redone: &[
            "COPY --from=build /src/target/headline.jar .",
            "COPY src src",
            "RUN mvn -B package",
        ],
    },
    Project {
        name: "go-modules",
        folder: "go-modules",
        dockerfile: "Dockerfile",
        bases: &["golang", "static"],
        prints: "53f8b315-3f19-5a81-9257-9fda522dfe5c\n",
        edit: Edit {
            file: "main.go",
            old: "Println(",
            new: "Println(\"uuid\", ",
            prints: "uuid 53f8b315-3f19-5a81-9257-9fda522dfe5c\n",
        },
        redone: &[
            "COPY --from=build /out/uuid-of /usr/local/bin/",
            "COPY . .",
            "RUN CGO_ENABLED=0 go build -o /out/uuid-of .",
        ],
    },
];

impl Project {
    /// The project of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        PROJECTS.iter().find(|project| project.name == name)
    }
}

impl Edit {
    /// Makes the change in a copy of the project.
    pub fn make(&self, folder: &Path) -> Result<()> {
        let file = folder.join(self.file);
        let text =
            fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let found = text.matches(self.old).count();
        ensure!(
            found == 1,
            "{} has {:?} {found} times, expected once",
            file.display(),
            self.old
        );
        fs::write(&file, text.replace(self.old, self.new))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bases::BASES;
    use crate::workspace;

    #[test]
    fn the_table_is_true_of_the_examples() {
        for project in &PROJECTS {
            let folder = workspace().join("examples").join(project.folder);
            assert!(folder.join(project.dockerfile).is_file(), "{project:?}");
            for base in project.bases {
                assert!(BASES.iter().any(|it| it.name == *base), "{project:?}");
            }
            let file = folder.join(project.edit.file);
            let copy = tempfile::tempdir().expect("can be made");
            let copied = copy.path().join(project.edit.file);
            fs::create_dir_all(copied.parent().expect("below")).expect("can be made");
            fs::copy(file, copied).expect("can be copied");
            project.edit.make(copy.path()).expect("fits the file");
        }
    }
}
