//! What attention keeps and takes. No form keeps its scores.

use coxswain_types::forms::FormBytes;
use coxswain_types::forms::attention::AttentionSize;
use coxswain_types::model::{Attention, Head};

use super::parts::BlockSize;
use super::sizes::Sizes;
use crate::plan::reduction::FP32;

/// Widths of the heads of one shard.
#[derive(Clone, Copy)]
struct Heads {
    count: u64,
    groups: u64,
    /// Query heads, in numbers a token.
    q: u64,
    /// Key/value heads.
    kv: u64,
    grouped: bool,
}

impl Sizes<'_> {
    fn heads(&self) -> Heads {
        let count = u64::from(self.model.heads).div_ceil(self.all_shards);
        let groups = u64::from(self.model.attention.key_heads(self.model)).div_ceil(self.all_shards);
        Heads { count, q: count * self.head_dim, kv: groups * self.head_dim, grouped: groups < count, groups }
    }

    /// Whether libtorch's kernel mixes, which takes key/value heads as often as there are query heads.
    fn fused(&self, cross: bool) -> bool {
        let usual = (self.model.attention_scale * f64::from(self.model.head_dim).sqrt() - 1.0).abs() < 1e-12;
        let biased = self.model.positions.adds_to_scores();
        let whole = self.model.attention.is_whole();
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
        let own = self.form(layer, heads);
        let log_sums = FP32 * heads.count * tokens;
        let bias = self.model.positions.score_bytes(heads.count, tokens / self.rows.max(1), self.rows);
        let low_copy = self.low_grad(tokens, heads.q, self.dim);
        BlockSize {
            inside: self.normed(tokens) + shards * (own.kept + log_sums + bias),
            backward: (self.mixing(heads, tokens, tokens, false) + own.backward)
                .max(self.input_grads(tokens) + low_copy)
                + if self.sequence_parallel { self.whole(tokens) } else { 0 },
            deferred: self.whole(tokens)
                + 3 * self.here(tokens)
                + shards * number(2 * heads.q + 2 * heads.kv),
            low_copy,
        }
    }

    /// One shard's part of a block that mixes `keys` tokens for so many others.
    fn size(&self, heads: Heads, tokens: u64, keys: u64, cross: bool) -> AttentionSize {
        AttentionSize {
            tokens,
            key_tokens: keys,
            rows: self.rows,
            bytes: self.bytes,
            dim: self.dim,
            all_shards: self.all_shards,
            shards: self.shards,
            heads: heads.count,
            key_heads: heads.groups,
            q: heads.q,
            kv: heads.kv,
            keys: self.pair(heads, keys, cross),
        }
    }

    /// What the form of attention keeps in one shard, and takes in the backward beside what all take.
    fn form(&self, layer: u32, heads: Heads) -> FormBytes {
        let (tokens, form) = (self.tokens(layer), self.model.attention);
        let size = self.size(heads, tokens, tokens, false);
        form.activation_bytes(&size) + self.model.norm.attention_bytes(form, &size)
    }

    pub(super) fn cross_attention(&self, layer: u32) -> BlockSize {
        let (tokens, keys, heads) = (self.tokens(layer), self.source(), self.heads());
        let log_sums = FP32 * heads.count * tokens;
        let size = self.size(heads, tokens, keys, true);
        let norms = self.model.norm.attention_bytes(Attention::Full, &size);
        let each = self.bytes * tokens * 2 * heads.q + 2 * size.keys + log_sums + norms.kept;
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
