//! Parameters that every tensor rank has whole and applies to rows: norms, biases, and maps to what all
//! heads share. The gradient is
//! one sum for each logical shard of the sequence: where tensor ranks split the sequence, each brings
//! the sums of its own shards.

use std::ops::Range;
use std::rc::Rc;

use coxswain_native::ops::{self, NormUse};
use coxswain_types::params::Place;
use coxswain_types::tree::split;
use tch::Tensor;

use super::param::{Param, Parameters};
use super::stage::Context;
use crate::EngineError;

/// A parameter's uses, one for each of the sequence shards that this rank computes.
#[derive(Debug)]
pub(super) struct Uses(pub(super) Vec<Rc<Param>>);

impl Uses {
    pub(super) fn build(
        place: Place,
        name: &str,
        parameters: &Parameters,
        context: &Context,
    ) -> Result<Uses, EngineError> {
        let shards = if context.sequence_parallel { context.shards.clone() } else { 0..context.shard_count };
        shards.map(|shard| parameters.take(place, name, shard)).collect::<Result<_, _>>().map(Uses)
    }

    pub(super) fn weight(&self) -> Result<&Tensor, EngineError> {
        let first = self.0.first().map(|param| &param.weight);
        first.ok_or_else(|| EngineError::Table("a parameter has no rows".to_owned()))
    }

    /// The uses, and the tokens of each of so many.
    pub(super) fn ranges(&self, tokens: i64) -> impl Iterator<Item = (&Rc<Param>, Range<i64>)> {
        let ranges = split(tokens as u32, self.0.len() as u32);
        self.0.iter().zip(ranges).map(|(param, range)| (param, range.start.into()..range.end.into()))
    }

    /// The uses by the tokens of x, `[.., t, d]`.
    pub(super) fn of(&self, x: &Tensor) -> Vec<NormUse<'_>> {
        let tokens = x.size().iter().rev().nth(1).copied().unwrap_or(0);
        let uses = self.ranges(tokens).map(|(param, range)| NormUse {
            slot: &param.slot,
            first: range.start,
            tokens: range.end - range.start,
        });
        uses.collect()
    }
}

/// A vector that is added to each row.
#[derive(Debug)]
pub(super) struct Bias {
    uses: Uses,
    context: Rc<Context>,
}

impl Bias {
    pub(super) fn build(
        place: Place,
        name: &str,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<Bias, EngineError> {
        let uses = Uses::build(place, name, parameters, context)?;
        Ok(Bias { uses, context: Rc::clone(context) })
    }

    /// x and the result are `[.., t, d]`.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor, EngineError> {
        Ok(ops::add_bias(x, self.uses.weight()?, &self.uses.of(x), &self.context.wgrad_queue)?)
    }
}
