//! Projects as people have them, with what they need from the network: built, run, built again, edited. Each is built by
//! root; in the other settings those that ask the most of them, since the steps themselves take their time.

use std::path::Path;

use kiln_tests::{Kiln, Outcome, Setting};
use xtask::projects::Project;

macro_rules! projects {
    ($($test:ident: $project:literal as $setting:ident;)*) => {$(
        #[test]
        fn $test() {
            built_run_and_edited(Setting::$setting, $project);
        }
    )*};
}

projects! {
    python_uv: "python-uv" as Root;
    python_uv_as_plain_user: "python-uv" as User;
    python_pip: "python-pip" as Root;
    python_pip_with_one_id: "python-pip" as OneId;
    python_venv: "python-venv" as Root;
    python_venv_on_an_overlay: "python-venv" as Overlay;
    node: "node-app" as Root;
    node_as_plain_user: "node-app" as User;
    node_with_one_id: "node-app" as OneId;
    rust: "rust-app" as Root;
    maven: "java-maven" as Root;
    go: "go-modules" as Root;
    go_as_plain_user: "go-modules" as User;
}

/// A project in a copy of its folder.
struct Checkout {
    kiln: &'static Kiln,
    project: &'static Project,
    context: String,
    tag: String,
}

impl Checkout {
    fn new(setting: Setting, name: &str, tag: &str) -> Option<Self> {
        let project = Project::named(name).expect("is in the table");
        let kiln = Kiln::shared(setting, project.bases)?;
        let context = kiln.example(project.folder);
        Some(Self {
            kiln,
            project,
            context,
            tag: tag.to_owned(),
        })
    }

    /// A gateway in front of the network may sign with an authority that only the host trusts.
    fn build(&self) -> Outcome {
        let file = format!("{}/{}", self.context, self.project.dockerfile);
        let build = ["--host-ca", "-t", &self.tag, "-f", &file, &self.context];
        self.kiln.build(&build).ok()
    }

    /// What the image prints, run with `words`.
    fn run(&self, words: &[&str]) -> String {
        let line = [&["run", "--rm", &self.tag], words].concat();
        self.kiln.run(&line).ok().stdout
    }
}

fn built_run_and_edited(setting: Setting, name: &str) {
    let Some(checkout) = Checkout::new(setting, name, name) else {
        return;
    };
    let project = checkout.project;
    checkout.build().silent_about(&["holds a certificate"]);
    let printed = checkout.run(&[]);
    assert!(printed.contains(project.prints), "{printed}");

    let again = checkout.build();
    assert_eq!(again.executed(), Vec::<String>::new(), "{again}");
    assert!(again.cached() > 0, "{again}");

    let edit = &project.edit;
    edit.make(Path::new(&checkout.context)).expect("own folder");
    let edited = checkout.build();
    let mut executed = edited.executed();
    executed.sort_unstable();
    assert_eq!(executed, project.redone, "{edited}");
    let printed = checkout.run(&[]);
    assert!(printed.contains(edit.prints), "{printed}");
}

/// What the image of the command line tool is besides its files, and that the tool works.
#[test]
fn a_command_line_tool_in_an_image() {
    let Some(checkout) = Checkout::new(Setting::Root, "python-uv", "calculate-pi") else {
        return;
    };
    checkout.build();
    let estimate = checkout.run(&["calculate-pi", "1000000"]);
    assert!(estimate.starts_with("pi is about 3.1"), "{estimate}");
    let seeded = ["calculate-pi", "--seed", "1", "1000"];
    assert_eq!(checkout.run(&seeded), checkout.run(&seeded));

    let config = checkout.kiln.save(&checkout.tag).config["config"].take();
    assert_eq!(config["Cmd"], serde_json::json!(["calculate-pi", "--help"]));
    assert_eq!(config["WorkingDir"], "/app");
    assert_eq!(
        config["Labels"],
        serde_json::json!({
            "org.opencontainers.image.title": "calculate-pi",
            "org.opencontainers.image.description": "Estimates pi with random points",
        })
    );
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let expected = [
        format!("PATH=/app/.venv/bin:{path}"),
        "PIP_DISABLE_PIP_VERSION_CHECK=1".to_owned(),
        "PIP_ROOT_USER_ACTION=ignore".to_owned(),
        "PYTHONUNBUFFERED=1".to_owned(),
        "PYTHONDONTWRITEBYTECODE=1".to_owned(),
    ];
    assert_eq!(config["Env"], serde_json::json!(expected));
    // The program that made the environment, and its cache, are not in it.
    let left = checkout.run(&[
        "find", "/root", "/bin/", "-name", "uv", "-o", "-name", ".cache",
    ]);
    assert_eq!(left, "");
}

/// Links in a virtual environment and in `node_modules/.bin` stay links through `COPY --from`.
#[test]
fn links_survive_copies_between_stages() {
    let Some(venv) = Checkout::new(Setting::Root, "python-venv", "linked") else {
        return;
    };
    venv.build();
    let shown = venv.run(&[
        "sh",
        "-c",
        "id -un; readlink /venv/bin/python /venv/bin/python3; python -c 'import sys; print(sys.prefix)'",
    ]);
    assert_eq!(shown, "nonroot\n/usr/bin/python\npython\n/venv\n");
}
