//! The feed-forward block of a layer.

use std::rc::Rc;

use coxswain_native::ops::{self, Gate, Unary};
use coxswain_types::model::Activation;
use coxswain_types::params::Place;
use tch::Tensor;

use super::linear::{Column, Row};
use super::param::Parameters;
use super::stage::Context;
use crate::EngineError;

/// Its weights on this rank.
#[derive(Debug)]
pub(super) struct Ffn {
    /// For each shard the gate, where there is one, and what it gates.
    shards: Vec<(Option<Column>, Column)>,
    down: Row,
    context: Rc<Context>,
}

impl Ffn {
    pub(super) fn build(
        place: Place,
        prefix: &str,
        parameters: &Parameters,
        context: &Rc<Context>,
    ) -> Result<Ffn, EngineError> {
        let (activation, bias) = (context.model.activation, context.model.biases.ffn);
        let column = |name: &str, shard| {
            Column::build((place, &format!("{prefix}.{name}"), shard), bias, parameters, context)
        };
        let shard = |index| -> Result<_, EngineError> {
            let gate = activation.gated().then(|| column("gate_proj", index)).transpose()?;
            Ok((gate, column("up_proj", index)?))
        };
        Ok(Ffn {
            shards: context.shards.clone().map(shard).collect::<Result<_, _>>()?,
            down: Row::build(place, &format!("{prefix}.down_proj"), bias, parameters, context)?,
            context: Rc::clone(context),
        })
    }

    /// x and the result are `[b, t, d]`.
    pub(super) fn forward(&self, x_btd: &Tensor) -> Result<Tensor, EngineError> {
        let (shared, activation) = (self.context.copy_to_shards(x_btd)?, self.context.model.activation);
        let mut parts = Vec::new();
        for (at, ((gate, up), x_btd)) in self.shards.iter().zip(&shared).enumerate() {
            let gate = gate.as_ref().map(|gate| gate.forward(x_btd)).transpose()?;
            let up = up.forward(x_btd)?;
            let hidden = match gate {
                Some(gate) => gated(activation, &gate, &up)?,
                None => activate(activation, &up)?,
            };
            parts.push(self.down.part(at, &hidden)?);
        }
        self.down.sum(&parts)
    }
}

fn gated(activation: Activation, gate: &Tensor, up: &Tensor) -> Result<Tensor, EngineError> {
    let by = match activation {
        Activation::Geglu => Gate::Geglu,
        Activation::GegluTanh => Gate::GegluTanh,
        _ => Gate::Swiglu,
    };
    Ok(ops::gated(gate, up, by)?)
}

/// The non-linearity by itself; of a gated one, that of its gate.
pub(super) fn activate(activation: Activation, x: &Tensor) -> Result<Tensor, EngineError> {
    let by = match activation {
        Activation::Relu => Unary::Relu,
        Activation::Gelu | Activation::Geglu => Unary::Gelu,
        Activation::GeluTanh | Activation::GegluTanh => Unary::GeluTanh,
        Activation::Silu | Activation::Swiglu => Unary::Silu,
    };
    Ok(ops::activate(x, by)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gate_by_itself_is_its_own_non_linearity() {
        let x = Tensor::from_slice(&[-2.0_f32, -0.3, 0.5, 3.0]);
        let (gelu, tanh, silu) = (x.gelu("none"), x.gelu("tanh"), x.silu());
        for (activation, wanted) in [
            (Activation::Relu, &x.relu()),
            (Activation::Gelu, &gelu),
            (Activation::Geglu, &gelu),
            (Activation::GeluTanh, &tanh),
            (Activation::GegluTanh, &tanh),
            (Activation::Silu, &silu),
            (Activation::Swiglu, &silu),
        ] {
            let found = activate(activation, &x).unwrap();
            assert!((&found - wanted).abs().max().double_value(&[]) < 1e-6, "{activation:?}");
            assert!(activate(activation.gate(), &x).unwrap().equal(&found), "{activation:?}");
        }
    }
}
