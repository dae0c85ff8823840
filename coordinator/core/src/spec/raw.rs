//! The job file as it is written. These structs are the format: each key with its meaning, its unit
//! and its default. They are not checked; [`super::parse`] turns them into a `JobSpec`.

use coxswain_types::job::{Corruption, OnLoss, Precision, Reduction};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::limits;
use super::schema::{each_a_share, or_auto, within};

mod model;

pub use model::{
    ActivationName, AttentionName, BiasNames, HeadName, PositionsName, RawAttention, RawModel,
    RawRopeScaling, RopeScalingName,
};

pub use super::values::{
    BudgetBytes, OptimizerName, OrAuto, Paths, RateScheduleName, RecomputeSetting, ScheduleName, ZeroStage,
};

/// A job file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawJob {
    /// The name of the run in logs and folders: 1 to 64 of a-z, 0-9, `.`, `_` and `-`, beginning
    /// with a letter or a digit.
    #[schemars(extend("pattern" = super::check::name_pattern()))]
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
    /// When checkpoints are written, beside the one at the end. Default: every 10 minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<RawCheckpoint>,
    /// What becomes of the run when a worker is lost. Default: it waits for another one, and goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recovery: Option<RawRecovery>,
    /// Which job has its turn first where several wait: the one of the higher number, and of equal ones the
    /// one that was submitted first. A job at work is not interrupted for another. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = i32::MIN, "maximum" = i32::MAX))]
    pub priority: Option<i32>,
}

/// `data`: where tokens come from; one of `text`, `labelled`, `pairs` and `synthetic`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawData {
    /// One path or a list of paths of text files. Relative ones start from the job file's folder.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<Paths>,
    /// One path or a list of paths of files of labelled lines, for `model.head: pooled`: a class, a tab, and
    /// a text of that class. A class is a number from 0 on, or one of the names in `classes`. Texts of more
    /// than `train.sequence` tokens are cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labelled: Option<Paths>,
    /// The names of the classes of `labelled`, in the order of their numbers, as many as
    /// `model.classes`, such as `[neg, pos]`. Default:
    /// numbers from 0 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(inner(length(min = 1)))]
    pub classes: Option<Vec<String>>,
    /// One path or a list of paths of files of pairs, for decoders and encoder-decoders: a prompt, a tab, and
    /// its answer. Only the answer's tokens count in the loss. A decoder reads one after the other, cut to
    /// `train.sequence` tokens; an encoder reads the prompt and its decoder writes the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pairs: Option<Paths>,
    /// Whether each line of `labelled` or `pairs` ends with a tab and its weight, 0.001 to 1000: what each of
    /// its targets counts in the loss, which is divided by the sum of weights. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<bool>,
    /// The share at the end of each file that is kept for the validation loss: 0 to below 0.5. Of `labelled`,
    /// the share of the lines of each class. Default: 0.05.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 0.5))]
    pub validation: Option<f64>,
    /// Uniformly random tokens, for measurements of speed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<RawSynthetic>,
}

/// `data.synthetic`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawSynthetic {
    /// How many tokens.
    #[schemars(transform = within(&limits::SYNTHETIC_TOKENS))]
    pub tokens: u64,
}

