//! Linear maps between shards: whose outputs are cut over the logical tensor shards, and whose inputs
//! are (Megatron's column and row parallel maps, arXiv 1909.08053).

use std::rc::Rc;

use coxswain_native::ops::{self, NormUse};
use coxswain_types::params::Place;
use tch::Tensor;

use super::param::{Param, Parameters};
use super::stage::Context;
use super::uses::Bias;
use crate::EngineError;

/// One shard of a map whose outputs are cut.
#[derive(Debug)]
pub(super) struct Column {
    pub(super) weight: Rc<Param>,
    bias: Option<Rc<Param>>,
    context: Rc<Context>,
}

impl Column {
    /// The map whose parameters are `name.weight` and, where it has one, `name.bias`.
    pub(super) fn build(
        (place, name, shard): (Place, &str, u32),
        biased: bool,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<Column, EngineError> {
        let take = |part: &str| parameters.take(place, &format!("{name}.{part}"), shard);
        let bias = biased.then(|| take("bias")).transpose()?;
        Ok(Column { weight: take("weight")?, bias, context: Rc::clone(context) })
    }

    /// x `[b, t, d]`, the result `[b, t, o]`.
    pub(super) fn forward(&self, x_btd: &Tensor) -> Result<Tensor, EngineError> {
        let y_bto = self.context.linear(x_btd, &self.weight)?;
        match &self.bias {
            Some(bias) => add(&y_bto, bias, &self.context),
            None => Ok(y_bto),
        }
    }
}

/// Adds a shard's own vector to every row of x `[b, t, o]`.
pub(super) fn add(x_bto: &Tensor, bias: &Param, context: &Context) -> Result<Tensor, EngineError> {
    let tokens = x_bto.size().iter().rev().nth(1).copied().unwrap_or(0);
    let all = NormUse { slot: &bias.slot, first: 0, tokens };
    Ok(ops::add_bias(x_bto, &bias.weight, &[all], &context.wgrad_queue)?)
}

/// A map whose inputs are cut: a sum over shards, and a bias after it.
#[derive(Debug)]
pub(super) struct Row {
    shards: Vec<Rc<Param>>,
    bias: Option<Bias>,
    context: Rc<Context>,
}

impl Row {
    /// The map whose parameters are `name.weight` and, where it has one, `name.bias`.
    pub(super) fn build(
        place: Place,
        name: &str,
        biased: bool,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<Row, EngineError> {
        let weight = format!("{name}.weight");
        let take = |shard| parameters.take(place, &weight, shard);
        let bias = biased.then(|| Bias::build(place, &format!("{name}.bias"), parameters, context));
        Ok(Row {
            shards: context.shards.clone().map(take).collect::<Result<_, _>>()?,
            bias: bias.transpose()?,
            context: Rc::clone(context),
        })
    }

    /// The product of the rank's `at`-th shard, a part of the sum.
    pub(super) fn part(&self, at: usize, x_btf: &Tensor) -> Result<Tensor, EngineError> {
        let shard = self.shards.get(at);
        let shard = shard.ok_or_else(|| EngineError::Table(format!("there is no shard {at} here")))?;
        self.context.linear(x_btf, shard)
    }

    /// The sum of the parts of all shards, `[b, t, d]`.
    pub(super) fn sum(&self, parts: &[Tensor]) -> Result<Tensor, EngineError> {
        let sum_btd = self.context.reduce_from_shards(parts)?;
        self.bias.as_ref().map_or(Ok(sum_btd.shallow_clone()), |bias| bias.forward(&sum_btd))
    }

    /// The map of an x `[b, t, d]` that every rank has whole: each shard takes its part of d.
    pub(super) fn whole(&self, x_btd: &Tensor) -> Result<Tensor, EngineError> {
        let shared = self.context.copy_to_shards(x_btd)?;
        let part = |(at, x_btd): (usize, &Tensor)| -> Result<Tensor, EngineError> {
            let row = &self.shards[at].row;
            self.part(at, &x_btd.f_narrow(2, row.offset as i64, row.len as i64)?.f_contiguous()?)
        };
        let parts = shared.iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?;
        self.sum(&parts)
    }
}
