//! What is kept of a micro-batch between its actions on a stage.

use coxswain_native::ops::Filed;
use coxswain_types::params::Place;
use tch::Tensor;

use super::Cut;
use crate::data::MicroBatchData;
use crate::model::Piece;

/// What a piece of a layer keeps between forward and backward.
pub(super) enum Kept {
    /// All of it.
    Cut(Cut),
    /// The input; the rest is computed again.
    Input(Tensor),
}

/// A micro-batch between its forward and its backward.
pub(super) struct Flight {
    pub(super) data: MicroBatchData,
    /// The pieces, in order: which layer of the stage, which part of it.
    pub(super) kept: Vec<(usize, Piece, Kept)>,
    pub(super) head: Option<Cut>,
}

/// A micro-batch between its backward for the input and that for the weights.
#[derive(Default)]
pub(super) struct Filings {
    /// Weight gradients in the order of the backward pass, and whether their place is then done.
    pub(super) places: Vec<(Place, bool, Filed)>,
    /// What the embedding's gradient needs: ids `[b, t]`, and the gradient of its output.
    pub(super) embedding: Option<(Tensor, Tensor)>,
}
