//! Decides what must be executed, and runs it: independent operations at once, equal ones once.

mod remote;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::Scope;
use std::time::{Duration, SystemTime};

use kiln_graph::{CopyAction, Edge, Graph, Op, OpId, OpKind, Place, SourceOp};
use kiln_image::view::MergedView;
use kiln_image::{Key, KeyHasher};
use kiln_progress::{Event, Sink, VertexId};
use kiln_store::{Claim, ClaimAttempt, Lease, Record, RecordId, Store, StoreError};
use kiln_worker::{Exit, Trust, Worker, WorkerError};

use crate::explain;
use crate::keys::{self, InputKeys, KeyError};
use crate::parts::Parts;
use crate::value::{Context, LocalTree, Snapshot, Value};

pub use remote::{SourceError, Watch};

/// How often a wait looks whether the user gave up.
const TICK: Duration = Duration::from_millis(50);

/// The way out when the disk is full.
const NO_SPACE: &str = "the store's disk is full: free some space, or put the store elsewhere with --root or KILN_ROOT";

/// What a build brings that is not in its graph.
pub trait Providers: Sync {
    /// The layers of an image that the graph names with its digest; `None` when they must be fetched.
    ///
    /// # Errors
    /// In words, when the image cannot be had.
    fn image(&self, reference: &str) -> Result<Option<Snapshot>, String>;

    /// Fetches the layers of an image. Called in a thread of its own; `vertex` is the image's row.
    ///
    /// # Errors
    /// When they cannot be had, or the user or the worker gave up.
    fn fetch_image(&self, reference: &str, vertex: VertexId) -> Result<Snapshot, SourceError>;

    /// Scans a local context, ignoring what the patterns say.
    ///
    /// # Errors
    /// In words, when the context is not there or cannot be read.
    fn scan(&self, name: &str, exclude: &[String]) -> Result<Context, String>;

    /// What a source from the network is now, in the few characters that its key needs: a digest, a commit. Nothing is
    /// asked when the operation itself says it.
    ///
    /// # Errors
    /// When that cannot be found out.
    fn identify(&self, source: &SourceOp, watch: &dyn Watch) -> Result<String, SourceError>;

    /// Brings a source from the network in the state of that identity.
    ///
    /// # Errors
    /// When it cannot be had.
    fn fetch(
        &self,
        source: &SourceOp,
        identity: &str,
        watch: &dyn Watch,
    ) -> Result<Context, SourceError>;

    /// The value of a secret; `None` when the build was given none of that name.
    ///
    /// # Errors
    /// In words, when it was given and cannot be read.
    fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, String>;

    /// The socket of an ssh agent.
    fn ssh(&self, id: &str) -> Option<PathBuf>;

    /// Whether the user gave up.
    fn is_canceled(&self) -> bool;

    /// Called once, before the first operation is executed.
    fn before_first(&self) {}
}

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
    /// The time of what a step makes and that has none of its own.
    pub now: (i64, u32),
    /// The number of the first vertex; earlier ones are the caller's.
    pub first_vertex: u32,
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
    /// How long it took when it was executed.
    pub took: Duration,
}

/// The result of a solve.
#[derive(Debug)]
pub struct Solved {
    /// The layers of the target.
    pub snapshot: Snapshot,
    /// What was executed, in the order of the graph.
    pub reports: Vec<OpReport>,
    /// The records that were used or made.
    pub records: Vec<RecordId>,
}

