//! A model as a `config.json`.

use coxswain_types::model::{Activation, Attention, Head, ModelSpec, Positions, RopeScaling};
use serde_json::{Map, Value, json};

use super::{class_names, read};
use crate::hf::HfError;
use crate::hf::family::{Family, FamilyKind, LlamaKind, SlidingWindow};

/// The configuration of a model: that which was kept, brought up to date, or one of the first family that can
/// say all of it. `names` are those of classes, where they have any.
pub(in super::super) fn write(
    model: &ModelSpec,
    kept: Option<&Map<String, Value>>,
    names: &[String],
) -> Result<(Family, Map<String, Value>), HfError> {
    let before = kept.and_then(|config| read(config).ok());
    let families: Vec<Family> = match &before {
        Some((family, _)) => vec![*family],
        None => Family::all().collect(),
    };
    let mut others = Vec::new();
    for family in families {
        let mut config = kept.filter(|_| before.is_some()).cloned().unwrap_or_default();
        for (key, value) in keys(family, model) {
            config.insert(key, value);
        }
        refresh(&mut config, model);
        name_classes(&mut config, model, names);
        // What was written must say the same model again.
        others.push(match read(&config) {
            Ok((_, again)) if again == *model => return Ok((family, config)),
            Ok((_, again)) => (false, differences(model, &again), family),
            Err(error) => (true, vec![error.to_string()], family),
        });
    }
    // One that differs is nearer than one that cannot be read.
    let nearest = others.into_iter().min_by_key(|(refused, wrong, _)| (*refused, wrong.len()));
    let (_, wrong, family) = nearest.unwrap_or((true, Vec::new(), Family::Llama));
    Err(HfError::NoFamily { nearest: family.name(), wrong: wrong.join(", ") })
}

/// Keys of an import that say once more what others say, and that its library would obey.
fn refresh(config: &mut Map<String, Value>, model: &ModelSpec) {
    if !model.positions.rotates() {
        return;
    }
    // Version 5 of the library takes it for that of the scaling, whatever that says.
    config.remove("original_max_position_embeddings");
    if let Some(types) = config.get_mut("layer_types").filter(|types| !types.is_null()) {
        let window = matches!(model.attention, Attention::Window { .. });
        let kind = if window { "sliding_attention" } else { "full_attention" };
        *types = json!(vec![kind; model.layers as usize]);
    }
}

/// Names the classes: as given, or else as the import did, or else by their numbers as the library does.
fn name_classes(config: &mut Map<String, Value>, model: &ModelSpec, given: &[String]) {
    let Head::Pooled { classes: classes @ 1.. } = model.head else { return };
    let before = class_names(config);
    let named = [given, before.as_slice()].into_iter().find(|names| names.len() == classes as usize);
    let name = |class: u32| match named {
        Some(names) => names[class as usize].clone(),
        None => format!("LABEL_{class}"),
    };
    let names: Map<String, Value> =
        (0..classes).map(|class| (class.to_string(), name(class).into())).collect();
    let numbers: Map<String, Value> = (0..classes).map(|class| (name(class), class.into())).collect();
    config.insert("id2label".to_owned(), names.into());
    config.insert("label2id".to_owned(), numbers.into());
    config.insert("num_labels".to_owned(), classes.into());
}

/// The names of the parts in which two models differ.
fn differences(one: &ModelSpec, other: &ModelSpec) -> Vec<String> {
    let (one, other) = (serde_json::to_value(one), serde_json::to_value(other));
    let (Ok(Value::Object(one)), Ok(Value::Object(other))) = (one, other) else { return Vec::new() };
    let differs = |(key, value): &(&String, &Value)| other.get(*key) != Some(*value);
    one.iter().filter(differs).map(|(key, value)| format!("{key} ({value})")).collect()
}

fn keys(family: Family, model: &ModelSpec) -> Map<String, Value> {
    let head = match model.head {
        Head::Lm if model.encoder_layers > 0 => "ForConditionalGeneration",
        Head::Lm if family == Family::Gpt2 => "LMHeadModel",
        Head::Lm => "ForCausalLM",
        Head::MaskedLm { .. } => "ForMaskedLM",
        Head::Pooled { classes: 0 } => "Model",
        Head::Pooled { .. } => "ForSequenceClassification",
    };
    let mut keys = match family.kind() {
        FamilyKind::Llama(kind) => llama(kind, model),
        FamilyKind::Gpt2 => gpt2(model),
        FamilyKind::T5 => t5(model),
        FamilyKind::Bart => bart(model),
        FamilyKind::Encoder => encoder(family, model),
    };
    keys["model_type"] = family.name().into();
    keys["architectures"] = json!([format!("{}{head}", family.title())]);
    keys["vocab_size"] = model.vocab.into();
    if !matches!(model.head, Head::Pooled { .. }) {
        keys["tie_word_embeddings"] = model.tied_embeddings.into();
    }
    keys.as_object().cloned().unwrap_or_default()
}

fn act(model: &ModelSpec) -> &'static str {
    model.activation.hf_name()
}

