//! `kiln run`, `kiln create` and `kiln start`: containers in the foreground.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use kiln_engine::{BuildError, Engine, Ran, Rights, RunRequest};
use kiln_graph::Network;
use kiln_image::{Digest, Platform};
use kiln_sandbox::{Capability, DOCKER_CAPABILITIES};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcsetattr};
use signal_hook::consts::{
    SIGALRM, SIGCONT, SIGHUP, SIGINT, SIGKILL, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2,
};
use signal_hook::iterator::Signals;

use super::build_options::{bytes, extra_hosts, ulimit, variable};
use super::platforms::{find_image_for, find_target, platform};
use super::{display, reference};
use crate::container_args::{ContainerArgs, RunArgs, StartArgs};
use crate::context::{Place, resolv_conf};
use crate::docker_flags::note;
use crate::format::{complain, say};

/// What docker does with detached containers is not a builder's work.
const DETACHED: &str =
    "leave -d out; for containers in the background take a runtime: kiln save IMAGE | podman load";

pub(super) fn run(place: &Place, args: &RunArgs) -> Result<ExitCode> {
    if args.detach {
        return Err(
            BuildError::new("kiln runs containers in the foreground, not detached")
                .with_hint(DETACHED)
                .into(),
        );
    }
    let engine = place.engine()?;
    let args = &args.container;
    if args.cidfile.is_some() {
        return Err(
            BuildError::new("--cidfile is possible with kiln create only")
                .with_hint("a container of kiln run has ended when the next command runs")
                .into(),
        );
    }
    let request = request(&engine, args)?;
    let interactive = args.interactive;
    foreground(place, &engine, args.tty, interactive, |stdio| {
        engine.run(&request, stdio)
    })
}

pub(super) fn create(place: &Place, args: &ContainerArgs) -> Result<ExitCode> {
    if args.rm {
        return Err(BuildError::new(
            "--rm is not possible for a container that is made to be started later",
        )
        .with_hint("remove it with kiln rm")
        .into());
    }
    let engine = place.engine()?;
    let request = request(&engine, args)?;
    let cidfile = args.cidfile.as_deref().map(new_cidfile).transpose()?;
    let id = engine.create(&request)?;
    if let Some(mut file) = cidfile {
        file.write_all(id.as_bytes()).context("--cidfile")?;
    }
    say(&id);
    Ok(ExitCode::SUCCESS)
}

pub(super) fn start(place: &Place, args: &StartArgs) -> Result<ExitCode> {
    args.docker.check()?;
    if !args.attach && !args.interactive {
        return Err(
            BuildError::new("kiln runs containers in the foreground, not detached")
                .with_hint("start it with -a, or with -ai to give it standard input")
                .into(),
        );
    }
    let engine = place.engine()?;
    let container = engine.container(&args.container)?;
    if container.running {
        return Err(BuildError::new(format!("container {:?} runs already", container.name)).into());
    }
    let trust = crate::certificates::trust(&args.trust, crate::context::certificates())?;
    let interactive = args.interactive && container.interactive;
    foreground(place, &engine, container.terminal, interactive, |stdio| {
        engine.start(&container.id, trust, stdio)
    })
}

/// Runs something with the streams and the signals of this process, and gives its exit code.
fn foreground(
    place: &Place,
    engine: &Engine,
    terminal: bool,
    interactive: bool,
    run: impl FnOnce([BorrowedFd<'_>; 3]) -> Result<Ran, BuildError>,
) -> Result<ExitCode> {
    let ran = attached(engine, terminal, interactive, run);
    engine.sweep_containers()?;
    engine.sweep()?;
    let ran = ran?;
    crate::worker::settle_later(place);
    for note in &ran.notes {
        complain(&format!("note: {note}"));
    }
    Ok(ExitCode::from(ran.code().clamp(0, 255) as u8))
}

/// Runs something with the streams and the signals of this process.
pub(super) fn attached(
    engine: &Engine,
    terminal: bool,
    interactive: bool,
    run: impl FnOnce([BorrowedFd<'_>; 3]) -> Result<Ran, BuildError>,
) -> Result<Ran> {
    let null = File::open("/dev/null")?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    if terminal && interactive && !rustix::termios::isatty(&stdin) {
        return Err(BuildError::new("the input device is not a TTY")
            .with_hint("leave -t out where standard input is no terminal")
            .into());
    }
    let stdin = if interactive {
        stdin.as_fd()
    } else {
        null.as_fd()
    };
    // The container's terminal does what the user's would do; until the end that one only carries bytes.
    let raw = (terminal && interactive).then(Raw::enter);
    let ran = with_signals(engine, || run([stdin, stdout.as_fd(), stderr.as_fd()]));
    drop(raw);
    Ok(ran??)
}

/// Passes the signals that come on to the container; the third one that asks for the end kills it, as does the one that
/// `kiln rm -f` sends.
fn with_signals<T>(engine: &Engine, run: impl FnOnce() -> T) -> Result<T> {
    let mut signals = Signals::new([
        SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGCONT, SIGALRM,
    ])?;
    let handle = signals.handle();
    let done = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut asked = 0;
            for signal in &mut signals {
                asked += u8::from(matches!(signal, SIGINT | SIGTERM));
                let signal = if asked > 2 || signal == SIGALRM {
                    SIGKILL
                } else {
                    signal
                };
                engine.worker.signal(signal as u8);
            }
        });
        let done = run();
        handle.close();
        done
    });
    Ok(done)
}

