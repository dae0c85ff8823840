//! Attention by a softmax over the keys that a mask leaves: all, a window, Longformer's, BigBird's.

use tch::Tensor;

use super::heads::{BlockBuilder, Projections, Qkv};
use super::scores::{KeysOf, Mixed, ScoreShard, Scores};
use crate::EngineError;
use crate::model::cache::ShardCache;
use crate::model::pass::{Pass, Site};

/// Its weights on this rank.
#[derive(Debug)]
pub(super) struct SoftmaxAttention {
    shards: Vec<(Projections, ScoreShard)>,
    scores: Scores,
}

impl SoftmaxAttention {
    pub(super) fn build(builder: &BlockBuilder<'_>) -> Result<SoftmaxAttention, EngineError> {
        let shard = |index| -> Result<_, EngineError> {
            Ok((Projections::build(builder, "", index)?, builder.scores(index)?))
        };
        Ok(SoftmaxAttention { shards: builder.shards(shard)?, scores: Scores::new(builder, KeysOf::Own) })
    }

    /// x `[b, t, d]`; the result `[b, t, h, k]`. A cache keeps keys and values.
    pub(super) fn forward(
        &self,
        at: usize,
        x_btd: &Tensor,
        pass: &Pass<'_>,
        cache: Option<&mut ShardCache>,
    ) -> Result<Tensor, EngineError> {
        let (projections, shard) = &self.shards[at];
        let Qkv { q, k, v } = projections.forward(x_btd, pass)?;
        let (context, causal) = (&self.scores.context, self.scores.causal());
        let form = context.model.attention;
        let again = cache.is_none();
        // A window's cache forgets what no later token sees.
        let last = form.newest_keys(causal).map(i64::from);
        let (k, v) = match cache {
            Some(cache) => cache.append(&k, &v, last)?,
            None => (k, v),
        };
        let (first, keys) = (k.size()[1] - q.size()[1], k.size()[1]);
        let own = form.mask(causal, self.scores.layer, context.seed, keys as u32);
        let mixed = Mixed { q: &q, k: &k, v: &v, first, own, again };
        self.scores.mix(shard, x_btd, &mixed, pass, Site::Probabilities)
    }
}
