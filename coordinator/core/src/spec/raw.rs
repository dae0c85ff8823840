//! The job file as it is written. These structs are the format: each key with its meaning, its unit
//! and its default. They are not checked; [`super::parse`] turns them into a `JobSpec`.

use std::fmt;

use coxswain_types::job::Checkpointing;
use serde::de::{Deserializer, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// A job file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawJob {
    /// The name of the run in logs and folders: 1 to 64 of a-z, 0-9, `.`, `_` and `-`, beginning
    /// with a letter or a digit.
    pub name: String,
    /// The transformer.
    pub model: RawModel,
    /// The text.
    pub data: RawData,
    /// The training.
    pub train: RawTrain,
    /// How many ways the work is split. Default: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<RawLayout>,
    /// When checkpoints are written. Default: at the end only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<RawCheckpoint>,
}

/// `model`: a decoder-only transformer, LLaMA style.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawModel {
    /// Number of transformer layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub dim: u32,
    /// Number of query heads. Divides `dim`, and `dim / heads` is even.
    pub heads: u32,
    /// Number of key/value heads. Divides `heads`. Default: `heads`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<u32>,
    /// Width of the feed-forward layer. Default: 8/3 of `dim`, rounded up to a multiple of 64.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ffn: Option<u32>,
    /// Number of tokens that the model knows. With text at least 257: the bytes and the end of text.
    pub vocab: u32,
    /// Base of the rotary position encoding. Default: 10000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Added to the mean square in RMSNorm. Default: 1e-5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub norm_eps: Option<f64>,
}

/// `data`: where tokens come from; either `text` or `synthetic`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawData {
    /// One path or a list of paths of text files. Relative ones start from the job file's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<Paths>,
    /// The share at the end of each file that is kept for the held-out loss: 0 to below 0.5.
    /// Default: 0.05.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub held_out: Option<f64>,
    /// Uniformly random tokens, for measurements of speed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<RawSynthetic>,
}

/// `data.synthetic`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawSynthetic {
    /// How many tokens.
    pub tokens: u64,
}

/// `train`: how to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawTrain {
    /// Optimizer steps in all.
    pub steps: u64,
    /// Seed of initial values and of the order of samples. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Tokens in a sample.
    pub sequence: u32,
    /// Samples in a micro-batch. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batch: Option<u32>,
    /// Micro-batches in a step, over all data ranks together. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub micro_batches: Option<u32>,
    /// Runs of consecutive micro-batches whose gradients are accumulated before they are combined
    /// in a fixed tree; the same for every layout. Default: `micro_batches`, at most 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduction_runs: Option<u32>,
    /// Threads of each worker's libtorch. Default: chosen once from the cores, then recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threads: Option<u32>,
    /// `none` keeps all intermediate values for the backward pass, `full` keeps the input of each
    /// layer only and computes the rest again. Default: `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpointing: Option<Checkpointing>,
    /// The learning rate after warm-up. Default: 3e-4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate: Option<f64>,
    /// The learning rate at the last step, reached along a cosine. Default: a tenth of
    /// `learning_rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_learning_rate: Option<f64>,
    /// Steps of linear warm-up. Default: a tenth of `steps`, at most 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// AdamW's decay of the running means of gradients and of their squares. Default: [0.9, 0.95].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// Added to the root of the second moment. Default: 1e-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// Decoupled weight decay, applied to matrices only. Default: 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_decay: Option<f64>,
    /// Bound of the global gradient norm; 0 for none. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Steps between evaluations of the held-out loss; 0 for one at the end only. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evaluate_every: Option<u64>,
}

/// `layout`: how many ways the work is split; their product is the number of workers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawLayout {
    /// Pipeline stages, each with some of the layers. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<u32>,
    /// Tensor ranks, each with some of the heads of every layer. Divides `model.heads`. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensor: Option<u32>,
    /// Data ranks, each with some of the micro-batches. At most `train.reduction_runs`. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<u32>,
}

/// `checkpoint`: when checkpoints are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawCheckpoint {
    /// Steps between checkpoints; 0 for one at the end only. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// How many committed checkpoints stay on disk. Default: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep: Option<u32>,
}

/// One path or a list of paths.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Paths {
    /// `text: a.txt`
    One(String),
    /// `text: [a.txt, b.txt]`
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for Paths {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Paths, D::Error> {
        struct OneOrMany;

        impl<'de> Visitor<'de> for OneOrMany {
            type Value = Paths;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path or a list of paths")
            }

            fn visit_str<E>(self, path: &str) -> Result<Paths, E> {
                Ok(Paths::One(path.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Paths, A::Error> {
                let mut paths = Vec::new();
                while let Some(path) = list.next_element()? {
                    paths.push(path);
                }
                Ok(Paths::Many(paths))
            }
        }

        deserializer.deserialize_any(OneOrMany)
    }
}
