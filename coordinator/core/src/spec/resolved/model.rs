//! The model written out with every key that it takes.

use coxswain_types::model::{Architecture, Attention, Head, ModelSpec, Positions, RopeScaling};

use super::super::raw::{
    AttentionName, BiasNames, HeadName, PositionsName, RawAttention, RawModel, RawRopeScaling,
    RopeScalingName,
};

pub(super) fn model(model: &ModelSpec) -> RawModel {
    let (head, classes, head_activation) = match model.head {
        Head::Lm => (HeadName::Lm, None, None),
        Head::MaskedLm { activation } => (HeadName::MaskedLm, None, Some(activation.into())),
        Head::Pooled { classes } => (HeadName::Pooled, Some(classes), None),
    };
    let two = model.architecture == Architecture::EncoderDecoder;
    let raw = RawModel {
        preset: None,
        architecture: Some(model.architecture),
        layers: model.layers,
        encoder_layers: two.then_some(model.encoder_layers),
        dim: model.dim,
        heads: model.heads,
        kv_heads: Some(model.kv_heads),
        head_dim: Some(model.head_dim),
        ffn: Some(model.ffn),
        vocab: model.vocab,
        positions: None,
        rope_theta: None,
        rope_scaling: None,
        max_positions: None,
        position_offset: None,
        relative_buckets: None,
        relative_max_distance: None,
        norm: Some(model.norm.kind),
        norm_placement: Some(model.norm.placement),
        norm_eps: Some(model.norm.eps),
        activation: Some(model.activation.into()),
        biases: Some(BiasNames(model.biases)),
        attention: Some(attention(model.attention)),
        attention_scale: Some(model.attention_scale),
        embedding_dim: Some(model.embedding.dim),
        token_types: Some(model.embedding.types),
        embedding_norm: Some(model.embedding.norm),
        embedding_scaled: Some(model.embedding.scaled),
        head: Some(head),
        head_activation,
        classes,
        logit_scale: Some(model.logit_scale),
        tied_embeddings: Some(model.tied_embeddings),
        layer_groups: Some(model.layer_groups),
    };
    with_positions(raw, model.positions)
}

fn with_positions(mut raw: RawModel, positions: Positions) -> RawModel {
    raw.positions = Some(match positions {
        Positions::None => PositionsName::None,
        Positions::Sinusoidal => PositionsName::Sinusoidal,
        Positions::Alibi => PositionsName::Alibi,
        Positions::Learned { max, offset } => {
            (raw.max_positions, raw.position_offset) = (Some(max), Some(offset));
            PositionsName::Learned
        }
        Positions::Rope { theta, scaling } => {
            (raw.rope_theta, raw.rope_scaling) = (Some(theta), rope_scaling(scaling));
            PositionsName::Rope
        }
        Positions::RelativeBias { buckets, max_distance } => {
            (raw.relative_buckets, raw.relative_max_distance) = (Some(buckets), Some(max_distance));
            PositionsName::Relative
        }
    });
    raw
}

fn rope_scaling(scaling: RopeScaling) -> Option<RawRopeScaling> {
    let raw = |kind, factor| RawRopeScaling {
        kind,
        factor,
        original: None,
        low: None,
        high: None,
        beta_fast: None,
        beta_slow: None,
    };
    match scaling {
        RopeScaling::None => None,
        RopeScaling::Linear { factor } => Some(raw(RopeScalingName::Linear, factor)),
        RopeScaling::Llama3 { factor, low, high, original } => Some(RawRopeScaling {
            original: Some(original),
            low: Some(low),
            high: Some(high),
            ..raw(RopeScalingName::Llama3, factor)
        }),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original } => Some(RawRopeScaling {
            original: Some(original),
            beta_fast: Some(beta_fast),
            beta_slow: Some(beta_slow),
            ..raw(RopeScalingName::Yarn, factor)
        }),
    }
}

fn attention(attention: Attention) -> RawAttention {
    let of = RawAttention::of;
    match attention {
        Attention::Full => of(AttentionName::Full),
        Attention::Window { window } => RawAttention { window: Some(window), ..of(AttentionName::Window) },
        Attention::Longformer { window, global, projections } => RawAttention {
            window: Some(window),
            global: Some(global),
            projections: Some(projections),
            ..of(AttentionName::Longformer)
        },
        Attention::BigBird { block, window, global, last, random } => RawAttention {
            block: Some(block),
            window: Some(window),
            global: Some(global),
            last: Some(last),
            random: Some(random),
            ..of(AttentionName::BigBird)
        },
        Attention::Linear { decay } => RawAttention { decay: Some(decay), ..of(AttentionName::Linear) },
        Attention::Compressed { window, block } => {
            RawAttention { window: Some(window), block: Some(block), ..of(AttentionName::Compressed) }
        }
        Attention::Latent { rank, rope_dim } => {
            RawAttention { rank: Some(rank), rope_dim: Some(rope_dim), ..of(AttentionName::Latent) }
        }
    }
}
