//! One transformer layer, LLaMA style: norm, grouped-query attention with rotary positions, norm,
//! SwiGLU (Megatron's cut, arXiv 1909.08053).
//!
//! A rank holds some of the *logical tensor shards* of the layer. Each shard is computed by itself,
//! as if it had a rank of its own; their partial sums are added in a fixed tree, so the bits do not
//! tell how many ranks there are.

use std::rc::Rc;

use coxswain_native::attention::{self, ProbabilityDropout};
use coxswain_native::ops;
use coxswain_types::assignment::Recompute;
use coxswain_types::job::Block;
use coxswain_types::params::{Place, layer_prefix};
use tch::{Device, Kind, Tensor};

use super::norm::Norm;
use super::param::{Param, Parameters};
use super::pass::{Pass, Site};
use super::stage::Context;
use crate::EngineError;

/// A layer's weights on this rank.
#[derive(Debug)]
pub struct Layer {
    index: u32,
    attention_norm: Norm,
    ffn_norm: Norm,
    shards: Vec<Shard>,
    context: Rc<Context>,
}

/// The weights of one logical tensor shard.
#[derive(Debug)]
struct Shard {
    index: u32,
    q: Rc<Param>,
    k: Rc<Param>,
    v: Rc<Param>,
    o: Rc<Param>,
    gate: Rc<Param>,
    up: Rc<Param>,
    down: Rc<Param>,
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

/// The pieces of a layer, in order, and whether each is computed again in the backward pass.
pub fn pieces(recompute: Recompute) -> &'static [(Piece, bool)] {
    match recompute {
        Recompute::Nothing => &[(Piece::Whole, false)],
        Recompute::Layer => &[(Piece::Whole, true)],
        Recompute::Block(Block::Attention) => &[(Piece::Attention, true), (Piece::Ffn, false)],
        Recompute::Block(Block::Ffn) => &[(Piece::Attention, false), (Piece::Ffn, true)],
    }
}

impl Layer {
    /// Layer `index` of the model.
    pub fn build(index: u32, parameters: &Parameters, context: &Rc<Context>) -> Result<Layer, EngineError> {
        let prefix = layer_prefix(&context.model, index);
        let place = Place::Layer(index);
        let name = |part: &str| format!("{prefix}.{part}.weight");
        let take = |part: &str, shard| parameters.take(place, &name(part), shard);
        let norm = |part: &str| Norm::build(place, &name(part), parameters, context);
        let shard = |index| -> Result<Shard, EngineError> {
            Ok(Shard {
                index,
                q: take("self_attn.q_proj", index)?,
                k: take("self_attn.k_proj", index)?,
                v: take("self_attn.v_proj", index)?,
                o: take("self_attn.o_proj", index)?,
                gate: take("mlp.gate_proj", index)?,
                up: take("mlp.up_proj", index)?,
                down: take("mlp.down_proj", index)?,
            })
        };
        Ok(Layer {
            index,
            attention_norm: norm("input_layernorm")?,
            ffn_norm: norm("post_attention_layernorm")?,
            shards: context.shards.clone().map(shard).collect::<Result<_, _>>()?,
            context: Rc::clone(context),
        })
    }

    /// A piece of the layer; x and the result are `[b, t, d]`, with this rank's part of t where the
    /// sequence is split.
    pub fn forward(&self, piece: Piece, x_btd: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        let attend = |shard: &Shard, q: &Tensor, k: &Tensor, v: &Tensor| self.attend(shard, q, k, v, pass);
        match piece {
            Piece::Whole => self.ffn(&self.attention(x_btd, pass, attend)?, pass),
            Piece::Attention => self.attention(x_btd, pass, attend),
            Piece::Ffn => self.ffn(x_btd, pass),
        }
    }

    /// All of the layer for the tokens that follow those in the cache.
    pub fn forward_cached(
        &self,
        x_btd: &Tensor,
        pass: &Pass<'_>,
        cache: &mut Cache,
    ) -> Result<Tensor, EngineError> {
        let x_btd = self.attention(x_btd, pass, |_, q, k, v| {
            let causal = cache.is_empty();
            let (k, v) = cache.append(k, v)?;
            Ok(ops::attention(q, &k, &v, causal)?)
        })?;
        self.ffn(&x_btd, pass)
    }

