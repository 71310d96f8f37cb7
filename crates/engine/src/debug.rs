//! A shell where a step failed, or in what a step made.

use std::os::fd::BorrowedFd;

use kiln_frontend::Plan;
use kiln_graph::{Edge, Graph, Op, OpId, OpKind, Place};
use kiln_image::LayerId;
use kiln_solver::SolveError;
use kiln_store::Lease;
use kiln_worker::{ExecJob, MountSource, ProcessSpec, Request, Response, hosts_file};

use crate::{BuildError, BuildRequest, Engine, Ran};

/// A step as it was left: its files, mounts, environment, user and working folder.
pub struct StepState {
    job: ExecJob,
    /// Keeps its layers.
    lease: Lease,
}

impl std::fmt::Debug for StepState {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the job: it holds secrets.
        write!(out, "StepState({:?})", self.job.process.args)
    }
}

impl StepState {
    pub(crate) fn new(job: ExecJob, lease: &Lease) -> Self {
        let lease = lease.clone();
        Self { job, lease }
    }

    /// What a step made, without its mounts.
    pub(crate) fn after(process: ProcessSpec, layers: Vec<LayerId>, lease: &Lease) -> Self {
        // The new layer's name is made when something is run.
        let into = LayerId::new([0; 16]);
        let job = ExecJob {
            process,
            root: layers,
            into,
            mounts: Vec::new(),
            trust: None,
            keep: false,
        };
        Self::new(job, lease)
    }

    pub(crate) fn of(error: SolveError, lease: &Lease) -> Option<Self> {
        match error {
            SolveError::Process { state, .. } => Some(Self::new(*state?, lease)),
            _ => None,
        }
    }
}

/// The one operation that a text means, see [`Engine::build_step`].
pub(crate) fn find_step(graph: &Graph, text: &str) -> Result<Edge, BuildError> {
    let steps: Vec<(OpId, &Place)> = graph
        .ops()
        .map(|(id, op)| (id, &op.place))
        .filter(|(_, place)| place.title.starts_with('[') && !place.title.starts_with("[internal]"))
        .collect();
    let numbered = |place: &Place| {
        let number = place.title[1..].split(']').next().unwrap_or_default();
        number == text || number.rsplit(' ').next() == Some(text)
    };
    let line: Option<u32> = text.parse().ok();
    let means: [&dyn Fn(&Place) -> bool; 3] = [
        &|place| matches!((line, place.lines), (Some(line), Some((first, last))) if (first..=last).contains(&line)),
        &numbered,
        &|place| line.is_none() && place.title.contains(text),
    ];
    for means in means {
        let found: Vec<_> = steps.iter().filter(|(_, place)| means(place)).collect();
        match found[..] {
            [] => {}
            [(op, _)] => return Ok(Edge { op: *op, output: 0 }),
            _ => {
                let titles: Vec<_> = found.iter().map(|(_, place)| &*place.title).collect();
                let text = format!("{text:?} means several steps: {}", titles.join(", "));
                return Err(
                    BuildError::new(text).with_hint("name it by its line in the Dockerfile")
                );
            }
        }
    }
    let titles: Vec<_> = steps.iter().map(|(_, place)| &*place.title).collect();
    Err(
        BuildError::new(format!("no step {text:?}")).with_hint(format!(
            "the steps of this build are: {}",
            titles.join(", ")
        )),
    )
}

/// The surroundings of a program in what a step made: those of a RUN, else those that the stage leaves to its image.
pub(crate) fn in_step(op: &Op, plan: &Plan, request: &BuildRequest) -> ProcessSpec {
    let config = &plan.config.config;
    let (env, cwd, user) = match &op.kind {
        OpKind::Exec(exec) => (&exec.env, &exec.cwd, &exec.user),
        _ => (&config.env, &config.working_dir, &config.user),
    };
    let hostname = "buildkitsandbox".to_owned();
    ProcessSpec {
        env: env.clone(),
        cwd: cwd.clone(),
        user: user.clone(),
        hosts: hosts_file(&hostname, &request.options.extra_hosts),
        hostname,
        resolv_conf: request.resolv_conf.clone(),
        ..ProcessSpec::default()
    }
}

impl Engine {
    /// Runs another program in the place of a step's. What it changes is thrown away.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run_in(
        &self,
        state: &StepState,
        args: &[String],
        terminal: bool,
        stdio: [BorrowedFd<'_>; 3],
    ) -> Result<Ran, BuildError> {
        // What else ran when the step failed was given up.
        self.worker.resume();
        let mut job = state.job.clone();
        job.process.args = args.to_vec();
        job.process.terminal = terminal;
        job.keep = false;
        job.into = self.store.begin_layer(&state.lease)?;
        for mount in &mut job.mounts {
            if let MountSource::Tree { into, keep, .. } = &mut mount.source {
                (*into, *keep) = (self.store.begin_layer(&state.lease)?, false);
            }
        }
        match self.worker.call(&Request::Run(Box::new(job)), &stdio) {
            Ok(Response::Exited { exit, notes, .. }) => Ok(Ran { exit, notes }),
            Ok(_) => Err(BuildError::new("the worker's answer does not fit the job")),
            Err(error) => Err(BuildError::from_worker(&error)),
        }
    }
}
