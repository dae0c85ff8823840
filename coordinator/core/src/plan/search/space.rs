//! All shapes of a layout that a job allows, in a fixed order.

use coxswain_types::JobSpec;
use coxswain_types::job::{Lengths, OptimizerKind, Reduction, Schedule};
use coxswain_types::model::Head;

use super::LayoutQuestion;

/// What decides how work is divided. ZeRO, recompute and gradient groups are chosen when a shape is weighed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct LayoutShape {
    pub(super) micro_batch_size: u32,
    /// Micro-batches of a step.
    pub(super) micro_batches: u32,
    pub(super) pipeline: u32,
    pub(super) tensor: u32,
    pub(super) data: u32,
    pub(super) schedule: Schedule,
    pub(super) sequence_parallel: bool,
}

/// Chunks of a rank, at most: with more of them a stage is a layer or two, and messages outweigh what is saved.
const CHUNKS: u32 = 8;

/// Up to so many workers, data ranks of every useful number are tried; with more, those that use over half of them.
const FEW_WORKERS: u32 = 64;

/// All of them.
pub(super) fn shapes(question: &LayoutQuestion<'_>) -> Vec<LayoutShape> {
    let LayoutQuestion { spec, open, .. } = *question;
    let mut shapes = Vec::new();
    for (micro_batch_size, micro_batches) in micro_batches(question) {
        for tensor in tensor_ways(question) {
            let spread = sequence_parallel(question, tensor);
            for pipeline in pipeline_ways(question, tensor) {
                for schedule in schedules(question, pipeline) {
                    for data in data_ways(question, pipeline * tensor, micro_batches) {
                        for sequence_parallel in spread.iter().copied() {
                            shapes.push(LayoutShape {
                                micro_batch_size,
                                micro_batches,
                                pipeline,
                                tensor,
                                data,
                                schedule,
                                sequence_parallel,
                            });
                        }
                    }
                }
            }
        }
    }
    let most = coxswain_types::bounds::limits::WORLD.most;
    shapes.retain(|shape| {
        [shape.pipeline, shape.tensor, shape.data].map(u64::from).into_iter().product::<u64>() <= most
    });
    let custom = matches!(spec.layout.schedule, Schedule::Custom { .. }) && !open.schedule;
    if custom {
        shapes.retain(|shape| [shape.pipeline, shape.data] == [spec.layout.pipeline, spec.layout.data]);
    }
    shapes
}

/// Sizes of a micro-batch, with their number.
fn micro_batches(question: &LayoutQuestion<'_>) -> Vec<(u32, u32)> {
    let train = &question.spec.train;
    let (size, count) = (train.micro_batch_size, train.global_micro_batches);
    if !question.open.micro_batch_size {
        return vec![(size, count)];
    }
    let batch = size.saturating_mul(count);
    let most = coxswain_types::bounds::limits::MICRO_BATCH_TOKENS / u64::from(train.sequence.max(1));
    let sizes = (0..16).map(|log| 1_u32 << log).take_while(|size| u64::from(*size) <= most && *size <= batch);
    let most = coxswain_types::bounds::limits::MICRO_BATCHES.most;
    let sizes = sizes.filter(|size| batch.is_multiple_of(*size) && u64::from(batch / size) <= most);
    sizes.map(|size| (size, batch / size)).collect()
}

/// Numbers of tensor ranks.
fn tensor_ways(question: &LayoutQuestion<'_>) -> Vec<u32> {
    let LayoutQuestion { spec, open, workers, .. } = *question;
    if !open.tensor {
        return vec![spec.layout.tensor];
    }
    let most = open.max_tensor.unwrap_or(u32::MAX).min(workers).min(spec.model.heads);
    (1..=most).filter(|tensor| splits(spec, *tensor, spec.train.shards(*tensor))).collect()
}

