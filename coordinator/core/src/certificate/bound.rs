//! What a layout is held to, and whether it keeps to it.

use coxswain_types::JobSpec;
use coxswain_types::job::{Precision, Reduction};
use serde::Serialize;

use super::record::{Deviation, Differences};

/// What a layout is held to.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Bound {
    /// The same bits throughout.
    Bits,
    /// Rounding: sums are added in another order than in the reference.
    Close {
        /// The largest relative difference of a loss.
        loss: f64,
        /// The largest relative difference of a parameter's gradient norm in the first step.
        first_parameter_norm: f64,
        /// Why bits are not promised, and what would promise them.
        reason: String,
    },
}

/// Relative differences that other orders of fp32 sums account for. Measured ones are about 1e-7 for
/// losses; a slice that is counted twice or not at all is far above.
const FP32: (f64, f64) = (1e-5, 1e-4);

/// The same where every product is rounded to 8 bits (bf16) or 11 (fp16) of mantissa: 2^-8 is 4e-3,
/// and a few of those roundings add up.
const LOW_PRECISION: (f64, f64) = (2e-2, 2e-2);

/// What `spec` is held to when it is compared with `reference`: the same job in another layout.
pub fn bound(reference: &JobSpec, spec: &JobSpec, strict: bool) -> Bound {
    match reason(reference, spec) {
        Some(reason) if !strict => {
            let low = spec.train.precision != Precision::Fp32;
            let (loss, first_parameter_norm) = if low { LOW_PRECISION } else { FP32 };
            Bound::Close { loss, first_parameter_norm, reason }
        }
        _ => Bound::Bits,
    }
}

/// Why two layouts of a job need not have the same bits; `None` where they must.
pub(super) fn reason(one: &JobSpec, other: &JobSpec) -> Option<String> {
    let mut reasons = Vec::new();
    let shards = [one, other].map(|spec| spec.train.shards(spec.layout.tensor));
    if shards[0] != shards[1] {
        let [one, other] = shards;
        let most = one.max(other);
        // Only trees over a power of two of shards are the same for every number of ranks.
        let remedy = if most.is_power_of_two() {
            format!("; with train.tensor_shards={most} the bits are the same")
        } else {
            String::new()
        };
        reasons.push(format!("products are sums of {other} instead of {one} partial products{remedy}"));
    } else if other.train.tensor_shards.is_none()
        && shards[1] > 1
        && one.layout.sequence_parallel != other.layout.sequence_parallel
    {
        reasons.push(format!(
            "gradients of norms are summed by parts of the sequence; with train.tensor_shards={} the bits are the same",
            shards[1]
        ));
    }
    let fast = other.train.reduction == Reduction::Fast;
    if fast && one.train.gradient_groups != other.train.gradient_groups {
        reasons.push(format!(
            "gradients are summed in {} instead of {} runs; with train.reduction=canonical the bits are the same",
            other.train.gradient_groups, one.train.gradient_groups
        ));
    }
    (!reasons.is_empty()).then(|| reasons.join("; "))
}

impl Bound {
    /// What breaks it, for people; `None` where it holds.
    pub fn broken(&self, found: &Differences) -> Option<String> {
        if let Some(missing) = &found.missing {
            return Some(missing.clone());
        }
        match self {
            Bound::Bits => other_bits(found),
            Bound::Close { loss, first_parameter_norm, .. } => {
                let rows = [
                    ("the loss", &found.loss, *loss),
                    (
                        "the first gradient norm of a parameter",
                        &found.first_parameter_norm,
                        *first_parameter_norm,
                    ),
                ];
                // Written so that a difference that is not a number breaks it.
                let beyond = |difference: &Deviation, most: f64| {
                    difference.relative.partial_cmp(&most).is_none_or(|order| order.is_gt())
                };
                let row = rows.into_iter().find(|(_, difference, most)| beyond(difference, *most));
                row.map(|(what, difference, most)| {
                    format!("{what} differs by {}; at most {most:e} is allowed", said(difference))
                })
            }
        }
    }
}

fn other_bits(found: &Differences) -> Option<String> {
    let rows = [
        ("the loss", &found.loss),
        ("the gradient norm", &found.gradient_norm),
        ("the gradient norm of a parameter", &found.parameter_norm),
    ];
    if let Some((what, difference)) = rows.into_iter().find(|(_, difference)| difference.other_bits > 0) {
        return Some(format!("{what} differs by {}; the same bits are wanted", said(difference)));
    }
    (found.other_tensors > 0).then(|| {
        format!("{} of {} final tensors have other bits; none may", found.other_tensors, found.tensors)
    })
}

/// A difference and where it is, such as `3.1e-7 (step 2, model.norm.weight)`.
pub(super) fn said(difference: &Deviation) -> String {
    let place = match (difference.step, &difference.parameter) {
        (Some(step), Some(parameter)) => format!("step {step}, {parameter}"),
        (Some(step), None) => format!("step {step}"),
        (None, _) => "validation".to_owned(),
    };
    let size = if difference.relative.is_finite() {
        format!("{:.1e}", difference.relative)
    } else {
        "no finite number".to_owned()
    };
    format!("{size} ({place})")
}
