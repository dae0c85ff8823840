//! `config.json` and the model that it describes. A key that would change numbers and that no model of
//! ours can follow is an error; keys that change none are passed over, and kept for export.

use coxswain_types::model::{
    Activation, Architecture, Attention, Biases, EmbeddingSpec, Head, ModelSpec, NormKind, NormPlacement,
    NormSpec, Positions, RopeScaling,
};
use serde_json::{Map, Value};

use super::HfError;
use super::family::{Family, FamilyKind, LlamaKind, SlidingWindow};

mod class;
mod keys;
mod write;

pub(super) use class::class_names;
use class::{Class, class, classes};
use keys::Keys;
pub(super) use keys::class_default;
pub(super) use write::write;

/// The family and the model of a configuration.
pub(super) fn read(config: &Map<String, Value>) -> Result<(Family, ModelSpec), HfError> {
    let name = config.get("model_type").and_then(Value::as_str).unwrap_or("");
    let Some(family) = Family::all().find(|family| family.name() == name) else {
        let known: Vec<_> = Family::all().map(Family::name).collect();
        return Err(Keys::plain(config).wrong("model_type", &format!("one of {}", known.join(", "))));
    };
    let keys = Keys::of(family, config);
    keys.unused("quantization_config", "import the weights before their quantization")?;
    keys.unused("adapters", "merge them into the weights and import the result")?;
    keys.unused("per_layer_config", "all layers are alike here")?;
    keys.unused("pruned_heads", "all layers have all heads here")?;
    let class = class(family, &keys)?;
    let model = match family.kind() {
        FamilyKind::Llama(kind) => llama(kind, &keys),
        FamilyKind::Gpt2 => gpt2(&keys),
        FamilyKind::T5 => t5(&keys),
        FamilyKind::Bart => bart(&keys),
        FamilyKind::Encoder => encoder(family, &keys, class),
    }?;
    if class == Class::Bare && model.head == Head::Lm && !model.tied_embeddings {
        let title = family.title();
        let must =
            format!("a class with an output head: {title}Model has none, and `tie_word_embeddings` is false");
        return Err(keys.wrong("architectures", &must));
    }
    // Checked before anything is allocated for each layer, row or column.
    let bounds = model.check_bounds();
    bounds.map_err(|e| HfError::Config(format!("the model that it describes is not supported: {e}")))?;
    Ok((family, model))
}

/// What all families have in common.
fn base(layers: u32, dim: u32, heads: u32, ffn: u32, vocab: u32) -> ModelSpec {
    ModelSpec::llama(layers, dim, heads, heads, ffn, vocab)
}

fn llama(kind: LlamaKind, keys: &Keys<'_>) -> Result<ModelSpec, HfError> {
    let heads = keys.count("num_attention_heads")?;
    let dim = keys.count("hidden_size")?;
    let layers = keys.count("num_hidden_layers")?;
    let head_dim = keys.count_or("head_dim", dim / heads.max(1))?;
    if keys.activation("hidden_act")? != Activation::Silu {
        return Err(keys.wrong("hidden_act", "\"silu\" for this program"));
    }
    // The numbers of a class that computes a map in parts differ in their last bits.
    keys.only("pretraining_tp", 1)?;
    if kind.window == SlidingWindow::Refused {
        keys.only("use_sliding_window", false)?;
    }
    let attention_bias = kind.attention_bias && keys.flag("attention_bias")?;
    let biases = Biases {
        qkv: kind.biases.qkv || attention_bias,
        out: kind.biases.out || attention_bias,
        ffn: kind.biases.ffn || (kind.mlp_bias && keys.flag("mlp_bias")?),
    };
    let window = kind.window == SlidingWindow::Counts && keys.value("sliding_window").is_some();
    let attention =
        if window { Attention::Window { window: keys.count("sliding_window")? } } else { Attention::Full };
    let layer = if window { "sliding_attention" } else { "full_attention" };
    if let Some(types) = keys.value("layer_types") {
        let types = types.as_array();
        if !types.is_some_and(|types| types.len() == layers as usize && types.iter().all(|of| of == layer)) {
            return Err(keys.wrong("layer_types", &format!("\"{layer}\" for each of {layers} layers")));
        }
    }
    let plain = base(layers, dim, heads, keys.count("intermediate_size")?, keys.count("vocab_size")?);
    Ok(ModelSpec {
        kv_heads: keys.count_or("num_key_value_heads", heads)?,
        head_dim,
        attention_scale: f64::from(head_dim).powf(-0.5),
        positions: rope(keys)?,
        norm: NormSpec { eps: keys.number("rms_norm_eps")?, qk_norm: kind.qk_norm, ..plain.norm },
        biases,
        attention,
        tied_embeddings: keys.flag("tie_word_embeddings")?,
        ..plain
    })
}

