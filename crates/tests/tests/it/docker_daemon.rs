//! Images into a running Docker Engine.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use kiln_tests::{Kiln, Outcome, Setting};
use xtask::compare::Peers;

/// Lets a socket be reached at an address on loopback, until the test process ends.
fn over_tcp(socket: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    let address = listener.local_addr().expect("bound");
    std::thread::spawn(move || {
        for from in listener.incoming().flatten() {
            let to = UnixStream::connect(&socket).expect("the engine listens");
            let back = (
                to.try_clone().expect("a socket"),
                from.try_clone().expect("a socket"),
            );
            std::thread::spawn(move || forward(from, to));
            std::thread::spawn(move || forward_back(back.0, back.1));
        }
    });
    format!("tcp://{address}")
}

fn forward(mut from: TcpStream, mut to: UnixStream) {
    // Either side may hang up.
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

fn forward_back(mut from: UnixStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
}

fn with_docker(kiln: &Kiln, host: &str, args: &[&str]) -> Outcome {
    let output = kiln.command(args).env("DOCKER_HOST", host).output();
    let line = format!("DOCKER_HOST={host} kiln {}", args.join(" "));
    Outcome::new(line, &output.expect("kiln starts"))
}

const DOCKERFILE: &str = "FROM busybox\nRUN echo one > /one && chown 7:8 /one && ln /one /two && mkfifo /fifo\n\
    ENV A=b\nCMD [\"sh\", \"-c\", \"cat /two; stat -c %u:%g /one; echo $A\"]\n";

#[test]
fn images_go_into_docker() {
    let Some(peers) = Peers::from_environment() else {
        return;
    };
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let docker = |args: &[&str]| {
        let output = peers.command(["docker"]).args(args).output();
        Outcome::new(
            format!("docker {}", args.join(" ")),
            &output.expect("starts"),
        )
        .ok()
    };
    let socket = peers.docker_socket();
    let unix = format!("unix://{}", socket.display());
    let tag = format!("kiln-test-{}", std::process::id());
    let (first, second, third) = (
        format!("kiln-test/first:{tag}"),
        format!("kiln-test/second:{tag}"),
        format!("kiln-test/third:{tag}"),
    );
    let context = kiln.context(&[("Dockerfile", DOCKERFILE)]);
    kiln.build(&["-t", &first, &context]).ok();
    let target = format!("docker-daemon:{first}");
    with_docker(&kiln, &unix, &["push", &target])
        .ok()
        .says(&[&format!("Loaded image: {first}")]);
    let run = |name: &str| docker(&["run", "--rm", "--network", "none", name]).stdout;
    assert_eq!(run(&first), "one\n7:8\nb\n");

    // Straight from a build; the store keeps no image of it. And over the network.
    let output = "type=docker-daemon";
    with_docker(
        &kiln,
        &unix,
        &["build", "-t", &second, "-o", output, &context],
    )
    .ok();
    assert_eq!(run(&second), "one\n7:8\nb\n");
    let listed = kiln.run(&["images", "kiln-test/second"]).ok();
    assert!(!listed.stdout.contains(&tag), "{listed}");
    let tcp = over_tcp(socket);
    let output = format!("type=docker-daemon,name={third}");
    with_docker(
        &kiln,
        &tcp,
        &[
            "build",
            "-t",
            &second,
            "-o",
            &output,
            "-o",
            "type=image",
            &context,
        ],
    )
    .ok();
    assert_eq!(run(&third), "one\n7:8\nb\n");
    let listed = kiln.run(&["images", "kiln-test/second"]).ok();
    assert!(listed.stdout.contains(&tag), "{listed}");
    with_docker(
        &kiln,
        &tcp,
        &["push", "-q", &format!("docker-daemon:{second}")],
    )
    .ok();
    docker(&["rmi", &first, &second, &third]);

    // Of layers that belong to subordinate ids, too.
    let user = Kiln::fresh(Setting::User, &["busybox"]).expect("root can be the plain user");
    let context = user.context(&[("Dockerfile", DOCKERFILE)]);
    user.build(&["-t", &first, &context]).ok();
    with_docker(&user, &unix, &["push", &target])
        .failed()
        .says(&["ermission denied", "the group docker"]);
    with_docker(&user, &tcp, &["push", &target]).ok();
    assert_eq!(run(&first), "one\n7:8\nb\n");
    docker(&["rmi", &first]);
    user.leaves_nothing();
}

#[test]
fn without_an_engine_it_is_said_what_to_do() {
    let Some(kiln) = Kiln::fresh(Setting::User, &["busybox"]) else {
        return;
    };
    let nowhere = kiln.file("docker.sock");
    let unix = format!("unix://{}", nowhere.display());
    for (host, args, said) in [
        (
            unix.as_str(),
            &["push", "docker-daemon:busybox"][..],
            [
                "no Docker Engine answers at unix:///",
                "is it running? DOCKER_HOST names",
            ],
        ),
        (
            "tcp://127.0.0.1:1",
            &["push", "docker-daemon:busybox"],
            [
                "no Docker Engine answers at tcp://127.0.0.1:1",
                "is it running?",
            ],
        ),
        (
            "ssh://me@there",
            &["push", "docker-daemon:busybox"],
            [
                "ssh is not spoken",
                "kiln save NAME | ssh me@there docker load",
            ],
        ),
        (
            unix.as_str(),
            &["push", "docker-daemon:nope"],
            ["no such image: nope", "see kiln images"],
        ),
    ] {
        with_docker(&kiln, host, args).failed().says(&said);
    }
    let context = kiln.context(&[("Dockerfile", "FROM busybox\nENV A=b\n")]);
    let build = |flags: &[&str]| {
        let args = [&["build", "-t", "app"], flags, &[&*context]].concat();
        with_docker(&kiln, &unix, &args)
    };
    build(&["-o", "type=docker-daemon"])
        .failed()
        .says(&["no Docker Engine answers"]);
    // Who says --load may expect the image in docker: that is told where docker seems to be used, and only there.
    let hint = "hint: the image is in Kiln's own store; -o type=docker-daemon";
    build(&["--load"]).ok().says(&[hint]);
    build(&["-o", "type=docker"]).ok().says(&[hint]);
    build(&[]).ok().silent_about(&[hint]);
    build(&["-q", "--load"]).ok().silent_about(&[hint]);
    if !Path::new("/var/run/docker.sock").exists() {
        kiln.run(&["build", "--load", &context])
            .ok()
            .silent_about(&[hint]);
    }
}
