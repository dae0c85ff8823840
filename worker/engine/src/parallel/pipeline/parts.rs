//! The parts of a stage: each runs for its output and for what its backward pass needs.

use tch::Tensor;

use crate::EngineError;
use crate::model::{Keeps, Pass, Piece};
use crate::parallel::Cut;
use crate::parallel::seat::Seat;

/// A part of a stage that runs as one piece between cuts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum StagePart {
    /// What follows the embedding's look-up.
    Stem,
    /// What lies between encoder and decoder, which has so many rows and tokens here.
    Bridge([i64; 2]),
    /// Of a layer of the stage, this piece.
    Layer(usize, Piece),
}

/// A part between forward and backward.
pub(super) struct PartState {
    pub(super) part: StagePart,
    pub(super) kept: KeptActivations,
}

/// What a part keeps between forward and backward.
pub(super) enum KeptActivations {
    /// All of it.
    Graph(Cut),
    /// The input; the rest is computed again.
    Input(Tensor),
}

/// Runs the parts of a stage one after the other; in training it keeps what the backward pass needs.
pub(super) struct PartChain<'c> {
    pub(super) seat: &'c Seat,
    /// The parts so far; `None` where there is no backward pass.
    pub(super) kept: Option<Vec<PartState>>,
}

impl PartChain<'_> {
    /// Runs a part, and returns its output.
    pub(super) fn run(
        &mut self,
        part: StagePart,
        keeps: Keeps,
        x: Tensor,
        pass: &Pass<'_>,
    ) -> Result<Tensor, EngineError> {
        let Some(parts) = &mut self.kept else {
            return tch::no_grad(|| run(self.seat, part, &x, pass));
        };
        let (output, kept) = match keeps {
            Keeps::Input => (tch::no_grad(|| run(self.seat, part, &x, pass))?, KeptActivations::Input(x)),
            Keeps::Graph => {
                let cut = Cut::run(&x, |x| run(self.seat, part, x, pass))?;
                (cut.output()?, KeptActivations::Graph(cut))
            }
        };
        parts.push(PartState { part, kept });
        Ok(output)
    }
}

impl PartState {
    /// The graph of the part, computed again where only its input was kept.
    pub(super) fn graph(self, seat: &Seat, pass: &Pass<'_>) -> Result<Cut, EngineError> {
        match self.kept {
            KeptActivations::Graph(cut) => Ok(cut),
            KeptActivations::Input(x) => Cut::run(&x, |x| run(seat, self.part, x, pass)),
        }
    }
}

fn run(seat: &Seat, part: StagePart, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
    match part {
        StagePart::Stem => seat.stage.embedding.as_ref().map_or_else(
            || Err(EngineError::Other(format!("stage {} has no embedding", seat.index))),
            |embedding| embedding.stem(x, pass),
        ),
        StagePart::Bridge(shape) => seat.stage.bridge.as_ref().map_or_else(
            || Err(EngineError::Other(format!("stage {} has no bridge", seat.index))),
            |bridge| bridge.forward(x, shape, pass),
        ),
        StagePart::Layer(at, piece) => seat.stage.layers[at].forward(piece, x, pass),
    }
}
