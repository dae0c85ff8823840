//! What a shape takes: with the recompute, ZeRO and gradient groups that are best for it, memory counted on finished
//! assignments and time simulated over their lists of actions.

use coxswain_types::Assignment;
use coxswain_types::assignment::Recompute;
use coxswain_types::job::{Block, JobSpec, RecomputePolicy, Reduction};

use super::bound::settings;
use super::space::LayoutShape;
use super::{LayoutQuestion, Settings, Unfit, Weighed};
use crate::plan::memory::memory;
use crate::plan::time::{LayoutNetwork, predict};
use crate::plan::{Memory, PlanError, pipeline};

/// A shape that fits, or what it lacks.
pub(super) enum ShapeVerdict {
    Fits(Box<Weighed>),
    Unfit(Unfit),
}

/// Bytes that the tensors of a worker may have.
pub(super) fn limit(question: &LayoutQuestion<'_>) -> u64 {
    let device = question.cluster.smallest().map_or(u64::MAX, |device| device.usable());
    question.open.memory.map_or(device, |limit| limit.min(device))
}

/// Weighs the settings that a shape leaves, and takes the best.
pub(super) fn shape(question: &LayoutQuestion<'_>, shape: &LayoutShape) -> Result<ShapeVerdict, PlanError> {
    let limit = limit(question);
    let mut best: Option<Weighed> = None;
    let mut nearest: Option<Unfit> = None;
    for plain in groups(question, settings(question, shape)) {
        let policies: &[RecomputePolicy] = if question.open.recompute {
            &[
                RecomputePolicy::None,
                RecomputePolicy::Selective(Block::Attention),
                RecomputePolicy::Selective(Block::Ffn),
                RecomputePolicy::Budget { bytes: limit },
            ]
        } else {
            &[plain.recompute]
        };
        for &recompute in policies {
            match one(question, Settings { recompute, ..plain }, limit)? {
                ShapeVerdict::Fits(weighed) => {
                    let better =
                        best.as_ref().is_none_or(|best| weighed.prediction.step < best.prediction.step);
                    let kept_all = recompute == RecomputePolicy::None;
                    if better {
                        best = Some(*weighed);
                    }
                    // Computing again only adds time.
                    if kept_all {
                        break;
                    }
                }
                ShapeVerdict::Unfit(unfit) => {
                    if nearest.as_ref().is_none_or(|nearest| unfit.short < nearest.short) {
                        nearest = Some(unfit);
                    }
                }
            }
        }
        if best.as_ref().is_some_and(|best| best.settings.recompute == RecomputePolicy::None) {
            break;
        }
    }
    match (best, nearest) {
        (Some(best), _) => Ok(ShapeVerdict::Fits(Box::new(best))),
        (None, Some(unfit)) => Ok(ShapeVerdict::Unfit(unfit)),
        (None, None) => Err(PlanError::Unchecked("a shape leaves no settings")),
    }
}

/// Gradient groups where they are open: as many as a job has by default, so that it may grow; or one for each data
/// rank, which takes the least memory.
fn groups(question: &LayoutQuestion<'_>, plain: Settings) -> Vec<Settings> {
    let data = plain.layout.data;
    if question.open.reduction {
        return vec![Settings { gradient_groups: data, reduction: Reduction::Fast, ..plain }];
    }
    if plain.reduction == Reduction::Fast {
        return vec![Settings { gradient_groups: data, ..plain }];
    }
    if !question.open.gradient_groups {
        return vec![plain];
    }
    // Data ranks have equally many of them.
    let usual = plain.global_micro_batches.min(8);
    let roomy = data * usual.div_ceil(data).max(1);
    let roomy = if roomy <= plain.global_micro_batches { roomy } else { data };
    let mut groups = vec![Settings { gradient_groups: roomy, ..plain }];
    if roomy != data {
        groups.push(Settings { gradient_groups: data, ..plain });
    }
    groups
}

/// Weighs one choice.
pub(super) fn one(
    question: &LayoutQuestion<'_>,
    settings: Settings,
    limit: u64,
) -> Result<ShapeVerdict, PlanError> {
    let spec = settings.apply(question.spec);
    let (assignments, within) = match pipeline::slowest(&spec) {
        Ok(assignments) => (assignments, true),
        // Told with everything computed again, which is the nearest that it comes.
        Err(PlanError::Budget { .. }) => {
            let full = Settings { recompute: RecomputePolicy::Full, ..settings };
            (pipeline::slowest(&full.apply(question.spec))?, false)
        }
        Err(error) => return Err(error),
    };
    let memory: Vec<Memory> = assignments.iter().map(memory).collect();
    let short = |(rank, memory): (usize, &Memory)| (memory.tensor_bytes().saturating_sub(limit), rank as u32);
    let worst = memory.iter().enumerate().map(short).max_by_key(|(short, rank)| (*short, u32::MAX - rank));
    let (short, pipeline) = worst.unwrap_or((0, 0));
    if short > 0 || !within {
        let recompute = if within { settings.recompute } else { RecomputePolicy::Full };
        return Ok(ShapeVerdict::Unfit(Unfit {
            settings: Settings { recompute, ..settings },
            pipeline,
            short,
        }));
    }
    let pipeline: Vec<&Assignment> = assignments.iter().collect();
    let prediction = predict(&pipeline, question.cluster)
        .ok_or(PlanError::Unchecked("a layout has more ranks than there are devices"))?;
    Ok(ShapeVerdict::Fits(Box::new(Weighed {
        settings,
        prediction,
        memory,
        layers: layers(&assignments),
        again: assignments.iter().map(again).collect(),
        tensor_crosses: LayoutNetwork::new(&spec, question.cluster).tensor_crosses(),
    })))
}

/// Layers of each stage, in order.
fn layers(assignments: &[Assignment]) -> Vec<u32> {
    let mut stages: Vec<_> = assignments.iter().flat_map(|a| &a.stages).collect();
    stages.sort_by_key(|stage| stage.index);
    stages.iter().map(|stage| stage.layers.end - stage.layers.start).collect()
}

/// Layers of a rank that are computed again.
fn again(a: &Assignment) -> u32 {
    a.stages.iter().flat_map(|stage| &stage.recompute).filter(|mode| **mode != Recompute::Nothing).count()
        as u32
}

/// A job as it is weighed without a search.
pub(super) fn spec_of(question: &LayoutQuestion<'_>, settings: &Settings) -> JobSpec {
    settings.apply(question.spec)
}
