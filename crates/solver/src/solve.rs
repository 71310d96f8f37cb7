//! Decides what must be executed, and runs it: independent operations at once, equal ones once.

mod chain;
mod dry;
mod end;
mod inputs;
mod order;
mod promised;
mod remote;
mod start;
mod upon;
mod why;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Scope;
use std::time::{Duration, SystemTime};

use kiln_graph::{Edge, Graph, Op, OpId, OpKind, Place, SourceOp};
use kiln_image::{Key, Layer};
use kiln_progress::{Event, Sink, VertexId};
use kiln_store::{BuildStep, Claim, Lease, Record, RecordId, StepState, Store};
use kiln_worker::{Limits, Trust, Worker};

use self::chain::chain_of;
use self::upon::Upon;
use self::why::Earlier;
use crate::SolveError;
use crate::explain::Reason;
use crate::parts::Parts;
use crate::providers::Providers;
use crate::value::{Context, LocalTree, Promise, Snapshot, Value};

pub use promised::Kept;
pub use remote::{SourceError, Watch};
pub(crate) use upon::upon;

/// How often a wait looks whether the user gave up.
const TICK: Duration = Duration::from_millis(50);

/// Choices for one solve.
#[derive(Debug, Clone)]
pub struct Options {
    /// RUN steps at once.
    pub jobs: usize,
    /// Kiln's own work at once.
    pub cores: usize,
    /// The text of `/etc/resolv.conf` in a step.
    pub resolv_conf: String,
    /// Certificates of the host that RUN trusts: no part of any key.
    pub trust: Option<Trust>,
    /// Memory and processors of each RUN: no part of any key.
    pub limits: Limits,
    /// A RUN that fails leaves its state in the error: [`SolveError::Process`].
    pub keep_failed: bool,
    /// The time of what a step makes and that has none of its own.
    pub now: (i64, u32),
    /// The number of the first vertex; earlier ones are the caller's.
    pub first_vertex: u32,
    /// Under which earlier builds of the same build file in the same context are remembered: what is executed is
    /// explained by them.
    pub origin: String,
    /// What others who wait for this build are told, in one line: its command.
    pub about: String,
    /// Why records are not read where they are not: `--no-cache`.
    pub uncached: String,
    /// The target's layers need not be in the store.
    pub lazy: bool,
    /// Give what all operations gave: [`Solved::kept`].
    pub keep: bool,
    /// Nothing else is done before the local contexts are scanned: then all keys are known, and no remote cache is asked
    /// for what a hit above spares.
    pub scan_first: bool,
}

/// What became of one operation.
#[derive(Debug, Clone)]
pub struct OpReport {
    /// Which.
    pub op: OpId,
    /// It was executed in this build.
    pub executed: bool,
    /// Why it was executed.
    pub reason: Option<String>,
    /// All that was different, if known.
    pub changes: Vec<String>,
    /// When it began.
    pub started: SystemTime,
    /// How long it took when it was executed.
    pub took: Duration,
}

/// The result of a solve.
#[derive(Debug)]
pub struct Solved {
    /// The layers of each target. All are in the store unless [`Options::lazy`].
    pub layers: Vec<Vec<Layer>>,
    /// What was executed, in the order of the graph.
    pub reports: Vec<OpReport>,
    /// The records that were used or made.
    pub records: Vec<RecordId>,
    /// What all operations gave, as far as it is in this store's cache or a remote one, if asked for.
    pub kept: Vec<Kept>,
}

/// Solves graphs against one store with one worker.
pub struct Solver<'a> {
    /// Where results are kept.
    pub store: &'a Store,
    /// Protects what this build makes and uses.
    pub lease: &'a Lease,
    /// Does what touches layers.
    pub worker: &'a Worker,
    /// Gets the events.
    pub sink: &'a dyn Sink,
    /// Brings what is outside the graph.
    pub providers: &'a dyn Providers,
    /// Choices.
    pub options: Options,
    /// Told of every layer that was sealed on the way to a target, as early as possible.
    pub sealed: &'a (dyn Fn(kiln_image::LayerId) + Sync),
}

