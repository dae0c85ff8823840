//! The numbers that sizes are made of.

use coxswain_types::Assignment;
use coxswain_types::job::{Lengths, ModelSpec, Precision, TrainSpec};
use coxswain_types::params::{EMBEDDING, HEAD, ParameterRow, Place};

/// A rank's job, as numbers of 64 bits.
pub(super) struct Sizes<'a> {
    pub(super) model: &'a ModelSpec,
    pub(super) train: &'a TrainSpec,
    pub(super) lengths: Lengths,
    /// Bytes of a number in the job's precision.
    pub(super) bytes: u64,
    pub(super) dim: u64,
    pub(super) head_dim: u64,
    /// Logical tensor shards in all, and on this rank.
    pub(super) all_shards: u64,
    pub(super) shards: u64,
    /// Ranks that split the sequence; 1 where none do.
    pub(super) parts: u64,
    pub(super) sequence_parallel: bool,
    pub(super) rows: u64,
    /// Threads that compute.
    pub(super) threads: u64,
    /// Tokens of the vocabulary on this rank.
    pub(super) vocabulary: u64,
}

impl<'a> Sizes<'a> {
    pub(super) fn of(a: &'a Assignment) -> Sizes<'a> {
        let (model, train, layout) = (&a.spec.model, &a.spec.train, &a.spec.layout);
        let sequence_parallel = layout.sequence_parallel;
        let logits =
            |row: &&ParameterRow| row.place == Place::Head && [HEAD, EMBEDDING].contains(&row.name.as_str());
        Sizes {
            model,
            train,
            lengths: Lengths::of(model, train),
            bytes: train.precision.bytes(),
            dim: model.dim.into(),
            head_dim: model.head_dim.into(),
            all_shards: u64::from(a.shard_count).max(1),
            shards: a.shards.len().max(1) as u64,
            parts: if sequence_parallel { u64::from(layout.tensor).max(1) } else { 1 },
            sequence_parallel,
            rows: train.micro_batch_size.into(),
            threads: a.threads.into(),
            vocabulary: a.parameters.iter().filter(logits).map(|row| row.len).sum(),
        }
    }

    /// Tokens of a micro-batch in the stack of a layer.
    pub(super) fn tokens(&self, layer: u32) -> u64 {
        let own = if layer < self.model.encoder_layers { self.lengths.source } else { self.lengths.target };
        u64::from(own) * self.rows
    }

    /// Tokens of a micro-batch that an encoder reads for its decoder.
    pub(super) fn source(&self) -> u64 {
        u64::from(self.lengths.source) * self.rows
    }

    /// So many tokens of the model's width, on every rank.
    pub(super) fn whole(&self, tokens: u64) -> u64 {
        self.bytes * tokens * self.dim
    }

    /// The same on a rank that may have a part of the sequence.
    pub(super) fn here(&self, tokens: u64) -> u64 {
        self.whole(tokens).div_ceil(self.parts)
    }

    /// What a layer takes and gives: a decoder's tokens have the output of its encoder behind them.
    pub(super) fn stream(&self, layer: u32) -> u64 {
        let behind = if self.model.crosses(layer) { self.source() } else { 0 };
        self.here(self.tokens(layer) + behind)
    }

    /// What leaves a stage that ends before this layer: of the bridge, the encoder's output alone.
    pub(super) fn stream_after(&self, layer: u32) -> u64 {
        if layer == 0 { self.stream(0) } else { self.stream(layer - 1) }
    }

    /// What a norm keeps of each token.
    pub(super) fn statistics(&self, tokens: u64) -> u64 {
        self.model.norm.statistics_bytes(tokens.div_ceil(self.parts))
    }

    /// Whether weight gradients are made in another precision than they are added in.
    pub(super) fn low(&self) -> bool {
        self.train.precision != Precision::Fp32
    }

    /// A part of a batch cut along its tokens is copied, unless it has one row.
    pub(super) fn copied(&self, tokens: u64) -> u64 {
        if self.rows > 1 { self.here(tokens) } else { 0 }
    }
}
