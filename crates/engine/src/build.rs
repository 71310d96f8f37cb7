//! A build, from the request to the image.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::thread::Scope;
use std::time::{Instant, SystemTime};

use kiln_dockerfile::{Lines, SourceText, Warning, locate, nearest};
use kiln_export::{CacheSource, Committed, Published, digest_layer};
use kiln_frontend::{Facts, Need, Outcome, Plan, plan_checked};
use kiln_graph::{Edge, Graph, Network, OpKind, Security};
use kiln_image::{LayerId, Platform};
use kiln_progress::{Event, Finding, Sink, VertexId};
use kiln_solver::{OpReport, Options, Snapshot, SolveError, Solved, Solver};
use kiln_store::BuildStep;

use crate::bringing::Bringing;
use crate::debug::{find_step, in_step};
use crate::digesting::Digesting;
use crate::error::Place;
use crate::images::Images;
use crate::inputs::Inputs;
use crate::log::BuildLog;
use crate::outputs::{Output, PutOut};
use crate::remote_cache::{CacheTo, Caches};
use crate::room::Guard;
use crate::rows::{Row, Rows};
use crate::{BuildError, CancelFlag, Engine, StepState, history};

/// A build that finds damaged layers, one after the other, begins anew so often.
const MOST_TRIES: u32 = 20;

/// What is built.
#[derive(Debug, Clone)]
pub struct BuildRequest {
    /// The Dockerfile.
    pub dockerfile: DockerfileFrom,
    /// The main context.
    pub context: MainContext,
    /// Choices of the frontend.
    pub options: kiln_frontend::Options,
    /// Named contexts that are folders.
    pub folders: BTreeMap<String, PathBuf>,
    /// Platforms to build for, each once, instead of the options' one: the image is an index of theirs.
    pub platforms: Vec<Platform>,
    /// What is left behind.
    pub outputs: Vec<Output>,
    /// Remote caches that are read.
    pub cache_from: Vec<CacheSource>,
    /// Where the build's cache is written.
    pub cache_to: Vec<CacheTo>,
    /// Annotations of the image's documents.
    pub annotations: Vec<Annotation>,
    /// Ask the registry for every image that is named by a tag, also for those in the store.
    pub pull: bool,
    /// Secrets: a file, or a value.
    pub secrets: BTreeMap<String, Secret>,
    /// Sockets of ssh agents.
    pub ssh: BTreeMap<String, PathBuf>,
    /// Rights of steps.
    pub allow: Allowed,
    /// Memory and processors of each RUN.
    pub limits: kiln_worker::Limits,
    /// Keep the state of a RUN that fails: [`BuildError::state`].
    pub keep_failed: bool,
    /// RUN steps at once.
    pub jobs: usize,
    /// Processors.
    pub cores: usize,
    /// The text of `/etc/resolv.conf` in RUN steps.
    pub resolv_conf: String,
    /// Certificates of the host that RUN trusts.
    pub trust: Option<kiln_worker::Trust>,
    /// The command line, for those who wait for this build, and for its history. Holds no secrets.
    pub command: Vec<String>,
}

/// An annotation of one of an image's documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Annotation {
    /// Which.
    pub on: Annotated,
    /// Only that of this platform.
    pub platform: Option<Platform>,
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
}

/// What is annotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Annotated {
    /// The image's manifest.
    Manifest,
    /// The index of the platforms' images.
    Index,
    /// An image's entry in the index.
    ManifestDescriptor,
}

/// Rights that steps have only where the user gives them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowed {
    /// `RUN --network=host`.
    pub network_host: bool,
    /// `RUN --security=insecure`.
    pub security_insecure: bool,
}

impl Allowed {
    /// Refuses a graph that asks for more.
    fn check(self, graph: &Graph, source: &SourceText) -> Result<(), BuildError> {
        for (_, op) in graph.ops() {
            let OpKind::Exec(exec) = &op.kind else {
                continue;
            };
            let missing = if exec.security == Security::Insecure && !self.security_insecure {
                "security.insecure"
            } else if exec.network == Network::Host && !self.network_host {
                "network.host"
            } else {
                continue;
            };
            let error = BuildError::new(format!("{missing} is not allowed"))
                .with_hint(format!("allow it for this build with --allow {missing}"));
            return Err(match op.place.lines {
                Some((first, last)) => error.at(source, Lines { first, last }, None),
                None => error,
            });
        }
        Ok(())
    }
}

/// Where a secret comes from.
#[derive(Debug, Clone)]
pub enum Secret {
    /// A file.
    File(PathBuf),
    /// A value.
    Value(Vec<u8>),
}

