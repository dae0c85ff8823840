//! One transformer layer, LLaMA style: norm, grouped-query attention with rotary positions, norm,
//! SwiGLU. Column-parallel products come after `copy_to_group`, row-parallel ones before
//! `reduce_from_group` (Megatron, arXiv 1909.08053).

use std::rc::Rc;

use coxswain_comm::Group;
use coxswain_native::ops::{self, Tape};
use coxswain_types::job::ModelSpec;
use tch::{Device, Kind, Tensor};

use super::param::{Param, Parameters};
use crate::EngineError;

/// A layer's weights on this rank.
#[derive(Debug)]
pub struct Layer {
    attention_norm: Rc<Param>,
    q: Rc<Param>,
    k: Rc<Param>,
    v: Rc<Param>,
    o: Rc<Param>,
    ffn_norm: Rc<Param>,
    gate: Rc<Param>,
    up: Rc<Param>,
    down: Rc<Param>,
    head_dim: i64,
    norm_eps: f64,
    group: Rc<Group>,
    tape: Rc<Tape>,
}

impl Layer {
    /// Layer `index` of the model.
    pub fn build(
        index: u32,
        model: &ModelSpec,
        parameters: &Parameters,
        group: &Rc<Group>,
        tape: &Rc<Tape>,
    ) -> Result<Layer, EngineError> {
        let take = |part: &str| parameters.take(&format!("model.layers.{index}.{part}.weight"));
        Ok(Layer {
            attention_norm: take("input_layernorm")?,
            q: take("self_attn.q_proj")?,
            k: take("self_attn.k_proj")?,
            v: take("self_attn.v_proj")?,
            o: take("self_attn.o_proj")?,
            ffn_norm: take("post_attention_layernorm")?,
            gate: take("mlp.gate_proj")?,
            up: take("mlp.up_proj")?,
            down: take("mlp.down_proj")?,
            head_dim: i64::from(model.head_dim()),
            norm_eps: model.norm_eps,
            group: Rc::clone(group),
            tape: Rc::clone(tape),
        })
    }

    /// x and the result are `[b, t, d]`.
    pub fn forward(&self, x_btd: &Tensor, rotary: &Rotary) -> Result<Tensor, EngineError> {
        self.run(x_btd, rotary, |q, k, v| Ok(ops::attention(q, k, v, true)?))
    }

    /// As [`Layer::forward`], for the tokens that follow those in the cache.
    pub fn forward_cached(
        &self,
        x_btd: &Tensor,
        rotary: &Rotary,
        cache: &mut Cache,
    ) -> Result<Tensor, EngineError> {
        self.run(x_btd, rotary, |q, k, v| {
            let causal = cache.is_empty();
            let (k, v) = cache.append(k, v)?;
            Ok(ops::attention(q, &k, &v, causal)?)
        })
    }

    fn run(
        &self,
        x_btd: &Tensor,
        rotary: &Rotary,
        attend: impl FnOnce(&Tensor, &Tensor, &Tensor) -> Result<Tensor, EngineError>,
    ) -> Result<Tensor, EngineError> {
        let normed = self.norm(x_btd, &self.attention_norm)?;
        let shared = ops::copy_to_group(&normed, &self.group, &self.tape)?;
        let q_bthk = ops::rope(&self.heads(&shared, &self.q)?, &rotary.cos, &rotary.sin)?;
        let k_btgk = ops::rope(&self.heads(&shared, &self.k)?, &rotary.cos, &rotary.sin)?;
        let v_btgk = self.heads(&shared, &self.v)?;
        let mixed = attend(&q_bthk, &k_btgk, &v_btgk)?.f_flatten(2, 3)?;
        let x_btd = x_btd.f_add(&ops::reduce_from_group(&self.linear(&mixed, &self.o)?, &self.group)?)?;

        let normed = self.norm(&x_btd, &self.ffn_norm)?;
        let shared = ops::copy_to_group(&normed, &self.group, &self.tape)?;
        let wide = ops::swiglu(&self.linear(&shared, &self.gate)?, &self.linear(&shared, &self.up)?)?;
        Ok(x_btd.f_add(&ops::reduce_from_group(&self.linear(&wide, &self.down)?, &self.group)?)?)
    }

    fn norm(&self, x: &Tensor, param: &Param) -> Result<Tensor, EngineError> {
        Ok(ops::rms_norm(x, &param.weight, self.norm_eps, &param.slot, &self.tape)?)
    }

    fn linear(&self, x: &Tensor, param: &Param) -> Result<Tensor, EngineError> {
        Ok(ops::linear(x, &param.weight, &param.slot, &self.tape)?)
    }

    /// A product cut into heads: `[b, t, heads, k]`.
    fn heads(&self, x_btd: &Tensor, param: &Param) -> Result<Tensor, EngineError> {
        Ok(self.linear(x_btd, param)?.f_unflatten(2, [-1, self.head_dim].as_slice())?)
    }
}

/// Rotary tables for consecutive positions, `[t, k/2]` (arXiv 2104.09864).
#[derive(Debug)]
pub struct Rotary {
    cos: Tensor,
    sin: Tensor,
}

impl Rotary {
    /// Tables for the positions `start..start + tokens`.
    ///
    /// Angles are computed in double: a float's last place is a visible angle at position 10,000.
    pub fn new(model: &ModelSpec, start: i64, tokens: i64) -> Result<Rotary, EngineError> {
        let (half, dim) = (i64::from(model.head_dim()) / 2, f64::from(model.head_dim()));
        let angle = |position: i64, i: i64| position as f64 * model.rope_theta.powf(-2.0 * i as f64 / dim);
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (start..start + tokens)
                .flat_map(|position| (0..half).map(move |i| (position, i)))
                .map(|(position, i)| f(angle(position, i)) as f32)
                .collect();
            Tensor::from_slice(&values).f_view([tokens, half])
        };
        Ok(Rotary { cos: table(f64::cos)?, sin: table(f64::sin)? })
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

/// Zeros of a shape, for receiving into.
pub(crate) fn buffer(shape: &[i64]) -> Result<Tensor, EngineError> {
    Ok(Tensor::f_empty(shape, (Kind::Float, Device::Cpu))?)
}
