//! What configuration files, variables and the program's name change.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Command;

use kiln_tests::{Kiln, Outcome, Setting};

fn fresh(bases: &[&str]) -> Option<Kiln> {
    Kiln::fresh(Setting::Root, bases)
}

fn run(mut command: Command) -> Outcome {
    let line = format!("{command:?}");
    Outcome::new(line, &command.output().expect("kiln starts"))
}

#[test]
fn files_say_what_options_are_usually() {
    let Some(kiln) = fresh(&["busybox"]) else {
        return;
    };
    let context = kiln.context(&[("Dockerfile", "FROM busybox\n")]);
    let file = kiln.file("kiln.toml");
    let with = |text: &str, args: &[&str]| {
        fs::write(&file, text).expect("own folder");
        let mut command = kiln.command(args);
        command.env("KILN_CONFIG", &file);
        command
    };
    let json = "[build]\nprogress = \"rawjson\"\n";
    let is_json = |outcome: &Outcome| outcome.stderr.starts_with('{');
    for args in [&["build", &context][..], &["image", "build", &context]] {
        let said = run(with(json, args)).ok();
        assert!(is_json(&said), "{said}");
    }
    let mut variable = with(json, &["build", &context]);
    variable.env("BUILDKIT_PROGRESS", "plain");
    let said = run(variable).ok();
    assert!(said.stderr.starts_with("#1 "), "the variable wins: {said}");
    let said = run(with(json, &["build", "--progress", "quiet", &context])).ok();
    assert!(
        !is_json(&said) && said.stdout.starts_with("sha256:"),
        "the option wins: {said}"
    );

    run(with("[build]\nsummary = true\n", &["build", &context]))
        .ok()
        .says(&["OVERWRITTEN"]);
    let other = kiln.file("other-store");
    let mut command = with(
        &format!("[store]\nroot = \"{}\"\n", other.display()),
        &["images", "-q"],
    );
    command.env_remove("KILN_ROOT");
    assert_eq!(run(command).ok().stdout, "", "another store");
    assert!(other.join("kiln.db").exists());

    run(with("[build]\nprogres = \"plain\"\n", &["images"]))
        .failed()
        .says(&[
            "progres",
            "line 2",
            "hint: the keys are in docs/configuration.md",
        ]);
    kiln.leaves_nothing();
}

#[test]
fn proxies_of_dockers_configuration_reach_steps_and_nothing_else() {
    let Some(kiln) = fresh(&["busybox"]) else {
        return;
    };
    let context = kiln.context(&[(
        "Dockerfile",
        "FROM busybox\nRUN echo proxy $http_proxy $HTTP_PROXY > /seen\n",
    )]);
    let config = kiln.file("docker");
    fs::create_dir(&config).expect("own folder");
    let build = |proxy: &str| {
        let text = format!("{{\"proxies\":{{\"default\":{{\"httpProxy\":\"{proxy}\"}}}}}}");
        fs::write(config.join("config.json"), text).expect("own folder");
        let mut command =
            kiln.command(&["build", "--progress", "plain", "-t", "proxied", &context]);
        command.env("DOCKER_CONFIG", &config);
        run(command).ok()
    };
    build("http://proxy.corp:3128");
    let seen = kiln
        .run(&["run", "--rm", "proxied", "cat", "/seen"])
        .ok()
        .stdout;
    assert_eq!(
        seen,
        "proxy http://proxy.corp:3128 http://proxy.corp:3128\n"
    );
    kiln.run(&["inspect", "proxied"])
        .ok()
        .silent_about(&["proxy.corp"]);
    kiln.run(&["history", "--no-trunc", "proxied"])
        .ok()
        .silent_about(&["proxy.corp"]);
    let mut command = kiln.command(&["--config", config.to_str().expect("a plain name"), "build"]);
    command.args(["--no-cache", "-t", "proxied", &context]);
    run(command).ok();
    let seen = kiln
        .run(&["run", "--rm", "proxied", "cat", "/seen"])
        .ok()
        .stdout;
    assert!(seen.contains("proxy.corp"), "--config: {seen}");
    let again = build("http://another.corp:3128");
    assert_eq!(
        again.executed(),
        Vec::<String>::new(),
        "a proxy is no reason to run: {again}"
    );
}

