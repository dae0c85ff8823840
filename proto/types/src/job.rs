//! What the user asked for, after every check has passed.
//!
//! A [`JobSpec`] is made in one place only, `coxswain_core::spec`, from the text of a job file; that module owns the
//! defaults and the messages. One that was written down, in a checkpoint's manifest, is read back from there and
//! lies within [`crate::bounds`], or is refused.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::axis::AXES;
pub use crate::model::ModelSpec;
use crate::model::{Architecture, Head};
use crate::schedule::Action;

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
    /// The user's own schedule: the actions of each pipeline rank, over the micro-batches of one data
    /// rank counted from 0. Empty unless the layout's schedule is [`Schedule::Custom`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<Vec<Action>>,
    /// When checkpoints are written.
    pub checkpoint: CheckpointSpec,
    /// What becomes of the run when a worker is lost.
    #[serde(default)]
    pub recovery: RecoverySpec,
    /// Where several jobs wait, the one of the highest has its turn first.
    #[serde(default)]
    pub priority: i32,
}

impl JobSpec {
    /// Whether ranks keep replicas for each other: it is asked for, and there are ranks that alone hold something.
    pub fn keeps_peer_replicas(&self) -> bool {
        self.recovery.peer_replica && (self.layout.data == 1 || self.layout.zero) && self.layout.world() > 1
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
        /// The share at the end of each file that is kept for the validation loss, in `0..0.5`.
        validation: f64,
    },
    /// Files of lines, each a class, a tab, and a text of that class.
    Labelled {
        /// Absolute paths.
        files: Vec<String>,
        /// The names of the classes, in the order of their numbers; empty where lines have numbers.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        classes: Vec<String>,
        /// The share of each class's lines, at the end of each file, that is kept for the validation loss, in `0..0.5`.
        validation: f64,
        /// Whether each line ends with a tab and its weight in the loss.
        #[serde(default)]
        weights: bool,
    },
    /// Files of lines, each a prompt, a tab, and the answer to it.
    Pairs {
        /// Absolute paths.
        files: Vec<String>,
        /// The share of lines at the end of each file that is kept for the validation loss, in `0..0.5`.
        validation: f64,
        /// Whether each line ends with a tab and its weight in the loss.
        #[serde(default)]
        weights: bool,
    },
    /// Uniformly random tokens, for measurements of speed. Readers compute them; no file holds them.
    Synthetic {
        /// How many tokens.
        tokens: u64,
    },
}

impl DataSpec {
    /// The key that names its files, and the files; `None` where tokens come from no file.
    pub fn files(&self) -> Option<(&'static str, &[String])> {
        match self {
            DataSpec::Text { files, .. } => Some(("data.text", files)),
            DataSpec::Labelled { files, .. } => Some(("data.labelled", files)),
            DataSpec::Pairs { files, .. } => Some(("data.pairs", files)),
            DataSpec::Synthetic { .. } => None,
        }
    }

