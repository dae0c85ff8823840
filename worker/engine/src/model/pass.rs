//! What a forward pass depends on beside weights and tokens: positions, and which values are
//! dropped. Both are functions of their arguments alone, so a pass can be run again.

use std::sync::Arc;

use coxswain_files::hash::draw;
use coxswain_native::random;
use coxswain_types::job::TrainSpec;
use tch::Tensor;

use super::positions::Rotary;
use super::stage::Context;
use crate::EngineError;
use crate::data::Documents;

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
    /// After the output projection of the attention to an encoder's output.
    Cross,
    /// Among the probabilities of the attention to an encoder's output.
    CrossProbabilities,
    /// Among the probabilities of tokens that have projections of their own.
    GlobalProbabilities,
}

/// One forward pass.
#[derive(Clone, Copy, Debug)]
pub struct Pass<'a> {
    /// Rotations of the positions at hand, where the model rotates.
    pub rotary: Option<&'a Rotary>,
    /// The position of the first token.
    pub first: i64,
    /// For each row of the micro-batch, the number of the document that each token is of; a token sees
    /// its own document only. `None` where each row is one document.
    pub documents: Option<&'a Documents>,
    /// How many tokens of an encoder's output follow those of the decoder, whole; 0 where none do.
    pub source: i64,
    /// How many tokens of each row the encoder reads, where some are padding.
    pub padded: Option<&'a [u32]>,
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
        // One draw apart from those of samples and initial values, which start from the bare seed.
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
        let (first, tokens) = if context.sequence_parallel {
            (context.group_index * here, context.group_size * here)
        } else {
            (0, here)
        };
        let place = random::TokenWindow { first, tokens };
        Ok(random::dropout(x_btd, dropout.at(layer, site), dropout.rate, place)?)
    }

    /// A decoder's own tokens of x `[b, t + s, d]`, and the output of its encoder that follows them, in
    /// this rank's parts.
    pub(super) fn split(&self, x_bnd: &Tensor, context: &Context) -> Result<(Tensor, Tensor), EngineError> {
        let source = self.here(self.source, context);
        let parts = x_bnd.f_split_with_sizes([x_bnd.size()[1] - source, source].as_slice(), 1)?;
        let [own, memory] = <[Tensor; 2]>::try_from(parts)
            .map_err(|_| EngineError::Other("a decoder's input was not two parts".to_owned()))?;
        Ok((own, memory))
    }

    /// So many tokens of a sequence, in this rank's part of it.
    pub(super) fn here(&self, tokens: i64, context: &Context) -> i64 {
        if context.sequence_parallel { tokens / context.group_size } else { tokens }
    }

    /// Whether values are dropped.
    pub(super) fn drops(&self) -> bool {
        self.dropout.is_some_and(|dropout| dropout.rate > 0.0)
    }

    /// The documents of a stack's rows; `encoder` says whether it is one in front of a decoder.
    pub(super) fn documents_of(&self, encoder: bool) -> Option<&[Arc<[u32]>]> {
        self.documents.map(|documents| if encoder { &documents.source[..] } else { &documents.own[..] })
    }

    /// The position of each of `tokens` of each row of a stack, `[b, t]`, or for all rows, `[1, t]`: documents
    /// begin anew.
    pub(super) fn positions(&self, encoder: bool, tokens: i64) -> Result<Tensor, EngineError> {
        let Some(rows) = self.documents_of(encoder) else {
            let all: Vec<i64> = (self.first..self.first + tokens).collect();
            return Ok(Tensor::from_slice(&all).f_unsqueeze(0)?);
        };
        let documents = rows.iter().flat_map(|row| row.chunk_by(|a, b| a == b));
        let positions: Vec<i64> = documents.flat_map(|document| 0..document.len() as i64).collect();
        Ok(Tensor::from_slice(&positions).f_view([rows.len() as i64, tokens])?)
    }

    /// Key and rate of the attention's probabilities.
    pub(super) fn probabilities(&self, layer: u32, site: Site) -> Option<(u64, f64)> {
        let dropout = self.dropout.filter(|dropout| dropout.attention_rate > 0.0)?;
        Some((dropout.at(layer, site), dropout.attention_rate))
    }
}
