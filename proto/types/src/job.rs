//! What the user asked for, after every check has passed.
//!
//! A [`JobSpec`] is made in one place only, `coxswain_core::spec`, from the text of a job file;
//! that module owns the defaults, the limits and the messages.

use serde::{Deserialize, Serialize};

/// A checked job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobSpec {
    /// `[a-z0-9][a-z0-9._-]{0,63}`; names the run in logs and folders.
    pub name: String,
    /// The transformer.
    pub model: ModelSpec,
    /// The text.
    pub data: DataSpec,
    /// The training.
    pub train: TrainSpec,
    /// How many ways the work is split.
    pub layout: Layout,
    /// When checkpoints are written.
    pub checkpoint: CheckpointSpec,
}

/// A decoder-only transformer, LLaMA style: RMSNorm, RoPE, SwiGLU, grouped-query attention.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Number of transformer layers.
    pub layers: u32,
    /// Width of the residual stream.
    pub dim: u32,
    /// Number of query heads; divides `dim`.
    pub heads: u32,
    /// Number of key/value heads; divides `heads`.
    pub kv_heads: u32,
    /// Width of the feed-forward layer.
    pub ffn: u32,
    /// Number of tokens that the model knows.
    pub vocab: u32,
    /// Base of the rotary position encoding (arXiv 2104.09864).
    pub rope_theta: f64,
    /// Added to the mean square in RMSNorm (arXiv 1910.07467).
    pub norm_eps: f64,
}

impl ModelSpec {
    /// Width of one attention head.
    pub fn head_dim(&self) -> u32 {
        self.dim / self.heads.max(1)
    }
}

/// Where tokens come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DataSpec {
    /// Text files, tokenized by a byte-level BPE trained on them.
    Text {
        /// Absolute paths.
        files: Vec<String>,
        /// The share at the end of each file that is kept for the held-out loss, in `0..0.5`.
        held_out: f64,
    },
    /// Uniformly random tokens, for measurements of speed.
    Synthetic {
        /// How many tokens.
        tokens: u64,
    },
}

/// How to train.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TrainSpec {
    /// Optimizer steps in all.
    pub steps: u64,
    /// Seed of initial values and of the order of samples.
    pub seed: u64,
    /// Tokens in a sample.
    pub sequence: u32,
    /// Samples in a micro-batch. The micro-batch is the atom: its shape never changes with the layout.
    pub micro_batch: u32,
    /// Micro-batches in a step, over all data ranks.
    pub micro_batches: u32,
    /// Runs of consecutive micro-batches that are accumulated before the tree ([`crate::tree`]).
    pub reduction_runs: u32,
    /// Threads of each worker's libtorch. `None`: chosen once from the cores, then recorded.
    pub threads: Option<u32>,
    /// What is kept of a forward pass for the backward pass.
    pub checkpointing: Checkpointing,
    /// The optimizer's numbers.
    pub optimizer: OptimizerSpec,
    /// Steps between evaluations of the held-out loss; 0 for one at the end only.
    pub evaluate_every: u64,
}

/// What is kept of a layer's forward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Checkpointing {
    /// All intermediate values.
    None,
    /// The layer's input only; the rest is computed again in the backward pass (arXiv 1604.06174).
    Full,
}

/// AdamW with decoupled decay (arXiv 1711.05101), linear warm-up and cosine decay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerSpec {
    /// The rate after warm-up.
    pub learning_rate: f64,
    /// The rate at the last step.
    pub min_learning_rate: f64,
    /// Steps of linear warm-up.
    pub warmup_steps: u64,
    /// Decay of the running mean of gradients.
    pub beta1: f64,
    /// Decay of the running mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay, applied to matrices only.
    pub weight_decay: f64,
    /// Bound of the global gradient norm; 0 for none.
    pub clip_norm: f64,
}

/// How many ways the work is split along each axis of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Pipeline stages: different layers on different devices.
    pub pipeline: u32,
    /// Tensor ranks: single operations split across devices.
    pub tensor: u32,
    /// Data ranks: different micro-batches on different devices.
    pub data: u32,
}

impl Layout {
    /// Number of workers that the layout needs.
    pub fn world(&self) -> u32 {
        self.pipeline * self.tensor * self.data
    }
}

/// When checkpoints are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSpec {
    /// Steps between checkpoints; 0 for one at the end only.
    pub every: u64,
    /// How many committed checkpoints stay on disk, at least 1.
    pub keep: u32,
}
