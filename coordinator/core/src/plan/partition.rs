//! Layers to stages: consecutive ones, so that the most expensive stage is as cheap as can be. The
//! pipeline moves at that stage's pace, and the head weighs as much as several layers of a small
//! model.

use std::collections::BTreeSet;
use std::ops::Range;

use coxswain_types::job::{Lengths, ModelSpec};
use coxswain_types::model::Head;

use super::divide::divide;

/// Forward FLOPs of a sample in every layer, with what stands before the first and after the last; a
/// backward costs twice as much of all of them. The embedding is a look-up and costs nothing here.
fn costs(model: &ModelSpec, lengths: Lengths) -> Vec<u64> {
    let tokens =
        |layer: u32| u64::from(if layer < model.encoder_layers { lengths.source } else { lengths.target });
    let cost = |layer| tokens(layer) * layer_cost(model, layer, tokens(layer) as u32, lengths.source);
    let mut costs: Vec<u64> = (0..model.all_layers()).map(cost).collect();
    // Each stack begins with an embedding, the decoder's on the stage of its first layer.
    let stacks = BTreeSet::from([0, model.encoder_layers as usize]);
    for first in stacks {
        if let Some(cost) = costs.get_mut(first) {
            *cost += tokens(first as u32) * embedding_map(model);
        }
    }
    if let Some(cost) = costs.last_mut() {
        *cost += u64::from(lengths.target) * head_cost(model, lengths.target);
    }
    costs
}

/// FLOPs of a token in a block of a layer, forward.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct BlockFlops {
    /// Of products with weights.
    pub(super) products: u64,
    /// Of the scores and their product with the values.
    pub(super) scores: u64,
}

/// Two FLOPs for each weight, and two for each number of the scores and of their product with the values.
fn layer_cost(model: &ModelSpec, layer: u32, sequence: u32, source: u32) -> u64 {
    let blocks = block_flops(model, layer, sequence, source);
    blocks.iter().map(|block| block.products + block.scores).sum()
}

/// FLOPs of a token in the attention of a layer, with cross-attention, and in its feed-forward block.
pub(super) fn block_flops(model: &ModelSpec, layer: u32, sequence: u32, source: u32) -> [BlockFlops; 2] {
    let [dim, ffn] = [model.dim, model.ffn].map(u64::from);
    let head = u64::from(model.head_dim);
    let (q, kv) = (u64::from(model.heads) * head, u64::from(model.kv_heads) * head);
    let own = model.attention.flops(model, model.causal(layer), sequence);
    let scores = model.attention.score_flops(model, model.causal(layer), sequence);
    let mut attention = BlockFlops { products: own - scores, scores };
    if model.crosses(layer) {
        // All of the encoder's output is seen, and each of its tokens makes a key and a value.
        let made = 4 * dim * kv * u64::from(source) / u64::from(sequence.max(1));
        attention.products += 4 * dim * q + made;
        attention.scores += 4 * u64::from(source) * q;
    }
    [attention, BlockFlops { products: model.activation.flops(dim, ffn), scores: 0 }]
}

/// FLOPs of a token between its embedding and the stack.
pub(super) fn embedding_map(model: &ModelSpec) -> u64 {
    let (width, dim) = (u64::from(model.embedding.dim), u64::from(model.dim));
    if width == dim { 0 } else { 2 * width * dim }
}

/// FLOPs of a token in the head.
pub(super) fn head_cost(model: &ModelSpec, sequence: u32) -> u64 {
    let [dim, vocab, width] = [model.dim, model.vocab, model.embedding.dim].map(u64::from);
    match model.head {
        Head::Lm => 2 * dim * vocab,
        Head::MaskedLm { .. } => 2 * (dim * width + width * vocab),
        // One token of a sequence is pooled.
        Head::Pooled { classes } => 2 * dim * (dim + u64::from(classes)) / u64::from(sequence.max(1)),
    }
}

/// The layers of each stage, at least one each. A stage's worker takes `slow_percent` of the time that others
/// would; there are at most as many stages as layers.
pub(super) fn partition(model: &ModelSpec, lengths: Lengths, slow_percent: &[u32]) -> Vec<Range<u32>> {
    divide(&costs(model, lengths), slow_percent)
}

/// The cost of each stage of a partition, in forward FLOPs of a sample.
pub(super) fn loads(model: &ModelSpec, lengths: Lengths, layers: &[Range<u32>]) -> Vec<u64> {
    let costs = costs(model, lengths);
    let cost = |layer: u32| costs.get(layer as usize).copied().unwrap_or(0);
    layers.iter().map(|layers| layers.clone().map(cost).sum()).collect()
}

#[cfg(test)]
mod tests;