fn request(engine: &Engine, args: &ContainerArgs) -> Result<RunRequest> {
    args.docker.check()?;
    let rights = rights(args)?;
    let network = network(&args.network)?;
    for ports in &args.publish {
        check_ports(ports, network)?;
    }
    let mut env = Vec::new();
    for file in &args.env_file {
        let text = std::fs::read_to_string(file).with_context(|| format!("--env-file {file}"))?;
        let lines = text.lines().map(str::trim_start);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        env.extend(lines.filter_map(variable));
    }
    env.extend(args.env.iter().filter_map(|text| variable(text)));
    let mut request = RunRequest {
        image: Some(image(engine, args)?),
        image_name: args.image.clone(),
        name: args.name.clone(),
        remove: args.rm,
        args: args.args.clone(),
        entrypoint: args.entrypoint.clone(),
        env,
        workdir: args.workdir.clone(),
        user: args.user.clone(),
        read_only: args.read_only,
        network,
        hostname: args.hostname.clone().unwrap_or_else(|| "kiln".to_owned()),
        resolv_conf: resolver(args, &resolv_conf()),
        extra_hosts: extra_hosts(&args.add_hosts)?,
        limits: limits(args)?,
        ulimits: args
            .ulimits
            .iter()
            .map(|text| ulimit(text))
            .collect::<Result<_>>()?,
        shm_size: args
            .shm_size
            .as_deref()
            .map(bytes)
            .transpose()?
            .unwrap_or_default(),
        terminal: args.tty,
        init: args.init,
        interactive: args.interactive,
        trust: crate::certificates::trust(&args.trust, crate::context::certificates())?,
        privileged: args.privileged,
        rights,
        labels: labels(args)?,
        exposed_ports: exposed(&args.expose)?,
        stop_signal: args.stop_signal.clone(),
        stop_timeout: args.stop_timeout,
        ..RunRequest::default()
    };
    if let Some(signal) = &request.stop_signal {
        super::ending::signal("--stop-signal", signal)?;
    }
    for device in &args.device {
        request.volumes.push(parse_device(device)?);
    }
    for volume in &args.volume {
        request.volumes.push(parse_volume(volume)?);
    }
    for text in &args.tmpfs {
        let (to, options) = text.split_once(':').unwrap_or((text, ""));
        let mut size = 0;
        for option in options.split(',') {
            if let Some(text) = option.strip_prefix("size=") {
                size = bytes(text)?;
            }
        }
        request.tmpfs.push((absolute("--tmpfs", text, to)?, size));
    }
    for mount in &args.mount {
        parse_mount(mount, &mut request)?;
    }
    Ok(request)
}