/// Whether a model may be cut into so many tensor ranks and logical shards, as `spec` checks it.
fn splits(spec: &JobSpec, tensor: u32, shards: u32) -> bool {
    let model = &spec.model;
    let cut = |ways: u32| {
        model.heads.is_multiple_of(ways)
            && (model.kv_heads.is_multiple_of(ways) || ways.is_multiple_of(model.kv_heads.max(1)))
            && ways <= model.ffn
            && ways <= model.vocab
    };
    let muon = spec.train.optimizer.kind != OptimizerKind::Muon || model.ffn.is_multiple_of(shards);
    cut(tensor) && cut(shards) && shards.is_multiple_of(tensor) && muon
}

/// Whether the sequence is split. It never is where one tensor rank has all of it.
fn sequence_parallel(question: &LayoutQuestion<'_>, tensor: u32) -> Vec<bool> {
    let LayoutQuestion { spec, open, .. } = *question;
    let shards = spec.train.shards(tensor);
    let lengths = Lengths::of(&spec.model, &spec.train);
    let pooled = matches!(spec.model.head, Head::Pooled { .. });
    let fits = spec.train.sequence.is_multiple_of(shards) && lengths.target.is_multiple_of(shards);
    if !open.sequence_parallel {
        // The job's door refuses tensor ranks among which the sequence cannot be split.
        let split = spec.layout.sequence_parallel;
        return if !split || fits { vec![split] } else { Vec::new() };
    }
    if tensor > 1 && fits && !pooled { vec![false, true] } else { vec![false] }
}

/// Numbers of pipeline ranks.
fn pipeline_ways(question: &LayoutQuestion<'_>, tensor: u32) -> Vec<u32> {
    let LayoutQuestion { spec, open, workers, .. } = *question;
    let fixed = if open.data { 1 } else { spec.layout.data };
    let most = (workers / tensor.saturating_mul(fixed).max(1)).min(spec.model.all_layers());
    if open.pipeline {
        (1..=most).collect()
    } else {
        Some(spec.layout.pipeline).filter(|pipeline| *pipeline <= most).into_iter().collect()
    }
}

/// Schedules. GPipe takes as long as 1F1B and more memory, so it is never chosen.
fn schedules(question: &LayoutQuestion<'_>, pipeline: u32) -> Vec<Schedule> {
    let LayoutQuestion { spec, open, .. } = *question;
    let layers = spec.model.all_layers();
    if !open.schedule {
        let fits = u64::from(pipeline) * u64::from(spec.layout.schedule.chunks()) <= u64::from(layers);
        return if fits { vec![spec.layout.schedule] } else { Vec::new() };
    }
    let mut schedules = vec![Schedule::OneFOneB];
    if pipeline > 1 {
        schedules.push(Schedule::ZbH1);
        let chunks = (2..=CHUNKS).filter(|chunks| pipeline * chunks <= layers);
        schedules.extend(chunks.map(|chunks| Schedule::Interleaved { chunks }));
    }
    schedules
}

/// Numbers of data ranks: of those with as many micro-batches on the busiest, the least, and the most of all.
fn data_ways(question: &LayoutQuestion<'_>, others: u32, micro_batches: u32) -> Vec<u32> {
    let LayoutQuestion { spec, open, workers, .. } = *question;
    let groups = if open.gradient_groups || spec.train.reduction == Reduction::Fast {
        micro_batches
    } else {
        spec.train.gradient_groups
    };
    let most = (workers / others.max(1)).min(micro_batches).min(groups);
    if !open.data {
        return Some(spec.layout.data).filter(|data| *data <= most).into_iter().collect();
    }
    let least = if workers <= FEW_WORKERS { 1 } else { (most / 2).max(1) };
    let useful = |data: &u32| {
        *data == most
            || micro_batches.div_ceil(*data) < micro_batches.div_ceil((*data - 1).max(1))
            || *data == 1
    };
    (least..=most).filter(useful).collect()
}
