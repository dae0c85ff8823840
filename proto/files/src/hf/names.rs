//! Where each parameter of ours lies in the files of a family, and what else may lie there.

use coxswain_types::model::{Head, ModelSpec};
use coxswain_types::params::EMBEDDING;

use super::family::{Family, FamilyKind};

/// Where a parameter lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TensorSource {
    /// The tensor.
    pub(super) tensor: String,
    /// Whether it is kept as [in, out].
    pub(super) transposed: bool,
    /// Which of so many equal parts of the outputs it is.
    pub(super) part: (u64, u64),
}

impl TensorSource {
    fn plain(tensor: String) -> TensorSource {
        TensorSource { tensor, transposed: false, part: (0, 1) }
    }
}

/// What a tensor is that no parameter of ours lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Other {
    /// A second copy of a parameter of ours, with which it must agree.
    Copy(&'static str),
    /// Zeros.
    Zeros,
    /// No weight at all.
    Buffer,
    /// A weight that this model does not use.
    Unused,
}

/// Ours to theirs, within a layer.
type Parts = &'static [(&'static str, &'static str)];

const GPT2: Parts = &[
    ("input_layernorm", "ln_1"),
    ("self_attn.o_proj", "attn.c_proj"),
    ("post_attention_layernorm", "ln_2"),
    ("mlp.up_proj", "mlp.c_fc"),
    ("mlp.down_proj", "mlp.c_proj"),
];
const BERT: Parts = &[
    ("self_attn.q_proj", "attention.self.query"),
    ("self_attn.k_proj", "attention.self.key"),
    ("self_attn.v_proj", "attention.self.value"),
    ("self_attn.global_q_proj", "attention.self.query_global"),
    ("self_attn.global_k_proj", "attention.self.key_global"),
    ("self_attn.global_v_proj", "attention.self.value_global"),
    ("self_attn.o_proj", "attention.output.dense"),
    ("input_layernorm", "attention.output.LayerNorm"),
    ("mlp.up_proj", "intermediate.dense"),
    ("mlp.down_proj", "output.dense"),
    ("post_attention_layernorm", "output.LayerNorm"),
];
const ALBERT: Parts = &[
    ("self_attn.q_proj", "attention.query"),
    ("self_attn.k_proj", "attention.key"),
    ("self_attn.v_proj", "attention.value"),
    ("self_attn.o_proj", "attention.dense"),
    ("input_layernorm", "attention.LayerNorm"),
    ("mlp.up_proj", "ffn"),
    ("mlp.down_proj", "ffn_output"),
    ("post_attention_layernorm", "full_layer_layer_norm"),
];
const T5: Parts = &[
    ("self_attn.q_proj", "0.SelfAttention.q"),
    ("self_attn.k_proj", "0.SelfAttention.k"),
    ("self_attn.v_proj", "0.SelfAttention.v"),
    ("self_attn.o_proj", "0.SelfAttention.o"),
    ("input_layernorm", "0.layer_norm"),
    ("cross_attn.q_proj", "1.EncDecAttention.q"),
    ("cross_attn.k_proj", "1.EncDecAttention.k"),
    ("cross_attn.v_proj", "1.EncDecAttention.v"),
    ("cross_attn.o_proj", "1.EncDecAttention.o"),
    ("cross_attention_layernorm", "1.layer_norm"),
];
const BART: Parts = &[
    ("self_attn.o_proj", "self_attn.out_proj"),
    ("self_attn", "self_attn"),
    ("cross_attn.o_proj", "encoder_attn.out_proj"),
    ("cross_attn", "encoder_attn"),
    ("input_layernorm", "self_attn_layer_norm"),
    ("cross_attention_layernorm", "encoder_attn_layer_norm"),
    ("post_attention_layernorm", "final_layer_norm"),
    ("mlp.up_proj", "fc1"),
    ("mlp.down_proj", "fc2"),
];

