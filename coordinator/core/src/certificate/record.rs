//! What a run left, as far as it is compared; and what two of them differ in.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

/// What a run left. A value that is not a finite number is NaN.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunRecord {
    /// The mean loss of each step.
    pub losses: BTreeMap<u64, f64>,
    /// The global gradient norm of each step.
    pub norms: BTreeMap<u64, f64>,
    /// The gradient norm of each parameter, by step and name.
    pub parameter_norms: BTreeMap<u64, BTreeMap<String, f64>>,
    /// The validation loss after the last step, where there is a validation split.
    pub validation: Option<f64>,
    /// The digest of each final tensor, weights and optimizer state alike.
    pub digests: BTreeMap<String, String>,
}

/// How far numbers of one kind are apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Deviation {
    /// The largest relative difference, in the larger of the two sizes. Infinite (`null` in JSON) where
    /// one side has no number or none that is finite.
    pub relative: f64,
    /// The step of the largest; `None` for the validation loss, and where all have the same bits.
    pub step: Option<u64>,
    /// Whose it is, where each parameter has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter: Option<String>,
    /// How many values have other bits.
    pub other_bits: u64,
}

impl Deviation {
    fn note(&mut self, step: Option<u64>, parameter: Option<&str>, own: Option<f64>, wanted: Option<f64>) {
        if own.map(f64::to_bits) == wanted.map(f64::to_bits) {
            return;
        }
        let relative = relative(own, wanted);
        if self.other_bits == 0 || relative > self.relative {
            (self.relative, self.step, self.parameter) = (relative, step, parameter.map(str::to_owned));
        }
        self.other_bits += 1;
    }

    fn of(own: &BTreeMap<u64, f64>, wanted: &BTreeMap<u64, f64>) -> Deviation {
        let mut difference = Deviation::default();
        for &step in union(own, wanted) {
            difference.note(Some(step), None, own.get(&step).copied(), wanted.get(&step).copied());
        }
        difference
    }
}

/// Infinite unless both are finite. Two zeros of unlike sign are other bits and no distance.
fn relative(own: Option<f64>, wanted: Option<f64>) -> f64 {
    match (own, wanted) {
        (Some(own), Some(wanted)) if own.is_finite() && wanted.is_finite() => {
            let size = own.abs().max(wanted.abs());
            if own == wanted { 0.0 } else { (own - wanted).abs() / size }
        }
        _ => f64::INFINITY,
    }
}

fn union<'a, K: Ord, V>(own: &'a BTreeMap<K, V>, wanted: &'a BTreeMap<K, V>) -> BTreeSet<&'a K> {
    own.keys().chain(wanted.keys()).collect()
}

/// What two runs differ in.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Differences {
    /// Of losses, the validation loss among them.
    pub loss: Deviation,
    /// Of global gradient norms.
    pub gradient_norm: Deviation,
    /// Of gradient norms of single parameters.
    pub parameter_norm: Deviation,
    /// Of those, the ones of the first step whose gradients are finite: both runs begin it with the
    /// same weights. Later ones also show how the optimizer magnifies rounding where gradients are tiny.
    pub first_parameter_norm: Deviation,
    /// The largest relative difference of each parameter's gradient norm, of those with other bits.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub parameter_norms: BTreeMap<String, f64>,
    /// Final tensors that have another digest or are missing on one side.
    pub other_tensors: u64,
    /// Final tensors.
    pub tensors: u64,
    /// What only one of the two has, for people: a step, a tensor, a parameter's norm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}

impl Differences {
    /// Whether nothing is missing and all bits are the same.
    pub fn bitwise(&self) -> bool {
        let numbers = [&self.loss, &self.gradient_norm, &self.parameter_norm];
        numbers.iter().all(|difference| difference.other_bits == 0)
            && self.other_tensors == 0
            && self.missing.is_none()
    }
}

/// Compares a run with the one it should equal.
pub fn differences(own: &RunRecord, wanted: &RunRecord) -> Differences {
    let mut loss = Deviation::of(&own.losses, &wanted.losses);
    loss.note(None, None, own.validation, wanted.validation);
    let digests = union(&own.digests, &wanted.digests);
    let other = digests.iter().filter(|&&name| own.digests.get(name) != wanted.digests.get(name));
    let first = wanted.norms.iter().find(|(_, norm)| norm.is_finite()).map(|(step, _)| *step);
    let mut parameters = BTreeMap::new();
    let (parameter_norm, first_parameter_norm) = parameter_norms(own, wanted, first, &mut parameters);
    Differences {
        loss,
        gradient_norm: Deviation::of(&own.norms, &wanted.norms),
        parameter_norm,
        first_parameter_norm,
        parameter_norms: parameters,
        other_tensors: other.count() as u64,
        tensors: digests.len() as u64,
        missing: missing(own, wanted),
    }
}

/// The largest difference of all steps and that of the step `first`; those of single parameters go into
/// `parameters`.
fn parameter_norms(
    own: &RunRecord,
    wanted: &RunRecord,
    first: Option<u64>,
    parameters: &mut BTreeMap<String, f64>,
) -> (Deviation, Deviation) {
    let (mut all, mut at_first) = (Deviation::default(), Deviation::default());
    let nothing = BTreeMap::new();
    for &step in union(&own.parameter_norms, &wanted.parameter_norms) {
        let own = own.parameter_norms.get(&step).unwrap_or(&nothing);
        let wanted = wanted.parameter_norms.get(&step).unwrap_or(&nothing);
        for name in union(own, wanted) {
            let (own, wanted) = (own.get(name).copied(), wanted.get(name).copied());
            all.note(Some(step), Some(name), own, wanted);
            if Some(step) == first {
                at_first.note(Some(step), Some(name), own, wanted);
            }
            if own.map(f64::to_bits) != wanted.map(f64::to_bits) {
                let largest = parameters.entry(name.clone()).or_default();
                *largest = largest.max(relative(own, wanted));
            }
        }
    }
    (all, at_first)
}

/// The first thing that only one of the two has.
fn missing(own: &RunRecord, wanted: &RunRecord) -> Option<String> {
    fn alone<K: Ord + Clone, V>(own: &BTreeMap<K, V>, wanted: &BTreeMap<K, V>) -> Option<(K, bool)> {
        let key =
            union(own, wanted).into_iter().find(|key| own.contains_key(key) != wanted.contains_key(key));
        key.map(|key| (key.clone(), own.contains_key(key)))
    }
    let side = |here: bool| if here { "the reference has none" } else { "only the reference has one" };
    let step = [(&own.losses, &wanted.losses), (&own.norms, &wanted.norms)];
    if let Some((step, here)) = step.into_iter().find_map(|(own, wanted)| alone(own, wanted)) {
        return Some(format!("step {step}: {}", side(here)));
    }
    if let Some((step, here)) = alone(&own.parameter_norms, &wanted.parameter_norms) {
        return Some(format!("norms of parameters at step {step}: {}", side(here)));
    }
    for (step, norms) in &own.parameter_norms {
        let other = wanted.parameter_norms.get(step);
        if let Some((name, here)) = other.and_then(|other| alone(norms, other)) {
            return Some(format!("the norm of {name} at step {step}: {}", side(here)));
        }
    }
    if let Some((name, here)) = alone(&own.digests, &wanted.digests) {
        return Some(format!("the final tensor {name}: {}", side(here)));
    }
    (own.validation.is_some() != wanted.validation.is_some())
        .then(|| format!("the validation loss: {}", side(own.validation.is_some())))
}
