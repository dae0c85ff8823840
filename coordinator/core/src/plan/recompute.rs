//! Which layers compute again in their backward pass what they did not keep.

use coxswain_types::assignment::Recompute;
use coxswain_types::job::RecomputePolicy;
use coxswain_types::{Assignment, WorkerId};

use super::PlanError;
use super::memory::memory;

/// Sets [`coxswain_types::assignment::Stage::recompute`] of finished assignments.
///
/// Under a budget, the fewest layers are computed again with which the estimate of every rank of a
/// tensor group stays within it: the first layers of a rank's first stage, then on from there. Ranks
/// of a tensor group meet inside each layer, so they choose alike; others choose by themselves, as no
/// choice changes a number.
pub(super) fn choose(assignments: &mut [Assignment]) -> Result<(), PlanError> {
    choose_in(assignments, |a| a.tensor_group.iter().map(|rank| *rank as usize).collect())
}

/// The same for ranks of different tensor groups, of each of which one stands for all.
pub(super) fn choose_alone(assignments: &mut [Assignment]) -> Result<(), PlanError> {
    choose_in(assignments, |_| Vec::new())
}

/// `group_of` says where the ranks stand that choose with a rank; where it says none, the rank chooses alone.
fn choose_in(
    assignments: &mut [Assignment],
    group_of: impl Fn(&Assignment) -> Vec<usize>,
) -> Result<(), PlanError> {
    for at in 0..assignments.len() {
        let (mode, bytes) = match assignments[at].spec.train.recompute {
            RecomputePolicy::None => (Recompute::Nothing, None),
            RecomputePolicy::Full => (Recompute::Layer, None),
            RecomputePolicy::Selective(block) => (Recompute::Block(block), None),
            RecomputePolicy::Budget { bytes } => (Recompute::Layer, Some(bytes)),
        };
        let Some(bytes) = bytes else {
            set(&mut assignments[at], mode, usize::MAX);
            continue;
        };
        let group = group_of(&assignments[at]);
        match group.first() {
            // The group's first rank chooses for all.
            Some(first) if *first != at => {}
            Some(_) => fit(assignments, at, &group, bytes)?,
            None => fit(assignments, at, &[at], bytes)?,
        }
    }
    Ok(())
}

/// How many of the last layers may each take more memory when they are computed again: one of an encoder, one of a
/// decoder.
const LAST_LAYERS: usize = 2;

/// Fits the tensor group of `rank` into `bytes`.
fn fit(assignments: &mut [Assignment], rank: usize, group: &[usize], bytes: u64) -> Result<(), PlanError> {
    let layers: usize = assignments[rank].stages.iter().map(|stage| stage.recompute.len()).sum();
    if needed(assignments, group, 0).is_none_or(|(needed, _)| needed <= bytes) {
        return Ok(());
    }
    // Another layer that is computed again takes less memory, except the last ones, where the largest is in its backward
    // pass: that keeps its output too.
    let mut fits = |count| needed(assignments, group, count).is_none_or(|(needed, _)| needed <= bytes);
    let Some(most) = (layers.saturating_sub(LAST_LAYERS)..=layers).rev().find(|count| fits(*count)) else {
        return match needed(assignments, group, layers) {
            Some((needed, worker)) => Err(PlanError::Budget { worker, needed, bytes }),
            None => Ok(()),
        };
    };
    let (mut little, mut enough) = (0, most);
    while little + 1 < enough {
        let count = little.midpoint(enough);
        match needed(assignments, group, count) {
            Some((needed, _)) if needed > bytes => little = count,
            _ => enough = count,
        }
    }
    needed(assignments, group, enough);
    Ok(())
}

/// The most bytes that a rank of the group needs with `count` layers computed again, which are set, and its worker.
fn needed(assignments: &mut [Assignment], group: &[usize], count: usize) -> Option<(u64, WorkerId)> {
    let mut worst: Option<(u64, WorkerId)> = None;
    for &member in group {
        let Some(assignment) = assignments.get_mut(member) else { continue };
        set(assignment, Recompute::Layer, count);
        let needed = memory(assignment).tensor_bytes();
        if worst.as_ref().is_none_or(|(most, _)| needed > *most) {
            worst = Some((needed, assignment.worker.clone()));
        }
    }
    worst
}

/// Computes the first `count` layers of a rank again, and no others.
fn set(assignment: &mut Assignment, mode: Recompute, count: usize) {
    let modes = assignment.stages.iter_mut().flat_map(|stage| &mut stage.recompute);
    for (layer, recompute) in modes.enumerate() {
        *recompute = if layer < count { mode } else { Recompute::Nothing };
    }
}
