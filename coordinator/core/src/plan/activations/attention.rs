//! What attention keeps and takes. No form keeps its scores.

use coxswain_types::model::{Attention, Head, Positions};

use super::parts::BlockSize;
use super::sizes::Sizes;
use crate::plan::reduction::FP32;

/// Widths of the heads of one shard.
#[derive(Clone, Copy)]
struct Heads {
    count: u64,
    /// Query heads, in numbers a token.
    q: u64,
    /// Key/value heads.
    kv: u64,
    grouped: bool,
}

impl Sizes<'_> {
    fn heads(&self) -> Heads {
        let count = u64::from(self.model.heads).div_ceil(self.all_shards);
        let groups = match self.model.attention {
            Attention::Latent { .. } => count,
            _ => u64::from(self.model.kv_heads).div_ceil(self.all_shards),
        };
        Heads { count, q: count * self.head_dim, kv: groups * self.head_dim, grouped: groups < count }
    }

    /// Whether libtorch's kernel mixes, which takes key/value heads as often as there are query heads.
    fn fused(&self, cross: bool) -> bool {
        let usual = (self.model.attention_scale * f64::from(self.model.head_dim).sqrt() - 1.0).abs() < 1e-12;
        let biased = matches!(self.model.positions, Positions::Alibi | Positions::RelativeBias { .. });
        let whole = matches!(self.model.attention, Attention::Full | Attention::Latent { .. });
        let apart = self.train.separate_documents || (self.padded() && (cross || !self.model.causal(0)));
        usual && self.train.attention_dropout == 0.0 && !apart && (cross || (whole && !biased))
    }

    /// Whether rows that an encoder reads may be filled up.
    fn padded(&self) -> bool {
        self.train.pairs || matches!(self.model.head, Head::Pooled { .. })
    }

    /// Keys or values of so many tokens, of one shard.
    fn pair(&self, heads: Heads, keys: u64, cross: bool) -> u64 {
        let width = if heads.grouped && self.fused(cross) { heads.q } else { heads.kv };
        self.bytes * keys * width
    }

    /// While a shard's heads are mixed backward: the gradients of the output, queries, keys and values.
    fn mixing(&self, heads: Heads, queries: u64, keys: u64, cross: bool) -> u64 {
        // Our own kernel adds those of a group's heads, in fp32.
        let parts = match self.fused(cross) {
            true => self.tiles(queries / self.rows.max(1), keys / self.rows.max(1)),
            false if heads.grouped => 2 * FP32 * keys * heads.q,
            false => 0,
        };
        2 * self.bytes * queries * heads.q + 2 * self.pair(heads, keys, cross) + parts
    }

    /// Scores and their gradients that each thread of libtorch's CPU kernel holds of a tile, in fp32, and once more in
    /// a low precision. The sizes of tiles are those of its FlashAttentionKernel.cpp.
    fn tiles(&self, queries: u64, keys: u64) -> u64 {
        let rows = match queries {
            768.. => 256,
            192.. => 64,
            _ => 32,
        };
        let low = if self.low() { self.bytes } else { 0 };
        2 * (FP32 + low) * self.threads * rows.min(queries) * keys.min(512)
    }

    pub(super) fn attention(&self, layer: u32) -> BlockSize {
        let (tokens, heads) = (self.tokens(layer), self.heads());
        let (bytes, shards) = (self.bytes, self.shards);
        let number = |each: u64| bytes * tokens * each;
        let (own, extra) = self.form(layer, heads);
        let log_sums = FP32 * heads.count * tokens;
        let biased = matches!(self.model.positions, Positions::Alibi | Positions::RelativeBias { .. });
        let distances = 2 * tokens / self.rows.max(1);
        let bias = if biased { FP32 * heads.count * distances * (1 + self.rows) } else { 0 };
        let low_copy = self.low_grad(tokens, heads.q, self.dim);
        BlockSize {
            inside: self.normed(tokens) + shards * (own + log_sums + bias),
            backward: (self.mixing(heads, tokens, tokens, false) + extra)
                .max(self.input_grads(tokens) + low_copy)
                + if self.sequence_parallel { self.whole(tokens) } else { 0 },
            deferred: self.whole(tokens)
                + 3 * self.here(tokens)
                + shards * number(2 * heads.q + 2 * heads.kv),
            low_copy,
        }
    }

    /// What the form of attention keeps in one shard, and takes in the backward beside what all take.
    fn form(&self, layer: u32, heads: Heads) -> (u64, u64) {
        let tokens = self.tokens(layer);
        let number = |each: u64| self.bytes * tokens * each;
        let plain = number(2 * heads.q) + 2 * self.pair(heads, tokens, false);
        match self.model.attention {
            Attention::Full | Attention::Window { .. } | Attention::BigBird { .. } => (plain, 0),
            // Keys and values of the first tokens' own; both parts of the output, and these together. What is
            // cut along tokens is copied.
            Attention::Longformer { projections: true, .. } => {
                let copied = if self.rows > 1 { self.whole(tokens) } else { 0 };
                (plain + number(2 * heads.kv + heads.q) + copied, number(heads.q))
            }
            Attention::Longformer { .. } => (plain, 0),
            // The shares of forgetting in three forms.
            Attention::Linear { decay } => {
                let shares = if decay { 3 * FP32 * tokens * heads.count } else { 0 };
                (plain + shares, shares)
            }
            // Keys and values with the summaries before them, and by themselves in fp32 for those.
            Attention::Compressed { block, .. } => {
                let summaries = number(2 * heads.kv).div_ceil(u64::from(block.max(1)));
                let again = 2 * FP32 * tokens * heads.kv;
                (plain + summaries + again, 2 * summaries + 2 * again)
            }
            // The latent before and after its norm; keys and values have every head.
            Attention::Latent { rank, rope_dim } => {
                let (rank, rope_dim) = (u64::from(rank), u64::from(rope_dim));
                let copied = if self.all_shards > 1 { self.whole(tokens) } else { 0 };
                let latent = number(2 * rank) + copied / self.shards;
                (plain + latent, number(2 * (rank + rope_dim) + 2 * heads.q))
            }
        }
    }

    pub(super) fn cross_attention(&self, layer: u32) -> BlockSize {
        let (tokens, keys, heads) = (self.tokens(layer), self.source(), self.heads());
        let log_sums = FP32 * heads.count * tokens;
        let each = self.bytes * tokens * 2 * heads.q + 2 * self.pair(heads, keys, true) + log_sums;
        // The encoder's output is copied for its maps, where rows are cut or ranks have parts of it.
        let memory = if self.rows > 1 || self.sequence_parallel { self.whole(keys) } else { 0 };
        let low_copy = self.low_grad(tokens, heads.q, self.dim);
        BlockSize {
            inside: self.normed(tokens) + memory + self.shards * each,
            backward: self
                .mixing(heads, tokens, keys, true)
                .max(self.input_grads(tokens.max(keys)) + self.whole(keys) + low_copy),
            deferred: self.whole(tokens + keys)
                + 3 * self.here(tokens)
                + self.shards * self.bytes * (tokens * 2 * heads.q + keys * 2 * heads.kv),
            low_copy,
        }
    }
}
