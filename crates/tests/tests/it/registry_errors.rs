//! What can go wrong between Kiln and a registry, and what the user reads then.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_tests::registry::USER;
use kiln_tests::{Kiln, Outcome, Registry, Setting};
use rustix::process::{Pid, Signal, kill_process};

/// Runs `kiln` with a password on its standard input.
fn with_input(kiln: &Kiln, args: &[&str], input: &str) -> Outcome {
    let mut child = kiln
        .command(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kiln starts");
    let mut stdin = child.stdin.take().expect("piped");
    stdin.write_all(input.as_bytes()).expect("it reads");
    drop(stdin);
    let output = child.wait_with_output().expect("own child");
    Outcome::new(format!("kiln {}", args.join(" ")), &output)
}

/// The folders of layers in a store.
fn layers(kiln: &Kiln) -> usize {
    fs::read_dir(kiln.store().join("layers"))
        .into_iter()
        .flatten()
        .count()
}

/// The digest of an image's last layer in a registry.
fn layer_of(name: &str) -> String {
    let image = format!("docker://{name}");
    let inspect = ["inspect", "--tls-verify=false", &image];
    let output = Command::new("skopeo").args(inspect).output();
    let output = output.expect("skopeo starts").stdout;
    let inspected: serde_json::Value = serde_json::from_slice(&output).expect("JSON");
    let layers = inspected["Layers"].as_array().expect("a list");
    let last = layers.last().and_then(|it| it.as_str()).expect("text");
    last.to_owned()
}

#[test]
fn login_and_logout() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let Some(registry) = Registry::with_password() else {
        return;
    };
    let file = kiln.file(".docker/config.json");
    fs::create_dir(file.parent().expect("a folder")).expect("own folder");
    fs::write(
        &file,
        "{\"detachKeys\": \"ctrl-q\", \"auths\": {\"other.example\": {\"auth\": \"YTpi\"}}}",
    )
    .expect("own folder");
    let name = registry.image("secret/app");
    kiln.run(&["tag", "busybox", &name]).ok();
    kiln.run(&["push", &name])
        .failed()
        .says(&["access denied", &format!("kiln login {}", registry.name())]);

    let (user, password) = USER;
    let login = ["login", "-u", user, "--password-stdin", &registry.name()];
    with_input(&kiln, &login, "wrong\n")
        .failed()
        .says(&["unauthorized"]);
    kiln.run(&["push", &name]).failed();
    let logged_in = with_input(&kiln, &login, &format!("{password}\n")).ok();
    assert_eq!(logged_in.stdout, "Login Succeeded\n");
    let kept = fs::read_to_string(&file).expect("it is there");
    for text in [
        "ctrl-q",
        "other.example",
        &registry.name(),
        "c2ltOnNlc2FtZQ==",
    ] {
        assert!(kept.contains(text), "{text}: {kept}");
    }
    let mode = fs::metadata(&file)
        .expect("it is there")
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    kiln.run(&["push", &name]).ok();
    kiln.run(&["rmi", "busybox", &name]).ok();
    kiln.run(&["pull", &name]).ok();

    let logout = ["logout", &registry.name()];
    let removing = format!("Removing login credentials for {}\n", registry.name());
    assert_eq!(kiln.run(&logout).ok().stdout, removing);
    kiln.run(&logout).ok().says(&["Not logged in to"]);
    kiln.run(&["pull", &name]).failed().says(&["access denied"]);
    assert!(
        fs::read_to_string(&file)
            .expect("it is there")
            .contains("ctrl-q")
    );
}

#[test]
fn credential_helpers() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let Some(registry) = Registry::with_password() else {
        return;
    };
    let home = kiln.file("");
    let home = home.to_str().expect("a plain name");
    let helper = kiln.file("docker-credential-shelf");
    let script = format!(
        "#!/bin/sh\ncd {home}\ncase $1 in\nstore) cat > shelf;;\nerase) rm shelf;;\n\
         get) test -e shelf && cat shelf || {{ echo credentials not found in native keychain; exit 1; }};;\nesac\n"
    );
    fs::write(&helper, script).expect("own folder");
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).expect("own file");
    fs::write(kiln.file("config.json"), "{\"credsStore\": \"shelf\"}").expect("own folder");
    let run = |args: &[&str]| {
        let output = kiln
            .command(args)
            .env("PATH", format!("{home}:/usr/bin:/bin:/usr/sbin:/sbin"))
            .env("DOCKER_CONFIG", home)
            .output()
            .expect("kiln starts");
        Outcome::new(format!("kiln {}", args.join(" ")), &output)
    };
    let name = registry.image("app");
    run(&["tag", "busybox", &name]).ok();
    let (user, password) = USER;
    run(&["push", &name]).failed().says(&["access denied"]);
    run(&["login", "-u", user, "-p", password, &registry.name()]).ok();
    let config = fs::read_to_string(kiln.file("config.json")).expect("it is there");
    assert!(
        config.contains("shelf") && !config.contains("c2lt"),
        "{config}"
    );
    run(&["push", &name]).ok();
    run(&["logout", &registry.name()]).ok();
    run(&["push", &name]).failed().says(&["access denied"]);
}

