//! A job written out with every default, so that a run's folder says what was run.

use coxswain_types::JobSpec;
use coxswain_types::job::DataSpec;

use super::error::{Fault, SpecError};
use super::raw::{Paths, RawCheckpoint, RawData, RawJob, RawLayout, RawModel, RawSynthetic, RawTrain};
use super::yaml;

/// The job as YAML that [`super::parse`] reads back to the same job. `train.threads` is left out
/// while nobody has chosen it.
///
/// # Errors
/// Never for a job that came out of [`super::parse`]; the writer of YAML could fail in theory.
pub fn resolved_yaml(job: &JobSpec) -> Result<String, SpecError> {
    yaml::write(&unchecked(job)).map_err(|message| Fault::in_file(&job.name, None, "", message).into())
}

fn unchecked(job: &JobSpec) -> RawJob {
    let model = RawModel {
        layers: job.model.layers,
        dim: job.model.dim,
        heads: job.model.heads,
        kv_heads: Some(job.model.kv_heads),
        ffn: Some(job.model.ffn),
        vocab: job.model.vocab,
        rope_theta: Some(job.model.rope_theta),
        norm_eps: Some(job.model.norm_eps),
    };
    let data = match &job.data {
        DataSpec::Text { files, held_out } => {
            RawData { text: Some(Paths::Many(files.clone())), held_out: Some(*held_out), synthetic: None }
        }
        DataSpec::Synthetic { tokens } => {
            RawData { text: None, held_out: None, synthetic: Some(RawSynthetic { tokens: *tokens }) }
        }
    };
    let layout = RawLayout {
        pipeline: Some(job.layout.pipeline),
        tensor: Some(job.layout.tensor),
        data: Some(job.layout.data),
    };
    let checkpoint = RawCheckpoint { every: Some(job.checkpoint.every), keep: Some(job.checkpoint.keep) };
    RawJob {
        name: job.name.clone(),
        model,
        data,
        train: train(job),
        layout: Some(layout),
        checkpoint: Some(checkpoint),
    }
}

fn train(job: &JobSpec) -> RawTrain {
    let (train, optimizer) = (&job.train, &job.train.optimizer);
    RawTrain {
        steps: train.steps,
        seed: Some(train.seed),
        sequence: train.sequence,
        micro_batch: Some(train.micro_batch),
        micro_batches: Some(train.micro_batches),
        reduction_runs: Some(train.reduction_runs),
        threads: train.threads,
        checkpointing: Some(train.checkpointing),
        learning_rate: Some(optimizer.learning_rate),
        min_learning_rate: Some(optimizer.min_learning_rate),
        warmup_steps: Some(optimizer.warmup_steps),
        betas: Some([optimizer.beta1, optimizer.beta2]),
        eps: Some(optimizer.eps),
        weight_decay: Some(optimizer.weight_decay),
        clip_norm: Some(optimizer.clip_norm),
        evaluate_every: Some(train.evaluate_every),
    }
}
