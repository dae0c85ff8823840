//! The bounds of a job's numbers. Each says why it stands where it stands, and the reason is told
//! to the author of a job that goes beyond it.

use coxswain_types::model::{MAX_LAYERS, MAX_LENGTH};

/// The least and the greatest value of a key.
pub(super) struct Limit {
    pub(super) least: u64,
    pub(super) most: u64,
    /// Why not more.
    pub(super) reason: &'static str,
}

const fn up_to(most: u64, reason: &'static str) -> Limit {
    Limit { least: 1, most, reason }
}

pub(super) const LAYERS: Limit = up_to(MAX_LAYERS as u64, "every rank's plan lists its layers one by one");
pub(super) const DIM: Limit = up_to(65_536, "a square matrix of this width holds 16 GiB");
pub(super) const FFN: Limit = up_to(262_144, "four times the greatest model.dim");
pub(super) const VOCAB: Limit = up_to(1 << 20, "four times the largest vocabularies in use");
pub(super) const SEQUENCE: Limit = up_to(1 << 20, "rotary angles are exact in fp32 up to here");
/// Rows of a table of positions before the first position's; RoBERTa and BART have 2.
pub(super) const POSITION_OFFSET: Limit = Limit { least: 0, most: 1024, reason: "they are never looked up" };
/// Windows, blocks, tables of positions, and the lengths that models were trained on.
pub(super) const LENGTH: Limit = up_to(MAX_LENGTH as u64, "no sequence is longer");
pub(super) const BUCKETS: Limit =
    Limit { least: 4, most: 4096, reason: "each head has a learned number for each" };
pub(super) const TOKEN_TYPES: Limit =
    Limit { least: 0, most: 1024, reason: "kinds of segments are few, and each has a learned vector" };
pub(super) const CLASSES: Limit = Limit { least: 0, most: 65_536, reason: "each class has a row of weights" };
/// Global tokens or blocks, and random blocks of a row.
pub(super) const GLOBAL: Limit =
    Limit { least: 0, most: 65_536, reason: "each is seen by all tokens: more of them is full attention" };
pub(super) const MICRO_BATCH: Limit = up_to(65_536, "more samples belong into more micro-batches");
pub(super) const MICRO_BATCHES: Limit =
    up_to(4096, "an assignment lists every micro-batch's actions and has to fit in one message");
/// Tokens of a micro-batch, `sequence` times `micro_batch`.
pub(super) const MICRO_BATCH_TOKENS: u64 = 1 << 24;
pub(super) const STEPS: Limit = up_to(1_000_000_000, "at one step a second this is thirty years");
pub(super) const TENSOR_SHARDS: Limit =
    up_to(64, "each rank multiplies its shards one by one, and small products are slow");
pub(super) const LOSS_SCALE: Limit =
    up_to(1 << 24, "this lifts the smallest number of fp16 to 1; no gradient needs more");
pub(super) const NON_FINITE: Limit = up_to(1000, "weights that stay as they are give no better step");
pub(super) const BUDGET: Limit = up_to(1 << 50, "no worker has more bytes to give");
pub(super) const THREADS: Limit = up_to(1024, "no machine has more cores to give");
pub(super) const EVERY_MINUTES: Limit = Limit { least: 0, most: 525_600, reason: "this is a year" };
pub(super) const KEEP: Limit = up_to(1_000_000, "no disk holds more checkpoints");
pub(super) const SYNTHETIC_TOKENS: Limit = up_to(1 << 36, "no measurement of speed draws more");
/// Layout values, and their product.
pub(super) const WORLD: Limit = up_to(4096, "each step closes with one exchange over all workers");
/// Text files. Each has its own held-out end, and their paths travel in every assignment.
pub(super) const TEXT_FILES: usize = 1024;
/// Byte-level BPE begins with the 256 bytes and the end-of-text token.
pub(super) const TEXT_VOCAB: u32 = 257;
/// Length of a job's name: it becomes part of file names and of labels, which end at 64.
pub(super) const NAME_LEN: usize = 64;
/// Actions of a user's own schedule, over all pipeline ranks: every assignment carries all of them.
pub(super) const ACTIONS: usize = 65_536;

/// The keys that take a count within one of these bounds, whatever the other keys are.
const COUNTS: [(&str, &Limit); 27] = [
    ("model.layers", &LAYERS),
    ("model.encoder_layers", &LAYERS),
    ("model.dim", &DIM),
    ("model.heads", &DIM),
    ("model.kv_heads", &DIM),
    ("model.head_dim", &DIM),
    ("model.ffn", &FFN),
    ("model.vocab", &VOCAB),
    ("model.rope_scaling.original", &LENGTH),
    ("model.max_positions", &LENGTH),
    ("model.attention.window", &LENGTH),
    ("model.attention.block", &LENGTH),
    ("model.attention.rank", &DIM),
    ("model.embedding_dim", &DIM),
    ("data.synthetic.tokens", &SYNTHETIC_TOKENS),
    ("train.steps", &STEPS),
    ("train.sequence", &SEQUENCE),
    ("train.micro_batch", &MICRO_BATCH),
    ("train.micro_batches", &MICRO_BATCHES),
    ("train.threads", &THREADS),
    ("train.loss_scale_growth_steps", &STEPS),
    ("train.non_finite_max", &NON_FINITE),
    ("layout.pipeline", &WORLD),
    ("layout.tensor", &WORLD),
    ("layout.data", &WORLD),
    ("checkpoint.every_minutes", &EVERY_MINUTES),
    ("checkpoint.keep", &KEEP),
];

/// The bounds of the count at `path`, where it has fixed ones.
pub(super) fn of(path: &str) -> Option<&'static Limit> {
    COUNTS.iter().find(|(key, _)| *key == path).map(|(_, limit)| *limit)
}