/// Where the parameter `ours` lies; `None` where the family has no such thing.
pub(super) fn source(family: Family, model: &ModelSpec, ours: &str) -> Option<TensorSource> {
    let (scope, kind) = ours.rsplit_once('.')?;
    let layered = layer(scope);
    match family.kind() {
        // The names here are theirs.
        FamilyKind::Llama(_) => Some(TensorSource::plain(ours.to_owned())),
        FamilyKind::Gpt2 => gpt2(scope, kind, layered),
        FamilyKind::T5 => t5(model, scope, kind, layered),
        FamilyKind::Bart => bart(scope, kind, layered),
        FamilyKind::Encoder => encoder(family, model, scope, kind, layered)
            .map(|name| TensorSource::plain(format!("{name}.{kind}"))),
    }
}

/// Whether a name is an encoder's, the number of its layer, and the rest.
fn layer(scope: &str) -> Option<(bool, u32, &str)> {
    let stacks = [(true, "model.encoder.layers."), (false, "model.layers."), (false, "model.layer_groups.")];
    stacks.iter().find_map(|(encoder, prefix)| {
        let (number, part) = scope.strip_prefix(prefix)?.split_once('.')?;
        Some((*encoder, number.parse().ok()?, part))
    })
}

/// The first row of the table that a part begins with, put in its place.
fn renamed(parts: Parts, part: &str) -> Option<String> {
    parts.iter().find_map(|(ours, theirs)| {
        let rest = part.strip_prefix(ours)?;
        (rest.is_empty() || rest.starts_with('.')).then(|| format!("{theirs}{rest}"))
    })
}

fn gpt2(scope: &str, kind: &str, layered: Option<(bool, u32, &str)>) -> Option<TensorSource> {
    let Some((_, number, part)) = layered else {
        let name = match scope {
            "model.embed_tokens" => "wte",
            "model.embed_positions" => "wpe",
            "model.norm" => "ln_f",
            "lm_head" => return Some(TensorSource::plain(format!("lm_head.{kind}"))),
            _ => return None,
        };
        return Some(TensorSource::plain(format!("transformer.{name}.{kind}")));
    };
    // Queries, keys and values are one map there.
    let fused =
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].iter().position(|of| *of == part);
    let (name, part) = match fused {
        Some(at) => ("attn.c_attn".to_owned(), (at as u64, 3)),
        None => (renamed(GPT2, part)?, (0, 1)),
    };
    let transposed = kind == "weight" && !name.starts_with("ln_");
    Some(TensorSource { tensor: format!("transformer.h.{number}.{name}.{kind}"), transposed, part })
}

fn t5(
    model: &ModelSpec,
    scope: &str,
    kind: &str,
    layered: Option<(bool, u32, &str)>,
) -> Option<TensorSource> {
    let stack = |encoder: bool| if encoder { "encoder" } else { "decoder" };
    let name = match (scope, layered) {
        ("model.embed_tokens", _) => "shared".to_owned(),
        ("lm_head", _) => "lm_head".to_owned(),
        ("model.encoder.norm", _) => "encoder.final_layer_norm".to_owned(),
        ("model.norm", _) => "decoder.final_layer_norm".to_owned(),
        // The table lies in the first block of its stack, and serves all.
        ("model.encoder.relative_bias" | "model.relative_bias", _) => {
            let stack = stack(scope.starts_with("model.encoder"));
            format!("{stack}.block.0.layer.0.SelfAttention.relative_attention_bias")
        }
        (_, Some((encoder, number, part))) => {
            let last = if encoder { 1 } else { 2 };
            let gated = model.activation.gated();
            let part = match part {
                "mlp.gate_proj" => format!("{last}.DenseReluDense.wi_0"),
                "mlp.up_proj" if gated => format!("{last}.DenseReluDense.wi_1"),
                "mlp.up_proj" => format!("{last}.DenseReluDense.wi"),
                "mlp.down_proj" => format!("{last}.DenseReluDense.wo"),
                "post_attention_layernorm" => format!("{last}.layer_norm"),
                _ => renamed(T5, part)?,
            };
            format!("{}.block.{number}.layer.{part}", stack(encoder))
        }
        _ => return None,
    };
    Some(TensorSource::plain(format!("{name}.{kind}")))
}

