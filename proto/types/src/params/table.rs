//! Which parameters a model has: top to bottom, one function for each part.

use super::{Init, Parameter, Place, Split};
use crate::model::{Attention, Head, ModelSpec, NormKind, NormPlacement, Positions};

/// The token embedding's name.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output head's name, where it has weights of its own.
pub const HEAD: &str = "lm_head.weight";

/// GPT-2's deviation of initial values.
const STD: f64 = 0.02;

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
    /// A matrix, cut along `dim` into `units`.
    fn matrix(&mut self, name: String, shape: [u64; 2], (dim, units): (u8, u32), places: &[Place], std: f64) {
        self.rows.push(Parameter {
            name,
            shape: shape.to_vec(),
            split: Split::Along { dim, units },
            places: places.to_vec(),
            decay: true,
            init: Init::Normal { std },
        });
    }

    /// A matrix that every tensor rank has whole.
    fn whole(&mut self, name: String, shape: [u64; 2], places: &[Place]) {
        self.matrix(name, shape, (0, 1), places, STD);
        if let Some(row) = self.rows.last_mut() {
            row.split = Split::Replicated;
        }
    }

    fn vector(&mut self, name: String, len: u64, split: Split, places: &[Place], init: Init) {
        self.rows.push(Parameter {
            name,
            shape: vec![len],
            split,
            places: places.to_vec(),
            decay: false,
            init,
        });
    }

    fn norm(&mut self, name: &str, len: u64, places: &[Place]) {
        self.vector(format!("{name}.weight"), len, Split::Replicated, places, Init::Ones);
        if self.model.norm.kind == NormKind::Layer {
            self.vector(format!("{name}.bias"), len, Split::Replicated, places, Init::Zeros);
        }
    }

    /// A map whose outputs are cut into `units`, and its bias with them.
    fn column(&mut self, name: &str, shape: [u64; 2], units: u32, bias: bool, places: &[Place]) {
        self.matrix(format!("{name}.weight"), shape, (0, units), places, STD);
        if bias {
            let split = Split::Along { dim: 0, units };
            self.vector(format!("{name}.bias"), shape[0], split, places, Init::Zeros);
        }
    }

    /// A map whose inputs are cut into `units`; its bias is added to the sum.
    fn row(&mut self, name: &str, shape: [u64; 2], units: u32, bias: bool, places: &[Place], std: f64) {
        self.matrix(format!("{name}.weight"), shape, (1, units), places, std);
        if bias {
            self.vector(format!("{name}.bias"), shape[0], Split::Replicated, places, Init::Zeros);
        }
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
        let shape = [model.vocab, model.embedding.dim].map(u64::from);
        self.matrix(EMBEDDING.into(), shape, (0, model.vocab), &places, STD);
    }

    /// What is done to tokens before the first layer of a stack.
    fn stem(&mut self, place: Place) {
        let (model, prefix) = (self.model, stack_prefix(self.model, place));
        let (dim, width) = (u64::from(model.dim), u64::from(model.embedding.dim));
        if let Positions::Learned { max, offset } = model.positions {
            let rows = max + offset;
            let name = format!("{prefix}.embed_positions.weight");
            self.matrix(name, [u64::from(rows), width], (0, rows), &[place], STD);
        }
        if model.embedding.types > 0 {
            let name = format!("{prefix}.embed_types.weight");
            let types = model.embedding.types;
            self.matrix(name, [u64::from(types), width], (0, types), &[place], STD);
        }
        if model.embedding.norm {
            self.norm(&format!("{prefix}.embed_norm"), width, &[place]);
        }
        if width != dim {
            let name = format!("{prefix}.embed_map");
            self.row(&name, [dim, width], model.embedding.dim, true, &[place], STD);
        }
    }

    fn relative_bias(&mut self, layers: std::ops::Range<u32>) {
        let Positions::RelativeBias { buckets, .. } = self.model.positions else { return };
        if layers.is_empty() {
            return;
        }
        let (name, heads) = (relative_bias(self.model, layers.start), self.model.heads);
        let places: Vec<_> = layers.map(Place::Layer).collect();
        let shape = [buckets, heads].map(u64::from);
        self.matrix(name, shape, (1, heads), &places, STD);
    }

    fn layer(&mut self, layers: std::ops::Range<u32>) {
        let (model, prefix) = (self.model, layer_prefix(self.model, layers.start));
        let crosses = model.crosses(layers.start);
        let places: Vec<_> = layers.map(Place::Layer).collect();
        let (dim, ffn) = (u64::from(model.dim), u64::from(model.ffn));
        self.norm(&format!("{prefix}.input_layernorm"), dim, &places);
        self.attention(&format!("{prefix}.self_attn"), model.attention, &places);
        if crosses {
            self.norm(&format!("{prefix}.cross_attention_layernorm"), dim, &places);
            self.attention(&format!("{prefix}.cross_attn"), Attention::Full, &places);
        }
        self.norm(&format!("{prefix}.post_attention_layernorm"), dim, &places);
        let bias = model.biases.ffn;
        if model.activation.gated() {
            self.column(&format!("{prefix}.mlp.gate_proj"), [ffn, dim], model.ffn, bias, &places);
        }
        self.column(&format!("{prefix}.mlp.up_proj"), [ffn, dim], model.ffn, bias, &places);
        let std = self.residual_std();
        self.row(&format!("{prefix}.mlp.down_proj"), [dim, ffn], model.ffn, bias, &places, std);
    }

    /// GPT-2's rule: projections into the residual stream shrink with the number of layers, so that
    /// the stream's variance does not grow with depth.
    fn residual_std(&self) -> f64 {
        STD / f64::from(2 * self.model.layers).sqrt()
    }

    fn attention(&mut self, prefix: &str, form: Attention, places: &[Place]) {
        let (model, dim, head) = (self.model, u64::from(self.model.dim), u64::from(self.model.head_dim));
        let (heads, kv_heads, bias) = (model.heads, model.kv_heads, model.biases.qkv);
        let (q, kv) = (u64::from(heads) * head, u64::from(kv_heads) * head);
        self.column(&format!("{prefix}.q_proj"), [q, dim], heads, bias, places);
        if let Attention::Latent { rank, rope_dim } = form {
            let (rank, rope_dim) = (u64::from(rank), u64::from(rope_dim));
            let up = u64::from(heads) * (2 * head - rope_dim);
            self.whole(format!("{prefix}.kv_down_proj.weight"), [rank + rope_dim, dim], places);
            self.norm(&format!("{prefix}.kv_norm"), rank, places);
            self.column(&format!("{prefix}.kv_up_proj"), [up, rank], heads, false, places);
        } else {
            self.column(&format!("{prefix}.k_proj"), [kv, dim], kv_heads, bias, places);
            self.column(&format!("{prefix}.v_proj"), [kv, dim], kv_heads, bias, places);
        }
        match form {
            Attention::Longformer { projections: true, .. } => {
                for (name, width, units) in [("q", q, heads), ("k", kv, kv_heads), ("v", kv, kv_heads)] {
                    let name = format!("{prefix}.global_{name}_proj");
                    self.column(&name, [width, dim], units, bias, places);
                }
            }
            Attention::Linear { decay: true } => {
                let name = format!("{prefix}.decay_proj");
                self.column(&name, [u64::from(heads), dim], heads, true, places);
            }
            Attention::Compressed { block, .. } => {
                let name = format!("{prefix}.summary.weight");
                self.matrix(name, [block, kv_heads].map(u64::from), (1, kv_heads), places, 0.0);
            }
            _ => {}
        }
        let std = self.residual_std();
        self.row(&format!("{prefix}.o_proj"), [dim, q], heads, model.biases.out, places, std);
    }

    fn bridge(&mut self) {
        if self.model.norm.placement == NormPlacement::Pre {
            self.norm("model.encoder.norm", u64::from(self.model.dim), &[Place::Bridge]);
        }
        self.stem(Place::Bridge);
    }

    fn head(&mut self) {
        let (model, place) = (self.model, &[Place::Head]);
        let (dim, width) = (u64::from(model.dim), u64::from(model.embedding.dim));
        if model.norm.placement == NormPlacement::Pre {
            self.norm("model.norm", dim, place);
        }
        let width = match model.head {
            Head::Lm => dim,
            Head::MaskedLm { .. } => {
                self.row("lm_head.dense", [width, dim], model.dim, true, place, STD);
                self.norm("lm_head.norm", width, place);
                width
            }
            Head::Pooled { classes } => {
                self.row("pooler.dense", [dim, dim], model.dim, true, place, STD);
                if classes > 0 {
                    self.row("classifier", [u64::from(classes), dim], model.dim, true, place, STD);
                }
                return;
            }
        };
        if !model.tied_embeddings {
            self.matrix(HEAD.into(), [u64::from(model.vocab), width], (0, model.vocab), place, STD);
        }
        if matches!(model.head, Head::MaskedLm { .. }) {
            let split = Split::Along { dim: 0, units: model.vocab };
            self.vector("lm_head.bias".into(), u64::from(model.vocab), split, place, Init::Zeros);
        }
    }
}
