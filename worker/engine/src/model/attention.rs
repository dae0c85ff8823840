//! The attention block of a layer: projections into heads, positions, the mixing of values, the
//! projection back.
//!
//! Heads are cut over the logical tensor shards, and each shard mixes its own. Each form is a module with its
//! weights, its forward pass and what it keeps for generation:
//! - [`softmax`]: over the keys that a mask leaves.
//! - [`global`]: the same, where the first tokens have projections of their own.
//! - [`latent`]: the same, over keys and values made from one latent a token.
//! - [`compressed`]: the same, over a window and summaries of what was before it.
//! - [`linear`]: sums of products of features, without a softmax.
//! - [`cross`]: softmax over an encoder's output, a block of its own.
//!
//! They share [`heads`] (projections) and [`scores`] (the softmax and its mask).

use std::rc::Rc;

use coxswain_types::model::Attention;
use tch::Tensor;

use super::cache::Cache;
use super::linear::Row;
use super::param::Parameters;
use super::pass::Pass;
use super::stage::Context;
use crate::EngineError;

mod compressed;
mod cross;
mod global;
mod heads;
mod latent;
mod linear;
mod scores;
mod softmax;

pub(super) use compressed::Summarized;
pub(super) use cross::CrossAttention;

use compressed::CompressedAttention;
use global::GlobalAttention;
use heads::BlockBuilder;
use latent::LatentAttention;
use linear::LinearAttention;
use softmax::SoftmaxAttention;

/// Attention of a layer's tokens to each other: its weights on this rank.
#[derive(Debug)]
pub(super) struct AttentionBlock {
    form: AttentionForm,
    output: Row,
    context: Rc<Context>,
}

/// How values are mixed.
#[derive(Debug)]
enum AttentionForm {
    Softmax(SoftmaxAttention),
    Global(GlobalAttention),
    Latent(LatentAttention),
    Compressed(CompressedAttention),
    Linear(LinearAttention),
}

impl AttentionForm {
    fn build(builder: &BlockBuilder<'_>) -> Result<AttentionForm, EngineError> {
        Ok(match builder.context.model.attention {
            Attention::Full
            | Attention::Window { .. }
            | Attention::BigBird { .. }
            | Attention::Longformer { projections: false, .. } => {
                AttentionForm::Softmax(SoftmaxAttention::build(builder)?)
            }
            Attention::Longformer { window, global, projections: true } => {
                AttentionForm::Global(GlobalAttention::build(builder, window, global)?)
            }
            Attention::Latent { rank, rope_dim } => {
                AttentionForm::Latent(LatentAttention::build(builder, [rank, rope_dim])?)
            }
            Attention::Compressed { window, block } => {
                AttentionForm::Compressed(CompressedAttention::build(builder, window, block)?)
            }
            Attention::Linear { decay } => AttentionForm::Linear(LinearAttention::build(builder, decay)?),
        })
    }
}

impl AttentionBlock {
    /// The block of a layer whose parameters' names begin with `prefix`.
    pub(super) fn build(
        layer: u32,
        prefix: &str,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<AttentionBlock, EngineError> {
        let builder = BlockBuilder { layer, prefix, parameters, context };
        Ok(AttentionBlock {
            form: AttentionForm::build(&builder)?,
            output: builder.output()?,
            context: Rc::clone(context),
        })
    }

    /// x and the result are `[b, t, d]`. With a cache, x follows the tokens that it holds.
    pub(super) fn forward(
        &self,
        x_btd: &Tensor,
        pass: &Pass<'_>,
        mut cache: Option<&mut Cache>,
    ) -> Result<Tensor, EngineError> {
        let latents = match &self.form {
            AttentionForm::Latent(latent) => latent.latents(x_btd, pass, cache.as_deref_mut())?,
            AttentionForm::Softmax(_)
            | AttentionForm::Global(_)
            | AttentionForm::Compressed(_)
            | AttentionForm::Linear(_) => Vec::new(),
        };
        let shared = self.context.copy_to_shards(x_btd)?;
        let mut parts = Vec::new();
        for (at, x_btd) in shared.iter().enumerate() {
            let cache = cache.as_deref_mut().map(|cache| cache.shard(at));
            let mixed_bthk = match &self.form {
                AttentionForm::Softmax(form) => form.forward(at, x_btd, pass, cache)?,
                AttentionForm::Global(form) => form.forward(at, x_btd, pass)?,
                AttentionForm::Latent(form) => form.forward(at, x_btd, &latents[at], pass)?,
                AttentionForm::Compressed(form) => form.forward(at, x_btd, pass, cache)?,
                AttentionForm::Linear(form) => form.forward(at, x_btd, pass, cache)?,
            };
            parts.push(self.output.part(at, &mixed_bthk.f_flatten(2, 3)?)?);
        }
        self.output.sum(&parts)
    }
}
