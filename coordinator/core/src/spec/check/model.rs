//! The transformer: its numbers one by one. `forms` beside this reads what is chosen among several forms, `rules` holds
//! what keys must be to each other.

mod rules;

use coxswain_types::model::{Activation, Architecture, Biases, EmbeddingSpec, Head, ModelSpec};

use super::super::forms::{attention, positions};
use super::super::limits;
use super::super::raw::{ActivationName, HeadName, RawModel};
use super::Faults;

pub(super) use rules::{check_classes, check_training};

pub(super) fn model(raw: &RawModel, faults: &mut Faults) -> ModelSpec {
    let architecture = raw.architecture.unwrap_or(Architecture::Decoder);
    let activation: Activation = raw.activation.unwrap_or(ActivationName::Swiglu).into();
    let head_dim = raw.head_dim.unwrap_or(raw.dim / raw.heads.max(1));
    let model = ModelSpec {
        architecture,
        layers: raw.layers,
        encoder_layers: encoder_layers(raw, architecture),
        dim: raw.dim,
        heads: raw.heads,
        kv_heads: raw.kv_heads.unwrap_or(raw.heads),
        head_dim,
        ffn: raw.ffn.unwrap_or_else(|| default_ffn(raw.dim, activation)),
        vocab: raw.vocab,
        positions: positions::read(raw, faults),
        norm: raw.norm_spec(),
        activation,
        biases: raw.biases.map_or(Biases::default(), |named| named.0),
        attention: attention::read(raw.attention.as_ref(), faults),
        attention_scale: raw.attention_scale.unwrap_or(f64::from(head_dim.max(1)).powf(-0.5)),
        embedding: EmbeddingSpec {
            dim: raw.embedding_dim.unwrap_or(raw.dim),
            types: raw.token_types.unwrap_or(0),
            norm: raw.embedding_norm.unwrap_or(false),
            scaled: raw.embedding_scaled.unwrap_or(false),
        },
        head: head(raw, architecture, activation, faults),
        logit_scale: raw.logit_scale.unwrap_or(1.0),
        tied_embeddings: raw.tied_embeddings.unwrap_or(false),
        layer_groups: raw.layer_groups.unwrap_or(raw.layers),
    };
    check_stacks(raw, &model, faults);
    check_widths(raw, &model, faults);
    check_numbers(raw, &model, faults);
    rules::check(&model, faults);
    model
}

fn encoder_layers(raw: &RawModel, architecture: Architecture) -> u32 {
    match architecture {
        Architecture::EncoderDecoder => raw.encoder_layers.unwrap_or(raw.layers),
        Architecture::Decoder | Architecture::Encoder => 0,
    }
}

/// With a gate there are three matrices instead of two: two thirds of the width make as many weights.
fn default_ffn(dim: u32, activation: Activation) -> u32 {
    let dim = u64::from(dim);
    let ffn = if activation.gated() { (8 * dim).div_ceil(3 * 64) * 64 } else { 4 * dim };
    u32::try_from(ffn).unwrap_or(u32::MAX)
}

fn head(raw: &RawModel, architecture: Architecture, activation: Activation, faults: &mut Faults) -> Head {
    let default = if architecture == Architecture::Encoder { HeadName::MaskedLm } else { HeadName::Lm };
    let head = raw.head.unwrap_or(default);
    if head != HeadName::Pooled {
        faults.only_with("model.classes", raw.classes.is_some(), "model.head pooled only");
    }
    if head != HeadName::MaskedLm {
        let with = "model.head masked-lm only";
        faults.only_with("model.head_activation", raw.head_activation.is_some(), with);
    }
    match head {
        HeadName::Lm => Head::Lm,
        HeadName::MaskedLm => {
            let activation = raw.head_activation.map_or(activation.gate(), Activation::from);
            if activation.gated() {
                let must = "must be relu, gelu, gelu-tanh or silu: the head's dense layer has no gate";
                faults.never("model.head_activation", must.to_owned());
            }
            Head::MaskedLm { activation }
        }
        HeadName::Pooled => {
            let classes = raw.classes.unwrap_or(0);
            faults.count("model.classes", classes, &limits::CLASSES);
            Head::Pooled { classes }
        }
    }
}

