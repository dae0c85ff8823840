//! The transformer that a job describes, composed of parts that any of the known families shares.
//!
//! The numbers are checked and the defaults filled in by `coxswain_core::spec`; what weights follow
//! from them is in [`crate::params`].

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

/// How a token's place in the sequence is known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Positions {
    /// Not at all, but for the causal mask.
    None,
    /// A sine and a cosine of each wavelength in turn, added to the embedding (arXiv 1706.03762, 3.5).
    Sinusoidal,
    /// A learned vector added to the embedding.
    Learned {
        /// The longest sequence.
        max: u32,
        /// Rows of the table that stand before the first position's (2 in RoBERTa and BART).
        offset: u32,
    },
    /// Queries and keys are rotated (arXiv 2104.09864).
    Rope {
        /// The base of the wavelengths.
        theta: f64,
        /// How wavelengths are stretched for longer sequences.
        scaling: RopeScaling,
    },
    /// Scores fall with distance, by a slope for each head (arXiv 2108.12409).
    Alibi,
    /// A learned number for each head and bucket of distances is added to scores (T5, arXiv
    /// 1910.10683).
    RelativeBias {
        /// Number of buckets.
        buckets: u32,
        /// From this distance on, all are in the last bucket.
        max_distance: u32,
    },
}

/// How the wavelengths of rotary positions are stretched.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All by one factor (arXiv 2306.15595).
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Long waves by the factor, short ones not, those between by some (LLaMA 3, arXiv 2407.21783).
    Llama3 {
        /// The factor.
        factor: f64,
        /// Waves longer than `original` over this are stretched by the factor.
        low: f64,
        /// Waves shorter than `original` over this are not stretched.
        high: f64,
        /// The length that the model was trained on at first.
        original: u32,
    },
    /// By parts, with sharper scores (YaRN, arXiv 2309.00071).
    Yarn {
        /// The factor.
        factor: f64,
        /// Rotations over `original` above which a dimension is not stretched.
        beta_fast: f64,
        /// Rotations over `original` below which a dimension is stretched by the factor.
        beta_slow: f64,
        /// The length that the model was trained on at first.
        original: u32,
    },
}

/// The norms of a model.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct NormSpec {
    /// Which.
    pub kind: NormKind,
    /// Where they stand.
    pub placement: NormPlacement,
    /// Added to the mean square or the variance.
    pub eps: f64,
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

/// The non-linearity of the feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `max(x, 0)`.
    Relu,
    /// `x Phi(x)` (arXiv 1606.08415).
    Gelu,
    /// The same, with its approximation by tanh.
    GeluTanh,
    /// `x sigmoid(x)` (arXiv 1702.03118).
    Silu,
    /// `silu(gate) * up` (arXiv 2002.05202).
    Swiglu,
    /// `gelu(gate) * up`.
    Geglu,
    /// The same, with the approximation by tanh.
    GegluTanh,
}

impl Activation {
    /// Whether one product gates another.
    pub fn gated(self) -> bool {
        self.gate() != self
    }

    /// The non-linearity by itself: that of the gate, where there is one.
    pub fn gate(self) -> Activation {
        match self {
            Activation::Swiglu => Activation::Silu,
            Activation::Geglu => Activation::Gelu,
            Activation::GegluTanh => Activation::GeluTanh,
            Activation::Relu | Activation::Gelu | Activation::GeluTanh | Activation::Silu => self,
        }
    }
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

/// Which keys a query sees, and in what form they are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Attention {
    /// All that the architecture lets it see.
    Full,
    /// The nearest ones. Causal: the last `window`, itself included. Else so many on each side.
    Window {
        /// How many.
        window: u32,
    },
    /// A window, and the first tokens of the sequence, which see all and are seen by all (arXiv
    /// 2004.05150).
    Longformer {
        /// As in [`Attention::Window`].
        window: u32,
        /// How many tokens are global.
        global: u32,
        /// Whether global tokens have projections of their own.
        projections: bool,
    },
    /// By blocks: a window, the first and the last blocks, which see all, and some drawn at random, of those
    /// not seen already, for each layer, head and row of blocks (arXiv 2007.14062). An encoder sees all of a
    /// sequence that is too short for so many blocks ([`crate::mask::bigbird_sees_all`]).
    BigBird {
        /// Tokens in a block.
        block: u32,
        /// Width of the window, in blocks; odd.
        window: u32,
        /// Global blocks at the start.
        global: u32,
        /// Global blocks at the end, in an encoder.
        last: u32,
        /// Random blocks of a row.
        random: u32,
    },
    /// `phi(q) (phi(k)^T v)` with phi = elu + 1 (arXiv 2006.16236): linear in the length.
    Linear {
        /// Whether each head forgets by a learned share at each token (arXiv 2312.06635).
        decay: bool,
    },
    /// A causal window, and one learned summary for each finished block of older keys and values (after
    /// arXiv 1911.05507).
    Compressed {
        /// As in [`Attention::Window`].
        window: u32,
        /// Tokens of a summary.
        block: u32,
    },
    /// Keys and values are made from one low-rank latent a token (multi-head latent attention, arXiv
    /// 2405.04434).
    Latent {
        /// Width of the latent.
        rank: u32,
        /// Width of the rotated part of a head, whose key all heads share; the rest has no positions.
        rope_dim: u32,
    },
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
            norm: NormSpec { kind: NormKind::Rms, placement: NormPlacement::Pre, eps: 1e-5 },
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
