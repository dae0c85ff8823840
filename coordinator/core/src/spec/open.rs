//! What a job leaves to a plan: keys that say `auto`, and with them keys that are left out.

use coxswain_types::JobSpec;
use coxswain_types::job::{Reduction, TrainSpec};

use super::raw::{OrAuto, RawJob};

/// A job whose layout a plan may choose.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenJob {
    /// The job, with the least value of each key that is open.
    pub spec: JobSpec,
    /// What is open.
    pub open: OpenKeys,
    /// The first key that says `auto`; `None` where nothing is left to a plan.
    pub auto: Option<&'static str>,
}

/// The keys that a plan chooses, and what it keeps to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpenKeys {
    /// `layout.pipeline`.
    pub pipeline: bool,
    /// `layout.tensor`.
    pub tensor: bool,
    /// `layout.data`.
    pub data: bool,
    /// `layout.schedule` with `layout.chunks`.
    pub schedule: bool,
    /// `layout.sequence_parallel`.
    pub sequence_parallel: bool,
    /// `layout.zero`.
    pub zero: bool,
    /// `train.recompute`.
    pub recompute: bool,
    /// `train.micro_batch_size`, and with it `train.global_micro_batches`; changes the numbers.
    pub micro_batch_size: bool,
    /// `train.gradient_groups`; changes the numbers.
    pub gradient_groups: bool,
    /// `train.tensor_shards`; changes the numbers.
    pub tensor_shards: bool,
    /// `train.reduction`; changes the numbers.
    pub reduction: bool,
    /// The most bytes of a worker's tensors.
    pub memory: Option<u64>,
    /// The most tensor ranks.
    pub max_tensor: Option<u32>,
}

impl OpenKeys {
    /// The most that a plan may choose.
    pub const ALL: OpenKeys = OpenKeys {
        pipeline: true,
        tensor: true,
        data: true,
        schedule: true,
        sequence_parallel: true,
        zero: true,
        recompute: true,
        micro_batch_size: false,
        gradient_groups: true,
        tensor_shards: true,
        reduction: false,
        memory: None,
        max_tensor: None,
    };

    /// The values that a run which began with `was` keeps, of the open keys that are part of its numbers.
    pub fn kept(&self, was: &TrainSpec) -> Vec<(&'static str, String)> {
        let fast = was.reduction == Reduction::Fast;
        let reduction = if fast { "fast" } else { "canonical" };
        let shards = was.tensor_shards.unwrap_or_default();
        let rows = [
            (self.micro_batch_size, "train.micro_batch_size", was.micro_batch_size.to_string()),
            (self.reduction, "train.reduction", reduction.to_owned()),
            (self.gradient_groups && !fast, "train.gradient_groups", was.gradient_groups.to_string()),
            (self.tensor_shards && shards > 0, "train.tensor_shards", shards.to_string()),
        ];
        rows.into_iter().filter(|(open, ..)| *open).map(|(_, key, value)| (key, value)).collect()
    }

    /// What is open for such a run: without logical shards its numbers are those of one tensor rank.
    pub fn of_run(self, was: &TrainSpec) -> OpenKeys {
        let one = self.tensor_shards && was.tensor_shards.is_none();
        OpenKeys { max_tensor: if one { Some(1) } else { self.max_tensor }, ..self }
    }

    pub(super) fn of(job: &RawJob) -> OpenKeys {
        let Some(layout) = job.layout.as_ref().filter(|layout| layout.first_auto().is_some()) else {
            return OpenKeys::default();
        };
        let train = &job.train;
        let ways = |given: Option<OrAuto<u32>>| given.is_none_or(OrAuto::is_auto);
        let canonical = train.reduction != Some(Reduction::Fast);
        OpenKeys {
            pipeline: ways(layout.pipeline),
            tensor: ways(layout.tensor),
            data: ways(layout.data),
            schedule: layout.schedule.is_none_or(OrAuto::is_auto) && layout.chunks.is_none(),
            sequence_parallel: layout.sequence_parallel.is_none_or(OrAuto::is_auto),
            zero: layout.zero.is_none_or(OrAuto::is_auto),
            recompute: train.recompute.is_none(),
            micro_batch_size: train.batch_size.is_some() && train.micro_batch_size.is_none(),
            gradient_groups: train.gradient_groups.is_none() && canonical,
            tensor_shards: train.tensor_shards.is_none(),
            reduction: train.reduction.is_none()
                && train.gradient_groups.is_none()
                && layout.keep_exact == Some(Reduction::Fast),
            memory: layout.memory.map(|bytes| bytes.0),
            max_tensor: layout.max_tensor,
        }
    }
}