/// The Dockerfile: its name in messages, its bytes.
#[derive(Debug, Clone)]
pub struct Dockerfile {
    /// As messages show it.
    pub name: String,
    /// Its text.
    pub bytes: Vec<u8>,
    /// Where it lies, when it is a file: an ignore file of its own would lie beside it.
    pub path: Option<PathBuf>,
}

/// Where the Dockerfile is.
#[derive(Debug, Clone)]
pub enum DockerfileFrom {
    /// Here.
    Text(Dockerfile),
    /// In the context, at that path; `Dockerfile` or `dockerfile` when none is given.
    Context(Option<String>),
    /// On a web server.
    Url(String),
}

/// The main context.
#[derive(Debug, Clone)]
pub enum MainContext {
    /// A folder.
    Folder(PathBuf),
    /// None: the Dockerfile came alone.
    Empty,
    /// An archive, or the Dockerfile alone, to be read from here.
    Stream(Arc<File>),
    /// A git repository, as the user wrote it: remote, query, fragment.
    Git(String),
    /// An archive, or the Dockerfile alone, on a web server.
    Http(String),
}

/// Where a build ended.
pub(crate) enum Reached {
    Image(Box<Built>),
    Step(Box<StepState>),
    /// What would be executed is known.
    Looked,
}

/// How far a build goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Goal<'a> {
    /// To its end.
    Image,
    /// Up to a step, as its user names it.
    Step(&'a str),
    /// Nowhere: it is only looked what would be executed.
    Look,
}

/// A finished build.
#[derive(Debug)]
pub struct Built {
    /// The image, if one was asked for; of several platforms both digests are that of the index.
    pub image: Option<Committed>,
    /// What the registries have, one for each name, if it was pushed.
    pub pushed: Vec<Published>,
    /// What was executed and why.
    pub reports: Vec<OpReport>,
    /// Whether anything was executed.
    pub executed: bool,
}

impl Engine {
    /// Builds an image and tags it.
    ///
    /// # Errors
    /// When anything goes wrong; what was completed until then stays in the cache.
    pub fn build(
        &self,
        request: &BuildRequest,
        sink: &dyn Sink,
        cancel: &CancelFlag,
    ) -> Result<Built, BuildError> {
        match self.build_until(Goal::Image, request, sink, cancel)? {
            Reached::Image(built) => Ok(*built),
            Reached::Step(_) | Reached::Looked => {
                Err(BuildError::new("the build stopped before its end"))
            }
        }
    }

    /// Builds until a step is done, and gives what it left. The step is named by a line of the Dockerfile, by its number
    /// as the displays show it (`2/4`, `build 2/4`), or by a part of its text.
    ///
    /// # Errors
    /// As [`Engine::build`], and when no step or more than one is meant.
    pub fn build_step(
        &self,
        step: &str,
        request: &BuildRequest,
        sink: &dyn Sink,
        cancel: &CancelFlag,
    ) -> Result<StepState, BuildError> {
        match self.build_until(Goal::Step(step), request, sink, cancel)? {
            Reached::Step(state) => Ok(*state),
            Reached::Image(_) | Reached::Looked => {
                Err(BuildError::new(format!("no step {step:?}")))
            }
        }
    }

    fn build_until(
        &self,
        goal: Goal<'_>,
        request: &BuildRequest,
        sink: &dyn Sink,
        cancel: &CancelFlag,
    ) -> Result<Reached, BuildError> {
        let (started, began) = (Instant::now(), SystemTime::now());
        let mut steps = Vec::new();
        let log = BuildLog::new(&self.store, request, sink);
        let outcome = self.build_inner(goal, request, &log, cancel, &mut steps);
        let took = started.elapsed();
        if let Err(error) = &outcome {
            log.emit(Event::Error(Box::new(error.finding())));
        }
        log.emit(Event::Ended {
            took,
            ok: outcome.is_ok(),
        });
        let last = outcome.as_ref().err().map(BuildError::told);
        let log = log.end(last.as_deref().unwrap_or_default());
        self.remember(request, began, took, &outcome, steps, log);
        outcome
    }

