//! What forward passes keep for backward passes, in bytes, by walking a rank's list of actions.

use std::collections::BTreeMap;

use coxswain_types::Assignment;
use coxswain_types::assignment::{Recompute, Stage};
use coxswain_types::job::{Block, Lengths};
use coxswain_types::model::{Attention, Head, ModelSpec, NormPlacement, Positions};
use coxswain_types::params::{EMBEDDING, HEAD, ParameterRow, Place};
use coxswain_types::schedule::{Action, Kind};

use super::check::{peak_in_flight, peak_posted};
use super::memory::FP32;

/// Bytes that the parts of a layer keep of one micro-batch.
#[derive(Clone, Copy, Debug)]
struct Layer {
    /// A place of the residual stream: a layer's input, or the sum after a block. With sequence
    /// parallelism each tensor rank has a part of it.
    stream: u64,
    /// Blocks, each of which begins with a place of the stream: attention, the feed-forward layer, and
    /// between them attention to the encoder's output where there is one.
    blocks: u64,
    /// Inside the attention blocks: the norm's output, gathered; queries, keys and values in their forms,
    /// the output, and each head's log-sum in fp32.
    attention: u64,
    /// Inside the feed-forward layer: the norm's output, gathered; gate and up, or up alone; its
    /// activation; the product of the two.
    ffn: u64,
    /// What W needs: the inputs of the products and their outputs' gradients.
    filed: u64,
}

impl Layer {
    fn of(a: &Assignment, layer: u32) -> Layer {
        let model = &a.spec.model;
        let (tensor, bytes) = (u64::from(a.spec.layout.tensor).max(1), a.spec.train.precision.bytes());
        let (tokens, dim) = (tokens(a, layer), u64::from(model.dim));
        let head = u64::from(model.head_dim);
        let heads = u64::from(model.heads).div_ceil(tensor);
        let (q, kv) = (heads * head, u64::from(model.kv_heads).div_ceil(tensor) * head);
        let ffn = u64::from(model.ffn).div_ceil(tensor);
        let gated = model.activation.gated();
        let own = bytes * self_attention(model, heads, q, kv) + FP32 * heads;
        let mut attention = tokens * own;
        let mut filed = 4 * dim + 2 * q + 2 * kv + if gated { 3 } else { 2 } * ffn;
        if model.crosses(layer) {
            attention += tokens * (bytes * (dim + 2 * q) + FP32 * heads) + source(a) * bytes * (dim + 2 * kv);
            filed += 3 * dim + 2 * q + 2 * kv;
        }
        Layer {
            stream: stream(a, layer),
            blocks: if model.crosses(layer) { 3 } else { 2 },
            attention,
            ffn: bytes * tokens * (dim + if gated { 4 } else { 2 } * ffn),
            filed: bytes * tokens * filed,
        }
    }

    fn whole(&self) -> u64 {
        self.blocks * self.stream + self.attention + self.ffn
    }

    /// What a backward pass computes again, and holds for one layer at a time.
    fn again(&self, recompute: Recompute) -> u64 {
        match recompute {
            Recompute::Nothing => 0,
            Recompute::Block(Block::Attention) => self.attention,
            Recompute::Block(Block::Ffn) => self.ffn,
            Recompute::Layer => self.whole() - self.stream,
        }
    }
}

/// What a stage holds of one micro-batch, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Held {
    /// From the forward to the backward.
    kept: u64,
    /// During the backward, in addition.
    again: u64,
    /// From I to W.
    filed: u64,
}

fn held(a: &Assignment, stage: &Stage) -> Held {
    let (bytes, model) = (a.spec.train.precision.bytes(), &a.spec.model);
    let (tokens, dim) = (tokens(a, model.encoder_layers), u64::from(model.dim));
    let mut held = Held::default();
    for (layer, recompute) in stage.layers.clone().zip(&stage.recompute) {
        let layer = Layer::of(a, layer);
        held.filed += layer.filed;
        held.kept += layer.whole() - layer.again(*recompute);
        held.again = held.again.max(layer.again(*recompute));
    }
    if stage.head {
        // The input of the final norm, which there is none of where norms follow blocks; the head's input.
        let norm =
            if model.norm.placement == NormPlacement::Pre { stream(a, model.encoder_layers) } else { 0 };
        held.kept += norm + bytes * tokens * dim;
        // What W of the head needs: its input and the logits' gradient.
        held.filed += bytes * tokens * (dim + vocabulary(a));
        if matches!(model.head, Head::MaskedLm { .. }) {
            // The dense layer's output, its activation, and the norm of that.
            held.kept += 3 * bytes * tokens * u64::from(model.embedding.dim);
        }
    }
    held
}