    fn attention(
        &self,
        x_btd: &Tensor,
        pass: &Pass<'_>,
        mut attend: impl FnMut(&Shard, &Tensor, &Tensor, &Tensor) -> Result<Tensor, EngineError>,
    ) -> Result<Tensor, EngineError> {
        let shared = self.context.copy_to_shards(&self.attention_norm.forward(x_btd)?)?;
        let (mut parts, rotary) = (Vec::new(), pass.rotary);
        for (shard, x_btd) in self.shards.iter().zip(&shared) {
            let q_bthk = ops::rope(&self.heads(x_btd, &shard.q)?, &rotary.cos, &rotary.sin)?;
            let k_btgk = ops::rope(&self.heads(x_btd, &shard.k)?, &rotary.cos, &rotary.sin)?;
            let v_btgk = self.heads(x_btd, &shard.v)?;
            let mixed = attend(shard, &q_bthk, &k_btgk, &v_btgk)?.f_flatten(2, 3)?;
            parts.push(self.context.linear(&mixed, &shard.o)?);
        }
        let sum_btd = self.context.reduce_from_shards(&parts)?;
        Ok(x_btd.f_add(&pass.dropout(&sum_btd, self.index, Site::Attention, &self.context)?)?)
    }

    fn attend(
        &self,
        shard: &Shard,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        pass: &Pass<'_>,
    ) -> Result<Tensor, EngineError> {
        let Some((key, rate)) = pass.probabilities(self.index) else {
            return Ok(ops::attention(q, k, v, true)?);
        };
        let heads = i64::from(self.context.model.heads);
        let each = heads / i64::from(self.context.shard_count);
        let first_head = i64::from(shard.index) * each;
        let dropout = ProbabilityDropout { key, rate, first_head, heads };
        Ok(attention::attention(q, k, v, true, Some(dropout))?)
    }

    fn ffn(&self, x_btd: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        let shared = self.context.copy_to_shards(&self.ffn_norm.forward(x_btd)?)?;
        let mut parts = Vec::new();
        for (shard, x_btd) in self.shards.iter().zip(&shared) {
            let (gate, up) =
                (self.context.linear(x_btd, &shard.gate)?, self.context.linear(x_btd, &shard.up)?);
            parts.push(self.context.linear(&ops::swiglu(&gate, &up)?, &shard.down)?);
        }
        let sum_btd = self.context.reduce_from_shards(&parts)?;
        Ok(x_btd.f_add(&pass.dropout(&sum_btd, self.index, Site::Ffn, &self.context)?)?)
    }

    /// A product cut into heads: `[b, t, heads, k]`.
    fn heads(&self, x_btd: &Tensor, param: &Param) -> Result<Tensor, EngineError> {
        let head_dim = i64::from(self.context.model.head_dim());
        Ok(self.context.linear(x_btd, param)?.f_unflatten(2, [-1, head_dim].as_slice())?)
    }
}

/// Keys and values of the tokens so far, for generation: `[b, s, g, k]`.
#[derive(Debug, Default)]
pub struct Cache {
    kv: Option<(Tensor, Tensor)>,
}

impl Cache {
    fn is_empty(&self) -> bool {
        self.kv.is_none()
    }

    fn append(&mut self, k: &Tensor, v: &Tensor) -> Result<(Tensor, Tensor), EngineError> {
        let (k, v) = match &self.kv {
            None => (k.shallow_clone(), v.shallow_clone()),
            Some((old_k, old_v)) => (Tensor::f_cat(&[old_k, k], 1)?, Tensor::f_cat(&[old_v, v], 1)?),
        };
        self.kv = Some((k.shallow_clone(), v.shallow_clone()));
        Ok((k, v))
    }
}

/// A tensor for receiving into.
pub(crate) fn buffer(shape: &[i64], kind: Kind) -> Result<Tensor, EngineError> {
    Ok(Tensor::f_empty(shape, (kind, Device::Cpu))?)
}