enum State {
    /// Nobody needs it so far.
    Idle,
    /// Its result is needed; `looked_up` when its definition key has been tried.
    Wanted {
        looked_up: bool,
        by_content: bool,
    },
    /// A source from the network of which it is known what it is, and no more.
    Identified,
    Running,
    /// What comes of it is known, but not all of its layers are here.
    Promised(Arc<Promise>),
    Done(Value),
    /// Nothing is executed, and its result is not known.
    Unknown,
}

enum Message {
    Executed {
        op: OpId,
        reason: Option<Reason>,
        outcome: Result<Executed, SolveError>,
    },
    Claimed {
        op: OpId,
        claim: Claim,
    },
    Identified {
        op: OpId,
        outcome: Result<String, SourceError>,
        started: bool,
    },
    Brought {
        op: OpId,
        outcome: Result<Vec<Snapshot>, SourceError>,
    },
    Fetched {
        op: OpId,
        outcome: Box<Result<Context, SourceError>>,
        started: bool,
    },
}

/// What executing an operation gave.
pub(crate) struct Executed {
    pub(crate) outputs: Vec<Snapshot>,
    pub(crate) record: Option<RecordId>,
    pub(crate) took: Duration,
    /// What it was executed on and is elsewhere: then the outputs are what stands on that.
    pub(crate) on: Vec<Arc<Promise>>,
}

/// Everything that an executing thread needs of its operation.
pub(crate) struct Task {
    pub(crate) op: Op,
    pub(crate) inputs: Vec<Value>,
    pub(crate) vertex: VertexId,
    pub(crate) keys: Vec<Key>,
    pub(crate) parts: Vec<(String, Vec<u8>)>,
    pub(crate) claim: Option<Claim>,
    /// What the same step gave in an earlier build.
    pub(crate) earlier: Option<Record>,
}

struct Run<'s, 'a> {
    solver: &'s Solver<'a>,
    graph: &'s Graph,
    targets: Vec<Edge>,
    states: Vec<State>,
    definitions: Vec<Option<(Key, Parts)>>,
    contents: Vec<Option<(Key, Parts)>>,
    /// What sources from the network are now.
    identities: Vec<Option<String>>,
    /// Those sources whose work the displays have shown.
    told: Vec<bool>,
    /// Operations with a descendant relation to one whose records are not read.
    tainted: Vec<bool>,
    on_chain: HashSet<OpId>,
    reports: Vec<Option<OpReport>>,
    records: Vec<RecordId>,
    claims: Vec<Option<Claim>>,
    /// What is being brought.
    promises: HashMap<OpId, Arc<Promise>>,
    /// What was put on trees that are not here.
    upon: Upon,
    /// Found in the cache, and not told yet.
    cached: Vec<OpId>,
    /// Everything is there to start them.
    ready: Vec<OpId>,
    /// How long each operation takes, as far as can be told; empty until that matters.
    expected: Vec<Duration>,
    earlier: Option<Earlier>,
    begun: SystemTime,
    /// Operations that did not end well, and those that have no report although something was done for them.
    ends: Vec<Option<StepState>>,
    execs: usize,
    others: usize,
    running: usize,
    failure: Option<SolveError>,
    /// Nothing is executed.
    dry: bool,
}

impl Solver<'_> {
    /// Brings about the results of `targets`. What became of the steps is added to `steps`, also when it fails.
    ///
    /// # Errors
    /// The first failure. What else ran is cancelled; what had been completed stays in the cache.
    pub fn solve(
        &self,
        graph: &Graph,
        targets: &[Edge],
        steps: &mut Vec<BuildStep>,
    ) -> Result<Solved, SolveError> {
        let mut run = self.begin(graph, targets, false);
        let solved = std::thread::scope(|scope| {
            let (sender, receiver) = channel();
            run.drive(scope, &sender, &receiver)
        });
        steps.extend(run.steps(solved.is_ok()));
        solved
    }

    fn begin<'s>(&'s self, graph: &'s Graph, targets: &[Edge], dry: bool) -> Run<'s, 's> {
        let mut tainted = vec![false; graph.len()];
        for (id, op) in graph.ops() {
            tainted[id.0] = op
                .inputs
                .iter()
                .any(|edge| tainted[edge.op.0] || graph.op(edge.op).ignore_cache);
        }
        for (id, op) in graph.ops() {
            if !op.place.title.is_empty() {
                self.sink.emit(Event::Vertex {
                    id: self.vertex(id),
                    title: op.place.title.clone(),
                });
            }
        }
        Run {
            solver: self,
            graph,
            targets: targets.to_vec(),
            states: (0..graph.len()).map(|_| State::Idle).collect(),
            definitions: vec![None; graph.len()],
            contents: vec![None; graph.len()],
            identities: vec![None; graph.len()],
            told: vec![false; graph.len()],
            tainted,
            on_chain: chain_of(graph, targets),
            reports: vec![None; graph.len()],
            records: Vec::new(),
            claims: (0..graph.len()).map(|_| None).collect(),
            promises: HashMap::new(),
            upon: Upon::new(),
            cached: Vec::new(),
            ready: Vec::new(),
            expected: Vec::new(),
            earlier: None,
            begun: SystemTime::now(),
            ends: vec![None; graph.len()],
            execs: 0,
            others: 0,
            running: 0,
            failure: None,
            dry,
        }
    }

    pub(crate) fn vertex(&self, op: OpId) -> VertexId {
        VertexId(self.options.first_vertex + op.0 as u32)
    }
}

