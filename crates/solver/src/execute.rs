//! Executes one operation: new layers, the worker's job, the record.

use std::io::{PipeReader, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use kiln_graph::{
    CopyAction, ExecOp, FileAction, FileActionKind, FileInput, FileOp, MountKind, Network, OpKind,
    Security,
};
use kiln_image::{LayerId, Platform};
use kiln_progress::event::Stream;
use kiln_progress::{Event, Sink, VertexId};
use kiln_store::NewRecord;
use kiln_worker::{
    ExecJob, ExecMount, Exit, FileJob, FileTree, Made, MountSource, ProcessSpec, Request, Response,
};

use crate::SolveError;
use crate::keys::{MOUNTED, mount_selection};
use crate::solve::{Executed, Solver, Task, step_name, upon};
use crate::value::{Outline, Promise, Snapshot, Value};

/// What a step's host is called where nothing else is said: as under BuildKit, since programs may print it.
const HOSTNAME: &str = "buildkitsandbox";

/// How a process ended, and what it made.
struct Ended {
    exit: Exit,
    out_of_memory: bool,
    disk_full: bool,
    foreign: bool,
    made: Vec<Made>,
}

impl Solver<'_> {
    pub(crate) fn execute(&self, task: Task) -> Result<Executed, SolveError> {
        let started = Instant::now();
        let (outputs, keep) = match &task.op.kind {
            OpKind::Exec(exec) => (self.exec(&task, exec)?, true),
            OpKind::File(file) => self.file(&task, file)?,
            OpKind::Diff { lower, upper } => (vec![Self::diff(&task, *lower, *upper)?], true),
            OpKind::Source(source) => {
                let what = format!("{source:?}");
                let message = format!("no provider brings this kind of source: {what}");
                return Err(SolveError::step(&task.op.place, message, None));
            }
            OpKind::Merge => unreachable!("merging makes no layers and is done by the scheduler"),
        };
        let took = started.elapsed();
        let on: Vec<_> = task.inputs.iter().filter_map(outline).collect();
        if !keep {
            return Ok(Executed {
                outputs,
                record: None,
                took,
                on,
            });
        }
        let mut keys = task.keys;
        if !on.is_empty() {
            for key in &mut keys {
                *key = upon(*key);
            }
        }
        let record = NewRecord {
            outputs: outputs.iter().map(|tree| tree.layers.clone()).collect(),
            created: SystemTime::now(),
            took,
            parts: task.parts,
            step: step_name(&task.op.place),
        };
        let record = self.store.put_record(&keys, &record)?;
        // Released only now: whoever waits for the same step finds the record.
        drop(task.claim);
        Ok(Executed {
            outputs,
            record: Some(record),
            took,
            on,
        })
    }

    pub(crate) fn tree(task: &Task, input: usize) -> Snapshot {
        task.inputs[input]
            .tree(task.op.inputs[input].output)
            .cloned()
            .unwrap_or_default()
    }

    /// Seals what the worker made, and gives it as a stack on `base`.
    fn seal(&self, base: &Snapshot, made: &Made) -> Result<Snapshot, SolveError> {
        self.store.seal_layer(made.layer, &made.into())?;
        let mut stack = base.clone();
        stack.layers.push(made.layer);
        stack.contents.push(made.content_id);
        Ok(stack)
    }

    /// The new trees, and whether they are what the keys say.
    fn file(&self, task: &Task, file: &FileOp) -> Result<(Vec<Snapshot>, bool), SolveError> {
        let mut inputs = Vec::with_capacity(task.inputs.len());
        for (at, value) in task.inputs.iter().enumerate() {
            inputs.push(match value {
                Value::Trees(_) => FileTree::Layers(Self::tree(task, at).layers),
                Value::Outline(outline) => FileTree::Outline(outline.layers.clone()),
                Value::Local(local) => {
                    // Digests are found copy by copy, and what is known stays known: the last index has them all.
                    let mut index = Arc::default();
                    for copy in copies_from(file, at) {
                        index = local
                            .index_for(copy)
                            .map_err(|error| SolveError::key(&task.op.place, error))?;
                    }
                    let scan = &local.lock().scan;
                    let root = scan.root().to_string_lossy().into_owned();
                    FileTree::Local {
                        root,
                        index,
                        stamps: scan.stamps(),
                    }
                }
            });
        }
        let bases = output_bases(file);
        let mut job = FileJob {
            op: file.clone(),
            inputs,
            into: Vec::new(),
            earlier: self.whole_layers(task),
            now: self.options.now,
        };
        let mut tried = false;
        let made = loop {
            job.into = bases
                .iter()
                .map(|_| self.store.begin_layer(self.lease))
                .collect::<Result<_, _>>()?;
            match self.worker.file(job.clone(), &[]) {
                // Once more, when what nobody uses has given way.
                Err(error) if error.is_full() && !tried => {
                    tried = true;
                    let size = file_size(&job);
                    self.providers
                        .make_room(size, false)
                        .map_err(|(message, hint)| {
                            SolveError::step(&task.op.place, message, Some(hint))
                        })?;
                }
                other => {
                    break other.map_err(|error| self.worker_failed(&task.op.place, &error))?;
                }
            }
        };
        for path in &made.changed {
            let text =
                format!("{path} changed while it was copied; the step is not kept in the cache");
            self.sink.emit(Event::Warning { text });
        }
        for name in &made.unknown {
            let step = &task.op.place.step;
            let text = format!("{step}: {name}; root stands for it, as under docker");
            self.sink.emit(Event::Warning { text });
        }
        let mut trees = Vec::with_capacity(bases.len());
        for (base, layer) in bases.iter().zip(&made.layers) {
            let base = base
                .map(|input| Self::tree(task, input))
                .unwrap_or_default();
            trees.push(self.seal(&base, layer)?);
        }
        Ok((trees, made.changed.is_empty()))
    }

    /// For each output of the same step in an earlier build the whole layer that it is made of, kept from now on.
    fn whole_layers(&self, task: &Task) -> Vec<Option<LayerId>> {
        let outputs = task.earlier.iter().flat_map(|record| &record.outputs);
        let whole = |layers: &Vec<LayerId>| {
            let whole = self.store.whole_layer(*layers.last()?).ok()?;
            self.store.protect(self.lease, &[whole]).ok()?;
            Some(whole)
        };
        outputs.map(whole).collect()
    }

    fn diff(
        task: &Task,
        lower: Option<usize>,
        upper: Option<usize>,
    ) -> Result<Snapshot, SolveError> {
        let lower = lower
            .map(|input| Self::tree(task, input))
            .unwrap_or_default();
        let upper = upper
            .map(|input| Self::tree(task, input))
            .unwrap_or_default();
        if upper.layers.starts_with(&lower.layers) {
            let rest = lower.layers.len();
            return Ok(Snapshot {
                layers: upper.layers[rest..].to_vec(),
                contents: upper.contents[rest..].to_vec(),
            });
        }
        let message = "the upper tree of a diff does not stand on the lower one";
        Err(SolveError::step(
            &task.op.place,
            message,
            Some("compare a step with one of the steps below it".to_owned()),
        ))
    }

    fn exec(&self, task: &Task, exec: &ExecOp) -> Result<Vec<Snapshot>, SolveError> {
        let root = exec.mounts.iter().find(|mount| mount.dest == "/");
        let base = root
            .and_then(|mount| mount.input)
            .map(|input| Self::tree(task, input))
            .unwrap_or_default();
        let mut process = self.process(exec);
        let into = self.store.begin_layer(self.lease)?;
        // (output number, base of the result), root first, then in the order of the mounts.
        let mut kept = vec![(root.and_then(|mount| mount.output), base.clone())];
        let mut mounts = Vec::new();
        let caches = self.cache_mounts(task, exec)?;
        for (at, mount) in exec.mounts.iter().enumerate() {
            if mount.dest == "/" {
                continue;
            }
            let source = match &mount.kind {
                MountKind::Bind => {
                    let mut selector = mount.selector.clone();
                    let tree = match mount.input {
                        Some(input) => match &task.inputs[input] {
                            Value::Trees(_) | Value::Outline(_) => Self::tree(task, input),
                            Value::Local(_) => {
                                MOUNTED.clone_into(&mut selector);
                                self.materialize(task, input, mount_selection(mount))?
                            }
                        },
                        None => Snapshot::default(),
                    };
                    if mount.output.is_some() {
                        kept.push((mount.output, tree.clone()));
                    }
                    MountSource::Tree {
                        layers: tree.layers,
                        selector,
                        into: self.store.begin_layer(self.lease)?,
                        keep: mount.output.is_some(),
                    }
                }
                MountKind::Cache { .. } => {
                    match caches.source(at, &mount.kind, self.store.begin_layer(self.lease)?) {
                        Some(source) => source,
                        None => continue,
                    }
                }
                MountKind::Tmpfs { size } => MountSource::Tmpfs { size: *size },
                MountKind::Secret {
                    id,
                    env,
                    file,
                    mode,
                    uid,
                    gid,
                    optional,
                } => {
                    let value = self
                        .providers
                        .secret(id)
                        .map_err(|message| SolveError::step(&task.op.place, message, None))?;
                    let Some(value) = value else {
                        if *optional {
                            continue;
                        }
                        let hint = format!(
                            "give it with --secret id={id},src=FILE or --secret id={id},env=VARIABLE"
                        );
                        return Err(SolveError::step(
                            &task.op.place,
                            format!("secret {id}: not found"),
                            Some(hint),
                        ));
                    };
                    if let Some(name) = env {
                        process
                            .env
                            .push(format!("{name}={}", String::from_utf8_lossy(&value)));
                    }
                    if !file {
                        continue;
                    }
                    MountSource::File {
                        content: value,
                        mode: mode.unwrap_or(0o400),
                        uid: *uid,
                        gid: *gid,
                    }
                }
                MountKind::Ssh { id, optional, .. } => match self.providers.ssh(id) {
                    Some(socket) => {
                        process.env.push(format!("SSH_AUTH_SOCK={}", mount.dest));
                        MountSource::Host(socket.to_string_lossy().into_owned())
                    }
                    None if *optional => continue,
                    None => {
                        let hint = format!("give it with --ssh {id}");
                        return Err(SolveError::step(
                            &task.op.place,
                            format!("ssh agent {id}: not found"),
                            Some(hint),
                        ));
                    }
                },
            };
            mounts.push(ExecMount {
                dest: mount.dest.clone(),
                readonly: mount.readonly,
                source,
            });
        }
        let job = ExecJob {
            process,
            root: base.layers,
            into,
            mounts,
            trust: self.options.trust.clone(),
            keep: self.options.keep_failed,
        };
        let state = self.options.keep_failed.then(|| Box::new(job.clone()));
        let Ended {
            exit,
            out_of_memory,
            disk_full,
            foreign,
            made,
        } = self.run_process(task, job)?;
        if exit != Exit::Code(0) {
            let platform = task.op.platform.clone();
            let platform = platform.filter(|its| foreign && !Platform::host().runs().contains(its));
            return Err(SolveError::Process {
                place: Box::new(task.op.place.clone()),
                command: quoted(&exec.args),
                exit,
                out_of_memory,
                disk_full,
                platform: platform.map(Box::new),
                state: state.map(|job| on_what_it_made(job, &made)),
            });
        }
        let space = made.iter().map(|made| made.space).sum();
        self.providers
            .make_room(space, true)
            .map_err(|(message, hint)| SolveError::step(&task.op.place, message, Some(hint)))?;
        let mut outputs: Vec<(u32, Snapshot)> = Vec::new();
        for ((output, base), made) in kept.iter().zip(&made) {
            if let Some(output) = output {
                outputs.push((*output, self.seal(base, made)?));
            }
        }
        outputs.sort_by_key(|(output, _)| *output);
        Ok(outputs.into_iter().map(|(_, tree)| tree).collect())
    }

    fn process(&self, exec: &ExecOp) -> ProcessSpec {
        let hostname = if exec.hostname.is_empty() {
            HOSTNAME.to_owned()
        } else {
            exec.hostname.clone()
        };
        let mut env = exec.env.clone();
        let names: Vec<_> = env
            .iter()
            .filter_map(|it| it.split_once('=').map(|(name, _)| name.to_owned()))
            .collect();
        // A variable that the Dockerfile sets wins over the builder's proxy settings.
        let proxies = exec.proxy_env.iter().filter(|it| {
            it.split_once('=')
                .is_some_and(|(name, _)| !names.iter().any(|known| known == name))
        });
        env.extend(proxies.cloned());
        ProcessSpec {
            args: exec.args.clone(),
            env,
            cwd: exec.cwd.clone(),
            user: exec.user.clone(),
            hosts: kiln_worker::hosts_file(&hostname, &exec.extra_hosts),
            hostname,
            resolv_conf: if exec.network == Network::None {
                String::new()
            } else {
                self.options.resolv_conf.clone()
            },
            network: exec.network,
            insecure: exec.security == Security::Insecure,
            limits: self.options.limits.clone(),
            ulimits: exec.ulimits.clone(),
            shm_size: exec.shm_size,
            read_only_root: false,
            terminal: false,
            init: false,
            rights: kiln_worker::Rights::default(),
        }
    }

    fn run_process(&self, task: &Task, job: ExecJob) -> Result<Ended, SolveError> {
        let place = &task.op.place;
        let pipe =
            || std::io::pipe().map_err(|error| SolveError::step(place, error.to_string(), None));
        let (stdout_from, stdout_to) = pipe()?;
        let (stderr_from, stderr_to) = pipe()?;
        let response = std::thread::scope(|scope| {
            for (stream, from) in [(Stream::Stdout, stdout_from), (Stream::Stderr, stderr_from)] {
                let (sink, vertex) = (self.sink, task.vertex);
                scope.spawn(move || forward(sink, vertex, stream, from));
            }
            let request = Request::Exec(Box::new(job));
            let response = self
                .worker
                .call(&request, &[stdout_to.as_fd(), stderr_to.as_fd()]);
            // Our own ends must close before the readers can see the end.
            drop((stdout_to, stderr_to));
            response
        });
        match response.map_err(|error| self.worker_failed(place, &error))? {
            Response::Exited {
                exit,
                out_of_memory,
                disk_full,
                foreign,
                made,
                notes,
            } => {
                for note in notes {
                    let text = format!("{}: {note}", place.title);
                    self.sink.emit(Event::Warning { text });
                }
                Ok(Ended {
                    exit,
                    out_of_memory,
                    disk_full,
                    foreign,
                    made,
                })
            }
            _ => Err(SolveError::step(
                place,
                "the worker's answer does not fit the job",
                None,
            )),
        }
    }

    /// A layer of what a bind mount shows of a local context.
    fn materialize(
        &self,
        task: &Task,
        input: usize,
        mut copy: CopyAction,
    ) -> Result<Snapshot, SolveError> {
        copy.from = Some(FileInput::Input(input));
        copy.dir_copy_contents = true;
        copy.create_dest_path = true;
        let op = FileOp {
            actions: vec![FileAction {
                on: FileInput::Scratch,
                output: Some(0),
                kind: FileActionKind::Copy(Box::new(copy)),
            }],
        };
        let (mut trees, _) = self.file(task, &op)?;
        Ok(trees.pop().unwrap_or_default())
    }
}