    /// What became of the steps is added to `steps`.
    pub(crate) fn build_inner(
        &self,
        goal: Goal<'_>,
        request: &BuildRequest,
        sink: &dyn Sink,
        cancel: &CancelFlag,
        steps: &mut Vec<BuildStep>,
    ) -> Result<Reached, BuildError> {
        let lease = self.store.lease()?;
        let mut rows = Rows::new(sink);
        let images = Images::new(self, request, cancel);
        let inputs = self.inputs(request, &mut rows, cancel)?;
        let source = SourceText::new(&inputs.dockerfile.name, &inputs.dockerfile.bytes);
        let mut warnings = Vec::new();
        let planned = plans(request, &inputs, &source, &images, &mut rows, &mut warnings);
        // What the checks found is told also when the build ends here.
        warnings.sort_by_key(|warning| warning.lines);
        for warning in &warnings {
            sink.emit(warning_event(warning, &source));
        }
        let (graph, plans) = joined(planned?);
        let plan = &plans[0];
        request.allow.check(&graph, &source)?;
        let skipped: Vec<&str> = plan
            .skipped
            .iter()
            .filter(|stage| plans.iter().all(|plan| plan.skipped.contains(stage)))
            .map(String::as_str)
            .collect();
        if !skipped.is_empty() {
            let (noun, verb) = if skipped.len() == 1 {
                ("stage", "is")
            } else {
                ("stages", "are")
            };
            let text = format!(
                "{noun} not needed for {}, {verb} skipped: {}",
                plan.stage,
                skipped.join(", ")
            );
            sink.emit(Event::Note { text });
        }
        let clamp = plan.source_date_epoch;
        let dry = goal == Goal::Look;
        let step = match goal {
            Goal::Step(step) => Some(find_step(&graph, step)?),
            Goal::Image | Goal::Look => None,
        };
        let targets: Vec<Edge> = match step {
            Some(step) => vec![step],
            None => plans.iter().filter_map(|plan| plan.result).collect(),
        };
        let lazy = goal == Goal::Image && request.outputs.iter().all(Output::is_lazy);
        let (solved, kept, reports) = match &targets[..] {
            [] if dry => return Ok(Reached::Looked),
            [] => (Vec::new(), Vec::new(), Vec::new()),
            targets => {
                let now = SystemTime::now()
                    .duration_since(SystemTime::UNIX_EPOCH)
                    .unwrap_or_default();
                let caches = Caches {
                    engine: self,
                    from: &request.cache_from,
                    platforms: if request.platforms.is_empty() {
                        std::slice::from_ref(&request.options.target_platform)
                    } else {
                        &request.platforms
                    },
                    cancel,
                    lease: &lease,
                    sink,
                    first_row: rows.next,
                    read: OnceLock::new(),
                };
                rows.next += request.cache_from.len() as u32;
                let first_vertex = rows.next;
                let digesting = Digesting::default();
                let guard = Guard::new(self);
                let mut tries = 1;
                let solved = std::thread::scope(|scope| {
                    let once = std::sync::Once::new();
                    let begin = || once.call_once(|| self.begin(&guard, scope));
                    let bringing = Bringing {
                        engine: self,
                        request,
                        inputs: &inputs,
                        cancel,
                        images: &images,
                        caches: &caches,
                        lease: &lease,
                        sink,
                        guard: &guard,
                        begin: &begin,
                    };
                    let sealed = |layer| {
                        if !dry {
                            self.digest_beside(scope, &digesting, layer, clamp);
                        }
                    };
                    let mut solver = Solver {
                        store: &self.store,
                        lease: &lease,
                        worker: &self.worker,
                        sink,
                        providers: &bringing,
                        options: Options {
                            jobs: request.jobs,
                            cores: request.cores,
                            resolv_conf: request.resolv_conf.clone(),
                            trust: request.trust.clone(),
                            limits: request.limits.clone(),
                            keep_failed: request.keep_failed,
                            now: clamp
                                .map_or((now.as_secs() as i64, now.subsec_nanos()), |seconds| {
                                    (seconds, 0)
                                }),
                            first_vertex,
                            origin: history::origin(request),
                            about: request.command.join(" ").replace(['\n', '\r'], " "),
                            uncached: if request.options.no_cache {
                                "--no-cache".to_owned()
                            } else {
                                "--no-cache-filter".to_owned()
                            },
                            lazy,
                            keep: !request.cache_to.is_empty(),
                            scan_first: !request.cache_from.is_empty(),
                        },
                        sealed: &sealed,
                    };
                    if dry {
                        steps.extend(solver.look(&graph, targets)?);
                        return Ok(None);
                    }
                    let mut solved = solver.solve(&graph, targets, steps);
                    let mut failed = None;
                    // What was damaged is dropped, and made again in the same build; so is what a cache had lost.
                    while tries < MOST_TRIES {
                        match &mut solved {
                            Err(SolveError::Damaged { layer, message, .. }) => {
                                solver.drop_damaged(*layer, message)?;
                            }
                            Ok(Solved { layers, .. }) if lazy => {
                                let with_layers = plans.iter().filter(|plan| plan.result.is_some());
                                let mut stacks = layers.iter_mut().zip(targets).zip(with_layers);
                                let secured = stacks.try_fold(true, |well, each| {
                                    let ((stack, target), plan) = each;
                                    let id = VertexId(first_vertex + target.op.0 as u32);
                                    let row = Row { sink, id };
                                    let below = plan.base_layers;
                                    let well = well && caches.secure(stack, below, clamp, &row)?;
                                    Ok::<_, BuildError>(well)
                                });
                                match secured {
                                    Ok(true) => break,
                                    Ok(false) => {}
                                    Err(error) => {
                                        failed = Some(error);
                                        break;
                                    }
                                }
                            }
                            _ => break,
                        }
                        tries += 1;
                        solver.options.first_vertex += graph.len() as u32;
                        self.worker.resume();
                        steps.clear();
                        solved = solver.solve(&graph, targets, steps);
                    }
                    guard.end();
                    digesting.wait(|| {
                        if cancel.is_set() {
                            self.worker.cancel();
                        }
                    });
                    match failed {
                        Some(error) => Ok(Some(Err(error))),
                        None => solved.map(|solved| Some(Ok(solved))),
                    }
                });
                rows.next += graph.len() as u32 * tries;
                let solved = solved.map_err(|error| {
                    if let (SolveError::Canceled, Some((message, hint))) = (&error, guard.stopped())
                    {
                        return BuildError::new(message).with_hint(hint);
                    }
                    let mut failed = inputs.explained(&error, &source);
                    failed.state = StepState::of(error, &lease).map(Box::new);
                    failed
                })?;
                match solved {
                    Some(solved) => {
                        let solved = solved?;
                        (solved.layers, solved.kept, solved.reports)
                    }
                    None => return Ok(Reached::Looked),
                }
            }
        };
        let mut solved = solved.into_iter();
        if cancel.is_set() {
            return Err(BuildError {
                canceled: true,
                ..BuildError::new("canceled")
            });
        }
        if let Some(step) = step {
            let process = in_step(graph.op(step.op), plan, request);
            let layers = solved.next().unwrap_or_default();
            let snapshot = Snapshot::here(&layers).unwrap_or_default();
            let state = StepState::after(process, snapshot.layers, &lease);
            return Ok(Reached::Step(Box::new(state)));
        }
        images.keep_names()?;
        let results = plans.into_iter().map(|plan| {
            let layers = plan.result.and_then(|_| solved.next());
            crate::outputs::Planned::new(plan, layers.unwrap_or_default())
        });
        let outcome = crate::outputs::Outcome {
            request,
            graph: &graph,
            results: results.collect(),
            lease: &lease,
            cancel,
        };
        let PutOut { image, pushed } = self.put_out(&outcome, &kept, &mut rows)?;
        self.put_caches(&outcome, &kept, &mut rows)?;
        Ok(Reached::Image(Box::new(Built {
            image,
            pushed,
            executed: reports.iter().any(|report| report.executed),
            reports,
        })))
    }

