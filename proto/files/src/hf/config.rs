//! `config.json` and the model that it describes. A key that would change numbers and that no model of
//! ours can follow is an error; keys that change none are passed over, and kept for export.

use coxswain_types::model::{
    Activation, Architecture, Attention, Biases, EmbeddingSpec, Head, ModelSpec, NormKind, NormPlacement,
    NormSpec, Positions, RopeScaling,
};
use serde_json::{Map, Value};

use super::HfError;

mod write;

pub(super) use write::write;

/// A family of models, by its `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Gpt2,
    Llama,
    Mistral,
    Qwen2,
    Bert,
    Roberta,
    Albert,
    T5,
    Bart,
    Longformer,
    BigBird,
}

pub(super) const FAMILIES: [(&str, Family); 11] = [
    ("llama", Family::Llama),
    ("mistral", Family::Mistral),
    ("qwen2", Family::Qwen2),
    ("gpt2", Family::Gpt2),
    ("bert", Family::Bert),
    ("roberta", Family::Roberta),
    ("albert", Family::Albert),
    ("longformer", Family::Longformer),
    ("big_bird", Family::BigBird),
    ("t5", Family::T5),
    ("bart", Family::Bart),
];

/// The keys of a configuration.
struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn value(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn wrong(&self, key: &str, must: &str) -> HfError {
        let found = self.0.get(key).map_or("nothing".to_owned(), Value::to_string);
        HfError::Config(format!("`{key}` is {found}; must be {must}"))
    }

    fn count(&self, key: &str, default: Option<u32>) -> Result<u32, HfError> {
        let Some(value) = self.value(key) else {
            return default.ok_or_else(|| self.wrong(key, "a count"));
        };
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        number.ok_or_else(|| self.wrong(key, "a count"))
    }

    fn number(&self, key: &str, default: f64) -> Result<f64, HfError> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_f64().filter(|x| x.is_finite()).ok_or_else(|| self.wrong(key, "a number"))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, HfError> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(key, "true or false"))
    }

    fn word<'s>(&'s self, key: &str, default: &'s str) -> Result<&'s str, HfError> {
        let Some(value) = self.value(key) else { return Ok(default) };
        value.as_str().ok_or_else(|| self.wrong(key, "a word"))
    }

    /// Refuses any value but this one, which is also what is meant where the key is missing.
    fn only(&self, key: &str, value: impl Into<Value>) -> Result<(), HfError> {
        let value = value.into();
        match self.value(key) {
            Some(found) if *found != value => Err(self.wrong(key, &format!("{value} for this program"))),
            _ => Ok(()),
        }
    }

    fn activation(&self, key: &str, default: &str) -> Result<Activation, HfError> {
        match self.word(key, default)? {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            "silu" | "swish" => Ok(Activation::Silu),
            _ => Err(self.wrong(key, "gelu, gelu_new, gelu_pytorch_tanh, relu or silu")),
        }
    }
}

/// The family and the model of a configuration.
pub(super) fn read(config: &Map<String, Value>) -> Result<(Family, ModelSpec), HfError> {
    let keys = Keys(config);
    let name = keys.word("model_type", "")?;
    let known: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
    let found = FAMILIES.iter().find(|(of, _)| *of == name);
    let (_, family) =
        found.ok_or_else(|| keys.wrong("model_type", &format!("one of {}", known.join(", "))))?;
    let class = keys.value("architectures").and_then(|list| list.as_array()?.first()?.as_str()).unwrap_or("");
    let model = match family {
        Family::Llama | Family::Mistral | Family::Qwen2 => llama(*family, &keys),
        Family::Gpt2 => gpt2(&keys),
        Family::T5 => t5(&keys),
        Family::Bart => bart(&keys),
        _ => encoder(*family, &keys, class),
    }?;
    let wanted = match model.head {
        Head::Lm if model.encoder_layers > 0 => "ForConditionalGeneration",
        Head::Lm if *family == Family::Gpt2 => "LMHeadModel",
        Head::Lm => "ForCausalLM",
        Head::MaskedLm { .. } => "ForMaskedLM",
        Head::Pooled { classes: 0 } => "Model",
        Head::Pooled { .. } => "ForSequenceClassification",
    };
    let known = class.ends_with(wanted) || class.ends_with("ForPreTraining") || class.is_empty();
    let sizes =
        [model.dim, model.heads, model.kv_heads, model.head_dim, model.layers, model.vocab, model.ffn];
    if !known {
        return Err(keys.wrong("architectures", &format!("a class that ends with {wanted}")));
    }
    if sizes.contains(&0) || !model.heads.is_multiple_of(model.kv_heads) {
        return Err(HfError::Config("a size is 0, or heads are no multiple of key/value heads".to_owned()));
    }
    Ok((*family, model))
}

