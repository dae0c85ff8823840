//! A part of a stage, run for its output and for what its backward pass needs.

use tch::Tensor;

use super::Cut;
use super::flight::{Kept, Part};
use super::seat::Seat;
use crate::EngineError;
use crate::model::Pass;

/// Runs a part of a stage, and keeps of it what its backward pass needs: with `keep`, the list and
/// whether the part is computed again.
pub(super) fn piece(
    seat: &Seat,
    part: Part,
    x: Tensor,
    pass: &Pass<'_>,
    keep: Option<(&mut Vec<(Part, Kept)>, bool)>,
) -> Result<Tensor, EngineError> {
    match keep {
        None => tch::no_grad(|| run(seat, part, &x, pass)),
        Some((kept, true)) => {
            let output = tch::no_grad(|| run(seat, part, &x, pass))?;
            kept.push((part, Kept::Input(x)));
            Ok(output)
        }
        Some((kept, false)) => {
            let cut = Cut::run(&x, |x| run(seat, part, x, pass))?;
            let output = cut.output()?;
            kept.push((part, Kept::Cut(cut)));
            Ok(output)
        }
    }
}

/// Runs a part of a stage.
pub(super) fn run(seat: &Seat, part: Part, x: &Tensor, pass: &Pass<'_>) -> Result<Tensor, EngineError> {
    match part {
        Part::Stem => seat.stage.embedding.as_ref().map_or_else(
            || Err(EngineError::Other(format!("stage {} has no embedding", seat.index))),
            |embedding| embedding.stem(x, pass),
        ),
        Part::Bridge(shape) => seat.stage.bridge.as_ref().map_or_else(
            || Err(EngineError::Other(format!("stage {} has no bridge", seat.index))),
            |bridge| bridge.forward(x, shape, pass),
        ),
        Part::Layer(at, piece) => seat.stage.layers[at].forward(piece, x, pass),
    }
}