#[test]
fn each_failure_has_words_of_its_own() {
    let Some(kiln) = Kiln::fresh(Setting::User, &["busybox"]) else {
        return;
    };
    let Some(mut registry) = Registry::start() else {
        return;
    };
    let name = registry.image("app:1");
    let context = kiln.context(&[(
        "Dockerfile",
        "FROM busybox\nRUN head -c 300000 /dev/urandom > /x\n",
    )]);
    kiln.build(&["-t", &name, "--push", &context]).ok();
    let Some(other) = Kiln::fresh(Setting::User, &[]) else {
        return;
    };

    let missing = other.run(&["pull", &registry.image("app:2")]).failed();
    missing.says(&["app:2: not found", "check the name and the tag"]);
    other
        .run(&["pull", "--platform", "linux/s390x", &name])
        .failed()
        .says(&["no image for linux/s390x", "linux/amd64", "--platform"]);
    let dockerfile = format!("FROM {}\n", registry.image("nothing"));
    let wrong = other.context(&[("Dockerfile", &dockerfile)]);
    other
        .build(&[&wrong])
        .failed()
        .says(&["nothing:latest: not found", ">>> FROM"]);

    // One byte in the middle of the last layer.
    let last = &layer_of(&name);
    let file = registry.blob(last);
    let whole = fs::read(&file).expect("the registry keeps it there");
    let mut damaged = whole.clone();
    damaged[whole.len() / 2] ^= 1;
    fs::write(&file, damaged).expect("own file");
    let corrupt = other.run(&["pull", &name]).failed();
    corrupt.says(&["corrupt: expected", last]);
    other.run(&["inspect", &name]).failed();
    assert_eq!(layers(&other), 0, "nothing of it stays");

    fs::write(&file, whole).expect("own file");
    other.run(&["pull", &name]).ok();

    registry.stop();
    other
        .run(&["pull", &registry.image("app:3")])
        .failed()
        .says(&["cannot be reached", "check the registry's name"]);
    let dockerfile = format!("FROM {}\n", registry.image("app:3"));
    let unknown = other.context(&[("Dockerfile", &dockerfile)]);
    other.build(&[&unknown]).failed().says(&[
        "not in the local store",
        "cannot be reached",
        "kiln load; for the registry",
    ]);
    other.leaves_nothing();
}

/// A registry that takes connections and never says anything.
#[test]
fn ctrl_c_while_a_registry_is_silent() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &[]) else {
        return;
    };
    let silent = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let name = format!("{}/app", silent.local_addr().expect("bound"));
    let mut child = kiln
        .command(&["pull", &name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("kiln starts");
    let connection = silent.accept().expect("kiln connects");
    let start = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let status = child.wait().expect("own child");
    drop(connection);
    assert_eq!(status.code(), Some(130));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "took {took:?}");
    kiln.leaves_nothing();
}

/// Carries connections to a registry and back, the answers in small pieces with pauses.
fn slow(to: &Registry) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let name = listener.local_addr().expect("bound").to_string();
    let to = to.name();
    let carry = |mut from: TcpStream, mut to: TcpStream, pause: Duration| {
        let mut piece = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut piece) {
            std::thread::sleep(pause);
            if to.write_all(&piece[..count]).is_err() {
                return;
            }
        }
    };
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(&to) else {
                return;
            };
            let (Ok(requests), Ok(answers)) = (client.try_clone(), server.try_clone()) else {
                return;
            };
            std::thread::spawn(move || carry(requests, server, Duration::ZERO));
            std::thread::spawn(move || carry(answers, client, Duration::from_millis(20)));
        }
    });
    name
}

