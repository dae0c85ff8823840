//! The transformer that a job describes, composed of parts that any of the known families shares.
//!
//! The numbers are checked and the defaults filled in by `coxswain_core::spec`; what weights follow
//! from them is in [`crate::params`]. Parts that come in several forms (attention, feed-forward, positions,
//! norms) are in [`crate::forms`], with all that is known of each form.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use crate::forms::{Activation, Attention, NormKind, NormPlacement, NormSpec, Positions, RopeScaling};

/// A transformer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Which stacks of layers there are.
    pub architecture: Architecture,
    /// Number of layers: of the decoder, or of an encoder that stands alone.
    pub layers: u32,
    /// Number of layers of the encoder in front of a decoder; 0 unless there are both.
    pub encoder_layers: u32,
    /// Width of the residual stream.
    pub dim: u32,
    /// Number of query heads.
    pub heads: u32,
    /// Number of key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of a head.
    pub head_dim: u32,
    /// Width of the feed-forward layer.
    pub ffn: u32,
    /// Number of tokens that the model knows.
    pub vocab: u32,
    /// How a token's place in the sequence is known.
    pub positions: Positions,
    /// The norms.
    pub norm: NormSpec,
    /// The non-linearity of the feed-forward layer.
    pub activation: Activation,
    /// Which linear maps of a layer add a bias.
    pub biases: Biases,
    /// Which keys a query sees, and in what form they are kept.
    pub attention: Attention,
    /// What products of queries and keys are multiplied by, most often `head_dim^-0.5`.
    pub attention_scale: f64,
    /// What happens to tokens before the first layer.
    pub embedding: EmbeddingSpec,
    /// What follows the last layer.
    pub head: Head,
    /// What logits are multiplied by: 1, or `dim^-0.5` in T5.
    pub logit_scale: f64,
    /// Whether the output head uses the token embedding's weights.
    pub tied_embeddings: bool,
    /// Groups of consecutive layers whose layers share their weights (ALBERT, arXiv 1909.11942): layer `l` is
    /// of group `floor(l / (layers / layer_groups))`. `layers` where each has its own.
    pub layer_groups: u32,
}

/// Which stacks of layers there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Architecture {
    /// Each token sees those before it (GPT, LLaMA).
    Decoder,
    /// Each token sees all (BERT, RoBERTa).
    Encoder,
    /// A decoder that also sees an encoder's output (T5, BART).
    EncoderDecoder,
}

/// Which linear maps of a layer add a bias.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Biases {
    /// Queries, keys and values.
    pub qkv: bool,
    /// The attention's output.
    pub out: bool,
    /// The feed-forward layer's maps.
    pub ffn: bool,
}

/// What happens to tokens before the first layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmbeddingSpec {
    /// Width of the table; another one than the model's is mapped to it (ALBERT).
    pub dim: u32,
    /// Number of token types, each with a learned vector (2 in BERT); 0 for none.
    pub types: u32,
    /// Whether a norm follows.
    pub norm: bool,
    /// Whether it is multiplied by the root of the model's width.
    pub scaled: bool,
}

/// What follows the last layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Head {
    /// Logits of the next token.
    Lm,
    /// A dense layer with activation and norm, then logits of the token itself, with a bias.
    MaskedLm {
        /// Of the dense layer; it has no gate.
        activation: Activation,
    },
    /// The first token's output through a dense layer and tanh, then logits of classes.
    Pooled {
        /// How many; 0 where features alone are wanted.
        classes: u32,
    },
}

impl ModelSpec {
    /// Layers of both stacks. They are counted through: the encoder's come first.
    pub fn all_layers(&self) -> u32 {
        self.encoder_layers + self.layers
    }

    /// Whether a token of this layer sees none that follow it.
    pub fn causal(&self, layer: u32) -> bool {
        self.architecture != Architecture::Encoder && layer >= self.encoder_layers
    }

    /// Whether a layer sees the encoder's output.
    pub fn crosses(&self, layer: u32) -> bool {
        self.architecture == Architecture::EncoderDecoder && layer >= self.encoder_layers
    }

    /// Whether whole heads are rotated.
    pub fn rotates_heads(&self) -> bool {
        self.positions.rotates() && self.attention.rotated(self.head_dim) == self.head_dim
    }

    /// Bytes that generation keeps of so many tokens over all layers and tensor ranks of a decoder, where a number has
    /// `bytes`; what its layers keep of an encoder's output is not counted.
    pub fn cache_bytes(&self, tokens: u32, bytes: u64) -> u64 {
        u64::from(self.layers) * self.attention.cache_bytes(self, tokens, bytes)
    }

    /// A small decoder, LLaMA style, for tests: RMSNorm, RoPE, SwiGLU, no biases.
    pub fn llama(layers: u32, dim: u32, heads: u32, kv_heads: u32, ffn: u32, vocab: u32) -> ModelSpec {
        let head_dim = dim / heads.max(1);
        ModelSpec {
            architecture: Architecture::Decoder,
            layers,
            encoder_layers: 0,
            dim,
            heads,
            kv_heads,
            head_dim,
            ffn,
            vocab,
            positions: Positions::Rope { theta: 1e4, scaling: RopeScaling::None },
            norm: NormSpec::new(NormKind::Rms, NormPlacement::Pre, 1e-5),
            activation: Activation::Swiglu,
            biases: Biases::default(),
            attention: Attention::Full,
            attention_scale: f64::from(head_dim).powf(-0.5),
            embedding: EmbeddingSpec { dim, types: 0, norm: false, scaled: false },
            head: Head::Lm,
            logit_scale: 1.0,
            tied_embeddings: false,
            layer_groups: layers,
        }
    }
}
