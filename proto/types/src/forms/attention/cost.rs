//! What forms of attention take: FLOPs, bytes of a step, bytes in generation. No form keeps its scores.

use super::super::{FP32, FormBytes};
use super::Attention;
use crate::mask::Compressed;
use crate::model::ModelSpec;

/// A micro-batch in the attention block of a logical tensor shard, as numbers.
#[derive(Clone, Copy, Debug)]
pub struct AttentionSize {
    /// Tokens of all rows.
    pub tokens: u64,
    /// Tokens that have keys: the same, or those of the encoder.
    pub key_tokens: u64,
    /// Rows.
    pub rows: u64,
    /// Bytes of a number.
    pub bytes: u64,
    /// Width of the model.
    pub dim: u64,
    /// Logical shards of all ranks, and of this one.
    pub all_shards: u64,
    /// See `all_shards`.
    pub shards: u64,
    /// Query heads of the shard.
    pub heads: u64,
    /// Key/value heads of the shard.
    pub key_heads: u64,
    /// Numbers of a token's queries in the shard.
    pub q: u64,
    /// Numbers of a token's keys in the shard.
    pub kv: u64,
    /// Bytes of all keys, or of all values, as the kernel takes them.
    pub keys: u64,
}

impl AttentionSize {
    /// So many numbers a token.
    fn numbers(&self, each: u64) -> u64 {
        self.bytes * self.tokens * each
    }

    /// A copy of what the block takes, for all shards.
    fn input(&self) -> u64 {
        self.numbers(self.dim)
    }
}

impl Attention {
    /// What one shard keeps: queries, keys, values and their mixture, and what the form has beside; and what the backward
    /// takes beside what all forms take.
    pub fn activation_bytes(self, of: &AttentionSize) -> FormBytes {
        let plain = of.numbers(2 * of.q) + 2 * of.keys;
        match self {
            Attention::Full
            | Attention::Window { .. }
            | Attention::BigBird { .. }
            | Attention::Longformer { projections: false, .. } => FormBytes { kept: plain, backward: 0 },
            // Keys and values of the first tokens' own; both parts of the output, and these together. What is
            // cut along tokens is copied.
            Attention::Longformer { projections: true, .. } => {
                let copied = if of.rows > 1 { of.input() } else { 0 };
                FormBytes { kept: plain + of.numbers(2 * of.kv + of.q) + copied, backward: of.numbers(of.q) }
            }
            // The shares of forgetting in three forms.
            Attention::Linear { decay } => {
                let shares = if decay { 3 * FP32 * of.tokens * of.heads } else { 0 };
                FormBytes { kept: plain + shares, backward: shares }
            }
            // Keys and values with the summaries before them, and by themselves in fp32 for those.
            Attention::Compressed { block, .. } => {
                let summaries = of.numbers(2 * of.kv).div_ceil(u64::from(block.max(1)));
                let again = 2 * FP32 * of.tokens * of.kv;
                FormBytes { kept: plain + summaries + again, backward: 2 * summaries + 2 * again }
            }
            // The latent; keys and values have every head.
            Attention::Latent { rank, rope_dim } => {
                let (rank, rope_dim) = (u64::from(rank), u64::from(rope_dim));
                let copied = if of.all_shards > 1 { of.input() } else { 0 };
                let latent = of.numbers(rank) + copied / of.shards;
                FormBytes { kept: plain + latent, backward: of.numbers(2 * (rank + rope_dim) + 2 * of.q) }
            }
        }
    }

    /// FLOPs of a token's forward pass through the block: two for each weight, and two for each number of the scores
    /// and of their product with the values.
    pub fn flops(self, model: &ModelSpec, causal: bool, sequence: u32) -> u64 {
        let [dim, head, heads] = [model.dim, model.head_dim, model.heads].map(u64::from);
        let (q, kv) = (heads * head, u64::from(model.kv_heads) * head);
        let keys_and_values = match self {
            Attention::Latent { rank, rope_dim } => {
                let (rank, rope_dim) = (u64::from(rank), u64::from(rope_dim));
                dim * (rank + rope_dim) + rank * heads * (2 * head).saturating_sub(rope_dim)
            }
            Attention::Longformer { projections: true, .. } => 4 * dim * kv,
            Attention::Full
            | Attention::Window { .. }
            | Attention::Longformer { .. }
            | Attention::BigBird { .. }
            | Attention::Linear { .. }
            | Attention::Compressed { .. } => 2 * dim * kv,
        };
        2 * (2 * dim * q + keys_and_values) + self.score_flops(model, causal, sequence)
    }

    /// Of these, FLOPs of the scores of a token and of their product with the values.
    pub fn score_flops(self, model: &ModelSpec, causal: bool, sequence: u32) -> u64 {
        let [head, heads] = [model.head_dim, model.heads].map(u64::from);
        4 * heads * head * self.keys_seen(head, causal, sequence)
    }

    /// Keys that a token sees, in the mean: linear in the length where their number is bounded.
    fn keys_seen(self, head: u64, causal: bool, sequence: u32) -> u64 {
        let all = u64::from(if causal { sequence.div_ceil(2) } else { sequence });
        let around = |window: u32| if causal { u64::from(window) } else { 2 * u64::from(window) + 1 };
        let keys = match self {
            Attention::Full | Attention::Latent { .. } => all,
            Attention::Window { window } => around(window),
            Attention::Longformer { window, global, .. } => around(window) + u64::from(global),
            Attention::BigBird { .. } if self.sees_all(causal, sequence) => all,
            Attention::BigBird { block, window, global, last, random } => {
                u64::from(block) * [window, global, last, random].map(u64::from).iter().sum::<u64>()
            }
            // The state has as many numbers as keys and values of one head's width would.
            Attention::Linear { .. } => return head,
            Attention::Compressed { window, block } => {
                u64::from(window) + u64::from(sequence).div_ceil(2 * u64::from(block.max(1)))
            }
        };
        keys.min(all)
    }

    /// How many of the newest keys generation keeps in a causal layer, where older ones are never seen again.
    pub fn newest_keys(self, causal: bool) -> Option<u32> {
        match self {
            // The next token brings its own.
            Attention::Window { window } if causal => Some(window.saturating_sub(1)),
            Attention::Full
            | Attention::Window { .. }
            | Attention::Longformer { .. }
            | Attention::BigBird { .. }
            | Attention::Linear { .. }
            | Attention::Compressed { .. }
            | Attention::Latent { .. } => None,
        }
    }

    /// Bytes that generation keeps of so many tokens in a layer of a decoder, where a number has `bytes`.
    pub fn cache_bytes(self, model: &ModelSpec, tokens: u32, bytes: u64) -> u64 {
        let head = u64::from(model.head_dim);
        let pairs = |tokens: u64| 2 * tokens * u64::from(model.kv_heads) * head * bytes;
        match self {
            Attention::Full
            | Attention::Window { .. }
            | Attention::Longformer { .. }
            | Attention::BigBird { .. } => {
                pairs(self.newest_keys(true).map_or(tokens, |newest| newest.min(tokens)).into())
            }
            // Sums of the width by the width, and of the width, for each head.
            Attention::Linear { .. } => u64::from(model.heads) * (head * head + head) * FP32,
            Attention::Compressed { window, block } => {
                let all = Compressed { window, block, summaries: 0, start: 0 };
                let exact = all.exact(tokens.saturating_sub(1));
                pairs(u64::from(tokens - exact) + u64::from(exact / block.max(1)))
            }
            Attention::Latent { rank, rope_dim } => {
                u64::from(tokens) * (u64::from(rank) + u64::from(rope_dim)) * bytes
            }
        }
    }
}