fn bart(scope: &str, kind: &str, layered: Option<(bool, u32, &str)>) -> Option<TensorSource> {
    let name = match (scope, layered) {
        ("model.embed_tokens", _) => "model.shared".to_owned(),
        ("lm_head", _) => "lm_head".to_owned(),
        ("model.encoder.embed_positions", _) => "model.encoder.embed_positions".to_owned(),
        ("model.embed_positions", _) => "model.decoder.embed_positions".to_owned(),
        ("model.encoder.embed_norm", _) => "model.encoder.layernorm_embedding".to_owned(),
        ("model.embed_norm", _) => "model.decoder.layernorm_embedding".to_owned(),
        (_, Some((encoder, number, part))) => {
            let stack = if encoder { "encoder" } else { "decoder" };
            format!("model.{stack}.layers.{number}.{}", renamed(BART, part)?)
        }
        _ => return None,
    };
    Some(TensorSource::plain(format!("{name}.{kind}")))
}

fn encoder(
    family: Family,
    model: &ModelSpec,
    scope: &str,
    kind: &str,
    layered: Option<(bool, u32, &str)>,
) -> Option<String> {
    let bare = model.head == Head::Pooled { classes: 0 };
    let prefix = family.prefix().filter(|_| !bare).map(|prefix| format!("{prefix}.")).unwrap_or_default();
    if let Some((_, number, part)) = layered {
        return match family {
            Family::Albert => {
                let name = renamed(ALBERT, part)?;
                Some(format!("{prefix}encoder.albert_layer_groups.{number}.albert_layers.0.{name}"))
            }
            _ => Some(format!("{prefix}encoder.layer.{number}.{}", renamed(BERT, part)?)),
        };
    }
    let head = match family {
        Family::Bert | Family::BigBird => ["cls.predictions", "cls.predictions.transform", "LayerNorm"],
        Family::Albert => ["predictions", "predictions", "LayerNorm"],
        _ => ["lm_head", "lm_head", "layer_norm"],
    };
    // Models of RoBERTa's kind have the dense layer of classes in their head.
    let in_head = matches!(family, Family::Roberta | Family::Longformer) && !bare;
    let name = match scope {
        "model.embed_tokens" => format!("{prefix}embeddings.word_embeddings"),
        "model.embed_positions" => format!("{prefix}embeddings.position_embeddings"),
        "model.embed_types" => format!("{prefix}embeddings.token_type_embeddings"),
        "model.embed_norm" => format!("{prefix}embeddings.LayerNorm"),
        "model.embed_map" => format!("{prefix}encoder.embedding_hidden_mapping_in"),
        "lm_head" if kind == "bias" => head[0].to_owned(),
        "lm_head" => format!("{}.decoder", head[0]),
        "lm_head.dense" => format!("{}.dense", head[1]),
        "lm_head.norm" => format!("{}.{}", head[1], head[2]),
        "pooler.dense" if in_head => "classifier.dense".to_owned(),
        "pooler.dense" if matches!(family, Family::Albert | Family::BigBird) => format!("{prefix}pooler"),
        "pooler.dense" => format!("{prefix}pooler.dense"),
        "classifier" if in_head => "classifier.out_proj".to_owned(),
        "classifier" => "classifier".to_owned(),
        _ => return None,
    };
    Some(name)
}

/// The names that a tensor may have in published files: the class's own, that without the wrapper of the model or
/// with it, and those of the norms of the first BERT.
pub(super) fn aliases(family: Family, name: &str) -> Vec<String> {
    let mut names = vec![name.to_owned()];
    if let Some(prefix) = family.prefix() {
        let bare = name.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('.'));
        names.push(bare.map_or_else(|| format!("{prefix}.{name}"), str::to_owned));
    }
    let older = |name: &String| {
        let scope = name.strip_suffix("LayerNorm.weight").map(|scope| format!("{scope}LayerNorm.gamma"));
        scope.or_else(|| name.strip_suffix("LayerNorm.bias").map(|scope| format!("{scope}LayerNorm.beta")))
    };
    let norms: Vec<_> = names.iter().filter_map(older).collect();
    names.extend(norms);
    names
}

