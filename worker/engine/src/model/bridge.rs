//! What lies between an encoder and its decoder: the encoder's final norm, and the decoder's embedding.
//!
//! From here on the encoder's output stands behind the decoder's tokens, so both travel from stage to
//! stage as one, and so do their gradients. Each layer of the decoder reads it and hands it on; its
//! gradient is added from the last layer to the first, wherever the cuts are.

use std::rc::Rc;

use coxswain_types::params::Place;
use tch::Tensor;

use super::embedding::Embedding;
use super::norm::Norm;
use super::param::Parameters;
use super::pass::Pass;
use super::stage::Context;
use crate::EngineError;

/// The bridge of a model.
#[derive(Debug)]
pub struct Bridge {
    /// The decoder's embedding.
    pub embedding: Embedding,
    norm: Option<Norm>,
    context: Rc<Context>,
}

impl Bridge {
    pub(super) fn build(parameters: &Parameters, context: &Rc<Context>) -> Result<Bridge, EngineError> {
        let norm = || Norm::build(Place::Bridge, "model.encoder.norm", parameters, context);
        let pre = context.model.norm.placement.ends_stack();
        Ok(Bridge {
            embedding: Embedding::build(Place::Bridge, parameters, context)?,
            norm: pre.then(norm).transpose()?,
            context: Rc::clone(context),
        })
    }

    /// The decoder's look-up `[b, t, e]` and the last output of the encoder `[b, s, d]` as one flat
    /// tensor: the piece that follows has one input.
    pub fn join(&self, x_bte: &Tensor, x_bsd: &Tensor) -> Result<Tensor, EngineError> {
        Ok(Tensor::f_cat(&[x_bte.f_flatten(0, -1)?, x_bsd.f_flatten(0, -1)?], 0)?)
    }

    /// The two parts of what [`Bridge::join`] made, or of its gradient; `[rows, tokens]` are those of
    /// the decoder here.
    pub fn part(&self, flat: &Tensor, [rows, tokens]: [i64; 2]) -> Result<(Tensor, Tensor), EngineError> {
        let model = &self.context.model;
        let own = rows * tokens * i64::from(model.embedding.dim);
        let parts = flat.f_split_with_sizes([own, flat.size()[0] - own].as_slice(), 0)?;
        let [own, memory] = <[Tensor; 2]>::try_from(parts)
            .map_err(|_| EngineError::Other("the bridge's input was not two parts".to_owned()))?;
        Ok((own.f_view([rows, tokens, -1])?, memory.f_view([rows, -1, i64::from(model.dim)])?))
    }

    /// What follows the look-up, `[b, t + s, d]`.
    pub fn forward(&self, flat: &Tensor, shape: [i64; 2], pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        let (x_bte, x_bsd) = self.part(flat, shape)?;
        Ok(Tensor::f_cat(&[self.embedding.stem(&x_bte, pass)?, self.memory(&x_bsd)?], 1)?)
    }

    /// The encoder's output, `[b, s, d]`.
    pub fn memory(&self, x_bsd: &Tensor) -> Result<Tensor, EngineError> {
        self.norm.as_ref().map_or_else(|| Ok(x_bsd.shallow_clone()), |norm| norm.forward(x_bsd))
    }
}