/// What an input of an operation was promised to be, if that is all that is known of it.
fn outline(input: &Value) -> Option<Arc<Promise>> {
    match input {
        Value::Outline(Outline { of, .. }) => Some(Arc::clone(of)),
        Value::Trees(_) | Value::Local(_) => None,
    }
}

/// The bytes of the contexts' files that a job may copy, at least one.
fn file_size(job: &FileJob) -> u64 {
    let sizes = job.inputs.iter().map(|input| match input {
        FileTree::Local { index, .. } => index.size(),
        FileTree::Layers(_) | FileTree::Outline(_) => 0,
    });
    sizes.sum::<u64>().max(1)
}

fn copies_from(file: &FileOp, input: usize) -> impl Iterator<Item = &CopyAction> {
    file.actions
        .iter()
        .filter_map(move |action| match &action.kind {
            FileActionKind::Copy(copy) if copy.from == Some(FileInput::Input(input)) => {
                Some(copy.as_ref())
            }
            _ => None,
        })
}

/// For each output of a file operation the input that its chain of actions starts from.
pub(crate) fn output_bases(file: &FileOp) -> Vec<Option<usize>> {
    let mut outputs: Vec<(u32, Option<usize>)> = Vec::new();
    for action in &file.actions {
        let Some(output) = action.output else {
            continue;
        };
        let mut on = action.on;
        let base = loop {
            match on {
                FileInput::Scratch => break None,
                FileInput::Input(input) => break Some(input),
                FileInput::Action(earlier) => on = file.actions[earlier].on,
            }
        };
        outputs.push((output, base));
    }
    outputs.sort_by_key(|(output, _)| *output);
    outputs.into_iter().map(|(_, base)| base).collect()
}

fn forward(sink: &dyn Sink, id: VertexId, stream: Stream, mut from: PipeReader) {
    let mut buffer = [0; 16384];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return,
            Ok(got) => {
                sink.emit(Event::Log {
                    id,
                    stream,
                    bytes: buffer[..got].to_vec(),
                    at: SystemTime::now(),
                });
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

/// The job again, on top of the layers that it made.
fn on_what_it_made(mut job: Box<ExecJob>, made: &[Made]) -> Box<ExecJob> {
    let mut made = made.iter().map(|made| made.layer);
    job.root.extend(made.next());
    for mount in &mut job.mounts {
        if let MountSource::Tree {
            layers, keep: true, ..
        } = &mut mount.source
        {
            layers.extend(made.next());
        }
    }
    job
}

/// A command as BuildKit quotes it in its errors.
fn quoted(args: &[String]) -> String {
    format!("{:?}", args.join(" "))
}