    /// Before anything is made: sees to it that there is room, and that this stays so.
    fn begin<'scope>(&'scope self, guard: &'scope Guard<'_>, scope: &'scope Scope<'scope, '_>) {
        // What builds that died have left behind may be the room that this one needs.
        let _ = self.sweep();
        // What cannot be measured shows when it is used.
        let _ = guard.begin();
        scope.spawn(|| guard.watch());
    }

    /// Finds a layer's diff id while the next steps run. Nothing is started for a layer whose diff id is known.
    fn digest_beside<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        digesting: &'scope Digesting,
        layer: LayerId,
        clamp: Option<i64>,
    ) {
        if matches!(self.store.diff(layer, clamp), Ok(None)) {
            let begun = digesting.begin();
            scope.spawn(move || {
                let _turn = digesting.turn.lock();
                // A failure comes back, and is told, when the image is made.
                let _ = digest_layer(&self.store, &self.worker, layer, clamp);
                drop(begun);
            });
        }
    }
}

/// The plan for each platform. `warnings` becomes what the checks found for any of them.
fn plans(
    request: &BuildRequest,
    inputs: &Inputs,
    source: &SourceText,
    images: &Images<'_>,
    rows: &mut Rows<'_>,
    warnings: &mut Vec<Warning>,
) -> Result<Vec<Plan>, BuildError> {
    let mut facts = Facts::default();
    if request.platforms.is_empty() {
        let options = &inputs.options;
        let plan = plan(inputs, options, source, images, rows, &mut facts, warnings)?;
        return Ok(vec![plan]);
    }
    let mut plans = Vec::new();
    for platform in &request.platforms {
        let options = kiln_frontend::Options {
            target_platform: platform.clone(),
            platform_requested: true,
            multi_platform: true,
            ..inputs.options.clone()
        };
        let mut found = Vec::new();
        let planned = plan(
            inputs, &options, source, images, rows, &mut facts, &mut found,
        );
        found.retain(|warning| !warnings.contains(warning));
        warnings.extend(found);
        plans.push(planned?);
    }
    Ok(plans)
}