/// Rotary positions, in the form of `rope_parameters` or the older `rope_theta` and `rope_scaling`, which goes
/// before it.
fn rope(keys: &Keys<'_>) -> Result<Positions, HfError> {
    let none = Map::new();
    let mut inner = Keys::plain(&none);
    for key in ["rope_parameters", "rope_scaling"] {
        if let Some(value) = keys.value(key) {
            let map = value.as_object().ok_or_else(|| keys.wrong(key, "a map"))?;
            if !map.is_empty() {
                inner = Keys::plain(map);
            }
        }
    }
    // The library's base where no key says one.
    let theta = inner.number_or("rope_theta", keys.number_or("rope_theta", 1e4)?)?;
    let kind = if inner.value("rope_type").is_some() { "rope_type" } else { "type" };
    let name = inner.value(kind).map_or(Ok("default"), |_| inner.word(kind))?;
    let original = || {
        let key = "original_max_position_embeddings";
        let original = match (inner.value(key), keys.value(key)) {
            (Some(_), _) => inner.count(key),
            (None, Some(_)) => keys.count(key),
            (None, None) => keys.count("max_position_embeddings"),
        }?;
        // Version 5 of the library takes the outer one, and version 4 the inner one.
        if keys.value(key).is_some() {
            keys.only(key, original)?;
        }
        Ok::<u32, HfError>(original)
    };
    for key in ["attention_factor", "mscale", "mscale_all_dim"] {
        inner.unused(key, "its scores are scaled by the factor alone")?;
    }
    inner.only("truncate", true)?;
    inner.only("partial_rotary_factor", 1)?;
    keys.only("partial_rotary_factor", 1)?;
    let scaling = match name {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: inner.number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: inner.number("factor")?,
            low: inner.number("low_freq_factor")?,
            high: inner.number("high_freq_factor")?,
            original: original()?,
        },
        "yarn" => RopeScaling::Yarn {
            factor: inner.number("factor")?,
            beta_fast: inner.number_or("beta_fast", 32.0)?,
            beta_slow: inner.number_or("beta_slow", 1.0)?,
            original: original()?,
        },
        _ => return Err(inner.wrong(kind, "default, linear, llama3 or yarn")),
    };
    Ok(Positions::Rope { theta, scaling })
}

fn layer_norm(placement: NormPlacement, eps: f64) -> NormSpec {
    NormSpec::new(NormKind::Layer, placement, eps)
}

const ALL_BIASES: Biases = Biases { qkv: true, out: true, ffn: true };

fn gpt2(keys: &Keys<'_>) -> Result<ModelSpec, HfError> {
    let dim = keys.count("n_embd")?;
    keys.only("scale_attn_weights", true)?;
    keys.only("scale_attn_by_inverse_layer_idx", false)?;
    keys.only("add_cross_attention", false)?;
    let heads = keys.count("n_head")?;
    let ffn = keys.count_or("n_inner", dim.saturating_mul(4))?;
    let plain = base(keys.count("n_layer")?, dim, heads, ffn, keys.count("vocab_size")?);
    Ok(ModelSpec {
        positions: Positions::Learned { max: keys.count("n_positions")?, offset: 0 },
        norm: layer_norm(NormPlacement::Pre, keys.number("layer_norm_epsilon")?),
        activation: keys.activation("activation_function")?,
        biases: ALL_BIASES,
        tied_embeddings: keys.flag("tie_word_embeddings")?,
        ..plain
    })
}

