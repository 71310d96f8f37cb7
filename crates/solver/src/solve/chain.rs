//! Which operations make layers of the targets.

use std::collections::HashSet;

use kiln_graph::{Edge, Graph, OpId, OpKind};

/// The operations whose layers are layers of a target.
pub(super) fn chain_of(graph: &Graph, targets: &[Edge]) -> HashSet<OpId> {
    let mut chain = HashSet::new();
    let mut pending: Vec<OpId> = targets.iter().map(|target| target.op).collect();
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