/// One graph for all plans, in which what they have in common is there once. There is at least one plan.
fn joined(mut plans: Vec<Plan>) -> (Graph, Vec<Plan>) {
    let mut graph = std::mem::take(&mut plans[0].graph);
    for plan in &mut plans[1..] {
        let moved = graph.append(std::mem::take(&mut plan.graph));
        if let Some(edge) = &mut plan.result {
            edge.op = moved[edge.op.0];
        }
    }
    (graph, plans)
}

/// Asks the frontend for the graph until it knows enough.
fn plan(
    inputs: &Inputs,
    options: &kiln_frontend::Options,
    source: &SourceText,
    images: &Images<'_>,
    rows: &mut Rows<'_>,
    facts: &mut Facts,
    warnings: &mut Vec<Warning>,
) -> Result<Plan, BuildError> {
    loop {
        let needs = match plan_checked(source, options, facts, warnings) {
            Ok(Outcome::Plan(plan)) => return Ok(plan),
            Ok(Outcome::Needs(needs)) => needs,
            Err(diagnostic) => return Err(BuildError::diagnostic(&diagnostic, source)),
        };
        for need in needs {
            find_out(need, inputs, source, images, rows, facts)?;
        }
    }
}

/// The stage that somebody may have meant with the name of an image that cannot be found.
fn near_stage(source: &SourceText, image: &str) -> Option<String> {
    let dockerfile = kiln_dockerfile::parse(source).ok()?;
    let image = image.strip_suffix(":latest")?;
    let stages = dockerfile
        .stages
        .iter()
        .filter_map(|stage| stage.name.as_deref());
    nearest(image, stages).map(str::to_owned)
}

/// Finds out what the frontend must know.
pub(crate) fn find_out(
    need: Need,
    inputs: &Inputs,
    source: &SourceText,
    images: &Images<'_>,
    rows: &mut Rows<'_>,
    facts: &mut Facts,
) -> Result<(), BuildError> {
    match need {
        Need::ImageConfig {
            reference,
            platform,
            place,
        } => {
            let fact = rows.work(&place.title, |row| {
                let fact = images.fact(&reference, &platform, row);
                fact.map_err(|error| match place.lines {
                    Some((first, last)) => {
                        let lines = Lines { first, last };
                        let short = reference.strip_prefix("docker.io/library/");
                        let names = [Some(reference.as_str()), short];
                        let name = |name: &str| {
                            locate(source, lines, name)
                                .or_else(|| locate(source, lines, name.strip_suffix(":latest")?))
                        };
                        let span = names.into_iter().flatten().find_map(name);
                        let mut error = error.at(source, lines, span);
                        if let Some(stage) = short.and_then(|name| near_stage(source, name)) {
                            error.hint = Some(format!("did you mean the stage {stage}?"));
                        }
                        error
                    }
                    None => error,
                })
            })?;
            facts.images.insert((reference, platform), fact);
        }
        Need::IgnoreFile { context } => {
            let patterns = rows.work("[internal] load .dockerignore", |_| {
                inputs.ignore_patterns(&context)
            })?;
            facts.ignore.insert(context, patterns);
        }
    }
    Ok(())
}

/// A warning of a check.
fn warning_event(warning: &Warning, source: &SourceText) -> Event {
    let Warning {
        rule,
        message,
        lines,
    } = warning;
    let place = Place::new(source, *lines, None);
    Event::Found(Box::new(Finding {
        rule: Some(rule.name().to_owned()),
        about: rule.about().to_owned(),
        url: rule.url().to_owned(),
        message: message.clone(),
        hint: rule.hint().map(str::to_owned),
        file: place.file,
        lines: Some(place.lines),
        columns: Some(place.columns),
    }))
}
