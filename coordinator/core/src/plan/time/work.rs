//! What the parts of the model compute and move of one micro-batch on one tensor rank, forward.

use std::collections::BTreeMap;

use coxswain_types::job::{JobSpec, Lengths, ModelSpec};
use coxswain_types::model::Head;
use coxswain_types::params::{Place, Split, parameter_table};

use crate::plan::partition::{block_flops, embedding_map, head_cost};

/// A part of the model between two places of the residual stream.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct PartWork {
    /// FLOPs of products with weights.
    pub(super) products: f64,
    /// FLOPs of attention between tokens.
    pub(super) scores: f64,
    /// Bytes that products read and write at least: weights, inputs, outputs.
    pub(super) product_bytes: f64,
    /// Bytes of everything else that passes over memory: norms, residuals, non-linearities.
    pub(super) stream_bytes: f64,
    /// Bytes of what tensor ranks add.
    pub(super) summed_bytes: f64,
    /// Weights of its products on this rank.
    pub(super) weights: f64,
    /// Kernels, at the least.
    pub(super) kernels: f64,
}

/// All parts of a model.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ModelWork {
    pub(super) embedding: PartWork,
    /// The decoder's embedding behind an encoder.
    pub(super) bridge: PartWork,
    /// Of each layer its attention and its feed-forward block.
    pub(super) layers: Vec<[PartWork; 2]>,
    pub(super) head: PartWork,
}

/// The numbers that work is made of.
struct Scale<'a> {
    model: &'a ModelSpec,
    lengths: Lengths,
    rows: f64,
    tensor: f64,
    parts: f64,
    bytes: f64,
    sums: bool,
}

/// What each part takes.
pub(super) fn work(spec: &JobSpec, elements: &BTreeMap<Place, f64>) -> ModelWork {
    let (model, layout) = (&spec.model, &spec.layout);
    let tensor = f64::from(layout.tensor.max(1));
    let scale = Scale {
        model,
        lengths: Lengths::of(model, &spec.train),
        rows: spec.train.micro_batch_size.into(),
        tensor,
        parts: if layout.sequence_parallel { tensor } else { 1.0 },
        bytes: spec.train.precision.bytes() as f64,
        sums: layout.tensor > 1,
    };
    let bridge = if model.encoder_layers > 0 && model.encoder_layers < model.all_layers() {
        scale.embedding(model.encoder_layers)
    } else {
        PartWork::default()
    };
    ModelWork {
        embedding: scale.embedding(0),
        bridge,
        layers: (0..model.all_layers()).map(|layer| scale.layer(layer, elements)).collect(),
        head: scale.head(),
    }
}

/// Weights of a tensor rank, place by place, each slice counted once.
pub(super) fn elements(spec: &JobSpec) -> BTreeMap<Place, f64> {
    let shards = spec.train.shards(spec.layout.tensor).max(1);
    let mut elements = BTreeMap::new();
    for parameter in parameter_table(&spec.model) {
        let ways = match parameter.split {
            Split::Replicated => 1.0,
            Split::Along { .. } => f64::from(parameter.slices(shards).min(spec.layout.tensor)),
        };
        let Some(first) = parameter.places.first() else { continue };
        *elements.entry(*first).or_insert(0.0) += parameter.elements() as f64 / ways;
    }
    elements
}

impl Scale<'_> {
    fn length(&self, layer: u32) -> u32 {
        if layer < self.model.encoder_layers { self.lengths.source } else { self.lengths.target }
    }

    fn tokens(&self, layer: u32) -> f64 {
        self.rows * f64::from(self.length(layer))
    }

    /// A place of the residual stream, whole.
    fn stream(&self, layer: u32) -> f64 {
        self.tokens(layer) * f64::from(self.model.dim) * self.bytes
    }

    fn layer(&self, layer: u32, elements: &BTreeMap<Place, f64>) -> [PartWork; 2] {
        let model = self.model;
        let [attention, ffn] = block_flops(model, layer, self.length(layer), self.lengths.source);
        let weights = elements.get(&Place::Layer(layer)).copied().unwrap_or(0.0);
        let all = (attention.products + ffn.products).max(1) as f64;
        let head = f64::from(model.head_dim);
        let heads = f64::from(model.heads + 2 * model.kv_heads) * head;
        let matrices = if model.activation.gated() { 3.0 } else { 2.0 };
        let (tokens, stream) = (self.tokens(layer), self.stream(layer));
        let block = |flops: crate::plan::partition::BlockFlops, inner: f64, kernels: f64| PartWork {
            products: tokens * flops.products as f64 / self.tensor,
            scores: tokens * flops.scores as f64 / self.tensor,
            // The stream goes in and comes out, and so does what lies between.
            product_bytes: weights * flops.products as f64 / all * self.bytes
                + 2.0 * stream
                + 2.0 * tokens * inner * self.bytes / self.tensor,
            // A norm reads and writes, a residual reads twice and writes.
            stream_bytes: 5.0 * stream / self.parts + 2.0 * tokens * inner * self.bytes / self.tensor,
            summed_bytes: if self.sums { stream } else { 0.0 },
            weights: weights * flops.products as f64 / all,
            kernels,
        };
        [block(attention, heads, 8.0), block(ffn, (matrices - 1.0) * f64::from(model.ffn), 5.0)]
    }

    fn embedding(&self, layer: u32) -> PartWork {
        let stream = self.stream(layer);
        let width = f64::from(self.model.embedding.dim);
        let map = embedding_map(self.model) as f64;
        PartWork {
            products: self.tokens(layer) * map / self.tensor,
            stream_bytes: 3.0 * stream / self.parts,
            summed_bytes: if self.sums { stream } else { 0.0 },
            weights: if map > 0.0 { width * f64::from(self.model.dim) / self.tensor } else { 0.0 },
            kernels: 2.0,
            ..PartWork::default()
        }
    }

    fn head(&self) -> PartWork {
        let last = self.model.all_layers().saturating_sub(1);
        let (tokens, stream) = (self.tokens(last), self.stream(last));
        let products = tokens * head_cost(self.model, self.lengths.target) as f64 / self.tensor;
        let vocabulary = match self.model.head {
            Head::Pooled { .. } => 0.0,
            _ => f64::from(self.model.vocab) / self.tensor,
        };
        let logits = tokens * vocabulary * self.bytes;
        PartWork {
            products,
            scores: 0.0,
            product_bytes: products / (2.0 * tokens.max(1.0)) * self.bytes + stream + logits,
            // The loss reads the logits twice: for the largest, and for the sum of exponentials.
            stream_bytes: 2.0 * stream / self.parts + 2.0 * logits,
            summed_bytes: if self.sums { stream } else { 0.0 },
            weights: products / (2.0 * tokens.max(1.0)),
            kernels: 5.0,
        }
    }
}