/// Bytes of a place of a layer's residual stream, on one tensor rank; a decoder's has the output of its
/// encoder behind it, which travels on.
fn stream(a: &Assignment, layer: u32) -> u64 {
    let (layout, model) = (&a.spec.layout, &a.spec.model);
    let parts = if layout.sequence_parallel { u64::from(layout.tensor).max(1) } else { 1 };
    let tokens = tokens(a, layer) + if model.crosses(layer) { source(a) } else { 0 };
    a.spec.train.precision.bytes() * (tokens * u64::from(model.dim)).div_ceil(parts)
}

/// Numbers that attention to a layer's own tokens keeps of a token: the norm's output, then queries, keys
/// and values in each form that a backward pass needs, and the output. No attention keeps its scores.
fn self_attention(model: &ModelSpec, heads: u64, q: u64, kv: u64) -> u64 {
    let dim = u64::from(model.dim);
    // Before and after rotation.
    let rotated = if matches!(model.positions, Positions::Rope { .. }) { q + kv } else { 0 };
    let plain = dim + 2 * q + 2 * kv + rotated;
    match model.attention {
        Attention::Full | Attention::Window { .. } | Attention::BigBird { .. } => plain,
        Attention::Longformer { projections, .. } => plain + if projections { 2 * kv } else { 0 },
        // Queries and keys through the feature map; a head's shares of forgetting.
        Attention::Linear { decay } => plain + q + kv + if decay { heads } else { 0 },
        Attention::Compressed { block, .. } => plain + (2 * kv).div_ceil(u64::from(block.max(1))),
        // The latent before and after its norm, and the shared key; keys and values have every head.
        Attention::Latent { rank, rope_dim } => {
            dim + 3 * q + 2 * q + 2 * u64::from(rank) + u64::from(rope_dim)
        }
    }
}

/// The most bytes at once of a training step, and the receives that are posted ahead. Backward frees
/// layer by layer, so between an I's beginning and its end no more is held than at one of the two.
pub(super) fn peak_activations(a: &Assignment) -> u64 {
    let stages: BTreeMap<u32, Held> = a.stages.iter().map(|stage| (stage.index, held(a, stage))).collect();
    let (mut live, mut peak) = (0_u64, 0_u64);
    for action in &a.train {
        let Some(held) = stages.get(&action.stage) else { continue };
        match action.kind {
            Kind::Forward => live += held.kept,
            Kind::Backward | Kind::Input => {
                peak = peak.max(live + held.again);
                let filed = if action.kind == Kind::Input { held.filed } else { 0 };
                live = live.saturating_sub(held.kept) + filed;
            }
            Kind::Weight => live = live.saturating_sub(held.filed),
            Kind::RecvForward | Kind::SendForward | Kind::RecvBackward | Kind::SendBackward => continue,
        }
        peak = peak.max(live);
    }
    peak + peak_posted(&a.train) as u64 * stream(a, a.spec.model.encoder_layers)
}

/// The head's logits. The loss turns them to fp32, which stay until the backward; beside them are the
/// logits and their gradient as the head multiplies them, of one micro-batch.
pub(super) fn logits_bytes(a: &Assignment) -> u64 {
    let Some(head) = a.stages.iter().find(|stage| stage.head) else { return 0 };
    // Logits live until I, which a list without W shows.
    let until_backward = a.train.iter().filter(|action| action.stage == head.index).filter_map(|action| {
        let kind = match action.kind {
            Kind::Input => Kind::Backward,
            Kind::Weight => return None,
            kind => kind,
        };
        Some(Action { kind, ..*action })
    });
    let in_flight = peak_in_flight(&until_backward.collect::<Vec<_>>()) as u64;
    let bytes = a.spec.train.precision.bytes();
    let beside = if bytes == FP32 { bytes } else { 2 * bytes };
    tokens(a, a.spec.model.encoder_layers) * vocabulary(a) * (FP32 * in_flight + beside)
}

/// The logits of a token on this tensor rank; a pooled head has some for each sample only, which weigh
/// nothing.
fn vocabulary(a: &Assignment) -> u64 {
    let logits =
        |row: &&ParameterRow| row.place == Place::Head && [HEAD, EMBEDDING].contains(&row.name.as_str());
    a.parameters.iter().filter(logits).map(|row| row.len).sum()
}

/// Tokens of a micro-batch in the stack of a layer.
fn tokens(a: &Assignment, layer: u32) -> u64 {
    let lengths = Lengths::of(&a.spec.model, &a.spec.train);
    let own = if layer < a.spec.model.encoder_layers { lengths.source } else { lengths.target };
    u64::from(own) * u64::from(a.spec.train.micro_batch)
}

/// Tokens of a micro-batch that an encoder reads for its decoder.
fn source(a: &Assignment) -> u64 {
    u64::from(Lengths::of(&a.spec.model, &a.spec.train).source) * u64::from(a.spec.train.micro_batch)
}
