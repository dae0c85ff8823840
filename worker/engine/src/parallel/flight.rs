//! What is kept of a micro-batch between its actions on a stage.

use coxswain_native::ops::DeferredWgrads;
use coxswain_types::params::Place;
use tch::Tensor;

use super::Cut;
use crate::data::MicroBatchData;
use crate::model::Piece;

/// A part of a stage that runs as one piece between cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// What follows the embedding's look-up.
    Stem,
    /// What lies between encoder and decoder, which has so many rows and tokens here.
    Bridge([i64; 2]),
    /// Of a layer of the stage, this piece.
    Layer(usize, Piece),
}

/// What a part keeps between forward and backward.
pub(super) enum Kept {
    /// All of it.
    Cut(Cut),
    /// The input; the rest is computed again.
    Input(Tensor),
}

/// A micro-batch between its forward and its backward.
pub(super) struct Flight {
    pub(super) data: MicroBatchData,
    /// The parts, in order.
    pub(super) kept: Vec<(Part, Kept)>,
    pub(super) head: Option<Cut>,
}

/// A micro-batch between its backward for the input and that for the weights.
#[derive(Default)]
pub(super) struct LaterWgrads {
    /// Weight gradients in the order of the backward pass, and whether their place is then done.
    pub(super) places: Vec<(Place, bool, DeferredWgrads)>,
    /// What gradients of embeddings need: their places and the gradients of their look-ups, and the tokens.
    pub(super) look_ups: Vec<(Place, Tensor)>,
    pub(super) data: Option<MicroBatchData>,
}
