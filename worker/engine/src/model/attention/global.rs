//! Longformer (arXiv 2004.05150) whose first tokens have projections of their own, in an encoder: by them
//! they see all tokens. All others see their neighbours and the first tokens by the usual ones.

use coxswain_types::mask::Mask;
use coxswain_types::model::Attention;
use tch::Tensor;

use super::softmax::Mixed;
use super::{AttentionBlock, Pairs, Shard};
use crate::EngineError;
use crate::model::linear::Column;
use crate::model::pass::{Pass, Site};

/// Projections of the first tokens' own attention.
#[derive(Debug)]
pub(super) struct Projections {
    pub q: Column,
    pub k: Column,
    pub v: Column,
}

impl AttentionBlock {
    /// x `[b, t, d]`; the result `[b, t, h, k]`.
    pub(super) fn global(
        &self,
        shard: &Shard,
        own: &Projections,
        x_btd: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Tensor, EngineError> {
        let (Attention::Longformer { window, global, .. }, Pairs::Projected(k, v)) =
            (self.form, &shard.pairs)
        else {
            return Err(EngineError::Table("a layer has projections that it does not use".to_owned()));
        };
        let tokens = x_btd.size()[1];
        let count = i64::from(global).min(tokens);
        let mix = |by: [&Column; 3], queries: [i64; 2], mask: Option<Mask>, site| {
            let [first, len] = queries;
            let q = self.heads(&x_btd.f_narrow(1, first, len)?.f_contiguous()?, by[0])?;
            let q = pass.rotate_from(first, &q)?;
            let (k, v) = (pass.rotate(&self.heads(x_btd, by[1])?)?, self.heads(x_btd, by[2])?);
            let mixed = Mixed { q: &q, k: &k, v: &v, first, own: mask, again: true };
            self.mix(shard, x_btd, &mixed, pass, site)
        };
        // A text that is read alone may have no token beyond the first ones.
        let mut parts = Vec::new();
        if count > 0 {
            parts.push(mix([&own.q, &own.k, &own.v], [0, count], None, Site::GlobalProbabilities)?);
        }
        if count < tokens {
            let near = Mask::Window { before: window, after: window };
            let mask = Mask::Or(vec![near, Mask::Keys(0..global)]);
            parts.push(mix([&shard.q, k, v], [count, tokens - count], Some(mask), self.site())?);
        }
        Ok(Tensor::f_cat(&parts, 1)?)
    }
}
