//! Compressed memory (after arXiv 1911.05507): keys and values of a window are kept as they are, older ones
//! as one learned summary for each block, a mean whose weights each key/value head learns.

use coxswain_native::ops;
use coxswain_types::mask::{Compressed, Mask};
use tch::{Kind, Tensor};

use super::softmax::Mixed;
use super::{AttentionBlock, Shard};
use crate::EngineError;
use crate::model::cache::{Kept, Memory};
use crate::model::pass::Pass;

impl AttentionBlock {
    /// q `[b, t, h, k]`, k and v `[b, t, g, k]`. Each query sees every token up to its own once: by itself, or
    /// in the summary of its block.
    pub(super) fn compressed(
        &self,
        shard: &Shard,
        x_btd: &Tensor,
        [q, k, v]: [&Tensor; 3],
        (window, block): (u32, u32),
        (pass, kept): (&Pass<'_>, Option<&mut Kept>),
    ) -> Result<Tensor, EngineError> {
        let again = kept.is_none();
        let now = match &kept {
            Some(kept) => kept.memory().followed_by(k, v)?,
            None => Memory::default().followed_by(k, v)?,
        };
        let (start, tokens) = (now.start, now.tokens()?);
        let mask = Compressed { window, block, summaries: 0, start: start as u32 };
        // What the last query sees by itself begins at `exact`; all blocks before it are summarized.
        let exact = i64::from(mask.exact((start + tokens - 1) as u32));
        let weights_bg = self.weights(shard, x_btd, block)?;
        let fresh = (exact - start) / i64::from(block);
        let next = now.summarized(|x| summaries(x, &weights_bg, fresh))?;
        let count = next.summaries()?;
        let own = Mask::Compressed(Compressed { summaries: count as u32, ..mask });
        let (k, v) = next.all()?;
        let first = count + tokens - q.size()[1];
        let mixed = Mixed { q, k: &k, v: &v, first, own: Some(own), again };
        let mixed_bthk = self.mix(shard, x_btd, &mixed, pass, self.site())?;
        if let Some(kept) = kept {
            kept.remember(next.forget_before(exact)?);
        }
        Ok(mixed_bthk)
    }

    /// The share of each token of a block in its summary, by key/value head: `[block, g]`.
    fn weights(&self, shard: &Shard, x_btd: &Tensor, block: u32) -> Result<Tensor, EngineError> {
        let table = shard.summary.as_ref();
        let table = table.ok_or_else(|| EngineError::Table("a layer has no summaries".to_owned()))?;
        let rows = Tensor::f_arange(i64::from(block), (Kind::Int64, x_btd.device()))?;
        let logits_gb =
            ops::table_columns(x_btd, &table.weight, &rows, &table.slot, &self.context.wgrad_queue)?;
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