    /// What the loss is a mean over.
    pub fn unit(&self) -> &'static str {
        if matches!(self, DataSpec::Labelled { .. }) { "line" } else { "token" }
    }

    /// The names of the classes, in the order of their numbers; empty where they have none.
    pub fn class_names(&self) -> &[String] {
        match self {
            DataSpec::Labelled { classes, .. } => classes,
            DataSpec::Text { .. } | DataSpec::Pairs { .. } | DataSpec::Synthetic { .. } => &[],
        }
    }

    /// What a class is called: by its name, or by its number.
    pub fn class_name(&self, class: usize) -> String {
        self.class_names().get(class).cloned().unwrap_or_else(|| class.to_string())
    }
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
    pub micro_batch_size: u32,
    /// Micro-batches in a step, over all data ranks.
    pub global_micro_batches: u32,
    /// Groups of consecutive micro-batches that are accumulated before the tree ([`crate::tree`]).
    pub gradient_groups: u32,
    /// Threads of each worker's libtorch. `None`: chosen once from the cores, then recorded.
    pub threads: Option<u32>,
    /// Whether the order of sums is the same in every layout.
    pub reduction: Reduction,
    /// Logical tensor shards, whose partial sums are added in a fixed tree whatever `layout.tensor`
    /// is. `None`: as many as there are tensor ranks, so that the bits depend on `layout.tensor`.
    pub tensor_shards: Option<u32>,
    /// What forward and backward compute in. Weights, moments and sums of gradients are fp32.
    pub precision: Precision,
    /// Dynamic loss scaling, for [`Precision::Fp16`].
    pub loss_scale: LossScale,
    /// Steps in a row whose loss or gradients are not finite, after which the run stops.
    pub non_finite_max: u32,
    /// The share of values that is dropped after the embedding, the attention and the feed-forward
    /// layer, in `0..1`.
    pub dropout: f64,
    /// The share of attention probabilities that is dropped, in `0..1`.
    pub attention_dropout: f64,
    /// What is kept of a forward pass for the backward pass.
    pub recompute: RecomputePolicy,
    /// The optimizer's numbers.
    pub optimizer: OptimizerSpec,
    /// Steps between evaluations of the validation loss; 0 for one at the end only.
    pub validate_every: u64,
    /// Whether each step's record names the gradient norm of every parameter.
    pub parameter_norms: bool,
    /// The share of tokens that a masked language model is asked for, in `0..1`.
    pub mask_rate: f64,
    /// What an encoder-decoder is asked to restore.
    pub corruption: Corruption,
    /// Whether a token sees its own document only, where a sample holds parts of several.
    pub separate_documents: bool,
    /// Whether a masked word is hidden with all its tokens.
    #[serde(default)]
    pub whole_words: bool,
    /// Whether samples are prompts with answers, of which answers alone are asked for.
    #[serde(default)]
    pub pairs: bool,
    /// The absolute path of a run's folder, or of an imported model's: its newest checkpoint has the initial
    /// weights, and its tokenizer is the job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_from: Option<String>,
}

impl TrainSpec {
    /// Number of logical tensor shards under `tensor` tensor ranks.
    pub fn shards(&self, tensor: u32) -> u32 {
        self.tensor_shards.unwrap_or(tensor)
    }
}

/// What is done to a text before an encoder reads it; its decoder writes what was there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Corruption {
    /// Spans are taken out, and a token of its own stands for each; the decoder writes the spans, each
    /// after its token (T5, arXiv 1910.10683).
    Spans,
    /// Spans are taken out, and one and the same token stands for each, some of nothing; the decoder
    /// writes the whole text (BART, arXiv 1910.13461; sentences keep their order).
    Infilling,
}

/// Mean length of a span that is taken out, in tokens, of both papers.
pub const SPAN_TOKENS: u32 = 3;

/// The decoder's length is a multiple of this under [`Corruption::Spans`], so that the sequence can be
/// split over tensor ranks.
const TARGET_MULTIPLE: u32 = 16;

/// Tokens of a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    /// Of the text that it is made from.
    pub window: u32,
    /// That the encoder in front of a decoder reads; 0 where there is none.
    pub source: u32,
    /// Of the stack that ends with the head.
    pub target: u32,
}

impl Lengths {
    /// The lengths of a job's samples. With [`Corruption::Spans`] the encoder reads `train.sequence`
    /// tokens, which stand for a longer text.
    pub fn of(model: &ModelSpec, train: &TrainSpec) -> Lengths {
        let sequence = train.sequence;
        if matches!(model.head, Head::Pooled { .. }) {
            // A line of labelled text: its weight, its class, its number of tokens, and these, filled up.
            return Lengths { window: sequence.saturating_add(3), source: 0, target: sequence };
        }
        let both = model.architecture == Architecture::EncoderDecoder;
        if train.pairs {
            // A weight and two lengths come before the tokens: of one after the other, which is an input less
            // than there are tokens, or of two texts.
            let window = sequence.saturating_mul(if both { 2 } else { 1 });
            let window = window.saturating_add(if both { 3 } else { 4 });
            return Lengths { window, source: if both { sequence } else { 0 }, target: sequence };
        }
        if !both {
            return Lengths { window: sequence, source: 0, target: sequence };
        }
        match train.corruption {
            Corruption::Infilling => Lengths { window: sequence, source: sequence, target: sequence },
            Corruption::Spans => {
                let corrupted = |window: u32| {
                    let (noise, spans) = noise(window, train.mask_rate);
                    window.saturating_sub(noise).saturating_add(spans + 1)
                };
                let kept = 1.0 - train.mask_rate + train.mask_rate / f64::from(SPAN_TOKENS);
                let mut window = (f64::from(sequence) / kept) as u32;
                // Rounding moves the estimate by a few tokens at most.
                while window > 2 && corrupted(window) > sequence {
                    window -= 1;
                }
                while corrupted(window + 1) <= sequence && window < sequence.saturating_mul(64) {
                    window += 1;
                }
                let (noise, spans) = noise(window, train.mask_rate);
                let target = (noise + spans + 1).next_multiple_of(TARGET_MULTIPLE);
                Lengths { window, source: sequence, target }
            }
        }
    }
}

