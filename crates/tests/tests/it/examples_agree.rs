//! The examples make the same layers whether root builds them, a plain user, or a plain user with one id: the same files
//! with the same owners and modes. Those that fetch much are built with
//! `cargo xtask test -- --ignored examples_agree` only.

use std::collections::BTreeMap;

use kiln_tests::server::Server;
use kiln_tests::{Kiln, Setting};
use xtask::compare::{config_differences, tree_differences};

macro_rules! examples {
    ($($test:ident: $example:literal $file:literal on $bases:expr;)*) => {$(
        #[test]
        fn $test() {
            agree($example, $file, &$bases, "NONE=");
        }
    )*};
}

examples! {
    go_onto_golang: "go-hello" "Dockerfile" on ["golang"];
    go_onto_busybox: "go-hello" "Dockerfile.ms" on ["golang", "busybox"];
    go_onto_scratch: "go-hello" "Dockerfile.scratch" on ["golang"];
    java: "java-hello" "Dockerfile" on ["jre", "jdk"];
}

macro_rules! long_examples {
    ($($test:ident: $project:literal;)*) => {$(
        #[test]
        #[ignore = "fetches much: cargo xtask test -- --ignored examples_agree"]
        fn $test() {
            let project = xtask::projects::Project::named($project).expect("is in the table");
            agree(project.folder, project.dockerfile, project.bases, "NONE=");
        }
    )*};
}

long_examples! {
    go_modules: "go-modules";
    maven: "java-maven";
    npm: "node-app";
    pip: "python-pip";
    venv: "python-venv";
    uv: "python-uv";
    cargo: "rust-app";
}

#[test]
fn scripts() {
    let script = xtask::workspace().join("examples/scripts/greet.sh");
    let script = std::fs::read(script).expect("in the checkout");
    let server = Server::start(BTreeMap::from([("/greet.sh".to_owned(), script)]));
    let argument = format!("SERVER={}", server.address());
    agree("scripts", "Dockerfile", &["debian"], &argument);
}

fn agree(example: &str, file: &str, bases: &[&str], argument: &str) {
    let mut first = None;
    for setting in [Setting::Root, Setting::User, Setting::OneId] {
        let Some(kiln) = Kiln::shared(setting, bases) else {
            return;
        };
        let context = kiln.example(example);
        let tag = format!("agree-{example}:{}", file.to_lowercase());
        let file = format!("{context}/{file}");
        // Times within files (of bytecode, of archives) are those of the build.
        let args = [
            "--host-ca",
            "--build-arg",
            "SOURCE_DATE_EPOCH=1700000000",
            "--build-arg",
            argument,
            "-t",
            &tag,
            "-f",
            &file,
            &context,
        ];
        kiln.build(&args).ok();
        let image = kiln.save(&tag);
        let Some(root) = &first else {
            first = Some(image);
            continue;
        };
        assert_eq!(root.layers.len(), image.layers.len(), "{setting:?}");
        let mut differences = config_differences(&root.config, &image.config);
        for (at, (left, right)) in root.layers.iter().zip(&image.layers).enumerate() {
            let found = tree_differences(left, right);
            let found = without_times(&found).into_iter();
            differences.extend(found.map(|line| format!("layer {at}: {line}")));
        }
        assert!(
            differences.is_empty(),
            "- Root, + {setting:?}:\n{}",
            differences.join("\n")
        );
    }
}

/// Leaves out what Go keeps for itself, which holds the time of the build in names too, and pairs of lines that tell of
/// contents only, of files that hold that time: Python's bytecode, archives, what uv notes of a package.
fn without_times(lines: &[String]) -> Vec<&String> {
    const TIMED: [&str; 4] = [".pyc", ".jar", ".dist-info/RECORD", "/uv_cache.json"];
    let but_content = |line: &str| -> Option<String> {
        let (path, rest) = line.get(2..)?.split_once(" file ")?;
        let (_, rights) = rest.split_once(" bytes ")?.1.split_once(' ')?;
        let timed = TIMED.iter().any(|end| path.ends_with(end));
        timed.then(|| format!("{path} {rights}"))
    };
    let mut left = Vec::new();
    let mut lines = lines.iter().peekable();
    while let Some(line) = lines.next() {
        let known = but_content(line);
        if line.contains("/.cache/go-build/")
            || known.is_some() && lines.next_if(|next| but_content(next) == known).is_some()
        {
            continue;
        }
        left.push(line);
    }
    left
}

#[test]
fn contents_with_times_hide_no_owner() {
    let text = |line: &str| line.to_owned();
    let lines = [
        "- /a/b.pyc file 10 bytes 12ab 0644 0:0",
        "+ /a/b.pyc file 11 bytes 34cd 0644 0:0",
        "- /a/c.pyc file 10 bytes 12ab 0644 0:0",
        "+ /a/c.pyc file 10 bytes 12ab 0644 0:7",
        "- /a/d.py file 10 bytes 12ab 0644 0:0",
        "+ /a/d.py file 11 bytes 34cd 0644 0:0",
        "+ /a/e.pyc file 10 bytes 12ab 0644 0:0",
    ]
    .map(text);
    assert_eq!(without_times(&lines), lines[2..].iter().collect::<Vec<_>>());
}