/// The rights that are not the usual ones.
fn rights(args: &ContainerArgs) -> Result<Rights> {
    let mut rights = Rights {
        groups: args.group_add.clone(),
        ..Rights::default()
    };
    for text in &args.security_opt {
        let (name, value) = text.split_once(['=', ':']).unwrap_or((text, "true"));
        match (name, value) {
            ("no-new-privileges", "true" | "false") => rights.no_new_privileges = value == "true",
            ("seccomp", "unconfined") => rights.unfiltered = true,
            ("seccomp", "builtin") | ("writable-cgroups", "false") => {}
            ("label" | "apparmor", _) => {
                note(
                    true,
                    &format!("--security-opt {text}"),
                    "kiln gives containers no profile of that kind",
                );
            }
            _ => {
                let known = "kiln knows no-new-privileges, seccomp=unconfined and seccomp=builtin; --privileged gives all rights";
                let error = BuildError::new(format!("--security-opt {text}: not possible"));
                return Err(error.with_hint(known).into());
            }
        }
    }
    if args.cap_add.is_empty() && args.cap_drop.is_empty() {
        return Ok(rights);
    }
    let find = |option: &str, name: &str| {
        Capability::from_name(name).ok_or_else(|| {
            BuildError::new(format!("{option} {name}: there is no such capability"))
                .with_hint("the names are those of capabilities(7), and ALL")
        })
    };
    let mut bits = DOCKER_CAPABILITIES;
    // In this order, so that --cap-drop ALL --cap-add CHOWN leaves one.
    for name in &args.cap_drop {
        bits &= !find("--cap-drop", name)?.bits;
    }
    for name in &args.cap_add {
        let found = find("--cap-add", name)?;
        if found.needs_calls && !rights.unfiltered && !args.privileged {
            let text = format!("--cap-add {name}: the filter of system calls leaves nothing of it");
            let hint = "add --security-opt seccomp=unconfined, which lifts the filter; --privileged gives all rights";
            return Err(BuildError::new(text).with_hint(hint).into());
        }
        bits |= found.bits;
    }
    rights.capabilities = Some(bits);
    Ok(rights)
}

/// The text of `/etc/resolv.conf`, with what is asked for in place of the machine's.
fn resolver(args: &ContainerArgs, machine: &str) -> String {
    let given = [
        ("nameserver", &args.dns),
        ("search", &args.dns_search),
        ("options", &args.dns_option),
    ];
    let mut lines: Vec<String> = machine
        .lines()
        .filter(|line| {
            let word = line.split_whitespace().next().unwrap_or_default();
            !given.iter().any(|(name, values)| {
                !values.is_empty() && (word == *name || *name == "search" && word == "domain")
            })
        })
        .map(str::to_owned)
        .collect();
    for (name, values) in given {
        match name {
            "nameserver" => lines.extend(values.iter().map(|it| format!("nameserver {it}"))),
            // A dot alone asks for none.
            "search" if values[..] == ["."] => {}
            _ if values.is_empty() => {}
            _ => lines.push(format!("{name} {}", values.join(" "))),
        }
    }
    lines.join("\n") + "\n"
}

/// Labels from the command line and from files; those of the command line win.
fn labels(args: &ContainerArgs) -> Result<Vec<(String, String)>> {
    let mut lines = Vec::new();
    for file in &args.label_file {
        let text = std::fs::read_to_string(file).with_context(|| format!("--label-file {file}"))?;
        let those = text.lines().map(str::trim);
        let those = those.filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.extend(those.map(str::to_owned));
    }
    lines.extend(args.labels.iter().cloned());
    let pairs = lines.iter().map(|line| {
        let (name, value) = line.split_once('=').unwrap_or((line, ""));
        if name.is_empty() {
            let error = BuildError::new(format!("--label {line:?}: expected NAME=VALUE"));
            return Err(error.into());
        }
        Ok((name.to_owned(), value.to_owned()))
    });
    pairs.collect()
}

/// Ports as configs have them: `80/tcp`, each of a range.
fn exposed(list: &[String]) -> Result<Vec<String>> {
    let mut ports = Vec::new();
    for text in list {
        let wrong = || BuildError::new(format!("--expose {text}: expected PORT or PORT/udp"));
        let (range, kind) = text.split_once('/').unwrap_or((text, "tcp"));
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.parse::<u16>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first > last || !matches!(kind, "tcp" | "udp" | "sctp") {
            return Err(wrong().into());
        }
        ports.extend((first..=last).map(|port| format!("{port}/{kind}")));
    }
    Ok(ports)
}

/// A device is mounted like a file.
fn parse_device(text: &str) -> Result<(String, String, bool)> {
    use std::os::unix::fs::FileTypeExt as _;
    let mut fields = text.split(':');
    let from = fields.next().unwrap_or_default();
    // What comes last says what may be done with it; that is up to its mode here.
    let to = fields.next().filter(|to| to.starts_with('/'));
    let path = on_machine("--device", text, from)?;
    let kind = std::fs::metadata(&path).with_context(|| format!("--device {text}"))?;
    if !kind.file_type().is_char_device() && !kind.file_type().is_block_device() {
        let error = BuildError::new(format!("--device {text:?}: {from} is no device"));
        return Err(error.with_hint("-v takes files and folders").into());
    }
    Ok((path, to.unwrap_or(from).to_owned(), false))
}

