//! What would be executed, without executing it.

use std::sync::mpsc::channel;

use kiln_graph::{Edge, Graph, OpId};
use kiln_store::{BuildStep, StepState};

use super::{Run, Solver, State, step_name};
use crate::SolveError;

impl Solver<'_> {
    /// Says what [`Solver::solve`] would do. Only keys are made and records looked up; of sources from the network is
    /// found out what they are now. For each step that would be executed, or may be, [`BuildStep::took`] is how long it
    /// took last time.
    ///
    /// # Errors
    /// When what the steps read cannot be found out.
    pub fn look(&self, graph: &Graph, targets: &[Edge]) -> Result<Vec<BuildStep>, SolveError> {
        let mut run = self.begin(graph, targets, true);
        std::thread::scope(|scope| {
            let (sender, receiver) = channel();
            run.drive(scope, &sender, &receiver).map(drop)
        })?;
        let mut steps = run.steps(true);
        for step in &mut steps {
            let op = graph.op(OpId(step.number as usize));
            if matches!(step.state, StepState::Would | StepState::May) {
                step.took = self.store.last_duration(&step_name(&op.place))?;
            }
            if step.state == StepState::May {
                let unknown = op
                    .inputs
                    .iter()
                    .find(|edge| matches!(run.states[edge.op.0], State::Unknown));
                step.reason = Some(match unknown {
                    Some(edge) => format!("depends on {}", short(&graph.op(edge.op).place.title)),
                    None => "it is not in the store".to_owned(),
                });
            }
        }
        Ok(steps)
    }
}

impl Run<'_, '_> {
    /// An operation whose inputs are known and that has no record.
    pub(super) fn would_start(&mut self, id: OpId) -> Result<(), SolveError> {
        self.content(id)?;
        self.definition(id)?;
        let question = self.ask(id)?;
        let reason = self.solver.explain(&question)?;
        self.reports[id.0] = Some(super::OpReport {
            op: id,
            executed: false,
            reason: Some(reason.text),
            changes: reason.changes,
            started: std::time::SystemTime::now(),
            took: std::time::Duration::ZERO,
        });
        self.ends[id.0] = Some(StepState::Would);
        self.states[id.0] = State::Unknown;
        Ok(())
    }
}

/// The place of a step in its stage: `[build 2/4]`.
fn short(title: &str) -> String {
    match title.split_once("] ") {
        Some((place, _)) => format!("{place}]"),
        None => title.to_owned(),
    }
}
