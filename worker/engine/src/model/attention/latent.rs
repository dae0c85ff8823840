//! Multi-head latent attention (arXiv 2405.04434): keys and values of all heads are made from one latent a
//! token. A part of each head is rotated; its key is one for all heads, and made beside the latent.
//!
//! Every tensor rank makes the latents of its tokens; their gradient is the sum of all shards'.

use std::ops::Range;
use std::rc::Rc;

use tch::Tensor;

use super::heads::{BlockBuilder, into_heads};
use super::scores::{KeysOf, Mixed, ScoreShard, Scores};
use crate::EngineError;
use crate::model::cache::Cache;
use crate::model::linear::Column;
use crate::model::norm::Norm;
use crate::model::param::Param;
use crate::model::pass::{Pass, Site};
use crate::model::uses::Uses;

/// Its weights on this rank.
#[derive(Debug)]
pub(super) struct LatentAttention {
    shards: Vec<LatentShard>,
    /// What makes a token's latent and rotated key.
    down: Uses,
    norm: Norm,
    /// Widths of the latent, and of the key that all heads share.
    widths: [i64; 2],
    scores: Scores,
}

/// The weights of one logical tensor shard.
#[derive(Debug)]
struct LatentShard {
    q: Column,
    /// Keys and values, from the latent.
    up: Column,
    scores: ScoreShard,
}

impl LatentAttention {
    pub(super) fn build(
        builder: &BlockBuilder<'_>,
        widths: [u32; 2],
    ) -> Result<LatentAttention, EngineError> {
        let (place, prefix, parameters, context) =
            (builder.place(), builder.prefix, builder.parameters, builder.context);
        let shard = |index| -> Result<_, EngineError> {
            Ok(LatentShard {
                q: builder.projection("q_proj", index)?,
                up: builder.column("kv_up_proj", index, false)?,
                scores: builder.scores(index)?,
            })
        };
        Ok(LatentAttention {
            shards: builder.shards(shard)?,
            down: Uses::build(place, &format!("{prefix}.kv_down_proj.weight"), parameters, context)?,
            norm: Norm::build(place, &format!("{prefix}.kv_norm"), parameters, context)?,
            widths: widths.map(i64::from),
            scores: Scores::new(builder, KeysOf::Own),
        })
    }

    /// For each shard here the latent of all tokens and the rotated key beside it, `[b, s, r + k]`; with a
    /// cache, of its tokens too.
    pub(super) fn latents(
        &self,
        x_btd: &Tensor,
        pass: &Pass<'_>,
        cache: Option<&mut Cache>,
    ) -> Result<Vec<Tensor>, EngineError> {
        // A product for each use: its gradient is the sum over its own tokens.
        let down = |(param, tokens): (&Rc<Param>, Range<i64>)| -> Result<Tensor, EngineError> {
            let x_btd = x_btd.f_narrow(1, tokens.start, tokens.end - tokens.start)?.f_contiguous()?;
            self.scores.context.linear(&x_btd, param)
        };
        let parts = self.down.ranges(x_btd.size()[1]).map(down).collect::<Result<Vec<_>, _>>()?;
        let [latent_btr, key_btk] = self.split(&Tensor::f_cat(&parts, 1)?)?;
        let latent_btr = self.norm.forward(&latent_btr.f_contiguous()?)?;
        let shared = self.scores.context.copy_to_shards(&Tensor::f_cat(&[latent_btr, key_btk], 2)?)?;
        let rotate = |both: &Tensor| -> Result<Tensor, EngineError> {
            let [latent_btr, key_btk] = self.split(both)?;
            let key_btk = pass.rotate(&key_btk.f_unsqueeze(2)?)?.f_squeeze_dim(2)?;
            Ok(Tensor::f_cat(&[latent_btr, key_btk], 2)?)
        };
        let mut latents = shared.iter().map(rotate).collect::<Result<Vec<_>, _>>()?;
        if let Some(cache) = cache {
            let all = cache.append_latents(&latents[0])?;
            latents = latents.iter().map(|_| all.shallow_clone()).collect();
        }
        Ok(latents)
    }

    /// The latent and the key that is beside it.
    fn split(&self, both: &Tensor) -> Result<[Tensor; 2], EngineError> {
        let [rank, rope_dim] = self.widths;
        Ok([both.f_narrow(2, 0, rank)?, both.f_narrow(2, rank, rope_dim)?])
    }

    /// Queries of x `[b, t, d]`, and keys and values of a shard's heads from the latents `[b, s, r + k]`; the result
    /// `[b, t, h, k]`.
    pub(super) fn forward(
        &self,
        at: usize,
        x_btd: &Tensor,
        latent_bsl: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Tensor, EngineError> {
        let LatentShard { q, up, scores } = &self.shards[at];
        let head = i64::from(self.scores.context.model.head_dim);
        let [_, rope_dim] = self.widths;
        let plain = head - rope_dim;
        let q = into_heads(x_btd, q, head)?;
        let rotated = pass.rotate(&q.f_narrow(3, plain, rope_dim)?)?;
        let q = Tensor::f_cat(&[q.f_narrow(3, 0, plain)?, rotated], 3)?;
        let [latent_bsr, key_bsk] = self.split(latent_bsl)?;
        let both = up.forward(&latent_bsr.f_contiguous()?)?.f_unflatten(2, [-1, plain + head].as_slice())?;
        let key_bshk = key_bsk.f_unsqueeze(2)?.f_expand([-1, -1, both.size()[2], -1], false)?;
        let k = Tensor::f_cat(&[both.f_narrow(3, 0, plain)?, key_bshk], 3)?;
        let v = both.f_narrow(3, plain, head)?.f_contiguous()?;
        let first = k.size()[1] - q.size()[1];
        let mixed = Mixed { q: &q, k: &k, v: &v, first, own: None, again: true };
        self.scores.mix(scores, x_btd, &mixed, pass, Site::Probabilities)
    }
}