#[test]
fn called_docker_it_is_docker() {
    let Some(kiln) = fresh(&[]) else {
        return;
    };
    let docker = kiln.file("docker");
    symlink(kiln.binary(), &docker).expect("own folder");
    let say = |args: &[&str]| {
        let mut command = Command::new(&docker);
        command
            .args(args)
            .env_clear()
            .env("KILN_ROOT", kiln.store());
        run(command)
    };
    let version = say(&["--version"]).ok();
    assert!(
        version.stdout.starts_with("Docker version 28."),
        "{version}"
    );
    say(&["version"])
        .ok()
        .says(&["Client:\n Version:  ", "Server: Kiln\n"]);
    say(&["nope"])
        .failed()
        .says(&["docker: unknown command: docker nope"]);
    assert!(kiln.run(&["--version"]).ok().stdout.starts_with("kiln "));
}

#[test]
fn shells_complete() {
    let Some(kiln) = fresh(&[]) else {
        return;
    };
    for shell in ["bash", "zsh", "fish"] {
        let script = kiln.run(&["completion", shell]).ok();
        for word in ["explain-ignore", "no-cache-filter", "imagetools"] {
            assert!(script.stdout.contains(word), "{shell}: {word}");
        }
    }
    let script = kiln.file("completion");
    fs::write(&script, kiln.run(&["completion", "bash"]).ok().stdout).expect("own folder");
    let ask = "source $1; COMP_WORDS=(kiln image hist); COMP_CWORD=2; _kiln kiln hist image; echo ${COMPREPLY[@]}";
    let mut bash = Command::new("bash");
    bash.args(["-c", ask, "bash"]).arg(&script);
    assert_eq!(run(bash).ok().stdout, "history\n");
    // Called docker, it completes docker's command line.
    let docker = kiln.file("docker");
    symlink(kiln.binary(), &docker).expect("own folder");
    let mut completion = Command::new(&docker);
    completion.args(["completion", "bash"]);
    fs::write(&script, run(completion).ok().stdout).expect("own folder");
    let ask = "source $1; complete -p docker; COMP_WORDS=(docker image pr); COMP_CWORD=2; _docker docker pr image; echo ${COMPREPLY[@]}";
    let mut bash = Command::new("bash");
    bash.args(["-c", ask, "bash"]).arg(&script);
    let said = run(bash).ok();
    assert!(
        said.stdout.ends_with(" -F _docker docker\nprune\n"),
        "{said}"
    );
    for (shell, args) in [
        (
            "fish",
            ["-c", "source $argv[1]; complete -C 'kiln image pr'"],
        ),
        (
            "zsh",
            [
                "-c",
                "autoload -U compinit && compinit -D -u && source $1 && whence -w _kiln && echo $_comps[kiln]",
            ],
        ),
    ] {
        if Command::new(shell).arg("--version").output().is_err() {
            kiln_tests::skipped(&format!("{shell} is not installed"));
            continue;
        }
        fs::write(&script, kiln.run(&["completion", shell]).ok().stdout).expect("own folder");
        let mut asked = Command::new(shell);
        asked.args(args);
        if shell == "zsh" {
            asked.arg("zsh");
        }
        let said = run({
            asked.arg(&script).env("HOME", kiln.file("home"));
            asked
        })
        .ok();
        let expected = match shell {
            "fish" => "prune\tremove images that have no name\n",
            _ => "_kiln: function\n_kiln\n",
        };
        assert_eq!(said.stdout, expected, "{said}");
    }
    let pages = kiln.file("reference");
    kiln.run(&["reference", pages.to_str().expect("a plain name")])
        .ok();
    let page = fs::read_to_string(pages.join("kiln-image-ls.1")).expect("a page");
    assert!(
        page.contains("kiln\\-image\\-ls") && page.contains("dangling"),
        "{page}"
    );
}
