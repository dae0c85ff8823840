//! What a rank holds at its peak. An estimate of tensors only: not the program, not libtorch's scratch,
//! not the buffers of messages between data ranks.
//!
//! Weights, sums of gradients and moments are fp32. What forward passes keep is counted by walking the
//! rank's own list of actions, so it follows any schedule; `activations` says how much a layer keeps.

use std::collections::BTreeSet;

use coxswain_types::Assignment;
use coxswain_types::job::{OptimizerKind, Precision};
use coxswain_types::params::ParameterRow;
use coxswain_types::tree::Node;
use serde::Serialize;

use super::activations::{logits_bytes, peak_activations};

/// Bytes of an fp32 number.
pub(super) const FP32: u64 = 4;

/// Elements of the blocks on whose borders the optimizer's state is cut: the blocks of squared norms.
const BLOCK: u64 = 65_536;

/// Bytes that a rank holds at its peak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The weights, and under a low precision their copy in it.
    pub parameters_bytes: u64,
    /// Gradient sums of tree nodes that live at once.
    pub gradients_bytes: u64,
    /// The optimizer's moments, or this rank's share of them.
    pub optimizer_bytes: u64,
    /// What forward passes keep for backward passes, over all micro-batches in flight, and the
    /// receives that are posted ahead.
    pub activations_bytes: u64,
    /// The head's logits and their gradient.
    pub logits_bytes: u64,
    /// What is kept for a neighbour: its weights, its moments, and room for its gradients.
    pub copies_bytes: u64,
}

impl Memory {
    /// All of it.
    pub fn peak_bytes(&self) -> u64 {
        self.parameters_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.logits_bytes
            + self.copies_bytes
    }
}

/// Estimates a rank's peak.
pub(super) fn memory(assignment: &Assignment) -> Memory {
    let held = slices(&assignment.parameters);
    let kept = assignment.buddy.as_ref().map_or(Vec::new(), |buddy| slices(&buddy.parameters));
    // Each use of a weight has a sum of its own.
    let sums: u64 = assignment.parameters.iter().map(ParameterRow::elements).sum();
    let nodes = assignment.data_nodes.get(assignment.data_index as usize).map(Vec::as_slice);
    Memory {
        parameters_bytes: held.iter().map(|row| weight_bytes(assignment, row)).sum(),
        gradients_bytes: live_buffers(nodes.unwrap_or_default()) * FP32 * sums,
        optimizer_bytes: held.iter().map(|row| optimizer_bytes(assignment, row)).sum(),
        activations_bytes: peak_activations(assignment),
        logits_bytes: logits_bytes(assignment),
        copies_bytes: kept
            .iter()
            .map(|row| 2 * FP32 * row.elements() + optimizer_bytes(assignment, row))
            .sum(),
    }
}

/// One row for each slice, however many uses it has.
fn slices(rows: &[ParameterRow]) -> Vec<&ParameterRow> {
    let mut seen = BTreeSet::new();
    rows.iter().filter(|row| seen.insert((&row.name, row.offset))).collect()
}

/// A weight in fp32, and a matrix once more in the precision that it is multiplied in.
fn weight_bytes(assignment: &Assignment, row: &ParameterRow) -> u64 {
    let copy = match assignment.spec.train.precision {
        Precision::Fp32 => 0,
        low if row.shape.len() == 2 => low.bytes(),
        _ => 0,
    };
    row.elements() * (FP32 + copy)
}

/// AdamW keeps two moments of a weight, Muon one of a layer's matrix. Where data ranks share the
/// state, each has whole blocks of it.
fn optimizer_bytes(assignment: &Assignment, row: &ParameterRow) -> u64 {
    let muon = assignment.spec.train.optimizer.kind == OptimizerKind::Muon;
    let moments = if muon && row.is_layer_matrix() { 1 } else { 2 };
    let ranks = assignment.optimizer_group.len().max(1) as u64;
    let share = row.elements().div_ceil(BLOCK).div_ceil(ranks) * BLOCK;
    moments * FP32 * share.min(row.elements())
}

/// Gradient buffers that live at once while a data rank reduces its nodes from left to right. Where
/// runs and data ranks are powers of two there is one node, and at most log2 of the runs, plus one,
/// live; else up to twice as many, for the nodes along both edges of an uneven share.
fn live_buffers(nodes: &[Node]) -> u64 {
    let done_before = 0_u64..;
    done_before.zip(nodes).map(|(done, node)| done + peak(*node)).max().unwrap_or(0)
}

/// A leaf takes one; an inner node holds its left sum while it makes the right one, and adds in
/// place. Over a whole tree that is log2 of the runs, plus one.
fn peak(node: Node) -> u64 {
    node.children().map_or(1, |(left, right)| peak(left).max(1 + peak(right)))
}

#[cfg(test)]
mod tests {
    use coxswain_types::tree::{cover, split};

    use super::*;

    #[test]
    fn live_gradient_buffers_follow_the_depth_of_the_tree() {
        for (runs, expected) in [(1, 1), (2, 2), (3, 2), (4, 3), (8, 4), (9, 4), (16, 5)] {
            assert_eq!(live_buffers(&[Node::root(runs)]), expected, "{runs} runs");
        }
        for runs in 1..=64_u32 {
            for ranks in 1..=runs {
                for owned in split(runs, ranks) {
                    let live = live_buffers(&cover(runs, &owned));
                    // A range from inside the tree leaves nodes open along both of its edges.
                    let most = if ranks.is_power_of_two() && runs.is_power_of_two() {
                        runs.ilog2() + 1
                    } else {
                        2 * runs.ilog2() + 1
                    };
                    assert!(live <= u64::from(most), "{runs} {ranks} {owned:?}: {live}");
                }
            }
        }
    }
}