/// Why a graph could not be solved.
#[derive(Debug, thiserror::Error)]
pub enum SolveError {
    /// The user gave up.
    #[error("canceled")]
    Canceled,
    /// A process ended with another code than 0.
    #[error("process {command} did not complete successfully: {}", exit_text(*.exit, *.out_of_memory))]
    Process {
        /// The operation.
        place: Box<Place>,
        /// The command as BuildKit quotes it.
        command: String,
        /// How it ended.
        exit: Exit,
        /// For want of memory.
        out_of_memory: bool,
        /// The store's disk was full when it ended.
        disk_full: bool,
    },
    /// An operation failed.
    #[error("{message}")]
    Step {
        /// The operation.
        place: Box<Place>,
        /// In words.
        message: String,
        /// A way out.
        hint: Option<String>,
    },
    /// A file that an operation takes from a local context is not there.
    #[error("{message}")]
    Missing {
        /// The operation.
        place: Box<Place>,
        /// The context's name.
        context: String,
        /// The path in it.
        path: String,
        /// In words.
        message: String,
        /// What may have been meant.
        hint: Option<String>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn exit_text(exit: Exit, out_of_memory: bool) -> String {
    let text = match exit {
        Exit::Code(code) => format!("exit code: {code}"),
        // As a shell and BuildKit count: 128 and the signal.
        Exit::Signal(signal) => format!("exit code: {} (killed by signal {signal})", 128 + signal),
    };
    if out_of_memory {
        format!("{text}: cannot allocate memory (the kernel's out-of-memory killer)")
    } else {
        text
    }
}

impl SolveError {
    pub(crate) fn step(place: &Place, message: impl Into<String>, hint: Option<String>) -> Self {
        Self::Step {
            place: Box::new(place.clone()),
            message: message.into(),
            hint,
        }
    }

    pub(crate) fn worker(place: &Place, error: &WorkerError) -> Self {
        if error.is_canceled() {
            return Self::Canceled;
        }
        Self::step(place, error.to_string(), error.hint().map(str::to_owned))
    }

    pub(crate) fn key(place: &Place, error: KeyError) -> Self {
        match (error.context, error.missing) {
            (Some(context), Some(path)) => Self::Missing {
                place: Box::new(place.clone()),
                context,
                path,
                message: error.message,
                hint: error.hint,
            },
            _ => Self::step(place, error.message, error.hint),
        }
    }

    /// Where in the build it happened.
    pub fn place(&self) -> Option<&Place> {
        match self {
            Self::Process { place, .. }
            | Self::Step { place, .. }
            | Self::Missing { place, .. } => Some(place),
            _ => None,
        }
    }

    /// A way out, where there is one.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Step { hint, .. } | Self::Missing { hint, .. } => hint.as_deref(),
            Self::Process {
                disk_full: true, ..
            }
            | Self::Store(StoreError::Full) => Some(NO_SPACE),
            _ => None,
        }
    }
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
    /// Told of every layer that was sealed on the way to the target, as early as possible.
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
    Done(Value),
}

enum Message {
    Executed {
        op: OpId,
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
}

/// Everything that an executing thread needs of its operation.
pub(crate) struct Task {
    pub(crate) op: Op,
    pub(crate) inputs: Vec<Value>,
    pub(crate) vertex: VertexId,
    pub(crate) keys: Vec<Key>,
    pub(crate) parts: Parts,
    pub(crate) claim: Option<Claim>,
}

struct Run<'s, 'a> {
    solver: &'s Solver<'a>,
    graph: &'s Graph,
    target: Edge,
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
    /// Found in the cache, and not told yet.
    cached: Vec<OpId>,
    execs: usize,
    others: usize,
    running: usize,
    failure: Option<SolveError>,
}

impl Solver<'_> {
    /// Brings about the result of `target`.
    ///
    /// # Errors
    /// The first failure. What else ran is cancelled; what had been completed stays in the cache.
    pub fn solve(&self, graph: &Graph, target: Edge) -> Result<Solved, SolveError> {
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
        let mut run = Run {
            solver: self,
            graph,
            target,
            states: (0..graph.len()).map(|_| State::Idle).collect(),
            definitions: vec![None; graph.len()],
            contents: vec![None; graph.len()],
            identities: vec![None; graph.len()],
            told: vec![false; graph.len()],
            tainted,
            on_chain: chain_of(graph, target),
            reports: vec![None; graph.len()],
            records: Vec::new(),
            claims: (0..graph.len()).map(|_| None).collect(),
            cached: Vec::new(),
            execs: 0,
            others: 0,
            running: 0,
            failure: None,
        };
        std::thread::scope(|scope| {
            let (sender, receiver) = channel();
            run.drive(scope, &sender, &receiver)
        })
    }

    pub(crate) fn vertex(&self, op: OpId) -> VertexId {
        VertexId(self.options.first_vertex + op.0 as u32)
    }
}

