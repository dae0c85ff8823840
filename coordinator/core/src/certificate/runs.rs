//! What every run of a certificate has in common, and which of them is the reference.

use coxswain_types::JobSpec;
use coxswain_types::job::RateSchedule;
use serde::Serialize;

use super::{CertificateError, ONE};
use crate::plan::mebibytes;

/// Threads of each worker, and where the number comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ThreadCount {
    /// How many.
    pub number: u32,
    /// Whose choice it was, for people.
    pub origin: String,
}

/// Threads for all runs: the job's, or a share of the cores that the layout with the most workers has
/// room for. Sums depend on the number, so it is the same for all.
pub fn threads(given: Option<u32>, cores: u32, most_workers: u32) -> ThreadCount {
    match given {
        Some(number) => ThreadCount { number, origin: "the job's train.threads".to_owned() },
        None => ThreadCount {
            number: (cores / most_workers.max(1)).max(1),
            origin: format!("{cores} cores shared by at most {most_workers} workers"),
        },
    }
}

/// The changes to the job that make it a short run which notes what is compared: the first steps as
/// the job takes them, with warm-up and decay cut so that the job stays valid.
pub fn run_sets(spec: &JobSpec, steps: u64) -> Vec<String> {
    let warmup = spec.train.optimizer.warmup_steps.min(steps);
    let mut sets = vec![
        format!("train.steps={steps}"),
        format!("train.warmup_steps={warmup}"),
        "train.parameter_norms=true".to_owned(),
        "train.validate_every=0".to_owned(),
        "checkpoint.every=0".to_owned(),
        "checkpoint.every_minutes=0".to_owned(),
    ];
    if let RateSchedule::Wsd { decay_steps } = spec.train.optimizer.schedule {
        sets.push(format!("train.decay_steps={}", decay_steps.min(steps.saturating_sub(warmup))));
    }
    sets
}

/// A layout that could be the reference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its name.
    pub name: String,
    /// Its workers.
    pub workers: u32,
    /// What its workers need together, in bytes, as the plan estimates it.
    pub needed: u64,
}

impl Candidate {
    /// Whether it fits into `available` bytes; `None` where the number is unknown.
    pub fn fits(&self, available: Option<u64>) -> bool {
        available.is_none_or(|available| self.needed <= available)
    }
}

/// The reference, and why it is that one where it is not one process: one process where that fits
/// into `available` bytes, else of the given layouts that fit the one with the fewest workers, of
/// those the first.
///
/// # Errors
/// [`CertificateError::NothingFits`].
pub fn choose_reference(
    one: &Candidate,
    given: &[Candidate],
    available: Option<u64>,
) -> Result<(String, Option<String>), CertificateError> {
    if one.fits(available) {
        return Ok((ONE.to_owned(), None));
    }
    let available_text = mebibytes(available.unwrap_or(0));
    match given.iter().filter(|layout| layout.fits(available)).min_by_key(|layout| layout.workers) {
        Some(smallest) => {
            let needed = mebibytes(one.needed);
            let reason = format!("one process needs about {needed}, and {available_text} are available");
            Ok((smallest.name.clone(), Some(reason)))
        }
        None => {
            let all = std::iter::once(one).chain(given);
            let least = all.min_by_key(|layout| layout.needed).unwrap_or(one);
            let layout = if least.name == ONE { "one process".to_owned() } else { least.name.clone() };
            let needed = mebibytes(least.needed);
            Err(CertificateError::NothingFits { layout, needed, available: available_text })
        }
    }
}
