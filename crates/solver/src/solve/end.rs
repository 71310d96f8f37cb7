//! What happens when something ends: an operation, the build.

use std::time::{SystemTime, UNIX_EPOCH};

use kiln_graph::{Edge, OpKind, SourceOp};
use kiln_image::Key;
use kiln_progress::Event;
use kiln_store::{BuildStep, StepState};

use super::upon::Above;
use super::{Message, Run, Solved, State};
use crate::SolveError;
use crate::value::{Context, Value};

impl Run<'_, '_> {
    pub(super) fn take(&mut self, message: Message) {
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
            Message::Brought { op, outcome } => self.brought(op, outcome),
            Message::Claimed { op, claim } => {
                // Looked up again, as if it had not been: the owner may have finished it, or died.
                self.claims[op.0] = Some(claim);
                self.states[op.0] = State::Wanted {
                    looked_up: false,
                    by_content: false,
                };
            }
            Message::Executed {
                op: id,
                reason,
                outcome,
            } => {
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
                if let (Some(report), Some(reason)) = (&mut self.reports[id.0], reason) {
                    report.reason = Some(reason.text);
                    report.changes = reason.changes;
                }
                self.ends[id.0] = Some(match &outcome {
                    Ok(_) => StepState::Done,
                    Err(SolveError::Canceled) => StepState::Canceled,
                    Err(_) => StepState::Failed,
                });
                match outcome {
                    Ok(executed) => {
                        self.solver.sink.emit(Event::Finished { id: vertex, at });
                        self.records.extend(executed.record);
                        if let Some(report) = &mut self.reports[id.0] {
                            report.took = executed.took;
                        }
                        if let OpKind::Source(_) = self.graph.op(id).kind {
                            self.forget_contents();
                        }
                        if executed.on.is_empty() {
                            self.done(id, Value::Trees(executed.outputs), false);
                        } else if self.stands(id, &executed.on) {
                            let above = Above {
                                outputs: executed.outputs,
                                took: executed.took,
                            };
                            if let Err(error) = self.put_upon(id, above) {
                                self.fail(error);
                            }
                        } else {
                            self.states[id.0] = State::Wanted {
                                looked_up: false,
                                by_content: false,
                            };
                        }
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

    pub(super) fn finish(&mut self) -> Result<Solved, SolveError> {
        for (id, _) in self.graph.ops() {
            match self.states[id.0] {
                // Nobody needed it, or its layers.
                State::Idle | State::Wanted { .. } | State::Promised(_)
                    if self.reports[id.0].is_none() =>
                {
                    self.cached.push(id);
                }
                State::Identified if !self.told[id.0] => self.cached.push(id),
                _ => {}
            }
        }
        self.tell_cached();
        let layers = |target: &Edge| match &self.states[target.op.0] {
            State::Done(value) => value.tree(target.output).map(Vec::from),
            State::Promised(promise) => promise.outputs.get(target.output as usize).cloned(),
            // Nothing was executed.
            _ => None,
        };
        let targets = self.targets.iter();
        let layers = targets.map(|it| layers(it).unwrap_or_default()).collect();
        let kept = if self.solver.options.keep {
            self.kept()?
        } else {
            Vec::new()
        };
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
        // What the targets stand on counts as used too, though nobody had to look at it.
        let definitions = self.definitions.iter().flatten();
        let keys: Vec<Key> = definitions.map(|(key, _)| *key).collect();
        self.solver.store.touch(&self.records, &keys)?;
        Ok(Solved {
            layers,
            kept,
            reports: self.reports.iter().flatten().cloned().collect(),
            records: std::mem::take(&mut self.records),
        })
    }

    /// What became of the steps, in the order of the graph.
    pub(super) fn steps(&mut self, well: bool) -> Vec<BuildStep> {
        let mut steps = Vec::with_capacity(self.graph.len());
        for (id, op) in self.graph.ops() {
            let local = matches!(op.kind, OpKind::Source(SourceOp::Local { .. }));
            if local || op.place.title.is_empty() && op.place.step.is_empty() {
                continue;
            }
            let state = match (&self.states[id.0], self.ends[id.0]) {
                (_, Some(end)) => end,
                (State::Done(_) | State::Promised(_), None) => StepState::Cached,
                (State::Unknown, None) => StepState::May,
                // A hit further up made it needless.
                _ if well => StepState::Cached,
                _ => StepState::NotReached,
            };
            let report = self.reports[id.0].take();
            let known = [&self.definitions[id.0], &self.contents[id.0]];
            let mut step = BuildStep {
                number: id.0 as u32,
                title: op.place.title.clone(),
                stage: op.place.stage.clone(),
                step: op.place.step.clone(),
                state,
                started: None,
                took: None,
                reason: None,
                changes: Vec::new(),
                keys: known.into_iter().flatten().map(|(key, _)| *key).collect(),
            };
            if let Some(report) = report {
                let since = report
                    .started
                    .duration_since(UNIX_EPOCH)
                    .unwrap_or_default();
                step.started = i64::try_from(since.as_nanos()).ok();
                step.took = Some(report.took);
                step.reason = report.reason;
                step.changes = report.changes;
            }
            steps.push(step);
        }
        steps
    }
}
