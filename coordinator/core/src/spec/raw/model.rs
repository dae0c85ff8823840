//! The `model` map of a job file.

use coxswain_types::model::{Architecture, NormKind, NormPlacement, NormSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::limits;
use super::super::schema::{one_of_presets, within, without_gate};

pub use super::super::forms::attention::{AttentionName, RawAttention};
pub use super::super::forms::positions::{PositionsName, RawRopeScaling, RopeScalingName};
pub use super::super::values::model::{ActivationName, BiasNames, HeadName};

/// `model`: a transformer. With no more than the required keys it is a decoder, LLaMA style: RMSNorm,
/// RoPE, SwiGLU, no biases.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawModel {
    /// The name of a known model, whose values then stand for all keys that are left out here. A key with
    /// the value `null` takes the default of this table instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = one_of_presets)]
    pub preset: Option<String>,
    /// `decoder`: each token sees those before it (GPT, LLaMA). `encoder`: each sees all (BERT).
    /// `encoder-decoder`: a decoder that also sees an encoder's output (T5, BART). Default: `decoder`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub architecture: Option<Architecture>,
    /// Number of transformer layers: of the decoder, or of an encoder that stands alone.
    #[schemars(transform = within(&limits::LAYERS))]
    pub layers: u32,
    /// Number of layers of the encoder in an `encoder-decoder`. Default: `layers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::LAYERS))]
    pub encoder_layers: Option<u32>,
    /// Width of the residual stream.
    #[schemars(transform = within(&limits::DIM))]
    pub dim: u32,
    /// Number of query heads. Divides `dim`, and `dim / heads` is even with `rope`, unless `head_dim` is set.
    #[schemars(transform = within(&limits::DIM))]
    pub heads: u32,
    /// Number of key/value heads. Divides `heads`. Default: `heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::DIM))]
    pub kv_heads: Option<u32>,
    /// Width of a head; even with `rope`. Default: `dim / heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::DIM))]
    pub head_dim: Option<u32>,
    /// Width of the feed-forward layer. Default: 8/3 of `dim`, rounded up to a multiple of 64, or 4 times
    /// `dim` where `activation` has no gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::FFN))]
    pub ffn: Option<u32>,
    /// Number of tokens that the model knows. With text at least 257: the bytes and the end of text; one
    /// more with the head `masked-lm`, whose last token is the one that hides others.
    #[schemars(transform = within(&limits::VOCAB))]
    pub vocab: u32,
    /// How a token's place is known: `rope` rotates queries and keys (arXiv 2104.09864), `learned` and
    /// `sinusoidal` (arXiv 1706.03762, a sine and a cosine of each wavelength in turn) add to the embedding,
    /// `alibi` (arXiv 2108.12409) and `relative` (T5's buckets, arXiv 1910.10683) add to scores, `none`
    /// leaves the causal mask. Default: `rope`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub positions: Option<PositionsName>,
    /// Base of the rotary position encoding. Default: 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 1))]
    pub rope_theta: Option<f64>,
    /// How the wavelengths of `rope` are stretched for longer sequences. Default: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RawRopeScaling>,
    /// The longest sequence of `learned` positions, which have a vector for each.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::LENGTH))]
    pub max_positions: Option<u32>,
    /// Rows of the table of `learned` positions before the first position's (2 in RoBERTa and BART).
    /// Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::POSITION_OFFSET))]
    pub position_offset: Option<u32>,
    /// Buckets of distances of `relative` positions, a multiple of 4. Default: 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::BUCKETS))]
    pub relative_buckets: Option<u32>,
    /// The distance from which on all are in the last bucket of `relative` positions; above half of
    /// `relative_buckets`. Default: 128.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::LENGTH))]
    pub relative_max_distance: Option<u32>,
    /// `rms` divides by the root of the mean square (arXiv 1910.07467), `layer` takes off the mean first
    /// and adds a bias (arXiv 1607.06450). Default: `rms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm: Option<NormKind>,
    /// `pre`: before each block and after the last layer. `post`: after each block's residual sum.
    /// Default: `pre`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_placement: Option<NormPlacement>,
    /// Added to the mean square or the variance. Default: 1e-5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub norm_eps: Option<f64>,
    /// Whether the numbers of each query and key head pass a norm before they are rotated, whose weights all heads of a
    /// layer share (Qwen3). Not with the attention `latent`. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub qk_norm: Option<bool>,
    /// The non-linearity of the feed-forward layer; those with `glu` have a gate (arXiv 2002.05202), and
    /// `-tanh` is the approximation of GPT-2. Default: `swiglu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub activation: Option<ActivationName>,
    /// Which linear maps of a layer add a bias: all, none, or a list of `qkv` (queries, keys, values),
    /// `out` (the attention's output) and `ffn`. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub biases: Option<BiasNames>,
    /// Which keys a query sees, and in what form they are kept: a kind alone (such as `linear`), or a map.
    /// Default: `full`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention: Option<RawAttention>,
    /// What products of queries and keys are multiplied by. Default: `head_dim^-0.5`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub attention_scale: Option<f64>,
    /// Width of the token embedding; another one than the model's is mapped to it (ALBERT). Default: `dim`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::DIM))]
    pub embedding_dim: Option<u32>,
    /// Token types, each with a learned vector (2 in BERT). Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::TOKEN_TYPES))]
    pub token_types: Option<u32>,
    /// Whether a norm follows the embedding. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_norm: Option<bool>,
    /// Whether the embedding is multiplied by the root of `dim`. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub embedding_scaled: Option<bool>,
    /// What follows the last layer. `lm`: logits of the next token. `masked-lm`: a dense layer and logits
    /// of the hidden token. `pooled`: the first token's output through a dense layer and tanh, then
    /// classes. Default: `masked-lm` for an encoder, else `lm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub head: Option<HeadName>,
    /// The non-linearity of the dense layer of the head `masked-lm`; always `gelu` in RoBERTa. Default: that
    /// of `activation`, without a gate.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = without_gate)]
    pub head_activation: Option<ActivationName>,
    /// Classes of the `pooled` head; 0 where features alone are wanted. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::CLASSES))]
    pub classes: Option<u32>,
    /// What logits are multiplied by (`dim^-0.5` in T5). Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub logit_scale: Option<f64>,
    /// Whether the output head uses the token embedding's weights. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tied_embeddings: Option<bool>,
    /// Groups of consecutive layers whose layers share their weights: layer l is of group
    /// floor(l / (layers / layer_groups)), as in ALBERT. Default: `layers`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1))]
    pub layer_groups: Option<u32>,
}

impl RawModel {
    /// The norms that the keys say.
    pub(in super::super) fn norm_spec(&self) -> NormSpec {
        let norm = NormSpec::new(
            self.norm.unwrap_or(NormKind::Rms),
            self.norm_placement.unwrap_or(NormPlacement::Pre),
            self.norm_eps.unwrap_or(1e-5),
        );
        NormSpec { qk_norm: self.qk_norm.unwrap_or(false), ..norm }
    }

    /// With the keys that say these norms.
    pub(in super::super) fn with_norm(self, norm: NormSpec) -> RawModel {
        let NormSpec { kind, placement, eps, qk_norm } = norm;
        RawModel {
            norm: Some(kind),
            norm_placement: Some(placement),
            norm_eps: Some(eps),
            qk_norm: Some(qk_norm),
            ..self
        }
    }
}
