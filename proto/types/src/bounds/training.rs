//! The numbers of a job beside its model's.

use super::limits;
use super::{OutOfBounds, count, expect, number};
use crate::job::{
    DataSpec, JobSpec, Layout, Lengths, OptimizerSpec, RecomputePolicy, Reduction, Schedule, TrainSpec,
};

pub(super) fn check(spec: &JobSpec) -> Result<(), OutOfBounds> {
    let most = limits::NAME_LEN;
    let names = (1..=most).contains(&spec.name.len());
    expect(names, "name", || format!("has {} bytes; must have 1 to {most}", spec.name.len()))?;
    steps(&spec.train)?;
    shares(&spec.train)?;
    optimizer(&spec.train.optimizer)?;
    data(&spec.data)?;
    layout(spec)?;
    count("checkpoint.every_minutes", spec.checkpoint.every_minutes, &limits::EVERY_MINUTES)?;
    count("checkpoint.keep", spec.checkpoint.keep, &limits::KEEP)
}

fn steps(train: &TrainSpec) -> Result<(), OutOfBounds> {
    count("train.steps", train.steps, &limits::STEPS)?;
    count("train.sequence", train.sequence, &limits::SEQUENCE)?;
    count("train.micro_batch_size", train.micro_batch_size, &limits::MICRO_BATCH)?;
    let tokens = u64::from(train.sequence) * u64::from(train.micro_batch_size);
    expect(tokens <= limits::MICRO_BATCH_TOKENS, "train.micro_batch_size", || {
        format!("makes {tokens} tokens at once; at most {} may be", limits::MICRO_BATCH_TOKENS)
    })?;
    count("train.global_micro_batches", train.global_micro_batches, &limits::MICRO_BATCHES)?;
    // Fast reduction has a run for each data rank of the layout that the run began with.
    let most = match train.reduction {
        Reduction::Canonical => train.global_micro_batches,
        Reduction::Fast => limits::WORLD.most as u32,
    };
    let runs = train.gradient_groups;
    expect((1..=most).contains(&runs), "train.gradient_groups", || {
        format!("found {runs}; must be 1 to {most}")
    })?;
    if let Some(shards) = train.tensor_shards {
        let key = "train.tensor_shards";
        count(key, shards, &limits::TENSOR_SHARDS)?;
        expect(shards.is_power_of_two(), key, || format!("found {shards}; must be a power of two"))?;
    }
    if let Some(threads) = train.threads {
        count("train.threads", threads, &limits::THREADS)?;
    }
    count("train.non_finite_max", train.non_finite_max, &limits::NON_FINITE)
}

fn shares(train: &TrainSpec) -> Result<(), OutOfBounds> {
    let share = |key, found| number(key, found, |x| (0.0..1.0).contains(&x), "0 or more and below 1");
    share("train.dropout", train.dropout)?;
    share("train.attention_dropout", train.attention_dropout)?;
    number("train.mask_rate", train.mask_rate, |x| x > 0.0 && x < 1.0, "above 0 and below 1")?;
    let most = limits::LOSS_SCALE.most as f64;
    let scale = train.loss_scale.initial;
    number("train.initial_loss_scale", scale, |x| (1.0..=most).contains(&x), &format!("1 to {most}"))?;
    count("train.loss_scale_growth_steps", train.loss_scale.growth_steps, &limits::STEPS)?;
    match train.recompute {
        RecomputePolicy::Budget { bytes } => count("train.recompute.budget", bytes, &limits::BUDGET),
        RecomputePolicy::None | RecomputePolicy::Full | RecomputePolicy::Selective(_) => Ok(()),
    }
}

fn optimizer(optimizer: &OptimizerSpec) -> Result<(), OutOfBounds> {
    let share = |key, found| number(key, found, |x| (0.0..1.0).contains(&x), "0 or more and below 1");
    let not_negative = |key, found| number(key, found, |x| x >= 0.0, "a finite number, 0 or more");
    let positive = |key, found| number(key, found, |x| x > 0.0, "a finite number above 0");
    positive("train.learning_rate", optimizer.learning_rate)?;
    not_negative("train.min_learning_rate", optimizer.min_learning_rate)?;
    share("train.momentum", optimizer.momentum)?;
    share("train.betas", optimizer.beta1)?;
    share("train.betas", optimizer.beta2)?;
    positive("train.eps", optimizer.eps)?;
    not_negative("train.weight_decay", optimizer.weight_decay)?;
    not_negative("train.clip_norm", optimizer.clip_norm)
}