impl<'s> Run<'s, '_> {
    fn drive<'scope, 'env>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        sender: &Sender<Message>,
        receiver: &Receiver<Message>,
    ) -> Result<Solved, SolveError>
    where
        's: 'scope,
    {
        for at in 0..self.targets.len() {
            self.want(self.targets[at].op);
        }
        if self.solver.options.scan_first {
            self.scan_all();
        }
        loop {
            if self.failure.is_none() && self.solver.providers.is_canceled() {
                self.fail(SolveError::Canceled);
            }
            if self.failure.is_none() {
                if let Err(error) = self.advance_all(scope, sender) {
                    self.fail(error);
                }
                if self.is_over() && self.running == 0 {
                    return self.finish();
                }
                if self.failure.is_none() && self.scan_one() {
                    continue;
                }
            }
            if self.running == 0 {
                return Err(self
                    .failure
                    .take()
                    .expect("nothing runs and a target is not done: a failure"));
            }
            self.tell_cached();
            match receiver.recv_timeout(TICK) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("this thread holds a sender"),
            }
        }
    }

    /// Whether all is known of the targets that can be.
    fn is_over(&self) -> bool {
        let over = |target: &Edge| match self.states[target.op.0] {
            State::Done(_) | State::Unknown => true,
            State::Promised(_) => self.dry || self.solver.options.lazy,
            _ => false,
        };
        self.targets.iter().all(over)
    }

    fn want(&mut self, id: OpId) {
        if matches!(self.states[id.0], State::Idle) {
            self.states[id.0] = State::Wanted {
                looked_up: false,
                by_content: false,
            };
        }
    }

    fn fail(&mut self, error: SolveError) {
        if self.failure.is_none() {
            self.failure = Some(error);
            // A step that cannot succeed ends the build at once; what others had begun is given up.
            self.solver.worker.cancel();
        }
    }

    /// Tells of what was found in the cache, in the order of the graph and not in that of the search.
    fn tell_cached(&mut self) {
        self.cached.sort_unstable();
        for id in self.cached.drain(..) {
            if !self.graph.op(id).place.title.is_empty() {
                let id = self.solver.vertex(id);
                self.solver.sink.emit(Event::Cached { id });
            }
        }
    }

    /// Tells of an operation that failed before it was started: what it needs is not there.
    fn tell_failed(&mut self, id: OpId, error: &SolveError) {
        self.ends[id.0] = Some(StepState::Failed);
        if matches!(error, SolveError::Step { .. } | SolveError::Missing { .. }) {
            let (id, at) = (self.solver.vertex(id), SystemTime::now());
            self.solver.sink.emit(Event::Started { id, at });
            self.solver.sink.emit(Event::Failed {
                id,
                error: error.to_string(),
                at,
            });
        }
    }

    /// Looks at what is wanted, from the target down: a hit high up spares all below it.
    fn advance_all<'scope, 'env>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        sender: &Sender<Message>,
    ) -> Result<(), SolveError>
    where
        's: 'scope,
    {
        loop {
            let mut changed = false;
            self.ready.clear();
            for at in (0..self.graph.len()).rev() {
                if self.is_over() {
                    return Ok(());
                }
                let id = OpId(at);
                if matches!(self.states[at], State::Promised(_)) && self.is_wanted_here(id) {
                    self.bring_promised(id, scope, sender);
                    changed = true;
                }
                if !matches!(self.states[at], State::Wanted { .. }) {
                    continue;
                }
                match self.advance(id, scope, sender) {
                    Ok(advanced) => changed |= advanced,
                    Err(error) => {
                        self.tell_cached();
                        self.tell_failed(id, &error);
                        return Err(error);
                    }
                }
            }
            if !changed && !self.start_ready(scope, sender)? {
                return Ok(());
            }
        }
    }

    /// Starts what is ready, as far as there are slots, that first which has most behind it; whether anything changed.
    fn start_ready<'scope, 'env>(
        &mut self,
        scope: &'scope Scope<'scope, 'env>,
        sender: &Sender<Message>,
    ) -> Result<bool, SolveError>
    where
        's: 'scope,
    {
        let mut ready = std::mem::take(&mut self.ready);
        if self.dry || ready.is_empty() {
            return Ok(false);
        }
        if ready.len() > 1 {
            let remaining = self.remaining()?;
            // In the order of the graph where there is no difference.
            ready.sort_by_key(|id| (std::cmp::Reverse(remaining[id.0]), *id));
        }
        let mut changed = false;
        for id in ready {
            changed |= self.start(id, scope, sender)?;
        }
        Ok(changed)
    }

    /// One step for one operation; whether anything changed.
    fn advance<'scope, 'env>(
        &mut self,
        id: OpId,
        scope: &'scope Scope<'scope, 'env>,
        sender: &Sender<Message>,
    ) -> Result<bool, SolveError>
    where
        's: 'scope,
    {
        let graph = self.graph;
        let op = graph.op(id);
        match &op.kind {
            OpKind::Source(SourceOp::Local { .. }) => return Ok(false),
            OpKind::Source(
                SourceOp::Image { reference } | SourceOp::OciLayout { reference, .. },
            ) => {
                let snapshot = self
                    .solver
                    .providers
                    .image(reference)
                    .map_err(|message| SolveError::step(&op.place, message, None))?;
                match snapshot {
                    Some(snapshot) => self.done(id, Value::Trees(vec![snapshot]), true),
                    None if self.dry => self.states[id.0] = State::Unknown,
                    None => match self.solver.providers.promised_image(reference) {
                        Some(promise) => self.states[id.0] = State::Promised(Arc::new(promise)),
                        None => self.fetch_image(id, op, reference, scope, sender),
                    },
                }
                return Ok(true);
            }
            kind if remote::is_remote(kind) => {
                self.identify(id, scope, sender);
                return Ok(true);
            }
            _ => {}
        }
        let State::Wanted {
            mut looked_up,
            by_content,
        } = self.states[id.0]
        else {
            return Ok(false);
        };
        let readable = !op.ignore_cache && !self.tainted[id.0];
        if !looked_up
            && readable
            && !matches!(op.kind, OpKind::Merge)
            && let Some(key) = self.definition(id)?
        {
            looked_up = true;
            self.states[id.0] = State::Wanted {
                looked_up,
                by_content,
            };
            if let Some(record) = self.solver.find(key)?
                && self.hit(id, &record, None)?
            {
                return Ok(true);
            }
            if self.remembered(id, key)? {
                return Ok(true);
            }
        }
        let mut waiting = false;
        let mut promised = false;
        let mut changed = false;
        let mut unknown = false;
        let read = looked_up || !readable || matches!(op.kind, OpKind::Merge);
        for edge in &op.inputs {
            match self.states[edge.op.0] {
                State::Idle => {
                    self.want(edge.op);
                    changed = true;
                }
                State::Identified if read && self.dry => {
                    self.states[edge.op.0] = State::Unknown;
                    changed = true;
                }
                State::Identified if read => {
                    self.fetch(edge.op, scope, sender);
                    changed = true;
                }
                _ => {}
            }
            match self.states[edge.op.0] {
                State::Unknown => unknown = true,
                State::Promised(_) => promised = true,
                State::Done(_) => {}
                _ => waiting = true,
            }
        }
        if waiting {
            return Ok(changed);
        }
        if unknown {
            self.states[id.0] = State::Unknown;
            return Ok(true);
        }
        if let OpKind::Merge = op.kind {
            if promised {
                self.states[id.0] = State::Promised(Arc::new(self.merge_promised(op)));
                return Ok(true);
            }
            let merged = self
                .input_trees(op)
                .iter()
                .fold(Snapshot::default(), |below, tree| below.stacked(tree));
            self.done(id, Value::Trees(vec![merged]), false);
            return Ok(true);
        }
        if self.upon.contains_key(&id) && !promised {
            return self.hit_upon(id);
        }
        if !by_content && !op.ignore_cache {
            // It may be that the layers of the inputs must be here to tell.
            if let Some(content) = self.content_if_known(id)? {
                self.states[id.0] = State::Wanted {
                    looked_up: true,
                    by_content: true,
                };
                if let Some(record) = self.solver.find(content)? {
                    let definition = self.definition(id)?;
                    if self.hit(id, &record, definition)? {
                        return Ok(true);
                    }
                }
                if self.hit_upon(id)? || self.remembered(id, content)? {
                    return Ok(true);
                }
            }
        }
        if promised && (self.contents[id.0].is_none() || self.outlines(id).is_none()) {
            self.bring_inputs(op, scope, sender);
            return Ok(true);
        }
        if self.dry {
            return self.would_start(id).map(|()| true);
        }
        self.ready.push(id);
        Ok(changed)
    }

    /// Takes what a record has; `false` when it was collected meanwhile.
    fn hit(&mut self, id: OpId, record: &Record, alias: Option<Key>) -> Result<bool, SolveError> {
        if !self.solver.take(record, alias)? {
            return Ok(false);
        }
        let outputs = snapshots(self.solver.store, &record.outputs)?;
        self.records.push(record.id);
        self.done(id, Value::Trees(outputs), true);
        Ok(true)
    }

    fn done(&mut self, id: OpId, value: Value, cached: bool) {
        if cached {
            self.cached.push(id);
        }
        if let (true, Value::Trees(trees)) = (self.on_chain.contains(&id), &value) {
            for layer in trees.iter().filter_map(|tree| tree.layers.last()) {
                (self.solver.sealed)(*layer);
            }
        }
        self.states[id.0] = State::Done(value);
    }

    /// Scans a wanted context in this thread, since what runs does not need it; whether there was one.
    fn scan_one(&mut self) -> bool {
        let graph = self.graph;
        for (id, op) in graph.ops() {
            let OpKind::Source(SourceOp::Local { name, exclude }) = &op.kind else {
                continue;
            };
            if !matches!(self.states[id.0], State::Wanted { .. }) {
                continue;
            }
            let vertex = self.solver.vertex(id);
            let titled = !op.place.title.is_empty();
            if titled {
                self.solver.sink.emit(Event::Started {
                    id: vertex,
                    at: SystemTime::now(),
                });
            }
            match self.solver.providers.scan(name, exclude) {
                Ok(context) => {
                    self.states[id.0] =
                        State::Done(Value::Local(LocalTree::new(name.clone(), context)));
                    if titled {
                        self.solver.sink.emit(Event::Finished {
                            id: vertex,
                            at: SystemTime::now(),
                        });
                    }
                }
                Err(message) => {
                    self.solver.sink.emit(Event::Failed {
                        id: vertex,
                        error: message.clone(),
                        at: SystemTime::now(),
                    });
                    self.fail(SolveError::step(&op.place, message, None));
                }
            }
            return true;
        }
        false
    }
}

/// What a step is called in the records: its stage and its text.
pub(crate) fn step_name(place: &Place) -> String {
    format!("{}: {}", place.stage, place.step)
}

/// Recorded layers as snapshots.
pub(crate) fn snapshots(
    store: &Store,
    outputs: &[Vec<kiln_image::LayerId>],
) -> Result<Vec<Snapshot>, SolveError> {
    let mut snapshots = Vec::with_capacity(outputs.len());
    for layers in outputs {
        let mut snapshot = Snapshot::default();
        for layer in layers {
            let info = store.layer(*layer)?.ok_or_else(|| {
                SolveError::step(
                    &Place::default(),
                    format!("layer {layer} is recorded but not in the store"),
                    None,
                )
            })?;
            snapshot.layers.push(*layer);
            snapshot.contents.push(info.content_id);
        }
        snapshots.push(snapshot);
    }
    Ok(snapshots)
}