fn max_positions(model: &ModelSpec) -> (u32, u32) {
    match model.positions {
        Positions::Learned { max, offset } => (max, offset),
        _ => (0, 0),
    }
}

fn llama(kind: LlamaKind, model: &ModelSpec) -> Value {
    let (theta, scaling) = match model.positions {
        Positions::Rope { theta, scaling } => (theta, scaling),
        _ => (0.0, RopeScaling::None),
    };
    let mut rope = match scaling {
        RopeScaling::None => json!({"rope_type": "default"}),
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low, high, original } => json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original } => json!({
            "rope_type": "yarn", "factor": factor, "beta_fast": beta_fast, "beta_slow": beta_slow,
            "original_max_position_embeddings": original,
        }),
    };
    // Version 4 of the library reads `rope_scaling` and `rope_theta`; version 5 does where they are there, and
    // `rope_parameters` else.
    let scaled = if scaling == RopeScaling::None { Value::Null } else { rope.clone() };
    rope["rope_theta"] = theta.into();
    let mut keys = json!({
        "num_hidden_layers": model.layers,
        "hidden_size": model.dim,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.ffn,
        "hidden_act": act(model),
        "rms_norm_eps": model.norm.eps,
        "rope_theta": theta,
        "rope_parameters": rope,
        "rope_scaling": scaled,
    });
    if kind.attention_bias {
        keys["attention_bias"] = model.biases.qkv.into();
    }
    if kind.mlp_bias {
        keys["mlp_bias"] = model.biases.ffn.into();
    }
    if kind.window == SlidingWindow::Counts {
        keys["sliding_window"] = match model.attention {
            Attention::Window { window } => window.into(),
            _ => Value::Null,
        };
    }
    keys
}

fn gpt2(model: &ModelSpec) -> Value {
    json!({
        "n_layer": model.layers, "n_embd": model.dim, "n_head": model.heads, "n_inner": model.ffn,
        "n_positions": max_positions(model).0, "activation_function": act(model),
        "layer_norm_epsilon": model.norm.eps,
    })
}

fn encoder(family: Family, model: &ModelSpec) -> Value {
    let (max, offset) = max_positions(model);
    let mut keys = json!({
        "num_hidden_layers": model.layers,
        "hidden_size": model.dim,
        "num_attention_heads": model.heads,
        "intermediate_size": model.ffn,
        "max_position_embeddings": max + offset,
        "type_vocab_size": model.embedding.types,
        "hidden_act": act(model),
        "layer_norm_eps": model.norm.eps,
    });
    if matches!(family, Family::Roberta | Family::Longformer) {
        keys["pad_token_id"] = offset.saturating_sub(1).into();
    }
    match (family, model.attention) {
        (Family::Albert, _) => {
            keys["embedding_size"] = model.embedding.dim.into();
            keys["num_hidden_groups"] = model.layer_groups.into();
        }
        (Family::Longformer, Attention::Longformer { window, .. }) => {
            keys["attention_window"] = json!(vec![2 * window; model.layers as usize]);
        }
        (Family::BigBird, attention) => {
            keys["attention_type"] = "original_full".into();
            if let Attention::BigBird { block, random, .. } = attention {
                keys["attention_type"] = "block_sparse".into();
                keys["block_size"] = block.into();
                keys["num_random_blocks"] = random.into();
            }
            keys["rescale_embeddings"] = model.embedding.scaled.into();
        }
        _ => {}
    }
    keys
}

fn t5(model: &ModelSpec) -> Value {
    let (buckets, max_distance) = match model.positions {
        Positions::RelativeBias { buckets, max_distance } => (buckets, max_distance),
        _ => (0, 0),
    };
    let dense = act(model);
    let project = match model.activation {
        // The library's name of the gate by tanh.
        Activation::GegluTanh => "gated-gelu".to_owned(),
        gated if gated.gated() => format!("gated-{dense}"),
        _ => dense.to_owned(),
    };
    json!({
        "num_layers": model.encoder_layers, "num_decoder_layers": model.layers, "d_model": model.dim,
        "num_heads": model.heads, "d_kv": model.head_dim, "d_ff": model.ffn,
        "relative_attention_num_buckets": buckets, "relative_attention_max_distance": max_distance,
        "layer_norm_epsilon": model.norm.eps, "feed_forward_proj": project, "dense_act_fn": dense,
        "is_gated_act": model.activation.gated(), "scale_decoder_outputs": model.logit_scale != 1.0,
        "is_encoder_decoder": true,
    })
}

fn bart(model: &ModelSpec) -> Value {
    json!({
        "encoder_layers": model.encoder_layers, "decoder_layers": model.layers, "d_model": model.dim,
        "encoder_attention_heads": model.heads, "decoder_attention_heads": model.heads,
        "encoder_ffn_dim": model.ffn, "decoder_ffn_dim": model.ffn,
        "max_position_embeddings": max_positions(model).0, "activation_function": act(model),
        "scale_embedding": model.embedding.scaled, "is_encoder_decoder": true,
    })
}
