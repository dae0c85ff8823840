//! What follows the last layer: final norm, logits, loss.

use std::rc::Rc;

use coxswain_native::ops::{self, Unary};
use coxswain_types::model::{self, Activation};
use coxswain_types::params::{EMBEDDING, HEAD, Place};
use tch::{Kind, Tensor};

use super::embedding::expect_within;
use super::ffn::activate;
use super::linear::{Row, add};
use super::norm::Norm;
use super::param::{Param, Parameters};
use super::pass::Pass;
use super::stage::Context;
use crate::EngineError;

/// The final norm and the output head.
#[derive(Debug)]
pub struct HeadModule {
    norm: Option<Norm>,
    form: HeadForm,
    context: Rc<Context>,
}

/// What is told.
#[derive(Debug)]
enum HeadForm {
    /// Tokens, whose logits are cut over the logical shards; masked tokens after a dense layer.
    Tokens { transform: Option<(Row, Activation, Norm)>, shards: Vec<HeadShard> },
    /// The class of a text, by a dense layer and tanh of its first token, and a map to classes.
    Class { dense: Row, classifier: Option<Row> },
}

/// The part of the vocabulary of one logical shard.
#[derive(Debug)]
struct HeadShard {
    weight: Rc<Param>,
    bias: Option<Rc<Param>>,
}

impl HeadModule {
    pub(super) fn build(parameters: &Parameters, context: &Rc<Context>) -> Result<HeadModule, EngineError> {
        let (model, place) = (&context.model, Place::Head);
        let norm = |name: &str| Norm::build(place, name, parameters, context);
        let row = |name: &str| Row::build(place, name, true, parameters, context);
        let form = match model.head {
            model::Head::Pooled { classes } => HeadForm::Class {
                dense: row("pooler.dense")?,
                classifier: (classes > 0).then(|| row("classifier")).transpose()?,
            },
            model::Head::Lm | model::Head::MaskedLm { .. } => {
                let activation = match model.head {
                    model::Head::MaskedLm { activation } => Some(activation),
                    _ => None,
                };
                let name = if model.tied_embeddings { EMBEDDING } else { HEAD };
                let shard = |index| -> Result<HeadShard, EngineError> {
                    let bias = || parameters.take(place, "lm_head.bias", index);
                    let bias = activation.map(|_| bias()).transpose()?;
                    Ok(HeadShard { weight: parameters.take(place, name, index)?, bias })
                };
                let transform = |activation| -> Result<_, EngineError> {
                    Ok((row("lm_head.dense")?, activation, norm("lm_head.norm")?))
                };
                HeadForm::Tokens {
                    transform: activation.map(transform).transpose()?,
                    shards: context.shards.clone().map(shard).collect::<Result<_, _>>()?,
                }
            }
        };
        let pre = model.norm.placement.ends_stack();
        let norm = pre.then(|| norm("model.norm")).transpose()?;
        Ok(HeadModule { norm, form, context: Rc::clone(context) })
    }

    fn normed(&self, x_btd: &Tensor) -> Result<Tensor, EngineError> {
        self.norm.as_ref().map_or_else(|| Ok(x_btd.shallow_clone()), |norm| norm.forward(x_btd))
    }

    /// The logits of each of this rank's shards of the vocabulary, `[n, v]`.
    pub fn logits(&self, x_btd: &Tensor) -> Result<Vec<Tensor>, EngineError> {
        let HeadForm::Tokens { transform, shards } = &self.form else {
            return Err(EngineError::Other("a pooled head has no logits of tokens".to_owned()));
        };
        let mut x_btd = self.normed(x_btd)?;
        if let Some((dense, activation, norm)) = transform {
            x_btd = norm.forward(&activate(*activation, &dense.whole(&x_btd)?)?)?;
        }
        if self.context.model.logit_scale != 1.0 {
            x_btd = x_btd.f_mul_scalar(self.context.model.logit_scale)?;
        }
        let shared = self.context.copy_to_shards(&x_btd)?;
        let logits = |(shard, x_btd): (&HeadShard, &Tensor)| -> Result<Tensor, EngineError> {
            let logits_btv = self.context.linear(x_btd, &shard.weight)?;
            let logits_btv = match &shard.bias {
                Some(bias) => add(&logits_btv, bias, &self.context)?,
                None => logits_btv,
            };
            Ok(logits_btv.f_flatten(0, 1)?)
        };
        shards.iter().zip(&shared).map(logits).collect()
    }

