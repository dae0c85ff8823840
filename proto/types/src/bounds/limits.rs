//! The bounds of a job's numbers. Each says why it stands where it stands, and the reason is told
//! to the author of a job that goes beyond it.

/// The least and the greatest value of a key.
#[derive(Clone, Copy, Debug)]
pub struct Limit {
    /// The least value.
    pub least: u64,
    /// The greatest value.
    pub most: u64,
    /// Why not more.
    pub reason: &'static str,
}

const fn up_to(most: u64, reason: &'static str) -> Limit {
    Limit { least: 1, most, reason }
}

/// Layers of a stack.
pub const LAYERS: Limit = up_to(1024, "every rank's plan lists its layers one by one");
/// Widths, and numbers of heads.
pub const DIM: Limit = up_to(65_536, "a square matrix of this width holds 16 GiB");
/// Width of a feed-forward layer.
pub const FFN: Limit = up_to(262_144, "four times the greatest model.dim");
/// Tokens that a model knows.
pub const VOCAB: Limit = up_to(1 << 20, "four times the largest vocabularies in use");
/// Tokens of a sample.
pub const SEQUENCE: Limit = up_to(1 << 20, "rotary angles are exact in fp32 up to here");
/// Rows of a table of positions before the first position's; RoBERTa and BART have 2.
pub const POSITION_OFFSET: Limit = Limit { least: 0, most: 1024, reason: "they are never looked up" };
/// Windows, blocks, tables of positions, and the lengths that models were trained on.
pub const LENGTH: Limit = up_to(1 << 20, "no sequence is longer");
/// Buckets of distances.
pub const BUCKETS: Limit = Limit { least: 4, most: 4096, reason: "each head has a learned number for each" };
/// Kinds of segments.
pub const TOKEN_TYPES: Limit =
    Limit { least: 0, most: 1024, reason: "kinds of segments are few, and each has a learned vector" };
/// Classes of a pooled head.
pub const CLASSES: Limit = Limit { least: 0, most: 65_536, reason: "each class has a row of weights" };
/// Global tokens or blocks, and random blocks of a row.
pub const GLOBAL: Limit =
    Limit { least: 0, most: 65_536, reason: "each is seen by all tokens: more of them is full attention" };
/// Samples of a micro-batch.
pub const MICRO_BATCH: Limit = up_to(65_536, "more samples belong into more micro-batches");
/// Micro-batches of a step.
pub const MICRO_BATCHES: Limit =
    up_to(4096, "an assignment lists every micro-batch's actions and has to fit in one message");
/// Samples of a step.
pub const BATCH: Limit = up_to(1 << 28, "as many as the largest micro-batches have");
/// Tokens of a micro-batch, `sequence` times `micro_batch`.
pub const MICRO_BATCH_TOKENS: u64 = 1 << 24;
/// Optimizer steps.
pub const STEPS: Limit = up_to(1_000_000_000, "at one step a second this is thirty years");
/// Logical tensor shards.
pub const TENSOR_SHARDS: Limit =
    up_to(64, "each rank multiplies its shards one by one, and small products are slow");
/// The first scale of a loss.
pub const LOSS_SCALE: Limit =
    up_to(1 << 24, "this lifts the smallest number of fp16 to 1; no gradient needs more");
/// Steps in a row without finite numbers.
pub const NON_FINITE: Limit = up_to(1000, "weights that stay as they are give no better step");
/// Bytes of a memory budget.
pub const BUDGET: Limit = up_to(1 << 50, "no worker has more bytes to give");
/// Threads of a worker's libtorch.
pub const THREADS: Limit = up_to(1024, "no machine has more cores to give");
/// Minutes between checkpoints.
pub const EVERY_MINUTES: Limit = Limit { least: 0, most: 525_600, reason: "this is a year" };
/// Checkpoints that stay on disk.
pub const KEEP: Limit = up_to(1_000_000, "no disk holds more checkpoints");
/// Tokens that are drawn at random.
pub const SYNTHETIC_TOKENS: Limit = up_to(1 << 36, "no measurement of speed draws more");
/// Layout values, and their product.
pub const WORLD: Limit = up_to(16_384, "each step closes with one exchange over all workers");
/// Text files. The end of each is kept for validation, and their paths travel in every assignment.
pub const TEXT_FILES: usize = 1024;
/// Length of a job's name: it becomes part of file names and of labels, which end at 64.
pub const NAME_LEN: usize = 64;
/// Actions of a user's own schedule, over all pipeline ranks: every assignment carries all of them.
pub const ACTIONS: usize = 65_536;
