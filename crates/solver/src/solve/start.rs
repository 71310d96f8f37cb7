//! Starts what must be done, each operation in a thread of its own.

use std::sync::mpsc::Sender;
use std::thread::Scope;
use std::time::{Duration, SystemTime};

use kiln_graph::{Op, OpId, OpKind};
use kiln_progress::Event;
use kiln_store::{ClaimAttempt, Holder};

use super::{Executed, Message, OpReport, Run, State, TICK, Task};
use crate::SolveError;

impl<'s> Run<'s, '_> {
    /// Fetches an image beside everything else.
    pub(super) fn fetch_image<'scope, 'env>(
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
                    on: Vec::new(),
                }),
                Err(error) if error.canceled => Err(SolveError::Canceled),
                Err(error) => Err(SolveError::step(&op.place, error.message, error.hint)),
            };
            let _ = sender.send(Message::Executed {
                op: id,
                reason: None,
                outcome,
            });
        });
    }

    /// Starts an operation if there is a slot and nobody else does the same; whether anything changed.
    pub(super) fn start<'scope, 'env>(
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
        let Some(inputs) = self.outlines(id).or_else(|| self.input_values(op)) else {
            // An index that was known is gone again.
            self.bring_inputs(op, scope, sender);
            return Ok(true);
        };
        let content = self.content(id)?;
        let definition = self.definition(id)?;
        if self.claims[id.0].is_none() && !op.ignore_cache {
            let about = &self.solver.options.about;
            match self.solver.store.claim_for(content, about)? {
                ClaimAttempt::Held(claim) => {
                    // Another process may have finished between the look-up and the claim.
                    if let Some(record) = self.solver.find(content)?
                        && self.hit(id, &record, definition)?
                    {
                        return Ok(true);
                    }
                    if self.hit_upon(id)? {
                        return Ok(true);
                    }
                    self.claims[id.0] = Some(claim);
                }
                ClaimAttempt::Busy(waiter) => {
                    let vertex = self.solver.vertex(id);
                    let text = match waiter.held_by() {
                        Some(holder) if holder.pid == std::process::id() => {
                            "for the same step of this build".to_owned()
                        }
                        Some(Holder { pid, what }) if what.is_empty() => {
                            format!("for the same step in another build (process {pid})")
                        }
                        Some(Holder { pid, what }) => {
                            format!("for the same step in another build (process {pid}: {what})")
                        }
                        None => "for the same step in another build".to_owned(),
                    };
                    self.solver.sink.emit(Event::Waiting { id: vertex, text });
                    self.states[id.0] = State::Running;
                    self.running += 1;
                    let (sender, solver) = (sender.clone(), self.solver);
                    scope.spawn(move || {
                        let message = loop {
                            if solver.providers.is_canceled() || solver.worker.is_canceled() {
                                break Message::Executed {
                                    op: id,
                                    reason: None,
                                    outcome: Err(SolveError::Canceled),
                                };
                            }
                            match waiter.wait(TICK) {
                                Ok(Some(claim)) => break Message::Claimed { op: id, claim },
                                Ok(None) => {}
                                Err(error) => {
                                    break Message::Executed {
                                        op: id,
                                        reason: None,
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
        let question = self.ask(id)?;
        self.tell_cached();
        let vertex = self.solver.vertex(id);
        let started = SystemTime::now();
        self.solver.sink.emit(Event::Started {
            id: vertex,
            at: started,
        });
        self.reports[id.0] = Some(OpReport {
            op: id,
            executed: true,
            reason: None,
            changes: Vec::new(),
            started,
            took: Duration::ZERO,
        });
        let mut task = Task {
            op: op.clone(),
            inputs,
            vertex,
            keys: definition.into_iter().chain([content]).collect(),
            parts: question.parts().to_vec(),
            claim: self.claims[id.0].take(),
            earlier: None,
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
            let explain = || {
                let reason = solver.explain(&question);
                if let Ok(reason) = &reason
                    && !reason.first
                {
                    let text = reason.text.clone();
                    solver.sink.emit(Event::Reason { id: vertex, text });
                }
                // A step is not worth failing for want of an explanation.
                reason.ok()
            };
            let (reason, outcome) = if exec {
                // Before anything that the process says.
                (explain(), solver.execute(task))
            } else {
                task.earlier = solver.earlier_record(&question).ok().flatten();
                std::thread::scope(|beside| {
                    let reason = beside.spawn(explain);
                    let outcome = solver.execute(task);
                    (reason.join().ok().flatten(), outcome)
                })
            };
            let well = outcome.is_ok();
            let _ = sender.send(Message::Executed {
                op: id,
                reason,
                outcome,
            });
            if well {
                solver.keep_listings(&question);
            }
        });
        Ok(true)
    }
}
