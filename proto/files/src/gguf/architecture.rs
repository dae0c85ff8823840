//! The model that a file's keys and tensors describe, and where each parameter lies.

use std::collections::BTreeMap;
use std::f64::consts::TAU;

use coxswain_types::bounds::limits::{self, Limit};
use coxswain_types::forms::gguf_name;
use coxswain_types::model::{Biases, ModelSpec, NormSpec, Positions, RopeScaling};

use super::header::{Meta, TensorInfo};

/// The architectures that can be read, and whether their queries and keys are rotated in neighbouring pairs.
const ARCHITECTURES: [(&str, bool); 3] = [("llama", true), ("qwen2", false), ("qwen3", false)];

/// How LLaMA 3 divides waves into long and short ones. Files have what follows from it, not the numbers.
const LLAMA3: (f64, f64, u32) = (1.0, 4.0, 8192);

/// What a file holds.
#[derive(Debug)]
pub(super) struct GgufArchitecture {
    pub(super) model: ModelSpec,
    /// Whether rows of queries and keys lie in neighbouring pairs.
    pub(super) paired: bool,
    /// The most tokens that the model was made to read.
    pub(super) longest: Option<u32>,
}

impl GgufArchitecture {
    /// Reads the keys; `frequencies` are those of `rope_freqs.weight`.
    pub(super) fn read(
        meta: &Meta,
        tensors: &BTreeMap<String, TensorInfo>,
        frequencies: Option<&[f32]>,
    ) -> Result<GgufArchitecture, String> {
        let name = meta.text("general.architecture")?.unwrap_or_default();
        let known = ARCHITECTURES.iter().find(|(of, _)| *of == name);
        let (name, paired) = known.copied().ok_or_else(|| {
            let all: Vec<_> = ARCHITECTURES.iter().map(|(of, _)| *of).collect();
            format!("it holds a model of the kind `{name}`; must be one of {}", all.join(", "))
        })?;
        one_whole_model(meta)?;
        let key = |key: &str| format!("{name}.{key}");
        // Checked before anything is allocated for each layer, row or column.
        let need = |of: &str, limit: &Limit| {
            let found = meta.count(&key(of))?.ok_or_else(|| format!("{name}.{of} is missing"))?;
            limit.check(found.into()).map_err(|what| format!("{name}.{of}: {what}"))?;
            Ok::<u32, String>(found)
        };
        let dim = need("embedding_length", &limits::DIM)?;
        let heads = need("attention.head_count", &limits::DIM)?;
        let kv_heads = meta.count(&key("attention.head_count_kv"))?.unwrap_or(heads);
        let head_dim = meta.count(&key("attention.key_length"))?.unwrap_or(dim / heads);
        if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || head_dim == 0 || head_dim % 2 == 1 {
            return Err(format!(
                "{heads} heads, {kv_heads} key/value heads of width {head_dim} make no attention"
            ));
        }
        for (of, wanted) in [
            ("attention.value_length", head_dim),
            ("rope.dimension_count", head_dim),
            ("attention.causal", 1),
            ("expert_count", 0),
            ("expert_used_count", 0),
        ] {
            meta.only(&key(of), wanted)?;
        }
        let layout = meta.text(&key("tensor_data_layout"))?;
        if layout.is_some_and(|layout| layout != "Meta AI original pth" || !paired) {
            return Err(format!("{} says that its tensors lie in another order", key("tensor_data_layout")));
        }
        let rows = tensors.get("token_embd.weight").and_then(|tensor| tensor.dims.get(1).copied());
        let vocab = rows.and_then(|n| u32::try_from(n).ok()).ok_or("token_embd.weight is not there")?;
        meta.only(&key("vocab_size"), vocab)?;
        let longest = meta.count(&key("context_length"))?.filter(|tokens| *tokens > 0);
        let theta = meta.number(&key("rope.freq_base"))?.unwrap_or(1e4);
        let scaling = scaling(meta, name, longest)?;
        let scaling = match frequencies {
            None => scaling,
            Some(_) if scaling != RopeScaling::None => {
                return Err("its rotary positions are scaled by keys and by rope_freqs.weight".to_owned());
            }
            Some(factors) => llama3(factors, theta, head_dim)?,
        };
        let has = |tensor: &str| tensors.contains_key(tensor);
        let qk_norm = has("blk.0.attn_q_norm.weight");
        if qk_norm && paired {
            // Nothing says whether the weights of such norms lie in pairs too.
            return Err(format!(
                "a model of the kind `{name}` has no norms of query heads (blk.0.attn_q_norm.weight)"
            ));
        }
        let layers = need("block_count", &limits::LAYERS)?;
        let ffn = need("feed_forward_length", &limits::FFN)?;
        let plain = ModelSpec::llama(layers, dim, heads, kv_heads, ffn, vocab);
        let eps = meta.number(&key("attention.layer_norm_rms_epsilon"))?;
        let model = ModelSpec {
            head_dim,
            attention_scale: f64::from(head_dim).powf(-0.5),
            positions: Positions::Rope { theta, scaling },
            norm: NormSpec {
                eps: eps.ok_or_else(|| format!("{} is missing", key("attention.layer_norm_rms_epsilon")))?,
                qk_norm,
                ..plain.norm
            },
            biases: Biases {
                qkv: has("blk.0.attn_q.bias"),
                out: has("blk.0.attn_output.bias"),
                ffn: has("blk.0.ffn_up.bias"),
            },
            tied_embeddings: !has("output.weight"),
            ..plain
        };
        let bounds = model.check_bounds();
        bounds.map_err(|e| format!("the model that it describes is not supported: {e}"))?;
        Ok(GgufArchitecture { model, paired, longest })
    }
}

