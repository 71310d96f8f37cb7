//! The live screen of the real binary, in a terminal of 80 columns.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use kiln_tests::{Kiln, OWN_TERMINAL, Registry, Setting, Terminal};

/// A step that holds a locked cache mount until it is told to end.
const HOLDS: &str = "FROM busybox\nRUN --mount=type=cache,target=/c,id=shared,sharing=locked echo it is held && sleep 100\n";
const WANTS: &str =
    "FROM busybox\nRUN --mount=type=cache,target=/c,id=shared,sharing=locked echo it is mine\n";

/// A build that ends with the test, whatever the test finds.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Who waits is told for what, and goes on when that is over.
#[test]
fn what_is_waited_for_is_on_the_screen() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let (holds, wants) = (
        kiln.context(&[("Dockerfile", HOLDS)]),
        kiln.context(&[("Dockerfile", WANTS)]),
    );
    let options = ["build", "--network", "host"];
    let plain = [&options[..], &["--progress", "plain", &holds]].concat();
    let mut holder = kiln.command(&plain);
    let holder = holder.stderr(Stdio::piped()).spawn();
    let mut holder = Holder(holder.expect("kiln starts"));
    let shown = BufReader::new(holder.0.stderr.take().expect("a pipe"));
    let mut shown = shown.lines();
    assert!(
        shown.any(|line| line.is_ok_and(|line| line.ends_with(" it is held"))),
        "the step runs"
    );
    let wants = [&options[..], &[&wants]].concat();
    let mut locked = Terminal::start(kiln.wrapped(&OWN_TERMINAL, &wants));
    locked.shows("=> => waiting for the cache mount shared: another step of process ");
    // The same step at the same time: one of them does the work.
    let same = [&options[..], &[&holds]].concat();
    let mut same = Terminal::start(kiln.wrapped(&OWN_TERMINAL, &same));
    same.shows("=> => waiting for the same step in another build (process ");
    same.send("\u{3}");
    assert_eq!(same.ends().code(), Some(130), "{}", same.shown);
    let pid = rustix::process::Pid::from_child(&holder.0);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("own child");
    drop(shown);
    assert_eq!(holder.0.wait().expect("own child").code(), Some(130));
    locked.shows("FINISHED");
    assert!(locked.ends().success(), "{}", locked.shown);
}

/// However long a digest is, it leaves room for how much there is of the layer.
#[test]
fn transfers_have_their_bytes_on_the_screen() {
    let Some(kiln) = Kiln::fresh(Setting::Root, &["busybox"]) else {
        return;
    };
    let Some(registry) = Registry::start() else {
        return;
    };
    let image = registry.image("app:1");
    kiln.run(&["tag", "busybox", &image]).ok();
    kiln.run(&["push", &image]).ok();
    kiln.run(&["rmi", "-f", "busybox", &image]).ok();
    kiln.run(&["builder", "prune", "-af"]).ok();
    let mut terminal = Terminal::start(kiln.wrapped(&OWN_TERMINAL, &["pull", &image]));
    assert!(terminal.ends().success(), "{}", terminal.shown);
    let mut rows = terminal.shown.lines();
    assert!(
        rows.any(|row| row.contains(" => => sha256:") && row.contains("MB / ")),
        "{}",
        terminal.shown
    );
}
