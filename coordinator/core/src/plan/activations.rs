//! What forward passes keep for backward passes, in bytes, by walking a rank's list of actions.

use std::collections::BTreeMap;

use coxswain_types::Assignment;
use coxswain_types::assignment::{Recompute, Stage};
use coxswain_types::job::Block;
use coxswain_types::params::Place;
use coxswain_types::schedule::{Action, Kind};

use super::check::{peak_in_flight, peak_posted};
use super::memory::FP32;

/// Bytes that the parts of a layer keep of one micro-batch.
#[derive(Clone, Copy, Debug)]
struct Layer {
    /// A place of the residual stream: a layer's input, or the sum after attention. With sequence
    /// parallelism each tensor rank has a part of it.
    stream: u64,
    /// Inside attention: the norm's output, gathered; queries before and after rotation and the
    /// attention's output; keys before and after rotation, and values; each head's log-sum in fp32.
    attention: u64,
    /// Inside the feed-forward layer: the norm's output, gathered; gate, up, its activation, the product.
    ffn: u64,
    /// What W needs: the inputs of the seven products and their outputs' gradients.
    filed: u64,
    /// What W of the head needs: its input and the logits' gradient.
    head_filed: u64,
}

impl Layer {
    fn of(a: &Assignment) -> Layer {
        let (model, layout) = (&a.spec.model, &a.spec.layout);
        let (tensor, bytes) = (u64::from(layout.tensor).max(1), a.spec.train.precision.bytes());
        let tokens = tokens(a);
        let dim = u64::from(model.dim);
        let heads = u64::from(model.heads).div_ceil(tensor);
        let q = heads * u64::from(model.head_dim());
        let kv = u64::from(model.kv_heads).div_ceil(tensor) * u64::from(model.head_dim());
        let ffn = u64::from(model.ffn).div_ceil(tensor);
        let parts = if layout.sequence_parallel { tensor } else { 1 };
        Layer {
            stream: bytes * (tokens * dim).div_ceil(parts),
            attention: tokens * (bytes * (dim + 3 * q + 3 * kv) + FP32 * heads),
            ffn: bytes * tokens * (dim + 4 * ffn),
            filed: bytes * tokens * (4 * dim + 2 * q + 2 * kv + 3 * ffn),
            head_filed: bytes * tokens * (dim + vocabulary(a)),
        }
    }

    fn whole(&self) -> u64 {
        2 * self.stream + self.attention + self.ffn
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
    let layer = Layer::of(a);
    let mut held =
        Held { filed: layer.filed * u64::from(stage.layers.end - stage.layers.start), ..Held::default() };
    for recompute in &stage.recompute {
        held.kept += layer.whole() - layer.again(*recompute);
        held.again = held.again.max(layer.again(*recompute));
    }
    if stage.head {
        // The final norm's input and its output.
        held.kept += layer.stream + a.spec.train.precision.bytes() * tokens(a) * u64::from(a.spec.model.dim);
        held.filed += layer.head_filed;
    }
    held
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
    peak + peak_posted(&a.train) as u64 * Layer::of(a).stream
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
    tokens(a) * vocabulary(a) * (FP32 * in_flight + beside)
}

/// The logits of a token on this tensor rank.
fn vocabulary(a: &Assignment) -> u64 {
    let matrices = a.parameters.iter().filter(|row| row.place == Place::Head && row.shape.len() == 2);
    matrices.map(|row| row.len).sum()
}

fn tokens(a: &Assignment) -> u64 {
    u64::from(a.spec.train.sequence) * u64::from(a.spec.train.micro_batch)
}
