//! What to start first: whatever has the longest way to the end.

use std::time::Duration;

use kiln_graph::{Graph, OpKind};

use super::{Run, State, step_name};
use crate::SolveError;

/// How long a process is assumed to take that was never run.
const UNKNOWN_EXEC: Duration = Duration::from_secs(1);
/// The same for Kiln's own work.
const UNKNOWN: Duration = Duration::from_millis(50);

impl Run<'_, '_> {
    /// The time from the beginning of each operation to the end of the build if nothing had to wait for a slot, from
    /// how long the steps took last time. What is done takes none.
    pub(super) fn remaining(&mut self) -> Result<Vec<Duration>, SolveError> {
        if self.expected.is_empty() {
            for (_, op) in self.graph.ops() {
                let unknown = match &op.kind {
                    OpKind::Exec(_) => UNKNOWN_EXEC,
                    OpKind::File(_) => UNKNOWN,
                    OpKind::Source(_) | OpKind::Merge | OpKind::Diff { .. } => Duration::ZERO,
                };
                let known = if unknown.is_zero() {
                    None
                } else {
                    self.solver.store.last_duration(&step_name(&op.place))?
                };
                self.expected.push(known.unwrap_or(unknown));
            }
        }
        let open = |at: usize| !matches!(self.states[at], State::Done(_) | State::Promised(_));
        let own = |at: usize| {
            if open(at) {
                self.expected[at]
            } else {
                Duration::ZERO
            }
        };
        Ok(longest_ways(self.graph, own))
    }
}

/// For each operation the sum of `own` along the longest way from it to the end, itself included.
fn longest_ways(graph: &Graph, own: impl Fn(usize) -> Duration) -> Vec<Duration> {
    // What comes after it; inputs stand in front of the operations that use them.
    let mut ways = vec![Duration::ZERO; graph.len()];
    for (id, op) in graph.ops().rev() {
        ways[id.0] += own(id.0);
        for edge in &op.inputs {
            ways[edge.op.0] = ways[edge.op.0].max(ways[id.0]);
        }
    }
    ways
}

#[cfg(test)]
mod tests {
    use kiln_graph::{Edge, Op, OpId, Place};

    use super::*;

    #[test]
    fn the_longest_way_counts() {
        let mut graph = Graph::default();
        let mut add = |name: &str, inputs: &[usize]| {
            let edge = |input: &usize| Edge {
                op: OpId(*input),
                output: 0,
            };
            let kind = OpKind::Exec(Box::new(kiln_graph::ExecOp {
                cwd: name.to_owned(),
                ..kiln_graph::ExecOp::default()
            }));
            graph.add(Op {
                kind,
                inputs: inputs.iter().map(edge).collect(),
                platform: None,
                ignore_cache: false,
                place: Place::default(),
            })
        };
        // 0 is the base of two ways, 1-3 and 2, that meet in 4.
        add("base", &[]);
        add("short", &[0]);
        add("long", &[0]);
        add("after short", &[1]);
        add("end", &[2, 3]);
        let seconds = [1, 1, 10, 2, 1];
        let ways = longest_ways(&graph, |at| Duration::from_secs(seconds[at]));
        let ways: Vec<u64> = ways.iter().map(Duration::as_secs).collect();
        assert_eq!(ways, [12, 4, 11, 3, 1]);
    }
}
