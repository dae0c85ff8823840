//! The feed-forward block: one product, or two of which one gates the other, a non-linearity, and the product back.

use serde::{Deserialize, Serialize};

use super::FormBytes;
use crate::params::WeightRows;

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

/// Names in GGUF files.
pub(super) const GGUF_NAMES: &[(&str, &str)] =
    &[("mlp.gate_proj", "ffn_gate"), ("mlp.up_proj", "ffn_up"), ("mlp.down_proj", "ffn_down")];

/// Names of non-linearities in the `transformers` library: of each, the one that is written comes first.
const HF_NAMES: [(&str, Activation); 8] = [
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("relu", Activation::Relu),
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
];

impl Activation {
    /// The non-linearity that the `transformers` library has under a name.
    pub fn of_hf(name: &str) -> Option<Activation> {
        HF_NAMES.iter().find(|(of, _)| *of == name).map(|(_, activation)| *activation)
    }

    /// The name of the non-linearity by itself in the `transformers` library.
    pub fn hf_name(self) -> &'static str {
        HF_NAMES.iter().find(|(_, of)| *of == self.gate()).map_or("gelu", |(name, _)| *name)
    }

    /// The gated form of a non-linearity, if there is one.
    pub fn with_gate(self) -> Option<Activation> {
        [Activation::Swiglu, Activation::Geglu, Activation::GegluTanh]
            .into_iter()
            .find(|of| of.gate() == self)
    }

    /// Matrices of the block.
    pub fn matrices(self) -> u64 {
        if self.gated() { 3 } else { 2 }
    }

    /// The parameters of the block whose names begin with `prefix`.
    pub(crate) fn weights(self, prefix: &str, of: &mut WeightRows<'_>) {
        let (dim, ffn) = (u64::from(of.model.dim), u64::from(of.model.ffn));
        let (units, bias) = (of.model.ffn, of.model.biases.ffn);
        if self.gated() {
            of.column(&format!("{prefix}.gate_proj"), [ffn, dim], units, bias);
        }
        of.column(&format!("{prefix}.up_proj"), [ffn, dim], units, bias);
        of.row_into_residual(&format!("{prefix}.down_proj"), [dim, ffn], units, bias);
    }

    /// FLOPs of a token's forward pass.
    pub fn flops(self, dim: u64, ffn: u64) -> u64 {
        2 * self.matrices() * dim * ffn
    }

    /// Of so many bytes of one product: what all products keep, which is what the backward takes for a moment too.
    pub fn activation_bytes(self, product: u64) -> FormBytes {
        FormBytes { kept: self.matrices() * product, backward: self.matrices() * product }
    }
}