/// The operations whose layers are layers of the target.
fn chain_of(graph: &Graph, target: Edge) -> HashSet<OpId> {
    let mut chain = HashSet::new();
    let mut pending = vec![target.op];
    while let Some(id) = pending.pop() {
        if !chain.insert(id) {
            continue;
        }
        let op = graph.op(id);
        let bases: Vec<usize> = match &op.kind {
            OpKind::Source(_) => vec![],
            OpKind::Exec(exec) => exec
                .mounts
                .iter()
                .filter(|mount| mount.dest == "/")
                .filter_map(|mount| mount.input)
                .collect(),
            OpKind::File(file) => file
                .actions
                .iter()
                .filter_map(|action| match action.on {
                    kiln_graph::FileInput::Input(input) => Some(input),
                    _ => None,
                })
                .collect(),
            OpKind::Merge | OpKind::Diff { .. } => (0..op.inputs.len()).collect(),
        };
        pending.extend(bases.into_iter().map(|input| op.inputs[input].op));
    }
    chain
}

/// Keys of inputs by definition: what they are made by.
struct ByDefinition<'r> {
    op: &'r Op,
    keys: Vec<Option<Key>>,
    values: Vec<Option<Value>>,
}

impl InputKeys for ByDefinition<'_> {
    fn whole(&self, input: usize) -> Option<Key> {
        self.keys[input].map(|key| edge_key(key, self.op.inputs[input].output))
    }

    fn selected(&self, input: usize, copy: &CopyAction) -> Result<Option<Key>, KeyError> {
        match &self.values[input] {
            Some(Value::Local(local)) => local_selection(local, copy).map(Some),
            _ => Ok(None),
        }
    }
}

/// Keys of inputs by what is in them.
struct ByContent<'r> {
    op: &'r Op,
    store: &'r Store,
    values: Vec<Value>,
}

impl InputKeys for ByContent<'_> {
    fn whole(&self, input: usize) -> Option<Key> {
        self.values[input]
            .tree(self.op.inputs[input].output)
            .map(Snapshot::content_key)
    }

    fn selected(&self, input: usize, copy: &CopyAction) -> Result<Option<Key>, KeyError> {
        match &self.values[input] {
            Value::Local(local) => local_selection(local, copy).map(Some),
            Value::Trees(_) => {
                let Some(tree) = self.values[input].tree(self.op.inputs[input].output) else {
                    return Ok(None);
                };
                let indexes: Result<Vec<_>, _> = tree
                    .layers
                    .iter()
                    .map(|layer| self.store.load_index(*layer))
                    .collect();
                // A layer that cannot be read is found out about, and named, when the step is executed.
                let Ok(indexes) = indexes else {
                    return Ok(None);
                };
                selection_key(copy, &MergedView::new(indexes)).map(Some)
            }
        }
    }
}

fn edge_key(key: Key, output: u32) -> Key {
    let mut hasher = KeyHasher::new("edge", 1);
    hasher
        .part("key", key.as_bytes())
        .part("output", &output.to_le_bytes());
    hasher.finish()
}

fn selection_key(copy: &CopyAction, view: &MergedView) -> Result<Key, KeyError> {
    let mut hasher = KeyHasher::new("selection", 1);
    kiln_fileop::selection_key(copy, view, &mut hasher)?;
    Ok(hasher.finish())
}

