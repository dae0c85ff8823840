//! Positions in a job file: their keys, the form that they say, and the keys that say a form.

use coxswain_types::model::{Positions, RopeScaling};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::check::Faults;
use super::super::limits;
use super::super::raw::RawModel;
use super::super::schema::within;

/// `model.rope_scaling`: how rotary positions reach beyond the length that a model was trained on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRopeScaling {
    /// `linear` stretches all wavelengths (arXiv 2306.15595), `llama3` the long ones (arXiv 2407.21783),
    /// `yarn` by parts and with sharper scores (arXiv 2309.00071).
    pub kind: RopeScalingName,
    /// By how much.
    #[schemars(extend("minimum" = 1))]
    pub factor: f64,
    /// The length that the model was trained on at first; required with `llama3` and `yarn`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::LENGTH))]
    pub original: Option<u32>,
    /// With `llama3`, waves longer than `original` over this are stretched by the factor; below
    /// `high`. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub low: Option<f64>,
    /// With `llama3`, waves shorter than `original` over this are not stretched. Default: 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub high: Option<f64>,
    /// With `yarn`, rotations over `original` above which a dimension is not stretched. Default: 32.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub beta_fast: Option<f64>,
    /// With `yarn`, rotations over `original` below which a dimension is stretched by the factor;
    /// below `beta_fast`.
    /// Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub beta_slow: Option<f64>,
}

/// How a token's place is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PositionsName {
    /// Rotated queries and keys.
    Rope,
    /// A learned vector for each.
    Learned,
    /// Sines and cosines.
    Sinusoidal,
    /// Slopes.
    Alibi,
    /// T5's buckets.
    Relative,
    /// Not at all.
    None,
}

impl PositionsName {
    /// The word.
    pub fn word(self) -> &'static str {
        match self {
            PositionsName::Rope => "rope",
            PositionsName::Learned => "learned",
            PositionsName::Sinusoidal => "sinusoidal",
            PositionsName::Alibi => "alibi",
            PositionsName::Relative => "relative",
            PositionsName::None => "none",
        }
    }
}

/// How wavelengths are stretched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum RopeScalingName {
    /// All by one factor.
    Linear,
    /// Long ones.
    Llama3,
    /// By parts.
    Yarn,
}

/// The positions that a job file says.
pub(in super::super) fn read(raw: &RawModel, faults: &mut Faults) -> Positions {
    let name = raw.positions.unwrap_or(PositionsName::Rope);
    check_keys(raw, name, faults);
    match name {
        PositionsName::None => Positions::None,
        PositionsName::Sinusoidal => Positions::Sinusoidal,
        PositionsName::Alibi => Positions::Alibi,
        PositionsName::Learned => {
            let with = "model.positions learned";
            let max = faults.need("model.max_positions", raw.max_positions, with, &limits::LENGTH);
            let offset = raw.position_offset.unwrap_or(0);
            faults.count("model.position_offset", offset, &limits::POSITION_OFFSET);
            Positions::Learned { max, offset }
        }
        PositionsName::Rope => {
            let theta = raw.rope_theta.unwrap_or(10_000.0);
            faults.number("model.rope_theta", theta, |x| x > 1.0, "a number above 1");
            let scaling = raw.rope_scaling.as_ref().map_or(RopeScaling::None, |raw| scaling(raw, faults));
            Positions::Rope { theta, scaling }
        }
        PositionsName::Relative => relative(raw, faults),
    }
}

fn check_keys(raw: &RawModel, name: PositionsName, faults: &mut Faults) {
    use PositionsName::{Learned, Relative, Rope};
    for (key, given, of) in [
        ("rope_theta", raw.rope_theta.is_some(), Rope),
        ("rope_scaling", raw.rope_scaling.is_some(), Rope),
        ("max_positions", raw.max_positions.is_some(), Learned),
        ("position_offset", raw.position_offset.is_some(), Learned),
        ("relative_buckets", raw.relative_buckets.is_some(), Relative),
        ("relative_max_distance", raw.relative_max_distance.is_some(), Relative),
    ] {
        let with = format!("model.positions {} only", of.word());
        faults.only_with(&format!("model.{key}"), given && name != of, &with);
    }
}

fn relative(raw: &RawModel, faults: &mut Faults) -> Positions {
    let (buckets, max_distance) =
        (raw.relative_buckets.unwrap_or(32), raw.relative_max_distance.unwrap_or(128));
    let path = "model.relative_buckets";
    let fits = faults.count(path, buckets, &limits::BUCKETS);
    if fits && !buckets.is_multiple_of(4) {
        let near = buckets.next_multiple_of(4);
        let why = "half are for each side, and half of those for single distances";
        faults.never(path, format!("found {buckets}; must be a multiple of 4 such as {near}: {why}"));
    }
    let path = "model.relative_max_distance";
    if faults.count(path, max_distance, &limits::LENGTH) && fits && max_distance <= buckets / 2 {
        let least = buckets / 2 + 1;
        let must = format!("must be {least} or more with {buckets} buckets");
        faults.add(path, format!("found {max_distance}; {must}: half of them are for single distances"));
    }
    Positions::RelativeBias { buckets, max_distance }
}