/// A file for an id, which must not be there yet: it would be that of another container.
fn new_cidfile(path: &std::path::Path) -> Result<File> {
    File::create_new(path).with_context(|| format!("--cidfile {}", path.display()))
}

/// The limits, with `--cpus` in the kernel's words.
fn limits(args: &ContainerArgs) -> Result<kiln_engine::Limits> {
    const PERIOD: u64 = 100_000;
    let mut limits = args.limits.limits(&[])?;
    if let Some(cpus) = args.cpus {
        if !(0.01..=1e6).contains(&cpus) {
            return Err(
                BuildError::new(format!("--cpus {cpus}: expected a number like 1.5")).into(),
            );
        }
        limits.cpu_period = Some(PERIOD);
        limits.cpu_quota = Some((cpus * PERIOD as f64) as i64);
    }
    Ok(limits)
}

/// The image, from a registry if it has to be.
fn image(engine: &Engine, args: &ContainerArgs) -> Result<Digest> {
    let wanted = args.platform.as_deref();
    let wanted = wanted.map(|text| platform(Some(text))).transpose()?;
    let find = || find_image_for(&engine.store, &args.image, wanted.as_ref());
    let found = find();
    if args.pull == "never" || args.pull == "missing" && found.is_ok() {
        return found;
    }
    let Ok(name) = reference(&args.image) else {
        return found;
    };
    if args.pull == "missing" && !args.quiet {
        complain(&format!("Unable to find image '{}' locally", args.image));
    }
    let cancel = crate::signals::give_up_on_signal()?;
    let mode = display::mode(args.quiet, "auto")?;
    let display = kiln_progress::display(display::options(mode));
    let platform = wanted.clone().unwrap_or_else(Platform::host);
    let pulled = engine.pull(&name, &platform, &display, &cancel);
    let _ = display.finish();
    if pulled.is_err() && find_target(&engine.store, &args.image).is_ok() {
        // It is here, but not for that platform.
        return find();
    }
    pulled.with_context(|| format!("no such image: {}", args.image))?;
    find()
}

fn network(text: &str) -> Result<Network> {
    match text {
        "default" | "bridge" => Ok(Network::Default),
        "host" => Ok(Network::Host),
        "none" => Ok(Network::None),
        other => Err(BuildError::new(format!("--network {other}: expected host or none")).into()),
    }
}

/// The container's network is the machine's, or none: a port cannot be another one outside.
fn check_ports(text: &str, network: Network) -> Result<()> {
    let wrong = |what: &str, hint: &str| -> Result<()> {
        Err(BuildError::new(format!("--publish {text}: {what}"))
            .with_hint(hint)
            .into())
    };
    if network == Network::None {
        return wrong(
            "the container has no network",
            "leave out --network none or the port",
        );
    }
    let ports = text.split('/').next().unwrap_or_default();
    let mut fields = ports.rsplitn(3, ':');
    let inside = fields.next().unwrap_or_default();
    match fields.next() {
        Some(outside) if outside == inside => Ok(()),
        _ => wrong(
            "the container has the machine's network, so that its ports are the machine's",
            &format!(
                "write {inside}:{inside}, and let the program listen on the port that is wanted"
            ),
        ),
    }
}

fn absolute(option: &str, text: &str, path: &str) -> Result<String> {
    if path.starts_with('/') {
        return Ok(path.to_owned());
    }
    Err(BuildError::new(format!(
        "{option} {text:?}: expected an absolute path in the container"
    ))
    .into())
}

/// A path of the machine for a mount.
fn on_machine(option: &str, text: &str, from: &str) -> Result<String> {
    let refused = |what: String| BuildError::new(format!("{option} {text:?}: {what}"));
    if !from.contains('/') && !matches!(from, "." | "..") {
        return Err(refused(format!("{from:?} is no path"))
            .with_hint(format!(
                "kiln keeps no volumes: for a folder of this machine write ./{from}"
            ))
            .into());
    }
    let from = std::path::absolute(from)?;
    if !from.try_exists().unwrap_or_default() {
        return Err(refused(format!("{} is not there", from.display())).into());
    }
    Ok(from.to_string_lossy().into_owned())
}

