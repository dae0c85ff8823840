//! A run of layers, with the embedding before it on the first stage and the head after it on the
//! last.

use std::ops::Range;
use std::rc::Rc;

use coxswain_comm::Group;
use coxswain_native::ops::{self, Tape};
use coxswain_types::job::ModelSpec;
use tch::Tensor;

use super::layer::{Layer, Rotary};
use super::param::{Param, Parameters};
use crate::EngineError;

/// Which part of the model a stage is.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Whether it starts with the embedding.
    pub embedding: bool,
    /// Its layers.
    pub layers: Range<u32>,
    /// Whether it ends with the head.
    pub head: bool,
}

/// A stage's weights on this rank, and how they are applied.
#[derive(Debug)]
pub struct Stage {
    /// The token embedding, on the first stage.
    pub embedding: Option<Rc<Param>>,
    /// The layers, in order.
    pub layers: Vec<Layer>,
    /// The final norm and output head, on the last stage.
    pub head: Option<Head>,
    /// Weight gradients that wait to be computed.
    pub tape: Rc<Tape>,
    group: Rc<Group>,
}

impl Stage {
    /// Builds the stage from its parameters; fails when a row is missing or left over.
    pub fn build(
        shape: &Shape,
        model: &ModelSpec,
        parameters: &Parameters,
        group: Group,
    ) -> Result<Stage, EngineError> {
        let (group, tape) = (Rc::new(group), Rc::new(Tape::new()));
        let embedding = shape.embedding.then(|| parameters.take("model.embed_tokens.weight")).transpose()?;
        let layers = shape
            .layers
            .clone()
            .map(|index| Layer::build(index, model, parameters, &group, &tape))
            .collect::<Result<_, _>>()?;
        let head = shape.head.then(|| Head::build(model, parameters, &group, &tape)).transpose()?;
        parameters.expect_all_taken()?;
        Ok(Stage { embedding, layers, head, tape, group })
    }

    /// The embedding of `ids_bt`, `[b, t, d]`; outside autograd, as ids have no gradient.
    pub fn embed(&self, table: &Param, ids_bt: &Tensor) -> Result<Tensor, EngineError> {
        let rows = ops::embed(&ids_bt.f_flatten(0, 1)?, &table.weight, table.row.offset)?;
        let shape = [ids_bt.size(), vec![-1]].concat();
        Ok(ops::reduce_from_group(&rows, &self.group)?.f_view(shape.as_slice())?)
    }

    /// Accumulates the embedding's gradient, given that of its output `[b, t, d]`.
    pub fn embed_grad(&self, table: &Param, ids_bt: &Tensor, dx_btd: &Tensor) -> Result<(), EngineError> {
        let (ids, dx) = (ids_bt.f_flatten(0, 1)?, dx_btd.f_flatten(0, 1)?);
        Ok(ops::embed_grad(&ids, &dx, &table.slot, table.row.offset)?)
    }

    /// The layers without cuts, for generation.
    pub fn forward_layers(
        &self,
        mut x_btd: Tensor,
        rotary: &Rotary,
        caches: &mut [super::Cache],
    ) -> Result<Tensor, EngineError> {
        for (layer, cache) in self.layers.iter().zip(caches) {
            x_btd = layer.forward_cached(&x_btd, rotary, cache)?;
        }
        Ok(x_btd)
    }
}

/// The final norm and the output head.
#[derive(Debug)]
pub struct Head {
    norm: Rc<Param>,
    output: Rc<Param>,
    norm_eps: f64,
    group: Rc<Group>,
    tape: Rc<Tape>,
}

impl Head {
    fn build(
        model: &ModelSpec,
        parameters: &Parameters,
        group: &Rc<Group>,
        tape: &Rc<Tape>,
    ) -> Result<Head, EngineError> {
        Ok(Head {
            norm: parameters.take("model.norm.weight")?,
            output: parameters.take("lm_head.weight")?,
            norm_eps: model.norm_eps,
            group: Rc::clone(group),
            tape: Rc::clone(tape),
        })
    }

    /// This rank's columns of the logits, `[n, v]`.
    pub fn logits(&self, x_btd: &Tensor) -> Result<Tensor, EngineError> {
        let normed = ops::rms_norm(x_btd, &self.norm.weight, self.norm_eps, &self.norm.slot, &self.tape)?;
        let shared = ops::copy_to_group(&normed, &self.group, &self.tape)?;
        let logits = ops::linear(&shared, &self.output.weight, &self.output.slot, &self.tape)?;
        Ok(logits.f_flatten(0, 1)?)
    }

    /// The summed loss of the targets `[n]`, a double scalar; a target of -1 counts nothing.
    pub fn loss(&self, x_btd: &Tensor, targets_n: &Tensor) -> Result<Tensor, EngineError> {
        let logits = self.logits(x_btd)?;
        Ok(ops::cross_entropy(logits, targets_n, self.output.row.offset, &self.group)?)
    }
}
