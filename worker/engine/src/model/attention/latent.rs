//! Multi-head latent attention (arXiv 2405.04434): keys and values of all heads are made from one latent a
//! token. A part of each head is rotated; its key is one for all heads, and made beside the latent.
//!
//! Every tensor rank makes the latents of its tokens; their gradient is the sum of all shards'.

use std::ops::Range;
use std::rc::Rc;

use coxswain_types::model::Attention;
use coxswain_types::params::Place;
use tch::Tensor;

use super::softmax::Mixed;
use super::{AttentionBlock, Shard};
use crate::EngineError;
use crate::model::cache::Cache;
use crate::model::linear::Column;
use crate::model::norm::Norm;
use crate::model::param::{Param, Parameters};
use crate::model::pass::Pass;
use crate::model::stage::Context;
use crate::model::uses::Uses;

/// What makes a token's latent and rotated key.
#[derive(Debug)]
pub(super) struct Latent {
    down: Uses,
    norm: Norm,
    /// Widths of the latent, and of the key that all heads share.
    widths: [i64; 2],
    context: Rc<Context>,
}

impl Latent {
    pub(super) fn build(
        place: Place,
        prefix: &str,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<Latent, EngineError> {
        let Attention::Latent { rank, rope_dim } = context.model.attention else {
            return Err(EngineError::Table("the model has no latents".to_owned()));
        };
        Ok(Latent {
            down: Uses::build(place, &format!("{prefix}.kv_down_proj.weight"), parameters, context)?,
            norm: Norm::build(place, &format!("{prefix}.kv_norm"), parameters, context)?,
            widths: [rank.into(), rope_dim.into()],
            context: Rc::clone(context),
        })
    }

    /// For each shard here the latent of all tokens and the rotated key beside it, `[b, s, r + k]`; with a
    /// cache, of its tokens too.
    pub(super) fn forward(
        &self,
        x_btd: &Tensor,
        pass: &Pass<'_>,
        cache: Option<&mut Cache>,
    ) -> Result<Vec<Tensor>, EngineError> {
        // A product for each use: its gradient is the sum over its own tokens.
        let down = |(param, tokens): (&Rc<Param>, Range<i64>)| -> Result<Tensor, EngineError> {
            let x_btd = x_btd.f_narrow(1, tokens.start, tokens.end - tokens.start)?.f_contiguous()?;
            self.context.linear(&x_btd, param)
        };
        let parts = self.down.ranges(x_btd.size()[1]).map(down).collect::<Result<Vec<_>, _>>()?;
        let [latent_btr, key_btk] = self.split(&Tensor::f_cat(&parts, 1)?)?;
        let latent_btr = self.norm.forward(&latent_btr.f_contiguous()?)?;
        let shared = self.context.copy_to_shards(&Tensor::f_cat(&[latent_btr, key_btk], 2)?)?;
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
}

impl AttentionBlock {
    /// Queries of x `[b, t, d]`, and keys and values of a shard's heads from the latents `[b, s, r + k]`.
    pub(super) fn latent(
        &self,
        shard: &Shard,
        up: &Column,
        x_btd: &Tensor,
        latent_bsl: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Tensor, EngineError> {
        let Some(latent) = &self.latent else {
            return Err(EngineError::Table("a layer has no latents".to_owned()));
        };
        let head = i64::from(self.context.model.head_dim);
        let rope_dim = latent.widths[1];
        let plain = head - rope_dim;
        let q = self.heads(x_btd, &shard.q)?;
        let rotated = pass.rotate(&q.f_narrow(3, plain, rope_dim)?)?;
        let q = Tensor::f_cat(&[q.f_narrow(3, 0, plain)?, rotated], 3)?;
        let [latent_bsr, key_bsk] = latent.split(latent_bsl)?;
        let both = up.forward(&latent_bsr.f_contiguous()?)?.f_unflatten(2, [-1, plain + head].as_slice())?;
        let key_bshk = key_bsk.f_unsqueeze(2)?.f_expand([-1, -1, both.size()[2], -1], false)?;
        let k = Tensor::f_cat(&[both.f_narrow(3, 0, plain)?, key_bshk], 3)?;
        let v = both.f_narrow(3, plain, head)?.f_contiguous()?;
        let first = k.size()[1] - q.size()[1];
        let mixed = Mixed { q: &q, k: &k, v: &v, first, own: None, again: true };
        self.mix(shard, x_btd, &mixed, pass, self.site())
    }
}
