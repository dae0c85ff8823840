//! Attention of a decoder's tokens to its encoder's output: a softmax over all of it, without positions.

use std::rc::Rc;

use tch::Tensor;

use super::heads::{BlockBuilder, Projections};
use super::scores::{KeysOf, Mixed, ScoreShard, Scores};
use crate::EngineError;
use crate::model::cache::Cache;
use crate::model::linear::Row;
use crate::model::param::Parameters;
use crate::model::pass::{Pass, Site};
use crate::model::stage::Context;

/// Its weights on this rank.
#[derive(Debug)]
pub(in crate::model) struct CrossAttention {
    shards: Vec<(Projections, ScoreShard)>,
    scores: Scores,
    output: Row,
}

impl CrossAttention {
    /// The block of a layer whose parameters' names begin with `prefix`.
    pub(in crate::model) fn build(
        layer: u32,
        prefix: &str,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<CrossAttention, EngineError> {
        let builder = BlockBuilder { layer, prefix, parameters, context };
        let shard = |index| -> Result<_, EngineError> {
            Ok((Projections::build(&builder, "", index)?, ScoreShard { index, relative: None }))
        };
        Ok(CrossAttention {
            shards: builder.shards(shard)?,
            scores: Scores::new(&builder, KeysOf::EncoderOutput),
            output: builder.output()?,
        })
    }

    /// Attention of x `[b, t, d]` to the encoder's output, `[b, s, d]`; where there is none, to that of the cache.
    pub(in crate::model) fn forward(
        &self,
        x_btd: &Tensor,
        memory_bsd: Option<&Tensor>,
        pass: &Pass<'_>,
        mut cache: Option<&mut Cache>,
    ) -> Result<Tensor, EngineError> {
        let shared = self.scores.context.copy_to_shards(x_btd)?;
        let memory = memory_bsd.map(|memory| self.scores.context.copy_to_shards(memory)).transpose()?;
        let again = cache.is_none();
        let mut parts = Vec::new();
        for (at, ((projections, shard), x_btd)) in self.shards.iter().zip(&shared).enumerate() {
            let q = projections.queries(x_btd)?;
            let cache = cache.as_deref_mut().map(|cache| cache.shard(at));
            let (k, v) = match (&memory, cache) {
                (Some(memory), cache) => {
                    let (k, v) = (projections.keys(&memory[at])?, projections.values(&memory[at])?);
                    if let Some(cache) = cache {
                        cache.cross(&k, &v);
                    }
                    (k, v)
                }
                (None, Some(cache)) => cache.crossed().ok_or_else(unread)?,
                (None, None) => return Err(unread()),
            };
            let mixed = Mixed { q: &q, k: &k, v: &v, first: 0, own: None, again };
            let mixed_bthk = self.scores.mix(shard, x_btd, &mixed, pass, Site::CrossProbabilities)?;
            parts.push(self.output.part(at, &mixed_bthk.f_flatten(2, 3)?)?);
        }
        self.output.sum(&parts)
    }
}

fn unread() -> EngineError {
    EngineError::Other("a decoder has nothing that its encoder has read".to_owned())
}