fn encoder(family: Family, keys: &Keys<'_>, class: Class) -> Result<ModelSpec, HfError> {
    for key in ["is_decoder", "add_cross_attention"] {
        keys.only(key, false)?;
    }
    keys.only("position_embedding_type", "absolute")?;
    let albert = family == Family::Albert;
    let kind_of_roberta = matches!(family, Family::Roberta | Family::Longformer);
    // RoBERTa's positions begin behind the padding token's.
    let offset = if kind_of_roberta { keys.count("pad_token_id")?.saturating_add(1) } else { 0 };
    let rows = keys.count("max_position_embeddings")?;
    if rows <= offset {
        return Err(
            keys.wrong("max_position_embeddings", &format!("above {offset}, the rows before the first"))
        );
    }
    let (layers, dim) = (keys.count("num_hidden_layers")?, keys.count("hidden_size")?);
    let activation = keys.activation("hidden_act")?;
    let head = match class {
        // The heads of RoBERTa's kind are GELU whatever the layers are.
        Class::Tokens => {
            Head::MaskedLm { activation: if kind_of_roberta { Activation::Gelu } else { activation } }
        }
        Class::Bare => Head::Pooled { classes: 0 },
        Class::Classes => Head::Pooled { classes: classes(keys)? },
    };
    if albert {
        keys.only("inner_group_num", 1)?;
    }
    let types = keys.count("type_vocab_size")?;
    if types == 0 {
        return Err(keys.wrong("type_vocab_size", "1 or more"));
    }
    let plain = base(
        layers,
        dim,
        keys.count("num_attention_heads")?,
        keys.count("intermediate_size")?,
        keys.count("vocab_size")?,
    );
    Ok(ModelSpec {
        architecture: Architecture::Encoder,
        positions: Positions::Learned { max: rows - offset, offset },
        norm: layer_norm(NormPlacement::Post, keys.number("layer_norm_eps")?),
        activation,
        biases: ALL_BIASES,
        attention: encoder_attention(family, keys, layers)?,
        embedding: EmbeddingSpec {
            dim: if albert { keys.count("embedding_size")? } else { dim },
            types,
            norm: true,
            scaled: family == Family::BigBird && keys.flag("rescale_embeddings")?,
        },
        head,
        tied_embeddings: class == Class::Tokens && keys.flag("tie_word_embeddings")?,
        layer_groups: if albert { keys.count("num_hidden_groups")? } else { layers },
        ..plain
    })
}

fn encoder_attention(family: Family, keys: &Keys<'_>, layers: u32) -> Result<Attention, HfError> {
    match family {
        Family::Longformer => {
            let window = longformer_window(keys, layers)?;
            Ok(Attention::Longformer { window, global: 1, projections: true })
        }
        Family::BigBird => {
            keys.only("use_bias", true)?;
            match keys.word("attention_type")? {
                "original_full" => Ok(Attention::Full),
                "block_sparse" => {
                    let (block, random) = (keys.count("block_size")?, keys.count("num_random_blocks")?);
                    if block == 0 {
                        return Err(keys.wrong("block_size", "1 or more"));
                    }
                    Ok(Attention::BigBird { block, window: 3, global: 1, last: 1, random })
                }
                _ => Err(keys.wrong("attention_type", "block_sparse or original_full")),
            }
        }
        _ => Ok(Attention::Full),
    }
}

/// Tokens on each side; there the window has both.
fn longformer_window(keys: &Keys<'_>, layers: u32) -> Result<u32, HfError> {
    let wrong = || keys.wrong("attention_window", "one even number for all layers, or a list of it for each");
    let value = keys.value("attention_window").ok_or_else(wrong)?;
    let one = match value.as_array() {
        Some(list) if list.len() as u64 != u64::from(layers) => None,
        Some(list) => list.first().filter(|first| list.iter().all(|of| of == *first)),
        None => Some(value),
    };
    let window = one.and_then(Value::as_u64).filter(|window| *window > 0 && window.is_multiple_of(2));
    window.and_then(|window| u32::try_from(window / 2).ok()).ok_or_else(wrong)
}

