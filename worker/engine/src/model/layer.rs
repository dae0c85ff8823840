//! One transformer layer: an attention block and a feed-forward block, each with a norm before it or
//! after its residual sum.
//!
//! A rank holds some of the *logical tensor shards* of the layer. Each shard is computed by itself,
//! as if it had a rank of its own; their partial sums are added in a fixed tree, so the bits do not
//! tell how many ranks there are.

use std::rc::Rc;

use coxswain_types::assignment::Recompute;
use coxswain_types::job::Block;
use coxswain_types::model::NormPlacement;
use coxswain_types::params::{Place, layer_prefix};
use tch::{Device, Kind, Tensor};

use super::attention::{AttentionBlock, CrossAttention};
use super::cache::Cache;
use super::ffn::Ffn;
use super::norm::Norm;
use super::param::Parameters;
use super::pass::{Pass, Site};
use super::stage::Context;
use crate::EngineError;

/// A layer's weights on this rank.
#[derive(Debug)]
pub struct Layer {
    index: u32,
    attention_norm: Norm,
    attention: AttentionBlock,
    /// Attention to an encoder's output.
    cross: Option<(Norm, CrossAttention)>,
    ffn_norm: Norm,
    ffn: Ffn,
    context: Rc<Context>,
}

/// A part of a layer that runs as one piece between cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece {
    /// All of it.
    Whole,
    /// The attention block, with the residual sum.
    Attention,
    /// The feed-forward block, with the residual sum.
    Ffn,
}

/// What a piece keeps between its forward and its backward pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// The graph, with all activations.
    Graph,
    /// Its input; the backward pass computes the rest again.
    Input,
}

/// The pieces of a layer, in order, and what each keeps.
pub fn pieces(recompute: Recompute) -> &'static [(Piece, Keeps)] {
    match recompute {
        Recompute::Nothing => &[(Piece::Whole, Keeps::Graph)],
        Recompute::Layer => &[(Piece::Whole, Keeps::Input)],
        Recompute::Block(Block::Attention) => &[(Piece::Attention, Keeps::Input), (Piece::Ffn, Keeps::Graph)],
        Recompute::Block(Block::Ffn) => &[(Piece::Attention, Keeps::Graph), (Piece::Ffn, Keeps::Input)],
    }
}

impl Layer {
    /// Layer `index` of the model.
    pub fn build(index: u32, parameters: &Parameters, context: &Rc<Context>) -> Result<Layer, EngineError> {
        let (prefix, place) = (layer_prefix(&context.model, index), Place::Layer(index));
        let norm = |part: &str| Norm::build(place, &format!("{prefix}.{part}"), parameters, context);
        let cross = || -> Result<_, EngineError> {
            let prefix = format!("{prefix}.cross_attn");
            let block = CrossAttention::build(index, &prefix, parameters, context)?;
            Ok((norm("cross_attention_layernorm")?, block))
        };
        let attention = format!("{prefix}.self_attn");
        Ok(Layer {
            index,
            attention_norm: norm("input_layernorm")?,
            attention: AttentionBlock::build(index, &attention, parameters, context)?,
            cross: context.model.crosses(index).then(cross).transpose()?,
            ffn_norm: norm("post_attention_layernorm")?,
            ffn: Ffn::build(place, &format!("{prefix}.mlp"), parameters, context)?,
            context: Rc::clone(context),
        })
    }

    /// Whether it reads an encoder's output.
    pub fn crosses(&self) -> bool {
        self.cross.is_some()
    }

    /// A piece of the layer; x and the result are `[b, t, d]`, with this rank's part of t where the
    /// sequence is split. Behind a decoder's tokens are those of its encoder's output, which pass
    /// through.
    pub fn forward(&self, piece: Piece, x_btd: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        if self.cross.is_none() {
            return self.own(piece, x_btd, None, pass);
        }
        let (x_btd, memory_bsd) = pass.split(x_btd, &self.context)?;
        let y_btd = self.own(piece, &x_btd, Some(&memory_bsd), pass)?;
        Ok(Tensor::f_cat(&[y_btd, memory_bsd], 1)?)
    }

    fn own(
        &self,
        piece: Piece,
        x_btd: &Tensor,
        memory_bsd: Option<&Tensor>,
        pass: &Pass<'_>,
    ) -> Result<Tensor, EngineError> {
        match piece {
            Piece::Whole => self.ffn(&self.attention(x_btd, memory_bsd, pass, None)?, pass),
            Piece::Attention => self.attention(x_btd, memory_bsd, pass, None),
            Piece::Ffn => self.ffn(x_btd, pass),
        }
    }

    /// All of the layer for the tokens that follow those in the cache. The encoder's output comes with the
    /// first of them.
    pub fn forward_cached(
        &self,
        x_btd: &Tensor,
        memory_bsd: Option<&Tensor>,
        pass: &Pass<'_>,
        cache: &mut Cache,
    ) -> Result<Tensor, EngineError> {
        self.ffn(&self.attention(x_btd, memory_bsd, pass, Some(cache))?, pass)
    }

    fn attention(
        &self,
        x_btd: &Tensor,
        memory_bsd: Option<&Tensor>,
        pass: &Pass<'_>,
        mut cache: Option<&mut Cache>,
    ) -> Result<Tensor, EngineError> {
        let x_btd = self.residual(x_btd, &self.attention_norm, Site::Attention, pass, |x_btd| {
            self.attention.forward(x_btd, pass, cache.as_deref_mut())
        })?;
        let Some((norm, cross)) = &self.cross else { return Ok(x_btd) };
        self.residual(&x_btd, norm, Site::Cross, pass, |x_btd| cross.forward(x_btd, memory_bsd, pass, cache))
    }

    fn ffn(&self, x_btd: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        self.residual(x_btd, &self.ffn_norm, Site::Ffn, pass, |x_btd| self.ffn.forward(x_btd))
    }

    /// `x + block(norm(x))`, or `norm(x + block(x))`.
    fn residual(
        &self,
        x_btd: &Tensor,
        norm: &Norm,
        site: Site,
        pass: &Pass<'_>,
        block: impl FnOnce(&Tensor) -> Result<Tensor, EngineError>,
    ) -> Result<Tensor, EngineError> {
        let add = |y_btd: &Tensor| -> Result<Tensor, EngineError> {
            Ok(x_btd.f_add(&pass.dropout(y_btd, self.index, site, &self.context)?)?)
        };
        match self.context.model.norm.placement {
            NormPlacement::Pre => add(&block(&norm.forward(x_btd)?)?),
            NormPlacement::Post => norm.forward(&add(&block(x_btd)?)?),
        }
    }
}

/// A tensor for receiving into.
pub(crate) fn buffer(shape: &[i64], kind: Kind, device: Device) -> Result<Tensor, EngineError> {
    Ok(Tensor::f_empty(shape, (kind, device))?)
}

/// The tensor where it is wanted. A copy to a GPU does not wait for it, one to the host does.
pub(crate) fn on_device(x: &Tensor, device: Device) -> Result<Tensor, EngineError> {
    if x.device() == device {
        return Ok(x.shallow_clone());
    }
    Ok(x.f_internal_to_copy((x.kind(), device), device != Device::Cpu)?)
}