fn data(data: &DataSpec) -> Result<(), OutOfBounds> {
    if let Some((key, files)) = data.files() {
        let (found, most) = (files.len(), limits::TEXT_FILES);
        expect(found <= most, key, || format!("names {found} files; at most {most} may be"))?;
    }
    let classes = data.class_names().len();
    count("data.classes", classes as u64, &limits::CLASSES)?;
    match data {
        DataSpec::Text { validation, .. }
        | DataSpec::Labelled { validation, .. }
        | DataSpec::Pairs { validation, .. } => {
            number("data.validation", *validation, |x| (0.0..0.5).contains(&x), "0 or more and below 0.5")
        }
        DataSpec::Synthetic { tokens } => count("data.synthetic.tokens", *tokens, &limits::SYNTHETIC_TOKENS),
    }
}

fn layout(spec: &JobSpec) -> Result<(), OutOfBounds> {
    let Layout { pipeline, tensor, data, schedule, .. } = spec.layout;
    count("layout.pipeline", pipeline, &limits::WORLD)?;
    count("layout.tensor", tensor, &limits::WORLD)?;
    count("layout.data", data, &limits::WORLD)?;
    let product = |ways: &[u32]| ways.iter().map(|&n| u64::from(n)).product::<u64>();
    count("layout", product(&[pipeline, tensor, data]), &limits::WORLD)?;
    let (layers, chunks) = (spec.model.all_layers(), schedule.chunks());
    let stages = u64::from(pipeline) * u64::from(chunks);
    let least = if matches!(schedule, Schedule::Interleaved { .. }) { 2 } else { 1 };
    expect(chunks >= least && stages <= u64::from(layers), "layout.chunks", || {
        format!("{chunks} on each of {pipeline} pipeline ranks make {stages} stages of {layers} layers")
    })?;
    shares_of(spec)?;
    let (actions, most) = (spec.actions.iter().map(Vec::len).sum::<usize>(), limits::ACTIONS);
    let fits = actions <= most && spec.actions.len() as u64 <= limits::WORLD.most;
    expect(fits, "layout.actions", || format!("names {actions} actions; at most {most} may be"))
}

/// Each rank has a share of the work: of the micro-batches, of the runs, and of what the tensor axis splits.
fn shares_of(spec: &JobSpec) -> Result<(), OutOfBounds> {
    let (layout, train, model) = (&spec.layout, &spec.train, &spec.model);
    let canonical = train.reduction == Reduction::Canonical;
    let most = if canonical { train.gradient_groups } else { u32::MAX }.min(train.global_micro_batches);
    expect(layout.data <= most, "layout.data", || format!("found {}; must be {most} or less", layout.data))?;
    let (heads, kv_heads, shards) = (model.heads, model.kv_heads, train.shards(layout.tensor));
    for (key, ways) in [("layout.tensor", layout.tensor), ("train.tensor_shards", shards)] {
        let split = heads.is_multiple_of(ways) && ways <= model.ffn && ways <= model.vocab;
        let shared = kv_heads.is_multiple_of(ways) || ways.is_multiple_of(kv_heads);
        expect(split && shared, key, || {
            format!("found {ways}, which does not split {heads} heads and {kv_heads} key/value heads")
        })?;
    }
    expect(shards.is_multiple_of(layout.tensor), "layout.tensor", || {
        format!("found {}; must divide train.tensor_shards ({shards})", layout.tensor)
    })?;
    let Lengths { source, target, .. } = Lengths::of(model, train);
    let split = source.is_multiple_of(shards) && target.is_multiple_of(shards);
    expect(!layout.sequence_parallel || split, "layout.sequence_parallel", || {
        format!("needs a train.sequence that {shards} divides, and finds {}", train.sequence)
    })
}