/// How many of `window` tokens are taken out, and in how many spans.
pub fn noise(window: u32, share: f64) -> (u32, u32) {
    let most = window.saturating_sub(1).max(1);
    let noise = ((f64::from(window) * share).round() as u32).clamp(1, most);
    let spans = (f64::from(noise) / f64::from(SPAN_TOKENS)).round() as u32;
    (noise, spans.clamp(1, (window.max(2) - noise).min(noise).max(1)))
}

/// Tokens at the end of the vocabulary that no text has, but stand for parts of it.
pub fn reserved_tokens(model: &ModelSpec, train: &TrainSpec) -> u32 {
    match (model.architecture, train.corruption) {
        (Architecture::EncoderDecoder, _) if train.pairs => 0,
        (Architecture::EncoderDecoder, Corruption::Spans) => {
            noise(Lengths::of(model, train).window, train.mask_rate).1
        }
        (Architecture::EncoderDecoder, Corruption::Infilling) => 1,
        _ => u32::from(matches!(model.head, Head::MaskedLm { .. })),
    }
}

/// The order in which gradients are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reduction {
    /// Gradient groups in a fixed tree: the same bits for every number of data ranks.
    Canonical,
    /// One gradient group for each data rank: fewer buffers, and bits that depend on the number of data ranks.
    Fast,
}

/// What forward and backward compute in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Single precision.
    Fp32,
    /// bfloat16, with the range of fp32.
    Bf16,
    /// Half precision, whose gradients need dynamic loss scaling (arXiv 1710.03740).
    Fp16,
}

impl Precision {
    /// Bytes of one number.
    pub fn bytes(self) -> u64 {
        match self {
            Precision::Fp32 => 4,
            Precision::Bf16 | Precision::Fp16 => 2,
        }
    }

    /// Its name in job files and fingerprints.
    pub fn name(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Bf16 => "bf16",
            Precision::Fp16 => "fp16",
        }
    }
}

/// Dynamic loss scaling: the loss is multiplied by a power of two, which halves after a step that
/// overflowed and doubles after `growth_steps` good ones in a row.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct LossScale {
    /// The first scale, a power of two.
    pub initial: f64,
    /// Good steps in a row after which the scale doubles.
    pub growth_steps: u64,
}

/// What is kept of a layer's forward pass; the rest is computed again in the backward pass (arXiv
/// 1604.06174).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecomputePolicy {
    /// All intermediate values.
    None,
    /// The layer's input only.
    Full,
    /// The inputs of the attention block and of the feed-forward block, and all of the block that is
    /// not computed again (arXiv 2205.05198).
    Selective(Block),
    /// As many layers in full as it takes for each worker's estimate to stay below so many bytes.
    Budget {
        /// The bytes.
        bytes: u64,
    },
}

/// One of the two blocks of a transformer layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Block {
    /// Norm, projections, attention.
    Attention,
    /// Norm, feed-forward layer.
    Ffn,
}

/// How weights are updated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerKind {
    /// AdamW for all parameters (arXiv 1711.05101).
    AdamW,
    /// Muon for the matrices of layers (momentum, made orthogonal by Newton-Schulz iterations; arXiv
    /// 2502.16982), AdamW for embedding, head and norms.
    Muon,
}

