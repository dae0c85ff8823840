//! A job written out with every default, so that a run's folder says what was run.

use std::collections::{BTreeMap, BTreeSet};

use coxswain_types::JobSpec;
use coxswain_types::job::{DataSpec, ModelSpec, OptimizerKind, Precision, RateSchedule, Reduction, Schedule};
use coxswain_types::model::{Architecture, Head};
use coxswain_types::schedule::Action;
use serde_json::Value;

use super::error::{SpecError, SpecFault};
use super::raw::{
    OptimizerName, OrAuto, Paths, RateScheduleName, RawCheckpoint, RawData, RawJob, RawLayout, RawModel,
    RawRecovery, RawSynthetic, RawTrain, RecomputeSetting, ScheduleName, ZeroStage,
};
use super::yaml;
use crate::code::ErrorCode;

mod model;

/// The job as YAML that [`super::parse`] reads back to the same job. `train.threads` is left out
/// until it is chosen, and so are keys that go with another choice.
///
/// # Errors
/// Never for a job that came out of [`super::parse`]; the writer of YAML could fail in theory.
pub fn resolved_yaml(job: &JobSpec) -> Result<String, SpecError> {
    raw_yaml(&unchecked(job))
}

/// A job that was not checked, as YAML; keys without a value are left out.
///
/// # Errors
/// Never for what a job file can say; the writer of YAML could fail in theory.
pub fn raw_yaml(job: &RawJob) -> Result<String, SpecError> {
    yaml::write(job)
        .map_err(|message| SpecFault::in_file(&job.name, None, "", ErrorCode::Unwritable, message).into())
}

/// A model with every key of the job file that it has.
pub fn raw_model(model: &ModelSpec) -> RawModel {
    model::model(model)
}

/// A job's layout as a value of `--set layout=`.
pub fn layout_value(job: &JobSpec) -> String {
    // Every key is a text, so this is always JSON, which YAML takes.
    serde_json::to_string(&layout(job)).unwrap_or_default()
}

/// A key of two jobs that differs, with its value in each as JSON; `None` where it is left out.
#[derive(Clone, Debug, PartialEq)]
pub struct SpecDifference {
    /// The key, such as `train.learning_rate`.
    pub key: String,
    /// In the first job.
    pub was: Option<Value>,
    /// In the second.
    pub is: Option<Value>,
}

/// The keys in which two jobs differ, in the order of their names.
pub fn differences(was: &JobSpec, is: &JobSpec) -> Vec<SpecDifference> {
    let (was, is) = (key_values(was), key_values(is));
    let keys: BTreeSet<&String> = was.keys().chain(is.keys()).collect();
    let differs = keys.into_iter().filter(|key| was.get(*key) != is.get(*key));
    differs
        .map(|key| SpecDifference { key: key.clone(), was: was.get(key).cloned(), is: is.get(key).cloned() })
        .collect()
}

/// All values of a job by their keys.
pub fn key_values(job: &JobSpec) -> BTreeMap<String, Value> {
    let mut values = BTreeMap::new();
    // Every key of a job is a text, so this is always a tree.
    flatten(String::new(), serde_json::to_value(unchecked(job)).unwrap_or_default(), &mut values);
    values
}

fn flatten(key: String, value: Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                let key = if key.is_empty() { name } else { format!("{key}.{name}") };
                flatten(key, value, into);
            }
        }
        value => {
            into.insert(key, value);
        }
    }
}

fn unchecked(job: &JobSpec) -> RawJob {
    let many = |files: &[String]| Some(Paths::Many(files.to_vec()));
    let data = match &job.data {
        DataSpec::Text { files, validation } => {
            RawData { text: many(files), validation: Some(*validation), ..RawData::default() }
        }
        DataSpec::Labelled { files, classes, validation, weights } => {
            let (weights, validation) = (Some(*weights), Some(*validation));
            let classes = (!classes.is_empty()).then(|| classes.clone());
            RawData { labelled: many(files), classes, weights, validation, ..RawData::default() }
        }
        DataSpec::Pairs { files, validation, weights } => {
            let (weights, validation) = (Some(*weights), Some(*validation));
            RawData { pairs: many(files), weights, validation, ..RawData::default() }
        }
        DataSpec::Synthetic { tokens } => {
            RawData { synthetic: Some(RawSynthetic { tokens: *tokens }), ..RawData::default() }
        }
    };
    let checkpoint = RawCheckpoint {
        every: Some(job.checkpoint.every),
        every_minutes: Some(job.checkpoint.every_minutes),
        keep: Some(job.checkpoint.keep),
    };
    RawJob {
        name: job.name.clone(),
        model: raw_model(&job.model),
        data,
        train: train(job),
        layout: Some(layout(job)),
        checkpoint: Some(checkpoint),
        recovery: Some(RawRecovery {
            on_loss: Some(job.recovery.on_loss),
            peer_replica: Some(job.recovery.peer_replica),
            rebalance: Some(job.recovery.rebalance),
        }),
        priority: Some(job.priority),
    }
}