fn check_stacks(raw: &RawModel, model: &ModelSpec, faults: &mut Faults) {
    let (layers, groups) = (model.layers, model.layer_groups);
    let two = model.architecture == Architecture::EncoderDecoder;
    if faults.count("model.layers", layers, &limits::LAYERS) && !(1..=layers).contains(&groups) {
        let why = "a group shares the weights of at least one layer";
        faults.add(
            "model.layer_groups",
            format!("found {groups}; must be 1 to model.layers ({layers}): {why}"),
        );
    }
    match raw.encoder_layers {
        Some(found) if two => _ = faults.count("model.encoder_layers", found, &limits::LAYERS),
        given => {
            let with = "model.architecture encoder-decoder only";
            faults.only_with("model.encoder_layers", given.is_some(), with);
        }
    }
}

fn check_widths(raw: &RawModel, model: &ModelSpec, faults: &mut Faults) {
    let dim = faults.count("model.dim", model.dim, &limits::DIM);
    let heads = faults.count("model.heads", model.heads, &limits::DIM);
    if let Some(width) = raw.head_dim {
        if faults.count("model.head_dim", width, &limits::DIM) && model.rotates_heads() && width % 2 == 1 {
            let near = width + 1;
            let must = format!("must be even, because RoPE rotates pairs, such as {near}");
            faults.add("model.head_dim", format!("found {width}; {must}"));
        }
    } else if dim && heads {
        check_heads(model, faults);
    }
    if raw.kv_heads.is_some() && faults.count("model.kv_heads", model.kv_heads, &limits::DIM) && heads {
        check_kv_heads(model, faults);
    }
    if raw.ffn.is_some() {
        faults.count("model.ffn", model.ffn, &limits::FFN);
    }
    if raw.embedding_dim.is_some() {
        faults.count("model.embedding_dim", model.embedding.dim, &limits::DIM);
    }
    faults.count("model.vocab", model.vocab, &limits::VOCAB);
    faults.count("model.token_types", model.embedding.types, &limits::TOKEN_TYPES);
}

fn check_numbers(raw: &RawModel, model: &ModelSpec, faults: &mut Faults) {
    let eps = model.norm.eps;
    faults.number("model.norm_eps", eps, |x| x > 0.0 && x < 1.0, "a number above 0 and below 1");
    for (path, found) in
        [("model.attention_scale", raw.attention_scale), ("model.logit_scale", raw.logit_scale)]
    {
        faults.number(path, found.unwrap_or(1.0), |x| x > 0.0, "a finite number above 0");
    }
}

fn check_heads(model: &ModelSpec, faults: &mut Faults) {
    let (dim, heads) = (model.dim, model.heads);
    let pairs = model.rotates_heads();
    let fits = |heads: u32| dim.is_multiple_of(heads) && (!pairs || (dim / heads).is_multiple_of(2));
    if fits(heads) {
        return;
    }
    let such_as = |heads: Option<u32>| heads.map_or(String::new(), |heads| format!(", such as {heads}"));
    let nearest = (1..=dim).filter(|&n| fits(n)).min_by_key(|n| (n.abs_diff(heads), *n));
    let nearest = such_as(nearest);
    if dim.is_multiple_of(heads) {
        let width = dim / heads;
        let must = "must leave heads of even width, because RoPE rotates pairs";
        let found = format!("found {heads}, which makes heads of width {width}");
        faults.add("model.heads", format!("{found}; {must}{nearest}"));
    } else {
        let must = format!("must divide model.dim ({dim}){nearest}");
        faults.add("model.heads", format!("found {heads}; {must}, or model.head_dim must be set"));
    }
}

fn check_kv_heads(model: &ModelSpec, faults: &mut Faults) {
    let (heads, found) = (model.heads, model.kv_heads);
    if heads.is_multiple_of(found) {
        return;
    }
    let nearest = (1..=heads).filter(|n| heads.is_multiple_of(*n)).min_by_key(|n| (n.abs_diff(found), *n));
    let such_as = nearest.map_or(String::new(), |n| format!(", such as {n}"));
    let why = "each is shared by equally many query heads";
    faults.add("model.kv_heads", format!("found {found}; must divide model.heads ({heads}): {why}{such_as}"));
}
