//! Linear attention (arXiv 2006.16236): means of values by the products of features, without a softmax.

use coxswain_native::linear_attention::linear_attention;
use tch::{Kind, Tensor};

use super::heads::{BlockBuilder, Projections, Qkv};
use crate::EngineError;
use crate::model::cache::ShardCache;
use crate::model::linear::Column;
use crate::model::on_device;
use crate::model::pass::Pass;

/// A log decay that leaves nothing of what was before.
const FORGET: f64 = -200.0;

/// A key whose features are zero: e^x below the smallest number.
const NO_KEY: f64 = -1e4;

/// Its weights on this rank.
#[derive(Debug)]
pub(super) struct LinearAttention {
    shards: Vec<LinearShard>,
    causal: bool,
}

/// The weights of one logical tensor shard.
#[derive(Debug)]
struct LinearShard {
    projections: Projections,
    /// What each head forgets at a token.
    decay: Option<Column>,
}

impl LinearAttention {
    pub(super) fn build(builder: &BlockBuilder<'_>, decay: bool) -> Result<LinearAttention, EngineError> {
        let shard = |index| -> Result<_, EngineError> {
            Ok(LinearShard {
                projections: Projections::build(builder, "", index)?,
                decay: decay.then(|| builder.column("decay_proj", index, true)).transpose()?,
            })
        };
        let causal = builder.context.model.causal(builder.layer);
        Ok(LinearAttention { shards: builder.shards(shard)?, causal })
    }

    /// x `[b, t, d]`; the result `[b, t, h, k]`. What a cache keeps is a sum of fixed size.
    pub(super) fn forward(
        &self,
        at: usize,
        x_btd: &Tensor,
        pass: &Pass<'_>,
        cache: Option<&mut ShardCache>,
    ) -> Result<Tensor, EngineError> {
        let LinearShard { projections, decay } = &self.shards[at];
        let Qkv { q, k, v } = projections.forward_with(x_btd, |x_bthk| rotate(x_bthk, pass))?;
        if !self.causal {
            let k = match pass.padded {
                None => k,
                Some(counts) => {
                    k.f_masked_fill(&on_device(&padding(counts, k.size()[1])?, k.device())?, NO_KEY)?
                }
            };
            return Ok(linear_attention(&q, &k, &v, None, false, None)?.0);
        }
        let decay = decay.as_ref().map(|decay| -> Result<Tensor, EngineError> {
            // A head keeps sigmoid(x) of what it has; this form of its logarithm does not overflow.
            Ok(decay.forward(x_btd)?.f_to_kind(Kind::Float)?.f_log_sigmoid()?)
        });
        let decay = forget(decay.transpose()?, &q, pass)?;
        let state = cache.as_ref().and_then(|cache| cache.state());
        let (mixed, state) = linear_attention(&q, &k, &v, decay.as_ref(), true, state)?;
        if let (Some(cache), Some(state)) = (cache, state) {
            cache.go_on(state);
        }
        Ok(mixed)
    }
}

/// x `[b, t, h, k]` rotated by its tokens' positions, where the model rotates. A score depends on their
/// difference alone, a product of features does not: there each document begins anew.
fn rotate(x_bthk: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
    match pass.rotary {
        Some(rotary) if pass.documents.is_some() => {
            rotary.rotate_by(&pass.positions(false, x_bthk.size()[1])?, x_bthk)
        }
        _ => pass.rotate(x_bthk),
    }
}

/// Log decays `[b, t, h]`, by which the first token of a document forgets those before it.
fn forget(decay: Option<Tensor>, q_bthk: &Tensor, pass: &Pass<'_>) -> Result<Option<Tensor>, EngineError> {
    let Some(rows) = pass.documents_of(false) else { return Ok(decay) };
    let first = |row: &[u32]| -> Vec<bool> {
        let before = std::iter::once(row.first()).chain(row.iter().map(Some));
        row.iter().zip(before).map(|(own, before)| Some(own) != before).collect()
    };
    let firsts: Vec<bool> = rows.iter().flat_map(|row| first(row)).collect();
    let shape = &q_bthk.size()[..3];
    let firsts_bt1 = Tensor::from_slice(&firsts).f_view([shape[0], shape[1], 1])?;
    let firsts_bt1 = on_device(&firsts_bt1, q_bthk.device())?;
    let decay = match decay {
        Some(decay) => decay,
        None => Tensor::f_zeros(shape, (Kind::Float, q_bthk.device()))?,
    };
    Ok(Some(decay.f_masked_fill(&firsts_bt1, FORGET)?))
}

/// Which of `tokens` are padding, for rows of so many that are not: `[b, t, 1, 1]`.
fn padding(counts: &[u32], tokens: i64) -> Result<Tensor, EngineError> {
    let hidden: Vec<bool> =
        counts.iter().flat_map(|&count| (0..tokens).map(move |at| at >= i64::from(count))).collect();
    Ok(Tensor::from_slice(&hidden).f_view([counts.len() as i64, tokens, 1, 1])?)
}