fn train(job: &JobSpec) -> RawTrain {
    let (train, optimizer) = (&job.train, &job.train.optimizer);
    let canonical = train.reduction == Reduction::Canonical;
    let fp16 = train.precision == Precision::Fp16;
    let masked = matches!(job.model.head, Head::MaskedLm { .. });
    let corrupts = job.model.architecture == Architecture::EncoderDecoder && !train.pairs;
    let (optimizer_name, momentum) = match optimizer.kind {
        OptimizerKind::AdamW => (OptimizerName::AdamW, None),
        OptimizerKind::Muon => (OptimizerName::Muon, Some(optimizer.momentum)),
    };
    let (schedule, decay_steps) = match optimizer.schedule {
        RateSchedule::Cosine => (RateScheduleName::Cosine, None),
        RateSchedule::Linear => (RateScheduleName::Linear, None),
        RateSchedule::Wsd { decay_steps } => (RateScheduleName::Wsd, Some(decay_steps)),
        RateSchedule::Constant => (RateScheduleName::Constant, None),
    };
    let falls = optimizer.schedule != RateSchedule::Constant;
    RawTrain {
        steps: train.steps,
        seed: Some(train.seed),
        sequence: train.sequence,
        micro_batch_size: Some(train.micro_batch_size),
        global_micro_batches: Some(train.global_micro_batches),
        batch_size: None,
        gradient_groups: canonical.then_some(train.gradient_groups),
        threads: train.threads,
        reduction: Some(train.reduction),
        tensor_shards: train.tensor_shards,
        precision: Some(train.precision),
        // A power of two of at most 2^24, as the spec demands: the cast changes nothing.
        initial_loss_scale: fp16.then_some(train.loss_scale.initial as u64),
        loss_scale_growth_steps: fp16.then_some(train.loss_scale.growth_steps),
        non_finite_max: Some(train.non_finite_max),
        dropout: Some(train.dropout),
        attention_dropout: Some(train.attention_dropout),
        recompute: Some(RecomputeSetting(train.recompute)),
        optimizer: Some(optimizer_name),
        momentum,
        learning_rate: Some(optimizer.learning_rate),
        learning_rate_schedule: Some(schedule),
        min_learning_rate: falls.then_some(optimizer.min_learning_rate),
        decay_steps,
        warmup_steps: Some(optimizer.warmup_steps),
        betas: Some([optimizer.beta1, optimizer.beta2]),
        eps: Some(optimizer.eps),
        weight_decay: Some(optimizer.weight_decay),
        clip_norm: Some(optimizer.clip_norm),
        validate_every: Some(train.validate_every),
        parameter_norms: Some(train.parameter_norms),
        mask_rate: (masked || corrupts).then_some(train.mask_rate),
        whole_words: masked.then_some(train.whole_words),
        corruption: corrupts.then_some(train.corruption),
        separate_documents: Some(train.separate_documents),
        start_from: train.start_from.clone(),
    }
}

fn layout(job: &JobSpec) -> RawLayout {
    let layout = &job.layout;
    let (schedule, chunks) = match layout.schedule {
        Schedule::GPipe => (ScheduleName::GPipe, None),
        Schedule::OneFOneB => (ScheduleName::OneFOneB, None),
        Schedule::Interleaved { chunks } => (ScheduleName::Interleaved, Some(chunks)),
        Schedule::ZbH1 => (ScheduleName::ZbH1, None),
        Schedule::Custom { chunks } => (ScheduleName::Custom, Some(chunks)),
    };
    let line = |list: &Vec<Action>| list.iter().map(Action::to_string).collect::<Vec<_>>().join(",") + "\n";
    RawLayout {
        pipeline: Some(OrAuto::Is(layout.pipeline)),
        tensor: Some(OrAuto::Is(layout.tensor)),
        data: Some(OrAuto::Is(layout.data)),
        schedule: Some(OrAuto::Is(schedule)),
        chunks,
        actions: (!job.actions.is_empty()).then(|| job.actions.iter().map(line).collect()),
        sequence_parallel: Some(OrAuto::Is(layout.sequence_parallel)),
        zero: Some(OrAuto::Is(ZeroStage(layout.zero.into()))),
        memory: None,
        max_tensor: None,
        keep_exact: None,
    }
}
