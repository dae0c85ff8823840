//! The training, without its optimizer.

use std::path::Path;

use coxswain_types::job::{Corruption, LossScale, Precision, RecomputePolicy, Reduction, TrainSpec};

use super::super::limits;
use super::super::raw::RawTrain;
use super::Faults;
use super::data::absolute;
use super::optimizer::optimizer;

/// `data_ranks`: of the layout, since fast reduction has one run for each. `least_groups`: of a job that does not say.
pub(super) fn train(
    raw: &RawTrain,
    data_ranks: u32,
    least_groups: u32,
    base: &Path,
    faults: &mut Faults,
) -> TrainSpec {
    let micro_batches = micro_batches(raw, faults);
    let reduction = raw.reduction.unwrap_or(Reduction::Canonical);
    let precision = raw.precision.unwrap_or(Precision::Fp32);
    let corruption = raw.corruption.unwrap_or(Corruption::Spans);
    let train = TrainSpec {
        steps: raw.steps,
        seed: raw.seed.unwrap_or(1),
        sequence: raw.sequence,
        micro_batch_size: raw.micro_batch_size.unwrap_or(1),
        global_micro_batches: micro_batches,
        gradient_groups: match reduction {
            Reduction::Canonical => {
                raw.gradient_groups.unwrap_or(micro_batches.min(8).max(least_groups).min(micro_batches))
            }
            Reduction::Fast => data_ranks,
        },
        threads: raw.threads,
        reduction,
        tensor_shards: raw.tensor_shards,
        precision,
        loss_scale: loss_scale(raw, precision, faults),
        non_finite_max: raw.non_finite_max.unwrap_or(10),
        dropout: raw.dropout.unwrap_or(0.0),
        attention_dropout: raw.attention_dropout.unwrap_or(0.0),
        recompute: raw.recompute.map_or(RecomputePolicy::None, |kept| kept.0),
        optimizer: optimizer(raw, faults),
        parameter_norms: raw.parameter_norms.unwrap_or(false),
        mask_rate: raw.mask_rate.unwrap_or(if corruption == Corruption::Infilling { 0.3 } else { 0.15 }),
        corruption,
        separate_documents: raw.separate_documents.unwrap_or(false),
        validate_every: raw.validate_every.unwrap_or(0),
        whole_words: raw.whole_words.unwrap_or(false),
        pairs: false,
        start_from: raw.start_from.as_deref().and_then(|path| start_from(path, base, faults)),
    };
    faults.count("train.steps", train.steps, &limits::STEPS);
    let sequence = faults.count("train.sequence", train.sequence, &limits::SEQUENCE);
    let micro_batch = faults.count("train.micro_batch_size", train.micro_batch_size, &limits::MICRO_BATCH);
    let tokens = u64::from(train.sequence) * u64::from(train.micro_batch_size);
    if sequence && micro_batch && tokens > limits::MICRO_BATCH_TOKENS {
        let most = limits::MICRO_BATCH_TOKENS / u64::from(train.sequence);
        let message = format!(
            "found {}; with a train.sequence of {} must be {most} or less (at most {} tokens at once; more \
             belong into more micro-batches)",
            train.micro_batch_size,
            train.sequence,
            limits::MICRO_BATCH_TOKENS
        );
        faults.add("train.micro_batch_size", message);
    }
    let known = faults.count("train.global_micro_batches", micro_batches, &limits::MICRO_BATCHES);
    check_runs(&train, known, raw.gradient_groups, faults);
    check_rest(&train, faults);
    train
}

/// Micro-batches of a step: as many as are said, or as it takes for the batch.
fn micro_batches(raw: &RawTrain, faults: &mut Faults) -> u32 {
    let path = "train.batch_size";
    let Some(batch) = raw.batch_size else { return raw.global_micro_batches.unwrap_or(1) };
    let size = raw.micro_batch_size.unwrap_or(1).max(1);
    if raw.global_micro_batches.is_some() {
        let why = "it says the same in samples";
        faults.misplaced(path, format!("does not go with train.global_micro_batches: {why}; leave one out"));
    } else if faults.count(path, batch, &limits::BATCH) && !batch.is_multiple_of(size) {
        let why = "a step has whole micro-batches";
        faults.add(
            path,
            format!("found {batch}; must be a multiple of train.micro_batch_size ({size}): {why}"),
        );
    }
    batch / size
}

fn start_from(path: &str, base: &Path, faults: &mut Faults) -> Option<String> {
    let at = "train.start_from";
    if path.is_empty() {
        faults.never(at, "found an empty path; must name a folder".to_owned());
        return None;
    }
    let found = absolute(base, path);
    if found.is_none() {
        faults.never(at, format!("`{path}` lies in {}, which is not a UTF-8 path", base.display()));
    }
    found
}

fn check_runs(train: &TrainSpec, micro_batches_known: bool, given: Option<u32>, faults: &mut Faults) {
    let path = "train.gradient_groups";
    let TrainSpec { global_micro_batches: micro_batches, gradient_groups: found, .. } = *train;
    match (train.reduction, given) {
        (Reduction::Canonical, _) => {
            if micro_batches_known && !(1..=micro_batches).contains(&found) {
                let why = "a group holds at least one micro-batch";
                let must = format!("must be 1 to train.global_micro_batches ({micro_batches}): {why}");
                faults.add(path, format!("found {found}; {must}"));
            }
        }
        (Reduction::Fast, None) => {}
        (Reduction::Fast, Some(found)) => {
            let why = "each data rank is one group then";
            faults.add(path, format!("found {found}; must be left out with train.reduction fast: {why}"));
        }
    }
}

/// What depends on no other number.
fn check_rest(train: &TrainSpec, faults: &mut Faults) {
    if let Some(threads) = train.threads {
        faults.count("train.threads", threads, &limits::THREADS);
    }
    faults.count("train.non_finite_max", train.non_finite_max, &limits::NON_FINITE);
    for (path, share) in
        [("train.dropout", train.dropout), ("train.attention_dropout", train.attention_dropout)]
    {
        faults.number(path, share, |x| (0.0..1.0).contains(&x), "0 or more and below 1");
    }
    faults.number("train.mask_rate", train.mask_rate, |x| x > 0.0 && x < 1.0, "above 0 and below 1");
    if let RecomputePolicy::Budget { bytes } = train.recompute {
        faults.count("train.recompute.budget", bytes, &limits::BUDGET);
    }
}

fn loss_scale(raw: &RawTrain, precision: Precision, faults: &mut Faults) -> LossScale {
    let (initial, growth_steps) = ("train.initial_loss_scale", "train.loss_scale_growth_steps");
    let scale = raw.initial_loss_scale.unwrap_or(1 << 16);
    let steps = raw.loss_scale_growth_steps.unwrap_or(2000);
    if precision == Precision::Fp16 {
        if faults.count(initial, scale, &limits::LOSS_SCALE) && !scale.is_power_of_two() {
            let why = "so that scaling rounds nothing";
            let near = scale.next_power_of_two();
            faults.never(initial, format!("found {scale}; must be a power of two such as {near}, {why}"));
        }
        faults.count(growth_steps, steps, &limits::STEPS);
    } else {
        let with = "train.precision fp16 only (gradients of fp32 and bf16 need no scaling)";
        faults.only_with(initial, raw.initial_loss_scale.is_some(), with);
        faults.only_with(growth_steps, raw.loss_scale_growth_steps.is_some(), with);
    }
    LossScale { initial: scale as f64, growth_steps: steps }
}