fn local_selection(local: &LocalTree, copy: &CopyAction) -> Result<Key, KeyError> {
    let index = local.index_for(copy)?;
    selection_key(copy, &MergedView::new([index])).map_err(|error| local.named(error))
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
        self.want(self.target.op);
        loop {
            if self.failure.is_none() && self.solver.providers.is_canceled() {
                self.fail(SolveError::Canceled);
            }
            if self.failure.is_none() {
                if let Err(error) = self.advance_all(scope, sender) {
                    self.fail(error);
                }
                if matches!(self.states[self.target.op.0], State::Done(_)) && self.running == 0 {
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
                    .expect("nothing runs and the target is not done: a failure"));
            }
            self.tell_cached();
            match receiver.recv_timeout(TICK) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("this thread holds a sender"),
            }
        }
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
    fn tell_failed(&self, id: OpId, error: &SolveError) {
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
            for at in (0..self.graph.len()).rev() {
                if matches!(self.states[self.target.op.0], State::Done(_)) {
                    return Ok(());
                }
                if !matches!(self.states[at], State::Wanted { .. }) {
                    continue;
                }
                let id = OpId(at);
                match self.advance(id, scope, sender) {
                    Ok(advanced) => changed |= advanced,
                    Err(error) => {
                        self.tell_cached();
                        self.tell_failed(id, &error);
                        return Err(error);
                    }
                }
            }
            if !changed {
                return Ok(());
            }
        }
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
            OpKind::Source(SourceOp::Image { reference }) => {
                let snapshot = self
                    .solver
                    .providers
                    .image(reference)
                    .map_err(|message| SolveError::step(&op.place, message, None))?;
                match snapshot {
                    Some(snapshot) => self.done(id, Value::Trees(vec![snapshot]), true),
                    None => self.fetch_image(id, op, reference, scope, sender),
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
            if let Some(record) = self.solver.store.find_record(key)? {
                return self.hit(id, &record, None).map(|()| true);
            }
        }
        let mut waiting = false;
        let mut changed = false;
        let read = looked_up || !readable || matches!(op.kind, OpKind::Merge);
        for edge in &op.inputs {
            match self.states[edge.op.0] {
                State::Idle => {
                    self.want(edge.op);
                    changed = true;
                }
                State::Identified if read => {
                    self.fetch(edge.op, scope, sender);
                    changed = true;
                }
                _ => {}
            }
            waiting |= !matches!(self.states[edge.op.0], State::Done(_));
        }
        if waiting {
            return Ok(changed);
        }
        if let OpKind::Merge = op.kind {
            let merged = self
                .input_trees(op)
                .iter()
                .fold(Snapshot::default(), |below, tree| below.stacked(tree));
            self.done(id, Value::Trees(vec![merged]), false);
            return Ok(true);
        }
        if !by_content && !op.ignore_cache {
            self.states[id.0] = State::Wanted {
                looked_up: true,
                by_content: true,
            };
            let content = self.content(id)?;
            if let Some(record) = self.solver.store.find_record(content)? {
                let definition = self.definition(id)?;
                return self.hit(id, &record, definition).map(|()| true);
            }
        }
        self.start(id, scope, sender)
    }

    fn input_trees(&self, op: &Op) -> Vec<Snapshot> {
        op.inputs
            .iter()
            .map(|edge| match &self.states[edge.op.0] {
                State::Done(value) => value.tree(edge.output).cloned().unwrap_or_default(),
                _ => unreachable!("asked only when the inputs are done"),
            })
            .collect()
    }

    /// The definition key; `None` when a context below has not been scanned.
    fn definition(&mut self, id: OpId) -> Result<Option<Key>, SolveError> {
        if let Some((key, _)) = &self.definitions[id.0] {
            return Ok(Some(*key));
        }
        let op = self.graph.op(id);
        let mut keys = Vec::with_capacity(op.inputs.len());
        let mut values = Vec::with_capacity(op.inputs.len());
        for edge in &op.inputs {
            let local = matches!(
                self.graph.op(edge.op).kind,
                OpKind::Source(SourceOp::Local { .. })
            );
            let value = match &self.states[edge.op.0] {
                State::Done(value @ Value::Local(_)) => Some(value.clone()),
                _ => None,
            };
            if local && value.is_none() {
                return Ok(None);
            }
            let key = if local {
                None
            } else {
                self.definition(edge.op)?
            };
            if !local && key.is_none() {
                return Ok(None);
            }
            keys.push(key);
            values.push(value);
        }
        let identity = self.identities[id.0].as_deref();
        let parts = keys::parts(op, identity, &ByDefinition { op, keys, values })
            .map_err(|error| SolveError::key(&op.place, error))?;
        let Some(parts) = parts else { return Ok(None) };
        let key = parts.key();
        self.definitions[id.0] = Some((key, parts));
        Ok(Some(key))
    }

    fn content(&mut self, id: OpId) -> Result<Key, SolveError> {
        if let Some((key, _)) = &self.contents[id.0] {
            return Ok(*key);
        }
        let op = self.graph.op(id);
        let values = self.input_values(op);
        let parts = keys::parts(
            op,
            None,
            &ByContent {
                op,
                store: self.solver.store,
                values,
            },
        )
        .map_err(|error| SolveError::key(&op.place, error))?
        .expect("all inputs are done, so all their keys are known");
        let key = KeyHasher::new("content", 1)
            .part("key", parts.key().as_bytes())
            .finish();
        self.contents[id.0] = Some((key, parts));
        Ok(key)
    }

    fn input_values(&self, op: &Op) -> Vec<Value> {
        op.inputs
            .iter()
            .map(|edge| match &self.states[edge.op.0] {
                State::Done(value) => value.clone(),
                _ => unreachable!("asked only when the inputs are done"),
            })
            .collect()
    }

    fn hit(&mut self, id: OpId, record: &Record, alias: Option<Key>) -> Result<(), SolveError> {
        if let Some(key) = alias {
            self.solver.store.alias(key, record.id)?;
        }
        let outputs = snapshots(self.solver.store, &record.outputs)?;
        self.records.push(record.id);
        self.done(id, Value::Trees(outputs), true);
        Ok(())
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

    /// Fetches an image beside everything else.
    fn fetch_image<'scope, 'env>(
        &mut self,
        id: OpId,
        op: &'scope Op,
        reference: &'scope str,
        scope: &'scope Scope<'scope, 'env>,
        sender: &Sender<Message>,
    ) where
        's: 'scope,
    {
        self.states[id.0] = State::Running;
        self.running += 1;
        let vertex = self.solver.vertex(id);
        let started = SystemTime::now();
        self.solver.sink.emit(Event::Started {
            id: vertex,
            at: started,
        });
        let (sender, solver) = (sender.clone(), self.solver);
        scope.spawn(move || {
            let outcome = match solver.providers.fetch_image(reference, vertex) {
                Ok(snapshot) => Ok(Executed {
                    outputs: vec![snapshot],
                    record: None,
                    took: started.elapsed().unwrap_or_default(),
                }),
                Err(error) if error.canceled => Err(SolveError::Canceled),
                Err(error) => Err(SolveError::step(&op.place, error.message, error.hint)),
            };
            let _ = sender.send(Message::Executed { op: id, outcome });
        });
    }

    /// Starts an operation if there is a slot and nobody else does the same; whether anything changed.
    fn start<'scope, 'env>(
        &mut self,
        id: OpId,
        scope: &'scope Scope<'scope, 'env>,
        sender: &Sender<Message>,
    ) -> Result<bool, SolveError>
    where
        's: 'scope,
    {
        let op = self.graph.op(id);
        let exec = matches!(op.kind, OpKind::Exec(_));
        if exec && self.execs >= self.solver.options.jobs
            || !exec && self.others >= self.solver.options.cores.max(2)
        {
            return Ok(false);
        }
        let content = self.content(id)?;
        let definition = self.definition(id)?;
        if self.claims[id.0].is_none() && !op.ignore_cache {
            match self.solver.store.claim(content)? {
                ClaimAttempt::Held(claim) => {
                    // Another process may have finished between the look-up and the claim.
                    if let Some(record) = self.solver.store.find_record(content)? {
                        drop(claim);
                        self.hit(id, &record, definition)?;
                        return Ok(true);
                    }
                    self.claims[id.0] = Some(claim);
                }
                ClaimAttempt::Busy(waiter) => {
                    let vertex = self.solver.vertex(id);
                    let holder = waiter
                        .holder()
                        .map_or_else(String::new, |pid| format!(" (process {pid})"));
                    let text = format!("for the same step in another build{holder}");
                    self.solver.sink.emit(Event::Waiting { id: vertex, text });
                    self.states[id.0] = State::Running;
                    self.running += 1;
                    let (sender, solver) = (sender.clone(), self.solver);
                    scope.spawn(move || {
                        let message = loop {
                            if solver.providers.is_canceled() || solver.worker.is_canceled() {
                                break Message::Executed {
                                    op: id,
                                    outcome: Err(SolveError::Canceled),
                                };
                            }
                            match waiter.wait(TICK) {
                                Ok(Some(claim)) => break Message::Claimed { op: id, claim },
                                Ok(None) => {}
                                Err(error) => {
                                    break Message::Executed {
                                        op: id,
                                        outcome: Err(error.into()),
                                    };
                                }
                            }
                        };
                        // The receiver lives as long as the scope.
                        let _ = sender.send(message);
                    });
                    return Ok(true);
                }
            }
        }
        if self.reports.iter().all(Option::is_none) {
            self.solver.providers.before_first();
        }
        let reason = self.reason(id)?;
        self.tell_cached();
        let vertex = self.solver.vertex(id);
        self.solver.sink.emit(Event::Started {
            id: vertex,
            at: SystemTime::now(),
        });
        if let Some(text) = &reason {
            self.solver.sink.emit(Event::Reason {
                id: vertex,
                text: text.clone(),
            });
        }
        self.reports[id.0] = Some(OpReport {
            op: id,
            executed: true,
            reason,
            took: Duration::ZERO,
        });
        let (_, parts) = self.contents[id.0].clone().expect("made above");
        let task = Task {
            op: op.clone(),
            inputs: self.input_values(op),
            vertex,
            keys: definition.into_iter().chain([content]).collect(),
            parts,
            claim: self.claims[id.0].take(),
        };
        self.states[id.0] = State::Running;
        self.running += 1;
        *if exec {
            &mut self.execs
        } else {
            &mut self.others
        } += 1;
        let (sender, solver) = (sender.clone(), self.solver);
        scope.spawn(move || {
            let outcome = solver.execute(task);
            let _ = sender.send(Message::Executed { op: id, outcome });
        });
        Ok(true)
    }

    /// Why an operation is executed, in words; `None` when it is simply new.
    fn reason(&self, id: OpId) -> Result<Option<String>, SolveError> {
        let op = self.graph.op(id);
        if op.ignore_cache {
            return Ok(Some("the cache is not used (--no-cache)".to_owned()));
        }
        let Some((_, parts)) = self.contents[id.0].as_ref() else {
            return Ok(None);
        };
        let step = step_name(&op.place);
        Ok(self
            .solver
            .store
            .latest_record_of_step(&step)?
            .map(|record| self.solver.store.record_parts(record.id))
            .transpose()?
            .map(|before| explain::difference(parts, &before)))
    }

    fn take(&mut self, message: Message) {
        self.running -= 1;
        match message {
            Message::Identified {
                op,
                outcome,
                started,
            } => self.identified(op, outcome, started),
            Message::Fetched {
                op,
                outcome,
                started,
            } => self.fetched(op, *outcome, started),
            Message::Claimed { op, claim } => {
                // Looked up again, as if it had not been: the owner may have finished it, or died.
                self.claims[op.0] = Some(claim);
                self.states[op.0] = State::Wanted {
                    looked_up: false,
                    by_content: false,
                };
            }
            Message::Executed { op: id, outcome } => {
                let vertex = self.solver.vertex(id);
                let at = SystemTime::now();
                // One that waited for a claim held no slot.
                if self.reports[id.0].is_some() {
                    let exec = matches!(self.graph.op(id).kind, OpKind::Exec(_));
                    *if exec {
                        &mut self.execs
                    } else {
                        &mut self.others
                    } -= 1;
                }
                match outcome {
                    Ok(executed) => {
                        self.solver.sink.emit(Event::Finished { id: vertex, at });
                        self.records.extend(executed.record);
                        if let Some(report) = &mut self.reports[id.0] {
                            report.took = executed.took;
                        }
                        self.done(id, Value::Trees(executed.outputs), false);
                    }
                    Err(SolveError::Canceled) => {
                        self.solver.sink.emit(Event::Canceled { id: vertex, at });
                        self.fail(SolveError::Canceled);
                    }
                    Err(error) => {
                        self.solver.sink.emit(Event::Failed {
                            id: vertex,
                            error: error.to_string(),
                            at,
                        });
                        self.fail(error);
                    }
                }
            }
        }
    }

    fn finish(&mut self) -> Result<Solved, SolveError> {
        for (id, _) in self.graph.ops() {
            match self.states[id.0] {
                State::Idle | State::Wanted { .. } => self.cached.push(id),
                State::Identified if !self.told[id.0] => self.cached.push(id),
                _ => {}
            }
        }
        self.tell_cached();
        let State::Done(value) = &self.states[self.target.op.0] else {
            unreachable!("called when the target is done");
        };
        let snapshot = value.tree(self.target.output).cloned().unwrap_or_default();
        for state in &self.states {
            if let State::Done(Value::Local(local)) = state {
                let mut context = local.lock();
                let Context {
                    cache, cache_file, ..
                } = &mut *context;
                // What cannot be remembered is found out again next time.
                let _ = cache.save(cache_file);
            }
        }
        self.solver.store.touch(&self.records)?;
        Ok(Solved {
            snapshot,
            reports: self.reports.iter_mut().filter_map(Option::take).collect(),
            records: std::mem::take(&mut self.records),
        })
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
