//! What the numbers of a job lie within, whatever it was read from. A job file passes all checks of `coxswain_core`; a
//! job in the manifest of a checkpoint, or the model of an import, was written by someone else and passes these:
//! all that planning, allocating and computing rely on. Nothing here allocates for the numbers that it looks at.
//!
//! - [`limits`]: the least and the greatest value of each key.
//! - `rules`: what the numbers of a model must be to each other; those of a form are with the form ([`crate::forms`]).
//! - `training`: the numbers of the training, the layout and the rest.

use crate::job::JobSpec;
use crate::model::{Activation, Architecture, Head, ModelSpec};

pub mod limits;
mod rules;
#[cfg(test)]
mod tests;
mod training;

pub use rules::broken_rules;

use limits::Limit;

/// A number of a job that is out of bounds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {what}")]
pub struct OutOfBounds {
    /// The key of a job file that says the number.
    pub key: &'static str,
    /// What was found, what it must be, and why.
    pub what: String,
}

impl OutOfBounds {
    fn new(key: &'static str, what: impl Into<String>) -> OutOfBounds {
        OutOfBounds { key, what: what.into() }
    }
}

impl Limit {
    /// Checks a count.
    ///
    /// # Errors
    /// What was found, what it must be, and why.
    pub fn check(&self, found: u64) -> Result<(), String> {
        let Limit { least, most, reason } = *self;
        match found {
            _ if found < least => Err(format!("found {found}; must be {least} or more")),
            _ if found > most => Err(format!("found {found}; must be {most} or less ({reason})")),
            _ => Ok(()),
        }
    }
}

impl JobSpec {
    /// Checks that all numbers lie within bounds.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check_bounds(&self) -> Result<(), OutOfBounds> {
        self.model.check_bounds()?;
        training::check(self)
    }
}

impl ModelSpec {
    /// Checks that all numbers lie within bounds and fit each other.
    ///
    /// # Errors
    /// The first that does not.
    pub fn check_bounds(&self) -> Result<(), OutOfBounds> {
        stacks(self)?;
        widths(self)?;
        self.positions.check_bounds()?;
        self.attention.check_bounds()?;
        self.norm.check_bounds()?;
        numbers(self)?;
        broken_rules(self).next().map_or(Ok(()), |(key, message)| Err(OutOfBounds::new(key, message)))
    }
}

pub(crate) fn count(key: &'static str, found: impl Into<u64>, limit: &Limit) -> Result<(), OutOfBounds> {
    limit.check(found.into()).map_err(|what| OutOfBounds::new(key, what))
}

/// Checks a number against a rule that is false for NaN.
pub(crate) fn number(
    key: &'static str,
    found: f64,
    rule: impl Fn(f64) -> bool,
    must: &str,
) -> Result<(), OutOfBounds> {
    expect(found.is_finite() && rule(found), key, || format!("found {found:?}; must be {must}"))
}

pub(crate) fn expect(
    fits: bool,
    key: &'static str,
    what: impl FnOnce() -> String,
) -> Result<(), OutOfBounds> {
    if fits { Ok(()) } else { Err(OutOfBounds::new(key, what())) }
}

fn stacks(model: &ModelSpec) -> Result<(), OutOfBounds> {
    let (layers, groups) = (model.layers, model.layer_groups);
    count("model.layers", layers, &limits::LAYERS)?;
    if model.architecture == Architecture::EncoderDecoder {
        count("model.encoder_layers", model.encoder_layers, &limits::LAYERS)?;
    } else {
        let found = model.encoder_layers;
        expect(found == 0, "model.encoder_layers", || {
            format!("found {found}; goes with model.architecture encoder-decoder only")
        })?;
    }
    expect((1..=layers).contains(&groups), "model.layer_groups", || {
        format!("found {groups}; must be 1 to model.layers ({layers})")
    })
}

fn widths(model: &ModelSpec) -> Result<(), OutOfBounds> {
    count("model.dim", model.dim, &limits::DIM)?;
    count("model.heads", model.heads, &limits::DIM)?;
    count("model.kv_heads", model.kv_heads, &limits::DIM)?;
    count("model.head_dim", model.head_dim, &limits::DIM)?;
    count("model.ffn", model.ffn, &limits::FFN)?;
    count("model.vocab", model.vocab, &limits::VOCAB)?;
    count("model.embedding_dim", model.embedding.dim, &limits::DIM)?;
    count("model.token_types", model.embedding.types, &limits::TOKEN_TYPES)?;
    let (heads, kv_heads, width) = (model.heads, model.kv_heads, model.head_dim);
    expect(heads.is_multiple_of(kv_heads), "model.kv_heads", || {
        format!("found {kv_heads}; must divide model.heads ({heads})")
    })?;
    let rotates = model.rotates_heads();
    expect(!rotates || width.is_multiple_of(2), "model.head_dim", || {
        format!("found {width}; must be even, because RoPE rotates pairs")
    })?;
    match model.head {
        Head::Lm => Ok(()),
        Head::MaskedLm { activation } => gateless(activation),
        Head::Pooled { classes } => count("model.classes", classes, &limits::CLASSES),
    }
}

fn gateless(activation: Activation) -> Result<(), OutOfBounds> {
    expect(!activation.gated(), "model.head_activation", || "the head's dense layer has no gate".to_owned())
}

fn numbers(model: &ModelSpec) -> Result<(), OutOfBounds> {
    let positive = |key, found| number(key, found, |x| x > 0.0, "a finite number above 0");
    positive("model.attention_scale", model.attention_scale)?;
    positive("model.logit_scale", model.logit_scale)
}
