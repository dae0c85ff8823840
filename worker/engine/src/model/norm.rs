//! RMSNorm, whose weight gradient is one sum for each logical shard of the sequence: where tensor
//! ranks split the sequence, each brings the sums of its own shards.

use std::rc::Rc;

use coxswain_native::ops::{self, NormUse};
use coxswain_types::params::Place;
use coxswain_types::tree::split;
use tch::Tensor;

use super::param::{Param, Parameters};
use super::stage::Context;
use crate::EngineError;

/// A norm's weights, once for each of the sequence shards that this rank computes.
#[derive(Debug)]
pub struct Norm {
    uses: Vec<Rc<Param>>,
    context: Rc<Context>,
}

impl Norm {
    pub(super) fn build(
        place: Place,
        name: &str,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<Norm, EngineError> {
        let shards = if context.spread { context.shards.clone() } else { 0..context.shard_count };
        let uses = shards.map(|shard| parameters.take(place, name, shard)).collect::<Result<_, _>>()?;
        Ok(Norm { uses, context: Rc::clone(context) })
    }

    /// x and the result are `[b, t, d]`.
    pub(super) fn forward(&self, x_btd: &Tensor) -> Result<Tensor, EngineError> {
        let tokens = x_btd.size().get(1).copied().unwrap_or(0);
        let ranges = split(tokens as u32, self.uses.len() as u32);
        let uses: Vec<_> = self
            .uses
            .iter()
            .zip(ranges)
            .map(|(param, range)| NormUse {
                slot: &param.slot,
                first: i64::from(range.start),
                tokens: i64::from(range.end - range.start),
            })
            .collect();
        let weight = self.uses.first().map(|param| &param.weight);
        let weight = weight.ok_or_else(|| EngineError::Table("a norm has no rows".to_owned()))?;
        Ok(ops::rms_norm(x_btd, weight, self.context.model.norm_eps, &uses, &self.context.tape)?)
    }
}
