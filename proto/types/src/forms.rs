//! The forms of a model's parts, each with all that is known of it: parameters, FLOPs, bytes that a step and generation
//! keep, mask, what it can be combined with, and its names in other libraries' files.
//!
//! - [`attention`]: which keys a query sees, and in what form they are kept; `attention::cost` what that takes.
//! - [`ffn`]: the feed-forward block and its non-linearity.
//! - [`positions`]: how a token's place is known.
//! - [`norm`]: what norms do, and where they stand.
//!
//! The parameter table, the bounds, the planner, the engine and the imports ask here. What a form computes is in the
//! engine's module of the same name, and the keys of a job file that choose it are in `coxswain_core::spec::forms`.

pub mod attention;
pub mod ffn;
pub mod norm;
pub mod positions;

pub use attention::Attention;
pub use ffn::Activation;
pub use norm::{NormKind, NormPlacement, NormSpec};
pub use positions::{Positions, RopeScaling};

/// Bytes of an fp32 number.
pub const FP32: u64 = 4;

/// What a form keeps and takes beside what all forms do, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FormBytes {
    /// Kept from the forward to the backward.
    pub kept: u64,
    /// For a moment of the backward.
    pub backward: u64,
}

impl std::ops::Add for FormBytes {
    type Output = FormBytes;

    fn add(self, other: FormBytes) -> FormBytes {
        FormBytes { kept: self.kept + other.kept, backward: self.backward + other.backward }
    }
}

/// A combination that is refused: whether it is there, the key of a job file that is at fault, and what it must be and
/// why.
pub(crate) type FormRule = (bool, &'static str, &'static str);

/// The name in GGUF files of a parameter of a layer, by what stands behind the layer's number.
pub fn gguf_name(part: &str) -> Option<&'static str> {
    let tables = [attention::GGUF_NAMES, ffn::GGUF_NAMES, norm::GGUF_NAMES];
    tables.into_iter().flatten().find(|(ours, _)| *ours == part).map(|(_, theirs)| *theirs)
}