/// What all families have in common.
fn base(layers: u32, dim: u32, heads: u32, ffn: u32, vocab: u32) -> ModelSpec {
    ModelSpec::llama(layers, dim, heads, heads, ffn, vocab)
}

fn llama(family: Family, keys: &Keys<'_>) -> Result<ModelSpec, HfError> {
    let heads = keys.count("num_attention_heads", None)?;
    let dim = keys.count("hidden_size", None)?;
    let head_dim = keys.count("head_dim", Some(dim / heads.max(1)))?;
    keys.only("hidden_act", "silu")?;
    keys.only("pretraining_tp", 1)?;
    let (attention_bias, mlp_bias) = (keys.flag("attention_bias", false)?, keys.flag("mlp_bias", false)?);
    let biases = match family {
        Family::Llama => Biases { qkv: attention_bias, out: attention_bias, ffn: mlp_bias },
        Family::Qwen2 => Biases { qkv: true, out: false, ffn: false },
        _ => Biases::default(),
    };
    if family == Family::Qwen2 {
        keys.only("use_sliding_window", false)?;
    }
    let window = keys.value("sliding_window").is_some() && family == Family::Mistral;
    let attention = match window {
        true => Attention::Window { window: keys.count("sliding_window", None)? },
        false => Attention::Full,
    };
    let plain = base(
        keys.count("num_hidden_layers", None)?,
        dim,
        heads,
        keys.count("intermediate_size", None)?,
        keys.count("vocab_size", None)?,
    );
    Ok(ModelSpec {
        kv_heads: keys.count("num_key_value_heads", Some(heads))?,
        head_dim,
        attention_scale: f64::from(head_dim).powf(-0.5),
        positions: rope(keys)?,
        norm: NormSpec { eps: keys.number("rms_norm_eps", 1e-6)?, ..plain.norm },
        biases,
        attention,
        tied_embeddings: keys.flag("tie_word_embeddings", false)?,
        ..plain
    })
}

/// Rotary positions, in the form of `rope_parameters` or the older `rope_theta` and `rope_scaling`.
fn rope(keys: &Keys<'_>) -> Result<Positions, HfError> {
    let none = Map::new();
    let parameters = keys.value("rope_parameters").or(keys.value("rope_scaling"));
    let inner = match parameters {
        None => Keys(&none),
        Some(value) => Keys(value.as_object().ok_or_else(|| keys.wrong("rope_scaling", "a map"))?),
    };
    let theta = inner.number("rope_theta", keys.number("rope_theta", 1e4)?)?;
    let kind = inner.word("rope_type", inner.word("type", "default")?)?;
    let number = |key: &str| match inner.value(key) {
        None => Err(inner.wrong(key, "a number")),
        Some(_) => inner.number(key, 0.0),
    };
    let original = || {
        let whole = keys.count("max_position_embeddings", Some(0));
        inner.count("original_max_position_embeddings", whole.ok())
    };
    for key in ["attention_factor", "mscale", "mscale_all_dim"] {
        if inner.value(key).is_some() {
            return Err(inner.wrong(key, "left out for this program"));
        }
    }
    inner.only("truncate", true)?;
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: number("factor")?,
            low: number("low_freq_factor")?,
            high: number("high_freq_factor")?,
            original: original()?,
        },
        "yarn" => RopeScaling::Yarn {
            factor: number("factor")?,
            beta_fast: inner.number("beta_fast", 32.0)?,
            beta_slow: inner.number("beta_slow", 1.0)?,
            original: original()?,
        },
        _ => return Err(inner.wrong("rope_type", "default, linear, llama3 or yarn")),
    };
    Ok(Positions::Rope { theta, scaling })
}

