//! What a plan chooses, as values and as the keys of a job file.

use coxswain_types::JobSpec;
use coxswain_types::job::{Block, Layout, RecomputePolicy, Reduction, Schedule};

use crate::spec::OpenKeys;

/// Everything that may be open.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// The layout.
    pub layout: Layout,
    /// What is computed again.
    pub recompute: RecomputePolicy,
    /// Samples of a micro-batch.
    pub micro_batch_size: u32,
    /// Micro-batches of a step.
    pub global_micro_batches: u32,
    /// Gradient groups of a step.
    pub gradient_groups: u32,
    /// Logical tensor shards.
    pub tensor_shards: Option<u32>,
    /// The order of sums.
    pub reduction: Reduction,
}

impl Settings {
    /// Those of a job.
    pub fn of(spec: &JobSpec) -> Settings {
        let train = &spec.train;
        Settings {
            layout: spec.layout,
            recompute: train.recompute,
            micro_batch_size: train.micro_batch_size,
            global_micro_batches: train.global_micro_batches,
            gradient_groups: train.gradient_groups,
            tensor_shards: train.tensor_shards,
            reduction: train.reduction,
        }
    }

    /// A job with these.
    pub fn apply(&self, spec: &JobSpec) -> JobSpec {
        let mut spec = JobSpec { layout: self.layout, ..spec.clone() };
        let train = &mut spec.train;
        train.recompute = self.recompute;
        train.micro_batch_size = self.micro_batch_size;
        train.global_micro_batches = self.global_micro_batches;
        train.gradient_groups = self.gradient_groups;
        train.tensor_shards = self.tensor_shards;
        train.reduction = self.reduction;
        spec
    }

    /// How many ways each axis is split.
    pub fn axes(&self) -> [u32; 3] {
        [self.layout.pipeline, self.layout.tensor, self.layout.data]
    }

    /// Among layouts that are as fast the plainer one is taken: fewer workers, then fewer stages.
    pub(super) fn plainness(&self) -> [u32; 4] {
        let Layout { tensor, schedule, .. } = self.layout;
        [self.layout.world(), tensor, schedule.chunks(), u32::from(schedule != Schedule::OneFOneB)]
    }

    /// The axes and options, in one line.
    pub fn words(&self) -> String {
        let Layout { pipeline, tensor, data, schedule, sequence_parallel, zero } = self.layout;
        let mut words = vec![format!("pipeline {pipeline} x tensor {tensor} x data {data}")];
        if pipeline > 1 {
            words.push(crate::plan::print::schedule_name(schedule));
        }
        words.extend(sequence_parallel.then(|| "sequence parallel".to_owned()));
        words.extend(zero.then(|| "ZeRO-1".to_owned()));
        words.extend(recompute_words(self.recompute));
        words.join(", ")
    }

    /// The keys of a job file with these values, of those that are open.
    pub fn keys(&self, open: &OpenKeys) -> Vec<(&'static str, String)> {
        let Layout { pipeline, tensor, data, schedule, sequence_parallel, zero } = self.layout;
        let mut keys = Vec::new();
        let mut add = |open: bool, key: &'static str, value: String| {
            if open {
                keys.push((key, value));
            }
        };
        add(open.pipeline, "layout.pipeline", pipeline.to_string());
        add(open.tensor, "layout.tensor", tensor.to_string());
        add(open.data, "layout.data", data.to_string());
        let (name, chunks) = match schedule {
            Schedule::GPipe => ("gpipe", None),
            Schedule::OneFOneB => ("1f1b", None),
            Schedule::Interleaved { chunks } => ("interleaved", Some(chunks)),
            Schedule::ZbH1 => ("zb-h1", None),
            Schedule::Custom { chunks } => ("custom", Some(chunks)),
        };
        add(open.schedule, "layout.schedule", name.to_owned());
        if let Some(chunks) = chunks {
            add(open.schedule, "layout.chunks", chunks.to_string());
        }
        add(open.sequence_parallel, "layout.sequence_parallel", sequence_parallel.to_string());
        add(open.zero, "layout.zero", u8::from(zero).to_string());
        let recompute = match self.recompute {
            RecomputePolicy::None => "none".to_owned(),
            RecomputePolicy::Full => "full".to_owned(),
            RecomputePolicy::Selective(Block::Attention) => "attention".to_owned(),
            RecomputePolicy::Selective(Block::Ffn) => "ffn".to_owned(),
            RecomputePolicy::Budget { bytes } => format!("{{budget: {bytes}}}"),
        };
        add(open.recompute, "train.recompute", recompute);
        add(open.micro_batch_size, "train.micro_batch_size", self.micro_batch_size.to_string());
        let fast = self.reduction == Reduction::Fast;
        add(open.gradient_groups && !fast, "train.gradient_groups", self.gradient_groups.to_string());
        if let Some(shards) = self.tensor_shards {
            add(open.tensor_shards, "train.tensor_shards", shards.to_string());
        }
        add(open.reduction && fast, "train.reduction", "fast".to_owned());
        keys
    }
}

fn recompute_words(recompute: RecomputePolicy) -> Option<String> {
    match recompute {
        RecomputePolicy::None => None,
        RecomputePolicy::Full => Some("recompute all layers".to_owned()),
        RecomputePolicy::Selective(Block::Attention) => Some("recompute attention".to_owned()),
        RecomputePolicy::Selective(Block::Ffn) => Some("recompute ffn".to_owned()),
        RecomputePolicy::Budget { .. } => Some("recompute some layers".to_owned()),
    }
}
