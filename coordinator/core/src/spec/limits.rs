//! Which key of a job file takes which count. The bounds themselves are in [`coxswain_types::bounds::limits`], because
//! a job that is read from a checkpoint's manifest has to lie within them too.

pub(super) use coxswain_types::bounds::limits::*;

/// Byte-level BPE begins with the 256 bytes and the end-of-text token.
pub(super) const TEXT_VOCAB: u32 = 257;

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
    ("train.micro_batch_size", &MICRO_BATCH),
    ("train.global_micro_batches", &MICRO_BATCHES),
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
