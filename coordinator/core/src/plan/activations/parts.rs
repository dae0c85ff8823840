//! What the parts of a stage keep of a micro-batch, and what they take while they run: the engine's pieces
//! between cuts, tensor by tensor.

use coxswain_types::model::{Head, NormPlacement, Positions};

use super::sizes::Sizes;
use crate::plan::reduction::FP32;

/// What a thread packs of a token in a product over tokens in a low precision, in bytes, and of how many tokens at once.
/// Measured with libtorch 2.11 on x86-64: the same for any width.
const PACKED_BYTES: u64 = 672;
const PACKED_TOKENS_MAX: u64 = 1024;

/// A part of a stage, as bytes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PartBytes {
    /// Kept from the forward to the backward, beside input and output.
    pub(super) inside: u64,
    /// Its output, which is the input of the part that follows.
    pub(super) output: u64,
    /// For a moment of the forward, beside what is kept.
    pub(super) forward: u64,
    /// For a moment of the backward, beside what is kept and the gradient that comes in.
    pub(super) backward: u64,
    /// The gradient of its input.
    pub(super) input_grad: u64,
    /// From I to W.
    pub(super) deferred: u64,
    /// A weight gradient in a low precision, before it is added.
    pub(super) low_copy: u64,
}

impl PartBytes {
    pub(super) fn kept(&self) -> u64 {
        self.inside + self.output
    }
}

/// A block of a layer, between two places of the residual stream.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct BlockSize {
    /// Kept inside.
    pub(super) inside: u64,
    /// For a moment of its backward, beside what is kept.
    pub(super) backward: u64,
    /// From I to W.
    pub(super) deferred: u64,
    /// The largest weight gradient in a low precision.
    pub(super) low_copy: u64,
}