/// The learning rate after warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateSchedule {
    /// Half a cosine down to the minimum at the last step.
    Cosine,
    /// A straight line down to the minimum at the last step.
    Linear,
    /// The rate stays, then falls in a straight line to the minimum over the last steps (warm-up,
    /// stable, decay; arXiv 2404.06395).
    Wsd {
        /// The steps of the fall.
        decay_steps: u64,
    },
    /// The rate stays.
    Constant,
}

/// The optimizer, with decoupled decay (arXiv 1711.05101) and linear warm-up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OptimizerSpec {
    /// Which.
    pub kind: OptimizerKind,
    /// Muon's momentum.
    pub momentum: f64,
    /// What the learning rate does after warm-up.
    pub schedule: RateSchedule,
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

/// How many ways the work is split along each axis of the mesh, and in what order it is done. None of
/// it changes a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layout {
    /// Pipeline ranks: different layers on different devices.
    pub pipeline: u32,
    /// Tensor ranks: single operations split across devices.
    pub tensor: u32,
    /// Data ranks: different micro-batches on different devices.
    pub data: u32,
    /// The order of forwards and backwards on a pipeline rank.
    pub schedule: Schedule,
    /// Whether what lies between tensor-parallel products is split over the sequence (arXiv
    /// 2205.05198).
    pub sequence_parallel: bool,
    /// Whether the optimizer's state is sharded over the data axis (ZeRO-1, arXiv 1910.02054).
    pub zero: bool,
}

impl Layout {
    /// One process that does all of the work.
    pub const ONE: Layout = Layout {
        pipeline: 1,
        tensor: 1,
        data: 1,
        schedule: Schedule::OneFOneB,
        sequence_parallel: false,
        zero: false,
    };

    /// Number of workers that the layout needs.
    pub fn world(&self) -> u32 {
        AXES.iter().map(|axis| self.ways(axis)).product()
    }

    /// Number of pipeline stages: each pipeline rank holds as many as the schedule has chunks.
    pub fn stages(&self) -> u32 {
        self.pipeline * self.schedule.chunks()
    }
}

/// The order of forwards and backwards on a pipeline rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// All forwards, then all backwards (arXiv 1811.06965).
    #[serde(rename = "gpipe")]
    GPipe,
    /// One forward, one backward (arXiv 2104.04473).
    #[serde(rename = "1f1b")]
    OneFOneB,
    /// 1F1B over several stages on each rank: stage s is on rank s mod p (arXiv 2104.04473).
    Interleaved {
        /// Stages of a rank, 2 or more.
        chunks: u32,
    },
    /// ZB-H1: weight gradients fill the bubbles of 1F1B (arXiv 2401.10241).
    #[serde(rename = "zb-h1")]
    ZbH1,
    /// The lists in [`JobSpec::actions`].
    Custom {
        /// Stages of a rank.
        chunks: u32,
    },
}

impl Schedule {
    /// Stages of a rank.
    pub fn chunks(self) -> u32 {
        match self {
            Schedule::Interleaved { chunks } | Schedule::Custom { chunks } => chunks,
            Schedule::GPipe | Schedule::OneFOneB | Schedule::ZbH1 => 1,
        }
    }
}

/// What becomes of a run when a worker is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecoverySpec {
    /// When a worker is lost.
    pub on_loss: OnLoss,
    /// Whether a neighbour holds a copy of what one rank alone has: its weights and its optimizer's state.
    pub peer_replica: bool,
    /// Whether a rank that is slower than its peers gets less work, or a spare takes its place.
    #[serde(default)]
    pub rebalance: bool,
}

/// What a run does when a worker is lost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnLoss {
    /// Waits until there are workers enough, and goes on.
    #[default]
    Wait,
    /// Goes on with fewer data ranks, or pipeline ranks, until there are workers enough again.
    Shrink,
    /// Ends.
    Fail,
}

/// When checkpoints are written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointSpec {
    /// Steps between checkpoints; 0 where steps are not counted.
    pub every: u64,
    /// Minutes after its newest checkpoint in which a run writes another; 0 where time is not counted.
    pub every_minutes: u32,
    /// How many committed checkpoints stay on disk, at least 1.
    pub keep: u32,
}
