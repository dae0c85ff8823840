//! Projections into heads, and what builds them.

use std::rc::Rc;

use coxswain_types::forms::attention::Projection;
use coxswain_types::model::Positions;
use coxswain_types::params::{Place, relative_bias};
use tch::Tensor;

use super::scores::ScoreShard;
use crate::EngineError;
use crate::model::linear::{Column, Row};
use crate::model::norm::Norm;
use crate::model::param::{Param, Parameters};
use crate::model::pass::Pass;
use crate::model::stage::Context;
use crate::model::uses::Uses;

/// Takes the parameters of a block.
#[derive(Clone, Copy)]
pub(super) struct BlockBuilder<'b> {
    pub(super) layer: u32,
    /// What the names of its parameters begin with.
    pub(super) prefix: &'b str,
    pub(super) parameters: &'b Parameters,
    pub(super) context: &'b Rc<Context>,
}

impl BlockBuilder<'_> {
    pub(super) fn place(&self) -> Place {
        Place::Layer(self.layer)
    }

    /// A projection of one logical shard.
    pub(super) fn column(&self, part: &str, shard: u32, biased: bool) -> Result<Column, EngineError> {
        let name = format!("{}.{part}", self.prefix);
        Column::build((self.place(), &name, shard), biased, self.parameters, self.context)
    }

    /// A projection of one logical shard, with a bias where those of the model have one.
    pub(super) fn projection(&self, part: &str, shard: u32) -> Result<Column, EngineError> {
        self.column(part, shard, self.context.model.biases.qkv)
    }

    /// One logical shard of a parameter that is none of a projection.
    pub(super) fn param(&self, part: &str, shard: u32) -> Result<Rc<Param>, EngineError> {
        self.parameters.take(self.place(), &format!("{}.{part}", self.prefix), shard)
    }

    /// What a softmax knows of a shard, with the table of relative positions where the model has one.
    pub(super) fn scores(&self, shard: u32) -> Result<ScoreShard, EngineError> {
        let model = &self.context.model;
        let take = || self.parameters.take(self.place(), &relative_bias(model, self.layer), shard);
        let relative = matches!(model.positions, Positions::RelativeBias { .. });
        Ok(ScoreShard { index: shard, relative: relative.then(take).transpose()? })
    }

    /// The norm of each head that a projection makes, where the model has one. Its weights are one vector for all heads,
    /// of which every logical shard is a use.
    fn head_norm(&self, part: &str, projection: Projection, shard: u32) -> Result<Option<Norm>, EngineError> {
        let model = &self.context.model;
        let Some(norm) = model.norm.after(model.attention, projection) else { return Ok(None) };
        let name = format!("{part}{}", norm.name);
        let uses = |kind: &str| Ok(Uses(vec![self.param(&format!("{name}.{kind}"), shard)?]));
        Norm::of(self.context, uses).map(Some)
    }

    /// The projection back.
    pub(super) fn output(&self) -> Result<Row, EngineError> {
        let name = format!("{}.o_proj", self.prefix);
        Row::build(self.place(), &name, self.context.model.biases.out, self.parameters, self.context)
    }

    /// Builds something of each logical shard here.
    pub(super) fn shards<T>(
        &self,
        build: impl Fn(u32) -> Result<T, EngineError>,
    ) -> Result<Vec<T>, EngineError> {
        self.context.shards.clone().map(build).collect()
    }
}

/// Queries, keys and values of a logical shard, each by a projection.
#[derive(Debug)]
pub(super) struct Projections {
    q: Column,
    k: Column,
    v: Column,
    /// Norms of the numbers of each query and key head, where the model has some.
    q_norm: Option<Norm>,
    k_norm: Option<Norm>,
    head_dim: i64,
}

/// Queries `[b, t, h, k]`, and keys and values `[b, s, g, k]`.
pub(super) struct Qkv {
    pub(super) q: Tensor,
    pub(super) k: Tensor,
    pub(super) v: Tensor,
}

impl Projections {
    /// Those whose names begin with `part` behind the block's prefix.
    pub(super) fn build(
        builder: &BlockBuilder<'_>,
        part: &str,
        shard: u32,
    ) -> Result<Projections, EngineError> {
        let column = |name: &str| builder.projection(&format!("{part}{name}_proj"), shard);
        let norm = |projection| builder.head_norm(part, projection, shard);
        Ok(Projections {
            q: column("q")?,
            k: column("k")?,
            v: column("v")?,
            q_norm: norm(Projection::Query)?,
            k_norm: norm(Projection::Key)?,
            head_dim: builder.context.model.head_dim.into(),
        })
    }

    /// Qkv of x `[b, t, d]`; queries and keys are rotated where the model rotates.
    pub(super) fn forward(&self, x_btd: &Tensor, pass: &Pass<'_>) -> Result<Qkv, EngineError> {
        self.forward_with(x_btd, |x_bthk| pass.rotate(x_bthk))
    }

    /// The same with another rotation.
    pub(super) fn forward_with(
        &self,
        x_btd: &Tensor,
        rotate: impl Fn(&Tensor) -> Result<Tensor, EngineError>,
    ) -> Result<Qkv, EngineError> {
        let (q, k) = (rotate(&self.queries(x_btd)?)?, rotate(&self.keys(x_btd)?)?);
        Ok(Qkv { q, k, v: self.values(x_btd)? })
    }

    /// Queries of x, before they are rotated: `[b, t, h, k]`.
    pub(super) fn queries(&self, x_btd: &Tensor) -> Result<Tensor, EngineError> {
        normed(self.q_norm.as_ref(), into_heads(x_btd, &self.q, self.head_dim)?)
    }

    /// Keys of x, before they are rotated: `[b, t, g, k]`.
    pub(super) fn keys(&self, x_btd: &Tensor) -> Result<Tensor, EngineError> {
        normed(self.k_norm.as_ref(), into_heads(x_btd, &self.k, self.head_dim)?)
    }

    /// Values of x, `[b, t, g, k]`.
    pub(super) fn values(&self, x_btd: &Tensor) -> Result<Tensor, EngineError> {
        into_heads(x_btd, &self.v, self.head_dim)
    }
}

/// x `[b, t, h, k]` after the norm over k, if there is one.
fn normed(norm: Option<&Norm>, x_bthk: Tensor) -> Result<Tensor, EngineError> {
    match norm {
        Some(norm) => norm.forward(&x_bthk),
        None => Ok(x_bthk),
    }
}

/// A product cut into heads of this width: `[b, t, heads, k]`.
pub(super) fn into_heads(x_btd: &Tensor, column: &Column, width: i64) -> Result<Tensor, EngineError> {
    Ok(column.forward(x_btd)?.f_unflatten(2, [-1, width].as_slice())?)
}

impl Pass<'_> {
    /// x `[b, t, h, k]` rotated by its tokens' positions, where the model rotates.
    pub(super) fn rotate(&self, x_bthk: &Tensor) -> Result<Tensor, EngineError> {
        self.rotate_from(0, x_bthk)
    }

    /// The same of tokens from `first` on.
    pub(super) fn rotate_from(&self, first: i64, x_bthk: &Tensor) -> Result<Tensor, EngineError> {
        self.rotary.map_or_else(|| Ok(x_bthk.shallow_clone()), |rotary| rotary.rotate(first, x_bthk))
    }
}
