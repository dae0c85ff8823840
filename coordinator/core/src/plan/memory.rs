//! What a rank holds at its peak: tensors. The process itself is not among them; [`RUNTIME`] says what it adds.
//!
//! Weights, sums of gradients and moments are fp32, and lie in the buckets that the engine allocates. What a step
//! holds beside them is counted by walking the rank's own list of actions, so it follows any schedule; `activations`
//! says how much the parts of a stage keep and take, `reduction` what is held once they are gone.

use std::ops::RangeInclusive;

use coxswain_types::Assignment;
use coxswain_types::buckets::BucketLayout;
use coxswain_types::job::Precision;
use coxswain_types::tree::TreeNode;
use serde::Serialize;

use super::activations;
use super::reduction::{Arriving, FP32, after};

/// What a worker's process holds beside tensors, in resident memory: the program, libtorch, the scratch of its kernels,
/// and freed memory that the C library keeps. Not counted but measured, with one thread a worker on x86-64 Linux (CPU
/// build of libtorch); `tests/tests/estimates.rs` holds workers to it.
pub const RUNTIME: RangeInclusive<u64> = 130 << 20..=390 << 20;

/// Bytes that a rank holds at its peak.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The weights, and under a low precision their copy in it.
    pub weights_bytes: u64,
    /// Gradient sums of tree nodes that live at once.
    pub gradients_bytes: u64,
    /// The optimizer's moments, or this rank's share of them.
    pub optimizer_bytes: u64,
    /// The most that a step holds beside these: what forward passes keep for backward passes, over all
    /// micro-batches in flight, with the logits; or what sums and updates take when activations are gone.
    pub activations_bytes: u64,
    /// What is kept for a neighbour: its weights, its moments, and room for its gradients.
    pub copies_bytes: u64,
}

impl Memory {
    /// The tensors and the process around them: resident memory, from the least to the most.
    pub fn resident_bytes(&self) -> RangeInclusive<u64> {
        self.tensor_bytes() + RUNTIME.start()..=self.tensor_bytes() + RUNTIME.end()
    }

    /// All tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.weights_bytes
            + self.gradients_bytes
            + self.optimizer_bytes
            + self.activations_bytes
            + self.copies_bytes
    }
}

/// Counts a rank's peak.
pub(super) fn memory(a: &Assignment) -> Memory {
    let kind = a.spec.train.optimizer.kind;
    let held = BucketLayout::of(&a.parameters, kind);
    let kept = a
        .peer_replica
        .as_ref()
        .map_or(Vec::new(), |peer_replica| BucketLayout::of(&peer_replica.parameters, kind));
    let weights =
        |layouts: &[BucketLayout]| layouts.iter().map(BucketLayout::weight_elements).sum::<i64>() as u64;
    let low = match a.spec.train.precision {
        Precision::Fp32 => 0,
        low => low.bytes(),
    };
    // Each use of a weight has a sum of its own.
    let sums = held.iter().map(BucketLayout::elements).sum::<i64>() as u64;
    let nodes = a.data_nodes.get(a.data_index as usize).map(Vec::as_slice);
    let part = if a.optimizer_group.len() > 1 { a.data_index } else { 0 };
    let copied = a.peer_replica.as_ref().map_or(0, |peer_replica| moments(a, &kept, peer_replica.slice));
    let step = activations::peak(a, &Arriving::new(a, &held));
    Memory {
        weights_bytes: (FP32 + low) * weights(&held),
        gradients_bytes: live_buffers(nodes.unwrap_or_default()) * FP32 * sums,
        optimizer_bytes: moments(a, &held, part),
        activations_bytes: step.max(after(a, &held)),
        copies_bytes: 2 * FP32 * weights(&kept) + copied,
    }
}

/// AdamW keeps two moments of a weight, Muon one of a layer's matrix. Where data ranks share the state, each has
/// its slice of each bucket.
fn moments(a: &Assignment, layouts: &[BucketLayout], part: u32) -> u64 {
    let parts = a.optimizer_group.len().max(1);
    let of = |layout: &BucketLayout| {
        let own = layout.part((part as usize, parts));
        (own.end - own.start) as u64 * FP32 * if layout.class.muon { 1 } else { 2 }
    };
    layouts.iter().map(of).sum()
}

/// Gradient buffers that live at once while a data rank reduces its nodes from left to right. Where
/// runs and data ranks are powers of two there is one node, and at most log2 of the runs, plus one,
/// live; else up to twice as many, for the nodes along both edges of an uneven share.
fn live_buffers(nodes: &[TreeNode]) -> u64 {
    let done_before = 0_u64..;
    done_before.zip(nodes).map(|(done, node)| done + peak(*node)).max().unwrap_or(0)
}

/// A leaf takes one; an inner node holds its left sum while it makes the right one, and adds in
/// place. Over a whole tree that is log2 of the runs, plus one.
fn peak(node: TreeNode) -> u64 {
    node.children().map_or(1, |(left, right)| peak(left).max(1 + peak(right)))
}

#[cfg(test)]
mod tests {
    use coxswain_types::tree::{cover, split};

    use super::*;

    #[test]
    fn live_gradient_buffers_follow_the_depth_of_the_tree() {
        for (runs, expected) in [(1, 1), (2, 2), (3, 2), (4, 3), (8, 4), (9, 4), (16, 5)] {
            assert_eq!(live_buffers(&[TreeNode::root(runs)]), expected, "{runs} runs");
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