/// `train`: how to train.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawTrain {
    /// Optimizer steps in all.
    #[schemars(transform = within(&limits::STEPS))]
    pub steps: u64,
    /// Seed of initial values and of the order of samples. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Tokens in a sample.
    #[schemars(transform = within(&limits::SEQUENCE))]
    pub sequence: u32,
    /// Samples in a micro-batch. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::MICRO_BATCH))]
    pub micro_batch_size: Option<u32>,
    /// Micro-batches in a step, over all data ranks together. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::MICRO_BATCHES))]
    pub global_micro_batches: Option<u32>,
    /// Samples in a step, over all data ranks together, in place of `global_micro_batches`: as many micro-batches of
    /// `micro_batch_size` as it takes. With `layout: auto` and no `micro_batch_size`, that is chosen too. Default:
    /// `global_micro_batches` x `micro_batch_size`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::BATCH))]
    pub batch_size: Option<u32>,
    /// Groups of consecutive micro-batches whose gradients are accumulated before they are combined
    /// in a fixed tree; the same for every layout. Default: `global_micro_batches`, at most 8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1))]
    pub gradient_groups: Option<u32>,
    /// Threads of each worker's libtorch. Default: chosen once from the cores, then recorded.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::THREADS))]
    pub threads: Option<u32>,
    /// `canonical` adds gradients in an order that every layout shares. `fast` takes one gradient group for each
    /// data rank, so that the bits depend on `layout.data`. Default: `canonical`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reduction: Option<Reduction>,
    /// Logical tensor shards, a power of two, whose partial sums are added in a fixed tree: every `layout.tensor` that
    /// divides them gives the same bits. Default: as many as `layout.tensor`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::TENSOR_SHARDS))]
    pub tensor_shards: Option<u32>,
    /// What forward and backward compute in. Weights, the optimizer's state and sums of gradients are
    /// fp32 always. Default: `fp32`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub precision: Option<Precision>,
    /// What the loss is multiplied by at first, a power of two; it halves where gradients overflow.
    /// Default: 65536.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::LOSS_SCALE))]
    pub initial_loss_scale: Option<u64>,
    /// Good steps in a row after which the loss scale doubles. Default: 2000.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::STEPS))]
    pub loss_scale_growth_steps: Option<u64>,
    /// Steps in a row whose loss or gradients are not finite, after which the run stops. Such steps
    /// change no weights. Default: 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::NON_FINITE))]
    pub non_finite_max: Option<u32>,
    /// The share of values that is dropped after the embedding, the attention and the feed-forward
    /// layer. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub dropout: Option<f64>,
    /// The share of attention probabilities that is dropped. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub attention_dropout: Option<f64>,
    /// `none` keeps all intermediate values for the backward pass. `full` keeps the input of each layer
    /// only and computes the rest again; `attention` and `ffn` do so with one block of each layer.
    /// `{budget: BYTES}` picks as few layers as it takes for a worker to stay below so many bytes (a
    /// number, or a text such as `2GiB`). The numbers are the same in all. Default: `none`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recompute: Option<RecomputeSetting>,
    /// `adamw` for all parameters, or `muon` for the matrices of layers with `adamw` for the rest.
    /// Default: `adamw`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub optimizer: Option<OptimizerName>,
    /// Muon's momentum. Default: 0.95.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 0, "exclusiveMaximum" = 1))]
    pub momentum: Option<f64>,
    /// The learning rate after warm-up. Default: 3e-4.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub learning_rate: Option<f64>,
    /// What the learning rate does after warm-up. `cosine` and `linear` fall to `min_learning_rate` at
    /// the last step; `wsd` stays, then falls in a straight line over the last `decay_steps`;
    /// `constant` stays. Default: `cosine`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning_rate_schedule: Option<RateScheduleName>,
    /// The learning rate at the last step. Default: a tenth of `learning_rate`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 0))]
    pub min_learning_rate: Option<f64>,
    /// Steps of the fall of `wsd`. Default: a tenth of `steps`, at least 1 and at most `steps -
    /// warmup_steps`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decay_steps: Option<u64>,
    /// Steps of linear warm-up. Default: a tenth of `steps`, at most 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_steps: Option<u64>,
    /// AdamW's decay of the running means of gradients and of their squares. Default: [0.9, 0.95].
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = each_a_share)]
    pub betas: Option<[f64; 2]>,
    /// Added to the root of the second moment. Default: 1e-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub eps: Option<f64>,
    /// Decoupled weight decay, applied to matrices only. Default: 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 0))]
    pub weight_decay: Option<f64>,
    /// Bound of the global gradient norm; 0 for none. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 0))]
    pub clip_norm: Option<f64>,
    /// Steps between evaluations of the validation loss; 0 for one at the end only. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub validate_every: Option<u64>,
    /// Whether each step's line in `metrics.jsonl` names the gradient norm of every parameter. Default:
    /// false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parameter_norms: Option<bool>,
    /// The share of tokens that a masked language model (`model.head: masked-lm`) is asked for; eight of
    /// ten of them are hidden, one is replaced, one stays. Of an encoder-decoder, the share of tokens that
    /// are taken out. Default: 0.15, and 0.3 where `corruption` is `infilling`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("exclusiveMinimum" = 0, "exclusiveMaximum" = 1))]
    pub mask_rate: Option<f64>,
    /// Whether a masked language model is asked for whole words: all tokens of a word that is asked for.
    /// Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub whole_words: Option<bool>,
    /// What an encoder-decoder is asked to restore. `spans`: spans of `mask_rate` of the text (three tokens each
    /// on average) are taken out, each for a token of its own, and the decoder writes the spans (T5).
    /// `infilling`: one token stands for each, and the decoder writes the whole text (BART). Default:
    /// `spans`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub corruption: Option<Corruption>,
    /// Whether a token sees its own document only, where a sample holds parts of several. A document ends
    /// with its file. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub separate_documents: Option<bool>,
    /// A run's folder, or one that `coxswain import` made: the initial weights are those of its newest
    /// checkpoint, and its tokenizer is the job's. What only this job's head has is initialized anew. Relative
    /// paths start from the job file's folder. Default: weights from `seed`, a tokenizer from the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub start_from: Option<String>,
}

