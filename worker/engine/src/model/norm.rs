//! RMSNorm and LayerNorm.

use std::rc::Rc;

use coxswain_native::ops;
use coxswain_types::params::Place;
use tch::Tensor;

use super::param::Parameters;
use super::stage::Context;
use super::uses::Uses;
use crate::EngineError;

/// A norm's weights.
#[derive(Debug)]
pub struct Norm {
    weight: Uses,
    bias: Option<Uses>,
    context: Rc<Context>,
}

impl Norm {
    /// The norm whose parameters are `name.weight` and, in a LayerNorm, `name.bias`.
    pub(super) fn build(
        place: Place,
        name: &str,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<Norm, EngineError> {
        Norm::of(context, |part| Uses::build(place, &format!("{name}.{part}"), parameters, context))
    }

    /// The norm whose parameters are `uses` of `weight` and, in a LayerNorm, of `bias`.
    pub(super) fn of(
        context: &Rc<Context>,
        uses: impl Fn(&str) -> Result<Uses, EngineError>,
    ) -> Result<Norm, EngineError> {
        let biased = context.model.norm.kind.has_bias();
        let bias = biased.then(|| uses("bias")).transpose()?;
        Ok(Norm { weight: uses("weight")?, bias, context: Rc::clone(context) })
    }

    /// x and the result are `[.., t, d]`.
    pub(super) fn forward(&self, x_btd: &Tensor) -> Result<Tensor, EngineError> {
        let (eps, wgrad_queue) = (self.context.model.norm.eps, &self.context.wgrad_queue);
        let (weight, uses) = (self.weight.weight()?, self.weight.of(x_btd));
        let Some(bias) = &self.bias else {
            return Ok(ops::rms_norm(x_btd, weight, eps, &uses, wgrad_queue)?);
        };
        Ok(ops::layer_norm(x_btd, weight, bias.weight()?, eps, &uses, &bias.of(x_btd), wgrad_queue)?)
    }
}