#[test]
fn ctrl_c_in_the_middle_of_a_layer() {
    let (Some(publisher), Some(kiln)) = (
        Kiln::fresh(Setting::Root, &["busybox"]),
        Kiln::fresh(Setting::Root, &[]),
    ) else {
        return;
    };
    let Some(registry) = Registry::start() else {
        return;
    };
    let published = registry.image("app");
    publisher.run(&["tag", "busybox", &published]).ok();
    publisher.run(&["push", &published]).ok();
    let name = format!("{}/app", slow(&registry));
    let mut child = kiln
        .command(&["pull", &name])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("kiln starts");
    let begun = Instant::now();
    while layers(&kiln) == 0 && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(300));
    let start = Instant::now();
    kill_process(Pid::from_child(&child), Signal::INT).expect("it runs");
    let status = child.wait().expect("own child");
    assert_eq!(status.code(), Some(130));
    let took = start.elapsed();
    assert!(took < Duration::from_secs(2), "took {took:?}");
    kiln.leaves_nothing();
    kiln.run(&["inspect", &name]).failed();
    kiln.run(&["pull", &published]).ok();
    assert_eq!(layers(&kiln), 1, "what was begun is gone");
}

#[test]
fn a_layer_comes_once_for_all() {
    let (Some(publisher), Some(kiln)) = (
        Kiln::fresh(Setting::Root, &["busybox"]),
        Kiln::fresh(Setting::Root, &[]),
    ) else {
        return;
    };
    let Some(registry) = Registry::start() else {
        return;
    };
    let published = registry.image("app");
    publisher.run(&["tag", "busybox", &published]).ok();
    publisher.run(&["push", &published]).ok();
    registry.forget();
    let name = format!("{}/app", slow(&registry));
    let pulls: Vec<_> = (0..3)
        .map(|_| {
            let mut pull = kiln.command(&["pull", &name]);
            let pull = pull.stdout(Stdio::null()).stderr(Stdio::null());
            pull.spawn().expect("kiln starts")
        })
        .collect();
    for mut pull in pulls {
        assert!(pull.wait().expect("own child").success());
    }
    let digest = layer_of(&published);
    let asked = registry.asked();
    let fetched = asked
        .iter()
        .filter(|it| it.starts_with("GET") && it.ends_with(&digest));
    assert_eq!(fetched.count(), 1, "{asked:?}");
}

/// The folders of certificates that docker and podman have, for a registry whose certificate nobody knows.
#[test]
fn certificates_of_single_registries() {
    let Some(kiln) = Kiln::fresh(Setting::User, &["busybox"]) else {
        return;
    };
    let Some(registry) = Registry::with_tls_and_password() else {
        return;
    };
    let name = registry.image("app:1");
    let (user, password) = USER;
    let login = ["login", "-u", user, "--password-stdin", &registry.name()];
    let context = kiln.context(&[("Dockerfile", "FROM busybox\nRUN echo x > /x\n")]);
    kiln.build(&["-t", &name, &context]).ok();
    for tool in ["docker", "containers"] {
        let home = kiln.file(".config");
        let folder = home.join(tool).join("certs.d").join(registry.name());
        fs::create_dir_all(&folder).expect("own folder");
        let config = kiln.file("kiln.toml");
        let tls = format!("[registries.\"{}\"]\nplain-http = false\n", registry.name());
        fs::write(&config, tls).expect("own folder");
        let mut unknown = kiln.command(&["pull", &name]);
        let unknown = unknown
            .env("KILN_CONFIG", &config)
            .output()
            .expect("kiln starts");
        Outcome::new("kiln pull".to_owned(), &unknown)
            .failed()
            .says(&["cannot be reached", "certificate"]);
        fs::copy(registry.certificate(), folder.join("ca.crt")).expect("own folder");
        kiln.run(&["push", &name])
            .failed()
            .says(&["access denied", "kiln login"]);
        with_input(&kiln, &login, password).ok();
        kiln.run(&["push", &name]).ok();
        kiln.run(&["rmi", &name]).ok();
        kiln.run(&["pull", &name]).ok();
        kiln.run(&["logout", &registry.name()]).ok();
        fs::remove_dir_all(&home).expect("own folder");
    }
    // A certificate to show, whose key is missing.
    let folder = kiln.file(".config/docker/certs.d").join(registry.name());
    fs::create_dir_all(&folder).expect("own folder");
    fs::copy(registry.certificate(), folder.join("client.cert")).expect("own folder");
    kiln.run(&["pull", &name]).failed().says(&["client.key"]);
}
