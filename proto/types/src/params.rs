//! The parameter table: name, global shape, tensor split, place, decay. One pure function of the
//! model; the plan hands each rank its [`ParameterRow`]s, and the engine builds from those alone.
//!
//! Names and shapes are those of the Hugging Face layout for LLaMA, so that a checkpoint needs no
//! translation to leave the house.

use serde::{Deserialize, Serialize};

use crate::job::ModelSpec;
use crate::tree::split;

/// The part of the model that a parameter belongs to. Places are the unit of pipeline cuts and of
/// gradient buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The token embedding, on the first stage.
    Embedding,
    /// A transformer layer.
    Layer(u32),
    /// The final norm and the output head, on the last stage.
    Head,
}

/// Values at birth, a function of (seed, name, element index).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// All ones.
    Ones,
    /// Normal with mean zero.
    Normal {
        /// The standard deviation.
        std: f64,
    },
}

/// How the tensor axis splits a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Split {
    /// Every tensor rank holds the whole.
    Replicated,
    /// Cut along `dim` into `units` that stay whole (heads, or single rows and columns).
    Along {
        /// The tensor dimension.
        dim: u8,
        /// Number of units along it.
        units: u32,
    },
}

/// A parameter of the model, independent of the layout.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Parameter {
    /// Its name, as in the Hugging Face layout.
    pub name: String,
    /// Its shape, outermost dimension first.
    pub shape: Vec<u64>,
    /// How the tensor axis splits it.
    pub split: Split,
    /// Where it is used, in the order in which gradients of the uses are added.
    pub places: Vec<Place>,
    /// Whether weight decay applies: to matrices, not to norms.
    pub decay: bool,
    /// Its values at birth.
    pub init: Init,
}

impl Parameter {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }

    /// The row of a rank that holds `slice` for its first use and shard `shard`, and neither shares it,
    /// speaks for it, nor saves it.
    pub fn row(&self, slice: &Slice, shard: u32) -> ParameterRow {
        ParameterRow {
            name: self.name.clone(),
            shape: self.shape.clone(),
            dim: slice.dim,
            offset: slice.offset,
            len: slice.len,
            place: self.places[0],
            shard,
            decay: self.decay,
            init: self.init,
            use_index: 0,
            uses: Vec::new(),
            holders: Vec::new(),
            norm_slot: None,
            saves: false,
        }
    }

    /// Number of different slices when `tensor` ranks hold it: `tensor`, one when replicated, and
    /// the number of units when there are fewer of those than ranks.
    pub fn slices(&self, tensor: u32) -> u32 {
        match self.split {
            Split::Replicated => 1,
            Split::Along { units, .. } => tensor.min(units),
        }
    }
}

/// One use of a slice of a parameter on a rank. Rows of the same name and offset share their weights.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ParameterRow {
    /// The parameter's name.
    pub name: String,
    /// The parameter's global shape.
    pub shape: Vec<u64>,
    /// The dimension along which this is a slice; `0` for a whole.
    pub dim: u8,
    /// Where the slice starts along `dim`.
    pub offset: u64,
    /// How long the slice is along `dim`.
    pub len: u64,
    /// Where it is used.
    pub place: Place,
    /// The logical shard that uses it: of the tensor dim for what is split, of the sequence for what is
    /// replicated.
    pub shard: u32,
    /// Whether weight decay applies.
    pub decay: bool,
    /// Values at birth.
    pub init: Init,
    /// Which of the slice's uses this is.
    pub use_index: u32,
    /// For each use of the slice, in the order in which their gradients are added, the rank that
    /// brings it. One use or none: nothing to add.
    pub uses: Vec<u32>,
    /// The ranks that hold the slice; the first of them adds.
    pub holders: Vec<u32>,
    /// The slot of the closing exchange that takes this slice's squared gradient norm, on the one
    /// rank that contributes it.
    pub norm_slot: Option<u32>,
    /// Whether this rank writes the slice into checkpoints.
    pub saves: bool,
}