/// What may lie in the files of a family beside the parameters, below its prefix or without; a star is the number
/// of a layer. Everything else is an error.
fn beside(family: Family) -> Vec<(&'static str, Other)> {
    use Other::{Buffer, Copy, Unused, Zeros};
    let tokens = Copy(EMBEDDING);
    let positions = || vec![("embeddings.position_ids", Buffer), ("embeddings.token_type_ids", Buffer)];
    let of_bert = || {
        let mut list = positions();
        list.extend([
            ("cls.predictions.decoder.weight", Copy(EMBEDDING)),
            ("cls.predictions.decoder.bias", Copy("lm_head.bias")),
            // The task of the next sentence.
            ("cls.seq_relationship.weight", Unused),
            ("cls.seq_relationship.bias", Unused),
        ]);
        list
    };
    let dense_pooler = [("pooler.dense.weight", Unused), ("pooler.dense.bias", Unused)];
    let pooler = [("pooler.weight", Unused), ("pooler.bias", Unused)];
    match (family.kind(), family) {
        // The causal mask, and what hidden scores are.
        (FamilyKind::Gpt2, _) => {
            vec![("h.*.attn.bias", Buffer), ("h.*.attn.masked_bias", Buffer), ("lm_head.weight", tokens)]
        }
        (FamilyKind::Llama(_), _) => vec![
            ("layers.*.self_attn.rotary_emb.inv_freq", Buffer),
            ("rotary_emb.inv_freq", Buffer),
            ("lm_head.weight", tokens),
        ],
        (_, Family::Bert) => [of_bert(), dense_pooler.to_vec()].concat(),
        (_, Family::BigBird) => [of_bert(), pooler.to_vec()].concat(),
        (_, Family::Albert) => {
            let mut list = [positions(), pooler.to_vec()].concat();
            list.extend([
                ("predictions.decoder.weight", tokens),
                ("predictions.decoder.bias", Copy("lm_head.bias")),
                // The task of the order of sentences.
                ("sop_classifier.classifier.weight", Unused),
                ("sop_classifier.classifier.bias", Unused),
            ]);
            list
        }
        (FamilyKind::Encoder, _) => {
            let mut list = [positions(), dense_pooler.to_vec()].concat();
            list.extend([("lm_head.decoder.weight", tokens), ("lm_head.decoder.bias", Copy("lm_head.bias"))]);
            list
        }
        (FamilyKind::T5, _) => vec![
            ("encoder.embed_tokens.weight", Copy(EMBEDDING)),
            ("decoder.embed_tokens.weight", Copy(EMBEDDING)),
            ("lm_head.weight", tokens),
            // Attention to an encoder has no positions; the first checkpoints have its table all the same.
            ("decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight", Unused),
        ],
        (FamilyKind::Bart, _) => vec![
            ("encoder.embed_tokens.weight", Copy(EMBEDDING)),
            ("decoder.embed_tokens.weight", Copy(EMBEDDING)),
            ("lm_head.weight", tokens),
            ("final_logits_bias", Zeros),
            // The number of the format in the library that BART was made with.
            ("encoder.version", Buffer),
            ("decoder.version", Buffer),
        ],
    }
}

/// What a tensor is that no parameter lies in; `None` where this program does not know.
pub(super) fn other(family: Family, model: &ModelSpec, name: &str) -> Option<Other> {
    let bare = family.prefix().and_then(|prefix| name.strip_prefix(prefix)?.strip_prefix('.'));
    let list = beside(family);
    let named = |name: &str| list.iter().find(|(pattern, _)| matches(pattern, name, model.layers));
    let (_, other) = named(name).or_else(|| named(bare?))?;
    let fits = match other {
        // A copy is one of a tied table, or of a parameter that this model has.
        Other::Copy(EMBEDDING) => model.tied_embeddings || name.ends_with("embed_tokens.weight"),
        Other::Copy(_) => matches!(model.head, Head::MaskedLm { .. }),
        Other::Unused => !name.starts_with("cls.") || matches!(model.head, Head::MaskedLm { .. }),
        Other::Buffer | Other::Zeros => true,
    };
    fits.then(|| other.clone())
}

/// Whether a name is of a pattern whose stars are numbers of layers.
fn matches(pattern: &str, name: &str, layers: u32) -> bool {
    let (pattern, name): (Vec<_>, Vec<_>) = (pattern.split('.').collect(), name.split('.').collect());
    let same = |(pattern, part): (&&str, &&str)| match *pattern {
        "*" => part.parse::<u32>().is_ok_and(|layer| layer < layers),
        _ => pattern == part,
    };
    pattern.len() == name.len() && pattern.iter().zip(&name).all(same)
}