fn parse_volume(text: &str) -> Result<(String, String, bool)> {
    let wrong = || {
        BuildError::new(format!(
            "--volume {text:?}: expected FROM:TO or FROM:TO:ro, the last absolute"
        ))
    };
    let mut fields = text.split(':');
    let (from, to) = (
        fields.next().unwrap_or_default(),
        fields.next().ok_or_else(wrong)?,
    );
    let mut readonly = false;
    for option in fields.next().unwrap_or_default().split(',') {
        match option {
            "ro" => readonly = true,
            // Labels and propagation that change nothing here.
            "" | "rw" | "z" | "Z" | "rprivate" | "private" => {}
            _ => return Err(wrong().into()),
        }
    }
    if fields.next().is_some() {
        return Err(wrong().into());
    }
    let to = absolute("--volume", text, to)?;
    Ok((on_machine("--volume", text, from)?, to, readonly))
}

fn parse_mount(text: &str, request: &mut RunRequest) -> Result<()> {
    let wrong = |what: &str| BuildError::new(format!("--mount {text:?}: {what}"));
    let (mut kind, mut source, mut target, mut readonly, mut size) =
        ("volume", None, None, false, 0);
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, "true"));
        match key {
            "type" => kind = value,
            "source" | "src" => source = Some(value),
            "target" | "destination" | "dst" => target = Some(value),
            "readonly" | "ro" => readonly = matches!(value, "true" | "1"),
            "tmpfs-size" => size = bytes(value)?,
            "tmpfs-mode" | "bind-propagation" | "consistency" => {}
            _ => return Err(wrong(&format!("unknown key {key:?}")).into()),
        }
    }
    let target = target.ok_or_else(|| wrong("expected target=PATH"))?;
    let target = absolute("--mount", text, target)?;
    match kind {
        "bind" => {
            let source = source.ok_or_else(|| wrong("expected source=PATH"))?;
            let source = on_machine("--mount", text, source)?;
            request.volumes.push((source, target, readonly));
        }
        "tmpfs" => request.tmpfs.push((target, size)),
        other => {
            return Err(wrong(&format!("mounts of type {other} cannot be made"))
                .with_hint("the types are bind and tmpfs; kiln keeps no volumes")
                .into());
        }
    }
    Ok(())
}

/// The user's terminal in raw mode, until dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Self {
        let stdin = std::io::stdin();
        let Ok(before) = tcgetattr(&stdin) else {
            return Self(None);
        };
        let mut raw = before.clone();
        raw.make_raw();
        // A terminal that cannot be set stays as it is.
        let set = tcsetattr(&stdin, OptionalActions::Now, &raw);
        Self(set.is_ok().then_some(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            // Nothing can be done for a terminal that is gone.
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_change_nothing_are_accepted() {
        for (text, network, fine) in [
            ("8080:8080", Network::Default, true),
            ("127.0.0.1:8080:8080/tcp", Network::Host, true),
            ("80:8080", Network::Default, false),
            ("8080", Network::Default, false),
            ("8080:8080", Network::None, false),
        ] {
            assert_eq!(check_ports(text, network).is_ok(), fine, "{text}");
        }
    }

    #[test]
    fn mounts_in_both_spellings() {
        let mut request = RunRequest::default();
        parse_mount("type=bind,src=/tmp,dst=/x,readonly", &mut request).unwrap();
        parse_mount("type=tmpfs,target=/t,tmpfs-size=1m", &mut request).unwrap();
        assert_eq!(
            request.volumes,
            [("/tmp".to_owned(), "/x".to_owned(), true)]
        );
        assert_eq!(request.tmpfs, [("/t".to_owned(), 1 << 20)]);
        assert_eq!(
            parse_volume("/tmp:/x:ro").unwrap(),
            ("/tmp".to_owned(), "/x".to_owned(), true)
        );
        for wrong in ["name:/x", "/tmp", "/tmp:x", "/tmp:/x:what", "/no/such:/x"] {
            assert!(parse_volume(wrong).is_err(), "{wrong}");
        }
        for wrong in [
            "type=volume,target=/x",
            "target=/x",
            "type=bind,target=/x",
            "type=tmpfs",
            "type=tmpfs,target=/x,a=b",
        ] {
            assert!(parse_mount(wrong, &mut request).is_err(), "{wrong}");
        }
    }
}
