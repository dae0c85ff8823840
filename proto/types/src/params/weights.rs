//! Rows of the parameter table, by the kinds of weights that parts are made of.

use super::{Init, Parameter, Place, Split};
use crate::model::ModelSpec;

/// GPT-2's deviation of initial values.
pub(super) const STD: f64 = 0.02;

/// Adds weights to the table that are all used at the same places.
pub(crate) struct WeightRows<'a> {
    pub(crate) model: &'a ModelSpec,
    pub(super) places: &'a [Place],
    pub(super) rows: &'a mut Vec<Parameter>,
}

impl WeightRows<'_> {
    /// A matrix of random numbers of this deviation.
    pub(crate) fn matrix(&mut self, name: String, shape: [u64; 2], split: Split, std: f64) {
        self.rows.push(Parameter {
            name,
            shape: shape.to_vec(),
            split,
            places: self.places.to_vec(),
            decay: true,
            init: Init::Normal { std },
        });
    }

    /// A matrix that every tensor rank has whole.
    pub(crate) fn whole(&mut self, name: String, shape: [u64; 2]) {
        self.matrix(name, shape, Split::Replicated, STD);
    }

    /// A table of so many rows, cut between them.
    pub(crate) fn table(&mut self, name: &str, rows: u32, width: u64) {
        let split = Split::Along { dim: 0, units: rows };
        self.matrix(name.to_owned(), [u64::from(rows), width], split, STD);
    }

    /// A table with a column for each head, cut between heads.
    pub(crate) fn head_table(&mut self, name: &str, rows: u32, heads: u32) {
        let split = Split::Along { dim: 1, units: heads };
        self.matrix(name.to_owned(), [rows, heads].map(u64::from), split, STD);
    }

    /// A vector.
    pub(crate) fn vector(&mut self, name: String, len: u64, split: Split, init: Init) {
        self.rows.push(Parameter {
            name,
            shape: vec![len],
            split,
            places: self.places.to_vec(),
            decay: false,
            init,
        });
    }

    /// A norm over vectors of `len` numbers that every tensor rank has whole.
    pub(crate) fn norm(&mut self, name: &str, len: u64) {
        self.model.norm.weights(name, len, Split::Replicated, self);
    }

    /// A map whose outputs are cut into `units`, and its bias with them.
    pub(crate) fn column(&mut self, name: &str, shape: [u64; 2], units: u32, bias: bool) {
        let split = Split::Along { dim: 0, units };
        self.matrix(format!("{name}.weight"), shape, split, STD);
        if bias {
            self.vector(format!("{name}.bias"), shape[0], split, Init::Zeros);
        }
    }

    /// A map whose inputs are cut into `units`; its bias is added to the sum.
    pub(crate) fn row(&mut self, name: &str, shape: [u64; 2], units: u32, bias: bool) {
        self.row_of(name, shape, units, bias, STD);
    }

    /// The same into the residual stream, by GPT-2's rule: such projections shrink with the number of layers, so that
    /// the stream's variance does not grow with depth.
    pub(crate) fn row_into_residual(&mut self, name: &str, shape: [u64; 2], units: u32, bias: bool) {
        let std = STD / f64::from(2 * self.model.layers).sqrt();
        self.row_of(name, shape, units, bias, std);
    }

    fn row_of(&mut self, name: &str, shape: [u64; 2], units: u32, bias: bool, std: f64) {
        self.matrix(format!("{name}.weight"), shape, Split::Along { dim: 1, units }, std);
        if bias {
            self.vector(format!("{name}.bias"), shape[0], Split::Replicated, Init::Zeros);
        }
    }
}