impl Sizes<'_> {
    /// All of a layer.
    pub(super) fn layer(&self, layer: u32) -> PartBytes {
        self.joined(layer, &self.all_blocks(layer))
    }

    /// The attention blocks of a layer, and its feed-forward block.
    pub(super) fn blocks(&self, layer: u32) -> [PartBytes; 2] {
        let all = self.all_blocks(layer);
        let (attention, ffn) = all.split_at(all.len() - 1);
        [self.joined(layer, attention), self.joined(layer, ffn)]
    }

    fn all_blocks(&self, layer: u32) -> Vec<BlockSize> {
        let mut blocks = vec![self.attention(layer)];
        blocks.extend(self.model.crosses(layer).then(|| self.cross_attention(layer)));
        blocks.push(self.ffn(layer));
        blocks
    }

    /// Blocks one after the other; between two of them lies a place of the residual stream.
    fn joined(&self, layer: u32, blocks: &[BlockSize]) -> PartBytes {
        let (tokens, stream) = (self.tokens(layer), self.stream(layer));
        let own = self.here(tokens);
        let crosses = self.model.crosses(layer);
        // A decoder's own tokens are copied out of what it is handed, and put before the rest again.
        let copy = if crosses { self.copied(tokens) } else { 0 };
        let split = if crosses { stream + own } else { 0 };
        let (mut freed, mut backward) = (0, 0);
        for (at, block) in blocks.iter().rev().enumerate() {
            // Of the first to run the gradient comes in; the others have one of their own.
            let stream_grad = if at == 0 { 0 } else { own };
            backward = backward.max((stream_grad + block.backward).saturating_sub(freed));
            freed += block.inside;
        }
        let sum = |of: fn(&BlockSize) -> u64| blocks.iter().map(of).sum::<u64>();
        PartBytes {
            inside: sum(|block| block.inside) + (blocks.len() as u64 - 1) * own + copy,
            output: stream,
            forward: (self.shards + 1) * own,
            backward: backward + own + split,
            input_grad: stream,
            deferred: sum(|block| block.deferred),
            low_copy: blocks.iter().map(|block| block.low_copy).max().unwrap_or(0),
        }
    }

    /// What a norm keeps of a block: its statistics, and where norms follow blocks the sum that it takes; and
    /// the block's input, which the products take.
    pub(super) fn normed(&self, tokens: u64) -> u64 {
        let kept = match self.model.norm.placement {
            NormPlacement::Pre => self.whole(tokens),
            NormPlacement::Post => {
                self.here(tokens) + if self.sequence_parallel { self.whole(tokens) } else { 0 }
            }
        };
        kept + self.statistics(tokens)
    }

    /// Gradients of a block's input: one of each shard and one that is added to it.
    pub(super) fn input_grads(&self, tokens: u64) -> u64 {
        (self.shards + 1) * self.whole(tokens)
    }

    /// A gradient of `rows` times `columns` weights from so many tokens, in a low precision; and what each thread of the
    /// product packs of its tokens.
    pub(super) fn low_grad(&self, tokens: u64, rows: u64, columns: u64) -> u64 {
        if self.low() {
            self.bytes * rows * columns + self.threads * PACKED_BYTES * tokens.min(PACKED_TOKENS_MAX)
        } else {
            0
        }
    }

    fn ffn(&self, layer: u32) -> BlockSize {
        let tokens = self.tokens(layer);
        let each = u64::from(self.model.ffn).div_ceil(self.all_shards);
        let products = self.model.activation.activation_bytes(self.bytes * tokens * each);
        let all = products.kept * self.shards;
        let low_copy = self.low_grad(tokens, each, self.dim);
        let gathered = if self.sequence_parallel { self.whole(tokens) } else { 0 };
        BlockSize {
            inside: self.normed(tokens) + all,
            backward: gathered + products.backward.max(self.input_grads(tokens) + low_copy),
            // Inputs of the products, and their outputs' gradients; of the norm its input and gradient.
            deferred: self.whole(tokens) + 3 * self.here(tokens) + all,
            low_copy,
        }
    }

    /// Tokens behind the look-up: of the decoder behind an encoder, or of the first stack.
    fn stem_tokens(&self, bridge: bool) -> u64 {
        if bridge { self.tokens(self.model.encoder_layers) } else { self.tokens(0) }
    }

    /// What is looked up, in the embedding's width.
    pub(super) fn looked_up(&self, bridge: bool) -> u64 {
        let numbers = self.stem_tokens(bridge) * u64::from(self.model.embedding.dim);
        (self.bytes * numbers).div_ceil(self.parts)
    }

    /// What follows the look-up, if anything does.
    pub(super) fn stem(&self, bridge: bool) -> Option<PartBytes> {
        let (model, embedding) = (self.model, self.model.embedding);
        let mapped = embedding.dim != model.dim;
        let sinusoidal = model.positions == Positions::Sinusoidal;
        let dropped = self.train.dropout > 0.0;
        if !(bridge || mapped || sinusoidal || dropped || embedding.norm) {
            return None;
        }
        let (tokens, narrow) = (self.stem_tokens(bridge), self.looked_up(bridge));
        let own = self.here(tokens);
        let mut inside = 0;
        if embedding.norm {
            inside += self.statistics(tokens) + if sinusoidal { narrow } else { 0 };
        }
        if mapped {
            // The map keeps its input, as a piece for each shard.
            inside += narrow * self.parts;
        }
        let low_copy = if mapped { self.low_grad(tokens, self.dim, embedding.dim.into()) } else { 0 };
        Some(PartBytes {
            inside,
            output: own,
            forward: 2 * own.max(narrow),
            backward: own.max(narrow) + if mapped { narrow * self.shards + low_copy } else { 0 },
            input_grad: narrow,
            deferred: inside + if embedding.norm || mapped { own } else { 0 },
            low_copy,
        })
    }

    /// What lies between an encoder and its decoder: both its inputs as one, and both its outputs.
    pub(super) fn bridge(&self) -> PartBytes {
        let first = self.model.encoder_layers;
        let (stem, memory) = (self.stem(true).unwrap_or_default(), self.here(self.source()));
        let joined = self.looked_up(true) + memory;
        let normed = if self.model.norm.placement.ends_stack() { self.statistics(self.source()) } else { 0 };
        PartBytes {
            inside: joined + stem.inside + normed,
            output: self.stream(first),
            forward: joined + self.stream(first),
            backward: joined + stem.backward + self.stream(first),
            input_grad: memory,
            deferred: stem.deferred + 2 * memory + self.looked_up(true),
            low_copy: stem.low_copy,
        }
    }

    /// The final norm and the head with its loss.
    pub(super) fn head(&self) -> PartBytes {
        let last = self.model.all_layers().saturating_sub(1);
        let (tokens, incoming) = (self.tokens(last), self.stream(last));
        let mut inside = match self.model.norm.placement {
            NormPlacement::Pre => self.whole(tokens) + self.statistics(tokens),
            NormPlacement::Post if self.sequence_parallel || self.model.logit_scale != 1.0 => {
                self.whole(tokens)
            }
            NormPlacement::Post => 0,
        };
        if self.model.crosses(last) {
            inside += self.copied(tokens);
        }
        let own = self.here(tokens);
        let split = if self.model.crosses(last) { incoming } else { 0 };
        if let Head::Pooled { .. } = self.model.head {
            // One token of each text; the gradient of the others is zero.
            let inside = 6 * self.bytes * self.rows * self.dim;
            return PartBytes {
                inside,
                backward: 2 * own,
                input_grad: incoming,
                deferred: inside,
                ..PartBytes::default()
            };
        }
        let width = if matches!(self.model.head, Head::MaskedLm { .. }) {
            u64::from(self.model.embedding.dim)
        } else {
            self.dim
        };
        let mut forward = 0;
        let logits = self.bytes * tokens * self.vocabulary;
        if matches!(self.model.head, Head::MaskedLm { .. }) {
            // The dense layer's output, its activation, the norm of that; and logits before their bias.
            inside += (2 * self.bytes * tokens * width).div_ceil(self.parts) + self.bytes * tokens * width;
            inside += self.statistics(tokens) + if self.shards > 1 { own } else { 0 };
            forward = logits / self.shards;
        }
        // The largest logit of each token, the sum of exponentials, and the target's logit.
        inside += logits + 3 * FP32 * tokens;
        let low_copy = self.low_grad(tokens, self.vocabulary.div_ceil(self.shards), width);
        PartBytes {
            inside,
            output: 0,
            forward: forward.max(own),
            backward: (self.shards + 1) * self.bytes * tokens * width + low_copy + split,
            input_grad: incoming,
            // What W needs: the head's input and the logits' gradient, and those of the norm.
            deferred: logits + self.bytes * tokens * width + 2 * own,
            low_copy,
        }
    }
}