/// Refuses what is not a whole model.
fn one_whole_model(meta: &Meta) -> Result<(), String> {
    if let Some(other) = meta.text("general.type")?.filter(|kind| *kind != "model") {
        return Err(format!("it holds no model but one `{other}`"));
    }
    match meta.count("split.count")? {
        Some(files @ 2..) => {
            Err(format!("it is one of {files} files; join them first (llama-gguf-split --merge)"))
        }
        _ => Ok(()),
    }
}

/// How the keys say that rotary positions are scaled, in either of their spellings.
fn scaling(meta: &Meta, name: &str, longest: Option<u32>) -> Result<RopeScaling, String> {
    let key = |key: &str| format!("{name}.rope.{key}");
    let kind = meta.text(&key("scaling.type"))?;
    let (factor, older) = (meta.number(&key("scaling.factor"))?, meta.number(&key("scale_linear"))?);
    let original = meta.count(&key("scaling.original_context_length"))?;
    if factor.is_some() && older.is_some() && factor != older {
        return Err(format!("{} and {} differ", key("scaling.factor"), key("scale_linear")));
    }
    // llama.cpp reads 0 as none, and 1 is none.
    let factor = factor.or(older).filter(|factor| *factor != 0.0 && *factor != 1.0);
    if factor.is_some_and(|factor| factor <= 0.0) {
        return Err(format!("{} must be above 0", key("scaling.factor")));
    }
    match (kind, factor) {
        (None | Some("none" | "linear"), None) => Ok(RopeScaling::None),
        (None | Some("linear"), Some(factor)) => Ok(RopeScaling::Linear { factor }),
        (Some("yarn"), Some(factor)) => {
            let original = original.or(longest).filter(|tokens| *tokens > 0);
            let original =
                original.ok_or_else(|| format!("{} is missing", key("scaling.original_context_length")))?;
            Ok(RopeScaling::Yarn { factor, beta_fast: 32.0, beta_slow: 1.0, original })
        }
        (Some(kind), _) => Err(format!(
            "its rotary positions are scaled as `{kind}` (factor {factor:?}), which cannot be read from GGUF; take \
             its Hugging Face form"
        )),
    }
}

/// The scaling of LLaMA 3 whose factors these are: what each wave's frequency is divided by.
fn llama3(factors: &[f32], theta: f64, head_dim: u32) -> Result<RopeScaling, String> {
    let (low, high, original) = LLAMA3;
    let factor = f64::from(factors.iter().copied().fold(1.0, f32::max));
    let wanted = (0..head_dim / 2).map(|pair| {
        let frequency = theta.powf(-2.0 * f64::from(pair) / f64::from(head_dim));
        let kept = ((f64::from(original) * frequency / TAU - low) / (high - low)).clamp(0.0, 1.0);
        (kept + (1.0 - kept) / factor).recip()
    });
    let same = factors.len() == (head_dim / 2) as usize
        && wanted.zip(factors).all(|(wanted, found)| (f64::from(*found) / wanted - 1.0).abs() < 1e-5);
    match same {
        true if factor == 1.0 => Ok(RopeScaling::None),
        true => Ok(RopeScaling::Llama3 { factor, low, high, original }),
        false => Err("its rope_freqs.weight is not that of LLaMA 3, and cannot be read from GGUF; take its \
                      Hugging Face form"
            .to_owned()),
    }
}

/// The name of a parameter there.
pub(super) fn theirs(ours: &str) -> Option<String> {
    match ours {
        "model.embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "model.norm.weight" => return Some("output_norm.weight".to_owned()),
        "lm_head.weight" => return Some("output.weight".to_owned()),
        _ => {}
    }
    let (layer, part) = ours.strip_prefix("model.layers.")?.split_once('.')?;
    let (part, kind) = part.rsplit_once('.')?;
    Some(format!("blk.{layer}.{}.{kind}", gguf_name(part)?))
}
