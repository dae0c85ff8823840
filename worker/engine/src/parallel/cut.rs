//! One primitive for stage borders and recomputed layers: run a piece on a detached input, keep
//! (input, output); later, given the output's gradient, hand over the input's.

use coxswain_native::ops;
use tch::Tensor;

use crate::EngineError;

/// A piece of the graph between a detached input and its output.
#[derive(Debug)]
pub struct Cut {
    input: Tensor,
    output: Tensor,
}

impl Cut {
    /// Runs `piece` on `x`, cut off from what made `x`.
    pub fn run(
        x: &Tensor,
        piece: impl FnOnce(&Tensor) -> Result<Tensor, EngineError>,
    ) -> Result<Cut, EngineError> {
        let input = x.f_detach()?.f_set_requires_grad(true)?;
        let output = piece(&input)?;
        Ok(Cut { input, output })
    }

    /// The output, cut off from what made it.
    pub fn output(&self) -> Result<Tensor, EngineError> {
        Ok(self.output.f_detach()?)
    }

    /// The gradient of the input, given that of the output. Frees the piece.
    pub fn backward(self, output_grad: &Tensor) -> Result<Tensor, EngineError> {
        Ok(ops::grad(&self.output, output_grad, &self.input)?)
    }
}