    /// The first token of the vocabulary whose logits this rank has.
    pub fn first_token(&self) -> u64 {
        match &self.form {
            HeadForm::Tokens { shards, .. } => shards.first().map_or(0, |shard| shard.weight.row.offset),
            HeadForm::Class { .. } => 0,
        }
    }

    /// The pooled output of each text, `[b, d]`, and the logits of its classes, `[b, c]`, where the head has
    /// some.
    pub fn pooled(&self, x_btd: &Tensor) -> Result<(Tensor, Option<Tensor>), EngineError> {
        let HeadForm::Class { dense, classifier } = &self.form else {
            return Err(EngineError::Other("a head of tokens has no pooled output".to_owned()));
        };
        let first_b1d = self.normed(&x_btd.f_narrow(1, 0, 1)?.f_contiguous()?)?;
        let pooled_b1d = ops::activate(&dense.whole(&first_b1d)?, Unary::Tanh)?;
        let logits = classifier.as_ref().map(|map| map.whole(&pooled_b1d)).transpose()?;
        let logits = logits.map(|logits| logits.f_squeeze_dim(1)).transpose()?;
        Ok((pooled_b1d.f_squeeze_dim(1)?, logits))
    }

    /// How many texts have the class `[b]` that is the likeliest one here; none where the head tells tokens.
    pub fn right(&self, x_btd: &Tensor, targets_b: &Tensor) -> Result<u64, EngineError> {
        match &self.form {
            HeadForm::Class { classifier: Some(_), .. } => match self.pooled(x_btd)?.1 {
                Some(logits_bc) => right(&logits_bc, targets_b),
                None => Ok(0),
            },
            HeadForm::Class { classifier: None, .. } | HeadForm::Tokens { .. } => Ok(0),
        }
    }

    /// Refuses targets that the head does not tell.
    pub fn expect_targets(&self, targets_n: &Tensor) -> Result<(), EngineError> {
        let rows = match self.context.model.head {
            model::Head::Pooled { classes } => classes,
            _ => self.context.model.vocab,
        };
        expect_within("a target", targets_n, -1, rows)
    }

    /// The summed loss of the targets `[n]`, which [`HeadModule::expect_targets`] has seen, of tokens or of texts, each
    /// by its weight, a double scalar; a target of -1 counts nothing, and without weights the others count 1. What an
    /// encoder's decoder hands over ends with the encoder's output, which has no loss.
    pub fn loss(
        &self,
        x_btd: &Tensor,
        targets_n: &Tensor,
        weights_n: Option<&Tensor>,
        pass: &Pass<'_>,
    ) -> Result<Tensor, EngineError> {
        let x_btd =
            &if pass.source > 0 { pass.split(x_btd, &self.context)?.0 } else { x_btd.shallow_clone() };
        match &self.form {
            HeadForm::Tokens { shards, .. } => {
                let starts: Vec<_> = shards.iter().map(|shard| shard.weight.row.offset).collect();
                Ok(ops::cross_entropy(
                    self.logits(x_btd)?,
                    targets_n,
                    weights_n,
                    &starts,
                    &self.context.group,
                )?)
            }
            HeadForm::Class { .. } => {
                let (_, logits) = self.pooled(x_btd)?;
                let logits =
                    logits.ok_or_else(|| EngineError::Other("the head has no classes".to_owned()))?;
                class_loss(&logits, targets_n, weights_n)
            }
        }
    }
}

/// How many rows of logits `[b, c]` have their largest number at the target `[b]`; a target of -1 counts nothing.
fn right(logits_bc: &Tensor, targets_b: &Tensor) -> Result<u64, EngineError> {
    let told_b = logits_bc.f_argmax(-1, false)?;
    Ok(told_b.f_eq_tensor(targets_b)?.f_sum(Kind::Int64)?.f_int64_value(&[])? as u64)
}

/// The sum of `-log softmax(logits)[target]` over texts, whose logits `[b, c]` every tensor rank has whole.
fn class_loss(
    logits_bc: &Tensor,
    targets_b: &Tensor,
    weights_b: Option<&Tensor>,
) -> Result<Tensor, EngineError> {
    let log_bc = logits_bc.f_log_softmax(-1, Kind::Float)?;
    let counts_b = targets_b.f_ge(0)?;
    let of_b = log_bc.f_gather(1, &targets_b.f_clamp_min(0)?.f_unsqueeze(1)?, false)?.f_squeeze_dim(1)?;
    let of_b = of_b.f_mul(&counts_b)?;
    let of_b = weights_b.map_or_else(|| Ok(of_b.shallow_clone()), |weights| of_b.f_mul(weights))?;
    Ok(of_b.f_neg()?.f_sum(Kind::Double)?)
}
