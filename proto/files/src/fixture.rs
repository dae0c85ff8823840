//! What the tests of this crate share: a small job, and slabs of tensors whose elements say their
//! own global number.

use coxswain_types::JobSpec;
use coxswain_types::assignment::{PreparedData, TokenFile};
use coxswain_types::job::{
    CheckpointSpec, DataSpec, Layout, LossScale, ModelSpec, OptimizerKind, OptimizerSpec, Precision,
    RateSchedule, RecomputePolicy, RecoverySpec, Reduction, TrainSpec,
};
use coxswain_types::status::SavedFile;

use crate::manifest::{Fingerprint, Header};
use crate::region::{Slab, runs};
use crate::shards::{ShardTensor, write_shard};
use crate::store::StoreFolder;

/// A job over `data`.
pub(crate) fn spec(data: DataSpec) -> JobSpec {
    JobSpec {
        name: "tiny".into(),
        model: ModelSpec::llama(1, 8, 2, 1, 16, 300),
        data,
        train: TrainSpec {
            steps: 2,
            seed: 1,
            sequence: 16,
            micro_batch_size: 1,
            global_micro_batches: 2,
            gradient_groups: 2,
            threads: Some(1),
            reduction: Reduction::Canonical,
            tensor_shards: None,
            precision: Precision::Fp32,
            loss_scale: LossScale { initial: 65536.0, growth_steps: 2000 },
            non_finite_max: 10,
            dropout: 0.0,
            attention_dropout: 0.0,
            recompute: RecomputePolicy::None,
            optimizer: OptimizerSpec {
                kind: OptimizerKind::AdamW,
                momentum: 0.95,
                schedule: RateSchedule::Cosine,
                learning_rate: 1e-3,
                min_learning_rate: 1e-4 / 3.0,
                warmup_steps: 1,
                beta1: 0.9,
                beta2: 0.95,
                eps: 1e-8,
                weight_decay: 0.1,
                clip_norm: 1.0,
            },
            validate_every: 0,
            parameter_norms: false,
            mask_rate: 0.15,
            corruption: coxswain_types::job::Corruption::Spans,
            separate_documents: false,
            whole_words: false,
            pairs: false,
            start_from: None,
        },
        layout: Layout::ONE,
        actions: Vec::new(),
        checkpoint: CheckpointSpec { every: 0, every_minutes: 0, keep: 2 },
        recovery: RecoverySpec::default(),
        priority: 0,
    }
}

/// The header of a manifest after `step` steps.
pub(crate) fn header(step: u64) -> Header {
    let train = TokenFile { path: "data/train.tokens".into(), tokens: 100, digest: "d".into() };
    Header {
        job: "tiny-1".into(),
        step,
        spec: spec(DataSpec::Synthetic { tokens: 100 }),
        fingerprint: Some(Fingerprint {
            runtime: "cpu".into(),
            threads: 1,
            dtype: "fp32".into(),
            precision: "fp32".into(),
            global_micro_batches: 2,
            micro_batch_size: 1,
            gradient_groups: 2,
            tensor_shards: 0,
        }),
        data: PreparedData::of_tokens(train),
    }
}

/// A slab whose elements are their own numbers in the whole tensor, as `f32`.
pub(crate) fn slab(name: &str, shape: &[u64], dim: u8, offset: u64, len: u64) -> (ShardTensor, Vec<u8>) {
    let tensor = ShardTensor { name: name.into(), shape: shape.to_vec(), dim, offset, len };
    let mut numbers = Vec::new();
    for run in runs(shape, Slab::whole(shape), tensor.cut()).unwrap() {
        numbers.extend((run.from..run.from + run.len).flat_map(|n| (n as f32).to_le_bytes()));
    }
    (tensor, numbers)
}

/// Writes a shard file into a folder.
pub(crate) fn write(folder: &StoreFolder, name: &str, slabs: &[(ShardTensor, Vec<u8>)]) -> SavedFile {
    let tensors: Vec<_> = slabs.iter().map(|(tensor, _)| tensor.clone()).collect();
    write_shard(folder, name, &tensors, |index, slab| slab.write(&slabs[index].1)).unwrap()
}