impl ParameterRow {
    /// The slice's own shape.
    pub fn local_shape(&self) -> Vec<i64> {
        let mut shape: Vec<i64> = self.shape.iter().map(|&n| n as i64).collect();
        shape[usize::from(self.dim)] = self.len as i64;
        shape
    }

    /// Number of elements of the slice.
    pub fn elements(&self) -> u64 {
        let whole: u64 = self.shape.iter().product();
        whole / self.shape[usize::from(self.dim)] * self.len
    }
}

/// The slice of `parameter` that tensor rank `index` of `tensor` holds: `(dim, offset, len, which
/// of the different slices, first tensor rank that holds the same)`.
pub fn slice_of(parameter: &Parameter, index: u32, tensor: u32) -> Slice {
    match parameter.split {
        Split::Replicated => {
            Slice { dim: 0, offset: 0, len: parameter.shape[0], ordinal: 0, holders: 0..tensor }
        }
        Split::Along { dim, units } => {
            let slices = parameter.slices(tensor);
            let copies = tensor / slices;
            let ordinal = index / copies;
            let units_held = split(units, slices)[ordinal as usize].clone();
            let unit = parameter.shape[usize::from(dim)] / u64::from(units);
            Slice {
                dim,
                offset: u64::from(units_held.start) * unit,
                len: u64::from(units_held.end - units_held.start) * unit,
                ordinal,
                holders: ordinal * copies..(ordinal + 1) * copies,
            }
        }
    }
}

/// See [`slice_of`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The dimension of the cut.
    pub dim: u8,
    /// Where the slice starts along it.
    pub offset: u64,
    /// How long it is.
    pub len: u64,
    /// Which of the parameter's different slices this is.
    pub ordinal: u32,
    /// The tensor ranks that hold the same slice.
    pub holders: std::ops::Range<u32>,
}

/// Every parameter of the model, in the canonical order.
pub fn parameter_table(model: &ModelSpec) -> Vec<Parameter> {
    let (dim, ffn, vocab) = (u64::from(model.dim), u64::from(model.ffn), u64::from(model.vocab));
    let head = u64::from(model.head_dim());
    let (q, kv) = (u64::from(model.heads) * head, u64::from(model.kv_heads) * head);
    // GPT-2's rule: projections into the residual stream shrink with the number of layers, so that
    // the stream's variance does not grow with depth.
    let std = 0.02;
    let into_residual = std / f64::from(2 * model.layers).sqrt();

    let matrix =
        |name: String, shape: [u64; 2], along: u8, units: u32, places: &[Place], std: f64| Parameter {
            name,
            shape: shape.to_vec(),
            split: Split::Along { dim: along, units },
            places: places.to_vec(),
            decay: true,
            init: Init::Normal { std },
        };
    let norm = |name: String, places: &[Place]| Parameter {
        name,
        shape: vec![dim],
        split: Split::Replicated,
        places: places.to_vec(),
        decay: false,
        init: Init::Ones,
    };

    let ends = [Place::Embedding, Place::Head];
    let embedding = if model.tied_embeddings { &ends[..] } else { &ends[..1] };
    let mut table = vec![matrix(EMBEDDING.into(), [vocab, dim], 0, model.vocab, embedding, std)];
    for layers in split(model.layers, model.layer_groups) {
        let prefix = layer_prefix(model, layers.start);
        let places: Vec<_> = layers.map(Place::Layer).collect();
        let place = places.as_slice();
        let name = |part: &str| format!("{prefix}.{part}.weight");
        table.extend([
            norm(name("input_layernorm"), place),
            matrix(name("self_attn.q_proj"), [q, dim], 0, model.heads, place, std),
            matrix(name("self_attn.k_proj"), [kv, dim], 0, model.kv_heads, place, std),
            matrix(name("self_attn.v_proj"), [kv, dim], 0, model.kv_heads, place, std),
            matrix(name("self_attn.o_proj"), [dim, q], 1, model.heads, place, into_residual),
            norm(name("post_attention_layernorm"), place),
            matrix(name("mlp.gate_proj"), [ffn, dim], 0, model.ffn, place, std),
            matrix(name("mlp.up_proj"), [ffn, dim], 0, model.ffn, place, std),
            matrix(name("mlp.down_proj"), [dim, ffn], 1, model.ffn, place, into_residual),
        ]);
    }
    table.push(norm("model.norm.weight".into(), &ends[1..]));
    if !model.tied_embeddings {
        table.push(matrix(HEAD.into(), [vocab, dim], 0, model.vocab, &ends[1..], std));
    }
    table
}

