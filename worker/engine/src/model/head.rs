//! What follows the last layer: final norm, logits, loss.

use std::rc::Rc;

use coxswain_native::ops;
use coxswain_types::model::{self, NormPlacement};
use coxswain_types::params::{EMBEDDING, HEAD, Place};
use tch::Tensor;

use super::ffn::activate;
use super::linear::{Row, add};
use super::norm::Norm;
use super::param::{Param, Parameters};
use super::pass::Pass;
use super::stage::Context;
use crate::EngineError;

/// The final norm and the output head.
#[derive(Debug)]
pub struct Head {
    norm: Option<Norm>,
    transform: Option<(Row, Norm)>,
    shards: Vec<Shard>,
    context: Rc<Context>,
}

/// The part of the vocabulary of one logical shard.
#[derive(Debug)]
struct Shard {
    weight: Rc<Param>,
    bias: Option<Rc<Param>>,
}

impl Head {
    pub(super) fn build(parameters: &Parameters, context: &Rc<Context>) -> Result<Head, EngineError> {
        let (model, place) = (&context.model, Place::Head);
        let masked = match model.head {
            model::Head::Lm => false,
            model::Head::MaskedLm => true,
            model::Head::Pooled { .. } => {
                return Err(EngineError::Other("a pooled head has no logits of tokens".to_owned()));
            }
        };
        let name = if model.tied_embeddings { EMBEDDING } else { HEAD };
        let norm = |name: &str| Norm::build(place, name, parameters, context);
        let shard = |index| -> Result<Shard, EngineError> {
            let bias = || parameters.take(place, "lm_head.bias", index);
            Ok(Shard { weight: parameters.take(place, name, index)?, bias: masked.then(bias).transpose()? })
        };
        let transform = || -> Result<_, EngineError> {
            Ok((Row::build(place, "lm_head.dense", true, parameters, context)?, norm("lm_head.norm")?))
        };
        let pre = model.norm.placement == NormPlacement::Pre;
        Ok(Head {
            norm: pre.then(|| norm("model.norm")).transpose()?,
            transform: masked.then(transform).transpose()?,
            shards: context.shards.clone().map(shard).collect::<Result<_, _>>()?,
            context: Rc::clone(context),
        })
    }

    /// The logits of each of this rank's shards of the vocabulary, `[n, v]`.
    pub fn logits(&self, x_btd: &Tensor) -> Result<Vec<Tensor>, EngineError> {
        let mut x_btd = x_btd.shallow_clone();
        if let Some(norm) = &self.norm {
            x_btd = norm.forward(&x_btd)?;
        }
        if let Some((dense, norm)) = &self.transform {
            x_btd = norm.forward(&activate(self.context.model.activation, &dense.whole(&x_btd)?)?)?;
        }
        if self.context.model.logit_scale != 1.0 {
            x_btd = x_btd.f_mul_scalar(self.context.model.logit_scale)?;
        }
        let shared = self.context.copy_to_shards(&x_btd)?;
        let logits = |(shard, x_btd): (&Shard, &Tensor)| -> Result<Tensor, EngineError> {
            let logits_btv = self.context.linear(x_btd, &shard.weight)?;
            let logits_btv = match &shard.bias {
                Some(bias) => add(&logits_btv, bias, &self.context)?,
                None => logits_btv,
            };
            Ok(logits_btv.f_flatten(0, 1)?)
        };
        self.shards.iter().zip(&shared).map(logits).collect()
    }

    /// The summed loss of the targets `[n]`, a double scalar; a target of -1 counts nothing. What an
    /// encoder's decoder hands over ends with the encoder's output, which has no loss.
    pub fn loss(&self, x_btd: &Tensor, targets_n: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
        let x_btd =
            &if pass.source > 0 { pass.split(x_btd, &self.context)?.0 } else { x_btd.shallow_clone() };
        let starts: Vec<_> = self.shards.iter().map(|shard| shard.weight.row.offset).collect();
        Ok(ops::cross_entropy(self.logits(x_btd)?, targets_n, &starts, &self.context.group)?)
    }
}
