//! What a forward pass depends on beside weights and tokens: positions, and which values are
//! dropped. Both are functions of their arguments alone, so a pass can be run again.

use coxswain_files::hash::draw;
use coxswain_native::random;
use coxswain_types::job::{ModelSpec, TrainSpec};
use tch::Tensor;

use super::stage::Context;
use crate::EngineError;

/// Where values are dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Site {
    /// After the embedding.
    Embedding,
    /// After the attention's output projection.
    Attention,
    /// After the feed-forward layer.
    Ffn,
    /// Among the attention's probabilities.
    Probabilities,
}

/// One forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Positions.
    pub rotary: &'a Rotary,
    /// What is dropped; `None` outside of training.
    pub dropout: Option<Dropout>,
}

/// Which values of a micro-batch are dropped: a function of (seed, step, micro-batch, layer, site,
/// element), the same for every layout.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    key: u64,
    rate: f64,
    attention_rate: f64,
}

impl Dropout {
    /// The dropout of a micro-batch; `None` where the job drops nothing.
    pub fn of(train: &TrainSpec, step: u64, micro_batch: u32) -> Option<Dropout> {
        let (rate, attention_rate) = (train.dropout, train.attention_dropout);
        // One draw apart from those of samples and values at birth, which start from the bare seed.
        let key = [u64::from(b'd'), step, u64::from(micro_batch)].into_iter().fold(train.seed, draw);
        (rate > 0.0 || attention_rate > 0.0).then_some(Dropout { key, rate, attention_rate })
    }

    fn at(&self, layer: u32, site: Site) -> u64 {
        draw(draw(self.key, u64::from(layer)), site as u64)
    }
}

impl Pass<'_> {
    /// x `[b, t, d]`, this rank's part of t, with what is dropped at zero.
    pub(super) fn dropout(
        &self,
        x_btd: &Tensor,
        layer: u32,
        site: Site,
        context: &Context,
    ) -> Result<Tensor, EngineError> {
        let Some(dropout) = self.dropout.filter(|dropout| dropout.rate > 0.0) else {
            return Ok(x_btd.shallow_clone());
        };
        let here = x_btd.size().get(1).copied().unwrap_or(0);
        let (first, tokens) =
            if context.spread { (context.group_index * here, context.group_size * here) } else { (0, here) };
        let place = random::Place { first, tokens };
        Ok(random::dropout(x_btd, dropout.at(layer, site), dropout.rate, place)?)
    }

    /// Key and rate of the attention's probabilities.
    pub(super) fn probabilities(&self, layer: u32) -> Option<(u64, f64)> {
        let dropout = self.dropout.filter(|dropout| dropout.attention_rate > 0.0)?;
        Some((dropout.at(layer, Site::Probabilities), dropout.attention_rate))
    }
}

/// Rotary tables for consecutive positions, `[t, k/2]` (arXiv 2104.09864).
#[derive(Debug)]
pub struct Rotary {
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Rotary {
    /// Tables for the positions `start..start + tokens`.
    ///
    /// Angles are computed in double: a float's last place is a visible angle at position 10,000.
    pub fn new(model: &ModelSpec, start: i64, tokens: i64) -> Result<Rotary, EngineError> {
        let (half, dim) = (i64::from(model.head_dim()) / 2, f64::from(model.head_dim()));
        let angle = |position: i64, i: i64| position as f64 * model.rope_theta.powf(-2.0 * i as f64 / dim);
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = (start..start + tokens)
                .flat_map(|position| (0..half).map(move |i| (position, i)))
                .map(|(position, i)| f(angle(position, i)) as f32)
                .collect();
            Tensor::from_slice(&values).f_view([tokens, half])
        };
        Ok(Rotary { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }
}
