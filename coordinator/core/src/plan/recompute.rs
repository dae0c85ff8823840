//! Which layers compute again in their backward pass what they did not keep.

use coxswain_types::Assignment;
use coxswain_types::assignment::Recompute;
use coxswain_types::job::Checkpointing;

use super::PlanError;
use super::memory::memory;

/// Sets [`coxswain_types::assignment::Stage::recompute`] of finished assignments.
///
/// Under a budget, the fewest layers are computed again with which the estimate of every rank of a
/// tensor group stays within it: the first layers of a rank's first stage, then on from there. Ranks
/// of a tensor group meet inside each layer, so they choose alike; others choose by themselves, as no
/// choice changes a number.
pub(super) fn choose(assignments: &mut [Assignment]) -> Result<(), PlanError> {
    for rank in 0..assignments.len() {
        let (mode, bytes) = match assignments[rank].spec.train.checkpointing {
            Checkpointing::None => (Recompute::Nothing, None),
            Checkpointing::Full => (Recompute::Layer, None),
            Checkpointing::Selective(block) => (Recompute::Block(block), None),
            Checkpointing::Budget { bytes } => (Recompute::Layer, Some(bytes)),
        };
        match bytes {
            None => set(&mut assignments[rank], mode, usize::MAX),
            // The group's first rank chooses for all.
            Some(bytes) if assignments[rank].tensor_index == 0 => fit(assignments, rank, bytes)?,
            Some(_) => {}
        }
    }
    Ok(())
}

/// Fits the tensor group of `rank` into `bytes`.
fn fit(assignments: &mut [Assignment], rank: usize, bytes: u64) -> Result<(), PlanError> {
    let group: Vec<usize> = assignments[rank].tensor_group.iter().map(|rank| *rank as usize).collect();
    let layers: usize = assignments[rank].stages.iter().map(|stage| stage.recompute.len()).sum();
    // At most as many tries as there are layers.
    let mut least: Option<PlanError> = None;
    for count in 0..=layers {
        let mut worst = None;
        for &member in &group {
            let Some(assignment) = assignments.get_mut(member) else { continue };
            set(assignment, Recompute::Layer, count);
            let needed = memory(assignment).tensor_bytes();
            if worst.as_ref().is_none_or(|(most, _)| needed > *most) {
                worst = Some((needed, assignment.worker.clone()));
            }
        }
        let Some((needed, worker)) = worst.filter(|(needed, _)| *needed > bytes) else { return Ok(()) };
        least = Some(PlanError::Budget { worker, needed, bytes });
    }
    least.map_or(Ok(()), Err)
}

/// Computes the first `count` layers of a rank again, and no others.
fn set(assignment: &mut Assignment, mode: Recompute, count: usize) {
    let modes = assignment.stages.iter_mut().flat_map(|stage| &mut stage.recompute);
    for (layer, recompute) in modes.enumerate() {
        *recompute = if layer < count { mode } else { Recompute::Nothing };
    }
}
