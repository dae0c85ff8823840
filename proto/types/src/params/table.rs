//! Which parameters a model has: top to bottom, one function for each part. What comes in several forms says itself
//! which it has ([`crate::forms`]).

use super::weights::WeightRows;
use super::{Init, Parameter, Place, Split};
use crate::model::{Attention, Head, ModelSpec};

/// The token embedding's name.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output head's name, where it has weights of its own.
pub const HEAD: &str = "lm_head.weight";

/// Every parameter of the model, in the canonical order.
pub fn parameter_table(model: &ModelSpec) -> Vec<Parameter> {
    let mut table = Table { model, rows: Vec::new() };
    table.tokens();
    table.stem(Place::Embedding);
    table.relative_bias(0..model.encoder_layers);
    table.relative_bias(model.encoder_layers..model.all_layers());
    for layers in groups(model) {
        table.layer(layers);
    }
    if model.encoder_layers > 0 {
        table.bridge();
    }
    table.head();
    table.rows
}

/// What the names of all but the layers begin with: the stack that a place belongs to.
pub fn stack_prefix(model: &ModelSpec, place: Place) -> &'static str {
    let encoder = match place {
        Place::Embedding => true,
        Place::Layer(layer) => layer < model.encoder_layers,
        Place::Bridge | Place::Head => false,
    };
    if encoder && model.encoder_layers > 0 { "model.encoder" } else { "model" }
}

/// What the names of the weights of `layer` begin with: its own number, or that of its group.
pub fn layer_prefix(model: &ModelSpec, layer: u32) -> String {
    let stack = stack_prefix(model, Place::Layer(layer));
    if model.layer_groups == model.layers {
        let first = if layer < model.encoder_layers { 0 } else { model.encoder_layers };
        return format!("{stack}.layers.{}", layer - first);
    }
    format!("{stack}.layer_groups.{}", layer_group(model, layer))
}

/// The group whose weights a layer uses. The quotients are ALBERT's own, in double precision, so that layers
/// that the groups do not divide fall as they do there.
fn layer_group(model: &ModelSpec, layer: u32) -> u32 {
    let layers_per_group = f64::from(model.layers) / f64::from(model.layer_groups.max(1));
    (f64::from(layer) / layers_per_group) as u32
}

/// The name of the table of relative positions that a layer uses.
pub fn relative_bias(model: &ModelSpec, layer: u32) -> String {
    format!("{}.relative_bias.weight", stack_prefix(model, Place::Layer(layer)))
}

/// The layers that share their weights, over both stacks.
fn groups(model: &ModelSpec) -> Vec<std::ops::Range<u32>> {
    let encoder = (0..model.encoder_layers).map(|layer| layer..layer + 1);
    let mut shared: Vec<std::ops::Range<u32>> = Vec::new();
    for layer in 0..model.layers {
        let at = model.encoder_layers + layer;
        match shared.last_mut() {
            Some(last) if layer > 0 && layer_group(model, layer) == layer_group(model, layer - 1) => {
                last.end += 1
            }
            _ => shared.push(at..at + 1),
        }
    }
    encoder.chain(shared).collect()
}

struct Table<'a> {
    model: &'a ModelSpec,
    rows: Vec<Parameter>,
}

impl Table<'_> {
    /// WeightRows that are used at these places.
    fn at<'t>(&'t mut self, places: &'t [Place]) -> WeightRows<'t> {
        WeightRows { model: self.model, places, rows: &mut self.rows }
    }

    fn tokens(&mut self) {
        let model = self.model;
        let mut places = vec![Place::Embedding];
        if model.encoder_layers > 0 {
            places.push(Place::Bridge);
        }
        if model.tied_embeddings && !matches!(model.head, Head::Pooled { .. }) {
            places.push(Place::Head);
        }
        self.at(&places).table(EMBEDDING, model.vocab, model.embedding.dim.into());
    }

    /// What is done to tokens before the first layer of a stack.
    fn stem(&mut self, place: Place) {
        let (model, prefix) = (self.model, stack_prefix(self.model, place));
        let (dim, width) = (u64::from(model.dim), u64::from(model.embedding.dim));
        let mut weights = self.at(std::slice::from_ref(&place));
        model.positions.embedding_weights(prefix, &mut weights);
        if model.embedding.types > 0 {
            weights.table(&format!("{prefix}.embed_types.weight"), model.embedding.types, width);
        }
        if model.embedding.norm {
            weights.norm(&format!("{prefix}.embed_norm"), width);
        }
        if width != dim {
            weights.row(&format!("{prefix}.embed_map"), [dim, width], model.embedding.dim, true);
        }
    }

    fn relative_bias(&mut self, layers: std::ops::Range<u32>) {
        if layers.is_empty() {
            return;
        }
        let (model, name) = (self.model, relative_bias(self.model, layers.start));
        let places: Vec<_> = layers.map(Place::Layer).collect();
        model.positions.layer_weights(&name, &mut self.at(&places));
    }

    fn layer(&mut self, layers: std::ops::Range<u32>) {
        let (model, prefix) = (self.model, layer_prefix(self.model, layers.start));
        let crosses = model.crosses(layers.start);
        let places: Vec<_> = layers.map(Place::Layer).collect();
        let (dim, mut weights) = (u64::from(model.dim), self.at(&places));
        weights.norm(&format!("{prefix}.input_layernorm"), dim);
        model.attention.weights(&format!("{prefix}.self_attn"), &mut weights);
        if crosses {
            weights.norm(&format!("{prefix}.cross_attention_layernorm"), dim);
            Attention::Full.weights(&format!("{prefix}.cross_attn"), &mut weights);
        }
        weights.norm(&format!("{prefix}.post_attention_layernorm"), dim);
        model.activation.weights(&format!("{prefix}.mlp"), &mut weights);
    }

    fn bridge(&mut self) {
        let model = self.model;
        if model.norm.placement.ends_stack() {
            self.at(&[Place::Bridge]).norm("model.encoder.norm", model.dim.into());
        }
        self.stem(Place::Bridge);
    }

    fn head(&mut self) {
        let model = self.model;
        let (dim, width) = (u64::from(model.dim), u64::from(model.embedding.dim));
        let mut weights = self.at(&[Place::Head]);
        if model.norm.placement.ends_stack() {
            weights.norm("model.norm", dim);
        }
        let width = match model.head {
            Head::Lm => dim,
            Head::MaskedLm { .. } => {
                weights.row("lm_head.dense", [width, dim], model.dim, true);
                weights.norm("lm_head.norm", width);
                width
            }
            Head::Pooled { classes } => {
                weights.row("pooler.dense", [dim, dim], model.dim, true);
                if classes > 0 {
                    weights.row("classifier", [u64::from(classes), dim], model.dim, true);
                }
                return;
            }
        };
        if !model.tied_embeddings {
            weights.table(HEAD, model.vocab, width);
        }
        if matches!(model.head, Head::MaskedLm { .. }) {
            let split = Split::Along { dim: 0, units: model.vocab };
            weights.vector("lm_head.bias".into(), model.vocab.into(), split, Init::Zeros);
        }
    }
}
