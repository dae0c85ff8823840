//! What a rank holds at its peak, in bytes of fp32. An estimate of tensors only: not the program,
//! not libtorch's scratch, not the buffers of messages between data ranks.

use coxswain_types::Assignment;
use coxswain_types::job::Checkpointing;
use coxswain_types::params::{ParameterRow, Place};
use coxswain_types::tree::Node;
use serde::Serialize;

use super::check::POSTED_RECEIVES;

/// Bytes of an fp32 number.
const FP32: u64 = 4;

/// Bytes that a rank holds at its peak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The weights.
    pub parameters_bytes: u64,
    /// Gradient sums of tree nodes that live at once.
    pub gradients_bytes: u64,
    /// AdamW's two moments.
    pub optimizer_bytes: u64,
    /// What forward passes keep for backward passes, over all micro-batches in flight, and the
    /// receives that are posted ahead.
    pub activations_bytes: u64,
    /// The head's logits and their gradient.
    pub logits_bytes: u64,
}

impl Memory {
    /// All of it.
    pub fn peak_bytes(&self) -> u64 {
        self.parameters_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.logits_bytes
    }
}

/// Estimates a rank's peak.
pub(super) fn memory(assignment: &Assignment) -> Memory {
    let elements: u64 = assignment.parameters.iter().map(ParameterRow::elements).sum();
    let weights = FP32 * elements;
    Memory {
        parameters_bytes: weights,
        gradients_bytes: live_buffers(&assignment.data_nodes[assignment.data_index as usize]) * weights,
        optimizer_bytes: 2 * weights,
        activations_bytes: FP32 * activations(assignment),
        logits_bytes: FP32 * logits(assignment),
    }
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

fn tokens(assignment: &Assignment) -> u64 {
    u64::from(assignment.spec.train.sequence) * u64::from(assignment.spec.train.micro_batch)
}

/// Numbers that one layer keeps of one micro-batch. For each token, with widths as this tensor rank
/// holds them: the layer's input, both norms' outputs and the sum after attention (4 dim); queries
/// before and after rotation and the attention's output (3 q); keys before and after rotation, and
/// values (3 kv); the attention's log-sum for each head; gate, up, its activation and the product
/// (4 ffn).
fn layer_internals(assignment: &Assignment) -> u64 {
    let (model, tensor) = (&assignment.spec.model, u64::from(assignment.spec.layout.tensor));
    let head_dim = u64::from(model.head_dim());
    let heads = u64::from(model.heads) / tensor;
    let kv = u64::from(model.kv_heads).div_ceil(tensor) * head_dim;
    let ffn = u64::from(model.ffn).div_ceil(tensor);
    tokens(assignment) * (4 * u64::from(model.dim) + 3 * heads * head_dim + 3 * kv + heads + 4 * ffn)
}

/// Numbers kept for backward passes, and in receives.
fn activations(assignment: &Assignment) -> u64 {
    let layers = u64::from(assignment.layers.end - assignment.layers.start);
    let boundary = tokens(assignment) * u64::from(assignment.spec.model.dim);
    let internals = layer_internals(assignment);
    let owned = &assignment.runs[assignment.owned_runs.start as usize..assignment.owned_runs.end as usize];
    let micro_batches: u32 = owned.iter().map(|run| run.end - run.start).sum();
    let in_flight = u64::from(micro_batches.min(assignment.spec.layout.pipeline - assignment.stage));
    let kept = match assignment.spec.train.checkpointing {
        Checkpointing::None => in_flight * layers * internals,
        // Each layer's input, and one layer that is computed again.
        Checkpointing::Full => in_flight * layers * boundary + internals,
    };
    let stages = u64::from(assignment.previous.is_some()) + u64::from(assignment.next.is_some());
    let posted = if stages > 0 { POSTED_RECEIVES as u64 * boundary } else { 0 };
    kept + posted
}

/// The logits of one micro-batch and their gradient: on the last stage a forward is followed by its
/// backward at once.
fn logits(assignment: &Assignment) -> u64 {
    let vocabulary =
        assignment.parameters.iter().filter(|row| row.place == Place::Head && row.shape.len() == 2);
    vocabulary.map(|row| 2 * tokens(assignment) * row.len).sum()
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
