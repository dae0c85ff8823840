//! Norms: what they do, and where in a model they stand.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::attention::{Attention, AttentionSize, Projection};
use super::{FP32, FormBytes, FormRule};
use crate::bounds::{OutOfBounds, number};
use crate::model::ModelSpec;
use crate::params::{Init, Split, WeightRows};

/// The norms of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NormSpec {
    /// Which.
    pub kind: NormKind,
    /// Where they stand.
    pub placement: NormPlacement,
    /// Added to the mean square or the variance.
    pub eps: f64,
    /// Whether the numbers of each query and key head are normed before they are rotated (Qwen3, after arXiv 2302.05442).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub qk_norm: bool,
}

/// What a norm does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Divides by the root of the mean square (arXiv 1910.07467).
    Rms,
    /// Takes off the mean, divides by the deviation, adds a bias (arXiv 1607.06450).
    Layer,
}

/// Where norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NormPlacement {
    /// Before each block, and once after the last layer (arXiv 2002.04745).
    Pre,
    /// After each block's residual sum (arXiv 1706.03762).
    Post,
}

/// Names in GGUF files.
pub(super) const GGUF_NAMES: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
];

impl NormKind {
    /// Whether a bias is added.
    pub fn has_bias(self) -> bool {
        self == NormKind::Layer
    }

    /// Numbers that are kept of each vector for the backward pass: the deviation, and where it is taken off the mean.
    fn statistics(self) -> u64 {
        match self {
            NormKind::Rms => 1,
            NormKind::Layer => 2,
        }
    }
}

impl NormPlacement {
    /// Whether a stack ends with a norm of its own.
    pub fn ends_stack(self) -> bool {
        self == NormPlacement::Pre
    }
}

/// A norm inside of an attention block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProjectionNorm {
    /// What its name begins with, behind that of the block.
    pub name: &'static str,
    /// What its vectors are.
    pub over: NormOver,
}

/// The vectors of a norm inside of an attention block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormOver {
    /// The numbers of each head. All heads share the weights, so each logical shard is a use of them.
    Heads,
    /// All of so many numbers, which every tensor rank has whole.
    Whole(u32),
}

impl ProjectionNorm {
    /// How many numbers a vector has.
    pub fn width(self, head_dim: u32) -> u64 {
        match self.over {
            NormOver::Heads => head_dim.into(),
            NormOver::Whole(len) => len.into(),
        }
    }

    fn split(self) -> Split {
        match self.over {
            NormOver::Heads => Split::Along { dim: 0, units: 1 },
            NormOver::Whole(_) => Split::Replicated,
        }
    }

    /// Its parameters, in an attention block whose names begin with `prefix`.
    pub(crate) fn weights(self, prefix: &str, of: &mut WeightRows<'_>) {
        let (name, len) = (format!("{prefix}{}", self.name), self.width(of.model.head_dim));
        of.model.norm.weights(&name, len, self.split(), of);
    }
}

impl NormSpec {
    /// The norm of what a projection of attention makes, if there is one.
    pub fn after(self, form: Attention, projection: Projection) -> Option<ProjectionNorm> {
        match (form, projection) {
            (Attention::Latent { rank, .. }, Projection::Latent) => {
                Some(ProjectionNorm { name: "kv_norm", over: NormOver::Whole(rank) })
            }
            (_, Projection::Query) if self.qk_norm => {
                Some(ProjectionNorm { name: "q_norm", over: NormOver::Heads })
            }
            (_, Projection::Key) if self.qk_norm => {
                Some(ProjectionNorm { name: "k_norm", over: NormOver::Heads })
            }
            _ => None,
        }
    }

    /// What the norms inside of an attention block keep in one shard: what they take, and their statistics.
    pub fn attention_bytes(self, form: Attention, of: &AttentionSize) -> FormBytes {
        let kept = |projection: Projection| {
            let Some(norm) = self.after(form, projection) else { return 0 };
            let (tokens, numbers, vectors) = match (norm.over, projection) {
                (NormOver::Whole(len), _) => (of.tokens, len.into(), 1),
                (NormOver::Heads, Projection::Query) => (of.tokens, of.q, of.heads),
                (NormOver::Heads, _) => (of.key_tokens, of.kv, of.key_heads),
            };
            of.bytes * tokens * numbers + self.statistics_bytes(tokens * vectors)
        };
        FormBytes { kept: Projection::ALL.into_iter().map(kept).sum(), backward: 0 }
    }

    /// Norms of blocks and stacks.
    pub fn new(kind: NormKind, placement: NormPlacement, eps: f64) -> NormSpec {
        NormSpec { kind, placement, eps, qk_norm: false }
    }

    /// The parameters of the norm `name` over vectors of `len` numbers; every tensor rank has them whole.
    pub(crate) fn weights(self, name: &str, len: u64, split: Split, of: &mut WeightRows<'_>) {
        of.vector(format!("{name}.weight"), len, split, Init::Ones);
        if self.kind.has_bias() {
            of.vector(format!("{name}.bias"), len, split, Init::Zeros);
        }
    }

    /// Bytes of what is kept of so many vectors beside themselves.
    pub fn statistics_bytes(self, vectors: u64) -> u64 {
        self.kind.statistics() * FP32 * vectors
    }

    /// What norms cannot be combined with.
    pub(crate) fn rules(model: &ModelSpec) -> Vec<FormRule> {
        let latent = matches!(model.attention, Attention::Latent { .. });
        vec![(
            model.norm.qk_norm && latent,
            "model.qk_norm",
            "the keys of model.attention latent are made from a latent that has a norm already; must be false",
        )]
    }

    /// Checks that the numbers lie within bounds.
    pub(crate) fn check_bounds(self) -> Result<(), OutOfBounds> {
        number("model.norm_eps", self.eps, |x| x > 0.0 && x < 1.0, "a number above 0 and below 1")
    }
}