/// The token embedding's name.
pub const EMBEDDING: &str = "model.embed_tokens.weight";
/// The output head's name, where it has weights of its own.
pub const HEAD: &str = "lm_head.weight";

/// What the names of the weights of `layer` begin with: its own number, or that of its group.
pub fn layer_prefix(model: &ModelSpec, layer: u32) -> String {
    if model.layer_groups == model.layers {
        return format!("model.layers.{layer}");
    }
    let group = split(model.layers, model.layer_groups).iter().position(|layers| layers.contains(&layer));
    format!("model.layer_groups.{}", group.unwrap_or(0))
}

/// The first slot of each parameter in the closing exchange's list of squared norms, and the
/// number of slots in all: one for each different slice.
pub fn norm_slots(table: &[Parameter], tensor: u32) -> (Vec<u32>, u32) {
    let mut next = 0;
    let first = table
        .iter()
        .map(|parameter| {
            let slot = next;
            next += parameter.slices(tensor);
            slot
        })
        .collect();
    (first, next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(layers: u32, dim: u32, heads: u32, kv_heads: u32, ffn: u32, vocab: u32) -> ModelSpec {
        ModelSpec {
            layers,
            dim,
            heads,
            kv_heads,
            ffn,
            vocab,
            rope_theta: 1e4,
            norm_eps: 1e-5,
            tied_embeddings: false,
            layer_groups: layers,
        }
    }

    #[test]
    fn parameter_counts_are_the_published_ones() {
        for (name, model, count) in [
            ("Llama-2 7B", model(32, 4096, 32, 32, 11008, 32000), 6_738_415_616_u64),
            ("Llama-2 13B", model(40, 5120, 40, 40, 13824, 32000), 13_015_864_320),
            ("Llama-3 8B", model(32, 4096, 32, 8, 14336, 128_256), 8_030_261_248),
        ] {
            let sum: u64 = parameter_table(&model).iter().map(Parameter::elements).sum();
            assert_eq!(sum, count, "{name}");
        }
    }

    #[test]
    fn the_different_slices_of_a_parameter_cover_it_once() {
        let table = parameter_table(&model(2, 64, 8, 2, 96, 515));
        for tensor in [1, 2, 4, 8] {
            for parameter in &table {
                let mut end = 0;
                let mut seen = 0;
                for index in 0..tensor {
                    let slice = slice_of(parameter, index, tensor);
                    assert!(slice.holders.contains(&index));
                    if slice.holders.start == index {
                        assert_eq!((slice.ordinal, slice.offset), (seen, end), "{}", parameter.name);
                        end += slice.len;
                        seen += 1;
                    }
                }
                let dim = slice_of(parameter, 0, tensor).dim;
                assert_eq!(end, parameter.shape[usize::from(dim)]);
                assert_eq!(seen, parameter.slices(tensor));
            }
        }
    }

    #[test]
    fn key_and_value_heads_fewer_than_ranks_are_replicated() {
        let table = parameter_table(&model(1, 64, 8, 2, 96, 512));
        let k = table.iter().find(|p| p.name.ends_with("k_proj.weight")).unwrap();
        let slice = slice_of(k, 3, 4);
        assert_eq!((slice.offset, slice.len, slice.holders), (8, 8, 2..4));
    }
}