fn t5(keys: &Keys<'_>) -> Result<ModelSpec, HfError> {
    keys.only("is_decoder", false)?;
    keys.only("is_encoder_decoder", true)?;
    let (dim, layers) = (keys.count("d_model")?, keys.count("num_layers")?);
    // The class has no default of its own: what is not false is tied.
    let tied = keys.value("tie_word_embeddings").is_none() || keys.flag("tie_word_embeddings")?;
    let plain = base(
        keys.count_or("num_decoder_layers", layers)?,
        dim,
        keys.count("num_heads")?,
        keys.count("d_ff")?,
        keys.count("vocab_size")?,
    );
    let scales =
        keys.value("scale_decoder_outputs").map_or(Ok(tied), |_| keys.flag("scale_decoder_outputs"))?;
    Ok(ModelSpec {
        architecture: Architecture::EncoderDecoder,
        encoder_layers: layers,
        head_dim: keys.count("d_kv")?,
        positions: Positions::RelativeBias {
            buckets: keys.count("relative_attention_num_buckets")?,
            max_distance: keys.count("relative_attention_max_distance")?,
        },
        norm: NormSpec { eps: keys.number("layer_norm_epsilon")?, ..plain.norm },
        activation: t5_activation(keys)?,
        attention_scale: 1.0,
        logit_scale: if scales { f64::from(dim).powf(-0.5) } else { 1.0 },
        tied_embeddings: tied,
        ..plain
    })
}

fn t5_activation(keys: &Keys<'_>) -> Result<Activation, HfError> {
    let project = keys.word("feed_forward_proj")?;
    let (gated, name) = project.strip_prefix("gated-").map_or((false, project), |name| (true, name));
    let name = if project == "gated-gelu" { "gelu_new" } else { name };
    // A configuration that was saved says both again.
    for (key, value) in [("dense_act_fn", Value::from(name)), ("is_gated_act", gated.into())] {
        if keys.value(key).is_some() {
            keys.only(key, value)?;
        }
    }
    let found = Activation::of_hf(name);
    let found = if gated { found.and_then(Activation::with_gate) } else { found };
    let must = "relu, gelu, gelu_new, silu, gated-gelu or gated-silu";
    found.ok_or_else(|| keys.wrong("feed_forward_proj", must))
}

fn bart(keys: &Keys<'_>) -> Result<ModelSpec, HfError> {
    keys.only("is_decoder", false)?;
    keys.only("is_encoder_decoder", true)?;
    let dim = keys.count("d_model")?;
    let heads = keys.count("decoder_attention_heads")?;
    let ffn = keys.count("decoder_ffn_dim")?;
    keys.only("encoder_attention_heads", heads)?;
    keys.only("encoder_ffn_dim", ffn)?;
    // Of configurations older than the class.
    for (key, value) in
        [("normalize_before", false), ("add_final_layer_norm", false), ("normalize_embedding", true)]
    {
        keys.only(key, value)?;
    }
    keys.only("static_position_embeddings", false)?;
    let plain = base(keys.count("decoder_layers")?, dim, heads, ffn, keys.count("vocab_size")?);
    Ok(ModelSpec {
        architecture: Architecture::EncoderDecoder,
        encoder_layers: keys.count("encoder_layers")?,
        // The table has two rows in front, which no position uses.
        positions: Positions::Learned { max: keys.count("max_position_embeddings")?, offset: 2 },
        norm: layer_norm(NormPlacement::Post, 1e-5),
        activation: keys.activation("activation_function")?,
        biases: ALL_BIASES,
        embedding: EmbeddingSpec { norm: true, scaled: keys.flag("scale_embedding")?, ..plain.embedding },
        tied_embeddings: keys.flag("tie_word_embeddings")?,
        ..plain
    })
}
