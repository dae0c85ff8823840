//! Compressed memory (after arXiv 1911.05507): keys and values of a window are kept as they are, older ones
//! as one learned summary for each block, a mean whose weights each key/value head learns.

use std::rc::Rc;

use coxswain_native::ops;
use coxswain_types::mask::{Compressed, Mask};
use tch::{Kind, Tensor};

use super::heads::{BlockBuilder, Projections, Qkv};
use super::scores::{KeysOf, Mixed, ScoreShard, Scores};
use crate::EngineError;
use crate::model::cache::{Pair, ShardCache, joined, nothing, pair_bytes, part, shallow};
use crate::model::param::Param;
use crate::model::pass::{Pass, Site};

/// Its weights on this rank.
#[derive(Debug)]
pub(super) struct CompressedAttention {
    shards: Vec<CompressedShard>,
    scores: Scores,
    window: u32,
    block: u32,
}

/// The weights of one logical tensor shard.
#[derive(Debug)]
struct CompressedShard {
    projections: Projections,
    /// The share of each token of a block in its summary, before a softmax.
    summary: Rc<Param>,
    scores: ScoreShard,
}

impl CompressedAttention {
    pub(super) fn build(
        builder: &BlockBuilder<'_>,
        window: u32,
        block: u32,
    ) -> Result<CompressedAttention, EngineError> {
        let shard = |index| -> Result<_, EngineError> {
            Ok(CompressedShard {
                projections: Projections::build(builder, "", index)?,
                summary: builder.param("summary.weight", index)?,
                scores: builder.scores(index)?,
            })
        };
        let scores = Scores::new(builder, KeysOf::Own);
        Ok(CompressedAttention { shards: builder.shards(shard)?, scores, window, block })
    }

    /// x `[b, t, d]`; the result `[b, t, h, k]`. Each query sees every token up to its own once: by itself, or
    /// in the summary of its block.
    pub(super) fn forward(
        &self,
        at: usize,
        x_btd: &Tensor,
        pass: &Pass<'_>,
        cache: Option<&mut ShardCache>,
    ) -> Result<Tensor, EngineError> {
        let (shard, window, block) = (&self.shards[at], self.window, self.block);
        let Qkv { q, k, v } = shard.projections.forward(x_btd, pass)?;
        let again = cache.is_none();
        let now = match cache.as_ref().and_then(|cache| cache.summarized()) {
            Some(kept) => kept.followed_by(&k, &v)?,
            None => Summarized::default().followed_by(&k, &v)?,
        };
        let (start, tokens) = (now.start, now.tokens()?);
        let mask = Compressed { window, block, summaries: 0, start: start as u32 };
        // What the last query sees by itself begins at `exact`; all blocks before it are summarized.
        let exact = i64::from(mask.exact((start + tokens - 1) as u32));
        let weights_bg = self.weights(&shard.summary, x_btd)?;
        let fresh = (exact - start) / i64::from(block);
        let next = now.summarized(|x| summaries(x, &weights_bg, fresh))?;
        let count = next.summaries()?;
        let own = Mask::Compressed(Compressed { summaries: count as u32, ..mask });
        let (k, v) = next.all()?;
        let first = count + tokens - q.size()[1];
        let mixed = Mixed { q: &q, k: &k, v: &v, first, own: Some(own), again };
        let mixed_bthk = self.scores.mix(&shard.scores, x_btd, &mixed, pass, Site::Probabilities)?;
        if let Some(cache) = cache {
            cache.remember(next.forget_before(exact)?);
        }
        Ok(mixed_bthk)
    }

    /// The share of each token of a block in its summary, by key/value head: `[block, g]`.
    fn weights(&self, table: &Param, x_btd: &Tensor) -> Result<Tensor, EngineError> {
        let rows = Tensor::f_arange(i64::from(self.block), (Kind::Int64, x_btd.device()))?;
        let queue = &self.scores.context.wgrad_queue;
        let logits_gb = ops::table_columns(x_btd, &table.weight, &rows, &table.slot, queue)?;
        Ok(logits_gb.f_softmax(1, Kind::Float)?.f_transpose(0, 1)?)
    }
}

/// The summaries of the first `count` blocks of x `[b, s, g, k]`: `[b, count, g, k]`.
fn summaries(x: &Tensor, weights_bg: &Tensor, count: i64) -> Result<Tensor, EngineError> {
    let block = weights_bg.size()[0];
    let size = x.size();
    let blocks = x.f_narrow(1, 0, count * block)?.f_reshape([size[0], count, block, size[2], size[3]])?;
    let weights = weights_bg.f_unsqueeze(-1)?;
    let sums = blocks.f_to_kind(Kind::Float)?.f_mul(&weights)?;
    Ok(sums.f_sum_dim_intlist([2_i64].as_slice(), false, Kind::Float)?.f_to_kind(x.kind())?)
}

/// What a cache keeps: keys and values in two forms, summaries of blocks, then tokens.
#[derive(Debug, Default)]
pub(in crate::model) struct Summarized {
    /// The place of the first token that is kept by itself.
    start: i64,
    tokens: Option<Pair>,
    summaries: Option<Pair>,
}

impl Summarized {
    /// With further tokens.
    fn followed_by(&self, k: &Tensor, v: &Tensor) -> Result<Summarized, EngineError> {
        Ok(Summarized {
            start: self.start,
            tokens: Some(joined(self.tokens.as_ref(), (k, v))?),
            summaries: self.summaries.as_ref().map(shallow),
        })
    }

    /// With summaries of what its first tokens are summarized to, which stay beside them.
    fn summarized(
        self,
        of: impl Fn(&Tensor) -> Result<Tensor, EngineError>,
    ) -> Result<Summarized, EngineError> {
        let (k, v) = self.tokens.as_ref().ok_or_else(nothing)?;
        let (k, v) = (of(k)?, of(v)?);
        Ok(Summarized { summaries: Some(joined(self.summaries.as_ref(), (&k, &v))?), ..self })
    }

    /// Number of tokens that are kept by themselves.
    fn tokens(&self) -> Result<i64, EngineError> {
        Ok(self.tokens.as_ref().ok_or_else(nothing)?.0.size()[1])
    }

    /// Number of summaries.
    fn summaries(&self) -> Result<i64, EngineError> {
        Ok(self.summaries.as_ref().ok_or_else(nothing)?.0.size()[1])
    }

    /// Summaries, then tokens.
    fn all(&self) -> Result<Pair, EngineError> {
        let (k, v) = self.tokens.as_ref().ok_or_else(nothing)?;
        joined(self.summaries.as_ref(), (k, v))
    }

    /// Without the tokens before a place.
    fn forget_before(self, place: i64) -> Result<Summarized, EngineError> {
        let (k, v) = self.tokens.as_ref().ok_or_else(nothing)?;
        let (gone, all) = (place - self.start, k.size()[1]);
        let tokens = Some((part(k, gone, all - gone)?, part(v, gone, all - gone)?));
        Ok(Summarized { start: place, tokens, ..self })
    }

    /// Bytes of memory that it takes.
    pub(in crate::model) fn held_bytes(&self) -> u64 {
        [&self.tokens, &self.summaries].into_iter().flatten().map(pair_bytes).sum()
    }
}
