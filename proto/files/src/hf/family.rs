//! Families of models: a row for each, and what those of LLaMA's kind differ in.

use coxswain_types::model::Biases;

/// A family of models, by its `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Gpt2,
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    Bert,
    Roberta,
    Albert,
    T5,
    Bart,
    Longformer,
    BigBird,
}

/// Families whose configurations have the same keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FamilyKind {
    Gpt2,
    Llama(LlamaKind),
    Encoder,
    T5,
    Bart,
}

/// What families of LLaMA's kind differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LlamaKind {
    /// Maps that always have biases.
    pub(super) biases: Biases,
    /// Whether `attention_bias` says that all maps of attention have biases.
    pub(super) attention_bias: bool,
    /// Whether `mlp_bias` says that the maps of the feed-forward block have.
    pub(super) mlp_bias: bool,
    /// Whether its class norms the heads of queries and keys.
    pub(super) qk_norm: bool,
    /// What becomes of `sliding_window`.
    pub(super) window: SlidingWindow,
}

/// What a family makes of the key `sliding_window`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlidingWindow {
    /// Its class ignores it.
    Ignored,
    /// It is the window of all layers, if it is not null.
    Counts,
    /// It counts where `use_sliding_window` is true, and for some layers only, which no model here can follow.
    Refused,
}

const NO_BIASES: Biases = Biases { qkv: false, out: false, ffn: false };
const PLAIN: LlamaKind = LlamaKind {
    biases: NO_BIASES,
    attention_bias: false,
    mlp_bias: false,
    qk_norm: false,
    window: SlidingWindow::Ignored,
};

/// A family, its `model_type`, what the names of its classes begin with, what its tensors' names begin with below a class
/// with a head, and its kind.
type FamilyRow = (Family, &'static str, &'static str, Option<&'static str>, FamilyKind);

/// The families, those first that are tried first for an export.
const FAMILIES: [FamilyRow; 12] = [
    (
        Family::Llama,
        "llama",
        "Llama",
        Some("model"),
        FamilyKind::Llama(LlamaKind { attention_bias: true, mlp_bias: true, ..PLAIN }),
    ),
    (
        Family::Mistral,
        "mistral",
        "Mistral",
        Some("model"),
        FamilyKind::Llama(LlamaKind { window: SlidingWindow::Counts, ..PLAIN }),
    ),
    (
        Family::Qwen2,
        "qwen2",
        "Qwen2",
        Some("model"),
        FamilyKind::Llama(LlamaKind {
            biases: Biases { qkv: true, ..NO_BIASES },
            window: SlidingWindow::Refused,
            ..PLAIN
        }),
    ),
    (
        Family::Qwen3,
        "qwen3",
        "Qwen3",
        Some("model"),
        FamilyKind::Llama(LlamaKind {
            attention_bias: true,
            qk_norm: true,
            window: SlidingWindow::Refused,
            ..PLAIN
        }),
    ),
    (Family::Gpt2, "gpt2", "GPT2", Some("transformer"), FamilyKind::Gpt2),
    (Family::Bert, "bert", "Bert", Some("bert"), FamilyKind::Encoder),
    (Family::Roberta, "roberta", "Roberta", Some("roberta"), FamilyKind::Encoder),
    (Family::Albert, "albert", "Albert", Some("albert"), FamilyKind::Encoder),
    (Family::Longformer, "longformer", "Longformer", Some("longformer"), FamilyKind::Encoder),
    (Family::BigBird, "big_bird", "BigBird", Some("bert"), FamilyKind::Encoder),
    (Family::T5, "t5", "T5", None, FamilyKind::T5),
    (Family::Bart, "bart", "Bart", Some("model"), FamilyKind::Bart),
];

impl Family {
    /// All of them, those first that are tried first for an export.
    pub(super) fn all() -> impl Iterator<Item = Family> {
        FAMILIES.iter().map(|(family, ..)| *family)
    }

    fn row(self) -> &'static FamilyRow {
        // Every family has a row, as a test holds.
        FAMILIES.iter().find(|(of, ..)| *of == self).unwrap_or(&FAMILIES[0])
    }

    /// Its `model_type`.
    pub(super) fn name(self) -> &'static str {
        self.row().1
    }

    /// What the names of its classes begin with.
    pub(super) fn title(self) -> &'static str {
        self.row().2
    }

    /// What the names of its model's tensors begin with, below the class with a head.
    pub(super) fn prefix(self) -> Option<&'static str> {
        self.row().3
    }

    /// Which keys its configuration has.
    pub(super) fn kind(self) -> FamilyKind {
        self.row().4
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_has_a_row_of_its_own() {
        for family in Family::all() {
            assert_eq!(family.row().0, family);
        }
        let names: std::collections::BTreeSet<_> = Family::all().map(Family::name).collect();
        assert_eq!(names.len(), FAMILIES.len());
    }
}