fn layer_norm(placement: NormPlacement, eps: f64) -> NormSpec {
    NormSpec { kind: NormKind::Layer, placement, eps }
}

const ALL_BIASES: Biases = Biases { qkv: true, out: true, ffn: true };

fn gpt2(keys: &Keys<'_>) -> Result<ModelSpec, HfError> {
    let dim = keys.count("n_embd", None)?;
    keys.only("scale_attn_weights", true)?;
    keys.only("scale_attn_by_inverse_layer_idx", false)?;
    keys.only("add_cross_attention", false)?;
    let heads = keys.count("n_head", None)?;
    let ffn = keys.count("n_inner", Some(dim.saturating_mul(4)))?;
    let plain = base(keys.count("n_layer", None)?, dim, heads, ffn, keys.count("vocab_size", None)?);
    Ok(ModelSpec {
        positions: Positions::Learned { max: keys.count("n_positions", None)?, offset: 0 },
        norm: layer_norm(NormPlacement::Pre, keys.number("layer_norm_epsilon", 1e-5)?),
        activation: keys.activation("activation_function", "gelu_new")?,
        biases: ALL_BIASES,
        tied_embeddings: keys.flag("tie_word_embeddings", true)?,
        ..plain
    })
}

fn encoder(family: Family, keys: &Keys<'_>, class: &str) -> Result<ModelSpec, HfError> {
    for key in ["is_decoder", "add_cross_attention"] {
        keys.only(key, false)?;
    }
    keys.only("position_embedding_type", "absolute")?;
    let albert = family == Family::Albert;
    // RoBERTa's positions begin behind the padding token's.
    let offset = if matches!(family, Family::Roberta | Family::Longformer) {
        keys.count("pad_token_id", Some(1))? + 1
    } else {
        0
    };
    let rows = keys.count("max_position_embeddings", Some(512))?;
    let layers = keys.count("num_hidden_layers", None)?;
    let dim = keys.count("hidden_size", None)?;
    let act = if matches!(family, Family::Albert | Family::BigBird) { "gelu_new" } else { "gelu" };
    let activation = keys.activation("hidden_act", act)?;
    let head = if class.ends_with("ForSequenceClassification") {
        let labels = keys.value("id2label").and_then(|map| map.as_object()).map_or(2, |map| map.len() as u32);
        Head::Pooled { classes: keys.count("num_labels", Some(labels))? }
    } else if class.ends_with("Model") {
        Head::Pooled { classes: 0 }
    } else {
        // The heads of RoBERTa's kind are GELU whatever the layers are.
        let gelu = matches!(family, Family::Roberta | Family::Longformer);
        Head::MaskedLm { activation: if gelu { Activation::Gelu } else { activation } }
    };
    if family == Family::BigBird && matches!(head, Head::Pooled { classes: 1.. }) {
        return Err(keys.wrong("architectures", "BigBirdForMaskedLM or BigBirdModel for this program"));
    }
    if albert {
        keys.only("inner_group_num", 1)?;
    }
    let attention = match family {
        Family::Longformer => {
            let window = longformer_window(keys)?;
            Attention::Longformer { window, global: 1, projections: true }
        }
        Family::BigBird => {
            keys.only("use_bias", true)?;
            match keys.word("attention_type", "block_sparse")? {
                "original_full" => Attention::Full,
                "block_sparse" => {
                    let block = keys.count("block_size", Some(64))?;
                    let random = keys.count("num_random_blocks", Some(3))?;
                    Attention::BigBird { block, window: 3, global: 1, last: 1, random }
                }
                _ => return Err(keys.wrong("attention_type", "block_sparse or original_full")),
            }
        }
        _ => Attention::Full,
    };
    let width = if albert { keys.count("embedding_size", Some(128))? } else { dim };
    let plain = base(
        layers,
        dim,
        keys.count("num_attention_heads", None)?,
        keys.count("intermediate_size", None)?,
        keys.count("vocab_size", None)?,
    );
    Ok(ModelSpec {
        architecture: Architecture::Encoder,
        positions: Positions::Learned { max: rows.saturating_sub(offset), offset },
        norm: layer_norm(NormPlacement::Post, keys.number("layer_norm_eps", 1e-12)?),
        activation,
        biases: ALL_BIASES,
        attention,
        embedding: EmbeddingSpec {
            dim: width,
            types: keys.count("type_vocab_size", Some(2))?,
            norm: true,
            scaled: family == Family::BigBird && keys.flag("rescale_embeddings", false)?,
        },
        head,
        tied_embeddings: matches!(head, Head::MaskedLm { .. }) && keys.flag("tie_word_embeddings", true)?,
        layer_groups: if albert { keys.count("num_hidden_groups", Some(1))? } else { layers },
        ..plain
    })
}