/// `layout`: how many ways the work is split; their product is the number of workers. `auto` has a plan choose all of
/// it for the workers at hand ([planning](planning.md)); with `auto` at some keys, those that are left out are chosen
/// too.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, remote = "Self")]
#[schemars(transform = or_auto)]
pub struct RawLayout {
    /// Pipeline ranks, each with some of the layers. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::WORLD))]
    pub pipeline: Option<OrAuto<u32>>,
    /// Tensor ranks, each with some of the heads of every layer. Divides `model.heads`. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::WORLD))]
    pub tensor: Option<OrAuto<u32>>,
    /// Data ranks, each with some of the micro-batches. At most `train.gradient_groups`. Default: 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::WORLD))]
    pub data: Option<OrAuto<u32>>,
    /// The order of forwards and backwards on a pipeline rank. Default: `1f1b`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schedule: Option<OrAuto<ScheduleName>>,
    /// Stages of each pipeline rank. Default: 2 for `interleaved`, 1 for `custom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minimum" = 1))]
    pub chunks: Option<u32>,
    /// The schedule of `custom`: a line for each pipeline rank, with actions like `0F0, 0F1, 0B0, 0B1`
    /// (stage, forward or backward, micro-batch) over the micro-batches of one data rank.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1))]
    pub actions: Option<String>,
    /// Whether what lies between tensor-parallel products is split over the sequence. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sequence_parallel: Option<OrAuto<bool>>,
    /// ZeRO stage: 1 shards the optimizer's state over the data ranks. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zero: Option<OrAuto<ZeroStage>>,
    /// With `auto`: the most memory that a worker may need, as a number of bytes or a text such as `24GiB`. Default:
    /// what the device has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<BudgetBytes>,
    /// With `auto`: the most tensor ranks. Default: as many as the model allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::WORLD))]
    pub max_tensor: Option<u32>,
    /// With `auto`: whether `train.reduction: fast` may be chosen where the job does not say (`fast`), so that the bits
    /// depend on the number of data ranks, or not (`canonical`). Default: the choice keeps `train.reduction`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_exact: Option<Reduction>,
}

impl RawLayout {
    /// Everything is chosen.
    pub fn auto() -> RawLayout {
        RawLayout {
            pipeline: Some(OrAuto::Auto),
            tensor: Some(OrAuto::Auto),
            data: Some(OrAuto::Auto),
            ..RawLayout::default()
        }
    }

    /// The first key that says `auto`.
    pub fn first_auto(&self) -> Option<&'static str> {
        if *self == RawLayout::auto() {
            return Some("layout");
        }
        let keys = [
            ("layout.pipeline", self.pipeline.is_some_and(OrAuto::is_auto)),
            ("layout.tensor", self.tensor.is_some_and(OrAuto::is_auto)),
            ("layout.data", self.data.is_some_and(OrAuto::is_auto)),
            ("layout.schedule", self.schedule.is_some_and(OrAuto::is_auto)),
            ("layout.sequence_parallel", self.sequence_parallel.is_some_and(OrAuto::is_auto)),
            ("layout.zero", self.zero.is_some_and(OrAuto::is_auto)),
        ];
        keys.into_iter().find_map(|(key, auto)| auto.then_some(key))
    }
}

/// `recovery`: what becomes of the run when a worker is lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawRecovery {
    /// `wait` gathers the workers that are left and waits for those that are missing, then goes on from
    /// what the others hold in memory or from the newest checkpoint, with the same bits; `shrink` goes on
    /// with fewer data ranks or pipeline ranks until there are enough again, with the same bits; `fail` ends
    /// the run. Default: `wait`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_loss: Option<OnLoss>,
    /// Whether a neighbour holds a copy of what one rank alone has, its weights and its optimizer's state, and
    /// updates it with the same gradients: a lost rank then costs no step. Takes as much memory again.
    /// Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer_replica: Option<bool>,
    /// Whether work is divided anew, with the same bits, when a worker takes 1.5 times as long as its peers or
    /// more: a worker that waits takes its place, or it gets fewer layers or micro-batches until it keeps up
    /// again. It is named in either case. Default: false.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rebalance: Option<bool>,
}

/// `checkpoint`: when checkpoints are written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RawCheckpoint {
    /// Steps between checkpoints; with 0 steps are not counted. Default: 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every: Option<u64>,
    /// Minutes after its newest checkpoint, or its start, in which a run writes another one, after the step at
    /// hand; with 0 time is not counted. Default: 10.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::EVERY_MINUTES))]
    pub every_minutes: Option<u32>,
    /// How many committed checkpoints stay on disk. Default: 2.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(transform = within(&limits::KEEP))]
    pub keep: Option<u32>,
}
