//! The model written out with every key that it takes.

use coxswain_types::model::{Architecture, Head, ModelSpec};

use super::super::forms::{attention, positions};
use super::super::raw::{BiasNames, HeadName, RawModel};

pub(super) fn model(model: &ModelSpec) -> RawModel {
    let (head, classes, head_activation) = match model.head {
        Head::Lm => (HeadName::Lm, None, None),
        Head::MaskedLm { activation } => (HeadName::MaskedLm, None, Some(activation.into())),
        Head::Pooled { classes } => (HeadName::Pooled, Some(classes), None),
    };
    let two = model.architecture == Architecture::EncoderDecoder;
    let raw = RawModel {
        architecture: Some(model.architecture),
        layers: model.layers,
        encoder_layers: two.then_some(model.encoder_layers),
        dim: model.dim,
        heads: model.heads,
        kv_heads: Some(model.kv_heads),
        head_dim: Some(model.head_dim),
        ffn: Some(model.ffn),
        vocab: model.vocab,
        activation: Some(model.activation.into()),
        biases: Some(BiasNames(model.biases)),
        attention: Some(attention::written(model.attention)),
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
        // Below: positions and norms. A preset is not named again.
        ..RawModel::default()
    };
    positions::written(raw.with_norm(model.norm), model.positions)
}
