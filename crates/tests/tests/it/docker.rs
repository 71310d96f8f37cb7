//! The same Dockerfile, built by Kiln and by docker, gives the same files and the same config.

use kiln_tests::server::Server;
use kiln_tests::skipped;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use xtask::bases::BASES;
use xtask::compare::{Peers, Request, compare};
use xtask::machine::{Kiln, Profile, is_root};

/// Kiln with all bases in a store of its own, and docker; None: skipped.
fn both(folder: &Path, bases: &[&str]) -> Option<(Kiln, Peers)> {
    let Some(archives) = std::env::var_os("KILN_TEST_BASES") else {
        skipped("KILN_TEST_BASES is not set; `cargo xtask test` sets it");
        return None;
    };
    let peers = Peers::from_environment()?;
    if !is_root() {
        skipped("docker is in a root for chroot, which only root may enter");
        return None;
    }
    let kiln = Kiln::build(Profile::Dev)
        .expect("KILN_BIN names it")
        .with_store(&folder.join("store"));
    for base in BASES.iter().filter(|base| bases.contains(&base.name)) {
        let archive = base.archive(Path::new(&archives));
        xtask::process::run(kiln.command(["load", "-i"]).arg(archive))
            .expect("the base can be loaded");
    }
    Some((kiln, peers))
}

#[track_caller]
fn no_differences(bases: &[&str], request: &Request) {
    let folder = own_folder(&xtask::test::scratch());
    if let Some((kiln, peers)) = both(&folder, bases) {
        let differences = compare(&kiln, &peers, request).expect("both build it");
        assert!(
            differences.is_empty(),
            "- Kiln, + docker:\n{}",
            differences.join("\n")
        );
    }
    let _ = std::fs::remove_dir_all(folder);
}

/// A folder that no other test uses.
fn own_folder(parent: &Path) -> std::path::PathBuf {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let folder = parent
        .join(format!("run-{}", std::process::id()))
        .join(format!("docker-{number}"));
    std::fs::create_dir_all(&folder).expect("the test folder can be made");
    folder
}

fn example(name: &str, file: Option<&str>, build_args: Vec<String>) -> Request {
    let context = xtask::workspace().join("examples").join(name);
    let file = file.map(|file| context.join(file));
    Request {
        context,
        file,
        build_args,
        ..Request::default()
    }
}

#[test]
fn go_onto_busybox() {
    no_differences(
        &["busybox", "golang"],
        &example("go-hello", Some("Dockerfile.ms"), Vec::new()),
    );
}

#[test]
fn go_onto_scratch() {
    no_differences(
        &["golang"],
        &example("go-hello", Some("Dockerfile.scratch"), Vec::new()),
    );
}

#[test]
fn java() {
    no_differences(&["jre", "jdk"], &example("java-hello", None, Vec::new()));
}

#[test]
fn download() {
    let context = xtask::workspace().join("examples/java-hello");
    let tar = Command::new("tar")
        .arg("-C")
        .arg(context)
        .args(["-cf", "-", "src"])
        .output()
        .expect("tar starts")
        .stdout;
    let server = Server::start(BTreeMap::from([("/x.tar".to_owned(), tar)]));
    let argument = format!("SERVER={}", server.address());
    no_differences(
        &["busybox"],
        &example("download", Some("Dockerfile.numbers"), vec![argument]),
    );
}

#[test]
fn what_layers_can_hold() {
    let dockerfile = r#"FROM busybox AS tree
SHELL ["/bin/sh", "-ec"]
RUN mkdir -p /t/a/b /t/keep; echo 1 > /t/a/one; ln /t/a/one /t/two; ln -s a/one /t/three; mkfifo /t/fifo
RUN chown 5:6 /t/a; chmod 3777 /t/a; chmod 4711 /t/a/one; mknod /t/null c 1 3
RUN rm -rf /t/a/b /etc/group; rm -rf /var/www; mkdir /var/www; mv /home /casa
FROM busybox
ARG V=1
ENV X=${V}y PATH=/x:$PATH
LABEL one=1 two="2 3"
COPY --from=tree /t /t
COPY --from=tree /t/three /linked/
COPY --chown=www-data:8 --chmod=750 sub file /into/
COPY sub /into2
COPY file /renamed
ADD file /added/
WORKDIR /made
WORKDIR below
RUN echo $X > env && pwd > where
VOLUME /data
EXPOSE 80 53/udp
STOPSIGNAL SIGINT
HEALTHCHECK --interval=5s CMD true
USER 7:8
ENTRYPOINT echo x
CMD ["a", "b"]
ONBUILD RUN true
"#;
    let context = own_folder(&xtask::test::scratch());
    std::fs::create_dir(context.join("sub")).expect("own folder");
    for (name, content) in [
        ("Dockerfile", dockerfile),
        ("file", "file\n"),
        ("sub/x", "x\n"),
    ] {
        std::fs::write(context.join(name), content).expect("own folder");
    }
    std::os::unix::fs::symlink("x", context.join("sub/link")).expect("own folder");
    no_differences(
        &["busybox"],
        &Request {
            context,
            ..Request::default()
        },
    );
}
