//! Finds out why an operation is executed, and keeps what the next explanation will need.

use std::sync::Arc;
use std::time::SystemTime;

use kiln_fileop::{Changes, Listing};
use kiln_graph::{CopyAction, OpId, OpKind, Place, SourceOp};
use kiln_image::Key;
use kiln_image::view::MergedView;
use kiln_store::{BuildStep, Record, StepState, Store, StoreError};

use super::{Run, Solver, State, step_name, upon};
use crate::explain::{self, ABOUT, Inputs, Reason};
use crate::keys;
use crate::value::Value;

/// Earlier builds that are looked at.
const EARLIER: usize = 20;
/// Changes of files that are put into words.
const MOST_TEXTS: usize = 10_000;

const GONE: &str = "its earlier result is no longer in the cache";

/// The steps of earlier builds of the same Dockerfile, the latest first.
pub(super) type Earlier = Arc<Vec<Vec<BuildStep>>>;

/// All that is needed to tell why an operation is executed, in any thread.
pub(crate) struct Question {
    place: Place,
    /// The parts of the content key, and what is kept beside them.
    parts: Vec<(String, Vec<u8>)>,
    keys: Vec<Key>,
    /// What became of the operations that parts stand for.
    told: Vec<(String, String)>,
    files: Vec<Files>,
    /// The texts of all steps of the same stage.
    texts: Vec<String>,
    /// How many of those before it have its text.
    nth: usize,
    /// When this build began.
    begun: SystemTime,
    uncached: bool,
    earlier: Earlier,
}

/// Files that a part of a key stands for.
struct Files {
    part: String,
    key: Vec<u8>,
    value: Value,
    output: u32,
    copy: CopyAction,
}

impl Files {
    /// The tree that they are in.
    fn view(&self, store: &Store) -> Option<MergedView> {
        Some(match &self.value {
            Value::Local(local) => MergedView::new([local.index_for(&self.copy).ok()?]),
            Value::Trees(_) | Value::Outline(_) => {
                let tree = self.value.tree(self.output)?;
                let indexes = tree.layers.iter().map(|layer| store.load_index(*layer));
                MergedView::new(indexes.collect::<Result<Vec<_>, _>>().ok()?)
            }
        })
    }

    /// What stands in front of a path: nothing for files of a context.
    fn root(&self) -> &'static str {
        match self.value {
            Value::Local(_) => "",
            Value::Trees(_) | Value::Outline(_) => "/",
        }
    }
}

struct Known<'q> {
    question: &'q Question,
    store: &'q Store,
}

impl Inputs for Known<'_> {
    fn told(&self, part: &str) -> Option<String> {
        let mut told = self.question.told.iter();
        told.find(|(name, _)| name == part)
            .map(|(_, text)| text.clone())
    }

    fn files(&self, part: &str, before: &[u8]) -> Option<Changes> {
        let files = self.question.files.iter().find(|it| it.part == part)?;
        let before = self.store.listing(before).ok()??;
        let view = files.view(self.store)?;
        let listing = Listing::of(&files.copy, &view).ok()?;
        listing.changes(&before, files.root(), MOST_TEXTS)
    }
}

impl Question {
    /// The parts, with what is kept beside them.
    pub(crate) fn parts(&self) -> &[(String, Vec<u8>)] {
        &self.parts
    }

    /// The same step in earlier builds, the latest first.
    fn counterparts(&self) -> Vec<&BuildStep> {
        let Place {
            title, step, stage, ..
        } = &self.place;
        let in_stage = |text: &str| self.texts.iter().filter(|it| *it == text).count();
        explain::counterpart(&self.earlier, (stage, step, self.nth), title, &in_stage)
    }
}

impl Solver<'_> {
    /// What the operation gave when it was last executed: what an explanation compares with.
    pub(crate) fn earlier_record(&self, question: &Question) -> Result<Option<Record>, StoreError> {
        if question.uncached {
            return Ok(None);
        }
        for before in question.counterparts() {
            if !matches!(before.state, StepState::Failed | StepState::Canceled)
                && let Some(record) = self.store.any_record(&before.keys)?
            {
                return Ok(Some(record));
            }
        }
        if !question.earlier.is_empty() {
            return Ok(None);
        }
        self.store
            .latest_record_of_step(&step_name(&question.place))
    }

    /// Why the operation is executed.
    pub(crate) fn explain(&self, question: &Question) -> Result<Reason, StoreError> {
        if question.uncached {
            return Ok(Reason::plain(format!(
                "the cache is not used ({})",
                self.options.uncached
            )));
        }
        let inputs = Known {
            question,
            store: self.store,
        };
        let compare = |record| {
            let before = self.store.record_parts(record)?;
            let reason = explain::difference(&question.parts, &before, &inputs);
            Ok::<_, StoreError>(reason.unwrap_or_else(|| Reason::plain(GONE)))
        };
        let mut forgotten = false;
        for before in question.counterparts() {
            let same = before.keys.iter().any(|key| question.keys.contains(key));
            match before.state {
                StepState::Failed if same => return Ok(Reason::plain("it failed last time")),
                StepState::Canceled if same => {
                    return Ok(Reason::plain("it was given up before its end last time"));
                }
                StepState::Failed | StepState::Canceled => continue,
                _ => {}
            }
            let mut keys = before.keys.clone();
            keys.extend(before.keys.iter().map(|key| upon(*key)));
            if let Some(record) = self.store.any_record(&keys)? {
                return compare(record.id);
            }
            if same {
                return Ok(Reason::plain(GONE));
            }
            forgotten = true;
        }
        if forgotten {
            return Ok(Reason::plain(
                "it changed, and the record to compare with is no longer in the cache",
            ));
        }
        if question.earlier.is_empty()
            && let Some(record) = self
                .store
                .latest_record_of_step(&step_name(&question.place))?
            // Of this build: one of the steps before it has the same text.
            && record.created < question.begun
        {
            return compare(record.id);
        }
        Ok(Reason {
            first: question.earlier.is_empty(),
            ..Reason::plain("never built before")
        })
    }

    /// Keeps what a later explanation will compare with. Off the path of the build: nothing waits for it.
    pub(crate) fn keep_listings(&self, question: &Question) {
        for files in &question.files {
            if matches!(self.store.has_listing(&files.key), Ok(false))
                && let Some(view) = files.view(self.store)
                && let Ok(listing) = Listing::of(&files.copy, &view)
            {
                // Without it the next explanation is less exact.
                let _ = self.store.put_listing(&files.key, &listing.encode());
            }
        }
    }
}

