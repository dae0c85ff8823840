//! Who computes how much: layers to stages and runs of micro-batches to data ranks, by how slow their workers
//! are. Neither changes a bit: sums are the same tree over runs whoever owns them, and a cut adds nothing.

use std::ops::Range;

use coxswain_types::JobSpec;
use coxswain_types::job::{Layout, Lengths, Schedule};
use coxswain_types::tree::split;

use super::divide::divide;
use super::mesh::{Coordinates, Mesh};
use super::{partition, sketch_of};

/// How long a worker takes that keeps up with its peers, in percent of how long they take.
pub const KEEPS_UP: u32 = 100;

/// A division of a step's work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Balance {
    /// The layers of each stage.
    pub(super) layers: Vec<Range<u32>>,
    /// The runs of each data rank.
    pub(super) owned_runs: Vec<Range<u32>>,
    /// Micro-batches of each data rank.
    micro_batches: Vec<u64>,
    /// How much each rank has to compute, in any unit.
    shares: Vec<u128>,
}

impl Balance {
    /// The division in which the slowest rank is done the earliest, of two: the one for workers that all keep up
    /// and one that spares the slow stages, each with runs that spare slow data ranks. Ranks that are not
    /// listed keep up.
    pub(super) fn new(spec: &JobSpec, slow_percent: &[u32]) -> Balance {
        let mesh = Mesh::new(&spec.layout);
        let slow = |at| slow_percent.get(mesh.rank(at) as usize).copied().unwrap_or(KEEPS_UP);
        let Layout { pipeline, tensor, data, .. } = spec.layout;
        // Tensor ranks wait for each other in every layer.
        let slow_of = |data: u32, pipeline: u32| {
            let along = (0..tensor).map(|tensor| slow(Coordinates { data, pipeline, tensor }));
            along.max().unwrap_or(KEEPS_UP)
        };
        let of_stage =
            |stage: u32| (0..data).map(|data| slow_of(data, stage % pipeline)).max().unwrap_or(KEEPS_UP);
        let stages = spec.layout.stages();
        let spared: Vec<_> = (0..stages).map(of_stage).collect();
        let plain = vec![KEEPS_UP; stages as usize];
        let even = Balance::of(spec, &mesh, &plain, &slow_of);
        if spared == plain {
            return even;
        }
        let spared = Balance::of(spec, &mesh, &spared, &slow_of);
        if spared.slowest(slow_percent) < even.slowest(slow_percent) { spared } else { even }
    }

    fn of(spec: &JobSpec, mesh: &Mesh, stages: &[u32], slow_of: &dyn Fn(u32, u32) -> u32) -> Balance {
        let Layout { pipeline, data, schedule, .. } = spec.layout;
        let lengths = Lengths::of(&spec.model, &spec.train);
        let layers = partition::partition(&spec.model, lengths, stages);
        let mut loads = vec![0_u128; pipeline as usize];
        for (stage, load) in partition::loads(&spec.model, lengths, &layers).into_iter().enumerate() {
            // Stage s is on rank s mod p.
            loads[stage % pipeline as usize] += u128::from(load);
        }
        let time = |data: u32| -> u128 {
            let times = (0..pipeline).zip(&loads).map(|(at, load)| load * u128::from(slow_of(data, at)));
            times.max().unwrap_or(0)
        };
        let least = (0..data).map(time).min().unwrap_or(1).max(1);
        // A list of the user's own is for one number of micro-batches.
        let even = matches!(schedule, Schedule::Custom { .. });
        let slow = |data: u32| {
            let percent = time(data).saturating_mul(u128::from(KEEPS_UP)) / least;
            if even { KEEPS_UP } else { u32::try_from(percent).unwrap_or(u32::MAX) }
        };
        let runs = split(spec.train.global_micro_batches, spec.train.gradient_groups);
        let sizes: Vec<u64> = runs.iter().map(|run| u64::from(run.end - run.start)).collect();
        let owned_runs = divide(&sizes, &(0..data).map(slow).collect::<Vec<_>>());
        let of_runs = |Range { start, end }: &Range<u32>| sizes[*start as usize..*end as usize].iter().sum();
        let micro_batches: Vec<u64> = owned_runs.iter().map(of_runs).collect();
        let share = |rank: u32| {
            let at = mesh.coordinates(rank);
            loads[at.pipeline as usize] * u128::from(micro_batches[at.data as usize])
        };
        let shares = (0..mesh.world()).map(share).collect();
        Balance { layers, owned_runs, micro_batches, shares }
    }

    /// The first data rank of those with the most micro-batches.
    pub(super) fn busiest_data_rank(&self) -> u32 {
        let most = self.micro_batches.iter().max();
        self.micro_batches.iter().position(|count| Some(count) == most).unwrap_or(0) as u32
    }

    /// How long the rank computes that computes the longest. Waits for others are not in it.
    fn slowest(&self, slow_percent: &[u32]) -> u128 {
        let slow = slow_percent.iter().copied().chain(std::iter::repeat(KEEPS_UP));
        let times = self.shares.iter().zip(slow).map(|(share, slow)| share.saturating_mul(slow.into()));
        times.max().unwrap_or(0)
    }
}

/// How much each rank of a job that can be planned has to compute, in any unit, where its work was divided for
/// workers this slow.
pub fn shares(spec: &JobSpec, slow_percent: &[u32]) -> Vec<f64> {
    Balance::new(spec, slow_percent).shares.iter().map(|share| *share as f64).collect()
}

/// How many times as fast the slowest rank would be done if the work, which was divided for workers as slow as
/// `before`, were divided for workers as slow as `now`, where those of `here` are as slow as they are: a spare
/// may take a slow one's place. 1 where there is no such plan.
pub fn rebalance_gain(spec: &JobSpec, before: &[u32], here: &[u32], now: &[u32]) -> f64 {
    let (old, new) = (Balance::new(spec, before), Balance::new(spec, now));
    let (old, new) = (old.slowest(here), new.slowest(now));
    let gain = old as f64 / new.max(1) as f64;
    if gain > 1.0 && sketch_of(spec, spec.layout.world(), now).is_ok() { gain } else { 1.0 }
}

#[cfg(test)]
mod tests;