fn scaling(raw: &RawRopeScaling, faults: &mut Faults) -> RopeScaling {
    use RopeScalingName::{Linear, Llama3, Yarn};
    let path = |key: &str| format!("model.rope_scaling.{key}");
    let factor = raw.factor;
    faults.number(&path("factor"), factor, |x| x >= 1.0, "a finite number, 1 or more");
    for (key, given, of, word) in [
        ("low", raw.low.is_some(), Llama3, "llama3"),
        ("high", raw.high.is_some(), Llama3, "llama3"),
        ("beta_fast", raw.beta_fast.is_some(), Yarn, "yarn"),
        ("beta_slow", raw.beta_slow.is_some(), Yarn, "yarn"),
    ] {
        let with = format!("model.rope_scaling.kind {word} only");
        faults.only_with(&path(key), given && raw.kind != of, &with);
    }
    let mut original = |word: &str| {
        let with = format!("model.rope_scaling.kind {word}");
        faults.need(&path("original"), raw.original, &with, &limits::LENGTH)
    };
    match raw.kind {
        Linear => {
            let given = raw.original.is_some();
            faults.only_with(&path("original"), given, "model.rope_scaling.kind llama3 and yarn only");
            RopeScaling::Linear { factor }
        }
        Llama3 => {
            let original = original("llama3");
            let (low, high) = (raw.low.unwrap_or(1.0), raw.high.unwrap_or(4.0));
            check_order(&path("low"), low, &path("high"), high, faults);
            RopeScaling::Llama3 { factor, low, high, original }
        }
        Yarn => {
            let original = original("yarn");
            let (beta_fast, beta_slow) = (raw.beta_fast.unwrap_or(32.0), raw.beta_slow.unwrap_or(1.0));
            check_order(&path("beta_slow"), beta_slow, &path("beta_fast"), beta_fast, faults);
            RopeScaling::Yarn { factor, beta_fast, beta_slow, original }
        }
    }
}

/// Both are above 0, and the second is above the first: between them lies what is stretched by some.
fn check_order(lower_path: &str, lower: f64, upper_path: &str, upper: f64, faults: &mut Faults) {
    let fits = faults.number(lower_path, lower, |x| x > 0.0, "a finite number above 0");
    let must = format!("a finite number above {} ({lower:?})", lower_path);
    if faults.number(upper_path, upper, |x| x > 0.0, &must) && fits && upper <= lower {
        faults.add(upper_path, format!("found {upper:?}; must be {must}"));
    }
}

/// A model with the keys that say these positions.
pub(in super::super) fn written(mut raw: RawModel, positions: Positions) -> RawModel {
    raw.positions = Some(match positions {
        Positions::None => PositionsName::None,
        Positions::Sinusoidal => PositionsName::Sinusoidal,
        Positions::Alibi => PositionsName::Alibi,
        Positions::Learned { max, offset } => {
            (raw.max_positions, raw.position_offset) = (Some(max), Some(offset));
            PositionsName::Learned
        }
        Positions::Rope { theta, scaling } => {
            (raw.rope_theta, raw.rope_scaling) = (Some(theta), written_scaling(scaling));
            PositionsName::Rope
        }
        Positions::RelativeBias { buckets, max_distance } => {
            (raw.relative_buckets, raw.relative_max_distance) = (Some(buckets), Some(max_distance));
            PositionsName::Relative
        }
    });
    raw
}

fn written_scaling(scaling: RopeScaling) -> Option<RawRopeScaling> {
    let raw = |kind, factor| RawRopeScaling {
        kind,
        factor,
        original: None,
        low: None,
        high: None,
        beta_fast: None,
        beta_slow: None,
    };
    match scaling {
        RopeScaling::None => None,
        RopeScaling::Linear { factor } => Some(raw(RopeScalingName::Linear, factor)),
        RopeScaling::Llama3 { factor, low, high, original } => Some(RawRopeScaling {
            original: Some(original),
            low: Some(low),
            high: Some(high),
            ..raw(RopeScalingName::Llama3, factor)
        }),
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original } => Some(RawRopeScaling {
            original: Some(original),
            beta_fast: Some(beta_fast),
            beta_slow: Some(beta_slow),
            ..raw(RopeScalingName::Yarn, factor)
        }),
    }
}