/// Tokens on each side; there the window has both.
fn longformer_window(keys: &Keys<'_>) -> Result<u32, HfError> {
    let must = "one even number for all layers";
    let wrong = || keys.wrong("attention_window", must);
    let value = keys.value("attention_window").ok_or_else(wrong)?;
    let all: Vec<u64> = match value.as_array() {
        Some(list) => list.iter().filter_map(Value::as_u64).collect(),
        None => value.as_u64().into_iter().collect(),
    };
    let window = all.first().copied().filter(|window| window % 2 == 0 && all.iter().all(|of| of == window));
    window.and_then(|window| u32::try_from(window / 2).ok()).ok_or_else(wrong)
}

fn t5(keys: &Keys<'_>) -> Result<ModelSpec, HfError> {
    let (dim, heads) = (keys.count("d_model", None)?, keys.count("num_heads", None)?);
    let layers = keys.count("num_layers", None)?;
    let tied = keys.flag("tie_word_embeddings", true)?;
    let activation = match keys.word("feed_forward_proj", "relu")? {
        "relu" => Activation::Relu,
        "gated-gelu" => Activation::GegluTanh,
        _ => return Err(keys.wrong("feed_forward_proj", "relu or gated-gelu")),
    };
    let plain = base(
        keys.count("num_decoder_layers", Some(layers))?,
        dim,
        heads,
        keys.count("d_ff", None)?,
        keys.count("vocab_size", None)?,
    );
    let scaled = keys.flag("scale_decoder_outputs", tied)?;
    Ok(ModelSpec {
        architecture: Architecture::EncoderDecoder,
        encoder_layers: layers,
        head_dim: keys.count("d_kv", None)?,
        positions: Positions::RelativeBias {
            buckets: keys.count("relative_attention_num_buckets", Some(32))?,
            max_distance: keys.count("relative_attention_max_distance", Some(128))?,
        },
        norm: NormSpec { eps: keys.number("layer_norm_epsilon", 1e-6)?, ..plain.norm },
        activation,
        attention_scale: 1.0,
        logit_scale: if scaled { f64::from(dim).powf(-0.5) } else { 1.0 },
        tied_embeddings: tied,
        ..plain
    })
}

fn bart(keys: &Keys<'_>) -> Result<ModelSpec, HfError> {
    let dim = keys.count("d_model", None)?;
    let heads = keys.count("decoder_attention_heads", None)?;
    let ffn = keys.count("decoder_ffn_dim", None)?;
    keys.only("encoder_attention_heads", heads)?;
    keys.only("encoder_ffn_dim", ffn)?;
    let plain = base(keys.count("decoder_layers", None)?, dim, heads, ffn, keys.count("vocab_size", None)?);
    Ok(ModelSpec {
        architecture: Architecture::EncoderDecoder,
        encoder_layers: keys.count("encoder_layers", None)?,
        // The table has two rows in front, which no position uses.
        positions: Positions::Learned { max: keys.count("max_position_embeddings", None)?, offset: 2 },
        norm: layer_norm(NormPlacement::Post, 1e-5),
        activation: keys.activation("activation_function", "gelu")?,
        biases: ALL_BIASES,
        embedding: EmbeddingSpec {
            norm: true,
            scaled: keys.flag("scale_embedding", false)?,
            ..plain.embedding
        },
        tied_embeddings: keys.flag("tie_word_embeddings", true)?,
        ..plain
    })
}
