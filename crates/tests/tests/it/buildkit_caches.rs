//! Caches as BuildKit writes them: there is nothing in them for Kiln, and nothing breaks.

use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use kiln_tests::{Kiln, Outcome, Registry, Setting};
use xtask::compare::Peers;

/// A Docker Engine with containerd's image store, which writes all kinds of caches. Dropping it ends it.
struct Engine<'p> {
    peers: &'p Peers,
    /// Its folder, as it sees it.
    inside: String,
    socket: String,
    process: Child,
}

impl<'p> Engine<'p> {
    fn start(peers: &'p Peers, folder: &std::path::Path, inside: &str) -> Self {
        let config = format!(
            r#"{{"features":{{"containerd-snapshotter":true}},"data-root":"{inside}/data",
            "exec-root":"{inside}/run","pidfile":"{inside}/pid","hosts":["unix://{inside}/socket"],
            "bridge":"none","iptables":false,"ip6tables":false}}"#
        );
        std::fs::write(folder.join("engine.json"), config).expect("own folder");
        let log = std::fs::File::create(folder.join("engine.log")).expect("own folder");
        let mut command = peers.command(["dockerd", "--config-file"]);
        command.arg(format!("{inside}/engine.json"));
        command.stdout(log.try_clone().expect("own file"));
        let engine = Self {
            peers,
            inside: inside.to_owned(),
            socket: format!("unix://{inside}/socket"),
            process: command.stderr(log).spawn().expect("dockerd starts"),
        };
        let begun = Instant::now();
        while !engine.docker(&["version"]).status.success() {
            let late = begun.elapsed() > Duration::from_mins(2);
            let log = folder.join("engine.log");
            assert!(
                !late,
                "{}",
                std::fs::read_to_string(log).unwrap_or_default()
            );
            std::thread::sleep(Duration::from_millis(200));
        }
        engine
    }

    fn docker(&self, args: &[&str]) -> Outcome {
        let mut command = self.peers.command(["docker", "-H", &self.socket]);
        let output = command.args(args).output().expect("docker starts");
        Outcome::new(format!("docker {}", args.join(" ")), &output)
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        let id = i32::try_from(self.process.id()).ok();
        if let Some(id) = id.and_then(rustix::process::Pid::from_raw) {
            // It ends its containerd then.
            let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
        }
        let _ = self.process.wait();
        // It mounts the folder of its data on itself and leaves that.
        let data = format!("{}/data", self.inside);
        let _ = self.peers.command(["umount", &data]).status();
    }
}

const DOCKERFILE: &str = "FROM BASE AS one\nRUN echo made > /made\nFROM BASE\nCOPY --from=one /made /made\n\
    COPY f /f\nRUN cat /made /f > /both\n";

#[test]
fn nothing_of_theirs_is_used_and_nothing_breaks() {
    let Some(peers) = Peers::from_environment() else {
        return;
    };
    let (Some(registry), Some(publisher)) =
        (Registry::start(), Kiln::fresh(Setting::Root, &["busybox"]))
    else {
        return;
    };
    let base = registry.image("base");
    let context = publisher.context(&[("Dockerfile", "FROM busybox\nENV BASE=1\n")]);
    publisher.build(&["-t", &base, "--push", &context]).ok();
    let (folder, inside) = peers.shared().expect("a folder that both see");
    let inside = inside.to_str().expect("a plain name");
    let dockerfile = DOCKERFILE.replace("BASE", &base);
    std::fs::create_dir(folder.path().join("context")).expect("own folder");
    for (name, text) in [("Dockerfile", dockerfile.as_str()), ("f", "file\n")] {
        std::fs::write(folder.path().join("context").join(name), text).expect("own folder");
    }
    let engine = Engine::start(&peers, folder.path(), inside);
    let local: PathBuf = folder.path().join("cache");
    let local = local.to_str().expect("a plain name");
    let (max, min, inline) = (
        registry.image("max"),
        registry.image("min"),
        registry.image("inline"),
    );
    for (to, from) in [
        (
            format!("type=registry,mode=max,ref={max}"),
            format!("type=registry,ref={max}"),
        ),
        (
            format!("type=registry,mode=min,image-manifest=false,compression=zstd,ref={min}"),
            min,
        ),
        (
            format!("type=local,mode=max,dest={inside}/cache"),
            format!("type=local,src={local}"),
        ),
        ("type=inline".to_owned(), inline.clone()),
    ] {
        let context = format!("{inside}/context");
        engine
            .docker(&[
                "buildx",
                "build",
                "--network",
                "none",
                "--provenance=false",
                "--push",
                "-t",
                &inline,
                "--cache-to",
                &to,
                &context,
            ])
            .ok();
        let kiln = Kiln::fresh(Setting::User, &[]).expect("root can be the plain user");
        let context = kiln.context(&[("Dockerfile", &dockerfile), ("f", "file\n")]);
        let built = kiln
            .build(&["-t", "app", "--cache-from", &from, &context])
            .ok();
        let said = "is not used: another builder wrote it, and nothing in it is of use to Kiln";
        let built = built.says(&[said]);
        assert_eq!(built.executed().len(), 4, "{built}");
        let run = kiln.run(&["run", "--rm", "app", "cat", "/both"]).ok();
        assert_eq!(run.stdout, "made\nfile\n");
    }
}
