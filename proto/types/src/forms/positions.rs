//! How a token's place in the sequence is known: in the embedding, by rotation, or in the scores.

use serde::{Deserialize, Serialize};

use super::{FP32, FormRule};
use crate::bounds::limits;
use crate::bounds::{OutOfBounds, count, expect, number};
use crate::model::ModelSpec;
use crate::params::WeightRows;

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

impl Positions {
    /// Whether queries and keys are rotated.
    pub fn rotates(self) -> bool {
        matches!(self, Positions::Rope { .. })
    }

    /// Whether numbers are added to scores, by head and distance.
    pub fn adds_to_scores(self) -> bool {
        matches!(self, Positions::Alibi | Positions::RelativeBias { .. })
    }

    /// The longest sequence that has positions; `None` where none is too long.
    pub fn longest(self) -> Option<u32> {
        match self {
            Positions::Learned { max, .. } => Some(max),
            Positions::None
            | Positions::Sinusoidal
            | Positions::Rope { .. }
            | Positions::Alibi
            | Positions::RelativeBias { .. } => None,
        }
    }

    /// Parameters beside the token embedding of a stack whose names begin with `prefix`.
    pub(crate) fn embedding_weights(self, prefix: &str, of: &mut WeightRows<'_>) {
        if let Positions::Learned { max, offset } = self {
            let width = u64::from(of.model.embedding.dim);
            of.table(&format!("{prefix}.embed_positions.weight"), max + offset, width);
        }
    }

    /// Parameters that all layers of a stack share.
    pub(crate) fn layer_weights(self, name: &str, of: &mut WeightRows<'_>) {
        if let Positions::RelativeBias { buckets, .. } = self {
            let heads = of.model.heads;
            of.head_table(name, buckets, heads);
        }
    }

    /// Bytes of tables that a rank keeps for rotations of `width` numbers a head over so many positions.
    pub fn table_bytes(self, width: u32, positions: u32) -> u64 {
        if self.rotates() { FP32 * u64::from(width) * u64::from(positions) } else { 0 }
    }

    /// Bytes of what is added to the scores of `heads` heads: a number for each distance, of all and of each of `rows`
    /// samples in the backward pass, in sequences of so many tokens.
    pub fn score_bytes(self, heads: u64, tokens: u64, rows: u64) -> u64 {
        if self.adds_to_scores() { FP32 * heads * 2 * tokens * (1 + rows) } else { 0 }
    }

    /// Checks that the numbers lie within bounds.
    pub(crate) fn check_bounds(self) -> Result<(), OutOfBounds> {
        match self {
            Positions::None | Positions::Sinusoidal | Positions::Alibi => Ok(()),
            Positions::Learned { max, offset } => {
                count("model.max_positions", max, &limits::LENGTH)?;
                count("model.position_offset", offset, &limits::POSITION_OFFSET)
            }
            Positions::Rope { theta, scaling } => {
                number("model.rope_theta", theta, |x| x > 1.0, "a number above 1")?;
                scaling.check_bounds()
            }
            Positions::RelativeBias { buckets, max_distance } => {
                let key = "model.relative_buckets";
                count(key, buckets, &limits::BUCKETS)?;
                expect(buckets.is_multiple_of(4), key, || {
                    format!("found {buckets}; must be a multiple of 4")
                })?;
                let key = "model.relative_max_distance";
                count(key, max_distance, &limits::LENGTH)?;
                let least = buckets / 2 + 1;
                expect(max_distance >= least, key, || {
                    format!("found {max_distance}; must be {least} or more with {buckets} buckets")
                })
            }
        }
    }

    /// What it cannot be combined with.
    pub(crate) fn rules(model: &ModelSpec) -> Vec<FormRule> {
        vec![(
            model.positions == Positions::Sinusoidal && model.embedding.dim % 2 == 1,
            "model.positions",
            "sinusoidal has a cosine beside each sine; needs an even model.dim or model.embedding_dim",
        )]
    }
}

impl RopeScaling {
    fn check_bounds(self) -> Result<(), OutOfBounds> {
        let (factor, order, original) = match self {
            RopeScaling::None => return Ok(()),
            RopeScaling::Linear { factor } => (factor, None, None),
            RopeScaling::Llama3 { factor, low, high, original } => {
                let keys = ("model.rope_scaling.low", "model.rope_scaling.high");
                (factor, Some((keys, low, high)), Some(original))
            }
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original } => {
                let keys = ("model.rope_scaling.beta_slow", "model.rope_scaling.beta_fast");
                (factor, Some((keys, beta_slow, beta_fast)), Some(original))
            }
        };
        number("model.rope_scaling.factor", factor, |x| x >= 1.0, "a finite number, 1 or more")?;
        if let Some(((lower_key, upper_key), lower, upper)) = order {
            number(lower_key, lower, |x| x > 0.0, "a finite number above 0")?;
            number(upper_key, upper, |x| x > lower, &format!("a finite number above {lower:?}"))?;
        }
        original.map_or(Ok(()), |tokens| count("model.rope_scaling.original", tokens, &limits::LENGTH))
    }

    /// The length that the scaling was made for.
    pub fn scaled_length(self) -> Option<u32> {
        match self {
            RopeScaling::Llama3 { factor, original, .. } | RopeScaling::Yarn { factor, original, .. } => {
                Some((factor * f64::from(original)) as u32)
            }
            RopeScaling::Linear { .. } | RopeScaling::None => None,
        }
    }
}
