//! Graphs that no Dockerfile expresses, solved for real: a process with several results, differences and merges.
//!
//! Has a `main` of its own, since the program is executed again as the worker. Needs root and `/bin/busybox`; what is
//! missing is said.

use std::io::Write;
use std::os::fd::{FromRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use kiln_graph::{
    Edge, ExecOp, FileAction, FileActionKind, FileInput, FileOp, Graph, Mount, MountKind, Op,
    OpKind, Place, SourceOp,
};
use kiln_image::view::MergedView;
use kiln_progress::{Event, NoSink, Sink, VertexId};
use kiln_sandbox::Isolation;
use kiln_solver::{
    Context, Options, Providers, Snapshot, SolveError, Solved, Solver, SourceError, Watch,
};
use kiln_store::layer_fs::Ids;
use kiln_store::{BuildStep, IdKind, OpenOptions, StepState, Store};
use kiln_worker::{Launch, Worker};

const BUSYBOX: &str = "/bin/busybox";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [first, root] = &args[..]
        && first == "worker"
    {
        serve(root.into());
        return ExitCode::SUCCESS;
    }
    let missing = if !rustix::process::geteuid().is_root() {
        Some("needs root")
    } else if !Path::new(BUSYBOX).exists() {
        Some("needs /bin/busybox")
    } else {
        None
    };
    if let Some(why) = missing {
        assert!(
            std::env::var_os("KILN_TEST_ALL").is_none(),
            "KILN_TEST_ALL is set, but {why}"
        );
        say(&format!("skipped: {why}"));
        return ExitCode::SUCCESS;
    }
    for (name, case) in [
        ("several_outputs", several_outputs as fn()),
        ("differences_are_merged", differences_are_merged),
        (
            "equal_outcome_keeps_what_follows",
            equal_outcome_keeps_what_follows,
        ),
        (
            "a_failure_keeps_what_was_done",
            a_failure_keeps_what_was_done,
        ),
        ("the_longest_way_goes_first", the_longest_way_goes_first),
        ("jobs_bound_processes", jobs_bound_processes),
        (
            "a_failure_ends_what_runs_at_once",
            a_failure_ends_what_runs_at_once,
        ),
        ("a_look_executes_nothing", a_look_executes_nothing),
    ] {
        case();
        say(&format!("test {name} ... ok"));
    }
    ExitCode::SUCCESS
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

#[allow(unsafe_code, reason = "the control descriptor is known by number")]
fn serve(root: PathBuf) {
    kiln_sandbox::enter_worker().unwrap();
    // SAFETY: nothing else in this process owns it; `spawn_worker` puts it there.
    let control = unsafe { OwnedFd::from_raw_fd(3) };
    kiln_worker::serve(control, root, Ids::Real, None).unwrap();
}

/// A store of its own with its worker.
struct Lab {
    store: Store,
    worker: Worker,
    _dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let parent =
            std::env::var_os("KILN_TEST_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
        let dir = tempfile::tempdir_in(parent).unwrap();
        let root = dir.path().join("store");
        let how = OpenOptions {
            owner: 0,
            ids: IdKind::Real,
            boot_id: kiln_store::boot_id().unwrap(),
        };
        let worker = Worker::new(Launch {
            exe: std::env::current_exe().unwrap(),
            args: vec!["worker".into(), root.clone().into()],
            isolation: Isolation::Root,
        });
        Self {
            store: Store::open(&root, how).unwrap(),
            worker,
            _dir: dir,
        }
    }

    fn try_solve(&self, graph: &Graph, target: Edge) -> Result<Solved, SolveError> {
        self.watched(&NoSink, 4, |solver| {
            solver.solve(graph, &[target], &mut Vec::new())
        })
    }

    fn watched<T>(&self, sink: &dyn Sink, jobs: usize, work: impl FnOnce(&Solver<'_>) -> T) -> T {
        let lease = self.store.lease().unwrap();
        let solver = Solver {
            store: &self.store,
            lease: &lease,
            worker: &self.worker,
            sink,
            providers: &Nothing,
            options: Options {
                keep_failed: false,
                limits: kiln_worker::Limits::default(),
                jobs,
                cores: 2,
                resolv_conf: String::new(),
                trust: None,
                now: (1_700_000_000, 0),
                first_vertex: 0,
                origin: String::new(),
                about: String::new(),
                uncached: "--no-cache".to_owned(),
                lazy: false,
                keep: false,
                scan_first: false,
            },
            sealed: &|_| {},
        };
        work(&solver)
    }

    /// The paths of the result, and the titles of what was executed.
    fn solve(&self, graph: &Graph, target: Edge) -> (Vec<String>, Vec<String>) {
        let solved = self.try_solve(graph, target).unwrap();
        let executed = solved.reports.iter().filter(|report| report.executed);
        let executed = executed.map(|report| graph.op(report.op).place.step.clone());
        (
            self.paths(&Snapshot::here(&solved.layers[0]).expect("all is here")),
            executed.collect(),
        )
    }

    fn paths(&self, snapshot: &Snapshot) -> Vec<String> {
        let indexes = snapshot
            .layers
            .iter()
            .map(|layer| self.store.load_index(*layer).unwrap());
        let view = MergedView::new(indexes);
        let paths = view
            .walk(&kiln_image::LayerPath::root())
            .map(|(path, _)| path.to_string());
        paths
            .filter(|path| !path.trim_matches('/').is_empty())
            .collect()
    }
}

/// Graphs of this test bring nothing from outside.
struct Nothing;

impl Providers for Nothing {
    fn image(&self, reference: &str) -> Result<Option<Snapshot>, String> {
        Err(format!("no image {reference}"))
    }
    fn fetch_image(&self, reference: &str, _: VertexId) -> Result<Snapshot, SourceError> {
        let message = format!("no image {reference}");
        let hint = None;
        Err(SourceError {
            message,
            hint,
            canceled: false,
        })
    }
    fn scan(&self, name: &str, _: &[String]) -> Result<Context, String> {
        Err(format!("no context {name}"))
    }
    fn identify(&self, _: &SourceOp, _: &dyn Watch) -> Result<String, SourceError> {
        unreachable!("no graph here has a source from the network")
    }
    fn fetch(&self, _: &SourceOp, _: &str, _: &dyn Watch) -> Result<Context, SourceError> {
        unreachable!("no graph here has a source from the network")
    }
    fn secret(&self, _: &str) -> Result<Option<Vec<u8>>, String> {
        Ok(None)
    }
    fn ssh(&self, _: &str) -> Option<PathBuf> {
        None
    }
    fn is_canceled(&self) -> bool {
        false
    }
}

fn add(graph: &mut Graph, step: &str, kind: OpKind, inputs: Vec<Edge>) -> Edge {
    let place = Place {
        title: step.to_owned(),
        step: step.to_owned(),
        ..Place::default()
    };
    let op = graph.add(Op {
        kind,
        inputs,
        platform: None,
        ignore_cache: false,
        place,
    });
    Edge { op, output: 0 }
}

fn files(files: &[(&str, &[u8])]) -> OpKind {
    let action = |at: usize, (path, data): &(&str, &[u8])| FileAction {
        on: at
            .checked_sub(1)
            .map_or(FileInput::Scratch, FileInput::Action),
        output: (at + 1 == files.len()).then_some(0),
        kind: FileActionKind::MkFile {
            path: (*path).to_owned(),
            mode: 0o755,
            data: data.to_vec(),
            owner: None,
            timestamp: Some(0),
        },
    };
    let actions = files
        .iter()
        .enumerate()
        .map(|(at, file)| action(at, file))
        .collect();
    OpKind::File(FileOp { actions })
}

/// A root with a shell.
fn base(graph: &mut Graph) -> Edge {
    let busybox = std::fs::read(BUSYBOX).unwrap();
    let root = add(graph, "base", files(&[("/busybox", &busybox)]), vec![]);
    assert_eq!(root.output, 0);
    root
}

fn tree(input: Option<usize>, dest: &str, output: Option<u32>) -> Mount {
    Mount {
        input,
        selector: String::new(),
        dest: dest.to_owned(),
        output,
        readonly: false,
        kind: MountKind::Bind,
    }
}

fn shell(script: &str, mounts: Vec<Mount>) -> OpKind {
    let args = [BUSYBOX.trim_start_matches("/bin"), "sh", "-c", script];
    OpKind::Exec(Box::new(ExecOp {
        args: args.map(str::to_owned).to_vec(),
        cwd: "/".to_owned(),
        mounts,
        ..ExecOp::default()
    }))
}

fn several_outputs() {
    let lab = Lab::new();
    let mut graph = Graph::default();
    let base = base(&mut graph);
    let seed = add(&mut graph, "seed", files(&[("/old", b"old")]), vec![]);
    let script = "echo r > /r; echo a > /a/new; /busybox rm /a/old; echo b > /b/fresh";
    let mounts = vec![
        tree(Some(0), "/", Some(0)),
        tree(Some(1), "/a", Some(1)),
        tree(None, "/b", Some(2)),
    ];
    let exec = add(&mut graph, "exec", shell(script, mounts), vec![base, seed]).op;
    let output = |output| Edge { op: exec, output };
    let (paths, executed) = lab.solve(&graph, output(1));
    assert_eq!(
        paths,
        ["/new"],
        "the mount's own result, without what was deleted"
    );
    assert_eq!(executed, ["base", "seed", "exec"]);
    // The others come of the same record.
    assert_eq!(
        lab.solve(&graph, output(2)),
        (vec!["/fresh".into()], vec![])
    );
    assert_eq!(
        lab.solve(&graph, output(0)),
        (vec!["/busybox".into(), "/r".into()], vec![])
    );
}

fn differences_are_merged() {
    let lab = Lab::new();
    let mut graph = Graph::default();
    let base = base(&mut graph);
    let on_base = |graph: &mut Graph, step: &str, script: &str| {
        add(
            graph,
            step,
            shell(script, vec![tree(Some(0), "/", Some(0))]),
            vec![base],
        )
    };
    let one = on_base(&mut graph, "one", "echo 1 > /one");
    let two = on_base(&mut graph, "two", "echo 2 > /two; /busybox rm /busybox");
    let diff = |graph: &mut Graph, step: &str, upper| {
        let kind = OpKind::Diff {
            lower: Some(0),
            upper: Some(1),
        };
        add(graph, step, kind, vec![base, upper])
    };
    let (first, second) = (
        diff(&mut graph, "diff one", one),
        diff(&mut graph, "diff two", two),
    );
    let merged = add(
        &mut graph,
        "merge",
        OpKind::Merge,
        vec![base, first, second],
    );
    let (paths, _) = lab.solve(&graph, first);
    assert_eq!(
        paths,
        ["/one"],
        "a difference holds nothing of what is below"
    );
    let (paths, mut executed) = lab.solve(&graph, merged);
    assert_eq!(
        paths,
        ["/one", "/two"],
        "what one of them deletes is gone in the merged tree"
    );
    executed.retain(|step| !["merge", "diff two"].contains(&step.as_str()));
    assert_eq!(executed, ["two"], "the rest was there");
    assert_eq!(lab.solve(&graph, merged), (paths, vec![]));
}

fn equal_outcome_keeps_what_follows() {
    let lab = Lab::new();
    let solve = |script: &str| {
        let mut graph = Graph::default();
        let base = base(&mut graph);
        let root = || vec![tree(Some(0), "/", Some(0))];
        let made = add(&mut graph, "made", shell(script, root()), vec![base]);
        let below = add(
            &mut graph,
            "below",
            shell("/busybox cat /file > /copy", root()),
            vec![made],
        );
        lab.solve(&graph, below).1
    };
    // Times are part of the outcome, so that they are set.
    let and_time = "; /busybox touch -d @0 /file /";
    assert_eq!(
        solve(&format!("echo same > /file{and_time}")),
        ["base", "made", "below"]
    );
    let other_words = format!("echo sa''me > /file{and_time}");
    assert_eq!(
        solve(&other_words),
        ["made"],
        "its outcome is the same, so what follows is known"
    );
    assert_eq!(
        solve(&format!("echo other > /file{and_time}")),
        ["made", "below"]
    );
}

fn a_failure_keeps_what_was_done() {
    let lab = Lab::new();
    let mut graph = Graph::default();
    let base = base(&mut graph);
    let root = || vec![tree(Some(0), "/", Some(0))];
    let done = add(
        &mut graph,
        "done",
        shell("echo 1 > /done", root()),
        vec![base],
    );
    let fails = add(&mut graph, "fails", shell("exit 3", root()), vec![done]);
    let error = lab.try_solve(&graph, fails).unwrap_err();
    assert!(error.to_string().contains("exit code: 3"), "{error}");
    assert_eq!(
        error.place().map(|place| place.step.as_str()),
        Some("fails")
    );
    assert_eq!(
        lab.solve(&graph, done),
        (vec!["/busybox".into(), "/done".into()], vec![])
    );
}

/// The beginnings (true) and ends of vertices, in order.
#[derive(Default)]
struct Seen(Mutex<Vec<(u32, bool)>>);

impl Sink for Seen {
    fn emit(&self, event: Event) {
        let seen = match event {
            Event::Started { id, .. } => (id.0, true),
            Event::Finished { id, .. } | Event::Failed { id, .. } | Event::Canceled { id, .. } => {
                (id.0, false)
            }
            _ => return,
        };
        self.0.lock().unwrap().push(seen);
    }
}

/// A base that differs by `salt`, processes on it that do what `scripts` say, and a tree of all their results.
fn side_by_side(salt: &str, scripts: &[(&str, &str)]) -> (Graph, Edge) {
    let mut graph = Graph::default();
    let busybox = std::fs::read(BUSYBOX).unwrap();
    let seed = [("/busybox", &*busybox), ("/salt", salt.as_bytes())];
    let base = add(&mut graph, "base", files(&seed), vec![]);
    let mut merged = vec![base];
    for (step, script) in scripts {
        let root = vec![tree(Some(0), "/", Some(0))];
        merged.push(add(&mut graph, step, shell(script, root), vec![base]));
    }
    let target = add(&mut graph, "merge", OpKind::Merge, merged);
    (graph, target)
}

fn the_longest_way_goes_first() {
    let lab = Lab::new();
    // Times are learnt in a first build; the place in the graph would say otherwise.
    let scripts = [
        ("short", "/busybox true"),
        ("middle", "/busybox sleep 0.2"),
        ("long", "/busybox sleep 0.4"),
    ];
    let order = |salt: &str| {
        let seen = Seen::default();
        let (graph, target) = side_by_side(salt, &scripts);
        let solved = lab.watched(&seen, 1, |solver| {
            solver.solve(&graph, &[target], &mut Vec::new())
        });
        solved.unwrap();
        let seen = seen.0.into_inner().unwrap();
        let started = seen.into_iter().filter(|(id, start)| *start && *id > 0);
        started.map(|(id, _)| id).collect::<Vec<_>>()
    };
    assert_eq!(order("a"), [1, 2, 3], "nothing is known yet");
    assert_eq!(order("b"), [3, 2, 1]);
}

fn jobs_bound_processes() {
    let lab = Lab::new();
    let scripts = ["a", "b", "c", "d"].map(|name| (name, format!("/busybox sleep 0.2; : {name}")));
    let scripts: Vec<_> = scripts
        .iter()
        .map(|(name, it)| (*name, it.as_str()))
        .collect();
    for (jobs, salt) in [(2, "x"), (4, "y")] {
        let seen = Seen::default();
        let (graph, target) = side_by_side(salt, &scripts);
        let solved = lab.watched(&seen, jobs, |solver| {
            solver.solve(&graph, &[target], &mut Vec::new())
        });
        solved.unwrap();
        let (mut now, mut most) = (0, 0);
        for (_, start) in seen.0.into_inner().unwrap() {
            if start {
                now += 1;
                most = most.max(now);
            } else {
                now -= 1;
            }
        }
        assert_eq!(most, jobs, "processes at once");
    }
}

fn a_failure_ends_what_runs_at_once() {
    let lab = Lab::new();
    let (graph, target) = side_by_side(
        "",
        &[
            ("kept", "/busybox true"),
            ("hangs", "/busybox sleep 60"),
            ("fails", "/busybox sleep 0.3; exit 3"),
        ],
    );
    let mut steps = Vec::new();
    let start = Instant::now();
    let error = lab.watched(&NoSink, 4, |solver| {
        solver.solve(&graph, &[target], &mut steps)
    });
    assert!(error.unwrap_err().to_string().contains("exit code: 3"));
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    let states = |steps: &[BuildStep]| {
        let states = steps.iter().map(|step| (step.step.clone(), step.state));
        states.collect::<Vec<_>>()
    };
    let expected = [
        ("base", StepState::Done),
        ("kept", StepState::Done),
        ("hangs", StepState::Canceled),
        ("fails", StepState::Failed),
        ("merge", StepState::NotReached),
    ];
    assert_eq!(
        states(&steps),
        expected.map(|(name, state)| (name.to_owned(), state))
    );

    // What had ended is kept.
    let looked = lab
        .watched(&NoSink, 4, |solver| solver.look(&graph, &[target]))
        .unwrap();
    assert_eq!(looked[1].state, StepState::Cached);
}

fn a_look_executes_nothing() {
    let lab = Lab::new();
    let (graph, target) = side_by_side("", &[("one", "/busybox true")]);
    let look = || {
        let seen = Seen::default();
        let steps = lab
            .watched(&seen, 4, |solver| solver.look(&graph, &[target]))
            .unwrap();
        assert_eq!(seen.0.into_inner().unwrap(), []);
        let told = |step: BuildStep| (step.step, step.state, step.reason.unwrap_or_default());
        steps.into_iter().map(told).collect::<Vec<_>>()
    };
    let told = |name: &str, state, reason: &str| (name.to_owned(), state, reason.to_owned());
    let never = [
        told("base", StepState::Would, "never built before"),
        told("one", StepState::May, "depends on base"),
        told("merge", StepState::May, "depends on base"),
    ];
    assert_eq!(look(), never);
    lab.try_solve(&graph, target).unwrap();
    assert_eq!(
        look()[..2],
        ["base", "one"].map(|name| told(name, StepState::Cached, ""))
    );
}