impl Run<'_, '_> {
    /// What is asked of an operation whose content key is known.
    pub(super) fn ask(&mut self, id: OpId) -> Result<Question, StoreError> {
        let op = self.graph.op(id);
        let earlier = self.earlier()?;
        let (content, parts) = self.contents[id.0]
            .clone()
            .expect("made before it is asked for");
        let mut parts = parts.into_inner();
        let mut told = Vec::new();
        for (name, input) in keys::named_inputs(op) {
            let edge = op.inputs[input];
            if let OpKind::Source(SourceOp::Image { reference }) = &self.graph.op(edge.op).kind {
                parts.push((format!("{ABOUT}{name}"), reference.as_bytes().to_vec()));
            } else if let Some(text) = self.outcome_of(edge.op) {
                told.push((name, text));
            }
        }
        let mut files = Vec::new();
        for (part, input, copy) in keys::selections(op) {
            let State::Done(value) = &self.states[op.inputs[input].op.0] else {
                continue;
            };
            let Some((_, key)) = parts.iter().find(|(name, _)| *name == part) else {
                continue;
            };
            files.push(Files {
                key: key.clone(),
                part,
                value: value.clone(),
                output: op.inputs[input].output,
                copy,
            });
        }
        let same_stage = |(_, other): (OpId, &kiln_graph::Op)| {
            (other.place.stage == op.place.stage).then(|| other.place.step.clone())
        };
        let twin = |(other, it): &(OpId, &kiln_graph::Op)| {
            other.0 < id.0 && it.place.stage == op.place.stage && it.place.step == op.place.step
        };
        let definition = self.definitions[id.0].as_ref().map(|(key, _)| *key);
        Ok(Question {
            place: op.place.clone(),
            parts,
            keys: definition.into_iter().chain([content]).collect(),
            told,
            files,
            texts: self.graph.ops().filter_map(same_stage).collect(),
            nth: self.graph.ops().filter(twin).count(),
            begun: self.begun,
            uncached: op.ignore_cache,
            earlier,
        })
    }

    /// What became of an operation that another one needs, as a reason for that one.
    fn outcome_of(&self, id: OpId) -> Option<String> {
        let op = self.graph.op(id);
        if let OpKind::Merge = op.kind {
            let mut inputs = op.inputs.iter().rev().map(|edge| edge.op);
            return inputs.find_map(|input| {
                self.reports[input.0].as_ref()?;
                self.outcome_of(input)
            });
        }
        let title = &op.place.title;
        let name = match title.split_once("] ") {
            Some((place, _)) => format!("{place}]"),
            None if title.is_empty() => return None,
            None => title.clone(),
        };
        Some(if self.reports[id.0].is_some() {
            format!("{name} ran again and gave another result")
        } else {
            format!("{name} has another result than last time")
        })
    }

    /// The steps of earlier builds: of the same Dockerfile in the same context, or, if there are none, of the one that
    /// has most steps in common, as after a fresh checkout in another folder.
    fn earlier(&mut self) -> Result<Earlier, StoreError> {
        if let Some(earlier) = &self.earlier {
            return Ok(earlier.clone());
        }
        let store = self.solver.store;
        let origin = &self.solver.options.origin;
        let mut builds = store.builds(Some(origin), EARLIER)?;
        // Of those that failed before there was a plan nothing can be learnt.
        builds.retain(|build| !build.build.steps.is_empty());
        if builds.is_empty() {
            let mut best = (
                self.graph
                    .ops()
                    .filter(|(_, op)| !op.place.step.is_empty())
                    .count()
                    / 2,
                None,
            );
            let all = store.builds(None, usize::MAX)?;
            for build in &all {
                let steps = &build.build.steps;
                let common = |(_, op): &(OpId, &kiln_graph::Op)| {
                    !op.place.step.is_empty()
                        && steps
                            .iter()
                            .any(|it| it.stage == op.place.stage && it.step == op.place.step)
                };
                let common = self.graph.ops().filter(common).count();
                if common > best.0 {
                    best = (common, Some(build.build.origin.clone()));
                }
            }
            if let (_, Some(origin)) = best {
                builds = all;
                builds.retain(|build| build.build.origin == origin);
                builds.truncate(EARLIER);
            }
        }
        let earlier = Arc::new(builds.into_iter().map(|build| build.build.steps).collect());
        self.earlier = Some(Arc::clone(&earlier));
        Ok(earlier)
    }
}
