//! Longformer (arXiv 2004.05150) whose first tokens have projections of their own, in an encoder: by them
//! they see all tokens. All others see their neighbours and the first tokens by the usual ones.

use coxswain_types::mask::Mask;
use tch::Tensor;

use super::heads::{BlockBuilder, Projections};
use super::scores::{KeysOf, Mixed, ScoreShard, Scores};
use crate::EngineError;
use crate::model::pass::{Pass, Site};

/// Its weights on this rank.
#[derive(Debug)]
pub(super) struct GlobalAttention {
    shards: Vec<GlobalShard>,
    scores: Scores,
    /// How many tokens are seen on each side.
    window: u32,
    /// How many tokens are global.
    global: u32,
}

/// The weights of one logical tensor shard.
#[derive(Debug)]
struct GlobalShard {
    /// Of the first tokens' own attention.
    first: Projections,
    others: Projections,
    scores: ScoreShard,
}

impl GlobalAttention {
    pub(super) fn build(
        builder: &BlockBuilder<'_>,
        window: u32,
        global: u32,
    ) -> Result<GlobalAttention, EngineError> {
        let shard = |index| -> Result<_, EngineError> {
            Ok(GlobalShard {
                first: Projections::build(builder, "global_", index)?,
                others: Projections::build(builder, "", index)?,
                scores: builder.scores(index)?,
            })
        };
        let scores = Scores::new(builder, KeysOf::Own);
        Ok(GlobalAttention { shards: builder.shards(shard)?, scores, window, global })
    }

    /// x `[b, t, d]`; the result `[b, t, h, k]`.
    pub(super) fn forward(&self, at: usize, x_btd: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        let (shard, window, global) = (&self.shards[at], self.window, self.global);
        let tokens = x_btd.size()[1];
        let count = i64::from(global).min(tokens);
        let mix = |by: &Projections, queries: [i64; 2], mask: Option<Mask>, site| {
            let [first, len] = queries;
            let q = by.queries(&x_btd.f_narrow(1, first, len)?.f_contiguous()?)?;
            let q = pass.rotate_from(first, &q)?;
            let (k, v) = (pass.rotate(&by.keys(x_btd)?)?, by.values(x_btd)?);
            let mixed = Mixed { q: &q, k: &k, v: &v, first, own: mask, again: true };
            self.scores.mix(&shard.scores, x_btd, &mixed, pass, site)
        };
        // A text that is read alone may have no token beyond the first ones.
        let mut parts = Vec::new();
        if count > 0 {
            parts.push(mix(&shard.first, [0, count], None, Site::GlobalProbabilities)?);
        }
        if count < tokens {
            let near = Mask::Window { before: window, after: window };
            let mask = Mask::Or(vec![near, Mask::Keys(0..global)]);
            parts.push(mix(&shard.others, [count, tokens - count], Some(mask), Site::Probabilities)?);
        }
        Ok(Tensor::f_cat(&parts, 1)?)
    }
}
