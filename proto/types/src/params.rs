//! The parameter table: name, global shape, tensor split, place, decay. One pure function of the
//! model; the plan hands each rank its [`ParameterRow`]s, and the engine builds from those alone.
//!
//! Names are those of the Hugging Face layout for LLaMA, carried on to what LLaMA does not have; the
//! names of other families are translated where models enter and leave the house.

use serde::{Deserialize, Serialize};

use crate::tree::split;

mod table;
#[cfg(test)]
mod tests;
mod weights;

pub(crate) use weights::WeightRows;

pub use table::{EMBEDDING, HEAD, layer_prefix, parameter_table, relative_bias, stack_prefix};

/// The part of the model that a parameter belongs to. Places are the unit of pipeline cuts and of
/// gradient buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// The token embedding, on the first stage.
    Embedding,
    /// A transformer layer; an encoder's come before a decoder's.
    Layer(u32),
    /// What lies between an encoder and its decoder: the encoder's final norm, and the decoder's
    /// embedding. On the stage of the decoder's first layer.
    Bridge,
    /// The final norm and the output head, on the last stage.
    Head,
}

/// Initial values, a function of (seed, name, element index).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Init {
    /// All ones.
    Ones,
    /// All zeros.
    Zeros,
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
    /// Its initial values.
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

    /// Number of different slices when `tensor` ranks hold it: `tensor`, one when replicated. Where there are fewer
    /// units than ranks, as many as there can be while each is held by equally many ranks.
    pub fn slices(&self, tensor: u32) -> u32 {
        match self.split {
            Split::Replicated => 1,
            Split::Along { units, .. } => {
                (1..=tensor.min(units)).rev().find(|slices| tensor.is_multiple_of(*slices)).unwrap_or(1)
            }
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
    /// Initial values.
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

    /// Whether this is a matrix of a layer that maps activations, which Muon is made for.
    pub fn is_layer_matrix(&self) -> bool {
        matches!(self.place, Place::Layer(_)) && self.shape.len() == 2 && self.name.ends_with("_proj.weight")
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
